"""TLS as bytes on the wire: records that come in pieces or by the thousand, forged ones, ends without a goodbye, and
that nothing of one connection reaches another, or stays with it.

What is offered and how handshakes fail is the business of `test_tls_listener.py` (clients) and `test_tls.py`
(upstreams).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from fakes import (
    LIMIT,
    Answer,
    Client,
    Connection,
    Seen,
    connect,
    get,
    ok,
    post,
    running,
    serving,
    splicing,
    stub,
    until,
)
from processes import Serve

from aigw import tls
from aigw.proxy import secure as layer
from aigw.proxy.client import ClientConnection

NAME = "127.0.0.1"
MIB = 1024 * 1024
UNVERIFIED = {"verify": False, "ca": None, "server_name": None}
Secure = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Secure:
    issued = authority.issue_cert(NAME)
    cert = b"".join(blob.bytes() for blob in issued.cert_chain_pems).decode()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return tls.server_context(cert, issued.private_key_pem.bytes().decode()), context


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What all connections share is empty when nobody reads or writes."""
    yield
    assert (layer._INCOMING.pending, layer._OUTGOING.pending) == (0, 0)


pytestmark = pytest.mark.usefixtures("nothing_left")


class Peer:
    """The gateway's other side, as client or upstream: what it says is sent by whoever holds it, as he likes."""

    def __init__(self, raw: Client, context: ssl.SSLContext, *, is_server: bool = False) -> None:
        self.raw = raw
        self._arrived, self._said = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if is_server else NAME
        self._tls = context.wrap_bio(self._arrived, self._said, server_side=is_server, server_hostname=name)

    def said(self) -> bytes:
        return self._said.read()

    async def _more(self) -> None:
        async with asyncio.timeout(LIMIT):
            data = await self.raw.reader.read(65536)
        if not data:
            raise EOFError
        self._arrived.write(data)

    async def greet(self, size: int | None = None) -> bytes:
        """The handshake, in pieces of `size`. Its last words are not sent yet."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                said = self.said()
                await self.raw.send(*(said[i : i + size] for i in range(0, len(said), size)) if size else [said])
                await self._more()
            else:
                return self.said()

    def sealed(self, *parts: bytes) -> bytes:
        """Each in a record of its own."""
        for part in parts:
            self._tls.write(part)
        return self.said()

    def goodbye(self) -> bytes:
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self.said()

    async def read(self) -> bytes:
        """What the next records hold; b"" at the goodbye. Raises EOFError where there is none."""
        while True:
            try:
                return self._tls.read(2**20)
            except ssl.SSLWantReadError:
                await self._more()
            except ssl.SSLZeroReturnError:
                return b""

    async def answer(self) -> Answer:
        """The next response, with its content-length."""
        found = b""
        while b"\r\n\r\n" not in found:
            found += await self.read()
        answer = Answer(found)
        while len(answer.body) < int(answer.headers["content-length"]):
            found += await self.read()
            answer = Answer(found)
        return answer


@asynccontextmanager
async def peer(port: int, context: ssl.SSLContext) -> AsyncIterator[Peer]:
    raw = await connect(NAME, port)
    try:
        yield Peer(raw, context)
    finally:
        raw.writer.transport.abort()


async def echo(connection: Connection, seen: Seen) -> None:
    await connection.send(ok(seen.body))


# clients --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_each_byte_of_it_alone(version: ssl.TLSVersion, authority: trustme.CA, secure: Secure) -> None:
    """The handshake, a request, and the goodbye."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    async with stub(echo) as up, running(splicing(up.url), secure=secure) as gw, peer(gw.port, context) as client:
        last = await client.greet(1)
        request = last + client.sealed(post("/x", b"hello"))
        await client.raw.send(*(request[i : i + 1] for i in range(len(request))))
        assert (await client.answer()).body == b"hello"
        goodbye = client.goodbye()
        await client.raw.send(*(goodbye[i : i + 1] for i in range(len(goodbye))))
        assert await client.read() == b""
        assert await client.raw.rest() == b""


async def test_a_request_and_a_goodbye_right_behind_the_handshake(secure: Secure) -> None:
    """In one write: the request is served, and its client is gone."""
    async with stub() as up, running(splicing(up.url), secure=secure) as gw, peer(gw.port, secure[1]) as client:
        await client.raw.send(await client.greet() + client.sealed(get("/x")) + client.goodbye())
        record = await gw.record()
        assert (record["path"], record["status"], record["end"]) == ("/x", 499, "client_gone")
        await until(lambda: not gw.open_ends, "what was dialled for it is there")


async def test_a_thousand_records_at_once(secure: Secure) -> None:
    """All of a body, and the last of them is torn."""
    body = bytes(range(250)) * 2000
    parts = [body[i : i + 500] for i in range(0, len(body), 500)]
    assert len(parts) == 1000
    async with stub(echo) as up, running(splicing(up.url), secure=secure) as gw, peer(gw.port, secure[1]) as client:
        head = post("/x", body)[: -len(body)]
        sent = await client.greet() + client.sealed(head, *parts)
        await client.raw.send(sent[:-7], sent[-7:])
        assert (await client.answer()).body == body
        assert up.last.body == body


