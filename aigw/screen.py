"""What `aigw serve` shows once it serves: where it listens, what it has, and a command that really works.

Pure text from the plain document. It names urls and key names, never a credential. The command at the end is made for
this very config: a model that it has, at a path that a rule takes, in a dialect that the model's upstream speaks.
"""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote

import orjson

Document = dict[str, Any]

MOST = 8  # models, rules or upstreams shown; the rest is counted
WIDTH = 11  # of the left column

# dialect: the model to ask for where the config takes any, and the variable that its SDK reads the credential from
SAMPLES = {
    "openai": ("gpt-4o-mini", "authorization: Bearer $OPENAI_API_KEY"),
    "anthropic": ("claude-haiku-4-5", "x-api-key: $ANTHROPIC_API_KEY"),
    "gemini": ("gemini-2.5-flash", "x-goog-api-key: $GEMINI_API_KEY"),
}


def render(
    document: Document,
    addresses: Sequence[str],
    admin: Sequence[str] = (),
    *,
    version: str,
    source: str,
    seconds: float,
    colour: bool,
) -> str:
    """The screen. `addresses` are the bound ones, `http(s)://host:port` or `unix:/path`; `admin` those of the admin
    API; `source` says where the config came from."""
    bold, dim, plain = ("\033[1m", "\033[2m", "\033[0m") if colour else ("", "", "")
    lines = [f"{bold}aigw {version}{plain} {dim}ready in {seconds:.2f} s, {source}{plain}", ""]
    for label, values in _facts(document, addresses, admin):
        for index, value in enumerate(_some(values)):
            lines.append(f"  {dim}{label if not index else '':<{WIDTH}}{plain}{value}")
    first, *more = curl(document, addresses[0]).split("\n")
    lines += ["", f"  {dim}{'try':<{WIDTH}}{plain}{bold}{first}{plain}"]
    lines += [f"  {'':<{WIDTH}}{bold}{line}{plain}" for line in more]
    return "\n".join([*lines, ""])


