"""aigw.mock.router: which path is what, in which dialect, and what is wrong with a request."""

import pytest

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("path", ["/", "/ping", "/health", "/healthz"])
async def test_pings(mock, path: str) -> None:
    assert (await mock.ask(path)).json() == {"status": "ok"}


async def test_unknown_paths_in_the_dialect_of_the_request(mock) -> None:
    openai = await mock.ask("/v1/files", b"x")
    assert openai.status == 404
    assert openai.json()["error"]["message"].startswith("no such path: POST /v1/files; the mock has /v1/chat/")
    anthropic = await mock.ask("/v1/files", anthropic_version="2023-06-01")
    assert anthropic.json()["error"]["type"] == "not_found_error"
    gemini = await mock.ask("/v1/files", x_goog_api_key="k")
    assert gemini.json()["error"]["status"] == "NOT_FOUND"
    assert (await mock.ask("/v1beta/files", x_goog_api_client="k")).json()["error"]["status"] == "NOT_FOUND"
    assert (await mock.ask("/v1beta/files")).json()["error"]["status"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (CHAT, "POST"),
        ("/v1/messages", "POST"),
        ("/v1/images/edits", "POST"),
        ("/v1beta/models/m:generateContent", "POST"),
    ],
)
async def test_a_method_that_is_not_allowed(mock, path: str, allow: str) -> None:
    answered = await mock.ask(path)
    assert (answered.status, answered.headers["allow"]) == (405, allow)


async def test_models_are_read_only(mock) -> None:
    answered = await mock.ask("/v1/models", method="DELETE")
    assert (answered.status, answered.headers["allow"]) == (405, "GET, HEAD")


async def test_azure_paths_name_the_deployment(mock) -> None:
    document = mock.chat()
    del document["model"]
    path = "/openai/deployments/my%20gpt/chat/completions?api-version=2024-10-21"
    assert (await mock.ask(path, document)).json()["model"] == "my gpt"
    assert (await mock.ask("/openai/deployments/x/files")).status == 404


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (CHAT, b"{", "the body is no JSON"),
        (CHAT, b"[]", "the body is JSON, but no object"),
        (CHAT, b"{}", "model: expected a model's name"),
        (CHAT, b'{"model":7}', "model: expected a model's name"),
        (CHAT, b'{"model":"m","messages":[]}', "messages: expected a list with at least one message"),
        (CHAT, b'{"model":"m","input":"hi"}', "messages: expected a list"),
        ("/v1/completions", b'{"model":"m"}', "prompt: expected a text or a list"),
        ("/v1/responses", b'{"model":"m","messages":[1]}', "input: expected a text or a list of items"),
        ("/v1/embeddings", b'{"model":"m","input":[]}', "input: expected a text, a list of texts, or tokens"),
        ("/v1/embeddings", b'{"model":"m","input":"x","dimensions":0}', "dimensions: expected a count from 1 to 4096"),
        ("/v1/messages", b'{"model":"m","max_tokens":3}', "messages: expected a list with at least one message"),
        ("/v1/messages", b'{"model":"m","messages":[1]}', "max_tokens: expected a positive number"),
        ("/v1beta/models/m:generateContent", b"{}", "contents: expected a list with at least one content"),
        ("/v1beta/models/m:embedContent", b"{}", "content: expected an object with `parts`"),
        (
            "/v1beta/models/m:embedContent",
            b'{"content":{},"outputDimensionality":"8"}',
            "outputDimensionality: expected a count",
        ),
        ("/v1beta/models/m:batchEmbedContents", b'{"requests":[1]}', "requests: expected a list of embedContent"),
        (
            CHAT,
            b'{"model":"m","messages":[1],"tools":[],"tool_choice":"required"}',
            "tool_choice asks for a call, but `tools` has no function",
        ),
        (
            CHAT,
            b'{"model":"m","messages":[1],"tools":[{"function":{"name":"a"}}],'
            b'"tool_choice":{"type":"function","function":{"name":"b"}}}',
            "tool_choice asks for 'b', which is not among",
        ),
        (
            CHAT,
            b'{"model":"m","messages":[1],"response_format":{"type":"json_schema",'
            b'"json_schema":{"schema":{"$ref":"#"}}}}',
            "requires itself without end",
        ),
    ],
)
async def test_bad_requests(mock, path: str, body: bytes, message: str) -> None:
    answered = await mock.ask(path, body)
    assert answered.status == 400
    assert message in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    "document",
    [
        {"tool_choice": "auto", "tools": [{"function": {"name": "a"}}]},
        {"tool_choice": "required"},
        {"response_format": "json"},
        {"response_format": {"type": "text"}},
        {"stream_options": True, "max_tokens": True},
    ],
)
async def test_what_asks_for_nothing_special_gets_text(mock, document: dict) -> None:
    answered = await mock.ask(CHAT, mock.chat(**document))
    assert answered.json()["choices"][0]["message"]["content"].startswith("The")


async def test_json_objects_without_a_schema(mock) -> None:
    wanted = {"type": "json_object"}
    chat = await mock.ask(CHAT, mock.chat(response_format=wanted))
    assert chat.json()["choices"][0]["message"]["content"] == '{"answer":"mock"}'
    responses = await mock.ask("/v1/responses", {"model": "m", "input": "x", "text": {"format": wanted}})
    assert responses.json()["output"][0]["content"][0]["text"] == '{"answer":"mock"}'
    gemini = await mock.ask(
        "/v1/models/m:generateContent",
        {"contents": [{}], "generationConfig": {"responseMimeType": "application/json"}},
    )
    assert gemini.json()["candidates"][0]["content"]["parts"] == [{"text": '{"answer":"mock"}'}]


async def test_models_of_each_dialect(mock) -> None:
    assert (await mock.ask("/v1/models/openai/gpt%204")).json()["id"] == "openai/gpt 4"
    assert (await mock.ask("/v1beta/models/x")).json()["name"] == "models/x"
    assert (await mock.ask("/v1/models/x", anthropic_version="1")).json()["type"] == "model"
    assert (await mock.ask("/v1/models", x_goog_api_key="k")).json()["models"][0]["name"] == "models/mock-1"
