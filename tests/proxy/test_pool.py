"""Connections over all workers: what is open to a target is counted together, and none waits for ever for another's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from fakes import (
    Connection,
    Handler,
    Running,
    Seen,
    Stub,
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

from aigw.counters import IN_FLIGHT, OPEN, QUEUED, TALLIES
from aigw.shared import PID, Cells

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells(rows=3)
    yield made
    os.close(made.descriptor)  # the memory goes with the last row of it


class Gate:
    """An upstream that answers when it may, and knows how many it serves at once."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.at_once = self.most = 0

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await self.go.wait()
            await connection.send(ok())
        finally:
            self.at_once -= 1


async def workers(stack: AsyncExitStack, cells: Cells, config: dict[str, Any], count: int = 2) -> list[Running]:
    return [await stack.enter_async_context(running(config, cells=cells, number=number)) for number in range(count)]


def still_open(up: Stub) -> int:
    return sum(not connection.closed.is_set() for connection in up.connections)


def tallies(cells: Cells) -> list[int]:
    return cells.totals(TALLIES)[b"up/a"]


async def test_the_bound_holds_over_all_workers(cells: Cells) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        one, two = await workers(stack, cells, serving(up.url, max_connections=3))
        asked = [asyncio.create_task(run.ask(post(CHAT_PATH))) for run in (one, two) for _ in range(4)]
        await until(lambda: one.pool.in_flight + two.pool.in_flight == 8, "all eight there")
        await until(lambda: len(up.seen) == 3, "three at the upstream")
        assert tallies(cells) == [3, 8, 5]
        one.pool.look()
        two.pool.look()
        assert still_open(up) == 3
        gate.go.set()
        answers = await asyncio.gather(*asked)
        assert [answer.status for answer in answers] == [200] * 8
        assert gate.most <= 3
        assert tallies(cells)[IN_FLIGHT:] == [0, 0]


async def test_a_single_connection_serves_two_workers_in_turn(cells: Cells) -> None:
    """Whoever holds it gives it up for the other one, whether it stands idle or is always wanted."""
    gate = Gate()
    gate.go.set()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        one, two = await workers(stack, cells, serving(up.url, max_connections=1))
        for run in (one, two, one):  # idle at the other
            assert (await run.ask(post(CHAT_PATH))).status == 200
        done = asyncio.Event()

        served = [0, 0]

        async def busy(number: int) -> None:
            client = await one.connect()
            while not done.is_set():
                assert (await client.ask(post(CHAT_PATH))).status == 200
                served[number] += 1

        ones = [asyncio.create_task(busy(number)) for number in range(2)]
        await until(lambda: min(served) > 0, "both served")
        assert [(await two.ask(post(CHAT_PATH))).status for _ in range(2)] == [200, 200]
        done.set()
        await asyncio.gather(*ones)
        assert gate.most == 1


async def test_one_of_three_that_has_nothing_gets_a_connection(cells: Cells) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        runs = await workers(stack, cells, serving(up.url, max_connections=2), 3)
        asked = [asyncio.create_task(run.ask(post(CHAT_PATH))) for run in runs[:2] for _ in range(2)]
        await until(lambda: len(up.seen) == 2, "one of each")
        asked += [asyncio.create_task(runs[2].ask(post(CHAT_PATH))) for _ in range(2)]
        await until(lambda: tallies(cells) == [2, 6, 4], "the third one waits")
        gate.go.set()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 6
        assert gate.most <= 2


async def test_who_waits_too_long_for_anothers_is_told_so(cells: Cells) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        config = serving(up.url, max_connections=1)
        config["upstreams"]["up"]["timeouts"]["queue"] = 0.2
        one, two = await workers(stack, cells, config)
        first = asyncio.create_task(one.ask(post(CHAT_PATH)))
        await until(lambda: len(up.seen) == 1, "the first at the upstream")
        answer = await two.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (503, "queue_timeout")
        assert tallies(cells) == [1, 1, 0]
        gate.go.set()
        assert (await first).status == 200


