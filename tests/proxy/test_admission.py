"""What a head decides, and that remembering heads changes no decision: this is where smuggling would hide.

Whatever came before, a head is admitted, refused and forwarded as if it were the first one. So each head here is also
given to an `Admissions` that has seen nothing, with a parser that has seen nothing, and both must say the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw import errors
from aigw.config import snapshot
from aigw.config.snapshot import Resolved, Snapshot
from aigw.errors import Failure, Kind, Refused
from aigw.forward import forwarded, request_message, request_prefix
from aigw.proxy.admission import (
    MAX_PLAIN,
    MOST_HOLES,
    MOST_PATTERNS,
    Admission,
    Admissions,
    Found,
    Memory,
    keeps_state,
    model_of_form,
    model_of_json,
    too_large,
    with_model,
)
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
    rule("put", "/put", methods=["PUT"]),
)
GATEWAYS = {
    "a": gateway(*RULES, hosts=["a"], auth="keys", keys=KEYS),
    "b": gateway(rule("all"), hosts=["b", "*.b"], models={"*": model("own")}),
}


def compiled(**bounds: int) -> Snapshot:
    return snapshot.compile(document(UPSTREAMS, gateways=GATEWAYS, bounds=bounds), 1)


def moved(**bounds: int) -> Snapshot:
    """After a reload: other keys, other hosts, other rules."""
    keys = {"new": key("sk-good"), "off": key("sk-other", disabled=True)}
    gateways = {"c": gateway(rule("moved", "/v1/*"), hosts=["a", "b"], auth="keys", keys=keys, models={"*": model("own")})}
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


def outcome(admissions: Admissions, raw: bytes, wall: float, memory: Memory) -> dict[str, Any]:
    """All that follows from a head, in a form that compares."""
    try:
        found = admissions.of(raw, wall, memory)
    except Refused as refused:
        return {"refused": refused.failure}
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
    return said


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
    [b"transfer-encoding: CHUNKED", b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding:\x0bchunked", LENGTH[0][0]],
)
HOST: Pool = ([b"host: a"], [b"host: b", b"Host: A:80", b"host: x.b", b"host: c", b"host: a, b", b"host:", b"host: u@a"])
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
SHORT: Pool = ([b"x-api-key: sk-short", b"x-api-key: sk-before"], [b"x-api-key: sk-rotated", b"x-api-key: sk-good"])
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
POOLS = [LENGTH, LENGTH, CODING, TYPE, CONNECTION, REQUEST_ID, *OTHERS]
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
    b"BREW /put HTTP/1.1",
    b"POST /put HTTP/1.1",
    b"GET /" + b"a" * 90 + b" HTTP/1.1",
    b"host: a",
    b"x-a: 1",
    b"",
]
Step = tuple[bytes, int, float, bool]  # a head, by which client, at what time, and whether after a reload
OFTEN = st.integers(0, 19)


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Heads of one or two kinds, each as a client sends it again and again: the same but for values, and sometimes not
    the same at all."""
    kinds = []
    for _ in range(draw(st.integers(1, 2))):
        pools = [HOST, draw(st.sampled_from([KEY, KEY, SHORT])), *draw(st.lists(st.sampled_from(POOLS), max_size=5))]
        kinds.append((draw(st.sampled_from(FIRSTS)), draw(st.permutations(pools))))
    walk: list[Step] = []
    wall = NOW
    for _ in range(draw(st.integers(3, 14))):
        first, pools = draw(st.sampled_from(kinds))
        if not draw(OFTEN):
            first = draw(st.sampled_from(OTHER_FIRSTS))
        lines = []
        for good, bad in pools:
            choice = draw(OFTEN)
            lines.append(good[choice % len(good)] if choice < 19 else draw(st.sampled_from(bad)))
        change = draw(OFTEN)
        at = draw(st.integers(0, len(lines))) if change < 3 else 0
        if change == 0:
            lines.insert(at, draw(st.sampled_from(INTRUDERS)))
        elif change == 1:
            del lines[at : at + 1]
        elif change == 2:
            lines[at : at + 1] = lines[at : at + 1] * 2
        wall += 2.5 if draw(OFTEN) == 0 else 0.0
        walk.append((block(first, *lines), draw(st.integers(0, 1)), wall, draw(OFTEN) == 0))
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
        expected = outcome(fresh(make(**bounds)), raw, wall, Memory())
        assert outcome(admissions, raw, wall, memories[client]) == expected
        pattern = memories[client].pattern
        if pattern is not None and "refused" not in expected:
            hits += pattern.admission in known
            known.add(pattern.admission)
    return hits


def test_what_is_remembered_changes_no_decision() -> None:
    hits = 0

    @STEADY
    @given(steps(), BOUNDS)
    def check(walk: list[Step], bounds: dict[str, int]) -> None:
        nonlocal hits
        hits += as_if_new(walk, bounds)

    check()
    assert hits > 100, "hardly any head was recognised: the walks are too wild to show anything"
