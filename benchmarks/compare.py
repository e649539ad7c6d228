"""Measures aigw beside other proxies, in one run on one machine.

    python benchmarks/compare.py [--duration S] [--rounds N] [--only aigw,nginx] [--loads sdk,stream] [--workers 1]
                                 [--python PATH] [--envs FOLDER] [--install] [--write]

Proxies run on core 0, the load generator and the upstream on core 1. Rounds are interleaved, so that whatever else
the machine does meets all of them alike; figures are medians and ranges over the rounds. `--install` makes the
environments of those that come from PyPI, and measures nothing. `--write` puts the results into RESULTS.md.
benchmarks/README.md says what the columns mean.
"""

import argparse
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import environments
import loads
import processes
import proxies
import results
from environments import Environment
from loads import LOADS, Load
from proxies import Proxy
from results import Footprint, Measured, Measurement
from running import Running, check, connect, receive, start

PROXY_CORE = 0
LOAD_CORE = 1
NAMES = ("direct", "nginx", "haproxy", "envoy", "sglang", "litellm", "aigw")
TOGETHER = 100  # of the connections that are held, ask at the same time
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> int:
    options = arguments()
    known = environments.known(options.envs)
    if options.install:
        for name in [name for name in known if name in options.only]:
            print(f"installing {known[name].version} in {known[name].folder}", flush=True)
            known[name].make()
        return 0
    missing = [tool for tool in ("nginx", "haproxy", "wrk", "hey", "taskset") if shutil.which(tool) is None]
    if missing:
        packages = " ".join("util-linux" if tool == "taskset" else tool for tool in missing)
        print(f"missing: {', '.join(missing)}; install with: apt-get install -y {packages}", file=sys.stderr)
        return 2
    if not {PROXY_CORE, LOAD_CORE} <= processes.cores():
        print("two cores are needed: one for the proxies, one for load and upstream", file=sys.stderr)
        return 2
    if options.write:
        results.place(RESULTS)  # rather now than after twenty minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whatever ends the run also cleans up
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    text = []

    def say(part: str) -> None:
        text.append(part)
        print(f"{part}\n", flush=True)

    left_out = [name for name in options.only if name in known and not known[name].made]
    options.only = [name for name in options.only if name not in left_out]
    say(conditions(options))
    if left_out:
        how = f"python benchmarks/compare.py --install --only {','.join(left_out)}"
        if options.envs != environments.FOLDER:
            how += f" --envs {options.envs}"
        say(f"Left out, since not installed: {', '.join(left_out)}. To install: `{how}`")
    with tempfile.TemporaryDirectory(prefix="aigw-compare-") as name, ExitStack() as stack:
        folder = Path(name)
        origin = start(proxies.upstream(), LOAD_CORE, folder, stack)
        wanted = all_proxies(options, known, folder, origin.proxy.plain)
        alone = [proxy for proxy in wanted if proxy.workers == 1]
        say(results.work((proxy, version(proxy.name, known, options.python)) for proxy in alone))
        sizes = {proxy: installed(proxy.name, known, options.python) for proxy in alone}
        say(results.footprints([footprint(proxy, PROXY_CORE, folder, sizes[proxy]) for proxy in alone]))
        running = [start(proxy, where(proxy), folder, stack) for proxy in wanted]
        if "direct" in options.only:
            running.insert(0, origin)
        for one in running:
            for load in options.loads:
                check(one.proxy, load)
        measured, asked = measure(running, options, folder)
        for load in options.loads:
            say(results.load(load, measured[load.name]))
        if options.workers == 2:
            say(results.two_workers([load for load in options.loads if load.two], measured))
        for one in running:
            if one.proxy.name == "aigw":
                say(access_log(one.proxy, folder, asked[one.proxy]))
    if options.write:
        results.write(RESULTS, "\n\n".join(text))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure aigw beside other proxies.")
    parser.add_argument("--duration", type=int, default=3, metavar="S", help="seconds per measurement (3)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds; figures are medians over them (3)")
    parser.add_argument("--only", type=names(NAMES), default=NAMES, metavar="A,B", help=f"of {','.join(NAMES)}")
    known = tuple(load.name for load in LOADS)
    parser.add_argument("--loads", type=names(known), default=known, metavar="A,B", help=f"of {','.join(known)}")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="2: some loads with two workers too (2)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter that runs aigw")
    about = "where the environments of what comes from PyPI are"
    parser.add_argument("--envs", type=Path, default=environments.FOLDER, metavar="FOLDER", help=about)
    parser.add_argument("--install", action="store_true", help="make those environments, and measure nothing")
    parser.add_argument("--write", action="store_true", help=f"put the results into {RESULTS.name}")
    options = parser.parse_args()
    if options.duration < 1 or options.rounds < 1:
        parser.error("--duration and --rounds are at least 1")
    options.loads = [load for load in LOADS if load.name in options.loads]
    if not any(load.two for load in options.loads):
        options.workers = 1
    options.envs = options.envs.resolve()
    return options


