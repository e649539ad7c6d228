"""Meters: how much of an allowance is used, counted by all workers together in the cells.

A meter is known by the 64-bit digest of a text (which limit, whose allowance), in every row by the same; each worker
writes the entry in its own row and adds up those of all rows. So a sum is exact for what happens one after the other,
whichever worker it happens in, and simultaneous takers may overshoot by one each. Nobody waits for anybody.

    HASH | SPAN | EXPIRES | STAMP | TOTAL | HELD | RING, 9 slots        (calendar windows have no ring)

- A **sliding** window is a ring of nine buckets, each an eighth of the window long: eight whole ones and the one that
  runs. What is counted in them spans at least the window, so there is never more than the amount in any window, and
  what was taken is free again up to an eighth of the window late. STAMP is the number of the bucket that runs.
- A **calendar** window is a day or a month in UTC. STAMP is the epoch second it began.
- A **level** is a state, how many there are now, and has no window.

HELD is what was taken for a while: reservations, or how many there are of a level. TOTAL is the sum of the ring.

Entries stand in sets of eight, each in the less full one of the two that its digest leads to. They come in three areas,
so that what clients can make many of (addresses, values of headers) never drives out a key's budget. An entry whose
window has passed makes room for another one; in the area of what clients make, else the one that would pass next does.
Time is an argument: monotonic seconds, the same for all processes of a machine.
"""

from __future__ import annotations

import calendar
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

from aigw.shared import METERS, METERS_ADDED, METERS_AT, SUPERVISOR, Cells

HASH: Final = 0  # 0: a free entry
SPAN: Final = 1  # the window in milliseconds, or one of these
LEVEL: Final = 0
DAY: Final = -1
MONTH: Final = -2
EXPIRES: Final = 2  # monotonic milliseconds from which on it holds nothing that counts
STAMP: Final = 3
TOTAL: Final = 4
HELD: Final = 5
RING: Final = 6
BUCKETS: Final = 8  # of a whole window; one more runs

_WAYS: Final = 8
_FOREVER: Final = float("inf")


class Area(NamedTuple):
    """Where entries of one kind stand in a row. `added` is the fixed slot that counts how often one was made."""

    start: int
    sets: int
    width: int
    added: int
    evicts: bool


NAMED: Final = Area(METERS_AT, 4096, RING + BUCKETS + 1, METERS_ADDED, evicts=False)
CALENDAR: Final = Area(NAMED.start + NAMED.sets * _WAYS * NAMED.width, 4096, RING, METERS_ADDED + 1, evicts=False)
OPEN: Final = Area(
    CALENDAR.start + CALENDAR.sets * _WAYS * CALENDAR.width, 16384, RING + BUCKETS + 1, METERS_ADDED + 2, evicts=True
)
AREAS: Final = (NAMED, CALENDAR, OPEN)
assert OPEN.start + OPEN.sets * _WAYS * OPEN.width == METERS_AT + METERS


def digest_of(identity: bytes) -> int:
    """What a meter is known by. Not 0, and the same in every run, so that it can be kept on a disk."""
    return int.from_bytes(blake2b(identity, digest_size=8).digest(), "little", signed=True) or 1


