"""What the gateway says when it will not: status, code and message, in the dialect of whoever asked."""

from __future__ import annotations

import gzip
from typing import Any

import pytest
from fakes import (
    CHAT,
    Answer,
    Connection,
    Seen,
    chunked,
    document,
    gateway,
    get,
    key,
    model,
    ok,
    post,
    rule,
    running,
    serving,
    splicing,
    stub,
    target,
    until,
    upstream,
)

CHAT_PATH = "/v1/chat/completions"
GEMINI_PATH = "/v1beta/models/gemini-pro:generateContent"


def keyed(url: str, *rules: dict[str, Any], **fields: Any) -> dict[str, Any]:
    keys = {
        "demo": key("good"),
        "few": key("few", models=["gpt-4o", "small-*"]),
        "old": key("old", expires=1.0),
        "off": key("off", disabled=True),
        "turned": key("new", previous={"sha256": key("before")["sha256"], "until": 1.0}),
        "turning": key("newer", previous={"sha256": key("still")["sha256"], "until": 4e9}),
    }
    up = upstream(target(url), dialects=["openai", "anthropic", "gemini"])
    return document({"up": up}, gateways={"default": gateway(*rules, auth="keys", keys=keys)}, **fields)


def check(answer: Answer, status: int, code: str) -> str:
    """The message of an error in OpenAI's form."""
    assert (answer.status, answer.headers["x-aigw-error"]) == (status, code)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["content-type"] == "application/json"
    return str(error["message"])


# dialects -------------------------------------------------------------------------------------------------------------


async def test_openai_form() -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert "x-api-key" in check(answer, 401, "missing_key")
        assert answer.json()["error"]["code"] == "invalid_api_key"  # what OpenAI's SDKs look for
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "lines"), [("/v1/messages", []), ("/v1/files", [b"anthropic-version: 2023-06-01"])], ids=["path", "header"]
)
async def test_anthropic_form(path: str, lines: list[bytes]) -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        answer = await gw.ask(post(path, CHAT, *lines))
        assert answer.status == 401
        assert answer.json()["type"] == "error"
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.json()["request_id"] == answer.headers["request-id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "lines"),
    [(GEMINI_PATH, []), ("/v1/files", [b"x-goog-api-client: genai"]), ("/v1/files", [b"x-goog-api-key: bad"])],
    ids=["path", "client", "key"],
)
async def test_gemini_form(path: str, lines: list[bytes]) -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        answer = await gw.ask(post(path, CHAT, *lines))
        assert answer.status == 401
        error = answer.json()["error"]
        assert (error["code"], error["status"]) == (401, "UNAUTHENTICATED")


# keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([], "missing_key"),
        ([b"authorization: Basic Z29vZA=="], "missing_key"),
        ([b"authorization: Bearer "], "missing_key"),
        ([b"authorization: Bearer wrong"], "invalid_key"),
        ([b"x-api-key: wrong"], "invalid_key"),
        ([b"authorization: Bearer good", b"x-api-key: few"], "ambiguous_key"),
        ([b"x-aigw-key: wrong", b"authorization: Bearer good"], "invalid_key"),
        ([b"x-aigw-key: good", b"x-aigw-key: few"], "ambiguous_key"),
        ([b"x-api-key: old"], "expired_key"),
        ([b"x-api-key: off"], "disabled_key"),
        ([b"x-api-key: before"], "expired_key"),
    ],
)
async def test_a_key_that_is_none_is_401(lines: list[bytes], code: str) -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH, CHAT, *lines))
        check(answer, 401, code)
        record = await gw.record()
        assert (record["status"], record["end"], record["fault"], record["error"]) == (401, "refused", "client", code)
        for secret in (b"good", b"few", b"wrong", b"before"):
            assert secret not in answer.raw
            assert secret not in b"".join(gw.lines)
        assert not up.connections


