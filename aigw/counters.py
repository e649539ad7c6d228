"""What a worker counts of its exchanges, and where in its row of the cells; `metrics` and `status` read it.

Families of the row's series (`shared.py`), each entry a run of slots that begins at its base:

    EXCHANGES   one entry for each label set: how many exchanges took how long, and the sum of it; the same of the
                time to the first content of those that were streams
    USAGE       one entry for each account: exchanges, tokens and cost of each key, model and upstream
    OVERHEAD    one entry: the same of the gateway's own time
    WAITED      one entry for each upstream: how many exchanges waited for a connection, and how long
    REFUSED     one entry for each upstream: how often it refused the gateway's own credential
    LIMITED     one entry for each limit of a gateway: how often it refused a request, or would have (shadow)
    TRIED       one entry for each upstream and status: attempts that were followed by another
    TARGETS     one entry for each target: connections idle and busy, exchanges that wait for one; states, not counts
    TALLIES     one entry for each target that all workers share by number: connections that are open, exchanges that
                hold or await one, and those that await one; states, written whenever they change
    HEALTH      one entry for each target that is watched: until when it is ejected, until when it rests, when it was
                probed last, whether its probes say that it is down, the number of a reason, and whether it cannot be
                connected to; moments are monotonic milliseconds

Labels are names of the config, never a client's text, so there are not many; where there is no room for another set it
counts under `shared.OTHER`. It knows no socket and reads no clock; what counts where is decided once for a label set
and remembered, so that an exchange costs a look-up and six additions, and a stream two more.
"""

from __future__ import annotations

from bisect import bisect_left
from builtins import memoryview  # for mypyc, which looks for a NamedTuple's types among the module's own names
from collections.abc import Iterable, Sequence, Sized
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson

from aigw.config.snapshot import Resolved
from aigw.config.upstreams import remember
from aigw.errors import (
    CONNECT_FAILED,
    CONNECT_TIMEOUT,
    FIRST_BYTE_TIMEOUT,
    NO_CAPACITY,
    NO_TARGET,
    SEND_TIMEOUT,
    UPSTREAM_CREDENTIAL_REFUSED,
    UPSTREAM_CUT,
    UPSTREAM_MALFORMED,
    UPSTREAM_RESET,
    Failure,
    Kind,
)
from aigw.route import find, part
from aigw.shared import OTHER, Peers, Series
from aigw.tokens import CLASSES, Tokens

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.config.snapshot import Key, Rule, Snapshot
    from aigw.config.upstreams import Candidate, Target

    _Remembered = tuple[Rule, Candidate | None, Key | None, int, str]

# Upper bounds of the histograms in seconds, inclusive. A short answer takes a second, a long one minutes; a refusal
# takes no time at all.
DURATIONS: Final[tuple[float, ...]] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
# The gateway's own time is tens of microseconds, and as long as the request's body takes where that is awaited.
OVERHEADS: Final[tuple[float, ...]] = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1, 1.0,
)  # fmt: skip

# An entry of EXCHANGES: a slot for each bucket, of which the last has no bound; the sum in microseconds. Buckets and
# sum of the time to the first content likewise, from FIRST on.
EXCHANGES: Final = b"aigw_exchanges"
SUM: Final = len(DURATIONS) + 1
FIRST: Final = SUM + 1
FIRST_SUM: Final = FIRST + SUM
# An entry of USAGE: exchanges that were no error, those that were one, those that used tokens whose price is not known;
# the tokens by class, the cost in nano-dollars.
USAGE: Final = b"aigw_usage"
FINE: Final = 0
ERRORS: Final = 1
UNPRICED: Final = 2
TOKENS: Final = 3
COST: Final = TOKENS + len(CLASSES)
# An entry of OVERHEAD: buckets and sum likewise.
OVERHEAD: Final = b"aigw_overhead"
OVERHEAD_SUM: Final = len(OVERHEADS) + 1

# An entry of WAITED: buckets of DURATIONS and sum likewise; who waited for nothing is not counted.
WAITED: Final = b"aigw_waited"
REFUSED: Final = b"aigw_credential_refused"
LIMITED: Final = b"aigw_limited"
TRIED: Final = b"aigw_tried"
TARGETS: Final = b"aigw_targets"
IDLE: Final = 0
BUSY: Final = 1
WAITING: Final = 2

