"""Meters on a clock of the test's own: never over the amount in any window, free again an eighth late at most, the same
whichever row counts, and nothing lost with a writer that was killed."""

from __future__ import annotations

import calendar
import os
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw import meters
from aigw.meters import CALENDAR, DAY, LEVEL, MONTH, NAMED, OPEN, Calendar, Level, Meters, Sliding, digest_of
from aigw.shared import SUPERVISOR, Cells

MINUTE = 60_000  # milliseconds
KEY = digest_of(b"requests of alice")


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells(rows=4)
    made.use(0)
    yield made
    os.close(made.descriptor)


def sliding(cells: Cells, number: int = 0, span: int = MINUTE, digest: int = KEY) -> Sliding:
    cells.use(number)
    return Sliding(Meters(cells, number), NAMED, digest, span)


def day(cells: Cells, number: int = 0, span: int = DAY, offset: float = 0.0) -> Calendar:
    cells.use(max(number, 0))
    own = Meters(cells, number)
    own.wall_offset = offset
    return Calendar(own, CALENDAR, KEY, span)


@settings(deadline=None, max_examples=60)
@given(
    amount=st.integers(1, 12),
    span=st.sampled_from([250, 1000, MINUTE, 3_600_000]),
    start=st.floats(0, 1e7),
    gaps=st.lists(st.floats(0, 0.4), min_size=1, max_size=120),
    rows=st.integers(1, 3),
)
def test_never_more_than_the_amount_in_any_window_and_an_eighth_late_at_most(
    amount: int, span: int, start: float, gaps: list[float], rows: int
) -> None:
    """`gaps` between two requests, in windows; each comes to the next row."""
    cells = Cells(rows=rows + 1)
    each = [sliding(cells, number, span) for number in range(rows)]
    window = span / 1000
    now = start
    taken: deque[float] = deque()
    for number, gap in enumerate(gaps):
        now += gap * window
        meter = each[number % rows]
        within = sum(at > now - window for at in taken)
        around = sum(at > now - window * 9 / 8 - 1e-6 for at in taken)
        used = meter.used(now)
        assert within <= used <= around
        if used < amount:
            meter.take(1, now)
            taken.append(now)
            assert within + 1 <= amount
        else:
            wait = meter.frees(used + 1 - amount, now)
            assert 0 <= wait <= window * 9 / 8 + 1e-6
            assert sliding(cells, rows, span).used(now + wait + 1e-6) < amount  # in a row where nothing is taken
            assert wait < 1e-3 or meter.resets(now) >= wait - 1e-6
    assert each[-1].used(now + window * 9 / 8 + 1e-6) == 0
    os.close(cells.descriptor)


def test_rows_that_come_later_are_seen(cells: Cells) -> None:
    first = sliding(cells)
    first.take(3, 100.0)
    assert first.used(100.0) == 3
    second = sliding(cells, 2)
    assert second.used(100.0) == 3
    second.take(2, 100.0)
    assert first.used(100.0) == 5
    assert [first.used(160.0), second.used(160.0)] == [5, 5]
    assert [first.used(168.0), second.used(168.0)] == [0, 0]


def test_two_meters_of_one_row_are_one(cells: Cells) -> None:
    """Of the snapshot before a reload and of the one behind it."""
    own = Meters(cells, 0)
    before, after = (Sliding(own, NAMED, KEY, MINUTE) for _ in range(2))
    before.take(2, 10.0)
    assert after.used(11.0) == 2
    after.take(1, 30.0)
    before.take(1, 50.0)
    assert (before.used(50.0), after.used(50.0)) == (4, 4)


@pytest.mark.parametrize("later", [0.0, 7.0, 30.0, 61.0, 300.0])
def test_what_is_given_back_is_free(cells: Cells, later: float) -> None:
    meter = sliding(cells)
    meter.take(1, 100.0)
    meter.take(1, 104.0)
    assert meter.used(100.0 + later) == (2 if later < 67 else 0)
    meter.give_back(1, 100.0)
    assert meter.used(100.0 + later) == (1 if later < 67 else 0)
    assert meter.used(1000.0) == 0


