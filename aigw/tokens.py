"""How many tokens an exchange used, by class, as the provider counts them.

A value and no more: who reads it off an answer stands in `providers`, who adds it up and what it costs elsewhere.
Providers draw their classes differently: OpenAI's `input` holds what was cached and its `output` the reasoning,
Anthropic's `input` leaves cache reads and writes out, Gemini's `output` leaves reasoning out. Nothing is evened out
here, so that the numbers can be held against the provider's bill.
"""

from __future__ import annotations

from typing import NamedTuple


class Tokens(NamedTuple):
    """Counts, 0 or more; None where the provider said nothing of that class (which is not 0).

    `audio` is of both directions together. One is made for every answer, which a frozen dataclass of six fields would
    make three times as dear.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    audio: int | None = None

    def updated(self, later: Tokens) -> Tokens:
        """What is known after a later report of the same answer: its counts, and for what it leaves out, ours.

        Reports within one answer are cumulative with every provider, so nothing is ever added up.
        """
        return Tokens(
            self.input if later.input is None else later.input,
            self.output if later.output is None else later.output,
            self.cached if later.cached is None else later.cached,
            self.cache_write if later.cache_write is None else later.cache_write,
            self.reasoning if later.reasoning is None else later.reasoning,
            self.audio if later.audio is None else later.audio,
        )

    def known(self) -> dict[str, int]:
        """The counts that are known, by their names in the access log."""
        return {name: count for name, count in zip(self._fields, self, strict=True) if count is not None}
