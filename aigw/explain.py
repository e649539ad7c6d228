"""What the gateway would do with a request, and why: a sample of one, decided as serving decides, and nothing is sent.

Admission, route and heads are the functions that serving uses (`admit`, `route`, `forward`); what is added here are the
reasons, read off the snapshot. Counts and health come from a `Present` where there is one. Whose turn it is among
several targets only a worker knows, so that the answer says what share each of them has; what is hashed goes the same
way everywhere. No clock, no socket, no file.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final, NamedTuple, Protocol

from aigw.admit import (
    Admission,
    admit,
    affinity,
    fitted,
    is_bound,
    is_probe,
    listed,
    members_of,
    model_of_form,
    model_of_json,
    too_large,
    touches_state,
    unlisted,
)
from aigw.config.limits import Limit
from aigw.config.snapshot import GatewaySpec, Key, Match, Plan, Resolved, Snapshot
from aigw.config.upstreams import Candidate, Target, Upstream
from aigw.counters import Standing
from aigw.errors import Failure, Refused
from aigw.forward import request_message, request_prefix
from aigw.meters import Meters
from aigw.policies import attempts
from aigw.policies.allowance import said, wait_text, whose
from aigw.policies.attempts import Full
from aigw.policies.estimate import NOTHING, Estimate, estimate
from aigw.policies.limits import Limits
from aigw.providers import CREDENTIAL_HEADERS
from aigw.route import View, choose, find, part, plan, speaks
from aigw.sample import Sample, add_key, message
from aigw.shared import Cells
from aigw.wire.fields import line_name
from aigw.wire.head import RequestHead, RequestParser, key_of

MASK: Final = "***"
NEW_ID: Final = "(a new one)"  # in the head, where the sample brings no id

_SECRET_LINES: Final = frozenset(name.encode() for name in (*CREDENTIAL_HEADERS, "x-aigw-key", "cookie"))


class Explained:
    """One sample, decided. `failure` is what it would be refused with, `answer` what the gateway would answer itself;
    with neither it would be forwarded with `head`."""

    __slots__ = (
        "admission",
        "answer",
        "asker",
        "body",
        "candidate",
        "failure",
        "head",
        "is_bound",
        "members",
        "model",
        "part",
        "patches",
        "planned",
        "request",
        "resolved",
    )

    def __init__(self) -> None:
        self.request: RequestHead | None = None
        self.body = b""
        self.admission: Admission | None = None
        self.model: str | None = None
        self.resolved: Resolved | None = None
        self.part: Resolved | None = None  # of a split; else the same
        self.asker: _Asker | None = None
        self.candidate: Candidate | None = None
        self.planned: Plan | None = None
        self.is_bound = False
        self.failure: Failure | None = None
        self.answer = ""
        self.head = b""
        self.members: dict[str, Any] | None = None  # of the body, where it was read
        self.patches: list[str] = []


class _Unknown:
    """The view of who does not know the workers' moment."""

    def in_flight(self, target: Target) -> int:
        return 0

    def cursor(self, upstream: Upstream) -> int:
        return 0

    def draw(self) -> float:
        return 0.0

    def out_until(self, target: Target) -> float:
        return 0.0

    def full(self, candidate: Candidate, asker: attempts.Asker | None) -> Full | None:
        return None


class Present(View, Protocol):
    """A view that also knows why a target is out."""

    def standing(self, target: Target) -> Standing: ...


class _Asker:
    """Who sent the sample, as far as that is known: not where from."""

    def __init__(self, admission: Admission, body: bytes, estimate: Estimate) -> None:
        self._admission = admission
        self._body = body
        self._estimate = estimate

    def affinity(self, on: str) -> bytes:
        return affinity(self._admission, b"", b"", on)

    def is_bound(self) -> bool:
        return touches_state(self._admission, self._body)

    def estimate(self) -> Estimate:
        return self._estimate

    def returns(self, limit: Limit) -> int:
        return 0


class Moment(NamedTuple):
    """What is used of limits, and when that is: monotonic seconds."""

    limits: Limits
    now: float


