"""The connections to one target: idle ones, and the exchanges that wait for one.

An exchange takes the idle connection used last, so that those not needed grow old and close. Where there is none, a
new one is dialled and the exchange waits; whichever comes first, the dialled one or one given back, is handed to the
exchange that has waited longest. How a connection is opened is `dial.py`'s business.

With `max_connections` an exchange may wait without a dial. That bound holds over all workers: each counts its own in a
`Tally` and adds up those of the others. Who wants one more counts it first and looks then, so that of two who do so at
once none overlooks the other; at most they both wait until they `look` again. Exchanges of one worker get their turn
in order; workers that wait for one another's connections get them as those come free, by looks, a period of the sweep
later at most: who has more than its share gives one up then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Final

from aigw.counters import IN_FLIGHT, OPEN, QUEUED, Tally
from aigw.errors import CONNECT_FAILED, CONNECT_TIMEOUT, INTERNAL, Failure
from aigw.proxy.dial import Dialler, describe
from aigw.proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from aigw.config.upstreams import Target
    from aigw.gateway import Gateway
    from aigw.proxy.exchange import Exchange

# Dials in a row that are lost to time before nobody waits for one any more, and the seconds from which on a failed dial
# was such a one: a refusal is there at once, and is the better answer.
MISSED: Final = 3
SLOW: Final = 0.5
# Looks after one was given up: the first may come at once, and the other worker's a whole period later.
PAUSE: Final = 2


class Pool:
    """`target` is that of the newest snapshot: its timeouts and bounds apply to the connections of older ones too."""

    __slots__ = (
        "_dialler",
        "_owes",
        "_pause",
        "_tasks",
        "busy",
        "dialling",
        "gateway",
        "idle",
        "is_plain",
        "is_retired",
        "missed",
        "tally",
        "target",
        "waiting",
    )

    def __init__(self, gateway: Gateway, dialler: Dialler, target: Target) -> None:
        self.gateway = gateway
        self._dialler = dialler
        self.target = target
        self.idle: list[UpstreamConnection] = []  # the one used last stands last
        self.busy = 0
        self.waiting: deque[Exchange] = deque()
        self.dialling = 0
        self.missed = 0  # dials in a row that were lost to time
        self.is_retired = False  # no longer in the config: what is given back is closed
        self.tally: Tally | None = None  # where other workers' connections to the target count too
        self.is_plain = True  # neither of the two
        self._owes = False  # another worker waits for a connection that this one has too much
        self._pause = 0  # looks until one may be dialled again: others, who look now and then, come first
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
                if self.tally is not None:
                    self._count()
                return connection
            self.busy += 1  # `abort` counts it off again
            connection.abort()
        return None

    def wait(self, exchange: Exchange) -> bool:
        """Call the exchange back with a connection or a failure. False where it waits for one to become free."""
        self.waiting.append(exchange)
        return self._dial()

    def cancel(self, exchange: Exchange) -> None:
        """The exchange waits no more. A dial that is under way goes on: its connection will be of use."""
        self.waiting.remove(exchange)
        self._count()

    def release(self, connection: UpstreamConnection, now: float) -> None:
        """Take a connection back, or a new one in: to whoever waits for it, else to the idle ones."""
        # A new one serves once, whoever else waits.
        if self.waiting and not (self._owes and connection.served) and self._hand(connection, now):
            self._count()
            return
        seconds = self.target.upstream.timeouts.pool_idle
        if connection.keep_alive >= 0:
            seconds = min(seconds, connection.keep_alive - 1)
        if seconds <= 0 or not (self.is_plain or self._is_wanted()):
            connection.abort()
            return
        self.busy -= 1
        connection.is_reused = True
        connection.idle_until = now + seconds
        self.idle.append(connection)

    def _is_wanted(self) -> bool:
        """Whether a connection that no exchange of ours waits for is to be kept; it is counted as idle then."""
        if self._owes:
            self._owes = False
            self._pause = PAUSE
            return False
        if self.is_retired or self._is_over():
            return False
        assert self.tally is not None
        self.tally.count(self.open, self.in_flight - 1, len(self.waiting))
        return True

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
        self._count()
        self._dial_for_waiting()

    def _dial_for_waiting(self) -> None:
        """Someone waits for a connection that will not come back: open another in its place."""
        while len(self.waiting) > self.dialling and self._dial():
            pass

    def close_idle(self, now: float) -> None:
        """Close what was idle for too long; the oldest stand first."""
        while self.idle and self.idle[0].idle_until <= now:
            self.idle[0].abort()

    def share(self, tally: Tally | None) -> None:
        """Count what is open here for the other workers from now on, or no more."""
        if self.tally is not None:
            self.tally.count(0, 0, 0)
        self.tally = tally
        self._owes = False
        self._pause = 0
        self.is_plain = tally is None and not self.is_retired
        self._count()

    def look(self) -> None:
        """Called by the sweep where a tally is kept: what other workers do to theirs tells nobody.

        Who waits tries again. Who has what others wait for closes what is idle, or gives up the next that comes back.
        """
        tally = self.tally
        most = self.target.upstream.max_connections
        if tally is None or most is None:
            return
        self._pause = max(self._pause - 1, 0)
        self._dial_for_waiting()
        self._owes = False
        opened = self.open
        wanted = tally.others(QUEUED)
        if wanted and opened and opened + tally.others(OPEN) >= most:
            for _ in range(0 if self.waiting else min(wanted, len(self.idle))):
                self.idle[0].abort()
            # In proportion to what is asked for on either side; and nobody is to have none for long.
            ours = self.in_flight
            share = ceil(most * ours / (ours + tally.others(IN_FLIGHT)))
            self._owes = opened > share or tally.has_starving()

    def trim(self) -> None:
        """Close what is idle and was not too much before."""
        while self.idle and self._is_over():
            self.idle[0].abort()

    def retire(self) -> None:
        self.is_retired = True
        self.share(None)
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

    def _count(self) -> None:
        if self.tally is not None:
            self.tally.count(self.open, self.in_flight, len(self.waiting))

    def _is_over(self) -> bool:
        """Whether there are more than there may be, those that are being opened among them."""
        most = self.target.upstream.max_connections
        if most is None:
            return False
        opened = self.open
        return opened > most or (self.tally is not None and opened + self.tally.others(OPEN) > most)

    # dialling -----------------------------------------------------------------------------------------------------

    def _dial(self) -> bool:
        """False where there may be no more connections."""
        if self._pause:
            return False
        self.dialling += 1
        self._count()
        if self._is_over():
            self.dialling -= 1
            self._count()
            return False
        self.gateway.make_room()
        began = monotonic()
        dialling = self._dialler.dial(self.target, self._make, lambda found: self._dialled(found, began))
        task = self.gateway.loop.create_task(dialling)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return True

    def _make(self) -> UpstreamConnection:
        return UpstreamConnection(self)

    def _forget(self, task: asyncio.Future[None]) -> None:
        """The only one who hears of a task that was cancelled before its first step."""
        self._tasks.discard(task)
        if task.cancelled():
            self.dialling -= 1

    def _dialled(self, found: UpstreamConnection | Exception, began: float) -> None:
        """A dial has ended: with a connection, or with why there is none."""
        self.dialling -= 1
        now = monotonic()
        if isinstance(found, UpstreamConnection):
            self.missed = 0
            self.busy += 1
            self.release(found, now)
            return
        if isinstance(found, TimeoutError):
            seconds = self.target.upstream.timeouts.connect
            failure = Failure(CONNECT_TIMEOUT, f"the upstream could not be connected to within {seconds:g} s")
        elif isinstance(found, OSError):
            failure = Failure(CONNECT_FAILED, f"the upstream could not be connected to: {describe(found)}")
        else:
            self.gateway.report(found, self)
            failure = Failure(INTERNAL, "the gateway failed to connect to the upstream; its log says how")
        if failure.kind is CONNECT_TIMEOUT or now - began > SLOW:
            self.missed += 1
            if self.missed >= MISSED and not self.is_retired:
                self.gateway.health.unreached(self.target, now)
        if len(self.waiting) > self.dialling:
            self.waiting.popleft().dial_failed(failure)
            self._count()
            self._dial_for_waiting()