class Meters:
    """The entries of one row, by its writer, and where the same ones stand in the others.

    `wall_offset` is what makes epoch seconds of monotonic ones.
    """

    __slots__ = ("_added", "_cells", "_key", "_known_rows", "_others", "_row", "usage", "wall_offset")

    def __init__(self, cells: Cells, number: int) -> None:
        self._cells = cells
        self._row = cells.row(number)
        self.usage = cells.usage
        self._key = cells.seed.to_bytes(8, "little", signed=True)
        # the other rows, as far as they are known
        self._known_rows = 0
        self._others: dict[int, memoryview] = {number: self._row}
        self._added: dict[Area, list[memoryview]] = {area: [] for area in AREAS}
        self.wall_offset = 0.0
        for area in AREAS:
            # A writer may have been killed after it made an entry and before it counted it: look again, everybody.
            if self._row[area.added]:
                self._row[area.added] += 1

    def version(self, area: Area) -> int:
        """Grows whenever another row gets an entry."""
        if self.usage[0] != self._known_rows:
            self._look_for_rows()
        total = 0
        for added in self._added[area]:
            total += added[0]
        return total

    def own(self, area: Area, digest: int, span: int, now: float) -> memoryview:
        """The entry in our row, made where there is none. One that finds no room is ours alone: it counts, but what
        other workers count is not seen."""
        found = self._find(self._row, area, digest)
        return self._make(area, digest, span, now) if found is None else found

    def others(self, area: Area, digest: int) -> list[memoryview]:
        """The entries in the other rows, until the version changes."""
        mine = self._row
        found = [self._find(row, area, digest) for row in self._others.values() if row is not mine and row[area.added]]
        return [entry for entry in found if entry is not None]

    def _look_for_rows(self) -> None:
        self._known_rows = used = self.usage[0]
        for number in (SUPERVISOR, *range(used)):
            if number not in self._others:
                row = self._others[number] = self._cells.row(number)
                for area in AREAS:
                    self._added[area].append(row[area.added : area.added + 1])

    def _sets(self, area: Area, digest: int) -> tuple[int, int]:
        """Where the two sets begin."""
        mixed = blake2b(digest.to_bytes(8, "little", signed=True), digest_size=8, key=self._key).digest()
        size = _WAYS * area.width
        one = int.from_bytes(mixed[:4], "little") % area.sets
        other = int.from_bytes(mixed[4:], "little") % area.sets
        return area.start + one * size, area.start + other * size

    def _find(self, row: memoryview, area: Area, digest: int) -> memoryview | None:
        width = area.width
        for start in self._sets(area, digest):
            digests = row[start : start + _WAYS * width : width].tolist()
            if digest in digests:
                at = start + digests.index(digest) * width
                return row[at : at + width]
        return None

    def _make(self, area: Area, digest: int, span: int, now: float) -> memoryview:
        row, width = self._row, area.width
        sets = [range(start, start + _WAYS * width, width) for start in self._sets(area, digest)]
        free = [[at for at in one if not row[at]] for one in sets]
        emptiest = max(free, key=len)
        at = emptiest[0] if emptiest else self._passing([*sets[0], *sets[1]], area, now)
        if at is None:
            entry = memoryview(bytearray(8 * width)).cast("q")
            entry[HASH], entry[SPAN] = digest, span
            return entry
        entry = row[at : at + width]
        entry[HASH] = 0
        for slot in range(1, width):
            entry[slot] = 0
        entry[SPAN] = span
        entry[HASH] = digest
        row[area.added] += 1  # last, so that who saw it finds the entry
        return entry

    def _passing(self, places: list[int], area: Area, now: float) -> int | None:
        """The entry that makes room, if one may: that whose time is up first."""
        row = self._row
        idle = [at for at in places if not row[at + HELD]]
        at = min(idle, key=lambda at: row[at + EXPIRES], default=None)
        if at is None or (row[at + EXPIRES] > now * 1000 and not area.evicts):
            return None
        return at


