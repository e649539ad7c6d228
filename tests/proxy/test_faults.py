"""The fault matrix: every failure of the mock, in every phase, in every dialect, with and without retry and fallback.

For each it is said what the client saw, how often the upstreams were asked, what the record says and what was counted.
And a crowd of requests to upstreams of which one answer in ten fails.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any, NamedTuple

import pytest
from fakes import (
    Answer,
    Client,
    Connection,
    Running,
    Seen,
    chunked,
    document,
    gateway,
    mock,
    model,
    ok,
    post,
    retry,
    running,
    stub,
    target,
    until,
    upstream,
)

from aigw.counters import TRIED
from aigw.mock.settings import WORDS
from aigw.proxy.trying import Budget
from aigw.shared import Series

pytestmark = pytest.mark.unmeasured

ALL = ("connect", "reset", "first_byte", "first_token", "429", "5xx")


class Breaks(NamedTuple):
    """It was begun to be relayed: the client sees it break, and nothing else is tried."""

    end: str = "cut"


class Passes(NamedTuple):
    """It is relayed to its end: what is wrong with it is in the content."""


class Api(NamedTuple):
    """A path, with M for the model where it is named there, and the request's body."""

    dialect: str
    path: str
    members: dict[str, Any]
    streams: str = ""  # the path of a stream, where that is another


MESSAGES = [{"role": "user", "content": "Hi"}]
APIS = {
    "chat": Api("openai", "/v1/chat/completions", {"messages": MESSAGES}),
    "completions": Api("openai", "/v1/completions", {"prompt": "Hi"}),
    "responses": Api("openai", "/v1/responses", {"input": "Hi"}),
    "messages": Api("anthropic", "/v1/messages", {"messages": MESSAGES, "max_tokens": 100}),
    "gemini": Api(
        "gemini",
        "/v1beta/models/M:generateContent",
        {"contents": [{"parts": [{"text": "Hi"}]}]},
        "/v1beta/models/M:streamGenerateContent?alt=sse",
    ),
}


def request(api: Api, name: str, phase: str) -> bytes:
    streamed = phase != "plain"
    path = (api.streams if streamed and api.streams else api.path).replace("M", name)
    members = {} if api.streams else {"model": name, "stream": streamed}
    return post(path, json.dumps(members | api.members).encode())


class Fails(NamedTuple):
    """Nothing of it reaches a client: the next attempt does, or this status. `code` is what the attempt is called."""

    code: str
    status: int
    relayed: bool = False  # the answer is the upstream's own
    plainly: Outcome | None = None  # what it is where nothing is held, since only one attempt is configured


class Either(NamedTuple):
    """It fails or breaks, by whether the bad bytes came with the first ones or behind them."""

    code: str
    status: int


Outcome = Fails | Breaks | Passes | Either
GARBAGE = Fails("upstream_malformed", 502)
CUT = Fails("upstream_cut", 502, plainly=Breaks())
MALFORMED = Fails("upstream_malformed", 502, plainly=Passes())
EVENT = Fails("upstream_error", 500, plainly=Passes())
OVERLOADED = Fails("upstream_overloaded", 529, plainly=Passes())
BAD_CHUNK = Either("upstream_malformed", 502)
# The failure: an answer that is no stream, a stream before its content, one in the midst of it.
MATRIX: dict[str, tuple[Outcome, Outcome, Outcome]] = {
    "status=500": (Fails("500", 500, True),) * 3,
    "status=503, retry-after=1": (Fails("503", 503, True),) * 3,
    "status=429": (Fails("429", 429, True),) * 3,
    "refuse": (Fails("connect_failed", 502),) * 3,
    "reset": (Breaks(), CUT, Breaks()),
    "cut-body": (Breaks(), CUT, Breaks()),
    "cut-event": (Breaks(), CUT, Breaks()),
    "cut-between": (Breaks(), CUT, Breaks()),
    "stall": (Breaks("stalled"), Fails("idle_timeout", 504, plainly=Breaks("stalled")), Breaks("stalled")),
    "malformed": (GARBAGE, MALFORMED, Passes()),
    "error-event": (Fails("500", 500, True), EVENT, Passes()),
    "bad-chunk": (BAD_CHUNK, Fails("upstream_malformed", 502, plainly=BAD_CHUNK), BAD_CHUNK),
    "early-close": (Breaks(), CUT, CUT),
}
# Where a dialect has an error of its own.
SPECIAL: dict[tuple[str, str, str], Outcome] = {
    ("error-event", "messages", "plain"): Fails("529", 529, True),
    ("error-event", "messages", "before"): OVERLOADED,
    ("error-event", "gemini", "plain"): Fails("503", 503, True),
    ("error-event", "gemini", "before"): OVERLOADED,
}
PHASES = ("plain", "before", "halfway")
# What is configured, and how often targets that fail are asked before one that does not.
CONFIGURED = {"none": 0, "once": 0, "retry": 1, "fallback": 1, "both": 2}


