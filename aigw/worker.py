"""A worker process: one event loop that serves clients with the sockets and the document it is given.

    python -m aigw.worker CONTROL RECORDS CELLS ROW     three inherited descriptors, and which row of the cells is ours

Messages on the control channel (`channel.py`):

    -> {"document": ...}, {"at": ...}                      a document in pieces (`config/lines.py`)
    -> {"prepare": {"generation": int}}                    compile it, beside what is served
    -> {"switch": {"mock_socket": path or null}}           serve by what was prepared
    -> {"listen": {"sockets": [number, ...], "keys": [key, ...]}}
                                                           accept on these and no others; the new ones come with it, and
                                                           the keys (`listen.keys`) say which address each is for
    <- {"done": ""}  or  {"done": why it failed}           one answer to each of these three, in their order
    -> {"unready": {}}                                     readiness turns red
    -> {"drain": {"timeout": s, "idle": s}}                end; idle clients may stay for `idle`; a second one overrules
    <- {"drained": cut}                                    how many exchanges had to be cut; then the worker exits

The end of the channel means that the supervisor died: the worker drains by the document's own times and exits. It
opens no config file, obeys no signal, and knows nothing of other workers.
"""

import asyncio
import contextlib
import gc
import os
import resource
import socket
import ssl
import sys
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import uvloop

from aigw import __version__, listen, shared, tls
from aigw.channel import Channel
from aigw.config import lines, snapshot
from aigw.gateway import Gateway, Server
from aigw.process import Faults, describe_error, ignore_signals, log
from aigw.records import Sender

# Exchanges die by reference count; what is left for the collector is a rare cycle, mostly an exception's traceback.
COLLECT = (20_000, 50, 100)
COLLECT_AFTER = 1.0  # seconds after a reload: the snapshot before it is full of cycles

SLICE = 0.001  # seconds that compiling may take of one turn of the loop
STAMP = 0.1  # seconds between two signs of life

Contexts = dict[str, ssl.SSLContext | None]  # None: no TLS; by `listen.keys`


