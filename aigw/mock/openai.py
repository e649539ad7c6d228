"""OpenAI's dialect: chat and legacy completions, embeddings, models, audio, images, errors. See also `responses`."""

import base64
from typing import Any

import orjson

from aigw.mock.content import Text, compose, json_for, packed, prompt_tokens, vector
from aigw.mock.values import CREATED, MODELS, Answer, Call, Plain, Refused, Stream

ERROR_STATUS = 500
"""Of the answer that stands for an error event where the request is not streamed."""

DONE = b"data: [DONE]\n\n"
MALFORMED = b'data: {"choices": [{"delta": {"content": \n\n'

_PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="  # 1 x 1, PNG
)

_DIMENSIONS = 8
_MAX_DIMENSIONS = 4096

_CODES = {
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    429: ("requests", "rate_limit_exceeded"),
}


def error(status: int, message: str, mark: str) -> bytes:
    kind, code = _CODES.get(
        status, ("server_error", "server_error") if status >= 500 else ("invalid_request_error", None)
    )
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


def lines(mark: str) -> bytes:
    return b"x-request-id: req_mock_%b\r\n" % mark.encode()


def event(document: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(document)


def named(items: Any, name: Any) -> dict[str, Any]:
    """The function called `name`, the first where that is None. Raises Refused where there is none."""
    functions = [item for item in items if isinstance(item, dict) and isinstance(item.get("name"), str)]
    for function in functions:
        if name in (None, function["name"]):
            return function
    if name is None:
        raise Refused(400, "tool_choice asks for a call, but `tools` has no function with a name")
    raise Refused(400, f"tool_choice asks for {str(name)[:80]!r}, which is not among the functions in `tools`")


def _forced_tool(document: dict[str, Any]) -> dict[str, Any] | None:
    choice = document.get("tool_choice")
    tools = document.get("tools")
    if not isinstance(tools, list) or not (choice == "required" or isinstance(choice, dict)):
        return None
    wanted = choice.get("function") if isinstance(choice, dict) else None
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)]
    return named(functions, wanted.get("name") if isinstance(wanted, dict) else None)


def _wanted_json(document: dict[str, Any]) -> str | None:
    wanted = document.get("response_format")
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return '{"answer":"mock"}'
    shape = wanted.get("json_schema")
    if wanted.get("type") != "json_schema" or not isinstance(shape, dict):
        return None
    return json_for(shape.get("schema"))


def _usage(call: Call, text: Text) -> dict[str, Any]:
    asked = prompt_tokens(call.document)
    return {
        "prompt_tokens": asked,
        "completion_tokens": text.count,
        "total_tokens": asked + text.count,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def _wants_usage(document: dict[str, Any]) -> bool:
    options = document.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def chat(call: Call) -> Answer:
    """`POST /v1/chat/completions`."""
    document = call.document
    if not isinstance(document.get("messages"), list) or not document["messages"]:
        raise Refused(400, "messages: expected a list with at least one message")
    limit = document.get("max_completion_tokens", document.get("max_tokens"))
    tool = _forced_tool(document)
    if tool is not None:
        text = compose(0, limit, json_for(tool.get("parameters") or {"type": "object"}))
    else:
        text = compose(call.settings.tokens, limit, _wanted_json(document))
    return _chat_stream(call, text, tool) if call.streamed else _chat_plain(call, text, tool)


def _finish(text: Text, tool: dict[str, Any] | None) -> str:
    return "length" if text.cut else "stop" if tool is None else "tool_calls"


def _tool_call(call: Call, tool: dict[str, Any], arguments: str) -> dict[str, Any]:
    function = {"name": tool["name"], "arguments": arguments}
    return {"id": f"call_mock_{call.mark}", "type": "function", "function": function}


def _chat_plain(call: Call, text: Text, tool: dict[str, Any] | None) -> Plain:
    if call.settings.bytes:
        return Plain(_sized(call.settings.bytes, _usage(call, text)), tokens=text.count)
    message: dict[str, Any] = {"role": "assistant", "content": text.whole(), "refusal": None, "annotations": []}
    if tool is not None:
        message |= {"content": None, "tool_calls": [_tool_call(call, tool, text.whole())]}
    body = {
        "id": f"chatcmpl-mock-{call.mark}",
        "object": "chat.completion",
        "created": CREATED,
        "model": call.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(text, tool)}],
        "usage": _usage(call, text),
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    }
    return Plain(orjson.dumps(body), tokens=text.count)


def _sized(size: int, usage: dict[str, Any]) -> bytes:
    """A completion of so many bytes."""
    body: dict[str, Any] = {"id": "", "choices": [{"message": {"content": ""}}]}
    room = size - len(orjson.dumps(body | {"usage": usage}))
    if room > 0:
        body["usage"] = usage
    else:
        room = size - len(orjson.dumps(body))
    body["choices"] = [{"message": {"content": "!" * room}}]
    return orjson.dumps(body)


