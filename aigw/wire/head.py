"""Request and response heads: bytes in, values out, and strict on the way.

A head is parsed line by line. A line seen before costs one look-up (see `fields.py`); as soon as one line is new, the
whole head also has to satisfy httptools (llhttp): a head counts as understood only if two independent readers accept
it. Rules that span lines (one Host, one length, no length beside chunking) are checked every time. What is kept of a
head is forwarded as the bytes that came: nothing is spelled anew that the gateway need not change.

Sources: RFC 9112 sections 3 to 6, RFC 9110 sections 5 to 9; where httptools is not strict enough on its own, the
rules here are (versions, request targets, Host, transfer codings, sizes).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

import httptools

from aigw.errors import (
    BAD_REQUEST,
    BAD_VERSION,
    HEAD_TOO_LARGE,
    METHOD_NOT_ALLOWED,
    UPSTREAM_MALFORMED,
    URI_TOO_LONG,
    Failure,
    Kind,
    Refused,
    refuse,
)
from aigw.wire.fields import (
    ACCEPT_ENCODING,
    ANTHROPIC,
    AUTHORIZATION,
    CODING,
    CONNECTION,
    CONTENT_ENCODING,
    CONTENT_TYPE,
    COOKIE,
    EXPECT,
    FORWARDED,
    GEMINI,
    HOST,
    KEEP_ALIVE,
    LENGTH,
    MAX_LINE,
    MAX_REMEMBERED,
    MEMO_SIZE,
    OWN_ID,
    REQUEST_ID,
    SENT_ID,
    SET_COOKIE,
    Field,
    digest,
    host_of,
    line_name,
    request_field,
    response_field,
)

_V = TypeVar("_V")

# Visible ASCII: what a request target is made of (RFC 3986; a byte above 127 or a blank has to be percent-encoded).
_TARGET: Final = bytes(range(33, 127))
# Methods are open (RFC 9110 section 16.1), so any word in upper case is one. Not in lower case: an upstream that folds
# it takes `get` for GET, past the methods of a rule, and answers `head` without a body. Nor with digits or signs: no
# registered one has any, but what a reader out of step by a byte takes for one often does.
_METHOD: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
# They have the upstream send back the request, and with it the credential that the gateway added (RFC 9110 section
# 9.3.8; TRACK is IIS's name for it).
_ECHOES: Final = frozenset({b"TRACE", b"TRACK"})
_USUAL: Final = frozenset({b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT"})
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]+)(/[^?#]*)?(\?[^#]*)?")
# Whole response heads remembered: few, since those that do not repeat pass through here too.
MOST_HEADS: Final = 64
# 304 has no body whatever its length says; 401 and 403 may speak of the gateway's own credential.
_NOT_PLAIN: Final = frozenset({304, 401, 403})
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")
_VERSION = re.compile(rb"HTTP/[0-9]\.[0-9]")


class HeadBounds(NamedTuple):
    """What a head may measure at most: bytes of the whole head, header lines, bytes of the request target."""

    head: int = 32 * 1024
    headers: int = 100
    url: int = 16 * 1024


class RequestLine:
    """The first line of a request; immutable, shared by all heads that begin with it.

    `path` and `query` are the bytes that came (`query` without its `?`, None where there is none). `canonical` is the
    path as a decoding, merging upstream might read it, and None where it is the path itself: a rule must decide the
    same on both. `keys` are the SHA-256 of the keys in `?key=` (None for an empty one), `named_host` is the host of an
    absolute-form target.
    """

    __slots__ = ("canonical", "keys", "method", "minor", "named_host", "path", "query", "size", "verb")

    def __init__(self, method: str, path: bytes, query: bytes | None, minor: int, size: int) -> None:
        self.method = method
        self.verb = method.encode()
        self.path = path
        self.query = query
        self.minor = minor
        self.size = size
        self.named_host: str | None = None
        self.canonical = canonical_path(path)
        self.keys: tuple[bytes | None, ...] = ()
        if query and (b"key=" in query or b"%" in query):
            self.keys = tuple(digest(value) for part in query.split(b"&") if (value := key_of(part)) is not None)

    def __repr__(self) -> str:
        return f"<RequestLine {self.method} {self.path!r}>"  # never the query: it may hold a key


def key_of(part: bytes) -> bytes | None:
    """The value of one member of a query if it is `key=`, in whatever spelling; None for any other."""
    name, mark, value = part.partition(b"=")
    return unquote_to_bytes(value) if mark and unquote_to_bytes(name) == b"key" else None


class RequestHead:
    """One request's head. `length` is None for a chunked body and 0 where there is no body."""

    __slots__ = (
        "accept_encoding",
        "close",
        "content_encoding",
        "content_type",
        "cookies",
        "credentials",
        "expect",
        "has_anthropic",
        "has_gemini",
        "has_length",
        "host",
        "host_line",
        "kept",
        "length",
        "line",
        "named",
        "request_id",
    )

    def __init__(self, line: RequestLine) -> None:
        self.line = line
        self.kept: list[bytes] = []  # lines forwarded as they came
        self.host_line = b""
        self.host = ""  # lower case, without port; "" for HTTP/1.0 without Host
        self.length: int | None = 0
        self.has_length = False  # whether a content-length line says so
        self.close = line.minor == 0  # an HTTP/1.0 client gets one answer a connection
        self.expect = False
        self.credentials: list[Field] = []  # authorization, x-api-key, ..., x-aigw-key: lines that may be stripped
        self.cookies: list[bytes] = []
        self.accept_encoding: bytes | None = None  # the narrowed line
        self.request_id: bytes | None = None
        self.content_type = b""
        self.content_encoding = b""
        self.has_anthropic = False
        self.has_gemini = False
        self.named: Collection[bytes] = ()  # by Connection, in lower case: dropped, and to be dropped as trailers too

    def __repr__(self) -> str:
        return f"<RequestHead {self.line.method} {self.line.path!r} {len(self.kept)} kept>"


