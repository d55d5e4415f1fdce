"""The torch face: CPU tensors without a copy, Triton kernels in the interpreter, both against the numpy core."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from quant import metrics, mx, mx_to_nv, nvfp4, torch_api  # noqa: E402
from quant.activation import Fill, Policy  # noqa: E402
from quant.errors import NumericError  # noqa: E402
from quant.nvfp4 import Method  # noqa: E402
from quant.scheme import NVFP4_BLOCK32  # noqa: E402
from quant.sweep import sweep  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def weight(dtype, shape=(6, 64)):  # type: ignore[no-untyped-def]
    return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32)).to(dtype)


@dtypes
def test_a_cpu_tensor_is_viewed_without_a_copy(dtype):
    w = weight(dtype)
    assert torch_api.as_numpy(w).__array_interface__["data"][0] == w.data_ptr()
    codes = torch.arange(4, dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert torch_api.as_numpy(codes).tolist() == [0, 1, 2, 3]
    assert torch_api.as_numpy(codes).__array_interface__["data"][0] == codes.data_ptr()


@dtypes
def test_the_torch_face_gives_what_the_numpy_core_gives(dtype):
    w = weight(dtype, (3, 4, 64))
    n = torch_api.as_numpy(w)
    for per_expert in (False, True):
        ours, theirs = torch_api.sweep(w, per_expert=per_expert), sweep(n, per_expert=per_expert)
        np.testing.assert_array_equal(ours.codes.numpy(), theirs.codes)
        np.testing.assert_array_equal(ours.global_amax.numpy(), theirs.global_amax)
        for method in Method:
            made = torch_api.quantise(w, method=method, per_expert=per_expert)
            core = nvfp4.quantise(n, method=method, per_expert=per_expert)
            np.testing.assert_array_equal(made.packed.numpy(), core.stored)
            np.testing.assert_array_equal(made.scales.numpy(), core.scales)
            assert torch_api.error(w, *made) == metrics.error(n, core)
            again = torch_api.with_scales(w, made.scales.view(torch.float8_e4m3fn), made.global_scale)
            np.testing.assert_array_equal(again.packed.numpy(), core.stored)


def test_hessian_shared_amax_and_input_scales():
    w = weight(torch.bfloat16)
    x = torch.randn(4, 100, 16)
    h = x.transpose(1, 2) @ x / 100
    ours = torch_api.sweep(w, hessian=h)
    np.testing.assert_array_equal(ours.codes.numpy(), sweep(torch_api.as_numpy(w), hessian=h.numpy()).codes)
    assert torch_api.shared_amax([w, w * 2]) == float((w * 2).abs().max())
    assert torch_api.shared_amax([]) == 0
    filled = torch_api.fill_input_scales(torch.tensor([0.0, 2.0]), Fill(Policy.MIN_POSITIVE))
    assert filled.tolist() == [2.0, 2.0]


def test_cast_of_mxfp4():
    n = torch_api.as_numpy(weight(torch.float32, (3, 4, 64)))
    source = mx.quantise(n)
    made, outcome = torch_api.cast_mxfp4(
        torch.from_numpy(source.stored), torch.from_numpy(source.scales), per_expert=True
    )
    core = mx_to_nv.cast(mx_to_nv.Source(source.stored, source.scales), per_expert=True)
    assert outcome.exact.all()
    np.testing.assert_array_equal(made.scales.numpy(), core.quantised.scales)
    np.testing.assert_array_equal(made.packed.numpy(), source.stored)


def test_nan_and_infinity_are_refused():
    w = weight(torch.bfloat16)
    w[2, 5] = float("inf")
    for call in (torch_api.largest, torch_api.sweep, torch_api.quantise):
        with pytest.raises(NumericError, match=r"\[2, 5\]: inf"):
            call(w)


@pytest.mark.parametrize("method", [Method.STATIC, Method.FOUR_OVER_SIX, Method.SWEEP])
def test_methods_that_blocks_of_32_lack_are_refused(method):
    """Before any work, on whatever device."""
    for device in ("cpu", "meta"):
        with pytest.raises(NumericError, match="blocks of 16"):
            torch_api.quantise(torch.ones((2, 64), device=device), method=method, scheme=NVFP4_BLOCK32)


INTERPRETED = """
import numpy as np, torch
from quant import cuda, metrics, nvfp4, rounding
from quant.errors import NumericError
from quant.rounding import Rule
from quant.sweep import Backend, cuda as sweep_cuda, cuda_hessian, sweep
from quant.torch_api import as_numpy
from tests.quant import draws

rng = np.random.default_rng({seed})
x = rng.standard_normal((2, 12, 64)).astype(np.float32)
x[0, 0] = 0; x[0, 1, :16] = 0; x[0, 2, 3] = 1e6; x[0, 3] *= 1e-30; x[0, 4] = 0.25
x[1, :6] = rng.choice(draws.neighbours(np.array(draws.LATTICE, np.float32)), (6, 64))
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    w = torch.from_numpy(np.clip(x, -6e4, 6e4)).to(dtype)
    n = as_numpy(w)
    cases = ((False, 1), (True, 1), (False, 1e-36)) if dtype == torch.float32 else ((True, 1),)
    for per_expert, scale in cases:
        v = (w.float() * scale).to(torch.float32) if scale != 1 else w
        ref = sweep(as_numpy(v), per_expert=per_expert, backend=Backend.REFERENCE)
        amax = ref.global_amax.reshape(-1)
        codes, tried = sweep_cuda.best_codes(v.reshape(len(amax), -1, 16).contiguous(), amax)
        assert (codes.numpy().reshape(ref.codes.shape) == ref.codes).all(), (dtype, per_expert, scale)
        assert tried.min() >= 1
    for rule in Rule:
        step = rounding.block_amax(n, 16) / np.float32(6)
        step[1, :6] = 1
        packed = cuda.pack_fp4(w, torch.from_numpy(step), 16, rule)
        assert (packed.numpy() == rounding.pack_fp4(n, step, 16, rule, Backend.REFERENCE)).all(), (dtype, rule)
    for block in (0, 1, 8, 24):
        try:
            cuda.pack_fp4(w, torch.ones((*w.shape[:-1], 64 // max(block, 1))), block)
        except NumericError:
            continue
        raise AssertionError(block)
    made = nvfp4.quantise(n)
    ours = cuda.error(w, torch.from_numpy(made.stored), torch.from_numpy(made.steps()), 16)
    theirs = metrics.error(n, made, Backend.REFERENCE)
    assert ours.count == theirs.count and ours.largest == theirs.largest
    for a, b in zip((ours.squared, ours.source, ours.result, ours.product),
                    (theirs.squared, theirs.source, theirs.result, theirs.product)):
        assert abs(a - b) <= 1e-12 * abs(b)
w = torch.from_numpy(rng.standard_normal((1, 8, 2, 16)).astype(np.float32))
w[0, 3, 1] = 0
g = rng.standard_normal((2, 200, 16)).astype(np.float32)
h = (g.transpose(0, 2, 1) @ g / 200).astype(np.float32)
ref = sweep(as_numpy(w).reshape(8, 32), hessian=h, backend=Backend.REFERENCE)
codes, tried = cuda_hessian.best_codes(w, ref.global_amax.reshape(1), torch.from_numpy(h))
assert (codes.numpy().reshape(8, 2) == ref.codes).all()
assert tried.max() < 126
print("same")
"""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_triton_kernels_in_the_interpreter(seed):
    """In a process of its own: Triton decides on import whether it interprets."""
    pytest.importorskip("triton")
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED.format(seed=seed)], cwd=root, env=env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]
