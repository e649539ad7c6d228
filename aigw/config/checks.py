"""What no single field shows: names that lead nowhere, things claimed twice, dangers.

These checks walk the document as written, so that they run, and find everything, even where the schema refused a part
of it; whatever has another shape than expected is passed over here, because the schema has said so. They are pure.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from aigw.config.netvalues import host_pattern, is_local
from aigw.config.problem import Finding, Path, nearest, path_text, quote
from aigw.config.values import duration, is_null
from aigw.config.walk import children, mapping, select, value_at
from aigw.prices import Price, Prices, list_of

__all__ = ["DIALECTS", "errors", "listens", "unpriced", "warnings"]

DIALECTS = {
    "openai": ("openai",),
    "azure": ("openai",),
    "anthropic": ("anthropic",),
    "gemini": ("gemini",),
    "mock": ("openai", "anthropic", "gemini"),
    "http": (),
}


# Errors


def errors(raw: object) -> list[Finding]:
    """Names that lead nowhere, and what excludes one another."""
    document = mapping(raw)
    upstreams = mapping(document.get("upstreams"))
    gateways = mapping(document.get("gateways"))
    found = [*_addresses(document), *_needless_tls(document), *_hosts(gateways)]
    found += [*_calendar_limits(document), *_same_limits(document)]
    for name, upstream in upstreams.items():
        found += _upstream(("upstreams", name), mapping(upstream))
    for name, gateway in gateways.items():
        path: Path = ("gateways", name)
        found += _keys(path, mapping(gateway))
        found += _models(path, mapping(gateway), upstreams)
        found += _rules(path, mapping(gateway), upstreams)
    return found


def _twice(seen: dict[Any, Path], what: Any, path: Path, message: str) -> Iterator[Finding]:
    """A finding if `what` was seen before; the message gets the place of the first."""
    first = seen.setdefault(what, path)
    if first != path:
        yield Finding(path, message.format(first=path_text(first)))


def _addresses(document: Mapping[str, Any]) -> Iterator[Finding]:
    seen: dict[Any, Path] = {}
    for path, address in listens(document):
        if not address.endswith(":0"):
            yield from _twice(seen, address, path, "the same address as {first}; remove one")


def _needless_tls(document: Mapping[str, Any]) -> Iterator[Finding]:
    for path, tls in [found for place in _LISTENERS for found in select(document, f"{place}.tls")]:
        address = mapping(value_at(document, path[:-1])).get("address")
        if isinstance(address, str) and address.startswith("unix:") and not is_null(tls):
            yield Finding(path, "means nothing on a unix socket, where nobody is in between; leave it out", at_key=True)


_LISTENERS = ("listen", "listen.*", "admin.listen")


def listens(document: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """Every address to listen on, in any of its forms."""
    listen = document.get("listen", "127.0.0.1:8081")
    entries: list[tuple[Path, Any]] = (
        [(("listen", index), entry) for index, entry in enumerate(listen)]
        if isinstance(listen, list)
        else [(("listen",), listen)]
    )
    for path, entry in entries:
        if isinstance(entry, dict):
            path, entry = (*path, "address"), entry.get("address")
        if isinstance(entry, str) and not is_null(entry):
            yield path, str(entry)


def _hosts(gateways: Mapping[str, Any]) -> Iterator[Finding]:
    seen: dict[Any, Path] = {}
    for name, gateway in gateways.items():
        path: Path = ("gateways", name)
        hosts = mapping(gateway).get("hosts", ["*"])
        if hosts == []:
            yield Finding((*path, "hosts"), 'is an empty list, so nothing reaches this gateway; ["*"] is any host')
        stated = "hosts" in mapping(gateway)
        for index, host in enumerate(hosts if isinstance(hosts, list) else ()):
            try:
                normal = host_pattern(host)
            except ValueError:
                continue
            shown = "any host (its hosts default to *)" if not stated else "this host"
            where = (*path, "hosts", index) if stated else path
            yield from _twice(
                seen, normal, where, f"{shown} is claimed by {{first}} already; give each gateway its own"
            )


def _same_limits(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Two of one unit, window and `per` would count in one place."""
    message = "the same unit, window and per as {first}; keep the one that is meant"
    for prefix, on in _LIMITED.items():
        for path, limits in select(document, f"{prefix}.limits"):
            seen: dict[Any, Path] = {}
            for index, item in children(limits):
                limit = mapping(item)
                per, shadow = str(limit.get("per", on)), str(limit.get("shadow", "false"))
                for unit in limit.keys() - {"per", "shadow"}:
                    yield from _twice(seen, (unit, _window(limit[unit]), per, shadow), (*path, index), message)


