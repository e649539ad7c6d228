"""The last finished exchanges, as the access log has them: kept as they come, looked into when somebody asks.

The supervisor gets records in batches of many lines; all that is done for one is to count them.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

MOST = 1000
FILTERS = ("gateway", "key", "model", "rule", "upstream", "target", "status", "end", "fault", "error")


class Recent:
    """`keep` takes whole lines, oldest first."""

    __slots__ = ("_batches", "_count")

    def __init__(self) -> None:
        self._batches: deque[tuple[bytes, int]] = deque()
        self._count = 0

    def __repr__(self) -> str:
        return f"<Recent {self._count} records>"

    def keep(self, lines: bytes) -> None:
        count = lines.count(b"\n")
        self._batches.append((lines, count))
        self._count += count
        while self._count - self._batches[0][1] >= MOST:
            self._count -= self._batches.popleft()[1]

    def __iter__(self) -> Iterator[bytes]:
        """The last `MOST` lines, newest first."""
        left = MOST
        for batch, _ in reversed(self._batches):
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
