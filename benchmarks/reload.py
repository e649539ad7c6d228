"""Measures what a reload costs those who are served meanwhile: the longest pause of a worker.

    python benchmarks/reload.py [--sizes 1000,10000] [--reloads N] [--python PATH]

A gateway with so many keys, models and rules serves; a client asks its worker for /__/ping, one request after the other
on one connection, while the file is saved again and again with one key more. The worker has core 0 for itself. The
client shares core 1 with the supervisor and the child that reads the config. Both come first on their cores
(SCHED_FIFO, which takes root), so that what the client waits for is the worker. The longest answer while nothing was
reloaded says what the machine adds.
"""

import argparse
import contextlib
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import processes
from proxies import free_port

WORKER_CORE, OTHER_CORE = 0, 1
PING = b"GET /__/ping HTTP/1.1\r\nhost: gateway\r\n\r\n"
QUIET = 3.0  # seconds without a reload


def config(port: int, log: Path, size: int, more: int) -> str:
    lines = [f"listen: 127.0.0.1:{port}", f"access_log: {log}", "admin: {listen: 127.0.0.1:0}"]
    lines += ["upstreams: {mock: {provider: mock}}", "gateways:", "  default:", "    keys:"]
    lines += (
        f'      key-{n}: {{sha256: "{hashlib.sha256(b"%d" % n).hexdigest()}", models: [model-{n % size}]}}'
        for n in range(size + more)
    )
    lines.append("    models:")
    lines += (f"      model-{n}: {{upstream: mock, model: real-{n}}}" for n in range(size))
    lines.append("    rules:")
    lines += (f'      - {{name: rule-{n}, path: "/{n}/*", upstream: mock}}' for n in range(size))
    return "\n".join([*lines, ""])


def ping(client: socket.socket) -> float:
    """Seconds until the answer."""
    began = time.perf_counter()
    client.sendall(PING)
    client.recv(4096)
    return time.perf_counter() - began


def generation(log: Path) -> int:
    """The newest that is served, as the supervisor said."""
    found = re.findall(r"generation (\d+) serves", log.read_text())
    return int(found[-1]) if found else 1


def measure(size: int, reloads: int, python: str, folder: Path) -> str:
    port, log = free_port(), folder / f"serve-{size}.log"
    path = folder / f"config-{size}.yaml"
    path.write_text(config(port, folder / "access.log", size, 0))
    process = processes.start([python, "-P", "-m", "aigw", "serve", "--config", str(path)], OTHER_CORE, log)
    try:
        client = connect(port, process, log)
        worker = processes.tree(process.pid)[-1]
        for thread in map(int, os.listdir(f"/proc/{worker}/task")):
            os.sched_setaffinity(thread, {WORKER_CORE})
            first(thread)
        until = time.monotonic() + QUIET
        quiet = []
        while time.monotonic() < until:
            quiet.append(ping(client))
        busy, took = [], []
        for number in range(1, reloads + 1):
            began = time.monotonic()
            changed = folder / "changed.yaml"
            changed.write_text(config(port, folder / "access.log", size, number))
            changed.rename(path)
            while generation(log) <= number:
                busy += [ping(client) for _ in range(200)]
            took.append(time.monotonic() - began)
        client.close()
    finally:
        processes.stop(process)
    return (
        f"{size:8,}{max(quiet) * 1e3:14.1f}{max(busy) * 1e3:15.1f}{percentile(busy, 0.999) * 1e3:12.2f}"
        f"{percentile(busy, 0.5) * 1e6:10.0f}{max(took):16.1f}"
    )


def first(pid: int) -> None:
    """It comes before everything else on its core; its children do not."""
    with contextlib.suppress(PermissionError):  # without root, what else runs there is part of the figures
        os.sched_setscheduler(pid, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int((len(values) - 1) * part)]


def connect(port: int, process: "subprocess.Popen[bytes]", log: Path) -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        try:
            client = socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"aigw did not start: {log.read_text()}")
            time.sleep(0.01)
        else:
            ping(client)
            return client


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the longest pause of a worker during reloads.")
    parser.add_argument("--sizes", default="1000,10000", metavar="A,B", help="keys, models and rules (1000,10000)")
    parser.add_argument("--reloads", type=int, default=5, metavar="N", help="of each (5)")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="interpreter that runs aigw")
    options = parser.parse_args()
    if not {WORKER_CORE, OTHER_CORE} <= processes.cores():
        print("two cores are needed: one for the worker, one for all else", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, {OTHER_CORE})
    first(0)
    print(f"{'':>22}longest answer ms")
    print(f"{'size':>8}{'no reload':>14}{'while reloading':>15}{'p99.9':>12}{'p50 us':>10}{'reload s':>16}")
    with tempfile.TemporaryDirectory(prefix="aigw-reload-") as name:
        for size in options.sizes.split(","):
            print(measure(int(size), options.reloads, options.python, Path(name)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
