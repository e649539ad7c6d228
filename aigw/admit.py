"""What a request may do: from its head to an admission, and from its body to the model it names.

Pure functions of head, snapshot and wall clock. Serving (`proxy`) and explaining (`explain`) use the same; neither a
socket nor a target is known here. Where it goes from here is decided by `route`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote_to_bytes

import orjson

from aigw.config.limits import ONE, of_all
from aigw.errors import BAD_REQUEST, BODY_TOO_LARGE, INVALID_JSON, MODEL_NOT_FOUND, UNSUPPORTED_ENCODING, Failure
from aigw.policies import keys
from aigw.providers import dialect_of
from aigw.route import match
from aigw.wire.fields import line_name
from aigw.wire.jsonspan import (
    MAX_THINGS,
    MAX_VALUES,
    DuplicateMember,
    InvalidJSON,
    Member,
    has_too_many_values,
    include_usage,
    load,
    replace,
)
from aigw.wire.multipart import BadForm, ModelPart

if TYPE_CHECKING:
    from aigw.config.limits import Limit
    from aigw.config.snapshot import Key, Match, Resolved, Snapshot
    from aigw.config.upstreams import Candidate
    from aigw.counters import Counts
    from aigw.policies.allowance import Allowance
    from aigw.wire.head import RequestHead

# Answered by the gateway before any rule.
OWN: Final = frozenset({b"/__/ping", b"/__/healthz", b"/__/readyz"})
# Answered by it unless a rule names the path exactly. Agents probe `HEAD /` and `/api/hello` before they talk.
PROBES: Final = OWN | {b"/healthz", b"/livez", b"/readyz", b"/", b"/api/hello"}
MODEL: Final = Member("model")
# Bodies up to this length are searched for their model in lower case, which copies them.
MAX_PLAIN: Final = 32 * 1024
_LIKE_ASCII: Final = (b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-", b"latin", b"windows-125", b"cp125")
_FOREVER: Final = float("inf")
_NOT_STORED: Final = re.compile(rb'"store"[ \t\r\n]*:[ \t\r\n]*false')


class Admission:
    """What the head decided. `failure` stands where it may not proceed; `match` and `key` as far as they were found.

    `source` is where the request names its model: "body", "form", "path", or "none" where it is routed without one.
    "read" is a path, of a request whose body is to be read all the same: a limit asks how long the answer may be.
    `candidate`, `prefix` and `described` remember what was written to target and log for the candidate used
    last (see `Exchange.connected`), `counts` where the last exchange counted (see `Counters.count`).
    """

    __slots__ = (
        "allowances",
        "bodies",
        "candidate",
        "counts",
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
        "later",
        "limits",
        "match",
        "only",
        "opens",
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
        self.is_special = True  # whether it may be answered without an upstream, but for being over a limit
        self.keeps_state = False  # whether the body may ask the provider to keep state
        self.limits: tuple[Limit, ...] = ()  # that the head is measured by
        self.opens: tuple[Limit, ...] = ()  # of them, those of whose meters clients make many
        self.later: tuple[Limit, ...] = ()  # that wait for the body
        self.total: float | None = None  # seconds an exchange may take, where the model does not say
        # remembered on the way
        self.resolved: dict[str | None, Resolved] = {}  # by the model asked for
        self.allowances: tuple[Allowance, ...] | None = None  # of `limits`, but for those of `opens`
        self.only: Allowance | None = None  # the one of them, where that is one of requests that refuses
        # the same of `later`, with the limits of which clients make many, by the entry of the model
        self.bodies: dict[str | None, tuple[tuple[Allowance, ...], tuple[Limit, ...]]] = {}
        self.candidate: Candidate | None = None
        self.prefix = b""
        self.described = b""
        self.counts: Counts | None = None

    @property
    def found(self) -> Match:
        """The match, where there is no failure."""
        assert self.match is not None
        return self.match


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
    if found.gateway.is_limited and admission.failure is None:
        _limit(admission, found)
    return admission


def _limit(admission: Admission, found: Match) -> None:
    """Which limits apply, as far as the head tells."""
    limits = of_all(found.gateway, found.rule, admission.key)
    admission.limits = tuple(limit for limit in limits if limit.of_head)
    admission.opens = tuple(limit for limit in admission.limits if limit.is_open)
    admission.later = tuple(limit for limit in limits if not limit.of_head)
    if admission.source == "path" and any(limit.unit not in ONE for limit in admission.later):
        admission.source = "read"


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
    except InvalidJSON as invalid:
        return Failure(INVALID_JSON, str(invalid))
    for name in members:
        # Readers that fold case (Go's encoding/json) take `Model` for `model`, and the later of the two for the one.
        if len(name) == 5 and name != "model" and name.lower() == "model":
            return Failure(BAD_REQUEST, f"the body has a member {name!r}; write `model`, in lower case, once", "model")
    model = members.get("model")
    if model is not None and (type(model) is not str or not model):
        return Failure(BAD_REQUEST, "`model` must be a text that is not empty", "model")
    return model, members


def members_of(whole: bytes) -> dict[str, Any] | None:
    """A body whose path has named the model already; None where it is no JSON object, as the upstream will say."""
    try:
        members = orjson.loads(whole)
    except orjson.JSONDecodeError:
        return None
    return members if type(members) is dict else None


def with_model(whole: bytes, members: dict[str, Any], model: str) -> bytes:
    """The body with another name in its `model`, every other byte as it was."""
    span = MODEL.span(whole, members)
    assert span is not None
    return replace(whole, span, model)


def fitted(
    admission: Admission, whole: bytes, candidate: Candidate, members: dict[str, Any] | None = None
) -> tuple[bytes, bool]:
    """The body as it is sent to the candidate's target, and whether the answer has to be patched for it.

    `whole` is what the client sent, and names its model; `members` its JSON object, where that was parsed already.
    """
    sent = candidate.sent
    if admission.source == "form":
        form = model_of_form(admission, whole)
        if candidate.renamed and sent is not None and not isinstance(form, Failure) and form.span is not None:
            whole = whole[: form.span[0]] + sent.encode() + whole[form.span[1] :]
        return whole, False
    if members is None:
        members = orjson.loads(whole)
    asking = None
    if candidate.injects and admission.found.endpoint.streams_usage:
        asking = include_usage(whole, members)
    whole = asking or whole
    if candidate.renamed and sent is not None:
        whole = with_model(whole, members, sent)
    return whole, asking is not None


# Members of a body that name what a provider keeps: a response or conversation to go on with, a container, a cache.
_STATEFUL: Final = ("previous_response_id", "conversation", "container", "cachedContent", "cached_content")
# Names of members anywhere in it that refer to an uploaded file.
_FILES: Final = (b'"file_id"', b'"file_ids"', b'"fileUri"', b'"file_uri"')
_KEPT: Final = (*(f'"{name}"'.encode() for name in _STATEFUL), *_FILES)


def is_bound(whole: bytes, members: dict[str, Any]) -> bool:
    """Whether the request refers to what one provider keeps, so that no other could answer it."""
    return any(members.get(name) for name in _STATEFUL) or any(whole.find(name) >= 0 for name in _FILES)


def keeps_state(members: dict[str, Any]) -> bool:
    """Whether the provider shall store the answer or go on without us: then it must not be asked twice."""
    return bool(members.get("store") or members.get("background"))


def touches_state(admission: Admission, whole: bytes) -> bool:
    """Whether a request makes, or is about, what the provider keeps for the credential that it came with.

    `whole` is the body as far as it is known. Its texts are searched, not its members: what only looks like it costs
    a turn of the balance.
    """
    endpoint = admission.found.endpoint
    if endpoint.kind == "resource":
        return True
    if endpoint.stateless and _NOT_STORED.search(whole) is None:  # it is kept unless that is unwanted
        return True
    return any(whole.find(name) >= 0 for name in _KEPT)


def affinity(admission: Admission, more: bytes, address: bytes, on: str) -> bytes:
    """What is hashed of a request for `hash_on`: a header's value, the key, or the client's address.

    `more` are lines of the head that the admission does not have. Who sends no such header goes by key, and who has no
    key by address.
    """
    if on.startswith("header:"):
        wanted = on[7:].encode()
        for line in (*admission.head.kept, *more.split(b"\r\n")[:-1]):
            if line_name(line) == wanted:
                value = line.partition(b":")[2].strip(b" \t")
                if value:
                    return value
    if on == "ip" or admission.key is None:
        return address
    return f"{admission.found.gateway.name}/{admission.key.name}".encode()


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


def is_probe(snapshot: Snapshot, head: RequestHead) -> bool:
    """Whether the gateway answers by itself, whatever the admission says; else the path is a rule's business."""
    path = head.line.path
    method = head.line.method
    if path not in PROBES or method not in ("GET", "HEAD") or (path == b"/" and method != "HEAD"):
        return False
    if path in OWN:
        return True
    gateway = snapshot.find_gateway(head.host)
    return gateway is None or not any(rule.exact is not None for rule in gateway.rules_of(path))


def listed(found: Match) -> str:
    """The model that GET /v1/models/NAME asks about; "" for GET /v1/models itself."""
    _, _, wanted = found.path.partition(b"/models")
    return unquote_to_bytes(wanted[1:]).decode("utf-8", "replace")


def unlisted(found: Match, key: Key | None) -> Failure | None:
    """Why GET /v1/models/NAME has no answer for this key."""
    name = listed(found)
    if not name or ((key is None or key.allows(name)) and found.gateway.find_model(name) is not None):
        return None
    return Failure(
        MODEL_NOT_FOUND, f"the model {name!r} does not exist here; GET /v1/models lists those that do", "model"
    )
