"""Other models in place of one that fails: which, with what bytes, and what is said of it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from fakes import (
    CHAT,
    Handler,
    Seen,
    chunked,
    document,
    gateway,
    hangs,
    in_turn,
    key,
    model,
    ok,
    post,
    resets,
    retry,
    running,
    stub,
    target,
    upstream,
)

from aigw.counters import EXCHANGES, labels_of
from aigw.shared import Series

CHAT_PATH = "/v1/chat/completions"
BROKEN = ok(b"{}", status=b"503 Service Unavailable")
KEY = b"authorization: Bearer sk-k"


def ask(name: str = "gpt-4o", **members: Any) -> bytes:
    return post(CHAT_PATH, json.dumps({"model": name, "messages": [], **members}).encode())


def config(models: dict[str, Any], upstreams: dict[str, str], **fields: Any) -> Any:
    """`upstreams` are URLs by name; `fields` the gateway's."""
    made = {name: upstream(target(url)) for name, url in upstreams.items()}
    return document(made, gateways={"default": gateway(models=models, **fields)})


def asked(seen: Seen) -> Any:
    return json.loads(seen.body)["model"]


@pytest.mark.parametrize(
    ("fails", "outcome"), [(BROKEN, "503"), (hangs, "first_byte_timeout"), (ok(status=b"429 Too Many Requests"), "429")]
)
async def test_without_a_retry_there_is_one_attempt_each(fails: Handler | bytes, outcome: str) -> None:
    async with stub(fails) as one, stub() as other:
        models = {"gpt-4o": model("one", fallback=["fast"]), "fast": model("other", "real-fast")}
        made = config(models, {"one": one.url, "other": other.url})
        if fails is hangs:
            made["upstreams"]["one"]["timeouts"]["first_byte"] = 0.1
        async with running(made) as gw:
            body = b'{"messages": [{"content": "\\u00e4 \xc3\xa4"}], "model" :  "gpt-4o" , "n":1.0}'
            answer = await gw.ask(post(CHAT_PATH, body))
            assert (answer.status, answer.body) == (200, b'{"ok": true}')
            assert one.last.body == body
            assert other.last.body == body.replace(b'"gpt-4o"', b'"real-fast"')
            said = {name: answer.headers[f"x-aigw-{name}"] for name in ("attempts", "model", "upstream")}
            assert said == {"attempts": "2", "model": "real-fast", "upstream": "other"}
            record = await gw.record()
            assert [(step["target"], step["outcome"]) for step in record["attempts"]] == [
                ("one/a", outcome),
                ("other/a", "200"),
            ]
            named = {name: record[name] for name in ("model", "model_used", "upstream", "target", "status")}
            assert named == {
                "model": "gpt-4o",
                "model_used": "real-fast",
                "upstream": "other",
                "target": "a",
                "status": 200,
            }
            (labels,) = [labels_of(text) for text, values in Series(gw.gateway.row, 0).items(EXCHANGES) if any(values)]
            assert (labels.model, labels.upstream, labels.status) == ("gpt-4o", "other", "200")


async def test_what_cannot_be_connected_to() -> None:
    async with stub() as other:
        models = {"gpt-4o": model("one", fallback=["fast"]), "fast": model("other")}
        async with running(config(models, {"one": "http://127.0.0.1:9", "other": other.url})) as gw:
            assert (await gw.ask(ask())).status == 200
            assert asked(other.last) == "fast"


async def test_an_upstream_without_a_target_is_passed_over() -> None:
    async with stub() as other:
        models = {"gpt-4o": model("one", fallback=["fast"]), "fast": model("other")}
        made = config(models, {"one": "http://127.0.0.1:9", "other": other.url})
        made["upstreams"]["one"]["targets"][0]["weight"] = 0
        async with running(made) as gw:
            answer = await gw.ask(ask())
            assert (answer.status, answer.headers["x-aigw-upstream"]) == (200, "other")
            assert asked(other.last) == "fast"


async def test_in_the_order_of_the_list_and_then_the_last_failure() -> None:
    order: list[str] = []

    def failing(name: str) -> Handler:
        async def handler(connection: Any, seen: Seen) -> None:
            order.append(f"{name} {asked(seen)}")
            await connection.send(ok(name.encode(), status=b"503 Service Unavailable"))

        return handler

    async with stub(failing("one")) as one, stub(failing("two")) as two, stub(failing("three")) as three:
        models = {
            "gpt-4o": model("one", fallback=["b", "c", "gone"]),
            "b": model("two", fallback=["d"]),  # whose own list is not followed
            "c": model("three"),
            "d": model("one"),
            "gone": model("down"),
        }
        urls = {"one": one.url, "two": two.url, "three": three.url, "down": "http://127.0.0.1:9"}
        async with running(config(models, urls)) as gw:
            answer = await gw.ask(ask())
            assert order == ["one gpt-4o", "two b", "three c"]
            assert (answer.status, answer.headers["x-aigw-error"]) == (502, "connect_failed")
            assert (answer.headers["x-should-retry"], answer.headers["x-aigw-attempts"]) == ("false", "4")


