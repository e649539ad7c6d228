"""Another attempt at the same upstream: when there is one, what is sent, what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import (
    CHAT,
    Connection,
    Handler,
    Seen,
    deaf,
    document,
    gateway,
    hangs,
    in_turn,
    key,
    model,
    ok,
    pieces,
    post,
    resets,
    retry,
    rule,
    running,
    stub,
    target,
    until,
    upstream,
)

from aigw.counters import TRIED
from aigw.proxy.trying import PAUSE, Budget
from aigw.shared import Series

CHAT_PATH = "/v1/chat/completions"
ALL = ("connect", "reset", "first_byte", "429", "5xx")
LIMITED = ok(b'{"error": {"message": "slow down"}}', status=b"429 Too Many Requests")
BROKEN = ok(b"{}", status=b"503 Service Unavailable")


def trying(*urls: str, when: tuple[str, ...] = ALL, attempts: int = 2, budget: float = 1.0, **fields: Any) -> Any:
    """One upstream with a target for each URL, and a retry on the gateway."""
    timeouts = fields.pop("client_timeouts", {})
    targets = [target(url, name) for url, name in zip(urls, "abcdef", strict=False)]
    asked = gateway(retry=retry(*when, attempts=attempts, budget=budget))
    return document({"up": upstream(*targets, **fields)}, gateways={"default": asked}, timeouts=timeouts)


def tried(gw: Any) -> dict[str, int]:
    """What was counted of attempts that were followed by another, by upstream and status."""
    items = Series(gw.gateway.row, 0).items(TRIED)
    return {text.decode(): count for text, (count,) in items if count}


OUTCOMES: list[tuple[str, Handler | bytes, str, int]] = [
    ("reset", resets, "upstream_reset", 502),
    ("502", resets, "upstream_reset", 502),
    ("5xx", BROKEN, "503", 503),
    ("503", BROKEN, "503", 503),
    ("429", LIMITED, "429", 429),
    ("first_byte", hangs, "first_byte_timeout", 504),
    ("504", hangs, "first_byte_timeout", 504),
    ("5xx", b"nonsense\r\n\r\n", "upstream_malformed", 502),
]


def failing(url: str, fails: Handler | bytes, *when: str) -> Any:
    """With a deadline for what never answers, which is long enough for what does."""
    return trying(url, when=when, timeouts={"first_byte": 0.5} if fails is hangs else {})


@pytest.mark.parametrize(
    ("word", "fails", "outcome", "status"), OUTCOMES, ids=lambda value: getattr(value, "__name__", str(value)[:24])
)
async def test_what_is_configured_is_tried_again(word: str, fails: Handler | bytes, outcome: str, status: int) -> None:
    async with stub(in_turn(fails, ok())) as up, running(failing(up.url, fails, word)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.body) == (200, b'{"ok": true}')
        assert answer.headers["x-aigw-attempts"] == "2"
        assert "x-should-retry" not in answer.headers
        assert [seen.body for seen in up.seen] == [CHAT, CHAT]
        assert up.seen[0].raw == up.seen[1].raw
        record = await gw.record()
        assert [(one["target"], one["outcome"]) for one in record["attempts"]] == [
            ("up/a", outcome),
            ("up/a", "200"),
        ]
        assert all(one["ms"] >= 0 for one in record["attempts"])
        assert (record["status"], record["end"]) == (200, "ok")
        assert tried(gw) == {f"up/{status}": 1}


@pytest.mark.parametrize(
    ("when", "fails", "status"),
    [
        (("429",), BROKEN, 503),
        (("5xx",), LIMITED, 429),
        (("connect", "first_byte", "429"), resets, 502),
        (("503", "429"), resets, 502),
        (("reset",), b"nonsense\r\n\r\n", 502),
        (("reset",), hangs, 504),
        (ALL, ok(status=b"400 Bad Request"), 400),
        (ALL, ok(status=b"404 Not Found"), 404),
    ],
)
async def test_other_outcomes_are_the_answer(when: tuple[str, ...], fails: Handler | bytes, status: int) -> None:
    async with stub(in_turn(fails)) as up, running(failing(up.url, fails, *when)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert answer.status == status
        assert answer.headers.get("x-aigw-attempts", "1") == "1"
        assert "x-should-retry" not in answer.headers
        assert len(up.seen) == 1
        assert "attempts" not in await gw.record()
        assert tried(gw) == {}


async def test_a_success_is_one_attempt() -> None:
    async with stub() as up, running(trying(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert answer.headers["x-aigw-attempts"] == "1"
        assert "attempts" not in await gw.record()


async def test_the_last_answer_is_relayed_as_it_is_and_says_not_to_try_again() -> None:
    last = ok(b'{"error": "two"}', b"x-should-retry: true", b"x-a: b", status=b"429 Too Many Requests")
    async with stub(in_turn(LIMITED, last)) as up, running(trying(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.body, answer.headers["x-a"]) == (429, b'{"error": "two"}', "b")
        assert [line for line in answer.lines if line.startswith(b"x-should-retry")] == [b"x-should-retry: false"]
        assert answer.headers["x-aigw-attempts"] == "2"
        record = await gw.record()
        assert [one["outcome"] for one in record["attempts"]] == ["429", "429"]
        assert "x-should-retry: true" not in answer.raw.decode()


async def test_a_failure_after_tries_says_not_to_try_again() -> None:
    async with stub(in_turn(LIMITED, resets)) as up, running(trying(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_reset")
        assert (answer.headers["x-should-retry"], answer.headers["x-aigw-attempts"]) == ("false", "2")


async def test_the_headers_are_not_said_where_they_are_switched_off() -> None:
    async with stub(in_turn(resets, ok(), resets)) as up:
        config = trying(up.url)
        config["answer_headers"] = {"x-ratelimit": True, "x-aigw": False, "server-timing": False}
        async with running(config) as gw:
            assert "x-aigw-attempts" not in (await gw.ask(post(CHAT_PATH))).headers
            answer = await gw.ask(post(CHAT_PATH))
            assert answer.status == 502
            assert "x-aigw-attempts" not in answer.headers


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_as_often_as_it_says(attempts: int) -> None:
    async with (
        stub(BROKEN) as one,
        stub(BROKEN) as two,
        stub(BROKEN) as three,
        stub(BROKEN) as four,
        stub(BROKEN) as five,
    ):
        ups = [one, two, three, four, five]
        async with running(trying(*[up.url for up in ups], attempts=attempts)) as gw:
            assert (await gw.ask(post(CHAT_PATH))).status == 503
            assert sum(len(up.seen) for up in ups) == attempts
            assert all(len(up.seen) <= 1 for up in ups)  # each at another target


async def test_another_target_is_asked_at_once() -> None:
    async with stub(BROKEN) as bad, stub() as good, running(trying(bad.url, good.url)) as gw:
        answers = [await gw.ask(post(CHAT_PATH)) for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        assert (len(bad.seen), len(good.seen)) == (2, 4)


async def test_a_target_without_weight_is_none() -> None:
    async with stub(in_turn(BROKEN, ok())) as up, stub() as drained:
        config = trying(up.url, drained.url)
        config["upstreams"]["up"]["targets"][1]["weight"] = 0
        async with running(config) as gw:
            assert (await gw.ask(post(CHAT_PATH))).status == 200
            assert (len(up.seen), len(drained.seen)) == (2, 0)


async def test_the_connection_of_a_declined_answer_is_used_again() -> None:
    async with stub(in_turn(LIMITED, ok(), BROKEN, ok())) as up, running(trying(up.url)) as gw:
        for _ in range(2):
            assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert len(up.connections) == 1


async def test_what_could_not_be_connected_to_is_tried_elsewhere_without_a_budget() -> None:
    async with stub() as up, running(trying("http://127.0.0.1:9", up.url, when=("connect",), budget=0.0)) as gw:
        assert [(await gw.ask(post(CHAT_PATH))).status for _ in range(4)] == [200] * 4
        assert [one["outcome"] for one in gw.records[0]["attempts"]] == ["connect_failed", "200"]


async def test_a_dial_that_takes_too_long() -> None:
    async with deaf() as silent, stub() as up:
        config = trying(silent.url, up.url, when=("connect",), timeouts={"connect": 0.3})
        async with running(config) as gw:
            assert (await gw.ask(post(CHAT_PATH))).status == 200
            assert gw.records[0]["attempts"][0]["outcome"] == "connect_timeout"


async def test_no_more_than_the_budget() -> None:
    async with stub(BROKEN) as up, stub(BROKEN) as other, running(trying(up.url, other.url, budget=0.0)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, len(up.seen) + len(other.seen)) == (503, 1)
        (attempt,) = (await gw.record())["attempts"]
        assert attempt["note"] == "the retries of the upstream are used up (retry.budget)"
        assert "x-should-retry" not in answer.headers  # nothing was tried again


def test_a_budget_is_a_share_with_a_floor() -> None:
    budget = Budget(100.0)
    assert sum(budget.take(0.2, 100.0) for _ in range(20)) == 10
    for _ in range(10):
        budget.add(0.2)
    assert sum(budget.take(0.2, 100.0) for _ in range(20)) in (1, 2)  # 10 times a fifth, in floats
    assert sum(budget.take(0.2, 103.5) for _ in range(20)) in (3, 4)
    assert sum(budget.take(0.2, 1000.0) for _ in range(20)) == 10
    for _ in range(10_000):
        budget.add(0.2)
    assert sum(budget.take(0.2, 1000.0) for _ in range(1000)) == 100
    assert not budget.take(0.0, 5000.0)


async def test_a_pause_before_the_same_target() -> None:
    async with stub(in_turn(BROKEN, ok())) as up, running(trying(up.url)) as gw:
        await gw.ask(post(CHAT_PATH))
        record = await gw.record()
        assert record["duration_ms"] >= PAUSE * 1e3 / 2
        # The pause is no attempt's time, nor the gateway's own.
        assert sum(one["ms"] for one in record["attempts"]) <= record["duration_ms"] - PAUSE * 1e3 / 2
        assert record["overhead_ms"] <= record["duration_ms"] - PAUSE * 1e3 / 2


@pytest.mark.parametrize("line", [b"retry-after: 1", b"retry-after-ms: 600", b"retry-after: 30\r\nretry-after-ms: 600"])
async def test_what_is_asked_for_is_waited_for(line: bytes) -> None:
    limited = LIMITED.replace(b"content-type", line + b"\r\ncontent-type", 1)
    async with stub(in_turn(limited, ok())) as up, running(trying(up.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert (await gw.record())["duration_ms"] >= 600


@pytest.mark.parametrize(
    ("line", "total", "note"),
    [
        (b"retry-after: 61", None, "the upstream asks to wait 61 s"),
        (b"retry-after: 30", 20.0, "there is no time left for a pause (timeouts.total)"),
    ],
)
async def test_what_takes_too_long_to_wait_for_is_told_to_the_client(
    line: bytes, total: float | None, note: str
) -> None:
    limited = LIMITED.replace(b"content-type", line + b"\r\ncontent-type", 1)
    async with stub(limited) as up, running(trying(up.url, client_timeouts={"total": total})) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, len(up.seen)) == (429, 1)
        assert answer.headers["retry-after"] == line.split()[1].decode()
        assert (await gw.record())["attempts"][0]["note"] == note


async def test_another_target_is_not_waited_for() -> None:
    limited = LIMITED.replace(b"content-type", b"retry-after: 3600\r\ncontent-type", 1)
    async with stub(limited) as one, stub() as other, running(trying(one.url, other.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200


@pytest.mark.parametrize("leaves", ["reset", "close"])
async def test_who_hangs_up_in_a_pause_is_not_waited_for(leaves: str) -> None:
    limited = LIMITED.replace(b"content-type", b"retry-after: 30\r\ncontent-type", 1)
    async with stub(limited) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await until(lambda: tried(gw), "the pause")
        client.reset() if leaves == "reset" else client.writer.close()
        record = await gw.record()
        assert (record["status"], record["end"]) == (499, "client_gone")
        assert "attempts" not in record  # one was made
        assert len(up.seen) == 1


async def test_the_gateway_s_end_ends_a_pause() -> None:
    limited = LIMITED.replace(b"content-type", b"retry-after: 30\r\ncontent-type", 1)
    async with stub(limited) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        await until(lambda: tried(gw), "the pause")
        assert await gw.gateway.drain(0, 0) == 1
        answer = await client.answer()
        assert (answer.status, answer.headers["x-aigw-error"]) == (503, "draining")
        assert answer.headers["x-aigw-attempts"] == "1"


@pytest.mark.parametrize("fails", [LIMITED, resets])
async def test_informational_answers_come_through_of_each_attempt(fails: Handler | bytes) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(hints)
        if len(up.seen) > 1:
            await connection.send(ok())
        elif isinstance(fails, bytes):
            await connection.send(fails)
        else:
            await fails(connection, seen)

    async with stub(handler) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        assert (await client.ask(post(CHAT_PATH))).status == 103
        assert (await client.answer()).status == 103
        assert (await client.answer()).headers["x-aigw-attempts"] == "2"


async def test_the_next_request_of_the_connection_is_served() -> None:
    """Pipelined behind one that is tried again, and answered in order."""
    async with stub(in_turn(BROKEN, ok(b"one"), ok(b"two"))) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH) + post(CHAT_PATH))
        assert [(await client.answer()).body, (await client.answer()).body] == [b"one", b"two"]
        assert len(up.seen) == 3


async def test_all_targets_down_is_said_at_once() -> None:
    config = trying("http://127.0.0.1:9", "http://127.0.0.1:10", attempts=2)
    async with running(config) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_failed")
        assert [one["target"] for one in (await gw.record())["attempts"]] == ["up/a", "up/b"]


async def test_the_total_ends_a_pause() -> None:
    limited = LIMITED.replace(b"content-type", b"retry-after-ms: 290\r\ncontent-type", 1)
    async with stub(in_turn(limited, hangs)) as up, running(trying(up.url, client_timeouts={"total": 1.0})) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (504, "total_timeout")
        assert answer.headers["x-should-retry"] == "false"
        assert [one["outcome"] for one in (await gw.record())["attempts"]] == ["429", "total_timeout"]


async def test_nothing_is_tried_again_once_it_was_begun_to_be_answered() -> None:
    async def half(connection: Connection, seen: Seen) -> None:
        await connection.send(ok().partition(b"{")[0] + b"{")
        connection.close()

    async with stub(half) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        await client.send(post(CHAT_PATH))
        assert (await client.rest()).endswith(b"\r\n\r\n{")
        assert len(up.seen) == 1
        record = await gw.record()
        assert (record["end"], record["error"]) == ("cut", "upstream_cut")
        assert "attempts" not in record


# bodies ---------------------------------------------------------------------------------------------------------------


def large(size: int) -> bytes:
    return json.dumps({"model": "gpt-4o", "x": "y" * size}).encode()


@pytest.mark.parametrize("size", [1000, 300_000, 2 * 2**20])
@pytest.mark.parametrize("form", ["length", "chunks"])
async def test_a_body_of_any_size_is_kept(size: int, form: str) -> None:
    body = large(size)
    raw = post(CHAT_PATH, body, chunks=pieces(body, 50_000) if form == "chunks" else None)
    async with stub(in_turn(resets, ok())) as up, running(trying(up.url)) as gw:
        assert (await gw.ask(raw)).status == 200
        assert [seen.body == body for seen in up.seen] == [True, True]
        assert gw.gateway.collected == 0


async def test_a_body_is_held_until_the_answer_begins_and_no_longer() -> None:
    async def half(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(b"{}")[:-1])
        await connection.gone()

    async with stub(half) as up, running(trying(up.url)) as gw:
        client = await gw.connect()
        body = large(300_000)
        await client.send(*pieces(post(CHAT_PATH, body), 30_000))
        await client.read(b"{")
        (connected,) = gw.gateway.clients
        assert connected.exchange is not None
        assert (connected.exchange.whole, gw.gateway.collected) == (b"", 0)
        await client.close()


async def test_a_form_that_is_passed_on_is_not_tried_again() -> None:
    """Not even where nobody was there to take it: it has a model's name in it already."""
    head = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
    form = head + b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nAAAA\r\n--b--\r\n'
    raw = post("/v1/audio/transcriptions", form).replace(b"application/json", b"multipart/form-data; boundary=b")
    async with stub() as up, running(trying("http://127.0.0.1:9", up.url)) as gw:
        client = await gw.connect()
        await client.send(raw[:-10], raw[-10:])
        assert (await client.answer()).status == 502
        assert "not kept" in (await gw.record())["attempts"][0]["note"]
        assert (await gw.ask(raw)).status == 200


