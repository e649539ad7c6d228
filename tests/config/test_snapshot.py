"""The config compiled: what is decided once, and that what is remembered stays small."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw.config import snapshot
from aigw.config.retry import Retry
from aigw.config.snapshot import Plan, Resolved, Snapshot
from aigw.config.upstreams import Target, parse_url, remember, smooth
from aigw.providers.endpoints import without_version
from aigw.wire.head import HeadBounds

URL = "http://127.0.0.1:1"


def compiled(*targets: dict[str, Any], **fields: Any) -> Snapshot:
    return snapshot.compile(document({"up": upstream(*targets or (target(URL),), **fields)}), 7)


def only(**fields: Any) -> Target:
    of_target = {name: fields.pop(name) for name in ("url", "api_key", "headers", "model") if name in fields}
    of_upstream = {name.removeprefix("up_"): value for name, value in fields.items()}
    (found,) = compiled(target(**({"url": URL} | of_target)), **of_upstream).upstreams["up"].targets
    return found


# ----------------------------------------------------------------------------------------------------------------- urls


@pytest.mark.parametrize(
    ("url", "address", "authority", "base", "tls"),
    [
        ("http://10.0.0.7:8000/v1", ("10.0.0.7", 8000), "10.0.0.7:8000", b"/v1", False),
        ("https://api.openai.com/v1/", ("api.openai.com", 443), "api.openai.com", b"/v1", True),
        ("http://localhost", ("localhost", 80), "localhost", b"", False),
        ("http://localhost/", ("localhost", 80), "localhost", b"", False),
        ("https://[::1]:8443/a/b", ("::1", 8443), "[::1]:8443", b"/a/b", True),
        ("unix:/run/x.sock", "/run/x.sock", "localhost", b"", False),
        ("unix:/run/x.sock:/base/", "/run/x.sock", "localhost", b"/base", False),
        ("mock:", None, "mock", b"", False),
    ],
)
def test_urls(url: str, address: object, authority: str, base: bytes, tls: bool) -> None:
    assert parse_url(url) == (address, authority, base, tls)


# -------------------------------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("of_upstream", "of_target", "line", "passes"),
    [
        (None, None, b"", False),
        ("sk-up", None, b"authorization: Bearer sk-up\r\n", False),
        ("sk-up", "sk-a", b"authorization: Bearer sk-a\r\n", False),
        (None, "sk-a", b"authorization: Bearer sk-a\r\n", False),
        ("client", None, b"", True),
        ("client", "sk-a", b"authorization: Bearer sk-a\r\n", False),
        ("sk-up", "client", b"", True),
    ],
)
def test_the_credential_of_a_target(of_upstream: str | None, of_target: str | None, line: bytes, passes: bool) -> None:
    found = only(up_api_key=of_upstream, api_key=of_target)
    assert (found.fixed, found.has_credential, found.passes_client_key) == (line, bool(line), passes)


@pytest.mark.parametrize("name", ["authorization", "X-Api-Key", "api-key", "x-goog-api-key"])
@pytest.mark.parametrize("api_key", [None, "client"])
def test_a_credential_may_be_set_as_a_header(name: str, api_key: str | None) -> None:
    """Then it is the target's own as well; one that is only removed is none."""
    found = only(headers={name: "ours"}, up_api_key=api_key)
    assert (found.fixed, found.has_credential) == (f"{name.lower()}: ours\r\n".encode(), True)
    found = only(headers={name: None}, up_api_key=api_key)
    assert (found.fixed, found.has_credential) == (b"", False)
    assert not only(headers={"x-other": "ours"}, up_api_key=api_key).has_credential


def test_headers_set_and_removed() -> None:
    found = only(
        up_headers={"X-Team": "search", "x-gone": None, "x-kept": "up"},
        headers={"x-team": "ads", "X-New": "1", "x-kept": None},
        api_key="k",
        up_provider="anthropic",
    )
    assert found.fixed == b"x-team: ads\r\nx-new: 1\r\nx-api-key: k\r\n"
    assert found.removed == {b"x-team", b"x-gone", b"x-kept", b"x-new"}


