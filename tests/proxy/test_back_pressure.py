"""Whoever is slow slows the other side: what waits in the gateway is bounded, and every byte arrives."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
import trustme
from fakes import (
    CHAT,
    Connection,
    Seen,
    Stub,
    document,
    gateway,
    get,
    model,
    ok,
    pieces,
    post,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

from aigw.proxy.bulk import MOST_SLOW, PIECE
from aigw.proxy.states import Deadline

MIB = 1024 * 1024
# What may wait in the gateway for one slow side: a read of 256,000 bytes above the transport's high-water mark.
WAITING = 64 * 1024 + 256_000


async def steady(value: object) -> object:
    """`value()` once it has not changed for fifty turns of the loop."""
    last, same = value(), 0  # type: ignore[operator]
    while same < 50:
        await asyncio.sleep(0.001)
        new = value()  # type: ignore[operator]
        last, same = new, same + 1 if new == last else 0
    return last


async def test_a_slow_reader_pauses_its_upstream() -> None:
    sent = 0

    async def handler(connection: Connection, seen: Seen) -> None:
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (24 * MIB))
        for _ in range(24 * 16):
            await connection.send(b"x" * 65536)
            sent += 65536

    async with stub(handler) as up, running(splicing(up.url), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(get("/x"))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        # the rest is what the kernel holds between upstream and gateway
        assert await steady(lambda: sent) < 16 * MIB
        (connection,) = gw.gateway.clients
        assert connection.transport.get_write_buffer_size() <= WAITING
        client.read_on()
        answer = await client.answer()
        assert answer.body == b"x" * (24 * MIB)
        assert (await gw.record())["bytes_out"] == 24 * MIB


async def test_a_slow_reader_slows_nobody_else() -> None:
    async with stub(ok(b"x" * MIB)) as up, running(splicing(up.url), buffer=8192) as gw:
        slow = await gw.connect(buffer=8192)
        slow.stop_reading()
        await slow.send(get("/x"))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        for _ in range(5):
            assert len((await gw.ask(get("/x"))).body) == MIB


async def test_a_slow_upstream_pauses_the_uploader() -> None:
    connections: list[Connection] = []
    read_on = asyncio.Event()

    async def on_head(connection: Connection, seen: Seen) -> None:
        connection.stop_reading()
        connections.append(connection)
        await read_on.wait()
        connection.read_on()

    body = b"x" * (48 * MIB)
    async with stub(on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        client.writer.write(post("/x", body))
        await until(lambda: any(c.runs is Deadline.SEND for c in gw.gateway.clients), "an upstream that takes nothing")
        left = await steady(client.writer.transport.get_write_buffer_size)
        assert left > 16 * MIB  # most of it stays with the client (the kernel holds some megabytes on each side)
        read_on.set()
        assert (await client.answer()).status == 200
        assert up.last.body == body


async def test_an_upload_waits_with_its_client_while_a_connection_is_awaited() -> None:
    async with stub() as up:
        config = splicing(up.url, max_connections=1)
        go = asyncio.Event()

        async def handler(connection: Connection, seen: Seen) -> None:
            await go.wait()
            await connection.send(ok())

        up.handler = handler
        async with running(config) as gw:
            first, second = await gw.connect(), await gw.connect()
            await first.send(get("/first"))
            await until(lambda: up.seen, "the first at the upstream")
            body = b"y" * (16 * MIB)
            second.writer.write(post("/second", body))
            await until(lambda: gw.pool.waiting, "the second waiting")
            assert await steady(second.writer.transport.get_write_buffer_size) > 4 * MIB
            go.set()
            assert (await first.answer()).status == 200
            assert (await second.answer()).status == 200
            assert up.last.body == body


async def test_a_client_that_asks_and_never_reads_is_not_served_without_end() -> None:
    """Answers of the gateway's own take the same room as relayed ones: a client that does not take them gets no
    more of them."""
    names = {f"model-{index}": model("up") for index in range(500)}
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways={"default": gateway(models=names)})
        async with running(config, buffer=8192) as gw:
            client = await gw.connect(buffer=8192)
            client.stop_reading()
            await client.send(*[get("/v1/models") * 100] * 20)  # a few bytes each, and 80 KB each way back
            await until(lambda: gw.gateway.slow, "a client that does not read")
            (connection,) = gw.gateway.clients
            assert await steady(connection.transport.get_write_buffer_size) <= 4 * WAITING


async def test_collected_bodies_are_bounded_together() -> None:
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, bounds={"collected": 100_000})
        async with running(config) as gw:
            raw = post("/v1/chat/completions", CHAT[:-1] + b', "x": "' + b"y" * 60_000 + b'"}')
            first, second = await gw.connect(), await gw.connect()
            await first.send(raw[:-10])
            await until(lambda: gw.gateway.collected > 50_000, "the first body held")
            await second.send(raw[:-10])
            answer = await second.answer()
            assert (answer.status, answer.headers["x-aigw-error"]) == (503, "too_much_collected")
            await first.send(raw[-10:])
            assert (await first.answer()).status == 200
            await until(lambda: gw.gateway.collected == 0, "nothing held")


async def test_a_body_that_is_passed_on_does_not_count_as_collected() -> None:
    async with stub() as up, running(splicing(up.url) | {"bounds": serving("")["bounds"] | {"collected": 1000}}) as gw:
        assert (await gw.ask(post("/x", b"x" * MIB))).status == 200


async def test_a_503_for_want_of_room_says_when_to_come_back() -> None:
    async with (
        stub() as up,
        running(document({"up": upstream(target(up.url))}, bounds={"collected": 1000})) as gw,
    ):
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", b"x" * 3000)[:-10])
        answer = await client.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (503, "too_much_collected")
        assert int(answer.headers["retry-after"]) > 0


def large(size: int, framing: str) -> bytes:
    body = bytes(range(256)) * (size // 256)
    if framing in ("length", "tls"):
        return ok(body)
    if framing == "chunked":
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces(body, 50_000))
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\n\r\n" + body


@pytest.mark.parametrize("framing", ["length", "chunked", "closed", "tls", "tls closed"])
async def test_where_many_read_slowly_little_waits_for_each(framing: str) -> None:
    answer = large(MIB, framing)
    body = answer[answer.index(b"\r\n\r\n") + 4 :]

    async def handler(connection: Connection, seen: Seen) -> None:
        if b" /small " in seen.line:
            await connection.send(ok(b"small"))
            return
        await connection.send(answer)
        if framing.endswith("closed"):
            connection.close()

    context = None
    if framing.startswith("tls"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with stub(handler, ssl=context) as up:
        url = up.url if context is None else f"https://127.0.0.1:{up.port}"
        await many(up, splicing(url, tls={"verify": False, "ca": None, "server_name": None}), body, framing)


async def many(up: Stub, config: dict[str, Any], body: bytes, framing: str) -> None:
    async with running(config, buffer=8192) as gw:
        clients = []
        for number in range(MOST_SLOW + 6):
            client = await gw.connect(buffer=8192)
            clients.append(client)
            client.stop_reading()
            await client.send(get("/x"))
            await until(lambda number=number: len(gw.gateway.slow) > number, "a client that does not read")
        sizes = sorted(client.transport.get_write_buffer_size() for client in gw.gateway.clients)
        assert max(sizes[:5]) <= 2 * PIECE  # the last five
        for client in clients:
            client.read_on()
        for client in clients:
            got = await client.answer()
            assert (len(got.body), got.body == body) == (len(body), True)
        assert not gw.gateway.slow
        # their connections serve others as before
        assert [(await gw.ask(get("/small"))).body for _ in range(3)] == [b"small"] * 3
        if not framing.endswith("closed"):
            assert len(up.connections) == len(clients)
