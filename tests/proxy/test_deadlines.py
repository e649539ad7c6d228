"""Every deadline there is: it fires in time, becomes what it should, and does not fire where there is progress."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fakes import (
    CHAT,
    Connection,
    Handler,
    Seen,
    deaf,
    document,
    gateway,
    get,
    model,
    ok,
    post,
    rule,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

from aigw.proxy.states import Deadline

CHAT_PATH = "/v1/chat/completions"
SHORT = 0.25
SLACK = 0.2  # the sweep comes by every 0.1 s
TICK = 0.01


@contextmanager
def takes(seconds: float = SHORT) -> Iterator[None]:
    """That long; when the loop did not come to run, for a busy machine, does not count as too late."""
    loop = asyncio.get_running_loop()
    lost = 0.0
    started = time.monotonic()

    def tick(due: float) -> None:
        nonlocal lost, ticker
        now = time.monotonic()
        lost += now - due
        ticker = loop.call_later(TICK, tick, now + TICK)

    ticker = loop.call_later(TICK, tick, started + TICK)
    try:
        yield
    finally:
        ticker.cancel()
    passed = time.monotonic() - started
    assert seconds * 0.9 <= passed <= seconds * 1.1 + SLACK + lost, f"{passed:.3f} s, {lost:.3f} s of it lost"


def saying(*parts: bytes) -> Handler:
    """Says so much, then nothing until the gateway leaves."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*parts)
        await connection.gone()

    return handler


async def later(seconds: float) -> None:
    at = time.monotonic() + seconds
    await until(lambda: time.monotonic() >= at, "the time")


# the client's side ----------------------------------------------------------------------------------------------------


async def test_keepalive_closes_an_idle_client() -> None:
    async with stub() as up, running(serving(up.url, timeouts={"keepalive": SHORT})) as gw:
        client = await gw.connect()
        with takes():
            assert await client.rest() == b""
        client = await gw.connect()
        await client.ask(post(CHAT_PATH))
        with takes():
            assert await client.rest() == b""
        assert len(gw.lines) == 1


