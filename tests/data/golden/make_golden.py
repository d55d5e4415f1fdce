"""Make the golden vectors beside this file with the real exporters.

    PYTHONPATH=. python tests/data/golden/make_golden.py

Needs modelopt 0.47, compressed-tensors 0.20, torchao 0.18, ml_dtypes 0.6 and torch; the vectors are committed, so the
tests need none of them.  bfloat16 is stored as uint16 words, one-byte floats as uint8.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from tests.quant import exporters

HERE = Path(__file__).parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weight(rows: int = 40, columns: int = 256) -> torch.Tensor:
    """Gaussian rows with heavy tails, an outlier, a zero block, a zero row, -0.0 and blocks far below the rest."""
    rng = np.random.default_rng(47)
    w = (rng.standard_normal((rows, columns)) * 0.02).astype(np.float32)
    w[8:16] = (rng.standard_t(3, (8, columns)) * 0.02).astype(np.float32)
    w[16, 5] = 1.5
    w[17, :16] = 0
    w[18] = 0
    w[19, 3] = -0.0
    w[20] *= np.float32(2.0**-9)
    return torch.from_numpy(w)


def lattice() -> torch.Tensor:
    """Midpoints, codes and their float32 neighbours under power-of-two scales: every tie the rounding rules know."""
    points = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6], np.float32)
    near = np.concatenate([points, np.nextafter(points, np.float32(0)), np.nextafter(points, np.float32(9))])
    values = np.concatenate([near, -near, np.zeros(96 - 2 * near.size, np.float32)])
    rows = [np.ldexp(np.concatenate([values, values, values[:64]]), e) for e in (0, -3, -7, 4)]
    return torch.from_numpy(np.stack(rows).astype(np.float32))


def middles(rows: int = 32, columns: int = 256) -> torch.Tensor:
    """A bfloat16 weight under a global amax, 21/256, with which many block amaxes fall on midpoints of E4M3."""
    top = 21 / 256
    w = np.clip(np.random.default_rng(46).standard_normal((rows, columns)) * 0.02, -top, top)
    w[3, 7] = top
    return torch.from_numpy(w.astype(np.float32)).bfloat16()


def mx_source(spread: int) -> tuple[np.ndarray, np.ndarray]:
    """Random MXFP4 codes with block exponents over ``spread`` octaves, one zero block with byte 0 among them."""
    rng = np.random.default_rng(spread)
    packed = rng.integers(0, 256, (16, 128), np.uint8)
    packed[:, 7::16] |= 7  # a 6 in each block, so that its magnitude is the full one
    scales = rng.integers(120 - spread, 121, (16, 8)).astype(np.uint8)
    scales[0, 0] = 120
    packed[3, :16], scales[3, 0] = 0, 0
    return packed, scales


def modelopt() -> dict[str, np.ndarray]:
    out = {}
    for name, dtype in DTYPES.items():
        w = weight().to(dtype)
        top = w.float().abs().max()
        made = {
            "dynamic": exporters.modelopt_dynamic(w),
            "shared": exporters.modelopt_dynamic(w, top * 1.7),
            "block32": exporters.modelopt_dynamic(w, size=32),
            "static": exporters.modelopt_static(w, exporters.block_amax(w), top),
            "sweep": exporters.modelopt_sweep(w, top),
            "four_over_six": exporters.modelopt_four_over_six(w, top),
            "mxfp4": exporters.modelopt_mxfp4(w),
            "mxfp8": exporters.modelopt_mxfp8(w),
            "fp8_tensor": exporters.modelopt_fp8(w, "tensor"),
            "fp8_channel": exporters.modelopt_fp8(w[:16], "channel"),
            "fp8_block": exporters.modelopt_fp8(w.repeat(4, 1)[:128], "block"),
            "lattice": exporters.modelopt_dynamic(lattice().to(dtype)),
            "lattice_mxfp4": exporters.modelopt_mxfp4(lattice().to(dtype)),
        }
        out |= {f"{name}/{kind}/{part}": x for kind, arrays in made.items() for part, x in arrays.items()}
    arrays = exporters.modelopt_four_over_six(middles(), middles().float().abs().max())
    out |= {f"middles/four_over_six/{part}": x for part, x in arrays.items()}
    for spread in (5, 17, 19, 25):
        packed, scales = mx_source(spread)
        arrays = exporters.modelopt_cast(torch.from_numpy(packed), torch.from_numpy(scales))
        out |= {f"cast/{spread}/{part}": x for part, x in arrays.items()}
    return out


def compressed_tensors() -> dict[str, np.ndarray]:
    out = {}
    for name, dtype in DTYPES.items():
        w = weight().to(dtype)
        made = {"nvfp4": exporters.ct_nvfp4_quantise(w), "lattice": exporters.ct_nvfp4_quantise(lattice().to(dtype))}
        if dtype != torch.float16:  # there a power of two below 2^-24 is lost on the way to E8M0
            made |= {"mxfp4": exporters.ct_mx(w, 4), "mxfp8": exporters.ct_mx(w, 8)}
        out |= {f"{name}/{kind}/{part}": x for kind, arrays in made.items() for part, x in arrays.items()}
    return out


def torchao() -> dict[str, np.ndarray]:
    out = {}
    for name in ("float32", "bfloat16"):
        for source, w in (("weight", weight()), ("lattice", lattice())):
            for bits in (4, 8):
                for mode in ("floor", "rceil", "even"):
                    arrays = exporters.torchao_mx(w.to(DTYPES[name]), bits, mode)
                    out |= {f"{name}/{source}/{bits}/{mode}/{part}": x for part, x in arrays.items()}
    return out


def all_codes() -> dict[str, np.ndarray]:
    """The value of every code, and the code of every threshold and its neighbours, as ml_dtypes has them."""
    names = {"e2m1": "float4_e2m1fn", "e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2", "e8m0": "float8_e8m0fnu"}
    out = {}
    for name, theirs in names.items():
        kind = getattr(ml_dtypes, theirs)
        codes = np.arange(16 if name == "e2m1" else 256, dtype=np.uint8)
        out[f"{name}/values"] = codes.view(kind).astype(np.float32)
        if name == "e8m0":
            continue
        finite = np.sort(np.unique(out[f"{name}/values"][np.isfinite(out[f"{name}/values"])]))
        middle = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
        inf = np.float32(np.inf)
        x = np.concatenate([finite, middle, np.nextafter(middle, inf), np.nextafter(middle, -inf)])
        out[f"{name}/x"] = x
        out[f"{name}/codes"] = x.astype(kind).view(np.uint8)
    return out


if __name__ == "__main__":
    inputs = {f"weight/{name}": exporters.raw(weight().to(dtype)) for name, dtype in DTYPES.items()}
    inputs |= {f"lattice/{name}": exporters.raw(lattice().to(dtype)) for name, dtype in DTYPES.items()}
    inputs["middles"] = exporters.raw(middles())
    for spread in (5, 17, 19, 25):
        inputs[f"cast/{spread}/packed"], inputs[f"cast/{spread}/scales"] = mx_source(spread)
    np.savez_compressed(HERE / "inputs.npz", **inputs)
    np.savez_compressed(HERE / "modelopt.npz", **modelopt())
    np.savez_compressed(HERE / "compressed_tensors.npz", **compressed_tensors())
    np.savez_compressed(HERE / "torchao.npz", **torchao())
    np.savez_compressed(HERE / "ml_dtypes.npz", **all_codes())
