"""What the mock is asked to do: its size and pace, and how it shall fail.

One vocabulary for the command line (`--latency`, `--rate`, `--tokens`, `--fail`) and for the request header `x-mock`.
A request's words are laid over the server's settings: a number replaces that number, and any failing word replaces all
the server's failing words.

    latency=SECONDS    wait before the answer (with `slow-first-token`: before the first content)
    rate=N             tokens per second; 0 or absent: everything at once
    tokens=N           output tokens, one content event each when streamed
    bytes=N            a plain chat completion of OpenAI's whose body has N bytes (49 or more), for benchmarks: the
                       shortest that can be read, with its usage where there is room for it

The failures, at most one at a time. Halfway means, in a stream, after the preamble and half (rounded down) of the
content events, so `tokens=0` or `tokens=1` fails before any content; elsewhere, after half of the body's bytes.

    status=N           answer N (300-599) with the dialect's error body; `retry-after=SECONDS` may stand with it
    refuse             for a server: refuse connections; in `x-mock`: close the connection without an answer
    reset              RST halfway (over a unix socket, which has none: a close)
    cut-body           close halfway through the bytes, wherever that falls: in an event, in a chunk
    cut-event          close halfway inside an event, behind a complete chunk
    cut-between        close halfway between two events, without the last chunk
    stall              stop sending halfway and keep the connection
    malformed          bytes that are no HTTP; in a stream an event that is no JSON, after which it goes on
    error-event        the dialect's error event halfway, then a clean end
    bad-chunk          a chunk size that is no number halfway, then close
    early-close        close after the complete head
    slow-first-token   head and preamble at once, `latency` before the content; goes with any failure above

Where the answer is plain, `cut-event` and `cut-between` act as `cut-body`, `error-event` answers the error's status,
and `slow-first-token` sends the head at once and the body late.
"""

import math
from dataclasses import dataclass, field, replace

_PLAIN_FAILURES = frozenset(
    {
        "refuse",
        "reset",
        "cut-body",
        "cut-event",
        "cut-between",
        "stall",
        "malformed",
        "error-event",
        "bad-chunk",
        "early-close",
    }
)
_SLOW = "slow-first-token"

MAX_TOKENS = 1_000_000
"""Of one answer: some 5 MB of text. Enough for any test of back pressure, too little to exhaust a machine by a typo."""

MIN_BYTES = 49
MAX_BYTES = 64 << 20

_MAX_SECONDS = 3600.0

WORDS = (
    "latency=SECONDS, rate=TOKENS_PER_SECOND, tokens=N, bytes=N, status=N, retry-after=SECONDS, "
    + ", ".join(sorted(_PLAIN_FAILURES))
    + f", {_SLOW}"
)


@dataclass(frozen=True, slots=True)
class Settings:
    """latency: seconds; rate: tokens per second, 0 for at once; tokens, bytes: of one answer, 0 bytes: as many as it
    has; fail: failing words as above.

    Raises ValueError where a number is out of range, a word is unknown or two words contradict each other.
    """

    latency: float = 0.0
    rate: float = 0.0
    tokens: int = 16
    fail: tuple[str, ...] = ()
    bytes: int = 0

    # What the failing words come to
    failure: str | None = field(
        init=False, repr=False, compare=False
    )  # the one that is no status and no matter of time
    status: int | None = field(init=False, repr=False, compare=False)
    retry_after: str | None = field(init=False, repr=False, compare=False)
    slow_first_token: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_numbers()
        for word in self.fail:
            _check_failing(word)
        status = _value(self.fail, "status")
        derived = {
            "failure": next((word for word in self.fail if word in _PLAIN_FAILURES), None),
            "status": None if status is None else int(status),
            "retry_after": _value(self.fail, "retry-after"),
            "slow_first_token": _SLOW in self.fail,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        self._check_together()

    def _check_numbers(self) -> None:
        if not 0 <= self.latency <= _MAX_SECONDS:
            raise ValueError(
                f"latency={self.latency:g}: expected seconds from 0 to {_MAX_SECONDS:g}, as in latency=0.2"
            )
        if not 0 <= self.rate < math.inf:
            raise ValueError(
                f"rate={self.rate:g}: expected tokens per second, as in rate=50; 0 means everything at once"
            )
        if not 0 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"tokens={self.tokens}: expected a count from 0 to {MAX_TOKENS}, as in tokens=20")
        if self.bytes and not MIN_BYTES <= self.bytes <= MAX_BYTES:
            raise ValueError(f"bytes={self.bytes}: expected a count from {MIN_BYTES} to {MAX_BYTES}, as in bytes=800")

    def _check_together(self) -> None:
        failures = [word for word in self.fail if word != _SLOW and not word.startswith("retry-after=")]
        if len(failures) > 1:
            raise ValueError(f"{failures[0]} and {failures[1]}: one failure at a time")
        if self.retry_after is not None and self.status is None:
            raise ValueError(f"retry-after={self.retry_after}: goes with a status, as in status=503, retry-after=2")
        if self.slow_first_token and not self.latency:
            raise ValueError(f"{_SLOW}: how slow? As in latency=2, {_SLOW}")

    @classmethod
    def parse(cls, words: str) -> "Settings":
        """Settings from comma separated words; none means the defaults.

        Raises ValueError that lists the words there are.
        """
        return cls().over(words)

    def over(self, words: str) -> "Settings":
        """These settings with a request's words laid over them. Raises ValueError as `parse` does."""
        if not words:
            return self
        latency, rate, tokens, size = self.latency, self.rate, self.tokens, self.bytes
        fail = []
        for word in words.split(","):
            name, _, value = (part.strip() for part in word.strip().lower().partition("="))
            if name == "latency":
                latency = _number(name, value, "seconds, as in latency=0.2")
            elif name == "rate":
                rate = _number(name, value, "tokens per second, as in rate=50")
            elif name == "tokens":
                tokens = _count(name, value, "a count, as in tokens=20")
            elif name == "bytes":
                size = _count(name, value, "a count, as in bytes=800")
            elif name:
                fail.append(f"{name}={value}" if "=" in word else name)
        return replace(self, latency=latency, rate=rate, tokens=tokens, bytes=size, fail=tuple(fail) or self.fail)

    @property
    def at_once(self) -> bool:
        """Whether an answer needs no timer and no broken connection, and so can leave in one write."""
        return not self.latency and not self.rate and self.failure is None


def _value(words: tuple[str, ...], name: str) -> str | None:
    return next((word[len(name) + 1 :] for word in words if word.startswith(name + "=")), None)


def _check_failing(word: str) -> None:
    name, equals, value = word.partition("=")
    if name == "status" and equals:
        if not 300 <= _count(name, value, "a number, as in status=503") <= 599:
            raise ValueError(f"{word}: expected a status from 300 to 599, as in status=503")
    elif name == "retry-after" and equals:
        _count(name, value, "whole seconds, as in retry-after=2")
    elif word not in _PLAIN_FAILURES and word != _SLOW:
        raise ValueError(f"{word[:40]!r} is no word of the mock; there are: {WORDS}")


def _count(name: str, value: str, expected: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise ValueError(f"{name}={value[:40]}: expected {expected}")
    return int(value)


def _number(name: str, value: str, expected: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{name}={value[:40]}: expected {expected}") from None
