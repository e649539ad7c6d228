"""Clients that come over a unix socket: its file, from the making to the end, and what differs for them."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fakes import Connection, Seen, chunked, get, ok, post, running, serving, splicing, stub
from processes import PATIENCE, Command, Serve

from aigw import listen

CONFIG = """\
workers: 2
listen: {listen}
upstreams: {{mock: {{provider: mock}}}}
gateways: {{default: {{auth: none, models: {{"*": mock}}}}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


# the socket -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_its_mode_is_set_from_the_first_moment_on(mode: int, path: str) -> None:
    before = os.umask(0o022)
    try:
        with closing(listen.bind_unix(path, mode)):
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_file_that_a_dead_process_left_is_replaced(path: str) -> None:
    listen.bind_unix(path).close()
    assert os.path.exists(path)
    with closing(listen.bind_unix(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_socket_that_somebody_listens_on_is_left_alone(path: str) -> None:
    with closing(listen.bind_unix(path)):
        found = os.stat(path).st_ino
        with pytest.raises(listen.ListenError) as caught:
            listen.bind(f"unix:{path}")
        assert str(caught.value) == (f"unix:{path}: another process listens there; stop it, or choose another path")
        assert os.stat(path).st_ino == found


def test_a_full_queue_is_no_dead_process(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waits:
        busy.bind(path)
        busy.listen(0)
        waits.connect(path)
        with pytest.raises(listen.ListenError, match="another process listens there"):
            listen.bind_unix(path)


def test_a_file_that_is_no_socket_stays(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(listen.ListenError, match="there is a file that is no socket; choose another path"):
        listen.bind_unix(path)
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/" + "x" * listen.MAX_PATH, f"the path has more than {listen.MAX_PATH} bytes; choose a shorter one"),
        ("/no/such/folder/s", "No such file or directory; its folder must be there, and writable"),
        ("/", "a unix socket is named by an absolute path: unix:/run/name.sock"),
        ("s", "a unix socket is named by an absolute path: unix:/run/name.sock"),
        ("/a\0b", "a unix socket is named by an absolute path: unix:/run/name.sock"),
    ],
)
def test_bad_paths(name: str, message: str) -> None:
    with pytest.raises(listen.ListenError) as caught:
        listen.bind(f"unix:{name}")
    assert str(caught.value) == f"unix:{name}: {message}"


@pytest.fixture
def listeners() -> Iterator[listen.Listeners]:
    made = listen.Listeners()
    yield made
    made.close()


def test_the_file_goes_with_its_address(path: str, listeners: listen.Listeners) -> None:
    addresses = ["127.0.0.1:0", f"unix:{path}"]
    listeners.keep(listeners.bind(addresses, 2))
    assert listeners.names[1] == f"unix:{path}"
    (entry,) = [entry for entry in listeners.all if entry.file is not None]
    assert entry.owner is None  # one for all workers
    found = os.stat(path).st_ino
    listeners.keep(listeners.bind(addresses, 3))
    assert os.stat(path).st_ino == found  # it stays what it is
    unwanted = listeners.bind([*addresses, f"unix:{path}2"], 3)
    assert os.path.exists(f"{path}2")
    listeners.release(unwanted)
    assert not os.path.exists(f"{path}2")
    assert os.stat(path).st_ino == found
    listeners.keep(listeners.bind(addresses[:1], 3))
    assert not os.path.exists(path)


def test_another_s_file_at_its_place_stays(path: str, listeners: listen.Listeners) -> None:
    listeners.keep(listeners.bind([f"unix:{path}"], 1))
    os.unlink(path)
    with closing(listen.bind_unix(path)):
        listeners.close()
        assert os.path.exists(path)


# what differs for its clients -----------------------------------------------------------------------------------------


async def test_an_exchange_and_its_record(path: str) -> None:
    async with stub() as up, running(serving(up.url), path=path) as gw:
        assert (await gw.ask(post("/v1/chat/completions"))).status == 200
        assert (await gw.record())["client"] == "unix"
        assert (await gw.ask(b"NONSENSE\r\n\r\n")).status == 400
        assert (await gw.record(1))["client"] == "unix"


@pytest.mark.parametrize("kind", [b"text/plain", b"text/event-stream"])
@pytest.mark.parametrize("breaks", [False, True])
async def test_what_ends_with_its_connection_comes_in_chunks(breaks: bool, kind: bytes, path: str) -> None:
    """There is no RST on a unix socket: only so can a break be told from an end."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n\r\n", b"data: he", b"llo\n")
        if breaks:
            connection.reset()
        else:
            connection.close()

    async with stub(handler) as up, running(serving(up.url), path=path) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions"))
        head = await client.read(b"\r\n\r\n")
        assert b"transfer-encoding: chunked\r\n" in head
        assert b"connection: close" not in head
        if breaks:
            found = await client.rest()
            assert found.startswith(b"8\r\ndata: he\r\n"[: len(found)])
            assert not found.endswith(b"0\r\n\r\n")
            assert b"error" not in found  # it may have broken within an event
        else:
            found = await client.read(b"0\r\n\r\n")
            assert found in (chunked(b"data: he", b"llo\n"), chunked(b"data: hello\n"))
            assert (await client.ask(get("/__/ping"))).status == 200
        assert (await gw.record())["end"] == ("cut" if breaks else "ok")


async def test_http_1_0_gets_it_as_it_is(path: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        connection.close()

    async with stub(handler) as up, running(splicing(up.url), path=path) as gw:
        client = await gw.connect()
        await client.send(b"GET /x HTTP/1.0\r\n\r\n")
        assert (await client.rest()).endswith(b"\r\n\r\nhello")


async def test_a_refusal_that_closes_with_its_connection(path: str) -> None:
    """A 403 is read before it is passed on; it is framed as before."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(b"HTTP/1.1 403 Forbidden\r\n\r\nnot you")
        connection.close()

    async with stub(handler) as up, running(serving(up.url, api_key="sk-x"), path=path) as gw:
        answer = await gw.ask(post("/v1/chat/completions"))
        assert (answer.status, answer.body) == (403, b"not you")


async def test_a_client_that_hangs_up_stops_the_upstream(path: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(b"x")[:-1])
        await connection.gone()

    async with stub(handler) as up, running(serving(up.url), path=path) as gw:
        client = await gw.connect()
        await client.send(post("/v1/chat/completions"))
        await client.read(b"\r\n\r\n")
        await client.close()
        assert (await gw.record())["end"] == "client_gone"


# processes ------------------------------------------------------------------------------------------------------------


def ping(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(get("/__/ping", b"connection: close"))
        found = b""
        while piece := sock.recv(65536):
            found += piece
    return found


def holders(path: str) -> int:
    """How many processes of this machine hold the listening socket at `path`."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if fields[-1] == path and fields[3] == "00010000":  # it accepts
            inode = fields[6]
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:  # it ended just now
            continue
        count += f"socket:[{inode}]" in names
    return count


def test_from_start_to_end(path: str, tmp_path: Path) -> None:
    config = CONFIG.format(listen=f'["127.0.0.1:0", "unix:{path}"]')
    with Serve(tmp_path, config, arguments=()) as gateway:
        gateway.err.find(f"unix:{path}$")
        assert ping(path).startswith(b"HTTP/1.1 200 OK\r\n")
        assert holders(path) == 3  # the supervisor, and both workers
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o666

        # another gateway leaves it alone
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.yaml").write_text(CONFIG.format(listen=f"unix:{path}"))
        with Command("serve", "--admin-listen", "127.0.0.1:0", folder=tmp_path / "other") as other:
            assert other.end() == 1
            assert f"error: unix:{path}: another process listens there" in other.err.data.decode()

        # it comes and goes by reload
        file = tmp_path / "config.yaml"
        file.write_text(config.replace(path, f"{path}2"))
        gateway.signal(signal.SIGHUP)
        gateway.err.find("generation 2 serves")
        assert not os.path.exists(path)
        assert ping(f"{path}2").startswith(b"HTTP/1.1 200 OK\r\n")
        file.write_text(config)
        gateway.signal(signal.SIGHUP)
        gateway.err.find("generation 3 serves")
        assert not os.path.exists(f"{path}2")
        assert ping(path).startswith(b"HTTP/1.1 200 OK\r\n")

        # the file of a gateway that was killed does no harm
        for pid in gateway.processes():
            os.kill(pid, signal.SIGKILL)
        gateway.end()
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    with Serve(tmp_path, config, arguments=()) as gateway:
        assert ping(path).startswith(b"HTTP/1.1 200 OK\r\n")
        assert gateway.stop() == 0
        assert not os.path.exists(path)
        assert not re.search("Traceback", gateway.err.data.decode())
