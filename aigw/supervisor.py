"""The supervisor: starts the processes of a gateway, gives them the config whenever it changes, ends them in order.

    config child ---- plain document ----.
                                         v
    signals, the file's changes --> supervisor ---- listening sockets, document ----> workers
    access log <---- whole lines ------- | <------- records ------------------------'

It carries no traffic and never sees a request. It owns what must outlive a worker: the listening sockets (so clients
wait in the accept queue while a worker is replaced), the cells, the access log, the mocks' private folder. It imports
neither yaml nor pydantic nor the proxy: the config is read by a child.

Whatever is wrong with a new config changes nothing: it is bound, opened and prepared before anything switches.
"""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from aigw import __version__, listen, meters, screen, source
from aigw.admin.changes import changes
from aigw.admin.messages import Refused
from aigw.admin.run import Admin, Bound
from aigw.channel import encode
from aigw.config import lines
from aigw.process import Faults, WorkerProcess, build, log, notify, say, start_config
from aigw.records import Writer
from aigw.shared import SUPERVISOR, Cells
from aigw.source import Options, Reading
from aigw.usage import NotKept, Question, UsageStore
from aigw.watch import INTERVAL, Watch, digest_of
from aigw.workers import Version, Workers

if TYPE_CHECKING:
    from aigw.config.snapshot import Snapshot
    from aigw.status import Facts

AGAIN = 60.0  # seconds after which the errors of a config that is not obeyed are said again
READ_TRIES = 3  # for a file that changes while it is read


class StartError(Exception):
    """Why the gateway cannot start: lines for the person who started it."""

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines = lines


