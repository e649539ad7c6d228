"""What explain says is what the running gateway does: a matrix of configs and requests both ways, compared."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from time import monotonic
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from counted import Turn
from fakes import Answer, Running, document, gateway, key, limit, model, post, rule, running, stub, target, upstream
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw import show
from aigw.config import snapshot, upstreams
from aigw.counters import IN_SERVICE, Standing
from aigw.explain import MASK, NEW_ID, Moment, decide, explain
from aigw.meters import Meters
from aigw.policies.attempts import Attempts
from aigw.policies.estimate import Estimate
from aigw.policies.limits import Limits
from aigw.sample import Sample, SampleError, message, sample_of
from aigw.shared import SUPERVISOR, Cells
from aigw.status import Present

SECRET = "sk-upstream-secret"  # of upstreams
KEYS = {
    "demo": key("sk-demo"),
    "few": key("sk-few", models=["gpt-4o", "claude-*"], group="search"),
    "old": key("sk-old", expires=1_000_000.0),
    "off": key("sk-off", disabled=True),
}


def documents(url: str) -> dict[str, dict[str, Any]]:
    """By a name that says what is special about each."""
    up = upstream(target(url + "/v1", api_key=SECRET))
    two = upstream(target(url, "a", weight=2), target(url, "b", api_key="client"), target(url, "c", weight=0))
    claude = upstream(target(url), provider="anthropic", api_key=SECRET, headers={"x-team": "search", "x-gone": None})
    plain = upstream(target(url + "/base"), provider="http")
    upstreams = {"up": up, "two": two, "claude": claude, "plain": plain}
    upstreams["asks"] = upstream(target(url), usage="inject", api_key=SECRET)
    upstreams["none"] = upstream(target(url, weight=0))
    upstreams["busy"] = upstream(target(url, "a"), target(url, "b"), balance="least_connections")
    models = {
        "gpt-4o": model("up"),
        "gpt-*": model("two", "real-*"),
        "claude-*": model("claude"),
        "fast": model("asks", "llama"),
        "idle": model("none"),
        "busy": model("busy"),
    }
    rules = [
        rule("api", "/v1/*", default={"openai": "up", "anthropic": "claude"}),
        rule("beta", "/v1beta/*"),
        rule("exact", "/v1/embeddings", methods=["POST"], upstream="two"),
        rule("ping", "/ping", methods=["GET", "HEAD"], upstream="plain", public=True),
        rule("files", "/files/*", upstream="plain", strip_path=True, preserve_host=True),
        rule("health", "/healthz", upstream="plain"),
    ]
    tenant = gateway(*rules, hosts=["*"], auth="keys", keys=KEYS, models=models)
    open_to_all = gateway(hosts=["open.example", "*.open.example"], models={"*": model("two")})
    return {
        "one": document(upstreams, gateways={"main": tenant, "open": open_to_all}),
        "no default": document(
            upstreams,
            gateways={"main": gateway(rule("api", "/v1/*"), hosts=["gw.example"], models=models)},
            answer_headers={"x-ratelimit": True, "x-aigw": False, "server-timing": False},
        ),
        "short": document(upstreams, gateways={"main": tenant | {"hosts": ["gw.example"]}}, bounds={"body": 60}),
    }


PATHS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/audio/transcriptions"),
    ("POST", "/v1beta/models/gpt-5:generateContent"),
    ("POST", "/openai/deployments/gpt-5/chat/completions?key=sk-demo&api-version=1"),
    ("POST", "/v1/new/thing"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/gpt-4o"),
    ("GET", "/v1/files/abc"),
    ("POST", "/v1/v1/chat/completions"),
    ("POST", "/chat/completions"),
    ("GET", "/ping"),
    ("POST", "/ping"),
    ("GET", "/files/a//b"),
    ("PUT", "/files/x"),
    ("GET", "/healthz"),
    ("HEAD", "/"),
    ("GET", "/v1/../files"),
    ("POST", "/v1/chat%2Fcompletions"),
]
HOSTS = ["gw.example", "open.example", "a.open.example:80"]
NAMES = [None, "demo", "few", "old", "off", "unknown"]
MODELS = [None, "gpt-4o", "gpt-5", "claude-x", "fast", "idle", "busy", "nothing"]
HEADERS = {
    "plain": {},
    "much": {
        "accept-encoding": "br, gzip",
        "cookie": "a=b",
        "x-gone": "1",
        "x-api-key": "sk-own",
        "x-request-id": "id-1",
    },
    "odd": {"content-type": "application/json; charset=utf-7", "content-encoding": "gzip"},
}
ODD = st.characters(codec=None, exclude_categories=())  # half surrogates and control characters too
STREAM = {"model": "fast", "stream": True, "messages": []}


ASKED = snapshot.compile(documents("http://127.0.0.1:1")["one"], 1)


def samples() -> Iterator[dict[str, Any]]:
    """Every path with keys, models and hosts."""
    for (method, path), host, name, asked in itertools.product(PATHS, HOSTS, NAMES, MODELS):
        if host != "gw.example" and name not in (None, "demo"):
            continue
        if asked not in (None, "gpt-4o") and (method != "POST" or name in ("old", "off", "unknown")):
            continue
        yield {"method": method, "path": path, "host": host, "key": name and f"sk-{name}", "model": asked}


def special() -> Iterator[dict[str, Any]]:
    """Other headers, other bodies, heads that are none."""
    for (method, path), headers in itertools.product(PATHS, ("much", "odd")):
        for asked in ("gpt-4o", "fast"):
            yield {"method": method, "path": path, "key": "sk-demo", "model": asked, "headers": HEADERS[headers]}
    chat = {"path": "/v1/chat/completions", "host": "gw.example", "key": "sk-demo"}
    for body in (STREAM, {"model": 5}, {"Model": "gpt-4o"}, "{", '{"model": "gpt-4o", "model": "fast"}', "[]"):
        yield chat | {"body": body}
    yield chat | {"body": {"model": "gpt-4o", "padding": "x" * 100}}
    form = {"content-type": "multipart/form-data; boundary=b"}
    yield chat | {"path": "/v1/audio/transcriptions", "headers": form, "body": "--b\r\nno form"}
    yield chat | {"path": "/v1/messages", "dialect": "anthropic", "model": "claude-3"}
    yield chat | {"path": "/v1/chat completions".replace(" ", "%00")}
    yield chat | {"method": "gEt", "path": "/v1/models"}
    yield chat | {"host": "two words"}


async def compare(run: Running, compiled: snapshot.Snapshot, sample: Sample, seen: list[Any]) -> str:
    """Explains, then asks; the outcome, once both are found to be the same."""
    plan = explain(compiled, sample, time.time(), run.gateway)
    body = decide(compiled, sample, time.time(), run.gateway).body
    before, records = len(seen), len(run.lines)
    head, sent = message(sample)
    answer = await run.ask(head + b"\r\n\r\n" + sent, head_only=sample.method == "HEAD")
    record = run.records[-1] if len(run.lines) > records else {}
    asked = seen[before:]
    assert SECRET not in json.dumps(plan)
    outcome = plan["outcome"]
    if outcome == "refused":
        refused_alike(plan, answer, record)
    elif outcome == "answered":
        assert (answer.status, "x-aigw-upstream" in answer.headers) == (200, False)
    else:
        assert answer.status == 200
        (request,) = asked
        forwarded_alike(plan, request, record)
        assert request.body == body
    assert len(asked) == (outcome == "forwarded")
    return str(outcome)


def refused_alike(plan: dict[str, Any], answer: Answer, record: dict[str, Any]) -> None:
    refusal = plan["refusal"]
    assert answer.status == refusal["status"]
    assert answer.headers["x-aigw-error"] == refusal["code"]
    assert (record["error"], record["fault"]) == (refusal["code"], refusal["fault"])
    if answer.body:
        said = answer.json()["error"]
        assert said["message"] == refusal["message"]
    for name in ("gateway", "rule"):
        assert record.get(name) == (plan[name]["name"] if name in plan else None)


def forwarded_alike(plan: dict[str, Any], request: Any, record: dict[str, Any]) -> None:
    (chosen,) = [candidate for candidate in plan["candidates"] if candidate["target"] == plan["head_to"]]
    assert not [candidate for candidate in plan["candidates"] if candidate["chosen"] and candidate is not chosen]
    shown = {
        "gateway": plan["gateway"]["name"],
        "rule": plan["rule"]["name"],
        "key": plan["key"]["name"],
        "model": plan["model"]["asked"],
        "model_used": chosen.get("model"),
        "upstream": plan["model"]["upstream"],
        "target": chosen["target"],
    }
    assert {name: record.get(name) for name in shown} == shown
    line, *lines = plan["head"]
    assert line == request.line.decode()
    assert len(lines) == len(request.lines)
    for said, came in zip(lines, request.lines, strict=True):
        name, _, value = said.partition(": ")
        if value == MASK:
            assert came.decode().partition(": ")[0] == name
        elif value == NEW_ID:
            assert came.startswith(b"x-request-id: ")
        else:
            assert said == came.decode()


@pytest.mark.unmeasured
@pytest.mark.usefixtures("plain_loop")
@pytest.mark.parametrize(("name", "step"), [("one", 1), ("no default", 3), ("short", 4)])
async def test_the_whole_matrix_both_ways(name: str, step: int) -> None:
    """The first config with all samples, the others, which differ in a few things, with every third or fourth."""
    async with stub() as up, running(config := documents(up.url)[name]) as run:
        compiled = snapshot.compile(config, 1)
        asked = [*list(samples())[::step], *special()]
        outcomes = [await compare(run, compiled, Sample.of(sample), up.seen) for sample in asked]
    assert min(outcomes.count("forwarded"), outcomes.count("refused")) > 15
    assert outcomes.count("answered") >= 3


def test_samples_that_are_none() -> None:
    """Each says which member is wrong, and what would be right."""
    path = {"path": "/v1/models"}
    for members, said in {
        '{"method": "GET"}': "path: missing; give the request's path, such as /v1/chat/completions",
        '{"path": 5}': "path: must be a text",
        '{"path": ""}': "path: must be a text that is not empty and has no blank",
        '{"path": "/a b"}': "path: must be a text that is not empty and has no blank",
        '{"path": "/a", "method": "G\\r\\n"}': "method: must be one line",
        '{"path": "/a", "host": "a\\nb"}': "host: must be one line",
        '{"path": "/a", "headers": ["a"]}': 'headers: must be an object of texts, such as {"user-agent": "curl"}',
        '{"path": "/a", "headers": {"x": 1}}': "headers.x: must be a text",
        '{"path": "/a", "headers": {"x": "a\\r\\nb: c"}}': "headers.x: must be one line",
        '{"path": "/a", "headers": {"Host": "x"}}': "headers.host: give it as `host`",
        '{"path": "/a", "headers": {"content-length": "1"}}': "headers.content-length: give it as `body`, whose "
        "framing is made from it",
        '{"path": "/a", "model": "\\ud800"}': "model: must be a text of whole characters, without half of a surrogate "
        "pair",
        '{"path": "/a", "body": {"a": 99999999999999999999}}': "body: cannot be written as JSON again; "
        "give it as a text",
        '{"path": "/a", "dialect": "klingon"}': "dialect: must be one of openai, anthropic, gemini",
        '{"path": "/a", "key_name": "nobody"}': "key_name: the gateway 'main' has no key 'nobody'; there are: "
        "demo, few, old, off",
        '{"path": "/a", "modell": "x"}': "modell: there is no such member; there are path, method, host, headers, "
        "model, key, key_name, body, dialect",
    }.items():
        compiled = snapshot.compile(documents("http://127.0.0.1:1")["one"], 1)
        with pytest.raises(SampleError) as caught:
            explain(compiled, Sample.of(json.loads(members)), 0.0)
        assert str(caught.value) == said
    assert Sample.of(path | {"model": None}) == Sample("/v1/models")


def test_what_a_worker_alone_knows_is_not_made_up() -> None:
    compiled = snapshot.compile(documents("http://127.0.0.1:1")["one"], 1)
    plan = explain(compiled, Sample.of({"path": "/v1/chat/completions", "model": "gpt-5", "key_name": "demo"}), 0.0)
    assert [(entry["target"], entry["chosen"], entry["why"]) for entry in plan["candidates"]] == [
        ("a", False, "2 of 3 turns are its own"),
        ("b", False, "1 of 3 turns are its own"),
        ("c", False, "no candidate: its weight is 0"),
    ]
    assert plan["gateway"] == {"name": "main", "why": "its hosts have *: any host"}
    assert plan["rule"]["why"] == "the longest prefix that takes the path is /v1/*; any method; by model"
    assert plan["model"] == {"asked": "gpt-5", "entry": "gpt-*", "upstream": "two", "why": "the longest glob that fits"}
    assert plan["patches"] == ["the model's name becomes 'real-5'"]


def test_an_exchange_is_asked_about_by_its_record() -> None:
    compiled = snapshot.compile(documents("http://127.0.0.1:1")["one"], 1)
    record = {"gateway": "open", "method": "POST", "path": "/v1/a%20b", "model": "m", "status": 200}
    sample = Sample.of_record(compiled, record)
    assert sample == Sample("/v1/a%20b", host="open.example", model="m")
    record = {"gateway": "main", "method": "GET", "path": "/v1/models", "key": "few"}
    assert Sample.of_record(compiled, record) == Sample("/v1/models", "GET", key_name="few")
    shadowed = {
        "a": gateway(hosts=["*"]),
        "b": gateway(hosts=["localhost", "*.b.example"]),
        "c": gateway(hosts=["any.b.example"]),
    }
    several = snapshot.compile(document({"up": upstream(target("http://127.0.0.1:1"))}, gateways=shadowed), 1)
    hosts = {name: Sample.of_record(several, record | {"gateway": name}).host for name in shadowed}
    assert hosts == {"a": "any.invalid", "b": "localhost", "c": "any.b.example"}
    with pytest.raises(SampleError, match="was no request"):
        Sample.of_record(compiled, {"status": 400})
    with pytest.raises(SampleError, match="its gateway 'gone' is not in the config any more"):
        Sample.of_record(compiled, record | {"gateway": "gone"})
    assert sample_of(compiled, {"model": "fast", "key_name": "demo"}, record) == Sample(
        "/v1/models", "GET", model="fast", key_name="demo"
    )
    assert sample_of(compiled, {"key": "sk-few"}, record) == Sample("/v1/models", "GET", key="sk-few")
    assert sample_of(compiled, {"path": "/ping"}, None) == Sample("/ping")


def test_no_secret_is_shown() -> None:
    """Not the upstream's, not the client's own, wherever it comes from."""
    compiled = snapshot.compile(documents("http://127.0.0.1:1")["one"], 1)
    for path, asked in (("/v1/chat/completions", "gpt-4o"), ("/files/x?key=secret-a&q=1", None)):
        headers = {name: f"secret-{name}" for name in ("authorization", "x-api-key", "cookie", "x-goog-api-key")}
        given = {"path": path, "model": asked, "key": "sk-demo", "headers": headers | {"x-other": "1"}}
        plan = explain(compiled, Sample.of(given), 0.0)
        assert plan["outcome"] == "forwarded"
        text = json.dumps(plan)
        assert "secret" not in text.replace("***", "")
        assert "x-other: 1" in plan["head"]
    assert plan["head"][0] == "POST /base/x?key=***&q=1 HTTP/1.1"
    assert plan["request"]["path"] == "/files/x?key=***&q=1"
    assert "secret" not in repr(Sample.of(given))


async def test_a_key_is_as_good_by_name() -> None:
    config = documents("http://127.0.0.1:1")["one"]
    compiled = snapshot.compile(config, 1)
    for (method, path), name in itertools.product(PATHS, ("demo", "few", "old", "off")):
        asked = {"method": method, "path": path.replace("?key=sk-demo&", "?"), "model": "gpt-4o"}
        raw = explain(compiled, Sample.of(asked | {"key": f"sk-{name}"}), 2e9)
        assert explain(compiled, Sample.of(asked | {"key_name": name}), 2e9) == raw


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(ODD, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(ODD, max_size=8), inner, max_size=3),
)


@pytest.mark.unmeasured
@given(
    st.fixed_dictionaries(
        {"path": st.sampled_from([path for _, path in PATHS]) | st.text(max_size=12).map("/".__add__)},
        optional={
            "method": st.sampled_from(["GET", "POST", "HEAD", "PUT", "get", "OPTIONS", "CONNECT"])
            | st.text(max_size=4),
            "host": st.text(ODD, max_size=6) | st.sampled_from(HOSTS),
            "model": st.text(ODD, max_size=8) | st.sampled_from(MODELS),
            "key": st.text(ODD, max_size=6) | st.just("sk-demo"),
            "key_name": st.sampled_from(NAMES),
            "headers": st.dictionaries(st.text(ODD, max_size=8), st.text(ODD, max_size=8), max_size=2) | JSON,
            "dialect": st.sampled_from(["openai", "anthropic", "gemini", "x"]),
            "body": JSON,
        },
    )
)
@settings(derandomize=True, deadline=None, max_examples=150, database=None)
def test_whatever_is_asked_there_is_an_answer(members: dict[str, Any]) -> None:
    """A plan that is JSON, or what is wrong with the sample."""
    with suppress(SampleError):
        plan = explain(ASKED, Sample.of(members), 0.0)
        assert show.plan(json.loads(orjson.dumps(plan))).count("\n") > 1


def test_limits_that_apply_and_what_is_left_of_them() -> None:
    limits = [limit("requests", 3, 60.0, "key"), limit("tokens", 5000, "day", "group")]
    limits += [limit("requests", 9, 60.0, "ip"), limit("concurrency", 2, None, "header:x-who", shadow=True)]
    keys = {"demo": key("sk-demo", group="search")}
    models = {"gpt-4o": model("up", limits=[limit("tokens", 100, 60.0, "model")])}
    tenant = gateway(auth="keys", keys=keys, limits=limits, models=models)
    compiled = snapshot.compile(document({"up": upstream(target("http://127.0.0.1:1"))}, gateways={"main": tenant}), 1)
    sample = Sample(path="/v1/chat/completions", key_name="demo", body=b'{"model": "gpt-4o", "max_tokens": 40}')
    plan = explain(compiled, sample, 0.0)
    assert plan["outcome"] == "forwarded"
    takes = {entry["limit"]: (entry["whose"], entry["amount"], entry["takes"]) for entry in plan["limits"]}
    assert takes == {
        "requests/1m per key on gateway": ("the API key 'demo'", 3, 1),
        "requests/1m per ip on gateway": ("one address", 9, 1),
        "concurrency per header:x-who on gateway": ("one value of the header x-who", 2, 1),
        "tokens/day per group on gateway": ("the group 'search'", 5000, 49),
        "tokens/1m per model": ("the model 'gpt-4o'", 100, 49),
    }
    assert not any("left" in entry for entry in plan["limits"])
    cells = Cells.private()
    worker = Limits(Meters(cells, 0), lambda *_: None)
    moment = Moment(Limits(Meters(cells, SUPERVISOR), lambda *_: None), 5.0)
    plan = explain(compiled, sample, 0.0, moment=moment)
    assert [entry.get("left") for entry in plan["limits"]] == [3, None, 2, 5000, 100]
    admission = decide(compiled, sample, 0.0, Turn()).admission
    assert admission is not None
    asked = SimpleNamespace(admission=admission, more=b"", address="192.0.2.1")
    for _ in range(3):
        worker.admit(asked, 5.0)
    plan = explain(compiled, sample, 0.0, moment=moment)
    assert [entry.get("left") for entry in plan["limits"]] == [0, None, 0, 5000, 100]
    assert plan["outcome"] == "refused"
    assert plan["refusal"]["code"] == "rate_limit_exceeded"
    assert plan["refusal"]["message"].startswith("the API key 'demo' may make 3 requests in 1m0s, and has; try again")
    assert "requests/1m per key on gateway: the API key 'demo', 3, 0 left, takes 1" in show.plan(plan)
    assert "; counted only" in show.plan(plan)


def again(**fields: Any) -> dict[str, Any]:
    """A plan of a gateway whose model `m` has fallbacks."""
    upstreams = {
        "one": upstream(target("http://one.example", weight=fields.pop("weight", 1)), dialects=["openai", "anthropic"]),
        "two": upstream(target("http://two.example")),
        "idle": upstream(target("http://idle.example", weight=0)),
        "claude": upstream(target("http://claude.example"), provider="anthropic"),
    }
    models = {
        "m": model("one", fallback=["opus", "idle", "fast"], retry=fields.pop("retry", None)),
        "opus": model("claude"),
        "idle": model("idle"),
        "fast": model("two", "llama"),
    }
    compiled = snapshot.compile(document(upstreams, gateways={"default": gateway(models=models)}), 1)
    return explain(compiled, Sample.of({"path": "/v1/chat/completions", "model": "m"} | fields), 0.0)


def test_fallbacks_in_their_order() -> None:
    plan = again()
    assert plan["retry"] == {
        "attempts": 1,
        "when": ["connect", "first_byte", "429", "5xx"],
        "budget": "20%",
        "why": "what a model with fallbacks has where there is no retry",
    }
    assert [(other["entry"], other["model"], other["targets"], other["why"]) for other in plan["fallbacks"]] == [
        ("opus", "opus", ["a"], "no candidate: it does not speak openai's API"),
        ("idle", "idle", [], "no candidate: all of its targets have weight 0"),
        ("fast", "llama", ["a"], "tried when what came before has failed"),
    ]
    lines = show.plan(plan).splitlines()
    assert (
        "attempts    1 per upstream after connect, first_byte, 429, 5xx; retries up to 20% "
        "(what a model with fallbacks has where there is no retry)" in lines
    )
    assert "fallbacks     opus -> claude: no candidate: it does not speak openai's API" in lines
    assert "              fast -> two: tried when what came before has failed" in lines


def test_the_retry_that_holds() -> None:
    plan = again(retry={"attempts": 3, "when": ["429"], "budget": 0.5})
    assert plan["retry"] == {
        "attempts": 3,
        "when": ["429"],
        "budget": "50%",
        "why": "the model's retry, the most specific one",
    }


def test_a_bound_request_has_no_fallback() -> None:
    plan = again(path="/v1/responses", body={"model": "m", "previous_response_id": "resp_1"})
    whys = {other["why"] for other in plan["fallbacks"]}
    assert whys == {"no candidate: the request refers to what another provider keeps"}


def test_a_fallback_answers_where_nobody_else_could() -> None:
    plan = again(weight=0)
    assert (plan["outcome"], plan["head_to"]) == ("forwarded", "a")
    assert "host: two.example" in plan["head"]
    assert plan["patches"] == ["the model's name becomes 'llama'"]
    assert [other["chosen"] for other in plan["fallbacks"]] == [False, False, True]
    assert "            > fast -> two: tried when what came before has failed" in show.plan(plan).splitlines()
    plan = again(weight=0, retry={"attempts": 3, "when": ["429"], "budget": 0.5})
    assert plan["refusal"]["code"] == "no_target"


async def test_a_fallback_is_served_as_it_is_explained() -> None:
    async with stub() as up:
        upstreams = {"idle": upstream(target("http://127.0.0.1:1", weight=0)), "two": upstream(target(up.url))}
        models = {"m": model("idle", fallback=["fast"]), "fast": model("two", "llama")}
        config = document(upstreams, gateways={"default": gateway(models=models)})
        plan = explain(snapshot.compile(config, 1), Sample.of({"path": "/v1/chat/completions", "model": "m"}), 0.0)
        async with running(config) as run:
            answer = await run.ask(post("/v1/chat/completions", b'{"model": "m"}'))
            assert answer.headers["x-aigw-upstream"] == "two"
            assert plan["head"][0] == up.last.line.decode()
            assert json.loads(up.last.body)["model"] == "llama"


# balance, health, splits ----------------------------------------------------------------------------------------------


class Now:
    """The workers' moment, as a test says it."""

    def __init__(self, loads: dict[str, int] | None = None, out: dict[str, Standing] | None = None) -> None:
        self.loads = loads or {}
        self.out = out or {}

    def in_flight(self, target: upstreams.Target) -> int:
        return self.loads.get(target.name, 0)

    def cursor(self, upstream: upstreams.Upstream) -> int:
        return 0

    def draw(self) -> float:
        return 0.0

    def out_until(self, target: upstreams.Target) -> float:
        return self.standing(target).until

    def standing(self, target: upstreams.Target) -> Standing:
        return self.out.get(target.name, IN_SERVICE)


