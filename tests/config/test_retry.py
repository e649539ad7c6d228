"""Which outcomes a retry takes."""

from __future__ import annotations

import pytest
from fakes import retry

from aigw import errors
from aigw.config.retry import CONTEXT, CREDENTIAL, FALLBACK, NEVER, Retry
from aigw.config.values import outcome
from aigw.errors import Kind

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, Kind)]


def takes(*when: str) -> set[str]:
    """Codes of the failures that these words take."""
    asked = Retry(retry(*when))
    return {kind.code for kind in KINDS if asked.takes(kind.cause, kind.status)}


@pytest.mark.parametrize(
    ("when", "codes"),
    [
        (["connect"], {"connect_failed", "connect_timeout", "no_target", "no_capacity"}),
        (["reset"], {"upstream_reset", "upstream_cut"}),
        (["first_byte"], {"first_byte_timeout"}),
        (["first_token"], {"first_token_timeout"}),
        (["upstream_credential_refused"], {"upstream_credential_refused"}),
        (["502"], {"connect_failed", "connect_timeout", "upstream_reset", "upstream_cut", "upstream_malformed"}),
        (["529", "first_token"], {"upstream_overloaded", "first_token_timeout"}),
        ([], set()),
    ],
)
def test_words_and_numbers(when: list[str], codes: set[str]) -> None:
    assert takes(*when) == codes


def test_a_class_is_all_of_its_statuses_but_for_our_own_credential() -> None:
    assert takes("5xx") == {kind.code for kind in KINDS if kind.status >= 500} - {"upstream_credential_refused"}
    asked = Retry(retry("4xx"))
    assert all(asked.takes("", status) for status in range(400, 500))
    assert not any(asked.takes("", status) for status in (200, 399, 500, 599))


def test_the_causes_are_the_words_of_the_config() -> None:
    causes = {kind.cause for kind in KINDS} - {""} | {CONTEXT, CREDENTIAL}
    assert {outcome(cause) for cause in causes} == causes
    with pytest.raises(ValueError, match="must be") as caught:
        outcome("nonsense")
    for cause in causes:
        assert cause in str(caught.value)
    for word in (*FALLBACK.when, "429", "5xx"):
        assert outcome(word) == word


def test_a_request_that_is_too_long_is_a_400_of_its_own() -> None:
    assert Retry(retry(CONTEXT)).takes(CONTEXT, 400)
    assert not Retry(retry(CONTEXT)).takes("", 400)
    assert Retry(retry("400")).takes(CONTEXT, 400)
    assert Retry(retry(CONTEXT)).reads_errors
    assert not Retry(retry("400")).reads_errors


def test_what_there_is_without_configuration() -> None:
    assert (FALLBACK.attempts, FALLBACK.takes("connect", 502), FALLBACK.takes("", 429)) == (1, True, True)
    assert not any(NEVER.takes(kind.cause, kind.status) for kind in KINDS)
    assert repr(FALLBACK) == "<Retry 1 when connect, first_byte, 429, 5xx>"
    assert repr(NEVER) == "<Retry 1 when never>"
