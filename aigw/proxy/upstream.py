"""One socket to a target: writes a request, finds the response's head, and knows where its body ends.

Before a read is passed on, framing has said whether the response is complete with it: a surplus byte, a bad chunk or
an early close is never relayed as a complete answer. Bodies are spliced as the bytes that came, but for two: chunks are
taken off for an HTTP/1.0 client, which knows none, and a stream that was asked for more than its client asked for is
patched (`patched.py`).
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from aigw.config.retry import CONTEXT
from aigw.errors import (
    INTERNAL,
    UPSTREAM_CREDENTIAL_REFUSED,
    UPSTREAM_CUT,
    UPSTREAM_MALFORMED,
    UPSTREAM_RESET,
    Failure,
    Refused,
)
from aigw.providers import DIALECTS, is_too_long, refuses_credential
from aigw.providers.tap import BODY, META, USAGE
from aigw.proxy import taps
from aigw.proxy.bulk import SmallReads
from aigw.proxy.commit import Held
from aigw.proxy.connection import UNIX, Connection
from aigw.proxy.patched import Chunks, PatchedStream
from aigw.proxy.states import Body
from aigw.wire.chunked import ChunkDecoder
from aigw.wire.framing import (
    CHUNKED_BODY,
    CLOSE_BODY,
    LENGTH_BODY,
    NO_BODY,
    BadFraming,
    ChunkObserver,
    PayloadObserver,
    body_of,
)
from aigw.wire.head import ResponseHead

if TYPE_CHECKING:
    from aigw.config.upstreams import Target
    from aigw.proxy.exchange import Exchange
    from aigw.proxy.pool import Pool
    from aigw.proxy.trying import Trying

UPLOADED: Final = Body.UPLOADED

# No body is awaited, but a head.
HEAD: Final = -1
# Bytes of a 400 or 403 that are held until it is known what it refuses; errors are hundreds of bytes.
MAX_HELD: Final = 64 * 1024
# Informational responses before the final one; a real upstream sends one or two.
MAX_INFORMATIONAL: Final = 16


class UpstreamConnection(Connection):
    """From dial to close; serves one exchange after the other."""

    __slots__ = (
        "_beginning",
        "_buffer",
        "_chunks",
        "_follower",
        "_framing",
        "_held",
        "_informational",
        "_missing",
        "_observer",
        "_patch",
        "_reads_small",
        "_response",
        "_scanned",
        "_shower",
        "_spliced",
        "_unsent",
        "exchange",
        "idle_until",
        "is_open",
        "is_reused",
        "keep_alive",
        "pool",
        "read_paused",
        "served",
        "target",
    )

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool.gateway.outbox)
        # wiring
        self.pool = pool
        self.target: Target = pool.target
        # per connection
        self.served = 0  # exchanges that ended well on it
        self.is_open = True  # and counted by the pool
        self.is_reused = False  # whether it may have been closed by the other side before it was handed out
        self.idle_until = 0.0
        self.keep_alive = -1  # seconds the upstream said it keeps an idle connection; -1 where it said nothing
        self._unsent = 0  # at the last look of the sweep
        self.read_paused = False
        self._reads_small = False
        self._observer: ChunkObserver | None = None  # made for the first chunked answer
        self._shower: PayloadObserver | None = None  # for the first one whose payload is looked at
        # per exchange
        self.exchange: Exchange | None = None
        self._framing = HEAD
        self._missing = 0  # bytes of a body with a length that have not come
        self._held: bytes | None = None  # of a 400 or 403, until it is known what it refuses
        self._beginning: Held | None = None  # of a stream, until it has content
        self._buffer = b""  # of a head that has not ended
        self._scanned = 0
        self._informational = 0
        self._response: ResponseHead | None = None
        self._chunks: ChunkObserver | None = None  # of the two observers, the one that follows this body
        self._follower: PayloadObserver | None = None  # the same, where its payload is looked at
        self._spliced: ChunkObserver | None = None  # the same, while the body goes on as it comes
        self._patch: PatchedStream | Chunks | None = None

    def __repr__(self) -> str:
        return f"<UpstreamConnection {self.target!r} served {self.served} {'busy' if self.exchange else 'idle'}>"

    # the request --------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        self.read_paused = True
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.read_paused = False
        self.transport.resume_reading()

    def read_small(self) -> None:
        """The answer to come shall be read in small pieces: see `bulk`."""
        self._reads_small = True
        self._change_protocol(SmallReads(self))

    def _change_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Reading goes on by the way of the protocol that it began with, so it begins anew."""
        self.transport.pause_reading()
        self.transport.set_protocol(protocol)
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent = self.transport.get_write_buffer_size()
        self.pool.gateway.slow.add(self)
        if self.exchange is not None:
            self.exchange.upstream_paused()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.pool.gateway.slow.discard(self)
        if self.exchange is not None:
            self.exchange.upstream_resumed()

    def look(self, now: float) -> None:
        """An upstream that takes bytes, however slowly, makes progress. Called by the sweep while writing is paused."""
        size = self.transport.get_write_buffer_size()
        if size < self._unsent and self.exchange is not None:
            self.exchange.upstream_takes(now)
        self._unsent = size

    # the response -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.abort()  # nobody asked: whatever it is, it answers nothing
            return
        try:
            observer = self._spliced
            if observer is not None:  # one event of a stream after the other comes this way
                done = observer.feed(data)
                follower = self._follower
                if follower is not None and follower.payload:
                    taps.show(exchange, follower)
                exchange.relay(data, whole=done)
                if done and self.exchange is exchange:
                    self._complete(exchange, monotonic())
            elif self._framing == HEAD:
                self._head(exchange, data)
            else:
                self._body(exchange, data)
        except BadFraming as error:
            self._spliced = None  # it has followed what the client does not get
            self._broken(exchange, Failure(UPSTREAM_MALFORMED, f"the upstream's answer is malformed: {error}"))
        except Refused as refused:
            self._broken(exchange, refused.failure)
        except Exception as error:
            exchange.gateway.report(error, self)
            self._broken(exchange, Failure(INTERNAL, "the gateway failed on the upstream's answer; its log says how"))

    def _head(self, exchange: Exchange, data: bytes) -> None:
        scanned = self._scanned
        if scanned:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n", scanned)
        if end < 0:
            self._incomplete(data, exchange.snapshot.head_bounds.head)
            return
        if scanned:
            self._buffer = b""
            self._scanned = 0
        block = data[:end]
        parser = exchange.gateway.responses
        response = parser.heads.get(block) or parser.parse(block, exchange.snapshot.head_bounds)
        body = data[end + 4 :]
        if response.is_plain and not exchange.admission.is_head and not exchange.is_special:
            missing = response.length - len(body)
            if missing:
                if missing < 0:
                    raise BadFraming("bytes after the end of its body")
                self._response = response
                self._framing = LENGTH_BODY
                self._missing = missing
            now = monotonic()
            candidate = exchange.candidate
            if candidate is not None and candidate.watched:
                exchange.attempt_ended(candidate, response, None, now)
            # No tap is needed where all is there and no name of a report in it (0.1 us instead of 1.2).
            way = response.way
            if (
                way
                and (
                    way != BODY
                    or missing
                    or body.find(USAGE) >= 0
                    or (not self.target.upstream.private and body.find(META) >= 0)
                )
                and taps.tap(exchange, response)
            ):
                taps.feed(exchange, body, None, now)
            exchange.respond(response, body, LENGTH_BODY, now, whole=not missing)
            if not missing and self.exchange is exchange:
                self._give_back(exchange, response, now)
        else:
            self._special(exchange, response, body)

    def _special(self, exchange: Exchange, response: ResponseHead, body: bytes) -> None:
        """A head that is not followed by a body of known length, or that needs looking at."""
        status = response.status
        trying = exchange.trying
        if status < 200:
            self._inform(exchange, response)
            if body:
                self._head(exchange, body)  # at most MAX_INFORMATIONAL deep
            return
        if status == 401 and self.target.has_credential:
            self._credential_refused(exchange)
            return
        candidate = exchange.candidate
        if candidate is not None and candidate.watched:
            exchange.attempt_ended(candidate, response, None, monotonic())
        self._response = response
        framing = self._framing = body_of(response, to_head=exchange.admission.is_head)
        payload = body
        tapped = framing != NO_BODY and taps.tap(exchange, response)
        knows_chunks = bool(exchange.admission.head.line.minor)
        if framing == LENGTH_BODY:
            missing = self._missing = response.length - len(body)
            if missing < 0:
                raise BadFraming("bytes after the end of its body")
            done = not missing
        elif framing == NO_BODY:
            if body:
                raise BadFraming("bytes after an answer that has no body")
            done = True
            if response.chunked and knows_chunks:
                framing = CHUNKED_BODY  # for the client: what GET would have been answered with
        elif framing == CHUNKED_BODY:
            chunks = self._begin_chunks(shows=tapped or trying is not None or not knows_chunks)
            done = bool(body) and chunks.feed(body)
            payload = b"" if self._follower is None else self._follower.taken()
            if not knows_chunks:
                framing = CLOSE_BODY  # for the client
                body = payload
        else:
            done = False
            if knows_chunks and exchange.client.address == UNIX and not self._must_look(status, trying):
                # a unix socket knows no RST: its break is told from its end by the last chunk alone
                self._patch = Chunks()
                framing = CHUNKED_BODY
                body = self._patch.feed(body, ended=False)
        if tapped and exchange.patched and taps.is_stream(response):
            self._patch = PatchedStream(chunked=knows_chunks)
            framing = CHUNKED_BODY if knows_chunks else CLOSE_BODY
            body = self._patch.feed(payload, ended=done)
        if self._must_look(status, trying):
            self._hold(exchange, body, done)
        elif trying is not None and self._is_stream(exchange, response):
            self._beginning = Held(DIALECTS[exchange.admission.dialect], framing)
            self._begin_stream(exchange, body, payload, done)
        elif trying is None or not self._declined(exchange, "", done):
            self._respond(exchange, body, payload, framing, done)

    def _respond(self, exchange: Exchange, body: bytes, payload: bytes, framing: int, done: bool) -> None:
        """Relay the head with what came behind it; `payload` is what the tap is shown of that."""
        response = self._response
        assert response is not None
        now = monotonic()
        if exchange.trying is not None:
            response = exchange.trying.answered(response)
        spliced = self._framing == CHUNKED_BODY and framing == CHUNKED_BODY and self._patch is None
        if exchange.tap is not None:
            taps.feed(exchange, payload, self._follower if spliced else None, now)
        exchange.respond(response, body, framing, now, whole=done)
        if done and self.exchange is exchange:
            self._complete(exchange, now)
        elif spliced and self.exchange is exchange:
            self._spliced = self._chunks

    def _is_stream(self, exchange: Exchange, response: ResponseHead) -> bool:
        """Whether the answer is a stream whose content can be told from its beginning."""
        is_inference = exchange.admission.found.endpoint.kind == "inference" and self.target.upstream.private
        return is_inference and self._framing != NO_BODY and taps.is_stream(response)

    def _begin_stream(self, exchange: Exchange, data: bytes, payload: bytes, done: bool) -> None:
        """More of a stream that had no content yet: `data` for the client, the same as `payload` for who looks."""
        beginning = self._beginning
        assert beginning is not None
        exchange.holds(monotonic())
        taps.feed(exchange, payload)
        verdict = beginning.feed(data, payload, ended=done)
        if verdict is False:
            return
        self._beginning = None
        if verdict is True:
            done = done and self._framing != CLOSE_BODY  # whose end is that of the connection
            self._respond(exchange, beginning.taken(), b"", beginning.framing, done)
        else:
            self._broken(exchange, verdict)

    def _declined(self, exchange: Exchange, cause: str, done: bool) -> bool:
        """Whether the answer is followed by another attempt, and so not relayed. `done`: its body is complete, so that
        the connection can be used again."""
        trying, response = exchange.trying, self._response
        if trying is None or response is None:
            return False
        now = monotonic()
        following = trying.next(cause, response.status, now, response)
        if following is None:
            return False
        exchange.upstream = None
        self._held = None
        self._framing = HEAD
        if done:
            self._give_back(exchange, response, now, completes=False)
        else:
            self.abort()
        trying.go(following, str(response.status), cause, response.status, now)
        return True

    def _credential_refused(self, exchange: Exchange) -> None:
        """The answer may quote the credential, which is ours and not the client's business."""
        message = "the upstream refused the gateway's own credential; the operator has to check its api_key"
        self._broken(exchange, Failure(UPSTREAM_CREDENTIAL_REFUSED, message))

    def _must_look(self, status: int, trying: Trying | None) -> bool:
        """Whether the body says whose fault it is, or which other model might do."""
        if status == 403:
            return self.target.has_credential
        return status == 400 and trying is not None and trying.reads_errors

    def _hold(self, exchange: Exchange, data: bytes, done: bool) -> None:
        """A 403 may refuse the client's request or our credential, and a 400 ask for a model that takes more: the body
        says which, so it is read before it is passed on. What is larger than an error is none of these."""
        held = self._held = (self._held or b"") + data
        if not done and len(held) <= MAX_HELD:
            return
        self._held = None
        response = self._response
        assert response is not None
        framing = self._framing
        payload = held
        if framing == CHUNKED_BODY:
            if not exchange.admission.head.line.minor:
                framing = CLOSE_BODY
            else:  # what is followed is still in its chunks; it was said already that they are good ones
                payload = b"".join(ChunkDecoder().feed(held))
        coding = response.content_encoding
        if response.status == 403 and refuses_credential(payload, coding):
            self._credential_refused(exchange)
            return
        dialect = DIALECTS.get(exchange.admission.dialect)
        too_long = response.status == 400 and dialect is not None and is_too_long(payload, coding, dialect)
        if not self._declined(exchange, CONTEXT if too_long else "", done and self._framing != CLOSE_BODY):
            self._respond(exchange, held, payload, framing, done and self._framing != CLOSE_BODY)

    def _incomplete(self, data: bytes, bound: int) -> None:
        """Keep a head that has not ended; refuse it as soon as it cannot become a good one."""
        if len(data) > bound:
            raise BadFraming("its head is larger than bounds.head")
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadFraming("it does not begin with an HTTP/1.0 or HTTP/1.1 status line")
        self._buffer = data
        self._scanned = max(len(data) - 3, 1)  # 0 is: nothing in the buffer

    def _begin_chunks(self, *, shows: bool) -> ChunkObserver:
        chunks: ChunkObserver
        if shows:
            chunks = self._shower = self._follower = self._shower or PayloadObserver()
        else:
            chunks = self._observer = self._observer or ChunkObserver()
            self._follower = None
        self._chunks = chunks
        chunks.begin()
        return chunks

    def _body(self, exchange: Exchange, data: bytes) -> None:
        framing = self._framing
        payload = data
        if framing == LENGTH_BODY:
            missing = self._missing - len(data)
            if missing < 0:
                raise BadFraming("bytes after the end of its body")
            self._missing = missing
            done = not missing
        elif framing == CHUNKED_BODY:
            assert self._chunks is not None
            done = self._chunks.feed(data)
            if self._follower is not None:
                payload = self._follower.taken()
            if not exchange.admission.head.line.minor:
                data = payload
        elif framing == CLOSE_BODY:
            done = False
        else:
            raise BadFraming("bytes after an answer that has no body")
        if self._held is not None:
            self._hold(exchange, data, done)
            return
        if self._patch is not None:
            data = self._patch.feed(payload, ended=done)
        if self._beginning is not None:
            self._begin_stream(exchange, data, payload, done)
            return
        if exchange.tap is not None:
            taps.feed(exchange, payload)
        exchange.relay(data, whole=done)
        if done and self.exchange is exchange:
            self._complete(exchange, monotonic())

    def _inform(self, exchange: Exchange, response: ResponseHead) -> None:
        """A 1xx: passed on to a client that can read it (RFC 9110 section 15.2). 100 answers an `expect` that we do
        not forward, and 101 a switch of protocols that was not asked for."""
        self._informational += 1
        if response.status == 101 or self._informational > MAX_INFORMATIONAL:
            raise BadFraming("an informational response that was not asked for")
        if response.status != 100:
            exchange.inform(response)

    def _complete(self, exchange: Exchange, now: float) -> None:
        """The response is whole, whose body did not come with its head."""
        response = self._response
        assert response is not None
        self._framing = HEAD
        self._spliced = None
        self._patch = None
        self._give_back(exchange, response, now)

    def _give_back(self, exchange: Exchange, response: ResponseHead, now: float, *, completes: bool = True) -> None:
        """Give the connection back before the client's next request wants one. The answer completes the exchange, or
        is followed by another attempt."""
        if self.read_paused:  # for a client that has all it will get from here
            self.resume_reading()
        if self._reads_small:
            self._reads_small = False
            self._change_protocol(self)
        self.exchange = None
        self._informational = 0
        self.served += 1
        # Reasons not to use the connection again: it was said to close, or what was sent on it was not taken.
        if response.close or exchange.body is not UPLOADED or self.write_paused or not self.is_open:
            self.abort()
        else:
            self.keep_alive = response.keep_alive
            self.pool.release(self, now)
        if completes:
            exchange.complete(now)

    # endings ------------------------------------------------------------------------------------------------------

    def eof_received(self) -> None:
        """FIN: the end of a body that ends so, and a break of everything else. The transport closes itself."""
        exchange = self.exchange
        if exchange is None:
            self._leave()  # before the pool hands it out: `connection_lost` comes a turn later
        elif self._framing == CLOSE_BODY:
            if self._held is not None:
                self._hold(exchange, b"", True)
            elif self._beginning is not None:
                rest = b"" if self._patch is None else self._patch.feed(b"", ended=True)
                self._begin_stream(exchange, rest, b"", True)
            elif self._patch is not None:
                exchange.relay(self._patch.feed(b"", ended=True), whole=True)
            if self.exchange is exchange:
                self.exchange = None
                self.abort()
                exchange.complete(monotonic())

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        exchange = self.exchange
        if exchange is not None:
            self._broken(exchange, self._loss())

    def between_events(self) -> bool:
        """Whether what the client has of a stream ends with an event, and, in chunks, with one of those."""
        if self._patch is not None:
            return self._patch.is_between_events
        return self._spliced is not None and self._spliced.between_events()

    def _loss(self) -> Failure:
        if self._framing != HEAD:
            return Failure(UPSTREAM_CUT, "the upstream broke off in the middle of its answer")
        if self._buffer:
            return Failure(UPSTREAM_MALFORMED, "the upstream broke off in the middle of its response head")
        return Failure(UPSTREAM_RESET, "the upstream closed the connection without an answer")

    def _broken(self, exchange: Exchange, failure: Failure) -> None:
        unseen = failure.kind is UPSTREAM_RESET and self.is_reused and not self._informational
        self.exchange = None
        self._held = None
        self._beginning = None
        self._buffer = b""
        self._scanned = 0
        self.abort()
        exchange.upstream_lost(failure, unseen=unseen)

    def abort(self) -> None:
        """Close at once, whatever is under way: what the upstream still computes is wanted by nobody."""
        self.exchange = None
        self._leave()
        self.flush()
        self.transport.abort()

    def _leave(self) -> None:
        """Tell the pool, once."""
        if self.is_open:
            self.is_open = False
            self.pool.gateway.slow.discard(self)
            self.pool.lost(self)
