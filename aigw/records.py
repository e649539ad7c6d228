"""Finished exchanges on their way to the access log: both ends of the records channel.

    worker                                     supervisor
    gateway -> Sender.add ... flush  ========>  Writer (whole lines) -> LogFile (a thread) -> stdout or a file

A record is one JSON line, finished by whoever calls `add`; nothing here looks into it. The rule of this module is that
an access log may lose lines but never delays an exchange or the supervisor: each stage holds a bounded number of
bytes, drops *whole* lines above it, counts them, and says so once a minute. Totals are therefore never computed from
the log.
"""

import asyncio
import socket
from collections.abc import Callable

from aigw.logfile import LogFile, Losses

# A worker sends when so much is gathered ... (With 128 KiB the supervisor is at it for 0.3 ms: where it shares the core
# with the worker, p99 at one connection is 318 us instead of 287. The CPU time is the same.)
BATCH_BYTES = 32 * 1024
INTERVAL = 0.1  # ... or after so many seconds
SENDER_BYTES = 1 << 20  # what a worker holds while the supervisor does not read
READ_BYTES = 256 * 1024
CLOSE_PATIENCE = 5.0  # seconds for the last lines to be written

OFF = "off"


class Sender:
    """The worker's end. `add` is on the hot path: an append and two comparisons."""

    __slots__ = ("_bound", "_lines", "_loop", "_losses", "_size", "_socket", "_timer", "_wanted")

    SLOW = "the supervisor did not take them in time"
    GONE = "the supervisor is gone"

    def __init__(self, sock: socket.socket, report: Callable[[str], None]) -> None:
        # wiring
        sock.setblocking(False)
        self._socket = sock
        self._losses = Losses(report)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # bounds, in bytes: no line is taken above the first, a flush is tried at the second
        self._bound = SENDER_BYTES
        self._wanted = BATCH_BYTES
        # lines not sent yet; the first may be the rest of a line whose start was sent
        self._lines: list[bytes] = []
        self._size = 0

    @property
    def dropped(self) -> int:
        return self._losses.total

    def add(self, line: bytes) -> None:
        """Takes one finished record with its line feed."""
        size = self._size + len(line)
        if size > self._bound:
            self._losses.add(1, self.SLOW if self._bound else self.GONE)
            return
        self._lines.append(line)
        self._size = size
        if size >= self._wanted:
            self.flush()

    def flush(self) -> None:
        """Sends what the socket takes now, in one call; never blocks."""
        if not self._lines:
            return
        data = b"".join(self._lines)
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._give_up(data)
            return
        rest = data[sent:]
        self._lines.clear()
        if rest:
            self._lines.append(rest)
        self._size = len(rest)
        self._wanted = self._size + BATCH_BYTES  # with a full socket: not at every record

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Flushes every `INTERVAL` from now on, until `close`."""
        self._loop = loop
        self._timer = loop.call_later(INTERVAL, self._tick)

    def _tick(self) -> None:
        self.flush()
        assert self._loop is not None
        self._timer = self._loop.call_later(INTERVAL, self._tick)

    def close(self, patience: float = 2.0) -> None:
        """Sends all that is left, within `patience` seconds, and closes the channel."""
        if self._timer is not None:
            self._timer.cancel()
        data = b"".join(self._lines)
        if data:
            self._socket.settimeout(patience)
            try:
                self._socket.sendall(data)
            except TimeoutError:
                self._losses.add(data.count(b"\n"), self.SLOW)  # at most: some were taken
            except OSError:
                self._give_up(data)
        self._socket.close()
        self._losses.close()

    def _give_up(self, data: bytes) -> None:
        self._bound = 0  # nobody will ever read: take no more
        self._lines.clear()
        self._size = 0
        self._losses.add(data.count(b"\n"), self.GONE)


class _Source:
    """One worker's channel at the supervisor: its socket, its unfinished line, and whether it has ended."""

    __slots__ = ("ended", "rest", "socket")

    def __init__(self, sock: socket.socket, ended: asyncio.Future[None]) -> None:
        self.socket = sock
        self.rest = b""
        self.ended = ended


class Writer:
    """The supervisor's end: reads every worker's channel and hands whole lines to the log.

    `target` is "stdout", "off" (nothing is written) or an absolute path, see `LogFile`. `keep` is given all lines as
    well, whatever the target.

    Raises: OSError, when the file cannot be opened.
    """

    __slots__ = ("_buffer", "_keep", "_log", "_loop", "_losses", "_report", "_sources", "_target")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        target: str,
        report: Callable[[str], None],
        keep: Callable[[bytes], None] = lambda lines: None,
    ) -> None:
        self._loop = loop
        self._keep = keep
        self._report = report
        self._target = target
        self._losses = Losses(report)
        self._log = None if target == OFF else LogFile(target, self._losses, report)
        self._sources: set[_Source] = set()
        self._buffer = bytearray(READ_BYTES)  # of one read, whoever it is from: a new one of that size is mapped anew

    @property
    def dropped(self) -> int:
        return self._losses.total

    def attach(self, sock: socket.socket) -> None:
        """Reads a worker's channel from now on, until it ends; the writer owns the socket."""
        sock.setblocking(False)
        source = _Source(sock, self._loop.create_future())
        self._sources.add(source)
        self._loop.add_reader(sock, self._read, source)

    def put(self, line: bytes) -> None:
        """A record of the supervisor's own, with its line feed."""
        self._keep(line)
        if self._log is not None:
            self._log.put(line)

    async def retarget(self, target: str) -> None:
        """Writes to another target from now on; what was received before goes to the one before.

        Raises: OSError, when the file cannot be opened; then nothing has changed.
        """
        if target == self._target:
            return
        log = None if target == OFF else LogFile(target, self._losses, self._report)
        before, self._log, self._target = self._log, log, target
        if before is not None:
            await before.close(self._loop, self._loop.time() + CLOSE_PATIENCE)

    def reopen(self) -> None:
        """Opens the file again under its name, once what was received before is written. No effect on stdout."""
        if self._log is not None:
            self._log.reopen()

    async def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """Reads until every channel has ended and writes all of it; gives up after `patience` seconds."""
        deadline = self._loop.time() + patience
        if self._sources:
            await asyncio.wait([source.ended for source in self._sources], timeout=patience)
        for source in list(self._sources):
            self._end(source)
        if self._log is not None:
            await self._log.close(self._loop, deadline)
        self._losses.close()

    def _read(self, source: _Source) -> None:
        try:
            size = source.socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:
            self._end(source)
            return
        end = self._buffer.rfind(b"\n", 0, size) + 1
        if end:
            with memoryview(self._buffer) as view:
                lines = b"".join((source.rest, view[:end]))
            source.rest = b""
            self._keep(lines)
            if self._log is not None:
                self._log.put(lines)
        source.rest += self._buffer[end:size]

    def _end(self, source: _Source) -> None:
        self._loop.remove_reader(source.socket)
        source.socket.close()
        self._sources.discard(source)
        source.ended.set_result(None)
        if source.rest and self._log is not None:
            self._losses.add(1, "a worker ended in the middle of one")