def _chat_stream(call: Call, text: Text, tool: dict[str, Any] | None) -> Stream:
    frame: dict[str, Any] = {
        "id": f"chatcmpl-mock-{call.mark}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": call.model,
        "service_tier": "default",
        "system_fingerprint": "fp_mock",
    }
    with_usage = _wants_usage(call.document)
    # With the option every chunk has the member, null but in the last.
    absent: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return event(
            frame | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]} | absent
        )

    def content(index: int) -> bytes:
        piece = text.piece(index)
        if tool is None:
            return chunk({"content": piece})
        return chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})

    opening: dict[str, Any] = {"role": "assistant", "content": "", "refusal": None}
    if tool is not None:
        opening |= {"content": None, "tool_calls": [{"index": 0} | _tool_call(call, tool, "")]}
    usage = (event(frame | {"choices": [], "usage": _usage(call, text)}),) if with_usage else ()
    return Stream(
        first=(chunk(opening),),
        count=text.count,
        delta=content,
        last=(chunk({}, _finish(text, tool)), *usage, DONE),
        error=_error_event(call),
        malformed=MALFORMED,
    )


def _error_event(call: Call) -> tuple[bytes, ...]:
    return (b"data: %b\n\n" % error(ERROR_STATUS, "the mock was asked to fail: error-event", call.mark),)


def completions(call: Call) -> Answer:
    """`POST /v1/completions`, the legacy API."""
    document = call.document
    if not isinstance(document.get("prompt"), str | list):
        raise Refused(400, "prompt: expected a text or a list")
    text = compose(call.settings.tokens, document.get("max_tokens"))
    frame: dict[str, Any] = {
        "id": f"cmpl-mock-{call.mark}",
        "object": "text_completion",
        "created": CREATED,
        "model": call.model,
        "system_fingerprint": "fp_mock",
    }

    def choice(said: str, finish: str | None) -> dict[str, Any]:
        return {"choices": [{"text": said, "index": 0, "logprobs": None, "finish_reason": finish}]}

    if not call.streamed:
        body = frame | choice(text.whole(), _finish(text, None)) | {"usage": _usage(call, text)}
        return Plain(orjson.dumps(body), tokens=text.count)
    with_usage = _wants_usage(document)
    absent: dict[str, Any] = {"usage": None} if with_usage else {}
    usage = (event(frame | {"choices": [], "usage": _usage(call, text)}),) if with_usage else ()
    return Stream(
        first=(),
        count=text.count,
        delta=lambda index: event(frame | choice(text.piece(index), None) | absent),
        last=(event(frame | choice("", _finish(text, None)) | absent), *usage, DONE),
        error=_error_event(call),
        malformed=MALFORMED,
    )


def embeddings(call: Call) -> Answer:
    """`POST /v1/embeddings`: floats, or base64 of float32 where `encoding_format` says so."""
    document = call.document
    said = document.get("input")
    if not isinstance(said, str | list) or not said:
        raise Refused(400, "input: expected a text, a list of texts, or tokens")
    inputs = said if isinstance(said, list) and not isinstance(said[0], int) else [said]
    size = document.get("dimensions", _DIMENSIONS)
    if not isinstance(size, int) or not 1 <= size <= _MAX_DIMENSIONS:
        raise Refused(400, f"dimensions: expected a count from 1 to {_MAX_DIMENSIONS}")
    vectors: list[Any] = [vector(one, size) for one in inputs]
    if document.get("encoding_format") == "base64":
        vectors = [base64.b64encode(packed(numbers)).decode() for numbers in vectors]
    data = [{"object": "embedding", "index": index, "embedding": made} for index, made in enumerate(vectors)]
    asked = prompt_tokens(document)
    usage = {"prompt_tokens": asked, "total_tokens": asked}
    return Plain(orjson.dumps({"object": "list", "data": data, "model": call.model, "usage": usage}))


def model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "mock"}


def models() -> Plain:
    return Plain(orjson.dumps({"object": "list", "data": [model(name) for name in MODELS]}))


def transcription() -> Plain:
    """`POST /v1/audio/transcriptions` and `translations`; the form is not read."""
    usage = {"type": "tokens", "input_tokens": 10, "output_tokens": 4, "total_tokens": 14}
    return Plain(orjson.dumps({"text": "The mock hears nothing.", "usage": usage}))


def image() -> Plain:
    """`POST /v1/images/generations` and `edits`: one transparent pixel; the request is not read."""
    usage = {
        "input_tokens": 10,
        "output_tokens": 4,
        "total_tokens": 14,
        "input_tokens_details": {"text_tokens": 10, "image_tokens": 0},
    }
    return Plain(orjson.dumps({"created": CREATED, "data": [{"b64_json": _PIXEL}], "usage": usage}))