def explain(
    snapshot: Snapshot, sample: Sample, wall: float, view: Present | None = None, moment: Moment | None = None
) -> dict[str, Any]:
    """The plan as plain data for JSON. `wall` is epoch seconds, for keys that expire; `view` what is known of
    the workers. Without a `moment` it is not said what is left of limits, and none refuses.

    Raises: SampleError.
    """
    done = decide(snapshot, sample, wall, view or _Unknown())
    return _Words(snapshot, sample, done, view, moment).plan()


class _Asking:
    """A sample as limits see an exchange; where it came from is not known."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.more = b""
        self.address = ""


def decide(snapshot: Snapshot, sample: Sample, wall: float, view: View) -> Explained:
    """The order of decisions is `Exchange.begin`'s, with the whole body there at once."""
    done = Explained()
    block, done.body = message(sample)
    try:
        head = done.request = RequestParser().parse(block, snapshot.head_bounds)
    except Refused as refused:
        done.failure = refused.failure
        return done
    if sample.key_name is not None:
        add_key(snapshot, head, sample.key_name)
    admission = done.admission = admit(snapshot, head, wall)
    if is_probe(snapshot, head):
        done.answer = "a probe: the gateway answers whether it is up"
        return done
    done.failure = admission.failure
    if done.failure is None and admission.is_listing:
        done.failure = unlisted(admission.found, admission.key)
        done.answer = "the gateway answers what the key may use of its models"
        if listed(admission.found):
            done.answer = "the gateway answers that there is this model"
    if done.failure is None and not done.answer:
        if admission.source == "body" and len(done.body) > snapshot.body_bound:
            done.failure = too_large(snapshot.body_bound)
        else:
            _route(snapshot, done, admission, view)
    return done


def _route(snapshot: Snapshot, done: Explained, admission: Admission, view: View) -> None:
    """From the body to the candidate, and to the head that asks it."""
    members: dict[str, Any] = {}
    done.model = admission.found.endpoint.model
    if admission.source == "body":
        read = model_of_json(done.body)
        if isinstance(read, Failure):
            done.failure = read
            return
        done.model, members = read
        done.members = members
    elif admission.source == "read":
        done.members = members_of(done.body)
    elif admission.source == "form":
        form = model_of_form(admission, done.body)
        if isinstance(form, Failure):
            done.failure = form
            return
        done.model = form.model
    resolved = find(admission.found, admission.dialect, admission.key, done.model)
    if isinstance(resolved, Failure):
        done.failure = resolved
        return
    done.resolved = resolved
    head = admission.head
    guess = NOTHING
    if admission.is_counted and resolved.upstream.dialects:
        guess = estimate(len(done.body), done.members, is_form=admission.source == "form")
    asker = done.asker = _Asker(admission, done.body, guess)
    resolved = done.part = part(resolved, head.request_id) if head.request_id else _heaviest(resolved)
    done.planned = plan(admission.found, admission.key, done.resolved)
    done.is_bound = admission.source == "body" and is_bound(done.body, members)
    candidate = resolved.only or choose(resolved, view, (), asker)
    if isinstance(candidate, Failure):
        candidate = _elsewhere(done, admission, view, candidate)
    if isinstance(candidate, Failure):
        done.failure = candidate
        return
    done.candidate = candidate
    whole = done.body
    patched = False
    if admission.source in ("body", "form"):
        whole, patched = fitted(admission, whole, candidate, members)
    if patched:
        done.patches.append("stream_options.include_usage is set, to learn the usage; the client does not see it")
    if candidate.renamed and candidate.sent is not None:
        done.patches.append(f"the model's name becomes {candidate.sent!r}")
    prefix = request_prefix(snapshot, admission.found, candidate, head, patched=patched)
    request_id = head.request_id or NEW_ID.encode()
    asked = request_message(prefix, request_id, b"", head.line.method, len(whole), whole)
    done.head = asked[: len(asked) - len(whole)]
    done.body = whole


def _heaviest(resolved: Resolved) -> Resolved:
    """Of a split, the part that most requests go to: for a sample without an id there is no other."""
    before = [0, *(upto for upto, _ in resolved.parts)]
    weights = [upto - start for start, (upto, _) in zip(before, resolved.parts, strict=False)]
    return resolved.parts[weights.index(max(weights))][1] if weights else resolved


