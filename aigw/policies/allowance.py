"""One limit and whose it is: how much of it is used, and what is said of that, in header lines and in refusals.

Forms of the lines: OpenAI API reference, "Rate limits" (`x-ratelimit-*`, durations as 6m0s); Anthropic API reference,
"Rate limits" (`anthropic-ratelimit-*`, moments in RFC 3339). A window that slides is said to be reset when nothing of
what was used until now counts any more.
"""

from __future__ import annotations

import time
from math import ceil, inf
from typing import TYPE_CHECKING, Final

from aigw.config.limits import CONCURRENCY, COST, ONE, REQUESTS, Limit
from aigw.errors import INSUFFICIENT_QUOTA, RATE_LIMIT_EXCEEDED, Failure
from aigw.meters import CALENDAR, DAY, MONTH, NAMED, OPEN, Calendar, Level, Meter, Meters, Sliding, digest_of
from aigw.policies.estimate import Estimate
from aigw.tokens import CACHE_BESIDE, REASONING_BESIDE, Tokens

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.prices import Price

_SPANS: Final = {"day": DAY, "month": MONTH}

_OF_LIMITS: Final = (b"x-ratelimit-", b"anthropic-ratelimit-")
# Seconds after which it is worth another try where nobody knows: something has to end first.
SOON: Final = 1.0


class Allowance:
    """A limit, and the meter of one subject."""

    __slots__ = ("_end", "_said_for", "_said_until", "amount", "counts", "is_one", "limit", "meter", "shadow", "shows")

    def __init__(self, limit: Limit, meter: Meter) -> None:
        self.limit = limit
        self.meter = meter
        self.amount = limit.amount
        self.shadow = limit.shadow
        self.counts = limit.unit == REQUESTS
        self.is_one = limit.unit in ONE
        self.shows = not limit.shadow and limit.unit not in (CONCURRENCY, COST)  # on answers
        # what follows the number that is left, and until when that is so: it is formatted once a second
        self._end = (b"", b"")
        self._said_for = ""
        self._said_until = 0.0

    def __repr__(self) -> str:
        return f"<Allowance {self.limit!r}>"

    def of(self, used: Tokens, estimated: Estimate, price: Price | None) -> int:
        """What counts for a limit of tokens or cost: of what was reported, and of what was estimated where a part of
        that is not known. Every token counts once, whatever its class."""
        came_in, went_out = used.input, used.output
        if came_in is None or went_out is None:
            came_in = estimated.input if came_in is None else came_in
            went_out = estimated.output if went_out is None else went_out
            used = used._replace(input=came_in, output=went_out)
        unit = self.limit.unit
        if unit == COST:
            return 0 if price is None else price.cost(used)
        if used.beside & CACHE_BESIDE:
            came_in += (used.cached or 0) + (used.cache_write or 0)
        if used.beside & REASONING_BESIDE:
            went_out += used.reasoning or 0
        return came_in if unit == "input_tokens" else went_out if unit == "output_tokens" else came_in + went_out

    def lines(self, left: int, dialect: str, now: float, wall_offset: float) -> bytes:
        """Header lines, each with CRLF, in the forms of OpenAI or Anthropic."""
        if now >= self._said_until or dialect != self._said_for:
            self._say(dialect, now, now + wall_offset)
        begin, end = self._end
        return b"%b%d%b" % (begin, left, end)

    def _say(self, dialect: str, now: float, wall: float) -> None:
        seconds = self.meter.resets(now)
        if dialect == "anthropic":
            name = b"anthropic-ratelimit-" + self.limit.unit.replace("_", "-").encode()
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ceil(wall + seconds))).encode()
            self._end = (
                b"%b-limit: %d\r\n%b-remaining: " % (name, self.amount, name),
                b"\r\n%b-reset: %b\r\n" % (name, moment),
            )
        else:
            kind = b"requests" if self.counts else b"tokens"
            self._end = (
                b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: " % (kind, self.amount, kind),
                b"\r\nx-ratelimit-reset-%b: %b\r\n" % (kind, _duration(ceil(seconds))),
            )
        self._said_for = dialect
        self._said_until = min(self.meter.until, now + seconds - ceil(seconds) + 1)

    def refusal(self, need: int, admission: Admission, entry: str | None, now: float, wall: float) -> Failure:
        """Why so much more may not be used. `entry` is the model's, once that is known."""
        limit, meter = self.limit, self.meter
        used = meter.used(now)
        left = max(self.amount - used, 0)
        wait = meter.frees(used + need - self.amount, now)
        is_hopeless = not self.is_one and need > self.amount
        is_used_up = isinstance(limit.window, str) and wait < inf
        if wait == inf:
            wait = SOON
        lines = retry_lines(wait)
        if is_used_up or is_hopeless:
            lines.append(b"x-should-retry: false")
        if self.shows:
            lines += self.lines(left, admission.dialect, now, wall - now).split(b"\r\n")[:-1]
        who = whose(limit, admission, entry)
        if limit.unit == CONCURRENCY:
            message = f"{who} may have {limit.amount} requests under way, and has; try again when one has ended"
        elif is_hopeless:
            message = (
                f"this request may use {said(limit, need)}, and {who} may use {said(limit, limit.amount)} "
                f"{_per(limit)}; send less, or bound the answer (max_tokens)"
            )
        elif self.is_one:
            message = (
                f"{who} may make {said(limit, limit.amount)} {_per(limit)}, and has; try again in {wait_text(wait)}"
            )
        else:
            message = (
                f"{who} may use {said(limit, limit.amount)} {_per(limit)}; {said(limit, left)} are left, and this "
                f"request may use {said(limit, need)}; try again in {wait_text(wait)}"
            )
        kind = INSUFFICIENT_QUOTA if is_used_up else RATE_LIMIT_EXCEEDED
        return Failure(kind, message, limit=limit.label, lines=tuple(lines))


