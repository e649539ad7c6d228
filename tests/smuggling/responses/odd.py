"""Answers that are odd and right: each is relayed exactly, but for what a proxy has to take out."""

from __future__ import annotations

import gzip

from .case import (
    CHUNKED,
    CLOSE,
    EARLY,
    FIVE,
    HEAD,
    HELLO,
    LAST,
    LAST_CHUNK,
    OK,
    OLD,
    OLD_HEAD,
    POST,
    Case,
    End,
    relayed,
)

_ZIPPED = gzip.compress(b"hello, world\n" * 99, mtime=0)
_OLD_OK = b"HTTP/1.0 200 OK\r\n"
_REST = b"content-length: 5\r\n\r\nhello"


def _status(line: bytes, name: str = "", rfc: str = "9112 4") -> Case:
    return relayed(name or f"status {line.decode('latin-1')}", rfc, b"HTTP/1.1 " + line + b"\r\n" + _REST)


def _field(name: str, lines: bytes, rfc: str = "9112 5", seen: bytes | None = None) -> Case:
    """`seen`: of these lines."""
    raw = OK + lines + _REST
    return relayed(name, rfc, raw, None if seen is None else OK + seen + _REST)


def _chunks(name: str, body: bytes, rfc: str = "9112 7.1") -> Case:
    return relayed(name, rfc, CHUNKED + body)


STATUS_LINES = [
    _status(b"200 ", "an empty reason"),
    relayed("no blank behind the status", "9112 4", b"HTTP/1.1 200\r\n" + _REST, b"HTTP/1.1 200 \r\n" + _REST),
    _status(b"200 Caf\xe9", "a high byte in the reason"),
    _status(b"200 a\tb", "a tab in the reason"),
    _status(b"200  OK ", "blanks around the reason"),
    _status(b"200 HTTP/1.1 404 Not Found", "a reason that looks like a status line"),
    _status(b"200 " + b"r" * 8000, "a reason of 8 KB"),
    _status(b"299 Odd"),
    _status(b"205 Reset Content"),
    _status(b"300 Multiple Choices"),
    _status(b"407 Proxy Authentication Required"),
    _status(b"418 I'm a teapot"),
    _status(b"499 Client Closed Request"),
    _status(b"529 Overloaded"),
    _status(b"599 Last"),
]

FIELDS = [
    _field("a value that is empty", b"x:\r\n"),
    _field("a value of blanks", b"x:   \r\n"),
    _field("no blank before a value", b"x:y\r\n", "9112 5"),
    _field("blanks and tabs around a value", b"x: \t y \t\r\n", "9112 5"),
    _field("high bytes in a value", b"x: \xc3\xa9\xff\r\n", "9110 5.5"),
    _field("every sign a name may have", b"!#$%&'*+-.^_`|~0A: y\r\n", "9110 5.6.2"),
    _field("names in capitals", b'X-ODD: y\r\nETag: "1"\r\n', "9110 5.1"),
    _field("the same field three times, in order", b"x: 1\r\ny: 2\r\nx: 3\r\nx: 1\r\n", "9110 5.2"),
    _field("colons and quotes in a value", b'x: a: "b:c" : d\r\n'),
    _field("a value that looks like a field", b"x: content-length: 9\r\n", "9112 11.1"),
    _field("a value that looks like a break, encoded", b"x: %0d%0acontent-length: 0\r\n", "9112 11.1"),
    _field("a length with an underscore in its name", b"content_length: 9\r\ntransfer_encoding: chunked\r\n"),
    _field("99 fields", b"".join(b"x-%d: y\r\n" % index for index in range(98)), "design 7"),
    _field("a line of 16 KiB", b"x: " + b"y" * 16300 + b"\r\n", "design 7"),
    _field("a head of 31 KiB", (b"x: " + b"y" * 7900 + b"\r\n") * 4, "design 7"),
    _field("validators and dates", b'etag: W/"1"\r\ndate: Tue, 15 Nov 1994 08:12:31 GMT\r\nage: 0\r\n'),
    _field(
        "fields of providers", b"openai-processing-ms: 5\r\nanthropic-ratelimit-tokens-remaining: 1\r\n", "design 7"
    ),
    relayed("a length in capitals", "9110 8.6", OK + b"CONTENT-LENGTH: 5\r\n\r\nhello"),
    relayed("a length with blanks around it", "9110 8.6", OK + b"content-length: \t 5 \t\r\n\r\nhello"),
    relayed("a length without a blank", "9110 8.6", OK + b"content-length:5\r\n\r\nhello"),
    relayed("a length with zeros before it", "9110 8.6", OK + b"content-length: 0005\r\n\r\nhello"),
    relayed("a length of zero", "9110 8.6", OK + b"content-length: 0\r\n\r\n"),
    relayed("a redirect that is not followed", "9110 15.4", b"HTTP/1.1 302 Found\r\nlocation: http://a/\r\n" + _REST),
]

