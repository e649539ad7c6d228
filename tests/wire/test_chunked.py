"""The chunk decoder: the same payload however the bytes arrive, and nothing accepted but the grammar."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from smuggling.strict import Unclean, read_chunks

from aigw.wire.chunked import BadChunk, ChunkDecoder

# The same examples each time, and no clock that a busy machine could trip over.
STEADY = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
Outcome = tuple[bytes, bool, bytes, list[bytes]]


def decode(*reads: bytes) -> Outcome:
    """Payload, done, rest and trailers, from reads that arrive one after the other."""
    decoder = ChunkDecoder()
    payload = rest = b""
    for read in reads:
        if decoder.done:
            rest += read
        else:
            payload += b"".join(decoder.feed(read))
    return payload, decoder.done, decoder.rest + rest, decoder.trailers


def single_bytes(body: bytes) -> list[bytes]:
    return [body[i : i + 1] for i in range(len(body))]


# ------------------------------------------------------------------------------------------------- random, valid, cut


@st.composite
def chunk(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """One chunk as coded, and its payload."""
    payload = draw(
        st.binary(min_size=1, max_size=40) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"\r\n0\r\n\r\n", b"\n"])
    )
    size = b"%x" % len(payload)
    spelled = draw(st.sampled_from([size, size.upper(), size.rjust(16, b"0")]))
    extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b'; a = "x\\"; y" ;b', b';a=""', b";" + b"x" * 255]))
    return spelled + extension + b"\r\n" + payload + b"\r\n", payload


TRAILERS = st.lists(st.sampled_from([b"a: b", b"x:", b"t:\t\xc3\xa9 ", b"content-length: 5"]), max_size=3)
RESTS = st.sampled_from([b"", b"\r\n", b"POST / HTTP/1.1\r\n", b"0\r\n\r\n"])
PIECES = st.sampled_from(
    [
        *(
            b"5",
            b"0",
            b"a",
            b"\r\n",
            b"\n",
            b"\r",
            b"hello",
            b"hello\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n",
            b"\r\n0\r\n\r\n",
            b" ",
        ),
        *(b";", b"x", b"=", b'"', b"\\", b"\t", b"\0", b"x: y\r\n", b"+", b"0x", b"f" * 16, b"00", b"\xe9", b": "),
    ]
)
CUTS = st.lists(st.integers(0, 400), max_size=8).map(sorted)


@STEADY
@given(st.lists(chunk(), max_size=6), st.sampled_from([b"0", b"0000", b"0;last"]), TRAILERS, RESTS, CUTS)
def test_split_invariance(
    chunks: list[tuple[bytes, bytes]], last: bytes, trailers: list[bytes], rest: bytes, cuts: list[int]
) -> None:
    lines = b"".join(line + b"\r\n" for line in trailers)
    body = b"".join(coded for coded, _ in chunks) + last + b"\r\n" + lines + b"\r\n" + rest
    expected = b"".join(payload for _, payload in chunks), True, rest, trailers
    assert decode(body) == expected
    assert decode(*single_bytes(body)) == expected
    edges = [0, *(min(cut, len(body)) for cut in cuts), len(body)]
    assert decode(*(body[a:b] for a, b in itertools.pairwise(edges))) == expected


@STEADY
@given(
    st.lists(PIECES, max_size=12).map(b"".join)
    | st.binary(max_size=60)
    | st.text('0123456789abcdefg;="\\ \t\r\n:', max_size=60).map(str.encode),
    st.data(),
)
def test_whatever_arrives_has_one_outcome(body: bytes, data: st.DataObject) -> None:
    """Accepted, refused or unfinished: the cuts make no difference, and nothing but `BadChunk` is raised."""

    def outcome(*reads: bytes) -> Outcome | str:
        try:
            return decode(*reads)
        except BadChunk:
            return "refused"

    whole = outcome(body)
    try:
        strict = read_chunks(body)
    except Unclean:
        strict = None
    if isinstance(whole, tuple) and whole[1]:  # what is accepted, a strict reader that shares no code accepts alike
        assert strict == (whole[0], tuple(whole[3]), len(body) - len(whole[2]))
    if whole != "refused" and not whole[1]:
        body += b"\n" * 300  # an unfinished line may or may not be refused yet; with line ends it is the same for all
        whole = outcome(body)
    cut = data.draw(st.integers(0, len(body)))
    assert outcome(body[:cut], body[cut:]) == whole
    assert outcome(*single_bytes(body)) == whole


def test_payload_is_handed_on_as_it_comes() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"5\r\nhe") == [b"he"]
    assert repr(decoder) == "<ChunkDecoder 3 left of a chunk>"
    assert decoder.feed(b"") == []
    assert decoder.feed(b"llo\r\n1") == [b"llo"]
    assert decoder.feed(b"0\r\n") == []
    assert decoder.feed(b"x" * 16 + b"\r\n0\r\nt") == [b"x" * 16]
    assert repr(decoder) == "<ChunkDecoder trailers>"
    assert decoder.feed(b": 1\r\n\r\nGET") == []
    assert (decoder.done, decoder.rest, decoder.trailers) == (True, b"GET", [b"t: 1"])
    assert repr(decoder) == "<ChunkDecoder done>"
    with pytest.raises(RuntimeError, match="the body has ended"):
        decoder.feed(b" / HTTP/1.1\r\n")


def test_a_read_within_a_chunk_is_not_copied() -> None:
    decoder = ChunkDecoder()
    decoder.feed(b"100000\r\n")
    read = b"x" * 65536
    (piece,) = decoder.feed(read)
    assert piece is read


def test_the_largest_size() -> None:
    decoder = ChunkDecoder()
    assert decoder.feed(b"7fffffffffffffff\r\nx") == [b"x"]
    assert not decoder.done


# ------------------------------------------------------------------------------------------------------ what is refused

HOSTILE = [
    # RFC 9112 section 7.1: chunk-size = 1*HEXDIG
    pytest.param(b"-5\r\nhello\r\n", 0, "no plain hex number", id="7.1 sign"),
    pytest.param(b"+5\r\nhello\r\n", 0, "no plain hex number", id="7.1 plus"),
    pytest.param(b"0x5\r\nhello\r\n", 0, "no plain hex number", id="7.1 0x"),
    pytest.param(b"1_0\r\nhello world, bye\r\n", 0, "no plain hex number", id="7.1 underscore"),
    pytest.param(b"\xd9\xa5\r\nhello\r\n", 0, "no plain hex number", id="7.1 a digit of another script"),
    pytest.param(b"g\r\n", 0, "no plain hex number", id="7.1 no hex digit"),
    pytest.param(b"5.0\r\nhello\r\n", 0, "no plain hex number", id="7.1 fraction"),
    pytest.param(b"\r\n5\r\nhello\r\n", 0, "no plain hex number", id="7.1 no size"),
    pytest.param(b";a\r\nhello\r\n", 0, "no plain hex number", id="7.1 extension without a size"),
    pytest.param(b"\x005\r\nhello\r\n", 0, "no plain hex number", id="7.1 NUL"),
    pytest.param(b" 5\r\nhello\r\n", 0, "blank beside a chunk size", id="7.1 blank before"),
    pytest.param(b"5 \r\nhello\r\n", 0, "blank beside a chunk size", id="7.1 blank behind"),
    pytest.param(b"5\t;a\r\nhello\r\n", 0, "blank beside a chunk size", id="7.1 tab before the extension"),
    pytest.param(b"5\r\nhello\r\n 0\r\n\r\n", 10, "blank beside a chunk size", id="7.1 blank before a later size"),
    # section 7.1: recipients must prevent overflow
    pytest.param(b"8000000000000000\r\n", 0, "2**63 or more", id="7.1 2**63"),
    pytest.param(b"ffffffffffffffff\r\n", 0, "2**63 or more", id="7.1 2**64 - 1"),
    pytest.param(b"10000000000000005\r\nhello\r\n", 0, "more than 16 digits", id="7.1 2**64 + 5"),
    pytest.param(b"00000000000000005\r\nhello\r\n", 0, "more than 16 digits", id="7.1 seventeen digits"),
    # section 2.2: a bare CR is never a line end; section 7.1: chunks end in CRLF, and a lone LF is no CRLF
    pytest.param(b"5\nhello\n0\n\n", 0, "bare LF", id="7.1 LF behind the size"),
    pytest.param(b"5\rhello", 0, "bare CR", id="2.2 CR behind the size, and no more comes"),
    pytest.param(b"5\r\r\nhello\r\n", 0, "bare CR", id="2.2 CR CR LF"),
    pytest.param(b"5;a\nb\r\nhello\r\n", 0, "bare LF", id="7.1.1 LF in an extension"),
    pytest.param(b"5;a\rb\r\nhello\r\n", 0, "bare CR", id="2.2 CR in an extension"),
    pytest.param(b"5\r\nhello\n0\r\n\r\n", 8, "not followed by CRLF", id="7.1 LF behind the data"),
    pytest.param(b"5\r\nhello\r0\r\n\r\n", 8, "not followed by CRLF", id="7.1 CR behind the data"),
    pytest.param(b"5\r\nhello0\r\n\r\n", 8, "not followed by CRLF", id="7.1 nothing behind the data"),
    pytest.param(b"4\r\nhello\r\n0\r\n\r\n", 7, "longer than its size says", id="7.1 size too small"),
    pytest.param(b"7\r\nhello\r\n0\r\n\r\n", 10, "longer than its size says", id="7.1 size too large"),
    # section 7.1.1: chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )
    pytest.param(b"5;\r\nhello\r\n", 0, "chunk extension that is not", id="7.1.1 no name"),
    pytest.param(b"5;a=\r\nhello\r\n", 0, "chunk extension that is not", id="7.1.1 no value"),
    pytest.param(b"5;=b\r\nhello\r\n", 0, "chunk extension that is not", id="7.1.1 only a value"),
    pytest.param(b"5;a b\r\nhello\r\n", 0, "chunk extension that is not", id="7.1.1 two words"),
    pytest.param(b"5;a \r\nhello\r\n", 0, "chunk extension that is not", id="7.1.1 blank at the end"),
    pytest.param(b'5;a="b\r\nhello\r\n', 0, "chunk extension that is not", id="7.1.1 open quote"),
    pytest.param(b'5;a="\x00"\r\nhello\r\n', 0, "chunk extension that is not", id="7.1.1 NUL"),
    pytest.param(b"5;" + b"a" * 256 + b"\r\nhello\r\n", 0, "too many chunk extensions", id="7.1.1 257 bytes"),
    pytest.param(b"5;" + b"a" * 300, 0, "size line too long", id="7.1.1 300 bytes and no end"),
    pytest.param(b"1" * 300, 0, "size line too long", id="7.1 endless digits"),
    # section 7.1.2 and 5: trailer-section = *( field-line CRLF )
    pytest.param(b"0\r\na\r\n\r\n", 3, "without a colon", id="7.1.2 no colon"),
    pytest.param(b"0\r\n: b\r\n\r\n", 3, "no token", id="7.1.2 no name"),
    pytest.param(b"0\r\na : b\r\n\r\n", 3, "blank before the colon", id="5.1 blank before the colon"),
    pytest.param(b"0\r\na: b\r\n c\r\n\r\n", 9, "without a colon", id="5.2 folded"),
    pytest.param(b"0\r\na: b\r\n c: d\r\n\r\n", 9, "folded", id="5.2 folded, with a colon"),
    # what may not stand in a trailer is not sent on, but has to be what its field is (RFC 9110 section 6.5.1)
    pytest.param(b"0\r\nhost: a b\r\n\r\n", 3, "bad `host`", id="7.2 no host"),
    pytest.param(b"0\r\ncontent-length: x\r\n\r\n", 3, "plain decimal", id="8.6 no length"),
    pytest.param(b"0\r\nexpect: x\r\n\r\n", 3, "unknown expectation", id="10.1.1 no expectation"),
    pytest.param(b"0\r\nconnection: (\r\n\r\n", 3, "bad `connection`", id="7.6.1 no options"),
    pytest.param(b"0\r\na: b\nc: d\r\n\r\n", 3, "bare LF", id="2.2 LF behind a trailer"),
    pytest.param(b"0\r\na: b\rc: d\r\n\r\n", 3, "control byte", id="2.2 CR in a trailer"),
    pytest.param(b"0\r\na: \x00\r\n\r\n", 3, "control byte", id="5.5 NUL"),
    pytest.param(b"0\r\n\n", 3, "bare LF", id="2.2 LF as the blank line"),
    pytest.param(b"0\r\n" + b"a: b\r\n" * 101, 603, "too many trailers; at most 100", id="7.1.2 101 lines"),
    pytest.param(b"0\r\na: " + b"b" * 16384, 3, "trailers too long", id="7.1.2 a line of 16 KiB"),
    pytest.param(b"0\r\n" + (b"a: " + b"b" * 8100 + b"\r\n") * 3, 16213, "trailers too long", id="7.1.2 24 KiB in all"),
]


@pytest.mark.parametrize(("body", "place", "message"), HOSTILE)
def test_refused(body: bytes, place: int, message: str) -> None:
    for reads in [body], single_bytes(body):
        with pytest.raises(BadChunk) as caught:
            decode(*reads)
        text = str(caught.value)
        assert text.startswith(f"bad chunked body at byte {place}: ")
        assert message in text
        assert "hello" not in text


def test_extensions_are_bounded_over_the_whole_body() -> None:
    coded = b"1;" + b"a" * 63 + b"\r\nx\r\n"
    assert decode(coded * 256 + b"0\r\n\r\n")[:2] == (b"x" * 256, True)
    with pytest.raises(BadChunk, match="too many chunk extensions; at most 256 bytes a chunk and 16384 a body"):
        decode(coded * 257)


def test_a_body_that_is_cut_is_not_done() -> None:
    body = b"5;a=b\r\nhello\r\n0\r\nt: 1\r\n\r\n"
    for cut in range(len(body)):
        assert decode(body[:cut])[1] is False


def test_little_is_kept_between_reads() -> None:
    decoder = ChunkDecoder()
    decoder.feed(b"1;" + b"a" * 255)
    assert len(decoder._held) <= 300


@pytest.mark.unmeasured
def test_100_000_tiny_chunks_whole_and_byte_by_byte() -> None:
    """Quadratic work would take minutes here."""
    body = b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n"
    assert decode(body)[:2] == (b"x" * 100_000, True)
    decoder = ChunkDecoder()
    assert sum(len(decoder.feed(byte)) for byte in single_bytes(body)) == 100_000
    assert decoder.done
