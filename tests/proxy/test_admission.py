"""What a head decides, and that remembering heads changes no decision: this is where smuggling would hide.

Whatever came before, a head is admitted, refused and forwarded as if it were the first one. So each head here is also
given to an `Admissions` that has seen nothing, with a parser that has seen nothing, and both must say the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from fakes import document, gateway, key, model, rule, target, upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw import errors
from aigw.admit import MAX_PLAIN, Admission, keeps_state, model_of_form, model_of_json, too_large, with_model
from aigw.config import snapshot
from aigw.config.snapshot import Resolved, Snapshot
from aigw.errors import Failure, Kind, Refused
from aigw.forward import forwarded, request_message, request_prefix
from aigw.proxy.admission import MOST_HOLES, MOST_PATTERNS, Admissions, Found, Memory
from aigw.wire.head import RequestParser
from aigw.wire.multipart import ModelPart

STEADY = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], database=None
)
NOW = 1_700_000_000.0
BEFORE = {"sha256": hashlib.sha256(b"sk-before").hexdigest(), "until": NOW + 5}
KEYS = {
    "good": key("sk-good"),
    "other": key("sk-other", models=["gpt-4o"]),
    "short": key("sk-short", expires=NOW + 5),
    "rotated": key("sk-rotated", previous=BEFORE),
    "off": key("sk-off", disabled=True),
}
UPSTREAMS = {
    "up": upstream(target("http://127.0.0.1:1"), headers={"x-a": "ours", "x-gone": None}),
    "own": upstream(target("http://127.0.0.1:1"), api_key="ours"),
    "plain": upstream(target("http://127.0.0.1:1/base"), provider="http"),
}
RULES = (
    rule("api", default="up"),
    rule("files", "/files/*", upstream="plain", strip_path=True, timeouts={"first_token": None, "total": 7.0}),
    rule("open", "/open/*", upstream="plain", public=True, preserve_host=True),
)
GATEWAYS = {
    "a": gateway(*RULES, hosts=["a"], auth="keys", keys=KEYS),
    "b": gateway(rule("all"), hosts=["b", "*.b"], models={"*": model("own")}),
    "get": gateway(rule("get", methods=["GET"]), hosts=["get"]),
}


def compiled(**bounds: int) -> Snapshot:
    return snapshot.compile(document(UPSTREAMS, gateways=GATEWAYS, bounds=bounds), 1)


def moved(**bounds: int) -> Snapshot:
    """After a reload: other keys, other hosts, other rules."""
    keys = {"new": key("sk-good"), "off": key("sk-other", disabled=True)}
    gateways = {
        "c": gateway(rule("moved", "/v1/*"), hosts=["a", "b"], auth="keys", keys=keys, models={"*": model("own")})
    }
    return snapshot.compile(document(UPSTREAMS, gateways=gateways, bounds=bounds), 2)


def fresh(config: Snapshot | None = None) -> Admissions:
    return Admissions(config or compiled(), RequestParser())


def block(first: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join([first, *lines])


def post(*lines: bytes, path: bytes = b"/v1/chat/completions", host: bytes = b"a") -> bytes:
    return block(b"POST " + path + b" HTTP/1.1", b"host: " + host, *lines)


def admitted(raw: bytes, config: Snapshot | None = None, wall: float = NOW) -> Admission:
    admission, _, _, _ = fresh(config).of(raw, wall, Memory())
    return admission


# ----------------------------------------------------------------------------------------------- what is said of a head


def sent(config: Snapshot, found: Found) -> tuple[bytes, dict[bytes, list[bytes]]]:
    """The head that a target gets: its first line, and its lines by name, in the order that matters."""
    admission, length, more, request_id = found
    match = admission.found
    resolved = match.rule.resolved or match.gateway.find_model("gpt-4o")
    assert isinstance(resolved, Resolved)
    candidate = resolved.candidates[0]
    prefix = request_prefix(config, match, candidate, admission.head)
    request_id = request_id or admission.head.request_id or b"ours"
    lines = forwarded(more, candidate.target)
    raw = request_message(prefix, request_id, lines, admission.head.line.method, length, b"")
    head, blank, body = raw.partition(b"\r\n\r\n")
    assert (blank, body) == (b"\r\n\r\n", b"")
    first, *rest = head.split(b"\r\n")
    named: dict[bytes, list[bytes]] = {}
    for line in rest:
        named.setdefault(line.partition(b":")[0].lower(), []).append(line)
    assert len(named[b"host"]) == len(named[b"x-request-id"]) == 1
    assert len(named.get(b"content-length", [])) + len(named.get(b"transfer-encoding", [])) <= 1
    return first, named


def outcome(admissions: Admissions, raw: bytes, wall: float, memory: Memory) -> tuple[dict[str, Any], Admission | None]:
    """All that follows from a head, in a form that compares; and the admission."""
    try:
        found = admissions.of(raw, wall, memory)
    except Refused as refused:
        return {"refused": refused.failure}, None
    admission, length, _, request_id = found
    head = admission.head
    line = head.line
    said = {
        "failure": admission.failure,
        "gateway": admission.match and admission.match.gateway.name,
        "rule": admission.match and admission.match.rule.name,
        "endpoint": admission.match and admission.match.endpoint,
        "key": admission.key and admission.key.name,
        "line": (line.method, line.minor, line.path, line.query, head.host),
        "body": (length, admission.source, head.expect, head.content_type, head.content_encoding),
        "dialect": admission.dialect,
        "close": head.close,
        "id": request_id or head.request_id,
        "facts": (admission.is_head, admission.is_listing, admission.is_special, admission.keeps_state),
        "total": admission.total,
    }
    if admission.failure is None:
        said["sent"] = sent(admissions.snapshot, found)
    return said, admission


# ------------------------------------------------------------------------------------- heads from a small, bad alphabet

Pool = tuple[list[bytes], list[bytes]]  # lines that are mostly in order, and the others in their place
LENGTH: Pool = (
    [b"Content-Length: 5", b"Content-Length: 17", b"Content-Length: 0"],
    [
        b"content-length: 5",
        b"CONTENT-LENGTH: 5",
        b"Content-Length:5",
        b"Content-Length:  5",
        b"Content-Length: 5 ",
        b"Content-Length: 5\t",
        b"Content-Length: 005",
        b"Content-Length: +5",
        b"Content-Length: -5",
        b"Content-Length: 5, 5",
        b"Content-Length: 0x5",
        b"Content-Length: 5_0",
        b"Content-Length: \xb2",
        b"Content-Length: ",
        b"Content-Length:",
        b"Content-Length: 5\r",
        b"Content-Length: 5\n",
        b"Content-Length: " + b"9" * 18,
        b"Content-Length: " + b"9" * 19,
        b"Content-Length: 5: 6",
        b"Content-Length : 5",
        b"Content-Length",
        b" Content-Length: 5",
        b"Transfer-Encoding: chunked",
    ],
)
CODING: Pool = (
    [b"Transfer-Encoding: chunked"],
    [
        b"transfer-encoding: CHUNKED",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding:\x0bchunked",
        LENGTH[0][0],
    ],
)
HOST: Pool = (
    [b"host: a"],
    [b"host: b", b"Host: A:80", b"host: x.b", b"host: get", b"host: c", b"host: a, b", b"host:", b"host: u@a"],
)
KEY: Pool = (
    [b"authorization: Bearer sk-good"],
    [
        b"authorization: Bearer sk-short",
        b"authorization: Bearer sk-before",
        b"authorization: Bearer sk-rotated",
        b"authorization: Bearer sk-off",
        b"authorization: Bearer sk-bad",
        b"authorization: sk-good",
        b"x-api-key: sk-other",
        b"x-aigw-key: sk-other",
        b"x-goog-api-key: sk-good",
        b"authorization: Basic eDp5",
    ],
)
KEYED: list[Pool] = [KEY, KEY, ([b"x-api-key: sk-short"], KEY[0]), ([b"x-api-key: sk-before"], KEY[0])]
TYPE: Pool = (
    [b"content-type: application/json"],
    [b"content-type: multipart/form-data; boundary=b", b"Content-Type: text/plain", b"content-encoding: gzip"],
)
CONNECTION: Pool = (
    [b"connection: keep-alive"],
    [
        b"connection: close",
        b"connection: close, x-a",
        b"connection: x-b",
        b"connection: content-length",
        b"connection: x-request-id",
        b"connection: a b",
        b"expect: 100-continue",
        b"expect: 200-ok",
        b"proxy-connection: close",
        b"te: trailers",
    ],
)
REQUEST_ID: Pool = (
    [b"x-request-id: id-1", b"x-request-id: id-2", b"x-request-id: id-3"],
    [
        b"X-Request-Id: id-4",
        b"x-request-id:id-5",
        b"x-request-id: id-6 ",
        b"x-request-id: a b",
        b"x-request-id: ",
        b"x-request-id: a\0",
        b"x-request-id: " + b"a" * 128,
        b"x-request-id: " + b"a" * 129,
    ],
)
_VALUES = [
    b":",
    b": \xff\t",
    b": \0",
    b": a\rb",
    b": a\nHost: b",
    b": content-length: 3",
    b" : 1",
    b"",
    b": " + b"v" * 200,
    b": " + b"v" * 17_000,
]


def plain(name: bytes) -> Pool:
    return [name + b": %d" % i for i in range(3)], [name + value for value in _VALUES]


OTHERS: list[Pool] = [
    ([b"anthropic-version: 1"], [b"anthropic-version: 2", b"x-goog-api-client: c"]),
    ([b"accept-encoding: gzip, br"], [b"accept-encoding: gzip", b"accept-encoding: *;q=0"]),
    ([b"cookie: a=b"], [b"cookie: c=d"]),
    ([b"x-a: same"], [b"X-A: same"]),
    ([b"x-request-id: same"], [b"x-request-id: same also"]),
]
POOLS = [TYPE, CONNECTION, REQUEST_ID, *OTHERS]
POOLS += [plain(name) for name in (b"x-a", b"X-A", b"x-b", b"x-gone", b"x-trace", b"proxy-x", b"x-aigw-model")]
INTRUDERS = [line for good, bad in (LENGTH, CODING, HOST, KEY, TYPE, CONNECTION, REQUEST_ID) for line in good + bad]
FIRSTS = [
    b"POST /v1/chat/completions HTTP/1.1",
    b"POST /v1/responses HTTP/1.1",
    b"GET /v1/models HTTP/1.1",
    b"HEAD /healthz HTTP/1.1",
    b"POST /files/x?key=sk-good HTTP/1.1",
    b"POST /open/x HTTP/1.1",
]
OTHER_FIRSTS = [
    b"POST /v1/chat/completions HTTP/1.0",
    b"POST http://a/v1/chat/completions HTTP/1.1",
    b"POST http://b/v1/chat/completions HTTP/1.1",
    b"POST /v1//chat/completions HTTP/1.1",
    b"POST /v1/../x HTTP/1.1",
    b"POST /v1/chat/completions?key=sk-other HTTP/1.1",
    b"POST /v1/chat/completions HTTP/1.2",
    b"BREW /v1/chat/completions HTTP/1.1",
    b"PUT /v1/chat/completions HTTP/1.1",
    b"GET /" + b"a" * 90 + b" HTTP/1.1",
    b"host: a",
    b"x-a: 1",
    b"",
]
Step = tuple[bytes, int, float, bool]  # a head, by which client, at what time, and whether after a reload
RARELY = st.integers(0, 29).map(lambda dice: dice == 11)  # in the middle: the ends are drawn more often


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Heads of one or two kinds, each as a client sends it again and again: the same but for values, and sometimes not
    the same at all."""
    kinds = []
    for _ in range(draw(st.integers(1, 2))):
        pools = [HOST, draw(st.sampled_from(KEYED)), draw(st.sampled_from([LENGTH, LENGTH, CODING]))]
        pools += draw(st.lists(st.sampled_from(POOLS), max_size=4, unique_by=id))
        kinds.append((draw(st.sampled_from(FIRSTS)), draw(st.permutations(pools))))
    walk: list[Step] = []
    wall = NOW
    for _ in range(draw(st.integers(4, 14))):
        if not walk or draw(st.integers(0, 3)) == 2:
            (usual, pools), client = draw(st.sampled_from(kinds)), draw(st.integers(0, 1))
        first = draw(st.sampled_from(OTHER_FIRSTS)) if draw(RARELY) else usual
        lines = []
        for good, bad in pools:
            lines.append(draw(st.sampled_from(bad if draw(RARELY) else good)))
        if draw(RARELY):
            lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(INTRUDERS)))
        if draw(RARELY):
            del lines[draw(st.integers(0, len(lines) - 1))]
        if draw(RARELY):
            at = draw(st.integers(0, len(lines) - 1))
            lines[at:at] = [lines[at]]
        wall += 2.5 if draw(RARELY) else 0.0
        walk.append((block(first, *lines), client, wall, draw(RARELY)))
    return walk