async def test_what_a_dead_worker_held_is_free_again(cells: Cells) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        one, two = await workers(stack, cells, serving(up.url, max_connections=1))
        first = asyncio.create_task(one.ask(post(CHAT_PATH)))
        await until(lambda: len(up.seen) == 1, "the first at the upstream")
        second = asyncio.create_task(two.ask(post(CHAT_PATH)))
        await until(lambda: two.pool.waiting, "the second waits")
        cells.row(0)[PID] = 0
        await until(lambda: len(up.seen) == 2, "the second at the upstream")
        gate.go.set()
        assert [answer.status for answer in await asyncio.gather(first, second)] == [200, 200]


async def test_a_bound_that_is_lowered_or_lifted_by_reload(cells: Cells) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(gate))
        (run,) = await workers(stack, cells, serving(up.url, max_connections=3), 1)
        asked = [asyncio.create_task(run.ask(post(CHAT_PATH))) for _ in range(3)]
        await until(lambda: len(up.seen) == 3, "three at the upstream")
        run.apply(serving(up.url, max_connections=1), 2)
        gate.go.set()
        await asyncio.gather(*asked)
        await until(lambda: still_open(up) == 1, "two were too many")
        assert tallies(cells) == [1, 0, 0]
        run.apply(serving(up.url), 3)
        assert tallies(cells) == [0, 0, 0]
        assert (run.pool.tally, run.pool.is_plain, len(run.pool.idle)) == (None, True, 1)
        gate.go.clear()
        asked = [asyncio.create_task(run.ask(post(CHAT_PATH))) for _ in range(3)]
        await until(lambda: len(up.seen) == 6, "all three at once")
        gate.go.set()
        await asyncio.gather(*asked)


@pytest.mark.parametrize("balance", ["least_connections", "random", "hash"])
async def test_what_is_in_flight_in_another_worker_counts(cells: Cells, balance: str) -> None:
    gate = Gate()
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(stub(gate)) for _ in range(2)]
        targets = [target(up.url, name) for up, name in zip(ups, "ab", strict=True)]
        hash_on = "header:x-session-id" if balance == "hash" else None
        given = document({"up": upstream(*targets, balance=balance, hash_on=hash_on)})
        one, two = await workers(stack, cells, given)
        asked = []
        for count in range(1, 9):
            run = one if count <= 4 else two
            asked.append(asyncio.create_task(run.ask(post(CHAT_PATH, b'{"model": "m"}', b"x-session-id: same"))))
            await until(lambda n=count: sum(len(up.seen) for up in ups) == n, "the request at an upstream")
        shares = sorted(len(up.seen) for up in ups)
        assert shares == ([3, 5] if balance == "hash" else [4, 4])
        assert sum(values[IN_FLIGHT] for values in cells.totals(TALLIES).values()) == 8
        gate.go.set()
        await asyncio.gather(*asked)
        assert not any(values[IN_FLIGHT] + values[QUEUED] for values in cells.totals(TALLIES).values())
        assert sum(values[OPEN] for values in cells.totals(TALLIES).values()) == 8


async def test_counts_are_right_however_exchanges_end(cells: Cells) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        if b"/die" in seen.line:
            connection.reset()
        elif b"/hang" in seen.line:
            await connection.gone()
        else:
            await connection.send(ok(b"", b"connection: close") if b"/close" in seen.line else ok())

    async with AsyncExitStack() as stack:
        up = await stack.enter_async_context(stub(handler))
        (run,) = await workers(stack, cells, splicing(up.url, max_connections=2), 1)
        for path in ("/x", "/die", "/close", "/x", "/hang", "/hang", "/x"):
            client = await run.connect()
            await client.send(get(path))
            if path == "/hang":
                await until(lambda: run.pool.busy == 1 and b"/hang" in up.last.line, "it hangs")
                client.reset()
            else:
                await client.answer()
            await until(lambda: run.pool.in_flight == 0, "it has ended")
            assert tallies(cells) == [run.pool.open, 0, 0]
        assert repr(run.pool) == "<Pool up/a 1 idle 0 busy 0 waiting>"


