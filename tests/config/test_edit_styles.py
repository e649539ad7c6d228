"""Edits by span over the styles people write: only the item's own lines change, and only its own comments go.

A comment in `styles/` that belongs to an item says so: `(of PATH)`. It goes when the item or what holds it goes, and no
other comment ever does. Line endings, the byte order mark and the end of the file stay as they are.
"""

import difflib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from aigw.config import edit
from aigw.config.edit.plain import same, typed
from aigw.config.loader import Loader
from aigw.config.problem import Path as Steps
from aigw.config.problem import path_text
from aigw.config.values import Plain
from aigw.config.walk import value_at

pytestmark = pytest.mark.unmeasured

STYLES = sorted((Path(__file__).parent / "styles").glob("*.yaml"))
NEW = {"provider": "mock", "headers": {"x-new": "1"}}


def style(path: Path) -> str:
    return path.read_bytes().decode()


@lru_cache(4)  # the same text is asked about for every item, and reading it is most of the time
def read(text: str) -> Loader:
    loader = Loader(text, "config.yaml", lambda value: value)
    assert loader.problems == []
    return loader


def lines(text: str) -> list[str]:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")


def comments(text: str) -> list[str]:
    """Comments in the order of the file. The styles say "no comment" where a text only looks like one."""
    found = re.findall(r"(?:^|[ \t])(#[^\r\n]*)", text, re.MULTILINE)
    return [comment for comment in found if "no comment" not in comment]


def owned(comment: str, path: Steps) -> bool:
    """True if a comment belongs to the item at `path`, or to something within."""
    found = re.search(r"\(of (.*)\)", comment)
    return bool(found and re.match(re.escape(path_text(path)) + r"(?![\w-])", found[1]))


def items(text: str) -> list[Steps]:
    """Every path of the document, in the order of the file."""
    return [path for path in read(text).places if path]


def unless_shared(operation: Callable[[], str]) -> str | None:
    """What an edit makes; None where it is refused, as it must be, because others repeat what it would change."""
    try:
        return operation()
    except edit.EditError as error:
        if re.match(r"the value in line \d+ is shared: what says \*\w+ repeats it", str(error)):
            return None
        raise


def same_ends(old: str, new: str) -> None:
    assert new.startswith("\ufeff") == old.startswith("\ufeff")
    assert new.endswith("\n") == old.endswith("\n")
    if "\r\n" in old:
        assert not re.search(r"(?<!\r)\n", new)
    else:
        assert "\r" not in new


@lru_cache(1)
def own_lines(text: str, path: Steps) -> tuple[int, int]:
    """The lines an item may change, from the loader's places, as [first, end): up to where the next item stands.

    From the comments above that say they are its own, and the blank lines above. What an emptied parent says is said
    in the parent's line.
    """
    loader = read(text)
    parent = value_at(loader.data, path[:-1])
    if len(path) > 1 and isinstance(parent, dict | list) and len(parent) == 1:
        return own_lines(text, path[:-1])
    content = lines(text)
    first = loader.place(path, at_key=True)[0] - 1
    if isinstance(path[-1], int) and not re.search(r"[-\[,{]", content[first]):
        first -= 1
    while first and (not content[first - 1].strip() or owned(content[first - 1], path)):
        first -= 1
    here = loader.place(path, at_key=True)
    places = [loader.place(other, at_key=True) for other in loader.places if other[: len(path)] != path]
    line, column = min((place for place in places if place > here), default=(len(content) + 1, 1))
    if content[line - 1 :] and content[line - 1][: column - 1].strip(" -?"):
        line += 1  # the next item stands in a line with this one
    elif content[here[0] - 1][: here[1] - 1].strip():
        line += 1  # `- gone: 1`, whose dash the next item takes
    return first, line - 1


@lru_cache(1)
def may_go(text: str, path: Steps) -> set[str]:
    """Comments that may go with what an item holds: its own, those between its lines, and deeper ones at its end."""
    loader, content = read(text), lines(text)
    first, column = loader.place(path, at_key=True)
    last = max(loader.place(other)[0] for other in loader.places if other[: len(path)] == path)
    is_block = last > first or value_at(loader.data, path) == Plain("")
    while is_block and last < len(content) and re.fullmatch(r"\s*(#.*)?", content[last]):
        if content[last].strip() and len(content[last]) - len(content[last].lstrip()) < column:
            break
        last += 1
    return {c for c in comments(text) if owned(c, path)} | {c for line in content[first:last] for c in comments(line)}


