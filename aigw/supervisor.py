"""The supervisor: starts the processes of a gateway, keeps the worker alive, writes the log, ends it all in order.

    config child ---- plain document ----.
                                         v
    signals ----------------------> supervisor ---- listening sockets, document ----> worker
    access log <---- whole lines ------- | <------- records ------------------------'

It carries no traffic and never sees a request. It owns what must outlive a worker: the listening sockets (so clients
wait in the accept queue while a worker is replaced), the access log, the mock's private folder. It imports neither
yaml nor pydantic nor the proxy: the config is read by a child, which starts together with the first worker.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import orjson

from aigw import __version__, listen, screen
from aigw.handle import WorkerHandle
from aigw.process import Faults, WorkerProcess, describe_exit, log, say, start_worker
from aigw.records import Writer

Document = dict[str, Any]

GRACE = 5.0  # seconds beyond its drain time that a worker may take to exit ...
GRACE_NOW = 2.0  # ... and after a second signal
STABLE = 10.0  # seconds: a worker that died younger than this makes the next one wait
BACK_OFF = (0.2, 10.0)  # seconds before a second short-lived worker is replaced, doubled up to the second


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks for; it wins over the file."""

    config: str | None  # the file's path; None: the built-in config
    listen: tuple[str, ...] = ()  # addresses that `listen.parse` takes
    since: float = 0.0  # `time.monotonic` when the command started, for the screen


