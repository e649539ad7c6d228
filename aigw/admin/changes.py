"""What a new config would change, as paths: never a value, since those may be secrets."""

from collections.abc import Iterator
from typing import Any

from aigw.config.problem import Path, path_text


def changes(old: Any, new: Any) -> list[dict[str, str]]:
    """`{"path", "change"}` of every value that differs: added, removed or changed. Items of lists go by their name."""
    return [{"path": path_text(path), "change": what} for path, what in _walk(old, new, ())]


def _walk(old: Any, new: Any, path: Path) -> Iterator[tuple[Path, str]]:
    if old == new:
        return
    before, after = _members(old), _members(new)
    if before is None or after is None:
        yield path, "changed"
        return
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            yield (*path, name), "removed"
        elif name not in before:
            yield (*path, name), "added"
        else:
            yield from _walk(before[name], after[name], (*path, name))
    if list(before) != list(after) and set(before) == set(after) and isinstance(new, list):
        yield path, "changed"  # their order


def _members(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return {str(item["name"]): item for item in value}
    return None
