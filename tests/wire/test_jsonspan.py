"""Members by span: found in any spelling and at no other depth, doubles refused, patches in place and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from cpu import assert_linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw.wire.jsonspan import DuplicateMember, InvalidJSON, Member, include_usage, load, replace

# The same examples each time, and no clock that a busy machine could trip over.
STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODEL = Member("model")

# ---------------------------------------------------------------------------------------------- random JSON, as text

SPACE = st.text(" \t\r\n", max_size=3)
# Names and strings that try to be taken for the member, among others.
DECOYS = [
    "model",
    "Model",
    "models",
    "mode",
    "odel",
    "a",
    "",
    '"model":',
    '\\"model":',
    "\\",
    '\\"',
    "{",
    "]}",
    "é\x01\n",
]


@st.composite
def string(draw: st.DrawFn, text: str) -> str:
    """`text` as a JSON string in some spelling: any character may be escaped, in either case."""
    out = []
    for letter in text:
        if letter in '"\\' or letter < " ":
            out.append(json.dumps(letter)[1:-1])
        elif ord(letter) < 0x10000 and draw(st.integers(0, 9)) == 0:
            out.append(draw(st.sampled_from([f"\\u{ord(letter):04x}", f"\\u{ord(letter):04X}"])))
        else:
            out.append(letter)
    return f'"{"".join(out)}"'


TEXTS = st.sampled_from(DECOYS) | st.text(max_size=8)
STRINGS = TEXTS.filter(lambda text: not any("\ud800" <= letter <= "\udfff" for letter in text)).flatmap(string)
SCALARS = STRINGS | st.sampled_from(["null", "true", "false", "0", "-1.5e3", "12345678901234567890123"])


@st.composite
def item(draw: st.DrawFn, name: st.SearchStrategy[str], value: st.SearchStrategy[str]) -> str:
    return f"{draw(SPACE)}{draw(name)}{draw(SPACE)}:{draw(SPACE)}{draw(value)}{draw(SPACE)}"


@st.composite
def array(draw: st.DrawFn, value: st.SearchStrategy[str]) -> str:
    return "[" + ",".join(f"{draw(SPACE)}{v}" for v in draw(st.lists(value, max_size=3))) + draw(SPACE) + "]"


@st.composite
def nested_object(draw: st.DrawFn, value: st.SearchStrategy[str]) -> str:
    names = string("model") | STRINGS
    return "{" + (",".join(draw(st.lists(item(names, value), max_size=3))) or draw(SPACE)) + "}"


VALUES = st.recursive(SCALARS, lambda value: array(value) | nested_object(value), max_leaves=8)
OTHERS = STRINGS.filter(lambda name: json.loads(name) != "model")


@st.composite
def object_with(draw: st.DrawFn, models: int) -> str:
    """An object with so many top-level `model` members, among others, in any order and spelling."""
    items = draw(st.lists(item(OTHERS, VALUES), max_size=4))
    for _ in range(models):
        place = draw(st.integers(0, len(items)))
        items.insert(place, draw(item(string("model"), VALUES)))
    inner = ",".join(items) or draw(SPACE)
    return f"{draw(SPACE)}{{{inner}}}{draw(SPACE)}"


@pytest.mark.unmeasured
@STEADY
@given(object_with(1), SCALARS)
def test_a_replaced_member_changes_the_document_by_itself_alone(text: str, new: str) -> None:
    body = text.encode()
    document = load(body, MODEL)
    span = MODEL.span(body, document)
    assert span is not None
    start, end = span
    assert orjson.loads(body[start:end]) == document["model"]
    assert body[start:end].strip(b" \t\r\n") == body[start:end]

    value = orjson.loads(new)
    patched = replace(body, span, value)
    assert patched[:start] == body[:start]
    assert patched[len(patched) - (len(body) - end) :] == body[end:]
    after = load(patched, MODEL)
    assert list(after) == list(document)
    assert after == {**document, "model": value}


@pytest.mark.unmeasured
@STEADY
@given(object_with(0))
def test_an_absent_member_has_no_span_however_many_are_nested(text: str) -> None:
    document = load(text.encode(), MODEL)
    assert "model" not in document
    assert MODEL.span(text.encode(), document) is None


@pytest.mark.unmeasured
@STEADY
@given(st.integers(2, 3).flatmap(object_with))
def test_doubles_are_always_found(text: str) -> None:
    with pytest.raises(DuplicateMember) as caught:
        load(text.encode(), MODEL)
    assert caught.value.name == "model"


# ------------------------------------------------------------------------------------------------------- by example


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b'{"model":"a"}', b'"a"', id="alone"),
        pytest.param(b' {\r\n\t"model" :\n "a" , "b":1}', b'"a"', id="white space"),
        pytest.param(b'{"mod\\u0065l":"a"}', b'"a"', id="escaped name"),
        pytest.param(b'{"\\u006D\\u006F\\u0064\\u0065\\u006C":"a"}', b'"a"', id="escaped name, upper case"),
        pytest.param(b'{"a":"model","model":"b"}', b'"b"', id="a value of that text"),
        pytest.param(b'{"a":"\\"model\\":","model":"b"}', b'"b"', id="quoted in a string"),
        pytest.param(b'{"a \\"model":0,"model":"b"}', b'"b"', id="at the end of a name"),
        pytest.param(b'{"a":"\\\\","model":"b"}', b'"b"', id="behind an escaped backslash"),
        pytest.param(b'{"a":{"model":1},"model":"b","c":[{"model":2}]}', b'"b"', id="nested before and behind"),
        pytest.param(b'{"a":["]}{[\\"",{"model":1}],"model":"b"}', b'"b"', id="brackets in strings"),
        pytest.param(b'{"a":"\\u006d","model":"b"}', b'"b"', id="an escape elsewhere"),
        pytest.param(b'{"model":"a\\"b\\\\","c":1}', b'"a\\"b\\\\"', id="escapes in the value"),
        pytest.param(b'{"model":12e3}', b"12e3", id="number"),
        pytest.param(b'{"model":null ,"a":1}', b"null", id="null"),
        pytest.param(b'{"model":["]",{"a":[1]}],"a":[]}', b'["]",{"a":[1]}]', id="array"),
        pytest.param(b'{"model":{"model":"}"} }', b'{"model":"}"}', id="object with one of its own"),
    ],
)
def test_span(body: bytes, value: bytes) -> None:
    span = MODEL.span(body, load(body, MODEL))
    assert span is not None
    assert body[slice(*span)] == value


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":"a"}',
        b'{"model":"a","mod\\u0065l":"b"}',
        b'{"mod\\u0065l":"a","\\u006dodel":"b"}',
        b'{"model":"a","x":{"model":1},"model" :"b"}',
        b'{"model":{"model":1},"x":"\\\\","model":{}}',
    ],
)
def test_two_members_are_refused(body: bytes) -> None:
    with pytest.raises(DuplicateMember, match=r'^the body has more than one top-level "model"; .* send one$'):
        load(body, MODEL)


def test_only_the_members_asked_for_must_be_single() -> None:
    body = b'{"stream":true,"stream":false,"model":"a"}'
    assert load(body, MODEL) == {"stream": False, "model": "a"}
    with pytest.raises(DuplicateMember, match='"stream"'):
        load(body, MODEL, Member("stream"))


def test_any_plain_name_is_found() -> None:
    body = b'{"max_tokens":1,"x":{"m\\u0061x_tok\\u0065ns":2},"stream_options":{"include_usage":true}}'
    members = Member("max_tokens"), Member("stream_options")
    document = load(body, *members)
    assert [body[slice(*(m.span(body, document) or (0, 0)))] for m in members] == [b"1", b'{"include_usage":true}']
    assert repr(members[0]) == "<Member max_tokens>"


@pytest.mark.parametrize("name", ["", "a-b", "a/b", 'a"', "é"])
def test_other_names_are_not_promised(name: str) -> None:
    with pytest.raises(ValueError, match="only ASCII letters, digits and _"):
        Member(name)


@pytest.mark.parametrize("at_start", [True, False])
def test_a_large_body_with_an_image(at_start: bool) -> None:
    image = b'"messages":[{"content":[{"image_url":{"url":"data:' + b"QUJD" * 250_000 + b'"}}]}]'
    body = b'{"model":"a",' + image + b"}" if at_start else b"{" + image + b',"model":"a"}'
    span = MODEL.span(body, load(body, MODEL))
    assert span is not None
    assert replace(body, span, "b") == body.replace(b'"a"', b'"b"')


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "no valid JSON: .*at character 0", id="empty"),
        pytest.param(b'{"model":"a"', "no valid JSON: .*at character 12", id="cut"),
        pytest.param(b'{"model":"a",}', "no valid JSON: .*at character ", id="comma too many"),
        pytest.param(b'{"model":NaN}', "no valid JSON: .*at character 9", id="NaN"),
        pytest.param(b'{"model":1e400}', "no valid JSON: .*at character 9", id="number beyond a double"),
        pytest.param(b'{"model":"\\ud800"}', "no valid JSON: ", id="lone surrogate"),
        pytest.param(b'\xef\xbb\xbf{"model":"a"}', "no valid JSON: ", id="byte order mark"),
        pytest.param(b'{"model":"\xff"}', "no valid JSON: .*UTF-8", id="not UTF-8"),
        pytest.param(b'{"model":"a\x01"}', "no valid JSON: ", id="control byte"),
        pytest.param(b'{"model":"a"}{"model":"b"}', "no valid JSON: .*at character 13", id="two documents"),
        pytest.param(b"[" * 100_000, "no valid JSON: ", id="too deep"),
        pytest.param(b'[{"model":"a"}]', "JSON but no object; send one, like ", id="array"),
        pytest.param(b'"model"', "JSON but no object", id="string"),
        pytest.param(b"null", "JSON but no object", id="null"),
    ],
)
def test_refused(body: bytes, message: str) -> None:
    with pytest.raises(InvalidJSON, match=message):
        load(body, MODEL)


def test_the_error_neither_shows_nor_keeps_the_body() -> None:
    with pytest.raises(InvalidJSON) as caught:
        load(b'{"prompt":"canary", canary}', MODEL)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None  # orjson's error would hold all of it


def test_a_document_of_another_body_is_a_bug_and_says_so() -> None:
    with pytest.raises(AssertionError, match="not validated"):
        MODEL.span(b'{"model":[', {"model": []})


# ----------------------------------------------------------------------------------------------------- hostile, whole


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    "unit",
    [
        pytest.param(b"[]", id="empty arrays"),
        pytest.param(b'""', id="empty strings"),
        pytest.param(b'{"model":0}', id="names"),
        pytest.param(b'{"mod\\u0065l":0}', id="escaped names"),
        pytest.param(b'"' + b'\\"' * 100_000 + b'"', id="escaped quotes"),
        pytest.param(b'"' + b"\\\\" * 100_000 + b'"', id="escaped backslashes"),
        pytest.param(b"[" * 1000 + b"]" * 1000, id="deep"),
        pytest.param(b'"\\"model\\":"', id="quoted names"),
    ],
)
def test_hostile_bodies_of_200_kb(unit: bytes) -> None:
    """Quadratic work would take minutes here."""
    filling = b",".join([unit] * max(1, 200_000 // len(unit)))
    body = b'{"a":[' + filling + b'],"model":"m","b":{"model":[' + filling + b"]}}"
    span = MODEL.span(body, load(body, MODEL))
    assert span is not None
    assert body[slice(*span)] == b'"m"'
    with pytest.raises(DuplicateMember):
        load(body[:-1] + b',"model":1}', MODEL)


# --------------------------------------------------------------------------------------- stream_options.include_usage

PLAIN_NAMES = ("stream", "stream_options", "messages", "prompt", "include_usage")
UNRELATED = STRINGS.filter(lambda name: json.loads(name) not in PLAIN_NAMES)


@st.composite
def nested_decoy(draw: st.DrawFn, value: st.SearchStrategy[str]) -> str:
    """An object whose members have the names that matter, where they do not."""
    names = st.sampled_from(PLAIN_NAMES).flatmap(string) | UNRELATED
    return "{" + (",".join(draw(st.lists(item(names, value), max_size=3))) or draw(SPACE)) + "}"


DECOY_VALUES = st.recursive(SCALARS, lambda value: array(value) | nested_decoy(value), max_leaves=6)


@st.composite
def object_of(draw: st.DrawFn, items: list[str], others: st.SearchStrategy[str]) -> str:
    """An object of these items in any order, among others of other names."""
    items = draw(st.permutations(items + draw(st.lists(item(UNRELATED, others), max_size=2))))
    return f"{{{','.join(items) or draw(SPACE)}}}"


@st.composite
def request_of(draw: st.DrawFn, options: st.SearchStrategy[str] | None, stream: str = "true", asks: bool = True) -> str:
    """A request with `stream_options` (None: without), in any spelling."""
    items = [draw(item(string("stream"), st.just(stream)))]
    if asks:
        items.append(draw(item(st.sampled_from(["messages", "prompt"]).flatmap(string), DECOY_VALUES)))
    if options is not None:
        items.append(draw(item(string("stream_options"), options)))
    return f"{draw(SPACE)}{draw(object_of(items, DECOY_VALUES))}{draw(SPACE)}"


@st.composite
def flags(draw: st.DrawFn, include: str | None) -> str:
    """The value of `stream_options`: flags and texts, with `include_usage` or (None) without it."""
    items = [] if include is None else [draw(item(string("include_usage"), st.just(include)))]
    return draw(object_of(items, SCALARS))


SAYS_NO = st.sampled_from([None, "false", "null"]).flatmap(flags) | st.just("null")


def with_usage(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "stream_options": {**(document.get("stream_options") or {}), "include_usage": True}}


@pytest.mark.unmeasured
@STEADY
@given(request_of(None) | request_of(SAYS_NO))
def test_include_usage_changes_the_document_by_itself_alone(text: str) -> None:
    body = text.encode()
    document = orjson.loads(body)
    patched = include_usage(body, document)
    assert patched is not None
    after = orjson.loads(patched)
    assert after == with_usage(document)
    assert list(after) == list(with_usage(document))
    # One piece differs, and outside of it every byte is the client's, in its order.
    front = next((i for i, (a, b) in enumerate(zip(body, patched, strict=False)) if a != b), len(body))
    back = 0
    while back < len(body) - front and body[-1 - back] == patched[-1 - back]:
        back += 1
    assert body[front : len(body) - back] in (b"", *(value[:n] for value in (b"false", b"null") for n in range(1, 6)))
    # What was added is counted and asked for: a second pass finds nothing to do.
    assert include_usage(patched, after) is None


@pytest.mark.unmeasured
@STEADY
@given(
    request_of(flags("true"))  # the client asked for it itself
    | request_of(None, stream="false")
    | request_of(SAYS_NO, stream="1")
    | request_of(SAYS_NO, stream='"true"')
    | request_of(SAYS_NO, asks=False)
    | request_of(flags("0") | flags("1") | flags('"yes"') | flags("-0.0"))
    | request_of(st.sampled_from(["true", "false", "0", '""', "[]", '[{"include_usage":false}]']))
)
def test_include_usage_leaves_alone_what_is_not_its_own(text: str) -> None:
    assert include_usage(text.encode(), orjson.loads(text)) is None


CHAT = b'{"stream":true,"messages":[]'


@pytest.mark.parametrize(
    ("body", "patched"),
    [
        pytest.param(CHAT + b"}", CHAT + b',"stream_options":{"include_usage":true}}', id="absent"),
        pytest.param(
            CHAT + b" } \n", CHAT + b' ,"stream_options":{"include_usage":true}} \n', id="absent, white space"
        ),
        pytest.param(
            b'{"prompt":"a}","stream":true}',
            b'{"prompt":"a}","stream":true,"stream_options":{"include_usage":true}}',
            id="legacy completion",
        ),
        pytest.param(CHAT + b',"stream_options":null}', CHAT + b',"stream_options":{"include_usage":true}}', id="null"),
        pytest.param(CHAT + b',"stream_options":{}}', CHAT + b',"stream_options":{"include_usage":true}}', id="empty"),
        pytest.param(
            CHAT + b',"stream_options":{ } }', CHAT + b',"stream_options":{ "include_usage":true} }', id="empty, blank"
        ),
        pytest.param(
            CHAT + b',"stream_options":{"include_obfuscation":false}}',
            CHAT + b',"stream_options":{"include_obfuscation":false,"include_usage":true}}',
            id="others",
        ),
        pytest.param(
            CHAT + b',"stream_options" : {"include_usage" : false , "x":"}"}}',
            CHAT + b',"stream_options" : {"include_usage" : true , "x":"}"}}',
            id="false",
        ),
        pytest.param(
            CHAT + b',"stream_options":{"include_usage":null}}',
            CHAT + b',"stream_options":{"include_usage":true}}',
            id="null within",
        ),
        pytest.param(
            CHAT + b',"stream\\u005foptions":{"\\u0069nclude_usage":false}}',
            CHAT + b',"stream\\u005foptions":{"\\u0069nclude_usage":true}}',
            id="escaped names",
        ),
        pytest.param(
            b'{"tools":[{"stream_options":{"include_usage":true}}],"prompt":"\\"stream_options\\":{","stream":true}',
            b'{"tools":[{"stream_options":{"include_usage":true}}],"prompt":"\\"stream_options\\":{","stream":true'
            b',"stream_options":{"include_usage":true}}',
            id="nested and quoted only",
        ),
    ],
)
def test_include_usage(body: bytes, patched: bytes) -> None:
    assert include_usage(body, orjson.loads(body)) == patched


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(b',"stream_options":{"include_usage":true}', id="asked for"),
        pytest.param(b',"stream_options":{},"stream_options":{}', id="two options"),
        pytest.param(b',"stream_options":{"include_usage":true},"stream_opt\\u0069ons":null', id="two, null last"),
        pytest.param(b',"stream_options":{"include_usage":false,"include_usage":false}', id="two within"),
        pytest.param(b',"stream_options":{"include_usage":true,"include\\u005fusage":false}', id="two within, escaped"),
        pytest.param(b',"stream":true', id="two streams"),
        pytest.param(b',"stream":false,"str\\u0065am":true', id="two streams, escaped"),
        pytest.param(b',"stream_options":[]', id="array"),
        pytest.param(b',"stream_options":"include_usage"', id="text"),
        pytest.param(b',"stream_options":{"include_usage":0}', id="zero is not false"),
        pytest.param(b',"stream_options":{"include_usage":{}}', id="object within"),
        pytest.param(b',"stream_options":{"a":[],"include_usage":false}', id="an option that is no flag"),
    ],
)
def test_what_the_provider_has_to_judge_is_left_alone(more: bytes) -> None:
    body = CHAT + more + b"}"
    assert include_usage(body, orjson.loads(body)) is None


def test_include_usage_after_the_model_was_replaced() -> None:
    """The document of the body before will do: only names and options are asked of it."""
    body = CHAT + b',"model":"a","stream_options":{"include_usage":false}}'
    document = load(body, MODEL)
    span = MODEL.span(body, document)
    assert span is not None
    patched = include_usage(replace(body, span, "a-longer-name"), document)
    assert patched == body.replace(b'"a"', b'"a-longer-name"').replace(b"false", b"true")


@pytest.mark.parametrize(
    ("inner", "times"),
    [
        pytest.param(b'"a":[%b[]]', b"[],", id="arrays"),
        pytest.param(b'%b"a":0', b'"a":{},', id="objects of one name"),
        pytest.param(b'%b"a":0', b'"include_usage":false,', id="doubles"),
    ],
)
def test_hostile_options_cost_no_more_than_their_size(inner: bytes, times: bytes) -> None:
    """2 ms to 100 ms of CPU; a walk that begins anew at each bracket or name takes minutes."""

    def prepare(size: int) -> Callable[[], None]:
        body = CHAT + b',"stream_options":{' + inner % (times * (size // len(times))) + b"}}"
        document = orjson.loads(body)

        def work() -> None:
            assert include_usage(body, document) is None

        return work

    assert_linear(prepare, 2_000_000)