def _facts(document: Document, addresses: Sequence[str], admin: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    yield "listens", list(addresses)
    if admin:
        yield "admin API", [where if where.startswith("unix:") else f"{where}/api/v1" for where in admin]
    for name, gateway in document["gateways"].items():
        hosts = "any host" if "*" in gateway["hosts"] else ", ".join(gateway["hosts"])
        keys = gateway["keys"]
        asked = "no key asked for" if gateway["auth"] == "none" else f"{len(keys)} key{'' if len(keys) == 1 else 's'}"
        yield "gateway", [f"{name} ({hosts}; {asked})"]
        yield "  models", _aligned([(pattern, _model(model)) for pattern, model in gateway["models"].items()])
        rules = [(rule["path"], rule["upstream"] or "by model") for rule in gateway["rules"]]
        if rules != [("/*", "by model")]:
            yield "  rules", _aligned(rules)
    yield "upstreams", _aligned([(name, _upstream(upstream)) for name, upstream in document["upstreams"].items()], "  ")


def _model(model: Document) -> str:
    return str(model["upstream"]) + (f" as {model['model']}" if model["model"] not in (None, "*") else "")


def _upstream(upstream: Document) -> str:
    if upstream["provider"] == "mock":
        return "mock, answers by itself"
    return f"{upstream['provider']} " + ", ".join(_some([target["url"] for target in upstream["targets"]]))


def _aligned(pairs: list[tuple[str, str]], between: str = " -> ") -> list[str]:
    width = min(max((len(left) for left, _ in pairs), default=0), 40)
    return [f"{left:<{width}}{between}{right}" for left, right in pairs]


def _some(values: list[str]) -> list[str]:
    return values if len(values) <= MOST else [*values[: MOST - 1], f"and {len(values) - MOST + 1} more"]


# --- the command to try

TRIED = 10  # models: with thousands of them and of rules, all pairs would take half a minute


def curl(document: Document, address: str) -> str:
    """A command, in lines joined by backslashes, that gets an answer through this config listening on `address`."""
    base, options = _reachable(address)
    for gateway in document["gateways"].values():
        headers = _host(gateway)
        for model in sorted(gateway["models"], key=lambda name: "*" in name)[:TRIED]:
            upstream = document["upstreams"][gateway["models"][model]["upstream"]]
            for dialect in upstream["dialects"]:
                name = _asked(model, gateway["models"][model], dialect)
                path, more, body = _request(dialect, name)
                for rule in gateway["rules"]:
                    taken = _through(gateway, rule, path)
                    if taken is not None:
                        headers += _credentials(gateway, rule, upstream, dialect)
                        headers += ["content-type: application/json", *more]
                        return _command(base + taken, options, headers, body)
        for rule in gateway["rules"]:
            if rule["upstream"] is not None and (rule["methods"] is None or "GET" in rule["methods"]):
                upstream = document["upstreams"][rule["upstream"]]
                headers += _credentials(gateway, rule, upstream, next(iter(upstream["dialects"]), "openai"))
                return _command(base + rule["path"].replace("*", ""), options, headers, None)
    return _command(f"{base}/readyz", options, [], None)


def _reachable(address: str) -> tuple[str, str]:
    """The URL to ask, and the options that curl needs for it."""
    if address.startswith("unix:"):
        path = address[5:]
        return "http://localhost", f"--unix-socket {_quoted(path) if _odd(path) else path} "
    scheme, _, place = address.partition("://")
    host, _, port = place.rpartition(":")
    url = f"{scheme}://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"
    return url, "-k " if scheme == "https" else ""  # the certificate is for another name than this one


def _host(gateway: Document) -> list[str]:
    hosts = gateway["hosts"]
    return [] if "*" in hosts else [f"host: {hosts[0].replace('*', 'gateway')}"]


def _asked(pattern: str, model: Document, dialect: str) -> str:
    """A name that the pattern takes."""
    if "*" not in pattern:
        return pattern
    sample = SAMPLES[dialect][0]
    listed = [name for name in model["list"] or () if "*" not in name]
    return listed[0] if listed else sample if fnmatchcase(sample, pattern) else pattern.replace("*", sample)


def _request(dialect: str, model: str) -> tuple[str, list[str], Document]:
    """Path, headers and body of a chat in that dialect."""
    if dialect == "gemini":
        path = f"/v1beta/models/{quote(model, safe='')}:generateContent"
        return path, [], {"contents": [{"parts": [{"text": "Hello"}]}]}
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    if dialect == "anthropic":
        return "/v1/messages", ["anthropic-version: 2023-06-01"], {**body, "max_tokens": 100}
    return "/v1/chat/completions", [], body


def _through(gateway: Document, rule: Document, path: str) -> str | None:
    """The path to ask for so that `rule` routes `path` by model; None where it does not."""
    if rule["upstream"] is not None or not (rule["methods"] is None or "POST" in rule["methods"]):
        return None
    if rule["strip_path"]:
        path = rule["path"].removesuffix("/*") + path
    taking = [other for other in gateway["rules"] if _takes(other["path"], path)]
    best = max(taking, key=lambda other: ("*" not in other["path"], len(other["path"])), default=None)
    return path if best is rule else None


def _takes(pattern: str, path: str) -> bool:
    if pattern.endswith("/*"):
        return path == pattern[:-2] or path.startswith(pattern[:-1])
    return path == pattern


def _credentials(gateway: Document, rule: Document, upstream: Document, dialect: str) -> list[str]:
    """What the client must bring: the gateway's key, and its own for an upstream with `api_key: client`."""
    own = [SAMPLES[dialect][1]] if upstream["api_key"] == "client" else []
    if gateway["auth"] == "none" or rule["public"]:
        return own
    return [*own, "x-aigw-key: $AIGW_KEY" if own else "authorization: Bearer $AIGW_KEY"]


def _command(url: str, options: str, headers: list[str], body: Document | None) -> str:
    parts = [f"curl {options}{_quoted(url) if _odd(url) else url}"]
    parts += [f'-H "{header}"' for header in headers]
    if body is not None:
        parts.append(f"-d {_quoted(orjson.dumps(body).decode())}")
    return " \\\n  ".join(parts)


def _odd(text: str) -> bool:
    return not all(c.isalnum() or c in "-._~:/%@" for c in text)


def _quoted(text: str) -> str:
    """`text` as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\"'\"'") + "'"