class Worker:
    """What the control channel asks for, done on the loop. `run` returns when the worker has drained."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        control: socket.socket,
        records: socket.socket,
        cells: shared.Cells,
        number: int,
    ) -> None:
        # wiring
        self._loop = loop
        self._row = cells.row(number)
        self._sender = Sender(records, log)
        self._channel = Channel(loop, control, self._receive, self._orphaned)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._gateway = Gateway(
            loop,
            self._sender.add,
            version=__version__,
            descriptors=None if limit == resource.RLIM_INFINITY else limit,
            cells=cells,
            number=number,
            log=log,
        )
        self._mock: asyncio.AbstractServer | None = None
        self._listeners: dict[int, Server] = {}
        self._dropped = 0  # of the log's records, as far as they were counted
        # the config on its way: what came of it, and what was made of that
        self._document: lines.Document = {}
        self._prepared: tuple[snapshot.Snapshot, Contexts, dict[str, float]] | None = None
        self._contexts: dict[tuple[str, str], ssl.SSLContext] = {}  # in use, by certificate and key
        # one at a time: each finishes before the next, and before a drain
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        # the end
        self._drain_times: dict[str, float] = {"delay": 0.0, "timeout": 0.0}  # the document's
        self._drain: asyncio.Task[None] | None = None
        self._orphan = False
        self._drained: asyncio.Future[int] = loop.create_future()

    async def run(self) -> None:
        self._row[shared.PID] = os.getpid()
        self._stamp()
        self._sender.start(self._loop)
        cut = await self._drained
        self._gateway.close()
        if self._mock is not None:
            self._mock.close()
        self._sender.close()
        self._channel.send({"drained": cut})
        self._channel.close()
        if self._orphan and self._gateway.mock_socket is not None:  # else the supervisor's, who made the folder
            with contextlib.suppress(OSError):
                os.unlink(self._gateway.mock_socket)
                os.rmdir(os.path.dirname(self._gateway.mock_socket))

    def _stamp(self) -> None:
        """Alive; and what others may want to know of this worker."""
        self._loop.call_later(STAMP, self._stamp)
        self._row[shared.HEARTBEAT] = int(monotonic() * 1000)
        self._gateway.stamp()
        dropped = self._sender.dropped
        self._row[shared.LOG_DROPPED] += dropped - self._dropped
        self._dropped = dropped

    # --- messages

    def _receive(self, message: dict[str, Any], fds: list[int]) -> None:
        match message:
            case {"at": _}:
                lines.join(self._document, message)
            case {"document": document}:
                self._document = document
            case {"prepare": asked}:
                document, self._document = self._document, {}
                self._begin(self._answered(self._prepare(document, **asked)))
            case {"switch": asked}:
                self._begin(self._answered(self._switch(**asked)))
            case {"listen": asked}:
                self._begin(self._answered(self._listen(**asked, new=[socket.socket(fileno=fd) for fd in fds])))
            case {"unready": _}:
                self._gateway.unready()
            case {"drain": asked}:
                self._start_drain(0.0, **asked)

    def _orphaned(self) -> None:
        self._orphan = True
        if self._listeners and self._drain is None:
            log("the supervisor is gone; finishing what runs, then ending")
        if self._drain is None:
            self._gateway.unready()
            self._start_drain(**self._drain_times)

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _answered(self, deed: Coroutine[Any, Any, None]) -> None:
        why = ""
        async with self._turn:
            try:
                await deed
            except Exception as error:  # whatever it is, the supervisor must hear of it
                why = describe_error(error)
        self._channel.send({"done": why})

    # --- deeds

    async def _prepare(self, document: lines.Document, generation: int) -> None:
        self._prepared = None
        steps = snapshot.build(document, generation)
        until = monotonic() + SLICE
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self._prepared = (end.value, self._secure(document), document["drain"])
                return
            if monotonic() >= until:
                await asyncio.sleep(0)
                until = monotonic() + SLICE

    def _secure(self, document: lines.Document) -> Contexts:
        """What each listener is to speak. Whose certificate stays keeps its context, and with it clients' sessions."""
        before, self._contexts = self._contexts, {}
        contexts: Contexts = {}
        listens = document["listen"]
        for key, entry in zip(listen.keys(entry["address"] for entry in listens), listens, strict=True):
            contexts[key] = None
            if "tls" in entry:
                pair = entry["tls"]["cert"], entry["tls"]["key"]
                if pair not in self._contexts:
                    self._contexts[pair] = before.get(pair) or tls.server_context(*pair)
                contexts[key] = self._contexts[pair]
        return contexts

    async def _switch(self, mock_socket: str | None) -> None:
        assert self._prepared is not None, "nothing was prepared"
        if mock_socket is not None and self._mock is None:
            await self._serve_mock(mock_socket)
        compiled, contexts, self._drain_times = self._prepared
        self._prepared = None
        self._gateway.secure(contexts)
        self._gateway.apply(compiled)
        self._loop.call_later(COLLECT_AFTER, gc.collect)

    async def _listen(self, sockets: list[int], keys: list[str], new: list[socket.socket]) -> None:
        unknown = {number: key for number, key in zip(sockets, keys, strict=True) if number not in self._listeners}
        servers = await self._gateway.listen(new, list(unknown.values()))
        self._listeners.update(zip(unknown, servers, strict=True))
        gone = [self._listeners.pop(number) for number in self._listeners.keys() - set(sockets)]
        if gone:
            await self._gateway.ignore(gone)

    async def _serve_mock(self, path: str) -> None:
        from aigw import mock  # most workers serve none

        settings = mock.Settings()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # left by the worker before this one
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(path)
            os.chmod(path, 0o600)
            self._mock = await self._loop.create_unix_server(
                lambda: mock.MockConnection(settings, self._loop), sock=sock, backlog=4096
            )
        except OSError:
            sock.close()
            raise
        self._gateway.mock_socket = path

    def _start_drain(self, delay: float, timeout: float, idle: float = 0.0) -> None:
        if self._drain is not None:
            self._drain.cancel()
        self._drain = self._begin(self._finish(delay, timeout, idle))

    async def _finish(self, delay: float, patience: float, idle: float) -> None:
        cut = 1  # if draining fails, it was not clean
        try:
            async with self._turn:
                await asyncio.sleep(delay)
                cut = await self._gateway.drain(patience, idle)
        finally:
            if self._drain is asyncio.current_task():  # not overruled by a later one
                self._drained.set_result(cut)


async def serve(control: socket.socket, records: socket.socket, cells: shared.Cells, number: int) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Faults())
    await Worker(loop, control, records, cells, number).run()


def main() -> None:
    ignore_signals()
    control, records, descriptor, number = map(int, sys.argv[1:5])
    cells = shared.Cells(descriptor)
    gc.collect()
    gc.freeze()  # what was imported stays: the collector need not look at it again
    gc.set_threshold(*COLLECT)
    sockets = socket.socket(fileno=control), socket.socket(fileno=records)
    uvloop.run(serve(*sockets, cells, number))


if __name__ == "__main__":
    main()