def test_what_is_held_counts_until_it_is_let_go(cells: Cells) -> None:
    meter = sliding(cells)
    assert meter.used(5.0) == 0
    meter.hold(40)
    assert (meter.used(5.0), meters.held(cells)) == (40, 40)
    assert meter.used(500.0) == 40  # however long it takes
    meter.let_go(40)
    meter.take(12, 500.0)
    assert (meter.used(500.0), meters.held(cells)) == (12, 0)
    assert meter.frees(13, 500.0) == float("inf")


def test_a_day_begins_at_midnight_in_utc(cells: Cells) -> None:
    midnight = calendar.timegm((2026, 11, 24, 0, 0, 0))
    meter = day(cells, offset=midnight - 1000.0)  # monotonic 1000 is midnight
    meter.take(7, 990.0)
    assert (meter.used(999.9), meter.resets(990.0), meter.frees(7, 990.0)) == (7, 10.0, 10.0)
    assert meter.used(1000.0) == 0
    assert meter.resets(1000.0) == 86400
    meter.take(2, 1001.0)
    meter.give_back(5, 990.0)  # which was another day's
    assert meter.used(1001.0) == 2
    meter.give_back(2, 1001.0)
    assert meter.used(1001.0) == 0


@pytest.mark.parametrize(
    ("at", "begin", "end"),
    [
        ((2026, 11, 24, 12, 0, 0), (2026, 11, 1), (2026, 12, 1)),
        ((2026, 12, 31, 23, 59, 59), (2026, 12, 1), (2027, 1, 1)),
        ((2028, 2, 29, 0, 0, 0), (2028, 2, 1), (2028, 3, 1)),
    ],
)
def test_a_month_is_the_calendar_s(at: tuple[int, ...], begin: tuple[int, ...], end: tuple[int, ...]) -> None:
    expected = tuple(calendar.timegm((*date, 0, 0, 0)) for date in (begin, end))
    assert meters.period(MONTH, calendar.timegm(at) + 0.5) == expected


def test_the_wall_clock_may_be_set(cells: Cells) -> None:
    meter = day(cells, offset=86400.0 * 20000)
    meter.take(3, 100.0)
    meter._meters.wall_offset += 86400
    assert meter.used(100.5) == 3  # it is looked at once a second
    assert meter.used(101.0) == 0


def test_what_is_taken_of_a_level_is_there_until_it_is_given_back(cells: Cells) -> None:
    cells.use(1)
    level, other = Level(Meters(cells, 0), NAMED, 5), Level(Meters(cells, 1), NAMED, 5)
    assert [level.spend(2, 1.0), other.spend(2, 1.0), level.spend(2, 1.0)] == [1, 0, -1]
    assert level.frees(1, 1.0) == level.resets(1.0) == float("inf")
    level.give_back(1, 2.0)
    assert (level.used(9000.0), other.used(9000.0), meters.held(cells)) == (1, 1, 1)


def test_a_buried_writer_holds_nothing_and_has_used_what_it_had_reserved(cells: Cells) -> None:
    tokens, level, budget = sliding(cells, 1), Level(Meters(cells, 1), NAMED, 5), day(cells, 1)
    for meter in (tokens, budget):
        meter.take(10, 200.0)
        meter.hold(30)
    assert level.used(200.0) == 0
    level.hold(2)
    other = sliding(cells, 0)
    meters.bury(cells, 1, 230.0)
    assert meters.held(cells) == 0
    assert Level(Meters(cells, 0), NAMED, 5).used(230.0) == 0
    assert day(cells, 0).used(230.0) == 40
    successor = sliding(cells, 1)
    successor.take(1, 230.0)
    assert [other.used(now) for now in (230.0, 268.0, 290.0, 298.0)] == [41, 31, 31, 0]


def test_a_writer_killed_between_two_steps_leaves_nothing_that_stays(cells: Cells) -> None:
    meter = sliding(cells)
    meter.take(4, 100.0)
    meter._slots[meters.TOTAL] -= 1  # the ring was written, the sum was not
    assert sliding(cells).used(110.0) == 4


