"""Where a request goes: pure functions from a snapshot and a head to a decision, with the reason when there is none.

`match` finds the gateway by Host and the rule by path and method; `find` the model's upstream, `part` which one of
several it is split between; `choose` the target. Serving and explaining use the same functions: they read counts,
cursors, health and chance through a `View`, and who asks through an `Asker`, and change nothing; serving advances the
cursor afterwards. No clock, no socket.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from math import inf
from typing import Final, Protocol

from aigw.config.retry import FALLBACK, NEVER, Retry
from aigw.config.snapshot import GatewaySpec, Key, Match, Plan, Resolved, Rule, Snapshot
from aigw.config.upstreams import Candidate, Target, Upstream, remember
from aigw.errors import (
    BAD_REQUEST,
    DIALECT_MISMATCH,
    METHOD_NOT_ALLOWED,
    MISSING_MODEL,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NO_CAPACITY,
    NO_GATEWAY,
    NO_RULE,
    NO_TARGET,
    RESOURCE_NOT_ALLOWED,
    Failure,
)
from aigw.policies import attempts, balance
from aigw.policies.allowance import SOON, retry_lines, wait_text
from aigw.policies.attempts import Full
from aigw.providers.endpoints import base_url_hint, classify
from aigw.wire.head import RequestHead, RequestLine

# Names of models are tens of characters; the name also goes into a header and the log.
MAX_MODEL: Final = 1024
# The path that each dialect is spoken at, for the message to a client that speaks another.
_HOME = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/MODEL:generateContent",
}


class View(Protocol):
    """What routing may know of the moment."""

    def in_flight(self, target: Target) -> int:
        """Exchanges that hold or await a connection to the target, in all workers."""
        ...

    def cursor(self, upstream: Upstream) -> int:
        """How many choices were made for the upstream before this one."""
        ...

    def draw(self) -> float:
        """By chance, from [0, 1)."""
        ...

    def out_until(self, target: Target) -> float:
        """0.0 for a target in service. For one that rests, the monotonic second when it is back; infinity for one that
        is down: its probes fail, or connects to it time out."""
        ...

    def full(self, candidate: Candidate, asker: Asker | None) -> Full | None:
        """Which limit of its upstream or target leaves no room for another attempt; asked only of those with limits."""
        ...


class Asker(attempts.Asker, Protocol):
    """Who asks, for what goes by that. None of it is called where nothing does."""

    def affinity(self, on: str) -> bytes:
        """The text to hash: `on` is key, ip or header:NAME."""
        ...

    def is_bound(self) -> bool:
        """Whether the request is about something that the provider keeps (see `admit.is_bound`)."""
        ...


def match(snapshot: Snapshot, head: RequestHead) -> Match | Failure:
    """Gateway by Host, rule by path and method."""
    gateway = snapshot.find_gateway(head.host)
    if gateway is None:
        return Failure(NO_GATEWAY, "no gateway answers for this host; check the base URL and the `hosts` of the config")
    line = head.line
    found = gateway.matches.get((line.method, line.path))
    if found is not None:
        return found
    return _match(gateway, line)


def _match(gateway: GatewaySpec, line: RequestLine) -> Match | Failure:
    rule = _rule(gateway, line.method, line.path)
    if isinstance(rule, Failure):
        return rule
    if line.canonical is not None and _rule(gateway, line.method, line.canonical) is not rule:
        return Failure(
            BAD_REQUEST,
            "the path means another rule once it is decoded (empty segments, `;`, `\\` or percent-encoded slashes); "
            "send it in its plain form",
        )
    path = line.path[rule.strip :] or b"/"
    endpoint = classify(line.method, path)
    if endpoint.kind != "inference":
        # Some upstreams decode, fold case or drop a slash at the end: past the model that the key may use.
        plain = (line.canonical or line.path)[rule.strip :].lower().rstrip(b"/") or b"/"
        if plain != path and classify(line.method, plain).kind == "inference":
            return Failure(
                BAD_REQUEST,
                "the path names a model's API, but not in its plain form; send it in lower case, without "
                "a slash at its end and without escapes",
            )
    found = Match(gateway, rule, endpoint, path)
    remember(gateway.matches, (line.method, line.path), found)
    return found


def _rule(gateway: GatewaySpec, method: str, path: bytes) -> Rule | Failure:
    allowed: set[str] = set()
    for rule in gateway.rules_of(path):
        if rule.methods is None or method in rule.methods:
            return rule
        allowed |= rule.methods
    if allowed:
        allow = ", ".join(sorted(allowed))
        return Failure(METHOD_NOT_ALLOWED, f"{method} is not allowed here; use {allow}", allow=allow)
    return no_rule(path)


def no_rule(path: bytes) -> Failure:
    """404 for a path nobody takes, with what the base URL should be where the path looks like an SDK's."""
    hint = base_url_hint(path)
    message = hint or "no rule of the gateway takes this path; see `rules` in its config"
    return Failure(NO_RULE, f"{message[0].upper()}{message[1:]}.")