@pytest.mark.parametrize(
    "line",
    [
        b"authorization: Bearer good",
        b"Authorization: bearer good",
        b"x-api-key: good",
        b"api-key: good",
        b"x-goog-api-key: good",
        b"x-aigw-key: good",
        b"x-api-key: new",
        b"x-api-key: still",
    ],
)
async def test_a_key_is_found_where_an_sdk_puts_it_and_goes_no_further(line: bytes) -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        assert (await gw.ask(post(CHAT_PATH, CHAT, line))).status == 200
        secret = line.split()[-1]
        assert secret not in up.last.raw.partition(b"\r\n\r\n")[0].split()
        assert (await gw.record())["key"] in ("demo", "turned", "turning")


async def test_a_key_in_the_query_is_taken_out_of_it_and_never_logged() -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        assert (await gw.ask(post(GEMINI_PATH + "?alt=sse&key=good&x=1"))).status == 200
        assert up.last.line == b"POST %b?alt=sse&x=1 HTTP/1.1" % GEMINI_PATH.encode()
        await gw.record()
        assert b"good" not in b"".join(gw.lines)
        assert b"alt=sse" not in b"".join(gw.lines)


async def test_a_public_rule_asks_for_no_key() -> None:
    rules = [rule("open", "/v1/chat/*", public=True), rule()]
    async with stub() as up, running(keyed(up.url, *rules)) as gw:
        assert (await gw.ask(post(CHAT_PATH))).status == 200
        assert (await gw.ask(post("/v1/embeddings"))).status == 401


# credentials of the upstream ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "line"),
    [
        ("openai", "authorization: Bearer ours"),
        ("azure", "api-key: ours"),
        ("anthropic", "x-api-key: ours"),
        ("gemini", "x-goog-api-key: ours"),
        ("http", "authorization: Bearer ours"),
    ],
)
async def test_our_credential_replaces_every_one_of_the_clients(provider: str, line: str) -> None:
    theirs = [b"authorization: Bearer theirs", b"x-api-key: theirs", b"api-key: theirs", b"x-goog-api-key: theirs"]
    async with stub() as up:
        up_spec = upstream(target(up.url), provider=provider, api_key="ours")
        async with running(document({"up": up_spec}, gateways={"default": gateway(rule(upstream="up"))})) as gw:
            assert (await gw.ask(post("/v1/x?key=theirs", CHAT, *theirs, b"x-aigw-key: theirs"))).status == 200
        assert b"theirs" not in up.last.raw
        name, _, value = line.partition(": ")
        assert up.last.headers[name] == value


async def test_a_client_may_bring_its_own_credential_beside_the_gateways_key() -> None:
    async with stub() as up:
        config = keyed(up.url)
        config["upstreams"]["up"]["api_key"] = "client"
        async with running(config) as gw:
            lines = [b"x-aigw-key: good", b"authorization: Bearer theirs"]
            assert (await gw.ask(post(CHAT_PATH, CHAT, *lines))).status == 200
        assert up.last.headers["authorization"] == "Bearer theirs"
        assert b"good" not in up.last.raw


REFUSED = ok(b'{"error": "bad key ours"}', b"www-authenticate: Bearer ours", status=b"401 Unauthorized")


async def test_a_401_to_our_own_credential_is_ours_to_explain() -> None:
    async with stub(REFUSED) as up, running(serving(up.url, api_key="ours")) as gw:
        client = await gw.connect()
        answer = await client.ask(post(CHAT_PATH))
        assert "operator" in check(answer, 502, "upstream_credential_refused")
        assert b"ours" not in answer.raw
        record = await gw.record()
        assert (record["status"], record["fault"]) == (502, "upstream")
        assert (await client.ask(get("/__/ping"))).status == 200


@pytest.mark.parametrize("api_key", [None, "client"])
async def test_a_401_to_the_clients_own_credential_is_relayed(api_key: str | None) -> None:
    async with stub(REFUSED) as up, running(serving(up.url, api_key=api_key)) as gw:
        answer = await gw.ask(post(CHAT_PATH, CHAT, b"authorization: Bearer theirs"))
        assert (answer.status, answer.body) == (401, b'{"error": "bad key ours"}')
        assert "x-aigw-error" not in answer.headers


