"""Limits of upstreams and targets on the wire: who is full gets nothing, others do instead, and each attempt takes and
gives back for itself, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from fakes import (
    CHAT,
    Answer,
    Connection,
    Running,
    Seen,
    chunked,
    document,
    gateway,
    in_turn,
    key,
    limit,
    mock,
    model,
    ok,
    post,
    resets,
    retry,
    running,
    stub,
    target,
    until,
    upstream,
)

from aigw import meters
from aigw.config.limits import limits_of
from aigw.counters import LIMITED
from aigw.policies.allowance import bind
from aigw.shared import Cells, Series

USED = b'{"usage": {"prompt_tokens": 30, "completion_tokens": 12}}'
BODY = CHAT[:-1] + b', "max_tokens": 100}'
ESTIMATE = len(BODY) // 4 + 100
ASK = post("/v1/chat/completions", BODY)
BUSY = ok(status=b"429 Too Many Requests")
KEPT = post("/v1/chat/completions", b'{"model": "gpt-4o", "previous_response_id": "x"}', b"x-aigw-key: sk-alice")
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def of_target(unit: str, amount: int, window: float | str | None = None, **fields: Any) -> Any:
    return limit(unit, amount, window, "target", **fields)


def of_upstream(unit: str, amount: int, window: float | str | None = None, **fields: Any) -> Any:
    return limit(unit, amount, window, "upstream", **fields)


def config(*targets: Any, fallback: Any = None, models: Any = None, **fields: Any) -> dict[str, Any]:
    """All to the upstream `up`; where a fallback's upstream is given, the model `other` is its."""
    upstreams = {"up": upstream(*targets, **fields.pop("up", {}))}
    names = models or {"*": model("up")}
    if fallback is not None:
        upstreams["other"] = fallback
        names = {"gpt-4o": model("up", fallback=["other"]), "other": model("other")}
    main = gateway(models=names, **fields.pop("main", {}))
    prices = {"gpt-4o": {"input": 1.0, "output": 2.0}}
    return document(upstreams, gateways={"main": main}, prices=prices, **fields)


async def statuses(run: Running, count: int) -> list[int]:
    return [(await run.ask(ASK)).status for _ in range(count)]


def held(run: Running) -> int:
    return meters.held(run.gateway.cells)


def used(run: Running, name: str = "a", index: int = 0) -> int:
    """Of a limit that applies to the target of this name: the upstream's come first."""
    targets = run.gateway.snapshot.upstreams["up"].targets
    (found,) = [one for one in targets if one.name == name]
    loop = asyncio.get_running_loop()
    return run.gateway.attempts.of(found)[index].meter.used(loop.time())


def refused(run: Running) -> dict[tuple[str, ...], int]:
    found = Series(run.gateway.row, 0).items(LIMITED)
    return {tuple(json.loads(text)): values[0] for text, values in found if values[0]}


def said(answer: Answer) -> dict[str, str]:
    return {name: answer.headers[name] for name in ("x-aigw-error", "retry-after") if name in answer.headers}


