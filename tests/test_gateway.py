"""The life of a worker's gateway: another config, too many clients, drain, and faults of its own."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fakes import (
    CHAT,
    Connection,
    Running,
    Seen,
    chunked,
    connect,
    document,
    gateway,
    get,
    key,
    model,
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

from aigw import shared

CHAT_PATH = "/v1/chat/completions"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"


class Held:
    """An upstream that begins its answer, and ends it when told to."""

    def __init__(self, begins: bytes = STREAM) -> None:
        self.begins = begins
        self.go = asyncio.Event()

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        if self.begins:
            await connection.send(self.begins)
        await self.go.wait()
        await connection.send(chunked(b"last") if self.begins else ok())


# another config -------------------------------------------------------------------------------------------------------


async def test_a_snapshot_counts_from_the_next_request_on() -> None:
    held = Held()
    async with stub(held) as a, stub(ok(b"b")) as b, running(serving(a.url)) as gw:
        old, new = await gw.connect(), await gw.connect()
        await old.send(post(CHAT_PATH))
        await old.read(b"first\r\n")
        gw.apply(serving(b.url), 2)
        assert (await new.ask(post(CHAT_PATH))).body == b"b"
        held.go.set()
        assert await old.read(b"0\r\n\r\n") == chunked(b"last")
        assert (await old.ask(post(CHAT_PATH))).body == b"b"  # its connection carried over
        assert [record["generation"] for record in gw.records] == [2, 1, 2]
        assert all(record["end"] == "ok" for record in gw.records)


async def test_the_pool_of_a_target_that_left_is_retired() -> None:
    held = Held()
    async with stub(held) as a, stub() as b, running(serving(a.url)) as gw:
        held.go.set()
        await gw.ask(post(CHAT_PATH))
        held.go.clear()
        busy = await gw.connect()
        await busy.send(post(CHAT_PATH))
        await busy.read(b"first\r\n")
        other = await gw.connect()
        await other.send(post(CHAT_PATH))
        await until(lambda: len(a.seen) == 3, "two at the old target")
        old = gw.pool
        gw.apply(serving(b.url), 2)
        assert gw.pool is not old
        held.go.set()
        await busy.read(b"0\r\n\r\n")
        await other.answer()
        for connection in a.connections:
            async with asyncio.timeout(1):
                await connection.closed.wait()
        assert not old.idle
        assert old.in_flight == 0


async def test_idle_connections_of_a_target_that_left_close_at_once_and_those_of_one_that_stayed_do_not() -> None:
    async with stub() as a, stub() as b:
        both = {"a": upstream(target(a.url)), "b": upstream(target(b.url))}
        models = {"a": model("a"), "b": model("b")}
        config = document(both, gateways={"default": gateway(models=models)})
        async with running(config) as gw:
            for name in (b"a", b"b"):
                await gw.ask(post(CHAT_PATH, b'{"model": "%b"}' % name))
            del both["a"], models["a"]
            gw.apply(document(both, gateways={"default": gateway(models=models)}), 2)
            async with asyncio.timeout(1):
                await a.connections[0].closed.wait()
            await gw.ask(post(CHAT_PATH, b'{"model": "b"}'))
            assert len(b.connections) == 1


async def test_a_request_that_waited_for_a_target_that_left_still_gets_there() -> None:
    held = Held(b"")
    async with stub(held) as up, stub() as other, running(serving(up.url, max_connections=1)) as gw:
        first, second = await gw.connect(), await gw.connect()
        await first.send(post(CHAT_PATH))
        await until(lambda: up.seen, "the first at the upstream")
        await second.send(post(CHAT_PATH))
        await until(lambda: gw.pool.waiting, "the second waiting")
        gw.apply(serving(other.url), 2)
        held.go.set()
        assert (await first.answer()).status == 200
        assert (await second.answer()).status == 200
        assert len(up.seen) == 2


async def test_keys_and_models_change_with_the_snapshot_and_nothing_remembers_the_old() -> None:
    def config(secret: str, **models: Any) -> dict[str, Any]:
        fields = {"auth": "keys", "keys": {"k": key(secret)}, "models": models}
        return document({"up": upstream(target(up.url))}, gateways={"default": gateway(**fields)})

    async with stub() as up, running(config("one", m=model("up"))) as gw:
        client = await gw.connect()

        async def status(secret: bytes, name: bytes) -> int:
            return (await client.ask(post(CHAT_PATH, b'{"model": "%b"}' % name, b"x-api-key: " + secret))).status

        assert [await status(b"one", b"m"), await status(b"two", b"m"), await status(b"one", b"n")] == [200, 401, 404]
        gw.apply(config("two", n=model("up", "m")), 2)
        assert [await status(b"one", b"n"), await status(b"two", b"m"), await status(b"two", b"n")] == [401, 404, 200]
        assert up.last.body == b'{"model": "m"}'


# too many clients -----------------------------------------------------------------------------------------------------


async def test_a_client_too_many_is_503_and_the_others_are_untouched() -> None:
    async with stub() as up, running(document({"up": upstream(target(up.url))}, bounds={"connections": 2})) as gw:
        first, second = await gw.connect(), await gw.connect()
        assert (await first.ask(post(CHAT_PATH))).status == 200
        assert (await second.ask(post(CHAT_PATH))).status == 200
        third = await gw.connect()
        answer = await third.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (503, "too_many_connections")
        assert answer.headers["connection"] == "close"
        await third.ended()
        await third.close()
        assert (await first.ask(post(CHAT_PATH))).status == 200
        await first.close()
        await until(lambda: len(gw.gateway.clients) == 1, "room for one more")
        assert (await (await gw.connect()).ask(post(CHAT_PATH))).status == 200


# drain ----------------------------------------------------------------------------------------------------------------


async def test_a_drain_without_clients_is_over_at_once() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        assert await gw.gateway.drain(5.0) == 0
        with pytest.raises(ConnectionRefusedError):
            await connect("127.0.0.1", gw.port)


async def test_a_drain_closes_idle_clients_and_lets_running_exchanges_finish() -> None:
    held = Held(b"")
    async with stub(held) as up, running(serving(up.url)) as gw:
        idle, busy = await gw.connect(), await gw.connect()
        await idle.ask(get("/__/ping"))
        await busy.send(post(CHAT_PATH))
        await until(lambda: up.seen, "one at the upstream")
        drained = asyncio.create_task(gw.gateway.drain(5.0))
        assert await idle.rest() == b""
        held.go.set()
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await busy.rest() == b""
        assert await drained == 0
        assert [record["end"] for record in gw.records] == ["ok"]


async def test_a_drain_cuts_what_does_not_finish_in_time_visibly() -> None:
    async with stub(Held()) as up, running(serving(up.url)) as gw:
        streaming, waiting = await gw.connect(), await gw.connect()
        await streaming.send(post(CHAT_PATH))
        await streaming.read(b"first\r\n")
        up.handler = Held(b"")
        await waiting.send(post(CHAT_PATH))
        await until(lambda: len(up.seen) == 2, "both at the upstream")
        started = time.monotonic()
        assert await gw.gateway.drain(0.2) == 2
        assert 0.2 <= time.monotonic() - started < 0.5
        assert not (await streaming.ended()).endswith(b"0\r\n\r\n")
        answer = await waiting.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (503, "draining")
        assert all(record["end"] != "ok" for record in gw.records)
        assert all(record["error"] == "draining" for record in gw.records)


async def test_readiness_turns_red_first_and_requests_are_served_until_the_listeners_close() -> None:
    """`drain.delay` is for the load balancer to notice: whoever still comes meanwhile is no worse off."""
    async with stub() as up, running(serving(up.url)) as gw:
        kept = await gw.connect()
        gw.gateway.unready()
        answer = await gw.ask(get("/readyz"))
        assert (answer.status, answer.json()) == (503, {"status": "draining"})
        assert (await gw.ask(get("/healthz"))).status == 200
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert (await kept.ask(post(CHAT_PATH))).headers["connection"] == "close"
        assert await gw.gateway.drain(5.0) == 0


async def test_who_is_wanted_no_more_says_so_before_it_closes_idle_connections() -> None:
    """A worker too many: others serve, so a client that is told to reconnect loses nothing."""
    async with stub() as up, running(serving(up.url)) as gw:
        busy, idle = await gw.connect(), await gw.connect()
        assert "connection" not in (await busy.ask(post(CHAT_PATH))).headers
        await idle.ask(get("/__/ping"))
        drained = asyncio.create_task(gw.gateway.drain(0.5, idle=0.5))
        await until(lambda: not gw.gateway._servers, "the listener closed")
        assert (await idle.ask(get("/readyz"))).status == 200  # the service is ready, if not this worker for long
        assert await idle.rest() == b""
        answer = await busy.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await drained == 0


async def test_the_shared_row_tells_connections_and_exchanges() -> None:
    held = Held()
    async with stub(held) as up, running(serving(up.url)) as gw:
        busy, idle = await gw.connect(), await gw.connect()
        await busy.send(post(CHAT_PATH))
        await busy.read(b"first\r\n")
        await idle.ask(get("/__/ping"))
        gw.gateway.stamp()
        row = gw.gateway.row
        assert (row[shared.CONNECTIONS], row[shared.IN_FLIGHT], row[shared.GENERATION]) == (2, 1, 1)
        held.go.set()
        await busy.read(b"0\r\n\r\n")
        gw.gateway.stamp()
        assert (row[shared.CONNECTIONS], row[shared.IN_FLIGHT]) == (2, 0)


async def test_close_says_what_happens_to_those_who_wait() -> None:
    gone = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.gone()
        gone.set()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await until(lambda: up.seen, "one at the upstream")
        gw.gateway.close()
        assert (await client.answer()).status == 503
        async with asyncio.timeout(1):
            await gone.wait()


# faults of ours -------------------------------------------------------------------------------------------------------


class Failing:
    """A log that cannot be written to, the first `times`."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.lines: list[bytes] = []

    def __call__(self, line: bytes) -> None:
        if self.times:
            self.times -= 1
            raise RuntimeError("the log is full of secrets")
        self.lines.append(line)


