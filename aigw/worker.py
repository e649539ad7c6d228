"""A worker process: one event loop that serves clients with the sockets and the document it is given.

    python -m aigw.worker CONTROL RECORDS        two inherited descriptors, each one end of a socketpair

Messages on the control channel (`channel.py`):

    -> {"apply": {"generation": int, "document": {...}, "mock_socket": path or null}}     listening sockets beside it
    <- {"ok": generation}  or  {"failed": why}
    -> {"drain": {"delay": seconds, "timeout": seconds}}       a second one overrules the first
    <- {"drained": cut}                                        how many exchanges had to be cut; then the worker exits

The end of the channel means that the supervisor died: the worker drains by the document's own times and exits. It
opens no config file, obeys no signal, and knows nothing of other workers.
"""

import asyncio
import contextlib
import gc
import os
import resource
import socket
import sys
from typing import Any

import uvloop

from aigw import __version__
from aigw.channel import Channel
from aigw.config import snapshot
from aigw.gateway import Gateway
from aigw.process import Faults, describe_error, ignore_signals, log
from aigw.records import Sender

# Exchanges die by reference count; what is left for the collector is a rare cycle, mostly an exception's traceback.
COLLECT = (20_000, 50, 100)


class Worker:
    """What the control channel asks for, done on the loop. `run` returns when the worker has drained."""

    def __init__(self, loop: asyncio.AbstractEventLoop, control: socket.socket, records: socket.socket) -> None:
        # wiring
        self._loop = loop
        self._sender = Sender(records, log)
        self._channel = Channel(loop, control, self._receive, self._orphaned)
        self._gateway: Gateway | None = None  # from the first `apply`
        self._mock: asyncio.AbstractServer | None = None
        self._mock_socket: str | None = None
        # one at a time: an apply finishes before the next, and before a drain
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        # the end
        self._drain_times: dict[str, float] = {"delay": 0.0, "timeout": 0.0}  # the document's
        self._drain: asyncio.Task[None] | None = None
        self._orphan = False
        self._drained: asyncio.Future[int] = loop.create_future()

    async def run(self) -> None:
        self._sender.start(self._loop)
        cut = await self._drained
        if self._gateway is not None:
            self._gateway.close()
        if self._mock is not None:
            self._mock.close()
        self._sender.close()
        self._channel.send({"drained": cut})
        self._channel.close()
        if self._orphan and self._mock_socket is not None:  # else the supervisor's, who made the folder
            with contextlib.suppress(OSError):
                os.unlink(self._mock_socket)
                os.rmdir(os.path.dirname(self._mock_socket))

    # --- messages

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        if "apply" in message:
            sockets = [socket.socket(fileno=fd) for fd in fds]
            self._begin(self._apply(**message["apply"], sockets=sockets))
        elif "drain" in message:
            self._start_drain(**message["drain"])

    def _orphaned(self) -> None:
        self._orphan = True
        if self._gateway is not None and self._drain is None:
            log("the supervisor is gone; finishing what runs, then ending")
        if self._drain is None:
            self._start_drain(**self._drain_times)

    def _begin(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- deeds

    async def _apply(
        self, generation: int, document: dict[str, Any], mock_socket: str | None, sockets: list[socket.socket]
    ) -> None:
        async with self._turn:
            try:
                compiled = snapshot.compile(document, generation)
                if mock_socket is not None and self._mock is None:
                    await self._serve_mock(mock_socket)
                if self._gateway is None:
                    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                    descriptors = None if limit == resource.RLIM_INFINITY else limit
                    self._gateway = Gateway(self._loop, self._sender.add, version=__version__, descriptors=descriptors)
                self._gateway.mock_socket = self._mock_socket
                self._gateway.apply(compiled)
                if sockets:
                    await self._gateway.listen(sockets)
            except Exception as error:  # whatever it is, the supervisor must hear of it
                self._channel.send({"failed": describe_error(error)})
                return
            self._drain_times = document["drain"]
            self._channel.send({"ok": generation})
            gc.freeze()
            gc.set_threshold(*COLLECT)

    async def _serve_mock(self, path: str) -> None:
        from aigw import mock  # most workers serve none

        settings = mock.Settings()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by the worker before this one
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(path)
        os.chmod(path, 0o600)
        self._mock = await self._loop.create_unix_server(
            lambda: mock.MockConnection(settings, self._loop), sock=sock, backlog=4096
        )
        self._mock_socket = path

    def _start_drain(self, delay: float, timeout: float) -> None:
        if self._drain is not None:
            self._drain.cancel()
        self._drain = self._begin(self._finish(delay, timeout))

    async def _finish(self, delay: float, patience: float) -> None:
        cut = 1  # if draining fails, it was not clean
        try:
            async with self._turn:
                cut = 0 if self._gateway is None else await self._gateway.drain(delay, patience)
        finally:
            if self._drain is asyncio.current_task():  # not overruled by a later one
                self._drained.set_result(cut)


async def serve(control: socket.socket, records: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Faults())
    await Worker(loop, control, records).run()


def main() -> None:
    ignore_signals()
    control, records = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:3])
    uvloop.run(serve(control, records))


if __name__ == "__main__":
    main()
