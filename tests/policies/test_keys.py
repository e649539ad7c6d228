"""Who is asking: a key is found wherever an SDK puts it, and nothing else passes for one."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from fakes import document, gateway, key, target, upstream

from aigw import errors
from aigw.config import snapshot
from aigw.config.snapshot import Key
from aigw.errors import Failure, Kind
from aigw.policies import keys
from aigw.wire.head import HeadBounds, RequestHead, RequestParser

NOW = 1_700_000_000.0


def gateway_of(**entries: dict[str, Any]) -> snapshot.GatewaySpec:
    config = document(
        {"up": upstream(target("http://127.0.0.1:1"))}, gateways={"default": gateway(auth="keys", keys=entries)}
    )
    return snapshot.compile(config, 1).gateways["default"]


def head(*lines: bytes, target: bytes = b"/v1/messages") -> RequestHead:
    block = b"\r\n".join([b"POST " + target + b" HTTP/1.1", b"host: gw", *lines])
    return RequestParser().parse(block, HeadBounds())


def admitted(spec: snapshot.GatewaySpec, *lines: bytes, target: bytes = b"/", now: float = NOW) -> str:
    found = keys.admit(spec, head(*lines, target=target), now)
    assert isinstance(found, Key), found
    return found.name


def refused(spec: snapshot.GatewaySpec, *lines: bytes, target: bytes = b"/", now: float = NOW) -> Failure:
    found = keys.admit(spec, head(*lines, target=target), now)
    assert isinstance(found, Failure), found
    return found


TWO = gateway_of(one=key("sk-1"), two=key("sk-2"))


@pytest.mark.parametrize(
    "line",
    [
        b"authorization: Bearer sk-1",
        b"Authorization:bearer  sk-1 ",
        b"authorization: sk-1",
        b"x-api-key: sk-1",
        b"api-key: sk-1",
        b"x-goog-api-key: sk-1",
        b"x-aigw-key: sk-1",
    ],
)
def test_every_header_form(line: bytes) -> None:
    assert admitted(TWO, line) == "one"


@pytest.mark.parametrize("query", [b"key=sk-1", b"alt=sse&key=sk-1", b"key=sk%2D1"])
def test_a_key_in_the_query(query: bytes) -> None:
    assert admitted(TWO, target=b"/?" + query) == "one"


def test_the_same_key_twice_is_one_key() -> None:
    assert admitted(TWO, b"authorization: Bearer sk-1", b"x-api-key: sk-1", target=b"/?key=sk-1") == "one"
    assert admitted(TWO, b"x-aigw-key: sk-1", b"x-aigw-key: sk-1") == "one"
    assert admitted(TWO, target=b"/?key=sk-1&key=sk-1") == "one"


@pytest.mark.parametrize(
    ("lines", "target"),
    [
        ([b"authorization: Bearer sk-1", b"x-api-key: sk-2"], b"/"),
        ([b"authorization: sk-1", b"x-api-key: sk-2"], b"/"),
        ([b"authorization: sk-1", b"authorization: Bearer sk-2"], b"/"),
        ([b"x-api-key: sk-1", b"x-api-key: sk-2"], b"/"),
        ([b"x-api-key: sk-1", b"api-key: unknown"], b"/"),
        ([b"x-goog-api-key: sk-2"], b"/?key=sk-1"),
        ([], b"/?key=sk-1&key=sk-2"),
        ([], b"/?key=unknown&key=sk-2"),
        ([b"x-aigw-key: sk-1", b"x-aigw-key: sk-2"], b"/"),
        ([b"x-aigw-key: sk-1", b"x-aigw-key:"], b"/"),
    ],
)
def test_two_different_keys_are_refused(lines: list[bytes], target: bytes) -> None:
    """Two readers could believe either."""
    assert refused(TWO, *lines, target=target).kind is errors.AMBIGUOUS_KEY


@pytest.mark.parametrize(
    "others",
    [
        [b"authorization: Bearer sk-2"],
        [b"authorization: Bearer sk-provider", b"x-api-key: sk-other"],
        [b"authorization: Basic eDp5"],
        [b"x-api-key: sk-1", b"api-key: sk-2", b"x-goog-api-key: sk-3"],
    ],
)
def test_the_gateways_own_header_decides(others: list[bytes]) -> None:
    """The other credentials are the client's own business with the provider, wherever they stand."""
    own = b"x-aigw-key: sk-1"
    assert admitted(TWO, own, *others, target=b"/?key=sk-provider") == "one"
    assert admitted(TWO, *others, own) == "one"
    assert admitted(TWO, *others, own, target=b"/?key=sk-provider") == "one"


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ([], errors.MISSING_KEY, "no API key in the request; send it as `authorization: Bearer KEY`"),
        ([b"authorization: Basic c2stMTo="], errors.MISSING_KEY, "no API key"),
        ([b"authorization: Bearer"], errors.MISSING_KEY, "no API key"),
        ([b"authorization: sk-canary"], errors.INVALID_KEY, "not known"),
        ([b"authorization: Basic"], errors.INVALID_KEY, "not known"),
        ([b"authorization: Token sk-1"], errors.MISSING_KEY, "no API key"),
        ([b"x-api-key:"], errors.MISSING_KEY, "no API key"),
        ([b"cookie: key=sk-1"], errors.MISSING_KEY, "no API key"),
        ([b"x-aigw-key:"], errors.MISSING_KEY, "the `x-aigw-key` header is empty"),
        ([b"x-aigw-key:", b"x-api-key: sk-1"], errors.MISSING_KEY, "the `x-aigw-key` header is empty"),
        ([b"x-api-key: sk-canary"], errors.INVALID_KEY, "this API key is not known to the gateway"),
        ([b"x-api-key: SK-1"], errors.INVALID_KEY, "not known"),
        ([b"x-api-key: " + hashlib.sha256(b"sk-1").hexdigest().encode()], errors.INVALID_KEY, "not known"),
        ([b"x-aigw-key: sk-canary", b"x-api-key: sk-1"], errors.INVALID_KEY, "not known"),
    ],
)
def test_no_good_key(lines: list[bytes], kind: Kind, words: str) -> None:
    failure = refused(TWO, *lines)
    assert (failure.kind, words in failure.message) == (kind, True), failure
    assert "canary" not in failure.message


