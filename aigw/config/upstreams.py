"""What a config's upstreams become: targets with the bytes that are written for them, and the order of their turns.

Part of the snapshot (`config/snapshot.py`): made once from the validated document, immutable but for memos. Here is
also what all of it is made with: work in steps, so that others may run meanwhile, and memos that cannot grow.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from math import gcd
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from aigw.config.limits import limits_of
from aigw.prices import Price, Prices
from aigw.providers import CREDENTIAL_HEADERS, credential_line

_K = TypeVar("_K")
_V = TypeVar("_V")

# Yields between two items of something that may have very many, so that other things can be done meanwhile.
Steps = Generator[None, None, _V]

# Names of models that clients made up and a glob took; the memo starts anew beyond it.
_MEMO_SIZE: Final = 1024


class Target:
    """One URL of an upstream, and what every request to it begins with.

    `pool_key` names the pool: whatever it holds decides whether two snapshots may share connections.
    `address` is (host, port), a unix socket's path, or None for the worker's own mock.
    """

    __slots__ = (
        "address",
        "base",
        "ca",
        "ca_digest",
        "fixed",
        "has_credential",
        "host_line",
        "index",
        "limits",
        "models",
        "name",
        "passes_client_key",
        "pool_key",
        "prices",
        "removed",
        "server_name",
        "text",
        "tls",
        "upstream",
        "verify",
        "weight",
    )

    def __init__(
        self,
        upstream: Upstream,
        index: int,
        spec: Mapping[str, Any],
        document: Mapping[str, Any],
        prices: Mapping[str, Price],
    ) -> None:
        self.upstream = upstream
        self.index = index
        self.name: str = spec["name"]
        self.text = target_text(upstream.name, self.name)
        self.weight: int = spec["weight"]
        self.models: dict[str, str] = spec["model"]
        # what each attempt at it is measured by: the upstream's, and its own
        self.limits = (*upstream.limits, *limits_of("target", (upstream.name, self.name), spec["limits"]))
        self.address, authority, self.base, self.tls = parse_url(spec["url"])
        tls = document["tls"]
        self.verify: bool = tls["verify"]
        self.ca: str | None = tls["ca"]
        self.ca_digest: str | None = tls.get("ca_digest")  # of the file's content, which may change under its name
        self.server_name: str = tls["server_name"] or (self.address[0] if isinstance(self.address, tuple) else "")
        api_key = spec["api_key"] or document["api_key"]
        self.passes_client_key = api_key == "client"
        headers: dict[str, str | None] = {k.lower(): v for k, v in (document["headers"] | spec["headers"]).items()}
        by_header = any(headers.get(name) is not None for name in CREDENTIAL_HEADERS)
        self.has_credential = by_header or (api_key is not None and not self.passes_client_key)
        self.removed = frozenset(name.encode() for name in headers)
        self.host_line = b"host: " + authority.encode()
        lines = [f"{name}: {value}".encode("latin-1") for name, value in headers.items() if value is not None]
        if api_key is not None and not self.passes_client_key:
            lines.append(credential_line(upstream.provider, api_key))
        self.fixed = b"".join(line + b"\r\n" for line in lines)
        self.prices = Prices(prices, self.address[0] if isinstance(self.address, tuple) else "")
        identity = (self.name, spec["url"], self.verify, self.ca, self.ca_digest, self.server_name)
        self.pool_key = repr((upstream.name, *identity))

    def __repr__(self) -> str:
        return f"<Target {self.upstream.name}/{self.name}>"

    def path(self, path: bytes, versionless: bytes) -> bytes:
        """The path to ask this target for (`versionless`: the same without a leading /v1 or /v1beta)."""
        if not self.base:
            return path
        if not self.upstream.dialects:
            return self.base + path
        if self.base.endswith(b"/openai") and path.startswith(b"/openai/"):
            return self.base + path[7:]
        return self.base + versionless


class Upstream:
    """A named provider pool. `sequence` is one whole round of smooth weighted round robin, as indices of targets.

    `eject` and `health` are None where they are off, and the former also where there is no other target to ask instead.
    `binds`: its targets have credentials of their own, so that what one of them keeps the others do not know.
    `is_shared`: what is open to a target counts over all workers.
    """

    __slots__ = (
        "balance",
        "binds",
        "dialects",
        "eject",
        "hash_on",
        "health",
        "injects",
        "is_shared",
        "limits",
        "max_connections",
        "name",
        "private",
        "provider",
        "sequence",
        "targets",
        "timeouts",
    )

    def __init__(self, name: str, spec: Mapping[str, Any], prices: Mapping[str, Price]) -> None:
        self.name = name
        self.provider: str = spec["provider"]
        self.dialects: frozenset[str] = frozenset(spec["dialects"])
        self.injects: bool = spec["usage"] == "inject"  # whether streams are asked for their usage
        self.balance: str = spec["balance"]
        self.hash_on: str = spec["hash_on"] or "key"
        self.timeouts = UpstreamTimeouts(spec["timeouts"])
        self.max_connections: int | None = spec["max_connections"]
        self.limits = limits_of("upstream", (name,), spec["limits"])
        self.private = self.provider != "http"  # an LLM provider: cookies stay on their own side
        targets = spec["targets"] or [{"name": "mock", "url": "mock:", "weight": 1, "api_key": None} | _BARE]
        self.targets = tuple(Target(self, index, target, spec, prices) for index, target in enumerate(targets))
        self.sequence: tuple[int, ...] = ()  # see `build`: a long one takes a while
        has_choice = sum(target.weight > 0 for target in self.targets) > 1
        self.binds = has_choice and len({_credentials(target) for target in self.targets}) > 1
        self.is_shared = self.max_connections is not None or (has_choice and self.balance != "round_robin")
        self.eject = Eject(spec["eject"]) if has_choice and spec["eject"] else None
        self.health = Health(spec["health"]) if spec["health"] else None

    def __repr__(self) -> str:
        return f"<Upstream {self.name} {self.provider} {len(self.targets)} targets>"


_BARE: Final[dict[str, Any]] = {"headers": {}, "model": {}, "limits": []}


def _credentials(target: Target) -> frozenset[bytes]:
    """The lines of a target's own by which the provider knows whose what is."""
    names = {name.encode() for name in CREDENTIAL_HEADERS}
    return frozenset(line for line in target.fixed.split(b"\r\n") if line.partition(b":")[0].lower() in names)


