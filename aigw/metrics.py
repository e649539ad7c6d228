"""The gateway's numbers in Prometheus' text format: the cells of all workers summed, and what the supervisor knows.

A worker counts finely (`counters`); here it is put together to what may be asked. Counts are those of all workers there
ever were, states those of the living.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from typing import Final

import orjson
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from aigw import shared
from aigw.counters import (
    DURATIONS,
    EXCHANGES,
    FIRST,
    FIRST_SUM,
    IN_SERVICE,
    LIMITED,
    OVERHEAD,
    OVERHEADS,
    REFUSED,
    SUM,
    TOKENS,
    TRIED,
    UNKNOWN,
    USAGE,
    WAITED,
    Labels,
    account_of,
    labels_of,
)
from aigw.shared import Cells
from aigw.status import Facts, connections, descriptors, dropped, living, standings
from aigw.tokens import CLASSES

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4.encode()
ROUTE: Final = ("gateway", "rule", "model", "upstream")  # the labels that an answer's way has before it has ended
LOST: Final = Labels(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, "worker_lost", "gateway")

Route = tuple[str, ...]


def render(facts: Facts, cells: Cells) -> bytes:
    """All of them, as text of `CONTENT_TYPE`."""
    return generate_latest(_Collector(facts, cells))


class _Collector:
    """What the library asks for families, in place of a registry: nothing is registered, all is read anew."""

    def __init__(self, facts: Facts, cells: Cells) -> None:
        self._facts = facts
        self._cells = cells

    def collect(self) -> Iterator[Metric]:
        yield from self._exchanges()
        yield from self._usage()
        yield from self._own()
        yield from self._states()

    def _exchanges(self) -> Iterator[Metric]:
        requests: dict[Labels, int] = {LOST: self._facts.lost} if self._facts.lost else {}
        durations: dict[Route, list[int]] = {}
        for text, values in self._cells.totals(EXCHANGES).items():
            count = sum(values[:SUM])
            if count:
                labels = labels_of(text)
                requests[labels] = count
                _add(durations, labels[: len(ROUTE)], values)
        total = CounterMetricFamily(
            "aigw_requests", "Exchanges that ended, by how and whose fault.", labels=Labels._fields
        )
        for labels, count in sorted(requests.items()):
            total.add_metric(labels, count)
        yield total
        yield self._attempts(requests)
        duration = HistogramMetricFamily(
            "aigw_request_duration_seconds", "From a request's head to its exchange's end.", labels=ROUTE
        )
        for route, values in sorted(durations.items()):
            duration.add_metric(route, _buckets(DURATIONS, values), values[SUM] / 1e6)
        yield duration
        first = HistogramMetricFamily(
            "aigw_time_to_first_token_seconds",
            "Of streams: from a request's head to the first content of its answer.",
            labels=ROUTE,
        )
        for route, values in sorted(durations.items()):
            if any(values[FIRST:FIRST_SUM]):
                first.add_metric(route, _buckets(DURATIONS, values[FIRST:]), values[FIRST_SUM] / 1e6)
        yield first

    def _usage(self) -> Iterator[Metric]:
        sums: dict[Route, list[int]] = {}
        for text, values in self._cells.totals(USAGE).items():
            account = account_of(text)
            _add(sums, (account.gateway, account.rule, account.model, account.upstream), values[TOKENS:])
        used = CounterMetricFamily("aigw_tokens", "Tokens as the provider counts them.", labels=(*ROUTE, "type"))
        spent = CounterMetricFamily("aigw_cost_dollars", "What they cost, where their price is known.", labels=ROUTE)
        for route, (*counts, cost) in sorted(sums.items()):
            for name, count in zip(CLASSES, counts, strict=True):
                if count:
                    used.add_metric((*route, name), count)
            if cost:
                spent.add_metric(route, cost / 1e9)
        yield used
        yield spent

    def _attempts(self, requests: dict[Labels, int]) -> Metric:
        """An exchange's last attempt is part of how it ended, those before were counted for themselves."""
        attempts: dict[tuple[str, str], int] = {}
        for labels, count in requests.items():
            if labels.upstream != UNKNOWN:
                way = labels.upstream, labels.status
                attempts[way] = attempts.get(way, 0) + count
        for text, (count,) in self._cells.totals(TRIED).items():
            name, _, status = text.decode().rpartition("/")
            if count:
                way = (name or status), status
                attempts[way] = attempts.get(way, 0) + count
        total = CounterMetricFamily(
            "aigw_attempts",
            "Attempts at an upstream, by its status or the one that the gateway makes of its failure.",
            labels=("upstream", "outcome"),
        )
        for way, count in sorted(attempts.items()):
            total.add_metric(way, count)
        return total

    def _own(self) -> Iterator[Metric]:
        overhead = HistogramMetricFamily(
            "aigw_overhead_seconds", "The gateway's own time of an exchange, before it turned to the upstream."
        )
        for text, values in self._cells.totals(OVERHEAD).items():
            if text != shared.OTHER:
                overhead.add_metric((), _buckets(OVERHEADS, values), values[-1] / 1e6)
        yield overhead
        waited = HistogramMetricFamily(
            "aigw_queue_seconds",
            "Of exchanges that waited for a connection: until one was free, or made.",
            labels=("upstream",),
        )
        for text, values in sorted(self._cells.totals(WAITED).items()):
            if any(values):
                waited.add_metric((text.decode(),), _buckets(DURATIONS, values), values[SUM] / 1e6)
        yield waited
        refused = CounterMetricFamily(
            "aigw_upstream_credential_refused", "Times an upstream refused the gateway's own key.", labels=("upstream",)
        )
        for text, (count,) in sorted(self._cells.totals(REFUSED).items()):
            if count or text != shared.OTHER:
                refused.add_metric((text.decode(),), count)
        yield refused
        limited = CounterMetricFamily(
            "aigw_limit_rejections",
            "Requests that a limit refused, or would have refused (shadow).",
            labels=("gateway", "limit", "shadow"),
        )
        for text, (count,) in sorted(self._cells.totals(LIMITED).items()):
            if text != shared.OTHER:
                limited.add_metric(orjson.loads(text), count)
            elif count:
                limited.add_metric((shared.OTHER.decode(),) * 3, count)
        yield limited
        facts = self._facts
        restarts = CounterMetricFamily("aigw_worker_restarts", "Workers that were started in place of one that died.")
        restarts.add_metric((), facts.restarts)
        yield restarts
        lost = CounterMetricFamily("aigw_log_dropped", "Records of the access log that were lost.")
        lost.add_metric((), dropped(facts, self._cells))
        yield lost

    def _states(self) -> Iterator[Metric]:
        facts = self._facts
        open_now = connections(self._cells)
        yield _gauge("aigw_in_flight", "Exchanges that run now.", [((), open_now["client", "active"])])
        yield _gauge("aigw_connections", "Open connections.", open_now.items(), ("side", "state"))
        up = [
            (tuple(text.decode().split("/", 1)), found is IN_SERVICE)
            for text, found in standings(self._cells, facts.document).items()
        ]
        yield _gauge("aigw_target_up", "Whether a target is in service.", up, ("upstream", "target"))
        yield _gauge("aigw_config_generation", "Of the config that is served.", [((), facts.generation)])
        yield _gauge(
            "aigw_config_last_reload_success", "Whether the config's last state is served.", [((), not facts.errors)]
        )
        pids = [row[shared.PID] for _, row in living(self._cells)]
        files = [("supervisor", descriptors(os.getpid())), ("worker", sum(descriptors(pid) or 0 for pid in pids))]
        yield _gauge("aigw_open_fds", "Open file descriptors.", [((name,), n) for name, n in files if n], ("process",))
        if facts.usage_store is not None:
            yield _gauge("aigw_usage_store_up", "Whether usage is written to its file.", [((), not facts.usage_error)])
        version = (facts.version, platform.python_version())
        yield _gauge("aigw_build_info", "Always 1.", [(version, 1)], ("version", "python"))


def _add(sums: dict[Route, list[int]], route: Route, values: list[int]) -> None:
    known = sums.get(route)
    sums[route] = values if known is None else [one + other for one, other in zip(known, values, strict=True)]


def _buckets(bounds: tuple[float, ...], values: list[int]) -> list[tuple[str, float]]:
    """Counts of their own -> counts up to a bound, as the format has them."""
    total = 0
    buckets = []
    for bound, count in zip([*map(str, bounds), "+Inf"], values, strict=False):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _gauge(
    name: str, says: str, values: Iterable[tuple[tuple[str, ...], float]], labels: tuple[str, ...] = ()
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, says, labels=labels)
    for texts, value in values:
        family.add_metric(texts, value)
    return family