async def test_tries_of_each_upstream_come_first() -> None:
    async with stub(BROKEN) as one, stub(in_turn(resets, ok())) as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        asked_for = retry("5xx", "reset", attempts=2)
        async with running(config(models, {"one": one.url, "two": two.url}, retry=asked_for)) as gw:
            assert (await gw.ask(ask())).status == 200
            assert [step["target"] for step in (await gw.record())["attempts"]] == ["one/a", "one/a", "two/a", "two/a"]


async def test_a_long_wait_is_left_out_where_there_is_a_fallback() -> None:
    limited = ok(b"{}", b"retry-after: 3", status=b"429 Too Many Requests")
    async with stub(limited) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        async with running(config(models, {"one": one.url, "two": two.url}, retry=retry("429", attempts=3))) as gw:
            assert (await gw.ask(ask())).headers["x-aigw-attempts"] == "2"


async def test_a_fallback_is_free_of_the_budget() -> None:
    async with stub(BROKEN) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        async with running(config(models, {"one": one.url, "two": two.url}, retry=retry("5xx", budget=0.0))) as gw:
            assert [(await gw.ask(ask())).status for _ in range(20)] == [200] * 20
            assert (len(one.seen), len(two.seen)) == (20, 20)


async def test_other_failures_are_the_answer() -> None:
    async with stub(ok(b"{}", status=b"400 Bad Request")) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        async with running(config(models, {"one": one.url, "two": two.url})) as gw:
            assert (await gw.ask(ask())).status == 400
            assert not two.seen


async def test_a_key_needs_to_be_allowed_for_the_name_asked_for_only() -> None:
    async with stub(BROKEN) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        keys = {"k": key("sk-k", models=["gpt-4o"])}
        async with running(config(models, {"one": one.url, "two": two.url}, auth="keys", keys=keys)) as gw:
            assert (await gw.ask(post(CHAT_PATH, CHAT, KEY))).status == 200
            assert (await gw.ask(post(CHAT_PATH, CHAT.replace(b"gpt-4o", b"b"), KEY))).status == 403


async def test_a_glob_falls_back_and_is_fallen_back_to() -> None:
    async with stub(BROKEN) as one, stub() as two:
        models = {
            "openai/*": model("one", "*", fallback=["any/small"]),
            "any/*": model("two", "x-*"),
        }
        async with running(config(models, {"one": one.url, "two": two.url})) as gw:
            assert (await gw.ask(ask("openai/gpt-4o"))).headers["x-aigw-model"] == "x-small"
            assert (asked(one.last), asked(two.last)) == ("gpt-4o", "x-small")


async def test_a_glob_s_fallback_is_not_the_name_itself() -> None:
    models = {"*": model("one", fallback=["gpt-4o"])}
    async with stub(BROKEN) as one, running(config(models, {"one": one.url})) as gw:
        assert (await gw.ask(ask("gpt-4o"))).status == 503
        assert len(one.seen) == 1
        assert (await gw.ask(ask("other"))).status == 503
        assert [asked(seen) for seen in one.seen] == ["gpt-4o", "other", "gpt-4o"]


@pytest.mark.parametrize("name", ["fine", "f/ine\u00e4"])
async def test_a_model_in_the_path(name: str) -> None:
    async with stub(BROKEN) as one, stub() as two:
        made = config({"gemini-a": model("one", fallback=[name]), name: model("two")}, {"one": one.url, "two": two.url})
        for entry in made["upstreams"].values():
            entry["dialects"] = ["gemini"]
        async with running(made) as gw:
            path = "/v1beta/models/gemini-a:generateContent?x=1"
            body = b'{"contents": []}' + b" " * 100_000
            client = await gw.connect()
            raw = post(path, body)
            await client.send(raw[:200], raw[200:50_000], raw[50_000:])
            assert (await client.answer()).status == 200
            assert one.last.line == b"POST /v1beta/models/gemini-a:generateContent?x=1 HTTP/1.1"
            quoted = {"fine": b"fine", "f/ine\u00e4": b"f%2Fine%C3%A4"}[name]
            assert two.last.line == b"POST /v1beta/models/%b:generateContent?x=1 HTTP/1.1" % quoted
            assert one.last.body == two.last.body == body


async def test_a_form_that_came_whole() -> None:
    form = (
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nAAAA\r\n--b--\r\n'
    )
    raw = post("/v1/audio/transcriptions", form).replace(b"application/json", b"multipart/form-data; boundary=b")
    async with stub(BROKEN) as one, stub() as two:
        models = {"whisper": model("one", fallback=["b"]), "b": model("two", "large")}
        async with running(config(models, {"one": one.url, "two": two.url})) as gw:
            assert (await gw.ask(raw)).status == 200
            assert one.last.body == form
            assert two.last.body == form.replace(b"whisper", b"large")


