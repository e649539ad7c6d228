"""The strict decoder of chunked request bodies (RFC 9112 section 7.1): coded bytes in, payload out.

Requests are re-framed, so what a client wrote around its payload (sizes, extensions, trailers) ends here; it is read
by the letter all the same, since a lenient reader in front of a strict one, or the other way round, is how requests
are smuggled. Two rules are stricter than the RFC's grammar, both where readers are known to differ: a size has at
most 16 digits and is less than 2**63, and nothing but `;` or CRLF follows it.

Theory: the CRLF that ends a chunk's data and the size line behind it are read as one line, which is recognised in one
step; the body is treated as if a CRLF stood before it. Whether the bytes come in one read or one by one, the payload
is the same and the work linear; what is kept between reads is at most one unfinished line.
"""

from __future__ import annotations

import re
from typing import Final

from aigw.errors import Refused
from aigw.wire.fields import request_field, split_line

# A size has room for any length that fits a signed 64-bit integer; more is an attempt at overflow.
MAX_SIZE: Final = 2**63 - 1
# Extensions carry nothing that anyone uses, but the CPU of whoever reads them (a chunk of one byte may bring 250).
MAX_EXTENSION: Final = 256
MAX_EXTENSIONS: Final = 16 * 1024  # of one body, together
MAX_TRAILERS: Final = 16 * 1024  # bytes with the blank line at the end: as much as one header line may have
MAX_TRAILER_LINES: Final = 100  # as many as headers

_MAX_SIZE_LINE: Final = len("\r\n") + 16 + MAX_EXTENSION + len("\r\n")

_BARE_CR: Final = "chunk size line with a bare CR; lines end in CRLF"

_SIZE_LINE: Final = re.compile(rb"\r\n([0-9A-Fa-f]{1,16})\r\n").match
# RFC 9112 section 7.1.1. BWS is taken within an extension, not between the size and the first `;`.
_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION: Final = rb";[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
_EXTENDED_LINE: Final = re.compile(
    rb"\r\n([0-9A-Fa-f]{1,16})(%b(?:[ \t]*%b)*)\r\n" % (_EXTENSION, _EXTENSION)
).fullmatch


class BadChunk(ValueError):
    """A body that is not chunked by RFC 9112 section 7.1, or beyond a bound here. The connection must close."""


