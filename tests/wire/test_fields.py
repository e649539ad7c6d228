"""One header line: what it means, and that nothing but the grammar is taken for a line."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw.errors import BAD_REQUEST, EXPECTATION_FAILED, Kind, Refused
from aigw.wire import fields
from aigw.wire.fields import (
    DROPPED,
    FORWARDED,
    TOKEN,
    VALUE,
    Field,
    digest,
    host_of,
    line_name,
    request_field,
    response_field,
    retry_after,
    split_line,
)

STEADY = settings(derandomize=True, deadline=None)


def sha(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


# ------------------------------------------------------------------------------------------------------ the line's form


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (b"A:b", b"a", b"b"),
        (b"a-B_c.1!#$%&'*+^`|~:", b"a-b_c.1!#$%&'*+^`|~", b""),
        (b"x: \t v w \t", b"x", b"v w"),
        (b"x: a: b", b"x", b"a: b"),
        (b"x: \xc3\xa9\xff\x80", b"x", b"\xc3\xa9\xff\x80"),
    ],
)
def test_a_line_is_split(line: bytes, name: bytes, value: bytes) -> None:
    assert split_line(line) == (name, value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"", "without a colon"),
        (b"name", "without a colon"),
        (b" folded: x", "folded header line"),  # RFC 9112 section 5.2
        (b"\tfolded: x", "folded header line"),
        (b" : x", "folded header line"),
        (b"name : x", "blank before the colon"),  # RFC 9112 section 5.1
        (b"name\t: x", "blank before the colon"),
        (b": x", "no token"),
        (b"na me: x", "no token"),
        (b"n\xc3\xa9: x", "no token"),
        (b"a\0: x", "no token"),
        (b"(a): x", "no token"),
        (b"a: x\0", "control byte"),  # RFC 9110 section 5.5
        (b"a: x\ry", "control byte"),
        (b"a: x\r", "control byte"),
        (b"a: x\ny: z", "control byte"),
        (b"a: \x7f", "control byte"),
        (b"a: \x1b[0m", "control byte"),
    ],
)
def test_what_is_no_line_is_refused(line: bytes, words: str) -> None:
    for parse in (split_line, request_field, response_field):
        with pytest.raises(Refused) as caught:
            parse(line)
        assert caught.value.failure.kind is BAD_REQUEST
        assert words in caught.value.failure.message


def test_the_message_says_where() -> None:
    with pytest.raises(Refused, match=r"^trailer line without a colon"):
        split_line(b"oops", "trailer line")


def test_every_byte_in_a_name_and_in_a_value() -> None:
    def accepted(line: bytes) -> bool:
        try:
            split_line(line)
        except Refused:
            return False
        return True

    every = [bytes([i]) for i in range(256)]
    named = {byte for byte in every if accepted(b"a" + byte + b"z: v")}
    # a colon ends the name, and the rest of it is value
    assert named == {bytes([i]) for i in TOKEN} | {b":"}
    assert {byte for byte in every if accepted(b"a: v" + byte + b"w")} == {bytes([i]) for i in VALUE}
    assert set(VALUE) == {9, *range(32, 127), *range(128, 256)}


# ------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    "name", [b"x-anything", b"anthropic-beta", b"OpenAI-Organization", b"Idempotency-Key", b"date"]
)
def test_what_is_unknown_is_forwarded(name: bytes) -> None:
    assert request_field(name + b": 1") is FORWARDED
    assert response_field(name + b": 1") is FORWARDED


@pytest.mark.parametrize(
    "line",
    [
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"Trailer: x",
        b"Upgrade: websocket",
        b"HTTP2-Settings: AAMAAABkAAQAAP__",
        b"Proxy-Authorization: Basic eDp5",
        b"Proxy-Connection: keep-alive",
        b"Proxy: http://evil",
        b"proxy-: x",
        b"x-request-id:",
        b"x-request-id: a b",
        b"x-request-id: " + b"a" * 129,
        b'x-request-id: "a"',
        b"x-request-id: \xc3\xa9",
    ],
)
def test_hop_by_hop_and_insane_request_lines_end_here(line: bytes) -> None:
    assert request_field(line) is DROPPED


@pytest.mark.parametrize(
    "line", [b"TE: x", b"Upgrade: h2c", b"Proxy-Authenticate: Basic", b"X-Aigw-Model: x", b"x-aigw-error: no_rule"]
)
def test_hop_by_hop_response_lines_and_what_only_the_gateway_says_end_here(line: bytes) -> None:
    assert response_field(line) is DROPPED


@pytest.mark.parametrize(
    ("line", "kind", "value"),
    [
        (b"Content-Type:  text/plain ", fields.CONTENT_TYPE, b"text/plain"),
        (b"content-encoding: GZIP", fields.CONTENT_ENCODING, b"GZIP"),
        (b"Transfer-Encoding: Chunked", fields.CODING, b"Chunked"),
        (b"Connection: close, X-Y ,", fields.CONNECTION, b"close, X-Y ,"),
    ],
)
def test_lines_that_both_heads_read(line: bytes, kind: int, value: bytes) -> None:
    for parse in (request_field, response_field):
        field = parse(line)
        assert (field.kind, field.line, field.value, field.digest) == (kind, line, value, None)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"cookie: a=b", fields.COOKIE),
        (b"anthropic-version: 2023-06-01", fields.ANTHROPIC),
        (b"x-goog-api-client: genai", fields.GEMINI),
        (b"Expect: 100-Continue", fields.EXPECT),
        (b"x-request-id: A-z_0.9:/+=@", fields.REQUEST_ID),
        (b"x-request-id: " + b"a" * 128, fields.REQUEST_ID),
    ],
)
def test_lines_that_only_a_request_has(line: bytes, kind: int) -> None:
    assert (request_field(line).kind, request_field(line).line) == (kind, line)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"Timeout=5, max=100", 5),
        (b"max=100,timeout=60", 60),
        (b"timeout=0", 0),
        (b"max=100", -1),
        (b"xtimeout=5", -1),
        (b"timeout=", -1),
        (b"timeout=-1", -1),
        (b"timeout=12345678", -1),
    ],
)
def test_how_long_an_upstream_keeps_a_connection(value: bytes, seconds: int) -> None:
    """-1 where it does not say."""
    field = response_field(b"Keep-Alive: " + value)
    assert (field.kind, field.number) == (fields.KEEP_ALIVE, seconds)


def test_lines_that_only_a_response_has() -> None:
    assert response_field(b"set-cookie: a=b").kind == fields.SET_COOKIE
    assert response_field(b"x-request-id: any thing").kind == fields.SENT_ID
    assert response_field(b"Request-Id: req_1").kind == fields.OWN_ID
    assert request_field(b"request-id: req_1") is FORWARDED
    assert response_field(b"host: not checked here") is FORWARDED


# ------------------------------------------------------------------------------------------------------- checked values


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"007", 7), (b"9" * 18, 10**18 - 1), (b" 5\t", 5)])
def test_a_length(value: bytes, length: int) -> None:
    for parse in (request_field, response_field):
        assert parse(b"content-length:" + value).number == length


@pytest.mark.parametrize(
    "value",
    [b"", b"-1", b"+1", b"1.0", b"0x10", b"1e3", b"1_0", b"5 5", b"5, 5", b"5;a", b"\xb2", b"9" * 19, b"abc", b"5,"],
)
def test_a_length_that_is_no_plain_number_is_refused(value: bytes) -> None:
    """RFC 9110 section 8.6; RFC 9112 section 6.3 item 5."""
    for parse in (request_field, response_field):
        with pytest.raises(Refused, match="content-length must be one plain decimal number"):
            parse(b"content-length: " + value)


@pytest.mark.parametrize("value", [b"a b", b'"close"', b"close; x", b"close, (x)", b"\xe9"])
def test_connection_options_are_tokens(value: bytes) -> None:
    """RFC 9110 section 7.6.1."""
    for parse in (request_field, response_field):
        with pytest.raises(Refused, match="bad `connection` header"):
            parse(b"connection: " + value)


@pytest.mark.parametrize("value", [b"", b"200-ok", b"100-continue, x", b"100-continue;a"])
def test_an_unknown_expectation_is_refused(value: bytes) -> None:
    """RFC 9110 section 10.1.1."""
    with pytest.raises(Refused) as caught:
        request_field(b"expect: " + value)
    assert caught.value.failure.kind is EXPECTATION_FAILED


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"Example.ORG", "example.org"),
        (b"example.org:8081", "example.org"),
        (b"example.org:", "example.org"),
        (b"a_b-c~.d:0", "a_b-c~.d"),
        (b"x%41:65535", "x%41"),
        (b"127.0.0.1:1", "127.0.0.1"),
        (b"[::1]:80", "[::1]"),
        (b"[::FFFF:1.2.3.4]", "[::ffff:1.2.3.4]"),
    ],
)
def test_a_host(authority: bytes, host: str) -> None:
    assert host_of(authority) == host
    assert request_field(b"host: " + authority).text == host


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b":80",
        b"user@host",
        b"user:pw@host",
        b"host:port",
        b"host:65536",
        b"host:999999",
        b"host:-1",
        b"host:80:80",
        b"a b",
        b"a/b",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"h\xc3\xb6st",
        b"x%4",
        b"x%zz",
        b"::1",
        b"[::1",
        b"[]",
        b"[::1]x",
        b"[g::1]",
        b"a, b",
        b"<script>",
    ],
)
def test_what_is_no_host_is_refused(authority: bytes) -> None:
    """RFC 9110 section 7.2, RFC 3986 section 3.2.2."""
    for parse in (host_of, lambda value: request_field(b"host: " + value)):
        with pytest.raises(Refused) as caught:
            parse(authority)
        kind: Kind = caught.value.failure.kind
        assert kind is BAD_REQUEST
        assert "bad `host` header" in caught.value.failure.message


# ---------------------------------------------------------------------------------------------------------- credentials


@pytest.mark.parametrize(
    ("line", "kind", "key"),
    [
        (b"Authorization: Bearer sk-1", fields.AUTHORIZATION, b"sk-1"),
        (b"authorization: bEARER   sk-1  ", fields.AUTHORIZATION, b"sk-1"),
        (b"authorization: Bearer two words", fields.AUTHORIZATION, b"two words"),
        (b"authorization: Bearer", fields.AUTHORIZATION, None),
        (b"authorization: Bearer ", fields.AUTHORIZATION, None),
        (b"authorization:", fields.AUTHORIZATION, None),
        (b"authorization: Basic c2stMTo=", fields.AUTHORIZATION, None),
        (b"authorization: sk-1", fields.AUTHORIZATION, b"sk-1"),
        (b"X-API-Key: sk-1", fields.X_API_KEY, b"sk-1"),
        (b"x-api-key:", fields.X_API_KEY, None),
        (b"x-api-key: Bearer sk-1", fields.X_API_KEY, b"Bearer sk-1"),
        (b"api-key: sk-1", fields.API_KEY, b"sk-1"),
        (b"x-goog-api-key: sk-1", fields.X_GOOG_API_KEY, b"sk-1"),
        (b"x-aigw-key: sk-1", fields.X_AIGW_KEY, b"sk-1"),
        (b"x-aigw-key: ", fields.X_AIGW_KEY, None),
    ],
)
def test_a_credential_is_known_by_its_digest(line: bytes, kind: int, key: bytes | None) -> None:
    field = request_field(line)
    assert (field.kind, field.line) == (kind, line)
    assert field.digest == (None if key is None else sha(key))


def test_digest() -> None:
    assert digest(b"key") == sha(b"key")
    assert digest(b"") is None


def test_repr_holds_no_secret() -> None:
    assert repr(request_field(b"x-api-key: canary")) == f"<Field kind {fields.X_API_KEY}>"


def test_line_name() -> None:
    assert line_name(b"X-Team: a:b") == b"x-team"


# ------------------------------------------------------------------------------------------------------ accept-encoding


@pytest.mark.parametrize(
    ("value", "narrowed"),
    [
        (b"gzip", b"gzip"),
        (b"GZIP, x-gzip", b"gzip"),  # two names of one coding (RFC 9110 section 8.4.1.3)
        (b"x-gzip;q=0.5", b"gzip;q=0.5"),
        (b"gzip, deflate, br, zstd", b"gzip"),
        (b"br;q=1.0, gzip;q=0.5", b"gzip;q=0.5"),
        (b"br", b"identity"),
        (b"", b"identity"),
        (b"identity", b"identity"),
        (b"gzip;q=0", b"gzip;q=0"),
        (b"gzip;q=0, identity", b"gzip;q=0, identity"),
        (b"gzip;level=9, identity", b"identity"),
        (b"gzip\t;\tq=0.5", b"gzip;\tq=0.5"),
        (b"*", b"gzip"),
        (b"*;q=0.5", b"gzip;q=0.5"),
        (b"identity, *;q=0", b"identity, *;q=0"),
        (b"gzip;q=0.1, *", b"gzip;q=0.1"),
    ],
)
def test_accept_encoding_is_narrowed(value: bytes, narrowed: bytes) -> None:
    field = request_field(b"Accept-Encoding: " + value)
    assert field.kind == fields.ACCEPT_ENCODING
    assert field.line == b"accept-encoding: " + narrowed


def accepts(value: bytes, coding: bytes) -> bool:
    """May a server answer in `coding`? By RFC 9110 section 12.5.3, from a field's value."""
    named: dict[bytes, bool] = {}
    for item in value.split(b","):
        name, _, weight = item.strip().partition(b";")
        if name:
            named[name.strip().lower().removeprefix(b"x-")] = not weight.strip().startswith(b"q=0") or bool(
                weight.strip(b" q=.0")
            )
    return named.get(coding, named.get(b"*", coding == b"identity"))


