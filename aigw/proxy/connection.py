"""What both sides have in common: a transport, and writes that are gathered while the loop is busy.

A turn of the loop brings what many sockets have to say. Who writes at once, between two of them, wakes a process that
waits on the same machine with almost every write, and finds its own code gone from the caches after each system call.
So only the first write after a pause goes out at once; those that follow right behind it go out together when all of
the turn was read, or when there are enough of them. With 50 connections that costs less than writing at once: 28.0 us
a request in all instead of 30.8, and 524 us instead of 550 for a stream of 50 events. Nothing waits for a later turn,
and a connection's bytes keep their order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

UNIX: Final = "unix"  # the address of a client that comes over a unix socket
# Seconds since the last write, from which on a write is no longer right behind it: each takes some 10 us.
APART: Final = 25e-6
# Writes that wait together; the first of them waits for the others.
MOST_TOGETHER: Final = 32
# Bytes that may wait. More is written at once: it may be more than the socket takes, and whoever reads must know.
MOST_GATHERED: Final = 4 * 1024


class Outbox:
    """What is to be written at the end of this turn, by anybody, in order. One per worker."""

    __slots__ = ("_loop", "_report", "waiting", "wrote")

    def __init__(self, loop: asyncio.AbstractEventLoop, report: Callable[[Exception, object], None]) -> None:
        self._loop = loop
        self._report = report
        self.waiting: list[tuple[asyncio.Transport, bytes]] = []
        self.wrote = 0.0  # monotonic seconds: when somebody last had something to write

    def begin(self) -> None:
        """The first waits: all go out when what is to be read in this turn was read."""
        self._loop.call_soon(self.flush)

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for transport, data in waiting:
            try:
                transport.write(data)
            except Exception as error:  # one connection's trouble is not the others'
                if not transport.is_closing():  # or it was lost in this very turn
                    self._report(error, transport)


class Connection(asyncio.Protocol):
    """One socket, on either side. Whoever closes it, or writes to its transport otherwise, flushes before."""

    __slots__ = ("outbox", "transport", "write_paused")

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)  # set before any other callback
        self.write_paused = False

    def write(self, data: bytes, now: float) -> None:
        """`now` is monotonic."""
        outbox = self.outbox
        waiting = outbox.waiting
        if (waiting or now - outbox.wrote < APART) and len(data) < MOST_GATHERED and not self.write_paused:
            waiting.append((self.transport, data))
            count = len(waiting)
            if count == 1:
                outbox.begin()
            elif count == MOST_TOGETHER:
                outbox.flush()
        else:
            if waiting:
                outbox.flush()
            self.transport.write(data)
        outbox.wrote = now

    def flush(self) -> None:
        """Write what waits: ours, and with it the others'."""
        if self.outbox.waiting:
            self.outbox.flush()
