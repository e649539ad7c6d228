"""What is wrong with a config, said so that it can be put right.

A finding is a path into the document and a message; a problem adds the file, line and column. This module knows neither
YAML nor the schema. Its second task is discretion: a message may repeat what somebody wrote, except where that could be
a secret, because a key pasted into the wrong field must not travel on into terminals, logs and tickets.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["ConfigError", "Finding", "Path", "Problem", "nearest", "path_text", "quote", "secretive"]

Path = tuple[str | int, ...]

# How the keys of well-known providers and tools begin, and any long run without a gap that mixes letters and digits.
_TOKEN = re.compile(
    r"(?i)(?<![a-z0-9])(?:bearer[ ]|(?:sk|pk|rk|gsk|xai|hf|ghp|gho|glpat|xox[abp]|akia|aiza|eyj)[-_a-z0-9]).{8}"
    r"|(?=[a-z_+=]*[0-9])(?=[0-9_+=]*[a-z])[a-z0-9_+=]{28}"
)
_BARE = re.compile(r"[A-Za-z0-9_@*/-]+")


class Finding(NamedTuple):
    """Something wrong at `path`. `at_key` asks for the position of the key rather than of its value."""

    path: Path
    message: str
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class Problem:
    """One error or warning. Line and column count from 1; line 0 means the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else f"{self.file}:"
        return f"{place} {self.path}: {self.message}" if self.path else f"{place} {self.message}"


class ConfigError(Exception):
    """A config that cannot be used; `problems` holds everything found, in the order of the file, and is never empty."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


def secretive(text: str) -> bool:
    """True if `text` looks like a credential, whatever field it stands in."""
    return _TOKEN.search(text[:512]) is not None


def path_text(path: Path) -> str:
    """`gateways.default.rules[0].name`; a segment that would be ambiguous is quoted: `models["gpt-4.1"]`."""
    parts: list[str] = []
    for segment in path:
        if isinstance(segment, int):
            parts.append(f"[{segment}]")
        elif secretive(segment):
            parts.append('["***"]')
        elif _BARE.fullmatch(segment) and len(segment) <= 80:
            parts.append(f".{segment}" if parts else segment)
        else:
            parts.append(f"[{_quoted(segment if len(segment) <= 80 else segment[:77] + '...')}]")
    return "".join(parts)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def quote(value: str, otherwise: str = "this text") -> str:
    """`value` in quotes for a message, or `otherwise` where it might be a secret, is too long or was interpolated."""
    if hasattr(value, "source") or len(value) > 80 or secretive(value):
        return otherwise
    return _quoted(value)


def nearest(word: str, known: Collection[str]) -> str:
    """`; did you mean "x"?` where one of `known` resembles `word`, else nothing; nothing among very many either."""
    from difflib import get_close_matches  # only when there is something to report

    if hasattr(word, "source") or secretive(word) or len(known) > 200:  # 20 us for each
        return ""
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {_quoted(close[0])}?" if close else ""
