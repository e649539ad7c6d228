"""What `setup.py` compiles, and what must not be written in it or of it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETUP = ROOT / "setup.py"


def compiled() -> list[str]:
    """As `setup.py` names them: paths below `aigw/`, without suffix."""
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COMPILED":
            return str(ast.literal_eval(node.value)).split()
    raise AssertionError("no COMPILED in setup.py")


def test_what_is_compiled_is_there() -> None:
    assert [name for name in compiled() if not (ROOT / "aigw" / f"{name}.py").exists()] == []


def test_the_data_path_is_compiled() -> None:
    """Each exchange goes through these; the others of `proxy/` are for TLS, retries, uploads and the like."""
    assert {f"proxy/{name}" for name in ("client", "exchange", "upstream", "pool", "admission")} <= set(compiled())


@pytest.mark.parametrize("module", ["copy", "pickle", "weakref"])
def test_nothing_is_used_that_fails_on_compiled_objects(module: str) -> None:
    """`copy.copy` gives one without its attributes, and says nothing; the others raise."""
    found = [
        str(path)
        for path in (ROOT / "aigw").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and module in [name.name for name in node.names])
        or (isinstance(node, ast.ImportFrom) and node.module == module)
    ]
    assert found == []


def test_a_wish_that_nobody_knows() -> None:
    done = subprocess.run(
        [sys.executable, str(SETUP), "--name"],
        cwd=ROOT,
        env={**os.environ, "AIGW_COMPILE": "yes"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AIGW_COMPILE=yes: must be 0 (the sources alone) or 1 (compiled, or fail)\n" in done.stderr
