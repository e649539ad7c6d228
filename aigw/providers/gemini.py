"""The Gemini dialect.

Source: Google AI for Developers, "Gemini API troubleshooting"; google.rpc.Code names; the google-genai SDK reads
`error.code`, `error.message` and `error.status`.
"""

from __future__ import annotations

from typing import Final

import orjson

from aigw.errors import Failure

NAME: Final = "gemini"

_STATUSES: Final = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(failure: Failure, request_id: str) -> bytes:
    """`{"error": {"code", "message", "status"}}`."""
    status = failure.kind.status
    return orjson.dumps(
        {
            "error": {
                "code": status,
                "message": failure.message,
                "status": _STATUSES.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL"),
            }
        }
    )


def error_event(failure: Failure, request_id: str, path: bytes) -> bytes:
    """The body as an event: the SDK raises on an `error` in any."""
    return b"data: %b\n\n" % error_body(failure, request_id)
