"""OpenAI's Responses API: `POST /v1/responses`. Nothing is stored, so there is nothing to retrieve."""

from itertools import count
from typing import Any

import orjson

from aigw.mock.content import Text, compose, json_for, prompt_tokens
from aigw.mock.openai import named
from aigw.mock.values import CREATED, Answer, Call, Plain, Refused, Stream


def responses(call: Call) -> Answer:
    document = call.document
    if not isinstance(document.get("input"), str | list):
        raise Refused(400, "input: expected a text or a list of items")
    limit = document.get("max_output_tokens")
    tool = _forced_tool(document)
    if tool is not None:
        text = compose(0, limit, json_for(tool.get("parameters") or {"type": "object"}))
    else:
        text = compose(call.settings.tokens, limit, _wanted_json(document))
    if call.streamed:
        return _stream(call, text, tool)
    status = "incomplete" if text.cut else "completed"
    return Plain(orjson.dumps(_response(call, text, status, [_item(call, text, tool, status)])), tokens=text.count)


def _forced_tool(document: dict[str, Any]) -> dict[str, Any] | None:
    choice = document.get("tool_choice")
    tools = document.get("tools")
    if not isinstance(tools, list) or not (choice == "required" or isinstance(choice, dict)):
        return None
    return named(tools, choice.get("name") if isinstance(choice, dict) else None)


def _wanted_json(document: dict[str, Any]) -> str | None:
    wanted = document.get("text")
    shape = wanted.get("format") if isinstance(wanted, dict) else None
    if not isinstance(shape, dict):
        return None
    if shape.get("type") == "json_object":
        return '{"answer":"mock"}'
    return json_for(shape.get("schema")) if shape.get("type") == "json_schema" else None


def _item(call: Call, text: Text | None, tool: dict[str, Any] | None, status: str) -> dict[str, Any]:
    """The one output item; without text it has only begun."""
    said = "" if text is None else text.whole()
    if tool is not None:
        return {
            "id": f"fc_mock_{call.mark}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_mock_{call.mark}",
            "name": tool["name"],
            "arguments": said,
        }
    content = [] if text is None else [_part(said)]
    item = {"id": f"msg_mock_{call.mark}", "type": "message", "status": status, "role": "assistant"}
    return item | {"content": content}


def _part(said: str) -> dict[str, Any]:
    return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}


def _response(call: Call, text: Text, status: str, output: list[Any]) -> dict[str, Any]:
    document = call.document
    ended = status != "in_progress"
    asked = prompt_tokens(document)
    usage = {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": text.count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + text.count,
    }
    # The request's own settings come back, tools with their schemas among them.
    return {
        "id": f"resp_mock_{call.mark}",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": document.get("instructions"),
        "max_output_tokens": document.get("max_output_tokens"),
        "metadata": document.get("metadata") or {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": document.get("previous_response_id"),
        "store": False,
        "temperature": 1.0,
        "text": document.get("text") or {"format": {"type": "text"}},
        "tool_choice": document.get("tool_choice") or "auto",
        "tools": document.get("tools") or [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": usage if ended else None,
    }


def _stream(call: Call, text: Text, tool: dict[str, Any] | None) -> Stream:
    """Events are numbered from 0 throughout: the preamble, then `text.count` deltas, then the ending."""
    status = "incomplete" if text.cut else "completed"
    begun, done = _item(call, None, tool, "in_progress"), _item(call, text, tool, status)
    place = {"item_id": begun["id"], "output_index": 0}
    if tool is None:
        place["content_index"] = 0
    subject = "output_text" if tool is None else "function_call_arguments"
    logprobs: dict[str, Any] = {"logprobs": []} if tool is None else {}

    opening: list[tuple[str, dict[str, Any]]] = [
        ("created", {"response": _response(call, text, "in_progress", [])}),
        ("in_progress", {"response": _response(call, text, "in_progress", [])}),
        ("output_item.added", {"output_index": 0, "item": begun}),
    ]
    said = {"text": text.whole()} if tool is None else {"name": done["name"], "arguments": text.whole()}
    ending: list[tuple[str, dict[str, Any]]] = [(f"{subject}.done", place | said | logprobs)]
    if tool is None:
        opening.append(("content_part.added", place | {"part": _part("")}))
        ending.append(("content_part.done", place | {"part": _part(text.whole())}))
    ending += [
        ("output_item.done", {"output_index": 0, "item": done}),
        (status, {"response": _response(call, text, status, [done])}),
    ]

    def delta(index: int) -> bytes:
        return _event(f"{subject}.delta", len(opening) + index, place | {"delta": text.piece(index)} | logprobs)

    failure = {
        "type": "error",
        "code": "server_error",
        "message": "the mock was asked to fail: error-event",
        "param": None,
        "sequence_number": len(opening) + text.count // 2,
    }
    return Stream(
        first=tuple(_event(kind, number, body) for number, (kind, body) in enumerate(opening)),
        count=text.count,
        delta=delta,
        last=tuple(
            _event(kind, number, body)
            for number, (kind, body) in zip(count(len(opening) + text.count), ending, strict=False)
        ),
        error=(b"event: error\ndata: %b\n\n" % orjson.dumps(failure),),
        malformed=b'event: response.output_text.delta\ndata: {"type": "response.output_text.delta", "delta": \n\n',
    )


def _event(kind: str, number: int, body: dict[str, Any]) -> bytes:
    kind = "response." + kind
    document = {"type": kind, "sequence_number": number} | body
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(document))
