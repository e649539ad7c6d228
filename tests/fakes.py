"""What tests share: documents, a gateway in the test's own loop, an upstream that does what a test says, raw clients.

Everything is real sockets on this machine; nothing waits by sleeping. `Client.read` and `until` wait for a condition
with a limit, so that a test that would hang fails and says on what.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import socket
import ssl as tls
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aigw.config import snapshot
from aigw.gateway import Gateway
from aigw.mock import MockConnection, Settings
from aigw.shared import PID, Cells

LIMIT = 20.0  # seconds any single wait may take
NO_TIMEOUTS: dict[str, Any] = {"first_token": None, "total": None}
CHAT = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}'


# documents ------------------------------------------------------------------------------------------------------------


def target(url: str, name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "url": url, "weight": 1, "api_key": None, "headers": {}, "model": {}, "limits": []} | fields


def upstream(*targets: dict[str, Any], provider: str = "openai", **fields: Any) -> dict[str, Any]:
    dialects = {"http": [], "mock": ["openai", "anthropic", "gemini"], "azure": ["openai"]}.get(provider, [provider])
    timeouts = {"queue": 5.0, "connect": 5.0, "send": 60.0, "first_byte": 600.0, "first_token": None, "idle": 300.0}
    given = fields.pop("timeouts", {})
    return {
        "provider": provider,
        "dialects": dialects,
        "api_key": None,
        "usage": "as_reported",
        "balance": "round_robin",
        "hash_on": None,
        "headers": {},
        "timeouts": timeouts | {"pool_idle": 55.0} | given,
        "max_connections": None,
        "health": None,
        "eject": None,
        "tls": {"verify": True, "ca": None, "server_name": None},
        "targets": list(targets),
        "limits": [],
    } | fields


def model(upstream_name: str, real: str | None = None, **fields: Any) -> dict[str, Any]:
    return {
        "upstream": upstream_name,
        "model": real,
        "split": None,
        "list": None,
        "hidden": False,
        "timeouts": NO_TIMEOUTS,
        "limits": [],
        "fallback": [],
        "retry": None,
    } | fields


def rule(name: str = "api", path: str = "/*", **fields: Any) -> dict[str, Any]:
    return {
        "name": name,
        "path": path,
        "methods": None,
        "upstream": None,
        "default": None,
        "strip_path": False,
        "preserve_host": False,
        "public": False,
        "timeouts": NO_TIMEOUTS,
        "limits": [],
        "retry": None,
    } | fields


def key(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "models": ["*"],
        "group": None,
        "expires": None,
        "disabled": False,
        "previous": None,
        "resources": False,
        "limits": [],
        "retry": None,
    } | fields


def limit(unit: str, amount: int, window: float | str | None = None, per: str = "gateway", **fields: Any) -> Any:
    """An item of a `limits`, with its `per` filled in."""
    return {"unit": unit, "amount": amount, "window": window, "per": per, "shadow": False} | fields


def retry(*when: str, attempts: int = 2, budget: float = 1.0) -> dict[str, Any]:
    return {"attempts": attempts, "when": list(when), "budget": budget}


def gateway(*rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "hosts": ["*"],
        "auth": "none",
        "keys": {},
        "models": {"*": model("up")},
        "rules": list(rules) or [rule()],
        "limits": [],
        "retry": None,
    } | fields


def document(upstreams: dict[str, Any], *, gateways: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A whole document with defaults; `timeouts` and `bounds` are laid over the defaults."""
    timeouts = {"handshake": 10.0, "keepalive": 75.0, "request": 30.0, "client_read": 60.0, "client_write": 60.0}
    bounds = {"head": 32768, "headers": 100, "url": 16384, "body": 33554432, "collected": 536870912}
    return {
        "listen": [{"address": "127.0.0.1:0"}],
        "workers": 1,
        "access_log": "off",
        "timeouts": timeouts | {"linger": 2.0, "total": None} | fields.pop("timeouts", {}),
        "bounds": bounds | {"connections": 10000} | fields.pop("bounds", {}),
        "drain": {"delay": 0.0, "timeout": 30.0},
        "trusted_proxies": [],
        "answer_headers": {"x-ratelimit": True, "x-aigw": True, "server-timing": True},
        "prices": {},
        "upstreams": upstreams,
        "gateways": gateways or {"default": gateway()},
    } | fields


