"""Answers that break off, informational answers, and bytes that come when no answer is due."""

from __future__ import annotations

from .case import (
    CHUNKED,
    CLOSE,
    EARLY,
    FIVE,
    HEAD,
    HELLO,
    LAST_CHUNK,
    OK,
    OLD,
    POST,
    Case,
    End,
    cut,
    dropped,
    refused,
    slow,
)

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


def _gone(name: str, raw: bytes, end: End, code: str, seen: bytes = b"", request: bytes = POST) -> Case:
    return refused(name, "9112 8", raw, end=end, code=code, seen=seen, request=request)


EARLY_ENDS = [
    _gone("a close instead of an answer", b"", End.FIN, "upstream_reset"),
    _gone("a reset instead of an answer", b"", End.RST, "upstream_reset"),
    _gone("a close within the status line", b"HTTP/1.1 2", End.FIN, "upstream_malformed"),
    _gone("a reset within the status line", b"HTTP/1.1 2", End.RST, "upstream_malformed"),
    _gone("a close behind the status line", OK, End.FIN, "upstream_malformed"),
    _gone("a close within a field", OK + b"x: y", End.FIN, "upstream_malformed"),
    _gone("a close within the blank line", OK + b"x: y\r\n\r", End.FIN, "upstream_malformed"),
    _gone("a reset behind a field", OK + b"x: y\r\n", End.RST, "upstream_malformed"),
    _gone("a close behind 100", _CONTINUE, End.FIN, "upstream_reset"),
    _gone("a close behind 103", EARLY, End.FIN, "upstream_reset", EARLY),
    _gone("a close within a head behind 103", EARLY + OK, End.FIN, "upstream_malformed", EARLY),
    _gone("a close instead of an answer to HEAD", b"", End.FIN, "upstream_reset", request=HEAD),
    _gone("a close within a head, for HTTP/1.0", OK, End.FIN, "upstream_malformed", request=OLD),
]

# What ends with the connection must not end with a reset that looks like it.
CLOSES = [
    cut(
        "a reset where a close would be the end",
        "9112 8",
        CLOSE + b"hello",
        CLOSE + b"hello",
        end=End.RST,
    ),
    cut("a reset before the first byte of such a body", "9112 8", CLOSE, CLOSE, end=End.RST),
    cut(
        "a reset in an answer of HTTP/1.0",
        "9112 8",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        CLOSE + b"hello",
        end=End.RST,
    ),
    cut(
        "a reset in an answer of HTTP/1.0 to HTTP/1.0",
        "9112 8",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        CLOSE + b"hello",
        request=OLD,
        end=End.RST,
    ),
]

INFORMATIONAL = [
    refused("a switch of protocols that nobody asked for", "9110 15.2.2", _SWITCH),
    refused("a switch of protocols with bytes behind it", "9110 15.2.2", _SWITCH + b"\x81\x05hello"),
    refused("a switch of protocols with an answer behind it", "9110 15.2.2", _SWITCH + FIVE),
    refused("a switch of protocols behind early hints", "9110 15.2.2", EARLY + _SWITCH, seen=EARLY),
    refused("informational answers without end", "9110 15.2", EARLY * 17 + FIVE, seen=EARLY * 16),
    refused("interim 100 without end", "9110 15.2", _CONTINUE * 17 + FIVE),
    refused(
        "an informational answer with a body",
        "9110 15.2",
        b"HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n\r\nhello" + FIVE,
        seen=b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ),
    refused("100 with a body", "9110 15.2", _CONTINUE[:-2] + b"content-length: 5\r\n\r\nhello" + FIVE),
    refused(
        "an informational answer with chunks",
        "9112 6.1",
        EARLY[:-2] + b"transfer-encoding: chunked\r\n\r\n" + HELLO + LAST_CHUNK + FIVE,
        seen=EARLY,
    ),
    refused(
        "an informational answer with two framings",
        "9112 6.3",
        EARLY[:-2] + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + FIVE,
    ),
    refused("an informational answer and something else", "9112 4", EARLY + b"hello\r\n\r\n", seen=EARLY),
]

SLOW = [
    slow("no byte", "design 6", b""),
    slow("half a status line", "design 6", b"HTTP/1.1 20"),
    slow("a head without its blank line", "design 6", OK + b"content-length: 5\r\n"),
    slow("nothing behind 100", "design 6", _CONTINUE),
    slow("nothing behind 103", "design 6", EARLY, EARLY),
    cut("silence in a length", "design 6", FIVE[:-2], end=End.STAYS),
    cut("silence between chunks", "design 6", CHUNKED + HELLO, end=End.STAYS),
    cut("silence before the last blank line", "design 6", CHUNKED + HELLO + b"0\r\n", end=End.STAYS),
    cut("silence before the end of the connection", "design 6", CLOSE + b"hello", end=End.STAYS),
]

IDLE = [
    dropped("an answer that nobody asked for", "9112 9.2", FIVE),
    dropped("a reset on an idle connection", "9112 9.3", b"", end=End.RST),
    dropped("a close on an idle connection", "9112 9.3", b"", end=End.FIN),
    dropped("CRLF on an idle connection", "9112 9.2", b"\r\n"),
    dropped("half a head on an idle connection", "9112 9.2", OK + b"x: y\r\n"),
    dropped("408 and a close on an idle connection", "9110 15.5.9", FIVE.replace(b"200 OK", b"408 Slow"), end=End.FIN),
    dropped("an informational answer on an idle connection", "9110 15.2", EARLY),
    dropped("a last chunk on an idle connection", "9112 9.2", LAST_CHUNK),
]

CASES = EARLY_ENDS + CLOSES + INFORMATIONAL + SLOW + IDLE
