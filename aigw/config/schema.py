"""The config document as models: which keys there are, what they mean, what they may hold.

Takes plain data (what the loader or a JSON body brings, short forms included) and gives models with every default
filled in, or findings with a path and a remedy. It opens no file and knows no YAML. Descriptions are written for
people: they are the remedy where a required key is missing, and the texts of the JSON Schema that editors show.
Defaults stand here as people write them and are read like anything else.

What one scalar may be is said in `values` and `netvalues`; what spans several places is in `checks`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import CoreSchema, core_schema

from aigw.config import findings
from aigw.config import netvalues as net
from aigw.config import values as val
from aigw.config.problem import Finding

__all__ = ["Config", "json_schema", "keys", "validate"]

_INTERPOLATION = r"\$\{"


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """Annotation of a field: the reader of its scalar, and the JSON Schema of what people write."""

    read: Callable[[object], object]
    schema: dict[str, Any] = field(default_factory=lambda: {"type": ["string", "number", "boolean"]})

    def __get_pydantic_core_schema__(self, source: object, handler: object) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: object) -> dict[str, Any]:
        return dict(self.schema)


def _choice(*words: str) -> Scalar:
    return Scalar(val.choice(*words), {"anyOf": [{"enum": list(words)}, {"type": "string", "pattern": _INTERPOLATION}]})


def _number(read: Callable[[object], object], **schema: Any) -> Scalar:
    return Scalar(read, {"anyOf": [schema, {"type": "string", "pattern": _INTERPOLATION}]})


def _integer(low: int, high: int) -> Scalar:
    return _number(val.integer(low, high), type="integer", minimum=low, maximum=high)


def _text(read: Callable[[object], object], pattern: str) -> Scalar:
    return Scalar(read, {"type": "string", "pattern": rf"^(?:{pattern})$|{_INTERPOLATION}"})


def _size(low: int, high: int) -> Scalar:
    texts = {"type": "string", "pattern": rf"^[0-9]+(B|KiB|MiB|GiB)?$|{_INTERPOLATION}"}
    return Scalar(val.size(low, high), {"anyOf": [{"type": "integer", "minimum": low, "maximum": high}, texts]})


_SPAN = r"[0-9]+(\.[0-9]+)?(ms|s|m|h|d)"
_KIB, _MIB = 1 << 10, 1 << 20

Text = Annotated[str, Scalar(val.text)]
Secret = Annotated[str, Scalar(val.secret)]
Name = Annotated[str, Scalar(val.name)]
TargetName = Annotated[str | int, Scalar(lambda value: value if isinstance(value, int) else val.target_name(value))]
Pattern = Annotated[str, Scalar(val.pattern)]
Flag = Annotated[bool, _number(val.boolean, type="boolean")]
Count = Annotated[int, _integer(1, 1_000_000)]
Dollars = Annotated[float, _number(val.decimal, type="number", minimum=0)]
Share = Annotated[float, _text(val.percent, "[0-9]{1,3}%")]
Duration = Annotated[float, _text(val.duration(), _SPAN)]
DurationOrZero = Annotated[float, _text(val.duration(zero=True), _SPAN)]
DurationOrOff = Annotated[float | None, _text(val.duration(off=True), f"{_SPAN}|off")]
Date = Annotated[float, Scalar(val.date, {"type": "string"})]
Address = Annotated[str, Scalar(net.address, {"type": "string"})]
Url = Annotated[str, _text(net.url, "https?://.*|unix:/.*")]
Host = Annotated[str, Scalar(net.host_pattern, {"type": "string"})]
Header = Annotated[str, Scalar(net.header_name)]
HeaderValue = Annotated[str | None, Scalar(net.header_value, {"type": ["string", "number", "boolean", "null"]})]
Dialect = Annotated[str, _choice("openai", "anthropic", "gemini")]
AmountRate = Annotated[
    tuple[int, float | str], _text(val.rate(val.integer(1, 10**15)), r"[0-9]+/([0-9]+(ms|s|m|h)|day|month)")
]
CostRate = Annotated[tuple[float, float | str], _text(val.rate(val.decimal), r"[0-9.]+/([0-9]+(ms|s|m|h)|day|month)")]


def key(description: str, default: object = ..., **options: Any) -> Any:
    """A key with a default as people write it; without one it is required."""
    return Field(default, description=description, **options)


def absent(description: str, **options: Any) -> Any:
    """A key that means nothing while it is not there: None."""
    return Field(None, validate_default=False, description=description, **options)


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, hide_input_in_errors=True)


def _wrapped(name: str) -> Callable[[object], object]:
    """A before-validator: a bare scalar stands for a mapping with that one key."""
    return lambda value: value if isinstance(value, (dict, Model)) else {name: value}


# Listeners and the process


class ListenTls(Model):
    cert: Text = key("PEM file with the certificate and its chain; relative to this file")
    key: Text = key("PEM file with the private key; relative to this file")


class Listen(Model):
    address: Address = key('host:port, "[v6]:port" or unix:/path')
    tls: ListenTls | None = absent("serve HTTPS here")


Listener = Annotated[Listen, BeforeValidator(_wrapped("address"), json_schema_input_type=str | Listen)]


def _listeners(value: object) -> object:
    if isinstance(value, list) and not value:
        raise ValueError("is an empty list; name at least one address, or leave the key out for 127.0.0.1:8081")
    return value if isinstance(value, list) else [value]


class Admin(Model):
    listen: Listener = key("where the admin API listens", "127.0.0.1:8080")
    token: Secret | None = absent("bearer token of the admin API; mandatory off loopback")

    @model_validator(mode="after")
    def _closed_to_others(self) -> "Admin":
        if self.token is None and not net.is_local(self.listen.address):
            raise ValueError(
                'a token is mandatory when the admin API listens off loopback: token: "${AIGW_ADMIN_TOKEN}"'
            )
        return self


class UsageStore(Model):
    path: Text = key("SQLite file, relative to this file; off keeps nothing", "aigw-usage.db")
    retention: Duration = key("how long usage is kept", "90d")


class Timeouts(Model):
    handshake: Duration = key("a TLS handshake of a client, in total", "10s")
    keepalive: Duration = key("an idle client connection is closed after", "75s")
    request: Duration = key("a request's head must be complete within, in total", "30s")
    client_read: Duration = key("a request's body must make progress within", "60s")
    client_write: Duration = key("a client must take what is there within", "60s")
    linger: Duration = key("the gateway's own answer may drain for", "2s")
    total: DurationOrOff = key("a whole exchange, all attempts included", "off")


class Bounds(Model):
    head: Annotated[int, _size(_KIB, _MIB)] = key("a request's head", "32KiB")
    headers: Annotated[int, _integer(8, 1000)] = key("header fields of a request", 100)
    url: Annotated[int, _size(256, _MIB)] = key("a request's target", "16KiB")
    body: Annotated[int, _size(_KIB, 1 << 40)] = key(
        "a request's body that must be collected (models, retries)", "32MiB"
    )
    collected: Annotated[int, _size(_KIB, 1 << 40)] = key("all collected bodies of a worker together", "512MiB")
    connections: Annotated[int, _integer(1, 1_000_000)] = key("client connections of a worker", 10000)

    @model_validator(mode="after")
    def _nested(self) -> "Bounds":
        if self.url > self.head:
            raise ValueError("url may not exceed head, since the URL is part of the head")
        if self.body > self.collected:
            raise ValueError("body may not exceed collected, which bounds all bodies together")
        return self


class Drain(Model):
    delay: DurationOrZero = key("listeners stay open that long after readiness turned red", "0s")
    timeout: DurationOrZero = key("running exchanges may take that long to end", "30s")


class AnswerHeaders(Model):
    ratelimit: Flag = key("x-ratelimit-* where a limit applies", True, alias="x-ratelimit")
    aigw: Flag = key("x-aigw-upstream, x-aigw-model, x-aigw-attempts", True, alias="x-aigw")
    timing: Flag = key("Server-Timing", True, alias="server-timing")


class Price(Model):
    input: Dollars = key("dollars per million input tokens")
    output: Dollars = key("dollars per million output tokens")
    cached: Dollars | None = absent("the same for input that was cached; default: as input")
    cache_write: Dollars | None = absent("for input that is written to the cache; default: as input")
    cache_write_1h: Dollars | None = absent("for what is kept there for an hour; default: as cache_write")
    reasoning: Dollars | None = absent("for reasoning; default: as output")
    audio_input: Dollars | None = absent("for audio that comes in; default: as input")
    audio_output: Dollars | None = absent("for audio that goes out; default: as output")


# Limits and retries


class UpstreamLimit(Model):
    requests: AmountRate | None = absent("requests per window: 100/1m")
    tokens: AmountRate | None = absent("tokens in and out per window: 50000/1m")
    input_tokens: AmountRate | None = absent("tokens in per window")
    output_tokens: AmountRate | None = absent("tokens out per window")
    cost: CostRate | None = absent("dollars per window: 50/month")
    concurrency: Count | None = absent("exchanges at once")
    shadow: Flag = key("count only, never refuse", False)

    @model_validator(mode="after")
    def _one_unit(self) -> "UpstreamLimit":
        units = ("requests", "tokens", "input_tokens", "output_tokens", "cost", "concurrency")
        if sum(getattr(self, unit) is not None for unit in units) != 1:
            raise ValueError(f"a limit has exactly one of {', '.join(units)}; write one item for each")
        return self


class Limit(UpstreamLimit):
    per: Annotated[str, Scalar(val.per, {"type": "string"})] | None = absent(
        "whose allowance it is: key, group, gateway, rule, model, ip or header:NAME; default: what it stands on"
    )


class Retry(Model):
    attempts: Annotated[int, _integer(1, 10)] = key("tries per upstream, the first included", 2)
    when: list[Annotated[str, Scalar(val.outcome, {"type": ["string", "integer"]})]] = key(
        "outcomes that are tried again: causes, statuses, classes", ["connect", "429", "5xx", "first_byte"]
    )
    budget: Share = key("share of all requests that may be retries", "20%")


# Upstreams


class UpstreamTimeouts(Model):
    queue: Duration = key("waiting for a free connection", "5s")
    connect: Duration = key("dialling, TLS included", "5s")
    send: Duration = key("the upstream must take the request, per progress", "60s")
    first_byte: Duration = key("from the request to the head of the answer", "600s")
    first_token: DurationOrOff = key("from the request to the first content of a stream", "off")
    idle: Duration = key("between two pieces of an answer", "300s")
    pool_idle: Duration = key("an unused connection is kept that long; below the upstream's own limit", "55s")


class Tls(Model):
    verify: Flag = key("check the certificate; false lets anyone in between read everything", True)
    ca: Text | None = absent("PEM file of the CAs to trust instead of the system's; relative to this file")
    server_name: Annotated[str, Scalar(net.host_name, {"type": "string"})] | None = absent(
        "the name asked for and checked; default: the URL's host"
    )

    @model_validator(mode="after")
    def _meaningful(self) -> "Tls":
        if self.ca is not None and not self.verify:
            raise ValueError("ca means nothing with verify: false; leave one of them out")
        return self


class Target(Model):
    name: Annotated[str, Scalar(val.target_name)] | None = absent("default: host:port")
    url: Url = key("http(s)://host[:port][/base] or unix:/run/name.sock[:/base]: what an SDK would get as base URL")
    weight: Annotated[int, _integer(0, 1000)] = key("share of the requests; 0 gets none", 1)
    api_key: Secret | None = absent("instead of the upstream's")
    headers: dict[Header, HeaderValue] = key("set, or removed by null, over the upstream's", {})
    model: dict[Text, Text] = key("other names of models at this target", {})
    limits: list[UpstreamLimit] = key("above these the target is no candidate", [])


def _by_index(value: object) -> object:
    """A list of targets as a mapping by position, so that findings keep their path."""
    return dict(enumerate(value)) if isinstance(value, list) else value


class Health(Model):
    path: Annotated[str, Scalar(net.client_path, {"type": "string"})] | None = absent("GET this; without: a connect")
    interval: Duration = key("between two probes", "5s")
    timeout: Duration = key("a probe fails after", "1s")
    unhealthy_after: Count = key("failures in a row", 3)
    healthy_after: Count = key("successes in a row", 2)


class Eject(Model):
    after: Count = key("consecutive failures", 5)
    for_: Duration = key("how long the target rests", "30s", alias="for")


class Upstream(Model):
    provider: Annotated[str, _choice("openai", "azure", "anthropic", "gemini", "mock", "http")] = key(
        "whose API it is: openai, azure, anthropic, gemini, mock, or http for any other HTTP API"
    )
    dialects: list[Dialect] | None = absent("the APIs it speaks; default: the provider's own")
    api_key: Secret | None = absent("the credential to send, or client to pass the client's own on")
    usage: Annotated[str, _choice("inject", "as_reported")] | None = absent(
        "inject: ask for the usage in streams, and keep it from the client; as_reported: do not. Default: inject for "
        "api.openai.com and mock, else as_reported"
    )
    balance: Annotated[str, _choice("round_robin", "least_connections", "random", "hash")] = key(
        "how a target is chosen", "round_robin"
    )
    hash_on: Annotated[str, Scalar(val.hash_source, {"type": "string"})] | None = absent(
        "with balance: hash: key, ip or header:NAME"
    )
    targets: Annotated[
        dict[TargetName, Target],
        BeforeValidator(_by_index, json_schema_input_type=list[Target] | dict[str, Target]),
    ] = key("URLs, as a list or a mapping by name; default: the provider's public address", {})
    headers: dict[Header, HeaderValue] = key("set, or removed by null, on the way out", {})
    health: Health | None = absent("probe the targets")
    eject: Annotated[
        Eject | None,
        BeforeValidator(lambda value: None if value == "off" else value, json_schema_input_type=Literal["off"] | Eject),
    ] = key("rest targets that fail, while there are others; off: never", {})
    timeouts: UpstreamTimeouts = key("deadlines of this upstream", {})
    max_connections: Count | None = absent("per target; more exchanges wait for timeouts.queue")
    tls: Tls = key("how https targets are verified", {})
    limits: list[UpstreamLimit] = key("above these the upstream is no candidate", [])


# Gateways


class ExchangeTimeouts(Model):
    first_token: DurationOrOff = key("from the request to the first content of a stream", "off")
    total: DurationOrOff = key("a whole exchange, all attempts included", "off")


class Previous(Model):
    sha256: Annotated[str, _text(val.digest, "[0-9a-fA-F]{64}")] = key(
        "SHA-256 digest of the key before the last rotation"
    )
    until: Date = key("it is taken until then: 2027-01-31, or with a time")


class Key(Model):
    sha256: Annotated[str, _text(val.digest, "[0-9a-fA-F]{64}")] = key(
        "the key's SHA-256 digest; `aigw key NAME` makes a key and prints the line to paste"
    )
    models: list[Pattern] = key("names of models it may ask for, with * for any text", ["*"])
    group: Name | None = absent("who pays together")
    expires: Date | None = absent("it is refused from then on: 2027-01-31, or with a time")
    disabled: Flag = key("refuse it", False)
    previous: Previous | None = absent("the key it replaces")
    resources: Flag = key("may use what a rule's default opens even if its models are restricted", False)
    limits: list[Limit] = key("what this key may use", [])
    retry: Retry | None = absent("when to try again, for this key")


class ModelEntry(Model):
    upstream: Name | None = absent("the upstream that answers")
    model: Pattern | None = absent("the real name there; * is what the name's * took; default: the name asked for")
    fallback: list[Text] = key("models to try next, in this order", [])
    split: dict[Text, Annotated[int, _integer(0, 1000)]] | None = absent(
        "models and their weights, instead of upstream"
    )
    listed: list[Text] | None = absent("what a name with * shows in /v1/models", alias="list")
    hidden: Flag = key("do not show it in /v1/models", False)
    timeouts: ExchangeTimeouts = key("deadlines of this model", {})
    retry: Retry | None = absent("when to try again, for this model")
    limits: list[Limit] = key("what may be used of this model", [])

    @model_validator(mode="after")
    def _one_way(self) -> "ModelEntry":
        if (self.upstream is None) == (self.split is None):
            raise ValueError("needs an upstream (or a split of models), and not both: gpt-4o: {upstream: openai}")
        return self


Entry = Annotated[ModelEntry, BeforeValidator(_wrapped("upstream"), json_schema_input_type=str | ModelEntry)]


def _default(value: object) -> object:
    if isinstance(value, (dict, str)):
        return value
    raise ValueError("must be the name of an upstream, or a mapping of dialects to upstreams: {openai: NAME}")


class Rule(Model):
    name: Name = key("a name for logs and metrics")
    path: Annotated[str, _text(net.rule_path, "/.*")] = key('"/ping" for one path, "/v1/*" for all beneath')
    methods: list[Annotated[str, Scalar(net.method, {"type": "string"})]] | None = absent("default: all")
    upstream: Name | None = absent("the upstream that answers; without one the model decides")
    default: (
        Annotated[
            dict[Dialect | None, Name],
            BeforeValidator(
                lambda value: {None: value} if isinstance(_default(value), str) else value,
                json_schema_input_type=str | dict[str, str],
            ),
        ]
        | None
    ) = absent("the upstream for requests without a model: files, batches, stored responses")
    strip_path: Flag = key("take the rule's prefix off the path", False)
    preserve_host: Flag = key("send the client's Host instead of the target's", False)
    public: Flag = key("ask for no key", False)
    timeouts: ExchangeTimeouts = key("deadlines of this rule", {})
    retry: Retry | None = absent("when to try again, for this rule")
    limits: list[Limit] = key("what may be used of this rule", [])


class Gateway(Model):
    hosts: list[Host] = key('host names, "*.suffix" or "*" for any', ["*"])
    auth: Annotated[str, _choice("keys", "none")] = key("keys: a key is asked for; none: anyone may use it", "keys")
    keys: dict[Name, Key] = key("clients' keys by name", {})
    models: dict[Pattern, Entry] = key("names clients ask for, with * for any text", {})
    rules: list[Rule] = key("which paths go where", [{"name": "api", "path": "/*"}])
    retry: Retry | None = absent("when to try again")
    limits: list[Limit] = key("what may be used", [])


class Config(Model):
    """The configuration of aigw."""

    listen: Annotated[
        list[Listener], BeforeValidator(_listeners, json_schema_input_type=str | Listen | list[str | Listen])
    ] = key("where clients connect", "127.0.0.1:8081")
    workers: Annotated[
        int | str,
        Scalar(
            val.count_or_auto,
            {"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["auto"]}, {"type": "string", "pattern": r"\$\{"}]},
        ),
    ] = key("worker processes; auto: one per core", 1)
    admin: Admin = key("the admin API", {})
    access_log: Text = key("stdout, off, or a file relative to this one; JSON lines", "stdout")
    usage_store: Annotated[UsageStore, BeforeValidator(_wrapped("path"), json_schema_input_type=str | UsageStore)] = (
        key("where usage is kept: {path, retention}, a path, or off", {})
    )
    timeouts: Timeouts = key("deadlines on the client's side", {})
    bounds: Bounds = key("how much a client may send", {})
    drain: Drain = key("how the gateway stops", {})
    trusted_proxies: list[Annotated[str, Scalar(net.network, {"type": "string"})]] = key(
        "networks whose X-Forwarded-For is believed", []
    )
    answer_headers: AnswerHeaders = key("headers the gateway adds to answers", {})
    prices: dict[Text, Price] = key("dollars per million tokens, by model", {})
    upstreams: dict[Name, Upstream] = key("providers, by name", {})
    gateways: dict[Name, Gateway] = key("tenants, by name; {} serves none")


def validate(raw: object) -> tuple[Config | None, list[Finding]]:
    """The document with its defaults, or every finding of the schema."""
    try:
        return Config.model_validate(raw), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        return None, findings.explain(details, raw, _described())


def keys() -> set[str]:
    """Every key of the document, dotted, `*` for a name or a position: `upstreams.*.targets.*.url`."""
    return {".".join(path) for path in _described()}


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the document as people write it, short forms included."""
    schema = Config.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "urn:aigw:config", **schema}


def _described() -> Mapping[tuple[str, ...], str]:
    found: dict[tuple[str, ...], str] = {}
    _describe(Config, (), found)
    return found


def _describe(model: type[BaseModel], prefix: tuple[str, ...], found: dict[tuple[str, ...], str]) -> None:
    for name, info in model.model_fields.items():
        path = (*prefix, info.alias or name)
        found[path] = info.description or ""
        for nested, many in _models(info.annotation, False):
            _describe(nested, (*path, "*") if many else path, found)


def _models(annotation: Any, many: bool) -> list[tuple[type[BaseModel], bool]]:
    """The models within a field's annotation, and whether a list or mapping lies between."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, many)]
    many = many or getattr(annotation, "__origin__", None) in (list, dict)
    return [pair for part in getattr(annotation, "__args__", ()) for pair in _models(part, many)]
