"""A strict reader of HTTP/1.1 responses, of its own: it shares no code with what it judges.

It reads a whole recording at once, by the letter of RFC 9112, and says which complete messages stand in it and what
is left; it is for recordings of some kilobytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) [\t\x20-\x7e\x80-\xff]*\r\n")
STATUS_WITHOUT_BLANK = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})()\r\n")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t ]*([\t\x20-\x7e\x80-\xff]*?)[\t ]*\r\n")
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
# An extension may lack its value: whoever ignores extensions, as all have to, reads the same size.
SIZE = re.compile(rb"0*([0-9A-Fa-f]{1,15})((?:;" + _NAME + rb"(?:=(?:" + _NAME + rb"|" + _QUOTED + rb"|))?)*)\r\n")

INCOMPLETE = "incomplete"


@dataclass(frozen=True, slots=True)
class Message:
    """`raw` is head and body as they came, `body` the payload; `framing` is none, length, chunked or close."""

    raw: bytes
    status: int
    minor: int
    fields: tuple[tuple[bytes, bytes], ...]  # names in lower case, values without blanks around them
    framing: str
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        return [value for known, value in self.fields if known == name]

    @property
    def closes(self) -> bool:
        options = [o.strip().lower() for value in self.values(b"connection") for o in value.split(b",")]
        return b"close" in options or self.framing == "close"


@dataclass(frozen=True, slots=True)
class Reading:
    """`rest` is what is no complete message; `fault` says what is wrong with it, and is "" where nothing is left."""

    messages: tuple[Message, ...]
    rest: bytes
    fault: str

    @property
    def final(self) -> tuple[Message, ...]:
        return tuple(message for message in self.messages if message.status >= 200)


class Malformed(Exception):
    pass


class Incomplete(Exception):
    pass


def read(data: bytes, methods: list[str], *, fin: bool = False) -> Reading:
    """The answers to requests of these methods. `fin`: the connection was closed cleanly behind `data`; after a reset,
    or while it is open, what ends with the connection has not ended."""
    messages: list[Message] = []
    waiting = list(methods)
    at = 0
    while at < len(data):
        if not waiting:
            return Reading(tuple(messages), data[at:], "bytes behind the last answer")
        try:
            message = _message(data, at, waiting[0], fin)
        except Malformed as error:
            return Reading(tuple(messages), data[at:], str(error))
        except Incomplete:
            return Reading(tuple(messages), data[at:], INCOMPLETE)
        messages.append(message)
        at += len(message.raw)
        if message.status >= 200:
            waiting.pop(0)
            if message.framing == "close":
                waiting.clear()
    return Reading(tuple(messages), b"", "")


def _message(data: bytes, at: int, method: str, fin: bool) -> Message:
    start = at
    line = STATUS.match(data, at) or STATUS_WITHOUT_BLANK.match(data, at)
    if line is None:
        raise _wrong(data, at, "status line")
    at = line.end()
    fields: list[tuple[bytes, bytes]] = []
    while not data.startswith(b"\r\n", at):
        field = FIELD.match(data, at)
        if field is None:
            raise _wrong(data, at, "field line")
        fields.append((field[1].lower(), field[2]))
        at = field.end()
    at += 2
    status = int(line[2])
    framing, length = _framing(status, int(line[1]), fields, method)
    end, body = at, b""
    if framing == "length":
        end = at + length
        if end > len(data):
            raise Incomplete
        body = data[at:end]
    elif framing == "chunked":
        end, body = _chunks(data, at)
    elif framing == "close":
        if not fin:
            raise Incomplete
        end, body = len(data), data[at:]
    return Message(data[start:end], status, int(line[1]), tuple(fields), framing, body)


def _wrong(data: bytes, at: int, what: str) -> Exception:
    line_end = data.find(b"\r\n", at)
    text = data[at:] if line_end < 0 else data[at:line_end]
    if line_end < 0 and not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", text.removesuffix(b"\r")):
        return Incomplete()
    return Malformed(f"bad {what}: {text[:40]!r}")


def _framing(status: int, minor: int, fields: list[tuple[bytes, bytes]], method: str) -> tuple[str, int]:
    """RFC 9112 section 6.3, where two ways to frame are none."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if lengths and codings:
        raise Malformed("content-length and transfer-encoding")
    if len(lengths) > 1 or not all(re.fullmatch(rb"[0-9]{1,18}", value) for value in lengths):
        raise Malformed("content-length")
    if codings and ([value.lower() for value in codings] != [b"chunked"] or not minor):
        raise Malformed("transfer-encoding")
    if method == "HEAD" or status < 200 or status in (204, 304):
        return "none", 0
    if codings:
        return "chunked", 0
    return ("length", int(lengths[0])) if lengths else ("close", 0)


def _chunks(data: bytes, at: int) -> tuple[int, bytes]:
    body = b""
    while True:
        line = SIZE.match(data, at)
        if line is None:
            raise _wrong(data, at, "chunk size")
        size = int(line[1], 16)
        at = line.end()
        if not size:
            break
        body += data[at : at + size]
        at += size
        if not b"\r\n".startswith(data[at : at + 2]):
            raise Malformed("chunk data without CRLF behind it")
        if at + 2 > len(data):
            raise Incomplete
        at += 2
    while not data.startswith(b"\r\n", at):
        field = FIELD.match(data, at)
        if field is None:
            raise _wrong(data, at, "trailer")
        if field[1].lower() == b"content-length":
            raise Malformed("content-length in a trailer")
        at = field.end()
    return at + 2, body
