"""The official `google-genai` SDK, unchanged, through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from google import genai
from google.genai import errors, types
from processes import Serve, Upstream
from pydantic import BaseModel

pytestmark = pytest.mark.unmeasured

MODEL = "gemini-2.5-flash"
SCHEMA = {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}, "required": ["city"]}
BROKEN = ["cut-body", "cut-event", "cut-between", "reset", "bad-chunk", "early-close"]


class City(BaseModel):
    name: str
    inhabitants: int


def asking(base_url: str, key: str) -> genai.Client:
    return genai.Client(api_key=key, vertexai=False, http_options={"base_url": base_url})


def saying(**headers: str) -> Any:
    """Options with `x_mock` and `x_request_id` as headers."""
    return {"http_options": {"headers": {name.replace("_", "-"): value for name, value in headers.items()}}}


@pytest.fixture(scope="module")
def client(gateway: Serve, key: str) -> Iterator[genai.Client]:
    with asking(gateway.url, key) as client:
        yield client


@pytest.fixture(scope="module")
def direct(upstream: Upstream) -> Iterator[genai.Client]:
    """The same client without the gateway."""
    with asking(upstream.url, "any") as client:
        yield client


def same(one: types.GenerateContentResponse, other: types.GenerateContentResponse) -> bool:
    """But for the heads, which carry more on the way through the gateway."""
    left, right = one.model_dump(), other.model_dump()
    return {**left, "sdk_http_response": None} == {**right, "sdk_http_response": None}


# generating -----------------------------------------------------------------------------------------------------------


def test_generate(client: genai.Client, direct: genai.Client, upstream: Upstream, request_id: str) -> None:
    answer = client.models.generate_content(model=MODEL, contents="Hi", config=saying(x_request_id=request_id))
    config = saying(x_request_id=f"{request_id}-direct")
    assert same(answer, direct.models.generate_content(model=MODEL, contents="Hi", config=config))
    assert str(answer.text).startswith("The mock provider")
    assert answer.usage_metadata is not None
    assert answer.usage_metadata.candidates_token_count == 16
    (seen,) = upstream.find(request_id)
    assert seen.line.startswith(b"POST /v1")
    assert seen.line.endswith(b"/models/gemini-2.5-flash:generateContent HTTP/1.1")
    assert seen.headers["x-goog-api-key"] == "gemini-credential"
    assert json.loads(seen.body)["contents"] == [{"parts": [{"text": "Hi"}], "role": "user"}]


def test_a_stream_brings_every_event(client: genai.Client, direct: genai.Client) -> None:
    chunks = list(client.models.generate_content_stream(model=MODEL, contents="Hi"))
    expected = list(direct.models.generate_content_stream(model=MODEL, contents="Hi"))
    assert len(chunks) == len(expected) == 17
    assert all(same(one, other) for one, other in zip(chunks, expected, strict=True))
    assert chunks[-1].candidates is not None
    assert chunks[-1].candidates[0].finish_reason == types.FinishReason.STOP


async def test_asynchronously(gateway: Serve, key: str) -> None:
    async with asking(gateway.url, key).aio as client:
        answer = await client.models.generate_content(model=MODEL, contents="Hi")
        stream = await client.models.generate_content_stream(model=MODEL, contents="Hi")
        assert "".join([chunk.text or "" async for chunk in stream]) == answer.text


@pytest.mark.parametrize("version", ["v1", "v1beta"])
def test_either_version_of_the_api(gateway: Serve, key: str, upstream: Upstream, request_id: str, version: str) -> None:
    options: Any = {"base_url": gateway.url, "api_version": version}
    with genai.Client(api_key=key, vertexai=False, http_options=options) as client:
        client.models.generate_content(model=MODEL, contents="Hi", config=saying(x_request_id=request_id))
    (seen,) = upstream.find(request_id)
    assert seen.line.startswith(f"POST /{version}/models/".encode())


def test_a_function_call(client: genai.Client) -> None:
    tool: Any = {"function_declarations": [{"name": "weather", "parameters": SCHEMA}]}
    config: Any = {
        "tools": [tool],
        "tool_config": {"function_calling_config": {"mode": "ANY"}},
        "automatic_function_calling": {"disable": True},
    }
    answer = client.models.generate_content(model=MODEL, contents="Hi", config=config)
    (call,) = answer.function_calls or []
    assert (call.name, call.args) == ("weather", {"city": "mock"})


def test_structured_output(client: genai.Client) -> None:
    config: Any = {"response_mime_type": "application/json", "response_schema": City}
    answer = client.models.generate_content(model=MODEL, contents="Hi", config=config)
    assert answer.parsed == City(name="mock", inhabitants=0)


def test_embeddings(client: genai.Client) -> None:
    answer = client.models.embed_content(model="gemini-embedding-001", contents=["one", "two"])
    assert answer.embeddings is not None
    first, second = (item.values for item in answer.embeddings)
    assert first is not None
    assert len(first) == 8
    assert first != second


def test_counting_tokens(client: genai.Client) -> None:
    assert client.models.count_tokens(model=MODEL, contents="How many tokens are these?").total_tokens == 6


def test_an_image_arrives_byte_by_byte(
    client: genai.Client, direct: genai.Client, upstream: Upstream, request_id: str
) -> None:
    picture = types.Part.from_bytes(data=bytes(range(256)) * (15 * 1024), mime_type="image/png")
    client.models.generate_content(model=MODEL, contents=[picture], config=saying(x_request_id=request_id))
    direct.models.generate_content(model=MODEL, contents=[picture], config=saying(x_request_id=f"{request_id}-direct"))
    (seen,), (expected,) = upstream.find(request_id), upstream.find(f"{request_id}-direct")
    assert len(seen.body) > 5 * 1024 * 1024
    assert seen.body == expected.body


def test_models(client: genai.Client, listed: list[str]) -> None:
    assert [model.name for model in client.models.list()] == [f"models/{name}" for name in listed]
    assert client.models.get(model=MODEL).name == f"models/{MODEL}"
    with pytest.raises(errors.ClientError, match="GET /v1/models lists those that do") as caught:
        client.models.get(model="nano")
    assert caught.value.code == 404


def test_what_answers_carry(client: genai.Client, gateway: Serve) -> None:
    answer = client.models.generate_content(model=MODEL, contents="Hi")
    assert answer.sdk_http_response is not None
    headers = answer.sdk_http_response.headers or {}
    assert headers["x-aigw-upstream"] == "gemini"
    assert headers["x-aigw-upstream-request-id"].startswith("req_mock_")
    record = gateway.record(headers["x-request-id"])
    assert (record["key"], record["upstream"], record["model"], record["end"]) == ("sdk", "gemini", MODEL, "ok")


# errors ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_key(gateway: Serve) -> None:
    with asking(gateway.url, "sk-nobody-s") as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents="Hi")
    assert (caught.value.code, caught.value.status) == (401, "UNAUTHENTICATED")
    assert "this API key is not known to the gateway" in str(caught.value.message)
    assert "sk-nobody-s" not in str(caught.value)


def test_a_key_for_other_models(gateway: Serve, narrow_key: str) -> None:
    with asking(gateway.url, narrow_key) as client, pytest.raises(errors.ClientError) as caught:
        client.models.generate_content(model=MODEL, contents="Hi")
    assert "'narrow' may not use the model 'gemini-2.5-flash'" in str(caught.value.message)
    assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


def test_an_unknown_model(client: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match="the model 'nano' does not exist here; GET /v1/models") as caught:
        client.models.generate_content(model="nano", contents="Hi")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


def test_a_model_of_another_dialect(client: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match="ask for it at /v1/chat/completions") as caught:
        client.models.generate_content(model="gpt-4o", contents="Hi")
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")


def test_a_wrong_base_url_is_told_the_right_one(gateway: Serve, key: str) -> None:
    with asking(f"{gateway.url}/v1", key) as client:
        with pytest.raises(errors.ClientError, match=r"Google's one without \(http://HOST:PORT\)"):
            client.models.generate_content(model=MODEL, contents="Hi")
        with pytest.raises(errors.ClientError, match=r"Google's one without \(http://HOST:PORT\)"):
            client.models.list()


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
def test_an_error_of_the_upstream_is_relayed(client: genai.Client, status: int) -> None:
    with pytest.raises(errors.APIError, match=f"asked to fail: status={status}") as caught:
        client.models.generate_content(model=MODEL, contents="Hi", config=saying(x_mock=f"status={status}"))
    assert caught.value.code == status


@pytest.mark.parametrize("failure", BROKEN)
def test_a_broken_stream_never_looks_finished(
    client: genai.Client, gateway: Serve, failure: str, request_id: str
) -> None:
    chunks: list[Any] = []
    # The SDK lets its HTTP client's own exception through.
    with pytest.raises(Exception, match=r"peer closed connection|upstream"):
        chunks.extend(
            client.models.generate_content_stream(
                model=MODEL, contents="Hi", config=saying(x_mock=failure, x_request_id=request_id)
            )
        )
    assert all(chunk.candidates[0].finish_reason is None for chunk in chunks)
    record = gateway.record(request_id)
    assert (record["end"] in ("cut", "failed"), record["fault"]) == (True, "upstream")


def test_an_error_event_is_relayed(client: genai.Client) -> None:
    with pytest.raises(errors.ServerError, match="asked to fail: error-event"):
        list(client.models.generate_content_stream(model=MODEL, contents="Hi", config=saying(x_mock="error-event")))


def test_closing_a_stream_stops_the_upstream(
    client: genai.Client, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    stream: Any = client.models.generate_content_stream(
        model=MODEL, contents="Hi", config=saying(x_mock="stall", x_request_id=request_id)
    )
    next(stream)
    wire = upstream.wire(request_id)
    assert wire.is_open
    stream.close()
    upstream.wait_closed(wire)
    assert gateway.record(request_id)["end"] == "client_gone"


def test_a_client_that_times_out_stops_the_upstream(
    client: genai.Client, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    config = saying(x_mock="latency=600", x_request_id=request_id)
    config["http_options"]["timeout"] = 300  # milliseconds
    with pytest.raises(Exception, match="timed out"):
        client.models.generate_content(model=MODEL, contents="Hi", config=config)
    upstream.wait_closed(upstream.wire(request_id))
    assert gateway.record(request_id)["status"] == 499
