"""The control channel between the supervisor and a worker: JSON lines, with descriptors beside them.

Both ends are this class, on a stream socketpair and on whichever event loop the process runs. It knows nothing of what
the messages mean. Descriptors travel as SCM_RIGHTS with the first byte of their line; a read may bring the end of one
line and the start of the next, so a line says itself how many descriptors are its own (`"fds": n`) and takes them
first come, first served.
"""

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import orjson

# In one turn of the loop: what came is parsed before anything else is served, 0.5 ms for so much JSON.
READ_BYTES = 64 * 1024
# What the system is short of for a moment: memory, or descriptors on their way that nobody has taken yet.
PASSING = frozenset({errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS})
PASSING_SECONDS = 0.1
MOST_DESCRIPTORS = 253  # the kernel's SCM_MAX_FD, per message

Message = dict[str, Any]


def encode(message: Message) -> bytes:
    """One line. Its `fds`, where it has any, is the channel's own."""
    return orjson.dumps(message) + b"\n"


class Channel:
    """One end. `on_message(message, fds)` owns the descriptors it is given.

    `on_end()` is called once, when the other end is gone; `close` does not call it.
    """

    __slots__ = ("_fds", "_line", "_loop", "_on_end", "_on_message", "_out", "_socket")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        # wiring
        self._loop = loop
        self._socket: socket.socket | None = sock
        self._on_message = on_message
        self._on_end = on_end
        # in: an unfinished line, descriptors that no line has claimed yet
        self._line = bytearray()
        self._fds: deque[int] = deque()
        # out: (bytes, descriptors that go with the first of them), oldest first
        self._out: deque[tuple[memoryview, tuple[int, ...]]] = deque()

        sock.setblocking(False)
        loop.add_reader(sock, self._read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Queues a message: what the socket takes goes out now, the rest later; nothing, if the other end is gone.

        `fds` stay the caller's and must be open until they are sent: at once, unless earlier messages still wait.
        """
        if self._socket is None:
            return
        if len(fds) > MOST_DESCRIPTORS:
            raise ValueError(f"{len(fds)} descriptors in one message; the kernel passes at most {MOST_DESCRIPTORS}")
        self._put(encode({**message, "fds": len(fds)} if fds else message), tuple(fds))

    def send_encoded(self, lines: bytes) -> None:
        """Queues messages that `encode` made, joined: what goes to every worker is made once."""
        if self._socket is not None:
            self._put(lines, ())

    def _put(self, data: bytes, fds: tuple[int, ...]) -> None:
        self._out.append((memoryview(data), fds))
        if len(self._out) == 1:
            self._write()

    def close(self) -> None:
        """Closes this end; what was not sent is lost. The other end sees the end of the stream."""
        if self._socket is None:
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        self._out.clear()
        while self._fds:
            os.close(self._fds.popleft())

    def _write(self) -> None:
        assert self._socket is not None
        while self._out:
            data, fds = self._out[0]
            try:
                sent = socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket, self._write)
                return
            except OSError as error:
                if error.errno in PASSING:
                    self._loop.remove_writer(self._socket)
                    self._loop.call_later(PASSING_SECONDS, self._again)
                    return
                self._out.clear()  # the other end is gone; reading finds that too, and says so
                break
            if sent == len(data):
                self._out.popleft()
            else:
                self._out[0] = (data[sent:], ())
        self._loop.remove_writer(self._socket)

    def _again(self) -> None:
        if self._socket is not None:
            self._write()

    def _read(self) -> None:
        assert self._socket is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, READ_BYTES, MOST_DESCRIPTORS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        for fd in fds:
            os.set_inheritable(fd, False)  # Python sees to it for every descriptor but these
        self._fds.extend(fds)
        if not data:
            self.close()
            self._on_end()
            return
        start = len(self._line)
        self._line += data
        if self._line.find(b"\n", start) < 0:
            return
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        for line in lines:
            message = orjson.loads(line)
            self._on_message(message, [self._fds.popleft() for _ in range(message.pop("fds", 0))])
            if self._socket is None:  # the message was to close it
                return
