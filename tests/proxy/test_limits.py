"""Limits on the wire: what is refused and how, in each dialect; what answers say of them; and that nothing that was
taken stays taken, however an exchange ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import anthropic
import openai
import pytest
from fakes import (
    CHAT,
    Answer,
    Client,
    Connection,
    Running,
    Seen,
    chunked,
    document,
    gateway,
    get,
    key,
    limit,
    model,
    ok,
    post,
    rule,
    running,
    stub,
    target,
    until,
    upstream,
)

from aigw import meters
from aigw.counters import LIMITED
from aigw.shared import IN_FLIGHT, Series

PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gpt-4o:generateContent",
}
ALL = ["openai", "anthropic", "gemini"]
ALICE, BOB = b"x-aigw-key: sk-alice", b"x-aigw-key: sk-bob"
USED = b'{"usage": {"prompt_tokens": 30, "completion_tokens": 12}}'


def config(url: str, *limits: Any, rules: Any = (), alice: Any = (), models: Any = None, **fields: Any) -> Any:
    keys = {"alice": key("sk-alice", limits=list(alice), group="search"), "bob": key("sk-bob", group="search")}
    names = models or {"*": model("up")}
    tenant = gateway(*rules, auth="keys", keys=keys, limits=list(limits), models=names)
    up = upstream(target(url), dialects=ALL)
    return document({"up": up}, gateways={"main": tenant}, prices={"gpt-4o": {"input": 1.0, "output": 2.0}}, **fields)


def chat(who: bytes = ALICE, dialect: str = "openai", body: bytes = CHAT, *lines: bytes) -> bytes:
    return post(PATHS[dialect], body, who, *lines)


async def statuses(run: Running, *requests: bytes) -> list[int]:
    return [(await run.ask(request)).status for request in requests]


def held(run: Running) -> int:
    """What is reserved or under way."""
    return meters.held(run.gateway.cells)


def refused(run: Running) -> dict[tuple[str, ...], int]:
    found = Series(run.gateway.row, 0).items(LIMITED)
    return {tuple(json.loads(text)): values[0] for text, values in found if values[0]}


def ratelimits(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if "ratelimit" in name or "retry" in name}


# refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ALL)
async def test_a_refusal_in_the_client_s_dialect(dialect: str) -> None:
    async with stub(ok(USED)) as up, running(config(up.url, limit("requests", 2, 60.0, "key"))) as run:
        first = await run.ask(chat(ALICE, dialect))
        assert await statuses(run, chat(ALICE, dialect), chat(ALICE, dialect), chat(BOB, dialect)) == [200, 429, 200]
        assert len(up.seen) == 3
        answer = await run.ask(chat(ALICE, dialect))
        said = ratelimits(answer)
        seconds = int(said["retry-after"])
        assert 52 <= seconds <= 68
        assert seconds - 1 < int(said["retry-after-ms"]) / 1000 <= seconds
        message = f"the API key 'alice' may make 2 requests in 1m0s, and has; try again in {said_of(seconds)}"
        assert answer.status == 429
        error = answer.json()["error"]
        assert error["message"] == message
        if dialect == "openai":
            assert {name: error[name] for name in ("type", "code")} == {
                "type": "rate_limit_error",
                "code": "rate_limit_exceeded",
            }
        elif dialect == "anthropic":
            assert error["type"] == "rate_limit_error"
        else:
            assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
        assert "x-should-retry" not in answer.headers
        assert answer.headers["x-aigw-error"] == "rate_limit_exceeded"
        if dialect == "anthropic":
            assert said["anthropic-ratelimit-requests-limit"] == "2"
            assert said["anthropic-ratelimit-requests-remaining"] == "0"
            reset = datetime.fromisoformat(said["anthropic-ratelimit-requests-reset"])
            assert abs((reset - datetime.now(UTC)).total_seconds()) < 120
        else:
            assert (said["x-ratelimit-limit-requests"], said["x-ratelimit-remaining-requests"]) == ("2", "0")
            assert said["x-ratelimit-reset-requests"].startswith("1m")
        name = "anthropic-ratelimit-requests-remaining" if dialect == "anthropic" else "x-ratelimit-remaining-requests"
        assert first.headers[name] == "1"
        record = await run.record(4)
        assert (record["status"], record["end"], record["fault"]) == (429, "refused", "client")
        assert (record["error"], record["limit"]) == ("rate_limit_exceeded", "requests/1m per key on gateway")
        assert refused(run) == {("main", "requests/1m per key on gateway", "false"): 2}


def said_of(seconds: int) -> str:
    return f"{seconds}s" if seconds < 60 else f"1m{seconds - 60}s"


async def test_a_budget_that_is_used_up() -> None:
    async with stub(ok(USED)) as up, running(config(up.url, limit("requests", 1, "day", "group"))) as run:
        assert await statuses(run, chat(ALICE)) == [200]
        answer = await run.ask(chat(BOB))
        error = answer.json()["error"]
        assert (answer.status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
        assert error["message"].startswith("the group 'search' may make 1 requests a day, and has; try again in ")
        assert answer.headers["x-should-retry"] == "false"
        assert 0 < int(answer.headers["retry-after"]) <= 86400


async def test_what_is_under_way_is_bounded() -> None:
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok())

    async with stub(handler) as up, running(config(up.url, limit("concurrency", 2, None, "key"))) as run:
        first, second = (asyncio.create_task(run.ask(chat())) for _ in range(2))
        await until(lambda: len(up.seen) == 2, "two under way")
        third = await run.ask(chat())
        assert (third.status, third.headers["retry-after"], held(run)) == (429, "1", 2)
        assert third.json()["error"]["message"] == (
            "the API key 'alice' may have 2 requests under way, and has; try again when one has ended"
        )
        assert not [name for name in third.headers if "ratelimit" in name]
        other = asyncio.create_task(run.ask(chat(BOB)))
        await until(lambda: len(up.seen) == 3, "another's")
        release.set()
        assert [(await task).status for task in (first, second, other)] == [200] * 3
        assert held(run) == 0
        assert await statuses(run, chat()) == [200]


# which apply ----------------------------------------------------------------------------------------------------------


async def test_all_that_apply_must_hold_and_a_refused_request_takes_nothing_of_any() -> None:
    limits = [limit("requests", 3, 60.0, "gateway"), limit("requests", 1, 60.0, "key"), limit("concurrency", 5)]
    async with stub() as up, running(config(up.url, *limits)) as run:
        asked = [chat(ALICE), chat(ALICE), chat(ALICE), chat(BOB)]
        assert await statuses(run, *asked) == [200, 429, 429, 200]
        one_left = await run.ask(chat(ALICE))
        assert one_left.headers["x-ratelimit-limit-requests"] == "1"
        assert held(run) == 0
        run.apply(config(up.url, limit("requests", 3, 60.0, "gateway")), 2)
        assert await statuses(run, chat(ALICE), chat(ALICE)) == [200, 429]  # of the gateway's, two were used


@pytest.mark.parametrize("shadow", [False, True])
async def test_a_key_s_own_limit_replaces_the_inherited_one(shadow: bool) -> None:
    inherited = [limit("requests", 1, 60.0, "key"), limit("requests", 9, 60.0, "gateway")]
    own = [limit("requests", 3, 60.0, "key", shadow=shadow)]
    async with stub() as up, running(config(up.url, *inherited, alice=own)) as run:
        found = await statuses(run, *[chat(ALICE)] * 4, *[chat(BOB)] * 2)
        assert found == [200, *([429] * 3 if shadow else [200, 200, 429]), 200, 429]


async def test_limits_of_rules_and_models() -> None:
    rules = [rule(limits=[limit("requests", 3, 60.0, "rule")]), rule("two", "/two/*", strip_path=True)]
    models = {
        "gpt-4o": model("up", limits=[limit("requests", 1, 60.0, "model")]),
        "o*": model("up", limits=[limit("requests", 1, 60.0, "key")]),
    }
    async with stub() as up, running(config(up.url, rules=rules, models=models)) as run:
        o1, o3 = CHAT.replace(b"gpt-4o", b"o1"), CHAT.replace(b"gpt-4o", b"o3")
        assert await statuses(run, chat(), chat(), chat(BOB)) == [200, 429, 429]
        assert await statuses(run, chat(body=o1), chat(body=o3), chat(BOB, body=o3)) == [200, 429, 200]
        assert await statuses(run, chat(body=o1)) == [429]
        last = (await run.record(6))["limit"]
        assert last == "requests/1m per rule"
        two = post("/two/v1/chat/completions", CHAT, BOB)
        assert (
            (await run.ask(two))
            .json()["error"]["message"]
            .startswith("the model 'gpt-4o' may make 1 requests in 1m0s, and has")
        )


async def test_whose_allowance_it_is_by_address_and_by_header() -> None:
    limits = [limit("requests", 4, 60.0, "ip"), limit("requests", 1, 60.0, "header:x-session")]
    async with stub() as up, running(config(up.url, *limits)) as run:
        asked = [chat(ALICE, "openai", CHAT, b"X-Session: " + name) for name in (b"a", b"b", b"a ", b"c")]
        assert await statuses(run, *asked, chat(), chat()) == [200, 200, 429, 200, 200, 429]
        assert refused(run) == {
            ("main", "requests/1m per header:x-session on gateway", "false"): 1,
            ("main", "requests/1m per ip on gateway", "false"): 1,
        }


async def test_sessions_of_one_connection_whose_heads_are_known_by_pattern() -> None:
    async with stub() as up, running(config(up.url, limit("requests", 1, 60.0, "header:x-session"))) as run:
        client = await run.connect()
        names = [b"a", b"b", b"c", b"d", b"a", b"d", b"e"]
        found = [(await client.ask(chat(ALICE, "openai", CHAT, b"x-session: " + name))).status for name in names]
        assert found == [200, 200, 200, 200, 429, 429, 200]


async def test_shadow_counts_and_refuses_nothing() -> None:
    limits = [limit("requests", 1, 60.0, "key", shadow=True), limit("tokens", 1, 60.0, "key", shadow=True)]
    async with stub(ok(USED)) as up, running(config(up.url, *limits)) as run:
        answer = await run.ask(chat())
        assert await statuses(run, chat(), chat()) == [200, 200]
        assert not ratelimits(answer)
        assert refused(run) == {
            ("main", "requests/1m per key on gateway", "true"): 2,
            ("main", "tokens/1m per key on gateway", "true"): 3,
        }


async def test_probes_and_lists() -> None:
    async with stub() as up, running(config(up.url, limit("requests", 1, 60.0, "gateway"))) as run:
        assert await statuses(run, *[get("/__/ping")] * 3) == [200] * 3
        assert await statuses(run, get("/v1/models", ALICE), get("/v1/models", ALICE)) == [200, 429]
        assert await statuses(run, get("/v1/models")) == [401]


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(PATHS["openai"], b"{", ALICE),
        post(PATHS["openai"], CHAT.replace(b"gpt-4o", b"nobody"), ALICE),
        post(PATHS["openai"], CHAT.replace(b"gpt-4o", b"small"), ALICE),
    ],
    ids=["no JSON", "no such model", "the model's limit"],
)
async def test_what_is_refused_later_gives_back(request_bytes: bytes) -> None:
    models = {"gpt-4o": model("up"), "small": model("up", limits=[limit("tokens", 10, 60.0, "model")])}
    limits = [limit("requests", 1, 60.0, "key"), limit("concurrency", 1, None, "key")]
    async with stub() as up, running(config(up.url, *limits, models=models)) as run:
        for _ in range(3):
            assert (await run.ask(request_bytes)).status in (400, 404, 429)
        assert held(run) == 0
        assert await statuses(run, chat(), chat()) == [200, 429]


# tokens and cost ------------------------------------------------------------------------------------------------------


async def left(run: Running) -> int:
    """Tokens that alice has left, as the refusal of one that wants too many says."""
    answer = await run.ask(chat(body=CHAT[:-1] + b', "max_tokens": 999999}'))
    assert (answer.status, answer.headers["x-should-retry"]) == (429, "false")
    return int(answer.headers["x-ratelimit-remaining-tokens"])


@pytest.mark.parametrize(
    ("usage", "count"),
    [
        (b'{"usage": {"prompt_tokens": 30, "completion_tokens": 12}}', 42),
        (USED[:-2] + b', "prompt_tokens_details": {"cached_tokens": 20}}}', 42),
        (b'{"usage": {"input_tokens": 30, "output_tokens": 12, "cache_read_input_tokens": 20}}', 62),
        (b'{"usageMetadata": {"promptTokenCount": 30, "candidatesTokenCount": 12, "thoughtsTokenCount": 5}}', 47),
        (b"{}", len(CHAT[:-1] + b', "max_tokens": 100}') // 4 + 100),
    ],
)  # fmt: skip
async def test_tokens_are_settled_by_what_was_used(usage: bytes, count: int) -> None:
    async with stub(ok(usage)) as up, running(config(up.url, limit("tokens", 1000, 60.0, "key"))) as run:
        answer = await run.ask(chat(body=CHAT[:-1] + b', "max_tokens": 100}'))
        reserved = len(CHAT[:-1] + b', "max_tokens": 100}') // 4 + 100
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(1000 - reserved)
        assert await left(run) == 1000 - count
        assert held(run) == 0


async def test_a_split_is_measured_too() -> None:
    """Before it is drawn which of its parts is asked; dollars by the first one, until it is known which it was."""
    names = {name: model("up", "gpt-4o") for name in ("gpt-4o", "other")}
    names["both"] = model("", split={"gpt-4o": 1, "other": 1})
    limits = [limit("tokens", 3000, 60.0, "key"), limit("cost", 10**8, "day", "key")]
    async with stub(ok(USED)) as up, running(config(up.url, *limits, models=names)) as run:
        answer = await run.ask(chat(ALICE, "openai", CHAT.replace(b"gpt-4o", b"both")))
        assert (answer.status, await left(run)) == (200, 3000 - 42)
        assert held(run) == 0


async def test_what_is_reserved_counts_while_it_is_under_way() -> None:
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok(USED))

    asking = chat(body=CHAT[:-1] + b', "max_tokens": 600}')
    async with stub(handler) as up, running(config(up.url, limit("tokens", 1000, 60.0, "key"))) as run:
        first = asyncio.create_task(run.ask(asking))
        await until(lambda: up.seen, "the first under way")
        second = await run.ask(asking)
        assert (second.status, second.headers["retry-after"]) == (429, "1")
        assert second.json()["error"]["message"] == (
            "the API key 'alice' may use 1000 tokens in 1m0s; 379 tokens are left, and this request may use 621 "
            "tokens; try again in 1s"
        )
        release.set()
        assert (await first).status == 200
        assert await statuses(run, asking) == [200]


async def test_input_output_and_both_in_anthropic_s_form() -> None:
    limits = [limit(unit, 5000, 60.0, "key") for unit in ("tokens", "input_tokens", "output_tokens")]
    usage = b'{"usage": {"input_tokens": 30, "output_tokens": 12}}'
    async with stub(ok(usage, b"anthropic-ratelimit-tokens-limit: 7")) as up, running(config(up.url, *limits)) as run:
        body = CHAT[:-1] + b', "max_tokens": 100}'
        await run.ask(chat(ALICE, "anthropic", body))
        said = ratelimits(await run.ask(chat(ALICE, "anthropic", body)))
        size = len(body) // 4
        assert {name: value for name, value in said.items() if not name.endswith("reset")} == {
            "anthropic-ratelimit-tokens-limit": "5000",
            "anthropic-ratelimit-tokens-remaining": str(5000 - 42 - size - 100),
            "anthropic-ratelimit-input-tokens-limit": "5000",
            "anthropic-ratelimit-input-tokens-remaining": str(5000 - 30 - size),
            "anthropic-ratelimit-output-tokens-limit": "5000",
            "anthropic-ratelimit-output-tokens-remaining": str(5000 - 12 - 100),
        }


async def test_what_gemini_names_in_the_path_and_bounds_in_the_body() -> None:
    body = b'{"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": {"maxOutputTokens": 2000}}'
    usage = b'{"usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 7}}'
    async with stub(ok(usage)) as up, running(config(up.url, limit("tokens", 2500, 60.0, "key"))) as run:
        client = await run.connect()
        whole = post(PATHS["gemini"], body, ALICE)
        await client.send(whole[:-40], whole[-40:])  # it is collected, since it has to be read
        answer = await client.answer()
        assert answer.headers["x-ratelimit-remaining-tokens"] == str(2500 - len(body) // 4 - 2000)
        assert up.last.body == body
        assert await left(run) == 2490
        large = body.replace(b"Hi", b"x" * 100_000)  # a file, by its looks
        answer = await run.ask(post(PATHS["gemini"], large, ALICE))
        assert answer.status == 429
        assert int(answer.headers["x-ratelimit-remaining-tokens"]) == 2490
        small = large.replace(b"2000", b"500")
        answer = await run.ask(post(PATHS["gemini"], b"", ALICE, chunks=[small[:50_000], small[50_000:]]))
        assert answer.status == 200
        assert up.last.body == small


async def test_dollars() -> None:
    """$1 and $2 per million tokens: 30 in and 12 out are 54 micro-dollars."""
    limits = [limit("cost", 2_180_000, "month", "key")]  # nano-dollars
    async with stub(ok(USED)) as up, running(config(up.url, *limits)) as run:
        body = CHAT[:-1] + b', "max_tokens": 1000}'
        assert await statuses(run, *[chat(body=body)] * 3) == [200] * 3
        answer = await run.ask(chat(body=body))
        need = (len(body) // 4 + 2000) / 1e6
        assert answer.status == 429
        assert answer.json()["error"]["message"].startswith(
            "the API key 'alice' may use $0.00218 a month; $0.002018 are left, and this request may use "
            f"${need}; try again in "
        )
        assert (answer.json()["error"]["code"], answer.headers["x-should-retry"]) == ("insufficient_quota", "false")
        assert not [name for name in answer.headers if "ratelimit" in name]


# how exchanges end ----------------------------------------------------------------------------------------------------


async def test_a_provider_s_own_limits_are_replaced_where_one_of_ours_applies() -> None:
    lines = [b"X-RateLimit-Limit-Requests: 10000", b"x-ratelimit-remaining-tokens: 5", b"x-other: 1"]
    async with stub(ok(b"{}", *lines)) as up, running(config(up.url, limit("requests", 9, 60.0, "key"))) as run:
        answer = await run.ask(chat())
        names = [line.partition(b":")[0].lower() for line in answer.lines]
        assert names.count(b"x-ratelimit-limit-requests") == 1
        assert b"x-ratelimit-remaining-tokens" not in names
        assert b"x-other" in names
        assert answer.headers["x-ratelimit-remaining-requests"] == "8"
        silent = config(up.url, limit("requests", 9, 60.0, "key"))
        silent["answer_headers"]["x-ratelimit"] = False
        run.apply(silent, 2)
        answer = await run.ask(chat())
        assert answer.headers["x-ratelimit-limit-requests"] == "10000"
        run.apply(config(up.url, limit("concurrency", 9, None, "key")), 3)
        assert (await run.ask(chat())).headers["x-ratelimit-limit-requests"] == "10000"


@pytest.mark.parametrize(
    ("ending", "count"),
    [("error", 0), ("reset", 121), ("cut", 121), ("hang", 121), ("ok", 42)],
)
async def test_what_is_settled_however_it_ends(ending: str, count: int) -> None:
    body = CHAT[:-1] + b', "max_tokens": 100}'
    assert len(body) // 4 + 100 == 121

    async def handler(connection: Connection, seen: Seen) -> None:
        if ending == "error":
            await connection.send(ok(status=b"500 Internal Server Error"))
        elif ending == "ok":
            await connection.send(ok(USED))
        elif ending == "cut":
            await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nhalf")
            connection.close()
        elif ending == "reset":
            connection.reset()

    async with stub(handler) as up, running(config(up.url, limit("tokens", 1000, 60.0, "key"))) as run:
        client = await run.connect()
        await client.send(chat(body=body))
        if ending == "hang":
            await until(lambda: up.seen, "it is under way")
            client.reset()
        await run.record()
        assert held(run) == 0
        assert await left(run) == 1000 - count


class Watched(asyncio.Transport):
    """Of a client connection: notes what is held and how much is under way whenever something is written."""

    def __init__(self, run: Running, transport: asyncio.Transport) -> None:
        self._run = run
        self._transport = transport
        self.noted: list[tuple[int, int]] = []

    def write(self, data: Any) -> None:
        self.noted.append((held(self._run), self._run.gateway.row[IN_FLIGHT]))
        self._transport.write(data)


@asynccontextmanager
async def watched(run: Running) -> AsyncIterator[tuple[Client, list[tuple[int, int]]]]:
    client = await run.connect()
    await until(lambda: run.gateway.clients, "it is accepted")
    (connection,) = run.gateway.clients
    transport = connection.transport
    connection.transport = watching = Watched(run, transport)
    try:
        yield client, watching.noted
    finally:
        connection.transport = transport


LENGTH = ok(USED)
EVENT = b"data: " + USED + b"\n\n"
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (LENGTH,),
        (LENGTH[:-9], LENGTH[-9:]),
        (STREAM + chunked(EVENT),),
        (STREAM, chunked(EVENT)),
        (STREAM + chunked(EVENT)[:-5], b"0\r\n\r\n"),
        (STREAM + chunked(EVENT)[:-8], chunked(EVENT)[-8:-3], chunked(EVENT)[-3:]),
    ],
)
async def test_who_has_seen_the_end_of_an_answer_finds_it_counted(parts: tuple[bytes, ...]) -> None:
    turns: asyncio.Queue[bytes] = asyncio.Queue()

    async def handler(connection: Connection, seen: Seen) -> None:
        for part in parts:
            await connection.send(part)
            if part is not parts[-1]:
                await turns.get()

    limits = limit("tokens", 1000, 60.0, "key"), limit("concurrency", 1, None, "key")
    async with stub(handler) as up, running(config(up.url, *limits)) as run, watched(run) as (client, noted):
        await client.send(chat(body=CHAT[:-1] + b', "max_tokens": 100}'))
        for count in range(1, len(parts)):
            await until(lambda count=count: len(noted) == count, "a part is relayed")  # type: ignore[misc]
            turns.put_nowait(b"")
        await client.answer()
        assert [taken for taken, _ in noted] == [122] * (len(parts) - 1) + [0]
        assert await left(run) == 1000 - 42


async def test_who_was_answered_by_the_gateway_itself_is_not_under_way_any_more() -> None:
    limits = limit("requests", 0, 60.0, "key")
    async with stub() as up, running(config(up.url, limits)) as run, watched(run) as (client, noted):
        assert (await client.ask(chat())).status == 429
        assert noted == [(0, 0)]
        assert len(run.records) == 1


@pytest.mark.unmeasured
async def test_nothing_is_held_after_random_faults() -> None:
    """Whatever happens to two hundred exchanges at once: nothing stays held, and what was used is what the log says,
    or what was reserved where that says nothing."""
    draw = random.Random(7)
    body = CHAT[:-1] + b', "max_tokens": 100}'
    clients = {}

    async def handler(connection: Connection, seen: Seen) -> None:
        fate = draw.random()
        if fate < 0.4:
            await connection.send(ok(USED))
        elif fate < 0.5:
            await connection.send(ok(status=b"429 Too Many Requests"))
        elif fate < 0.6:
            await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(b"x")[:-2])
            connection.reset()
        elif fate < 0.7:
            connection.close()
        elif fate < 0.8:
            await connection.send(b"nonsense\r\n\r\n")
            connection.close()
        else:
            clients[seen.headers["x-request-id"]].writer.transport.abort()

    limits = [limit("tokens", 10**6, 3600.0, "key"), limit("concurrency", 500), limit("requests", 500, 3600.0)]
    async with stub(handler) as up, running(config(up.url, *limits)) as run:

        async def one(number: int) -> None:
            clients[f"r{number}"] = client = await run.connect()
            await client.send(chat(ALICE, "openai", b"{" if number % 10 == 0 else body, b"x-request-id: r%d" % number))
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await client.answer()
            client.writer.transport.abort()

        await asyncio.gather(*map(one, range(200)))
        await until(lambda: len(run.lines) == 200, "all have ended")
        assert held(run) == 0
        used = 0
        for record in run.records:
            tokens = record.get("tokens")
            if tokens is not None:
                used += tokens["input"] + tokens["output"]
            elif "target" in record and record["status"] != 429:
                used += len(body) // 4 + 100
        assert await left(run) == 10**6 - used


# SDKs -----------------------------------------------------------------------------------------------------------------


async def test_openai_s_sdk_sees_a_rate_limit() -> None:
    async with (
        stub(ok(USED)) as up,
        running(config(up.url, limit("requests", 1, 60.0, "key"))) as run,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{run.port}/v1", api_key="sk-alice", max_retries=0) as client,
    ):
        ask = client.chat.completions.with_raw_response.create
        first = await ask(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
        assert first.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await ask(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert 52 <= int(caught.value.response.headers["retry-after"]) <= 68


async def test_anthropic_s_sdk_sees_a_rate_limit_and_does_not_retry_a_budget() -> None:
    async with (
        stub(ok(USED)) as up,
        running(config(up.url, limit("requests", 1, "day", "key"))) as run,
        anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{run.port}", api_key="sk-alice", max_retries=5) as client,
    ):
        question: Any = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        await client.messages.with_raw_response.create(**question)
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(**question)
        body: Any = caught.value.body
        assert body["error"]["type"] == "rate_limit_error"
        assert len(run.lines) == 2


async def test_addresses_behind_a_trusted_proxy() -> None:
    """One connection of the proxy's brings requests of many clients, whose heads are known by pattern."""
    async with stub() as up:
        behind = config(up.url, limit("requests", 1, 60.0, "ip"), trusted_proxies=["127.0.0.0/8"])
        async with running(behind) as run:
            client = await run.connect()
            addresses = [f"192.0.2.{number}" for number in (1, 2, 3, 4, 2, 5)] + ["2001:db9::1", "2001:db9::2"]
            found = [
                (
                    await client.ask(chat(ALICE, "openai", CHAT, f"x-forwarded-for: 198.51.100.1, {address}".encode()))
                ).status
                for address in addresses
            ]
            assert found == [200, 200, 200, 200, 429, 200, 200, 429]
            assert [record["client"] for record in run.records] == addresses
            assert up.last.headers["x-forwarded-for"] == "198.51.100.1, 2001:db9::1"
            run.apply(config(up.url, limit("requests", 1, 60.0, "ip")), 2)
            told = b"x-forwarded-for: 203.0.113.1"
            assert [(await client.ask(chat(ALICE, "openai", CHAT, told))).status for _ in range(2)] == [200, 429]
            assert run.records[-1]["client"] == "127.0.0.1"
