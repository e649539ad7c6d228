"""A document in pieces, so that no process stands still over a big one: cut by the supervisor, joined by a worker.

    {"document": {...}}                              the document without what there can be thousands of
    {"at": [key, ...], "items": {...} or [...]}      more members of what stands there, `CHUNK` of them at most

A document of 10,000 keys is 2 MB of JSON: 20 ms to parse, for clients of a worker that reads it in one go.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

Document = dict[str, Any]

CHUNK = 64  # items in a piece: 10 to 20 KiB, a fifth of a millisecond to parse

_MANY = ("keys", "models", "rules")  # of a gateway


def cut(document: Document) -> Iterator[Document]:
    """The pieces, in the order in which they must be joined."""
    yield {"document": {**document, "upstreams": {}, "gateways": {}}}
    yield from _more(["upstreams"], document["upstreams"])
    shells = {
        name: {**gateway, **{field: type(gateway[field])() for field in _MANY}}
        for name, gateway in document["gateways"].items()
    }
    yield from _more(["gateways"], shells)
    for name, gateway in document["gateways"].items():
        for field in _MANY:
            yield from _more(["gateways", name, field], gateway[field])


def _more(at: list[str], items: dict[str, Any] | list[Any]) -> Iterator[Document]:
    if isinstance(items, dict):
        pairs = iter(items.items())
        while chunk := dict(islice(pairs, CHUNK)):
            yield {"at": at, "items": chunk}
    else:
        for start in range(0, len(items), CHUNK):
            yield {"at": at, "items": items[start : start + CHUNK]}


def join(document: Document, piece: Document) -> None:
    """Adds a piece that is not the first one."""
    place: Any = document
    for step in piece["at"]:
        place = place[step]
    if isinstance(place, dict):
        place.update(piece["items"])
    else:
        place.extend(piece["items"])
