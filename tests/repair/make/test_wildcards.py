"""Exclusion lists: every plain module matched, no quantised one, and what modelopt itself writes."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.make.wildcards import summarised

NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(".".join) | st.sampled_from(["a.b2", "a.b2.c"])


@given(plain=st.sets(NAMES, max_size=8), quantised=st.sets(NAMES, max_size=8))
def test_all_plain_and_nothing_quantised(plain: set[str], quantised: set[str]):
    found = summarised(plain - quantised, quantised)
    assert list(found) == sorted(set(found))
    for name in plain - quantised:
        assert any(fnmatchcase(name, entry) for entry in found)
    for name in quantised:
        assert not any(fnmatchcase(name, entry) for entry in found)


@pytest.mark.parametrize(
    ("plain", "quantised", "entries"),
    [
        (["lm_head", "m.0.attn.q", "m.0.attn.k"], ["m.0.mlp.up"], ("lm_head", "m.0.attn*")),
        (["m.0.gate"], ["m.0.gate_proj"], ("m.0.gate",)),
        (["m.0.attn.q"], ["m.0.attn2.q"], ("m.0.attn.*",)),
        (["v.0.q", "v.1.q"], ["m.0.q"], ("v*",)),
        (["m.0.a", "m.1.a"], [], ("m*",)),
        (["m.0.a"], ["m.0"], ("m.0.a",)),
    ],
)
def test_the_shortest_prefix(plain: list[str], quantised: list[str], entries: tuple[str, ...]):
    assert summarised(plain, quantised) == entries


@pytest.mark.clients
@given(plain=st.sets(NAMES, max_size=8), quantised=st.sets(NAMES, max_size=8))
def test_as_modelopt_writes_it(plain: set[str], quantised: set[str]):
    export = pytest.importorskip("modelopt.torch.export.quant_utils")
    theirs = export._prefix_wildcard_summarize_exclude_modules(plain - quantised, quantised)
    assert summarised(plain - quantised, quantised) == tuple(sorted(theirs))
