"""From a tree of spans and the value it should have to the spans that must be replaced.

The walk goes down as long as old and new are of one kind, so that what is equal keeps its text: quotes, references,
comments and all. Where nothing of a collection would be left, or the kind differs, the value's own span is written
anew, in the style around it: brackets stay brackets, indentation is that of the neighbours.

Nobody else's value may change. An alias that gets another value is written out. A value that aliases elsewhere repeat
cannot change without them: that is refused.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from aigw.config.edit.match import items, members
from aigw.config.edit.nodes import Collection, Entry, Node, Scalar, Source, parse
from aigw.config.edit.place import Places
from aigw.config.edit.plain import same
from aigw.config.edit.style import WIDTH, Style, document_style, flow_beside

__all__ = ["Change"]


class Change:
    """What it takes to turn the document in `source` into another one.

    After `to`, `edits` are spans (start, end, new text) that do not overlap. Raises: ValueError with a sentence, where
    the text cannot be edited so.
    """

    def __init__(self, source: Source) -> None:
        # the text
        self.source = source
        self.root, self.aliases = parse(source)
        self.places = Places(source)
        self.style = document_style(source, self.root)
        # what is done to it
        self.edits: list[tuple[int, int, str]] = []
        self.changed: list[Node] = []  # with an anchor
        self.gone: list[Node] = []  # with all beneath

    def to(self, value: dict[str, Any]) -> None:
        whole = Collection({}, 0, 0, self.root.end, None, False, False, [])
        whole.entries.append(Entry(None, self.root, self.root.content, self.root.content))
        self._value(whole, 0, value)
        self._guard_aliases()

    # Values

    def _value(self, parent: Collection, index: int, value: Any) -> bool:
        """Give an entry another value. True if anything changes."""
        node = parent.entries[index].value
        if value is node.data:
            return False
        if isinstance(node, Collection) and isinstance(value, type(node.data)):
            changed = self._collection(parent, index, node, value)
        elif same(node.data, value):
            return False
        else:
            changed = True
            self._rewrite(parent, index, value)
        if changed and node.anchor is not None:
            self.changed.append(node)
        return changed

    def _collection(self, parent: Collection, index: int, node: Collection, value: Any) -> bool:
        kept, removed, added = members(node, value) if isinstance(value, dict) else items(node, value)
        if not removed and not added:
            changes = [self._value(node, position, child) for position, child in kept]
            return any(changes)
        if not kept or node.bare:
            self._rewrite(parent, index, value)
            return True
        for position, child in kept:
            self._value(node, position, child)
        self.gone += [node.entries[position].value for position in removed]
        last = kept[-1][0]
        if node.flow:
            self._remove_in_flow(node, removed, last)
            for behind, entries in added:
                self._insert_in_flow(node, behind, entries, last_of_all=behind == len(node.entries) - 1)
        else:
            self._remove_lines(node, removed)
            for behind, entries in added:
                self._insert_lines(node, behind, entries)
        return True

    def _rewrite(self, parent: Collection, index: int, value: Any) -> None:
        """Write the value of an entry anew, in brackets or lines as suits."""
        entry = parent.entries[index]
        self.gone.append(entry.value)
        if parent.flow:
            nested = isinstance(value, dict | list)
            self._put(entry, self.style.flow(value) if nested else self._scalar(entry, value, True))
        elif isinstance(entry.value, Collection) and not entry.value.flow:
            self._rewrite_lines(parent, index, value)
        else:
            self._rewrite_inline(parent, index, value)

    def _scalar(self, entry: Entry, value: Any, flow: bool) -> str:
        """A scalar, in the quotes of the one before it."""
        old = entry.value
        quote = old.style if isinstance(old, Scalar) and old.style in ("'", '"') else ""
        return self.style.scalar(value, flow=flow, quote=quote)

    def _put(self, entry: Entry, text: str) -> None:
        """Replace the text of a value that is not a block collection, or put it where nothing is."""
        node = entry.value
        if entry.after is None:
            if self._is_question(entry):
                line = self.source.line(entry.start) + 1
                raise ValueError(f"the key in line {line} has a ? and no colon; write it as `key: value` first")
            assert entry.key is not None, "an item always has its place"
            self._edit(entry.key.end, entry.key.end, f": {text}")
        elif node.content == node.end:
            self._edit(node.end, node.end, f" {text}")
        else:
            keeps_anchor = isinstance(node, Scalar)
            self._edit(node.content if keeps_anchor else node.start, node.end, text + self._header_comment(node))

    def _is_question(self, entry: Entry) -> bool:
        return entry.key is not None and entry.start != entry.key.start

    def _header_comment(self, node: Node) -> str:
        """The comment in the first line of a block scalar, with a blank before it."""
        if not isinstance(node, Scalar) or node.style not in ("|", ">"):
            return ""
        header = self.source.text[node.content : self.source.line_end(node.content)]
        comment = header.find(" #")
        return header[len(header[:comment].rstrip()) :] if comment >= 0 else ""

    def _rewrite_inline(self, parent: Collection, index: int, value: Any) -> None:
        """A scalar, an alias or a collection in brackets becomes something else, in a block collection."""
        source, entry = self.source, parent.entries[index]
        node = entry.value
        head = entry.after or entry.end
        if not isinstance(value, dict | list):
            self._put(entry, self._scalar(entry, value, False))
            return
        style = self._style_at(parent, index)
        text = style.inline(
            value, max(source.column(head), source.column(node.content)) + 1, flow_beside(parent, index, value)
        )
        if text is not None or entry.after is None:
            self._put(entry, text or style.flow(value))
            return
        empty = node.start == node.end
        if entry.key is not None and (empty or source.line(node.start) == source.line(head)):
            # `key: old  # comment` becomes `key:  # comment` with lines below
            column = source.column(entry.start) + (style.step if isinstance(value, dict) else style.dash_step)
            self._edit(head, node.end, self._header_comment(node))
            below = source.next_line(node.end)
            self._edit(below, below, " " * column + self._joined(style.lines(value, column)))
        else:
            column = source.column(node.start) + empty
            lines = [*style.lines(value, column)]
            self._edit(node.start, node.end, " " * empty + source.line_break.join(lines))

    def _rewrite_lines(self, parent: Collection, index: int, value: Any) -> None:
        """A block collection becomes something else; what stands between its entries stays."""
        source, entry = self.source, parent.entries[index]
        node = entry.value
        assert isinstance(node, Collection)
        assert entry.after is not None, "a block collection stands behind a colon or dash"
        is_root = entry.after == node.start
        column = source.column(node.content)
        style = self._style_at(parent, index)
        text = style.inline(value, source.column(entry.after) + 1, False)
        if not source.begins_line(node.content):  # - key: value
            lines = style.lines(value, column) if text is None else [text]
            self._edit(node.start, source.next_line(node.end), self._joined(lines))
            return
        if text is not None and not is_root:
            anchor = node.start + 1 + len(node.anchor) if node.anchor else entry.after
            self._edit(entry.after, anchor, f" {text}")
        else:
            if column <= source.column(entry.start) and not is_root and isinstance(value, dict):
                column += style.step  # dashes may stand below their key's first letter, members may not
            lines = style.lines(value, column) if text is None else [text]
            above = self.places.above(node, 0)
            self._edit(above, above, " " * column + self._joined(lines))
        self._remove_lines(node, [*range(len(node.entries))])

    # Entries that come and go

    def _remove_lines(self, node: Collection, removed: list[int]) -> None:
        source, entries = self.source, node.entries
        gone = set(removed)
        if 0 in gone and not source.begins_line(entries[0].start):
            # - gone: 1
            #   kept: 2
            stays = next(index for index in range(len(entries)) if index not in gone)
            gone -= set(range(stays))
            start, end = entries[0].start, entries[stays].start
            if source.text[entries[stays - 1].end : end].strip():  # a comment: the dash stays on a line of its own
                self._edit(source.before_blanks(start), self.places.below(entries[stays - 1]), source.line_break)
            else:
                self._edit(start, end, "")
        for index in sorted(gone):
            start, end = self.places.span(node, index)
            self._edit(start, end, "")

    def _insert_lines(self, node: Collection, behind: int, added: list[tuple[str | None, Any]]) -> None:
        """New entries after that at `behind`; before the first where that is -1."""
        source, entries = self.source, node.entries
        column = source.column(entries[0].start)
        near = max(behind, 0)
        style = self._style_at(node, near)
        apart = len(entries) > 1 and self.places.is_apart(node, max(behind, 1))
        lines: list[str] = []
        for key, value in added:
            head = "-" if key is None else style.key(key, flow=False)
            gap = self._gap(entries[near]) if key is None else 1
            flow = flow_beside(node, behind + 1, value)
            if apart and behind >= 0:
                lines.append("")
            lines += style.entry(head, value, column, first=False, flow=flow, gap=gap)
            if apart and behind < 0:
                lines.append("")
        if behind >= 0:
            below = self.places.below(entries[behind])
            self._edit(below, below, self._joined(lines))
        elif source.begins_line(entries[0].start):
            above = self.places.above(node, 0)
            self._edit(above, above, self._joined(lines))
        else:
            start = entries[0].start  # - - first
            self._edit(start, start, self._joined(lines).lstrip() + " " * column)

    def _gap(self, item: Entry) -> int:
        """Blanks between a dash and what follows it in its line."""
        dash, content = item.start, item.value.start
        between = self.source.text[dash + 1 : content]
        return len(between) if between and not between.strip(" ") else 1

    def _remove_in_flow(self, node: Collection, removed: list[int], last_kept: int) -> None:
        source, entries = self.source, node.entries
        tail = [index for index in removed if index > last_kept]
        if tail and source.comma(entries[-1].end) is None and self._is_one_line(node, last_kept):
            comma = source.comma(entries[last_kept].end)
            assert comma is not None, "a comma stands between two entries"
            self._edit(comma, entries[-1].end, "")
            removed = removed[: -len(tail)]
        for index in removed:
            self._remove_one_in_flow(entries[index])

    def _is_one_line(self, node: Collection, index: int) -> bool:
        """True if the entries behind that at `index` follow it in its line."""
        return self.source.line(node.entries[index].end) == self.source.line(node.entries[-1].start)

    def _remove_one_in_flow(self, entry: Entry) -> None:
        source = self.source
        comma = source.comma(entry.end)
        end = entry.end if comma is None else comma + 1
        if source.begins_line(entry.start) and source.ends_line(end):
            self._edit(source.line_start(entry.start), source.next_line(end), "")
        elif comma is None or source.ends_line(end):  # a comment keeps the blank before it
            self._edit(entry.start, end, "")
        else:
            self._edit(entry.start, source.after_blanks(end), "")

    def _insert_in_flow(
        self, node: Collection, behind: int, added: list[tuple[str | None, Any]], *, last_of_all: bool
    ) -> None:
        source, entries, style = self.source, node.entries, self.style
        texts = [style.flow(value) if key is None else style.member(key, value) for key, value in added]
        if behind < 0:
            start = entries[0].start
            self._edit(start, start, "".join(f"{text}, " for text in texts))
            return
        entry = entries[behind]
        blank = " " if source.text[entry.end - 1] == ":" else ""  # `{a:, b: 1}` would have a key `a:`
        comma = source.comma(entry.end) if last_of_all else None
        behind_it = entry.end if comma is None else comma + 1
        line = source.line_start(entry.start)
        indent = source.text[line : source.after_blanks(line)]
        if last_of_all and source.begins_line(entry.start) and source.ends_line(behind_it):
            # each on a line of its own, with its comment
            if comma is None:
                self._edit(entry.end, entry.end, blank + ",")
            lines = [f"{indent}{text}," for text in texts]
            if comma is None:
                lines[-1] = lines[-1].removesuffix(",")
            below = source.next_line(behind_it)
            self._edit(below, below, self._joined(lines))
            return
        length = source.line_end(entry.end) - source.line_start(entry.end) + sum(map(len, texts))
        blanks = source.line_break + indent + " " * style.step if length > WIDTH else " "
        self._edit(entry.end, entry.end, blank + "".join(f",{blanks}{text}" for text in texts))

    # Words

    def _edit(self, start: int, end: int, new: str) -> None:
        self.edits.append((start, end, new))

    def _joined(self, lines: Iterable[str]) -> str:
        return "".join(line + self.source.line_break for line in lines)

    def _style_at(self, parent: Collection, index: int) -> Style:
        """The document's style with the steps of the neighbours of an entry."""
        source = self.source
        column = source.column(parent.entries[index].start)
        near = sorted(range(max(0, index - 8), min(len(parent.entries), index + 8)), key=lambda at: abs(at - index))
        steps: dict[str, int] = {}
        for at in near:
            value = parent.entries[at].value
            if isinstance(value, Collection) and not value.flow and source.begins_line(value.content):
                kind = "step" if isinstance(value.data, dict) else "dash_step"
                steps.setdefault(kind, source.column(value.content) - column)
        own = self.style
        return replace(own, step=steps.get("step", own.step) or 2, dash_step=steps.get("dash_step", own.dash_step))

    def _guard_aliases(self) -> None:
        """Raises: ValueError, where a value that others repeat would change."""
        gone = [node for value in self.gone for node in _within(value)]
        gone_ids = set(map(id, gone))
        touched = {id(node): node for node in (*self.changed, *gone) if node.anchor is not None}
        staying = [alias for alias in self.aliases if id(alias.target) in touched and id(alias) not in gone_ids]
        if not staying:
            return
        target = staying[0].target
        line = self.source.line(target.start) + 1
        others = [str(self.source.line(alias.start) + 1) for alias in staying if alias.target is target]
        raise ValueError(
            f"the value in line {line} is shared: what says *{target.anchor} repeats it and must not change with it;"
            f" first write the value out there (line{'s' * (len(others) > 1)} {', '.join(others)})"
        )


def _within(node: Node) -> Iterator[Node]:
    yield node
    if isinstance(node, Collection):
        for entry in node.entries:
            yield from _within(entry.value)
