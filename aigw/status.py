"""What the gateway is right now, as plain data: what `/status` answers.

`Facts` are what the supervisor knows; everything else is read off the cells. Of a worker that is gone the counts remain
and the states do not: rows without a process are left out of those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from aigw import shared
from aigw.config.limits import Limit, limits_of
from aigw.config.upstreams import target_text
from aigw.counters import (
    BUSY,
    EXCHANGES,
    HEALTH,
    IDLE,
    IN_FLIGHT,
    IN_SERVICE,
    SUM,
    TALLIES,
    TARGETS,
    WAITING,
    Standing,
    standing,
)
from aigw.policies.allowance import bind
from aigw.policies.attempts import Asker, Attempts, Full
from aigw.shared import Cells

if TYPE_CHECKING:
    from aigw.config.upstreams import Candidate, Target, Upstream
    from aigw.meters import Meters


@dataclass(frozen=True, slots=True)
class Facts:
    """What the supervisor knows. `config` is the file's path, None for the built-in one; `errors` say what is wrong
    with a file that is not obeyed; `lost` are exchanges that ended with their worker."""

    version: str
    uptime: float  # seconds
    generation: int
    document: Mapping[str, Any] = field(repr=False)  # holds credentials
    config: str | None = None
    errors: tuple[str, ...] = ()
    listeners: tuple[str, ...] = ()
    admin: tuple[str, ...] = ()  # where the admin API is
    wanted: int = 1  # workers
    restarts: int = 0
    lost: int = 0
    dropped: int = 0  # lines of the access log that the supervisor could not write
    usage_store: str | None = None  # the file's path; None: off
    usage_error: str = ""  # why it is not written now


def living(cells: Cells) -> Iterator[tuple[int, memoryview]]:
    """Rows that a process writes now."""
    for number in range(cells.rows_used):
        row = cells.row(number)
        if row[shared.PID]:
            yield number, row


def states(cells: Cells) -> dict[bytes, list[int]]:
    """TARGETS, summed over the living."""
    sums: dict[bytes, list[int]] = {}
    for number, _ in living(cells):
        for text, values in cells.series(number).items(TARGETS):
            known = sums.get(text, [0, 0, 0])
            sums[text] = [one + other for one, other in zip(known, values, strict=True)]
    return sums


def standings(cells: Cells, document: Mapping[str, Any]) -> dict[bytes, Standing]:
    """How the targets of a document are; those that nobody watches are in service."""
    rows: dict[bytes, list[list[int]]] = {}
    for number, _ in living(cells):
        for text, values in cells.series(number).items(HEALTH):
            rows.setdefault(text, []).append(values)
    now = int(monotonic() * 1000)
    found = {}
    for name, upstream in document["upstreams"].items():
        for target in _targets(upstream):
            text = target_text(name, target["name"])
            is_probed = upstream["health"] is not None
            found[text] = standing(rows[text], now, is_probed=is_probed) if text in rows else IN_SERVICE
    return found


class Present:
    """The workers' moment, as explaining sees it; not what each of them has for itself: turns, chance."""

    def __init__(self, cells: Cells, document: Mapping[str, Any], meters: Meters) -> None:
        """`meters` are the process's own."""
        self._attempts = Attempts(meters, lambda *_: None)
        self._standings = standings(cells, document)
        self._in_flight: dict[bytes, int] = {}
        for text, values in states(cells).items():
            self._in_flight[text] = values[BUSY] + values[WAITING]
        tallied: dict[bytes, int] = {}
        for number, _ in living(cells):
            for text, values in cells.series(number).items(TALLIES):
                tallied[text] = tallied.get(text, 0) + values[IN_FLIGHT]
        self._in_flight |= tallied  # which are newer

    def in_flight(self, target: Target) -> int:
        return self._in_flight.get(target.text, 0)

    def cursor(self, upstream: Upstream) -> int:
        return 0

    def draw(self) -> float:
        return 0.0

    def out_until(self, target: Target) -> float:
        return self.standing(target).until

    def full(self, candidate: Candidate, asker: Asker | None) -> Full | None:
        return self._attempts.full(candidate, asker, monotonic())

    def standing(self, target: Target) -> Standing:
        return self._standings.get(target.text, IN_SERVICE)