def _window(value: object) -> object:
    """Of a rate as written: 60s and 1m are one."""
    _, _, window = str(value).partition("/")
    try:
        return duration()(window)
    except ValueError:
        return window


def _calendar_limits(document: Mapping[str, Any]) -> Iterator[Finding]:
    if str(document.get("usage_store")) != "off":
        return
    for prefix in _LIMITED:
        for path, value in select(document, f"{prefix}.limits.*.*"):
            if isinstance(value, str) and value.endswith(("/day", "/month")):
                yield Finding(path, "a window of a day or month needs the usage store; do not write usage_store: off")


# What may have limits, and what their `per` is then.
_LIMITED = {
    "upstreams.*": "upstream",
    "upstreams.*.targets.*": "target",
    "gateways.*": "gateway",
    "gateways.*.keys.*": "key",
    "gateways.*.models.*": "model",
    "gateways.*.rules.*": "rule",
}


def _upstream(path: Path, upstream: Mapping[str, Any]) -> Iterator[Finding]:
    provider = upstream.get("provider")
    targets = upstream.get("targets")
    if provider == "mock" and targets is not None:
        yield Finding((*path, "targets"), "provider mock has no URL: it is built in; leave targets out", at_key=True)
    if provider == "mock" and "tls" in upstream:
        yield Finding((*path, "tls"), "provider mock is reached without TLS; leave tls out", at_key=True)
    if provider in ("azure", "http") and targets is None:
        yield Finding(path, f"provider {provider} has no URL of its own; write targets: [{{url: ...}}]", at_key=True)
    if targets in ([], {}) and targets is not None and provider != "mock":
        yield Finding((*path, "targets"), "is empty; name a URL, or leave it out for the provider's own", at_key=True)
    if provider == "http" and "dialects" in upstream:
        yield Finding((*path, "dialects"), "provider http speaks no dialect; leave it out", at_key=True)
    elif upstream.get("dialects") == []:
        yield Finding((*path, "dialects"), "is empty; leave it out for the provider's own", at_key=True)
    if upstream.get("balance") == "hash" and "hash_on" not in upstream:
        yield Finding((*path, "balance"), "needs hash_on: key, ip or header:NAME")
    if "hash_on" in upstream and upstream.get("balance") != "hash":
        yield Finding((*path, "hash_on"), "means nothing without balance: hash", at_key=True)
    seen: dict[Any, Path] = {}
    for key, target in children(targets):
        if isinstance(key, str) and "name" in mapping(target):
            yield Finding((*path, "targets", key, "name"), "is named by its key already; leave name out", at_key=True)
        elif isinstance(name := mapping(target).get("name"), str):
            where = (*path, "targets", key, "name")
            yield from _twice(seen, name, where, "the same name as {first}; a target's name is unique in its upstream")


def _keys(path: Path, gateway: Mapping[str, Any]) -> Iterator[Finding]:
    seen: dict[Any, Path] = {}
    for name, key in mapping(gateway.get("keys")).items():
        for steps in (("sha256",), ("previous", "sha256")):
            holder = mapping(key) if len(steps) == 1 else mapping(mapping(key).get("previous"))
            digest = holder.get("sha256")
            if isinstance(digest, str) and len(digest) == 64:
                where = (*path, "keys", name, *steps)
                message = "the same key as {first}; make each client its own with `aigw key NAME`"
                yield from _twice(seen, digest.lower(), where, message)


def _no_upstream(path: Path, name: object, upstreams: Mapping[str, Any]) -> Iterator[Finding]:
    if isinstance(name, str) and not is_null(name) and name not in upstreams:
        known = f"; there are {', '.join(upstreams)}" if upstreams else "; there are none"
        hint = nearest(name, upstreams) or (known if len(upstreams) <= 10 else "")
        yield Finding(path, f"no upstream is called {quote(name, 'so')}{hint}")


def _models(path: Path, gateway: Mapping[str, Any], upstreams: Mapping[str, Any]) -> Iterator[Finding]:
    models = mapping(gateway.get("models"))
    for name, entry in models.items():
        here = (*path, "models", name)
        full = isinstance(entry, dict)
        upstream = entry.get("upstream") if full else entry
        where = (*here, "upstream") if full else here
        yield from _no_upstream(where, upstream, upstreams)
        if _provider(upstream, upstreams) == "http":
            yield Finding(where, f"{quote(upstream)} is a plain HTTP API and knows no models; give it a rule instead")
        if not full:
            continue
        real = entry.get("model")
        if isinstance(real, str) and "*" in real and "*" not in name:
            yield Finding((*here, "model"), "holds a *, but the name asked for has none that it could stand for")
        if "list" in entry and "*" not in name:
            yield Finding((*here, "list"), "is for names with a *; this one shows itself", at_key=True)
        for key in ("fallback", "split"):
            for step, child in children(entry.get(key)):
                member = step if key == "split" else child
                place = (*here, key, step)
                if member == name:
                    yield Finding(place, "is the model itself")
                elif isinstance(member, str) and not known_model(member, models):
                    yield Finding(place, f"no model is called {quote(member, 'so')}{nearest(member, models)}")
                elif key == "fallback" and isinstance(member, str) and _is_split(member, models):
                    yield Finding(place, "is split; name one of the models that it is split between")
                elif key == "fallback" and isinstance(member, str):
                    yield from _across_dialects(place, upstream, _upstream_of(member, models), upstreams)
        yield from _split(here, entry, models, upstreams)


