"""What is said and how: log lines that never block and never repeat a secret, exits in words, descriptors in order."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aigw import process, shared

CANARY = "sk-canary-5eb3"


def python(code: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], timeout=20, capture_output=True, text=True, **options)  # type: ignore[call-overload]


def test_a_log_line_has_time_and_pid_and_no_control_bytes(capfd: pytest.CaptureFixture[str]) -> None:
    process.log("one\nline\x1b[31m\x00 ünd\ud800")
    _, err = capfd.readouterr()
    stamp, who, text = err.split(" ", 2)
    assert len(stamp) == len("2026-01-01T00:00:00Z")
    assert who == f"aigw[{os.getpid()}]"
    assert text == "one?line?[31m? ünd?\n"


def test_a_log_line_is_lost_rather_than_waited_for() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    while True:
        try:
            os.write(write, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(write, True)
    done = subprocess.run(
        [sys.executable, "-c", "from aigw.process import log; log('lost'); print('went on')"],
        stdout=subprocess.PIPE,
        stderr=write,
        timeout=20,
    )
    assert done.stdout == b"went on\n"
    os.close(read)
    os.close(write)


def test_nobody_reading_stderr_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "from aigw.process import log, say; log('lost'); say(['lost']); print('went on')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, timeout=20)
    assert done.stdout == b"went on\n"
    os.close(write)


def test_exits_in_words() -> None:
    assert process.describe_exit(3) == "ended with status 3"
    assert process.describe_exit(-9) == "was killed by SIGKILL"
    assert process.describe_exit(-60) == "was killed by signal 60"


def raised(error: BaseException) -> BaseException:
    def deep() -> None:
        raise error

    try:
        deep()
    except BaseException as caught:
        return caught
    raise AssertionError


def test_an_exception_is_described_without_its_text() -> None:
    text = process.describe_error(raised(ValueError(f"bad header {CANARY}")))
    assert text.startswith("ValueError at ")
    first, second = text.removeprefix("ValueError at ").split(" < ")
    assert first.endswith(" deep")
    assert "tests/test_process.py:" in first
    assert second.endswith(" raised")
    assert CANARY not in text
    assert process.describe_error(KeyError(CANARY)) == "KeyError"
    assert process.describe_error(ConnectionResetError(104, "Connection reset by peer")) == (
        "ConnectionResetError (Connection reset by peer)"
    )


def test_faults_of_the_loop_are_one_line_each_and_one_a_second() -> None:
    lines: list[str] = []
    now = [100.0]
    faults = process.Faults(lines.append, lambda: now[0])
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(faults)

    def fail(secret: str) -> None:
        raise KeyError(secret)

    async def run() -> None:
        for _ in range(3):
            loop.call_soon(fail, CANARY)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(run())
    assert len(lines) == 1
    assert lines[0].startswith("unexpected: KeyError at ")
    now[0] += 1.5
    loop.run_until_complete(run())
    assert lines[1] == f"{lines[0]} (2 more before it)"
    loop.call_exception_handler({"message": "a transport was lost"})
    assert lines[2:] == ["unexpected: a transport was lost"]
    assert CANARY not in "".join(lines)
    loop.close()


def test_faults_remember_a_bounded_number_of_places() -> None:
    lines: list[str] = []
    faults = process.Faults(lines.append, lambda: 1.0)
    for number in range(3 * process.Faults.MOST_PLACES):
        faults(None, {"message": f"place {number}"})
    assert len(lines) == 3 * process.Faults.MOST_PLACES
    assert len(faults._last) <= process.Faults.MOST_PLACES


def test_more_descriptors_are_allowed_up_to_the_hard_limit() -> None:
    code = (
        "import resource; from aigw.process import prepare; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256)); "
        "prepare(); print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert python(code).stdout == "(256, 256)\n"


def test_closed_standard_descriptors_are_taken(tmp_path: Path) -> None:
    code = (
        "import os, socket; from aigw.process import prepare; os.close(0); os.close(1); os.close(2); prepare(); "
        f"open({str(tmp_path / 'answer')!r}, 'w').write(str(socket.socket().fileno() > 2))"
    )
    python(code)
    assert (tmp_path / "answer").read_text() == "True"


def test_children_ignore_what_belongs_to_the_supervisor_from_the_first_moment() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    cells = shared.Cells(rows=1)
    worker = process.start_worker(cells.descriptor, 0)
    try:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
        for number in process.SIGNALS:
            os.kill(worker.process.pid, number)
        assert not os.get_inheritable(worker.control.fileno())
    finally:
        worker.control.close()  # the supervisor is gone: it has nothing to finish
        assert worker.process.wait(20) == 0
        worker.records.close()
        cells.close()


def test_a_module_in_the_current_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "socket.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    child = process._start(["json.tool", "--help"], stdout=subprocess.PIPE)
    output, _ = child.communicate(timeout=20)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text("raise SystemExit(99)")
    child = process._start(["json.tool", "--help"], stdout=subprocess.PIPE)
    assert child.communicate(timeout=20)[0] == output
    assert child.returncode == 0


def test_a_worker_that_cannot_be_started_leaves_nothing_open() -> None:
    code = """
import os, sys
from aigw import process

sys.executable = "/nothing"
before = os.listdir("/proc/self/fd")
try:
    process.start_worker(0, 0)
except FileNotFoundError:
    print(os.listdir("/proc/self/fd") == before)
"""
    assert python(code).stdout == "True\n"


def test_systemd_is_told_where_it_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    process.notify("READY=1")  # to nobody
    for name in (str(tmp_path / "notify"), f"@aigw-test-{os.getpid()}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name.replace("@", "\0"))
            monkeypatch.setenv("NOTIFY_SOCKET", name)
            process.notify("RELOADING=1", "MONOTONIC_USEC=5")
            assert manager.recv(100) == b"RELOADING=1\nMONOTONIC_USEC=5"
    process.notify("READY=1")  # to one that is gone
