"""The numbers and the access log tell the same of every exchange, however it ended."""

from __future__ import annotations

from collections import Counter
from typing import Any

from counted import config
from fakes import CHAT, Connection, Running, Seen, get, ok, post, running, stub, target, until, upstream

from aigw.counters import COST, EXCHANGES, OVERHEAD, SUM, TARGETS, TOKENS, USAGE, account_of, labels_of
from aigw.shared import Series

KEY = b"authorization: Bearer sk-demo"
USED = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3}}'


def numbers(run: Running, family: bytes = EXCHANGES) -> dict[bytes, list[int]]:
    return dict(Series(run.gateway.row, 0).items(family))


def logged(record: dict[str, Any]) -> tuple[str, ...]:
    """What the labels of a record are, but for the model, whose entry it does not name. An upstream that has no target
    to give is no part of the record, which names who was asked."""
    names = ("gateway", "rule", "upstream", "status", "end", "fault")
    named = {"upstream": "none"} if record.get("error") == "no_target" else {}
    return tuple(str((named | record).get(name, "-")) for name in names)


async def answer(connection: Connection, seen: Seen) -> None:
    """As the body asks for."""
    if b"cut" in seen.body:
        await connection.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")
        connection.close()
    elif b"refuse" in seen.body:
        await connection.send(ok(status=b"401 Unauthorized"))
    elif b"reset" in seen.body:
        connection.reset()
    elif b"hang" not in seen.body:
        await connection.send(ok(USED))


def asking(word: str) -> bytes:
    return post("/v1/chat/completions", CHAT.replace(b"Hi", word.encode()), KEY)


async def test_numbers_are_those_of_the_log() -> None:
    async with stub(answer) as up:
        document = config()
        document["upstreams"]["up"] = upstream(target(up.url), api_key="sk-secret")
        document["prices"] = {"gpt-4o": {"input": 2.5, "output": 10}}
        async with running(document) as run:
            client = await run.connect()
            for _ in range(3):
                await client.ask(asking("Hi"))
            for word in ("cut", "refuse", "reset"):
                other = await run.connect()
                await other.send(asking(word))
                await other.ended() if word == "cut" else await other.answer()
            gone = await run.connect()
            await gone.send(asking("hang"))
            await until(lambda: b"hang" in up.last.body, "the upstream has it")
            gone.reset()
            await run.record(6)
            await run.ask(post("/v1/chat/completions", b"{", KEY))
            await run.ask(post("/v1/chat/completions", CHAT.replace(b"gpt-4o", b"nobody"), KEY))
            await run.ask(post("/v1/chat/completions", CHAT.replace(b"gpt-4o", b"idle"), KEY))
            await run.ask(post("/v1/chat/completions"))
            await run.ask(get("/v1/models", KEY))
            await run.ask(get("/__/ping"))  # neither logged nor counted
            await run.ask(post("/fixed", b"", KEY, chunks=[b"abc"]))
            await (await run.connect()).ask(b"GET / HTTP/3.0\r\n\r\n")
            await until(lambda: len(run.lines) == 14, "the records of all")
            found = {labels_of(text): values for text, values in numbers(run).items() if any(values)}
            counts: Counter[tuple[str, ...]] = Counter()
            for labels, values in found.items():
                counts[tuple(label for name, label in labels._asdict().items() if name != "model")] += sum(values[:SUM])
            assert counts == Counter(map(logged, run.records))
            assert {labels.model for labels in found} == {"-", "gpt-4o", "idle"}
            accounts = {account_of(text): values for text, values in numbers(run, USAGE).items() if any(values)}
            (best,) = [values for account, values in accounts.items() if account[2:5] == ("demo", "-", "gpt-4o")]
            assert best[TOKENS:COST] == [21, 9, 0, 0, 0, 0]
            costs = [round(record["cost"] * 1e9) for record in run.records if "cost" in record]
            assert costs == [7 * 2_500 + 3 * 10_000] * 3
            assert sum(values[COST] for values in accounts.values()) == sum(costs)
            assert sum(sum(values[:2]) for values in accounts.values()) == sum("method" in r for r in run.records)
            spent = sum(values[SUM] for values in found.values())
            assert abs(spent / 1e3 - sum(record.get("duration_ms", 0) for record in run.records)) < 1
            overheads = sum(sum(values[:-1]) for values in numbers(run, OVERHEAD).values())
            assert overheads == sum("overhead_ms" in record for record in run.records)
            run.gateway.tick()
            assert numbers(run, TARGETS)[b"up/a"] == [1, 0, 0]
