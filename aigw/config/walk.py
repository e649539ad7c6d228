"""Steps through a document as written, whatever shape it has: what is not there, or is something else, is empty."""

from collections.abc import Iterator, Mapping
from typing import Any

from aigw.config.problem import Path


def value_at(raw: object, path: Path) -> object:
    """What stands at `path`; None where nothing does."""
    value: Any = raw
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def select(raw: object, pattern: str) -> Iterator[tuple[Path, Any]]:
    """Every (path, value) of the document that `pattern` fits; `*` is any name or position."""
    found: list[tuple[Path, Any]] = [((), raw)]
    for step in pattern.split("."):
        found = [
            ((*path, name), child) for path, value in found for name, child in children(value) if step in ("*", name)
        ]
    yield from found


def children(value: object) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