WEIGHTS = st.sampled_from([b"", b"", b";q=1", b";q=0.5", b"; q=0", b";q=0.000", b" ;q=0.001"])
CODINGS = st.lists(
    st.sampled_from([b"gzip", b"x-gzip", b"identity", b"br", b"zstd", b"*"]),
    max_size=5,
    unique_by=lambda coding: coding.removeprefix(b"x-"),
)


@STEADY
@given(CODINGS, st.lists(WEIGHTS, min_size=5, max_size=5))
def test_accept_encoding_is_never_widened(codings: list[bytes], weights: list[bytes]) -> None:
    items = [coding + weight for coding, weight in zip(codings, weights, strict=False)]
    value = b", ".join(items)
    narrowed = request_field(b"accept-encoding: " + value).line.partition(b": ")[2]
    for coding in (b"gzip", b"br", b"zstd", b"deflate"):
        assert accepts(value, coding) or not accepts(narrowed, coding), (value, narrowed, coding)
    # where the client takes neither gzip nor identity, something has to be asked for all the same
    if accepts(value, b"gzip"):
        assert accepts(value, b"identity") or not accepts(narrowed, b"identity"), (value, narrowed)
    assert not any(accepts(narrowed, coding) for coding in (b"br", b"zstd", b"deflate"))


