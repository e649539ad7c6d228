"""The time to the first token: of each API's streams, whatever way they go, and of nothing else."""

from __future__ import annotations

import gzip
import json
from time import monotonic
from typing import Any

import pytest
from fakes import Connection, Running, Seen, chunked, ok, pieces, post, random_pieces, running, serving, stub, until
from streams import APIS, EACH, HEAD, Api, answering, chat, config, event, held, named, stream

from aigw.counters import EXCHANGES, FIRST, FIRST_SUM
from aigw.shared import Series

CLOSES = HEAD.replace(b"transfer-encoding: chunked\r\n", b"")


def counted(run: Running) -> tuple[int, int]:
    """How many times to a first token were counted, and the sum of them in microseconds."""
    found = [values for _, values in Series(run.gateway.row, 0).items(EXCHANGES)]
    return sum(sum(values[FIRST:FIRST_SUM]) for values in found), sum(values[FIRST_SUM] for values in found)


def to_one(url: str, dialect: str = "openai", **fields: Any) -> Any:
    """No attempt may follow another, so nothing is held."""
    made = serving(url, **fields)
    made["upstreams"]["up"]["dialects"] = [dialect]
    return made


async def timed(run: Running, api: Api, steps: list[Connection], framed: Any, before: bytes) -> None:
    """Ask for a stream whose `before` is on its way; its content comes once that was looked at, then its end."""
    client = await run.connect()
    await client.send(api.request)
    await until(lambda: steps, "the beginning was sent")
    exchange = next(iter(run.gateway.clients)).exchange
    assert exchange is not None
    if exchange.trying is None:
        await client.read(before)
    else:
        await until(lambda: held(run) == len(b"".join(framed(one) for one in api.before)), "it is held")
    assert exchange.first_at == 0.0
    released = monotonic()
    await steps[0].send(framed(api.content))
    await client.read(framed(api.content))
    first_at = exchange.first_at
    assert released <= first_at <= monotonic()
    await steps[0].send(framed(api.content), framed(api.end), framed(b"") and b"0\r\n\r\n")
    steps[0].close()
    await client.read(framed(api.content) + framed(api.end))
    record = await run.record()
    assert record["end"] == "ok"
    assert record["first_token_ms"] == pytest.approx((first_at - exchange.started) * 1e3, abs=0.001)
    assert counted(run) == (1, int((first_at - exchange.started) * 1e6))


def chunk(data: bytes) -> bytes:
    return chunked(data)[:-5]


def beginning(raw: bytes, steps: list[Connection]) -> Any:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(raw)
        steps.append(connection)
        await connection.gone()

    return handler


@EACH
@pytest.mark.parametrize("way", ["spliced", "held", "ends with its connection"])
async def test_it_is_that_of_the_first_content(api: Api, way: str) -> None:
    """Roles, pings, beginnings of messages and what only counts come before it."""
    steps: list[Connection] = []
    framed = bytes if way.startswith("ends") else chunk
    head = CLOSES if way.startswith("ends") else HEAD
    raw = head + b"".join(map(framed, api.before))
    async with stub(beginning(raw, steps)) as up:
        made = config(up.url, up.url, api.dialect) if way == "held" else to_one(up.url, api.dialect)
        async with running(made) as run:
            await timed(run, api, steps, framed, framed(api.before[-1]))


async def test_it_is_that_of_a_patched_stream() -> None:
    api = APIS["chat"]
    steps: list[Connection] = []
    raw = HEAD + b"".join(map(chunk, api.before))
    async with stub(beginning(raw, steps)) as up, running(to_one(up.url, usage="inject")) as run:
        await timed(run, api, steps, chunk, api.before[-1])
        assert b'"include_usage":true' in up.last.body


def lasting(raw: bytes, cut: str) -> Any:
    parts = {"whole": [raw], "bytes": pieces(raw, 1), "random": random_pieces(raw, 1)}[cut]

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*parts)

    return handler


