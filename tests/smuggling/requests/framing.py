"""Where a body ends: Content-Length, Transfer-Encoding, both, neither (RFC 9112 section 6, RFC 9110 section 8.6)."""

from __future__ import annotations

from smuggling.requests.case import CHUNKED, EVIL, HOST, Case, End, answered, declined, dropped, http, refused, seen

POST = b"POST /s/a HTTP/1.1"
HELLO = seen(b"POST /s/a", body=b"hello")
END = b"0\r\n\r\n"


def length(value: bytes, body: bytes = b"hello") -> bytes:
    return http(POST, HOST, b"Content-Length: " + value, body=body)


def coding(value: bytes) -> bytes:
    """A body that one reader ends at once, and another one reads to the end of a request."""
    return http(POST, HOST, b"Transfer-Encoding: " + value, body=END + EVIL)


OURS = b"Content-Length: %d" % len(END + EVIL)

BOTH: list[Case] = [
    refused(f"both-{name}", "9112 6.3", http(POST, HOST, *lines, body=END + EVIL), why=why)
    for name, lines, why in (
        ("cl-te", (OURS, CHUNKED), "CL.TE: who reads the length forwards the second request as a body"),
        ("te-cl", (CHUNKED, OURS), "TE.CL: the other order"),
        ("cl-5-te", (b"Content-Length: 5", CHUNKED), "a length that agrees with the chunks: still two framings"),
        ("cl-0-te", (b"Content-Length: 0", CHUNKED), "a length of zero"),
        ("te-apart-cl", (CHUNKED, b"X: y", b"Content-Length: 4"), "not side by side"),
        ("cl-te-identity", (OURS, b"Transfer-Encoding: identity"), "identity was taken out of HTTP"),
        ("cl-te-unknown", (OURS, b"Transfer-Encoding: xchunked"), "unknown for one, `contains chunked` for another"),
        ("cl-te-empty", (OURS, b"Transfer-Encoding:"), "no coding, or no field?"),
        ("cl-te-gzip", (OURS, b"Transfer-Encoding: gzip"), "a coding without an end of its own"),
        ("cl-cl-te", (b"Content-Length: 5", OURS, CHUNKED), "three framings"),
        ("te-te-cl", (CHUNKED, CHUNKED, OURS), "three framings"),
        ("cl-te-blank", (OURS, b"Transfer-Encoding : chunked"), "a blank before the colon hides it from some"),
        ("cl-te-comma", (OURS, b"Transfer-Encoding: ,chunked"), "an empty list element"),
    )
]
BOTH += [
    refused(
        "both-named-by-connection",
        "9112 6.3",
        http(POST, HOST, b"Connection: Content-Length", OURS, CHUNKED, body=END + EVIL),
        why="the length is not gone because Connection names it",
    ),
    refused(
        "both-coding-named-by-connection",
        "9112 6.3",
        http(POST, HOST, b"Connection: Transfer-Encoding", OURS, CHUNKED, body=END + EVIL),
        why="nor is the coding",
    ),
    refused(
        "both-on-get",
        "9112 6.3",
        http(b"GET /s/a HTTP/1.1", HOST, OURS, CHUNKED, body=END + EVIL),
        why="the method makes no difference",
    ),
]

LENGTHS = [
    refused(f"length-{name}", "9110 8.6", length(value), why=why)
    for name, value, why in (
        ("empty", b"", "no number"),
        ("plus", b"+5", "a sign; strtol takes it"),
        ("minus", b"-5", "a sign"),
        ("minus-zero", b"-0", "a sign"),
        ("hex", b"0x5", "strtol with base 0 takes it"),
        ("hex-digits", b"a", "not decimal"),
        ("octal-prefix", b"0o5", "Python's int with base 0 takes it"),
        ("underscore", b"0_5", "Python's int takes it"),
        ("letters-behind", b"5a", "atoi takes the 5"),
        ("fraction", b"5.0", "no fractions"),
        ("exponent", b"5e0", "no exponents"),
        ("blank-within", b"5 5", "two numbers"),
        ("tab-within", b"5\t5", "two numbers"),
        ("blank-and-letters", b"5 bytes", "no unit"),
        ("list-same", b"5, 5", "one reader's 5 is another one's error"),
        ("list-same-no-blank", b"5,5", "likewise"),
        ("list-differs", b"5, 40", "which?"),
        ("list-empty-behind", b"5,", "an empty element"),
        ("list-empty-before", b",5", "an empty element"),
        ("parameter", b"5;q=1", "no parameters"),
        ("quoted", b'"5"', "no quotes"),
        ("wide-digit", "\N{FULLWIDTH DIGIT FIVE}".encode(), "a digit for isdigit in Unicode"),
        ("arabic-digit", "\N{ARABIC-INDIC DIGIT FIVE}".encode(), "likewise"),
        ("superscript", b"\xb2", "a digit in Latin-1"),
        ("no-break-space", b"\xa05", "white space in Latin-1"),
        ("2-to-63", b"9223372036854775808", "overflows a signed number"),
        ("2-to-64-and-5", b"18446744073709551621", "is 5 modulo 2 to the 64"),
        ("40-digits", b"9" * 40, "overflows everything"),
        ("400-zeros", b"0" * 400 + b"5", "more digits than any length has"),
        ("word", b"chunked", "no number"),
        ("nan", b"NaN", "no number"),
        ("vertical-tab", b"5\x0b", "trimmed by some"),
    )
]
LENGTHS += [
    refused(f"lengths-{name}", "9112 6.3", http(POST, HOST, *lines, body=b"hello" + EVIL), why=why)
    for name, lines, why in (
        ("same", (b"Content-Length: 5", b"Content-Length: 5"), "exactly one"),
        ("differ", (b"Content-Length: 5", OURS), "the first or the last?"),
        ("zero-and-more", (b"Content-Length: 0", b"Content-Length: 5"), "the first or the last?"),
        ("case", (b"Content-Length: 5", b"CONTENT-LENGTH: 6"), "names have no case"),
        ("apart", (b"Content-Length: 5", b"X: y", b"content-length: 0"), "not side by side"),
        ("one-empty", (b"Content-Length:", b"Content-Length: 5"), "an empty one counts"),
        ("hundred", (b"Content-Length: 5",) * 90, "many are not better"),
        ("leading-zero", (b"Content-Length: 5", b"Content-Length: 05"), "equal numbers, two lines"),
    )
]

