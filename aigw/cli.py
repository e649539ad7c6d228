"""The command `aigw`: what people type, checked, and handed to the module that does it.

Each command imports what it needs when it runs, so that `aigw serve` is not slowed by what `aigw check` uses. Results
go to stdout, everything said to the person to stderr. Exit status: 0 done, 1 it failed for the reason given, 2 the
command line is wrong.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from aigw import __version__
from aigw.process import build

CONFIG = "config.yaml"  # used without --config, where it stands in the current folder
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")  # of a key, as in the config
PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")  # a YAML key that needs no quotes, unless it is one of the next
CHAT = "/v1/chat/completions"  # the path of a sample that names none
CONFIG_SAYS = "the config file that says where it is"
YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})

EPILOG = """\
examples:
  aigw serve                        serve ./config.yaml, or a built-in config where there is none
  aigw check config.yaml            is the file good? every error at once
  aigw key alice                    make a key for a client
  aigw status                       what the running gateway does
  aigw explain --model gpt-4o       what would it do with a request, and why?
  aigw usage --from 7d              who used what in the last week
  aigw mock --listen 127.0.0.1:9000 a provider that needs no key, for tests

aigw COMMAND --help shows more."""

SERVE = """\
examples:
  aigw serve
  aigw serve --config /etc/aigw/config.yaml
  aigw serve --listen 0.0.0.0:8081                      instead of the file's addresses
  aigw serve --listen 127.0.0.1:8081 --listen [::1]:8081
  aigw serve --listen 127.0.0.1:0                       any free port; the start screen tells it
  aigw serve --workers auto                             one worker process per core

Without --config: ./config.yaml, else a built-in config made from the environment (OPENAI_API_KEY, ANTHROPIC_API_KEY,
GEMINI_API_KEY), else a mock provider that needs no key. The access log goes to stdout, one JSON line per exchange.

The file may be edited while it is served: what is good in it takes effect within two seconds and cuts nothing; what is
not is said, and changes nothing. The same holds for the files of ${file:...}. Options given here win over the file.

signals:
  SIGHUP            read the config again now
  SIGTERM, SIGINT   finish what runs (drain.timeout), then end with status 0; a second one ends at once
  SIGUSR1           open the access log's file again, after it was moved away"""

CHECK = """\
examples:
  aigw check                        ./config.yaml, else the built-in config
  aigw check /etc/aigw/config.yaml && systemctl restart aigw

Prints every error with its line and what would be right. Exit status 0: the file can be served; 1: it cannot."""

STATUS = """\
examples:
  aigw status                       of the gateway that ./config.yaml describes
  aigw status --admin http://127.0.0.1:8080
  AIGW_ADMIN_TOKEN=... aigw status --admin https://gateway.example:8080 --json

Without --admin: AIGW_ADMIN_URL, else admin.listen of the config. The token is AIGW_ADMIN_TOKEN, else the config's.
Without --ca: AIGW_ADMIN_CA, else the certificate of the config that says where, else the system's authorities."""

RELOAD = """\
examples:
  aigw reload
  aigw reload --admin unix:/run/aigw/admin.sock

Where the admin API is, and its token, are found as aigw status --help says. Exit status 0: the file is served; 1: it is
not, every error is printed, and what was served before still is."""

USAGE = """\
examples:
  aigw usage                        all that is kept, by key and model
  aigw usage --from 30d --per day --by model
  aigw usage --from 2026-11-01 --to 2026-12-01 --by group,key
  aigw usage --by key --json

--from and --to take a date, a date with time, or how long ago (24h, 30d). All times are UTC; usage is kept by the hour.
Where the admin API is, and its token, are found as aigw status --help says."""

MOCK = """\
examples:
  aigw mock --listen 127.0.0.1:9000
  aigw mock --listen 127.0.0.1:9000 --latency 0.3 --rate 50 --tokens 200
  aigw mock --listen unix:/tmp/mock.sock --fail status=503,retry-after=2
  aigw mock --listen 127.0.0.1:9000 --fail cut-between

It speaks OpenAI's, Anthropic's and Gemini's API and asks for no key. A request may set the same words in its header:
  curl -H "x-mock: tokens=5,latency=0.1" ..."""

