"""Answers that fail on purpose, through the gateway: what the client, the upstream and the log saw of each.

The mock provider fails as its words say. What it says by itself is what the client has to get through the gateway: the
same body to the last byte, framed the same, ended so that nobody takes it for whole, and no byte of a next answer
behind it.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakes import (
    LIMIT,
    Connection,
    Running,
    Seen,
    connect,
    dechunked,
    document,
    get,
    post,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)
from smuggling.responses.reader import INCOMPLETE, Reading, read

from aigw.mock import MockConnection, Settings

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
# Path and body of a stream of each dialect, and the same answer plain.
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"model": "m", "stream": True, "messages": MESSAGES}),
    "responses": ("/v1/responses", {"model": "m", "stream": True, "input": "Hi"}),
    "messages": ("/v1/messages", {"model": "m", "stream": True, "max_tokens": 9, "messages": MESSAGES}),
    "gemini": ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "Hi"}]}]}),
}
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"model": "m", "messages": MESSAGES}),
    "messages": ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": MESSAGES}),
    "gemini": ("/v1beta/models/m:generateContent", {"contents": [{"parts": [{"text": "Hi"}]}]}),
}
DIALECTS = ["openai", "anthropic", "gemini"]
streams = pytest.mark.parametrize(("path", "body"), STREAMS.values(), ids=STREAMS)
plain = pytest.mark.parametrize(("path", "body"), PLAIN.values(), ids=PLAIN)


def config(up: Upstream, usage: str = "as_reported", **timeouts: float) -> dict[str, Any]:
    """Everything by model to the mock, whatever the dialect; `timeouts` are the upstream's."""
    return document({"up": upstream(target(up.url), dialects=DIALECTS, usage=usage, timeouts=timeouts)})


def request(path: str, body: dict[str, Any], words: str, *, version: bytes = b"1.1") -> bytes:
    raw = post(path, json.dumps(body).encode(), b"x-mock: tokens=4, " + words.encode())
    return raw.replace(b" HTTP/1.1\r\n", b" HTTP/" + version + b"\r\n", 1)


class Upstream:
    """The mock on a port of its own; `members` are the connections that are open to it."""

    def __init__(self) -> None:
        self.members: set[MockConnection] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def failing() -> AsyncIterator[Upstream]:
    loop = asyncio.get_running_loop()
    up = Upstream()
    server = await loop.create_server(lambda: MockConnection(Settings(), loop, up.members), "127.0.0.1", 0)
    up.port = server.sockets[0].getsockname()[1]
    try:
        yield up
    finally:
        server.close()
        for member in list(up.members):
            member.close()
        await until(lambda: not up.members, "the mock's connections closed")


class Heard:
    """What a client heard until the connection ended, or until it had a whole answer."""

    def __init__(self, raw: bytes, *, fin: bool, was_reset: bool) -> None:
        self.was_reset = was_reset
        self.reading: Reading = read(raw, ["POST"], fin=fin)
        self.head, _, self.body = raw.partition(b"\r\n\r\n")

    @property
    def is_whole(self) -> bool:
        return bool(self.reading.final)


async def hear(port: int, raw: bytes) -> Heard:
    """The answer to `raw` on a connection of its own, read to the end of the answer or of the connection."""
    client = await connect("127.0.0.1", port)
    heard = b""
    try:
        await client.send(raw)
        async with asyncio.timeout(LIMIT):
            while data := await client.reader.read(65536):
                heard += data
                if read(heard, ["POST"]).final:
                    return Heard(heard, fin=False, was_reset=False)
    except ConnectionResetError:
        return Heard(heard, fin=False, was_reset=True)
    finally:
        client.writer.transport.abort()
    return Heard(heard, fin=True, was_reset=False)


async def check(gw: Running, up: Upstream, *, status: int, end: str, error: str | None, size: int | None) -> None:
    """The one record, and the upstream: told to stop, unless its answer was whole."""
    record = await gw.record()
    fault = "upstream" if error else "none"
    assert (record["status"], record["end"], record["fault"], record.get("error")) == (status, end, fault, error)
    assert len(gw.records) == 1
    if size is not None:
        assert record["bytes_out"] == size
    assert not gw.pool.busy
    if error:
        assert not gw.pool.idle
        await until(lambda: not up.members, "the connection to the upstream closed")


