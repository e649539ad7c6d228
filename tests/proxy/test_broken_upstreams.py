"""Upstreams that break off, lie about their framing or speak something else: never a whole answer."""

from __future__ import annotations

import asyncio

import pytest
from fakes import (
    LIMIT,
    Client,
    Connection,
    Handler,
    Seen,
    Stub,
    get,
    ok,
    pieces,
    post,
    running,
    serving,
    splicing,
    stub,
    until,
)

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
LENGTH = HEAD + b"content-length: 10\r\n\r\n"
WHOLE = CHUNKED + b"5\r\nhello\r\n0\r\n\r\n"


def sending(*parts: bytes, then: str = "") -> Handler:
    """A handler that sends `parts`, each in a write of its own, and then does `then`."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*parts)
        if then:
            getattr(connection, then)()

    return handler


def looks_complete(raw: bytes, is_reset: bool) -> bool:
    """Whether a reader of HTTP/1.1 takes `raw` for one whole response."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    for line in lines:
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    if b"transfer-encoding: chunked" in lines:
        _, last, trailers = (b"\r\n" + body).partition(b"\r\n0\r\n")
        return bool(last) and b"\r\n\r\n" in b"\r\n" + trailers
    return not is_reset


async def to_the_end(client: Client) -> tuple[bytes, bool]:
    """What still comes, and whether the end was an RST."""
    rest = b""
    try:
        async with asyncio.timeout(LIMIT):
            while data := await client.reader.read(65536):
                rest += data
    except ConnectionResetError:
        return rest, True
    return rest, False


# before anything was relayed ------------------------------------------------------------------------------------------

MALFORMED = {
    "another protocol": b"220 mail.example ESMTP\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "no head at all": b"hello\r\n\r\n",
    "a bare line feed": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n\r\n\r\n",
    "a folded line": HEAD + b"x: 1\r\n 2\r\ncontent-length: 0\r\n\r\n",
    "a blank before a colon": HEAD + b"content-length : 0\r\n\r\n",
    "NUL in a value": HEAD + b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "two different lengths": HEAD + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "a length beside chunks": HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length that is none": HEAD + b"content-length: +5\r\n\r\nhello",
    "a length in a list": HEAD + b"content-length: 5, 5\r\n\r\nhello",
    "another coding": HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a bad chunk": CHUNKED + b"hello\r\n",
    "a chunk longer than its size": CHUNKED + b"4\r\nhello\r\n0\r\n\r\n",
    "a chunk size that overflows": CHUNKED + b"ffffffffffffffffff\r\nhello\r\n",
    "an endless head": HEAD + b"x: " + b"y" * 40_000,
    "too many headers": HEAD + b"x: y\r\n" * 101 + b"content-length: 0\r\n\r\n",
}
SURPLUS = {
    "bytes behind a length": LENGTH + b"0123456789!",
    "bytes behind no body": b"HTTP/1.1 204 No Content\r\n\r\nhello",
    "a second response behind a length": ok(b"one") + ok(b"two"),
    "bytes behind the last chunk": WHOLE + b"!",
    "CRLF behind the last chunk": WHOLE + b"\r\n",
    "a second response behind the last chunk": WHOLE + ok(b""),
    "a second response with a body behind the last chunk": WHOLE + ok(b"two\r\n\r\n"),
    "half a second response behind the last chunk": WHOLE + b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n",
}


@pytest.mark.parametrize("raw", (MALFORMED | SURPLUS).values(), ids=(MALFORMED | SURPLUS).keys())
async def test_a_malformed_answer_is_502(raw: bytes) -> None:
    async with stub(raw) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(get("/x"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_malformed")
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (502, "failed", "upstream")
        assert record["error"] == "upstream_malformed"
        # the client's connection is good for another request, the upstream's is not
        assert (await client.ask(get("/__/ping"))).status == 200
        assert not gw.pool.idle


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_answer_in_single_bytes_never_looks_complete(raw: bytes) -> None:
    """What could not be known in time was relayed; then the connection must show that it broke."""
    async with stub(sending(*pieces(raw, 1 if len(raw) < 5000 else 1000))) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(get("/x"), head_only=True)
        if answer.status == 502:
            assert (await client.read(int(answer.headers["content-length"]))).startswith(b'{"error"')
        else:
            rest, is_reset = await to_the_end(client)
            assert not looks_complete(answer.raw + rest, is_reset)
        assert (await gw.record())["end"] == ("failed" if answer.status == 502 else "cut")
        assert not gw.pool.idle


@pytest.mark.parametrize("raw", SURPLUS.values(), ids=SURPLUS.keys())
async def test_bytes_that_come_behind_a_complete_answer_reach_nobody(raw: bytes) -> None:
    async with stub(sending(*pieces(raw, 1))) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.ask(get("/x"))
        await until(lambda: not gw.pool.idle, "the upstream's connection closed")
        assert (await client.ask(get("/__/ping"))).json() == {"status": "ok"}
        assert (await gw.record())["end"] == "ok"


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "upstream_reset"),
        (b"HTTP/1.1 2", "upstream_malformed"),
        (HEAD, "upstream_malformed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "upstream_reset"),
    ],
    ids=["nothing", "status line", "head", "100"],
)
async def test_an_upstream_that_breaks_off_before_its_head_is_complete_is_502(raw: bytes, code: str, then: str) -> None:
    async with stub(sending(raw, then=then)) as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert answer.status == 502
        if then == "close" or not raw:  # a reset may drop what was sent before it
            assert answer.headers["x-aigw-error"] == code
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (502, "failed", "upstream")
        assert len(up.seen) == 1


