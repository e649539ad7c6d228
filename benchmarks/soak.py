"""A long run under mixed load: does anything grow, stay open or fail that should not?

    python benchmarks/soak.py [--minutes 30] [--connections 50] [--workers 2] [--python PATH] [--seed N]

A gateway runs on the first core; its upstream (`aigw mock`) and the clients, who are all in this process, on the last.
First the clients ask as fast as they can, then for so many minutes at 70 % of that, while they hang up, ask for every
failure that the mock knows, the config is saved and reloaded, and once a worker is killed. Exit status 1 where a mark
is missed; benchmarks/README.md says what the marks are.
"""

import argparse
import asyncio
import contextlib
import hashlib
import os
import random
import re
import secrets
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import clients
import processes
import uvloop
from clients import Load
from proxies import free_port

from aigw.admin.client import call

SHARE = 0.7  # of capacity
KEY, LIMITED = ("sk-aigw-" + secrets.token_urlsafe(32) for _ in range(2))
GROWTH = 1.0  # MiB in ten minutes
WARM_UP = 0.2  # of a process's samples
JUDGED_FROM = 300.0  # seconds after warming up: in less, an arena more or less is a steep slope
SHOWN = 20  # unexplained outcomes

CONFIG = """
listen: 127.0.0.1:{port}
admin: {{listen: 127.0.0.1:{admin}}}
workers: {workers}
access_log: {log}
usage_store: {store}
upstreams:
  mock: {{provider: openai, api_key: soak, targets: {targets}, timeouts: {{pool_idle: 1s}}, health: {{interval: 1s}}}}
  injected: {{provider: openai, api_key: soak, usage: inject, targets: {targets}, timeouts: {{pool_idle: 1s}}}}
  impatient: {{provider: openai, api_key: soak, targets: {targets}, timeouts: {{first_byte: 1s, idle: 1s}}}}
  dead: {{provider: openai, api_key: soak, targets: [{{url: "http://127.0.0.1:{dead}/v1"}}]}}
gateways:
  default:
    limits: [{{concurrency: {most}}}, {{tokens: 1000000000000/1h, per: key}}]
    keys:
      soak: {{sha256: "{key}"}}
      limited: {{sha256: "{limited}", limits: [{{requests: 1/1m}}]}}
{more}    models:
      gpt-4o: mock
      injected: {{upstream: injected, model: gpt-4o}}
      again: {{upstream: mock, model: gpt-4o, retry: {{attempts: 2, when: [connect, reset, 5xx]}}}}
      fallen: {{upstream: dead, model: gpt-4o, fallback: [gpt-4o]}}
      impatient: {{upstream: impatient, model: gpt-4o}}
"""


class Gateway:
    """The processes under test: a mock, and a gateway before it whose config can be changed."""

    def __init__(self, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.port, self.admin, mock, dead = (free_port() for _ in range(4))
        # Whoever hangs up and comes back may for a moment count twice.
        self.most = 4 * options.connections
        cores = processes.cores()
        digest = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in (("key", KEY), ("limited", LIMITED))}
        # The same twice: what is asked to fail rests one of them for a while.
        targets = ", ".join(f'{{name: {name}, url: "http://127.0.0.1:{mock}/v1"}}' for name in ("one", "two"))
        self._template = {"port": self.port, "admin": self.admin, "workers": options.workers, "dead": dead, **digest}
        self._template |= {
            "targets": f"[{targets}]",
            "most": self.most,
            "log": os.devnull,
            "store": folder / "usage.db",
        }
        self.saved = 0
        self.save()
        aigw = [options.python, "-P", "-m", "aigw"]
        command = [*aigw, "mock", "--listen", f"127.0.0.1:{mock}"]
        self.mock = processes.start(command, max(cores), folder / "mock.log")
        stack.callback(processes.stop, self.mock)
        command = [*aigw, "serve", "--config", str(folder / "config.yaml")]
        self.process = processes.start(command, min(cores), folder / "serve.log")
        stack.callback(processes.stop, self.process)
        self.upstream = mock
        deadline = time.monotonic() + 60
        while not all(_listens(port) for port in (mock, self.port, self.admin)):
            if self.process.poll() is not None or self.mock.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"it does not start: {self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        return (self.folder / "mock.log").read_text() + (self.folder / "serve.log").read_text()

    def save(self) -> None:
        """Another version of the config, with another key in it."""
        self.saved += 1
        more = f'      key-{self.saved}: {{sha256: "{self.saved:064x}"}}\n' if self.saved > 1 else ""
        new = self.folder / "new.yaml"
        new.write_text(CONFIG.format(**self._template, more=more))
        new.rename(self.folder / "config.yaml")

    def workers(self) -> list[int]:
        found = []
        for pid in processes.tree(self.process.pid):
            with contextlib.suppress(OSError):
                if b"aigw.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """The admin API's answer."""
        return await asyncio.to_thread(call, f"127.0.0.1:{self.admin}", None, method, path, body)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@dataclass(slots=True)