class ResponseHead:
    """One response's head. `length` is -1 where none was said; which body follows is `framing.body_of`'s decision.

    Heads that repeat are one object (see `ResponseParser`). `candidate` and `prefix` remember what was written to a
    client for it (see `Exchange.respond`), `limitless` the same without the upstream's limits, `way` how its body is
    read.
    """

    __slots__ = (
        "candidate",
        "chunked",
        "close",
        "content_encoding",
        "content_type",
        "cookies",
        "is_plain",
        "keep_alive",
        "kept",
        "length",
        "limitless",
        "minor",
        "own_id",
        "prefix",
        "reason",
        "request_id",
        "status",
        "way",
    )

    def __init__(self, minor: int, status: int, reason: bytes) -> None:
        self.minor = minor
        self.status = status
        self.reason = reason
        self.kept: list[bytes] = []
        self.length = -1
        self.chunked = False
        self.is_plain = False  # a length says where the body ends, and the status says nothing about the gateway
        self.close = minor == 0
        self.keep_alive = -1  # seconds the upstream says it keeps an idle connection; -1 where it says nothing
        self.cookies: list[bytes] = []
        self.request_id: bytes | None = None  # the upstream's x-request-id
        self.own_id: bytes | None = None  # its request-id
        self.content_type = b""
        self.content_encoding = b""
        self.candidate: object = None
        self.prefix = b""
        self.limitless = b""
        self.way = -1  # how its usage is read (see `proxy.taps`); -1 until that was asked

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status} length {self.length} chunked {self.chunked}>"

    def copied(self) -> ResponseHead:
        """Another of the same, as it was read: what was remembered of writing it is not in it."""
        other = ResponseHead(self.minor, self.status, self.reason)
        other.kept = self.kept
        other.length = self.length
        other.chunked = self.chunked
        other.is_plain = self.is_plain
        other.close = self.close
        other.keep_alive = self.keep_alive
        other.cookies = self.cookies
        other.request_id = self.request_id
        other.own_id = self.own_id
        other.content_type = self.content_type
        other.content_encoding = self.content_encoding
        other.way = self.way
        return other


