"""The numbers as Prometheus reads them: valid for its parsers, summed over workers, whatever the names are."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from counted import ODD, compile, config, counters, ejected, ended, fill, made, pool
from prometheus_client.parser import text_string_to_metric_families

from aigw import shared
from aigw.counters import TargetStates
from aigw.errors import UPSTREAM_CREDENTIAL_REFUSED, Failure
from aigw.metrics import CONTENT_TYPE, render
from aigw.shared import Cells
from aigw.status import Facts
from aigw.tokens import Tokens

__all__ = ["made"]

OK = {
    "gateway": "main",
    "rule": "api",
    "model": "gpt-4o",
    "upstream": "up",
    "status": "200",
    "end": "ok",
    "fault": "none",
}
ROUTE = {name: OK[name] for name in ("gateway", "rule", "model", "upstream")}


def facts(**fields: object) -> Facts:
    return Facts(**({"version": "1.2", "uptime": 5.0, "generation": 3, "document": config()} | fields))


def used(cells: Cells) -> None:
    """Two workers that have done something, and are still there."""
    compiled = compile()
    for row in (0, 1):
        counting = counters(cells, row)
        counting.count(ended(compiled), "ok", None, 1000.02, Tokens(10, 20, 0), 1_250_000_000)
        streamed = ended(compiled)
        streamed.first_at = 1000.3
        counting.count(streamed, "ok", None, 1002.0, None)
        counting.count(ended(compiled, ODD), "ok", None, 1000.5, Tokens(1, 1))
        cells.row(row)[shared.PID] = os.getpid()
        cells.row(row)[shared.CONNECTIONS] = 5
        cells.row(row)[shared.IN_FLIGHT] = 2
        cells.row(row)[shared.LOG_DROPPED] = 7
    failure = Failure(UPSTREAM_CREDENTIAL_REFUSED, "")
    refused = ended(compiled, status=502)
    refused.sent_at += 0.3
    counting.count(refused, "failed", failure, 1000.5, None)
    for _ in range(2):
        counting.tried("up", 502, "reset")
    counting.tried("b", 429, "")
    counting.limited("main", "requests/1m per key", False)


def read(cells: Cells, **fields: object) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels."""
    samples = {}
    for family in text_string_to_metric_families(render(facts(**fields), cells).decode()):
        assert family.documentation
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_counts_of_all_workers_are_one(made: Cells) -> None:
    used(made)
    samples = read(made, restarts=2, lost=4, dropped=1)
    assert value(samples, "aigw_requests_total", **OK) == 4
    assert value(samples, "aigw_requests_total", **OK | {"model": ODD}) == 2
    assert value(samples, "aigw_requests_total", **OK | {"status": "502", "end": "failed", "fault": "upstream"}) == 1
    assert value(samples, "aigw_attempts_total", upstream="up", outcome="200") == 6
    assert value(samples, "aigw_attempts_total", upstream="up", outcome="502") == 3  # of which two were tried again
    assert value(samples, "aigw_attempts_total", upstream="b", outcome="429") == 1
    lost = dict.fromkeys(OK, "-") | {"end": "worker_lost", "fault": "gateway"}
    assert value(samples, "aigw_requests_total", **lost) == 4
    for bound, count in {"0.01": 0, "0.025": 2, "0.5": 3, "1.0": 3, "2.5": 5, "600.0": 5, "+Inf": 5}.items():
        assert value(samples, "aigw_request_duration_seconds_bucket", **ROUTE, le=bound) == count
    assert value(samples, "aigw_request_duration_seconds_count", **ROUTE) == 5
    assert value(samples, "aigw_request_duration_seconds_sum", **ROUTE) == pytest.approx(4.54)
    first = "aigw_time_to_first_token_seconds"
    for bound, count in {"0.25": 0, "0.5": 2, "600.0": 2, "+Inf": 2}.items():
        assert value(samples, f"{first}_bucket", **ROUTE, le=bound) == count
    assert value(samples, f"{first}_count", **ROUTE) == 2
    assert value(samples, f"{first}_sum", **ROUTE) == pytest.approx(0.6, abs=0.001)
    assert (f"{first}_count", frozenset((ROUTE | {"model": ODD}).items())) not in samples  # no stream of it
    assert value(samples, "aigw_tokens_total", **ROUTE, type="input") == 20
    assert value(samples, "aigw_tokens_total", **ROUTE, type="output") == 40
    assert ("aigw_tokens_total", frozenset((ROUTE | {"type": "cached"}).items())) not in samples
    assert value(samples, "aigw_cost_dollars_total", **ROUTE) == 2.5
    assert ("aigw_cost_dollars_total", frozenset((ROUTE | {"model": ODD}).items())) not in samples
    assert value(samples, "aigw_overhead_seconds_count") == 7
    assert value(samples, "aigw_overhead_seconds_bucket", le="2.5e-05") == 0
    assert value(samples, "aigw_overhead_seconds_bucket", le="5e-05") == 7
    assert value(samples, "aigw_overhead_seconds_sum") == pytest.approx(7 * 0.00003)
    assert value(samples, "aigw_queue_seconds_count", upstream="up") == 1
    assert value(samples, "aigw_queue_seconds_bucket", upstream="up", le="0.25") == 0
    assert value(samples, "aigw_queue_seconds_sum", upstream="up") == pytest.approx(0.3, abs=0.001)
    assert value(samples, "aigw_upstream_credential_refused_total", upstream="up") == 1
    assert value(samples, "aigw_worker_restarts_total") == 2
    assert value(samples, "aigw_log_dropped_total") == 15


