"""Cells: numbers that the processes of one gateway share, in memory that outlives each of them.

    header | supervisor's row | row 0 | row 1 | ...       a row:  fixed slots | index | values | texts | meters

One memfd, passed to workers by descriptor, sized once; a page costs nothing until it is touched. Everything is an
aligned 64-bit integer. **A row has one writer, and everybody reads all rows**, so there is no lock, and nothing that a
killed writer could leave in disorder: the next one goes on where it stopped. A total is the sum over all rows, those
of processes that are gone included.

The fixed slots are for what every worker has once (`HEARTBEAT`, `IN_FLIGHT`, ...). What there is one of for each
label set stands in the row's *series*: an open-addressed index, keyed by a seeded 64-bit hash of the text, so that
another process finds an entry without knowing where its writer put it and a client cannot choose texts that collide.
What is to be counted for a text that finds no room is counted under `OTHER`.

The *meters*, of which there may be one for each address that ever asked, are the business of `meters.py`.

Counting is plain Python on a memoryview: `row[slot] += 1`, ten bytecodes, 0.055 us.
"""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from typing import Final

# Fixed slots of a row. What is a state is set to 0 by whoever buries the writer, what is a count is kept for ever.
PID: Final = 0  # of the process that writes the row; 0: none
GENERATION: Final = 1  # of the snapshot it serves by
HEARTBEAT: Final = 2  # monotonic milliseconds of its last sign of life
IN_FLIGHT: Final = 3  # exchanges that have begun and not ended
CONNECTIONS: Final = 4  # of clients
STATES: Final = (PID, GENERATION, HEARTBEAT, IN_FLIGHT, CONNECTIONS)
LOG_DROPPED: Final = 5  # records of the access log that were lost on their way to the supervisor
_ENTRIES: Final = 6  # used of the index ...
_VALUES: Final = 7  # ... of the values ...
_TEXTS: Final = 8  # ... and of the texts (bytes)
METERS_ADDED: Final = 9  # and the two behind it: how often a meter was added, by area (`meters.py`)

ROWS: Final = 1024  # as many as `workers` may be
SUPERVISOR: Final = -1  # the number of the row that the supervisor writes; no part of sums
FIXED: Final = 64
CAPACITY: Final = 16384  # entries of the index, a power of two; a quarter stays free, so that searches end soon
VALUES: Final = 256 * 1024  # slots
TEXTS: Final = 2 * 1024 * 1024  # bytes
METERS: Final = 2_654_208  # slots: 32,768 entries of 15, as many of 6, and 131,072 of 15

# An entry of the index. The hash is written last: an entry that has one is whole.
_HASH: Final = 0
_AT: Final = 1  # slot of its first value, from the start of the row
_WIDTH: Final = 2  # how many it has
_TEXT: Final = 3  # where its text begins << 32 | how long it is
_ENTRY: Final = 4

_INDEX_AT: Final = FIXED
_VALUES_AT: Final = _INDEX_AT + CAPACITY * _ENTRY
_TEXTS_AT: Final = _VALUES_AT + VALUES
METERS_AT: Final = _TEXTS_AT + TEXTS // 8
ROW_SLOTS: Final = METERS_AT + METERS

# The header, written by the process that made the cells.
_SEED: Final = 0
_ROWS_USED: Final = 1
_HEADER: Final = 512  # slots: a page, so that rows begin at pages

OTHER: Final = b"other"
_NO_DESCRIPTOR: Final = -1


