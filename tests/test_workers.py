"""Several workers behind one address: shared out, lost, replaced, silent; and what the others have of it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import Client, connect, document, post
from fakes import upstream as mock_upstream
from load import REQUEST, load
from processes import PATIENCE, Serve

from aigw import channel, listen, process, shared, workers
from aigw.config import lines
from aigw.records import Writer
from aigw.workers import Version, Workers

CONFIG = """\
workers: {workers}
drain: {{delay: {delay}, timeout: 10s}}
upstreams: {{mock: {{provider: mock}}}}
gateways: {{default: {{auth: none, models: {{"*": mock}}}}}}
"""


def config(count: int, delay: str = "0s") -> str:
    return CONFIG.format(workers=count, delay=delay)


@pytest.fixture
def two(short_path: Path) -> Iterator[Serve]:
    with Serve(short_path, config(2)) as serve:
        yield serve


def ask(serve: Serve, path: str = "/__/ping") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    connection.request("GET", path)
    with connection.getresponse() as response:
        response.read()
    connection.close()
    return response.status


def end(serve: Serve, number: int) -> list[dict[str, Any]]:
    assert serve.stop() == number
    return serve.records


def wait_for(condition: Any, what: str) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        os.sched_yield()
    return value


# one is lost ----------------------------------------------------------------------------------------------------------


async def test_a_killed_worker_takes_only_its_own_exchanges_with_it(two: Serve) -> None:
    """Under load. The other one and all connections to it go on, and so does the address."""
    victim, other = two.workers
    async with load(two.port, clients=20) as run:
        os.kill(victim, signal.SIGKILL)
        await asyncio.to_thread(two.err.find, f"worker {victim} was killed by SIGKILL; the next one starts now")
        await asyncio.to_thread(two.err.find, r"worker \d+ serves")
        lost = len(run.failed)
        before = run.answered
        await until(lambda: run.answered >= before + 500, "it goes on")
    assert len(run.failed) == lost <= 20  # a client has one exchange at a time: at most one each, and none later
    assert other in two.workers
    assert len(two.workers) == 2
    records = await asyncio.to_thread(end, two, 0)
    (record,) = [record for record in records if record["end"] == "worker_lost"]
    assert (record["fault"], record["worker"], record["generation"]) == ("gateway", victim, 1)
    assert 0 <= record["exchanges"] <= 20
    assert {record["end"] for record in records} == {"ok", "worker_lost"}


async def test_a_worker_that_cannot_be_replaced_leaves_its_clients_to_the_others(two: Serve) -> None:
    """No client waits for ever in the accept queue of a worker that is not there."""
    victim, other = two.workers
    limits = resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE, (4, limits[1]))
    os.kill(victim, signal.SIGKILL)
    await asyncio.to_thread(two.err.find, "no worker can be started: Too many open files")
    for _ in range(40):  # half of them come to the socket of the one that is gone
        client = await connect("127.0.0.1", two.port)
        assert (await client.ask(REQUEST)).status == 200
        await client.close()
    assert two.workers == [other]
    resource.prlimit(two.process.pid, resource.RLIMIT_NOFILE, limits)
    await asyncio.to_thread(two.err.find, r"worker \d+ serves")
    assert {await asyncio.to_thread(ask, two) for _ in range(20)} == {200}
    assert await asyncio.to_thread(two.stop) == 0


def test_workers_that_keep_dying_are_replaced_more_slowly_and_nobody_is_lost(two: Serve) -> None:
    _, steady = two.workers
    pauses = []
    for _ in range(3):
        (victim,) = [pid for pid in wait_for(lambda: len(two.workers) == 2 and two.workers, "two")
                     if pid != steady]  # fmt: skip
        os.kill(victim, signal.SIGKILL)
        pauses.append(two.err.find(rf"worker {victim} was killed by SIGKILL; the next one starts (.*)")[1])
        assert {ask(two) for _ in range(10)} == {200}
    assert pauses == ["now", "in 0.2 s", "in 0.4 s"]


# how many -------------------------------------------------------------------------------------------------------------


def test_auto_is_one_for_each_core(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with Serve(tmp_path, config(1), arguments=["--listen", "127.0.0.1:0", "--workers", "auto"]) as serve:
        serve.err.find("curl")
        assert len(serve.workers) == len(cores)
        assert ask(serve) == 200


def test_each_worker_has_a_socket_of_its_own(two: Serve) -> None:
    """And the supervisor keeps both. The kernel spreads clients over them."""
    inodes = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()
        if f":{two.port:04X} 00000000:0000 0A" in line
    }
    assert len(inodes) == 2

    def held(pid: int) -> set[str]:
        names = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        return {inode for inode in inodes if f"socket:[{inode}]" in names}

    one, other = map(held, two.workers)
    assert len(one) == len(other) == 1
    assert one | other == held(two.process.pid) == inodes


# the end --------------------------------------------------------------------------------------------------------------


def test_readiness_is_red_in_all_workers_while_the_address_still_answers(tmp_path: Path) -> None:
    with Serve(tmp_path, config(2, delay="30s")) as serve:
        assert {ask(serve, "/readyz") for _ in range(10)} == {200}
        serve.signal(signal.SIGTERM)
        serve.err.find("finishing what runs")
        wait_for(lambda: {ask(serve, "/readyz") for _ in range(10)} == {503}, "all red")
        assert {ask(serve) for _ in range(10)} == {200}
        serve.signal(signal.SIGTERM)
        assert serve.end() == 0


def test_a_worker_lost_during_the_delay_is_not_forgotten(tmp_path: Path) -> None:
    """It is replaced, since the address still answers; and what it had was not finished."""
    with Serve(tmp_path, config(2, delay="30s")) as serve:
        serve.signal(signal.SIGTERM)
        serve.err.find("finishing what runs")
        victim, _ = serve.workers
        os.kill(victim, signal.SIGKILL)
        serve.err.find(r"worker \d+ serves")
        assert {ask(serve) for _ in range(10)} == {200}
        wait_for(lambda: {ask(serve, "/readyz") for _ in range(10)} == {503}, "all red, the new one too")
        serve.signal(signal.SIGTERM)
        assert serve.end() == 1
        assert [record["end"] for record in serve.records if record["end"] != "ok"] == ["worker_lost"]


def test_all_workers_outlive_the_supervisor_until_they_have_finished(two: Serve) -> None:
    pids = two.workers
    os.kill(two.process.pid, signal.SIGKILL)
    for pid in pids:
        wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the worker ends")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", two.port))
    assert not list(two.folder.glob("aigw-*/"))


def test_systemd_is_told_what_happens(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(PATIENCE)
        with Serve(tmp_path, config(1), environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as serve:
            assert manager.recv(1000) == b"READY=1"
            before = time.monotonic_ns() // 1000
            (tmp_path / "config.yaml").write_text(config(1, delay="0.1s"))
            said = manager.recv(1000).decode()
            found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", said)
            assert found, said
            assert before <= int(found[1]) <= time.monotonic_ns() // 1000
            assert manager.recv(1000) == b"READY=1"
            serve.signal(signal.SIGTERM)
            assert manager.recv(1000) == b"STOPPING=1"
            assert serve.end() == 0


# without a supervisor around them -------------------------------------------------------------------------------------


class Served:
    """The set of workers itself, with an address for them, and a log."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.loop = asyncio.get_running_loop()
        self.cells = shared.Cells()
        self.workers = Workers(self.loop, self.cells)
        self.listeners = listen.Listeners()
        self.log = folder / "access.log"
        self.writer = Writer(self.loop, str(self.log), print)
        self.document = document({"up": mock_upstream(provider="mock")}, workers=count)
        self.folder = str(folder)

    def version(self, generation: int, **changes: Any) -> Version:
        config = self.document | changes
        return Version(generation, config, b"".join(map(channel.encode, lines.cut(config))), self.folder)

    def reap(self) -> None:
        """SIGCHLD is the test loop's own."""
        self.workers.reap()
        self._timer = self.loop.call_later(0.01, self.reap)

    async def __aenter__(self) -> Served:
        self.reap()
        self.cells.use(0)
        started = process.start_worker(self.cells.descriptor, 0)
        self.workers.adopt(started)
        self.writer.attach(started.records)
        self.listeners.keep(self.listeners.bind(["127.0.0.1:0"], self.count))
        assert await self.workers.start(self.version(1), self.count, self.listeners.all, self.writer) == ""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.workers.close()
        self._timer.cancel()
        await self.writer.close()
        self.listeners.close()

    async def connect(self) -> Client:
        return await connect(*listen.parse(self.listeners.names[0]))

    async def answered(self) -> int:
        """A request on a connection of its own."""
        client = await self.connect()
        try:
            return (await client.ask(REQUEST)).status
        finally:
            await client.close()


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.01)


