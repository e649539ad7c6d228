"""What an exchange was and how it ended: its one line in the access log.

The record is read off the exchange once, at its end. What is unknown is absent; no prompt, no query (it may hold a
key), no secret is ever part of it, and JSON's escapes keep control bytes out of the line. What is the same for every
exchange with one head and one candidate is formatted once and remembered by the admission (1.2 us of 2.4 a record).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from aigw.errors import Failure
from aigw.tokens import Tokens

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.config.snapshot import Snapshot
    from aigw.config.upstreams import Candidate
    from aigw.wire.head import ResponseHead

# DEL, and U+0080 to U+009F in UTF-8
_CONTROLS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]")
_OK: Final = b'"end":"ok","fault":"none"'
_CLIENT_ENDS: Final = frozenset({"client_gone", "client_slow"})


class Attempts(Protocol):
    """What the ledger reads of an exchange that may have had more than one attempt."""

    def told(self, outcome: str, now: float) -> list[dict[str, Any]]:
        """Each one's `target`, `outcome` and `ms`, the last of which ended so; none where there is nothing to tell."""
        ...


class Finished(Protocol):
    """What the ledger reads of an exchange. Times are monotonic seconds; 0.0 is never."""

    request_id: bytes
    snapshot: Snapshot
    admission: Admission
    model: str | None
    candidate: Candidate | None
    status: int
    bytes_in: int
    bytes_out: int
    response: ResponseHead | None
    started: float
    acquiring_at: float
    sent_at: float
    head_at: float
    first_at: float
    overhead: bytes  # as it was said to the client, b"" where it was not

    @property
    def trying(self) -> Attempts | None: ...


def record(
    exchange: Finished,
    client: bytes,
    end: str,
    failure: Failure | None,
    now: float,
    wall: float,
    tokens: Tokens | None,
    cost: int | None = None,
) -> bytes:
    """One JSON line with its newline. `now` is monotonic, `wall` the epoch seconds of its start, `cost` nano-dollars.

    `time` is when the request's head was complete; `overhead_ms` what the gateway itself took before it turned to
    the upstream; `first_token_ms`, of streams, the time from that head to the first content.
    """
    started = exchange.started
    admission = exchange.admission
    if admission.candidate is exchange.candidate and admission.described:
        described = admission.described
    else:
        described = describe(admission, exchange.candidate, exchange.model)
    more = b""
    if exchange.trying is not None:
        outcome = failure.kind.code if failure is not None else str(exchange.status) if end == "ok" else end
        attempts = exchange.trying.told(outcome, now)
        if attempts:
            more = b',"attempts":' + _json(attempts)
    if exchange.head_at:
        more += b',"overhead_ms":' + (exchange.overhead or b"%.3f" % ((exchange.acquiring_at - started) * 1e3))
        if exchange.first_at:
            more += b',"first_token_ms":%.3f' % ((exchange.first_at - started) * 1e3)
        response = exchange.response
        if response is not None and (response.request_id or response.own_id):
            upstream_id = response.request_id or response.own_id or b""
            more += b',"upstream_request_id":' + _json(upstream_id.decode("latin-1"))
        if tokens is not None:
            more += b',"tokens":' + orjson.dumps(tokens.known())
            if cost is not None:
                more += b',"cost":%d.%09d' % divmod(cost, 1_000_000_000)
    return (
        b'{"time":"%b","request_id":"%b","client":"%b",%b,"status":%d,%b,"bytes_in":%d,"bytes_out":%d,'
        b'"duration_ms":%.3f,"generation":%d%b}\n'
        % (
            timestamp(wall),
            exchange.request_id,
            client,
            described,
            exchange.status,
            _OK if end == "ok" else _ended(end, failure),
            exchange.bytes_in,
            exchange.bytes_out,
            (now - started) * 1e3,
            exchange.snapshot.generation,
            more,
        )
    )


def refusal(request_id: bytes, client: bytes, failure: Failure, size: int, generation: int, wall: float) -> bytes:
    """The record of what was no request: it has no method and no path that could be believed."""
    return (
        b'{"time":"%b","request_id":"%b","client":"%b","status":%d,%b,"bytes_in":0,"bytes_out":%d,"generation":%d}\n'
        % (timestamp(wall), request_id, client, failure.kind.status, _ended("refused", failure), size, generation)
    )


def _ended(end: str, failure: Failure | None) -> bytes:
    """How it ended, whose fault that was, and the error, if one was answered, with the limit that it is about."""
    if failure is None:
        return b'"end":"%b","fault":"%b"' % (end.encode(), b"client" if end in _CLIENT_ENDS else b"none")
    kind = failure.kind
    limit = b',"limit":' + _json(failure.limit) if failure.limit else b""
    return b'"end":"%b","fault":"%b","error":"%b"%b' % (end.encode(), kind.fault.encode(), kind.code.encode(), limit)


def describe(admission: Admission, candidate: Candidate | None, model: str | None) -> bytes:
    """Gateway, rule, method, path, key, models, upstream, target: members of the record, without braces."""
    fields: dict[str, Any] = {}
    match = admission.match
    if match is not None:
        fields["gateway"] = match.gateway.name
        fields["rule"] = match.rule.name
    line = admission.head.line
    fields["method"] = line.method
    fields["path"] = line.path.decode("latin-1")
    if admission.key is not None:
        fields["key"] = admission.key.name
    if model is not None:
        fields["model"] = model
    if candidate is not None:
        if candidate.sent is not None:
            fields["model_used"] = candidate.sent
        fields["upstream"] = candidate.target.upstream.name
        fields["target"] = candidate.target.name
    return _json(fields)[1:-1]


def _json(value: object) -> bytes:
    """JSON without a raw control byte: orjson escapes those below 32, terminals obey some of the others too."""
    text = orjson.dumps(value)
    if text.isascii() and b"\x7f" not in text:
        return text
    return _CONTROLS.sub(lambda found: b"\\u00%02x" % found[0][-1], text)


_millisecond = -1
_second = -1
_prefix = b""
_timestamp = b""


def timestamp(wall: float) -> bytes:
    """RFC 3339 in UTC with milliseconds. Formatted once a millisecond (0.3 us), and once a second down to the second
    (strftime takes 1.5 us): a busy worker writes several records in one."""
    global _millisecond, _second, _prefix, _timestamp
    millisecond = int(wall * 1000)
    if millisecond != _millisecond:
        _millisecond = millisecond
        second, rest = divmod(millisecond, 1000)
        if second != _second:
            _second = second
            _prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        _timestamp = b"%b.%03dZ" % (_prefix, rest)
    return _timestamp
