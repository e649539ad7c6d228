"""When a target that fails rests, and for how long: the arithmetic, for one target as one worker sees it.

Failures in a row let it rest; each time that it fails again soon after it was back, twice as long, up to a bound. What
it says itself of when to come back (`Retry-After`) is obeyed up to the same bound. Moments are monotonic seconds that
the caller brings; whether there is another target to ask instead is the caller's to know.
"""

from __future__ import annotations

from typing import Final

# Times the first rest that none is longer than: five minutes where it is half a minute.
LONGEST: Final = 10


class Ejection:
    """`until` is when the target is back; it is out until then. 0.0: it never was."""

    __slots__ = ("_after", "_in_a_row", "_last", "_seconds", "until")

    def __init__(self, after: int, seconds: float) -> None:
        """Rests after that many failures in a row, for `seconds` the first time."""
        self._after = after
        self._seconds = seconds
        self._in_a_row = 0
        self._last = 0.0  # seconds of the last rest
        self.until = 0.0

    def __repr__(self) -> str:
        return f"<Ejection {self._in_a_row} of {self._after} in a row, until {self.until:g}>"

    def change(self, after: int, seconds: float) -> None:
        """Other numbers, from the next failure on."""
        self._after = after
        self._seconds = seconds

    def succeeded(self) -> None:
        self._in_a_row = 0

    def failed(self, now: float) -> bool:
        """Whether it is to rest now. What fails while it rests was under way before, and says nothing new."""
        if now < self.until:
            return False
        self._in_a_row += 1
        return self._in_a_row >= self._after

    def rest(self, now: float) -> float:
        """Lets it rest; answers for how many seconds. Once it is back, one failure is enough until one success."""
        longest = self._seconds * LONGEST
        is_again = self._last > 0.0 and now < self.until + self._last
        seconds = min(self._last * 2 if is_again else self._seconds, longest)
        self._last = seconds
        self._in_a_row = self._after - 1
        self.until = now + seconds
        return seconds

    def bounded(self, seconds: float) -> float:
        """For how long it may rest because it says so."""
        return min(seconds, self._seconds * LONGEST)
