"""Opens sockets to targets: names resolved and remembered for a while, addresses tried in turn, TLS verified.

The one place of this package with coroutines. Each address gets its share of the connect time, so that a dead one
that comes first does not use up what the next one needs.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

from aigw.proxy.secure import Secure

if TYPE_CHECKING:
    from aigw.config.upstreams import Target

_P = TypeVar("_P", bound=asyncio.Protocol)

# Seconds a resolved name is believed.
REMEMBER: Final = 30.0
# Seconds an address gets at least, however many there are.
LEAST_SHARE: Final = 1.0


class Dialler:
    """One per worker. `mock_socket` is where the worker serves its own mock."""

    __slots__ = ("_contexts", "_loop", "_names", "mock_socket")

    def __init__(self, loop: asyncio.AbstractEventLoop, mock_socket: str | None) -> None:
        self._loop = loop
        self.mock_socket = mock_socket
        self._names: dict[tuple[str, int], tuple[float, list[tuple[str, int]]]] = {}
        self._contexts: dict[tuple[bool, str | None], ssl.SSLContext] = {}

    async def dial(self, target: Target, factory: Callable[[], _P], done: Callable[[_P | Exception], None]) -> None:
        """`open` for who does not wait: `done` is told how it ended, unless it is cancelled."""
        try:
            found = await self.open(target, factory)
        except Exception as error:
            done(error)
        else:
            done(found)

    async def open(self, target: Target, factory: Callable[[], _P]) -> _P:
        """Raises TimeoutError past `timeouts.connect` (TLS included), OSError for what the last address said."""
        connect = target.upstream.timeouts.connect
        deadline = monotonic() + connect
        address = target.address
        if not isinstance(address, tuple):
            async with asyncio.timeout(deadline - monotonic()):
                path = self.mock_socket if address is None else address
                return (await self._loop.create_unix_connection(factory, path))[1]
        async with asyncio.timeout(deadline - monotonic()):
            context = await self._context(target) if target.tls else None
            hosts = await self._addresses(*address)
        error: OSError = socket.gaierror("the name has no address")
        for index, (host, port) in enumerate(hosts):
            share = max((deadline - monotonic()) / (len(hosts) - index), min(LEAST_SHARE, connect))
            try:
                async with asyncio.timeout(share):
                    if context is not None:
                        return await self._secured(factory, host, port, context, target.server_name)
                    return (await self._loop.create_connection(factory, host, port))[1]
            except OSError as caught:  # a TimeoutError is one
                error = caught
        self._names.pop(address, None)  # the name may have moved
        raise error

    async def _secured(self, factory: Callable[[], _P], host: str, port: int, context: ssl.SSLContext, name: str) -> _P:
        """The same with the handshake done, and the upstream's `name` verified."""
        connection = factory()
        done = self._loop.create_future()

        def greeted(_: Secure, error: OSError | None) -> bytes:
            if done.cancelled():  # it took too long
                pass
            elif error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
            return b""

        make = partial(Secure, connection, context, name, greeted)
        secure = (await self._loop.create_connection(make, host, port))[1]
        try:
            await done
        except BaseException:
            secure.abort()
            raise
        return connection

    async def _addresses(self, host: str, port: int) -> list[tuple[str, int]]:
        known = self._names.get((host, port))
        now = monotonic()
        if known is not None and known[0] > now:
            return known[1]
        infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys((str(info[4][0]), port) for info in infos))
        self._names[host, port] = (now + REMEMBER, addresses)
        return addresses

    async def _context(self, target: Target) -> ssl.SSLContext:
        """Made in a thread: reading the system's authorities takes tens of milliseconds."""
        key = (target.verify, target.ca)
        context = self._contexts.get(key)
        if context is None:
            context = await self._loop.run_in_executor(None, _make_context, *key)
            self._contexts[key] = context
        return context


def _make_context(verify: bool, ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # of TLS 1.2: nothing that is written waits for what is to be read
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def describe(error: OSError) -> str:
    """What went wrong, in words without addresses or paths: where upstreams are is not the client's business."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "the TLS handshake failed"
    if isinstance(error, socket.gaierror):
        return "its name could not be resolved"
    return (error.strerror or type(error).__name__).lower()
