"""Frames the gateway's own answers: a status, header lines and a body that is whole. Never used for relayed answers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
JSON: Final = b"application/json"
TEXT: Final = b"text/plain; charset=utf-8"


def answer(
    status: int,
    body: bytes,
    *,
    now: float,
    content_type: bytes = JSON,
    lines: Iterable[bytes] = (),
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """One complete response. `now` is wall-clock time (the Date header); `lines` are header lines without CRLF.

    `head_only` is for HEAD: the length is said, the body is not sent (RFC 9110 section 9.3.2).
    """
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now)).encode()
    head = [
        b"HTTP/1.1 %d %s" % (status, _REASONS.get(status, b"")),
        b"date: " + date,
        b"content-type: " + content_type,
        b"content-length: %d" % len(body),
        *lines,
    ]
    if close:
        head.append(b"connection: close")
    return b"\r\n".join(head) + b"\r\n\r\n" + (b"" if head_only else body)
