"""What a config says of the observer of its weights, whatever it holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.shrink import EXPANDED, Search
from repair.restore_observers import declared


def config(*weights):
    groups = {f"group_{n}": {"weights": one} for n, one in enumerate(weights)}
    return {"quantization_config": {"config_groups": groups}}


def observer(name, **kwargs):
    return {"observer": name, "observer_kwargs": kwargs}


def test_known_observers_in_order_each_once():
    two = config(observer("nvfp4_expanded_mse"), observer("mse"), observer("memoryless_mse"), observer("minmax"))
    assert declared(two) == (EXPANDED, Search())


def test_settings_of_the_config():
    found = declared(config(observer("memoryless_mse", maxshrink=0.5, grid=40, norm=2, patience=9.0, other="x")))
    assert found == (Search(maxshrink=0.5, patience=9, grid=40, norm=2),)
    assert declared(config(observer("nvfp4_expanded_mse", expand=1.5))) == (
        Search(EXPANDED.maxshrink, EXPANDED.patience, EXPANDED.grid, EXPANDED.norm, 1.5),
    )


@pytest.mark.parametrize(
    "kwargs",
    [{"grid": 0}, {"grid": "100"}, {"grid": True}, {"norm": float("nan")}, {"norm": None}, {"patience": 0},
     {"maxshrink": -1}, {"maxshrink": 1e9}, {"expand": 0.5}, {"grid": 1e300}, {"patience": float("inf")}],
)  # fmt: skip
def test_settings_that_no_observer_has(kwargs):
    assert declared(config(observer("mse", **kwargs))) == ()


KEYS = st.sampled_from(["quantization_config", "config_groups", "weights", "observer", "observer_kwargs", "grid"])
json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.sampled_from(["mse", "weights", "nvfp4_expanded_mse"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(json)
def test_any_config_gives_an_answer(value):
    assert isinstance(declared(value if isinstance(value, dict) else None), tuple)
    assert isinstance(declared({"quantization_config": value}), tuple)
    assert isinstance(declared({"quantization_config": {"config_groups": value}}), tuple)
    assert isinstance(declared(config(value)), tuple)
