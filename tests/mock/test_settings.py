"""aigw.mock.settings: the words."""

import pytest

from aigw.mock import Settings


def test_nothing_said_means_the_defaults() -> None:
    assert Settings.parse("") == Settings() == Settings(latency=0.0, rate=0.0, tokens=16, fail=())
    assert Settings().at_once


def test_numbers_and_blanks() -> None:
    assert Settings.parse(" latency=0.2, Rate=50 ,tokens=3,, ") == Settings(0.2, 50.0, 3)


def test_what_failing_words_come_to() -> None:
    settings = Settings.parse("status=503, retry-after=2")
    assert (settings.status, settings.retry_after, settings.failure) == (503, "2", None)
    assert settings.at_once
    slow = Settings.parse("latency=1, slow-first-token, cut-event")
    assert (slow.failure, slow.slow_first_token, slow.at_once) == ("cut-event", True, False)


def test_a_request_lays_its_words_over_the_servers() -> None:
    server = Settings.parse("latency=1, tokens=5, reset")
    assert server.over("tokens=7") == Settings(1.0, 0.0, 7, ("reset",))
    assert server.over("latency=0, status=500") == Settings(0.0, 0.0, 5, ("status=500",))
    assert server.over("") is server


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("latency=x", "latency=x: expected seconds, as in latency=0.2"),
        ("latency=-1", "latency=-1: expected seconds from 0 to 3600"),
        ("latency=nan", "latency=nan: expected seconds"),
        ("rate=inf", "rate=inf: expected tokens per second"),
        ("rate=fast", "rate=fast: expected tokens per second, as in rate=50"),
        ("tokens=1.5", "tokens=1.5: expected a count, as in tokens=20"),
        ("bytes=48", "bytes=48: expected a count from 49 to 67108864, as in bytes=800"),
        ("bytes=many", "bytes=many: expected a count, as in bytes=800"),
        ("tokens=99999999", "tokens=99999999: expected a count from 0 to 1000000"),
        ("status=200", "status=200: expected a status from 300 to 599"),
        ("status", "'status' is no word of the mock; there are: latency=SECONDS"),
        ("retry-after=2", "retry-after=2: goes with a status, as in status=503, retry-after=2"),
        ("status=429, retry-after=soon", "retry-after=soon: expected whole seconds"),
        ("reset, stall", "reset and stall: one failure at a time"),
        ("status=500, stall", "status=500 and stall: one failure at a time"),
        ("slow-first-token", "slow-first-token: how slow? As in latency=2, slow-first-token"),
        ("explode", "'explode' is no word of the mock; there are: latency=SECONDS, rate="),
    ],
)
def test_messages_teach(words: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
        Settings.parse(words)
    assert message in str(caught.value)


def test_every_failing_word_is_in_the_message_and_in_the_manual() -> None:
    from aigw.mock import settings

    for word in settings.WORDS.split(", "):
        assert word.split("=")[0] in (settings.__doc__ or "")
