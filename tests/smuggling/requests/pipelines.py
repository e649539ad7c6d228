"""More than one request on a connection, and heads that are like those before them but for one line (RFC 9112 section
9.3.2; design 5 for what a worker remembers of heads)."""

from __future__ import annotations

from smuggling.requests.case import CHUNKED, EVIL, HOST, Case, End, Seen, answered, declined, http, refused, seen

END = b"0\r\n\r\n"


def get(path: bytes = b"/s/a", *lines: bytes) -> bytes:
    return http(b"GET " + path + b" HTTP/1.1", HOST, *lines)


def post(path: bytes = b"/s/p", body: bytes = b"hello", *lines: bytes) -> bytes:
    return http(b"POST " + path + b" HTTP/1.1", HOST, *lines, b"Content-Length: %d" % len(body), body=body)


def chunks(path: bytes = b"/s/c", body: bytes = b"5\r\nhello\r\n" + END) -> bytes:
    return http(b"POST " + path + b" HTTP/1.1", HOST, CHUNKED, body=body)


A = seen(b"GET /s/a")
P = seen(b"POST /s/p", body=b"hello")
C = seen(b"POST /s/c", body=b"hello")

GOOD = [
    answered("pipeline-two", "9112 9.3.2", get() + get(b"/s/b"), A, seen(b"GET /s/b"), why="in order"),
    answered(
        "pipeline-fifteen",
        "9112 9.3.2",
        b"".join(get(b"/s/%d" % number) for number in range(15)),
        *(seen(b"GET /s/%d" % number) for number in range(15)),
        why="in order",
    ),
    answered("pipeline-behind-length", "9112 9.3.2", post() + get(), P, A, why="the body ends where it says"),
    answered("pipeline-behind-chunks", "9112 9.3.2", chunks() + get(), C, A, why="the body ends where it says"),
    answered("pipeline-behind-no-length", "9112 6.3", http(b"POST /s/p HTTP/1.1", HOST) + get(),
             seen(b"POST /s/p"), A, why="no framing is no body"),
    answered("pipeline-behind-head", "9110 9.3.2", http(b"HEAD /s/a HTTP/1.1", HOST) + get(),
             seen(b"HEAD /s/a"), A, why="an answer without a body"),
    answered("pipeline-behind-trailers", "9112 7.1.2", chunks(body=END[:-2] + b"X: y\r\n\r\n") + get(),
             seen(b"POST /s/c", trailers=(b"X: y",)), A, why="the blank line ends them"),
    answered("pipeline-mixed", "9112 9.3.2", post() + chunks() + get() + chunks() + post(), P, C, A, C, P,
             why="every framing behind every other"),
    answered("pipeline-crlf-between", "9112 2.2", post() + b"\r\n" + get(), P, A, why="old clients send one more"),
    answered("pipeline-crlfs-between", "9112 2.2", get() + b"\r\n\r\n" + get(), A, A, why="two look like a head's end"),
    answered("pipeline-crlf-behind", "9112 2.2", get() + b"\r\n", A, why="and nothing follows"),
    answered("pipeline-other-host", "9112 3.2", get() + http(b"GET /s/a HTTP/1.1", b"Host: kept"), A,
             seen(b"GET /s/a", host=b"kept"), why="each request names its own host"),
    answered(
        "pipeline-by-model",
        "9112 9.3.2",
        post(b"/v1/chat/completions", b'{"model": "cheap"}') + get() + post(b"/v1/embeddings", b'{"model": "dear"}'),
        seen(b"POST /v1/chat/completions", body=b'{"model": "cheap"}', by="llm"),
        A,
        seen(b"POST /v1/embeddings", body=b'{"model": "dear"}', by="llm"),
        why="collected bodies among others",
    ),
    Case("pipeline-behind-404", "9112 9.3.2", http(b"GET /x HTTP/1.1", b"Host: kept") + get(),
         "an answer of our own is an answer", (404, 200), (A,), End.OPEN),
    Case("pipeline-behind-models", "9112 9.3.2", get(b"/v1/models") + get(),
         "an answer of our own is an answer", (200, 200), (A,), End.OPEN),
]  # fmt: skip

