"""MXFP4 → NVFP4: three known ways and ours over 30 scenarios, as a table in docs/cast-study.md.

    python benchmarks/cast_study.py [--rows 512] [--columns 1024] [--check]

The ways, each under one global scale per tensor:
  requantise  dequantise to bfloat16 and quantise to NVFP4 from the amax
  snap        m = k_max - 8, codes kept, scales outside E4M3's powers of two set to the nearest of them
  hybrid      the exporter's: as snap, but outside the window the codes are rounded anew under the scale 2^-9
  ours        quant.mx_to_nv

An error is the mean squared one against the MXFP4 weight, over the mean square of that weight.  ``--check`` exits
with 1 unless ours is at most the best of the three in every row, and 0 wherever the spread of exponents is at most 17.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from quant import metrics, mx, nvfp4
from quant.cast import encode
from quant.codes import E2M1
from quant.floats import narrow_bf16
from quant.mx_to_nv import Source, cast
from quant.quantised import Quantised
from quant.scheme import MXFP4, NVFP4

Array = np.ndarray
HEAD = """\
# MXFP4 to NVFP4: a study of the ways

Made by `python benchmarks/cast_study.py`, {rows} × {columns} weights quantised to MXFP4 first. Errors are mean
squared errors against the MXFP4 weight over its mean square; *spread* is that of the exponents of live blocks, in
octaves; *m* is the exponent of the global scale; *exact blocks* is the share of blocks of 16 that keep their value.
`requantise` goes through bfloat16 and the amax, `snap` keeps all codes and clamps the scales, `hybrid` is the
exporter's way, `ours` is `quant.mx_to_nv` (its *way* is the closed form, unless requantising lost less).