BOUNDS = st.sampled_from([{}, {}, {"headers": 5}, {"head": 150}, {"url": 21}])


def as_if_new(walk: list[Step], bounds: dict[str, int]) -> int:
    """Check that each head of the walk is answered as if it were the first; how many were recognised."""
    make: Callable[..., Snapshot] = compiled
    parser = RequestParser()
    memories = [Memory(), Memory()]
    admissions = Admissions(make(**bounds), parser)
    known: set[Admission] = set()
    hits = 0
    for raw, client, wall, reloads in walk:
        if reloads:
            make = moved if make is compiled else compiled
            admissions = Admissions(make(**bounds), parser)
        expected, _ = outcome(fresh(make(**bounds)), raw, wall, Memory())
        said, admission = outcome(admissions, raw, wall, memories[client])
        assert said == expected
        if admission is not None:
            hits += admission in known
            known.add(admission)
    return hits


@pytest.mark.unmeasured
def test_what_is_remembered_changes_no_decision() -> None:
    hits = 0

    @STEADY
    @given(steps(), BOUNDS)
    def check(walk: list[Step], bounds: dict[str, int]) -> None:
        nonlocal hits
        hits += as_if_new(walk, bounds)

    check()
    assert hits > 100, "hardly any head was recognised: the walks are too wild to show anything"


