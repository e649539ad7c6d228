"""Sizes of heads, lines and trailers: what must be taken is taken, and what never ends is refused before much more than
the bound of it is held."""

from __future__ import annotations

import asyncio
import sys

import pytest
from fakes import CHAT, Client, Connection, Running, Seen, get, ok, post, running, serving, splicing, stub, until

from aigw.proxy.states import State

KIB = 1024
PIECE = KIB  # of what does not end; one read
HEAD = 32 * KIB  # the default of bounds.head
LINE = 16 * KIB


def filled(size: int, *, fields: int = 40) -> bytes:
    """A GET whose head has exactly so many bytes, its blank line not counted."""
    start = b"GET /x HTTP/1.1\r\nhost: gw"
    each = (size - len(start)) // fields
    lines = [b"\r\nx-%03d: " % index for index in range(fields)]
    raw = start + b"".join(line.ljust(each, b"y") for line in lines)
    return raw.ljust(size, b"y") + b"\r\n\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        get("/x?" + "y" * (8 * KIB - 3)),
        get("/x?" + "y" * (16 * KIB - 3)),
        get("/x", b"x-line: " + b"y" * (LINE - 8)),
        get("/x", *[b"x-%d: y" % index for index in range(99)]),
        filled(HEAD),
    ],
    ids=["a target of 8 KiB", "a target of 16 KiB", "a line of 16 KiB", "100 fields", "32 KiB"],
)
async def test_large_heads_that_are_taken(raw: bytes) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(raw)).status == 200
        lines = raw[:-4].split(b"\r\n")
        assert up.last.line == lines[0]
        assert set(lines[2:]) <= set(up.last.lines)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (get("/x?" + "y" * (16 * KIB - 2)), 414),
        (get("/x", b"x-line: " + b"y" * (LINE - 7)), 431),
        (get("/x", *[b"x-%d: y" % index for index in range(100)]), 431),
        (get("/x", *[b"x-%d: y" % index for index in range(200)]), 431),
        (filled(HEAD + 1), 431),
        (filled(64 * KIB + 1), 431),
    ],
    ids=["a target", "a line", "101 fields", "201 fields", "32 KiB and a byte", "64 KiB and a byte"],
)
async def test_heads_over_a_bound(raw: bytes, status: int) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(raw)
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await client.ended() == b""
        assert not up.seen


async def until_refused(gw: Running, client: Client, piece: bytes, most: int) -> int:
    """Send `piece` again and again until it is refused. Returns how many bytes that took."""
    (connection,) = gw.gateway.clients
    sent = 0
    while connection.state is not State.REPLYING:
        assert sent <= most, "more than the bound, and a read, was taken"
        await client.send(piece)
        sent += len(piece)
        await asyncio.sleep(0)
    await until(lambda: not connection.buffer, "what was held is let go")
    return sent


CHUNKED = b"POST /x HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n"
ENDLESS = {
    "a target": (b"GET /", b"y" * PIECE, 16 * KIB + 64, 414),
    "a line": (b"GET /x HTTP/1.1\r\nhost: gw\r\nx: ", b"y" * PIECE, HEAD, 431),
    "lines": (b"GET /x HTTP/1.1\r\nhost: gw\r\n", b"x: y\r\n" * (PIECE // 6), HEAD, 431),
    "a chunk's extension": (CHUNKED + b"1;x", b"y" * PIECE, 256, 400),
    "a chunk's size": (CHUNKED, b"0" * PIECE, 256, 400),
    "a trailer": (CHUNKED + b"0\r\nx: ", b"y" * PIECE, 16 * KIB, 400),
    "trailers": (CHUNKED + b"0\r\n", b"x: y\r\n" * (PIECE // 6), 16 * KIB, 400),
}


@pytest.mark.parametrize("case", ENDLESS)
async def test_what_never_ends_is_refused_within_a_read_of_its_bound(case: str) -> None:
    start, piece, bound, status = ENDLESS[case]
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(start)
        await until(lambda: gw.gateway.clients, "the client accepted")
        await until_refused(gw, client, piece, bound + 4 * PIECE)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")


@pytest.mark.parametrize(
    "lines",
    [
        [b"x-line: " + b"y" * (LINE - 8)],
        [b"x-%d: y" % index for index in range(98)],
        [b"x-%d: %b" % (index, b"y" * 1000) for index in range(31)],
    ],
    ids=["a line of 16 KiB", "100 fields", "31 KiB"],
)
async def test_answers_with_a_large_head_that_are_taken(lines: list[bytes]) -> None:
    async with stub(ok(b"{}", *lines)) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", CHAT))
        assert answer.status == 200
        assert set(lines) <= set(answer.lines)


@pytest.mark.parametrize(
    "lines",
    [
        [b"x-line: " + b"y" * (LINE - 7)],
        [b"x-%d: y" % index for index in range(99)],
        [b"x-%d: %b" % (index, b"y" * 1000) for index in range(33)],
    ],
    ids=["a line", "101 fields", "33 KiB"],
)
async def test_answers_with_a_head_over_a_bound(lines: list[bytes]) -> None:
    async with stub(ok(b"{}", *lines)) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", CHAT))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_malformed")


@pytest.mark.parametrize("piece", [b"y" * PIECE, b"x: y\r\n" * (PIECE // 6)], ids=["a line", "lines"])
async def test_an_answer_whose_head_never_ends(piece: bytes) -> None:
    sent = 0

    async def handler(connection: Connection, seen: Seen) -> None:
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\nx: y\r\n")
        while not connection.writer.transport.is_closing():
            await connection.send(piece)
            sent += len(piece)

    async with stub(handler) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", CHAT))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_malformed")
        (connection,) = up.connections
        await connection.closed.wait()
        # what was on its way when it was cut is in the kernel's hands
        assert sent <= HEAD + 1024 * KIB


async def test_a_body_in_reads_of_two_bytes_takes_little_more_than_its_size() -> None:
    size = 6000
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions", b" " * (size + 1))[: -size - 1], *[b"  "] * (size // 2))
        await until(lambda: gw.gateway.collected == size, "all but the last byte")
        (connection,) = gw.gateway.clients
        assert connection.exchange is not None
        assert connection.exchange.upload is not None
        assert sum(map(sys.getsizeof, connection.exchange.upload._parts)) < 2 * size
