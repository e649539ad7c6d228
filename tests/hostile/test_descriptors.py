"""More clients than there are descriptors: whoever is over the bound gets a 503 or waits, and nobody is closed on in
silence."""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import CHAT, get, post
from processes import PATIENCE, Serve, Upstream

pytestmark = pytest.mark.unmeasured

LIMIT = 256  # descriptors that the gateway may have
ROOM = (LIMIT - 64) // 2  # an exchange needs two; 64 are for everything else
CLIENTS = 1000
FULL = 2.0  # seconds
TICK = os.sysconf("SC_CLK_TCK")

CONFIG = """
upstreams: {up: {provider: http, targets: [{url: "URL"}]}}
gateways: {default: {auth: none, rules: [{name: all, path: "/*", upstream: up}]}}
"""

SILENT = "closed without a word"
WAITING = "waits"
# Held by the upstream: two descriptors each as long as it lasts.
HANGING = post("/v1/chat/completions", CHAT, b"x-mock: stall")
PING = get("/__/ping")


@pytest.fixture
def few_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is started as `python` may open `LIMIT` files and cannot raise that; this process may open many."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -n {LIMIT}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Many clients at once, each of which says `raw` as soon as it is connected and then only listens."""

    def __init__(self, port: int, count: int, raw: bytes) -> None:
        self._raw = raw
        self._selector = selectors.DefaultSelector()
        self._heard: dict[socket.socket, bytes] = {}
        self._ended: dict[socket.socket, str] = {}
        for _ in range(count):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            self._heard[sock] = b""
            self._selector.register(sock, selectors.EVENT_WRITE)

    def listen(self, seconds: float, enough: Callable[[Counter[str]], object] = lambda told: False) -> None:
        """Take what comes in that time, or until it is enough."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not enough(self.tell()):
            for key, events in self._selector.select(left):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if events & selectors.EVENT_WRITE:
                    with contextlib.suppress(OSError):
                        sock.send(self._raw)
                    self._selector.modify(sock, selectors.EVENT_READ)
                else:
                    self._read(sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
        except ConnectionError:
            data = b""
        self._heard[sock] += data
        if not data:
            self._ended[sock] = "closed"
            self._selector.unregister(sock)

    def say(self, raw: bytes) -> None:
        """Something more, from everyone."""
        for sock in self._heard:
            sock.sendall(raw)

    def tell(self) -> Counter[str]:
        """How many heard which status, how many wait, and how many were closed without an answer."""
        return Counter(
            heard[9:12].decode() if heard else SILENT if sock in self._ended else WAITING
            for sock, heard in self._heard.items()
        )

    @property
    def answers(self) -> list[bytes]:
        return list(self._heard.values())

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._heard:
            sock.close()
        self._selector.close()


def cpu(pids: list[int]) -> float:
    """Seconds that the processes have run."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def ask(port: int) -> bytes:
    """The first bytes of the answer to a ping."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(PING)
        return sock.recv(12)


def test_a_thousand_clients_and_256_descriptors(tmp_path: Path, few_descriptors: None) -> None:
    with Upstream() as up, Serve(tmp_path, CONFIG.replace("URL", up.url)) as serve:
        said = len(serve.err.lines)
        with Crowd(serve.port, CLIENTS, HANGING) as crowd:
            crowd.listen(PATIENCE, lambda told: told[SILENT] or (told["200"] >= ROOM and told["503"]))
            # full: who is in stays in, who is over the bound is told so or waits, and that costs next to nothing
            before = cpu(serve.processes())
            crowd.listen(FULL)
            assert cpu(serve.processes()) - before < 0.2 * FULL
            told = crowd.tell()
            assert set(told) == {"200", "503", WAITING}
            assert told["200"] == ROOM
        # released: at most 1 s on a machine that has nothing else to do
        started = time.monotonic()
        assert ask(serve.port) == b"HTTP/1.1 200"
        assert time.monotonic() - started < 5
        assert len(serve.err.lines) - said <= 1 + FULL
        assert serve.stop() == 0


TWO_UPSTREAMS = """
upstreams:
  a: {provider: http, targets: [{url: "A"}]}
  b: {provider: http, targets: [{url: "B"}]}
gateways:
  default:
    auth: none
    rules:
      - {name: a, path: "/a/*", upstream: a, strip_path: true}
      - {name: b, path: "/b/*", upstream: b, strip_path: true}
"""


def test_idle_connections_make_room_for_others(tmp_path: Path, few_descriptors: None) -> None:
    """As many clients as there may be, all at one upstream and then all at another."""
    with Upstream() as a, Upstream() as b:
        config = TWO_UPSTREAMS.replace("A", a.url).replace("B", b.url)
        with Serve(tmp_path, config) as serve:
            first, second = (post(f"/{name}/v1/chat/completions", CHAT, b"x-mock: latency=1") for name in "ab")
            with Crowd(serve.port, ROOM, first) as crowd:
                crowd.listen(PATIENCE, lambda told: told["200"] == ROOM)
                crowd.say(second)
                crowd.listen(PATIENCE, lambda told: all(heard.count(b"HTTP/1.1 ") == 2 for heard in crowd.answers))
                assert {heard.count(b"HTTP/1.1 200 ") for heard in crowd.answers} == {2}
            assert serve.stop() == 0


def test_clients_over_the_bound_are_told_so_and_the_others_stay(tmp_path: Path) -> None:
    with Upstream() as up, Serve(tmp_path, CONFIG.replace("URL", up.url) + "bounds: {connections: 20}\n") as serve:
        clients = [socket.create_connection(("127.0.0.1", serve.port), PATIENCE) for _ in range(20)]
        for sock in clients:
            sock.sendall(PING)
            assert sock.recv(12) == b"HTTP/1.1 200"
        with Crowd(serve.port, 100, PING) as crowd:
            crowd.listen(PATIENCE, lambda told: told["503"] == 100)
            assert crowd.tell() == {"503": 100}
            for answer in crowd.answers:
                assert b"\r\nx-aigw-error: too_many_connections\r\n" in answer
                assert b"\r\nconnection: close\r\n" in answer
            for sock in clients:
                sock.recv(65536)
                sock.sendall(PING)
                assert sock.recv(12) == b"HTTP/1.1 200"
        for sock in clients:
            sock.close()
        assert serve.stop() == 0