@pytest.mark.parametrize("query", [b"akey=sk-1", b"k=key=sk-1", b"key", b"key=", b"KEY=sk-1", b"?key=sk-1"])
def test_what_is_no_key_in_the_query(query: bytes) -> None:
    assert refused(TWO, target=b"/?" + query).kind is errors.MISSING_KEY


def test_a_disabled_key() -> None:
    failure = refused(gateway_of(k=key("sk-1", disabled=True)), b"x-api-key: sk-1")
    assert (failure.kind, "'k' is disabled" in failure.message) == (errors.DISABLED_KEY, True)


def test_a_key_expires_at_its_time() -> None:
    spec = gateway_of(k=key("sk-1", expires=NOW))
    assert admitted(spec, b"x-api-key: sk-1", now=NOW - 0.001) == "k"
    failure = refused(spec, b"x-api-key: sk-1", now=NOW)
    assert (failure.kind, "'k' has expired" in failure.message) == (errors.EXPIRED_KEY, True)


def test_a_rotated_key() -> None:
    """The value before the last rotation is good until its time; the current one has none."""
    before = {"sha256": hashlib.sha256(b"sk-0").hexdigest(), "until": NOW}
    spec = gateway_of(k=key("sk-1", previous=before))
    assert admitted(spec, b"x-api-key: sk-0", now=NOW - 0.001) == "k"
    assert admitted(spec, b"x-api-key: sk-1", now=NOW) == "k"
    failure = refused(spec, b"x-api-key: sk-0", now=NOW)
    assert (failure.kind, "'k' was rotated" in failure.message) == (errors.EXPIRED_KEY, True)


def test_a_rotated_key_does_not_outlive_the_key() -> None:
    before = {"sha256": hashlib.sha256(b"sk-0").hexdigest(), "until": NOW + 100}
    assert (
        refused(gateway_of(k=key("sk-1", previous=before, disabled=True)), b"api-key: sk-0").kind is errors.DISABLED_KEY
    )
    assert refused(gateway_of(k=key("sk-1", previous=before, expires=NOW)), b"api-key: sk-0").kind is errors.EXPIRED_KEY


def test_keys_of_one_gateway_mean_nothing_to_another() -> None:
    assert refused(gateway_of(k=key("sk-9")), b"x-api-key: sk-1").kind is errors.INVALID_KEY
