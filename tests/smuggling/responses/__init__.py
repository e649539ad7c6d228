"""The corpus of hostile and odd responses, by subject."""

from __future__ import annotations

from . import ends, framing, heads, odd
from .case import Case

CASES: list[Case] = heads.CASES + framing.CASES + ends.CASES + odd.CASES
