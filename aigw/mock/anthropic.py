"""Anthropic's dialect: messages, counting tokens, models, errors."""

from typing import Any

import orjson

from aigw.mock.content import Text, compose, json_for, prompt_tokens
from aigw.mock.openai import named
from aigw.mock.values import MODELS, Answer, Call, Plain, Refused, Stream

ERROR_STATUS = 529

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error(status: int, message: str, mark: str) -> bytes:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": f"req_mock_{mark}"}
    return orjson.dumps(body)


def lines(mark: str) -> bytes:
    return b"request-id: req_mock_%b\r\n" % mark.encode()


def messages(call: Call) -> Answer:
    """`POST /v1/messages`."""
    document = call.document
    if not isinstance(document.get("messages"), list) or not document["messages"]:
        raise Refused(400, "messages: expected a list with at least one message")
    limit = document.get("max_tokens")
    if not isinstance(limit, int) or limit < 1:
        raise Refused(400, "max_tokens: expected a positive number; this API requires it")
    tool = _forced_tool(document)
    if tool is not None:
        text = compose(0, limit, json_for(tool.get("input_schema") or {"type": "object"}))
    else:
        text = compose(call.settings.tokens, limit, _wanted_json(document))
    if call.streamed:
        return _stream(call, text, tool)
    body = _message(call, [_block(call, text, tool)], _stop_reason(text, tool), text.count)
    return Plain(orjson.dumps(body), tokens=text.count)


def _forced_tool(document: dict[str, Any]) -> dict[str, Any] | None:
    choice = document.get("tool_choice")
    tools = document.get("tools")
    if not isinstance(tools, list) or not isinstance(choice, dict) or choice.get("type") not in ("any", "tool"):
        return None
    return named(tools, choice.get("name"))


def _wanted_json(document: dict[str, Any]) -> str | None:
    config = document.get("output_config")
    wanted = config.get("format") if isinstance(config, dict) else document.get("output_format")
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return None
    return json_for(wanted.get("schema"))


def _stop_reason(text: Text, tool: dict[str, Any] | None) -> str:
    return "max_tokens" if text.cut else "end_turn" if tool is None else "tool_use"


def _block(call: Call, text: Text, tool: dict[str, Any] | None) -> dict[str, Any]:
    if tool is None:
        return {"type": "text", "text": text.whole()}
    # Arguments that the client's limit cut short are no JSON any more; the block then has none.
    arguments = {} if text.cut else orjson.loads(text.whole())
    return {"type": "tool_use", "id": f"toolu_mock_{call.mark}", "name": tool["name"], "input": arguments}


def _message(call: Call, content: list[Any], stop_reason: str | None, output: int) -> dict[str, Any]:
    return {
        "id": f"msg_mock_{call.mark}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt_tokens(call.document),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output,
            "service_tier": "standard",
        },
    }


def _stream(call: Call, text: Text, tool: dict[str, Any] | None) -> Stream:
    if tool is None:
        block: dict[str, Any] = {"type": "text", "text": ""}
        kind, member = "text_delta", "text"
    else:
        block = {"type": "tool_use", "id": f"toolu_mock_{call.mark}", "name": tool["name"], "input": {}}
        kind, member = "input_json_delta", "partial_json"

    def delta(index: int) -> bytes:
        return _event("content_block_delta", {"index": 0, "delta": {"type": kind, member: text.piece(index)}})

    reason = {"stop_reason": _stop_reason(text, tool), "stop_sequence": None}
    return Stream(
        first=(
            _event("message_start", {"message": _message(call, [], None, 1)}),
            _event("content_block_start", {"index": 0, "content_block": block}),
            _event("ping", {}),
        ),
        count=text.count,
        delta=delta,
        last=(
            _event("content_block_stop", {"index": 0}),
            _event("message_delta", {"delta": reason, "usage": {"output_tokens": text.count}}),
            _event("message_stop", {}),
        ),
        error=(
            b"event: error\ndata: %b\n\n" % error(ERROR_STATUS, "the mock was asked to fail: error-event", call.mark),
        ),
        malformed=b'event: content_block_delta\ndata: {"type": "content_block_delta", "index": \n\n',
    )


def _event(kind: str, body: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind} | body))


def count_tokens(call: Call) -> Answer:
    """`POST /v1/messages/count_tokens`."""
    return Plain(orjson.dumps({"input_tokens": prompt_tokens(call.document)}))


def model(name: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active",
    }


def models() -> Plain:
    data = [model(name) for name in MODELS]
    return Plain(orjson.dumps({"data": data, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}))
