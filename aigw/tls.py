"""Certificates of listeners: the PEM text of one and of its key becomes a context, or an error that says what to do.

It knows no socket and no loop; `proxy.secure` speaks TLS with a context from here.
"""

import calendar
import os
import ssl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


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
    context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: a client could have the handshake's cost again and again
    context.set_alpn_protocols(["http/1.1"])
    if _BEGIN not in cert:
        raise TlsError("cert", f"holds no certificate in PEM form ({_BEGIN})")
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
            which, what = ("key", "private key") if _is_readable(cert) else ("cert", "certificate")
            reason = (error.reason or "not readable").replace("_", " ").lower()
            raise TlsError(which, f"holds a {what} that cannot be used ({reason})") from None
    return context


def _is_readable(cert: str) -> bool:
    """Whether all of the text are certificates that OpenSSL can read."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=cert)
    except (ssl.SSLError, ValueError):
        return False
    return True


def first(cert: str) -> str:
    """The first certificate in the PEM text: that of the listener itself, before those of its issuers."""
    end = cert.index(_END) + len(_END)
    return cert[cert.index(_BEGIN) : end]


def validity(cert: str) -> tuple[float, float]:
    """Epoch seconds from and until which the first certificate in the PEM text is valid (RFC 5280 section 4.1.2.5)."""
    data = ssl.PEM_cert_to_DER_cert(first(cert))
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