TALLIES: Final = b"aigw_tallies"
OPEN: Final = 0
IN_FLIGHT: Final = 1
QUEUED: Final = 2

HEALTH: Final = b"aigw_health"
EJECTED: Final = 0
RESTS: Final = 1
PROBED: Final = 2
DOWN: Final = 3
WHY: Final = 4
UNREACHED: Final = 5
HEALTH_WIDTH: Final = 6

UNKNOWN: Final = "-"
# Label sets that are remembered: keys times models, mostly.
MOST_REMEMBERED: Final = 4096


class Labels(NamedTuple):
    """A label set of EXCHANGES, by the names and in the order of the metrics."""

    gateway: str
    rule: str
    model: str  # the config's entry
    upstream: str
    status: str  # sent to the client
    end: str
    fault: str


class Account(NamedTuple):
    """A label set of USAGE: who used what. The key is `other` where there was no room for it."""

    gateway: str
    rule: str
    key: str
    group: str
    model: str  # the config's entry
    upstream: str


class Counts(NamedTuple):
    """Where exchanges of a candidate that ended so count: their entries, and the slot in the second one."""

    candidate: Candidate | None
    status: int
    end: str
    entry: memoryview
    usage: memoryview
    sort: int


class Ended(Protocol):
    """What is read of an exchange. Times are monotonic seconds; 0.0 is never."""

    snapshot: Snapshot
    request_id: bytes
    admission: Admission
    model: str | None
    candidate: Candidate | None
    status: int
    started: float
    acquiring_at: float
    sent_at: float
    head_at: float
    first_at: float


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

    __slots__ = ("_accounts", "_entries", "_generation", "_no_account", "_overhead", "_row", "_series")

    def __init__(self, row: memoryview, series: Series) -> None:
        self._row = row
        self._series = series
        series.declare(EXCHANGES, FIRST_SUM + 1)
        series.declare(USAGE, COST + 1)
        series.declare(OVERHEAD, OVERHEAD_SUM + 1)
        series.declare(WAITED, SUM + 1)
        series.declare(REFUSED, 1)
        series.declare(LIMITED, 1)
        series.declare(TRIED, 1)
        overhead = series.at(OVERHEAD, b"")
        self._overhead = row[overhead : overhead + OVERHEAD_SUM + 1]
        self._no_account = series.at(USAGE, OTHER)
        self._entries: dict[_Remembered, Counts] = {}
        self._accounts: dict[Account, memoryview] = {}
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
        """`end`, `failure`, `now` and `cost` as in the exchange's record."""
        admission = exchange.admission
        match = admission.match
        counts = admission.counts
        if failure is None and match is not None:
            if (
                counts is None
                or counts[0] is not exchange.candidate
                or counts[1] != exchange.status
                or counts[2] is not end
            ):
                known = match.rule, exchange.candidate, admission.key, exchange.status, end
                counts = admission.counts = self._entries.get(known) or self._find(exchange, end, failure)
        else:
            counts = self._find(exchange, end, failure)
        _, _, _, entry, usage, sort = counts
        usage[sort] += 1
        started = exchange.started
        seconds = now - started
        entry[bisect_left(DURATIONS, seconds)] += 1
        entry[SUM] += int(seconds * 1e6)
        if exchange.first_at:
            seconds = exchange.first_at - started
            entry[FIRST + bisect_left(DURATIONS, seconds)] += 1
            entry[FIRST_SUM] += int(seconds * 1e6)
        if exchange.head_at:
            seconds = exchange.acquiring_at - started
            overhead = self._overhead
            overhead[bisect_left(OVERHEADS, seconds)] += 1
            overhead[OVERHEAD_SUM] += int(seconds * 1e6 + 0.5)  # there are but tens of them
        if exchange.sent_at != exchange.acquiring_at:
            self._waited(exchange, now)
        if tokens is not None:
            came_in, went_out, cached, cache_write, reasoning, audio, _, _, _ = tokens
            if came_in:
                usage[TOKENS] += came_in
            if went_out:
                usage[TOKENS + 1] += went_out
            if cached:
                usage[TOKENS + 2] += cached
            if cache_write:
                usage[TOKENS + 3] += cache_write
            if reasoning:
                usage[TOKENS + 4] += reasoning
            if audio:
                usage[TOKENS + 5] += audio
            if cost is None:
                usage[UNPRICED] += 1
            elif cost:
                usage[COST] += cost

    def _waited(self, exchange: Ended, now: float) -> None:
        """It waited for a connection to become free or to be made, and was sent or not."""
        candidate = exchange.candidate
        if candidate is not None:
            at = self._series.at(WAITED, candidate.target.upstream.name.encode())
            seconds = (exchange.sent_at or now) - exchange.acquiring_at
            self._row[at + bisect_left(DURATIONS, seconds)] += 1
            self._row[at + SUM] += int(seconds * 1e6)

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
        return self._row[at : at + FIRST_SUM + 1]

    def _account(self, account: Account) -> memoryview:
        """What finds no room counts under the key `other` of its gateway and model, which then has its place."""
        usage = self._accounts.get(account)
        if usage is None:
            at = self._series.at(USAGE, orjson.dumps(list(account)))
            if account.key != UNKNOWN:
                rest = OTHER.decode()
                spare = self._series.at(USAGE, orjson.dumps(list(account._replace(key=rest, group=rest))))
                at = spare if at == self._no_account else at
            usage = self._row[at : at + COST + 1]
            remember(self._accounts, account, usage, MOST_REMEMBERED)
        return usage

    def _find(self, exchange: Ended, end: str, failure: Failure | None) -> Counts:
        """Where the exchange counts, from the start."""
        admission = exchange.admission
        match = admission.match
        candidate = exchange.candidate
        gateway = rule = key = group = model = upstream = UNKNOWN
        if match is not None:
            gateway, rule = match.gateway.name, match.rule.name
            if admission.key is not None:
                key, group = admission.key.name, admission.key.group or UNKNOWN
            if candidate is not None or (failure is not None and failure.kind in (NO_TARGET, NO_CAPACITY)):
                found = find(match, admission.dialect, admission.key, exchange.model)  # as it was found before
                if isinstance(found, Resolved):
                    model, upstream = found.entry or UNKNOWN, part(found, exchange.request_id).upstream.name
                if candidate is not None:  # a fallback's, maybe
                    upstream = candidate.target.upstream.name
        if failure is not None:
            fault: str = failure.kind.fault
            if failure.kind is UPSTREAM_CREDENTIAL_REFUSED:
                self._row[self._series.at(REFUSED, upstream.encode())] += 1
        else:
            fault = "client" if end.startswith("client_") else "none"
        is_error = failure is not None or (end == "ok" and exchange.status >= 400)
        account = Account(gateway, rule, key, group, model, upstream)
        entry = self._entry(Labels(gateway, rule, model, upstream, str(exchange.status), end, fault))
        sort = ERRORS if is_error else FINE
        counts = Counts(candidate, exchange.status, end, entry, self._account(account), sort)
        generation = exchange.snapshot.generation
        if generation > self._generation:
            self._generation = generation
            self._entries.clear()
        if failure is None and match is not None and generation == self._generation:
            known = match.rule, candidate, admission.key, exchange.status, end
            remember(self._entries, known, counts, MOST_REMEMBERED)
        return counts