class RequestParser:
    """Parses request heads; one per worker, since what it remembers is worth sharing."""

    __slots__ = ("firsts", "lines")

    def __init__(self) -> None:
        self.firsts: dict[bytes, RequestLine] = {}
        self.lines: dict[bytes, Field] = {}

    def parse(self, block: bytes, bounds: HeadBounds) -> RequestHead:
        """`block` is everything before the blank line, without it. Raises `Refused`: answer, then close."""
        lines = block.split(b"\r\n")
        if len(block) > bounds.head:
            raise _too_large(f"more than {bounds.head} bytes (bounds.head)")
        if len(lines) > bounds.headers + 1:
            raise _too_large(f"more than {bounds.headers} header lines (bounds.headers)")
        first = lines[0]
        line = self.firsts.get(first)
        fresh = line is None
        if line is None:
            line = request_line(first, bounds.url)
        elif line.size > bounds.url:
            raise _too_long(bounds.url)
        head = RequestHead(line)
        known = self.lines
        hosts = lengths = codings = types = 0
        options: set[bytes] | None = None
        del lines[0]
        learned: dict[bytes, Field] = {}
        fields = list(map(known.get, lines))
        if None in fields:
            fresh = True
            learned = {
                text: request_field(text) if len(text) <= MAX_LINE else _long_line()
                for text, field in zip(lines, fields, strict=True)
                if field is None
            }
            fields = [field or learned[text] for text, field in zip(lines, fields, strict=True)]
        # One pass in C for the lines that go on as they are, a loop for the few others.
        kept = head.kept = [text for text, field in zip(lines, fields, strict=True) if field is FORWARDED]
        for field in fields:
            if field is None or field is FORWARDED:
                continue
            kind = field.kind
            if kind == HOST:
                hosts += 1
                head.host = field.text
                head.host_line = field.line
            elif kind == LENGTH:
                lengths += 1
                head.length = field.number
                head.has_length = True
            elif kind == CONTENT_TYPE:
                types += 1
                head.content_type = field.value
                kept.append(field.line)
            elif kind >= AUTHORIZATION and kind < COOKIE:
                head.credentials.append(field)
            elif kind == ACCEPT_ENCODING:
                head.accept_encoding = field.line
            elif kind == CONNECTION:
                options = _connection(head, field.value, options)
            elif kind == REQUEST_ID:
                head.request_id = field.value
            elif kind == COOKIE:
                head.cookies.append(field.line)
            elif kind == ANTHROPIC:
                head.has_anthropic = True
                kept.append(field.line)
            elif kind == GEMINI:
                head.has_gemini = True
                kept.append(field.line)
            elif kind == CONTENT_ENCODING:
                coding = field.value.lower()
                if coding not in (b"", b"identity") or not head.content_encoding:
                    head.content_encoding = coding
                kept.append(field.line)
            elif kind == CODING:
                codings += 1
                if field.value.lower() != b"chunked":
                    raise refuse(BAD_REQUEST, "transfer-encoding must be exactly `chunked` (RFC 9112 section 6.1)")
            elif kind == EXPECT:
                head.expect = line.minor == 1
        if hosts != 1 and (hosts or line.minor):
            raise refuse(BAD_REQUEST, "exactly one `host` header is needed (RFC 9112 section 3.2)")
        if line.named_host is not None and line.named_host != head.host:
            raise refuse(BAD_REQUEST, "the request target names another host than the `host` header; send `/path` only")
        if types > 1:
            raise refuse(BAD_REQUEST, "more than one content-type; send exactly one (RFC 9110 section 8.3)")
        if codings:
            if codings > 1 or lengths:
                raise refuse(
                    BAD_REQUEST, "two framings: send either one content-length or `transfer-encoding: chunked`"
                )
            if not line.minor:
                raise refuse(
                    BAD_REQUEST, "transfer-encoding in an HTTP/1.0 request (RFC 9112 section 6.1); send a length"
                )
            head.length = None
        elif lengths > 1:
            raise refuse(BAD_REQUEST, "more than one content-length; send exactly one (RFC 9110 section 8.6)")
        if options:
            head.named = options
            head.kept = [text for text in kept if line_name(text) not in options]
        if fresh:
            # llhttp knows only some methods; which one it is makes no difference to the rest of the head.
            text = block if line.verb in _USUAL else b"GET" + block[len(line.verb) :]
            if codings:  # it takes a blank behind `chunked`, but not a tab (RFC 9110 section 5.6.3 makes them equal)
                text = text.replace(b"\t", b" ")
            _second_opinion(httptools.HttpRequestParser(_NOTHING), text, BAD_REQUEST)
            if len(first) <= MAX_REMEMBERED:
                _remember(self.firsts, first, line)
            for text, field in learned.items():
                if len(text) <= MAX_REMEMBERED:
                    _remember(known, text, field)
        return head


