"""Targets that are out: ejected for what attempts and probes say, known to all workers, and back in time.

Where the clock matters, `saw` and `refresh` are called with moments of the test's own; requests and probes are real.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from fakes import (
    Connection,
    Running,
    Seen,
    Stub,
    deaf,
    document,
    gateway,
    model,
    ok,
    post,
    rule,
    running,
    stub,
    target,
    until,
    upstream,
)

from aigw.counters import HEALTH
from aigw.proxy.health import Watched
from aigw.proxy.states import State
from aigw.shared import PID, Cells

CHAT_PATH = "/v1/chat/completions"
EJECT = {"after": 2, "for": 30.0}
HEALTH_SPEC = {"path": None, "interval": 0.05, "timeout": 2.0, "unhealthy_after": 2, "healthy_after": 2}


@pytest.fixture
def cells() -> Iterator[Cells]:
    made = Cells(rows=2)
    yield made
    os.close(made.descriptor)  # the memory goes with the last row of it


def config(*urls: str, **fields: Any) -> dict[str, Any]:
    """Targets a, b, ... of one upstream."""
    targets = [target(url, name) for name, url in zip("abcdef", urls, strict=False)]
    return document({"up": upstream(*targets, **({"eject": EJECT} | fields))})


def states(run: Running) -> dict[str, str]:
    return {text.decode(): watched.standing.state for text, watched in run.gateway.health._by_text.items()}


def watched(run: Running, name: str) -> Watched:
    return run.gateway.health._by_text[f"up/{name}".encode()]


def refused() -> str:
    """A URL where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def failing(how: str) -> Any:
    async def handler(connection: Connection, seen: Seen) -> None:
        if how == "reset":
            connection.reset()
        elif how == "malformed":
            await connection.send(b"nonsense\r\n\r\n")
        elif how == "hang":
            await connection.gone()
        else:
            await connection.send(ok(status=how.encode()))

    return handler


async def asked(run: Running, count: int) -> list[int]:
    return [(await run.ask(post(CHAT_PATH))).status for _ in range(count)]


# what attempts say ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "why"),
    [
        ("reset", 502, "upstream_reset"),
        ("malformed", 502, "upstream_malformed"),
        ("hang", 504, "first_byte_timeout"),
        ("500 Oops", 500, "it answered 500"),
        ("503 Busy", 503, "it answered 503"),
        ("529 Overloaded", 529, "it answered 529"),
    ],
)
async def test_a_target_that_fails_in_a_row_is_ejected(how: str, status: int, why: str) -> None:
    async with (
        stub(failing(how)) as bad,
        stub() as good,
        running(config(bad.url, good.url, timeouts={"first_byte": 0.15})) as run,
    ):
        assert await asked(run, 4) == [status, 200, status, 200]
        assert states(run) == {"up/a": "ejected", "up/b": "up"}
        assert await asked(run, 6) == [200] * 6
        assert len(bad.seen) == 2
        assert run.log == [f"target up/a is ejected for 30 s: it failed too often in a row, at last: {why}"]
        assert repr(run.gateway.health) == "<Health 2 watched 1 out>"


async def test_a_target_that_cannot_be_connected_to_is_ejected() -> None:
    async with stub() as good, running(config(refused(), good.url)) as run:
        assert sorted(await asked(run, 12)) == [200] * 10 + [502] * 2
        assert run.log == ["target up/a is ejected for 30 s: it failed too often in a row, at last: connect_failed"]


@pytest.mark.parametrize("how", ["400 Bad Request", "401 Unauthorized", "404 Not Found", "429 Too Many Requests"])
async def test_what_is_the_clients_or_the_keys_doing_ejects_nobody(how: str) -> None:
    async with stub(failing(how)) as bad, stub() as good, running(config(bad.url, good.url, api_key="sk-a")) as run:
        await asked(run, 12)
        assert (len(bad.seen), run.log) == (6, [])


