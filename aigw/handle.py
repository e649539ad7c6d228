"""A worker as the supervisor sees it: a process, what it was told, what it said, whether it lives.

The other end of this conversation is `worker.py`, which documents the messages.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from aigw.channel import Channel
from aigw.process import WorkerProcess, describe_exit

START_TIMEOUT = 30.0  # seconds a worker may take to say that it serves


class WorkerHandle:
    """One worker process. `ended` and `cut` are final once `ended` is done: all that it said was read then."""

    __slots__ = ("_channel", "_process", "_silent", "cut", "ended", "pid", "ready", "since")

    def __init__(self, loop: asyncio.AbstractEventLoop, started: WorkerProcess) -> None:
        self._process = started.process
        self._channel = Channel(loop, started.control, self._receive, self._fell_silent)
        self._silent = False  # its end of the channel is closed: nothing it said is unread
        self.pid = started.process.pid
        self.since = loop.time()
        self.ready: asyncio.Future[str] = loop.create_future()  # "": it serves; else why it cannot
        self.ended: asyncio.Future[int] = loop.create_future()  # exit status, as Popen.returncode
        self.cut: int | None = None  # exchanges that its drain had to cut; None: it did not say

    async def apply(self, document: dict[str, Any], sockets: Sequence[socket.socket], mock_socket: str | None) -> str:
        """Gives the worker what it needs to serve. Answers "" when it does, else why it does not."""
        message = {"apply": {"generation": 1, "document": document, "mock_socket": mock_socket}}
        self._channel.send(message, [sock.fileno() for sock in sockets])
        awaited: set[asyncio.Future[Any]] = {self.ready, self.ended}
        await asyncio.wait(awaited, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if self.ready.done():
            return self.ready.result()
        if self.ended.done():
            return describe_exit(self.ended.result())
        return f"did not start within {START_TIMEOUT:.0f} s"

    def drain(self, delay: float, timeout: float) -> None:
        self._channel.send({"drain": {"delay": delay, "timeout": timeout}})

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> None:
        """Learns whether the process has ended, and all that it said was read."""
        status = self._process.poll()
        if status is not None and self._silent and not self.ended.done():
            self.ended.set_result(status)

    def _fell_silent(self) -> None:
        self._silent = True
        self.reap()

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        if "drained" in message:
            self.cut = message["drained"]
        elif not self.ready.done():
            self.ready.set_result(message.get("failed", ""))
