"""Where an exchange's request goes, once its model is known: the limits that waited for it, the entry, the candidate.

`route` finds and chooses; here is what that means for an exchange: what it keeps of the decision, what is taken of
limits, and that a request for which there is nothing is answered.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from aigw.admit import members_of
from aigw.config.snapshot import Resolved
from aigw.config.upstreams import Candidate, remember
from aigw.errors import Failure
from aigw.policies.estimate import NOTHING, Estimate, estimate
from aigw.policies.limits import Taken
from aigw.proxy.trying import Trying
from aigw.route import choose, find, part, plan

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange


def resolve(exchange: Exchange, model: str | None) -> Resolved | Failure:
    """What the model is to this rule and key; the admission remembers it."""
    admission = exchange.admission
    resolved = find(admission.found, admission.dialect, admission.key, model)
    if isinstance(resolved, Resolved):
        planned = plan(admission.found, admission.key, resolved)
        if planned is not None:
            resolved = resolved.with_plan(planned)
        remember(admission.resolved, model, resolved)
    return resolved


def decide(
    exchange: Exchange, model: str | None, whole: bytes = b"", members: dict[str, Any] | None = None
) -> Candidate | None:
    """The candidate, or None where the exchange was answered with the reason that there is none. `whole` is the
    body where it was read for its model, and `members` its JSON object."""
    admission = exchange.admission
    exchange.model = model
    resolved = admission.resolved.get(model)
    if resolved is None:
        found = resolve(exchange, model)
        if isinstance(found, Failure):
            exchange.fail(found)
            return None
        resolved = found
    if (admission.later or resolved.limits) and not is_within(exchange, resolved, members):
        return None
    begun = resolved
    candidate = resolved.only
    if candidate is None:
        exchange.whole = whole or exchange.whole  # which the choice may look at
        if resolved.is_limited:
            measure(exchange, resolved, members)
        begun = part(resolved, exchange.request_id)
        chosen = choose(begun, exchange.gateway, (), exchange)
        if isinstance(chosen, Failure):
            if resolved.plan is not None:
                exchange.trying = Trying(exchange, resolved, whole, members)
                following = exchange.trying.next(chosen.kind.cause, chosen.kind.status, monotonic())
                if following is not None:
                    begun, candidate, _ = following
            if candidate is None:
                if chosen.limit:
                    exchange.gateway.counters.limited(admission.found.gateway.name, chosen.limit, False)
                exchange.fail(chosen)
                return None
        else:
            candidate = chosen
            exchange.gateway.advance(begun.upstream)
        if candidate.is_limited:
            exchange.take(candidate)
    exchange.candidate = candidate
    total = begun.total or admission.total
    if total is not None:
        exchange.client.total = exchange.started + total
    if resolved.plan is not None:
        exchange.is_special = True
        exchange.trying = exchange.trying or Trying(exchange, resolved, whole, members)
        exchange.trying.begin(begun, candidate, monotonic())
    return candidate


def is_within(exchange: Exchange, resolved: Resolved, members: dict[str, Any] | None) -> bool:
    """Whether the limits that waited for the model leave room; else it is answered."""
    taken = exchange.taken = exchange.taken or Taken()
    failure = exchange.gateway.limits.decide(
        taken, exchange, resolved, lambda: measure(exchange, resolved, members), monotonic()
    )
    if failure is not None:
        exchange.fail(failure)
    return failure is None


def measure(exchange: Exchange, resolved: Resolved, members: dict[str, Any] | None) -> Estimate:
    """How much the request may use: guessed once, where a limit asks."""
    taken = exchange.taken = exchange.taken or Taken()
    if taken.estimate is None:
        taken.estimate = NOTHING
        if exchange.admission.is_counted and resolved.upstream.dialects:  # else it uses no tokens
            upload = exchange.upload
            size = exchange.bytes_in if upload is None else upload.length or exchange.bytes_in
            if members is None and exchange.admission.source == "path":
                members = members_of(exchange.whole)  # nobody else had to read it, if it is here
            taken.estimate = estimate(size, members, is_form=exchange.admission.source == "form")
    return taken.estimate