def serving(url: str, *, timeouts: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Everything by model to one OpenAI upstream `up`. `timeouts` are the client's side's, `fields` the upstream's."""
    return document({"up": upstream(target(url), **fields)}, timeouts=timeouts or {})


def splicing(url: str, *, timeouts: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Everything to one HTTP upstream `up`, by a rule that names it: no body is read for a model."""
    gateways = {"default": gateway(rule(upstream="up"), models={})}
    up = upstream(target(url), provider="http", **fields)
    return document({"up": up}, gateways=gateways, timeouts=timeouts or {})


# waiting --------------------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`, looked at once a turn of the loop."""
    deadline = asyncio.get_running_loop().time() + LIMIT
    while not (value := condition()):
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.001)
    return value


# the gateway ----------------------------------------------------------------------------------------------------------


class Running:
    """A gateway that listens on a port of its own; `records` are the access log's, `log` is the operator's,
    `faults` what the loop was told. With `cells` it is the worker of their row `number`."""

    def __init__(
        self, emit: Callable[[bytes], None] | None = None, cells: Cells | None = None, number: int = 0
    ) -> None:
        self.lines: list[bytes] = []
        self.faults: list[dict[str, Any]] = []
        self.log: list[str] = []
        if cells is not None:
            cells.use(number)[PID] = os.getpid()
        loop = asyncio.get_running_loop()
        loop = asyncio.get_running_loop()
        self.gateway = Gateway(
            loop, emit or self.lines.append, version="test", log=self.log.append, cells=cells, number=number
        )
        self.port = 0
        self.path: str | None = None  # instead of the port
        self.trust: tls.SSLContext | None = None  # of its clients, where it speaks TLS
        self._opened: list[Client] = []

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    async def record(self, index: int = 0) -> dict[str, Any]:
        """The record of the exchange that ended as number `index`."""
        await until(lambda: len(self.lines) > index, f"record {index}")
        return self.records[index]

    def apply(self, config: dict[str, Any], generation: int = 1) -> None:
        self.gateway.apply(snapshot.compile(config, generation))

    async def connect(self, *, buffer: int | None = None) -> Client:
        """A client; `buffer` is what its kernel may hold of an answer that it does not read."""
        if self.path is not None:
            client = Client(*await asyncio.open_unix_connection(self.path, limit=2**26))
        else:
            client = await connect("127.0.0.1", self.port, buffer=buffer, trust=self.trust)
        self._opened.append(client)
        return client

    async def ask(self, raw: bytes, *, head_only: bool = False) -> Answer:
        """On a connection of its own."""
        return await (await self.connect()).ask(raw, head_only=head_only)

    @property
    def pool(self) -> Any:
        """The pool of the only target."""
        (pool,) = self.gateway.pools.values()
        return pool

    @property
    def open_ends(self) -> list[str]:
        """What exchanges still hold; nothing, once all have ended."""
        gateway = self.gateway
        held = [repr(client) for client in gateway.clients if client.exchange is not None]
        held += [repr(pool) for pool in gateway.pools.values() if pool.in_flight or pool.dialling]
        return held + ([f"{gateway.collected} bytes collected"] if gateway.collected else [])

    async def close(self) -> None:
        try:
            self.gateway.close()
            for client in self._opened:
                client.writer.transport.abort()
            await until(lambda: not self.gateway.clients, "clients gone after close")
        finally:
            # whatever went wrong: a loop with an open transport does not close
            for end in [*self._opened, *self.gateway.clients]:
                (end.writer.transport if isinstance(end, Client) else end.transport).abort()
            # one more turn, so that transports closed just now are gone too
            await asyncio.sleep(0)


@asynccontextmanager
async def running(
    config: dict[str, Any],
    *,
    buffer: int | None = None,
    emit: Callable[[bytes], None] | None = None,
    cells: Cells | None = None,
    number: int = 0,
    secure: tuple[tls.SSLContext, tls.SSLContext] | None = None,
    path: str | None = None,
) -> AsyncIterator[Running]:
    """A gateway that serves `config`; it must end with no fault reported and nothing held. `secure` are the contexts
    of its listener, which speaks TLS then, and of its clients. It listens on a unix socket at `path`, where given.

    `buffer` is what the kernel takes of an answer that the client does not read. A test that provokes faults clears
    `faults` itself.
    """
    loop = asyncio.get_running_loop()
    run = Running(emit, cells, number)
    run.apply(config)
    loop.set_exception_handler(lambda _loop, context: run.faults.append(context))
    sock = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)  # accepted sockets inherit it
    sock.bind(("127.0.0.1", 0) if path is None else path)
    sock.listen(128)
    run.path = path
    run.port = sock.getsockname()[1] if path is None else 0
    if secure is not None:
        context, run.trust = secure
        run.gateway.secure({"": context})
    await run.gateway.listen([sock])
    try:
        yield run
    except BaseException:
        await run.close()
        raise
    else:
        await run.close()
        await until(lambda: not run.open_ends, f"nothing held after close: {run.open_ends}")
        assert not run.faults, run.faults
    finally:
        loop.set_exception_handler(None)


