"""Request lines: methods, targets, versions, and what stands before them (RFC 9112 sections 2.2 and 3, RFC 9110 section
9)."""

from __future__ import annotations

from smuggling.requests.case import EVIL, HOST, Case, End, answered, declined, http, refused, seen

GET = seen(b"GET /s/a")


def line(text: bytes) -> bytes:
    return http(text, HOST)


METHODS: list[Case] = [
    answered(f"method-{method.decode()}", "9110 9", line(method + b" /s/a HTTP/1.1"), seen(method + b" /s/a"), why=why)
    for method, why in (
        (b"GET", "the plainest request there is"),
        (b"HEAD", "its answer has a length and no body"),
        (b"OPTIONS", "of a resource, not of the server"),
        (b"DELETE", "needs no body and no length"),
        (b"PROPFIND", "registered by WebDAV (RFC 4918)"),
        (b"MKCALENDAR", "registered, and long"),
        (b"M-SEARCH", "a token may have a hyphen"),
        (b"REPORT", "registered by RFC 3253"),
        (b"QUERY", "safe, and may have a body"),
        (b"PURGE", "in no registry, but caches use it"),
        (b"BREW", "an extension method that no parser's table has: methods are open (RFC 9110 section 16.1)"),
        (b"X-PRIVATE_ONE", "a word of one's own"),
        (b"A" * 32, "a long one"),
    )
]
METHODS += [
    answered(
        f"method-{method.decode()}-without-length",
        "9112 6.3",
        line(method + b" /s/a HTTP/1.1"),
        seen(method + b" /s/a"),
        why="neither length nor coding: there is no body, and the upstream is told so",
    )
    for method in (b"POST", b"PUT", b"PATCH")
]

BAD_METHODS = [
    refused(f"method-{name}", section, line(method + b" /s/a HTTP/1.1"), status, why=why, otherwise=otherwise)
    for name, section, method, status, why, otherwise in (
        ("empty", "9112 3.1", b"", 400, "the line begins with a blank", ""),
        ("with-colon", "9110 9.1", b"GET:", 400, "`:` is in no token", ""),
        ("with-parentheses", "9110 9.1", b"GET()", 400, "delimiters are in no token", ""),
        ("with-quote", "9110 9.1", b'"GET"', 400, "a quoted method is none", ""),
        ("with-comma", "9110 9.1", b"GET,POST", 400, "no list", ""),
        ("with-slash", "9110 9.1", b"G/T", 400, "`/` is in no token", ""),
        ("high-byte", "9110 9.1", b"G\xc9T", 400, "tokens are ASCII", ""),
        ("nul", "9110 9.1", b"GE\0T", 400, "a reader in C sees another method", ""),
        ("escape", "9110 9.1", b"\x1b[2J", 400, "control bytes would reach a terminal by the log", ""),
        ("bom", "9112 3.1", b"\xef\xbb\xbfGET", 400, "a byte order mark is no part of a method", ""),
        ("at-sign", "9110 9.1", b"GET@", 400, "`@` is in no token", ""),
        ("braces", "9110 9.1", b"{GET}", 400, "braces are in no token", ""),
        ("lower-case", "9110 9.1", b"get", 400, "not GET, but readers who fold case take it for that",
         "`get` is a method that nobody knows; forwarded it could be taken for GET, past a rule's `methods`"),
        ("mixed-case-head", "9110 9.1", b"Head", 400, "an upstream that folds case would answer without a body",
         "as above; the two ends would disagree on where the answer ends"),
        ("digits", "9110 9.1", b"0GET", 400, "legal, but what a reader out of step sees looks like this",
         "answered: any token is a method; no registered one has digits or signs"),
        ("sign", "9110 9.1", b"!GET", 400, "legal, but what a reader out of step sees looks like this",
         "answered: any token is a method; no registered one has digits or signs"),
        ("too-long", "9112 3", b"A" * 33, 400, "no method has so many letters",
         "501 is what section 3 suggests; it is refused as bad all the same"),
        ("of-a-kilobyte", "9112 3", b"GET" * 400, 400, "a method is not for storing things",
         "501 is what section 3 suggests; it is refused as bad all the same"),
    )
]  # fmt: skip

