"""Random documents in random styles, and random edits of them: what is written says what it should.

The styles are those of people: block and brackets, any indentation, quotes, comments and blank lines anywhere, anchors
and aliases, line endings, byte order marks. Every comment has a number, so that a lost one is seen.
"""

import re
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aigw.config import edit
from aigw.config.edit.plain import same
from aigw.config.loader import Loader
from aigw.config.problem import Path as Steps
from aigw.config.walk import value_at

pytestmark = pytest.mark.unmeasured

KEYS = (
    *("a", "b", "name", "gpt-4o", "openai/*", "*", "x.y", "5", "null", "true"),
    *("a b", "it's", 'say "hi"', "ü", "#1", "k: v"),
)
TEXTS = (
    *("x", "some text", "", " ", "true", "null", "~", "off", "No", "5", "-1", "010", "0x1F", "1e5", "1_000", "12:30"),
    *("0.5", "2027-01-31", "30s", "100/1m", "${NAME}", "a ${B:-c} d", "$${", "*", "&a", "!tag", "%", "@x", "`", "- a"),
    *("-", "?", "? a", ": ", "a: b", "a:", "a #b", "#", "a, b", "[", "{}", "]", "|", ">", "'", '"', "it's", 'say "hi"'),
    *("back\\slash", "\\n", "two\nlines", "tab\there", "\x00", "\x1b", "\x7f", "\x85", "\u2028", "\ufeff", "\ufffe"),
    *("\U0001f600", "ümläut", "...", "---", "=", "<<", "http://10.0.0.1:80/v1", "127.0.0.1:8081", "trailing "),
    *(" leading", "x" * 200, "::", "[::1]:80"),
)
SCALARS = st.one_of(
    st.sampled_from(TEXTS),
    st.none(),
    st.booleans(),
    st.integers(-5, 10**18),
    st.sampled_from([0.5, -0.25, 1e-7, 1e22, 3.0, 123456.789]),
)
VALUES = st.recursive(
    SCALARS,
    lambda child: st.one_of(st.lists(child, max_size=4), st.dictionaries(st.sampled_from(KEYS), child, max_size=4)),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=5)


