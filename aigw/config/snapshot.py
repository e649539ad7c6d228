"""The config compiled: plain validated data in, immutable objects with everything precomputed out.

A worker gets the document as plain data (the shape `store` documents) and builds a `Snapshot` from it; an exchange
keeps the snapshot it began with. What depends on the config alone is decided here, once: the bytes that precede a
request on its way to a target, the order of rules, the sequence of weighted targets. Memos that depend on a snapshot
live inside it and die with it. No clock, no file, no socket here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aigw.config.limits import Limit, limits_of, replaced
from aigw.config.retry import Retry
from aigw.config.upstreams import Candidate, Steps, Upstream, finish, remember, smoothed
from aigw.prices import Price
from aigw.providers.endpoints import Endpoint, without_version
from aigw.wire.head import HeadBounds


class Resolved:
    """A model name as a client asked for it, found: its entry, and one candidate per target of its upstream.

    `fallbacks` are the models to try next; their candidates are for the name that was asked for, which is what the
    request holds. `plan` stands in copies for one key and rule, where more than one attempt may be made for them.

    `parts` are those of a split, each with the sum of the weights up to it: which one is asked is `route.part`'s
    decision, and what else stands here is then of no part. `dialects` are those that each part speaks. `is_limited`: a
    candidate, or one of a part or of a fallback in the plan, has limits, so that it has to be known what a request may
    use.
    """

    __slots__ = (
        "candidates",
        "dialects",
        "entry",
        "fallbacks",
        "first_token",
        "is_limited",
        "limits",
        "only",
        "parts",
        "plan",
        "retry",
        "total",
        "upstream",
    )

    def __init__(self, upstream: Upstream, entry: str | None, asked: str | None, sent: str | None) -> None:
        self.upstream = upstream
        self.dialects = upstream.dialects
        self.entry = entry  # the config's name of it, for metrics: never the client's text
        self.candidates = tuple(Candidate(target, asked, sent) for target in upstream.targets)
        self.is_limited = any(candidate.is_limited for candidate in self.candidates)
        # the one candidate, where there is nothing to choose
        is_alone = len(upstream.sequence) == 1 and upstream.health is None and not self.is_limited
        self.only = self.candidates[upstream.sequence[0]] if is_alone else None
        self.parts: tuple[tuple[int, Resolved], ...] = ()
        self.total: float | None = None
        self.limits: tuple[Limit, ...] = ()  # the model's
        self.first_token: float | None = None
        self.retry: Retry | None = None
        self.fallbacks: tuple[Resolved, ...] = ()
        self.plan: Plan | None = None

    @classmethod
    def split(cls, model: Model, parts: Iterable[tuple[int, Resolved]]) -> Resolved:
        """Of several, each with its weight; those without one are left out, and not all may be."""
        summed: list[tuple[int, Resolved]] = []
        for weight, part in parts:
            if weight:
                part.entry = model.name
                part.total = model.total or part.total
                summed.append((weight + (summed[-1][0] if summed else 0), part))
        found = cls(summed[0][1].upstream, model.name, None, None)
        found.dialects = frozenset.intersection(*(part.dialects for _, part in summed))
        found.candidates = ()
        found.only = None
        found.is_limited = any(part.is_limited for _, part in summed)
        found.parts = tuple(summed)
        found.total = model.total
        found.limits = model.limits
        found.first_token = model.first_token
        found.retry = model.retry
        return found

    @property
    def price(self) -> Price | None:
        """What it costs, as far as that is known before a target is chosen: of a split, what its first part does."""
        one = self.parts[0][1] if self.parts else self
        return one.candidates[0].price

    def with_plan(self, plan: Plan) -> Resolved:
        planned = Resolved(self.upstream, self.entry, None, None)
        planned.dialects = self.dialects
        planned.candidates = self.candidates
        planned.is_limited = self.is_limited
        planned.only = self.only
        planned.parts = self.parts
        planned.total = self.total
        planned.limits = self.limits
        planned.first_token = self.first_token
        planned.retry = self.retry
        planned.fallbacks = self.fallbacks
        planned.plan = plan
        if any(other.is_limited for other in plan.fallbacks):
            planned.is_limited = True
            planned.only = None
        return planned


class Plan:
    """What may follow the first attempt of a request, and how long its first content may take (see `route.plan`).

    `source` says where the retry stands: `key`, `model`, `rule`, `gateway`; `fallback` and `""` where none does.
    """

    __slots__ = ("fallbacks", "first_token", "retry", "source")

    def __init__(self, retry: Retry, source: str, fallbacks: tuple[Resolved, ...], first_token: float | None) -> None:
        self.retry = retry
        self.source = source
        self.fallbacks = fallbacks
        self.first_token = first_token  # seconds; None: what the upstream of an attempt says

    @property
    def sends_again(self) -> bool:
        return self.retry.attempts > 1 or bool(self.fallbacks)


class Model:
    """A name clients ask for: exact, or a glob with one `*`. It has an upstream, or a `split`: models and weights."""

    __slots__ = (
        "fallback",
        "first_token",
        "head",
        "hidden",
        "is_glob",
        "limits",
        "listed",
        "name",
        "real",
        "retry",
        "split",
        "tail",
        "total",
        "upstream",
    )

    def __init__(
        self, name: str, spec: Mapping[str, Any], upstreams: Mapping[str, Upstream], gateway: str = ""
    ) -> None:
        self.name = name
        self.split: dict[str, int] = spec["split"] or {}
        self.upstream = None if self.split else upstreams[spec["upstream"]]
        self.limits = limits_of("model", (gateway, name), spec["limits"])
        self.real: str | None = spec["model"]
        self.head, star, self.tail = name.partition("*")
        self.is_glob = bool(star)
        self.listed: list[str] = spec["list"] or ([] if self.is_glob else [name])
        self.hidden: bool = spec["hidden"]
        self.total: float | None = spec["timeouts"]["total"]
        self.first_token: float | None = spec["timeouts"]["first_token"]
        self.fallback: list[str] = spec["fallback"]
        self.retry = _retry(spec)

    def takes(self, name: str) -> bool:
        return glob_matches(self.head, self.tail, name) if self.is_glob else name == self.name

    def resolve(self, name: str, asked: str) -> Resolved:
        """Of a `name` that it takes; `asked` is the name in the request, which may be another. Not of a split."""
        assert self.upstream is not None
        star = name[len(self.head) : len(name) - len(self.tail)] if self.is_glob else ""
        sent = name if self.real is None else self.real.replace("*", star, 1)
        resolved = Resolved(self.upstream, self.name, asked, sent)
        resolved.total = self.total
        resolved.limits = self.limits
        resolved.first_token = self.first_token
        resolved.retry = self.retry
        return resolved


def _retry(spec: Mapping[str, Any]) -> Retry | None:
    return None if spec["retry"] is None else Retry(spec["retry"])


class Key:
    """A client's credential, known by its digests: the current one, and the one before it until `previous_until`."""

    __slots__ = (
        "all_models",
        "disabled",
        "exact",
        "expires",
        "globs",
        "group",
        "limits",
        "name",
        "previous_until",
        "replaces",
        "resources",
        "retry",
    )

    def __init__(self, name: str, spec: Mapping[str, Any], gateway: str = "") -> None:
        self.name = name
        self.limits = limits_of("key", (gateway, name), spec["limits"])
        self.replaces = replaced(self.limits)  # units of inherited limits
        self.group: str | None = spec["group"]
        self.expires: float | None = spec["expires"]
        self.disabled: bool = spec["disabled"]
        self.resources: bool = spec["resources"]
        self.retry = _retry(spec)
        self.previous_until: float | None = spec["previous"]["until"] if spec["previous"] else None
        models: list[str] = spec["models"]
        self.all_models = "*" in models
        self.exact = frozenset(model for model in models if "*" not in model)
        self.globs = tuple(model.partition("*")[::2] for model in models if "*" in model)

    def __repr__(self) -> str:
        return f"<Key {self.name}>"

    def allows(self, model: str) -> bool:
        return (
            self.all_models or model in self.exact or any(glob_matches(head, tail, model) for head, tail in self.globs)
        )


