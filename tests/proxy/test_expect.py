"""`Expect: 100-continue`, and answers that come before the request's body was sent."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    CHAT,
    Connection,
    Seen,
    document,
    gateway,
    get,
    key,
    ok,
    post,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

EXPECT = b"expect: 100-continue"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def split(raw: bytes) -> tuple[bytes, bytes]:
    head, end, body = raw.partition(b"\r\n\r\n")
    return head + end, body


@pytest.mark.parametrize("chunks", [None, [CHAT]], ids=["length", "chunked"])
@pytest.mark.parametrize("config", [serving, splicing])
async def test_100_comes_once_and_then_the_answer(config: object, chunks: list[bytes] | None) -> None:
    head, body = split(post("/v1/chat/completions", CHAT, EXPECT, chunks=chunks))
    async with stub() as up, running(config(up.url)) as gw:  # type: ignore[operator]
        client = await gw.connect()
        for _ in range(2):
            await client.send(head)
            assert await client.read(len(CONTINUE)) == CONTINUE
            await client.send(body)
            assert (await client.answer()).status == 200
        assert up.last.body == CHAT
        assert "expect" not in up.last.headers  # the gateway has answered it


async def test_a_body_that_came_with_its_head_needs_no_100() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        assert (await gw.ask(post("/v1/chat/completions", CHAT, EXPECT))).status == 200


async def test_an_old_clients_expectation_is_ignored() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(b"POST /x HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n")
        await until(lambda: up.connections, "the upload at the upstream")
        assert (await client.ask(b"hello")).status == 200


@pytest.mark.parametrize(
    ("path", "lines", "status"),
    [
        ("/v1/chat/completions", [], 401),
        ("/elsewhere", [b"x-api-key: good"], 404),
        ("/v1/chat/completions", [b"x-api-key: good", b"content-encoding: gzip"], 415),
        ("/v1/chat/completions", [b"x-api-key: good", b"x-large: 1"], 413),
    ],
)
async def test_a_refused_request_gets_its_final_status_without_100(path: str, lines: list[bytes], status: int) -> None:
    gateways = {"default": gateway(auth="keys", keys={"k": key("good")})}
    body = b"x" * 2000 if status == 413 else CHAT
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways=gateways, bounds={"body": 1000})
        async with running(config) as gw:
            client = await gw.connect()
            head, body = split(post(path, body, EXPECT, *lines))
            answer = await client.ask(head)
            assert answer.status == status
            assert answer.headers["connection"] == "close"
            # the client sends its body all the same: none of it is taken for a request
            await client.send(body, get("/__/ping"))
            assert await client.ended() == b""
        assert not up.seen


async def test_an_unknown_expectation_is_417() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(post("/x", b"", b"expect: 200-maybe"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (417, "expectation_failed")


# early answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, [b"x" * 1000, b"y" * 1000]], ids=["length", "chunked"])
async def test_an_answer_before_the_body_was_sent_is_relayed_and_the_connection_closed(
    chunks: list[bytes] | None,
) -> None:
    early = ok(b"too large", status=b"413 Payload Too Large")
    closed = asyncio.Event()

    async def on_head(connection: Connection, seen: Seen) -> None:
        await connection.send(early)
        await connection.gone()
        closed.set()

    async with stub(on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        raw = post("/x", b"x" * 2000, chunks=chunks)
        await client.send(raw[:-1500])
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"too large")
        assert answer.headers["connection"] == "close"
        await client.send(raw[-1500:] + get("/__/ping"))
        assert await client.ended() == b""  # the rest of the body and what follows are let go
        async with asyncio.timeout(1):
            await closed.wait()
        record = await gw.record()
        assert (record["status"], record["end"]) == (413, "ok")
        assert not gw.pool.idle


async def test_an_early_answer_that_ends_after_the_body_is_an_ordinary_one() -> None:
    """Both directions run at once: a head, the body's rest, the answer's rest."""

    async def on_head(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n")

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(seen.body), seen.body))

    async with stub(handler, on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        raw = post("/x", b"0123456789")
        await client.send(raw[:-5])
        await client.read(b"early\r\n")
        await client.send(raw[-5:])
        assert await client.read(b"0\r\n\r\n") == b"a\r\n0123456789\r\n0\r\n\r\n"
        assert (await gw.record())["end"] == "ok"


async def test_the_gateways_own_early_answer_leaves_no_byte_of_the_body_behind() -> None:
    """401 with 1 MB on its way: the answer arrives, and the body is never read as a request."""
    gateways = {"default": gateway(auth="keys")}
    async with stub() as up, running(serving(up.url) | {"gateways": gateways}) as gw:
        client = await gw.connect()
        smuggled = get("/__/ping") * 20_000
        await client.send(post("/v1/chat/completions", smuggled)[:-10])
        answer = await client.answer()
        assert answer.status == 401
        assert await client.ended() == b""
        assert len(gw.records) == 1