class Series:
    """One process's memory: seconds and MiB."""

    name: str
    seconds: list[float] = field(default_factory=list)
    sizes: list[float] = field(default_factory=list)

    def slope(self) -> tuple[float, float]:
        """MiB in ten minutes, by least squares, and over how many seconds."""
        first = int(len(self.seconds) * WARM_UP)
        seconds, sizes = self.seconds[first:], self.sizes[first:]
        if len(seconds) < 3:
            return 0.0, 0.0
        return statistics.linear_regression(seconds, sizes).slope * 600, seconds[-1] - seconds[0]


async def sample(gateway: Gateway, memory: dict[int, Series], pause: float) -> None:
    while True:
        for pid in (gateway.process.pid, *gateway.workers()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it was the one that was killed
                size = resident(pid)
                name = "supervisor" if pid == gateway.process.pid else "worker"
                series = memory.setdefault(pid, Series(name))
                series.seconds.append(time.monotonic())
                series.sizes.append(size)
        await asyncio.sleep(pause)


def resident(pid: int) -> float:
    """MiB. Raises: OSError, ProcessLookupError among them."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(slots=True)
class Disturbed:
    """What was done to the gateway meanwhile, and what it did not do as it should."""

    saves: int = 0
    signals: int = 0
    slowest: float = 0.0  # seconds from the change to the last worker that serves it
    missed: list[str] = field(default_factory=list)


async def disturb(gateway: Gateway, load: Load, done: Disturbed, seconds: float) -> None:
    """Reloads all the time, by saving alone and by saving and SIGHUP in turn; at a quarter of the time a kill."""
    loop = asyncio.get_running_loop()
    kill_at = loop.time() + seconds / 4
    pause = min(max(seconds / 20, 1.0), 30.0)
    while True:
        await asyncio.sleep(pause)
        if load.killed is None and loop.time() >= kill_at:
            load.killed = loop.time()
            os.kill(gateway.workers()[0], signal.SIGKILL)
            if not await settled(gateway, "worker_restarts", 1):
                done.missed.append("a killed worker is not replaced")
            continue
        before = (await gateway.ask("GET", "/status"))["generation"]
        began = loop.time()
        gateway.save()
        done.saves += 1
        if done.saves % 2 == 0:
            gateway.process.send_signal(signal.SIGHUP)
            done.signals += 1
        if not await settled(gateway, "generation", before + 1):
            done.missed.append("a saved config is not served")
        done.slowest = max(done.slowest, loop.time() - began)


async def settled(gateway: Gateway, counter: str, least: int) -> bool:
    """Once all workers are there and serve the same, and the status has come so far. False: not in half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status = await gateway.ask("GET", "/status")
        served = [worker["generation"] for worker in status["workers"]]
        if status[counter] >= least and served == [status["generation"]] * status["workers_wanted"]:
            return True
        await asyncio.sleep(0.05)
    return False


async def at_rest(gateway: Gateway, files: dict[str, int] | None = None) -> tuple[dict[str, Any], list[str]]:
    """The status once nothing is under way, and what still is after ten seconds. `files`: see `open_files`."""
    deadline = time.monotonic() + 10
    while True:
        status = await gateway.ask("GET", "/status")
        targets = [target for upstream in status["upstreams"].values() for target in upstream.values()]
        sample = {"method": "POST", "path": "/v1/chat/completions", "model": clients.MODEL, "key_name": "soak"}
        limits = (await gateway.ask("POST", "/explain", sample))["limits"]
        taken = {limit["limit"]: limit["amount"] - limit["left"] for limit in limits if "concurrency" in limit["limit"]}
        busy = {
            "exchanges in flight": status["in_flight"],
            "client connections": sum(status["connections"]["client"].values()),
            "upstream connections": sum(status["connections"]["upstream"].values()),
            "exchanges waiting for one": sum(target["waiting"] for target in targets),
            "taken of the limit of concurrency": sum(taken.values()),
        }
        if files is not None:
            now = open_files(gateway)
            busy |= {f"descriptors of a {name} more than before": max(now[name] - files[name], 0) for name in files}
        left = [f"{count} {what}" for what, count in busy.items() if count]
        if not taken:
            left.append("no limit of concurrency to look at")
        if not left or time.monotonic() > deadline:
            return status, left
        await asyncio.sleep(0.1)


def open_files(gateway: Gateway) -> dict[str, int]:
    """Descriptors of the supervisor, and of the worker that has most."""
    count = {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in (gateway.process.pid, *gateway.workers())}
    return {"supervisor": count.pop(gateway.process.pid), "worker": max(count.values())}


@contextlib.asynccontextmanager
async def running(*coroutines: Any) -> Any:
    """They run meanwhile, and are cancelled at the end; what one of them raises ends the run."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result


async def soak(options: argparse.Namespace, gateway: Gateway) -> list[str]:
    """The run, and the marks it missed."""
    before, left = await at_rest(gateway)
    if left:
        return [f"before the load there are {what}" for what in left]
    files = open_files(gateway)
    print(f"aigw {before['version']}, {options.workers} workers; seed {options.seed}; {options.connections} clients")
    load = Load(gateway.port, clients.scenarios(KEY, LIMITED), random.Random(options.seed))
    await load.learn(gateway.upstream)
    seconds = options.minutes * 60
    memory: dict[int, Series] = {}
    done = Disturbed()
    everyone = [asyncio.ensure_future(load.client()) for _ in range(options.connections)]
    began, used = load.begun, processes.cpu(gateway.process.pid)
    measured = min(10.0, seconds / 6)
    await asyncio.sleep(measured)
    rate = (load.begun - began) / measured
    now = processes.cpu(gateway.process.pid) - used
    print(
        f"capacity: {rate:,.0f} exchanges/s, at which the gateway has {(now.user + now.system) / measured:.0%} of its"
        f" core; {SHARE:.0%} of it for {options.minutes:g} minutes",
        flush=True,
    )
    files["supervisor"] = open_files(gateway)["supervisor"]  # now that usage is written
    load.interval = options.connections / (rate * SHARE)
    began = load.begun
    async with running(
        sample(gateway, memory, max(seconds / 400, 0.25)), disturb(gateway, load, done, seconds)
    ) as tasks:
        await asyncio.wait([*tasks, *everyone], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    load.ending = True
    await asyncio.gather(*everyone)
    for connection in load.connections:
        connection.close()
    after, left = await at_rest(gateway, files)
    return [
        *report_load(load, done, (load.begun - began) / seconds),
        *report_memory(memory),
        *report_rest(load, before, after, left),
        *said(gateway),
    ]


def report_load(load: Load, done: Disturbed, rate: float) -> Iterator[str]:
    print(f"\n{load.begun:,} exchanges, {rate:,.0f} a second at the reduced rate")
    for scenario in load.scenarios:
        outcomes = {outcome: count for (name, outcome), count in load.seen.items() if name == scenario.name}
        print(f"  {scenario.name:44}" + ", ".join(f"{word}: {count:,}" for word, count in sorted(outcomes.items())))
    print(f"reloads: {done.saves}, {done.signals} of them by SIGHUP; the slowest was served after {done.slowest:.1f} s")
    print(f"killed worker: {load.broken_by_kill} connections broke")
    yield from done.missed
    if load.killed is None:
        yield "no worker was killed"
    for text, count in load.unexplained.most_common(SHOWN):
        print(f"  UNEXPLAINED {count} x {text}")
    if load.unexplained:
        yield f"{load.unexplained.total():,} unexplained errors"


def report_memory(memory: dict[int, Series]) -> Iterator[str]:
    print(f"\n{'':24}{'MiB after warming up':>22}{'at the end':>12}{'MiB per 10 min':>16}")
    for pid, series in memory.items():
        slope, seconds = series.slope()
        if not seconds:
            continue
        judged = seconds >= JUDGED_FROM
        first = series.sizes[int(len(series.sizes) * WARM_UP)]
        note = "" if judged else f"   {seconds:.0f} s: not judged, too short"
        print(f"{series.name:12}{pid:12}{first:22.1f}{series.sizes[-1]:12.1f}{slope:16.2f}{note}")
        if judged and slope > GROWTH:
            yield f"{series.name} {pid} grows by {slope:.2f} MiB in 10 minutes"


def report_rest(load: Load, before: dict[str, Any], after: dict[str, Any], left: list[str]) -> Iterator[str]:
    total, lost = after["exchanges"]["total"] - before["exchanges"]["total"], after["exchanges"]["worker_lost"]
    print(f"\nat rest: {'; '.join(left) or 'nothing under way, no descriptor more than before'}")
    print(f"the gateway counted {total:,} exchanges, {lost} of them lost with their worker")
    yield from (f"at rest there are {what}" for what in left)
    if not load.answered <= total <= load.begun:
        yield f"{load.answered:,} were answered of {load.begun:,} asked for, the gateway counted {total:,}"
    if after["worker_restarts"] != 1:
        yield f"{after['worker_restarts']} workers died, one was killed"
    if not after["config"]["ok"]:
        yield f"the config is refused: {after['config']['errors']}"


def said(gateway: Gateway) -> Iterator[str]:
    """The log may say that the gateway is at fault."""
    wrong = [line for line in gateway.said().splitlines() if re.search(r"Traceback|unexpected:", line)]
    for line in wrong[:SHOWN]:
        print(f"  {line}")
    if wrong:
        yield f"{len(wrong)} lines of the log report errors"


def main() -> int:
    parser = argparse.ArgumentParser(description="A long run under mixed load: does anything grow or fail?")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="of load (30); at least 0.2")
    parser.add_argument("--connections", type=int, default=50, metavar="N", help="clients (50)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="of the gateway (2)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), metavar="N", help="who asks for what")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter that runs aigw")
    options = parser.parse_args()
    if options.minutes < 0.2 or options.connections < 1 or options.workers < 1:
        parser.error("--minutes is at least 0.2, --connections and --workers are at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever ends the run also cleans up
    os.sched_setaffinity(0, {max(processes.cores())})
    with tempfile.TemporaryDirectory(prefix="aigw-soak-") as name, contextlib.ExitStack() as stack:
        missed = uvloop.run(soak(options, Gateway(options, Path(name), stack)))
    print("\n" + ("\n".join(f"MISSED: {what}" for what in missed) or "all marks are met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
