"""aigw.mock.content: text, instances of schemas, counts."""

from typing import Any

import jsonschema
import pytest

from aigw.mock.content import compose, instance, packed, prompt_tokens, vector
from aigw.mock.values import Refused


@pytest.mark.parametrize("tokens", [0, 1, 16, 17, 40])
def test_pieces_make_the_whole(tokens: int) -> None:
    text = compose(tokens, None)
    assert text.count == tokens
    assert not text.cut
    assert "".join(text.piece(index) for index in range(tokens)) == text.whole()


def test_the_client_limit_cuts() -> None:
    assert compose(16, 3).whole() == "The mock provider"
    assert compose(16, 3).cut
    assert not compose(16, 16).cut
    assert not compose(16, "many").cut


def test_exact_text_in_slices() -> None:
    text = compose(16, None, '{"größe":12}')
    assert [text.piece(index) for index in range(text.count)] == ['{"gr', 'öße"', ":12}"]
    assert text.whole() == '{"größe":12}'
    assert compose(16, 1, '{"größe":12}').whole() == '{"gr'


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
    {"properties": {"a": {"const": [1]}}, "required": ["a"]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2},
    {"type": ["string", "null"], "minLength": 9, "maxLength": 12},
    {"type": "string", "maxLength": 2},
    {"type": "string", "format": "date-time"},
    {"enum": ["x", "y"]},
    {"type": "null"},
    {"type": "integer", "minimum": 3},
    {"type": "integer", "exclusiveMinimum": 3, "multipleOf": 5},
    {"type": "integer", "maximum": -3},
    {"type": "integer", "exclusiveMaximum": 0},
    {"type": "number", "minimum": 0.1, "maximum": 0.9},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "number", "exclusiveMinimum": 0.5},
    {"anyOf": [{"type": "integer", "minimum": 7}, {"type": "null"}]},
    {"oneOf": [{"$ref": "#/$defs/N"}, {"type": "string"}], "$defs": {"N": {"type": "null"}}},
    {"allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"$ref": "#/$defs/B"}],
     "$defs": {"B": {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}}},
    {"$ref": "#/$defs/Node",
     "$defs": {"Node": {"type": "object", "required": ["next", "name"], "properties": {
         "name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}}}}},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "boolean"}}},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_instances_satisfy_their_schema(schema: dict[str, Any]) -> None:
    jsonschema.validate(instance(schema), schema)


def test_required_members_only() -> None:
    assert instance(SCHEMAS[0]) == {"a": "mock"}


def test_types_of_gemini_are_upper_case() -> None:
    assert instance({"type": "OBJECT", "properties": {"n": {"type": "INTEGER"}}, "required": ["n"]}) == {"n": 0}


@pytest.mark.parametrize("schema", [None, True, 3, {"type": []}, {"type": "integer", "minimum": 5, "maximum": 4}])
def test_odd_schemas_get_something(schema: Any) -> None:
    assert instance(schema) in ({}, None, 0)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "#"}, "requires itself without end"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "requires itself without end"),
        ({"$ref": "#/$defs/Gone"}, "'#/$defs/Gone' leads nowhere"),
        ({"$ref": "https://example.com/schema"}, "only references into the same schema"),
    ],
)
def test_impossible_schemas_are_refused(schema: Any, message: str) -> None:
    with pytest.raises(Refused) as caught:
        instance(schema)
    assert caught.value.status == 400
    assert message in caught.value.message


def test_prompt_tokens_count_text_and_no_images() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
    said = {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}, image]}]}
    assert prompt_tokens(said) == 10
    assert prompt_tokens({"prompt": ["x" * 8, "y" * 8]}) == 4
    assert prompt_tokens({}) == 1


def test_deep_documents_do_not_recurse() -> None:
    deep: Any = "x" * 4
    for _ in range(1000):
        deep = [deep]
    assert prompt_tokens({"input": deep}) == 1


def test_vectors_follow_from_the_input_and_are_exact_as_float32() -> None:
    import struct

    numbers = vector("hello", 16)
    assert numbers == vector("hello", 16) != vector("hullo", 16)
    assert list(struct.unpack("<16f", packed(numbers))) == numbers
    assert all(-1 <= number <= 1 for number in numbers)
