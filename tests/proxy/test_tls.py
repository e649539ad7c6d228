"""Targets behind TLS: verified by default, and told in words that give nothing away where that fails."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from fakes import Connection, Seen, get, ok, post, running, serving, splicing, stub

CHAT_PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_context(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def https(up: Any, config: Any = serving, host: str = "127.0.0.1", **tls: Any) -> dict[str, Any]:
    given = {"verify": True, "ca": None, "server_name": None} | tls
    return config(f"https://{host}:{up.port}", api_key="secret-key", tls=given)  # type: ignore[no-any-return]


async def test_an_authority_of_ones_own(authority: trustme.CA, ca_file: str) -> None:
    async with stub(ssl=server_context(authority, "localhost")) as up:
        async with running(https(up, host="localhost", ca=ca_file)) as gw:
            for _ in range(2):
                assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert len(up.connections) == 1
        assert up.last.headers["host"] == f"localhost:{up.port}"


async def test_an_address_in_the_certificate(authority: trustme.CA, ca_file: str) -> None:
    async with stub(ssl=server_context(authority, "127.0.0.1")) as up, running(https(up, ca=ca_file)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200


async def test_server_name_is_what_is_asked_for_and_verified(authority: trustme.CA, ca_file: str) -> None:
    names: list[str | None] = []
    context = server_context(authority, "inner.example")
    context.sni_callback = lambda _sock, name, _context: names.append(name)
    async with stub(ssl=context) as up, running(https(up, ca=ca_file, server_name="inner.example")) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert names == ["inner.example"]


@pytest.mark.parametrize("tls", ["wrong name", "unknown authority", "no TLS at all"])
async def test_what_cannot_be_verified_is_502_and_nothing_is_sent(
    authority: trustme.CA, ca_file: str, tls: str
) -> None:
    context = None if tls == "no TLS at all" else server_context(authority, "other.example")
    async with stub(b"HTTP/1.1 400 Bad Request\r\n\r\n", ssl=context) as up:
        config = https(up, ca=None if tls == "unknown authority" else ca_file)
        config["upstreams"]["up"]["timeouts"]["connect"] = 1.0
        async with running(config) as gw:
            answer = await gw.ask(post(CHAT_PATH))
            assert answer.status == 502
            assert answer.headers["x-aigw-error"] in ("connect_failed", "connect_timeout")
            if context is not None:
                assert "certificate" in answer.json()["error"]["message"]
            assert b"secret-key" not in answer.raw + b"".join(gw.lines)
            assert str(up.port).encode() not in answer.raw
            assert not up.seen
            gw.faults.clear()  # the server's side of the handshake reports its own failure


async def test_verify_false_takes_any_certificate(authority: trustme.CA) -> None:
    async with stub(ssl=server_context(authority, "other.example")) as up, running(https(up, verify=False)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200


async def test_megabytes_through_tls(authority: trustme.CA, ca_file: str) -> None:
    async def echo(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(seen.body))

    body = bytes(range(256)) * 8192
    context = server_context(authority, "127.0.0.1")
    async with stub(echo, ssl=context) as up, running(https(up, splicing, ca=ca_file)) as gw:
        assert (await gw.ask(post("/x", body))).body == body


async def test_a_close_delimited_answer_over_tls_ends_with_its_close_notify(
    authority: trustme.CA, ca_file: str
) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        connection.close()

    context = server_context(authority, "127.0.0.1")
    async with stub(handler, ssl=context) as up, running(https(up, splicing, ca=ca_file)) as gw:
        assert (await gw.ask(get("/x"))).body == b"hello"
        assert (await gw.record())["end"] == "ok"


async def test_a_close_delimited_answer_over_tls_without_close_notify_is_a_break(
    authority: trustme.CA, ca_file: str
) -> None:
    """A FIN can be forged by anyone on the way; only TLS itself can say that the answer has ended."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await connection.gone()

    async with stub(handler, ssl=server_context(authority, "127.0.0.1")) as up, between(up.port) as (port, cut):
        config = splicing(f"https://127.0.0.1:{port}", tls={"verify": True, "ca": ca_file, "server_name": None})
        async with running(config) as gw:
            client = await gw.connect()
            await client.send(get("/x"))
            await client.read(b"hello")
            cut()
            with pytest.raises(ConnectionResetError):
                await client.rest()
            assert (await gw.record())["end"] == "cut"


@asynccontextmanager
async def between(port: int) -> AsyncIterator[tuple[int, Callable[[], None]]]:
    """A relay in front of `port`: where to connect, and what ends its connection towards the caller by a FIN."""
    ends: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(writer)
        inner = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], lambda: [writer.close() for writer in ends]  # type: ignore[func-returns-value]
    finally:
        server.close()
        for writer in ends:
            writer.close()
