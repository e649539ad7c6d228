"""Clients that come with TLS: what they are offered, how a handshake fails, that nothing which breaks looks finished,
and that a certificate is renewed without anybody noticing."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import socket
import ssl
import time
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from fakes import (
    LIMIT,
    Answer,
    Client,
    Connection,
    Running,
    Seen,
    chunked,
    connect,
    get,
    ok,
    post,
    random_pieces,
    running,
    serving,
    splicing,
    stub,
    until,
)
from load import load
from openai import DefaultHttpxClient, OpenAI
from processes import PATIENCE, Command, Serve

from aigw import tls
from aigw.config import store

CHAT_PATH = "/v1/chat/completions"
NAME = "127.0.0.1"
LARGE = 8 * 1024 * 1024  # of an answer
BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n"
Secure = tuple[ssl.SSLContext, ssl.SSLContext]


def pair(authority: trustme.CA, **more: Any) -> tuple[str, str]:
    """The PEM text of a certificate and its key."""
    issued = authority.issue_cert(NAME, "localhost", **more)
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems).decode(), issued.private_key_pem.bytes().decode()


def trust(*authorities: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for authority in authorities:
        authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Secure:
    return tls.server_context(*pair(authority)), trust(authority)


# clients that block, on a thread: they tell a break from an end as OpenSSL does ---------------------------------------


def dial(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A connection with its handshake done, whose kernel holds little of what is not read. An end without TLS's
    goodbye is an error to it."""
    sock = socket.socket()
    try:
        sock.settimeout(LIMIT)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((NAME, port))
        return context.wrap_socket(sock, server_hostname=NAME, suppress_ragged_eofs=False)
    except BaseException:
        sock.close()
        raise


def all_of(sock: socket.socket) -> tuple[bytes, str]:
    """What comes until the end, and how it ends: end, or the name of the error."""
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except OSError as error:
        return found, type(error).__name__
    return found, "end"


def asked(port: int, context: ssl.SSLContext, request: bytes) -> tuple[bytes, str]:
    with dial(port, context) as sock:
        sock.sendall(request)
        return all_of(sock)


# what is offered ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_versions_and_the_protocol(version: ssl.TLSVersion, authority: trustme.CA, secure: Secure) -> None:
    context = trust(authority)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])

    def look(port: int) -> tuple[str | None, str | None]:
        with dial(port, context) as sock:
            return sock.version(), sock.selected_alpn_protocol()

    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        assert await asyncio.to_thread(look, gw.port) == (version.name.replace("_", "."), "http/1.1")
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert (await gw.record())["client"] == NAME
        assert gw.log == []


async def test_older_versions_are_refused_with_an_alert(authority: trustme.CA, secure: Secure) -> None:
    context = trust(authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the very thing that is shown here
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        with pytest.raises(ssl.SSLError) as caught:
            await asyncio.to_thread(dial, gw.port, context)
        assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"
        assert gw.log == ["a TLS handshake with 127.0.0.1 failed: unsupported protocol"]


@pytest.mark.parametrize("size", [1, None])
async def test_a_request_and_a_stream_in_pieces(size: int | None, secure: Secure) -> None:
    """Each part in a record of its own."""
    events = [b"data: %d\n\n" % number for number in range(20)]
    request = post(CHAT_PATH, b'{"model": "gpt-4o", "stream": true}')

    async def handler(connection: Connection, seen: Seen) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        await connection.send(head, *(b"%x\r\n%b\r\n" % (len(event), event) for event in events), b"0\r\n\r\n")

    async with stub(handler) as up, running(serving(up.url), secure=secure) as gw:
        client = await gw.connect()
        for _ in range(2):
            await client.send(
                *([request[i : i + 1] for i in range(len(request))] if size else random_pieces(request, 7))
            )
            assert (await client.answer()).raw.endswith(b"\r\n\r\n" + chunked(*events))
        assert up.last.body == b'{"model": "gpt-4o", "stream": true}'


async def test_megabytes_both_ways(secure: Secure) -> None:
    async def echo(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(seen.body))

    body = bytes(range(256)) * 16384
    async with stub(echo) as up, running(splicing(up.url), secure=secure) as gw:
        assert (await gw.ask(post("/x", body))).body == body


# handshakes that fail -------------------------------------------------------------------------------------------------


async def test_a_handshake_that_never_ends_is_cut(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url, timeouts={"handshake": 0.1}), secure=secure) as gw:
        client = await connect(NAME, gw.port)
        await client.send(b"\x16\x03\x01")  # a record begins
        assert await client.rest() == b""
        await client.close()
        assert gw.log == ["a TLS handshake with 127.0.0.1 failed: it took longer than timeouts.handshake"]