def find(found: Match, dialect: str, key: Key | None, model: str | None) -> Resolved | Failure:
    """The upstream of a request: by the rule, by the model it names, or by the rule's default where it names none."""
    rule = found.rule
    if rule.resolved is not None:
        return rule.resolved
    if model is None:
        return _default(found, dialect, key)
    if len(model) > MAX_MODEL:
        return Failure(
            BAD_REQUEST, f"`model` has more than {MAX_MODEL} characters; GET /v1/models lists names", "model"
        )
    if key is not None and not key.allows(model):
        return Failure(
            MODEL_NOT_ALLOWED,
            f"the API key {key.name!r} may not use the model {model!r}; GET /v1/models lists what it may",
            "model",
        )
    resolved = found.gateway.find_model(model)
    if resolved is None:
        return Failure(
            MODEL_NOT_FOUND, f"the model {model!r} does not exist here; GET /v1/models lists those that do", "model"
        )
    if not speaks(resolved, found, dialect):
        spoken = " or ".join(_HOME[name] for name in sorted(resolved.dialects))
        return Failure(
            DIALECT_MISMATCH, f"the model {model!r} does not speak {dialect}'s API; ask for it at {spoken}", "model"
        )
    return resolved


def _default(found: Match, dialect: str, key: Key | None) -> Resolved | Failure:
    endpoint = found.endpoint
    resolved = found.rule.defaults.get(dialect) or found.rule.defaults.get("")
    if resolved is None:
        if endpoint.source in ("body", "form") and endpoint.kind == "inference":
            return Failure(
                MISSING_MODEL, "the request names no model; add `model`, GET /v1/models lists what there is", "model"
            )
        return no_rule(found.path)
    if key is not None and not key.all_models and not key.resources:
        return Failure(
            RESOURCE_NOT_ALLOWED,
            f"the API key {key.name!r} is limited to some models, so it may not reach what belongs to no model "
            "(files, batches, stored responses); its `resources: true` would allow it",
        )
    return resolved


def plan(found: Match, key: Key | None, resolved: Resolved) -> Plan | None:
    """What may follow a first attempt: the most specific `retry`, and the fallbacks of the model. None where there is
    neither, and no deadline for the first content."""
    rule = found.rule
    first_token = resolved.first_token or rule.first_token
    levels: tuple[tuple[str, Retry | None], ...] = (
        ("key", key.retry if key is not None else None),
        ("model", resolved.retry),
        ("rule", rule.retry),
        ("gateway", found.gateway.retry),
    )
    for source, retry in levels:
        if retry is not None:
            return Plan(retry, source, resolved.fallbacks, first_token)
    if resolved.fallbacks:
        return Plan(FALLBACK, "fallback", resolved.fallbacks, first_token)
    upstreams = [part.upstream for _, part in resolved.parts] or [resolved.upstream]
    if first_token is not None or any(one.timeouts.first_token is not None for one in upstreams):
        return Plan(NEVER, "", (), first_token)
    return None


def speaks(resolved: Resolved, found: Match, dialect: str) -> bool:
    """Whether a request like this could go to the model: it is never translated."""
    return found.endpoint.kind != "inference" or dialect in resolved.dialects


def part(resolved: Resolved, request_id: bytes) -> Resolved:
    """Of a split, the part that a request goes to: drawn by weight from its id, so that an id that comes again, to
    whatever worker, goes the same way again. Everything else is its own only part."""
    parts = resolved.parts
    if not parts:
        return resolved
    drawn = int.from_bytes(blake2b(request_id, digest_size=8).digest(), "little") % parts[-1][0]
    return next(one for upto, one in parts if drawn < upto)


