"""Who used what, asked of running gateways: complete whatever dies, kept over restarts, shown as a table."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import sqlite3
import time
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from admin.calls import AdminServe
from processes import PATIENCE

from aigw import cli

CONFIG = """\
listen: 127.0.0.1:0
workers: 2
upstreams: {mock: {provider: mock}}
prices: {gpt-4o: {input: 2.5, output: 10}}
gateways:
  default:
    auth: keys
    models: {"*": mock}
    keys: {alice: {sha256: "ALICE", group: search}, bob: {sha256: "BOB"}}
""".replace("ALICE", sha256(b"sk-alice").hexdigest()).replace("BOB", sha256(b"sk-bob").hexdigest())


def ask(gateway: AdminServe, name: str, model: str = "gpt-4o", *, status: int = 200) -> Any:
    """The usage that an answer reports, or its error."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    headers = {"content-type": "application/json", "authorization": f"Bearer sk-{name}"}
    with closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=PATIENCE)) as connection:
        connection.request("POST", "/v1/chat/completions", body, headers)
        with connection.getresponse() as response:
            answer = json.loads(response.read())
    assert response.status == status
    return answer["usage" if status == 200 else "error"]


def usage(gateway: AdminServe, query: str = "") -> list[dict[str, Any]]:
    answer = gateway.call("GET", f"/usage{query}")
    assert answer.status == 200
    items: list[dict[str, Any]] = answer.json["items"]
    return items


def requests(gateway: AdminServe) -> dict[str, int]:
    return {item["key"]: item["requests"] for item in usage(gateway, "?by=key")}


def counted(gateway: AdminServe, expected: dict[str, int]) -> None:
    """An answer may be read by the client a moment before its exchange counts."""
    deadline = time.monotonic() + PATIENCE
    while (found := requests(gateway)) != expected:
        assert time.monotonic() < deadline, found


def test_nothing_is_lost_whoever_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with AdminServe(tmp_path, CONFIG) as gateway:
        used = [ask(gateway, "alice") for _ in range(3)]
        ask(gateway, "bob", "unheard-of")
        gateway.out.wait(lambda lines: len(lines) == 4, "every record")  # until then, an exchange is in flight
        for pid in gateway.processes()[1:]:
            os.kill(pid, signal.SIGKILL)
        gateway.err.find("serves$")
        found = usage(gateway, "?by=key,group,model")
        assert [(item["key"], item["group"], item["model"]) for item in found] == [
            ("alice", "search", "*"),
            ("bob", "-", "*"),
        ]
        came_in, went_out = (sum(one[name] for one in used) for name in ("prompt_tokens", "completion_tokens"))
        assert (found[0]["requests"], found[0]["errors"], found[0]["unpriced"]) == (3, 0, 0)
        assert (found[0]["tokens"]["input"], found[0]["tokens"]["output"]) == (came_in, went_out)
        assert found[0]["cost"] == pytest.approx((came_in * 2.5 + went_out * 10) / 1e6)
        assert (found[1]["cost"], found[1]["unpriced"]) == (0, 1)
        # the table of the same
        address = f"http://127.0.0.1:{gateway.call.port}"
        assert cli.main(["usage", "--admin", address, "--by", "key", "--from", "1h", "--per", "month"]) == 0
        table = capfd.readouterr().out.splitlines()
        assert table[0].split() == ["time", "key", "requests", "errors", "input", "output", "cost"]
        assert table[1].split()[1:] == ["alice", "3", "0", str(came_in), str(went_out), f"${found[0]['cost']:.6f}"]
        assert table[2].split()[1:3] == ["bob", "1"]
        assert table[2].endswith("$0.000000*")
        assert table[3].split()[:2] == ["total", "4"]
        assert table[4] == "* and 1 exchanges whose price is not known: see prices in the config"
        assert cli.main(["usage", "--admin", address, "--json"]) == 0
        assert len(json.loads(capfd.readouterr().out)["items"]) == 2
        assert cli.main(["usage", "--admin", address, "--per", "week"]) == 1
        assert capfd.readouterr().err == "per takes one of hour, day, month\n"
        assert gateway.call("GET", "/usage?by=kay").message.startswith("by takes some of gateway, rule, key, ")
        for pid in reversed(gateway.processes()):  # what was asked for is on the disk
            os.kill(pid, signal.SIGKILL)
        gateway.end()
    with AdminServe(tmp_path, CONFIG) as gateway:
        assert usage(gateway, "?by=key,group,model") == found
        ask(gateway, "bob")
        assert gateway.stop() == 0
    with closing(sqlite3.connect(tmp_path / "aigw-usage.db")) as db:  # the last second of an orderly end
        assert db.execute("SELECT key, SUM(requests) FROM usage GROUP BY key").fetchall() == [("alice", 3), ("bob", 2)]


