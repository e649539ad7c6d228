"""What real providers were asked and answered, once more through the gateway: nothing that passes it may change.

Every recorded exchange is replayed in the ways that a config allows: by a rule that names an upstream
(`provider: http`), and by its model where the provider speaks a dialect; with each framing that a client or an
upstream may choose. The upstream answers the recorded bytes; what it saw and what the client got is compared with
what was sent, byte by byte and line by line.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakes import (
    Answer,
    Client,
    Connection,
    Running,
    Seen,
    chunked,
    dechunked,
    document,
    gateway,
    key,
    model,
    pieces,
    random_pieces,
    rule,
    running,
    stub,
    target,
    upstream,
)
from processes import PATIENCE, Serve, Upstream
from recordings import Recording, load

pytestmark = pytest.mark.unmeasured

KEY = "sk-aigw-replay"
OWN = "sk-of-the-upstream"
# What a client that signs its requests sends: it goes on where the gateway has no credential for the upstream.
SIGNED = b"Authorization: AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/bedrock/aws4_request, Signature=abc"

# Beside the recorded lines, in both directions: what SDKs and providers add, what nobody knows, spelled in odd ways.
SENT = [
    b"Anthropic-Version: 2023-06-01",
    b"anthropic-beta: prompt-caching-2024-07-31,token-counting-2024-11-01",
    b"OpenAI-Organization: org-1",
    b"openai-project: proj_1",
    b"OpenAI-Beta: assistants=v2",
    b"Idempotency-Key: 0b8f6b3e-8a51-4c59-b5b5-f1b1a8a4a5e2",
    b"X-Stainless-Lang: python",
    b"x-stainless-retry-count: 0",
    b"x-goog-api-client: gl-python/3.11",
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"x-unknown:one",
    b"X-UNKNOWN:\t two  blanks \t",
    b"x-latin: caf\xe9",
    b"x-empty:",
]
ANSWERED = [
    b"OpenAI-Processing-Ms: 12",
    b"request-id: req_01",
    b"anthropic-organization-id: org-2",
    b"x-ratelimit-remaining-requests: 99",
    b"CF-Ray: 8f-AMS",
    b"retry-after-ms: 5",
    b"x-unknown:one",
    b"X-UNKNOWN:\t two  blanks \t",
    b"x-latin: caf\xe9",
    b"x-empty:",
]
HOP_BY_HOP = [b"Connection: keep-alive, X-Hop", b"X-Hop: 1", b"Keep-Alive: timeout=5", b"TE: trailers", b"Upgrade: h2c"]
# What ends here and what is the gateway's to say, by direction; looked at one by one.
NOT_FORWARDED = {b"connection", b"x-hop", b"keep-alive", b"te", b"upgrade", b"proxy-authorization", b"x-aigw-key"}
SAID_TO_UPSTREAM = {b"host", b"x-request-id", b"accept-encoding", b"cookie", b"content-length", b"transfer-encoding"}
SAID_TO_CLIENT = {b"x-request-id", b"set-cookie", b"transfer-encoding", b"connection"}


# the ways -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """How a recording is replayed: `path` is what the client asks for; the upstream must see the recorded one."""

    recording: Recording
    provider: str
    base: str = ""  # path of the target's url
    path: str = ""
    lines: list[bytes] = field(default_factory=list)  # the client's credentials
    credential: bytes = SIGNED  # the only one that reaches the upstream

    def __str__(self) -> str:
        return f"{self.recording.name}-{self.provider}{self.base}"

    @property
    def is_http(self) -> bool:
        return self.provider == "http"

    @property
    def model(self) -> str | None:
        """The name asked for, where the rule routes by it."""
        if self.is_http:
            return None
        return self.model_in_path or json.loads(self.recording.request_body)["model"]

    @property
    def model_in_path(self) -> str | None:
        """As Gemini's clients name it; Vertex has other paths."""
        found = re.match(r"/v1beta/models/([^/:]+):", self.path)
        return found[1] if found else None

    @property
    def logged_model(self) -> str | None:
        """A path is read whatever the rule is, a body is not."""
        return self.model or self.model_in_path

    def request_lines(self) -> list[bytes]:
        """Without host, credentials, request id and framing."""
        return [line for line in as_lines(self.recording.request_headers) if name(line) != b"host"] + SENT

    def response_lines(self) -> list[bytes]:
        return as_lines(self.recording.response_headers) + ANSWERED


