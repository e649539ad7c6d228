"""Questions after the gateway's own health: answered before anything else, and not logged."""

from __future__ import annotations

import pytest
from fakes import document, gateway, get, key, ok, post, rule, running, serving, stub, target, upstream

OWN = ["/__/ping", "/__/healthz", "/__/readyz"]
SHARED = ["/healthz", "/livez", "/readyz", "/api/hello"]


@pytest.mark.parametrize("path", OWN + SHARED)
@pytest.mark.parametrize("host", [b"gw", b"nobody.example"])
async def test_a_probe_needs_no_key_no_gateway_and_no_upstream(path: str, host: bytes) -> None:
    gateways = {"a": gateway(hosts=["gw"], auth="keys", keys={"k": key("good")})}
    async with running(serving("http://127.0.0.1:1") | {"gateways": gateways}) as gw:
        client = await gw.connect()
        answer = await client.ask(get(path, host=host))
        assert (answer.status, answer.body) == (200, b'{"status":"ok"}')
        head = await client.ask(get(path, host=host, method=b"HEAD"), head_only=True)
        assert (head.status, head.headers["content-length"]) == (200, "15")
        assert (await client.ask(get(path, host=host))).status == 200
        assert not gw.lines


async def test_head_of_the_root_is_a_probe_and_get_is_not() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        assert (await gw.ask(get("/", method=b"HEAD"), head_only=True)).status == 200
        assert (await gw.ask(get("/"))).status == 404


async def test_a_post_is_no_probe() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        assert (await gw.ask(post("/healthz"))).status == 404


@pytest.mark.parametrize("path", SHARED)
async def test_a_rule_that_names_the_path_exactly_comes_first(path: str) -> None:
    async with stub(ok(b"theirs")) as up:
        config = document(
            {"up": upstream(target(up.url), provider="http")},
            gateways={"default": gateway(rule("probe", path, upstream="up"), rule())},
        )
        async with running(config) as gw:
            assert (await gw.ask(get(path))).body == b"theirs"
            assert len(gw.lines) == 1


async def test_a_rule_that_takes_everything_does_not_take_the_probes() -> None:
    async with stub(ok(b"theirs")) as up:
        up_spec = upstream(target(up.url), provider="http")
        async with running(document({"up": up_spec}, gateways={"default": gateway(rule(upstream="up"))})) as gw:
            for path in OWN + SHARED:
                assert (await gw.ask(get(path))).body == b'{"status":"ok"}'
            assert (await gw.ask(get("/healthz/x"))).body == b"theirs"


@pytest.mark.parametrize("path", OWN)
async def test_no_rule_takes_the_gateways_own(path: str) -> None:
    async with stub(ok(b"theirs")) as up:
        up_spec = upstream(target(up.url), provider="http")
        config = document({"up": up_spec}, gateways={"default": gateway(rule("x", path, upstream="up"))})
        async with running(config) as gw:
            assert (await gw.ask(get(path))).body == b'{"status":"ok"}'


async def test_a_probe_with_a_body_that_did_not_come_ends_the_connection() -> None:
    async with running(serving("http://127.0.0.1:1")) as gw:
        client = await gw.connect()
        answer = await client.ask(get("/healthz", b"content-length: 30"))
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await client.send(get("/__/ping"))
        assert await client.ended() == b""
