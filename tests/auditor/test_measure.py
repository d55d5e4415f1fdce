"""Cutting, reading and merging: whatever the layout, whoever runs it, the numbers are those of one pass."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor import measure as measuring
from auditor import probes
from auditor.measure import Measured, Task, run, units
from auditor.probes import Probe, Stats
from auditor.source import LocalFile
from quant.errors import CheckpointError

SIZE = 40_000
KINDS: list[tuple[Probe, str, int, int]] = [
    (Probe.E4M3_SCALES, "F8_E4M3", 0, 1),
    (Probe.E8M0_SCALES, "U8", 0, 1),
    (Probe.FLOATS, "BF16", 0, 1),
    (Probe.FLOATS, "F32", 0, 1),
    (Probe.FINITE, "F64", 0, 1),
    (Probe.E5M2_CODES, "F8_E5M2", 0, 1),
    (Probe.FP4_CODES, "U8", 8, 1),
    (Probe.FP4_CODES, "U8", 16, 3),
    (Probe.FP4_CODES, "U8", 8, 3),
    (Probe.FP4_CODES, "U8", 8, 100),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes with everything in them that a probe looks for, runs of 0x77 among them."""
    rng = np.random.default_rng(7)
    data = rng.integers(0, 256, SIZE, np.uint8)
    data[5_000:9_000] = 0x77
    data[20_000:21_000] = 0
    path = tmp_path_factory.mktemp("measure") / "file.bin"
    path.write_bytes(data.tobytes())
    return path


@st.composite
def layouts(draw: st.DrawFn) -> list[Task]:
    """Disjoint tensors at any offset, with gaps, in any order."""
    tasks: list[Task] = []
    at = draw(st.integers(0, 700))
    for number in range(draw(st.integers(1, 9))):
        probe, dtype, unit, inner = draw(st.sampled_from(KINDS))
        grain = unit * inner or {"BF16": 2, "F32": 4, "F64": 8}.get(dtype, 1)
        length = draw(st.integers(0, 9_000) | st.integers(0, 9)) // grain * grain
        if at + length > SIZE:
            break
        tasks.append(Task(f"t{number}", dtype, at, length, 0, probe, unit, inner))
        at += length + draw(st.sampled_from([0, 0, 1, 3, 64, 511, 512, 513, 2_000]))
    return draw(st.permutations(tasks))


