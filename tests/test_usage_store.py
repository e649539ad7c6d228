"""Usage is kept whatever happens to its file: sums by hour and account, each exchange once, over restarts and errors.

What is read of files is read by SQLite's own module, in between; nothing else runs in these loops.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from counted import compile, counters, ended, made
from fakes import until

from aigw import meters, usage, usagefile
from aigw.counters import Counters
from aigw.errors import UPSTREAM_CUT, Failure
from aigw.meters import Meters, restore
from aigw.shared import Cells
from aigw.tokens import Tokens
from aigw.usage import NotKept, Question, UsageStore

__all__ = ["made"]

NOON = 1_764_590_400.0  # 2025-12-01T12:00:00Z
HOUR, DAY = 3600.0, 86400.0
SNAPSHOT = compile()


class World:
    """A store of two workers' cells, with a clock that stands still."""

    def __init__(self, cells: Cells, path: Path, retention: float = 90 * DAY) -> None:
        self.now = NOON + 1
        self.said: list[str] = []
        self.restored: list[tuple[int, int, int, int]] = []
        self.store = UsageStore(cells, self.said.append, self.restored.extend, lambda: self.now)
        self.target = {"path": str(path), "retention": retention}
        self._counting: list[Counters] = [counters(cells, row) for row in range(cells.rows_used)]

    def use(self, tokens: int = 1, cost: int | None = 5, *, row: int = 0, **asked: str) -> None:
        exchange = ended(SNAPSHOT, asked.get("model", "gpt-4o"), credential=asked.get("credential", "sk-demo"))
        self._counting[row].count(exchange, "ok", None, 1000.5, Tokens(tokens, 2), cost)

    async def close(self) -> None:
        await self.store.close()
        self._counting.clear()  # who hold views of the cells

    def fail(self) -> None:
        self._counting[0].count(ended(SNAPSHOT, status=502), "failed", Failure(UPSTREAM_CUT, ""), 1000.5, None)

    async def ask(self, **query: str) -> list[dict[str, Any]]:
        """The items, without what is always there but uninteresting."""
        items: list[dict[str, Any]] = (await self.store.ask(Question.of(query, self.now)))["items"]
        return items

    async def input(self) -> int:
        """All that was ever used; 0 where there is nothing."""
        return sum(item["tokens"]["input"] for item in await self.ask())


@asynccontextmanager
async def world(cells: Cells, path: Path, **more: float) -> AsyncIterator[World]:
    world = World(cells, path, **more)
    world.store.retarget(world.target)
    try:
        yield world
    finally:
        await world.close()


def stored(path: Path, what: str = "SUM(input)") -> Any:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT {what} FROM usage").fetchone()[0]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def test_who_used_what(made: Cells, tmp_path: Path) -> None:
    async with world(made, tmp_path / "usage.db") as run:
        run.use(100, 10**9)
        run.use(100, None, row=1)
        run.use(7, 5 * 10**8, credential="sk-team", model="claude-x")
        run.fail()
        assert await run.ask(by="key,model") == [
            {
                "key": "demo",
                "model": "gpt-4o",
                "requests": 3,
                "errors": 1,
                "tokens": {"input": 200, "output": 4, "cached": 0, "cache_write": 0, "reasoning": 0, "audio": 0},
                "cost": 1.0,
                "unpriced": 1,
            },
            {
                "key": "team",
                "model": "claude-*",
                "requests": 1,
                "errors": 0,
                "tokens": {"input": 7, "output": 2, "cached": 0, "cache_write": 0, "reasoning": 0, "audio": 0},
                "cost": 0.5,
                "unpriced": 0,
            },
        ]
        (both,) = await run.ask()
        assert (both["requests"], both["errors"], both["cost"], both["unpriced"]) == (4, 1, 1.5, 1)
        groups = await run.ask(by="group,gateway,rule,upstream")
        assert [(item["group"], item["gateway"], item["rule"], item["upstream"]) for item in groups] == [
            ("-", "main", "api", "up"),
            ("search", "main", "api", "up"),
        ]
    assert stored(tmp_path / "usage.db") == 207


