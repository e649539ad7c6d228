"""Clients of a soak run: what they ask for, a connection that says how each exchange came out, and all of them.

What happened is one word or two, the outcome: `200` and the like (a complete answer, and where the upstream's is known
the same bytes), `200 cut` (it broke off), `200 other` (complete, but not what the upstream says), `200 surplus` (with
more behind it), `none` (closed before any head), `left` (the client hung up, as it was told to), `silent` (nothing came
for `PATIENCE`). A scenario names the outcomes that it asks for; every other one has to be explained.
"""

import asyncio
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

PATIENCE = 30.0  # seconds for one exchange; the longest that is asked for takes about two
MODEL = "gpt-4o"
_KILL_SHOWS = 5.0  # seconds until the last client of a killed worker has noticed

_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding:[ \t]*chunked")
_CLOSES = re.compile(rb"(?i)\r\nconnection:[ \t]*close")
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(slots=True)
class Scenario:
    """A request, how often it is sent in relation to the others, and what may come of it.

    `leaves`: the client hangs up after the answer's head, or, where the request is not whole, after sending it.
    `body` is what the answer must hold where it is a 200, None where anything will do.
    """

    name: str
    weight: float
    request: bytes
    expected: frozenset[str]
    leaves: bool = False
    body: bytes | None = None


def request(
    key: str, model: str = MODEL, words: str = "", *, streamed: bool = False, prompt: str = "Hi", closes: bool = False
) -> bytes:
    """A chat completion. `words` are what the mock is asked for."""
    document: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    if streamed:
        document["stream"] = True
    return posted(key, json.dumps(document).encode(), words, closes=closes)


def posted(key: str, body: bytes, words: str = "", *, closes: bool = False) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: gateway", "content-type: application/json"]
    lines += [f"authorization: Bearer {key}", f"content-length: {len(body)}"]
    lines += [f"x-mock: {words}"] * bool(words) + ["connection: close"] * closes
    return "\r\n".join([*lines, "", ""]).encode() + body


