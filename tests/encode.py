"""Weights to the tensors of one layer, for every exporter's spelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from quant import fp8, mx, nvfp4
from quant.backend import Backend
from quant.quantised import Quantised
from quant.scheme import FP8_BLOCK, FP8_CHANNEL, FP8_TENSOR, MXFP4, MXFP8, NVFP4, NVFP4_BLOCK32, NVFP4_DIVIDE
from tests.modelled import Linear
from tests.raw import Raw, raw

Weight = NDArray[np.float32]
Parts = dict[str, Raw]
_SLOW = Backend.REFERENCE


@dataclass(frozen=True)
class Made:
    """One quantised layer as it was made: the full names of its parts ("" where it has none) and their meaning.

    ``kind``: nvfp4 (E4M3 scales under a global one), mxfp4, mxfp8, fp8 (float scales), fp8e8m0, int.
    ``block``: weights per scale along K (FP4 and MX).  ``transposed``: blocks run along axis -2.
    """

    name: str
    kind: str
    codes: str
    scales: str
    global_scale: str = ""
    input_scale: str = ""
    pre_quant: str = ""
    divides: bool = False
    unit: float = 0.0  # activation scale = amax / unit
    block: int = 0
    transposed: bool = False
    fused: tuple[str, ...] = ()  # the layers of its fused set, itself included, in the loaders' order
    peers: tuple[str, ...] = ()  # the same projection of every expert, itself included

    def block_bytes(self, flat: int, scales: tuple[int, ...]) -> list[int]:
        """Byte offsets within the codes of the packed block under the ``flat``-th scale."""
        half = self.block // 2
        if not self.transposed:
            return [flat * half + i for i in range(half)]
        inner = scales[-1]
        row, column = divmod(flat, inner)
        return [(row * half + i) * inner + column for i in range(half)]


Encoder = Callable[[str, Weight, np.float32, np.float32, Linear], tuple[Parts, Made]]


def _named(module: str, parts: dict[str, Raw]) -> Parts:
    return {f"{module}.{leaf}": tensor for leaf, tensor in parts.items()}


def _nvfp4(
    module: str,
    w: Weight,
    amax: np.float32,
    x: np.float32,
    linear: Linear,
    *,
    block: int = 16,
    inputs: str = "input_scale",
    extra: str = "",
) -> tuple[Parts, Made]:
    """modelopt and Quark: weight, weight_scale, weight_scale_2."""
    w4a8 = block == 32
    q = nvfp4.quantise(w, amax, scheme=NVFP4_BLOCK32 if w4a8 else NVFP4, backend=_SLOW)
    unit = 448.0 if w4a8 else 2688.0
    parts = {
        "weight": raw("U8", q.stored),
        "weight_scale": raw("F8_E4M3", q.scales),
        "weight_scale_2": raw("F32", q.global_scale),
    }
    if inputs:
        parts[inputs] = raw("F32", np.float32(x / np.float32(unit)))
    columns, rows = w.shape[-1], w.shape[-2]
    if extra:
        # The smoothing of fused siblings is the same vector: it depends on their shared amax alone.
        parts["pre_quant_scale"] = raw("BF16", np.linspace(0.5, float(1 + amax), columns))
    if extra == "svd":
        parts["svdquant_lora_a"] = raw("BF16", np.linspace(-1, 1, 8 * columns).reshape(8, columns))
        parts["svdquant_lora_b"] = raw("BF16", np.linspace(-1, 1, 8 * rows).reshape(rows, 8))
    if extra == "svd-quantizer":
        parts["weight_quantizer._svdquant_lora_a"] = raw("BF16", np.linspace(-1, 1, 8 * columns).reshape(8, columns))
        parts["weight_quantizer._svdquant_lora_b"] = raw("BF16", np.linspace(-1, 1, 8 * rows).reshape(rows, 8))
    return _named(module, parts), Made(
        module, "nvfp4", f"{module}.weight", f"{module}.weight_scale", f"{module}.weight_scale_2",
        f"{module}.{inputs}" if inputs else "", f"{module}.pre_quant_scale" if extra else "", unit=unit, block=block,
    )  # fmt: skip


def _nvfp4_3d(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, per_expert: bool = False
) -> tuple[Parts, Made]:
    """modelopt's fused experts: [E, K/2, N] under underscore names, one global scale or one for each expert."""
    q = nvfp4.quantise(w, None if per_expert else amax, per_expert=per_expert, backend=_SLOW)
    scale = np.full(len(w) if per_expert else (), x / np.float32(2688), np.float32)
    parts = {
        module: raw("U8", np.ascontiguousarray(q.stored.swapaxes(1, 2))),
        f"{module}_weight_scale": raw("F8_E4M3", np.ascontiguousarray(q.scales.swapaxes(1, 2))),
        f"{module}_weight_scale_2": raw("F32", q.global_scale),
        f"{module}_input_scale": raw("F32", scale),
    }
    return parts, Made(
        module, "nvfp4", module, f"{module}_weight_scale", f"{module}_weight_scale_2", f"{module}_input_scale",
        unit=2688.0, block=16, transposed=True,
    )  # fmt: skip


