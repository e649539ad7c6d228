"""Chunked bodies: sizes, extensions, the data's end, the last chunk and trailers (RFC 9112 section 7.1)."""

from __future__ import annotations

from smuggling.requests.case import CHUNKED, EVIL, HOST, Case, answered, dropped, http, refused, seen

POST = b"POST /s/a HTTP/1.1"
HELLO = seen(b"POST /s/a", body=b"hello")
END = b"0\r\n\r\n"


def chunked(body: bytes, first: bytes = POST, *lines: bytes) -> bytes:
    return http(first, HOST, CHUNKED, *lines, body=body)


def bad(name: str, section: str, body: bytes, why: str) -> Case:
    return refused(name, section, chunked(body), why=why, begun=True)


def size(line: bytes) -> bytes:
    """A chunk with this size line, then the end, then a request for those who end sooner."""
    return line + b"\r\nhello\r\n" + END + EVIL


SIZES = [
    bad(f"chunk-size-{name}", "9112 7.1", size(line), why)
    for name, line, why in (
        ("empty", b"", "no number"),
        ("plus", b"+5", "a sign; strtol takes it"),
        ("minus", b"-5", "a sign"),
        ("minus-zero", b"-0", "the end, for some"),
        ("plus-zero", b"+0", "the end, for some"),
        ("0x", b"0x5", "strtol with base 16 takes it"),
        ("0x0", b"0x0", "the end, for some"),
        ("underscore", b"0_5", "Python's int takes it"),
        ("h-behind", b"5h", "no hex digit"),
        ("g", b"g", "no hex digit"),
        ("fraction", b"5.0", "no fractions"),
        ("blank-before", b" 5", "Python's int takes it"),
        ("tab-before", b"\t5", "Python's int takes it"),
        ("blank-behind", b"5 ", "Python's int takes it"),
        ("tab-behind", b"5\t", "Python's int takes it"),
        ("blanks-behind", b"5      ", "some pad sizes so; no grammar allows it"),
        ("blank-within", b"5 5", "two numbers"),
        ("comma", b"5,5", "two numbers"),
        ("nul", b"5\0", "a reader in C sees 5"),
        ("nul-before", b"\x005", "a reader in C sees nothing"),
        ("vertical-tab", b"5\x0b", "trimmed by some"),
        ("no-break-space", b"5\xa0", "trimmed by some"),
        ("wide-digit", "\N{FULLWIDTH DIGIT FIVE}".encode(), "a digit in Unicode"),
        ("quoted", b'"5"', "no quotes"),
        ("word", b"hello", "no number"),
        ("equals", b"=5", "an extension's value without its name"),
        ("cr", b"5\r", "CR CR LF"),
        ("2-to-63", b"8000000000000000", "overflows a signed number"),
        ("2-to-64-less-1", b"ffffffffffffffff", "is -1 for a signed number"),
        ("2-to-64-and-5", b"10000000000000005", "is 5 modulo 2 to the 64"),
        ("40-digits", b"f" * 40, "overflows everything"),
        ("line-too-long", b"0" * 300 + b"5", "a line that does not end must not be kept"),
    )
]
SIZES += [
    refused(
        "chunk-size-17-zeros",
        "9112 7.1",
        chunked(size(b"0" * 17 + b"5")),
        why="more digits than a 64-bit number has",
        begun=True,
        otherwise="answered: any number of digits is legal; readers that count them and readers that do not differ",
    ),
    refused(
        "chunk-size-blank-before-extension",
        "9112 7.1.1",
        chunked(size(b"5 ;a=b")),
        why="bad white space, which nobody may send",
        begun=True,
        otherwise="answered: a recipient has to parse bad white space; readers that do not are why none is let through",
    ),
]

