"""Top-level members of a JSON object, as bytes: is there one, is there only one, where does its value stand.

The gateway reads a body once and forwards the very bytes it read; where a value has to change, it is replaced in
place by its span and every other byte stays. Nothing here knows which members matter or what they mean, but for
`include_usage`, the one member that is ever added.

orjson says whether the bytes are JSON and what they mean, but it keeps the last of two members of one name in
silence where another reader may keep the first, and it tells no positions. Both are found here without a second
parser, from two facts about *valid* JSON:

1. An unescaped quote, `model`, a quote and a colon can only be a name, and an escaped quote can only stand within a
   string. So the names called `model`, in whatever spelling, are exactly what one regular expression finds.
2. Whoever takes away the escape pairs `\\\\` and `\\"` can split at the quotes; every other piece is outside strings,
   and the brackets there are the nesting. So the depth of each such name is counted by a few passes in C.

All of it is linear in the body, whatever the body holds: no loop in Python runs per byte, string or bracket, only
per name found (`Member.span` of a value that is an object or array is the exception).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import orjson

# Start and end: `body[start:end]` is the value, without the white space around it.
Span = tuple[int, int]

# All brackets in one spelling, so that one count tells how many of a run open; and what is thrown away around them.
# Byte 1 marks a name: control bytes never stand in valid JSON (RFC 8259 section 7).
_MARK: Final = b"\x01"
_ONE_SPELLING: Final = bytes.maketrans(b"[]", b"{}")
_NO_BRACKETS: Final = bytes(i for i in range(256) if i not in b"[]{}" + _MARK)

# Possessive repeats: what was matched is never tried again, and nothing is remembered for it (1 MB of `\"` costs
# 58 MiB without).
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]', re.DOTALL)
_FLAT: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[^"\s,\]}]++', re.DOTALL)
_FLAT_OBJECT: Final = re.compile(rb'\{(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+\}', re.DOTALL)


# Each value is an object in memory: 0.03 us for a number, 0.3 us and 300 bytes for a small object, 0.8 us for a name
# that has to be told from others of its kind. A body is read in one turn of the loop, so their number is bounded.
# The largest request for embeddings has 300,000 numbers; a chat has some hundred texts and objects.
MAX_VALUES: Final = 500_000
MAX_THINGS: Final = 100_000  # of them texts (names too), and of them arrays and objects
# Up to this length a body has no room for what would take longer than 50 ms.
MAX_UNCOUNTED: Final = 512 * 1024
_NO_MARKS: Final = bytes(i for i in range(256) if i not in b",[{")


class InvalidJSON(ValueError):
    """The body is no JSON, or no object."""


class DuplicateMember(ValueError):
    """Two top-level members of one name, in the same or in different spellings."""

    def __init__(self, name: str) -> None:
        super().__init__(f'the body has more than one top-level "{name}"; readers disagree on which counts: send one')
        self.name = name


class Member:
    """The name of a top-level member, compiled. Made once per name, at import; safe to share.

    `name` is ASCII letters, digits and `_`: what an API's members are called, and what has no spelling but itself
    and `\\uXXXX`.
    """

    __slots__ = ("_escapes", "_key", "_literal", "name")

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_]+", name):
            raise ValueError(f"member name {name!r}: only ASCII letters, digits and _ are looked for")
        self.name = name
        self._literal = b'"%b"' % name.encode()
        # A spelling with an escape holds one of these: `\u00` and the upper half of one of the letters.
        self._escapes = tuple(b"\\u00%x" % half for half in sorted({ord(letter) >> 4 for letter in name}))
        # The quote comes first and the look-behind after it: a pattern that begins with a literal is searched for by
        # memchr, 0.3 ns a byte and not 5.
        spelling = b"".join(_spellings(letter) for letter in name)
        self._key = re.compile(rb'"(?<!\\")' + spelling + rb'"[ \t\r\n]*+:[ \t\r\n]*+')

    def __repr__(self) -> str:
        return f"<Member {self.name}>"

    def check(self, body: bytes, document: dict[str, Any]) -> None:
        """Raises `DuplicateMember`. `document` is what orjson made of `body`, which therefore is valid.

        The plain path is three searches (0.5 us for 200 bytes, 1 ms for 5 MB). It is right because: the document has
        the member, so its name stands in the bytes at least once; with no escape that could spell one of its letters,
        every such name is spelled literally, so each is a place where the literal stands; and there is one place.
        """
        if self.name in document and self._only(body) < 0 and sum(1 for _ in self._top_level(body)) > 1:
            raise DuplicateMember(self.name)

    def span(self, body: bytes, document: dict[str, Any]) -> Span | None:
        """Where the member's value stands; None where the object has no such member.

        `body` and `document` as in `check`, which must have passed: of two members one would be picked. A value that
        is an object or array is walked bracket by bracket to its end (about 0.3 us each).
        """
        if self.name not in document:
            return None
        start = self.start(body)
        return start, _value_end(body, start)

    def start(self, body: bytes) -> int:
        """Where the member's value begins. The object must have the member, and have passed `check`."""
        place = self._only(body)
        key = self._key.match(body, place) if place >= 0 else next(self._top_level(body))
        assert key is not None
        return key.end()

    def _only(self, body: bytes) -> int:
        """Where the literal stands, if once and with no escape that could spell the name; -1 proves nothing."""
        literal = self._literal
        # From the right, twice: in 3.11 rfind is five times as fast as find in long bodies (0.4 ms for 5 MB).
        last = body.rfind(literal)
        if last < 0 or body.rfind(literal, 0, last) >= 0:
            return -1
        for escape in self._escapes:
            if escape in body:
                return -1
        return last

    def _top_level(self, body: bytes) -> Iterator[re.Match[bytes]]:
        """The names at depth 1, in any spelling.

        5 us for a chat request with a tool that has a `model` of its own; 1 MB made to be slow takes at most 55 ms and
        30 MiB for the moment (all names called `model`, or all strings empty), and mostly less than orjson.
        """
        # Escaped backslashes first: of those that remain, each escapes what follows it.
        outside = self._key.sub(_MARK, body).replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
        runs = b"".join(outside).translate(_ONE_SPELLING, _NO_BRACKETS).split(_MARK)
        depth = 0
        for key, run in zip(self._key.finditer(body), runs, strict=False):  # the last run has no name behind it
            depth += 2 * run.count(b"{") - len(run)
            if depth == 1:
                yield key


