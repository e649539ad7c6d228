"""What the admin API calls a resource, found in the config: gateways, upstreams, and what they hold by name.

    ["gateways", G]   ["gateways", G, "keys" | "models" | "rules", NAME]
    ["upstreams", U]  ["upstreams", U, "targets", NAME]

Some stand in mappings, some in lists, some in neither, because the default holds while nothing is written: who adds a
rule to the default one means both. A resource knows where it stands and makes the text in which it stands otherwise;
whether that may be served is not its business.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from aigw.config import edit as text_edit
from aigw.config.document import URLS
from aigw.config.problem import Path, path_text, quote
from aigw.config.values import duration
from aigw.config.view import MISSING, Kind, StrangeMask, expanded, kind_at, name_of, restored
from aigw.config.walk import mapping

__all__ = ["COLLECTIONS", "Refusal", "Resource", "described", "etag", "locate"]

COLLECTIONS = {"gateways": ("keys", "models", "rules"), "upstreams": ("targets",)}
RULES = [{"name": "api", "path": "/*"}]  # what an absent `rules` means


class Refusal(Exception):
    """Why an edit is not done: a status of HTTP, a code for programs, a sentence for people, details."""

    def __init__(self, status: int, code: str, message: str, details: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or []

    @classmethod
    def invalid(cls, details: list[dict[str, Any]]) -> "Refusal":
        more = f" (and {len(details) - 1} more, see details)" if len(details) > 1 else ""
        first = details[0]
        return cls(422, "invalid", f"{first['path']}: {first['message']}{more}".removeprefix(": "), details)

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "code": self.code, "message": self.message, "details": self.details}


def etag(item: object) -> str:
    """An entity tag without its quotes: a digest of the canonical JSON."""
    text = json.dumps(item, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def named(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """An item as the API has it: its name and the config's own fields."""
    return {"name": name} | {key: value for key, value in item.items() if key != "name"}


class Described(NamedTuple):
    at: list[str]
    item: dict[str, Any]
    shown: dict[str, Any]


def described(whole: dict[str, Any], shown: dict[str, Any]) -> Iterator[Described]:
    """Every resource of an expanded document, beside what may be shown of it."""
    for top, collections in COLLECTIONS.items():
        for name, item in whole[top].items():
            yield Described([top, name], named(name, item), named(name, shown[top][name]))
            for collection in collections:
                stored = members(item, collection)
                visible = members(shown[top][name], collection)
                for inner, child in stored.items():
                    yield Described([top, name, collection, inner], named(inner, child), named(inner, visible[inner]))


def members(holder: dict[str, Any], collection: str) -> dict[str, Any]:
    """What an expanded gateway or upstream holds of a kind, by name; what stands there by default included."""
    found = holder.get(collection) or _default(holder, collection)
    if isinstance(found, list):
        return {name: item for item in found if (name := name_of(item)) is not None}
    return dict(found)


