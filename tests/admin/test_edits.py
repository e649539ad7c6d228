"""The config as resources: what is shown of it, what edits make of the file's text, what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aigw.config import edits, store

CONFIG = """\
# mine
upstreams:
  mock: {provider: mock}   # answers by itself
  vllm:
    provider: openai
    api_key: sk-literal-0123456789abcdefghij
    headers: {authorization: "Bearer hide-me", x-team: 5}
    targets:
      - {url: "http://a:1/v1", weight: 3, api_key: "${A_KEY}"}
      - {url: "http://b:1/v1", api_key: "Bearer of-b"}
  #later: {provider: openai, api_key: sk-commented-0123456789abcdefg}

gateways:
  default:
    models:
      gpt-4o: mock
      "openai/*": {upstream: vllm, model: "*"}
      "3.5": {upstream: vllm, model: 3.5}
    keys:
      alice: {sha256: %s, expires: 2099-01-01}
""" % ("a" * 64)  # braces

ENVIRON = {"A_KEY": "sk-from-the-environment", "EMPTY": ""}
SECRETS = ("sk-literal", "hide-me", "of-b", "sk-commented", "sk-from-the-environment")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "config.yaml"
    found.write_text(CONFIG)
    return found


def edit(op: str, *at: str, value: Any = None, **more: Any) -> dict[str, Any]:
    base = {"op": op, "at": list(at), "value": value, "text": None, "match": None, "absent": False, "grace": "0s"}
    return base | more


def do(path: Path, *wanted: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The text that is left, and the results."""
    answer = edits.edit_all(str(path), list(wanted), ENVIRON)
    if answer["text"] is not None:
        store.parse(answer["text"], name="x", base=path.parent, environ=ENVIRON)  # it can be served
    return answer["text"] or path.read_text(), answer["results"]


def show(path: Path) -> dict[str, Any]:
    return edits.show(str(path), ENVIRON)


def item(path: Path, *at: str) -> Any:
    return show(path)["items"]["\n".join(at)]


def changed(path: Path, text: str) -> list[str]:
    """The lines of the new text that the old one does not have, and those that are gone."""
    before, after = path.read_text().splitlines(), text.splitlines()
    return [f"- {line}" for line in before if line not in after] + [f"+ {line}" for line in after if line not in before]


# looking --------------------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in_and_short_forms_written_out(path: Path) -> None:
    shown = show(path)
    assert shown["document"]["timeouts"]["keepalive"] == "75s"
    assert shown["document"]["listen"] == [{"address": "127.0.0.1:8081"}]
    assert item(path, "gateways", "default", "models", "gpt-4o") == {
        "name": "gpt-4o",
        "upstream": "mock",
        "fallback": [],
        "hidden": False,
        "timeouts": {"first_token": "off", "total": "off"},
        "limits": [],
    }
    assert item(path, "gateways", "default", "models", "3.5")["model"] == "3.5"
    assert item(path, "gateways", "default", "rules", "api")["path"] == "/*"
    assert item(path, "upstreams", "vllm", "targets", "a:1")["weight"] == 3
    assert item(path, "gateways", "default", "keys", "alice")["expires"] == "2099-01-01"


def test_what_is_shown_holds_no_secret(path: Path) -> None:
    shown = show(path)
    text = json.dumps(shown)
    assert not [secret for secret in SECRETS if secret in text]
    upstream = item(path, "upstreams", "vllm")
    assert upstream["api_key"] == "***"
    assert upstream["headers"] == {"authorization": "***", "x-team": "5"}
    assert [target["api_key"] for target in upstream["targets"]] == ["${A_KEY}", "***"]
    assert 'api_key: "***"' in shown["text"]
    assert "#later: {provider: openai, api_key: ***}" in shown["text"]


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("${A_KEY}", "${A_KEY}"),
        ("Bearer ${A_KEY}", "Bearer ${A_KEY}"),
        ("${NOT_SET:-sk-default}", "***"),
        ("prefix${A_KEY}", "***"),
        ("client", "client"),
        ("$${literal}", "***"),
    ],
)
def test_references_are_shown_as_they_are_written(path: Path, written: str, shown: str) -> None:
    path.write_text(CONFIG.replace("sk-literal-0123456789abcdefghij", f'"{written}"'))
    assert item(path, "upstreams", "vllm")["api_key"] == shown
    text, [result] = do(path, edit("patch", "upstreams", "vllm", value={"api_key": shown, "balance": "round_robin"}))
    assert text == path.read_text()
    assert result["status"] == 200


