"""From the text of a config to the plain document, or to every problem with its place and remedy."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

from aigw.config import snapshot, store
from aigw.config.loader import Loader
from aigw.config.values import Plain
from aigw.config.walk import children
from aigw.watch import digest_of

BAD = Path(__file__).parent / "bad"
CANARY = "canary"  # in every secret of the bad files and of this environment
ENVIRON = {"SECRET": "sk-canary-0123456789abcdef", "MULTILINE": "canary\nline", "EMPTY": ""}
DIGEST = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


def parse(text: str, *, environ: dict[str, str] | None = None, base: Path = BAD) -> store.Loaded:
    return store.parse(text, name="config.yaml", base=base, environ=environ or {})


def problems(text: str, **options: Any) -> list[str]:
    with pytest.raises(store.ConfigError) as caught:
        parse(text, **options)
    return [str(problem) for problem in caught.value.problems]


def upstream(text: str, **options: Any) -> dict[str, Any]:
    """The one upstream `u`, from its own text."""
    found: dict[str, Any] = parse(f"upstreams: {{u: {text}}}\ngateways: {{}}", **options).document["upstreams"]["u"]
    return found


def gateway(text: str, **options: Any) -> dict[str, Any]:
    """The gateway `g` beside the mock `m`."""
    text = f"upstreams: {{m: {{provider: mock}}}}\ngateways:\n  g:\n    models: {{'*': m}}\n{text}"
    found: dict[str, Any] = parse(text, **options).document["gateways"]["g"]
    return found


# Bad files


@pytest.mark.parametrize("path", sorted(BAD.glob("*.yaml")), ids=lambda path: path.stem)
def test_bad_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BAD)
    with pytest.raises(store.ConfigError) as caught:
        store.load(Path(path.name), ENVIRON)
    assert str(caught.value).splitlines() == path.with_suffix(".txt").read_text().splitlines()
    assert CANARY not in str(caught.value)
    assert CANARY not in repr(caught.value)


def test_there_are_many_bad_files() -> None:
    assert len(list(BAD.glob("*.yaml"))) >= 40
    assert {path.stem for path in BAD.glob("*.yaml")} == {path.stem for path in BAD.glob("*.txt")}


def test_a_problem_names_file_line_column_path_and_remedy() -> None:
    text = "gateways:\n  default:\n    rules:\n      - name: api\n        upsteam: x\n        path: /\n"
    assert problems(text) == [
        'config.yaml:5:9 gateways.default.rules[0].upsteam: unknown key; did you mean "upstream"?'
    ]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: None, "does not exist; check the path"),
        (lambda path: path.mkdir(), "cannot be read: Is a directory"),
        (lambda path: os.mkfifo(path), "is no regular file; name a file"),
        (lambda path: path.symlink_to(path), "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"# " + b"x" * (16 << 20)), "is larger than 16384 KiB; is it the right file?"),
    ],
    ids=["missing", "folder", "pipe", "loop", "huge"],
)
def test_unreadable_file(tmp_path: Path, prepare: Any, message: str) -> None:
    path = tmp_path / "config.yaml"
    prepare(path)
    with pytest.raises(store.ConfigError) as caught:
        store.load(path, {})
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.touch(0o000)
    with pytest.raises(store.ConfigError, match="may not be read by this user"):
        store.load(path, {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", r"a\x00b: has a path with a NUL in it; check the path"),
        ("a\udcff\n", r"a\udcff\x0a: does not exist; check the path"),
    ],
)
def test_odd_path(name: str, message: str) -> None:
    with pytest.raises(store.ConfigError) as caught:
        store.load(Path(name), {})
    assert str(caught.value).replace(r"\n", r"\x0a") == message


def test_random_damage_is_an_error_or_a_config() -> None:
    """Whatever a half-written or damaged file holds, the outcome is a document or problems."""
    whole = (Path(__file__).parents[2] / "config.yaml").read_text()[-9000:] + "\n#x: '\n"
    for cut in range(0, len(whole), 97):
        for text in (whole[cut:], whole[:cut], whole[:cut] + "\t{" + whole[cut:], whole[:cut].replace("#", "")):
            with contextlib.suppress(store.ConfigError):
                parse(text)


ODD = ['""', "", "text", "5", "true", "[]", "{}", "[[a]]", "{a: {b: c}}", "2027-01-01", '"${UNSET:-}"']


@pytest.mark.unmeasured
def test_any_value_anywhere_is_an_error_or_a_config() -> None:
    """Each place of a document that has everything, with values that belong elsewhere."""
    data = Loader(SECTION_8, "config.yaml", lambda value: value).data
    paths: list[tuple[str | int, ...]] = []

    def collect(value: object, path: tuple[str | int, ...]) -> None:
        for step, child in children(value):
            paths.append((*path, step))
            collect(child, (*path, step))

    def written(value: object, at: tuple[str | int, ...] | None, odd: str) -> str:
        if at == ():
            return odd
        inner = [
            (step, written(child, at[1:] if at and at[0] == step else None, odd)) for step, child in children(value)
        ]
        if isinstance(value, dict):
            return "{" + ", ".join(f'"{step}": {text}' for step, text in inner) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(text for _, text in inner) + "]"
        return str(value) if isinstance(value, Plain) else json.dumps(value)

    collect(data, ())
    assert len(paths) > 150
    refused = []
    for index, path in enumerate(paths):
        for odd in (ODD[index % len(ODD)], ODD[(index + 4) % len(ODD)], ODD[(index + 7) % len(ODD)]):
            try:
                parse(written(data, path, odd), environ={"OPENAI_API_KEY": "k"})
            except store.ConfigError as error:
                refused.append(error.problems)
    assert len(refused) > len(paths)
    assert all(refused)


# Text, interpolation


@pytest.mark.parametrize("name", ["3.5", "010", "1_000", "12:30", "2027-01-01", "on", "off", "yes", "0x10", "1e3"])
def test_text_stays_what_was_written(name: str) -> None:
    document = parse(
        f"upstreams: {{m: {{provider: mock, headers: {{x-a: {name}}}}}}}\n"
        f"gateways: {{g: {{auth: none, models: {{{name}: {{upstream: m, model: {name}}}}}}}}}"
    ).document
    assert document["upstreams"]["m"]["headers"] == {"x-a": name}
    assert document["gateways"]["g"]["models"][name]["model"] == name


def test_names_that_look_like_something_else() -> None:
    found = gateway(f"    keys: {{1: {{sha256: {DIGEST}, group: on}}, off: {{sha256: {'7' * 64}, group: 010}}}}")
    assert found["keys"]["1"]["group"] == "on"
    assert found["keys"]["off"]["sha256"] == "7" * 64
    assert found["keys"]["off"]["group"] == "010"


def test_aliases_within_bounds() -> None:
    document = parse(
        "upstreams: {m: {provider: mock}}\n"
        "gateways:\n"
        "  a: {auth: none, hosts: [a.com], models: {'*': m}, rules: &r [{name: x, path: /x, upstream: m}]}\n"
        "  b: {auth: none, hosts: [b.com], models: {'*': m}, rules: *r}\n"
    ).document
    assert document["gateways"]["b"]["rules"] == document["gateways"]["a"]["rules"]


def test_a_problem_within_an_alias_is_shown_where_it_is_used() -> None:
    text = (
        "upstreams:\n"
        "  m: {provider: mock, timeouts: &t {queue: 5}}\n"
        "  n: {provider: mock, timeouts: *t}\n"
        "gateways: {}\n"
    )
    assert [line.split(": ")[0] for line in problems(text)] == [
        "config.yaml:2:44 upstreams.m.timeouts.queue",
        "config.yaml:3:23 upstreams.n.timeouts.queue",
    ]


def test_a_byte_order_mark_and_windows_line_ends() -> None:
    assert parse("\ufeffgateways: {}\r\nworkers: 1\r\n").document["gateways"] == {}


def test_interpolated_values_take_the_type_of_their_field() -> None:
    environ = {"N": "7", "T": "true", "D": "3s", "P": "mock", "X": "010", "H": "example.com"}
    found = upstream(
        '{provider: "${P}", max_connections: "${N}", timeouts: {queue: "${D}", idle: "${UNSET:-9s}"}}', environ=environ
    )
    assert (found["max_connections"], found["timeouts"]["queue"], found["timeouts"]["idle"]) == (7, 3.0, 9.0)
    found = gateway(
        '    rules: [{name: "${X}", path: "/*", public: "${T}"}]\n    hosts: ["${H}", "api.${H}"]', environ=environ
    )
    assert (found["rules"][0]["name"], found["rules"][0]["public"]) == ("010", True)
    assert found["hosts"] == ["example.com", "api.example.com"]


def test_a_doubled_dollar_is_literal_and_quoted_text_stays_text() -> None:
    found = upstream('{provider: mock, headers: {x-a: "a$${B}c", x-b: "$5", x-c: "$${D}"}}')
    assert found["headers"] == {"x-a": "a${B}c", "x-b": "$5", "x-c": "${D}"}
    refused = problems('upstreams: {u: {provider: mock, max_connections: "$${5}"}}\ngateways: {}')
    assert refused[0].endswith("it is quoted text, so leave out the quotes")


def test_an_empty_default_means_absent() -> None:
    environ = {"EMPTY": ""}
    found = upstream(
        '{provider: openai, api_key: "${UNSET:-}", headers: {x-a: "${EMPTY:-}"}, dialects: ["${UNSET:-}", openai]}',
        environ=environ,
    )
    assert (found["api_key"], found["headers"], found["dialects"]) == (None, {}, ["openai"])


def test_interpolated_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\r\n")
    found = parse(
        'upstreams: {u: {provider: openai, api_key: "${file:key}"}, v: {provider: openai, api_key: "${file:key}"}}\n'
        "gateways: {}",
        base=tmp_path,
    )
    assert found.document["upstreams"]["u"]["api_key"] == "sk-from-file"
    assert found.files == [str(tmp_path / "key")]
    assert "sk-from-file" not in repr(found)


def test_interpolated_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff")
    text = 'upstreams: {u: {provider: openai, api_key: "${file:key}"}}\ngateways: {}'
    assert problems(text, base=tmp_path)[0].endswith("the file of ${file:key} is not UTF-8 text")


# The document


def test_defaults() -> None:
    document = parse("gateways: {}").document
    assert document == {
        "listen": [{"address": "127.0.0.1:8081"}],
        "workers": 1,
        "access_log": "stdout",
        "usage_store": {"path": str(BAD / "aigw-usage.db"), "retention": 7776000.0},
        "timeouts": {
            "handshake": 10.0,
            "keepalive": 75.0,
            "request": 30.0,
            "client_read": 60.0,
            "client_write": 60.0,
            "linger": 2.0,
            "total": None,
        },
        "bounds": {
            "head": 32768,
            "headers": 100,
            "url": 16384,
            "body": 33554432,
            "collected": 536870912,
            "connections": 10000,
        },
        "drain": {"delay": 0.0, "timeout": 30.0},
        "trusted_proxies": [],
        "answer_headers": {"x-ratelimit": True, "x-aigw": True, "server-timing": True},
        "prices": {},
        "upstreams": {},
        "gateways": {},
    }


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        ("{provider: mock}", "inject"),
        ("{provider: openai}", "inject"),
        ("{provider: openai, targets: [{url: 'https://api.openai.com/v1'}]}", "inject"),
        ("{provider: openai, targets: [{url: 'http://10.0.0.1/v1'}]}", "as_reported"),
        (
            "{provider: openai, targets: [{url: 'https://api.openai.com/v1'}, {url: 'http://10.0.0.1/v1'}]}",
            "as_reported",
        ),
        ("{provider: openai, targets: [{url: 'http://10.0.0.1/v1'}], usage: inject}", "inject"),
        ("{provider: openai, usage: as_reported}", "as_reported"),
        ("{provider: azure, targets: [{url: 'https://api.openai.com/v1'}]}", "as_reported"),
        ("{provider: anthropic}", "as_reported"),
    ],
)
def test_whom_streams_are_asked_for_their_usage(text: str, usage: str) -> None:
    assert upstream(text)["usage"] == usage


def test_defaults_of_an_upstream() -> None:
    assert upstream("{provider: openai, api_key: client}") == {
        "provider": "openai",
        "dialects": ["openai"],
        "api_key": "client",
        "usage": "inject",
        "balance": "round_robin",
        "hash_on": None,
        "headers": {},
        "timeouts": {
            "queue": 5.0,
            "connect": 5.0,
            "send": 60.0,
            "first_byte": 600.0,
            "first_token": None,
            "idle": 300.0,
            "pool_idle": 55.0,
        },
        "max_connections": None,
        "health": None,
        "eject": {"after": 5, "for": 30.0},
        "tls": {"verify": True, "ca": None, "server_name": None, "ca_digest": None},
        "targets": [
            {
                "name": "api.openai.com:443",
                "url": "https://api.openai.com/v1",
                "weight": 1,
                "api_key": None,
                "headers": {},
                "model": {},
                "limits": [],
            }
        ],
        "limits": [],
    }


def test_defaults_of_a_gateway() -> None:
    found = gateway(f"    keys: {{k: {{sha256: {DIGEST.upper()}}}}}\n")
    assert found == {
        "hosts": ["*"],
        "auth": "keys",
        "keys": {
            "k": {
                "sha256": DIGEST,
                "models": ["*"],
                "group": None,
                "expires": None,
                "disabled": False,
                "previous": None,
                "resources": False,
                "limits": [],
                "retry": None,
            }
        },
        "models": {
            "*": {
                "upstream": "m",
                "model": None,
                "split": None,
                "list": None,
                "hidden": False,
                "timeouts": {"first_token": None, "total": None},
                "limits": [],
                "fallback": [],
                "retry": None,
            }
        },
        "rules": [
            {
                "name": "api",
                "path": "/*",
                "methods": None,
                "upstream": None,
                "default": None,
                "strip_path": False,
                "preserve_host": False,
                "public": False,
                "timeouts": {"first_token": None, "total": None},
                "limits": [],
                "retry": None,
            }
        ],
        "limits": [],
        "retry": None,
    }


@pytest.mark.parametrize(
    ("provider", "dialects"),
    [
        ("openai", ["openai"]),
        ("azure", ["openai"]),
        ("anthropic", ["anthropic"]),
        ("gemini", ["gemini"]),
        ("mock", ["openai", "anthropic", "gemini"]),
        ("http", []),
    ],
)
def test_dialects_of_a_provider(provider: str, dialects: list[str]) -> None:
    targets = ", targets: [{url: 'http://h'}]" if provider in ("azure", "http") else ""
    assert upstream(f"{{provider: {provider}{targets}}}")["dialects"] == dialects


@pytest.mark.parametrize(
    ("url", "normal", "name"),
    [
        ("http://h", "http://h", "h:80"),
        ("HTTPS://API.Example.com/v1/", "https://api.example.com/v1", "api.example.com:443"),
        ("http://10.0.0.7:8000/v1", "http://10.0.0.7:8000/v1", "10.0.0.7:8000"),
        ("http://[::1]:80/", "http://[::1]:80", "[::1]:80"),
        ("https://[2001:DB8::1]", "https://[2001:db8::1]", "[2001:db8::1]:443"),
        ("unix:/run/x.sock", "unix:/run/x.sock", "x.sock"),
        ("unix:/run/x.sock:/v1/", "unix:/run/x.sock:/v1", "x.sock"),
    ],
)
def test_urls(url: str, normal: str, name: str) -> None:
    target = upstream(f"{{provider: openai, targets: [{{url: '{url}'}}]}}")["targets"][0]
    assert (target["url"], target["name"]) == (normal, name)


def test_targets_in_both_forms() -> None:
    listed = upstream(
        "{provider: openai, targets: [{name: a, url: 'http://h/v1', weight: 0}, {name: b, url: 'http://i'}]}"
    )
    mapped = upstream("{provider: openai, targets: {a: {url: 'http://h/v1', weight: 0}, b: {url: 'http://i'}}}")
    assert listed["targets"] == mapped["targets"]
    assert listed["targets"][0]["weight"] == 0


def test_a_target_whose_url_makes_no_name() -> None:
    long = f"http://{'a' * 60}.example.com"
    text = f"upstreams: {{u: {{provider: openai, targets: [{{url: '{long}'}}]}}}}\ngateways: {{}}"
    assert "upstreams.u.targets[0]: needs a name" in problems(text)[0]


def test_everything_else_of_the_document(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    loaded = parse(
        f"""
        listen: ["127.0.0.1:0", "[::1]:8081", {{address: "localhost:1"}}]
        access_log: log/access.json
        timeouts: {{total: 1.5h, request: 250ms}}
        bounds: {{body: 1GiB, collected: 1GiB, head: 2048, url: 512B}}
        drain: {{delay: 5s, timeout: 0s}}
        answer_headers: {{x-aigw: false}}
        upstreams:
          m: {{provider: mock}}
          u:
            provider: anthropic
            balance: least_connections
            max_connections: 9
            headers: {{X-Team: search, openai-organization: null, x-empty: ~}}
            tls: {{ca: ca.pem, server_name: Internal.Example.com}}
            targets: [{{url: "https://h", api_key: k, headers: {{x: y}}, model: {{a: b}}}}]
        gateways:
          g:
            hosts: [API.example.com, "*.Example.com."]
            models: {{"x/*": {{upstream: u, model: "*", list: [x/1], hidden: true, timeouts: {{total: 1m}}}}}}
            keys:
              k: {{sha256: {DIGEST}, models: ["x/*"], expires: 2027-01-01, resources: true, disabled: true,
                   previous: {{sha256: {"a" * 64}, until: "2027-01-01T02:00:00+02:00"}}}}
            rules:
              - {{name: a, path: "/*", default: {{anthropic: u}}, timeouts: {{total: 5s}}}}
              - {{name: b, path: /b, methods: [GET, POST], upstream: u, strip_path: true, preserve_host: true}}
              - {{name: c, path: /c, default: m, public: true}}
        """,
        base=tmp_path,
    )
    document = loaded.document
    assert loaded.warnings == []
    assert loaded.files == [str(tmp_path / "ca.pem")]
    assert [listen["address"] for listen in document["listen"]] == ["127.0.0.1:0", "[::1]:8081", "localhost:1"]
    assert document["access_log"] == str(tmp_path / "log/access.json")
    assert (document["timeouts"]["total"], document["timeouts"]["request"]) == (5400.0, 0.25)
    assert document["bounds"] | {"headers": 0, "connections": 0} == {
        "body": 1 << 30,
        "collected": 1 << 30,
        "head": 2048,
        "url": 512,
        "headers": 0,
        "connections": 0,
    }
    assert document["drain"] == {"delay": 5.0, "timeout": 0.0}
    assert document["answer_headers"] == {"x-ratelimit": True, "x-aigw": False, "server-timing": True}
    found = document["upstreams"]["u"]
    assert found["headers"] == {"x-team": "search", "openai-organization": None, "x-empty": None}
    assert found["tls"] == {
        "verify": True,
        "ca": str(tmp_path / "ca.pem"),
        "server_name": "internal.example.com",
        "ca_digest": digest_of(str(tmp_path / "ca.pem")),
    }
    assert found["targets"][0] | {"url": ""} == {
        "name": "h:443",
        "url": "",
        "weight": 1,
        "api_key": "k",
        "headers": {"x": "y"},
        "model": {"a": "b"},
        "limits": [],
    }
    found = document["gateways"]["g"]
    assert found["hosts"] == ["api.example.com", "*.example.com"]
    assert found["models"]["x/*"] == {
        "upstream": "u",
        "model": "*",
        "split": None,
        "list": ["x/1"],
        "hidden": True,
        "timeouts": {"first_token": None, "total": 60.0},
        "limits": [],
        "fallback": [],
        "retry": None,
    }
    key = found["keys"]["k"]
    assert (key["expires"], key["previous"]) == (1798761600.0, {"sha256": "a" * 64, "until": 1798761600.0})
    assert [rule["default"] for rule in found["rules"]] == [{"anthropic": "u"}, None, "m"]
    assert found["rules"][1]["methods"] == ["GET", "POST"]
    assert json.loads(json.dumps(document)) == document
    snapshot.compile(document, 1)


SECTION_8 = """
listen: 127.0.0.1:8081
workers: 1
admin: {listen: 127.0.0.1:8080, token: "${AIGW_ADMIN_TOKEN:-}"}
access_log: stdout
usage_store: {path: aigw-usage.db, retention: 90d}
timeouts: {handshake: 10s, keepalive: 75s, request: 30s, client_read: 60s, client_write: 60s, linger: 2s, total: off}
bounds: {head: 32KiB, headers: 100, url: 16KiB, body: 32MiB, collected: 512MiB, connections: 10000}
drain: {delay: 0s, timeout: 30s}
trusted_proxies: []
answer_headers: {x-ratelimit: true, x-aigw: true, server-timing: true}
prices: {"my-model": {input: 0.15, output: 0.60}}
upstreams:
  mock:   {provider: mock}
  openai: {provider: openai, api_key: "${OPENAI_API_KEY}"}
  vllm:
    provider: openai
    dialects: [openai, anthropic]
    usage: inject
    balance: least_connections
    # hash_on: header:x-session-id
    targets:
      a: {url: "http://10.0.0.7:8000/v1", weight: 3}
      b: {url: "http://10.0.0.8:8000/v1", model: {llama-3.1-8b: llama-3.1-8b-q4}}
    headers: {x-team: search, openai-organization: null}
    health: {path: /health, interval: 5s, timeout: 1s, unhealthy_after: 3, healthy_after: 2}
    eject: {after: 5, for: 30s}
    timeouts: {queue: 5s, connect: 5s, send: 60s, first_byte: 600s, first_token: off, idle: 300s, pool_idle: 55s}
    max_connections: 512
    tls: {verify: true}
