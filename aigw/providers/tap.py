"""What an answer says it used, read off its bytes as they pass: `Tap`.

A tap is made from what the response's head says (`way_to_read`) and is fed the body, without chunk framing. It knows no
dialect: it looks for an object under a name that reports of usage have, at a place where they have it.

How it does that without parsing bodies. In valid JSON an unescaped quote, `usage`, a quote and a colon can only be a
name (a string would need a backslash), so one search in C over each read finds every candidate. Only the candidate's
own span is parsed; it counts if it tells of tokens in integers (`usage.read`). Its *place* is known by counting the
brackets that close behind it, to the end of its document: a body, or one event of a stream. A report stands at the
top level (one closes), in an array of answers (Gemini without `alt=sse`: two), or, in events, within a `response`,
`message`, `delta` or `x_groq` (two). What clients and models put into an answer (tools echoed, arguments of calls)
stands deeper and is none, however it looks. Of several in one document the shallowest counts, of equals the last; of
several events each adds what it knows (`Tokens.updated`).

Memory is bounded: one unfinished report (8 KiB at most), or the last few bytes of a read. So is time: everything is
linear in the body except that an unfinished report is looked at again with each read.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any, Final

import orjson

from aigw.providers import usage
from aigw.tokens import Tokens
from aigw.wire.sse import EVENT_END

# How an answer is read.
UNREADABLE: Final = 0
BODY: Final = 1  # one JSON document
EVENTS: Final = 2  # one in each event
GZIP: Final = 4  # added to the others

# Both are searched for in every read (`"usage` is `usageMetadata` too); `meta` is Cohere's, and not in events.
USAGE: Final = b'"usage'
META: Final = b'"meta"'
# OpenAI's `include_usage` puts this into every event but the last.
_NULL: Final = b'":null'
_PLAIN_COLONS: Final = frozenset((b'":', b'": ', b'Metadata":', b'Metadata": '))
# What an event ends with, mostly; and what takes a closer look if it stands behind a report.
_END_OF_EVENT: Final = (b"\n\n", b"\r\n\r\n")
_NOT_PLAIN: Final = b"{[]\\\r\n"
# White space around the colon; in an event of several data lines a line may end there. Bounded, so that what may be
# cut between two reads is, too. The quote comes first and the look-behind after it: a literal is searched by memchr.
_GAP: Final = rb"[ \t\r\n]{0,16}+(?:data:[ \t]{0,16}+)?+"
_LONGEST_NAME: Final = 96
_EVENT_NAME: Final = re.compile(rb'"(?<!\\")usage(?:Metadata)?"' + _GAP + rb":" + _GAP)
_BODY_NAME: Final = re.compile(rb'"(?<!\\")(?:usage(?:Metadata)?|meta)"' + _GAP + rb":" + _GAP)
# The end of a read that must be seen together with the next one: the beginning of a name; and, behind a candidate,
# the end of a line (the next one may be empty).
_BEGUN: Final = (
    rb'"(?<!\\")(?:[A-Za-z]{0,13}+|(?:usage(?:Metadata)?|meta)"' + _GAP + rb":?" + _GAP + rb"(?:da?|data?)?)\Z"
)
_BEGUN_NAME: Final = re.compile(_BEGUN)
_BEGUN_NAME_OR_END: Final = re.compile(_BEGUN + rb"|[\r\n]{1,3}\Z")
# The last byte of every read that may end within the first letters of a name, or within an escape.
_MAY_GO_ON: Final = frozenset(b"%c" % byte for byte in b'"usagemt\\')

# A JSON object and what is nested in it, three deep, which is more than any report has. Possessive: linear.
_DEEPEST: Final = 4
_PLAIN: Final = rb'[^][{}"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^][{}"]*+'
_IN_3: Final = rb"[\[{]" + _PLAIN + rb")*+[\]}]"
_IN_2: Final = rb"[\[{]" + _PLAIN + rb"|" + _IN_3 + rb'[^][{}"]*+)*+[\]}]'
_IN_1: Final = rb"[\[{]" + _PLAIN + rb"|" + _IN_2 + rb'[^][{}"]*+)*+[\]}]'
_OBJECT: Final = re.compile(rb"\{" + _PLAIN + rb"|" + _IN_1 + rb'[^][{}"]*+)*+\}', re.DOTALL)
_DATA_LINE: Final = re.compile(rb"[\r\n]data:")
# The largest in the recordings is 0.6 KB; one with a line for each of many steps may be some KB.
_LARGEST_REPORT: Final = 8 * 1024
# Candidates of one read that are no reports, after which the rest of it is not looked at: what is made to be slow would
# have 8 KiB searched for every 12 bytes.
_MOST_FAILED: Final = 64

# Inflating stops beyond these, and the usage is unknown.
_STEP: Final = 64 * 1024
_MOST_INFLATED: Final = 64 * 1024 * 1024
_MOST_RATIO: Final = 200
_MOST_PER_READ: Final = 16 * 1024 * 1024  # some 45 ms of the loop; 65:1 for the 256,000 bytes a read brings at most


def way_to_read(content_type: bytes, content_encoding: bytes) -> int:
    """What `Tap` takes, from the values of these headers (b"" for none); 0 (`UNREADABLE`) where no tap can read it.

    Read are application/json and text/event-stream, plain or gzip'ed.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"application/json":
        way = BODY
    elif kind == b"text/event-stream":
        way = EVENTS
    else:
        return UNREADABLE
    coding = content_encoding.lower()
    if coding in (b"gzip", b"x-gzip"):
        return way | GZIP
    return way if coding in (b"", b"identity") else UNREADABLE


