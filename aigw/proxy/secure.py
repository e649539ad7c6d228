"""TLS between a client's socket and its protocol.

A context is chosen when a connection arrives, so that another certificate takes effect with the next connection, on the
listener that is there. The loop's own `ssl=` would keep the context, and the handshake's deadline, of when it began to
listen. What is exchanged over it, and when it must end, is the business of the protocol above.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Final

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # its stubs know the loop alone

# Seconds that the loop would wait for the client's part of a close. The protocol above has its own deadlines, which a
# client that takes bytes slowly extends; the loop's default of 30 s would cut what it is still taking.
NEVER: Final = 1e6
# Bytes that wait above the socket before the protocol is told to pause: what a socket without TLS has. The loop's
# default of 512 KiB, with as much below it, is a megabyte for each client that reads slowly.
WRITE_LIMIT: Final = 64 * 1024
# What a client is told whose handshake cannot be: the loop drops OpenSSL's own alert. A record of the fatal alert
# protocol_version or handshake_failure (RFC 8446 sections 5.1 and 6.2).
_ALERTS: Final = {
    "UNSUPPORTED_PROTOCOL": b"\x15\x03\x01\x00\x02\x02\x46",
    "NO_SHARED_CIPHER": b"\x15\x03\x03\x00\x02\x02\x28",
}

# Called with the socket's transport and why a handshake failed, in words, or "" where nobody need be told: the client
# left. Answers what shall still be sent to the client, in clear.
Failed = Callable[[asyncio.Transport, str], bytes]
HTTP_REQUEST: Final = "plain HTTP came"


class Wrapped(SSLProtocol):  # type: ignore[misc]
    """TLS between a socket and the protocol `inner`, which hears nothing before the handshake is done. `failed` is
    called at most once, if it never is."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner: asyncio.Protocol,
        context: ssl.SSLContext,
        handshake: float,
        failed: Failed,
    ) -> None:
        super().__init__(
            loop, inner, context, None, server_side=True, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=NEVER
        )
        self.socket: asyncio.Transport | None = None  # below, while there is one
        self._inner: asyncio.Protocol | None = inner  # likewise
        self._failed: Failed | None = failed  # until the handshake is done

    def connection_made(self, transport: Any) -> None:
        self.socket = transport
        super().connection_made(transport)

    def greeted(self) -> None:
        """`inner` says that the handshake is done."""
        self._failed = None

    def eof_received(self) -> None:
        """A FIN without TLS's own goodbye before it. The loop would say so only when all was sent, which a client that
        is gone, or reads no more, never lets happen."""
        if self._failed is None and self._inner is not None:
            self._inner.eof_received()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        failed, sock = self._failed, self.socket
        self._failed = self._inner = self.socket = None  # else they hold each other until the collector comes
        if failed is None or sock is None:
            return
        reason = exc.reason or "" if isinstance(exc, ssl.SSLError) else ""
        said = failed(sock, _in_words(exc, reason)) or _ALERTS.get(reason)
        if said:
            # the transport takes no more, but its socket is there until we return, and nothing was sent over it yet
            with contextlib.suppress(OSError):
                os.write(sock.get_extra_info("socket").fileno(), said)

    def abort(self) -> None:
        if self.socket is not None:
            self.socket.abort()


def _in_words(exc: Exception | None, reason: str) -> str:
    if isinstance(exc, ConnectionAbortedError):
        return "it took longer than timeouts.handshake"
    if reason == "HTTP_REQUEST":
        return HTTP_REQUEST
    return reason.replace("_", " ").lower()


def _below(transport: asyncio.Transport) -> asyncio.Transport | None:
    """The socket's transport below one with TLS."""
    wrapped = transport.get_extra_info("uvloop.sslproto")
    return wrapped.socket if isinstance(wrapped, Wrapped) else None


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has not taken yet; with TLS or without."""
    below = _below(transport)
    size = transport.get_write_buffer_size()
    return size if below is None else size + below.get_write_buffer_size()


def let_go(transport: asyncio.Transport) -> None:
    """To be called for a transport that was closed, until its connection is lost: once all was handed to the socket,
    the client's own goodbye is not waited for, which would hold the connection as long as the client likes."""
    below = _below(transport)
    if below is not None and not transport.get_write_buffer_size():
        below.close()
