"""What a dialect is given and what it gives back: a call, and an answer that is either plain or streamed.

Answers are values. They know nothing of HTTP framing, time or failures: `script` turns them into bytes on a wire.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aigw.mock.settings import Settings

CREATED = 1_700_000_000
"""The time in every answer. The same request gets the same bytes, so a test can compare them."""

CHAT_MODEL = "mock-1"
EMBEDDING_MODEL = "mock-embedding-1"
MODELS = (CHAT_MODEL, EMBEDDING_MODEL)
"""What the mock lists. It answers for any model name whatever."""


class Refused(Exception):
    """The request cannot be answered; the dialect makes its error body of it. A message teaches what would be right."""

    def __init__(self, status: int, message: str, *, lines: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.lines = lines


@dataclass(frozen=True, slots=True)
class Call:
    """model: as the client named it; document: the request's JSON object; mark: 8 hex digits that ids end with."""

    model: str
    document: dict[str, Any]
    settings: Settings
    mark: str

    @property
    def streamed(self) -> bool:
        return self.document.get("stream") is True


@dataclass(frozen=True, slots=True)
class Plain:
    """A whole body. tokens: how many were generated for it; lines: extra header lines, each ending in CRLF."""

    body: bytes
    status: int = 200
    tokens: int = 0
    media: bytes = b"application/json"
    lines: bytes = b""


@dataclass(frozen=True, slots=True)
class Stream:
    """Events: a preamble, `count` content events made on demand, an ending.

    error: what stands in place of the rest where the request asks for an error event; malformed: the event that is no
    JSON.
    """

    first: tuple[bytes, ...]
    count: int
    delta: Callable[[int], bytes] = field(repr=False)
    last: tuple[bytes, ...]
    error: tuple[bytes, ...]
    malformed: bytes
    media: bytes = b"text/event-stream; charset=utf-8"
    lines: bytes = b""


Answer: TypeAlias = Plain | Stream
