"""Where an entry of a block collection begins and ends for the one who wrote it: with which comments and blank lines.

A comment belongs to an entry if it stands on its lines, if it continues that comment below in the same column, if it is
indented deeper than an entry that has lines of its own, or if it is prose directly above it. Everything else stays when
the entry goes: rulers and what stands with them, commented-out entries (`#name: ...`), what blank lines set apart, and
what may be about the whole section because only the section's first entry has a comment above it.
"""

import re
from collections.abc import Callable

from aigw.config.edit.nodes import Collection, Entry, Node, Source

__all__ = ["Places"]

_WORD = re.compile(r"\w")
# `# name: value`, `#name:` or `#- item`: an entry that is commented out, or a line for tools.
_COMMENTED_OUT = re.compile(r"#+[ \t]*(?:-[ \t]|[\"']?[\w./*@$-]+[\"']?:(?:\s|$))|#[^\s#]")


class Places:
    def __init__(self, source: Source) -> None:
        self.source = source

    def below(self, entry: Entry) -> int:
        """Where the line begins that follows an entry and the comments that belong to its end."""
        source, end = self.source, entry.end
        next_line = source.next_line(end)
        column = source.column(entry.start)
        if _has_lines(entry.value):
            return self._comments_from(next_line, lambda indent: indent > column)
        comment = source.text.find("#", end, source.line_end(end))
        if comment < 0:
            return next_line
        aligned = source.column(comment)
        return self._comments_from(next_line, lambda indent: indent == aligned > column, gaps=False)

    def _comments_from(self, start: int, belongs: Callable[[int], bool], *, gaps: bool = True) -> int:
        """Where the line begins that follows the last comment line that belongs; `gaps`: blank lines between may be."""
        found = start
        while start < len(self.source.text):
            line = self.source.text[start : self.source.line_end(start)]
            stripped = line.lstrip(" \t")
            following = self.source.next_line(start)
            if stripped.startswith("#") and belongs(len(line) - len(stripped)):
                found = following
            elif stripped or not gaps:
                break
            start = following
        return found

    def above(self, parent: Collection, index: int) -> int:
        """Where the first line begins of an entry that begins its line, with the prose directly above it."""
        source, entry = self.source, parent.entries[index]
        prose = self._prose(entry)
        own = source.line_start(entry.start)
        if index or prose == own:
            return prose
        if prose == 0:  # the head of the file
            return own
        described = any(self._prose(other) != source.line_start(other.start) for other in parent.entries[1:3])
        return prose if described else own

    def _prose(self, entry: Entry) -> int:
        """Where the prose directly above an entry begins, else its line."""
        source = self.source
        column = source.column(entry.start)
        line = found = source.line(entry.start)
        is_prose = True
        while line:
            text = source.text[source.starts[line - 1] : source.starts[line]]
            comment = text.lstrip(" \t")
            if not comment.startswith("#") or len(text) - len(comment) != column:
                break
            if not _WORD.search(comment):  # a ruler: all of this is about a section
                return source.line_start(entry.start)
            is_prose = is_prose and not _COMMENTED_OUT.match(comment)
            line -= 1
            if is_prose:
                found = line
        return source.starts[found]

    def span(self, parent: Collection, index: int) -> tuple[int, int]:
        """The lines of an entry that begins its line: what goes when it goes.

        Blank lines above go with it where a blank line, the section's end or the text's end follows, so that what was
        apart stays as far apart as it was.
        """
        source = self.source
        start, end = self.above(parent, index), self.below(parent.entries[index])
        line = source.line(start)
        if not self._ends_section(end, source.column(parent.entries[index].start)):
            return start, end
        bound = source.line(parent.entries[index - 1].end) + 1 if index else line
        while line > bound and not source.text[source.starts[line - 1] : source.starts[line]].strip():
            line -= 1
        return source.starts[line], end

    def _ends_section(self, start: int, column: int) -> bool:
        line = self.source.text[start : self.source.line_end(start)]
        return not line.strip() or len(line) - len(line.lstrip()) < column

    def is_apart(self, parent: Collection, index: int) -> bool:
        """True if a blank line stands between an entry and the one before it."""
        line = self.source.line(self.above(parent, index))
        return not self.source.text[self.source.starts[line - 1] : self.source.starts[line]].strip()


def _has_lines(value: Node) -> bool:
    """True if what stands below an entry's line is, or would be, its value."""
    return value.content == value.end or (isinstance(value, Collection) and not value.flow)
