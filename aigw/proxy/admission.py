"""From a request's head to whether it may proceed, and from its body to the model it names.

An `Admission` depends on the head's bytes, the snapshot and the key's dates, and on nothing else. SDKs send the same
lines each time but for a few, so that heads are recognised by a `Pattern` instead of being parsed (0.6 us
for 5.6 on fake transports). Only what was admitted is remembered, and patterns are the snapshot's: they go with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from aigw.errors import BAD_REQUEST, BODY_TOO_LARGE, INVALID_JSON, UNSUPPORTED_ENCODING, Failure
from aigw.policies import keys
from aigw.providers import dialect_of
from aigw.proxy.answers import PROBES
from aigw.route import match
from aigw.wire.fields import ID, LENGTH, MAX_ID, MAX_LINE, PLAIN, REQUEST_ID, VALUE, line_name, request_field
from aigw.wire.jsonspan import (
    MAX_THINGS,
    MAX_VALUES,
    DuplicateMember,
    InvalidJSON,
    Member,
    has_too_many_values,
    load,
    replace,
)
from aigw.wire.multipart import BadForm, ModelPart

if TYPE_CHECKING:
    from aigw.config.snapshot import Candidate, Key, Match, Resolved, Snapshot
    from aigw.wire.head import RequestHead, RequestParser

# Patterns a worker keeps: one is needed per kind of client; each costs the others a comparison of 0.06 us.
MOST_PATTERNS: Final = 16
MOST_HOLES: Final = 8
MODEL: Final = Member("model")
# Bodies up to this length are searched for their model in lower case, which copies them.
MAX_PLAIN: Final = 32 * 1024
_LIKE_ASCII: Final = (b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-", b"latin", b"windows-125", b"cp125")
_FOREVER: Final = float("inf")


class Admission:
    """What the head decided. `failure` stands where it may not proceed; `match` and `key` as far as they were found.

    `source` is where the request names its model: "body", "form", "path", or "none" where it is routed without one.
    `candidate`, `prefix` and `described` remember what was written to target and log for the candidate used
    last (see `Exchange.connected`).
    """

    __slots__ = (
        "candidate",
        "described",
        "dialect",
        "expires",
        "failure",
        "head",
        "is_counted",
        "is_head",
        "is_listing",
        "is_special",
        "keeps_state",
        "key",
        "match",
        "prefix",
        "resolved",
        "source",
        "total",
    )

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.is_head = head.line.method == "HEAD"
        self.dialect = ""
        self.match: Match | None = None
        self.key: Key | None = None
        self.source = "none"
        self.failure: Failure | None = None
        self.expires = _FOREVER  # epoch seconds: from then on the key has to be looked at again
        self.is_counted = False  # whether the answer may say what it used, and is not one that was counted before
        self.is_listing = False  # GET /v1/models and the like
        self.is_special = True  # whether it may be answered without an upstream
        self.keeps_state = False  # whether the body may ask the provider to keep state
        self.total: float | None = None  # seconds an exchange may take, where the model does not say
        # remembered on the way
        self.resolved: dict[str | None, Resolved] = {}  # by the model asked for
        self.candidate: Candidate | None = None
        self.prefix = b""
        self.described = b""

    @property
    def found(self) -> Match:
        """The match, where there is no failure."""
        assert self.match is not None
        return self.match


# The admission; the body's length, None where it is chunked; and what is no part of what was admitted: lines that are
# forwarded with it, each with CRLF, and a request id of its own.
Found = tuple[Admission, int | None, bytes, bytes | None]


class Pattern:
    """Heads that are the same but for a few lines: the length, and lines that mean nothing to the gateway.

    Which lines differ was seen on two heads that were parsed in full (`Admissions`), so any further head that is equal
    outside of these holes is admitted as they were, once what stands in the holes has passed the rules of its lines.
    """

    __slots__ = ("_before", "_behind", "_digits", "_first", "_holes", "_is_plain", "admission", "home")

    def __init__(self, home: Admissions, admission: Admission, lines: list[bytes], holes: dict[int, int]) -> None:
        """`lines` are of a whole head; `holes` are those that differ, in order, with their kinds: LENGTH, REQUEST_ID
        or PLAIN."""
        self.home = home
        self.admission = admission
        # What stands before, between and behind the values in the holes: the names belong to what is the same.
        same = [b""]
        names = []
        for index, line in enumerate(lines):
            same[-1] += b"\r\n" if index else b""
            if index in holes:
                name = line.partition(b":")[0] + (b":" if holes[index] == PLAIN else b": ")
                names.append(name)
                same[-1] += name
                same.append(b"")
            else:
                same[-1] += line
        self._before = same[0]
        self._first = len(same[0]) if holes else len(same[0]) + 2  # where a hole begins, or where the last line ends
        ends = [*same[1:-1], same[-1] + b"\r\n"] if holes else []
        self._holes = list(zip(holes.values(), [len(name) for name in names], ends, strict=True))
        self._is_plain = list(holes.values()) == [LENGTH]
        self._behind = same[-1]
        self._digits = slice(len(same[0]), -len(same[-1]) or None)

    def match(self, block: bytes) -> Found | None:
        """None where it is another head."""
        if not block.startswith(self._before):
            return None
        if not self._is_plain:
            return self._fill(block)
        # Nothing but the length differs: two comparisons say it all (0.4 us on fake transports).
        digits = block[self._digits]
        if block.endswith(self._behind) and digits.isdigit() and len(digits) <= 18:
            return self.admission, int(digits), b"", None
        return None

    def _fill(self, block: bytes) -> Found | None:
        length = self.admission.head.length
        more = b""
        request_id: bytes | None = None
        place = self._first
        block += b"\r\n"  # as every line of it ends
        for kind, size, behind in self._holes:
            stop = block.find(b"\r\n", place)
            value = block[place:stop]
            if kind == PLAIN:
                if value.translate(None, VALUE) or stop - place + size > MAX_LINE:
                    return None
                more += block[place - size : stop + 2]
            elif kind == LENGTH:
                if not value.isdigit() or len(value) > 18:
                    return None
                length = int(value)
            else:
                if not value or value.translate(None, ID) or len(value) > MAX_ID:
                    return None
                request_id = value
            if not block.startswith(behind, stop):
                return None
            place = stop + len(behind)
        return (self.admission, length, more, request_id) if place == len(block) else None


class Memory:
    """What one client connection remembers of its heads."""

    __slots__ = ("block", "pattern")

    def __init__(self) -> None:
        self.block = b""  # the head parsed last
        self.pattern: Pattern | None = None  # the one that matched last


class Admissions:
    """The head phase of one snapshot, and the patterns of heads that it has met, the newest first."""

    __slots__ = ("_bound", "_parser", "_patterns", "snapshot")

    def __init__(self, snapshot: Snapshot, parser: RequestParser) -> None:
        self.snapshot = snapshot
        self._parser = parser
        self._patterns: list[Pattern] = []
        self._bound = snapshot.head_bounds.head

    def of(self, block: bytes, wall: float, memory: Memory) -> Found:
        """The admission of a head (without its blank line). `wall` is epoch seconds.

        Raises `Refused` where the head is malformed: answer, then close.
        """
        last = memory.pattern
        if last is not None and last.home is self and len(block) <= self._bound:
            found = last.match(block)
            if found is not None and found[0].expires > wall:
                return found
        for pattern in self._patterns if len(block) <= self._bound else ():
            found = pattern.match(block)
            if found is not None and found[0].expires > wall:
                memory.pattern = pattern
                return found
        head = self._parser.parse(block, self.snapshot.head_bounds)
        admission = admit(self.snapshot, head, wall)
        if admission.failure is None:
            if memory.block:
                self._learn(memory.block, block, wall)
            memory.block = block
        return admission, head.length, b"", None

    def _learn(self, one: bytes, other: bytes, wall: float) -> None:
        """Two heads that one client sent one after the other: if they differ only where a pattern may, keep it."""
        lines = other.split(b"\r\n")
        before = one.split(b"\r\n")
        if len(lines) != len(before) or lines[0] != before[0]:
            return
        holes: dict[int, int] = {}
        names = []
        for index, line in enumerate(lines):
            if not index:
                continue
            field = request_field(line)
            if line == before[index] and field.kind != LENGTH:
                continue
            name, _, value = line.partition(b":")
            if name != before[index].partition(b":")[0]:
                return
            if field.kind not in (PLAIN, LENGTH, REQUEST_ID) or (field.kind != PLAIN and value != b" " + field.value):
                return
            holes[index] = field.kind
            if field.kind == PLAIN:
                names.append(name.lower())
        rest = b"\r\n".join(line for index, line in enumerate(lines) if index not in holes)
        head = self._parser.parse(rest, self.snapshot.head_bounds)
        kept = {line_name(line) for line in head.kept}
        # Order matters among lines of one name (RFC 9110 section 5.3), and what Connection names is dropped.
        if head.named or head.has_length or not kept.isdisjoint(names):
            return
        if head.request_id is not None and REQUEST_ID in holes.values():
            return  # of two ids the last one counts, and that need not be the one that differs
        admission = admit(self.snapshot, head, wall)
        if admission.failure is None and len(holes) <= MOST_HOLES:
            self._patterns = [Pattern(self, admission, lines, holes), *self._patterns[: MOST_PATTERNS - 1]]


def admit(snapshot: Snapshot, head: RequestHead, wall: float) -> Admission:
    """Gateway, rule, key, encoding: everything that can be decided before the body, but for the body's size."""
    admission = Admission(head)
    found = match(snapshot, head)
    if isinstance(found, Failure):
        admission.dialect = dialect_of("", head)
        admission.failure = found
        return admission
    admission.match = found
    endpoint = found.endpoint
    admission.dialect = dialect_of(endpoint.dialect, head)
    if found.gateway.auth and not found.rule.public:
        key = keys.admit(found.gateway, head, wall)
        if isinstance(key, Failure):
            admission.failure = key
            return admission
        admission.key = key
        # When a value before the last rotation has ended, this was not it.
        ends = [at for at in (key.expires, key.previous_until) if at is not None and at > wall]
        admission.expires = min(ends, default=_FOREVER)
    admission.source = _source(found, head)
    admission.is_listing = found.rule.by_model and endpoint.kind == "models"
    admission.is_special = admission.is_listing or head.line.path in PROBES
    admission.is_counted = endpoint.kind == "inference" or (endpoint.kind == "unknown" and head.line.method == "POST")
    admission.keeps_state = endpoint.stateless
    admission.total = found.rule.total or snapshot.timeouts.total
    if admission.source in ("body", "form") and head.content_encoding not in (b"", b"identity"):
        admission.is_special = True
        admission.failure = Failure(
            UNSUPPORTED_ENCODING,
            "the body is compressed, but the gateway has to read its `model`; send it without content-encoding",
        )
    elif admission.source == "body" and not _is_like_ascii(head.content_type):
        admission.is_special = True
        admission.failure = Failure(UNSUPPORTED_ENCODING, "JSON is UTF-8 (RFC 8259 section 8.1); send no other charset")
    return admission