@pytest.mark.parametrize("size", [1, 16384, 16385, 300_000, 4 * MIB])
async def test_bodies_of_every_size_both_ways(size: int, secure: Secure, authority: trustme.CA) -> None:
    """With TLS on both sides."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    async with (
        stub(echo, ssl=context) as up,
        running(splicing(f"https://{NAME}:{up.port}", tls=UNVERIFIED), secure=secure) as gw,
    ):
        client = await gw.connect()
        for _ in range(2):
            assert (await client.ask(post("/x", body))).body == body
        assert (up.last.body == body, len(up.connections)) == (True, 1)


async def test_halves_of_two_clients_records_in_turn(secure: Secure) -> None:
    async with (
        stub(echo) as up,
        running(splicing(up.url), secure=secure) as gw,
        peer(gw.port, secure[1]) as one,
        peer(gw.port, secure[1]) as other,
    ):
        first = await one.greet() + one.sealed(post("/x", b"a" * 5000))
        second = await other.greet() + other.sealed(post("/x", b"b" * 5000))
        for begin in range(0, len(first), 100):
            await one.raw.send(first[begin : begin + 100])
            await other.raw.send(second[begin : begin + 100])
        await one.raw.send(first[len(second) :])
        await other.raw.send(second[len(first) :])
        assert (await one.answer()).body == b"a" * 5000
        assert (await other.answer()).body == b"b" * 5000


async def test_a_forged_record_is_a_break_and_nobody_elses_business(secure: Secure) -> None:
    """What came before it was sent on; what is behind it is nothing to anybody."""
    async with (
        stub(echo) as up,
        running(splicing(up.url), secure=secure) as gw,
        peer(gw.port, secure[1]) as client,
        peer(gw.port, secure[1]) as other,
    ):
        await other.raw.send(await other.greet())
        head = post("/x", bytes(100))[:-100]
        sealed = await client.greet() + client.sealed(head, b"good")
        forged = bytearray(client.sealed(b"bad"))
        forged[-1] ^= 1
        await client.raw.send(sealed + forged + client.sealed(b"more"))
        with pytest.raises(ssl.SSLError, match="BAD_RECORD_MAC"):
            await client.read()
        record = await gw.record()
        assert (record["end"], record["bytes_in"]) == ("client_gone", 4)
        await other.raw.send(other.sealed(post("/x", b"whole")))
        assert (await other.answer()).body == b"whole"
        assert [seen.body for seen in up.seen] == [b"whole"]


async def test_who_is_refused_and_sends_on_gets_the_answer(secure: Secure) -> None:
    """Not an RST that takes it away: megabytes are let go, and the goodbye comes with the answer."""
    async with stub() as up, running(serving(up.url), secure=secure) as gw, peer(gw.port, secure[1]) as client:
        await client.raw.send(await client.greet() + client.sealed(b"NONSENSE\r\n\r\n"))
        await client.raw.send(client.sealed(*[bytes(16384)] * 200))
        assert (await client.answer()).status == 400
        assert await client.read() == b""
        await client.raw.close()
        await until(lambda: not gw.gateway.clients, "the connection closed")


async def test_who_never_comes_is_forgotten(secure: Secure) -> None:
    """A protocol was made for it, but its socket was lost before."""
    async with stub() as up, running(serving(up.url, timeouts={"handshake": 0.05}), secure=secure) as gw:
        gw.gateway._arrival("")
        assert gw.gateway._greeting
        await until(lambda: not gw.gateway._greeting, "it is given up")
        gw.gateway._arrival("")
        assert await gw.gateway.drain(LIMIT) == 0
        assert gw.log == []


async def test_who_had_to_make_room_before_it_came_is_closed(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        arrival = gw.gateway._arrival("")
        assert isinstance(arrival, layer.Secure)
        arrival.abort()
        assert not gw.gateway._greeting
        server = await asyncio.get_running_loop().create_server(lambda: arrival, NAME, 0)
        client = await connect(NAME, server.sockets[0].getsockname()[1])
        assert await client.rest() == b""
        await client.close()
        server.close()


@pytest.mark.unmeasured
def test_little_stays_with_a_connection(authority: trustme.CA, secure: Secure, tmp_path: Path) -> None:
    """Of the memory that a request of a megabyte took: some 16 KiB, where a buffer of its own would be 256. What a heap
    grows by anyway (3 MiB were seen) is shared by all of them."""
    issued = authority.issue_cert(NAME)
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(issued.private_key_pem.bytes())
    config = f"""\
