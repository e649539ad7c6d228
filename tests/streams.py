"""Streams of each API, in pieces that tests put together: what comes before content, content, the end, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import (
    Connection,
    Handler,
    Running,
    Seen,
    chunked,
    document,
    gateway,
    model,
    pieces,
    post,
    random_pieces,
    retry,
    target,
    upstream,
)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ALL = ("connect", "reset", "first_byte", "first_token", "429", "5xx")


def event(data: Any, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + b"data: " + text.encode() + b"\n\n"


def named(kind: str, **members: Any) -> bytes:
    return event({"type": kind, **members}, kind)


def chat(**delta: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


class Api:
    """One streamed API: the request, what comes before content, content, the end, errors with their statuses."""

    def __init__(
        self, dialect: str, path: str, before: list[bytes], content: bytes, end: bytes, errors: list[tuple[bytes, int]]
    ) -> None:
        self.dialect = dialect
        self.path = path
        self.before = before
        self.content = content
        self.end = end
        self.errors = errors

    @property
    def request(self) -> bytes:
        return post(self.path, json.dumps({"model": "m", "stream": True, "messages": []}).encode())


APIS = {
    "chat": Api(
        "openai",
        "/v1/chat/completions",
        [
            b": OPENROUTER PROCESSING\n\n",
            event({"choices": [], "prompt_filter_results": []}),
            chat(role="assistant", content="", refusal=None),
        ],
        chat(content="Hi"),
        event("[DONE]"),
        [
            (event({"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}), 429),
            (event({"error": {"message": "no", "type": "server_error", "code": None}}), 500),
            (event({"error": {"message": "busy", "code": 503}}), 529),
            (event({"error": "odd"}), 500),
        ],
    ),
    "completions": Api(
        "openai",
        "/v1/completions",
        [event({"choices": [{"text": "", "finish_reason": None}]})],
        event({"choices": [{"text": "Hi", "finish_reason": None}]}),
        event("[DONE]"),
        [(event({"error": {"message": "no"}}), 500)],
    ),
    "responses": Api(
        "openai",
        "/v1/responses",
        [
            named("response.created", response={"status": "in_progress", "error": None}),
            named("response.in_progress", response={}),
            named("response.output_item.added", item={}),
            named("response.content_part.added", part={}),
        ],
        named("response.output_text.delta", delta="Hi"),
        named("response.completed", response={"usage": {"input_tokens": 3, "output_tokens": 4}}),
        [
            (named("error", code="rate_limit_exceeded", message="slow down", param=None), 429),
            (named("response.failed", response={"error": {"code": "server_error", "message": "no"}}), 500),
            (named("response.failed", response=None), 500),
        ],
    ),
    "messages": Api(
        "anthropic",
        "/v1/messages",
        [
            named("message_start", message={"usage": {"input_tokens": 3}}),
            named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            named("ping"),
        ],
        named("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
        named("message_stop"),
        [
            (named("error", error={"type": "overloaded_error", "message": "Overloaded"}), 529),
            (named("error", error={"type": "rate_limit_error", "message": "slow down"}), 429),
            (named("error", error={"type": "api_error", "message": "no"}), 500),
            (named("error", error="odd"), 500),
        ],
    ),
    "gemini": Api(
        "gemini",
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        [
            event({"usageMetadata": {"promptTokenCount": 3}}),
            event({"candidates": [{"content": {"parts": [{"text": ""}], "role": "model"}}]}),
        ],
        event({"candidates": [{"content": {"parts": [{"text": "Hi"}], "role": "model"}}]}),
        event({"candidates": [{"finishReason": "STOP"}]}),
        [
            (event({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}), 529),
            (event({"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}}), 429),
            (event({"error": {"code": 500, "message": "no", "status": "INTERNAL"}}), 500),
        ],
    ),
}
EACH = pytest.mark.parametrize("api", APIS.values(), ids=list(APIS))


def stream(*events: bytes) -> bytes:
    return HEAD + chunked(*events)


def answering(raw: bytes, then: str = "", cut: str | int = "whole") -> Handler:
    """Sends it in pieces, then does nothing, closes, resets or waits for the gateway to leave."""

    async def handler(connection: Connection, seen: Seen) -> None:
        parts = [raw] if cut == "whole" else pieces(raw, 1) if cut == "bytes" else random_pieces(raw, int(cut))
        await connection.send(*parts)
        if then == "gone":
            await connection.gone()
        elif then:
            getattr(connection, then)()

    return handler


def config(one: str, other: str = "", dialect: str = "openai", **fields: Any) -> Any:
    """The model `m` at the first URL, which falls back to `n` at the second."""
    models = {"m": model("one", fallback=["n"] if other else []), "n": model("other")}
    made = {"one": upstream(target(one), **fields), "other": upstream(target(other or one))}
    for entry in made.values():
        entry["dialects"] = [dialect]
    return document(made, gateways={"default": gateway(models=models, retry=retry(*ALL, attempts=1))})


def held(gw: Running) -> int:
    """Bytes that are held of the one stream."""
    (client,) = gw.gateway.clients
    exchange = client.exchange
    if exchange is None or exchange.upstream is None or exchange.upstream._beginning is None:
        return 0
    return len(exchange.upstream._beginning.taken())
