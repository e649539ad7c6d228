"""The mock as the official OpenAI SDK meets it."""

import math
from collections.abc import AsyncIterator

import openai
import pytest
from pydantic import BaseModel

SAID = "The mock provider answers with the same text every time, so tests may rely on it."
ASKED = [{"role": "user", "content": "Say hello, please"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city", "days"],
        },
    },
}


class Step(BaseModel):
    title: str
    minutes: int
    after: "Step | None"


@pytest.fixture
async def client(mock) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{mock.url}/v1", api_key="any", max_retries=0) as client:
        yield client


async def test_chat(client) -> None:
    answered = await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=ASKED)
    completion = answered.parse()
    assert completion.choices[0].message.content == SAID
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "gpt-4o"
    assert completion.usage.prompt_tokens == 4
    assert completion.usage.completion_tokens == 16
    assert completion.usage.total_tokens == 20
    assert answered.headers["x-request-id"].startswith("req_mock_")


async def test_chat_cut_by_the_client(client) -> None:
    completion = await client.chat.completions.create(model="m", messages=ASKED, max_completion_tokens=3)
    assert completion.choices[0].message.content == "The mock provider"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 3


async def test_chat_streamed_without_usage(client) -> None:
    stream = await client.chat.completions.create(model="m", messages=ASKED, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


async def test_chat_streamed_with_usage(client) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
async def test_chat_tools(client, choice: object) -> None:
    completion = await client.chat.completions.create(model="m", messages=ASKED, tools=[TOOL], tool_choice=choice)
    (call,) = completion.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"mock","days":1}')
    assert completion.choices[0].finish_reason == "tool_calls"
    assert completion.choices[0].message.content is None


async def test_chat_tools_streamed(client) -> None:
    async with client.chat.completions.stream(
        model="m", messages=ASKED, tools=[TOOL], tool_choice="required"
    ) as stream:
        completion = await stream.get_final_completion()
    (call,) = completion.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"mock","days":1}')
    assert call.id.startswith("call_mock_")


async def test_chat_structured(client) -> None:
    completion = await client.chat.completions.parse(model="m", messages=ASKED, response_format=Step)
    assert completion.choices[0].message.parsed == Step(title="mock", minutes=0, after=None)


async def test_completions(client) -> None:
    completion = await client.completions.create(model="m", prompt="Say hello", max_tokens=2)
    assert completion.choices[0].text == "The mock"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 2


@pytest.mark.parametrize("with_usage", [False, True])
async def test_completions_streamed(client, with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    stream = await client.completions.create(model="m", prompt="Say hello", stream=True, **options)
    chunks = [chunk async for chunk in stream]
    if with_usage:
        assert chunks.pop().usage.completion_tokens == 16
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAID
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_responses(client) -> None:
    response = await client.responses.create(model="m", input="Say hello")
    assert (response.output_text, response.status) == (SAID, "completed")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 16)


async def test_responses_cut_by_the_client(client) -> None:
    response = await client.responses.create(model="m", input="Say hello", max_output_tokens=1)
    assert (response.output_text, response.status) == ("The", "incomplete")
    assert response.incomplete_details.reason == "max_output_tokens"
    stream = await client.responses.create(model="m", input="Say hello", max_output_tokens=1, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_responses_streamed(client) -> None:
    async with client.responses.stream(model="m", input="Say hello") as stream:
        events = [event async for event in stream]
        response = await stream.get_final_response()
    assert response.output_text == SAID
    assert response.usage.total_tokens == 18
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[4:20] == ["response.output_text.delta"] * 16
    assert kinds[20:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
async def test_responses_tools(client, choice: object) -> None:
    tool = {"type": "function", "strict": False} | TOOL["function"]
    response = await client.responses.create(model="m", input="x", tools=[tool], tool_choice=choice)
    assert response.output[0].arguments == '{"city":"mock","days":1}'
    async with client.responses.stream(model="m", input="x", tools=[tool], tool_choice=choice) as stream:
        streamed = await stream.get_final_response()
    assert streamed.output[0].name == "weather"
    assert streamed.output[0].arguments == '{"city":"mock","days":1}'


async def test_responses_structured(client) -> None:
    response = await client.responses.parse(model="m", input="Say hello", text_format=Step)
    assert response.output_parsed == Step(title="mock", minutes=0, after=None)


async def test_embeddings(client) -> None:
    """The SDK asks for base64 on its own; asked for floats, the numbers are the same."""
    packed = await client.embeddings.create(model="m", input=["one", "two"], dimensions=6)
    floats = await client.embeddings.create(model="m", input=["one", "two"], dimensions=6, encoding_format="float")
    assert [len(one.embedding) for one in packed.data] == [6, 6]
    assert [one.embedding for one in packed.data] == [one.embedding for one in floats.data]
    assert packed.data[0].embedding != packed.data[1].embedding
    tokens = await client.embeddings.create(model="m", input=[1, 2, 3])
    assert len(tokens.data) == 1
    assert all(math.isfinite(number) for number in tokens.data[0].embedding)


async def test_models(client) -> None:
    assert [model.id async for model in client.models.list()] == ["mock-1", "mock-embedding-1"]
    assert (await client.models.retrieve("anything")).id == "anything"


async def test_audio_and_images(client) -> None:
    heard = await client.audio.transcriptions.create(model="m", file=("a.wav", b"RIFF"))
    assert heard.text == "The mock hears nothing."
    edited = await client.images.edit(model="m", image=("a.png", b"\x89PNG"), prompt="nicer")
    assert edited.data[0].b64_json.startswith("iVBOR")
    assert (await client.images.generate(model="m", prompt="a dot")).data[0].b64_json.startswith("iVBOR")


async def test_errors(client) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(
            model="m", messages=ASKED, extra_headers={"x-mock": "status=429, retry-after=1"}
        )
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.response.headers["retry-after"] == "1"
    with pytest.raises(openai.NotFoundError):
        await client.files.list()


@pytest.mark.parametrize("word", ["error-event", "cut-between", "cut-event", "reset"])
async def test_a_broken_stream_raises(client, word: str) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=ASKED, stream=True, extra_headers={"x-mock": word}
    )
    said = ""

    async def listen() -> None:
        nonlocal said
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""

    with pytest.raises(openai.APIError) as caught:
        await listen()
    assert said == "The mock provider answers with the same text"
    assert isinstance(caught.value, openai.APIConnectionError) == (word != "error-event")


async def test_a_failed_responses_stream_tells_so_in_an_event(client) -> None:
    stream = await client.responses.create(
        model="m", input="x", stream=True, extra_headers={"x-mock": "error-event, tokens=2"}
    )
    events = [event async for event in stream]
    assert events[-1].type == "error"
    assert events[-1].sequence_number == len(events) - 1


@pytest.mark.parametrize(("size", "has_usage"), [(49, False), (200, False), (201, False), (300, True), (800, True)])
async def test_a_completion_of_a_given_size(client, size: int, has_usage: bool) -> None:
    answered = await client.chat.completions.with_raw_response.create(
        model="m", messages=ASKED, extra_headers={"x-mock": f"bytes={size}"}
    )
    assert len(answered.content) == size
    completion = answered.parse()
    assert set(completion.choices[0].message.content) == {"!"}
    assert (completion.usage is not None) == has_usage
