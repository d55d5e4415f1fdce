"""The range search: equal to the library's own steps where that is installed, and what holds of any search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.backend import Backend
from quant.errors import NumericError
from quant.floats import Word, narrow_bf16, round_to, widen
from quant.shrink import EXPANDED, Search, shrunk_amax

SEARCHES = {
    "default": Search(),
    "rounded": Search(rounded=True),
    "expanded": EXPANDED,
    "odd": Search(maxshrink=0.8, patience=2, grid=50, norm=3.1, expand=1.5),
}


def weights(seed: int, word: Word, size: float = 0.02, shape: tuple[int, ...] = (64, 128)):
    """Heavy tails in every seventh row, one zero block."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal(shape).astype(np.float32) * np.float32(size)
    w[::7] *= np.abs(rng.standard_normal(w[::7].shape)).astype(np.float32) ** 3
    w[0, :16] = 0
    if word is Word.BFLOAT16:
        return narrow_bf16(w)
    return w.astype(np.float16) if word is Word.FLOAT16 else w


@pytest.mark.clients
@pytest.mark.parametrize("size", [1e-5, 0.02, 3.0])
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("word", [Word.BFLOAT16, Word.FLOAT16, Word.FLOAT32])
@pytest.mark.parametrize("shape", [(64, 128), (2, 32)])
def test_as_the_library_does(word, name, size, shape):
    """Step by step with compressed-tensors' scales and fake quantisation, as the observer calls them."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    search = SEARCHES[name]
    w = weights(3, word, size, shape)
    x = torch.from_numpy(w.view(np.int16)).view(torch.bfloat16) if word is Word.BFLOAT16 else torch.from_numpy(w)
    _, gained = shrunk_amax(w, search, word=word)
    found, _ = shrunk_amax(w, search, word=word, stop=search.stop(gained))
    np.testing.assert_array_equal(found, observed(torch, x, search))


def observed(torch, x, search):
    """The observer's eager loop: the amax of each block's final range."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
    from compressed_tensors.quantization.lifecycle import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    kind = torch.float8_e4m3fn if search.rounded else None
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=kind)
    args = args.model_copy(update={"scale_dtype": kind})
    token = args.model_copy(update={"strategy": QuantizationStrategy.TOKEN})
    x = x.unflatten(-1, (-1, 16)).unsqueeze(0)
    low, high = x.amin((0, -1)) * search.expand, x.amax((0, -1)) * search.expand
    best = torch.full_like(low, torch.finfo(low.dtype).max)
    kept, idle = [low.clone(), high.clone()], 0
    for step in range(search.steps):
        ends = [end * (1 - step / search.grid) for end in (low, high)]
        scale, zero = calculate_qparams(*ends, args)
        made = fake_quantize(x, scale.unsqueeze(-1), zero.unsqueeze(-1), token).to(x.dtype)
        loss = torch.sum((made - x).abs().pow(search.norm), dim=(0, -1))
        better = loss < best
        idle = 0 if better.any() else idle + 1
        for mine, new in zip((best, *kept), (loss, *ends), strict=True):
            mine[better] = new[better]
        if idle >= search.patience:
            break
    return torch.maximum(kept[1], -kept[0]).clamp(min=0).float().numpy()


@pytest.mark.parametrize("word", list(Word))
@given(seed=st.integers(0, 99), name=st.sampled_from(sorted(SEARCHES)))
def test_what_holds_of_any_search(word, seed, name):
    search, w = SEARCHES[name], weights(seed, word, shape=(4, 64))
    found, gained = shrunk_amax(w, search, word=word)
    top = round_to(np.abs(widen(w)).reshape(4, 4, 16).max(-1) * np.float32(search.expand), word)
    tried = [round_to(top * np.float32(1 - n / search.grid), word) for n in range(search.steps)]
    assert (np.stack(tried) == found).any(0).all()  # one of the ranges tried
    assert found[0, 0] == 0
    assert gained[0]
    np.testing.assert_array_equal(shrunk_amax(w, search, word=word, stop=1)[0], top)
    last = int(np.flatnonzero(gained)[-1])  # nothing gains after the last gain
    np.testing.assert_array_equal(shrunk_amax(w, search, word=word, stop=last + 1)[0], found)
    if last:
        assert (shrunk_amax(w, search, word=word, stop=last)[0] != found).any()


@given(seed=st.integers(0, 99))
def test_blocks_are_searched_alone(seed):
    w = weights(seed, Word.BFLOAT16, shape=(2, 64))
    found, gained = shrunk_amax(w, Search(), word=Word.BFLOAT16)
    each = [shrunk_amax(block, Search(), word=Word.BFLOAT16) for block in w.reshape(-1, 16)]
    np.testing.assert_array_equal(found.reshape(-1), np.concatenate([one for one, _ in each]))
    np.testing.assert_array_equal(gained, np.logical_or.reduce([better for _, better in each]))
    mirrored = w ^ np.uint16(0x8000)
    np.testing.assert_array_equal(shrunk_amax(mirrored, Search(), word=Word.BFLOAT16)[0], found)


@given(
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-38, 1e-5, 0.02, 3.0, 1e30]),
    name=st.sampled_from(sorted(SEARCHES)),
)
def test_the_fast_face_is_the_definition(seed, size, name):
    w = weights(seed, Word.BFLOAT16, size, (8, 64))
    faces = [shrunk_amax(w, SEARCHES[name], word=Word.BFLOAT16, backend=one) for one in Backend]
    for ours, theirs in zip(*faces, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_many_parts_are_as_one():
    w = weights(1, Word.BFLOAT16, shape=(1 << 11, 256))  # two parts of blocks
    found, _ = shrunk_amax(w, Search(), word=Word.BFLOAT16)
    np.testing.assert_array_equal(found[-5:], shrunk_amax(w[-5:], Search(), word=Word.BFLOAT16)[0])


def test_where_the_search_ends():
    search = Search(patience=3)
    gained = np.ones(20, np.bool_)
    assert search.stop(gained) == 20
    gained[4:7] = False
    assert search.stop(gained) == 7
    gained[5] = True
    assert search.stop(gained) == 20
    assert Search(patience=20).stop(np.zeros(20, np.bool_)) == 20


@pytest.mark.parametrize(
    "wrong",
    [{"grid": 0}, {"norm": float("nan")}, {"patience": 0}, {"maxshrink": float("inf")}, {"expand": 0.5}, {"grid": 1e6}],
)
def test_settings_that_make_no_search(wrong):
    with pytest.raises(NumericError, match="cannot have these settings"):
        Search(**wrong)


def test_what_cannot_be_searched():
    w = weights(0, Word.FLOAT32)
    w[3, 5] = np.nan
    with pytest.raises(NumericError, match=r"not finite, the first at \[3, 5\]"):
        shrunk_amax(w, Search())
    with pytest.raises(NumericError):
        shrunk_amax(w[:, :40], Search())
    assert shrunk_amax(np.zeros((0, 32), np.float32), Search())[0].shape == (0, 2)
