"""The end of an exchange: what it used is settled, it is counted, and its record is written; each once.

What limits hold of it is settled before the last byte of its answer leaves, so that who has seen that, and asks again,
finds it counted, at whichever worker. The record of a relayed answer follows when the client has taken it all, or has
not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aigw.errors import (
    UPSTREAM_CREDENTIAL_REFUSED,
    UPSTREAM_ERROR,
    UPSTREAM_OVERLOADED,
    UPSTREAM_RATE_LIMITED,
    Failure,
)
from aigw.ledger import record
from aigw.policies.limits import Taken
from aigw.proxy import taps
from aigw.shared import IN_FLIGHT
from aigw.tokens import NO_TOKENS, Tokens

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange

# Failures by which an upstream said that it did nothing, as an error status does.
UNUSED: Final = frozenset({UPSTREAM_CREDENTIAL_REFUSED, UPSTREAM_ERROR, UPSTREAM_RATE_LIMITED, UPSTREAM_OVERLOADED})


def finish(exchange: Exchange, end: str, failure: Failure | None, now: float) -> None:
    """`end` is what the record says; an empty one writes none. `now` is monotonic, here and below."""
    if exchange.ended:
        return
    exchange.ended = True
    gateway = exchange.gateway
    gateway.row[IN_FLIGHT] -= 1
    if exchange.upload is not None:
        exchange.upload.forget()
        exchange.upload.resume()
        exchange.whole = b""  # the two know each other, so that only the collector lets them go
    tokens = None
    if end:
        try:
            tokens = taps.usage(exchange, whole=end == "ok")
            cost = None
            if tokens is not None and exchange.candidate is not None and exchange.candidate.price is not None:
                cost = exchange.candidate.price.cost(tokens)
            gateway.counters.count(exchange, end, failure, now, tokens, cost)
            wall = exchange.started + gateway.wall_offset
            client = exchange.address.encode() if exchange.client.is_proxy else exchange.client.address_bytes
            gateway.emit(record(exchange, client, end, failure, now, wall, tokens, cost))
        except Exception as error:  # the client is not to suffer for it
            gateway.report(error, exchange)
    taken = exchange.taken
    if taken is not None and (taken.holds or failure is not None):
        _settle(exchange, taken, failure, tokens, now)
    exchange.trying = None  # likewise


def settle_whole(exchange: Exchange, now: float) -> None:
    """The answer is whole, and its last byte not sent yet. The exchange goes on until the client has taken it all."""
    taken = exchange.taken
    if taken is not None and taken.holds:
        _settle(exchange, taken, None, taps.usage(exchange, whole=True), now)
        exchange.taken = None


def settle_attempt(exchange: Exchange, used: Tokens | None, now: float) -> None:
    """The attempt is over: `used` is what its answer reported, None where it was sent and nothing is known."""
    taken = exchange.taken
    if taken is not None and taken.attempt is not None:
        attempt, taken.attempt = taken.attempt, None
        attempt.settle(used, now)


def is_unused(used: Tokens | None, failure: Failure | None) -> bool:
    return used is None and failure is not None and failure.kind in UNUSED


def _settle(exchange: Exchange, taken: Taken, failure: Failure | None, used: Tokens | None, now: float) -> None:
    """What was used of the limits: nothing where nothing was sent; where it was, what the answer says, else what was
    reserved. An upstream's own error has used nothing."""
    response = exchange.response
    if not exchange.sent_at or (response is not None and response.status >= 400) or is_unused(used, failure):
        used = NO_TOKENS
    settle_attempt(exchange, used, now)
    candidate = exchange.candidate
    exchange.gateway.limits.settle(
        taken,
        now,
        refused=failure is not None and not exchange.sent_at,
        used=used,
        price=None if candidate is None else candidate.price,
    )