@pytest.mark.parametrize("status", [b"400 Bad Request", b"404 Not Found", b"429 Too Many", b"500 Oops", b"529 Busy"])
async def test_an_upstreams_own_error_is_relayed_as_it_is(status: bytes) -> None:
    raw = ok(b'{"error": {"message": "theirs"}}', b"retry-after: 3", status=status)
    async with stub(raw) as up, running(serving(up.url, api_key="ours")) as gw:
        answer = await gw.ask(post(CHAT_PATH))
        assert answer.raw.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert answer.body == b'{"error": {"message": "theirs"}}'
        assert answer.headers["retry-after"] == "3"
        assert "x-aigw-error" not in answer.headers
        record = await gw.record()
        assert (record["status"], record["end"]) == (int(status[:3]), "ok")


# where to -------------------------------------------------------------------------------------------------------------


async def test_a_model_that_the_key_may_not_use_is_403() -> None:
    async with stub() as up, running(keyed(up.url)) as gw:
        for asked, status in ((b"gpt-4o", 200), (b"small-1", 200), (b"gpt-4", 403)):
            answer = await gw.ask(post(CHAT_PATH, b'{"model": "%b"}' % asked, b"x-api-key: few"))
            assert answer.status == status
        assert "/v1/models" in check(answer, 403, "model_not_allowed")
        assert answer.json()["error"]["param"] == "model"


async def test_what_belongs_to_no_model_is_403_for_a_limited_key() -> None:
    async with stub() as up, running(keyed(up.url, rule(default="up"))) as gw:
        check(await gw.ask(get("/v1/files", b"x-api-key: few")), 403, "resource_not_allowed")
        assert (await gw.ask(get("/v1/files", b"x-api-key: good"))).status == 200


async def test_a_model_that_does_not_exist_is_404() -> None:
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways={"default": gateway(models={"a": model("up")})})
        async with running(config) as gw:
            message = check(await gw.ask(post(CHAT_PATH)), 404, "model_not_found")
            assert "'gpt-4o'" in message


async def test_a_host_without_a_gateway_is_404() -> None:
    async with stub() as up:
        config = document({"up": upstream(target(up.url))}, gateways={"a": gateway(hosts=["a.example", "*.b.example"])})
        async with running(config) as gw:
            for host, status in ((b"A.example:1", 200), (b"x.b.example", 200), (b"b.example", 404), (b"c", 404)):
                answer = await gw.ask(post(CHAT_PATH, host=host))
                assert answer.status == status
            assert "host" in check(answer, 404, "no_gateway")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "lacks its version prefix"),
        ("/v1/v1/chat/completions", "one version prefix too many"),
        ("/messages", "lacks its version prefix"),
        ("/nothing", "no rule"),
    ],
)
async def test_a_path_that_no_rule_takes_says_what_the_base_url_should_be(path: str, hint: str) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        message = check(await gw.ask(post(path)), 404, "no_rule")
        assert hint in message.lower()
        if "prefix" in hint:
            assert "/v1" in message


async def test_a_method_that_a_rule_does_not_take_is_405_and_says_which_it_does() -> None:
    rules = [
        rule("read", "/files/*", methods=["GET"], upstream="up"),
        rule("put", "/files/x", methods=["PUT"], upstream="up"),
    ]
    async with stub() as up:
        config = document({"up": upstream(target(up.url), provider="http")}, gateways={"default": gateway(*rules)})
        async with running(config) as gw:
            answer = await gw.ask(get("/files/x", method=b"DELETE"))
            check(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == "GET, PUT"
            assert (await gw.ask(get("/files/x"))).status == 200


async def test_to_delete_a_model_is_the_providers_business() -> None:
    """OpenAI's API deletes fine-tuned models so."""
    async with stub() as up, running(serving(up.url)) as gw:
        check(await gw.ask(get("/v1/models/ft-1", method=b"DELETE")), 404, "no_rule")
    async with stub() as up, running(keyed(up.url, rule(default="up"))) as gw:
        assert (await gw.ask(get("/v1/models/ft-1", b"x-api-key: good", method=b"DELETE"))).status == 200
        assert up.last.line == b"DELETE /v1/models/ft-1 HTTP/1.1"


async def test_a_dialect_that_the_model_does_not_speak_is_400() -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post("/v1/messages"))
        assert (answer.status, answer.headers["x-aigw-error"]) == (400, "dialect_mismatch")
        assert "/v1/chat/completions" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/a/../b", "/a/%2e%2e/b", "/a/%00", "/./a"])
