"""The file that usage is kept in: SQLite, one line for each hour and account that used something, and one for each
budget of a day or a month.

    usage(hour, gateway, rule, key, group, model, upstream, requests, errors, unpriced, TOKENS..., cost)
    windows(meter, span, begin, used)

`hour` and `begin` are epoch seconds, `cost` is nano-dollars; a line of `windows` is what `meters.windows` says. Numbers
of usage are added to those that stand there, windows replaced: one gateway keeps a file. Every write is one transaction
that is on the disk when it returns. A file belongs to the thread that opened it; whatever it does may take as long as
the disk takes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from aigw.counters import Account
from aigw.logfile import FILE_MODE
from aigw.tokens import CLASSES

VERSION: Final = 1  # of the tables; kept in the file's header (PRAGMA user_version)
APPLICATION: Final = 0x61696777  # "aigw": whose file it is, by its header (PRAGMA application_id)
BUSY: Final = 2.0  # seconds that another process may lock it
PASSED: Final = 32 * 86400.0  # seconds after which a window has ended, whatever its span
MAGIC: Final = b"SQLite format 3\0"  # how such a file begins; a zeroed one was damaged (sqlite.org/fileformat2.html)

NAMES: Final = Account._fields
COUNTS: Final = ("requests", "errors", "unpriced", *CLASSES, "cost")

Sums = Mapping[tuple[int, Account], list[int]]
"""By hour and account, COUNTS."""

Window = tuple[int, int, int, int]
"""Meter, span, begin, used."""

_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_KEYS: Final = ", ".join(f'"{name}"' for name in ("hour", *NAMES))
_TABLE: Final = (
    "CREATE TABLE usage (hour INTEGER NOT NULL, "
    + "".join(f'"{name}" TEXT NOT NULL, ' for name in NAMES)
    + "".join(f"{name} INTEGER NOT NULL, " for name in COUNTS)
    + f"PRIMARY KEY ({_KEYS})) WITHOUT ROWID"
)
_WINDOWS: Final = (
    "CREATE TABLE windows (meter INTEGER, span INTEGER, begin INTEGER NOT NULL, used INTEGER NOT NULL, "
    "PRIMARY KEY (meter, span)) WITHOUT ROWID"
)
_ADD: Final = (
    f"INSERT INTO usage VALUES ({', '.join('?' * (1 + len(NAMES) + len(COUNTS)))}) ON CONFLICT ({_KEYS}) "
    f"DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in COUNTS)}"
)


class Unusable(Exception):
    """Why nothing can be written or read now, for the operator."""


class Damaged(Unusable):
    """The file is broken, and will not get better: see `set_aside`."""


class UsageFile:
    """Raises: Unusable, here and wherever the file is touched; nothing has been written then."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._at = _create(path)
        with _told():
            self._db = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
        try:
            with _told():
                self._prepare()
        except Unusable:
            self._db.close()
            raise

    def __repr__(self) -> str:
        return f"<UsageFile {self.path}>"

    def _prepare(self) -> None:
        (owner,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if owner != APPLICATION and (owner or version or tables):
            raise Unusable("is the SQLite file of another program; usage_store needs a file of its own")
        if version > VERSION:
            raise Unusable(
                f"was written by a newer aigw (its version is {version}, here {VERSION}); use that, or another file"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # in WAL mode NORMAL syncs at checkpoints only
        if not version:
            with self._transaction():
                self._db.execute(_TABLE)
                self._db.execute(_WINDOWS)
                self._db.execute(f"PRAGMA application_id = {APPLICATION}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # some errors have ended it already
                self._db.execute("ROLLBACK")
            raise

    @property
    def has_moved(self) -> bool:
        """Another file stands under its name, or none: what is written now would be lost."""
        return _identity(self.path) != self._at

    def windows(self) -> list[Window]:
        """All that were kept, those that have passed as well."""
        with _told():
            return self._db.execute("SELECT meter, span, begin, used FROM windows").fetchall()

    def add(self, sums: Sums, windows: Iterable[Window]) -> None:
        with _told(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO windows VALUES (?, ?, ?, ?)", windows)
            self._db.executemany(_ADD, [(hour, *account, *counts) for (hour, account), counts in sums.items()])

    def sweep(self, before: float, now: float) -> None:
        """Deletes what is of hours that began before that moment (epoch seconds), and windows of old."""
        with _told(), self._transaction():
            self._db.execute("DELETE FROM windows WHERE begin < ?", (now - PASSED,))
            self._db.execute("DELETE FROM usage WHERE hour < ?", (before,))

    def select(
        self, start: float, end: float, names: tuple[str, ...], step: int
    ) -> Iterator[tuple[int, Account, list[int]]]:
        """What was used from `start` until before `end`, summed over what is not in `names`, which are "" then, and
        over spans of `step` seconds (0: all of it), by the begin of each."""
        span = f"hour - hour % {step}" if step else "0"
        grouped = [f'"{name}"' if name in names else "''" for name in NAMES]
        groups = ", ".join(map(str, range(1, 2 + len(NAMES))))
        with _told():
            yield from (
                (row[0], Account(*row[1 : 1 + len(NAMES)]), list(row[1 + len(NAMES) :]))
                for row in self._db.execute(
                    f"SELECT {span}, {', '.join(grouped)}, {', '.join(f'SUM({name})' for name in COUNTS)} FROM usage "
                    f"WHERE hour >= ? AND hour < ? GROUP BY {groups}",
                    (start, end),
                )
            )

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # what was written is safe in any case
            self._db.close()


def set_aside(path: str) -> str:
    """Gives a damaged file another name, which is answered. Its journal goes first: beside a new file it would be taken
    for that one's. Raises: Unusable."""
    aside = f"{path}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    with _told():
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(path + suffix, aside + suffix)
        os.rename(path, aside)
    return aside


def _create(path: str) -> tuple[int, int]:
    """The identity of the file at `path`, which is made if there is none."""
    with _told():
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            begin = os.pread(descriptor, len(MAGIC), 0)
            there = os.fstat(descriptor)
        finally:
            os.close(descriptor)
    if begin != MAGIC and any(begin):
        raise Unusable("is no SQLite file; usage_store needs a file of its own")
    return there.st_dev, there.st_ino


def _identity(path: str) -> tuple[int, int] | None:
    try:
        there = os.stat(path)
    except OSError:
        return None
    return there.st_dev, there.st_ino


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors of SQLite and of the system in words that are fit to be logged: neither quotes what is stored."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of it is detail
        raise (Damaged if code in _DAMAGED else Unusable)(str(error)) from None
    except OSError as error:
        raise Unusable(error.strerror or type(error).__name__) from None
