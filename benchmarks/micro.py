"""Where each microsecond of an exchange goes: the proxy's own code on fake transports, without a kernel.

    python benchmarks/micro.py [--rounds 15] [--count 2000] [--json FILE] [--check FILE] [--profile]

Each step is timed alone, in rounds; the best round is printed, since whatever else a machine does only ever adds. The
first rows are whole exchanges: a request in, the request out, the response in, the response out, its record. In place,
with cold caches and the kernel's share, an exchange costs more: `compare.py` measures that. What it costs to hold a
limit, to count and to log is said together at the end: what an exchange takes more with a request limit on its key, and
what its last step takes, which counts it and writes its record.

It measures the aigw that is installed for its interpreter, and says whether that is compiled.

`--json` keeps the figures, `--check` compares with those that were kept, on the same machine and interpreter: it prints
what moved by more than a tenth, and exits with status 1 where a step became slower by that.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time
from typing import Any, NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import fakes  # the documents that tests are written with

from aigw import ledger
from aigw.admit import MODEL
from aigw.config import snapshot
from aigw.errors import Failure
from aigw.forward import request_prefix
from aigw.gateway import Gateway
from aigw.policies import keys
from aigw.process import build
from aigw.proxy.admission import Memory
from aigw.proxy.client import ClientConnection
from aigw.proxy.connection import Outbox
from aigw.proxy.ending import finish
from aigw.proxy.exchange import Exchange
from aigw.proxy.upstream import UpstreamConnection
from aigw.route import choose, find, match
from aigw.wire.jsonspan import load

BODY = b'{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hi"}]}'
# What OpenAI's Python SDK sends, less what differs from call to call.
LINES = (
    b"Host: 127.0.0.1:8081",
    b"Accept-Encoding: gzip, deflate",
    b"Connection: keep-alive",
    b"Accept: application/json",
    b"Content-Type: application/json",
    b"User-Agent: OpenAI/Python 3.54.0",
    b"X-Stainless-Lang: python",
    b"X-Stainless-Package-Version: 3.54.0",
    b"X-Stainless-OS: Linux",
    b"X-Stainless-Arch: x64",
    b"X-Stainless-Runtime: CPython",
    b"X-Stainless-Runtime-Version: 3.11.2",
    b"X-Stainless-Async: false",
    b"Authorization: Bearer sk-aigw-benchmark",
    b"x-stainless-retry-count: 0",
    b"Content-Length: %d" % len(BODY),
)
REQUEST = b"\r\n".join((b"POST /v1/chat/completions HTTP/1.1", *LINES)) + b"\r\n\r\n" + BODY
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 49\r\n\r\n" + b"x" * 49
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'fa\r\ndata: {"choices":[{"delta":{"content":"' + b"x" * 204 + b'"}}]}\n\n\r\n'


PLAIN = "exchange, heads that repeat"
LIMITED = "  with a request limit"
ENDED = "  count it and write its record"
EMPTY = "  (an empty call)"


class FakeTransport:
    """Takes what is written and says nothing."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written = data

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50000) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class NoLoop:
    """What a turn of the loop ends with is done by `Rig.end_turn`, as if many shared its price."""

    def call_soon(self, callback: Callable[[], Any]) -> None:
        pass


class Step(NamedTuple):
    name: str
    call: Callable[[], Any]


class Rig:
    """A gateway with one client and one idle upstream connection, both on fake transports."""

    def __init__(self, *limits: Any) -> None:
        """`limits` are the key's."""
        self.records: list[bytes] = []
        self.gateway = Gateway(asyncio.new_event_loop(), self.records.append, version="micro")
        self.gateway.outbox = Outbox(cast(asyncio.AbstractEventLoop, NoLoop()), self.gateway.report)
        target = fakes.target("http://127.0.0.1:9000/v1", api_key="sk-upstream")
        tenant = fakes.gateway(auth="keys", keys={"bench": fakes.key("sk-aigw-benchmark", limits=list(limits))})
        document = fakes.document({"up": fakes.upstream(target)}, gateways={"default": tenant})
        self.gateway.apply(snapshot.compile(document, 1))
        self.client = ClientConnection(self.gateway)
        self.client.connection_made(cast(asyncio.Transport, FakeTransport()))
        pool = next(iter(self.gateway.pools.values()))
        self.upstream = UpstreamConnection(pool)
        self.upstream.connection_made(cast(asyncio.Transport, FakeTransport()))
        pool.busy += 1
        pool.release(self.upstream, monotonic())
        self.count = 0

    def end_turn(self) -> None:
        """What a turn of the loop ends with; with its records nobody has anything to do here."""
        self.gateway.outbox.flush()
        self.records.clear()

    def exchange(self) -> None:
        self.client.data_received(REQUEST)
        self.upstream.data_received(ANSWER)
        self.end_turn()

    def fresh_request(self) -> bytes:
        """A head no other is equal to: a request id and a trace id, as an instrumented client sends them."""
        self.count += 1
        trace = b"traceparent: 00-%032x-%016x-01" % (self.count, self.count)
        more = b"\r\nx-request-id: req-%032x\r\n%b\r\n\r\n" % (self.count, trace)
        return REQUEST.replace(b"\r\n\r\n", more)


def best(step: Callable[[], Any], rounds: int, count: int) -> float:
    """Microseconds of one call, in the best round."""
    lowest = float("inf")
    for _ in range(rounds):
        begun = process_time()
        for _ in range(count):
            step()
        lowest = min(lowest, process_time() - begun)
    return lowest / count * 1e6


