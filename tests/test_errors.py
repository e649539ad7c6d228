"""The table of errors: one row per cause, each with a status that fits whose fault it is."""

from __future__ import annotations

import re

import pytest

from aigw import errors
from aigw.errors import Failure, Kind, Refused, refuse

KINDS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, Kind)}
STATUSES = {
    "client": {400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431, 505},
    "gateway": {500, 503},
    "upstream": {429, 500, 502, 503, 504, 529},
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items(), ids=list(KINDS))
def test_a_row(name: str, kind: Kind) -> None:
    assert kind.status in STATUSES[kind.fault]
    # it goes out in a header and as a label
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert kind.code in (name.lower(), "internal_error")
    assert (
        kind.end
        in {"client": ("refused",), "gateway": ("refused", "failed"), "upstream": ("failed", "cut", "stalled")}[
            kind.fault
        ]
    )
    if kind.fault == "client":
        assert kind.retry == (kind.status == 408 or kind is errors.RATE_LIMIT_EXCEEDED)


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in KINDS.values()]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.BAD_REQUEST, 400),
        (errors.INVALID_JSON, 400),
        (errors.DIALECT_MISMATCH, 400),
        (errors.MISSING_KEY, 401),
        (errors.INVALID_KEY, 401),
        (errors.EXPIRED_KEY, 401),
        (errors.DISABLED_KEY, 401),
        (errors.MODEL_NOT_ALLOWED, 403),
        (errors.RESOURCE_NOT_ALLOWED, 403),
        (errors.NO_GATEWAY, 404),
        (errors.NO_RULE, 404),
        (errors.MODEL_NOT_FOUND, 404),
        (errors.METHOD_NOT_ALLOWED, 405),
        (errors.REQUEST_TIMEOUT, 408),
        (errors.BODY_TOO_LARGE, 413),
        (errors.URI_TOO_LONG, 414),
        (errors.UNSUPPORTED_ENCODING, 415),
        (errors.EXPECTATION_FAILED, 417),
        (errors.RATE_LIMIT_EXCEEDED, 429),
        (errors.INSUFFICIENT_QUOTA, 429),
        (errors.HEAD_TOO_LARGE, 431),
        (errors.BAD_VERSION, 505),
        (errors.CONNECT_FAILED, 502),
        (errors.CONNECT_TIMEOUT, 502),
        (errors.UPSTREAM_RESET, 502),
        (errors.UPSTREAM_MALFORMED, 502),
        (errors.UPSTREAM_CREDENTIAL_REFUSED, 502),
        (errors.TOO_MANY_CONNECTIONS, 503),
        (errors.TOO_MUCH_COLLECTED, 503),
        (errors.DRAINING, 503),
        (errors.QUEUE_TIMEOUT, 503),
        (errors.NO_TARGET, 503),
        (errors.SEND_TIMEOUT, 504),
        (errors.FIRST_BYTE_TIMEOUT, 504),
        (errors.IDLE_TIMEOUT, 504),
        (errors.TOTAL_TIMEOUT, 504),
    ],
    ids=lambda value: value.code if isinstance(value, Kind) else str(value),
)
def test_statuses(kind: Kind, status: int) -> None:
    assert kind.status == status


def test_a_refusal_carries_its_failure() -> None:
    refused = refuse(errors.BAD_REQUEST, "what was wrong", "model")
    assert isinstance(refused, Refused)
    assert refused.failure == Failure(errors.BAD_REQUEST, "what was wrong", "model", None)
    assert str(refused) == "what was wrong"
