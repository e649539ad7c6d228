"""aigw.mock.server: HTTP/1.1 as a client sees it, byte by byte."""

import asyncio
import random

import pytest

from aigw.mock import MockConnection, Settings

CHAT = "/v1/chat/completions"


class Watched(MockConnection):
    """Tells when it is made, stops for a client that does not read, and is lost."""

    made: asyncio.Queue["Watched"] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.stopped, self.lost = asyncio.Event(), asyncio.Event()
        super().connection_made(transport)
        self.made.put_nowait(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stopped.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()


async def test_an_answer_and_its_head(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat())
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/json"
    assert int(answered.headers["content-length"]) == len(answered.body)
    assert answered.headers["connection"] == "close"
    assert answered.headers["date"].endswith(" GMT")
    assert answered.json()["id"].removeprefix("chatcmpl-mock-") == answered.headers["x-request-id"][len("req_mock_") :]


async def test_equal_requests_get_equal_answers_remembered_or_not(mock) -> None:
    wire = await mock.connect()
    answers = []
    for _ in range(3):
        wire.send(mock.request(CHAT, mock.chat()))
        answers.append(await wire.answer())
    fresh = await mock.ask(CHAT, mock.chat())  # its `connection: close` keeps it from the memory
    assert {one.body for one in answers} == {fresh.body}
    wire.send(mock.request(CHAT, mock.chat(model="other")))
    assert (await wire.answer()).json()["model"] == "other"


async def test_what_is_remembered_depends_on_headers_and_method(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/v1/models") + mock.request("/v1/models", anthropic_version="2023-06-01"))
    wire.send(mock.request(CHAT, mock.chat()) + mock.request(CHAT, mock.chat(), words="tokens=1"))
    openai, anthropic, whole, short = [await wire.answer() for _ in range(4)]
    assert openai.json()["object"] == "list"
    assert "has_more" in anthropic.json()
    assert whole.json()["usage"]["completion_tokens"] == 16
    assert short.json()["usage"]["completion_tokens"] == 1


async def test_pipelined_requests_are_answered_in_order(mock) -> None:
    wire = await mock.connect()
    names = [f"m{number}" for number in range(40)]
    wire.send(b"".join(mock.request(CHAT, mock.chat(model=name)) for name in names))
    assert [(await wire.answer()).json()["model"] for _ in names] == names


async def test_pipelined_behind_slow_answers(mock) -> None:
    """More than are queued: reading pauses meanwhile, and nothing is lost or reordered."""
    wire = await mock.connect()
    names = [f"m{number}" for number in range(40)]
    for name in names:
        wire.send(mock.request(CHAT, mock.chat(model=name), words="latency=0.001"))
        await asyncio.sleep(0)  # separate reads, so that the pause takes effect
    assert [(await wire.answer()).json()["model"] for _ in names] == names


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_requests_in_pieces(mock, seed: int) -> None:
    data = mock.request(CHAT, mock.chat(), words="tokens=2", anthropic_version="x")
    data += b"POST /v1/embeddings HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"model":"e","input":"spoken so"}'
    data += b"4;ext=1\r\n%b\r\n%x\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (body[:4], len(body) - 4, body[4:])
    data += mock.request("/v1/models")
    cuts = sorted(random.Random(seed).sample(range(1, len(data)), 30)) if seed < 3 else range(1, len(data))
    wire = await mock.connect()
    last = 0
    for cut in (*cuts, len(data)):
        wire.send(data[last:cut])
        await wire.writer.drain()
        await asyncio.sleep(0)
        last = cut
    first, second, third = [await wire.answer() for _ in range(3)]
    assert first.json()["choices"][0]["message"]["content"] == "The mock"
    assert second.json()["data"][0]["object"] == "embedding"
    assert third.json()["object"] == "list"


async def test_expect_100_continue(mock) -> None:
    wire = await mock.connect()
    request = mock.request(CHAT, mock.chat(), expect="100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(body)
    assert (await wire.answer()).status == 200


async def test_expect_behind_a_running_answer(mock) -> None:
    wire = await mock.connect()
    request = mock.request(CHAT, mock.chat(), expect="100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    wire.send(mock.request("/ping", words="latency=0.02") + head + b"\r\n\r\n")
    assert (await wire.answer()).json() == {"status": "ok"}
    assert await wire.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(body)
    assert (await wire.answer()).status == 200


async def test_head_has_the_length_and_no_body(mock) -> None:
    got = await mock.ask("/v1/models")
    head = await mock.ask("/v1/models", method="HEAD")
    assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.body))
    assert head.body == b""
    wire = await mock.connect()
    wire.send(mock.request("/", method="HEAD") + mock.request("/ping"))
    kept = await wire.until(b"\r\n\r\n")
    assert kept.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (await wire.answer()).json() == {"status": "ok"}


async def test_http_1_0_closes_unless_asked_otherwise(mock) -> None:
    wire = await mock.connect()
    wire.send(b"GET /ping HTTP/1.0\r\n\r\n")
    answered = await wire.to_end()
    assert answered.headers["connection"] == "close"
    kept = await mock.connect()
    kept.send(b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert (await kept.answer()).headers["connection"] == "keep-alive"
    kept.send(b"GET /ping HTTP/1.0\r\n\r\n")
    assert (await kept.to_end()).json() == {"status": "ok"}


async def test_http_1_0_streams_end_with_the_close(mock) -> None:
    wire = await mock.connect()
    request = mock.request(CHAT, mock.chat(stream=True), connection="keep-alive", expect="100-continue")
    wire.send(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
    answered = await wire.to_end()
    assert "transfer-encoding" not in answered.headers
    assert "content-length" not in answered.headers
    assert answered.body.startswith(b"data: {")
    assert answered.body.endswith(b"data: [DONE]\n\n")


async def test_each_event_is_a_chunk_and_the_connection_goes_on(mock) -> None:
    wire = await mock.connect()
    for _ in range(2):  # made, then remembered
        wire.send(mock.request(CHAT, mock.chat(stream=True), words="tokens=3"))
        raw = await wire.until(b"\r\n0\r\n\r\n")
    chunks = raw.partition(b"\r\n\r\n")[2].split(b"\n\n\r\n")
    assert len(chunks) == 1 + 3 + 1 + 1 + 1  # role, content, finish, [DONE], the rest
    wire.send(mock.request("/ping"))
    assert (await wire.answer()).status == 200


async def test_long_streams_are_not_remembered_but_whole(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat(stream=True), words="tokens=2000")
    chunks, rest = answered.chunks()
    assert (len(chunks), rest) == (2003, b"0\r\n\r\n")
    kept = await mock.connect()
    kept.send(mock.request(CHAT, mock.chat(stream=True), words="tokens=2000"))
    assert (await kept.until(b"\r\n0\r\n\r\n")).count(b"data: ") == 2003


async def test_a_client_that_does_not_read_stops_the_stream(mock) -> None:
    """150 MB of events: without back pressure they would all be made and kept."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Watched(Settings(), loop), "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
        writer.write(mock.request(CHAT, mock.chat(stream=True), words="tokens=600000"))
        connection = await Watched.made.get()
        for _ in range(2):  # stopped, and again after the client has taken some
            await connection.stopped.wait()
            connection.stopped.clear()
            assert connection.transport.get_write_buffer_size() < 1024 * 1024
            assert repr(connection) == "<MockConnection answering 0 queued>"
            received = 0
            while received < 16 * 1024 * 1024:
                received += len(await reader.read(1024 * 1024))
        writer.transport.abort()
        await connection.lost.wait()
        assert repr(connection) == "<MockConnection closed 0 queued>"


async def test_a_client_that_asks_but_does_not_read_is_not_read_from(mock) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Watched(Settings.parse("tokens=2000"), loop), "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), limit=1024)
        one = mock.request(CHAT, mock.chat())
        count = 100_000  # 20 MB of requests, 1 GB of answers
        writer.write(one * count)
        connection = await Watched.made.get()
        await connection.stopped.wait()
        blocked = asyncio.ensure_future(writer.drain())
        received = 0
        while received < 64 * 1024 * 1024:
            received += len(await reader.read(1024 * 1024))
            assert connection.transport.get_write_buffer_size() < 1024 * 1024
            queued = int(repr(connection).split()[2])
            assert queued < 256 * 1024 / len(one) + 16  # one read's worth
        assert not blocked.done()
        writer.transport.abort()
        await connection.lost.wait()
        blocked.cancel()
        await asyncio.gather(blocked, return_exceptions=True)


async def test_more_than_is_remembered(mock) -> None:
    """Some 12 MB of different answers: all right, whatever was forgotten meanwhile."""
    wire = await mock.connect()
    for number in range(800):
        wire.send(mock.request(CHAT, mock.chat(model=f"m{number % 400}"), words="tokens=2500"))
        assert (await wire.answer()).json()["model"] == f"m{number % 400}"


async def test_pace_and_latency(mock) -> None:
    loop = asyncio.get_running_loop()
    begun = loop.time()
    plain = await mock.ask(CHAT, mock.chat(), words="tokens=5, rate=100, latency=0.05")
    assert loop.time() - begun >= 0.1
    assert plain.status == 200
    begun = loop.time()
    stream = await mock.ask(CHAT, mock.chat(stream=True), words="tokens=6, rate=100, latency=0.05")
    assert loop.time() - begun >= 0.1
    assert len(stream.chunks()[0]) == 9


async def test_the_first_event_of_a_paced_stream_does_not_wait_for_the_second(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request(CHAT, mock.chat(stream=True), words="tokens=2, rate=0.001"))
    assert b'"content":"The"' in await wire.until(b'"content":"The"')


async def test_a_body_of_five_megabytes(mock) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000_000}}
    document = mock.chat(messages=[{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}])
    answered = await mock.ask(CHAT, document)
    assert answered.json()["usage"]["prompt_tokens"] == 2


async def test_a_body_that_nobody_reads_is_not_kept(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/v1/audio/transcriptions", b"x" * 300_000))
    assert (await wire.answer()).json()["text"] == "The mock hears nothing."
    wire.send(mock.request("/v1/files", b"x" * 300_000))
    assert (await wire.answer()).status == 404


async def test_a_body_beyond_the_limit(mock) -> None:
    wire = await mock.connect()
    size = 65 * 1024 * 1024
    wire.send(b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % size)
    part = b"x" * (1024 * 1024)
    for _ in range(65):
        wire.send(part)
        await wire.writer.drain()
    answered = await wire.answer()
    assert answered.status == 413
    assert f"the body is {size} bytes, the mock reads 67108864" in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET\r\n\r\n",
    ],
)
async def test_no_http(mock, garbage: bytes) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/ping") + garbage)
    assert (await wire.answer()).status == 200
    answered = await wire.to_end()
    assert answered.status == 400
    assert "this is no HTTP/1.1 request" in answered.json()["error"]["message"]
    assert answered.headers["connection"] == "close"


async def test_garbage_behind_a_running_answer_waits_its_turn(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/ping", words="latency=0.02") + b"\x00\r\n\r\n")
    assert (await wire.answer()).status == 200
    assert (await wire.to_end()).status == 400


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /ping HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
async def test_no_upgrades(mock, request_head: bytes) -> None:
    wire = await mock.connect()
    wire.send(request_head)
    answered = await wire.to_end()
    assert answered.status == 400
    assert "no CONNECT, no Upgrade" in answered.json()["error"]["message"]


async def test_what_follows_a_close_is_not_answered(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/ping", connection="close") + mock.request("/ping"))
    assert (await wire.to_end()).raw.count(b"HTTP/1.1") == 1


async def test_a_client_that_hangs_up_stops_the_answer(mock) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Watched(Settings.parse("latency=60"), loop), "127.0.0.1", 0)
    async with server, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(mock.request("/ping") * 3)
        writer.write_eof()
        connection = await Watched.made.get()
        assert await reader.read() == b""
        await connection.lost.wait()
        assert repr(connection) == "<MockConnection closed 0 queued>"
        writer.close()
        await writer.wait_closed()


async def test_absolute_form(mock) -> None:
    assert (await mock.ask("http://mock:80/v1/models?x=1")).json()["object"] == "list"
    assert (await mock.ask("http://mock")).json() == {"status": "ok"}