async def test_a_path_that_is_not_resolved_is_400(path: str) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        check(await gw.ask(get(path)), 400, "bad_request")
        assert not up.connections


async def test_a_path_that_means_another_rule_once_decoded_is_400() -> None:
    rules = [rule("secret", "/secret/*", upstream="up", methods=["GET"]), rule("all", "/*", upstream="up", public=True)]
    async with stub() as up, running(keyed(up.url, *rules)) as gw:
        for path in ("//secret/x", "/%73ecret/x", "/secret;a/x", "/x%2f..%2fsecret", "/\\secret/x"):
            answer = await gw.ask(get(path))
            assert answer.status == 400, path
        assert not up.connections


# bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, [b"x" * 600, b"y" * 600]], ids=["declared", "chunked"])
async def test_a_collected_body_over_its_bound_is_413(chunks: list[bytes] | None) -> None:
    async with stub() as up:
        async with running(document({"up": upstream(target(up.url))}, bounds={"body": 1000})) as gw:
            client = await gw.connect()
            raw = post(CHAT_PATH, b"x" * 1200, chunks=chunks)
            answer = await client.ask(raw[: -1100 if chunks is None else -20])
            assert "1000" in check(answer, 413, "body_too_large")
            assert answer.headers["connection"] == "close"
            await client.send(get("/__/ping"))
            assert await client.ended() == b""
            assert gw.gateway.collected == 0
        assert not up.connections


async def test_a_spliced_body_has_no_bound() -> None:
    async with stub() as up, running(splicing(up.url) | {"bounds": serving("")["bounds"] | {"body": 1000}}) as gw:
        assert (await gw.ask(post("/x", b"x" * 5000))).status == 200


HEADS = {
    "url too long": (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: gw\r\n\r\n", 414, "uri_too_long"),
    "url without end": (b"GET /" + b"x" * 20_000, 414, "uri_too_long"),
    "head too large": (get("/x", *[b"x: " + b"y" * 8000] * 5), 431, "head_too_large"),
    "head without end": (get("/x", *[b"x: " + b"y" * 8000] * 5)[:-4], 431, "head_too_large"),
    "too many headers": (get("/x", *[b"x: y"] * 101), 431, "head_too_large"),
    "a line too long": (get("/x", b"x: " + b"y" * 17_000), 431, "head_too_large"),
    "no host": (b"GET /x HTTP/1.1\r\n\r\n", 400, "bad_request"),
    "two hosts": (get("/x", b"host: gw"), 400, "bad_request"),
    "length and chunks": (post("/x", b"", b"transfer-encoding: chunked"), 400, "bad_request"),
    "two lengths": (post("/x", b"hello", b"content-length: 5"), 400, "bad_request"),
    "a signed length": (get("/x", b"content-length: +5"), 400, "bad_request"),
    "another coding": (get("/x", b"transfer-encoding: gzip, chunked"), 400, "bad_request"),
    "a bare line feed": (b"GET /x HTTP/1.1\nhost: gw\n\n", 400, "bad_request"),
    "a folded line": (get("/x", b"x: 1", b" 2"), 400, "bad_request"),
    "a blank before a colon": (get("/x", b"x : 1"), 400, "bad_request"),
    "NUL": (get("/x", b"x: a\0b"), 400, "bad_request"),
    "another version": (b"GET /x HTTP/2.0\r\nhost: gw\r\n\r\n", 505, "bad_version"),
    "no version": (b"GET /x\r\n\r\n", 400, "bad_request"),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n", 400, "bad_request"),
    "another host": (b"GET http://other/x HTTP/1.1\r\nhost: gw\r\n\r\n", 400, "bad_request"),
    "chunks in HTTP/1.0": (b"POST /x HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "bad_request"),
}


@pytest.mark.parametrize(("raw", "status", "code"), HEADS.values(), ids=HEADS.keys())
async def test_a_bad_head_is_answered_once_and_ends_the_connection(raw: bytes, status: int, code: str) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        answer = await client.ask(raw)
        check(answer, status, code)
        assert answer.headers["connection"] == "close"
        assert "x-request-id" in answer.headers
        client.writer.write(get("/__/ping"))
        assert await client.ended() == b""
        assert not up.connections


async def test_a_bad_head_has_a_record_too() -> None:
    """Whoever looks for the reason of a 400 looks in the access log."""
    async with stub() as up, running(splicing(up.url)) as gw:
        answer = await gw.ask(b"GET /x HTTP/1.1\r\n\r\n")
        record = await gw.record()
        assert (record["status"], record["end"], record["error"]) == (400, "refused", "bad_request")
        assert record["request_id"] == answer.headers["x-request-id"]


# request ids ----------------------------------------------------------------------------------------------------------


async def test_a_request_id_is_accepted_sent_on_returned_and_logged() -> None:
    async with stub(ok(b"", b"x-request-id: theirs")) as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH, CHAT, b"X-Request-ID: mine-1"))
        assert up.last.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-aigw-upstream-request-id"] == "theirs"
        record = await gw.record()
        assert (record["request_id"], record["upstream_request_id"]) == ("mine-1", "theirs")


