"""Two worker processes, and what each finds out of the targets: the other one knows it, and so does the operator."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from admin.calls import AdminServe
from processes import PATIENCE, Upstream

pytestmark = pytest.mark.unmeasured

CONFIG = """\
workers: 2
upstreams:
  up:
    provider: openai
    eject: {{after: 1, for: 10m}}
    timeouts: {{connect: 1s}}
    targets:
      dead: {{url: "http://127.0.0.1:{dead}"}}
      well: {{url: "{url}"}}
  one:
    provider: openai
    max_connections: 1
    targets: [{{url: "{url}", name: a}}]
    health: {{path: /healthz, interval: 100ms, unhealthy_after: 1, healthy_after: 1}}
gateways: {{default: {{auth: none, models: {{gpt-4o: up, slow: one}}}}}}
"""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


def test_what_a_worker_finds_out_all_know(tmp_path: Path) -> None:
    with socket.socket() as nobody, Upstream() as up:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        text = CONFIG.format(dead=nobody.getsockname()[1], url=up.url)
        with AdminServe(tmp_path, text) as serve:
            wait_for(lambda: serve.ask() != 200, "a request at the dead target")
            serve.err.find(r"target up/dead is ejected for 600 s: .* at last: connect_failed")
            # The other worker knows it a moment later; until then it may find out for itself.
            wait_for(lambda: {serve.ask() for _ in range(12)} == {200}, "both workers leave it alone")
            found = serve.call("GET", "/status").json["upstreams"]
            dead = found["up"]["dead"]
            assert (dead["state"], dead["why"]) == ("ejected", "connect_failed")
            assert 500 < dead["seconds_left"] <= 600
            assert found["up"]["well"]["state"] == "up"
            metrics = serve.call("GET", "//metrics").body.decode()
            assert 'aigw_target_up{target="dead",upstream="up"} 0.0' in metrics
            assert 'aigw_target_up{target="well",upstream="up"} 1.0' in metrics
            plan = serve.call("POST", "/explain", {"path": "/v1/chat/completions", "model": "gpt-4o"}).json
            assert [(entry["target"], entry["chosen"], entry["why"]) for entry in plan["candidates"]] == [
                ("dead", False, "ejected: connect_failed"),
                ("well", True, "1 of 2 turns are its own"),
            ]
            # One connection for both workers: whoever holds it gives it up for the other.
            assert [serve.ask("slow") for _ in range(4)] == [200] * 4
            probes = [seen for seen in up.requests if seen.line == b"GET /healthz HTTP/1.1"]
            assert len(probes) > 1
            lines = [line for line in serve.err.lines if "target " in line]
            assert lines
            assert all("up/dead is ejected" in line for line in lines)