class Eject:
    """How many failures in a row let a target rest, and for how many seconds the first time."""

    __slots__ = ("after", "seconds")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.after: int = spec["after"]
        self.seconds: float = spec["for"]


class Health:
    """How a target is probed. `path` None: a connect is enough. Times are seconds, the other two probes in a row."""

    __slots__ = ("healthy_after", "interval", "path", "timeout", "unhealthy_after")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.path: str | None = spec["path"]
        self.interval: float = spec["interval"]
        self.timeout: float = spec["timeout"]
        self.unhealthy_after: int = spec["unhealthy_after"]
        self.healthy_after: int = spec["healthy_after"]


class UpstreamTimeouts:
    """Deadlines of one upstream in seconds, under the names of the config."""

    __slots__ = ("connect", "first_byte", "first_token", "idle", "pool_idle", "queue", "send")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.queue: float = spec["queue"]
        self.connect: float = spec["connect"]
        self.send: float = spec["send"]
        self.first_byte: float = spec["first_byte"]
        self.first_token: float | None = spec["first_token"]
        self.idle: float = spec["idle"]
        self.pool_idle: float = spec["pool_idle"]


class Candidate:
    """One target for one model: everything about the pair that does not change from request to request.

    `sent` is the name the provider gets, None where the rule does not route by model; `answer` are the header lines
    that tell the client what answered. `watched`: how attempts end is of interest, since the target may be ejected.
    `is_limited`: it is none while a limit of its upstream or target is used up. `price` is None where it is not known
    what the model costs there.
    """

    __slots__ = (
        "answer",
        "first_byte",
        "idle",
        "injects",
        "is_limited",
        "pool",
        "price",
        "renamed",
        "sent",
        "target",
        "watched",
    )

    def __init__(self, target: Target, asked: str | None, sent: str | None) -> None:
        self.target = target
        self.sent = None if sent is None else target.models.get(sent, sent)
        self.renamed = self.sent != asked
        self.price = None if self.sent is None else target.prices.find(self.sent)
        self.pool: Any = None  # the worker's, once it was asked for; a snapshot knows no sockets
        lines = [f"x-aigw-upstream: {target.upstream.name}"]
        if self.sent is not None:
            lines.append(f"x-aigw-model: {quote(self.sent, safe=_HEADER_SAFE)}")
        lines.append(FIRST_ATTEMPT)
        self.answer = "\r\n".join(lines).encode()
        self.first_byte = target.upstream.timeouts.first_byte  # seconds, here for the hot path
        self.idle = target.upstream.timeouts.idle
        self.injects = target.upstream.injects
        self.watched = target.upstream.eject is not None
        self.is_limited = bool(target.limits)