async def check_own(gw: Running, up: Upstream, heard: Heard, status: int, error: str) -> None:
    """The gateway's own answer, and the record of it."""
    assert heard.is_whole
    answer = heard.reading.final[0]
    assert (answer.status, answer.values(b"x-aigw-error")) == (status, [error.encode()])
    assert json.loads(answer.body)["error"]["message"]
    await check(gw, up, status=status, end="failed", error=error, size=len(answer.body))


# streams --------------------------------------------------------------------------------------------------------------


@streams
@pytest.mark.parametrize("words", ["cut-event", "cut-body", "early-close"])
async def test_a_stream_that_breaks_off_breaks_off(path: str, body: dict[str, Any], words: str) -> None:
    """Inside an event, inside a chunk, behind the head: a missing last chunk says enough, and what came arrives."""
    async with failing() as up, running(config(up)) as gw:
        said = await hear(up.port, request(path, body, words))
        heard = await hear(gw.port, request(path, body, words))
        assert (heard.is_whole, heard.reading.fault, heard.was_reset) == (False, INCOMPLETE, False)
        assert heard.body == said.body
        await check(gw, up, status=200, end="cut", error="upstream_cut", size=len(heard.body))


@streams
async def test_a_bad_chunk_in_the_first_read_is_told(path: str, body: dict[str, Any]) -> None:
    async with failing() as up, running(config(up)) as gw:
        heard = await hear(gw.port, request(path, body, "bad-chunk"))
        await check_own(gw, up, heard, 502, "upstream_malformed")


@streams
async def test_a_bad_chunk_in_a_later_read_cuts_before_that_read(path: str, body: dict[str, Any]) -> None:
    async with failing() as up, running(config(up)) as gw:
        said = await hear(up.port, request(path, body, "bad-chunk"))
        heard = await hear(gw.port, request(path, body, "bad-chunk, rate=20"))
        assert (heard.is_whole, heard.reading.fault) == (False, INCOMPLETE)
        assert heard.body
        assert said.body.startswith(heard.body)
        assert b"zz" not in heard.body
        await check(gw, up, status=200, end="cut", error="upstream_malformed", size=len(heard.body))


@streams
@pytest.mark.parametrize("words", ["malformed", "error-event", "latency=0"], ids=["malformed", "error", "nothing"])
async def test_what_events_say_is_not_the_gateways_business(path: str, body: dict[str, Any], words: str) -> None:
    """An event that is no JSON, and one that tells an error: the answer is whole all the same, and relayed so."""
    async with failing() as up, running(config(up)) as gw:
        said = await hear(up.port, request(path, body, words))
        heard = await hear(gw.port, request(path, body, words))
        assert heard.is_whole
        assert heard.body == said.body
        if words == "error-event":
            assert b"asked to fail: error-event" in heard.body
        await check(gw, up, status=200, end="ok", error=None, size=len(heard.body))
        assert len(gw.pool.idle) == 1


@streams
@pytest.mark.parametrize("words", ["cut-event", "cut-body", "reset"])
async def test_a_stream_for_an_old_client_is_reset(path: str, body: dict[str, Any], words: str) -> None:
    """It reads to the end of the connection, so that end must not look like one."""
    async with failing() as up, running(config(up)) as gw:
        heard = await hear(gw.port, request(path, body, words, version=b"1.0"))
        assert heard.was_reset
        assert b"transfer-encoding" not in heard.head
        await check(gw, up, status=200, end="cut", error="upstream_cut", size=None)


# between events -------------------------------------------------------------------------------------------------------

BROKEN = {
    "cut-between": ("cut", "upstream_cut", "the upstream broke off in the middle of its answer"),
    "reset": ("cut", "upstream_cut", "the upstream broke off in the middle of its answer"),
    "stall": ("stalled", "idle_timeout", "the upstream stopped in the middle of its answer (timeouts.idle)"),
}
# How each dialect names them: an answer of 502, and one of 504.
ERRORS: dict[str, dict[str, Any]] = {
    "chat": {"cut": {"type": "server_error"}, "stalled": {"type": "server_error"}},
    "responses": {"cut": {"code": "upstream_cut"}, "stalled": {"code": "idle_timeout"}},
    "messages": {"cut": {"type": "api_error"}, "stalled": {"type": "timeout_error"}},
    "gemini": {"cut": {"code": 502, "status": "UNAVAILABLE"}, "stalled": {"code": 504, "status": "DEADLINE_EXCEEDED"}},
}