CODINGS = [
    refused(
        f"coding-{name}",
        "9112 6.1",
        coding(value),
        why=why,
        otherwise="501; what is not exactly `chunked` is refused alike, whether somebody knows it or not"
        if known
        else "",
    )
    for name, value, why, known in (
        ("empty", b"", "no coding, or no field?", False),
        ("identity", b"identity", "was taken out of HTTP; some still read on to the end", False),
        ("gzip", b"gzip", "chunked must be the last one", False),
        ("gzip-chunked", b"gzip, chunked", "legal, but nobody here undoes gzip", True),
        ("deflate-chunked", b"deflate, chunked", "legal, but nobody here undoes deflate", True),
        ("chunked-gzip", b"chunked, gzip", "chunked must be the last one", False),
        ("chunked-identity", b"chunked, identity", "chunked must be the last one", False),
        ("identity-chunked", b"identity, chunked", "identity was taken out of HTTP", False),
        ("chunked-chunked", b"chunked, chunked", "must not be applied twice", False),
        ("comma-before", b",chunked", "an empty element", False),
        ("comma-behind", b"chunked,", "an empty element", False),
        ("blank-and-comma", b" , chunked", "an empty element", False),
        ("parameter", b"chunked;q=1", "chunked has no parameters", False),
        ("semicolon", b"chunked;", "an empty parameter", False),
        ("two-words", b"chunked chunked", "no list", False),
        ("prefix", b"xchunked", "`endswith` takes it", False),
        ("x-prefix", b"x-chunked", "another token", False),
        ("suffix", b"chunkedx", "`startswith` takes it", False),
        ("short", b"chunk", "another token", False),
        ("quoted", b'"chunked"', "a string is no token", False),
        ("single-quotes", b"'chunked'", "another token", False),
        ("dot", b"chunked.", "another token", False),
        ("vertical-tab-before", b"\x0bchunked", "trimmed by some", False),
        ("vertical-tab-behind", b"chunked\x0b", "trimmed by some", False),
        ("form-feed", b"chunked\x0c", "trimmed by some", False),
        ("no-break-space", b"chunked\xa0", "trimmed by some", False),
        ("nul", b"chunked\0", "a reader in C sees chunked", False),
        ("bare-cr", b"chunked\r", "CR CR LF", False),
        ("bare-lf", b"\nchunked", "a folded line without its blank", False),
        ("kelvin", "chun\N{KELVIN SIGN}ed".encode(), "folds to chunked in Unicode", False),
        ("trailers", b"trailers", "a value of TE, no coding", False),
        ("comment", b"chunked (really)", "no comments", False),
        ("percent", b"%63hunked", "nothing is decoded in a header", False),
    )
]
CODINGS += [
    refused(f"codings-{name}", "9112 6.1", http(POST, HOST, *lines, body=END + EVIL), why=why)
    for name, lines, why in (
        ("same", (CHUNKED, CHUNKED), "is `chunked, chunked`"),
        ("chunked-identity", (CHUNKED, b"Transfer-Encoding: identity"), "the first or the last?"),
        ("identity-chunked", (b"Transfer-Encoding: identity", CHUNKED), "the first or the last?"),
        ("chunked-empty", (CHUNKED, b"Transfer-Encoding:"), "an empty one counts"),
        ("case", (CHUNKED, b"TRANSFER-ENCODING: x"), "names have no case"),
        ("gzip-and-chunked", (b"Transfer-Encoding: gzip", CHUNKED), "is `gzip, chunked`"),
    )
]
CODINGS += [
    refused("coding-in-1.0", "9112 6.1", http(b"POST /s/a HTTP/1.0", CHUNKED, body=END + EVIL), why="faulty framing"),
    refused(
        "coding-in-1.0-keep-alive",
        "9112 6.1",
        http(b"POST /s/a HTTP/1.0", HOST, b"Connection: keep-alive", CHUNKED, body=END + EVIL),
        why="faulty framing",
    ),
    refused(
        "coding-in-1.0-with-length",
        "9112 6.1",
        http(b"POST /s/a HTTP/1.0", OURS, CHUNKED, body=END + EVIL),
        why="an HTTP/1.0 reader takes the length",
    ),
    refused(
        "coding-and-no-body", "9112 6.1", http(b"GET /s/a HTTP/1.1", HOST, b"Transfer-Encoding: x"), why="on GET too"
    ),
]