KEY = """\
examples:
  aigw key alice
  KEY=$(aigw key alice | head -1)

Prints the key, then the line to paste under gateways.NAME.keys in the config. The config holds the key's SHA-256
digest; the key itself is stored nowhere and cannot be shown again."""

EXPLAIN = """\
examples:
  aigw explain --model gpt-4o --key-name demo
  aigw explain --method GET --path /v1/models
  aigw explain --like 0f3c9a1e5b7d4c62             what would be done with this exchange, by the config of now
  aigw explain --like 0f3c9a1e5b7d4c62 --model o1  and if it had asked for another model
  aigw explain --config new.yaml --path /v1/messages --model claude-haiku-4-5 --header "user-agent: curl"

Says which gateway, rule, key, model and targets a request would get, why, and the head that would be sent, or what it
would be refused with. Nothing is sent. With --config the file is asked, which need not be served by anybody; without,
the running gateway, which is found as aigw status --help says. --like takes the request id of one of its last 1,000
exchanges (x-request-id, or the access log's request_id); the log knows neither its headers nor its body."""

SCHEMA = """\
examples:
  aigw schema > aigw.schema.json    then, as the first line of config.yaml, for editors:
  # yaml-language-server: $schema=aigw.schema.json"""


DASHBOARD = """\
examples:
  aigw dashboard > aigw.json        then, in Grafana: Dashboards, New, Import

Prometheus scrapes /metrics at the address of the admin API, with its token as bearer token."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors that say what would be right."""

    def __init__(self, *, prog: str, epilog: str, **options: Any) -> None:
        super().__init__(
            prog=prog,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}\ntry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            self.error(f"unknown argument {unknown[0]!r}{_nearest(unknown[0].partition('=')[0], known)}")
        return found


def _nearest(word: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches  # only when there is something to complain about

    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    since = time.monotonic()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words, since)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        _discard_output()
        return 130
    except OSError as error:
        _discard_output()
        if isinstance(error, BrokenPipeError):  # aigw schema | head
            return 141  # what a shell shows for a command that SIGPIPE ended
        print(f"aigw: {error}", file=sys.stderr)
        return 1


