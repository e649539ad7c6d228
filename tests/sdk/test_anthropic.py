"""The official `anthropic` SDK, unchanged, through the gateway."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from processes import Serve, Upstream
from pydantic import BaseModel

pytestmark = pytest.mark.unmeasured

MODEL = "claude-haiku-4-5"
MESSAGES: Any = [{"role": "user", "content": "Hi"}]
ASK: Any = {"model": MODEL, "max_tokens": 100, "messages": MESSAGES}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [{"name": "weather", "input_schema": SCHEMA}]
BROKEN = ["cut-body", "cut-event", "cut-between", "reset", "bad-chunk", "early-close"]


class City(BaseModel):
    name: str
    inhabitants: int


@pytest.fixture(scope="module")
def client(gateway: Serve, key: str) -> Iterator[Anthropic]:
    with Anthropic(base_url=gateway.url, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def direct(upstream: Upstream) -> Iterator[Anthropic]:
    """The same client without the gateway."""
    with Anthropic(base_url=upstream.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(gateway: Serve, key: str) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0) as client:
        yield client


def asking(gateway: Serve, key: str, path: str = "") -> Anthropic:
    return Anthropic(base_url=gateway.url + path, api_key=key, max_retries=0)


# messages -------------------------------------------------------------------------------------------------------------


def test_messages(client: Anthropic, direct: Anthropic, upstream: Upstream, request_id: str) -> None:
    raw = client.messages.with_raw_response.create(
        **ASK, extra_headers={"x-request-id": request_id, "anthropic-beta": "a-beta"}
    )
    answer = raw.parse()
    assert answer == direct.messages.create(**ASK)
    assert answer.content[0].type == "text"
    assert answer.content[0].text.startswith("The mock provider")
    assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", 16)
    (seen,) = upstream.find(request_id)
    assert seen.line == b"POST /v1/messages HTTP/1.1"
    assert seen.headers["x-api-key"] == "anthropic-credential"
    assert seen.headers["anthropic-version"] == raw.http_response.request.headers["anthropic-version"]
    assert seen.headers["anthropic-beta"] == "a-beta"
    assert json.loads(seen.body) == ASK


def test_a_stream_brings_every_event(client: Anthropic, direct: Anthropic) -> None:
    events = list(client.messages.create(**ASK, stream=True))
    assert events == list(direct.messages.create(**ASK, stream=True))
    types = [event.type for event in events]
    assert (types[0], types[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert types.count("content_block_delta") == 16
    with client.messages.stream(**ASK) as stream:
        text = "".join(stream.text_stream)
        assert text == stream.get_final_text()
    assert text.startswith("The mock provider")


async def test_messages_asynchronously(async_client: AsyncAnthropic, direct: Anthropic) -> None:
    assert await async_client.messages.create(**ASK) == direct.messages.create(**ASK)
    async with async_client.messages.stream(**ASK) as stream:
        assert (await stream.get_final_message()).stop_reason == "end_turn"


def test_events_arrive_while_the_rest_is_still_to_come(client: Anthropic) -> None:
    texts: list[str] = []
    with client.messages.stream(**ASK, extra_headers={"x-mock": "stall"}, timeout=10) as stream:
        for text in stream.text_stream:
            texts.append(text)
            if len(texts) == 8:  # all that comes before the stall
                break
    assert "".join(texts) == "The mock provider answers with the same text"


def test_tools(client: Anthropic) -> None:
    ask: Any = ASK | {"tools": TOOLS, "tool_choice": {"type": "any"}}
    answer = client.messages.create(**ask)
    assert answer.stop_reason == "tool_use"
    assert answer.content[0].type == "tool_use"
    assert (answer.content[0].name, answer.content[0].input) == ("weather", {"city": "mock"})
    with client.messages.stream(**ask) as stream:
        block = stream.get_final_message().content[0]
    assert block.type == "tool_use"
    assert block.input == {"city": "mock"}


def test_structured_output(client: Anthropic) -> None:
    parsed = client.messages.parse(**ASK, output_format=City)
    assert parsed.parsed_output == City(name="mock", inhabitants=0)


def test_counting_tokens(client: Anthropic, direct: Anthropic) -> None:
    ask: Any = {"model": MODEL, "messages": [{"role": "user", "content": "How many tokens are these?"}]}
    assert client.messages.count_tokens(**ask) == direct.messages.count_tokens(**ask)
    assert client.messages.count_tokens(**ask).input_tokens > 1


def test_a_large_image_arrives_byte_by_byte(client: Anthropic, upstream: Upstream, request_id: str) -> None:
    image = base64.b64encode(bytes(range(256)) * (15 * 1024)).decode()
    content: Any = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}}]
    raw = client.messages.with_raw_response.create(
        model=MODEL,
        max_tokens=100,
        messages=[{"role": "user", "content": content}],
        extra_headers={"x-request-id": request_id},
    )
    assert raw.parse().stop_reason == "end_turn"
    (seen,) = upstream.find(request_id)
    assert seen.body == raw.http_response.request.read()
    assert image.encode() in seen.body


# models and headers ---------------------------------------------------------------------------------------------------


def test_models(client: Anthropic, listed: list[str]) -> None:
    models = list(client.models.list())
    assert [model.id for model in models] == listed
    assert all((model.type, model.display_name) == ("model", model.id) for model in models)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(anthropic.NotFoundError, match="GET /v1/models lists those that do"):
        client.models.retrieve("gpt-5")


async def test_models_asynchronously(async_client: AsyncAnthropic, listed: list[str]) -> None:
    assert [model.id async for model in async_client.models.list()] == listed


def test_request_ids_are_the_provider_s_and_ours(client: Anthropic, gateway: Serve) -> None:
    raw = client.messages.with_raw_response.create(**ASK)
    message = raw.parse()
    assert message._request_id == raw.headers["request-id"]
    assert str(message._request_id).startswith("req_mock_")
    assert raw.headers["x-aigw-upstream"] == "anthropic"
    record = gateway.record(raw.headers["x-request-id"])
    assert (record["key"], record["upstream"], record["model"], record["end"]) == ("sdk", "anthropic", MODEL, "ok")


def test_the_provider_s_request_id_is_logged(client: Anthropic, gateway: Serve) -> None:
    raw = client.messages.with_raw_response.create(**ASK)
    assert gateway.record(raw.headers["x-request-id"]).get("upstream_request_id") == raw.headers["request-id"]


# errors ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_key(gateway: Serve) -> None:
    with asking(gateway, "sk-nobody-s") as client, pytest.raises(anthropic.AuthenticationError) as caught:
        client.messages.create(**ASK)
    assert "this API key is not known to the gateway" in caught.value.message
    assert "sk-nobody-s" not in caught.value.message
    assert caught.value.type == "authentication_error"
    assert caught.value.response.headers["x-aigw-error"] == "invalid_key"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]


def test_a_key_as_bearer_token(gateway: Serve, key: str) -> None:
    with Anthropic(base_url=gateway.url, auth_token=key, api_key=None, max_retries=0) as client:
        assert client.messages.create(**ASK).stop_reason == "end_turn"


def test_a_key_for_other_models(gateway: Serve, narrow_key: str) -> None:
    with asking(gateway, narrow_key) as client:
        assert client.messages.create(**ASK).stop_reason == "end_turn"
        with pytest.raises(anthropic.PermissionDeniedError, match="may not use the model 'claude-opus-4-5'"):
            client.messages.create(**ASK | {"model": "claude-opus-4-5"})


def test_an_unknown_model(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="the model 'opus' does not exist here; GET /v1/models") as caught:
        client.messages.create(**ASK | {"model": "opus"})
    assert caught.value.type == "not_found_error"


def test_a_model_of_an_openai_only_upstream(client: Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="ask for it at /v1/chat/completions") as caught:
        client.messages.create(**ASK | {"model": "gpt-4o"})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-aigw-error"] == "dialect_mismatch"


def test_a_wrong_base_url_is_told_the_right_one(gateway: Serve, key: str) -> None:
    with asking(gateway, key, "/v1") as client:
        with pytest.raises(anthropic.NotFoundError, match=r"Anthropic's and Google's one without \(http://HOST:PORT\)"):
            client.messages.create(**ASK)
        with pytest.raises(anthropic.NotFoundError, match=r"Anthropic's and Google's one without \(http://HOST:PORT\)"):
            client.models.list()


@pytest.mark.parametrize("status", [400, 403, 404, 413, 429, 500, 503, 529])
def test_an_error_of_the_upstream_is_relayed(client: Anthropic, status: int) -> None:
    with pytest.raises(anthropic.APIStatusError, match=f"asked to fail: status={status}") as caught:
        client.messages.create(**ASK, extra_headers={"x-mock": f"status={status}"})
    assert caught.value.status_code == status
    assert str(caught.value.request_id).startswith("req_mock_")
    assert "x-aigw-error" not in caught.value.response.headers


def test_an_upstream_that_refuses_our_credential(client: Anthropic) -> None:
    with pytest.raises(anthropic.InternalServerError, match="api_key") as caught:
        client.messages.create(**ASK, extra_headers={"x-mock": "status=401"})
    assert caught.value.status_code == 502
    assert caught.value.response.headers["x-aigw-error"] == "upstream_credential_refused"


@pytest.mark.parametrize("failure", BROKEN)
def test_a_broken_answer_is_an_error(client: Anthropic, gateway: Serve, failure: str, request_id: str) -> None:
    with pytest.raises(anthropic.APIError):
        client.messages.create(**ASK, extra_headers={"x-mock": failure, "x-request-id": request_id})
    record = gateway.record(request_id)
    assert (record["end"] in ("cut", "failed"), record["fault"]) == (True, "upstream")


@pytest.mark.parametrize("failure", BROKEN)
def test_a_broken_stream_never_looks_finished(client: Anthropic, gateway: Serve, failure: str, request_id: str) -> None:
    events: list[Any] = []
    # The SDK lets its HTTP client's own exception through once a stream has begun.
    with pytest.raises(Exception, match=r"peer closed connection|Connection error|upstream") as caught:
        events.extend(
            client.messages.create(**ASK, stream=True, extra_headers={"x-mock": failure, "x-request-id": request_id})
        )
    assert not isinstance(caught.value, AssertionError)
    assert not {"message_delta", "message_stop"} & {event.type for event in events}
    record = gateway.record(request_id)
    assert (record["end"] in ("cut", "failed"), record["fault"]) == (True, "upstream")


def test_an_error_event_is_relayed(client: Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError, match="asked to fail: error-event"):
        list(client.messages.create(**ASK, stream=True, extra_headers={"x-mock": "error-event"}))


# time, retries, hanging up --------------------------------------------------------------------------------------------


def test_a_client_that_times_out_stops_the_upstream(
    client: Anthropic, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    with pytest.raises(anthropic.APITimeoutError):
        client.messages.create(**ASK, timeout=0.3, extra_headers={"x-mock": "latency=600", "x-request-id": request_id})
    upstream.wait_closed(upstream.wire(request_id))
    record = gateway.record(request_id)
    assert (record["status"], record["end"]) == (499, "client_gone")


def test_closing_a_stream_stops_the_upstream(
    client: Anthropic, gateway: Serve, upstream: Upstream, request_id: str
) -> None:
    with client.messages.stream(**ASK, extra_headers={"x-mock": "stall", "x-request-id": request_id}) as stream:
        next(stream)
        wire = upstream.wire(request_id)
        assert wire.is_open
    upstream.wait_closed(wire)
    record = gateway.record(request_id)
    assert (record["status"], record["end"]) == (200, "client_gone")


def test_the_sdk_retries_when_the_upstream_says_when(client: Anthropic, busy: Upstream, request_id: str) -> None:
    since = time.monotonic()
    answer = client.with_options(max_retries=2).messages.create(
        **ASK | {"model": "busy"}, extra_headers={"x-request-id": request_id}
    )
    assert time.monotonic() - since >= 0.99  # `retry-after: 1` came through
    assert answer.stop_reason == "end_turn"
    seen = busy.find(request_id)
    assert [one.headers["x-stainless-retry-count"] for one in seen] == ["0", "1"]
