"""What the gateway is right now, as plain data: what `/status` answers.

`Facts` are what the supervisor knows; everything else is read off the cells. Of a worker that is gone the counts remain
and the states do not: rows without a process are left out of those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aigw import shared
from aigw.counters import BUSY, EXCHANGES, IDLE, SUM, TARGETS, WAITING, target_text
from aigw.shared import Cells


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


def status(facts: Facts, cells: Cells) -> dict[str, Any]:
    """Plain data for JSON: names, numbers and errors of the config, no credential."""
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
        "upstreams": _upstreams(facts, cells),
    }


def _upstreams(facts: Facts, cells: Cells) -> dict[str, dict[str, dict[str, int]]]:
    found = states(cells)
    upstreams: dict[str, dict[str, dict[str, int]]] = {}
    for name, upstream in facts.document["upstreams"].items():
        targets = upstreams[name] = {}
        for target in upstream["targets"] or [{"name": "mock", "weight": 1}]:
            values = found.get(target_text(name, target["name"]), [0, 0, 0])
            targets[target["name"]] = {
                "weight": target["weight"],
                "idle": values[IDLE],
                "busy": values[BUSY],
                "waiting": values[WAITING],
            }
    return upstreams
