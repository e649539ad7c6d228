"""Field lines: names, values, line ends and sizes (RFC 9110 section 5, RFC 9112 sections 2.2 and 5)."""

from __future__ import annotations

from smuggling.requests.case import EVIL, HOST, Case, End, answered, dropped, http, refused, seen

GET = b"GET /s/a HTTP/1.1"


def with_line(line: bytes) -> bytes:
    """The line in the midst of others, so that a reader who lets it go reads on."""
    return http(GET, HOST, line, b"X-Behind: 1")


NAMES = [
    refused(f"name-{name}", section, with_line(line), why=why)
    for name, section, line, why in (
        (
            "blank-before-colon",
            "9112 5.1",
            b"Content-Length : 5",
            "the classic: one reader sees a length, one does not",
        ),
        ("tab-before-colon", "9112 5.1", b"Transfer-Encoding\t: chunked", "likewise"),
        ("blank-within", "9110 5.1", b"Content Length: 5", "two words are no name"),
        ("empty", "9110 5.1", b": value", "no name at all"),
        ("colon-only", "9110 5.1", b":", "neither name nor value"),
        ("no-colon", "9112 5", b"Content-Length", "no field line"),
        ("no-colon-and-blank", "9112 5", b"Transfer-Encoding chunked", "no field line"),
        ("equals-for-colon", "9112 5", b"Content-Length=5", "no field line"),
        ("blanks-only", "9112 5.2", b"   ", "an empty continuation for some, the end of the head for others"),
        ("leading-blank", "9112 5.2", b" X: y", "continues the line before it, or is none"),
        ("leading-tab", "9112 5.2", b"\tX: y", "likewise"),
        ("nul-within", "9110 5.1", b"X\0Y: z", "a reader in C sees another name"),
        ("nul-in-length", "9110 5.1", b"Content-Length\0: 5", "a reader in C sees a length"),
        ("backspace", "9110 5.1", b"Content-Length\x08: 5", "control bytes are in no token"),
        ("delete", "9110 5.1", b"X\x7f: y", "so is DEL"),
        ("vertical-tab", "9110 5.1", b"Transfer-Encoding\x0b: chunked", "trimmed by some"),
        ("form-feed", "9110 5.1", b"\x0cTransfer-Encoding: chunked", "trimmed by some"),
        ("high-byte", "9110 5.1", b"X-\xe4: y", "names are ASCII"),
        ("utf-8", "9110 5.1", b"X-\xc3\xa4: y", "names are ASCII"),
        ("bom", "9110 5.1", b"\xef\xbb\xbfHost: other", "names are ASCII"),
        ("no-break-space", "9110 5.1", b"Content-Length\xa0: 5", "white space in Latin-1"),
        ("kelvin-sign", "9110 5.1", b"X-\xe2\x84\xaa: y", "folds to k in Unicode"),
        ("slash", "9110 5.1", b"X/Y: z", "a delimiter"),
        ("parentheses", "9110 5.1", b"X(Y): z", "no comments in names"),
        ("quotes", "9110 5.1", b'"Host": other', "a quoted name is none"),
        ("brackets", "9110 5.1", b"X[0]: y", "delimiters"),
        ("at-sign", "9110 5.1", b"X@Y: z", "a delimiter"),
        ("semicolon", "9110 5.1", b"X;Y: z", "a delimiter"),
        ("comma", "9110 5.1", b"X,Content-Length: 5", "a delimiter"),
        ("backslash", "9110 5.1", b"Transfer\\Encoding: chunked", "a delimiter"),
        ("request-line", "9112 5", b"GET /s/evil HTTP/1.1", "a second request line is no field"),
        ("pseudo", "9113 8.3", b":path: /s/evil", "HTTP/2's own fields are none here"),
        ("pseudo-authority", "9113 8.3", b":authority: other", "likewise"),
    )
]

