"""`aigw serve` as people run it: real processes, real signals, real sockets."""

import contextlib
import http.client
import json
import os
import re
import resource
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aigw import process, shared, supervisor
from aigw.process import WorkerProcess
from aigw.source import Options

PATIENCE = 20.0  # seconds that a test waits for what must happen
BODY = json.dumps({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]})
CHAT = "/v1/chat/completions"
CONFIG = """\
listen: 127.0.0.1:0
access_log: {access_log}
drain: {{timeout: {timeout}}}
upstreams: {{mock: {{provider: mock}}}}
gateways: {{default: {{auth: none, models: {{"*": mock}}}}}}
"""


class Serve:
    """A running `aigw serve`. Its stderr is read line by line, its stdout (the access log) at the end."""

    def __init__(self, folder: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self._rest = b""
        clean = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_BASE_URL"))}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aigw", "serve", "--admin-listen", "127.0.0.1:0", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**clean, "TMPDIR": str(folder), **(environ or {})},
        )

    def until(self, pattern: str) -> re.Match[str]:
        """Reads stderr up to a line that holds `pattern`."""
        assert self.process.stderr is not None
        fd = self.process.stderr.fileno()
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                self.lines.append(line.decode())
                found = re.search(pattern, self.lines[-1])
                if found:
                    return found
            ready, _, _ = select.select([fd], [], [], deadline - time.monotonic())
            data = os.read(fd, 65536) if ready else b""
            if not data:
                raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))
            self._rest += data

    def ready(self) -> "Serve":
        self.port = int(self.until(r"listens +http://127\.0\.0\.1:(\d+)")[1])
        self.until(r"-d '\{|curl .*readyz$")  # the end of the screen
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Waits for the end; everything that was said is in `lines` and `records` then."""
        out, err = self.process.communicate(timeout=PATIENCE)
        self.lines += (self._rest + err).decode().splitlines()
        self._rest = b""
        self.out = out.decode()
        return self.process.returncode

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.end()

    @property
    def records(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def workers(self) -> list[int]:
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in text.split() if b"aigw.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def chat(self, path: str = CHAT) -> int:
        with contextlib.closing(self.connect()) as connection:
            return chat(connection, path)

    def refuses(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return True
        return False

    def begin(self) -> http.client.HTTPConnection:
        """An exchange whose request body is not complete: it runs until `finish`."""
        connection = self.connect()
        connection.putrequest("POST", CHAT)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(BODY)))
        connection.endheaders(BODY[:10].encode())
        return connection

    def __enter__(self) -> "Serve":
        return self

    def __exit__(self, *_: object) -> None:
        workers = []
        if self.process.poll() is None:
            workers = self.workers
            self.process.kill()
            self.process.wait()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


def chat(connection: http.client.HTTPConnection, path: str = CHAT) -> int:
    connection.request("POST", path, BODY, {"content-type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


def finish(connection: http.client.HTTPConnection) -> int:
    connection.send(BODY[10:].encode())
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def wait_for_exit(pid: int) -> None:
    """For a process that is not our child."""
    fd = os.pidfd_open(pid)
    ready, _, _ = select.select([fd], [], [], PATIENCE)
    os.close(fd)
    assert ready, f"process {pid} still runs"


@pytest.fixture
def folder(short_path: Path) -> Path:
    """Where the command is run: with a config.yaml that serves the mock on any free port."""
    (short_path / "config.yaml").write_text(CONFIG.format(access_log="stdout", timeout="20s"))
    return short_path


@pytest.fixture
def serve(folder: Path) -> Iterator[Serve]:
    with Serve(folder) as running:
        yield running.ready()


# --- start


def test_the_command_on_the_screen_works(serve: Serve) -> None:
    screen = "\n".join(serve.lines)
    assert re.search(r"^aigw \S+ \(\w+\) ready in \d\.\d\d s, config\.yaml$", screen, re.MULTILINE)
    assert re.search(r"^  upstreams +mock +mock, answers by itself$", screen, re.MULTILINE)
    command = shlex.split(screen[screen.index("curl") :].replace("\\\n", " "))
    headers = dict(command[at + 1].split(": ") for at, word in enumerate(command) if word == "-H")
    body = command[command.index("-d") + 1]
    with contextlib.closing(serve.connect()) as connection:
        connection.request("POST", command[1].partition(f":{serve.port}")[2], body, headers)
        response = connection.getresponse()
        answer = json.loads(response.read())
    assert response.status == 200
    assert answer["choices"][0]["message"]["content"]
    assert serve.stop() == 0
    assert [record["status"] for record in serve.records] == [200]


def test_without_a_config_the_built_in_one_is_served(tmp_path: Path) -> None:
    with Serve(tmp_path, "--listen", "127.0.0.1:0", "--listen", "[::1]:0") as serve:
        assert serve.ready().chat() == 200
        assert "built-in config (no config.yaml here)" in serve.lines[0]
        assert re.search(r"http://\[::1\]:\d+$", "\n".join(serve.lines), re.MULTILINE)
        assert serve.stop() == 0


def test_the_built_in_config_is_served_on_loopback_only(tmp_path: Path) -> None:
    with Serve(tmp_path, "--listen", "0.0.0.0:0") as serve:
        assert serve.end() == 1
        assert serve.lines == [
            "error: --listen 0.0.0.0:0: the built-in config asks for no key, so it listens on loopback only; "
            "write a config.yaml with keys (aigw key NAME) to serve others"
        ]


def test_a_flag_that_opens_a_gateway_without_keys_is_warned_of(folder: Path) -> None:
    with Serve(folder, "--listen", "0.0.0.0:0") as serve:
        serve.until("warning: --listen 0.0.0.0:0: the gateway 'default' asks for no key")
        serve.until("listens")
        assert serve.stop() == 0


def test_every_error_of_the_config_is_shown(folder: Path) -> None:
    (folder / "bad.yaml").write_text("bad: 1\nworse: 2\n")
    with Serve(folder, "--config", "bad.yaml") as serve:
        assert serve.end() == 1
        assert len(serve.lines) >= 2
        assert all(line.startswith("error: ") for line in serve.lines)
        assert any("bad.yaml:1:1 bad: " in line for line in serve.lines)
        assert any("bad.yaml:2:1 worse: " in line for line in serve.lines)
        assert serve.out == ""


def test_a_port_in_use_is_an_error(folder: Path, serve: Serve) -> None:
    address = f"127.0.0.1:{serve.port}"
    with Serve(folder, "--listen", address) as second:
        assert second.end() == 1
        assert second.lines == [
            f"error: {address}: the port is in use by another process (ss -ltnp 'sport = :{serve.port}' shows it); "
            "stop that one, or choose another address with --listen or listen:"
        ]
    assert serve.chat() == 200


def test_an_access_log_that_cannot_be_opened_is_an_error(folder: Path) -> None:
    path = folder / "nowhere" / "access.log"
    (folder / "config.yaml").write_text(CONFIG.format(access_log=path, timeout="1s"))
    with Serve(folder) as serve:
        assert serve.end() == 1
        assert serve.lines == [
            f"error: access_log: cannot open {path}: No such file or directory; it must be a writable file"
        ]


def run_with(config: list[str], worker: list[str]) -> int:
    """A supervisor with other processes than it would have started."""
    near, far = socket.socketpair()
    records, records_far = socket.socketpair()
    started = WorkerProcess(subprocess.Popen(worker), near, records)
    far.close()
    records_far.close()
    cells = shared.Cells(rows=1)
    config_child = subprocess.Popen(config, stdout=subprocess.PIPE)
    try:
        return supervisor.run(Options("config.yaml", admin_listen="127.0.0.1:0"), cells, config_child, started)
    finally:
        cells.close()
        assert config_child.stdout is not None
        config_child.stdout.close()


def test_a_signal_while_starting_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    """The config child sends it when more than a pipe holds was read of it: the supervisor is there."""
    child = ["sh", "-c", "head -c 1000000 /dev/zero; kill -TERM $PPID; exec sleep 100"]
    assert run_with(child, ["sleep", "100"]) == 0
    _, err = capfd.readouterr()
    assert "SIGTERM: finishing what runs" in err


def test_a_config_child_that_dies_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_with(["false"], ["true"]) == 1
    _, err = capfd.readouterr()
    assert err == "error: the config was not read: the process that reads it ended with status 1\n"


def test_a_worker_that_dies_before_it_serves_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = [sys.executable, "-m", "aigw.config.store", str(folder / "config.yaml")]
    assert run_with(config, ["false"]) == 1
    _, err = capfd.readouterr()
    assert err == "error: the worker did not start: ended with status 1\n"


# --- access log


def test_a_clean_end_loses_no_record(serve: Serve) -> None:
    with contextlib.closing(serve.connect()) as connection:
        assert {chat(connection) for _ in range(300)} == {200}
    assert serve.stop() == 0
    assert len(serve.records) == 300
    assert {record["path"] for record in serve.records} == {CHAT}


def test_the_access_log_file_is_opened_again_on_sigusr1(folder: Path) -> None:
    path = folder / "access.log"
    (folder / "config.yaml").write_text(CONFIG.format(access_log=path, timeout="20s"))
    with Serve(folder) as serve:
        serve.ready().chat()
        path.rename(folder / "access.log.1")
        serve.signal(signal.SIGUSR1)
        serve.chat()
        assert serve.stop() == 0
        assert serve.out == ""
    logs = [(folder / name).read_text().splitlines() for name in ("access.log.1", "access.log")]
    assert sum(map(len, logs)) == 2
    assert logs[1]


def test_a_stuck_stdout_stalls_nobody(serve: Serve) -> None:
    """More records than the pipe and the bounded queue hold, and nobody reads them."""
    with contextlib.closing(serve.connect()) as connection:
        for number in range(900):
            assert chat(connection, f"/v1/{number}/{'x' * 12_000}") < 500
    serve.until("records? lost: stdout does not take them fast enough")
    assert serve.chat() == 200
    assert serve.process.stdout is not None
    serve.process.stdout.close()
    serve.signal(signal.SIGTERM)
    assert serve.process.wait(PATIENCE) == 0


# --- the worker


def test_a_killed_worker_is_replaced_behind_the_same_port(serve: Serve) -> None:
    (first,) = serve.workers
    os.kill(first, signal.SIGKILL)
    assert serve.chat() == 200  # waits in the accept queue meanwhile
    serve.until(rf"worker {first} was killed by SIGKILL; the next one starts now")
    second = int(serve.until(r"worker (\d+) serves")[1])
    assert serve.workers == [second]
    assert serve.stop() == 0


def test_workers_that_keep_dying_are_replaced_more_slowly(serve: Serve) -> None:
    (pid,) = serve.workers
    for when in ("now", r"in 0\.2 s", r"in 0\.4 s"):
        os.kill(pid, signal.SIGKILL)
        serve.until(rf"worker {pid} was killed by SIGKILL; the next one starts {when}")
        pid = int(serve.until(r"worker (\d+) serves")[1])
    os.kill(pid, signal.SIGKILL)
    serve.until(r"the next one starts in 0\.8 s")
    assert serve.stop() == 0  # while there is none


def test_a_worker_that_cannot_be_started_is_tried_again(serve: Serve) -> None:
    (pid,) = serve.workers
    limits = resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
    os.kill(pid, signal.SIGKILL)
    serve.until("no worker can be started: Too many open files; the next try is in 0.2 s")
    resource.prlimit(serve.process.pid, resource.RLIMIT_NOFILE, limits)
    serve.until(r"worker \d+ serves")
    assert serve.chat() == 200
    assert serve.stop() == 0


def test_a_worker_that_does_not_serve_is_replaced_too(serve: Serve) -> None:
    (pid,) = serve.workers
    (mock,) = serve.folder.glob("aigw-*/*")
    mock.parent.rename(serve.folder / "aside")
    os.kill(pid, signal.SIGKILL)
    serve.until(r"worker \d+ does not serve: FileNotFoundError \(No such file or directory\) at ")
    (serve.folder / "aside").rename(mock.parent)
    serve.until(r"worker \d+ serves")
    assert serve.chat() == 200
    assert serve.stop() == 0


def test_a_worker_holds_neither_yaml_nor_pydantic(serve: Serve) -> None:
    for pid in [serve.process.pid, *serve.workers]:
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "orjson" in maps
        assert "pydantic" not in maps
        assert "yaml" not in maps


def test_a_worker_may_open_as_many_descriptors_as_are_allowed(folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = Serve(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with running as serve:
        limits = Path(f"/proc/{serve.ready().workers[0]}/limits").read_text()
        found = re.search(r"Max open files +(\d+)", limits)
        assert found
        assert int(found[1]) == min(hard, process.MAX_DESCRIPTORS)
        assert serve.stop() == 0


def test_no_secret_is_on_a_command_line_or_said(folder: Path) -> None:
    canary = "sk-canary-91a7c2"
    text = CONFIG.format(access_log="stdout", timeout="20s").replace(
        "{provider: mock}}", f"{{provider: mock}}, spare: {{provider: openai, api_key: {canary}}}}}"
    )
    (folder / "config.yaml").write_text(text)
    with Serve(folder) as serve:
        serve.ready().chat()
        for pid in [serve.process.pid, *serve.workers]:
            assert canary.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert canary.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert serve.stop() == 0
        assert canary not in "\n".join([*serve.lines, serve.out])


# --- the end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_exchange_is_finished(serve: Serve, number: int) -> None:
    running = serve.begin()
    assert serve.chat() == 200
    serve.signal(number)
    serve.until(f"{signal.Signals(number).name}: finishing what runs; once more to end now")
    assert finish(running) == 200
    assert serve.end() == 0
    assert serve.refuses()
    assert [record["status"] for record in serve.records] == [200, 200]
    assert not list(serve.folder.glob("aigw-*/"))


def test_new_clients_are_refused_while_draining(serve: Serve) -> None:
    running = serve.begin()
    serve.chat()
    idle = serve.connect()
    chat(idle)
    serve.signal(signal.SIGTERM)
    assert idle.sock.recv(1) == b""  # closed, not reset
    assert serve.refuses()
    assert finish(running) == 200
    assert serve.end() == 0
    idle.close()


def test_signals_to_the_whole_group_leave_the_drain_to_the_supervisor(serve: Serve) -> None:
    running = serve.begin()
    serve.chat()
    for pid in [*serve.workers, serve.process.pid]:
        os.kill(pid, signal.SIGINT)
    serve.until("SIGINT: finishing")
    assert finish(running) == 200
    assert serve.end() == 0


def test_what_does_not_end_in_time_is_cut_and_said(folder: Path) -> None:
    (folder / "config.yaml").write_text(CONFIG.format(access_log="stdout", timeout="0.1s"))
    with Serve(folder) as serve:
        running = serve.ready().begin()
        serve.chat()
        assert serve.stop() == 1
        assert "1 exchange had to be cut; drain.timeout decides how long they get" in serve.lines[-1]
        running.close()


def test_a_second_signal_ends_at_once(serve: Serve) -> None:
    running = serve.begin()
    serve.chat()
    serve.signal(signal.SIGTERM)
    serve.until("finishing what runs")
    serve.signal(signal.SIGTERM)
    assert serve.end() == 1
    assert "1 exchange had to be cut" in serve.lines[-1]
    running.close()


def test_a_worker_that_dies_while_draining_is_not_a_clean_end(serve: Serve) -> None:
    running, idle = serve.begin(), serve.connect()
    chat(idle)
    (pid,) = serve.workers
    serve.signal(signal.SIGTERM)
    assert idle.sock.recv(1) == b""  # the worker drains; before that, another one would take its place
    idle.close()
    os.kill(pid, signal.SIGKILL)
    assert serve.end() == 1
    assert f"worker {pid} was killed by SIGKILL before it had finished what ran" in serve.lines[-1]
    running.close()


def test_a_worker_that_does_not_end_is_killed(folder: Path) -> None:
    (folder / "config.yaml").write_text(CONFIG.format(access_log="stdout", timeout="0.1s"))
    with Serve(folder) as serve:
        (pid,) = serve.ready().workers
        os.kill(pid, signal.SIGSTOP)
        serve.signal(signal.SIGTERM)
        serve.until("finishing what runs")
        serve.signal(signal.SIGTERM)
        serve.until(f"worker {pid} does not end by itself; it is killed")
        assert serve.end() == 1


def test_sighup_is_answered_and_ends_nothing(serve: Serve) -> None:
    serve.signal(signal.SIGHUP)
    serve.until("SIGHUP: the config has not changed; generation 1 serves")
    assert serve.chat() == 200
    assert serve.stop() == 0


def test_closing_the_terminal_ends_it(folder: Path) -> None:
    near, far = os.openpty()
    # the leader of a session without terminal that opens one gets it as its own
    command = f"exec {shlex.quote(sys.executable)} -m aigw serve <{os.ttyname(far)}"
    with subprocess.Popen(
        ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, start_new_session=True
    ) as running:
        os.close(far)
        assert running.stderr is not None
        while b"curl" not in running.stderr.readline():
            assert running.poll() is None
        os.close(near)
        _, err = running.communicate(timeout=PATIENCE)
    assert b"SIGHUP: finishing what runs" in err
    assert running.returncode == 0


def test_a_worker_whose_supervisor_died_finishes_and_ends(serve: Serve) -> None:
    running = serve.begin()
    serve.chat()
    (pid,) = serve.workers
    (mock,) = serve.folder.glob("aigw-*/*")
    assert mock.stat().st_mode & 0o777 == 0o600
    assert mock.parent.stat().st_mode & 0o777 == 0o700
    serve.signal(signal.SIGKILL)
    serve.until("the supervisor is gone; finishing what runs, then ending")
    assert finish(running) == 200
    wait_for_exit(pid)
    assert serve.refuses()
    assert not mock.parent.exists()