LIKE_AN_SDK = [
    b"Accept: */*",
    b"authorization: Bearer sk-good",
    b"content-type: application/json",
    b"Connection: keep-alive",
]
LENGTHS = [b"Content-Length: 5", b"Content-Length: 17"]
IDS = [b"x-request-id: id-1", b"x-request-id: id-2"]
TRACES = [b"x-trace:1", b"x-trace: two"]
REPEATING: dict[str, tuple[bytes, bytes]] = {
    "length": (post(LENGTHS[0], *LIKE_AN_SDK), post(LENGTHS[1], *LIKE_AN_SDK)),
    "length at the end": (post(*LIKE_AN_SDK, LENGTHS[0]), post(*LIKE_AN_SDK, LENGTHS[1])),
    "the same": (post(*LIKE_AN_SDK, LENGTHS[0]), post(*LIKE_AN_SDK, LENGTHS[0])),
    "no length": (post(*LIKE_AN_SDK), post(*LIKE_AN_SDK)),
    "chunked": (post(b"transfer-encoding: chunked", *LIKE_AN_SDK), post(b"transfer-encoding: chunked", *LIKE_AN_SDK)),
    "id": (post(IDS[0], *LIKE_AN_SDK), post(IDS[1], *LIKE_AN_SDK)),
    "trace": (post(*LIKE_AN_SDK, TRACES[0]), post(*LIKE_AN_SDK, TRACES[1])),
    "all of it": (
        post(TRACES[0], LENGTHS[0], *LIKE_AN_SDK, IDS[0], b"x-b: 1"),
        post(TRACES[1], LENGTHS[1], *LIKE_AN_SDK, IDS[1], b"x-b: 2"),
    ),
    "one name twice": (
        post(TRACES[0], *LIKE_AN_SDK, TRACES[1], LENGTHS[0]),
        post(TRACES[1], *LIKE_AN_SDK, TRACES[0], LENGTHS[1]),
    ),
}
# What readers of HTTP stumble over, one byte or a few.
MOTES = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"5", b"9" * 18, b"a", b"A", b"\xff", b"/"]
MOTES += [b"\r\nx-trace: 3", b"\r\nContent-Length: 5", b"\r\nContent-Length: ", b"\r\nTransfer-Encoding: chunked"]
MOTES += [b"\r\nx-request-id: id-3", b"\r\nhost: b", b"\r\nconnection: x-trace", b"\r\n ", b""]


