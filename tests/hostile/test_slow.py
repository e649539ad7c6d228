"""Clients and upstreams that are slow on purpose, many at once and for long: each is ended at its deadline, meanwhile
everyone else is served, and what they hold of the gateway's memory is bounded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes import CHAT, Client, Connection, Seen, Stub, connect, get, ok, post, stub, until
from processes import PATIENCE, Serve

pytestmark = pytest.mark.unmeasured

MANY = 100  # of each kind
READERS = 20
DEADLINE = 1.0  # seconds, of every kind
# How much later than that a machine with other things to do may be; the sweep alone is up to 0.1 s late.
LATE = 4.0
KIB = 1024
MIB = 1024 * KIB
PER_CONNECTION = 16 * KIB
# What waits for a slow reader: the transport's high-water mark, and one read above it.
PER_READER = 64 * KIB + 256_000
PIECE = b"x" * MIB
LARGE = 256 * MIB
MOST = 16 * MIB  # of it in memory
PAUSES = 8
PAUSE = 0.05  # seconds in which the other side could send dozens of pieces

CONFIG = """
upstreams:
  up: {provider: openai, targets: [{url: "URL"}]}
  raw: {provider: http, targets: [{url: "URL"}]}
gateways:
  default:
    auth: none
    models: {"*": up}
    rules: [{name: api, path: "/v1/*"}, {name: raw, path: "/raw/*", upstream: raw}]