class ChunkDecoder:
    """Decodes one body. After `BadChunk` it is of no more use.

    `done` turns True with the last byte of the body; then `rest` is what followed it (the next request, or b"") and
    `trailers` the trailer lines without their CRLF, each one that `request_field` takes. They are *not* to be merged
    into the head: a trailer may well be called `host` or `content-length` (RFC 9110 section 6.5.1).
    """

    __slots__ = ("_extensions", "_held", "_in_trailers", "_left", "_read", "_trailer_size", "done", "rest", "trailers")

    def __init__(self) -> None:
        # what the caller reads
        self.done = False
        self.rest = b""
        self.trailers: list[bytes] = []
        # where in the body we are
        self._left = 0  # bytes of the current chunk's data that are yet to come
        self._held = b"\r\n"  # the beginning of an unfinished line
        self._in_trailers = False
        self._read = -2  # bytes before those in hand, for messages
        # towards the bounds
        self._extensions = 0
        self._trailer_size = 0

    def __repr__(self) -> str:
        state = "done" if self.done else "trailers" if self._in_trailers else f"{self._left} left of a chunk"
        return f"<ChunkDecoder {state}>"

    def feed(self, data: bytes) -> list[bytes]:
        """The payload in `data`, piece by piece as it was chunked. Raises `BadChunk`; not to be called once `done`."""
        if self.done:
            raise RuntimeError("the body has ended; what follows it is no part of it")
        pieces: list[bytes] = []
        left = self._left
        if left:
            if len(data) < left:
                self._left = left - len(data)
                self._read += len(data)
                return [data] if data else pieces
            pieces.append(data[:left])
        elif self._held:
            data = self._held + data
        if self._in_trailers:
            self._take_trailers(data, 0)
            return pieces
        position = left
        end = len(data)
        while True:  # 0.55 us a chunk
            match = _SIZE_LINE(data, position)
            if match is not None:
                size = int(match[1], 16)
                start = match.end()
            else:
                size, start = self._size_line(data, position)
                if size < 0:
                    return self._pause(data, position, 0, pieces)
            if size == 0:
                self._in_trailers = True
                self._take_trailers(data, start)
                return pieces
            if size > MAX_SIZE:
                raise self._bad(position + 2, "chunk size of 2**63 or more")
            position = start + size
            if position > end:
                if start < end:
                    pieces.append(data[start:])
                return self._pause(data, end, position - end, pieces)
            pieces.append(data[start:position])

    def _pause(self, data: bytes, position: int, left: int, pieces: list[bytes]) -> list[bytes]:
        self._left = left
        self._held = data[position:]
        self._read += position
        return pieces

    def _size_line(self, data: bytes, start: int) -> tuple[int, int]:
        """Size and end of a line that is not just a size; (-1, 0) while it is unfinished."""
        if not b"\r\n".startswith(data[start : start + 2]):
            raise self._bad(start, "chunk data is not followed by CRLF: it is longer than its size says")
        line_feed = data.find(b"\n", start + 2, start + _MAX_SIZE_LINE)
        if line_feed < 0:
            if len(data) - start >= _MAX_SIZE_LINE:
                raise self._bad(start + 2, f"chunk size line too long; at most {MAX_EXTENSION} bytes of extensions")
            if data.find(b"\r", start + 2, len(data) - 1) >= 0:  # the client may be waiting for our answer to it
                raise self._bad(start + 2, _BARE_CR)
            return -1, 0
        line = data[start : line_feed + 1]
        match = _EXTENDED_LINE(line)
        if match is None:
            raise self._bad(start + 2, _what_is_wrong(line[2:]))
        self._extensions += len(match[2])
        if len(match[2]) > MAX_EXTENSION or self._extensions > MAX_EXTENSIONS:
            bounds = f"at most {MAX_EXTENSION} bytes a chunk and {MAX_EXTENSIONS} a body"
            raise self._bad(start + 2, f"too many chunk extensions; {bounds}")
        return int(match[1], 16), line_feed + 1

    def _take_trailers(self, data: bytes, position: int) -> None:
        """The lines after the last chunk, up to the blank one (RFC 9112 section 7.1.2)."""
        while True:
            room = MAX_TRAILERS - self._trailer_size
            line_feed = data.find(b"\n", position, position + room)
            if line_feed < 0:
                if len(data) - position >= room:
                    raise self._bad(position, f"trailers too long; at most {MAX_TRAILERS} bytes")
                self._pause(data, position, 0, [])
                return
            line = data[position : line_feed + 1]
            if not line.endswith(b"\r\n"):
                raise self._bad(position, "trailer line ends in a bare LF; lines end in CRLF")
            if line == b"\r\n":
                self.done = True
                self.rest = data[line_feed + 1 :]
                self._held = b""
                return
            if len(self.trailers) == MAX_TRAILER_LINES:
                raise self._bad(position, f"too many trailers; at most {MAX_TRAILER_LINES} lines")
            try:
                split_line(line[:-2], "trailer line")
                request_field(line[:-2])  # whoever sends it on will read its value, and must not find it bad then
            except Refused as refused:
                raise self._bad(position, refused.failure.message) from None
            self.trailers.append(line[:-2])
            self._trailer_size += len(line)
            position = line_feed + 1

    def _bad(self, position: int, what: str) -> BadChunk:
        return BadChunk(f"bad chunked body at byte {self._read + position}: {what} (RFC 9112 section 7.1)")


def _what_is_wrong(line: bytes) -> str:
    """Why `line`, which ends in LF, is no size line."""
    if not line.endswith(b"\r\n"):
        return "chunk size line ends in a bare LF; lines end in CRLF"
    if b"\r" in line[:-2]:
        return _BARE_CR
    size = line[:-2].partition(b";")[0]
    if size.strip(b" \t") != size:
        return "blank beside a chunk size; a size stands alone or before `;`"
    if not re.fullmatch(rb"[0-9A-Fa-f]+", size):
        return "chunk size is no plain hex number, like 1a0"
    if len(size) > 16:
        return "chunk size of more than 16 digits"
    return 'chunk extension that is not `;name`, `;name=token` or `;name="text"`'