def test_tls() -> None:
    found = only(url="https://api.example:444", up_tls={"verify": False, "ca": "/ca.pem", "server_name": "other"})
    assert (found.tls, found.verify, found.ca, found.server_name) == (True, False, "/ca.pem", "other")
    assert only(url="https://api.example").server_name == "api.example"
    assert only(url="unix:/x.sock").server_name == ""


def test_what_decides_whether_connections_are_shared() -> None:
    """Two snapshots share a pool exactly if a connection of one would do for the other."""
    plain = {"verify": True, "ca": None, "server_name": None}
    keys = [
        only().pool_key,
        only(url="http://127.0.0.1:2").pool_key,
        only(up_tls=plain | {"verify": False}).pool_key,
        only(up_tls=plain | {"ca": "/ca.pem"}).pool_key,
        only(up_tls=plain | {"server_name": "x"}).pool_key,
    ]
    assert len(set(keys)) == len(keys)
    assert only(api_key="k", headers={"a": "b"}).pool_key == only().pool_key


def test_no_repr_holds_a_secret() -> None:
    config = compiled(target(URL, api_key="canary-1"), headers={"authorization": "canary-2"}, api_key="canary-3")
    found = config.upstreams["up"]
    assert repr(config) == "<Snapshot generation 7>"
    assert repr(found) == "<Upstream up openai 1 targets>"
    assert repr(found.targets[0]) == "<Target up/a>"
    assert repr(snapshot.Key("k", key("canary"))) == "<Key k>"
    assert "canary" not in found.targets[0].pool_key


@pytest.mark.parametrize(
    ("provider", "url", "path", "asked"),
    [
        # without a path in the url: the client's path as it is
        ("openai", URL, b"/v1/chat/completions", b"/v1/chat/completions"),
        ("openai", URL, b"/openai/v1/responses", b"/openai/v1/responses"),
        ("http", URL, b"/v1/x", b"/v1/x"),
        # with one: a leading /v1 or /v1beta is dropped and the rest appended
        ("openai", URL + "/v1", b"/v1/chat/completions", b"/v1/chat/completions"),
        ("openai", URL + "/api/v3", b"/v1/chat/completions", b"/api/v3/chat/completions"),
        ("openai", URL + "/v1", b"/openai/v1/responses", b"/v1/responses"),
        ("openai", URL + "/v1", b"/chat/completions", b"/v1/chat/completions"),
        ("openai", URL + "/v1", b"/v1", b"/v1"),
        ("anthropic", URL + "/anthropic", b"/v1/messages", b"/anthropic/messages"),
        ("gemini", URL + "/v1beta", b"/v1/models/x:countTokens", b"/v1beta/models/x:countTokens"),
        ("gemini", URL + "/v1beta", b"/v1beta/files", b"/v1beta/files"),
        # azure: the deployments' prefix is not said twice
        ("azure", URL, b"/openai/deployments/x/y", b"/openai/deployments/x/y"),
        ("azure", URL + "/openai", b"/openai/deployments/x/y", b"/openai/deployments/x/y"),
        ("azure", URL + "/openai/v1", b"/v1/chat/completions", b"/openai/v1/chat/completions"),
        # any HTTP API: always appended
        ("http", URL + "/base/", b"/v1/x", b"/base/v1/x"),
        ("http", URL + "/openai", b"/openai/x", b"/openai/openai/x"),
        ("http", URL + "/base", b"/", b"/base/"),
        ("openai", "unix:/x.sock:/v1", b"/v1/models", b"/v1/models"),
    ],
)
def test_the_path_that_a_target_is_asked_for(provider: str, url: str, path: bytes, asked: bytes) -> None:
    (found,) = snapshot.compile(document({"up": upstream(target(url), provider=provider)}), 1).upstreams["up"].targets
    assert found.path(path, without_version(path)) == asked


def test_the_mock_has_one_target_of_its_own() -> None:
    config = snapshot.compile(document({"up": upstream(provider="mock")}), 1)
    (found,) = config.upstreams["up"].targets
    assert (found.name, found.address, found.host_line, found.weight) == ("mock", None, b"host: mock", 1)
    assert config.upstreams["up"].private