async def test_by_hour_day_and_month(made: Cells, tmp_path: Path) -> None:
    async with world(made, tmp_path / "usage.db") as run:
        for later, used in ((0.0, 1), (HOUR, 10), (DAY, 100), (31 * DAY, 1000)):
            run.now = NOON + later
            run.use(used)
            await run.ask()
        spans = {
            per: {item["time"]: item["tokens"]["input"] for item in await run.ask(per=per)}
            for per in ("hour", "day", "month")
        }
        assert spans == {
            "hour": {
                "2025-12-01T12:00:00Z": 1,
                "2025-12-01T13:00:00Z": 10,
                "2025-12-02T12:00:00Z": 100,
                "2026-01-01T12:00:00Z": 1000,
            },
            "day": {"2025-12-01": 11, "2025-12-02": 100, "2026-01-01": 1000},
            "month": {"2025-12": 111, "2026-01": 1000},
        }
        assert list(spans["hour"]) == sorted(spans["hour"])
        ranges = {
            ("2025-12-01T13:00:00Z", "2026-01-01"): 110,
            ("2025-12-01T13:59:59Z", "2025-12-02T11:00:01Z"): 10,  # whole hours
        }
        for (start, end), used in ranges.items():
            found = await run.ask(**{"from": start, "to": end})
            assert sum(item["tokens"]["input"] for item in found) == used
        assert (await run.ask(**{"from": "30d"}))[0]["tokens"]["input"] == 1100
        answer = await run.store.ask(Question.of({"from": "2025-12-01T13:30:00Z", "per": "day"}, run.now))
        assert (answer["from"], answer["to"], answer["per"], answer["by"]) == ("2025-12-01T13:00:00Z", None, "day", [])


async def test_what_is_older_than_the_retention_is_deleted(made: Cells, tmp_path: Path) -> None:
    async with world(made, tmp_path / "usage.db", retention=2 * DAY) as run:
        for later, left in ((0.0, 1), (DAY, 2), (2 * DAY, 2), (3 * DAY, 2), (9 * DAY, 1)):
            run.now = NOON + later + 1
            run.use()
            await run.ask()
            assert len(await run.ask(per="hour")) == left


async def test_a_file_goes_on_where_the_run_before_ended(made: Cells, tmp_path: Path) -> None:
    async with world(made, tmp_path / "usage.db") as run:
        run.use(3)
    with closing(Cells(rows=2)) as cells:  # as after a restart
        for row in (0, 1):
            cells.use(row)
        async with world(cells, tmp_path / "usage.db") as run:
            run.use(4)
            assert await run.input() == 7
    assert stored(tmp_path / "usage.db") == 7
    assert names(tmp_path) == ["usage.db"]
    assert (tmp_path / "usage.db").stat().st_mode & 0o777 == 0o640


async def test_another_file_takes_what_comes_from_then_on(made: Cells, tmp_path: Path) -> None:
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    async with world(made, one) as run:
        run.use(1)
        run.store.retarget(run.target | {"path": str(other)})
        assert await run.input() == 0
        run.use(10)
        assert await run.input() == 10
        run.store.retarget(None)
        with pytest.raises(NotKept, match="usage_store is off"):
            await run.ask()
        await until(lambda: "other.db-wal" not in names(tmp_path), "the file is closed")
        run.use(100)  # is not to be kept
        run.store.retarget(run.target)
        await run.ask()
        run.use(1000)
        await run.ask()
    assert (stored(one), stored(other)) == (1001, 10)


async def test_what_was_used_before_the_first_look_counts_unless_nothing_was_to_be_kept(
    made: Cells, tmp_path: Path
) -> None:
    run = World(made, tmp_path / "usage.db")
    run.use(1)
    run.store.retarget(run.target)
    assert await run.input() == 1
    await run.close()
    off = World(made, tmp_path / "later.db")
    off.store.retarget(None)
    off.use(10)
    off.store.retarget(off.target)
    assert await off.input() == 0
    off.use(100)
    assert await off.input() == 100
    await off.close()


