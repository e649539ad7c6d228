"""Who may know whom: the order of layers, and what stays out of which, read off the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import aigw

pytestmark = pytest.mark.unmeasured

ROOT = Path(aigw.__file__).parent

# Each line may import from its own layer's earlier lines only. A name stands for a module, or for all of a package.
SERVING = [
    {"errors"},
    {"wire"},
    {"mock"},
    {"tokens"},
    {"pricelist"},
    {"prices"},
    {"providers"},
    {"config.limits", "config.retry"},
    {"config.upstreams"},
    {"config.snapshot", "config.lines"},
    {"policies.balance", "policies.ejection"},
    {"policies", "forward"},
    {"route"},
    {"admit"},
    {"counters"},
    {"ledger"},
    {"records"},
    {"proxy"},
    {"gateway"},
    {"worker"},
]
# What runs without serving: may import what stands left of `proxy`, and this order among itself.
RUNNING = [
    {"config.problem"},
    {"config.values", "config.walk"},
    {"config.interpolate", "config.findings", "config.netvalues"},
    {"config.checks", "config.loader"},
    {"config.edit.nodes", "config.edit.plain"},
    {"config.edit.match", "config.edit.place", "config.edit.style"},
    {"config.edit.change"},
    {"config.edit"},
    {"config.schema"},
    {"config.document"},
    {"config.view"},
    {"config.resources", "config.secrets"},
    {"config.store"},
    {"config.edits"},
    {"source"},
    {"usagefile"},
    {"usage"},
    {"admin.messages", "admin.file", "admin.child", "admin.recent", "admin.changes", "admin.client"},
    {"admin.guard", "admin.writer"},
    {"admin.server", "admin.looking"},
    {"admin.api"},
    {"admin.run"},
    {"sample", "status"},
    {"explain", "metrics"},
    {"workers"},
    {"supervisor"},
    {"cli"},
    {"__main__"},
]
# Tools that know the operating system and nothing of the gateway; both sides use them.
TOOLS = {
    "accept",
    "tls",
    "shared",
    "meters",
    "watch",
    "listen",
    "logfile",
    "process",
    "channel",
    "screen",
    "show",
    "handle",
    "dashboard",
}

# No loop, no clock, no file: these are functions of what they are given.
PURE = (
    "wire",
    "tokens",
    "pricelist",
    "prices",
    "policies",
    "providers",
    "route",
    "forward",
    "admit",
    "counters",
    "sample",
    "explain",
    "config.retry",
    "config.schema",
    "config.snapshot",
    "config.upstreams",
    "config.edit",
)
CLOCKS = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "localtime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
# Who may import what is dear or dangerous, and nobody else.
ONLY = {
    "yaml": {"config.loader", "config.edit.nodes"},
    "pydantic": {"config.schema"},
    "pydantic_core": {"config.schema"},
    "httptools": {"wire.head", "wire.framing", "mock.server"},
    "uvloop": {"worker", "cli"},
    "prometheus_client": {"metrics"},
    "sqlite3": {"usagefile"},
}
# Modules with these names must never be reached from a worker's start, nor (while it starts) from the supervisor's.
WORKER_NEVER = {"yaml", "pydantic", "pydantic_core", "config.schema", "config.store"}
SUPERVISOR_NEVER = WORKER_NEVER | {"proxy", "sqlite3"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its name without `aigw.`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name or "__init__"] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imported(tree: ast.AST, *, only_when_run: bool = False) -> Iterator[str]:
    """Names of modules that a module imports; ours without `aigw.`. Imports for type checkers never count.

    `only_when_run` leaves out those within functions, which are imported when (and if) the function is called.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if only_when_run and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            yield from (_ours(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            for alias in node.names:
                inner = _ours(f"{module}.{alias.name}")
                yield inner if inner in MODULES else _ours(module)
        else:
            yield from imported(node, only_when_run=only_when_run)


def _ours(name: str) -> str:
    return name.removeprefix("aigw.") if name.startswith("aigw.") else "__init__" if name == "aigw" else name


def stands_for(layer: set[str], module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in layer)


def rank(module: str) -> tuple[str, int]:
    for side, layers in (("serving", SERVING), ("running", RUNNING)):
        for index, layer in enumerate(layers):
            if stands_for(layer, module):
                return side, index
    return ("tools", 0) if module in TOOLS else ("free", 0)


def reached(start: str) -> set[str]:
    """All modules, ours and others, that importing `start` imports."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module in found:
            continue
        found.add(module)
        tree = MODULES.get(module)
        if tree is None:
            found.add(module.partition(".")[0])
            continue
        waiting += imported(tree, only_when_run=True)
        parts = module.split(".")
        waiting += [".".join(parts[:depth]) for depth in range(1, len(parts))]  # a package's __init__ runs first
    return found


PACKAGES = {"__init__", "admin", "config"}


def test_every_module_has_a_place() -> None:
    homeless = {module for module in MODULES if rank(module)[0] == "free"} - PACKAGES
    assert not homeless, f"not in the order of layers: {sorted(homeless)}"
    named = {name for layer in (*SERVING, *RUNNING, TOOLS) for name in layer}
    assert named <= set(MODULES), f"no such module: {sorted(named - set(MODULES))}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_come_from_the_left(module: str) -> None:
    side, index = rank(module)
    proxy = rank("proxy")[1]
    for other in imported(MODULES[module]):
        if other not in MODULES or other in PACKAGES or other.partition(".")[0] == module.partition(".")[0] != "config":
            continue
        other_side, other_index = rank(other)
        if other_side == "tools":
            continue
        if side == other_side:
            assert other_index < index, f"{module} imports {other}"
        else:
            assert (side, other_side) == ("running", "serving"), f"{module} imports {other}"
            assert other_index < proxy, f"{module} imports {other}"


def test_no_cycles_within_a_package() -> None:
    for module, tree in MODULES.items():
        for other in imported(tree, only_when_run=True):
            inner = MODULES.get(other)
            if inner is not None and other not in PACKAGES:
                assert module not in set(imported(inner, only_when_run=True)), f"{module} and {other} import each other"


@pytest.mark.parametrize("module", [name for name in MODULES if stands_for(set(PURE), name)])
def test_what_is_pure_knows_no_loop_no_clock_and_no_file(module: str) -> None:
    tree = MODULES[module]
    outside = {name.partition(".")[0] for name in imported(tree)}
    assert not outside & {"asyncio", "uvloop", "socket", "selectors", "threading", "os", "pathlib", "io", "random"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"{module}:{node.lineno} opens a file"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in CLOCKS.get(node.value.id, ()), f"{module}:{node.lineno} reads a clock"
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            taken = {alias.name for alias in node.names}
            assert not taken & CLOCKS["time"], f"{module}:{node.lineno} reads a clock"


@pytest.mark.parametrize("library", ONLY)
def test_who_imports_a_library(library: str) -> None:
    users = {module for module, tree in MODULES.items() if library in {n.partition(".")[0] for n in imported(tree)}}
    assert users <= ONLY[library]


def test_what_a_worker_and_the_supervisor_never_import() -> None:
    assert "proxy.exchange" in reached("worker")
    assert not reached("worker") & WORKER_NEVER
    assert "config.snapshot" in reached("worker")
    assert not [name for name in reached("supervisor") if stands_for(SUPERVISOR_NEVER, name)]


def test_the_config_package_imports_nothing() -> None:
    """So that `config.snapshot` alone costs a worker nothing of `schema` and `store`."""
    assert not list(imported(MODULES["config"]))


def test_the_check_itself_sees_what_it_should() -> None:
    tree = ast.parse("import a.b\nfrom aigw.wire import head\nfrom aigw.errors import X\ndef f():\n    import yaml\n")
    assert list(imported(tree)) == ["a.b", "wire.head", "errors", "yaml"]
    assert list(imported(tree, only_when_run=True)) == ["a.b", "wire.head", "errors"]
    guarded = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import yaml\n")
    assert list(imported(guarded)) == ["typing"]
    for layers in (SERVING, RUNNING):
        assert all(left.isdisjoint(right) for left, right in pairwise(layers))