def config(bad: str, good: str, dialect: str, idle: float) -> Any:
    """A model for each of these, which all send the same name: `once` holds streams though nothing follows, `retry` has
    a target that works beside the bad one, `fallback` a model, `both` two bad targets and a model."""
    upstreams = {
        "bad": upstream(target(bad)),
        "mixed": upstream(target(bad, weight=1000), target(good, "b")),
        "worse": upstream(target(bad), target(bad.replace("127.0.0.1", "localhost"), "b")),
        "good": upstream(target(good)),
    }
    for entry in upstreams.values():
        entry["dialects"] = [dialect]
        entry["timeouts"]["idle"] = idle
    again = retry(*ALL)
    models = {
        "none": model("bad", "m"),
        "once": model("bad", "m", retry=retry(*ALL, attempts=1)),
        "retry": model("mixed", "m", retry=again),
        "fallback": model("bad", "m", fallback=["good"], retry=retry(*ALL, attempts=1)),
        "both": model("worse", "m", fallback=["good"], retry=again),
        "good": model("good", "m"),
    }
    return document(upstreams, gateways={"default": gateway(models=models)})


async def heard(gw: Running, raw: bytes) -> tuple[bytes, bool]:
    """All that a client gets, and whether it was broken off."""
    client = await gw.connect()
    await client.send(raw)
    try:
        answer = await client.answer()
    except (asyncio.IncompleteReadError, ConnectionResetError) as error:
        head = getattr(error, "partial", b"")
        return head, True
    return answer.raw, False


def check(
    name: str, outcome: Outcome, answer: tuple[bytes, bool], record: dict[str, Any], whole: bytes
) -> tuple[int, int, int]:
    """One model's answer and record. Returns how often the bad targets and the good one were asked, and the attempts
    that were followed by another."""
    raw, broken = answer
    if name == "none" and isinstance(outcome, Fails) and outcome.plainly is not None:
        outcome = outcome.plainly
    if isinstance(outcome, Either):
        outcome = Breaks() if broken else Fails(outcome.code, outcome.status)
    assert broken == isinstance(outcome, Breaks), (name, raw)
    if isinstance(outcome, Breaks):
        assert (record["status"], record["end"], record["fault"]) == (200, outcome.end, "upstream")
        assert "attempts" not in record
        return 1, 0, 0
    got = Answer(raw)
    if isinstance(outcome, Passes):
        assert (got.status, record["end"]) == (200, "ok")
        assert "attempts" not in record
        return 1, 0, 0
    tries = CONFIGURED[name]
    if not tries:
        assert got.status == record["status"] == outcome.status
        assert got.headers.get("x-aigw-error") == (None if outcome.relayed else outcome.code)
        assert record.get("error") == (None if outcome.relayed else outcome.code)
        assert "attempts" not in record
        return 1, 0, 0
    assert (got.status, got.body) == (200, whole), (name, raw)
    assert got.headers["x-aigw-attempts"] == str(tries + 1)
    assert [step["outcome"] for step in record["attempts"]] == [outcome.code] * tries + ["200"]
    assert (record["status"], record["end"], record["fault"]) == (200, "ok", "none")
    return tries, 1, tries


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", APIS)
@pytest.mark.parametrize("words", MATRIX)
async def test_a_failure(words: str, kind: str, phase: str) -> None:
    api = APIS[kind]
    outcome = SPECIAL.get((words, kind, phase), MATRIX[words][PHASES.index(phase)])
    tokens = 1 if phase == "before" else 16
    async with (
        mock(f"tokens={tokens}, {words}") as bad,
        mock(f"tokens={tokens}") as good,
        running(config(bad.url, good.url, api.dialect, 0.1 if words == "stall" else 60.0)) as gw,
    ):
        whole = (await gw.ask(request(api, "good", phase))).body
        answers = await asyncio.gather(*[heard(gw, request(api, name, phase)) for name in CONFIGURED])
        await until(lambda: len(gw.lines) == 1 + len(CONFIGURED), "all records")
        records = {record["model"]: record for record in gw.records}
        asked = [
            check(name, outcome, answer, records[name], whole) for name, answer in zip(CONFIGURED, answers, strict=True)
        ]
        bad_asked, good_asked, tried = (sum(counts) for counts in zip(*asked, strict=True))
        assert bad.requests == (0 if words == "refuse" else bad_asked)
        assert good.requests == good_asked + 1
        counted = {text.decode(): count for text, (count,) in Series(gw.gateway.row, 0).items(TRIED) if count}
        assert sum(counted.values()) == tried
        if isinstance(outcome, Fails):
            status = outcome.status
            assert counted == {f"mixed/{status}": 1, f"bad/{status}": 1, f"worse/{status}": 2}


