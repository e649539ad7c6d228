"""Plays a case: its bytes go to the real gateway over a real socket, and out comes what happened on both sides."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from fakes import Answer, Client, Running, key, model, random_pieces, rule, target, until, upstream
from fakes import document as whole_document
from fakes import gateway as gateway_spec
from smuggling.recorder import Recorder
from smuggling.requests.case import SENTINEL, Case, End, Seen
from smuggling.strict import Request, split_field

KEY = b"sk-aigw-corpus"
OTHER_KEY = b"sk-aigw-other"
SECRET = b"sk-upstream-secret"
# Cases longer than this are not sent byte by byte in their middle: 64 KiB one by one show nothing that the ends do not.
LONG = 512
SEED = 20


def document(url: str) -> dict[str, object]:
    """The config that the cases are played on.

    Paths under `/s/` are spliced to an upstream without a credential, those under `/private/` to one that marks its
    requests, the rest goes by model to one that has a credential. The gateway `keyed` asks for a key, `bymodel` has no
    upstream for what names no model, `kept` passes the Host on and has no rule for the rest.
    """
    spliced = rule("spliced", "/s/*", upstream="plain")
    rules = [
        spliced,
        rule("private", "/private/*", upstream="private"),
        rule("get", "/get/*", upstream="plain", methods=["GET", "HEAD"]),
        rule("strip", "/strip/*", upstream="plain", strip_path=True),
        rule("api", "/*", default="llm"),
    ]
    models = {"cheap": model("llm"), "dear": model("llm"), "alias": model("llm", "real-name"), "g-*": model("gemini")}
    keys = {"one": key(KEY.decode(), models=["cheap"]), "two": key(OTHER_KEY.decode(), models=["dear"])}
    keyed = [rule("public", "/public/*", upstream="plain", public=True), *rules]
    kept = [
        rule("kept", "/s/*", upstream="plain", preserve_host=True),
        rule("get", "/get/*", upstream="plain", methods=["GET", "HEAD"]),
    ]
    return whole_document(
        {
            "plain": upstream(target(url), provider="http"),
            "private": upstream(target(url, headers={"x-by": "private"}), provider="http"),
            "llm": upstream(target(url, api_key=SECRET.decode())),
            "gemini": upstream(target(url, api_key=SECRET.decode()), provider="gemini"),
        },
        gateways={
            "default": gateway_spec(*rules, models=models),
            "keyed": gateway_spec(*keyed, hosts=["keyed"], auth="keys", keys=keys, models=models),
            "bymodel": gateway_spec(rule("api"), hosts=["bymodel"], models=models),
            "kept": gateway_spec(*kept, hosts=["kept"], models={}),
        },
        bounds={"body": 64 * 1024},
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened, in the words of `Case`; `problems` are what must never be."""

    statuses: tuple[int, ...]
    seen: tuple[Seen, ...]
    is_open: bool
    begun: bool
    problems: tuple[str, ...]

    def fits(self, case: Case) -> bool:
        return (
            not self.problems
            and self.statuses == case.statuses
            and self.seen == case.seen
            and (case.end is End.EITHER or self.is_open == (case.end is End.OPEN))
            and self.begun <= case.begun
        )

    def is_unsafe(self, case: Case) -> bool:
        """The upstream saw what it must not, or the client got an answer that is not its own."""
        return bool(self.problems) or self.seen != case.seen or self.begun > case.begun