def whole(path: Path, tasks: list[Task]) -> dict[str, Stats]:
    """Statistics of each tensor in one piece."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    return {
        t.tensor: probes.measure(t.probe, data[t.start : t.start + t.nbytes], 0, t.dtype, t.unit, t.inner)
        for t in tasks
    }


SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(SLOW, max_examples=120)
@given(tasks=layouts(), chunk=st.sampled_from([64, 128, 1_024, 4_096]), unit=st.sampled_from([64, 192, 1_000, 10_000]))
def test_results_do_not_depend_on_where_reads_are_cut(file: Path, tasks: list[Task], chunk: int, unit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "CHUNK", chunk)
        patch.setattr(measuring, "UNIT", unit)
        patch.setattr(measuring, "_LOCAL", type("Fresh", (), {})())
        measured = run({file: tasks}, jobs=1)
    assert not measured.failed
    expected = whole(file, tasks)
    for task in tasks:
        if task.grain <= min(unit, 4096):  # larger grains are read without being examined block by block
            assert measured.stats[task.tensor] == expected[task.tensor]
        assert measured.stats[task.tensor].size == expected[task.tensor].size
    held = sum(task.nbytes for task in tasks)
    assert held <= measured.bytes_read <= held + measuring.GAP * len(tasks)


@SLOW
@given(tasks=layouts(), unit=st.sampled_from([64, 1_000, 10_000, 32 << 20]))
def test_units_cover_every_byte_once_and_stay_small(tasks: list[Task], unit: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "UNIT", unit)
        cut = list(units(Path("x"), tasks))
    parts: dict[str, list[Task]] = {}
    for piece in cut:
        assert piece.tasks
        assert sum(task.nbytes for task in piece.tasks) <= unit
        assert [t.start for t in piece.tasks] == sorted(t.start for t in piece.tasks)
        for task in piece.tasks:
            parts.setdefault(task.tensor, []).append(task)
    for task in tasks:
        at = 0
        for part in parts[task.tensor]:
            assert (part.at, part.start) == (at, task.start + at)
            at += part.nbytes
        assert at == task.nbytes


def many(path: Path, count: int = 60) -> dict[Path, list[Task]]:
    """Tensors of all kinds over the whole file."""
    tasks = []
    for number in range(count):
        probe, dtype, _, _ = KINDS[number % 6]
        tasks.append(Task(f"t{number}", dtype, number * 640, 640, 0, probe))
    return {path: tasks}


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_gives_the_inline_result(
    file: Path, kind: type[ThreadPoolExecutor | ProcessPoolExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "UNIT", 4_096)
    inline = run(many(file), jobs=1)
    executor: Executor = kind(2)
    with executor:
        assert run(many(file), executor) == inline
    assert len(inline.stats) == 60


def test_threads_give_the_inline_result(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "UNIT", 1_000)
    monkeypatch.setattr(measuring, "_INLINE", 0)
    assert run(many(file), jobs=4) == run(many(file), jobs=1)


def test_progress_ends_at_the_total(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "UNIT", 1_000)
    seen: list[tuple[int, int]] = []
    run(many(file), jobs=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (38_400, 38_400)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


class Broken:
    """A LocalFile whose bytes in a range cannot be read."""

    def __init__(self, bad: range) -> None:
        self.bad = bad
        self.true = LocalFile.read_into

    def __call__(self, file: LocalFile, offset: int, buffer: memoryview) -> None:
        if offset < self.bad.stop and self.bad.start < offset + len(buffer):
            raise CheckpointError(f"{file.name}: reading at offset {offset}: Input/output error")
        self.true(file, offset, buffer)


@pytest.mark.parametrize("unit", [640, 4_096, 1 << 20])
def test_a_read_error_names_the_tensors_it_hit_and_no_others(
    file: Path, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "UNIT", unit)
    healthy = run(many(file), jobs=1)
    broken = Broken(range(6_399, 7_041))  # one byte of tensor 9, all of 10, one byte of 11
    monkeypatch.setattr(LocalFile, "read_into", lambda *args: broken(*args))
    measured = run(many(file), jobs=1)
    assert sorted(measured.failed) == ["t10", "t11", "t9"]
    assert "Input/output error" in measured.failed["t10"]
    assert measured.stats == {k: v for k, v in healthy.stats.items() if k not in measured.failed}


def test_a_file_that_is_gone_or_has_shrunk_fails_its_tensors_only(file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.bin"
    short.write_bytes(file.read_bytes()[:10_000])
    work = many(file, 5) | {tmp_path / "gone": [Task("gone", "U8", 0, 8, 0, Probe.E8M0_SCALES)]}
    work[short] = [Task(f"s{i}", "U8", i * 3_000, 3_000, 0, Probe.E8M0_SCALES) for i in range(5)]
    measured = run(work, jobs=1)
    assert sorted(measured.failed) == ["gone", "s3", "s4"]
    assert "ended at offset 10000" in measured.failed["s3"]
    assert len(measured.stats) == 5 + 3


def test_a_tensor_that_fails_in_one_unit_has_no_statistics(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "UNIT", 1_024)
    broken = Broken(range(5_000, 5_001))
    monkeypatch.setattr(LocalFile, "read_into", lambda *args: broken(*args))
    measured = run({file: [Task("long", "U8", 0, 30_000, 0, Probe.E8M0_SCALES)]}, jobs=1)
    assert (list(measured.failed), measured.stats) == (["long"], {})


@pytest.mark.parametrize("jobs", [1, 8])
def test_buffers_stay_small_whatever_the_size(tmp_path: Path, jobs: int) -> None:
    path = tmp_path / "sparse.bin"
    path.touch()
    os.truncate(path, 200 << 20)
    tasks = [
        Task("bf16", "BF16", 0, 100 << 20, 0, Probe.FINITE),
        Task("scales", "F8_E4M3", 100 << 20, 50 << 20, 0, Probe.E4M3_SCALES),
        Task("floats", "F32", 150 << 20, 50 << 20, 0, Probe.FLOATS),
    ]
    tracemalloc.start()
    try:
        measured: Any = run({path: tasks}, jobs=jobs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert measured.bytes_read == 200 << 20
    assert peak < 64 << 20


def test_nothing_to_do_is_done() -> None:
    assert run({}) == Measured()
