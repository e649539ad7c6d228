"""The text of a config as a tree of spans: which characters of the file say what.

Reads only what `loader.Loader` has read without a problem, so keys are scalars, and there is one document without tags.
Every position is an index into the text behind its byte order mark. Spans hold no blanks and no comments around them,
which PyYAML's marks do in places: an empty value stands right behind its colon, a block scalar ends with its last
visible line, and a block collection with its last entry.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from aigw.config.values import Plain

__all__ = ["Alias", "Collection", "Entry", "Node", "Scalar", "Source", "parse"]

_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # YAML 1.1, which libyaml reads
_GAP = r"\s*(?:#[^\n\r\x85\u2028\u2029]*(?=[\n\r\x85\u2028\u2029])\s*)*"  # whole comments only: they may hold commas
_COLON = re.compile(_GAP + ":")
_COMMA = re.compile(_GAP + ",")
_BLANKS = re.compile(_GAP)


class Source:
    """The characters of a file, by lines.

    `text` has no byte order mark and ends with a line break; `restored` gives back what the file had.
    """

    def __init__(self, text: str) -> None:
        self.mark = text[: len(text) - len(text.removeprefix("\ufeff"))]
        self.text = text.removeprefix("\ufeff")
        first = _BREAK.search(self.text)
        self.line_break = first[0] if first and first[0] in ("\r\n", "\r") else "\n"
        self.ended = self.text.endswith(("\n", "\r"))
        if not self.ended:
            self.text += self.line_break
        breaks = [match.span() for match in _BREAK.finditer(self.text)]
        self.starts = [0, *(end for _, end in breaks)]
        self.ends = [*(start for start, _ in breaks), len(self.text)]

    def restored(self, text: str) -> str:
        """`text` with the byte order mark, and the end without a line break, that the file had."""
        return self.mark + (text if self.ended else text.rstrip("\r\n"))

    def line(self, index: int) -> int:
        """The number of the line that holds `index`, from 0."""
        return bisect_right(self.starts, index) - 1

    def line_start(self, index: int) -> int:
        return self.starts[self.line(index)]

    def next_line(self, index: int) -> int:
        """Where the line after that of `index` begins; the end of the text after the last."""
        line = self.line(index) + 1
        return self.starts[line] if line < len(self.starts) else len(self.text)

    def line_end(self, index: int) -> int:
        """The end of the line of `index`, before its break."""
        return self.ends[self.line(index)]

    def column(self, index: int) -> int:
        """Characters before `index` in its line."""
        return index - self.line_start(index)

    def before_blanks(self, index: int) -> int:
        """Where the blanks begin that stand right before `index`."""
        while index and self.text[index - 1] in " \t":
            index -= 1
        return index

    def begins_line(self, index: int) -> bool:
        """True if only blanks stand before `index` in its line."""
        return self.before_blanks(index) == self.line_start(index)

    def after_blanks(self, index: int) -> int:
        """Where the blanks end that stand at `index`."""
        while self.text[index : index + 1] in (" ", "\t"):
            index += 1
        return index

    def ends_line(self, index: int) -> bool:
        """True if only blanks, or a comment, stand behind `index` in its line."""
        index = self.after_blanks(index)
        return self.text[index : index + 1] == "#" or index == self.line_end(index)

    def comma(self, index: int) -> int | None:
        """Where the comma stands that follows `index`, with nothing but blanks and comments between."""
        found = _COMMA.match(self.text, index)
        return found.end() - 1 if found else None

    def apply(self, edits: Iterable[tuple[int, int, str]]) -> str:
        """The text with each span (start, end) replaced. Raises: ValueError, where two of them overlap."""
        parts, position = [], 0
        for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
            if start < position:
                raise ValueError("two edits overlap")
            parts += [self.text[position:start], new]
            position = end
        return "".join([*parts, self.text[position:]])


@dataclass(slots=True, eq=False)
class Node:
    """One value. `start` counts its anchor in, `content` does not; `data` is what the loader makes of it."""

    data: Any
    start: int
    content: int
    end: int
    anchor: str | None


@dataclass(slots=True, eq=False)
class Scalar(Node):
    style: str  # the quote, | or >; empty for plain text


@dataclass(slots=True, eq=False)
class Alias(Node):
    target: Node


@dataclass(slots=True, eq=False)
class Entry:
    """A member of a mapping or an item of a list.

    `start`: of the key (or the `?` before it), the dash, or the item in []. `after`: behind the colon or the dash, or
    where the item in [] begins; None for a key without a colon.
    """

    key: Scalar | None
    value: Node
    start: int
    after: int | None

    @property
    def end(self) -> int:
        ends = (self.value.end, self.after or 0, self.key.end if self.key else 0)
        return max(ends)


@dataclass(slots=True, eq=False)
class Collection(Node):
    """A mapping (`data` is a dict) or a list. `flow`: in brackets; `bare`: the `a: 1` of `[a: 1]`, without its own."""

    flow: bool
    bare: bool
    entries: list[Entry]


def parse(source: Source) -> tuple[Node, list[Alias]]:
    """The document, and its aliases in the order of the file."""
    reader = _Reader(source)
    return reader.root, reader.aliases


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.anchors: dict[str, Node] = {}
        self.aliases: list[Alias] = []
        self.events: Iterator[Any] = yaml.parse(self.text, Loader=_PARSER)
        next(self.events)  # the stream's start
        next(self.events)  # the document's
        self.root = self._node(next(self.events), 0)

    def _node(self, event: Any, empty: int) -> Node:
        """The value that begins with `event`; `empty` is where it stands if there is nothing."""
        if isinstance(event, yaml.AliasEvent):
            target, (start, end) = self.anchors[event.anchor or ""], _marks(event)
            alias = Alias(target.data, start, start, end, None, target)
            self.aliases.append(alias)
            return alias
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, empty)
        elif isinstance(event, yaml.MappingStartEvent):
            node = self._mapping(event)
        else:
            node = self._list(event)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _scalar(self, event: Any, empty: int) -> Scalar:
        data = Plain(event.value) if event.implicit[0] else event.value
        start, end = _marks(event)
        content = start
        if event.anchor is not None:
            content = start + 1 + len(event.anchor)
            if content != end and (blanks := _BLANKS.match(self.text, content)):
                content = blanks.end()
        if content == end and not event.value:
            if event.anchor is None:
                start = content = end = empty
            return Scalar(data, start, content, end, event.anchor, "")
        style = event.style or ""
        if style in ("|", ">"):
            end = self._block_scalar_end(content, end)
        return Scalar(data, start, content, end, event.anchor, style)

    def _block_scalar_end(self, content: int, end: int) -> int:
        header = self.text[content : self.source.line_end(content)].partition("#")[0]
        if "+" not in header:  # trailing lines are no part of the value
            return content + len(self.text[content:end].rstrip())
        last = self.source.starts[self.source.line(end) - 1]  # the mark stands behind the last break
        return max(self.source.line_end(last), content + 1)

    def _mapping(self, event: Any) -> Collection:
        start, content = _marks(event)
        flow = bool(event.flow_style)
        if flow and start != content:
            content -= 1
        bare = flow and self.text[content] != "{"
        entries: list[Entry] = []
        data: dict[str, Any] = {}
        while not isinstance(inner := next(self.events), yaml.MappingEndEvent):
            key = self._scalar(inner, _marks(inner)[0])
            after = self._colon(key.end)
            value = self._node(next(self.events), after or key.end)
            entries.append(Entry(key, value, self._question(key.start), after))
            data[str(key.data)] = value.data
        end = _marks(inner)[1] if flow and not bare else entries[-1].end
        return Collection(data, start, content, end, event.anchor, flow, bare, entries)

    def _colon(self, index: int) -> int | None:
        if self.text[index] == ":":
            return index + 1
        found = _COLON.match(self.text, index)
        return found.end() if found else None

    def _question(self, index: int) -> int:
        """`index`, or where the `? ` before it stands."""
        mark = self.source.before_blanks(index) - 1
        return mark if mark >= 0 and self.text[mark] == "?" else index

    def _list(self, event: Any) -> Collection:
        start, content = _marks(event)
        flow = bool(event.flow_style)
        if flow or self.text[content : content + 1] != "-":  # the mark is behind the bracket, or behind the first dash
            content -= 1
        column = self.source.column(content)
        entries: list[Entry] = []
        while not isinstance(inner := next(self.events), yaml.SequenceEndEvent):
            if flow:
                value = self._node(inner, _marks(inner)[0])
                entries.append(Entry(None, value, value.start, value.start))
            else:
                dash = self._dash(_marks(inner)[0], column) if entries else content
                value = self._node(inner, dash + 1)
                entries.append(Entry(None, value, dash, dash + 1))
        end = _marks(inner)[1] if flow else entries[-1].end
        return Collection(
            [entry.value.data for entry in entries], start, content, end, event.anchor, flow, False, entries
        )

    def _dash(self, index: int, column: int) -> int:
        """Where the dash stands, in `column`, that the item at `index` belongs to."""
        for line in range(self.source.line(index), -1, -1):
            dash = self.source.starts[line] + column
            if dash < index and self.text[dash] == "-" and self.source.begins_line(dash):
                return dash
        raise AssertionError("an item has its dash")


def _marks(event: Any) -> tuple[int, int]:
    return event.start_mark.index, event.end_mark.index