class Tap:
    """One answer's body in, its usage out: `feed` each read of it, then ask `usage` once, whatever the end was."""

    __slots__ = ("_closed", "_events", "_found", "_inflater", "_kept", "_last", "_plain", "_quoted", "_usage")

    def __init__(self, way: int) -> None:
        """`way` is from `way_to_read`, and not `UNREADABLE`."""
        self._events = way & EVENTS
        self._inflater = _Inflater() if way & GZIP else None
        self._usage: Tokens | None = None  # what the documents that ended told
        self._kept = b""  # the end of what was fed that must be seen with what follows it
        self._plain = way == EVENTS  # events, not coded, and nothing waits: a read without `"usage` needs no more
        # the candidate of this document, and what came behind it
        self._found: Tokens | None = None
        self._closed = 0  # brackets closed less brackets opened
        self._last = b""  # the last bracket
        self._quoted = False  # within a string

    def __repr__(self) -> str:
        return f"<Tap {'events' if self._events else 'body'}, {self._found or self._usage or 'nothing seen'}>"

    def feed(self, payload: bytes) -> None:
        """`payload` is the next part of the body: content-coded as it came, without chunk framing."""
        if self._plain and payload.rfind(USAGE) < 0:
            if payload[-1:] in _MAY_GO_ON:
                self._keep(payload, 0)
                self._plain = not self._kept
        elif self._inflater is None:
            self._take(payload)
            self._plain = self._events != 0 and not self._kept and self._found is None
        else:
            for piece in self._inflater.feed(payload):
                self._take(piece)

    @property
    def is_idle(self) -> bool:
        """Whether a read of events that has no `USAGE`, and ends a line, would tell it nothing."""
        return self._plain

    def usage(self, whole: bool = True) -> Tokens | None:
        """What was reported by the time the body ended, or broke off (`whole` False). To be asked for once.

        None where nothing was, or nothing readable. A JSON document that broke off has reported nothing, since no place
        in it is certain; a stream that did, what its events told before. (Of a whole stream the last event counts even
        if its empty line is missing.)
        """
        inflater = self._inflater
        if inflater is not None:
            if inflater.failed:
                return None
            whole = whole and inflater.ended
        if not (whole or self._events):
            return None
        if self._kept:
            kept, self._kept = self._kept, b""
            self._look(kept, final=True)
        if self._found is not None and whole:
            self._settle()
        return self._usage

    def _take(self, payload: bytes) -> None:
        """The ways of a read, the cheap ones first."""
        if self._kept:
            payload = self._kept + payload
            self._kept = b""
        elif self._found is None:
            place = payload.rfind(USAGE)
            if place >= 0 and payload[place + 6 : place + 12] == _NULL:
                place = payload.rfind(USAGE, 0, place)
            if place < 0:
                if self._events or payload.rfind(META) < 0:
                    if payload[-1:] in _MAY_GO_ON:
                        self._keep(payload, 0)
                    return
            elif self._at_the_end(payload, place):
                return
        self._look(payload)

    def _at_the_end(self, payload: bytes, place: int) -> bool:
        """Whether an object (in a stream: its event) ends with `payload`, and the only candidate stands near that end.

        Most answers and last events are so: behind the name at `place` a report, up to the last brace but one, then no
        bracket, then the last brace. It finds what `_look` finds, for a third of its instructions.
        """
        begin = payload.find(b"{", place, place + 20)
        last = payload.rfind(b"}")
        end = payload.rfind(b"}", begin, last) + 1
        if begin < place + 6 or end == 0 or payload[place + 6 : begin] not in _PLAIN_COLONS:
            return False
        if payload.endswith(b"\\", 0, place) or payload.rfind(USAGE, 0, place) >= 0:
            return False
        after = payload[last + 1 :]
        if after and (
            after.strip() if not self._events else after[-1:] != b"\n" or not after.startswith(_END_OF_EVENT)
        ):
            return False
        rest = payload[end:last]
        if rest and (len(rest.translate(None, _NOT_PLAIN)) < len(rest) or rest.count(b'"') & 1):
            return False
        report = payload[begin:end]
        if len(report) > _LARGEST_REPORT or report.count(b"{") + report.count(b"[") > _DEEPEST:
            return False
        tokens = _report(report)
        if tokens is None:
            return False
        self._found = tokens
        self._closed = 1
        if after and self._events:
            self._settle()
        return True

    def _look(self, payload: bytes, final: bool = False) -> None:
        """Find the candidates in `payload` and count the brackets behind them. `final`: nothing follows."""
        counted = 0  # where counting goes on, if there is a candidate
        failed = 0
        for name in (_EVENT_NAME if self._events else _BODY_NAME).finditer(payload):
            start, begin = name.span()
            if failed > _MOST_FAILED:
                break
            if start < counted or payload[begin : begin + 1] not in (b"{", b""):
                continue  # within a report, or no object
            span = _OBJECT.match(payload, begin, begin + _LARGEST_REPORT)
            if span is None:
                over = final or len(payload) - begin > _LARGEST_REPORT
                if over or (self._events and _has_end(payload, begin)):
                    failed += 1
                    continue
                if self._found is not None:
                    self._count(payload, counted, start)
                self._kept = payload[start:]
                return
            tokens = _report(span.group())
            if tokens is None:
                failed += 1
                continue
            if self._found is not None:
                self._count(payload, counted, start)
                counted = start
                if self._closed < 0:
                    continue  # it stands deeper than the one before
            self._found = tokens
            self._closed = 0
            self._quoted = False
            counted = span.end()
        if final:
            if self._found is not None:
                self._count(payload, counted, len(payload))
        else:
            self._keep(payload, counted)

    def _keep(self, payload: bytes, counted: int) -> None:
        """Count what is left of `payload`, except what must be seen together with the next read."""
        if self._found is not None and self._events and _has_end(payload, counted):
            self._count(payload, counted, len(payload))
        open_line = self._events and self._found is not None
        begun = (_BEGUN_NAME_OR_END if open_line else _BEGUN_NAME).search(
            payload, max(counted, len(payload) - _LONGEST_NAME)
        )
        if begun is not None:
            cut = begun.start()
        else:
            cut = len(payload)
            if payload[-1:] == b"\\":
                cut -= (cut - len(payload.rstrip(b"\\"))) & 1
        if self._found is not None:
            self._count(payload, counted, cut)
        self._kept = payload[cut:]

    def _count(self, payload: bytes, start: int, end: int) -> None:
        """Count the brackets of `payload[start:end]`, which cuts no escape; to the end of the event, if that is there.

        In an event, fields other than data are taken for JSON as well: quotes and brackets in them, behind the report
        and within the same event, can make a report unknown.
        """
        ended = EVENT_END.search(payload, start, end) if self._events else None
        text = payload[start : end if ended is None else ended.start()]
        if text.find(b"\\") >= 0:
            # Escaped backslashes first: of those that remain, each escapes what follows it.
            text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
        if self._quoted or text.find(b'"') >= 0:
            strings = text.split(b'"')
            text = b"".join(strings[self._quoted :: 2])
            self._quoted ^= not len(strings) & 1
        closed = text.count(b"}") + text.count(b"]")
        if closed:
            self._last = b"]" if text.rfind(b"]") > text.rfind(b"}") else b"}"
        self._closed += closed - text.count(b"{") - text.count(b"[")
        if ended is not None:
            self._settle()

    def _settle(self) -> None:
        """The document has ended: the candidate stood at a report's place, or was none."""
        if self._closed == 1 or (self._closed == 2 and (self._events or self._last == b"]")):
            assert self._found is not None
            self._usage = self._found if self._usage is None else self._usage.updated(self._found)
        self._found = None
        self._closed = 0
        self._quoted = False