class Cells:
    """All rows. Made once by the supervisor; a worker maps what it inherited.

    `Cells()` makes new ones, `Cells(descriptor)` maps those of another process; the descriptor stays the caller's.
    `Cells.private()` are one row that nobody else sees.
    """

    __slots__ = ("_header", "_map", "_owned", "_slots", "descriptor")

    def __init__(self, descriptor: int | None = None, *, rows: int = ROWS) -> None:
        self._owned = descriptor is None
        size = (_HEADER + (1 + rows) * ROW_SLOTS) * 8
        self.descriptor = _new_memory(size) if descriptor is None else descriptor
        self._map = mmap.mmap(self.descriptor, 0 if self.descriptor >= 0 else size)
        self._slots = memoryview(self._map).cast("q")
        self._header = self._slots[:_HEADER]
        if self._owned:
            self._header[_SEED] = int.from_bytes(os.urandom(8), "little", signed=True)

    @classmethod
    def private(cls) -> Cells:
        cells = cls(_NO_DESCRIPTOR, rows=1)
        cells.use(0)
        return cells

    def __repr__(self) -> str:
        return f"<Cells {self.rows_used} rows>"

    def row(self, number: int) -> memoryview:
        """A row's slots, for its one writer: `row[slot] += 1`. Numbers begin at 0, or are `SUPERVISOR`."""
        start = _HEADER + (1 + number) * ROW_SLOTS
        return self._slots[start : start + ROW_SLOTS]

    def touched(self, number: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """The parts of a run of slots in a row that were ever written, by whole pages: to read a page makes it."""
        begin = (_HEADER + (1 + number) * ROW_SLOTS) * 8
        place, end = begin + start * 8, begin + stop * 8
        if self.descriptor < 0:
            yield start, stop
            return
        while place < end:
            try:
                place = os.lseek(self.descriptor, place, os.SEEK_DATA)
                hole = os.lseek(self.descriptor, place, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # there is nothing behind it
                    return
                raise
            if place < end:
                yield (place - begin) // 8, (min(hole, end) - begin) // 8
            place = hole

    def use(self, number: int) -> memoryview:
        """The same, by whoever made the cells, before a writer is given the row: from now on it is part of sums."""
        self._header[_ROWS_USED] = max(self.rows_used, number + 1)
        return self.row(number)

    @property
    def rows_used(self) -> int:
        """Rows that were ever given to a writer. Others are not read: that alone would cost their pages."""
        return self._header[_ROWS_USED]

    @property
    def usage(self) -> memoryview:
        """One slot that holds `rows_used`, for who asks often."""
        return self._header[_ROWS_USED : _ROWS_USED + 1]

    @property
    def seed(self) -> int:
        """A secret of these cells, so that a client cannot choose what falls together in them."""
        return self._header[_SEED]

    def total(self, slot: int) -> int:
        """The sum of a fixed slot over all rows."""
        return sum(self.row(number)[slot] for number in range(self.rows_used))

    def pid(self, number: int) -> int:
        """Of the process that writes a row; 0 where there is none."""
        return self._slots[_HEADER + (1 + number) * ROW_SLOTS + PID]

    def series(self, number: int) -> Series:
        """The series of a row: for its writer to count in, for everyone else to find and read."""
        return Series(self.row(number), self._header[_SEED])

    def totals(self, family: bytes) -> dict[bytes, list[int]]:
        """A family's values by label text, summed over all rows."""
        sums: dict[bytes, list[int]] = {}
        for number in range(self.rows_used):
            for text, values in self.series(number).items(family):
                known = sums.get(text)
                if known is not None:
                    values = [one + other for one, other in zip(known, values, strict=True)]
                sums[text] = values
        return sums

    def bury(self, number: int) -> dict[int, int]:
        """Sets to 0 what the dead writer of a row *was*, and answers what that was; its counts stay.

        Only when the process is gone: until the next one is started, the caller is the row's one writer.
        """
        row = self.row(number)
        was = {slot: row[slot] for slot in STATES}
        for slot in STATES:
            row[slot] = 0
        return was

    def close(self) -> None:
        """For tests and the end of a process; every row and series handed out must be gone."""
        self._header.release()
        self._slots.release()
        self._map.close()
        if self._owned:
            os.close(self.descriptor)


class Peers:
    """The other workers' rows, for a worker to read."""

    __slots__ = ("_cells", "_found", "_number")

    def __init__(self, cells: Cells, number: int) -> None:
        self._cells = cells
        self._number = number
        # (row, family, text) -> its values; entries are never moved
        self._found: dict[tuple[int, bytes, bytes], memoryview] = {}

    def __repr__(self) -> str:
        return f"<Peers of row {self._number}>"

    def _living(self) -> Iterator[int]:
        cells = self._cells
        for number in range(cells.rows_used):
            if number != self._number and cells.pid(number):
                yield number

    def values(self, family: bytes, text: bytes, width: int) -> list[memoryview]:
        """What each of the living has for a text, where it has any."""
        found = []
        for number in self._living():
            key = (number, family, text)
            values = self._found.get(key)
            if values is None:
                at = self._cells.series(number).find(family, text, width)
                if not at:
                    continue
                values = self._found[key] = self._cells.row(number)[at : at + width]
            found.append(values)
        return found

    def is_first(self) -> bool:
        """Whether no living writer has a row before ours: what one must do for all falls to it."""
        return all(number > self._number for number in self._living())


class Series:
    """What one row counts for each of many texts: `row[series.at(family, labels)] += 1`.

    A family is a name and a number of values; a text is what the caller makes of its labels. Entries are never moved,
    so that what `at` answers may be kept as long as the process lives.
    """

    __slots__ = ("_known", "_row", "_seed", "_texts", "_widths")

    def __init__(self, row: memoryview, seed: int) -> None:
        self._row = row
        self._texts = row[_TEXTS_AT:METERS_AT].cast("B")
        self._seed = seed.to_bytes(8, "little", signed=True)
        # the writer's memory: what was found once, with its family's name before it
        self._known: dict[bytes, int] = {}
        self._widths: dict[bytes, int] = {}

    def declare(self, family: bytes, width: int) -> None:
        """A family, by the row's writer: `width` values for each text, and room for `OTHER` from the start.

        Raises: ValueError, when there is no room or the row has the family with another width.
        """
        self._widths[family] = width
        key = _key(family, OTHER)
        at = self._find(key, width) or self._add(key, width)
        if not at:
            raise ValueError(f"no room for the family {family!r}")
        self._known[key] = at

    def at(self, family: bytes, text: bytes) -> int:
        """The slot, in the row, of the first value counted for `text`: by the writer, who declared the family."""
        key = _key(family, text)
        at = self._known.get(key)
        if at is None:
            width = self._widths[family]
            at = self._find(key, width) or self._add(key, width)
            if not at:
                return self._known[_key(family, OTHER)]  # not kept: texts without end would fill the memory
            self._known[key] = at
        return at

    def find(self, family: bytes, text: bytes, width: int) -> int:
        """The same for everyone else, without adding anything: 0 where the row has no such text."""
        return self._find(_key(family, text), width)

    def items(self, family: bytes) -> Iterator[tuple[bytes, list[int]]]:
        """Every text of a family with its values."""
        row = self._row
        begin = family + b"\0"
        hashes = row[_INDEX_AT + _HASH : _VALUES_AT : _ENTRY].tolist() if row[_ENTRIES] else ()
        for number, hashed in enumerate(hashes):
            if hashed:
                place = _INDEX_AT + number * _ENTRY
                key = self._text(place)
                if key.startswith(begin):
                    at = row[place + _AT]
                    yield key[len(begin) :], row[at : at + row[place + _WIDTH]].tolist()

    def _find(self, key: bytes, width: int) -> int:
        place, hashed = self._search(key)
        row = self._row
        if not hashed:
            return 0
        if row[place + _WIDTH] != width:
            raise ValueError(f"{key!r} has {row[place + _WIDTH]} values, not {width}")
        return row[place + _AT]

    def _search(self, key: bytes) -> tuple[int, int]:
        """Where the key stands, or the free place where it would; and the hash that stands there (0: free)."""
        row = self._row
        wanted = self._hash(key)
        slot = wanted & (CAPACITY - 1)
        while True:  # a quarter of the places is free
            place = _INDEX_AT + slot * _ENTRY
            found = row[place + _HASH]
            if not found or (found == wanted and self._text(place) == key):
                return place, found
            slot = (slot + 1) & (CAPACITY - 1)

    def _add(self, key: bytes, width: int) -> int:
        """Takes room for a new entry; 0 where there is none."""
        row = self._row
        values, texts = row[_VALUES], row[_TEXTS]
        if row[_ENTRIES] >= CAPACITY * 3 // 4 or values + width > VALUES or texts + len(key) > TEXTS:
            return 0
        place, _ = self._search(key)
        # Room is taken first and the hash written last: a writer killed in between has lost some room, nothing else.
        row[_ENTRIES] += 1
        row[_VALUES] = values + width
        row[_TEXTS] = texts + len(key)
        self._texts[texts : texts + len(key)] = key
        row[place + _AT] = _VALUES_AT + values
        row[place + _WIDTH] = width
        row[place + _TEXT] = texts << 32 | len(key)
        row[place + _HASH] = self._hash(key)
        return _VALUES_AT + values

    def _text(self, place: int) -> bytes:
        where = self._row[place + _TEXT]
        begin = where >> 32
        return bytes(self._texts[begin : begin + (where & 0xFFFFFFFF)])

    def _hash(self, key: bytes) -> int:
        """Not 0: that is a free place."""
        return int.from_bytes(blake2b(key, digest_size=8, key=self._seed).digest(), "little", signed=True) or 1


def _key(family: bytes, text: bytes) -> bytes:
    return family + b"\0" + text


def _new_memory(size: int) -> int:
    """A descriptor of zeroed memory without a name, that children do not inherit unless told to."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("aigw-cells")
    else:  # no Linux: a file that is gone at once
        descriptor, path = tempfile.mkstemp(prefix="aigw-cells-")
        os.unlink(path)
    os.ftruncate(descriptor, size)
    return descriptor
