"""The OpenAI dialect, which Azure OpenAI and most other providers speak too.

Source: OpenAI API reference, "Errors"; `openai` SDK, `_exceptions.py` reads `error.message`, `type`, `param`, `code`.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from aigw.errors import Failure

NAME: Final = "openai"

# Where OpenAI has a code of its own for the same thing, SDKs and their users look for that one.
_CODES: Final = {
    "missing_key": "invalid_api_key",
    "invalid_key": "invalid_api_key",
    "ambiguous_key": "invalid_api_key",
    "expired_key": "invalid_api_key",
    "disabled_key": "invalid_api_key",
}


# What the type says, where it is not what follows from the status.
_TYPES: Final = {"rate_limit_exceeded": "rate_limit_error", "insufficient_quota": "insufficient_quota"}


def error_body(failure: Failure, request_id: str) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`."""
    return orjson.dumps({"error": _error(failure)})


def error_event(failure: Failure, request_id: str, path: bytes) -> bytes:
    """The body as an event: the SDK raises on an `error` in any. Those of the Responses API are named, and say the
    same once more where its reference ("Streaming events", `error`) has it."""
    error = _error(failure)
    if not path.endswith(b"/responses"):
        return b"data: %b\n\n" % orjson.dumps({"error": error})
    data = {"type": "error", "code": error["code"], "message": error["message"], "param": error["param"]}
    return b"event: error\ndata: %b\n\n" % orjson.dumps({**data, "error": error})


# Events of the Responses API that come before anything was said; the item or part in them has only begun.
_BEGINNINGS: Final = frozenset(
    f"response.{kind}" for kind in ("created", "queued", "in_progress", "output_item.added", "content_part.added")
)
BEGINNINGS: Final = frozenset(kind.encode() for kind in _BEGINNINGS)
# With those that end it, which have the whole response once more.
_SILENT: Final = _BEGINNINGS | {"response.completed", "response.incomplete"}


def reported(document: dict[str, Any]) -> dict[str, Any] | None:
    """Chat: an `error` in place of `choices`. Responses: the event `error`, which is flat, or `response.failed`."""
    error = document.get("error")
    kind = document.get("type")
    if error is None and kind == "response.failed":
        response = document.get("response")
        error = (response.get("error") if type(response) is dict else None) or {"message": "the response failed"}
    if error is None and kind == "error":
        return document
    if error is None or type(error) is dict:
        return error
    return {"message": str(error)} if error else None


def is_content(document: dict[str, Any]) -> bool:
    """A chunk whose choices have said nothing but a role, or that has no choices, comes before content."""
    choices = document.get("choices")
    if choices is None:
        return document.get("type") not in _BEGINNINGS
    return says(document) or any(choice.get("finish_reason") is not None for choice in choices)


def says(document: dict[str, Any]) -> bool:
    """Not a chunk with nothing but a role or a reason to finish."""
    choices = document.get("choices")
    if type(choices) is not list:
        return choices is not None or document.get("type") not in _SILENT
    for choice in choices:
        if type(choice) is not dict or choice.get("text"):
            return True
        delta = choice.get("delta")
        if type(delta) is dict:
            for name, value in delta.items():
                if value and name != "role":
                    return True
    return False


def is_too_long(error: dict[str, Any]) -> bool:
    """The code that OpenAI gives a request with more tokens than the model takes."""
    return error.get("code") == "context_length_exceeded"


def _error(failure: Failure) -> dict[str, str | None]:
    kind = failure.kind
    return {
        "message": failure.message,
        "type": _TYPES.get(kind.code) or ("invalid_request_error" if kind.status < 500 else "server_error"),
        "param": failure.param,
        "code": _CODES.get(kind.code, kind.code),
    }