async def test_what_belongs_to_a_provider_stays_at_its_target() -> None:
    async with stub(in_turn(BROKEN, ok())) as one, stub() as other:
        config = trying(one.url, other.url)
        config["gateways"]["default"]["rules"] = [rule(default="up")]
        async with running(config) as gw:
            answer = await gw.ask(b"GET /v1/responses/resp_1 HTTP/1.1\r\nhost: gw\r\n\r\n")
            assert (answer.status, len(one.seen), len(other.seen)) == (200, 2, 0)


def by_rule(url: str, **fields: Any) -> Any:
    asked = gateway(rule(upstream="up", retry=retry(*ALL, attempts=3)), models={})
    return document({"up": upstream(target(url), provider="http")}, gateways={"default": asked}, **fields)


@pytest.mark.parametrize("form", ["whole", "later", "chunks"])
async def test_a_body_that_is_not_read_is_kept_too(form: str) -> None:
    body = b"x" * 100_000
    raw = post("/orders", body, chunks=pieces(body, 9_000) if form == "chunks" else None)
    async with stub(in_turn(resets, BROKEN, ok())) as up, running(by_rule(up.url)) as gw:
        client = await gw.connect()
        await client.send(*pieces(raw, 30_000 if form == "later" else len(raw)))
        assert (await client.answer()).status == 200
        assert [seen.body == body for seen in up.seen] == [True, True, True]
        assert gw.gateway.collected == 0


