"""Records from a worker's `Sender` through the socket and the `Writer` into files and pipes: whole lines, or none."""

import asyncio
import json
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from aigw import logfile, records
from aigw.records import Sender, Writer


class Reports:
    """Collects what would be logged; `wait` waits for the next report."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


def line(number: int, size: int = 40) -> bytes:
    text = json.dumps({"n": number, "pad": ""})
    return json.dumps({"n": number, "pad": "x" * (size - len(text) - 1)}).encode() + b"\n"


def numbers(data: bytes) -> list[int]:
    """Every line must be a whole record."""
    assert not data or data.endswith(b"\n")
    return [json.loads(one)["n"] for one in data.splitlines()]


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    far.setblocking(False)
    return near, far


def drain(sock: socket.socket) -> bytes:
    """What can be read now."""
    data = b""
    while True:
        try:
            more = sock.recv(1 << 20)
        except BlockingIOError:
            return data
        if not more:
            return data
        data += more


async def until(condition: Callable[[], bool]) -> None:
    """Lets the loop (and threads) run until the condition holds."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  (what happens in a thread or a file sets no event)
            await asyncio.sleep(0.001)


# --- the worker's end


def test_records_are_gathered_and_sent_by_flush() -> None:
    near, far = pair()
    sender = Sender(near, Reports())
    sender.flush()
    sender.add(line(1))
    sender.add(line(2))
    assert drain(far) == b""
    sender.flush()
    assert drain(far) == line(1) + line(2)
    sender.flush()
    assert drain(far) == b""
    sender.close()
    far.close()


def test_a_full_batch_is_sent_without_waiting() -> None:
    near, far = pair()
    sender = Sender(near, Reports())
    per_batch = records.BATCH_BYTES // 100
    for number in range(per_batch + 1):
        sender.add(line(number, 100))
    assert len(numbers(drain(far))) >= per_batch
    sender.close()
    far.close()


async def test_the_loop_flushes_by_itself() -> None:
    near, far = pair()
    sender = Sender(near, Reports())
    sender.start(asyncio.get_running_loop())
    for number in (1, 2):  # twice: the timer goes on
        sender.add(line(number))
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(far, 1000), 10)
        assert numbers(data) == [number]
    sender.close()
    assert far.recv(1) == b""
    far.close()


def test_a_reader_that_stops_costs_whole_records_and_nothing_else() -> None:
    near, far = pair()
    reports = Reports()
    sender = Sender(near, reports)
    total = 3 * records.SENDER_BYTES // 1000
    for number in range(total):
        sender.add(line(number, 1000))
    assert 0 < sender.dropped < total
    assert reports.lines == ["access log: 1 record lost: the supervisor did not take them in time"]
    got = b""
    while more := drain(far):
        got += more
        sender.flush()
    assert numbers(got) == list(range(total - sender.dropped))  # the first ones, none of them split
    sender.add(line(-1))
    sender.close()
    assert numbers(drain(far)) == [-1]
    assert reports.lines[1:] == [
        f"access log: {sender.dropped - 1} records lost: the supervisor did not take them in time"
    ]
    far.close()


def test_close_waits_for_the_reader_but_not_for_ever() -> None:
    near, far = pair()
    reports = Reports()
    sender = Sender(near, reports)
    for number in range(900):
        sender.add(line(number, 1000))
    sender.close(patience=0.01)
    assert sender.dropped > 0
    assert "did not take them in time" in reports.lines[0]
    far.close()


@pytest.mark.parametrize("how", ["flush", "close"])
def test_without_a_supervisor_records_are_counted_as_lost(how: str) -> None:
    near, far = pair()
    far.close()
    reports = Reports()
    sender = Sender(near, reports)
    sender.add(line(1))
    sender.add(line(2))
    getattr(sender, how)()
    assert sender.dropped == 2
    assert reports.lines == ["access log: 2 records lost: the supervisor is gone"]
    if how == "flush":
        sender.add(line(3))
        assert sender.dropped == 3
        sender.close()


# --- the supervisor's end