@STEADY
@given(
    st.sampled_from(sorted(REPEATING)),
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(0, 3), st.sampled_from(MOTES)),
        min_size=1,
        max_size=3,
        unique_by=str,
    ),
)
def test_no_byte_passes_for_another(name: str, changes: list[tuple[int, int, bytes]]) -> None:
    """A head that is remembered, changed by a few bytes anywhere."""
    one, other = REPEATING[name]
    raw = other
    for at, gone, mote in changes:
        at %= len(raw) + 1
        raw = raw[:at] + mote + raw[at + gone :]
    raw = raw.partition(b"\r\n\r\n")[0]  # the client's connection ends a head there
    admissions, memory = fresh(), Memory()
    for before in (one, other, one):
        admissions.of(before, NOW, memory)
    expected, _ = outcome(fresh(), raw, NOW, Memory())
    assert outcome(admissions, raw, NOW, memory)[0] == expected
    assert outcome(admissions, raw, NOW, Memory())[0] == expected


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", REPEATING)
def test_no_line_passes_for_another(name: str) -> None:
    """A head that is remembered, with each line of the alphabet in the place of each of its own, and beside it."""
    config = compiled()
    admissions, memory = fresh(config), Memory()
    for before in (*REPEATING[name], REPEATING[name][0]):
        admissions.of(before, NOW, memory)
    lines = REPEATING[name][1].split(b"\r\n")
    alphabet = [*INTRUDERS, *(line for pool in POOLS for half in pool for line in half)]
    for at in range(1, len(lines)):
        for line in alphabet:
            for behind in (at, at + 1):
                raw = block(*lines[:at], line, *lines[behind:])
                said, _ = outcome(admissions, raw, NOW, Memory())
                assert said == outcome(fresh(config), raw, NOW, Memory())[0], raw


@pytest.mark.parametrize("name", REPEATING)
def test_a_head_that_comes_again_is_recognised(name: str) -> None:
    """From the third one on; also by another client, and whatever stands where two of them differed."""
    one, other = REPEATING[name]
    admissions, memory = fresh(), Memory()
    first, second = (admissions.of(raw, NOW, memory)[0] for raw in (one, other))
    third = admissions.of(one, NOW, memory)[0]
    assert len({first, second, third}) == 3
    for raw in (other, one, other):
        assert admissions.of(raw, NOW, memory)[0] is third
        assert admissions.of(raw, NOW, Memory())[0] is third
        assert outcome(admissions, raw, NOW, memory)[0] == outcome(fresh(), raw, NOW, Memory())[0]


def test_what_is_not_part_of_what_was_admitted() -> None:
    one, other = REPEATING["all of it"]
    admissions, memory = fresh(), Memory()
    for raw in (one, other):
        _, length, more, request_id = admissions.of(raw, NOW, memory)
        assert (length, more, request_id) == (5 if raw is one else 17, b"", None)
    admission, length, more, request_id = admissions.of(one, NOW, memory)
    assert (length, more, request_id) == (5, TRACES[0] + b"\r\nx-b: 1\r\n", b"id-1")
    assert (admission.head.request_id, admission.head.kept) == (None, [LIKE_AN_SDK[0], LIKE_AN_SDK[2]])
    _, length, more, request_id = admissions.of(other.replace(b"17", b"0"), NOW, memory)
    assert (length, more, request_id) == (0, TRACES[1] + b"\r\nx-b: 2\r\n", b"id-2")


