"""Events of a text/event-stream, across the borders of reads (WHATWG HTML, section 9.2.5 and 9.2.6).

For whoever holds a stream event by event: each event's very bytes, to be passed on or left out, and its data, to be
looked at. Nothing here reads what the data means. Who only watches a stream go by needs `EVENT_END` alone.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# An empty line ends an event: the end of one line, and the next line's end at once. Each is CRLF, LF or CR. Further
# empty lines go with it, so that a megabyte of them is one event.
EVENT_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)++")
_LF_END: Final = re.compile(rb"\n\n++")  # the same without CR: memchr finds it, 10 times as fast
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_LONGEST_END: Final = 4  # CRLF CRLF
_BOM: Final = b"\xef\xbb\xbf"

# Bytes of one event that are held (design: a held stream keeps 64 KiB at most).
BOUND: Final = 64 * 1024


class Event(NamedTuple):
    """`raw` is the event with the empty lines behind it and what stood before it (comments, a BOM).

    `data` is its data lines joined by LF; None where there is nothing to look at: an event without data, which readers
    do not dispatch, or a part of one longer than the bound. `name` is the value of its `event` field, b"" if absent.
    """

    raw: bytes
    data: bytes | None
    name: bytes


class Splitter:
    """Payload in, events out, each in the call that brought its last byte.

    All `raw` of all events, and `rest()`, are the payload and nothing else. An event of more than `bound` bytes comes
    in parts, as it comes in, each with data None. Where a read ends within the CRLF of an empty line, the event ends
    with the CR and the LF counts to the next one: waiting for it would delay every event of a stream that uses CR.
    Linear in the payload, however it is cut.
    """

    __slots__ = ("_begun", "_bound", "_buffer", "_over", "_scanned")

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._begun = False  # the first event, which may open with a BOM, is out
        # the event that has not ended
        self._buffer = bytearray()
        self._scanned = 0  # no end begins before this place of the buffer
        self._over = False  # it is longer than the bound; its parts so far are out

    def __repr__(self) -> str:
        return f"<Splitter {len(self._buffer)} bytes held{', over the bound' if self._over else ''}>"

    def feed(self, payload: bytes) -> list[Event]:
        if self._buffer:
            self._buffer += payload
            if EVENT_END.search(self._buffer, self._scanned) is None:
                return self._wait()
            payload = bytes(self._buffer)
            self._buffer.clear()
        events = []
        start = 0
        for end in (EVENT_END if b"\r" in payload else _LF_END).finditer(payload, self._scanned):
            events.append(self._event(payload[start : end.end()]))
            start = end.end()
        self._buffer += payload[start:]
        return events + self._wait()

    def rest(self) -> bytes:
        """What is held of an event that never ended; to be asked for once, when the stream is over."""
        held = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return held

    def _wait(self) -> list[Event]:
        """Hold what has no end yet, or let go of it beyond the bound."""
        buffer = self._buffer
        self._scanned = max(len(buffer) - _LONGEST_END + 1, 0)
        if len(buffer) <= self._bound and not self._over:
            return []
        self._over = True
        part = bytes(buffer[: self._scanned])
        del buffer[: self._scanned]
        self._scanned = 0
        return [Event(part, None, b"")] if part else []

    def _event(self, raw: bytes) -> Event:
        self._scanned = 0
        begun, self._begun = self._begun, True
        if self._over or len(raw) > self._bound:
            self._over = False
            return Event(raw, None, b"")
        return _parse(raw, raw if begun else raw.removeprefix(_BOM))


def _parse(raw: bytes, text: bytes) -> Event:
    data = []
    name = b""
    for line in _LINE_END.split(text) if b"\r" in text else text.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    return Event(raw, b"\n".join(data) if data else None, name)
