"""The schema by itself: documents as JSON brings them, the list of keys, the JSON Schema."""

from typing import Any

import jsonschema
import pytest

from aigw.config import schema
from aigw.config.problem import path_text, quote, secretive
from aigw.config.values import Interpolated, Plain


def findings(document: object) -> list[str]:
    config, found = schema.validate(document)
    assert (config is None) == bool(found)
    return [f"{path_text(finding.path)}: {finding.message}" for finding in found]


def test_json_brings_numbers_and_booleans() -> None:
    config, found = schema.validate(
        {
            "workers": 1,
            "bounds": {"headers": 50, "head": 65536},
            "answer_headers": {"x-aigw": False},
            "prices": {"m": {"input": 0.5, "output": 2}},
            "gateways": {
                "g": {"retry": {"when": [429, "5xx"]}, "limits": [{"requests": "5/1h"}, {"cost": "0.5/day"}]},
            },
        }
    )
    assert found == []
    assert config is not None
    assert config.bounds.head == 65536
    assert config.prices["m"].output == 2.0
    assert config.gateways["g"].limits[0].requests == (5, 3600.0)
    assert config.gateways["g"].limits[1].cost == (0.5, "day")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"gateways": {}, "workers": True},
            "workers: must be a whole number from 1 to 1024; it is True; auto is one per core",
        ),
        ({"gateways": {}, "access_log": 5}, "access_log: must be text; it is 5, so put it in quotes"),
        ({"gateways": {}, "access_log": None}, "access_log: must be text; it is empty"),
        (
            {"gateways": {}, "drain": {"delay": 5}},
            'drain.delay: must be a duration such as 250ms, 30s, 5m, 1h or 90d, with a unit: "30s"',
        ),
        ({"gateways": None}, "gateways: must be a mapping of `key: value` lines; it is empty"),
        (
            {"gateways": {"g": {"models": {"m": 5}}}},
            "gateways.g.models.m: must be text; it is 5, so put it in quotes",
        ),
        (
            {"gateways": {"g": {"rules": [{"name": "a", "path": "/", "default": ["x"]}]}}},
            "gateways.g.rules[0].default: must be the name of an upstream, or a mapping of dialects to upstreams: "
            "{openai: NAME}",
        ),
        ([], ": must be a mapping of `key: value` lines; it is a list"),
    ],
)
def test_json_types_that_do_not_fit(document: object, message: str) -> None:
    assert findings(document) == [message]


@pytest.mark.parametrize(
    ("path", "value", "refused"),
    [
        (("prices", "m", "input"), Plain("-1"), True),
        (("prices", "m", "input"), Plain("1e3"), True),
        (("prices", "m", "input"), Plain("0.15"), False),
        (("upstreams", "u", "health"), {"path": "health"}, True),
        (("upstreams", "u", "health"), {"path": "/health?full=1"}, False),
        (("upstreams", "u", "health"), {"interval": Plain("off")}, True),
        (("upstreams", "u", "hash_on"), "header:X-Session", False),
        (("upstreams", "u", "eject"), {"after": Plain("0")}, True),
        (("usage_store",), Plain("off"), False),
        (("usage_store",), {"path": "x.db", "retention": "1d"}, False),
        (("usage_store",), {"retention": "x"}, True),
        (("trusted_proxies",), ["10.0.0.0/8", "2001:db8::/32", "10.1.2.3"], False),
        (("admin",), {"listen": "0.0.0.0:1", "token": "t"}, False),
        (("admin",), {"listen": "unix:/run/admin.sock"}, False),
        (("listen",), {"address": "127.0.0.1:1", "tls": {"cert": "a"}}, True),
    ],
)
def test_keys_of_features_to_come_are_validated(path: tuple[str, ...], value: object, refused: bool) -> None:
    document: dict[str, Any] = {"gateways": {}, "upstreams": {"u": {"provider": "mock"}}}
    if path[0] == "prices":
        document["prices"] = {"m": {"input": 1, "output": 1}}
    holder = document
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    assert bool(findings(document)) == refused


