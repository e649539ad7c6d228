"""How much may be used: every limit that applies is looked at, then all of them are taken, or none.

Twice: once the head is known (requests, concurrency), and once the body has named a model (what is the model's, and
tokens and cost, which are reserved by an estimate and settled by what the answer reports). What the second look refuses
gives back what the first one took; a request that was refused costs nothing.

These are the limits of clients; those of upstreams and targets are in `attempts`.

A worker has one `Limits`; what an exchange took of them is its `Taken`. Meters are found once for a limit and a subject
and kept by the admission, or for what clients make many of, by a bounded memo. Money is in nano-dollars. No clock:
`now` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from aigw.config.limits import Limit, without
from aigw.config.upstreams import remember
from aigw.errors import Failure
from aigw.meters import Meter, Meters
from aigw.policies.allowance import Allowance, bind
from aigw.policies.clients import subject_of
from aigw.policies.estimate import NOTHING, Estimate
from aigw.tokens import Tokens
from aigw.wire.fields import line_name

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.config.snapshot import Resolved
    from aigw.policies.attempts import Attempt
    from aigw.prices import Price


class View(Protocol):
    """What is read of an exchange."""

    @property
    def admission(self) -> Admission: ...

    @property
    def more(self) -> bytes:
        """Lines of its head that the admission does not have, each with CRLF."""
        ...

    @property
    def address(self) -> str:
        """The client's."""
        ...


class Taken:
    """What one exchange took. Most set four of these (0.08 us for 0.15 with slots and an initializer)."""

    # one request of each, and when
    counted: Sequence[Allowance] = ()
    at = 0.0
    # until the end
    holds = False
    levels: Sequence[Meter] = ()
    reserved: Sequence[tuple[Allowance, int]] = ()
    estimate: Estimate | None = None  # what it may use, once it was asked for
    # of the upstream's limits and the target's, by the attempt under way
    attempt: Attempt | None = None
    # what answers show: of requests the limit of which the least is left, and each of tokens
    tightest: Allowance | None = None
    left = 0
    tokens: Sequence[tuple[Allowance, int]] = ()


