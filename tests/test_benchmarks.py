"""The benchmarks that need no second machine and no quiet one still run, and say what they are asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def micro(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "micro.py"), "--rounds", "1", "--count", "1", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_micro_measures_every_step_and_says_what_moved(tmp_path: Path) -> None:
    kept = tmp_path / "base.json"
    assert micro("--json", kept).returncode == 0
    figures = json.loads(kept.read_text())
    assert "exchange, heads that repeat" in figures
    assert all(figure > 0 for figure in figures.values())
    name = "write the record"
    kept.write_text(json.dumps(dict.fromkeys(figures, 1e9) | {name: 1e-9, "gone by now": 1.0}))
    done = micro("--check", kept)
    moved = done.stdout.partition("moved by more than")[2]
    assert done.returncode == 1
    assert f"{name}: +" in moved
    assert "exchange, heads that repeat: -100% of 1000000000.00" in moved
    assert "gone by now: gone" in moved
