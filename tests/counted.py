"""What tests of the numbers share: exchanges that have ended, as the values that are read of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream

from aigw import shared
from aigw.admit import Admission, admit
from aigw.config import snapshot
from aigw.config.snapshot import Snapshot
from aigw.config.upstreams import Candidate
from aigw.counters import EJECTED, HEALTH, HEALTH_WIDTH, WHY, Counters
from aigw.errors import Failure
from aigw.route import choose, find
from aigw.shared import Cells
from aigw.wire.head import RequestParser

ODD = 'a"b\\c\nd\t\u00e4{}'  # a model's name may be any text


def config(**fields: Any) -> dict[str, Any]:
    up = upstream(target("http://127.0.0.1:1", "a"), target("http://127.0.0.1:2", "b"), api_key="sk-secret")
    none = upstream(target("http://127.0.0.1:1", weight=0))
    models = {"gpt-4o": model("up"), "claude-*": model("up"), "idle": model("none"), ODD: model("up")}
    rules = [rule(), rule("fixed", "/fixed", upstream="up")]
    keys = {"demo": key("sk-demo"), "team": key("sk-team", group="search")}
    main = gateway(*rules, auth="keys", keys=keys, models=models)
    return document({"up": up, "none": none}, gateways={"main": main}) | fields


class Turn:
    """The view of routing: the `count`th choice."""

    def __init__(self) -> None:
        self.count = 0

    def in_flight(self, target: object) -> int:
        return 0

    def cursor(self, upstream: object) -> int:
        self.count += 1
        return self.count

    def draw(self) -> float:
        return 0.0

    def out_until(self, target: object) -> float:
        return 0.0


@dataclass
class Ended:
    """An exchange at its end. Times are seconds."""

    snapshot: Snapshot
    admission: Admission
    model: str | None = None
    candidate: Candidate | None = None
    status: int = 200
    request_id: bytes = b"id"
    started: float = 1000.0
    acquiring_at: float = 1000.0
    sent_at: float = 1000.0
    head_at: float = 0.0
    first_at: float = 0.0


def ended(
    compiled: Snapshot,
    asked: str | None = "gpt-4o",
    *,
    path: str = "/v1/chat/completions",
    credential: str = "sk-demo",
    status: int = 200,
    overhead: float = 0.00003,
    turn: Turn | None = None,
) -> Ended:
    """As far as serving would have come: admitted, routed, answered."""
    head = f"POST {path} HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer {credential}\r\ncontent-type: application/json"
    admission = admit(compiled, RequestParser().parse(head.encode(), compiled.head_bounds), 0.0)
    done = Ended(compiled, admission, asked, status=status)
    if admission.failure is not None:
        return done
    resolved = find(admission.found, admission.dialect, admission.key, asked)
    if not isinstance(resolved, Failure):
        chosen = choose(resolved, turn or Turn())
        if not isinstance(chosen, Failure):
            done.candidate = chosen
            done.acquiring_at = done.sent_at = done.started + overhead
            done.head_at = done.started + 0.1
    return done


def compile(generation: int = 1) -> Snapshot:
    return snapshot.compile(config(), generation)


@pytest.fixture
def made() -> Iterator[Cells]:
    """Cells of two workers."""
    cells = Cells(rows=2)
    for number in range(2):
        cells.use(number)
    yield cells
    cells.close()


def counters(made: Cells, row: int = 0) -> Counters:
    return Counters(made.row(row), made.series(row))


def ejected(made: Cells, text: str, seconds: float, row: int = 0) -> None:
    """A worker has let a target rest, since it answered 500."""
    series = made.series(row)
    series.declare(HEALTH, HEALTH_WIDTH)
    at = series.at(HEALTH, text.encode())
    made.row(row)[at + EJECTED] = int((monotonic() + seconds) * 1000)
    made.row(row)[at + WHY] = 500


def fill(made: Cells, left: int) -> None:
    """Leaves room for so many entries more in row 0."""
    series = made.series(0)
    series.declare(b"filling", 1)
    for number in range(shared.CAPACITY * 3 // 4 - left - made.row(0)[shared._ENTRIES]):
        series.at(b"filling", b"%d" % number)


def pool(name: str, idle: int, busy: int, waiting: int) -> SimpleNamespace:
    """What is read of a pool of the upstream `up`."""
    (found,) = [target for target in compile().upstreams["up"].targets if target.name == name]
    return SimpleNamespace(target=found, idle=[None] * idle, busy=busy, waiting=[None] * waiting)
