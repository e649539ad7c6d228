"""`aigw status`, `reload` and `explain`, asked of a running gateway that the config tells them where to find."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE, Serve

from aigw import cli

pytestmark = pytest.mark.unmeasured

KEY = "sk-aigw-demo"
TOKEN = "sk-token-0123456789abcdef"
CONFIG = f"""\
admin: {{listen: "unix:FOLDER/admin.sock", token: "${{TOKEN}}"}}
upstreams:
  mock: {{provider: mock}}
  two: {{provider: openai, api_key: sk-hidden-0123456789abcdef, targets: [{{url: "http://a:1"}}, {{url: "http://b:1"}}]}}
gateways:
  default:
    models: {{gpt-4o: mock, o1: two}}
    keys: {{demo: {{sha256: "{hashlib.sha256(KEY.encode()).hexdigest()}"}}}}
"""

Done = tuple[int, str, str]
Aigw = Callable[..., Done]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    folder = tmp_path_factory.mktemp("commands")
    with Serve(folder, CONFIG.replace("FOLDER", str(folder)), {"TOKEN": TOKEN}) as serve:
        yield serve
        assert serve.stop() == 0


@pytest.fixture
def aigw(serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Aigw]:
    """A command in the folder of the config: its status, and what it prints."""
    monkeypatch.chdir(serve.folder)
    monkeypatch.setenv("TOKEN", TOKEN)
    told = ""

    def run(*words: str) -> Done:
        nonlocal told
        status = cli.main(words)
        out, err = capsys.readouterr()
        told += out + err
        return status, out, err

    yield run
    assert TOKEN not in told
    assert "sk-hidden" not in told


def asked(serve: Serve, model: str) -> str:
    """The request id of a chat completion that went through the gateway, once it is among the recent ones."""
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    connection.request("POST", "/v1/chat/completions", json.dumps({"model": model, "messages": []}), headers)
    with connection.getresponse() as response:
        response.read()
    connection.close()
    request_id = response.headers["x-request-id"]
    serve.record(request_id)
    return str(request_id)


SAMPLES: list[list[str]] = [
    ["--model", "gpt-4o", "--key-name", "demo"],
    ["--model", "o1", "--key-name", "demo", "--header", "user-agent: curl"],
    ["--model", "nothing", "--key-name", "demo"],
    ["--model", "gpt-4o"],
    ["--method", "GET", "--path", "/v1/models", "--key-name", "demo"],
    ["--path", "/nowhere/at/all?key=sk-x", "--host", "gw.example"],
    ["--dialect", "anthropic", "--path", "/v1/messages", "--model", "gpt-4o", "--key-name", "demo"],
    ["--body", '{"model": 5}', "--key-name", "demo"],
]


@pytest.mark.parametrize("words", SAMPLES)
def test_the_running_gateway_and_its_file_explain_alike(aigw: Aigw, words: list[str]) -> None:
    running, file = (aigw("explain", *words, *more, "--json") for more in ((), ("--config", "config.yaml")))
    assert running[::2] == file[::2] == (0, "")
    plans: list[dict[str, Any]] = [json.loads(out) for _, out, _ in (running, file)]
    assert [plan.pop("generation") for plan in plans] == [1, 0]
    assert plans[0] == plans[1]
    assert aigw("explain", *words)[1].startswith("request     ")


def test_a_recent_exchange_is_explained(serve: Serve, aigw: Aigw) -> None:
    request_id = asked(serve, "gpt-4o")
    status, out, _ = aigw("explain", "--like", request_id)
    assert status == 0
    assert "key         demo, may use any model\n" in out
    assert "model       gpt-4o is gpt-4o (its exact name) -> mock\n" in out
    plan = json.loads(aigw("explain", "--like", request_id, "--model", "o1", "--json")[1])
    assert (plan["key"]["name"], plan["model"]["upstream"]) == ("demo", "two")
    assert [candidate["target"] for candidate in plan["candidates"]] == ["a:1", "b:1"]


def test_what_cannot_be_explained(aigw: Aigw) -> None:
    said = "no exchange with this request_id is among the last 1000\n"
    assert aigw("explain", "--like", "nobody") == (1, "", said)
    said = "path: must be a text that is not empty and has no blank\n"
    assert aigw("explain", "--path", "/a b") == (1, "", said)
    assert aigw("explain", "--path", "/a b", "--config", "config.yaml") == (1, "", f"aigw explain: {said}")
    said = "key_name: the gateway 'default' has no key 'nobody'; there are: demo\n"
    assert aigw("explain", "--key-name", "nobody") == (1, "", said)


@pytest.mark.parametrize("words", [["--like", "x"], ["--admin", "unix:admin.sock"]])
def test_a_file_or_the_running_gateway(aigw: Aigw, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        aigw("explain", "--config", "config.yaml", *words)
    assert "aigw explain: --config asks a file; leave it away to ask the running gateway" in capsys.readouterr().err


def test_status_and_reload(serve: Serve, aigw: Aigw) -> None:
    status, out, _ = aigw("status")
    assert status == 0
    lines = out.splitlines()
    assert lines[1:3] == [
        f"config      {serve.folder / 'config.yaml'}, generation 1",
        f"listens     127.0.0.1:{serve.port}",
    ]
    assert lines[3] == f"admin API   unix:{serve.folder / 'admin.sock'}"
    assert re.fullmatch(r"  pid \d+: generation 1, \d+ clients, 0 in flight", lines[5].removeprefix(" " * 12))
    assert aigw("reload") == (0, "generation 1 serves\n", "")


def test_the_token_comes_from_the_environment(
    serve: Serve, aigw: Aigw, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where no config says it, and in spite of one that does."""
    place = f"unix:{serve.folder / 'admin.sock'}"
    monkeypatch.setenv("AIGW_ADMIN_TOKEN", "sk-wrong")
    assert aigw("reload") == (1, "", "wrong token; it is the config's admin.token\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIGW_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("AIGW_ADMIN_URL", place)
    assert aigw("reload") == (0, "generation 1 serves\n", "")
    assert json.loads(aigw("status", "--json")[1])["admin"] == [place]


def test_a_config_error_is_in_the_status(serve: Serve, aigw: Aigw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIGW_ADMIN_URL", f"unix:{serve.folder / 'admin.sock'}")
    monkeypatch.setenv("AIGW_ADMIN_TOKEN", TOKEN)
    file = Path("config.yaml")
    before = file.read_text()
    file.write_text(before + "zzz: 1\n")
    status, out, err = aigw("reload")
    assert (status, out) == (1, "")
    assert err.startswith(said := f"{serve.folder / 'config.yaml'}:9:1 zzz: unknown key")
    assert f"\n  error     {said}" in aigw("status")[1]
    monkeypatch.delenv("AIGW_ADMIN_URL")  # the file itself says it as well, wrong as it is
    assert f"\n  error     {said}" in aigw("status")[1]
    for wrong in ("admin: {listen: 1}\n", "admin: {token: ${NOT_THERE}}\n", "admin: {\n"):
        file.write_text(before.partition("admin:")[0] + wrong)
        assert aigw("status")[2].endswith("\nthe config does not say where the admin API is: --admin does\n")
    file.write_text(before)
    assert aigw("reload") == (0, "generation 1 serves\n", "")
    assert "error" not in aigw("status")[1]


def test_what_is_no_admin_api(serve: Serve, aigw: Aigw) -> None:
    assert aigw("status", "--admin", "ftp://x")[::2] == (
        1,
        "ftp://x is no address of an admin API; write http://127.0.0.1:8080 or unix:/path\n",
    )
    said = aigw("status", "--admin", f"127.0.0.1:{serve.port}")[2]
    assert said == f"what answers at 127.0.0.1:{serve.port} is no admin API of aigw (status 401)\n"