# in the middle of the answer ------------------------------------------------------------------------------------------

CUT = {
    "length": (LENGTH, b"01234"),
    "length, one byte short": (LENGTH, b"012345678"),
    "within a chunk": (CHUNKED, b"5\r\nhel"),
    "within a chunk size": (CHUNKED, b"5\r\nhello\r\n1"),
    "between chunks": (CHUNKED, b"5\r\nhello\r\n"),
    "before the last blank line": (CHUNKED, b"5\r\nhello\r\n0\r\n"),
    "within the trailers": (CHUNKED, b"5\r\nhello\r\n0\r\nx: 1\r\n"),
}


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(("head", "body"), CUT.values(), ids=CUT.keys())
async def test_an_answer_that_breaks_off_shows_it(head: bytes, body: bytes, then: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(head + body)
        await arrived.wait()
        getattr(connection, then)()

    arrived = asyncio.Event()
    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        raw = await client.read(b"\r\n\r\n") + await client.read(len(body))
        arrived.set()
        rest, is_reset = await to_the_end(client)
        assert raw.endswith(body)
        assert not looks_complete(raw + rest, is_reset)
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (200, "cut", "upstream")
        assert (record["error"], record["bytes_out"]) == ("upstream_cut", len(body))


async def test_a_close_delimited_answer_that_is_reset_is_reset_for_the_client() -> None:
    arrived = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(HEAD + b"\r\nhello")
        await arrived.wait()
        connection.reset()

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        await client.read(b"hello")
        arrived.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert (await gw.record())["end"] == "cut"


async def test_a_decoded_answer_to_an_old_client_that_breaks_off_is_reset() -> None:
    """An HTTP/1.0 client reads to the end of the connection, so a FIN would pass for the end of the answer."""
    arrived = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(CHUNKED + b"5\r\nhello\r\n")
        await arrived.wait()
        connection.close()

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(b"GET /x HTTP/1.0\r\n\r\n")
        await client.read(b"hello")
        arrived.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert (await gw.record())["end"] == "cut"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LENGTH + b"01234", b"56789!"),
        (CHUNKED + b"5\r\nhello\r\n", b"zz\r\n"),
        (CHUNKED + b"5\r\nhello\r\n", b"0\r\n\r\n!"),
        (CHUNKED + b"5\r\nhello\r\n", b"0\r\n\r\n" + ok(b"")),
        (CHUNKED + b"5\r\nhello\r\n", b"0\r\n\r\n\r\n"),
    ],
    ids=["surplus", "bad chunk", "surplus byte", "second response", "surplus CRLF"],
)
async def test_an_answer_that_goes_wrong_in_a_later_read_is_cut_before_that_read(first: bytes, second: bytes) -> None:
    arrived = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(first)
        await arrived.wait()
        await connection.send(second)

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        raw = await client.read(b"\r\n\r\n") + await client.read(len(first.partition(b"\r\n\r\n")[2]))
        arrived.set()
        rest, is_reset = await to_the_end(client)
        assert rest == b""
        assert not looks_complete(raw, is_reset)
        record = await gw.record()
        assert (record["status"], record["error"], record["fault"]) == (200, "upstream_malformed", "upstream")
        assert record["end"] != "ok"


async def test_a_broken_answer_ends_the_clients_connection_even_with_requests_behind_it() -> None:
    async with stub(sending(LENGTH + b"01234", then="close")) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x") + get("/__/ping"))
        raw, _ = await to_the_end(client)
        assert raw.count(b"HTTP/1.1") == 1


async def test_a_broken_upstream_is_told_in_the_clients_dialect() -> None:
    async with stub(b"nonsense\r\n\r\n") as up, running(serving(up.url, dialects=["anthropic"])) as gw:
        answer = await gw.ask(post("/v1/messages"))
        assert answer.status == 502
        body = answer.json()
        assert body["type"] == "error"
        assert body["error"]["type"] == "api_error"
        assert body["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]


async def test_an_upstream_that_speaks_first_is_not_believed() -> None:
    """A greeting is not an answer to a request that came later."""

    class Greeting(Stub):
        async def serve(self, reader, writer) -> None:  # type: ignore[no-untyped-def]
            writer.write(ok(b"greeting"))
            await super().serve(reader, writer)

    up = Greeting(sending())
    server = await asyncio.start_server(up.serve, "127.0.0.1", 0)
    up.port = server.sockets[0].getsockname()[1]
    async with running(splicing(up.url)) as gw:
        answer = await gw.ask(get("/x"))
        assert answer.status in (200, 502)  # a race that HTTP/1.1 leaves open: the bytes may come after the request
        assert not gw.pool.busy
    server.close()
    await up.stop()