async def test_failures_between_successes_are_not_in_a_row() -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(ok(status=b"500 Oops") if len(bad.seen) % 2 else ok())

    async with stub(handler) as bad, stub() as good, running(config(bad.url, good.url)) as run:
        await asked(run, 16)
        assert (len(bad.seen), run.log) == (8, [])


async def test_the_last_one_in_service_stays() -> None:
    async with (
        stub(failing("500 Oops")) as one,
        stub(failing("500 Oops")) as other,
        running(config(one.url, other.url)) as run,
    ):
        assert await asked(run, 12) == [500] * 12
        assert sorted(states(run).values()) == ["ejected", "up"]
        assert run.log == [
            "target up/a is ejected for 30 s: it failed too often in a row, at last: it answered 500",
            "target up/b fails, and stays since no other is in service: it answered 500",
        ]


async def test_an_ejected_target_is_back_once_it_can_be_connected_to() -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good, running(config(bad.url, good.url)) as run:
        await asked(run, 4)
        health = run.gateway.health
        out = watched(run, "a")
        health.refresh(out.ejection.until - 0.001)
        assert not out.under_way
        out.ejection.until = time.monotonic()
        health.refresh(out.ejection.until)
        await until(lambda: not out.is_out, "it is back")
        assert run.log[1:] == ["target up/a is back: it can be connected to"]
        assert states(run)["up/a"] == "up"
        assert (len(bad.seen), len(bad.connections)) == (2, 2)  # the connect asked for nothing
        await asked(run, 2)  # one failure is enough now
        assert run.log[2:] == [
            "target up/a is ejected for 60 s: it failed too often in a row, at last: it answered 500"
        ]


async def test_a_target_that_is_still_dead_stays_out_for_longer_and_no_client_finds_out() -> None:
    async with stub() as good, running(config(refused(), good.url)) as run:
        await asked(run, 4)
        run.gateway.health.refresh(watched(run, "a").ejection.until)
        await until(lambda: len(run.log) > 1, "its connect failed")
        assert run.log[1:] == ["target up/a stays ejected for 60 s: connection refused"]
        assert await asked(run, 4) == [200] * 4


@pytest.mark.parametrize(
    ("status", "line", "seconds"),
    [
        (b"429 Too Many Requests", b"retry-after: 20", 20),
        (b"503 Service Unavailable", b"Retry-After: 20", 20),
        (b"429 Too Many Requests", b"retry-after-ms: 2500", 2.5),
        (b"429 Too Many Requests", b"retry-after: 86400", 300),
        (b"429 Too Many Requests", b"retry-after: Thu, 01 Jan 2099 00:00:00 GMT", 300),
    ],
)
async def test_a_target_rests_as_long_as_it_says(status: bytes, line: bytes, seconds: float) -> None:
    async with (
        stub(ok(b"{}", line, status=status)) as busy,
        stub() as good,
        running(config(busy.url, good.url)) as run,
    ):
        first = await run.ask(post(CHAT_PATH))
        assert first.status == int(status[:3])
        assert await asked(run, 5) == [200] * 5
        assert states(run) == {"up/a": "resting", "up/b": "up"}
        assert run.log == [f"target up/a rests for {seconds:g} s: it answered {first.status} with retry-after"]
        run.gateway.health.refresh(time.monotonic() + seconds + 1)
        assert run.log[1:] == ["target up/a is asked again: its rest is over"]
        assert states(run)["up/a"] == "up"


@pytest.mark.parametrize("line", [b"retry-after: soon", b"retry-after: 0", b"retry-after: -5", b"x-retry-after: 5"])
async def test_what_says_no_time_lets_nobody_rest(line: bytes) -> None:
    async with (
        stub(ok(b"{}", line, status=b"429 Too Many Requests")) as busy,
        stub() as good,
        running(config(busy.url, good.url)) as run,
    ):
        await asked(run, 4)
        assert (len(busy.seen), run.log) == (2, [])