def assert_within(old: str, new: str, first: int, end: int) -> None:
    """Only the lines [first, end) differ."""
    before, after = lines(old), lines(new)
    shown = "\n".join(difflib.unified_diff(before, after, lineterm=""))
    assert after[:first] == before[:first], shown
    kept = before[end:]
    assert not kept or after[-len(kept) :] == kept, shown
    assert len(after) >= first + len(kept), shown


def test_there_are_enough_styles() -> None:
    assert len(STYLES) >= 30
    assert len({style(path) for path in STYLES}) == len(STYLES)


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.stem)
class TestStyles:
    def test_what_is_equal_stays(self, path: Path) -> None:
        text = style(path)
        data = read(text).data
        assert edit.set_item(text, (), data) == text
        assert edit.merge(text, (), {}) == text
        for item in items(text):
            assert edit.set_item(text, item, value_at(data, item)) == text
            assert edit.set_item(text, item, as_json(value_at(data, item))) == text

    def test_a_changed_scalar_is_all_that_changes(self, path: Path) -> None:
        text = style(path)
        loader = read(text)
        for item in items(text):
            if isinstance(value_at(loader.data, item), dict | list):
                continue
            for value in ("a new: text", 7):
                new = unless_shared(lambda item=item, value=value: edit.set_item(text, item, value))
                if new is None:
                    continue
                same_ends(text, new)
                assert_within(text, new, *own_lines(text, item))
                assert comments(new) == comments(text)
                assert same(value_at(read(new).data, item), value)

    def test_a_deleted_item_takes_its_own_lines_and_comments(self, path: Path) -> None:
        text = style(path)
        for item in items(text):
            new = unless_shared(lambda item=item: edit.delete_item(text, item))
            if new is None:
                continue
            same_ends(text, new)
            assert_within(text, new, *own_lines(text, item))
            gone = may_go(text, item)
            assert comments(new) == [c for c in comments(text) if c not in gone or c in comments(new)], path_text(item)
            assert not [comment for comment in comments(new) if owned(comment, item)]

    def test_a_new_member_is_all_that_is_added(self, path: Path) -> None:
        text = style(path)
        loader = read(text)
        for item in [(), *items(text)]:
            held = value_at(loader.data, item)
            if not isinstance(held, dict | list):
                continue
            step = "new-one" if isinstance(held, dict) else len(held)
            new = unless_shared(lambda path=(*item, step): edit.set_item(text, path, NEW))
            if new is None:
                continue
            same_ends(text, new)
            assert comments(new) == comments(text)
            matcher = difflib.SequenceMatcher(None, lines(text), lines(new), autojunk=False)
            changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
            touched = sum(i2 - i1 for _, i1, i2, _, _ in changes)
            assert touched <= 2, "an insertion touches the line before it in brackets, and the last one of the file"

    def test_created_and_deleted_is_as_before(self, path: Path) -> None:
        text = style(path)
        for parent in (("upstreams",), ("gateways", "default", "models"), ("gateways", "default"), ("gateways",)):
            held = value_at(read(text).data, parent)
            if isinstance(held, dict) and held:
                new = edit.set_item(text, (*parent, "new/one"), NEW)
                if set(lines(text)) <= set(lines(new)):  # lines of its own: no brackets around
                    assert edit.delete_item(new, (*parent, "new/one")) == text

    def test_an_item_is_replaced_by_something_else(self, path: Path) -> None:
        text = style(path)
        for item in items(text):
            for value in (NEW, ["a", {"b": [1, None]}], {}, "text"):
                new = unless_shared(lambda item=item, value=value: edit.set_item(text, item, value))
                if new is None:
                    continue
                same_ends(text, new)
                assert_within(text, new, *own_lines(text, item))
                gone = may_go(text, item)
                assert comments(new) == [c for c in comments(text) if c not in gone or c in comments(new)]


def as_json(value: Any) -> Any:
    """What an API shows of the loader's data."""
    if isinstance(value, dict):
        return {key: as_json(child) for key, child in value.items()}
    return [as_json(child) for child in value] if isinstance(value, list) else typed(value)