def _is_like_ascii(content_type: bytes) -> bool:
    """Whether a reader who obeys the charset sees the same names as one who takes JSON for the UTF-8 it has to be.

    Usual ones that contain ASCII are let pass, since HTTP clients write them without being asked. In others the bytes
    of a text may spell another `model` (UTF-7: `+AG0-odel`).
    """
    for parameter in content_type.lower().split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip(b" \t") == b"charset" and not value.strip(b" \t\"'").startswith(_LIKE_ASCII):
            return False
    return True


def _source(found: Match, head: RequestHead) -> str:
    if not found.rule.by_model:
        return "none"
    endpoint = found.endpoint
    if endpoint.source in ("path", "none"):
        return endpoint.source
    media = head.content_type[:19].lower()
    if media == b"multipart/form-data" and (endpoint.source == "form" or endpoint.kind == "unknown"):
        return "form"
    # A path nobody told us of may carry anything; only JSON is looked into.
    return "body" if endpoint.kind == "inference" or media[:16] == b"application/json" else "none"


def model_of_json(whole: bytes) -> tuple[str | None, dict[str, Any]] | Failure:
    """The one top-level `model` of a JSON object, None where it names none, and the object.

    Most bodies are short and have the text `"model"` once, in whatever case, and no escape that could spell it: then
    the member that the object has is the only one. The others are looked at in full.
    """
    if len(whole) <= MAX_PLAIN and whole.find(b"\\u") < 0 and whole.lower().count(b'"model"') == 1:
        try:
            members = orjson.loads(whole)
        except orjson.JSONDecodeError:
            members = None
        if type(members) is dict:
            model = members.get("model")
            if type(model) is str and model:
                return model, members
    return _model_of_any(whole)


