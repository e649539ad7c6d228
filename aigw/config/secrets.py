"""The config's text without the secrets that stand in it, and back: what GET shows and PUT takes as YAML.

Values are masked where the schema has a credential; comments where something in them looks like one, since people
comment out what they will need again. What comes back with a mask gets what was masked: values by their place,
comments by the looks of their line.
"""

import re
from typing import Any

from aigw.config import edit
from aigw.config.edit.plain import same
from aigw.config.loader import Loader
from aigw.config.problem import ConfigError, secretive
from aigw.config.view import MASK, Kind, holds_secret, inner_of, mask, restored, root

__all__ = ["masked_text", "restored_text"]

_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*$", re.MULTILINE)
_WORD = re.compile(r"[^\s\"'{}\[\],:=]+")


def masked_text(text: str, raw: Any) -> str:
    """`text`, which says `raw`, as it may be shown."""
    hidden = _hidden(root(), raw)
    shown = edit.set_item(text, (), hidden) if hidden is not raw else text
    return _quieted(shown)


def _quieted(text: str) -> str:
    return _COMMENT.sub(lambda match: _quiet(match[0]), text)


def _quiet(comment: str) -> str:
    return _WORD.sub(lambda word: MASK if secretive(word[0]) else word[0], comment)


def _hidden(kind: Kind, value: Any, name: str = "") -> Any:
    """`value` with its secrets masked; the same object where it holds none."""
    if isinstance(value, dict):
        prefix = "header " if name == "headers" else ""
        found = {key: _hidden(inner_of(kind, key), child, f"{prefix}{key}") for key, child in value.items()}
        return found if any(found[key] is not child for key, child in value.items()) else value
    if isinstance(value, list):
        items = [_hidden(kind.items or Kind(), child, name) for child in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if holds_secret(kind, name, value):
        shown = mask(str(value))
        return value if shown == value else shown
    return value


def restored_text(sent: str, text: str, raw: Any) -> str:
    """The text that was sent, with the secrets of the stored one (`raw` is what that says) where it has masks.

    Raises: ConfigError, where it cannot be read; `view.StrangeMask`.
    """
    if MASK not in sent:
        return sent
    sent = _with_lines(sent, _quieted(text), text)
    whole = restored(root(), _read(sent), raw)
    # As they were spelled, where that gives the same: a line that looks like a masked one may well be another's.
    spelled = _with_lines(sent, masked_text(text, raw), text)
    return spelled if same(_read(spelled), whole) else edit.set_item(sent, (), whole)


def _with_lines(sent: str, masked: str, text: str) -> str:
    """`sent` with lines of `text` for those that are as `masked` has them, where that says which ones."""
    shown, real = masked.split("\n"), text.split("\n")
    if len(shown) != len(real):
        return sent
    found: dict[str, set[str]] = {}
    for before, line in zip(shown, real, strict=True):
        found.setdefault(before, set()).add(line)
    return "\n".join(min(found[line]) if len(found.get(line, ())) == 1 else line for line in sent.split("\n"))


def _read(text: str) -> Any:
    loader = Loader(text, "body", lambda value: value)
    if loader.problems:
        raise ConfigError(loader.problems)
    return loader.data
