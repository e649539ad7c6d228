"""One exchange: a request from its head to its record, and everything that was decided about it.

The order of things: the head is admitted (gateway, rule, key), the body is collected or passed on, the model decides
the upstream, a connection is acquired, the response is relayed, the record is written. Each step calls the next
directly; what must wait is called back by the client's socket, the pool or the upstream's socket.

Every exchange ends exactly once, in `answer`, `complete`, `fail`, `client_lost` or `expired`, and `finish` writes its
one record. The plain path (a whole body, one target, an idle connection, a response of known length) runs through
`begin`, `read`, `connected`, `respond` and `complete` without anything else being called back.
"""

from __future__ import annotations

from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from aigw.admit import (
    PROBES,
    affinity,
    fitted,
    keeps_state,
    members_of,
    model_of_form,
    model_of_json,
    too_large,
    touches_state,
)
from aigw.config.snapshot import Resolved
from aigw.errors import REQUEST_TIMEOUT, Failure
from aigw.forward import forwarded, request_message, request_prefix, response_prefix, without_length
from aigw.ledger import describe
from aigw.policies.allowance import without_limits
from aigw.policies.estimate import NOTHING, Estimate
from aigw.policies.limits import Taken
from aigw.proxy import answers, taps
from aigw.proxy.admission import Found
from aigw.proxy.bulk import MOST_SLOW, PIECE
from aigw.proxy.choosing import decide, resolve
from aigw.proxy.ending import finish, is_unused, settle_whole
from aigw.proxy.health import LATER
from aigw.proxy.states import EXPIRED, Body, Deadline, State
from aigw.proxy.trying import Trying
from aigw.proxy.upload import Upload
from aigw.route import down
from aigw.shared import IN_FLIGHT
from aigw.tokens import NO_TOKENS, Tokens
from aigw.wire.fields import retry_after
from aigw.wire.framing import CHUNKED_BODY, CLOSE_BODY
from aigw.wire.head import ResponseHead
from aigw.wire.reply import answer as framed

if TYPE_CHECKING:
    from aigw.config.limits import Limit
    from aigw.config.upstreams import Candidate
    from aigw.gateway import Gateway
    from aigw.providers.first import FirstContent
    from aigw.providers.tap import Tap
    from aigw.proxy.client import ClientConnection
    from aigw.proxy.pool import Pool
    from aigw.proxy.upstream import UpstreamConnection

ACQUIRING: Final = State.ACQUIRING
SENDING: Final = State.SENDING
WAITING: Final = State.WAITING
RELAYING: Final = State.RELAYING
REPLYING: Final = State.REPLYING
AWAITING_HEAD: Final = Deadline.FIRST_BYTE
AWAITING_MORE: Final = Deadline.IDLE
COLLECTING: Final = Body.COLLECTING
UPLOADED: Final = Body.UPLOADED

