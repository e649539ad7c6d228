"""Features to come: keys that are validated like everything else and then refused, so that nothing is silently ignored.

The table is the whole of it. A feature that arrives deletes its lines.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aigw.config.problem import Finding
from aigw.config.walk import select


@dataclass(frozen=True, slots=True)
class Later:
    """A feature to come: where its key stands (`*` for any name), and which values ask for it."""

    pattern: str
    feature: str
    asked: Callable[[object], bool] = lambda value: True


LATER = (
    Later("upstreams.*.limits", "limiting upstreams is", bool),
    Later("upstreams.*.targets.*.limits", "limiting targets is", bool),
)


def not_yet(raw: object) -> list[Finding]:
    return [
        Finding(path, f"{later.feature} not available yet; leave it out", at_key=True)
        for later in LATER
        for path, value in select(raw, later.pattern)
        if later.asked(value)
    ]