timeouts: {keepalive: 60s, request: 1s, client_read: 1s, client_write: 1s, linger: 1s}
"""

Memory = Callable[[Serve], int]


class Served:
    """A running gateway and its clients."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self._clients: list[Client] = []

    async def connect(self, *, buffer: int | None = None) -> Client:
        client = await connect("127.0.0.1", self.serve.port, buffer=buffer)
        self._clients.append(client)
        return client

    async def ask(self, raw: bytes) -> None:
        client = await connect("127.0.0.1", self.serve.port)
        assert (await client.ask(raw)).status == 200
        await client.close()

    async def crowd(self, raw: bytes) -> list[Client]:
        """Many clients that all say `raw`."""
        clients = [await self.connect() for _ in range(MANY)]
        for client in clients:
            client.writer.write(raw)
        return clients

    async def close(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def served(folder: Path, up: Stub) -> AsyncIterator[Served]:
    """A gateway that everything has passed through once, so that what it needs for anyone is there."""
    with Serve(folder, CONFIG.replace("URL", up.url)) as serve:
        gw = Served(serve)
        try:
            for raw in (get("/__/ping"), post("/v1/chat/completions"), post("/raw/x")):
                await gw.ask(raw)
            yield gw
        finally:
            await gw.close()
        assert serve.stop() == 0


async def dribble(clients: list[Client]) -> None:
    """A byte more from everyone, again and again: no byte may buy time."""
    while True:
        for client in clients:
            client.writer.write(b"x")
        await asyncio.sleep(DEADLINE / 5)


async def ended(client: Client) -> tuple[bytes, float]:
    """What came until the end of the connection, and when that was."""
    async with asyncio.timeout(PATIENCE):
        try:
            raw = await client.reader.read(-1)
        except ConnectionResetError:
            raw = b""
    return raw, time.monotonic()


async def test_heads_that_dribble_and_bodies_that_stop(tmp_path: Path, memory: Memory) -> None:
    """All are answered with 408 at their deadline, and others are served until then."""
    async with stub() as up, served(tmp_path, up) as gw:
        before = memory(gw.serve)
        started = time.monotonic()
        heads = await gw.crowd(b"GET /v1/models HTTP/1.1\r\nhost: gw\r\nx-slow: ")
        dribbling = asyncio.create_task(dribble(heads))
        collected = await gw.crowd(post("/v1/chat/completions", CHAT)[:-10])
        spliced = await gw.crowd(post("/raw/x", CHAT)[:-10])
        await gw.ask(get("/__/ping"))  # all of them are heard then
        assert memory(gw.serve) - before < 3 * MANY * PER_CONNECTION
        endings = [asyncio.create_task(ended(client)) for client in heads + collected + spliced]
        while not all(ending.done() for ending in endings):
            await gw.ask(get("/__/ping"))
            await asyncio.wait(endings, timeout=DEADLINE / 10)
        dribbling.cancel()
        for ending in endings:
            raw, at = ending.result()
            assert raw.startswith(b"HTTP/1.1 408 ")
            assert b"\r\nconnection: close\r\n" in raw
            assert DEADLINE <= at - started < DEADLINE + LATE


class Pouring:
    """Answers with so many bytes, as fast as they are taken; other paths with none."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.connections: list[Connection] = []

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        if b"/large" not in seen.line:
            await connection.send(ok())
            return
        self.connections.append(connection)
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % self.size)
        for _ in range(self.size // len(PIECE)):
            await connection.send(PIECE)


async def test_readers_that_stop(tmp_path: Path, memory: Memory) -> None:
    """They are cut at their deadline, and the upstream with them."""
    pouring = Pouring(64 * MIB)

    async def cut() -> float:
        await until(lambda: len(pouring.connections) == READERS, "all readers at the upstream")
        for connection in pouring.connections:
            await connection.closed.wait()
        return time.monotonic()

    async with stub(pouring) as up, served(tmp_path, up) as gw:
        before = peak = memory(gw.serve)
        started = time.monotonic()
        for _ in range(READERS):
            client = await gw.connect(buffer=8 * KIB)
            client.stop_reading()
            await client.send(get("/raw/large"))
        cutting = asyncio.create_task(cut())
        async with asyncio.timeout(PATIENCE):
            while not cutting.done():
                await gw.ask(get("/__/ping"))
                peak = max(peak, memory(gw.serve))
                await asyncio.wait([cutting], timeout=DEADLINE / 10)
        assert DEADLINE <= cutting.result() - started < DEADLINE + LATE
        assert peak - before < READERS * (PER_READER + PER_CONNECTION)
        gw.serve.out.wait(lambda lines: sum('"end":"client_slow"' in line for line in lines) == READERS, "all of them")


async def test_a_large_answer_to_a_slow_reader(tmp_path: Path, memory: Memory) -> None:
    """Slow for the beginning: a piece, then a pause in which the upstream could send many."""
    async with stub(Pouring(LARGE)) as up, served(tmp_path, up) as gw:
        before = peak = memory(gw.serve)
        client = await gw.connect()
        await client.send(get("/raw/large"))
        await client.read(b"\r\n\r\n")
        for index in range(LARGE // len(PIECE)):
            if index < PAUSES:
                await asyncio.sleep(PAUSE)
            await client.read(len(PIECE))
            peak = max(peak, memory(gw.serve))
        assert peak - before < MOST


async def test_a_large_request_to_a_slow_upstream(tmp_path: Path, memory: Memory) -> None:
    peak = 0

    async def on_head(connection: Connection, seen: Seen) -> None:
        nonlocal peak
        if b"/large" not in seen.line:
            return
        for index in range(LARGE // len(PIECE)):
            if index < PAUSES:
                await asyncio.sleep(PAUSE)
            assert await connection.reader.readexactly(len(PIECE)) == PIECE
            peak = max(peak, memory(gw.serve))
        await connection.send(ok(b"", b"connection: close"))
        connection.close()

    async with stub(on_head=on_head) as up, served(tmp_path, up) as gw:
        before = memory(gw.serve)
        client = await gw.connect()
        await client.send(b"PUT /raw/large HTTP/1.1\r\nhost: gw\r\ncontent-length: %d\r\n\r\n" % LARGE)
        for _ in range(LARGE // len(PIECE)):
            client.writer.write(PIECE)
            await client.writer.drain()
        assert (await client.answer()).status == 200
        assert peak
        assert peak - before < MOST