@pytest.mark.parametrize("lines", [[], [b"x-request-id: not sane"], [b"x-request-id: " + b"x" * 200]])
async def test_a_request_id_is_made_where_none_is_sane(lines: list[bytes]) -> None:
    async with stub() as up, running(serving(up.url)) as gw:
        made = set()
        for _ in range(3):
            answer = await gw.ask(post(CHAT_PATH, CHAT, *lines))
            made.add(answer.headers["x-request-id"])
            assert up.last.headers["x-request-id"] == answer.headers["x-request-id"]
        assert len(made) == 3


async def test_control_bytes_never_reach_a_log_line_or_a_header() -> None:
    body = b'{"model": "a\\r\\nx-evil: 1\\u0000\\u001b"}'
    async with stub() as up, running(serving(up.url)) as gw:
        answer = await gw.ask(post(CHAT_PATH, body))
        assert "x-evil" not in answer.headers
        await until(lambda: gw.lines, "the record")
        (line,) = gw.lines
        assert line.count(b"\n") == 1
        assert not any(byte < 32 for byte in line[:-1])
        assert gw.records[0]["model"] == "a\r\nx-evil: 1\0\x1b"


async def test_a_refusal_in_chunks_is_read_across_their_borders() -> None:
    """Chunk borders and gzip hide nothing; a 403 that is about the request goes on byte by byte."""
    bodies = {
        b"/v1/plain": (b"", [b"api k", b"ey sk-ours is not valid"], 502),
        b"/v1/gzip": (b"content-encoding: gzip\r\n", [gzip.compress(b"api key sk-ours is not valid")], 502),
        b"/v1/other": (b"content-encoding: gzip\r\n", [gzip.compress(b"not from your country")], 403),
    }

    async def refuse(connection: Connection, seen: Seen) -> None:
        coding, pieces_, _ = bodies[seen.line.split(b" ")[1]]
        head = b"HTTP/1.1 403 Forbidden\r\n" + coding + b"transfer-encoding: chunked\r\n\r\n"
        await connection.send(head, chunked(*pieces_))

    async with stub(refuse) as up, running(splicing(up.url, api_key="sk-ours")) as gw:
        for path, (_, pieces_, status) in bodies.items():
            answer = await gw.ask(get(path.decode()))
            assert answer.status == status
            if status == 403:
                assert answer.body == chunked(*pieces_)
            else:
                assert answer.headers["x-aigw-error"] == "upstream_credential_refused"
                assert b"sk-ours" not in answer.raw
