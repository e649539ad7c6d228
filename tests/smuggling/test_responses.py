"""The corpus of responses against a running gateway: nothing broken passes for whole, nothing right is refused.

The upstream writes each case whole, on a connection that was used before, byte by byte and at seeded random cuts; a
second request behind it shows that nothing of the first answer is left anywhere. What the client got is judged by the
corpus's own strict reader.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from fakes import (
    CHAT,
    LIMIT,
    Client,
    Connection,
    Running,
    Seen,
    Stub,
    document,
    gateway,
    get,
    ok,
    pieces,
    post,
    random_pieces,
    rule,
    running,
    stub,
    target,
    upstream,
)
from smuggling.responses import CASES
from smuggling.responses.case import CHUNKED, GET, OK, OLD, Case, End, Outcome
from smuggling.responses.judge import AFTER_SEEN, Got, Verdict, is_own, judge, without_id
from smuggling.responses.reader import INCOMPLETE, read

pytestmark = pytest.mark.unmeasured

CHAT_PATH = "/v1/chat/completions"
AFTER = get("/after", b"x-request-id: id")
SHORT = 0.3  # seconds of silence until a case that is about silence has ended
# Sections whose cases are well-formed to the letter, and refused for their size or for what they would do.
POLICY = ("design 7", "9110 15.2", "9110 7.6.1")
# Beyond this many bytes, byte by byte takes long and shows nothing new.
MANY = 2000
MANY_PIECES = 40


class Script:
    """The upstream of one delivery: answers the case's request with its bytes, any other with the name it asks for."""

    def __init__(self, case: Case, parts: list[bytes], *, together: bool) -> None:
        self.case = case
        self.parts = parts
        self.together = together  # the end comes with the last bytes, not a turn of the loop later
        self.done = asyncio.Event()
        self.last: Connection | None = None

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        path = seen.line.split(b" ")[1]
        self.last = connection
        if path == self.case.path and self.case.outcome is not Outcome.DROPPED:
            await self.speak(connection)
        else:
            await connection.send(ok(path[1:]))

    async def speak(self, connection: Connection) -> None:
        """Say it all, unless the gateway has left before that (it closes as soon as it knows)."""
        try:
            if self.together:
                connection.writer.write(b"".join(self.parts))
            else:
                await connection.send(*self.parts)
            if self.case.end is End.FIN:
                connection.close()
            elif self.case.end is End.RST:
                connection.reset()
        finally:
            self.done.set()


def config(case: Case, url: str, usage: str = "as_reported") -> dict[str, Any]:
    """All to one upstream, `/v1/*` by its model, with as little as may be added to an answer."""
    timeouts = {"first_byte" if case.outcome is Outcome.SLOW else "idle": SHORT} if is_slow(case) else {}
    up = upstream(target(url), provider=case.provider, timeouts=timeouts, usage=usage)
    gateways = {"default": gateway(rule("models", "/v1/*"), rule("rest", upstream="up"))}
    said = {"x-ratelimit": False, "x-aigw": False, "server-timing": False}
    return document({"up": up}, gateways=gateways, answer_headers=said)


def is_slow(case: Case) -> bool:
    return case.outcome is Outcome.SLOW or (case.outcome is Outcome.CUT and case.end is End.STAYS)


