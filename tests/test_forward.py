"""The heads the gateway writes, byte for byte: what is forwarded, what is not, and what is said in its place."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import document, gateway, key, model, rule, target, upstream

from aigw import route
from aigw.config import snapshot
from aigw.config.snapshot import Match, Resolved, Snapshot
from aigw.config.upstreams import Candidate
from aigw.forward import forwarded, request_message, request_prefix, response_prefix, without_keys
from aigw.wire.fields import digest
from aigw.wire.head import HeadBounds, RequestHead, RequestParser, ResponseParser

URL = "http://api.example:8000"
KEY = "sk-aigw-1"
SERVED = {"hosts": ["*"], "auth": "keys", "keys": {"k": key(KEY), "other": key("sk-aigw-2", disabled=True)}}


def compiled(
    of_rule: dict[str, Any] | None = None,
    *,
    url: str = URL,
    models: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    **fields: Any,
) -> Snapshot:
    served = gateway(rule(**(of_rule or {})), **SERVED, models=models or {"*": model("up")})
    up = upstream(target(url), **fields)
    return snapshot.compile(document({"up": up}, gateways={"default": served}, **(config or {})), 1)


def http(**of_rule: Any) -> Snapshot:
    return compiled({"upstream": "up"} | of_rule, provider="http", models={}, url=URL + "/base")


def decided(config: Snapshot, block: bytes, name: str | None) -> tuple[RequestHead, Match, Candidate]:
    head = RequestParser().parse(block, HeadBounds())
    found = route.match(config, head)
    assert isinstance(found, Match), found
    if name is None:
        name = found.endpoint.model
    if found.rule.resolved is not None:
        resolved = found.rule.resolved
    else:
        looked_up = found.gateway.find_model(name or "m")
        assert isinstance(looked_up, Resolved)
        resolved = looked_up
    return head, found, resolved.candidates[0]


def written(config: Snapshot, found: Match, candidate: Candidate, head: RequestHead, length: int | None) -> bytes:
    prefix = request_prefix(config, found, candidate, head)
    return request_message(prefix, b"id-1", b"", head.line.method, length, b"")


def asked(
    config: Snapshot,
    *lines: bytes,
    target: bytes = b"/v1/chat/completions",
    method: bytes = b"POST",
    name: str | None = None,
    length: int | None = 5,
) -> list[bytes]:
    """The lines of the head that an upstream gets for this request."""
    block = b"\r\n".join([method + b" " + target + b" HTTP/1.1", b"host: gw", *lines])
    head, found, candidate = decided(config, block, name)
    raw = written(config, found, candidate, head, length)
    assert raw.endswith(b"\r\n\r\n")
    assert b"\r\n\r\n" not in raw[:-4]
    return raw[:-4].split(b"\r\n")


def names(lines: list[bytes]) -> list[bytes]:
    return [line.partition(b":")[0].lower() for line in lines[1:]]


# ------------------------------------------------------------------------------------------------------ a whole request


def test_a_request_to_a_provider() -> None:
    config = compiled(api_key="sk-openai", headers={"x-team": "search", "openai-organization": None})
    lines = asked(
        config,
        b"Authorization: Bearer " + KEY.encode(),
        b"Content-Type: application/json",
        b"Content-Length: 99",
        b"Accept-Encoding: gzip, br",
        b"Connection: keep-alive, x-hop",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"Trailer: x",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Proxy-Authorization: Basic eDp5",
        b"Cookie: session=1",
        b"X-Request-Id: from-client",
        b"OpenAI-Organization: org",
        b"OpenAI-Project: proj",
        b"X-Team: mine",
        b"anthropic-version: 2023-06-01",
        b"anthropic-beta: a",
        b"idempotency-key: i",
        b"X-Unknown:  as it came ",
    )
    assert lines == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"host: api.example:8000",
        b"x-team: search",
        b"authorization: Bearer sk-openai",
        b"OpenAI-Project: proj",
        b"anthropic-beta: a",
        b"idempotency-key: i",
        b"X-Unknown:  as it came ",
        b"Content-Type: application/json",
        b"anthropic-version: 2023-06-01",
        b"accept-encoding: gzip",
        b"x-request-id: id-1",
        b"content-length: 5",
    ]


def test_a_request_with_nothing_to_it() -> None:
    assert asked(http(), target=b"/x", method=b"GET", length=0) == [
        b"GET /base/x HTTP/1.1",
        b"host: api.example:8000",
        b"x-request-id: id-1",
    ]


@pytest.mark.parametrize(
    ("method", "length", "framing"),
    [
        (b"POST", 5, b"content-length: 5"),
        (b"POST", 0, b"content-length: 0"),
        (b"PUT", 0, b"content-length: 0"),
        (b"PATCH", 0, b"content-length: 0"),
        (b"GET", 5, b"content-length: 5"),
        (b"GET", 0, None),
        (b"DELETE", 0, None),
        (b"POST", None, b"transfer-encoding: chunked"),
        (b"DELETE", None, b"transfer-encoding: chunked"),
    ],
)
def test_requests_are_framed_anew(method: bytes, length: int | None, framing: bytes | None) -> None:
    """The client's framing never reaches the upstream; exactly one of the gateway's does (RFC 9112 section 6.3)."""
    lines = asked(http(), b"content-length: 7", target=b"/x", method=method, length=length)
    framings = [line for line in lines if line.startswith((b"content-length", b"transfer-encoding"))]
    assert framings == ([] if framing is None else [framing])


def test_accept_encoding_is_not_made_up() -> None:
    assert b"accept-encoding" not in names(asked(compiled()))


# ---------------------------------------------------------------------------------------------------------- credentials

CLIENTS = [
    b"authorization: Bearer client-1",
    b"x-api-key: client-1",
    b"api-key: client-1",
    b"x-goog-api-key: client-1",
    b"authorization: Basic Y2xpZW50",
]
CREDENTIALS = {
    "openai": b"authorization: Bearer ours",
    "azure": b"api-key: ours",
    "anthropic": b"x-api-key: ours",
    "gemini": b"x-goog-api-key: ours",
    "http": b"authorization: Bearer ours",
}


@pytest.mark.parametrize(("provider", "line"), CREDENTIALS.items())
def test_an_upstreams_own_credential_replaces_every_other(provider: str, line: bytes) -> None:
    config = compiled(provider=provider, api_key="ours")
    sent = asked(config, *CLIENTS, b"x-aigw-key: " + KEY.encode(), target=b"/v1/x?a=b&key=client-1&c=d")
    assert [text for text in sent if b"ours" in text] == [line]
    assert not any(b"client" in text or b"Basic" in text or KEY.encode() in text for text in sent)
    assert sent[0].split(b" ")[1].endswith(b"?a=b&c=d")


@pytest.mark.parametrize("api_key", ["client", None])
def test_a_client_passes_its_own_credential(api_key: str | None) -> None:
    sent = asked(compiled(api_key=api_key), *CLIENTS, b"x-aigw-key: " + KEY.encode(), target=b"/v1/x?key=client-1")
    assert [text for text in sent if text in CLIENTS] == CLIENTS
    assert sent[0] == b"POST /v1/x?key=client-1 HTTP/1.1"
    assert b"x-aigw-key" not in names(sent)


@pytest.mark.parametrize("api_key", ["client", None, "ours"])
@pytest.mark.parametrize("secret", [b"sk-aigw-1", b"sk-aigw-2"])
def test_no_key_of_the_gateway_leaves_it(secret: bytes, api_key: str | None) -> None:
    """In whatever header it came, and whether it is good or not."""
    for line in (
        b"authorization: Bearer %b",
        b"authorization: %b",
        b"x-api-key: %b",
        b"api-key: %b",
        b"x-goog-api-key: %b",
        b"x-aigw-key: %b",
    ):
        sent = asked(compiled(api_key=api_key), line % secret, b"x-aigw-key: unknown", target=b"/v1/x?key=" + secret)
        assert not any(secret in text for text in sent)
        assert sent[0] == b"POST /v1/x HTTP/1.1"


@pytest.mark.parametrize(
    "query",
    [
        b"key=sk-aigw-1&key=client-1",
        b"key=client-1&key=sk-aigw-1",
        b"key=sk-aigw-1&key=",
        b"key=sk%2Daigw-1",
        b"k%65y=sk-aigw-1",
    ],
)
@pytest.mark.parametrize("api_key", ["client", None, "ours"])
def test_no_key_hides_in_the_query(query: bytes, api_key: str | None) -> None:
    sent = asked(compiled(api_key=api_key), b"x-aigw-key: " + KEY.encode(), target=b"/v1/x?a=b&" + query)
    assert b"aigw" not in sent[0]
    assert (b"client-1" in sent[0]) == (b"client-1" in query and api_key != "ours")


@pytest.mark.parametrize("query", [b"key=client-1&key=", b"k%65y=client-1", b"key=&key=client-1"])
def test_no_key_of_a_client_goes_beside_the_upstreams_own(query: bytes) -> None:
    assert b"client-1" not in asked(compiled(api_key="ours"), target=b"/v1/x?" + query)[0]


@pytest.mark.parametrize(
    ("query", "path"),
    [
        (b"", b"/v1/x"),
        (b"?", b"/v1/x?"),
        (b"?a=b", b"/v1/x?a=b"),
        (b"?a=b&&c", b"/v1/x?a=b&&c"),
        (b"?key=c&a", b"/v1/x?a"),
        (b"?key=c", b"/v1/x"),
        (b"?monkey=c", b"/v1/x?monkey=c"),
    ],
)
def test_the_rest_of_the_query_is_forwarded_as_it_came(query: bytes, path: bytes) -> None:
    assert asked(compiled(api_key="ours"), target=b"/v1/x" + query)[0] == b"POST %b HTTP/1.1" % path


def test_without_keys() -> None:
    digests = frozenset([digest(b"a b") or b""])
    assert without_keys(b"x=1&key=a%20b&key=c&y", digests) == b"x=1&key=c&y"
    assert without_keys(b"x=1&key=a%20b&key=c&y", None) == b"x=1&y"
    assert without_keys(b"key=c", None) == b""


def test_cookies_stay_with_http_upstreams() -> None:
    cookies = [b"Cookie: a=b", b"cookie: c=d"]
    assert [line for line in asked(http(), *cookies, target=b"/x") if line in cookies] == cookies
    for provider in ("openai", "azure", "anthropic", "gemini"):
        assert b"cookie" not in names(asked(compiled(provider=provider), *cookies))


# -------------------------------------------------------------------------------------------------------- headers, host

SPECIAL = {
    "authorization": b"authorization: Bearer client-1",
    "x-api-key": b"x-api-key: client-1",
    "cookie": b"cookie: client-1",
    "accept-encoding": b"accept-encoding: gzip",
    "content-type": b"content-type: client/1",
    "anthropic-version": b"anthropic-version: client-1",
}


@pytest.mark.parametrize("name", SPECIAL)
def test_every_header_may_be_set_or_removed(name: str) -> None:
    """What the config says of a header holds, also for those that the gateway looks at itself."""
    fields: dict[str, Any] = {"of_rule": {"upstream": "up"}, "provider": "http", "models": {}}
    replaced = asked(compiled(headers={name: "ours"}, **fields), SPECIAL[name], target=b"/x")
    assert [line for line in replaced if line.startswith(name.encode())] == [f"{name}: ours".encode()]
    removed = asked(compiled(headers={name: None}, **fields), SPECIAL[name], target=b"/x")
    assert name.encode() not in names(removed)


@pytest.mark.parametrize(("preserve", "line"), [(False, b"host: api.example:8000"), (True, b"Host: Client.example:1")])
def test_the_host_is_the_targets_or_the_clients(preserve: bool, line: bytes) -> None:
    config = http(preserve_host=preserve)
    block = b"GET /x HTTP/1.1\r\nHost: Client.example:1"
    head, found, candidate = decided(config, block, None)
    lines = written(config, found, candidate, head, 0).split(b"\r\n")
    assert [text for text in lines if text.lower().startswith(b"host")] == [line]


def test_a_client_without_host_gets_the_targets() -> None:
    config = http(preserve_host=True)
    head, found, candidate = decided(config, b"GET /x HTTP/1.0", None)
    assert b"\r\nhost: api.example:8000\r\n" in written(config, found, candidate, head, 0)


def test_nothing_a_client_names_chooses_where_to() -> None:
    """An absolute form is reduced to its path; X-Forwarded-Host and the like are just headers."""
    sent = asked(compiled(), b"x-forwarded-host: evil", target=b"http://gw/v1/x?api_base=http://evil")
    assert sent[:2] == [b"POST /v1/x?api_base=http://evil HTTP/1.1", b"host: api.example:8000"]


# ---------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("provider", "url", "path", "sent"),
    [
        ("openai", URL, b"/v1/chat/completions", b"/v1/chat/completions"),
        ("openai", URL + "/v1", b"/v1/chat/completions?a", b"/v1/chat/completions?a"),
        ("openai", URL + "/api", b"/openai/v1/responses", b"/api/responses"),
        ("anthropic", URL + "/proxy", b"/v1/messages?beta=true", b"/proxy/messages?beta=true"),
        (
            "azure",
            URL + "/openai",
            b"/openai/deployments/gpt/chat/completions?api-version=1",
            b"/openai/deployments/gpt/chat/completions?api-version=1",
        ),
        ("gemini", URL + "/v1beta", b"/v1/models/g:generateContent", b"/v1beta/models/g:generateContent"),
        ("openai", URL, b"/v1//x/%41;p", b"/v1//x/%41;p"),
    ],
)
def test_the_path_is_joined_to_the_url(provider: str, url: str, path: bytes, sent: bytes) -> None:
    assert asked(compiled(provider=provider, url=url), target=path)[0] == b"POST %b HTTP/1.1" % sent


@pytest.mark.parametrize(
    ("strip", "path", "sent"),
    [
        (True, b"/files/a?b", b"/base/a?b"),
        (True, b"/files", b"/base/"),
        (False, b"/files/a", b"/base/files/a"),
    ],
)
def test_a_rules_path_may_be_stripped(strip: bool, path: bytes, sent: bytes) -> None:
    assert asked(http(path="/files/*", strip_path=strip), target=path)[0] == b"POST %b HTTP/1.1" % sent


def test_a_stripped_path_is_the_dialects() -> None:
    config = compiled({"path": "/team/*", "strip_path": True}, url=URL + "/v9")
    assert asked(config, target=b"/team/v1/chat/completions")[0] == b"POST /v9/chat/completions HTTP/1.1"


@pytest.mark.parametrize(
    ("real", "path", "sent"),
    [
        (None, b"/v1beta/models/fast:generateContent?alt=sse", b"/base/models/fast:generateContent?alt=sse"),
        (None, b"/v1beta/models/f%61st:generateContent", b"/base/models/f%61st:generateContent"),
        ("gemini-2.5", b"/v1beta/models/fast:generateContent", b"/base/models/gemini-2.5:generateContent"),
        ("a/b c?é", b"/v1/models/fast:countTokens", b"/base/models/a%2Fb%20c%3F%C3%A9:countTokens"),
        ("gpt-4o", b"/openai/deployments/fast/chat/completions", b"/base/openai/deployments/gpt-4o/chat/completions"),
    ],
)
def test_a_model_in_the_path_is_renamed_in_place(real: str | None, path: bytes, sent: bytes) -> None:
    config = compiled(models={"fast": model("up", real)}, url=URL + "/base", provider="gemini")
    assert asked(config, target=path)[0] == b"POST %b HTTP/1.1" % sent


def test_a_model_in_the_body_leaves_the_path_alone() -> None:
    config = compiled(models={"fast": model("up", "real")})
    assert asked(config, name="fast")[0] == b"POST /v1/chat/completions HTTP/1.1"


def test_a_renamed_model_behind_a_stripped_path() -> None:
    config = compiled({"path": "/g/*", "strip_path": True}, models={"fast": model("up", "slow")}, url=URL + "/v1beta")
    assert asked(config, target=b"/g/v1/models/fast:countTokens")[0] == b"POST /v1beta/models/slow:countTokens HTTP/1.1"


# ---------------------------------------------------------------------------------------------------- message and lines


def test_a_message_ends_the_head_and_begins_the_body() -> None:
    more = b"x-trace: 1\r\n"
    assert (
        request_message(b"P: ", b"id", more, "POST", 3, b"abc")
        == b"P: id\r\nx-trace: 1\r\ncontent-length: 3\r\n\r\nabc"
    )
    assert request_message(b"P: ", b"id", b"", "POST", 9, b"abc") == b"P: id\r\ncontent-length: 9\r\n\r\nabc"
    assert request_message(b"P: ", b"id", more, "GET", 0, b"") == b"P: id\r\nx-trace: 1\r\n\r\n"
    chunked = request_message(b"P: ", b"id", more, "PUT", None, b"3\r\nabc\r\n")
    assert chunked == b"P: id\r\nx-trace: 1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"


def test_lines_that_were_set_aside_are_forwarded_like_the_others() -> None:
    lines = b"X-Trace: 1\r\nX-Team: mine\r\nX-Gone: 1\r\n"
    _, _, candidate = decided(compiled(headers={"x-team": "ours", "x-gone": None}), POSTED, "m")
    assert forwarded(lines, candidate.target) == b"X-Trace: 1\r\n"
    _, _, candidate = decided(compiled(), POSTED, "m")
    assert forwarded(lines, candidate.target) == lines
    assert forwarded(b"", candidate.target) == b""


# ------------------------------------------------------------------------------------------------------------ responses


POSTED = b"POST /v1/x HTTP/1.1\r\nhost: gw"


def answered(
    config: Snapshot, *lines: bytes, says_aigw: bool = True, status: bytes = b"HTTP/1.1 200 OK"
) -> list[bytes]:
    """The lines of a relayed head that do not differ from one exchange to the next."""
    head = ResponseParser().parse(b"\r\n".join([status, *lines]), HeadBounds())
    _, _, candidate = decided(config, POSTED, "gpt-4o")
    raw = response_prefix(head, candidate, says_aigw=says_aigw)
    assert raw.endswith(b"\r\n")
    assert b"\r\n\r\n" not in raw
    return raw[:-2].split(b"\r\n")


def test_a_response_of_a_provider() -> None:
    lines = answered(
        compiled(),
        b"Date: now",
        b"Content-Type: application/json",
        b"Content-Length: 5",
        b"Connection: keep-alive, x-hop",
        b"X-Hop: 1",
        b"Keep-Alive: timeout=5",
        b"Upgrade: h2",
        b"Proxy-Authenticate: Basic",
        b"Set-Cookie: a=b",
        b"X-Request-Id: req_1",
        b"request-id: req_2",
        b"x-ratelimit-remaining-requests: 9",
        b"x-aigw-upstream: spoofed",
    )
    assert lines[:6] == [
        b"HTTP/1.1 200 OK",
        b"Date: now",
        b"Content-Type: application/json",
        b"Content-Length: 5",
        b"request-id: req_2",
        b"x-ratelimit-remaining-requests: 9",
    ]
    assert sorted(lines[6:]) == [
        b"x-aigw-attempts: 1",
        b"x-aigw-model: gpt-4o",
        b"x-aigw-upstream-request-id: req_1",
        b"x-aigw-upstream: up",
    ]


def test_the_gateways_headers_are_switched_off_as_a_group() -> None:
    lines = answered(compiled(), b"content-length: 0", b"x-request-id: req_1", says_aigw=False)
    assert lines == [b"HTTP/1.1 200 OK", b"content-length: 0"]


def test_cookies_of_http_upstreams_reach_the_client() -> None:
    cookies = [b"Set-Cookie: a=b", b"set-cookie: c=d"]
    assert [line for line in answered(http(), *cookies, b"content-length: 0") if line in cookies] == cookies
    assert b"x-aigw-model" not in names(answered(http(), b"content-length: 0"))


def test_a_response_is_framed_and_closed_by_whoever_relays_it() -> None:
    for lines in ([b"transfer-encoding: chunked"], [b"connection: close"], [b"connection: keep-alive"]):
        ours = [b"x-aigw-upstream", b"x-aigw-model", b"x-aigw-attempts"]
        assert names(answered(compiled(), *lines)) == ours


def test_a_response_keeps_its_length_whatever_connection_names() -> None:
    assert b"content-length: 5" in answered(compiled(), b"connection: content-length", b"content-length: 5")


@pytest.mark.parametrize(
    ("line", "relayed"),
    [
        (b"HTTP/1.1 200", b"HTTP/1.1 200 "),
        (b"HTTP/1.1 529 Overloaded \xe9", b"HTTP/1.1 529 Overloaded \xe9"),
        (b"HTTP/1.0 404 Not Found", b"HTTP/1.1 404 Not Found"),
    ],
)
def test_the_status_is_the_upstreams_in_our_version(line: bytes, relayed: bytes) -> None:
    assert answered(compiled(), status=line)[0] == relayed
