"""The model: where a request names it, how it is replaced, what is done without one, and which there are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import (
    CHAT,
    Running,
    document,
    gateway,
    get,
    key,
    model,
    pieces,
    post,
    rule,
    running,
    serving,
    stub,
    target,
    until,
    upstream,
)

CHAT_PATH = "/v1/chat/completions"
BOUNDARY = b"----form0123"
FORM = b"content-type: multipart/form-data; boundary=" + BOUNDARY


def renaming(url: str, provider: str = "openai", **fields: Any) -> dict[str, Any]:
    """`fast` is `llama-8b` there, `x/NAME` is `NAME`."""
    models = {"fast": model("up", "llama-8b"), "x/*": model("up", "*"), "*": model("up")}
    up = upstream(target(url), provider=provider, **fields)
    return document({"up": up}, gateways={"default": gateway(models=models)})


def form(*parts: tuple[bytes, bytes]) -> bytes:
    lines = [
        b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY, name, value) for name, value in parts
    ]
    return b"".join(lines) + b"--" + BOUNDARY + b"--\r\n"


def post_form(path: str, body: bytes) -> bytes:
    raw = post(path, body, FORM)
    return raw.replace(b"content-type: application/json\r\n", b"")


# in the body ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'{"model": "fast", "x": 1.0}', b'{"model": "llama-8b", "x": 1.0}'),
        (b'  {\n"x":[1 ,2],\t"model"  :"fast"  }\n', b'  {\n"x":[1 ,2],\t"model"  :"llama-8b"  }\n'),
        (b'{"a": {"model": "fast"}, "model": "fast"}', b'{"a": {"model": "fast"}, "model": "llama-8b"}'),
        (b'{"mod\\u0065l": "fast", "s": "\\u0041"}', b'{"mod\\u0065l": "llama-8b", "s": "\\u0041"}'),
        (b'{"model": "f\\u0061st"}', b'{"model": "llama-8b"}'),
        (b'{"model": "x/gpt", "big": 12345678901234567890.10}', b'{"model": "gpt", "big": 12345678901234567890.10}'),
        (b'{"model": "same", "dup": 1, "dup": 2}', b'{"model": "same", "dup": 1, "dup": 2}'),
    ],
)
@pytest.mark.parametrize("size", [0, 7])
async def test_a_model_is_replaced_and_every_other_byte_stays(before: bytes, after: bytes, size: int) -> None:
    async with stub() as up, running(renaming(up.url)) as gw:
        client = await gw.connect()
        raw = post(CHAT_PATH, before)
        await client.send(*(pieces(raw, size) if size else [raw]))
        answer = await client.answer()
        assert answer.status == 200
        assert up.last.body == after
        assert up.last.headers["content-length"] == str(len(after))
        used = json.loads(after)["model"]
        assert answer.headers["x-aigw-model"] == used
        record = await gw.record()
        assert (record["model"], record["model_used"]) == (json.loads(before)["model"], used)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"model": "a", "model": "b"}', "bad_request", "more than one"),
        (b'{"model": "a", "mod\\u0065l": "a"}', "bad_request", "more than one"),
        (b'{"model": 5}', "bad_request", "text"),
        (b'{"model": ""}', "bad_request", "text"),
        (b'{"model": ["a"]}', "bad_request", "text"),
        (b"[]", "invalid_json", "object"),
        (b"", "invalid_json", "JSON"),
        (b'{"model": "a",}', "invalid_json", "JSON"),
        (b'\xef\xbb\xbf{"model": "a"}', "invalid_json", "JSON"),
        (b'{"model": "\xff"}', "invalid_json", "JSON"),
        (b'{"messages": []}', "missing_model", "/v1/models"),
        (b'{"model": null}', "missing_model", "/v1/models"),
    ],
)
async def test_a_body_without_exactly_one_model_is_400(body: bytes, code: str, message: str) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(post(CHAT_PATH, body))
        assert (answer.status, answer.headers["x-aigw-error"]) == (400, code)
        assert message in answer.json()["error"]["message"]
        assert (await client.ask(post(CHAT_PATH))).status == 200  # the body was read, so the connection is good


@pytest.mark.parametrize("encoding", [b"gzip", b"br", b"identity, gzip"])
async def test_a_compressed_body_cannot_be_routed_by_its_model(encoding: bytes) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH, b"\x1f\x8b", b"content-encoding: " + encoding))
        assert (answer.status, answer.headers["x-aigw-error"]) == (415, "unsupported_encoding")
        assert (await gw.ask(post(CHAT_PATH, CHAT, b"content-encoding: Identity"))).status == 200


async def test_an_unknown_post_is_routed_by_the_model_of_its_json() -> None:
    async with stub() as up, running(renaming(up.url)) as gw:
        assert (await gw.ask(post("/v1/brand/new", b'{"model": "fast"}'))).status == 200
        assert up.last.body == b'{"model": "llama-8b"}'
        assert (await gw.ask(post("/v1/brand/new", b'{"input": 1}'))).status == 404


# in the path ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "before", "after"),
    [
        ("gemini", "/v1beta/models/fast:generateContent", "/v1beta/models/llama-8b:generateContent"),
        (
            "gemini",
            "/v1beta/models/fast:streamGenerateContent?alt=sse",
            "/v1beta/models/llama-8b:streamGenerateContent?alt=sse",
        ),
        ("gemini", "/v1beta/models/x%2Fa%20b:embedContent", "/v1beta/models/a%20b:embedContent"),
        ("gemini", "/v1beta/models/as-it-is:countTokens", "/v1beta/models/as-it-is:countTokens"),
        (
            "azure",
            "/openai/deployments/fast/chat/completions?api-version=1",
            "/openai/deployments/llama-8b/chat/completions?api-version=1",
        ),
        (
            "azure",
            "/openai/deployments/fast/audio/transcriptions",
            "/openai/deployments/llama-8b/audio/transcriptions",
        ),
    ],
)
@pytest.mark.parametrize("is_split", [False, True])
async def test_a_model_in_the_path_is_replaced_there(provider: str, before: str, after: str, is_split: bool) -> None:
    body = b'{"contents": [], "model": "untouched"}'
    async with stub() as up, running(renaming(up.url, provider)) as gw:
        client = await gw.connect()
        raw = post(before, body)
        await client.send(*([raw[:-9], raw[-9:]] if is_split else [raw]))
        assert (await client.answer()).status == 200
        assert up.last.line == f"POST {after} HTTP/1.1".encode()
        assert up.last.body == body


async def test_a_replaced_model_in_a_path_is_encoded() -> None:
    models = {"a": model("up", "odd/name ?#")}
    async with stub() as up:
        config = document(
            {"up": upstream(target(up.url), provider="gemini")}, gateways={"default": gateway(models=models)}
        )
        async with running(config) as gw:
            await gw.ask(post("/v1beta/models/a:generateContent"))
        assert up.last.line == b"POST /v1beta/models/odd%2Fname%20%3F%23:generateContent HTTP/1.1"


# in a form ------------------------------------------------------------------------------------------------------------

FILE = (b'name="file"; filename="a.wav"', bytes(range(256)) * 4096)  # 1 MiB


async def send_form(gw: Running, body: bytes, size: int) -> Any:
    client = await gw.connect()
    raw = post_form("/v1/audio/transcriptions", body)
    await client.send(*(pieces(raw, size) if size else [raw]))
    return await client.answer()


@pytest.mark.parametrize("size", [0, 50_000])
@pytest.mark.parametrize("is_first", [True, False], ids=["model first", "file first"])
@pytest.mark.parametrize(("asked", "sent"), [(b"fast", b"llama-8b"), (b"whisper-1", b"whisper-1")])
async def test_a_model_in_a_form_is_replaced_there(is_first: bool, size: int, asked: bytes, sent: bytes) -> None:
    def parts(name: bytes) -> list[tuple[bytes, bytes]]:
        found = [(b'name="model"', name), FILE, (b'name="language"', b"en")]
        return found if is_first else [found[1], found[0], found[2]]

    async with stub() as up, running(renaming(up.url)) as gw:
        assert (await send_form(gw, form(*parts(asked)), size)).status == 200
        assert up.last.body == form(*parts(sent))
        assert up.last.headers["content-length"] == str(len(form(*parts(sent))))
        record = await gw.record()
        assert (record["model"], record["model_used"]) == (asked.decode(), sent.decode())
        assert gw.gateway.collected == 0


async def test_a_small_form_that_came_at_once() -> None:
    async with stub() as up, running(renaming(up.url)) as gw:
        assert (await send_form(gw, form((b'name="model"', b"fast")), 0)).status == 200
        assert up.last.body == form((b'name="model"', b"llama-8b"))


async def test_a_chunked_form_goes_on_in_chunks() -> None:
    body = form((b'name="model"', b"fast"), FILE)
    raw = post("/v1/audio/transcriptions", b"", FORM, chunks=pieces(body, 60_000))
    async with stub() as up, running(renaming(up.url)) as gw:
        answer = await gw.ask(raw.replace(b"content-type: application/json\r\n", b""))
        assert answer.status == 200
        assert up.last.body == form((b'name="model"', b"llama-8b"), FILE)


async def test_a_form_is_collected_only_up_to_its_model() -> None:
    body = form((b'name="model"', b"fast"), FILE)
    async with stub() as up:
        config = renaming(up.url) | {"bounds": serving("")["bounds"] | {"body": 100_000}}
        async with running(config) as gw:
            client = await gw.connect()
            raw = post_form("/v1/audio/transcriptions", body)
            await client.send(raw[:500])
            await until(lambda: up.connections, "the upload at the upstream")
            await client.send(raw[500:])
            assert (await client.answer()).status == 200
            assert len(up.last.body) == len(body) + len(b"llama-8b") - len(b"fast")


@pytest.mark.parametrize("size", [0, 50_000])
@pytest.mark.parametrize(
    "body",
    [
        form((b'name="model"', b"a"), (b'name="model"', b"b")),
        form((b'name="model"', b"a"), FILE, (b'name="model"', b"b")),
        form((b"x", b"a")),
    ],
    ids=["two models", "two models far apart", "no name"],
)
async def test_a_form_that_two_readers_could_read_differently_is_400(body: bytes, size: int) -> None:
    async with stub() as up, running(renaming(up.url)) as gw:
        answer = await send_form(gw, body, size)
        assert (answer.status, answer.headers["x-aigw-error"]) == (400, "bad_request")
        assert not up.seen  # no upstream got the whole of it


@pytest.mark.parametrize("size", [0, 50])
async def test_a_form_without_a_model_is_400(size: int) -> None:
    async with stub() as up, running(renaming(up.url)) as gw:
        answer = await send_form(gw, form((b'name="language"', b"en")), size)
        assert (answer.status, answer.headers["x-aigw-error"]) == (400, "missing_model")


# without one ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches", "/v1/vector_stores/x", "/v1/responses/resp_1"])
async def test_what_carries_no_model_goes_to_the_rules_default(path: str) -> None:
    async with stub() as a, stub() as b:
        upstreams = {"a": upstream(target(a.url)), "b": upstream(target(b.url))}
        gateways = {"default": gateway(rule(default={"openai": "a", "anthropic": "b"}), models={"*": model("a")})}
        async with running(document(upstreams, gateways=gateways)) as gw:
            assert (await gw.ask(get(path))).status == 200
            assert (await gw.ask(post(path, b"\x00 no JSON at all"))).status == 200
            assert [seen.line.split()[0] for seen in a.seen] == [b"GET", b"POST"]
            if path == "/v1/files":
                assert (await gw.ask(get(path, b"anthropic-version: 1"))).status == 200
                assert len(b.seen) == 1


async def test_an_inference_without_a_model_goes_to_the_default_too() -> None:
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways={"default": gateway(rule(default="up"))})
        async with running(config) as gw:
            assert (await gw.ask(post(CHAT_PATH, b'{"messages": []}'))).status == 200
        assert up.last.body == b'{"messages": []}'


# the list -------------------------------------------------------------------------------------------------------------


def listing(url: str) -> dict[str, Any]:
    models = {
        "gpt-4o": model("up"),
        "openai/gpt-4o": model("up"),
        "secret": model("up", hidden=True),
        "claude-*": model("up", list=["claude-1", "claude-2"]),
        "*": model("up"),
    }
    keys = {"all": key("all"), "few": key("few", models=["gpt-4o", "claude-*"])}
    return document({"up": upstream(target(url))}, gateways={"default": gateway(models=models, auth="keys", keys=keys)})


@pytest.mark.parametrize("path", ["/v1/models", "/v1beta/models", "/v1/models?limit=5"])
async def test_the_list_of_models_is_read_by_every_sdk(path: str) -> None:
    async with stub() as up, running(listing(up.url)) as gw:
        body = (await gw.ask(get(path, b"x-api-key: all"))).json()
        names = ["gpt-4o", "openai/gpt-4o", "claude-1", "claude-2"]
        assert body["object"] == "list"
        assert [entry["id"] for entry in body["data"]] == names
        assert all(entry["object"] == "model" and entry["type"] == "model" for entry in body["data"])
        assert all({"display_name", "created", "created_at", "owned_by"} <= set(entry) for entry in body["data"])
        assert (body["has_more"], body["first_id"], body["last_id"]) == (False, "gpt-4o", "claude-2")
        assert [entry["name"] for entry in body["models"]] == [f"models/{name}" for name in names]
        assert not up.connections


async def test_a_key_sees_what_it_may_use() -> None:
    async with stub() as up, running(listing(up.url)) as gw:
        body = (await gw.ask(get("/v1/models", b"x-api-key: few"))).json()
        assert [entry["id"] for entry in body["data"]] == ["gpt-4o", "claude-1", "claude-2"]
        assert (await gw.ask(get("/v1/models"))).status == 401


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models/gpt-4o", "gpt-4o"),
        ("/v1/models/openai/gpt-4o", "openai/gpt-4o"),
        ("/v1/models/openai%2Fgpt-4o", "openai/gpt-4o"),
        ("/v1beta/models/claude-1", "claude-1"),
        ("/v1/models/anything", "anything"),
    ],
)
async def test_one_model(path: str, name: str) -> None:
    async with stub() as up, running(listing(up.url)) as gw:
        assert (await gw.ask(get(path, b"x-api-key: all"))).json()["id"] == name


async def test_a_model_that_a_key_may_not_use_does_not_exist_for_it() -> None:
    async with stub() as up, running(listing(up.url)) as gw:
        answer = await gw.ask(get("/v1/models/openai/gpt-4o", b"x-api-key: few"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (404, "model_not_found")


async def test_head_of_the_list_has_its_length_and_no_body() -> None:
    async with stub() as up, running(listing(up.url)) as gw:
        client = await gw.connect()
        raw = get("/v1/models", b"x-api-key: all", method=b"HEAD")
        for _ in range(2):
            assert int((await client.ask(raw, head_only=True)).headers["content-length"]) > 100