# who is full ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", ["round_robin", "least_connections", "random", "hash"])
async def test_each_target_gets_what_it_may_and_then_nobody(balance: str) -> None:
    """Three and five of twelve, whatever the balance, and not one more."""
    async with stub() as a, stub() as b:
        targets = [
            target(a.url, "a", limits=[of_target("requests", 3, 60.0)]),
            target(b.url, "b", limits=[of_target("requests", 5, 60.0)]),
        ]
        up = {"balance": balance, "hash_on": "key" if balance == "hash" else None}
        async with running(config(*targets, up=up)) as run:
            assert await statuses(run, 12) == [200] * 8 + [503] * 4
            assert (len(a.seen), len(b.seen)) == (3, 5)
            answer = await run.ask(ASK)
            assert answer.headers["x-aigw-error"] == "no_capacity"
            seconds = int(answer.headers["retry-after"])
            assert 52 <= seconds <= 68
            assert [line for line in answer.lines if line.startswith(b"retry-after:")] == [b"retry-after: %d" % seconds]
            assert seconds - 1 < int(answer.headers["retry-after-ms"]) / 1000 <= seconds
            assert "x-should-retry" not in answer.headers
            told = f"{seconds}s" if seconds < 60 else f"1m{seconds - 60}s"
            assert answer.json()["error"]["message"] == (
                "no target of the upstream 'up' has room within its limits (requests/1m per target); "
                f"try again in {told}"
            )
            record = await run.record(12)
            assert (record["status"], record["end"], record["fault"]) == (503, "refused", "gateway")
            either = [f"requests/1m per target up/{name}" for name in "ab"]  # has room first
            assert record["error"] == "no_capacity"
            assert record["limit"] in either
            assert "target" not in record
            counted = refused(run)
            assert sum(counted.values()) == 5
            assert counted.keys() <= {("main", label, "false") for label in either}


async def test_a_target_without_limits_takes_the_rest() -> None:
    async with stub() as a, stub() as b:
        targets = [target(a.url, "a", weight=3, limits=[of_target("requests", 2, 60.0)]), target(b.url, "b")]
        async with running(config(*targets)) as run:
            assert await statuses(run, 8) == [200] * 8
            assert (len(a.seen), len(b.seen)) == (2, 6)


async def test_an_upstream_s_limit_is_one_for_all_targets_models_and_gateways() -> None:
    async with stub() as a, stub() as b:
        made = config(target(a.url, "a"), target(b.url, "b"), up={"limits": [of_upstream("requests", 3, 60.0)]})
        made["gateways"]["second"] = gateway(models={"*": model("up", "real")}, hosts=["second"])
        async with running(made) as run:
            other = post("/v1/chat/completions", b'{"model": "x"}').replace(b"host: gw", b"host: second")
            assert await statuses(run, 2) == [200, 200]
            assert (await run.ask(other)).status == 200
            assert [(await run.ask(one)).status for one in (ASK, other)] == [503, 503]
            assert len(a.seen) + len(b.seen) == 3
            assert {name for name, *_ in refused(run)} == {"main", "second"}


async def test_at_once_no_more_than_there_may_be() -> None:
    """Thirty at the same moment; each that has ended makes room for one."""
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok())

    async with stub(handler) as a, stub(handler) as b:
        targets = [
            target(a.url, "a", limits=[of_target("concurrency", 4)]),
            target(b.url, "b", limits=[of_target("concurrency", 7)]),
        ]
        async with running(config(*targets)) as run:
            clients = [await run.connect() for _ in range(30)]
            for client in clients:
                await client.send(ASK)
            await until(lambda: len(run.lines) == 19 and len(a.seen) + len(b.seen) == 11, "all were judged")
            assert (len(a.seen), len(b.seen)) == (4, 7)
            assert held(run) == 11
            release.set()
            found = Counter([(await client.answer()).status for client in clients])
            assert found == {200: 11, 503: 19}
            assert held(run) == 0
            refusal = next(record for record in run.records if record["status"] == 503)
            assert refusal["error"] == "no_capacity"
            assert refusal["limit"] in ("concurrency per target up/a", "concurrency per target up/b")
            assert await statuses(run, 5) == [200] * 5


async def test_retry_after_of_who_only_waits_for_others_to_end() -> None:
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(config(target(up.url, limits=[of_target("concurrency", 1)]))) as run:
        client = await run.connect()
        await client.send(ASK)
        await until(lambda: up.seen, "the first is there")
        assert said(await run.ask(ASK)) == {"x-aigw-error": "no_capacity", "retry-after": "1"}
        release.set()
        assert (await client.answer()).status == 200
        assert await statuses(run, 1) == [200]