def _across_dialects(path: Path, upstream: object, other: object, upstreams: Mapping[str, Any]) -> Iterator[Finding]:
    """A fallback that no request of the model could be sent to."""
    spoken, others = _spoken(upstream, upstreams), _spoken(other, upstreams)
    if spoken and others and not set(spoken) & set(others):
        yield Finding(
            path,
            f"is answered by {quote(str(other))}, which speaks {' and '.join(others)} and not {' or '.join(spoken)}: "
            "requests are passed on as they are, never translated",
        )


def _split(
    path: Path, entry: Mapping[str, Any], models: Mapping[str, Any], upstreams: Mapping[str, Any]
) -> Iterator[Finding]:
    """What a split is made of has upstreams, and a dialect that all of those speak."""
    split = entry.get("split")
    if not isinstance(split, dict):
        return
    if "model" in entry:
        yield Finding((*path, "model"), "means nothing beside split: each of its models has its own", at_key=True)
    if {str(weight) for weight in split.values()} <= {"0"}:
        yield Finding((*path, "split"), "needs a model with a weight above 0", at_key=True)
    spoken: set[str] | None = None
    for name in split:
        if _is_split(name, models):
            yield Finding((*path, "split", name), "is split itself; name the models that it is split between")
            continue
        dialects = set(_spoken(_upstream_of(name, models), upstreams))
        if dialects:
            spoken = dialects if spoken is None else spoken & dialects
    if spoken == set():
        yield Finding(
            (*path, "split"), "has no API that all of its models speak; see the upstreams' dialects", at_key=True
        )


def _is_split(name: str, models: Mapping[str, Any]) -> bool:
    return "split" in mapping(models.get(_taken_by(name, models)))


def _taken_by(name: str, models: Mapping[str, Any]) -> str:
    """The entry that a name asks for: its own, else the longest pattern that takes it; "" where there is none."""
    if name in models:
        return name
    patterns = sorted((one for one in models if known_model(name, {one: None})), key=lambda one: (-len(one), one))
    return patterns[0] if patterns else ""


def _upstream_of(name: str, models: Mapping[str, Any]) -> object:
    """The upstream of the entry that takes the name."""
    entry = models.get(_taken_by(name, models))
    return entry.get("upstream") if isinstance(entry, dict) else entry


def _provider(upstream: object, upstreams: Mapping[str, Any]) -> object:
    return mapping(upstreams.get(upstream)).get("provider") if isinstance(upstream, str) else None


def known_model(name: str, models: Mapping[str, Any]) -> bool:
    """True if a client could ask for `name`: an exact entry, or a glob that takes it."""
    if name in models:
        return True
    for pattern in models:
        head, star, tail = pattern.partition("*")
        if star and len(name) >= len(head) + len(tail) and name.startswith(head) and name.endswith(tail):
            return True
    return False


def _rules(path: Path, gateway: Mapping[str, Any], upstreams: Mapping[str, Any]) -> Iterator[Finding]:
    names: dict[Any, Path] = {}
    paths: dict[str, dict[str, Path]] = {}
    for index, rule in children(gateway.get("rules")):
        here = (*path, "rules", index)
        if not isinstance(rule, dict):
            continue
        if isinstance(name := rule.get("name"), str):
            message = "the same name as {first}; a rule's name is unique in its gateway"
            yield from _twice(names, name, (*here, "name"), message)
        yield from _no_upstream((*here, "upstream"), rule.get("upstream"), upstreams)
        default = rule.get("default")
        if "upstream" in rule and default is not None:
            yield Finding((*here, "default"), "means nothing beside upstream: that takes all requests", at_key=True)
        yield from _no_upstream((*here, "default"), default, upstreams)
        for dialect, name in mapping(default).items():
            yield from _no_upstream((*here, "default", dialect), name, upstreams)
            spoken = _spoken(name, upstreams)
            if spoken and dialect not in spoken:
                yield Finding((*here, "default", dialect), f"{quote(name)} does not speak {quote(dialect)}")
        methods = rule.get("methods")
        if methods == []:
            yield Finding((*here, "methods"), "is empty, so the rule takes nothing; leave it out for all", at_key=True)
        if isinstance(rule.get("path"), str):
            takers = paths.setdefault(rule["path"], {})
            yield from _same_path(takers, here, methods if isinstance(methods, list) else ["*"])


