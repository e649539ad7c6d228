"""TLS between a socket and its connection, on either side: a protocol to the socket, a transport to the connection.

OpenSSL reads and writes memory, and only within a call: of what arrives all is decrypted at once, into a buffer that
all connections share, and handed on in one piece; what is written is encrypted at once and handed to the socket. So
nothing waits here; but where small reads are wanted (`bulk`), what is left of a record waits until the connection
reads on. Back-pressure is the socket's own, and its write buffer is the only one. An idle connection keeps what OpenSSL
must have, 15 KiB with everything, and no buffer of a large request or answer stays with it: with one each it was 45 KiB
after the handshake, and 600 to 870 after a megabyte.

A context is chosen when a connection arrives, so that another certificate takes effect with the next connection, on
the listener that is there. What is exchanged, and when it must end, is the business of the connection above.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from aigw.proxy.bulk import PIECE

RECORD: Final = 16 * 1024  # bytes that one record holds at most, and that OpenSSL takes at once (RFC 8446 section 5.1)
READ: Final = 256_000  # bytes read at once: what a socket without TLS reads
MOST_ENCRYPTED: Final = 16 * RECORD  # bytes of an answer that wait for their end before the socket gets them

# Of all connections of the worker: a call fills them and leaves them empty. OpenSSL takes from `_INCOMING` what the
# record at hand needs, and keeps the beginning of one itself. What is read is decrypted to where it was read, with at
# most one record more that began earlier.
_INCOMING: Final = ssl.MemoryBIO()
_OUTGOING: Final = ssl.MemoryBIO()
_PLAIN: Final = memoryview(bytearray(READ + 2 * RECORD))
_LARGE: Final = _PLAIN[:READ]
_SMALL: Final = _PLAIN[:PIECE]

HTTP_REQUEST: Final = "plain HTTP came"
FOREVER: Final = float("inf")


class Secure(asyncio.Transport, asyncio.BufferedProtocol):
    """TLS for the connection `inner`, which hears nothing before the handshake is done.

    `server_name` is the upstream's that is verified and asked for; None where we are the server. `greeted` is called
    once: with None when the handshake is done, or with why it failed; then it answers what shall be sent in clear.
    """

    __slots__ = (
        "_greeted",
        "_inner",
        "_is_over",
        "_is_paused",
        "_is_server",
        "_kept",
        "_room",
        "_socket",
        "_tls",
        "deadline",
    )

    def __init__(
        self,
        inner: asyncio.Protocol,
        context: ssl.SSLContext,
        server_name: str | None,
        greeted: Callable[[Secure, OSError | None], bytes],
        deadline: float = FOREVER,
    ) -> None:
        super().__init__()
        self._is_server = server_name is None
        self._tls = context.wrap_bio(_INCOMING, _OUTGOING, server_side=self._is_server, server_hostname=server_name)
        self._inner: asyncio.Protocol | None = inner  # until it is lost
        self._socket: asyncio.Transport = cast(asyncio.Transport, None)  # set before any other callback
        self._room = _LARGE  # where the next read goes
        self._is_paused = False
        self._kept = b""  # what was not decrypted yet when reading was paused
        self._is_over = False  # our goodbye was said, or nothing can be said any more: what still comes is let go
        self._greeted: Callable[[Secure, OSError | None], bytes] | None = greeted  # until the handshake is done
        self.deadline = deadline  # of the handshake, monotonic seconds, for whoever looks at it

    # the socket below ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = transport = cast(asyncio.Transport, transport)
        if self._is_over:  # it had to make room before it was there
            transport.abort()
        elif not self._is_server:
            self._greet()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        if not self._is_over:
            _INCOMING.write(_PLAIN[:nbytes])
            if self._greeted is None or self._greet():
                self._receive()

    def _greet(self) -> bool:
        """Go on with the handshake; whether it is done, and more came behind it."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError as error:
            self._fail(error)
            return False
        self._kept = _INCOMING.read()
        self._send()
        greeted, self._greeted = self._greeted, None
        assert greeted is not None
        assert self._inner is not None
        greeted(self, None)
        self._inner.connection_made(self)
        return self._take_up()

    def _fail(self, error: OSError) -> None:
        """The handshake: tell why, and the other side with the alert that OpenSSL has for it."""
        greeted, self._greeted = self._greeted, None
        assert greeted is not None
        self._is_over = True
        self._inner = None
        _INCOMING.read()
        alert = _OUTGOING.read()
        said = greeted(self, error) or alert
        if said and not self._socket.is_closing():
            self._socket.write(said)
            self._socket.close()
            if not self._socket.get_write_buffer_size():
                return
        self.abort()

    def _receive(self) -> None:
        """Decrypt what came and hand it on: all at once, or in small pieces for as long as the connection reads."""
        while self._hand_on() and not self._is_paused and self._take_up():
            pass

    def _take_up(self) -> bool:
        """Whether something is left that was not handed on."""
        if self._is_over or not (self._kept or self._tls.pending()):
            return False
        _INCOMING.write(self._kept)
        self._kept = b""
        return True

    def _hand_on(self) -> bool:
        """Whether there may be more."""
        read: Any = self._tls.read
        plain = _PLAIN if self._room is _LARGE else _SMALL
        filled = 0
        is_end = is_broken = False
        try:
            while count := read(0, plain[filled:] if filled else plain):
                filled += count
                # no more is there, which OpenSSL would say by an exception; or no more is wanted
                if not _INCOMING.pending or plain is _SMALL:
                    break
            else:
                is_end = True
        except ssl.SSLWantReadError:  # a record has begun
            pass
        except ssl.SSLError:
            is_broken = True
        if _INCOMING.pending:
            self._kept = _INCOMING.read()
        if _OUTGOING.pending:  # what TLS itself has to say
            self._send()
        inner = self._inner
        assert inner is not None
        if filled:
            inner.data_received(bytes(plain[:filled]))
        if is_broken:
            self._lose()
        elif is_end and not self._is_over and not self._socket.is_closing():
            inner.eof_received()
            self.close()
        return plain is _SMALL

    def _go_on(self) -> None:
        """The connection reads again: what was left comes before what arrives."""
        if not self._is_paused:
            if self._take_up():
                self._receive()
            if not self._is_paused:
                self._socket.resume_reading()

    def _send(self) -> None:
        if _OUTGOING.pending:
            self._socket.write(_OUTGOING.read())

    def eof_received(self) -> None:
        """A FIN without TLS's goodbye before it, which anyone on the way can forge: for a client that is gone it does
        not matter, but it is no end of an upstream's answer (RFC 9112 section 9.8). The socket closes itself."""
        if self._greeted is not None:
            self._fail(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        elif not self._is_server:
            self._lose()
        elif self._inner is not None:
            self._inner.eof_received()

    def _lose(self) -> None:
        self.connection_lost(None)
        self._socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        inner, self._inner = self._inner, None  # else they hold each other until the collector comes
        if self._greeted is not None:
            self._fail(exc if isinstance(exc, OSError) else ConnectionAbortedError())
        elif inner is not None:
            inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._greeted is None and self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._greeted is None and self._inner is not None:
            self._inner.resume_writing()

    # the connection above -----------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._is_over or not data:
            return
        encrypt = self._tls.write
        if len(data) <= RECORD:
            encrypt(data)
        else:
            view = memoryview(data)
            for begin in range(0, len(data), RECORD):
                if _OUTGOING.pending > MOST_ENCRYPTED:
                    self._send()
                encrypt(view[begin : begin + RECORD])
        self._socket.write(_OUTGOING.read())

    def give_up(self) -> None:
        """The handshake has taken too long; or it never began, since the socket was lost before."""
        self._fail(TimeoutError() if self._socket is not None else ConnectionAbortedError())

    def _say_goodbye(self) -> None:
        """Without it, what was sent would not look whole (RFC 8446 section 6.1)."""
        if not self._is_over and self._greeted is None:
            with contextlib.suppress(ssl.SSLError):  # the other side's is not waited for
                self._tls.unwrap()
            self._send()
        self._is_over = True

    def write_eof(self) -> None:
        self._say_goodbye()
        self._socket.write_eof()

    def close(self) -> None:
        if not self._socket.is_closing():
            self._say_goodbye()
            self._socket.close()

    def abort(self) -> None:
        self._is_over = True
        if self._socket is not None:
            self._socket.abort()
        elif self._greeted is not None:
            self.give_up()

    def is_closing(self) -> bool:
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        self._is_paused = True
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if not self._is_over and (self._kept or self._tls.pending()):
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            self._socket.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """One with a buffer of its own gets what comes in pieces as small as that."""
        self._inner = cast(asyncio.Protocol, protocol)
        self._room = _SMALL if isinstance(protocol, asyncio.BufferedProtocol) else _LARGE

    def get_write_buffer_size(self) -> int:
        return self._socket.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._socket.get_extra_info(name, default)


def in_words(error: OSError) -> str:
    """Why a client's handshake failed, for the operator; "" where nobody need be told: the client left."""
    if isinstance(error, TimeoutError):
        return "it took longer than timeouts.handshake"
    reason = error.reason or "" if isinstance(error, ssl.SSLError) else ""
    return HTTP_REQUEST if reason == "HTTP_REQUEST" else reason.replace("_", " ").lower()