def test_the_shared_verdicts_are_bare() -> None:
    for field in (FORWARDED, DROPPED):
        assert isinstance(field, Field)
        assert (field.line, field.value, field.number, field.text, field.digest) == (b"", b"", 0, "", None)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([b"retry-after: 7"], 7.0),
        ([b"Retry-After:7 "], 7.0),
        ([b"retry-after: 1.5"], 1.5),
        ([b"retry-after: 0"], 0.0),
        ([b"retry-after-ms: 250"], 0.25),
        ([b"retry-after: 7", b"retry-after-ms: 250.5"], 0.2505),
        ([b"retry-after-ms: soon", b"retry-after: 7"], 7.0),
        ([b"retry-after: Fri, 01 Jan 2027 00:00:10 GMT"], 10.0),
        ([b"retry-after: Fri, 01 Jan 2027 00:00:00 GMT"], 0.0),
        ([b"retry-after: Thu, 31 Dec 2026 00:00:00 GMT"], 0.0),
        ([b"retry-after: -1"], None),
        ([b"retry-after: 1e9"], None),
        ([b"retry-after: inf"], None),
        ([b"retry-after: " + b"9" * 400], None),
        ([b"retry-after: \xff"], None),
        ([b"retry-after:"], None),
        ([b"x-retry-after: 7"], None),
        ([], None),
    ],
)
def test_how_long_an_answer_asks_to_wait(lines: list[bytes], seconds: float | None) -> None:
    assert retry_after(lines, 1798761600.0) == seconds
