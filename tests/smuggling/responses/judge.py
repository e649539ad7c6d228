"""What became of a case, and whether that is as it should be. Judged by the bytes a client got and by the record."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fakes import ok

from .case import Case, End, Outcome
from .reader import Message, Reading, read

ID = b"x-request-id: id\r\n"
# The answer to the request that each delivery sends behind its case.
AFTER_SEEN = ok(b"after")
FAILED = ("failed", "upstream")


class Verdict(Enum):
    EXACT = "as expected"
    SAFE = "otherwise, and safe"
    REFUSED = "a valid answer was not relayed"
    UNSAFE = "what is broken passed for whole, or bytes of one answer got into another"
    HANG = "no end"


@dataclass(slots=True)
class Got:
    """What became of a case: all that the client's connection brought, and how that ended (None: it did not)."""

    methods: list[str]
    data: bytes = b""
    end: End | None = None
    after: bytes = b""  # the answer to the request behind it, where that took another connection
    record: dict[str, Any] = field(default_factory=dict)
    kept: bool = False  # whether the upstream's connection served the request behind it

    def reading(self) -> Reading:
        return read(self.data, self.methods, fin=self.end is End.FIN)


def without_id(raw: bytes) -> bytes:
    """As it came, but for the line that the gateway ends each final head with."""
    return raw.replace(ID, b"", 1)


def is_own(message: Message) -> bool:
    return bool(message.values(b"x-aigw-error"))


def judge(case: Case, how: str, got: Got) -> tuple[Verdict, str]:
    reading = got.reading()
    final = list(reading.final)
    behind = got.after
    if got.end is None:
        if len(final) < len(got.methods) or reading.fault:
            return Verdict.UNSAFE, f"the request behind it: {reading}"
        behind = final.pop().raw
    if without_id(behind) != AFTER_SEEN:
        return Verdict.UNSAFE, f"the request behind it got {behind!r}"
    if got.kept and not case.keeps:
        return Verdict.UNSAFE, "the upstream's connection was used again"
    if case.requests > 1 and got.end is None and without_id(final.pop().raw) != AFTER_SEEN:
        return Verdict.UNSAFE, f"the pipelined request: {reading}"
    before = b"".join(message.raw for message in reading.messages if message.status < 200)
    answer = final[0] if final else None
    if answer is not None and is_own(answer):
        return judge_own(case, got, before, answer)
    if answer is not None:
        return judge_whole(case, how, got, before + without_id(answer.raw))
    return judge_cut(case, got, without_id(got.data))


def judge_own(case: Case, got: Got, before: bytes, answer: Message) -> tuple[Verdict, str]:
    """The gateway answered by itself."""
    said = (answer.status, answer.values(b"x-aigw-error")[0].decode(), got.record["error"], got.record["status"])
    outcome = case.outcome
    status = 504 if outcome is Outcome.SLOW else 502
    if outcome in (Outcome.RELAYED, Outcome.DROPPED):
        return Verdict.REFUSED, f"{said} {answer.body!r}"
    if said != (status, case.code, case.code, status) or (got.record["end"], got.record["fault"]) != FAILED:
        return Verdict.SAFE, f"{said} {answer.body!r} {got.record}"
    if outcome in (Outcome.REFUSED, Outcome.SLOW) and before != case.seen:
        return Verdict.SAFE, f"before it: {before!r}"
    return Verdict.EXACT, ""


def judge_whole(case: Case, how: str, got: Got, seen: bytes) -> tuple[Verdict, str]:
    """A whole answer of the upstream's was relayed."""
    outcome = case.outcome
    if outcome is Outcome.DROPPED:
        return (Verdict.EXACT, "") if seen == ok(b"x") else (Verdict.UNSAFE, repr(seen))
    if outcome not in (Outcome.RELAYED, Outcome.SURPLUS):
        return Verdict.UNSAFE, f"relayed as whole: {seen!r}"
    if seen != case.seen:
        return (Verdict.REFUSED if outcome is Outcome.RELAYED else Verdict.UNSAFE), f"relayed: {seen!r}"
    if outcome is Outcome.SURPLUS:
        return (Verdict.SAFE if how in ("whole", "used", "together") else Verdict.EXACT), "relayed before the surplus"
    if (got.record["end"], got.record["fault"]) != ("ok", "none"):
        return Verdict.SAFE, f"the record: {got.record}"
    if got.kept is not case.keeps:
        return Verdict.SAFE, "the upstream's connection was closed"
    return Verdict.EXACT, ""


def judge_cut(case: Case, got: Got, seen: bytes) -> tuple[Verdict, str]:
    """What was relayed is not whole."""
    if case.outcome is Outcome.RELAYED:
        return Verdict.REFUSED, f"cut: {seen!r} {got.record}"
    if case.outcome not in (Outcome.CUT, Outcome.LATE, Outcome.SURPLUS) or got.end is None:
        return Verdict.UNSAFE, f"no answer, but {seen!r} and {got.end}"
    if not case.seen.startswith(seen):
        return Verdict.UNSAFE, f"relayed what was not sent: {seen!r}"
    if got.record["end"] not in ("cut", "stalled") or got.record["fault"] != "upstream":
        return Verdict.SAFE, f"the record: {got.record}"
    if case.outcome is Outcome.CUT and got.end is End.FIN and seen != case.seen:
        return Verdict.SAFE, f"less was relayed than came: {seen!r}"
    return Verdict.EXACT, ""
