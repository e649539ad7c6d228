"""What a case of the corpus is: the bytes an upstream answers with, how it goes on, and what has to become of them.

A case knows neither the gateway nor how its bytes are cut: each is run whole, byte by byte and at random cuts, and
its outcome holds for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class Outcome(Enum):
    """What the client must see, and what must never be."""

    RELAYED = "exactly `seen`, whole; the connection to the client is good for another request unless `seen` says close"
    REFUSED = "502 with `code`, and nothing of what the upstream sent but informational answers before it"
    LATE = "502 as long as nothing was relayed, else what was relayed breaks off visibly: it begins well"
    CUT = "the beginning of `raw`, as much as came, and then visibly no more"
    SURPLUS = "502 if the surplus came with the end of the answer, else the answer, and the surplus reaches nobody"
    SLOW = "504 with `code`: what was to come did not"
    DROPPED = "nothing: it came while no answer was due, and whoever asks next gets an answer of its own"


class End(Enum):
    """What the upstream does when it has sent its bytes."""

    STAYS = "keeps the connection"
    FIN = "closes"
    RST = "resets"


GET = b"GET /x HTTP/1.1\r\nhost: gw\r\nx-request-id: id\r\n\r\n"
HEAD = GET.replace(b"GET", b"HEAD")
POST = b"POST /x HTTP/1.1\r\nhost: gw\r\nx-request-id: id\r\ncontent-length: 3\r\n\r\nabc"
LAST = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
OLD = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
OLD_HEAD = HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")

# What most answers begin with.
OK = b"HTTP/1.1 200 OK\r\n"
FIVE = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
HELLO = b"5\r\nhello\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CLOSE = OK + b"connection: close\r\n\r\n"
EARLY = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Case:
    """`rfc` is the section that the case is about. `raw` is sent when the request is complete (DROPPED: when a request
    before it was answered). `seen` is what the client gets, without the `x-request-id` line that ends each head.

    `keeps`: whether the upstream's connection may be used again (never, unless RELAYED). `provider`: of the upstream.
    """

    name: str
    rfc: str
    outcome: Outcome
    raw: bytes
    request: bytes = GET
    end: End = End.STAYS
    seen: bytes = b""
    keeps: bool = False
    code: str = ""
    provider: str = "http"

    def __repr__(self) -> str:
        return f"<Case {self.name}>"

    @property
    def method(self) -> str:
        return self.request.partition(b" ")[0].decode()

    @property
    def path(self) -> bytes:
        return self.request.split(b" ")[1]

    @property
    def requests(self) -> int:
        return self.request.count(b" HTTP/1.")

    def of(self, provider: str) -> Case:
        return replace(self, provider=provider)


def relayed(
    name: str,
    rfc: str,
    raw: bytes,
    seen: bytes | None = None,
    *,
    request: bytes = GET,
    end: End = End.STAYS,
    keeps: bool | None = None,
) -> Case:
    """`seen` is `raw` unless given; a connection that the upstream does not close is used again unless said."""
    keeps = end is End.STAYS if keeps is None else keeps
    return Case(name, rfc, Outcome.RELAYED, raw, request, end, raw if seen is None else seen, keeps)


def refused(
    name: str,
    rfc: str,
    raw: bytes,
    *,
    request: bytes = GET,
    end: End = End.STAYS,
    seen: bytes = b"",
    code: str = "upstream_malformed",
) -> Case:
    """`seen` are the informational answers that go before the 502."""
    return Case(name, rfc, Outcome.REFUSED, raw, request, end, seen, code=code)


def late(name: str, rfc: str, raw: bytes, *, request: bytes = GET, end: End = End.STAYS, seen: bytes = b"") -> Case:
    """`seen`: what may have been relayed begins so; `raw` unless given."""
    return Case(name, rfc, Outcome.LATE, raw, request, end, seen or raw, code="upstream_malformed")


def cut(name: str, rfc: str, raw: bytes, seen: bytes = b"", *, request: bytes = GET, end: End = End.FIN) -> Case:
    return Case(name, rfc, Outcome.CUT, raw, request, end, seen or raw)


def surplus(
    name: str, rfc: str, answer: bytes, more: bytes, seen: bytes = b"", *, request: bytes = GET, end: End = End.STAYS
) -> Case:
    """An `answer` that is whole, and `more`; `seen` is the answer unless given."""
    return Case(name, rfc, Outcome.SURPLUS, answer + more, request, end, seen or answer, code="upstream_malformed")


def slow(name: str, rfc: str, raw: bytes, seen: bytes = b"") -> Case:
    return Case(name, rfc, Outcome.SLOW, raw, GET, End.STAYS, seen, code="first_byte_timeout")


def dropped(name: str, rfc: str, raw: bytes, *, end: End = End.STAYS) -> Case:
    return Case(name, rfc, Outcome.DROPPED, raw, GET, end)
