"""Plain values: when two are the same, and which can stand in a config at all.

A value is what JSON holds (dict, list, str, int, float, bool, None), or what the loader hands out (`Plain` for unquoted
text), or a mixture. This module knows nothing of the text that is edited.
"""

import math
import re

from aigw.config.loader import MAX_DEPTH
from aigw.config.values import Plain, is_null

__all__ = ["check", "same", "typed"]

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_MAX_KEY = 1000  # characters; YAML looks no further than 1,024 for a colon


def typed(value: object) -> object:
    """A scalar as JSON has it: unquoted numbers, booleans and nulls as such, all other text as text."""
    if not isinstance(value, Plain):
        return value
    if is_null(value):
        return None
    if value in ("true", "false"):
        return value == "true"
    if _INTEGER.fullmatch(value):
        return int(value) if len(value) < 400 else str(value)
    return float(value) if _DECIMAL.fullmatch(value) else str(value)


def same(left: object, right: object) -> bool:
    """True if both say the same: as JSON, whatever the order of members; unquoted `5` is the number 5."""
    if left is right:
        return True
    if isinstance(left, dict):
        if not isinstance(right, dict) or left.keys() != right.keys():
            return False
        return all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(right, dict | list):
        return False
    left, right = typed(left), typed(right)
    return left == right and _kind(left) is _kind(right)


def _kind(value: object) -> type:
    return float if type(value) is int else str if isinstance(value, str) else type(value)


def check(value: object, depth: int = 0) -> None:
    """Raises: ValueError, where a value cannot stand in a config, with the reason."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a value is nested more than {MAX_DEPTH} deep; no config needs that")
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str) or not key:
                raise ValueError("a key must be text, and not empty")
            if "${" in key:
                raise ValueError("keys are not interpolated, values only; write the key out")
            if len(key) > _MAX_KEY:
                raise ValueError(f"a key is longer than {_MAX_KEY} characters")
            check(key, depth)
            check(child, depth + 1)
    elif isinstance(value, list):
        for child in value:
            check(child, depth + 1)
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError("a text holds half a surrogate pair, which is no character")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    elif isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError("a number has at most 300 digits")
    elif value is not None and not isinstance(value, int | float):
        raise ValueError(f"a value must be what JSON can hold; it is of type {type(value).__name__}")