async def test_a_budget_that_is_used_up_is_not_worth_another_try() -> None:
    async with stub() as up, running(config(target(up.url, limits=[of_target("requests", 1, "day")]))) as run:
        assert await statuses(run, 1) == [200]
        answer = await run.ask(ASK)
        assert answer.headers["x-should-retry"] == "false"
        assert 0 < int(answer.headers["retry-after"]) <= 86400


async def test_who_asks_for_more_than_there_ever_is() -> None:
    async with stub() as up, running(config(target(up.url, limits=[of_target("tokens", 50, 60.0)]))) as run:
        answer = await run.ask(ASK)
        assert (answer.status, said(answer)) == (503, {"x-aigw-error": "no_capacity"})
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["message"] == (
            "this request may use more than the limits of the upstream 'up' ever leave (tokens/1m per target); "
            "send less, or bound the answer (max_tokens)"
        )
        small = post("/v1/chat/completions", CHAT[:-1] + b', "max_tokens": 10}')
        assert (await run.ask(small)).status == 200


async def test_what_gemini_bounds_in_the_body_of_a_path() -> None:
    """That body is read by nobody else."""
    body = b'{"contents": [], "generationConfig": {"maxOutputTokens": 20}}'
    up = {"provider": "gemini", "dialects": ["gemini"]}
    async with stub() as stubbed:
        made = config(target(stubbed.url, limits=[of_target("tokens", 20 + len(body) // 4, 60.0)]), up=up)
        async with running(made) as run:
            asked = post("/v1beta/models/gpt-4o:generateContent", body)
            assert [(await run.ask(asked)).status for _ in range(2)] == [200, 503]
            assert stubbed.last.body == body


async def test_what_only_counts_refuses_nobody() -> None:
    limits = [of_target("requests", 1, 60.0, shadow=True)]
    async with stub() as up, running(config(target(up.url, limits=limits))) as run:
        assert await statuses(run, 3) == [200] * 3
        assert refused(run) == {("main", "requests/1m per target up/a", "true"): 2}


async def test_what_a_provider_keeps_is_not_asked_for_elsewhere() -> None:
    """It is at one target; another one would say that there is no such thing."""
    async with stub() as a, stub() as b:
        limits = [of_target("requests", 2, 60.0)]
        targets = [target(up.url, name, api_key=f"sk-{name}", limits=limits) for up, name in ((a, "a"), (b, "b"))]
        keys = {"alice": key("sk-alice")}
        async with running(config(*targets, main={"auth": "keys", "keys": keys})) as run:
            found = [await run.ask(KEPT) for _ in range(3)]
            assert [answer.status for answer in found] == [200, 200, 503]
            assert said(found[2])["x-aigw-error"] == "no_capacity"
            assert sorted([len(a.seen), len(b.seen)]) == [0, 2]
            free = post("/v1/embeddings", b'{"model": "gpt-4o"}', b"x-aigw-key: sk-alice")
            assert [(await run.ask(free)).status for _ in range(3)] == [200, 200, 503]


# where else -----------------------------------------------------------------------------------------------------------


async def test_a_fallback_takes_what_there_is_no_room_for() -> None:
    async with stub() as up, stub(ok(b"other")) as other:
        one = target(up.url, limits=[of_target("requests", 1, 60.0)])
        second = upstream(target(other.url, limits=[of_target("requests", 2, 60.0)]))
        async with running(config(one, fallback=second)) as run:
            answers = [await run.ask(ASK) for _ in range(4)]
            assert [(answer.status, answer.headers.get("x-aigw-upstream")) for answer in answers] == [
                (200, "up"),
                (200, "other"),
                (200, "other"),
                (503, None),
            ]
            assert answers[1].headers["x-aigw-attempts"] == "1"
            assert [one.body for one in other.seen] == [BODY.replace(b"gpt-4o", b"other")] * 2
            assert refused(run) == {("main", "requests/1m per target up/a", "false"): 1}
            assert held(run) == 0


async def test_a_fallback_with_limits_behind_an_upstream_without() -> None:
    """How much a request may use is known there too, though nothing asked for it before."""
    async with stub(BUSY) as up, stub(ok(USED)) as other:
        second = upstream(target(other.url, limits=[of_target("tokens", ESTIMATE + 42, 60.0)]))
        async with running(config(target(up.url), fallback=second)) as run:
            assert await statuses(run, 3) == [200, 200, 429]
            assert (len(up.seen), len(other.seen)) == (3, 2)
            assert held(run) == 0


async def test_a_retry_goes_where_there_is_room() -> None:
    """`b` may be asked once: the second request is tried at `a` again, and gets its answer."""
    async with stub(BUSY) as a, stub(ok(b"b")) as b:
        targets = [target(a.url, "a", weight=9), target(b.url, "b", limits=[of_target("requests", 1, 60.0)])]
        async with running(config(*targets, main={"retry": retry("429")})) as run:
            assert await statuses(run, 2) == [200, 429]
            assert (len(a.seen), len(b.seen)) == (3, 1)
            assert [one["target"] for one in run.records[0]["attempts"]] == ["up/a", "up/b"]
            assert [one["target"] for one in run.records[1]["attempts"]] == ["up/a", "up/a"]


async def test_a_retry_that_finds_no_room_says_so() -> None:
    async with stub(BUSY) as up:
        made = config(target(up.url, "a", limits=[of_target("requests", 1, 60.0)]), main={"retry": retry("429")})
        async with running(made) as run:
            answer = await run.ask(ASK)
            assert (answer.status, answer.headers["x-aigw-attempts"]) == (429, "1")
            (attempt,) = (await run.record())["attempts"]
            assert attempt["note"].startswith("no target of the upstream 'up' has room within its limits (requests/1m")


async def test_an_attempt_that_ended_is_not_in_its_own_way() -> None:
    """One at a time, and tokens for one: the next attempt of the same request has the room of the last one."""
    async with stub(in_turn(BUSY, BUSY, ok(USED))) as up:
        limits = [of_target("concurrency", 1), of_target("tokens", ESTIMATE, 60.0)]
        made = config(target(up.url, limits=limits), main={"retry": retry("429", attempts=3)})
        async with running(made) as run:
            assert await statuses(run, 1) == [200]
            assert (len(up.seen), held(run), used(run, "a", 1)) == (3, 0, 42)


async def test_who_cannot_be_connected_to_was_not_asked() -> None:
    async with mock("refuse") as dead, stub() as b:
        targets = [target(dead.url, "a", limits=[of_target("requests", 5, 60.0)]), target(b.url, "b")]
        async with running(config(*targets, main={"retry": retry("connect")})) as run:
            assert await statuses(run, 4) == [200] * 4
            assert used(run) == 0
            run.apply(config(targets[0]), 2)
            assert await statuses(run, 1) == [502]
            assert used(run) == 0


async def test_who_leaves_before_a_connection_is_there_used_nothing() -> None:
    async with stub() as up:
        limits = [of_target("requests", 5, 60.0), of_target("tokens", 1000, 60.0), of_target("concurrency", 5)]
        made = config(target(up.url, limits=limits), up={"max_connections": 1})
        release = asyncio.Event()

        async def handler(connection: Connection, seen: Seen) -> None:
            await release.wait()
            await connection.send(ok(USED))

        up.handler = handler
        async with running(made) as run:
            first, second = await run.connect(), await run.connect()
            await first.send(ASK)
            await until(lambda: up.seen, "the first is there")
            await second.send(ASK)
            await until(lambda: used(run) == 2, "the second waits")
            second.reset()
            assert (await run.record())["end"] == "client_gone"
            assert [used(run, "a", index) for index in range(3)] == [1, ESTIMATE, 1]
            release.set()
            await first.answer()
            assert [used(run, "a", index) for index in range(3)] == [1, 42, 0]


# what is settled ------------------------------------------------------------------------------------------------------

ENDINGS = {"ok": 42, "error": 0, "ours": 0, "cut": ESTIMATE, "reset": ESTIMATE, "hang": ESTIMATE}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_what_is_settled_however_it_ends(ending: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        if ending == "ok":
            await connection.send(ok(USED))
        elif ending in ("error", "ours"):
            status = b"500 Internal Server Error" if ending == "error" else b"401 Unauthorized"
            await connection.send(ok(status=status))
        elif ending == "cut":
            await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nhalf")
            connection.close()
        elif ending == "reset":
            connection.reset()

    limits = [of_target("requests", 9, 60.0), of_target("tokens", 1000, 60.0), of_target("concurrency", 3)]
    limits.append(of_target("cost", 10**9, "month"))
    async with stub(handler) as up, running(config(target(up.url, limits=limits, api_key="sk-ours"))) as run:
        client = await run.connect()
        await client.send(ASK)
        if ending == "hang":
            await until(lambda: up.seen, "it is under way")
            client.reset()
        await run.record()
        count = ENDINGS[ending]
        cost = {0: 0, 42: 30 * 1000 + 12 * 2000, ESTIMATE: (ESTIMATE - 100) * 1000 + 100 * 2000}[count]
        assert [used(run, "a", index) for index in range(4)] == [1, count, 0, cost]
        assert held(run) == 0


async def test_an_answer_that_was_dropped_is_settled_by_what_it_said() -> None:
    """A stream that told its input and then was cut before any content: the attempt that followed is another's."""
    begun = b'data: {"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 0}}\n\n'

    async def broken(connection: Connection, seen: Seen) -> None:
        await connection.send(EVENTS + chunked(begun)[: -len(b"0\r\n\r\n")])
        connection.reset()

    limits = [of_target("requests", 9, 60.0), of_target("tokens", 1000, 60.0)]
    async with stub(broken) as a, stub(ok(USED)) as b:
        targets = [target(a.url, "a", limits=limits), target(b.url, "b", limits=limits)]
        async with running(config(*targets, main={"retry": retry("reset")})) as run:
            assert await statuses(run, 1) == [200]
            assert [used(run, "a", index) for index in range(2)] == [1, 30]
            assert [used(run, "b", index) for index in range(2)] == [1, 42]
            assert run.records[0]["tokens"] == {"input": 30, "output": 12}
            assert held(run) == 0


async def test_an_error_in_a_stream_s_beginning_used_nothing() -> None:
    overloaded = b'event: error\ndata: {"error": {"message": "full", "type": "server_error"}}\n\n'
    limits = [of_target("tokens", 1000, 60.0)]
    async with stub(in_turn(EVENTS + chunked(overloaded), resets, ok(USED))) as up:
        made = config(target(up.url, limits=limits), main={"retry": retry("5xx", "reset", attempts=3)})
        async with running(made) as run:
            assert await statuses(run, 1) == [200]
            assert used(run) == ESTIMATE + 42  # of the one that was reset nobody knows
            assert held(run) == 0


async def test_a_reload_keeps_what_is_used_and_what_is_under_way() -> None:
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok(USED))

    def made(url: str, amount: int) -> dict[str, Any]:
        return config(target(url, limits=[of_target("tokens", amount, 60.0)]))

    async with stub(handler) as up, running(made(up.url, 1000)) as run:
        client = await run.connect()
        await client.send(ASK)
        await until(lambda: up.seen, "it is under way")
        run.apply(made(up.url, ESTIMATE + 42), 2)
        assert (await run.ask(ASK)).headers["x-aigw-error"] == "no_capacity"
        release.set()
        await client.answer()
        assert (used(run), held(run)) == (42, 0)
        assert await statuses(run, 2) == [200, 503]
        run.apply(made(up.url, 1000), 3)
        assert await statuses(run, 1) == [200]
        assert used(run) == 3 * 42


async def test_all_workers_count_together() -> None:
    cells = Cells(rows=2)
    limits = [of_target("requests", 5, 60.0)]
    async with stub() as up:
        made = config(target(up.url, limits=limits))
        async with running(made, cells=cells) as one, running(made, cells=cells, number=1) as other:
            found = [(await run.ask(ASK)).status for run in (one, other) * 4]
            assert found == [200] * 5 + [503] * 3
            assert len(up.seen) == 5
    os.close(cells.descriptor)  # the memory goes with the last row of it


@pytest.mark.unmeasured
async def test_nothing_is_held_after_random_faults() -> None:
    """Many exchanges with retries and fallbacks at once, whatever happens to them: nothing stays held, and of
    each limit no more was ever taken than there was."""
    draw = random.Random(11)
    clients: dict[str, Any] = {}
    most: Counter[int] = Counter()
    open_now: Counter[int] = Counter()

    async def handler(connection: Connection, seen: Seen) -> None:
        where = connection.writer.get_extra_info("sockname")[1]
        open_now[where] += 1
        most[where] = max(most[where], open_now[where])
        fate = draw.random()
        await asyncio.sleep(0)
        open_now[where] -= 1
        if fate < 0.4:
            await connection.send(ok(USED))
        elif fate < 0.6:
            await connection.send(BUSY)
        elif fate < 0.7:
            await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"x")[:-2])
            connection.close()
        elif fate < 0.8:  # not without a byte: then the request might be sent once more, within the attempt
            await connection.send(b"HTTP/1.1 ")
            connection.close()
        elif fate < 0.9:
            await connection.send(b"nonsense\r\n\r\n")
            connection.close()
        else:
            clients[seen.headers["x-request-id"]].writer.transport.abort()

    def limits(requests: int) -> list[Any]:
        return [of_target("requests", requests, 3600.0), of_target("tokens", 10**6, 60.0), of_target("concurrency", 8)]

    async with stub(handler) as a, stub(handler) as b, stub(handler) as c:
        targets = [target(a.url, "a", limits=limits(40)), target(b.url, "b", limits=limits(60))]
        second = upstream(target(c.url, "c", limits=limits(25)), limits=[of_upstream("concurrency", 6)])
        made = config(*targets, fallback=second, main={"retry": retry("429", "5xx", "reset", attempts=3)})
        made["upstreams"]["up"]["limits"] = [of_upstream("tokens", 10**7, 3600.0)]
        async with running(made) as run:

            async def one(number: int) -> None:
                clients[f"r{number}"] = client = await run.connect()
                await client.send(post("/v1/chat/completions", BODY, b"x-request-id: r%d" % number))
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    await client.answer()
                client.writer.transport.abort()

            await asyncio.gather(*map(one, range(120)))
            await until(lambda: len(run.lines) == 120, "all have ended")
            assert held(run) == 0
            assert (len(a.seen), len(b.seen)) == (used(run, "a", 1), used(run, "b", 1))
            assert [len(a.seen) <= 40, len(b.seen) <= 60, len(c.seen) <= 25] == [True] * 3
            assert max(most.values()) <= 8
            # the upstream's is the sum of what its targets' are
            assert used(run, "a", 0) == used(run, "a", 2) + used(run, "b", 2)


def test_a_limit_of_its_own_for_each_name() -> None:
    """Two upstreams, and two targets, of which none counts for another."""
    digests = set()
    own = meters.Meters(Cells.private(), 0)
    for name in ("a", "b"):
        found = limits_of("target", ("up", name), [of_target("requests", 1, 60.0)])
        found += limits_of("upstream", (name,), [of_upstream("requests", 1, 60.0)])
        digests |= {bind(own, one, b"").meter._digest for one in found}
    assert len(digests) == 4
