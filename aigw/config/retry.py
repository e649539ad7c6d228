"""What is tried again, as the config says it: how often, after which outcomes, and how many retries there may be.

An outcome has a *cause*, a word such as `connect`, or none, and a *status*: its own, or the one the gateway would
answer with. A word of `when` singles out a cause, a number or a class matches the status. No clock and no socket here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

# The words that `when` may hold besides statuses; their meaning is with the errors that have them (`errors.Kind`).
CONTEXT: Final = "context_length_exceeded"
CREDENTIAL: Final = "upstream_credential_refused"


class Retry:
    """`attempts` are tries of one upstream, the first included; `budget` is the share of retries in its requests."""

    __slots__ = ("_causes", "_statuses", "attempts", "budget", "reads_errors", "when")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.attempts: int = spec["attempts"]
        self.budget: float = spec["budget"]
        self.when: tuple[str, ...] = tuple(spec["when"])
        self._causes = frozenset(word for word in self.when if not word[0].isdigit())
        numbers = [word for word in self.when if word[0].isdigit()]
        classes = {word[0] for word in numbers if word.endswith("xx")}
        self._statuses = frozenset(int(word) for word in numbers if not word.endswith("xx")) | {
            status for status in range(400, 600) if str(status)[0] in classes
        }
        self.reads_errors = CONTEXT in self._causes  # whether the body of a 400 has to be looked at

    def __repr__(self) -> str:
        return f"<Retry {self.attempts} when {', '.join(self.when) or 'never'}>"

    def takes(self, cause: str, status: int) -> bool:
        """Whether an attempt that ended so is followed by another. A refused credential is the operator's business,
        and 502 only because the answer is kept from the client: it has to be named."""
        return cause in self._causes or (status in self._statuses and cause != CREDENTIAL)


# Of a model with `fallback`, where no retry is configured for the request at all.
FALLBACK: Final = Retry({"attempts": 1, "when": ["connect", "first_byte", "429", "5xx"], "budget": 0.2})
# Of a request that has nothing but a `first_token` deadline.
NEVER: Final = Retry({"attempts": 1, "when": [], "budget": 0.0})
