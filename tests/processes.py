"""What tests of whole processes share: a running command whose output is read as it comes, and upstreams that keep
every byte they receive.

The gateway runs as a process of its own, as people run it; upstreams run on a thread of the test's process, so that
blocking clients (SDKs, `curl`) can be used beside them. Nothing waits by sleeping: `Output.wait` and `Upstream.wait`
wake up when something arrived, and fail after `PATIENCE` seconds with what they have.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import pytest
from fakes import Seen

from aigw.mock import MockConnection, Settings

PATIENCE = 60.0  # seconds that a test waits for what must happen; on a busy machine much takes long

T = TypeVar("T")


# commands -------------------------------------------------------------------------------------------------------------


class Output:
    """What a process writes to a pipe; read on a thread, so that a full pipe never stops the process."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._data = b""
        self._ended = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while True:
                data = os.read(self._pipe.fileno(), 65536)
                with self._changed:
                    self._data += data
                    self._ended = not data
                    self._changed.notify_all()
                if not data:
                    return

    @property
    def data(self) -> bytes:
        return self._data

    @property
    def lines(self) -> list[str]:
        """Complete ones; only a line feed ends a line."""
        return self._data.decode().split("\n")[:-1]

    def wait(self, look: Callable[[list[str]], T | None], what: str) -> T:
        """The first value of `look` that is true; it is asked with all lines whenever there are more."""
        with self._changed:
            self._changed.wait_for(lambda: look(self.lines) or self._ended, PATIENCE)
            found = look(self.lines)
        assert found, f"no {what} in:\n" + "\n".join(self.lines)
        return found

    def find(self, pattern: str, after: int = 0) -> re.Match[str]:
        """A line that holds `pattern`, behind so many others."""

        def look(lines: list[str]) -> re.Match[str] | None:
            return next(filter(None, (re.search(pattern, line) for line in lines[after:])), None)

        return self.wait(look, pattern)

    def join(self) -> None:
        """Until the last process that could write to the pipe is gone."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the pipe is still open"


_UNWANTED = re.compile(r".*_(API_KEY|BASE_URL|PROXY)|(OPENAI|AZURE|ANTHROPIC|GEMINI|GOOGLE)_.*", re.IGNORECASE)


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would be found in a developer's: providers' keys, and a proxy for curl and the SDKs."""
    return {name: value for name, value in os.environ.items() if not _UNWANTED.fullmatch(name)} | more


@contextmanager
def clean_environment() -> Iterator[None]:
    """The same for what runs in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment().keys():
            patch.delenv(name)
        yield


class Command:
    """A running `aigw` command. `out` is its stdout, `err` its stderr."""

    program: Sequence[str] = ("-m", "aigw")  # what the interpreter is given before the words

    def __init__(self, *words: str, folder: Path, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, *self.program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=environment(TMPDIR=str(folder), **(environ or {})),
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.out = Output(self.process.stdout)
        self.err = Output(self.process.stderr)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the exit status; `out` and `err` are complete then."""
        status = self.process.wait(PATIENCE)
        self.out.join()
        self.err.join()
        return status

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    def processes(self) -> list[int]:
        """It and its children."""
        pid = self.process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.end()


class Serve(Command):
    """`aigw serve` with its access log on stdout, once it listens: on 127.0.0.1, at `port`.

    `config` is the text of its config.yaml; without one the built-in config is served, at a port of its own. So is the
    admin API, unless the config says where.
    """

    def __init__(
        self,
        folder: Path,
        config: str | None = None,
        environ: dict[str, str] | None = None,
        arguments: Sequence[str] = ("--listen", "127.0.0.1:0"),
    ) -> None:
        words = ["serve", *arguments]
        if config is None or not re.search("^admin:", config, re.MULTILINE):
            words += ["--admin-listen", "127.0.0.1:0"]
        if config is not None:
            (folder / "config.yaml").write_text(config)
            words += ["--config", str(folder / "config.yaml")]
        super().__init__(*words, folder=folder, environ=environ)
        try:
            self.port = int(self.err.find(r"listens +http://127\.0\.0\.1:(\d+)")[1])
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Serve:
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def workers(self) -> list[int]:
        found = []
        for pid in self.processes()[1:]:
            with suppress(FileNotFoundError, ProcessLookupError):  # a child that reads the config may end meanwhile
                if b"aigw.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.lines]

    def record(self, request_id: str) -> dict[str, Any]:
        """The access log's record of one exchange, waited for: it is written a moment after the answer."""
        mark = f'"request_id":"{request_id}"'
        line = self.out.wait(lambda lines: next((line for line in lines if mark in line), None), mark)
        return dict(json.loads(line))


