"""What a hostile request or answer costs: less than a second of CPU, and nobody else waits longer than 100 ms for a
turn, whatever comes in.

Sizes are at least those of the marks: 100,000 tiny chunks, 10,000 header lines, a line of 1 MB, JSON 100,000 deep.
Whatever is over a bound is refused with the bound's name, long before all of it was read.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from cpu import TRIES, slowness
from fakes import (
    Connection,
    Seen,
    document,
    gateway,
    get,
    model,
    ok,
    pieces,
    post,
    rule,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)
from processes import Upstream

pytestmark = pytest.mark.unmeasured

# Marks, for a machine that is no slower than `cpu.REFERENCE`.
CPU = 1.0  # seconds of CPU that one peer's nonsense may take
STALL = 0.1  # seconds of CPU in one turn of the loop, in which all others wait
MB = 1_000_000
MIB = 1024 * 1024

CHAT_PATH = "/v1/chat/completions"

Watch = Callable[[dict[str, Any]], Any]
Answered = tuple[int, http.client.HTTPMessage, bytes]


def head(*lines: bytes, first: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join([first, b"host: gw", *lines]) + b"\r\n\r\n"


CHUNKED = head(b"transfer-encoding: chunked", b"content-type: application/json")


def tiny_chunks(payload: bytes, count: int) -> bytes:
    """`payload` padded with blanks to `count` chunks of one byte."""
    payload = payload.ljust(count)
    return b"".join(b"1\r\n%c\r\n" % byte for byte in payload) + b"0\r\n\r\n"


def members(unit: bytes, size: int) -> bytes:
    """A chat request of about `size` bytes that is all `unit`, which ends in a comma."""
    start = b'{"model": "gpt-4o", "x": ['
    return start + unit * ((size - len(start) - 3) // len(unit)) + b"0]}"


def form(parts: bytes) -> bytes:
    head = b"content-type: multipart/form-data; boundary=b\r\ncontent-length: %d\r\n\r\n" % len(parts)
    return b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: gw\r\n" + head + parts


def exchange(sock: socket.socket, raw: bytes) -> Answered:
    """The answer to `raw`, which is written at the same time: whoever is refused early need not finish."""

    def write() -> None:
        with suppress(OSError):
            sock.sendall(raw)

    writer = threading.Thread(target=write)
    writer.start()
    response = http.client.HTTPResponse(sock, method="GET")
    try:
        response.begin()
        return response.status, response.headers, response.read()
    finally:
        response.close()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # ends the writer too
        writer.join()


def cost(watch: Watch, config: dict[str, Any], raw: bytes) -> Answered:
    """The answer, once it is known what it costs. The best of a few tries counts, since others use the caches too."""
    with watch(config) as watched:
        for _ in range(TRIES):
            watched.reset()
            with watched.connect() as sock:
                answered = exchange(sock, raw)
            watched.settle()
            if watched.cpu < CPU and watched.longest < STALL:
                return answered
        slower = slowness()
        assert watched.cpu < CPU * slower, f"{watched.cpu:.3f} s of CPU"
        assert watched.longest < STALL * slower, f"{watched.longest:.3f} s in one turn"
    return answered


def code(answered: Answered) -> tuple[int, str | None]:
    return answered[0], answered[1]["x-aigw-error"]


# requests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [splicing, serving], ids=["spliced", "collected"])
def test_a_hundred_thousand_chunks_of_one_byte(watch: Watch, config: Callable[[str], dict[str, Any]]) -> None:
    body = b'{"model": "gpt-4o"}'.ljust(100_000)
    with Upstream(lambda seen: ok(b"%d" % len(seen.body))) as up:
        status, _, answer = cost(watch, config(up.url), CHUNKED + tiny_chunks(body, len(body)))
        assert (status, answer) == (200, b"100000")
        assert up.requests[0].body == body


def test_a_million_chunks_take_turns(watch: Watch) -> None:
    body = b'{"model": "gpt-4o"}'
    with Upstream(lambda seen: ok(b"%d" % len(seen.body))) as up:
        status, _, answer = cost(watch, serving(up.url), CHUNKED + tiny_chunks(body, 1_000_000))
        assert (status, answer) == (200, b"1000000")


TOO_LARGE = (431, "head_too_large")
TOO_LONG = (414, "uri_too_long")
TOO_WIDE = (413, "body_too_large")
BAD = (400, "bad_request")
REFUSED_HEADS = {
    "10,000 lines": (head(*[b"x-%d: y" % index for index in range(10_000)]), TOO_LARGE),
    "50,000 short lines": (head(*[b"x:"] * 50_000), TOO_LARGE),
    "a request line of 1 MB": (head(first=b"GET /" + b"x" * MB + b" HTTP/1.1"), TOO_LONG),
    "a header line of 1 MB": (head(b"x: " + b"y" * MB), TOO_LARGE),
    "a chunk size line of 1 MB": (CHUNKED + b"1;" + b"x" * MB, BAD),
    "a chunk size of 1 MB": (CHUNKED + b"0" * MB, BAD),
    "a trailer of 1 MB": (CHUNKED + b"0\r\nx: " + b"y" * MB, BAD),
    "10,000 trailers": (CHUNKED + b"0\r\n" + b"x: y\r\n" * 10_000 + b"\r\n", BAD),
}


@pytest.mark.parametrize("case", REFUSED_HEADS)
def test_heads_lines_and_trailers_without_end(watch: Watch, case: str) -> None:
    raw, expected = REFUSED_HEADS[case]
    with Upstream(lambda seen: ok()) as up:
        answered = cost(watch, serving(up.url), raw)
        assert code(answered) == expected
        assert answered[1]["connection"] == "close"
        assert not up.received


# Heads within the bounds that are made to be dear.
OPTIONS = [b"connection: " + b"x," * 7900 + b"x"] * 2 + [b"y:"] * 80
DEAR_HEADS = {
    "names in connection": head(*OPTIONS, first=b"GET /x HTTP/1.1"),
    "keys in the query": head(first=b"GET /x?" + b"key=%61&" * 2000 + b" HTTP/1.1"),
    "parameters in the path": head(first=b"GET /x" + b";/" * 8000 + b" HTTP/1.1"),
    "codings": head(b"accept-encoding: " + b"gzip;q=0.5," * 1400, first=b"GET /x HTTP/1.1"),
}


@pytest.mark.parametrize("case", DEAR_HEADS)
def test_a_head_that_is_made_to_be_dear(watch: Watch, case: str) -> None:
    with Upstream(lambda seen: ok()) as up:
        assert cost(watch, splicing(up.url), DEAR_HEADS[case])[0] == 200


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["arrays", "objects"])
def test_json_nested_a_hundred_thousand_deep(watch: Watch, opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    body = b'{"model": "gpt-4o", "x": ' + opening * 100_000 + b"0" + closing * 100_000 + b"}"
    with Upstream(lambda seen: ok()) as up:
        assert code(cost(watch, serving(up.url), post(CHAT_PATH, body))) in ((400, "invalid_json"), TOO_WIDE)
        assert not up.received


# In the bound of a body (32 MiB) a thing of three bytes has room eleven million times, and each of them is an object
# in memory.
WIDE = {
    "arrays": b"[],",
    "objects": b'{"a":1},',
    "models": b'{"model":1},',
    "strings": b'"a",',
    "nested": b"[" * 1000 + b"]" * 1000 + b",",
}


@pytest.mark.parametrize("unit", WIDE)
def test_half_a_megabyte_of_json_that_is_all_structure(watch: Watch, unit: str) -> None:
    """It costs the most of what is read at all."""
    body = members(WIDE[unit], MIB // 2)
    with Upstream(lambda seen: ok()) as up:
        assert cost(watch, serving(up.url), post(CHAT_PATH, body))[0] == 200
        assert up.requests[0].body == body


@pytest.mark.parametrize("unit", WIDE)
def test_eight_megabytes_of_json_that_is_all_structure(watch: Watch, unit: str) -> None:
    body = members(WIDE[unit], 8 * MIB)
    with Upstream(lambda seen: ok()) as up:
        assert code(cost(watch, serving(up.url), post(CHAT_PATH, body))) == TOO_WIDE
        assert not up.received


def test_a_large_body_of_text_is_no_large_body_of_structure(watch: Watch) -> None:
    """Commas, brackets and the word itself, all of it within a string; and an image."""
    text = b'[{\\"model\\": 1}, {\\"model\\": 2}], ' * 60_000
    for body in (
        b'{"model": "gpt-4o", "x": "%b"}' % text,
        b'{"model": "gpt-4o", "x": "%b"}' % (b"QUJD" * MIB),
    ):
        with Upstream(lambda seen: ok()) as up:
            assert cost(watch, serving(up.url), post(CHAT_PATH, body))[0] == 200
            assert up.requests[0].body == body


def test_the_tokens_of_a_large_embedding_are_read(watch: Watch) -> None:
    """300,000 numbers, as many as the largest request for embeddings has."""
    body = b'{"model": "gpt-4o", "input": [' + b"12345," * 299_999 + b"1]}"
    with Upstream(lambda seen: ok()) as up:
        assert cost(watch, serving(up.url), post("/v1/embeddings", body))[0] == 200
        assert up.requests[0].body == body


PART = b'--b\r\ncontent-disposition: form-data; name="x"\r\n\r\n'


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (b"--b\r\nx: " + b"y" * MB, "headers of a part longer than 16384 bytes"),
        (b"--b\r\n" + b"x: y\r\n" * 100_000, "headers of a part longer than 16384 bytes"),
        (PART.replace(b"data;", b"data;" + b' a="b";' * 100_000), "headers of a part longer than 16384 bytes"),
        (PART + b"\r\n-" * 100_000 + b"\r\n--b--\r\n", "model"),
    ],
    ids=["a line", "lines", "parameters", "beginnings of a boundary"],
)
def test_forms_that_are_made_to_be_dear(watch: Watch, parts: bytes, message: str) -> None:
    with Upstream(lambda seen: ok()) as up:
        status, _, answer = cost(watch, serving(up.url), form(parts))
        assert status == 400
        assert message in answer.decode()
        assert not up.received


def test_a_form_of_a_hundred_thousand_parts(watch: Watch) -> None:
    with Upstream(lambda seen: ok()) as up:
        answered = cost(watch, serving(up.url), form((PART + b"\r\n") * 100_000 + b"--b--\r\n"))
        assert code(answered) == (400, "missing_model")
        assert not up.received


# many requests --------------------------------------------------------------------------------------------------------


# What is answered without an upstream may be answered in one turn.
AT_ONCE = {"probes": get("/__/ping"), "no rule": get("/"), "no JSON": post(CHAT_PATH, b"x"), "lists": get("/v1/models")}


def test_pipelined_requests_that_fill_what_is_kept_of_them(watch: Watch) -> None:
    rules = {"default": gateway(rule(path="/v1/*"), models={f"model-{index}": model("up") for index in range(500)})}
    with (
        Upstream(lambda seen: ok()) as up,
        watch(document({"up": upstream(target(up.url))}, gateways=rules)) as watched,
    ):
        for name, raw in AT_ONCE.items():
            longest: list[float] = []
            while len(longest) < TRIES and min(longest, default=STALL) >= STALL / 2:
                watched.reset()
                with watched.connect() as sock:
                    sock.sendall(raw * (60_000 // len(raw)) + get("/__/ping", b"connection: close"))
                    while sock.recv(65536):
                        pass
                watched.settle()
                longest.append(watched.longest)
            assert min(longest) < STALL / 2 * slowness(), name


@pytest.mark.parametrize("surplus", [0, 1])
async def test_sixteen_requests_are_kept_while_one_is_served(surplus: int) -> None:
    """However they are cut: the one more ends the connection, in order, when the running one is answered."""
    go = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await go.wait()
        await connection.send(ok(seen.line))

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        for cut in (1, 7, 1000):
            go.clear()
            seen = len(up.seen)
            client = await gw.connect()
            await client.send(get("/x"))
            await until(lambda expected=seen + 1: len(up.seen) == expected, "the first at the upstream")
            await client.send(*pieces(get("/y") * (16 + surplus), cut))
            (connection,) = gw.gateway.clients
            await until(
                lambda c=connection: c.close_wanted or c.buffer.count(b"/y") == 16 + surplus, "all of them read"
            )
            go.set()
            answer = await client.answer()
            assert answer.body == b"GET /x HTTP/1.1"
            if surplus:
                assert answer.headers["connection"] == "close"
                assert await client.ended() == b""
                assert len(up.seen) == seen + 1
            else:
                for _ in range(16):
                    assert (await client.answer()).body == b"GET /y HTTP/1.1"
            await client.close()
            await until(lambda: not gw.gateway.clients, "the client gone")


# answers --------------------------------------------------------------------------------------------------------------


def answer_cost(watch: Watch, answer: bytes, raw: bytes = get("/x")) -> Answered:
    with Upstream(lambda seen: answer) as up:
        return cost(watch, splicing(up.url), raw)


CHUNKED_ANSWER = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_an_answer_in_a_hundred_thousand_chunks_of_one_byte(watch: Watch, version: bytes) -> None:
    answered = answer_cost(watch, CHUNKED_ANSWER + tiny_chunks(b"", 100_000), head(first=b"GET /x " + version))
    assert (answered[0], answered[2]) == (200, b" " * 100_000)


REFUSED_ANSWERS = {
    "10,000 lines": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"content-length: 0\r\n\r\n",
    "50,000 short lines": b"HTTP/1.1 200 OK\r\n" + b"x:\r\n" * 50_000 + b"content-length: 0\r\n\r\n",
    "a status line of 1 MB": b"HTTP/1.1 200 " + b"x" * MB + b"\r\ncontent-length: 0\r\n\r\n",
    "a header line of 1 MB": b"HTTP/1.1 200 OK\r\nx: " + b"y" * MB + b"\r\ncontent-length: 0\r\n\r\n",
    "10,000 informational answers": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000 + ok(),
}


@pytest.mark.parametrize("case", REFUSED_ANSWERS)
def test_an_answer_whose_head_does_not_end(watch: Watch, case: str) -> None:
    assert code(answer_cost(watch, REFUSED_ANSWERS[case])) == (502, "upstream_malformed")


def test_an_answer_with_a_connection_header_of_thousands_of_names(watch: Watch) -> None:
    assert answer_cost(watch, ok(b"", *OPTIONS))[0] == 200


BOMB = b'{"x": "' + b" " * 64 * MIB + b'", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
def test_an_answer_that_inflates_to_64_megabytes(watch: Watch, kind: bytes) -> None:
    """It is relayed as it came; what it says it used is read only as far as that is cheap."""
    body = gzip.compress(BOMB, 9, mtime=0)
    answer = ok(body, b"content-encoding: gzip").replace(b"application/json", kind)
    with Upstream(lambda seen: answer) as up:
        answered = cost(watch, serving(up.url), post(CHAT_PATH, b'{"model": "m"}'))
        assert (answered[0], answered[2]) == (200, body)
