"""A validated config as the plain document that a snapshot is compiled from: JSON-able, everything filled in.

Durations are float seconds (off: null), sizes int bytes, dates float epoch seconds; relative paths are made absolute;
the short forms and the providers' defaults (URL, dialects, a target's name) are gone. Keys of features to come are not
part of it.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any
from urllib.parse import urlsplit

from aigw.config.checks import DIALECTS
from aigw.config.problem import Finding, Path, path_text
from aigw.config.schema import (
    Config,
    Gateway,
    Key,
    Limit,
    Listen,
    ModelEntry,
    Retry,
    Rule,
    Target,
    Upstream,
    UpstreamLimit,
    UsageStore,
)
from aigw.config.values import target_name

__all__ = ["expand", "listener"]

UNITS = ("requests", "tokens", "input_tokens", "output_tokens", "cost", "concurrency")

URLS = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "gemini": "https://generativelanguage.googleapis.com",
}


def expand(config: Config, base: FilePath) -> tuple[dict[str, Any], list[Finding]]:
    """The document (its relative paths taken from the folder `base`), and what is wrong with names of targets."""
    found: list[Finding] = []
    document = {
        "listen": [listener(listen, base) for listen in config.listen],
        "workers": config.workers,
        "access_log": config.access_log
        if config.access_log in ("stdout", "off")
        else _absolute(config.access_log, base),
        "usage_store": _usage_store(config.usage_store, base),
        "timeouts": config.timeouts.model_dump(),
        "bounds": config.bounds.model_dump(),
        "drain": config.drain.model_dump(),
        "trusted_proxies": config.trusted_proxies,
        "answer_headers": config.answer_headers.model_dump(by_alias=True),
        "prices": {name: price.model_dump() for name, price in config.prices.items()},
        "upstreams": {
            name: _upstream(("upstreams", name), upstream, base, found) for name, upstream in config.upstreams.items()
        },
        "gateways": {name: _gateway(gateway) for name, gateway in config.gateways.items()},
    }
    return document, found


def _absolute(path: str, base: FilePath) -> str:
    return os.path.abspath(base / path)


def _usage_store(store: UsageStore, base: FilePath) -> dict[str, Any] | None:
    """None: off."""
    if store.path == "off":
        return None
    return {"path": _absolute(store.path, base), "retention": store.retention}


def listener(listen: Listen, base: FilePath) -> dict[str, Any]:
    """With `tls` where it is HTTPS: `cert` and `key` are paths here, and PEM text once the files were read."""
    tls = listen.tls
    if tls is None:
        return {"address": listen.address}
    paths = {"cert": _absolute(tls.cert, base), "key": _absolute(tls.key, base)}
    return {"address": listen.address, "tls": paths}


def _upstream(path: Path, upstream: Upstream, base: FilePath, found: list[Finding]) -> dict[str, Any]:
    tls = upstream.tls
    return {
        "provider": upstream.provider,
        "dialects": list(DIALECTS[upstream.provider]) if upstream.dialects is None else upstream.dialects,
        "api_key": upstream.api_key,
        "usage": upstream.usage or _usage(upstream),
        "balance": upstream.balance,
        "hash_on": upstream.hash_on,
        "headers": upstream.headers,
        "timeouts": upstream.timeouts.model_dump(),
        "max_connections": upstream.max_connections,
        "health": None if upstream.health is None else upstream.health.model_dump(),
        "eject": None if upstream.eject is None else upstream.eject.model_dump(by_alias=True),
        "tls": {
            "verify": tls.verify,
            "ca": None if tls.ca is None else _absolute(tls.ca, base),
            "server_name": tls.server_name,
        },
        "targets": _targets(path, upstream, found),
        "limits": _limits("upstream", upstream.limits),
    }


def _usage(upstream: Upstream) -> str:
    """Whom it is known of that it takes `stream_options` is asked for the usage in streams, if nothing is said."""
    urls = [target.url for target in upstream.targets.values()] or [URLS.get(upstream.provider, "")]
    is_openai = upstream.provider == "openai" and all(urlsplit(url).hostname == "api.openai.com" for url in urls)
    return "inject" if is_openai or upstream.provider == "mock" else "as_reported"


def _targets(path: Path, upstream: Upstream, found: list[Finding]) -> list[dict[str, Any]]:
    targets: dict[str | int, Target] = dict(upstream.targets)
    if not targets and upstream.provider in URLS:
        targets[0] = Target(url=URLS[upstream.provider])
    names: dict[str, tuple[Path, bool]] = {}
    listed = []
    for key, target in targets.items():
        here = (*path, "targets", key)
        given = key if isinstance(key, str) else target.name
        name = given or default_name(target.url)
        try:
            target_name(name)
        except ValueError:
            found.append(Finding(here, "needs a name, since its URL makes none (64 of A-Z a-z 0-9 . _ @ - : [ ])"))
        first, first_given = names.setdefault(name, (here, given is not None))
        if first != here and not (given and first_given):  # names given twice are found among the checks
            message = f"has the same name as {path_text(first)}, its host and port; give it a name of its own"
            found.append(Finding(here, message))
        listed.append(
            {
                "name": name,
                "url": target.url,
                "weight": target.weight,
                "api_key": target.api_key,
                "headers": target.headers,
                "model": target.model,
                "limits": _limits("target", target.limits),
            }
        )
    return listed


def default_name(url: str) -> str:
    """`host:port` of a URL in normal form; the file's name of a unix socket."""
    if url.startswith("unix:"):
        return url[5:].partition(":")[0].rpartition("/")[2]
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if re.search(r":[0-9]+$", authority):
        return authority
    return f"{authority}:{443 if scheme == 'https' else 80}"