def test_states_are_those_of_the_living(made: Cells) -> None:
    used(made)
    for row, idle in ((0, 3), (1, 4)):
        TargetStates(made.row(row), made.series(row)).stamp([pool("a", idle, 1, 0)])
    samples = read(made)
    assert value(samples, "aigw_in_flight") == 4
    assert value(samples, "aigw_connections", side="client", state="active") == 4
    assert value(samples, "aigw_connections", side="client", state="idle") == 6
    assert value(samples, "aigw_connections", side="upstream", state="busy") == 2
    assert value(samples, "aigw_connections", side="upstream", state="idle") == 7
    made.bury(1)
    samples = read(made)
    assert value(samples, "aigw_in_flight") == 2
    assert value(samples, "aigw_connections", side="upstream", state="idle") == 3
    assert value(samples, "aigw_requests_total", **OK) == 4


def test_which_targets_are_in_service(made: Cells) -> None:
    used(made)
    samples = read(made)
    assert value(samples, "aigw_target_up", upstream="up", target="a") == 1
    ejected(made, "up/b", 30.0)
    samples = read(made)
    assert value(samples, "aigw_target_up", upstream="up", target="a") == 1
    assert value(samples, "aigw_target_up", upstream="up", target="b") == 0
    made.bury(0)
    assert value(read(made), "aigw_target_up", upstream="up", target="b") == 1


def test_what_the_config_is(made: Cells) -> None:
    samples = read(made)
    assert value(samples, "aigw_config_generation") == 3
    assert value(samples, "aigw_config_last_reload_success") == 1
    assert value(read(made, errors=("config.yaml:1: no",)), "aigw_config_last_reload_success") == 0
    assert any(name == "aigw_build_info" and ("version", "1.2") in labels for name, labels in samples)
    assert value(samples, "aigw_open_fds", process="supervisor") > 2
    assert ("aigw_usage_store_up", frozenset()) not in samples
    assert value(read(made, usage_store="usage.db"), "aigw_usage_store_up") == 1
    assert value(read(made, usage_store="usage.db", usage_error="full"), "aigw_usage_store_up") == 0


def test_before_anything_was_counted(made: Cells) -> None:
    assert value(read(made), "aigw_in_flight") == 0
    assert not [name for name, _ in read(made) if name.startswith("aigw_requests")]
    assert CONTENT_TYPE.startswith(b"text/plain; version=0.0.4")


def test_labels_are_escaped_and_hold_no_secret(made: Cells) -> None:
    used(made)
    text = render(facts(), made).decode()
    assert 'model="a\\"b\\\\c\\nd\t\u00e4{}"' in text
    assert "sk-" not in text


def test_sets_without_room_are_other(made: Cells) -> None:
    counting = counters(made)
    compiled = compile()
    fill(made, 10)
    for status in range(1000, 1020):
        counting.count(ended(compiled, status=status), "ok", None, 1000.0, Tokens(1, 1))
    samples = read(made)
    requests = [value for (name, _), value in samples.items() if name == "aigw_requests_total"]
    assert sum(requests) == 20
    assert value(samples, "aigw_requests_total", **dict.fromkeys(OK, "other")) == 12
    tokens = [value for (name, _), value in samples.items() if name == "aigw_tokens_total"]
    assert sum(tokens) == 2 * 20


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)")
def test_promtool_finds_nothing_to_say(made: Cells) -> None:
    used(made)
    text = render(facts(lost=1), made)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    assert (checked.stdout, checked.stderr, checked.returncode) == (b"", b"", 0)
