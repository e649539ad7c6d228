"""Clients that leave: whatever the exchange was doing, the upstream stops, one record says so, nothing is left."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from fakes import CHAT, Client, Connection, Running, Seen, deaf, get, ok, post, running, serving, splicing, stub, until

from aigw.proxy.states import State

CHAT_PATH = "/v1/chat/completions"
STARTED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
ENDS = pytest.mark.parametrize("end", ["FIN", "RST"])


def leave(client: Client, end: str) -> None:
    if end == "RST":
        client.reset()
    else:
        client.writer.write_eof()


class Silent:
    """An upstream that says so much and no more; `gone` is set once its connection was closed by the gateway."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts
        self.arrived = asyncio.Event()
        self.gone = asyncio.Event()

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        await connection.send(*self.parts)
        self.arrived.set()
        await connection.gone()
        self.gone.set()


async def at_once(gone: asyncio.Event) -> None:
    """It comes within 0.1 s in which this thread has nothing else to do: in CPU time, since others use the machine."""
    began = time.thread_time()
    while not gone.is_set():
        assert time.thread_time() - began < 0.1
        await asyncio.sleep(0)


async def in_state(gw: Running, state: State) -> None:
    await until(lambda: any(client.state is state for client in gw.gateway.clients), f"a client {state.value}")


async def check(gw: Running, status: int) -> None:
    record = await gw.record()
    assert (record["status"], record["end"], record["fault"]) == (status, "client_gone", "client")
    await until(lambda: not gw.gateway.clients and not gw.open_ends, "nothing left")
    assert len(gw.records) == 1
    assert not gw.pool.idle
    assert not gw.pool.busy


@ENDS
async def test_while_its_body_is_collected(end: str) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH)[:-1])
        await until(lambda: gw.gateway.collected, "a body being collected")
        leave(client, end)
        await check(gw, 499)
        assert not up.connections


@ENDS
async def test_in_the_middle_of_a_head(end: str) -> None:
    """No request, so no record."""
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH)[:20])
        await in_state(gw, State.READING)
        leave(client, end)
        await until(lambda: not gw.gateway.clients, "the connection closed")
        assert not gw.lines


@ENDS
async def test_while_it_waits_for_a_connection(end: str) -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(serving(up.url, max_connections=1)) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.send(post(CHAT_PATH))
        await until(lambda: up.seen, "the first at the upstream")
        await second.send(post(CHAT_PATH))
        await in_state(gw, State.ACQUIRING)
        leave(second, end)
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (499, "client_gone", "client")
        await until(lambda: not gw.pool.waiting, "nobody waiting")
        go.set()
        assert (await first.answer()).status == 200
        assert len(up.seen) == 1


@ENDS
async def test_while_its_request_is_sent(end: str) -> None:
    seen_heads: list[Seen] = []
    gone = asyncio.Event()

    async def on_head(connection: Connection, seen: Seen) -> None:
        seen_heads.append(seen)
        await connection.gone()
        gone.set()

    async with stub(on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/x", b"x" * 1000)[:-500])
        await until(lambda: seen_heads, "the head at the upstream")
        await in_state(gw, State.SENDING)
        leave(client, end)
        await at_once(gone)
        await check(gw, 499)
        assert not up.seen  # an incomplete request never looks complete


@ENDS
async def test_while_the_answer_is_awaited(end: str) -> None:
    silent = Silent()
    async with stub(silent) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await silent.arrived.wait()
        await in_state(gw, State.WAITING)
        leave(client, end)
        await at_once(silent.gone)
        await check(gw, 499)
        assert len(up.seen) == 1


@ENDS
@pytest.mark.parametrize(
    "framing", [b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", b"content-length: 9\r\n\r\nhi", b"\r\nhi"]
)
async def test_while_the_answer_is_relayed(end: str, framing: bytes) -> None:
    silent = Silent(b"HTTP/1.1 200 OK\r\n" + framing)
    async with stub(silent) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await client.read(b"hi")
        await in_state(gw, State.RELAYING)
        leave(client, end)
        await at_once(silent.gone)
        await check(gw, 200)
        assert len(up.connections) == 1


@ENDS
async def test_while_it_does_not_read_its_answer(end: str) -> None:
    async with stub(_endless) as up, running(serving(up.url), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(post(CHAT_PATH))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        leave(client, end)
        await check(gw, 200)


async def _endless(connection: Connection, seen: Seen) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await connection.send(b"x" * 65536)


@ENDS
async def test_with_pipelined_requests_behind(end: str) -> None:
    silent = Silent()
    async with stub(silent) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH) + post(CHAT_PATH))
        await silent.arrived.wait()
        leave(client, end)
        await check(gw, 499)
        assert len(up.seen) == 1


@ENDS
async def test_while_idle(end: str) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.ask(post(CHAT_PATH))
        leave(client, end)
        await until(lambda: not gw.gateway.clients, "the connection closed")
        assert [record["end"] for record in gw.records] == ["ok"]
        assert len(gw.pool.idle) == 1


@ENDS
async def test_while_its_upstream_is_dialled(end: str) -> None:
    """The dial goes on, since its connection will be of use; nothing is sent on it."""
    async with deaf() as address:
        config = serving(address.url)
        config["upstreams"]["up"]["timeouts"]["connect"] = 0.5
        async with running(config) as gw:
            client = await gw.connect()
            await client.send(post(CHAT_PATH))
            await in_state(gw, State.ACQUIRING)
            assert gw.pool.dialling == 1
            leave(client, end)
            await check(gw, 499)
            assert not gw.pool.waiting


@ENDS
async def test_after_it_was_refused_while_its_body_is_let_go(end: str) -> None:
    """It was answered, and that is what the record says: nothing of it was at an upstream."""
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH, b"{" * 100, b"expect: what")[:-50])
        assert (await client.answer()).status == 417
        await in_state(gw, State.REPLYING)
        leave(client, end)
        await until(lambda: not gw.gateway.clients and not gw.open_ends, "nothing left")
        assert [(record["status"], record["end"]) for record in gw.records] == [(417, "refused")]
        assert not up.connections


