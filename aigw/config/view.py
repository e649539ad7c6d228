"""The config as the admin API shows and takes it: every default filled in, in the notation that people write, and no
secret in it.

    expanded   what stands in the file, or in a body -> all members, short forms written out
    masked     the same with `***` for literal secrets; references (`${NAME}`) stay as they are written
    restored   what was sent back -> with the stored secrets again where it says `***`
    merged     the new value of an item, with the file's own spelling of whatever has not changed

It walks plain data along the schema and says nothing about validity: what has another shape than the schema wants is
passed through, since the validation of the whole names it. It knows no text, no file and no HTTP.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from aigw.config import schema
from aigw.config import values as val
from aigw.config.document import default_name
from aigw.config.edit.plain import same, typed
from aigw.config.problem import Path, path_text, secretive
from aigw.config.values import Plain

__all__ = [
    "MASK",
    "MISSING",
    "Kind",
    "StrangeMask",
    "expanded",
    "holds_secret",
    "inner_of",
    "kind_at",
    "mask",
    "masked",
    "merged",
    "name_of",
    "restored",
    "root",
]

MASK = "***"

# Headers whose value is a credential, whatever it looks like.
_CREDENTIAL = re.compile(r"auth|key|token|secret|cookie|pass|credential|signature", re.IGNORECASE)
# What may be shown of a secret: references without a default of their own, and the scheme before them.
_SHOWN = re.compile(r"(?:(?i:bearer|basic|token) +)?(?:\$\{(?:file:[^}]*|[A-Za-z_][A-Za-z0-9_]*(?::-)?)\})+")

# A bare scalar stands for a mapping with that one member.
_SHORT = {schema.Listen: "address", schema.UsageStore: "path", schema.ModelEntry: "upstream"}


class Missing:
    """The type of `MISSING`: nothing stands there, which is not the same as null."""


MISSING = Missing()


class StrangeMask(Exception):
    """A `***` came where no secret is stored; `path` is relative to the value that was sent."""

    def __init__(self, path: Path) -> None:
        super().__init__(path_text(path))
        self.path = path


@dataclass(frozen=True, slots=True)
class Kind:
    """What may stand at a place. `fields` where it has members of its own names, `items` where it holds many of a kind;
    a scalar has neither. `is_text`: unquoted numbers are text here too."""

    fields: "dict[str, tuple[Kind, object]] | None" = None  # kind and default of each
    items: "Kind | None" = None
    is_list: bool = False
    is_text: bool = False
    is_secret: bool = False
    short: str | None = None


@cache
def root() -> Kind:
    return _model(schema.Config)


def kind_at(path: Path) -> Kind:
    """Of what stands at a path of the config: names and positions count for the items they lead to."""
    kind = root()
    for step in path:
        if kind.fields is not None and step in kind.fields:
            kind = kind.fields[str(step)][0]
        elif kind.items is not None:
            kind = kind.items
        else:
            return Kind()
    return kind


@cache
def _model(model: type[schema.Model]) -> Kind:
    fields: dict[str, tuple[Kind, object]] = {}
    for name, info in model.model_fields.items():
        default = MISSING if info.is_required() or info.default is None else info.default
        kind = _kind(info.annotation, list(info.metadata))
        if name == "headers":
            kind = Kind(items=Kind(is_text=True))  # secret or not: the name says it
        fields[info.alias or name] = (kind, default)
    return Kind(fields=fields, short=_SHORT.get(model))


def _kind(annotation: Any, metadata: list[Any]) -> Kind:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        return _kind(inner, more)
    scalar = next((entry for entry in metadata if isinstance(entry, schema.Scalar)), None)
    if scalar is not None:
        return Kind(is_text=_takes_text(scalar), is_secret=scalar.read is val.secret)
    if isinstance(annotation, type) and issubclass(annotation, schema.Model):
        return _model(annotation)
    arguments = get_args(annotation)
    if origin is list:
        return Kind(items=_kind(arguments[0], []), is_list=True)
    if origin is dict:
        return Kind(items=_kind(arguments[1], []))
    inner = [argument for argument in arguments if argument is not type(None)]
    return _kind(inner[0], []) if len(inner) == 1 else Kind()


def _takes_text(scalar: schema.Scalar) -> bool:
    return scalar.schema.get("type") == ["string", "number", "boolean"]


# --- showing


def expanded(kind: Kind, value: object) -> Any:
    """What `value` says, as JSON: with every default, short forms written out."""
    return _shown(kind, value, lambda kind, name, value: value)


def masked(kind: Kind, value: object) -> Any:
    """The same, as it may be shown."""
    return _shown(kind, value, _masked)


def _masked(kind: Kind, name: str, value: object) -> object:
    return mask(str(value)) if holds_secret(kind, name, value) else value


def mask(text: str) -> str:
    """A secret as it may be shown."""
    return text if _SHOWN.fullmatch(text) or text in ("", "client") else MASK


def holds_secret(kind: Kind, name: str, value: object) -> bool:
    """`name` is the member's own; of a header, with `header ` before it."""
    if not isinstance(value, str) or kind.fields is not None or kind.items is not None:
        return False
    return kind.is_secret or (name.startswith("header ") and bool(_CREDENTIAL.search(name) or secretive(value)))


