"""The table of moves is closed, its docstring draws it, and every move in it is made by some scenario here."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
from fakes import (
    CHAT,
    Connection,
    Running,
    Seen,
    deaf,
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

from aigw.proxy import states
from aigw.proxy.states import MOVES, Body, Deadline, State

SMALL = (socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
CHAT_PATH = "/v1/chat/completions"
Scenario = Callable[[], Awaitable[None]]
SCENARIOS: dict[tuple[str, str], Scenario] = {}
EDGES = [(old, new) for old, news in MOVES.items() for new in State if new in news]


def walks(*edges: str) -> Callable[[Scenario], Scenario]:
    def register(scenario: Scenario) -> Scenario:
        for edge in edges:
            old, new = edge.split(" -> ")
            SCENARIOS[old, new] = scenario
        return scenario

    return register


def test_the_table_knows_every_state_and_only_those() -> None:
    assert set(MOVES) == set(State)
    assert all(new in State and new is not old for old, news in MOVES.items() for new in news)
    assert MOVES[State.CLOSED] == frozenset()
    assert all(State.CLOSED in news for old, news in MOVES.items() if old is not State.CLOSED)


def test_the_diagram_shows_every_state() -> None:
    assert states.__doc__ is not None
    for state in State:
        assert state.name in states.__doc__


def test_every_deadline_is_called_as_in_the_config() -> None:
    config = document({"up": upstream(target("http://127.0.0.1:1"))})
    known = set(config["timeouts"]) | set(config["upstreams"]["up"]["timeouts"])
    assert {deadline.value for deadline in Deadline} - known == {Deadline.PAUSE.value}
    assert {body.value for body in Body} == {"collecting", "uploading", "uploaded"}


@pytest.mark.interpreted
@pytest.mark.parametrize(("old", "new"), EDGES, ids=[f"{old.value} to {new.value}" for old, new in EDGES])
async def test_every_move_is_made(old: State, new: State, checked_moves: set[tuple[State, State]]) -> None:
    scenario = SCENARIOS.get((old.value, new.value))
    assert scenario is not None, f"no scenario walks {old.value} -> {new.value}; is it a move at all?"
    checked_moves.clear()
    await scenario()
    assert (old, new) in checked_moves, checked_moves


# scenarios ------------------------------------------------------------------------------------------------------------


async def silent(connection: Connection, seen: Seen) -> None:
    await connection.gone()


async def in_state(gw: Running, state: State) -> None:
    await until(lambda: any(client.state is state for client in gw.gateway.clients), f"a client {state.value}")


@walks("idle -> reading", "reading -> waiting", "waiting -> relaying", "relaying -> idle")
async def two_plain_requests() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        for _ in range(2):
            assert (await gw.ask(post(CHAT_PATH))).status == 200


@walks("reading -> acquiring", "acquiring -> waiting")
async def a_first_request() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200


@walks("idle -> replying", "replying -> closed")
async def one_client_too_many() -> None:
    config = document({"up": upstream(target("http://127.0.0.1:1"))}, bounds={"connections": 0})
    async with running(config) as gw:
        client = await gw.connect()
        assert (await client.answer()).status == 503
        await client.ended()
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("idle -> closed")
async def an_idle_client_that_leaves() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        client = await gw.connect()
        await until(lambda: gw.gateway.clients, "the client")
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("reading -> replying", "replying -> idle")
async def a_request_without_a_rule() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        client = await gw.connect()
        assert (await client.ask(get("/nowhere"))).status == 404
        await in_state(gw, State.IDLE)


@walks("reading -> closed")
async def a_client_that_leaves_within_its_head() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        client = await gw.connect()
        await client.send(b"GET /")
        await in_state(gw, State.READING)
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("reading -> sending", "sending -> waiting")
async def an_upload_on_an_idle_connection() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        await gw.ask(get("/x"))
        client = await gw.connect()
        raw = post("/x", b"hello")
        await client.send(raw[:-2])
        await in_state(gw, State.SENDING)
        assert (await client.ask(raw[-2:])).status == 200


@walks("acquiring -> sending")
async def an_upload_on_a_fresh_connection() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        raw = post("/x", b"hello")
        await client.send(raw[:-2])
        await in_state(gw, State.SENDING)
        assert (await client.ask(raw[-2:])).status == 200


@walks("acquiring -> replying")
async def a_dial_that_fails() -> None:
    async with deaf() as address:
        config = document({"up": upstream(target(address.url), timeouts={"connect": 0.1})}, timeouts={"total": 0.1})
        async with running(config) as gw:
            assert (await gw.ask(post(CHAT_PATH))).status in (502, 504)


@walks("acquiring -> closed")
async def a_client_that_leaves_while_a_connection_is_awaited() -> None:
    async with deaf() as address, running(serving(address.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await in_state(gw, State.ACQUIRING)
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("sending -> relaying", "relaying -> replying")
async def an_answer_before_the_body_was_sent() -> None:
    async def on_head(connection: Connection, seen: Seen) -> None:
        await connection.send(ok())

    async with stub(on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/x", b"hello")[:-2])
        assert (await client.answer()).status == 200


@walks("sending -> acquiring")
async def a_dead_connection_while_a_large_request_is_sent() -> None:
    async def on_head(connection: Connection, seen: Seen) -> None:
        if b"warm" not in seen.line and connection.requests:
            connection.stop_reading()
            await in_state(gw, State.SENDING)
            connection.reset()

    # Almost the largest body that is kept for a replay; the upstream's socket takes less than that.
    body = CHAT[:-1] + b', "x": "' + b"x" * (1024 * 1024 - 200) + b'"}'
    async with stub(on_head=on_head) as up, running(serving(up.url)) as gw:
        await gw.ask(post(CHAT_PATH + "?warm"))
        (idle,) = gw.pool.idle
        idle.transport.get_extra_info("socket").setsockopt(*SMALL)
        assert (await gw.ask(post(CHAT_PATH, body))).status == 200


@walks("sending -> replying")
async def an_upload_that_stops() -> None:
    async with stub() as up, running(splicing(up.url, timeouts={"client_read": 0.1})) as gw:
        client = await gw.connect()
        await client.send(post("/x", b"hello")[:-2])
        assert (await client.answer()).status == 408


@walks("sending -> closed")
async def a_client_that_leaves_within_its_upload() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/x", b"hello")[:-2])
        await in_state(gw, State.SENDING)
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("waiting -> acquiring")
async def a_dead_connection_that_is_replayed() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        if connection.requests > 1:
            connection.reset()
        else:
            await connection.send(ok())

    async with stub(handler) as up, running(serving(up.url)) as gw:
        for _ in range(2):
            assert (await gw.ask(post(CHAT_PATH))).status == 200


@walks("waiting -> replying")
async def an_upstream_that_dies() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        connection.reset()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 502


@walks("waiting -> closed")
async def a_client_that_leaves_while_the_answer_is_awaited() -> None:
    async with stub(silent) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await in_state(gw, State.WAITING)
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")


@walks("relaying -> closed")
async def a_client_that_leaves_within_its_answer() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhi")
        await connection.gone()

    async with stub(handler) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await client.read(b"hi")
        await client.close()
        await until(lambda: not gw.gateway.clients, "the client gone")
