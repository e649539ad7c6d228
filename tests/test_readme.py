"""What the README says is true: its commands, its configuration, its snippets."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from processes import PATIENCE, Serve, clean_environment, environment

from aigw import cli
from aigw.admin.api import ROUTES
from aigw.config import store
from aigw.mock import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = [(found[1], found[2]) for found in re.finditer(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
ADDRESS = "127.0.0.1:8081"
ADMIN = "127.0.0.1:8080"


def blocks(language: str, mark: str = "") -> list[str]:
    found = [text for name, text in BLOCKS if name == language and re.search(mark, text)]
    assert found, f"no {language} with {mark!r}"
    return found


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """The config.yaml as it comes, served."""
    with Serve(tmp_path_factory.mktemp("readme"), (ROOT / "config.yaml").read_text()) as serve:
        yield serve
        assert serve.stop() == 0


def test_it_serves_where_the_readme_says(tmp_path: Path) -> None:
    document = store.load(ROOT / "config.yaml", {}).document
    assert document["listen"] == [{"address": ADDRESS}]
    assert store.builtin({}).document["listen"] == [{"address": ADDRESS}]
    assert store.builtin({}).admin["listen"] == {"address": ADMIN}


def curled(serve: Serve, command: str) -> str:
    """What a curl of the README gets, from `serve` where it says an address."""
    admin = int(serve.err.find(r"admin API +http://127\.0\.0\.1:(\d+)")[1])
    command = command.replace(ADDRESS, f"127.0.0.1:{serve.port}").replace(ADMIN, f"127.0.0.1:{admin}")
    words = shlex.split(command.replace("\\\n", " "))
    if shutil.which("curl"):
        done = subprocess.run(
            [*words, "-s"], env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return done.stdout
    url = urlsplit(next(word for word in words if word.startswith("http://")))
    headers = dict(words[at + 1].split(": ") for at, word in enumerate(words) if word == "-H")
    connection = http.client.HTTPConnection(url.netloc, timeout=PATIENCE)
    connection.request("POST", url.path, words[words.index("-d") + 1], headers)
    with connection.getresponse() as response:
        answer = response.read().decode()
    connection.close()
    return answer


@pytest.mark.parametrize("command", blocks("sh", f"curl.*{ADDRESS}"))
def test_each_curl_gets_an_answer(serve: Serve, command: str) -> None:
    answer = curled(serve, command)
    if '"stream": true' in command:
        assert answer.startswith("data: {")
        assert answer.endswith("data: [DONE]\n\n")
    else:
        assert json.loads(answer)["choices"][0]["message"]["content"]


def test_the_admin_api_makes_a_key(serve: Serve) -> None:
    [command] = blocks("sh", f"curl.*{ADMIN}")
    made = json.loads(curled(serve, command))
    assert made["name"] == "alice"
    assert made["key"].startswith("sk-aigw-")
    assert made["sha256"] in (serve.folder / "config.yaml").read_text()


def test_every_path_of_the_admin_api_exists() -> None:
    section = README[README.index("## The admin API") :].partition("\n## ")[0]
    steps = {step for pattern, _ in ROUTES for step in pattern}
    prose = re.sub("^```.*?^```", "", section, flags=re.MULTILINE | re.DOTALL)
    named = {word.strip("/") for word in re.findall(r"`(/?[a-z]+|/api/v1)`", prose)} - {"admin"}
    assert {"keys", "exchanges", "metrics"} <= named
    assert named - {"api/v1"} <= steps


@pytest.mark.parametrize("text", blocks("yaml"))
def test_each_config_is_good(tmp_path: Path, text: str) -> None:
    (tmp_path / "anthropic").write_text("sk-ant-x\n")
    digest = hashlib.sha256(b"x").hexdigest()
    text = text.replace("/run/secrets/anthropic", str(tmp_path / "anthropic")).replace('"..."', f'"{digest}"')
    document = store.parse(text, name="README.md", base=tmp_path, environ={"OPENAI_API_KEY": "sk-x"}).document
    assert document["gateways"]["default"]["keys"]["demo"]["models"] == ["gpt-4o", "claude-*"]


@pytest.mark.parametrize("snippet", blocks("python"))
def test_each_client_gets_an_answer(serve: Serve, snippet: str) -> None:
    """The README makes the client; what is asked then is the SDK's own affair."""
    names: dict[str, Any] = {}
    ask: Any = {"model": "any-model", "messages": [{"role": "user", "content": "Hi"}]}
    with clean_environment(), ExitStack() as stack:
        exec(snippet.replace(ADDRESS, f"127.0.0.1:{serve.port}"), names)
        client = stack.enter_context(names["client"])
        if "OpenAI" in names:
            said = client.chat.completions.create(**ask).choices[0].message.content
        elif "Anthropic" in names:
            said = client.messages.create(**ask, max_tokens=100).content[0].text
        else:
            said = client.models.generate_content(model="any-model", contents="Hi").text
    assert said.startswith("The mock provider")


def test_every_command_exists() -> None:
    named = set(re.findall(r"(?:`|bin/)aigw ([a-z]+)", README))
    assert named
    assert named <= set(cli.COMMANDS)


def test_every_file_exists() -> None:
    named = re.findall(
        r"(?<![\w/])((?:\.ci|aigw|benchmarks|tests)/[\w./-]*|[\w-]+\.(?:yaml|md)|LICENSE)(?![\w/:])", README
    )
    missing = {name for name in named if not (ROOT / name.rstrip(".")).exists()}
    assert missing == set()


def test_every_header_of_an_answer_is_there(serve: Serve) -> None:
    named = re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)))
    assert "x-request-id" in named
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    said: set[str] = set()
    for path in ("/v1/chat/completions", "/nowhere"):
        connection.request("POST", path, '{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}')
        with connection.getresponse() as response:
            response.read()
        said |= {name.lower() for name in response.headers}
    connection.close()
    assert set(named) <= said


def test_every_word_of_the_mock_is_one() -> None:
    section = README[README.index("## A provider that fails on purpose") :].partition("\n## ")[0]
    words = re.search(r"it fails on purpose:\s(.*?) and more", section, re.DOTALL)
    assert words is not None
    for word in re.findall(r"`([^`]+)`", words[1]):
        assert Settings.parse(word).fail == (word,)
