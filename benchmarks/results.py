"""What compare.py measured, as values, and the tables and the file that say it.

The tables are Markdown that also reads well on a terminal, so there is one form for both.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loads import Load
from proxies import IDLE_CLIENTS, WORK, Proxy

OPEN_STREAMS = 1000
_BEGIN = "<!-- from here on written by compare.py: every run replaces it -->"
_END = "<!-- up to here written by compare.py -->"
_NEW = f"""# Results

{_BEGIN}
{_END}

## History

What a change gained or cost, the newest first, by hand: a run leaves it alone.
"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of one load. Latencies in microseconds, CPU in microseconds of the process tree per answer."""

    requests: int
    rate: float
    p50: float
    p99: float
    failed: int
    user: float
    system: float

    @property
    def cpu(self) -> float:
        return self.user + self.system


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a proxy takes at rest: seconds, bytes. None: not known here, or it does not apply."""

    proxy: Proxy
    started_in: float
    rss: int
    pss: int
    processes: int
    idle: float
    stream: float
    installed: int | None


Measured = dict[str, dict[Proxy, list[Measurement]]]  # load name -> proxy -> one a round


def middle(results: Sequence[Measurement], field: Callable[[Measurement], float]) -> float:
    return statistics.median(map(field, results))


def spread(results: Sequence[Measurement], field: Callable[[Measurement], float], form: str) -> str:
    values = [field(result) for result in results]
    return f"{min(values):{form}}-{max(values):{form}}"


def ratio(value: float, base: float | None) -> str:
    return f"{value / base:.2f}" if base else "-"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, numbers to the right."""
    lines = [list(headings), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |" for line in lines
    )


def called(proxy: Proxy) -> str:
    """Marked where it does less than the whole work."""
    return proxy.name + ("" if proxy.name == "direct" or proxy.does == frozenset(WORK) else " *")


def work(proxies: Iterable[tuple[Proxy, str]]) -> str:
    """The proxies, each with its version, and what they do."""
    rows = [
        (called(proxy), version, *("yes" if part in proxy.does else "-" for part in WORK), _answer(proxy))
        for proxy, version in proxies
    ]
    return (
        "## What each of them does\n\n"
        + table(("proxy", "version", *WORK, "answer"), rows)
        + "\n\nAll forward the same requests to the same upstream and stream its answers. A proxy with * does not do\n"
        "all of a gateway's other work: asking for a key, limiting requests, routing by the model in the body,\n"
        "looking for usage, writing an access log, counting metrics."
    )


def _answer(proxy: Proxy) -> str:
    return "byte for byte" if proxy.exact else "rewritten"


def footprints(found: Sequence[Footprint]) -> str:
    headings = ("proxy", "first answer ms", "processes", "RSS MiB", "PSS MiB", "idle KiB", "stream KiB", "installed MB")
    rows = [
        (
            called(one.proxy) + (" †" if one.proxy.slow else ""),
            f"{one.started_in * 1000:,.0f}",
            str(one.processes),
            f"{one.rss / 2**20:.1f}",
            f"{one.pss / 2**20:.1f}",
            f"{one.idle / 1024:.1f}",
            f"{one.stream / 1024:.1f}",
            "-" if one.installed is None else f"{one.installed / 1e6:.1f}",
        )
        for one in found
    ]
    text = (
        "## Start, memory, size\n\n"
        f"Before any load; then per connection, of {IDLE_CLIENTS:,} that had an answer each and wait, and of "
        f"{OPEN_STREAMS:,} in an open stream.\n\n"
    )
    legend = "\n\n† with a tenth of the connections and streams" if any(one.proxy.slow for one in found) else ""
    return text + table(headings, rows) + legend