async def test_where_all_rest_the_first_to_be_back_is_asked_and_says_it_itself() -> None:
    one = ok(b"one", b"retry-after: 60", status=b"429 Too Many Requests")
    other = ok(b"other", b"retry-after: 20", status=b"429 Too Many Requests")
    async with stub(one) as a, stub(other) as b, running(config(a.url, b.url)) as run:
        bodies = [(await run.ask(post(CHAT_PATH))).body for _ in range(5)]
        assert bodies == [b"one", b"other", b"other", b"other", b"other"]


async def test_one_target_or_eject_off_is_not_watched() -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good:
        alone = config(bad.url)
        off = config(bad.url, good.url, eject=None)
        drained = config(bad.url, good.url)
        drained["upstreams"]["up"]["targets"][1]["weight"] = 0
        for given in (alone, off, drained):
            async with running(given) as run:
                await asked(run, 6)
                assert (states(run), run.log) == ({}, [])
                found = run.gateway.snapshot.gateways["default"].find_model("m")
                assert found is not None
                assert (found.only is not None) == (given is not off)


# connects that time out -----------------------------------------------------------------------------------------------

QUICK = {"connect": 0.1}
DOWN = "target up/a is down: connects time out; it is asked again once one succeeds"


async def test_nobody_waits_again_and_again_for_the_only_target_until_it_can_be_connected_to() -> None:
    async with deaf() as hole, running(config(hole.url, timeouts=QUICK)) as run:
        assert await asked(run, 3) == [502, 502, 502]
        assert (states(run), run.log) == ({"up/a": "down"}, [DOWN])
        answer = await run.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"], answer.headers["retry-after"]) == (503, "no_target", "1")
        run.apply(config(hole.url, timeouts=QUICK), 2)
        assert await asked(run, 1) == [503]
        await hole.hear()
        await until(lambda: states(run) == {"up/a": "up"}, "it can be connected to")
        assert run.log == [DOWN, "target up/a is up: it can be connected to"]
        await hole.hear()
        client = await run.connect()
        client.writer.write(post(CHAT_PATH))
        await until(lambda: any(one.state is State.WAITING for one in run.gateway.clients), "it is asked again")


async def test_of_many_none_is_the_last_that_all_wait_for() -> None:
    eject = {"after": 5, "for": 30.0}
    async with deaf() as one, deaf() as two, running(config(one.url, two.url, timeouts=QUICK, eject=eject)) as run:
        assert await asked(run, 8) == [502] * 6 + [503] * 2
        assert states(run) == {"up/a": "down", "up/b": "down"}
        said = (await run.ask(post(CHAT_PATH))).json()["error"]["message"]
        assert "every target of the upstream 'up' is down" in said


async def test_one_that_can_be_connected_to_takes_it_all() -> None:
    async with deaf() as hole, stub() as good, running(config(hole.url, good.url, timeouts=QUICK, eject=None)) as run:
        assert (await asked(run, 6)).count(502) == 3
        assert await asked(run, 4) == [200] * 4


async def test_the_fallback_of_a_target_that_is_down_answers_at_once() -> None:
    async with deaf() as hole, stub() as good:
        given = config(hole.url, timeouts=QUICK)
        given["upstreams"]["other"] = upstream(target(good.url))
        given["gateways"]["default"] = gateway(models={"m": model("up", fallback=["n"]), "n": model("other")})
        async with running(given) as run:
            answers = [await run.ask(post(CHAT_PATH, b'{"model": "m"}')) for _ in range(5)]
            assert [answer.status for answer in answers] == [200] * 5
            attempts = [record["attempts"][0]["outcome"] for record in run.records]
            assert attempts == ["connect_timeout"] * 3 + ["no_target"] * 2


async def test_who_refuses_says_so_each_time() -> None:
    async with running(config(refused())) as run:
        assert await asked(run, 5) == [502] * 5
        assert (states(run), run.log) == ({}, [])


# what all workers know ------------------------------------------------------------------------------------------------