def scenarios(key: str, limited: str) -> list[Scenario]:
    """What is asked for, by the models of `soak.CONFIG`. The most part is well; `limited` is the key with a limit."""

    def asks(name: str, weight: float, expected: str, sent: bytes, *, leaves: bool = False) -> Scenario:
        return Scenario(name, weight, sent, frozenset(expected.split(", ")), leaves)

    def fails(
        words: str, expected: str, model: str = MODEL, *, streamed: bool = False, weight: float = 0.2
    ) -> Scenario:
        name = f"{words}{', stream' * streamed}{f', {model}' * (model != MODEL)}"
        return asks(name, weight, expected, request(key, model, words, streamed=streamed))

    large = request(key, prompt="x" * 100_000)
    return [
        asks("chat", 60, "200", request(key)),
        asks("stream", 20, "200", request(key, streamed=True)),
        asks("stream, usage injected", 5, "200", request(key, "injected", streamed=True)),
        asks("stream, held for a retry", 5, "200", request(key, "again", streamed=True)),
        asks("stream, paced", 2, "200", request(key, words="rate=100", streamed=True)),
        asks("fallback", 1, "200", request(key, "fallen")),
        asks("prompt of 100 KB", 1, "200", large),
        asks("connection: close", 2, "200", request(key, closes=True)),
        asks("client leaves, stream", 0.5, "left", request(key, words="rate=50", streamed=True), leaves=True),
        asks("client leaves, waiting", 0.5, "left", request(key, words="latency=0.05,slow-first-token"), leaves=True),
        asks("client leaves, upload", 0.5, "left", large[:50_000], leaves=True),
        asks("unknown key", 0.2, "401", request("sk-aigw-unknown")),
        asks("unknown model", 0.2, "404", request(key, "unknown")),
        asks("no JSON", 0.2, "400", posted(key, b'{"model": ')),
        asks("limited", 0.2, "200, 429", request(limited)),
        fails("status=503", "503"),
        fails("status=429,retry-after=1", "429"),
        fails("status=503", "503", "again"),
        fails("refuse", "502"),
        fails("malformed", "502"),
        fails("cut-body", "200 cut"),
        fails("early-close", "200 cut"),
        fails("reset", "200 cut"),
        fails("error-event", "200", streamed=True),
        fails("cut-event", "200 cut", streamed=True),
        fails("cut-between", "200 cut", streamed=True),
        fails("bad-chunk", "200 cut, 502", streamed=True),
        fails("reset", "200 cut", streamed=True),
        fails("cut-between", "200 cut", "again", streamed=True),
        fails("tokens=0,reset", "502", "again", streamed=True),
        fails("stall", "200 cut", "impatient", streamed=True, weight=0.05),
        fails("latency=3", "504", "impatient", weight=0.05),
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    outcome: str
    body: bytes = b""
    closes: bool = False  # the connection is not to be used again


class Connection(asyncio.Protocol):
    """One client's connection: one exchange at a time.

    `since` is the loop's time before it was dialled. `ended` says that it takes no more, `deserted` that this came
    between two exchanges, unannounced.
    """

    __slots__ = ("_announced", "_answer", "_asked", "_buffer", "_length", "_transport", "deserted", "ended", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.ended = False
        self.deserted = False
        self._transport: asyncio.Transport | None = None
        self._announced = False
        # of the running exchange
        self._asked: Scenario | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._length: tuple[int, int] | None = None  # of the head, and of the body: -1 where it is chunked

    async def ask(self, asked: Scenario) -> Answer:
        assert self._transport is not None
        self._asked, self._buffer, self._length = asked, bytearray(), None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(asked.request)
        if asked.leaves and b"x-mock" not in asked.request:  # half an upload: no answer is due
            self._done("left")
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await self._answer
        except TimeoutError:
            answer = Answer("silent")
        if answer.outcome == "left" or answer.closes:
            self.close()
        elif answer.outcome == "silent":
            self._transport.abort()
        return answer

    def close(self) -> None:
        self.ended = self._announced = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            return self._done("surplus")
        self._buffer += data
        if self._length is None:
            end = self._buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                return None
            head = bytes(self._buffer[:end])
            length = _LENGTH.search(head)
            self._length = end, -1 if length is None else int(length[1])
            if length is None and not _CHUNKED.search(head):
                return self._done("unframed")
            self._announced = _CLOSES.search(head) is not None
        if self._asked is not None and self._asked.leaves:
            return self._done("left")
        start, size = self._length
        if size < 0:
            if self._buffer.endswith(_LAST_CHUNK):
                self._whole(dechunked(bytes(self._buffer[start:])))
        elif len(self._buffer) >= start + size:
            self._whole(bytes(self._buffer[start:]), surplus=len(self._buffer) > start + size)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if self._answer is not None and not self._answer.done():
            self._done("none" if self._length is None else f"{self._status} cut")
        elif not self._announced:
            self.deserted = True

    @property
    def _status(self) -> str:
        return self._buffer[9:12].decode(errors="replace")

    def _whole(self, body: bytes | None, *, surplus: bool = False) -> None:
        wanted = self._asked.body if self._asked is not None and self._status == "200" else None
        word = " surplus" if surplus or body is None else " other" if wanted is not None and body != wanted else ""
        self._done(self._status + word, body or b"")

    def _done(self, outcome: str, body: bytes = b"") -> None:
        """Ends the exchange; what comes behind its end ends the connection, which counts as deserted."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(outcome, body, self._announced or self.ended))
        elif self._transport is not None:
            self._transport.abort()


def dechunked(data: bytes) -> bytes | None:
    """The body of whole chunks. None: they are none, or more comes behind the last one."""
    body: list[bytes] = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        try:
            size = int(data[at:end], 16)
        except ValueError:
            return None
        at = end + 2 + size
        if data[at : at + 2] != b"\r\n":
            return None
        if not size:
            return b"".join(body) if at + 2 == len(data) else None
        body.append(data[end + 2 : at])
        at += 2


async def dial(port: int) -> Connection:
    """Raises OSError."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    _, connection = await loop.create_connection(lambda: Connection(since), "127.0.0.1", port)
    return connection


@dataclass(slots=True)
class Load:
    """All clients: what they saw. `interval` is each one's seconds from one request to the next, 0: no pause."""

    port: int  # the gateway's
    scenarios: list[Scenario]
    random: random.Random
    interval: float = 0.0
    ending: bool = False
    killed: float | None = None  # when a worker was
    begun: int = 0
    answered: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken_by_kill: int = 0
    unexplained: Counter[str] = field(default_factory=Counter)
    connections: set[Connection] = field(default_factory=set)

    async def client(self) -> None:
        """One client, until the end: it dials again where it hung up or was hung up on."""
        loop = asyncio.get_running_loop()
        weights = [scenario.weight for scenario in self.scenarios]
        connection: Connection | None = None
        due = loop.time() + self.random.random() * self.interval
        while not self.ending:
            now = loop.time()
            if due > now:
                await asyncio.sleep(due - now)
            due = max(due + self.interval, now - 1.0)  # who is late catches up, but not for long
            if connection is not None and connection.deserted:
                self.explain(connection, "between requests", "closed unannounced")
            if connection is not None and connection.ended:
                self.connections.discard(connection)
                connection = None
            if connection is None:
                try:
                    connection = await dial(self.port)
                except OSError as error:
                    self.unexplained[f"dialling: {error}"] += 1
                    await asyncio.sleep(0.1)
                    continue
                self.connections.add(connection)
            (asked,) = self.random.choices(self.scenarios, weights)
            self.begun += 1
            self.judge(connection, asked, await connection.ask(asked))

    def judge(self, connection: Connection, asked: Scenario, answer: Answer) -> None:
        self.seen[asked.name, answer.outcome] += 1
        self.answered += answer.outcome.isdigit()
        if answer.outcome not in asked.expected:
            self.explain(connection, asked.name, answer.outcome, answer.body)

    def explain(self, connection: Connection, what: str, outcome: str, body: bytes = b"") -> None:
        """The kill of a worker explains each connection that was there before, once."""
        now = asyncio.get_running_loop().time()
        broke = not outcome.isdigit() and connection.ended
        if broke and self.killed is not None and connection.since <= self.killed <= now <= self.killed + _KILL_SHOWS:
            self.broken_by_kill += 1
        else:
            self.unexplained[f"{what}: {outcome} {body[:200].decode(errors='replace')}".rstrip()] += 1

    async def learn(self, upstream: int) -> None:
        """What the upstream at this port answers, asked itself, is what answers through the gateway have to hold.

        Where the gateway changes a request on its way, or sends it to another model, the ids in the answer follow from
        the request that it became; there, the gateway's first answer counts, if nothing but ids differs.
        """
        for scenario in self.scenarios:
            if scenario.expected != {"200"}:
                continue
            answers = []
            for port in (upstream, self.port):
                connection = await dial(port)
                answers.append(await connection.ask(scenario))
                connection.close()
            self.begun, self.answered = self.begun + 1, self.answered + 1
            wanted, got = answers
            if (wanted.outcome, got.outcome) != ("200", "200") or _without_ids(wanted.body) != _without_ids(got.body):
                sys.exit(f"{scenario.name}: {got}, but of the upstream {wanted}")
            scenario.body = got.body


def _without_ids(body: bytes) -> bytes:
    return re.sub(rb'"(id|model)":"[^"]*"', b"", body)