class ResponseParser:
    """Parses response heads; one per worker. Whatever is wrong is `UPSTREAM_MALFORMED`.

    Whole heads are remembered too: an upstream that says no date and no id says the same each time (1 us less). So a
    parser serves one set of bounds.
    """

    __slots__ = ("firsts", "heads", "lines")

    def __init__(self) -> None:
        self.heads: dict[bytes, ResponseHead] = {}
        self.firsts: dict[bytes, tuple[int, int, bytes]] = {}
        self.lines: dict[bytes, Field] = {}

    def parse(self, block: bytes, bounds: HeadBounds) -> ResponseHead:
        """`block` is everything before the blank line, without it, and not in `heads`. Raises `Refused`: the connection
        is unusable."""
        head = self._parse(block, bounds)
        if len(self.heads) >= MOST_HEADS:
            self.heads.clear()
        self.heads[block] = head
        return head

    def _parse(self, block: bytes, bounds: HeadBounds) -> ResponseHead:
        lines = block.split(b"\r\n")
        if len(block) > bounds.head or len(lines) > bounds.headers + 1:
            raise refuse(
                UPSTREAM_MALFORMED, "the upstream's response head is larger than bounds.head or bounds.headers"
            )
        first = self.firsts.get(lines[0])
        fresh = first is None
        if first is None:
            first = _status_line(lines[0])
        head = ResponseHead(*first)
        kept = head.kept
        known = self.lines
        learned: list[tuple[bytes, Field]] | None = None
        lengths = codings = 0
        options: set[bytes] | None = None
        for text in lines[1:]:
            field = known.get(text)
            if field is None:
                field = self._field(text)
                fresh = True
                if learned is None:
                    learned = []
                learned.append((text, field))
            if field is FORWARDED:
                kept.append(text)
                continue
            kind = field.kind
            if kind == LENGTH:
                lengths += 1
                head.length = field.number
                kept.append(text)
            elif kind == CONTENT_TYPE:
                head.content_type = field.value
                kept.append(text)
            elif kind == CODING:
                codings += 1
                head.chunked = True
                if field.value.lower() != b"chunked":
                    raise refuse(UPSTREAM_MALFORMED, "the upstream's transfer-encoding is not exactly `chunked`")
            elif kind == CONNECTION:
                options = _connection(head, field.value, options)
            elif kind == CONTENT_ENCODING:
                head.content_encoding = field.value.lower()
                kept.append(text)
            elif kind == SENT_ID:
                head.request_id = field.value
            elif kind == OWN_ID:
                head.own_id = field.value
                kept.append(text)
            elif kind == KEEP_ALIVE:
                head.keep_alive = field.number
            elif kind == SET_COOKIE:
                head.cookies.append(text)
        if lengths > 1 or codings > 1 or (codings and (lengths or not head.minor)):
            raise refuse(UPSTREAM_MALFORMED, "the upstream's response head names more than one framing")
        if options:
            # The framing is not for Connection to take away.
            named = options - {b"content-length"}
            head.kept = [text for text in kept if line_name(text) not in named]
            if b"set-cookie" in named:
                head.cookies = []
        if (lengths or codings) and (head.status < 200 or head.status == 204):
            # There is no body, and none may be announced (RFC 9110 section 8.6, RFC 9112 section 6.1).
            head.kept = [text for text in head.kept if line_name(text) != b"content-length"]
            head.length = 0
            head.chunked = False
        head.is_plain = head.length > 0 and head.status not in _NOT_PLAIN
        if fresh:
            if head.status >= 200:  # llhttp takes an informational head for a switch of protocols or waits for the next
                _second_opinion(httptools.HttpResponseParser(_NOTHING), block, UPSTREAM_MALFORMED)
            if len(lines[0]) <= MAX_REMEMBERED:
                _remember(self.firsts, lines[0], first)
            for text, field in learned or ():
                if len(text) <= MAX_REMEMBERED:
                    _remember(known, text, field)
        return head

    def _field(self, text: bytes) -> Field:
        try:
            return response_field(text) if len(text) <= MAX_LINE else _long_line()
        except Refused as refused:
            message = f"the upstream's response head is malformed: {refused.failure.message}"
            raise refuse(UPSTREAM_MALFORMED, message) from None


