"""What an exchange cost: prices per token, where they come from, and how the classes of tokens share one bill.

Money is integers: a price is pico-dollars (10**-12) per token, which every price in dollars per million tokens with up
to six decimals is exactly; an exchange is rounded once, to nano-dollars. Classes overlap as `Tokens.beside` says, and
are billed apart: a cached token is not an input token as well, nor a reasoning token an output token. It knows no
config and no socket, and reads no clock: prices that depend on the hour are not told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final

from aigw.pricelist import LISTS, PriceList
from aigw.tokens import CACHE_BESIDE, REASONING_BESIDE, Tokens

_NEVER: Final = 1 << 62
# A date, as providers write one behind a name that means the same without it: gpt-4o-2024-08-06,
# claude-opus-4-5-20251101, claude-sonnet-4@20250514, gemini-2.0-flash-001.
_DATED: Final = re.compile(r"(.+)(?:-\d{4}-\d\d-\d\d|[-@]\d{8}|-00\d)")


class Price:
    """What one model costs: pico-dollars per token of each class.

    A class without a price of its own costs what its tokens cost otherwise: cached and written ones as input, those
    written for an hour as written ones, reasoning as output, audio as text. `long` holds instead where the prompt is
    longer than `above` tokens.
    """

    __slots__ = (
        "above",
        "audio_input",
        "audio_output",
        "cache_write",
        "cache_write_1h",
        "cached",
        "input",
        "long",
        "output",
        "reasoning",
    )

    def __init__(self, dollars: Mapping[str, float | None], above: int = _NEVER, long: Price | None = None) -> None:
        """`dollars` per million tokens, by the names of the attributes; None is as if it were not there."""
        self.input = _pico(dollars.get("input"), 0)
        self.cached = _pico(dollars.get("cached"), self.input)
        self.cache_write = _pico(dollars.get("cache_write"), self.input)
        self.cache_write_1h = _pico(dollars.get("cache_write_1h"), self.cache_write)
        self.audio_input = _pico(dollars.get("audio_input"), self.input)
        self.output = _pico(dollars.get("output"), 0)
        self.reasoning = _pico(dollars.get("reasoning"), self.output)
        self.audio_output = _pico(dollars.get("audio_output"), self.output)
        self.above = above
        self.long = self if long is None else long

    def __repr__(self) -> str:
        return f"<Price {self.input / 1e6:g} in {self.output / 1e6:g} out>"

    def cost(self, tokens: Tokens) -> int:
        """Nano-dollars of what a provider reported: of the classes it told of, none twice.

        A part that is larger than what it is said to be part of counts no further than that.
        """
        came_in, went_out, cached, written, reasoning, audio, audio_out, hour, beside = tokens
        came_in = prompt = came_in or 0
        went_out = went_out or 0
        cached = cached or 0
        written = written or 0
        if cached or written:
            if beside & CACHE_BESIDE:
                prompt += cached + written
            else:
                cached = min(cached, came_in)
                written = min(written, came_in - cached)
                came_in -= cached + written
        price = self if prompt <= self.above else self.long
        pico = came_in * price.input + went_out * price.output
        if cached or written:
            pico += cached * price.cached + written * price.cache_write
            if hour:
                pico += min(hour, written) * (price.cache_write_1h - price.cache_write)
        if reasoning:
            if beside & REASONING_BESIDE:
                pico += reasoning * price.reasoning
            else:
                pico += min(reasoning, went_out) * (price.reasoning - price.output)
        if audio:
            audio_out = min(audio_out or 0, audio)
            pico += min(audio - audio_out, came_in) * (price.audio_input - price.input)
            pico += min(audio_out, went_out) * (price.audio_output - price.output)
        return (pico + 500) // 1000


class Prices:
    """The prices that apply at one host: those of the config, whatever the host, over those of its provider's list."""

    __slots__ = ("_lists",)

    def __init__(self, own: Mapping[str, Price], host: str) -> None:
        found = list_of(host)
        self._lists = (own,) if found is None else (own, _read(found))

    def find(self, model: str) -> Price | None:
        """The price of a model by the name that the provider gets; None where it is not known.

        A name must stand in a list, with its date or without: of names that merely begin alike, such as gpt-5 and
        gpt-5-mini, each has a price of its own, and one that nobody listed has none.
        """
        dated = _DATED.fullmatch(model)
        for name in (model,) if dated is None else (model, dated[1]):
            for prices in self._lists:
                price = prices.get(name)
                if price is not None:
                    return price
        return None


def list_of(host: str) -> PriceList | None:
    """The list of the provider that answers at a host."""
    for found in LISTS:
        if host in found.hosts:
            return found
    return None


@cache
def _read(prices: PriceList) -> Mapping[str, Price]:
    columns = prices.columns.split()
    rows: list[tuple[str, dict[str, float]]] = []
    for line in prices.lines.split("\n"):
        name, *numbers = line.split() or [""]
        if name:
            dollars = {c: float(n) for c, n in zip(columns, numbers, strict=True) if n != "-"}
            rows.append((name, dollars))
    found: dict[str, Price] = {}
    above, long = _NEVER, None
    for name, dollars in reversed(rows):  # so that what begins with > comes before what it belongs to
        if name[0] == ">":
            above, long = int(name[1:]), Price(dollars)
        else:
            price = Price(dollars, above, long)
            above, long = _NEVER, None
            found.update(dict.fromkeys(name.split(","), price))
    return found


def _pico(dollars: float | None, otherwise: int) -> int:
    """Dollars per million tokens -> pico-dollars per token."""
    return otherwise if dollars is None else round(dollars * 1e6)
