"""The failures, each as a client meets it: plain and streamed."""

import asyncio

import orjson
import pytest

CHAT = "/v1/chat/completions"

STREAMS = {
    "chat": (CHAT, {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}),
    "completions": ("/v1/completions", {"model": "m", "stream": True, "prompt": "hi"}),
    "responses": ("/v1/responses", {"model": "m", "stream": True, "input": "hi"}),
    "messages": (
        "/v1/messages",
        {"model": "m", "stream": True, "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]},
    ),
    "gemini": ("/v1beta/models/m:streamGenerateContent?alt=sse", {"contents": [{"parts": [{"text": "hi"}]}]}),
    "gemini array": ("/v1beta/models/m:streamGenerateContent", {"contents": [{"parts": [{"text": "hi"}]}]}),
}

streams = pytest.mark.parametrize(("path", "document"), STREAMS.values(), ids=STREAMS)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 429, 500, 503, 504, 529, 599])
async def test_status_in_each_dialect(mock, status: int) -> None:
    openai = await mock.ask(CHAT, mock.chat(), words=f"status={status}")
    assert openai.status == status
    assert openai.json()["error"].keys() == {"message", "type", "param", "code"}
    anthropic = await mock.ask(*STREAMS["messages"], words=f"status={status}")
    assert (anthropic.status, anthropic.json()["type"]) == (status, "error")
    assert anthropic.json()["request_id"] == anthropic.headers["request-id"]
    gemini = await mock.ask(*STREAMS["gemini"], words=f"status={status}")
    assert gemini.status == gemini.json()["error"]["code"] == status
    assert gemini.json()["error"]["status"].isupper()


async def test_retry_after(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat(), words="status=429, retry-after=2")
    assert answered.headers["retry-after"] == "2"
    assert answered.json()["error"]["code"] == "rate_limit_exceeded"
    assert "retry-after" not in (await mock.ask(CHAT, mock.chat(), words="status=429")).headers


async def test_a_failed_status_leaves_the_connection(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request(CHAT, mock.chat(), words="status=503") + mock.request(CHAT, mock.chat()))
    assert [(await wire.answer()).status for _ in range(2)] == [503, 200]