def planned(balance: str, now: Now | None = None, sample: dict[str, Any] | None = None, **fields: Any) -> Any:
    """The plan, and which targets are marked as chosen with why."""
    up = upstream(*(target("http://127.0.0.1:1", name) for name in "abc"), balance=balance, **fields)
    main = gateway(auth="keys", keys={"demo": key("sk-demo")})
    compiled = snapshot.compile(document({"up": up}, gateways={"main": main}), 1)
    asked = {"path": "/v1/chat/completions", "model": "m", "key_name": "demo"} | (sample or {})
    plan = explain(compiled, Sample.of(asked), 0.0, now)
    return plan, {entry["target"]: (entry["chosen"], entry["why"]) for entry in plan.get("candidates", [])}


def test_who_is_out_is_no_candidate_and_it_says_why() -> None:
    now = Now(out={"a": Standing("ejected", 50.0, "connect_failed"), "b": Standing("down", inf, "")})
    plan, why = planned("round_robin", now)
    assert plan["head_to"] == "c"
    assert why == {
        "a": (False, "ejected: connect_failed"),
        "b": (False, "down"),
        "c": (True, "1 of 3 turns are its own"),
    }
    now.out["c"] = Standing("resting", 60.0, "it answered 429")
    plan, why = planned("round_robin", now)
    assert why["a"] == (True, "ejected: connect_failed; the others are out for longer")
    now.out = dict.fromkeys("abc", Standing("down", inf, "it answered 500"))
    plan, why = planned("least_connections", now)
    assert plan["refusal"]["code"] == "no_target"
    assert why["c"] == (False, "down: it answered 500")