async def test_records_reach_the_file_whole_however_they_were_cut(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(line(0))
    reports = Reports()
    writer = Writer(asyncio.get_running_loop(), str(path), reports)
    ends = []
    for first in (1, 101):
        near, far = socket.socketpair()
        writer.attach(far)
        ends.append((near, b"".join(line(number) for number in range(first, first + 100))))
    for at in range(0, 4000, 37):  # two workers in turns, no piece ends where a record does
        for near, data in ends:
            near.sendall(data[at : at + 37])
            await asyncio.sleep(0)
    for near, _ in ends:
        near.close()
    await writer.close()
    assert sorted(numbers(path.read_bytes())) == list(range(201))
    assert writer.dropped == 0
    assert reports.lines == []


async def test_a_worker_that_dies_in_the_middle_of_a_record_loses_that_one(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    reports = Reports()
    writer = Writer(asyncio.get_running_loop(), str(path), reports)
    near, far = socket.socketpair()
    writer.attach(far)
    near.sendall(line(1) + line(2)[:10])
    near.close()
    await writer.close()
    assert numbers(path.read_bytes()) == [1]
    assert path.stat().st_mode & 0o007 == 0  # nobody else reads who called
    assert reports.lines == ["access log: 1 record lost: a worker ended in the middle of one"]


async def test_a_reset_channel_is_an_ended_one(tmp_path: Path) -> None:
    writer = Writer(asyncio.get_running_loop(), str(tmp_path / "access.log"), Reports())
    near, far = socket.socketpair()
    far.sendall(b"unread: so that closing resets")
    writer.attach(far)
    near.close()
    await writer.close()
    assert writer.dropped == 0


async def test_off_reads_and_forgets() -> None:
    writer = Writer(asyncio.get_running_loop(), "off", Reports())
    near, far = socket.socketpair()
    near.setblocking(False)
    writer.attach(far)
    writer.reopen()
    for number in range(100):
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(near, line(number, 10_000)), 10)
    near.close()
    await writer.close()
    assert writer.dropped == 0


async def test_close_gives_up_on_a_worker_that_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    writer = Writer(asyncio.get_running_loop(), str(path), Reports())
    near, far = socket.socketpair()
    writer.attach(far)
    near.sendall(line(1))
    await writer.close(patience=0.2)
    assert numbers(path.read_bytes()) == [1]
    near.close()


def test_a_file_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    with pytest.raises(FileNotFoundError):
        Writer(loop, str(tmp_path / "nowhere" / "access.log"), Reports())
    loop.close()


async def test_the_file_is_opened_again_when_asked_and_when_it_was_moved(tmp_path: Path) -> None:
    path, first, second = (tmp_path / name for name in ("access.log", "access.log.1", "access.log.2"))
    writer = Writer(asyncio.get_running_loop(), str(path), Reports())
    near, far = socket.socketpair()
    writer.attach(far)
    near.sendall(line(1))
    await until(lambda: path.stat().st_size > 0)

    path.rename(first)
    writer.reopen()
    await until(path.exists)
    near.sendall(line(2))
    await until(lambda: path.stat().st_size > 0)

    path.rename(second)  # without a word: the next record finds out
    near.sendall(line(3))
    await until(path.exists)
    near.close()
    await writer.close()
    assert [numbers(file.read_bytes()) for file in (first, second, path)] == [[1], [2], [3]]


async def test_a_file_that_cannot_be_opened_again_is_used_on(tmp_path: Path) -> None:
    folder, aside = tmp_path / "log", tmp_path / "aside"
    folder.mkdir()
    path = folder / "access.log"
    reports = Reports()
    writer = Writer(asyncio.get_running_loop(), str(path), reports)
    folder.rename(aside)
    near, far = socket.socketpair()
    writer.attach(far)
    for number in (1, 2):
        near.sendall(line(number))
        await until(lambda number=number: (aside / "access.log").stat().st_size == number * 40)
    near.close()
    await writer.close()
    assert reports.lines == [
        f"access log: cannot open {path} again: No such file or directory; the file opened before is still used"
    ]


# --- stdout, which may be anything


class Stdout:
    """A pipe in the place of descriptor 1, within `with`: in a test's body, since pytest puts its own there before."""

    def __enter__(self) -> "Stdout":
        self.saved = os.dup(1)
        self.read, write = os.pipe()
        os.dup2(write, 1)
        os.close(write)
        os.set_blocking(self.read, False)
        return self

    def take(self) -> bytes:
        data = b""
        while select.select([self.read], [], [], 0)[0] and (more := os.read(self.read, 1 << 20)):
            data += more
        return data

    def close_reader(self) -> None:
        if self.read >= 0:
            os.close(self.read)
            self.read = -1

    def __exit__(self, *_: object) -> None:
        self.close_reader()
        os.dup2(self.saved, 1)
        os.close(self.saved)


async def feed(writer: Writer, data: bytes) -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    writer.attach(far)
    await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(near, data), 10)
    near.close()


async def test_stdout_is_written_and_stays_open() -> None:
    with Stdout() as stdout:
        writer = Writer(asyncio.get_running_loop(), "stdout", Reports())
        writer.reopen()
        await feed(writer, line(1))
        await writer.close()
        assert numbers(stdout.take()) == [1]
        os.fstat(1)