@pytest.mark.parametrize(
    "pair",
    [
        [b"authorization: Bearer sk-good", b"authorization: Bearer sk-other"],
        [b"content-type: application/json", b"content-type: text/plain"],
        [b"accept-encoding: gzip", b"accept-encoding: identity"],
        [b"connection: keep-alive", b"connection: close"],
        [b"expect: 100-continue", b"x-expect: 100-continue"],
        [b"cookie: a=b", b"cookie: a=c"],
        [b"anthropic-version: 1", b"anthropic-version: 2"],
        [b"proxy-x: 1", b"proxy-x: 2"],
        [b"content-encoding: ", b"content-encoding: identity"],
        [b"transfer-encoding: chunked", b"transfer-encoding: CHUNKED"],
        [b"x-a: 1", b"X-A: 2"],
        [b"x-a: 1", b"x-b: 1"],
        [b"x-request-id: a b", b"x-request-id: b c"],
        [b"x-request-id:a", b"x-request-id:b"],
        [b"content-length:5", b"content-length:6"],
        [b"x-a: 1\r\nx-b: 1", b"x-a: 1"],
    ],
)
def test_a_head_that_differs_in_what_counts_is_parsed_each_time(pair: list[bytes]) -> None:
    key_line = [] if pair[0].startswith(b"authorization") else [b"x-api-key: sk-good"]
    admissions, memory = fresh(), Memory()
    found = [admissions.of(post(*key_line, line), NOW, memory)[0] for line in pair * 3]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "lines",
    [
        [b"x-a: %d", b"x-a: same"],  # order matters among lines of one name
        [b"x-a: %d", b"X-A: same"],
        [b"x-a: %d", b"connection: x-a"],  # what Connection names is dropped
        [b"x-a: %d", b"connection: x-b"],
        [b"x-request-id: %d", b"x-request-id: same"],  # the last of two counts
        [b"x-request-id: same", b"x-request-id: %d"],
        [b"x-%d: %%d" % i for i in range(MOST_HOLES + 1)],
    ],
)
def test_a_head_whose_lines_depend_on_each_other_is_parsed_each_time(lines: list[bytes]) -> None:
    admissions, memory = fresh(), Memory()
    found = []
    for i in range(6):
        raw = post(b"x-api-key: sk-good", *(line % i if b"%" in line else line for line in lines))
        said, admission = outcome(admissions, raw, NOW, memory)
        assert said == outcome(fresh(), raw, NOW, Memory())[0]
        found.append(admission)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (post(b"x-api-key: sk-bad"), errors.INVALID_KEY),
        (post(b"x-api-key: sk-good", host=b"nobody"), errors.NO_GATEWAY),
        (post(b"x-api-key: sk-good", b"content-encoding: gzip"), errors.UNSUPPORTED_ENCODING),
    ],
)
def test_what_is_refused_is_never_remembered(raw: bytes, kind: Kind) -> None:
    admissions, memory = fresh(), Memory()
    found = [admissions.of(raw, NOW, memory)[0] for _ in range(5)]
    assert len(set(found)) == len(found)
    assert {one.failure and one.failure.kind for one in found} == {kind}


@pytest.mark.parametrize(("bounds", "lines"), [({"head": 0}, []), ({"headers": 3}, [b"x-b: 1"])])
def test_bounds_hold_for_heads_that_are_recognised(bounds: dict[str, int], lines: list[bytes]) -> None:
    raw = post(b"x-api-key: sk-good", b"content-length: 5")
    config = compiled(**{name: value or len(raw) for name, value in bounds.items()})
    admissions, memory = fresh(config), Memory()
    for _ in range(3):
        admissions.of(raw, NOW, memory)
    longer = block(raw + b"5", *lines)
    for again in (memory, Memory()):
        with pytest.raises(Refused) as caught:
            admissions.of(longer, NOW, again)
        assert caught.value.failure.kind is errors.HEAD_TOO_LARGE
    assert admissions.of(raw, NOW, memory)[1] == 5


def test_a_long_line_is_refused_wherever_it_stands() -> None:
    admissions, memory = fresh(), Memory()
    for i in range(4):
        admissions.of(post(b"x-api-key: sk-good", b"x-trace: %d" % i), NOW, memory)
    with pytest.raises(Refused) as caught:
        admissions.of(post(b"x-api-key: sk-good", b"x-trace: " + b"1" * 17_000), NOW, memory)
    assert caught.value.failure.kind is errors.HEAD_TOO_LARGE


def test_what_is_remembered_goes_with_its_snapshot() -> None:
    raw = post(b"x-api-key: sk-other", b"content-length: 5")
    parser, memory = RequestParser(), Memory()
    before = Admissions(compiled(), parser)
    for _ in range(4):
        admission = before.of(raw, NOW, memory)[0]
        assert admission.key is not None
        assert admission.key.name == "other"
    after = Admissions(moved(), parser)
    for client in (memory, Memory()) * 3:
        admission = after.of(raw, NOW, client)[0]
        assert admission.failure is not None
        assert admission.failure.kind is errors.DISABLED_KEY


def test_few_kinds_of_heads_are_remembered() -> None:
    admissions = fresh()

    def recognised(i: int) -> bool:
        raw = post(b"x-api-key: sk-good", b"x-kind-%d: x" % i)
        return admissions.of(raw, NOW, Memory())[0] is admissions.of(raw, NOW, Memory())[0]

    for i in range(MOST_PATTERNS + 1):
        client = Memory()
        for _ in range(2):
            admissions.of(post(b"x-api-key: sk-good", b"x-kind-%d: x" % i), NOW, client)
    assert [recognised(i) for i in range(MOST_PATTERNS + 1)] == [False] + [True] * MOST_PATTERNS


# ------------------------------------------------------------------------------------------------------- keys in time


def test_a_key_that_expires_between_two_requests_is_refused() -> None:
    raw = post(b"x-api-key: sk-short", b"content-length: 5")
    admissions, memory = fresh(), Memory()
    found = [admissions.of(raw, NOW + i, memory)[0] for i in range(5)]
    assert found[2] is not found[1]
    assert found[4] is found[3] is found[2]
    for client in (memory, Memory()):
        admission = admissions.of(raw, NOW + 5, client)[0]
        assert admission.failure is not None
        assert admission.failure.kind is errors.EXPIRED_KEY


def test_the_value_before_a_rotation_ends_at_its_time() -> None:
    raw = post(b"x-api-key: sk-before", b"content-length: 5")
    admissions, memory = fresh(), Memory()
    for i in range(5):
        admission = admissions.of(raw, NOW + i, memory)[0]
        assert (admission.failure, admission.key and admission.key.name) == (None, "rotated")
    admission = admissions.of(raw, NOW + 5, memory)[0]
    assert admission.failure is not None
    assert admission.failure.kind is errors.EXPIRED_KEY


