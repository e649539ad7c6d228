"""The commit boundary: before its first content, a stream can still become another attempt, or a status."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    Connection,
    Handler,
    Seen,
    chunked,
    dechunked,
    pieces,
    post,
    running,
    stub,
    until,
)
from streams import APIS, EACH, HEAD, Api, answering, chat, config, event, held, named, stream

CUTS = ["whole", "bytes", 1]


@pytest.mark.unmeasured
@EACH
@pytest.mark.parametrize("cut", CUTS)
async def test_what_was_held_goes_out_as_it_came(api: Api, cut: str | int) -> None:
    raw = stream(*api.before, api.content, api.content, api.end)
    async with stub(answering(raw, cut=cut)) as up, running(config(up.url, up.url, api.dialect)) as gw:
        answer = await gw.ask(api.request)
        assert (answer.status, answer.headers["x-aigw-attempts"]) == (200, "1")
        assert answer.raw.partition(b"\r\n\r\n")[2] == raw.partition(b"\r\n\r\n")[2]
        record = await gw.record()
        assert (record["end"], record["bytes_out"]) == ("ok", len(answer.body))
        assert "attempts" not in record
        if api.path == "/v1/responses":
            assert record["tokens"] == {"input": 3, "output": 4}
        elif api.dialect != "openai":
            assert record["tokens"] == {"input": 3}
        assert len(gw.gateway.pools) == 2
        client = await gw.connect()  # and the connection is good for another
        assert (await client.ask(api.request)).status == 200
        assert len(up.connections) == 1


@EACH
async def test_it_is_held_until_there_is_content_and_no_longer(api: Api) -> None:
    """The client has nothing before, all of it with the content, and each further event as it comes."""
    steps: list[Connection] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD, *[chunked(one)[:-5] for one in api.before])
        steps.append(connection)
        await connection.gone()

    async with stub(handler) as up, running(config(up.url, up.url, api.dialect)) as gw:
        client = await gw.connect()
        await client.send(api.request)
        await until(lambda: steps, "the beginning was sent")
        exchange = next(iter(gw.gateway.clients)).exchange
        assert exchange is not None
        await until(lambda: held(gw) == len(b"".join(chunked(one)[:-5] for one in api.before)), "it is held")
        assert exchange.status == 0
        await steps[0].send(chunked(api.content)[:-5])
        assert (await client.read(api.content + b"\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        await steps[0].send(chunked(api.end)[:-5])
        await client.read(api.end + b"\r\n")
        await client.close()


FAILURES: dict[str, tuple[str, bytes, str, int]] = {
    "cut": ("close", b"", "upstream_cut", 502),
    "reset": ("reset", b"", "upstream_cut", 502),
    "ends without a word": ("", b"0\r\n\r\n", "upstream_cut", 502),
    "stalls": ("gone", b"", "idle_timeout", 504),
    "no JSON": ("gone", chunked(event('{"choices": '))[:-5], "upstream_malformed", 502),
    "no chunk": ("gone", b"zz\r\n", "upstream_malformed", 502),
}


@pytest.mark.unmeasured
@EACH
@pytest.mark.parametrize("count", ["none", "some", "all"])
@pytest.mark.parametrize("name", FAILURES)
async def test_a_break_before_content(api: Api, name: str, count: str) -> None:
    """Another model answers; without one the client gets the true status."""
    then, last, code, status = FAILURES[name]
    before = {"none": [], "some": api.before[:1], "all": api.before}[count]
    raw = HEAD + b"".join(chunked(one)[:-5] for one in before) + last
    good = stream(*api.before, api.content, api.end)
    async with stub(answering(raw, then)) as one, stub(answering(good)) as other:
        timeouts = {"idle": 0.1} if name == "stalls" else {}
        async with running(config(one.url, other.url, api.dialect, timeouts=timeouts)) as gw:
            answer = await gw.ask(api.request)
            assert (answer.status, answer.headers["x-aigw-attempts"]) == (200, "2")
            assert answer.headers["x-aigw-upstream"] == "other"
            assert answer.body == good.partition(b"\r\n\r\n")[2]
            record = await gw.record()
            assert [step["outcome"] for step in record["attempts"]] == [code, "200"]
            assert (record["end"], record["upstream"]) == ("ok", "other")
            assert (len(one.seen), len(other.seen)) == (1, 1)
        async with running(config(one.url, "", api.dialect, timeouts=timeouts)) as gw:
            answer = await gw.ask(api.request)
            assert (answer.status, answer.headers["x-aigw-error"]) == (status, code)
            record = await gw.record()
            assert (record["status"], record["error"], record["fault"]) == (status, code, "upstream")
            reported = before and api.dialect != "openai" and name != "no chunk"  # which spoils the whole read
            assert record.get("tokens") == ({"input": 3} if reported else None)  # which was paid for


@pytest.mark.unmeasured
@EACH
@pytest.mark.parametrize("cut", CUTS)
async def test_an_error_in_place_of_content(api: Api, cut: str | int) -> None:
    for said, status in api.errors:
        raw = stream(*api.before, said)
        good = stream(api.content, api.end)
        async with stub(answering(raw, cut=cut)) as one, stub(answering(good)) as other:
            async with running(config(one.url, other.url, api.dialect)) as gw:
                answer = await gw.ask(api.request)
                assert (answer.status, dechunked(answer.body)) == (200, api.content + api.end)
                kind = {429: "upstream_rate_limited", 529: "upstream_overloaded", 500: "upstream_error"}[status]
                assert [step["outcome"] for step in (await gw.record())["attempts"]] == [kind, "200"]
            async with running(config(one.url, "", api.dialect)) as gw:
                answer = await gw.ask(api.request)
                assert (answer.status, answer.headers["x-aigw-error"]) == (status, kind)
                assert answer.headers["content-type"] == "application/json"
                message = answer.json()["error"]["message"]
                assert message.startswith("the upstream reported an error in place of content: ")


@EACH
@pytest.mark.parametrize("cut", CUTS)
async def test_an_error_behind_content_is_relayed(api: Api, cut: str | int) -> None:
    raw = stream(*api.before, api.content, api.errors[0][0])
    async with stub(answering(raw, cut=cut)) as up, running(config(up.url, up.url, api.dialect)) as gw:
        answer = await gw.ask(api.request)
        assert answer.body == raw.partition(b"\r\n\r\n")[2]
        assert len(up.seen) == 1


@EACH
async def test_a_break_behind_content_is_one(api: Api) -> None:
    """Cut visibly, with an event of ours that says so, and never tried again."""
    raw = HEAD + chunked(*api.before, api.content)[:-5]
    async with stub(answering(raw, "close")) as up, running(config(up.url, up.url, api.dialect)) as gw:
        client = await gw.connect()
        await client.send(api.request)
        body = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert body.startswith(raw.partition(b"\r\n\r\n")[2])
        assert b"upstream broke off" in body
        assert not body.endswith(b"0\r\n\r\n")
        record = await gw.record()
        assert (record["end"], record["error"], record["status"]) == ("cut", "upstream_cut", 200)
        assert len(up.seen) == 1


@pytest.mark.parametrize("form", ["chunked", "close", "length"])
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("cut", CUTS)
async def test_every_framing(form: str, version: bytes, cut: str | int) -> None:
    api = APIS["chat"]
    payload = b"".join([*api.before, api.content, api.end])
    head = HEAD.replace(b"transfer-encoding: chunked\r\n", b"")
    raw = {
        "chunked": stream(*pieces(payload, 11)),
        "close": head + payload,
        "length": head[:-2] + b"content-length: %d\r\n\r\n" % len(payload) + payload,
    }[form]
    handler = answering(raw, "close" if form == "close" else "", cut)
    async with stub(handler) as up, running(config(up.url, up.url)) as gw:
        client = await gw.connect()
        await client.send(api.request.replace(b"HTTP/1.1", version, 1))
        answer = await client.answer()
        body = dechunked(answer.body) if "transfer-encoding" in answer.headers else answer.body
        assert (answer.status, body) == (200, payload)
        assert (await gw.record())["end"] == "ok"


@pytest.mark.parametrize("form", ["close", "chunked", "length"])
async def test_content_in_the_last_event_without_its_empty_line(form: str) -> None:
    payload = APIS["chat"].content.rstrip(b"\n")
    head = HEAD.replace(b"transfer-encoding: chunked\r\n", b"")
    raw = {
        "chunked": HEAD + chunked(payload),
        "close": head + payload,
        "length": head[:-2] + b"content-length: %d\r\n\r\n" % len(payload) + payload,
    }[form]
    async with stub(answering(raw, "close" if form == "close" else "")) as up, running(config(up.url, up.url)) as gw:
        client = await gw.connect()
        await client.send(APIS["chat"].request)
        answer = await client.answer()
        assert (dechunked(answer.body) if form == "chunked" else answer.body) == payload
        assert (await gw.record())["end"] == "ok"
        idle = [connection for pool in gw.gateway.pools.values() for connection in pool.idle]
        assert len(idle) == (form != "close")  # its end was that of the answer


@pytest.mark.parametrize("form", ["close", "length"])
async def test_every_framing_is_cut_before_content(form: str) -> None:
    api = APIS["chat"]
    head = HEAD.replace(b"transfer-encoding: chunked\r\n", b"content-length: 9999\r\n" if form == "length" else b"")
    good = answering(stream(api.content))
    async with (
        stub(answering(head + api.before[1], "close")) as one,
        stub(good) as two,
        running(config(one.url, two.url)) as gw,
    ):
        answer = await gw.ask(api.request)
        assert (answer.status, dechunked(answer.body)) == (200, api.content)


@pytest.mark.parametrize("cut", CUTS)
async def test_a_stream_whose_usage_is_taken_out(cut: str | int) -> None:
    """Patched and held: what the client gets is the same as without holding it."""
    with_null = [one.replace(b"null}]}", b'null}],"usage":null}') for one in (chat(role="a"), chat(content="Hi"))]
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}})
    raw = stream(*with_null, usage, event("[DONE]"))
    async with stub(answering(raw, cut=cut)) as up, running(config(up.url, up.url, usage="inject")) as gw:
        answer = await gw.ask(APIS["chat"].request)
        assert dechunked(answer.body) == chat(role="a") + chat(content="Hi") + event("[DONE]")
        assert (await gw.record())["tokens"] == {"input": 3, "output": 4}


async def test_no_more_than_64_kib_are_held() -> None:
    comment = b": " + b"x" * 1000 + b"\n\n"
    held_back = [comment] * 70
    raw = HEAD + b"".join(chunked(one)[:-5] for one in held_back)
    async with stub(answering(raw, "gone")) as up, running(config(up.url, up.url)) as gw:
        client = await gw.connect()
        await client.send(APIS["chat"].request)
        got = await client.read(len(raw.partition(b"\r\n\r\n")[2]))
        assert got.startswith(b"HTTP/1.1 200 OK\r\n")
        await client.close()


@pytest.mark.parametrize("name", ["chat", "messages", "gemini"])
async def test_what_nobody_knows_is_content(name: str) -> None:
    api = APIS[name]
    for odd in ('{"choices": 1, "candidates": 1, "type": "new"}', "[1]", '"text"', "1"):
        raw = stream(event(odd), api.errors[0][0])
        async with stub(answering(raw)) as up, running(config(up.url, up.url, api.dialect)) as gw:
            assert (await gw.ask(api.request)).body == raw.partition(b"\r\n\r\n")[2]


CONTENT = [
    ("chat", chat(tool_calls=[{"index": 0}])),
    ("chat", chat(reasoning_content="Hm")),
    ("chat", event({"choices": [{"delta": {}, "finish_reason": "stop"}]})),
    ("chat", event("[DONE]")),
    ("responses", named("response.incomplete", response={})),
    ("messages", named("message_delta", delta={"stop_reason": "end_turn"})),
    ("messages", named("content_block_start", content_block={"type": "web_search_tool_result", "content": [1]})),
    ("gemini", event({"promptFeedback": {"blockReason": "SAFETY"}})),
    ("gemini", event({"candidates": [{"content": {"parts": [{"functionCall": {"name": "f"}}]}}]})),
]


@pytest.mark.parametrize(("name", "content"), CONTENT)
async def test_what_else_is_content(name: str, content: bytes) -> None:
    api = APIS[name]
    raw = stream(*api.before, content, api.errors[0][0])
    async with stub(answering(raw)) as up, running(config(up.url, up.url, api.dialect)) as gw:
        assert (await gw.ask(api.request)).body == raw.partition(b"\r\n\r\n")[2]


async def test_what_is_said_of_a_credential_is_kept() -> None:
    said = event({"error": {"message": "Incorrect API key provided: sk-secret", "code": "invalid_api_key"}})
    async with stub(answering(stream(said))) as up, running(config(up.url, api_key="sk-secret")) as gw:
        answer = await gw.ask(APIS["chat"].request)
        assert answer.status == 500
        assert b"sk-secret" not in answer.raw
        assert b"something about a credential" in answer.body


@pytest.mark.parametrize(
    "head",
    [
        HEAD.replace(b"text/event-stream", b"application/json"),
        HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: br\r\n\r\n"),
    ],
)
async def test_what_is_no_stream_that_can_be_read_is_not_held(head: bytes) -> None:
    raw = head + chunked(b"[{}")[:-5]
    async with stub(answering(raw, "gone")) as up, running(config(up.url, up.url)) as gw:
        client = await gw.connect()
        await client.send(APIS["chat"].request)
        await client.read(b"[{}\r\n")
        await client.close()


@pytest.mark.parametrize("leaves", ["reset", "close"])
async def test_who_hangs_up_is_not_held_for(leaves: str) -> None:
    api = APIS["messages"]
    raw = HEAD + chunked(*api.before)[:-5]
    async with stub(answering(raw, "gone")) as up, running(config(up.url, up.url, "anthropic")) as gw:
        client = await gw.connect()
        await client.send(api.request)
        await until(lambda: gw.gateway.clients and held(gw), "it is held")
        client.reset() if leaves == "reset" else client.writer.close()
        record = await gw.record()
        assert (record["status"], record["end"], record["tokens"]) == (499, "client_gone", {"input": 3})
        await until(lambda: up.connections[0].closed.is_set(), "the upstream was left")
        assert len(up.seen) == 1


# the deadline ---------------------------------------------------------------------------------------------------------


def dripping(first: bytes) -> Handler:
    """Sends comments for as long as it is listened to: progress, and no content."""

    async def handler(connection: Connection, seen: Seen) -> None:
        try:
            await connection.send(first)
            while True:
                if first:
                    await connection.send(chunked(b": wait\n\n")[:-5])
                data = await said_by(connection)
                if data == b"":
                    return
        except ConnectionError:
            return

    return handler


async def said_by(connection: Connection, seconds: float = 0.02) -> bytes | None:
    """What the gateway says within a while: nothing (None), or that it leaves (b"")."""
    try:
        async with asyncio.timeout(seconds):
            return await connection.reader.read(1)
    except TimeoutError:
        return None


@pytest.mark.parametrize("before", ["nothing", "head"])
@pytest.mark.parametrize(
    ("name", "where"), [*[(name, "upstream") for name in APIS], ("chat", "model"), ("messages", "rule")]
)
async def test_content_has_a_deadline_of_its_own(name: str, where: str, before: str) -> None:
    api = APIS[name]
    good = stream(api.content, api.end)
    slow = dripping(HEAD + chunked(*api.before)[:-5] if before == "head" else b"")
    async with stub(slow) as one, stub(answering(good)) as other:
        made = config(one.url, other.url, api.dialect)
        within = {"first_token": 0.5, "total": None}  # of the fallback as well
        asked = made["gateways"]["default"]
        if where == "upstream":
            made["upstreams"]["one"]["timeouts"]["first_token"] = 0.15
        elif where == "model":
            asked["models"]["m"]["timeouts"] = within
        else:
            asked["rules"][0]["timeouts"] = within
        async with running(made) as gw:
            answer = await gw.ask(api.request)
            assert (answer.status, dechunked(answer.body)) == (200, api.content + api.end)
            first, _ = (await gw.record())["attempts"]
            assert (first["outcome"], first["ms"] >= 150) == ("first_token_timeout", True)
        asked["retry"], asked["models"]["m"]["fallback"] = None, []
        async with running(made) as gw:
            answer = await gw.ask(api.request)
            assert (answer.status, answer.headers["x-aigw-error"]) == (504, "first_token_timeout")
            assert "attempts" not in await gw.record()


async def test_an_answer_that_is_no_stream_has_none() -> None:
    async def slow(connection: Connection, seen: Seen) -> None:
        await said_by(connection, 0.4)
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with stub(slow) as up, running(config(up.url, timeouts={"first_token": 0.1})) as gw:
        answer = await gw.ask(post("/v1/chat/completions", b'{"model": "m", "messages": []}'))
        assert answer.status == 200


async def test_content_in_time_ends_the_deadline() -> None:
    api = APIS["chat"]
    steps: list[Connection] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD, chunked(api.content)[:-5])
        steps.append(connection)
        await connection.gone()

    async with stub(handler) as up, running(config(up.url, timeouts={"first_token": 4.0})) as gw:
        client = await gw.connect()
        await client.send(api.request)
        await client.read(api.content)
        (connected,) = gw.gateway.clients
        assert connected.runs.value == "idle"
        await client.close()