"""
TABLE = Path(__file__).parents[1] / "docs" / "cast-study.md"


def scenarios(rows: int, columns: int) -> Iterator[tuple[str, Array]]:
    """Named weights, float32; the spread of their block exponents is what they differ in."""
    shape = (rows, columns)

    def rng(seed: int) -> np.random.Generator:
        return np.random.default_rng(seed)

    gauss = rng(0).standard_normal(shape)
    yield "Gaussian", gauss * 0.02
    yield "Gaussian, unit", gauss
    yield "Gaussian, tiny", gauss * 2.0**-100
    yield "Laplace", rng(1).laplace(size=shape) * 0.02
    for df in (2, 3, 5):
        yield f"Student-t, {df} degrees of freedom", rng(df).standard_t(df, shape) * 0.02
    yield "Cauchy", rng(6).standard_cauchy(shape) * 0.02
    for size in (10, 1e3, 1e5, 1e6, 1e9):
        one = gauss * 0.02
        one[0, 0] = size * 0.02
        yield f"one outlier of {size:g} sigma", one
    for share, size in ((1e-4, 100), (1e-3, 100), (1e-3, 1e5), (1e-2, 1e6)):
        hit = rng(8).random(shape) < share
        yield f"{share:.2%} outliers of {size:g} sigma", np.where(hit, gauss * 0.02 * size, gauss * 0.02)
    for spread in (12, 16, 17, 18, 19, 20, 22, 25):
        yield f"spread {spread}", spread_over(rng(10 + spread), shape, spread)
    yield "spread 19, codes that halve", spread_over(rng(40), shape, 19, np.array([1, 2, 3, 4, 6]))
    yield "spread 19, no code above 3", spread_over(rng(41), shape, 19, np.array([0.5, 1, 1.5, 2, 3]))
    yield "half the blocks zero, spread 18", spread_over(rng(42), shape, 18) * (blocks(rng(43), shape) < 0.5)
    yield "zero but for one block", np.where(np.arange(rows * columns).reshape(shape) < 32, gauss, 0)
    yield "layer: rows of unequal size", gauss * np.exp(rng(44).standard_normal((rows, 1)))
    yield "layer: outlier columns", gauss * np.where(rng(45).random((1, columns)) < 0.01, 50, 1)
    yield "layer: dead rows", gauss * np.where(rng(46).random((rows, 1)) < 0.1, 2.0**-20, 1)
    yield "layer: low rank and noise", low_rank(rng(47), shape)


def blocks(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    return rng.random((shape[0], shape[1] // 32)).repeat(32, axis=1)


def spread_over(rng: np.random.Generator, shape: tuple[int, int], spread: int, values: Array | None = None) -> Array:
    """Random codes under exponents uniform over ``spread`` + 1 octaves, both ends present."""
    exponent = rng.integers(-spread, 1, (shape[0], shape[1] // 32))
    exponent[0, :2] = 0, -spread
    magnitude = rng.choice(E2M1.values[:8] if values is None else values, shape)
    if values is None:
        magnitude[:, ::16] = 6  # so that quantising gives the exponent back
    else:
        magnitude[:, ::32] = values.max()
    return magnitude * rng.choice([-1, 1], shape) * np.ldexp(1.0, exponent).repeat(32, axis=1)


def low_rank(rng: np.random.Generator, shape: tuple[int, int]) -> Array:
    a, b = rng.standard_normal((shape[0], 8)), rng.standard_normal((8, shape[1]))
    return (a @ b) * 0.05 + rng.standard_normal(shape) * 0.01


def requantise(source: Quantised) -> Array:
    return nvfp4.quantise(narrow_bf16(source.weights())).weights()


def snap(source: Quantised) -> Array:
    e, m = window(source)
    scale = np.ldexp(np.float32(1), np.clip(e, -9, 8) + m)
    return E2M1.values[source.codes] * scale.repeat(32, axis=1)


def hybrid(source: Quantised) -> Array:
    e, m = window(source)
    scale = np.ldexp(np.float32(1), np.clip(e, -9, 8) + m).repeat(32, axis=1)
    return E2M1.values[encode(E2M1, source.weights() / scale).codes] * scale


def window(source: Quantised) -> tuple[Array, int]:
    """Exponents relative to m = k_max - 8 as the exporter takes it: over all blocks whose byte is not 0."""
    k = source.scales.astype(np.int32) - mx.BIAS
    used = source.scales > 0
    m = int(k[used].max()) - 8 if used.any() else -8
    return k - m, m


WAYS: dict[str, Callable[[Quantised], Array]] = {"requantise": requantise, "snap": snap, "hybrid": hybrid}


def study(rows: int, columns: int) -> pd.DataFrame:
    table = []
    for name, w in scenarios(rows, columns):
        # CEIL, as the exporter quantises MXFP4: nothing saturates.
        source = mx.quantise(w.astype(np.float32), MXFP4, mx.ScaleRule.CEIL)
        exact = source.weights()
        live = source.scales[(source.codes.reshape(*source.scales.shape, 32) & 7).any(-1)].astype(int)
        row = {"scenario": name, "spread": int(np.ptp(live)) if live.size else 0}
        row |= {way: metrics.compare(exact, run(source)).relative for way, run in WAYS.items()}
        made = cast(Source(source.stored, source.scales, name))
        ours = metrics.compare(exact, made.quantised.weights()).relative
        table.append(row | {"ours": ours, "m": int(made.m), "exact blocks": made.exact.mean(), "way": made.way.value})
        assert made.quantised.scheme is NVFP4
    return pd.DataFrame(table)


def faults(table: pd.DataFrame) -> pd.DataFrame:
    best = table[list(WAYS)].min(axis=1)
    # Two sums of the same squares in another order differ in the last bits.
    return table[(table["ours"] > best * (1 + 1e-12)) | ((table["spread"] <= 17) & (table["ours"] != 0))]


def markdown(table: pd.DataFrame, rows: int, columns: int) -> str:
    head = HEAD.format(rows=rows, columns=columns)
    shown = table.copy()
    for column in [*WAYS, "ours"]:
        shown[column] = shown[column].map(lambda x: "0" if x == 0 else f"{x:.3e}")
    shown["exact blocks"] = shown["exact blocks"].map(lambda x: f"{x:.2%}")
    lines = ["| " + " | ".join(shown.columns) + " |", "|" + " --- |" * len(shown.columns)]
    lines += ["| " + " | ".join(str(x) for x in row) + " |" for row in shown.itertuples(index=False)]
    best = table[list(WAYS)].min(axis=1)
    strictly = int((table["ours"] < best).sum())
    tail = (
        f"\n\n{len(table)} scenarios: ours is 0 in {int((table['ours'] == 0).sum())}, below the best of the three in "
        f"{strictly}, equal to it in {len(table) - strictly - len(faults(table))}, above it in {len(faults(table))}.\n"
    )
    return head + "\n".join(lines) + tail


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--check", action="store_true", help="exit with 1 when ours loses anywhere; write nothing")
    options = parser.parse_args()
    table = study(options.rows, options.columns)
    print(table.to_string(index=False))
    bad = faults(table)
    if not options.check:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(markdown(table, options.rows, options.columns), encoding="utf-8")
    print(f"{len(table)} scenarios, ours above the best of three in {len(bad)}")
    sys.exit(1 if len(bad) else 0)


if __name__ == "__main__":
    main()