async def test_a_locked_file_is_written_later(made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usagefile, "BUSY", 0.01)
    path = tmp_path / "usage.db"
    async with world(made, path) as run:
        run.use(1)
        await run.ask()
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            for used in (11, 111):
                run.use(used - await run.input())
                assert await run.input() == used  # what is not written is part of the answer
                assert stored(path) == 1
            assert run.store.error == f"{path}: database is locked"
            db.execute("ROLLBACK")
        await run.ask()
        assert stored(path) == 111
        assert run.store.error == ""
    assert run.said == [
        f"usage_store: {path}: database is locked; usage is kept in memory, and written once that is possible",
        f"usage_store: {path} is written again",
    ]


async def test_who_asks_and_leaves_does_no_harm(made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usagefile, "BUSY", 0.5)
    async with world(made, tmp_path / "usage.db") as run:
        await run.ask()
        with closing(sqlite3.connect(tmp_path / "usage.db", isolation_level=None)) as db:
            db.execute("BEGIN IMMEDIATE")
            run.use(1)
            first = asyncio.create_task(run.ask())  # which waits for the lock
            await asyncio.sleep(0)
            second = asyncio.create_task(run.ask())
            await asyncio.sleep(0)
            second.cancel()
            db.execute("ROLLBACK")
            assert len(await first) == 1
        assert second.cancelled()
        assert await run.input() == 1


async def test_a_folder_that_is_not_there_yet(made: Cells, tmp_path: Path) -> None:
    path = tmp_path / "later" / "usage.db"
    async with world(made, path) as run:
        run.use(1)
        with pytest.raises(NotKept, match=f"usage cannot be read: {path}: No such file or directory"):
            await run.ask()
        run.now += HOUR
        run.use(2)
        with pytest.raises(NotKept):
            await run.ask()
        path.parent.mkdir()
        assert [item["tokens"]["input"] for item in await run.ask(per="hour")] == [1, 2]
    assert stored(path) == 3
    assert len(run.said) == 2