def _ct_nvfp4(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, inputs: bool = True
) -> tuple[Parts, Made]:
    q = nvfp4.quantise(w, amax, scheme=NVFP4_DIVIDE, backend=_SLOW)
    parts = {
        "weight_packed": raw("U8", q.stored),
        "weight_scale": raw("F8_E4M3", q.scales),
        "weight_global_scale": raw("F32", q.global_scale, (1,)),
    }
    if inputs:
        parts["input_global_scale"] = raw("F32", np.float32(2688) / x, (1,))
    return _named(module, parts), Made(
        module, "nvfp4", f"{module}.weight_packed", f"{module}.weight_scale", f"{module}.weight_global_scale",
        f"{module}.input_global_scale" if inputs else "", divides=True, unit=2688.0, block=16,
    )  # fmt: skip


def _mx(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, codes: str, scales: str, dtype: str,
    element: str = "U8",
) -> tuple[Parts, Made]:  # fmt: skip
    """MXFP4 and MXFP8: codes and E8M0 scales."""
    four = element != "F8_E4M3"
    q = mx.quantise(w, MXFP4 if four else MXFP8, backend=_SLOW)
    stored = q.stored
    if codes == "_blocks":
        stored = stored.reshape(*stored.shape[:-1], -1, 16)
    dot = "" if linear.stem else "."
    parts = {f"{module}{dot}{codes}": raw(element, stored), f"{module}{dot}{scales}": raw(dtype, q.scales)}
    stored_as, scaled_by = parts
    return parts, Made(module, "mxfp4" if four else "mxfp8", stored_as, scaled_by, block=32)


def _fp8(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, scheme: str = "tensor",
    scale: str = "weight_scale", dtype: str = "F32", shape: str = "", inputs: str = "",
) -> tuple[Parts, Made]:  # fmt: skip
    """FP8 with float scales: one for the tensor, for each channel, for each block of 128x128."""
    q: Quantised = fp8.quantise(
        w, {"tensor": FP8_TENSOR, "channel": FP8_CHANNEL, "block": FP8_BLOCK}[scheme], backend=_SLOW
    )
    scales = q.scales
    if dtype == "BF16":  # round up, so that nothing overflows
        scales = (((scales.view(np.uint32) >> 16) + 1) << 16).view(np.float32)
        q = fp8.with_scales(w, scales, q.scheme, backend=_SLOW)
    if shape == "scalar":
        scales = scales.reshape(())
    elif shape == "one":
        scales = scales.reshape(1)
    elif shape == "flat":
        scales = scales.reshape(-1)
    elif shape == "rank4":
        scales = scales[:, None, :, None]
    parts = {"weight": raw("F8_E4M3", q.stored), scale: raw(dtype, scales)}
    if inputs:
        parts[inputs] = raw(dtype, np.full((1,) if shape == "one" else (), x / np.float32(448), np.float32))
    return _named(module, parts), Made(
        module, "fp8", f"{module}.weight", f"{module}.{scale}",
        input_scale=f"{module}.{inputs}" if inputs else "", unit=448.0,
    )  # fmt: skip


def _fp8_e8m0(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, scale: str
) -> tuple[Parts, Made]:
    """Block FP8 under powers of two: the smallest that reaches the block's amax."""
    exact = fp8.quantise(w, FP8_BLOCK, backend=_SLOW).scales
    exponent = np.ceil(np.log2(exact.astype(np.float64)))
    q = fp8.with_scales(w, np.exp2(exponent).astype(np.float32), FP8_BLOCK, backend=_SLOW)
    parts = {"weight": raw("F8_E4M3", q.stored), scale: raw("F8_E8M0", (exponent + 127).astype(np.uint8))}
    return _named(module, parts), Made(module, "fp8e8m0", f"{module}.weight", f"{module}.{scale}")


