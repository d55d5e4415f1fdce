"""The real exporters' own functions, called on a weight; every result is numpy, bytes as uint8.

Needs modelopt 0.47, compressed-tensors 0.20 and torchao 0.18.  Used to make the golden vectors and by the tests
marked ``clients``.  Weights are torch tensors, float32, float16 or bfloat16.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from compressed_tensors.compressors import nvfp4 as ct_nvfp4
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from modelopt.torch.export.quant_utils import to_quantized_weight
from modelopt.torch.kernels.quantization.gemm.fp4_kernel import compute_fp4_scales
from modelopt.torch.quantization.calib.mse import MseCalibrator, NVFP4MSECalibrator
from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor
from modelopt.torch.quantization.qtensor.mxfp8_tensor import MXFP8QTensor
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from modelopt.torch.quantization.utils.numeric_utils import mxfp4_to_nvfp4_global_amax, mxfp4_to_nvfp4_per_block_amax
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import to_mx

Arrays = dict[str, np.ndarray]
assert ct_nvfp4 is not None


def raw(x: torch.Tensor) -> np.ndarray:
    """The bytes of a tensor as numpy: bfloat16 as uint16 words, one-byte floats as uint8."""
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(np.uint16).copy()
    if x.element_size() == 1 and x.dtype != torch.uint8:
        return x.contiguous().view(torch.uint8).numpy().copy()
    return x.contiguous().numpy().copy()


def block_amax(w: torch.Tensor, size: int = 16) -> torch.Tensor:
    return w.float().reshape(*w.shape[:-1], -1, size).abs().amax(-1)


def modelopt_dynamic(w: torch.Tensor, amax: torch.Tensor | None = None, size: int = 16) -> Arrays:
    ws2 = None if amax is None else amax.float() / (6.0 * 448.0)
    if size == 32:
        ws2 = w.float().abs().amax() / 448.0
    q, s, g = NVFP4QTensor.quantize(w.clone(), size, weights_scaling_factor_2=ws2)
    return {"packed": raw(q._quantized_data), "scales": raw(s), "global": raw(g.reshape(()))}


def modelopt_static(w: torch.Tensor, amax: torch.Tensor, top: torch.Tensor, four_over_six: bool = False) -> Arrays:
    sizes = {-1: 16, "four_over_six": four_over_six}
    quantizer = SimpleNamespace(global_amax=top.float(), _amax=amax.clone(), block_sizes=sizes)
    s, g = NVFP4QTensor.get_weights_scaling_factor_from_quantizer(quantizer, w)
    q, _, _ = NVFP4QTensor.quantize(w.clone(), 16, s, g)
    return {"packed": raw(q._quantized_data), "scales": raw(s), "global": raw(g.reshape(()))}


def _fake_quant(norm: float, top: torch.Tensor):  # type: ignore[no-untyped-def]
    """The exporter's fake quantisation of [N, 16] blocks, from its own parts (its fused kernel needs a GPU)."""
    values = NVFP4QTensor.get_e2m1_values("cpu")

    def run(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
        scale = compute_fp4_scales(amax.float(), top, True, fp8_max_for_normalization=norm).reshape(-1, 1)
        scale = torch.where(scale == 0, 1.0, scale)
        return values[NVFP4QTensor._cast_fp4(x.float() / scale).long()] * scale

    return run


def modelopt_sweep(w: torch.Tensor, top: torch.Tensor) -> Arrays:
    """The MSE calibrator's 126 steps, then the static export."""
    blocks = w.reshape(-1, 16)
    first = block_amax(w).reshape(-1, 1)
    calibrator = NVFP4MSECalibrator(first, top, axis=0, quant_func=_fake_quant(448.0, top.float()))
    calibrator.collect(blocks)
    return modelopt_static(w, calibrator.compute_amax().reshape(block_amax(w).shape), top)


def modelopt_four_over_six(w: torch.Tensor, top: torch.Tensor) -> Arrays:
    blocks, first = w.reshape(-1, 16), block_amax(w).reshape(-1, 1)
    quant = _fake_quant(256.0, top.float())
    calibrator = MseCalibrator(
        first, axis=0, step_size=0.5, start_multiplier=1.0, stop_multiplier=1.5, quant_func=quant
    )
    calibrator.collect(blocks)
    return modelopt_static(w, calibrator.compute_amax().reshape(block_amax(w).shape), top, four_over_six=True)


def modelopt_mxfp4(w: torch.Tensor) -> Arrays:
    q, s = MXFP4QTensor.quantize(w.clone(), 32)
    return {"packed": raw(q._quantized_data), "scales": raw(s).reshape(*w.shape[:-1], -1)}


def modelopt_mxfp8(w: torch.Tensor) -> Arrays:
    q, s = MXFP8QTensor.quantize(w.clone())
    return {"codes": raw(q._quantized_data), "scales": raw(s)}


def modelopt_fp8(w: torch.Tensor, kind: str) -> Arrays:
    """kind: FP8 per tensor, FP8_PC_PT per channel, FP8_PB_WO per 128 × 128 block (whole blocks only)."""
    if kind == "tensor":
        scale = w.float().abs().amax() / 448.0
        return {"codes": raw(to_quantized_weight(w, scale, "fp8")), "scales": raw(scale)}
    if kind == "channel":
        scale = w.float().abs().amax(-1) / 448.0
        return {"codes": raw(to_quantized_weight(w, scale, "fp8_pc_pt")), "scales": raw(scale)}
    r, k = w.shape
    scale = w.float().reshape(r // 128, 128, k // 128, 128).abs().amax((1, 3)) / 448.0
    return {"codes": raw(to_quantized_weight(w, scale, "fp8_pb_wo", block_size=128)), "scales": raw(scale)}


def modelopt_cast(packed: torch.Tensor, scales: torch.Tensor) -> Arrays:
    """MXFP4 → NVFP4: the exporter's closed form with its fallback outside the window."""
    top, _ = mxfp4_to_nvfp4_global_amax(scales)
    amax = mxfp4_to_nvfp4_per_block_amax(packed.reshape(*scales.shape, 16), scales)
    values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    codes = torch.stack([packed & 15, packed >> 4], -1).reshape(*scales.shape, 32).long()
    w = (values[codes] * torch.exp2(scales.float() - 127)[..., None]).reshape(*packed.shape[:-1], -1)
    return modelopt_static(w.bfloat16(), amax.reshape(*scales.shape[:-1], -1), torch.tensor(top))


def ct_args(bits: int, strategy: str, group: int | None, scale_dtype: torch.dtype | None) -> QuantizationArgs:
    return QuantizationArgs(
        num_bits=bits, type="float", strategy=QuantizationStrategy(strategy), group_size=group, scale_dtype=scale_dtype
    )


def ct_nvfp4_quantise(w: torch.Tensor) -> Arrays:
    """compressed-tensors' own qparams and packing, in the dtype of the weight, as its observers do."""
    args = ct_args(4, "tensor_group", 16, torch.float8_e4m3fn)
    divisor = generate_gparam(w.min().reshape(1), w.max().reshape(1))
    cut = w.reshape(*w.shape[:-1], -1, 16)
    scale, _ = calculate_qparams(cut.amin(-1), cut.amax(-1), args, global_scale=divisor)
    codes = ct_quantize(w, scale, None, args, global_scale=divisor)
    stored = scale.to(torch.float8_e4m3fn)
    return {"packed": raw(pack_fp4_to_uint8(codes)), "scales": raw(stored), "global": raw(divisor.reshape(()))}


def ct_mx(w: torch.Tensor, bits: int) -> Arrays:
    args = ct_args(bits, "group", 32, torch.uint8)
    cut = w.reshape(*w.shape[:-1], -1, 32)
    scale, _ = calculate_qparams(cut.amin(-1), cut.amax(-1), args)
    codes = ct_quantize(w, scale, None, args, dtype=torch.float8_e4m3fn if bits == 8 else None)
    exponent = (127 + torch.floor(torch.log2(scale)).to(torch.int32)).to(torch.uint8)
    if bits == 4:
        return {"packed": raw(pack_fp4_to_uint8(codes)), "scales": raw(exponent)}
    return {"codes": raw(codes), "scales": raw(exponent)}


def torchao_mx(w: torch.Tensor, bits: int, mode: str) -> Arrays:
    element = torch.float8_e4m3fn if bits == 8 else torch.float4_e2m1fn_x2
    scale, codes = to_mx(w, element, 32, ScaleCalculationMode(mode))
    return {"packed" if bits == 4 else "codes": raw(codes), "scales": raw(scale)}
