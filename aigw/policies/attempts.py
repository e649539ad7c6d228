"""What attempts may use of an upstream and its targets: where that is used up, a target is no candidate.

These limits refuse nobody: `route` asks whether a candidate is `full` and goes to another one. Each attempt takes for
itself once it is decided where it goes, so that what was looked at and what is taken are of one moment; and it is
settled for itself, whatever follows it: by what its answer reports, else by what was reserved. Nothing stays taken by
one that was never sent. Whoever the client is, it is one allowance, over all gateways. No clock: `now` is monotonic
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from aigw.config.limits import Limit
from aigw.meters import Meters
from aigw.policies.allowance import SOON, Allowance, bind
from aigw.policies.estimate import NOTHING, Estimate
from aigw.tokens import Tokens

if TYPE_CHECKING:
    from aigw.config.upstreams import Candidate, Target
    from aigw.prices import Price

# What is full now has no room now, however soon it has.
_AT_LEAST: Final = 0.001


class Full(NamedTuple):
    """The limit that leaves no room for the longest time, and in how many seconds it does: infinity where a request
    asks for more than there ever is."""

    limit: Limit
    seconds: float


class Asker(Protocol):
    """Who wants to make an attempt."""

    def estimate(self) -> Estimate:
        """How much an attempt may use."""
        ...

    def returns(self, limit: Limit) -> int:
        """How much of a limit there is again once its last attempt, which has ended, is settled."""
        ...


class Attempt:
    """What one attempt took, of each limit with how much."""

    __slots__ = ("_at", "_estimate", "_price", "_took", "sent")

    def __init__(
        self, took: Sequence[tuple[Allowance, int]], estimate: Estimate, price: Price | None, at: float
    ) -> None:
        self._took = took
        self._estimate = estimate
        self._price = price
        self._at = at
        self.sent = False  # so that it counts as a request, and may have used something

    def returns(self, limit: Limit) -> int:
        """Of what it took of the limit, what it does not keep if it ends without having used anything."""
        return sum(
            need for allowance, need in self._took if allowance.limit is limit and not (allowance.counts and self.sent)
        )

    def settle(self, used: Tokens | None, now: float) -> None:
        """To be called once, when the attempt is over. `used` is what its answer reported, None where it did not."""
        for allowance, need in self._took:
            meter = allowance.meter
            if allowance.counts:
                if not self.sent:
                    meter.give_back(need, self._at)
                continue
            meter.let_go(need)
            if self.sent and not allowance.is_one:
                count = need if used is None else allowance.of(used, self._estimate, self._price)
                if count:
                    meter.take(count, now)


class Attempts:
    """The limits of upstreams and targets, in one process. `passed` is told of each that only counts and would have
    been in the way: gateway, limit, and that it only counts."""

    __slots__ = ("_known", "_meters", "_passed")

    def __init__(self, meters: Meters, passed: Callable[[str, str, bool], None]) -> None:
        self._meters = meters
        self._passed = passed
        self._known: dict[Target, tuple[Allowance, ...]] = {}

    def forget(self) -> None:
        """Another snapshot is served."""
        self._known.clear()

    def of(self, target: Target) -> tuple[Allowance, ...]:
        """Those of its upstream, and its own."""
        known = self._known.get(target)
        if known is None:
            known = self._known[target] = tuple(bind(self._meters, limit, b"") for limit in target.limits)
        return known

    def full(self, candidate: Candidate, asker: Asker | None, now: float) -> Full | None:
        """Why there is no room for an attempt at a candidate; None where there is. Who asks for nothing is measured by
        one request."""
        estimate = NOTHING if asker is None else asker.estimate()
        found = None
        for allowance in self.of(candidate.target):
            if allowance.shadow:
                continue
            need = _need(allowance, estimate, candidate.price)
            over = allowance.meter.used(now) + need - allowance.amount
            if over > 0 and asker is not None:
                over -= asker.returns(allowance.limit)
            if over > 0:
                seconds = inf
                if need <= allowance.amount:
                    seconds = allowance.meter.frees(over, now)
                    seconds = SOON if seconds == inf else max(seconds, _AT_LEAST)
                if found is None or seconds > found.seconds:
                    found = Full(allowance.limit, seconds)
        return found

    def take(self, candidate: Candidate, estimate: Estimate, gateway: str, now: float) -> Attempt:
        """For an attempt at a candidate that is not full. `gateway` is the name of the client's."""
        took = []
        for allowance in self.of(candidate.target):
            need = _need(allowance, estimate, candidate.price)
            left = allowance.amount - allowance.meter.used(now) - need
            if left < 0 and allowance.shadow:
                self._passed(gateway, allowance.limit.label, True)
                continue
            if allowance.counts:
                allowance.meter.take(need, now)
            else:
                allowance.meter.hold(need)
            took.append((allowance, need))
        return Attempt(took, estimate, candidate.price, now)


def _need(allowance: Allowance, estimate: Estimate, price: Price | None) -> int:
    return 1 if allowance.is_one else allowance.of(Tokens(*estimate), estimate, price)
