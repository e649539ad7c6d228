"""The connections to one target: idle ones, and the exchanges that wait for one.

An exchange takes the idle connection used last, so that those not needed grow old and close. Where there is none, a
new one is dialled and the exchange waits; whichever comes first, the dialled one or one given back, is handed to the
exchange that has waited longest. With `max_connections` an exchange may wait without a dial. How a
connection is opened is `dial.py`'s business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from aigw.errors import CONNECT_FAILED, CONNECT_TIMEOUT, INTERNAL, Failure
from aigw.proxy.dial import Dialler, describe
from aigw.proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from aigw.config.snapshot import Target
    from aigw.gateway import Gateway
    from aigw.proxy.exchange import Exchange


class Pool:
    """`target` is that of the newest snapshot: its timeouts and bounds apply to the connections of older ones too."""

    __slots__ = ("_dialler", "_tasks", "busy", "dialling", "gateway", "idle", "is_retired", "target", "waiting")

    def __init__(self, gateway: Gateway, dialler: Dialler, target: Target) -> None:
        self.gateway = gateway
        self._dialler = dialler
        self.target = target
        self.idle: list[UpstreamConnection] = []  # the one used last stands last
        self.busy = 0
        self.waiting: deque[Exchange] = deque()
        self.dialling = 0
        self.is_retired = False  # no longer in the config: what is given back is closed
        self._tasks: set[asyncio.Future[None]] = set()  # the loop itself keeps only weak references

    def __repr__(self) -> str:
        return (
            f"<Pool {self.target.upstream.name}/{self.target.name} {len(self.idle)} idle {self.busy} busy "
            f"{len(self.waiting)} waiting>"
        )

    def idle_connection(self, now: float) -> UpstreamConnection | None:
        """An idle connection, now busy; None where there is none. A closed one is never handed out."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.idle_until > now:
                self.busy += 1
                return connection
            self.busy += 1  # `abort` counts it off again
            connection.abort()
        return None

    def wait(self, exchange: Exchange) -> bool:
        """Call the exchange back with a connection or a failure. False where it waits for one to become free."""
        self.waiting.append(exchange)
        if self._is_full():
            return False
        self._dial()
        return True

    def cancel(self, exchange: Exchange) -> None:
        """The exchange waits no more. A dial that is under way goes on: its connection will be of use."""
        self.waiting.remove(exchange)

    def release(self, connection: UpstreamConnection, now: float) -> None:
        """Take a connection back, or a new one in: to whoever waits for it, else to the idle ones."""
        if self.waiting and self._hand(connection, now):
            return
        seconds = self.target.upstream.timeouts.pool_idle
        if connection.keep_alive >= 0:
            seconds = min(seconds, connection.keep_alive - 1)
        if seconds <= 0 or self.is_retired:
            connection.abort()
            return
        self.busy -= 1
        connection.is_reused = True
        connection.idle_until = now + seconds
        self.idle.append(connection)

    def _hand(self, connection: UpstreamConnection, now: float) -> bool:
        """To the exchange that has waited longest; one that is sent again wants a connection nobody had before."""
        connection.is_reused = connection.served > 0
        for index, exchange in enumerate(self.waiting):
            if not (exchange.replayed and connection.is_reused):
                del self.waiting[index]
                exchange.connected(connection, now)
                return True
        return False

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection closes, whatever it was doing."""
        if connection in self.idle:
            self.idle.remove(connection)
        else:
            self.busy -= 1
        self._dial_for_waiting()

    def _dial_for_waiting(self) -> None:
        """Someone waits for a connection that will not come back: open another in its place."""
        if len(self.waiting) > self.dialling and not self._is_full():
            self._dial()

    def close_idle(self, now: float) -> None:
        """Close what was idle for too long; the oldest stand first."""
        while self.idle and self.idle[0].idle_until <= now:
            self.idle[0].abort()

    def retire(self) -> None:
        self.is_retired = True
        while self.idle:
            self.idle[0].abort()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self.retire()

    @property
    def open(self) -> int:
        """Connections, those that are being opened among them."""
        return len(self.idle) + self.busy + self.dialling

    @property
    def in_flight(self) -> int:
        return self.busy + len(self.waiting)

    def _is_full(self) -> bool:
        most = self.target.upstream.max_connections
        return most is not None and self.busy + len(self.idle) + self.dialling >= most

    # dialling -----------------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        self.gateway.make_room()
        self.dialling += 1
        task = self.gateway.loop.create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        failure: Failure | None = None
        connection: UpstreamConnection | None = None
        try:
            connection = await self._dialler.open(self.target, lambda: UpstreamConnection(self))
        except TimeoutError:
            seconds = self.target.upstream.timeouts.connect
            failure = Failure(CONNECT_TIMEOUT, f"the upstream could not be connected to within {seconds:g} s")
        except OSError as error:
            failure = Failure(CONNECT_FAILED, f"the upstream could not be connected to: {describe(error)}")
        except Exception as error:
            self.gateway.report(error, self)
            failure = Failure(INTERNAL, "the gateway failed to connect to the upstream; its log says how")
        finally:
            self.dialling -= 1
        if connection is not None:
            self.busy += 1
            self.release(connection, monotonic())
        elif failure is not None and len(self.waiting) > self.dialling:
            self.waiting.popleft().dial_failed(failure)
            self._dial_for_waiting()
