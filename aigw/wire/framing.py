"""Which body follows a head, and where a response's body ends.

Requests are re-framed, so their bodies are decoded by `chunked.py`; responses are spliced, so their framing is only
*observed*: before a read is passed on it is known whether the message ends with it. httptools gives no offsets and
reads a surplus CRLF or message silently, so the read that completes a chunked body must end exactly with it.

Source: RFC 9112 section 6.
"""

from __future__ import annotations

import contextlib
from typing import Final

import httptools

from aigw.wire.head import ResponseHead

NO_BODY: Final = 0
LENGTH_BODY: Final = 1
CHUNKED_BODY: Final = 2
CLOSE_BODY: Final = 3  # ends when the upstream closes; a break and an end look alike only to those who do not look

LF: Final = 0x0A
_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def body_of(head: ResponseHead, *, to_head: bool) -> int:
    """The body that follows a final response head (RFC 9112 section 6.3, items 1, 2, 4, 6 and 8). `to_head`: it
    answers a HEAD request."""
    if head.length > 0 and not to_head and head.status != 304:
        return LENGTH_BODY
    if to_head or head.status in (204, 304):
        return NO_BODY
    if head.chunked:
        return CHUNKED_BODY
    return NO_BODY if head.length == 0 else CLOSE_BODY


class BadFraming(ValueError):
    """An upstream's body that is not framed as its head said."""


class ChunkObserver:
    """Follows a chunked body as it passes: `feed` says whether the message ends with these bytes.

    httptools calls back only for methods that exist, so with no `on_body` here it frames at 0.08 us a chunk. One
    observer serves all responses of a connection, one after the other.
    """

    __slots__ = ("_done", "_parser", "_surplus", "_tail")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._done = False
        self._surplus = False
        self._tail = b""  # the last bytes of the body as it came

    def begin(self) -> None:
        """Expect a new body."""
        self._done = False
        self._tail = b""
        try:
            self._parser.feed_data(_CHUNKED_HEAD)
        except httptools.HttpParserError:  # a trailer told it that the connection closes
            self._parser = httptools.HttpResponseParser(self)
            self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, data: bytes) -> bool:
        """True where the body ends exactly with `data`. Raises `BadFraming`, also for a byte beyond the end."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise BadFraming(f"bad chunked body: {error}") from None
        if not self._done:
            # A slice costs more than to keep a short read whole.
            self._tail = data if 8 <= len(data) <= 1024 else (self._tail + data[-8:])[-8:]
            return False
        # The last chunk is `0` CRLF, trailers CRLF each, CRLF: one blank line, and nothing after it. A CRLF more
        # would show as a second blank line, another message has begun, anything else does not end in one.
        end = self._tail + data if len(data) < 5 else data
        if self._surplus or not end.endswith(b"\r\n\r\n") or end.endswith(b"\n\r\n\r\n"):
            raise BadFraming("bytes after the end of a chunked body")
        return True

    def between_events(self) -> bool:
        """Whether what passed so far ends with an event of a stream and with a chunk, so that another may follow.

        To be asked once, when nothing will follow. An empty line whose bytes stand in different chunks is taken for
        none.
        """
        if self._done or not self._tail.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n", b"\r\r\r\n")):
            return False
        with contextlib.suppress(httptools.HttpParserError):
            self._parser.feed_data(b"0\r\n\r\n")  # between chunks, and only there, it ends the message
        return self._done

    def on_message_begin(self) -> None:
        self._surplus = self._done

    def on_message_complete(self) -> None:
        self._done = True


class PayloadObserver(ChunkObserver):
    """The same, and it shows the payload: what `feed` brought of it stands in `payload`, for the caller to take away.

    Of a stream of lines that is looked through for a `mark`, only those pieces are shown that hold it or do not end a
    line (0.1 us a piece; what is shown costs its reader more). With b"", the mark of each new body, all are.
    """

    __slots__ = ("mark", "payload")

    def __init__(self) -> None:
        self.mark = b""
        self.payload: list[bytes] = []
        super().__init__()

    def begin(self) -> None:
        self.mark = b""
        self.payload.clear()
        super().begin()

    def on_body(self, piece: bytes) -> None:
        # `in` takes twice as long as `find`, since it tries its operand as a number first.
        if piece.find(self.mark) >= 0 or piece[-1] != LF:  # httptools never brings an empty one
            self.payload.append(piece)

    def taken(self) -> bytes:
        """What there is to be shown, once."""
        payload = b"".join(self.payload)
        self.payload.clear()
        return payload


class LengthDecoder:
    """A request body of a known length, read with the interface of `chunked.ChunkDecoder`."""

    __slots__ = ("done", "missing", "rest", "trailers")

    def __init__(self, length: int) -> None:
        self.missing = length
        self.done = False
        self.rest = b""
        self.trailers: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The payload in `data`; what lies behind the body's end stands in `rest` once `done`."""
        if len(data) >= self.missing:
            data, self.rest = data[: self.missing], data[self.missing :]
            self.done = True
        self.missing -= len(data)
        return [data] if data else []
