"""More than one attempt: whether another follows one that failed, where it goes, and when.

Only an exchange for which a `retry`, a `fallback` or a `first_token` is configured has a `Trying`. The decision is one
ladder of reasons not to, `Trying.next`: nothing of an answer was sent, the outcome is one of `retry.when`, the body was
kept, time is left, and there is a place to go. First another target of the same upstream, or the same one after a
pause, as often as `attempts` says and the upstream's budget allows; then the next model of the fallbacks.

Which target that is, `route.choose` knows; how an attempt is made, the exchange.
"""

from __future__ import annotations

from random import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from aigw.admit import fitted, is_bound
from aigw.config.retry import CONTEXT
from aigw.config.snapshot import Resolved
from aigw.config.upstreams import Candidate
from aigw.errors import Failure
from aigw.forward import response_prefix
from aigw.proxy.ending import settle_attempt
from aigw.proxy.states import Body, Deadline
from aigw.route import choose, speaks
from aigw.tokens import NO_TOKENS, Tokens
from aigw.wire.fields import retry_after
from aigw.wire.head import ResponseHead

if TYPE_CHECKING:
    from aigw.proxy.exchange import Exchange

UPLOADED: Final = Body.UPLOADED
NEVER: Final = float("inf")

# Seconds before the same target is asked again, doubled each time up to the most; a random half of it is left out, so
# that those that failed together do not come back together.
PAUSE: Final = 0.25
LONGEST_PAUSE: Final = 2.0
# What a target may ask for by `retry-after`, to be waited for here; OpenAI's SDKs take no longer time for reasonable
# either. What asks for more is told to the client.
LONGEST_WAIT: Final = 60.0


class Budget:
    """How many retries of one upstream a worker may make: a share of its requests; and where there are few of those, a
    few at once, which come back by one a second. What is saved up in good times is bounded, since it is spent in a
    storm."""

    __slots__ = ("_at", "_left")

    FLOOR: Final = 10.0
    MOST: Final = 100.0

    def __init__(self, now: float) -> None:
        self._left = self.FLOOR
        self._at = now

    def add(self, share: float) -> None:
        """A request was made."""
        self._left = min(self._left + share, self.MOST)

    def take(self, share: float, now: float) -> bool:
        """Whether there may be a retry; if so, it is counted off."""
        if not share:
            return False
        if self._left < self.FLOOR:
            self._left = min(self._left + now - self._at, self.FLOOR)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Next(NamedTuple):
    """Another attempt: of `resolved` the candidate, at `due` in monotonic seconds (0.0: at once)."""

    resolved: Resolved
    candidate: Candidate
    due: float