def test_a_file_that_cannot_be_used(path: Path) -> None:
    path.write_text("gateways: {g: {auth: nobody}}\nx: 1\n")
    errors = show(path)["errors"]
    assert [error["path"] for error in errors] == ["gateways.g.auth", "x"]
    assert errors[0]["line"] == 1
    path.write_text("gateways: {")
    assert "a value is missing here" in show(path)["errors"][0]["message"]
    path.unlink()
    assert show(path)["errors"] == [{"path": "", "message": "does not exist; check the path"}]


def test_the_built_in_config_can_be_shown() -> None:
    shown = edits.show(None, {"OPENAI_API_KEY": "sk-x"})
    assert shown["document"]["upstreams"]["openai"]["api_key"] == "${OPENAI_API_KEY}"


# sending back ---------------------------------------------------------------------------------------------------------


def test_what_was_shown_changes_nothing_when_it_is_sent_back(path: Path) -> None:
    shown = show(path)
    for at, found in shown["items"].items():
        text, [result] = do(path, edit("put", *at.split("\n"), value=found))
        assert (at, text) == (at, CONFIG)
        assert result["status"] == 200
        assert result["item"] == found
        assert result["etag"] == shown["etags"][at]
    for value in ({"value": shown["document"]}, {"text": shown["text"]}):
        text, [result] = do(path, edit("put", **value))
        assert text == CONFIG
        assert result["status"] == 200


def test_masks_in_a_text_get_what_they_stand_for_and_the_rest_is_taken(path: Path) -> None:
    sent = show(path)["text"].replace("# mine", "# yours").replace("weight: 3", "weight: 4")
    text, _ = do(path, edit("put", text=sent))
    assert changed(path, text) == [
        "- # mine",
        '-       - {url: "http://a:1/v1", weight: 3, api_key: "${A_KEY}"}',
        "+ # yours",
        '+       - {url: "http://a:1/v1", weight: 4, api_key: "${A_KEY}"}',
    ]


def test_a_line_that_looks_like_a_masked_one_gets_no_secret(path: Path) -> None:
    more = """  other:
    provider: openai
    api_key: "***"
"""
    sent = show(path)["text"].replace("  #later", f"{more}  #later")
    _, [result] = do(path, edit("put", text=sent))
    assert [detail["path"] for detail in result["refused"]["details"]] == ["upstreams.other.api_key"]


def test_masks_follow_the_target_and_not_its_position(path: Path) -> None:
    targets = item(path, "upstreams", "vllm")["targets"]
    text, _ = do(path, edit("patch", "upstreams", "vllm", value={"targets": [targets[1]]}))
    assert "Bearer of-b" in text
    assert "A_KEY" not in text


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        (edit("patch", "upstreams", "mock", value={"api_key": "***"}), "upstreams.mock.api_key"),
        (
            edit("create", "upstreams", value={"name": "x", "provider": "openai", "api_key": "***"}),
            "upstreams.x.api_key",
        ),
        (
            edit("create", "upstreams", "vllm", "targets", value={"url": "http://c:1", "api_key": "***"}),
            'upstreams.vllm.targets["c:1"].api_key',
        ),
        (
            edit("put", text=CONFIG.replace("provider: mock}", 'provider: mock, api_key: "***"}')),
            "upstreams.mock.api_key",
        ),
    ],
)
def test_a_mask_of_nothing_is_refused(path: Path, wanted: dict[str, Any], where: str) -> None:
    text, [result] = do(path, wanted)
    assert text == CONFIG
    assert result["refused"]["status"] == 422
    assert [detail["path"] for detail in result["refused"]["details"]] == [where]
    assert "none is stored here" in result["refused"]["message"]


# editing --------------------------------------------------------------------------------------------------------------


