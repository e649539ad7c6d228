"""One exchange: a request from its head to its record, and everything that was decided about it.

The order of things: the head is admitted (gateway, rule, key), the body is collected or passed on, the model decides
the upstream, a connection is acquired, the response is relayed, the record is written. Each step calls the next
directly; what must wait is called back by the client's socket, the pool or the upstream's socket.

Exactly one of `reply`, `relayed` and `broken` ends an exchange, and `_finish` writes its one record.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from aigw.errors import (
    BAD_REQUEST,
    BODY_TOO_LARGE,
    CONNECT_TIMEOUT,
    DRAINING,
    FIRST_BYTE_TIMEOUT,
    IDLE_TIMEOUT,
    INVALID_JSON,
    QUEUE_TIMEOUT,
    REQUEST_TIMEOUT,
    SEND_TIMEOUT,
    TOTAL_TIMEOUT,
    UNSUPPORTED_ENCODING,
    Failure,
)
from aigw.forward import request_head, response_head
from aigw.policies import keys
from aigw.providers import dialect_of
from aigw.proxy import answers
from aigw.proxy.states import Body, Deadline, State
from aigw.proxy.upload import Upload
from aigw.route import choose, find, match
from aigw.wire.head import RequestHead, ResponseHead
from aigw.wire.jsonspan import DuplicateMember, InvalidJSON, Member, load, replace
from aigw.wire.multipart import BadForm, ModelPart
from aigw.wire.reply import answer as framed

if TYPE_CHECKING:
    from aigw.config.snapshot import Candidate, Key, Match, Resolved, Snapshot
    from aigw.proxy.client import ClientConnection
    from aigw.proxy.pool import Pool
    from aigw.proxy.upstream import UpstreamConnection

ACQUIRING: Final = State.ACQUIRING
SENDING: Final = State.SENDING
WAITING: Final = State.WAITING
RELAYING: Final = State.RELAYING
REPLYING: Final = State.REPLYING
COLLECTING: Final = Body.COLLECTING
UPLOADED: Final = Body.UPLOADED

# The status in the log of a client that left before an answer began; never sent (nginx's 499).
CLIENT_GONE: Final = 499
# A body kept for the one replay that needs no configuration; beyond it a dead connection is answered with 502.
MAX_REPLAY: Final = 1024 * 1024
# A reused connection that dies this soon after the write was closed by the other side before it saw the request.
REPLAY_WITHIN: Final = 2.0
# Seconds past `timeouts.connect` after which a dial is taken for lost.
CONNECT_GRACE: Final = 1.0
# Methods that may be sent twice (RFC 9110 section 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
MODEL: Final = Member("model")
EXPIRED: Final = {
    Deadline.CLIENT_READ: REQUEST_TIMEOUT,
    Deadline.QUEUE: QUEUE_TIMEOUT,
    Deadline.CONNECT: CONNECT_TIMEOUT,
    Deadline.SEND: SEND_TIMEOUT,
    Deadline.FIRST_BYTE: FIRST_BYTE_TIMEOUT,
    Deadline.IDLE: IDLE_TIMEOUT,
    Deadline.TOTAL: TOTAL_TIMEOUT,
}
TOO_SLOW: Final = {
    Deadline.CLIENT_READ: "the request body stopped arriving (timeouts.client_read); send it faster",
    Deadline.QUEUE: "no connection to the upstream became free in time (timeouts.queue); try again later",
    Deadline.CONNECT: "the upstream could not be connected to in time (timeouts.connect); try again later",
    Deadline.SEND: "the upstream stopped taking the request (timeouts.send)",
    Deadline.FIRST_BYTE: "the upstream did not begin to answer in time (timeouts.first_byte)",
    Deadline.IDLE: "the upstream stopped in the middle of its answer (timeouts.idle)",
    Deadline.TOTAL: "the answer was not complete in time (timeouts.total)",
}


class Exchange:
    """What one request is, and what became of it so far. The record of the access log is read off these attributes."""

    __slots__ = (
        "acquiring_at",
        "attempts",
        "body",
        "bytes_in",
        "bytes_out",
        "candidate",
        "client",
        "dialect",
        "ended",
        "gateway",
        "head",
        "head_at",
        "is_dialled",
        "key",
        "match",
        "model",
        "replayable",
        "request_id",
        "resolved",
        "sent_at",
        "snapshot",
        "started",
        "status",
        "upload",
        "upstream",
        "upstream_request_id",
        "waits_in",
        "whole",
    )

    def __init__(self, client: ClientConnection, snapshot: Snapshot, head: RequestHead, now: float) -> None:
        # wiring
        self.client = client
        self.gateway = client.gateway
        self.snapshot = snapshot
        self.upstream: UpstreamConnection | None = None
        self.waits_in: Pool | None = None  # while no connection is there
        # what was asked
        self.head = head
        self.request_id: bytes = head.request_id or self.gateway.new_request_id()
        self.dialect = ""
        self.model: str | None = None
        # what was decided
        self.match: Match | None = None
        self.key: Key | None = None
        self.resolved: Resolved | None = None
        self.candidate: Candidate | None = None
        self.attempts = 0
        self.is_dialled = False  # whether the connection in use was opened for this exchange
        # the request's body
        self.body = UPLOADED
        self.whole = b""  # all of it, patched, where it was collected; kept as long as it may be sent again
        self.upload: Upload | None = None  # where it was not all there at once
        self.replayable = True
        # what was answered
        self.status = 0  # sent to the client; 0 while nothing was
        self.upstream_request_id: bytes | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self.ended = False
        # when, in monotonic seconds; 0.0 is never
        self.started = now
        self.acquiring_at = 0.0
        self.sent_at = 0.0
        self.head_at = 0.0

    def __repr__(self) -> str:
        line = self.head.line
        return f"<Exchange {line.method} {line.path!r} {self.client.state.value} {self.body.value}>"

    # the request --------------------------------------------------------------------------------------------------

    def begin(self, rest: bytes) -> None:
        """`rest` is what came behind the head, no more than the body's length where that is known."""
        length = self.head.length
        if length is not None and len(rest) == length:
            self.whole = rest
            self.bytes_in = length
        else:
            self.body = COLLECTING
            self.upload = Upload(self, length)
        failure = self._admit_head()
        if failure is not None:
            self.reply(failure)
            return
        match = self.match
        if match is None or self.ended:
            return  # answered by the gateway itself
        source = self._source(match)
        if self.upload is not None:
            surplus = self.upload.begin(source, match.endpoint.model, rest)
            if surplus:
                self.client.keep(surplus)
        elif source == "body":
            self.collected(rest)
        elif source == "form":
            self._read_form(rest)
        else:
            self.route(match.endpoint.model)

    def _admit_head(self) -> Failure | None:
        """Everything that can be decided before the body: gateway, rule, key, encoding, declared size."""
        head = self.head
        if head.line.path in answers.PROBES and answers.probe(self):
            return None
        found = match(self.snapshot, head)
        if isinstance(found, Failure):
            self.dialect = dialect_of("", head)
            return found
        self.match = found
        endpoint = found.endpoint
        self.dialect = endpoint.dialect or dialect_of("", head)
        rule = found.rule
        if found.gateway.auth and not rule.public:
            key = keys.admit(found.gateway, head, self.gateway.wall(self.started))
            if isinstance(key, Failure):
                return key
            self.key = key
        if self.gateway.draining:
            return Failure(DRAINING, "the gateway is shutting down; try again")
        if rule.by_model:
            if endpoint.kind == "models":
                return answers.models(self, found)
            if head.content_encoding not in (b"", b"identity") and endpoint.source in ("body", "form"):
                return Failure(
                    UNSUPPORTED_ENCODING,
                    "the body is compressed, but the gateway has to read its `model`; send it without content-encoding",
                )
            if endpoint.source == "body" and head.length is not None and head.length > self.snapshot.body_bound:
                return self.too_large()
        return None

    def too_large(self) -> Failure:
        bound = self.snapshot.body_bound
        return Failure(
            BODY_TOO_LARGE, f"the request body has more than {bound} bytes (bounds.body); send a smaller one"
        )

    def _source(self, match: Match) -> str:
        """Where this request names its model: "body", "form", "path", or "none" where it is routed without one."""
        if not match.rule.by_model:
            return "none"
        source = match.endpoint.source
        if source in ("form", "body"):
            media = self.head.content_type[:19].lower()
            if source == "form" or match.endpoint.kind == "unknown":
                if media == b"multipart/form-data":
                    return "form"
                if source == "body" and media[:16] != b"application/json":
                    return "none"
            return "body"
        return source

    def collected(self, whole: bytes) -> None:
        """A body that is read for its model is complete."""
        self.whole = whole
        try:
            document = load(whole, MODEL)
        except DuplicateMember as error:
            self.reply(Failure(BAD_REQUEST, str(error), "model"))
            return
        except InvalidJSON as error:
            self.reply(Failure(INVALID_JSON, str(error)))
            return
        model = document.get("model")
        if model is not None and (type(model) is not str or not model):
            self.reply(Failure(BAD_REQUEST, "`model` must be a text that is not empty", "model"))
            return
        match = self.match
        assert match is not None
        if match.endpoint.stateless and (document.get("store") or document.get("background")):
            self.replayable = False
        candidate = self._decide(model)
        if candidate is None:
            return
        if candidate.renamed and candidate.sent is not None:
            span = MODEL.span(whole, document)
            assert span is not None
            self.whole = replace(whole, span, candidate.sent)
        self._acquire(candidate)

    def _read_form(self, whole: bytes) -> None:
        try:
            form = ModelPart(self.head.content_type)
            form.feed(whole)
        except BadForm as error:
            self.reply(Failure(BAD_REQUEST, f"bad multipart form: {error}"))
            return
        candidate = self._decide(form.model)
        if candidate is None:
            return
        if candidate.renamed and candidate.sent is not None and form.span is not None:
            self.whole = whole[: form.span[0]] + candidate.sent.encode() + whole[form.span[1] :]
        self._acquire(candidate)

    def route(self, model: str | None) -> None:
        """Where to, for a body that needs no reading (any more)."""
        candidate = self._decide(model)
        if candidate is None:
            return
        match = self.match
        assert match is not None
        upload = self.upload
        if upload is not None and candidate.renamed and candidate.sent is not None and match.endpoint.source != "path":
            upload.rename(candidate.sent)
        self._acquire(candidate)

    def _decide(self, model: str | None) -> Candidate | None:
        """The candidate, or None where the exchange was answered with the reason that there is none."""
        match = self.match
        assert match is not None
        self.model = model
        resolved = find(match, self.dialect, self.key, model)
        if isinstance(resolved, Failure):
            self.fail(resolved)
            return None
        self.resolved = resolved
        candidate = choose(resolved, self.gateway)
        if isinstance(candidate, Failure):
            self.fail(candidate)
            return None
        self.gateway.advance(resolved.upstream)
        self.candidate = candidate
        total = resolved.total or match.rule.total or self.snapshot.timeouts.total
        if total is not None:
            self.client.total = self.started + total
        return candidate

    # the way to the upstream --------------------------------------------------------------------------------------

    def _acquire(self, candidate: Candidate, *, fresh: bool = False) -> None:
        """A connection to the candidate's target: now, or `connected` and `fail` are called back."""
        now = monotonic()
        self.attempts += not fresh
        self.acquiring_at = now
        pool = self.gateway.pool(candidate.target)
        upstream = None if fresh else pool.idle_connection(now)
        if upstream is not None:
            self.connected(upstream, now)
            return
        self.waits_in = pool
        self.client.state = ACQUIRING
        timeouts = candidate.target.upstream.timeouts
        if pool.wait(self):
            # The dial has its own clock; this one only guards against a dial that never says how it ended.
            self.client.run(Deadline.CONNECT, now + timeouts.connect + CONNECT_GRACE)
        else:
            self.client.run(Deadline.QUEUE, now + timeouts.queue)

    def connected(self, upstream: UpstreamConnection, now: float) -> None:
        """The connection is ours: send the request, or what there is of it."""
        match, candidate = self.match, self.candidate
        assert match is not None
        assert candidate is not None
        self.upstream = upstream
        self.waits_in = None
        self.is_dialled = not upstream.served
        self.sent_at = now
        upload = self.upload
        whole = self.whole
        length = upload.length if upload is not None and not whole else len(whole)
        head = request_head(self.snapshot, match, candidate, self.head, self.request_id, length)
        if upload is None or whole:
            upstream.start(self, head + whole)
            if len(whole) > MAX_REPLAY:
                self.whole = b""
                self.replayable = False
        else:
            self.replayable = False
            upstream.start(self, head + upload.start())
        client = self.client
        if self.body is UPLOADED:
            self.uploaded(now)
        elif not upstream.write_paused:
            client.state = SENDING
            client.run(Deadline.CLIENT_READ, now + self.snapshot.timeouts.client_read)

    def uploaded(self, now: float) -> None:
        """The request is out of our hands, or will be as soon as the upstream takes it."""
        upstream = self.upstream
        assert upstream is not None
        client = self.client
        if client.state is RELAYING:
            return  # answered early
        timeouts = upstream.target.upstream.timeouts
        if upstream.write_paused:
            client.state = SENDING
            client.run(Deadline.SEND, now + timeouts.send)
        else:
            client.state = WAITING
            client.run(Deadline.FIRST_BYTE, now + timeouts.first_byte)

    def upstream_paused(self) -> None:
        """The upstream does not take the request as fast as it comes."""
        assert self.upstream is not None
        if self.upload is not None:
            self.upload.pause()
        if self.client.state is not RELAYING:
            self.client.state = SENDING
            self.client.run(Deadline.SEND, monotonic() + self.upstream.target.upstream.timeouts.send)

    def upstream_resumed(self) -> None:
        now = monotonic()
        if self.upload is not None:
            self.upload.resume()
        if self.body is UPLOADED:
            self.uploaded(now)
        elif self.client.state is SENDING:
            self.client.run(Deadline.CLIENT_READ, now + self.snapshot.timeouts.client_read)

    # the way back -------------------------------------------------------------------------------------------------

    def respond(self, response: ResponseHead, body: bytes, *, chunked: bool, close: bool, now: float) -> None:
        """Relay the final head, with what came of the body. `close`: the body ends with the connection."""
        candidate = self.candidate
        assert candidate is not None
        client = self.client
        self.head_at = now
        self.status = response.status
        self.upstream_request_id = response.request_id
        client.break_resets = close
        if close or self.head.close or self.body is not UPLOADED or self.gateway.draining:
            client.close_wanted = True
        head = response_head(
            self.snapshot,
            candidate,
            response,
            self.request_id,
            self.attempts,
            self._timing() if self.snapshot.says_timing else b"",
            chunked=chunked,
            close=client.close_wanted,
        )
        client.state = RELAYING
        client.transport.write(head + body)
        self.bytes_out += len(body)
        if not client.write_paused:
            client.run(Deadline.IDLE, now + candidate.target.upstream.timeouts.idle)

    def _timing(self) -> bytes:
        """A Server-Timing line (W3C Server Timing; durations in milliseconds)."""
        waited = self.sent_at - self.acquiring_at
        first_byte = self.head_at - self.sent_at
        return b"server-timing: %b;dur=%.1f, first-byte;dur=%.1f, overhead;dur=%.3f\r\n" % (
            b"connect" if self.is_dialled else b"queue",
            waited * 1e3,
            first_byte * 1e3,
            (self.head_at - self.started - waited - first_byte) * 1e3,
        )

    def inform(self, response: ResponseHead) -> None:
        """Pass an informational response on; an HTTP/1.0 client cannot read one (RFC 9110 section 15.2)."""
        if self.head.line.minor and not self.status:
            line = b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason)
            self.client.transport.write(line + b"".join(text + b"\r\n" for text in response.kept) + b"\r\n")

    def relay(self, data: bytes) -> None:
        """More of the response's body, as it came."""
        client = self.client
        self.bytes_out += len(data)
        client.transport.write(data)
        if not client.write_paused:
            candidate = self.candidate
            assert candidate is not None
            client.deadline = monotonic() + candidate.target.upstream.timeouts.idle

    def client_paused(self) -> None:
        if self.upstream is not None:
            self.upstream.transport.pause_reading()

    def client_resumed(self) -> None:
        upstream = self.upstream
        if upstream is None:
            self._done(monotonic())  # the upstream was done before the client had taken it all
            return
        upstream.transport.resume_reading()
        self.client.run(Deadline.IDLE, monotonic() + upstream.target.upstream.timeouts.idle)

    def relayed(self, now: float) -> None:
        """The response ended as its head said; the upstream's connection is out of our hands."""
        self.upstream = None
        if not self.client.write_paused:
            self._done(now)
        # else the client has not taken it all: it is done when it has, and client_slow if it never does

    def _done(self, now: float) -> None:
        client = self.client
        self._record("ok", None, now)
        if self.body is UPLOADED:
            client.exchange_done(now)
        else:
            client.linger(now)

    # endings ------------------------------------------------------------------------------------------------------

    def reply(self, failure: Failure) -> None:
        """Our own answer, in the client's dialect. Only while nothing was relayed."""
        body, lines = answers.error(failure, self.dialect, self.request_id)
        self.answer(failure.kind.status, body, lines, failure.kind.end, failure)

    def answer(
        self, status: int, body: bytes, lines: list[bytes], end: str = "ok", failure: Failure | None = None
    ) -> None:
        """An answer of the gateway's own; the connection goes on if nothing of the request is left to be read.

        `end` is what the record says; an empty one writes none.
        """
        client = self.client
        now = monotonic()
        self.status = status
        self.bytes_out = len(body)
        whole = self.body is UPLOADED and (failure is None or failure.kind is not REQUEST_TIMEOUT)
        if not whole or self.head.close or self.gateway.draining:
            client.close_wanted = True
        client.state = REPLYING
        client.transport.write(
            framed(
                status,
                body,
                now=self.gateway.wall(now),
                lines=[b"x-request-id: " + self.request_id, *lines],
                close=client.close_wanted,
                head_only=self.head.line.method == "HEAD",
            )
        )
        self._record(end, failure, now)
        if whole:
            client.exchange_done(now)
        else:
            client.linger(now)

    def fail(self, failure: Failure) -> None:
        """The exchange cannot go on: answer if nothing was relayed yet, else break visibly."""
        self._let_go()
        if not self.status:
            self.reply(failure)
            return
        self._record(failure.kind.end, failure, monotonic())
        self.client.cut()

    def dial_failed(self, failure: Failure) -> None:
        self.waits_in = None
        self.fail(failure)

    def upstream_lost(self, failure: Failure, *, unseen: bool) -> None:
        """The connection broke. `unseen`: it was a reused one, and not a byte of a response had arrived.

        The one replay that needs no configuration: such a connection was most likely closed before the request was
        seen, so the request goes out once more, on a fresh connection, if it may be sent twice at all.
        """
        self.upstream = None
        candidate = self.candidate
        assert candidate is not None
        if unseen and self._may_replay():
            self.replayable = False
            self._acquire(candidate, fresh=True)
            return
        self.fail(failure)

    def _may_replay(self) -> bool:
        match = self.match
        assert match is not None
        if not self.replayable or self.body is not UPLOADED:
            return False
        if monotonic() - self.sent_at > REPLAY_WITHIN:
            return False
        return self.head.line.method in IDEMPOTENT or match.endpoint.replay

    def client_lost(self) -> None:
        """The client hung up: nobody waits for the answer, so nobody shall pay for the rest of it."""
        self._let_go()
        if not self.ended:
            self.status = self.status or CLIENT_GONE
            self._record("client_gone", None, monotonic())

    def expired(self, deadline: Deadline, now: float) -> None:
        """What was awaited did not come in time."""
        if deadline is Deadline.CLIENT_WRITE:
            self._let_go()
            self._record("client_slow", None, now)
            self.client.reset()
            return
        self.fail(Failure(EXPIRED[deadline], TOO_SLOW[deadline]))

    def _let_go(self) -> None:
        """Take our hands off the upstream: a request that is under way stops there."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.waits_in is not None:
            self.waits_in.cancel(self)
            self.waits_in = None

    def _record(self, end: str, failure: Failure | None, now: float) -> None:
        self.ended = True
        gateway = self.gateway
        if self.upload is not None:
            gateway.collected -= self.upload.counted
            self.upload.resume()
        if end:
            gateway.finished(self, end, failure, now)
