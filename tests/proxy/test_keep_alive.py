"""Connections that are used again: the client's with its pipelined requests, and the upstream's from the pool."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from fakes import (
    CHAT,
    Connection,
    Seen,
    document,
    get,
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

# the upstream's connections -------------------------------------------------------------------------------------------


async def test_clients_share_an_upstream_connection_one_after_the_other() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        for _ in range(3):
            assert (await gw.ask(post("/v1/chat/completions"))).status == 200
        assert [connection.requests for connection in up.connections] == [3]


async def test_requests_at_once_have_connections_of_their_own() -> None:
    everyone = asyncio.Barrier(3)

    async def handler(connection: Connection, seen: Seen) -> None:
        await everyone.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(serving(up.url)) as gw:
        answers = await asyncio.gather(*(gw.ask(post("/v1/chat/completions")) for _ in range(3)))
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert len(up.connections) == 3
        assert len(gw.pool.idle) == 3


async def test_an_upstream_that_closes_after_its_answer_is_dialled_anew() -> None:
    async with stub(ok(b"x", b"connection: close")) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        for _ in range(2):
            answer = await client.ask(post("/v1/chat/completions"))
            assert answer.status == 200
            assert "connection" not in answer.headers  # what is between us and the upstream is not the client's
            assert not gw.pool.idle
        assert len(up.connections) == 2


@pytest.mark.parametrize(("seconds", "is_kept"), [(0, False), (1, False), (60, True)])
async def test_the_upstreams_keep_alive_time_is_heeded_less_one_second(seconds: int, is_kept: bool) -> None:
    async with stub(ok(b"x", b"keep-alive: timeout=%d, max=100" % seconds)) as up, running(serving(up.url)) as gw:
        for _ in range(2):
            await gw.ask(post("/v1/chat/completions"))
        assert len(up.connections) == (1 if is_kept else 2)


async def test_the_shorter_of_pool_idle_and_keep_alive_counts() -> None:
    async with stub(ok(b"x", b"keep-alive: timeout=3")) as up, running(serving(up.url)) as gw:
        before = time.monotonic()
        await gw.ask(post("/v1/chat/completions"))
        (connection,) = gw.pool.idle
        assert before + 2 <= connection.idle_until <= time.monotonic() + 2
        gw.apply(_with_pool_idle(up.url, 1.5), 2)
        await gw.ask(post("/v1/chat/completions"))
        (connection,) = gw.pool.idle
        assert connection.idle_until <= time.monotonic() + 1.5


def _with_pool_idle(url: str, seconds: float) -> dict[str, object]:
    return document({"up": upstream(target(url), timeouts={"pool_idle": seconds})})


async def test_a_connection_that_was_idle_too_long_is_closed_and_not_handed_out() -> None:
    async with stub() as up, running(_with_pool_idle(up.url, 0.05)) as gw:
        await gw.ask(post("/v1/chat/completions"))
        (idle,) = gw.pool.idle
        await until(lambda: time.monotonic() > idle.idle_until, "pool_idle")
        await gw.ask(post("/v1/chat/completions"))  # maybe before the sweep came by
        assert len(up.connections) == 2
        await until(lambda: not gw.pool.idle, "the sweep")
        async with asyncio.timeout(1):
            await up.connections[1].closed.wait()


async def test_a_connection_closed_while_idle_is_not_handed_out() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        for count in range(1, 4):
            assert (await gw.ask(post("/v1/images/generations"))).status == 200  # a POST that is never sent twice
            assert len(up.connections) == count
            up.connections[-1].close()
            await until(lambda: not gw.pool.idle, "the pool to learn of it")


async def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        await gw.ask(post("/v1/chat/completions"))
        await up.connections[0].send(ok(b"forged"))
        await until(lambda: not gw.pool.idle, "the pool to close it")
        answer = await gw.ask(post("/v1/chat/completions"))
        assert answer.body == b'{"ok": true}'
        assert len(up.connections) == 2


async def test_the_connection_used_last_is_used_first() -> None:
    """So that those that are not needed grow old and close."""
    two = asyncio.Barrier(2)

    async def handler(connection: Connection, seen: Seen) -> None:
        if b"slow" in seen.line:
            await two.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        await asyncio.gather(gw.ask(get("/slow")), gw.ask(get("/slow")))
        for _ in range(5):
            await gw.ask(get("/x"))
        assert sorted(connection.requests for connection in up.connections) == [1, 6]


async def test_an_answer_that_outran_its_client_leaves_a_connection_of_use(tmp_path: Path) -> None:
    """The client does not read, so the upstream was paused in the very read that completed its answer. Back in the
    pool it must be read again, or the next exchange waits for an answer that nobody reads."""
    large = b"x" * 150_000  # one read, and more than a client's write buffer holds

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(large if b"large" in seen.line else b"small"))

    path = str(tmp_path / "up.sock")  # no TCP window: what is written at once is read at once
    async with stub(handler, path=path), running(splicing(f"unix:{path}"), buffer=4096) as gw:
        slow = await gw.connect(buffer=4096)
        slow.stop_reading()
        await slow.send(get("/large"))
        await until(lambda: gw.gateway.slow and gw.pool.idle, "the answer's end, with a client that does not read")
        assert (await gw.ask(get("/small"))).body == b"small"
        slow.read_on()
        assert (await slow.answer()).body == large


# the client's connection ----------------------------------------------------------------------------------------------


async def test_a_client_that_wants_the_connection_closed_gets_that() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(post("/v1/chat/completions", CHAT, b"connection: close"))
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""
        assert "connection" not in up.last.headers
        assert len(gw.pool.idle) == 1


async def test_fields_named_in_connection_do_not_go_on_and_framing_is_immune() -> None:
    lines = [b"connection: x-hop, authorization, content-length, host", b"x-hop: 1", b"keep-alive: 5", b"te: trailers"]
    lines += [b"proxy-connection: x", b"proxy-authorization: Basic x", b"upgrade: h2c", b"http2-settings: x"]
    async with stub() as up, running(serving(up.url, api_key="secret")) as gw:
        answer = await gw.ask(post("/v1/chat/completions", CHAT, *lines))
        assert answer.status == 200
        names = {line.partition(b":")[0] for line in up.last.lines}
        assert not names & {line.partition(b":")[0] for line in lines}
        assert up.last.headers["authorization"] == "Bearer secret"
        assert up.last.body == CHAT


@pytest.mark.parametrize("raw", [get("/slow"), post("/slow", CHAT)], ids=["get", "post"])
async def test_requests_behind_one_that_takes_time_wait_in_order(raw: bytes) -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        if seen.line.startswith((b"GET /slow", b"POST /slow")):
            await go.wait()
        await connection.send(ok(seen.line))

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(raw)
        await until(lambda: up.seen, "the first at the upstream")
        await client.send(get("/a"), get("/b"))
        go.set()
        bodies = [(await client.answer()).body for _ in range(3)]
        assert [body.split()[1] for body in bodies] == [b"/slow", b"/a", b"/b"]


async def test_a_thousand_pipelined_requests_are_answered() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/__/ping") * 16)
        for left in range(1000, 0, -1):
            if left > 16:
                await client.send(get("/__/ping"))
            assert (await client.answer()).status == 200


async def test_more_pipelined_bytes_than_are_kept_end_the_connection_after_the_answer() -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.send(ok(b"x" * 100_000))

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        await until(lambda: up.seen, "the first at the upstream")
        (connection,) = gw.gateway.clients
        await client.send(*[get("/y", b"x-filler: " + b"x" * 900)] * 150)
        await until(lambda: connection.close_wanted, "the bound passed")
        assert len(connection.buffer) <= 64 * 1024
        go.set()
        answer = await client.answer()
        assert (answer.status, len(answer.body)) == (200, 100_000)
        assert answer.headers["connection"] == "close"
        assert await client.ended() == b""
        assert len(up.seen) == 1


async def test_empty_lines_before_a_request_are_skipped() -> None:
    """RFC 9112 section 2.2."""
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        for blank in (b"\r\n", b"\r\n\r\n", b""):
            assert (await client.ask(blank + get("/x"))).status == 200
        await client.send(b"\r\n", b"\r", b"\n")
        assert (await client.ask(get("/x"))).status == 200


async def test_chunked_bodies_and_what_follows_them_in_one_write() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(
            post("/a", chunks=[b"GET /evil HTTP/1.1\r\n\r\n"]) + get("/b") + post("/c", chunks=[]) + get("/d")
        )
        for _ in range(4):
            assert (await client.answer()).status == 200
        assert [seen.line.split()[1] for seen in up.seen] == [b"/a", b"/b", b"/c", b"/d"]


async def test_who_goes_on_sending_behind_its_last_request_still_gets_the_answer() -> None:
    """RFC 9112 section 9.6: closing at once would reset the connection, and take the answer with it."""
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.send(ok(b"x" * 50_000))

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        client.stop_reading()
        await client.send(get("/x", b"connection: close"))
        await until(lambda: len(up.seen) == 1, "the request at the upstream")
        await client.send(get("/y"))
        (connection,) = gw.gateway.clients
        await until(lambda: connection.buffer, "what came behind it read")
        go.set()
        await until(lambda: connection.exchange is None, "the answer written")
        await client.send(get("/z"))
        client.read_on()
        assert (await client.answer()).body == b"x" * 50_000
        assert await client.rest() == b""
        assert len(up.seen) == 1