def ways(recording: Recording) -> Iterator[Way]:
    path = recorded_path(recording)
    yield Way(recording, "http", "", path, [b"X-AIGW-Key: " + KEY.encode(), SIGNED])
    provider = recording.provider
    if provider == "anthropic":
        yield by_model(recording, "anthropic", "", path)
    elif provider == "gemini":
        yield by_model(recording, "gemini", "", path)
        yield by_model(recording, "gemini", "/v1beta", path)
    elif provider == "vertex":
        base = path.partition("/models/")[0]
        yield by_model(recording, "gemini", base, "/v1beta" + path.removeprefix(base))
    elif provider in ("openai", "azure", "groq", "mistral", "huggingface", "openrouter", "cerebras"):
        base = path[: path.index("/v1") + 3]
        kind = "azure" if provider == "azure" else "openai"
        yield by_model(recording, kind, base, "/v1" + path.removeprefix(base))
        if path.startswith(("/v1/", "/openai/v1/")) and provider != "groq":
            yield by_model(recording, kind, "", path)


def by_model(recording: Recording, provider: str, base: str, path: str) -> Way:
    header, prefix = {
        "openai": (b"Authorization: ", b"Bearer "),
        "azure": (b"Api-Key: ", b""),
        "anthropic": (b"X-Api-Key: ", b""),
        "gemini": (b"X-Goog-Api-Key: ", b""),
    }[provider]
    lines = [header + prefix + KEY.encode()]
    return Way(recording, provider, base, path, lines, header.lower() + prefix + OWN.encode())