def load(body: bytes, *members: Member) -> dict[str, Any]:
    """The object that `body` is, none of `members` twice at its top level.

    Raises:
        InvalidJSON: no object, or not JSON (also: not UTF-8, NaN, a number beyond what a double holds, lone surrogates,
            a BOM, nested deeper than 1,024).
        DuplicateMember: one of `members` twice.
    """
    problem = ""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Raised anew outside of this block: orjson's error holds the whole body, and would be kept as context.
        problem = f"the body is no valid JSON: {error.msg} (at character {error.pos})"
    if problem:
        raise InvalidJSON(problem)
    if type(document) is not dict:
        raise InvalidJSON('the body is JSON but no object; send one, like {"model": "..."}')
    for member in members:
        member.check(body, document)
    return document


def has_too_many_values(body: bytes) -> bool:
    """Whether there are more than `MAX_VALUES`, or more than `MAX_THINGS` texts or arrays and objects.

    Told without reading the body as JSON: for 5 MB of an image or of prose 3 ms, once more that where it is all commas.
    """
    if len(body) <= MAX_UNCOUNTED or len(body.translate(None, _NO_MARKS)) <= MAX_THINGS:
        return False
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # a quote that is left begins or ends a text
    if bare.count(b'"') > 2 * MAX_THINGS:
        return True
    marks = b"".join(bare.split(b'"')[::2]).translate(None, _NO_MARKS)
    return len(marks) > MAX_VALUES or len(marks) - marks.count(b",") > MAX_THINGS


def replace(body: bytes, span: Span, value: object) -> bytes:
    """`body` with `value`, as JSON, in the place of `span`; every other byte as it was."""
    return _splice(body, span, orjson.dumps(value))


def _splice(body: bytes, span: Span, new: bytes) -> bytes:
    view = memoryview(body)  # slices of bytes would copy 5 MB twice: 8 ms, and 0.2 with views
    start, end = span
    return b"".join((view[:start], new, view[end:]))


def _spellings(letter: str) -> bytes:
    """The pattern of all ways to write a letter in a JSON string (RFC 8259 section 7)."""
    digits = b"%02x" % ord(letter)
    either_case = b"".join(b"[%c%c]" % (d, d - 32) if d >= 97 else b"%c" % d for d in digits)
    return b"(?:%b|\\\\u00%b)" % (letter.encode(), either_case)


def _value_end(body: bytes, start: int) -> int:
    """Where the value that begins at `start` ends, in valid JSON."""
    if body[start] not in b"[{":
        value = _FLAT.match(body, start)
        assert value is not None
        return value.end()
    depth = 0
    for token in _TOKEN.finditer(body, start):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth == 0:
            return token.end()
    raise AssertionError("a value without end: the body was not validated")


_STREAM: Final = Member("stream")
_STREAM_OPTIONS: Final = Member("stream_options")
_INCLUDE_USAGE: Final = Member("include_usage")


def include_usage(body: bytes, document: dict[str, Any]) -> bytes | None:
    """`body` with `stream_options.include_usage` set to true and every other byte as it was; None: leave it alone.

    For chat and legacy completions, which the caller tells by their path; `document` is what orjson made of `body`.
    None means that what comes back is the client's, all of it: it asked for the usage itself, or for no stream, or
    sent what the provider has to judge (no `messages` or `prompt`, options of another shape, doubles).

    What is added goes before the closing brace: positions in the body, found here before or told by the provider in
    an error, stay what they are in the client's bytes. An absent member, `{}`, null and false all say no.
    """
    if document.get("stream") is not True or not ("messages" in document or "prompt" in document):
        return None
    options = document.get("stream_options")
    if options is not None:
        if type(options) is not dict:
            return None
        asked = options.get("include_usage")
        if asked is not None and asked is not False:
            return None
    try:
        _STREAM.check(body, document)
        _STREAM_OPTIONS.check(body, document)
        return _with_usage(body, document, options)
    except DuplicateMember:
        return None


def _with_usage(body: bytes, document: dict[str, Any], options: dict[str, Any] | None) -> bytes | None:
    if "stream_options" not in document:
        end = body.rindex(b"}")
        return _splice(body, (end, end), b',"stream_options":{"include_usage":true}')
    start = _STREAM_OPTIONS.start(body)
    if options is None:
        return replace(body, (start, start + len(b"null")), {"include_usage": True})
    # The options of every API are flags. One match in C finds the end of those; a walk through what a hostile client
    # may put there instead would take 5 s for 32 MiB.
    flat = _FLAT_OBJECT.match(body, start)
    if flat is None:
        return None
    text = flat.group()
    _INCLUDE_USAGE.check(text, options)
    span = _INCLUDE_USAGE.span(text, options)
    if span is not None:
        return replace(body, (start + span[0], start + span[1]), True)
    end = flat.end() - 1
    return _splice(body, (end, end), b',"include_usage":true' if options else b'"include_usage":true')
