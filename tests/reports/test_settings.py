from __future__ import annotations

from pathlib import Path

import pytest

from quant.errors import UsageError
from reports import settings
from tests.reports.audits import FUSED, NAN

EVERYTHING = """
depth = "full"
min-severity = "warning"
fail-on = "never"
format = "json"
color = "never"
strict = true
quiet = false
no-progress = true
output = "report.json"
baseline = "known.json"
jobs = 3
select = ["SCL", "GLB102"]
ignore = ["ACT", {code = "CFG1", reason = "old configuration"},
          {code = "SCL101", tensor = "model.layers.12.*", reason = "retired experts"}]
"""


def written(folder: Path, text: str, name: str = "audit.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_every_key_is_read(tmp_path):
    found = settings.load(written(tmp_path, EVERYTHING))
    assert (found.depth, found.min_severity, found.fail_on, found.format) == ("full", "warning", "never", "json")
    assert (found.color, found.strict, found.quiet, found.no_progress) == ("never", True, False, True)
    assert (found.output, found.baseline) == (tmp_path / "report.json", tmp_path / "known.json")
    assert (found.jobs, found.select, found.ignore) == (3, ("SCL", "GLB102"), ("ACT", "CFG1"))
    assert found.exceptions == (settings.Excuse("SCL101", "model.layers.12.*", "retired experts"),)
    assert found.excuses(NAN)
    assert not found.excuses(FUSED)


def test_a_tensor_glob_covers_the_whole_name():
    assert settings.Excuse("SCL", "*.gate_proj.*").covers(NAN)
    assert not settings.Excuse("SCL", "gate_proj").covers(NAN)
    assert not settings.Excuse("ACT", "*").covers(NAN)


def test_settings_are_looked_for_in_the_folder(tmp_path):
    assert settings.load(folder=tmp_path) == settings.Settings()
    written(tmp_path, '[project]\nname = "x"\n', "pyproject.toml")
    assert settings.load(folder=tmp_path).source == ""
    written(tmp_path, '[tool.audit]\ndepth = "headers"\n', "pyproject.toml")
    assert settings.load(folder=tmp_path).depth == "headers"
    written(tmp_path, 'depth = "scalars"\n')
    assert settings.load(folder=tmp_path).depth == "scalars"


def test_a_file_of_another_tool_may_be_as_long_as_it_likes(tmp_path):
    written(tmp_path, "[tool.other]\n" + "#" * (1 << 17) + "\n", "pyproject.toml")
    assert settings.load(folder=tmp_path) == settings.Settings()
    written(tmp_path, "[tool.audit]\n" + "#" * (1 << 17) + "\n", "pyproject.toml")
    with pytest.raises(UsageError, match="none is longer than 65536"):
        settings.load(folder=tmp_path)


def test_a_file_of_a_checkpoint_is_not_even_parsed(tmp_path):
    written(tmp_path, "depth = [")
    assert "not obeyed" in settings.load(folder=tmp_path, read=[tmp_path]).unheeded
    (tmp_path / "model.safetensors").touch()
    found = settings.load(folder=tmp_path)
    assert found == settings.Settings(unheeded=found.unheeded)
    assert str(tmp_path) in found.unheeded
    with pytest.raises(UsageError, match="is not TOML"):
        settings.load(tmp_path / "audit.toml", read=[tmp_path])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('dept = "full"', "unknown key 'dept'; did you mean depth?"),
        ('depth = "deep"', "depth = 'deep' is not one of headers, scalars, scales, full"),
        ("strict = 1", "strict = '1' is not true or false"),
        ("jobs = 0", "jobs = '0' is not a number from 1 on"),
        ("jobs = true", "jobs = 'True' is not"),
        ('select = "SCL"', "select = 'SCL' is not a list"),
        ("ignore = [1]", "ignore = '1' is not a list of code prefixes and tables"),
        ('ignore = [{tensor = "x"}]', "an ignore entry lacks its code"),
        ('ignore = [{code = "SCL", tensors = "x"}]', "unknown key 'tensors' in an ignore entry"),
        ('ignore = [{code = 1}]', "ignore.code = '1' is not text"),
        ("output = 3", "output = '3' is not a file name"),
        ("depth = [", "is not TOML"),
        ("depth = {}", "depth = '{}' is not one of"),
        ("format = []", "format = '[]' is not one of"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_named(tmp_path, text, told):
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        settings.load(path)
    assert told in str(error.value)
    assert str(path) in str(error.value)


def test_a_named_file_must_be_there_and_have_settings(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read settings .*gone\.toml"):
        settings.load(tmp_path / "gone.toml")
    with pytest.raises(UsageError, match=r"has no table \[tool\.audit\]"):
        settings.load(written(tmp_path, "", "pyproject.toml"))
    with pytest.raises(UsageError, match="is not a table"):
        settings.load(written(tmp_path, "[tool]\naudit = 3\n", "pyproject.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        settings.load(tmp_path / "bytes.toml")


def test_every_key_is_described():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    assert [key for key in settings.KEYS if f"| `{key}` |" not in page] == []
    example = page.partition("```toml\n")[2].partition("```")[0]
    import tomllib

    found = settings.parse(tomllib.loads(example), Path("audit.toml"))
    assert found.ignore == ("ACT104", "CFG109")
    assert [e.code for e in found.exceptions] == ["SCL101"]
