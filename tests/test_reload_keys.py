"""Every key of the config takes effect by reload: each is changed while the gateway serves, and what is seen of it
differs.

One case per key. A case has the config before and after, and a look at the running gateway that answers what the key
decides. The same gateway sees both configs, one after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from fakes import Answer, Connection, Running, Seen, Stub, get, in_turn, ok, post, running, stub, until
from fakes import deaf as no_answer

from aigw.config import schema, store
from aigw.proxy.health import Watched

CHAT = "/v1/chat/completions"
KEY, OTHER_KEY = "sk-one", "sk-two"
DIGEST, OTHER_DIGEST = (hashlib.sha256(key.encode()).hexdigest() for key in (KEY, OTHER_KEY))
PAST, FUTURE = "2020-01-01", "2100-01-01"


@dataclass
class World:
    """The gateway, and two upstreams that tell what they saw; `up` takes no body while `deaf`."""

    gw: Running
    up: Stub
    other: Stub
    deaf: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, model: str = "gpt-4o", *lines: bytes, path: str = CHAT, stream: bool = False) -> Answer:
        body = json.dumps({"model": model, "messages": [], "stream": stream}).encode()
        return await self.gw.ask(post(path, body, *lines))

    async def status(self, *words: Any, **more: Any) -> int:
        return (await self.ask(*words, **more)).status

    async def body(self, *words: Any, **more: Any) -> bytes:
        return (await self.ask(*words, **more)).body

    async def seen(self, *words: Any, **more: Any) -> Seen:
        """The request as the upstream `up` saw it."""
        await self.ask(*words, **more)
        return self.up.last


Look = Callable[[World], Awaitable[object]]


def header(name: str, *words: Any, **more: Any) -> Look:
    async def look(world: World) -> object:
        return (await world.ask(*words, **more)).headers.get(name)

    return look


def status(*words: Any, **more: Any) -> Look:
    return lambda world: world.status(*words, **more)


def body(*words: Any, **more: Any) -> Look:
    return lambda world: world.body(*words, **more)


def sent(read: Callable[[Seen], object], *words: Any, **more: Any) -> Look:
    async def look(world: World) -> object:
        return read(await world.seen(*words, **more))

    return look


def sent_header(name: str, *words: Any, **more: Any) -> Look:
    return sent(lambda seen: seen.headers.get(name), *words, **more)


SECOND = 1.0  # what a look waits for what should come at once, or not at all


async def within(coroutine: Awaitable[bytes]) -> object:
    """What it answers, or that it does not."""
    try:
        async with asyncio.timeout(SECOND):
            return (await coroutine)[:12]
    except TimeoutError:
        return "nothing"
    except (ConnectionResetError, asyncio.IncompleteReadError):
        return "cut"


def ends(*parts: bytes, head: bool = False) -> Look:
    """How the gateway ends a connection, or answers, when no more than these bytes come."""

    async def look(world: World) -> object:
        client = await world.gw.connect()
        await client.send(*parts)
        try:
            return await within(client.reader.readuntil(b"\r\n\r\n") if head else client.reader.read(-1))
        finally:
            client.writer.transport.abort()
            await until(lambda: not world.gw.open_ends, "the exchange gone")

    return look


def with_upstream(begins: bytes, look: Look) -> Look:
    """The same, with an upstream that sends this and then stops."""

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(begins)
        await connection.gone()

    async def held(world: World) -> object:
        before, world.up.handler = world.up.handler, handler
        try:
            return await look(world)
        finally:
            world.up.handler = before

    return held


async def deaf_upload(world: World) -> object:
    """The upstream takes the head and nothing of 24 MB behind it."""
    world.deaf.set()
    client = await world.gw.connect()
    client.writer.write(post("/x", b"x" * (24 << 20)))
    try:
        return await within(client.reader.readuntil(b"\r\n\r\n"))
    finally:
        client.writer.transport.abort()
        world.deaf.clear()
        await until(lambda: not world.gw.open_ends, "the exchange gone")


async def deaf_client(world: World) -> object:
    """A client that takes nothing of 24 MB: whether it is still there."""
    client = await world.gw.connect(buffer=4096)
    client.stop_reading()

    async def gone() -> bytes:
        await until(lambda: not world.gw.gateway.clients, "the client gone")
        return b"gone"

    await until(lambda: world.gw.gateway.clients, "the client")
    try:
        client.writer.write(get("/x"))
        await until(lambda: world.gw.gateway.slow, "it is slow")
        return await within(gone())
    finally:
        client.writer.transport.abort()
        await until(lambda: not world.gw.open_ends, "the exchange gone")


async def lingers(world: World) -> object:
    """How long a refused client that goes on sending is read, as the gateway intends."""
    client = await world.gw.connect()
    await client.send(b"NONSENSE\r\n\r\n")
    await client.read(b"\r\n\r\n")
    (connection,) = world.gw.gateway.clients
    left = round(connection.deadline - time.monotonic())
    client.writer.transport.abort()
    await until(lambda: not world.gw.gateway.clients, "it is gone")
    return left


async def greets_slowly(world: World) -> object:
    """What becomes of a client that only begins a handshake."""
    gateway = world.gw.gateway
    gateway.secure({"": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)})
    try:
        return await ends(b"\x16")(world)
    finally:
        gateway.secure({"": None})
        await until(lambda: not gateway._greeting, "nobody greets any more")


async def kept(world: World) -> object:
    """How long the connection to the upstream may stay idle."""
    await world.ask()
    (connection,) = [one for pool in world.gw.gateway.pools.values() for one in pool.idle]
    return round(connection.idle_until - time.monotonic())


async def two_clients(world: World) -> object:
    one, other = await world.gw.connect(), await world.gw.connect()
    try:
        return [(await client.ask(get("/__/ping"))).status for client in (one, other)]
    except ConnectionError:
        return "refused"
    finally:
        for client in (one, other):
            client.writer.transport.abort()
        await until(lambda: not world.gw.gateway.clients, "both gone")


async def two_bodies(world: World) -> object:
    """Two clients whose bodies are collected at once: how the second one is answered."""
    one, other = await world.gw.connect(), await world.gw.connect()
    part = post(CHAT, b"{" * 900)[:-1]
    await one.send(part)
    await until(lambda: world.gw.gateway.collected, "the first collected")
    await other.send(part)
    try:
        return await within(other.reader.readuntil(b"\r\n\r\n"))
    finally:
        for client in (one, other):
            client.writer.transport.abort()
        await until(lambda: not world.gw.gateway.clients, "both gone")


async def models(world: World) -> object:
    return [
        entry["id"] for entry in (await world.gw.ask(get("/v1/models", b"x-api-key: " + KEY.encode()))).json()["data"]
    ]


async def spread(world: World) -> object:
    """How four requests were shared out."""
    return sorted([await world.body() for _ in range(4)])


async def queued(world: World) -> object:
    """Two at once, where the first one holds the upstream."""
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok())

    before, world.up.handler = world.up.handler, handler
    count = len(world.up.seen)
    first = asyncio.create_task(world.ask())
    await until(lambda: len(world.up.seen) > count, "the first at the upstream")
    second = asyncio.create_task(world.ask())
    try:
        await asyncio.wait({second}, timeout=SECOND)
        seen = len(world.up.seen) - count
        return (seen, second.result().status if second.done() else "waits")
    finally:
        release.set()
        await asyncio.gather(first, second)
        world.up.handler = before


async def record_of(world: World, name: str, *lines: bytes) -> object:
    count = len(world.gw.lines)
    await world.ask("gpt-4o", *lines)
    return (await world.gw.record(count))[name]


def costs(**usage: Any) -> Look:
    """What an exchange costs whose answer reports this usage."""
    answer = ok(json.dumps({"usage": usage}).encode())

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(answer)

    async def look(world: World) -> object:
        before, world.up.handler = world.up.handler, handler
        try:
            return await record_of(world, "cost")
        finally:
            world.up.handler = before

    return look


def priced(text: str) -> str:
    return top(f"prices: {{gpt-4o: {{{text}}}}}")


async def hashed(world: World) -> object:
    """How many upstreams eight sessions went to."""
    return len({await world.body("gpt-4o", b"x-session-id: %d" % number) for number in range(8)})


def watched(world: World, name: str = "a") -> Watched:
    return world.gw.gateway.health._by_text[f"up/{name}".encode()]


def probed(failing: bytes | None) -> Look:
    """What the operator is told while probes fail (None: are not answered), and then succeed; and what a probe asks."""

    async def handler(connection: Connection, seen: Seen) -> None:
        if failing is None:
            await connection.gone()
        else:
            await connection.send(failing)

    async def look(world: World) -> object:
        before, world.up.handler = world.up.handler, handler
        told = len(world.gw.log)
        await until(lambda: len(world.gw.log) > told, "it is down")
        world.up.handler = before
        await until(lambda: watched(world).standing.state == "up", "it is up")
        return (world.gw.log[told:], world.up.last.line)

    return look


async def next_probe(world: World) -> object:
    """In how many seconds the target is probed again."""
    one = watched(world)
    one.next_probe = 0.0
    await until(lambda: one.next_probe, "it is probed")
    return round(one.next_probe - time.monotonic())


def failed(times: int) -> Look:
    """The states of both targets once the first has failed so often."""

    async def look(world: World) -> object:
        world.up.handler = ok(status=b"500 Oops")
        count = len(world.up.seen)
        while len(world.up.seen) < count + times:
            await world.ask()
        return [watched(world, name).standing.state for name in "ab"]

    return look


async def rests(world: World) -> object:
    """For how many seconds a target rests that says a day."""
    world.up.handler = ok(b"", b"retry-after: 86400", status=b"429 Too Many Requests")
    await world.ask()
    return round(max(watched(world, name).standing.until for name in "ab") - time.monotonic())


async def twice(world: World) -> object:
    """Two who say who they are, one after the other."""
    return [await world.status("gpt-4o", b"x-who: " + who, *WITH_KEY) for who in (b"a", b"b")]


async def both_keys(world: World) -> object:
    return [await world.status("gpt-4o", b"x-aigw-key: " + key.encode()) for key in (OTHER_KEY, KEY)]


async def together(world: World) -> object:
    """Two at once: how many of them the upstream sees."""
    release = asyncio.Event()

    async def handler(connection: Connection, seen: Seen) -> None:
        await release.wait()
        await connection.send(ok())

    before, world.up.handler = world.up.handler, handler
    count = len(world.up.seen)
    tasks = [asyncio.create_task(world.ask("gpt-4o", *WITH_KEY)) for _ in range(2)]
    await until(lambda: len(world.up.seen) - count + sum(task.done() for task in tasks) == 2, "both judged")
    seen = len(world.up.seen) - count
    release.set()
    await asyncio.gather(*tasks)
    world.up.handler = before
    return seen


def failing(first: bytes, look: Look) -> Look:
    """The same, with an upstream whose first answer is this."""

    async def failed(world: World) -> object:
        before, world.up.handler = world.up.handler, in_turn(first, ok(b"up"))
        try:
            return await look(world)
        finally:
            world.up.handler = before

    return failed


UPSTREAM = "{up: {provider: openai, targets: [{url: URL}]}}"
GATEWAY = "{default: {auth: none, models: {gpt-4o: up}}}"


def top(text: str, *, upstreams: str = UPSTREAM, gateways: str = GATEWAY) -> str:
    return f"{text}\nupstreams: {upstreams}\ngateways: {gateways}\n"


def up(text: str) -> str:
    return top("", upstreams=f"{{up: {{{text}}}, other: {{provider: openai, targets: [{{url: OTHER}}]}}}}")


def target(text: str) -> str:
    return up(f"provider: openai, targets: [{{{text}}}]")


def gateway(text: str) -> str:
    return top("", gateways=f"{{default: {{{text}}}}}")


def client_key(text: str) -> str:
    return gateway(f"keys: {{k: {{{text}}}}}, models: {{gpt-4o: up, o1: up}}")


def model(text: str, name: str = "gpt-4o") -> str:
    return gateway(f'auth: none, models: {{"{name}": {text}}}')


def rule(text: str, upstream: str = "provider: http, targets: [{url: URL}]") -> str:
    return top(
        "",
        upstreams=f"{{up: {{{upstream}}}, ai: {{provider: openai, targets: [{{url: URL}}]}}}}",
        gateways=f"{{default: {{auth: none, models: {{gpt-4o: ai}}, rules: [{{{text}}}]}}}}",
    )


WITH_KEY = (b"x-api-key: " + KEY.encode(),)

PLAIN = f'keys: {{k: {{sha256: "{DIGEST}"}}}}, models: {{gpt-4o: up}}'
BEGUN = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n"
LARGE = b"HTTP/1.1 200 OK\r\ncontent-length: 25165824\r\n\r\n" + b"x" * (24 << 20)
REQUEST = post(CHAT, b'{"model": "gpt-4o"}')
UPLOAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\ncontent-length: 100\r\n\r\n{"
HTTP = "provider: http, targets: [{url: URL}]"
AI = "provider: openai, targets: [{url: URL}]"
SECURE = "provider: openai, targets: [{url: SECURE}]"
ONE = "provider: openai, targets: [{url: URL, name: a}]"
TWO = "provider: openai, targets: [{url: URL, name: a}, {url: OTHER, name: b}]"
SAME = "provider: openai, targets: [{url: URL, name: a}, {url: URL, name: b}]"
DOWN = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"


STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAMED = post(CHAT, b'{"model": "gpt-4o", "stream": true}')
BUSY = ok(status=b"429 Too Many Requests")


def digest_of(key: str) -> str:
    return f'sha256: "{hashlib.sha256(key.encode()).hexdigest()}"'


def limited(where: str, place: str) -> dict[str, tuple[str, str, Look]]:
    """The cases of a `limits`, wherever it stands: `place` is a config with LIMITS in it."""

    def with_limits(limits: str) -> str:
        return "prices: {gpt-4o: {input: 1, output: 1}}" + place.replace("LIMITS", f"limits: [{limits}]")

    cases = {
        "requests": (with_limits(""), with_limits("{requests: 1/1h}"), twice),
        "tokens": (with_limits(""), with_limits("{tokens: 1/1h}"), twice),
        "input_tokens": (with_limits(""), with_limits("{input_tokens: 1/1h}"), twice),
        "output_tokens": (with_limits(""), with_limits("{output_tokens: 1/month}"), twice),
        "cost": (with_limits(""), with_limits("{cost: 0/day}"), twice),
        "concurrency": (with_limits(""), with_limits("{concurrency: 1}"), together),
        "shadow": (with_limits("{requests: 1/1h}"), with_limits("{requests: 1/1h, shadow: true}"), twice),
    }
    if "upstreams" not in where:
        cases["per"] = with_limits("{requests: 1/1h}"), with_limits('{requests: 1/1h, per: "header:x-who"}'), twice
    return cases


def grouped(name: str) -> str:
    return gateway(
        f"limits: [{{requests: 1/1h, per: group}}], models: {{gpt-4o: up}}, keys: {{"
        f"k: {{{digest_of(KEY)}, group: {name}}}, other: {{{digest_of(OTHER_KEY)}, group: a}}}}"
    )


COUNTED = "auth: none, models: {gpt-4o: up}, limits: [{requests: 9/1h}]"
# where limits may stand
LIMITED = {
    "gateways.*": gateway(f"{PLAIN}, LIMITS"),
    "gateways.*.keys.*": gateway(f"keys: {{k: {{{digest_of(KEY)}, LIMITS}}}}, models: {{gpt-4o: up}}"),
    "gateways.*.models.*": gateway("auth: none, models: {gpt-4o: {upstream: up, LIMITS}}"),
    "gateways.*.rules.*": gateway("auth: none, models: {gpt-4o: up}, rules: [{name: a, path: /*, LIMITS}]"),
    "upstreams.*": up(f"{AI}, LIMITS"),
    "upstreams.*.targets.*": target("url: URL, LIMITS"),
}
# key: the config before and after, and where it shows
CASES: dict[str, tuple[str, str, Look]] = {
    "answer_headers.server-timing": (top(""), top("answer_headers: {server-timing: false}"), header("server-timing")),
    "answer_headers.x-ratelimit": (
        gateway(COUNTED),
        "answer_headers: {x-ratelimit: false}" + gateway(COUNTED),
        header("x-ratelimit-limit-requests"),
    ),
    "answer_headers.x-aigw": (top(""), top("answer_headers: {x-aigw: false}"), header("x-aigw-upstream")),
    "bounds.body": (top(""), top("bounds: {body: 1KiB}"), status("x" * 1020)),
    "bounds.collected": (top("bounds: {body: 1KiB}"), top("bounds: {body: 1KiB, collected: 1KiB}"), two_bodies),
    "bounds.connections": (top(""), top("bounds: {connections: 1}"), two_clients),
    "bounds.head": (top(""), top("bounds: {head: 1KiB, url: 1KiB}"), status("gpt-4o", b"x-long: " + b"x" * 1000)),
    "bounds.headers": (top(""), top("bounds: {headers: 8}"), status("gpt-4o", *[b"x-%d: x" % n for n in range(9)])),
    "bounds.url": (top(""), top("bounds: {url: 256}"), status(path=CHAT + "?" + "x" * 256)),
    "timeouts.client_read": (top(""), top("timeouts: {client_read: 100ms}"), ends(UPLOAD, head=True)),
    "timeouts.client_write": (
        rule("name: a, path: /*, upstream: up"),
        "timeouts: {client_write: 100ms}\n" + rule("name: a, path: /*, upstream: up"),
        with_upstream(LARGE, deaf_client),
    ),
    "timeouts.handshake": (top(""), top("timeouts: {handshake: 100ms}"), greets_slowly),
    "timeouts.keepalive": (top(""), top("timeouts: {keepalive: 100ms}"), ends()),
    "timeouts.linger": (top(""), top("timeouts: {linger: 60s}"), lingers),
    "timeouts.request": (top(""), top("timeouts: {request: 100ms}"), ends(b"GET / HTTP/1.1\r\n", head=True)),
    "timeouts.total": (top(""), top("timeouts: {total: 200ms}"), with_upstream(BEGUN, ends(REQUEST))),
    "trusted_proxies": (
        top(""),
        top("trusted_proxies: [127.0.0.0/8]"),
        lambda world: record_of(world, "client", b"x-forwarded-for: 192.0.2.7"),
    ),
    "upstreams.*.api_key": (up(AI), up(f"{AI}, api_key: sk-new"), sent_header("authorization")),
    "upstreams.*.balance": (
        up("provider: openai, targets: [{url: URL, weight: 3}, {url: OTHER}]"),
        up("provider: openai, targets: [{url: URL, weight: 3}, {url: OTHER}], balance: least_connections"),
        spread,
    ),
    "upstreams.*.dialects": (up(AI), up(f"{AI}, dialects: [anthropic]"), status()),
    "upstreams.*.eject.after": (
        up(f"{TWO}, eject: {{after: 5}}"),
        up(f"{TWO}, eject: {{after: 1}}"),
        failed(1),
    ),
    "upstreams.*.eject.for": (
        up(f"{SAME}, eject: {{for: 30s}}"),
        up(f"{SAME}, eject: {{for: 60s}}"),
        rests,
    ),
    "upstreams.*.hash_on": (
        up(f"{TWO}, balance: hash, hash_on: ip"),
        up(f"{TWO}, balance: hash, hash_on: header:x-session-id"),
        hashed,
    ),
    "upstreams.*.health.healthy_after": (
        up(f"{ONE}, health: {{path: /h, interval: 50ms, healthy_after: 1}}"),
        up(f"{ONE}, health: {{path: /h, interval: 50ms, healthy_after: 2}}"),
        probed(DOWN),
    ),
    "upstreams.*.health.interval": (
        up(f"{ONE}, health: {{interval: 20s}}"),
        up(f"{ONE}, health: {{interval: 40s}}"),
        next_probe,
    ),
    "upstreams.*.health.path": (
        up(f"{ONE}, health: {{path: /h, interval: 50ms}}"),
        up(f"{ONE}, health: {{path: /i, interval: 50ms}}"),
        probed(DOWN),
    ),
    "upstreams.*.health.timeout": (
        up(f"{ONE}, health: {{path: /h, interval: 50ms, timeout: 200ms, unhealthy_after: 1}}"),
        up(f"{ONE}, health: {{path: /h, interval: 50ms, timeout: 300ms, unhealthy_after: 1}}"),
        probed(None),
    ),
    "upstreams.*.health.unhealthy_after": (
        up(f"{ONE}, health: {{path: /h, interval: 50ms, unhealthy_after: 1}}"),
        up(f"{ONE}, health: {{path: /h, interval: 50ms, unhealthy_after: 2}}"),
        probed(DOWN),
    ),
    "upstreams.*.headers": (up(AI), up(f"{AI}, headers: {{x-team: search}}"), sent_header("x-team")),
    "upstreams.*.max_connections": (up(AI), up(f"{AI}, max_connections: 1"), queued),
    "upstreams.*.provider": (up(AI), up("provider: anthropic, targets: [{url: URL}]"), status()),
    "upstreams.*.usage": (
        up(AI),
        up(f"{AI}, usage: inject"),
        sent(lambda seen: b"include_usage" in seen.body, "gpt-4o", stream=True),
    ),
    "upstreams.*.targets.*.api_key": (
        target("url: URL"),
        target("url: URL, api_key: sk-new"),
        sent_header("authorization"),
    ),
    "upstreams.*.targets.*.headers": (
        target("url: URL"),
        target("url: URL, headers: {x-rack: a}"),
        sent_header("x-rack"),
    ),
    "upstreams.*.targets.*.model": (
        target("url: URL"),
        target("url: URL, model: {gpt-4o: other}"),
        sent(lambda seen: json.loads(seen.body)["model"]),
    ),
    "upstreams.*.targets.*.name": (
        target("url: URL, name: one"),
        target("url: URL, name: two"),
        lambda world: record_of(world, "target"),
    ),
    "upstreams.*.targets.*.url": (target("url: URL"), target("url: OTHER"), body()),
    "upstreams.*.targets.*.weight": (
        up("provider: openai, targets: [{url: URL, weight: 3}, {url: OTHER, weight: 1}]"),
        up("provider: openai, targets: [{url: URL, weight: 1}, {url: OTHER, weight: 3}]"),
        spread,
    ),
    "upstreams.*.timeouts.connect": (
        up("provider: openai, targets: [{url: DEAF}]"),
        up("provider: openai, targets: [{url: DEAF}], timeouts: {connect: 100ms}"),
        ends(REQUEST, head=True),
    ),
    "upstreams.*.timeouts.first_byte": (
        up(AI),
        up(f"{AI}, timeouts: {{first_byte: 100ms}}"),
        with_upstream(b"", ends(REQUEST, head=True)),
    ),
    "upstreams.*.timeouts.first_token": (
        up(AI),
        up(f"{AI}, timeouts: {{first_token: 100ms}}"),
        with_upstream(STREAM, ends(STREAMED, head=True)),
    ),
    "upstreams.*.timeouts.idle": (up(AI), up(f"{AI}, timeouts: {{idle: 100ms}}"), with_upstream(BEGUN, ends(REQUEST))),
    "upstreams.*.timeouts.pool_idle": (up(AI), up(f"{AI}, timeouts: {{pool_idle: 20s}}"), kept),
    "upstreams.*.timeouts.queue": (
        up(f"{AI}, max_connections: 1"),
        up(f"{AI}, max_connections: 1, timeouts: {{queue: 100ms}}"),
        queued,
    ),
    "upstreams.*.timeouts.send": (
        rule("name: a, path: /*, upstream: up", f"{HTTP}, timeouts: {{send: 2s}}"),
        rule("name: a, path: /*, upstream: up", f"{HTTP}, timeouts: {{send: 100ms}}"),
        deaf_upload,
    ),
    "upstreams.*.tls.ca": (up(f"{SECURE}, tls: {{ca: wrong.pem}}"), up(f"{SECURE}, tls: {{ca: ca.pem}}"), status()),
    "upstreams.*.tls.server_name": (
        up(f"{SECURE}, tls: {{ca: ca.pem}}"),
        up(f"{SECURE}, tls: {{ca: ca.pem, server_name: other.example}}"),
        status(),
    ),
    "upstreams.*.tls.verify": (up(SECURE), up(f"{SECURE}, tls: {{verify: false}}"), status()),
    "gateways.*.auth": (gateway("models: {gpt-4o: up}"), gateway("auth: none, models: {gpt-4o: up}"), status()),
    "gateways.*.hosts": (
        gateway("auth: none, models: {gpt-4o: up}"),
        gateway("auth: none, models: {gpt-4o: up}, hosts: [a.example]"),
        status(),
    ),
    "gateways.*.keys.*.disabled": (
        client_key(digest_of(KEY)),
        client_key(f"{digest_of(KEY)}, disabled: true"),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.keys.*.expires": (
        client_key(f"{digest_of(KEY)}, expires: {FUTURE}"),
        client_key(f"{digest_of(KEY)}, expires: {PAST}"),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.keys.*.group": (grouped("a"), grouped("b"), both_keys),
    "gateways.*.keys.*.models": (
        client_key(digest_of(KEY)),
        client_key(f"{digest_of(KEY)}, models: [o1]"),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.keys.*.previous.sha256": (
        client_key(f"{digest_of('new')}, previous: {{{digest_of('x')}, until: {FUTURE}}}"),
        client_key(f"{digest_of('new')}, previous: {{{digest_of(KEY)}, until: {FUTURE}}}"),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.keys.*.previous.until": (
        client_key(f"{digest_of('new')}, previous: {{{digest_of(KEY)}, until: {FUTURE}}}"),
        client_key(f"{digest_of('new')}, previous: {{{digest_of(KEY)}, until: {PAST}}}"),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.keys.*.resources": (
        gateway(f"keys: {{k: {{{digest_of(KEY)}, models: [gpt-4o]}}}}, models: {{gpt-4o: up}}, "
                "rules: [{name: a, path: /*, default: up}]"),
        gateway(f"keys: {{k: {{{digest_of(KEY)}, models: [gpt-4o], resources: true}}}}, models: {{gpt-4o: up}}, "
                "rules: [{name: a, path: /*, default: up}]"),
        status("gpt-4o", *WITH_KEY, path="/v1/files"),
    ),
    "gateways.*.keys.*.sha256": (
        client_key(digest_of(KEY)),
        client_key(digest_of("new")),
        status("gpt-4o", *WITH_KEY),
    ),
    "gateways.*.models.*.hidden": (model("{upstream: up}"), model("{upstream: up, hidden: true}"), models),
    "gateways.*.models.*.list": (model("{upstream: up}", "*"), model("{upstream: up, list: [o1]}", "*"), models),
    "gateways.*.models.*.model": (
        model("{upstream: up}"),
        model("{upstream: up, model: real}"),
        sent(lambda seen: json.loads(seen.body)["model"]),
    ),
    "gateways.*.models.*.split": (
        gateway("auth: none, models: {gpt-4o: up, one: {upstream: up, model: real}}"),
        gateway("auth: none, models: {gpt-4o: {split: {one: 1}}, one: {upstream: up, model: real}}"),
        sent(lambda seen: json.loads(seen.body)["model"]),
    ),
    "gateways.*.models.*.fallback": (
        up(AI).replace("gpt-4o: up", "gpt-4o: up, o1: other"),
        up(AI).replace("gpt-4o: up", "gpt-4o: {upstream: up, fallback: [o1]}, o1: other"),
        failing(BUSY, body()),
    ),
    "gateways.*.models.*.timeouts.first_token": (
        model("{upstream: up}"),
        model("{upstream: up, timeouts: {first_token: 100ms}}"),
        with_upstream(STREAM, ends(STREAMED, head=True)),
    ),
    "gateways.*.rules.*.timeouts.first_token": (
        gateway("auth: none, models: {gpt-4o: up}, rules: [{name: a, path: /*}]"),
        gateway("auth: none, models: {gpt-4o: up}, rules: [{name: a, path: /*, timeouts: {first_token: 100ms}}]"),
        with_upstream(STREAM, ends(STREAMED, head=True)),
    ),
    "gateways.*.models.*.timeouts.total": (
        model("{upstream: up}"),
        model("{upstream: up, timeouts: {total: 200ms}}"),
        with_upstream(BEGUN, ends(REQUEST)),
    ),
    "gateways.*.models.*.upstream": (
        up(AI),
        up(AI).replace("gpt-4o: up", "gpt-4o: {upstream: other}"),
        body(),
    ),
    "gateways.*.rules.*.default": (
        gateway("auth: none, models: {gpt-4o: up}, rules: [{name: a, path: /*}]"),
        gateway("auth: none, models: {gpt-4o: up}, rules: [{name: a, path: /*, default: up}]"),
        status(path="/v1/files"),
    ),
    "gateways.*.rules.*.methods": (
        rule("name: a, path: /*, upstream: up"),
        rule("name: a, path: /*, upstream: up, methods: [GET]"),
        status(),
    ),
    "gateways.*.rules.*.name": (
        rule("name: a, path: /*, upstream: up"),
        rule("name: b, path: /*, upstream: up"),
        lambda world: record_of(world, "rule"),
    ),
    "gateways.*.rules.*.path": (
        rule("name: a, path: /a/*, upstream: up"),
        rule("name: a, path: /b/*, upstream: up"),
        status(path="/a/x"),
    ),
    "gateways.*.rules.*.preserve_host": (
        rule("name: a, path: /*, upstream: up"),
        rule("name: a, path: /*, upstream: up, preserve_host: true"),
        sent(lambda seen: seen.headers["host"] == "gw"),
    ),
    "gateways.*.rules.*.public": (
        gateway("models: {gpt-4o: up}, rules: [{name: a, path: /*}]"),
        gateway("models: {gpt-4o: up}, rules: [{name: a, path: /*, public: true}]"),
        status(),
    ),
    "gateways.*.rules.*.strip_path": (
        rule("name: a, path: /a/*, upstream: up"),
        rule("name: a, path: /a/*, upstream: up, strip_path: true"),
        sent(lambda seen: seen.line, path="/a/x"),
    ),
    "gateways.*.rules.*.timeouts.total": (
        rule("name: a, path: /*, upstream: up"),
        rule("name: a, path: /*, upstream: up, timeouts: {total: 200ms}"),
        with_upstream(BEGUN, ends(REQUEST)),
    ),
    "gateways.*.rules.*.upstream": (
        rule("name: a, path: /*, upstream: up"),
        rule("name: a, path: /*"),
        lambda world: record_of(world, "upstream"),
    ),
    "prices.*.audio_input": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, audio_input: 2"),
        costs(prompt_tokens=9, prompt_tokens_details={"audio_tokens": 3}),
    ),
    "prices.*.audio_output": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, audio_output: 2"),
        costs(prompt_tokens=9, completion_tokens=5, completion_tokens_details={"audio_tokens": 3}),
    ),
    "prices.*.cache_write": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, cache_write: 2"),
        costs(input_tokens=9, cache_creation_input_tokens=3),
    ),
    "prices.*.cache_write_1h": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, cache_write_1h: 2"),
        costs(input_tokens=9, cache_creation_input_tokens=3, cache_creation={"ephemeral_1h_input_tokens": 2}),
    ),
    "prices.*.cached": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, cached: 0.5"),
        costs(prompt_tokens=9, prompt_tokens_details={"cached_tokens": 3}),
    ),
    "prices.*.input": (priced("input: 1, output: 1"), priced("input: 2, output: 1"), costs(prompt_tokens=9)),
    "prices.*.output": (priced("input: 1, output: 1"), priced("input: 1, output: 2"), costs(completion_tokens=9)),
    "prices.*.reasoning": (
        priced("input: 1, output: 1"),
        priced("input: 1, output: 1, reasoning: 2"),
        costs(completion_tokens=9, completion_tokens_details={"reasoning_tokens": 3}),
    ),
}  # fmt: skip
for where, place in LIMITED.items():
    CASES |= {f"{where}.limits.*.{unit}": case for unit, case in limited(where, place).items()}

# A retry may stand on four levels: where each says it, and each of its keys without effect and with one.
RETRIED: dict[str, Callable[[str], str]] = {
    "gateways.*": lambda text: client_key(digest_of(KEY)).replace("models:", f"{text}, models:"),
    "gateways.*.keys.*": lambda text: client_key(f"{digest_of(KEY)}, {text}"),
    "gateways.*.models.*": lambda text: client_key(digest_of(KEY)).replace(
        "gpt-4o: up,", f"gpt-4o: {{upstream: up, {text}}},"
    ),
    "gateways.*.rules.*": lambda text: client_key(digest_of(KEY)).replace(
        "models:", f"rules: [{{name: a, path: /*, {text}}}], models:"
    ),
}
for level, stated in RETRIED.items():
    for name, without in {
        "attempts": "attempts: 1, when: [429]",
        "when": "when: [503]",
        "budget": "budget: 0%",
    }.items():
        CASES[f"{level}.retry.{name}"] = (
            stated(f"retry: {{{without}}}"),
            stated("retry: {attempts: 2, when: [429], budget: 20%}"),
            failing(BUSY, status("gpt-4o", *WITH_KEY)),
        )

# Of the process rather than of its gateway: shown with processes.
ELSEWHERE = {
    "admin.listen": "admin/test_api.py::test_it_moves_by_reload_and_over_a_unix_socket",
    "admin.listen.address": "admin/test_api.py::test_it_moves_by_reload_and_over_a_unix_socket",
    "admin.listen.tls.cert": "admin/test_tls.py::test_from_start_to_end",
    "admin.listen.tls.key": "admin/test_tls.py::test_from_start_to_end",
    "admin.token": "admin/test_api.py::test_with_a_token_and_its_change_by_reload",
    "access_log": "test_reload.py::test_the_access_log_goes_elsewhere",
    "drain.delay": "test_reload.py::test_drain_s_times_take_effect",
    "drain.timeout": "test_reload.py::test_drain_s_times_take_effect",
    "listen": "test_reload.py::test_listeners_come_and_go",
    "listen.*.address": "test_reload.py::test_listeners_come_and_go",
    "listen.*.tls.cert": "test_tls_listener.py::test_a_certificate_is_renewed_under_load",
    "listen.*.tls.key": "test_tls_listener.py::test_a_certificate_is_renewed_under_load",
    "usage_store.path": "admin/test_usage.py::test_usage_is_kept_elsewhere_from_a_reload_on",
    "usage_store.retention": "admin/test_usage.py::test_usage_is_kept_elsewhere_from_a_reload_on",
    "workers": "test_reload.py::test_more_and_fewer_workers_lose_no_connection",
}


def leaves() -> set[str]:
    """Keys that hold a value rather than further keys."""
    keys = schema.keys()
    return keys - {key.rpartition(".")[0].removesuffix(".*") for key in keys}


def test_every_key_has_its_case() -> None:
    assert not leaves() - CASES.keys() - ELSEWHERE.keys()
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (Path(__file__).parent / file).read_text()


@pytest.mark.parametrize("key", CASES)
async def test_a_key_takes_effect(key: str, tmp_path: Path) -> None:
    before, after, look = CASES[key]
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "wrong.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    deaf = asyncio.Event()

    async def on_head(connection: Connection, seen: Seen) -> None:
        if deaf.is_set():
            connection.stop_reading()
            await asyncio.Event().wait()  # until the stub stops

    async with (
        stub(ok(b"up"), on_head=on_head) as one,
        stub(ok(b"other")) as other,
        stub(ssl=context) as secure,
        no_answer() as silent,
    ):
        places = {
            "SECURE": f"https://localhost:{secure.port}",
            "OTHER": other.url,
            "DEAF": silent.url,
            "URL": one.url,
        }

        def read(text: str) -> dict[str, Any]:
            for name, url in places.items():
                text = text.replace(f"url: {name}", f'url: "{url}"')
            return store.parse(text, name="config.yaml", base=tmp_path, environ={}).document

        async with running(read(before), buffer=4096) as gw:
            world = World(gw, one, other, deaf)
            first = await look(world)
            gw.apply(read(after), 2)
            assert await look(world) != first, first
