"""What an answer says it used, in the record of its exchange; and the streams that are asked for it."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest
from fakes import (
    Connection,
    Seen,
    chunked,
    dechunked,
    document,
    gateway,
    get,
    model,
    ok,
    pieces,
    post,
    random_pieces,
    rule,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

USED = b'{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}'
TOKENS = {"input": 9, "output": 3}
PLAIN = b'{"id":"1","choices":[{"message":{"content":"Hi"}}],"usage":' + USED + b"}"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
STREAMED = SSE + b"transfer-encoding: chunked\r\n\r\n"
ASKS = b'{"model":"m","stream":true,"messages":[]}'
PATCHED = b'{"model":"m","stream":true,"messages":[],"stream_options":{"include_usage":true}}'


def event(data: bytes, end: bytes = b"\n\n") -> bytes:
    return b"data: " + data + end


# What the upstream would say unasked, and what the option makes of it: each event, and what the client gets of it.
EVENTS = [
    (
        b'{"id":"1","choices":[{"delta":{"role":"assistant"}}],"usage":null}',
        b'{"id":"1","choices":[{"delta":{"role":"assistant"}}]}',
    ),
    (
        b'{"id":"1","choices":[{"delta":{"content":"\\"usage\\":null}"}}],"usage":null,"obfuscation":"xyz"}',
        b'{"id":"1","choices":[{"delta":{"content":"\\"usage\\":null}"}}],"obfuscation":"xyz"}',
    ),
    (
        b'{"id":"1", "usage": null, "choices": [{"delta": {"content": "H\\u00e9"}}]}',
        b'{"id":"1", "choices": [{"delta": {"content": "H\\u00e9"}}]}',
    ),
    (
        b'{"usage": null, "choices": [{"delta": {"usage": null}}]}',
        b'{ "choices": [{"delta": {"usage": null}}]}',
    ),
    (b'{"id":"1","choices":[],"usage":' + USED + b"}", None),
    (b"[DONE]", b"[DONE]"),
]
SAID = b"".join(event(said) for said, _ in EVENTS)
HEARD = b"".join(event(heard) for _, heard in EVENTS if heard is not None)


def asking(url: str, **fields: Any) -> dict[str, Any]:
    return serving(url, usage="inject", **fields)


# plain answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
@pytest.mark.parametrize("cut", ["whole", "bytes", *range(3)])
async def test_a_plain_answer(framing: str, coding: str, cut: str | int) -> None:
    body = gzip.compress(PLAIN, mtime=0) if coding == "gzip" else PLAIN
    lines = [b"HTTP/1.1 200 OK", b"content-type: application/json", b"content-encoding: " + coding.encode()]
    raw = {
        "length": b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body]),
        "chunks": b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", chunked(*pieces(body, 7))]),
        "close": b"\r\n".join([*lines, b"", body]),
    }[framing]

    async def handler(connection: Connection, seen: Seen) -> None:
        whole = [raw] if cut == "whole" else pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)
        await connection.send(*whole)
        if framing == "close":
            connection.close()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions"))
        assert (dechunked(answer.body) if framing == "chunks" else answer.body) == body
        assert (await gw.record())["tokens"] == TOKENS


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (ok(b'{"choices":[{"message":{"content":"Hi"}}]}'), "/v1/chat/completions"),
        (ok(PLAIN, status=b"400 Bad Request"), "/v1/chat/completions"),
        (ok(PLAIN).replace(b"application/json", b"text/plain"), "/v1/chat/completions"),
        (ok(PLAIN, b"content-encoding: br"), "/v1/chat/completions"),
        (ok(b'{"usage":{"prompt_tokens":"9"}}'), "/v1/chat/completions"),
        (ok(b'{"error":{"usage":' + USED + b"}}"), "/v1/chat/completions"),
    ],
    ids=["says nothing", "an error", "no JSON", "unreadable", "no counts", "elsewhere"],
)
async def test_answers_that_report_no_usage(raw: bytes, path: str) -> None:
    async with stub(raw) as up, running(serving(up.url)) as gw:
        await gw.ask(post(path))
        assert "tokens" not in await gw.record()


async def test_what_was_counted_before_is_not_counted_again() -> None:
    config = document(
        {"up": upstream(target("http://x"))},
        gateways={"default": gateway(rule(path="/v1/*", default={"": "up"}), models={"*": model("up")})},
    )
    async with stub(ok(PLAIN)) as up:
        config["upstreams"]["up"]["targets"][0]["url"] = up.url
        async with running(config) as gw:
            client = await gw.connect()
            await client.ask(get("/v1/responses/resp_1"))
            await client.ask(post("/v1/responses/resp_1/cancel", b"{}"))
            await client.ask(post("/v1/responses"))
            await gw.record(2)
            assert [record.get("tokens") for record in gw.records] == [None, None, TOKENS]


async def test_an_http_upstream_is_read_by_the_shape_of_its_answer() -> None:
    async with stub(ok(PLAIN)) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.ask(post("/serving/chat"))
        await client.ask(post("/v1/chat/completions"))
        await client.ask(get("/v1/chat/completions/1"))
        await gw.record(2)
        assert [record.get("tokens") for record in gw.records] == [TOKENS, TOKENS, None]


async def test_an_answer_that_breaks_off_has_reported_nothing() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(PLAIN)[:-1])
        connection.close()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions"))
        await client.ended()
        record = await gw.record()
        assert (record["end"], record.get("tokens")) == ("cut", None)


@pytest.mark.parametrize("end", ["ok", "client_gone"])
async def test_what_was_used_counts_whether_the_client_takes_it_or_not(end: str) -> None:
    answer = ok(b'{"pad":"' + b"x" * 120_000 + b'","usage":' + USED + b"}")
    begun = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(answer[:60_000])
        await begun.wait()
        await connection.send(answer[60_000:])

    async with stub(handler) as up, running(serving(up.url), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(post("/v1/chat/completions"))
        (connection,) = await until(lambda: gw.gateway.clients, "it is accepted")
        exchange = await until(lambda: connection.exchange, "it asks")
        await until(lambda: exchange.bytes_out > 50_000, "half of it is relayed")
        begun.set()
        await until(lambda: gw.pool.idle, "the upstream is done")
        assert connection.write_paused
        assert not gw.records
        if end == "ok":
            client.read_on()
            assert (await client.answer()).raw.endswith(answer[-100:])
        else:
            client.reset()
        record = await gw.record()
        assert (record["end"], record["tokens"]) == (end, TOKENS)


# streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["whole", "bytes", *range(4)])
async def test_a_stream_is_relayed_as_it_is_and_read(cut: str | int) -> None:
    body = chunked(*pieces(SAID, 50))
    raw = STREAMED + body

    async def handler(connection: Connection, seen: Seen) -> None:
        whole = [raw] if cut == "whole" else pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)
        await connection.send(*whole)

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        for index in range(2):
            assert (await client.ask(post("/v1/chat/completions", ASKS))).body == body
            assert up.last.body == ASKS
            assert (await gw.record(index))["tokens"] == TOKENS
        assert len(up.connections) == 1


async def test_a_client_that_leaves_pays_for_what_was_said() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        said = event(b'{"type":"message_start","message":{"usage":{"input_tokens":7,"output_tokens":1}}}')
        await connection.send(STREAMED + b"%x\r\n%b\r\n" % (len(said), said))
        await connection.gone()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", ASKS))
        await client.read(b"\n\n\r\n")
        await client.close()
        record = await gw.record()
        assert (record["end"], record["tokens"]) == ("client_gone", {"input": 7, "output": 1})


class Broken:
    """A tap as no tap is."""

    def feed(self, payload: bytes) -> None:
        raise RuntimeError("a fault of the tap")


@pytest.mark.interpreted
async def test_a_tap_that_raises_is_dropped_and_the_exchange_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aigw.proxy.taps.Tap", lambda way: Broken())
    body = chunked(*pieces(SAID, 50))
    async with stub(STREAMED + body) as up, running(serving(up.url)) as gw:
        assert (await gw.ask(post("/v1/chat/completions", ASKS))).body == body
        record = await gw.record()
        assert (record["end"], record.get("tokens")) == ("ok", None)
        (fault,) = gw.faults
        assert str(fault["exception"]) == "a fault of the tap"
        gw.faults.clear()


# streams that are asked for their usage -------------------------------------------------------------------------------


@pytest.mark.unmeasured
@pytest.mark.parametrize("framing", ["chunks", "length", "close"])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("cut", ["whole", "bytes", *range(4)])
async def test_the_client_does_not_see_that_the_usage_was_asked_for(framing: str, end: bytes, cut: str | int) -> None:
    said = b"".join(event(data, end) for data, _ in EVENTS)
    raw = {
        "chunks": STREAMED + chunked(*pieces(said, 60)),
        "length": SSE + b"content-length: %d\r\n\r\n" % len(said) + said,
        "close": SSE + b"\r\n" + said,
    }[framing]

    async def handler(connection: Connection, seen: Seen) -> None:
        whole = [raw] if cut == "whole" else pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)
        await connection.send(*whole)
        if framing == "close":
            connection.close()

    async with stub(handler) as up, running(asking(up.url)) as gw:
        client = await gw.connect()
        for index in range(2):
            answer = await client.ask(post("/v1/chat/completions", ASKS, b"accept-encoding: gzip, br"))
            assert dechunked(answer.body) == b"".join(event(heard, end) for _, heard in EVENTS if heard is not None)
            assert "content-length" not in answer.headers
            assert up.last.body == PATCHED
            assert up.last.headers["accept-encoding"] == "identity"
            record = await gw.record(index)
            assert (record["tokens"], record["end"]) == (TOKENS, "ok")


async def test_each_event_leaves_when_it_came() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(STREAMED)
        for said, _ in EVENTS:
            await connection.send(b"%x\r\n%b\r\n" % (len(event(said)), event(said)))
            assert await connection.reader.readexactly(1) == b"."  # the client has it, and says so by the side
        await connection.send(b"0\r\n\r\n")

    async with stub(handler) as up, running(asking(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", ASKS))
        await client.read(b"\r\n\r\n")
        for _, heard in EVENTS:
            if heard is not None:
                assert await client.read(b"\n\n\r\n") == b"%x\r\n%b\r\n" % (len(event(heard)), event(heard))
            (connection,) = up.connections
            connection.reader.feed_data(b".")
        assert await client.read(5) == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", b'{"model":"m","messages":[]}'),
        ("/v1/chat/completions", b'{"model":"m","stream":true,"messages":[],"stream_options":{"include_usage":true}}'),
        ("/v1/chat/completions", b'{"model":"m","stream":true,"messages":[],"stream_options":3}'),
        ("/v1/embeddings", ASKS),
        ("/v1/responses", ASKS),
    ],
    ids=["no stream", "asked for", "odd", "embeddings", "responses"],
)
async def test_what_is_the_clients_is_left_alone(path: str, body: bytes) -> None:
    raw = STREAMED + chunked(*pieces(SAID, 60))
    async with stub(raw) as up, running(asking(up.url)) as gw:
        answer = await gw.ask(post(path, body, b"accept-encoding: gzip"))
        assert dechunked(answer.body) == SAID
        assert up.last.body == body
        assert up.last.headers["accept-encoding"] == "gzip"


async def test_a_model_of_another_name_is_asked_for_its_usage_too() -> None:
    config = document(
        {"up": upstream(target("http://x"), usage="inject")},
        gateways={"default": gateway(models={"m": model("up", "real")})},
    )
    async with stub(STREAMED + chunked(SAID)) as up:
        config["upstreams"]["up"]["targets"][0]["url"] = up.url
        async with running(config) as gw:
            await gw.ask(post("/v1/completions", b'{"model":"m","stream":true,"prompt":"x"}'))
            asked = json.loads(up.last.body)
            assert asked == {
                "model": "real",
                "stream": True,
                "prompt": "x",
                "stream_options": {"include_usage": True},
            }


async def test_a_client_that_knows_no_chunks() -> None:
    old = post("/v1/chat/completions", ASKS).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    async with stub(STREAMED + chunked(*pieces(SAID, 60))) as up, running(asking(up.url)) as gw:
        answer = await gw.ask(old)
        assert answer.body == HEARD
        assert "transfer-encoding" not in answer.headers
        assert (await gw.record())["tokens"] == TOKENS


@pytest.mark.parametrize(
    "raw",
    [
        ok(PLAIN),
        ok(PLAIN, status=b"400 Bad Request"),
        STREAMED.replace(b"transfer", b"content-encoding: gzip\r\ntransfer") + chunked(gzip.compress(SAID, mtime=0)),
    ],
    ids=["plain", "an error", "compressed all the same"],
)
async def test_an_answer_that_is_no_stream_is_not_patched(raw: bytes) -> None:
    async with stub(raw) as up, running(asking(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", ASKS))
        assert answer.body == raw.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "said",
    [
        event(b'{"choices":[],"usage":'),
        event(b'{"choices":[{}],"usage":' + USED + b"}"),
        event(b'["usage"]'),
        event(b'"usage"'),
        b'data: {"choices":[],\ndata: "usage":null,"x":1}\n\n',
        b"event: usage\n\n",
        b": comment\n\n",
        b"\n\n\n",
        event(b'{"choices":[' + b" " * 70_000 + b'],"usage":null}'),
        b'data: {"choices":[],"usage":null}',
    ],
    ids=["cut", "choices", "list", "text", "two lines", "no data", "comment", "empty", "too long to be held", "no end"],
)
async def test_events_that_the_option_did_not_bring_stay(said: bytes) -> None:
    async with stub(STREAMED + chunked(said)) as up, running(asking(up.url)) as gw:
        assert dechunked((await gw.ask(post("/v1/chat/completions", ASKS))).body) == said


async def test_a_comment_before_an_event_that_is_taken_out_stays() -> None:
    said = b": ping\r\nid: 7\r\n" + event(EVENTS[4][0], b"\r\n\r\n")
    async with stub(STREAMED + chunked(said)) as up, running(asking(up.url)) as gw:
        assert dechunked((await gw.ask(post("/v1/chat/completions", ASKS))).body) == b": ping\r\n\r\n"
