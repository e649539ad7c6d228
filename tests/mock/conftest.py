"""The mock on an ephemeral port of the test's own loop, and a client that sees every byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import orjson
import pytest

from aigw.mock import MockConnection, Settings

TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What came back until the mock closed: status, head lines, raw body; reset: the end was a RST."""

    raw: bytes
    reset: bool = False

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.raw.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    def json(self) -> dict:
        return orjson.loads(self.body)

    def chunks(self) -> tuple[list[bytes], bytes]:
        """The complete chunks of the body, and what follows them: b"0\\r\\n\\r\\n" where it is whole."""
        rest, found = self.body, []
        while True:
            size, line_end, behind = rest.partition(b"\r\n")
            try:
                length = int(size, 16)
            except ValueError:
                return found, rest
            if not line_end or not length or len(behind) < length + 2:
                return found, rest
            assert behind[length : length + 2] == b"\r\n"
            found.append(behind[:length])
            rest = behind[length + 2 :]


class Wire:
    """A raw connection to the mock."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until(self, mark: bytes) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readuntil(mark)

    async def exactly(self, size: int) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.readexactly(size)

    async def answer(self) -> Answered:
        """One answer with a length."""
        head = await self.until(b"\r\n\r\n")
        length = int(Answered(head).headers["content-length"])
        return Answered(head + await self.exactly(length))

    async def to_end(self) -> Answered:
        received = b""
        async with asyncio.timeout(TIMEOUT):
            try:
                while data := await self.reader.read(65536):
                    received += data
            except ConnectionResetError:
                return Answered(received, reset=True)
        return Answered(received)


class Mock:
    def __init__(self, port: int, connect: Callable[[], Awaitable[Wire]]) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.connect = connect

    async def ask(
        self, path: str, document: object = None, *, words: str = "", method: str = "", **headers: str
    ) -> Answered:
        """One exchange on a connection of its own, read until the mock closes."""
        wire = await self.connect()
        wire.send(self.request(path, document, words=words, method=method, connection="close", **headers))
        return await wire.to_end()

    @staticmethod
    def request(path: str, document: object = None, *, words: str = "", method: str = "", **headers: str) -> bytes:
        body = b"" if document is None else document if isinstance(document, bytes) else orjson.dumps(document)
        lines = {"host": "mock"} | {name.replace("_", "-"): value for name, value in headers.items()}
        if words:
            lines["x-mock"] = words
        if body:
            lines["content-length"] = str(len(body))
        head = f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1\r\n"
        return (head + "".join(f"{name}: {value}\r\n" for name, value in lines.items())).encode() + b"\r\n" + body

    @staticmethod
    def chat(**more: object) -> dict:
        """The document of a chat completion."""
        return {"model": "m", "messages": [{"role": "user", "content": "Say hello"}]} | more


@pytest.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Mock]]]:
    """Starts mocks; the argument is words of settings."""
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    members: set[MockConnection] = set()
    writers: list[asyncio.StreamWriter] = []

    async def start(words: str = "") -> Mock:
        settings = Settings.parse(words)
        server = await loop.create_server(lambda: MockConnection(settings, loop, members), "127.0.0.1", 0)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]

        async def connect() -> Wire:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=8 * 1024 * 1024)
            writers.append(writer)
            return Wire(reader, writer)

        return Mock(port, connect)

    yield start
    for writer in writers:
        writer.transport.abort()
    for member in tuple(members):
        member.close()
    for server in servers:
        server.close()
        await server.wait_closed()


@pytest.fixture
async def mock(start: Callable[..., Awaitable[Mock]]) -> Mock:
    return await start()