# raw clients ----------------------------------------------------------------------------------------------------------


class Answer:
    """One HTTP/1.1 response, parsed naively from bytes that are known to be one."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        self.status = int(lines[0].split(b" ")[1])
        self.lines = lines[1:]
        self.headers = {
            name.decode().lower(): value.strip().decode("latin-1")
            for name, _, value in (line.partition(b":") for line in lines[1:])
        }

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes) -> None:
        """Each part in a write of its own, with a turn of the loop between them."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def read(self, end: bytes | int) -> bytes:
        """Up to and including `end`, or that many bytes."""
        async with asyncio.timeout(LIMIT):
            if isinstance(end, int):
                return await self.reader.readexactly(end)
            return await self.reader.readuntil(end)

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next response, framed by length or chunks (kept as they came)."""
        head = await self.read(b"\r\n\r\n")
        answer = Answer(head)
        if head_only or answer.status in (204, 304) or answer.status < 200:
            return answer
        if "content-length" in answer.headers:
            return Answer(head + await self.read(int(answer.headers["content-length"])))
        if answer.headers.get("transfer-encoding") == "chunked":
            async with asyncio.timeout(LIMIT):
                return Answer(head + await read_chunks(self.reader))
        return Answer(head + await self.rest())

    async def rest(self) -> bytes:
        """Everything until the connection closes cleanly; a reset raises ConnectionResetError."""
        async with asyncio.timeout(LIMIT):
            return await self.reader.read(-1)

    async def ask(self, raw: bytes, *, head_only: bool = False) -> Answer:
        await self.send(raw)
        return await self.answer(head_only=head_only)

    def stop_reading(self) -> None:
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def ended(self) -> bytes:
        """What still comes until the connection closes, be it by FIN or by RST."""
        try:
            return await self.rest()
        except ConnectionResetError:
            return b""

    def reset(self) -> None:
        """RST instead of FIN."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def connect(host: str, port: int, *, buffer: int | None = None, trust: tls.SSLContext | None = None) -> Client:
    """With TLS where there is something to `trust`."""
    sock = socket.socket()
    sock.setblocking(False)
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    try:
        await asyncio.get_running_loop().sock_connect(sock, (host, port))
    except OSError:
        sock.close()
        raise
    name = None if trust is None else host
    return Client(*await asyncio.open_connection(sock=sock, limit=2**26, ssl=trust, server_hostname=name))


