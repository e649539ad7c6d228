"""What ends at the gateway: Connection and what it names, Upgrade, Expect, and the fields of a hop (RFC 9110 sections
7.6, 7.8, 10.1.1)."""

from __future__ import annotations

from smuggling.requests.case import CHUNKED, EVIL, HOST, Case, End, answered, declined, http, refused, seen

GET = b"GET /s/a HTTP/1.1"
POST = b"POST /s/a HTTP/1.1"
FIVE = b"Content-Length: 5"
END = b"0\r\n\r\n"

CONNECTION: list[Case] = [
    *(
        answered(f"connection-{name}", "9110 7.6.1", http(GET, HOST, *lines), seen(b"GET /s/a", *kept), why=why)
        for name, lines, kept, why in (
            ("keep-alive", (b"Connection: keep-alive",), (), "is what HTTP/1.1 does anyway"),
            ("empty", (b"Connection:",), (), "names nothing"),
            ("commas", (b"Connection: ,,keep-alive, ,",), (), "empty list elements are let go"),
            ("names-field", (b"Connection: X-Hop", b"X-Hop: 1", b"X: 2"), (b"X: 2",), "a field of this hop"),
            ("names-field-behind", (b"X-Hop: 1", b"Connection: X-Hop", b"X: 2"), (b"X: 2",), "wherever it stands"),
            ("names-by-case", (b"Connection: x-HOP", b"X-Hop: 1"), (), "names have no case"),
            ("names-field-twice", (b"Connection: X", b"X: 1", b"x: 2"), (), "all of that name"),
            ("names-two", (b"Connection: A, B", b"A: 1", b"B: 2", b"C: 3"), (b"C: 3",), "a list"),
            ("twice", (b"Connection: A", b"Connection: B", b"A: 1", b"B: 2"), (), "two lines are one list"),
            ("names-absent", (b"Connection: X-Hop", b"X: 2"), (b"X: 2",), "nothing to remove"),
            ("names-prefix", (b"Connection: X", b"X-Y: 1"), (b"X-Y: 1",), "whole names only"),
            ("names-itself", (b"Connection: Connection",), (), "ends here anyway"),
            ("names-host", (b"Connection: Host",), (), "a request cannot do without one"),
            ("names-our-id", (b"Connection: X-Request-Id",), (), "the gateway adds it behind this hop"),
            ("names-key", (b"Connection: Authorization", b"Authorization: Bearer x"), (b"Authorization: Bearer x",),
             "a client's credential is not taken off its request by the request"),
            ("names-forwarded", (b"Connection: X-Forwarded-For", b"X-Forwarded-For: 1.2.3.4"), (),
             "by the letter; aigw itself relies on no such field"),
        )
    ),
    *(
        answered(
            f"connection-names-{name}",
            "9110 7.6.1",
            http(POST, HOST, b"Connection: " + value, line, body=body),
            seen(b"POST /s/a", body=b"hello"),
            why="the framing is not for Connection to take away",
        )
        for name, value, line, body in (
            ("length", b"Content-Length", FIVE, b"hello"),
            ("coding", b"Transfer-Encoding", CHUNKED, b"5\r\nhello\r\n" + END),
            ("length-and-close-like", b"closed, Content-Length", FIVE, b"hello"),
        )
    ),
    *(
        answered(
            f"connection-{name}", "9112 9.6", http(GET, HOST, *lines), seen(b"GET /s/a"), why=why, end=End.CLOSES
        )
        for name, lines, why in (
            ("close", (b"Connection: close",), "what follows a last request is none"),
            ("close-by-case", (b"CONNECTION: Close",), "options have no case"),
            ("close-in-list", (b"Connection: x, close", b"X: y"), "somewhere in a list"),
            ("close-and-keep-alive", (b"Connection: keep-alive", b"Connection: close"), "close has the last word"),
        )
    ),
    *(
        refused(f"connection-{name}", "9110 7.6.1", http(GET, HOST, b"Connection: " + value), why=why)
        for name, value, why in (
            ("two-words", b"keep alive", "no list of tokens"),
            ("quoted", b'"close"', "a string is no token"),
            ("parameter", b"close;x", "options have no parameters"),
            ("equals", b"timeout=5", "that is Keep-Alive's"),
            ("high-byte", b"cl\xf6se", "tokens are ASCII"),
            ("nul", b"close\0", "a reader in C sees close"),
        )
    ),
    answered(
        "connection-credential-of-ours",
        "9110 7.6.1",
        http(b"GET /v1/files HTTP/1.1", HOST, b"Connection: Authorization, Host, X-Request-Id"),
        seen(b"GET /v1/files", by="llm"),
        why="what the gateway adds cannot be named away",
    ),
    answered(
        "connection-field-of-ours",
        "9110 7.6.1",
        http(b"GET /private/a HTTP/1.1", HOST, b"Connection: X-By"),
        seen(b"GET /private/a", by="private"),
        why="a header from the config stays",
    ),
    answered(
        "field-of-ours-by-client",
        "design 7",
        http(b"GET /private/a HTTP/1.1", HOST, b"X-By: evil", b"x-by: plain"),
        seen(b"GET /private/a", by="private"),
        why="a header from the config replaces the client's",
    ),
]  # fmt: skip

