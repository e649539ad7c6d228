"""Gemini's dialect: generateContent and its stream, embeddings, counting tokens, models, errors."""

from typing import Any

import orjson

from aigw.mock.content import Text, compose, json_for, prompt_tokens, vector
from aigw.mock.openai import named
from aigw.mock.values import MODELS, Answer, Call, Plain, Refused, Stream

ERROR_STATUS = 503

_DIMENSIONS = 8

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error(status: int, message: str, mark: str) -> bytes:
    word = _STATUSES.get(status, "INTERNAL" if status >= 500 else "FAILED_PRECONDITION")
    return orjson.dumps({"error": {"code": status, "message": message, "status": word}})


def lines(mark: str) -> bytes:
    return b"x-request-id: req_mock_%b\r\n" % mark.encode()


def generate(call: Call) -> Answer:
    """`POST .../models/{model}:generateContent`."""
    text, tool = _composed(call)
    part = {"text": text.whole()} if tool is None else _function_call(text, tool)
    return Plain(orjson.dumps(_response(call, [part], text.count, _finish(text))), tokens=text.count)


def stream_events(call: Call) -> Answer:
    """`:streamGenerateContent?alt=sse`: events, delimited by CRLF as the provider's are."""
    text, tool = _composed(call)
    return Stream(
        first=(),
        count=text.count if tool is None else 1,
        delta=lambda index: _event(_content(call, text, tool, index)),
        last=(_event(_ending(call, text, tool)),),
        error=(b"data: %b\r\n\r\n" % _error_document(call),),
        malformed=b'data: {"candidates": [{"content": \r\n\r\n',
    )


def stream_array(call: Call) -> Answer:
    """`:streamGenerateContent`: one JSON array that grows by an element at a time."""
    text, tool = _composed(call)

    def element(index: int) -> bytes:
        return (b",\r\n" if index else b"[") + orjson.dumps(_content(call, text, tool, index))

    count = text.count if tool is None else 1
    # Where the error's element stands follows from where a failure strikes: behind half of the content.
    comma = b",\r\n" if count // 2 else b"["
    return Stream(
        first=(),
        count=count,
        delta=element,
        last=((b",\r\n" if count else b"[") + orjson.dumps(_ending(call, text, tool)), b"]"),
        error=(comma + _error_document(call), b"]"),
        malformed=comma + b'{"candidates": [{"content": ',
        media=b"application/json; charset=UTF-8",
    )


def _composed(call: Call) -> tuple[Text, dict[str, Any] | None]:
    document = call.document
    if not isinstance(document.get("contents"), list) or not document["contents"]:
        raise Refused(400, "contents: expected a list with at least one content")
    config = document.get("generationConfig")
    config = config if isinstance(config, dict) else {}
    limit = config.get("maxOutputTokens")
    tool = _forced_tool(document)
    if tool is not None:
        schema = tool.get("parametersJsonSchema") or tool.get("parameters") or {"type": "object"}
        return compose(0, None, json_for(schema)), tool
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    if schema:
        return compose(0, limit, json_for(schema)), None
    plain = '{"answer":"mock"}' if config.get("responseMimeType") == "application/json" else None
    return compose(call.settings.tokens, limit, plain), None


def _forced_tool(document: dict[str, Any]) -> dict[str, Any] | None:
    config = document.get("toolConfig")
    calling = config.get("functionCallingConfig") if isinstance(config, dict) else None
    tools = document.get("tools")
    if not isinstance(tools, list) or not isinstance(calling, dict) or calling.get("mode") != "ANY":
        return None
    functions: list[Any] = []
    for tool in tools:
        declared = tool.get("functionDeclarations") if isinstance(tool, dict) else None
        functions += declared if isinstance(declared, list) else []
    allowed = calling.get("allowedFunctionNames")
    return named(functions, allowed[0] if isinstance(allowed, list) and allowed else None)


def _function_call(text: Text, tool: dict[str, Any]) -> dict[str, Any]:
    return {"functionCall": {"name": tool["name"], "args": orjson.loads(text.whole())}}


def _finish(text: Text) -> str:
    return "MAX_TOKENS" if text.cut else "STOP"


def _content(call: Call, text: Text, tool: dict[str, Any] | None, index: int) -> dict[str, Any]:
    if tool is not None:
        return _response(call, [_function_call(text, tool)], text.count, None)
    return _response(call, [{"text": text.piece(index)}], index + 1, None)


def _ending(call: Call, text: Text, tool: dict[str, Any] | None) -> dict[str, Any]:
    return _response(call, [{"text": ""}] if tool is None else [], text.count, _finish(text))


def _response(call: Call, parts: list[Any], output: int, finish: str | None) -> dict[str, Any]:
    """One answer, or one of a stream, whose counts are cumulative."""
    candidate: dict[str, Any] = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    asked = prompt_tokens(call.document)
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": asked,
            "candidatesTokenCount": output,
            "totalTokenCount": asked + output,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": asked}],
        },
        "modelVersion": call.model,
        "responseId": f"mock-{call.mark}",
    }


def _event(document: dict[str, Any]) -> bytes:
    return b"data: %b\r\n\r\n" % orjson.dumps(document)


def _error_document(call: Call) -> bytes:
    return error(ERROR_STATUS, "the mock was asked to fail: error-event", call.mark)


def embed(call: Call) -> Answer:
    """`:embedContent`."""
    return Plain(orjson.dumps({"embedding": {"values": _values(call.document)}}))


def batch_embed(call: Call) -> Answer:
    """`:batchEmbedContents`."""
    requests = call.document.get("requests")
    if not isinstance(requests, list) or not all(isinstance(one, dict) for one in requests):
        raise Refused(400, "requests: expected a list of embedContent requests")
    return Plain(orjson.dumps({"embeddings": [{"values": _values(one)} for one in requests]}))


def _values(request: dict[str, Any]) -> list[float]:
    if not isinstance(request.get("content"), dict):
        raise Refused(400, "content: expected an object with `parts`")
    size = request.get("outputDimensionality", _DIMENSIONS)
    if not isinstance(size, int) or not 1 <= size <= 4096:
        raise Refused(400, "outputDimensionality: expected a count from 1 to 4096")
    return vector(request["content"], size)


def count_tokens(call: Call) -> Answer:
    """`:countTokens`."""
    return Plain(orjson.dumps({"totalTokens": prompt_tokens(call.document)}))


def model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": "1",
        "displayName": name,
        "inputTokenLimit": 1_000_000,
        "outputTokenLimit": 1_000_000,
        "supportedGenerationMethods": ["generateContent", "streamGenerateContent", "countTokens", "embedContent"],
    }


def models() -> Plain:
    return Plain(orjson.dumps({"models": [model(name) for name in MODELS]}))