async def test_the_record_of_a_lost_worker_counts_its_exchanges(tmp_path: Path) -> None:
    async with Served(1, tmp_path) as served:
        body = json.dumps({"model": "x", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}).encode()
        streams = [await served.connect() for _ in range(3)]
        for stream in streams:
            await stream.send(post("/v1/chat/completions", body, b"x-mock: tokens=5, stall"))
            await stream.read(b"\r\n\r\n")
        await until(lambda: served.cells.total(shared.IN_FLIGHT) == 3, "three in the shared row")
        (place,) = served.workers.serving
        victim = place.handle.pid
        os.kill(victim, signal.SIGKILL)
        for stream in streams:
            assert not (await stream.ended()).endswith(b"0\r\n\r\n")  # a cut stream does not look complete
            await stream.close()
        await until(lambda: served.workers.restarts and served.workers.serving, "the next one")
        assert served.cells.total(shared.IN_FLIGHT) == 0
    (record,) = map(json.loads, served.log.read_text().splitlines())
    assert record | {"end": "worker_lost", "fault": "gateway", "exchanges": 3, "worker": victim} == record
    assert set(record) == {"time", "end", "fault", "exchanges", "worker", "generation"}


async def test_a_worker_without_a_sign_of_life_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "STALE", 1500)
    monkeypatch.setattr(workers, "LOOK", 0.3)
    async with Served(2, tmp_path) as served:
        victim = served.workers.serving[0].handle
        os.kill(victim.pid, signal.SIGSTOP)
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait({victim.ended})
        assert victim.ended.result() == -signal.SIGKILL
        await until(lambda: len(served.workers.serving) == 2, "the next one")
        assert {await served.answered() for _ in range(10)} == {200}
        assert served.workers.restarts == 1
    assert f"worker {victim.pid} has given no sign of life for 1 s; it is killed" in capfd.readouterr().err


