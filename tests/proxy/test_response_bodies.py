"""Responses that are as they should be: every framing there is, relayed to clients of both HTTP versions."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    Connection,
    Seen,
    chunked,
    get,
    ok,
    pieces,
    post,
    random_pieces,
    running,
    serving,
    splicing,
    stub,
)

LARGE = bytes(range(256)) * 20480  # 5 MiB
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
BODY = b"5\r\nhello\r\n7;ext=1\r\n, world\r\n0\r\n\r\n"
OLD = b"GET /x HTTP/1.0\r\nhost: gw\r\n\r\n"


def closing(raw: bytes) -> object:
    """A handler that sends `raw` and closes."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(raw)
        connection.close()

    return handler


# length ---------------------------------------------------------------------------------------------------------------


async def test_a_body_with_a_length() -> None:
    async with stub(HEAD + b"content-length: 5\r\n\r\nhello") as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert (answer.status, answer.body) == (200, b"hello")
        assert "connection" not in answer.headers
        record = await gw.record()
        assert (record["end"], record["fault"], record["bytes_out"]) == ("ok", "none", 5)


async def test_an_empty_body_with_a_length() -> None:
    async with stub(HEAD + b"content-length: 0\r\n\r\n") as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert (answer.headers["content-length"], answer.body) == ("0", b"")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_five_megabytes_come_back_byte_for_byte(framing: str) -> None:
    head = {"length": b"content-length: %d\r\n\r\n" % len(LARGE), "chunked": b"transfer-encoding: chunked\r\n\r\n"}
    body = chunked(*pieces(LARGE, 70_001)) if framing == "chunked" else LARGE
    async with stub(closing(HEAD + head.get(framing, b"\r\n") + body)) as up, running(splicing(up.url)) as gw:  # type: ignore[arg-type]
        answer = await gw.ask(get("/x"))
        assert answer.body == body
        assert (await gw.record())["bytes_out"] == len(body)


# chunks ---------------------------------------------------------------------------------------------------------------


async def test_a_chunked_body_comes_as_the_bytes_it_was() -> None:
    async with stub(CHUNKED + BODY) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert answer.headers["transfer-encoding"] == "chunked"
        assert answer.body == BODY
        assert (await gw.record())["end"] == "ok"


async def test_trailers_of_a_response_come_through() -> None:
    raw = (
        CHUNKED.replace(b"content-type", b"trailer: x-checksum\r\ncontent-type")
        + b"1\r\na\r\n0\r\nx-checksum: 1\r\n\r\n"
    )
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert answer.body == b"1\r\na\r\n0\r\nx-checksum: 1\r\n\r\n"
        assert answer.headers["trailer"] == "x-checksum"


@pytest.mark.unmeasured
@pytest.mark.parametrize("cut", ["byte", *range(8)])
@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"content-length: 12\r\n\r\nhello, world",
        CHUNKED + BODY,
        CHUNKED + BODY[:-2] + b"x-a: 1\r\nx-b: 2\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + CHUNKED + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 304 Not Modified\r\netag: 1\r\n\r\n",
    ],
    ids=["length", "chunked", "trailers", "103", "304"],
)
async def test_a_response_in_any_pieces_is_the_same_response(raw: bytes, cut: str | int) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*(pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)))

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for index in range(2):
            answer = await client.ask(get("/x"))
            if raw.startswith(b"HTTP/1.1 103"):
                assert (answer.status, answer.headers["link"]) == (103, "</a>")
                answer = await client.answer()
            assert answer.status == (304 if b" 304 " in raw else 200)
            if b"content-length" in raw:
                assert answer.body == b"hello, world"
            elif CHUNKED in raw:
                assert answer.body == raw.partition(CHUNKED)[2]
            assert (await gw.record(index))["end"] == "ok"
        assert len(up.connections) == 1


async def test_every_event_of_a_stream_leaves_when_it_came() -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(CHUNKED)
        for letter in b"abc":
            await connection.send(b"1\r\n%c\r\n" % letter)
            await go.wait()
            go.clear()
        await connection.send(b"0\r\n\r\n")

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        await client.read(b"\r\n\r\n")
        for letter in b"abc":
            assert await client.read(6) == b"1\r\n%c\r\n" % letter
            go.set()
        assert await client.read(5) == b"0\r\n\r\n"


# no body --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [b"content-length: 5", b"transfer-encoding: chunked", b"x-none: 1"],
    ids=["length", "chunked", "nothing"],
)
async def test_the_answer_to_head_has_no_body_and_keeps_its_framing(line: bytes) -> None:
    async with stub(HEAD + line + b"\r\n\r\n") as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for _ in range(2):
            answer = await client.ask(get("/x", method=b"HEAD"), head_only=True)
            assert answer.status == 200
            assert line in answer.lines
        assert (await client.ask(get("/__/ping"))).status == 200
        assert len(up.connections) == 1


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("line", [b"", b"etag: 1\r\n"])
async def test_204_and_304_have_no_body(status: bytes, line: bytes) -> None:
    async with stub(b"HTTP/1.1 " + status + b"\r\n" + line + b"\r\n") as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for _ in range(2):
            answer = await client.ask(get("/x"))
            assert answer.status == int(status[:3])
        assert len(up.connections) == 1
        assert (await gw.record(1))["bytes_out"] == 0