EXTENSIONS = [
    bad(f"chunk-extension-{name}", "9112 7.1.1", size(b"5" + line), why)
    for name, line, why in (
        ("empty", b";", "no name"),
        ("empty-twice", b";;", "no name"),
        ("empty-behind", b";a;", "no name"),
        ("no-name", b";=b", "no name"),
        ("no-value", b";a=", "no value"),
        ("blanks", b"; ", "no name"),
        ("two-words", b";a b", "what is b?"),
        ("two-values", b";a=b c", "what is c?"),
        ("open-quote", b';a="b', "the string does not end"),
        ("quote-and-more", b';a="b"c', "something behind the string"),
        ("parentheses", b";a=(b)", "no token"),
        ("nul", b";a\0", "a control byte"),
        ("control-in-string", b';a="\x01"', "a control byte"),
        ("high-byte-name", b";\xe9", "names are ASCII"),
        ("bare-cr", b";a\rb", "a line end for some"),
        ("bare-cr-in-string", b';a="\r"', "a line end for some"),
        ("escaped-cr", b';a="\\\r"', "nothing escapes a CR"),
        ("bare-lf", b";a\nb", "TERM.EXT: a line end for some"),
        ("bare-lf-in-string", b';a="\n"', "a line end for some"),
        ("lf-hides-size", b";\n5", "EXT.TERM: the size is on the second line for some"),
        ("colon", b":a", "no semicolon"),
        ("long", b";a=" + b"b" * 300, "costs a reader more than its chunk"),
        ("endless", b";" + b"a" * 5000, "a line that does not end must not be kept"),
    )
]
EXTENSIONS += [
    bad(
        "chunk-extensions-of-a-body",
        "9112 7.1.1",
        (b"1;" + b"a" * 250 + b"\r\nx\r\n") * 70 + END,
        "each is short, together they are over 16 KiB",
    ),
    bad("chunk-extension-bare-lf-on-last", "9112 7.1.1", b"5\r\nhello\r\n0;a\n\r\n" + EVIL, "the end for some"),
]

ENDS = [
    bad(f"chunk-{name}", "9112 7.1", body, why)
    for name, body, why in (
        ("size-line-lf", b"5\nhello\r\n" + END, "the size line ends in LF"),
        ("size-line-cr", b"5\rhello\r\n" + END, "the size line ends in CR"),
        ("data-lf", b"5\r\nhello\n" + END, "the data ends in LF"),
        ("data-cr", b"5\r\nhello\r" + END, "the data ends in CR"),
        ("data-no-end", b"5\r\nhello" + END, "no line end behind the data"),
        ("data-lfcr", b"5\r\nhello\n\r" + END, "the wrong way round"),
        ("data-crcr", b"5\r\nhello\r\r" + END, "two CRs"),
        ("data-any-two-bytes", b"5\r\nhelloXX" + END, "some skip two bytes, whatever they are"),
        ("data-too-long", b"5\r\nhello!\r\n" + END, "one byte more than the size says"),
        ("data-too-short", b"5\r\nhell\r\n" + END, "one byte less: the CR is data, and then?"),
        ("data-line-more", b"5\r\nhello\r\n\r\n" + END, "an empty line between chunks"),
        ("crlf-first", b"\r\n5\r\nhello\r\n" + END, "an empty line before the first chunk"),
        ("last-lf-lf", b"5\r\nhello\r\n0\n\n" + EVIL, "ends in LFs"),
        ("last-crlf-lf", b"5\r\nhello\r\n0\r\n\n" + EVIL, "the blank line is an LF"),
        ("last-lf-crlf", b"5\r\nhello\r\n0\n\r\n" + EVIL, "the last size line ends in LF"),
        ("last-cr-cr", b"5\r\nhello\r\n0\r\r" + EVIL, "ends in CRs"),
        ("last-crlf-crcrlf", b"5\r\nhello\r\n0\r\n\r\r\n" + EVIL, "a CR more"),
        ("last-no-blank", b"5\r\nhello\r\n0\r\n" + EVIL, "the blank line is missing: a request line is no trailer"),
        ("last-blank-with-space", b"5\r\nhello\r\n0\r\n \r\n" + EVIL, "no blank line"),
        ("last-missing", b"5\r\nhello\r\n" + EVIL, "a request line is no size"),
        ("not-chunked", b'{"model": "cheap"}', "not chunked at all"),
        ("length-for-size", b"hello", "not chunked at all"),
        ("second-bad", b"5\r\nhello\r\n-1\r\n" + END, "the first is good"),
    )
]