def _same_path(takers: dict[str, Path], here: Path, methods: list[object]) -> Iterator[Finding]:
    """Rules with one path must not share a method. `takers`: method (`*`: all of them) -> the rule that has it."""
    for method in methods:
        for other, first in takers.items():
            if first != here and (other == method or "*" in (other, method)):
                yield Finding((*here, "path"), f"{path_text(first)} takes the same path and method already; remove one")
                return
        if isinstance(method, str):
            takers.setdefault(method, here)


def _spoken(upstream: object, upstreams: Mapping[str, Any]) -> tuple[str, ...]:
    entry = mapping(upstreams.get(upstream)) if isinstance(upstream, str) else {}
    dialects = entry.get("dialects")
    if isinstance(dialects, list):
        return tuple(str(dialect) for dialect in dialects)
    return DIALECTS.get(str(entry.get("provider")), ())


# Warnings


def warnings(raw: object) -> list[Finding]:
    """What is allowed, and probably not meant or dangerous."""
    document = mapping(raw)
    found: list[Finding] = []
    for name, upstream in mapping(document.get("upstreams")).items():
        found += _upstream_dangers(("upstreams", name), mapping(upstream))
    gateways = mapping(document.get("gateways"))
    if not gateways and "gateways" in document:
        found.append(Finding(("gateways",), "there is no gateway, so every request is answered 404", at_key=True))
    is_open = any(not is_local(address) for _, address in listens(document))
    for name, gateway in gateways.items():
        found += _gateway_dangers(("gateways", name), mapping(gateway), is_open)
    return found


def _upstream_dangers(path: Path, upstream: Mapping[str, Any]) -> Iterator[Finding]:
    verify = mapping(upstream.get("tls")).get("verify")
    if str(verify).lower() == "false":
        message = "certificates are not checked: anyone in between can read and change everything; use tls.ca instead"
        yield Finding((*path, "tls", "verify"), message)
    weights = [str(mapping(target).get("weight", "1")) for _, target in children(upstream.get("targets"))]
    if weights and set(weights) == {"0"}:
        yield Finding((*path, "targets"), "every target has weight 0, so none gets requests", at_key=True)


def _gateway_dangers(path: Path, gateway: Mapping[str, Any], is_open: bool) -> Iterator[Finding]:
    auth = str(gateway.get("auth", "keys"))
    keys = mapping(gateway.get("keys"))
    if auth == "none" and is_open:
        message = "auth: none on an address that others reach: anyone may spend what the upstreams' credentials pay for"
        yield Finding((*path, "auth"), message)
    if auth == "none" and keys:
        yield Finding((*path, "keys"), "are not asked for, since auth is none", at_key=True)
    if auth == "keys" and not keys:
        message = "no key may use this gateway; `aigw key NAME` makes one, auth: none asks for none"
        yield Finding(path, message, at_key=True)
    models = mapping(gateway.get("models"))
    rules = gateway.get("rules")
    if not models and not any("upstream" in mapping(r) or "default" in mapping(r) for _, r in children(rules)):
        yield Finding(
            path, 'no model and no rule leads anywhere; write models: {"*": NAME OF AN UPSTREAM}', at_key=True
        )
    for name, key in keys.items():
        for index, model in children(mapping(key).get("models")):
            if isinstance(model, str) and "*" not in model and not known_model(model, models):
                where = (*path, "keys", name, "models", index)
                yield Finding(where, f"no model is called {quote(model, 'so')}{nearest(model, models)}")


def unpriced(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Warnings for models of providers whose prices are known, theirs not being among them; of the whole document."""
    own = {name: Price(dollars) for name, dollars in document["prices"].items()}
    for gateway_name, gateway in document["gateways"].items():
        for name, model in gateway["models"].items():
            sent = model["model"] or name
            targets = document["upstreams"].get(model["upstream"], {"targets": []})["targets"]
            if "*" not in sent:
                yield from _unpriced(("gateways", gateway_name, "models", name), sent, targets, own)


def _unpriced(path: Path, sent: str, targets: list[dict[str, Any]], own: Mapping[str, Price]) -> Iterator[Finding]:
    for target in targets:
        name = target["model"].get(sent, sent)
        host = urlsplit(target["url"]).hostname or ""
        found = list_of(host)
        if found is not None and Prices(own, host).find(name) is None:
            message = f"its cost is not counted, because no price of {quote(name, 'it')} at {found.provider} is known; "
            yield Finding(path, message + "write prices: {NAME: {input: ..., output: ...}}", at_key=True)
            return
