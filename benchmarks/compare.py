"""Measures aigw beside nginx and HAProxy, in one run on one machine.

    python benchmarks/compare.py [--duration S] [--rounds N] [--only aigw,nginx] [--loads sdk,stream] [--python PATH]

Proxies run on core 0, the load generator and the upstream on core 1. Rounds are interleaved, so that whatever else
the machine does meets all of them alike; figures are medians over the rounds. benchmarks/README.md says what the
columns mean.
"""

import argparse
import http.client
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import loads
import processes
import proxies
import upstream
from loads import LOADS, Load
from proxies import Proxy

PROXY_CORE = 0
LOAD_CORE = 1
NAMES = ("direct", "nginx", "haproxy", "aigw")
START_TIMEOUT = 10.0
IDLE_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that has given its first answer, `started_in` seconds after the command."""

    proxy: Proxy
    pid: int
    core: int
    started_in: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one load. Latencies in microseconds, CPU in microseconds of the process tree per request."""

    requests: int
    rate: float
    p50: float
    p99: float
    failed: int
    user: float
    system: float


Measured = dict[str, dict[str, list[Measurement]]]  # load name -> proxy name -> one a round


def main() -> int:
    options = arguments()
    missing = [tool for tool in ("nginx", "haproxy", "wrk", "taskset") if shutil.which(tool) is None]
    if missing:
        packages = " ".join("util-linux" if tool == "taskset" else tool for tool in missing)
        print(f"missing: {', '.join(missing)}; install with: apt-get install -y {packages}", file=sys.stderr)
        return 2
    if not {PROXY_CORE, LOAD_CORE} <= processes.cores():
        print("two cores are needed: one for the proxies, one for load and upstream", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever ends the run also cleans up
    allow_descriptors(4 * IDLE_CONNECTIONS)
    print(machine(options.python))
    with tempfile.TemporaryDirectory(prefix="aigw-compare-") as name:
        folder = Path(name)
        with ExitStack() as stack:
            running = start_all(options, folder, stack)
            print_memory(running)
            measured, asked = measure(running, options, folder)
        for load in options.loads:
            print_load(load, measured[load.name])
        if "aigw" in options.only:
            print_access_log(folder / proxies.ACCESS_LOG, asked["aigw"])
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure aigw beside nginx and HAProxy.")
    parser.add_argument("--duration", type=int, default=3, metavar="S", help="seconds per measurement (3)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds; figures are medians over them (3)")
    parser.add_argument("--only", type=names(NAMES), default=NAMES, metavar="A,B", help=f"of {','.join(NAMES)}")
    known = tuple(load.name for load in LOADS)
    parser.add_argument("--loads", type=names(known), default=known, metavar="A,B", help=f"of {','.join(known)}")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter that runs aigw")
    options = parser.parse_args()
    if options.duration < 1 or options.rounds < 1:
        parser.error("--duration and --rounds are at least 1")
    options.loads = [load for load in LOADS if load.name in options.loads]
    return options


def names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        asked = tuple(text.split(","))
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        return asked

    return parse


def allow_descriptors(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def start_all(options: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Running]:
    """The upstream first, then what `--only` names; all stopped when `stack` closes."""
    origin = start(proxies.upstream(), LOAD_CORE, folder, stack)
    port = origin.proxy.plain
    running = [origin] if "direct" in options.only else []
    if "nginx" in options.only:
        running.append(start(proxies.nginx(folder, port), PROXY_CORE, folder, stack))
    if "haproxy" in options.only:
        running.append(start(proxies.haproxy(folder, port), PROXY_CORE, folder, stack))
    if "aigw" in options.only:
        running.append(start(proxies.aigw(folder, port, options.python), PROXY_CORE, folder, stack))
    for one in running:
        for load in options.loads:
            check(one.proxy, load)
    return running


def start(proxy: Proxy, core: int, folder: Path, stack: ExitStack) -> Running:
    for path, text in proxy.files.items():
        path.write_text(text)
    log = folder / f"{proxy.name}.log"
    began = time.monotonic()
    process = processes.start(proxy.command, core, log)
    stack.callback(processes.stop, process)
    while True:
        try:
            ask(LOADS[0], proxy.plain)
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
                sys.exit(f"{proxy.name} did not start: {' '.join(proxy.command)}\n{log.read_text()}")
            time.sleep(0.002)
        else:
            return Running(proxy, process.pid, core, time.monotonic() - began)


def ask(load: Load, port: int) -> tuple[int, bytes]:
    """One request on a connection of its own; status and decoded body."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        return exchange(client, load, port)


def exchange(client: socket.socket, load: Load, port: int) -> tuple[int, bytes]:
    client.sendall(loads.request(load, port))
    answer = http.client.HTTPResponse(client, method="POST")
    answer.begin()
    return answer.status, answer.read()


def check(proxy: Proxy, load: Load) -> None:
    """The answer through the proxy must be the upstream's, or there is nothing to compare."""
    status, body = ask(load, proxy.stream if load.streamed else proxy.plain)
    expected = upstream.EVENT * upstream.EVENTS if load.streamed else upstream.ANSWER
    if (status, body) != (200, expected):
        sys.exit(f"{proxy.name} answers {status} on load {load.name!r}, not what the upstream sent: {body[:500]!r}")


def measure(running: list[Running], options: argparse.Namespace, folder: Path) -> tuple[Measured, Counter[str]]:
    """All rounds, and how many answers each proxy gave in all.

    A second of warming up on each load comes first and is no measurement.
    """
    measured: Measured = defaultdict(lambda: defaultdict(list))
    asked: Counter[str] = Counter()
    for number in range(options.rounds + 1):
        turn = number % len(running)
        for load in options.loads:
            for one in running[turn:] + running[:turn]:  # each proxy follows each other one in turn
                seconds = options.duration if number else 1
                result = run(one, load, seconds, folder)
                asked[one.proxy.name] += result.requests
                if number:
                    measured[load.name][one.proxy.name].append(result)
        print(f"round {number} of {options.rounds} done", file=sys.stderr)
    return measured, asked


def run(one: Running, load: Load, seconds: int, folder: Path) -> Measurement:
    before = processes.cpu(one.pid)
    port = one.proxy.stream if load.streamed else one.proxy.plain
    seen = loads.drive(load, port, LOAD_CORE, seconds, folder)
    used = processes.cpu(one.pid) - before
    each = 1e6 / max(seen.requests, 1)
    return Measurement(
        requests=seen.requests,
        rate=seen.requests / seen.seconds,
        p50=seen.p50,
        p99=seen.p99,
        failed=seen.failed,
        user=used.user * each,
        system=used.system * each,
    )


def machine(python: str) -> str:
    """What a figure is worth nothing without."""
    build = subprocess.run([python, "-c", "import sys; print(sys.version)"], capture_output=True, text=True, check=True)
    lines = [f"aigw runs on {python}: CPython {' '.join(build.stdout.split())}"]
    for command in (["nginx", "-v"], ["haproxy", "-v"], ["wrk", "-v"], ["uname", "-sr"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines.append((done.stdout + done.stderr).strip().splitlines()[0])
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            lines.append(f"CPU {line.partition(':')[2].strip()}")
            break
    return "\n".join(lines)


def print_memory(running: list[Running]) -> None:
    print("\nstart and memory, each before any load; idle: per connection that had one answer and waits")
    print(f"{'':10}{'first answer ms':>16}{'idle KiB each':>15}   processes: RSS/PSS MiB")
    for one in running:
        at_start = processes.memory(one.pid)
        idle = idle_cost(one) / 1024
        each = "  ".join(f"{p.rss / 2**20:.1f}/{p.pss / 2**20:.1f} {short(p.command)}" for p in at_start)
        print(f"{one.proxy.name:10}{one.started_in * 1000:16.0f}{idle:15.1f}   {each}")


def short(command: str) -> str:
    """The words that tell processes of one tree apart."""
    words = [Path(word).name for word in command.split()]
    return " ".join(words[:5])


def idle_cost(one: Running) -> float:
    """Growth of the tree's RSS, in bytes, per connection that had one answer and now waits.

    Measured over the second thousand: the first fills memory that was touched at the start and is free since.
    """
    sizes = []
    with ExitStack() as stack:
        for _ in range(2):
            for _ in range(IDLE_CONNECTIONS):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", one.proxy.plain), timeout=10))
                exchange(client, LOADS[0], one.proxy.plain)
            sizes.append(sum(process.rss for process in processes.memory(one.pid)))
    return (sizes[1] - sizes[0]) / IDLE_CONNECTIONS


def print_load(load: Load, measured: dict[str, list[Measurement]]) -> None:
    connections = f"{load.connections} connection{'s' if load.connections > 1 else ''}"
    unit = "streams/s" if load.streamed else "req/s"
    print(f"\n{load.name}: {load.about}; {connections}")
    print(
        f"{'':10}{unit:>10}{'x nginx':>9}{'p50 us':>10}{'p99 us':>10}{'failed':>8}"
        f"{'CPU us':>9}{'user':>8}{'system':>8}{'x nginx':>9}"
    )
    base = [median(measured["nginx"])] if "nginx" in measured else []
    for name in (name for name in NAMES if name in measured):
        middle = median(measured[name])
        rate_ratio, cpu_ratio = "-", "-"
        for nginx in base:
            rate_ratio = f"{middle.rate / nginx.rate:.2f}"
            cpu_ratio = f"{(middle.user + middle.system) / (nginx.user + nginx.system):.2f}"
        print(
            f"{name:10}{middle.rate:10,.0f}{rate_ratio:>9}{middle.p50:10,.0f}{middle.p99:10,.0f}{middle.failed:8}"
            f"{middle.user + middle.system:9.1f}{middle.user:8.1f}{middle.system:8.1f}{cpu_ratio:>9}"
        )


def print_access_log(path: Path, answers: int) -> None:
    """The log is part of the work: its lines must be at least the answers that `wrk` counted."""
    with path.open("rb") as log:
        lines = sum(1 for _ in log)
    print(f"\naigw's access log: {lines:,} lines; answers counted by wrk, warming up included: {answers:,}")


def median(results: list[Measurement]) -> Measurement:
    """Field by field; requests and failures are added up instead: a failure in any round must show."""
    return Measurement(
        requests=sum(result.requests for result in results),
        rate=statistics.median(result.rate for result in results),
        p50=statistics.median(result.p50 for result in results),
        p99=statistics.median(result.p99 for result in results),
        failed=sum(result.failed for result in results),
        user=statistics.median(result.user for result in results),
        system=statistics.median(result.system for result in results),
    )


if __name__ == "__main__":
    sys.exit(main())
