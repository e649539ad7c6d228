"""Request bodies and their framing on the way to the upstream: the payload is the client's, the framing is ours."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
from fakes import (
    CHAT,
    Connection,
    Seen,
    chunked,
    gateway,
    get,
    model,
    ok,
    pieces,
    post,
    random_pieces,
    retry,
    running,
    serving,
    splicing,
    stub,
    until,
)

from aigw.proxy.exchange import Exchange

LARGE = bytes(range(256)) * 20480  # 5 MiB
CHUNKS = [b'{"model": ', b'"gpt-4o", ', b'"x": [1, 2, 3]}']


async def echo(connection: Connection, seen: Seen) -> None:
    await connection.send(ok(seen.body))


async def test_chunks_on_a_spliced_rule_go_on_as_chunks() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        await gw.ask(post("/any", chunks=CHUNKS))
        assert up.last.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in up.last.headers
        assert up.last.body == b"".join(CHUNKS)
        assert (await gw.record())["bytes_in"] == len(b"".join(CHUNKS))


async def test_chunks_on_a_by_model_rule_are_collected_and_go_on_by_length() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        await gw.ask(post("/v1/chat/completions", chunks=CHUNKS))
        assert up.last.headers["content-length"] == str(len(b"".join(CHUNKS)))
        assert "transfer-encoding" not in up.last.headers
        assert up.last.body == b"".join(CHUNKS)


async def test_the_clients_chunk_framing_never_reaches_an_upstream() -> None:
    odd = b'0005;ext="a;b"\r\nhello\r\n0000000000000001;x\r\n!\r\n000;last\r\n\r\n'
    async with stub() as up, running(splicing(up.url)) as gw:
        await gw.ask(post("/any", b"", chunks=[])[: -len(chunked())] + odd)
        assert up.last.body == b"hello!"
        assert b"ext" not in up.last.raw
        assert b"last" not in up.last.raw


async def test_trailers_of_a_spliced_request_go_on() -> None:
    raw = post("/any", chunks=[b"hello"])[:-2] + b"X-Checksum: abc\r\n\r\n"
    async with stub() as up, running(splicing(up.url)) as gw:
        await gw.ask(raw)
        assert up.last.raw.endswith(b"0\r\nX-Checksum: abc\r\n\r\n")


@pytest.mark.parametrize("field", [b"content-length: 5", b"transfer-encoding: chunked", b"host: elsewhere"])
async def test_a_trailer_that_frames_or_routes_does_not_go_on(field: bytes) -> None:
    """RFC 9110 section 6.5.1: an upstream might merge trailers into the head."""
    raw = post("/any", chunks=[b"hello"])[:-2] + field + b"\r\n\r\n"
    async with stub() as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(raw)
        assert answer.status in (200, 400)
        assert all(field not in seen.raw.partition(b"0\r\n")[2] for seen in up.seen)


@pytest.mark.parametrize("chunks", [None, []], ids=["length", "chunked"])
async def test_an_empty_body_is_an_empty_body(chunks: list[bytes] | None) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(post("/any", b"", chunks=chunks))).status == 200
        assert up.last.body == b""
        framing = up.last.headers.get("content-length"), up.last.headers.get("transfer-encoding")
        assert framing == (("0", None) if chunks is None else (None, "chunked"))


async def test_a_post_without_any_framing_has_an_empty_body() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(get("/any", method=b"POST"))).status == 200
        assert up.last.headers["content-length"] == "0"


async def test_a_get_without_body_goes_on_without_framing() -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        assert (await gw.ask(get("/any"))).status == 200
        assert "content-length" not in up.last.headers
        assert "transfer-encoding" not in up.last.headers


async def test_a_get_with_a_body_goes_on_with_it() -> None:
    async with stub(echo) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/any", b"content-length: 5") + b"hello")
        assert answer.body == b"hello"
        assert up.last.line == b"GET /any HTTP/1.1"


@pytest.mark.parametrize("chunks", [None, pieces(LARGE, 70_001)], ids=["length", "chunked"])
async def test_five_megabytes_go_through_byte_for_byte(chunks: list[bytes] | None) -> None:
    async with stub(echo) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(post("/any", LARGE, chunks=chunks))
        assert up.last.body == LARGE
        assert answer.body == LARGE
        record = await gw.record()
        assert (record["bytes_in"], record["bytes_out"]) == (len(LARGE), len(LARGE))


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_five_megabytes_are_collected_byte_for_byte(is_chunked: bool) -> None:
    body = json.dumps({"model": "gpt-4o", "image": "x" * (5 * 1024 * 1024)}).encode()
    async with stub() as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/chat/completions", body, chunks=pieces(body, 99_999) if is_chunked else None))
        assert answer.status == 200
        assert up.last.body == body
        await gw.record()
        assert gw.gateway.collected == 0


@pytest.mark.unmeasured
@pytest.mark.parametrize("chunks", [None, CHUNKS], ids=["length", "chunked"])
@pytest.mark.parametrize("config", [serving, splicing])
@pytest.mark.parametrize("cut", ["byte", *range(8)])
async def test_a_request_in_any_pieces_is_the_same_request(
    config: object, chunks: list[bytes] | None, cut: str | int
) -> None:
    first = post("/v1/chat/completions", b"".join(CHUNKS), b"x-request-id: one", chunks=chunks)
    raw = first + post("/v1/chat/completions", CHAT, b"x-request-id: two") + get("/__/ping")
    async with stub(echo) as up, running(config(up.url)) as gw:  # type: ignore[operator]
        client = await gw.connect()
        parts = pieces(raw, 1) if isinstance(cut, str) else random_pieces(raw, cut)
        await client.send(*parts)
        assert (await client.answer()).body == b"".join(CHUNKS)
        assert (await client.answer()).body == CHAT
        assert (await client.answer()).json() == {"status": "ok"}
        assert [seen.body for seen in up.seen] == [b"".join(CHUNKS), CHAT]
        assert [seen.headers["x-request-id"] for seen in up.seen] == ["one", "two"]
        is_chunked = chunks is not None and config is splicing
        assert up.seen[0].headers.get("transfer-encoding") == ("chunked" if is_chunked else None)


async def test_a_spliced_upload_reaches_the_upstream_before_it_is_complete() -> None:
    heads: list[Seen] = []

    async def on_head(connection: Connection, seen: Seen) -> None:
        heads.append(seen)

    async with stub(echo, on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        raw = post("/any", b"0123456789")
        await client.send(raw[:-5])
        await until(lambda: heads, "the head at the upstream")
        assert heads[0].headers["content-length"] == "10"
        await client.send(raw[-5:])
        assert (await client.answer()).body == b"0123456789"


async def test_a_collected_body_reaches_no_upstream_before_it_is_complete() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        raw = post("/v1/chat/completions")
        await client.send(raw[:-1])
        await until(lambda: gw.gateway.collected, "a body being collected")
        assert not up.connections
        await client.send(raw[-1:])
        assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"5\nhello\r\n0\r\n\r\n", "LF"),
        (b"+5\r\nhello\r\n0\r\n\r\n", "hex"),
        (b"0x5\r\nhello\r\n0\r\n\r\n", "hex"),
        (b"5 \r\nhello\r\n0\r\n\r\n", "blank"),
        (b"ffffffffffffffff\r\nhello", "2**63"),
        (b"4\r\nhello\r\n0\r\n\r\n", "longer"),
        (b"0\r\nbad trailer\r\n\r\n", "colon"),
    ],
)
@pytest.mark.parametrize("config", [serving, splicing])
async def test_a_bad_chunk_is_400_and_ends_the_connection(config: object, body: bytes, message: str) -> None:
    async with stub() as up, running(config(up.url)) as gw:  # type: ignore[operator]
        client = await gw.connect()
        raw = post("/v1/chat/completions", chunks=[])[: -len(chunked())] + body
        answer = await client.ask(raw + get("/__/ping"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (400, "bad_request")
        assert message in answer.json()["error"]["message"]
        assert answer.headers["connection"] == "close"
        assert await client.ended() == b""
        assert not up.seen
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (400, "refused", "client")


async def test_a_bad_chunk_within_an_upload_ends_both_connections() -> None:
    gone = asyncio.Event()

    async def on_head(connection: Connection, seen: Seen) -> None:
        await connection.gone()
        gone.set()

    async with stub(on_head=on_head) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(post("/any", chunks=[b"hello"])[:-5])
        await until(lambda: up.connections, "the upstream's connection")
        await client.send(b"nonsense\r\n")
        assert (await client.answer()).status == 400
        async with asyncio.timeout(1):
            await gone.wait()
        assert not up.seen  # the upstream never saw a complete request


async def test_a_pipelined_request_behind_a_body_that_is_refused_in_its_last_piece_is_served() -> None:
    """The refusal is made while the last piece is read; what lies behind it is the next request."""
    gateways = {"default": gateway(models={"known": model("up")})}
    async with stub() as up, running(serving(up.url) | {"gateways": gateways}) as gw:
        client = await gw.connect()
        raw = post("/v1/chat/completions", b'{"model": "unknown"}')
        await client.send(raw[:-5])
        await until(lambda: gw.gateway.collected, "a body being collected")
        await client.send(raw[-5:] + get("/__/ping"))
        assert (await client.answer()).status == 404
        assert (await client.answer()).status == 200


@pytest.mark.unmeasured
@pytest.mark.parametrize("status", [b"200 OK", b"502 Bad Gateway"])
@pytest.mark.parametrize("plan", [None, retry("502")])
async def test_nothing_of_a_body_is_held_once_it_is_answered(status: bytes, plan: Any) -> None:
    """By the reference counts alone: an idle client would hold it until the collector comes."""

    def held() -> list[Exchange]:
        return [found for found in gc.get_objects() if isinstance(found, Exchange) and found.whole]

    async def answer(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(status=status))

    body = CHAT[:-1] + b', "x": "' + b"x" * 100_000 + b'"}'
    async with stub(answer) as up:
        config = serving(up.url)
        config["gateways"]["default"]["retry"] = plan
        async with running(config) as gw:
            client = await gw.connect()
            gc.collect()
            gc.disable()
            try:
                for piece in pieces(post("/v1/chat/completions", body), 30_000):
                    client.writer.write(piece)
                    await asyncio.sleep(0)
                assert (await client.answer()).status == int(status[:3])
                await gw.record()
                await until(lambda: not held(), "the body is gone")
            finally:
                gc.enable()
