"""The command line as people type it: what it answers, what it says about mistakes, and how it ends."""

import fcntl
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from aigw import __version__, cli, process

PATIENCE = 30.0
COMMANDS = ["serve", "check", "status", "usage", "reload", "mock", "key", "explain", "schema", "dashboard"]


def run(*words: str, folder: Path | None = None, **options: object) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
    return subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-m", "aigw", *words],
        cwd=folder,
        env=clean,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def fails(*words: str, folder: Path | None = None) -> str:
    """What is said about a wrong command line."""
    done = run(*words, folder=folder)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"aigw {__version__} ({process.build()})\n")


def test_the_installed_command_is_the_same() -> None:
    command = Path(sys.executable).with_name("aigw")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == f"aigw {__version__} ({process.build()})\n"


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(re.search(rf"^  {command} ", done.stdout, re.MULTILINE) for command in COMMANDS)
    assert sorted(cli.COMMANDS) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches_by_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"\nexamples:\n  aigw {command}" in done.stdout


def test_without_a_command_the_help_is_an_error() -> None:
    assert "commands:" in fails()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serv"], "aigw: unknown command 'serv'; did you mean serve?\ntry: aigw --help\n"),
        (
            ["dance"],
            "aigw: unknown command 'dance'; "
            "there are: serve, check, status, usage, reload, mock, key, explain, schema, dashboard\ntry: aigw --help\n",
        ),
        (["--versoin"], "aigw: unknown argument '--versoin'; did you mean --version?\ntry: aigw --help\n"),
        (
            ["serve", "--confg=x"],
            "aigw serve: unknown argument '--confg=x'; did you mean --config?\ntry: aigw serve --help\n",
        ),
        (["serve", "--config"], "aigw serve: argument --config: expected one argument\ntry: aigw serve --help\n"),
        (
            ["serve", "--workers", "0"],
            "aigw serve: --workers 0: must be a number from 1 to 1024, or auto: one per core\ntry: aigw serve --help\n",
        ),
        (
            ["serve", "--listen", "8081"],
            "aigw serve: --listen 8081: not an address; write host:port, such as 127.0.0.1:8081, or [::1]:8081\n"
            "try: aigw serve --help\n",
        ),
        (
            ["key", "a b"],
            "aigw key: 'a b' cannot name a key; use 1 to 64 letters, digits and . _ @ -, such as alice\n"
            "try: aigw key --help\n",
        ),
        (
            ["mock"],
            "aigw mock: the following arguments are required: --listen\ntry: aigw mock --help\n",
        ),
    ],
)
def test_mistakes_are_told_with_what_is_right(words: list[str], message: str) -> None:
    assert fails(*words) == message


def test_the_mock_s_words_are_checked() -> None:
    assert "frobnicate" in fails("mock", "--listen", "127.0.0.1:0", "--fail", "frobnicate")
    assert "latency" in fails("mock", "--listen", "127.0.0.1:0", "--latency", "soon")
    assert fails("mock", "--listen", "nonsense").startswith("aigw mock: --listen")


# --- aigw key


def test_a_key_and_the_line_to_paste() -> None:
    done = run("key", "alice")
    assert done.returncode == 0
    assert done.stderr == ""
    key, line = done.stdout.splitlines()
    assert re.fullmatch(r"sk-aigw-[A-Za-z0-9_-]{43}", key)
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert line == f'alice: {{sha256: "{digest}"}}'
    assert run("key", "alice").stdout.splitlines()[0] != key


@pytest.mark.parametrize("name", ["12", "on", "-x", "a@b", "3.5", "~"])
def test_a_name_that_yaml_reads_otherwise_is_quoted(name: str) -> None:
    if name == "~":
        assert "cannot name a key" in fails("key", name)
        return
    line = run("key", "--", name).stdout.splitlines()[1]
    assert line.startswith(f'"{name}": ')