TRAILERS = [
    bad(f"trailer-{name}", "9112 7.1.2", b"5\r\nhello\r\n0\r\n" + lines + b"\r\n" + EVIL, why)
    for name, lines, why in (
        ("no-colon", b"X\r\n", "no field line"),
        ("no-name", b": y\r\n", "no name"),
        ("blank-before-colon", b"X : y\r\n", "a reader who trims sees another name"),
        ("folded", b"X: y\r\n z\r\n", "folding is obsolete"),
        ("leading-blank", b" X: y\r\n", "a continuation of nothing"),
        ("nul", b"X: \0\r\n", "a control byte"),
        ("high-byte-name", b"\xe9: y\r\n", "names are ASCII"),
        ("lf", b"X: y\n", "ends in LF"),
        ("cr", b"X: y\rZ: a\r\n", "a line end for some"),
        ("second-lf", b"X: y\r\nZ: a\n", "the second ends in LF"),
        ("request-line", b"GET /s/evil HTTP/1.1\r\nHost: gw\r\n", "a request line is no trailer"),
        ("line-too-long", b"X: " + b"y" * 17000 + b"\r\n", "as bounded as a head"),
        ("too-long-together", (b"X: " + b"y" * 995 + b"\r\n") * 17, "as bounded as a head"),
        ("too-many", b"X:\r\n" * 101, "as bounded as a head"),
        ("endless", b"X: " + b"y" * 20000, "a line that does not end must not be kept"),
        ("length-no-number", b"Content-Length: x\r\n", "may not come as a trailer, and is none by the letter either"),
        ("host-no-host", b"Host: a b\r\n", "likewise"),
        ("expect-unknown", b"Expect: x\r\n", "likewise"),
        ("connection-no-list", b"Connection: (x)\r\n", "likewise"),
    )
]

# What may stand in a trailer is up to its field's definition; framing, routing and credentials may not (9110 6.5.1).
TRAILERS += [
    answered(
        f"trailer-{name}",
        "9110 6.5.1",
        chunked(b"5\r\nhello\r\n0\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"),
        seen(b"POST /s/a", body=b"hello", trailers=kept),
        why=why,
    )
    for name, lines, kept, why in (
        ("plain", (b"X-Sum: 5d41",), (b"X-Sum: 5d41",), "goes on as it came"),
        ("two", (b"A: 1", b"B:"), (b"A: 1", b"B:"), "in their order"),
        ("obs-text", (b"X: \xe9",), (b"X: \xe9",), "legal in a value"),
        ("length", (b"Content-Length: 5",), (), "would frame the next reader's body"),
        ("coding", (b"Transfer-Encoding: chunked", b"A: 1"), (b"A: 1",), "would frame the next reader's body"),
        ("host", (b"Host: other",), (), "would route"),
        ("authorization", (b"Authorization: Bearer x",), (), "would authenticate"),
        ("api-key", (b"X-Api-Key: x", b"Api-Key: x", b"X-Goog-Api-Key: x"), (), "would authenticate"),
        ("our-key", (b"X-Aigw-Key: x",), (), "the gateway's key never leaves it"),
        ("cookie", (b"Cookie: a=b",), (), "would authenticate"),
        ("content-type", (b"Content-Type: text/plain",), (), "would say how to read what was read"),
        ("content-encoding", (b"Content-Encoding: gzip",), (), "likewise"),
        ("connection", (b"Connection: X", b"Upgrade: h2c", b"TE: x"), (), "hop by hop"),
        ("proxy", (b"Proxy-Authorization: x",), (), "hop by hop"),
        ("expect", (b"Expect: 100-continue",), (), "too late"),
        ("request-id", (b"X-Request-Id: x",), (), "there is one already"),
    )
]

TRAILERS += [
    answered(
        "trailer-named-by-connection",
        "9110 7.6.1",
        chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nA: 1\r\n\r\n", POST, b"Connection: x-sum"),
        seen(b"POST /s/a", body=b"hello", trailers=(b"A: 1",)),
        why="what Connection names is of this hop, as a trailer too",
    ),
    answered(
        "trailer-of-ours",
        "design 7",
        chunked(b"5\r\nhello\r\n0\r\nX-By: plain\r\nA: 1\r\n\r\n", b"POST /private/a HTTP/1.1"),
        seen(b"POST /private/a", body=b"hello", trailers=(b"A: 1",), by="private"),
        why="a header from the config is not contradicted by a trailer",
    ),
]

