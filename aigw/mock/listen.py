"""The mock as a server of its own: an address, signals, the end."""

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from aigw.mock.server import MockConnection
from aigw.mock.settings import Settings

_BACKLOG = 4096


async def serve(address: str, settings: Settings, *, ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then close every connection. For speed, run it on uvloop.

    address: `host:port`, `[::1]:port` (port 0: any that is free) or `unix:/path`; a stale socket at the path is
    replaced. ready: called with the address in the same form, its port filled in, once connections are taken (with
    `refuse` among the settings: once they are refused).
    Raises ValueError for an address that is none of these, OSError where it cannot be bound.
    """
    loop = asyncio.get_running_loop()
    members: set[MockConnection] = set()
    stop = asyncio.Event()
    sock, name = _bound(address)
    signals = (signal.SIGTERM, signal.SIGINT)
    try:
        server = None
        # A bound socket that does not listen refuses, and nobody else can take its port.
        if settings.failure != "refuse":
            create = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            server = await create(lambda: MockConnection(settings, loop, members), sock=sock, backlog=_BACKLOG)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        if ready is not None:
            ready(name)
        await stop.wait()
        for number in signals:
            loop.remove_signal_handler(number)
        if server is not None:
            server.close()
            for connection in tuple(members):
                connection.close()
            await server.wait_closed()
    finally:
        sock.close()
        _forget(address)


def _forget(address: str) -> None:
    """Remove the socket file of a `unix:` address."""
    if address.startswith("unix:"):
        with suppress(FileNotFoundError):
            Path(address.removeprefix("unix:")).unlink()


def _bound(address: str) -> tuple[socket.socket, str]:
    """A socket bound to the address, and the address as it turned out."""
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path:
            raise ValueError("unix: expected a path behind it, as in unix:/run/mock.sock")
        if Path(path).is_socket():
            _forget(address)
        sock = socket.socket(socket.AF_UNIX)
        family: int = socket.AF_UNIX
        place: Any = path
    else:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{address!r}: expected HOST:PORT, [IPV6]:PORT or unix:/PATH, as in 127.0.0.1:9000")
        family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(place)
    except OSError:
        sock.close()
        raise
    return sock, address if family == socket.AF_UNIX else _named(sock)


def _named(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"