async def test_what_one_worker_finds_out_all_know(cells: Cells) -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good:
        given = config(bad.url, good.url)
        async with running(given, cells=cells) as one, running(given, cells=cells, number=1) as two:
            await asked(one, 4)
            two.gateway.health.refresh(time.monotonic())
            assert states(two) == {"up/a": "ejected", "up/b": "up"}
            assert await asked(two, 6) == [200] * 6
            assert (len(bad.seen), two.log) == (2, [])
            cells.row(0)[PID] = 0  # its worker is gone, and what it knew with it
            two.gateway.health.refresh(time.monotonic())
            assert states(two) == {"up/a": "up", "up/b": "up"}


async def test_the_next_writer_of_a_row_begins_with_nothing(cells: Cells) -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good:
        given = config(bad.url, good.url)
        async with running(given, cells=cells) as run:
            await asked(run, 4)
        assert any(any(values) for values in cells.totals(HEALTH).values())
        async with running(given, cells=cells) as run:
            assert states(run) == {"up/a": "up", "up/b": "up"}
            assert not any(any(values) for values in cells.totals(HEALTH).values())


async def test_a_reload_keeps_what_is_known_of_what_stayed_the_same() -> None:
    async with (
        stub(failing("500 Oops")) as bad,
        stub() as good,
        stub() as new,
        running(config(bad.url, good.url)) as run,
    ):
        await asked(run, 4)
        run.apply(config(bad.url, good.url, new.url), 2)
        assert states(run) == {"up/a": "ejected", "up/b": "up", "up/c": "up"}
        assert await asked(run, 4) == [200] * 4
        run.apply(config(new.url, good.url), 3)  # another place under the same name
        assert states(run) == {"up/a": "up", "up/b": "up"}
        run.apply(config(new.url, good.url, eject=None), 4)
        assert states(run) == {}
        assert await asked(run, 4) == [200] * 4


# probes ---------------------------------------------------------------------------------------------------------------


def probing(*urls: str, eject: Any = None, **fields: Any) -> dict[str, Any]:
    return config(*urls, eject=eject, health=HEALTH_SPEC | fields)


class Patient:
    """An upstream whose `/health` answers `status`."""

    def __init__(self) -> None:
        self.status = b"200 OK"

    async def __call__(self, connection: Connection, seen: Seen) -> None:
        await connection.send(ok(status=self.status) if seen.line.startswith(b"GET ") else ok())


def probes(up: Stub) -> list[Seen]:
    return [seen for seen in up.seen if seen.line.startswith(b"GET ")]


async def test_a_target_whose_probes_fail_is_down_until_they_succeed() -> None:
    patient = Patient()
    async with stub(patient) as one, stub() as other:
        given = probing(one.url + "/v1", other.url, path="/health?full")
        given["upstreams"]["up"] |= {"api_key": "sk-up", "headers": {"x-team": "a"}}
        async with running(given) as run:
            await until(lambda: watched(run, "a").good > 1, "two good probes")
            patient.status = b"503 Busy"
            await until(lambda: states(run)["up/a"] == "down", "it is down")
            assert await asked(run, 4) == [200] * 4
            assert not [seen for seen in one.seen if seen.line.startswith(b"POST")]
            assert [seen.line for seen in other.seen if b"chat" in seen.line] == [
                b"POST /v1/chat/completions HTTP/1.1"
            ] * 4
            patient.status = b"307 Temporary Redirect"
            await until(lambda: states(run)["up/a"] == "up", "it is up")
            assert run.log == [
                "target up/a is down: 2 probes in a row failed, at last: it answered 503",
                "target up/a is up: 2 probes in a row succeeded",
            ]
        assert probes(one)[0].line == b"GET /health?full HTTP/1.1"
        assert probes(one)[0].headers == {
            "host": f"127.0.0.1:{one.port}",
            "user-agent": "aigw",
            "connection": "close",
            "authorization": "Bearer sk-up",
            "x-team": "a",
        }