def _elsewhere(done: Explained, admission: Admission, view: View, failure: Failure) -> Candidate | Failure:
    """The first fallback's candidate, where there is none for the model itself."""
    planned = done.planned
    if planned is None or done.is_bound or not planned.retry.takes(failure.kind.cause, failure.kind.status):
        return failure
    for other in planned.fallbacks:
        candidate = (
            choose(other, view, (), done.asker) if speaks(other, admission.found, admission.dialect) else failure
        )
        if not isinstance(candidate, Failure):
            return candidate
    return failure


# the words ------------------------------------------------------------------------------------------------------------


class _Words:
    """The decision as plain data, each part with its reason."""

    __slots__ = ("_done", "_full", "_limits", "_moment", "_sample", "_snapshot", "_view")

    def __init__(
        self, snapshot: Snapshot, sample: Sample, done: Explained, view: Present | None, moment: Moment | None
    ) -> None:
        self._snapshot = snapshot
        self._sample = sample
        self._done = done
        self._view = view
        self._moment = moment
        self._full = {} if view is None or done.part is None else self._used_up(view, done.part)
        self._limits = self._look() if done.resolved is not None else []

    def _used_up(self, view: Present, resolved: Resolved) -> dict[Target, Full]:
        """Targets that have no room for it within their limits."""
        limited = [candidate for candidate in resolved.candidates if candidate.is_limited]
        found = {candidate.target: view.full(candidate, self._done.asker) for candidate in limited}
        return {target: full for target, full in found.items() if full is not None}

    def _look(self) -> list[dict[str, Any]]:
        """What each limit says that applies; the first one that leaves no room becomes the refusal."""
        done, moment = self._done, self._moment
        assert done.admission is not None
        assert done.resolved is not None
        admission, resolved = done.admission, done.resolved
        limits, now = moment or (Limits(Meters(Cells.private(), 0), lambda *_: None), 0.0)
        assert done.asker is not None
        guess = done.asker.estimate()
        said = []
        for allowance, need, left in limits.applying(_Asking(admission), resolved, guess, now):
            limit = allowance.limit
            entry: dict[str, Any] = {"limit": limit.text, "whose": whose(limit, admission, resolved.entry)}
            entry |= {"amount": limit.amount, "takes": need, "shadow": limit.shadow}
            if moment is not None and limit.per != "ip":  # whose address is not known
                entry["left"] = left + need
                if left < 0 and not limit.shadow and done.failure is None:
                    done.failure = allowance.refusal(need, admission, resolved.entry, now, now)
            said.append(entry)
        return said

    def plan(self) -> dict[str, Any]:
        done, sample = self._done, self._sample
        admission = done.admission
        plan: dict[str, Any] = {
            "outcome": "refused" if done.failure else "answered" if done.answer else "forwarded",
            "request": {"method": sample.method, "path": _without_keys(sample.path), "host": sample.host},
            "generation": self._snapshot.generation,
        }
        if admission is not None and admission.match is not None:
            found = admission.match
            plan["gateway"] = {"name": found.gateway.name, "why": self._why_gateway(found.gateway)}
            plan["rule"] = {"name": found.rule.name, "why": _why_rule(found)}
            endpoint = found.endpoint
            source = "path" if admission.source == "read" else admission.source
            plan["endpoint"] = {"kind": endpoint.kind, "dialect": admission.dialect, "model_in": source}
            plan["key"] = _key(found, admission.key)
        if done.resolved is not None and done.part is not None:
            plan["model"] = _model(done.resolved, done.part, done.model, admission.found if admission else None)
            if done.resolved.parts:
                plan["split"] = self._split(done.resolved, done.part)
            plan["candidates"] = self._candidates(done.part)
            if done.planned is not None and admission is not None:
                plan["retry"] = _retry(done.planned)
                plan["fallbacks"] = [self._fallback(other, admission) for other in done.planned.fallbacks]
            plan["limits"] = self._limits
        elif done.model is not None:
            plan["model"] = {"asked": done.model}
        if done.failure is not None:
            plan["refusal"] = _refusal(done.failure)
        elif done.answer:
            plan["answer"] = done.answer
        elif done.candidate is not None:
            plan["patches"] = done.patches
            plan["head_to"] = done.candidate.target.name
            plan["head"] = masked(done.head, done.candidate.target)
        return plan

    def _why_gateway(self, gateway: GatewaySpec) -> str:
        assert self._done.request is not None
        host = self._done.request.host
        if host in self._snapshot.exact_hosts:
            return f"it answers for the host {host}"
        suffix = next(
            suffix for suffix, other in self._snapshot.suffix_hosts if host.endswith(suffix) and other is gateway
        )
        return f"its hosts have *{suffix}, the longest that fits {host}" if suffix else "its hosts have *: any host"

    def _split(self, resolved: Resolved, chosen: Resolved) -> list[dict[str, Any]]:
        """Which models a split goes to, with their shares."""
        total = resolved.parts[-1][0]
        request = self._done.request
        is_known = request is not None and request.request_id is not None
        described = []
        before = 0
        for upto, one in resolved.parts:
            why = f"{upto - before} of {total} requests"
            before = upto
            if one is chosen:
                why += ", drawn by the request's id" if is_known else "; shown since it has the most"
            sent = one.candidates[0].sent
            described.append(
                {"model": sent, "upstream": one.upstream.name, "chosen": one is chosen and is_known, "why": why}
            )
        return described

    def _candidates(self, resolved: Resolved) -> list[dict[str, Any]]:
        upstream = resolved.upstream
        chosen = self._done.candidate
        asker = self._done.asker
        is_bound = upstream.binds and asker is not None and asker.is_bound()
        described = []
        for candidate in resolved.candidates:
            target = candidate.target
            entry: dict[str, Any] = {"target": target.name, "upstream": upstream.name, "weight": target.weight}
            if candidate.sent is not None:
                entry["model"] = candidate.sent
            is_chosen = candidate is chosen and (resolved.only is not None or self._is_sure(upstream, is_bound))
            entry["chosen"] = is_chosen
            entry["why"] = self._why(candidate, is_chosen, is_bound)
            described.append(entry)
        return described

    def _fallback(self, resolved: Resolved, admission: Admission) -> dict[str, Any]:
        """A model that may be tried next; they stand in their order."""
        there = [one.target for one in resolved.candidates if one.target.weight]
        targets = [target.name for target in there]
        full = {} if self._view is None else self._used_up(self._view, resolved)
        why = "tried when what came before has failed"
        if self._done.is_bound:
            why = "no candidate: the request refers to what another provider keeps"
        elif not speaks(resolved, admission.found, admission.dialect):
            why = f"no candidate: it does not speak {admission.dialect}'s API"
        elif not targets:
            why = "no candidate: all of its targets have weight 0"
        elif all(target in full for target in there):
            why = "no candidate: the limits of its targets are used up"
        sent = [one.sent for one in resolved.candidates][:1]
        return {
            "entry": resolved.entry,
            "upstream": resolved.upstream.name,
            "model": sent[0] if sent else None,
            "targets": targets,
            "chosen": self._done.candidate in resolved.candidates,
            "why": why,
        }

    def _is_sure(self, upstream: Upstream, is_bound: bool) -> bool:
        """Whether a worker would choose the same: not by its own turns or by chance, nor by what is not known here."""
        view = self._view
        full = self._full
        there = [t for t in upstream.targets if t.weight and t not in full and (view is None or not view.out_until(t))]
        if len(there) <= 1:  # if there is none, who is back first is asked
            return True
        admission = self._done.admission
        on = "key" if is_bound else upstream.hash_on if upstream.balance == "hash" else ""
        if admission is not None and on:
            return affinity(admission, b"", b"", on) != b""
        if view is None or upstream.balance != "least_connections":
            return False
        loads = [(view.in_flight(target) + 1) / target.weight for target in there]
        return loads.count(min(loads)) == 1  # equals take turns

    def _why(self, candidate: Candidate, is_chosen: bool, is_bound: bool) -> str:
        target = candidate.target
        upstream = target.upstream
        total = sum(target.weight for target in upstream.targets)
        view = self._view
        if not target.weight:
            return "no candidate: its weight is 0"
        if view is not None and view.out_until(target):
            state, _, why = view.standing(target)
            return f"{state}{': ' if why else ''}{why}{'; the others are out for longer' if is_chosen else ''}"
        if target in self._full:
            limit, seconds = self._full[target]
            what = f"no candidate: {limit.text} (at most {said(limit, limit.amount).partition(' ')[0]})"
            if seconds == inf:
                return f"{what} is less than this request may use"
            return f"{what} is used up; there is room in {wait_text(seconds)}"
        if total == target.weight:
            return "the only target" if len(upstream.targets) == 1 else "the only target with a weight"
        share = f"{target.weight} of {total}"
        if is_bound:
            return f"{'here: ' if is_chosen else ''}the provider keeps what it is about, so a hash of the key decides"
        if upstream.balance == "round_robin":
            return f"{share} turns are its own"
        in_flight = "" if view is None else f"{view.in_flight(target)} in flight; "
        if upstream.balance == "random":
            return f"{in_flight}its chance to be one of two drawn is {share}; the one with less in flight is asked"
        if upstream.balance == "hash":
            by = {"key": "the key", "ip": "the client's address"}.get(upstream.hash_on, f"the {upstream.hash_on}")
            here = "here: " if is_chosen else ""
            return f"{in_flight}{here}a hash of {by} decides, while its target has not too much in flight"
        return f"{in_flight}the fewest exchanges in flight for its weight get the next"


