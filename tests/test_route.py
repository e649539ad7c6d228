"""Where a request goes: every decision, and that no spelling of a path or a name gets round it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream

from aigw import errors, route
from aigw.config import snapshot
from aigw.config.snapshot import GatewaySpec, Match, Resolved, Snapshot
from aigw.config.upstreams import Candidate, Target, Upstream
from aigw.errors import Failure, Kind
from aigw.providers import dialect_of
from aigw.wire.head import HeadBounds, RequestHead, RequestParser

URL = "http://127.0.0.1:1"
UPSTREAMS = {
    "up": upstream(target(URL)),
    "claude": upstream(target(URL), provider="anthropic"),
    "google": upstream(target(URL), provider="gemini"),
    "both": upstream(target(URL), dialects=["openai", "anthropic"]),
    "plain": upstream(target(URL), provider="http"),
}


def compiled(*rules: dict[str, Any], **fields: Any) -> Snapshot:
    return snapshot.compile(document(UPSTREAMS, gateways={"default": gateway(*rules, **fields)}), 1)


def head(method: str, path: str, *lines: bytes, host: bytes = b"gw") -> RequestHead:
    block = b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), b"host: " + host, *lines])
    return RequestParser().parse(block, HeadBounds())


def matched(config: Snapshot, method: str, path: str, host: bytes = b"gw") -> Match:
    found = route.match(config, head(method, path, host=host))
    assert isinstance(found, Match), found
    return found


def refused(config: Snapshot, method: str, path: str, host: bytes = b"gw") -> Failure:
    found = route.match(config, head(method, path, host=host))
    assert isinstance(found, Failure), found.rule
    return found


# ------------------------------------------------------------------------------------------------------------- gateways


HOSTS = snapshot.compile(
    document(
        UPSTREAMS,
        gateways={
            "rest": gateway(hosts=["*"]),
            "suffix": gateway(hosts=["*.example.org"]),
            "deeper": gateway(hosts=["*.eu.example.org", "Other.example"]),
            "exact": gateway(hosts=["a.example.org", "[::1]"]),
        },
    ),
    1,
)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"a.example.org", "exact"),
        (b"A.Example.ORG:8081", "exact"),
        (b"[::1]:80", "exact"),
        (b"b.example.org", "suffix"),
        (b"x.a.example.org", "suffix"),
        (b"x.eu.example.org", "deeper"),
        (b"eu.example.org", "suffix"),
        (b"other.example", "deeper"),
        (b"example.org", "rest"),
        (b"evil-example.org", "rest"),
        (b"a.example.org.evil", "rest"),
        (b"127.0.0.1", "rest"),
    ],
)
def test_the_gateway_is_found_by_host(host: bytes, name: str) -> None:
    """Exact, else the longest suffix, else `*`; port and case mean nothing."""
    assert matched(HOSTS, "GET", "/", host).gateway.name == name


def test_no_host_is_the_rest() -> None:
    old = RequestParser().parse(b"GET / HTTP/1.0", HeadBounds())
    found = route.match(HOSTS, old)
    assert isinstance(found, Match)
    assert found.gateway.name == "rest"


def test_no_gateway() -> None:
    config = compiled(hosts=["a.example", "*.b.example"])
    for host in (b"b.example", b"c", b".b.example"):
        failure = refused(config, "GET", "/", host)
        assert (failure.kind, "no gateway answers for this host" in failure.message) == (errors.NO_GATEWAY, True)


# ---------------------------------------------------------------------------------------------------------------- rules


RULES = compiled(
    rule("all"),
    rule("v1", "/v1/*"),
    rule("chat", "/v1/chat/*"),
    rule("ping", "/v1/ping", upstream="plain", methods=["GET"]),
    rule("files", "/files/*", upstream="plain", strip_path=True),
    rule("one", "/one", upstream="plain", strip_path=True),
)


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/v1/ping", "ping"),
        ("POST", "/v1/ping", "v1"),  # another method is another rule's, where one takes it
        ("GET", "/v1/ping/", "v1"),
        ("GET", "/v1/pingpong", "v1"),
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/v1/chat", "chat"),
        ("POST", "/v1/chatter", "v1"),
        ("GET", "/v1", "v1"),
        ("GET", "/v1/", "v1"),
        ("GET", "/v10", "all"),
        ("GET", "/V1/x", "all"),
        ("GET", "/", "all"),
        ("GET", "/files?a=b", "files"),
        ("PURGE", "/one", "one"),
    ],
)
def test_the_rule_is_found_by_path(method: str, path: str, name: str) -> None:
    """Exact beats prefix, the longest prefix wins, on the borders of segments."""
    assert matched(RULES, method, path).rule.name == name
    assert matched(RULES, method, path) is matched(RULES, method, path)  # remembered


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        ("/files/a/b?c", b"/a/b"),
        ("/files/", b"/"),
        ("/files", b"/"),
        ("/files/v1/x", b"/v1/x"),
        ("/one", b"/"),
        ("/v1/x", b"/v1/x"),
    ],
)
def test_a_rule_may_strip_its_path(path: str, rest: bytes) -> None:
    assert matched(RULES, "GET", path).path == rest


def test_equal_prefixes_keep_the_order_of_the_file() -> None:
    config = compiled(rule("first", "/a/*", methods=["GET"]), rule("second", "/a/*"))
    assert matched(config, "GET", "/a").rule.name == "first"
    assert matched(config, "POST", "/a").rule.name == "second"


def test_a_method_that_is_not_allowed() -> None:
    config = compiled(rule("a", "/a", methods=["PUT", "GET"]), rule("b", "/a/*", methods=["DELETE"]), rule("c", "/c/*"))
    failure = refused(config, "POST", "/a")
    assert (failure.kind, failure.allow) == (errors.METHOD_NOT_ALLOWED, "DELETE, GET, PUT")
    assert failure.message == "POST is not allowed here; use DELETE, GET, PUT"
    assert refused(config, "HEAD", "/a/b").allow == "DELETE"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nothing", "No rule of the gateway takes this path"),
        ("/chat/completions", "The path lacks its version prefix"),
        ("/v1/v1/chat/completions", "The path has one version prefix too many"),
    ],
)
def test_no_rule(path: str, words: str) -> None:
    failure = refused(compiled(rule("x", "/x/*")), "POST", path)
    assert (failure.kind, failure.message.startswith(words)) == (errors.NO_RULE, True), failure


def test_options_of_the_whole_server_has_no_rule() -> None:
    assert refused(RULES, "OPTIONS", "*").kind is errors.NO_RULE


# ---------------------------------------------------------------------------------------------------------- path tricks


GUARDED = compiled(
    rule("public", "/public/*", upstream="plain", public=True),
    rule("admin", "/admin/*", upstream="plain"),
    rule("status", "/public/status", upstream="plain"),
)


@pytest.mark.parametrize(
    "path",
    [
        "/public/%2e%2e/admin/x",
        "/public/..%2fadmin/x",
        "/public/..;/admin/x",
        "/public/..\\admin\\x",
        "/public%2f..%2fadmin",
        "/public/./../admin",
        "/public/../admin",
        "/public/%2E./admin",
    ],
)
def test_dot_segments_never_get_as_far_as_a_rule(path: str) -> None:
    with pytest.raises(errors.Refused) as caught:
        head("GET", path)
    assert caught.value.failure.kind is errors.BAD_REQUEST


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("//admin/x", errors.NO_RULE),
        ("/%61dmin/x", errors.NO_RULE),
        ("/\\admin/x", errors.NO_RULE),
        ("/;a/admin/x", errors.NO_RULE),
        ("/public;/x", errors.NO_RULE),
        ("/public//status", errors.BAD_REQUEST),
        ("/public/status;x", errors.BAD_REQUEST),
        ("/public/%73tatus", errors.BAD_REQUEST),
        ("/public/\\status", errors.BAD_REQUEST),
        ("/public%2Fstatus", errors.NO_RULE),
        ("/admin%2Fx", errors.NO_RULE),
    ],
)
def test_no_spelling_reaches_a_rule_by_another_ones_decision(path: str, kind: Kind) -> None:
    """What the upstream may read the path as is decided by the same rule, or it is refused (RFC 9110 section 4.2.3)."""
    failure = refused(GUARDED, "GET", path)
    assert failure.kind is kind, failure
    assert refused(GUARDED, "GET", path) == failure  # refused again, from memory or not


@pytest.mark.parametrize("path", ["/public//x", "/public/a%2fb", "/public/a;b", "/public/%41", "/public/a\\b"])
def test_a_spelling_that_changes_no_decision_passes_as_it_came(path: str) -> None:
    assert matched(GUARDED, "GET", path).path == path.encode()


def test_a_method_is_checked_on_both_spellings() -> None:
    config = compiled(rule("all"), rule("put", "/a/b", methods=["PUT"]))
    assert refused(config, "PUT", "/a//b").kind is errors.BAD_REQUEST
    assert matched(config, "GET", "/a//b").rule.name == "all"


@pytest.mark.parametrize(
    "path",
    [
        "/v1beta/models/gpt-4o%3AgenerateContent",
        "/v1beta//models/gpt-4o:generateContent",
        "/v1beta/%6dodels/gpt-4o:generateContent",
        "/v1beta/models/gpt-4o:generateContent;x",
        "/v1/chat%2fcompletions",
        "/v1//chat/completions",
        "/v1/%6dessages",
        "/v1/messages;x",
        "/openai/%64eployments/gpt-4o/chat/completions",
        "/openai/deployments/gpt-4o%2Fchat/completions",
        "/v1/chat/completions/",
        "/v1/chat/completions//",
        "/V1/chat/completions",
        "/v1/Messages",
        "/v1beta/Models/gpt-4o:generateContent",
        "/openai/Deployments/gpt-4o/chat/completions",
    ],
)
def test_no_spelling_hides_a_model_from_the_gateway(path: str) -> None:
    """Where a decoding upstream would see a call of a model, the gateway must see it too, or refuse: else a request for
    a model that the key may not use passes for one of those that have none."""
    found = route.match(compiled(rule(default="up")), head("POST", path))
    assert isinstance(found, Failure) or found.endpoint.kind == "inference"


# --------------------------------------------------------------------------------------------------------------- models


MODELS = {
    "gpt-4o": model("up"),
    "fast": model("both", "llama-3.1-8b"),
    "claude": model("claude", timeouts={"first_token": None, "total": 9.0}),
    "gpt-*": model("up"),
    "gpt-4*": model("both", "four"),
    "openai/*": model("up", "*"),
    "*-beta": model("up", "beta-*-x"),
    "a*a": model("up"),
}


def resolved(
    config: Snapshot, name: str | None, path: str = "/v1/chat/completions", **of_key: Any
) -> Resolved | Failure:
    asked = head("POST", path)
    found = route.match(config, asked)
    assert isinstance(found, Match)
    owner = snapshot.Key("k", key("sk", **of_key)) if of_key else None
    return route.find(found, found.endpoint.dialect or dialect_of("", asked), owner, name)


@pytest.mark.parametrize(
    ("asked", "entry", "sent", "renamed"),
    [
        ("gpt-4o", "gpt-4o", "gpt-4o", False),  # exact beats every glob
        ("gpt-3.5", "gpt-*", "gpt-3.5", False),
        ("gpt-4-turbo", "gpt-4*", "four", True),  # the longest glob
        ("gpt-4", "gpt-4*", "four", True),
        ("fast", "fast", "llama-3.1-8b", True),
        ("openai/gpt-4o", "openai/*", "gpt-4o", True),
        ("openai/a/b*c", "openai/*", "a/b*c", True),
        ("x-beta", "*-beta", "beta-x-x", True),
        ("aa", "a*a", "aa", False),
        ("aba", "a*a", "aba", False),
    ],
)
def test_a_model_is_found(asked: str, entry: str, sent: str, renamed: bool) -> None:
    config = compiled(models=MODELS)
    found = resolved(config, asked)
    assert isinstance(found, Resolved)
    assert found.entry == entry
    (candidate,) = found.candidates
    assert (candidate.sent, candidate.renamed) == (sent, renamed)
    assert resolved(config, asked) is found  # remembered


def test_a_models_total_timeout_goes_with_it() -> None:
    found = resolved(compiled(models=MODELS), "claude", "/v1/messages")
    assert isinstance(found, Resolved)
    assert (found.total, found.upstream.name) == (9.0, "claude")


@pytest.mark.parametrize("name", ["", "a", "GPT-4o", "gpt", "openai", "nope"])
def test_a_model_that_does_not_exist(name: str) -> None:
    failure = resolved(compiled(models=MODELS), name)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.param) == (errors.MODEL_NOT_FOUND, "model")
    assert repr(name) in failure.message


@pytest.mark.parametrize(
    ("models", "allowed", "denied"),
    [
        (["*"], ["gpt-4o", "fast", "x-beta"], []),
        (["gpt-4o", "openai/*"], ["gpt-4o", "openai/x", "openai/"], ["gpt-4", "fast", "openai"]),
        (["*-beta"], ["x-beta"], ["gpt-4o"]),
        ([], [], ["gpt-4o"]),
        (["llama-3.1-8b"], [], ["fast"]),  # the name asked for is what counts
    ],
)
def test_a_keys_models(models: list[str], allowed: list[str], denied: list[str]) -> None:
    config = compiled(models=MODELS)
    for name in allowed:
        assert isinstance(resolved(config, name, models=models), Resolved), name
    for name in denied:
        failure = resolved(config, name, models=models)
        assert isinstance(failure, Failure)
        assert (failure.kind, failure.param) == (errors.MODEL_NOT_ALLOWED, "model")
        assert f"'k' may not use the model {name!r}" in failure.message


def test_a_name_that_is_too_long_for_a_header_and_a_log() -> None:
    config = compiled(models={"*": model("up")})
    assert isinstance(resolved(config, "m" * route.MAX_MODEL), Resolved)
    failure = resolved(config, "m" * (route.MAX_MODEL + 1))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.param) == (errors.BAD_REQUEST, "model")
    assert "more than 1024 characters" in failure.message


def test_a_key_learns_nothing_of_models_that_are_not_its_own() -> None:
    failure = resolved(compiled(models=MODELS), "nope", models=["gpt-4o"])
    assert isinstance(failure, Failure)
    assert failure.kind is errors.MODEL_NOT_ALLOWED


@pytest.mark.parametrize(
    ("path", "name", "home"),
    [
        ("/v1/chat/completions", "claude", "/v1/messages"),
        ("/v1/messages", "gpt-4o", "/v1/chat/completions"),
        ("/v1beta/models/x:generateContent", "fast", "/v1/messages or /v1/chat/completions"),
    ],
)
def test_a_dialect_that_the_upstream_does_not_speak(path: str, name: str, home: str) -> None:
    failure = resolved(compiled(models=MODELS), name, path)
    assert isinstance(failure, Failure)
    assert failure.kind is errors.DIALECT_MISMATCH
    assert failure.message.endswith(f"ask for it at {home}")


def test_an_upstream_may_speak_two_dialects() -> None:
    config = compiled(models=MODELS)
    for path in ("/v1/chat/completions", "/v1/messages"):
        assert isinstance(resolved(config, "fast", path), Resolved)


def test_a_path_nobody_told_of_is_routed_by_the_model_it_names() -> None:
    assert isinstance(resolved(compiled(models=MODELS), "claude", "/v1/newest"), Resolved)


# ------------------------------------------------------------------------------------------------- requests without one


@pytest.mark.parametrize(
    ("path", "default", "name"),
    [
        ("/v1/files", "up", "up"),
        ("/v1/files", {"openai": "up", "anthropic": "claude"}, "up"),
        ("/v1/messages/batches", {"openai": "up", "anthropic": "claude"}, "claude"),
        ("/v1beta/files", {"gemini": "google"}, "google"),
        ("/v1/messages", {"anthropic": "claude"}, "claude"),
    ],
)
def test_the_default_by_dialect(path: str, default: str | dict[str, str], name: str) -> None:
    found = resolved(compiled(rule(default=default)), None, path)
    assert isinstance(found, Resolved)
    assert (found.upstream.name, found.entry, found.candidates[0].sent) == (name, None, None)
    assert not found.candidates[0].renamed


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", errors.MISSING_MODEL),
        ("/v1/audio/transcriptions", errors.MISSING_MODEL),
        ("/v1/files", errors.NO_RULE),
        ("/v1beta/files", errors.NO_RULE),
        ("/chat/completions", errors.NO_RULE),
    ],
)
def test_no_default(path: str, kind: Kind) -> None:
    for default in (None, {"anthropic": "claude"}):
        failure = resolved(compiled(rule(default=default)), None, path)
        assert isinstance(failure, Failure)
        assert failure.kind is kind


def test_a_limited_key_needs_resources_to_reach_what_belongs_to_no_model() -> None:
    config = compiled(rule(default="up"))
    failure = resolved(config, None, "/v1/files", models=["gpt-4o"])
    assert isinstance(failure, Failure)
    assert (failure.kind, "`resources: true`" in failure.message) == (errors.RESOURCE_NOT_ALLOWED, True)
    assert isinstance(resolved(config, None, "/v1/files", models=["gpt-4o"], resources=True), Resolved)
    assert isinstance(resolved(config, None, "/v1/files", models=["*"]), Resolved)


def test_a_rule_with_an_upstream_asks_for_no_model() -> None:
    config = compiled(rule(upstream="plain"))
    found = resolved(config, "anything", "/v1/chat/completions", models=[])
    assert isinstance(found, Resolved)
    assert (found.upstream.name, found.candidates[0].sent) == ("plain", None)


# -------------------------------------------------------------------------------------------------------------- targets


class Moment:
    """What routing may know of the moment, as a test says it."""

    def __init__(self, **in_flight: int) -> None:
        self.counts = in_flight
        self.out: dict[str, float] = {}
        self.chosen = 0
        self.chance = random.Random(7)

    def in_flight(self, target: Target) -> int:
        return self.counts.get(target.name, 0)

    def cursor(self, upstream: Upstream) -> int:
        return self.chosen

    def draw(self) -> float:
        return self.chance.random()

    def out_until(self, target: Target) -> float:
        return self.out.get(target.name, 0.0)


def pool(balance: str, **weights: int) -> Resolved:
    targets = [target(URL, name, weight=weight) for name, weight in weights.items()]
    config = snapshot.compile(document({"up": upstream(*targets, balance=balance)}), 1)
    found = config.gateways["default"].find_model("m")
    assert found is not None
    return found


def choices(found: Resolved, view: Moment, count: int) -> str:
    """The names of targets, one after the other."""
    names = ""
    for _ in range(count):
        candidate = route.choose(found, view)
        assert isinstance(candidate, Candidate)
        names += candidate.target.name
        view.chosen += 1
    return names


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"a": 1}, "aaa"),
        ({"a": 0, "b": 3}, "bbb"),
        ({"a": 1, "b": 1}, "ababab"),
        ({"a": 10, "b": 10}, "abab"),
        ({"a": 5, "b": 1, "c": 1}, "aabacaa" * 2),  # spread over the round, not in a burst
        ({"a": 2, "b": 0, "c": 1}, "aca" * 2),
    ],
)
def test_round_robin_by_weight(weights: dict[str, int], expected: str) -> None:
    assert choices(pool("round_robin", **weights), Moment(), len(expected)) == expected


@pytest.mark.parametrize(
    ("weights", "in_flight", "expected"),
    [
        ({"a": 1, "b": 1}, {"a": 3, "b": 2}, "bb"),
        ({"a": 1, "b": 1, "c": 1}, {}, "abcabc"),  # equals take turns
        ({"a": 1, "b": 1, "c": 1}, {"a": 5}, "bbcbbc"),
        ({"a": 3, "b": 1}, {"a": 2, "b": 1}, "aa"),
        ({"a": 3, "b": 1}, {"a": 3, "b": 0}, "bb"),
        ({"a": 1, "b": 0, "c": 1}, {"a": 9, "c": 1}, "ccc"),
        ({"a": 0, "b": 2}, {"b": 100}, "bb"),
    ],
)
def test_least_connections_by_weight(weights: dict[str, int], in_flight: dict[str, int], expected: str) -> None:
    assert choices(pool("least_connections", **weights), Moment(**in_flight), len(expected)) == expected


@pytest.mark.parametrize("balance", ["round_robin", "least_connections"])
def test_no_target_has_a_weight(balance: str) -> None:
    failure = route.choose(pool(balance, a=0, b=0), Moment())
    assert isinstance(failure, Failure)
    assert (failure.kind, "'up' has weight 0" in failure.message) == (errors.NO_TARGET, True)


def test_a_gateway_repr() -> None:
    spec: GatewaySpec = RULES.gateways["default"]
    assert repr(spec) == "<GatewaySpec default 0 keys 1 models 6 rules>"