async def test_plain_http_is_told_so(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        for _ in range(3):
            client = await connect(NAME, gw.port)
            answer = await client.ask(get("/v1/models"))
            assert answer.status == 400
            assert answer.json()["error"]["message"] == "this port speaks HTTPS; write https:// in the URL"
            assert await client.rest() == b""
            await client.close()
        assert gw.log == ["a TLS handshake with 127.0.0.1 failed: plain HTTP came"]  # one line a second
        assert [record["client"] for record in gw.records] == [NAME] * 3
        assert not up.seen


@pytest.mark.parametrize("sent", [b"\0" * 600, b"SSH-2.0-OpenSSH\r\n", b""])
async def test_what_is_no_tls_ends_the_connection(sent: bytes, secure: Secure) -> None:
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        client = await connect(NAME, gw.port)
        await client.send(sent)
        client.writer.write_eof()
        assert await client.ended() == b""
        await client.close()
        await until(lambda: not gw.gateway._greeting, "the handshake given up")
        assert len(gw.log) == (1 if sent else 0)  # who just leaves is not worth a line
        assert (await gw.ask(post(CHAT_PATH))).status == 200


async def test_too_many_clients_are_told_over_tls(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url) | {"bounds": BOUNDS | {"connections": 1}}, secure=secure) as gw:
        await gw.connect()
        await until(lambda: gw.gateway.clients, "the first")
        found, end = await asyncio.to_thread(asked, gw.port, gw.trust, b"")
        assert Answer(found).status == 503
        assert end == "end"


async def test_those_who_greet_slowly_make_room(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url) | {"bounds": BOUNDS | {"connections": 1}}, secure=secure) as gw:
        most = gw.gateway._room()
        silent = [await connect(NAME, gw.port) for _ in range(most)]
        assert await silent[0].ended() == b""
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert len(gw.gateway._greeting) < most
        for client in silent:
            client.writer.transport.abort()
        await until(lambda: not gw.gateway._greeting, "all gone")


BOUNDS = serving("http://127.0.0.1:1")["bounds"]