FIELDS = [
    answered(f"hop-{name}", section, http(GET, HOST, *lines, b"X: y"), seen(b"GET /s/a", b"X: y"), why=why)
    for name, section, lines, why in (
        ("keep-alive", "9110 7.6.1", (b"Keep-Alive: timeout=5",), "of this hop"),
        ("te", "9110 10.1.4", (b"TE: trailers, deflate", b"Connection: TE"), "of this hop"),
        ("te-unnamed", "9110 10.1.4", (b"TE: trailers",), "of this hop, though Connection does not say so"),
        ("trailer", "9110 6.6.2", (b"Trailer: X-Sum",), "trailers are framed anew"),
        ("proxy-connection", "9112 C.2.2", (b"Proxy-Connection: keep-alive",), "in no standard; of this hop"),
        ("proxy-authorization", "9110 11.7.2", (b"Proxy-Authorization: Basic eA==",), "a credential for a proxy"),
        ("proxy-authenticate", "9110 11.7.1", (b"Proxy-Authenticate: Basic",), "belongs into answers"),
        ("proxy-anything", "design 7", (b"Proxy-Status: x", b"Proxy: http://evil"), "httpoxy, among others"),
        ("request-id", "design 7", (b"X-Request-Id: mine-1",), "taken over, not doubled"),
        ("request-id-insane", "design 7", (b"X-Request-Id: a b\xe9",), "replaced"),
        ("request-ids", "design 7", (b"X-Request-Id: a", b"X-Request-Id: b"), "one goes on"),
        ("our-key", "design 7", (b"X-Aigw-Key: sk-x",), "never leaves the gateway"),
    )
]

