"""Recipes as YAML files: those that come with the tool, and a user's own; whatever is wrong is named with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quant.errors import UsageError
from repair.given import content
from repair.make.layouts import Layout
from repair.make.recipe import PRESETS, Inputs, KvCache, Method, Ragged, Recipe

if TYPE_CHECKING:
    import yaml

_SUFFIXES = (".yaml", ".yml")
_CHOICES: Mapping[str, type[StrEnum]] = {
    "method": Method, "activations": Inputs, "kv_cache": KvCache, "layout": Layout, "ragged": Ragged,
}  # fmt: skip
_KEYS = ("description", "modules", "exclude", "default_exclusions", *_CHOICES)
# What other tools call the same thing.
_OTHER_WORDS = {"max": "amax", "algorithm": "method", "include": "modules", "quant_cfg": "modules", "fp8": "fp8_cast"}


def shipped() -> dict[str, Recipe]:
    """The recipes that come with the tool, by name."""
    folder = files("repair.make").joinpath("recipes")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(_SUFFIXES[0]))
    return {Path(name).stem: parse(folder.joinpath(name).read_bytes(), name) for name in names}


def load(word: str) -> Recipe:
    """The recipe of a shipped name, or of a file; UsageError says what is wrong with it."""
    path = Path(word)
    if not word.endswith(_SUFFIXES) and "/" not in word:
        known = shipped()
        if word in known:
            return known[word]
        alike = word.replace("-kv_fp8_cast", "-fp8_cast_kv")  # the exporter's newer spelling
        if alike in known:
            return known[alike]
        raise UsageError(f"--recipe {word!r}: {_allowed(word, known)}; or a file that ends in .yaml")
    return parse(content(path, "recipe"), word)


def parse(raw: bytes, file: str) -> Recipe:
    """A recipe from YAML.  UsageError names file, line, key, what was found and what is allowed."""
    import yaml

    try:
        node = yaml.compose(raw.decode(), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: no UTF-8 at byte {error.start}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{file}:{line}: no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{file}: no YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply") from None
    given: dict[str, Any] = {}
    for key, value, where in _pairs(node, file):
        name = "disabled" if key == "default_exclusions" else key
        given[name] = _value(key, value, where)
    assert given.keys() <= {field.name for field in fields(Recipe)}
    return Recipe(name=Path(file).stem, **given)


def _pairs(node: yaml.Node | None, file: str) -> Iterator[tuple[str, yaml.Node, str]]:
    """Key, value and place of each entry."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{file}:1: found {_said(node)}; a recipe is a list of `key: value`, keys {', '.join(_KEYS)}")
    seen: set[str] = set()
    for key, value in node.value:
        where = f"{file}:{key.start_mark.line + 1}"
        word = key.value if isinstance(key, yaml.ScalarNode) else _said(key)
        if word not in _KEYS:
            raise UsageError(f"{where}: {_allowed(word, _KEYS, 'key')}")
        if word in seen:
            raise UsageError(f"{where}: {word!r} is there twice")
        seen.add(word)
        yield word, value, where


def _value(key: str, node: yaml.Node, where: str) -> object:
    import yaml

    if key == "modules" and isinstance(node, yaml.ScalarNode):
        if node.value not in PRESETS:
            raise UsageError(f"{where}: {key}: {_allowed(node.value, PRESETS)}; or a list of patterns")
        return PRESETS[node.value]
    if key in ("modules", "exclude"):
        return _patterns(key, node, where)
    if not isinstance(node, yaml.ScalarNode):
        raise UsageError(f"{where}: {key}: found {_said(node)} where one word belongs")
    if key == "description":
        return node.value
    if key == "default_exclusions":
        if node.value not in ("true", "false"):
            raise UsageError(f"{where}: {key}: {_allowed(node.value, ('true', 'false'))}")
        return node.value == "true"
    try:
        return _CHOICES[key](node.value)
    except ValueError:
        raise UsageError(f"{where}: {key}: {_allowed(node.value, list(_CHOICES[key]))}") from None


def _patterns(key: str, node: yaml.Node, where: str) -> tuple[str, ...]:
    import yaml

    if not isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{where}: {key}: found {_said(node)} where a list of patterns belongs")
    for one in node.value:
        if not isinstance(one, yaml.ScalarNode) or not one.value:
            line = f"{where.rpartition(':')[0]}:{one.start_mark.line + 1}"
            raise UsageError(f"{line}: {key}: found {_said(one)} where a pattern belongs")
    if key == "modules" and not node.value:
        raise UsageError(f"{where}: {key}: an empty list would quantise nothing")
    return tuple(one.value for one in node.value)


def _said(node: yaml.Node | None) -> str:
    import yaml

    if node is None:
        return "nothing"
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:80]) if node.value else "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a table"


def _allowed(found: str, words: object, what: str = "") -> str:
    """`found 'mes'; allowed: amax, mse; did you mean 'mse'?`"""
    known = [str(word) for word in words]  # type: ignore[attr-defined]
    close = [_OTHER_WORDS.get(found, "")] if _OTHER_WORDS.get(found) in known else []
    close = close or difflib.get_close_matches(found[:100], known, 1, 0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return f"found {what + ' ' if what else ''}{found[:100]!r}; allowed: {', '.join(known)}{guess}"
