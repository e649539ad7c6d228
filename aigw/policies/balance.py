"""Which of several targets is next: the arithmetic of each balance.

All take the weights of the targets that are left to choose from, each at least 1, and answer an index. What runs at a
target is its load: exchanges that hold or await a connection to it, in all workers. Who is left is `route`'s decision;
chance, counts and the text that is hashed are the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from math import ceil, log
from typing import Final

# Times the fair share that one target may have in flight before what is hashed to it goes on to the next (Mirrokni,
# Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2016).
SLACK: Final = 1.25
# Multiples of it fall evenly into the unit interval, however many there are (Weyl).
_GOLDEN: Final = 0.6180339887498949
_ONE: Final = 1 << 64


def turn(weights: Sequence[int], cursor: int) -> int:
    """By weight, over any run of cursors: for the turns of those that are out, shared out among the others."""
    return by_weight(weights, cursor * _GOLDEN % 1.0)


def by_weight(weights: Sequence[int], draw: float) -> int:
    """`draw` is from [0, 1)."""
    rest = draw * sum(weights)
    for index, weight in enumerate(weights):
        rest -= weight
        if rest < 0.0:
            return index
    return len(weights) - 1  # a draw so near to 1 that it was rounded up


def least(weights: Sequence[int], loads: Sequence[int], first: int) -> int:
    """The least load by weight, the exchange that is about to go there included; `first` turns the order, so that
    equals take turns."""
    count = len(weights)
    order = [(first + step) % count for step in range(count)]
    return min(order, key=lambda index: (loads[index] + 1) / weights[index])


def two(weights: Sequence[int], draw: float, other: float) -> tuple[int, int]:
    """Two different ones, by weight."""
    one = by_weight(weights, draw)
    rest = [*weights[:one], *weights[one + 1 :]]
    second = by_weight(rest, other)
    return one, second + (second >= one)


def lesser(weights: Sequence[int], loads: Sequence[int], one: int, other: int) -> int:
    """The one of two with less load for its weight. Among equals the first, which was drawn by weight."""
    return other if loads[other] * weights[one] < loads[one] * weights[other] else one


def ranked(names: Sequence[str], weights: Sequence[int], text: bytes) -> list[int]:
    """Rendezvous hashing by weight: all of them, the home of `text` first (1 us for each).

    The same in every process. A target that comes or goes moves only what is at home there, and what would have been
    goes to the others by their weights.
    """

    def score(index: int) -> float:
        seed = names[index].encode()
        drawn = int.from_bytes(blake2b(text, digest_size=8, key=seed).digest(), "little")
        return log((drawn + 1) / (_ONE + 1)) / weights[index]

    return sorted(range(len(names)), key=score, reverse=True)


def bounded(order: Sequence[int], weights: Sequence[int], loads: Sequence[int]) -> int:
    """The first in `order` that has not its fill: SLACK times its share of all that is in flight with this one."""
    share = SLACK * (sum(loads) + 1) / sum(weights)
    return next(index for index in order if loads[index] < ceil(share * weights[index]))