def names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        asked = tuple(text.split(","))
        if unknown := [name for name in asked if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        return asked

    return parse


# starting -------------------------------------------------------------------------------------------------------------


def all_proxies(options: argparse.Namespace, known: dict[str, Environment], folder: Path, target: int) -> list[Proxy]:
    """What `--only` names, in front of the upstream at port `target`: with one worker, and then with two."""
    makers: dict[str, Callable[[int], Proxy]] = {
        "nginx": lambda workers: proxies.nginx(folder, target, workers),
        "haproxy": lambda workers: proxies.haproxy(folder, target, workers),
        "envoy": lambda workers: proxies.envoy(folder, target, workers, known["envoy"]),
        "sglang": lambda workers: proxies.sglang(target, workers, known["sglang"]),
        "litellm": lambda workers: proxies.litellm(folder, target, workers, known["litellm"]),
        "aigw": lambda workers: proxies.aigw(folder, target, workers, options.python),
    }
    wanted = [makers[name] for name in NAMES if name in options.only and name in makers]
    return [make(workers) for workers in range(1, options.workers + 1) for make in wanted]


def where(proxy: Proxy) -> int | None:
    """Its core; None: any."""
    if proxy.name == "direct":
        return LOAD_CORE
    return PROXY_CORE if proxy.workers == 1 else None


# at rest --------------------------------------------------------------------------------------------------------------


def footprint(proxy: Proxy, core: int, folder: Path, size: int | None) -> Footprint:
    """Each figure from a process that did nothing before: what was allocated once may be free, and is still there."""
    part = 10 if proxy.slow else 1
    with ExitStack() as stack:
        first = start(proxy, core, folder, stack)
        at_start = processes.memory(first.pid)
        idle = growth(first, LOADS[0], proxies.IDLE_CLIENTS // part)
    with ExitStack() as stack:
        second = start(proxy, core, folder, stack)
        stream = growth(second, loads.HOLD, results.OPEN_STREAMS // part)
    return Footprint(
        proxy,
        (first.started_in + second.started_in) / 2,
        sum(process.rss for process in at_start),
        sum(process.pss for process in at_start),
        len(at_start),
        idle,
        stream,
        size,
    )


def growth(one: Running, load: Load, count: int) -> float:
    """Growth of the tree's RSS, in bytes, for each connection that is kept: answered, or with its first event.

    Measured over the last nine tenths: the first fill memory that was touched at the start and is free since.
    """
    port = one.proxy.stream if load.streamed else one.proxy.plain
    with ExitStack() as stack:

        def more(connections: int) -> int:
            while connections > 0:
                clients = [stack.enter_context(connect(port)) for _ in range(min(connections, TOGETHER))]
                for client in clients:
                    client.sendall(loads.request(load, port))
                for client in clients:
                    answer = receive(client)
                    if answer.status != 200 or not (answer.read1() if load is loads.HOLD else answer.read()):
                        sys.exit(f"{one.proxy.name} answers {answer.status} on load {load.name!r}")
                connections -= len(clients)
            return sum(process.rss for process in processes.memory(one.pid))

        before = more(count // 10)
        return (more(count - count // 10) - before) / (count - count // 10)


def installed(name: str, known: dict[str, Environment], python: str) -> int | None:
    if name in known:
        return known[name].size()
    if name == "aigw":
        return environments.size_of_aigw(python)
    debian = {"nginx": ("nginx", "nginx-common"), "haproxy": ("haproxy",)}
    return environments.size_of_debian(*debian[name]) if name in debian else None


# under load -----------------------------------------------------------------------------------------------------------


def measure(running: list[Running], options: argparse.Namespace, folder: Path) -> tuple[Measured, Counter[Proxy]]:
    """All rounds, and how many answers each proxy gave in all.

    A second of warming up on each load comes first and is no measurement.
    """
    measured: Measured = defaultdict(lambda: defaultdict(list))
    asked: Counter[Proxy] = Counter()
    for number in range(options.rounds + 1):
        turn = number % len(running)
        for load in options.loads:
            for one in running[turn:] + running[:turn]:  # each proxy follows each other one in turn
                if one.proxy.workers > 1 and not load.two:
                    continue
                result = run(one, load, options.duration if number else 1, folder)
                asked[one.proxy] += result.requests
                if number:
                    measured[load.name][one.proxy].append(result)
        print(f"round {number} of {options.rounds} done", file=sys.stderr)
    order = {one.proxy: place for place, one in enumerate(running)}
    return {
        name: dict(sorted(found.items(), key=lambda item: order[item[0]])) for name, found in measured.items()
    }, asked


def run(one: Running, load: Load, seconds: int, folder: Path) -> Measurement:
    proxy, connections = one.proxy, load.connections
    if proxy.slow:
        seconds *= 5
        if load.streamed:
            connections = max(1, connections // 10)
    before = processes.cpu(one.pid)
    seen = loads.drive(load, proxy.stream if load.streamed else proxy.plain, LOAD_CORE, seconds, connections, folder)
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


# what it was measured with --------------------------------------------------------------------------------------------


def version(name: str, known: dict[str, Environment], python: str) -> str:
    if name in known:
        return known[name].version
    commands = {
        "nginx": ["nginx", "-v"],
        "haproxy": ["haproxy", "-v"],
        "aigw": [python, "-P", "-m", "aigw", "--version"],
    }
    return f"{name} {words[0]}" if (words := re.findall(r"\d[\d.]*", said(commands[name]))) else name


def kind_of_aigw(python: str) -> str:
    """Whether its data path is compiled: half of what an exchange costs."""
    return "it is compiled" if "compiled" in said([python, "-P", "-m", "aigw", "--version"]) else "it is interpreted"


def said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().partition("\n")[0]


def conditions(options: argparse.Namespace) -> str:
    """What a figure is worth nothing without."""
    build = said([options.python, "-c", "import sys; print(' '.join(sys.version.split()))"])
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = [
        f"Measured on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())} with `{shlex.join(['python', *sys.argv])}`.",
        f"{options.rounds} rounds of {options.duration} s; the load average was {os.getloadavg()[0]:.1f} at the start.",
        "",
        f"- machine: {model[0].partition(':')[2].strip() if model else os.uname().machine}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB, {said(['uname', '-sr'])}, {resource.getrlimit(resource.RLIMIT_NOFILE)[1]:,} descriptors",
        f"- aigw runs on CPython {build}; {kind_of_aigw(options.python)}",
        f"- load generators: {said(['wrk', '-v']).partition(' Copyright')[0]}, and {hey()}",
    ]
    return "\n".join(lines)


def hey() -> str:
    """It has no option that says its version."""
    known = said(["dpkg-query", "--show", "--showformat", "${Version}", "hey"]) if shutil.which("dpkg-query") else ""
    return f"hey {known if known[:1].isdigit() else 'of unknown version'}"


def access_log(proxy: Proxy, folder: Path, answers: int) -> str:
    """The log is part of the work: its lines must be at least the answers that were counted."""
    with proxies.access_log(folder, proxy.workers).open("rb") as log:
        lines = sum(1 for _ in log)
    return f"aigw's access log, {proxy.workers} worker(s): {lines:,} lines; answers counted under load: {answers:,}."


if __name__ == "__main__":
    sys.exit(main())
