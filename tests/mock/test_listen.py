"""aigw.mock.listen: a process of its own, with real signals."""

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aigw.mock import Settings, serve

PROGRAM = """
import sys, uvloop
from aigw.mock import Settings, serve
uvloop.run(serve(sys.argv[1], Settings.parse(sys.argv[2]), ready=lambda address: print(address, flush=True)))
"""


@pytest.fixture
def run() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    processes = []

    def run(address: str, words: str = "") -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ask(sock: socket.socket, words: bytes = b"tokens=1") -> bytes:
    sock.settimeout(10)
    sock.sendall(b"GET /ping HTTP/1.1\r\nhost: a\r\nx-mock: %b\r\nconnection: close\r\n\r\n" % words)
    received = b""
    while data := sock.recv(65536):
        received += data
    return received


@pytest.mark.parametrize(("host", "number"), [("127.0.0.1", signal.SIGTERM), ("[::1]", signal.SIGINT)])
def test_serves_until_a_signal(run, host: str, number: signal.Signals) -> None:
    process, address = run(f"{host}:0")
    shown, _, port = address.rpartition(":")
    assert shown == host
    place = (host.strip("[]"), int(port))
    with socket.create_connection(place) as sock, socket.create_connection(place) as idle:
        assert ask(sock).endswith(b'{"status":"ok"}')
        process.send_signal(number)
        idle.settimeout(10)
        assert idle.recv(1) == b""
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")


def test_failures_on_uvloop(run) -> None:
    """The reset needs the socket beneath uvloop's transport; the cut needs its flush before the close."""
    process, address = run("127.0.0.1:0")
    place = ("127.0.0.1", int(address.rpartition(":")[2]))
    with socket.create_connection(place) as sock, pytest.raises(ConnectionResetError):
        ask(sock, b"reset")
    with socket.create_connection(place) as sock:
        assert ask(sock, b"cut-body").endswith(b'\r\n\r\n{"statu')
    with socket.create_connection(place) as sock:
        assert ask(sock, b"latency=0.01").endswith(b'{"status":"ok"}')
    process.terminate()
    assert process.communicate(timeout=10) == ("", "")


def test_a_unix_socket_replaces_a_stale_one_and_is_removed(run, tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    process, address = run(f"unix:{path}")
    assert address == f"unix:{path}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        assert ask(sock).endswith(b'{"status":"ok"}')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        assert ask(sock, b"reset").endswith(b'\r\n\r\n{"statu')
    process.terminate()
    assert process.communicate(timeout=10) == ("", "")
    assert not path.exists()


def test_a_server_that_refuses_holds_its_port_and_refuses(run) -> None:
    process, address = run("127.0.0.1:0", "refuse")
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    process.terminate()
    assert process.communicate(timeout=10) == ("", "")


@pytest.mark.parametrize("address", ["9000", ":9000", "localhost", "localhost:http", "127.0.0.1:70000"])
async def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"expected HOST:PORT, \[IPV6\]:PORT or unix:/PATH, as in 127\.0\.0\.1:9000"):
        await serve(address, Settings())


async def test_a_unix_address_needs_a_path() -> None:
    with pytest.raises(ValueError, match="expected a path behind it, as in unix:/run/mock"):
        await serve("unix:", Settings())


async def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            await serve(f"127.0.0.1:{taken.getsockname()[1]}", Settings())


async def test_served_on_the_loop_of_the_caller() -> None:
    """On asyncio's own loop, in this process: the coroutine ends by the signal and leaves no handler behind."""
    ready = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(serve("localhost:0", Settings(), ready=ready.set_result))
    async with asyncio.timeout(10):
        host, _, port = (await ready).rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        assert await reader.readuntil(b'{"status":"ok"}')
        signal.raise_signal(signal.SIGTERM)
        await task
        writer.close()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