@pytest.mark.unmeasured
@EACH
@pytest.mark.parametrize("cut", ["bytes", "random", "whole"])
@pytest.mark.parametrize("framing", ["chunks", "length"])
async def test_however_it_is_cut(api: Api, cut: str, framing: str) -> None:
    for content in ([api.content], []):
        events = [*api.before, *content]
        raw = stream(*events)
        if framing == "length":
            body = b"".join(events)
            raw = CLOSES[:-2] + b"content-length: %d\r\n\r\n" % len(body) + body
        async with stub(lasting(raw, cut)) as up, running(to_one(up.url, api.dialect)) as run:
            await run.ask(api.request)
            assert ("first_token_ms" in await run.record()) == bool(content)
            assert counted(run)[0] == len(content)


LARGE = "x" * 70_000  # more than is held of one event
SAY_NOTHING = [
    ("chat", [event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}), event("[DONE]")]),
    ("chat", [event({"choices": [{"delta": {}, "finish_reason": "stop"}]}), event("[DONE]")]),
    ("chat", [event("no JSON"), chat(content="Hi")]),
    ("chat", [event("[1]"), chat(content="Hi")]),
    ("chat", [event({"error": {"message": "no"}}), chat(content="Hi")]),
    ("chat", [chat(content=LARGE)]),
    ("responses", [named("response.completed", response={"usage": {"input_tokens": 3, "output_tokens": 0}})]),
    ("responses", [named("response.failed", response=None)]),
    ("messages", [named("content_block_stop", index=0), named("message_delta", usage={}), named("message_stop")]),
    ("gemini", [event({"promptFeedback": {"blockReason": "SAFETY"}})]),
    ("gemini", [event({"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 3}})]),
]


@pytest.mark.parametrize(("name", "events"), SAY_NOTHING)
async def test_a_stream_that_says_nothing_has_none(name: str, events: list[bytes]) -> None:
    api = APIS[name]
    async with stub(stream(*api.before, *events)) as up, running(to_one(up.url, api.dialect)) as run:
        await run.ask(api.request)
        assert "first_token_ms" not in await run.record()
        assert counted(run) == (0, 0)


async def test_what_is_too_large_to_be_read_is_passed_over() -> None:
    """A Responses stream opens with all of the request once more."""
    echo = named("response.created", response={"instructions": LARGE})
    async with stub(stream(echo, echo, APIS["responses"].content)) as up, running(to_one(up.url)) as run:
        await run.ask(APIS["responses"].request)
        assert "first_token_ms" in await run.record()


async def test_what_comes_after_the_end_of_a_block_counts() -> None:
    api = APIS["messages"]
    raw = stream(*api.before, named("content_block_stop", index=0), api.content)
    async with stub(raw) as up, running(to_one(up.url, api.dialect)) as run:
        await run.ask(api.request)
        assert counted(run)[0] == 1


@pytest.mark.parametrize(
    ("path", "raw"),
    [
        ("/v1/chat/completions", ok(json.dumps({"choices": [{"message": {"content": "Hi"}}]}).encode())),
        ("/v1/chat/completions", stream(chat(content="Hi")).replace(b"200 OK", b"400 Bad Request")),
        (
            "/v1/chat/completions",
            stream(gzip.compress(chat(content="Hi"))).replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n", 1),
        ),
        ("/v1/unknown", stream(chat(content="Hi"))),
    ],
    ids=["no stream", "an error", "coded", "no stream of a known API"],
)
async def test_what_else_has_none(path: str, raw: bytes) -> None:
    async with stub(raw) as up, running(to_one(up.url)) as run:
        await run.ask(post(path))
        assert "first_token_ms" not in await run.record()
        assert counted(run) == (0, 0)


async def test_attempts_that_failed_count_into_it() -> None:
    """It is the client's time: from its request to the content that the last attempt had."""
    api = APIS["chat"]
    error, status = api.errors[0]
    failing = answering(stream(*api.before, error))
    async with stub(failing) as one, stub(stream(api.content)) as other, running(config(one.url, other.url)) as run:
        assert (await run.ask(api.request)).status == 200
        record = await run.record()
        assert [attempt["outcome"] for attempt in record["attempts"]] == ["upstream_rate_limited", "200"]
        assert record["attempts"][0]["ms"] < record["first_token_ms"] <= record["duration_ms"]
        assert status == 429
        assert counted(run)[0] == 1
