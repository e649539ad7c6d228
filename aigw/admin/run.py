"""The admin API as the supervisor has it: one object that is bound, kept, changed by reload, and closed.

A change of its address goes in two steps, like that of the proxy's listeners: `bind`, which may fail and has changed
nothing then; and `keep`, or `release` again.
"""

import contextlib
import os
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aigw import listen
from aigw.admin import server
from aigw.admin.api import Api, Control, Explain, Metrics, Usage
from aigw.admin.guard import Guard
from aigw.admin.recent import Recent

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True, slots=True)
class Bound:
    """Where it is to listen, and what it is to speak there; nothing and nowhere by default."""

    sockets: list[socket.socket] = field(default_factory=list)
    context: "ssl.SSLContext | None" = None


class Admin:
    """`recent` takes the records of finished exchanges; `urls` say where it listens."""

    def __init__(
        self,
        control: Control,
        explain: Explain | None = None,
        metrics: Metrics | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.recent = Recent()
        self._guard = Guard(None, clock=time.monotonic)
        self._api = Api(control, self._guard, self.recent, explain, metrics, usage)
        self._server = server.Server(self._api)
        self._address = ""
        self._bound = Bound()

    @property
    def urls(self) -> list[str]:
        """`http://host:port`, `https://host:port` or `unix:/path`."""
        scheme = "http" if self._bound.context is None else "https"
        return [
            listen.name(sock) if sock.family == socket.AF_UNIX else f"{scheme}://{listen.name(sock)}"
            for sock in self._bound.sockets
        ]

    def bind(self, settings: dict[str, Any]) -> Bound:
        """For these settings (`listen`, as an entry of the document's): new sockets, or those that are there.

        Raises: listen.ListenError.
        """
        address, pair = settings["listen"]["address"], settings["listen"].get("tls")
        context = None
        if pair is not None:
            from aigw import tls

            context = tls.server_context(**pair)
        sockets = self._bound.sockets
        if address == self._address and sockets:
            return Bound(sockets, context)
        ours = [sock.getsockname()[1] for sock in sockets if sock.family != socket.AF_UNIX]
        return Bound(server.bind(address, ours), context)

    async def keep(self, settings: dict[str, Any], bound: Bound) -> None:
        """Serves there from now on, by these settings (`listen`, `token`)."""
        self._guard.set_token(settings["token"])
        self._address = settings["listen"]["address"]
        self._server.context = bound.context
        before, self._bound = self._bound, bound
        if bound.sockets is not before.sockets:
            paths = _paths(before.sockets)
            await self._server.listen(bound.sockets)  # which closes those before
            _unlink(paths)

    def release(self, bound: Bound) -> None:
        if bound.sockets is not self._bound.sockets:
            _unlink(_paths(bound.sockets))
            for sock in bound.sockets:
                sock.close()

    async def freeze(self) -> None:
        """Nothing is changed any more; looking goes on."""
        await self._api.close()

    async def close(self) -> None:
        await self._api.close()
        paths = _paths(self._bound.sockets)
        self._bound = Bound()
        await self._server.close()
        _unlink(paths)


def _paths(sockets: list[socket.socket]) -> list[str]:
    return [sock.getsockname() for sock in sockets if sock.family == socket.AF_UNIX]


def _unlink(paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