async def test_all_down_is_503_at_once() -> None:
    async with running(probing(refused(), refused())) as run:
        await until(lambda: list(states(run).values()) == ["down", "down"], "both down")
        answer = await run.ask(post(CHAT_PATH))
        assert (answer.status, answer.headers["x-aigw-error"], answer.headers["retry-after"]) == (503, "no_target", "1")
        assert "every target of the upstream 'up' is down" in answer.json()["error"]["message"]
        assert (await run.record())["overhead_ms" if "overhead_ms" in run.records[0] else "status"] == 503


async def test_a_single_target_is_probed_too() -> None:
    patient = Patient()
    patient.status = b"404 Not Found"
    async with stub(patient) as up, running(probing(up.url, path="/h")) as run:
        await until(lambda: states(run) == {"up/a": "down"}, "it is down")
        assert await asked(run, 2) == [503, 503]
        patient.status = b"200 OK"
        await until(lambda: states(run) == {"up/a": "up"}, "it is up")
        assert await asked(run, 2) == [200, 200]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "nothing within 0.1 s"),
        (b"nonsense\r\n", "no answer in HTTP"),
        (b"HTTP/1.1 999 What\r\n", "no answer in HTTP"),
        (b"close", "no answer in HTTP"),
        (b"HTTP/1.1 500 Oops\r\n", "it answered 500"),
    ],
)
async def test_what_is_no_good_answer_to_a_probe(answer: bytes, why: str) -> None:
    async def handler(connection: Connection, seen: Seen) -> None:
        if answer == b"close":
            connection.close()
            return
        await connection.send(answer)
        await connection.gone()

    async with stub(handler) as up, running(probing(up.url, path="/h", timeout=0.1, unhealthy_after=1)) as run:
        await until(lambda: run.log, "it is down")
        assert run.log == [f"target up/a is down: a probe failed, at last: {why}"]


async def test_a_connect_is_probed_with_tls_where_requests_go_with_it() -> None:
    async with stub() as up, deaf() as silent:
        given = probing(up.url.replace("http:", "https:"), silent.url, timeout=0.3, unhealthy_after=1)
        async with running(given) as run:
            await until(lambda: len(run.log) == 2, "both down")
            assert sorted(run.log) == [
                "target up/a is down: a probe failed, at last: nothing within 0.3 s",  # it waits for a request
                "target up/b is down: a probe failed, at last: nothing within 0.3 s",
            ]


async def test_a_connect_to_a_certificate_of_an_authority_of_ones_own(tmp_path: Any) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with stub(ssl=context) as up:
        given = probing(f"https://127.0.0.1:{up.port}", f"https://localhost:{up.port}", unhealthy_after=1)
        given["upstreams"]["up"]["tls"]["ca"] = str(tmp_path / "ca.pem")
        async with running(given) as run:
            await until(lambda: watched(run, "a").good > 1 and run.log, "two good probes, and a bad one")
            (said,) = run.log
            assert said.startswith("target up/b is down: a probe failed, at last: its certificate was not accepted")
            run.faults.clear()  # the server's side of the handshake reports its own failure


async def test_only_the_first_living_worker_probes_and_the_next_goes_on_from_what_it_knew(cells: Cells) -> None:
    patient = Patient()
    patient.status = b"500 Oops"
    async with stub(patient) as up, stub() as other:
        given = probing(up.url, other.url, path="/h", healthy_after=1000)
        async with running(given, cells=cells) as one, running(given, cells=cells, number=1) as two:
            await until(lambda: states(one)["up/a"] == states(two)["up/a"] == "down", "both know")
            assert two.log == []
            assert not watched(two, "a").bad
            cells.row(0)[PID] = 0
            patient.status = b"200 OK"
            await until(lambda: watched(two, "a").good > 2, "the second one probes")
            assert states(two)["up/a"] == "down"  # it would need a thousand good ones
            assert two.log == []


