"""What an exchange was and how it ended: its one line in the access log.

The record is read off the exchange once, at its end. What is unknown is absent; no prompt, no query (it may hold a
key), no secret is ever part of it, and JSON's escapes keep control bytes out of the line.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from aigw.errors import Failure

if TYPE_CHECKING:
    from aigw.config.snapshot import Candidate, Key, Match, Resolved, Snapshot
    from aigw.wire.head import RequestHead


class Finished(Protocol):
    """What the ledger reads of an exchange. Times are monotonic seconds; 0.0 is never."""

    request_id: bytes
    head: RequestHead
    snapshot: Snapshot
    match: Match | None
    key: Key | None
    model: str | None
    resolved: Resolved | None
    candidate: Candidate | None
    status: int
    bytes_in: int
    bytes_out: int
    upstream_request_id: bytes | None
    started: float
    acquiring_at: float
    sent_at: float
    head_at: float


def record(exchange: Finished, client: str, end: str, failure: Failure | None, now: float, wall: float) -> bytes:
    """One JSON line. `now` is monotonic, `wall` the epoch seconds of the same moment.

    Fields: design of the access log, "Observability". `time` is when the request's head was complete.
    """
    started = exchange.started
    line = exchange.head.line
    fields: dict[str, Any] = {
        "time": timestamp(wall - (now - started)),
        "request_id": exchange.request_id.decode("latin-1"),
        "client": client,
    }
    match = exchange.match
    if match is not None:
        fields["gateway"] = match.gateway.name
        fields["rule"] = match.rule.name
    fields["method"] = line.method
    fields["path"] = line.path.decode("latin-1")
    if exchange.key is not None:
        fields["key"] = exchange.key.name
    if exchange.model is not None:
        fields["model"] = exchange.model
    candidate = exchange.candidate
    if candidate is not None:
        if candidate.sent is not None:
            fields["model_used"] = candidate.sent
        fields["upstream"] = candidate.target.upstream.name
        fields["target"] = candidate.target.name
    fields["status"] = exchange.status
    fields["end"] = end
    fields["fault"] = _fault(end, failure)
    if failure is not None:
        fields["error"] = failure.kind.code
    fields["bytes_in"] = exchange.bytes_in
    fields["bytes_out"] = exchange.bytes_out
    waited = 0.0
    if exchange.head_at:
        waited = exchange.head_at - exchange.acquiring_at
        fields["first_byte_ms"] = round((exchange.head_at - exchange.sent_at) * 1e3, 3)
        fields["overhead_ms"] = round((exchange.head_at - started - waited) * 1e3, 3)
    fields["duration_ms"] = round((now - started) * 1e3, 3)
    fields["generation"] = exchange.snapshot.generation
    if exchange.upstream_request_id is not None:
        fields["upstream_request_id"] = exchange.upstream_request_id.decode("latin-1")
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def _fault(end: str, failure: Failure | None) -> str:
    if failure is not None:
        return failure.kind.fault
    return "client" if end in ("client_gone", "client_slow") else "none"


_second = -1
_prefix = ""


def timestamp(wall: float) -> str:
    """RFC 3339 in UTC with milliseconds. Formatted once a second down to the second (strftime takes 1.5 us)."""
    global _second, _prefix
    second = int(wall)
    if second != _second:
        _second = second
        _prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_prefix}.{int((wall - second) * 1000):03d}Z"
