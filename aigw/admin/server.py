"""The admin listener: HTTP/1.1 with the house's wire layer, a coroutine per connection.

    head -> `App.admit` (may this call be done?) -> body -> `App.answer` -> the answer, and the next head

Nothing of a body is read before the call is admitted. Everything is bounded: the head as on the proxy's side, a body by
`MAX_BODY`, connections by `MAX_CONNECTIONS`, and each step by a deadline. It knows no route and no config.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from aigw import listen
from aigw.admin.guard import UNIX
from aigw.admin.messages import Answer, Refused, Request, refusal, request_of
from aigw.errors import Refused as HeadRefused
from aigw.process import describe_error, log
from aigw.wire import reply
from aigw.wire.chunked import BadChunk, ChunkDecoder
from aigw.wire.fields import AUTHORIZATION
from aigw.wire.framing import LengthDecoder
from aigw.wire.head import HeadBounds, RequestHead, RequestParser

if TYPE_CHECKING:
    import ssl

BOUNDS = HeadBounds()
MAX_BODY = 4 << 20  # bytes: a config of 20,000 keys
MAX_CONNECTIONS = 256  # some hundred programs may want to write at once; the config's writer does them together
HANDSHAKE = 10.0  # seconds that one of TLS may take
KEEPALIVE = 75.0  # seconds that an idle connection is kept ...
HEAD = 10.0  # ... a head may take, from its first byte ...
BODY = 30.0  # ... a body ...
WRITE = 30.0  # ... and an answer, until the client has taken it
LINGER = 2.0  # seconds in which what a refused client still sends is read and dropped, so that it sees the answer
READ_BYTES = 64 * 1024


class App(Protocol):
    """What is served. Both raise Refused."""

    async def admit(self, request: Request, authorization: str, host: str) -> None: ...

    async def answer(self, request: Request) -> Answer: ...


class _Gone(Exception):
    """The client closed its side, or took too long: there is nobody to answer."""


class Server:
    """`listen` may be called again, for other sockets: connections go on where they are. `context` is what the next
    connection is to speak TLS with, None: it is none."""

    def __init__(self, app: App) -> None:
        self.context: ssl.SSLContext | None = None
        self._app = app
        self._parser = RequestParser()
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        self._closing = False
        self._told = 0.0  # monotonic seconds: when the log was last told of a handshake that failed

    def __repr__(self) -> str:
        return f"<Server {len(self._servers)} sockets {len(self._connections)} connections>"

    async def listen(self, sockets: Iterable[socket.socket]) -> None:
        """Accepts on these from now on, and no longer on those before, which it closes."""
        before = self._servers
        self._servers = []
        for sock in sockets:
            start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
            self._servers.append(await start(self._connected, sock=sock, limit=READ_BYTES))
        for server in before:
            server.close()

    async def close(self) -> None:
        """Ends all connections, in the middle of what they do."""
        self._closing = True
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    # --- a connection

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        context = self.context
        is_open = context is None  # as far as the reader and the writer hear of its end
        try:
            if context is not None:
                if len(self._connections) > MAX_CONNECTIONS:
                    return  # a handshake would cost more than the answer is worth
                await writer.start_tls(context, ssl_handshake_timeout=HANDSHAKE)
                is_open = True
            await self._serve(reader, writer)
        except OSError as error:  # it broke, or took too long
            if not is_open:
                self._tell(getattr(error, "reason", None))
        except (_Gone, asyncio.CancelledError):
            pass  # cancelled by `close` alone
        except Exception as error:
            log(f"admin: unexpected: {describe_error(error)}")
        finally:
            self._connections.discard(task)
            writer.transport.abort()
            if is_open:
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await writer.wait_closed()

    def _tell(self, reason: str | None) -> None:
        """Says why a handshake failed, once a second at most; None: who only leaves is not worth a line."""
        now = time.monotonic()
        if reason is not None and now - self._told >= 1.0:
            self._told = now
            log(f"admin: a TLS handshake failed: {reason.replace('_', ' ').lower()}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")
        client = str(address[0]) if isinstance(address, tuple) else UNIX
        if len(self._connections) > MAX_CONNECTIONS:
            error = Refused(503, "too_many_connections", "too many connections to the admin API; try again soon")
            await self._send(writer, refusal(error), close=True)
            return await self._linger(reader, writer)
        data = b""
        while True:
            close = True
            head_only = False
            try:
                head, data = await self._head(reader, data)
                head_only = head.line.method == "HEAD"
                request = request_of(head, client)
                await self._app.admit(request, _authorization(head), _host(head))
                request.body, data = await self._body(reader, writer, head, data)
                close = head.close or self._closing
                answer = await self._app.answer(request)
            except Refused as error:
                answer = refusal(error)
            except HeadRefused as error:
                failure = error.failure
                allow = () if failure.allow is None else (b"allow: " + failure.allow.encode(),)
                answer = refusal(Refused(failure.kind.status, failure.kind.code, failure.message, lines=allow))
            except (_Gone, ConnectionError):
                raise
            except Exception as error:
                log(f"admin: unexpected: {describe_error(error)}")
                answer = refusal(Refused(500, "internal_error", "the call failed, and the gateway's log says where"))
            await self._send(writer, answer, close=close, head_only=head_only)
            if close:
                return await self._linger(reader, writer)

    async def _head(self, reader: asyncio.StreamReader, data: bytes) -> tuple[RequestHead, bytes]:
        """A head, and what came behind it. Raises: HeadRefused, Refused, _Gone."""
        if not data:
            try:
                async with asyncio.timeout(KEEPALIVE):
                    data = await _some(reader)
            except TimeoutError:
                raise _Gone from None
        try:
            async with asyncio.timeout(HEAD):
                while True:
                    data = data.removeprefix(b"\r\n")  # RFC 9112 section 2.2
                    block, mark, rest = data.partition(b"\r\n\r\n")
                    # a line that ends otherwise, or a head beyond its bound: the parser says what is wrong
                    if mark or len(data) > BOUNDS.head or b"\n\n" in data:
                        return self._parser.parse(block, BOUNDS), rest
                    data += await _some(reader)
        except TimeoutError:
            raise Refused(408, "request_timeout", f"the head did not come within {HEAD:.0f} s") from None

    async def _body(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: RequestHead, data: bytes
    ) -> tuple[bytes, bytes]:
        """A body, and what came behind it. Raises: Refused, _Gone."""
        if head.length == 0:
            return b"", data
        too_large = Refused(413, "body_too_large", f"the body is larger than {MAX_BODY >> 20} MiB")
        if head.length is not None and head.length > MAX_BODY:
            raise too_large
        if head.content_encoding not in (b"", b"identity"):
            raise Refused(415, "unsupported_encoding", "the body must not be compressed; send no content-encoding")
        if head.expect and not data:
            writer.write(reply.CONTINUE)
        decoder = ChunkDecoder() if head.length is None else LengthDecoder(head.length)
        pieces: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY):
                while True:
                    for piece in decoder.feed(data):
                        pieces.append(piece)
                        size += len(piece)
                    if size > MAX_BODY:
                        raise too_large
                    if decoder.done:
                        return b"".join(pieces), decoder.rest
                    data = await _some(reader)
        except BadChunk as error:
            raise Refused(400, "bad_request", str(error)) from None
        except TimeoutError:
            raise Refused(408, "request_timeout", f"the body did not come within {BODY:.0f} s") from None

    async def _send(
        self, writer: asyncio.StreamWriter, answer: Answer, *, close: bool, head_only: bool = False
    ) -> None:
        writer.write(answer.encode(now=time.time(), close=close, head_only=head_only))
        async with asyncio.timeout(WRITE):
            await writer.drain()

    async def _linger(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the client has the answer: who closes a socket with unread bytes takes the answer back."""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(LINGER):
                if writer.can_write_eof():
                    writer.write_eof()
                    while await reader.read(READ_BYTES):
                        pass
                else:  # TLS says that it ends, and lets go what still comes
                    writer.close()
                    await writer.wait_closed()


async def _some(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(READ_BYTES)
    if not data:
        raise _Gone
    return data


def _authorization(head: RequestHead) -> str:
    """Its value; nothing that could be a token, where it stands twice."""
    values = [field.value for field in head.credentials if field.kind == AUTHORIZATION]
    return values[0].decode("latin-1") if len(values) == 1 else "twice" if values else ""


def _host(head: RequestHead) -> str:
    return head.host_line.partition(b":")[2].strip(b" \t").decode("latin-1")


# --- sockets


def bind(address: str, ours: Iterable[int] = ()) -> list[socket.socket]:
    """Listening sockets for `admin.listen`. `ours` are ports that this process listens on already.

    Raises: listen.ListenError.
    """
    try:
        if address.startswith("unix:"):
            return [listen.bind_unix(listen.parse(address)[0], 0o600)]  # for this user alone
        return listen.bind(address, set(ours))
    except listen.ListenError as error:
        raise listen.ListenError(str(error).replace("--listen or listen:", "--admin-listen or admin.listen")) from None
