"""What `/status` and `aigw status` say of a gateway: everything that is wrong, and no secret."""

from __future__ import annotations

import json
import os
from time import monotonic
from typing import Any

from counted import compile, config, counters, ejected, ended, made
from fakes import limit

from aigw import shared, show
from aigw.config import snapshot
from aigw.meters import Meters
from aigw.policies.allowance import bind
from aigw.shared import SUPERVISOR, Cells
from aigw.status import Facts
from aigw.status import status as whole_status
from aigw.tokens import Tokens

__all__ = ["made"]


def facts(**fields: object) -> Facts:
    given = {"version": "1.2", "uptime": 93784.56, "generation": 3, "document": config(), "config": "config.yaml"}
    given |= {"listeners": ("127.0.0.1:8081",), "admin": ("http://127.0.0.1:8080",), "wanted": 2}
    return Facts(**(given | {"usage_store": "/x/usage.db"} | fields))


def status(known: Facts, cells: Cells) -> dict[str, Any]:
    return whole_status(known, cells, Meters(cells, SUPERVISOR))


def serving(cells: Cells) -> None:
    """One worker serves, the other one is about to."""
    row = cells.row(0)
    row[shared.PID], row[shared.GENERATION] = os.getpid(), 3
    row[shared.CONNECTIONS], row[shared.IN_FLIGHT] = 5, 2
    cells.row(1)[shared.PID] = 2**22 + 1  # more than the system gives
    counters(cells).count(ended(compile()), "ok", None, 1000.5, Tokens(1, 2))


def test_what_there_is(made: Cells) -> None:
    serving(made)
    found = status(facts(), made)
    fds = found["workers"][0].pop("open_fds")
    assert fds > 2
    assert found == {
        "version": "1.2",
        "pid": os.getpid(),
        "uptime_seconds": 93784.6,
        "generation": 3,
        "config": {"path": "config.yaml", "ok": True, "errors": []},
        "listeners": ["127.0.0.1:8081"],
        "admin": ["http://127.0.0.1:8080"],
        "workers": [
            {"pid": os.getpid(), "generation": 3, "in_flight": 2, "connections": 5},
            {"pid": 2**22 + 1, "generation": 0, "in_flight": 0, "connections": 0, "open_fds": None},
        ],
        "workers_wanted": 2,
        "worker_restarts": 0,
        "in_flight": 2,
        "connections": {"client": {"active": 2, "idle": 3}, "upstream": {"busy": 0, "idle": 0}},
        "exchanges": {"total": 1, "worker_lost": 0},
        "log_dropped": 0,
        "usage_store": {"path": "/x/usage.db", "error": None},
        "upstreams": {
            "up": {
                "a": {"weight": 1, "state": "up", "idle": 0, "busy": 0, "waiting": 0},
                "b": {"weight": 1, "state": "up", "idle": 0, "busy": 0, "waiting": 0},
            },
            "none": {"a": {"weight": 0, "state": "up", "idle": 0, "busy": 0, "waiting": 0}},
        },
    }


def test_a_target_that_is_out_and_why(made: Cells) -> None:
    serving(made)
    ejected(made, "up/b", 30.0)
    ejected(made, "up/b", 20.0, row=1)
    found = status(facts(), made)
    assert found["upstreams"]["up"]["a"]["state"] == "up"
    out = found["upstreams"]["up"]["b"]
    assert (out["state"], out["why"]) == ("ejected", "it answered 500")
    assert 25.0 < out["seconds_left"] <= 30.0
    out["seconds_left"] = 12.5
    line = "              up/b    0 busy, 0 idle, 0 waiting, ejected: it answered 500, 12.5 s left"
    assert line in show.status(found).splitlines()
    out.pop("seconds_left")
    out |= {"state": "down", "why": "its probes fail"}
    assert (
        line.replace("ejected: it answered 500, 12.5 s left", "down: its probes fail")
        in show.status(found).splitlines()
    )


def test_what_is_left_of_limits(made: Cells) -> None:
    """What workers took of an upstream's and a target's own, all of them together."""
    document = config()
    up = document["upstreams"]["up"]
    up["limits"] = [limit("tokens", 1000, 60.0, "upstream")]
    up["targets"][0] = up["targets"][0] | {
        "limits": [limit("cost", 2_500_000_000, "day", "target"), limit("concurrency", 4, None, "target", shadow=True)]
    }
    target = snapshot.compile(document, 1).upstreams["up"].targets[0]
    now = monotonic()
    for number in (0, 1):
        tokens, cost, level = [bind(Meters(made, number), limit, b"").meter for limit in target.limits]
        for meter, count in ((tokens, 40), (cost, 600_000_000)):
            meter.used(now)
            meter.take(count, now)
        level.used(now)
        level.hold(1)
    serving(made)
    found = whole_status(facts(document=document), made, Meters(made, SUPERVISOR))
    a, b = found["upstreams"]["up"]["a"], found["upstreams"]["up"]["b"]
    assert b["limits"] == a["limits"][:1]
    assert [(one["limit"], one["left"], one["amount"]) for one in a["limits"]] == [
        ("tokens/1m per upstream", 920, 1000),
        ("cost/day per target", 1_300_000_000, 2_500_000_000),
        ("concurrency per target", 2, 4),
    ]
    lines = show.status(found).splitlines()
    assert [line.partition("waiting")[2] for line in lines if " up/" in line] == [
        "; tokens/1m per upstream: 920 of 1000 left; cost/day per target: $1.3 of $2.5 left; "
        "concurrency per target: 2 of 4 left, counted only",
        "; tokens/1m per upstream: 920 of 1000 left",
    ]
    assert not any("limits" in values for values in found["upstreams"]["none"].values())


def test_no_credential_is_shown(made: Cells) -> None:
    assert "sk-" not in json.dumps(status(facts(), made))
    assert "sk-" not in repr(facts())


def test_the_lines_for_people(made: Cells) -> None:
    serving(made)
    errors = ("config.yaml:3:1 gateways: missing", "config.yaml:9:1 upsteams: unknown key")
    assert (
        show.status(
            status(facts(errors=errors, restarts=1, lost=2, dropped=4, usage_error="/x/usage.db: disk full"), made)
        )
        == f"""\
aigw        1.2, pid {os.getpid()}, up 1d 2h
config      config.yaml, generation 3
  error     config.yaml:3:1 gateways: missing
  error     config.yaml:9:1 upsteams: unknown key
listens     127.0.0.1:8081
admin API   http://127.0.0.1:8080
workers     2 of 2, 1 restart
              pid {os.getpid()}: generation 3, 5 clients, 2 in flight
              pid 4194305: starting, 0 clients, 0 in flight
clients     2 active, 3 idle
upstreams   0 connections busy, 0 idle
              up/a    0 busy, 0 idle, 0 waiting
              up/b    0 busy, 0 idle, 0 waiting
              none/a  0 busy, 0 idle, 0 waiting, weight 0
exchanges   3 ended, 2 in flight
  lost      2 with their worker
log         4 records dropped
usage       /x/usage.db: disk full
"""
    )


def test_many_targets_are_counted(made: Cells) -> None:
    document = config()
    document["upstreams"]["up"]["targets"] *= 15
    for index, target in enumerate(document["upstreams"]["up"]["targets"]):
        document["upstreams"]["up"]["targets"][index] = target | {"name": f"t{index}"}
    lines = show.status(status(facts(document=document, uptime=59.9, config=None), made)).splitlines()
    assert lines[0].endswith("up 59s")
    assert lines[1] == "config      built-in, generation 3"
    assert "              ... and 11 more" in lines
