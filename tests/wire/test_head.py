"""Heads: what is understood, what is refused and by which rule, and that what is remembered changes neither."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smuggling.strict import host_name, read_head

from aigw.errors import (
    BAD_REQUEST,
    BAD_VERSION,
    EXPECTATION_FAILED,
    HEAD_TOO_LARGE,
    METHOD_NOT_ALLOWED,
    UPSTREAM_MALFORMED,
    URI_TOO_LONG,
    Failure,
    Kind,
    Refused,
)
from aigw.wire.fields import MAX_LINE, MAX_REMEMBERED, MEMO_SIZE, TOKEN, VALUE, Field
from aigw.wire.head import MOST_HEADS, HeadBounds, RequestHead, RequestLine, RequestParser, ResponseHead, ResponseParser

STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BOUNDS = HeadBounds()


def facts(value: Any) -> Any:
    """All that a head says, in a form that compares."""
    if isinstance(value, RequestHead | ResponseHead | RequestLine | Field):
        names = [name for name in dir(value) if not name.startswith("_") and not callable(getattr(value, name))]
        return {name: facts(getattr(value, name)) for name in names}
    return [facts(item) for item in value] if isinstance(value, list) else value


def request(*lines: bytes, bounds: HeadBounds = BOUNDS, parser: RequestParser | None = None) -> RequestHead:
    return (parser or RequestParser()).parse(b"\r\n".join(lines), bounds)


def response(*lines: bytes, bounds: HeadBounds = BOUNDS, parser: ResponseParser | None = None) -> ResponseHead:
    return (parser or ResponseParser()).parse(b"\r\n".join(lines), bounds)


def refusal(parser: RequestParser | ResponseParser, block: bytes, bounds: HeadBounds = BOUNDS) -> Failure:
    with pytest.raises(Refused) as caught:
        parser.parse(block, bounds)
    return caught.value.failure


def get(target: bytes = b"/", *lines: bytes) -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"host: gw", *lines])


def post(*lines: bytes) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"host: gw", *lines])


# ----------------------------------------------------------------------------------------- requests that are understood


def test_a_request_as_an_sdk_sends_it() -> None:
    head = request(
        b"POST /v1/chat/completions?beta=true HTTP/1.1",
        b"Host: Gateway.example:8081",
        b"Accept: application/json",
        b"Accept-Encoding: gzip, deflate, br",
        b"Authorization: Bearer sk-aigw-1",
        b"Connection: keep-alive",
        b"Content-Length: 42",
        b"Content-Type: application/json",
        b"Cookie: a=b",
        b"X-Request-Id: abc-1",
        b"X-Stainless-Retry-Count:  0 ",
    )
    line = head.line
    assert (line.method, line.verb, line.path, line.query) == ("POST", b"POST", b"/v1/chat/completions", b"beta=true")
    assert (line.minor, line.canonical, line.named_host) == (1, None, None)
    assert head.kept == [
        b"Accept: application/json",
        b"X-Stainless-Retry-Count:  0 ",
        b"Content-Type: application/json",
    ]
    assert (head.host, head.host_line) == ("gateway.example", b"Host: Gateway.example:8081")
    assert (head.length, head.close, head.expect) == (42, False, False)
    assert [field.line for field in head.credentials] == [b"Authorization: Bearer sk-aigw-1"]
    assert head.cookies == [b"Cookie: a=b"]
    assert head.accept_encoding == b"accept-encoding: gzip"
    assert head.request_id == b"abc-1"
    assert (head.content_type, head.content_encoding) == (b"application/json", b"")
    assert not head.has_anthropic
    assert not head.has_gemini


def test_what_a_request_does_not_say() -> None:
    head = request(b"GET /x HTTP/1.1", b"host: gw")
    assert (head.length, head.kept, head.credentials, head.cookies) == (0, [], [], [])
    assert (head.accept_encoding, head.request_id, head.content_type, head.content_encoding) == (None, None, b"", b"")
    assert head.line.query is None


def test_the_rest_of_what_is_looked_at() -> None:
    head = request(
        b"POST / HTTP/1.1",
        b"host: gw",
        b"transfer-encoding: CHUNKED",
        b"expect: 100-continue",
        b"content-encoding: GZip",
        b"anthropic-version: 2023-06-01",
        b"x-goog-api-client: genai-py",
        b"connection: close",
        b"te: trailers",
        b"upgrade: h2c",
        b"proxy-connection: keep-alive",
    )
    assert (head.length, head.expect, head.close) == (None, True, True)
    assert (head.content_encoding, head.has_anthropic, head.has_gemini) == (b"gzip", True, True)
    assert head.kept == [b"content-encoding: GZip", b"anthropic-version: 2023-06-01", b"x-goog-api-client: genai-py"]


def test_a_switch_of_protocols_is_not_forwarded() -> None:
    head = request(
        b"GET / HTTP/1.1", b"host: gw", b"connection: Upgrade", b"upgrade: websocket", b"sec-websocket-key: a"
    )
    assert head.kept == [b"sec-websocket-key: a"]
    assert request(b"POST / HTTP/1.1", b"host: gw", b"connection: upgrade, http2-settings", b"upgrade: h2c").kept == []


def test_http_1_0() -> None:
    head = request(b"GET / HTTP/1.0", b"connection: keep-alive", b"expect: 100-continue")
    assert (head.line.minor, head.host, head.host_line) == (0, "", b"")
    assert head.close  # one answer a connection, whatever it asks for
    assert not head.expect  # RFC 9110 section 10.1.1: ignored in HTTP/1.0
    assert request(b"GET / HTTP/1.0", b"Host: gw").host == "gw"


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", None),
        (b"/?", b"/", b""),
        (b"/a?b?c=d", b"/a", b"b?c=d"),
        (b"/?a=%zz", b"/", b"a=%zz"),
        (b"/v1beta/models/x:generateContent?alt=sse", b"/v1beta/models/x:generateContent", b"alt=sse"),
        (b"/%41%2fb", b"/%41%2fb", None),
        (b"http://gw", b"/", None),
        (b"HTTP://GW:80/a?b", b"/a", b"b"),
        (b"https://gw?b", b"/", b"b"),
    ],
)
def test_targets(target: bytes, path: bytes, query: bytes | None) -> None:
    """RFC 9112 section 3.2; the absolute form of section 3.2.2 only where it names the same host as `host`."""
    line = request(b"GET " + target + b" HTTP/1.1", b"host: gw").line
    assert (line.path, line.query, line.size) == (path, query, len(target))
    assert line.named_host == (None if target.startswith(b"/") else "gw")


def test_a_refused_method_is_told_the_others() -> None:
    failure = refusal(RequestParser(), b"TRACE / HTTP/1.1\r\nhost: gw")
    assert failure.allow == "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"


@pytest.mark.parametrize("method", [b"BREW", b"M-SEARCH", b"DESCRIBE", b"PRI", b"SOURCE", b"X_Y", b"A" * 32])
def test_methods_are_open(method: bytes) -> None:
    """Whether llhttp knows them or not (RFC 9110 section 16.1)."""
    head = request(method + b" /a HTTP/1.1", b"host: gw", b"content-length: 3")
    assert (head.line.verb, head.length) == (method, 3)


def test_blanks_around_a_coding() -> None:
    for value in (b"chunked", b" \tchunked", b"chunked \t", b"\tChunked\t"):
        assert request(b"POST / HTTP/1.1", b"host: gw", b"transfer-encoding:" + value).length is None


def test_options_of_the_whole_server() -> None:
    line = request(b"OPTIONS * HTTP/1.1", b"host: gw").line
    assert (line.method, line.path, line.size) == ("OPTIONS", b"*", 1)
    assert request(b"OPTIONS * HTTP/1.0").line.minor == 0


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"/a//b", b"/a/b"),
        (b"//a", b"/a"),
        (b"//", b"/"),
        (b"/a%2Fb", b"/a/b"),
        (b"/%61", b"/a"),
        (b"/a;v=1/b", b"/a/b"),
        (b"/a;v=1/", b"/a/"),
        (b"/a\\b", b"/a/b"),
        (b"/a%5cb", b"/a/b"),
        (b"/a%252e", b"/a%2e"),
        (b"/.a/b.", None),
        (b"/...", None),
        (b"/a/", None),
        (b"/a%2f", b"/a/"),
    ],
)
def test_the_path_as_another_reader_might_see_it(path: bytes, canonical: bytes | None) -> None:
    assert request(b"GET " + path + b" HTTP/1.1", b"host: gw").line.canonical == canonical


# -------------------------------------------------------------------------------------------- requests that are refused

REFUSED: list[tuple[bytes, Kind, str]] = [
    # the request line: RFC 9112 section 3
    (b"", BAD_REQUEST, "bad request line"),
    (b"GET", BAD_REQUEST, "bad request line"),
    (b"GET /", BAD_REQUEST, "bad request line"),  # HTTP/0.9
    (b"GET  / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad request line"),
    (b"GET /  HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad request line"),
    (b"GET / HTTP/1.1 \r\nhost: gw", BAD_REQUEST, "bad request line"),
    (b" GET / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad request line"),
    (b"GET\t/\tHTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad request line"),
    (b"GET /a b HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad request line"),
    # the version: RFC 9112 section 2.3
    (b"GET / HTTP/0.9\r\nhost: gw", BAD_VERSION, "use HTTP/1.1"),
    (b"GET / HTTP/1.2\r\nhost: gw", BAD_VERSION, "use HTTP/1.1"),
    (b"GET / HTTP/2.0\r\nhost: gw", BAD_VERSION, "use HTTP/1.1"),
    (b"PRI * HTTP/2.0", BAD_VERSION, "use HTTP/1.1"),
    (b"GET / HTTP/2\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / http/1.1\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / HTTP/1.10\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / HTTP/01.1\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / HTTP/1.1\r\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / HTTP/1.1\0\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / RTSP/1.0\r\nhost: gw", BAD_REQUEST, "bad HTTP version"),
    (b"GET / HTTP/1.1\nhost:gw", BAD_REQUEST, "bad HTTP version"),  # bare LF: RFC 9112 section 2.2
    # the method: RFC 9110 section 9.1
    (b"G(T / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b"GE\xc3\x89 / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b"\0GET / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b"\nGET / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b"A" * 33 + b" / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b" / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "bad method"),
    (b"get / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "a short word in upper case"),
    (b"Get / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "a short word in upper case"),
    (b"0GET / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "a short word in upper case"),
    # its answer would hold what the gateway adds: RFC 9110 section 9.3.8
    (b"TRACE / HTTP/1.1\r\nhost: gw", METHOD_NOT_ALLOWED, "TRACE is not served here"),
    (b"TRACK / HTTP/1.1\r\nhost: gw", METHOD_NOT_ALLOWED, "TRACK is not served here"),
    # the target: RFC 9112 section 3.2, RFC 3986
    (b"GET  HTTP/1.1\r\nhost: gw", BAD_REQUEST, "request target"),
    (get(b"/\0"), BAD_REQUEST, "request target"),
    (get(b"/\t"), BAD_REQUEST, "request target"),
    (get(b"/\rx"), BAD_REQUEST, "request target"),
    (get(b"/\nx"), BAD_REQUEST, "request target"),
    (get(b"/\x7f"), BAD_REQUEST, "request target"),
    (get(b"/\xc3\xa9"), BAD_REQUEST, "request target"),
    (get(b"/a#b"), BAD_REQUEST, "fragment"),
    (get(b"/%"), BAD_REQUEST, "percent-encoding"),
    (get(b"/%4"), BAD_REQUEST, "percent-encoding"),
    (get(b"/%g1"), BAD_REQUEST, "percent-encoding"),
    (get(b"*"), BAD_REQUEST, "must be a path"),
    (get(b"a/b"), BAD_REQUEST, "must be a path"),
    (get(b"?a"), BAD_REQUEST, "must be a path"),
    (get(b"ftp://gw/"), BAD_REQUEST, "must be a path"),
    (get(b"http:///a"), BAD_REQUEST, "must be a path"),
    (get(b"http:/gw/"), BAD_REQUEST, "must be a path"),
    (get(b"gw:80"), BAD_REQUEST, "must be a path"),
    (b"OPTIONS */x HTTP/1.1\r\nhost: gw", BAD_REQUEST, "must be a path"),
    (b"CONNECT gw:443 HTTP/1.1\r\nhost: gw", BAD_REQUEST, "must be a path"),
    (b"CONNECT http://gw/ HTTP/1.1\r\nhost: gw", BAD_REQUEST, "must be a path"),
    (b"CONNECT / HTTP/1.1\r\nhost: gw", BAD_REQUEST, "no forward proxy"),
    (get(b"http://u:p@gw/"), BAD_REQUEST, "bad `host`"),
    (get(b"http://gw:99999/"), BAD_REQUEST, "bad `host`"),
    (get(b"http://evil/"), BAD_REQUEST, "another host"),
    (b"GET http://gw/ HTTP/1.0", BAD_REQUEST, "another host"),
    # dot segments and NUL, however they are spelled
    (get(b"/../x"), BAD_REQUEST, "`..` segment"),
    (get(b"/a/.."), BAD_REQUEST, "`..` segment"),
    (get(b"/a/./b"), BAD_REQUEST, "`..` segment"),
    (get(b"/."), BAD_REQUEST, "`..` segment"),
    (get(b"/%2e%2E/x"), BAD_REQUEST, "`..` segment"),
    (get(b"/a/.%2e/x"), BAD_REQUEST, "`..` segment"),
    (get(b"/a%2f..%2fx"), BAD_REQUEST, "`..` segment"),
    (get(b"/a\\..\\x"), BAD_REQUEST, "`..` segment"),
    (get(b"/a/..;x=1/b"), BAD_REQUEST, "`..` segment"),
    (get(b"/a/..%3bx/b"), BAD_REQUEST, "`..` segment"),
    (get(b"/a%00b"), BAD_REQUEST, "NUL"),
    # Host: RFC 9112 section 3.2
    (b"GET / HTTP/1.1", BAD_REQUEST, "exactly one `host`"),
    (get(b"/", b"host: gw"), BAD_REQUEST, "exactly one `host`"),
    (get(b"/", b"Host: other"), BAD_REQUEST, "exactly one `host`"),
    (b"GET / HTTP/1.0\r\nhost: a\r\nhost: b", BAD_REQUEST, "exactly one `host`"),
    (b"GET / HTTP/1.1\r\nhost:", BAD_REQUEST, "bad `host`"),
    (b"GET / HTTP/1.1\r\nhost: a@b", BAD_REQUEST, "bad `host`"),
    (b"GET / HTTP/1.1\r\nhost: a, b", BAD_REQUEST, "bad `host`"),
    # framing: RFC 9112 section 6
    (post(b"content-length: 1", b"content-length: 1"), BAD_REQUEST, "more than one content-length"),
    (post(b"content-length: 1", b"content-length: 2"), BAD_REQUEST, "more than one content-length"),
    (post(b"content-length: 1, 1"), BAD_REQUEST, "plain decimal"),
    (post(b"content-length: -1"), BAD_REQUEST, "plain decimal"),
    (post(b"content-length: 1", b"transfer-encoding: chunked"), BAD_REQUEST, "two framings"),
    (post(b"transfer-encoding: chunked", b"content-length: 1"), BAD_REQUEST, "two framings"),
    (post(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), BAD_REQUEST, "two framings"),
    (post(b"transfer-encoding: chunked, chunked"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: gzip, chunked"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: identity, chunked"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: , chunked"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: chunked,"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: chunked;q=1"), BAD_REQUEST, "exactly `chunked`"),
    (post(b'transfer-encoding: "chunked"'), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: xchunked"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: identity"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding:"), BAD_REQUEST, "exactly `chunked`"),
    (post(b"transfer-encoding: \x0bchunked"), BAD_REQUEST, "control byte"),
    (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked", BAD_REQUEST, "HTTP/1.0"),
    (post(b"transfer-encoding : chunked"), BAD_REQUEST, "blank before the colon"),
    (post(b"content-length: 1", b" transfer-encoding: chunked"), BAD_REQUEST, "folded"),
    # two values where readers take the first or the last: RFC 9110 section 5.3
    (post(b"content-type: multipart/form-data; boundary=a", b"content-type: text/plain"), BAD_REQUEST, "content-type"),
    # lines: RFC 9112 section 5
    (get(b"/", b"a: b\n c: d"), BAD_REQUEST, "control byte"),
    (get(b"/", b"a: b", b"\tc"), BAD_REQUEST, "without a colon"),
    (get(b"/", b"a: b", b"\tc: d"), BAD_REQUEST, "folded"),
    (get(b"/", b"a: b\0"), BAD_REQUEST, "control byte"),
    (get(b"/", b"", b"a: b"), BAD_REQUEST, "without a colon"),
    (get(b"/", b"expect: 200-ok"), EXPECTATION_FAILED, "100-continue"),
    # sizes
    (get(b"/", *(b"a: b" for _ in range(100))), HEAD_TOO_LARGE, "more than 100 header lines (bounds.headers)"),
    (get(b"/", b"a: " + b"b" * MAX_LINE), HEAD_TOO_LARGE, "a line of more than 16384 bytes"),
    (get(b"/", *[b"a: " + b"b" * 16000] * 3), HEAD_TOO_LARGE, "more than 32768 bytes (bounds.head)"),
    (get(b"/" + b"a" * BOUNDS.url), URI_TOO_LONG, "more than 16384 bytes (bounds.url)"),
]


@pytest.mark.parametrize(("block", "kind", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_request_is_refused(block: bytes, kind: Kind, words: str) -> None:
    """By a fresh parser and by one that knows many lines; and nothing of it is remembered."""
    for parser in (RequestParser(), knowing()):
        lines, firsts = dict(parser.lines), dict(parser.firsts)
        failure = refusal(parser, block)
        assert (failure.kind, words in failure.message) == (kind, True), failure
        assert (parser.lines, parser.firsts) == (lines, firsts)


def knowing() -> RequestParser:
    """A parser that has seen the request lines and header lines that hostile heads are made of."""
    parser = RequestParser()
    for line in (b"content-length: 1", b"content-length: 2", b"transfer-encoding: chunked"):
        parser.parse(post(line), BOUNDS)
    for first in (b"POST / HTTP/1.0", b"GET / HTTP/1.0", b"GET http://gw/ HTTP/1.1", b"GET http://evil/ HTTP/1.1"):
        parser.parse(first + b"\r\nhost: " + (b"evil" if b"evil" in first else b"gw"), BOUNDS)
    parser.parse(get(b"/", b"a: b", b"content-type: text/plain"), BOUNDS)
    parser.parse(get(b"/", b"content-type: multipart/form-data; boundary=a"), BOUNDS)
    for host in (b"host: other", b"Host: other", b"host: a", b"host: b"):
        parser.parse(b"GET / HTTP/1.1\r\n" + host, BOUNDS)
    return parser


def test_what_is_just_within_the_bounds() -> None:
    request(b"GET / HTTP/1.1", b"host: gw", *(b"a: b" for _ in range(99)))
    request(b"GET / HTTP/1.1", b"host: gw", b"a: " + b"b" * (MAX_LINE - 3))
    request(b"GET /" + b"a" * (BOUNDS.url - 1) + b" HTTP/1.1", b"host: gw")
    block = get(b"/", b"a: " + b"b" * 16000, b"a: " + b"b" * 16000, b"a: ")
    request(block + b"b" * (BOUNDS.head - len(block)))


def test_a_refusal_holds_no_secret() -> None:
    """What was sent may be a key; the message says what was wrong without repeating it."""
    for block in (
        get(b"/", b"authorization: Bearer canary\0"),
        get(b"/?key=canary#x"),
        b"canary",
        get(b"/", b"host: canary"),
        get(b"/", b"canary"),
        get(b"/", b"expect: canary"),
        post(b"content-length: canary"),
        b"GET / HTTP/1.1\r\nhost: canary@x",
        b"canary / HTTP/1.1\r\nhost: gw",
    ):
        assert "canary" not in refusal(RequestParser(), block).message.lower()


def test_repr_holds_no_secret() -> None:
    head = request(b"GET /a?key=canary HTTP/1.1", b"host: gw", b"x-api-key: canary", b"x: y")
    assert repr(head) == "<RequestHead GET b'/a' 1 kept>"
    assert repr(head.line) == "<RequestLine GET b'/a'>"
    assert repr(response(b"HTTP/1.1 200 OK", b"content-length: 3")) == "<ResponseHead 200 length 3 chunked False>"


# ----------------------------------------------------------------------------------------------------------- Connection


@pytest.mark.parametrize(
    ("value", "close", "kept"),
    [
        (b"keep-alive", False, [b"x-a: 1", b"x-b: 2"]),
        (b"Keep-Alive, X-A", False, [b"x-b: 2"]),
        (b"Close", True, [b"x-a: 1", b"x-b: 2"]),
        (b"close, x-a,x-b ,", True, []),
        (b"x-a, close", True, [b"x-b: 2"]),
        (b"", False, [b"x-a: 1", b"x-b: 2"]),
    ],
)
def test_what_connection_names_is_not_forwarded(value: bytes, close: bool, kept: list[bytes]) -> None:
    """RFC 9110 section 7.6.1, in both directions."""
    lines = (b"x-a: 1", b"connection: " + value, b"x-b: 2")
    asked = request(b"GET / HTTP/1.1", b"host: gw", *lines)
    assert (asked.close, asked.kept) == (close, kept)
    answered = response(b"HTTP/1.1 200 OK", b"content-length: 0", *lines)
    assert (answered.close, answered.kept) == (close, [b"content-length: 0", *kept])


@pytest.mark.parametrize(
    ("value", "named"),
    [(b"close, keep-alive ,", False), (b"", False), (b"close, x-none", True), (b"Host", True)],
)
def test_whether_connection_named_anything(value: bytes, named: bool) -> None:
    """Also what this head does not have: another one like it may."""
    assert bool(request(b"GET / HTTP/1.1", b"host: gw", b"connection: " + value).named) == named


def test_connection_headers_add_up() -> None:
    head = request(
        b"GET / HTTP/1.1",
        b"host: gw",
        b"connection: x-a",
        b"connection: close",
        b"connection: X-B",
        b"x-a: 1",
        b"x-b: 1",
    )
    assert (head.close, head.kept) == (True, [])


def test_connection_cannot_strip_what_the_gateway_relies_on() -> None:
    named = b"connection: host, content-length, authorization, x-api-key, x-aigw-key, x-request-id, accept-encoding"
    head = request(
        b"POST / HTTP/1.1",
        named,
        b"host: gw",
        b"content-length: 5",
        b"authorization: Bearer a",
        b"x-aigw-key: b",
        b"x-request-id: c",
        b"accept-encoding: gzip",
    )
    assert (head.host, head.host_line, head.length, head.request_id) == ("gw", b"host: gw", 5, b"c")
    assert [field.line for field in head.credentials] == [b"authorization: Bearer a", b"x-aigw-key: b"]
    assert head.accept_encoding == b"accept-encoding: gzip"
    assert (
        request(b"POST / HTTP/1.1", b"host: gw", b"transfer-encoding: chunked", b"connection: transfer-encoding").length
        is None
    )


def test_connection_cannot_strip_a_response_of_its_framing() -> None:
    """Without its length the client could not tell where the relayed body ends (RFC 9112 section 6.3)."""
    head = response(b"HTTP/1.1 200 OK", b"connection: content-length", b"content-length: 5")
    assert (head.length, head.kept) == (5, [b"content-length: 5"])


@pytest.mark.parametrize("lines", [(b"gzip", b"identity"), (b"identity", b"gzip")])
def test_no_content_encoding_hides_behind_another(lines: tuple[bytes, bytes]) -> None:
    """Two lines are one list (RFC 9110 section 5.3): a reader of the body must not take it for uncoded."""
    try:
        head = request(b"POST / HTTP/1.1", b"host: gw", *(b"content-encoding: " + line for line in lines))
    except Refused:
        return
    assert b"gzip" in head.content_encoding


# ------------------------------------------------------------------------------------------------------------ responses


def test_a_response() -> None:
    head = response(
        b"HTTP/1.1 200 OK",
        b"Date: now",
        b"Content-Type: application/json",
        b"Content-Length: 7",
        b"Content-Encoding: GZIP",
        b"Keep-Alive: timeout=5, max=100",
        b"Set-Cookie: a=b",
        b"Set-Cookie: c=d",
        b"X-Request-Id: req_1",
        b"Request-Id: req_2",
        b"X-Aigw-Model: spoofed",
        b"Proxy-Authenticate: Basic",
        b"Upgrade: h2",
    )
    assert (head.minor, head.status, head.reason) == (1, 200, b"OK")
    assert head.kept == [
        b"Date: now",
        b"Content-Type: application/json",
        b"Content-Length: 7",
        b"Content-Encoding: GZIP",
        b"Request-Id: req_2",
    ]
    assert (head.length, head.chunked, head.close, head.keep_alive) == (7, False, False, 5)
    assert head.cookies == [b"Set-Cookie: a=b", b"Set-Cookie: c=d"]
    assert (head.request_id, head.own_id) == (b"req_1", b"req_2")
    assert (head.content_type, head.content_encoding) == (b"application/json", b"gzip")


@pytest.mark.parametrize(
    ("line", "minor", "status", "reason"),
    [
        (b"HTTP/1.1 200", 1, 200, b""),
        (b"HTTP/1.1 200 ", 1, 200, b""),
        (b"HTTP/1.0 404 Not Found", 0, 404, b"Not Found"),
        (b"HTTP/1.1 599 \xc3\xa9\t!", 1, 599, b"\xc3\xa9\t!"),
        (b"HTTP/1.1 100 Continue", 1, 100, b"Continue"),
        (b"HTTP/1.1 101 Switching", 1, 101, b"Switching"),
    ],
)
def test_status_lines(line: bytes, minor: int, status: int, reason: bytes) -> None:
    """RFC 9112 section 4."""
    head = response(line)
    assert (head.minor, head.status, head.reason) == (minor, status, reason)
    assert (head.length, head.chunked, head.close) == (-1, False, minor == 0)


def test_a_chunked_response() -> None:
    head = response(b"HTTP/1.1 200 OK", b"Transfer-Encoding: Chunked", b"trailer: x")
    assert (head.chunked, head.length, head.kept) == (True, -1, [b"trailer: x"])


OK = b"HTTP/1.1 200 OK\r\n"
BAD_RESPONSES: list[tuple[bytes, str]] = [
    (b"", "status line"),
    (b"HTTP/1.1", "status line"),
    (b"HTTP/1.1 ", "status line"),
    (b"HTTP/1.1 20 OK", "status line"),
    (b"HTTP/1.1 2000 OK", "status line"),
    (b"HTTP/1.1 099 OK", "status line"),
    (b"HTTP/1.1 600 OK", "status line"),
    (b"HTTP/1.1  200 OK", "status line"),
    (b"HTTP/1.1\t200 OK", "status line"),
    (b"HTTP/1.1 200OK", "status line"),
    (b"HTTP/2.0 200 OK", "status line"),
    (b"HTTP/1.2 200 OK", "status line"),
    (b"http/1.1 200 OK", "status line"),
    (b"ICY 200 OK", "status line"),
    (b"HTTP/1.1 200 a\0b", "status line"),
    (b"HTTP/1.1 200 OK\r", "status line"),
    (b"HTTP/1.1 200 OK\nx: y", "status line"),
    (b" HTTP/1.1 200 OK", "status line"),
    (OK + b"content-length: 1\r\ncontent-length: 1", "more than one framing"),
    (OK + b"content-length: 1\r\ncontent-length: 2", "more than one framing"),
    (OK + b"content-length: 1\r\ntransfer-encoding: chunked", "more than one framing"),
    (OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked", "more than one framing"),
    (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked", "more than one framing"),
    (OK + b"content-length: x", "plain decimal"),
    (OK + b"content-length: 1, 1", "plain decimal"),
    (OK + b"content-length: " + b"9" * 20, "plain decimal"),
    (OK + b"transfer-encoding: gzip, chunked", "not exactly `chunked`"),
    (OK + b"transfer-encoding: chunked, chunked", "not exactly `chunked`"),
    (OK + b"transfer-encoding: identity", "not exactly `chunked`"),
    (OK + b"transfer-encoding:", "not exactly `chunked`"),
    (OK + b"a : b", "blank before the colon"),
    (OK + b"a: b\r\n c", "without a colon"),
    (OK + b"a: b\r\n c: d", "folded"),
    (OK + b"a: b\0", "control byte"),
    (OK + b"a: b\rc: d", "control byte"),
    (OK + b"a: b\nc: d", "control byte"),
    (OK + b"nothing", "without a colon"),
    (OK + b"connection: a b", "bad `connection`"),
    (OK + b"a: " + b"b" * MAX_LINE, "a line of more than"),
    (b"HTTP/1.1 200 " + b"a" * MAX_LINE, "line"),
    (OK + b"\r\n".join([b"a: b"] * 101), "larger than bounds.head or bounds.headers"),
    (OK + b"\r\n".join([b"a: " + b"b" * 11000] * 3), "larger than bounds.head or bounds.headers"),
]


@pytest.mark.parametrize(("block", "words"), BAD_RESPONSES, ids=range(len(BAD_RESPONSES)))
def test_a_response_is_refused(block: bytes, words: str) -> None:
    knows = ResponseParser()
    for line in (b"content-length: 1", b"content-length: 2", b"transfer-encoding: chunked", b"a: b"):
        knows.parse(OK + line, BOUNDS)
    for parser in (ResponseParser(), knows):
        lines, firsts, heads = dict(parser.lines), dict(parser.firsts), dict(parser.heads)
        failure = refusal(parser, block)
        assert (failure.kind, words in failure.message) == (UPSTREAM_MALFORMED, True), failure
        assert (parser.lines, parser.firsts, parser.heads) == (lines, firsts, heads)


# --------------------------------------------------------------------------------------------------------- what is kept


def test_the_second_parse_is_the_first() -> None:
    block = get(b"/a?key=k", b"x: y", b"authorization: Bearer z", b"content-length: 3", b"connection: x")
    parser = RequestParser()
    first = parser.parse(block, BOUNDS)
    assert parser.lines
    assert parser.firsts
    second = parser.parse(block, BOUNDS)
    assert facts(first) == facts(second)
    assert first.kept is not second.kept
    assert second.line is first.line


def test_bounds_are_honoured_though_lines_are_remembered() -> None:
    parser = RequestParser()
    block = get(b"/12345", b"a: 1", b"b: 2")
    parser.parse(block, BOUNDS)
    assert refusal(parser, block, HeadBounds(url=5)).kind is URI_TOO_LONG
    assert refusal(parser, block, HeadBounds(headers=2)).kind is HEAD_TOO_LARGE
    assert refusal(parser, block, HeadBounds(head=len(block) - 1)).kind is HEAD_TOO_LARGE
    parser.parse(block, HeadBounds(head=len(block), headers=3, url=6))
    absolute = b"GET http://gw/ HTTP/1.1\r\nhost: gw"
    parser.parse(absolute, BOUNDS)
    assert refusal(parser, absolute, HeadBounds(url=9)).kind is URI_TOO_LONG  # what was sent counts, not the path
    answers = ResponseParser()
    answers.parse(OK + b"a: 1\r\nb: 2", BOUNDS)
    assert refusal(answers, OK + b"a: 1\r\nb: 2", HeadBounds(headers=1)).kind is UPSTREAM_MALFORMED


def test_long_lines_are_not_remembered() -> None:
    parser = RequestParser()
    long = b"a: " + b"b" * MAX_REMEMBERED
    for _ in range(2):
        assert request(b"GET /" + b"x" * MAX_REMEMBERED + b" HTTP/1.1", b"host: gw", long, parser=parser).kept == [long]
    assert (list(parser.lines), list(parser.firsts)) == ([b"host: gw"], [])


def test_a_long_status_line_is_not_taken_for_a_shorter_one() -> None:
    parser = ResponseParser()
    long = b"HTTP/1.1 200 " + b"a" * MAX_REMEMBERED
    for line in (long, long[:MAX_REMEMBERED]):
        assert response(line, parser=parser).reason == line[13:]


def test_a_full_memo_starts_anew() -> None:
    parser = RequestParser()
    answers = ResponseParser()
    for start in range(0, MEMO_SIZE + 90, 90):
        lines = [b"x-%d: y" % i for i in range(start, start + 90)]
        assert request(b"GET / HTTP/1.1", b"host: gw", *lines, parser=parser).kept == lines
        assert response(b"HTTP/1.1 200 OK", *lines, parser=answers).kept == lines
        assert len(parser.lines) <= MEMO_SIZE
        assert len(answers.lines) <= MEMO_SIZE
    assert len(parser.lines) < 200
    assert len(answers.lines) < 200
    for i in range(MEMO_SIZE + 10):
        parser.parse(get(b"/%d" % i), BOUNDS)
        assert len(parser.firsts) <= MEMO_SIZE
    assert len(parser.firsts) < 20
    assert facts(parser.parse(get(b"/1"), BOUNDS)) == facts(RequestParser().parse(get(b"/1"), BOUNDS))


def test_whole_response_heads_are_remembered() -> None:
    """For callers to look into first."""
    parser = ResponseParser()
    block = OK + b"a: 1"
    head = parser.parse(block, BOUNDS)
    assert parser.heads == {block: head}
    with pytest.raises(Refused):
        parser.parse(OK + b"a : 1", BOUNDS)
    assert parser.heads == {block: head}


def test_a_response_head_is_bounded_by_what_was_sent() -> None:
    """Not by what of it is forwarded: cookies and connection headers are lines too."""
    parser = ResponseParser()
    block = b"\r\n".join([b"HTTP/1.1 200 OK", b"set-cookie: a", b"set-cookie: b", b"set-cookie: c"])
    assert refusal(parser, block, HeadBounds(headers=2)).kind is UPSTREAM_MALFORMED
    assert refusal(parser, block, HeadBounds(head=len(block) - 1)).kind is UPSTREAM_MALFORMED
    parser.parse(block, HeadBounds(head=len(block), headers=3))


def test_a_copy_of_a_response_head_is_the_same() -> None:
    head = response(
        *(b"HTTP/1.0 429 Slow Down", b"content-length: 5", b"content-type: text/plain", b"content-encoding: gzip"),
        *(b"set-cookie: a=b", b"x-request-id: one", b"request-id: two", b"retry-after: 1"),
    )
    head.way = 1
    same = facts(head)
    assert facts(head.copied()) == same
    head.prefix, head.limitless, head.candidate = b"written", b"written", object()
    assert facts(head.copied()) == same


def test_few_response_heads_are_remembered() -> None:
    parser = ResponseParser()
    for i in range(1000):
        parser.parse(b"HTTP/1.1 200 OK\r\nx-id: %d" % i, BOUNDS)
        assert len(parser.heads) <= MOST_HEADS


# ----------------------------------------------------------------------------------------------------------- properties

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"QUERY", b"BREW"])
SEGMENTS = st.text("abcXYZ019-_~!$&'()*+,=:@", min_size=1, max_size=8).map(str.encode) | st.just(b"%C3%A9")
TARGETS = st.tuples(
    st.lists(SEGMENTS, max_size=4).map(lambda parts: b"/" + b"/".join(parts)),
    st.none() | st.text("abc=&?/%;.", max_size=12).map(str.encode),
).map(lambda pair: pair[0] if pair[1] is None else pair[0] + b"?" + pair[1])
NAMES = st.binary(min_size=1, max_size=8).map(lambda raw: b"x-" + bytes(TOKEN[i % len(TOKEN)] for i in raw))
VALUES = st.binary(max_size=16).map(lambda raw: bytes(VALUE[i % len(VALUE)] for i in raw))
PLAIN_LINES = st.tuples(NAMES, st.sampled_from([b":", b": ", b":\t "]), VALUES).map(b"".join)


@st.composite
def valid(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """The block of a request's head, and the lines of it that are to be forwarded."""
    method, target, plain = draw(METHODS), draw(TARGETS), draw(st.lists(PLAIN_LINES, max_size=8))
    lines = [*plain, draw(st.sampled_from([b"host: gw", b"Host:a.example:80 ", b"HOST: [::1]"]))]
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from([b"content-length: 12", b"Transfer-Encoding: chunked"])))
    lines = draw(st.permutations(lines))
    kept = [line for line in lines if line in plain and not line.lower().startswith(b"x-request-id:")]
    return b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines]), kept