@pytest.mark.parametrize("form", ["length", "chunks"])
async def test_a_body_too_large_to_be_kept_is_passed_on_and_not_tried_again(form: str) -> None:
    body = b"x" * 300_000
    raw = post("/orders", body, chunks=pieces(body, 9_000) if form == "chunks" else None)
    async with stub(BROKEN) as up, running(by_rule(up.url, bounds={"body": 65536})) as gw:
        client = await gw.connect()
        await client.send(*pieces(raw, 20_000))
        assert (await client.answer()).status == 503
        assert [seen.body == body for seen in up.seen] == [True]
        (attempt,) = (await gw.record())["attempts"]
        assert (attempt["outcome"], attempt["note"]) == ("503", "the body was not kept, so it cannot be sent again")


async def test_a_body_that_finds_no_room_is_passed_on() -> None:
    body = b"x" * 300_000
    async with stub() as up, running(by_rule(up.url, bounds={"body": 200_000, "collected": 100_000})) as gw:
        client = await gw.connect()
        await client.send(*pieces(post("/orders", chunks=pieces(body, 9_000)), 20_000))
        assert (await client.answer()).status == 200
        assert up.last.body == body


async def test_an_upstream_that_answers_before_the_body_is_sent() -> None:
    """413 or 401 while the client still sends: relayed, never tried again."""

    async def early(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(b"{}", status=b"503 Service Unavailable"))
        await connection.gone()

    async with stub(on_head=early) as up, running(by_rule(up.url, bounds={"body": 65536})) as gw:
        client = await gw.connect()
        await client.send(post("/orders", b"x" * 100_000)[:-1000])
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert len(up.connections) == 1