async def test_a_304_may_say_the_length_of_what_it_does_not_send() -> None:
    raw = b"HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n"
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for _ in range(2):
            assert (await client.ask(get("/x"))).headers["content-length"] == "500"


# informational --------------------------------------------------------------------------------------------------------


async def test_early_hints_are_relayed_at_once() -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await go.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        assert (await client.answer()).raw == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        go.set()
        assert (await client.answer()).status == 200
        assert (await gw.record())["status"] == 200


async def test_a_100_of_the_upstream_is_swallowed() -> None:
    async with stub(b"HTTP/1.1 100 Continue\r\n\r\n" + ok()) as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(get("/x"))).status == 200


async def test_an_old_client_gets_no_informational_response() -> None:
    async with stub(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ok()) as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(OLD)).status == 200


async def test_a_switch_of_protocols_that_nobody_asked_for_is_502() -> None:
    raw = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nsecret"
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x", b"upgrade: websocket", b"connection: upgrade"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_malformed")
        assert b"secret" not in answer.raw
        assert "upgrade" not in up.last.headers


async def test_informational_responses_without_end_are_502() -> None:
    raw = b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17 + ok()
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(get("/x"))
        for _ in range(16):
            assert answer.status == 103
            answer = await client.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_malformed")


# HTTP/1.0 and bodies that end with the connection ---------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["whole", "byte", *range(4)])
async def test_an_old_client_gets_a_chunked_body_decoded_and_closed(cut: str | int) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        raw = CHUNKED + BODY
        await connection.send(
            *([raw] if cut == "whole" else pieces(raw, 1) if cut == "byte" else random_pieces(raw, 1))
        )

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(OLD)
        assert answer.body == b"hello, world"
        assert "transfer-encoding" not in answer.headers
        assert up.last.line == b"GET /x HTTP/1.1"
        assert (await gw.record())["end"] == "ok"


async def test_an_old_client_gets_a_length_and_a_close() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(OLD.replace(b"host: gw", b"connection: keep-alive"))
        assert answer.headers["connection"] == "close"
        assert answer.body == b'{"ok": true}'
        assert await client.rest() == b""


@pytest.mark.parametrize("request_raw", [get("/x"), OLD], ids=["1.1", "1.0"])
async def test_a_close_delimited_answer_ends_with_the_connection(request_raw: bytes) -> None:
    async with stub(closing(HEAD + b"\r\nhello")) as up, running(splicing(up.url)) as gw:  # type: ignore[arg-type]
        client = await gw.connect()
        answer = await client.ask(request_raw)
        assert answer.body == b"hello"
        assert answer.headers["connection"] == "close"
        assert "content-length" not in answer.headers
        assert (await gw.record())["end"] == "ok"


async def test_a_close_delimited_answer_to_a_by_model_rule() -> None:
    async with stub(closing(HEAD + b"\r\nhello")) as up, running(serving(up.url)) as gw:  # type: ignore[arg-type]
        assert (await gw.ask(post("/v1/chat/completions"))).body == b"hello"


async def test_an_old_upstream_is_used_once() -> None:
    raw = b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi"
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for _ in range(2):
            answer = await client.ask(get("/x"))
            assert answer.raw.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.body == b"hi"
        assert len(up.connections) == 2


async def test_an_old_upstream_whose_answer_ends_with_the_connection() -> None:
    async with stub(closing(b"HTTP/1.0 200 OK\r\n\r\nhello")) as up, running(splicing(up.url)) as gw:  # type: ignore[arg-type]
        assert (await gw.ask(get("/x"))).body == b"hello"


# the head -------------------------------------------------------------------------------------------------------------


async def test_hop_by_hop_fields_of_a_response_end_here() -> None:
    fields = [b"connection: keep-alive, x-hop", b"keep-alive: timeout=5", b"x-hop: 1", b"upgrade: h2c", b"x-kept: 1"]
    fields += [b"proxy-authenticate: Basic", b"x-aigw-upstream: forged", b"set-cookie: a=1", b"set-cookie: b=2"]
    async with stub(ok(b"", *fields)) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        names = [line.partition(b":")[0] for line in answer.lines]
        assert not {b"keep-alive", b"x-hop", b"upgrade", b"proxy-authenticate", b"connection"} & set(names)
        assert answer.headers["x-kept"] == "1"
        assert answer.headers["x-aigw-upstream"] == "up"
        assert names.count(b"set-cookie") == 2


async def test_cookies_of_a_model_provider_end_here() -> None:
    async with stub(ok(b"", b"set-cookie: a=1")) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", b'{"model": "m"}', b"cookie: session=1"))
        assert "set-cookie" not in answer.headers
        assert "cookie" not in up.last.headers


async def test_status_and_reason_come_as_they_were() -> None:
    for line in (b"299 Odd But Fine", b"404 ", b"500 Caf\xe9"):
        async with stub(ok(b"x", status=line)) as up, running(splicing(up.url)) as gw:
            answer = await gw.ask(get("/x"))
            assert answer.raw.startswith(b"HTTP/1.1 " + line + b"\r\n")


async def test_redirects_are_relayed_and_not_followed() -> None:
    raw = ok(b"", b"location: http://127.0.0.1:1/", status=b"302 Found")
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert (answer.status, answer.headers["location"]) == (302, "http://127.0.0.1:1/")
        assert len(up.seen) == 1