class Supervisor:
    """One run of `aigw serve`: `run` answers its exit status. `reload` may be called at any time in between."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        cells: Cells,
        config: subprocess.Popen[bytes],
        worker: WorkerProcess,
    ) -> None:
        # wiring
        self._loop = loop
        self._options = options
        self._config = config  # the child that reads the config now, or did last
        self._first = worker
        self._cells = cells
        self._meters: meters.Meters | None = None  # made when first asked about
        self._workers = Workers(loop, cells)
        self._workers.adopt(worker)
        # what outlives a worker
        self._listeners = listen.Listeners()
        self._writer: Writer | None = None
        self._usage = UsageStore(cells, log, lambda found: loop.call_soon_threadsafe(self._restore, found))
        self._admin = Admin(self, self.explain, self.metrics, self.usage)
        self._mock_folder: str | None = None
        self._on_terminal = os.isatty(0)
        # the config: the one that is served, and what is wrong with the one that is not
        self.generation = 0
        self._coming = 0  # the generation that workers were told of last
        self.errors: list[str] = []
        self._served = Reading()
        self._watch = Watch()
        self._snapshot: Snapshot | None = None  # compiled when first asked about
        self._said = 0.0  # when the errors were, in the loop's time
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
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
            notify("READY=1")
            deed = self._task(self._watch_files())
            await asyncio.wait({stop, deed}, return_when=asyncio.FIRST_COMPLETED)
            if deed.done():
                deed.result()  # it ends only by a fault of ours, which is raised here
            return await self._drain()
        except StartError as error:
            say([f"error: {line}" for line in error.lines])
            return 1
        finally:
            for task in (stop, deed, *self._tasks):
                task.cancel()
            await self._clean_up()

    # --- start

    async def _start(self) -> None:
        reading = await self._read()
        if reading.errors:
            raise StartError(*reading.errors)
        say([f"warning: {warning}" for warning in reading.warnings])
        document = reading.document
        count = source.count_workers(document)
        try:
            self._listeners.keep(self._listeners.bind(_addresses(document), count))
            admin = self._bind_admin(reading, lambda line: say([line]))
        except listen.ListenError as error:
            raise StartError(str(error)) from None
        try:
            if source.has_budgets(document):
                self._usage.retarget(document["usage_store"])
                await self._usage.opened()
            await self._start_workers(document, count)
        except BaseException:
            self._admin.release(admin)
            raise
        self._serve(reading)
        await self._admin.keep(reading.admin, admin)
        self._show()

    async def _start_workers(self, document: source.Document, count: int) -> None:
        """Raises: StartError."""
        try:
            self._writer = Writer(self._loop, document["access_log"], log, self._admin.recent.keep)
        except OSError as error:
            raise StartError(_no_log(document, error)) from None
        self._writer.attach(self._first.records)
        why = await self._workers.start(self._version(document), count, self._listeners.all, self._writer)
        if why:
            raise StartError(f"the worker did not start: {why}")

    def _bind_admin(self, reading: Reading, warn: Callable[[str], None]) -> Bound:
        """None for its default address where that is in use: nobody asked for it, and the proxy is what must serve.

        Raises: listen.ListenError.
        """
        try:
            return self._admin.bind(reading.admin)
        except listen.ListenError as error:
            if reading.admin["stated"]:
                raise listen.ListenError(f"the admin API: {error}") from None
            warn(f"warning: the admin API does not listen: {error}")
            return Bound()

    def _version(self, document: source.Document) -> Version:
        """The next one."""
        if self._mock_folder is None and any(up["provider"] == "mock" for up in document["upstreams"].values()):
            self._mock_folder = _private_folder()
        pieces = b"".join(map(encode, lines.cut(document)))
        self._coming = self.generation + 1
        return Version(self._coming, document, pieces, self._mock_folder)

    def _serve(self, reading: Reading) -> None:
        """It is served from now on."""
        self._served = reading
        self._usage.retarget(reading.document["usage_store"])
        self.generation += 1
        self.errors = []

    def _show(self) -> None:
        config = "built-in config (no config.yaml here)" if self._options.config is None else self._options.config
        text = screen.render(
            self._served.document,
            self._listeners.urls(_secure(self._served.document)),
            self._admin.urls,
            version=f"{__version__} ({build()})",
            source=config,
            seconds=time.monotonic() - self._options.since,
            colour=sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        )
        say([text])

    # --- the config

    async def _read(self) -> Reading:
        """What the running child says. The files it depends on are watched from then on."""
        reading = await source.read(self._loop, self._config, self._options)
        # of a bad config not all may have been found
        more = {path: digest_of(path) for path in self._served.files} if reading.errors else {}
        self._watch.set({**more, **reading.files})
        return reading

    async def reload(self, why: str) -> list[str]:
        """Reads the config again and serves by it; `why` is for the log. Answers what is wrong with it: then nothing
        has changed."""
        async with self._turn:
            for _ in range(READ_TRIES):
                try:
                    self._config = start_config(self._options.config)
                except OSError as error:
                    return self._refuse([f"the config was not read: no process can be started: {error.strerror}"])
                reading = await self._read()
                if self._watch.is_as_read:
                    break
            else:
                return self._refuse(["the file changes while it is read; it is read again once it stays as it is"])
            errors = reading.errors or source.vanished(self._served, reading)
            if not errors:
                if self._is_served(reading):
                    return self._keep(reading, why)
                errors = await self._apply(reading)
            if errors:
                return self._refuse(errors)
            for warning in reading.warnings:
                log(f"config: warning: {warning}")
            log(f"{why}: generation {self.generation} serves")
            return []

    async def obey(self, compiled: dict[str, Any], commit: Callable[[], Awaitable[None]]) -> list[str]:
        """See `admin.writer.Applier`: serves by what an edit of the file has made of it."""
        if self._stop.is_set():
            return ["the gateway is about to end"]
        reading = source.laid_over(compiled, self._options)
        if reading.errors:
            return reading.errors
        if self._is_served(reading):
            await commit()
            self._served = reading
            self.errors = []
        elif errors := await self._apply(reading, commit):
            return errors
        self._watch.set(reading.files)
        return []

    def _is_served(self, reading: Reading) -> bool:
        return reading.document == self._served.document and reading.admin == self._served.admin

    async def _apply(self, reading: Reading, commit: Callable[[], Awaitable[None]] | None = None) -> list[str]:
        """All of it, or nothing and why. `commit` is called once nothing but a worker can refuse; what it raises comes
        through, and nothing has changed."""
        document = reading.document
        count = source.count_workers(document)
        assert self._writer is not None
        try:
            version = self._version(document)
        except OSError as error:
            return [f"there can be no folder for the mock's sockets: {error.strerror}"]
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        target = self._served.document["access_log"]

        async def bind() -> list[listen.Listening]:
            wanted = self._listeners.bind(_addresses(document), count)
            admin = Bound()
            try:
                admin = self._bind_admin(reading, log)
                if commit is not None:
                    await commit()
            except BaseException:
                self._listeners.release(wanted)
                self._admin.release(admin)
                raise
            self._listeners.keep(wanted)
            await self._admin.keep(reading.admin, admin)
            return self._listeners.all

        why = "it was given up"
        try:
            await self._writer.retarget(document["access_log"])
            why = await self._workers.apply(version, count, bind)
        except OSError as error:
            why = _no_log(document, error)
        finally:
            if why:
                with contextlib.suppress(OSError):
                    await self._writer.retarget(target)
            else:
                self._serve(reading)
            notify("READY=1")
        return [why] if why else []

    def _keep(self, reading: Reading, why: str) -> list[str]:
        """What was read is what is served: an error before it is put right by that."""
        self._served = reading
        if self.errors:
            self.errors = []
            log(f"{why}: the config is good again; generation {self.generation} serves")
        else:
            log(f"{why}: the config has not changed; generation {self.generation} serves")
        return []

    def _refuse(self, errors: list[str]) -> list[str]:
        said_already = errors == self.errors and self._loop.time() - self._said < AGAIN
        self.errors = errors
        if not said_already:
            self._complain()
        return errors

    def _complain(self) -> None:
        log(f"the new config is not obeyed; generation {self.generation} goes on serving")
        for error in self.errors:
            log(f"config: {error}")
        self._said = self._loop.time()

    async def _watch_files(self) -> None:
        """Reloads when a file has changed and stays as it is."""
        while True:
            await asyncio.sleep(INTERVAL)
            if self._watch.look():
                await self.reload("the config has changed")
            if self.errors and self._loop.time() - self._said >= AGAIN:
                self._complain()

    # --- what others may know

    @property
    def facts(self) -> "Facts":
        from aigw.status import Facts  # as all that follows: no part of the start

        return Facts(
            version=__version__,
            uptime=time.monotonic() - self._options.since,
            generation=self.generation,
            document=self._served.document,
            config=self._options.config,
            errors=tuple(self.errors),
            listeners=tuple(self._listeners.names),
            admin=tuple(self._admin.urls),
            wanted=self._workers.count,
            restarts=self._workers.restarts,
            lost=self._workers.lost_exchanges,
            dropped=0 if self._writer is None else self._writer.dropped,
            usage_store=self._usage.path,
            usage_error=self._usage.error,
        )

    def status(self) -> dict[str, Any]:
        from aigw.status import status

        return status(self.facts, self._cells, self._own_meters()) | {"ready": self.is_ready}

    def metrics(self) -> tuple[bytes, bytes]:
        """Content type and text."""
        from aigw import metrics

        return metrics.CONTENT_TYPE, metrics.render(self.facts, self._cells)

    async def usage(self, query: Mapping[str, str]) -> dict[str, Any]:
        """See `admin.api.Usage`."""
        try:
            return await self._usage.ask(Question.of(query, time.time()))
        except NotKept as error:
            raise Refused(503, "usage_unavailable", str(error)) from None

    def _restore(self, windows: list[tuple[int, int, int, int]]) -> None:
        """What earlier runs used of budgets that are not over."""
        own, now = self._own_meters(), time.monotonic()
        for window in windows:
            meters.restore(own, *window, now)

    def _own_meters(self) -> meters.Meters:
        if self._meters is None:
            self._meters = meters.Meters(self._cells, SUPERVISOR)
        self._meters.wall_offset = time.time() - time.monotonic()
        return self._meters

    def explain(self, sample: dict[str, Any], record: dict[str, Any] | None) -> dict[str, Any]:
        """What would be done with a request; `record` is of an exchange that it shall be like. Raises: SampleError."""
        from aigw.config import snapshot
        from aigw.explain import Moment, explain
        from aigw.policies.limits import Limits
        from aigw.sample import sample_of
        from aigw.status import Present

        if self._snapshot is None or self._snapshot.generation != self.generation:
            self._snapshot = snapshot.compile(self._served.document, self.generation)
        own = self._own_meters()
        present = Present(self._cells, self._served.document, own)
        moment = Moment(Limits(own, lambda *_: None), time.monotonic())
        return explain(self._snapshot, sample_of(self._snapshot, sample, record), time.time(), present, moment)

    # --- what the admin API asks

    @property
    def turn(self) -> asyncio.Lock:
        return self._turn

    @property
    def config_path(self) -> str | None:
        return self._options.config

    @property
    def is_ready(self) -> bool:
        return bool(self.generation and self._workers.serving) and not self._stop.is_set()

    def lagging(self) -> tuple[int, list[int]]:
        return self._coming, self._workers.lagging(self._coming)

    def changes(self, compiled: dict[str, Any]) -> list[dict[str, str]]:
        reading = source.laid_over(compiled, self._options)
        before = {"admin": self._served.admin, **self._served.document}
        return changes(before, {"admin": reading.admin, **reading.document})

    # --- end

    async def _drain(self) -> int:
        """Readiness turns red, then all finish what runs; 0 if nothing had to be cut."""
        notify("STOPPING=1")
        times = self._served.document["drain"]
        self._workers.unready()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._now.wait(), times["delay"])
        await self._admin.freeze()
        for task in self._tasks:  # a reload that has not finished by now will not be missed
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listeners.close()  # the workers' copies are the last now: when they close them, clients are refused
        return 0 if await self._workers.drain(times["timeout"], self._now) else 1

    async def _clean_up(self) -> None:
        if self._config.poll() is None:
            self._config.kill()
            self._config.wait()
        await self._admin.close()
        await self._workers.close()
        await self._usage.close()  # who used what is complete now
        if self._writer is None:
            self._first.records.close()
        else:
            await self._writer.close()
        self._listeners.close()
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
        self._workers.reap()

    def _stopped(self, name: str) -> None:
        if not self._stop.is_set():
            log(f"{name}: finishing what runs; once more to end now")
            self._stop.set()
        else:
            self._now.set()

    def _hung_up(self) -> None:
        if self._on_terminal and not os.isatty(0):  # the terminal was closed: nobody is there to end it later
            self._stopped("SIGHUP")
        elif not self.generation or self._stop.is_set():
            log("SIGHUP: the config is read again only while it is served")
        else:
            self._task(self.reload("SIGHUP"))

    def _reopen(self) -> None:
        if self._writer is not None:
            self._writer.reopen()

    def _task(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """One that ends with the gateway."""
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _addresses(document: source.Document) -> list[str]:
    return [listener["address"] for listener in document["listen"]]


def _secure(document: source.Document) -> set[str]:
    """The keys of the listeners with TLS."""
    keys = listen.keys(_addresses(document))
    return {key for key, entry in zip(keys, document["listen"], strict=True) if "tls" in entry}


def _no_log(document: source.Document, error: OSError) -> str:
    return f"access_log: cannot open {document['access_log']}: {error.strerror}; it must be a writable file"


def _private_folder() -> str:
    """A new folder that only this user may enter, with a name short enough for a socket in it (108 bytes on Linux)."""
    parent = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="aigw-", dir=parent if len(os.fsencode(parent)) < 70 else "/tmp")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    return folder


def run(options: Options, cells: Cells, config: subprocess.Popen[bytes], worker: WorkerProcess) -> int:
    """Supervises what was started until a signal; the exit status. See `Supervisor.run`."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(Faults())
        return await Supervisor(loop, options, cells, config, worker).run()

    return asyncio.run(main())