async def test_304_has_no_body(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request("/ping", words="status=304") + mock.request("/ping"))
    assert (await wire.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 304 Not Modified\r\n")
    assert (await wire.answer()).json() == {"status": "ok"}


async def test_head_may_fail_too(mock) -> None:
    assert (await mock.ask("/ping", method="HEAD", words="status=503")).status == 503
    assert (await mock.ask("/ping", method="HEAD", words="latency=0.01")).body == b""
    assert (await mock.ask("/ping", method="HEAD", words="malformed")).raw.startswith(b"\x00")


async def test_words_that_are_none(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat(), words="explode")
    assert answered.status == 400
    assert "x-mock: 'explode' is no word of the mock; there are: latency=" in answered.json()["error"]["message"]


async def test_two_header_lines_are_one_list(mock) -> None:
    wire = await mock.connect()
    wire.send(b"GET /ping HTTP/1.1\r\nhost: a\r\nX-Mock: status=503\r\nx-mock: retry-after=7\r\n\r\n")
    assert (await wire.answer()).headers["retry-after"] == "7"


async def test_refuse_closes_without_an_answer(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat(), words="refuse")
    assert answered.raw == b""
    assert not answered.reset


async def test_a_server_that_refuses_closes_at_once(start) -> None:
    wire = await (await start("refuse")).connect()
    assert (await wire.to_end()).raw == b""


async def whole_body(mock, path: str = CHAT) -> bytes:
    return (await mock.ask(path, mock.chat())).body


@pytest.mark.parametrize("word", ["cut-body", "cut-event", "cut-between", "reset"])
async def test_a_plain_answer_cut_short(mock, word: str) -> None:
    body = await whole_body(mock)
    answered = await mock.ask(CHAT, mock.chat(), words=word)
    assert answered.headers["content-length"] == str(len(body))
    assert answered.body == body[: len(body) // 2]
    assert answered.reset == (word == "reset")


async def test_early_close(mock) -> None:
    plain = await mock.ask(CHAT, mock.chat(), words="early-close")
    assert plain.raw.endswith(b"\r\n\r\n")
    assert int(plain.headers["content-length"]) > 0
    stream = await mock.ask(*STREAMS["chat"], words="early-close")
    assert stream.headers["transfer-encoding"] == "chunked"
    assert (plain.body, stream.body) == (b"", b"")


async def test_a_plain_answer_with_a_bad_chunk(mock) -> None:
    body = await whole_body(mock)
    answered = await mock.ask(CHAT, mock.chat(), words="bad-chunk")
    assert "content-length" not in answered.headers
    chunks, rest = answered.chunks()
    assert chunks == [body[: len(body) // 2]]
    assert rest.startswith(b"zz\r\n")


async def test_http_1_0_knows_no_chunks_so_a_bad_one_is_a_cut(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request(CHAT, mock.chat(), words="bad-chunk").replace(b"HTTP/1.1", b"HTTP/1.0"))
    answered = await wire.to_end()
    assert 0 < len(answered.body) < int(answered.headers["content-length"])


async def test_malformed_plain_is_no_http(mock) -> None:
    answered = await mock.ask(CHAT, mock.chat(), words="malformed")
    assert answered.raw
    assert not answered.raw.startswith(b"HTTP/")


@pytest.mark.parametrize(
    ("path", "status"), [(CHAT, 500), ("/v1/messages", 529), ("/v1beta/models/m:generateContent", 503)]
)
async def test_error_event_of_a_plain_answer_is_its_status(mock, path: str, status: int) -> None:
    document = mock.chat(max_tokens=9, contents=[{"parts": [{"text": "hi"}]}])
    answered = await mock.ask(path, document, words="error-event")
    assert answered.status == status
    assert answered.json()["error"]["message"] == "the mock was asked to fail: error-event"


async def test_stall_keeps_the_connection(mock) -> None:
    body = await whole_body(mock)
    wire = await mock.connect()
    wire.send(mock.request(CHAT, mock.chat(), words="stall") + mock.request("/ping"))
    await wire.until(b"\r\n\r\n")
    await wire.exactly(len(body) // 2)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await wire.reader.read(1)


async def test_a_stalled_stream(mock) -> None:
    wire = await mock.connect()
    wire.send(mock.request(*STREAMS["chat"], words="stall, tokens=2"))
    await wire.until(b'"content":"The"')
    await wire.until(b"\n\n\r\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await wire.reader.read(1)


async def test_slow_first_token(mock) -> None:
    loop = asyncio.get_running_loop()
    for document, before in ((mock.chat(), b"\r\n\r\n"), (mock.chat(stream=True), b'"role":"assistant"')):
        wire = await mock.connect()
        wire.send(mock.request(CHAT, document, words="latency=60, slow-first-token"))
        await wire.until(before)
        begun = loop.time()
        wire = await mock.connect()
        wire.send(mock.request(CHAT, document, words="latency=0.05, slow-first-token", connection="close"))
        await wire.until(before)
        await wire.until(b"The")
        assert loop.time() - begun >= 0.04


@streams
@pytest.mark.parametrize("tokens", [0, 1, 4])
async def test_cut_between_events(mock, path: str, document: dict, tokens: int) -> None:
    whole, _ = (await mock.ask(path, document, words=f"tokens={tokens}")).chunks()
    chunks, rest = (await mock.ask(path, document, words=f"tokens={tokens}, cut-between")).chunks()
    assert rest == b""
    assert chunks == whole[: len(chunks)]
    preamble = next((index for index, chunk in enumerate(whole) if b"The" in chunk), None)
    if preamble is not None and tokens:
        assert len(chunks) == preamble + tokens // 2


@streams
@pytest.mark.parametrize("tokens", [0, 4])
async def test_cut_inside_an_event_with_whole_chunks(mock, path: str, document: dict, tokens: int) -> None:
    whole, _ = (await mock.ask(path, document, words=f"tokens={tokens}")).chunks()
    chunks, rest = (await mock.ask(path, document, words=f"tokens={tokens}, cut-event")).chunks()
    assert rest == b""
    assert chunks[:-1] == whole[: len(chunks) - 1]
    event = whole[len(chunks) - 1]
    assert chunks[-1] == event[: len(event) // 2]


@streams
async def test_cut_inside_a_chunk(mock, path: str, document: dict) -> None:
    whole, _ = (await mock.ask(path, document, words="tokens=4")).chunks()
    answered = await mock.ask(path, document, words="tokens=4, cut-body")
    chunks, rest = answered.chunks()
    assert rest
    assert chunks == whole[: len(chunks)]
    assert not answered.reset


@streams
async def test_reset_mid_stream(mock, path: str, document: dict) -> None:
    answered = await mock.ask(path, document, words="tokens=4, reset")
    chunks, rest = answered.chunks()
    assert answered.reset
    assert (len(chunks) >= 2, rest) == (True, b"")


@streams
async def test_bad_chunk(mock, path: str, document: dict) -> None:
    chunks, rest = (await mock.ask(path, document, words="tokens=4, bad-chunk")).chunks()
    assert len(chunks) >= 2
    assert rest.startswith(b"zz\r\n")


@streams
async def test_a_malformed_event_is_one_event_among_good_ones(mock, path: str, document: dict) -> None:
    whole, _ = (await mock.ask(path, document, words="tokens=4")).chunks()
    chunks, rest = (await mock.ask(path, document, words="tokens=4, malformed")).chunks()
    assert rest == b"0\r\n\r\n"
    odd = [chunk for chunk in chunks if chunk not in whole]
    assert len(odd) == 1
    assert [chunk for chunk in chunks if chunk in whole] == whole
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(odd[0].partition(b"data: ")[2] or odd[0].lstrip(b","))


@streams
@pytest.mark.parametrize("tokens", [0, 4])
async def test_an_error_event_ends_the_stream_cleanly(mock, path: str, document: dict, tokens: int) -> None:
    answered = await mock.ask(path, document, words=f"tokens={tokens}, error-event")
    chunks, rest = answered.chunks()
    assert (answered.status, rest) == (200, b"0\r\n\r\n")
    said = b"".join(chunks)
    assert b"asked to fail: error-event" in said
    assert b"[DONE]" not in said
    assert said.count(b"The") == (1 if tokens else 0)
    if not path.endswith(":streamGenerateContent"):
        assert chunks[-1].endswith(b"\n")
    else:
        assert "error" in orjson.loads(said)[-1]


async def test_a_server_fails_every_request_and_a_request_may_ask_otherwise(start) -> None:
    mock = await start("status=503, retry-after=1")
    assert (await mock.ask(CHAT, mock.chat())).status == 503
    assert (await mock.ask(CHAT, mock.chat(), words="status=429")).status == 429
    assert "retry-after" not in (await mock.ask(CHAT, mock.chat(), words="status=429")).headers
