"""The mock as the official Anthropic SDK meets it."""

from collections.abc import AsyncIterator

import anthropic
import pytest

SAID = "The mock provider answers with the same text every time, so tests may rely on it."
ASKED = [{"role": "user", "content": "Say hello, please"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
}
TOOL = {"name": "weather", "input_schema": SCHEMA}


@pytest.fixture
async def client(mock) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=mock.url, api_key="any", max_retries=0) as client:
        yield client


async def test_messages(client) -> None:
    message = await client.messages.create(model="claude", max_tokens=100, messages=ASKED)
    assert message.content[0].text == SAID
    assert (message.stop_reason, message.model) == ("end_turn", "claude")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 16)
    assert message._request_id.startswith("req_mock_")


async def test_messages_cut_by_the_client(client) -> None:
    message = await client.messages.create(model="m", max_tokens=2, messages=ASKED)
    assert (message.content[0].text, message.stop_reason) == ("The mock", "max_tokens")


async def test_messages_streamed(client) -> None:
    async with client.messages.stream(model="m", max_tokens=100, messages=ASKED) as stream:
        assert "".join([text async for text in stream.text_stream]) == SAID
        message = await stream.get_final_message()
    assert (message.usage.input_tokens, message.usage.output_tokens) == (4, 16)
    assert message.stop_reason == "end_turn"


async def test_the_events_of_a_stream(client) -> None:
    stream = await client.messages.create(model="m", max_tokens=2, messages=ASKED, stream=True)
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].message.usage.input_tokens == 4
    assert (events[5].usage.output_tokens, events[5].delta.stop_reason) == (2, "max_tokens")


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
async def test_tools(client, choice: dict) -> None:
    asked = {"model": "m", "max_tokens": 100, "messages": ASKED, "tools": [TOOL], "tool_choice": choice}
    message = await client.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    assert (message.content[0].name, message.content[0].input) == ("weather", {"city": "mock", "days": 0})
    async with client.messages.stream(**asked) as stream:
        streamed = await stream.get_final_message()
    assert (streamed.content[0].name, streamed.content[0].input) == ("weather", {"city": "mock", "days": 0})


async def test_tools_cut_by_the_client(client) -> None:
    message = await client.messages.create(
        model="m", max_tokens=1, messages=ASKED, tools=[TOOL], tool_choice={"type": "any"}
    )
    assert (message.stop_reason, message.content[0].input) == ("max_tokens", {})


async def test_structured(client) -> None:
    message = await client.messages.create(
        model="m",
        max_tokens=100,
        messages=ASKED,
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert message.content[0].text == '{"city":"mock","days":0}'


async def test_tools_that_are_optional(client) -> None:
    message = await client.messages.create(
        model="m", max_tokens=100, messages=ASKED, tools=[TOOL], tool_choice={"type": "auto"}
    )
    assert message.content[0].text == SAID


async def test_count_tokens_and_models(client) -> None:
    assert (await client.messages.count_tokens(model="m", messages=ASKED)).input_tokens == 4
    assert [model.id async for model in client.models.list()] == ["mock-1", "mock-embedding-1"]
    assert (await client.models.retrieve("anything")).display_name == "anything"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (429, anthropic.RateLimitError),
        (529, anthropic.InternalServerError),
    ],
)
async def test_errors(client, status: int, error: type[anthropic.APIStatusError]) -> None:
    with pytest.raises(error) as caught:
        await client.messages.create(
            model="m", max_tokens=9, messages=ASKED, extra_headers={"x-mock": f"status={status}"}
        )
    assert caught.value.body["request_id"] == caught.value.request_id


@pytest.mark.parametrize("word", ["error-event", "cut-between", "reset"])
async def test_a_broken_stream_raises(client, word: str) -> None:
    stream = await client.messages.create(
        model="m", max_tokens=99, messages=ASKED, stream=True, extra_headers={"x-mock": word}
    )
    with pytest.raises(Exception) as caught:  # noqa: PT011 - an SDK's or its transport's, by the way it broke
        async for _ in stream:
            pass
    assert isinstance(caught.value, anthropic.APIError) == (word == "error-event")
    if word == "error-event":
        assert caught.value.body["error"]["type"] == "overloaded_error"