class Meter(ABC):
    """How much of one allowance is used, and the taking of it. Amounts are whole numbers, 0 or more."""

    __slots__ = ("_area", "_digest", "_meters", "_others", "_slots", "_span", "_usage", "_version", "until")

    def __init__(self, meters: Meters, area: Area, digest: int, span: int) -> None:
        self._meters = meters
        self._area = area
        self._digest = digest
        self._span = span
        self._slots = memoryview(bytearray(8 * area.width)).cast("q")  # nobody's, until it is needed
        self.until = 0.0  # monotonic: before, time changes nothing
        # the entries of the other rows
        self._usage = meters.usage
        self._others: list[memoryview] = []
        self._version = -1

    @abstractmethod
    def used(self, now: float) -> int:
        """What counts now, in all rows: what was taken in the window, and what is held."""

    @abstractmethod
    def take(self, count: int, now: float) -> None:
        """Whether there is room was asked before, by `used`."""

    def spend(self, amount: int, now: float) -> int:
        """Takes one where there is room; answers what is left of the amount then, less than 0 where nothing was.

        For meters of which nothing is ever held.
        """
        left = amount - self.used(now) - 1
        if left >= 0:
            self.take(1, now)
        return left

    @abstractmethod
    def give_back(self, count: int, at: float) -> None:
        """What was taken at that moment was not used after all."""

    def hold(self, count: int) -> None:
        """Until it is let go again it counts; `used` was asked before."""
        self._slots[HELD] += count

    def let_go(self, count: int) -> None:
        self._slots[HELD] -= count

    @abstractmethod
    def frees(self, count: int, now: float) -> float:
        """Seconds until so much of what was taken counts no more; infinite where so much was not taken."""

    @abstractmethod
    def resets(self, now: float) -> float:
        """Seconds until nothing counts any more of what was taken until now, at the latest."""

    def _own(self, now: float) -> memoryview:
        self._slots = self._meters.own(self._area, self._digest, self._span, now)
        return self._slots

    def _peers(self) -> list[memoryview]:
        """The entries of the other rows."""
        version = self._meters.version(self._area)
        if version != self._version:
            self._version = version
            self._others = self._meters.others(self._area, self._digest)
        return self._others


class Sliding(Meter):
    """A window of up to an hour."""

    __slots__ = ("_at", "_index", "_is_safe", "_rate")

    def __init__(self, meters: Meters, area: Area, digest: int, span: int) -> None:
        super().__init__(meters, area, digest, span)
        self._rate = rate(span)
        self._is_safe = not area.evicts  # then the entry is ours at least until the window has passed
        self._index = 0  # of the bucket that runs
        self._at = RING  # its slot

    def used(self, now: float) -> int:
        slots = self._slots
        if now >= self.until or slots[HASH] != self._digest:
            slots = self._turn(now)
        used = slots[TOTAL] + slots[HELD]
        index = self._index
        for other in self._peers():
            used += (other[TOTAL] if other[STAMP] == index else _left_of(other, index)) + other[HELD]
        return used

    def take(self, count: int, now: float) -> None:
        slots = self._slots
        if now >= self.until or slots[HASH] != self._digest:
            slots = self._turn(now)
        slots[self._at] += count
        slots[TOTAL] += count

    def spend(self, amount: int, now: float) -> int:
        """The same in one look at the entry, of which nothing is held: half of what `used` and `take` cost."""
        slots = self._slots
        if now >= self.until or not (self._is_safe or slots[HASH] == self._digest):
            slots = self._turn(now)
        total = slots[TOTAL]
        left = amount - total - 1
        if self._usage[0] != 1:
            left = amount - self.used(now) - 1
        if left >= 0:
            slots[self._at] += 1
            slots[TOTAL] = total + 1
        return left

    def give_back(self, count: int, at: float) -> None:
        slots = self._slots
        index = min(int(at * self._rate), slots[STAMP])
        if slots[HASH] == self._digest and slots[STAMP] - index <= BUCKETS:
            place = RING + index % (BUCKETS + 1)
            if slots[place] < count:
                place = self._at  # its moment was on the edge of two buckets
            count = min(count, slots[place])
            slots[place] -= count
            slots[TOTAL] -= count

    def frees(self, count: int, now: float) -> float:
        index = self._index
        for age in range(BUCKETS, -1, -1):
            for slots in (self._slots, *self._peers()):
                if index - age <= slots[STAMP] < index - age + BUCKETS + 1:
                    count -= slots[RING + (index - age) % (BUCKETS + 1)]
            if count <= 0:
                return max((index - age + BUCKETS + 1) / self._rate - now, 0.0)
        return _FOREVER

    def resets(self, now: float) -> float:
        return (self._index + BUCKETS + 1) / self._rate - now

    def _turn(self, now: float) -> memoryview:
        """The clock has moved on, or the entry was another's meanwhile."""
        slots = self._slots if self._slots[HASH] == self._digest else self._own(now)
        index = int(now * self._rate)
        roll(slots, index)
        index = self._index = slots[STAMP]
        self._at = RING + index % (BUCKETS + 1)
        self.until = (index + 1) / self._rate
        slots[EXPIRES] = int((now + (BUCKETS + 1) / self._rate) * 1000) + 1
        return slots


