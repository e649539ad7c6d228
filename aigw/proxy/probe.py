"""One probe of a target: a connect, or one GET and the status that answers it. Never anything that costs money.

Its connection is its own and closed at once: a probe shall find out whether a new client would get through.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast

from aigw.proxy.dial import describe

if TYPE_CHECKING:
    from aigw.config.upstreams import Target
    from aigw.proxy.dial import Dialler

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([2-5][0-9]{2})[ \r]")
# Bytes of an answer in which its status must have come; interim responses before it are not waited through.
MOST: Final = 4096


class _Get(asyncio.Protocol):
    """Sends `request`, if any; `status` is set by what comes first, 0 where that is no HTTP."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: bytes) -> None:
        self._request = request
        self._data = b""
        self.transport: asyncio.Transport
        self.status: asyncio.Future[int] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self._request:
            self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._data += data
        found = _STATUS_LINE.match(self._data)
        if found is not None:
            self._say(int(found[1]))
        elif b"\n" in self._data or len(self._data) > MOST:
            self._say(0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._say(0)

    def _say(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)


async def probe(
    loop: asyncio.AbstractEventLoop, dialler: Dialler, target: Target, path: str | None, seconds: float
) -> str:
    """ "" for a target that can be connected to within `seconds`, and that answers GET `path`, where there is one, with
    a status below 400; else what is wrong, in words."""
    request = b""
    if path is not None:
        lines = (b"GET %b HTTP/1.1" % path.encode(), target.host_line, b"user-agent: aigw", b"connection: close")
        request = b"\r\n".join(lines) + b"\r\n" + target.fixed + b"\r\n"
    try:
        async with asyncio.timeout(seconds):
            get = await dialler.open(target, lambda: _Get(loop, request))
            try:
                status = await get.status if request else 200
            finally:
                get.transport.abort()
    except TimeoutError:
        return f"nothing within {seconds:g} s"
    except OSError as error:
        return describe(error)
    if not status:
        return "no answer in HTTP"
    return "" if status < 400 else f"it answered {status}"