class Writer:
    """Writes a document as somebody might have. `text` is it, `data` what it says."""

    def __init__(self, document: dict[str, Any], random: Random) -> None:
        self.random = random
        self.comments = 0
        self.named = 0
        self.anchors: dict[str, Any] = {}
        self.step = random.choice([1, 2, 2, 4, 8])
        self.dash = random.choice([0, 0, 2, 4])
        self.commented = random.choice([0, 0.1, 0.4])
        self.flows = random.choice([0, 0.3, 0.7])
        self.shares = random.choice([0, 0, 0.3, 0.6])
        self.lines: list[str] = []
        if self.chance(0.1):
            self.lines += ["# head", "---"]
        if self.chance(0.1):
            self.append(self.flow(document, 0))
        else:
            self.block(document, 0, "")
        if self.chance(0.1):
            self.lines += ["...", "# the end"]
        text = random.choice(["\n", "\n", "\r\n"]).join(self.lines)
        self.text = random.choice(["", "", "\ufeff"]) + text + random.choice(["", "\n", "\n", "\n\n"])
        if "\r\n" in text:
            self.text = re.sub(r"(?<!\r)\n", "\r\n", self.text)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def comment(self) -> str:
        self.comments += 1
        shape = self.random.choice(["# c{}.", "#c{}: x", "# c{}: commented", "#- c{}.", "#\tc{}, tab", "# c{}. {{[\"'"])
        return shape.format(self.comments)

    def trailing(self) -> str:
        return self.random.choice([" ", "   ", "\t"]) + self.comment() if self.chance(self.commented) else ""

    def between(self, column: int) -> None:
        """Comments and blank lines, in any column."""
        while self.chance(self.commented):
            where = self.random.choice([column, column, column, column + 2, 0, max(column - 2, 0)])
            self.lines.append(
                self.random.choice(["", "  ", " " * where + self.comment(), " " * where + self.comment()])
            )

    def append(self, text: str) -> None:
        self.lines += text.split("\n")

    def block(self, value: Any, column: int, head: str) -> None:
        """The entries of a collection, the first one behind `head` in its line."""
        for index, (key, child) in enumerate(value.items() if isinstance(value, dict) else enumerate(value)):
            if index or not head:
                self.between(column)
                head = " " * column
            if isinstance(value, dict):
                self.member(self.key(key, False), child, column, head)
            else:
                self.item(child, column, head)

    def anchor(self, value: Any) -> str:
        """An anchor before a value, at times; or an alias instead of it, if one says the same."""
        if not self.chance(self.shares):
            return ""
        for name, known in self.anchors.items():
            if same(known, value):
                return "*" + name
        self.named += 1
        return f"&s{self.named}"

    def member(self, key: str, child: Any, column: int, head: str) -> None:
        shared = self.anchor(child)
        if shared.startswith("*"):
            self.append(f"{head}{key}: {shared}{self.trailing()}")
            return
        name, shared = shared[1:], shared and " " + shared
        if isinstance(child, dict | list) and child and not self.chance(self.flows):
            self.append(f"{head}{key}:{shared}{self.trailing()}")
            deeper = self.step if isinstance(child, dict) else self.dash
            self.block(child, column + deeper, "")
        else:
            self.append(f"{head}{key}:{shared}{self.inline(child, column, bool(shared))}")
        if shared:
            self.anchors[name] = child

    def item(self, child: Any, column: int, head: str) -> None:
        if isinstance(child, dict | list) and child and not self.chance(self.flows):
            gap = self.random.choice([1, 1, 3])
            if self.chance(0.1):
                self.append(f"{head}-{self.trailing()}".replace("\t", " "))
                self.block(child, column + 2, "")
            else:
                self.block(child, column + 1 + gap, f"{head}-{' ' * gap}")
        else:
            self.append(f"{head}-{self.inline(child, column, False)}".replace("-\t", "- "))

    def inline(self, value: Any, column: int, anchored: bool) -> str:
        if value is None and self.chance(0.5):
            return self.trailing()
        if isinstance(value, str) and value.strip() == value != "" and self.chance(0.1) and value.isprintable():
            mark, indent = self.random.choice(["|-", ">-"]), " " * (column + self.step + 3)
            return f" {mark}{' # c0' if self.chance(self.commented) else ''}\n{indent}{value}"
        if isinstance(value, dict | list):
            return " " + self.flow(value, column + self.step) + self.trailing()
        text = self.scalar(value, False)
        if not anchored and self.chance(0.05):
            return f"\n{' ' * (column + self.step + 1)}{text}{self.trailing()}"
        return f" {text}{self.trailing()}"

    def flow(self, value: Any, column: int) -> str:
        if not isinstance(value, dict | list):
            return self.scalar(value, True)
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        if not value:
            return opening + closing
        wide = self.chance(0.3)
        separator = self.random.choice([", ", ",", " , "])
        parts = []
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            inner = self.flow(child, column + 2)
            if isinstance(value, dict):
                name = self.key(key, True)
                inner = name if child is None and self.chance(0.3) else f"{name}: {inner}"
            parts.append(inner)
        last = self.chance(0.2)
        if not wide:
            return opening + separator.join(parts) + ("," if last else "") + closing
        indent = "\n" + " " * (column + 2)
        lines = [indent + part + ("," if last or index < len(parts) - 1 else "") for index, part in enumerate(parts)]
        return opening + "".join(line + self.trailing() for line in lines) + "\n" + " " * column + closing

    def key(self, key: str, flow: bool) -> str:
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9./-]*(?: [a-z]+)*", key) and key != "null"
        return key if plain and self.chance(0.8) else self.quoted(key)

    def quoted(self, text: str) -> str:
        if text.isprintable() and self.chance(0.5):
            return "'" + text.replace("'", "''") + "'"
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'

    def scalar(self, value: Any, flow: bool) -> str:
        if value is None:
            return self.random.choice(["null", "~", "Null"])
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return str(value)
        if isinstance(value, float):
            return f"{value:.9f}" if abs(value) < 1e6 else f"{value:.1f}"
        plain = re.fullmatch(r"[A-Za-z](?:[A-Za-z0-9.*-]|:/)*(?: [a-z]+)*|010|12:30|30s|2027-01-31|100/1m", value)
        if plain and value not in ("true", "false", "null") and not (flow and ":" in value) and self.chance(0.7):
            return value
        return self.quoted(value)