def _has_end(payload: bytes, start: int) -> bool:
    """Whether an event ends in `payload` behind `start`. memchr first: the pattern takes 50 times as long."""
    if payload.find(b"\n", start) < 0 and payload.find(b"\r", start) < 0:
        return False
    return EVENT_END.search(payload, start) is not None


def _report(text: bytes) -> Tokens | None:
    """What the object `text` reports; None where it is no report of usage, or no JSON."""
    if text.find(b"data:") >= 0:  # not `in`, which with bytes makes and drops an exception: 0.1 us
        text = _DATA_LINE.sub(b"\n", text)  # an event of several data lines; in JSON no string holds a line's end
    try:
        report: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return usage.read(report)


class _Inflater:
    """gzip in (RFC 1952, one member), pieces of at most 64 KiB out.

    `failed` once it met no gzip, something behind the member, or a bomb: over 64 MiB in all, 200:1, or 16 MiB from one
    read. From then on there are no pieces.
    """

    __slots__ = ("_came_in", "_decoder", "_went_out", "failed")

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(31)
        self._came_in = 0
        self._went_out = 0
        self.failed = False

    def feed(self, payload: bytes) -> Iterator[bytes]:
        if self.failed:
            return
        decoder = self._decoder
        self._came_in += len(payload)
        # The first step is free: a few bytes of white space may well be 1,000:1.
        most = min(_MOST_INFLATED, max(self._came_in * _MOST_RATIO, _STEP), self._went_out + _MOST_PER_READ)
        self.failed = True  # unless all of it turns out well
        while True:
            try:
                piece = decoder.decompress(payload, _STEP)
            except zlib.error:
                return
            self._went_out += len(piece)
            if self._went_out > most:
                return
            if piece:
                yield piece
            payload = decoder.unconsumed_tail
            if not payload and len(piece) < _STEP:
                break
        self.failed = bool(decoder.unused_data)

    @property
    def ended(self) -> bool:
        """The member is complete, its checksum right."""
        return self._decoder.eof
