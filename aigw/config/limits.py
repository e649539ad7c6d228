"""Limits as the config has them: what may be used, by whom, in which time; and which of them apply to a request.

What is used already is the business of `meters`, what happens above an amount that of `policies.limits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aigw.config.snapshot import GatewaySpec, Key, Rule

REQUESTS: Final = "requests"
CONCURRENCY: Final = "concurrency"
COST: Final = "cost"
# Units of which a request uses one. How much of the others is guessed once the body says how long the answer may be,
# and known at the end.
ONE: Final = frozenset({REQUESTS, CONCURRENCY})


class Limit:
    """One item of a `limits`. Amounts are whole numbers; money is in nano-dollars.

    `identity` is what its meters are known by, together with whose allowance it is: everything but the amount, so that
    a changed amount keeps the window.
    """

    __slots__ = (
        "amount",
        "header",
        "identity",
        "is_open",
        "label",
        "of_head",
        "per",
        "shadow",
        "text",
        "unit",
        "window",
    )

    def __init__(self, on: str, names: Sequence[str], spec: Mapping[str, Any]) -> None:
        """`on` is the kind of what it stands on, `names` the way there: gateway and rule, for instance."""
        self.unit: str = spec["unit"]
        self.amount: int = spec["amount"]
        self.window: float | str | None = spec["window"]  # seconds, "day" or "month"; None for a level
        self.per: str = spec["per"]
        self.shadow: bool = spec["shadow"]  # it only counts what it would refuse
        self.header = self.per[7:].encode() if self.per.startswith("header:") else b""
        self.is_open = self.per == "ip" or bool(self.header)  # clients can make subjects as they like
        self.of_head = self.unit in ONE and self.per != "model" and on != "model"
        window = _window_text(self.window)
        kind = [on, *names, self.unit, window, self.per, "shadow" if self.shadow else ""]
        self.identity = "\0".join(kind).encode()
        what = f"{self.unit}/{window}" if window else self.unit
        self.text = f"{what} per {self.per}" + ("" if self.per == on else f" on {on}")  # for who sees where it stands
        # For log and metrics, which say gateway, rule, key and model, but not who would have been asked.
        self.label = f"{self.text} {'/'.join(names)}" if on in ("upstream", "target") else self.text

    def __repr__(self) -> str:
        return f"<Limit {self.amount} {self.label}{' shadow' if self.shadow else ''}>"


def limits_of(on: str, names: Sequence[str], specs: Iterable[Mapping[str, Any]]) -> tuple[Limit, ...]:
    return tuple(Limit(on, names, spec) for spec in specs)


def of_all(gateway: GatewaySpec, rule: Rule, key: Key | None) -> list[Limit]:
    """What applies whatever the model: of gateway, rule and key."""
    found = [*gateway.limits, *rule.limits]
    return found if key is None else [*without(found, key), *key.limits]


def without(limits: Iterable[Limit], key: Key) -> list[Limit]:
    """Those that the key does not replace by limits of its own."""
    return [limit for limit in limits if limit.per != "key" or limit.unit not in key.replaces]


def replaced(limits: Iterable[Limit]) -> frozenset[str]:
    """Units of which a key with these limits of its own inherits no `per: key` limit. What only counts takes no
    other's place."""
    return frozenset(limit.unit for limit in limits if limit.per == "key" and not limit.shadow)


def _window_text(window: float | str | None) -> str:
    """As people write it: 1h, 10m, 30s, 250ms, day."""
    if window is None or isinstance(window, str):
        return window or ""
    for unit, seconds in (("h", 3600), ("m", 60), ("s", 1)):
        if window % seconds == 0:
            return f"{int(window // seconds)}{unit}"
    return f"{window * 1000:g}ms"
