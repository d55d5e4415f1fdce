"""Patterns as the loaders match them, and matched in bounded time."""

from __future__ import annotations

import fnmatch
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.automaton import Automaton
from auditor.expression import RefusedError
from auditor.patterns import Dialect, Matcher, glob, unwrapped
from tests.effort import calls

M, C, Q, T = Dialect.MODELOPT, Dialect.COMPRESSED_TENSORS, Dialect.QUARK, Dialect.TRANSFORMERS
Q_PROJ = "model.layers.1.self_attn.q_proj"

CASES = [
    # vLLM's ModelOptQuantConfigBase.is_layer_excluded, SGLang's, TensorRT-LLM's fnmatchcase
    (M, "lm_head", "lm_head", True, True),
    (M, "lm_head", "model.lm_head", False, True),
    (M, "model.layers.1.self_attn*", Q_PROJ, True, True),
    (M, "model.layers.1.self_attn", Q_PROJ, True, True),
    (M, "*self_attn*", Q_PROJ, True, True),
    (M, "model.layers.1*", "model.layers.10.mlp.up_proj", True, True),
    (M, "model.layers.1.*", "model.layers.10.mlp.up_proj", False, False),
    (M, "model.layers.1.mlp.gate", "model.layers.1.mlp.gate_proj", False, True),
    (M, "self_attn.qkv_proj", Q_PROJ, False, False),
    (M, "model.layers.1.self_attn.qkv_proj", Q_PROJ, False, True),
    (M, "language_model.model.layers.1.self_attn.q_proj", Q_PROJ, False, True),
    (M, "backbone.layers.1.self_attn*", Q_PROJ, False, True),
    (M, "re:.*q_proj", Q_PROJ, False, False),
    (M, "model.layers.[01].self_attn.?_proj", Q_PROJ, True, True),
    (M, "model.layers.[!1].self_attn.q_proj", Q_PROJ, False, False),
    (M, "MODEL.layers.1.self_attn*", Q_PROJ, False, False),
    # compressed-tensors' match_name: equal, or re.match of what follows re:
    (C, Q_PROJ, Q_PROJ, True, True),
    (C, "self_attn", Q_PROJ, False, False),
    (C, "model.layers.1.self_attn*", Q_PROJ, False, False),
    (C, "re:.*self_attn", Q_PROJ, True, True),
    (C, "re:self_attn", Q_PROJ, False, False),
    (C, r"re:.*mlp\.gate$", "model.layers.1.mlp.gate_proj", False, False),
    (C, r"re:.*mlp\.gate", "model.layers.1.mlp.gate_proj", True, True),
    (C, r"re:model\.layers\.\d+\.self_attn\.(q|k|v)_proj", Q_PROJ, True, True),
    (C, r"re:(?!.*visual).*_proj$", Q_PROJ, True, True),
    (C, r"re:(?!.*visual).*_proj$", "visual.q_proj", False, False),
    # Quark: equal, re:, or a glob
    (Q, "*lm_head", "model.lm_head", True, True),
    (Q, "re:.*self_attn.*", Q_PROJ, True, True),
    (Q, "self_attn", Q_PROJ, False, False),
    # transformers' should_convert_module: an expression up to a boundary, or a suffix
    (T, "model.layers.*.self_attn", Q_PROJ, True, True),
    (T, "model.layers.*.self_att", Q_PROJ, False, False),
    (T, "model.layers.1", "model.layers.11.self_attn.q_proj", False, False),
    (T, "mlp.gate", "model.layers.1.mlp.gate", False, True),
    (T, "mlp.gate", "model.layers.1.mlp.gate_proj", False, False),
    (T, "lm_head", "lm_head", True, True),
]


@pytest.mark.parametrize(("dialect", "pattern", "name", "strict", "loose"), CASES)
def test_as_the_loaders_match(dialect: Dialect, pattern: str, name: str, strict: bool, loose: bool) -> None:
    matcher = Matcher([pattern], dialect)
    assert not matcher.refused
    assert (matcher.strict(name) is not None) is strict
    assert matcher.loose(name) is loose


def test_the_first_pattern_that_matches_is_named() -> None:
    matcher = Matcher(["x", "*proj", "model*"], M)
    assert matcher.strict(Q_PROJ) == 1
    assert matcher.used([Q_PROJ, "a.b"]) == {1, 2}


