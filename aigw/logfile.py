"""Lines on their way into a file or to stdout, written by a thread of their own.

For logs that may lose lines but must never delay anybody: what waits is bounded in bytes, above that *whole* lines are
dropped, counted, and reported once a minute.

It is a thread because no other way is safe for everything that stdout can be: O_NONBLOCK belongs to the open file, not
to the descriptor, and would be set for the shell and everyone else who shares it; and a disk blocks whatever the flag
says.
"""

import asyncio
import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

BOUND_BYTES = 8 << 20  # what is held while the file or the reader of stdout is stuck
PIECE = 65536  # bytes of one write, as much as an empty pipe takes: what a stuck one holds up is known to this
REPORT_INTERVAL = 60.0  # seconds between two lines about lost ones
FILE_MODE = 0o640  # addresses of clients are personal data

STDOUT = "stdout"


class Losses:
    """Counts lost lines; reports the first at once, more once in `REPORT_INTERVAL`. Any thread may call it."""

    __slots__ = ("_lock", "_next", "_report", "_unreported", "_why", "total")

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._unreported = 0
        self._why = ""  # the latest reason
        self._next = 0.0  # monotonic time before which nothing is reported
        self.total = 0

    def add(self, count: int, why: str) -> None:
        with self._lock:
            self.total += count
            self._unreported += count
            self._why = why
            now = time.monotonic()
            if now < self._next:
                return
            self._next = now + REPORT_INTERVAL
            self._tell()

    def close(self) -> None:
        """Reports what was not reported yet."""
        with self._lock:
            self._tell()

    def _tell(self) -> None:
        if self._unreported:
            plural = "" if self._unreported == 1 else "s"
            self._report(f"access log: {self._unreported} record{plural} lost: {self._why}")
            self._unreported = 0


class LogFile:
    """The thread and the bounded queue before it. `target` is "stdout" or an absolute path.

    A file is created, appended to, and opened again after `reopen()` or when another file (or none) stands under its
    name. `put` and `reopen` never block.

    Raises: OSError, when the file cannot be opened.
    """

    __slots__ = (
        "_chunks",
        "_closing",
        "_complained",
        "_finished",
        "_given_up",
        "_gone",
        "_held",
        "_losses",
        "_out",
        "_path",
        "_reopen",
        "_report",
        "_target",
        "_torn",
        "_unwritten",
        "_wake",
    )

    GONE = "the reader of stdout is gone"

    def __init__(self, target: str, losses: Losses, report: Callable[[str], None]) -> None:
        # wiring
        self._target = target
        self._path = None if target == STDOUT else target
        self._losses = losses
        self._report = report
        # between the loop and the thread, under this lock
        self._wake = threading.Condition()
        self._chunks: deque[bytes] = deque()
        self._held = 0  # bytes in `_chunks` and in the hands of the thread
        self._reopen = False
        self._closing = False
        self._given_up = False  # what was not written by now is counted as lost
        self._finished: Callable[[], None] | None = None  # the thread's last call
        # the thread's own
        self._out = 1 if self._path is None else self._open(self._path)
        self._torn = b""  # the rest of a line whose start was written before an error
        self._unwritten = (b"", 0)  # what it has, and how far that is written; `close` reads it
        self._gone = False  # stdout's reader went away
        self._complained = -REPORT_INTERVAL  # when it last said that the file cannot be opened

        # a daemon: a write that never returns must not keep the process from ending
        threading.Thread(target=self._run, name="log file", daemon=True).start()

    def put(self, lines: bytes) -> None:
        """Takes whole lines, each with its line feed."""
        with self._wake:
            if self._held + len(lines) <= BOUND_BYTES:
                self._chunks.append(lines)
                self._held += len(lines)
                self._wake.notify()
                return
        self._losses.add(lines.count(b"\n"), self._slow)

    def reopen(self) -> None:
        """Opens the file again under its name, once what was put before is written. No effect on stdout."""
        with self._wake:
            self._reopen = True
            self._wake.notify()

    async def close(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Lets the thread write what it has, until `deadline`; after that what it has is lost.

        A write that is stuck counts as a whole, though a pipe may have taken some lines of its `PIECE`.
        """
        finished = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # a stuck write may return when the loop is long closed
                loop.call_soon_threadsafe(finished.set)

        with self._wake:
            self._finished = tell
            self._closing = True
            self._wake.notify()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finished.wait(), max(0.0, deadline - loop.time()))
        with self._wake:
            self._given_up = True
            data, at = self._unwritten
            lost = data.count(b"\n", at) + sum(chunk.count(b"\n") for chunk in self._chunks)
            self._chunks.clear()
        if lost:
            self._losses.add(lost, self._slow)

    @property
    def _slow(self) -> str:
        return f"{self._target} does not take them fast enough"

    # --- the thread

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._wake:
                while not (self._chunks or self._reopen or self._closing):
                    self._wake.wait()
                data = b"".join(self._chunks)
                self._unwritten = data, 0
                self._chunks.clear()
                reopen, self._reopen = self._reopen, False
                closing = self._closing  # nothing is put after it was set: `data` is the last
            if self._path is not None and data and self._moved(self._path):
                self._open_again(self._path)
            if data:
                self._write(data)
            if self._path is not None and reopen:
                self._open_again(self._path)
            with self._wake:
                self._held -= len(data)
        if self._path is not None:
            os.close(self._out)
        if self._finished is not None:
            self._finished()

    def _write(self, lines: bytes) -> None:
        if self._gone:
            self._unwritten = b"", 0
            self._losses.add(lines.count(b"\n"), self.GONE)
            return
        data = self._torn + lines
        self._torn = b""
        view = memoryview(data)
        at = 0
        while at < len(data) and not self._given_up:
            self._unwritten = data, at
            try:
                at += os.write(self._out, view[at : at + PIECE])
            except BlockingIOError:  # someone who shares stdout made it non-blocking
                poll = select.poll()
                poll.register(self._out, select.POLLOUT)
                poll.poll()
            except OSError as error:
                if not self._given_up:
                    self._failed(error, data, at)
                break
        self._unwritten = b"", 0

    def _failed(self, error: OSError, data: bytes, at: int) -> None:
        """`data` was written up to `at`. The rest is lost, but for the end of a begun line: it leads the next write."""
        self._gone = isinstance(error, BrokenPipeError)
        lost = data.count(b"\n", at)
        if at and data[at - 1] != 0x0A:
            self._torn = data[at : data.find(b"\n", at) + 1]
            lost -= 1
        self._losses.add(lost, self.GONE if self._gone else f"{self._target}: {error.strerror}")

    def _moved(self, path: str) -> bool:
        """Another file stands under the name than the one that is open, or none."""
        try:
            there = os.stat(path)
        except OSError:
            return True
        here = os.fstat(self._out)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    @staticmethod
    def _open(path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE)

    def _open_again(self, path: str) -> None:
        try:
            new = self._open(path)
        except OSError as error:
            now = time.monotonic()
            if now - self._complained >= REPORT_INTERVAL:
                self._complained = now
                self._report(
                    f"access log: cannot open {path} again: {error.strerror}; the file opened before is still used"
                )
            return
        os.close(self._out)
        self._out = new
        self._torn = b""
