"""Which body follows a head, and where a response's body ends.

Requests are re-framed, so their bodies are decoded by `chunked.py`; responses are spliced, so their framing is only
*observed*: before a read is passed on it is known whether the message ends with it. httptools gives no offsets and
reads a surplus CRLF or message silently, so the read that completes a chunked body must end exactly with it.

Source: RFC 9112 section 6.
"""

from __future__ import annotations

from typing import Final

import httptools

from aigw.wire.head import ResponseHead

NO_BODY: Final = 0
LENGTH_BODY: Final = 1
CHUNKED_BODY: Final = 2
CLOSE_BODY: Final = 3  # ends when the upstream closes; a break and an end look alike only to those who do not look

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
    """Follows a chunked body without decoding it: `feed` says whether the message ends with these bytes.

    httptools calls back only for methods that exist, so with no `on_body` here it frames at 0.08 us a chunk. One
    observer serves all responses of a connection, one after the other.
    """

    __slots__ = ("_done", "_parser", "_surplus", "_tail")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._done = False
        self._surplus = False
        self._tail = b""

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
            self._tail = data[-4:] if len(data) > 4 else (self._tail + data)[-4:]
            return False
        # The last chunk is `0` CRLF, trailers CRLF each, CRLF: one blank line, and nothing after it. A CRLF more
        # would show as a second blank line, another message has begun, anything else does not end in one.
        end = self._tail + data if len(data) < 5 else data
        if self._surplus or not end.endswith(b"\r\n\r\n") or end.endswith(b"\n\r\n\r\n"):
            raise BadFraming("bytes after the end of a chunked body")
        return True

    def on_message_begin(self) -> None:
        self._surplus = self._done

    def on_message_complete(self) -> None:
        self._done = True


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