@pytest.mark.parametrize("words", BROKEN)
@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_cut_between_events_ends_with_an_event_that_says_so(name: str, words: str) -> None:
    """As a chunk of its own, and then without a last chunk: who reads events and who reads chunks can both tell."""
    path, body = STREAMS[name]
    end, error, message = BROKEN[words]
    async with failing() as up, running(config(up, idle=0.2 if words == "stall" else 60.0)) as gw:
        said = await hear(up.port, request(path, body, "cut-between"))
        heard = await hear(gw.port, request(path, body, words))
        assert (heard.is_whole, heard.reading.fault, heard.was_reset) == (False, INCOMPLETE, False)
        assert heard.body.startswith(said.body)
        size, _, event = heard.body[len(said.body) :].partition(b"\r\n")
        assert event.endswith(b"\n\n\r\n")
        assert int(size, 16) == len(event) - 2
        kind, _, data = event.rpartition(b"data: ")
        assert kind == (b"event: error\n" if name in ("responses", "messages") else b"")
        told = json.loads(data)["error"]
        assert told["message"] == message
        assert told.items() >= ERRORS[name][end].items()
        await check(gw, up, status=200, end=end, error=error, size=len(heard.body))


@pytest.mark.parametrize("words", ["cut-between", "cut-event", "cut-body", "reset", "stall"])
async def test_a_stream_that_is_written_anew_is_cut_between_events(words: str) -> None:
    """Where the gateway asked for the usage it passes on whole events only, so it can always tell."""
    path, body = STREAMS["chat"]
    end, error, message = BROKEN.get(words, BROKEN["cut-between"])
    async with (
        failing() as up,
        running(config(up, "inject", idle=0.2) if words == "stall" else config(up, "inject")) as gw,
    ):
        heard = await hear(gw.port, request(path, body, words))
        assert (heard.is_whole, heard.reading.fault, heard.was_reset) == (False, INCOMPLETE, False)
        events = [
            json.loads(event.removeprefix(b"data: "))
            for event in dechunked(heard.body + b"0\r\n\r\n").split(b"\n\n")[:-1]
        ]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
        assert events[-1]["error"]["message"] == message
        await check(gw, up, status=200, end=end, error=error, size=None)


@pytest.mark.parametrize("words", ["cut-between", "stall"])
async def test_a_stream_that_is_no_events_ends_without_one(words: str) -> None:
    """Gemini's array: whatever came behind its last element would be no JSON."""
    path, body = "/v1beta/models/m:streamGenerateContent", STREAMS["gemini"][1]
    async with failing() as up, running(config(up, idle=0.2)) as gw:
        said = await hear(up.port, request(path, body, "cut-between"))
        heard = await hear(gw.port, request(path, body, words))
        assert (heard.is_whole, heard.body) == (False, said.body)
        await check(gw, up, status=200, end=BROKEN[words][0], error=BROKEN[words][1], size=len(heard.body))


async def test_a_stream_of_an_http_upstream_ends_without_an_event() -> None:
    """It has no dialect, so nobody knows what an error in it would look like."""
    path, body = STREAMS["chat"]
    async with failing() as up, running(splicing(up.url)) as gw:
        said = await hear(up.port, request(path, body, "cut-between"))
        heard = await hear(gw.port, request(path, body, "cut-between"))
        assert (heard.is_whole, heard.body) == (False, said.body)
        await check(gw, up, status=200, end="cut", error="upstream_cut", size=len(heard.body))


# plain answers --------------------------------------------------------------------------------------------------------