@pytest.mark.parametrize("first", [b"G", b"GET /x HTTP/1.1\r\nhost: gw\r\n"])
async def test_request_is_a_total_time_that_no_byte_renews(first: bytes) -> None:
    async with stub() as up, running(serving(up.url, timeouts={"request": SHORT})) as gw:
        client = await gw.connect()
        await client.send(first)
        answered = asyncio.create_task(client.answer())
        with takes():
            while not answered.done():
                await client.send(b"x")
                await later(0.02)
        answer = await answered
        assert (answer.status, answer.headers["x-aigw-error"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert "faster" in answer.json()["error"]["message"]
        assert await client.ended() == b""


@pytest.mark.parametrize("config", [serving, splicing])
async def test_client_read_answers_408_to_a_body_that_stopped(config: object) -> None:
    async with stub() as up, running(config(up.url, timeouts={"client_read": SHORT})) as gw:  # type: ignore[operator]
        client = await gw.connect()
        await client.send(post(CHAT_PATH)[:-5])
        with takes():
            answer = await client.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (408, "request_timeout")
        assert await client.ended() == b""
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (408, "refused", "client")
        await until(lambda: not gw.open_ends, "nothing held")
        assert not up.seen


@pytest.mark.parametrize("config", [serving, splicing])
async def test_client_read_is_renewed_by_progress(config: object) -> None:
    async with stub() as up, running(config(up.url, timeouts={"client_read": SHORT})) as gw:  # type: ignore[operator]
        client = await gw.connect()
        raw = post(CHAT_PATH)
        await client.send(raw[:-8])
        for index in range(8, 0, -1):
            await later(SHORT / 3)
            await client.send(raw[-index : len(raw) - index + 1])
        assert (await client.answer()).status == 200


async def _endless(connection: Connection, seen: Seen) -> None:
    await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await connection.send(b"x" * 65536)


async def test_client_write_ends_a_client_that_takes_nothing() -> None:
    async with stub(_endless) as up, running(serving(up.url, timeouts={"client_write": SHORT}), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(post(CHAT_PATH))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        with takes():
            record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (200, "client_slow", "client")
        await until(lambda: not gw.gateway.clients, "the connection gone")
        assert not gw.open_ends


async def test_client_write_runs_for_an_answer_that_the_upstream_has_finished() -> None:
    large = ok(b"x" * 300_000)
    async with stub(large) as up, running(serving(up.url, timeouts={"client_write": SHORT}), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(post(CHAT_PATH))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        with takes():
            assert (await gw.record())["end"] == "client_slow"


async def test_client_write_is_renewed_by_a_client_that_takes_a_little() -> None:
    large = ok(b"x" * 400_000)
    loop = asyncio.get_running_loop()
    async with stub(large) as up, running(serving(up.url, timeouts={"client_write": SHORT}), buffer=8192) as gw:
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            await loop.sock_connect(sock, ("127.0.0.1", gw.port))
            await loop.sock_sendall(sock, post(CHAT_PATH))
            await until(lambda: gw.gateway.slow, "a client that does not read")
            started, raw = time.monotonic(), b""
            while not raw.endswith(b"x" * 10) or len(raw) < 400_000:
                await later(0.02)
                raw += await loop.sock_recv(sock, 12_000)
            assert time.monotonic() - started > 2 * SHORT
        assert (await gw.record())["end"] == "ok"


async def test_linger_closes_a_refused_client_that_goes_on_sending() -> None:
    async with stub() as up, running(serving(up.url, timeouts={"linger": SHORT})) as gw:
        client = await gw.connect()
        with takes():
            assert (await client.ask(b"nonsense\r\n\r\n")).status == 400
            assert await client.rest() == b""  # the half-close comes at once
            while gw.gateway.clients:
                if not client.writer.is_closing():
                    client.writer.write(b"x")
                await later(0.02)


# the upstream's side --------------------------------------------------------------------------------------------------


async def test_queue_is_how_long_an_exchange_waits_for_a_connection() -> None:
    config = {"max_connections": 1}
    async with stub(saying()) as up:
        document = serving(up.url, **config)
        document["upstreams"]["up"]["timeouts"]["queue"] = SHORT
        async with running(document) as gw:
            first = await gw.connect()
            await first.send(post(CHAT_PATH))
            await until(lambda: up.seen, "the first at the upstream")
            with takes():
                answer = await gw.ask(post(CHAT_PATH))
            assert (answer.status, answer.headers["x-aigw-error"]) == (503, "queue_timeout")
            record = await gw.record()
            assert (record["status"], record["end"], record["fault"]) == (503, "refused", "gateway")
            assert not gw.pool.waiting


def _upstream_timeouts(url: str, total: float | None = None, **timeouts: float) -> dict[str, object]:
    return document({"up": upstream(target(url), timeouts=timeouts)}, timeouts={"total": total})


async def test_connect_is_how_long_a_dial_may_take() -> None:
    async with deaf() as address, running(_upstream_timeouts(address.url, connect=SHORT)) as gw:
        with takes():
            answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_timeout")
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (502, "failed", "upstream")
        await until(lambda: not gw.open_ends, "nothing held")


async def test_connect_includes_the_tls_handshake() -> None:
    async with stub(saying()) as up:
        config = _upstream_timeouts(up.url.replace("http:", "https:"), connect=SHORT)
        async with running(config) as gw:
            with takes():
                answer = await gw.ask(post(CHAT_PATH))
            assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_timeout")


async def _deaf_to_bodies(connection: Connection, seen: Seen) -> None:
    connection.stop_reading()
    await asyncio.get_running_loop().create_future()


LARGE = 16 * 1024 * 1024


@pytest.mark.parametrize("is_by_model", [True, False], ids=["collected", "spliced"])
async def test_send_is_how_long_an_upstream_may_take_nothing(is_by_model: bool) -> None:
    body = CHAT[:-1] + b', "x": "' + b"x" * LARGE + b'"}'
    async with stub(on_head=_deaf_to_bodies) as up:
        config = (serving if is_by_model else splicing)(up.url)
        config["upstreams"]["up"]["timeouts"]["send"] = SHORT
        async with running(config) as gw:
            client = await gw.connect()
            client.writer.write(post(CHAT_PATH, body))
            await until(lambda: any(c.runs is Deadline.SEND for c in gw.gateway.clients), "a full upstream")
            with takes():
                answer = await client.answer()
            assert (answer.status, answer.headers["x-aigw-error"]) == (504, "send_timeout")
            record = await gw.record()
            assert (record["end"], record["fault"]) == ("failed", "upstream")


async def test_send_is_renewed_by_an_upstream_that_takes_a_little() -> None:
    """A body of megabytes over a slow line takes longer than the deadline, and is no fault as long as it moves."""
    body = CHAT[:-1] + b', "x": "' + b"x" * LARGE + b'"}'
    lasted: list[float] = []

    async def on_head(connection: Connection, seen: Seen) -> None:
        taken = connection.reader._buffer  # type: ignore[attr-defined]
        while len(taken) < len(body):
            connection.stop_reading()
            await later(SHORT * 0.6)
            size = len(taken)
            connection.read_on()
            await until(lambda size=size: len(taken) > size, "some more bytes")
        lasted.append(time.monotonic() - started)

    async with stub(on_head=on_head) as up:
        config = serving(up.url)
        config["upstreams"]["up"]["timeouts"]["send"] = SHORT
        async with running(config) as gw:
            client = await gw.connect()
            started = time.monotonic()
            client.writer.write(post(CHAT_PATH, body))
            assert (await client.answer()).status == 200
            assert len(up.last.body) == len(body)
            assert lasted[0] > 2 * SHORT


async def test_first_byte_is_how_long_an_answer_may_be_awaited() -> None:
    async with stub(saying()) as up, running(_upstream_timeouts(up.url, first_byte=SHORT)) as gw:
        client = await gw.connect()
        with takes():
            answer = await client.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (504, "first_byte_timeout")
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (504, "failed", "upstream")
        assert (await client.ask(get("/__/ping"))).status == 200
        assert not gw.pool.idle


async def test_first_byte_is_not_met_by_half_a_head() -> None:
    async with stub(saying(b"HTTP/1.1 200 O")) as up, running(_upstream_timeouts(up.url, first_byte=SHORT)) as gw:
        with takes():
            assert (await gw.ask(post(CHAT_PATH))).status == 504


@pytest.mark.parametrize(
    "body", [b"transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", b"content-length: 9\r\n\r\nhi", b"\r\nhi"]
)
async def test_idle_breaks_a_stalled_answer_visibly(body: bytes) -> None:
    async with stub(saying(b"HTTP/1.1 200 OK\r\n" + body)) as up, running(_upstream_timeouts(up.url, idle=SHORT)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        with takes():
            await client.read(b"hi")
            if b"\r\n\r\nhi" in b"\r\n" + body and b"content-length" not in body:
                with pytest.raises(ConnectionResetError):
                    await client.rest()
            else:
                assert (await client.ended()).strip() == b""
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"]) == (200, "stalled", "upstream")
        assert record["error"] == "idle_timeout"


async def test_idle_is_renewed_by_every_piece() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\n")
        for _ in range(8):
            await later(SHORT / 3)
            await connection.send(b"x")

    async with stub(handler) as up, running(_upstream_timeouts(up.url, idle=SHORT)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).body == b"x" * 8


async def test_idle_does_not_run_while_the_client_is_the_slow_one() -> None:
    large = ok(b"x" * 400_000)
    async with stub(large) as up, running(_upstream_timeouts(up.url, idle=SHORT), buffer=8192) as gw:
        client = await gw.connect(buffer=8192)
        client.stop_reading()
        await client.send(post(CHAT_PATH))
        await until(lambda: gw.gateway.slow, "a client that does not read")
        await later(2 * SHORT)
        client.read_on()
        assert len((await client.answer()).body) == 400_000


# the whole exchange ---------------------------------------------------------------------------------------------------


def _total(url: str, where: str) -> dict[str, object]:
    timeouts = {"first_token": None, "total": SHORT}
    given = {
        "global": {},
        "rule": {"rules": rule(timeouts=timeouts)},
        "model": {"models": model("up", timeouts=timeouts)},
    }
    fields = given[where]
    rules = [fields["rules"]] if "rules" in fields else [rule()]
    models = {"*": fields.get("models", model("up"))}
    return document(
        {"up": upstream(target(url))},
        gateways={"default": gateway(*rules, models=models)},
        timeouts={"total": SHORT if where == "global" else None},
    )


@pytest.mark.parametrize("where", ["global", "rule", "model"])
async def test_total_before_the_head_is_504(where: str) -> None:
    async with stub(saying()) as up, running(_total(up.url, where)) as gw:
        with takes():
            answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (504, "total_timeout")
        assert (await gw.record())["fault"] == "upstream"


async def test_total_after_the_head_breaks_the_answer() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            await connection.send(b"1\r\nx\r\n")
            await later(0.02)

    async with stub(handler) as up, running(_total(up.url, "global")) as gw:
        client = await gw.connect()
        with takes():
            await client.send(post(CHAT_PATH))
            raw = await client.ended()
        assert not raw.endswith(b"0\r\n\r\n")
        record = await gw.record()
        assert (record["status"], record["end"], record["error"]) == (200, "stalled", "total_timeout")


async def test_total_runs_while_a_connection_is_awaited() -> None:
    async with deaf() as address, running(_total(address.url, "global")) as gw:
        with takes():
            assert (await gw.ask(post(CHAT_PATH))).headers["x-aigw-error"] == "total_timeout"


async def test_total_runs_while_the_body_is_collected() -> None:
    async with stub() as up, running(_total(up.url, "global")) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH)[:-1])
        with takes():
            assert (await client.answer()).headers["x-aigw-error"] == "total_timeout"


async def test_total_does_not_outlive_its_exchange() -> None:
    async with stub() as up, running(_total(up.url, "global")) as gw:
        client = await gw.connect()
        await client.ask(post(CHAT_PATH))
        await later(SHORT * 1.5)
        assert (await client.ask(post(CHAT_PATH))).status == 200