VALUES = [
    refused(f"value-{name}", section, with_line(line), why=why)
    for name, section, line, why in (
        ("nul", "9110 5.5", b"X: a\0b", "a reader in C sees the first half"),
        ("nul-at-end", "9110 5.5", b"X: a\0", "likewise"),
        ("escape", "9110 5.5", b"X: \x1b[31m", "control bytes end up in terminals"),
        ("bell", "9110 5.5", b"X: \x07", "a control byte"),
        ("vertical-tab", "9110 5.5", b"X: a\x0bb", "a control byte"),
        ("form-feed", "9110 5.5", b"X: a\x0cb", "a control byte"),
        ("delete", "9110 5.5", b"X: a\x7f", "a control byte"),
        ("bare-cr", "9112 2.2", b"X: a\rb", "ends the line for some"),
        ("bare-cr-and-field", "9112 2.2", b"X: a\rTransfer-Encoding: chunked", "a field for some"),
        ("bare-cr-at-end", "9112 2.2", b"X: a\r", "CR CR LF"),
        ("bare-lf-and-field", "9112 2.2", b"X: a\nTransfer-Encoding: chunked", "a field for some"),
        ("bare-lf", "9112 2.2", b"X: a\nb", "ends the line for some"),
        ("fold-blank", "9112 5.2", b"X: a\r\n b", "folding is obsolete; unfolded differently by everyone"),
        ("fold-tab", "9112 5.2", b"X: a\r\n\tb", "likewise"),
        ("fold-of-nothing", "9112 5.2", b"X: a\r\n \r\n\tb", "likewise, over an empty line"),
        ("fold-hides-length", "9112 5.2", b"Content-Length:\r\n 5", "the value on a line of its own"),
        ("fold-hides-coding", "9112 5.2", b"Transfer-Encoding:\r\n chunked", "likewise"),
        (
            "fold-makes-coding",
            "9112 5.2",
            b"X: a\r\n Transfer-Encoding: chunked",
            "a field for those who do not unfold",
        ),
        ("in-length-nul", "9110 8.6", b"Content-Length: 5\0", "a reader in C sees 5"),
        ("in-host-cr", "9112 3.2", b"X-Host: a\rHost: b", "a second Host for some"),
    )
]

LINE_ENDS = [
    refused(f"ends-{name}", "9112 2.2", raw, why=why)
    for name, raw, why in (
        ("all-in-lf", b"GET /s/a HTTP/1.1\nHost: gw\n\n", "bare LFs throughout"),
        ("first-in-lf", b"GET /s/a HTTP/1.1\nHost: gw\r\n\r\n", "the request line alone"),
        ("field-in-lf", b"GET /s/a HTTP/1.1\r\nHost: gw\nX: y\r\n\r\n", "one field line"),
        ("blank-in-lf", b"GET /s/a HTTP/1.1\r\nHost: gw\r\n\n" + EVIL, "the blank line: where does the head end?"),
        ("lf-crlf", b"GET /s/a HTTP/1.1\r\nHost: gw\n\r\n" + EVIL, "the last field line"),
        ("crlf-lf-crlf", b"GET /s/a HTTP/1.1\r\nHost: gw\r\n\n\r\n", "an LF for a line"),
        ("all-in-cr", b"GET /s/a HTTP/1.1\rHost: gw\r\r" + EVIL, "bare CRs throughout"),
        ("crcrlf", b"GET /s/a HTTP/1.1\r\r\nHost: gw\r\r\n\r\r\n" + EVIL, "two CRs each"),
        ("lfcr", b"GET /s/a HTTP/1.1\n\rHost: gw\n\r\n\r" + EVIL, "the wrong way round"),
        ("cr-cr-lf-blank", b"GET /s/a HTTP/1.1\r\nHost: gw\r\n\r\r\n" + EVIL, "a CR more in the blank line"),
        ("blank-with-space", b"GET /s/a HTTP/1.1\r\nHost: gw\r\n \r\n" + EVIL, "a blank line that holds a blank"),
        ("vertical-tabs", b"GET /s/a HTTP/1.1\x0bHost: gw\x0b\x0b\r\n\r\n", "lines for Python's splitlines"),
        ("next-line", b"GET /s/a HTTP/1.1\xc2\x85Host: gw\r\n\r\n", "a line end in Unicode"),
        ("line-separator", b"GET /s/a HTTP/1.1\xe2\x80\xa8Host: gw\r\n\r\n", "a line end in Unicode"),
    )
]

