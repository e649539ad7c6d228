"""The Anthropic dialect.

Source: Anthropic API reference, "Errors": the type follows from the status, and `request_id` stands in the body too.
"""

from __future__ import annotations

from typing import Any, Final

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
    529: "overloaded_error",
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


# Blocks that are empty when they begin; those of tools that ran at Anthropic's have all they will ever have.
_EMPTY_BLOCKS: Final = frozenset({"text", "thinking", "tool_use", "server_tool_use"})


BEGINNINGS: Final = frozenset({b"message_start", b"ping"})
_ENDINGS: Final = frozenset({"content_block_stop", "message_delta", "message_stop"})  # of a block, or all


def reported(document: dict[str, Any]) -> dict[str, Any] | None:
    """The event `error`, whose `error` is that of an error's body."""
    if document.get("type") != "error":
        return None
    error = document.get("error")
    return error if type(error) is dict else {"message": str(error)}


def is_content(document: dict[str, Any]) -> bool:
    """`message_start`, `ping` and the beginning of an empty block come before content."""
    kind = document.get("type")
    if kind == "content_block_start":
        block = document.get("content_block")
        return type(block) is not dict or block.get("type") not in _EMPTY_BLOCKS
    return kind not in ("message_start", "ping")


def says(document: dict[str, Any]) -> bool:
    """Not the end of a block or of the message; `message_delta` has its reason and the usage."""
    return document.get("type") not in _ENDINGS and is_content(document)


def is_too_long(error: dict[str, Any]) -> bool:
    """There is no code for it: "prompt is too long: 200001 tokens > 200000 maximum"."""
    return str(error.get("message")).startswith("prompt is too long")