# upstreams ------------------------------------------------------------------------------------------------------------


def parsed(data: bytes) -> Iterator[Seen]:
    """The complete requests in what one connection brought; naive, for bytes that are known to be requests."""
    while True:
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head, data = data[:end], data[end:]
        seen = Seen(head, b"0\r\n\r\n")
        length = _chunks_length(data) if seen.is_chunked else int(seen.headers.get("content-length", "0"))
        if length is None or len(data) < length:
            return
        yield Seen(head, data[:length])
        data = data[length:]


def _chunks_length(data: bytes) -> int | None:
    """Of a chunked body without trailers, its end included; None where it has not ended yet."""
    at = 0
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line], 16)
        at = line + 2 + size + 2
        if not size:
            return at
    return None


class Wire:
    """One connection as the upstream saw it: what it brought, and whether it is still there."""

    def __init__(self) -> None:
        self.data = b""
        self.is_open = True


class Upstream:
    """An upstream on a thread of its own. `answer` makes the bytes of a response from a request; without one it is the
    mock provider, which takes `x-mock`."""

    def __init__(self, answer: Callable[[Seen], bytes] | None = None) -> None:
        self._answer = answer
        self.wires: list[Wire] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(self._listen())
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(lambda: _Recorder(self, self._handler()), "127.0.0.1", 0)

    def _handler(self) -> asyncio.Protocol:
        if self._answer is None:
            return MockConnection(Settings(), self._loop)
        return _Answering(self._answer)

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Seen]:
        """Complete ones, by connection."""
        return [seen for wire in self.wires for seen in parsed(wire.data)]

    @property
    def received(self) -> bytes:
        return b"".join(wire.data for wire in self.wires)

    def find(self, request_id: str) -> list[Seen]:
        """The requests that came with this id, retries among them."""
        return [seen for seen in self.requests if seen.headers.get("x-request-id") == request_id]

    def wait(self, look: Callable[[], T | None], what: str) -> T:
        """The first value of `look` that is true; it is asked whenever a byte came or a connection ended."""
        with self._changed:
            self._changed.wait_for(look, PATIENCE)
            found = look()
        assert found, f"waited in vain: {what}"
        return found

    def wire(self, request_id: str) -> Wire:
        """The connection that brought this request, waited for."""
        mark = f"x-request-id: {request_id}\r\n".encode()
        return self.wait(lambda: next((wire for wire in self.wires if mark in wire.data), None), request_id)

    def wait_closed(self, wire: Wire) -> None:
        self.wait(lambda: not wire.is_open, "the gateway closes the connection")

    def change(self, wire: Wire, data: bytes | None) -> None:
        """What the protocol saw: bytes, or with None the end of the connection."""
        with self._changed:
            if data is None:
                wire.is_open = False
            else:
                wire.data += data
            self._changed.notify_all()

    def close(self) -> None:
        """The gateway is gone by then, and with it all connections."""
        self.wait(lambda: not any(wire.is_open for wire in self.wires), "all connections closed")
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()

    def __enter__(self) -> Upstream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Recorder(asyncio.Protocol):
    """Notes what happens on a connection and hands it on to the protocol that answers."""

    def __init__(self, upstream: Upstream, handler: asyncio.Protocol) -> None:
        self._upstream = upstream
        self._handler = handler
        self._wire = Wire()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._upstream.wires.append(self._wire)
        self._handler.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._upstream.change(self._wire, data)
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        return self._handler.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._handler.connection_lost(exc)
        self._upstream.change(self._wire, None)

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()


class _Answering(asyncio.Protocol):
    """Answers each request as soon as it is complete; what says `connection: close`, or nothing, is the last answer."""

    def __init__(self, answer: Callable[[Seen], bytes]) -> None:
        self._answer = answer
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        for seen in parsed(self._data):
            self._data = self._data[len(seen.raw) :]
            answer = self._answer(seen)
            self._transport.write(answer)
            if not answer or b"connection: close" in answer:
                self._transport.close()