def _why_rule(found: Match) -> str:
    rule = found.rule
    path = f"the path is {rule.prefix.decode()}" if rule.exact is not None else ""
    path = path or f"the longest prefix that takes the path is {rule.prefix.decode()}/*"
    methods = "any method" if rule.methods is None else f"methods {', '.join(sorted(rule.methods))}"
    return f"{path}; {methods}; {'by model' if rule.by_model else 'it names its upstream'}"


def _key(found: Match, key: Key | None) -> dict[str, Any] | None:
    if key is not None:
        globs = sorted(f"{head}*{tail}" for head, tail in key.globs)
        models = ["*"] if key.all_models else [*sorted(key.exact), *globs]
        return {"name": key.name, "group": key.group, "models": models}
    if not found.gateway.auth:
        return {"name": None, "why": "the gateway asks for none (auth: none)"}
    return {"name": None, "why": "the rule asks for none (public: true)"} if found.rule.public else None


def _model(resolved: Resolved, part: Resolved, asked: str | None, found: Match | None) -> dict[str, Any]:
    if resolved.entry is not None:
        is_glob = "*" in resolved.entry and resolved.entry != asked
        why = "the longest glob that fits" if is_glob else "its exact name"
    elif found is not None and found.rule.by_model:
        why = "no model is named: the rule's default"
    else:
        why = "the rule names the upstream"
    return {"asked": asked, "entry": resolved.entry, "upstream": part.upstream.name, "why": why}