def test_a_full_disk_is_nobody_s_business_but_the_store_s(tmp_path: Path) -> None:
    with AdminServe(tmp_path, CONFIG) as gateway:
        ask(gateway, "alice")
        assert requests(gateway) == {"alice": 1}
        supervisor = gateway.process.pid
        _, hard = resource.prlimit(supervisor, resource.RLIMIT_FSIZE)
        resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (1, hard))  # no file may grow
        for _ in range(5):
            ask(gateway, "alice")
        assert requests(gateway) == {"alice": 6}  # those that are in memory only are part of it
        error = gateway.call("GET", "/status").json["usage_store"]["error"]
        assert error.startswith(str(tmp_path / "aigw-usage.db"))
        gateway.err.find("usage is kept in memory, and written once that is possible")
        resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (hard, hard))
        ask(gateway, "bob")
        assert requests(gateway) == {"alice": 6, "bob": 1}
        gateway.err.find("is written again")
        assert gateway.call("GET", "/status").json["usage_store"]["error"] is None
        assert gateway.stop() == 0
    with closing(sqlite3.connect(tmp_path / "aigw-usage.db")) as db:
        assert db.execute("SELECT SUM(requests) FROM usage").fetchall() == [(7,)]


def test_usage_is_kept_elsewhere_from_a_reload_on(tmp_path: Path) -> None:
    def reload(line: str) -> None:
        gateway.file.write_text(CONFIG + line)
        assert gateway.call("POST", "/reload").status == 200

    with AdminServe(tmp_path, CONFIG + "usage_store: one.db\n") as gateway:
        ask(gateway, "alice")
        counted(gateway, {"alice": 1})
        reload("usage_store: off\n")
        off = gateway.call("GET", "/usage")
        assert (off.status, off.code, off.message) == (
            503,
            "usage_unavailable",
            "usage is not kept: usage_store is off",
        )
        reload("usage_store: {path: other.db}\n")
        ask(gateway, "bob")
        counted(gateway, {"bob": 1})
        with closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
            db.execute("UPDATE usage SET hour = hour - 86400")
        assert requests(gateway) == {"bob": 1}
        reload("usage_store: {path: other.db, retention: 1h}\n")
        assert requests(gateway) == {}
        assert gateway.stop() == 0
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["one.db", "other.db"]


def test_a_month_s_budget_survives_the_gateway(tmp_path: Path) -> None:
    def left(gateway: AdminServe) -> int:
        plan = gateway.call(
            "POST", "/explain", {"path": "/v1/chat/completions", "model": "gpt-4o", "key_name": "alice"}
        )
        return int(plan.json["limits"][0]["left"])

    config = CONFIG + "    limits: [{requests: 3/month, per: key}]\n"
    with AdminServe(tmp_path, config) as gateway:
        assert [left(gateway), ask(gateway, "alice") and left(gateway)] == [3, 2]
        gateway.out.wait(lambda lines: len(lines) == 1, "the record")
        usage(gateway)  # which writes it
        for pid in reversed(gateway.processes()):
            os.kill(pid, signal.SIGKILL)
        gateway.end()
    with AdminServe(tmp_path, config) as gateway:
        assert left(gateway) == 2
        for name in ("alice", "alice", "bob"):
            ask(gateway, name)
        assert ask(gateway, "alice", status=429)["code"] == "insufficient_quota"
        assert gateway.stop() == 0
