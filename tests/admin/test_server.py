"""The admin listener itself: bytes in, bytes out, on real sockets, with an application that says what it was asked."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aigw import listen
from aigw.admin import server
from aigw.admin.guard import Guard
from aigw.admin.messages import Answer, Refused, Request
from aigw.admin.server import Server


class Echo:
    """Answers with what it was asked; admits as a guard does."""

    def __init__(self, token: str | None = None) -> None:
        self.delays: list[float] = []
        self.guard = Guard(token, clock=time.monotonic, sleep=self._sleep)
        self.blocked: asyncio.Event | None = None

    async def _sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        if self.blocked is not None:
            await self.blocked.wait()

    async def admit(self, request: Request, authorization: str, host: str) -> None:
        await self.guard.admit(request, authorization, host)

    async def answer(self, request: Request) -> Answer:
        if request.path == "/fails":
            raise ValueError("sk-secret-in-an-exception")
        if request.path == "/nothing":
            return Answer(204)
        said = {"method": request.method, "steps": request.steps, "query": request.query}
        return Answer(200, said | {"body": len(request.body), "client": request.client})


@asynccontextmanager
async def running(app: Echo, address: str = "127.0.0.1:0") -> AsyncIterator[tuple[Server, socket.socket]]:
    [sock] = server.bind(address)
    running = Server(app)
    await running.listen([sock])
    try:
        yield running, sock
    finally:
        await running.close()
        sock.close()


async def talk(sock: socket.socket, data: bytes, *, pieces: int | None = None) -> bytes:
    """All that comes for `data`, which is sent whole or in pieces of so many bytes; then our side is closed."""
    if sock.family == socket.AF_UNIX:
        reader, writer = await asyncio.open_unix_connection(sock.getsockname())
    else:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
    step = pieces or len(data)
    try:
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
        writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str, *lines: str, method: str = "GET", body: bytes = b"", host: str = "localhost") -> bytes:
    head = [f"{method} {path} HTTP/1.1", f"host: {host}", *lines]
    return "\r\n".join([*head, "\r\n"]).encode() + body


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def last(data: bytes) -> dict[str, object]:
    return dict(json.loads(data.rpartition(b"\r\n\r\n")[2]))


@pytest.mark.parametrize("pieces", [None, 1, 7])
async def test_requests_of_one_connection_are_answered_in_their_order(pieces: int | None) -> None:
    chunked = get("/b", "transfer-encoding: chunked", method="POST", body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
    counted = get("/c?x=1&y=%C3%A4+b", "content-length: 4", method="PUT", body=b"1234")
    async with running(Echo()) as (_, sock):
        data = await talk(sock, get("/a%2Fb/c") + chunked + counted, pieces=pieces)
    bodies = [json.loads(part.partition(b"\r\n\r\n")[2]) for part in data.split(b"HTTP/1.1 200 OK")[1:]]
    assert [body["steps"] for body in bodies] == [["a/b", "c"], ["b"], ["c"]]
    assert [body["body"] for body in bodies] == [0, 5, 4]
    assert bodies[2]["query"] == {"x": "1", "y": "ä b"}


async def test_what_answers_carry() -> None:
    async with running(Echo()) as (_, sock):
        data = await talk(sock, get("/a") + get("/nothing") + get("/a", method="HEAD"))
    first, nothing, head = data.split(b"HTTP/1.1 ")[1:]
    assert b"content-type: application/json\r\n" in first
    assert b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n" in first
    assert nothing.startswith(b"204 No Content\r\n")
    assert b"content-length" not in nothing
    assert nothing.endswith(b"\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"content-length: " in head


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"GET / HTTP/1.1\n\n", 400, ""),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "exactly one `host` header"),
        (b"GET  / HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, ""),
        (get("/../x"), 400, "`.` or `..` segment"),
        (get("/%2e%2e/x"), 400, "`.` or `..` segment"),
        (get("/%ff"), 400, "not UTF-8"),
        (get("/%zz"), 400, "percent-encoding"),
        (get("/?a=1&a=2"), 400, "stands twice"),
        (get("/", "x: " + "a" * 40_000), 431, "32768 bytes"),
        (get("/" + "a" * 20_000), 414, "16384"),
        (get("/", *(f"x-{n}: 1" for n in range(101))), 431, "100 header lines"),
        (get("/", "content-length: 4194305", method="POST"), 413, "4 MiB"),
        (get("/", "content-length: 1", "content-length: 1", method="POST"), 400, "more than one content-length"),
        (get("/", "content-length: 1", "transfer-encoding: chunked", method="POST"), 400, "two framings"),
        (get("/", "transfer-encoding: chunked", method="POST", body=b"zz\r\n"), 400, "chunk"),
        (get("/", "content-encoding: gzip", "content-length: 1", method="POST", body=b"x"), 415, "compressed"),
        (get("/", "expect: magic"), 417, "100-continue"),
        (get("/").replace(b"HTTP/1.1", b"HTTP/2.0"), 505, ""),
    ],
)
async def test_what_is_no_request_is_answered_and_ends_the_connection(data: bytes, status: int, said: str) -> None:
    async with running(Echo()) as (_, sock):
        found = await talk(sock, data + get("/after"))
    assert statuses(found) == [status]
    assert b"connection: close\r\n" in found
    error = last(found)["error"]
    assert isinstance(error, dict)
    assert said in error["message"]
    assert error.keys() == {"code", "message", "details"}


async def test_a_body_beyond_its_bound_ends_early() -> None:
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    async with running(Echo()) as (_, sock):
        found = await talk(sock, get("/", "transfer-encoding: chunked", method="POST", body=piece * 70))
    assert statuses(found) == [413]


async def test_a_body_is_asked_for_once_the_call_is_admitted() -> None:
    async with running(Echo("right")) as (_, sock):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        lines = ("expect: 100-continue", "content-length: 2", "authorization: Bearer")
        writer.write(get("/", *lines[:2], f"{lines[2]} right", method="POST"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"ab" + get("/", *lines[:2], f"{lines[2]} wrong", method="POST"))
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"HTTP/1.1 401 Unauthorized\r\n" in await reader.read()
        writer.close()
        await writer.wait_closed()


async def test_a_fault_of_ours_tells_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(Echo()) as (_, sock):
        found = await talk(sock, get("/fails"))
    assert statuses(found) == [500]
    assert b"sk-secret" not in found
    said = capfd.readouterr().err
    assert "unexpected: ValueError" in said
    assert "sk-secret" not in said


async def test_an_old_client_gets_one_answer() -> None:
    async with running(Echo()) as (_, sock):
        found = await talk(sock, b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n" * 2)
        closed = await talk(sock, get("/", "connection: close") * 2)
    assert statuses(found) == [200]
    assert statuses(closed) == [200]


async def test_too_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 1)
    async with running(Echo()) as (_, sock):
        _, writer = await asyncio.open_connection(*sock.getsockname())
        reader, second = await asyncio.open_connection(*sock.getsockname())
        assert (await reader.read()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        for each in (writer, second):
            each.close()
            await each.wait_closed()


async def test_what_does_not_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD", 0.05)
    monkeypatch.setattr(server, "BODY", 0.05)
    monkeypatch.setattr(server, "LINGER", 0.05)
    async with running(Echo()) as (_, sock):
        for data in (b"GET / HT", get("/", "content-length: 5", method="POST")):
            reader, writer = await asyncio.open_connection(*sock.getsockname())
            writer.write(data)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            writer.close()
            await writer.wait_closed()


async def test_an_idle_connection_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "KEEPALIVE", 0.05)
    async with running(Echo()) as (_, sock):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_other_sockets_take_over_and_connections_stay() -> None:
    async with running(Echo()) as (running_server, sock):
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(get("/a"))
        await reader.readuntil(b'"}')
        [other] = server.bind("127.0.0.1:0")
        place = sock.getsockname()
        await running_server.listen([other])
        writer.write(get("/b"))
        assert b'"steps":["b"]' in await reader.readuntil(b'"}')
        assert statuses(await talk(other, get("/c"))) == [200]
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*place)
        writer.close()
        await writer.wait_closed()
        await running_server.close()
        other.close()


# guard ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "127.8.9.1"])
async def test_hosts_of_this_machine(host: str) -> None:
    async with running(Echo()) as (_, sock):
        assert statuses(await talk(sock, get("/", host=host))) == [200]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "x"])
async def test_a_name_that_was_pointed_here_is_misdirected(host: str) -> None:
    async with running(Echo()) as (_, sock):
        found = await talk(sock, get("/", host=host))
    assert statuses(found) == [421]
    assert b"localhost, 127.0.0.1 and [::1]" in found


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("origin: http://localhost:8080", 200),
        ("origin: http://evil.example", 403),
        ("origin: http://localhost:9999", 403),
        ("origin: null", 403),
        ("sec-fetch-site: same-origin", 200),
        ("sec-fetch-site: none", 200),
        ("sec-fetch-site: cross-site", 403),
        ("sec-fetch-site: same-site", 403),
    ],
)
@pytest.mark.parametrize("token", [None, "right"])
async def test_pages_of_other_origins_are_refused(line: str, status: int, token: str | None) -> None:
    async with running(Echo(token)) as (_, sock):
        data = get("/", line, "authorization: Bearer right", host="localhost:8080", method="POST")
        assert statuses(await talk(sock, data)) == [status]


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("authorization: Bearer right", 200),
        ("authorization: bearer right", 200),
        ("authorization: Bearer wrong", 401),
        ("authorization: Bearer", 401),
        ("authorization: Basic right", 401),
        ("authorization: right", 401),
        ("x-api-key: right", 401),
        ("authorization: Bearer right\r\nauthorization: Bearer right", 401),
        ("authorization: Bearer r\xe4cht", 401),
    ],
)
async def test_only_the_token_opens(line: str, status: int) -> None:
    async with running(Echo("right")) as (_, sock):
        found = await talk(sock, get("/", line, host="gateway.example"))
    assert statuses(found) == [status]
    assert (b'www-authenticate: Bearer realm="aigw"\r\n' in found) == (status == 401)
    assert b"right" not in found.partition(b"\r\n\r\n")[2] or status == 200


async def test_each_wrong_token_is_answered_later() -> None:
    echo = Echo("right")
    async with running(echo) as (_, sock):
        for _ in range(9):
            assert statuses(await talk(sock, get("/", "authorization: Bearer wrong"))) == [401]
        assert statuses(await talk(sock, get("/", "authorization: Bearer right"))) == [200]
    assert echo.delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0]


async def test_many_guesses_at_once_are_not_looked_at() -> None:
    echo = Echo("right")
    async with running(echo) as (_, sock):
        for _ in range(2):
            await talk(sock, get("/", "authorization: Bearer wrong"))
        echo.blocked = asyncio.Event()
        waiting = [asyncio.create_task(talk(sock, get("/", "authorization: Bearer wrong"))) for _ in range(4)]
        while len(echo.delays) < 4:  # noqa: ASYNC110  # nothing else tells it
            await asyncio.sleep(0)
        for guess in ("wrong", "right"):  # the answer tells nothing about the token
            found = await talk(sock, get("/", f"authorization: Bearer {guess}"))
            assert statuses(found) == [429]
            assert b"retry-after: 8\r\n" in found
        echo.blocked.set()
        assert [statuses(found) for found in await asyncio.gather(*waiting)] == [[401]] * 4
        assert statuses(await talk(sock, get("/", "authorization: Bearer right"))) == [200]


async def test_failures_are_forgotten_and_bounded() -> None:
    now = [0.0]
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    guard = Guard("right", clock=lambda: now[0], sleep=sleep)

    async def guess(client: str) -> None:
        with pytest.raises(Refused):
            await guard.admit(Request("GET", "/", [], {}, {}, client=client), "Bearer wrong", "x")

    for _ in range(3):
        await guess("2001:db8::1")
    await guess("2001:db8::2")  # the same network
    assert delays == [0.25, 0.5]
    now[0] = 301.0
    await guess("2001:db8::1")
    assert delays == [0.25, 0.5]
    for number in range(5000):
        await guess(f"10.0.{number // 256}.{number % 256}")
    assert repr(guard) == "<Guard token, 4096 addresses failed>"


# addresses ------------------------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    for _ in range(2):  # the second finds what the first left behind
        async with running(Echo(), f"unix:{path}") as (_, sock):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
            assert listen.name(sock) == f"unix:{path}"
            found = await talk(sock, get("/", host="whatever.example"))
            assert last(found)["client"] == "unix"
            with pytest.raises(listen.ListenError, match="another process listens there"):
                server.bind(f"unix:{path}")


async def test_addresses_that_cannot_be_listened_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(listen.ListenError, match="a file that is no socket"):
        server.bind(f"unix:{tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(listen.ListenError, match="No such file or directory"):
        server.bind(f"unix:{tmp_path}/nowhere/admin.sock")
    async with running(Echo()) as (_, sock):
        with pytest.raises(listen.ListenError, match="choose another address with --admin-listen or admin"):
            server.bind(f"127.0.0.1:{sock.getsockname()[1]}")
