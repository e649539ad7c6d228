"""Which entries of a collection stay, which go, and what comes: the old ones against the new value."""

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from aigw.config.edit.nodes import Collection
from aigw.config.edit.plain import typed
from aigw.config.values import is_null

__all__ = ["Added", "Kept", "items", "members"]

_ALIGNED = 1_000_000  # pairs of items up to which lists are compared; above, they go position by position

Kept = list[tuple[int, Any]]  # positions of entries that stay, and their new values
Added = list[tuple[int, list[tuple[str | None, Any]]]]  # position (-1: before all), and the keys and values behind it


def members(node: Collection, value: dict[str, Any]) -> tuple[Kept, list[int], Added]:
    """Which members of a mapping stay with which value, which go, and what is added behind which."""
    kept: Kept = []
    removed = []
    for index, entry in enumerate(node.entries):
        key = str(entry.key.data) if entry.key else ""
        if key in value:
            kept.append((index, value[key]))
        else:
            removed.append(index)
    new: list[tuple[str | None, Any]] = [(key, child) for key, child in value.items() if key not in node.data]
    return kept, removed, [(kept[-1][0], new)] if new and kept else [(-1, new)] if new else []


def items(node: Collection, value: list[Any]) -> tuple[Kept, list[int], Added]:
    """The same for a list: items go by their name, where they have one, else by what they are."""
    kept: Kept = []
    removed: list[int] = []
    added: Added = []
    for i1, i2, j1, j2 in _aligned([_identity(child) for child in node.data], [_identity(child) for child in value]):
        both = min(i2 - i1, j2 - j1)
        kept += [(i1 + offset, value[j1 + offset]) for offset in range(both)]
        removed += range(i1 + both, i2)
        if j1 + both < j2:
            added.append((i1 + both - 1, [(None, child) for child in value[j1 + both : j2]]))
    return kept, removed, added


def _aligned(old: list[Any], new: list[Any]) -> Iterator[tuple[int, int, int, int]]:
    """Spans of both that stand for each other, in order."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    yield 0, start, 0, start
    middle_old, middle_new = old[start : len(old) - end], new[start : len(new) - end]
    if len(middle_old) * len(middle_new) > _ALIGNED:
        yield start, len(old) - end, start, len(new) - end
    else:
        for _, i1, i2, j1, j2 in SequenceMatcher(None, middle_old, middle_new, autojunk=False).get_opcodes():
            yield start + i1, start + i2, start + j1, start + j2
    yield len(old) - end, len(old), len(new) - end, len(new)


def _identity(value: Any) -> Any:
    """What an item of a list is recognised by: hashable, equal for equal values."""
    if isinstance(value, dict):
        name = value.get("name")
        if isinstance(name, str) and not is_null(name):
            return "name", str(name)
        return frozenset((key, _identity(child)) for key, child in value.items())
    if isinstance(value, list):
        return tuple(map(_identity, value))
    plain = typed(value)
    return type(plain) is bool, plain