async def test_a_document_that_one_cannot_prepare_reaches_none(tmp_path: Path) -> None:
    async with Served(2, tmp_path) as served:
        pool, broken = served.workers, {"sk-canary": {"provider": "sk-canary"}}

        async def bind() -> list[listen.Listening]:
            return served.listeners.all

        why = await pool.apply(served.version(2, upstreams=broken), 3, bind)
        assert re.match(r"(worker \d+: )?KeyError at ", why)
        assert "canary" not in why
        assert [place.handle.generation for place in pool.serving] == [1, 1]
        assert pool.count == 2
        assert {await served.answered() for _ in range(10)} == {200}
        assert await pool.apply(served.version(3), 2, bind) == ""
        assert [place.handle.generation for place in pool.serving] == [3, 3]
        assert repr(pool) == "<Workers 2 of 2 serving, 0 retired>"


async def test_one_socket_for_all_where_the_kernel_does_not_balance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "BALANCED", False)
    async with Served(3, tmp_path) as served:
        assert len(served.listeners.all) == 1
        assert [place.handle.sockets for place in served.workers.serving] == [{0}] * 3
        assert {await served.answered() for _ in range(20)} == {200}
        os.kill(served.workers.serving[0].handle.pid, signal.SIGKILL)
        assert {await served.answered() for _ in range(20)} == {200}
