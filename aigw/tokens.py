"""How many tokens an exchange used, by class, as the provider counts them.

A value and no more: who reads it off an answer stands in `providers`, who adds it up and what it costs elsewhere.
Providers draw their classes differently: OpenAI's `input` holds what was cached and its `output` the reasoning,
Anthropic's `input` leaves cache reads and writes out, Gemini's `output` leaves reasoning out. Nothing is evened out
here, so that the numbers can be held against the provider's bill; `beside` says which way it was.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# What is told of them, by the names of the access log and the metrics.
CLASSES: Final = ("input", "output", "cached", "cache_write", "reasoning", "audio")
# Which classes lie beside those that hold them otherwise; they are added up.
CACHE_BESIDE: Final = 1  # what was cached or written to the cache is not in `input`
REASONING_BESIDE: Final = 2  # reasoning is not in `output`


class Tokens(NamedTuple):
    """Counts, 0 or more; None where the provider said nothing of that class (which is not 0).

    `audio` is of both directions together. What stands behind it is for the bill alone: how much of that went out, and
    how much of `cache_write` was written for an hour. One is made for every answer, which a frozen dataclass would make
    three times as dear.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    audio: int | None = None
    audio_output: int | None = None
    cache_write_1h: int | None = None
    beside: int = 0

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
            self.audio_output if later.audio_output is None else later.audio_output,
            self.cache_write_1h if later.cache_write_1h is None else later.cache_write_1h,
            self.beside | later.beside,  # a report without cached tokens does not tell where they would be
        )

    def known(self) -> dict[str, int]:
        """The counts that are known, by their names in the access log."""
        return {name: count for name, count in zip(CLASSES, self, strict=False) if count is not None}


NO_TOKENS: Final = Tokens(0, 0)  # of an answer that used none
