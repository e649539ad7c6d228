"""An instant upstream: the least an HTTP/1.1 server can do, so that a benchmark measures what stands before it.

    python benchmarks/upstream.py PORT

A POST is answered with the 49 bytes of `ANSWER`, or, where its body asks for a stream, with 50 server-sent events of
250 bytes. Every event is a chunk and a `write` of its own. They leave one per turn of the loop or, where the body also
holds `"pace"`, one per `PACE` seconds: then no proxy can gain by finding several events in one read, and all of them
do exactly the same reads. A stream that asks for `"hold"` gets its first event and stays open.

It trusts its clients: requests come one at a time on a connection and carry a content-length or no body.
"""

import asyncio
import gc
import re
import sys
from typing import cast

import uvloop

ANSWER = b'{"id":"","choices":[{"message":{"content":"!"}}]}'
EVENT = b'data: {"choices":[{"delta":{"content":"' + b"x" * 204 + b'"}}]}\n\n'
EVENTS = 50
PACE = 0.002

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_EVENT_CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
_LAST_CHUNK = b"0\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")


class Upstream(asyncio.Protocol):
    """One connection of a proxy, or of the load generator."""

    __slots__ = ("buffer", "left", "loop", "pacer", "transport")

    def __init__(self, pacer: "Pacer") -> None:
        self.loop = asyncio.get_running_loop()
        self.pacer = pacer
        self.transport: asyncio.Transport | None = None
        self.buffer = b""
        self.left = 0  # events that the running stream still owes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        length = _LENGTH.search(data, 0, end) if end >= 0 else None
        if end < 0 or (length is not None and len(data) < end + 4 + int(length[1])):
            self.buffer = data
            return
        self.buffer = b""
        assert self.transport is not None
        if data.find(b'"stream": true', end) < 0 and data.find(b'"stream":true', end) < 0:
            self.transport.write(_ANSWER)
            return
        self.left = EVENTS
        self.transport.write(_STREAM_HEAD)
        if data.find(b'"hold"', end) >= 0:
            self.send_event()
        elif data.find(b'"pace"', end) < 0:
            self.loop.call_soon(self.run)
        else:
            self.pacer.add(self)

    def run(self) -> None:
        if self.send_event():
            self.loop.call_soon(self.run)

    def send_event(self) -> bool:
        """Writes one event, and the end after the last. Are there more to come?"""
        if self.transport is None:
            return False
        self.left -= 1
        if self.left:
            self.transport.write(_EVENT_CHUNK)
            return True
        self.transport.write(_EVENT_CHUNK + _LAST_CHUNK)
        return False


class Pacer:
    """One timer for all paced streams: at each tick every one of them gets its next event."""

    __slots__ = ("loop", "streams")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.streams: list[Upstream] = []

    def add(self, stream: Upstream) -> None:
        self.streams.append(stream)
        if len(self.streams) == 1:
            self.loop.call_later(PACE, self.tick)

    def tick(self) -> None:
        due = self.loop.time() + PACE
        self.streams = [stream for stream in self.streams if stream.send_event()]
        if self.streams:
            self.loop.call_at(due, self.tick)


async def serve(port: int) -> None:
    pacer = Pacer()
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(pacer), "127.0.0.1", port, backlog=4096)
    gc.freeze()
    gc.disable()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