def test_who_is_full_is_no_candidate_and_it_says_why() -> None:
    targets = [
        target("http://127.0.0.1:1", "a", limits=[limit("tokens", 100, 3600.0, "target")]),
        target("http://127.0.0.1:2", "b", limits=[limit("concurrency", 1, None, "target")]),
        target("http://127.0.0.1:3", "c"),
    ]
    config = document({"up": upstream(*targets), "other": upstream(target("http://127.0.0.1:4", "d"))})
    config["gateways"]["default"]["models"] = {"m": model("up", fallback=["n"]), "n": model("other")}
    config["upstreams"]["other"]["limits"] = [limit("requests", 1, "day", "upstream")]
    compiled = snapshot.compile(config, 1)
    cells = Cells.private()
    worker = Attempts(Meters(cells, 0), lambda *_: None)
    candidates = [*compiled.gateways["default"].find_model("m").candidates]
    candidates += compiled.gateways["default"].find_model("n").candidates
    now = monotonic()

    def asked(max_tokens: int) -> tuple[dict[str, Any], dict[str, tuple[bool, str]]]:
        body = b'{"model": "m", "max_tokens": %d}' % max_tokens
        present = Present(cells, config, Meters(cells, SUPERVISOR))
        plan = explain(compiled, Sample(path="/v1/chat/completions", body=body), 0.0, present)
        return plan, {entry["target"]: (entry["chosen"], entry["why"]) for entry in plan["candidates"]}

    _, why = asked(80)
    assert {name: chosen for name, (chosen, _) in why.items()} == {"a": False, "b": False, "c": False}  # all have room
    worker.take(candidates[1], Estimate(0, 0), "default", now)
    plan, why = asked(93)
    assert plan["head_to"] == "c"
    assert why == {
        "a": (False, "no candidate: tokens/1h per target (at most 100) is less than this request may use"),
        "b": (False, "no candidate: concurrency per target (at most 1) is used up; there is room in 1s"),
        "c": (True, "1 of 3 turns are its own"),
    }
    config["upstreams"]["up"]["targets"][2]["weight"] = 0
    compiled = snapshot.compile(config, 2)
    plan, why = asked(93)
    assert (plan["outcome"], plan["head_to"]) == ("forwarded", "d")
    worker.take(candidates[3], Estimate(0, 0), "default", now)
    plan, why = asked(93)
    assert plan["refusal"]["code"] == "no_capacity"
    assert plan["fallbacks"][0]["why"] == "no candidate: the limits of its targets are used up"


