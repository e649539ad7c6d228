"""Edits of the config file's text: what people wrote by hand stays as it is, except for the item that is edited.

Text in, text out. Values are what JSON holds, or what `loader.Loader` hands out; equal ones keep their text (see
`plain.same`), so whoever wants `30s`, a `${NAME}` or a secret kept hands over the loader's own scalar. References are
not looked up: `"${NAME}"` is written as it is.

An edit is done by span (`nodes`: text to spans; `match`: what stays of a collection; `change`: which spans to replace;
`place`: which comments go with an entry; `style`: how new lines look) and then checked: the new text, read by the
loader, must be what the same operation on plain data makes of the old text. Otherwise `EditError`, and there is no new
text.
"""

from collections.abc import Callable
from typing import Any

from aigw.config.edit.change import Change
from aigw.config.edit.nodes import Source
from aigw.config.edit.plain import check, same
from aigw.config.loader import Loader
from aigw.config.problem import ConfigError, Path, path_text
from aigw.config.values import is_null
from aigw.config.walk import value_at

__all__ = ["EditError", "delete_item", "merge", "set_item"]

_NAME = "config"  # of the text in problems; the caller of an edit reports its own


class EditError(Exception):
    """An edit that cannot be done, as a sentence for people: where, why, and what to do instead."""


class _NoWay(Exception):
    """A path does not lead where it should; it breaks off at `path`, for that reason."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason


def set_item(text: str, path: Path, value: object) -> str:
    """`text` with `value` at `path`, replaced or created; mappings and lists on the way are created too.

    A number in the path is a position in a list; the list's length appends. The empty path is the whole document.
    Raises: EditError. ConfigError, where `text` itself cannot be read.
    """
    _checked(value, path)
    return _edited(text, lambda data: _put(data, path, value))


def delete_item(text: str, path: Path) -> str:
    """`text` without the item at `path`. What holds it stays, empty if need be: `{}` or `[]`.

    Raises: EditError, also where there is no such item. ConfigError, where `text` itself cannot be read.
    """
    return _edited(text, lambda data: _drop(data, path))


def merge(text: str, path: Path, patch: object) -> str:
    """`text` with the item at `path` patched as RFC 7396 says: null removes a member, lists are replaced whole.

    An item that is short for a longer one (`gpt-4o: openai`) cannot be patched by members, only replaced.
    Raises: EditError. ConfigError, where `text` itself cannot be read.
    """
    _checked(patch, path)

    def operation(data: object) -> object:
        old = value_at(data, path)
        if isinstance(patch, dict) and not isinstance(old, dict) and not is_null(old):
            raise _NoWay(path, "is no mapping, so no member of it can be patched; replace it as a whole")
        return _put(data, path, _merged(old, patch))

    return _edited(text, operation)


def _edited(text: str, operation: Callable[[object], object]) -> str:
    """The new text: changed by span, and checked to say what `operation` makes of what the old one said."""
    before = _read(text)
    source = Source(text)
    try:
        wanted = operation(before.data)
        if not isinstance(wanted, dict):
            raise _NoWay((), "a config is a mapping")
        change = Change(source)
        change.to(operation(change.root.data))  # type: ignore[arg-type]  # a mapping like the one before
        new = source.restored(source.apply(change.edits)) if change.edits else text
    except _NoWay as error:
        where = f"{path_text(error.path)} (line {before.place(error.path)[0]}) " if error.path else ""
        raise EditError(where + error.reason) from None
    except ValueError as error:
        raise EditError(str(error)) from None
    _check(new, wanted)
    return new


def _read(text: str) -> Loader:
    loader = Loader(text, _NAME, lambda value: value)
    if loader.problems:
        raise ConfigError(loader.problems)
    return loader


def _check(new: str, wanted: object) -> None:
    """Raises: EditError, unless the new text says what it should."""
    try:
        after = _read(new)
    except ConfigError as error:
        problem = error.problems[0]
        raise EditError(f"the file would then be wrong in line {problem.line}: {problem.message}") from None
    if not same(after.data, wanted):
        raise EditError(
            "this file is written in a way that the edit would change more than it should; edit the file by hand"
        )


def _checked(value: object, path: Path) -> None:
    try:
        check(value)
        check({step: None for step in path if isinstance(step, str)})
    except ValueError as error:
        raise EditError(f"{path_text(path)}: {error}" if path else str(error)) from None


# The operations on plain data. They never change what they are given, since aliases share it.


def _put(data: Any, path: Path, value: object, done: int = 0) -> object:
    """`data` with `value` at `path[done:]`."""
    if done == len(path):
        return value
    step = path[done]
    if data is None or is_null(data):
        data = [] if isinstance(step, int) else {}
    if isinstance(data, dict) and isinstance(step, str):
        return {**data, step: _put(data.get(step), path, value, done + 1)}
    if isinstance(data, list) and isinstance(step, int):
        if not 0 <= step <= len(data):
            raise _NoWay(path[:done], f"has {len(data)} items, so there is no place {step}")
        old = data[step] if step < len(data) else None
        return [*data[:step], _put(old, path, value, done + 1), *data[step + 1 :]]
    raise _NoWay(path[:done], _unlike(data, step))


def _unlike(data: object, step: str | int) -> str:
    if isinstance(data, dict):
        return "is a mapping, whose members go by name and not by position"
    if isinstance(data, list):
        return "is a list, whose items go by position and not by name"
    held = "members" if isinstance(step, str) else "items"
    return f"is a scalar and holds no {held}; replace it as a whole"


def _drop(data: Any, path: Path, done: int = 0) -> object:
    """`data` without what stands at `path[done:]`."""
    if done == len(path):
        raise _NoWay((), "the document itself cannot be deleted")
    step = path[done]
    is_there = (isinstance(data, dict) and step in data) or (
        isinstance(data, list) and isinstance(step, int) and 0 <= step < len(data)
    )
    if not is_there:
        raise _NoWay((), f"there is no {path_text(path)}")
    last = done == len(path) - 1
    if isinstance(data, dict):
        if last:
            return {key: child for key, child in data.items() if key != step}
        return {**data, step: _drop(data[step], path, done + 1)}
    assert isinstance(step, int)
    return [*data[:step], *([] if last else [_drop(data[step], path, done + 1)]), *data[step + 1 :]]


def _merged(target: object, patch: object) -> object:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None or is_null(value):
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