listen: ["{NAME}:0", {{address: "{NAME}:0", tls: {{cert: cert.pem, key: key.pem}}}}]
upstreams: {{mock: {{provider: mock}}}}
gateways: {{default: {{auth: none, models: {{"*": mock}}}}}}
"""
    body = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "%b"}]}' % (b"x" * MIB)
    request = post("/v1/chat/completions", body)

    def ask(sock: ssl.SSLSocket) -> None:
        sock.sendall(request)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")

    with Serve(tmp_path, config, arguments=()) as gateway:
        port = int(gateway.err.find(r" https://127\.0\.0\.1:(\d+)$")[1])
        (worker,) = gateway.workers

        def taken() -> int:
            text = Path(f"/proc/{worker}/smaps_rollup").read_text()
            return int(text[text.index("Rss:") + 4 :].split()[0]) * 1024

        socks: list[ssl.SSLSocket] = []
        try:
            for number in range(65):
                if number == 5:  # by now the worker has all that it needs for one
                    before = taken()
                raw = socket.create_connection((NAME, port), timeout=LIMIT)
                socks.append(secure[1].wrap_socket(raw, server_hostname=NAME))
                ask(socks[-1])
            assert (taken() - before) / 60 < 100 * 1024
        finally:
            for sock in socks:
                sock.close()


# upstreams ------------------------------------------------------------------------------------------------------------


async def test_an_idle_upstream_that_leaves_without_a_goodbye_is_not_asked_again(authority: trustme.CA) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    async with stub(ssl=context) as up, running(splicing(f"https://{NAME}:{up.port}", tls=UNVERIFIED)) as gw:
        assert (await gw.ask(get("/x"))).status == 200
        socket_ = up.connections[0].writer.get_extra_info("socket")
        raw = socket.socket(fileno=socket.dup(socket_.fileno()))
        raw.shutdown(socket.SHUT_WR)
        raw.close()
        await until(lambda: not gw.pool.idle, "the connection left the pool")
        assert (await gw.ask(post("/x", b"not twice"))).status == 200
        assert len(up.connections) == 2


async def test_an_upstream_whose_records_are_forged_has_cut_its_answer(authority: trustme.CA) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = Peer(Client(reader, writer), context, is_server=True)
        await upstream.raw.send(await upstream.greet())
        await upstream.read()
        begins = upstream.sealed(b"HTTP/1.1 200 OK\r\n\r\nhello")
        forged = bytearray(upstream.sealed(b" world"))
        forged[-1] ^= 1
        writer.write(begins + forged + upstream.goodbye())
        writer.close()

    server = await asyncio.start_server(serve, NAME, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with running(splicing(f"https://{NAME}:{port}", tls=UNVERIFIED)) as gw:
            client = await gw.connect()
            await client.send(get("/x"))
            with pytest.raises(ConnectionResetError):
                await client.rest()
            record = await gw.record()
            assert (record["status"], record["end"], record["error"]) == (200, "cut", "upstream_cut")
    finally:
        server.close()


async def test_an_upstream_is_told_why_its_certificate_is_not_accepted(authority: trustme.CA) -> None:
    """By TLS's own alert, in its log."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(NAME).configure_cert(context)
    told: list[str | None] = []
    with accepting(context, told) as port:
        async with running(splicing(f"https://{NAME}:{port}")) as gw:
            answer = await gw.ask(get("/x"))
            assert answer.status == 502
            assert "certificate was not accepted" in answer.json()["error"]["message"]
            await until(lambda: told, "the alert")
    assert told == ["TLSV1_ALERT_UNKNOWN_CA"]


@contextmanager
def accepting(context: ssl.SSLContext, told: list[str | None]) -> Iterator[int]:
    """The port of a server that takes one connection; `told` gets why its handshake failed."""
    with socket.create_server((NAME, 0)) as listener:
        listener.settimeout(LIMIT)

        def serve() -> None:
            sock, _ = listener.accept()
            sock.settimeout(LIMIT)
            try:
                with context.wrap_socket(sock, server_side=True) as wrapped:
                    wrapped.recv(1)
            except ssl.SSLError as error:
                told.append(error.reason)
            finally:
                sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            thread.join()


async def test_a_handshake_that_an_upstream_breaks_off(authority: trustme.CA) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, NAME, 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with running(splicing(f"https://{NAME}:{port}", tls=UNVERIFIED)) as gw:
            answer = await gw.ask(get("/x"))
            assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_failed")
            message = answer.json()["error"]["message"]
            assert message == "the upstream could not be connected to: connection reset by peer"
    finally:
        server.close()


async def test_what_was_written_is_bounded_by_the_socket(secure: Secure) -> None:
    """A client that does not read: its upstream is paused, and the protocol above hears of it through TLS."""
    async with stub(ok(bytes(8 * MIB))) as up, running(splicing(up.url), buffer=4096, secure=secure) as gw:
        client = await gw.connect(buffer=4096)
        client.stop_reading()
        client.writer.write(get("/x"))
        await until(lambda: gw.gateway.slow, "it is slow")
        (connection,) = gw.gateway.clients
        assert isinstance(connection, ClientConnection)
        assert connection.write_paused
        client.read_on()
        assert (await client.answer()).body == bytes(8 * MIB)
        assert not connection.write_paused
