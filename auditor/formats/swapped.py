"""Image-model files that pack nibbles the other way round and swizzle their scales, told by their marker tensors."""

from __future__ import annotations

# ComfyUI stores its quantisation's name in a U8 tensor beside the weight; BFL's files spell scales their own way.
MARKERS = frozenset({"comfy_quant", "scaled_fp4", "weight_scale_swizzled"})