class Rule:
    """A forwarding rule. `resolved` stands where it names an upstream; `defaults` where it routes by model."""

    __slots__ = (
        "by_model",
        "defaults",
        "exact",
        "first_token",
        "limits",
        "methods",
        "name",
        "prefix",
        "preserve_host",
        "public",
        "resolved",
        "retry",
        "strip",
        "total",
    )

    def __init__(self, spec: Mapping[str, Any], upstreams: Mapping[str, Upstream], gateway: str = "") -> None:
        self.name: str = spec["name"]
        self.limits = limits_of("rule", (gateway, self.name), spec["limits"])
        path = spec["path"].encode()
        self.exact: bytes | None = None if path.endswith(b"/*") else path
        self.prefix = path[:-2] if path.endswith(b"/*") else path
        self.methods: frozenset[str] | None = None if spec["methods"] is None else frozenset(spec["methods"])
        self.strip = len(self.prefix) if spec["strip_path"] else 0
        self.preserve_host: bool = spec["preserve_host"]
        self.public: bool = spec["public"]
        self.total: float | None = spec["timeouts"]["total"]
        self.first_token: float | None = spec["timeouts"]["first_token"]
        self.retry = _retry(spec)
        self.by_model = spec["upstream"] is None
        self.resolved = None if self.by_model else Resolved(upstreams[spec["upstream"]], None, None, None)
        default = spec["default"]
        named = {"": default} if isinstance(default, str) else (default or {})
        self.defaults = {dialect: Resolved(upstreams[name], None, None, None) for dialect, name in named.items()}

    def __repr__(self) -> str:
        return f"<Rule {self.name} {self.prefix.decode()}{'' if self.exact else '/*'}>"