# names that move ------------------------------------------------------------------------------------------------------


class Names:
    """The loop's resolver for `up.example`, as a test says: real sockets, another phone book."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(host: str, port: int, **options: Any) -> Any:
            if host != "up.example":
                return await real(host, port, **options)
            self.asked += 1
            return [info for address in self.addresses for info in await real(address, port, **options)]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)


async def at(stack: AsyncExitStack, host: str, port: int, answer: bytes) -> Stub:
    """An upstream at an address of the loopback's network, at the same port as another one."""
    up = Stub(ok(answer))
    server = await asyncio.start_server(up.serve, host, port)
    up.port = server.sockets[0].getsockname()[1]

    async def stop() -> None:
        server.close()
        await up.stop()

    stack.push_async_callback(stop)
    return up


async def test_a_dial_that_was_cancelled_before_its_first_step_is_counted_off() -> None:
    async with stub() as up, running(serving(up.url)) as run:
        client = await run.connect()
        await client.send(post(CHAT_PATH)[:-1])
        await until(lambda: any(one.exchange for one in run.gateway.clients), "all but a byte came")
        (connection,) = run.gateway.clients
        connection.data_received(post(CHAT_PATH)[-1:])
        pool = run.pool
        assert (pool.dialling, len(pool.waiting)) == (1, 1)
        run.gateway.close()
        await until(lambda: not pool.dialling, "it is no dial any more")
        assert pool.open == 0


async def test_a_dead_address_that_comes_first_delays_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        up = await at(stack, "127.0.0.3", 0, b"alive")
        names = Names(monkeypatch, "127.0.0.2", "127.0.0.3")  # nobody listens at the first
        run = await stack.enter_async_context(running(serving(f"http://up.example:{up.port}")))
        answers = await asyncio.gather(*(run.ask(post(CHAT_PATH)) for _ in range(4)))
        assert [answer.body for answer in answers] == [b"alive"] * 4
        assert up.last.headers["host"] == f"up.example:{up.port}"
        assert names.asked <= 4


async def test_a_name_is_believed_for_a_while_and_asked_anew_once_its_addresses_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing: Handler | bytes = ok(b"old", b"connection: close")
    async with AsyncExitStack() as stack:
        old = await at(stack, "127.0.0.2", 0, b"old")
        old.handler = closing
        new = await at(stack, "127.0.0.3", old.port, b"new")
        names = Names(monkeypatch, "127.0.0.2")
        run = await stack.enter_async_context(running(serving(f"http://up.example:{old.port}")))
        assert (await run.ask(post(CHAT_PATH))).body == b"old"
        names.addresses = ["127.0.0.3"]
        assert (await run.ask(post(CHAT_PATH))).body == b"old"  # a new connection, by what is remembered
        assert names.asked == 1
        dialler = run.gateway._dialler
        monkeypatch.setattr("aigw.proxy.dial.REMEMBER", 0.0)
        dialler._names = {key: (0.0, found) for key, (_, found) in dialler._names.items()}  # the while is over
        assert (await run.ask(post(CHAT_PATH))).body == b"new"
        assert names.asked == 2
        assert len(new.seen) == 1


async def test_a_name_whose_addresses_all_fail_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        up = await at(stack, "127.0.0.3", 0, b"moved")
        names = Names(monkeypatch, "127.0.0.2")
        run = await stack.enter_async_context(running(serving(f"http://up.example:{up.port}")))
        assert (await run.ask(post(CHAT_PATH))).status == 502
        names.addresses = ["127.0.0.3"]
        assert (await run.ask(post(CHAT_PATH))).body == b"moved"
        assert names.asked == 2
