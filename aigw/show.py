"""The admin API's answers as lines for people: what `aigw status` and `aigw explain` print of them.

Pure text from plain data, short and aligned; `--json` prints the data themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

WIDTH: Final = 12  # of the left column
MOST: Final = 20  # workers, targets or names printed; the rest is counted

Row = tuple[str, str]


def plan(found: Mapping[str, Any]) -> str:
    """What `explain` answers."""
    request = found["request"]
    rows: list[Row] = [("request", f"{request['method']} {request['path']} (host {request['host']})")]
    rows += [(name, f"{found[name]['name']}: {found[name]['why']}") for name in ("gateway", "rule") if name in found]
    endpoint = found.get("endpoint")
    if endpoint is not None:
        rows.append(("dialect", f"{endpoint['dialect']}, {endpoint['kind']}; model in: {endpoint['model_in']}"))
    rows += _key(found.get("key"))
    model = found.get("model")
    if model is not None and "upstream" in model:
        asked = "none" if model["asked"] is None else model["asked"]
        entry = "" if model["entry"] is None else f" is {model['entry']} ({model['why']})"
        why = f" ({model['why']})" if model["entry"] is None else ""
        rows.append(("model", f"{asked}{entry} -> {model['upstream']}{why}"))
    elif model is not None:
        rows.append(("model", model["asked"]))
    if "split" in found:
        rows += _labelled(
            "split", [f"{_mark(one)} {one['model']} -> {one['upstream']}: {one['why']}" for one in found["split"]]
        )
    if "candidates" in found:
        rows += _labelled("targets", _candidates(found["candidates"]))
        rows += _again(found)
        rows += _labelled("limits", [_limit(limit) for limit in found["limits"]] or ["none"])
    rows += _outcome(found)
    return _lines(rows)


def _key(key: Mapping[str, Any] | None) -> list[Row]:
    if key is None:
        return []
    if key["name"] is None:
        return [("key", f"none: {key['why']}")]
    group = "" if key["group"] is None else f" of {key['group']}"
    models = ", ".join(key["models"][:MOST]) + (", ..." if len(key["models"]) > MOST else "")
    return [("key", f"{key['name']}{group}, may use {'any model' if key['models'] == ['*'] else models or 'no model'}")]


def _limit(limit: Mapping[str, Any]) -> str:
    left = f", {limit['left']} left" if "left" in limit else ""
    shadow = "; counted only" if limit["shadow"] else ""
    return f"{limit['limit']}: {limit['whose']}, {limit['amount']}{left}, takes {limit['takes']}{shadow}"


def _candidates(candidates: list[Mapping[str, Any]]) -> list[str]:
    width = max(len(candidate["target"]) for candidate in candidates)
    return [
        f"{_mark(candidate)} {candidate['target']:<{width}}  "
        + (f"as {candidate['model']}: " if "model" in candidate else "")
        + str(candidate["why"])
        for candidate in candidates
    ]


def _mark(one: Mapping[str, Any]) -> str:
    return ">" if one["chosen"] else " "


def _again(found: Mapping[str, Any]) -> list[Row]:
    """What may follow a first attempt."""
    retry = found.get("retry")
    if retry is None:
        return []
    after = f" after {', '.join(retry['when'])}" if retry["when"] else ""
    rows = [("attempts", f"{retry['attempts']} per upstream{after}; retries up to {retry['budget']} ({retry['why']})")]
    fallbacks = [
        f"{_mark(other)} {other['entry']} -> {other['upstream']}: {other['why']}" for other in found["fallbacks"]
    ]
    return rows + _labelled("fallbacks", fallbacks)


def _outcome(found: Mapping[str, Any]) -> list[Row]:
    refusal = found.get("refusal")
    if refusal is not None:
        return [("refused", f"{refusal['status']} {refusal['code']}: {refusal['message']}")]
    if "answer" in found:
        return [("answered", found["answer"])]
    return [
        *_labelled("changes", found["patches"] or ["none: the body goes on byte for byte"]),
        *_labelled(f"to {found['head_to']}"[: WIDTH - 1], found["head"]),
    ]


def status(found: Mapping[str, Any]) -> str:
    """What `status` answers, as lines for people."""
    config = found["config"]
    clients, upstream = found["connections"]["client"], found["connections"]["upstream"]
    rows: list[Row] = [
        ("aigw", f"{found['version']}, pid {found['pid']}, up {_span(found['uptime_seconds'])}"),
        ("config", f"{config['path'] or 'built-in'}, generation {found['generation']}"),
        *(("  error", error) for error in config["errors"]),
        *(("listens", name) for name in found["listeners"]),
        *(("admin API", name) for name in found["admin"]),
        *_labelled("workers", _workers(found)),
        ("clients", f"{clients['active']} active, {clients['idle']} idle"),
        ("upstreams", f"{upstream['busy']} connections busy, {upstream['idle']} idle"),
        *_labelled("", _targets(found["upstreams"])),
        ("exchanges", f"{found['exchanges']['total']} ended, {found['in_flight']} in flight"),
    ]
    if found["exchanges"]["worker_lost"]:
        rows.append(("  lost", f"{found['exchanges']['worker_lost']} with their worker"))
    if found["log_dropped"]:
        rows.append(("log", f"{found['log_dropped']} records dropped"))
    if found["usage_store"]["error"]:
        rows.append(("usage", found["usage_store"]["error"]))
    return _lines(rows)


def _workers(found: Mapping[str, Any]) -> list[str]:
    restarts = found["worker_restarts"]
    again = f", {restarts} restart{'' if restarts == 1 else 's'}" if restarts else ""
    lines = [f"{len(found['workers'])} of {found['workers_wanted']}{again}"]
    for worker in found["workers"]:
        serves = f"generation {worker['generation']}" if worker["generation"] else "starting"
        lines.append(
            f"  pid {worker['pid']}: {serves}, {worker['connections']} clients, {worker['in_flight']} in flight"
        )
    return lines


def _health(values: Mapping[str, Any]) -> str:
    if values["state"] == "up":
        return ""
    left = f", {values['seconds_left']:g} s left" if "seconds_left" in values else ""
    return f", {values['state']}: {values['why'] or 'no reason is known'}{left}"


def _left(limit: Mapping[str, Any]) -> str:
    left, amount = limit["left"], limit["amount"]
    if limit["unit"] == "cost":
        left, amount = f"${left / 1e9:g}", f"${amount / 1e9:g}"
    return f"{left} of {amount} left{', counted only' if limit['shadow'] else ''}"


def _targets(upstreams: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    names = [f"{name}/{target}" for name, targets in upstreams.items() for target in targets]
    width = max(map(len, names), default=0)
    entries = [values for targets in upstreams.values() for values in targets.values()]
    return [
        f"  {name:<{width}}  {values['busy']} busy, {values['idle']} idle, {values['waiting']} waiting"
        + ("" if values["weight"] else ", weight 0")
        + _health(values)
        + "".join(f"; {limit['limit']}: {_left(limit)}" for limit in values.get("limits", ()))
        for name, values in zip(names, entries, strict=True)
    ]


def usage(found: Mapping[str, Any]) -> str:
    """What `usage` answers, as a table: classes of tokens that nobody used are left out."""
    items = found["items"]
    names = [*(["time"] if found["per"] else []), *found["by"]]
    total: dict[str, Any] = {
        name: sum(item[name] for item in items) for name in ("requests", "errors", "cost", "unpriced")
    }
    total["tokens"] = tokens = {"input": 0, "output": 0}
    for item in items:
        tokens |= {name: tokens.get(name, 0) + count for name, count in item["tokens"].items()}
    classes = [name for name, count in tokens.items() if count or name in ("input", "output")]
    rows = [[*names, "requests", "errors", *classes, "cost "]]
    for item in [*items, {names[0]: "total", **total}] if names else [total]:
        counts = [item["requests"], item["errors"], *(item["tokens"][name] for name in classes)]
        cost = f"${item['cost']:,.6f}{'*' if item['unpriced'] else ' '}"
        rows.append([*(_clean(str(item.get(name, ""))) for name in names), *(f"{count:,}" for count in counts), cost])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)][: len(names)]
        texts += [f"{text:>{width}}" for text, width in zip(row, widths, strict=True)][len(names) :]
        lines.append("  ".join(texts).rstrip())
    if total["unpriced"]:
        lines.append(f"* and {total['unpriced']:,} exchanges whose price is not known: see prices in the config")
    return "".join(line + "\n" for line in lines)


def _labelled(label: str, lines: list[str]) -> list[Row]:
    """Lines that belong together, not too many of them."""
    shown = lines if len(lines) <= MOST else [*lines[:MOST], f"  ... and {len(lines) - MOST} more"]
    return [(label if not index else "", line) for index, line in enumerate(shown)]


def _lines(rows: Iterable[Row]) -> str:
    """What comes from elsewhere stays one line, and without control bytes: a terminal obeys them."""
    return "".join(_clean(f"{label:<{WIDTH}}{line}") + "\n" for label, line in rows)


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _span(seconds: float) -> str:
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size:
            smaller, name = {"d": (3600, "h"), "h": (60, "m"), "m": (1, "s")}[unit]
            return f"{whole // size}{unit} {whole % size // smaller}{name}"
    return f"{whole}s"
