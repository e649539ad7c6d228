"""From a request's head to its admission, mostly without parsing it.

An `Admission` depends on the head's bytes, the snapshot and the key's dates, and on nothing else. SDKs send the same
lines each time but for a few, so that heads are recognised by a `Pattern` instead of being parsed (0.6 us
for 5.6 on fake transports). Only what was admitted is remembered, and patterns are the snapshot's: they go with it.
What admission means is the business of `aigw.admit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aigw.admit import Admission, admit
from aigw.wire.fields import (
    ID_LETTERS,
    LENGTH,
    MAX_ID,
    MAX_LINE,
    PLAIN,
    REQUEST_ID,
    VALUE_LETTERS,
    line_name,
    request_field,
)

if TYPE_CHECKING:
    from aigw.config.snapshot import Snapshot
    from aigw.wire.head import RequestParser

# Patterns a worker keeps: one is needed per kind of client; each costs the others a comparison of 0.06 us.
MOST_PATTERNS: Final = 16
MOST_HOLES: Final = 8


# The admission; the body's length, None where it is chunked; and what is no part of what was admitted: lines that are
# forwarded with it, each with CRLF, and a request id of its own.
Found = tuple[Admission, int | None, bytes, bytes | None]


class Pattern:
    """Heads that are the same but for a few lines: the length, and lines that mean nothing to the gateway.

    Which lines differ was seen on two heads that were parsed in full (`Admissions`), so any further head that is equal
    outside of these holes is admitted as they were, once what stands in the holes has passed the rules of its lines.
    """

    __slots__ = ("_before", "_behind", "_first", "_holes", "_is_plain", "admission", "home")

    def __init__(self, home: Admissions, admission: Admission, lines: list[bytes], holes: dict[int, int]) -> None:
        """`lines` are of a whole head; `holes` are those that differ, in order, with their kinds: LENGTH, REQUEST_ID
        or PLAIN."""
        self.home = home
        self.admission = admission
        # What stands before, between and behind the values in the holes: the names belong to what is the same.
        same = [b""]
        names = []
        for index, line in enumerate(lines):
            same[-1] += b"\r\n" if index else b""
            if index in holes:
                name = line.partition(b":")[0] + (b":" if holes[index] == PLAIN else b": ")
                names.append(name)
                same[-1] += name
                same.append(b"")
            else:
                same[-1] += line
        self._before = same[0]
        self._first = len(same[0]) if holes else len(same[0]) + 2  # where a hole begins, or where the last line ends
        ends = [*same[1:-1], same[-1] + b"\r\n"] if holes else []
        self._holes = list(zip(holes.values(), [len(name) for name in names], ends, strict=True))
        self._is_plain = list(holes.values()) == [LENGTH]
        self._behind = same[-1]

    def match(self, block: bytes) -> Found | None:
        """None where it is another head."""
        if not block.startswith(self._before):
            return None
        if not self._is_plain:
            return self._fill(block)
        # Nothing but the length differs: two comparisons say it all (0.4 us on fake transports).
        stop = len(block) - len(self._behind)
        if stop <= self._first or not block.endswith(self._behind):
            return None
        digits = block[self._first : stop]
        if digits.isdigit() and len(digits) <= 18:
            return self.admission, int(digits), b"", None
        return None

    def _fill(self, block: bytes) -> Found | None:
        length = self.admission.head.length
        more = b""
        request_id: bytes | None = None
        place = self._first
        block += b"\r\n"  # as every line of it ends
        for kind, size, behind in self._holes:
            stop = block.find(b"\r\n", place)
            value = block[place:stop]
            if kind == PLAIN:
                if (value and not value.translate(VALUE_LETTERS).isalpha()) or stop - place + size > MAX_LINE:
                    return None
                more += block[place - size : stop + 2]
            elif kind == LENGTH:
                if not value.isdigit() or len(value) > 18:
                    return None
                length = int(value)
            else:
                if not value.translate(ID_LETTERS).isalpha() or len(value) > MAX_ID:
                    return None
                request_id = value
            if not block.startswith(behind, stop):
                return None
            place = stop + len(behind)
        return (self.admission, length, more, request_id) if place == len(block) else None


class Memory:
    """What one client connection remembers of its heads."""

    __slots__ = ("block", "pattern")

    def __init__(self) -> None:
        self.block = b""  # the head parsed last
        self.pattern: Pattern | None = None  # the one that matched last


class Admissions:
    """The head phase of one snapshot, and the patterns of heads that it has met, the newest first."""

    __slots__ = ("_bound", "_parser", "_patterns", "snapshot")

    def __init__(self, snapshot: Snapshot, parser: RequestParser) -> None:
        self.snapshot = snapshot
        self._parser = parser
        self._patterns: list[Pattern] = []
        self._bound = snapshot.head_bounds.head

    def of(self, block: bytes, wall: float, memory: Memory) -> Found:
        """The admission of a head (without its blank line). `wall` is epoch seconds.

        Raises `Refused` where the head is malformed: answer, then close.
        """
        last = memory.pattern
        if last is not None and last.home is self and len(block) <= self._bound:
            found = last.match(block)
            if found is not None and found[0].expires > wall:
                return found
        for pattern in self._patterns if len(block) <= self._bound else ():
            found = pattern.match(block)
            if found is not None and found[0].expires > wall:
                memory.pattern = pattern
                return found
        head = self._parser.parse(block, self.snapshot.head_bounds)
        admission = admit(self.snapshot, head, wall)
        if admission.failure is None:
            if memory.block:
                self._learn(memory.block, block, wall)
            memory.block = block
        return admission, head.length, b"", None

    def _learn(self, one: bytes, other: bytes, wall: float) -> None:
        """Two heads that one client sent one after the other: if they differ only where a pattern may, keep it."""
        lines = other.split(b"\r\n")
        before = one.split(b"\r\n")
        if len(lines) != len(before) or lines[0] != before[0]:
            return
        holes: dict[int, int] = {}
        names = []
        for index, line in enumerate(lines):
            if not index:
                continue
            field = request_field(line)
            if line == before[index] and field.kind != LENGTH:
                continue
            name, _, value = line.partition(b":")
            if name != before[index].partition(b":")[0]:
                return
            if field.kind not in (PLAIN, LENGTH, REQUEST_ID) or (field.kind != PLAIN and value != b" " + field.value):
                return
            holes[index] = field.kind
            if field.kind == PLAIN:
                names.append(name.lower())
        rest = b"\r\n".join(line for index, line in enumerate(lines) if index not in holes)
        head = self._parser.parse(rest, self.snapshot.head_bounds)
        kept = {line_name(line) for line in head.kept}
        # Order matters among lines of one name (RFC 9110 section 5.3), and what Connection names is dropped.
        if head.named or head.has_length or not kept.isdisjoint(names):
            return
        if head.request_id is not None and REQUEST_ID in holes.values():
            return  # of two ids the last one counts, and that need not be the one that differs
        admission = admit(self.snapshot, head, wall)
        if admission.failure is None and len(holes) <= MOST_HOLES:
            self._patterns = [Pattern(self, admission, lines, holes), *self._patterns[: MOST_PATTERNS - 1]]