@plain
@pytest.mark.parametrize(
    ("words", "error"),
    [("cut-body", "upstream_cut"), ("early-close", "upstream_cut"), ("reset", "upstream_cut"),
     ("stall", "idle_timeout")],
)  # fmt: skip
async def test_a_plain_answer_that_breaks_off_is_short(path: str, body: dict[str, Any], words: str, error: str) -> None:
    async with failing() as up, running(config(up, idle=0.2 if words == "stall" else 60.0)) as gw:
        whole = await hear(up.port, request(path, body, "latency=0"))
        assert whole.is_whole
        heard = await hear(gw.port, request(path, body, words))
        assert (heard.is_whole, heard.reading.fault) == (False, INCOMPLETE)
        assert b"content-length: %d\r\n" % len(whole.body) in heard.head
        assert heard.body == (b"" if words == "early-close" else whole.body[: len(whole.body) // 2])
        end = "stalled" if words == "stall" else "cut"
        await check(gw, up, status=200, end=end, error=error, size=len(heard.body))


@plain
@pytest.mark.parametrize(
    ("words", "status", "error"),
    [("malformed", 502, "upstream_malformed"), ("refuse", 502, "upstream_reset"),
     ("latency=60", 504, "first_byte_timeout")],
)  # fmt: skip
async def test_what_broke_before_anything_was_relayed_is_told(
    path: str, body: dict[str, Any], words: str, status: int, error: str
) -> None:
    async with failing() as up, running(config(up, first_byte=0.2 if status == 504 else 60.0)) as gw:
        await check_own(gw, up, await hear(gw.port, request(path, body, words)), status, error)


@plain
@pytest.mark.parametrize("words", ["status=400", "status=429, retry-after=7", "status=503", "error-event"])
async def test_an_error_of_the_upstreams_is_relayed_as_it_is(path: str, body: dict[str, Any], words: str) -> None:
    async with failing() as up, running(config(up)) as gw:
        said = (await hear(up.port, request(path, body, words))).reading.final[0]
        answer = (await hear(gw.port, request(path, body, words))).reading.final[0]
        assert (answer.status, answer.body) == (said.status, said.body)
        assert answer.values(b"retry-after") == said.values(b"retry-after")
        assert not answer.values(b"x-aigw-error")
        await check(gw, up, status=said.status, end="ok", error=None, size=len(said.body))


# what the mock has no word for ----------------------------------------------------------------------------------------

ZIPPED = gzip.compress(b"data: hello\n\n" * 500, mtime=0)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
GZIP = {
    "chunks": (b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % 40, ZIPPED[:40] + b"\r\n"),
    "length": (b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(ZIPPED), ZIPPED[:40]),
    "close": (b"content-encoding: gzip\r\n\r\n", ZIPPED[:40]),
}


@pytest.mark.parametrize(("head", "body"), GZIP.values(), ids=GZIP.keys())
@pytest.mark.parametrize("way", [serving, splicing])
async def test_a_gzip_stream_that_breaks_off_breaks_off(way: Any, head: bytes, body: bytes) -> None:
    """In the middle of a coding nothing can be told any more: no byte comes behind those of the upstream."""
    arrived = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + head + body)
        await arrived.wait()
        connection.reset()

    async with stub(handler) as up, running(way(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT))
        raw = await client.read(b"\r\n\r\n")
        if b"chunked" in head:
            raw += await client.read(b"\r\n")
        raw += await client.read(len(body))
        arrived.set()
        if head == GZIP["close"][0]:
            with pytest.raises(ConnectionResetError):
                await client.rest()
        else:
            assert await client.rest() == b""
        payload = raw[raw.index(ZIPPED[:10]) :][:40]
        assert payload == ZIPPED[:40]
        assert not read(raw, ["POST"]).final
        assert zlib.decompressobj(31).decompress(payload) != gzip.decompress(ZIPPED)
        record = await gw.record()
        assert (record["status"], record["end"], record["error"]) == (200, "cut", "upstream_cut")
        assert not gw.pool.idle


async def test_half_a_gzip_stream_in_a_whole_answer_is_relayed_as_whole() -> None:
    """What a body means is the client's business; its length is right, and so is the record."""
    raw = HEAD + b"content-encoding: gzip\r\ncontent-length: 40\r\n\r\n" + ZIPPED[:40]
    async with stub(raw) as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        for index in range(2):
            assert (await client.ask(post(CHAT))).body == ZIPPED[:40]
            record = await gw.record(index)
            assert (record["status"], record["end"], record["bytes_out"]) == (200, "ok", 40)
        assert len(up.connections) == 1


async def test_an_answer_cut_with_requests_behind_it_answers_none_of_them() -> None:
    """The next answer would stand where the rest of this one is awaited."""
    path, body = STREAMS["chat"]
    async with failing() as up, running(config(up)) as gw:
        raw = request(path, body, "cut-body") + get("/__/ping") + request(path, body, "latency=0")
        heard = await hear(gw.port, raw)
        assert not heard.is_whole
        assert heard.body.count(b"HTTP/1.1") == 0
        assert len(gw.records) == 1