# Said of what the first attempt answered; a replay is none. Later ones put their number there (`proxy.trying`).
FIRST_ATTEMPT: Final = "x-aigw-attempts: 1"
# What may stand bare in a header value; a model's name is any text, and must not become a header of its own.
_HEADER_SAFE: Final = "!#$&'()*+,/:;<=>?@[]^_`{|}~ "


def finish(steps: Steps[_V]) -> _V:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: _V = end.value
            return value


def target_text(upstream: str, target: str) -> bytes:
    """What a target is called in the cells; names of upstreams hold no `/`."""
    return f"{upstream}/{target}".encode()


def parse_url(url: str) -> tuple[tuple[str, int] | str | None, str, bytes, bool]:
    """A target's url, validated before -> (address, authority for Host, base path without a final slash, is it TLS).

    `unix:/run/x.sock:/base` has the authority `localhost`; `mock:` has no address: the worker supplies it.
    """
    if url == "mock:":
        return None, "mock", b"", False
    if url.startswith("unix:"):
        path, _, base = url[5:].partition(":")
        return path, "localhost", base.rstrip("/").encode(), False
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    assert parts.hostname is not None
    return (
        (parts.hostname, parts.port or (443 if secure else 80)),
        parts.netloc,
        parts.path.rstrip("/").encode(),
        secure,
    )


def smooth(weights: Iterable[int]) -> tuple[int, ...]:
    """One round of smooth weighted round robin: weights 5, 1, 1 -> 0 0 1 0 2 0 0. Empty where all weights are 0.

    Each step adds every weight to its score, takes the highest and takes the sum off it again, so that a heavy target
    is spread over the round instead of getting a burst.
    """
    return finish(smoothed(weights))


def smoothed(weights: Iterable[int]) -> Steps[tuple[int, ...]]:
    weights = list(weights)
    yield
    divisor = gcd(*weights)
    if not divisor:
        return ()
    weights = [weight // divisor for weight in weights]
    total = sum(weights)
    scores = [0] * len(weights)
    sequence = []
    for _ in range(total):
        scores = [score + weight for score, weight in zip(scores, weights, strict=True)]
        best = scores.index(max(scores))
        scores[best] -= total
        sequence.append(best)
        yield
    return tuple(sequence)


def remember(memo: dict[_K, _V], key: _K, value: _V, most: int = _MEMO_SIZE) -> None:
    """Keep a looked-up value; a memo that is full starts anew."""
    if len(memo) >= most:
        memo.clear()
    memo[key] = value
