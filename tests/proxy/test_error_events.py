"""How a stream that is cut tells its client why: one event of the dialect, where an event may stand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import (
    Connection,
    Seen,
    document,
    get,
    pieces,
    post,
    random_pieces,
    running,
    serving,
    splicing,
    stub,
    target,
    upstream,
)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = b"b\r\ndata: one\n\n\r\n"
ASKS = b'{"model":"m","stream":true,"messages":[]}'
CUT = "the upstream broke off in the middle of its answer"


def config(url: str, **fields: Any) -> dict[str, Any]:
    return document({"up": upstream(target(url), dialects=["openai", "anthropic", "gemini"], **fields)})


async def heard(raw: bytes, asked: bytes, cut: str | int = "whole", **fields: Any) -> tuple[bytes, dict[str, Any]]:
    """What the client got behind the head of the answer, of an upstream that says `raw` and leaves; and the record."""

    async def handler(connection: Connection, seen: Seen) -> None:
        whole = [raw] if cut == "whole" else pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)
        await connection.send(*whole)
        connection.close()

    async with stub(handler) as up, running(config(up.url, **fields)) as gw:
        client = await gw.connect()
        await client.send(asked)
        head, _, body = (await client.rest()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        return body, await gw.record()


def behind(body: bytes, before: bytes) -> tuple[bytes, dict[str, Any]]:
    """The field lines before the data of the one event that follows `before`, and its data."""
    assert body.startswith(before)
    size, _, rest = body[len(before) :].partition(b"\r\n")
    event, end = rest[: int(size, 16)], rest[int(size, 16) :]
    assert end == b"\r\n"  # and no last chunk
    assert event.endswith(b"\n\n")
    fields, data, text = event.partition(b"data: ")
    assert data
    return fields, json.loads(text)


@pytest.mark.parametrize("cut", ["whole", "bytes", *range(4)])
@pytest.mark.parametrize(
    "said", [FIRST, b"d\r\ndata: one\r\n\r\n\r\n", b"b\r\ndata: one\r\r\r\n"], ids=["LF", "CRLF", "CR"]
)
async def test_a_stream_that_is_cut_between_events(cut: str | int, said: bytes) -> None:
    body, record = await heard(HEAD + said, post("/v1/chat/completions", ASKS), cut)
    fields, data = behind(body, said)
    assert fields == b""
    assert data == {"error": {"message": CUT, "type": "server_error", "param": None, "code": "upstream_cut"}}
    assert (record["end"], record["fault"], record["error"]) == ("cut", "upstream", "upstream_cut")
    assert record["bytes_out"] == len(body)


async def test_in_every_dialect() -> None:
    body, _ = await heard(HEAD + FIRST, post("/v1/responses", b'{"model":"m","stream":true}'))
    fields, data = behind(body, FIRST)
    assert fields == b"event: error\n"
    assert (data["type"], data["code"], data["message"], data["param"]) == ("error", "upstream_cut", CUT, None)
    assert data["error"]["message"] == CUT

    body, record = await heard(HEAD + FIRST, post("/v1/messages", ASKS))
    fields, data = behind(body, FIRST)
    assert fields == b"event: error\n"
    assert data == {
        "type": "error",
        "error": {"type": "api_error", "message": CUT},
        "request_id": record["request_id"],
    }

    body, _ = await heard(HEAD + FIRST, post("/v1beta/models/m:streamGenerateContent?alt=sse", b"{}"))
    fields, data = behind(body, FIRST)
    assert fields == b""
    assert data == {"error": {"code": 502, "message": CUT, "status": "UNAVAILABLE"}}


@pytest.mark.parametrize("cut", ["whole", "bytes", 1])
@pytest.mark.parametrize(
    "said",
    [
        b"",
        FIRST + b"b\r\ndata: tw",
        FIRST + b"b\r\ndata: two\n\n",
        FIRST + b"b\r\ndata: two\n\n\r",
        FIRST + b"b\r\ndata: two\n",
        FIRST + b"9\r\ndata: two\r\n",
        FIRST + b"a\r\ndata: two\n\r\n",
        FIRST + b"d\r\ndata: two\r\n\r\n",
        FIRST + b"f\r\ndata: two\n\n\r\n",
        FIRST + b"5",
        FIRST + b"0\r\n",
        FIRST + b"0\r\nx-a: 1\r\n",
    ],
)
async def test_a_stream_that_is_cut_elsewhere_just_ends(cut: str | int, said: bytes) -> None:
    body, record = await heard(HEAD + said, post("/v1/chat/completions", ASKS), cut)
    assert body == said
    assert (record["end"], record["bytes_out"]) == ("cut", len(said))


@pytest.mark.parametrize("coding", [b"gzip", b"br"])
async def test_an_encoded_stream_just_ends(coding: bytes) -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: " + coding + b"\r\n\r\n")
    body, _ = await heard(head + FIRST, post("/v1/chat/completions", ASKS))
    assert body == FIRST


async def test_what_is_no_stream_just_ends() -> None:
    body, _ = await heard(
        HEAD.replace(b"text/event-stream", b"application/json") + FIRST, post("/v1/chat/completions", ASKS)
    )
    assert body == FIRST


async def test_a_stream_with_a_length_just_ends() -> None:
    head = HEAD.replace(b"transfer-encoding: chunked", b"content-length: 99")
    body, _ = await heard(head + b"data: one\n\n", post("/v1/chat/completions", ASKS))
    assert body == b"data: one\n\n"


@pytest.mark.parametrize("path", ["/x", "/v1/chat/completions"])
async def test_a_stream_of_no_dialect_just_ends(path: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + FIRST)
        connection.close()

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get(path))
        assert (await client.rest()).endswith(b"\r\n\r\n" + FIRST)


async def test_a_client_that_knows_no_chunks_sees_a_reset() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + FIRST)
        connection.close()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", ASKS).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_a_chunk_that_is_none_ends_the_stream_without_a_word() -> None:
    body, record = await heard(HEAD + FIRST + b"nonsense", post("/v1/chat/completions", ASKS), "bytes")
    assert body == FIRST
    assert (record["end"], record["error"]) == ("cut", "upstream_malformed")


async def test_a_stream_that_stalls() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + FIRST)
        await connection.gone()

    async with stub(handler) as up, running(serving(up.url, timeouts={})) as gw:
        gw.apply(config(up.url, timeouts={"idle": 0.1}), 2)
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", ASKS))
        body = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert behind(body, FIRST)[1]["error"]["code"] == "idle_timeout"
        assert (await gw.record())["end"] == "stalled"


async def test_a_stream_that_the_gateway_ends() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + FIRST)
        await connection.gone()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", ASKS))
        await client.read(FIRST)
        assert await gw.gateway.drain(0, 0) == 1
        error = behind(FIRST + await client.rest(), FIRST)[1]["error"]
        assert (error["code"], error["message"]) == ("draining", "the gateway is shutting down; try again")


@pytest.mark.parametrize("cut", ["whole", "bytes", 1])
@pytest.mark.parametrize("said", [FIRST, FIRST + b"b\r\ndata: tw"])
async def test_a_patched_stream_has_only_whole_events_to_be_cut_between(said: bytes, cut: str | int) -> None:
    body, _ = await heard(HEAD + said, post("/v1/chat/completions", ASKS), cut, usage="inject")
    assert behind(body, FIRST)[1]["error"]["code"] == "upstream_cut"
