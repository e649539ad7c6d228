"""The one line that an exchange leaves in the access log."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream

from aigw import errors, ledger, route
from aigw.config import snapshot
from aigw.config.snapshot import Key, Match, Snapshot
from aigw.config.upstreams import Candidate
from aigw.errors import Failure
from aigw.tokens import Tokens
from aigw.wire.head import HeadBounds, RequestHead, RequestParser, ResponseHead, ResponseParser

pytestmark = pytest.mark.interpreted  # what it describes here only looks like an exchange

CONFIG = snapshot.compile(
    document(
        {"up": upstream(target("http://127.0.0.1:1", "a"), api_key="canary")},
        gateways={"shop": gateway(rule("api"), models={"fast": model("up", "real-1"), "*": model("up")})},
    ),
    4,
)
OWNER = Key("demo", key("canary"))
WALL = 1_700_000_000.25


@dataclass
class Admitted:
    """What the ledger reads of an admission."""

    head: RequestHead
    match: Match | None
    key: Key | None
    candidate: Candidate | None = None  # the one that `described` was written for
    described: bytes = b""


@dataclass
class Ended:
    """What the ledger reads of an exchange, as it stands at its end."""

    admission: Any
    model: str | None = None
    candidate: Candidate | None = None
    request_id: bytes = b"id-1"
    snapshot: Snapshot = CONFIG
    status: int = 200
    bytes_in: int = 10
    bytes_out: int = 20
    response: ResponseHead | None = None
    started: float = 100.0
    acquiring_at: float = 100.002
    sent_at: float = 100.005
    head_at: float = 100.505
    first_at: float = 0.0
    overhead: bytes = b""
    trying: Any = None


def exchange(
    path: str = "/v1/chat/completions?key=canary", name: str | None = "fast", *, refused: bool = False, **fields: Any
) -> Ended:
    block = f"POST {path} HTTP/1.1\r\nhost: gw\r\nauthorization: Bearer canary".encode()
    head = RequestParser().parse(block, HeadBounds())
    found = route.match(CONFIG, head)
    assert isinstance(found, Match)
    if refused:
        none = {"acquiring_at": 0.0, "sent_at": 0.0, "head_at": 0.0}
        return Ended(Admitted(head, None, None), **none | fields)
    resolved = found.gateway.find_model(name or "m")
    assert resolved is not None
    response = ResponseParser().parse(b"HTTP/1.1 200 OK\r\nx-request-id: req_1", HeadBounds())
    given = {"model": name, "candidate": resolved.candidates[0], "response": response} | fields
    return Ended(Admitted(head, found, OWNER), **given)


def record(
    of: Ended,
    end: str = "ok",
    failure: Failure | None = None,
    client: bytes = b"10.0.0.1",
    tokens: Tokens | None = None,
) -> dict[str, Any]:
    line = ledger.record(of, client, end, failure, 100.75, WALL, tokens)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert not [char for char in line.decode()[:-1] if unicodedata.category(char) == "Cc"], line
    assert b"canary" not in line
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


def test_an_exchange_that_went_well() -> None:
    assert record(exchange()) == {
        "time": "2023-11-14T22:13:20.250Z",
        "request_id": "id-1",
        "client": "10.0.0.1",
        "gateway": "shop",
        "rule": "api",
        "method": "POST",
        "path": "/v1/chat/completions",
        "key": "demo",
        "model": "fast",
        "model_used": "real-1",
        "upstream": "up",
        "target": "a",
        "status": 200,
        "end": "ok",
        "fault": "none",
        "bytes_in": 10,
        "bytes_out": 20,
        "overhead_ms": 2.0,
        "duration_ms": 750.0,
        "generation": 4,
        "upstream_request_id": "req_1",
    }


def test_what_is_unknown_is_absent() -> None:
    fields = record(exchange(refused=True, status=404), "refused", Failure(errors.NO_RULE, "no"))
    assert set(fields) == {
        *("time", "request_id", "client", "method", "path", "status", "end", "fault", "error"),
        *("bytes_in", "bytes_out", "duration_ms", "generation"),
    }
    assert (fields["status"], fields["end"], fields["fault"], fields["error"]) == (404, "refused", "client", "no_rule")


def test_an_exchange_without_model_key_and_id() -> None:
    up = snapshot.Resolved(CONFIG.upstreams["up"], None, None, None)
    ended = exchange(model=None, candidate=up.candidates[0], response=None)
    ended.admission.key = None
    fields = record(ended)
    assert not {"model", "model_used", "key", "upstream_request_id"} & set(fields)
    assert (fields["upstream"], fields["target"]) == ("up", "a")


@pytest.mark.parametrize(
    ("end", "failure", "fault"),
    [
        ("ok", None, "none"),
        ("client_gone", None, "client"),
        ("client_slow", None, "client"),
        ("refused", Failure(errors.INVALID_KEY, ""), "client"),
        ("failed", Failure(errors.INTERNAL, ""), "gateway"),
        ("cut", Failure(errors.UPSTREAM_CUT, ""), "upstream"),
    ],
)
def test_whose_fault_it_was(end: str, failure: Failure | None, fault: str) -> None:
    fields = record(exchange(), end, failure)
    assert (fields["end"], fields["fault"]) == (end, fault)
    assert fields.get("error") == (None if failure is None else failure.kind.code)


def test_what_is_remembered_changes_nothing() -> None:
    first = exchange()
    plain = record(first)
    first.admission.candidate = first.candidate
    first.admission.described = ledger.describe(first.admission, first.candidate, first.model)
    assert record(first) == plain


def test_what_is_remembered_of_one_candidate_is_not_said_of_another() -> None:
    """One admission serves all models: what it remembers is of the candidate that was used last."""
    ended = exchange()
    ended.admission.candidate = ended.candidate
    ended.admission.described = ledger.describe(ended.admission, ended.candidate, ended.model)
    other = exchange(name="slow")
    other.admission = ended.admission
    assert (record(other)["model"], record(ended)["model"]) == ("slow", "fast")
    refused = exchange(name="none", candidate=None)
    refused.admission = ended.admission
    fields = record(refused, "refused", Failure(errors.MODEL_NOT_FOUND, ""))
    assert (fields["model"], fields["key"], "upstream" in fields) == ("none", "demo", False)


def test_an_exchange_without_an_answer() -> None:
    """What the gateway itself took is known only once the upstream has begun to answer."""
    ended = exchange(head_at=0.0, response=None, status=502)
    fields = record(ended, "failed", Failure(errors.CONNECT_FAILED, ""))
    assert not {"overhead_ms", "upstream_request_id"} & set(fields)
    assert (fields["upstream"], fields["duration_ms"], fields["error"]) == ("up", 750.0, "connect_failed")


def test_what_was_no_request() -> None:
    """It has no method and no path that could be believed."""
    line = ledger.refusal(b"id-1", b"10.0.0.1", Failure(errors.HEAD_TOO_LARGE, "long"), 99, 4, WALL)
    assert (line[-1:], line.count(b"\n")) == (b"\n", 1)
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "request_id": "id-1",
        "client": "10.0.0.1",
        "status": 431,
        "end": "refused",
        "fault": "client",
        "error": "head_too_large",
        "bytes_in": 0,
        "bytes_out": 99,
        "generation": 4,
    }


@pytest.mark.parametrize(
    "hostile",
    ['a"b\\', "a\r\nb", "\x1b[31m", "\0", "\x7f", "\x85", "\x9b31m", "\u2028", "é\ufffd", '","status":200,"x":"'],
)
def test_nothing_hostile_gets_out_of_its_field(hostile: str) -> None:
    """Whatever a client or an upstream names itself: one line, one object, no control byte, the text intact."""
    fields = record(exchange(name=hostile))
    assert fields["model"] == hostile
    assert fields["model_used"] == hostile
    assert fields["status"] == 200


def test_an_upstreams_id_is_any_bytes() -> None:
    head = ResponseParser().parse(b'HTTP/1.1 200 OK\r\nx-request-id: \xff"\\\t\x9b', HeadBounds())
    assert record(exchange(response=head))["upstream_request_id"] == '\xff"\\\t\x9b'


@pytest.mark.parametrize(
    ("lines", "upstream_id"),
    [
        (b"x-request-id: one\r\nrequest-id: two", "one"),
        (b"request-id: two", "two"),
        (b"x-request-id:\r\nrequest-id: two", "two"),
        (b"x-request-id:", None),
    ],
)
def test_which_id_is_the_upstreams(lines: bytes, upstream_id: str | None) -> None:
    head = ResponseParser().parse(b"HTTP/1.1 200 OK\r\n" + lines, HeadBounds())
    assert record(exchange(response=head)).get("upstream_request_id") == upstream_id


def test_what_the_answer_says_it_used() -> None:
    assert record(exchange(), tokens=Tokens(7, 0, 3))["tokens"] == {"input": 7, "output": 0, "cached": 3}
    assert "tokens" not in record(exchange())


def test_when_a_stream_began_to_say_something() -> None:
    assert record(exchange(first_at=100.7505))["first_token_ms"] == 750.5
    assert "first_token_ms" not in record(exchange())


@pytest.mark.parametrize("path", ['/a"b', "/a\\b", '/","status":200,"x":"', "/%0a%1b"])
def test_a_path_is_written_as_it_came(path: str) -> None:
    assert record(exchange(path))["path"] == path


@pytest.mark.parametrize(
    ("wall", "text"),
    [
        (0.0, b"1970-01-01T00:00:00.000Z"),
        (WALL, b"2023-11-14T22:13:20.250Z"),
        (WALL + 0.7499, b"2023-11-14T22:13:20.999Z"),
        (WALL + 0.75, b"2023-11-14T22:13:21.000Z"),
        (951782399.9999, b"2000-02-28T23:59:59.999Z"),
        (951782400.0, b"2000-02-29T00:00:00.000Z"),
    ],
)
def test_timestamps(wall: float, text: bytes) -> None:
    assert ledger.timestamp(wall) == text
    assert ledger.timestamp(wall) == text