# The bytes behind a refused request never become one, whatever they look like.
BAD = [
    refused(
        f"behind-{name}", "9112 9.3.2", before + raw + EVIL, status, before=requests, why=why, begun=begun
    )
    for name, before, requests, raw, status, begun, why in (
        ("bad-length", b"", (), post().replace(b": 5", b": +5"), 400, False, "where it would end nobody knows"),
        ("bad-chunk", b"", (), chunks(body=b"-1\r\n" + END), 400, True, "where it would end nobody knows"),
        ("two-framings", b"", (), http(b"POST /s/p HTTP/1.1", HOST, CHUNKED, b"Content-Length: 5", body=END), 400,
         False,
         "where it would end nobody knows"),
        ("bad-host", b"", (), http(b"GET /s/a HTTP/1.1"), 400, False, "a head that is complete, and bad"),
        ("bad-version", b"", (), http(b"GET /s/a HTTP/2.0", HOST), 505, False, "a head that is complete, and bad"),
        ("bad-path", b"", (), get(b"/s/../x"), 400, False, "a head that is complete, and bad"),
        ("one-good", get(), (A,), get(b"/s/../x"), 400, False, "the good one is answered first"),
        ("good-body", post(), (P,), get(b"/s/a", b"X : y"), 400, False, "the good one is answered first"),
        ("good-chunks", chunks(), (C,), get(b"/s/a", b"X\0: y"), 400, False, "the good one is answered first"),
        ("three-good", get() + post() + chunks(), (A, P, C), b"\0" + get(), 400, False, "all good ones are answered"),
    )
]  # fmt: skip
BAD += [
    refused("body-byte-more", "9112 6.3", post() + b"!" + get(), before=(P,), why="it begins the next request"),
    answered("body-byte-less", "9112 6.3", post(body=b"hell").replace(b": 4", b": 5") + get(),
             seen(b"POST /s/p", body=b"hellG"), seen(b"ET /s/a"), why="by the letter, the rest is another method"),
    refused("chunks-byte-more", "9112 7.1", chunks() + b"0" + get(), before=(C,), why="it begins the next request"),
    refused("chunks-end-twice", "9112 7.1", chunks() + END + get(), before=(C,), why="a second end is no request"),
    refused("body-nul-more", "9112 6.3", post() + b"\0" + get(), before=(P,), why="padding is no request"),
    declined("behind-bad-json", "9112 9.3.2", post(b"/v1/chat/completions", b"{" + EVIL), 400,
             why="the body was all there: it is let go as a whole"),
    declined("behind-no-model", "9112 9.3.2", post(b"/v1/chat/completions", b"[]"), 400, why="JSON, but no object"),
    declined("behind-415", "design 5", post(b"/v1/chat/completions", EVIL, b"Content-Encoding: gzip"), 415,
             why="answered by its head: the body is not the next request", end=End.EITHER),
    declined("behind-415-chunks", "design 5", http(b"POST /v1/messages HTTP/1.1", HOST, CHUNKED,
             b"Content-Encoding: br", body=END), 415, why="chunks are not read to their end", end=End.CLOSES),
]  # fmt: skip

# Heads that repeat are recognised by what differs in them: what stands there must pass the same rules.
KNOWN = [seen(b"POST /s/p", b"X-Trace: %d" % number, body=b"x" * number) for number in range(1, 4)]


def alike(number: int, trace: bytes = b"", length: bytes = b"") -> bytes:
    head = (HOST, b"X-Trace: " + (trace or b"%d" % number), b"Content-Length: " + (length or b"%d" % number))
    return http(b"POST /s/p HTTP/1.1", *head, body=b"x" * number)


THREE = b"".join(map(alike, range(1, 4)))