async def test_a_get_is_tried_again() -> None:
    async with stub(in_turn(resets, ok())) as up, running(by_rule(up.url)) as gw:
        assert (await gw.ask(b"GET /x HTTP/1.1\r\nhost: gw\r\n\r\n")).status == 200
        assert len(up.seen) == 2


# which retry holds ----------------------------------------------------------------------------------------------------

LEVELS = ("gateway", "rule", "model", "key")


@pytest.mark.parametrize("count", range(len(LEVELS) + 1))
async def test_the_most_specific_holds(count: int) -> None:
    """Each level says another number; the last of those that say one holds."""
    said = {level: retry("429", attempts=index + 2) for index, level in enumerate(LEVELS[:count])}
    async with (
        stub(LIMITED) as one,
        stub(LIMITED) as two,
        stub(LIMITED) as three,
        stub(LIMITED) as four,
        stub(LIMITED) as five,
    ):
        ups = [one, two, three, four, five]
        asked = gateway(
            rule(retry=said.get("rule")),
            auth="keys",
            keys={"k": key("sk-k", retry=said.get("key"))},
            models={"*": model("up", retry=said.get("model"))},
            retry=said.get("gateway"),
        )
        targets = [target(up.url, name) for up, name in zip(ups, "abcde", strict=True)]
        async with running(document({"up": upstream(*targets)}, gateways={"default": asked})) as gw:
            assert (await gw.ask(post(CHAT_PATH, CHAT, b"authorization: Bearer sk-k"))).status == 429
            assert sum(len(up.seen) for up in ups) == count + 1