@pytest.mark.unmeasured
def test_100_000_addresses_are_known_and_more_drive_out_the_oldest_and_no_key(cells: Cells) -> None:
    own = Meters(cells, 0)
    key = Sliding(own, NAMED, KEY, MINUTE)
    key.take(1, 0.0)

    def ask(number: int, now: float) -> int:
        meter = Sliding(own, OPEN, digest_of(b"%d" % number), 3_600_000)
        meter.take(1, now)
        return meter.used(now)

    for number in range(100_000):
        ask(number, number / 1000)
    assert {ask(number, 100.0) for number in range(0, 100_000, 997)} == {2}
    for number in range(100_000, 160_000):
        ask(number, number / 1000)
    assert {ask(number, 160.0) for number in range(120_000, 160_000, 997)} == {2}
    assert 1 in {ask(number, 160.0) for number in range(1, 10_000, 997)}  # forgotten
    assert key.used(0.0) == 1


@pytest.mark.unmeasured
def test_what_the_config_names_is_driven_out_by_nobody() -> None:
    cells = Cells.private()
    own = Meters(cells, 0)
    many = [Calendar(own, CALENDAR, digest_of(b"%d" % number), MONTH) for number in range(40_000)]
    for meter in many:
        meter.take(1, 0.0)
    assert {meter.used(1.0) for meter in many} == {1}  # those without room count for themselves
    assert CALENDAR.sets * 8 * 0.99 < sum(1 for _ in meters.windows(cells)) <= CALENDAR.sets * 8
    assert {total for *_, total in meters.windows(cells)} == {1}
    late = Calendar(own, CALENDAR, KEY, MONTH)
    late.take(5, 40 * 86400.0)  # the month is over: there is room again
    assert (KEY, MONTH, calendar.timegm((1970, 2, 1, 0, 0, 0)), 5) in set(meters.windows(cells))


def test_calendar_windows_are_told_and_restored(cells: Cells) -> None:
    offset = 86400.0 * 20000
    one, other = day(cells, 0, offset=offset), day(cells, 1, offset=offset)
    one.take(3, 50.0)
    other.take(4, 60.0)
    (window,) = meters.windows(cells)
    assert window == (KEY, DAY, 86400 * 20000, 7)
    fresh = Cells.private()
    worker = day(fresh, 0, offset=offset)
    assert worker.used(70.0) == 0
    keeper = Meters(fresh, SUPERVISOR)
    keeper.wall_offset = offset
    meters.restore(keeper, *window, 70.0)
    meters.restore(keeper, digest_of(b"old"), DAY, 86400 * 19999, 9, 70.0)
    assert worker.used(70.0) == 7
    worker.take(1, 70.0)
    assert list(meters.windows(fresh)) == [(KEY, DAY, 86400 * 20000, 8)]
    assert worker.used(86400.0) == 0


def test_an_entry_that_another_took_is_made_anew(cells: Cells) -> None:
    """A meter that rested until its window had passed, and finds its place taken."""
    resting = sliding(cells)
    resting.take(1, 0.0)
    resting._slots[meters.HASH], resting._slots[meters.TOTAL] = 4711, 9
    assert resting.used(2.0) == 0
    resting.take(2, 2.0)
    assert sliding(cells).used(2.0) == 2


def test_what_a_writer_held_is_found_wherever_it_stands_and_no_memory_is_made_for_that(cells: Cells) -> None:
    cells.use(1)
    writer = Meters(cells, 1)
    kinds = (NAMED, LEVEL), (CALENDAR, DAY), (OPEN, MINUTE)
    for number in range(300):
        area, span = kinds[number % 3]
        writer.own(area, digest_of(b"%d" % number), span, 1.0)[meters.HELD] = number + 1
    assert cells.row(0)[NAMED.added] == 0  # which is the first look at that row's first page
    pages = os.fstat(cells.descriptor).st_blocks
    assert meters.held(cells) == sum(range(301))
    meters.bury(cells, 1, 1.0)
    assert meters.held(cells) == 0
    assert os.fstat(cells.descriptor).st_blocks == pages
    assert len(list(meters.windows(cells))) == 100
