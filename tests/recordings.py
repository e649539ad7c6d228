"""The recorded exchanges of `data/exchanges.jsonl`, decoded: what real providers were asked and what they answered.

`data/README.md` tells where they come from and how true to the wire each of them is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent / "data" / "exchanges.jsonl"


@dataclass(frozen=True, slots=True)
class Recording:
    """One exchange. Headers are (name in lower case, value), in their order; bodies are decoded (no gzip, no chunks).

    `usage` is what the recording reports, None where the answer reports none: `input_tokens`, `output_tokens`,
    `total_tokens`, `cached_input_tokens`, `cache_write_tokens`, `reasoning_tokens` (each may be None) and `raw`, the
    provider's own object (of streams: what its events add up to).
    `body_note` names what is not the original's bytes ("request reserialised; response reserialised", ...), or "".
    """

    number: int  # of its line in the file, from 0
    provider: str
    api: str
    url: str
    method: str
    request_headers: tuple[tuple[str, str], ...] = field(repr=False)
    request_body: bytes = field(repr=False)
    status: int
    response_headers: tuple[tuple[str, str], ...] = field(repr=False)
    response_body: bytes = field(repr=False)
    streaming: bool
    usage: Mapping[str, Any] | None = field(repr=False)
    features: tuple[str, ...]
    body_note: str = field(repr=False)

    def response_header(self, name: str) -> str:
        """The first value of the response's header `name` (in lower case), or ""."""
        return next((value for field_name, value in self.response_headers if field_name == name), "")

    @property
    def name(self) -> str:
        """Short and unique: for the ids of parametrised tests."""
        kind = "stream" if self.streaming else "plain"
        return f"{self.number}-{self.provider}-{self.api}-{kind}"


@cache
def load() -> tuple[Recording, ...]:
    with FILE.open(encoding="utf-8") as lines:
        return tuple(_recording(number, json.loads(line)) for number, line in enumerate(lines))


def _recording(number: int, line: dict[str, Any]) -> Recording:
    return Recording(
        number=number,
        provider=line["provider"],
        api=line["api"],
        url=line["url"],
        method=line["method"],
        request_headers=_headers(line["request_headers"]),
        request_body=base64.b64decode(line["request_body_b64"] or ""),
        status=line["status"],
        response_headers=_headers(line["response_headers"]),
        response_body=base64.b64decode(line["response_body_b64"] or ""),
        streaming=line["streaming"],
        usage=line["usage"],
        features=tuple(line["features"]),
        body_note=line["body_note"] or "",
    )


def _headers(fields: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in fields)
