"""Errors in each dialect, the dialect a client speaks, and how a credential is carried."""

from __future__ import annotations

import gzip
import zlib

import pytest

from aigw import errors
from aigw.errors import Failure, Kind
from aigw.providers import DIALECTS, credential_line, dialect_of, refuses_credential
from aigw.wire.head import HeadBounds, RequestParser

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, Kind)]


def test_the_dialects() -> None:
    assert sorted(DIALECTS) == ["anthropic", "gemini", "openai"]
    assert all(name == dialect.NAME for name, dialect in DIALECTS.items())


@pytest.mark.parametrize(
    ("dialect", "failure", "body"),
    [
        (
            "openai",
            Failure(errors.MODEL_NOT_FOUND, 'no "x"', "model"),
            b'{"error":{"message":"no \\"x\\"","type":"invalid_request_error","param":"model",'
            b'"code":"model_not_found"}}',
        ),
        (
            "openai",
            Failure(errors.INVALID_KEY, "é"),
            b'{"error":{"message":"\xc3\xa9","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}',
        ),
        (
            "openai",
            Failure(errors.CONNECT_FAILED, "no"),
            b'{"error":{"message":"no","type":"server_error","param":null,"code":"connect_failed"}}',
        ),
        (
            "anthropic",
            Failure(errors.MODEL_NOT_FOUND, "no", "model"),
            b'{"type":"error","error":{"type":"not_found_error","message":"no"},"request_id":"id-1"}',
        ),
        (
            "anthropic",
            Failure(errors.INTERNAL, "no"),
            b'{"type":"error","error":{"type":"api_error","message":"no"},"request_id":"id-1"}',
        ),
        (
            "gemini",
            Failure(errors.MODEL_NOT_FOUND, "no", "model"),
            b'{"error":{"code":404,"message":"no","status":"NOT_FOUND"}}',
        ),
    ],
)
def test_error_bodies(dialect: str, failure: Failure, body: bytes) -> None:
    assert DIALECTS[dialect].error_body(failure, "id-1") == body


@pytest.mark.parametrize("kind", [errors.MISSING_KEY, errors.AMBIGUOUS_KEY, errors.EXPIRED_KEY, errors.DISABLED_KEY])
def test_every_bad_key_has_the_code_that_openai_clients_know(kind: Kind) -> None:
    assert b'"code":"invalid_api_key"' in DIALECTS["openai"].error_body(Failure(kind, ""), "")


ANTHROPIC = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    414: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    431: "invalid_request_error",
    500: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    505: "api_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
GEMINI = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "INVALID_ARGUMENT",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    414: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    417: "INVALID_ARGUMENT",
    431: "INVALID_ARGUMENT",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    505: "INTERNAL",
    429: "RESOURCE_EXHAUSTED",
    529: "UNAVAILABLE",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_every_error_has_a_type_in_every_dialect(kind: Kind) -> None:
    bodies = {name: dialect.error_body(Failure(kind, "m"), "") for name, dialect in DIALECTS.items()}
    assert f'"type":"{ANTHROPIC[kind.status]}"'.encode() in bodies["anthropic"]
    assert f'"code":{kind.status},"message":"m","status":"{GEMINI[kind.status]}"'.encode() in bodies["gemini"]
    family = "invalid_request_error" if kind.status < 500 else "server_error"
    family = {"rate_limit_exceeded": "rate_limit_error", "insufficient_quota": kind.code}.get(kind.code, family)
    assert f'"type":"{family}"'.encode() in bodies["openai"]


@pytest.mark.parametrize(
    ("by_path", "lines", "dialect"),
    [
        ("openai", [b"anthropic-version: x"], "openai"),
        ("gemini", [], "gemini"),
        ("", [], "openai"),
        ("", [b"authorization: Bearer k", b"x-api-key: k"], "openai"),
        ("", [b"anthropic-version: x"], "anthropic"),
        ("", [b"X-Goog-Api-Key: k"], "gemini"),
        ("", [b"x-goog-api-client: c"], "gemini"),
        ("", [b"anthropic-version: x", b"x-goog-api-key: k"], "anthropic"),
    ],
)
def test_the_dialect_of_a_client(by_path: str, lines: list[bytes], dialect: str) -> None:
    """By path; where the path is shared, by header."""
    head = RequestParser().parse(b"\r\n".join([b"GET /v1/models HTTP/1.1", b"host: gw", *lines]), HeadBounds())
    assert dialect_of(by_path, head) == dialect


@pytest.mark.parametrize(
    ("provider", "line"),
    [
        ("openai", b"authorization: Bearer k"),
        ("azure", b"api-key: k"),
        ("anthropic", b"x-api-key: k"),
        ("gemini", b"x-goog-api-key: k"),
        ("http", b"authorization: Bearer k"),
        ("mock", b"authorization: Bearer k"),
    ],
)
def test_how_a_provider_takes_its_credential(provider: str, line: bytes) -> None:
    assert credential_line(provider, "k") == line


BAD_CREDENTIAL = b'{"error": {"message": "Your API key was reported as leaked. Please use another API key."}}'
NOT_ALLOWED = b'{"error": {"message": "This model is not available in your country", "code": "unsupported_country"}}'


@pytest.mark.parametrize(
    ("body", "about"),
    [
        (BAD_CREDENTIAL, True),
        (b'{"error": "invalid_Api_Key sk-1"}', True),
        (b"bad api-key", True),
        (b"bad ApiKey", True),
        (b"Request had invalid authentication credentials", True),
        (b"access token expired", True),
        (NOT_ALLOWED, False),
        (b"<html>403 Forbidden</html>", False),
        (b"", False),
    ],
)
def test_what_a_403_is_about(body: bytes, about: bool) -> None:
    for coding in (b"", b"identity"):
        assert refuses_credential(body, coding) == about
    for coding in (b"gzip", b"x-gzip"):
        assert refuses_credential(gzip.compress(body), coding) == about


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (NOT_ALLOWED, b"gzip"),
        (b"\x1f\x8b\x08\x00\0\0\0\0\0\xff" + b"\xff" * 20, b"gzip"),
        (NOT_ALLOWED, b"br"),
        (zlib.compress(NOT_ALLOWED), b"deflate"),
        (gzip.compress(gzip.compress(NOT_ALLOWED)), b"gzip, gzip"),
    ],
)
def test_what_cannot_be_read_counts_as_about_the_credential(body: bytes, coding: bytes) -> None:
    assert refuses_credential(body, coding)
