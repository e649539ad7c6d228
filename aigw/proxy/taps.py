"""The tap on an exchange's answer: whether there is one, and what it is shown.

A tap observes what was relayed and changes nothing; one that raises is dropped, told to the operator, and the exchange
goes on. Which answers report a usage is decided here; how it is read, in `providers/tap.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aigw.providers.tap import EVENTS, GZIP, UNREADABLE, USAGE, Tap, way_to_read
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
    return True


def feed(exchange: Exchange, payload: bytes, follower: PayloadObserver | None = None) -> None:
    """What was just relayed, without the framing of chunks; `follower` then shows only what matters."""
    tap = exchange.tap
    if tap is not None:
        try:
            tap.feed(payload)
            if follower is not None:
                follower.mark = USAGE if tap.is_idle else b""
        except Exception as error:
            exchange.tap = None
            exchange.gateway.report(error, exchange)


def show(exchange: Exchange, follower: PayloadObserver) -> None:
    """What matters of the payload that was just relayed in its chunks."""
    feed(exchange, follower.taken(), follower)
