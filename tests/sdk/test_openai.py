"""The official `openai` SDK, unchanged, through the gateway."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from processes import Serve, Upstream
from pydantic import BaseModel

pytestmark = pytest.mark.unmeasured

MODEL = "gpt-4o"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
BROKEN = ["cut-body", "cut-event", "cut-between", "reset", "bad-chunk", "early-close"]


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture(scope="module")
def client(gateway: Serve, key: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def direct(upstream: Upstream) -> Iterator[OpenAI]:
    """The same client without the gateway."""
    with OpenAI(base_url=f"{upstream.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: Serve, key: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client:
        yield client


def asking(gateway: Serve, key: str, path: str = "/v1") -> OpenAI:
    return OpenAI(base_url=gateway.url + path, api_key=key, max_retries=0)


# chat -----------------------------------------------------------------------------------------------------------------


def test_chat(client: OpenAI, direct: OpenAI, upstream: Upstream, request_id: str) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0.5, extra_headers={"x-request-id": request_id}
    )
    assert answer == direct.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0.5)
    assert answer.choices[0].message.content is not None
    assert answer.choices[0].message.content.startswith("The mock provider")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16
    (seen,) = upstream.find(request_id)
    assert seen.line == b"POST /v1/chat/completions HTTP/1.1"
    assert seen.headers["authorization"] == "Bearer openai-credential"
    assert json.loads(seen.body) == {"model": MODEL, "messages": MESSAGES, "temperature": 0.5}


def test_a_stream_brings_every_event(client: OpenAI, direct: OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**ask))
    assert chunks == list(direct.chat.completions.create(**ask))
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) == 16
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16


def test_a_stream_without_usage_gets_none(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    assert [chunk for chunk in chunks if chunk.usage is not None] == []


async def test_chat_asynchronously(async_client: AsyncOpenAI, direct: OpenAI) -> None:
    answer = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer == direct.chat.completions.create(model=MODEL, messages=MESSAGES)
    stream = await async_client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == answer.choices[0].message.content


def test_events_arrive_while_the_rest_is_still_to_come(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-mock": "stall"}, timeout=10
    ) as stream:
        texts = [next(stream).choices[0].delta.content for _ in range(9)]  # all that comes before the stall
    assert texts[1:] == ["The", " mock", " provider", " answers", " with", " the", " same", " text"]


def test_another_real_name(client: OpenAI, upstream: Upstream, request_id: str) -> None:
    answer = client.chat.completions.create(model="fast", messages=MESSAGES, extra_headers={"x-request-id": request_id})
    assert answer.model == "gpt-4o-mini"
    (seen,) = upstream.find(request_id)
    assert json.loads(seen.body) == {"model": "gpt-4o-mini", "messages": MESSAGES}


def test_tools(client: OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "mock"})
    with client.chat.completions.stream(**ask) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert (streamed.function.name, json.loads(streamed.function.arguments)) == ("weather", {"city": "mock"})


def test_structured_output(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=City)
    assert parsed.choices[0].message.parsed == City(name="mock", inhabitants=0)
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=City) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == City(name="mock", inhabitants=0)


def test_a_large_image_arrives_byte_by_byte(client: OpenAI, upstream: Upstream, request_id: str) -> None:
    image = base64.b64encode(bytes(range(256)) * (15 * 1024)).decode()
    assert len(image) == 5 * 1024 * 1024
    content: Any = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": content}], extra_headers={"x-request-id": request_id}
    )
    assert raw.parse().choices[0].finish_reason == "stop"
    (seen,) = upstream.find(request_id)
    assert seen.body == raw.http_response.request.read()
    assert image.encode() in seen.body


# other endpoints ------------------------------------------------------------------------------------------------------


def test_legacy_completions(client: OpenAI, direct: OpenAI) -> None:
    ask: Any = {"model": MODEL, "prompt": "Hi"}
    assert client.completions.create(**ask) == direct.completions.create(**ask)
    assert list(client.completions.create(**ask, stream=True)) == list(direct.completions.create(**ask, stream=True))


def test_responses(client: OpenAI, direct: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hi")
    assert answer == direct.responses.create(model=MODEL, input="Hi")
    assert answer.output_text.startswith("The mock provider")
    assert answer.usage is not None
    assert answer.usage.output_tokens == 16
    parsed = client.responses.parse(model=MODEL, input="Hi", text_format=City)
    assert parsed.output_parsed == City(name="mock", inhabitants=0)


def test_streamed_responses(client: OpenAI, direct: OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="Hi", stream=True))
    assert events == list(direct.responses.create(model=MODEL, input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    with client.responses.stream(model=MODEL, input="Hi") as stream:
        assert stream.get_final_response().output_text.startswith("The mock provider")


def test_responses_with_tools(client: OpenAI) -> None:
    tools: Any = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}]
    answer = client.responses.create(model=MODEL, input="Hi", tools=tools, tool_choice="required")
    assert answer.output[0].type == "function_call"
    assert json.loads(answer.output[0].arguments) == {"city": "mock"}


def test_embeddings_in_base64_as_the_sdk_asks_for_them(client: OpenAI, upstream: Upstream, request_id: str) -> None:
    answer = client.embeddings.create(
        model="text-embedding-3-small", input=["one", "two"], extra_headers={"x-request-id": request_id}
    )
    assert [len(item.embedding) for item in answer.data] == [8, 8]
    assert all(isinstance(number, float) for number in answer.data[0].embedding)
    assert answer.data[0].embedding != answer.data[1].embedding
    (seen,) = upstream.find(request_id)
    assert json.loads(seen.body)["encoding_format"] == "base64"


def test_transcription_names_its_model_in_a_form(client: OpenAI, upstream: Upstream, request_id: str) -> None:
    sound = bytes(range(256)) * 4096
    raw = client.audio.transcriptions.with_raw_response.create(
        model="whisper", file=("speech.wav", io.BytesIO(sound)), extra_headers={"x-request-id": request_id}
    )
    assert raw.parse().text == "The mock hears nothing."
    (seen,) = upstream.find(request_id)
    sent = raw.http_response.request.read()
    assert b'name="model"\r\n\r\nwhisper\r\n' in sent
    assert seen.body == sent.replace(b'name="model"\r\n\r\nwhisper\r\n', b'name="model"\r\n\r\nwhisper-1\r\n')
    assert sound in seen.body


def test_an_image_edit_is_a_form_too(client: OpenAI) -> None:
    answer = client.images.edit(model=MODEL, image=("a.png", b"\x89PNG", "image/png"), prompt="brighter")
    assert answer.data
    assert base64.b64decode(str(answer.data[0].b64_json)).startswith(b"\x89PNG")


def test_models(client: OpenAI, listed: list[str]) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == listed
    assert all((model.object, model.owned_by, model.created) == ("model", "aigw", 0) for model in models)
    assert client.models.retrieve("fast").id == "fast"
    with pytest.raises(openai.NotFoundError, match="GET /v1/models lists those that do"):
        client.models.retrieve("gpt-5")


async def test_models_asynchronously(async_client: AsyncOpenAI, listed: list[str]) -> None:
    assert [model.id async for model in async_client.models.list()] == listed


def test_what_belongs_to_no_model_has_no_way_without_a_default(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="rules"):
        client.files.list()


def test_azure(gateway: Serve, key: str, upstream: Upstream, request_id: str) -> None:
    with AzureOpenAI(azure_endpoint=gateway.url, api_key=key, api_version="2024-10-21", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="on-azure", messages=MESSAGES, extra_headers={"x-request-id": request_id}
        )
    assert answer.choices[0].finish_reason == "stop"
    (seen,) = upstream.find(request_id)
    assert seen.line == (b"POST /openai/deployments/my-deployment/chat/completions?api-version=2024-10-21 HTTP/1.1")
    assert seen.headers["api-key"] == "azure-credential"


# what answers carry ---------------------------------------------------------------------------------------------------


def test_raw_responses_and_request_ids(client: OpenAI, gateway: Serve) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fast", messages=MESSAGES)
    answer = raw.parse()
    assert raw.request_id == answer._request_id == raw.headers["x-request-id"]
    assert raw.headers["x-aigw-upstream-request-id"].startswith("req_mock_")
    assert raw.headers["x-aigw-upstream"] == "openai"
    assert raw.headers["x-aigw-model"] == "gpt-4o-mini"
    assert "first-byte" in raw.headers["server-timing"]
    record = gateway.record(str(raw.request_id))
    assert record["key"] == "sdk"
    assert (record["model"], record["model_used"], record["upstream"]) == ("fast", "gpt-4o-mini", "openai")
    assert (record["status"], record["end"], record["fault"]) == (200, "ok", "none")
    assert record["upstream_request_id"] == raw.headers["x-aigw-upstream-request-id"]
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=MESSAGES) as streaming:
        assert streaming.headers["x-aigw-model"] == MODEL
        assert json.loads(streaming.read())["model"] == MODEL


# errors ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_key(gateway: Serve) -> None:
    with asking(gateway, "sk-nobody-s") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert "this API key is not known to the gateway" in caught.value.message
    assert "sk-nobody-s" not in caught.value.message
    assert caught.value.code == "invalid_api_key"
    assert caught.value.response.headers["x-aigw-error"] == "invalid_key"
    assert caught.value.request_id


def test_a_key_for_other_models(gateway: Serve, narrow_key: str) -> None:
    with asking(gateway, narrow_key) as client:
        assert [model.id for model in client.models.list()] == [MODEL, "claude-haiku-4-5"]
        with pytest.raises(openai.PermissionDeniedError, match="'narrow' may not use the model 'fast'") as caught:
            client.chat.completions.create(model="fast", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_allowed", "model")


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-9' does not exist here; GET /v1/models") as caught:
        client.chat.completions.create(model="gpt-9", messages=MESSAGES)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_model_of_another_dialect(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="ask for it at /v1/messages") as caught:
        client.chat.completions.create(model="claude-haiku-4-5", messages=MESSAGES)
    assert caught.value.code == "dialect_mismatch"


@pytest.mark.parametrize("path", ["", "/v1/v1", "/v1beta/v1"])
def test_a_wrong_base_url_is_told_the_right_one(gateway: Serve, key: str, path: str) -> None:
    with asking(gateway, key, path) as client:
        for ask in (client.chat.completions, client.responses):
            said: Any = {"messages": MESSAGES} if ask is client.chat.completions else {"input": "Hi"}
            with pytest.raises(openai.NotFoundError, match=r"base_url that ends in (one )?/v1 "):
                ask.create(model=MODEL, **said)


@pytest.mark.parametrize("path", ["", "/v1/v1", "/v1beta/v1"])
def test_listing_models_at_a_wrong_base_url_is_told_the_right_one(gateway: Serve, key: str, path: str) -> None:
    with asking(gateway, key, path) as client:
        with pytest.raises(openai.NotFoundError, match=r"base_url that ends in (one )?/v1 "):
            client.models.list()
        with pytest.raises(openai.NotFoundError, match=r"base_url that ends in (one )?/v1 "):
            client.models.retrieve(MODEL)


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 429, 500, 503, 529])
def test_an_error_of_the_upstream_is_relayed(client: OpenAI, status: int) -> None:
    with pytest.raises(openai.APIStatusError, match=f"asked to fail: status={status}") as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"x-mock": f"status={status}"})
    assert caught.value.status_code == status
    assert "x-aigw-error" not in caught.value.response.headers


def test_an_upstream_that_refuses_our_credential(client: OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="api_key") as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"x-mock": "status=401"})
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_credential_refused")


# failing upstreams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", BROKEN)
def test_a_broken_answer_is_an_error(client: OpenAI, gateway: Serve, failure: str, request_id: str) -> None:
    broken: Any = {"extra_headers": {"x-mock": failure, "x-request-id": request_id}}
    with pytest.raises(openai.APIError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, **broken)
    record = gateway.record(request_id)
    assert (record["end"] in ("cut", "failed"), record["fault"]) == (True, "upstream")


@pytest.mark.parametrize("failure", BROKEN)
def test_a_broken_stream_never_looks_finished(client: OpenAI, gateway: Serve, failure: str, request_id: str) -> None:
    broken: Any = {"stream": True, "extra_headers": {"x-mock": failure, "x-request-id": request_id}}
    chunks: list[Any] = []
    with pytest.raises(openai.APIError):
        chunks.extend(client.chat.completions.create(model=MODEL, messages=MESSAGES, **broken))
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
    record = gateway.record(request_id)
    assert (record["end"] in ("cut", "failed"), record["fault"]) == (True, "upstream")
    events: list[Any] = []
    with pytest.raises(openai.APIError):
        events.extend(client.responses.create(model=MODEL, input="Hi", **broken))
    assert "response.completed" not in [event.type for event in events]


@pytest.mark.parametrize("failure", ["cut-body", "cut-event", "cut-between"])
def test_what_came_before_the_cut_arrives(client: OpenAI, failure: str) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-mock": failure}
    )
    texts = [next(stream).choices[0].delta.content for _ in range(9)]
    assert texts[1:] == ["The", " mock", " provider", " answers", " with", " the", " same", " text"]
    with pytest.raises(openai.APIError) as caught:
        next(stream)
    if failure == "cut-between":  # where an event may stand, the gateway says what happened
        assert caught.value.message == "the upstream broke off in the middle of its answer"
        assert caught.value.code == "upstream_cut"
    else:
        assert isinstance(caught.value, openai.APIConnectionError)


def test_an_error_event_is_relayed(client: OpenAI) -> None:
    failing: Any = {"stream": True, "extra_headers": {"x-mock": "error-event"}}
    with pytest.raises(openai.APIError, match="asked to fail: error-event"):
        list(client.chat.completions.create(model=MODEL, messages=MESSAGES, **failing))
    last = list(client.responses.create(model=MODEL, input="Hi", **failing))[-1]
    assert (last.type, last.message) == ("error", "the mock was asked to fail: error-event")


@pytest.mark.parametrize(("failure", "code"), [("refuse", "upstream_reset"), ("malformed", "upstream_malformed")])
def test_no_answer_is_a_bad_gateway(client: OpenAI, failure: str, code: str) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_headers={"x-mock": failure})
    assert (caught.value.status_code, caught.value.code) == (502, code)


# time, retries, hanging up --------------------------------------------------------------------------------------------


def test_a_client_that_times_out_stops_the_upstream(
    client: OpenAI, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            timeout=0.3,
            extra_headers={"x-mock": "latency=600", "x-request-id": request_id},
        )
    upstream.wait_closed(upstream.wire(request_id))
    record = gateway.record(request_id)
    assert (record["status"], record["end"], record["fault"]) == (499, "client_gone", "client")


def test_closing_a_stream_stops_the_upstream(
    client: OpenAI, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-mock": "stall", "x-request-id": request_id}
    ) as stream:
        next(stream)
        wire = upstream.wire(request_id)
        assert wire.is_open
    upstream.wait_closed(wire)
    record = gateway.record(request_id)
    assert (record["status"], record["end"], record["fault"]) == (200, "client_gone", "client")


async def test_cancelling_a_stream_stops_the_upstream(
    async_client: AsyncOpenAI, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    headers = {"x-mock": "stall", "x-request-id": request_id}
    async with await async_client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers=headers
    ) as stream:
        await anext(stream)
    upstream.wait_closed(upstream.wire(request_id))
    assert gateway.record(request_id)["end"] == "client_gone"


def test_the_sdk_retries_when_the_upstream_says_when(client: OpenAI, busy: Upstream, request_id: str) -> None:
    since = time.monotonic()
    answer = client.with_options(max_retries=2).chat.completions.create(
        model="busy", messages=MESSAGES, extra_headers={"x-request-id": request_id}
    )
    assert time.monotonic() - since >= 0.99  # `retry-after: 1` came through
    assert answer.choices[0].message.content == "At last."
    seen = busy.find(request_id)
    assert [one.headers["x-stainless-retry-count"] for one in seen] == ["0", "1"]
    assert seen[0].body == seen[1].body


def test_without_retries_a_busy_upstream_is_asked_once(client: OpenAI, busy: Upstream, request_id: str) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="busy", messages=MESSAGES, extra_headers={"x-request-id": request_id})
    assert caught.value.response.headers["retry-after"] == "1"
    assert len(busy.find(request_id)) == 1
