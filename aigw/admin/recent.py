"""The last finished exchanges, as the access log has them: kept as they come, looked into when somebody asks.

The supervisor gets records in batches of many lines. They are not even counted as they come, which took half of what
the supervisor does under load, but when there may be far too many of them.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

MOST = 1000
SLACK = 1 << 20  # bytes that are kept beyond the last MOST before that is looked at
FILTERS = ("gateway", "key", "model", "rule", "upstream", "target", "status", "end", "fault", "error")


class Recent:
    """`keep` takes whole lines, oldest first."""

    __slots__ = ("_batches", "_bound", "_size")

    def __init__(self) -> None:
        self._batches: deque[bytes] = deque()
        self._size = 0
        self._bound = SLACK

    def __repr__(self) -> str:
        return f"<Recent {self._size} bytes>"

    def keep(self, lines: bytes) -> None:
        self._batches.append(lines)
        self._size += len(lines)
        if self._size > self._bound:
            self._trim()

    def _trim(self) -> None:
        """Lets go of the batches that are older than the last `MOST` lines."""
        kept: deque[bytes] = deque()
        left = MOST
        size = 0
        while left > 0 and self._batches:
            batch = self._batches.pop()
            kept.appendleft(batch)
            left -= batch.count(b"\n")
            size += len(batch)
        self._batches = kept
        self._size = size
        self._bound = size + SLACK

    def __iter__(self) -> Iterator[bytes]:
        """The last `MOST` lines, newest first."""
        left = MOST
        for batch in reversed(self._batches):
            for line in reversed(batch.split(b"\n")):
                if line:
                    if not left:
                        return
                    left -= 1
                    yield line

    def select(self, wanted: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        """The newest `limit` exchanges of which every field in `wanted` fits: as text, a status also as `5xx`."""
        found: list[dict[str, Any]] = []
        for line in self:
            if len(found) == limit:
                break
            record = orjson.loads(line)
            if all(_fits(record.get(name), text) for name, text in wanted.items()):
                found.append(record)
        return found

    def find(self, request_id: str) -> dict[str, Any] | None:
        """The newest exchange with this id."""
        mark = orjson.dumps(request_id)
        for line in self:
            if mark in line and (record := orjson.loads(line)).get("request_id") == request_id:
                return dict(record)
        return None


def _fits(value: object, text: str) -> bool:
    if isinstance(value, int) and text[1:] == "xx":
        return str(value)[:1] == text[0]
    return value is not None and str(value) == text