# ------------------------------------------------------------------------------------------------ models and candidates


def test_a_target_may_have_names_of_its_own() -> None:
    config = compiled(target(URL, "a"), target(URL, "b", model={"llama": "llama-q4"}))
    found = config.gateways["default"].find_model("llama")
    assert found is not None
    assert [(candidate.sent, candidate.renamed) for candidate in found.candidates] == [
        ("llama", False),
        ("llama-q4", True),
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("gpt-4o", b"x-aigw-model: gpt-4o"),
        ("openai/gpt 4o:free", b"x-aigw-model: openai/gpt 4o:free"),
        ("a\r\nset-cookie: b", b"x-aigw-model: a%0D%0Aset-cookie: b"),
        ("é\0%", b"x-aigw-model: %C3%A9%00%25"),
    ],
)
def test_a_models_name_never_becomes_a_header_of_its_own(name: str, line: bytes) -> None:
    found = compiled().gateways["default"].find_model(name)
    assert found is not None
    assert found.candidates[0].answer == b"x-aigw-upstream: up\r\n" + line + b"\r\nx-aigw-attempts: 1"


def test_what_answers_where_no_model_is_asked_for() -> None:
    (candidate,) = snapshot.Resolved(compiled().upstreams["up"], None, None, None).candidates
    assert candidate.answer == b"x-aigw-upstream: up\r\nx-aigw-attempts: 1"
    assert (candidate.sent, candidate.renamed) == (None, False)


def test_a_candidate_has_its_upstreams_deadlines() -> None:
    config = snapshot.compile(document({"up": upstream(target(URL), timeouts={"first_byte": 7.0, "idle": 8.0})}), 1)
    (candidate,) = snapshot.Resolved(config.upstreams["up"], None, None, None).candidates
    assert (candidate.first_byte, candidate.idle) == (7.0, 8.0)


@pytest.mark.parametrize(("weights", "only"), [([1], "a"), ([0, 3], "b"), ([1, 1], None), ([0], None)])
def test_the_one_candidate_where_there_is_nothing_to_choose(weights: list[int], only: str | None) -> None:
    targets = [target(URL, name, weight=weight) for name, weight in zip("ab", weights, strict=False)]
    found = compiled(*targets).gateways["default"].find_model("m")
    assert found is not None
    assert (None if found.only is None else found.only.target.name) == only


def test_a_model_knows_its_own_names() -> None:
    upstreams = compiled().upstreams
    assert not snapshot.Model("a", model("up"), upstreams).takes("b")
    assert not snapshot.Model("a*", model("up"), upstreams).takes("b")
    assert snapshot.Model("a", model("up"), upstreams).takes("a")


def test_which_names_are_shown() -> None:
    models = {"a": model("up"), "b": model("up", hidden=True), "c-*": model("up"), "d-*": model("up", list=["d-1"])}
    config = snapshot.compile(document({"up": upstream(target(URL))}, gateways={"default": gateway(models=models)}), 1)
    listed = {found.name: (found.listed, found.hidden) for found in config.gateways["default"].models}
    assert listed == {"a": (["a"], False), "b": (["b"], True), "c-*": ([], False), "d-*": (["d-1"], False)}


# -------------------------------------------------------------------------------------------------------------- weights


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=6))
def test_a_round_is_fair_and_smooth(weights: list[int]) -> None:
    round_ = smooth(weights)
    if not any(weights):
        assert round_ == ()
        return
    factor = sum(weights) // len(round_)
    assert [round_.count(index) * factor for index in range(len(weights))] == weights
    # in every prefix each target has its share, give or take less than the number of targets
    for length in range(1, len(round_) + 1):
        for index, weight in enumerate(weights):
            share = length * weight / sum(weights)
            assert abs(round_[:length].count(index) - share) < max(len(weights) - 1, 1)


def test_the_known_round() -> None:
    assert smooth([5, 1, 1]) == (0, 0, 1, 0, 2, 0, 0)
    assert smooth([300, 100]) == (0, 0, 1, 0) or smooth([300, 100]) == (0, 1, 0, 0)


