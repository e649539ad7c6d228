"""A worker as the supervisor sees it: a process, what it was told, what it said, whether it lives.

The other end of this conversation is `worker.py`, which documents the messages.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from aigw.channel import Channel
from aigw.listen import Listening
from aigw.process import WorkerProcess, describe_exit

TIMEOUT = 30.0  # seconds a worker may take for what it is asked to do, its own start included


class WorkerHandle:
    """One worker process. `ended` and `cut` are final once `ended` is done: all that it said was read then."""

    __slots__ = ("_answers", "_channel", "_loop", "_process", "_silent", "cut", "ended", "generation", "pid", "since",
                 "sockets")  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, started: WorkerProcess) -> None:
        # wiring
        self._loop = loop
        self._process = started.process
        self._channel = Channel(loop, started.control, self._receive, self._fell_silent)
        self._answers: deque[asyncio.Future[str]] = deque()  # awaited, in the order of the questions
        self._silent = False  # its end of the channel is closed: nothing it said is unread
        # what it is
        self.pid = started.process.pid
        self.since = loop.time()
        self.generation = 0  # of the document it serves by
        self.sockets: set[int] = set()  # numbers of those it was told to accept on
        # how it ended
        self.ended: asyncio.Future[int] = loop.create_future()  # exit status, as Popen.returncode
        self.cut: int | None = None  # exchanges that its drain had to cut; None: it did not say

    def __repr__(self) -> str:
        return f"<WorkerHandle {self.pid} generation {self.generation} {len(self.sockets)} sockets>"

    async def prepare(self, pieces: bytes, generation: int) -> str:
        """Gives the worker a document, in the pieces of `lines.cut`. Each of these answers "" or why it failed."""
        self._channel.send_encoded(pieces)
        return await self._ask({"prepare": {"generation": generation}})

    async def switch(self, generation: int, mock_socket: str | None) -> str:
        """Lets it serve by what it has prepared."""
        why = await self._ask({"switch": {"mock_socket": mock_socket}})
        if not why:
            self.generation = generation
        return why

    async def listen(self, sockets: Sequence[Listening]) -> str:
        """Lets it accept on these sockets and on no others."""
        new = [entry for entry in sockets if entry.number not in self.sockets]
        self.sockets = {entry.number for entry in sockets}
        asked = {"sockets": [entry.number for entry in sockets], "keys": [entry.key for entry in sockets]}
        return await self._ask({"listen": asked}, [entry.socket.fileno() for entry in new])

    def unready(self) -> None:
        self._channel.send({"unready": {}})

    def drain(self, timeout: float, idle: float = 0.0) -> None:
        self._channel.send({"drain": {"timeout": timeout, "idle": idle}})

    def kill(self) -> None:
        self._process.kill()

    def reap(self) -> None:
        """Learns whether the process has ended, and all that it said was read."""
        status = self._process.poll()
        if status is not None and self._silent and not self.ended.done():
            self.ended.set_result(status)

    async def _ask(self, message: dict[str, Any], fds: Sequence[int] = ()) -> str:
        answer: asyncio.Future[str] = self._loop.create_future()
        self._answers.append(answer)
        self._channel.send(message, fds)
        awaited: set[asyncio.Future[Any]] = {answer, self.ended}
        await asyncio.wait(awaited, timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if self.ended.done():
            return describe_exit(self.ended.result())
        return f"did not answer within {TIMEOUT:.0f} s"

    def _fell_silent(self) -> None:
        self._silent = True
        self.reap()

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        if "drained" in message:
            self.cut = message["drained"]
        elif self._answers:
            self._answers.popleft().set_result(message["done"])