def test_only_the_item_s_lines_change(path: Path) -> None:
    text, [result] = do(path, edit("patch", "gateways", "default", "keys", "alice", value={"disabled": True}))
    digest = "a" * 64
    assert changed(path, text) == [
        f"-       alice: {{sha256: {digest}, expires: 2099-01-01}}",
        f"+       alice: {{sha256: {digest}, expires: 2099-01-01,",
        "+         disabled: true}",
    ]
    assert result["item"]["disabled"] is True


def test_a_patch_removes_by_null_and_replaces_lists(path: Path) -> None:
    at = ("gateways", "default", "keys", "alice")
    text, [result, _] = do(
        path,
        edit("patch", *at, value={"expires": None, "models": ["gpt-4o"]}),
        edit("patch", *at, value={"models": ["gpt-4o", "3.5"]}),
    )
    assert "expires" not in result["item"]
    assert 'models: [gpt-4o, "3.5"]' in text


def test_a_short_form_is_patched_as_what_it_stands_for(path: Path) -> None:
    text, _ = do(path, edit("patch", "gateways", "default", "models", "gpt-4o", value={"hidden": True}))
    assert changed(path, text) == ["-       gpt-4o: mock", "+       gpt-4o: {upstream: mock, hidden: true}"]


def test_who_adds_a_rule_keeps_the_default_one(path: Path) -> None:
    rules = ("gateways", "default", "rules")
    value = {"name": "ping", "path": "/ping", "upstream": "mock"}
    text, [result] = do(path, edit("create", *rules, value=value))
    assert result["status"] == 201
    path.write_text(text)
    found = [at.split("\n") for at in show(path)["items"] if "rules" in at]
    assert found == [[*rules, "api"], [*rules, "ping"]]
    text, [result] = do(path, edit("delete", *rules, "ping"))
    assert result == {"status": 204}


def test_who_adds_a_target_keeps_the_provider_s_own(path: Path) -> None:
    text, [_, result] = do(
        path,
        edit("create", "upstreams", value={"name": "openai", "provider": "openai", "api_key": "${A_KEY}"}),
        edit("create", "upstreams", "openai", "targets", value={"name": "eu", "url": "https://eu.example/v1"}),
    )
    assert result["status"] == 201
    path.write_text(text)
    assert item(path, "upstreams", "openai", "targets", "api.openai.com:443")["url"] == "https://api.openai.com/v1"
    assert item(path, "upstreams", "openai", "targets", "eu")["url"] == "https://eu.example/v1"


def test_targets_by_name_in_a_mapping(path: Path) -> None:
    text, [_, created, _, deleted] = do(
        path,
        edit("create", "upstreams", value={"name": "m", "provider": "openai", "targets": {"a": {"url": "http://a:1"}}}),
        edit("create", "upstreams", "m", "targets", value={"name": "b", "url": "http://b:1"}),
        edit("patch", "upstreams", "m", "targets", "b", value={"weight": 7}),
        edit("delete", "upstreams", "m", "targets", "a"),
    )
    assert (created["status"], deleted["status"]) == (201, 204)
    path.write_text(text)
    assert item(path, "upstreams", "m", "targets", "b") | {"headers": 0, "model": 0, "limits": 0} == {
        "name": "b",
        "url": "http://b:1",
        "weight": 7,
        "headers": 0,
        "model": 0,
        "limits": 0,
    }


def test_rotate_with_grace(path: Path) -> None:
    at = ("gateways", "default", "keys", "alice")
    text, [first, second] = do(
        path,
        edit("rotate", *at, value={"sha256": "b" * 64}, grace="24h"),
        edit("rotate", *at, value={"sha256": "c" * 64}),
    )
    assert first["item"]["sha256"] == "b" * 64
    assert first["item"]["previous"]["sha256"] == "a" * 64
    assert second["item"]["sha256"] == "c" * 64
    assert "previous" not in text
    assert "expires: 2099-01-01" in text


def test_what_one_edit_refuses_the_next_does_not_see(path: Path) -> None:
    models = ("gateways", "default", "models")
    text, results = do(
        path,
        edit("create", *models, value={"name": "a", "upstream": "mock"}),
        edit("create", *models, value={"name": "b", "upstream": "nowhere"}),
        edit("create", *models, value={"name": "a", "upstream": "vllm"}),
        edit("delete", *models, "gpt-4o"),
    )
    assert [result.get("status") for result in results] == [201, None, None, 204]
    assert [result["refused"]["code"] for result in results[1:3]] == ["invalid", "exists"]
    assert "gpt-4o" not in text
    assert "a: {upstream: mock}" in text