def test_the_least_busy_is_chosen_where_there_is_one() -> None:
    _, why = planned("least_connections", Now({"a": 3, "b": 1, "c": 2}))
    assert why["b"] == (True, "1 in flight; the fewest exchanges in flight for its weight get the next")
    assert not why["c"][0]
    _, why = planned("least_connections", Now({"a": 3, "b": 1, "c": 1}))
    assert [chosen for chosen, _ in why.values()] == [False] * 3  # equals take turns
    _, why = planned("random", Now({"a": 3}))
    assert why["a"] == (
        False,
        "3 in flight; its chance to be one of two drawn is 1 of 3; the one with less in flight is asked",
    )


def test_what_is_hashed_goes_the_same_way_everywhere() -> None:
    _, first = planned("hash", hash_on="key")
    (home,) = [name for name, (chosen, _) in first.items() if chosen]
    assert first[home][1] == "here: a hash of the key decides, while its target has not too much in flight"
    sessions = {"headers": {"x-session-id": "1"}}
    _, why = planned("hash", Now(), sessions, hash_on="header:x-session-id")
    (home,) = [name for name, (chosen, _) in why.items() if chosen]
    assert why[home][1].startswith("0 in flight; here: a hash of the header:x-session-id decides")
    _, why = planned("hash", Now({home: 50}), sessions, hash_on="header:x-session-id")
    assert not why[home][0]  # it has too much
    _, why = planned("hash", Now(), hash_on="ip")
    assert [chosen for chosen, _ in why.values()] == [False] * 3  # nobody knows from where


