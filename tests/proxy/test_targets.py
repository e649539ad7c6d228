"""Which target is asked, and how it is reached: balance, addresses, sockets, bounds."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fakes import (
    Connection,
    Seen,
    Stub,
    deaf,
    document,
    gateway,
    get,
    model,
    ok,
    post,
    rule,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

CHAT_PATH = "/v1/chat/completions"


def spread(ups: list[Stub], weights: list[int], **fields: Any) -> dict[str, Any]:
    targets = [target(up.url, f"t{i}", weight=weights[i]) for i, up in enumerate(ups)]
    return document({"up": upstream(*targets, **fields)})


async def stubs(stack: AsyncExitStack, count: int, handler: Any = None) -> list[Stub]:
    return [await stack.enter_async_context(stub(handler)) for _ in range(count)]


async def test_round_robin_goes_by_weights() -> None:
    async with AsyncExitStack() as stack:
        ups = await stubs(stack, 3)
        gw = await stack.enter_async_context(running(spread(ups, [3, 1, 0])))
        for _ in range(8):
            await gw.ask(post(CHAT_PATH))
        assert [len(up.seen) for up in ups] == [6, 2, 0]
        assert [record["target"] for record in gw.records[:4]].count("t0") == 3
        assert gw.records[:4] != sorted(gw.records[:4], key=lambda record: record["target"])  # spread over the round


async def test_least_connections_counts_what_is_in_flight() -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.send(ok())

    async with AsyncExitStack() as stack:
        ups = await stubs(stack, 2, handler)
        gw = await stack.enter_async_context(running(spread(ups, [1, 1], balance="least_connections")))
        asked = []
        for count in range(1, 7):
            asked.append(asyncio.create_task(gw.ask(post(CHAT_PATH))))
            await until(lambda count=count: sum(len(up.seen) for up in ups) == count, "the request at an upstream")
        assert [len(up.seen) for up in ups] == [3, 3]
        go.set()
        assert all(answer.status == 200 for answer in await asyncio.gather(*asked))
        await until(lambda: not gw.open_ends, "nothing in flight")


async def test_least_connections_goes_by_weights_and_forgets_those_that_left() -> None:
    gone: list[Connection] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.gone()
        gone.append(connection)

    async with AsyncExitStack() as stack:
        ups = await stubs(stack, 2, handler)
        gw = await stack.enter_async_context(running(spread(ups, [3, 1], balance="least_connections")))
        clients = [await gw.connect() for _ in range(8)]
        for count, client in enumerate(clients, 1):
            await client.send(post(CHAT_PATH))
            await until(lambda count=count: sum(len(up.seen) for up in ups) == count, "the request at an upstream")
        assert [len(up.seen) for up in ups] == [6, 2]
        for client in clients:
            client.reset()
        await until(lambda: len(gone) == 8, "all connections closed")
        assert all(pool.in_flight == 0 for pool in gw.gateway.pools.values())


async def test_a_target_may_override_what_the_upstream_says() -> None:
    async with stub() as up:
        one = target(up.url, api_key="own", headers={"x-team": "a"}, model={"gpt-4o": "local"})
        config = document({"up": upstream(one, api_key="shared", headers={"x-team": "b", "x-org": "c"})})
        async with running(config) as gw:
            answer = await gw.ask(post(CHAT_PATH))
        assert up.last.headers["authorization"] == "Bearer own"
        assert (up.last.headers["x-team"], up.last.headers["x-org"]) == ("a", "c")
        assert b'"model": "local"' in up.last.body
        assert answer.headers["x-aigw-model"] == "local"


async def test_headers_of_the_config_replace_and_remove_the_clients() -> None:
    async with stub() as up, running(serving(up.url, headers={"X-Team": "search", "openai-organization": None})) as gw:
        await gw.ask(
            post(CHAT_PATH, b'{"model": "m"}', b"x-team: mine", b"OpenAI-Organization: org", b"openai-beta: x")
        )
        lines = [line.lower() for line in up.last.lines]
        assert [line for line in lines if line.startswith(b"x-team")] == [b"x-team: search"]
        assert "openai-organization" not in up.last.headers
        assert up.last.headers["openai-beta"] == "x"


@pytest.mark.parametrize("listening", ["127.0.0.1", "::1"])
async def test_a_name_with_several_addresses_is_tried_in_turn(listening: str) -> None:
    """`localhost` is ::1 and 127.0.0.1 on most systems; one of them refuses."""
    infos = await asyncio.get_running_loop().getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)
    if listening not in {info[4][0] for info in infos}:
        pytest.skip(f"localhost is not {listening} here")
    async with stub(host=listening) as up, running(serving(f"http://localhost:{up.port}")) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert up.last.headers["host"] == f"localhost:{up.port}"


async def test_ipv6() -> None:
    async with stub(host="::1") as up, running(serving(f"http://[::1]:{up.port}")) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert up.last.headers["host"] == f"[::1]:{up.port}"


@pytest.mark.parametrize(("suffix", "path"), [("", b"/v1/models/x"), (":/base", b"/base/models/x")])
async def test_a_unix_socket_with_and_without_a_base_path(tmp_path: Path, suffix: str, path: bytes) -> None:
    sock = str(tmp_path / "up.sock")
    rules = [rule(upstream="up")]
    async with stub(path=sock) as up:
        config = document({"up": upstream(target(f"unix:{sock}{suffix}"))}, gateways={"default": gateway(*rules)})
        async with running(config) as gw:
            assert (await gw.ask(get("/v1/models/x"))).status == 200
        assert up.last.line == b"GET %b HTTP/1.1" % path
        assert up.last.headers["host"] == "localhost"


@pytest.mark.parametrize(
    ("provider", "base", "asked", "sent"),
    [
        ("openai", "/v1", "/v1/chat/completions", "/v1/chat/completions"),
        ("openai", "/api/v3", "/v1/chat/completions", "/api/v3/chat/completions"),
        ("openai", "", "/v1/chat/completions", "/v1/chat/completions"),
        ("http", "/base", "/v1/chat/completions", "/base/v1/chat/completions"),
        ("http", "/base/", "/x?q=1", "/base/x?q=1"),
    ],
)
async def test_the_path_of_a_url_is_where_the_clients_path_goes(
    provider: str, base: str, asked: str, sent: str
) -> None:
    async with stub() as up:
        config = document(
            {"up": upstream(target(up.url + base), provider=provider)},
            gateways={"default": gateway(rule(upstream="up"))},
        )
        async with running(config) as gw:
            await gw.ask(post(asked))
        assert up.last.line == f"POST {sent} HTTP/1.1".encode()


async def test_strip_path_and_preserve_host() -> None:
    async with stub() as up:
        rules = [rule(path="/files/*", upstream="up", strip_path=True, preserve_host=True)]
        config = document({"up": upstream(target(up.url), provider="http")}, gateways={"default": gateway(*rules)})
        async with running(config) as gw:
            for asked, sent in (("/files/a/b?c", b"/a/b?c"), ("/files", b"/"), ("/files/", b"/")):
                await gw.ask(get(asked, host=b"Example.org:81"))
                assert up.last.line.split()[1] == sent
                assert up.last.headers["host"] == "Example.org:81"


async def test_a_refused_connection_is_502_without_an_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with running(serving(f"http://127.0.0.1:{port}", api_key="secret-key")) as gw:
            client = await gw.connect()
            answer = await client.ask(post(CHAT_PATH))
            assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_failed")
            assert str(port).encode() not in answer.raw
            assert b"127.0.0.1" not in answer.raw
            assert b"secret-key" not in answer.raw + b"".join(gw.lines)
            record = await gw.record()
            assert (record["end"], record["fault"]) == ("failed", "upstream")
            assert (await client.ask(get("/__/ping"))).status == 200


async def test_a_name_that_does_not_resolve_is_502() -> None:
    async with running(serving("http://nowhere.invalid:80")) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_failed")


async def test_max_connections_makes_exchanges_wait_in_order() -> None:
    turns: asyncio.Queue[None] = asyncio.Queue()

    async def handler(connection: Connection, seen: Seen) -> None:
        await turns.get()
        await connection.send(ok(seen.body))

    async with stub(handler) as up, running(serving(up.url, max_connections=2)) as gw:
        asked = []
        for index in range(6):
            asked.append(asyncio.create_task(gw.ask(post(CHAT_PATH, b'{"model": "m%d"}' % index))))
            await until(lambda n=index: gw.pool.in_flight == n + 1, f"{index + 1} in flight")
        await until(lambda: len(up.seen) == 2, "two at the upstream")
        for count in range(3, 7):
            turns.put_nowait(None)
            await until(lambda n=count: len(up.seen) == n, "the next")
        turns.put_nowait(None)
        turns.put_nowait(None)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 6
        assert [seen.body for seen in up.seen[2:]] == [b'{"model": "m%d"}' % index for index in range(2, 6)]
        assert len(up.connections) == 2


async def test_a_slot_is_free_again_whatever_became_of_its_exchange() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        if seen.line.startswith(b"GET /die"):
            connection.reset()
        elif seen.line.startswith(b"GET /bad"):
            await connection.send(b"nonsense\r\n\r\n")
        elif seen.line.startswith(b"GET /hang"):
            await connection.gone()
        else:
            await connection.send(ok())

    async with stub(handler) as up, running(splicing(up.url, max_connections=1)) as gw:
        for _ in range(3):
            for path, status in (("/die", 502), ("/bad", 502), ("/x", 200)):
                assert (await gw.ask(get(path))).status == status
            client = await gw.connect()
            await client.send(get("/hang"))
            await until(lambda: up.last.line.startswith(b"GET /hang"), "the request")
            waiting = asyncio.create_task(gw.ask(get("/x")))
            await until(lambda: gw.pool.waiting, "one waiting")
            client.reset()
            assert (await waiting).status == 200


async def test_those_who_wait_behind_a_dial_that_fails_are_dialled_for_too() -> None:
    async with deaf() as address:
        config = serving(address.url, max_connections=1)
        config["upstreams"]["up"]["timeouts"] |= {"connect": 1.0, "queue": 30.0}
        async with running(config) as gw:
            answers = await asyncio.gather(gw.ask(post(CHAT_PATH)), gw.ask(post(CHAT_PATH)))
            assert [answer.headers["x-aigw-error"] for answer in answers] == ["connect_timeout"] * 2


async def test_a_target_that_is_dead_does_not_stop_the_others() -> None:
    async with stub() as up, deaf() as address:
        targets = [target(address.url, "dead"), target(up.url, "alive")]
        config = document({"up": upstream(*targets, timeouts={"connect": 0.2})})
        async with running(config) as gw:
            answers = await asyncio.gather(*(gw.ask(post(CHAT_PATH)) for _ in range(4)))
            assert sorted(answer.status for answer in answers) == [200, 200, 502, 502]


async def test_models_go_to_their_upstreams() -> None:
    async with stub(ok(b"a")) as a, stub(ok(b"b")) as b:
        upstreams = {"a": upstream(target(a.url)), "b": upstream(target(b.url))}
        models = {"one": model("a"), "two-*": model("b")}
        async with running(document(upstreams, gateways={"default": gateway(models=models)})) as gw:
            assert (await gw.ask(post(CHAT_PATH, b'{"model": "one"}'))).body == b"a"
            assert (await gw.ask(post(CHAT_PATH, b'{"model": "two-x"}'))).body == b"b"
            assert (await gw.ask(post(CHAT_PATH, b'{"model": "three"}'))).status == 404