def ways(case: Case) -> dict[str, list[bytes]]:
    """The pieces that a case is sent in, by name. Only the first lets the sentinel come with the last piece."""
    raw = case.raw
    singly = [raw[i : i + 1] for i in range(len(raw))]
    if len(raw) > LONG:
        middle = raw[LONG // 2 : -LONG // 2]
        singly[LONG // 2 : -LONG // 2] = [middle[i : i + 1000] for i in range(0, len(middle), 1000)]
    return {
        "whole": [raw],
        "byte by byte": singly,
        f"cut at random, seed {SEED}": random_pieces(raw, SEED) if raw else [],
    }


async def play(run: Running, recorder: Recorder, case: Case, pieces: list[bytes]) -> Outcome:
    """Raises TimeoutError where something that must come does not."""
    recorder.take()
    client = await run.connect()
    with suppress(ConnectionError):  # whoever is refused early need not be listened to
        if len(pieces) == 1 and not case.fin:
            await client.send(case.raw + SENTINEL)
        else:
            await client.send(*pieces)
            if case.fin:
                client.writer.write_eof()
            elif case.end is not End.CLOSES or not case.is_valid:
                await client.send(SENTINEL)  # a client that said `close` must not send more: a reset would meet it
    answers, is_open = await _answers(client, recorder, case)
    await client.close()
    await until(lambda: not run.open_ends, f"{case.name}: nothing held")
    await recorder.quiet()
    return _outcome(recorder, answers, is_open)


async def _answers(client: Client, recorder: Recorder, case: Case) -> tuple[list[Answer], bool]:
    """The final answers, up to the one to the sentinel, and whether that one came."""
    methods = [request.line.partition(b" ")[0] for request in case.seen]
    methods += [case.raw.partition(b" ")[0]] * (len(case.statuses) - len(methods))
    answers: list[Answer] = []
    while True:
        head_only = len(answers) < len(methods) and methods[len(answers)] == b"HEAD"
        try:
            answer = await client.answer(head_only=head_only)
        except EOFError as error:
            # StreamReader tells what had come before the end
            rest = getattr(error, "partial", b"")
            assert not rest, f"{case.name}: the connection ended in the midst of an answer: {rest!r}"
            return answers, False
        except ConnectionResetError:
            return answers, False
        if answer.status == 100:
            continue
        number = answer.headers.get("x-seen")
        requests = recorder.requests
        is_last = number is not None and int(number) == recorder.first + len(requests) - 1
        if is_last and requests[-1].target == b"/s/sentinel":
            return answers, True
        answers.append(answer)


def _outcome(recorder: Recorder, answers: list[Answer], is_open: bool) -> Outcome:
    problems = [*recorder.unclean]
    requests = recorder.requests[: len(recorder.requests) - is_open]
    numbers = [int(answer.headers["x-seen"]) for answer in answers if "x-seen" in answer.headers]
    if numbers != list(range(recorder.first, recorder.first + len(requests))):
        problems.append(f"answers {numbers} to requests {[request.line for request in requests]}")
    problems += [
        f"no request that the gateway would write: {request}"
        for request in requests
        if len(request.values(b"x-request-id")) != 1 or request.target[:1] not in (b"/", b"*")
    ]
    problems += [
        f"a secret in an answer: {answer.raw!r}"
        for answer in answers
        if any(secret in answer.raw for secret in (SECRET, KEY, OTHER_KEY))
    ]
    begun = bool(recorder.unfinished or recorder.held)
    statuses = tuple(answer.status for answer in answers)
    return Outcome(statuses, tuple(map(_seen, requests, [recorder] * len(requests))), is_open, begun, tuple(problems))


def _seen(request: Request, recorder: Recorder) -> Seen:
    """A request in the words of the corpus, without what the gateway always adds."""
    lines = []
    host = b""
    by = "plain"
    for line in request.lines:
        name, value = split_field(line)
        if name == b"host":
            host = b"" if value == recorder.url.removeprefix("http://").encode() else value
        elif line in (b"x-by: private", b"authorization: Bearer " + SECRET, b"x-goog-api-key: " + SECRET):
            by = {b"x-by": "private", b"authorization": "llm", b"x-goog-api-key": "gemini"}[name]
        elif name not in (b"x-request-id", b"content-length", b"transfer-encoding"):
            lines.append(line)
    return Seen(request.line, tuple(lines), request.body, request.trailers, host, by)