def test_the_value_after_a_rotation_is_remembered_for_good() -> None:
    """Also once the value before it has ended."""
    raw = post(b"x-api-key: sk-rotated", b"content-length: 5")
    admissions, memory = fresh(), Memory()
    late = [admissions.of(raw, NOW + 100 + i, memory)[0] for i in range(5)]
    assert late[4] is late[3] is late[2]
    assert late[2].expires > NOW + 1e9


# ------------------------------------------------------------------------------------------------- what a head decides


@pytest.mark.parametrize(
    ("path", "content_type", "source"),
    [
        (b"/v1/chat/completions", b"application/json", "body"),
        (b"/v1/chat/completions", b"", "body"),
        (b"/v1/chat/completions", b"text/plain", "body"),  # whatever it says, it is read as JSON
        (b"/v1/chat/completions", b"multipart/form-data; boundary=b", "body"),
        (b"/v1/audio/transcriptions", b"multipart/form-data; boundary=b", "form"),
        (b"/v1/audio/transcriptions", b"Multipart/Form-Data; boundary=b", "form"),
        (b"/v1/audio/transcriptions", b"application/json", "body"),
        (b"/v1/newest", b"application/json", "body"),
        (b"/v1/newest", b"Application/JSON; charset=utf-8", "body"),
        (b"/v1/newest", b"multipart/form-data; boundary=b", "form"),
        (b"/v1/newest", b"application/octet-stream", "none"),
        (b"/v1/newest", b"", "none"),
        (b"/v1beta/models/gpt-4o:generateContent", b"application/json", "path"),
        (b"/v1/files", b"multipart/form-data; boundary=b", "none"),
        (b"/files/v1/chat/completions", b"application/json", "none"),  # the rule names its upstream
    ],
)
def test_where_the_model_is_named(path: bytes, content_type: bytes, source: str) -> None:
    lines = [b"content-type: " + content_type] if content_type else []
    admission = admitted(post(b"x-api-key: sk-good", *lines, path=path))
    assert (admission.failure, admission.source) == (None, source)


@pytest.mark.parametrize(
    ("path", "coding", "refused"),
    [
        (b"/v1/chat/completions", b"gzip", True),
        (b"/v1/chat/completions", b"identity", False),
        (b"/v1/chat/completions", b"", False),
        (b"/v1beta/models/gpt-4o:generateContent", b"gzip", False),
        (b"/files/x", b"br", False),
    ],
)
def test_a_compressed_body_is_refused_where_it_has_to_be_read(path: bytes, coding: bytes, refused: bool) -> None:
    admission = admitted(post(b"x-api-key: sk-good", b"content-encoding: " + coding, path=path))
    if not refused:
        assert admission.failure is None
        return
    assert admission.failure is not None
    assert (admission.failure.kind, admission.is_special) == (errors.UNSUPPORTED_ENCODING, True)
    assert "send it without content-encoding" in admission.failure.message


@pytest.mark.parametrize(
    ("raw", "kind", "dialect"),
    [
        (post(host=b"nobody"), errors.NO_GATEWAY, "openai"),
        (post(b"anthropic-version: 1", host=b"nobody"), errors.NO_GATEWAY, "anthropic"),
        (post(host=b"get"), errors.METHOD_NOT_ALLOWED, "openai"),
        (post(), errors.MISSING_KEY, "openai"),
        (post(path=b"/v1/messages"), errors.MISSING_KEY, "anthropic"),
        (post(path=b"/v1beta/models/x:generateContent"), errors.MISSING_KEY, "gemini"),
        (post(b"x-api-key: sk-off"), errors.DISABLED_KEY, "openai"),
    ],
)
def test_a_refusal_is_said_in_the_clients_dialect(raw: bytes, kind: Kind, dialect: str) -> None:
    admission = admitted(raw)
    assert admission.failure is not None
    assert (admission.failure.kind, admission.dialect, admission.is_special) == (kind, dialect, True)


def test_no_key_is_asked_for_where_none_is_needed() -> None:
    assert admitted(post(path=b"/open/x")).failure is None
    assert admitted(post(path=b"/open/x")).key is None
    assert admitted(post(host=b"b")).failure is None


@pytest.mark.parametrize(
    ("first", "special", "listing", "is_head"),
    [
        (b"POST /v1/chat/completions HTTP/1.1", False, False, False),
        (b"GET /v1/models HTTP/1.1", True, True, False),
        (b"HEAD /v1/models/gpt-4o HTTP/1.1", True, True, True),
        (b"GET /v1beta/models HTTP/1.1", True, True, False),
        (b"GET /files/v1/models HTTP/1.1", False, False, False),  # a rule with an upstream lists nothing
        (b"GET /healthz HTTP/1.1", True, False, False),
        (b"HEAD /files/x HTTP/1.1", False, False, True),
    ],
)
def test_what_may_be_answered_without_an_upstream(first: bytes, special: bool, listing: bool, is_head: bool) -> None:
    admission = admitted(block(first, b"host: a", b"x-api-key: sk-good"))
    assert (admission.is_special, admission.is_listing, admission.is_head) == (special, listing, is_head)


def test_how_long_an_exchange_may_take() -> None:
    timed = snapshot.compile(document(UPSTREAMS, gateways=GATEWAYS, timeouts={"total": 9.0}), 1)
    key_line = b"x-api-key: sk-good"
    assert admitted(post(key_line, path=b"/files/x"), timed).total == 7.0
    assert admitted(post(key_line), timed).total == 9.0
    assert admitted(post(key_line)).total is None


