"""Event streams in every form that a provider may choose (WHATWG HTML, section 9.2.5): the client gets their bytes.

Nothing on the way may need an event to be spelled in one way: not where its lines end, not how chunks and reads cut
it, not what stands around the chunks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from fakes import (
    CHAT,
    LIMIT,
    Client,
    Connection,
    Seen,
    chunked,
    dechunked,
    pieces,
    post,
    random_pieces,
    running,
    serving,
    splicing,
    stub,
)

pytestmark = pytest.mark.unmeasured

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PATH = "/v1/chat/completions"
ASK = CHAT[:-1] + b', "stream": true}'
FIRST = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
LAST = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'

FORMS = {
    "as OpenAI writes them": b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n',
    "as Anthropic writes them": b'event: ping\ndata: {"type": "ping"}\n\nevent: x\ndata: {"type": "x"}\n\n',
    "comments": b": OPENROUTER PROCESSING\n\n:\n\n:comment\ndata: {}\n\n",
    "CRLF": b'event: a\r\ndata: {"a": 1}\r\n\r\n: comment\r\n\r\n',
    "CR": b'event: a\rdata: {"a": 1}\r\r: comment\r\r',
    "line ends of all kinds": b"data: {\r\ndata: }\n\r\ndata: {}\r\n\ndata: {}\r\r\ndata: {}\n\rdata: {}\n\n",
    "data in several lines": b'data: {"choices":\ndata: [{"delta": {"content": "a"}}]\ndata: }\n\n',
    "no blank behind the colon": b'event:a\ndata:{"choices":[{"delta":{"content":"a"}}]}\n\n',
    "more blanks and tabs": b'data:  {"a": 1}  \n\ndata:\t{}\t\n\n',
    "ids, retry and fields nobody knows": b"id: 1\nretry: 3000\nx-unknown: 1\nnocolon\ndata: {}\n\n",
    "empty data and empty events": b"data\n\ndata:\n\nevent: a\n\n\n\n\n\ndata: {}\n\n",
    "data that is no JSON": b"data: {\n\ndata: hello\n\ndata: [1,\n\ndata: null\n\ndata: 5\n\n",
    "bytes that are no UTF-8": b'data: {"a": "\xff\xfe\xc3"}\n\n\xff\xfe: \x80\n\n',
    "control bytes": b'data: {"a": "\x00\x01\x7f"}\n\n',
    "line ends of Unicode": 'data: {"a": "\u2028\u2029\x85\v\f"}\n\n'.encode(),
    "marks in the middle": b"\xef\xbb\xbfdata: {}\n\ndata: [DONE]\n\ndata: [DONE]\n\n",
    "text like framing": b"data: 0\r\n\r\ndata: HTTP/1.1 200 OK\r\n\r\ndata: 5;x=1\r\nhello\r\n\r\n",
}
# The rest are whole streams of their own.
STREAMS = {name: FIRST + form + LAST for name, form in FORMS.items()} | {
    "a byte order mark": b"\xef\xbb\xbf" + FIRST + LAST,
    "no blank line at the end": FIRST + b"data: [DONE]",
    "no line end at all": b"data: {}",
    "half a line end at the end": FIRST + b"data: {}\r\n\r",
    "comments only": b": ping\n\n" * 20,
}


def by_event(stream: bytes) -> list[bytes]:
    return re.findall(rb".+?(?:\r\n\r\n|\n\n|\r\r|$)", stream, re.DOTALL)


def across(stream: bytes) -> list[bytes]:
    """Cut within what ends an event: behind its first CR or LF."""
    return re.findall(rb".+?(?:\r\r?|\n(?=[\r\n])|$)", stream, re.DOTALL)


CUTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "whole": lambda stream: [stream],
    "by event": by_event,
    "across events": across,
    "by byte": lambda stream: pieces(stream, 1),
    "random": lambda stream: random_pieces(stream, 7),
}


WAYS: dict[str, Callable[[str], dict[str, Any]]] = {
    "by rule": splicing,
    "by model": serving,
    "usage: inject": lambda url: serving(url, usage="inject"),
}


async def relayed(client: Client, way: str, framed: bytes) -> bytes:
    """The stream that answers one request, without its chunks."""
    await client.send(post(PATH, ASK))
    if way == "usage: inject":  # a stream that is looked into may come in other chunks
        return dechunked((await client.answer()).body)
    await client.read(b"\r\n\r\n")
    body = await client.read(len(framed))
    assert body == framed
    return dechunked(body)


@pytest.mark.usefixtures("plain_loop")
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_of_any_form_is_the_stream_that_came(way: str, stream: bytes) -> None:
    """However chunks cut it, in one read and in several."""
    reads: list[bytes] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*reads)

    async with stub(handler) as up, running(WAYS[way](up.url)) as gw:
        client = await gw.connect()
        count = 0
        for cut in CUTS.values():
            framed = chunked(*cut(stream))
            middle = len(framed) // 2 + 3
            for reads[:] in ([HEAD + framed], [HEAD + framed[:9], framed[9:middle], framed[middle:]]):
                assert await relayed(client, way, framed) == stream
                assert (await gw.record(count))["end"] == "ok"
                count += 1


@pytest.mark.parametrize("way", WAYS)
async def test_every_byte_of_a_stream_in_a_read_of_its_own(way: str) -> None:
    stream = FIRST + b": \r\n\r\ndata: {}\r\rdata:{}\n\n" + LAST
    framed = chunked(*by_event(stream))

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*pieces(HEAD + framed, 1))

    async with stub(handler) as up, running(WAYS[way](up.url)) as gw:
        assert await relayed(await gw.connect(), way, framed) == stream


@pytest.mark.parametrize("way", WAYS)
async def test_an_old_client_gets_the_stream_without_its_chunks(way: str) -> None:
    """HTTP/1.0 knows none (RFC 9112 section 7.1): the stream ends with the connection."""
    stream = FIRST + b'data: {"a": 1}\r\n\r\ndata: {}\n\n: comment\n\n' + LAST
    framed = chunked(*by_event(stream))

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + framed[:50], *pieces(framed[50:], 40))

    async with stub(handler) as up, running(WAYS[way](up.url)) as gw:
        answer = await gw.ask(post(PATH, ASK).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n"))
        assert answer.body == stream
        assert not {"transfer-encoding", "content-length"} & answer.headers.keys()
        assert (await gw.record())["end"] == "ok"


# around the chunks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "framed",
    [
        pytest.param(b'3;a=1;b="x;y"\r\nab\n\r\n1;c\r\n\n\r\n0;last="1"\r\n\r\n', id="extensions"),
        pytest.param(b"003\r\nab\n\r\n00000001\r\n\n\r\n000\r\n\r\n", id="leading zeros"),
        pytest.param(b"A\r\ndata: {}\n\n\r\nb\r\ndata: {} \n\n\r\n0\r\n\r\n", id="hex of both cases"),
        pytest.param(b"3\r\nab\n\r\n0\r\nX-Checksum: 1\r\nx-latin: caf\xe9\r\n\r\n", id="trailers"),
        pytest.param(b"0\r\n\r\n", id="no event at all"),
        pytest.param(b"0;x\r\nx-checksum: 1\r\n\r\n", id="no event, but a trailer"),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("way", ["by rule", "by model"])
async def test_what_stands_around_chunks_comes_through(framed: bytes, size: int, way: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*(pieces(HEAD + framed, size) if size else [HEAD + framed]))

    async with stub(handler) as up, running(WAYS[way](up.url)) as gw:
        client = await gw.connect()
        for index in range(2):
            assert (await client.ask(post(PATH, ASK))).body == framed
            assert (await gw.record(index))["end"] == "ok"
        assert len(up.connections) == 1


@pytest.mark.parametrize("size", [16_000, 1_000_000, 5_000_000], ids=["small chunks", "large chunks", "one chunk"])
@pytest.mark.parametrize("way", ["by rule", "by model"])
async def test_an_event_of_five_megabytes(size: int, way: str) -> None:
    event = b'data: {"choices": [{"delta": {"content": "' + b"0123456789abcdef" * 312_500 + b'"}}]}\n\n'
    framed = chunked(FIRST, *pieces(event, size), LAST)

    async with (
        stub(HEAD + framed) as up,
        running(WAYS[way](up.url)) as gw,
    ):
        client = await gw.connect()
        await client.send(post(PATH, ASK))
        assert b"\r\ntransfer-encoding: chunked\r\n" in await client.read(b"\r\n\r\n")
        assert await client.read(len(framed)) == framed
        record = await gw.record()
        assert (record["end"], record["bytes_out"]) == ("ok", len(framed))


# streams side by side -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["by rule", "by model"])
async def test_streams_side_by_side_are_not_mixed(way: str) -> None:
    """Three of them, piece by piece in turn; each piece is with its client before the next one is written."""
    turns: dict[str, asyncio.Queue[bytes]] = {name: asyncio.Queue() for name in "abc"}

    async def handler(connection: Connection, seen: Seen) -> None:
        turn = turns[seen.headers["x-name"]]
        async with asyncio.timeout(LIMIT):
            while piece := await turn.get():
                await connection.send(piece)

    async with stub(handler) as up, running(WAYS[way](up.url)) as gw:
        clients: dict[str, Client] = {}
        for name in turns:
            clients[name] = await gw.connect()
            await clients[name].send(post(PATH, ASK, b"x-name: " + name.encode()))
            turns[name].put_nowait(HEAD)
            await clients[name].read(b"\r\n\r\n")
        streams = {name: [b'data: {"%b": %d}\n\n' % (name.encode(), i) for i in range(20)] for name in turns}
        cuts = {name: random_pieces(chunked(*streams[name]), ord(name)) for name in turns}
        for turn in range(max(map(len, cuts.values()))):
            for name, client in clients.items():
                piece = cuts[name][turn : turn + 1]
                if piece:
                    turns[name].put_nowait(piece[0])
                    assert await client.read(len(piece[0])) == piece[0]
        for queue in turns.values():
            queue.put_nowait(b"")
        assert len(up.connections) == 3
        for index in range(3):
            assert (await gw.record(index))["end"] == "ok"