class Trying:
    """The attempts of one exchange: those that were made, and what is left."""

    __slots__ = (
        "_began",
        "_body",
        "_exchange",
        "_fallbacks",
        "_is_bound",
        "_left",
        "_note",
        "_plan",
        "_resolved",
        "_streams",
        "_token_at",
        "_tried",
        "is_kept",
        "made",
    )

    def __init__(self, exchange: Exchange, resolved: Resolved, whole: bytes, members: dict[str, Any] | None) -> None:
        """`whole` is the body as the client sent it, where it is read for a model, and `members` its JSON object."""
        plan = resolved.plan
        admission = exchange.admission
        assert plan is not None
        # wiring
        self._exchange = exchange
        self._plan = plan
        # the request
        self._body = whole
        # The body, so that it may be sent again. What is passed on of a form has a model's name in it already.
        self.is_kept = exchange.upload is None or admission.source != "form"
        endpoint = admission.found.endpoint
        self._is_bound = endpoint.kind == "resource" or (members is not None and is_bound(whole, members))
        path = admission.found.path
        self._streams = (
            members.get("stream") is True if members is not None else path.endswith(b":streamGenerateContent")
        )
        # what is left
        self._fallbacks = [one for one in plan.fallbacks if speaks(one, admission.found, admission.dialect)]
        self._resolved = resolved
        self._left = 0
        self._tried: list[Candidate] = []
        # what was made
        self.made: list[tuple[str, str, float]] = []  # target, outcome, milliseconds
        self._note = ""  # why none followed the last one, though its outcome asks for it
        self._began = 0.0  # monotonic seconds: the attempt under way, or the one to come; 0.0: none
        self._token_at = NEVER  # when the content of a stream has to have begun

    def __repr__(self) -> str:
        return f"<Trying {len(self.made)} made {self._left} left {len(self._fallbacks)} fallbacks>"

    @property
    def reads_errors(self) -> bool:
        """Whether the body of a 400 has to be looked at."""
        return self._plan.retry.reads_errors

    # an attempt under way -----------------------------------------------------------------------------------------

    def begin(self, resolved: Resolved, candidate: Candidate, now: float) -> None:
        """An attempt begins: the first one, or the one that `next` said."""
        retry = self._plan.retry
        if not self._tried or resolved is not self._resolved:
            self._resolved = resolved
            self._left = retry.attempts
            self._tried = []
            self._exchange.gateway.budget(resolved.upstream.name).add(retry.budget)
        self._left -= 1
        self._tried.append(candidate)
        self._began = now

    def sent(self, now: float) -> None:
        """The request is on its way."""
        candidate = self._exchange.candidate
        assert candidate is not None
        seconds = self._plan.first_token or candidate.target.upstream.timeouts.first_token
        self._token_at = NEVER if seconds is None else now + seconds
        if self._streams:
            self.hurry()

    def hurry(self) -> None:
        """Let the deadline of the first content run, where it comes before the one that runs."""
        client = self._exchange.client
        if self._token_at < client.deadline:
            client.run(Deadline.FIRST_TOKEN, self._token_at)

    def waits(self) -> None:
        """Another deadline was set while the answer is awaited."""
        if self._streams:
            self.hurry()

    # after it -----------------------------------------------------------------------------------------------------

    def next(self, cause: str, status: int, now: float, response: ResponseHead | None = None) -> Next | None:
        """What follows an attempt that ended so; None: what it ended with is the answer.

        `cause` and `status` are as in `Retry.takes`, `response` is the answer where there is one.
        """
        exchange = self._exchange
        if exchange.status or not self._plan.retry.takes(cause, status):
            return None
        if exchange.body is not UPLOADED or not self.is_kept:
            self._note = "the body was not kept, so it cannot be sent again"
            return None
        if now >= exchange.client.total:
            return None
        again = None
        if cause != CONTEXT:  # which would be the same again
            asked = None if response is None else retry_after(response.kept, exchange.gateway.wall(now))
            again = self._same_upstream(cause, asked, now)
        return again or self._other_model()

    def _same_upstream(self, cause: str, asked: float | None, now: float) -> Next | None:
        exchange = self._exchange
        if not self._left:
            return None
        last = self._tried[-1]
        # What is bound to a provider's state stays where that is.
        chosen = last if self._is_bound else choose(self._resolved, exchange.gateway, self._tried, exchange)
        if isinstance(chosen, Failure):
            if chosen.limit:
                self._note = chosen.message
            return None
        if self._is_bound and last.is_limited and exchange.gateway.full(last, exchange) is not None:
            self._note = "there is no room left within the limits of its target"
            return None
        due = 0.0
        if chosen in self._tried:
            wait = min(PAUSE * 2 ** (len(self._tried) - 1), LONGEST_PAUSE) * (1 + random()) / 2
            wait = max(wait, asked or 0.0)
            due = now + wait
            if wait > (LONGEST_PAUSE if self._fallbacks and not self._is_bound else LONGEST_WAIT):
                self._note = f"the upstream asks to wait {wait:g} s"
                return None
            if due >= exchange.client.total:
                self._note = "there is no time left for a pause (timeouts.total)"
                return None
        # Who could not be connected to had no request, so that nothing is multiplied.
        retry = self._plan.retry
        if cause != "connect" and not exchange.gateway.budget(self._resolved.upstream.name).take(retry.budget, now):
            self._note = "the retries of the upstream are used up (retry.budget)"
            return None
        return Next(self._resolved, chosen, due)

    def _other_model(self) -> Next | None:
        gateway = self._exchange.gateway
        while self._fallbacks and not self._is_bound:
            resolved = self._fallbacks.pop(0)
            chosen = choose(resolved, gateway, (), self._exchange)
            if not isinstance(chosen, Failure):
                gateway.advance(resolved.upstream)
                return Next(resolved, chosen, 0.0)
        return None

    def go(
        self, following: Next, outcome: str, cause: str, status: int, now: float, used: Tokens | None = NO_TOKENS
    ) -> None:
        """Make the attempt that `next` said after one that ended so, and `used` as much: nothing where it was answered
        with an error, None where nobody knows."""
        exchange = self._exchange
        before = exchange.candidate
        assert before is not None
        self._note = ""
        self._end(outcome, now)
        exchange.gateway.counters.tried(before.target.upstream.name, status, cause)
        settle_attempt(exchange, used, now)
        candidate = following.candidate
        if candidate.is_limited:
            exchange.take(candidate)
        exchange.tap = exchange.first = exchange.tokens = None
        exchange.head_at = 0.0
        if candidate is not before and self._body:
            exchange.whole, exchange.patched = fitted(exchange.admission, self._body, candidate)
        self.begin(following.resolved, candidate, following.due or now)
        exchange.attempt(candidate, following.due)

    def _end(self, outcome: str, now: float) -> None:
        candidate = self._exchange.candidate
        if candidate is not None and 0.0 < self._began <= now:
            target = candidate.target.text.decode()
            self.made.append((target, outcome, max(now - self._began, 0.0) * 1e3))
        self._began = 0.0

    # the answer ---------------------------------------------------------------------------------------------------

    def answered(self, response: ResponseHead) -> ResponseHead:
        """The head that is relayed, with what it says of the attempts; what was kept for others is let go."""
        exchange = self._exchange
        self._body = exchange.whole = b""
        if exchange.upload is not None:
            exchange.upload.forget()
        if not self.made:
            return response
        candidate = exchange.candidate
        assert candidate is not None
        told = response.copied()
        if response.status >= 400:
            told.kept = [line for line in response.kept if line[:15].lower() != b"x-should-retry:"]
            told.kept.append(NO_RETRY)
        told.prefix = response_prefix(
            told, candidate, says_aigw=exchange.snapshot.says_aigw, attempts=len(self.made) + 1
        )
        told.candidate = candidate
        return told

    def lines(self, now: float) -> list[bytes]:
        """Header lines of the gateway's own answer."""
        if not self.made:
            return []
        attempts = len(self.made) + (0.0 < self._began <= now)
        said = [b"x-aigw-attempts: %d" % attempts] if self._exchange.snapshot.says_aigw else []
        return [NO_RETRY, *said]

    def told(self, outcome: str, now: float) -> list[dict[str, Any]]:
        """The attempts for the log, the last of which ended so; none where there is nothing to tell."""
        self._end(outcome, now)
        if len(self.made) < 2 and not self._note:
            return []
        told: list[dict[str, Any]] = [
            {"target": target, "outcome": ended, "ms": round(milliseconds, 3)}
            for target, ended, milliseconds in self.made
        ]
        if self._note and told:
            told[-1]["note"] = self._note
        return told


# An SDK that obeys it does not multiply the attempts that were made here.
NO_RETRY: Final = b"x-should-retry: false"