def choose(
    resolved: Resolved, view: View, tried: Collection[Candidate] = (), asker: Asker | None = None
) -> Candidate | Failure:
    """One target of the upstream: by its balance, among those in service, and none of `tried` while there are others.

    What a provider keeps is bound to the credential that it was made with: where targets have their own, such requests
    go by a hash of the key, whatever the balance. Without an `asker` (who asks is not known) nothing is hashed.

    A limit means what it says: who is full is not asked even as the last one, unlike one that rests.
    """
    upstream = resolved.upstream
    sequence = upstream.sequence
    if not sequence:
        return Failure(NO_TARGET, f"every target of the upstream {upstream.name!r} has weight 0; try again later")
    kind = upstream.balance
    is_bound = upstream.binds and asker is not None and asker.is_bound()
    if kind == "round_robin" and not is_bound and not tried:
        candidate = resolved.candidates[sequence[view.cursor(upstream) % len(sequence)]]
        if not view.out_until(candidate.target) and not (candidate.is_limited and view.full(candidate, asker)):
            return candidate
    weighted = [candidate for candidate in resolved.candidates if candidate.target.weight]
    full = {} if is_bound else _full(weighted, view, asker)
    left = _left([candidate for candidate in weighted if candidate not in full], view, tried)
    if not left:
        there = [found for one, found in full.items() if view.out_until(one.target) != inf]
        return _no_room(upstream, there) if there else down(upstream)
    weights = [candidate.target.weight for candidate in left]
    names = [candidate.target.name for candidate in left]
    if is_bound and asker is not None:  # it is there or nowhere, however much else there is to do
        home = left[balance.ranked(names, weights, asker.affinity("key"))[0]]
        found = view.full(home, asker) if home.is_limited else None
        return home if found is None else _no_room(upstream, [found])
    if len(left) == 1:
        return left[0]
    if kind == "round_robin":
        return left[balance.turn(weights, view.cursor(upstream))]
    loads = [view.in_flight(candidate.target) for candidate in left]
    if kind == "hash" and asker is not None:
        order = balance.ranked(names, weights, asker.affinity(upstream.hash_on))
        return left[balance.bounded(order, weights, loads)]
    if kind == "least_connections":
        return left[balance.least(weights, loads, view.cursor(upstream))]
    return left[balance.lesser(weights, loads, *balance.two(weights, view.draw(), view.draw()))]


def down(upstream: Upstream) -> Failure:
    return Failure(NO_TARGET, f"every target of the upstream {upstream.name!r} is down; try again later")


def _full(candidates: Iterable[Candidate], view: View, asker: Asker | None) -> dict[Candidate, Full]:
    """Those of which a limit is used up: not even the last one is asked then."""
    found = {candidate: view.full(candidate, asker) for candidate in candidates if candidate.is_limited}
    return {candidate: full for candidate, full in found.items() if full is not None}


def _left(candidates: Iterable[Candidate], view: View, tried: Collection[Candidate]) -> list[Candidate]:
    """Who may be asked: those in service, else of those that rest the one that is back first. None: all are down."""
    out = [(view.out_until(candidate.target), candidate) for candidate in candidates]
    there = [(until, candidate) for until, candidate in out if not until]
    left = there or [(until, candidate) for until, candidate in out if until != inf]
    left = [(until, candidate) for until, candidate in left if candidate not in tried] or left
    if not there and left:
        return [min(left, key=lambda pair: pair[0])[1]]
    return [candidate for _, candidate in left]


def _no_room(upstream: Upstream, full: Sequence[Full]) -> Failure:
    """Those targets that are there are full, by these limits; the first that is not any more says when."""
    limit, seconds = min(full, key=lambda found: found.seconds)
    if seconds == inf:
        return Failure(
            NO_CAPACITY,
            f"this request may use more than the limits of the upstream {upstream.name!r} ever leave ({limit.text}); "
            "send less, or bound the answer (max_tokens)",
            limit=limit.label,
            lines=(b"x-should-retry: false",),
        )
    message = f"no target of the upstream {upstream.name!r} has room within its limits ({limit.text})"
    lines = retry_lines(seconds)
    if isinstance(limit.window, str) and seconds > SOON:  # a budget, which no SDK waits for
        lines.append(b"x-should-retry: false")
    return Failure(NO_CAPACITY, f"{message}; try again in {wait_text(seconds)}", limit=limit.label, lines=tuple(lines))
