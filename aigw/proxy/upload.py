"""A request body that was not there at once: collected until it can be routed, or passed on as it comes.

Most requests never have one of these: a body that came with its head is whole. `Upload` re-frames: what the client
framed by length goes on by length, what it chunked goes on in chunks of our own (RFC 9112 section 7.1), since a
client's framing bytes never reach an upstream. Memory is bounded in both modes: collected bodies by the config's
bounds, a waiting upload by pausing the client.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

from aigw.admit import too_large
from aigw.errors import BAD_REQUEST, TOO_MUCH_COLLECTED, Failure
from aigw.proxy.states import Body, Deadline
from aigw.wire.chunked import BadChunk, ChunkDecoder
from aigw.wire.fields import FORWARDED, line_name, request_field
from aigw.wire.framing import LengthDecoder
from aigw.wire.multipart import BadForm, ModelPart
from aigw.wire.reply import CONTINUE

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange

# Bytes of an upload kept while its connection is awaited; the client is paused beyond it.
MAX_PENDING: Final = 64 * 1024
# A read with more chunks than this (0.5 us each), or with more bytes of a form (0.1 us each), is the only one of its
# socket in a turn of the loop; libuv would go on with up to 32 reads of 256,000 bytes before anyone else has a turn.
MAX_CHUNKS: Final = 4096
MAX_FORM: Final = 64 * 1024
# Pieces of a body are joined up to this length: it costs a copy of half of it, and 5 % of memory where that is all.
JOINED: Final = 1024


class Upload:
    """The body of one exchange, from the first byte that was missing to the last."""

    __slots__ = ("_exchange", "_form", "_is_kept", "_parts", "_reader", "_size", "counted", "paused")

    def __init__(self, exchange: Exchange, length: int | None) -> None:
        self._exchange = exchange
        self._reader: LengthDecoder | ChunkDecoder = ChunkDecoder() if length is None else LengthDecoder(length)
        self._form: ModelPart | None = None
        self._is_kept = False  # collected only so that it can be sent again
        self._parts: list[bytes] = []  # collected so far, or waiting for the connection
        self._size = 0  # bytes in `_parts`
        self.counted = 0  # what this body holds of bounds.collected
        self.paused = False  # whether the client's socket is paused for it

    def begin(self, source: str, rest: bytes) -> bytes:
        """Start as the route wants it; `rest` came with the head. Returns what lies behind the body's end. `source` is
        the admission's, or "kept" for a body that is collected without being read."""
        exchange = self._exchange
        client = exchange.client
        client.run(Deadline.CLIENT_READ, monotonic() + exchange.snapshot.timeouts.client_read)
        if source == "form":
            try:
                self._form = ModelPart(exchange.admission.head.content_type)
            except BadForm as error:
                exchange.reply(Failure(BAD_REQUEST, str(error)))
                return b""
        elif source == "kept":
            self._is_kept = True
        elif source not in ("body", "read"):
            exchange.body = Body.UPLOADING
            exchange.route(exchange.admission.found.endpoint.model)
        if exchange.ended:
            return b""
        if exchange.admission.head.expect and not rest:
            client.write(CONTINUE, monotonic())  # only now: nothing of the head stands in the way
        return self.feed(rest) if rest else b""

    def feed(self, data: bytes) -> bytes:
        """More of the body. Returns what lies behind its end: the next request."""
        exchange = self._exchange
        reader = self._reader
        try:
            pieces = reader.feed(data)
        except BadChunk as error:
            exchange.fail(Failure(BAD_REQUEST, str(error)))
            return b""
        # One object a read: two-byte chunks kept singly would take 25 times their size.
        payload = b"".join(pieces)
        exchange.bytes_in += len(payload)
        client = exchange.client
        if len(pieces) > MAX_CHUNKS or (self._form is not None and len(data) > MAX_FORM):
            client.transport.pause_reading()
            exchange.gateway.loop.call_soon(self._read_on)
        if client.runs is Deadline.CLIENT_READ:
            client.deadline = monotonic() + exchange.snapshot.timeouts.client_read
        if exchange.body is Body.COLLECTING:
            self._collect(payload)
        else:
            self._pass_on(payload)
        return reader.rest

    def start(self) -> bytes:
        """A connection is there: what has come until now, framed. More is written as it comes."""
        payload = b"".join(self._parts)
        self._parts = []
        self._size = 0
        self.resume()
        return self._framed(payload)

    @property
    def length(self) -> int | None:
        """Of the body as it goes on; None where it is chunked."""
        reader = self._reader
        return None if isinstance(reader, ChunkDecoder) else self._exchange.bytes_in + reader.missing

    def pause(self) -> None:
        if not self.paused and not self._reader.done:
            self.paused = True
            self._exchange.client.transport.pause_reading()

    def _read_on(self) -> None:
        """The others had their turn. The client may be at its next request by now, whose upload may be paused."""
        client = self._exchange.client
        running = client.exchange
        is_paused = running is not None and running.upload is not None and running.upload.paused
        if not is_paused and not client.transport.is_closing():
            client.transport.resume_reading()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self._exchange.client.transport.resume_reading()

    def _keep(self, payload: bytes) -> None:
        """What comes in small pieces is joined: an object for every two bytes would take 25 times their size."""
        parts = self._parts
        if parts and len(parts[-1]) + len(payload) <= JOINED:
            parts[-1] += payload
        else:
            parts.append(payload)

    def _collect(self, payload: bytes) -> None:
        exchange = self._exchange
        gateway = exchange.gateway
        self._keep(payload)
        self._size += len(payload)
        self.counted += len(payload)
        gateway.collected += len(payload)
        too_much = gateway.collected > exchange.snapshot.collected_bound
        if self._is_kept and (too_much or self._size > exchange.snapshot.body_bound):
            self._pass_on_instead()
        elif self._size > exchange.snapshot.body_bound:
            exchange.fail(too_large(exchange.snapshot.body_bound))
        elif too_much:
            message = "the gateway holds as many request bodies as it may (bounds.collected); try again later"
            exchange.fail(Failure(TOO_MUCH_COLLECTED, message))
        elif self._form is not None:
            self._find_model(self._form, payload)
        elif self._reader.done:
            whole = b"".join(self._parts)
            self._parts = []
            exchange.body = Body.UPLOADED
            if self._is_kept:
                exchange.kept(whole)
            elif exchange.admission.source == "read":
                exchange.measure(whole)
            else:
                exchange.read(whole)

    def forget(self) -> None:
        """What was collected is held no longer."""
        self._exchange.gateway.collected -= self.counted
        self.counted = 0

    def _pass_on_instead(self) -> None:
        """It is too large to be kept; what came of it goes on as it is, and the rest as it comes."""
        exchange = self._exchange
        self.forget()
        exchange.body = Body.UPLOADED if self._reader.done else Body.UPLOADING
        self.pause()
        exchange.route(exchange.admission.found.endpoint.model)

    def _find_model(self, form: ModelPart, payload: bytes) -> None:
        exchange = self._exchange
        try:
            decided = form.feed(payload)
        except BadForm as error:
            exchange.fail(Failure(BAD_REQUEST, str(error)))
            return
        if not decided and not self._reader.done:
            return
        exchange.body = Body.UPLOADED if self._reader.done else Body.UPLOADING
        exchange.route(form.model)

    def rename(self, model: str) -> None:
        """Put another model into the collected part of the form, before anything of it is sent."""
        if self._form is None or self._form.span is None:
            return  # the name is in the path
        before = b"".join(self._parts)
        start, end = self._form.span
        after = before[:start] + model.encode() + before[end:]
        self._parts = [after]
        self._exchange.bytes_in += len(after) - len(before)

    def _pass_on(self, payload: bytes) -> None:
        exchange = self._exchange
        upstream = exchange.upstream
        ended = self._reader.done
        if self._form is not None:
            # Readers differ on which of two `model` parts counts, so a second one must not pass.
            try:
                self._form.feed(payload)
            except BadForm as error:
                exchange.fail(Failure(BAD_REQUEST, str(error)))
                return
        if ended:
            exchange.body = Body.UPLOADED
        if upstream is None:
            self._keep(payload)
            self._size += len(payload)
            if self._size > MAX_PENDING:
                self.pause()
            return
        upstream.write(self._framed(payload), monotonic())
        if ended:
            self.resume()
            exchange.uploaded(monotonic())

    def _framed(self, payload: bytes) -> bytes:
        reader = self._reader
        if isinstance(reader, LengthDecoder):
            return payload
        framed = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
        if reader.done:
            framed += b"0\r\n%b\r\n" % b"".join(line + b"\r\n" for line in self._trailers())
        return framed

    def _trailers(self) -> list[bytes]:
        """Those that go on: none that frames, routes or authenticates (RFC 9110 section 6.5.1), none that Connection
        named (section 7.6.1), and none that the target's own headers set, which a reader might merge with them."""
        exchange = self._exchange
        assert exchange.candidate is not None
        named, removed = exchange.admission.head.named, exchange.candidate.target.removed
        return [
            line
            for line in self._reader.trailers
            if request_field(line) is FORWARDED and (name := line_name(line)) not in named and name not in removed
        ]