def request_line(text: bytes, max_url: int) -> RequestLine:
    """`METHOD SP target SP HTTP/1.x` (RFC 9112 section 3). Raises `Refused`."""
    parts = text.split(b" ")
    if len(parts) != 3:
        raise refuse(BAD_REQUEST, "bad request line; write `METHOD /path HTTP/1.1` with single blanks")
    method, target, version = parts
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        if _VERSION.fullmatch(version):
            raise refuse(BAD_VERSION, "this HTTP version is not spoken here; use HTTP/1.1")
        raise refuse(BAD_REQUEST, "bad HTTP version in the request line; use HTTP/1.1")
    if not method or len(method) > 32 or method.translate(None, _METHOD):
        raise refuse(BAD_REQUEST, "bad method in the request line; it is a short word in upper case, like GET or POST")
    if method in _ECHOES:
        message = f"{method.decode()} is not served here: its answer would show the credential of the upstream"
        raise Refused(Failure(METHOD_NOT_ALLOWED, message, allow=b", ".join(sorted(_USUAL)).decode()))
    if len(target) > max_url:
        raise _too_long(max_url)
    if not target or target.translate(None, _TARGET):
        raise refuse(BAD_REQUEST, "control, blank or non-ASCII byte in the request target; percent-encode it")
    if b"#" in target:
        raise refuse(BAD_REQUEST, "the request target has a fragment (`#`); percent-encode it or leave it out")
    named = None
    size = len(target)
    if target[:1] != b"/":
        if target == b"*" and method == b"OPTIONS":
            return RequestLine("OPTIONS", b"*", None, 1 if version == b"HTTP/1.1" else 0, 1)
        found = _ABSOLUTE.fullmatch(target)
        if found is None or method == b"CONNECT":
            raise refuse(BAD_REQUEST, "the request target must be a path that begins with `/` (RFC 9112 section 3.2.1)")
        named = host_of(found[1])
        target = (found[2] or b"/") + (found[3] or b"")
    if method == b"CONNECT":
        raise refuse(BAD_REQUEST, "CONNECT is not served here: the gateway is no forward proxy")
    path, mark, query = target.partition(b"?")
    if _BAD_PERCENT.search(path):
        raise refuse(BAD_REQUEST, "bad percent-encoding in the path; write `%` as `%25`")
    line = RequestLine(method.decode(), path, query if mark else None, 1 if version == b"HTTP/1.1" else 0, size)
    line.named_host = named
    return line


def canonical_path(path: bytes) -> bytes | None:
    """The path as the most eager reader might see it: decoded once, backslashes as slashes, parameters cut off, empty
    segments merged. None where that is the path itself.

    Raises `Refused` for dot segments in any spelling, and for NUL: they have no honest use here, and what they point
    at depends on who resolves them.
    """
    if b"%" not in path and b"//" not in path and b"/." not in path and b";" not in path and b"\\" not in path:
        return None
    seen = unquote_to_bytes(path).replace(b"\\", b"/")
    segments = [segment.partition(b";")[0] for segment in seen.split(b"/")]
    if b"." in segments or b".." in segments or b"\0" in seen:
        raise refuse(
            BAD_REQUEST, "the path has a `.` or `..` segment or a NUL (maybe percent-encoded); write it resolved"
        )
    merged = b"/" + b"/".join(segment for segment in segments if segment)
    if seen.endswith(b"/") and merged != b"/":
        merged += b"/"
    return None if merged == path else merged


def _status_line(text: bytes) -> tuple[int, int, bytes]:
    if len(text) > MAX_LINE:
        raise refuse(UPSTREAM_MALFORMED, f"the upstream's status line is longer than {MAX_LINE} bytes")
    found = _STATUS_LINE.fullmatch(text)
    if found is None:
        raise refuse(
            UPSTREAM_MALFORMED, "the upstream's answer does not begin with an HTTP/1.0 or HTTP/1.1 status line"
        )
    return int(found[1]), int(found[2]), found[3] or b""


def _connection(head: RequestHead | ResponseHead, value: bytes, options: set[bytes] | None) -> set[bytes] | None:
    """Note `close`; return the names of the fields that this Connection field makes hop-by-hop."""
    lowered = value.lower()
    if lowered == b"keep-alive":
        return options
    if lowered == b"close":
        head.close = True
        return options
    for option in lowered.split(b","):
        option = option.strip(b" \t")
        if option == b"close":
            head.close = True
        elif option and option != b"keep-alive":
            options = options or set()
            options.add(option)
    return options


def _remember(memo: dict[bytes, _V], text: bytes, value: _V) -> None:
    if len(memo) >= MEMO_SIZE:
        memo.clear()
    memo[text] = value


class _Nothing:
    """A protocol without callbacks: httptools only checks."""


_NOTHING: Final = _Nothing()


def _second_opinion(
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser, block: bytes, kind: Kind
) -> None:
    """Have llhttp read the head too (about 1 us). An upgrade it sees is none: Upgrade is never forwarded."""
    try:
        parser.feed_data(block + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise refuse(kind, f"malformed HTTP head: {error}") from None


def _too_large(what: str) -> Refused:
    return refuse(HEAD_TOO_LARGE, f"the request head has {what}; send a smaller one")


def _too_long(bound: int) -> Refused:
    return refuse(URI_TOO_LONG, f"the request target has more than {bound} bytes (bounds.url); send a shorter one")


def _long_line() -> Field:
    raise _too_large(f"a line of more than {MAX_LINE} bytes")
