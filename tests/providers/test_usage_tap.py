"""What the tap reads off answers: every recording, however cut and coded; nothing that only looks like a report."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cpu import assert_linear, seconds, slowness
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recordings import Recording, load

from aigw.providers.tap import BODY, EVENTS, GZIP, UNREADABLE, Tap, way_to_read
from aigw.providers.usage import read
from aigw.tokens import CACHE_BESIDE, Tokens

STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
READ_SIZE = 256_000  # what one read of a socket brings at most


def tapped(way: int, *reads: bytes) -> Tokens | None:
    tap = Tap(way)
    for payload in reads:
        tap.feed(payload)
    return tap.usage()


def in_reads(body: bytes, size: int = READ_SIZE) -> Iterator[bytes]:
    return (body[place : place + size] for place in range(0, len(body), size))


def cuts(body: bytes, seed: int = 0) -> Iterator[list[bytes]]:
    """The body whole, byte by byte, and in two and more parts at random places."""
    yield [body]
    yield list(in_reads(body, 1))
    chance = random.Random(seed)
    for count in (1, 1, 2, 4, 16, 64):
        places = sorted(chance.randrange(len(body) + 1) for _ in range(count))
        yield [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


# ------------------------------------------------------------------------------------------------------ recordings

# What the recording's own summary leaves out, though the provider's object (`raw`) has it.
BEYOND_THE_SUMMARY = {
    "21-mistral-chat-plain": ("cached", 32),
    "34-openai-responses-plain": ("cache_write", 0),
    "41-openrouter-chat-plain": ("cache_write", 0),
}
# Where it summarises what was read and written, which is not what is on the bill.
UNBILLED = {"39-cohere-chat-plain": {"input": 33, "output": 22}}
REPORTING = [r for r in load() if r.usage and r.provider != "bedrock"]


def way_of(recording: Recording) -> int:
    return way_to_read(recording.response_header("content-type").encode(), b"")


def test_the_recordings_hold_what_these_tests_are_about() -> None:
    assert {r.provider for r in REPORTING} >= {"openai", "anthropic", "gemini", "groq", "mistral", "cohere", "deepseek"}
    assert {r.provider for r in REPORTING if r.streaming} >= {"openai", "anthropic", "gemini", "groq", "mistral"}


@pytest.mark.parametrize("recording", REPORTING, ids=lambda recording: recording.name)
def test_every_recording_that_reports_usage(recording: Recording) -> None:
    assert recording.usage is not None
    tokens = tapped(way_of(recording), recording.response_body)
    assert tokens is not None
    assert tokens == read(recording.usage["raw"])
    summary = {
        "input": recording.usage["input_tokens"],
        "output": recording.usage["output_tokens"],
        "cached": recording.usage["cached_input_tokens"],
        "cache_write": recording.usage["cache_write_tokens"],
        "reasoning": recording.usage["reasoning_tokens"],
    }
    if recording.name in BEYOND_THE_SUMMARY:
        name, count = BEYOND_THE_SUMMARY[recording.name]
        assert summary[name] is None
        summary[name] = count
    summary |= UNBILLED.get(recording.name, {})
    assert {name: getattr(tokens, name) for name in summary} == summary


@pytest.mark.parametrize("recording", REPORTING, ids=lambda recording: recording.name)
def test_every_recording_however_cut_and_coded(recording: Recording) -> None:
    way = way_of(recording)
    body = recording.response_body
    tokens = tapped(way, body)
    for reads in cuts(body):
        assert tapped(way, *reads) == tokens
    for reads in cuts(gzip.compress(body)):
        assert tapped(way | GZIP, *reads) == tokens


def test_every_place_a_recorded_answer_may_be_cut_in_two() -> None:
    for recording in REPORTING[:12]:
        body = recording.response_body[-1500:] if recording.streaming else recording.response_body
        tokens = tapped(way_of(recording), body)
        for place in range(len(body)):
            assert tapped(way_of(recording), body[:place], body[place:]) == tokens


def test_recordings_that_report_none() -> None:
    silent = [r for r in load() if r.usage is None or r.provider == "bedrock"]
    assert {r.api for r in silent} >= {"embeddings", "count_tokens", "converse", "invoke"}
    for recording in silent:
        way = way_of(recording)
        assert way == UNREADABLE or tapped(way, recording.response_body) is None


# ------------------------------------------------------------------------------------------------ what can be read


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "way"),
    [
        (b"application/json", b"", BODY),
        (b"application/json; charset=utf-8", b"identity", BODY),
        (b"Application/JSON ;charset=utf-8", b"gzip", BODY | GZIP),
        (b"text/event-stream", b"", EVENTS),
        (b"text/event-stream;charset=utf-8", b"x-gzip", EVENTS | GZIP),
        (b"text/event-stream", b"GZIP", EVENTS | GZIP),
        (b"application/json", b"br", UNREADABLE),
        (b"application/json", b"gzip, gzip", UNREADABLE),
        (b"application/json", b"deflate", UNREADABLE),
        (b"application/jsonl", b"", UNREADABLE),
        (b"application/vnd.amazon.eventstream", b"", UNREADABLE),
        (b"audio/mpeg", b"", UNREADABLE),
        (b"", b"", UNREADABLE),
    ],
)
def test_the_way_to_read_an_answer(content_type: bytes, content_encoding: bytes, way: int) -> None:
    assert way_to_read(content_type, content_encoding) == way


def test_repr_shows_what_was_seen() -> None:
    tap = Tap(EVENTS)
    assert repr(tap) == "<Tap events, nothing seen>"
    tap.feed(b'data: {"usage": {"input_tokens": 1}}\n\n')
    assert repr(tap).startswith("<Tap events, Tokens(input=1, output=None")
    assert repr(Tap(BODY)) == "<Tap body, nothing seen>"


# ------------------------------------------------------------------------------------------------ places of reports

TRUE = '{"input_tokens": 11, "output_tokens": 7}'
FALSE = '{"input_tokens": 1, "output_tokens": 1}'


@pytest.mark.parametrize(
    "body",
    [
        f'{{"usage": {TRUE}}}',
        f' \r\n{{"usage":{TRUE}}}\r\n\t ',
        f'{{"usage" :\n\t {TRUE} , "user": null}}',
        f'{{"usage":{TRUE},"service_tier":"default","system_fingerprint":"fp_1"}}',
        f'{{"usage":{TRUE},"metadata":{{}},"tools":[]}}',
        f'{{"usage":{TRUE},"text":"}}}}}}]]"}}',
        f'{{"usage":{TRUE},"text":"\\"}}}}\\\\"}}',
        f'{{"usage":{TRUE},"text":"{{\\"usage\\": {{}}"}}',
        # what a model was told, or was made to say, comes before and behind it, and always deeper
        f'{{"content": [{{"type": "tool_use", "input": {{"usage": {FALSE}}}}}], "usage": {TRUE}}}',
        f'{{"usage": {TRUE}, "tools": [{{"parameters": {{"default": {{"usage": {FALSE}}}}}}}]}}',
        f'{{"usage": {TRUE}, "metadata": {{"usage": {FALSE}}}}}',
        f'{{"metadata": {{"usage": {FALSE}}}, "usage": {TRUE}}}',
        f'{{"a": {{"b": {{"usage": {FALSE}}}, "usage": {FALSE}}}, "usage": {TRUE}, "c": {{"usage": {FALSE}}}}}',
        '{"tools": [{"properties": {"usage": {"type": "object", "properties": {"a": {"b": {"c": {}}}}}}}], '
        f'"usage": {TRUE}}}',
        # text that looks like it
        f'{{"text": "\\"usage\\": {{\\"input_tokens\\": 1}}", "usage": {TRUE}}}',
        f'{{"text": "\\\\\\"usage\\": {{}}", "usage": {TRUE}, "b": "the \\"usage\\""}}',
        f'{{"x \\"usage": {FALSE}, "usage": {TRUE}}}',
        f'{{"usage": {TRUE}, "x \\"usage": {FALSE}}}',
        f'{{"user": "usage", "usage": {TRUE}, "b": "usage"}}',
        f'{{"usage_breakdown": {FALSE}, "usage": {TRUE}, "usage_details": {FALSE}, "usages": {FALSE}}}',
        # of two the last
        f'{{"usage": {FALSE}, "usage": {TRUE}}}',
        f'{{"usage": {TRUE}, "usage": null}}',
        f'{{"usage": {TRUE}, "usage": {{"type": "object"}}}}',
        # an array of answers
        '[{"usageMetadata": {"promptTokenCount": 11}},\n{"usageMetadata": {"promptTokenCount": 11, '
        '"candidatesTokenCount": 7}, "modelVersion": "m"}\n]',
        '{"text": "hi", "meta": {"api_version": {"version": "1"}, "tokens": {"input_tokens": 11, "output_tokens": 7}}}',
    ],
)
def test_a_report_counts_where_reports_stand(body: str) -> None:
    json.loads(body)
    raw = body.encode()
    for reads in cuts(raw):
        assert tapped(BODY, *reads) == Tokens(11, 7), reads
    for place in range(len(raw)):
        assert tapped(BODY, raw[:place], raw[place:]) == Tokens(11, 7), raw[:place]
    assert tapped(BODY | GZIP, gzip.compress(raw)) == Tokens(11, 7)


@pytest.mark.parametrize(
    "body",
    [
        f'{{"text": "no report", "input": {{"usage": {FALSE}}}}}',
        f'{{"input": {{"usage": {FALSE}}}, "x": 1}}',
        f'{{"tools": [{{"usage": {FALSE}}}]}}',
        f'{{"response": {{"usage": {FALSE}}}}}',
        f'[[{{"usage": {FALSE}}}]]',
        f'{{"usage": [{FALSE}]}}',
        '{"usage": {"input_tokens": {"type": "integer"}}}',
        '{"usage": null}',
        '{"usage": 5}',
        '{"usage": "much"}',
        '{"usage": {"type": "duration", "seconds": 3}}',
        '{"usage": {"input_tokens": 1, "input_tokens_details": {"a": {"b": {"c": {"d": 1}}}}}}',
        '{"usage": {"input_tokens": 1, "note": "%s"}}' % ("x" * 8_192),
        '["usage", {"input_tokens": 1}]',
        '"usage"',
        "{}",
    ],
)
def test_what_stands_elsewhere_or_is_no_report_does_not_count(body: str) -> None:
    json.loads(body)
    for reads in cuts(body.encode()):
        assert tapped(BODY, *reads) is None, reads


def test_a_body_that_broke_off_has_reported_nothing() -> None:
    body = f'{{"content": [{{"input": {{"usage": {FALSE}, "b": [1]}}}}], "usage": {TRUE}, "c": [{{}}]}}'.encode()
    assert tapped(BODY, body) == Tokens(11, 7)
    coded = gzip.compress(body)
    assert tapped(BODY | GZIP, coded) == Tokens(11, 7)
    for place in range(len(body)):
        tap = Tap(BODY)
        tap.feed(body[:place])
        assert tap.usage(whole=False) is None
    for place in range(len(coded)):
        assert tapped(BODY | GZIP, coded[:place]) is None


# ----------------------------------------------------------------------------------------------------------- streams


def event(*data: str, end: str = "\n") -> str:
    return "".join(f"data: {line}{end}" for line in data) + end


CHUNK = event('{"choices": [{"delta": {"content": "the \\"usage\\": {} of it"}}], "usage": null}')
STREAMS: list[tuple[str, str, Tokens | None]] = [
    (
        "usage in the last chunk, without choices",
        CHUNK * 3
        + event('{"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 6}, "obfuscation": "xyz"}')
        + event("[DONE]"),
        Tokens(5, 6),
    ),
    (
        "usage on a chunk with choices, growing",
        "".join(
            event(f'{{"choices": [{{}}], "usage": {{"prompt_tokens": 5, "completion_tokens": {n}}}}}')
            for n in (1, 2, 3)
        ),
        Tokens(5, 3),
    ),
    (
        "Anthropic: the start, and what the deltas tell",
        "event: message_start\n"
        + event(
            '{"type": "message_start", "message": {"id": "m", "content": [], "usage": {"input_tokens": 25, '
            '"cache_read_input_tokens": 3, "cache_creation_input_tokens": 4, "output_tokens": 1}}}'
        )
        + "event: ping\n"
        + event('{"type": "ping"}')
        + "event: message_delta\n"
        + event('{"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 10}   }')
        + event('{"type": "message_delta", "delta": {}, "usage": {"output_tokens": 15}}')
        + event('{"type": "message_stop"}'),
        Tokens(25, 15, 3, 4, beside=CACHE_BESIDE),
    ),
    (
        "Responses: echoed tools have a property of that name",
        event(
            '{"type": "response.created", "response": {"usage": null, "tools": [{"parameters": {"properties": '
            '{"usage": {"type": "object", "properties": {"a": {"b": {"c": {"d": {}}}}}}}}}]}}'
        )
        + event('{"type": "response.function_call_arguments.delta", "delta": "{\\"usage\\": {\\"input_tokens\\": 1}}"}')
        + event(
            '{"type": "response.completed", "response": {"usage": {"input_tokens": 8, "output_tokens": 9}, '
            '"tools": [{"parameters": {"default": {"usage": {"input_tokens": 1, "output_tokens": 1}}}}]}}'
        ),
        Tokens(8, 9),
    ),
    (
        "Groq: twice in one event",
        event('{"x_groq": {"id": "r", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}, "choices": []}')
        + event('{"x_groq": {"usage": {"prompt_tokens": 1}}, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'),
        Tokens(3, 4),
    ),
    (
        "Cohere v2",
        event(
            '{"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {"billed_units": '
            '{"input_tokens": 1, "output_tokens": 2}, "tokens": {"input_tokens": 70, "output_tokens": 2}}}}'
        ),
        Tokens(1, 2),
    ),
    (
        "Gemini, CRLF; what a model wrote into the arguments of a call is no report",
        event('{"candidates": [{}], "usageMetadata": {"promptTokenCount": 18, "totalTokenCount": 18}}', end="\r\n")
        + event(
            '{"candidates": [{"content": {"parts": [{"functionCall": {"args": {"usageMetadata": '
            '{"promptTokenCount": 1}}}}]}}], "usageMetadata": {"promptTokenCount": 18, "candidatesTokenCount": 80}}',
            end="\r\n",
        )
        + event('{"candidates": [{"args": {"usageMetadata": {"promptTokenCount": 1}}}]}', end="\r\n"),
        Tokens(18, 80),
    ),
    ("CR", event('{"usage": {"input_tokens": 1, "output_tokens": 2}}', end="\r") * 2, Tokens(1, 2)),
    (
        "several data lines",
        event("{", '  "usage":', "  {", '    "input_tokens": 1,', '    "output_tokens": 2}', " , ", '"a": [1]}')
        + event("{", '"b": {"c": {"usage": {"input_tokens": 9}}}', "}", end="\r\n"),
        Tokens(1, 2),
    ),
    (
        "comments, fields behind the data, no blank before the JSON",
        ': keep-alive\n\ndata:{"usage":{"input_tokens":1,"output_tokens":2}}\nevent: done\nid: 7\n: end\n\n: bye\n\n',
        Tokens(1, 2),
    ),
    ("no empty line at the end", event('{"usage": {"input_tokens": 1}}')[:-1], Tokens(1)),
    (
        "an event that broke off is none",
        event('{"usage": {"input_tokens": 1}}') + 'data: {"usage": {"input_tokens": 2}',
        Tokens(1),
    ),
    ("an error in the stream", CHUNK + event('{"error": {"message": "overloaded"}}'), None),
    ("none", CHUNK * 4 + event("[DONE]"), None),
]


@pytest.mark.parametrize(("stream", "tokens"), [s[1:] for s in STREAMS], ids=[s[0] for s in STREAMS])
def test_streams(stream: str, tokens: Tokens | None) -> None:
    raw = stream.encode()
    for reads in cuts(raw):
        assert tapped(EVENTS, *reads) == tokens, reads
    for place in range(len(raw)):
        assert tapped(EVENTS, raw[:place], raw[place:]) == tokens, raw[:place]
    for reads in cuts(gzip.compress(raw)):
        assert tapped(EVENTS | GZIP, *reads) == tokens


def test_a_stream_that_broke_off_tells_what_was_seen() -> None:
    stream = {name: stream for name, stream, _ in STREAMS}["Anthropic: the start, and what the deltas tell"]
    start = stream.index("event: ping")
    for place in range(start, stream.index('"output_tokens": 10')):
        assert tapped(EVENTS, stream[:place].encode()) == Tokens(25, 1, 3, 4, beside=CACHE_BESIDE)
    assert tapped(EVENTS, stream[: stream.index('"output_tokens": 15')].encode()) == Tokens(
        25, 10, 3, 4, beside=CACHE_BESIDE
    )
    coded = zlib.compressobj(wbits=31)
    flushed = coded.compress(stream[:start].encode()) + coded.flush(zlib.Z_SYNC_FLUSH)
    assert tapped(EVENTS | GZIP, flushed) == Tokens(25, 1, 3, 4, beside=CACHE_BESIDE)


def test_an_event_that_broke_off_tells_nothing() -> None:
    told = event('{"usage": {"input_tokens": 5}}')
    broken = told + event(f'{{"args": {{"a": {{"b": {{"usage": {FALSE}}}, "c": []}}}}, "usage": {TRUE}}}')
    assert tapped(EVENTS, broken.encode()) == Tokens(11, 7)
    for place in range(len(told), len(broken) - 1):
        tap = Tap(EVENTS)
        tap.feed(broken[:place].encode())
        assert tap.usage(whole=False) == Tokens(5)


def test_an_event_larger_than_anything_that_is_kept() -> None:
    image = '{"type": "image_generation.completed", "b64_json": "%s", "usage": %s, "more": "%s"}'
    stream = event(image % ("iVBO" * 500_000, TRUE, "x" * 300_000)) + event('{"type": "done"}')
    for size in (READ_SIZE, 65_536, 999):
        assert tapped(EVENTS, *in_reads(stream.encode(), size)) == Tokens(11, 7)


# ------------------------------------------------------------------------------------- any JSON, compared with a parser

REPORTS = st.sampled_from(
    [
        {"input_tokens": 3, "output_tokens": 4, "output_tokens_details": {"reasoning_tokens": 1}},
        {"prompt_tokens": 5, "completion_tokens": 6, "note": 'a "}" in \\ it {'},
        {"promptTokenCount": 7, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 8}]},
        {"output_tokens": 9},
    ]
)
DECOYS = st.sampled_from(
    ["usage", '"usage": {"input_tokens": 1}', '\\"usage":', "{", "]}", "\\", '"', "\u00e9\n", 'data: {"usage": {}}\n\n']
)
NAMES = st.sampled_from(["usage", "usageMetadata", "a", "response", 'x"usage', "usage_", "\\"])
VALUES = st.recursive(
    REPORTS | DECOYS | st.integers(0, 99) | st.none() | st.just({"type": "object", "properties": {}}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(NAMES, VALUES, max_size=5) | st.lists(
    st.dictionaries(NAMES, VALUES, max_size=3), max_size=3
)


def reports(value: Any) -> list[Tokens]:
    """The reports that are members of the object `value`."""
    members = value.items() if isinstance(value, dict) else ()
    found = [read(v) for name, v in members if name in ("usage", "usageMetadata") and isinstance(v, dict) and flat(v)]
    return [tokens for tokens in found if tokens is not None]


def flat(report: dict[str, Any]) -> bool:
    """Nested no deeper than reports are."""
    return depth(report) <= 4


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max((depth(v) for v in inner), default=0)


def expected(document: Any, within: bool) -> Tokens | None:
    """What a parser sees: the last report at the top level, else the last one level below it, where that may be."""
    if isinstance(document, dict):
        found = reports(document)
        if found or not within:
            return found[-1] if found else None
        # A report's own members are not looked at.
        below = [t for name, value in document.items() for t in reports(value)]
    else:
        below = [t for value in document for t in reports(value)]
    return below[-1] if below else None


def spelled(data: st.DataObject, document: Any) -> bytes:
    separators, indent = data.draw(st.sampled_from([((",", ":"), None), ((", ", ": "), None), ((",", ": "), 2)]))
    text = json.dumps(document, separators=separators, indent=indent, ensure_ascii=data.draw(st.booleans()))
    return text.encode()


def cut(data: st.DataObject, body: bytes) -> list[bytes]:
    places = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=10)))
    return [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


@STEADY
@given(DOCUMENTS, st.data())
def test_any_body(document: Any, data: st.DataObject) -> None:
    body = spelled(data, document)
    tokens = expected(document, within=False)
    assert tapped(BODY, body) == tokens
    assert tapped(BODY, *in_reads(body, 1)) == tokens
    assert tapped(BODY, *cut(data, body)) == tokens


@pytest.mark.unmeasured
@STEADY
@given(st.lists(DOCUMENTS, max_size=4), st.data())
def test_any_stream(documents: list[Any], data: st.DataObject) -> None:
    stream = b""
    tokens: Tokens | None = None
    for document in documents:
        end = data.draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        lines = spelled(data, document).split(b"\n")
        stream += b"".join(b"data: %b%b" % (line, end) for line in lines) + end
        seen = expected(document, within=True)
        if seen is not None:
            tokens = seen if tokens is None else tokens.updated(seen)
    assert tapped(EVENTS, stream) == tokens
    assert tapped(EVENTS, *in_reads(stream, 1)) == tokens
    assert tapped(EVENTS, *cut(data, stream)) == tokens


SHREDS = st.sampled_from(
    [
        b'"usage"',
        b'"usage":{',
        b'"meta":{',
        b'"usageMetadata" : {',
        b'"input_tokens":1',
        b"}",
        b"{",
        b"[",
        b"]",
        b'"',
        b"\\",
        b",",
        b"\n",
        b"\r\n\r\n",
        b"data: ",
        b"\xff",
        b"\x00",
        b"\x1f\x8b\x08",
        b"null",
    ]
)


@STEADY
@given(
    st.sampled_from([BODY, EVENTS, BODY | GZIP, EVENTS | GZIP]), st.lists(SHREDS | st.binary(max_size=40), max_size=60)
)
def test_it_raises_for_no_bytes_at_all(way: int, reads: list[bytes]) -> None:
    body = b"".join(reads)
    tapped(way, *reads)
    tapped(way, body)
    if not way & GZIP:
        assert tapped(way | GZIP, *in_reads(gzip.compress(body), 7)) == tapped(way, body)


# ------------------------------------------------------------------------------------------------- memory, time, bombs


def body_of(megabytes: int, first: bool) -> Iterator[bytes]:
    """An answer of that size with its report at the beginning or at the end, in reads, never whole in memory."""
    yield b'{"created": 1, ' + (b'"usage": %b, ' % TRUE.encode() if first else b"") + b'"data": [{"b64_json": "'
    piece = random.Random(1).randbytes(30_000).hex().encode()
    for _ in range(megabytes * 1_000_000 // len(piece)):
        yield piece
    yield b'"}]' + (b"" if first else b', "usage": %b' % TRUE.encode()) + b"}"


@pytest.mark.unmeasured
@pytest.mark.parametrize("first", [True, False], ids=["report first", "report last"])
@pytest.mark.parametrize("coded", [True, False], ids=["gzip", "plain"])
def test_50_megabytes_in_bounded_memory(first: bool, coded: bool) -> None:
    coder = zlib.compressobj(1, wbits=31)
    tap = Tap(BODY | GZIP if coded else BODY)
    tracemalloc.start()
    try:
        for read in body_of(50, first):
            for payload in in_reads(coder.compress(read) if coded else read):
                tap.feed(payload)
        tap.feed(coder.flush() if coded else b" ")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    assert tap.usage() == Tokens(11, 7)


def gzip_of(*parts: tuple[bytes, int]) -> bytes:
    """gzip of each part so many times, made without holding it."""
    coder = zlib.compressobj(9, wbits=31)
    return b"".join(coder.compress(part) for part, times in parts for _ in range(times)) + coder.flush()


def test_a_gzip_bomb_is_given_up_and_costs_little() -> None:
    bomb = gzip_of((b'{"usage": {"input_tokens": 1}, "a": "', 1), (b"0" * 1_048_576, 64), (b'"}', 1))
    assert len(bomb) < 70_000
    for size in (len(bomb), 4096, 1):
        tap = Tap(BODY | GZIP)

        def work(tap: Tap = tap, size: int = size) -> None:
            for payload in in_reads(bomb, size):
                tap.feed(payload)
            assert tap.usage() is None

        assert seconds(work) < slowness()


@pytest.mark.unmeasured
def test_where_inflating_ends() -> None:
    def answer(filler: bytes, times: int) -> bytes:
        return gzip_of((b'{"usage": {"input_tokens": 1}, "a": "', 1), (filler, times), (b'"}', 1))

    lines = random.Random(1).randbytes(512).hex().encode() + b"0" * 31_744  # about 60:1
    # As much as 16 MiB from one read, and 64 MiB in all.
    small, large = answer(lines, 400), answer(lines, 600)
    assert tapped(BODY | GZIP, small) == Tokens(1)
    assert tapped(BODY | GZIP, large) is None
    assert tapped(BODY | GZIP, *in_reads(large, 100_000)) == Tokens(1)
    assert tapped(BODY | GZIP, *in_reads(answer(lines, 2_000), 100_000)) == Tokens(1)
    assert tapped(BODY | GZIP, *in_reads(answer(lines, 2_100), 100_000)) is None
    # More than 200:1 only for the first 64 KiB.
    assert tapped(BODY | GZIP, answer(b" " * 60_000, 1)) == Tokens(1)
    assert tapped(BODY | GZIP, answer(b" " * 200_000, 1)) is None


def test_what_is_no_whole_gzip_is_unknown() -> None:
    body = b'{"usage": {"input_tokens": 1}}'
    coded = gzip.compress(body)
    assert tapped(BODY | GZIP, coded) == Tokens(1)
    assert tapped(BODY | GZIP, body) is None
    assert tapped(BODY | GZIP, coded + coded) is None
    assert tapped(BODY | GZIP, coded, b"\0") is None
    assert tapped(BODY | GZIP, coded[:-1] + bytes([coded[-1] ^ 1]), coded) is None
    broken = coded[:12] + b"\xff\xff" + coded[14:]
    assert tapped(BODY | GZIP, broken) is None
    assert tapped(BODY | GZIP) is None


@pytest.mark.parametrize(
    "text",
    [
        b'"usage":{',
        b'"usage":{"',
        b'"usage":{}',
        b'"usage":{"input_tokens":1}',
        b'"usage":{"input_tokens":1},{',
        b'"usage":',
        b'"usage":[{"',
        b'"usage":{"}{',
        b'"usage":{"a":"}',
        b'"usageMetadata',
        b'"',
        b"\\",
        b'\\"',
        b"{",
        b"}\n",
        b"\n",
        b"\r",
        b"data: {\n",
    ],
)
@pytest.mark.parametrize("way", [BODY, EVENTS], ids=["body", "events"])
@pytest.mark.parametrize("size", [READ_SIZE, 100], ids=["large reads", "small reads"])
def test_what_is_made_to_be_slow_costs_no_more_than_its_size(text: bytes, way: int, size: int) -> None:
    """0.001 s to 0.07 s of CPU."""

    def prepare(total: int) -> Callable[[], object]:
        reads = list(in_reads(b'{"usage":{"input_tokens":1},' + text * (total // len(text)), size))
        return lambda: tapped(way, *reads)

    assert_linear(prepare, 250_000)