def recorded_path(recording: Recording) -> str:
    parts = urlsplit(recording.url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


WAYS = [way for recording in load() for way in ways(recording)]


def as_lines(headers: tuple[tuple[str, str], ...]) -> list[bytes]:
    return [f"{name}: {value}".encode() for name, value in headers]


def name(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def without(lines: list[bytes], *names: set[bytes]) -> list[bytes]:
    return [line for line in lines if name(line) not in set().union(*names)]


def values(lines: list[bytes], wanted: bytes) -> list[bytes]:
    return [line.partition(b":")[2].strip() for line in lines if name(line) == wanted]


# the framings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Framing:
    """An answer as the upstream writes it, behind its lines."""

    name: str
    lines: list[bytes]
    raw: bytes

    @property
    def closes(self) -> bool:
        return self.name.startswith("close")


def events(body: bytes) -> list[bytes]:
    """Server-sent events, each with the blank line that ends it; what is none is one piece."""
    return re.findall(rb".+?(?:\r\n\r\n|\n\n|\r\r|$)", body, re.DOTALL)


def framings(body: bytes, seed: int) -> list[Framing]:
    chunks = [b"transfer-encoding: chunked"]
    zipped = gzip.compress(body, mtime=0)
    is_gzip = [b"Content-Encoding: gzip"]
    length = b"Content-Length: %d"
    return [
        Framing("length", [length % len(body)], body),
        Framing("one chunk", chunks, chunked(body)),
        Framing("a chunk per event", chunks, chunked(*events(body))),
        Framing("random chunks", chunks, chunked(*random_pieces(body, seed))),
        Framing("a chunk per byte", chunks, chunked(*pieces(body, 1))),
        Framing("close", [], body),
        Framing("length, gzip", [*is_gzip, length % len(zipped)], zipped),
        Framing("random chunks, gzip", chunks + is_gzip, chunked(*random_pieces(zipped, seed))),
        Framing("close, gzip", is_gzip, zipped),
    ]


def answer_of(way: Way, framing: Framing) -> bytes:
    first = b"HTTP/1.1 %d As Recorded" % way.recording.status
    more = [b"X-Request-Id: req_provider", b"Set-Cookie: __cf_bm=1; path=/", *HOP_BY_HOP]
    lines = [first, *way.response_lines(), *framing.lines, *more]
    return b"\r\n".join(lines) + b"\r\n\r\n" + framing.raw


def request_of(way: Way, request_id: str, host: str, *, is_chunked: bool) -> bytes:
    body = way.recording.request_body
    lines = [
        f"{way.recording.method.upper()} {way.path} HTTP/1.1".encode(),
        f"Host: {host}".encode(),
        *way.request_lines(),
        *way.lines,
        f"X-Request-Id: {request_id}".encode(),
        b"Proxy-Authorization: Basic c2VjcmV0",
        *HOP_BY_HOP,
        b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body),
    ]
    raw = chunked(*random_pieces(body, way.recording.number)) if is_chunked else body
    return b"\r\n".join(lines) + b"\r\n\r\n" + raw


def reads(raw: bytes, seed: int) -> list[bytes]:
    """`raw` in about five writes, cut anywhere: within lines, chunks and events."""
    cut = random_pieces(raw, seed)
    return [b"".join(cut[start : start + 8]) for start in range(0, len(cut), 8)]


# what must hold -------------------------------------------------------------------------------------------------------


def check_seen(way: Way, seen: Seen, request_id: str, authority: str, *, is_chunked: bool) -> None:
    """What reached the upstream is the recorded request."""
    recording = way.recording
    assert seen.line == f"{recording.method.upper()} {recorded_path(recording)} HTTP/1.1".encode()
    assert seen.body == recording.request_body
    sent = way.request_lines()
    credentials = {b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key"}
    # Order matters among lines of one name only (RFC 9110 section 5.3), and is kept there.
    arrived = without(seen.lines, SAID_TO_UPSTREAM, credentials)
    assert sorted(arrived, key=name) == sorted(without(sent, SAID_TO_UPSTREAM, NOT_FORWARDED), key=name)
    assert [line for line in seen.lines if name(line) in credentials] == [way.credential]
    assert values(seen.lines, b"host") == [authority.encode()]
    assert values(seen.lines, b"x-request-id") == [request_id.encode()]
    # Narrowed to what the gateway can read too, never made up.
    assert values(seen.lines, b"accept-encoding") == [b"gzip"] * len(values(sent, b"accept-encoding"))
    assert values(seen.lines, b"cookie") == (values(sent, b"cookie") if way.is_http else [])
    # A body that is read for its model has a length from then on.
    goes_in_chunks = is_chunked and (way.is_http or way.model_in_path is not None)
    assert seen.is_chunked == goes_in_chunks
    assert len(values(seen.lines, b"content-length")) == (0 if goes_in_chunks else 1)
    assert KEY.encode() not in seen.raw


def check_lines(way: Way, lines: list[bytes], framing: Framing, request_id: str) -> None:
    """What the client got are the recorded lines, in their order, and what the gateway says of itself."""
    said = [b"x-aigw-upstream: up", b"x-aigw-attempts: 1", b"x-aigw-upstream-request-id: req_provider"]
    if way.model is not None:
        said.append(b"x-aigw-model: " + way.model.encode())
    assert sorted(line for line in lines if line.startswith(b"x-aigw-")) == sorted(said)
    timing = re.compile(rb"server-timing: .*overhead;dur=[0-9.]+")
    theirs = [line for line in lines if not line.startswith(b"x-aigw-") and not timing.fullmatch(line)]
    assert without(theirs, SAID_TO_CLIENT) == without(way.response_lines() + framing.lines, SAID_TO_CLIENT)
    assert values(lines, b"x-request-id") == [request_id.encode()]
    assert values(lines, b"set-cookie") == ([b"__cf_bm=1; path=/"] if way.is_http else [])
    assert values(lines, b"connection") == ([b"close"] if framing.closes else [])
    assert values(lines, b"transfer-encoding") == values(framing.lines, b"transfer-encoding")


def config_of(way: Way, url: str, real: str | None = None, usage: str = "as_reported") -> dict[str, object]:
    """One upstream `up`; `real` renames every model."""
    api_key = None if way.is_http else OWN
    up = upstream(target(url + way.base), provider=way.provider, api_key=api_key, usage=usage)
    rules = [rule(upstream="up")] if way.is_http else []
    models = {} if way.is_http else {"*": model("up", real)}
    gateways = {"default": gateway(*rules, auth="keys", keys={"replay": key(KEY)}, models=models)}
    return document({"up": up}, gateways=gateways)


async def exchange(client: Client, raw: bytes, framing: Framing, *, is_split: bool) -> tuple[Answer, bytes]:
    """The head of the answer, and its body as it is on the wire."""
    await client.send(*(reads(raw, 1) if is_split else [raw]))
    head = Answer(await client.read(b"\r\n\r\n"))
    return head, await (client.rest() if framing.closes else client.read(len(framing.raw)))


# one gateway, all framings --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_loop")
@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_every_recording_passes_unchanged_in_every_framing(way: Way) -> None:
    recording = way.recording
    now: list[Framing] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        raw = answer_of(way, now[-1])
        await connection.send(*(reads(raw, 2) if seen.headers["x-request-id"].endswith("split") else [raw]))
        if now[-1].closes:
            connection.close()

    async with stub(handler) as up, running(config_of(way, up.url)) as gw:
        client = await gw.connect()
        count = 0
        for framing in framings(recording.response_body, recording.number):
            for is_split in (False, True):
                now.append(framing)
                request_id = f"{framing.name.replace(' ', '-').replace(',', '')}-{'split' if is_split else 'whole'}"
                raw = request_of(way, request_id, "gw", is_chunked=is_split)
                head, body = await exchange(client, raw, framing, is_split=is_split)
                check_seen(way, up.last, request_id, f"127.0.0.1:{up.port}", is_chunked=is_split)
                assert head.raw.startswith(b"HTTP/1.1 %d As Recorded\r\n" % recording.status)
                assert body == framing.raw  # and so are the chunks that frame it
                check_lines(way, head.lines, framing, request_id)
                await check_record(gw, count, way, framing, request_id)
                count += 1
                if framing.closes:
                    client = await gw.connect()
        assert len(up.seen) == count


async def check_record(gw: Running, index: int, way: Way, framing: Framing, request_id: str) -> None:
    record = await gw.record(index)
    assert (record["request_id"], record["end"], record["fault"]) == (request_id, "ok", "none")
    assert (record["status"], record.get("model"), record["key"]) == (way.recording.status, way.logged_model, "replay")
    assert record["bytes_out"] == len(framing.raw)
    assert record["upstream_request_id"] == "req_provider"


# the first patch ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_loop")
@pytest.mark.parametrize("way", [way for way in WAYS if way.model is not None], ids=str)
async def test_a_renamed_model_is_all_that_changes_of_a_recording(way: Way) -> None:
    """In the bytes of body or path; the rest is as it was, and so is the answer."""
    recording = way.recording
    framing = framings(recording.response_body, recording.number)[2]
    renamed = "a/longer \N{SNOWMAN} name"
    async with (
        stub(answer_of(way, framing)) as up,
        running(config_of(way, up.url, renamed)) as gw,
    ):
        client = await gw.connect()
        for is_chunked in (False, True):
            raw = request_of(way, "renamed", "gw", is_chunked=is_chunked)
            _, body = await exchange(client, raw, framing, is_split=is_chunked)
            assert body == framing.raw
            path = recorded_path(recording)
            if "/models/" in path:
                front, _, rest = path.partition("/models/")
                path = f"{front}/models/a%2Flonger%20%E2%98%83%20name:{rest.partition(':')[2]}"
                assert up.last.body == recording.request_body
            else:
                assert way.model is not None
                name_and_colon = b'"model":'
                before, _, behind = recording.request_body.partition(name_and_colon)
                assert name_and_colon not in behind
                blanks, _, behind = behind.partition(json.dumps(way.model).encode())
                assert not blanks.strip()
                value = json.dumps(renamed, ensure_ascii=False).encode()
                assert up.last.body == before + name_and_colon + blanks + value + behind
            assert up.last.line == f"POST {path} HTTP/1.1".encode()


# the second patch -----------------------------------------------------------------------------------------------------

ASKS = re.compile(rb',"stream_options":\{"include_usage":true\}|"stream_options":\{"include_usage":true\},')
STREAMED_CHATS = [way for way in WAYS if way.recording.streaming and way.recording.api == "chat" and not way.is_http]


@pytest.mark.usefixtures("plain_loop")
@pytest.mark.parametrize("way", STREAMED_CHATS, ids=str)
async def test_a_usage_that_the_client_did_not_ask_for_is_counted_and_not_shown(way: Way) -> None:
    """The recorded stream, asked for without the option: what only the option brings is gone, and nothing else is."""
    asked = ASKS.sub(b"", way.recording.request_body)
    way = replace(way, recording=replace(way.recording, request_body=asked))
    answer = way.recording.response_body
    whole = [event for event in events(answer) if b'"choices":[]' not in event]
    shown = b"".join(whole).replace(b'"usage":null,', b"").replace(b',"usage":null', b"")
    if way.recording.provider == "openai":
        assert len(shown) < len(answer)
    else:
        assert shown == answer  # they report it in their last event, whoever asks
    now: list[Framing] = []

    async def handler(connection: Connection, seen: Seen) -> None:
        await connection.send(*reads(answer_of(way, now[-1]), 3))
        if now[-1].closes:
            connection.close()

    async with stub(handler) as up, running(config_of(way, up.url, usage="inject")) as gw:
        for index, framing in enumerate(framings(answer, way.recording.number)[:6]):
            now.append(framing)
            got = await gw.ask(request_of(way, "inject", "gw", is_chunked=False))
            assert dechunked(got.body) == shown, framing.name
            assert up.last.body == asked[:-1] + b',"stream_options":{"include_usage":true}}'
            assert values(up.last.lines, b"accept-encoding") == [b"identity"]
            assert got.headers["x-unknown"] == "two  blanks"
            record = await gw.record(index)
            assert (record["end"], record["status"]) == ("ok", way.recording.status)


# the whole service ----------------------------------------------------------------------------------------------------

SETUPS = list(dict.fromkeys((way.provider, way.base) for way in WAYS))


def config_text(url: str) -> str:
    """A gateway for each set-up, told by its host."""
    text = "upstreams:\n"
    for number, (provider, base) in enumerate(SETUPS):
        text += f"  up{number}:\n    provider: {provider}\n    targets: [{{name: a, url: '{url}{base}'}}]\n"
        text += "" if provider == "http" else f"    api_key: {OWN}\n    usage: as_reported\n"
    text += "gateways:\n"
    for number, (provider, _) in enumerate(SETUPS):
        text += f"  gw{number}:\n    hosts: [gw{number}.test]\n"
        text += f"    keys: {{replay: {{sha256: {hashlib.sha256(KEY.encode()).hexdigest()}}}}}\n"
        if provider == "http":
            text += f"    rules: [{{name: all, path: '/*', upstream: up{number}}}]\n"
        else:
            text += f"    models: {{'*': up{number}}}\n"
    return text


def test_every_recording_passes_the_whole_service(tmp_path: Path) -> None:
    """As processes, and read by a client that knows HTTP and nothing of ours; each way in one of the framings."""
    answers: dict[str, bytes] = {}
    seen: dict[str, Seen] = {}

    def answer(request: Seen) -> bytes:
        request_id = request.headers["x-request-id"]
        seen[request_id] = request
        return answers[request_id]

    with Upstream(answer) as up, Serve(tmp_path, config_text(up.url)) as serve:
        for number, way in enumerate(WAYS):
            recording = way.recording
            every = framings(recording.response_body, recording.number)
            framing = every[number % len(every)]
            is_chunked = number % 2 == 1
            request_id = f"replay-{number}"
            answers[request_id] = answer_of(way, framing)
            if framing.closes:
                answers[request_id] = answers[request_id].replace(
                    b"\r\nConnection: keep-alive,", b"\r\nconnection: close,"
                )
            host = f"gw{SETUPS.index((way.provider, way.base))}.test"
            status, fields, body = fetch(serve, request_of(way, request_id, host, is_chunked=is_chunked))
            assert (request_id, status) == (request_id, recording.status)
            assert (gzip.decompress(body) if "gzip" in framing.name else body) == recording.response_body
            expected = without(way.response_lines() + framing.lines, SAID_TO_CLIENT)
            assert [field for field in fields if field in parsed(expected)] == parsed(expected)
            check_seen(way, seen[request_id], request_id, f"127.0.0.1:{up.port}", is_chunked=is_chunked)
        for number, way in enumerate(WAYS):
            record = serve.record(f"replay-{number}")
            assert (record["end"], record["fault"], record["status"]) == ("ok", "none", way.recording.status)
            assert (record.get("model"), record["key"]) == (way.logged_model, "replay")
        assert serve.stop() == 0


Fields = list[tuple[str, str]]


def parsed(lines: list[bytes]) -> Fields:
    """Names in lower case, values without the blanks around them."""
    split = [line.decode("latin-1").partition(":") for line in lines]
    return [(name.lower(), value.strip()) for name, _, value in split]


def fetch(serve: Serve, request: bytes) -> tuple[int, Fields, bytes]:
    """Status, header fields and body as the standard library reads them."""
    connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
    connection.connect()
    connection.sock.sendall(request)
    with http.client.HTTPResponse(connection.sock, method="POST") as response:
        response.begin()
        body = response.read()
    connection.close()
    return response.status, [(name.lower(), value.strip()) for name, value in response.getheaders()], body
