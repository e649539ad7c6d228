"""Small reads, while many connections do not take what is there for them.

The loop reads up to 256,000 bytes at once, and what a slow client does not take of them, up to 64 KiB more, is the
gateway's to keep. A few such clients cost nothing that matters, but a thousand that read slowly on purpose held 212 KiB
each. So where more than `MOST_SLOW` connections wait for their other side, further answers are read in pieces of
`PIECE`, each when the one before was taken: the thousand hold 15 KiB each, everything included, and the rest stays in
the kernel of the other side. Not always, since an answer of a megabyte costs four times the CPU time so, and every
other one 0.3 us.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aigw.proxy.upstream import UpstreamConnection

PIECE: Final = 4 * 1024  # bytes; not less than `connection.MOST_GATHERED`, so that each is written at once
MOST_SLOW: Final = 4

# What is read stays in it for no longer than one call, so that one does for all connections.
_BUFFER: Final = bytearray(PIECE)


class SmallReads(asyncio.BufferedProtocol):
    """Stands between a transport and its connection for one answer."""

    __slots__ = ("_connection",)

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> bytearray:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """What TLS has read, in pieces as small, and decrypted."""
        self._connection.data_received(data)

    def eof_received(self) -> None:
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