class Limits:
    """The limits of a worker. `refused` is told of each refusal: gateway, limit, and whether it was only counted."""

    __slots__ = ("_known", "_meters", "_refused")

    def __init__(self, meters: Meters, refused: Callable[[str, str, bool], None]) -> None:
        self._meters = meters
        self._refused = refused
        self._known: dict[tuple[bytes, bytes], Allowance] = {}  # of what clients make many of

    def forget(self) -> None:
        """Amounts may have changed: another snapshot is served."""
        self._known.clear()

    # the head -----------------------------------------------------------------------------------------------------

    def admit(self, view: View, now: float) -> Taken | Failure:
        """Take what the head's limits ask for."""
        admission = view.admission
        only = admission.only
        if only is not None:  # as most have it
            left = only.meter.spend(only.amount, now)
            if left < 0:
                return self._refuse(only, 1, admission, None, now)
            taken = Taken()
            taken.counted = admission.allowances or ()
            taken.at = now
            taken.tightest = only
            taken.left = left
            return taken
        allowances = admission.allowances
        if allowances is None:
            named = [limit for limit in admission.limits if not limit.is_open]
            allowances = tuple(bind(self._meters, limit, _subject(limit, admission, None)) for limit in named)
            admission.allowances = allowances
            if len(admission.limits) == 1 and named and allowances[0].counts and not allowances[0].shadow:
                admission.only = allowances[0]
                return self.admit(view, now)
        if admission.opens:
            allowances = (*allowances, *(self._find(limit, _made(limit, view)) for limit in admission.opens))
        taken = Taken()
        failure = self._take(taken, allowances, admission, None, now)
        return taken if failure is None else failure

    def _take(
        self, taken: Taken, allowances: Iterable[Allowance], admission: Admission, entry: str | None, now: float
    ) -> Failure | None:
        """Those of which a request uses one: all, or none with the reason."""
        passed = []
        for allowance in allowances:
            left = allowance.amount - allowance.meter.used(now) - 1
            if left >= 0:
                passed.append(allowance)
                if allowance.counts and allowance.shows and (taken.tightest is None or left < taken.left):
                    taken.tightest, taken.left = allowance, left
            elif allowance.shadow:
                self._refused(admission.found.gateway.name, allowance.limit.label, True)
            else:
                return self._refuse(allowance, 1, admission, entry, now)
        counted = []
        for allowance in passed:
            if allowance.counts:
                allowance.meter.take(1, now)
                counted.append(allowance)
            else:
                allowance.meter.hold(1)
                taken.levels = [*taken.levels, allowance.meter]
                taken.holds = True
        taken.at = taken.at or now  # of two moments the earlier one, from which on they counted less
        taken.counted = [*taken.counted, *counted]
        return None

    def _refuse(self, allowance: Allowance, need: int, admission: Admission, entry: str | None, now: float) -> Failure:
        self._refused(admission.found.gateway.name, allowance.limit.label, False)
        return allowance.refusal(need, admission, entry, now, self._wall(now))

    # the body -----------------------------------------------------------------------------------------------------

    def decide(
        self, taken: Taken, view: View, resolved: Resolved, guess: Callable[[], Estimate], now: float
    ) -> Failure | None:
        """Take what waited for the model to be known, and reserve what its answer may use; `guess` says how much that
        is, where anybody asks."""
        admission = view.admission
        entry = resolved.entry
        known = admission.bodies.get(entry)
        if known is None:
            known = admission.bodies[entry] = self._of_the_body(admission, resolved)
        allowances, opens = known
        if opens:
            allowances = (*allowances, *(self._find(limit, _made(limit, view)) for limit in opens))
        ones = [allowance for allowance in allowances if allowance.is_one]
        needs: list[tuple[Allowance, int]] = []
        if len(ones) < len(allowances):
            estimate = taken.estimate = guess()
            tokens = Tokens(*estimate)
            for allowance in allowances:
                if allowance.is_one:
                    continue
                need = allowance.of(tokens, estimate, resolved.price)
                left = allowance.amount - allowance.meter.used(now) - need
                if left >= 0:
                    needs.append((allowance, need))
                    if allowance.shows:
                        taken.tokens = [*taken.tokens, (allowance, left)]
                elif allowance.shadow:
                    self._refused(admission.found.gateway.name, allowance.limit.label, True)
                else:
                    return self._refuse(allowance, need, admission, entry, now)
        failure = self._take(taken, ones, admission, entry, now)
        if failure is None:
            for allowance, need in needs:
                allowance.meter.hold(need)
                taken.holds = True
            taken.reserved = needs
        return failure

    def _of_the_body(self, admission: Admission, resolved: Resolved) -> tuple[tuple[Allowance, ...], tuple[Limit, ...]]:
        """Allowances and, of what clients make many of, limits."""
        key = admission.key
        limits = [*admission.later, *(resolved.limits if key is None else without(resolved.limits, key))]
        named = [limit for limit in limits if not limit.is_open]
        allowances = tuple(bind(self._meters, limit, _subject(limit, admission, resolved.entry)) for limit in named)
        return allowances, tuple(limit for limit in limits if limit.is_open)

    def applying(
        self, view: View, resolved: Resolved, estimate: Estimate, now: float
    ) -> list[tuple[Allowance, int, int]]:
        """Every limit that applies, how much of it a request would take, and what would be left; nothing is taken."""
        admission = view.admission
        bound = [*admission.limits, *admission.later]
        bound += resolved.limits if admission.key is None else without(resolved.limits, admission.key)
        tokens = Tokens(*estimate)
        found = []
        for limit in bound:
            subject = _made(limit, view) if limit.is_open else _subject(limit, admission, resolved.entry)
            allowance = bind(self._meters, limit, subject)
            need = 1 if allowance.is_one else allowance.of(tokens, estimate, resolved.price)
            found.append((allowance, need, allowance.amount - allowance.meter.used(now) - need))
        return found

    # the end ------------------------------------------------------------------------------------------------------

    def settle(self, taken: Taken, now: float, *, refused: bool, used: Tokens | None, price: Price | None) -> None:
        """Exactly once, at the end of the exchange.

        `refused`: nothing was sent to an upstream, and nothing is charged. `used` is what the answer reported, None
        where it was asked for and did not say: then it is what was reserved.
        """
        for meter in taken.levels:
            meter.let_go(1)
        if refused:
            for allowance in taken.counted:
                allowance.meter.give_back(1, taken.at)
        estimate = taken.estimate or NOTHING
        for allowance, need in taken.reserved:
            allowance.meter.let_go(need)
            count = need if used is None else allowance.of(used, estimate, price)
            if count:
                allowance.meter.take(count, now)

    def lines(self, taken: Taken, dialect: str, now: float) -> bytes:
        """What an answer says of the limits, each line with CRLF; b"" where no limit is shown."""
        tightest = taken.tightest
        offset = self._meters.wall_offset
        said = b"" if tightest is None else tightest.lines(taken.left, dialect, now, offset)
        if taken.tokens:
            shown: dict[str, tuple[Allowance, int]] = {}
            for allowance, left in sorted(taken.tokens, key=lambda pair: -pair[1]):  # the least one last
                shown[allowance.limit.unit if dialect == "anthropic" else ""] = allowance, left
            said += b"".join([allowance.lines(left, dialect, now, offset) for allowance, left in shown.values()])
        return said

    # whose allowance ----------------------------------------------------------------------------------------------

    def _find(self, limit: Limit, subject: bytes) -> Allowance:
        known = limit.identity, subject
        allowance = self._known.get(known)
        if allowance is None:
            allowance = bind(self._meters, limit, subject)
            remember(self._known, known, allowance)
        return allowance

    def _wall(self, now: float) -> float:
        return now + self._meters.wall_offset


def _subject(limit: Limit, admission: Admission, entry: str | None) -> bytes:
    """Whose allowance it is, where the config names them all. Who has none (no key, no group, no model) shares one with
    all others that have none."""
    found = admission.found
    key = admission.key
    name: str | None
    match limit.per:
        case "key":
            name = None if key is None else key.name
        case "group":
            name = None if key is None else key.group
        case "rule":
            name = found.rule.name
        case "model":
            name = entry
        case _:  # what it stands on is part of its identity
            name = None
    return f"{found.gateway.name}\0{name or ''}".encode()


def _made(limit: Limit, view: View) -> bytes:
    """The same, where clients make them: an address (of IPv6 the /64, since that is what one client has), or the values
    of a header."""
    if not limit.header:
        return subject_of(view.address).encode()
    lines = [*view.admission.head.kept, *view.more.split(b"\r\n")[:-1]]
    return b"\0".join(line.partition(b":")[2].strip() for line in lines if line_name(line) == limit.header)