def post(path: str, body: bytes = CHAT, *lines: bytes, host: bytes = b"gw", chunks: list[bytes] | None = None) -> bytes:
    """A POST as a client writes it, framed by length, or by the given chunks."""
    head = [b"POST " + path.encode() + b" HTTP/1.1", b"host: " + host, b"content-type: application/json", *lines]
    if chunks is None:
        head.append(b"content-length: %d" % len(body))
        return b"\r\n".join(head) + b"\r\n\r\n" + body
    head.append(b"transfer-encoding: chunked")
    return b"\r\n".join(head) + b"\r\n\r\n" + chunked(*chunks)


def get(path: str, *lines: bytes, host: bytes = b"gw", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path.encode() + b" HTTP/1.1", b"host: " + host, *lines]) + b"\r\n\r\n"


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A whole chunked body, as it comes."""
    raw = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        raw += line
        size = int(line.split(b";")[0], 16)
        if size == 0:
            while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
                raw += trailer
            return raw + trailer
        raw += await reader.readexactly(size + 2)


def dechunked(raw: bytes) -> bytes:
    """The payload of a whole chunked body."""
    payload = b""
    while True:
        line, _, raw = raw.partition(b"\r\n")
        size = int(line.split(b";")[0], 16)
        if size == 0:
            return payload
        payload, raw = payload + raw[:size], raw[size + 2 :]


def ok(body: bytes = b'{"ok": true}', *lines: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole response as an upstream writes it."""
    head = [b"HTTP/1.1 " + status, b"content-type: application/json", *lines, b"content-length: %d" % len(body)]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


# the upstream ---------------------------------------------------------------------------------------------------------


class Seen:
    """A request as an upstream saw it; `body` is decoded, `raw` is not."""

    def __init__(self, raw_head: bytes, raw_body: bytes) -> None:
        self.raw = raw_head + raw_body
        lines = raw_head[:-4].split(b"\r\n")
        self.line = lines[0]
        self.lines = lines[1:]
        self.headers = {
            name.decode().lower(): value.strip().decode("latin-1")
            for name, _, value in (line.partition(b":") for line in self.lines)
        }
        self.is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self.body = dechunked(raw_body) if self.is_chunked else raw_body


class Connection:
    """The upstream's end of one connection, in the hands of a handler."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.requests = 0
        self.closed = asyncio.Event()  # the gateway has closed its end, or the handler ours

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    def close(self) -> None:
        self.writer.close()

    def stop_reading(self) -> None:
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def read_on(self) -> None:
        self.writer.transport.resume_reading()  # type: ignore[attr-defined]

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait, in a handler, until the gateway has closed its end. Elsewhere: `closed`."""
        async with asyncio.timeout(LIMIT):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass


Handler = Callable[[Connection, Seen], Awaitable[None]]


class Stub:
    """An upstream that records what it saw and answers as its handler says: bytes, or a coroutine per request.

    `on_head` is called, where given, as soon as a head is complete, before the body is read; it may answer early.
    """

    def __init__(self, handler: Handler | bytes = ok(), on_head: Handler | None = None) -> None:  # noqa: B008
        self.handler = handler
        self.on_head = on_head
        self.seen: list[Seen] = []
        self.connections: list[Connection] = []
        self.port = 0
        self.host = "127.0.0.1"
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        self.connections.append(connection)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                await self._one(connection)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            connection.closed.set()
            writer.close()

    async def _one(self, connection: Connection) -> None:
        head = await connection.reader.readuntil(b"\r\n\r\n")
        if self.on_head is not None:
            await self.on_head(connection, Seen(head, b"0\r\n\r\n" if b"chunked" in head else b""))
        seen = Seen(head, await self._body(connection.reader, Seen(head, b"0\r\n\r\n")))
        self.seen.append(seen)
        connection.requests += 1
        if isinstance(self.handler, bytes):
            await connection.send(self.handler)
        else:
            await self.handler(connection, seen)

    async def _body(self, reader: asyncio.StreamReader, head: Seen) -> bytes:
        if not head.is_chunked:
            return await reader.readexactly(int(head.headers.get("content-length", "0")))
        return await read_chunks(reader)

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await until(lambda: not self._tasks, "stub connections ended")


