"""`aigw explain --config`: what a file would do with a request, before anybody serves it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aigw import cli

CONFIG = """
upstreams:
  openai: {provider: openai, api_key: sk-canary}
gateways:
  default:
    keys: {demo: {sha256: "%s", models: ["gpt-4o"]}}
    models: {"*": openai}
""" % ("0" * 64)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "new.yaml"
    path.write_text(CONFIG)
    return str(path)


def test_it_says_what_would_be_done(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "--config", config, "--model", "gpt-4o", "--key-name", "demo", "--header", "x-a: 1"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "model       gpt-4o is * (the longest glob that fits) -> openai\n" in out
    assert "            x-a: 1\n" in out
    assert "            authorization: ***\n" in out
    assert "canary" not in out
    assert cli.main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["outcome"], plan["key"]["name"], plan["head_to"]) == ("forwarded", "demo", "api.openai.com:443")


def test_a_refusal_is_an_answer_too(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--config", config, "--model", "fast", "--key-name", "demo"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("refused     403 model_not_allowed: the API key 'demo' ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--key-name", "bob"], "aigw explain: key_name: the gateway 'default' has no key 'bob'; there are: demo\n"),
        (["--header", "host: a"], "aigw explain: headers.host: give it as `host`\n"),
    ],
)
def test_what_is_no_request(config: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--config", config, *words]) == 1
    assert capsys.readouterr() == ("", message)


def test_what_is_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("upstreams: {a: {provider: openay}}\n")
    assert cli.main(["explain", "--config", str(bad)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert " upstreams.a.provider: must be openai, " in err