async def test_a_key_without_one_has_the_gateways() -> None:
    keys = {"one": key("sk-1", retry=retry("429", attempts=1)), "two": key("sk-2")}
    async with stub(in_turn(LIMITED, LIMITED, ok())) as up:
        asked = gateway(auth="keys", keys=keys, retry=retry("429"))
        async with running(document({"up": upstream(target(up.url))}, gateways={"default": asked})) as gw:
            assert (await gw.ask(post(CHAT_PATH, CHAT, b"authorization: Bearer sk-1"))).status == 429
            assert (await gw.ask(post(CHAT_PATH, CHAT, b"authorization: Bearer sk-2"))).status == 200


# our own credential ---------------------------------------------------------------------------------------------------

REFUSED = ok(b'{"error": {"message": "bad key sk-secret"}}', status=b"401 Unauthorized")


@pytest.mark.parametrize("refused", [REFUSED, ok(b'{"error": "no such API key"}', status=b"403 Forbidden")])
async def test_a_refused_credential_is_tried_elsewhere_if_it_is_named(refused: bytes) -> None:
    async with stub(refused) as one, stub() as other:
        config = trying(one.url, other.url, when=("upstream_credential_refused",), api_key="sk-secret")
        async with running(config) as gw:
            answer = await gw.ask(post(CHAT_PATH))
            assert (answer.status, answer.headers["x-aigw-attempts"]) == (200, "2")
            assert gw.records[0]["attempts"][0]["outcome"] == "upstream_credential_refused"
            refusals = dict(Series(gw.gateway.row, 0).items(b"aigw_credential_refused"))
            assert refusals[b"up"] == [1]