def bind(meters: Meters, limit: Limit, subject: bytes) -> Allowance:
    """The allowance of one subject: of a limit whose identity says already whose it is, that is b""."""
    digest = digest_of(limit.identity + b"\0" + subject)
    window = limit.window
    meter: Meter
    if window is None:
        meter = Level(meters, OPEN if limit.is_open else NAMED, digest)
    elif isinstance(window, str):
        meter = Calendar(meters, OPEN if limit.is_open else CALENDAR, digest, _SPANS[window])
    else:
        span = max(round(window * 1000), 1)
        meter = Sliding(meters, OPEN if limit.is_open else NAMED, digest, span)
    return Allowance(limit, meter)


def without_limits(prefix: bytes) -> bytes:
    """A response's head without what the provider says of its own limits."""
    if prefix.find(b"imit-") < 0 and prefix.find(b"IMIT-") < 0:
        return prefix
    lines = prefix.split(b"\r\n")
    return b"\r\n".join([line for line in lines if not line.lower().startswith(_OF_LIMITS)])


def whose(limit: Limit, admission: Admission, entry: str | None) -> str:
    key = admission.key
    match limit.per:
        case "key":
            return "requests without a key" if key is None else f"the API key {key.name!r}"
        case "group":
            return "keys without a group" if key is None or key.group is None else f"the group {key.group!r}"
        case "rule":
            return f"the rule {admission.found.rule.name!r}"
        case "model":
            return "requests without a model" if entry is None else f"the model {entry!r}"
        case "ip":
            return "one address"
        case "gateway":
            return "the gateway"
    return f"one value of the header {limit.header.decode()}"


def said(limit: Limit, count: int) -> str:
    """An amount with its unit."""
    if limit.unit == COST:
        return f"${count / 1e9:.6f}".rstrip("0").rstrip(".")
    return f"{count} {limit.unit.replace('_', ' ')}"


def retry_lines(seconds: float) -> list[bytes]:
    """Header lines that say when it is worth another try."""
    return [b"retry-after: %d" % max(ceil(seconds), 1), b"retry-after-ms: %d" % max(ceil(seconds * 1000), 1)]


def wait_text(seconds: float) -> str:
    return _duration(ceil(seconds)).decode()


def _per(limit: Limit) -> str:
    return f"a {limit.window}" if isinstance(limit.window, str) else f"in {_duration(limit.window or 0).decode()}"


def _duration(seconds: float) -> bytes:
    """As OpenAI has it, and Go: 1h0m0s, 6m0s, 1s, 250ms."""
    if seconds < 1:
        return b"%dms" % round(seconds * 1000)
    whole, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(whole), 60)
    text = f"{rest:g}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return (f"{hours}h{text}" if hours else text).encode()