async def test_probes_end_with_the_config_that_asked_for_them() -> None:
    async with (
        stub(failing("500 Oops")) as up,
        stub() as other,
        running(probing(up.url, other.url, path="/h")) as run,
    ):
        await until(lambda: states(run)["up/a"] == "down", "it is down")
        run.apply(config(up.url, other.url), 2)
        assert states(run)["up/a"] == "up"
        await until(lambda: not run.gateway.health._tasks, "no probe under way")
        seen = len(probes(up))
        run.gateway.health.refresh(time.monotonic() + 60)
        assert not run.gateway.health._tasks
        assert len(probes(up)) == seen


async def test_the_workers_own_mock_is_probed_where_it_listens(tmp_path: Any) -> None:
    path = str(tmp_path / "mock.sock")
    async with stub(path=path):
        given = document(
            {"up": upstream(provider="mock", health=HEALTH_SPEC)},
            gateways={"default": gateway(rule(upstream="up"), models={})},
        )
        run = Running()
        run.gateway.mock_socket = path
        run.apply(given)
        try:
            await until(lambda: run.gateway.health._by_text[b"up/mock"].good > 1, "two good probes")
        finally:
            await run.close()
        await asyncio.sleep(0)


# with retries and splits ----------------------------------------------------------------------------------------------


async def test_with_a_retry_no_client_sees_what_ejects_a_target() -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good:
        given = config(bad.url, good.url)
        given["gateways"]["default"] = gateway(retry={"attempts": 2, "when": ["5xx"], "budget": 1.0})
        async with running(given) as run:
            assert await asked(run, 8) == [200] * 8
            assert (len(bad.seen), states(run)["up/a"]) == (2, "ejected")
            assert run.log == [
                "target up/a is ejected for 30 s: it failed too often in a row, at last: it answered 500"
            ]


async def test_a_target_that_asks_for_time_gets_it_while_the_other_answers() -> None:
    busy = ok(b"{}", b"retry-after: 20", status=b"429 Too Many Requests")
    async with stub(busy) as one, stub() as other:
        given = config(one.url, other.url)
        given["gateways"]["default"] = gateway(retry={"attempts": 2, "when": ["429"], "budget": 1.0})
        async with running(given) as run:
            first = await run.ask(post(CHAT_PATH))
            assert (first.status, first.headers["x-aigw-attempts"]) == (200, "2")
            assert await asked(run, 5) == [200] * 5
            assert (len(one.seen), len(other.seen), states(run)["up/a"]) == (1, 6, "resting")


async def test_where_all_are_down_the_fallback_answers() -> None:
    async with stub() as good:
        given = probing(refused(), refused())
        given["upstreams"]["other"] = upstream(target(good.url))
        models = {"m": model("up", fallback=["spare"]), "spare": model("other")}
        given["gateways"]["default"] = gateway(models=models)
        async with running(given) as run:
            await until(lambda: list(states(run).values()) == ["down", "down"], "both down")
            answer = await run.ask(post(CHAT_PATH, b'{"model": "m"}'))
            assert (answer.status, answer.headers["x-aigw-upstream"]) == (200, "other")


async def test_a_split_falls_back_along_its_own_list_and_by_its_own_retry() -> None:
    async with stub(failing("500 Oops")) as bad, stub() as good:
        upstreams = {"one": upstream(target(bad.url)), "two": upstream(target(good.url))}
        models = {
            "a": model("one", "real-a", fallback=["nobody"]),
            "b": model("one", "real-b"),
            "spare": model("two", "real-spare"),
            "nobody": model("one"),
            "canary": model("", split={"a": 1, "b": 1}, fallback=["spare"]),
        }
        async with running(document(upstreams, gateways={"default": gateway(models=models)})) as run:
            for number in range(6):
                answer = await run.ask(post(CHAT_PATH, b'{"model": "canary"}', b"x-request-id: id-%d" % number))
                assert (answer.status, answer.headers["x-aigw-model"]) == (200, "real-spare")
            assert {b"real-a" in seen.body for seen in bad.seen} == {True, False}
            assert len(bad.seen) == 6
            record = run.records[0]
            assert (record["model"], record["model_used"], record["upstream"]) == ("canary", "real-spare", "two")
