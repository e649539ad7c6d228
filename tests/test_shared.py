"""Cells: one writer per row, read by all, and not one number lost with the process that wrote it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aigw import shared
from aigw.shared import OTHER, Cells

REQUESTS = b"requests_total"


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells(rows=4)
    for number in range(3):
        made.use(number)
    yield made
    made.close()


def run(cells: Cells, code: str) -> subprocess.Popen[bytes]:
    """Another process with the cells at hand, as a worker has them; it says something when it is under way."""
    begin = f"from aigw import shared\nfrom aigw.shared import *\ncells = Cells({cells.descriptor})\n"
    return subprocess.Popen(
        [sys.executable, "-c", begin + code], pass_fds=[cells.descriptor], stdout=subprocess.PIPE, text=False
    )


def test_what_a_process_counts_is_read_by_all_and_outlives_it(cells: Cells) -> None:
    code = """
row, series = cells.row(1), cells.series(1)
series.declare(b"requests_total", 2)
at = series.at(b"requests_total", b"gpt-4o")
print("on", flush=True)
while True:
    row[shared.LOG_DROPPED] += 1
    row[at + 1] = row[shared.LOG_DROPPED]
"""
    with run(cells, code) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"on\n"
        while cells.row(1)[shared.LOG_DROPPED] < 1000:
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(20) == -signal.SIGKILL
    counted = cells.row(1)[shared.LOG_DROPPED]
    ((text, values),) = [(text, values) for text, values in cells.totals(REQUESTS).items() if text != OTHER]
    assert text == b"gpt-4o"
    assert values[0] == 0
    assert 0 <= counted - values[1] <= 1  # it was killed between the two

    again = f"""
row, series = cells.row(1), cells.series(1)
series.declare(b"requests_total", 2)
assert series.at(b"requests_total", b"gpt-4o") == {cells.series(1).find(REQUESTS, b"gpt-4o", 2)}
row[shared.LOG_DROPPED] += 5
"""
    with run(cells, again) as successor:
        assert successor.wait(20) == 0
    assert cells.row(1)[shared.LOG_DROPPED] == counted + 5
    assert cells.total(shared.LOG_DROPPED) == counted + 5


def test_each_row_is_its_writer_s_alone_and_a_total_is_the_sum(cells: Cells) -> None:
    for number in range(3):
        row, series = cells.row(number), cells.series(number)
        row[shared.IN_FLIGHT] = 10**number
        series.declare(REQUESTS, 2)
        row[series.at(REQUESTS, b"a") + 1] += number
        if number:
            row[series.at(REQUESTS, b"b")] += 7
    assert [cells.row(number)[shared.IN_FLIGHT] for number in range(3)] == [1, 10, 100]
    assert cells.total(shared.IN_FLIGHT) == 111
    assert cells.totals(REQUESTS) == {OTHER: [0, 0], b"a": [0, 3], b"b": [14, 0]}
    assert cells.totals(b"requests") == {}
    assert cells.series(0).find(REQUESTS, b"b", 2) == 0
    assert cells.row(2)[cells.series(2).find(REQUESTS, b"b", 2)] == 7


def test_a_buried_writer_is_nothing_any_more_and_its_counts_stay(cells: Cells) -> None:
    row = cells.row(0)
    for slot, value in ((shared.PID, 4711), (shared.IN_FLIGHT, 3), (shared.CONNECTIONS, 5), (shared.LOG_DROPPED, 9)):
        row[slot] = value
    was = cells.bury(0)
    assert (was[shared.PID], was[shared.IN_FLIGHT], was[shared.CONNECTIONS]) == (4711, 3, 5)
    assert [row[slot] for slot in shared.STATES] == [0] * len(shared.STATES)
    assert row[shared.LOG_DROPPED] == 9


def test_what_finds_no_room_is_counted_under_other(cells: Cells) -> None:
    row, series = cells.row(0), cells.series(0)
    series.declare(REQUESTS, 1)
    asked = shared.CAPACITY
    for number in range(asked):
        row[series.at(REQUESTS, b"client %d" % number)] += 1
    counted = {text: values[0] for text, values in series.items(REQUESTS)}
    assert len(counted) == shared.CAPACITY * 3 // 4
    assert counted[OTHER] == asked - (len(counted) - 1)
    assert set(counted.values()) == {1, counted[OTHER]}
    assert series.at(REQUESTS, b"client 1") != series.at(REQUESTS, b"client 2")
    with pytest.raises(ValueError, match="no room for the family b'another'"):
        series.declare(b"another", 1)


@pytest.mark.parametrize(("width", "text"), [(shared.VALUES // 2, b"x"), (1, b"x" * shared.TEXTS)])
def test_values_and_texts_are_bounded_too(cells: Cells, width: int, text: bytes) -> None:
    series = cells.series(0)
    series.declare(REQUESTS, width)
    first = series.at(REQUESTS, b"first")
    assert first != series.at(REQUESTS, OTHER)
    assert series.at(REQUESTS, text) == series.at(REQUESTS, OTHER)
    assert series.at(REQUESTS, b"first") == first


def test_texts_are_told_apart_whatever_their_hash(cells: Cells, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.Series, "_hash", lambda self, key: 5)
    row, series = cells.row(0), cells.series(0)
    series.declare(REQUESTS, 1)
    for number in range(20):
        row[series.at(REQUESTS, b"%d" % number)] += number
    found = cells.series(0)  # without the writer's memory
    assert [row[found.find(REQUESTS, b"%d" % number, 1)] for number in range(20)] == list(range(20))
    assert not found.find(REQUESTS, b"20", 1)


def test_the_seed_is_shared_and_differs_from_run_to_run(cells: Cells) -> None:
    other = Cells(rows=1)
    assert cells.series(0)._seed == cells.series(3)._seed != other.series(0)._seed
    other.close()


def test_a_family_has_one_width(cells: Cells) -> None:
    cells.series(0).declare(REQUESTS, 2)
    with pytest.raises(ValueError, match="has 2 values, not 3"):
        cells.series(0).declare(REQUESTS, 3)


def test_without_memfd_it_is_a_file_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    made = Cells(rows=1)
    made.row(0)[shared.IN_FLIGHT] = 2
    assert os.fstat(made.descriptor).st_nlink == 0
    assert Cells(made.descriptor).row(0)[shared.IN_FLIGHT] == 2
    made.close()


def test_memory_is_taken_when_it_is_used(cells: Cells) -> None:
    assert os.fstat(cells.descriptor).st_blocks * 512 < 64 * 1024
    made = Cells()
    assert os.fstat(made.descriptor).st_size > 500 << 20
    assert os.fstat(made.descriptor).st_blocks * 512 < 64 * 1024
    assert repr(made) == "<Cells 0 rows>"
    made.close()