def connections(cells: Cells) -> dict[tuple[str, str], int]:
    """Open ones by side and state. A client is active while an exchange of it runs."""
    rows = [row for _, row in living(cells)]
    running = sum(row[shared.IN_FLIGHT] for row in rows)
    found = states(cells).values()
    return {
        ("client", "active"): running,
        ("client", "idle"): max(sum(row[shared.CONNECTIONS] for row in rows) - running, 0),
        ("upstream", "busy"): sum(values[BUSY] for values in found),
        ("upstream", "idle"): sum(values[IDLE] for values in found),
    }


def dropped(facts: Facts, cells: Cells) -> int:
    """Records of the access log that are lost, on their way or at its end."""
    return cells.total(shared.LOG_DROPPED) + facts.dropped


def descriptors(pid: int) -> int | None:
    """How many files a process of ours has open; None where the system does not tell."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def status(facts: Facts, cells: Cells, meters: Meters) -> dict[str, Any]:
    """Plain data for JSON: names, numbers and errors of the config, no credential. `meters` are the process's own."""
    open_now = connections(cells)
    sides: dict[str, dict[str, int]] = {"client": {}, "upstream": {}}
    for (side, state), count in open_now.items():
        sides[side][state] = count
    return {
        "version": facts.version,
        "pid": os.getpid(),
        "uptime_seconds": round(facts.uptime, 1),
        "generation": facts.generation,
        "config": {"path": facts.config, "ok": not facts.errors, "errors": list(facts.errors)},
        "listeners": list(facts.listeners),
        "admin": list(facts.admin),
        "workers": [
            {
                "pid": row[shared.PID],
                "generation": row[shared.GENERATION],
                "in_flight": row[shared.IN_FLIGHT],
                "connections": row[shared.CONNECTIONS],
                "open_fds": descriptors(row[shared.PID]),
            }
            for _, row in living(cells)
        ],
        "workers_wanted": facts.wanted,
        "worker_restarts": facts.restarts,
        "in_flight": open_now["client", "active"],
        "connections": sides,
        "exchanges": {
            "total": sum(sum(values[:SUM]) for values in cells.totals(EXCHANGES).values()) + facts.lost,
            "worker_lost": facts.lost,
        },
        "log_dropped": dropped(facts, cells),
        "usage_store": {"path": facts.usage_store, "error": facts.usage_error or None},
        "upstreams": _upstreams(facts, cells, meters),
    }


def _upstreams(facts: Facts, cells: Cells, meters: Meters) -> dict[str, dict[str, dict[str, Any]]]:
    found = states(cells)
    health = standings(cells, facts.document)
    now = monotonic()
    upstreams: dict[str, dict[str, dict[str, Any]]] = {}
    for name, upstream in facts.document["upstreams"].items():
        targets = upstreams[name] = {}
        for target in _targets(upstream):
            text = target_text(name, target["name"])
            values = found.get(text, [0, 0, 0])
            entry = targets[target["name"]] = {
                "weight": target["weight"],
                "state": health[text].state,
                "idle": values[IDLE],
                "busy": values[BUSY],
                "waiting": values[WAITING],
            }
            state, until, why = health[text]
            if state != IN_SERVICE.state:
                entry["why"] = why
            if 0.0 < until < inf:
                entry["seconds_left"] = round(max(until - now, 0.0), 1)
            limits = limits_of("upstream", (name,), upstream["limits"])
            limits += limits_of("target", (name, target["name"]), target.get("limits", ()))
            if limits:
                entry["limits"] = [_left(limit, meters, now) for limit in limits]
    return upstreams


def _left(limit: Limit, meters: Meters, now: float) -> dict[str, Any]:
    """Money is in nano-dollars."""
    left = max(limit.amount - bind(meters, limit, b"").meter.used(now), 0)
    return {
        "limit": limit.text,
        "unit": limit.unit,
        "amount": limit.amount,
        "left": left,
        "shadow": limit.shadow,
    }


def _targets(upstream: Mapping[str, Any]) -> list[dict[str, Any]]:
    return upstream["targets"] or [{"name": "mock", "weight": 1}]