# ends -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begins", "breaks", "ends"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nhello", False, {"end"}),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", True, {"ConnectionResetError", "SSLEOFError"}),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", True, {"end"}),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", True, {"end"}),
    ],
)
async def test_a_cut_answer_never_looks_finished(begins: bytes, breaks: bool, ends: set[str], secure: Secure) -> None:
    """What ends with the connection ends with TLS's goodbye, which nobody on the way can forge; a break has none."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(begins)
        if breaks:
            connection.reset()
        else:
            connection.close()

    async with stub(handler) as up, running(splicing(up.url), secure=secure) as gw:
        found, end = await asyncio.to_thread(asked, gw.port, gw.trust, get("/x"))
        assert end in ends
        assert not found.endswith(b"0\r\n\r\n")
        assert (await gw.record())["end"] == ("cut" if breaks else "ok")
        if not breaks:
            assert found.endswith(b"hello")


@pytest.mark.parametrize(
    ("request_", "status"), [(b"NONSENSE\r\n\r\n", 400), (get("/__/ping", b"connection: close"), 200)]
)
async def test_our_own_last_answer_ends_with_a_goodbye(request_: bytes, status: int, secure: Secure) -> None:
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        found, end = await asyncio.to_thread(asked, gw.port, gw.trust, request_)
        assert (Answer(found).status, end) == (status, "end")


async def test_an_idle_client_is_closed_with_a_goodbye(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url, timeouts={"keepalive": 0.1}), secure=secure) as gw:
        assert await asyncio.to_thread(asked, gw.port, gw.trust, b"") == (b"", "end")


def says_goodbye(sock: ssl.SSLSocket) -> None:
    sock.setblocking(False)
    with suppress(ssl.SSLError):  # it is sent, and what comes is no answer to it
        sock.unwrap()


def sends_fin(sock: ssl.SSLSocket) -> None:
    """Nothing of TLS goes with it."""
    sock.shutdown(socket.SHUT_WR)


def resets(sock: ssl.SSLSocket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("leave", [says_goodbye, sends_fin, resets])
async def test_a_client_that_hangs_up_stops_the_upstream(
    leave: Callable[[ssl.SSLSocket], None], is_slow: bool, secure: Secure
) -> None:
    """Also one that reads no more, and leaves megabytes behind."""
    begins = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % LARGE + bytes(LARGE) if is_slow else BEGUN

    async def handler(connection: Connection, seen: Seen) -> None:
        connection.writer.write(begins)
        await connection.gone()

    async with stub(handler) as up, running(splicing(up.url), buffer=4096, secure=secure) as gw:
        assert gw.trust is not None
        with await asyncio.to_thread(dial, gw.port, gw.trust) as sock:
            sock.sendall(get("/x"))
            await until(lambda: up.connections and bool(gw.gateway.slow) == is_slow, "the answer under way")
            if not is_slow:
                await asyncio.to_thread(sock.recv, 1)
            leave(sock)
            await until(lambda: up.connections[0].closed.is_set(), "the upstream's connection closed")
            record = await gw.record()
            assert (record["status"], record["end"]) == (200, "client_gone")


# a client that reads slowly -------------------------------------------------------------------------------------------


async def slow_client(gw: Running) -> Client:
    """One that has asked for megabytes and takes none of them."""
    client = await gw.connect(buffer=4096)
    client.stop_reading()
    client.writer.write(get("/x"))
    await until(lambda: gw.gateway.slow, "it is slow")
    return client


async def test_what_waits_for_a_slow_client_is_bounded(secure: Secure) -> None:
    async with stub(ok(bytes(LARGE))) as up, running(splicing(up.url), buffer=4096, secure=secure) as gw:
        client = await slow_client(gw)
        (connection,) = gw.gateway.clients
        limit, read = 64 * 1024, 256_000  # where the loop says stop, and what it may read at once
        assert connection.transport.get_write_buffer_size() < limit + read + 4096
        client.read_on()
        assert len((await client.answer()).body) == LARGE


async def test_a_slow_client_that_takes_some_of_it_makes_progress(secure: Secure) -> None:
    async with stub(ok(bytes(LARGE))) as up, running(splicing(up.url), buffer=4096, secure=secure) as gw:
        client = await slow_client(gw)
        (connection,) = gw.gateway.clients
        descriptor = client.writer.get_extra_info("socket").fileno()

        def taken() -> bool:
            """Since the sweep looked last."""
            if select.select([descriptor], [], [], 0)[0]:
                os.read(descriptor, 4096)
            return connection.transport.get_write_buffer_size() < connection._buffer_size

        await until(taken, "the kernel takes some of it")
        deadline = connection.deadline
        connection.look(time.monotonic())
        assert connection.deadline > deadline
        client.reset()
        assert (await gw.record())["end"] == "client_gone"


# the end of a worker, and of a connection -----------------------------------------------------------------------------


async def test_drain_waits_for_answers_and_not_for_handshakes(secure: Secure) -> None:
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(BEGUN)
        await go.wait()
        await connection.send(chunked(b"last"))

    async with stub(handler) as up, running(serving(up.url), secure=secure) as gw:
        silent = await connect(NAME, gw.port)
        idle, busy = await gw.connect(), await gw.connect()
        await idle.ask(get("/__/ping"))
        await busy.send(post(CHAT_PATH))
        await busy.read(b"first\r\n")
        draining = asyncio.create_task(gw.gateway.drain(20.0))
        assert await idle.rest() == b""
        assert await silent.ended() == b""  # a second is more than a handshake takes
        await silent.close()
        go.set()
        assert await busy.read(b"0\r\n\r\n") == chunked(b"last")
        assert await draining == 0
        assert await busy.rest() == b""


async def test_a_connection_needs_no_collector(secure: Secure) -> None:
    async with stub() as up, running(serving(up.url), secure=secure) as gw:
        client = await gw.connect()
        await client.ask(post(CHAT_PATH))
        (connection,) = gw.gateway.clients
        gone = weakref.ref(connection.transport.get_extra_info("ssl_object"))
        gc.collect()
        gc.disable()
        try:
            del connection
            await client.close()
            await until(lambda: gone() is None, "it is freed")
        finally:
            gc.enable()


# what cannot be used ------------------------------------------------------------------------------------------------


def encrypted(pem: str) -> str:
    key = serialization.load_pem_private_key(pem.encode(), None)
    how = serialization.BestAvailableEncryption(b"password")
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, how).decode()


def broken(pem: str) -> str:
    lines = pem.splitlines()
    return "\n".join([lines[0], "AAAA" + lines[1][4:], *lines[2:]])


CERT, KEY = "1:46 listen.tls.cert", "1:61 listen.tls.key"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda cert, key, _: (None, key), f"{CERT}: the file does not exist; check the path"),
        (lambda cert, key, _: (cert, None), f"{KEY}: the file does not exist; check the path"),
        (lambda cert, key, _: (key, cert), f"{CERT}: the file holds no certificate in PEM form"),
        (lambda cert, key, _: (cert, cert), f"{KEY}: the file holds no private key in PEM form"),
        (lambda cert, key, other: (cert, other), f"{KEY}: the file does not belong to the certificate; renew both"),
        (lambda cert, key, _: (cert, encrypted(key)), f"{KEY}: the file is encrypted, and there is nobody to ask"),
        (lambda cert, key, _: (broken(cert), key), f"{CERT}: the file holds a certificate that cannot be used ("),
        (lambda cert, key, _: (cert, broken(key)), f"{KEY}: the file holds a private key that cannot be used ("),
    ],
)
def test_a_pair_that_cannot_be_used(
    change: Callable[[str, str, str], tuple[str | None, str | None]],
    message: str,
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    pair_ = change(*pair(authority), pair(authority)[1])
    for name, text in zip(("cert.pem", "key.pem"), pair_, strict=True):
        if text is not None:
            (tmp_path / name).write_text(text)
    config = tmp_path / "config.yaml"
    config.write_text('listen: {address: "127.0.0.1:0", tls: {cert: cert.pem, key: key.pem}}\ngateways: {}\n')
    with pytest.raises(store.ConfigError) as caught:
        store.load(config, {})
    (problem,) = map(str, caught.value.problems)
    assert problem.startswith(f"{config}:{message}")


def test_with_such_a_pair_it_does_not_start(authority: trustme.CA, tmp_path: Path) -> None:
    write(tmp_path, pair(authority)[0], pair(authority)[1])
    (tmp_path / "config.yaml").write_text(CONFIG)
    with Command("serve", "--admin-listen", "127.0.0.1:0", folder=tmp_path) as command:
        assert command.end() == 1
        assert "config.yaml:3:57 listen[1].tls.key: the file does not belong" in command.err.data.decode()


def test_when_a_certificate_is_valid(authority: trustme.CA) -> None:
    for begin, end in ((datetime(1999, 1, 1), datetime(2049, 12, 31)), (datetime(2049, 6, 1), datetime(2050, 1, 1))):
        cert, _ = pair(authority, not_before=begin, not_after=end)
        assert tls.validity(cert) == (begin.replace(tzinfo=UTC).timestamp(), end.replace(tzinfo=UTC).timestamp())


# a whole gateway ------------------------------------------------------------------------------------------------------

CONFIG = """\
listen:
  - 127.0.0.1:0
  - {address: "127.0.0.1:0", tls: {cert: cert.pem, key: key.pem}}