class Match:
    """A path of a gateway, decided: which rule takes it, what it asks for, what a target is asked for.

    `query` of a request is not part of it. Kept by the gateway's memo, so it never points at a request.
    """

    __slots__ = ("endpoint", "gateway", "path", "rule", "versionless")

    def __init__(self, gateway: GatewaySpec, rule: Rule, endpoint: Endpoint, path: bytes) -> None:
        self.gateway = gateway
        self.rule = rule
        self.endpoint = endpoint
        self.path = path
        self.versionless = without_version(path)


class GatewaySpec:
    """A tenant: its keys by digest, its models, its rules in order of precedence; and what was already looked up."""

    __slots__ = (
        "_rules_by_path",
        "_rules_by_prefix",
        "auth",
        "exact",
        "globs",
        "hosts",
        "is_limited",
        "keys",
        "limits",
        "matches",
        "models",
        "name",
        "resolved",
        "retry",
        "rules",
    )

    def __init__(self, name: str, spec: Mapping[str, Any]) -> None:
        self.name = name
        self.hosts: list[str] = [host.lower() for host in spec["hosts"]]
        self.auth: bool = spec["auth"] == "keys"
        self.limits = limits_of("gateway", (name,), spec["limits"])
        self.is_limited = bool(self.limits)  # or anything in it
        self.retry = _retry(spec)
        # digest -> (key, whether this digest is the one before the last rotation)
        self.keys: dict[bytes, tuple[Key, bool]] = {}
        self.models: list[Model] = []
        self.exact: dict[str, Model] = {}
        self.globs: list[Model] = []
        self.rules: list[Rule] = []
        # a path, or a prefix, and its rules in the order of the file
        self._rules_by_path: dict[bytes, list[Rule]] = {}
        self._rules_by_prefix: dict[bytes, list[Rule]] = {}
        self.matches: dict[tuple[str, bytes], Match] = {}
        self.resolved: dict[str, Resolved] = {}

    def fill(self, spec: Mapping[str, Any], upstreams: Mapping[str, Upstream]) -> Steps[None]:
        """Take in keys, models and rules."""
        for key_name, key_spec in spec["keys"].items():
            key = Key(key_name, key_spec, self.name)
            self.is_limited |= bool(key.limits)
            if key_spec["previous"]:
                self.keys[bytes.fromhex(key_spec["previous"]["sha256"])] = (key, True)
            self.keys[bytes.fromhex(key_spec["sha256"])] = (key, False)
            yield
        for pattern, model_spec in spec["models"].items():
            model = Model(pattern, model_spec, upstreams, self.name)
            self.models.append(model)
            self.is_limited |= bool(model.limits)
            if model.is_glob:
                self.globs.append(model)
            else:
                self.exact[model.name] = model
            yield
        self.globs.sort(key=lambda model: (-len(model.name), model.name))
        for rule_spec in spec["rules"]:
            rule = Rule(rule_spec, upstreams, self.name)
            self.rules.append(rule)
            self.is_limited |= bool(rule.limits)
            by = self._rules_by_prefix if rule.exact is None else self._rules_by_path
            by.setdefault(rule.prefix, []).append(rule)
            yield

    def __repr__(self) -> str:
        return f"<GatewaySpec {self.name} {len(self.keys)} keys {len(self.models)} models {len(self.rules)} rules>"

    def rules_of(self, path: bytes) -> Iterator[Rule]:
        """Those that take the path: exact beats prefix, the longest prefix wins, on a segment's border; among equals
        the order of the file."""
        yield from self._rules_by_path.get(path, ())
        prefix = path
        while True:
            yield from self._rules_by_prefix.get(prefix, ())
            end = prefix.rfind(b"/")
            if end < 0:
                return
            prefix = prefix[:end]

    def find_model(self, asked: str) -> Resolved | None:
        """Exact names first, then the longest glob that fits."""
        found = self.resolved.get(asked)
        if found is None:
            model = self._model(asked)
            if model is None:
                return None
            found = self._split(model, asked) if model.split else model.resolve(asked, asked)
            found.fallbacks = tuple(self._fallbacks(model, asked))
            remember(self.resolved, asked, found)
        return found

    def _model(self, name: str) -> Model | None:
        return self.exact.get(name) or next((model for model in self.globs if model.takes(name)), None)

    def _split(self, model: Model, asked: str) -> Resolved:
        """That its members are there, and not split themselves, was checked."""
        members = [(weight, self._model(name), name) for name, weight in model.split.items()]
        return Resolved.split(model, [(weight, one.resolve(name, asked)) for weight, one, name in members if one])

    def _fallbacks(self, model: Model, asked: str) -> Iterator[Resolved]:
        """The models of its own list, and not those of theirs. A glob may have the very name that was asked for."""
        for name in model.fallback:
            other = self._model(name)
            if other is not None and name != asked:
                yield other.resolve(name, asked)


