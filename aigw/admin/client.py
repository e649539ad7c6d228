"""The admin API's client for the command line: one call, blocking, over TCP or a unix socket.

It knows no route; what an answer means is the caller's business.
"""

import http.client
import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from aigw import tls

TIMEOUT = 60.0  # seconds; a reload of a large config on a busy machine
PREFIX = "/api/v1"
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


class CallFailed(Exception):
    """Lines for the person who called. `status` is the answer's, 0 without one."""

    def __init__(self, *lines: str, status: int = 0) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.status = status


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def trusting(file: str) -> ssl.SSLContext:
    """A context for `call` that believes the authorities in this PEM file, and no others. Raises: CallFailed."""
    try:
        return ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise CallFailed(f"{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None
    except OSError as error:
        raise CallFailed(f"{file} cannot be read: {error.strerror}") from None


def pinned(cert: str) -> ssl.SSLContext:
    """A context for `call` that believes this very certificate, whatever its names and whoever issued it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=tls.first(cert))
    return context


def call(
    where: str,
    token: str | None,
    method: str,
    path: str,
    body: Any = None,
    *,
    trust: ssl.SSLContext | None = None,
) -> Any:
    """What the admin API at `where` (http://host:port, https://host:port, host:port or unix:/path) answers, parsed.
    `trust` says whose certificate is believed, None: the system's authorities'.

    Raises: CallFailed.
    """
    connection = _connection(where, trust)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    data = None
    if body is not None:
        data = json.dumps(body)
        headers["content-type"] = "application/json"
    try:
        connection.request(method, PREFIX + path, data, headers)
        response = connection.getresponse()
        content = response.read()
    except ssl.SSLCertVerificationError as error:
        raise CallFailed(
            f"the certificate of the admin API at {where} is not accepted: {error.verify_message}",
            "--ca names the file of the authority that issued it; --admin, a host that it was issued for",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        remedy = "is aigw running? see --admin"
        if isinstance(error, ssl.SSLError):
            remedy = "does it speak HTTPS? if not, write http://"
        elif not isinstance(connection, http.client.HTTPSConnection) and not isinstance(error, ConnectionRefusedError):
            remedy = "is aigw running? does it speak HTTPS? see --admin"
        raise CallFailed(f"the admin API at {where} does not answer: {why}", remedy) from None
    finally:
        connection.close()
    try:
        answer = json.loads(content) if content else None
    except ValueError:
        raise CallFailed(f"what answers at {where} is no admin API of aigw (status {response.status})") from None
    if response.status < 400:
        return answer
    refusal = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(refusal, dict) or "details" not in refusal:  # an error in OpenAI's form has none: the proxy's
        raise CallFailed(f"what answers at {where} is no admin API of aigw (status {response.status})")
    details = [f"{entry['path']}: {entry['message']}".removeprefix(": ") for entry in refusal["details"]]
    raise CallFailed(*(details or [str(refusal["message"])]), status=response.status)


def _connection(where: str, trust: ssl.SSLContext | None) -> http.client.HTTPConnection:
    if where.startswith("unix:"):
        return _UnixConnection(where[5:])
    url = urlsplit(where if "://" in where else f"http://{where}")
    try:
        if url.scheme not in ("http", "https") or not url.hostname or url.path.rstrip("/") not in ("", PREFIX):
            raise ValueError
        port = url.port
    except ValueError:
        raise CallFailed(f"{where} is no address of an admin API; write http://127.0.0.1:8080 or unix:/path") from None
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    host = _ANYWHERE.get(host, host)
    if url.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=trust)
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
