"""Secrets stay where they belong: distinct ones are put everywhere, and then looked for in everything.

Each canary is a secret with a purpose, and knows the upstreams it may reach. One gateway process serves good and bad
requests that carry them in every form there is; what the upstreams received, what the clients were answered, and all
that the processes said is kept, and searched for each canary, whole, in pieces and encoded.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from fakes import CHAT, Seen, chunked, get, ok, post
from processes import PATIENCE, Serve, Upstream, environment

from aigw.config import store

# secrets --------------------------------------------------------------------------------------------------------------


class Canaries:
    """Secrets by name, each with the upstreams that it must reach; it must reach nothing else."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.goes_to: dict[str, set[str]] = {}

    def __call__(self, name: str, *goes_to: str, prefix: str = "") -> str:
        """The secret called `name`: always the same text."""
        text = prefix + hashlib.sha256(name.encode()).hexdigest()[:40]
        self.texts[name] = text
        self.goes_to.setdefault(name, set()).update(goes_to)
        return text

    def found(self, data: bytes) -> set[str]:
        """Names of those that `data` gives away: a piece of the text is enough, and so is base64 of it."""
        return {name for name, text in self.texts.items() if any(piece in data for piece in _pieces(text))}


def _pieces(text: str) -> list[bytes]:
    raw = text.encode()
    # Of base64, what does not depend on where the text begins or on what stands before it.
    encoded = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return [raw[:20], raw[-12:], text.upper().encode()[-12:], *encoded]


canary = Canaries()

ALICE = canary("alice's key", prefix="sk-aigw-")
BOB = canary("bob's key, of another gateway", prefix="sk-aigw-")
OLD = canary("alice's key before the rotation", prefix="sk-aigw-")
DISABLED = canary("a disabled key", prefix="sk-aigw-")
EXPIRED = canary("an expired key", prefix="sk-aigw-")
WRONG = canary("a key of another service", prefix="sk-proj-")
SESSION = canary("a session's cookie")

# Upstreams with a credential of their own, those that take the client's, and HTTP APIs of both kinds.
OWN = ["openai", "azure", "anthropic", "gemini", "search"]
CLIENTS = ["theirs", "none", "files"]
PROVIDERS = {"openai": "openai", "azure": "azure", "anthropic": "anthropic", "gemini": "gemini", "search": "http"} | {
    "theirs": "openai",
    "none": "openai",
    "files": "http",
}
KEYS = {name: canary(f"the key of upstream {name}", name, prefix="sk-") for name in OWN}
HEADER = canary("a header of upstream openai", "openai")


# the gateway ----------------------------------------------------------------------------------------------------------

CONFIG = """\
upstreams:
  openai:
    provider: openai
    api_key: "${{file:openai.key}}"
    headers: {{x-team-secret: "{header}"}}
    targets: [{{url: "{openai}/v1"}}]
  azure: {{provider: azure, api_key: "${{AZURE_SECRET}}", targets: [{{url: "{azure}"}}]}}
  anthropic: {{provider: anthropic, api_key: "{key[anthropic]}", targets: [{{url: "{anthropic}"}}]}}
  gemini: {{provider: gemini, targets: [{{url: "{gemini}", api_key: "{key[gemini]}"}}]}}
  search: {{provider: http, api_key: "{key[search]}", targets: [{{url: "{search}"}}]}}
  theirs: {{provider: openai, api_key: client, targets: [{{url: "{theirs}"}}]}}
  none: {{provider: openai, targets: [{{url: "{none}"}}]}}
  files: {{provider: http, targets: [{{url: "{files}"}}]}}
  unreachable: {{provider: openai, api_key: "{key[openai]}", targets: [{{url: "http://127.0.0.1:{closed}"}}]}}
  no-tls:
    provider: openai
    api_key: "{no_tls}"
    timeouts: {{connect: 300ms}}
    targets: [{{url: "https://127.0.0.1:{plain}"}}]
gateways:
  default:
    keys:
      alice: {{sha256: "{alice}", previous: {{sha256: "{old}", until: 2999-01-01}}}}
      off: {{sha256: "{disabled}", disabled: true}}
      past: {{sha256: "{expired}", expires: 2020-01-01}}
    models:
      openai: openai
      azure: azure
      anthropic: anthropic
      gemini: gemini
      theirs: theirs
      none: none
      unreachable: unreachable
      no-tls: no-tls
    rules:
      - {{name: api, path: "/*"}}
      - {{name: search, path: "/search/*", upstream: search}}
      - {{name: files, path: "/files/*", upstream: files}}
  other: {{hosts: [other.test], keys: {{bob: {{sha256: "{bob}"}}}}, models: {{"*": none}}}}
  open: {{hosts: [open.test], auth: none, models: {{none: none, openai: openai}}}}
"""
NO_TLS = canary("the key of an upstream whose certificate cannot be verified", prefix="sk-")


