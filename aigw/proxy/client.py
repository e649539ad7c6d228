"""One client socket: finds heads in what arrives, keeps pipelined bytes, and holds the state and the one deadline.

It knows how requests begin and how connections end; what a request means is the business of its `Exchange`, of which
there is at most one at a time. Requests that arrive while one is served wait in `buffer`, in order.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from aigw.errors import (
    BAD_REQUEST,
    DRAINING,
    HEAD_TOO_LARGE,
    INTERNAL,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    URI_TOO_LONG,
    Failure,
    Refused,
)
from aigw.policies.clients import plain
from aigw.proxy.admission import Memory
from aigw.proxy.connection import UNIX, Connection
from aigw.proxy.exchange import Exchange
from aigw.proxy.states import Body, Deadline, State

if TYPE_CHECKING:
    from aigw.gateway import Gateway

IDLE: Final = State.IDLE
READING: Final = State.READING
RELAYING: Final = State.RELAYING
REPLYING: Final = State.REPLYING
CLOSED: Final = State.CLOSED
UPLOADED: Final = Body.UPLOADED

KEEPALIVE: Final = Deadline.KEEPALIVE
FOREVER: Final = float("inf")

# Pipelined bytes kept while a request is served. The socket is never paused then: a paused one reports no hang-up.
MAX_PIPELINED: Final = 64 * 1024
# And this many requests: what is answered without an upstream is answered in one turn of the loop.
MAX_PIPELINED_REQUESTS: Final = 16
# Ends the first line of each of them; HTTP/1.0 is the last on its connection. A body may hold it, but hardly does.
_REQUEST_MARK: Final = b" HTTP/1.1\r\n"
# SO_LINGER with a time of zero: close() sends RST instead of FIN, so that nobody takes a break for an end.
_RESET: Final = struct.pack("ii", 1, 0)


class ClientConnection(Connection):
    """From accept to close. `transport` must not be written to once `state` is CLOSED."""

    __slots__ = (
        "_buffer_size",
        "_kept_requests",
        "_memory",
        "_scanned",
        "_sends_on",
        "_serving",
        "address",
        "address_bytes",
        "break_resets",
        "buffer",
        "close_wanted",
        "deadline",
        "exchange",
        "gateway",
        "is_proxy",
        "runs",
        "state",
        "total",
    )

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway.outbox)
        # wiring
        self.gateway = gateway
        self.address = ""
        self.address_bytes = b""  # for the log
        self.is_proxy = False  # one that is trusted to say whom a request comes from
        # state and time: loop-independent monotonic seconds
        self.state = IDLE
        self.runs = Deadline.KEEPALIVE
        self.deadline = 0.0
        self.total = FOREVER  # of the running exchange, across all its states
        # reading
        self.buffer = b""  # an incomplete head, or what came while a request was served
        self._scanned = 0  # how much of an incomplete head was searched for its end
        self._kept_requests = 0  # pipelined requests that begin in `buffer`
        self._memory = Memory()
        self._serving = False
        self.close_wanted = False
        self._sends_on = False  # though no more is read: to close then would take the answer from it
        # writing
        self.break_resets = False  # the response's end is the connection's end, so a break must not look like one
        self._buffer_size = 0  # at the last look of the sweep
        # the request that is served
        self.exchange: Exchange | None = None

    def __repr__(self) -> str:
        return f"<ClientConnection {self.address} {self.state.value}>"

    # the socket ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.identify(transport)
        now = monotonic()
        gateway = self.gateway
        self.is_proxy = gateway.proxies.trust(self.address)
        if not gateway.client_opened(self):
            failure = Failure(TOO_MANY_CONNECTIONS, "the gateway has as many connections as it may; try again later")
            self.refuse(failure, now)
            return
        self.run(Deadline.KEEPALIVE, now + gateway.snapshot.timeouts.keepalive)

    def identify(self, transport: asyncio.BaseTransport) -> None:
        """Learn who is at the other end of it."""
        name = transport.get_extra_info("peername")
        self.address = plain(name[0]) if isinstance(name, tuple) else UNIX
        self.address_bytes = self.address.encode()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            state = self.state
            if state is IDLE and not self.write_paused:
                self._request(data)
                if self.buffer and self.state is IDLE:
                    self._serve()
            elif state is READING:
                self._request(self.buffer + data)
                if self.buffer and self.state is IDLE:
                    self._serve()
            elif state is IDLE:
                self.keep(data)  # who does not take the answers it has gets no more of them
            # REPLYING and CLOSED: a client that was refused may still be sending; that is let go
        elif exchange.body is not UPLOADED:
            rest = self._upload(exchange, data)
            if rest:
                self.keep(rest)
                if self.state is IDLE:  # refused or answered with the last piece of its body
                    self._serve()
        else:
            self.keep(data)

    def _upload(self, exchange: Exchange, data: bytes) -> bytes:
        assert exchange.upload is not None
        try:
            return exchange.upload.feed(data)
        except Exception as error:
            self._crashed(error)
            return b""

    def eof_received(self) -> None:
        """FIN. Whatever was asked for is no longer wanted; the transport then closes itself."""
        exchange = self.exchange
        if exchange is None:
            self.close()
        else:
            self.cut()
            exchange.client_lost()

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = CLOSED
        self.gateway.client_closed(self)
        exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            exchange.client_lost()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._buffer_size = self.transport.get_write_buffer_size()
        self.gateway.slow.add(self)
        exchange = self.exchange
        if exchange is None or self.state is RELAYING:
            self.run(Deadline.CLIENT_WRITE, monotonic() + self.gateway.snapshot.timeouts.client_write)
        if exchange is not None and self.state is RELAYING:
            exchange.client_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.gateway.slow.discard(self)
        exchange = self.exchange
        if exchange is not None and self.state is RELAYING:
            exchange.client_resumed()
        elif self.state is IDLE:
            self.run(KEEPALIVE, monotonic() + self.gateway.snapshot.timeouts.keepalive)
            self._serve()

    # requests -----------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Serve what is in the buffer, as long as each request is done at once.

        A loop, not a recursion: a thousand pipelined requests must not be a thousand frames deep.
        """
        if self._serving:
            return
        self._serving = True
        while self.buffer and self.state is IDLE and not self.write_paused:
            self._request(self.buffer)
        self._serving = False

    def _request(self, data: bytes) -> None:
        """Begin the request at the start of `data`; what comes behind it goes to the buffer."""
        self.buffer = b""
        gateway = self.gateway
        end = data.find(b"\r\n\r\n", self._scanned)
        now = monotonic()
        if end <= 0:
            self._incomplete(data, now)
            return
        self._scanned = 0
        try:
            found = gateway.admissions.of(data[:end], now + gateway.wall_offset, self._memory)
            exchange = Exchange(self, gateway, found, now)
            self.state = READING
            self.exchange = exchange
            length = found[1]
            rest = data[end + 4 :]
            if length is not None and len(rest) > length:
                self.keep(rest[length:])
                rest = rest[:length]
            exchange.begin(length, rest)
        except Refused as refused:
            if self.state is IDLE and data[0] in (13, 10):
                self._skip_empty_lines(data)
            else:
                self.refuse(refused.failure, now)
        except Exception as error:
            self._crashed(error)

    def _skip_empty_lines(self, data: bytes) -> None:
        """An empty line before a request is let go (RFC 9112 section 2.2)."""
        data = data.lstrip(b"\r\n")
        if data:
            self._request(data)

    def _crashed(self, error: Exception) -> None:
        """A fault of ours: told to the operator, and to the client as a 500 if nothing was answered yet."""
        self.gateway.report(error, self)
        exchange = self.exchange
        if exchange is not None:
            exchange.fail(Failure(INTERNAL, "the gateway failed on this request; its log says how"))
        elif self.state is not CLOSED:
            self.close()

    def _incomplete(self, data: bytes, now: float) -> None:
        """Keep a head that has not ended; refuse it as soon as it cannot become a good one."""
        if self.state is IDLE and data[0] in (13, 10):
            self._skip_empty_lines(data)
            return
        snapshot = self.gateway.snapshot
        bounds = snapshot.head_bounds
        scanned = self._scanned
        if self.state is IDLE:
            self.state = READING
            self.run(Deadline.REQUEST, now + snapshot.timeouts.request)  # in total: no byte renews it
        self.buffer = data
        self._scanned = max(len(data) - 3, 0)
        new = data[scanned:]
        if len(data) > bounds.url + 64 and data.find(b"\n") < 0:  # first: it depends on how much one read brings
            self.refuse(Failure(URI_TOO_LONG, f"the request target has more than {bounds.url} bytes (bounds.url)"), now)
        elif len(data) > bounds.head:
            self.refuse(
                Failure(HEAD_TOO_LARGE, f"the request head has more than {bounds.head} bytes (bounds.head)"), now
            )
        elif new.count(b"\n") - new.startswith(b"\n") != new.count(b"\r\n"):
            self.refuse(Failure(BAD_REQUEST, "a line of the head ends in LF alone; end lines in CR LF"), now)

    def keep(self, data: bytes) -> None:
        """Keep pipelined bytes; more than the bounds is let go, and the connection ends after the running exchange."""
        if self.close_wanted:
            self._sends_on = True
            return
        if not self.buffer:
            self._kept_requests = 0
        # The end of the buffer may hold the beginning of a mark, but is too short for a whole one.
        self._kept_requests += (self.buffer[1 - len(_REQUEST_MARK) :] + data).count(_REQUEST_MARK)
        if len(self.buffer) + len(data) > MAX_PIPELINED or self._kept_requests > MAX_PIPELINED_REQUESTS:
            self.close_wanted = self._sends_on = True
            self.buffer = b""
        else:
            self.buffer += data

    def exchange_done(self, now: float) -> None:
        """The response is complete, and so is the request: next."""
        self.exchange = None
        self.total = FOREVER
        if self.close_wanted:
            if self._sends_on or self.buffer:
                self.linger(now)
            else:
                self.close()
            return
        self.state = IDLE
        if self.write_paused:
            self.run(Deadline.CLIENT_WRITE, now + self.gateway.snapshot.timeouts.client_write)
            return
        self.runs = KEEPALIVE
        self.deadline = now + self.gateway.snapshot.timeouts.keepalive
        if self.buffer:
            self._serve()

    def forget(self) -> None:
        """Another snapshot is served: let go of what was remembered of heads, and of whether this is a proxy."""
        self._memory.pattern = None
        self.is_proxy = self.gateway.proxies.trust(self.address)

    # endings ------------------------------------------------------------------------------------------------------

    def refuse(self, failure: Failure, now: float) -> None:
        """Answer what was no request at all, then let the rest of it go and close."""
        answer = self.gateway.refusal(failure, self)
        self.state = REPLYING
        self.write(answer, now)
        self.linger(now)

    def linger(self, now: float) -> None:
        """Half-close and let go what the client still sends, so that our answer is not lost to a reset."""
        self.state = REPLYING
        self.exchange = None
        self.buffer = b""
        self.total = FOREVER
        self.run(Deadline.LINGER, now + self.gateway.snapshot.timeouts.linger)
        self.flush()
        self.transport.write_eof()
        self.transport.resume_reading()

    def close(self) -> None:
        """Close after what was written is sent; `client_write` runs for a client that does not take it."""
        self.state = CLOSED
        self.exchange = None
        self.total = FOREVER
        self.run(Deadline.CLIENT_WRITE, monotonic() + self.gateway.snapshot.timeouts.client_write)
        self.flush()
        self._buffer_size = self.transport.get_write_buffer_size()
        if self._buffer_size:
            self.gateway.slow.add(self)
        self.transport.close()

    def cut(self) -> None:
        """End a response that cannot be completed, so that it looks like it: what is framed lacks its end, and what
        is not framed (it would end with the connection) is reset."""
        if self.break_resets:
            self.reset()
        else:
            self.close()

    def reset(self) -> None:
        """Close with RST: whoever reads can tell a break from an end. What is still buffered is dropped."""
        self.flush()
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.state = CLOSED
        self.exchange = None
        self.transport.abort()

    def shut_down(self) -> None:
        """The worker ends: what is under way is cut, visibly."""
        exchange = self.exchange
        try:
            if exchange is not None:
                exchange.fail(Failure(DRAINING, "the gateway is shutting down; try again"))
            if self.state is not CLOSED:
                self.close()
        except Exception as error:
            self.gateway.report(error, self)
            self.reset()

    # time ---------------------------------------------------------------------------------------------------------

    def run(self, deadline: Deadline, at: float) -> None:
        """Let one deadline run, in place of the one that ran before."""
        self.runs = deadline
        self.deadline = at

    def look(self, now: float) -> None:
        """A client that takes bytes, however slowly, makes progress. Called by the sweep while writing is paused."""
        size = self.transport.get_write_buffer_size()
        if size < self._buffer_size and self.runs is Deadline.CLIENT_WRITE:
            self.deadline = now + self.gateway.snapshot.timeouts.client_write
        self._buffer_size = size

    def expired(self, now: float) -> None:
        """The deadline that runs has passed."""
        exchange = self.exchange
        if exchange is not None:
            if now >= self.total:
                self.runs = Deadline.TOTAL
            exchange.expired(self.runs, now)
        elif self.state is READING:
            seconds = self.gateway.snapshot.timeouts.request
            failure = Failure(REQUEST_TIMEOUT, f"the request head did not arrive within {seconds:g} s; send it faster")
            self.refuse(failure, now)
        elif self.state is CLOSED or self.write_paused:
            self.reset()
        else:
            self.close()