def steps(rig: Rig) -> list[Step]:
    gateway = rig.gateway
    config = gateway.snapshot
    block = REQUEST[: REQUEST.index(b"\r\n\r\n")]
    answer_block = ANSWER[: ANSWER.index(b"\r\n\r\n")]
    following = itertools.cycle([rig.fresh_request() for _ in range(40_000)])

    def fresh_exchange() -> None:
        rig.client.data_received(next(following))
        rig.upstream.data_received(ANSWER)
        rig.end_turn()

    def stream() -> None:
        rig.client.data_received(REQUEST)
        received = rig.upstream.data_received
        received(STREAM)
        for _ in range(50):
            received(EVENT)
        received(b"0\r\n\r\n")
        rig.end_turn()

    def last_head(given: bytes) -> Any:
        return gateway.requests.parse(given, config.head_bounds)

    rig.exchange()
    head = last_head(block)
    found = match(config, head)
    assert not isinstance(found, Failure)
    key = keys.admit(found.gateway, head, 0.0)
    assert not isinstance(key, Failure)
    resolved = find(found, "openai", key, "gpt-3.5-turbo")
    assert not isinstance(resolved, Failure)
    candidate = choose(resolved, gateway)
    assert not isinstance(candidate, Failure)
    memory = Memory()
    admitted = gateway.admissions.of(block, 1.0, memory)
    done = Exchange(rig.client, gateway, admitted, 1.0)
    done.model, done.candidate = "gpt-3.5-turbo", candidate
    done.admission.candidate = candidate
    done.admission.described = ledger.describe(done.admission, candidate, done.model)
    done.status, done.head_at, done.sent_at, done.acquiring_at = 200, 1.1, 1.05, 1.05
    limited = Rig(fakes.limit("requests", 1_000_000_000, 60.0, "key"))

    def end() -> None:
        done.ended = False
        finish(done, "ok", None, 1.2)

    table: list[Any] = [
        (PLAIN, rig.exchange),
        (LIMITED, limited.exchange),
        ("exchange, heads that never repeat", fresh_exchange),
        ("stream of 50 events", stream),
        ("  parse the request's head", lambda: last_head(block)),
        ("  match gateway and rule", lambda: match(config, head)),
        ("  admit the key", lambda: keys.admit(found.gateway, head, 0.0)),
        ("  all three by a pattern", lambda: gateway.admissions.of(block, 1.0, memory)),
        ("  make the exchange", lambda: Exchange(rig.client, gateway, admitted, 1.0)),
        ("  read the body", lambda: load(BODY, MODEL)),
        ("  find the model, choose the target", lambda: choose(find(found, "openai", key, "gpt-3.5-turbo"), gateway)),
        ("  write the request's head", lambda: request_prefix(config, found, candidate, head)),
        ("  parse the response's head", lambda: gateway.responses.heads.get(answer_block)),
        (ENDED, end),
        ("    write the record", lambda: ledger.record(done, b"127.0.0.1", "ok", None, 1.2, 1.2, None)),
        (EMPTY, lambda: None),
    ]
    return [Step(*row) for row in table]


MOVED = 0.1  # of a figure: less is noise


def check(before: dict[str, float], now: dict[str, float]) -> bool:
    """Prints what moved. Whether nothing became slower."""
    slower = False
    for name, figure in now.items():
        base = before.get(name)
        if base is None:
            print(f"{figure:9.2f}  {name}: new")
        elif abs(figure - base) > MOVED * base:
            slower = slower or figure > base
            print(f"{figure:9.2f}  {name}: {(figure - base) / base:+.0%} of {base:.2f}")
    for name in before.keys() - now.keys():
        print(f"{'':9}  {name}: gone")
    return not slower


def main() -> int:
    parser = argparse.ArgumentParser(description="What each step of an exchange costs, on fake transports.")
    parser.add_argument("--rounds", type=int, default=15, help="rounds per step; the best counts (default 15)")
    parser.add_argument("--count", type=int, default=2000, help="calls per round (default 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare with the figures in this file")
    parser.add_argument("--profile", action="store_true", help="profile the whole exchange with cProfile instead")
    arguments = parser.parse_args()
    rig = Rig()
    table = steps(rig)
    gc.collect()
    gc.freeze()
    gc.disable()
    if arguments.profile:
        profile(table[0].call, arguments.count * 5)
        return 0
    print(f"CPython {sys.version}, {build()}")
    print("microseconds, best of rounds")
    figures = {}
    for name, step in table:
        count = max(arguments.count // 10, 1) if name.startswith("stream") else arguments.count
        figure = figures[name.strip()] = best(step, arguments.rounds, count)
        rig.records.clear()
        print(f"{figure:9.2f}  {name}")
    limit = figures[LIMITED.strip()] - figures[PLAIN]
    counted = figures[ENDED.strip()] - figures[EMPTY.strip()]
    print(f"{limit + counted:9.2f}  one request limit, counters and log together")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    if arguments.check:
        print(f"moved by more than {MOVED:.0%} of {arguments.check}:")
        return 0 if check(json.loads(arguments.check.read_text()), figures) else 1
    return 0


def profile(step: Callable[[], Any], count: int) -> None:
    import cProfile
    import pstats

    measured = cProfile.Profile()
    measured.enable()
    for _ in range(count):
        step()
    measured.disable()
    pstats.Stats(measured).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    sys.exit(main())