def test_which_bodies_may_ask_for_state() -> None:
    assert admitted(post(b"x-api-key: sk-good", path=b"/v1/responses")).keeps_state
    assert not admitted(post(b"x-api-key: sk-good")).keeps_state


# ---------------------------------------------------------------------------------------------------- models in a body

NAMES = st.sampled_from(
    ["model", "model", "Model", "MODEL", "mOdEl", "model2", "models", "x", "stream", 'x"model', "model\\", "mödel", ""]
)
SPELLINGS: list[Callable[[str], str]] = [
    json.dumps,
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False),
    lambda text: '"' + "".join(f"\\u{ord(char):04x}" for char in text) + '"',
    lambda text: json.dumps(text).replace("o", "\\u006F"),
    lambda text: json.dumps(text).replace("m", "\\u006d"),
]
SPELLED = st.tuples(st.sampled_from(SPELLINGS), NAMES | st.sampled_from(["gpt-4o", "a:b", '"model"', "{"])).map(
    lambda pair: pair[0](pair[1])
)
SCALARS = SPELLED | st.sampled_from(["null", "true", "1", "-0.5e3", "[]", "{}", '""'])


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    blanks = st.sampled_from(["", "", " ", "\n\t"])
    member = st.tuples(blanks, st.tuples(st.sampled_from(SPELLINGS), NAMES), blanks, values, blanks).map(
        lambda parts: f"{parts[0]}{parts[1][0](parts[1][1])}{parts[2]}:{parts[3]}{parts[4]}"
    )
    return st.lists(member, max_size=4).map(lambda members: "{" + ",".join(members) + "}")


VALUES = st.recursive(
    SCALARS, lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]")
)
BODIES = objects(VALUES).map(str.encode) | VALUES.map(str.encode)
PAD = b" " * MAX_PLAIN


def read(body: bytes) -> Kind | str | None:
    """What another parser, which sees all members, makes of the body."""
    members = json.loads(body, object_pairs_hook=Pairs)
    if not isinstance(members, Pairs):
        return errors.INVALID_JSON
    names = [name for name, _ in members if len(name) == 5 and name.lower() == "model"]
    if len(names) > 1 or names not in ([], ["model"]):
        return errors.BAD_REQUEST
    model = dict(members).get("model")
    if model is None or (isinstance(model, str) and model):
        return model
    return errors.BAD_REQUEST


class Pairs(list[tuple[str, Any]]):
    """The members of an object, all of them."""


def named(body: bytes) -> Kind | str | None:
    found = model_of_json(body)
    if isinstance(found, Failure):
        assert found.kind is errors.INVALID_JSON or found.param == "model"
        return found.kind
    assert found[1] == json.loads(body)
    return found[0]


@pytest.mark.unmeasured
@settings(STEADY, max_examples=250)
@given(BODIES)
def test_no_body_names_two_models(body: bytes) -> None:
    """Whoever reads the body, in whatever case, finds the model that was checked, or the body is refused; and bodies
    that are looked at in full are read like those that are not."""
    expected = read(body)
    assert named(body) == expected
    assert named(body + PAD) == expected


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"model": "a", "model": "b"}', errors.BAD_REQUEST, 'more than one top-level "model"'),
        (b'{"model": "a", "model": "a"}', errors.BAD_REQUEST, 'more than one top-level "model"'),
        (b'{"model": "a", "\\u006dodel": "b"}', errors.BAD_REQUEST, 'more than one top-level "model"'),
        (b'{"\\u006Dodel": "a", "mod\\u0065l": "b"}', errors.BAD_REQUEST, 'more than one top-level "model"'),
        (b'{"model": "a", "Model": "b"}', errors.BAD_REQUEST, "'Model'; write `model`, in lower case, once"),
        (b'{"MODEL": "b"}', errors.BAD_REQUEST, "'MODEL'"),
        (b'{"model": "a", "\\u004dodel": "b"}', errors.BAD_REQUEST, "'Model'"),
        (b'{"model": ""}', errors.BAD_REQUEST, "must be a text that is not empty"),
        (b'{"model": 4}', errors.BAD_REQUEST, "must be a text"),
        (b'{"model": ["a"]}', errors.BAD_REQUEST, "must be a text"),
        (b'{"model": {"model": "a"}}', errors.BAD_REQUEST, "must be a text"),
        (b'["model"]', errors.INVALID_JSON, "but no object"),
        (b'"model"', errors.INVALID_JSON, "but no object"),
        (b"", errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a"', errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a"} {"model": "b"}', errors.INVALID_JSON, "no valid JSON"),
        (b"{'model': 'a'}", errors.INVALID_JSON, "no valid JSON"),
        (b'\xef\xbb\xbf{"model": "a"}', errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a\xff"}', errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a", "x": NaN}', errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "\\ud800"}', errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}", errors.INVALID_JSON, "no valid JSON"),
        (b'{"model": "a", // "model": "b"\n}', errors.INVALID_JSON, "no valid JSON"),
    ],
)
def test_a_body_that_names_no_one_model(body: bytes, kind: Kind, words: str) -> None:
    for whole in (body, body + PAD):
        failure = model_of_json(whole)
        assert isinstance(failure, Failure)
        assert (failure.kind, words in failure.message) == (kind, True), failure


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "a"}', "a"),
        (b' \n{"x": {"model": "b"}, "model" : "a"}\r\n', "a"),
        (b'{"x": [{"model": "b"}, "model"], "model": "a"}', "a"),
        (b'{"mod\\u0065l": "a"}', "a"),
        (b'{"model": "\\u0061"}', "a"),
        (b'{"model": "\xc3\xa9/\\"x\\""}', 'é/"x"'),
        (b'{"x": "\\"model\\": \\"b\\"", "model": "a"}', "a"),
        (b'{"x": {"Model": "b"}, "model": "a"}', "a"),
        (b'{"model": null}', None),
        (b'{"models": "a"}', None),
        (b'{"x": {"model": "a"}}', None),
        (b'{"x": "model"}', None),
        (b"{}", None),
    ],
)
def test_the_model_a_body_names(body: bytes, model: str | None) -> None:
    for whole in (body, body + PAD):
        found = model_of_json(whole)
        assert not isinstance(found, Failure), found
        assert found == (model, json.loads(body))


