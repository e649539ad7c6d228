"""TLS towards clients: a certificate and its key become a context, and each connection gets one of them of its own.

A context is chosen when a connection arrives, so that another certificate takes effect with the next connection, on the
listener that is there. The loop's own `ssl=` would keep the context and the handshake's time of when it began to
listen. What is exchanged over it, and when it must end, is the business of the protocol above.
"""

import asyncio
import calendar
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # its stubs know the loop alone

# Seconds that the loop would wait for the client's part of a close. The protocol above has its own deadlines, which a
# client that takes bytes slowly extends; the loop's default of 30 s would cut what it is still taking.
NEVER = 1e6

# How a connection ended that never came to be: a sentence for the log, or "" where nobody need be told.
Failed = Callable[[str], None]


class TlsError(ValueError):
    """Why a certificate and a key cannot be used: a message for people, and which of the two it is about."""

    def __init__(self, which: str, message: str) -> None:
        super().__init__(message)
        self.which = which  # "cert" or "key"


def server_context(cert: str, key: str) -> ssl.SSLContext:
    """For the PEM text of a certificate, with its chain, and of its private key. TLS 1.2 and up, HTTP/1.1.

    Raises: TlsError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if "-----BEGIN CERTIFICATE-----" not in cert:
        raise TlsError("cert", "holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
    if "PRIVATE KEY-----" not in key:
        raise TlsError("key", "holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
    if "ENCRYPTED" in key:
        raise TlsError("key", "is encrypted, and there is nobody to ask for its password; decrypt it")
    with _file(cert) as cert_path, _file(key) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, password="")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise TlsError("key", "does not belong to the certificate; renew both together") from None
            reason = (error.reason or "not readable").replace("_", " ").lower()
            raise TlsError("cert", f"and the key cannot be used ({reason})") from None
    return context


def validity(cert: str) -> tuple[float, float]:
    """Epoch seconds from and until which the first certificate in the PEM text is valid (RFC 5280 section 4.1.2.5)."""
    end = cert.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
    data = ssl.PEM_cert_to_DER_cert(cert[cert.index("-----BEGIN CERTIFICATE-----") : end])
    fields = list(_der(next(_der(next(_der(data))[1]))[1]))  # of the TBSCertificate
    if fields[0][0] == 0xA0:  # the version, which the oldest ones lack
        fields = fields[1:]
    begin, end_ = (_time(tag, value) for tag, value in _der(fields[3][1]))  # behind serial number, signature, issuer
    return begin, end_


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each element (X.690 section 8.1)."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year, from 1950
        text = ("19" if text[0] >= "5" else "20") + text
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


@contextmanager
def _file(text: str) -> Iterator[str]:
    """The path of a private file with this content: OpenSSL's context takes none but files."""
    if hasattr(os, "memfd_create"):  # no disk ever sees it
        descriptor = os.memfd_create("aigw", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:  # mode 0600
            file.write(text.encode())
            file.flush()
            yield file.name


class Wrapped(SSLProtocol):  # type: ignore[misc]
    """TLS between a socket and the protocol `inner`, which hears nothing before the handshake is done. `closed` is
    called once, with why the handshake failed ("": the connection was known to `inner`, or there is nothing to tell).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        inner: asyncio.Protocol,
        context: ssl.SSLContext,
        handshake: float,
        closed: Failed,
    ) -> None:
        super().__init__(
            loop, inner, context, None, server_side=True, ssl_handshake_timeout=handshake, ssl_shutdown_timeout=NEVER
        )
        self.socket: asyncio.Transport | None = None  # below
        self._closed = closed

    def connection_made(self, transport: Any) -> None:
        self.socket = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        reason = exc.reason or "" if isinstance(exc, ssl.SSLError) else ""
        self._closed(reason.replace("_", " ").lower())

    def abort(self) -> None:
        if self.socket is not None:
            self.socket.abort()


def let_go(transport: asyncio.Transport) -> None:
    """To be called for a transport that was closed, until its connection is lost: once all was handed to the socket,
    the client's own goodbye is not waited for, which would hold the connection as long as the client likes."""
    below = transport.get_extra_info("uvloop.sslproto")
    if isinstance(below, Wrapped) and below.socket is not None and not transport.get_write_buffer_size():
        below.socket.close()