async def test_the_usage_is_asked_for_where_that_is_configured() -> None:
    """The first upstream is asked for it, the fallback is not, and what comes from there is not patched."""
    stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'
    )
    async with stub(BROKEN) as one, stub(stream) as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        made = config(models, {"one": one.url, "two": two.url})
        made["upstreams"]["one"]["usage"] = "inject"
        async with running(made) as gw:
            answer = await gw.ask(ask(stream=True))
            assert answer.body == stream.partition(b"\r\n\r\n")[2]
            assert b"include_usage" in one.last.body
            assert b"include_usage" not in two.last.body
        made["upstreams"]["one"]["usage"], made["upstreams"]["two"]["usage"] = "as_reported", "inject"
        async with running(made) as gw:
            answer = await gw.ask(ask(stream=True))
            assert b'"usage":null' not in answer.body
            assert (b"include_usage" in one.last.body, b"include_usage" in two.last.body) == (False, True)


@pytest.mark.parametrize(
    "members",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": {"id": "conv_1"}},
        {"container": "c"},
        {"input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]},
    ],
)
async def test_what_is_bound_to_a_provider_has_no_fallback(members: dict[str, Any]) -> None:
    async with stub(BROKEN) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        async with running(config(models, {"one": one.url, "two": two.url}, retry=retry("5xx"))) as gw:
            body = json.dumps({"model": "gpt-4o", "input": "x"} | members).encode()
            assert (await gw.ask(post("/v1/responses", body))).status == 503
            assert (len(one.seen), len(two.seen)) == (2, 0)


async def test_what_only_mentions_a_file_has_one() -> None:
    async with stub(BROKEN) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        async with running(config(models, {"one": one.url, "two": two.url})) as gw:
            assert (await gw.ask(ask(messages=[{"role": "user", "content": 'say "file_id": 1'}]))).status == 200


async def test_one_that_does_not_speak_the_dialect_is_passed_over() -> None:
    async with stub(BROKEN) as one, stub() as two, stub() as three:
        models = {"m": model("one", fallback=["b", "c"]), "b": model("two"), "c": model("three")}
        made = config(models, {"one": one.url, "two": two.url, "three": three.url})
        made["upstreams"]["one"]["dialects"] = ["openai", "anthropic"]
        made["upstreams"]["three"]["dialects"] = ["anthropic"]
        async with running(made) as gw:
            body = b'{"model": "m", "max_tokens": 1, "messages": []}'
            assert (await gw.ask(post("/v1/messages", body))).headers["x-aigw-upstream"] == "three"
            assert (await gw.ask(post(CHAT_PATH, body))).headers["x-aigw-upstream"] == "two"


# the request is too long for the model --------------------------------------------------------------------------------

TOO_LONG = {
    "openai": b'{"error": {"message": "more tokens than 8", "code": "context_length_exceeded"}}',
    "anthropic": b'{"type": "error", "error": {"message": "prompt is too long: 9 tokens > 8 maximum"}}',
    "gemini": b'{"error": {"code": 400, "message": "9 exceeds the maximum number of tokens allowed (8)."}}',
}
PATHS = {
    "openai": CHAT_PATH,
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gpt-4o:generateContent",
}


@pytest.mark.parametrize("dialect", TOO_LONG)
@pytest.mark.parametrize("form", ["length", "chunked", "gzip", "close", "pieces"])
async def test_a_request_that_is_too_long_goes_to_another_model(dialect: str, form: str) -> None:
    body = TOO_LONG[dialect]
    refusal = ok(body, status=b"400 Bad Request")
    if form == "gzip":
        refusal = ok(gzip.compress(body), b"content-encoding: gzip", status=b"400 Bad Request")
    elif form == "chunked":
        refusal = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunked(body)
        )
    elif form == "close":
        refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n\r\n" + body

    async def handler(connection: Any, seen: Seen) -> None:
        await connection.send(*([refusal[:150], refusal[150:]] if form == "pieces" else [refusal]))
        if form == "close":
            connection.close()

    async with stub(handler) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        made = config(models, {"one": one.url, "two": two.url}, retry=retry("context_length_exceeded", attempts=3))
        for entry in made["upstreams"].values():
            entry["dialects"] = [dialect]
        async with running(made) as gw:
            assert (await gw.ask(post(PATHS[dialect], CHAT))).status == 200
            assert len(one.seen) == 1  # the same model would say the same again
        made["gateways"]["default"]["retry"] = retry("5xx")
        async with running(made) as gw:
            answer = await gw.ask(post(PATHS[dialect], CHAT))
            assert (answer.status, answer.headers.get("x-aigw-attempts")) == (400, "1")


@pytest.mark.parametrize("filler", [b"", b"x" * 100_000])
async def test_another_400_is_relayed_as_it_came(filler: bytes) -> None:
    body = b'{"error": {"message": "no %b", "code": "invalid_value"}}' % filler
    async with stub(ok(body, status=b"400 Bad Request")) as one, stub() as two:
        models = {"gpt-4o": model("one", fallback=["b"]), "b": model("two")}
        made = config(models, {"one": one.url, "two": two.url}, retry=retry("context_length_exceeded"))
        async with running(made) as gw:
            answer = await gw.ask(ask())
            assert (answer.status, answer.body) == (400, body)
            assert not two.seen
