"""The workers of a gateway as one: as many as wanted, one document, every socket accepted on by somebody.

A place is a worker's number, with the sockets that are its own; a process in it comes and goes. A new document reaches
all workers in two steps: each prepares it beside what it serves, and when all have, each switches, which is one
assignment. So either all get it or none. A worker that dies is replaced at once, then with growing pauses while it
keeps dying young; what its sockets bring meanwhile waits, or goes to the others when it takes long.

It decides nothing about the config and reads no signal. It knows workers by `WorkerHandle`.
"""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from aigw import meters, shared
from aigw.config import lines
from aigw.handle import WorkerHandle
from aigw.listen import ListenError, Listening, share
from aigw.process import WorkerProcess, describe_exit, log, start_worker
from aigw.records import Writer

GRACE = 5.0  # seconds beyond its drain time that a worker may take to exit ...
GRACE_NOW = 2.0  # ... and after a second signal
STABLE = 10.0  # seconds: a worker that died younger than this makes the next one wait
BACK_OFF = (0.2, 10.0)  # seconds before a second short-lived worker is replaced, doubled up to the second
ORPHANED = 1.0  # seconds after which the sockets of a worker that was not replaced go to the others
LOOK = 1.0  # seconds between two looks at the workers' heartbeats
LATE = 2.0  # seconds after the others, in which a worker prepares a document or is not waited for
STALE = 10_000  # milliseconds without a sign of life after which, at two looks, a worker is killed


@dataclass(frozen=True, slots=True)
class Version:
    """A document on its way to workers; `pieces` are made once for all of them."""

    generation: int
    document: lines.Document
    pieces: bytes
    mock_folder: str | None

    def __repr__(self) -> str:  # the document holds credentials
        return f"<Version {self.generation}>"


class Place:
    """One worker's number, the process in it, and whether that accepts clients."""

    __slots__ = ("handle", "keeper", "number", "row", "serving", "young")

    def __init__(self, number: int, row: int, handle: WorkerHandle) -> None:
        self.number = number
        self.row = row  # of the cells, which the process writes
        self.handle = handle
        self.serving = False
        self.young = 0  # processes in a row that died young
        self.keeper: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Place {self.number} {'serving' if self.serving else 'not serving'} {self.handle!r}>"


