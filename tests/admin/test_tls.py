"""The admin API over TLS: its certificate, how that is renewed, and how the command line comes to believe it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from admin.calls import YAML, AdminServe
from admin.test_server import Echo, get
from fakes import until
from processes import Command

from aigw.admin import server
from aigw.admin.server import Server

NAME = "127.0.0.1"
CONFIG = """\
upstreams: {mock: {provider: mock}}
gateways: {default: {auth: none, models: {"*": mock}}}
"""
PAIR = ", tls: {cert: cert.pem, key: key.pem}"
SECURE = CONFIG + f'admin: {{listen: {{address: "127.0.0.1:0"{PAIR}}}, token: secret-token}}\n'


def write(folder: Path, authority: trustme.CA, name: str = NAME, *, key: bool = True) -> None:
    issued = authority.issue_cert(name)
    (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    if key:
        issued.private_key_pem.write_to_path(str(folder / "key.pem"))


def trust(*authorities: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for authority in authorities:
        authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def authorities() -> tuple[trustme.CA, trustme.CA]:
    return trustme.CA(), trustme.CA()


def said(*words: str, folder: Path, **environ: str) -> tuple[int, str]:
    """Exit status and stderr of `aigw status`."""
    with Command("status", *words, folder=folder, environ=environ) as command:
        return command.end(), command.err.data.decode()


def test_from_start_to_end(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]) -> None:
    one, other = authorities
    write(tmp_path, one)
    one.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with AdminServe(tmp_path, SECURE, token="secret-token", trust=trust(one)) as gateway:
        url = f"https://127.0.0.1:{gateway.call.port}"
        found = gateway.call("GET", "/status")
        assert (found.status, found.json["admin"]) == (200, [url])

        # whom the command line believes
        environ = {"AIGW_ADMIN_URL": url, "AIGW_ADMIN_CA": "ca.pem", "AIGW_ADMIN_TOKEN": "secret-token"}
        assert said(folder=tmp_path, **environ) == (0, "")
        status, error = said("--admin", url, folder=tmp_path, AIGW_ADMIN_TOKEN="secret-token")
        assert status == 1
        assert f"the certificate of the admin API at {url} is not accepted: unable to get local issuer" in error
        assert "--ca names the file" in error
        assert gateway.err.find("admin: a TLS handshake failed: tlsv1 alert unknown ca")
        status, error = said("--admin", url.replace("https", "http"), folder=tmp_path, AIGW_ADMIN_TOKEN="secret-token")
        assert status == 1
        assert "does it speak HTTPS?" in error

        # a pair that does not match changes nothing
        write(tmp_path, other, key=False)
        refused = gateway.call("POST", "/reload")
        assert refused.status == 422
        (detail,) = refused.json["error"]["details"]
        place = "config.yaml:3:69 admin.listen.tls.key"
        assert f"{place}: the file does not belong to the certificate; renew both together" in detail["message"]

        # a renewed one is the next connection's, at the port that is there
        write(tmp_path, other)
        assert gateway.call("POST", "/reload").status == 200
        with pytest.raises(ssl.SSLCertVerificationError):
            gateway.call("GET", "/status")
        gateway.call.trust = trust(other)
        assert gateway.call("GET", "/status").status == 200

        # without TLS, and with it again, likewise
        plain = SECURE.replace(PAIR, "")
        assert gateway.call("PUT", "/config", plain, YAML).status == 200
        gateway.call.trust = None
        assert gateway.call("GET", "/status").json["admin"] == [url.replace("https", "http")]
        assert gateway.call("PUT", "/config", SECURE, YAML).status == 200
        gateway.call.trust = trust(other)
        assert gateway.call("GET", "/status").json["admin"] == [url]

        assert gateway.stop() == 0
        told = gateway.err.data + gateway.out.data + gateway.call.seen
        assert b"PRIVATE KEY" not in told
        assert b"Traceback" not in told


def test_the_config_s_own_certificate_is_believed(tmp_path: Path, authorities: tuple[trustme.CA, trustme.CA]) -> None:
    """Whatever name it has: who reads the config that the gateway serves knows the very certificate."""
    one, _ = authorities
    write(tmp_path, one, "gateway.example")
    with AdminServe(tmp_path, SECURE, token="secret-token", trust=trust(one)) as gateway:
        config = SECURE.replace("127.0.0.1:0", f"127.0.0.1:{gateway.call.port}")
        (tmp_path / "here.yaml").write_text(config)
        assert said("--config", "here.yaml", folder=tmp_path) == (0, "")
        write(tmp_path, one, "gateway.example")  # from the same authority, and still another one
        status, error = said("--config", "here.yaml", folder=tmp_path)
        assert status == 1
        assert "is not accepted" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "ca.pem cannot be read: No such file or directory"),
        ("nothing", "ca.pem holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"),
    ],
)
def test_a_ca_file_that_is_none(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)
    assert said("--admin", "https://127.0.0.1:1", "--ca", "ca.pem", folder=tmp_path) == (1, message + "\n")


# the listener itself, on the supervisor's own kind of loop ------------------------------------------------------------


@asynccontextmanager
async def serving(authority: trustme.CA) -> AsyncIterator[tuple[Server, int]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(context)
    [sock] = server.bind("127.0.0.1:0")
    running = Server(Echo())
    running.context = context
    await running.listen([sock])
    try:
        yield running, sock.getsockname()[1]
    finally:
        await running.close()
        sock.close()


async def dribbled(running: Server, port: int, context: ssl.SSLContext) -> None:
    """Requests in pieces, the last of them refused: all is answered, and ends at once."""
    reader, writer = await asyncio.open_connection(NAME, port, ssl=context, server_hostname=NAME)
    request = get("/a") + get("/b", "connection: close")
    for byte in request:
        writer.write(bytes([byte]))
        await writer.drain()
    data = await reader.read()
    assert [part[:3] for part in data.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]
    writer.close()
    await writer.wait_closed()


async def unfinished(running: Server, port: int, context: ssl.SSLContext) -> None:
    """Handshakes that never end count as connections, and end with the listener."""
    reader, writer = await asyncio.open_connection(NAME, port)
    writer.write(b"\x16\x03\x01")
    await until(lambda: running._connections, "it is known")
    await running.close()
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    assert not running._connections
    writer.close()


async def too_many(running: Server, port: int, context: ssl.SSLContext) -> None:
    silent = [await asyncio.open_connection(NAME, port) for _ in range(server.MAX_CONNECTIONS)]
    await until(lambda: len(running._connections) == server.MAX_CONNECTIONS, "all are known")
    reader, writer = await asyncio.open_connection(NAME, port)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    for _, one in [*silent, (reader, writer)]:
        one.transport.abort()
    await until(lambda: not running._connections, "all are gone")


@pytest.mark.parametrize("deed", [dribbled, unfinished, too_many])
def test_the_listener(
    deed: Callable[[Server, int, ssl.SSLContext], Coroutine[Any, Any, None]],
    authorities: tuple[trustme.CA, trustme.CA],
) -> None:
    faults: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        async with asyncio.timeout(10), serving(authorities[0]) as (running, port):
            await deed(running, port, trust(authorities[0]))

    asyncio.run(run())
    assert not faults