class TargetStates:
    """What is open to each target, by the row's writer: states, stamped now and then."""

    __slots__ = ("_row", "_series", "_stamped")

    def __init__(self, row: memoryview, series: Series) -> None:
        self._row = row
        self._series = series
        series.declare(TARGETS, WAITING + 1)
        clear(row, series, TARGETS)
        self._stamped: set[bytes] = set()  # that were not all 0

    def stamp(self, pools: Iterable[PoolView]) -> None:
        """`pools` are all there are. A target may have several, of which all but one are on their way out."""
        sums: dict[bytes, tuple[int, int, int]] = {}
        for pool in pools:
            idle, busy, waiting = len(pool.idle), pool.busy, len(pool.waiting)
            if idle or busy or waiting:
                text = pool.target.text
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


def clear(row: memoryview, series: Series, family: bytes) -> None:
    """By the row's writer: nothing is left of what the writer before was."""
    for text, values in series.items(family):
        at = series.find(family, text, len(values))
        row[at : at + len(values)] = memoryview(bytes(8 * len(values))).cast("q")


class Tally:
    """What is open to one target: `ours`, for the one who counts it, and the sums of the other workers'."""

    __slots__ = ("_peers", "_text", "ours")

    def __init__(self, row: memoryview, series: Series, peers: Peers, text: bytes) -> None:
        series.declare(TALLIES, QUEUED + 1)
        at = series.at(TALLIES, text)
        # what finds no room is counted where nobody looks: it bounds this worker, and no other
        has_room = series.find(TALLIES, text, QUEUED + 1) == at
        self.ours = row[at : at + QUEUED + 1] if has_room else memoryview(bytearray(24)).cast("q")
        self._peers = peers
        self._text = text

    def count(self, opened: int, in_flight: int, queued: int) -> None:
        ours = self.ours
        ours[OPEN] = opened
        ours[IN_FLIGHT] = in_flight
        ours[QUEUED] = queued

    def others(self, slot: int) -> int:
        """Their sum."""
        return sum(values[slot] for values in self._theirs())

    def has_starving(self) -> bool:
        """Whether one of them waits and has nothing."""
        return any(values[QUEUED] and not values[OPEN] for values in self._theirs())

    def _theirs(self) -> list[memoryview]:
        return self._peers.values(TALLIES, self._text, QUEUED + 1)