NOT_SERVED = [
    refused("connect", "9110 9.3.6", line(b"CONNECT example.org:443 HTTP/1.1"), why="the gateway is no tunnel"),
    refused("connect-port-0", "9110 9.3.6", line(b"CONNECT gw:0 HTTP/1.1"), why="nor a scanner of ports"),
    refused(
        "connect-with-path", "9112 3.2.3", line(b"CONNECT /s/a HTTP/1.1"), why="authority-form only, and no tunnel"
    ),
    refused(
        "connect-and-a-body",
        "9110 9.3.6",
        http(b"CONNECT gw:80 HTTP/1.1", HOST, b"Content-Length: %d" % len(EVIL), body=EVIL),
        why="CONNECT has no body: what follows must not be a request",
    ),
    refused("trace", "9110 9.3.8", line(b"TRACE /s/a HTTP/1.1"), 405, why="echoes the credential the gateway adds"),
    refused(
        "trace-by-model", "9110 9.3.8", line(b"TRACE /v1/files HTTP/1.1"), 405, why="the provider's key in the echo"
    ),
    refused("track", "9110 9.3.8", line(b"TRACK /s/a HTTP/1.1"), 405, why="some servers' other name for TRACE"),
    refused("pri-preface", "9113 3.4", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, why="HTTP/2 is not spoken here"),
    refused("pri-as-1.1", "9113 3.4", line(b"PRI * HTTP/1.1"), why="`*` is for OPTIONS alone"),
    declined(
        "options-asterisk", "9110 9.3.7", line(b"OPTIONS * HTTP/1.1"), 404, why="a legal target that no rule takes"
    ),
]

VERSIONS = [
    refused(f"version-{name}", "9112 2.3", http(b"GET /s/a" + text, HOST), status, why=why)
    for name, text, status, why in (
        ("none", b"", 400, "HTTP/0.9: the answer would have no head"),
        ("none-and-a-blank", b" ", 400, "an empty version"),
        ("0.9", b" HTTP/0.9", 505, "has no heads"),
        ("1.2", b" HTTP/1.2", 505, "not assigned; only 1.0 and 1.1 are understood"),
        ("1.9", b" HTTP/1.9", 505, "not assigned"),
        ("2.0", b" HTTP/2.0", 505, "another protocol, with its own framing"),
        ("3.0", b" HTTP/3.0", 505, "another protocol"),
        ("1.10", b" HTTP/1.10", 400, "one digit each"),
        ("01.1", b" HTTP/01.1", 400, "one digit each"),
        ("1", b" HTTP/1", 400, "the minor digit is missing"),
        ("1-dot", b" HTTP/1.", 400, "the minor digit is missing"),
        ("comma", b" HTTP/1,1", 400, "a dot stands between the digits"),
        ("lower-case", b" http/1.1", 400, "the name is case-sensitive"),
        ("no-name", b" 1.1", 400, "the protocol's name is missing"),
        ("https", b" HTTPS/1.1", 400, "a scheme is no version"),
        ("rtsp", b" RTSP/1.0", 400, "another protocol that looks alike"),
        ("icy", b" ICE/1.0", 400, "another protocol that looks alike"),
        ("sign", b" HTTP/+1.1", 400, "no signs"),
        ("wide-digit", " HTTP/1.\N{FULLWIDTH DIGIT ONE}".encode(), 400, "only ASCII digits"),
        ("blank-behind", b" HTTP/1.1 ", 400, "a blank behind the version"),
        ("tab-behind", b" HTTP/1.1\t", 400, "a tab behind the version"),
        ("nul-behind", b" HTTP/1.1\0", 400, "a reader in C stops there"),
        ("words-behind", b" HTTP/1.1 HTTP/1.0", 400, "two versions"),
    )
]  # fmt: skip
VERSIONS += [
    answered(
        "1.0", "9112 2.3", b"GET /s/a HTTP/1.0\r\n\r\n", GET, why="needs no Host, gets one answer", end=End.CLOSES
    ),
    answered("1.0-host", "9112 2.3", line(b"GET /s/a HTTP/1.0"), GET, why="may have a Host", end=End.CLOSES),
    answered(
        "1.0-keep-alive",
        "9112 9.3",
        http(b"GET /s/a HTTP/1.0", HOST, b"Connection: keep-alive"),
        GET,
        why="a proxy must not keep a connection to an HTTP/1.0 client alive",
        end=End.CLOSES,
    ),
    answered(
        "1.0-post",
        "9112 6.3",
        http(b"POST /s/a HTTP/1.0", b"Content-Length: 2", body=b"hi"),
        seen(b"POST /s/a", body=b"hi"),
        why="a body by length is as old as HTTP/1.0",
        end=End.CLOSES,
    ),
]