VALID = [
    answered(f"chunks-{name}", "9112 7.1", chunked(body), seen(b"POST /s/a", body=payload), why=why)
    for name, body, payload, why in (
        ("of-one-byte", b"".join(b"1\r\n%c\r\n" % byte for byte in b"hello") + END, b"hello", "the smallest there are"),
        ("of-many-sizes", b"2\r\nhe\r\n3\r\nllo\r\n" + END, b"hello", "joined in order"),
        ("upper-case", b"A\r\n0123456789\r\n" + END, b"0123456789", "hex has no case"),
        ("lower-case", b"a\r\n0123456789\r\n" + END, b"0123456789", "hex has no case"),
        ("leading-zeros", b"0000000000000005\r\nhello\r\n" + END, b"hello", "16 digits are as many as 64 bits have"),
        ("last-of-many-zeros", b"5\r\nhello\r\n0000\r\n\r\n", b"hello", "zero in many digits"),
        ("binary", b"100\r\n" + bytes(range(256)) + b"\r\n" + END, bytes(range(256)), "a payload is bytes"),
        ("with-an-end-within", b"5\r\n0\r\n\r\n\r\n" + END, b"0\r\n\r\n", "what looks like the end is payload"),
        ("with-a-request-within", b"%x\r\n" % len(EVIL) + EVIL + b"\r\n" + END, EVIL, "what looks like a request, too"),
        ("with-line-ends", b"4\r\n\r\n\r\n\r\n" + END, b"\r\n\r\n", "a payload of line ends"),
        ("of-8-kib", b"2000\r\n" + b"x" * 8192 + b"\r\n" + END, b"x" * 8192, "a large one"),
        ("extension", b"5;a\r\nhello\r\n" + END, b"hello", "extensions end here"),
        ("extension-value", b"5;a=b\r\nhello\r\n" + END, b"hello", "a token"),
        ("extension-string", b'5;a="b; c\\"\xe9"\r\nhello\r\n' + END, b"hello", "a quoted string"),
        ("extension-empty-string", b'5;a=""\r\nhello\r\n' + END, b"hello", "may be empty"),
        ("extension-blanks", b"5; a = b\t; c\r\nhello\r\n" + END, b"hello", "bad white space within extensions"),
        ("extensions", b"5;a;b=c;d\r\nhello\r\n" + END, b"hello", "more than one"),
        ("extension-on-last", b"5\r\nhello\r\n0;a=b\r\n\r\n", b"hello", "the last chunk has them too"),
        ("extension-digits", b"5;5\r\nhello\r\n" + END, b"hello", "a name may be digits"),
    )
]
VALID.append(
    answered(
        "chunks-by-model",
        "design 7",
        chunked(b'8\r\n{"model"\r\n9;x\r\n:"cheap"}\r\n0\r\nX: y\r\n\r\n', b"POST /v1/chat/completions HTTP/1.1"),
        seen(b"POST /v1/chat/completions", body=b'{"model":"cheap"}', by="llm"),
        why="collected, and sent on by length; a member may stand in two chunks",
    )
)

CUT = [
    dropped(f"chunks-cut-{name}", "9112 8", chunked(body), why=why, begun=True)
    for name, body, why in (
        ("at-once", b"", "FIN before the first size"),
        ("in-size", b"5", "within a size line"),
        ("in-data", b"5\r\nhel", "within the data"),
        ("behind-data", b"5\r\nhello", "before the data's CRLF"),
        ("between", b"5\r\nhello\r\n", "between two chunks"),
        ("in-last", b"5\r\nhello\r\n0", "within the last size line"),
        ("before-blank", b"5\r\nhello\r\n0\r\n", "before the blank line: not whole"),
        ("in-trailer", b"5\r\nhello\r\n0\r\nX: y", "within a trailer"),
        ("before-lf", b"5\r\nhello\r\n0\r\n\r", "one LF is missing"),
    )
]

CASES = [*SIZES, *EXTENSIONS, *ENDS, *TRAILERS, *VALID, *CUT]
