"""The Gemini dialect.

Source: Google AI for Developers, "Gemini API troubleshooting"; google.rpc.Code names; the google-genai SDK reads
`error.code`, `error.message` and `error.status`.
"""

from __future__ import annotations

from typing import Any, Final

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
    529: "UNAVAILABLE",
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


# No event has a name.
BEGINNINGS: Final = frozenset[bytes]()


def reported(document: dict[str, Any]) -> dict[str, Any] | None:
    """An `error` in place of `candidates`."""
    error = document.get("error")
    return error if error is None or type(error) is dict else {"message": str(error)}


def is_content(document: dict[str, Any]) -> bool:
    """Anything but an answer that only counts: parts that say something, a reason to finish, a refused prompt."""
    feedback = document.get("promptFeedback")
    if type(feedback) is dict and feedback.get("blockReason"):
        return True
    candidates = document.get("candidates")
    if type(candidates) is not list:
        return candidates is not None
    return says(document) or any(one.get("finishReason") is not None for one in candidates)


def says(document: dict[str, Any]) -> bool:
    """Parts that say something."""
    candidates = document.get("candidates")
    if type(candidates) is not list:
        return candidates is not None
    return any(type(one) is not dict or _says(one) for one in candidates)


def _says(candidate: dict[str, Any]) -> bool:
    content = candidate.get("content")
    parts = content.get("parts") if type(content) is dict else None
    return type(parts) is list and any(type(part) is not dict or any(part.values()) for part in parts)


def is_too_long(error: dict[str, Any]) -> bool:
    """There is no code for it: "The input token count (N) exceeds the maximum number of tokens allowed (M)."."""
    return "exceeds the maximum number of tokens allowed" in str(error.get("message"))
