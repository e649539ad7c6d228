"""Limits with one, two and four workers: counted together, kept by a reload, and given back by the dead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from admin.calls import AdminServe
from fakes import Answer, connect, post
from load import ASK, PATH
from processes import Serve

pytestmark = pytest.mark.unmeasured

LARGE = json.dumps(ASK | {"max_tokens": 1_000_000_000}).encode()
SLOW = json.dumps(ASK | {"stream": True, "max_tokens": 1000}).encode()


def config(workers: int, *limits: str) -> str:
    return (
        f"workers: {workers}\nupstreams: {{mock: {{provider: mock}}}}\n"
        f'gateways: {{default: {{auth: none, models: {{"*": mock}}, limits: [{", ".join(limits)}]}}}}\n'
    )


async def ask(serve: Serve, who: str, body: bytes | None = None) -> Answer:
    """On a connection of its own: whichever worker takes it."""
    client = await connect("127.0.0.1", serve.port)
    try:
        body = body or json.dumps(ASK).encode()
        return await client.ask(post(PATH, body, b"x-mock: tokens=1", f"x-who: {who}".encode()))
    finally:
        client.writer.transport.abort()


async def one_by_one(serve: Serve, who: str, count: int) -> int:
    """How many are admitted."""
    return sum([(await ask(serve, who)).status == 200 for _ in range(count)])


@pytest.mark.parametrize("workers", [1, 2, 4])
async def test_all_workers_count_together_and_a_reload_keeps_what_they_counted(tmp_path: Path, workers: int) -> None:
    per = 'per: "header:x-who"'
    with AdminServe(tmp_path, config(workers, f"{{requests: 10/1h, {per}}}", "{requests: 1000/day}")) as serve:
        assert await one_by_one(serve, "a", 16) == 10
        together = await asyncio.gather(*(ask(serve, "b") for _ in range(40)))
        admitted = sum(answer.status == 200 for answer in together)
        assert 10 <= admitted <= 10 + workers - 1
        left = {answer.headers["x-ratelimit-remaining-requests"] for answer in together if answer.status == 429}
        assert left == {"0"}
        plan = serve.call("POST", "/explain", {"path": PATH, "model": "x", "headers": {"x-who": "a"}}).json
        assert [limit["left"] for limit in plan["limits"]] == [0, 990 - admitted]
        assert plan["refusal"]["code"] == "rate_limit_exceeded"
        labels = 'gateway="default",limit="requests/1h per header:x-who on gateway",shadow="false"'
        counted = f"aigw_limit_rejections_total{{{labels}}} {46 - admitted}.0"
        assert counted.encode() in serve.call("GET", "//metrics").body
        path = tmp_path / "config.yaml"
        path.write_text(config(workers, f"{{requests: 15/1h, {per}}}", "{requests: 30/day}"))
        serve.signal(signal.SIGHUP)
        serve.err.find("generation 2 serves")
        assert await one_by_one(serve, "a", 8) == 5
        assert await one_by_one(serve, "b", 8) == 15 - admitted
        assert await one_by_one(serve, "c", 8) == 0  # of the day's 30, all are used
        refused = await ask(serve, "c")
        assert refused.json()["error"]["code"] == "insufficient_quota"


async def streams(serve: Serve, stack: ExitStack, count: int) -> None:
    """So many under way, which end with `stack`."""
    for _ in range(count):
        client = await connect("127.0.0.1", serve.port)
        # the callback holds the client: later releases of 3.11 close what a writer that is gone leaves open
        stack.callback(lambda client=client: client.writer.transport.abort())
        await client.send(post(PATH, SLOW, b"x-mock: tokens=1000, rate=1"))
        assert (await client.read(b"\n\n")).startswith(b"HTTP/1.1 200 OK")


def kill_a_busy_one(serve: Serve) -> int:
    """How many exchanges ended with it."""
    for worker in serve.workers:
        os.kill(worker, signal.SIGKILL)
        mark = f'"worker":{worker},'
        record = serve.out.wait(lambda lines: next((line for line in lines if mark in line), None), mark)  # noqa: B023
        if lost := int(json.loads(record)["exchanges"]):
            return lost
    raise AssertionError("nobody was busy")


async def test_a_killed_worker_gives_back_what_it_held_and_loses_no_count(tmp_path: Path) -> None:
    limits = "{concurrency: 6}", "{requests: 100/1h}", "{tokens: 1000000/1h}"
    with Serve(tmp_path, config(2, *limits)) as serve, ExitStack() as stack:
        await streams(serve, stack, 6)
        assert (await ask(serve, "a")).status == 429
        lost = kill_a_busy_one(serve)
        await streams(serve, stack, lost)
        refused = await ask(serve, "a")
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        stack.close()
        gone = '"end":"client_gone"'
        await asyncio.to_thread(serve.out.wait, lambda lines: sum(gone in line for line in lines) == 6, "six ends")
        answer = await ask(serve, "a")
        assert answer.headers["x-ratelimit-remaining-requests"] == str(100 - 6 - lost - 1)
        reserved = (6 + lost) * (len(SLOW) // 4 + 1000)  # which counts where no end told of a usage
        left = 1_000_000 - reserved - answer.json()["usage"]["total_tokens"]
        refused = await ask(serve, "a", LARGE)
        assert refused.headers["x-ratelimit-remaining-tokens"] == str(left)