def test_used_counts_modules_around_and_substrings() -> None:
    assert Matcher(["model.layers.1", "q_proj", "vision"], M).used([Q_PROJ]) == {0, 1}
    assert Matcher(["model.layers.1", "q_proj"], C).used([Q_PROJ]) == {0}
    assert Matcher(["self_attn.q_proj", "attn.k"], T).used([Q_PROJ]) == {0}


def test_a_refused_pattern_excludes_loosely_and_not_strictly() -> None:
    matcher = Matcher([r"re:(a)\1"], C)
    assert matcher.refused
    assert matcher.strict(Q_PROJ) is None
    assert matcher.loose(Q_PROJ)


def test_wrappers() -> None:
    assert unwrapped("model.language_model.layers.0.mlp") == "layers.0.mlp"
    assert unwrapped("language_model.model.layers.0.mlp") == "layers.0.mlp"
    assert unwrapped("") == ""


PIECE = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", "(a|b.)", "(?:ab)", "^", "$", r"\w", r"\D"])
QUANTIFIED = st.builds(str.__add__, PIECE, st.sampled_from(["", "", "*", "+", "?", "*?", "{2}", "{0,2}", "{1,}"]))
EXPRESSION = st.lists(QUANTIFIED, max_size=6).map("".join)
NAME = st.text("ab.", max_size=10)


@given(patterns=st.lists(EXPRESSION, min_size=1, max_size=4), names=st.lists(NAME, min_size=1, max_size=6))
@settings(max_examples=300)
def test_equal_to_python_where_both_match(patterns: list[str], names: list[str]) -> None:
    plain, bounded = Automaton(patterns), Automaton(patterns, boundary=True)
    for number, pattern in enumerate(patterns):
        if number in plain.refused:
            continue
        expected = re.compile(pattern)
        edged = re.compile(rf"(?:{pattern})(?:(?<=\.)|(?=\.|$))")
        for name in names:
            assert (number in plain.matches(name)) is bool(expected.match(name))
            assert (number in bounded.matches(name)) is bool(edged.match(name))


@given(pattern=st.text("ab.*?[]!^-", max_size=8), names=st.lists(st.text("ab.[]!^-", max_size=8), max_size=6))
@settings(max_examples=300)
def test_globs_equal_fnmatch(pattern: str, names: list[str]) -> None:
    automaton = Automaton([glob(pattern)])
    if not automaton.refused:
        for name in names:
            assert (automaton.matches(name) == [0]) is fnmatch.fnmatchcase(name, pattern)


@given(pattern=st.text(max_size=30))
def test_any_text_is_matched_or_refused(pattern: str) -> None:
    for dialect in Dialect:
        for text in (pattern, "re:" + pattern):
            Matcher([text], dialect).loose("model.layers.0.mlp.up_proj")


@pytest.mark.parametrize("pattern", ["(a*)*b", "(a|a)*b", ".*" * 60 + "q", "(a+)+$", "((a?){30}){30}a{30}", "*a" * 200])
@pytest.mark.parametrize("dialect", list(Dialect))
def test_malice_costs_little(dialect: Dialect, pattern: str) -> None:
    """A backtracking matcher would not come back; counted is what each further name costs."""
    matcher = Matcher([("re:" if dialect in (C, Q) else "") + pattern], dialect)
    matcher.strict("a" * 300)
    assert calls(lambda: [matcher.strict("a" * 300 + str(number)) for number in range(20)]) < 100_000


def test_a_budget_ends_what_would_not_end() -> None:
    automaton = Automaton(["(a|b)*a(a|b){60}" + "c" * (n + 1) for n in range(60)])
    names = [f"{number:b}".replace("0", "a").replace("1", "b") * 12 for number in range(4000)]
    with pytest.raises(RefusedError):
        [automaton.matches(name) for name in names]


def test_many_patterns_over_many_modules_cost_little() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.{p}_proj" for i in range(40) for e in range(64) for p in ("up", "down")]
    for dialect, text in ((M, "*layers.{}.x*y"), (C, r"re:.*layers\.{}\.self_attn\..*"), (T, "model.layers.{}.*.attn")):
        matcher = Matcher([text.format(number) for number in range(300)], dialect)
        assert calls(lambda known=matcher: [known.strict(name) for name in names]) < 300 * len(
            names
        )  # not every one on each
        assert not any(matcher.strict(name) is not None for name in names)