SIZES = [
    refused(
        "size-target", "design 7", http(b"GET /s/" + b"a" * 16384 + b" HTTP/1.1", HOST), 414, why="over bounds.url"
    ),
    refused(
        "size-target-query",
        "design 7",
        http(b"GET /s/a?" + b"q" * 16384 + b" HTTP/1.1", HOST),
        414,
        why="over bounds.url",
    ),
    refused(
        "size-target-absolute",
        "design 7",
        http(b"GET http://gw/s/" + b"a" * 16380 + b" HTTP/1.1", HOST),
        414,
        why="the host in the target counts",
    ),
    refused("size-line", "reliability", with_line(b"X: " + b"y" * 16384), 431, why="one line over 16 KiB"),
    refused("size-name", "reliability", with_line(b"X" * 16384 + b": y"), 431, why="a name is part of its line"),
    refused("size-fields", "design 7", http(GET, HOST, *[b"X: y"] * 100), 431, why="101 fields"),
    refused("size-fields-10000", "design 7", http(GET, HOST, *[b"X:"] * 10000), 431, why="many tiny fields"),
    refused("size-head", "design 7", http(GET, HOST, *[b"X: " + b"y" * 1000] * 33), 431, why="over bounds.head"),
    refused("size-head-no-end", "design 7", b"GET /s/a HTTP/1.1\r\nX: " + b"y" * 70000, 431, why="never ends"),
    Case(
        "size-first-no-end",
        "design 7",
        b"GET /s/" + b"a" * 70000,
        "not even its first line",
        (414,),
        (),
        End.CLOSES,
        fin=True,
    ),
    answered(
        "size-target-just-fits",
        "design 7",
        http(b"GET /s/" + b"a" * 16381 + b" HTTP/1.1", HOST),
        seen(b"GET /s/" + b"a" * 16381),
        why="16 KiB are allowed",
    ),
    answered(
        "size-line-just-fits",
        "reliability",
        http(GET, HOST, b"X: " + b"y" * 16381),
        seen(b"GET /s/a", b"X: " + b"y" * 16381),
        why="16 KiB are allowed",
    ),
    answered(
        "size-fields-just-fit",
        "design 7",
        http(GET, HOST, *[b"X: y"] * 99),
        seen(b"GET /s/a", *[b"X: y"] * 99),
        why="100 fields are allowed",
    ),
    answered(
        "size-head-just-fits",
        "design 7",
        http(GET, HOST, *[b"X: " + b"y" * 997] * 32),
        seen(b"GET /s/a", *[b"X: " + b"y" * 997] * 32),
        why="just below 32 KiB",
    ),
]

VALID = [
    answered(f"field-{name}", section, http(GET, HOST, *lines), seen(b"GET /s/a", *lines), why=why)
    for name, section, lines, why in (
        ("empty-value", "9110 5.5", (b"X:",), "a value may be empty"),
        ("blanks-for-a-value", "9110 5.5", (b"X: \t ",), "likewise"),
        ("no-blank", "9112 5", (b"X:y",), "the blank behind the colon is optional"),
        ("many-blanks", "9112 5", (b"X:  \t y \t ",), "blanks around a value are no part of it, and stay"),
        ("tab-within", "9110 5.5", (b"X: a\tb",), "a tab may stand in a value"),
        ("obs-text", "9110 5.5", (b"X: caf\xe9",), "Latin-1 is obsolete, not forbidden"),
        ("utf-8", "9110 5.5", (b"X: caf\xc3\xa9",), "UTF-8 is obs-text too"),
        ("every-high-byte", "9110 5.5", (b"X: " + bytes(range(128, 256)),), "all of obs-text"),
        ("colons", "9110 5.5", (b"X: a:b::c",), "only the first colon is the name's end"),
        ("quotes", "9110 5.6.4", (b'X: "a, \\"b',), "an open quote is not ours to judge"),
        ("token-name", "9110 5.6.2", (b"!#$%&'*+-.^_`|~09azAZ: y",), "all that a token may hold"),
        ("underscore", "9110 5.1", (b"X_Y: z",), "an underscore is in a token"),
        ("digits-name", "9110 5.1", (b"0: 1",), "a name may be a digit"),
        ("case", "9110 5.1", (b"xX-yY: Zz",), "the spelling stays"),
        ("same-name-twice", "9110 5.3", (b"X: 1", b"x: 2", b"X: 1"), "their order stays"),
        ("looks-like-length", "9110 5.1", (b"Content-Length-X: 5",), "another name"),
        ("length-in-value", "9110 5.5", (b"X: Content-Length: 5",), "a value is no field"),
        ("request-line-in-value", "9110 5.5", (b"X: GET /s/evil HTTP/1.1",), "a value is no request"),
        ("underscore-length", "9110 5.1", (b"Content_Length: 5",), "another name, whatever CGI makes of it"),
        (
            "anthropic",
            "design 7",
            (b"anthropic-beta: a,b", b"openai-beta: c"),
            "what we do not know is not ours to drop",
        ),
        ("forwarded", "7239 4", (b"Forwarded: for=1.2.3.4", b"X-Forwarded-For: 1.2.3.4"), "the client's, as they came"),
    )
]

CUT = [
    dropped("cut-in-line", "9112 8", b"GET /s/a HT", why="FIN within the request line"),
    dropped("cut-in-field", "9112 8", b"GET /s/a HTTP/1.1\r\nHost: g", why="FIN within a field"),
    dropped("cut-before-end", "9112 8", b"GET /s/a HTTP/1.1\r\nHost: gw\r\n\r", why="one LF is missing"),
    dropped("cut-nothing", "9112 8", b"", why="FIN at once"),
    dropped("cut-empty-line", "9112 8", b"\r\n", why="FIN behind an empty line"),
]

CASES: list[Case] = [*NAMES, *VALUES, *LINE_ENDS, *SIZES, *VALID, *CUT]