WORDS = [
    refused(f"line-{name}", "9112 3", http(text, HOST), why=why)
    for name, text, why in (
        ("two-blanks-before-target", b"GET  /s/a HTTP/1.1", "exactly one blank; lenient readers skip to other words"),
        ("two-blanks-before-version", b"GET /s/a  HTTP/1.1", "exactly one blank"),
        ("tab-for-blank", b"GET\t/s/a HTTP/1.1", "a tab is no blank here"),
        ("tab-before-version", b"GET /s/a\tHTTP/1.1", "a tab is no blank here"),
        ("vertical-tab", b"GET\x0b/s/a HTTP/1.1", "white space that some readers take for a blank"),
        ("form-feed", b"GET /s/a\x0cHTTP/1.1", "white space that some readers take for a blank"),
        ("no-break-space", b"GET /s/a\xa0HTTP/1.1", "white space in Latin-1"),
        ("leading-blank", b" GET /s/a HTTP/1.1", "a line that begins with a blank continues another one"),
        ("leading-tab", b"\tGET /s/a HTTP/1.1", "likewise"),
        ("method-only", b"GET", "no target"),
        ("version-only", b"HTTP/1.1 200 OK", "an answer is no request"),
        ("target-only", b"/s/a", "no method, no version"),
        ("four-words", b"GET /s/a /s/evil HTTP/1.1", "two targets"),
        ("bare-cr", b"GET /s/a\rHTTP/1.1", "a CR within the line ends it for some readers"),
        ("bare-cr-and-second-line", b"GET /s/a HTTP/1.1\rGET /s/evil HTTP/1.1", "two lines for some readers"),
        ("header-first", b"Host: gw", "a header where the request line belongs"),
        ("json", b'{"model": "cheap"}', "no HTTP at all"),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00", "a TLS hello at the plain port"),
        ("ssh", b"SSH-2.0-OpenSSH_9.6", "another protocol"),
        ("proxy-protocol", b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2", "not configured, so nobody may claim an address by it"),
    )
]

BEFORE = [
    answered("before-crlf", "9112 2.2", b"\r\n" + line(b"GET /s/a HTTP/1.1"), GET, why="one empty line is let go"),
    answered(
        "before-crlf-crlf",
        "9112 2.2",
        b"\r\n\r\n" + line(b"GET /s/a HTTP/1.1"),
        GET,
        why="`at least one` empty line is let go; two look like the end of a head",
    ),
    *(
        Case(
            f"before-{name}",
            "9112 2.2",
            text + line(b"GET /s/a HTTP/1.1"),
            why,
            (200,),
            (GET,),
            End.OPEN,
            otherwise="refused; but what stands between two messages belongs to neither, and is let go whatever it is",
        )
        for name, text, why in (
            ("lf", b"\n", "an empty line ends in CRLF too"),
            ("cr", b"\r", "a CR is no empty line"),
            ("crcrlf", b"\r\r\n", "a CR is no empty line"),
        )
    ),
    refused(
        "before-blank-line", "9112 2.2", b" \r\n" + line(b"GET /s/a HTTP/1.1"), why="a line of blanks is not empty"
    ),
    refused("before-nul", "9112 3", b"\0" + line(b"GET /s/a HTTP/1.1"), why="nothing may stand before a method"),
]

CASES = [*METHODS, *BAD_METHODS, *NOT_SERVED, *VERSIONS, *WORDS, *BEFORE]
