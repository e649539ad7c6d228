"""The last finished exchanges: which are kept, whatever sizes they come in."""

from __future__ import annotations

import random

import pytest

from aigw.admin.recent import MOST, SLACK, Recent


def lines(numbers: range, size: int) -> bytes:
    return b"".join(b'{"request_id":"%d","path":"%b"}\n' % (number, b"x" * size) for number in numbers)


@pytest.mark.parametrize("size", [0, 400, 20_000])
@pytest.mark.parametrize("batch", [1, 7, 300, 1500])
def test_the_last_ones_are_kept_and_those_far_behind_are_not(size: int, batch: int) -> None:
    recent = Recent()
    count = max(4 * MOST, 3 * SLACK // (size + 30)) // batch * batch
    for begin in range(0, count, batch):
        recent.keep(lines(range(begin, begin + batch), size))
    assert [record["request_id"] for record in recent.select({}, MOST)] == [
        str(number) for number in range(count - 1, count - 1 - MOST, -1)
    ]
    kept = sum(len(one) for one in recent._batches)
    assert kept <= len(lines(range(count - MOST - batch, count), size)) + SLACK + len(lines(range(batch), size))


def test_fewer_are_all_there_in_whatever_batches_they_came() -> None:
    recent = Recent()
    at, chance = 0, random.Random(5)
    while at < MOST // 2:
        end = at + chance.randrange(1, 50)
        recent.keep(lines(range(at, end), 50))
        at = end
    assert len(list(recent)) == at
    assert (recent.find("0") or {})["request_id"] == "0"
    assert recent.find(str(at)) is None