UPGRADE = [
    answered(
        "upgrade-websocket",
        "9110 7.8",
        http(GET, HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
        seen(b"GET /s/a", b"Sec-WebSocket-Version: 13"),
        why="a server may ignore it, and goes on in HTTP/1.1",
    ),
    answered(
        "upgrade-websocket-and-more",
        "9110 7.8",
        http(GET, HOST, b"Connection: Upgrade", b"Upgrade: websocket") + http(b"GET /s/b HTTP/1.1", HOST),
        seen(b"GET /s/a"),
        seen(b"GET /s/b"),
        why="what follows is the next request, not a tunnel's bytes",
    ),
    answered(
        "upgrade-h2c",
        "9113 3.1",
        http(GET, HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        seen(b"GET /s/a"),
        why="h2c to an upstream would be a tunnel past every rule",
    ),
    answered(
        "upgrade-h2c-unnamed",
        "9113 3.1",
        http(GET, HOST, b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        seen(b"GET /s/a"),
        why="some upstreams do not look at Connection",
    ),
    answered(
        "upgrade-and-body",
        "9110 7.8",
        http(POST, HOST, b"Connection: Upgrade", b"Upgrade: h2c", FIVE, body=b"hello") + http(GET, HOST),
        seen(b"POST /s/a", body=b"hello"),
        seen(b"GET /s/a"),
        why="llhttp stops at the head; the body is a body all the same",
    ),
    answered(
        "upgrade-and-chunks",
        "9110 7.8",
        http(POST, HOST, b"Connection: Upgrade", b"Upgrade: x", CHUNKED, body=b"5\r\nhello\r\n" + END)
        + http(GET, HOST),
        seen(b"POST /s/a", body=b"hello"),
        seen(b"GET /s/a"),
        why="likewise",
    ),
    answered(
        "upgrade-tls", "2817 3", http(GET, HOST, b"Upgrade: TLS/1.0"), seen(b"GET /s/a"), why="no TLS within HTTP"
    ),
    answered("upgrade-empty", "9110 7.8", http(GET, HOST, b"Upgrade:"), seen(b"GET /s/a"), why="asks for nothing"),
    answered(
        "upgrade-in-1.0",
        "9110 7.8",
        http(b"GET /s/a HTTP/1.0", HOST, b"Connection: Upgrade", b"Upgrade: websocket"),
        seen(b"GET /s/a"),
        why="must be ignored there",
        end=End.CLOSES,
    ),
    refused(
        "upgrade-then-preface",
        "9113 3.4",
        http(GET, HOST, b"Connection: Upgrade", b"Upgrade: h2c") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        505,
        before=(seen(b"GET /s/a"),),
        why="nobody said 101",
    ),
]

EXPECT = [
    *(
        answered(
            f"expect-{name}",
            "9110 10.1.1",
            http(POST, HOST, *lines, body=body),
            seen(b"POST /s/a", body=payload),
            why=why,
        )
        for name, lines, body, payload, why in (
            ("length", (b"Expect: 100-continue", FIVE), b"hello", b"hello", "the gateway says 100 itself"),
            ("chunks", (b"Expect: 100-continue", CHUNKED), b"5\r\nhello\r\n" + END, b"hello", "likewise"),
            ("by-case", (b"expect: 100-Continue", FIVE), b"hello", b"hello", "expectations have no case"),
            ("blanks", (b"Expect:\t100-continue ", FIVE), b"hello", b"hello", "blanks around a value are none of it"),
            ("no-body", (b"Expect: 100-continue",), b"", b"", "nothing to wait for"),
            ("length-0", (b"Expect: 100-continue", b"Content-Length: 0"), b"", b"", "nothing to wait for"),
            (
                "twice",
                (b"Expect: 100-continue", b"Expect: 100-continue", FIVE),
                b"hello",
                b"hello",
                "says the same twice",
            ),
        )
    ),
    answered(
        "expect-and-next",
        "9110 10.1.1",
        http(POST, HOST, b"Expect: 100-continue", FIVE, body=b"hello") + http(GET, HOST),
        seen(b"POST /s/a", body=b"hello"),
        seen(b"GET /s/a"),
        why="the body is not lost, nor taken for the next request",
    ),
    answered(
        "expect-by-model",
        "9110 10.1.1",
        http(
            b"POST /v1/chat/completions HTTP/1.1",
            HOST,
            b"Expect: 100-continue",
            b"Content-Length: 18",
            body=b'{"model": "cheap"}',
        ),
        seen(b"POST /v1/chat/completions", body=b'{"model": "cheap"}', by="llm"),
        why="collected behind the 100",
    ),
    answered(
        "expect-in-1.0",
        "9110 10.1.1",
        http(b"POST /s/a HTTP/1.0", HOST, b"Expect: 100-continue", FIVE, body=b"hello"),
        seen(b"POST /s/a", body=b"hello"),
        why="an HTTP/1.0 client cannot read a 100",
        end=End.CLOSES,
    ),
    *(
        refused(
            f"expect-{name}",
            "9110 10.1.1",
            http(POST, HOST, b"Expect: " + value, b"Content-Length: %d" % len(EVIL), body=EVIL),
            417,
            why=why,
        )
        for name, value, why in (
            ("unknown", b"200-ok", "nobody knows it"),
            ("empty", b"", "expects what?"),
            ("list", b"100-continue, x", "one of them is unknown"),
            ("prefixed", b"y 100-continue", "hides it from one of two readers"),
            ("101", b"101-switching-protocols", "nobody knows it"),
            ("parameter", b"100-continue;x=y", "nobody knows it"),
            ("number", b"100", "nobody knows it"),
        )
    ),
    refused(
        "expect-twice-differs",
        "9110 10.1.1",
        http(POST, HOST, b"Expect: 100-continue", b"Expect: x", FIVE, body=b"hello"),
        417,
        why="one of them is unknown",
    ),
    refused("expect-nul", "9110 5.5", http(POST, HOST, b"Expect: 100-continue\0", FIVE), why="a reader in C knows it"),
    declined(
        "expect-then-404",
        "9110 10.1.1",
        http(b"POST /x HTTP/1.1", b"Host: kept", b"Expect: 100-continue", b"Content-Length: %d" % len(EVIL), body=EVIL),
        404,
        why="answered at once; a body that comes all the same is no request",
        end=End.EITHER,
    ),
    declined(
        "expect-then-413",
        "9110 10.1.1",
        http(b"POST /v1/chat/completions HTTP/1.1", HOST, b"Expect: 100-continue", b"Content-Length: 99999") + EVIL,
        413,
        why="answered at once instead of a 100",
        end=End.CLOSES,
    ),
]

CASES = [*CONNECTION, *FIELDS, *UPGRADE, *EXPECT]