def _retry(planned: Plan) -> dict[str, Any]:
    """How often, and after what; of which level of the config it is."""
    retry = planned.retry
    why = {
        "fallback": "what a model with fallbacks has where there is no retry",
        "": "only the first content has a deadline (first_token)",
    }.get(planned.source, f"the {planned.source}'s retry, the most specific one")
    budget = f"{retry.budget:.0%}"
    return {"attempts": retry.attempts, "when": list(retry.when), "budget": budget, "why": why}


def _refusal(failure: Failure) -> dict[str, Any]:
    kind = failure.kind
    said: dict[str, Any] = {"status": kind.status, "code": kind.code, "fault": kind.fault, "message": failure.message}
    if failure.param is not None:
        said["param"] = failure.param
    return said


def masked(head: bytes, target: Target) -> list[str]:
    """The lines of a request's head as they may be shown: no credential, and no value that the config sets."""
    secret = _SECRET_LINES | {line_name(line) for line in target.fixed.split(b"\r\n") if line}
    first, *lines = head.rstrip(b"\r\n").split(b"\r\n")
    shown = [_without_keys(first.decode("latin-1"))]
    for line in lines:
        name, _, _ = line.partition(b":")
        shown.append(f"{name.decode()}: {MASK}" if line_name(line) in secret else line.decode("latin-1"))
    return shown


def _without_keys(target: str) -> str:
    """A request target, or the line that begins with one, without the keys in its query."""
    path, mark, rest = target.partition("?")
    query, blank, version = rest.partition(" ")
    parts = [part if key_of(part.encode()) is None else f"{part.partition('=')[0]}={MASK}" for part in query.split("&")]
    return path + mark + "&".join(parts) + blank + version
