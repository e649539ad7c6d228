"""Bodies: which one follows a response's head, and that the end of a chunked one is found to the byte."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw.wire.framing import (
    CHUNKED_BODY,
    CLOSE_BODY,
    LENGTH_BODY,
    NO_BODY,
    BadFraming,
    ChunkObserver,
    LengthDecoder,
    body_of,
)
from aigw.wire.head import HeadBounds, ResponseParser

STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        ("GET", b"200 OK\r\ncontent-length: 5", LENGTH_BODY),
        ("GET", b"200 OK\r\ncontent-length: 0", NO_BODY),
        ("GET", b"200 OK\r\ntransfer-encoding: chunked", CHUNKED_BODY),
        ("GET", b"200 OK", CLOSE_BODY),
        ("POST", b"500 Oops", CLOSE_BODY),
        ("HEAD", b"200 OK\r\ncontent-length: 5", NO_BODY),
        ("HEAD", b"200 OK\r\ntransfer-encoding: chunked", NO_BODY),
        ("HEAD", b"200 OK", NO_BODY),
        ("HEAD", b"304 Not Modified\r\ncontent-length: 5", NO_BODY),
        ("GET", b"204 No Content", NO_BODY),
        ("GET", b"204 No Content\r\ntransfer-encoding: chunked", NO_BODY),
        ("GET", b"304 Not Modified\r\ncontent-length: 5", NO_BODY),
        ("GET", b"204 No Content\r\ncontent-length: 5", NO_BODY),
        ("GET", b"304 Not Modified", NO_BODY),
        ("GET", b"304 Not Modified\r\ntransfer-encoding: chunked", NO_BODY),
    ],
)
def test_which_body_follows(method: str, head: bytes, body: int) -> None:
    """RFC 9112 section 6.3."""
    parsed = ResponseParser().parse(b"HTTP/1.1 " + head, HeadBounds())
    assert body_of(parsed, to_head=method == "HEAD") == body


# ---------------------------------------------------------------------------------------------- observed chunked bodies


def observe(*reads: bytes, observer: ChunkObserver | None = None) -> list[bool]:
    observer = observer or ChunkObserver()
    observer.begin()
    return [observer.feed(read) for read in reads]


def single_bytes(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, *(at % len(body) for at in cuts), len(body)})
    return [body[a:b] for a, b in itertools.pairwise(edges)]


@st.composite
def chunks(draw: st.DrawFn) -> bytes:
    """A chunked body; its payloads look like framing."""
    payloads = draw(
        st.lists(
            st.binary(min_size=1, max_size=30) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 "]),
            max_size=5,
        )
    )
    extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b c"']))
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(payload), extension, payload) for payload in payloads)
    trailers = draw(st.lists(st.sampled_from([b"a: b\r\n", b"x-sum:\r\n"]), max_size=2))
    return body + b"0" + extension + b"\r\n" + b"".join(trailers) + b"\r\n"


CUTS = st.lists(st.integers(0, 500), max_size=6)


@pytest.mark.unmeasured
@STEADY
@given(st.lists(st.tuples(chunks(), CUTS), min_size=1, max_size=4))
def test_the_end_is_found_however_the_bytes_arrive(bodies: list[tuple[bytes, list[int]]]) -> None:
    """And by one observer for all responses of a connection, one after the other."""
    observer = ChunkObserver()
    for body, cuts in bodies:
        for reads in ([body], single_bytes(body), cut(body, cuts)):
            assert observe(*reads, observer=observer) == [False] * (len(reads) - 1) + [True]


SURPLUS = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b"x",
    b"x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("surplus", SURPLUS)
@pytest.mark.parametrize("body", [b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"0\r\na: b\r\n\r\n"])
def test_the_completing_read_ends_with_the_message(body: bytes, surplus: bytes) -> None:
    """Or it is refused, wherever the read before it ended: nothing behind the end may be passed on."""
    for at in range(len(body)):
        with pytest.raises(BadFraming):
            observe(*[part for part in (body[:at], body[at:] + surplus) if part])


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1 \r\na\r\n",
        b" 1\r\na\r\n",
        b"1\na\r\n",
        b"1\r\na\n0\r\n\r\n",
        b"1\r\nab\r\n0\r\n\r\n",
        b"2\r\na\r\n0\r\n\r\n",
        b"1\r\na0\r\n\r\n",
        b"0\n\n",
        b"0\r\n\n",
        b"0\n\r\n",
        b"1;\0\r\na\r\n",
        b"1;a\nb\r\na\r\n",
        b"fffffffffffffffff\r\n",
        b"10000000000000000\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\na : b\r\n\r\n",
        b"0\r\n a: b\r\n\r\n",
        b"0\r\na: b\n\r\n",
        b"0\r\na: \0\r\n\r\n",
        b"0\r\ncontent-length: 5\r\n\r\n",
    ],
)
def test_a_bad_chunk_is_refused(body: bytes) -> None:
    """RFC 9112 section 7.1. Where the fault is seen only at the end, no byte of the end is passed on."""
    for reads in ([body], single_bytes(body)):
        with pytest.raises(BadFraming, match="bad chunked body"):
            assert True not in observe(*reads, b"\r\n")


@pytest.mark.parametrize("trailer", [b"connection: close", b"transfer-encoding: chunked", b"upgrade: x", b"a: b"])
def test_no_trailer_spoils_the_next_body(trailer: bytes) -> None:
    """A trailer is refused or means nothing to framing (RFC 9110 section 6.5.1); `begin` never fails."""
    observer = ChunkObserver()
    try:
        assert observe(b"0\r\n" + trailer + b"\r\n\r\n", observer=observer) == [True]
    except BadFraming:
        return  # the connection closes
    assert observe(b"1\r\na\r\n0\r\n\r\n", observer=observer) == [True]


def test_the_end_of_an_event_within_a_chunk_is_not_the_end() -> None:
    event = b"data: {}\r\n\r\n"
    assert observe(b"%x\r\n%b" % (len(event), event), b"\r\n", b"0\r\n", b"\r\n") == [False, False, False, True]


# -------------------------------------------------------------------------------------------------------- length bodies


@pytest.mark.parametrize("reads", [[b"hello"], [b"he", b"", b"llo"], single_bytes(b"hello")])
def test_a_body_of_known_length(reads: list[bytes]) -> None:
    decoder = LengthDecoder(5)
    pieces: list[bytes] = []
    for read in reads:
        assert not decoder.done
        pieces += decoder.feed(read)
    assert (b"".join(pieces), decoder.done, decoder.rest, decoder.missing) == (b"hello", True, b"", 0)
    assert decoder.trailers == []


def test_what_follows_a_body_of_known_length() -> None:
    decoder = LengthDecoder(5)
    assert decoder.feed(b"hel") == [b"hel"]
    assert decoder.missing == 2
    assert decoder.feed(b"loGET /") == [b"lo"]
    assert (decoder.done, decoder.rest) == (True, b"GET /")


def test_a_body_of_no_length() -> None:
    decoder = LengthDecoder(0)
    assert decoder.feed(b"GET") == []
    assert (decoder.done, decoder.rest) == (True, b"GET")