@STEADY
@given(valid())
def test_a_valid_head_is_forwarded_byte_for_byte(head: tuple[bytes, list[bytes]]) -> None:
    block, kept = head
    parsed = RequestParser().parse(block, BOUNDS)
    assert parsed.kept == kept
    line = parsed.line
    target = line.path if line.query is None else line.path + b"?" + line.query
    assert b"%b %b HTTP/1.1" % (line.verb, target) == block.split(b"\r\n")[0]


CONTROLS = st.sampled_from([bytes([i]) for i in (*range(9), *range(10, 32), 127)])


@STEADY
@given(valid(), CONTROLS, st.data())
def test_a_control_byte_anywhere_is_refused(
    head: tuple[bytes, list[bytes]], control: bytes, data: st.DataObject
) -> None:
    block = head[0]
    at = data.draw(st.integers(0, len(block)))
    warm = RequestParser()
    warm.parse(block, BOUNDS)
    failure = refusal(RequestParser(), block[:at] + control + block[at:])
    assert failure.kind.status in (400, 505)
    assert refusal(warm, block[:at] + control + block[at:]) == failure


PIECES = st.sampled_from(
    [
        *(b"GET", b"POST", b"get", b" ", b"/a", b"/a?b", b"*", b"http://gw", b"HTTP/1.1", b"HTTP/1.0", b"gw", b":80"),
        *(b"\r\n", b"\r", b"\n", b"\t", b"\0", b":", b",", b"\xe9", b"host", b"content-length", b"transfer-encoding"),
        *(b"chunked", b"connection", b"close", b"expect", b"100-continue", b"x", b"5", b"\r\nhost: gw", b"\r\nx: y"),
    ]
)


