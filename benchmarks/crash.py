"""Crash repairs at every call, in many more ways than the tests have time for: `python -m benchmarks.crash --seeds 20`.

For each plan, repair, undo and undo of undo die at every call; what is left on the disk is drawn anew for each seed
(unsynced writes lost, torn, reordered), settled, and compared: every file before, or every file after.  With
``--kills N`` real processes are killed at N random instants as well.  Prints a line per plan; exit code 1 on a failure.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from repair.apply import apply, hot, recover, undo
from tests.repair.memory import ROOT, Disk, MemoryFs
from tests.repair.plans import Case, cases
from tests.repair.test_crash import Work, calls_of, content, crash, done

WAYS = ["drop", "keep", "tear", "kill", "mix"]


def stages(case: Case) -> list[tuple[str, Disk, Work, bool]]:
    """(what, the disk before it, how it is done, whether it ends with the new bytes)."""
    plan = case.plan_on(case.disk())
    works: list[Work] = [lambda fs: apply(ROOT, plan, fs=fs), lambda fs: undo(ROOT, fs=fs)]
    repaired = done(case.disk(), works[0])
    return [
        ("repair", case.disk(), works[0], True),
        ("undo", repaired, works[1], False),
        ("redo", done(repaired, works[1]), works[1], True),
    ]


def sweep(name: str, case: Case, seeds: int) -> tuple[int, int, int]:
    """Calls, disks settled, and failures."""
    before, after = case.files, case.after()
    calls = disks = failures = 0
    for what, start, work, _ in stages(case):
        count = calls_of(start, work)
        calls += count
        for at in range(count):
            died = crash(start, work, at)
            for seed in range(len(WAYS) - 1 + seeds):
                how = WAYS[min(seed, len(WAYS) - 1)]
                disk = died.crashed(random.Random(f"{name} {what} {at} {seed}"), how)
                disks += 1
                if not settles(disk, before, after):
                    failures += 1
                    print(f"FAILED {name}: {what}, call {at} of {count}, {how}, seed {seed}")
    return calls, disks, failures


def settles(disk: Disk, before: dict[str, bytes], after: dict[str, bytes]) -> bool:
    """Whether recovery leaves all of before or all of after, and leaves it on the disk."""
    recover(ROOT, MemoryFs(disk))
    found = content(disk)
    kept = disk.crashed(random.Random(0), "drop")
    return found in (before, after) and content(kept) == found and hot(ROOT, MemoryFs(kept)) is None


def main() -> int:
    """Exit code."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=20)
    options.add_argument("--kills", type=int, default=0)
    chosen = options.parse_args()
    total = [0, 0, 0]
    begun = time.perf_counter()
    for name, case in cases().items():
        seeds = chosen.seeds if sum(map(len, case.files.values())) < 1 << 19 else 1
        start = time.perf_counter()
        found = sweep(name, case, seeds)
        total = [a + b for a, b in zip(total, found, strict=True)]
        print(f"{name:24} {found[0]:5} calls {found[1]:7} disks  {time.perf_counter() - start:6.1f} s", flush=True)
    print(f"{total[0]} calls, {total[1]} disks settled, {total[2]} failures, {time.perf_counter() - begun:.0f} s")
    if chosen.kills:
        from tests.repair.test_process import kill_at_random

        with tempfile.TemporaryDirectory() as folder:
            left = kill_at_random(Path(folder), chosen.kills, 0)
        print(f"{chosen.kills} processes killed, {left} of them in the middle of a repair; every one settled")
    return 1 if total[2] else 0


if __name__ == "__main__":
    sys.exit(main())