def test_on_a_terminal_the_key_is_explained() -> None:
    near, far = os.openpty()
    done = run("key", "alice", stdout=far)
    os.close(far)
    assert os.read(near, 1000).startswith(b"sk-aigw-")
    os.close(near)
    assert "shown once" in done.stderr
    assert "gateways.NAME.keys" in done.stderr


def test_a_pasted_key_line_is_a_good_config(tmp_path: Path) -> None:
    line = run("key", "on").stdout.splitlines()[1]
    (tmp_path / "config.yaml").write_text(
        "upstreams: {mock: {provider: mock}}\n"
        "gateways:\n  default:\n    models: {'*': mock}\n    keys:\n"
        f"      {line}\n"
    )
    done = run("check", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 key," in done.stdout


# --- aigw check


def test_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "listen: 127.0.0.1:9000\nadmin: {listen: 127.0.0.1:8080}\nupstreams: {mock: {provider: mock}}\n"
        "gateways: {default: {auth: none, models: {'*': mock, x: mock}}}\n"
    )
    for words in (["check"], ["check", "config.yaml"]):
        done = run(*words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == (
            "config.yaml is good: 1 gateway, 2 models, 1 rule, 0 keys, 1 upstream; listens on 127.0.0.1:9000\n"
        )
        assert done.stderr == ""


def test_a_bad_file_with_every_error(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("lisen: x\nupstreams: {mock: {provder: mock}}\ngateways: {}\n")
    done = run("check", "bad.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) >= 2
    assert any("lisen" in line and ":1:" in line for line in lines)
    assert any("provder" in line and ":2:" in line for line in lines)


def test_no_file_and_a_missing_file(tmp_path: Path) -> None:
    done = run("check", folder=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("built-in config is good: ")
    done = run("check", "nowhere.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert "nowhere.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_dangling_config_yaml_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("nowhere")
    assert run("check", folder=tmp_path).returncode == 1


# --- aigw schema


def test_the_schema_is_json() -> None:
    done = run("schema")
    assert done.returncode == 0
    assert "gateways" in json.loads(done.stdout)["properties"]


def test_a_reader_that_goes_away_is_no_fuss() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run("schema", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_said_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = run("schema", stdout=full)
    assert done.returncode == 1
    assert done.stderr == "aigw: [Errno 28] No space left on device\n"


# --- aigw mock


def test_the_mock_answers_until_a_signal() -> None:
    words = [sys.executable, "-m", "aigw", "mock", "--listen", "127.0.0.1:0", "--tokens", "3", "--fail", "status=418"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as mock:
        assert mock.stderr is not None
        assert select.select([mock.stderr], [], [], PATIENCE)[0]
        found = re.search(r"the mock listens on (\S+)", mock.stderr.readline())
        assert found
        request = urllib.request.Request(
            f"http://{found[1]}/v1/chat/completions", b'{"model": "x", "messages": []}', {"x-mock": "tokens=2"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=PATIENCE)
        assert caught.value.code == 418
        caught.value.close()
        done = run("mock", "--listen", found[1])
        assert done.returncode == 1
        assert "in use" in done.stderr
        assert "Traceback" not in done.stderr
        mock.send_signal(signal.SIGTERM)
        assert mock.wait(PATIENCE) == 0


def test_ctrl_c_is_no_fuss() -> None:
    """While `aigw schema` writes to a pipe that nobody empties."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    # Who runs in a shell's background is started with SIGINT ignored, and would hand that on.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen([sys.executable, "-m", "aigw", "schema"], stdout=write, stderr=subprocess.PIPE) as schema:
        signal.signal(signal.SIGINT, before)
        os.close(write)
        assert select.select([read], [], [], PATIENCE)[0]
        schema.send_signal(signal.SIGINT)
        _, err = schema.communicate(timeout=PATIENCE)
    os.close(read)
    assert (schema.returncode, err) == (130, b"")