def test_keys_are_dotted() -> None:
    keys = schema.keys()
    assert {
        "listen",
        "listen.*.address",
        "listen.*.tls.cert",
        "timeouts.handshake",
        "answer_headers.x-aigw",
        "usage_store.retention",
        "upstreams.*.provider",
        "upstreams.*.targets.*.url",
        "upstreams.*.eject.for",
        "gateways.*.keys.*.previous.until",
        "gateways.*.models.*.list",
        "gateways.*.rules.*.timeouts.total",
        "gateways.*.limits.*.per",
    } <= keys
    assert not any(key.startswith(("upstreams.*.headers.", "listen.address")) for key in keys)


GOOD: list[dict[str, Any]] = [
    {"gateways": {}},
    {"gateways": {}, "listen": "127.0.0.1:1"},
    {"gateways": {}, "listen": {"address": "127.0.0.1:1"}},
    {"gateways": {}, "listen": ["127.0.0.1:1", {"address": "127.0.0.1:2"}]},
    {"gateways": {}, "workers": "auto", "timeouts": {"total": "off"}, "bounds": {"head": "${HEAD}", "headers": "${N}"}},
    {"gateways": {}, "upstreams": {"u": {"provider": "openai", "headers": {"x-a": None, "x-b": 5}}}},
    {"gateways": {}, "upstreams": {"u": {"provider": "${P}", "targets": [{"url": "http://h"}]}}},
    {"gateways": {}, "upstreams": {"u": {"provider": "http", "targets": {"a": {"url": "unix:/x"}}}}},
    {"gateways": {"g": {"models": {"a": "u", "b": {"upstream": "u"}}, "rules": [{"name": "r", "path": "/*"}]}}},
]
BAD: list[dict[str, Any]] = [
    {},
    {"gateways": {}, "listn": "127.0.0.1:1"},
    {"gateways": {}, "listen": 5},
    {"gateways": {}, "workers": "many"},
    {"gateways": {}, "timeouts": {"keepalive": 5}},
    {"gateways": {}, "timeouts": {"keepalive": "5"}},
    {"gateways": {}, "bounds": {"headers": "100"}},
    {"gateways": {}, "upstreams": {"u": {}}},
    {"gateways": {}, "upstreams": {"u": {"provider": "opnai"}}},
    {"gateways": {}, "upstreams": {"u": {"provider": "openai", "targets": [{"weight": 1}]}}},
    {"gateways": {"g": {"auth": "no"}}},
    {"gateways": {"g": {"rules": [{"name": "r", "path": "x"}]}}},
    {"gateways": {"g": {"keys": {"k": {"sha256": "sk-clear"}}}}},
]


@pytest.mark.parametrize("document", GOOD)
def test_json_schema_accepts(document: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema.json_schema()).validate(document)


@pytest.mark.parametrize("document", BAD)
def test_json_schema_refuses_what_the_models_refuse(document: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(schema.json_schema()).is_valid(document)
    assert findings(document)


# Discretion


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("sk-proj-0123456789", True),
        ("Bearer abcdefgh1", True),
        ("AIzaSyA0123456789", True),
        ("a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6", True),
        ("claude-3-7-sonnet-thinking-20250219", False),
        ("desk-reservations", False),
        ("gpt-4o", False),
        ("text-embedding-3-large", False),
    ],
)
def test_what_looks_like_a_credential_is_not_repeated(text: str, hidden: bool) -> None:
    assert secretive(text) == hidden
    assert (text in quote(text)) != hidden
    assert (text in path_text(("gateways", text))) != hidden


def test_what_was_interpolated_is_not_repeated() -> None:
    assert quote(Interpolated("gpt-4o", "${MODEL}"), "so") == "so"
    assert quote(Plain("gpt-4o")) == '"gpt-4o"'
    assert quote("x" * 81) == "this text"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("a", "b-c", 0, "d"), "a.b-c[0].d"),
        (("models", "gpt-4.1"), 'models["gpt-4.1"]'),
        (("models", "o*"), "models.o*"),
        (("a", "\x1b[0m\u202e"), 'a["\\u001b[0m\\u202e"]'),
        (("a", "x" * 100), f'a["{"x" * 77}..."]'),
        ((), ""),
    ],
)
def test_paths(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text
