"""Processes under measurement: pinned to a core, read through /proc, and gone at the end.

Everything here is about a process *tree*: a proxy is charged for its master, its supervisor and every worker.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CPU:
    """Seconds a process tree has run, its reaped children included."""

    user: float
    system: float

    def __sub__(self, other: "CPU") -> "CPU":
        return CPU(self.user - other.user, self.system - other.system)


@dataclass(frozen=True, slots=True)
class Memory:
    """One process in bytes; `pss` shares what is mapped by several processes out among them."""

    command: str
    rss: int
    pss: int


def cores() -> set[int]:
    """The cores this process may use."""
    return os.sched_getaffinity(0)


def tree(root: int) -> list[int]:
    """`root` and its living descendants, parents first."""
    children: dict[int, list[int]] = {}
    for pid, fields in _stats():
        children.setdefault(int(fields[1]), []).append(pid)
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def cpu(root: int) -> CPU:
    pids = set(tree(root))
    user = system = 0
    for pid, fields in _stats():
        if pid in pids:
            user += int(fields[11]) + int(fields[13])  # utime, cutime
            system += int(fields[12]) + int(fields[14])  # stime, cstime
    return CPU(user / TICK, system / TICK)


def memory(root: int) -> list[Memory]:
    found = []
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in text.splitlines()[1:]}
        command = " ".join(argument.decode(errors="replace") for argument in arguments if argument)
        found.append(Memory(command, sizes["Rss:"], sizes["Pss:"]))
    return found


def start(
    command: list[str], core: int | None, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `command` on `core` alone, or on any; what it says goes to `log`. `environment` is added to this one."""
    if core is not None:
        command = ["taskset", "--cpu-list", str(core), *command]  # it executes the command: same process, same pid
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )


def stop(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """Ends the process and every descendant it has now: SIGTERM to the root, SIGKILL to what is left after `grace`."""
    pids = tree(process.pid) if process.poll() is None else []
    started = {pid: _started(pid) for pid in pids}
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 1.0
    while (left := [pid for pid in pids[1:] if started[pid] and _started(pid) == started[pid]]) and (
        time.monotonic() < deadline
    ):
        time.sleep(0.01)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _stats() -> Iterator[tuple[int, list[str]]]:
    """pid and /proc/PID/stat from its third field on (proc(5)): [0] state, [1] ppid, [11] utime, [19] starttime."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                text = Path(f"/proc/{entry}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            yield int(entry), text.rpartition(")")[2].split()


def _started(pid: int) -> str | None:
    """When the process started, in ticks since boot: with the pid it names a process for good. None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]
