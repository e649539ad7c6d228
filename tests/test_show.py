"""The lines that `aigw explain` prints: of a request that goes on, of one that is refused, of one that is answered."""

from __future__ import annotations

from typing import Any

from counted import compile
from fakes import document, gateway, key, model, rule, target, upstream

from aigw import show
from aigw.config import snapshot
from aigw.explain import explain
from aigw.sample import Sample


def said(**members: Any) -> str:
    up = upstream(target("http://up.example/v1", weight=3), target("http://127.0.0.1:2", "spare"), api_key="sk-secret")
    keys = {"demo": key("sk-demo", models=["gpt-4o", "fast"], group="search"), "all": key("sk-all")}
    models = {"gpt-4o": model("up"), "fast": model("one", "llama"), "c-*": model("one")}
    rules = [rule("api", "/v1/*"), rule("ping", "/ping", methods=["GET"], upstream="one", public=True)]
    main = gateway(*rules, auth="keys", keys=keys, models=models)
    one = upstream(target("http://one.example"))
    config = document({"up": up, "one": one}, gateways={"main": main})
    return show.plan(explain(snapshot.compile(config, 1), Sample.of(members), 0.0))


def test_what_goes_on() -> None:
    assert (
        said(path="/v1/chat/completions?key=sk-x", model="gpt-4o", key_name="demo")
        == """\
request     POST /v1/chat/completions?key=*** (host localhost)
gateway     main: its hosts have *: any host
rule        api: the longest prefix that takes the path is /v1/*; any method; by model
dialect     openai, inference; model in: body
key         demo of search, may use fast, gpt-4o
model       gpt-4o is gpt-4o (its exact name) -> up
targets       a      as gpt-4o: 3 of 4 turns are its own
              spare  as gpt-4o: 1 of 4 turns are its own
limits      none
changes     none: the body goes on byte for byte
to a        POST /v1/chat/completions HTTP/1.1
            host: up.example
            authorization: ***
            content-type: application/json
            x-request-id: (a new one)
            content-length: 18
"""
    )


def test_what_goes_on_elsewhere() -> None:
    """With another name, and without any."""
    lines = said(path="/v1/chat/completions", model="c-3", key_name="all").splitlines()
    assert "key         all, may use any model" in lines
    assert "model       c-3 is c-* (the longest glob that fits) -> one" in lines
    assert "targets     > a  as c-3: the only target" in lines
    lines = said(path="/v1/chat/completions", model="fast", key_name="all").splitlines()
    assert "changes     the model's name becomes 'llama'" in lines
    lines = said(path="/ping", method="GET").splitlines()
    assert "key         none: the rule asks for none (public: true)" in lines
    assert "model       none -> one (the rule names the upstream)" in lines


def test_what_does_not_go_on() -> None:
    assert said(path="/v1/chat/completions", model="c-3", key_name="demo").splitlines()[-2:] == [
        "model       c-3",
        "refused     403 model_not_allowed: the API key 'demo' may not use the model 'c-3'; "
        "GET /v1/models lists what it may",
    ]
    assert said(path="/v1/models", method="GET", key_name="demo").splitlines()[-1] == (
        "answered    the gateway answers what the key may use of its models"
    )
    assert said(path="/nowhere", method="GET").splitlines()[1:] == [
        "refused     404 no_rule: No rule of the gateway takes this path; see `rules` in its config."
    ]


def test_a_terminal_gets_no_control_bytes() -> None:
    """A model's name is any text: here one that would colour a terminal and write a line of its own."""
    plan = explain(
        compile(), Sample.of({"path": "/v1/chat/completions", "model": "\x1b[31m\nrefused", "key": "sk-demo"}), 0.0
    )
    text = show.plan(plan)
    assert "model       ?[31m?refused\n" in text
    assert "\x1b" not in text


def test_usage_of_all_together_and_of_nobody() -> None:
    tokens = {"input": 1200, "output": 30, "cached": 1000, "cache_write": 0, "reasoning": 0, "audio": 0}
    item = {"requests": 1234567, "errors": 2, "tokens": tokens, "cost": 1234.5, "unpriced": 0}
    assert (
        show.usage({"per": None, "by": [], "items": [item]})
        == """\
 requests  errors  input  output  cached           cost
1,234,567       2  1,200      30   1,000  $1,234.500000
"""
    )
    assert (
        show.usage({"per": "day", "by": ["model"], "items": []})
        == """\
time   model  requests  errors  input  output       cost
total                0       0      0       0  $0.000000
"""
    )
    odd = show.usage({"per": None, "by": ["model"], "items": [item | {"model": "a\x1b[2Jb"}]})
    assert "\x1b" not in odd