HOP_BY_HOP = [
    _field("a field that Connection names", b"connection: x-hop\r\nx-hop: 1\r\nx: y\r\n", "9110 7.6.1", b"x: y\r\n"),
    _field("Connection names it later", b"X-Hop: 1\r\nx: y\r\nconnection: x-hop\r\n", "9110 7.6.1", b"x: y\r\n"),
    _field("Connection names it in capitals", b"x-hop: 1\r\nCONNECTION: X-HOP\r\n", "9110 7.6.1", b""),
    _field("two Connection fields", b"connection: a\r\na: 1\r\nconnection: b\r\nb: 1\r\n", "9110 7.6.1", b""),
    _field("Connection names the cookies", b"connection: set-cookie\r\nset-cookie: a=1\r\n", "9110 7.6.1", b""),
    _field("Connection names the length", b"connection: content-length\r\n", "9110 7.6.1", b""),
    _field("Connection with empty options", b"connection: , ,\r\n", "9110 5.6.1", b""),
    _field("Keep-Alive", b"connection: keep-alive\r\nkeep-alive: timeout=5, max=9\r\n", "9112 9.3", b""),
    _field("Keep-Alive that says nothing", b"keep-alive: of course\r\n", "9112 9.3", b""),
    _field("TE, Upgrade and Proxy fields", b"te: x\r\nupgrade: h2c\r\nproxy-connection: close\r\n", "9110 7.6.1", b""),
    _field("what only the gateway says", b"x-aigw-upstream: forged\r\nX-Aigw-Error: forged\r\n", "design 15", b""),
    _field("a request id of the upstream's", b"x-request-id: theirs\r\n", "design 15", b""),
    relayed(
        "Connection names the coding",
        "9110 7.6.1",
        OK + b"connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n" + HELLO + LAST_CHUNK,
        CHUNKED + HELLO + LAST_CHUNK,
    ),
    relayed("an upstream that closes", "9112 9.6", OK + b"connection: close\r\n" + _REST, FIVE, end=End.FIN),
    relayed("close among other options", "9112 9.6", OK + b"connection: x, CLOSE\r\n" + _REST, FIVE, keeps=False),
    relayed("close and keep-alive", "9112 9.3", OK + b"connection: keep-alive, close\r\n" + _REST, FIVE, keeps=False),
    relayed("an idle time of zero", "9112 9.3", OK + b"keep-alive: timeout=0\r\n" + _REST, FIVE, keeps=False),
    relayed(
        "a client that closes",
        "9112 9.6",
        FIVE,
        OK + b"content-length: 5\r\nconnection: close\r\n\r\nhello",
        request=LAST,
    ),
    relayed(
        "cookies of an HTTP upstream, behind the rest",
        "9110 5.2",
        OK + b"set-cookie: a=1\r\n" + _REST,
        OK + b"content-length: 5\r\nset-cookie: a=1\r\n\r\nhello",
    ),
    relayed(
        "cookies of a provider of models", "design 7", OK + b"set-cookie: a=1\r\nSet-Cookie: b=2\r\n" + _REST, FIVE
    ).of("openai"),
]

