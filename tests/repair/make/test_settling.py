"""Steps behind the writing: in their order, none after one that failed, every failure told, every file closed."""

from __future__ import annotations

import threading

import pytest

from repair.handle import Handle
from repair.make.settling import Settling
from repair.osfs import REAL


def files(tmp_path, count):
    return [Handle.creating(REAL, tmp_path / str(i)) for i in range(count)]


@pytest.mark.parametrize("on", [False, True])
def test_steps_are_done_in_order_when_the_block_ends(tmp_path, on):
    done, threads = [], set()

    def step(number):
        done.append(number)
        threads.add(threading.get_ident())

    opened = files(tmp_path, 5)
    with Settling(on) as settling:
        for number, file in enumerate(opened):
            settling.then(file, lambda number=number: step(number))
            assert on or done == list(range(number + 1))
    assert done == [0, 1, 2, 3, 4]
    assert (threads == {threading.get_ident()}) is not on
    assert all(file.fd == -1 for file in opened)


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_failure_is_told_and_nothing_follows(tmp_path, on, bad):
    done = []

    def step(number):
        if number == bad:
            raise OSError(28, "full")
        done.append(number)

    opened = files(tmp_path, 3)
    begun = 0

    def settle():
        nonlocal begun
        with Settling(on) as settling:
            for number, file in enumerate(opened):
                begun += 1
                settling.then(file, lambda number=number: step(number))

    with pytest.raises(OSError, match="full"):
        settle()
    assert done == list(range(bad))
    assert all(file.fd == -1 for file in opened[:begun])
    for file in opened[begun:]:
        file.close()


def test_what_was_written_is_settled_though_the_next_one_fails(tmp_path):
    done = []

    def settle():
        with Settling(True) as settling:
            settling.then(files(tmp_path, 1)[0], lambda: done.append(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        settle()
    assert done == [1]
