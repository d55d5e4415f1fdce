from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given

from auditor.audit import Depth
from reports import github
from reports.report import unreadable
from tests.reports.audits import AUDITS, CLEAN, FAULTY, FULL, NAN, SHARD, seen

_COMMAND = re.compile(r"::(error|warning|notice) (?:file=([^,:]*),)?title=([^,:]*)::(.*)")


def test_a_finding_is_an_annotation():
    lines = github.render([seen(FULL)]).splitlines()
    levels = [m.group(1) for line in lines if (m := _COMMAND.fullmatch(line))]
    assert levels == ["error", "error", "warning", "notice", "warning", "warning"]
    nan = _COMMAND.fullmatch(lines[1])
    assert nan.groups() == (
        "error", f"models/demo-NVFP4/{SHARD}", "SCL101 NaN block scale", f"{NAN.tensor}: {NAN.message}",
    )  # fmt: skip
    assert lines[-1] == " models/demo-NVFP4: 2 errors, 1 warning, 1 info"


def test_faults_and_unreadable_checkpoints_are_errors():
    assert "::error title=fault of the tool::SCL101" in github.render([seen(FAULTY)])
    gone = github.render([unreadable("x", "gone", Depth.SCALES)])
    assert gone.startswith("::error title=unreadable::x: gone\n")
    assert github.render([seen(CLEAN)]) == " models/demo-NVFP4: No findings.\n"


def test_a_shard_that_was_named_is_the_file():
    audit = replace(FULL, checkpoint=f"models/{SHARD}")
    assert f"file=models/{SHARD}," in github.render([seen(audit)])


@given(AUDITS)
def test_no_name_adds_a_command_or_a_property(audit):
    lines = github.render([seen(audit)]).splitlines()
    commands = [line for line in lines if line.startswith("::")]
    assert all(_COMMAND.fullmatch(line) for line in commands)
    reasons = len({s.reason for s in audit.skipped})
    assert len(commands) == len(audit.findings) + reasons + len(audit.errors)
    assert len(lines) == len(commands) + 1
