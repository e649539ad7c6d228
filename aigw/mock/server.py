"""The mock's HTTP/1.1 server: one protocol object per connection, no Task, a timer only where an answer waits.

The mock is the upstream of benchmarks, so it must cost less than what it measures. An answer follows from the request
alone; the whole bytes of small ones are therefore remembered, and a request seen before costs the C parser, one look-up
and one write. Everything else (pauses, failures, long streams) is a script performed step by step, which stops while
the client does not read.

A client that closes its side has hung up: what is still running stops.
"""

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator
from email.utils import formatdate
from itertools import repeat
from typing import cast

import httptools

from aigw.mock.memory import STATUS, Key, memory_of
from aigw.mock.router import Request, answer, reads_body, refusal
from aigw.mock.script import End, Step, Wire, script
from aigw.mock.settings import Settings
from aigw.mock.values import Answer, Plain

_MAX_BODY = 64 * 1024 * 1024
"""Bytes of a body that is read; above it 413. Twice what the gateway collects."""

_SMALL_BODY = 64 * 1024
"""Up to here a body is kept without asking whether its path reads it."""

_MAX_QUEUED = 16
"""Pipelined requests behind a running answer, after which the socket is not read until one is done."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 seconds: closing sends RST and drops what is buffered."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Date:
    """The `date` line (RFC 9110 section 6.6.1), made once a second."""

    __slots__ = ("_line", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def __call__(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode()
        return self._line


_date = _Date()


class _Waiting:
    """A request that is complete. error: it could not be read, and this is the answer; keep: the connection goes on."""

    __slots__ = ("error", "http10", "keep", "key")

    def __init__(self, key: Key, *, keep: bool, http10: bool, error: Plain | None = None) -> None:
        self.key = key
        self.keep = keep
        self.http10 = http10
        self.error = error


class MockConnection(asyncio.Protocol):
    """One client's connection, for `loop.create_server` or `loop.create_unix_server`.

    settings: what answers are like unless a request's `x-mock` says otherwise; members: the set this connection is in
    while it is open.
    """

    __slots__ = (
        "_body",
        "_closing",
        "_continue",
        "_due",
        "_expects",
        "_full",
        "_has_connection",
        "_hint",
        "_keep",
        "_known",
        "_loop",
        "_members",
        "_memory",
        "_parser",
        "_paused",
        "_queue",
        "_reads",
        "_script",
        "_settings",
        "_size",
        "_target",
        "_timer",
        "_transport",
        "_words",
    )

    def __init__(
        self, settings: Settings, loop: asyncio.AbstractEventLoop, members: "set[MockConnection] | None" = None
    ) -> None:
        # Wiring
        self._settings = settings
        self._loop = loop
        self._members = members
        self._memory = memory_of(settings)
        self._known = self._memory.known
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)

        # Per connection
        self._queue: deque[_Waiting] = deque()
        self._paused = False  # the client does not read
        self._full = False  # we do not read
        self._closing = False  # nothing more will be answered
        self._continue = False  # a 100 is due when the running answer is done

        # The running answer
        self._script: Iterator[Step] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._keep = True

        # The request being read
        self._target = b""
        self._hint = ""
        self._words = b""
        self._expects = False
        self._has_connection = False
        self._body: list[bytes] = []
        self._size = 0
        self._reads = True

    def __repr__(self) -> str:
        if self._transport is None or self._closing:
            state = "closed"
        elif self._script is not None:
            state = "answering"
        else:
            state = "idle"
        return f"<MockConnection {state} {len(self._queue)} queued>"

    # The socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, but do not inherit from it
        if self._members is not None:
            self._members.add(self)
        if self._settings.failure == "refuse":
            self._close()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # on_message_complete has refused it
        except httptools.HttpParserCallbackError:
            raise  # our own mistake: the loop reports it and drops the connection
        except httptools.HttpParserError as bad:
            self._refuse(400, f"this is no HTTP/1.1 request: {bad}")

    def eof_received(self) -> None:
        """A client that closes its side has hung up; the transport closes after what is already written."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._script = None
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._members is not None:
            self._members.discard(self)
        self._transport = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._timer is None:
            self._resume()

    def close(self) -> None:
        """Close now, whatever is running."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    # The parser

    def on_message_begin(self) -> None:
        self._target = b""
        self._hint = ""
        self._words = b""
        self._expects = False
        self._has_connection = False
        self._body = []
        self._size = 0
        self._reads = True

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-mock":
            self._words = self._words + b"," + value if self._words else value
        elif name == b"anthropic-version":
            self._hint = "anthropic"
        elif name == b"x-goog-api-key" or name == b"x-goog-api-client":
            self._hint = "gemini"
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"connection":
            self._has_connection = True

    def on_headers_complete(self) -> None:
        if self._expects and not self._closing and self._parser.get_http_version() == "1.1":
            if self._free():
                self._write(_CONTINUE)
            else:
                self._continue = True

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > _SMALL_BODY and self._reads:
            self._reads = self._size <= _MAX_BODY and reads_body(self._target)
            if not self._reads:
                self._body = []
        if self._reads:
            self._body.append(part)

    def on_message_complete(self) -> None:
        if self._closing:
            return
        parser = self._parser
        if parser.should_upgrade():
            self._refuse(400, "the mock speaks HTTP/1.1 only: no CONNECT, no Upgrade")
            return
        body = self._body
        key = (
            parser.get_method(),
            self._target,
            self._hint,
            self._words,
            body[0] if len(body) == 1 else b"".join(body),
        )
        # Without a `connection` line a kept connection is HTTP/1.1: the remembered form.
        keep = parser.should_keep_alive()
        if keep and not self._has_connection and self._free():
            known = self._known.get(key)
            if known is not None:
                self._write(b"%b%b%b" % (STATUS, _date(), known))
                return
        waiting = _Waiting(key, keep=keep, http10=parser.get_http_version() == "1.0")
        if self._size > _MAX_BODY and reads_body(self._target):
            waiting.error = refusal(413, f"the body is {self._size} bytes, the mock reads {_MAX_BODY}", self._hint)
        self._enqueue(waiting)

    # Answers

    def _free(self) -> bool:
        """Whether an answer may leave at once: nothing is before it, and the client reads."""
        return self._script is None and not self._queue and not self._paused

    def _refuse(self, status: int, message: str) -> None:
        """Answer in turn, then close: what follows on the connection cannot be told from a request."""
        key = (b"GET", self._target, self._hint, b"", b"")
        self._enqueue(_Waiting(key, keep=False, http10=False, error=refusal(status, message, self._hint)))

    def _enqueue(self, waiting: _Waiting) -> None:
        self._queue.append(waiting)
        if self._script is None and not self._paused:
            self._drain()
        elif len(self._queue) >= _MAX_QUEUED and not self._full and self._transport is not None:
            self._full = True
            self._transport.pause_reading()

    def _drain(self) -> None:
        """Answer what is queued until an answer has to wait, or the client does not read."""
        while self._queue and self._script is None and not self._closing and not self._paused:
            self._begin(self._queue.popleft())
        if self._closing or not self._free():
            return
        if self._continue:
            self._continue = False
            self._write(_CONTINUE)
        if self._full and self._transport is not None:
            self._full = False
            self._transport.resume_reading()

    def _begin(self, waiting: _Waiting) -> None:
        made: Answer
        if waiting.error is None:
            made, settings, lines = answer(Request(*waiting.key), self._settings)
        else:
            made, settings, lines = waiting.error, Settings(), b""
        self._keep = waiting.keep and (isinstance(made, Plain) or not waiting.http10)
        if self._keep and not waiting.http10:
            whole = self._memory.offer(waiting.key, made, settings, lines)
            if whole is not None:
                self._write(b"%b%b%b" % (STATUS, _date(), whole))
                return
        lines = _date() + lines
        if not self._keep:
            lines += b"connection: close\r\n"
        elif waiting.http10:
            lines += b"connection: keep-alive\r\n"
        wire = Wire(lines, chunked=not waiting.http10, bodiless=waiting.key[0] == b"HEAD")
        self._script = script(made, settings, wire)
        self._due = self._loop.time()
        self._perform()

    def _perform(self) -> None:
        """Take steps of the running script until it waits, is done or the client does not read."""
        assert self._script is not None
        for step in self._script:
            if isinstance(step, bytes):
                self._write(step)
                if self._paused:
                    return
            elif isinstance(step, End):
                self._end(step)
                return
            else:
                self._due += step
                if self._due > self._loop.time():
                    self._timer = self._loop.call_at(self._due, self._on_timer)
                    return
        self._script = None
        if not self._keep:
            self._close()

    def _on_timer(self) -> None:
        self._timer = None
        if not self._paused:
            self._resume()

    def _resume(self) -> None:
        if self._script is not None:
            self._perform()
        self._drain()

    def _end(self, end: End) -> None:
        if end is End.HANG:
            self._script = repeat(End.HANG)
            return
        self._script = None
        if end is End.RESET:
            self._reset()
        self._close()

    def _reset(self) -> None:
        assert self._transport is not None
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _close(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)