async def test_a_refused_credential_is_no_5xx() -> None:
    async with stub(REFUSED) as up, running(trying(up.url, api_key="sk-secret")) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"]) == (502, "upstream_credential_refused")
        assert b"sk-secret" not in answer.raw
        assert len(up.seen) == 1


# the replay that needs no configuration -------------------------------------------------------------------------------


async def test_a_replay_is_no_attempt_and_costs_no_budget() -> None:
    async with stub(in_turn(ok(), resets, ok())) as up, running(trying(up.url, budget=0.0)) as gw:
        for _ in range(2):
            answer = await gw.ask(post(CHAT_PATH))
            assert (answer.status, answer.headers["x-aigw-attempts"]) == (200, "1")
        assert len(up.seen) == 3
        assert all("attempts" not in record for record in gw.records)


@pytest.mark.parametrize("size", ["whole", 1, 7])
async def test_cuts_make_no_difference(size: str | int) -> None:
    """Both directions in pieces."""

    def cut(raw: bytes) -> list[bytes]:
        return [raw] if isinstance(size, str) else pieces(raw, size)

    async def answers(connection: Connection, seen: Seen) -> None:
        await connection.send(*cut(LIMITED if len(up.seen) == 1 else ok()))

    async with stub(answers) as up, running(trying(up.url, when=("429",))) as gw:
        client = await gw.connect()
        await client.send(*cut(post(CHAT_PATH)))
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["x-aigw-attempts"]) == (200, b'{"ok": true}', "2")
        assert [seen.body for seen in up.seen] == [CHAT, CHAT]