@asynccontextmanager
async def stub(
    handler: Handler | bytes | None = None,
    *,
    on_head: Handler | None = None,
    ssl: Any = None,
    path: str | None = None,
    host: str = "127.0.0.1",
) -> AsyncIterator[Stub]:
    """A stub upstream on a port (or unix socket) of its own."""
    up = Stub(ok() if handler is None else handler, on_head)
    up.host = f"[{host}]" if ":" in host else host
    if path is not None:
        server = await asyncio.start_unix_server(up.serve, path, limit=2**26)
    else:
        server = await asyncio.start_server(up.serve, host, 0, ssl=ssl, limit=2**26)
        up.port = server.sockets[0].getsockname()[1]
    try:
        yield up
    finally:
        server.close()
        await up.stop()


def in_turn(*handlers: Handler | bytes) -> Handler:
    """What is done for one request after the other; the last one for all that follow."""
    left = list(handlers)

    async def handler(connection: Connection, seen: Seen) -> None:
        step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, bytes):
            await connection.send(step)
        else:
            await step(connection, seen)

    return handler


async def resets(connection: Connection, seen: Seen) -> None:
    connection.reset()


async def hangs(connection: Connection, seen: Seen) -> None:
    """No answer, until the gateway gives up."""
    await connection.gone()


class Mocked:
    """The built-in mock as an upstream, which fails as its words say; `requests` are those it was asked."""

    def __init__(self) -> None:
        self.requests = 0
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def mock(words: str = "") -> AsyncIterator[Mocked]:
    """With `refuse`, a port that takes no connection."""
    made = Mocked()
    settings = Settings.parse(words)
    members: set[MockConnection] = set()

    class Counted(MockConnection):
        __slots__ = ()

        def data_received(self, data: bytes) -> None:
            made.requests += data.count(b" HTTP/1.1\r\nhost:")
            super().data_received(data)

    sock = socket.create_server(("127.0.0.1", 0)) if settings.failure != "refuse" else socket.socket()
    if settings.failure == "refuse":
        sock.bind(("127.0.0.1", 0))  # and does not listen
    made.port = sock.getsockname()[1]
    loop = asyncio.get_running_loop()
    server = None
    if settings.failure != "refuse":
        server = await loop.create_server(lambda: Counted(settings, loop, members), sock=sock)
    try:
        yield made
    finally:
        if server is not None:
            server.close()
        for member in list(members):
            member.close()
        await until(lambda: not members, "connections of the mock closed")
        sock.close()


class Deaf:
    """A port that answers no SYN, since its backlog is full."""

    def __init__(self) -> None:
        self._sock = socket.create_server(("127.0.0.1", 0), backlog=0)
        self._sock.setblocking(False)
        self.port: int = self._sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._fillers: list[socket.socket] = []

    async def fill(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            self._fillers.append(filler)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await loop.sock_connect(filler, ("127.0.0.1", self.port))

    async def hear(self) -> None:
        """Takes in whoever stands in the backlog, so that the next one finds room."""
        loop = asyncio.get_running_loop()
        for filler in self._fillers:  # which would take that room by their next SYN
            filler.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                while True:
                    self._fillers.append((await loop.sock_accept(self._sock))[0])

    def close(self) -> None:
        for filler in self._fillers:
            filler.close()
        self._sock.close()


@asynccontextmanager
async def deaf() -> AsyncIterator[Deaf]:
    address = Deaf()
    await address.fill()
    try:
        yield address
    finally:
        address.close()


# bytes in pieces ------------------------------------------------------------------------------------------------------


def pieces(raw: bytes, size: int) -> list[bytes]:
    return [raw[start : start + size] for start in range(0, len(raw), size)]


def random_pieces(raw: bytes, seed: int) -> list[bytes]:
    """`raw` cut at about every tenth byte or line, always the same for a seed."""
    draw = random.Random(seed)
    count = min(len(raw) // 10 + 1, 40)
    cuts = sorted({0, len(raw), *(draw.randrange(len(raw)) for _ in range(count))})
    return [raw[start:end] for start, end in itertools.pairwise(cuts)]