# ----------------------------------------------------------------------------------------------------------------- keys


def test_digests_of_all_keys_are_known_to_the_whole_snapshot() -> None:
    before = {"sha256": hashlib.sha256(b"old").hexdigest(), "until": 1.0}
    gateways = {
        "a": gateway(keys={"k": key("one", previous=before)}, hosts=["a"]),
        "b": gateway(keys={"k": key("two", disabled=True, expires=1.0)}, hosts=["b"]),
    }
    config = snapshot.compile(document({"up": upstream(target(URL))}, gateways=gateways), 1)
    assert config.digests == {hashlib.sha256(text).digest() for text in (b"one", b"old", b"two")}
    spec = config.gateways["a"]
    assert {name: is_previous for name, (_, is_previous) in spec.keys.items()} == {
        hashlib.sha256(b"one").digest(): False,
        hashlib.sha256(b"old").digest(): True,
    }


# ------------------------------------------------------------------------------------------------------ the whole of it


def test_scalars() -> None:
    config = snapshot.compile(
        document(
            {"up": upstream(target(URL), max_connections=5, timeouts={"queue": 1.5})},
            timeouts={"total": 9.0, "keepalive": 3.0},
            bounds={"head": 100, "headers": 5, "url": 50, "body": 6, "collected": 7, "connections": 8},
            answer_headers={"x-ratelimit": False, "x-aigw": False, "server-timing": True},
        ),
        3,
    )
    assert config.generation == 3
    assert (config.timeouts.total, config.timeouts.keepalive, config.timeouts.linger) == (9.0, 3.0, 2.0)
    assert config.head_bounds == HeadBounds(100, 5, 50)
    assert (config.body_bound, config.collected_bound, config.connections_bound) == (6, 7, 8)
    assert (config.says_aigw, config.says_timing) == (False, True)
    found = config.upstreams["up"]
    assert (found.max_connections, found.timeouts.queue, found.timeouts.pool_idle) == (5, 1.5, 55.0)
    assert found.private
    assert (
        not snapshot.compile(
            document({"h": upstream(target(URL), provider="http")}, gateways={"g": gateway(models={})}), 1
        )
        .upstreams["h"]
        .private
    )


@pytest.mark.parametrize(("path", "shown"), [("/*", "<Rule r /*>"), ("/a/*", "<Rule r /a/*>"), ("/a", "<Rule r /a>")])
def test_a_rule_shows_its_path(path: str, shown: str) -> None:
    config = snapshot.compile(
        document({"up": upstream(target(URL))}, gateways={"default": gateway(rule("r", path))}), 1
    )
    assert repr(config.gateways["default"].rules[0]) == shown


def test_a_memo_that_is_full_starts_anew() -> None:
    memo: dict[int, int] = {}
    for i in range(1024):
        remember(memo, i, i)
    assert len(memo) == 1024
    remember(memo, 1024, 1024)
    assert memo == {1024: 1024}


def test_names_that_clients_make_up_are_kept_in_bounds() -> None:
    spec = compiled().gateways["default"]
    for i in range(3000):
        assert spec.find_model(f"m-{i}") is not None
    assert len(spec.resolved) <= 1024


# -------------------------------------------------------------------------------------------------------------- retries


def test_with_a_plan_it_is_otherwise_the_same() -> None:
    models = {"m": model("up", timeouts={"total": 9.0, "first_token": 3.0})}
    config = snapshot.compile(document({"up": upstream(target(URL))}, gateways={"g": gateway(models=models)}), 1)
    found = Resolved.split(config.gateways["g"].models[0], [(1, Resolved(config.upstreams["up"], "m", "a", "b"))])
    found.fallbacks = (Resolved(config.upstreams["up"], "n", "c", "d"),)
    plan = Plan(Retry({"attempts": 2, "budget": 0.2, "when": ["5xx"]}), "model", found.fallbacks, 1.0)
    names = [name for name in dir(found) if not name.startswith("_") and not callable(getattr(found, name))]
    planned = found.with_plan(plan)
    assert {name for name in names if getattr(planned, name) != getattr(found, name)} == {"plan"}
    assert planned.plan is plan
