"""What the mock says: text of a given length, the smallest instance of a JSON schema, vectors, counts of tokens.

Everything follows from the request alone, so equal requests get equal answers. Knows no dialect.
"""

import operator
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from aigw.mock.values import Refused

_SENTENCE = "The mock provider answers with the same text every time, so tests may rely on it."
_WORDS = tuple(" " + word for word in _SENTENCE.split())

_SLICE = 4
"""Characters of JSON in one token: what tokenizers average on English."""

_DEPTH = 32
"""Of a schema, references followed. Real ones are far flatter; a schema that needs itself has no end."""


@dataclass(frozen=True, slots=True)
class Text:
    """An answer's text as `count` tokens. cut: the client's own maximum ended it; exact: JSON, else the sentence."""

    count: int
    cut: bool
    exact: str | None = None

    def piece(self, index: int) -> str:
        if self.exact is not None:
            return self.exact[index * _SLICE : (index + 1) * _SLICE]
        return _WORDS[index % len(_WORDS)] if index else _WORDS[0].lstrip()

    def whole(self) -> str:
        if self.exact is not None:
            return self.exact[: self.count * _SLICE]
        rounds, rest = divmod(self.count, len(_WORDS))
        return ("".join(_WORDS) * rounds + "".join(_WORDS[:rest])).lstrip()


def compose(tokens: int, limit: Any, exact: str | None = None) -> Text:
    """Text of so many tokens, or exactly this one, shortened to the client's limit where that is a positive number."""
    count = tokens if exact is None else -(-len(exact) // _SLICE)
    if isinstance(limit, int) and 0 < limit < count:
        return Text(limit, True, exact)
    return Text(count, False, exact)


def json_for(schema: Any) -> str:
    """The smallest instance of a schema as JSON text. Raises Refused where the mock can find none."""
    return orjson.dumps(instance(schema)).decode()


def instance(schema: Any) -> Any:
    """A small value that satisfies a JSON schema: required members only, the fewest items, the first alternative.

    Understands what SDKs generate, local `$ref` and Gemini's upper-case types among it; `pattern` is not honoured.
    Raises Refused where there is no end (a schema that requires itself) or a reference leads nowhere.
    """
    return _instance(schema, schema, _DEPTH)


def _instance(schema: Any, root: Any, depth: int) -> Any:
    if not depth:
        raise Refused(400, f"the schema is more than {_DEPTH} levels deep, or requires itself without end")
    if not isinstance(schema, dict):
        return {}
    if "$ref" in schema:
        return _instance(_resolve(schema["$ref"], root), root, depth - 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    if isinstance(schema.get("allOf"), list):
        return _instance(_merged(schema, root), root, depth - 1)
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list) and schema[word]:
            # An alternative without a reference first: it cannot recurse.
            choice = min(schema[word], key=lambda option: isinstance(option, dict) and "$ref" in option)
            return _instance(choice, root, depth - 1)
    return _typed(schema, root, depth)


def _typed(schema: dict[str, Any], root: Any, depth: int) -> Any:
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[0] if kind else "null"
    match str(kind).lower():
        case "object":
            properties = schema.get("properties")
            known = properties if isinstance(properties, dict) else {}
            names = [name for name in schema.get("required") or () if isinstance(name, str)]
            return {name: _instance(known.get(name, {}), root, depth - 1) for name in names}
        case "array":
            shape = schema.get("items", {})
            return [_instance(shape, root, depth - 1) for _ in range(min(_whole(schema.get("minItems")), 100))]
        case "string":
            return _string(schema)
        case "integer" | "number":
            return _numeric(schema, whole=str(kind).lower() == "integer")
        case "boolean":
            return True
        case _:
            return None


_FORMATS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "mock@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def _string(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(str(schema.get("format")), "mock")
    text = text.ljust(min(_whole(schema.get("minLength")), 10_000), "k")
    longest = schema.get("maxLength")
    return text[: _whole(longest)] if longest is not None else text


def _numeric(schema: dict[str, Any], *, whole: bool) -> int | float:
    """Zero, or the value at or beside one of the bounds that lies within all of them; zero where none is found."""
    multiple: Any = schema.get("multipleOf")
    step = multiple if _is_number(multiple) and multiple > 0 else 1 if whole else None
    edges = [schema[word] for word in _bounds(schema)]
    beside = [0, *edges, sum(edges) / max(1, len(edges)), *(edge + away for edge in edges for away in (1, -1))]
    if step is not None:
        beside = [0, *((edge // step + away) * step for edge in edges for away in (0, 1, -1))]
    fitting = next(
        (value for value in beside if all(_BOUNDS[word](value, schema[word]) for word in _bounds(schema))), 0
    )
    return int(fitting) if whole else fitting


_BOUNDS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": operator.ge,
    "exclusiveMinimum": operator.gt,
    "maximum": operator.le,
    "exclusiveMaximum": operator.lt,
}


def _bounds(schema: dict[str, Any]) -> list[str]:
    return [word for word in _BOUNDS if _is_number(schema.get(word))]


def _merged(schema: dict[str, Any], root: Any) -> dict[str, Any]:
    merged = {name: value for name, value in schema.items() if name != "allOf"}
    for part in schema["allOf"]:
        part = _resolve(part["$ref"], root) if isinstance(part, dict) and "$ref" in part else part
        if not isinstance(part, dict):
            continue
        for name, value in part.items():
            if name == "properties" and isinstance(merged.get(name), dict) and isinstance(value, dict):
                merged[name] = merged[name] | value
            elif name == "required" and isinstance(merged.get(name), list) and isinstance(value, list):
                merged[name] = merged[name] + value
            else:
                merged[name] = value
    return merged


def _resolve(reference: Any, root: Any) -> Any:
    """The schema a local reference such as `#/$defs/Step` points at (RFC 6901)."""
    found = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise Refused(
            400, f"$ref {str(reference)[:80]!r}: only references into the same schema work, as in #/$defs/Name"
        )
    for name in filter(None, reference[1:].split("/")):
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise Refused(400, f"$ref {reference[:80]!r} leads nowhere in the schema")
        found = found[name]
    return found


def _whole(value: Any) -> int:
    return int(value) if _is_number(value) and value > 0 else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_SAID = frozenset({"system", "instructions", "messages", "prompt", "input", "contents", "content", "parts", "text"})


def prompt_tokens(document: dict[str, Any]) -> int:
    """About how many tokens the request's text has: a quarter of its characters, at least 1. Images count nothing."""
    characters = 0
    waiting: list[Any] = [document]
    for value in waiting:  # which grows meanwhile
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, dict):
            waiting += [value[name] for name in _SAID & value.keys()]
        elif isinstance(value, list):
            waiting += value
    return max(1, characters // 4)


def vector(said: Any, size: int) -> list[float]:
    """An embedding: numbers in [-1, 1] that follow from what was said, each a float32 exactly."""
    seed = zlib.crc32(orjson.dumps(said))
    return [((seed * (index + 1) * 2_654_435_761 >> 8) % 257 - 128) / 128 for index in range(size)]


def packed(numbers: list[float]) -> bytes:
    """As float32, little-endian: what OpenAI encodes in base64."""
    return struct.pack(f"<{len(numbers)}f", *numbers)