def like(number: int, value: bytes) -> Seen:
    return seen(b"POST /s/p", b"X-Trace: " + value, body=b"x" * number)


REPEATS = [
    answered("repeat-plain", "design 5", THREE + alike(9), *KNOWN, like(9, b"9"), why="a fourth one like the others"),
    answered("repeat-obs-text", "9110 5.5", THREE + alike(1, b"\xe9"), *KNOWN, like(1, b"\xe9"), why="legal there too"),
    answered("repeat-length-zeros", "9110 8.6", THREE + alike(2, b"", b"02"), *KNOWN, like(2, b"2"), why="a number"),
    answered("repeat-no-body", "9110 8.6", THREE + alike(0), *KNOWN, like(0, b"0"), why="a length of zero"),
    answered("repeat-long", "design 7", THREE + alike(1, b"t" * 8000), *KNOWN, like(1, b"t" * 8000), why="in bounds"),
    *(
        refused(f"repeat-{name}", section, THREE + alike(1, trace, length) + EVIL, status, before=tuple(KNOWN), why=why)
        for name, section, trace, length, status, why in (
            ("nul", "9110 5.5", b"a\0b", b"", 400, "a control byte in what differs"),
            ("bare-lf", "9112 2.2", b"a\nTransfer-Encoding: chunked", b"", 400, "a field for some"),
            ("bare-cr", "9112 2.2", b"a\rTransfer-Encoding: chunked", b"", 400, "a field for some"),
            ("fold", "9112 5.2", b"a\r\n b", b"", 400, "a folded line in what differs"),
            ("second-length", "9112 6.3", b"a\r\nContent-Length: 0", b"", 400, "one line more"),
            ("coding", "9112 6.3", b"a\r\nTransfer-Encoding: chunked", b"", 400, "one line more"),
            ("second-host", "9112 3.2", b"a\r\nHost: other", b"", 400, "one line more"),
            ("length-sign", "9110 8.6", b"", b"+1", 400, "no plain number"),
            ("length-blank-within", "9110 8.6", b"", b"1 1", 400, "no plain number"),
            ("length-underscore", "9110 8.6", b"", b"1_0", 400, "no plain number"),
            ("length-wide-digit", "9110 8.6", b"", "\N{FULLWIDTH DIGIT ONE}".encode(), 400, "no plain number"),
            ("length-superscript", "9110 8.6", b"", b"\xb9", 400, "no plain number"),
            ("length-empty", "9110 8.6", b"", b" ", 400, "no number"),
            ("length-list", "9110 8.6", b"", b"1, 1", 400, "no list"),
            ("length-overflow", "9110 8.6", b"", b"18446744073709551617", 400, "is 1 modulo 2 to the 64"),
            ("length-and-coding", "9112 6.3", b"", b"1\r\nTransfer-Encoding: chunked", 400, "one line more"),
            ("line-too-long", "reliability", b"t" * 16384, b"", 431, "one line over 16 KiB"),
        )
    ),
    *(
        answered(
            f"repeat-{name}",
            section,
            THREE + http(b"POST /s/p HTTP/1.1", HOST, *lines, b"Content-Length: 1", body=b"x"),
            *KNOWN,
            seen(b"POST /s/p", *kept, body=b"x"),
            why=why,
        )
        for name, section, lines, kept, why in (
            ("names-it", "9110 7.6.1", (b"X-Trace: 1", b"Connection: X-Trace"), (), "a line more, which drops one"),
            ("other-name", "design 5", (b"X-Trace2: 1",), (b"X-Trace2: 1",), "another name in its place"),
            ("credential", "design 7", (b"X-Trace: 1", b"X-Aigw-Key: k"), (b"X-Trace: 1",), "a line more"),
            ("hop", "design 7", (b"X-Trace: 1", b"Upgrade: h2c"), (b"X-Trace: 1",), "a line more"),
        )
    ),
]  # fmt: skip

CASES = [*GOOD, *BAD, *REPEATS]