def _default(holder: dict[str, Any], collection: str) -> Any:
    if collection == "targets" and holder.get("provider") in URLS:
        kind = kind_at(("upstreams", "*", "targets", 0))
        return [expanded(kind, {"url": URLS[str(holder["provider"])]})]
    return {}


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, which may not be there yet: then `stored` is MISSING.

    `path` is where it stands in the config; in a list `items` holds all of that list and `index` its own position.
    """

    at: list[str]
    path: Path
    kind: Kind
    stored: Any
    items: list[Any] | None
    index: int

    @property
    def name(self) -> str:
        return self.at[-1]

    @property
    def title(self) -> str:
        return f"the {self.at[-2][:-1]} {quote(self.name, 'of that name')}"

    def unknown(self) -> Refusal:
        where = "" if len(self.at) == 2 else f" in the {self.at[0][:-1]} {quote(self.at[1], 'of that name')}"
        message = f"there is no {self.at[-2][:-1]} {quote(self.name, 'of that name')}{where}"
        return Refusal(404, "not_found", message)

    def shown(self, how: Callable[[Kind, object], Any]) -> dict[str, Any]:
        return named(self.name, how(self.kind, self.stored))

    def wanted(self, edit: dict[str, Any]) -> Any:
        """What it shall be, by the edit's value."""
        if edit["op"] == "rotate":
            return self._rotated(edit)
        value = dict(edit["value"])
        if value.pop("name", self.name) != self.name:
            message = (
                f"the name in the body differs from {quote(self.name, 'the one')} in the path; send the same, or none"
            )
            raise Refusal(422, "invalid", message, [{"path": "name", "message": message}])
        try:
            value = restored(self.kind, value, self.stored)
        except StrangeMask as error:
            raise strange((*self.path[:-1], self.name, *error.path)) from None
        if edit["op"] == "patch":
            value = patched(expanded(self.kind, self.stored), value)
        if self.items is None:
            return value
        value.pop("name", None)
        is_derived = name_of(value) == self.name and "name" not in mapping(self.stored)
        return value if is_derived else {"name": self.name, **value}

    def _rotated(self, edit: dict[str, Any]) -> Any:
        try:
            grace = duration(zero=True)(edit["grace"])
        except ValueError as error:
            raise Refusal.invalid([{"path": "grace", "message": str(error)}]) from None
        value = {**self.stored, "sha256": edit["value"]["sha256"]}
        value.pop("previous", None)
        if grace:
            until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + grace))
            value["previous"] = {"sha256": self.stored["sha256"], "until": until}
        return value

    def with_value(self, text: str, value: Any) -> str:
        if value is self.stored:  # a default that is not written stays so
            return text
        if self.items is None:
            return text_edit.set_item(text, self.path, value)
        after = self.items[self.index + 1 :]
        return text_edit.set_item(text, self.path[:-1], [*self.items[: self.index], value, *after])

    def without(self, text: str) -> str:
        if self.items is None:
            return text_edit.delete_item(text, self.path)
        return text_edit.set_item(text, self.path[:-1], self.items[: self.index] + self.items[self.index + 1 :])


def locate(raw: Any, edit: dict[str, Any]) -> Resource:
    """The resource of an edit; for a create the one that its body names. Raises: Refusal."""
    at = list(edit["at"])
    if edit["op"] == "create":
        at.append(_name_in(edit["value"], at))
    holder = raw
    path: Path = ()
    if len(at) == 4:
        place = mapping(mapping(raw).get(at[0])).get(at[1], MISSING)
        path = (at[0], at[1])
        above = Resource(at[:2], path, kind_at(path), place, None, 0)
        if not isinstance(place, dict):
            raise above.unknown()
        holder = place
    collection, name = at[-2:]
    stored = holder.get(collection, MISSING)
    if collection in ("rules", "targets") and not isinstance(stored, dict):
        if stored is MISSING:
            stored = RULES if collection == "rules" else [
                {"url": target["url"]} for target in _default({"provider": str(holder.get("provider"))}, collection)
            ]  # fmt: skip
        items = stored if isinstance(stored, list) else []
        index = next((index for index, item in enumerate(items) if name_of(item) == name), len(items))
        kind = kind_at((*path, collection, index))
        return Resource(
            at, (*path, collection, index), kind, items[index] if index < len(items) else MISSING, items, index
        )
    path = (*path, collection, name)
    return Resource(at, path, kind_at(path), mapping(stored).get(name, MISSING), None, 0)


def strange(path: Path) -> Refusal:
    """A `***` that stands for nothing."""
    message = "*** stands for a stored secret, and none is stored here; send the secret, or a reference to it"
    return Refusal.invalid([{"path": path_text(path), "message": message}])


def _name_in(value: dict[str, Any], at: list[str]) -> str:
    name = value.get("name")
    if name is None and at[-1] == "targets":
        name = name_of(value)
    if not isinstance(name, str) or not name:
        message = f'what is created needs a name: {{"name": "...", ...}} makes a {at[-1][:-1]} of that name'
        raise Refusal(422, "invalid", f"name: {message}", [{"path": "name", "message": message}])
    return name


def patched(target: Any, patch: Any) -> Any:
    """RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = patched(found.get(key), value)
    return found