upstreams: {mock: {provider: mock}}
gateways: {default: {auth: none, models: {"*": mock}}}
"""


def write(folder: Path, cert: str, key: str | None = None) -> None:
    (folder / "cert.pem").write_text(cert)
    if key is not None:
        (folder / "key.pem").write_text(key)


def presented(port: int) -> str:
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate((NAME, port), timeout=PATIENCE).strip()


async def reload(gateway: Serve, says: str) -> None:
    gateway.signal(signal.SIGHUP)
    await asyncio.to_thread(gateway.err.find, says)


@pytest.mark.unmeasured
async def test_a_certificate_is_renewed_under_load(authority: trustme.CA, tmp_path: Path) -> None:
    cert, key = pair(authority)
    write(tmp_path, cert, key)
    context = trust(authority)
    with Serve(tmp_path, CONFIG, arguments=()) as gateway:
        port = int(gateway.err.find(r" https://127\.0\.0\.1:(\d+)$")[1])
        http = DefaultHttpxClient(verify=context)
        with OpenAI(base_url=f"https://localhost:{port}/v1", api_key="x", max_retries=0, http_client=http) as client:
            messages: Any = [{"role": "user", "content": "Hi"}]
            assert client.chat.completions.create(model="gpt-4o", messages=messages).choices[0].message.content
            stream = client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
            assert list(stream)[-1].choices[0].finish_reason == "stop"

        old = await connect(NAME, port, trust=context)
        assert (await old.ask(get("/__/ping"))).status == 200
        async with load(port, clients=10, trust=context) as run:
            renewed, new_key = pair(authority)
            write(tmp_path, renewed, new_key)
            await reload(gateway, "generation 2 serves")
            assert await asyncio.to_thread(presented, port) == tls.first(renewed)
            before = run.answered
            await until(lambda: run.answered > before + 10, "they go on")

            # a pair that does not match is not obeyed, and nothing changes
            write(tmp_path, cert)
            await reload(gateway, "the new config is not obeyed")
            gateway.err.find(r"config.yaml:3:57 listen\[1\].tls.key: the file does not belong to the certificate")
            assert await asyncio.to_thread(presented, port) == tls.first(renewed)

            # one that has expired serves, with a warning
            expired, its_key = pair(authority, not_before=datetime(2020, 1, 1), not_after=datetime(2020, 2, 1))
            write(tmp_path, expired, its_key)
            await reload(gateway, "generation 3 serves")
            assert gateway.err.find(r"warning: .*config.yaml:3:42 listen\[1\].tls.cert: .* has expired on 2020-02-01")
            assert await asyncio.to_thread(presented, port) == tls.first(expired)
        assert run.failed == []
        assert (await old.ask(get("/__/ping"))).status == 200
        await old.close()

        # TLS is taken from the address, and put on it again
        file = tmp_path / "config.yaml"
        file.write_text(CONFIG.replace(", tls: {cert: cert.pem, key: key.pem}", ""))
        await reload(gateway, "generation 4 serves")
        plain = await connect(NAME, port)
        assert (await plain.ask(get("/__/ping"))).status == 200
        await plain.close()
        file.write_text(CONFIG)
        await reload(gateway, "generation 5 serves")
        assert await asyncio.to_thread(presented, port) == tls.first(expired)

        assert await asyncio.to_thread(gateway.stop) == 0
        told = gateway.err.data + gateway.out.data
        assert b"Traceback" not in told
        assert b"PRIVATE KEY" not in told