VALID = [
    *(
        answered(f"length-{name}", "9110 8.6", length(value), HELLO, why=why)
        for name, value, why in (
            ("plain", b"5", "the plainest body there is"),
            ("zeros-before", b"0005", "digits, and nothing but digits"),
            ("blanks-around", b" \t5\t ", "blanks around a value are no part of it"),
        )
    ),
    answered("length-0", "9110 8.6", length(b"0", b""), seen(b"POST /s/a"), why="an empty body"),
    answered("length-00", "9110 8.6", length(b"00", b""), seen(b"POST /s/a"), why="an empty body"),
    answered(
        "length-body-is-a-request",
        "9112 6.3",
        length(b"%d" % len(EVIL), EVIL),
        seen(b"POST /s/a", body=EVIL),
        why="CL.0: a body stays a body",
    ),
    answered(
        "length-body-is-chunks",
        "9112 6.3",
        length(b"5", END),
        seen(b"POST /s/a", body=END),
        why="what looks like the end of chunks is none",
    ),
    answered(
        "length-body-is-binary",
        "9110 6.4",
        length(b"256", bytes(range(256))),
        seen(b"POST /s/a", body=bytes(range(256))),
        why="a body is bytes",
    ),
    *(
        answered(
            f"body-on-{method.decode().lower()}",
            "9110 9.3",
            http(method + b" /s/a HTTP/1.1", HOST, b"Content-Length: %d" % len(EVIL), body=EVIL),
            seen(method + b" /s/a", body=EVIL),
            why="0.CL: has no meaning there, but is a body",
        )
        for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PROPFIND", b"BREW")
    ),
    answered(
        "body-chunked-on-get",
        "9110 9.3.1",
        http(b"GET /s/a HTTP/1.1", HOST, CHUNKED, body=b"5\r\nhello\r\n" + END),
        seen(b"GET /s/a", body=b"hello"),
        why="likewise",
    ),
    *(
        answered(
            f"coding-{name}",
            "9112 7",
            http(POST, HOST, line, body=b"5\r\nhello\r\n" + END),
            HELLO,
            why=why,
        )
        for name, line, why in (
            ("plain", CHUNKED, "the plainest chunked body"),
            ("upper-case", b"TRANSFER-ENCODING: CHUNKED", "names of codings have no case"),
            ("blanks-around", b"Transfer-Encoding: \t chunked \t", "blanks around a value are no part of it"),
            ("no-blank", b"Transfer-Encoding:chunked", "the blank is optional"),
        )
    ),
    answered(
        "coding-no-data", "9112 7.1", http(POST, HOST, CHUNKED, body=END), seen(b"POST /s/a"), why="an empty body"
    ),
]

LARGE = [
    declined(
        "length-over-bound",
        "design 7",
        http(b"POST /v1/chat/completions HTTP/1.1", HOST, b"Content-Length: 65537", body=b"{" + EVIL),
        413,
        why="refused by what its head says; the rest is not awaited",
        end=End.CLOSES,
    ),
    declined(
        "chunks-over-bound",
        "design 7",
        http(b"POST /v1/chat/completions HTTP/1.1", HOST, CHUNKED, body=b"10001\r\n" + b" " * 65537 + b"\r\n" + END),
        413,
        why="refused as soon as it is too large, though its head did not say so",
        end=End.EITHER,
    ),
    dropped(
        "length-2-to-32-and-5", "9110 8.6", length(b"4294967301", b"hello"), why="is 5 modulo 2 to the 32", begun=True
    ),
    dropped("length-cut", "9112 8", length(b"6"), why="FIN before the last byte", begun=True),
    dropped("length-cut-at-once", "9112 8", length(b"5", b""), why="FIN before the first byte", begun=True),
    dropped(
        "length-cut-json",
        "9112 8",
        http(b"POST /v1/chat/completions HTTP/1.1", HOST, b"Content-Length: 19", body=b'{"model": "cheap"}'),
        why="valid JSON, but not all of the body",
    ),
]

CASES = [*BOTH, *LENGTHS, *CODINGS, *VALID, *LARGE]
