"""Which targets are in service: those that fail rest for a while, those that say so too, and probes look at the others.

What one worker finds out it writes into its own row of the cells, and every worker reads all rows once in a period of
the sweep; so all know of a target that is out a tenth of a second later. The living worker with the first row probes
for all of them. How long a rest is, is `policies/ejection.py`'s arithmetic. An ejected target is back once it can be
connected to, so that no client is the one to find out that it is still dead.

Who waits for a dial to a target where packets vanish waits for all of `timeouts.connect`. So that not every request
does, such a target is down until a connect of our own succeeds; also where it is the only one, and nothing is
configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from aigw.counters import (
    DOWN,
    EJECTED,
    HEALTH,
    HEALTH_WIDTH,
    IN_SERVICE,
    PROBED,
    RESTS,
    UNREACHED,
    WHY,
    clear,
    reason_number,
    standing,
)
from aigw.errors import (
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    FIRST_BYTE_TIMEOUT,
    SEND_TIMEOUT,
    UPSTREAM_CUT,
    UPSTREAM_MALFORMED,
    UPSTREAM_RESET,
    Failure,
)
from aigw.policies.ejection import Ejection
from aigw.proxy.probe import probe

if TYPE_CHECKING:
    from aigw.config.snapshot import Snapshot
    from aigw.config.upstreams import Candidate, Target
    from aigw.config.upstreams import Health as Spec
    from aigw.proxy.dial import Dialler
    from aigw.shared import Peers, Series

# What says something about the target, and not about the client, the request or ourselves.
FAILURES: Final = frozenset(
    {
        CONNECT_FAILED,
        CONNECT_TIMEOUT,
        UPSTREAM_RESET,
        UPSTREAM_MALFORMED,
        UPSTREAM_CUT,
        SEND_TIMEOUT,
        FIRST_BYTE_TIMEOUT,
    }
)
# Seconds between two connects to a target that could not be connected to.
AGAIN: Final = 1.0
# Statuses with which a target may say when to come back (RFC 9110 section 10.2.3).
LATER: Final = frozenset({429, 503})


class Watched:
    """One target: what this worker knows of it, and in `standing` what all of them know together."""

    __slots__ = (
        "bad",
        "down",
        "ejection",
        "good",
        "is_out",
        "is_unreached",
        "next_connect",
        "next_probe",
        "ours",
        "rests",
        "said",
        "standing",
        "target",
        "under_way",
    )

    def __init__(self, target: Target, ours: memoryview) -> None:
        self.target = target
        self.ours = ours  # an entry of HEALTH
        self.standing = IN_SERVICE
        # passive; without `eject` it is not asked
        self.ejection = Ejection(1, 1.0)
        self.is_out = False  # ejected by this worker, and not back yet
        self.rests = False  # let rest by this worker
        self.is_unreached = False  # found by this worker: connects to it time out
        self.next_connect = 0.0
        self.said = False  # that it is the last and stays
        # probes: in a row, and what came of them
        self.good = 0
        self.bad = 0
        self.down = False
        self.next_probe = 0.0
        self.under_way = False

    def __repr__(self) -> str:
        return f"<Watched {self.target!r} {self.standing.state}>"


class Health:
    """`log` takes a line for the operator; `row` and `series` are the worker's own."""

    __slots__ = ("_by_text", "_is_prober", "_log", "_loop", "_peers", "_row", "_series", "_tasks", "dialler")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        dialler: Dialler,
        row: memoryview,
        series: Series,
        peers: Peers,
        log: Callable[[str], None],
    ) -> None:
        # wiring
        self._loop = loop
        self.dialler = dialler
        self._row = row
        self._series = series
        self._peers = peers
        self._log = log
        clear(row, series, HEALTH)
        series.declare(HEALTH, HEALTH_WIDTH)
        # state
        self._by_text: dict[bytes, Watched] = {}
        self._is_prober = False
        self._tasks: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        out = sum(watched.standing is not IN_SERVICE for watched in self._by_text.values())
        return f"<Health {len(self._by_text)} watched {out} out>"

    def apply(self, snapshot: Snapshot) -> None:
        """Watch the targets of another snapshot; of those that stayed the same it is still known how they are."""
        before, self._by_text = self._by_text, {}
        for upstream in snapshot.upstreams.values():
            for target in upstream.targets:
                watched = before.get(target.text)
                if watched is not None and watched.target.pool_key != target.pool_key:
                    watched = None
                is_asked = target.weight and (upstream.eject is not None or upstream.health is not None)
                if is_asked or (watched is not None and watched.is_unreached):
                    watched = watched or self._watch(target)
                    watched.target = target
                    if upstream.eject is not None:
                        watched.ejection.change(upstream.eject.after, upstream.eject.seconds)
                    if upstream.health is None:
                        watched.down = False
                        watched.ours[PROBED] = watched.ours[DOWN] = 0
                    self._by_text[target.text] = watched
        for text in before.keys() - self._by_text.keys():
            _forget(before[text])
        self.refresh(monotonic())

    def _watch(self, target: Target) -> Watched:
        watched = self._by_text[target.text] = Watched(target, self._values(target.text))
        _forget(watched)
        return watched

    def _values(self, text: bytes) -> memoryview:
        at = self._series.at(HEALTH, text)
        if self._series.find(HEALTH, text, HEALTH_WIDTH) != at:  # there was no room: only this worker knows
            return memoryview(bytearray(8 * HEALTH_WIDTH)).cast("q")
        return self._row[at : at + HEALTH_WIDTH]

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def out_until(self, target: Target) -> float:
        """See `route.View`."""
        watched = self._by_text.get(target.text)
        return 0.0 if watched is None else watched.standing.until

    # what attempts say --------------------------------------------------------------------------------------------

    def saw(
        self, candidate: Candidate, status: int, failure: Failure | None, retry_after: float | None, now: float
    ) -> None:
        """An attempt has ended: by the `status` of its final response, or by a failure, the status then being 0.
        `retry_after` are the seconds that the response asks for. For candidates that are `watched`."""
        watched = self._by_text.get(candidate.target.text)
        if watched is None:
            return
        if failure is not None:
            if failure.kind in FAILURES:
                self._failed(watched, failure.kind.code, now)
        elif status in LATER and retry_after:
            self._rest(watched, status, retry_after, now)
        elif status >= 500:
            self._failed(watched, f"it answered {status}", now)
        else:
            watched.ejection.succeeded()
            watched.said = False

    def _failed(self, watched: Watched, why: str, now: float) -> None:
        ejection = watched.ejection
        if watched.is_out or not ejection.failed(now):
            return
        target = watched.target
        if not self._has_others(target):
            if not watched.said:
                watched.said = True
                self._log(f"target {_name(target)} fails, and stays since no other is in service: {why}")
            return
        seconds = ejection.rest(now)
        watched.is_out = True
        watched.ours[EJECTED] = _ms(ejection.until)
        watched.ours[WHY] = reason_number(why)
        self._log(f"target {_name(target)} is ejected for {seconds:g} s: it failed too often in a row, at last: {why}")
        self._look(watched, now)

    def _rest(self, watched: Watched, status: int, seconds: float, now: float) -> None:
        seconds = watched.ejection.bounded(seconds)
        ours = watched.ours
        ours[RESTS] = max(ours[RESTS], _ms(now + seconds))
        ours[WHY] = reason_number(f"it answered {status}")
        if not watched.rests:
            watched.rests = True
            self._log(f"target {_name(watched.target)} rests for {seconds:g} s: it answered {status} with retry-after")
        self._look(watched, now)

    def unreached(self, target: Target, now: float) -> None:
        """Dials to the target were lost to time, several in a row: nobody is to wait for another one. It is looked at
        from now on, if it was not before."""
        watched = self._by_text.get(target.text) or self._watch(target)
        if not watched.is_unreached:
            watched.is_unreached = True
            watched.ours[UNREACHED] = 1
            self._log(f"target {_name(target)} is down: connects time out; it is asked again once one succeeds")
            self._look(watched, now)

    def _has_others(self, target: Target) -> bool:
        return any(
            other.weight and other is not target and not self.out_until(other) for other in target.upstream.targets
        )

    # what all know ------------------------------------------------------------------------------------------------

    def refresh(self, now: float) -> None:
        """Called by the sweep: reads what others know, sees who is back, and probes."""
        self._take_over(now)
        for watched in self._by_text.values():
            ours = watched.ours
            if watched.rests and _ms(now) >= ours[RESTS]:
                watched.rests = False
                self._log(f"target {_name(watched.target)} is asked again: its rest is over")
            if watched.is_out and now >= watched.ejection.until and not watched.under_way:
                self._begin(watched, self._readmit(watched))
            if watched.is_unreached and now >= watched.next_connect and not watched.under_way:
                self._begin(watched, self._reach(watched))
            self._look(watched, now)
            health = watched.target.upstream.health
            if self._is_prober and health is not None and now >= watched.next_probe and not watched.under_way:
                watched.next_probe = now + health.interval
                self._begin(watched, self._probe(watched, health))

    def _look(self, watched: Watched, now: float) -> None:
        rows = [watched.ours, *self._peers.values(HEALTH, watched.target.text, HEALTH_WIDTH)]
        watched.standing = standing(rows, _ms(now), is_probed=watched.target.upstream.health is not None)

    async def _readmit(self, watched: Watched) -> None:
        """Back into service, or out for longer. Meanwhile it stays out."""
        target = watched.target
        seconds = target.upstream.timeouts.connect
        watched.ours[EJECTED] = _ms(monotonic() + 2 * seconds)
        why = await probe(self._loop, self.dialler, target, None, seconds)
        now = monotonic()
        if why:
            seconds = watched.ejection.rest(now)
            watched.ours[EJECTED] = _ms(watched.ejection.until)
            self._log(f"target {_name(target)} stays ejected for {seconds:g} s: {why}")
        else:
            watched.is_out = False
            watched.ours[EJECTED] = 0
            self._log(f"target {_name(target)} is back: it can be connected to")
        self._look(watched, now)

    async def _reach(self, watched: Watched) -> None:
        target = watched.target
        why = await probe(self._loop, self.dialler, target, None, target.upstream.timeouts.connect)
        now = monotonic()
        watched.next_connect = now + AGAIN
        if not why:
            watched.is_unreached = False
            watched.ours[UNREACHED] = 0
            self._log(f"target {_name(target)} is up: it can be connected to")
            self._look(watched, now)

    # probes -------------------------------------------------------------------------------------------------------

    def _take_over(self, now: float) -> None:
        """Who probed before may be gone; what it last said holds on."""
        was_prober, self._is_prober = self._is_prober, self._peers.is_first()
        if self._is_prober and not was_prober:
            for watched in self._by_text.values():
                if watched.target.upstream.health is not None:
                    watched.down = watched.standing.state == "down"
                    self._write_probe(watched, now)

    async def _probe(self, watched: Watched, health: Spec) -> None:
        target = watched.target
        why = await probe(self._loop, self.dialler, target, health.path, health.timeout)
        if self._by_text.get(target.text) is not watched or watched.target.upstream.health is None:
            return  # it is probed no more
        watched.good, watched.bad = (0, watched.bad + 1) if why else (watched.good + 1, 0)
        if not watched.down and watched.bad >= health.unhealthy_after:
            watched.down = True
            watched.ours[WHY] = reason_number(why)
            self._log(f"target {_name(target)} is down: {_in_a_row(watched.bad)} failed, at last: {why}")
        elif watched.down and watched.good >= health.healthy_after:
            watched.down = False
            self._log(f"target {_name(target)} is up: {_in_a_row(watched.good)} succeeded")
        now = monotonic()
        self._write_probe(watched, now)
        self._look(watched, now)

    def _write_probe(self, watched: Watched, now: float) -> None:
        watched.ours[DOWN] = watched.down
        watched.ours[PROBED] = _ms(now)

    def _begin(self, watched: Watched, deed: Coroutine[Any, Any, None]) -> None:
        watched.under_way = True
        task = self._loop.create_task(deed)
        self._tasks.add(task)

        def done(ended: asyncio.Future[None]) -> None:
            watched.under_way = False
            self._tasks.discard(ended)
            if not ended.cancelled() and (error := ended.exception()) is not None:
                self._log(f"probing target {_name(watched.target)} failed by a fault of the gateway: {error!r}")

        task.add_done_callback(done)


def _forget(watched: Watched) -> None:
    for slot in range(HEALTH_WIDTH):
        watched.ours[slot] = 0


def _name(target: Target) -> str:
    return target.text.decode()


def _in_a_row(count: int) -> str:
    return "a probe" if count == 1 else f"{count} probes in a row"


def _ms(moment: float) -> int:
    return int(moment * 1000)