def _model_of_any(whole: bytes) -> tuple[str | None, dict[str, Any]] | Failure:
    if has_too_many_values(whole):
        return Failure(
            BODY_TOO_LARGE,
            f"the request body has too many values (at most {MAX_VALUES}, of them {MAX_THINGS} texts and "
            f"{MAX_THINGS} arrays and objects); send them in several requests",
        )
    try:
        members = load(whole, MODEL)
    except DuplicateMember as error:
        return Failure(BAD_REQUEST, str(error), "model")
    except InvalidJSON as error:
        return Failure(INVALID_JSON, str(error))
    for name in members:
        # Readers that fold case (Go's encoding/json) take `Model` for `model`, and the later of the two for the one.
        if len(name) == 5 and name != "model" and name.lower() == "model":
            return Failure(BAD_REQUEST, f"the body has a member {name!r}; write `model`, in lower case, once", "model")
    model = members.get("model")
    if model is not None and (type(model) is not str or not model):
        return Failure(BAD_REQUEST, "`model` must be a text that is not empty", "model")
    return model, members


def with_model(whole: bytes, members: dict[str, Any], model: str) -> bytes:
    """The body with another name in its `model`, every other byte as it was."""
    span = MODEL.span(whole, members)
    assert span is not None
    return replace(whole, span, model)


def keeps_state(members: dict[str, Any]) -> bool:
    """Whether the provider shall store the answer or go on without us: then it must not be asked twice."""
    return bool(members.get("store") or members.get("background"))


def model_of_form(admission: Admission, whole: bytes) -> ModelPart | Failure:
    """The `model` part of a whole multipart form."""
    try:
        form = ModelPart(admission.head.content_type)
        form.feed(whole)
    except BadForm as error:
        return Failure(BAD_REQUEST, str(error))
    return form


def too_large(bound: int) -> Failure:
    return Failure(BODY_TOO_LARGE, f"the request body has more than {bound} bytes (bounds.body); send a smaller one")