def _integer(
    module: str, w: Weight, amax: np.float32, x: np.float32, linear: Linear, *, style: str
) -> tuple[Parts, Made]:
    """Integer formats: shapes and dtypes are right, the numbers are noise (nothing looks at them)."""
    n, k = w.shape
    rng = np.random.default_rng(n * k)

    def noise(dtype: str, *shape: int) -> Raw:
        width = {"U8": 1, "I8": 1, "I32": 4}[dtype]
        return Raw(dtype, shape, rng.bytes(int(np.prod(shape)) * width))

    def scale(dtype: str, *shape: int) -> Raw:
        return raw(dtype, rng.uniform(0.001, 0.01, shape))

    styles: dict[str, dict[str, Raw]] = {
        "modelopt-awq": {
            "weight": noise("U8", n // 2, k), "weight_scale": scale("F32", n, -(-k // 128)),
            "pre_quant_scale": scale("BF16", k),
        },
        "gptq": {
            "qweight": noise("I32", k // 8, n), "qzeros": noise("I32", -(-k // 128), n // 8),
            "scales": scale("F16", -(-k // 128), n), "g_idx": raw("I32", np.arange(k) // 128),
        },
        "pack": {
            "weight_packed": noise("I32", n, k // 8), "weight_scale": scale("BF16", n, -(-k // 128)),
            "weight_shape": raw("I64", np.array([n, k])),
        },
        "int8": {"weight": noise("I8", n, k), "weight_scale": scale("BF16", n, 1)},
        "bnb-nf4": {
            "weight": noise("U8", n * k // 2, 1), "weight.absmax": noise("U8", n * k // 64),
            "weight.quant_map": scale("F32", 16), "weight.nested_absmax": scale("F32", 8),
            "weight.nested_quant_map": scale("F32", 256), "weight.quant_state.bitsandbytes__nf4": noise("U8", 96),
        },
        "bnb-int8": {"weight": noise("I8", n, k), "SCB": scale("F32", n), "weight_format": raw("U8", np.uint8(0))},
    }  # fmt: skip
    parts = _named(module, styles[style])
    names = tuple(parts)
    return parts, Made(module, "int", names[0], names[2 if style == "gptq" else 1])


ENCODERS: dict[str, Encoder] = {
    "nvfp4": _nvfp4,
    "w4a16": partial(_nvfp4, inputs=""),
    "awq": partial(_nvfp4, extra="awq"),
    "svd": partial(_nvfp4, extra="svd"),
    "svd-quantizer": partial(_nvfp4, extra="svd-quantizer"),
    "w4a8": partial(_nvfp4, block=32),
    "quark-nvfp4": partial(_nvfp4, inputs="input_scale_2"),
    "nvfp4-3d": _nvfp4_3d,
    "nvfp4-3d-per-expert": partial(_nvfp4_3d, per_expert=True),
    "ct-nvfp4": _ct_nvfp4,
    "ct-nvfp4a16": partial(_ct_nvfp4, inputs=False),
    "mxfp4": partial(_mx, codes="weight", scales="weight_scale", dtype="U8"),
    "ct-mxfp4": partial(_mx, codes="weight_packed", scales="weight_scale", dtype="U8"),
    "gpt-oss": partial(_mx, codes="_blocks", scales="_scales", dtype="U8"),
    "v4-fp4": partial(_mx, codes="weight", scales="scale", dtype="F8_E8M0", element="I8"),
    "mxfp8": partial(_mx, codes="weight", scales="weight_scale", dtype="U8", element="F8_E4M3"),
    "fp8": partial(_fp8, shape="scalar", inputs="input_scale"),
    "fp8-channel": partial(_fp8, scheme="channel", shape="flat"),
    "fp8-block": partial(_fp8, scheme="block"),
    "fp8-block-rank4": partial(_fp8, scheme="block", shape="rank4"),
    "fp8-block-inv": partial(_fp8, scheme="block", scale="weight_scale_inv"),
    "fp8-block-inv-bf16": partial(_fp8, scheme="block", scale="weight_scale_inv", dtype="BF16"),
    "ct-fp8": partial(_fp8, dtype="BF16", shape="one", inputs="input_scale"),
    "ct-fp8-channel": partial(_fp8, scheme="channel", dtype="BF16"),
    "ct-fp8-block": partial(_fp8, scheme="block", dtype="BF16"),
    "quark-fp8": partial(_fp8, dtype="BF16", shape="scalar", inputs="input_scale"),
    "fp8-ue8m0": partial(_fp8_e8m0, scale="weight_scale_inv"),
    "v4-fp8": partial(_fp8_e8m0, scale="scale"),
    "comfy": partial(_fp8, scale="scale_weight", shape="scalar", inputs="scale_input"),
    **{f"int-{s}": partial(_integer, style=s) for s in ("modelopt-awq", "gptq", "pack", "int8", "bnb-nf4", "bnb-int8")},
}
