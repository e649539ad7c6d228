"""How new lines look: scalars, brackets and lines of their own, in the style of what stands around them.

Text is quoted wherever YAML 1.1 or 1.2 would read anything but that text, so that editors and linters agree with the
gateway on what the file says.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aigw.config.edit.nodes import Collection, Node, Scalar, Source
from aigw.config.edit.plain import typed

__all__ = ["WIDTH", "Style", "document_style", "flow_beside"]

WIDTH = 120  # columns that a line in brackets may take

_SAFE = re.compile(r"[A-Za-z0-9_/](?:[A-Za-z0-9_./@+%~^()=-]|:(?=[A-Za-z0-9_/@+-])|[ ](?=[A-Za-z0-9_./@+(-]))*")
# What YAML 1.1 or 1.2 reads as a boolean, null, number (also to base 2, 8, 16 and 60) or date.
_OTHERWISE = re.compile(
    r"(?i)y|n|yes|no|on|off|true|false|null|[0-9][0-9_]*(?:\.[0-9_]*)?(?:e[+-]?[0-9]+)?|0b[01_]+|0o[0-7_]+|0x[0-9a-f_]+"
    r"|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[t ].*)?"
)
# What cannot stand in quotes as it is: line breaks, controls, byte order marks, and what is no character.
_ESCAPED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


@dataclass(frozen=True, slots=True)
class Style:
    """How new lines look: what the file around them does."""

    step: int = 2  # columns that a mapping is deeper than its key
    dash_step: int = 2  # columns that a list's dashes are deeper than its key
    quote: str = '"'
    quoted_keys: bool = False  # even those that need no quotes
    quoted_texts: bool = False
    flow_mappings: bool = True  # short mappings without others inside stand in braces
    flow_lists: bool = True

    def scalar(self, value: object, *, flow: bool, quote: str = "") -> str:
        """One scalar on one line; `flow`: within brackets. `quote`: quotes that text takes even if it needs none."""
        value = typed(value)
        if value is None:
            return "null"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return format(Decimal(repr(value)), "f")  # no exponent: to the config that is text
        if not isinstance(value, str):
            return str(value)
        if not quote and not self.quoted_texts and _needs_none(value) and not (flow and ":" in value):
            return value
        if (quote or self.quote) == "'" and not _ESCAPED.search(value):
            return "'" + value.replace("'", "''") + "'"
        return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))

    def key(self, key: str, *, flow: bool) -> str:
        """A key and its colon."""
        needs_none = _needs_none(key) and not (flow and ":" in key)
        return f"{key if needs_none and not self.quoted_keys else self.scalar(key, flow=flow, quote=self.quote)}:"

    def flow(self, value: object) -> str:
        """Any value on one line, in brackets."""
        if isinstance(value, dict):
            return "{" + ", ".join(self.member(key, child) for key, child in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(self.flow, value)) + "]"
        return self.scalar(value, flow=True)

    def member(self, key: str, value: object) -> str:
        """`key: value` within braces."""
        return f"{self.key(key, flow=True)} {self.flow(value)}"

    def inline(self, value: object, column: int, flow: bool | None = None) -> str | None:
        """`value` as it can stand behind a colon or dash at `column`; None where it should take lines of its own.

        `flow` is what the neighbours do: brackets or lines. None is for want of neighbours.
        """
        if not isinstance(value, dict | list):
            return self.scalar(value, flow=False)
        if not value:
            return self.flow(value)
        if flow is None:
            flow = (self.flow_mappings if isinstance(value, dict) else self.flow_lists) and _flat(value)
        text = self.flow(value) if flow else ""
        return text if flow and column + len(text) <= WIDTH else None

    def lines(self, value: Any, column: int) -> Iterator[str]:
        """The lines of a collection that is not empty, the first one without its indentation of `column`."""
        if isinstance(value, dict):
            for index, (key, child) in enumerate(value.items()):
                yield from self.entry(self.key(key, flow=False), child, column, first=not index)
        else:
            for index, child in enumerate(value):
                yield from self.entry("-", child, column, first=not index)

    def entry(
        self, head: str, value: Any, column: int, *, first: bool = True, flow: bool | None = None, gap: int = 1
    ) -> Iterator[str]:
        """The lines of an entry that begins with `head` (key and colon, or a dash and `gap` blanks) at `column`."""
        indent = "" if first else " " * column
        text = self.inline(value, column + len(head) + gap, flow)
        if text is not None:
            yield f"{indent}{head}{' ' * gap}{text}"
        elif head == "-":
            deeper = self.lines(value, column + 1 + gap)
            yield f"{indent}-{' ' * gap}{next(deeper)}"
            yield from deeper
        else:
            yield indent + head
            below = column + (self.step if isinstance(value, dict) else self.dash_step)
            for index, line in enumerate(self.lines(value, below)):
                yield line if index else " " * below + line


def _needs_none(text: str) -> bool:
    """True if text needs no quotes, in lines at least."""
    return bool(_SAFE.fullmatch(text)) and not _OTHERWISE.fullmatch(text)


def _flat(value: dict[str, Any] | list[Any]) -> bool:
    """True if a collection holds scalars alone, or a mapping nothing but them and lists of them."""
    if isinstance(value, list):
        return not any(isinstance(child, dict | list) and child for child in value)
    nested = [child for child in value.values() if isinstance(child, dict | list) and child]
    return all(isinstance(child, list) and _flat(child) for child in nested)


def flow_beside(parent: Collection, index: int, value: Any) -> bool | None:
    """What collections beside an entry do: stand in brackets, or in lines. The entry itself first, the nearest next."""
    kind = dict if isinstance(value, dict) else list
    last = len(parent.entries) - 1
    for at in (index, *range(index - 1, max(index - 100, -1), -1), *range(index + 1, min(index + 100, last + 1))):
        node = parent.entries[at].value if at <= last else None
        if isinstance(node, Collection) and node.entries and isinstance(node.data, kind):
            return node.flow
    return None


_VOTED = ("step", "dash_step", "quote", "keys", "texts", "mappings", "lists")


def document_style(source: Source, root: Node) -> Style:
    """What most of the document does."""
    votes: dict[str, dict[Any, int]] = {kind: {} for kind in _VOTED}

    def vote(kind: str, choice: Any) -> None:
        votes[kind][choice] = votes[kind].get(choice, 0) + 1

    def vote_scalar(kind: str, node: Scalar) -> None:
        quoted = node.style in ("'", '"')
        if quoted:
            vote("quote", node.style)
        if isinstance(typed(node.data), str) and _needs_none(node.data) and ":" not in node.data:
            vote(kind, quoted)

    def walk(node: Node, column: int, depth: int) -> None:
        if isinstance(node, Scalar):
            vote_scalar("texts", node)
        if not isinstance(node, Collection) or not node.entries:
            return
        is_mapping = isinstance(node.data, dict)
        own = 0 if node.flow else source.column(node.content)
        simple = not any(isinstance(entry.value, Collection) for entry in node.entries)
        if depth and (simple or node.flow):
            vote("mappings" if is_mapping else "lists", node.flow)
        if depth and not node.flow and column >= 0:
            vote("step" if is_mapping else "dash_step", own - column)
        for entry in node.entries:
            if entry.key is not None:
                vote_scalar("keys", entry.key)
            walk(entry.value, own if is_mapping and not node.flow else -1, depth + 1)

    walk(root, 0, 0)
    best = {kind: max(counts, key=lambda choice: counts[choice]) for kind, counts in votes.items() if counts}
    step = max(best.get("step", 2), 1)
    return Style(
        step=step,
        dash_step=best.get("dash_step", step),
        quote=best.get("quote", '"'),
        quoted_keys=best.get("keys", False),
        quoted_texts=best.get("texts", False),
        flow_mappings=best.get("mappings", best.get("lists", True)),
        flow_lists=best.get("lists", best.get("mappings", True)),
    )
