"""Measures what clients and upstreams that are slow on purpose cost: slowhttptest's four attacks, and large bodies to
slow ends.

    python benchmarks/slow.py [--length S] [--connections N] [--only H,B,...] [--config short,default] [--python PATH]

Each attack (slow heads, slow bodies, slow readers of small and of large answers, Apache's ranges) runs against a
gateway with short deadlines and one with the defaults. Meanwhile a probe asks once a second through the whole gateway,
and a few witnesses, slow in the same way, see when exactly they are ended. Then 1 GB goes to a slow reader, 1 GB to a
slow upstream, and many slow readers come at once. benchmarks/README.md says what is printed.
"""

import argparse
import asyncio
import http.client
import os
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import processes
import proxies
import uvloop
from upstream import ANSWER

CORE, LOAD_CORE = 0, 1
KIB, MIB = 1024, 1024 * 1024
PIECE = b"x" * 64 * KIB
LARGE = 8 * MIB  # of an answer that is not read: more than the kernel takes for the gateway
HUGE = 1024 * MIB
PACED = 64 * MIB  # of it slowly: 1 MiB/s
READERS = 100
WITNESSES = 5

CONFIG = """
listen: 127.0.0.1:{port}
access_log: {log}
upstreams:
  instant: {{provider: http, targets: [{{url: "http://127.0.0.1:{instant}"}}]}}
  large: {{provider: http, targets: [{{url: "http://127.0.0.1:{large}"}}]}}
gateways:
  default:
    auth: none
    rules: [{{name: all, path: "/*", upstream: instant}}, {{name: large, path: "/large/*", upstream: large}}]
"""
SHORT = "timeouts: {request: 5s, client_read: 5s, client_write: 5s}\n"
# Seconds by config and the name of the timeout.
DEADLINES = {
    "short": {"request": 5.0, "client_read": 5.0, "client_write": 5.0},
    "default": {"request": 30.0, "client_read": 60.0, "client_write": 60.0},
}
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d+)")


@dataclass(frozen=True, slots=True)
class Attack:
    """`options` are slowhttptest's; `timeout` is what ends a witness, who sends `opening` and then nothing."""

    name: str
    about: str
    options: tuple[str, ...]
    path: str = "/"
    timeout: str | None = None
    opening: bytes = b""


ATTACKS = (
    Attack("H", "slow heads", ("-H",), timeout="request", opening=b"GET / HTTP/1.1\r\nhost: gw\r\nx: "),
    Attack(
        "B",
        "slow bodies",
        ("-B", "-s", "8192"),
        timeout="client_read",
        opening=b"POST / HTTP/1.1\r\nhost: gw\r\ncontent-length: 8192\r\n\r\nx",
    ),
    Attack("X", "slow readers, 49 bytes", ("-X", "-w", "10", "-y", "20", "-n", "5", "-z", "1", "-k", "3")),
    Attack(
        "XL",
        f"slow readers, {LARGE // MIB} MiB",
        ("-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32"),
        path="/large/",
        timeout="client_write",
        opening=b"GET /large/ HTTP/1.1\r\nhost: gw\r\n\r\n",
    ),
    Attack("R", "ranges", ("-R", "-a", "10", "-b", "3000")),
)