gateways:
  default:
    hosts: ["*"]
    auth: keys
    keys:
      demo: {sha256: "DIGEST", models: ["*"], group: search, limits: [{requests: 100/1m}, {cost: 50/month}],
             expires: 2027-01-01, disabled: false, previous: {sha256: "OTHER", until: 2026-12-01}, resources: false}
    models:
      gpt-4o: openai
      "openai/*": {upstream: openai, model: "*"}
      fast: {upstream: vllm, model: llama-3.1-8b, fallback: [gpt-4o]}
      canary: {split: {gpt-4o: 95, fast: 5}}
    rules:
      - {name: api, path: "/v1/*", default: openai}
      - {name: ping, path: "/ping", methods: [GET], upstream: vllm}
      - {name: files, path: "/files/*", upstream: vllm, strip_path: true, preserve_host: false, public: true}
    retry: {attempts: 2, when: [connect, 429, 5xx, first_byte], budget: 20%}
    limits: [{requests: 1000/1m, per: ip}, {tokens: 50000/1m, per: key}, {concurrency: 20, per: key}]
""".replace("DIGEST", DIGEST).replace("OTHER", "b" * 64)


def test_an_example_of_every_feature_loads() -> None:
    document = parse(SECTION_8, environ={"OPENAI_API_KEY": "k"}).document
    assert document["upstreams"]["vllm"]["eject"] == {"after": 5, "for": 30.0}
    assert document["upstreams"]["vllm"]["health"] == {
        "path": "/health",
        "interval": 5.0,
        "timeout": 1.0,
        "unhealthy_after": 3,
        "healthy_after": 2,
    }
    assert document["gateways"]["default"]["models"]["canary"]["split"] == {"gpt-4o": 95, "fast": 5}


@pytest.mark.parametrize(("text", "eject"), [("", {"after": 5, "for": 30.0}), (", eject: off", None)])
def test_targets_rest_unless_that_is_off(text: str, eject: object) -> None:
    assert upstream(f"{{provider: openai{text}}}")["eject"] == eject


# Warnings


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("gateways: {}", ["gateways: there is no gateway, so every request is answered 404"]),
        (
            "listen: [127.0.0.1:1, 0.0.0.0:2]\nupstreams: {m: {provider: mock}}\n"
            "gateways: {g: {auth: none, models: {x: m}}}",
            [
                "gateways.g.auth: auth: none on an address that others reach: anyone may spend what the upstreams' "
                "credentials pay for"
            ],
        ),
        (
            "upstreams: {m: {provider: mock}}\ngateways: {g: {models: {x: m}}}",
            ["gateways.g: no key may use this gateway; `aigw key NAME` makes one, auth: none asks for none"],
        ),
        (
            "gateways: {g: {auth: none}}",
            ['gateways.g: no model and no rule leads anywhere; write models: {"*": NAME OF AN UPSTREAM}'],
        ),
        (
            "upstreams: {u: {provider: openai, tls: {verify: false}, targets: [{url: 'https://h', weight: 0}]}}\n"
            f"gateways: {{g: {{auth: none, keys: {{k: {{sha256: {DIGEST}, models: [gpt4]}}}}, models: {{gpt-4: u}}}}}}",
            [
                "upstreams.u.tls.verify: certificates are not checked: anyone in between can read and change "
                "everything; use tls.ca instead",
                "upstreams.u.targets: every target has weight 0, so none gets requests",
                "gateways.g.keys: are not asked for, since auth is none",
                'gateways.g.keys.k.models[0]: no model is called "gpt4"; did you mean "gpt-4"?',
            ],
        ),
    ],
)
def test_warnings(text: str, warnings: list[str]) -> None:
    found = parse(text).warnings
    assert [f"{problem.path}: {problem.message}" for problem in found] == warnings
    assert all(problem.line >= 1 for problem in found)


# The built-in config


def test_builtin_without_keys_is_the_mock() -> None:
    document = store.builtin({"OPENAI_API_KEY": ""}).document
    assert list(document["upstreams"]) == ["mock"]
    assert document["gateways"]["default"]["auth"] == "none"
    assert document["listen"] == [{"address": "127.0.0.1:8081"}]


@pytest.mark.parametrize(
    ("environ", "provider", "url"),
    [
        ({"OPENAI_API_KEY": "k"}, "openai", "https://api.openai.com/v1"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://h:1/v1/"}, "openai", "http://h:1/v1"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": ""}, "openai", "https://api.openai.com/v1"),
        ({"ANTHROPIC_API_KEY": "k", "ANTHROPIC_BASE_URL": "http://h"}, "anthropic", "http://h"),
        ({"GEMINI_API_KEY": "k"}, "gemini", "https://generativelanguage.googleapis.com"),
    ],
)
def test_builtin_with_one_key(environ: dict[str, str], provider: str, url: str) -> None:
    loaded = store.builtin(environ)
    assert loaded.warnings == []
    assert list(loaded.document["upstreams"]) == [provider]
    assert loaded.document["upstreams"][provider]["api_key"] == "k"
    assert loaded.document["upstreams"][provider]["targets"][0]["url"] == url
    assert {name: model["upstream"] for name, model in loaded.document["gateways"]["default"]["models"].items()} == {
        "*": provider
    }


def test_builtin_with_several_keys_routes_by_name() -> None:
    document = store.builtin({"GEMINI_API_KEY": "g", "ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "o"}).document
    spec = snapshot.compile(document, 1).gateways["default"]
    for model, name in {
        "gpt-4o": "openai",
        "o3-mini": "openai",
        "claude-sonnet-4": "anthropic",
        "gemini-2.5-pro": "gemini",
        "something-else": "openai",
    }.items():
        found = spec.find_model(model)
        assert found is not None
        assert found.upstream.name == name


def test_builtin_with_an_unusable_address_names_the_variable() -> None:
    with pytest.raises(store.ConfigError) as caught:
        store.builtin({"OPENAI_API_KEY": "sk-canary-1", "OPENAI_BASE_URL": "http://canary:canary@h"})
    assert str(caught.value).endswith("(the value comes from ${OPENAI_BASE_URL})")
    assert CANARY not in str(caught.value)


# The child


def child(*arguments: str, **environ: str) -> tuple[int, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "aigw.config.store", *arguments],
        capture_output=True,
        env={"PATH": os.environ["PATH"], **{k: v for k, v in os.environ.items() if k.startswith("COV")}, **environ},
        timeout=30,
        check=False,
    )
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


def test_child_with_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('admin: {}\nupstreams: {o: {provider: openai, api_key: "${KEY}"}}\ngateways: {}\n')
    status, answer = child(str(path), KEY="sk-1")
    assert status == 0
    assert answer == {
        "document": store.load(path, {"KEY": "sk-1"}).document,
        "warnings": [
            f"{path}:3:1 gateways: there is no gateway, so every request is answered 404",
        ],
        "stated": [["gateways"]],
        "admin": {"listen": {"address": "127.0.0.1:8080"}, "token": None, "stated": False},
        "files": {str(path): digest_of(str(path))},
    }


def test_child_with_the_builtin_config() -> None:
    status, answer = child("--builtin", ANTHROPIC_API_KEY="k")
    assert (status, list(answer["document"]["upstreams"])) == (0, ["anthropic"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("/nowhere/config.yaml",), "/nowhere/config.yaml: does not exist; check the path"),
        (("/",), "/: cannot be read: Is a directory"),
        ((), "aigw.config.store: takes one argument: --builtin or a path"),
        ((str(BAD / "utf-16.yaml"),), f"{BAD / 'utf-16.yaml'}:1:1 is not UTF-8 from here on; save the file as UTF-8"),
    ],
)
def test_child_with_bad_input(arguments: tuple[str, ...], error: str) -> None:
    files = {path: digest_of(path) for path in arguments}
    assert child(*arguments) == (1, {"errors": [error], "files": files})