CHUNKS = [
    _chunks("one chunk", HELLO + LAST_CHUNK),
    _chunks("no chunk but the last", LAST_CHUNK),
    _chunks("a size with zeros before it", b"0000005\r\nhello\r\n" + LAST_CHUNK),
    _chunks("a size of 17 digits, most of them zero", b"0" * 16 + b"5\r\nhello\r\n" + LAST_CHUNK),
    _chunks("sizes in capitals", b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST_CHUNK),
    _chunks("a last chunk of many zeros", HELLO + b"000\r\n\r\n"),
    _chunks("extensions", b'5;a\r\nhello\r\n5;a=b;c="d;\\"e"\r\nhello\r\n' + LAST_CHUNK, "9112 7.1.1"),
    _chunks("an extension with a mark and no value", b"5;a=\r\nhello\r\n" + LAST_CHUNK, "9112 7.1.1"),
    _chunks("an extension on the last chunk", HELLO + b"0;a=b\r\n\r\n", "9112 7.1.1"),
    _chunks("chunks of one byte", b"1\r\nh\r\n1\r\ni\r\n" * 50 + LAST_CHUNK),
    _chunks("data that looks like the end", b"5\r\n0\r\n\r\n\r\n" + LAST_CHUNK),
    _chunks("data that looks like an answer", b"2b\r\n" + FIVE + b"\r\n" + LAST_CHUNK, "9112 11.1"),
    _chunks("data of line ends", b"4\r\n\r\n\r\n\r\n" + LAST_CHUNK),
    _chunks("data of every byte", b"100\r\n" + bytes(range(256)) + b"\r\n" + LAST_CHUNK),
    _chunks("trailers", HELLO + b"0\r\nx-sum: 1\r\nX-Sum: 2\r\n\r\n", "9112 7.1.2"),
    _chunks(
        "trailers that a recipient must not believe", HELLO + b"0\r\nhost: a\r\nset-cookie: b\r\n\r\n", "9110 6.5.1"
    ),
    _chunks("a coding in a trailer", HELLO + b"0\r\ntransfer-encoding: chunked\r\n\r\n", "9110 6.5.1"),
    _chunks("close in a trailer", HELLO + b"0\r\nconnection: close\r\n\r\n", "9110 6.5.1"),
    _chunks("an empty trailer", HELLO + b"0\r\nx:\r\n\r\n", "9112 7.1.2"),
    relayed(
        "the coding in capitals",
        "9112 7",
        OK + b"Transfer-Encoding: CHUNKED\r\n\r\n" + HELLO + LAST_CHUNK,
        CHUNKED + HELLO + LAST_CHUNK,
    ),
    relayed(
        "blanks around the coding",
        "9112 7",
        OK + b"transfer-encoding:\t chunked \r\n\r\n" + HELLO + LAST_CHUNK,
        CHUNKED + HELLO + LAST_CHUNK,
    ),
    relayed(
        "chunks and a trailer field",
        "9110 6.6.2",
        OK + b"trailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n" + HELLO + b"0\r\nx-sum: 1\r\n\r\n",
    ),
    relayed("chunks in the answer to POST", "9112 7.1", CHUNKED + HELLO + LAST_CHUNK, request=POST),
    relayed("chunks with an error", "9112 7.1", CHUNKED.replace(b"200 OK", b"500 Oops") + HELLO + LAST_CHUNK),
    relayed(
        "chunks for HTTP/1.0",
        "9112 7.1",
        CHUNKED + HELLO + HELLO + b"0\r\nx: y\r\n\r\n",
        CLOSE + b"hellohello",
        request=OLD,
    ),
    relayed(
        "gzip with a length",
        "9110 8.4",
        OK + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(_ZIPPED) + _ZIPPED,
    ),
    relayed(
        "gzip in chunks",
        "9110 8.4",
        OK
        + b"content-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"%x\r\n%b\r\n" % (len(_ZIPPED), _ZIPPED)
        + LAST_CHUNK,
    ),
    relayed(
        "half of a gzip stream, which is the whole body",
        "9110 8.4",
        OK + b"content-encoding: gzip\r\ncontent-length: 20\r\n\r\n" + _ZIPPED[:20],
    ),
    relayed("bytes that are no gzip", "9110 8.4", OK + b"content-encoding: gzip\r\n" + _REST),
    relayed(
        "events in chunks",
        "design 5",
        OK
        + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"c\r\ndata: hi\r\n\r\n\r\n"
        + b"8\r\n: ping\n\n\r\n"
        + LAST_CHUNK,
    ).of("openai"),
]

ENDS = [
    relayed("a body that ends with the connection", "9112 6.3", OK + b"\r\nhello", CLOSE + b"hello", end=End.FIN),
    relayed("an empty body that ends with the connection", "9112 6.3", CLOSE, CLOSE, end=End.FIN),
    relayed("such a body holds an answer", "9112 11.1", CLOSE + FIVE + FIVE, CLOSE + FIVE + FIVE, end=End.FIN),
    relayed("such a body holds chunks", "9112 6.3", CLOSE + HELLO + LAST_CHUNK, end=End.FIN),
    relayed(
        "such a body although it says keep-alive",
        "9112 6.3",
        OK + b"connection: keep-alive\r\n\r\nhello",
        CLOSE + b"hello",
        end=End.FIN,
    ),
    relayed("such a body for HTTP/1.0", "9112 6.3", CLOSE + b"hello", request=OLD, end=End.FIN),
    relayed("such a body in the answer to POST", "9112 6.3", CLOSE + b"hello", request=POST, end=End.FIN),
    relayed("a length of HTTP/1.0", "9112 9.3", _OLD_OK + _REST, FIVE, keeps=False),
    relayed(
        "a length of HTTP/1.0, kept alive",
        "9112 9.3",
        _OLD_OK + b"connection: keep-alive\r\n" + _REST,
        FIVE,
        keeps=False,
    ),
    relayed("a body of HTTP/1.0", "9112 6.3", _OLD_OK + b"\r\nhello", CLOSE + b"hello", end=End.FIN),
    relayed(
        "an error of HTTP/1.0",
        "9112 6.3",
        _OLD_OK.replace(b"200 OK", b"404 No") + b"\r\n",
        CLOSE.replace(b"200 OK", b"404 No"),
        end=End.FIN,
    ),
]