def _sha(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def upstream_answer(seen: Seen) -> bytes:
    """As `x-answer` says; the refusals quote everything that came, as some providers do with keys."""
    quoted = b"; ".join(seen.lines)
    match seen.headers.get("x-answer", ""):
        case "401" | "403" as status:
            error = b'{"error": {"message": "Incorrect API key provided: ' + quoted.replace(b'"', b"'") + b'"}}'
            challenge = b'www-authenticate: Bearer error="' + quoted.replace(b'"', b"'") + b'"'
            return ok(error, challenge, status=status.encode() + b" Unauthorized")
        case "bad head":
            return b"HTTP/1.1 200 OK\r\nx-quoted: " + quoted + b"\0\r\ncontent-length: 0\r\n\r\n"
        case "garbage":
            return quoted
        case "cut":
            return b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 100\r\n\r\n{"
        case "cut head":
            return b"HTTP/1.1 200 OK\r\nconnection: close\r\nx-quoted: " + quoted
        case "none":
            return b""
    return ok(b'{"ok": true}', b"set-cookie: provider=1")


class Evidence:
    """All there is to be searched: `received` by upstream, `output` by where it was seen."""

    def __init__(self) -> None:
        self.received: dict[str, bytes] = {}
        self.output: dict[str, bytes] = {}
        self.statuses: list[tuple[str, int]] = []

    def ask(self, serve: Serve, raw: bytes, what: str) -> int:
        """Sends bytes on a connection of its own and keeps what comes back; the status."""
        with socket.create_connection(("127.0.0.1", serve.port), timeout=PATIENCE) as client:
            client.sendall(raw)
            answer = b""
            while data := client.recv(65536):
                answer += data
        self.output["answers"] = self.output.get("answers", b"") + answer
        status = int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        self.statuses.append((what, status))
        return status


# requests -------------------------------------------------------------------------------------------------------------

# How a key can be sent: a header line, or a query.
FORMS = {
    "bearer": "authorization: Bearer {}",
    "bearer, oddly written": "AUTHORIZATION:bearer   {}  ",
    "no scheme": "Authorization: {}",
    "x-api-key": "X-Api-Key: {}",
    "api-key": "api-key:{}",
    "x-goog-api-key": "x-goog-api-key: {}",
    "query": "?key={}",
    "query, oddly written": "?a=1&k%65y={}&b=2",
    "query, percent-encoded": "?key=%{0[0]:x}{1}",
}
CLOSE = b"connection: close"


def request(upstream: str, *lines: str, query: str = "", host: str = "gw", number: int = 0) -> bytes:
    """A good request that goes to `upstream`; `number` makes its head differ from others of the kind."""
    paths = {
        "azure": "/openai/deployments/azure/chat/completions",
        "anthropic": "/v1/messages",
        "gemini": "/v1beta/models/gemini:generateContent",
        "search": "/search/x",
        "files": "/files/x",
    }
    body = b'{"model": "%b", "messages": []}' % upstream.encode()
    path = paths.get(upstream, "/v1/chat/completions") + query
    extra = [line.encode() for line in lines]
    return post(path, body, CLOSE, b"traceparent: 00-%d" % number, *extra, host=host.encode())


def carrying(form: str, key: str) -> tuple[list[str], str]:
    """Header lines and query that carry `key` in a form."""
    text = FORMS[form]
    if text.startswith("?"):
        return [], text.format((ord(key[0]),), key[1:]) if "percent" in form else text.format(key)
    return [text.format(key)], ""


def good_requests() -> Iterator[tuple[str, bytes]]:
    """Each of them is to be answered with 200."""
    for upstream in PROVIDERS:
        for form in FORMS:
            lines, query = carrying(form, ALICE)
            yield f"alice's key as {form} to {upstream}", request(upstream, *lines, query=query)
            # The gateway's key in its own header, and the client's own beside it.
            allowed = [upstream] if upstream in CLIENTS else []
            theirs = canary(f"a client's credential as {form} for {upstream}", *allowed, prefix="sk-ant-")
            lines, query = carrying(form, theirs)
            yield (
                f"a client's key as {form} to {upstream}",
                request(upstream, f"x-aigw-key: {ALICE}", *lines, query=query),
            )
            # Keys of the gateway where the client's own should be.
            for key in (ALICE, OLD, BOB, DISABLED, EXPIRED):
                lines, query = carrying(form, key)
                yield (
                    f"a second key of the gateway as {form} to {upstream}",
                    request(upstream, f"X-AIGW-Key: {ALICE}", *lines, query=query),
                )
        cookie = canary(f"a cookie for {upstream}", *([upstream] if PROVIDERS[upstream] == "http" else []))
        yield f"a cookie to {upstream}", request(upstream, f"x-api-key: {ALICE}", f"cookie: a=1; session={cookie}")
    for number in range(4):  # by the long way and by memory
        yield "the same again", request("openai", f"authorization: Bearer {ALICE}", number=number)
        yield "the same again", request("none", f"x-api-key: {ALICE}", f"x-aigw-key: {ALICE}", number=number)
    yield "the old key", request("none", f"authorization: Bearer {OLD}")
    yield "all forms at once", request("none", *(FORMS[form].format(ALICE) for form in list(FORMS)[:6]))
    yield "another gateway", request("none", f"x-goog-api-key: {BOB}", host="other.test")
    yield (
        "another gateway's key beside it",
        request("none", f"x-aigw-key: {BOB}", f"api-key: {ALICE}", host="other.test"),
    )
    yield "no key needed", request("none", f"authorization: Bearer {ALICE}", host="open.test")
    yield "no key needed", request("openai", f"authorization: Bearer {WRONG}", f"cookie: {SESSION}", host="open.test")
    yield "proxy-authorization", request("none", f"x-api-key: {ALICE}", f"proxy-authorization: Bearer {ALICE}")
    yield "named by connection", request("none", f"authorization: Bearer {ALICE}", "connection: authorization")
    trailer = chunked(CHAT.replace(b"gpt-4o", b"none"))[:-2] + b"authorization: Bearer %b\r\n\r\n" % ALICE.encode()
    yield (
        "a trailer",
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gw\r\nconnection: close\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\nx-api-key: %b\r\n\r\n%b" % (ALICE.encode(), trailer)
        ),
    )
    yield "models", get(f"/v1/models?key={ALICE}", CLOSE)


def refused_requests() -> Iterator[tuple[str, bytes]]:
    """Each of them is to be answered with an error of the gateway's own, or with a closed connection."""
    yield from wrong_keys()
    yield from failing_upstreams()
    yield from malformed_requests(ALICE.encode())


def wrong_keys() -> Iterator[tuple[str, bytes]]:
    for key in (WRONG, DISABLED, EXPIRED, BOB):
        for form in FORMS:
            lines, query = carrying(form, key)
            for upstream in ("none", "anthropic", "gemini"):
                yield f"a wrong key as {form}", request(upstream, *lines, query=query)
        yield "two different keys", request("none", f"x-api-key: {ALICE}", f"authorization: Bearer {key}")
        yield "two different keys", request("none", f"x-api-key: {key}", query=f"?key={ALICE}")
        yield "another's own header", request("none", f"x-aigw-key: {key}", f"authorization: Bearer {ALICE}")
        yield "the wrong place", request("none", f"cookie: key={key}", f"proxy-authorization: Bearer {key}")
        yield "basic", request("none", f"authorization: Basic {base64.b64encode(f'user:{key}'.encode()).decode()}")


def failing_upstreams() -> Iterator[tuple[str, bytes]]:
    alice = f"authorization: Bearer {ALICE}"
    for status, answer in ((401, "401"), (502, "bad head"), (502, "garbage"), (0, "cut"), (502, "cut head")):
        for upstream in OWN:
            yield f"an upstream that answers {answer} ({status})", request(upstream, alice, f"x-answer: {answer}")
    yield "no answer", request("openai", alice, "x-answer: none")
    yield "unreachable", request("unreachable", alice)
    yield "no TLS there", request("no-tls", alice)
    yield "an unknown model", request("gpt-9", alice)
    yield "another dialect's path", post("/v1/messages", CHAT.replace(b"gpt-4o", b"none"), CLOSE, alice.encode())
    yield "an unknown path", get(f"/v1/v1/models?key={ALICE}", CLOSE)
    yield "an unknown host", request("none", alice, host="user:" + ALICE)


def malformed_requests(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """With the key `raw` in all places."""
    head = b"host: gw\r\ncontent-length: 2\r\n"
    for line in (
        b"authorization : Bearer " + raw,
        b" authorization: Bearer " + raw,
        b"authorization: Bearer\r\n " + raw,
        b"authorization: Bearer " + raw + b"\0",
        b"authorization: Bearer " + raw + b"\nx: y",
        b"x-api-key " + raw,
        raw + b" x: y",
        b"x-api-key: " + raw + b"\r\nexpect: " + raw,
        b"x-api-key: " + raw + b"\r\ntransfer-encoding: " + raw,
        b"x-api-key: " + raw + b"\r\ncontent-length: " + raw,
        b"x-api-key: " + raw + b"\r\nconnection: (" + raw,
        b"x-api-key: " + raw + b"\r\nx: " + b"y" * 40_000,
        b"\r\n".join([b"x-api-key: " + raw] * 200),
    ):
        yield "a malformed head", b"POST /v1/chat/completions HTTP/1.1\r\n" + head + line + b"\r\n\r\n{}"
    for first in (
        b"GET /v1/models?key=%b HTTP/9.9",
        b"GET  /v1/models?key=%b HTTP/1.1",
        b"GET http://user:%b@gw/v1/models HTTP/1.1",
        b"GET /v1/models?key=%b&x=" + b"y" * 20_000 + b" HTTP/1.1",
        b"GET /v1/models?key=%b\x7f HTTP/1.1",
        b"%b /v1/models HTTP/1.1",
        b"CONNECT %b:443 HTTP/1.1",
        b"GET /v1/../%b HTTP/1.1",
        b"%b",
    ):
        yield "a malformed request line", first % raw + b"\r\nhost: gw\r\n\r\n"
    bodies = (b'{"model": "none", "key": "%b"' % raw, b'{"model": "none", "model": "%b"}' % raw, b"%b" % raw)
    for body in bodies:
        yield "a malformed body", post("/v1/chat/completions", body, CLOSE, b"x-api-key: " + raw)
    boundary = b"content-type: multipart/form-data; boundary=" + raw
    yield (
        "a malformed form",
        post("/v1/audio/transcriptions", b"wrong", CLOSE, b"x-api-key: " + raw, boundary).replace(
            b"content-type: application/json\r\n", b""
        ),
    )


# the scenario ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Everything is done once; the tests look at what is left of it."""
    folder = tmp_path_factory.mktemp("canary")
    evidence = Evidence()
    with ExitStack() as stack:
        upstreams = {name: stack.enter_context(Upstream(upstream_answer)) for name in [*PROVIDERS, "plain"]}
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))  # and never listens
            (folder / "openai.key").write_text(KEYS["openai"] + "\n")
            config = CONFIG.format(
                **{name: upstream.url for name, upstream in upstreams.items() if name != "plain"},
                plain=upstreams["plain"].port,
                closed=closed.getsockname()[1],
                key=KEYS,
                header=HEADER,
                no_tls=NO_TLS,
                alice=_sha(ALICE),
                old=_sha(OLD),
                bob=_sha(BOB),
                disabled=_sha(DISABLED),
                expired=_sha(EXPIRED),
            )
            environ = {"AZURE_SECRET": KEYS["azure"]}
            with Serve(folder, config, environ) as serve:
                for what, raw in good_requests():
                    assert evidence.ask(serve, raw, what) == 200, what
                for what, raw in refused_requests():
                    status = evidence.ask(serve, raw, what)
                    assert status == 0 or status >= 400 or "cut" in what, (what, status)
                evidence.output["command lines"] = b"".join(
                    Path(f"/proc/{pid}/cmdline").read_bytes() for pid in serve.processes()
                )
                evidence.output["environments"] = b"\0".join(
                    line
                    for pid in serve.processes()
                    for line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                    if not line.startswith(b"AZURE_SECRET=")  # where the operator put it
                )
                assert serve.stop() == 0
                evidence.output["access log"] = serve.out.data
                evidence.output["stderr"] = serve.err.data
        checked = subprocess.run(
            [sys.executable, "-m", "aigw", "check", "config.yaml"],
            cwd=folder,
            env=environment(**environ),
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        evidence.output["aigw check"] = checked.stdout + checked.stderr
        evidence.received = {name: upstream.received for name, upstream in upstreams.items()}
    return evidence


def test_what_was_asked_was_answered(evidence: Evidence) -> None:
    """Else nothing was tested: every upstream had its part, and refusals were as meant."""
    assert all(evidence.received.values())
    statuses = dict.fromkeys(status for _, status in evidence.statuses)
    assert {200, 400, 401, 404, 414, 417, 431, 502, 505} <= statuses.keys()
    assert evidence.output["access log"].count(b"\n") > 300
    assert b'"error":"upstream_credential_refused"' in evidence.output["access log"]


def test_no_secret_is_in_any_output(evidence: Evidence) -> None:
    assert {where: canary.found(data) for where, data in evidence.output.items() if canary.found(data)} == {}


def test_every_secret_reaches_its_upstreams_and_no_other(evidence: Evidence) -> None:
    reached = {name: set[str]() for name in canary.texts}
    for upstream, data in evidence.received.items():
        for name in canary.found(data):
            reached[name].add(upstream)
    wrong = {name: where for name, where in reached.items() if where != canary.goes_to[name]}
    assert wrong == {name: canary.goes_to[name] for name in wrong}


def test_the_search_finds_what_it_looks_for() -> None:
    for hidden in (
        b"x" + ALICE.encode() + b"y",
        ALICE.encode()[:25],
        ALICE.encode()[15:],
        base64.b64encode(b"user:" + ALICE.encode()),
    ):
        assert canary.found(hidden) == {"alice's key"}
    assert canary.found(b"nothing here") == set()


def test_an_upstream_s_refusal_that_quotes_our_credential_is_not_relayed(tmp_path: Path) -> None:
    """A provider may answer 403 for a bad credential, too."""
    with Upstream(upstream_answer) as upstream:
        config = (
            f'upstreams: {{openai: {{provider: openai, api_key: "{KEYS["openai"]}", '
            f'targets: [{{url: "{upstream.url}"}}]}}}}\n'
            "gateways: {default: {auth: none, models: {openai: openai}}}\n"
        )
        evidence = Evidence()
        with Serve(tmp_path, config) as serve:
            status = evidence.ask(serve, request("openai", "x-answer: 403"), "403")
            serve.stop()
    assert canary.found(upstream.received) == {"the key of upstream openai"}
    assert canary.found(evidence.output["answers"]) == set()
    assert status == 502


# bad configs ----------------------------------------------------------------------------------------------------------

# In a field that holds a secret, text is kept back that looks like none.
PHRASE = "battery-staple"
TOKEN = canary("a secret in a bad config", prefix="sk-proj-")
BAD_CONFIGS = {
    "a credential that is a list": "upstreams: {a: {provider: openai, api_key: [%s]}}",
    "a credential that is a mapping": "upstreams: {a: {provider: openai, api_key: {%s: x}}}",
    "a credential on two lines": 'upstreams: {a: {provider: openai, api_key: "%s\\nx"}}',
    "a credential with a blank": 'upstreams: {a: {provider: openai, api_key: " %s"}}',
    "a credential twice": 'upstreams: {a: {provider: openai, api_key: "%s", api_key: "%s"}}',
    "a misspelt credential": 'upstreams: {a: {provider: openai, api_kye: "%s"}}',
    "a credential of the mock": 'upstreams: {a: {provider: mock, api_key: ["%s"]}}',
    "a credential with a tag": "upstreams: {a: {provider: openai, api_key: !!binary %s}}",
    "a credential with a mark of YAML's": "upstreams: {a: {provider: openai, api_key: @%s}}",
    "a credential without its end": 'upstreams: {a: {provider: openai, api_key: "%s',
    "a credential with a tab": "upstreams:\n  a:\n\tapi_key: %s\n",
    "an alias": "upstreams: {a: {provider: openai, api_key: *%s}}",
    "user info in a URL": 'upstreams: {a: {provider: openai, targets: [{url: "http://user:%s@host/v1"}]}}',
    "a query in a URL": 'upstreams: {a: {provider: openai, targets: [{url: "http://host/v1?key=%s"}]}}',
    "a URL of another scheme": 'upstreams: {a: {provider: openai, targets: [{url: "ftp://%s@host/v1"}]}}',
    "a header with a control byte": 'upstreams: {a: {provider: openai, headers: {x-secret: "%s\\u0007"}}}',
    "a header that is a list": "upstreams: {a: {provider: openai, headers: {x-secret: [%s]}}}",
    "a key instead of its digest": "gateways: {default: {keys: {x: {sha256: %s}}}}",
    "a key where its entry belongs": "gateways: {default: {keys: {x: %s}}}",
    "a list of keys": "gateways: {default: {keys: [%s]}}",
    "an old key instead of its digest": (
        "gateways: {default: {keys: {x: {sha256: %s, previous: {sha256: %s, until: 2999-01-01}}}}}"
    ),
}
INTERPOLATED = {
    "as a port": 'listen: "127.0.0.1:${SECRET}"',
    "as a number": 'workers: "${SECRET}"',
    "as a duration": 'timeouts: {request: "${SECRET}"}',
    "as a word": 'upstreams: {a: {provider: "${SECRET}"}}',
    "as a URL": 'upstreams: {a: {provider: openai, targets: [{url: "${SECRET}"}]}}',
    "as a model's upstream": 'gateways: {default: {models: {x: "${SECRET}"}}}',
    "as a rule": 'gateways: {default: {rules: [{name: "${SECRET}", path: "${SECRET}", upstream: "${SECRET}"}]}}',
    "as a digest": 'gateways: {default: {keys: {x: {sha256: "${SECRET}"}}}}',
    "as a date": 'gateways: {default: {keys: {x: {sha256: "${SECRET}", expires: "${SECRET}"}}}}',
    "from a file": 'workers: "${file:secret.txt}"',
    "as a path": 'gateways: {}\nupstreams: {a: {provider: openai, tls: {ca: "${SECRET}.pem"}}}',
    "as a list": 'gateways: {default: {hosts: ["${SECRET}/x"]}}',
}
COMMANDS = {
    "aigw check": ["aigw", "check", "config.yaml"],
    "aigw serve": ["aigw", "serve", "--config", "config.yaml", "--listen", "127.0.0.1:0"],
    "the child that reads it": ["aigw.config.store", "config.yaml"],
}


def said(folder: Path, command: str, **environ: str) -> str:
    """What a command says about the bad config in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[command]],
        cwd=folder,
        env=environment(**environ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"config\.yaml:\d+:\d+ ", done.stdout + done.stderr), "no error with its place"
    return done.stdout + done.stderr


def all_in_one(folder: Path, secret: str) -> None:
    """A file with every bad line that leaves the rest of it readable, each in an upstream or gateway of its own."""
    upstreams: list[str] = []
    gateways: list[str] = []
    for number, text in enumerate(BAD_CONFIGS.values()):
        found = re.fullmatch(r"(upstreams: \{a|gateways: \{default): (\{.*\})\}", text)
        if found:
            (upstreams if "upstreams" in found[1] else gateways).append(
                f"  n{number}: {found[2]}".replace("%s", secret)
            )
    bad = [line for line in upstreams if not any(mark in line for mark in ("!!", ": @", ": *"))]
    assert len(bad) > 10
    assert len(gateways) > 3
    (folder / "config.yaml").write_text("\n".join(["upstreams:", *bad, "gateways:", *gateways, ""]))


@pytest.mark.unmeasured
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("secret", [TOKEN, PHRASE], ids=["token", "phrase"])
def test_many_errors_of_a_config_without_its_secrets(tmp_path: Path, command: str, secret: str) -> None:
    all_in_one(tmp_path, secret)
    assert secret not in said(tmp_path, command)


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_errors_of_a_config_without_its_secrets(tmp_path: Path, name: str) -> None:
    text = BAD_CONFIGS[name]
    for secret in (TOKEN, PHRASE):
        with pytest.raises(store.ConfigError) as caught:
            store.parse(text.replace("%s", secret), name="config.yaml", base=tmp_path, environ={})
        assert secret not in str(caught.value)
        assert not canary.found(str(caught.value).encode())


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_about_interpolated_values_without_the_values(tmp_path: Path, command: str) -> None:
    """Whatever field it stands in by mistake, and whatever it looks like."""
    (tmp_path / "secret.txt").write_text(PHRASE)
    sections: dict[str, list[str]] = {}
    for number, line in enumerate(line for line in INTERPOLATED.values() if "\n" not in line):
        section, _, rest = line.partition(": ")
        found = re.fullmatch(r"\{(?:a|default): (.*)\}", rest)
        sections.setdefault(section, []).append(f"\n  n{number}: {found[1]}" if found else f" {rest}")
    text = "".join(f"{name}:{''.join(lines[:1] if name == 'workers' else lines)}\n" for name, lines in sections.items())
    (tmp_path / "config.yaml").write_text(text)
    told = said(tmp_path, command, SECRET=PHRASE)
    assert PHRASE not in told
    assert told.count("${SECRET}") > 5  # it is named instead


@pytest.mark.parametrize("name", INTERPOLATED)
def test_an_interpolated_value_is_never_repeated(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_text(PHRASE)
    with pytest.raises(store.ConfigError) as caught:
        store.parse(INTERPOLATED[name], name="config.yaml", base=tmp_path, environ={"SECRET": PHRASE})
    assert PHRASE not in str(caught.value)
    assert re.search(r"\$\{(SECRET|file:secret\.txt)\}", str(caught.value))