async def test_what_is_held_is_bounded_and_its_sums_are_right(
    made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MOST_HELD", 3)
    path = tmp_path / "later" / "usage.db"
    async with world(made, path) as run:
        for hour in range(5):
            run.now = NOON + hour * HOUR
            run.use(10**hour)
            run.use(2 * 10**hour, model="claude-x")
            with pytest.raises(NotKept):
                await run.ask()
        path.parent.mkdir()
        found = await run.ask(by="model")
        assert [(item["model"], item["tokens"]["input"]) for item in found] == [("claude-*", 22222), ("gpt-4o", 11111)]
        assert len(await run.ask(per="hour")) == 1


async def test_budgets_are_given_back_once_and_kept_as_they_are(made: Cells, tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    first_day, this_month = int(NOON // DAY * DAY), 1_764_547_200
    async with world(made, path) as run:
        own = Meters(made, 0)
        restore(own, 7, meters.MONTH, this_month, 100, NOON)
        restore(own, 8, meters.DAY, first_day, 5, NOON)
        assert await run.input() == 0
        restore(own, 7, meters.MONTH, this_month, 130, NOON)
        await run.ask()
        assert run.restored == []
        run.store.retarget(run.target | {"path": str(tmp_path / "other.db")})
        await run.ask()
        del own
    with closing(Cells(rows=1)) as cells:
        cells.use(0)
        async with world(cells, path) as run:
            await run.store.opened()
            assert sorted(run.restored) == [(7, -2, this_month, 130), (8, -1, first_day, 5)]
            run.now += 40 * DAY
            await run.ask()
    with closing(sqlite3.connect(tmp_path / "other.db")) as db:
        assert db.execute("SELECT meter, used FROM windows ORDER BY meter").fetchall() == [(7, 130), (8, 5)]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT * FROM windows").fetchall() == []  # they are over


async def test_a_file_that_was_removed_begins_anew(made: Cells, tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    async with world(made, path) as run:
        run.use(1)
        await run.ask()
        for name in names(tmp_path):
            (tmp_path / name).unlink()
        run.use(10)
        assert await run.input() == 10
    assert stored(path) == 10


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:1000] + b"\xff" * 3000 + data[4000:], lambda data: bytes(len(data)), lambda data: data[:5000]],
    ids=["overwritten", "zeroed", "cut"],
)
async def test_a_damaged_file_is_set_aside(made: Cells, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "usage.db"
    async with world(made, path) as run:
        run.use(1)
    path.write_bytes(damaged := damage(path.read_bytes()))
    with closing(Cells(rows=2)) as cells:
        for row in (0, 1):
            cells.use(row)
        async with world(cells, path) as run:
            run.use(10)
            assert await run.input() == 10
        said = run.said
    _, name = names(tmp_path)
    aside = tmp_path / name
    assert aside.read_bytes() == damaged
    assert name.startswith("usage.db.damaged-")
    assert stored(path) == 10
    assert len(said) == 1
    assert said[0].startswith(f"usage_store: {path} is damaged (")
    assert said[0].endswith(f"); it is kept as {aside}, a new one begins")


def of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE usage (mine)")


def of_a_later_version(path: Path) -> None:
    usagefile.UsageFile(str(path)).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {usagefile.VERSION + 1}")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_text("a line of a log\n"), "is no SQLite file; usage_store needs a file of its own"),
        (of_another_program, "is the SQLite file of another program; usage_store needs a file of its own"),
        (of_a_later_version, "was written by a newer aigw (its version is 2, here 1); use that, or another file"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
async def test_what_is_not_ours_is_not_touched(
    made: Cells, tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "usage.db"
    make(path)
    before = path.read_bytes() if path.is_file() else b""
    async with world(made, path) as run:
        run.use()
        with pytest.raises(NotKept) as error:
            await run.ask()
        assert str(error.value) == f"usage cannot be read: {path}: {why}"
    assert path.is_dir() or path.read_bytes() == before
    assert names(tmp_path) == ["usage.db"]


async def test_a_fault_of_ours_does_not_end_it(made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(made, tmp_path / "usage.db") as run:
        run.use(1)
        await run.ask()
        with monkeypatch.context() as patch:
            patch.setattr(usage, "account_of", lambda text: 1 / 0)
            run.use(10, model="claude-x")
            await run.ask()
            assert run.store.error.startswith("ZeroDivisionError at ")
        assert await run.input() == 11
    assert run.said[-1].endswith("usage.db is written again")


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ({"by": "kay"}, "by takes some of gateway, rule, key, group, model, upstream, each once: by=key,model"),
        ({"by": "key,key"}, "by takes some of gateway, rule, key, group, model, upstream, each once: by=key,model"),
        ({"per": "week"}, "per takes one of hour, day, month"),
        (
            {"from": "yesterday"},
            "from must be a date such as 2027-01-31 or 2027-01-31T18:00:00Z, or how long ago, such as 24h or 30d",
        ),
        ({"from": "2026-01-01", "to": "2026-01-01"}, "from must be before to"),
        ({"to": "99999999d"}, "to must be a date such as 2027-01-31 or 2027-01-31T18:00:00Z, or how long ago, such as"),
    ],
)
def test_what_cannot_be_asked(query: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(why)):
        Question.of(query, NOON)


async def test_an_answer_is_bounded(made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_ITEMS", 1)
    async with world(made, tmp_path / "usage.db") as run:
        run.use()
        assert len(await run.ask(by="model")) == 1
        run.use(model="claude-x")
        with pytest.raises(ValueError, match="that is more than 1 items; ask for less time"):
            await run.ask(by="model")


async def test_it_writes_by_itself(made: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks: what was used is in the file when it was time to write."""
    monkeypatch.setattr(usage, "EVERY", 0.01)
    path = tmp_path / "usage.db"
    async with world(made, path) as run:
        await run.ask()
        run.use(5)
        assert await until(lambda: stored(path), "something is written") == 5