def _gateway(gateway: Gateway) -> dict[str, Any]:
    return {
        "hosts": gateway.hosts,
        "auth": gateway.auth,
        "keys": {name: _key(key) for name, key in gateway.keys.items()},
        "models": {name: _model(model) for name, model in gateway.models.items()},
        "rules": [_rule(rule) for rule in gateway.rules],
        "limits": _limits("gateway", gateway.limits),
        "retry": _retry(gateway.retry),
    }


def _key(key: Key) -> dict[str, Any]:
    return {
        "sha256": key.sha256,
        "models": key.models,
        "group": key.group,
        "expires": key.expires,
        "disabled": key.disabled,
        "previous": None if key.previous is None else key.previous.model_dump(),
        "resources": key.resources,
        "limits": _limits("key", key.limits),
        "retry": _retry(key.retry),
    }


def _model(model: ModelEntry) -> dict[str, Any]:
    return {
        "upstream": model.upstream,
        "model": model.model,
        "split": model.split,
        "list": model.listed,
        "hidden": model.hidden,
        "timeouts": model.timeouts.model_dump(),
        "limits": _limits("model", model.limits),
        "fallback": model.fallback,
        "retry": _retry(model.retry),
    }


def _rule(rule: Rule) -> dict[str, Any]:
    default = rule.default
    return {
        "name": rule.name,
        "path": rule.path,
        "methods": rule.methods,
        "upstream": rule.upstream,
        "default": default[None] if default is not None and None in default else default,
        "strip_path": rule.strip_path,
        "preserve_host": rule.preserve_host,
        "public": rule.public,
        "timeouts": rule.timeouts.model_dump(),
        "limits": _limits("rule", rule.limits),
        "retry": _retry(rule.retry),
    }


def _retry(retry: Retry | None) -> dict[str, Any] | None:
    return None if retry is None else retry.model_dump()


def _limits(on: str, limits: Sequence[UpstreamLimit]) -> list[dict[str, Any]]:
    """Amounts as whole numbers, money in nano-dollars; `window` in seconds, "day" or "month", None for a level."""
    listed = []
    for limit in limits:
        unit = next(name for name in UNITS if getattr(limit, name) is not None)
        value: Any = getattr(limit, unit)
        amount, window = (value, None) if unit == "concurrency" else value
        listed.append(
            {
                "unit": unit,
                "amount": round(amount * 1_000_000_000) if unit == "cost" else amount,
                "window": window,
                "per": (limit.per if isinstance(limit, Limit) else None) or on,
                "shadow": limit.shadow,
            }
        )
    return listed
