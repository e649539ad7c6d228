"""The admin API as the supervisor has it: one object that is bound, kept, changed by reload, and closed.

A change of its address goes in two steps, like that of the proxy's listeners: `bind`, which may fail and has changed
nothing then; and `keep`, or `release` again.
"""

import contextlib
import os
import socket
import time
from typing import Any

from aigw import listen
from aigw.admin import server
from aigw.admin.api import Api, Control, Explain, Metrics
from aigw.admin.guard import Guard
from aigw.admin.recent import Recent


class Admin:
    """`recent` takes the records of finished exchanges; `urls` say where it listens."""

    def __init__(self, control: Control, explain: Explain | None = None, metrics: Metrics | None = None) -> None:
        self.recent = Recent()
        self._guard = Guard(None, clock=time.monotonic)
        self._api = Api(control, self._guard, self.recent, explain, metrics)
        self._server = server.Server(self._api)
        self._address = ""
        self._sockets: list[socket.socket] = []

    @property
    def urls(self) -> list[str]:
        """`http://host:port` or `unix:/path`."""
        return [f"{'' if sock.family == socket.AF_UNIX else 'http://'}{listen.name(sock)}" for sock in self._sockets]

    def bind(self, address: str) -> list[socket.socket]:
        """Sockets for this address: new ones, or those that are there. Raises: listen.ListenError."""
        if address == self._address and self._sockets:
            return self._sockets
        ours = [sock.getsockname()[1] for sock in self._sockets if sock.family != socket.AF_UNIX]
        return server.bind(address, ours)

    async def keep(self, settings: dict[str, Any], sockets: list[socket.socket]) -> None:
        """Serves on these from now on, by these settings (`listen`, `token`)."""
        self._guard.set_token(settings["token"])
        self._address = settings["listen"]
        if sockets is self._sockets:
            return
        paths = _paths(self._sockets)
        self._sockets = sockets
        await self._server.listen(sockets)  # which closes those before
        _unlink(paths)

    def release(self, sockets: list[socket.socket]) -> None:
        if sockets is not self._sockets:
            _unlink(_paths(sockets))
            for sock in sockets:
                sock.close()

    async def freeze(self) -> None:
        """Nothing is changed any more; looking goes on."""
        await self._api.close()

    async def close(self) -> None:
        await self._api.close()
        paths = _paths(self._sockets)
        self._sockets = []
        await self._server.close()
        _unlink(paths)


def _paths(sockets: list[socket.socket]) -> list[str]:
    return [sock.getsockname() for sock in sockets if sock.family == socket.AF_UNIX]


def _unlink(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
