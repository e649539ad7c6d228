"""The admin API of a running gateway, two workers: each resource's life, each kind of bad call, no secret told."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from admin.calls import JSON, YAML, AdminServe, Answer, Caller
from processes import Command
from prometheus_client.parser import text_string_to_metric_families

from aigw.admin import client

CONFIG = """\
# mine
listen: 127.0.0.1:0
workers: 2
upstreams:
  mock: {provider: mock}   # answers by itself
  vllm:
    provider: openai
    api_key: sk-literal-0123456789abcdefghij
    headers: {authorization: "Bearer sk-in-a-header-0123456789"}
    targets: [{url: "http://127.0.0.1:9/v1", api_key: "${CANARY}"}]

gateways:
  default:
    hosts: ["*"]
    models:
      gpt-4o: mock
      "far/*": {upstream: vllm, model: "*"}
    keys:
      alice: {sha256: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}
"""
CANARY = "sk-canary-from-the-environment-0123456789"
SECRETS = ("sk-literal-0123456789abcdefghij", "sk-in-a-header-0123456789", CANARY)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminServe]:
    """One for all tests of this module; each leaves the file as it found it."""
    with AdminServe(tmp_path_factory.mktemp("gateway"), CONFIG, environ={"CANARY": CANARY}) as gateway:
        yield gateway
        assert gateway.stop() == 0
        told = gateway.call.seen + gateway.out.data + gateway.err.data
        assert not [secret for secret in SECRETS if secret.encode() in told]


@pytest.fixture(autouse=True)
def unchanged(gateway: AdminServe) -> Iterator[None]:
    yield
    if gateway.file.read_text() != CONFIG:
        assert gateway.call("PUT", "/config", CONFIG, YAML).status == 200


def generation(gateway: AdminServe) -> int:
    return int(gateway.call("GET", "/status").json["generation"])


def answers(gateway: AdminServe, **request: Any) -> set[int]:
    """What the workers say, asked so often that each was (2 ** -19 is the chance that one was not)."""
    return {gateway.ask(**request) for _ in range(20)}


# the life of each resource --------------------------------------------------------------------------------------------


def test_a_key_from_its_making_to_its_end(gateway: AdminServe) -> None:
    keys = "/gateways/default/keys"
    made = gateway.call("POST", keys, {"name": "bob", "models": ["gpt-4o"]})
    assert made.status == 201
    assert made.headers["location"] == f"/api/v1{keys}/bob"
    first = made.json["key"]
    assert re.fullmatch(r"sk-aigw-[A-Za-z0-9_-]{43}", first)
    assert answers(gateway, key=first) == {200}  # on every worker, at once

    shown = gateway.call("GET", f"{keys}/bob")
    assert shown.etag == made.etag
    assert shown.json | {"key": first} == made.json
    assert first not in gateway.file.read_text()

    rotated = gateway.call("POST", f"{keys}/bob/rotate", {"grace": "24h"})
    second = rotated.json["key"]
    assert rotated.status == 200
    assert second != first
    assert rotated.json["previous"]["sha256"] == made.json["sha256"]
    assert answers(gateway, key=first) == answers(gateway, key=second) == {200}
    third = gateway.call("POST", f"{keys}/bob/rotate").json["key"]
    assert answers(gateway, key=first) == answers(gateway, key=second) == {401}
    assert answers(gateway, key=third) == {200}

    assert gateway.call("PATCH", f"{keys}/bob", {"disabled": True}).json["disabled"] is True
    assert answers(gateway, key=third) == {401}
    assert gateway.call("PATCH", f"{keys}/bob", {"disabled": None, "expires": "2020-01-01"}).status == 200
    assert answers(gateway, key=third) == {401}
    assert gateway.call("PATCH", f"{keys}/bob", {"expires": "2099-01-01"}).status == 200
    assert answers(gateway, key=third) == {200}
    assert [item["name"] for item in gateway.call("GET", keys).json["items"]] == ["alice", "bob"]
    gone = gateway.call("DELETE", f"{keys}/bob")
    assert (gone.status, gone.body) == (204, b"")
    assert answers(gateway, key=third) == {401}
    assert gateway.call("GET", f"{keys}/bob").status == 404
    for key in (first, second, third):
        assert gateway.call.seen.count(key.encode()) == 1  # shown once
        assert key.encode() not in gateway.err.data + gateway.out.data
    assert gateway.file.read_text() == CONFIG


def test_a_digest_of_one_s_own(gateway: AdminServe) -> None:
    made = gateway.call("PUT", "/gateways/default/keys/carol", {"sha256": "c" * 64})
    assert made.status == 201
    assert "key" not in made.json
    assert gateway.call("DELETE", "/gateways/default/keys/carol").status == 204


def test_upstream_target_model_and_rule(gateway: AdminServe) -> None:
    call = gateway.call
    key = call("POST", "/gateways/default/keys", {"name": "k"}).json["key"]
    assert call("POST", "/upstreams", {"name": "second", "provider": "mock"}).status == 201
    slash = quote("org/model", safe="")
    made = call("PUT", f"/gateways/default/models/{slash}", {"upstream": "second"})
    assert (made.status, made.headers["location"]) == (201, f"/api/v1/gateways/default/models/{slash}")
    assert answers(gateway, key=key, model="org/model") == {200}
    assert call("GET", f"/gateways/default/models/{slash}").json["name"] == "org/model"

    refused = call("DELETE", "/upstreams/second")
    assert (refused.status, refused.code) == (409, "still_referenced")
    assert [detail["path"] for detail in refused.json["error"]["details"]] == [
        "gateways.default.models.org/model.upstream"
    ]

    rule = {"name": "ping", "path": "/ping", "methods": ["POST"], "upstream": "mock"}
    assert call("POST", "/gateways/default/rules", rule).status == 201
    assert [item["name"] for item in call("GET", "/gateways/default/rules").json["items"]] == ["api", "ping"]
    assert answers(gateway, key=key, path="/ping") == {405}  # the mock's own answer: it was asked
    assert call("PATCH", "/gateways/default/rules/ping", {"path": "/pong"}).json["path"] == "/pong"
    assert call("DELETE", "/gateways/default/rules/ping").status == 204

    target = {"name": "b", "url": "http://127.0.0.1:19/v1"}
    made = call("POST", "/upstreams/vllm/targets", target)
    assert (made.status, made.headers["location"]) == (201, "/api/v1/upstreams/vllm/targets/b")
    assert call("PATCH", "/upstreams/vllm/targets/127.0.0.1:9", {"weight": 0}).json["weight"] == 0
    assert call("GET", "/upstreams/vllm/targets/127.0.0.1:9").json["api_key"] == "${CANARY}"
    assert call("DELETE", "/upstreams/vllm/targets/b").status == 204
    assert call("DELETE", f"/gateways/default/models/{slash}").status == 204
    assert answers(gateway, key=key, model="org/model") == {404}
    assert call("DELETE", "/upstreams/second").status == 204


def test_a_gateway(gateway: AdminServe) -> None:
    call = gateway.call
    value = {"name": "second", "hosts": ["second.example"], "auth": "none", "models": {"m": "mock"}}
    made = call("POST", "/gateways", value)
    assert made.status == 201
    assert made.json["models"]["m"]["upstream"] == "mock"
    assert call("POST", "/gateways", value).code == "exists"
    assert call("PUT", "/gateways/second", value | {"hosts": ["other.example"]}).status == 200
    assert [item["name"] for item in call("GET", "/gateways").json["items"]] == ["default", "second"]
    assert call("DELETE", "/gateways/second").status == 204


def test_the_whole_config(gateway: AdminServe) -> None:
    call = gateway.call
    shown = call("GET", "/config")
    assert shown.headers["content-type"] == JSON
    assert shown.json["upstreams"]["vllm"]["api_key"] == "***"
    assert shown.json["timeouts"]["keepalive"] == "75s"
    text = call("GET", "/config", accept=YAML)
    assert text.headers["content-type"] == YAML
    assert text.body.decode().startswith("# mine\n")
    before = generation(gateway)
    for body, kind, etag in ((shown.json, JSON, shown.etag), (text.body, YAML, text.etag)):
        put = call("PUT", "/config", body, kind, if_match=etag)
        assert put.status == 200
        assert gateway.file.read_text() == CONFIG
    assert generation(gateway) == before
    assert call("PUT", "/config", CONFIG, YAML, if_match='"stale"').code == "stale"
    changed = CONFIG.replace("gpt-4o: mock", "gpt-5: mock")
    checked = call("POST", "/config/check", changed, YAML)
    assert checked.json["changes"] == [
        {"path": "gateways.default.models.gpt-4o", "change": "removed"},
        {"path": "gateways.default.models.gpt-5", "change": "added"},
    ]
    assert gateway.file.read_text() == CONFIG
    assert generation(gateway) == before
    assert call("PUT", "/config", changed, YAML).headers["x-aigw-generation"] == str(before + 1)
    assert gateway.file.read_text() == changed
    assert (gateway.folder / "config.yaml.bak").read_text() == CONFIG


def test_a_check_of_the_file_as_it_stands(gateway: AdminServe) -> None:
    assert gateway.call("POST", "/config/check").json == {"warnings": [], "changes": []}


def test_only_the_item_s_line_changes_and_comments_stay(gateway: AdminServe) -> None:
    assert gateway.call("PATCH", "/upstreams/mock", {"usage": "as_reported"}).status == 200
    after = gateway.file.read_text().splitlines()
    assert [line for line in CONFIG.splitlines() if line not in after] == [
        "  mock: {provider: mock}   # answers by itself"
    ]
    assert "  mock: {provider: mock, usage: as_reported}   # answers by itself" in after


def test_if_match(gateway: AdminServe) -> None:
    call = gateway.call
    path = "/gateways/default/keys/alice"
    etag = call("GET", path).etag
    changed = call("PATCH", path, {"group": "search"}, if_match=etag)
    assert changed.status == 200
    stale = call("PATCH", path, {"group": "other"}, if_match=etag)
    assert (stale.status, stale.code) == (412, "stale")
    assert call("GET", path).etag == changed.etag
    assert call("PUT", path, {"sha256": "a" * 64}, if_none_match="*").status == 412
    assert call("PATCH", path, {"group": None}, if_match=f'"x", {changed.etag}').status == 200


# bad calls ------------------------------------------------------------------------------------------------------------

KEYS = "/gateways/default/keys"
DEEP = "[" * 900 + "]" * 900
BAD: list[tuple[str, str, Any, str | None, int, str]] = [
    # method, path, body, content-type, status, what the message says
    ("GET", "/", None, None, 404, "no path ends in /"),
    ("GET", "/nothing", None, None, 404, "the API is under /api/v1"),
    ("GET", "//", None, None, 404, "the API is under /api/v1"),
    ("GET", "//api/v2/status", None, None, 404, "the API is under /api/v1"),
    ("GET", "/gateways/", None, None, 404, "no path ends in /"),
    ("GET", "/gateways/default/", None, None, 404, "no path ends in /"),
    ("GET", "/gateways/nobody", None, None, 404, 'there is no gateway "nobody"'),
    ("GET", "/gateways/nobody/keys", None, None, 404, 'there is no gateway "nobody"'),
    ("GET", "/gateways/nobody/keys/x", None, None, 404, 'there is no gateway "nobody"'),
    ("GET", f"{KEYS}/nobody", None, None, 404, 'there is no key "nobody" in the gateway "default"'),
    ("GET", "/upstreams/nobody", None, None, 404, 'there is no upstream "nobody"'),
    ("GET", "/upstreams/vllm/targets/nobody", None, None, 404, 'no target "nobody" in the upstream "vllm"'),
    ("GET", "/gateways/default/models/a/b", None, None, 404, "nothing at this path"),
    ("GET", "/gateways/default/models/far%2F%2A%2F", None, None, 404, 'no model "far/*/"'),
    ("GET", "/gateways%2Fdefault", None, None, 404, "nothing at this path"),
    ("GET", "/gateways/%00", None, None, 400, "NUL"),
    ("GET", "/gateways/%2e%2e", None, None, 400, "`.` or `..` segment"),
    ("GET", "/gateways/..%2Fstatus", None, None, 400, "`.` or `..` segment"),
    ("GET", "/gateways/%ff", None, None, 400, "not UTF-8"),
    ("GET", "/gateways/%", None, None, 400, "percent-encoding"),
    ("GET", "/gateways?x=1", None, None, 400, "unknown parameter 'x' of the query; it takes none"),
    ("GET", "/exchanges?colour=red", None, None, 400, "it takes gateway, key, model"),
    ("GET", "/exchanges?limit=0", None, None, 400, "limit must be a number from 1 to 1000"),
    ("GET", "/exchanges?limit=1001", None, None, 400, "limit must be a number from 1 to 1000"),
    ("GET", "/exchanges?limit=ten", None, None, 400, "limit must be a number from 1 to 1000"),
    ("GET", "/exchanges?key=a&key=b", None, None, 400, "stands twice"),
    ("GET", "/exchanges/nobody", None, None, 404, "among the last 1000"),
    ("POST", "/gateways/default", {"name": "x"}, JSON, 405, "there are HEAD, GET, PUT, PATCH, DELETE"),
    ("PUT", "/gateways", {}, JSON, 405, "there are HEAD, GET, POST"),
    ("DELETE", "/config", None, None, 405, "there are HEAD, GET, PUT"),
    ("PATCH", "/config", {}, JSON, 405, "there are HEAD, GET, PUT"),
    ("GET", "/reload", None, None, 405, "there are POST"),
    ("GET", f"{KEYS}/alice/rotate", None, None, 405, "there are POST"),
    ("OPTIONS", "/gateways", None, None, 405, "there are HEAD, GET, POST"),
    ("POST", "/status", {}, JSON, 405, "there are HEAD, GET"),
    ("POST", KEYS, None, None, 415, "content-type: application/json"),
    ("POST", KEYS, '{"name": "x"}', None, 415, "content-type: application/json"),
    ("POST", KEYS, '{"name": "x"}', "text/plain", 415, "content-type: application/json"),
    ("POST", KEYS, "name: x", YAML, 415, "content-type: application/json"),
    ("POST", KEYS, "name=x", "application/x-www-form-urlencoded", 415, "content-type: application/json"),
    ("PUT", "/config", CONFIG, "text/plain", 415, "application/yaml, or as application/json"),
    ("PUT", "/config", CONFIG, None, 415, "application/yaml, or as application/json"),
    ("PUT", "/config", None, None, 415, "application/yaml, or as application/json"),
    ("POST", KEYS, "", JSON, 400, "not valid JSON"),
    ("POST", KEYS, "{", JSON, 400, "not valid JSON"),
    ("POST", KEYS, '{"name": "x",}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, "{'name': 'x'}", JSON, 400, "not valid JSON"),
    ("POST", KEYS, '{"name": NaN}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, '\ufeff{"name": "x"}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, b'{"name": "\xff"}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, '{"name": "\\ud800"}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, '{"name": "x"} {}', JSON, 400, "not valid JSON"),
    ("POST", KEYS, '{"name": "x", "name": "y"}', JSON, 400, 'the member "name" stands twice'),
    ("POST", KEYS, '{"name": "x", "previous": {"a": 1, "a": 2}}', JSON, 400, 'the member "a" stands twice'),
    ("POST", KEYS, f'{{"name": "x", "models": {DEEP}}}', JSON, 400, "nested more than 64 deep"),
    ("POST", KEYS, DEEP * 1, JSON, 400, "nested more than 64 deep"),
    ("POST", KEYS, "[" * 5000, JSON, 400, "not valid JSON"),
    ("POST", KEYS, "[]", JSON, 422, "must be a JSON object"),
    ("POST", KEYS, "null", JSON, 422, "must be a JSON object"),
    ("POST", KEYS, '"x"', JSON, 422, "must be a JSON object"),
    ("POST", KEYS, "17", JSON, 422, "must be a JSON object"),
    ("PUT", "/config", "[]", JSON, 422, "must be a JSON object"),
    ("POST", KEYS, {}, JSON, 422, "needs a name"),
    ("POST", KEYS, {"name": ""}, JSON, 422, "needs a name"),
    ("POST", KEYS, {"name": 7}, JSON, 422, "needs a name"),
    ("POST", KEYS, {"name": None}, JSON, 422, "needs a name"),
    ("POST", KEYS, {"name": "a b"}, JSON, 422, "a name is 1 to 64 of the characters"),
    ("POST", KEYS, {"name": "a/b"}, JSON, 422, "a name is 1 to 64 of the characters"),
    ("POST", KEYS, {"name": "x" * 65}, JSON, 422, "a name is 1 to 64 of the characters"),
    ("POST", KEYS, {"name": "x" * 5000}, JSON, 422, "longer than 1000 characters"),
    ("POST", KEYS, {"name": "${X}"}, JSON, 422, "keys are not interpolated"),
    ("POST", KEYS, {"name": "x", "modles": []}, JSON, 422, 'unknown key; did you mean "models"?'),
    ("POST", KEYS, {"name": "x", "models": "gpt-4o"}, JSON, 422, "keys.x.models: must be a list"),
    ("POST", KEYS, {"name": "x", "disabled": "yes"}, JSON, 422, "keys.x.disabled: must be true or false"),
    ("POST", KEYS, {"name": "x", "disabled": 1}, JSON, 422, "keys.x.disabled: must be true or false"),
    ("POST", KEYS, {"name": "x", "expires": "soon"}, JSON, 422, "must be a date such as 2027-01-31"),
    ("POST", KEYS, {"name": "x", "expires": 17}, JSON, 422, "keys.x.expires: must be a date"),
    ("POST", KEYS, {"name": "x", "sha256": "short"}, JSON, 422, "64 hex digits"),
    ("POST", KEYS, {"name": "x", "sha256": "a" * 64}, JSON, 422, "the same key"),
    ("POST", KEYS, {"name": "x", "sha256": None}, JSON, 422, "keys.x.sha256"),
    ("POST", KEYS, {"name": "x", "group": {"a": 1}}, JSON, 422, "keys.x.group: must be text"),
    ("POST", KEYS, {"name": "alice"}, JSON, 409, 'the key "alice" exists already'),
    ("PUT", f"{KEYS}/x", {"name": "y"}, JSON, 422, "the name in the body differs"),
    ("PUT", f"{KEYS}/x", {}, JSON, 422, "keys.x.sha256"),
    ("PATCH", f"{KEYS}/nobody", {}, JSON, 404, 'there is no key "nobody"'),
    ("PATCH", f"{KEYS}/alice", {"sha256": None}, JSON, 422, "keys.alice.sha256"),
    ("DELETE", f"{KEYS}/nobody", None, None, 404, 'there is no key "nobody"'),
    ("DELETE", f"{KEYS}/alice", {}, JSON, 400, "DELETE takes no body"),
    ("POST", f"{KEYS}/nobody/rotate", None, None, 404, 'there is no key "nobody"'),
    ("POST", f"{KEYS}/alice/rotate", {"grace": "soon"}, JSON, 422, "must be a duration such as"),
    ("POST", f"{KEYS}/alice/rotate", {"grace": 60}, JSON, 422, "must be a duration such as"),
    ("POST", f"{KEYS}/alice/rotate", {"grase": "1h"}, JSON, 422, 'one member at most: {"grace": "24h"}'),
    ("POST", "/gateways/nobody/keys", {"name": "x"}, JSON, 404, 'there is no gateway "nobody"'),
    ("POST", "/upstreams/nobody/targets", {"url": "http://a"}, JSON, 404, 'there is no upstream "nobody"'),
    ("POST", "/upstreams/vllm/targets", {"weight": 1}, JSON, 422, "needs a name"),
    ("POST", "/upstreams/vllm/targets", {"url": "ftp://a"}, JSON, 422, "http"),
    ("POST", "/upstreams/vllm/targets", {"name": "n", "url": "http://user:pw@a/"}, JSON, 422, "user name or password"),
    ("DELETE", "/upstreams/vllm/targets/127.0.0.1:9", None, None, 422, "upstreams.vllm.targets"),
    ("POST", "/upstreams", {"name": "x"}, JSON, 422, "upstreams.x.provider"),
    ("POST", "/upstreams", {"name": "x", "provider": "opnai"}, JSON, 422, 'did you mean "openai"?'),
    (
        "POST",
        "/upstreams",
        {"name": "x", "provider": "openai", "api_key": "${UNSET}"},
        JSON,
        422,
        "${UNSET} is not set",
    ),
    ("POST", "/upstreams", {"name": "x", "provider": "openai", "api_key": "***"}, JSON, 422, "none is stored here"),
    (
        "POST",
        "/upstreams",
        {"name": "x", "provider": "openai", "timeouts": {"idle": 5}},
        JSON,
        422,
        "the unit is missing",
    ),
    ("DELETE", "/upstreams/mock", None, None, 409, 'the upstream "mock" is still referenced'),
    ("POST", "/gateways", {"name": "x", "hosts": ["*"]}, JSON, 422, "gateways.x.hosts"),
    ("POST", "/gateways", {"name": "x", "hosts": []}, JSON, 422, "gateways.x.hosts"),
    (
        "POST",
        "/gateways/default/models",
        {"name": "x", "upstream": "nobody"},
        JSON,
        422,
        'no upstream is called "nobody"',
    ),
    ("POST", "/gateways/default/models", {"name": "a*b*", "upstream": "mock"}, JSON, 422, "one * at most"),
    ("POST", "/gateways/default/models", {"name": "x"}, JSON, 422, "needs an upstream"),
    ("POST", "/gateways/default/rules", {"name": "api", "path": "/x"}, JSON, 409, 'the rule "api" exists already'),
    ("POST", "/gateways/default/rules", {"name": "r", "path": "x"}, JSON, 422, "rules[1].path"),
    ("POST", "/gateways/default/rules", {"name": "r", "path": "/*"}, JSON, 422, "the same path and method already"),
    ("PATCH", "/gateways/default", {"keys": None, "zzz": {"a": [1]}}, JSON, 422, "gateways.default.zzz: unknown key"),
    ("PUT", "/config", "gateways: {", YAML, 422, "is missing here"),
    ("PUT", "/config", "", YAML, 422, "the file is empty"),
    ("PUT", "/config", "- a\n", YAML, 422, "must be a mapping"),
    ("PUT", "/config", b"gateways: {\xff}", YAML, 400, "not UTF-8 from byte 11 on"),
    ("PUT", "/config", "a: &a [*a]\n", YAML, 422, ""),
    ("PUT", "/config", "gateways: {}\ngateways: {}\n", YAML, 422, "duplicate key"),
    ("PUT", "/config", "gateways: !!python/object:os.system {}\n", YAML, 422, "tags (!) are not supported"),
    ("PUT", "/config", {"gateways": {}, "wrokers": 2}, JSON, 422, 'did you mean "workers"?'),
    ("PUT", "/config", {}, JSON, 422, "gateways"),
    ("PUT", "/config", CONFIG + 'admin: {listen: "0.0.0.0:0"}\n', YAML, 422, "a token is mandatory"),
    ("PUT", "/config", CONFIG + 'admin: {token: ""}\n', YAML, 422, "admin.token"),
    ("PUT", "/config", CONFIG + "# \ud800".encode("utf-8", "surrogatepass").decode("latin-1"), YAML, 422, ""),
    ("POST", "/config/check", "gateways: {", YAML, 422, "is missing here"),
    ("POST", "/reload", {"x": 1}, JSON, 422, "reload takes no members"),
    ("POST", "/explain", "[]", JSON, 422, "must be a JSON object"),
    ("POST", "/explain", {"request_id": "nobody"}, JSON, 404, "no exchange with this request_id"),
]


@pytest.fixture(scope="module")
def refused(gateway: AdminServe) -> list[Answer]:
    """The answers to all bad calls, made at once: none has changed the file or what is served."""
    before = generation(gateway)
    with ThreadPoolExecutor(32) as callers:
        found = list(callers.map(lambda bad: gateway.call(*bad[:4]), BAD))
    assert gateway.file.read_text() == CONFIG
    assert generation(gateway) == before
    return found


@pytest.mark.parametrize("number", range(len(BAD)), ids=[f"{method} {path[:40]}" for method, path, *_ in BAD])
def test_bad_calls(refused: list[Answer], number: int) -> None:
    answer, (*_, status, said) = refused[number], BAD[number]
    error = answer.json["error"]
    assert (answer.status, said in error["message"]) == (status, True), error
    assert error.keys() == {"code", "message", "details"}
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize("header", ["stale", 'W/"x"', '"a" "b"', ""])
def test_bad_entity_tags(gateway: AdminServe, header: str) -> None:
    answer = gateway.call("PATCH", f"{KEYS}/alice", {}, if_match=header)
    assert (answer.status, answer.code) == (400, "bad_header")
    answer = gateway.call("PUT", f"{KEYS}/alice", {}, if_none_match='"x"')
    assert (answer.status, answer.code) == (400, "bad_header")


def test_every_error_of_a_document_is_told(gateway: AdminServe) -> None:
    text = "listen: nowhere\nworkers: many\ngateways:\n  g: {auth: nobody, models: {m: gone}}\n"
    details = gateway.call("PUT", "/config", text, YAML).json["error"]["details"]
    assert [(detail["line"], detail["path"]) for detail in details] == [
        (1, "listen"),
        (2, "workers"),
        (4, "gateways.g.auth"),
        (4, "gateways.g.models.m"),
    ]


def test_what_cannot_be_bound_is_said_and_nothing_changes(gateway: AdminServe, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{gateway.call.port}"
    config = CONFIG + 'admin: {listen: "127.0.0.1:0"}\n'
    with AdminServe(tmp_path, config, environ={"CANARY": CANARY}, arguments=()) as other:
        proxy = config.replace("listen: 127.0.0.1:0", f"listen: {taken}")
        admin = config.replace('"127.0.0.1:0"', f'"{taken}"')
        for text in (proxy, admin):
            assert text != config
            answer = other.call("PUT", "/config", text, YAML)
            assert (answer.status, answer.code) == (422, "cannot_apply")
            assert f"{taken}: the port is in use by another process" in answer.message
            assert left(tmp_path) == {"config.yaml": config}
        assert other.call("GET", "/status").json["generation"] == 1
        assert other.ask() == 401
        assert other.stop() == 0


def left(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*config*")}


# the running gateway --------------------------------------------------------------------------------------------------


def test_status_exchanges_and_schema(gateway: AdminServe) -> None:
    gateway.ask(key="sk-wrong")
    gateway.out.find('"status":401')
    found = gateway.call("GET", "/exchanges?status=401&fault=client&limit=1").json["items"]
    assert [(item["status"], item["error"]) for item in found] == [(401, "invalid_key")]
    assert found[0] in gateway.call("GET", "/exchanges?status=4xx").json["items"]
    assert found[0] in gateway.call("GET", "/exchanges?error=invalid_key&rule=api&gateway=default").json["items"]
    assert gateway.call("GET", "/exchanges?status=5xx").json["items"] == []
    assert gateway.call("GET", f"/exchanges/{found[0]['request_id']}").json == found[0]
    status = gateway.call("GET", "/status").json
    assert status["ready"] is True
    assert {worker["generation"] for worker in status["workers"]} == {status["generation"]}
    assert len(status["workers"]) == 2
    schema = gateway.call("GET", "/schema").json
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_health_needs_nothing_and_metrics_are_there(gateway: AdminServe) -> None:
    for path in ("//healthz", "//readyz"):
        answer = gateway.call("GET", path, host="whatever.example")
        assert (answer.status, answer.body) == (200, b"ok\n")
    assert gateway.call("GET", "//metrics", host="whatever.example").status == 421
    metrics = gateway.call("GET", "//metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.body.decode())
        for sample in family.samples
    }
    assert samples["aigw_config_generation"] == generation(gateway)
    assert samples["aigw_config_last_reload_success"] == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian's package prometheus)")
def test_promtool_finds_nothing_to_say(gateway: AdminServe) -> None:
    text = gateway.call("GET", "//metrics").body
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    assert (checked.stdout, checked.stderr, checked.returncode) == (b"", b"", 0)


def test_explain(gateway: AdminServe) -> None:
    sample = {"method": "POST", "path": "/v1/chat/completions", "model": "gpt-4o", "key_name": "alice"}
    found = gateway.call("POST", "/explain", sample)
    assert found.status == 200
    assert "gpt-4o" in found.body.decode()
    assert gateway.call("POST", "/explain", {"zzz": 1}).status == 422


def test_reload(gateway: AdminServe) -> None:
    before = generation(gateway)
    assert gateway.call("POST", "/reload").json == {"generation": before}
    gateway.file.write_text(CONFIG.replace("gpt-4o: mock", "gpt-5: mock"))
    assert gateway.call("POST", "/reload").json == {"generation": before + 1}
    gateway.file.write_text(CONFIG + "zzz: 1\n")
    refused = gateway.call("POST", "/reload")
    assert (refused.status, refused.code) == (422, "config_invalid")
    assert "zzz: unknown key" in refused.message
    status = gateway.call("GET", "/status").json
    assert (status["config"]["ok"], status["generation"]) == (False, before + 1)
    assert [error.partition(" ")[2][:16] for error in status["config"]["errors"]] == ["zzz: unknown key"]
    assert b"\naigw_config_last_reload_success 0.0\n" in gateway.call("GET", "//metrics").body
    for method, path, body in (("GET", "/gateways", None), ("PATCH", f"{KEYS}/alice", {"group": "x"})):
        answer = gateway.call(method, path, body)
        assert (answer.status, answer.code) == (409, "config_invalid")
        assert [detail["path"] for detail in answer.json["error"]["details"]] == ["zzz"]
    gateway.file.write_text(CONFIG)
    assert gateway.call("POST", "/reload").status == 200
    assert gateway.call("GET", "/status").json["config"] == {"path": str(gateway.file), "ok": True, "errors": []}


def test_every_change_is_in_the_log(gateway: AdminServe) -> None:
    made = gateway.call("POST", KEYS, {"name": "audited"})
    gateway.err.find(rf"audit: 127\.0\.0\.1 \(no token asked\): POST /api/v1{KEYS} \(audited\): 201, generation \d+$")
    assert gateway.call("DELETE", f"{KEYS}/audited").status == 204
    gateway.err.find(rf"audit: 127\.0\.0\.1 \(no token asked\): DELETE /api/v1{KEYS}/audited: 204, generation \d+$")
    assert gateway.call("POST", KEYS, {"name": made.json["key"]}).status == 201  # who mistook the one for the other
    assert gateway.call("DELETE", f"{KEYS}/{made.json['key']}").status == 204
    gateway.err.find(rf"audit: 127\.0\.0\.1 \(no token asked\): POST /api/v1{KEYS} \(\*\*\*\): 201, generation")
    gateway.err.find(rf"audit: 127\.0\.0\.1 \(no token asked\): DELETE /api/v1{KEYS}/\*\*\*: 204, generation")
    assert gateway.call("DELETE", f"{KEYS}/gone").status == 404
    gateway.err.find(rf"audit: 127\.0\.0\.1 \(no token asked\): DELETE /api/v1{KEYS}/gone: 404 not_found, generation")
    assert made.json["key"].encode() not in gateway.err.data


def test_the_proxy_never_answers_for_it(gateway: AdminServe) -> None:
    """Whatever Host or path: what listens there knows nothing of the admin API."""
    proxy = Caller(gateway.port)
    port = gateway.call.port
    hosts = ["localhost", f"127.0.0.1:{port}", "admin", "[::1]"]
    paths = [
        "//api/v1/status",
        "//api/v1/config",
        "//metrics",
        "//%61pi/v1/status",
        "///api/v1/status",
        "//__/metrics",
        "//__/../api/v1/status",
        "//v1/../api/v1/status",
        "//api%2Fv1%2Fstatus",
        "//api/v1/status;x",
        f"//http://127.0.0.1:{port}/api/v1/status",
    ]
    for host in hosts:
        for path in paths:
            answer = proxy(
                "GET", path, host=host, x_forwarded_host=f"127.0.0.1:{port}", x_original_url="/api/v1/status"
            )
            assert answer.status in (400, 401, 404)
            assert b"generation" not in answer.body
    for target in (f"http://127.0.0.1:{port}/api/v1/status", f"http://localhost:{port}/metrics"):
        authority = target.split("/")[2]
        for host in (*hosts[:2], authority):
            answer = proxy.raw(f"GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
            assert answer.split(b" ")[1] in (b"400", b"401", b"404")
    assert proxy.raw(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())[9:10] == b"4"


# other gateways -------------------------------------------------------------------------------------------------------


def test_off_loopback_without_a_token_it_does_not_start(tmp_path: Path) -> None:
    with Command("serve", "--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:0", folder=tmp_path) as command:
        assert command.end() == 1
        assert "error: --admin-listen 0.0.0.0:0: a token is mandatory" in command.err.data.decode()


def test_an_admin_address_in_use(gateway: AdminServe, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{gateway.call.port}"
    with Command("serve", "--listen", "127.0.0.1:0", "--admin-listen", taken, folder=tmp_path) as command:
        assert command.end() == 1
        said = command.err.data.decode()
    assert f"error: the admin API: {taken}: the port is in use by another process" in said
    assert "--admin-listen or admin.listen" in said


def test_a_default_address_in_use_is_warned_of(tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        if taken.connect_ex(("127.0.0.1", 8080)):  # else somebody has it already
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        with Command("serve", "--listen", "127.0.0.1:0", folder=tmp_path) as command:
            command.err.find("^warning: the admin API does not listen: 127.0.0.1:8080: the port is in use")
            command.err.find("^  listens ")
            assert command.stop() == 0
        assert "admin API  " not in command.err.data.decode()


def test_the_built_in_config_is_only_looked_at(tmp_path: Path) -> None:
    with AdminServe(tmp_path, None) as gateway:
        assert gateway.call("GET", "/gateways/default/models/*").json["upstream"] == "mock"
        answer = gateway.call("POST", "/gateways/default/keys", {"name": "x"})
        assert (answer.status, answer.code) == (409, "config_read_only")
        assert "--config" in answer.message
        assert gateway.call("POST", "/config/check", "gateways: {}", YAML).status == 200
        assert list(tmp_path.glob("*.yaml*")) == []
        assert gateway.stop() == 0


def test_with_a_token_and_its_change_by_reload(tmp_path: Path) -> None:
    config = CONFIG + 'admin: {listen: "127.0.0.1:0", token: "${TOKEN}"}\n'
    environ = {"CANARY": CANARY, "TOKEN": "sk-token-0123456789abcdef"}
    arguments = ("--listen", "127.0.0.1:0")
    with AdminServe(tmp_path, config, token=environ["TOKEN"], environ=environ, arguments=arguments) as gateway:
        call = gateway.call
        assert call("GET", "/status", host="gateway.example").status == 200
        assert call("GET", "/status", authorization="Bearer wrong").status == 401
        assert call("GET", "//metrics", authorization="Bearer wrong").status == 401
        assert call("GET", "//healthz", authorization="").status == 200
        assert call("GET", "/config").json["admin"]["token"] == "${TOKEN}"
        changed = call("PUT", "/config", config.replace("${TOKEN}", "another-token"), YAML)
        assert changed.status == 200
        assert changed.json["admin"]["token"] == "***"
        assert call("GET", "/status").status == 401
        call.token = "another-token"
        assert call("GET", "/status").status == 200
        assert gateway.stop() == 0
        told = call.seen + gateway.out.data + gateway.err.data
        assert b"another-token" not in told
        assert environ["TOKEN"].encode() not in told


def test_it_moves_by_reload_and_over_a_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "admin.sock"
    arguments = ("--listen", "127.0.0.1:0")
    config = CONFIG + 'admin: {listen: "127.0.0.1:0"}\n'
    with AdminServe(tmp_path, config, environ={"CANARY": CANARY}, arguments=arguments) as gateway:
        moved = gateway.call("PUT", "/config", CONFIG + f'admin: {{listen: "unix:{socket}"}}\n', YAML)
        assert moved.status == 200
        with pytest.raises(ConnectionRefusedError):
            gateway.call("GET", "/status")
        status = client.call(f"unix:{socket}", None, "GET", "/status")
        assert (status["generation"], status["admin"]) == (2, [f"unix:{socket}"])
        assert gateway.stop() == 0
    assert not socket.exists()
    with pytest.raises(client.CallFailed, match="does not answer: No such file or directory"):
        client.call(f"unix:{socket}", None, "GET", "/status")


def test_a_file_that_is_gone(gateway: AdminServe) -> None:
    gateway.file.unlink()
    for method, path, body in (("GET", "/gateways", None), ("POST", KEYS, {"name": "x"})):
        answer = gateway.call(method, path, body)
        assert (answer.status, answer.code) == (409, "config_invalid")
        assert answer.json["error"]["details"] == [{"path": "", "message": "does not exist; check the path"}]
    gateway.file.write_text(CONFIG)
    assert gateway.call("GET", "/gateways").status == 200


def test_ready_is_red_and_writes_are_refused_while_it_drains(tmp_path: Path) -> None:
    config = CONFIG + "drain: {delay: 60s}\n"
    with AdminServe(tmp_path, config, environ={"CANARY": CANARY}) as gateway:
        gateway.signal(signal.SIGTERM)
        gateway.err.find("SIGTERM")
        assert gateway.call("GET", "//readyz").status == 503
        assert gateway.call("GET", "//healthz").status == 200
        gateway.signal(signal.SIGTERM)
        assert gateway.end() == 0
