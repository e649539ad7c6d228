"""The ways back of answers that do not pass as they came.

One is for a stream that reports a usage its client did not ask for (`usage: inject`).

The request went out with `stream_options.include_usage`. What that option alone brought into the answer is taken out
again here, event by event: the extra event with the usage and no choices, and the `"usage": null` in each of the
others. Every other byte of every event stays; comments, order and line ends too. Events leave in the turn of the loop
in which their last byte came.

Source: OpenAI API reference, "Create chat completion", `stream_options.include_usage`.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from aigw.wire.sse import Event, Splitter

_USAGE: Final = b'"usage"'
# The member where OpenAI had it first: at the end of the object that the event is.
_LAST: Final = b',"usage":null}'
_MEMBER: Final = re.compile(rb'(,\s*)?"usage"\s*:\s*null(?(1)|\s*,?)')


class PatchedStream:
    """Payload in, what the client gets out: whole events, in a chunk for each read, or bare for one that knows none."""

    __slots__ = ("_chunked", "_ends_in_cr", "_splitter")

    is_between_events = True  # what left it are whole ones

    def __init__(self, *, chunked: bool) -> None:
        self._chunked = chunked
        self._splitter = Splitter()
        self._ends_in_cr = False  # what was taken out last: a LF that comes next belongs to it

    def feed(self, payload: bytes, *, ended: bool) -> bytes:
        """`ended`: the body is complete with this payload."""
        splitter = self._splitter
        out = b"".join([self._patched(event) for event in splitter.feed(payload)])
        if ended:
            out += splitter.rest()
        if not self._chunked:
            return out
        framed = b"%x\r\n%b\r\n" % (len(out), out) if out else b""
        return framed + b"0\r\n\r\n" if ended else framed

    def _patched(self, event: Event) -> bytes:
        raw = event.raw
        if self._ends_in_cr:
            self._ends_in_cr = False
            raw = raw.removeprefix(b"\n")
        patched = _patched(raw, event.data)
        if patched is None:
            self._ends_in_cr = raw.endswith(b"\r")
            return _not_of_it(raw)
        return patched


class Chunks:
    """Payload in, chunks out: for an answer that ends with its connection, where a break of that could not be told from
    an end."""

    __slots__ = ()

    is_between_events = False  # it looks at none

    def feed(self, payload: bytes, *, ended: bool) -> bytes:
        framed = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        return framed + b"0\r\n\r\n" if ended else framed


def _patched(raw: bytes, data: bytes | None) -> bytes | None:
    """The event without what the option brought; None for one that is nothing else."""
    if data is None or _USAGE not in data or data[:1] != b"{":
        return raw
    if data.endswith(_LAST):
        # A string would end with a quote, and an object within with two braces: it is the event's own last member.
        patched = data[: -len(_LAST)] + b"}"
    else:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            return raw
        usage = document.get("usage", 0)
        if type(usage) is dict and document.get("choices") == []:
            return None
        if usage is not None:
            return raw
        del document["usage"]
        patched = _without_usage(data, document)
    return raw.replace(data, patched) if raw.count(data) == 1 else raw


def _without_usage(data: bytes, document: object) -> bytes:
    """`data` without its top-level `"usage": null`, so that it says `document`; itself where there is no such place."""
    for member in _MEMBER.finditer(data):
        patched = data[: member.start()] + data[member.end() :]
        try:
            if orjson.loads(patched) == document:
                return patched
        except orjson.JSONDecodeError:
            continue
    return data


def _not_of_it(raw: bytes) -> bytes:
    """What stands with an event and is no part of it: the LF of an end before, whose CR came alone, and comments."""
    end = raw[: raw.startswith(b"\n")]
    lines = raw.splitlines(keepends=True)
    comments = b"".join([line for line in lines if line.startswith(b":")])
    return end + comments + lines[-1] if comments else end
