"""The mock as the official google-genai SDK meets it."""

from collections.abc import AsyncIterator

import orjson
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

SAID = "The mock provider answers with the same text every time, so tests may rely on it."


class City(BaseModel):
    name: str
    people: int


WEATHER = types.Tool(
    function_declarations=[
        types.FunctionDeclaration(
            name="weather",
            parameters=types.Schema(
                type=types.Type.OBJECT, properties={"city": types.Schema(type=types.Type.STRING)}, required=["city"]
            ),
        )
    ]
)
FORCED = types.GenerateContentConfig(
    tools=[WEATHER],
    tool_config=types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(
            mode=types.FunctionCallingConfigMode.ANY, allowed_function_names=["weather"]
        )
    ),
    automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
)


def worded(words: str) -> types.GenerateContentConfig:
    return types.GenerateContentConfig(http_options=types.HttpOptions(headers={"x-mock": words}))


@pytest.fixture
async def client(mock) -> AsyncIterator[genai.client.AsyncClient]:
    client = genai.Client(api_key="any", http_options=types.HttpOptions(base_url=mock.url))
    async with client.aio as asynchronous:
        yield asynchronous
    client.close()


async def test_generate(client) -> None:
    answered = await client.models.generate_content(model="gemini", contents="Say hello, please")
    assert answered.text == SAID
    assert answered.candidates[0].finish_reason == types.FinishReason.STOP
    assert answered.model_version == "gemini"
    usage = answered.usage_metadata
    assert (usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count) == (4, 16, 20)


async def test_generate_cut_by_the_client(client) -> None:
    config = types.GenerateContentConfig(max_output_tokens=2)
    answered = await client.models.generate_content(model="m", contents="x", config=config)
    assert answered.text == "The mock"
    assert answered.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS


async def test_stream(client) -> None:
    stream = await client.models.generate_content_stream(model="m", contents="Say hello, please")
    parts = [part async for part in stream]
    assert "".join(part.text or "" for part in parts) == SAID
    assert [part.usage_metadata.candidates_token_count for part in parts] == [*range(1, 17), 16]
    assert parts[-1].candidates[0].finish_reason == types.FinishReason.STOP


async def test_the_stream_as_a_json_array(mock) -> None:
    document = {"contents": [{"parts": [{"text": "x"}]}]}
    for tokens in (0, 1, 3):
        answered = await mock.ask("/v1beta/models/m:streamGenerateContent", document, words=f"tokens={tokens}")
        assert answered.headers["content-type"] == "application/json; charset=UTF-8"
        chunks, rest = answered.chunks()
        assert rest == b"0\r\n\r\n"
        elements = orjson.loads(b"".join(chunks))
        assert len(elements) == tokens + 1
        assert elements[-1]["candidates"][0]["finishReason"] == "STOP"


async def test_tools(client) -> None:
    answered = await client.models.generate_content(model="m", contents="x", config=FORCED)
    assert (answered.function_calls[0].name, answered.function_calls[0].args) == ("weather", {"city": "mock"})
    stream = await client.models.generate_content_stream(model="m", contents="x", config=FORCED)
    calls = [call async for part in stream for call in part.function_calls or ()]
    assert [(call.name, call.args) for call in calls] == [("weather", {"city": "mock"})]


async def test_structured(client) -> None:
    config = types.GenerateContentConfig(response_mime_type="application/json", response_schema=City)
    answered = await client.models.generate_content(model="m", contents="x", config=config)
    assert answered.parsed == City(name="mock", people=0)
    config = types.GenerateContentConfig(
        response_mime_type="application/json", response_json_schema=City.model_json_schema()
    )
    answered = await client.models.generate_content(model="m", contents="x", config=config)
    assert orjson.loads(answered.text) == {"name": "mock", "people": 0}


async def test_embeddings(client, mock) -> None:
    config = types.EmbedContentConfig(output_dimensionality=5)
    answered = await client.models.embed_content(model="m", contents=["one", "two"], config=config)
    assert [len(one.values) for one in answered.embeddings] == [5, 5]
    single = await mock.ask("/v1beta/models/m:embedContent", {"content": {"parts": [{"text": "one"}]}})
    assert len(single.json()["embedding"]["values"]) == 8


async def test_count_tokens_and_models(client) -> None:
    assert (await client.models.count_tokens(model="m", contents="Say hello, please")).total_tokens == 4
    assert [model.name async for model in await client.models.list()] == ["models/mock-1", "models/mock-embedding-1"]
    assert (await client.models.get(model="anything")).name == "models/anything"


async def test_errors(client) -> None:
    with pytest.raises(errors.ServerError) as caught:
        await client.models.generate_content(model="m", contents="x", config=worded("status=503"))
    assert (caught.value.code, caught.value.status) == (503, "UNAVAILABLE")
    with pytest.raises(errors.ClientError) as refused:
        await client.models.generate_content(model="m", contents="x", config=worded("status=429"))
    assert refused.value.status == "RESOURCE_EXHAUSTED"


async def test_an_error_event_raises(client) -> None:
    stream = await client.models.generate_content_stream(model="m", contents="x", config=worded("error-event"))
    said = ""

    async def listen() -> None:
        nonlocal said
        async for part in stream:
            said += part.text or ""

    with pytest.raises(errors.APIError) as caught:
        await listen()
    assert said == "The mock provider answers with the same text"
    assert caught.value.code == 503