def deliveries(case: Case) -> dict[str, list[bytes]]:
    raw = case.raw
    if is_slow(case):
        return {"whole": [raw]}
    if case.requests > 1:  # what comes behind the second request is its answer: HTTP/1.1 has no names for answers
        return {"whole": [raw], "used": [raw]}
    found = {"whole": [raw], "used": [raw]}
    if case.end is End.FIN and raw:
        found["together"] = [raw]
    if len(raw) > 1:
        found["bytes"] = pieces(raw, 1 if len(raw) <= MANY else len(raw) // MANY_PIECES)
        seed = crc32(case.name.encode())
        found[f"cuts {seed}"] = random_pieces(raw, seed)
    return found


# one delivery ---------------------------------------------------------------------------------------------------------


async def until_answered(client: Client, got: Got) -> None:
    """Read until every request is answered, or the connection has ended."""
    while True:
        final = got.reading().final
        if len(final) >= len(got.methods) and not any(message.closes for message in final):
            return
        try:
            async with asyncio.timeout(LIMIT):
                data = await client.reader.read(65536)
        except ConnectionResetError:
            got.end = End.RST
            return
        if not data:
            got.end = End.FIN
            return
        got.data += data


async def deliver(case: Case, parts: list[bytes], how: str, gw: Running, up: Stub) -> Got:
    script = Script(case, parts, together=how == "together")
    up.handler = script
    first = len(gw.lines)
    if how == "used" or case.outcome is Outcome.DROPPED:
        await gw.ask(get("/before"))
        first += 1
    connections = len(up.connections)
    client = await gw.connect()
    got = Got([case.method] * case.requests)
    await client.send(case.request)
    await until_answered(client, got)
    if case.outcome is Outcome.DROPPED:
        assert script.last is not None
        with suppress(ConnectionError):
            await script.speak(script.last)
    elif not (is_slow(case) and case.raw == b""):
        async with asyncio.timeout(LIMIT):
            await script.done.wait()
    for _ in range(3):  # what the upstream wrote last has arrived, and what that led to too
        await asyncio.sleep(0)
    last = script.last
    if got.end is None:
        got.methods.append("GET")
        await client.send(AFTER)
        await until_answered(client, got)
    else:
        got.after = (await gw.ask(AFTER)).raw
    got.kept = script.last is last and len(up.connections) <= connections + (how != "used")
    got.record = await gw.record(first)
    await client.close()
    return got


_verdicts: dict[str, dict[str, tuple[Verdict, str]]] = {}


async def verdicts(case: Case) -> dict[str, tuple[Verdict, str]]:
    """By delivery. A case is run once; the summary asks again."""
    if case.name not in _verdicts:
        asyncio.get_running_loop().set_debug(False)  # it is most of the time of two thousand exchanges
        found: dict[str, tuple[Verdict, str]] = {}
        async with stub() as up, running(config(case, up.url)) as gw:
            for how, parts in deliveries(case).items():
                try:
                    got = await deliver(case, parts, how, gw, up)
                except TimeoutError:
                    found[how] = (Verdict.HANG, repr(gw.gateway.clients))
                else:
                    found[how] = judge(case, how, got)
        _verdicts[case.name] = found
    return _verdicts[case.name]


# the tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_case(case: Case) -> None:
    found = await verdicts(case)
    wrong = {how: verdict for how, verdict in found.items() if verdict[0] is not Verdict.EXACT}
    assert not wrong


def tapped(case: Case) -> Case:
    """The same as events of a provider, whose usage is read as they pass: that must change nothing."""
    kind = OK + b"content-type: text/event-stream\r\n"
    asked = post(CHAT_PATH, b'{"stream": true, ' + CHAT[1:], b"x-request-id: id")
    return replace(
        case,
        name=case.name + ", tapped",
        raw=case.raw.replace(OK, kind, 1),
        seen=case.seen.replace(OK, kind, 1),
        request=asked if case.request == GET else asked.replace(b" HTTP/1.1", b" HTTP/1.0", 1),
        provider="openai",
    )


TAPPED = [
    tapped(case)
    for case in CASES
    if CHUNKED in case.raw and case.request in (GET, OLD) and case.outcome is not Outcome.REFUSED and not is_slow(case)
]


@pytest.mark.parametrize("case", TAPPED, ids=lambda case: case.name)
async def test_a_case_of_events_whose_usage_is_read(case: Case) -> None:
    assert len(TAPPED) >= 80
    wrong = {how: verdict for how, verdict in (await verdicts(case)).items() if verdict[0] is not Verdict.EXACT}
    assert not wrong


@pytest.mark.parametrize("case", TAPPED, ids=lambda case: case.name)
async def test_a_case_of_events_that_are_written_anew(case: Case) -> None:
    """The gateway asked for the usage, which the client did not: events come in chunks of its own, and are as true."""
    sent = read(case.raw, ["POST"]).final
    asyncio.get_running_loop().set_debug(False)
    async with stub() as up, running(config(case, up.url, usage="inject")) as gw:
        for how, parts in deliveries(case).items():
            got = await deliver(case, parts, how, gw, up)
            assert b"include_usage" in next(seen.body for seen in reversed(up.seen) if seen.body)
            final = list(got.reading().final)
            behind = got.after if got.end else final.pop().raw
            assert without_id(behind) == AFTER_SEEN
            assert case.keeps or not got.kept
            if case.outcome is Outcome.RELAYED:
                assert [(answer.body, is_own(answer)) for answer in final] == [(sent[0].body, False)], how
            elif case.outcome is Outcome.SURPLUS:
                assert not final or is_own(final[0]) or final[0].body == sent[0].body, how
            else:
                assert not final or is_own(final[0]), how
            assert got.end is None or final or got.record["fault"] == "upstream"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_strict_reader_says_the_same_of_what_was_sent(case: Case) -> None:
    """The expected outcome is no matter of opinion: whole is what a reader by the letter finds whole."""
    reading = read(case.raw, [case.method], fin=case.end is End.FIN)
    if case.outcome is Outcome.RELAYED:
        assert not reading.fault
        assert len(reading.final) == 1
        assert not read(case.seen, [case.method], fin=True).fault
    elif case.outcome is Outcome.SURPLUS:
        assert len(reading.final) == 1
        assert reading.rest
    elif case.outcome is Outcome.CUT and "overflow" not in case.rfc:
        assert reading.fault == INCOMPLETE
        assert not reading.final
    elif case.outcome is not Outcome.DROPPED and not case.rfc.startswith(POLICY):
        assert not reading.final


async def test_the_marks() -> None:
    found = {case: await verdicts(case) for case in CASES}
    worst = Counter(
        max((verdict for verdict, _ in by_delivery.values()), key=list(Verdict).index) for by_delivery in found.values()
    )
    assert len({case.name for case in CASES}) == len(CASES) >= 120
    assert sum(case.outcome is Outcome.RELAYED for case in CASES) >= 40
    assert all(case.rfc for case in CASES)
    assert (worst[Verdict.UNSAFE], worst[Verdict.HANG], worst[Verdict.REFUSED]) == (0, 0, 0), worst
    assert worst[Verdict.EXACT] / len(CASES) >= 0.97, worst