def test_what_is_still_referenced_stays(path: Path) -> None:
    text, [result] = do(path, edit("delete", "upstreams", "vllm"))
    assert text == CONFIG
    assert result["refused"]["status"] == 409
    assert result["refused"]["code"] == "still_referenced"
    assert [detail["path"] for detail in result["refused"]["details"]] == [
        "gateways.default.models.openai/*.upstream",
        'gateways.default.models["3.5"].upstream',
    ]


def test_the_last_target_is_no_reference(path: Path) -> None:
    _, results = do(
        path,
        edit("create", "upstreams", value={"name": "h", "provider": "http", "targets": [{"url": "http://a:1"}]}),
        edit("delete", "upstreams", "h", "targets", "a:1"),
    )
    assert results[1]["refused"]["status"] == 422


@pytest.mark.parametrize("tag", ["right", "*", "stale"])
@pytest.mark.parametrize("op", ["put", "patch", "delete", "rotate"])
def test_entity_tags(path: Path, op: str, tag: str) -> None:
    at = ("gateways", "default", "keys", "alice")
    match = [show(path)["etags"]["\n".join(at)] if tag == "right" else tag]
    _, [result] = do(path, edit(op, *at, value={"sha256": "b" * 64}, match=match))
    if tag == "stale":
        assert (result["refused"]["status"], result["refused"]["code"]) == (412, "stale")
    else:
        assert result["status"] in (200, 204)


def test_entity_tags_of_what_is_not_there(path: Path) -> None:
    at = ("gateways", "default", "models")
    value = {"upstream": "mock"}
    _, results = do(
        path,
        edit("put", *at, "new", value=value, match=["*"]),
        edit("put", *at, "gpt-4o", value=value, absent=True),
        edit("put", *at, "new", value=value, absent=True),
    )
    assert [result.get("refused", result)["status"] for result in results] == [412, 412, 201]


@pytest.mark.parametrize("which", ["", "tag"])
def test_entity_tags_of_the_whole(path: Path, which: str) -> None:
    shown = show(path)
    match = [shown["etags"][""] if not which else shown["tag"]]
    text = CONFIG.replace("# mine", "# yours")
    changed_to, [taken, stale] = do(path, edit("put", text=text, match=match), edit("put", text=CONFIG, match=["x"]))
    assert taken["status"] == 200
    assert changed_to == text
    assert stale["refused"]["status"] == 412


def test_a_file_with_errors_is_not_edited_except_as_a_whole(path: Path) -> None:
    path.write_text(CONFIG + "zzz: 1\n")
    at = ("gateways", "default", "models", "x")
    text, [one, whole] = do(path, edit("put", *at, value={"upstream": "mock"}), edit("put", text=CONFIG))
    assert one["refused"]["code"] == "config_invalid"
    assert one["refused"]["status"] == 409
    assert [detail["path"] for detail in one["refused"]["details"]] == ["zzz"]
    assert whole["status"] == 200
    assert text == CONFIG
    path.write_text("gateways: {")
    text, [one, whole] = do(path, edit("delete", *at), edit("put", text=CONFIG))
    assert one["refused"]["code"] == "config_invalid"
    assert whole["status"] == 200


def test_lines_are_said_only_to_who_sent_a_text(path: Path) -> None:
    _, [text, item_of] = do(
        path,
        edit("put", text="gateways: {}\nzzz: 1\n"),
        edit("patch", "gateways", "default", value={"zzz": 1}),
    )
    assert text["refused"]["details"][0]["line"] == 2
    assert item_of["refused"]["details"] == [
        {
            "path": "gateways.default.zzz",
            "message": "unknown key; known here: hosts, auth, keys, models, rules, retry, limits",
        }
    ]


def test_a_check_changes_nothing(path: Path) -> None:
    text, [result] = do(path, edit("check", text="gateways: {}\n"))
    assert text == CONFIG
    assert result["compiled"]["document"]["gateways"] == {}