NO_BODY = [
    relayed("204", "9112 6.3", b"HTTP/1.1 204 No Content\r\n\r\n"),
    relayed(
        "204 with a length of zero",
        "9110 8.6",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    relayed(
        "204 with a length",
        "9110 8.6",
        b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    relayed(
        "204 with a coding",
        "9112 6.1",
        b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ),
    relayed(
        "204 and a close",
        "9112 6.3",
        b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        end=End.FIN,
    ),
    relayed("304", "9112 6.3", b'HTTP/1.1 304 Not Modified\r\netag: "1"\r\n\r\n'),
    relayed("304 with a length", "9110 8.6", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
    relayed("304 with a coding", "9112 6.1", b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n"),
    relayed("HEAD with a length", "9110 9.3.2", FIVE[:-5], request=HEAD),
    relayed("HEAD with a coding", "9110 9.3.2", CHUNKED, request=HEAD),
    relayed("HEAD without a framing", "9110 9.3.2", OK + b"\r\n", request=HEAD),
    relayed("HEAD of what ends with the connection", "9110 9.3.2", CLOSE, OK + b"\r\n", request=HEAD, end=End.FIN),
    relayed("HEAD with a huge length", "9110 9.3.2", OK + b"content-length: 999999999999\r\n\r\n", request=HEAD),
    relayed("HEAD and 204", "9110 9.3.2", b"HTTP/1.1 204 No Content\r\n\r\n", request=HEAD),
    relayed("HEAD and an error", "9110 9.3.2", FIVE[:-5].replace(b"200 OK", b"404 No"), request=HEAD),
    relayed("HEAD with a coding, for HTTP/1.0", "9112 6.1", CHUNKED, CLOSE, request=OLD_HEAD),
]

INFORMATIONAL = [
    relayed("100 that nobody waited for", "9110 15.2.1", b"HTTP/1.1 100 Continue\r\n\r\n" + FIVE, FIVE),
    relayed("100 with fields", "9110 15.2.1", b"HTTP/1.1 100 Continue\r\nx: y\r\n\r\n" + FIVE, FIVE, request=POST),
    relayed("102", "9110 15.2", b"HTTP/1.1 102 Processing\r\n\r\n" + FIVE),
    relayed("103", "9110 15.2", EARLY + FIVE),
    relayed("199", "9110 15.2", b"HTTP/1.1 199 Odd\r\n\r\n" + FIVE),
    relayed("16 informational answers", "9110 15.2", EARLY * 16 + FIVE),
    relayed("103 and chunks", "9110 15.2", EARLY + CHUNKED + HELLO + LAST_CHUNK),
    relayed("103 and a body that ends with the connection", "9110 15.2", EARLY + CLOSE + b"hello", end=End.FIN),
    relayed("103 and 204", "9110 15.2", EARLY + b"HTTP/1.1 204 No Content\r\n\r\n"),
    relayed("103 to HEAD", "9110 15.2", EARLY + FIVE[:-5], request=HEAD),
    relayed("103 with a length of zero", "9110 8.6", EARLY[:-2] + b"content-length: 0\r\n\r\n" + FIVE, EARLY + FIVE),
    relayed("103 with a coding", "9112 6.1", EARLY[:-2] + b"transfer-encoding: chunked\r\n\r\n" + FIVE, EARLY + FIVE),
    relayed(
        "103 that names a field in Connection",
        "9110 7.6.1",
        EARLY[:-2] + b"x: y\r\nconnection: x\r\n\r\n" + FIVE,
        EARLY + FIVE,
    ),
    relayed(
        "103 for HTTP/1.0",
        "9110 15.2",
        EARLY + FIVE,
        OK + b"content-length: 5\r\nconnection: close\r\n\r\nhello",
        request=OLD,
    ),
]

CASES = STATUS_LINES + FIELDS + HOP_BY_HOP + CHUNKS + ENDS + NO_BODY + INFORMATIONAL
