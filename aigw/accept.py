"""Accepting clients where descriptors are few: no more than there is room for, so that the rest waits in the kernel.

The loop's own server accepts whatever waits, in one turn; when that uses up the descriptors, libuv accepts and closes
everyone else without a word, and no upstream can be dialled. It costs 40 us less per connection, though, so this is
only for those who need it.
"""

import asyncio
import socket
from collections.abc import Callable

BATCH = 32  # connections accepted before others have a turn


class Acceptor:
    """Accepts on `sock`, which is its own from then on. `room` says how many more connections there may be;
    `resume` is to be called when it has grown."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        make: Callable[[], asyncio.BaseProtocol],
        room: Callable[[], int],
    ) -> None:
        # wiring
        self._loop = loop
        self._socket = sock
        self._make = make
        self._room = room
        # accepted, but not known to their protocols yet
        self._opening: set[asyncio.Task[None]] = set()
        # life
        self._is_paused = True
        self._is_closed = False
        self.resume()

    def resume(self) -> None:
        if self._is_paused and not self._is_closed:
            self._is_paused = False
            self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        self._pause()
        self._is_closed = True
        self._socket.close()

    def _pause(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self._loop.remove_reader(self._socket)

    def _accept(self) -> None:
        room = self._room() - len(self._opening)
        for _ in range(min(room, BATCH)):
            try:
                sock, _ = self._socket.accept()
            except OSError:  # nobody is there, or not any more; out of descriptors after all: they go on waiting
                break
            sock.setblocking(False)
            task = self._loop.create_task(self._open(sock))
            self._opening.add(task)
            task.add_done_callback(self._opened)
            room -= 1
        if room <= 0:
            self._pause()

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self.resume()  # until now it counted twice

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, sock)
        except OSError:
            sock.close()
