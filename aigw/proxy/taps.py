"""The tap on an exchange's answer: whether there is one, and what it is shown.

A tap observes what was relayed and changes nothing; one that raises is dropped, told to the operator, and the exchange
goes on. Which answers report a usage is decided here; how it is read, in `providers/tap.py`. With it goes, in a stream,
the look for the first content (`providers/first.py`), until that came.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from aigw.providers import DIALECTS
from aigw.providers.first import FirstContent
from aigw.providers.tap import EVENTS, GZIP, UNREADABLE, USAGE, Tap, way_to_read
from aigw.tokens import Tokens
from aigw.wire.framing import PayloadObserver
from aigw.wire.head import ResponseHead

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange


def way_of(response: ResponseHead) -> int:
    """How the usage in the answer's body is read; remembered by the head."""
    way = response.way
    if way < 0:
        way = UNREADABLE
        if response.status < 300:
            way = way_to_read(response.content_type, response.content_encoding)
        response.way = way
    return way


def is_stream(response: ResponseHead) -> bool:
    """Whether its body is events that can be read as they come."""
    way = way_of(response)
    return bool(way & EVENTS) and not way & GZIP


def tap(exchange: Exchange, response: ResponseHead) -> bool:
    """Put a tap on the answer that begins, where it may report a usage that was not counted before."""
    way = way_of(response)
    if not way or not exchange.admission.is_counted:
        return False
    exchange.tap = Tap(way)
    if way == EVENTS and exchange.admission.found.endpoint.kind == "inference":
        exchange.first = FirstContent(DIALECTS[exchange.admission.dialect])
    return True


def feed(exchange: Exchange, payload: bytes, follower: PayloadObserver | None = None, now: float = 0.0) -> None:
    """What was relayed at `now` (0.0: just now), without the framing of chunks; `follower` then shows only what
    matters."""
    tap = exchange.tap
    if tap is not None:
        try:
            tap.feed(payload)
            if exchange.first is not None:
                _look(exchange, exchange.first, payload, now)
            if follower is not None:
                follower.mark = USAGE if tap.is_idle and exchange.first is None else b""
        except Exception as error:
            exchange.tap = exchange.first = None
            exchange.gateway.report(error, exchange)


def usage(exchange: Exchange, *, whole: bool) -> Tokens | None:
    """What the answer said by now of what it used; `whole` where all of it came, which ends the tap."""
    tap = exchange.tap
    if tap is not None and exchange.head_at:
        exchange.tap = None
        try:
            exchange.tokens = tap.usage(whole)
        except Exception as error:
            exchange.gateway.report(error, exchange)
    return exchange.tokens


def _look(exchange: Exchange, first: FirstContent, payload: bytes, now: float) -> None:
    found = first.feed(payload)
    if found is not False:
        exchange.first = None
        if found:
            exchange.first_at = now or monotonic()


def show(exchange: Exchange, follower: PayloadObserver) -> None:
    """What matters of the payload that was just relayed in its chunks."""
    feed(exchange, follower.taken(), follower)
