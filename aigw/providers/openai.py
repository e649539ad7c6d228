"""The OpenAI dialect, which Azure OpenAI and most other providers speak too.

Source: OpenAI API reference, "Errors"; `openai` SDK, `_exceptions.py` reads `error.message`, `type`, `param`, `code`.
"""

from __future__ import annotations

from typing import Final

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


def _error(failure: Failure) -> dict[str, str | None]:
    kind = failure.kind
    return {
        "message": failure.message,
        "type": _TYPES.get(kind.code) or ("invalid_request_error" if kind.status < 500 else "server_error"),
        "param": failure.param,
        "code": _CODES.get(kind.code, kind.code),
    }