def _shown(kind: Kind, value: object, leaf: Callable[[Kind, str, object], object], name: str = "") -> Any:
    if kind.fields is not None:
        if kind.short is not None and not isinstance(value, dict):
            value = {kind.short: value}
        if not isinstance(value, dict):
            return _plain(kind, value)
        found = {
            key: _shown(inner, value.get(key, default), leaf, key)
            for key, (inner, default) in kind.fields.items()
            if key in value or default is not MISSING
        }
        return found | {key: _plain(Kind(), child) for key, child in value.items() if key not in kind.fields}
    if kind.items is not None:
        if kind.is_list and not isinstance(value, list):
            value = [value]
        prefix = "header " if name == "headers" else ""
        if isinstance(value, dict):
            return {str(key): _shown(kind.items, child, leaf, f"{prefix}{key}") for key, child in value.items()}
        if isinstance(value, list):
            return [_shown(kind.items, child, leaf, name) for child in value]
    return leaf(kind, name, _plain(kind, value))


def _plain(kind: Kind, value: object) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(Kind(), child) for key, child in value.items()}
    if isinstance(value, list):
        return [_plain(Kind(), child) for child in value]
    shown = typed(value)
    return str(value) if isinstance(value, Plain) and kind.is_text and shown is not None else shown


# --- taking


def restored(kind: Kind, value: Any, stored: object, path: Path = (), name: str = "") -> Any:
    """`value` as it was sent, with what is stored where it holds the mask of that.

    Raises: StrangeMask.
    """
    if isinstance(value, dict):
        old = _as_mapping(kind, stored)
        prefix = "header " if name == "headers" else ""
        return {
            key: restored(inner_of(kind, key), child, old.get(key, MISSING), (*path, key), f"{prefix}{key}")
            for key, child in value.items()
        }
    if isinstance(value, list):
        inner = kind.items or Kind()
        return [
            restored(inner, child, counterpart(child, index, stored), (*path, index), name)
            for index, child in enumerate(value)
        ]
    if not isinstance(value, str) or MASK not in value or not (kind.is_secret or name.startswith("header ")):
        return value
    if isinstance(stored, str) and str(value) == _masked(kind, name, str(stored)):
        return stored
    if name.startswith("header ") and value != MASK:
        return value
    raise StrangeMask(path)


def merged(kind: Kind, value: Any, stored: object) -> Any:
    """The new `value` of an item that is `stored`: the file's own scalars and short forms wherever it says the same,
    and no default that the file does not state."""
    if isinstance(stored, Missing):
        return value
    if same(expanded(kind, value), expanded(kind, stored)):
        return stored
    if isinstance(value, dict):
        old = _as_mapping(kind, stored)
        found = {}
        for key, child in value.items():
            inner = inner_of(kind, key)
            default = kind.fields[key][1] if kind.fields is not None and key in kind.fields else MISSING
            if key not in old and default is not MISSING and same(expanded(inner, child), expanded(inner, default)):
                continue
            found[key] = merged(inner, child, old.get(key, MISSING))
        return found
    if isinstance(value, list):
        inner = kind.items or Kind()
        return [merged(inner, child, counterpart(child, index, stored)) for index, child in enumerate(value)]
    return value


def counterpart(child: object, index: int, stored: object) -> object:
    """The item of a stored list that a new one stands for: with its name, or else at its position."""
    if not isinstance(stored, list):
        return MISSING
    wanted = name_of(child)
    if wanted is not None:
        return next((old for old in stored if name_of(old) == wanted), MISSING)
    return stored[index] if index < len(stored) and name_of(stored[index]) is None else MISSING


def name_of(item: object) -> str | None:
    """Of an item of a list: a rule's, a target's, which may be its host and port."""
    if not isinstance(item, dict):
        return None
    if isinstance(name := item.get("name"), str):
        return str(name)
    url = item.get("url")
    return default_name(str(url)) if isinstance(url, str) else None


def _as_mapping(kind: Kind, stored: object) -> dict[str, Any]:
    if isinstance(stored, dict):
        return stored
    if kind.short is not None and isinstance(stored, str):
        return {kind.short: stored}
    return {}


def inner_of(kind: Kind, key: str) -> Kind:
    if kind.fields is not None:
        return kind.fields[key][0] if key in kind.fields else Kind()
    return kind.items or Kind()
