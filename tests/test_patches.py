"""A renamed model is all that changes of a request, whatever request it is: on the wire, through the running gateway.

Requests are made at random around a model's name, in whatever spelling its place allows, and are sent in random
pieces. What must reach the upstream is the same request made around the other name.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from fakes import Seen, chunked, document, gateway, model, pieces, running, stub, target, upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.unmeasured

# The same examples each time, and no clock that a busy machine could trip over. Each starts a gateway.
STEADY = settings(
    derandomize=True, deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow], database=None
)
REAL = 'the "real" name/\N{SNOWMAN}'
IN_PATH = b"the%20%22real%22%20name%2F%E2%98%83"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = TEXTS.filter(bool) | st.sampled_from(["model", REAL, "a/b", '"model":', "gpt-4o", "%2F", "a:b", "*"])


def renaming(url: str, provider: str) -> dict[str, Any]:
    """Every model has another name there."""
    up = upstream(target(url), provider=provider)
    return document({"up": up}, gateways={"default": gateway(models={"*": model("up", REAL)})})


async def sent(provider: str, line: bytes, content_type: bytes, body: bytes, cuts: list[int], is_chunked: bool) -> Seen:
    """The request as the upstream saw it. `cuts` are where writes end, and chunks if there are any."""
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    cut_body = [body[a:b] for a, b in itertools.pairwise(edges) if a < b]
    head = [line, b"host: gw", b"content-type: " + content_type]
    if is_chunked:
        head.append(b"transfer-encoding: chunked")
        cut_body = pieces(chunked(*cut_body), max(1, len(body) // 3))
    else:
        head.append(b"content-length: %d" % len(body))
    async with stub() as up, running(renaming(up.url, provider)) as gw:
        client = await gw.connect()
        await client.send(b"\r\n".join(head) + b"\r\n\r\n", *cut_body)
        answer = await client.answer()
        assert answer.status == 200, answer.raw
        assert (await gw.record())["model_used"] == REAL
        return up.last


CUTS = st.lists(st.integers(0, 1000), max_size=4)


# in the body ----------------------------------------------------------------------------------------------------------

BLANKS = st.text(" \t\r\n", max_size=2)
# Members that look like the one, deeper or in strings; and what a writer that parses and writes again would change.
DECOYS = [
    '{"model": "x"}',
    '[{"model":\t1}, "model"]',
    '"\\"model\\": \\"x\\""',
    "1.10",
    "1E+300",
    "123456789012345678901",
]
VALUES = st.sampled_from([*DECOYS, "[]", "{}", '"\\u00e9\\/"', "-0", "null"]) | TEXTS.map(json.dumps)


@st.composite
def spelled(draw: st.DrawFn, text: str) -> str:
    """A JSON string of `text`; any character may be escaped."""
    out = []
    for letter in text:
        must = letter in '"\\' or letter < " "
        units = letter.encode("utf-16-be")
        escaped = "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
        out.append(escaped if must or draw(st.integers(0, 5)) == 0 else letter)
    return f'"{"".join(out)}"'


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, str, str, str]:
    """What stands before the value, the value, what stands behind it; and the text that the value is."""
    names = TEXTS.filter(lambda name: name.lower() != "model").flatmap(spelled)
    items = [f"{draw(names)}{draw(BLANKS)}:{draw(VALUES)}{draw(BLANKS)}" for _ in range(draw(st.integers(0, 3)))]
    place = draw(st.integers(0, len(items)))
    text = draw(NAMES)
    before = "{" + draw(BLANKS) + "".join(f"{item}," for item in items[:place])
    before += draw(spelled("model")) + draw(BLANKS) + ":" + draw(BLANKS)
    behind = draw(BLANKS) + "".join(f",{item}" for item in items[place:]) + "}" + draw(BLANKS)
    return before, draw(spelled(text)), behind, text


@STEADY
@given(bodies(), CUTS, st.booleans())
async def test_in_a_body(parts: tuple[str, str, str, str], cuts: list[int], is_chunked: bool) -> None:
    before, value, behind, text = parts
    body = (before + value + behind).encode()
    # The name that it has already is left in the client's spelling.
    renamed = value if text == REAL else json.dumps(REAL, ensure_ascii=False)
    expected = (before + renamed + behind).encode()
    seen = await sent("openai", b"POST /v1/chat/completions HTTP/1.1", b"application/json", body, cuts, is_chunked)
    assert seen.body == expected
    assert seen.headers["content-length"] == str(len(expected))
    assert json.loads(seen.body) == json.loads(body) | {"model": REAL}


# in the path ----------------------------------------------------------------------------------------------------------

# Visible ASCII that may stand bare in a path, and what has to be encoded there.
SEGMENTS = st.text("abcXYZ019-._~!$&'()*+,=:@ \"é☃/%?#", min_size=1, max_size=8) | st.just(REAL)
BARE = "abcXYZ019-._~!$&'()*+,=:@"


@st.composite
def encoded(draw: st.DrawFn, text: str) -> bytes:
    """A path segment of `text`; any byte may be percent-encoded, in either case."""
    out = []
    for letter in text:
        if letter in BARE and draw(st.integers(0, 4)):
            out.append(letter)
        else:
            form = draw(st.sampled_from(["%{:02x}", "%{:02X}"]))
            out += [form.format(byte) for byte in letter.encode()]
    return "".join(out).encode()


PATHS = st.tuples(st.just("gemini"), st.sampled_from([b"/v1beta/models/", b"/v1/tunedModels/"])) | st.tuples(
    st.just("azure"), st.just(b"/openai/deployments/")
)
ACTIONS = {
    "gemini": [b":generateContent", b":streamGenerateContent?alt=sse", b":x?a=%2F:/models/y:z"],
    "azure": [b"/chat/completions?api-version=2024-10-21", b"/audio/transcriptions", b"/a%20b/deployments/c/d?model=x"],
}


@STEADY
@given(PATHS, st.data(), SEGMENTS, CUTS, st.booleans())
async def test_in_a_path(
    place: tuple[str, bytes], data: st.DataObject, text: str, cuts: list[int], is_chunked: bool
) -> None:
    provider, before = place
    segment = data.draw(encoded(text))
    behind = data.draw(st.sampled_from(ACTIONS[provider]))
    body = b'{"model": "untouched", "contents": [1.10]}'
    line = b"POST " + before + segment + behind + b" HTTP/1.1"
    seen = await sent(provider, line, b"application/json", body, cuts, is_chunked)
    renamed = segment if text == REAL else IN_PATH
    assert seen.line == b"POST " + before + renamed + behind + b" HTTP/1.1"
    assert seen.body == body


# in a form ------------------------------------------------------------------------------------------------------------

CONTENTS = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r", b"\n", b"--", b"B", b"\r\n-", b"\r\n--A", b"x", b"\r\n\r\n", b"\xff\x00", b'"model"']
    ),
    max_size=8,
).map(b"".join)
OTHERS = st.tuples(
    st.sampled_from([b'"file"; filename="a.mp3"', b'"language"', b'"model"; filename="model"']), CONTENTS
)


def form(*parts: tuple[bytes, bytes]) -> bytes:
    lines = [b"--B\r\nContent-Disposition: form-data; name=%b\r\n\r\n%b\r\n" % part for part in parts]
    return b"".join(lines) + b"--B--\r\n"


@STEADY
@given(st.lists(OTHERS, max_size=2), NAMES, st.lists(OTHERS, max_size=2), CUTS, st.booleans())
async def test_in_a_form(
    before: list[tuple[bytes, bytes]], text: str, behind: list[tuple[bytes, bytes]], cuts: list[int], is_chunked: bool
) -> None:
    body = form(*before, (b'"model"', text.encode()), *behind)
    line = b"POST /v1/audio/transcriptions HTTP/1.1"
    seen = await sent("openai", line, b"multipart/form-data; boundary=B", body, cuts, is_chunked)
    assert seen.body == form(*before, (b'"model"', REAL.encode()), *behind)