@pytest.mark.unmeasured
@settings(STEADY, max_examples=500)
@given(st.lists(PIECES, max_size=16).map(b"".join) | valid().map(lambda head: head[0]), st.data())
def test_what_is_understood_is_understood_alike_by_a_strict_reader(block: bytes, data: st.DataObject) -> None:
    """It shares no code: whatever is accepted here, it takes for a request with this line, these fields, this body."""
    at = data.draw(st.integers(0, len(block)))
    block = block[:at] + data.draw(st.just(b"") | PIECES) + block[at:]
    try:
        head = RequestParser().parse(block, BOUNDS)
    except Refused:
        return
    strict = read_head(block)
    target = head.line.path if head.line.query is None else head.line.path + b"?" + head.line.query
    assert (head.line.verb, head.length, head.line.minor) == (strict.method, strict.length, int(strict.version[-1:]))
    assert target in (strict.target, strict.target.partition(b"gw")[2], b"/")
    assert set(head.kept) <= set(strict.lines)
    assert [host_name(host).decode() for host in strict.values(b"host")] == ([head.host] if head.host else [])


POOL = st.sampled_from(
    [
        b"host: gw",
        b"host: other",
        b"content-length: 3",
        b"content-length: 4",
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip",
        b"connection: close, x-a",
        b"connection: content-length",
        b"x-a: 1",
        b"x-a: \0",
        b" x-a: 1",
        b"x-b",
        b"authorization: Bearer k",
        b"cookie: c=d",
        b"accept-encoding: gzip, br",
        b"expect: 100-continue",
        b"content-type: a/b",
        b"x: " + b"y" * MAX_REMEMBERED,
    ]
)
FIRSTS = st.sampled_from(
    [b"GET / HTTP/1.1", b"POST /a?key=b HTTP/1.1", b"GET / HTTP/1.0", b"GET http://gw/ HTTP/1.1", b"GET /../ HTTP/1.1"]
)
STATUSES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 103 Hints", b"HTTP/1.1 204", b"HTTP/2 200"]
)


def outcome(parser: RequestParser | ResponseParser, block: bytes) -> Any:
    try:
        return facts(parser.parse(block, BOUNDS))
    except Refused as refused:
        return refused.failure


@STEADY
@given(st.lists(st.tuples(FIRSTS, STATUSES, st.lists(POOL, max_size=6)), max_size=12))
def test_what_is_remembered_changes_nothing(heads: list[tuple[bytes, bytes, list[bytes]]]) -> None:
    requests, responses = RequestParser(), ResponseParser()
    for first, status, lines in heads:
        asked = b"\r\n".join([first, *lines])
        assert outcome(requests, asked) == outcome(RequestParser(), asked)
        answered = b"\r\n".join([status, *lines])
        assert outcome(responses, answered) == outcome(ResponseParser(), answered)