@ENDS
async def test_after_its_upstream_failed_while_its_body_is_let_go(end: str) -> None:
    async with stub(on_head=_refusing) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/x", b"x" * 1000)[:-500])
        assert (await client.answer()).status == 502
        await in_state(gw, State.REPLYING)
        leave(client, end)
        await until(lambda: not gw.gateway.clients and not gw.open_ends, "nothing left")
        assert [(record["status"], record["end"]) for record in gw.records] == [(502, "failed")]
        assert not up.seen


async def _refusing(connection: Connection, seen: Seen) -> None:
    await connection.send(b"nonsense\r\n\r\n")
    await connection.gone()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.unmeasured
async def test_a_thousand_aborts_leave_nothing() -> None:
    """In every state in which an upstream is concerned: while the body is collected or passed on, while the answer is
    awaited, in its head, in its body."""
    gone: list[Connection] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        said = {b"/head": b"HTTP/1.1 200 OK\r\nx: ", b"/body": STARTED}
        await connection.send(said.get(seen.line.split(b" ")[1], b""))
        await connection.gone()
        gone.append(connection)

    asyncio.get_running_loop().set_debug(False)  # where a thousand connections were opened is not asked here
    ways = [post("/wait"), post("/head"), post("/body"), post("/body", chunks=[CHAT]), post("/upload")[:-5]]
    async with stub(handler) as up, running(splicing(up.url)) as gw:
        tasks, open_before = len(asyncio.all_tasks()), descriptors()
        for _ in range(20):
            clients = [await gw.connect() for _ in range(50)]
            for index, client in enumerate(clients):
                await client.send(ways[index % len(ways)])
            await until(lambda: len(up.seen) % 40 == 0 and gw.pool.busy == 50, "fifty exchanges at the upstream")
            for index, client in enumerate(clients):
                if index % len(ways) in (2, 3):
                    await client.read(b"1\r\nx\r\n")
                leave(client, "RST" if index % 2 else "FIN")
            await until(lambda: not gw.gateway.clients, "no client")
            for client in clients:
                await client.close()
        await until(lambda: len(gw.lines) == 1000, "a thousand records")
        await until(lambda: len(gone) == 800, "every connection that was answered on closed")
        assert {(record["status"], record["end"]) for record in gw.records} == {
            (200, "client_gone"),
            (499, "client_gone"),
        }
        assert sum(record["status"] == 200 for record in gw.records) == 400
        assert not gw.open_ends
        assert not gw.pool.idle
        assert not gw.gateway.slow
        await until(lambda: len(asyncio.all_tasks()) <= tasks, "no task")
        await until(lambda: descriptors() <= open_before, "no descriptor")
        assert (await gw.ask(get("/__/ping"))).status == 200