def _discard_output() -> None:
    """What stdout did not take must not be tried again while the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(words: list[str], since: float) -> int:
    parser = Parser(
        prog="aigw",
        usage="aigw COMMAND ...",
        description="An AI gateway: your applications speak to it as to OpenAI, Anthropic or Gemini.",
        epilog="commands:\n" + "".join(f"  {name:<10}{text}\n" for name, (text, _) in COMMANDS.items()) + f"\n{EPILOG}",
    )
    parser.add_argument("--version", action="version", version=f"aigw {__version__} ({build()})")
    if not words:
        parser.print_help(sys.stderr)
        return 2
    name, *rest = words
    if name not in COMMANDS:
        if name.startswith("-"):
            parser.parse_args(words)  # answers --help and --version; all else is an error
        parser.error(f"unknown command {name!r}{_nearest(name, list(COMMANDS))}")
    return int(COMMANDS[name][1](rest, since))


# --- aigw serve


def serve(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw serve", description="Serves the gateway until SIGTERM or Ctrl-C.", epilog=SERVE)
    parser.add_argument("--config", metavar="FILE", help="the config file")
    parser.add_argument(
        "--listen", metavar="ADDRESS", action="append", default=[], help="host:port, instead of the file's; repeatable"
    )
    parser.add_argument("--admin-listen", metavar="ADDRESS", help="host:port or unix:/path, instead of admin.listen")
    parser.add_argument("--workers", metavar="N", help="worker processes, or auto: one per core; instead of the file's")
    flags = parser.parse_args(words)
    workers = flags.workers
    if workers is not None and workers != "auto":
        if not (workers.isascii() and workers.isdigit() and 1 <= int(workers) <= 1024):
            parser.error(f"--workers {workers}: must be a number from 1 to 1024, or auto: one per core")
        workers = int(workers)

    from aigw import listen, process, shared

    try:
        for address in flags.listen:
            listen.parse(address)
    except listen.ListenError as error:
        parser.error(f"--listen {error}")
    if flags.admin_listen is not None and not flags.admin_listen.startswith("unix:/"):
        try:
            listen.parse(flags.admin_listen)
        except listen.ListenError as error:
            parser.error(f"--admin-listen {error}")
    # Both start now, beside this process, which goes on importing: it needs an event loop next.
    path = _config_path(flags.config)
    process.prepare()
    config = process.start_config(path)
    cells = shared.Cells()
    cells.use(0)
    worker = process.start_worker(cells.descriptor, 0)

    from aigw import source, supervisor

    options = source.Options(path, tuple(flags.listen), workers, since, flags.admin_listen)
    return supervisor.run(options, cells, config, worker)


def _config_path(given: str | None) -> str | None:
    if given is not None:
        return given
    return CONFIG if os.path.lexists(CONFIG) else None


# --- aigw check


def check(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw check", description="Reads a config file and says what is wrong with it.", epilog=CHECK)
    parser.add_argument("file", metavar="FILE", nargs="?", help="the config file")
    path = _config_path(parser.parse_args(words).file)

    from pathlib import Path

    from aigw.config import snapshot, store

    try:
        loaded = store.builtin(os.environ) if path is None else store.load(Path(path), os.environ)
    except store.ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return 1
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    document = loaded.document
    snapshot.compile(document, 1)
    gateways = document["gateways"].values()
    counts = [
        _count(len(document["gateways"]), "gateway"),
        _count(sum(len(gateway["models"]) for gateway in gateways), "model"),
        _count(sum(len(gateway["rules"]) for gateway in gateways), "rule"),
        _count(sum(len(gateway["keys"]) for gateway in gateways), "key"),
        _count(len(document["upstreams"]), "upstream"),
    ]
    listens = ", ".join(listener["address"] for listener in document["listen"])
    print(f"{path or 'built-in config'} is good: {', '.join(counts)}; listens on {listens}")
    return 0


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


# --- aigw status, aigw reload: over the admin API


def status(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw status", description="Says what the running gateway does.", epilog=STATUS)
    _add_admin(parser)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_SAYS)
    parser.add_argument("--json", action="store_true", help="as the admin API answers it")
    flags = parser.parse_args(words)
    answer = _call(flags, "GET", "/status")
    if answer is None:
        return 1

    import json

    from aigw import show

    print(json.dumps(answer, indent=2) if flags.json else show.status(answer))
    return 0


def reload(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw reload", description="Lets the running gateway read its config again.", epilog=RELOAD)
    _add_admin(parser)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_SAYS)
    answer = _call(parser.parse_args(words), "POST", "/reload")
    if answer is None:
        return 1
    print(f"generation {answer['generation']} serves")
    return 0


def usage(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw usage", description="Who used what, and what did it cost?", epilog=USAGE)
    _add_admin(parser)
    parser.add_argument("--config", metavar="FILE", help=CONFIG_SAYS)
    parser.add_argument("--by", metavar="NAMES", default="key,model", help="gateway,rule,key,group,model,upstream")
    parser.add_argument("--from", metavar="WHEN", help="from then on; default: all that is kept")
    parser.add_argument("--to", metavar="WHEN", help="until before then; default: now")
    parser.add_argument("--per", metavar="SPAN", help="hour, day or month: one line for each")
    parser.add_argument("--json", action="store_true", help="as the admin API answers it")
    flags = parser.parse_args(words)

    import json
    from urllib.parse import urlencode

    from aigw import show

    asked = {name: value for name in ("by", "from", "to", "per") if (value := getattr(flags, name)) is not None}
    answer = _call(flags, "GET", f"/usage?{urlencode(asked)}")
    if answer is None:
        return 1
    print(json.dumps(answer, indent=2, ensure_ascii=False) + "\n" if flags.json else show.usage(answer), end="")
    return 0


def _add_admin(parser: Parser) -> None:
    parser.add_argument("--admin", metavar="URL", help="where the admin API is: http(s)://host:port or unix:/path")
    parser.add_argument("--ca", metavar="FILE", help="PEM file of the authority to believe, instead of the system's")


def _call(flags: argparse.Namespace, method: str, path: str, body: Any = None) -> Any:
    """What the admin API answers; None where it does not, which has been said. Flags: --admin, --ca, --config."""
    from aigw.admin import client

    where = flags.admin or os.environ.get("AIGW_ADMIN_URL")
    token = os.environ.get("AIGW_ADMIN_TOKEN") or None
    authority = flags.ca or os.environ.get("AIGW_ADMIN_CA")
    pair = None
    if not where:
        from pathlib import Path

        from aigw.config import store

        file = _config_path(flags.config)
        try:
            admin = store.builtin(os.environ).admin if file is None else store.admin(Path(file), os.environ)
        except store.ConfigError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
            print("the config does not say where the admin API is: --admin does", file=sys.stderr)
            return None
        where, pair, token = admin["listen"]["address"], admin["listen"].get("tls"), token or admin["token"]
        where = where if pair is None else f"https://{where}"
    try:
        trust = client.trusting(authority) if authority else None if pair is None else client.pinned(pair["cert"])
        return client.call(where, token, method, path, body, trust=trust)
    except client.CallFailed as error:
        print(*error.lines, sep="\n", file=sys.stderr)
        return None


# --- aigw mock


def mock(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw mock", description="Serves a provider that answers by itself.", epilog=MOCK)
    parser.add_argument("--listen", metavar="ADDRESS", required=True, help="host:port, [v6]:port or unix:/path")
    parser.add_argument("--latency", metavar="SECONDS", help="before each answer")
    parser.add_argument("--rate", metavar="N", help="tokens per second; without it all at once")
    parser.add_argument("--tokens", metavar="N", help="length of an answer")
    parser.add_argument("--bytes", metavar="N", help="size of a plain chat completion, for benchmarks")
    parser.add_argument("--fail", metavar="WORDS", default="", help="fail on purpose, such as status=503")
    flags = parser.parse_args(words)

    from aigw.mock import Settings
    from aigw.mock import serve as serve_mock

    names = ("latency", "rate", "tokens", "bytes")
    given = [f"{name}={value}" for name in names if (value := getattr(flags, name)) is not None]
    try:
        settings = Settings.parse(",".join([*given, flags.fail]))
    except ValueError as error:
        parser.error(str(error))

    import uvloop

    def ready(address: str) -> None:
        print(f"the mock listens on {address}", file=sys.stderr, flush=True)

    try:
        uvloop.run(serve_mock(flags.listen, settings, ready=ready))
    except ValueError as error:
        parser.error(f"--listen: {error}")
    except OSError as error:
        print(f"aigw mock: {flags.listen}: {error.strerror}; choose another --listen address", file=sys.stderr)
        return 1
    return 0


# --- aigw key


def key(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw key", description="Makes a key for a client of the gateway.", epilog=KEY)
    parser.add_argument("name", metavar="NAME", help="who will use it: letters, digits and . _ @ -, at most 64")
    name = parser.parse_args(words).name
    if not NAME.fullmatch(name):
        parser.error(f"{name!r} cannot name a key; use 1 to 64 letters, digits and . _ @ -, such as alice")

    import hashlib
    import secrets

    secret = f"sk-aigw-{secrets.token_urlsafe(32)}"
    label = name if PLAIN.fullmatch(name) and name.lower() not in YAML_WORDS else f'"{name}"'
    print(secret)
    print(f'{label}: {{sha256: "{hashlib.sha256(secret.encode()).hexdigest()}"}}')
    if sys.stdout.isatty():
        print("\nThe first line is the key: it is shown once and stored nowhere.", file=sys.stderr)
        print("Paste the second under gateways.NAME.keys in the config.", file=sys.stderr)
    return 0


# --- aigw explain


def explain(words: list[str], since: float) -> int:
    parser = Parser(prog="aigw explain", description="What would be done with a request, and why?", epilog=EXPLAIN)
    _add_admin(parser)
    parser.add_argument("--config", metavar="FILE", help="asks this config file instead of the running gateway")
    parser.add_argument("--like", metavar="ID", help="a recent exchange, by its request id; what else is given differs")
    parser.add_argument("--method", metavar="M", help="default: POST")
    parser.add_argument("--path", metavar="PATH", help=f"default: {CHAT}")
    parser.add_argument("--host", metavar="HOST", help="as the client writes it; default: localhost")
    parser.add_argument("--model", metavar="NAME", help="the model it asks for")
    parser.add_argument("--key-name", metavar="NAME", help="the key it comes with, by its name in the config")
    parser.add_argument("--dialect", choices=("openai", "anthropic", "gemini"), help="sends that SDK's headers")
    parser.add_argument("--header", metavar="LINE", action="append", default=[], help="name: value; repeatable")
    parser.add_argument("--body", metavar="TEXT", help="default: one that names the model")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    flags = parser.parse_args(words)
    names = ("method", "path", "host", "model", "key_name", "dialect", "body")
    members = {name: value for name in names if (value := getattr(flags, name)) is not None}
    if flags.header:
        lines = [line.partition(":") for line in flags.header]
        members["headers"] = {name.strip(): value.strip() for name, _, value in lines}
    if flags.config is not None and (flags.admin or flags.like):
        parser.error(
            "--config asks a file; leave it away to ask the running gateway, which --admin and --like are about"
        )
    if flags.like is None:
        members.setdefault("path", CHAT)
    else:
        members["request_id"] = flags.like
    plan = _call(flags, "POST", "/explain", members) if flags.config is None else _explain_by(flags.config, members)
    if plan is None:
        return 1

    import json

    from aigw import show

    print(json.dumps(plan, indent=2, ensure_ascii=False) + "\n" if flags.json else show.plan(plan), end="")
    return 0


def _explain_by(path: str, members: dict[str, Any]) -> dict[str, Any] | None:
    """By a config file, which nobody need serve. None, and why on stderr, where it or the request is none."""
    from pathlib import Path

    from aigw.config import snapshot, store
    from aigw.explain import explain
    from aigw.sample import SampleError, sample_of

    try:
        compiled = snapshot.compile(store.load(Path(path), os.environ).document, 0)
        return explain(compiled, sample_of(compiled, members, None), time.time())
    except store.ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
    except SampleError as error:
        print(f"aigw explain: {error}", file=sys.stderr)
    return None


# --- aigw schema


def schema(words: list[str], since: float) -> int:
    Parser(prog="aigw schema", description="Prints the config's JSON Schema.", epilog=SCHEMA).parse_args(words)

    import json

    from aigw.config.schema import json_schema

    print(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return 0


# --- aigw dashboard


def dashboard(words: list[str], since: float) -> int:
    Parser(prog="aigw dashboard", description="Prints a Grafana dashboard of /metrics.", epilog=DASHBOARD).parse_args(
        words
    )

    import json

    from aigw import dashboard

    print(json.dumps(dashboard.dashboard(), indent=2))
    return 0


COMMANDS = {
    "serve": ("serve the gateway", serve),
    "check": ("is a config file good?", check),
    "status": ("what the running gateway does", status),
    "usage": ("who used what, and what did it cost?", usage),
    "reload": ("read the config again, now", reload),
    "mock": ("a provider that answers by itself", mock),
    "key": ("make a key for a client", key),
    "explain": ("what would be done with a request, and why?", explain),
    "schema": ("the config's JSON Schema, for editors", schema),
    "dashboard": ("a Grafana dashboard of the metrics", dashboard),
}
