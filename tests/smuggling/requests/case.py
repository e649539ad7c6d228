"""What a case is: bytes of a client, what the gateway must answer, and what the upstream must have seen of it.

The runner sends a request of its own behind every case (`SENTINEL`), so that an answer out of step, or bytes of a
refused request taken for another one, cannot stay hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    """Of the connection, behind the answers."""

    OPEN = "the next request is answered"
    CLOSES = "the gateway closes, and what follows is not looked at"
    EITHER = "closes if the body was not all there when the gateway answered, else the next request is answered"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the upstream must have seen it.

    `lines` are all its header lines, in order, but for what the gateway always sends: the request id, the framing, and
    `host`, which is the target's authority where it is empty here. `by` is the upstream that saw it
    (see `player.document`).
    """

    line: bytes
    lines: tuple[bytes, ...] = ()
    body: bytes = b""
    trailers: tuple[bytes, ...] = ()
    host: bytes = b""
    by: str = "plain"


@dataclass(frozen=True, slots=True)
class Case:
    """`statuses` are those of the final answers, 200 where an upstream answered. `section` is an RFC's, or design's.

    `begun`: the head was good, so that the upstream may have got a part of the request, but never the whole.
    `fin`: the client ends its side behind these bytes, and no sentinel follows.
    `otherwise`: a strict reader by the letter of the RFC would do something else; what, and why the gateway does not.
    """

    name: str
    section: str
    raw: bytes
    why: str
    statuses: tuple[int, ...]
    seen: tuple[Seen, ...]
    end: End
    begun: bool = False
    fin: bool = False
    otherwise: str = ""

    @property
    def is_valid(self) -> bool:
        """Whether every request in it must be answered."""
        return bool(self.statuses) and set(self.statuses) == {200}


HOST = b"Host: gw"
EVIL = b"GET /s/evil HTTP/1.1\r\nHost: gw\r\n\r\n"
SENTINEL = b"GET /s/sentinel HTTP/1.1\r\nHost: gw\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def http(first: bytes, *lines: bytes, body: bytes = b"") -> bytes:
    """A request line, header lines, a blank line and a body."""
    return b"\r\n".join((first, *lines, b"", b"")) + body


def seen(method_and_path: bytes, *lines: bytes, body: bytes = b"", **facts: object) -> Seen:
    return Seen(method_and_path + b" HTTP/1.1", lines, body, **facts)  # type: ignore[arg-type]


def answered(name: str, section: str, raw: bytes, *requests: Seen, why: str, end: End = End.OPEN) -> Case:
    """All good: the upstream sees exactly these requests, and their answers come back in order."""
    return Case(name, section, raw, why, (200,) * len(requests), requests, end)


def refused(
    name: str,
    section: str,
    raw: bytes,
    status: int = 400,
    *,
    why: str,
    before: tuple[Seen, ...] = (),
    begun: bool = False,
    otherwise: str = "",
) -> Case:
    """Refused, after the answers to the good requests `before`, and then the connection closes."""
    statuses = (200,) * len(before) + (status,)
    return Case(name, section, raw, why, statuses, before, End.CLOSES, begun, otherwise=otherwise)


def declined(
    name: str, section: str, raw: bytes, status: int, *, why: str, end: End = End.OPEN, begun: bool = False
) -> Case:
    """Well-formed, but answered by the gateway itself; the connection goes on where the request was all there."""
    return Case(name, section, raw, why, (status,), (), end, begun)


def dropped(name: str, section: str, raw: bytes, *, why: str, begun: bool = False) -> Case:
    """The client ends its side in the midst of a request: no answer, and no whole request for the upstream."""
    return Case(name, section, raw, why, (), (), End.CLOSES, begun, fin=True)
