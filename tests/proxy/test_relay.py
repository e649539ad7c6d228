"""What goes through: requests as the upstream saw them, answers as the client got them."""

from __future__ import annotations

import pytest
from fakes import CHAT, document, get, ok, post, running, stub, target, upstream


def serving(url: str, **fields: object) -> dict[str, object]:
    return document({"up": upstream(target(url), **fields)})


async def test_a_chat_completion_goes_through_unchanged() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(post("/v1/chat/completions", CHAT, b"X-Custom: Kept As It Is"))
        assert answer.status == 200
        assert answer.body == b'{"ok": true}'
        assert up.last.line == b"POST /v1/chat/completions HTTP/1.1"
        assert up.last.body == CHAT
        assert b"X-Custom: Kept As It Is" in up.last.lines
        record = await gw.record()
        assert (record["status"], record["end"], record["model"]) == (200, "ok", "gpt-4o")
        await client.close()


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_a_request_in_pieces_is_the_same_request(size: int) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        raw = post("/v1/chat/completions")
        for _ in range(2):
            await client.send(*(raw[i : i + size] for i in range(0, len(raw), size)))
            assert (await client.answer()).body == b'{"ok": true}'
        assert [seen.body for seen in up.seen] == [CHAT, CHAT]
        assert len(up.connections) == 1
        await client.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def echo(connection, seen) -> None:  # type: ignore[no-untyped-def]
        await connection.send(ok(seen.body))

    async with stub(echo) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        bodies = [b'{"model": "m%d"}' % i for i in range(17)]
        await client.send(b"".join(post("/v1/chat/completions", body) for body in bodies))
        assert [(await client.answer()).body for _ in bodies] == bodies
        await client.close()


async def test_get_without_a_rule_for_it_says_where_to_look() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(get("/v1/files"))
        assert answer.status == 404
        assert answer.headers["x-aigw-error"] == "no_rule"
        await client.close()
        assert not up.seen
