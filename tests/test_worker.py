"""A worker process spoken to as the supervisor does: by its control channel."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from aigw import process
from aigw.channel import Channel

PATIENCE = 20.0

DOCUMENT: dict[str, Any] = {
    "listen": [{"address": "127.0.0.1:0"}],
    "workers": 1,
    "access_log": "stdout",
    "timeouts": {
        "handshake": 10.0,
        "keepalive": 75.0,
        "request": 30.0,
        "client_read": 60.0,
        "client_write": 60.0,
        "linger": 2.0,
        "total": None,
    },
    "bounds": {
        "head": 32768,
        "headers": 100,
        "url": 16384,
        "body": 33554432,
        "collected": 536870912,
        "connections": 10000,
    },
    "drain": {"delay": 0.0, "timeout": 5.0},
    "answer_headers": {"x-ratelimit": True, "x-aigw": True, "server-timing": True},
    "upstreams": {},
    "gateways": {},
}


class Handle:
    """A started worker and what it said."""

    def __init__(self) -> None:
        self.started = process.start_worker()
        self.said: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.channel = Channel(
            asyncio.get_running_loop(),
            self.started.control,
            lambda message, fds: self.said.put_nowait(message),
            lambda: self.said.put_nowait(None),
        )

    async def ask(self, message: dict[str, Any], fds: list[int] | None = None) -> dict[str, Any] | None:
        self.channel.send(message, fds or ())
        return await asyncio.wait_for(self.said.get(), PATIENCE)

    def apply(self, generation: int, mock_socket: str | None = None, **changes: Any) -> dict[str, Any]:
        document = {**DOCUMENT, **changes}
        return {"apply": {"generation": generation, "document": document, "mock_socket": mock_socket}}

    async def status(self) -> int:
        return await asyncio.to_thread(self.started.process.wait, PATIENCE)


@pytest.fixture
async def worker() -> Any:
    handle = Handle()
    yield handle
    handle.channel.close()
    try:
        await handle.status()
    finally:
        handle.started.process.kill()
        handle.started.records.close()


async def test_documents_are_applied_in_turn_and_the_drain_comes_after(worker: Handle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        worker.channel.send(worker.apply(1), [sock.fileno()])
        address = sock.getsockname()
    worker.channel.send(worker.apply(2))
    worker.channel.send({"drain": {"delay": 0.0, "timeout": 5.0}})
    answers = [await asyncio.wait_for(worker.said.get(), PATIENCE) for _ in range(4)]
    assert answers == [{"ok": 1}, {"ok": 2}, {"drained": 0}, None]
    assert await worker.status() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


async def test_what_cannot_be_applied_is_said_and_the_worker_goes_on(worker: Handle, tmp_path: Path) -> None:
    answer = await worker.ask(worker.apply(1, str(tmp_path / "nowhere" / "mock.sock")))
    assert answer is not None
    assert answer["failed"].startswith("FileNotFoundError (No such file or directory) at ")
    assert await worker.ask(worker.apply(2)) == {"ok": 2}


async def test_why_it_failed_does_not_repeat_the_document(worker: Handle) -> None:
    broken = {"sk-canary": {"provider": "sk-canary"}}
    answer = await worker.ask(worker.apply(1, upstreams=broken))
    assert answer is not None
    assert "failed" in answer
    assert "canary" not in answer["failed"]


async def test_the_mock_s_socket_is_private_and_may_be_left_over(worker: Handle, tmp_path: Path) -> None:
    path = tmp_path / "mock.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert await worker.ask(worker.apply(1, str(path))) == {"ok": 1}
    assert path.stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_a_worker_that_was_given_nothing_ends_with_its_supervisor(worker: Handle) -> None:
    worker.channel.close()
    assert await worker.status() == 0


def environ_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


async def test_malloc_is_told_not_to_give_memory_back(worker: Handle) -> None:
    assert await worker.ask(worker.apply(1)) == {"ok": 1}
    environ = environ_of(worker.started.process.pid)
    for name, value in process.MALLOC.items():
        assert f"{name}={value}".encode() in environ
    assert "MALLOC_TOP_PAD_" not in os.environ
