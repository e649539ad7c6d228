"""The one replay that needs no configuration: a reused connection that died before it answered a byte."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from fakes import CHAT, Connection, Handler, Running, Seen, Stub, get, ok, post, running, serving, splicing, stub, until

CHAT_PATH = "/v1/chat/completions"


def dying(*, then: str = "reset", partial: bytes = b"", fresh_too: bool = False, after: float = 0.0) -> Handler:
    """Answers the first request of a connection, and dies on the second, maybe after some bytes."""

    async def handler(connection: Connection, seen: Seen) -> None:
        if connection.requests == 1 and b"warm" in seen.raw:
            await connection.send(ok(b"warm"))
            return
        if connection.requests == 1 and not fresh_too:
            await connection.send(ok().partition(b"{")[0] if seen.line.startswith(b"HEAD") else ok())
            return
        if partial:
            await connection.send(partial)
        if after:
            died = time.monotonic() + after
            await until(lambda: time.monotonic() >= died, "the time before it dies")
        getattr(connection, then)()

    return handler


async def warmed(gw: Running, up: Stub) -> None:
    """One idle connection in the pool that has served a request."""
    path = CHAT_PATH + "?warm"
    assert (await gw.ask(post(path))).body == b"warm"
    assert len(gw.pool.idle) == 1
    up.seen.clear()


INFERENCE = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/moderations",
    "/v1/rerank",
    "/v1/responses",
    "/v1/messages",
    "/v1beta/models/gemini-pro:generateContent",
    "/openai/deployments/gpt-4o/chat/completions",
]


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("path", INFERENCE)
async def test_an_inference_post_is_answered_by_a_fresh_connection(path: str, then: str) -> None:
    dialects = ["openai", "anthropic", "gemini"]
    async with stub(dying(then=then)) as up, running(serving(up.url, dialects=dialects)) as gw:
        await warmed(gw, up)
        answer = await gw.ask(post(path))
        assert (answer.status, answer.body) == (200, b'{"ok": true}')
        assert len(up.connections) == 2
        assert len(up.seen) == 2
        assert up.seen[0].raw == up.seen[1].raw  # the same request, byte for byte
        assert answer.headers["x-aigw-attempts"] == "1"  # a replay is no attempt
        assert len(gw.records) == 2


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
async def test_an_idempotent_request_is_answered_by_a_fresh_connection(method: bytes) -> None:
    async with stub(dying()) as up, running(splicing(up.url)) as gw:
        await warmed(gw, up)
        answer = await gw.ask(get("/x", method=method), head_only=method == b"HEAD")
        assert answer.status == 200
        assert len(up.seen) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", CHAT),
        ("/v1/audio/speech", CHAT),
        ("/v1/some/new/thing", CHAT),
        ("/v1/responses", b'{"model": "m", "store": true}'),
        ("/v1/responses", b'{"model": "m", "background": true}'),
    ],
)
async def test_any_other_post_is_502_and_never_sent_twice(path: str, body: bytes) -> None:
    async with stub(dying()) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        answer = await gw.ask(post(path, body))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_reset")
        assert len(up.seen) == 1
        record = await gw.record(1)
        assert (record["status"], record["end"], record["error"]) == (502, "failed", "upstream_reset")


async def test_a_post_to_a_plain_http_upstream_is_never_sent_twice() -> None:
    async with stub(dying()) as up, running(splicing(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post("/orders"))).status == 502
        assert len(up.seen) == 1


@pytest.mark.parametrize("member", [b'"store": true', b'"background": true'])
async def test_a_stored_response_on_a_rule_that_reads_no_body_is_never_sent_twice(member: bytes) -> None:
    """The body is not read there, so it is not known to be safe."""
    async with stub(dying()) as up, running(splicing(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post("/v1/responses", b'{"model": "m", %b}' % member))).status == 502
        assert len(up.seen) == 1


async def test_a_spliced_inference_post_that_was_whole_is_replayed() -> None:
    async with stub(dying()) as up, running(splicing(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert len(up.seen) == 2


@pytest.mark.parametrize("partial", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_nothing_is_sent_twice_after_a_byte_of_an_answer(partial: bytes) -> None:
    async with stub(dying(then="close", partial=partial)) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        client = await gw.connect()
        answer = await client.ask(post(CHAT_PATH))
        if answer.status == 103:
            answer = await client.answer()
        assert answer.status == 502
        assert len(up.seen) == 1


async def test_a_body_over_one_mebibyte_is_not_kept_for_a_replay() -> None:
    body = json.dumps({"model": "m", "x": "y" * 2**20}).encode()
    async with stub(dying()) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post(CHAT_PATH, body))).status == 502
        assert len(up.seen) == 1


async def test_a_body_of_almost_one_mebibyte_is() -> None:
    body = json.dumps({"model": "m", "x": "y" * (2**20 - 100)}).encode()
    async with stub(dying()) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post(CHAT_PATH, body))).status == 200
        assert [seen.body for seen in up.seen] == [body, body]


async def test_an_upstream_that_dies_later_than_two_seconds_has_seen_the_request() -> None:
    async with stub(dying(after=2.05)) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        assert (await gw.ask(post(CHAT_PATH))).status == 502
        assert len(up.seen) == 1


async def test_a_fresh_connection_that_dies_is_502() -> None:
    async with stub(dying(fresh_too=True)) as up, running(serving(up.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 502
        assert len(up.seen) == 1


async def test_a_replay_is_not_replayed() -> None:
    async with stub(dying(fresh_too=True)) as up, running(serving(up.url)) as gw:
        await warmed(gw, up)
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_reset")
        assert len(up.seen) == 2
        assert len(gw.records) == 2


async def test_a_replay_takes_a_fresh_connection_though_another_stands_idle() -> None:
    """Where one connection was closed by a restarting upstream, the others were too."""
    two = asyncio.Barrier(2)

    async def handler(connection: Connection, seen: Seen) -> None:
        if b"warm" in seen.line:
            await two.wait()
            await connection.send(ok(b"warm"))
        elif connection.requests > 1:
            connection.reset()
        else:
            await connection.send(ok())

    async with stub(handler) as up, running(serving(up.url)) as gw:
        await asyncio.gather(*(gw.ask(post(CHAT_PATH + "?warm")) for _ in range(2)))
        assert len(gw.pool.idle) == 2
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert len(up.connections) == 3


async def test_an_upload_that_was_not_whole_is_not_sent_twice() -> None:
    async def on_head(connection: Connection, seen: Seen) -> None:
        if b"warm" not in seen.line:
            connection.reset()

    async with stub(dying(), on_head=on_head) as up, running(splicing(up.url)) as gw:
        await warmed(gw, up)
        client = await gw.connect()
        await client.send(get("/x", b"content-length: 10", method=b"PUT") + b"01234")
        answer = await client.answer()
        assert answer.status == 502
        assert len(up.connections) == 1
