"""The model part: found wherever it stands and however the form is cut, and no form read in two ways."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smuggling.strict_bodies import form_models

from aigw.wire.multipart import BadForm, ModelPart

# The same examples each time, and no clock that a busy machine could trip over.
STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORM_DATA = b"multipart/form-data; boundary=B"
Outcome = tuple[str | None, tuple[int, int] | None, bool]


def part(name: bytes, content: bytes, *headers: bytes, boundary: bytes = b"B") -> bytes:
    lines = b"".join(header + b"\r\n" for header in (b"Content-Disposition: form-data; name=" + name, *headers))
    return b"--" + boundary + b"\r\n" + lines + b"\r\n" + content + b"\r\n"


MODEL = part(b'"model"', b"whisper-1")
FILE = part(b'"file"; filename="a.mp3"', b"\xff\xfb\r\n\r\n-- not a boundary\r\n--", b"Content-Type: audio/mpeg")
END = b"--B--\r\n"


def find(*reads: bytes, content_type: bytes = FORM_DATA) -> Outcome:
    """Model, span and whether it was decided. All reads are fed, whatever was found before."""
    form = ModelPart(content_type)
    decided = False
    for read in reads:
        decided = form.feed(read)
    return form.model, form.span, decided


def single_bytes(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


def both_ways(body: bytes, content_type: bytes = FORM_DATA) -> Outcome:
    whole = find(body, content_type=content_type)
    assert find(*single_bytes(body), content_type=content_type) == whole
    return whole


# ------------------------------------------------------------------------------------------------------ what is found


@pytest.mark.parametrize(
    ("body", "model"),
    [
        pytest.param(MODEL + FILE + END, "whisper-1", id="first"),
        pytest.param(FILE + MODEL + END, "whisper-1", id="last"),
        pytest.param(FILE + MODEL + b"--B", "whisper-1", id="the form goes on"),
        pytest.param(part(b"model", b"m") + END, "m", id="name without quotes"),
        pytest.param(part(b'"model"', b"m", b"Content-Type: text/plain; charset=utf-8") + END, "m", id="a type"),
        pytest.param(part(b'"model"', b"m", b"content-transfer-encoding: 8BIT") + END, "m", id="uncoded"),
        pytest.param(part(b'"model"', b"") + END, "", id="empty"),
        pytest.param(part(b'"model"', "modèle".encode()) + END, "modèle", id="UTF-8"),
        pytest.param(part(b'"model"', b"a\r\nb\r\n--") + END, "a\r\nb\r\n--", id="line ends in it"),
        pytest.param(part(b'"model"', b"m" * 1024) + END, "m" * 1024, id="1 KiB"),
        pytest.param(part(b'"prompt"', b'name="model"\r\n\r\nx') + MODEL + END, "whisper-1", id="text like a header"),
        pytest.param(part(b'"model"; filename="model"', b"x") + MODEL + END, "whisper-1", id="a file called model"),
        pytest.param(
            part(b"\"model\"; filename*=utf-8''model", b"x") + MODEL + END, "whisper-1", id="a file, RFC 5987"
        ),
        pytest.param(
            part(b'"file"; filename="a\\"; name=\\"model"', b"x") + MODEL + END, "whisper-1", id="in a file's name"
        ),
        pytest.param(b"preamble\r\n" + MODEL + END, "whisper-1", id="preamble"),
        pytest.param(b"\r\n" + MODEL + END, "whisper-1", id="empty line before"),
        pytest.param(b"--B\r\nCONTENT-DISPOSITION:Form-Data ; NAME=model\r\n\r\nm\r\n--B--", "m", id="case"),
    ],
)
def test_found(body: bytes, model: str) -> None:
    found, span, decided = both_ways(body)
    assert (found, decided) == (model, True)
    assert span is not None
    assert body[slice(*span)] == model.encode()


@pytest.mark.parametrize(
    ("body", "decided"),
    [
        pytest.param(FILE + END, True, id="no model part"),
        pytest.param(END, True, id="no part"),
        pytest.param(FILE + END + MODEL, True, id="only in the epilogue"),
        pytest.param(part(b'"models"', b"m") + part(b'"model[]"', b"m") + END, True, id="other names"),
        pytest.param(FILE + b"--B", False, id="cut behind a boundary"),
        pytest.param(FILE + b"--B-", False, id="cut in the last boundary"),
        pytest.param(MODEL[:-1], False, id="cut in the model"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_not_found(body: bytes, decided: bool) -> None:
    assert both_ways(body) == (None, None, decided)


def test_it_is_decided_at_the_first_byte_that_can_decide_it() -> None:
    form = ModelPart(FORM_DATA)
    body = FILE + MODEL + FILE
    end = len(FILE + MODEL) + len(b"--B")
    assert [form.feed(byte) for byte in single_bytes(body[:end])].index(True) == end - 1
    assert repr(form) == "<ModelPart boundary, found>"


CONTENTS = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"-", b"B", b"--B", b"\r\n-", b"\r\n--A", b"x", b"\r\n\r\n"]),
    max_size=8,
).map(b"".join)


HEADERS = st.sampled_from(
    [b"content-disposition: ", b"form-data", b"; name=", b"; filename=", b"model", b"Model", b'"', b"\\", b"*", b"x: y"]
)
PIECES = st.sampled_from([b"--B\r\n", b"\r\n--B\r\n", b"--B--", b"\r\n", b"\r\n\r\n", b"x", b"--Bx", b"\n"])


@pytest.mark.unmeasured
@settings(STEADY, max_examples=500)
@given(st.lists(HEADERS | PIECES | st.just(MODEL) | st.just(FILE), max_size=16).map(b"".join))
def test_the_model_is_the_only_one_that_a_lenient_reader_could_find(body: bytes) -> None:
    form = ModelPart(FORM_DATA)
    try:
        form.feed(body)
    except BadForm:
        return
    if form.model is not None:
        assert form_models(b"B", body) == [form.model.encode()]


@STEADY
@given(
    st.lists(CONTENTS, max_size=3), CONTENTS, st.lists(CONTENTS, max_size=2), st.lists(st.integers(0, 500), max_size=6)
)
def test_split_invariance(before: list[bytes], model: bytes, behind: list[bytes], cuts: list[int]) -> None:
    """Any content that does not hold the boundary comes out as it went in."""
    contents = [*before, model, *behind]
    names = [b'"a"'] * len(before) + [b'"model"'] + [b"b"] * len(behind)
    boundary = b"BB-:B" if any(b"\r\n--B" in b"\r\n" + content for content in contents) else b"B"
    content_type = b'Multipart/Form-Data; charset=x; Boundary="' + boundary + b'"'
    body = b"".join(part(n, c, boundary=boundary) for n, c in zip(names, contents, strict=True))
    body += b"--" + boundary + b"--\r\n"
    start = (
        len(b"".join(part(b'"a"', c, boundary=boundary) for c in before))
        + len(part(b'"model"', b"", boundary=boundary))
        - 2
    )
    expected = model.decode(), (start, start + len(model)), True
    assert both_ways(body, content_type) == expected
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    assert find(*(body[a:b] for a, b in itertools.pairwise(edges)), content_type=content_type) == expected


# ------------------------------------------------------------------------------------------------------ what is refused

DISPOSITION = b'Content-Disposition: form-data; name="model"\r\n'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(MODEL + FILE + MODEL + END, "a second `model` part", id="second model"),
        pytest.param(b"--Bc\r\n" + MODEL, "followed by neither CRLF nor", id="a longer word"),
        pytest.param(b"--B \r\n" + MODEL, "followed by neither CRLF nor", id="padded boundary"),
        pytest.param(b"--B\n" + MODEL, "followed by neither CRLF nor", id="LF behind the boundary"),
        pytest.param(b"--B-\r\n" + MODEL, "followed by neither CRLF nor", id="half an end"),
        pytest.param(b"--B\r\n\r\nm\r\n--B--", "needs one header", id="no headers"),
        pytest.param(b"--B\r\nContent-Type: text/plain\r\n\r\nm\r\n", "needs one header", id="no disposition"),
        pytest.param(b"--B\r\n" + DISPOSITION * 2 + b"\r\nm", "two content-disposition headers", id="two dispositions"),
        pytest.param(b"--B\r\nContent-Disposition: inline; name=model\r\n\r\n", "needs one header", id="not form-data"),
        pytest.param(b"--B\r\nContent-Disposition: form-data\r\n\r\n", "needs one header", id="no name"),
        pytest.param(part(b"model; name=file", b""), "needs one header", id="two names"),
        pytest.param(part(b'"model', b""), "needs one header", id="open quote"),
        pytest.param(part(b'"model"x', b""), "needs one header", id="text behind the name"),
        pytest.param(part(b'"mo\\del"', b""), "with a backslash or as `name*`", id="escaped name"),
        pytest.param(part(b"a; name*=utf-8''model", b""), "with a backslash or as `name*`", id="name in RFC 5987"),
        pytest.param(
            b"--B\r\n" + DISPOSITION.replace(b"\r", b"") + b"\r\nm\r\n\r\n", "control byte", id="LF in headers"
        ),
        pytest.param(b"--B\r\nno colon\r\n\r\n", "header line of a part without a colon", id="no colon"),
        pytest.param(
            b"--B\r\nContent-Disposition: form-data;\r\n name=model\r\n\r\n", "part without a colon", id="folded"
        ),
        pytest.param(
            part(b"model", b"bQ==", b"Content-Transfer-Encoding: base64"), "send it as plain text", id="base64"
        ),
        pytest.param(part(b"Model", b"m"), "like the model but for case", id="another case"),
        pytest.param(MODEL + part(b'"MODEL"', b"m"), "like the model but for case", id="another case behind it"),
        pytest.param(part(b"model", b"\xff"), "not UTF-8", id="not UTF-8"),
        pytest.param(part(b"model", b"m" * 1025), "longer than 1024 bytes", id="long model"),
        pytest.param(part(b"model", b"m" * 9999)[:1200], "longer than 1024 bytes", id="long model that goes on"),
        pytest.param(b"--B\r\na: " + b"b" * 16384, "headers of a part longer than 16384", id="endless headers"),
        pytest.param(
            b"--B\r\na: " + b"b" * 16384 + b"\r\n\r\n", "headers of a part longer than 16384", id="long headers"
        ),
        pytest.param(b"--B\r\n" + DISPOSITION + b"--B--\r\n\r\n", "boundary within the headers", id="no blank line"),
        pytest.param(b"--B\r\n" + DISPOSITION + b"\r\n--B--\r\n", "an empty part needs one CRLF more", id="no content"),
    ],
)
def test_refused(body: bytes, message: str) -> None:
    for reads in [body + b"\r\n--B"], single_bytes(body + b"\r\n--B"):
        with pytest.raises(BadForm) as caught:
            find(*reads)
        assert str(caught.value).startswith("bad form, in the part or boundary at byte ")
        assert message in str(caught.value)


def test_the_message_tells_the_part() -> None:
    with pytest.raises(BadForm, match=f" at byte {len(FILE) + 3}: "):
        find(FILE + part(b"model", b"", b"no colon"))


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        (b"application/json", "not multipart/form-data"),
        (b"multipart/mixed; boundary=B", "not multipart/form-data"),
        (b"", "not multipart/form-data"),
        (b"multipart/form-data", "without a proper boundary; write "),
        (b"multipart/form-data; boundary=", "without a proper boundary"),
        (b'multipart/form-data; boundary=""', "without a proper boundary"),
        (b'multipart/form-data; boundary="a "', "without a proper boundary"),
        (b'multipart/form-data; boundary="a\\b"', "without a proper boundary"),
        (b"multipart/form-data; boundary=B; boundary=C", "without a proper boundary"),
        (b"multipart/form-data; boundary=" + b"B" * 71, "without a proper boundary"),
        (b"multipart/form-data; boundary=a, b", "without a proper boundary"),
    ],
)
def test_bad_content_types(content_type: bytes, message: str) -> None:
    with pytest.raises(BadForm, match=message):
        ModelPart(content_type)


def test_70_bytes_of_any_allowed_kind_are_a_boundary() -> None:
    boundary = b"'()+_,-./:=? " + b"B" * 57
    form = ModelPart(b'multipart/form-data; boundary="' + boundary + b'"')
    assert form.feed(part(b"model", b"m", boundary=boundary) + b"--" + boundary)
    assert form.model == "m"


# ------------------------------------------------------------------------------------------------------------ bounds


@pytest.mark.parametrize("content", [b"x", b"\r\n--", b"\r\n--BBBBBBBBBBBB-", b"-", b"\r"], ids=repr)
def test_a_large_file_costs_little_memory_and_linear_time(content: bytes) -> None:
    boundary = b"B" * 70
    read = content * (262_144 // len(content))
    form = ModelPart(b"multipart/form-data; boundary=" + boundary)
    form.feed(part(b"file; filename=a", b"", boundary=boundary)[:-2])
    for _ in range(16):
        assert not form.feed(read)
        assert len(form._buffer) < 100
    assert form.feed(b"\r\n" + part(b"model", b"m", boundary=boundary) + b"--" + boundary)
    assert form.model == "m"


def test_10_000_parts() -> None:
    body = part(b"a", b"") * 10_000 + MODEL + END
    assert find(body)[0] == "whisper-1"
