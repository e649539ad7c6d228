"""What a worker counts of its exchanges, and where in its row of the cells; `metrics` and `status` read it.

Families of the row's series (`shared.py`), each entry a run of slots that begins at its base:

    EXCHANGES   one entry for each label set: how many exchanges took how long, the sum of it, tokens and cost
    OVERHEAD    one entry: the same of the gateway's own time
    REFUSED     one entry for each upstream: how often it refused the gateway's own credential
    LIMITED     one entry for each limit of a gateway: how often it refused a request, or would have (shadow)
    TRIED       one entry for each upstream and status: attempts that were followed by another
    TARGETS     one entry for each target: connections idle and busy, exchanges that wait for one; states, not counts

Labels are names of the config, never a client's text, so there are not many; where there is no room for another set it
counts under `shared.OTHER`. It knows no socket and reads no clock; what counts where is decided once for a label set
and remembered, so that an exchange costs a look-up and five additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sized
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson

from aigw.config.snapshot import Resolved, remember
from aigw.errors import NO_TARGET, UPSTREAM_CREDENTIAL_REFUSED, Failure, Kind
from aigw.route import find
from aigw.shared import OTHER, Series
from aigw.tokens import CLASSES, Tokens

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.config.snapshot import Candidate, Rule, Snapshot, Target

# Upper bounds of the histograms in seconds, inclusive. A short answer takes a second, a long one minutes; a refusal
# takes no time at all.
DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# The gateway's own time is tens of microseconds, and as long as the request's body takes where that is awaited.
OVERHEADS: Final = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0)

# An entry of EXCHANGES: a slot for each bucket, of which the last has no bound; the sum in microseconds; the tokens;
# the cost in nano-dollars.
EXCHANGES: Final = b"aigw_exchanges"
SUM: Final = len(DURATIONS) + 1
TOKENS: Final = SUM + 1
COST: Final = TOKENS + len(CLASSES)
WIDTH: Final = COST + 1
# An entry of OVERHEAD: buckets and sum likewise.
OVERHEAD: Final = b"aigw_overhead"
OVERHEAD_SUM: Final = len(OVERHEADS) + 1

REFUSED: Final = b"aigw_credential_refused"
LIMITED: Final = b"aigw_limited"
TRIED: Final = b"aigw_tried"
TARGETS: Final = b"aigw_targets"
IDLE: Final = 0
BUSY: Final = 1
WAITING: Final = 2

UNKNOWN: Final = "-"


class Labels(NamedTuple):
    """A label set of EXCHANGES, by the names and in the order of the metrics."""

    gateway: str
    rule: str
    model: str  # the config's entry
    upstream: str
    status: str  # sent to the client
    end: str
    fault: str


class Ended(Protocol):
    """What is read of an exchange. Times are monotonic seconds; 0.0 is never."""

    snapshot: Snapshot
    admission: Admission
    model: str | None
    candidate: Candidate | None
    status: int
    started: float
    acquiring_at: float
    head_at: float


class PoolView(Protocol):
    """What is read of a pool."""

    @property
    def target(self) -> Target: ...

    @property
    def idle(self) -> Sized: ...

    @property
    def busy(self) -> int: ...

    @property
    def waiting(self) -> Sized: ...


class Counters:
    """The exchanges of one row, by its writer: `count` once at the end of each.

    What is remembered are slices of the row: with a place in one, a slot needs no sum of two large integers (0.025 us
    each). They belong to one snapshot, the newest that an exchange ended with, and are only of what ended well, or was
    left by its client.
    """

    __slots__ = ("_entries", "_generation", "_overhead", "_row", "_series")

    def __init__(self, row: memoryview, series: Series) -> None:
        self._row = row
        self._series = series
        series.declare(EXCHANGES, WIDTH)
        series.declare(OVERHEAD, OVERHEAD_SUM + 1)
        series.declare(REFUSED, 1)
        series.declare(LIMITED, 1)
        series.declare(TRIED, 1)
        overhead = series.at(OVERHEAD, b"")
        self._overhead = row[overhead : overhead + OVERHEAD_SUM + 1]
        self._entries: dict[tuple[Rule, Candidate | None, int, str], memoryview] = {}
        self._generation = 0

    def count(
        self,
        exchange: Ended,
        end: str,
        failure: Failure | None,
        now: float,
        tokens: Tokens | None,
        cost: int | None = None,
    ) -> None:
        """`end`, `failure`, `now` and `cost` as in the exchange's record (0.7 us, and 0.07 us for each class of
        tokens)."""
        match = exchange.admission.match
        if failure is None and match is not None:
            try:
                entry = self._entries[match.rule, exchange.candidate, exchange.status, end]
            except KeyError:
                entry = self._find(exchange, end, failure)
        else:
            entry = self._find(exchange, end, failure)
        started = exchange.started
        seconds = now - started
        entry[bisect_left(DURATIONS, seconds)] += 1
        entry[SUM] += int(seconds * 1e6)
        if exchange.head_at:
            seconds = exchange.acquiring_at - started
            overhead = self._overhead
            overhead[bisect_left(OVERHEADS, seconds)] += 1
            overhead[OVERHEAD_SUM] += int(seconds * 1e6 + 0.5)  # there are but tens of them
        if tokens is not None:
            came_in, went_out, cached, cache_write, reasoning, audio, _, _, _ = tokens
            if came_in:
                entry[TOKENS] += came_in
            if went_out:
                entry[TOKENS + 1] += went_out
            if cached:
                entry[TOKENS + 2] += cached
            if cache_write:
                entry[TOKENS + 3] += cache_write
            if reasoning:
                entry[TOKENS + 4] += reasoning
            if audio:
                entry[TOKENS + 5] += audio
            if cost:
                entry[COST] += cost

    def tried(self, upstream: str, status: int, cause: str) -> None:
        """An attempt that was followed by another; its exchange counts once, by how the last one ended. `status` is
        its own, or what the gateway would have answered."""
        self._row[self._series.at(TRIED, tried_text(upstream, status))] += 1
        if cause == UPSTREAM_CREDENTIAL_REFUSED.cause:
            self._row[self._series.at(REFUSED, upstream.encode())] += 1

    def refused(self, kind: Kind) -> None:
        """What was no request: it is known of it how it was answered, and nothing else."""
        labels = Labels(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, str(kind.status), "refused", kind.fault)
        self._entry(labels)[0] += 1

    def limited(self, gateway: str, label: str, shadow: bool) -> None:
        """A limit refused a request, or would have."""
        self._row[self._series.at(LIMITED, orjson.dumps([gateway, label, str(shadow).lower()]))] += 1

    def _entry(self, labels: Labels) -> memoryview:
        at = self._series.at(EXCHANGES, orjson.dumps(list(labels)))
        return self._row[at : at + WIDTH]

    def _find(self, exchange: Ended, end: str, failure: Failure | None) -> memoryview:
        """Where the exchange counts, from the start (2 us)."""
        admission = exchange.admission
        match = admission.match
        candidate = exchange.candidate
        gateway = rule = model = upstream = UNKNOWN
        if match is not None:
            gateway, rule = match.gateway.name, match.rule.name
            if candidate is not None or (failure is not None and failure.kind is NO_TARGET):
                found = find(match, admission.dialect, admission.key, exchange.model)  # as it was found before
                if isinstance(found, Resolved):
                    model, upstream = found.entry or UNKNOWN, found.upstream.name
                if candidate is not None:  # a fallback's, maybe
                    upstream = candidate.target.upstream.name
        if failure is not None:
            fault: str = failure.kind.fault
            if failure.kind is UPSTREAM_CREDENTIAL_REFUSED:
                self._row[self._series.at(REFUSED, upstream.encode())] += 1
        else:
            fault = "client" if end.startswith("client_") else "none"
        entry = self._entry(Labels(gateway, rule, model, upstream, str(exchange.status), end, fault))
        generation = exchange.snapshot.generation
        if generation > self._generation:
            self._generation = generation
            self._entries.clear()
        if failure is None and match is not None and generation == self._generation:
            remember(self._entries, (match.rule, candidate, exchange.status, end), entry)
        return entry


class TargetStates:
    """What is open to each target, by the row's writer: states, stamped now and then."""

    __slots__ = ("_row", "_series", "_stamped")

    def __init__(self, row: memoryview, series: Series) -> None:
        self._row = row
        self._series = series
        series.declare(TARGETS, WAITING + 1)
        for text, _ in series.items(TARGETS):  # what the writer before left
            self._put(text, 0, 0, 0)
        self._stamped: set[bytes] = set()  # that were not all 0

    def stamp(self, pools: Iterable[PoolView]) -> None:
        """`pools` are all there are. A target may have several, of which all but one are on their way out."""
        sums: dict[bytes, tuple[int, int, int]] = {}
        for pool in pools:
            idle, busy, waiting = len(pool.idle), pool.busy, len(pool.waiting)
            if idle or busy or waiting:
                text = target_text(pool.target.upstream.name, pool.target.name)
                known = sums.get(text, (0, 0, 0))
                sums[text] = (known[IDLE] + idle, known[BUSY] + busy, known[WAITING] + waiting)
        for text in self._stamped - sums.keys():
            self._put(text, 0, 0, 0)
        for text, values in sums.items():
            self._put(text, *values)
        self._stamped = set(sums)

    def _put(self, text: bytes, idle: int, busy: int, waiting: int) -> None:
        row = self._row
        at = self._series.at(TARGETS, text)
        row[at + IDLE] = idle
        row[at + BUSY] = busy
        row[at + WAITING] = waiting


def labels_of(text: bytes) -> Labels:
    """The label set of an entry of EXCHANGES; every label is `other` where there was no room for it."""
    if text == OTHER:
        return Labels(*[OTHER.decode()] * len(Labels._fields))
    return Labels(*orjson.loads(text))


def tried_text(upstream: str, status: int) -> bytes:
    """The text of an entry of TRIED."""
    return f"{upstream}/{status}".encode()


def target_text(upstream: str, target: str) -> bytes:
    """The text of an entry of TARGETS; names of upstreams hold no `/`."""
    return f"{upstream}/{target}".encode()