class Timeouts:
    """Deadlines of the client's side in seconds, under the names of the config."""

    __slots__ = ("client_read", "client_write", "handshake", "keepalive", "linger", "request", "total")

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.keepalive: float = spec["keepalive"]
        self.request: float = spec["request"]
        self.client_read: float = spec["client_read"]
        self.client_write: float = spec["client_write"]
        self.handshake: float = spec["handshake"]
        self.linger: float = spec["linger"]
        self.total: float | None = spec["total"]


class Snapshot:
    """Everything a worker serves by. Immutable but for its memos."""

    __slots__ = (
        "body_bound",
        "collected_bound",
        "connections_bound",
        "digests",
        "exact_hosts",
        "gateways",
        "generation",
        "head_bounds",
        "says_aigw",
        "says_limits",
        "says_timing",
        "suffix_hosts",
        "timeouts",
        "trusted_proxies",
        "upstreams",
    )

    def __init__(
        self,
        document: Mapping[str, Any],
        generation: int,
        upstreams: dict[str, Upstream],
        gateways: dict[str, GatewaySpec],
    ) -> None:
        self.generation = generation
        self.timeouts = Timeouts(document["timeouts"])
        bounds = document["bounds"]
        self.head_bounds = HeadBounds(bounds["head"], bounds["headers"], bounds["url"])
        self.body_bound: int = bounds["body"]
        self.collected_bound: int = bounds["collected"]
        self.connections_bound: int = bounds["connections"]
        self.trusted_proxies: list[str] = document["trusted_proxies"]
        self.says_aigw: bool = document["answer_headers"]["x-aigw"]
        self.says_limits: bool = document["answer_headers"]["x-ratelimit"]
        self.says_timing: bool = document["answer_headers"]["server-timing"]
        self.upstreams = upstreams
        self.gateways = gateways
        # every digest of every key: none of them may leave the gateway, whichever tenant it belongs to
        self.digests = frozenset(digest for gateway in self.gateways.values() for digest in gateway.keys)
        self.exact_hosts: dict[str, GatewaySpec] = {}
        suffixes: list[tuple[str, GatewaySpec]] = []
        for gateway in self.gateways.values():
            for host in gateway.hosts:
                if host.startswith("*"):
                    suffixes.append((host[1:], gateway))
                else:
                    self.exact_hosts[host] = gateway
        self.suffix_hosts = sorted(suffixes, key=lambda pair: -len(pair[0]))

    def __repr__(self) -> str:
        return f"<Snapshot generation {self.generation}>"

    def find_gateway(self, host: str) -> GatewaySpec | None:
        """The gateway that answers for a host (lower case, no port): exact, else the longest suffix, else `*`."""
        found = self.exact_hosts.get(host)
        if found is None:
            for suffix, gateway in self.suffix_hosts:
                if host.endswith(suffix) and len(host) >= len(suffix) + (suffix != ""):
                    return gateway
        return found


def build(document: Mapping[str, Any], generation: int) -> Steps[Snapshot]:
    """A validated document -> a snapshot, item by item. Pure: the same document gives an equal snapshot."""
    prices = {name: Price(dollars) for name, dollars in document["prices"].items()}
    upstreams = {}
    for name, spec in document["upstreams"].items():
        upstreams[name] = upstream = Upstream(name, spec, prices)
        upstream.sequence = yield from smoothed([target.weight for target in upstream.targets])
    gateways = {}
    for name, spec in document["gateways"].items():
        gateways[name] = GatewaySpec(name, spec)
        yield from gateways[name].fill(spec, upstreams)
    return Snapshot(document, generation, upstreams, gateways)


def compile(document: Mapping[str, Any], generation: int) -> Snapshot:
    """The same in one go."""
    return finish(build(document, generation))


def glob_matches(head: str, tail: str, name: str) -> bool:
    return len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail)
