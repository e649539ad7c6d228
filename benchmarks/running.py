"""Proxies that run: started, asked by hand, and looked at whether they do what they are compared for."""

import http.client
import json
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import loads
import processes
import upstream
from loads import LOADS, Load
from proxies import Proxy

START_TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Running:
    """A proxy that has given its first answer, `started_in` seconds after the command."""

    proxy: Proxy
    pid: int
    started_in: float


def start(proxy: Proxy, core: int | None, folder: Path, stack: ExitStack) -> Running:
    for path, text in proxy.files.items():
        path.write_text(text)
    log = folder / f"{proxy.name}{proxy.workers}.log"
    began = time.monotonic()
    process = processes.start(proxy.command, core, log, proxy.environment)
    stack.callback(processes.stop, process)
    while not answers(proxy.plain):
        if process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
            sys.exit(f"{proxy.name} did not start: {' '.join(proxy.command)}\n{log.read_text()}")
        time.sleep(0.002)
    return Running(proxy, process.pid, time.monotonic() - began)


def answers(port: int) -> bool:
    """Some listen before they can forward, and answer with an error until then."""
    try:
        return ask(LOADS[0], port)[0] == 200
    except (ConnectionError, http.client.HTTPException):
        return False


def ask(load: Load, port: int) -> tuple[int, bytes]:
    """One request on a connection of its own; status and decoded body."""
    with connect(port) as client:
        client.sendall(loads.request(load, port))
        answer = receive(client)
        return answer.status, answer.read()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def receive(client: socket.socket) -> http.client.HTTPResponse:
    """The answer, read up to its body."""
    answer = http.client.HTTPResponse(client, method="POST")
    answer.begin()
    return answer


def check(proxy: Proxy, load: Load) -> None:
    """The answer through the proxy must be the upstream's, or there is nothing to compare: byte for byte, or, of one
    that writes answers anew, the same content."""
    status, body = ask(load, proxy.stream if load.streamed else proxy.plain)
    expected = upstream.EVENT * upstream.EVENTS if load.streamed else upstream.ANSWER
    same = body == expected if proxy.exact else content(body, load.streamed) == content(expected, load.streamed)
    if status != 200 or not same:
        sys.exit(f"{proxy.name} answers {status} on load {load.name!r}, not what the upstream sent: {body[:500]!r}")


def content(body: bytes, streamed: bool) -> str:
    """The text that the model said."""
    if not streamed:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: {")]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)