class Calendar(Meter):
    """A day or a month, in UTC."""

    __slots__ = ("_ends", "_start")

    def __init__(self, meters: Meters, area: Area, digest: int, span: int) -> None:
        super().__init__(meters, area, digest, span)
        self._start = 0  # epoch seconds
        self._ends = 0

    def used(self, now: float) -> int:
        slots = self._slots
        if now >= self.until or slots[HASH] != self._digest:
            slots = self._turn(now)
        used = slots[TOTAL] + slots[HELD]
        for other in self._peers():
            used += (other[TOTAL] if other[STAMP] == self._start else 0) + other[HELD]
        return used

    def take(self, count: int, now: float) -> None:
        slots = self._slots
        if now >= self.until or slots[HASH] != self._digest:
            slots = self._turn(now)
        slots[TOTAL] += count

    def give_back(self, count: int, at: float) -> None:
        slots = self._slots
        if slots[HASH] == self._digest and at + self._meters.wall_offset >= slots[STAMP]:
            slots[TOTAL] -= min(count, slots[TOTAL])

    def frees(self, count: int, now: float) -> float:
        taken = sum(slots[TOTAL] for slots in (self._slots, *self._peers()) if slots[STAMP] == self._start)
        return self.resets(now) if taken >= count else _FOREVER

    def resets(self, now: float) -> float:
        return max(self._ends - now - self._meters.wall_offset, 0.0)

    def _turn(self, now: float) -> memoryview:
        slots = self._slots if self._slots[HASH] == self._digest else self._own(now)
        offset = self._meters.wall_offset
        self._start, self._ends = period(self._span, now + offset)
        if slots[STAMP] != self._start:
            slots[TOTAL] = 0
            slots[STAMP] = self._start
        # The wall clock may be set at any time: it is looked at once a second.
        self.until = min(self._ends - offset, now + 1.0)
        slots[EXPIRES] = int((self._ends - offset) * 1000)
        return slots


class Level(Meter):
    """How many there are now: what is taken of it is held, until it is given back."""

    __slots__ = ()

    def __init__(self, meters: Meters, area: Area, digest: int) -> None:
        super().__init__(meters, area, digest, LEVEL)

    def used(self, now: float) -> int:
        slots = self._slots
        if slots[HASH] != self._digest:
            slots = self._own(now)
        used = slots[HELD]
        for other in self._peers():
            used += other[HELD]
        return used

    def take(self, count: int, now: float) -> None:
        self.hold(count)

    def give_back(self, count: int, at: float) -> None:
        self.let_go(count)

    def frees(self, count: int, now: float) -> float:
        return _FOREVER

    def resets(self, now: float) -> float:
        return _FOREVER


def rate(span: int) -> float:
    """Buckets a second."""
    return BUCKETS * 1000 / span


def roll(slots: memoryview, index: int) -> None:
    """Moves a ring on to the bucket `index`; never back. The sum is made anew, whatever a killed writer left."""
    stamp = slots[STAMP]
    if index > stamp:
        for past in range(max(stamp, index - BUCKETS - 1) + 1, index + 1):
            slots[RING + past % (BUCKETS + 1)] = 0
        slots[TOTAL] = sum(slots[RING : RING + BUCKETS + 1])
        slots[STAMP] = index