# What ends a head whose last line is without its CRLF.
END: Final = b"\r\n\r\n"
# The status in the log of a client that left before an answer began; never sent (nginx's 499).
CLIENT_GONE: Final = 499
# A body kept for the one replay that needs no configuration; beyond it a dead connection is answered with 502.
MAX_REPLAY: Final = 1024 * 1024
# A reused connection that dies this soon after the write was closed by the other side before it saw the request.
REPLAY_WITHIN: Final = 2.0
# Seconds past `timeouts.connect` after which a dial is taken for lost.
CONNECT_GRACE: Final = 1.0
# Methods that may be sent twice (RFC 9110 section 9.2.2).
IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Exchange:
    """What one request is, and what became of it so far. The record of the access log is read off these attributes."""

    __slots__ = (
        "acquiring_at",
        "admission",
        "body",
        "bytes_in",
        "bytes_out",
        "candidate",
        "client",
        "ended",
        "first",
        "first_at",
        "gateway",
        "head_at",
        "is_special",
        "model",
        "more",
        "overhead",
        "patched",
        "replayable",
        "replayed",
        "request_id",
        "response",
        "sent_at",
        "snapshot",
        "started",
        "status",
        "taken",
        "tap",
        "tokens",
        "trying",
        "upload",
        "upstream",
        "waits_in",
        "whole",
    )

    def __init__(self, client: ClientConnection, gateway: Gateway, found: Found, now: float) -> None:
        # wiring
        self.client = client
        self.gateway = gateway
        self.snapshot = gateway.snapshot
        self.upstream: UpstreamConnection | None = None
        self.waits_in: Pool | None = None  # while no connection is there
        # what was asked, and decided
        admission, _, more, request_id = found
        self.admission = admission
        self.more = more  # lines of this request's head that the admission does not have, each with CRLF
        self.request_id: bytes = request_id or admission.head.request_id or gateway.new_request_id()
        self.model: str | None = None
        self.candidate: Candidate | None = None
        self.taken: Taken | None = None  # of the limits that apply
        self.trying: Trying | None = None  # where there may be more than one attempt
        # the request's body
        self.body = UPLOADED
        self.whole = b""  # all of it, patched, where it was collected; kept as long as it may be sent again
        self.upload: Upload | None = None  # where it was not all there at once
        self.replayable = True
        self.replayed = False  # then only a connection that was not used before will do
        self.patched = False  # it asks for the usage in a stream, which the client did not
        self.is_special = False  # the answer has to be looked at: it is patched, or may be followed by another attempt
        # what was answered
        self.status = 0  # sent to the client; 0 while nothing was
        self.response: ResponseHead | None = None
        self.tap: Tap | None = None  # reads what the answer says it used
        self.tokens: Tokens | None = None  # what it said, once the tap was asked
        self.first: FirstContent | None = None  # of a stream, until it came
        self.bytes_in = 0
        self.bytes_out = 0
        self.ended = False
        gateway.row[IN_FLIGHT] += 1
        # when, in monotonic seconds; 0.0 is never
        self.started = now
        self.acquiring_at = 0.0
        self.sent_at = 0.0
        self.head_at = 0.0
        self.first_at = 0.0  # of a stream: its first content
        self.overhead = b""  # milliseconds until the upstream was turned to, once they were said

    @property
    def address(self) -> str:
        """The client's: the socket's, or what a proxy says that is trusted."""
        client = self.client
        if not client.is_proxy:
            return client.address
        return self.gateway.proxies.client(client.address, [*self.admission.head.kept, *self.more.split(b"\r\n")[:-1]])

    def __repr__(self) -> str:
        return f"<Exchange {self.admission.head.line!r} {self.client.state.value} {self.body.value}>"

    # the request --------------------------------------------------------------------------------------------------

    def begin(self, length: int | None, rest: bytes) -> None:
        """`rest` is what came behind the head, no more than the body's `length` where that is known."""
        admission = self.admission
        source = admission.source
        if length == len(rest):
            self.bytes_in = length
        else:
            self.body = COLLECTING
            self.upload = Upload(self, length)
            if source in ("path", "none") and self._keeps(length):
                source = "kept"
            if admission.total is not None:  # or what the model says, once it is known
                self.client.total = self.started + admission.total
        if admission.is_special:
            if self._answered():
                return
        elif admission.limits and not self._is_admitted():
            return
        if source == "body" and length is not None and length > self.snapshot.body_bound:
            self.reply(too_large(self.snapshot.body_bound))
        elif self.upload is not None:
            surplus = self.upload.begin(source, rest)
            if surplus:
                self.client.keep(surplus)
        elif source == "body":
            self.read(rest)
        elif source == "form":
            self._read_form(rest)
        elif source == "read":
            self.measure(rest)
        else:
            self.whole = rest
            self.replayable = not admission.keeps_state  # the body may ask for that, and is not read
            self.route(admission.found.endpoint.model)

    def _keeps(self, length: int | None) -> bool:
        """Whether a body that needs no reading is collected all the same, since it may be sent more than once. One that
        is too large for that is passed on as it comes."""
        if length is not None and length > self.snapshot.body_bound:
            return False
        admission = self.admission
        if admission.failure is not None:
            return False
        resolved = resolve(self, admission.found.endpoint.model)
        return isinstance(resolved, Resolved) and resolved.plan is not None and resolved.plan.sends_again

    def _answered(self) -> bool:
        """Whether it was answered without an upstream: a probe, a refusal, the list of models."""
        admission = self.admission
        failure = admission.failure
        if admission.head.line.path in PROBES and answers.probe(self):
            return True
        if failure is None and admission.limits and not self._is_admitted():
            return True
        if failure is None and admission.is_listing:
            failure = answers.models(self)
        if failure is not None:
            self.reply(failure)
        return self.ended

    def _is_admitted(self) -> bool:
        """Whether the limits of the head leave room; else it is answered."""
        taken = self.gateway.limits.admit(self, self.started)
        if isinstance(taken, Failure):
            self.reply(taken)
            return False
        self.taken = taken
        return True

    def read(self, whole: bytes) -> None:
        """The body is complete, and names the model as a member of its JSON."""
        read = model_of_json(whole)
        if isinstance(read, Failure):
            self.reply(read)
            return
        model, members = read
        candidate = decide(self, model, whole, members)
        if candidate is None:
            return
        if candidate.renamed or (candidate.injects and self.admission.found.endpoint.streams_usage):
            whole, self.patched = fitted(self.admission, whole, candidate, members)
            if self.patched:
                self.is_special = True
        self.whole = whole
        if self.admission.keeps_state and keeps_state(members):
            self.replayable = False
        self._acquire(candidate)

    def measure(self, whole: bytes) -> None:
        """The body is complete. It goes on as it is, whatever it is; its members say how much it may use."""
        self.whole = whole
        self.replayable = not self.admission.keeps_state
        candidate = decide(self, self.admission.found.endpoint.model, members=members_of(whole))
        if candidate is not None:
            self._acquire(candidate)

    def _read_form(self, whole: bytes) -> None:
        form = model_of_form(self.admission, whole)
        if isinstance(form, Failure):
            self.reply(form)
            return
        candidate = decide(self, form.model, whole)
        if candidate is None:
            return
        self.whole, _ = fitted(self.admission, whole, candidate)
        self._acquire(candidate)

    def kept(self, whole: bytes) -> None:
        """The body is complete that was collected to be sent more than once."""
        self.whole = whole
        self.replayable = not self.admission.keeps_state
        self.route(self.admission.found.endpoint.model)

    def route(self, model: str | None) -> None:
        """Where to, for a body that needs no reading (any more)."""
        candidate = decide(self, model)
        if candidate is None:
            return
        if self.upload is not None and candidate.renamed and candidate.sent is not None:
            self.upload.rename(candidate.sent)
        self._acquire(candidate)

    def affinity(self, on: str) -> bytes:
        return affinity(self.admission, self.more, self.address.encode(), on)

    def is_bound(self) -> bool:
        return touches_state(self.admission, self.whole)

    # the limits of upstreams and targets --------------------------------------------------------------------------

    def estimate(self) -> Estimate:
        """See `policies.attempts.Asker`."""
        taken = self.taken
        return NOTHING if taken is None or taken.estimate is None else taken.estimate

    def returns(self, limit: Limit) -> int:
        """See `policies.attempts.Asker`."""
        attempt = None if self.taken is None else self.taken.attempt
        return 0 if attempt is None else attempt.returns(limit)

    def take(self, candidate: Candidate) -> None:
        """What the attempt that is about to be made takes of its target, which has room for it."""
        taken = self.taken = self.taken or Taken()
        name = self.admission.found.gateway.name
        taken.attempt = self.gateway.attempts.take(candidate, self.estimate(), name, monotonic())
        taken.holds = True

    # the way to the upstream --------------------------------------------------------------------------------------

    def _acquire(self, candidate: Candidate) -> None:
        """A connection to the candidate's target: now, or `connected` or `fail` is called back."""
        now = self.acquiring_at = monotonic()
        pool: Pool = candidate.pool or self.gateway.pool(candidate)
        upstream = None if self.replayed else pool.idle_connection(now)
        if upstream is not None:
            self.connected(upstream, now)
            return
        if self.gateway.out_until(candidate.target) == inf:
            self._attempt_failed(down(candidate.target.upstream))
            return
        client = self.client
        client.state = ACQUIRING
        timeouts = candidate.target.upstream.timeouts
        self.waits_in = pool
        if pool.wait(self):
            # The dial has its own clock; this one only guards against a dial that never says how it ended.
            client.run(Deadline.CONNECT, now + timeouts.connect + CONNECT_GRACE)
        else:
            client.run(Deadline.QUEUE, now + timeouts.queue)

    def connected(self, upstream: UpstreamConnection, now: float) -> None:
        """The connection is ours: send the request, or what there is of it, in one write."""
        candidate = self.candidate
        admission = self.admission
        assert candidate is not None
        self.upstream = upstream
        self.waits_in = None
        self.sent_at = now
        if candidate.is_limited and self.taken is not None and self.taken.attempt is not None:
            self.taken.attempt.sent = True
        if admission.candidate is not candidate:
            admission.prefix = request_prefix(self.snapshot, admission.found, candidate, admission.head)
            admission.described = describe(admission, candidate, self.model)
            admission.candidate = candidate
        prefix = admission.prefix
        if self.patched:
            prefix = request_prefix(self.snapshot, admission.found, candidate, admission.head, patched=True)
        whole = self.whole
        length: int | None = len(whole)
        if self.upload is not None and not whole:
            self.replayable = False
            if self.trying is not None:
                self.trying.is_kept = False
            length = self.upload.length
            whole = self.upload.start()
        elif len(whole) > MAX_REPLAY and self.trying is None:
            self.whole = b""
            self.replayable = False
        more = self.more
        if more:
            more = forwarded(more, candidate.target)
        upstream.exchange = self
        if len(self.gateway.slow) > MOST_SLOW:
            upstream.read_small()
            self.client.transport.set_write_buffer_limits(PIECE // 2)
        upstream.write(request_message(prefix, self.request_id, more, admission.head.line.method, length, whole), now)
        client = self.client
        if self.body is not UPLOADED:
            if not upstream.write_paused:
                client.state = SENDING
                client.run(Deadline.CLIENT_READ, now + self.snapshot.timeouts.client_read)
        elif upstream.write_paused:
            self.uploaded(now)
        else:
            client.state = WAITING
            client.runs = AWAITING_HEAD
            client.deadline = now + candidate.first_byte
        if self.trying is not None:
            self.trying.sent(now)

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
        if self.trying is not None:
            self.trying.waits()

    def upstream_paused(self) -> None:
        """The upstream does not take the request as fast as it comes."""
        assert self.upstream is not None
        if self.upload is not None:
            self.upload.pause()
        if self.client.state is not RELAYING:
            self.client.state = SENDING
            self.client.run(Deadline.SEND, monotonic() + self.upstream.target.upstream.timeouts.send)

    def upstream_takes(self, now: float) -> None:
        """It is slow, but it makes progress."""
        assert self.upstream is not None
        if self.client.runs is Deadline.SEND:
            self.client.deadline = now + self.upstream.target.upstream.timeouts.send

    def upstream_resumed(self) -> None:
        now = monotonic()
        if self.upload is not None:
            self.upload.resume()
        if self.body is UPLOADED:
            self.uploaded(now)
        elif self.client.state is SENDING:
            self.client.run(Deadline.CLIENT_READ, now + self.snapshot.timeouts.client_read)

    # the way back -------------------------------------------------------------------------------------------------

    def respond(self, response: ResponseHead, body: bytes, framing: int, now: float, *, whole: bool) -> None:
        """Relay the final head, with what came of the body, which may be all; `framing` is how the client is told where
        it ends."""
        candidate = self.candidate
        client = self.client
        assert candidate is not None
        self.head_at = now
        self.response = response
        if framing == CLOSE_BODY or self.admission.head.close or self.body is not UPLOADED:
            client.close_wanted = True
            client.break_resets = framing == CLOSE_BODY
        if response.candidate is not candidate:
            response.prefix = response_prefix(response, candidate, says_aigw=self.snapshot.says_aigw)
            response.limitless = b""
            response.candidate = candidate
        said = self._timing() if self.snapshot.says_timing else b""
        prefix = response.prefix
        taken = self.taken
        if taken is not None and self.snapshot.says_limits:
            lines = self.gateway.limits.lines(taken, self.admission.dialect, now)
            if lines:
                said += lines
                prefix = response.limitless or self._limitless(response)
        if framing == CHUNKED_BODY:
            said += b"transfer-encoding: chunked\r\n"
            if response.length >= 0:  # it was patched, and is not so long any more
                prefix = without_length(prefix)
        if client.close_wanted:
            said += b"connection: close\r\n"
        self.status = response.status  # only now: from here on there is no other answer
        self.bytes_out = len(body)
        client.state = RELAYING
        if whole:
            settle_whole(self, now)
        client.write(b"".join((prefix, said, b"x-request-id: ", self.request_id, END, body)), now)
        if not client.write_paused:
            client.runs = AWAITING_MORE
            client.deadline = now + candidate.idle

    def _limitless(self, response: ResponseHead) -> bytes:
        """What it says of limits is the gateway's."""
        response.limitless = without_limits(response.prefix)
        return response.limitless

    def _timing(self) -> bytes:
        """A Server-Timing line (W3C Server Timing; durations in milliseconds). Waiting is said where there was any:
        each number costs 0.15 us."""
        sent_at = self.sent_at
        acquiring_at = self.acquiring_at
        waited = b""
        if sent_at != acquiring_at:
            upstream = self.upstream
            what = b"queue" if upstream is not None and upstream.served else b"connect"
            if self.trying is not None and self.trying.made:
                what = b"attempts"
            waited = b"%b;dur=%.1f, " % (what, (sent_at - acquiring_at) * 1e3)
        overhead = self.overhead = b"%.3f" % ((acquiring_at - self.started) * 1e3)
        return b"server-timing: %bfirst-byte;dur=%.1f, overhead;dur=%b\r\n" % (
            waited,
            (self.head_at - sent_at) * 1e3,
            overhead,
        )

    def inform(self, response: ResponseHead) -> None:
        """Pass an informational response on; an HTTP/1.0 client cannot read one (RFC 9110 section 15.2)."""
        if self.admission.head.line.minor and not self.status:
            line = b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason)
            self.client.write(line + b"".join(text + b"\r\n" for text in response.kept) + b"\r\n", monotonic())

    def holds(self, now: float) -> None:
        """More of an answer came that is not relayed yet."""
        candidate = self.candidate
        assert candidate is not None
        assert self.trying is not None
        self.head_at = self.head_at or now
        self.client.run(Deadline.IDLE, now + candidate.idle)
        self.trying.hurry()

    def relay(self, data: bytes, *, whole: bool = False) -> None:
        """More of the response's body, as it came; all of it is here where it is `whole`."""
        client = self.client
        self.bytes_out += len(data)
        now = monotonic()
        if whole:
            settle_whole(self, now)
        client.write(data, now)
        if not client.write_paused:
            candidate = self.candidate
            assert candidate is not None
            client.deadline = now + candidate.idle

    def client_paused(self) -> None:
        if self.upstream is not None:
            self.upstream.pause_reading()

    def client_resumed(self) -> None:
        upstream = self.upstream
        if upstream is None:
            self.complete(monotonic())  # the upstream was done before the client had taken it all
            return
        upstream.resume_reading()
        self.client.run(Deadline.IDLE, monotonic() + upstream.target.upstream.timeouts.idle)

    def complete(self, now: float) -> None:
        """The response ended as its head said; the upstream's connection is out of our hands."""
        self.upstream = None
        client = self.client
        if client.write_paused:
            # The client has not taken it all: `client_resumed` when it has, `client_slow` if it never does. It is used.
            taps.usage(self, whole=True)
            return
        finish(self, "ok", None, now)
        if self.body is UPLOADED:
            client.exchange_done(now)
        else:
            client.linger(now)

    # endings ------------------------------------------------------------------------------------------------------

    def reply(self, failure: Failure) -> None:
        """Our own answer, in the client's dialect. Only while nothing was relayed."""
        body, lines = answers.error(failure, self.admission.dialect, self.request_id)
        if self.trying is not None:
            lines += self.trying.lines(monotonic())
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
        if not whole or self.admission.head.close:
            client.close_wanted = True
        client.state = REPLYING
        finish(self, end, failure, now)  # first: who has its answer, and asks again, finds it counted
        client.write(
            framed(
                status,
                body,
                now=self.gateway.wall(now),
                lines=[b"x-request-id: " + self.request_id, *lines],
                close=client.close_wanted,
                head_only=self.admission.is_head,
            ),
            now,
        )
        if whole:
            client.exchange_done(now)
        else:
            client.linger(now)

    def fail(self, failure: Failure) -> None:
        """The exchange cannot go on: answer if nothing was relayed yet, else break visibly."""
        upstream = self.upstream
        self._let_go()
        if not self.status:
            self.reply(failure)
            return
        if upstream is not None and upstream.between_events():
            self._say(failure)
        end = failure.kind.end
        finish(self, end if end == "stalled" else "cut", failure, monotonic())
        self.client.cut()

    def _say(self, failure: Failure) -> None:
        """In a stream of a dialect, an event of its own says what broke it: the last thing before the break."""
        response = self.response
        admission = self.admission
        candidate = self.candidate
        assert response is not None
        assert candidate is not None
        if admission.head.line.minor and candidate.target.upstream.dialects and taps.is_stream(response):
            event = answers.error_event(failure, admission, self.request_id)
            self.relay(b"%x\r\n%b\r\n" % (len(event), event))

    def attempt_ended(
        self, candidate: Candidate, response: ResponseHead | None, failure: Failure | None, now: float
    ) -> None:
        """By a final response or a failure, whatever follows. For candidates that are watched."""
        gateway = self.gateway
        after: float | None = None
        status = 0
        if response is not None:
            status = response.status
            if status in LATER:
                after = retry_after(response.kept, gateway.wall(now))
        gateway.health.saw(candidate, status, failure, after, now)

    def dial_failed(self, failure: Failure) -> None:
        self.waits_in = None
        self._attempt_failed(failure)

    def _attempt_failed(self, failure: Failure) -> None:
        """An attempt ended without an answer that could be relayed: another follows, or the failure is the answer."""
        candidate = self.candidate
        if candidate is not None and candidate.watched:
            self.attempt_ended(candidate, None, failure, monotonic())
        trying = self.trying
        if trying is not None and not self.status:
            self._let_go()
            now = monotonic()
            kind = failure.kind
            following = trying.next(kind.cause, kind.status, now)
            if following is not None:
                used = taps.usage(self, whole=False)
                if is_unused(used, failure):
                    used = NO_TOKENS
                trying.go(following, kind.code, kind.cause, kind.status, now, used)
                return
        self.fail(failure)

    def attempt(self, candidate: Candidate, due: float) -> None:
        """Another attempt: at once, or when it is due (monotonic seconds; 0.0: at once)."""
        self.candidate = candidate
        if due:
            self.client.state = ACQUIRING
            self.client.run(Deadline.PAUSE, due)
            return
        began = self.acquiring_at
        self._acquire(candidate)
        self.acquiring_at = began  # what came since then was not the gateway's own time

    def upstream_lost(self, failure: Failure, *, unseen: bool) -> None:
        """The connection broke. `unseen`: it was a reused one, and not a byte of a response had arrived.

        The one replay that needs no configuration: such a connection was most likely closed before the request was
        seen, so the request goes out once more, on a fresh connection, if it may be sent twice at all.
        """
        candidate = self.candidate
        assert candidate is not None
        if unseen and self._may_replay():
            self.upstream = None
            self.replayed = True
            self.attempt(candidate, 0.0)
            return
        self._attempt_failed(failure)

    def _may_replay(self) -> bool:
        if self.replayed or not self.replayable or self.body is not UPLOADED:
            return False
        if monotonic() - self.sent_at > REPLAY_WITHIN:
            return False
        return self.admission.head.line.method in IDEMPOTENT or self.admission.found.endpoint.replay

    def client_lost(self) -> None:
        """The client hung up: nobody waits for the answer, so nobody shall pay for the rest of it."""
        self._let_go()
        if not self.ended:
            self.status = self.status or CLIENT_GONE
            finish(self, "client_gone", None, monotonic())

    def expired(self, deadline: Deadline, now: float) -> None:
        """What was awaited did not come in time."""
        if deadline is Deadline.CLIENT_WRITE:
            self._let_go()
            finish(self, "client_slow", None, now)
            self.client.reset()
            return
        candidate = self.candidate
        if deadline is Deadline.PAUSE:
            assert candidate is not None
            self.attempt(candidate, 0.0)
        elif deadline is Deadline.TOTAL or deadline is Deadline.CLIENT_READ:
            self.fail(EXPIRED[deadline])
        else:
            self._attempt_failed(EXPIRED[deadline])

    def _let_go(self) -> None:
        """Take our hands off the upstream: a request that is under way stops there."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort()
        if self.waits_in is not None:
            self.waits_in.cancel(self)
            self.waits_in = None