class StartError(Exception):
    """Why the gateway cannot start: lines for the person who started it."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


class Supervisor:
    """One run of `aigw serve`: `run` answers its exit status."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        config: subprocess.Popen[bytes],
        worker: WorkerProcess,
    ) -> None:
        # wiring
        self._loop = loop
        self._options = options
        self._config = config
        self._started = worker
        self._worker = WorkerHandle(loop, worker)
        # what outlives a worker
        self._document: Document = {}
        self._sockets: list[socket.socket] = []
        self._writer: Writer | None = None
        self._mock_folder: str | None = None
        self._on_terminal = os.isatty(0)
        # set by signals: end in order; end now
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal. 0: nothing was cut; 1: it did not start, or exchanges were cut."""
        self._handle_signals()
        self._reap()  # what ended before SIGCHLD was handled
        stop = asyncio.create_task(self._stop.wait())
        deed = asyncio.create_task(self._start())
        try:
            await asyncio.wait({stop, deed}, return_when=asyncio.FIRST_COMPLETED)
            if not deed.done():
                return 0
            deed.result()
            deed = asyncio.create_task(self._keep_worker())
            await asyncio.wait({stop, deed}, return_when=asyncio.FIRST_COMPLETED)
            if deed.done():
                deed.result()  # it ends only by a fault of ours, which is raised here
            deed.cancel()
            return await self._drain()
        except StartError as error:
            say([f"error: {line}" for line in error.lines])
            return 1
        finally:
            for task in (stop, deed):
                task.cancel()
            await self._clean_up()

    # --- start

    async def _start(self) -> None:
        self._document, warnings = await self._read_config()
        if self._options.listen:
            self._document["listen"] = [{"address": address} for address in self._options.listen]
            warnings += self._exposed()
        say([f"warning: {warning}" for warning in warnings])
        for listener in self._document["listen"]:
            try:
                self._sockets += listen.bind(listener["address"])
            except listen.ListenError as error:
                raise StartError(str(error)) from None
        try:
            self._writer = Writer(self._loop, self._document["access_log"], log)
        except OSError as error:
            path = self._document["access_log"]
            raise StartError(f"access_log: cannot open {path}: {error.strerror}; it must be a writable file") from None
        self._writer.attach(self._started.records)
        if any(upstream["provider"] == "mock" for upstream in self._document["upstreams"].values()):
            self._mock_folder = _private_folder()
        why = await self._apply()
        if why:
            raise StartError(f"the worker did not start: {why}")
        self._show()

    async def _read_config(self) -> tuple[Document, list[str]]:
        assert self._config.stdout is not None
        reader = asyncio.StreamReader()
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), self._config.stdout
        )
        try:
            output = await reader.read()
        finally:
            transport.close()
        try:
            answer = orjson.loads(output)
        except orjson.JSONDecodeError:  # it was killed, or said on stderr what is the matter
            status = self._config.wait()
            raise StartError(f"the config was not read: the process that reads it {describe_exit(status)}") from None
        if "errors" in answer:
            raise StartError(*answer["errors"])
        return answer["document"], list(answer["warnings"])

    def _exposed(self) -> list[str]:
        """What `--listen` may open that the file did not.

        Raises: StartError, where that is not allowed.
        """
        outside = [address for address in self._options.listen if not listen.is_loopback(address)]
        if outside and self._options.config is None:
            raise StartError(
                f"--listen {outside[0]}: the built-in config asks for no key, so it listens on loopback only; "
                "write a config.yaml with keys (aigw key NAME) to serve others"
            )
        return [
            f"--listen {address}: the gateway {name!r} asks for no key (auth: none); whoever reaches it may use it"
            for address in outside
            for name, gateway in self._document["gateways"].items()
            if gateway["auth"] == "none"
        ]

    async def _apply(self) -> str:
        mock_socket = None if self._mock_folder is None else os.path.join(self._mock_folder, "mock.sock")
        return await self._worker.apply(self._document, self._sockets, mock_socket)

    def _show(self) -> None:
        source = "built-in config (no config.yaml here)" if self._options.config is None else self._options.config
        text = screen.render(
            self._document,
            [listen.name(sock) for sock in self._sockets],
            version=__version__,
            source=source,
            seconds=time.monotonic() - self._options.since,
            colour=sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        )
        say([text])

    # --- keep

    async def _keep_worker(self) -> None:
        """Replaces the worker whenever it dies: at once, then with growing pauses while it keeps dying young."""
        young = 0
        while True:
            await asyncio.wait({self._worker.ended})  # which, unlike a bare await, is not cancelled with this task
            status = self._worker.ended.result()
            young = 0 if self._loop.time() - self._worker.since >= STABLE else young + 1
            pause = 0.0 if young < 2 else min(BACK_OFF[0] * 2 ** (young - 2), BACK_OFF[1])
            when = f"in {pause:.1f} s" if pause else "now"
            log(f"worker {self._worker.pid} {describe_exit(status)}; the next one starts {when}")
            await asyncio.sleep(pause)
            await self._replace_worker()

    async def _replace_worker(self) -> None:
        while True:
            try:
                started = start_worker()
                break
            except OSError as error:
                log(f"no worker can be started: {error.strerror}; the next try is in {BACK_OFF[0]} s")
                await asyncio.sleep(BACK_OFF[0])
        assert self._writer is not None
        self._writer.attach(started.records)
        self._worker = WorkerHandle(self._loop, started)
        why = await self._apply()
        if why:
            log(f"worker {self._worker.pid} does not serve: {why}")
            self._worker.kill()
        else:
            log(f"worker {self._worker.pid} serves")

    # --- end

    async def _drain(self) -> int:
        """Lets the worker finish what runs; 0 if nothing had to be cut."""
        for sock in self._sockets:  # the worker's copies are the last now: when it closes them, clients are refused
            sock.close()
        if self._worker.ended.done():  # it died just before, and the next one was not there yet
            return 0
        times = self._document["drain"]
        self._worker.drain(times["delay"], times["timeout"])
        now = asyncio.create_task(self._now.wait())
        await self._wait_for_end(now, times["delay"] + times["timeout"] + GRACE)
        now.cancel()
        if self._now.is_set() and not self._worker.ended.done():
            self._worker.drain(0.0, 0.0)
            await self._wait_for_end(None, GRACE_NOW)
        if not self._worker.ended.done():
            log(f"worker {self._worker.pid} does not end by itself; it is killed")
            self._worker.kill()
            await self._worker.ended
        status, cut = self._worker.ended.result(), self._worker.cut
        if cut is None:
            log(f"worker {self._worker.pid} {describe_exit(status)} before it had finished what ran")
            return 1
        if cut:
            log(f"{cut} exchange{'' if cut == 1 else 's'} had to be cut; drain.timeout decides how long they get")
        return 1 if cut else 0

    async def _wait_for_end(self, now: "asyncio.Task[Any] | None", seconds: float) -> None:
        waited: set[asyncio.Future[Any]] = {self._worker.ended} | ({now} if now else set())
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)

    async def _clean_up(self) -> None:
        if self._config.poll() is None:
            self._config.kill()
            self._config.wait()
        if not self._worker.ended.done():  # stopped while starting: nothing runs in it
            self._worker.kill()
            await self._worker.ended
        if self._writer is None:
            self._started.records.close()
        else:
            await self._writer.close()
        for sock in self._sockets:
            sock.close()
        if self._mock_folder is not None:
            with contextlib.suppress(OSError):
                for entry in os.listdir(self._mock_folder):
                    os.unlink(os.path.join(self._mock_folder, entry))
                os.rmdir(self._mock_folder)

    # --- signals

    def _handle_signals(self) -> None:
        handle = self._loop.add_signal_handler
        handle(signal.SIGCHLD, self._reap)
        handle(signal.SIGTERM, self._stopped, "SIGTERM")
        handle(signal.SIGINT, self._stopped, "SIGINT")
        handle(signal.SIGHUP, self._hung_up)
        handle(signal.SIGUSR1, self._reopen)

    def _reap(self) -> None:
        self._config.poll()
        self._worker.reap()

    def _stopped(self, name: str) -> None:
        if not self._stop.is_set():
            log(f"{name}: finishing what runs; once more to end now")
            self._stop.set()
        else:
            self._now.set()

    def _hung_up(self) -> None:
        if self._on_terminal and not os.isatty(0):  # the terminal was closed: nobody is there to end it later
            self._stopped("SIGHUP")
        else:
            log("SIGHUP: the config is read at start only; restart aigw to apply a change")

    def _reopen(self) -> None:
        if self._writer is not None:
            self._writer.reopen()


def _private_folder() -> str:
    """A new folder that only this user may enter, with a name short enough for a socket in it (108 bytes on Linux)."""
    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="aigw-", dir=parent if len(os.fsencode(parent)) < 70 else "/tmp")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    return folder


def run(options: Options, config: subprocess.Popen[bytes], worker: WorkerProcess) -> int:
    """Supervises what was started until a signal; the exit status. See `Supervisor.run`."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(Faults())
        return await Supervisor(loop, options, config, worker).run()

    return asyncio.run(main())