def reported(gw: Running) -> bool:
    found = [context for context in gw.faults if "secrets" in str(context.get("exception"))]
    gw.faults.clear()
    return bool(found)


@pytest.mark.parametrize("times", [1, 100])
@pytest.mark.parametrize("raw", [post(CHAT_PATH), get("/nowhere"), post(CHAT_PATH, b"no JSON")])
async def test_a_fault_is_reported_and_never_shown(raw: bytes, times: int) -> None:
    log = Failing(times)
    async with stub() as up, running(serving(up.url), emit=log) as gw:
        client = await gw.connect()
        await client.send(raw)
        shown = await _some_answer_or_end(client)
        assert b"secrets" not in shown
        assert b"Traceback" not in shown
        assert reported(gw)
        await until(lambda: not gw.open_ends, "nothing held")
        log.times = 0
        assert (await gw.ask(post(CHAT_PATH))).status == 200  # nobody else is worse off
        assert b'"end":"ok"' in log.lines[-1]


async def _some_answer_or_end(client: Any) -> bytes:
    try:
        return (await client.answer()).raw  # type: ignore[no-any-return]
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def test_a_fault_at_one_clients_deadline_leaves_the_others_theirs() -> None:
    log = Failing(1000)
    config = splicing("http://127.0.0.1:1", timeouts={"client_read": 0.15, "keepalive": 0.3})
    async with running(config, emit=log) as gw:
        stuck = await gw.connect()
        idle = await gw.connect()
        await stuck.send(get("/x", b"content-length: 5", method=b"POST"))
        assert await idle.rest() == b""  # its keepalive
        assert reported(gw)
        assert await stuck.ended() is not None
        gw.faults.clear()


async def test_repr_shows_the_state() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.ask(post(CHAT_PATH, CHAT))
        assert repr(gw.gateway) == "<Gateway 1 clients 1 pools>"
        assert repr(gw.pool).startswith("<Pool up/a 1 idle 0 busy 0 waiting")
        (connection,) = gw.gateway.clients
        assert repr(connection) == "<ClientConnection 127.0.0.1 idle>"
        gw.gateway.draining = True
        assert "draining" in repr(gw.gateway)
