"""Who used what, kept over restarts: what the workers count by account, written to a file once a second by a thread.

    cells (USAGE, all rows) --> differences since the last look, by hour --> UsageFile
                                        |
    GET /usage <------------------------'  what the file does not take (yet) is part of the answer

    cells (meters of days and months) --> as they are --> UsageFile --> when it is first opened, back to the meters

The cells outlive workers, so that one that is killed loses nothing; when the whole gateway dies, or the machine, what
was counted in the last second is lost. The file may be full, locked, damaged or gone: no exchange ever waits for it,
what it does not take is kept as sums and written later. Hours are those of the moment at which a difference was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aigw import meters
from aigw.config import values
from aigw.counters import ERRORS, FINE, UNPRICED, USAGE, Account, account_of
from aigw.process import describe_error
from aigw.shared import Cells
from aigw.tokens import CLASSES

if TYPE_CHECKING:
    from aigw.usagefile import UsageFile, Window

EVERY: Final = 1.0  # seconds between two writes
AGAIN: Final = 3600.0  # seconds after which it is said again that the file cannot be used
PATIENCE: Final = 5.0  # seconds for the last write
# Sums of hours and accounts, of 1 KiB each, that are held while the file takes none; above it their hours are given up.
MOST_HELD: Final = 20_000
MOST_ITEMS: Final = 10_000  # of an answer
HOUR: Final = 3600
DAY: Final = 24 * HOUR
ALWAYS: Final = 0.0
FOREVER: Final = float("inf")

PER: Final = ("hour", "day", "month")
PARAMETERS: Final = ("by", "from", "to", "per")


class NotKept(Exception):
    """Why there is no answer: no usage is kept, or it cannot be read now."""


@dataclass(frozen=True, slots=True)
class Question:
    """Usage from `start` until before `end` (epoch seconds, whole hours), by some of an account's names, and by hour,
    day or month, if `per` says so."""

    by: tuple[str, ...] = ()
    start: float = ALWAYS
    end: float = FOREVER
    per: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str], now: float) -> Question:
        """What a query asks. Raises: ValueError, with what would be right."""
        by = tuple(name for name in query.get("by", "").split(",") if name)
        for name in by:
            if name not in Account._fields or by.count(name) > 1:
                raise ValueError(f"by takes some of {', '.join(Account._fields)}, each once: by=key,model")
        per = query.get("per", "")
        if per not in ("", *PER):
            raise ValueError(f"per takes one of {', '.join(PER)}")
        start = _moment(query, "from", now) // HOUR * HOUR if "from" in query else ALWAYS
        end = -(-_moment(query, "to", now) // HOUR) * HOUR if "to" in query else FOREVER
        if start >= end:
            raise ValueError("from must be before to")
        return cls(by, start, end, per)


def _moment(query: Mapping[str, str], name: str, now: float) -> float:
    text = query[name]
    try:
        return now - (values.duration()(text) or 0.0)
    except ValueError:
        pass
    try:
        return values.date(text)
    except ValueError:
        wanted = "a date such as 2027-01-31 or 2027-01-31T18:00:00Z, or how long ago, such as 24h or 30d"
        raise ValueError(f"{name} must be {wanted}") from None


class UsageStore:
    """`retarget` says where to; `close` writes what is left. `report` takes a line for the operator, `restore` the
    windows of the run before, in the thread, `clock` answers epoch seconds."""

    def __init__(
        self,
        cells: Cells,
        report: Callable[[str], None],
        restore: Callable[[list[Window]], object],
        clock: Callable[[], float] = time.time,
    ) -> None:
        # wiring
        self._cells = cells
        self._report = report
        self._restore = restore
        self._clock = clock
        self._thread: threading.Thread | None = None  # from the first target on
        # between the loop and the thread, under this lock
        self._wake = threading.Condition()
        self._wanted: Mapping[str, Any] | None = None  # the config's path and retention; None: nothing is kept
        self._has_changed = False
        self._is_first = True  # no target was given yet
        self._counts_all = True  # what the cells hold is to be kept, whenever it was counted
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._finished: Callable[[], None] | None = None  # the thread's last call
        # the thread's own
        self._target: Mapping[str, Any] | None = None
        self._file: UsageFile | None = None
        self._before: dict[bytes, list[int]] = {}  # what was counted at the last look
        self._held: dict[tuple[int, Account], list[int]] = {}
        self._windows: set[Window] = set()  # as the file has them
        self._has_restored = False
        self._swept = 0  # the hour in which what is too old was deleted
        self._said = 0.0
        self.error = ""  # why the file takes nothing now

    def __repr__(self) -> str:
        return f"<UsageStore {self.path} {len(self._held)} held>"

    @property
    def path(self) -> str | None:
        return None if self._wanted is None else self._wanted["path"]

    def retarget(self, target: Mapping[str, Any] | None) -> None:
        """Keeps usage in another file from now on (`path`, `retention` in seconds), or none. Never waits."""
        with self._wake:
            is_first, self._is_first = self._is_first, False
            if target == self._wanted:
                return
            self._counts_all = is_first or self._wanted is not None
            self._wanted = target
            self._has_changed = True
            self._wake.notify()
        if self._thread is None:
            # a daemon: a write that never returns must not keep the process from ending
            self._thread = threading.Thread(target=self._run, name="usage", daemon=True)
            self._thread.start()

    async def ask(self, question: Question) -> dict[str, Any]:
        """What `GET /usage` answers. Raises: NotKept."""
        found: dict[str, Any] = await self._do(lambda: self._answer(question))
        return found

    async def opened(self) -> None:
        """Returns when the file was tried, and what it has of budgets given to `restore`."""
        if self._wanted is not None:
            await self._do(lambda: None)

    async def _do(self, job: Callable[[], Any]) -> Any:
        """In the thread, after a look at the cells and a write."""
        future: Future[Any] = Future()
        with self._wake:
            if self._wanted is None:
                raise NotKept("usage is not kept: usage_store is off")
            if self._finished is not None:
                raise NotKept("the gateway is about to end")
            self._jobs.append((job, future))
            self._wake.notify()
        return await asyncio.wrap_future(future)

    async def close(self) -> None:
        """Lets the thread write what there is, for `PATIENCE` seconds."""
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        finished = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # a stuck write may return when the loop is long closed
                loop.call_soon_threadsafe(finished.set)

        with self._wake:
            self._finished = tell
            self._wake.notify()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(finished.wait(), PATIENCE)

    # --- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(
                    lambda: self._jobs or self._has_changed or self._finished,
                    None if self._target is None else EVERY,
                )
                jobs, self._jobs = self._jobs, []
                wanted, finished = self._wanted, self._finished
                self._has_changed = False
            self._step()
            if wanted != self._target:
                self._turn_to(wanted)
            for job, future in jobs:
                if not future.set_running_or_notify_cancel():
                    continue  # who asked is gone
                try:
                    future.set_result(job())
                except Exception as error:
                    future.set_exception(error)
            if finished is not None:
                self._drop_file()
                finished()
                return

    def _turn_to(self, wanted: Mapping[str, Any] | None) -> None:
        self._drop_file()
        if wanted is None:
            self._held.clear()
        elif not self._counts_all:
            self._before = self._cells.totals(USAGE)
        self._target = wanted
        self._windows = set()
        self._swept = 0
        self.error = ""
        self._step()

    def _drop_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _step(self) -> None:
        """One look at the cells, and one write. Whatever happens, it is done again a second later."""
        if self._target is None:
            return
        from aigw.usagefile import Damaged, Unusable, set_aside  # SQLite: no part of the start

        path = self._target["path"]
        try:
            self._gather()
            try:
                self._write()
            except Damaged as error:
                self._drop_file()
                aside = set_aside(path)
                self._report(f"usage_store: {path} is damaged ({error}); it is kept as {aside}, a new one begins")
                self._write()
        except Unusable as error:
            self._failed(f"{path}: {error}")
        except Exception as error:  # a fault of ours; the thread must live
            self._failed(describe_error(error))
        else:
            if self.error:
                self._report(f"usage_store: {path} is written again")
            self.error = ""

    def _failed(self, why: str) -> None:
        now = time.monotonic()
        if why != self.error or now - self._said >= AGAIN:
            self._said = now
            self._report(f"usage_store: {why}; usage is kept in memory, and written once that is possible")
        self.error = why

    def _gather(self) -> None:
        """What was counted since the last look goes to the sums of this hour."""
        hour = int(self._clock()) // HOUR * HOUR
        for text, now in self._cells.totals(USAGE).items():
            before = self._before.get(text)
            if now != before:
                more = now if before is None else [new - old for new, old in zip(now, before, strict=True)]
                if any(more):
                    counts = [more[FINE] + more[ERRORS], more[ERRORS], *more[UNPRICED:]]
                    _add(self._held, (hour, account_of(text)), counts)
                self._before[text] = now
        if len(self._held) > MOST_HELD:
            coarse: dict[tuple[int, Account], list[int]] = {}
            for (_, account), counts in self._held.items():
                _add(coarse, (hour, account), counts)
            self._held = coarse

    def _write(self) -> None:
        from aigw.usagefile import UsageFile

        assert self._target is not None
        if self._file is not None and self._file.has_moved:
            self._drop_file()
        if self._file is None:
            self._file = UsageFile(self._target["path"])
            self._windows = set()
        windows = set(meters.windows(self._cells)) if self._has_restored else set()
        if not self._has_restored:
            self._restore(self._file.windows())
            self._has_restored = True
        if self._held or windows - self._windows:
            self._file.add(self._held, windows - self._windows)
            self._held.clear()
            self._windows = windows
        now = self._clock()
        if self._swept != now // HOUR:
            self._file.sweep(now - self._target["retention"], now)
            self._swept = int(now // HOUR)

    def _answer(self, question: Question) -> dict[str, Any]:
        from aigw.usagefile import Unusable

        sums: dict[tuple[str, Account], list[int]] = {}
        step = {"": 0, "hour": HOUR}.get(question.per, DAY)
        try:
            if self._file is None:
                raise NotKept(f"usage cannot be read: {self.error}")
            for begin, account, counts in self._file.select(question.start, question.end, question.by, step):
                _add(sums, (_span(begin, question.per), account), counts)
                if len(sums) > MOST_ITEMS:
                    break
        except Unusable as error:
            raise NotKept(f"usage cannot be read: {error}") from None
        for (hour, account), counts in self._held.items():
            if question.start <= hour < question.end:
                names = [name if field in question.by else "" for field, name in account._asdict().items()]
                _add(sums, (_span(hour, question.per), Account(*names)), counts)
        if len(sums) > MOST_ITEMS:
            raise ValueError(f"that is more than {MOST_ITEMS} items; ask for less time, for less in by, or without per")
        ordered = sorted(sums.items(), key=lambda item: (item[0][0], -item[1][-1], -item[1][0], item[0][1]))
        return {
            "from": _time(question.start) if question.start else None,
            "to": _time(question.end) if question.end != FOREVER else None,
            "per": question.per or None,
            "by": list(question.by),
            "items": [_item(question, span, account, counts) for (span, account), counts in ordered],
        }


def _add(sums: dict[Any, list[int]], key: Any, counts: list[int]) -> None:
    known = sums.get(key)
    sums[key] = counts if known is None else [one + other for one, other in zip(known, counts, strict=True)]


def _span(begin: int, per: str) -> str:
    """Where an hour belongs, as the answer names it: by its begin."""
    if not per:
        return ""
    return _time(begin) if per == "hour" else _time(begin)[: 10 if per == "day" else 7]


def _time(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _item(question: Question, span: str, account: Account, counts: list[int]) -> dict[str, Any]:
    requests, errors, unpriced, *tokens, cost = counts
    return {
        **({"time": span} if span else {}),
        **{name: getattr(account, name) for name in question.by},
        "requests": requests,
        "errors": errors,
        "tokens": dict(zip(CLASSES, tokens, strict=True)),
        "cost": cost / 1e9,
        "unpriced": unpriced,
    }
