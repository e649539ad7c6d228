"""The Anthropic dialect.

Source: Anthropic API reference, "Errors": the type follows from the status, and `request_id` stands in the body too.
"""

from __future__ import annotations

from typing import Final

import orjson

from aigw.errors import Failure

NAME: Final = "anthropic"

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(failure: Failure, request_id: str) -> bytes:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""
    status = failure.kind.status
    return orjson.dumps(
        {
            "type": "error",
            "error": {
                "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error"),
                "message": failure.message,
            },
            "request_id": request_id,
        }
    )


def error_event(failure: Failure, request_id: str, path: bytes) -> bytes:
    """Source: "Streaming messages", error events."""
    return b"event: error\ndata: %b\n\n" % error_body(failure, request_id)
