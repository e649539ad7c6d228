"""The schema validator's complaints in words of ours: which key, what is wrong, what would be right.

Complaints come as plain data (type, location, message, no input), so this module needs no validator and no model, only
the list of keys with their descriptions. A location names steps that nobody wrote where a short form was taken for the
long one (`gpt-4o: openai`); those steps are dropped here, by walking the document as written.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from aigw.config.problem import Finding, Path, nearest
from aigw.config.values import is_null, kind

Descriptions = Mapping[tuple[str, ...], str]


def explain(details: Iterable[Mapping[str, Any]], raw: object, described: Descriptions) -> list[Finding]:
    """One finding for each complaint about `raw`; `described` maps every key's dotted pattern to its description."""
    found = []
    for detail in details:
        at_key = detail["loc"][-1:] == ("[key]",)
        path, value = _as_written(detail["loc"], raw)
        match detail["type"]:
            case "extra_forbidden":
                found.append(Finding(path, _unknown(detail["loc"], value, described), at_key=True))
            case "missing":
                found.append(Finding(path, f"missing: {described[_pattern(detail['loc'], described)]}", at_key=True))
            case "value_error":
                found.append(Finding(path, str(detail["ctx"]["error"]), at_key))
            case "list_type":
                found.append(Finding(path, f"must be a list, [a, b] or lines with a dash; {kind(value)}"))
            case _:  # dict_type, model_type: everything else is read by the readers of `values`
                found.append(Finding(path, f"must be a mapping of `key: value` lines; {kind(value)}"))
    return found


def _as_written(location: Path, raw: object) -> tuple[Path, object]:
    """The steps of a location that exist in `raw` (and a last one that is missing there), and the value found."""
    path: list[str | int] = []
    value: Any = raw
    for step in location:
        if step == "[key]":
            break
        if isinstance(value, dict) and isinstance(step, str):
            path.append(step)
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int):
            path.append(step)
            value = value[step]
    return tuple(path), value


def _pattern(location: Path, described: Descriptions) -> tuple[str, ...]:
    """A location with `*` for names and positions."""
    pattern: tuple[str, ...] = ()
    for step in location:
        exact = (*pattern, str(step))
        pattern = exact if exact in described else (*pattern, "*")
    return pattern


def _unknown(location: Path, value: object, described: Descriptions) -> str:
    *parents, key = location
    parent = _pattern(tuple(parents), described)
    siblings = [pattern[-1] for pattern in described if pattern[:-1] == parent]
    if is_null(value) and isinstance(key, str) and key.partition(":")[0] in siblings:
        return "unknown key; a blank must follow the colon"
    if isinstance(key, str) and (hint := nearest(key, siblings)):
        return f"unknown key{hint}"
    same = [pattern[:-1] for pattern in described if pattern[-1] == key]
    beneath = [pattern for pattern in same if pattern[: len(parent)] == parent]
    if len(elsewhere := beneath or same) == 1:
        return f"unknown key; it belongs to {'.'.join(elsewhere[0]) or 'the top level'}"
    return f"unknown key; known here: {', '.join(siblings)}"