def test_the_matrix_has_every_failure_of_the_mock() -> None:
    words = {word.strip() for word in WORDS.split(",") if "=" not in word}
    assert words - {"slow-first-token"} <= MATRIX.keys()  # which is no failure; see `first_token` in test_commit


# a crowd --------------------------------------------------------------------------------------------------------------

CROWD = 1500
CLIENTS = 30
SHARE = 0.1
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CONTENT = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'


class Shaky:
    """One answer in ten fails. Whether one does is drawn for a request and how often that was asked, so that it does
    not depend on the order of things."""

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        body = json.loads(seen.body)
        number = body["n"]
        self.asked[number] += 1
        draw = random.Random(f"{number} {self.asked[number]}")
        streamed = body["stream"]
        if draw.random() >= SHARE:
            await connection.send(STREAM + chunked(ROLE, CONTENT) if streamed else ok(b'{"n": %d}' % number))
            return
        fault = draw.choice(["503", "429", "reset", "nonsense", "broken"])
        if fault == "broken" and streamed:
            await connection.send(STREAM + chunked(ROLE)[:-5])
            connection.close()
        elif fault in ("reset", "broken"):
            connection.reset()
        elif fault == "nonsense":
            await connection.send(b"nonsense\r\n\r\n")
            connection.close()
        else:
            await connection.send(ok(b"{}", status=fault.encode() + b" No"))


async def test_a_crowd_of_which_one_in_ten_meets_a_fault() -> None:
    shaky = Shaky()
    good: Counter[int] = Counter()
    async with stub(shaky) as one, stub(shaky) as two, stub(shaky) as three, stub(shaky) as four:
        models = {"m": model("main", fallback=["other"]), "other": model("spare")}
        upstreams = {
            "main": upstream(target(one.url), target(two.url, "b")),
            "spare": upstream(target(three.url), target(four.url, "b")),
        }
        asked = gateway(models=models, retry=retry(*ALL, budget=0.2))
        async with running(document(upstreams, gateways={"default": asked})) as gw:
            numbers = iter(range(CROWD))

            async def client() -> None:
                connected: Client = await gw.connect()
                for number in numbers:
                    body = {"model": "m", "messages": [], "n": number, "stream": number % 2 == 0}
                    answer = await connected.ask(post("/v1/chat/completions", json.dumps(body).encode()))
                    right = chunked(ROLE, CONTENT) if number % 2 == 0 else b'{"n": %d}' % number
                    good[answer.status] += answer.status != 200 or answer.body == right

            await asyncio.gather(*[client() for _ in range(CLIENTS)])
            await until(lambda: len(gw.lines) == CROWD, "all records")
            assert sum(good.values()) == CROWD  # nobody got another's answer, or half of one
            assert good[200] >= CROWD * 0.999
            main = len(one.seen) + len(two.seen)
            extra = main + len(three.seen) + len(four.seen) - CROWD
            assert extra == shaky.asked.total() - CROWD
            assert CROWD * SHARE * 0.8 < extra < CROWD * SHARE * 1.4  # all that failed was asked for once more
            assert main - CROWD <= CROWD * 0.2 + Budget.FLOOR
            # but for a connection that was dead when it was used again: that is replayed, and no attempt
            assert extra * 0.6 < sum(len(record.get("attempts", [1])) - 1 for record in gw.records) <= extra
            assert sum(1 for record in gw.records if record["status"] == 200) == good[200]