async def test_a_stuck_stdout_costs_whole_records_and_nothing_else() -> None:
    with Stdout() as stdout:
        reports = Reports()
        writer = Writer(asyncio.get_running_loop(), "stdout", reports)
        total = 12 * (1 << 20) // 10_000
        await feed(writer, b"".join(line(number, 10_000) for number in range(total)))  # ends: the writer reads on
        await until(lambda: writer.dropped > 0)
        assert reports.lines[0].endswith("lost: stdout does not take them fast enough")
        close = asyncio.create_task(writer.close())
        got = b""
        while not close.done():
            got += stdout.take()
            await asyncio.sleep(0)
        got += stdout.take()
        assert len(numbers(got)) == total - writer.dropped


async def test_a_stdout_that_stays_stuck_does_not_hold_up_the_end() -> None:
    with Stdout() as stdout:
        reports = Reports()
        writer = Writer(asyncio.get_running_loop(), "stdout", reports)
        await feed(writer, b"".join(line(number, 10_000) for number in range(200)))  # a pipe holds 64 KiB
        await until(lambda: not writer._sources)
        await writer.close(patience=0.05)
        # lines in the thread's hands count as well as those in the queue, but for what may be in the pipe
        assert 200 - 2 * logfile.PIECE // 10_000 < writer.dropped < 200
        assert reports.lines == [f"access log: {writer.dropped} records lost: stdout does not take them fast enough"]
        stdout.take()


async def test_a_stdout_without_reader_ends_the_log_and_nothing_else() -> None:
    with Stdout() as stdout:
        reports = Reports()
        writer = Writer(asyncio.get_running_loop(), "stdout", reports)
        stdout.close_reader()
        await feed(writer, line(1) + line(2))
        await until(lambda: writer.dropped == 2)
        await feed(writer, line(3))
        await writer.close()
        assert writer.dropped == 3
        assert reports.lines == [
            "access log: 2 records lost: the reader of stdout is gone",
            "access log: 1 record lost: the reader of stdout is gone",
        ]


async def test_a_stdout_that_someone_made_non_blocking_is_waited_for() -> None:
    with Stdout() as stdout:
        os.set_blocking(1, False)
        writer = Writer(asyncio.get_running_loop(), "stdout", Reports())
        await feed(writer, b"".join(line(number, 1000) for number in range(500)))
        close = asyncio.create_task(writer.close())
        got = b""
        while not close.done():
            got += stdout.take()
            await asyncio.sleep(0)
        assert numbers(got + stdout.take()) == list(range(500))


async def test_a_full_disk_costs_records_and_leaves_no_half_line(tmp_path: Path) -> None:
    reports = Reports()
    writer = Writer(asyncio.get_running_loop(), "/dev/full", reports)
    await feed(writer, line(1))
    await writer.close()
    assert reports.lines == ["access log: 1 record lost: /dev/full: No space left on device"]


async def test_a_line_begun_before_an_error_is_finished_after_it(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    reports = Reports()
    log = logfile.LogFile(str(path), logfile.Losses(reports), reports)
    data = line(1) + line(2) + line(3)
    os.write(log._out, data[:50])  # the system took so much of it, then the disk was full
    log._failed(OSError(28, "No space left on device"), data, 50)
    log.put(line(4))
    loop = asyncio.get_running_loop()
    await log.close(loop, loop.time() + 10)
    assert numbers(path.read_bytes()) == [1, 2, 4]
    assert reports.lines == [f"access log: 1 record lost: {path}: No space left on device"]


async def test_another_target_gets_what_comes_from_then_on(tmp_path: Path) -> None:
    near, far = pair()
    writer = Writer(asyncio.get_running_loop(), str(tmp_path / "one.log"), print)
    writer.attach(far)
    near.send(line(1))
    await until(lambda: (tmp_path / "one.log").read_bytes() == line(1))
    await writer.retarget(str(tmp_path / "two.log"))
    near.send(line(2))
    await until(lambda: (tmp_path / "two.log").read_bytes() == line(2))
    with pytest.raises(FileNotFoundError):
        await writer.retarget(str(tmp_path / "nowhere" / "three.log"))
    writer.put(line(3))
    await until(lambda: (tmp_path / "two.log").read_bytes() == line(2) + line(3))
    await writer.retarget("off")
    writer.put(line(4))
    near.close()
    await writer.close()
    assert (tmp_path / "one.log").read_bytes() == line(1)
    assert (tmp_path / "two.log").read_bytes() == line(2) + line(3)