def read(text: str) -> Any:
    loader = Loader(text, "config.yaml", lambda value: value)
    assert loader.problems == []
    return loader.data


def paths(value: Any, path: Steps = ()) -> list[Steps]:
    found = [path]
    if isinstance(value, dict | list):
        for step, child in value.items() if isinstance(value, dict) else enumerate(value):
            found += paths(child, (*path, step))
    return found


def with_value(data: Any, path: Steps, value: Any) -> Any:
    """The operation on plain data, written apart from the code under test."""
    if not path:
        return value
    if isinstance(data, list):
        items = list(data) + ([None] if path[0] == len(data) else [])
        items[int(path[0])] = with_value(items[int(path[0])], path[1:], value)
        return items
    members = dict(data) if isinstance(data, dict) else {}
    members[str(path[0])] = with_value(members.get(str(path[0])), path[1:], value)
    return members


def without(data: Any, path: Steps) -> Any:
    step = path[0]
    copy: Any = list(data) if isinstance(data, list) else dict(data)
    if len(path) == 1:
        del copy[step]
    else:
        copy[step] = without(copy[step], path[1:])
    return copy


def patched(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        result.pop(key, None) if value is None else result.update({key: patched(result.get(key), value)})
    return result


def comments(text: str) -> list[str]:
    return re.findall(r"#[^\n]*?c(\d+)", text)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, Any]:
    document = draw(DOCUMENTS)
    text = Writer(document, Random(draw(st.integers(0, 10**6)))).text
    return text, document


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents(), st.data())
def test_random_edits(document: tuple[str, Any], data: st.DataObject) -> None:
    text, value = document
    before = read(text)
    assert same(before, value), "the writer says what it was told to"
    path = data.draw(st.sampled_from(paths(before)))
    held = value_at(before, path)
    operation = data.draw(st.sampled_from(["set", "set", "delete", "merge", "create"]))
    try:
        if operation == "delete" and path:
            wanted = without(before, path)
            new = edit.delete_item(text, path)
        elif operation == "merge" and isinstance(held, dict):
            patch = data.draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
            wanted = with_value(before, path, patched(held, patch))
            new = edit.merge(text, path, patch)
        elif operation == "create" and isinstance(held, dict | list):
            step = data.draw(st.sampled_from(KEYS)) if isinstance(held, dict) else len(held)
            path, child = (*path, step), data.draw(VALUES)
            wanted = with_value(before, path, child)
            new = edit.set_item(text, path, child)
        else:
            child = data.draw(VALUES if path else DOCUMENTS)
            wanted = with_value(before, path, child)
            new = edit.set_item(text, path, child)
    except edit.EditError as error:
        if "is shared: what says *" in str(error):
            return
        raise  # nothing else may be in the way
    assert same(read(new), wanted)
    assert new.startswith("\ufeff") == text.startswith("\ufeff")
    assert new.endswith("\n") == text.endswith("\n")
    assert "\r" in text or "\r" not in new
    assert "\r" not in text or not re.search(r"(?<!\r)\n", new)
    replaced = value_at(wanted, path)
    scalar = not isinstance(held, dict | list) and not isinstance(replaced, dict | list)
    if path not in paths(before) or (operation == "set" and scalar):
        assert comments(new) == comments(text)
