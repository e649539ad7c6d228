"""An upstream on raw sockets that reports exactly what it saw: requests, in order, and everything that is unclean.

It reads with `strict.py`, never with the gateway's own parsers. Each complete request is answered at once, with its
number in `x-seen`, so that a client can tell which request an answer belongs to. A connection that brings anything but
requests by the letter is noted in `unclean` and cut.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from smuggling.strict import Request, Unclean, read_request


class Recorder:
    """`requests` are all complete ones since `take`, numbered from `first`; `unfinished` are beginnings of requests
    whose connection ended."""

    def __init__(self) -> None:
        self.port = 0
        self.first = 0
        self.requests: list[Request] = []
        self.unfinished: list[bytes] = []
        self.unclean: list[str] = []
        self.wires: set[Wire] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def held(self) -> list[bytes]:
        """Beginnings of requests that may still go on."""
        return [wire.data for wire in self.wires if wire.data]

    async def quiet(self) -> None:
        """Until nothing that was sent here is unread. What a peer on this machine has sent lies in our kernel."""
        turns = 0
        while turns < 3:  # the last write may have waited for the end of a turn, and its reading for the next one
            await asyncio.sleep(0)
            turns = 0 if any(wire.unread for wire in self.wires) else turns + 1

    def take(self) -> None:
        """Forget what was seen; the next request has the next number."""
        self.first += len(self.requests)
        self.requests.clear()
        self.unfinished.clear()
        self.unclean.clear()


class Wire(asyncio.Protocol):
    """One connection to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._transport = cast(asyncio.Transport, None)
        self._socket = -1
        self.data = b""

    @property
    def unread(self) -> int:
        """Bytes in the kernel that were not handed to us yet."""
        if self._transport.is_closing():
            return 0
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)))[0])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket").fileno()
        self._recorder.wires.add(self)

    def data_received(self, data: bytes) -> None:
        recorder = self._recorder
        self.data += data
        try:
            while self.data and (request := read_request(self.data)) is not None:
                self.data = self.data[request.size :]
                self._transport.write(answer(recorder.first + len(recorder.requests), request))
                recorder.requests.append(request)
        except Unclean as error:
            recorder.unclean.append(f"{error}: {self.data!r}")
            self.data = b""
            self._transport.abort()

    def close(self) -> None:
        self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._recorder.wires.discard(self)
        if self.data:
            self._recorder.unfinished.append(self.data)


def answer(number: int, request: Request) -> bytes:
    body = b'{"seen": %d}' % number
    head = b"HTTP/1.1 200 OK\r\nx-seen: %d\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (number, len(body)) + (b"" if request.method == b"HEAD" else body)


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    recorder = Recorder()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Wire(recorder), "127.0.0.1", 0)
    recorder.port = server.sockets[0].getsockname()[1]
    try:
        yield recorder
    finally:
        server.close()
        for wire in list(recorder.wires):
            wire.close()
        await recorder.quiet()