def test_bound_requests_are_explained_as_such() -> None:
    up = upstream(*(target("http://127.0.0.1:1", name, api_key=f"sk-{name}") for name in "abc"))
    main = gateway(rule(default="up"), auth="keys", keys={"demo": key("sk-demo")})
    compiled = snapshot.compile(document({"up": up}, gateways={"main": main}), 1)
    plan = explain(compiled, Sample.of({"path": "/v1/files/f", "method": "GET", "key_name": "demo"}), 0.0)
    (chosen,) = [entry for entry in plan["candidates"] if entry["chosen"]]
    assert chosen["why"] == "here: the provider keeps what it is about, so a hash of the key decides"
    assert chosen["target"] == plan["head_to"]


async def test_a_split_is_explained_as_it_is_served() -> None:
    models = {
        "one": model("up", "real-1"),
        "two": model("up", "real-2"),
        "canary": model("", split={"one": 3, "two": 1}),
    }
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways={"main": gateway(models=models)})
        compiled = snapshot.compile(config, 1)
        asked = {"path": "/v1/chat/completions", "model": "canary"}
        plan = explain(compiled, Sample.of(asked), 0.0)
        assert plan["model"] == {"asked": "canary", "entry": "canary", "upstream": "up", "why": "its exact name"}
        assert plan["split"] == [
            {
                "model": "real-1",
                "upstream": "up",
                "chosen": False,
                "why": "3 of 4 requests; shown since it has the most",
            },
            {"model": "real-2", "upstream": "up", "chosen": False, "why": "1 of 4 requests"},
        ]
        assert "split         real-1 -> up: 3 of 4 requests" in show.plan(plan)
        used = set()
        async with running(config) as run:
            for number in range(12):
                sample = Sample.of(asked | {"headers": {"x-request-id": f"id-{number}"}})
                plan = explain(compiled, sample, 0.0)
                (chosen,) = [entry for entry in plan["split"] if entry["chosen"]]
                assert chosen["why"].endswith(", drawn by the request's id")
                head, body = message(sample)
                for _ in range(2):  # an id that comes again goes the same way
                    answer = await run.ask(head + b"\r\n\r\n" + body)
                    assert answer.headers["x-aigw-model"] == chosen["model"]
                    assert json.loads(up.last.body)["model"] == chosen["model"]
                used.add(chosen["model"])
            assert used == {"real-1", "real-2"}
            assert (run.records[0]["model"], run.records[0]["model_used"][:5]) == ("canary", "real-")
            other = await run.ask(post("/v1/messages", b'{"model": "canary"}', b"anthropic-version: 2023-06-01"))
            assert other.headers["x-aigw-error"] == "dialect_mismatch"
