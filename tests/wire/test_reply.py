"""The gateway's own answers, byte for byte."""

from __future__ import annotations

import pytest

from aigw.wire.reply import CONTINUE, TEXT, answer

NOW = 784111777.9  # the example date of RFC 9110 section 5.6.7
DATE = b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"


def test_an_answer() -> None:
    assert answer(200, b'{"a":1}', now=NOW) == (
        b"HTTP/1.1 200 OK\r\n" + DATE + b"content-type: application/json\r\ncontent-length: 7\r\n\r\n" + b'{"a":1}'
    )


def test_an_answer_with_all_there_is() -> None:
    whole = answer(404, b"no", now=NOW, content_type=TEXT, lines=[b"x-a: 1", b"x-b: 2"], close=True)
    assert whole == (
        b"HTTP/1.1 404 Not Found\r\n" + DATE + b"content-type: text/plain; charset=utf-8\r\ncontent-length: 2\r\n"
        b"x-a: 1\r\nx-b: 2\r\nconnection: close\r\n\r\nno"
    )


def test_an_answer_to_head_says_the_length_only() -> None:
    assert answer(200, b"12345", now=NOW, head_only=True).endswith(b"content-length: 5\r\n\r\n")


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (503, b"HTTP/1.1 503 Service Unavailable"),
        (414, b"HTTP/1.1 414 "),
        (529, b"HTTP/1.1 529 "),  # a status without a name of its own keeps the blank (RFC 9112 section 4)
    ],
)
def test_status_lines(status: int, line: bytes) -> None:
    assert answer(status, b"", now=0.0).startswith(line)


def test_continue() -> None:
    assert CONTINUE == b"HTTP/1.1 100 Continue\r\n\r\n"
