"""The start screen, and above all its command: for every config one that this config answers."""

import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from cpu import assert_linear

from aigw import screen

Document = dict[str, Any]


def upstream(provider: str, *urls: str, dialects: list[str] | None = None, api_key: str | None = "sk-x") -> Document:
    own = {"mock": ["openai", "anthropic", "gemini"], "http": [], "azure": ["openai"]}.get(provider, [provider])
    return {
        "provider": provider,
        "dialects": own if dialects is None else dialects,
        "api_key": api_key,
        "targets": [{"url": url} for url in urls],
    }


def model(upstream: str, real: str | None = None, listed: list[str] | None = None) -> Document:
    return {"upstream": upstream, "model": real, "list": listed}


def rule(path: str = "/*", **keys: Any) -> Document:
    return {"path": path, "methods": None, "upstream": None, "strip_path": False, "public": False, **keys}


def gateway(models: Document | None = None, rules: list[Document] | None = None, **keys: Any) -> Document:
    return {
        "hosts": ["*"],
        "auth": "none",
        "keys": {},
        "models": {"*": model("mock")} if models is None else models,
        "rules": [rule()] if rules is None else rules,
        **keys,
    }


def document(upstreams: Document | None = None, **gateways: Document) -> Document:
    return {"upstreams": upstreams or {"mock": upstream("mock", api_key=None)}, "gateways": gateways}


class Command:
    """The command as a shell would run it."""

    def __init__(self, document: Document, address: str = "http://127.0.0.1:8081") -> None:
        self.text = screen.curl(document, address)
        words = shlex.split(self.text.replace("\\\n", ""))
        assert words[0] == "curl"
        self.url = next(word for word in words if "://" in word)
        self.options = words[1 : words.index(self.url)]
        self.headers = [words[at + 1] for at, word in enumerate(words) if word == "-H"]
        self.body = json.loads(words[words.index("-d") + 1]) if "-d" in words else None


def test_the_whole_screen() -> None:
    config = document(
        {"openai": upstream("openai", "https://api.openai.com/v1"), "mock": upstream("mock", api_key=None)},
        default=gateway(
            {"gpt-4o": model("openai"), "fast": model("openai", "gpt-4o-mini"), "*": model("mock")},
            [rule("/v1/*"), rule("/ping", upstream="mock")],
            auth="keys",
            keys={"alice": {}, "bob": {}},
        ),
        other=gateway({}, hosts=["a.example", "*.b.example"], auth="keys", keys={"carol": {}}),
    )
    text = screen.render(
        config,
        ["http://127.0.0.1:8081", "http://[::1]:8081"],
        ["http://127.0.0.1:8080", "unix:/run/admin.sock"],
        version="1.2",
        source="config.yaml",
        seconds=0.314,
        colour=False,
    )
    assert (
        text
        == """\
aigw 1.2 ready in 0.31 s, config.yaml

  listens    http://127.0.0.1:8081
             http://[::1]:8081
  admin API  http://127.0.0.1:8080/api/v1
             unix:/run/admin.sock
  gateway    default (any host; 2 keys)
    models   gpt-4o -> openai
             fast   -> openai as gpt-4o-mini
             *      -> mock
    rules    /v1/* -> by model
             /ping -> mock
  gateway    other (a.example, *.b.example; 1 key)
  upstreams  openai  openai https://api.openai.com/v1
             mock    mock, answers by itself

  try        curl http://127.0.0.1:8081/v1/chat/completions \\
               -H "authorization: Bearer $AIGW_KEY" \\
               -H "content-type: application/json" \\
               -d '{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'
"""
    )


def test_long_lists_are_counted() -> None:
    urls = [f"http://10.0.0.{number}/v1" for number in range(20)]
    config = document(
        {"many": upstream("openai", *urls)}, default=gateway({f"m{number}": model("many") for number in range(30)})
    )
    text = screen.render(config, ["127.0.0.1:1"], version="1", source="x", seconds=1, colour=False)
    assert "m6  -> many" in text
    assert "m7 " not in text
    assert "             and 23 more\n" in text
    assert "http://10.0.0.6/v1, and 13 more" in text


def test_colour_only_where_asked_for() -> None:
    config = document(default=gateway())
    plain, coloured = (
        screen.render(config, ["127.0.0.1:1"], version="1", source="x", seconds=1, colour=colour)
        for colour in (False, True)
    )
    assert "\033" not in plain
    assert "\033[1m" in coloured
    assert coloured.replace("\033[0m", "").replace("\033[1m", "").replace("\033[2m", "") == plain