def _left_of(slots: memoryview, index: int) -> int:
    """What still counts of another row's ring, which stands at another bucket than ours."""
    stamp = slots[STAMP]
    passed = index - stamp
    total: int = slots[TOTAL]
    if passed <= 0:
        return total
    if passed > BUCKETS:
        return 0
    oldest = stamp - BUCKETS
    return total - sum(slots[RING + bucket % (BUCKETS + 1)] for bucket in range(oldest, oldest + passed))


def period(span: int, wall: float) -> tuple[int, int]:
    """The calendar window that holds a moment: epoch seconds of its begin and its end."""
    if span == DAY:
        start = int(wall // 86400) * 86400
        return start, start + 86400
    year, month, *_ = time.gmtime(wall)
    following = (year + 1, 1) if month == 12 else (year, month + 1)
    return calendar.timegm((year, month, 1, 0, 0, 0)), calendar.timegm((*following, 1, 0, 0, 0))


# What outlives workers ------------------------------------------------------------------------------------------------


def bury(cells: Cells, number: int, now: float) -> None:
    """The writer of a row is gone: what it held of a level is held no more, what it had reserved counts as used."""
    row = cells.row(number)
    for area in AREAS:
        for at in _having(cells, number, area, HELD):
            slots = row[at : at + area.width]
            held, slots[HELD] = slots[HELD], 0
            if slots[SPAN] > 0:
                roll(slots, int(now * rate(slots[SPAN])))
                slots[RING + slots[STAMP] % (BUCKETS + 1)] += held
                slots[TOTAL] += held
            elif slots[SPAN] < 0:
                slots[TOTAL] += held


def held(cells: Cells) -> int:
    """All that is held: 0 when nothing is in flight."""
    total = 0
    for number in range(cells.rows_used):
        row = cells.row(number)
        total += sum(row[at + HELD] for area in AREAS for at in _having(cells, number, area, HELD))
    return total


def windows(cells: Cells) -> Iterator[tuple[int, int, int, int]]:
    """Every calendar window of what the config names: its meter's digest, its span (DAY or MONTH), the epoch second of
    its begin, and what was used in it: by all rows together, this run's and what was restored."""
    sums: dict[tuple[int, int, int], int] = {}
    for number in (SUPERVISOR, *range(cells.rows_used)):
        row = cells.row(number)
        for at in _having(cells, number, CALENDAR, HASH):
            key = row[at], row[at + SPAN], row[at + STAMP]
            sums[key] = sums.get(key, 0) + row[at + TOTAL]
    for (digest, span, start), total in sums.items():
        yield digest, span, start, total


def restore(meters: Meters, digest: int, span: int, start: int, total: int, now: float) -> None:
    """Puts back a window that an earlier run had; one that has passed is let go. `meters` are the supervisor's own."""
    begin, end = period(span, now + meters.wall_offset)
    if begin == start:
        slots = meters.own(CALENDAR, digest, span, now)
        slots[STAMP] = start
        slots[TOTAL] = total
        slots[EXPIRES] = int((end - meters.wall_offset) * 1000)


def _having(cells: Cells, number: int, area: Area, slot: int) -> list[int]:
    """Where the entries stand in which a slot is not 0. Pages that were never used are not touched: to read all of an
    area makes up to 4 MiB of them."""
    row = cells.row(number)
    if not row[area.added]:
        return []
    found = []
    for begin, end in cells.touched(number, area.start, area.start + area.sets * _WAYS * area.width):
        skipped = -(-max(begin - area.start - slot, 0) // area.width)  # entries whose slot lies before it
        first = area.start + skipped * area.width
        values = row[first + slot : end : area.width].tolist() if first + slot < end else []
        found += [first + index * area.width for index, value in enumerate(values) if value]
    return found
