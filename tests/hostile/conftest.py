"""What a hostile peer costs, measured on the gateway and not on the clock: a loaded machine changes none of it.

`watch` runs a gateway on a thread of its own and tells the CPU time of that thread (`time.thread_time`), and the
longest stretch of it in which nobody else had a turn. `memory` is what the worker of a running `aigw serve` holds.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cpu import untraced
from fakes import until
from processes import PATIENCE, Serve

from aigw.config import snapshot
from aigw.gateway import Gateway
from aigw.worker import COLLECT

TICK = 0.001  # seconds between two looks at the clock; a stretch is measured that much too long at most


class Watched:
    """A running gateway. `cpu` and `longest` are seconds since `reset`; `port` is where it listens."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.port = 0
        self.cpu = 0.0
        self.longest = 0.0
        self.lines: list[bytes] = []  # of the access log
        self.faults: list[dict[str, Any]] = []
        self._loop = uvloop.new_event_loop()
        self._gateway: Gateway
        self._started = self._last = 0.0
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked: asyncio.Future[None] | None = None  # waited for by `settle`
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._do(self._begin(config))

    def _run(self) -> None:
        with untraced():  # a test under coverage measures the gateway, not the tracer
            self._loop.run_forever()

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    async def _begin(self, config: dict[str, Any]) -> None:
        self._loop.set_exception_handler(lambda _loop, context: self.faults.append(context))
        self._gateway = Gateway(self._loop, self.lines.append, version="test")
        self._gateway.apply(snapshot.compile(config, 1))
        sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        sock.setblocking(False)
        self.port = sock.getsockname()[1]
        await self._gateway.listen([sock])
        self._tick()

    def _tick(self) -> None:
        now = time.thread_time()
        self.longest = max(self.longest, now - self._last)
        self.cpu = now - self._started
        self._last = now
        if self._ticked is not None:
            self._ticked.set_result(None)
            self._ticked = None
        self._ticker = self._loop.call_later(TICK, self._tick)

    def reset(self) -> None:
        """Measure from here."""
        self._do(self._reset())

    async def _reset(self) -> None:
        self._started = self._last = time.thread_time()
        self.cpu = self.longest = 0.0

    def settle(self) -> None:
        """What was under way counts too: the clock is looked at twice more."""
        for _ in range(2):
            self._do(self._tick_to_come())

    async def _tick_to_come(self) -> None:
        self._ticked = self._loop.create_future()
        await self._ticked

    def look(self, value: Callable[[Gateway], Any]) -> Any:
        """Something of the gateway's, read on its own thread."""

        async def read() -> Any:
            return value(self._gateway)

        return self._do(read())

    def connect(self, *, timeout: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    async def _end(self) -> None:
        assert self._ticker is not None
        self._ticker.cancel()
        self._gateway.close()
        await until(lambda: not self._gateway.clients, "clients gone after close")
        await asyncio.sleep(0)  # transports that were aborted close in a turn of their own

    def close(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


@pytest.fixture
def watch() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """`with watch(config) as gateway`: a gateway that serves `config`, with the collector set as in a worker."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT)

    @contextmanager
    def watching(config: dict[str, Any]) -> Iterator[Watched]:
        watched = Watched(config)
        try:
            yield watched
        finally:
            watched.close()
        assert not watched.faults, watched.faults

    yield watching
    gc.set_threshold(*before)
    gc.unfreeze()


def resident(serve: Serve) -> int:
    """Bytes of memory that the worker has in use."""
    (worker,) = serve.workers
    return int(Path(f"/proc/{worker}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def memory() -> Callable[[Serve], int]:
    return resident
