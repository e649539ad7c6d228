"""What a piece of code costs in CPU time, judged so that neither the machine nor what else runs on it decides.

A clock of CPU time still depends on the processor, on the interpreter's build, on caches that others fill, and three
to five times on coverage's tracer. So the tracer is off while something is measured, the best of a few tries counts,
and what is judged is how the cost grows with the size, or seconds of a machine as fast as the one that marks are for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TRIES = 3
TIMES = 10  # larger
# What that may cost: 10 times where it is linear, 100 where it is quadratic.
MOST = 30
UNSEEN = 0.005  # seconds; what costs less at the larger size harms nobody, and cannot be told from the clock's noise
STEPS = 100_000
REFERENCE = 0.010  # seconds that `yardstick` takes on two-core x86-64 of 2023 with Debian's CPython 3.11


@contextmanager
def untraced() -> Iterator[None]:
    """Coverage is not measured on this thread meanwhile."""
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)


def seconds(work: Callable[[], object]) -> float:
    """Of CPU, of this thread."""
    with untraced():
        began = time.thread_time()
        work()
        return time.thread_time() - began


def assert_linear(prepare: Callable[[int], Callable[[], object]], size: int) -> None:
    """`prepare` makes the work of a size; that of `size` costs about `TIMES` that of a `TIMES`th of it."""
    small, large = prepare(size // TIMES), prepare(size)
    for _ in range(TRIES):
        least = min(seconds(small) for _ in range(TRIES))
        most = seconds(large)
        if most < max(MOST * least, UNSEEN):
            return
    raise AssertionError(f"{most:.3f} s of CPU, where a {TIMES}th of it takes {least:.4f} s")


def slowness() -> float:
    """How many times longer than on the machine that marks are for the interpreter takes here and now; at least 1."""
    return max(1.0, min(seconds(_yardstick) for _ in range(TRIES)) / REFERENCE)


def _yardstick() -> None:
    found: dict[int, bytes] = {}
    for step in range(STEPS):
        found[step & 255] = b"%d" % step