def test_any_model_in_openai_s_dialect() -> None:
    command = Command(document(default=gateway()))
    assert command.url == "http://127.0.0.1:8081/v1/chat/completions"
    assert command.headers == ["content-type: application/json"]
    assert command.body == {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        ({"*": model("mock"), "exact": model("mock")}, "exact"),
        ({"gpt-*": model("mock")}, "gpt-4o-mini"),
        ({"openai/*": model("mock", "*")}, "openai/gpt-4o-mini"),
        ({"x-*": model("mock", None, ["x-*", "x-1"])}, "x-1"),
        ({"it's $x": model("mock")}, "it's $x"),
    ],
)
def test_a_model_that_the_config_has(models: Document, asked: str) -> None:
    body = Command(document(default=gateway(models))).body
    assert body is not None
    assert body["model"] == asked


def test_anthropic_s_dialect() -> None:
    command = Command(document({"a": upstream("anthropic", "https://x")}, default=gateway({"*": model("a")})))
    assert command.url == "http://127.0.0.1:8081/v1/messages"
    assert "anthropic-version: 2023-06-01" in command.headers
    assert command.body == {
        "model": "claude-haiku-4-5",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 100,
    }


def test_gemini_s_dialect() -> None:
    command = Command(document({"g": upstream("gemini", "https://x")}, default=gateway({"g/{*}": model("g")})))
    assert command.url == "http://127.0.0.1:8081/v1beta/models/g%2F%7Bgemini-2.5-flash%7D:generateContent"
    assert command.body == {"contents": [{"parts": [{"text": "Hello"}]}]}


def test_credentials_that_are_asked_for() -> None:
    own = {"mine": upstream("anthropic", "https://x", api_key="client")}
    with_key = Command(document(own, default=gateway({"m": model("mine")}, auth="keys")))
    assert with_key.headers[:2] == ["x-api-key: $ANTHROPIC_API_KEY", "x-aigw-key: $AIGW_KEY"]
    without = Command(document(own, default=gateway({"m": model("mine")})))
    assert without.headers[0] == "x-api-key: $ANTHROPIC_API_KEY"
    assert not any("aigw" in header for header in without.headers)
    public = Command(document(default=gateway(rules=[rule(public=True)], auth="keys")))
    assert public.headers == ["content-type: application/json"]


@pytest.mark.parametrize(
    ("hosts", "header"), [(["a.example", "*"], None), (["*.b.example"], "host: gateway.b.example")]
)
def test_the_gateway_s_host(hosts: list[str], header: str | None) -> None:
    headers = Command(document(default=gateway(hosts=hosts))).headers
    assert [one for one in headers if one.startswith("host")] == ([header] if header else [])


@pytest.mark.parametrize(
    ("rules", "path"),
    [
        ([rule("/openai/*", strip_path=True)], "/openai/v1/chat/completions"),
        ([rule("/ping", upstream="mock"), rule("/v1/chat/completions")], "/v1/chat/completions"),
        # the more specific rule takes OpenAI's path away, Anthropic's is left
        ([rule("/v1/*"), rule("/v1/chat/*", upstream="mock")], "/v1/messages"),
        ([rule("/v1/*", methods=["GET"]), rule("/v1beta/*", methods=["POST"])], "/v1beta/models/"),
    ],
)
def test_a_path_that_a_rule_takes(rules: list[Document], path: str) -> None:
    assert Command(document(default=gateway(rules=rules))).url.startswith(f"http://127.0.0.1:8081{path}")


def test_without_models_a_rule_s_path() -> None:
    rules = [rule("/up", upstream="x", methods=["POST"]), rule("/files/*", upstream="x")]
    command = Command(document({"x": upstream("http", "http://x")}, default=gateway({}, rules, auth="keys")))
    assert command.url == "http://127.0.0.1:8081/files/"
    assert command.headers == ["authorization: Bearer $AIGW_KEY"]
    assert command.body is None


def test_without_anything_the_readiness() -> None:
    config = document(default=gateway({}, []), other=gateway({}, [rule("/up", methods=["POST"], upstream="mock")]))
    assert Command(config).url == "http://127.0.0.1:8081/readyz"


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("http://0.0.0.0:80", "http://127.0.0.1:80/"),
        ("http://[::]:80", "http://[::1]:80/"),
        ("http://10.0.0.1:80", "http://10.0.0.1:80/"),
    ],
)
def test_an_address_that_can_be_reached(address: str, base: str) -> None:
    assert Command(document(default=gateway()), address).url.startswith(base)


def test_thousands_of_models_and_rules_are_no_matter_of_seconds() -> None:
    """None of the models can be asked for: every rule takes another path. 20 s where each is tried with each."""

    def prepare(size: int) -> Callable[[], None]:
        models = {f"m{number}": model("mock") for number in range(size)}
        config = document(default=gateway(models, [rule(f"/{number}", methods=["PUT"]) for number in range(size)]))

        def work() -> None:
            assert Command(config).url == "http://127.0.0.1:8081/readyz"

        return work

    assert_linear(prepare, 5000)