class Workers:
    """`adopt` the first one, `start`, then `apply` whenever something changed, `drain` at the end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cells: shared.Cells) -> None:
        # wiring
        self._loop = loop
        self._cells = cells
        self._writer: Writer | None = None  # from `start`
        # the workers: by number; those that are wanted no more and finish what runs; by row, every process not buried
        self._places: dict[int, Place] = {}
        self._retired: set[Place] = set()
        self._processes: dict[int, WorkerHandle] = {}
        self._suspects: set[int] = set()  # pids that gave no sign of life at the last look
        # what they have
        self._version: Version | None = None
        self._sockets: list[Listening] = []
        self._turn = asyncio.Lock()  # a document reaches a new worker before or after it reaches the others
        self._sharing = asyncio.Lock()
        # the end
        self._unready = False
        self._ending = False
        self._lost = 0  # workers that died since it began
        self._tasks: set[asyncio.Task[Any]] = set()
        self.restarts = 0
        self.lost_exchanges = 0  # that ended with their worker

    def __repr__(self) -> str:
        return f"<Workers {len(self.serving)} of {len(self._places)} serving, {len(self._retired)} retired>"

    @property
    def serving(self) -> list[Place]:
        return [place for place in self._places.values() if place.serving]

    @property
    def count(self) -> int:
        return len(self._places)

    def lagging(self, generation: int) -> list[int]:
        """Processes that do not serve by this document, or a later one."""
        return [p.handle.pid for p in self._places.values() if not p.serving or p.handle.generation < generation]

    def reap(self) -> None:
        """After SIGCHLD."""
        for handle in list(self._processes.values()):
            handle.reap()

    # --- processes

    def adopt(self, started: WorkerProcess) -> None:
        """The first worker, which was started with row 0 before this object was there."""
        self._places[0] = self._place(0, 0, started)

    def _place(self, number: int, row: int, started: WorkerProcess) -> Place:
        handle = self._processes[row] = WorkerHandle(self._loop, started)
        return Place(number, row, handle)

    def _spawn(self, number: int) -> Place:
        """Raises: OSError, when the system refuses another process."""
        row = next((row for row in range(shared.ROWS) if row not in self._processes), None)
        if row is None:
            raise OSError(errno.EAGAIN, f"there are {shared.ROWS} already")
        self._cells.use(row)
        started = start_worker(self._cells.descriptor, row)
        if self._writer is not None:
            self._writer.attach(started.records)
        return self._place(number, row, started)

    async def start(self, version: Version, count: int, sockets: list[Listening], writer: Writer) -> str:
        """Lets `count` workers serve. Answers "" or why one cannot."""
        self._writer = writer
        self._task(self._watch())

        async def bind() -> list[Listening]:
            return sockets

        return await self.apply(version, count, bind)

    async def apply(self, version: Version, count: int, bind: Callable[[], Awaitable[list[Listening]]]) -> str:
        """Another document, other sockets, another number of workers: all of it, or nothing and the reason why.

        `bind` makes the sockets, as late as can be, since clients come to them from that moment on; it may raise
        ListenError; what else it raises comes through. Then nothing has changed. It must have closed the caller's
        copies of those that it leaves out: then the workers' are the last, and accept who waits there before they
        close.
        """
        async with self._turn:
            made: list[Place] = []
            try:
                made += (self._spawn(number) for number in range(count) if number not in self._places)
            except OSError as error:
                why = f"no worker can be started: {error.strerror}"
            else:
                why = await self._prepare([*self._present(), *made], version)
            if not why:
                try:
                    self._sockets = await bind()
                except ListenError as error:
                    why = str(error)
                except BaseException:
                    await asyncio.gather(*map(self._end, made))
                    raise
            if why:
                await asyncio.gather(*map(self._end, made))
                return why
            self._version = version
            surplus = [self._places.pop(number) for number in list(self._places) if number >= count]
            self._places |= {place.number: place for place in made}
            failed = await asyncio.gather(*(self._switch(place) for place in self._present()))
            is_start = all(place.keeper is None for place in self._places.values())
            if is_start and any(failed):
                return next(filter(None, failed))
            for place in self._places.values():
                if place.keeper is None:
                    place.keeper = self._task(self._keep(place))
            await self._share_out()
            for place in surplus:
                if place.serving:
                    self._retire(place)
                else:
                    await self._end(place)
            return ""

    def _present(self) -> list[Place]:
        """Those that have a document, and those that are about to get their first one."""
        return [place for place in self._places.values() if place.serving or place.keeper is None]

    async def _prepare(self, places: list[Place], version: Version) -> str:
        """Answers "" when every worker has prepared the document, or has died, so that it will be replaced.

        What one has prepared the others can: who is `LATE` with it switches when it comes to it, and is killed if not.
        """
        asked = {
            self._task(place.handle.prepare(version.pieces, version.generation)): (place, place.handle)
            for place in places
        }  # with the handle, since who dies meanwhile may be replaced meanwhile
        pending: set[asyncio.Task[str]] = set(asked)
        patience = None
        while pending:
            done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                break
            if not all(task.result() for task in done):
                patience = LATE
        for task, (place, handle) in asked.items():
            why = task.result() if task.done() else ""
            if why and place.keeper is None:
                return why
            if why and not handle.ended.done():
                return f"worker {handle.pid}: {why}"
        return ""

    async def _switch(self, place: Place) -> str:
        version = self._version
        assert version is not None
        folder = version.mock_folder
        mock_socket = None if folder is None else os.path.join(folder, f"mock-{place.row}.sock")
        why = await place.handle.switch(version.generation, mock_socket)
        if why:
            self._disown(place, why)
        else:
            place.serving = True
            if self._unready:
                place.handle.unready()
        return why

    def _disown(self, place: Place, why: str) -> None:
        """It did not do what it must be able to do: another one will."""
        place.serving = False
        if not place.handle.ended.done():
            log(f"worker {place.handle.pid} does not serve: {why}")
            place.handle.kill()

    async def _share_out(self) -> None:
        """Every socket to a worker that serves: first those who get more are told, then those who get less."""
        async with self._sharing:
            shares = share(self._sockets, [place.number for place in self.serving])
            changed = [place for place in self.serving if self._numbers(shares[place.number]) != place.handle.sockets]
            gaining = [place for place in changed if self._numbers(shares[place.number]) - place.handle.sockets]
            for places in (gaining, [place for place in changed if place not in gaining]):
                await asyncio.gather(*(self._listen(place, shares[place.number]) for place in places))

    @staticmethod
    def _numbers(entries: list[Listening]) -> set[int]:
        return {entry.number for entry in entries}

    async def _listen(self, place: Place, sockets: list[Listening]) -> None:
        why = await place.handle.listen(sockets)
        if why:
            self._disown(place, why)

    # --- keep

    async def _keep(self, place: Place) -> None:
        """Replaces the process of a place whenever it dies."""
        while True:
            handle = place.handle
            await asyncio.wait({handle.ended})  # which, unlike a bare await, is not cancelled with this task
            self._bury(place)
            if self._ending or place in self._retired:
                self._retired.discard(place)
                return
            place.young = 0 if self._loop.time() - handle.since >= STABLE else place.young + 1
            pause = 0.0 if place.young < 2 else min(BACK_OFF[0] * 2 ** (place.young - 2), BACK_OFF[1])
            when = f"in {pause:.1f} s" if pause else "now"
            log(f"worker {handle.pid} {describe_exit(handle.ended.result())}; the next one starts {when}")
            orphaned = self._loop.call_later(ORPHANED, self._hand_over, place)
            await asyncio.sleep(pause)
            await self._replace(place)
            orphaned.cancel()

    def _hand_over(self, place: Place) -> None:
        if not place.serving and not self._ending:
            self._task(self._share_out())

    async def _replace(self, place: Place) -> None:
        while True:
            try:
                new = self._spawn(place.number)
                break
            except OSError as error:
                log(f"no worker can be started: {error.strerror}; the next try is in {BACK_OFF[0]} s")
                await asyncio.sleep(BACK_OFF[0])
        self.restarts += 1
        place.row, place.handle = new.row, new.handle
        async with self._turn:
            version = self._version
            assert version is not None
            why = await place.handle.prepare(version.pieces, version.generation)
            if why:
                self._disown(place, why)
            elif self._places.get(place.number) is place:
                await self._switch(place)
                await self._share_out()
        if place.serving:
            log(f"worker {place.handle.pid} serves")

    def _bury(self, place: Place) -> None:
        """What the dead worker was is nothing any more; what ran in it has ended, and the log says so."""
        handle = place.handle
        place.serving = False
        was = self._bury_row(place.row)
        del self._processes[place.row]
        self._suspects.discard(handle.pid)
        if handle.cut is None:
            self._lost += 1
            self.lost_exchanges += was[shared.IN_FLIGHT]
            if self._writer is not None:
                now = time.time()
                record = {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z",
                    "end": "worker_lost",
                    "fault": "gateway",
                    "exchanges": was[shared.IN_FLIGHT],
                    "worker": handle.pid,
                    "generation": was[shared.GENERATION],
                }
                self._writer.put(orjson.dumps(record) + b"\n")

    def _bury_row(self, row: int) -> dict[int, int]:
        meters.bury(self._cells, row, time.monotonic())
        return self._cells.bury(row)

    async def _watch(self) -> None:
        """Kills a worker that gives no sign of life: at two looks, since this process may have been stopped as well."""
        while True:
            await asyncio.sleep(LOOK)
            now = int(time.monotonic() * 1000)
            silent = {
                place.handle.pid: place
                for place in [*self.serving, *self._retired]
                if now - self._cells.row(place.row)[shared.HEARTBEAT] > STALE
            }
            for pid in silent.keys() & self._suspects:
                log(f"worker {pid} has given no sign of life for {STALE // 1000} s; it is killed")
                silent[pid].handle.kill()
            self._suspects = set(silent)

    # --- end

    def _retire(self, place: Place) -> None:
        """Wanted no more; the others accept on its sockets. Its clients learn with their next answer to reconnect."""
        place.serving = False
        self._retired.add(place)
        assert self._version is not None
        timeout = self._version.document["drain"]["timeout"]
        log(f"worker {place.handle.pid} is wanted no more; it finishes what runs")
        place.handle.drain(timeout, idle=timeout)
        self._task(self._outlast(place, timeout + GRACE))

    async def _outlast(self, place: Place, seconds: float) -> None:
        await asyncio.wait({place.handle.ended}, timeout=seconds)
        if not place.handle.ended.done():
            log(f"worker {place.handle.pid} does not end by itself; it is killed")
            place.handle.kill()

    def unready(self) -> None:
        """Readiness turns red in all workers, and in those to come. They go on serving."""
        self._unready = True
        self._lost = 0
        for place in self.serving:
            place.handle.unready()

    async def drain(self, patience: float, now: asyncio.Event) -> bool:
        """Lets all finish what runs, for `patience` seconds or until `now`; True if nothing had to be cut."""
        self._ending = True
        for place in self._places.values():
            if not place.serving:  # it has no client yet
                await self._end(place)
        living = [place for place in [*self._places.values(), *self._retired] if not place.handle.ended.done()]
        await asyncio.gather(*(self._let_finish(place.handle, patience, now) for place in living))
        cuts = [place.handle.cut for place in living]
        total = sum(cut for cut in cuts if cut)
        if total:
            log(f"{total} exchange{'' if total == 1 else 's'} had to be cut; drain.timeout decides how long they get")
        return not total and None not in cuts and not self._lost

    async def _let_finish(self, handle: WorkerHandle, patience: float, now: asyncio.Event) -> None:
        handle.drain(patience)
        wanted = asyncio.create_task(now.wait())
        awaited: set[asyncio.Future[Any]] = {handle.ended, wanted}
        await asyncio.wait(awaited, timeout=patience + GRACE, return_when=asyncio.FIRST_COMPLETED)
        wanted.cancel()
        if now.is_set() and not handle.ended.done():
            handle.drain(0.0)
            await asyncio.wait({handle.ended}, timeout=GRACE_NOW)
        if not handle.ended.done():
            log(f"worker {handle.pid} does not end by itself; it is killed")
            handle.kill()
            await asyncio.wait({handle.ended})
        if handle.cut is None:
            log(f"worker {handle.pid} {describe_exit(handle.ended.result())} before it had finished what ran")

    async def _end(self, place: Place) -> None:
        """Ends a process that serves nobody."""
        if place.keeper is not None:
            place.keeper.cancel()
        if not place.handle.ended.done():
            place.handle.kill()
            await asyncio.wait({place.handle.ended})
        if self._processes.get(place.row) is place.handle:  # else its row is another one's by now
            del self._processes[place.row]
            self._bury_row(place.row)

    async def close(self) -> None:
        """Ends what is left, at once."""
        self._ending = True
        for task in self._tasks:
            task.cancel()
        for place in [*self._places.values(), *self._retired]:
            await self._end(place)
        for handle in self._processes.values():  # of a reload that was broken off
            handle.kill()
            await asyncio.wait({handle.ended})

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
