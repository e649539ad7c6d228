"""From a request's head to whether it may proceed, and from its body to the model it names.

An `Admission` depends on the head's bytes, the snapshot and the key's dates, and on nothing else, so those of heads
that come again and again (SDKs send the same lines each time) are remembered by their bytes without the
content-length line: 6 us of 25 on fake transports. Only what was admitted is remembered, only heads seen twice, and
the memo is the snapshot's: it goes with it. Lines that differ each time (a trace id) but mean nothing to the gateway
are set aside first, so that such heads are found too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from aigw.errors import BAD_REQUEST, BODY_TOO_LARGE, INVALID_JSON, UNSUPPORTED_ENCODING, Failure
from aigw.policies import keys
from aigw.providers import dialect_of
from aigw.proxy.answers import PROBES
from aigw.route import match
from aigw.wire.jsonspan import DuplicateMember, InvalidJSON, Member, load, replace
from aigw.wire.multipart import BadForm, ModelPart

if TYPE_CHECKING:
    from aigw.config.snapshot import Candidate, Key, Match, Resolved, Snapshot
    from aigw.wire.head import RequestHead, RequestParser

# Admissions remembered, each with its head of about 3 KiB in all; and heads known to have come once.
MOST_KNOWN: Final = 512
MOST_SEEN: Final = 4096
MODEL: Final = Member("model")
# Bodies up to this length are searched for their model in lower case, which copies them.
MAX_PLAIN: Final = 32 * 1024
_FOREVER: Final = float("inf")
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_LOWER: Final = b"\r\ncontent-length: "


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


class Admissions:
    """The head phase of one snapshot."""

    __slots__ = ("_known", "_parser", "_seen", "snapshot")

    def __init__(self, snapshot: Snapshot, parser: RequestParser) -> None:
        self.snapshot = snapshot
        self._parser = parser
        self._known: dict[bytes, Admission] = {}
        self._seen: set[int] = set()

    def of(self, block: bytes, wall: float) -> tuple[Admission, int | None, list[bytes]]:
        """The admission of a head (without its blank line); the length of its body, None where it is chunked; and
        lines that are forwarded with it, but are no part of what was admitted.

        `wall` is epoch seconds. Raises `Refused` where the head is malformed: answer, then close.
        """
        start = block.find(_LENGTH)
        if start < 0:
            start = block.find(_LENGTH_LOWER)
        if start < 0:
            length = 0
            rest = block
        else:
            stop = block.find(b"\r\n", start + 18)
            digits = block[start + 18 :] if stop < 0 else block[start + 18 : stop]
            if not digits.isdigit() or len(digits) > 18:
                return self._parse(block, wall)
            length = int(digits)
            rest = block[:start] if stop < 0 else block[:start] + block[stop:]
        known = self._known.get(rest)
        more: list[bytes] = []
        if known is None:
            parts = self._parser.unremembered(rest, self.snapshot.head_bounds)
            if parts is None:
                return self._parse(block, wall, rest if start >= 0 else b"")
            rest, more, names = parts
            known = self._known.get(rest)
            if known is None:
                head = self._parser.parse(rest, self.snapshot.head_bounds)
                if head.has_length:
                    return self._parse(block, wall)  # a length in a spelling of its own
                known = admit(self.snapshot, head, wall)
                self._remember(rest, known)
            if not known.head.takes(names):
                return self._parse(block, wall)
        if known.expires <= wall or known.failure is not None:
            return self._parse(block, wall)
        if known.head.length is not None:
            return known, length, more
        if start >= 0:
            return self._parse(block, wall)  # chunked, and a length: two framings
        return known, None, more

    def _parse(self, block: bytes, wall: float, rest: bytes = b"") -> tuple[Admission, int | None, list[bytes]]:
        """The long way. `rest` is the block without its length, where that is what it shall be remembered by."""
        head = self._parser.parse(block, self.snapshot.head_bounds)
        admission = admit(self.snapshot, head, wall)
        if not rest and not head.has_length:
            rest = block  # what is remembered never has a length line in it
        if rest and admission.failure is None:
            self._remember(rest, admission)
        return admission, head.length, []

    def _remember(self, rest: bytes, admission: Admission) -> None:
        mark = hash(rest)
        if mark not in self._seen:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self._known) >= MOST_KNOWN:
            self._known.clear()
        self._known[rest] = admission


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
        admission.expires = min(key.expires or _FOREVER, key.previous_until or _FOREVER)
    admission.source = _source(found, head)
    admission.is_listing = found.rule.by_model and endpoint.kind == "models"
    admission.is_special = admission.is_listing or head.line.path in PROBES
    admission.keeps_state = endpoint.stateless
    admission.total = found.rule.total or snapshot.timeouts.total
    if admission.source in ("body", "form") and head.content_encoding not in (b"", b"identity"):
        admission.is_special = True
        admission.failure = Failure(
            UNSUPPORTED_ENCODING,
            "the body is compressed, but the gateway has to read its `model`; send it without content-encoding",
        )
    return admission


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
    if len(whole) <= MAX_PLAIN and b"\\u" not in whole and whole.lower().count(b'"model"') == 1:
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