def load(asked: Load, measured: dict[Proxy, list[Measurement]]) -> str:
    """All with one worker."""
    measured = {proxy: results for proxy, results in measured.items() if proxy.workers == 1}
    base = {proxy.name: results for proxy, results in measured.items() if proxy.name in ("direct", "nginx")}
    nginx = base.get("nginx")
    direct = base.get("direct") if asked.connections == 1 else None
    headings = ["proxy", "streams/s" if asked.streamed else "req/s", "range", "x nginx", "p50 us", "p99 us"]
    headings += ["added p50"] if direct else []
    headings += ["failed", "CPU us", "range", "user", "system", "x nginx"]
    rows = []
    for proxy, results in measured.items():
        rate, cpu = middle(results, lambda one: one.rate), middle(results, lambda one: one.cpu)
        p50 = middle(results, lambda one: one.p50)
        row = [called(proxy) + (" †" if asked.streamed and proxy.slow else ""), f"{rate:,.0f}"]
        row += [spread(results, lambda one: one.rate, ",.0f")]
        row += [ratio(rate, middle(nginx, lambda one: one.rate) if nginx else None)]
        row += [f"{p50:,.0f}", f"{middle(results, lambda one: one.p99):,.0f}"]
        row += [f"{p50 - middle(direct, lambda one: one.p50):,.0f}"] if direct else []
        row += [str(sum(one.failed for one in results)), f"{cpu:,.1f}", spread(results, lambda one: one.cpu, ",.1f")]
        row += [f"{middle(results, lambda one: one.user):,.1f}", f"{middle(results, lambda one: one.system):,.1f}"]
        row += [ratio(cpu, middle(nginx, lambda one: one.cpu) if nginx else None)]
        rows.append(row)
    connections = f"{asked.connections} connection{'s' if asked.connections > 1 else ''}"
    text = f"## {asked.name}: {asked.about}; {connections}, {asked.tool}\n\n{table(headings, rows)}"
    if asked.streamed and any(proxy.slow for proxy in measured):
        text += "\n\n† on a tenth of the connections"
    if asked.tool == "hey" and "direct" in base:
        alone = middle(base["direct"], lambda one: one.rate)
        text += (
            f"\n\nWithout a proxy hey drives {alone:,.0f} requests a second, on the core it shares with the upstream."
        )
    return text


def two_workers(loads: Iterable[Load], measured: Measured) -> str:
    """CPU alone: with both cores taken by two workers, rates and latencies say who got a core, and nothing else."""
    rows = []
    for asked in loads:
        found = {(proxy.name, proxy.workers): results for proxy, results in measured[asked.name].items()}
        for proxy, results in measured[asked.name].items():
            if proxy.workers == 1:
                continue
            cpu, one = middle(results, lambda result: result.cpu), found.get((proxy.name, 1))
            alone = middle(one, lambda result: result.cpu) if one else None
            row = [f"{called(proxy)}", asked.name, "-" if alone is None else f"{alone:,.1f}", f"{cpu:,.1f}"]
            row += [spread(results, lambda result: result.cpu, ",.1f"), ratio(cpu, alone)]
            rows.append([*row, str(sum(result.failed for result in results))])
    headings = ("proxy", "load", "one worker: CPU us", "two: CPU us", "range", "x one", "failed")
    return (
        "## Two workers\n\n"
        "One worker has core 0 for itself; two use both cores, beside the load generator and the upstream on core 1.\n"
        "Their rates then depend on who got a core when, so that the table has only what a request costs.\n\n"
        + table(headings, rows)
    )


def place(path: Path) -> tuple[str, str]:
    """The file up to where results stand, and from there on. Raises ValueError where it has no place for them."""
    old = path.read_text() if path.exists() else _NEW
    before, begun, rest = old.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (begun and ended):
        raise ValueError(f"{path} lacks the lines {_BEGIN!r} and {_END!r}, between which results are written")
    return before + _BEGIN, _END + after


def write(path: Path, text: str) -> None:
    """Puts `text` where the last run put its own."""
    before, after = place(path)
    path.write_text(f"{before}\n\n{text.strip()}\n\n{after}")
