"""The states of a client connection, the moves between them, and the deadlines that run meanwhile. Data only.

    accept --> IDLE --> READING ----> ACQUIRING --> SENDING --> WAITING --> RELAYING
                ^          |            ^   |          | |         |            |
                |          | bad,       |   | no slot, | '-- early response --> |
                |          | refused,   '---(- dial  --+-- retry, fallback     |
                |          v too slow       v          v            v           |
                +------ REPLYING <----------+----------+------------'           |
                |       our own answer: only while nothing was relayed          |
                '-------------------- end of the response, keep-alive ----------'
    any state --> CLOSED   client gone; drain deadline; error after the head was relayed; close wanted

This is the response's side. The request's body has a small state of its own (`Body`), since both directions run at
once. A state that would be left within the same call is not entered: a request that is whole and finds an idle
connection goes from READING to WAITING.

One deadline runs at a time, chosen when a state is entered or progress is made; the sweep compares it with the clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from aigw.errors import (
    CONNECT_TIMEOUT,
    FIRST_BYTE_TIMEOUT,
    FIRST_TOKEN_TIMEOUT,
    IDLE_TIMEOUT,
    QUEUE_TIMEOUT,
    REQUEST_TIMEOUT,
    SEND_TIMEOUT,
    TOTAL_TIMEOUT,
    Failure,
)


class State(Enum):
    IDLE = "idle"  # no request has begun
    READING = "reading"  # a head, or a body that must be known before the upstream is
    ACQUIRING = "acquiring"  # waiting for a connection to the target, or for the time of another attempt
    SENDING = "sending"  # the request is on its way
    WAITING = "waiting"  # sent; no response's head yet, or one that is held with what came behind it
    RELAYING = "relaying"  # the response's head went to the client
    REPLYING = "replying"  # our own answer was written, and the rest of what the client sends is let go
    CLOSED = "closed"


class Body(Enum):
    """The request's body."""

    COLLECTING = "collecting"  # read whole before the request is routed
    UPLOADING = "uploading"  # passed on as it comes
    UPLOADED = "uploaded"  # all of it was read (and what was collected may be sent again)


class Deadline(Enum):
    """What is awaited. The value is the name of the timeout in the config, where there is one."""

    KEEPALIVE = "keepalive"
    REQUEST = "request"
    CLIENT_READ = "client_read"
    CLIENT_WRITE = "client_write"
    QUEUE = "queue"
    CONNECT = "connect"
    SEND = "send"
    FIRST_BYTE = "first_byte"
    FIRST_TOKEN = "first_token"
    PAUSE = "pause"  # before another attempt; no timeout of the config
    IDLE = "idle"
    TOTAL = "total"
    LINGER = "linger"


_S: Final = State
# Every move there is; CLOSED can be reached from everywhere and is left never.
MOVES: Final[dict[State, frozenset[State]]] = {
    _S.IDLE: frozenset({_S.READING, _S.REPLYING, _S.CLOSED}),
    _S.READING: frozenset({_S.ACQUIRING, _S.SENDING, _S.WAITING, _S.REPLYING, _S.CLOSED}),
    _S.ACQUIRING: frozenset({_S.SENDING, _S.WAITING, _S.REPLYING, _S.CLOSED}),
    _S.SENDING: frozenset({_S.WAITING, _S.RELAYING, _S.ACQUIRING, _S.REPLYING, _S.CLOSED}),
    _S.WAITING: frozenset({_S.RELAYING, _S.ACQUIRING, _S.REPLYING, _S.CLOSED}),
    _S.RELAYING: frozenset({_S.IDLE, _S.REPLYING, _S.CLOSED}),
    _S.REPLYING: frozenset({_S.IDLE, _S.CLOSED}),
    _S.CLOSED: frozenset(),
}

# What a deadline becomes for an exchange; CLIENT_WRITE ends it without an answer, the others have no exchange.
EXPIRED: Final[dict[Deadline, Failure]] = {
    Deadline.CLIENT_READ: Failure(
        REQUEST_TIMEOUT, "the request body stopped arriving (timeouts.client_read); send it faster"
    ),
    Deadline.QUEUE: Failure(
        QUEUE_TIMEOUT, "no connection to the upstream became free in time (timeouts.queue); try again later"
    ),
    Deadline.CONNECT: Failure(
        CONNECT_TIMEOUT, "the upstream could not be connected to in time (timeouts.connect); try again later"
    ),
    Deadline.SEND: Failure(SEND_TIMEOUT, "the upstream stopped taking the request (timeouts.send)"),
    Deadline.FIRST_BYTE: Failure(
        FIRST_BYTE_TIMEOUT, "the upstream did not begin to answer in time (timeouts.first_byte)"
    ),
    Deadline.FIRST_TOKEN: Failure(
        FIRST_TOKEN_TIMEOUT, "the upstream's stream did not begin with content in time (timeouts.first_token)"
    ),
    Deadline.IDLE: Failure(IDLE_TIMEOUT, "the upstream stopped in the middle of its answer (timeouts.idle)"),
    Deadline.TOTAL: Failure(TOTAL_TIMEOUT, "the answer was not complete in time (timeouts.total)"),
}
