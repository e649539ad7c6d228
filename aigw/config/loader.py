"""YAML text to plain data, with the place of every key. What YAML means here is said here alone.

Not PyYAML's own constructor, whose YAML 1.1 turns `on`, `12:30`, `010` and dates into something else and keeps the last
of duplicate keys silently. This one builds from the parser's events (of the C parser where PyYAML has it), in one pass,
and leaves the type of unquoted scalars open (`values.Plain`). What people do not need in a config, and what can be
abused, is refused with a remedy: tags, merge keys, several documents, keys that are no text, deep nesting, and aliases
that add up to more than a config holds (an alias costs what it stands for, so that a bomb is refused before anything
walks it).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from aigw.config.problem import ConfigError, Path, Problem, path_text, quote
from aigw.config.values import Plain, is_null

__all__ = ["Loader"]

MAX_DEPTH = 32  # the schema itself is 7 deep
MAX_ALIASED = 10_000  # nodes that aliases repeat, in total

_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # YAML 1.2 section 5.1
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAGS = 'tags (!) are not supported; leave it out, and put text in quotes: "5"'

Expand = Callable[[str], str | None]


class Loader:
    """One text, read once.

    `data` is what it holds: dicts with text keys, lists, `str` for quoted and `Plain` for unquoted scalars. `problems`
    are those found on the way that did not end the reading. `expand` is asked for each scalar with a `$`: its new text,
    or None, which leaves out the key or item; its ValueError becomes a problem, and the text stays as it was.

    Raises: ConfigError, where the text cannot be read to its end.
    """

    def __init__(self, text: str, name: str, expand: Expand) -> None:
        # the text
        self.name = name
        self.expand = expand
        self.text = text.removeprefix("\ufeff")
        # what was found
        self.problems: list[Problem] = []
        self.places: dict[Path, tuple[int, int, int, int]] = {}  # line and column of the key, and of the value
        # aliases: what an anchor stands for and how many nodes that is
        self.anchors: dict[str, tuple[object, int]] = {}
        self.nodes = 0
        self.aliased = 0
        self.events = self._parse()
        self.data = self._document()

    def place(self, path: Path, at_key: bool = False) -> tuple[int, int]:
        """Line and column (from 1) of the value at `path` or its key; of the nearest that exists where it does not."""
        while path and path not in self.places:
            path, at_key = path[:-1], True
        place = self.places.get(path, (1, 1, 1, 1))
        return place[:2] if at_key else place[2:]

    def _parse(self) -> Iterator[Any]:
        if match := _NOT_YAML.search(self.text):
            line = self.text.count("\n", 0, match.start()) + 1
            column = match.start() - self.text.rfind("\n", 0, match.start())
            code = f"U+{ord(match[0]):04X}"
            self._fail((line, column), f"the control character {code} has no place in YAML; remove it")
        try:
            yield from yaml.parse(self.text, Loader=_PARSER)
        except yaml.MarkedYAMLError as error:
            self._fail(*explain(self.text, error))

    def _fail(self, place: tuple[int, int], message: str) -> None:
        raise ConfigError([*self.problems, Problem(self.name, *place, "", message)])

    def _document(self) -> object:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            self._fail((1, 1), "the file is empty; `gateways: {}` is the least that a config says")
        data = self._value(next(self.events), (), None)
        next(self.events)  # the document's end
        if isinstance(event := next(self.events), yaml.DocumentStartEvent):
            self._fail(_place(event), "a second document begins here; a config is one document, so remove the ---")
        if not isinstance(data, dict):
            self._fail((1, 1), "must be a mapping of `key: value` lines, such as `gateways: {...}`")
        return data

    def _value(self, event: Any, path: Path, key_place: tuple[int, int] | None) -> object:
        """The value that begins with `event`; None where it is absent."""
        place = _place(event)
        if isinstance(event, yaml.AliasEvent):
            self._note(path, key_place or place, place)
            return self._alias(event, path, place)
        if event.tag is not None:
            self._problem(place, path, _TAGS)
        before = self.nodes
        self.nodes += 1
        value: object
        if isinstance(event, yaml.ScalarEvent):
            self._note(path, key_place or place, place)
            value = self._scalar(event, path, place)
        else:
            self._note(path, key_place or place, key_place or place)
            if len(path) >= MAX_DEPTH:
                self._fail(place, f"nested more than {MAX_DEPTH} deep; no config needs that")
            value = self._mapping(path) if isinstance(event, yaml.MappingStartEvent) else self._list(path)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.nodes - before)
        return value

    def _note(self, path: Path, key_place: tuple[int, int], place: tuple[int, int]) -> None:
        self.places.setdefault(path, (*key_place, *place))  # the first of duplicates keeps its place

    def _problem(self, place: tuple[int, int], path: Path, message: str) -> None:
        self.problems.append(Problem(self.name, *place, path_text(path), message))

    def _alias(self, event: Any, path: Path, place: tuple[int, int]) -> object:
        if event.anchor not in self.anchors:
            # A secret that begins with * would stand here too, and is not to be repeated.
            shown = "it" if _may_be_secret(path) else quote(f"*{event.anchor}", "it")
            self._fail(
                place, f"an unquoted text that begins with * is an alias, and nothing has that name; quote {shown}"
            )
        value, nodes = self.anchors[event.anchor]
        self.nodes += nodes
        self.aliased += nodes
        if self.aliased > MAX_ALIASED:
            self._fail(place, f"aliases repeat more than {MAX_ALIASED} values; write them out")
        return value

    def _scalar(self, event: Any, path: Path, place: tuple[int, int]) -> object:
        plain = event.implicit[0]
        if plain and event.start_mark.line != event.end_mark.line and "\n" in self.text_of(event):
            self._problem(place, path, "unquoted text goes on over several lines; quote it, or check the indentation")
        value = Plain(event.value) if plain else event.value
        if "$" not in event.value:
            return value
        try:
            return self.expand(value)
        except ValueError as error:
            self._problem(place, path, str(error))
            return value

    def text_of(self, event: Any) -> str:
        """The characters of an event, without blanks around them."""
        return self.text[event.start_mark.index : event.end_mark.index].strip()

    def _list(self, path: Path) -> list[object]:
        found: list[object] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            value = self._value(event, (*path, len(found)), None)
            if value is not None:
                found.append(value)
        return found

    def _mapping(self, path: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        lines: dict[str, int] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            place = _place(event)
            key = self._key(event, path, place)
            if key is None:  # said already
                self._value(next(self.events), path, place)
                continue
            value = self._value(next(self.events), (*path, key), place)
            if key in lines:
                self._problem(place, (*path, key), f"duplicate key; it stands in line {lines[key]} already, remove one")
                continue
            lines[key] = place[0]
            if value is not None:
                found[key] = value
        return found

    def _key(self, event: Any, path: Path, place: tuple[int, int]) -> str | None:
        if not isinstance(event, yaml.ScalarEvent):
            if isinstance(event, yaml.AliasEvent):
                shown = quote(f"*{event.anchor}", "it")
                self._fail(place, f"an unquoted key that begins with * is an alias; quote it: {shown}")
            self._value(event, path, place)
            self._problem(
                place, path, "a key must be text; this one is a list or mapping, so quote it if text is meant"
            )
            return None
        value = Plain(event.value) if event.implicit[0] else event.value
        if event.tag is not None or event.anchor is not None:
            self._problem(place, path, "tags (!) and anchors (&) on keys are not supported; leave it out")
        elif is_null(value) or not value:
            self._problem(place, path, "a key must be text; this one is empty, so write a name before the colon")
        elif isinstance(value, Plain) and value == "<<":
            self._problem(place, path, "merge keys (<<) are not supported; write the keys out")
        elif "${" in value:
            self._problem(place, path, "keys are not interpolated, values only; write the key out")
        else:
            return str(value)
        return None


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1


# What the parser says -> what it means for the one who wrote it, {line} being where the construct around it began. The
# third field: the place of that beginning says more than where the parser stopped.
_MEANINGS = (
    (
        "mapping values are not allowed",
        'text with ": " must be quoted; else the indentation of this line is wrong',
        False,
    ),
    ("could not find expected ':'", "this is no `key: value` line: the colon is missing (is the file complete?)", True),
    ("did not find expected key", "does not continue what began in line {line}: check indentation and quotes", False),
    ("did not find expected '-'", "does not continue the list of line {line}: check indentation and quotes", False),
    ("expected ',' or '}'", "the {{ of line {line} is not closed, or a comma is missing before this", False),
    ("expected ',' or ']'", "the [ of line {line} is not closed, or a comma is missing before this", False),
    ("unexpected end of stream", "this quote is never closed", True),
    ("unexpected document separator", "this quote is not closed before the ---", True),
    ("block sequence entries are not allowed", "a list with dashes begins on a line of its own", False),
    ("did not find expected node content", "a value is missing here", False),
    ("escape", "in double quotes a backslash begins an escape; write two, or use single quotes", False),
    ("tag", _TAGS, False),
    ("directive", "directives (%) are not supported; quote text that begins with %", False),
    ("incompatible YAML document", "directives (%) are not supported; remove this line", False),
)


def explain(text: str, error: yaml.MarkedYAMLError) -> tuple[tuple[int, int], str]:
    """A syntax error: line and column, and what would be right."""
    context, problem = error.context or "", error.problem or ""
    stopped = error.problem_mark
    assert stopped is not None, "the parser says where it stopped"
    began = error.context_mark or stopped
    here, there = (stopped.line + 1, stopped.column + 1), (began.line + 1, began.column + 1)
    at = text[stopped.index : stopped.index + 1]
    if at == "{" and text[stopped.index - 1 : stopped.index] == "$":
        return (here[0], here[1] - 1), '${...} inside {} or [] must be quoted: quote it, as in "${NAME}"'
    if "alias" in context or "anchor" in context:
        return there, 'an unquoted text cannot begin with * or &: quote it, as in "*"'
    if at == "\t" and "token" in problem + context:
        return here, "a tab cannot indent; use blanks"
    if "cannot start any token" in problem:
        return here, f"an unquoted text cannot begin with {at}: quote it"
    for said, meaning, at_beginning in _MEANINGS:
        if said in problem:
            return there if at_beginning else here, meaning.format(line=began.line + 1)
    return here, "not valid YAML; check quotes, brackets and indentation around here"


def _may_be_secret(path: Path) -> bool:
    return "headers" in path or (bool(path) and path[-1] in ("api_key", "sha256", "token"))
