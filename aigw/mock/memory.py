"""Answers already made, whole, ready to be written again.

An answer follows from the request and the server's settings, so it can be remembered by them. What is kept is small: it
is for the client that repeats itself, as benchmarks and probes do.
"""

from functools import lru_cache
from typing import TypeAlias

from aigw.mock.script import Wire, head, script
from aigw.mock.settings import Settings
from aigw.mock.values import Answer, Plain

Key: TypeAlias = tuple[bytes, bytes, str, bytes, bytes]
"""method, target, the dialect hinted at by headers, the words of `x-mock`, body"""

STATUS = b"HTTP/1.1 200 OK\r\n"

_BODY = 4 * 1024
_EVENTS = 256
"""What is small: requests with bodies of so many bytes, streams of so many content events."""

_BYTES = 4 * 1024 * 1024
"""Of requests and answers together; then all is forgotten, which is cheaper than to keep an order."""

_ENTRY = 500
"""Bytes that Python needs for one entry besides."""


class Memory:
    """known: key -> the answer's bytes that follow status line and `date`, for HTTP/1.1 and a kept connection."""

    __slots__ = ("_size", "known")

    def __init__(self) -> None:
        self.known: dict[Key, bytes] = {}
        self._size = 0

    def offer(self, key: Key, answer: Answer, settings: Settings, lines: bytes) -> bytes | None:
        """The bytes as `known` has them, and remember them; None where this answer is not for one write."""
        if not settings.at_once or len(key[4]) > _BODY:
            return None
        if answer.status != 200 if isinstance(answer, Plain) else answer.count > _EVENTS:
            return None
        wire = Wire(lines, bodiless=key[0] == b"HEAD")
        if isinstance(answer, Plain):
            whole = head(answer, wire)[len(STATUS) :] + (b"" if wire.bodiless else answer.body)
        else:
            whole = b"".join(step for step in script(answer, settings, wire) if isinstance(step, bytes))[len(STATUS) :]
        if self._size > _BYTES:
            self._size = 0
            self.known.clear()
        self._size += len(whole) + len(key[4]) + _ENTRY
        self.known[key] = whole
        return whole


@lru_cache(maxsize=16)
def memory_of(settings: Settings) -> Memory:
    """One for all connections of servers with these settings."""
    return Memory()