# the upstream ---------------------------------------------------------------------------------------------------------


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A GET with a large answer, which is huge where the path says so, and a PUT slowly in its beginning."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            left = int(length[1]) if length else 0
            paced = PACED
            while left:
                if paced > 0:
                    paced -= MIB
                    await asyncio.sleep(1.0)
                piece = await reader.readexactly(min(left, MIB))
                left -= len(piece)
            size = 0 if length else HUGE if b"/huge " in head else LARGE
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
            for _ in range(size // len(PIECE)):
                writer.write(PIECE)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def pour(port: int) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


@contextmanager
def upstreams(folder: Path) -> Iterator[tuple[int, int]]:
    """The ports of one that answers at once and of one whose answers are large: processes, none delays the other."""
    instant, large = proxies.upstream(), proxies.free_port()
    running = [
        processes.start(instant.command, LOAD_CORE, folder / "instant"),
        processes.start([sys.executable, __file__, "--pour", str(large)], LOAD_CORE, folder / "large"),
    ]
    try:
        yield instant.plain, large
    finally:
        for process in running:
            processes.stop(process)


# the gateway ----------------------------------------------------------------------------------------------------------


class Gateway:
    """A running one. `pid` is the worker's."""

    def __init__(self, python: str, folder: Path, text: str, targets: tuple[int, int]) -> None:
        self.port = proxies.free_port()
        path, log = folder / "aigw.yaml", folder / "access.log"
        path.write_text(CONFIG.format(port=self.port, log=log, instant=targets[0], large=targets[1]) + text)
        self.process = processes.start(
            [python, "-P", "-m", "aigw", "serve", "--config", str(path)], CORE, folder / "output"
        )
        deadline = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"the gateway does not answer; its output:\n{(folder / 'output').read_text()}")
            time.sleep(0.05)
        (self.pid,) = [
            pid
            for pid in processes.tree(self.process.pid)
            if b"aigw.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def _answers(self) -> bool:
        try:
            return probe(self.port) > 0
        except OSError:
            return False

    @property
    def rss(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def probe(port: int, timeout: float = 5.0) -> float:
    """Seconds that one exchange took, on a connection of its own. Raises OSError."""
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", "/", b"{}")
        with connection.getresponse() as response:
            if (response.status, response.read()) != (200, ANSWER):
                raise OSError(f"status {response.status}")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from None
    finally:
        connection.close()
    return time.monotonic() - started


@dataclass(slots=True)
class Watch:
    """What was seen of a gateway over some time: probes in seconds (those that failed are counted), memory, sockets."""

    gateway: Gateway
    probes: list[float] = field(default_factory=list)
    failed: int = 0
    rss_before: int = 0
    rss: int = 0
    open_before: int = 0
    open: int = 0
    cpu: float = 0.0

    def begin(self) -> None:
        self.rss_before, self.open_before = self.gateway.rss, self.gateway.descriptors
        used = processes.cpu(self.gateway.process.pid)
        self.cpu = -used.user - used.system

    def look(self) -> None:
        try:
            self.probes.append(probe(self.gateway.port))
        except OSError:
            self.failed += 1
        self.rss = max(self.rss, self.gateway.rss)
        self.open = max(self.open, self.gateway.descriptors)

    def until(self, done: Callable[[], bool]) -> None:
        """Look once a second."""
        due = time.monotonic()
        while not done():
            self.look()
            due += 1.0
            time.sleep(max(due - time.monotonic(), 0.1))

    def end(self) -> None:
        used = processes.cpu(self.gateway.process.pid)
        self.cpu += used.user + used.system

    def __str__(self) -> str:
        ordered = sorted(self.probes) or [float("nan")]
        figures = (statistics.median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])
        latency = "/".join(f"{seconds * 1e3:.1f}" for seconds in figures)
        return (
            f"{len(self.probes)}/{len(self.probes) + self.failed} probes, p50/p99/max {latency} ms; "
            f"{self.rss_before / MIB:.1f} -> {self.rss / MIB:.1f} MiB; "
            f"{self.open - self.open_before} descriptors more; CPU {self.cpu:.2f} s"
        )


# attacks --------------------------------------------------------------------------------------------------------------


def witness(port: int, opening: bytes) -> tuple[str, float]:
    """What a client that stops after `opening` was told, and after how many seconds it was ended."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
        sock.connect(("127.0.0.1", port))
        started = time.monotonic()
        sock.sendall(opening)
        waiting = select.poll()
        # One that does not read takes nothing from its socket, not even the end: a reset shows all the same.
        waiting.register(sock, 0 if b"/large" in opening else select.POLLIN)
        if not waiting.poll(120_000):
            return "nothing", float("nan")
        seconds = time.monotonic() - started
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return "reset", seconds
        return sock.recv(12).decode().removeprefix("HTTP/1.1 ") or "closed", seconds


def attack(gateway: Gateway, one: Attack, connections: int, length: int, deadlines: dict[str, float]) -> None:
    watch = Watch(gateway)
    watch.look()
    watch.begin()
    command = ["slowhttptest", *one.options, "-c", str(connections), "-r", "200", "-i", "10", "-l", str(length)]
    command += ["-u", f"http://127.0.0.1:{gateway.port}{one.path}", "-p", "3", "-v", "1"]
    with (
        tempfile.TemporaryFile() as output,
        ThreadPoolExecutor(WITNESSES) as threads,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as slow,
    ):
        seen = []
        if one.timeout is not None:
            for _ in range(WITNESSES):
                watch.look()
                seen.append(threads.submit(witness, gateway.port, one.opening))
                time.sleep(1.0)
        watch.until(lambda: slow.poll() is not None)
        watch.until(lambda: all(end.done() for end in seen))
        output.seek(0)
        said = re.sub(r"\x1b\[[0-9;]*m", "", output.read().decode(errors="replace"))
    watch.end()
    verdict = re.findall(r"(?:service available|Exit status):\s*(.*\S)", said)
    print(f"{one.name:3} {one.about}: {watch}")
    per_connection = (watch.rss - watch.rss_before) / connections / KIB
    print(f"    {per_connection:.1f} KiB a connection; slowhttptest: {', '.join(verdict[-2:])}")
    if one.timeout is not None:
        ends = [end.result() for end in seen]
        took = [seconds for _, seconds in ends]
        told = ", ".join(sorted({what for what, _ in ends}))
        wanted = deadlines[one.timeout]
        print(f"    {one.timeout} {wanted:g} s: witnesses ended after {min(took):.2f} to {max(took):.2f} s ({told})")


# large bodies ---------------------------------------------------------------------------------------------------------


def read_slowly(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"GET /large/huge HTTP/1.1\r\nhost: gw\r\n\r\n")
        left = HUGE
        paced = PACED
        head = sock.makefile("rb")
        while head.readline().strip():
            pass
        while left:
            if paced > 0:
                paced -= MIB
                time.sleep(1.0)
            left -= len(head.read(min(left, MIB)))


def write_fast(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"PUT /large/slow HTTP/1.1\r\nhost: gw\r\ncontent-length: %d\r\n\r\n" % HUGE)
        for _ in range(HUGE // len(PIECE)):
            sock.sendall(PIECE)
        if not sock.recv(64).startswith(b"HTTP/1.1 200"):
            raise SystemExit("the upload was not answered with 200")


def not_read(port: int, count: int) -> None:
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for sock in socks:
        sock.sendall(b"GET /large/huge HTTP/1.1\r\nhost: gw\r\n\r\n")
    for _ in range(10):
        for sock in socks:
            sock.recv(16 * KIB)
        time.sleep(1.0)
    for sock in socks:
        sock.close()


def pressure(gateway: Gateway) -> None:
    for name, run in (
        (f"1 GiB to a reader at 1 MiB/s for {PACED // MIB} s, then as fast as it comes", read_slowly),
        (f"1 GiB to an upstream at 1 MiB/s for {PACED // MIB} s, then as fast as it comes", write_fast),
        (f"{READERS} readers of 1 GiB at 16 KiB/s", lambda port: not_read(port, READERS)),
    ):
        watch = Watch(gateway)
        watch.look()
        watch.begin()
        with ThreadPoolExecutor(1) as threads:
            running = threads.submit(run, gateway.port)
            watch.until(running.done)
            running.result()
        watch.end()
        print(f"{name}: {watch}")
        print(f"    {(watch.rss - watch.rss_before) / MIB:+.1f} MiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=60, help="seconds of each attack (default 60)")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--only", default=",".join([*(one.name for one in ATTACKS), "pressure"]))
    parser.add_argument("--config", default="short,default", help="deadlines: short, default or both")
    parser.add_argument("--python", default=sys.executable, help="interpreter that runs the gateway")
    parser.add_argument("--pour", type=int, help=argparse.SUPPRESS)  # be the upstream with large answers, at this port
    given = parser.parse_args()
    if given.pour is not None:
        uvloop.run(pour(given.pour))
    if shutil.which("slowhttptest") is None:
        raise SystemExit("slowhttptest is not installed: apt-get install -y slowhttptest")
    wanted = given.only.split(",")
    with tempfile.TemporaryDirectory() as name, upstreams(folder := Path(name)) as targets:
        for config in given.config.split(","):
            gateway = Gateway(given.python, folder, SHORT if config == "short" else "", targets)
            try:
                print(f"\ndeadlines: {config}; {given.connections} connections, {given.length} s each", flush=True)
                for one in ATTACKS:
                    if one.name in wanted:
                        attack(gateway, one, given.connections, given.length, DEADLINES[config])
                        sys.stdout.flush()
            finally:
                processes.stop(gateway.process)
        if "pressure" in wanted:
            gateway = Gateway(given.python, folder, "", targets)
            try:
                print("\nlarge bodies", flush=True)
                pressure(gateway)
            finally:
                processes.stop(gateway.process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