class Standing(NamedTuple):
    """How a target is, as all workers know it together. `until` is the monotonic second when it is back: 0.0 while it
    is in service, infinity while its probes fail or connects to it time out. `why` is "" in service, or where it is
    not known."""

    state: str  # up, resting, ejected or down
    until: float = 0.0
    why: str = ""


IN_SERVICE: Final = Standing("up")

# Reasons by number; `it answered N` is N.
_REASONS: Final = (
    "",
    *(
        kind.code
        for kind in (
            CONNECT_FAILED,
            CONNECT_TIMEOUT,
            UPSTREAM_RESET,
            UPSTREAM_MALFORMED,
            UPSTREAM_CUT,
            SEND_TIMEOUT,
            FIRST_BYTE_TIMEOUT,
        )
    ),
    "its probes fail",
)
_ANSWERED: Final = "it answered "


def reason_number(why: str) -> int:
    """A reason in a slot. What only a probe says in words is kept as that it was a probe."""
    if why.startswith(_ANSWERED):
        return int(why[len(_ANSWERED) :])
    return _REASONS.index(why) if why in _REASONS else len(_REASONS) - 1


def standing(rows: Sequence[Sequence[int]], now: int, *, is_probed: bool) -> Standing:
    """From the entries of HEALTH that the living have for a target, one at least. `now` is in monotonic milliseconds.

    The latest probe counts, whoever made it; of rests the longest.
    """
    if is_probed:
        latest = max(rows, key=lambda values: values[PROBED])
        if latest[DOWN]:
            return Standing("down", inf, _reason(latest[WHY]))
    found = IN_SERVICE
    until = now
    for values in rows:
        if values[UNREACHED]:
            return Standing("down", inf, CONNECT_TIMEOUT.code)
        for state, slot in (("ejected", EJECTED), ("resting", RESTS)):
            if values[slot] > until:
                until = values[slot]
                found = Standing(state, until / 1000, _reason(values[WHY]))
    return found


def _reason(number: int) -> str:
    return f"{_ANSWERED}{number}" if number >= 100 else _REASONS[number]


def labels_of(text: bytes) -> Labels:
    """The label set of an entry of EXCHANGES; every label is `other` where there was no room for it."""
    if text == OTHER:
        return Labels(*[OTHER.decode()] * len(Labels._fields))
    return Labels(*orjson.loads(text))


def account_of(text: bytes) -> Account:
    """The label set of an entry of USAGE, likewise."""
    if text == OTHER:
        return Account(*[OTHER.decode()] * len(Account._fields))
    return Account(*orjson.loads(text))


def tried_text(upstream: str, status: int) -> bytes:
    """The text of an entry of TRIED."""
    return f"{upstream}/{status}".encode()