def test_a_second_model_is_found_however_far_away_it_stands() -> None:
    for size in (100, MAX_PLAIN, 1_000_000):
        filler = b'"x": "' + b"y" * size + b'"'
        found = model_of_json(b'{"model": "a", ' + filler + b"}")
        assert not isinstance(found, Failure)
        assert found[0] == "a"
        for other in (b'"model"', b'"\\u006dodel"', b'"Model"'):
            failure = model_of_json(b'{"model": "a", ' + filler + b", " + other + b': "b"}')
            assert isinstance(failure, Failure)
            assert failure.kind is errors.BAD_REQUEST


@pytest.mark.unmeasured
@settings(STEADY, max_examples=150)
@given(BODIES, st.sampled_from(["gpt-4o", "a/b:c", 'quo"te\\', "é\n", "model"]))
def test_another_name_changes_nothing_else(body: bytes, name: str) -> None:
    found = model_of_json(body)
    if isinstance(found, Failure) or found[0] is None:
        return
    model, members = found
    renamed = with_model(body, members, name)
    pairs = [(key, name if key == "model" else value) for key, value in json.loads(body, object_pairs_hook=Pairs)]
    assert json.loads(renamed, object_pairs_hook=Pairs) == pairs
    # one value stands in the place of another, and around it is what was there
    new = orjson.dumps(name)
    places = [i for i in range(len(renamed)) if renamed.startswith(new, i)]
    assert any(is_all_that_changed(body, model, renamed[:i], renamed[i + len(new) :]) for i in places)


def is_all_that_changed(body: bytes, model: str, before: bytes, behind: bytes) -> bool:
    if not body.startswith(before) or not body.endswith(behind):
        return False
    try:
        return bool(json.loads(body[len(before) : len(body) - len(behind)]) == model)
    except json.JSONDecodeError:
        return False


@pytest.mark.parametrize(
    ("body", "keeps"),
    [
        ({}, False),
        ({"store": False}, False),
        ({"store": None, "background": None}, False),
        ({"store": True}, True),
        ({"background": True}, True),
        ({"store": False, "background": True}, True),
    ],
)
def test_what_must_not_be_asked_twice(body: dict[str, Any], keeps: bool) -> None:
    assert keeps_state({"model": "m"} | body) == keeps


# ----------------------------------------------------------------------------------------------------- forms and sizes


def form(*parts: tuple[str, str]) -> bytes:
    lines = "".join(f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts)
    return f"{lines}--b--\r\n".encode()


def uploading(content_type: bytes = b"multipart/form-data; boundary=b") -> Admission:
    lines = [b"x-api-key: sk-good", b"content-type: " + content_type]
    admission = admitted(post(*lines, path=b"/v1/audio/transcriptions"))
    assert admission.source == "form"
    return admission


def test_the_model_a_form_names() -> None:
    whole = form(("file", "model"), ("model", "whisper-1"), ("language", "en"))
    found = model_of_form(uploading(), whole)
    assert isinstance(found, ModelPart)
    assert found.model == "whisper-1"
    assert found.span is not None
    assert whole[slice(*found.span)] == b"whisper-1"


def test_a_form_without_a_model() -> None:
    found = model_of_form(uploading(), form(("file", "x")))
    assert isinstance(found, ModelPart)
    assert (found.model, found.span) == (None, None)


@pytest.mark.parametrize(
    ("content_type", "whole", "words"),
    [
        (b"multipart/form-data", form(("model", "m")), "without a proper boundary"),
        (b"multipart/form-data; boundary=b", form(("model", "m"), ("model", "n")), "a second `model` part"),
        (b"multipart/form-data; boundary=b", b"--b\r\nno header\r\n\r\nm\r\n--b--\r\n", "without a colon"),
    ],
)
def test_a_form_that_two_readers_could_read_differently(content_type: bytes, whole: bytes, words: str) -> None:
    failure = model_of_form(uploading(content_type), whole)
    assert isinstance(failure, Failure)
    assert (failure.kind, words in failure.message) == (errors.BAD_REQUEST, True), failure


def test_a_body_that_is_too_large() -> None:
    failure = too_large(1024)
    assert failure.kind is errors.BODY_TOO_LARGE
    assert failure.message == "the request body has more than 1024 bytes (bounds.body); send a smaller one"


def test_there_is_no_match_to_be_had_of_a_refusal() -> None:
    with pytest.raises(AssertionError):
        _ = admitted(post(host=b"nobody")).found
