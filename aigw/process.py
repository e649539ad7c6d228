"""What the processes of one gateway have in common: how they are started, what they say, how they end.

Imported first and by all of them, so it is lean: no event loop, no config, no HTTP. `aigw serve` starts the config
child and the first worker through this module before it imports anything else, and the three start side by side.

Signals belong to the supervisor alone. A terminal's Ctrl-C and a service manager's SIGTERM often go to every process
of the group; a worker that obeyed would cut the streams that the supervisor is about to let finish. So `SIGNALS` are
blocked while a process is started, inherited as blocked, and a worker ignores them before it unblocks them: no window
remains.
"""

import contextlib
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import TracebackType
from typing import Any

SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1})

# glibc gives the top of the heap back to the kernel and faults it in again, twice per request, unless told otherwise.
# Setting either of the first two freezes the third at 128 KiB, and each larger read would be a mapping of its own.
MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}

MAX_DESCRIPTORS = 1 << 20  # the kernel's usual ceiling (fs.nr_open); "unlimited" is cut to it
LINE_BYTES = 2000  # of a log line; less than PIPE_BUF, so that lines of several processes do not mix


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A started worker and the supervisor's ends of its two channels."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    records: socket.socket


def start_worker(cells: int, row: int) -> WorkerProcess:
    """Executes a worker, which waits for its document on the control channel. `cells` is the descriptor of the cells,
    `row` the one that the worker writes.

    Raises: OSError, when the system refuses another process or descriptor.
    """
    control, control_far = socket.socketpair()
    records, records_far = socket.socketpair()
    try:
        with control_far, records_far:
            far = (control_far.fileno(), records_far.fileno(), cells)
            arguments = ["aigw.worker", *map(str, far), str(row)]
            # what a worker prints by accident must not stand in the access log: its stdout is our stderr
            process = _start(arguments, stdout=2, pass_fds=far, env={**os.environ, **MALLOC})
    except OSError:
        control.close()
        records.close()
        raise
    return WorkerProcess(process, control, records)


def start_config(path: str | None) -> subprocess.Popen[bytes]:
    """Executes the config child for the file `path` (None: the built-in config). Its stdout is a pipe."""
    return _start(["aigw.config.store", "--builtin" if path is None else path], stdout=subprocess.PIPE)


def start_edits(descriptor: int) -> subprocess.Popen[bytes]:
    """Executes the child that edits the config, with its request in the file `descriptor`. Its stdout is a pipe."""
    arguments = ["aigw.config.edits", str(descriptor)]
    return _start(arguments, pass_fds=(descriptor,), stdout=subprocess.PIPE)


def _start(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
    # -P: a file json.py in the folder where aigw was started must not be imported. With `python -m aigw` that folder is
    # already trusted, and may be the only place where the package is.
    trusted = bool(sys.path) and sys.path[0] in ("", os.getcwd())
    command = [sys.executable, *([] if trusted else ["-P"]), "-m", *arguments]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def build() -> str:
    """How the data path runs: `compiled`, as C that was made of it (see `setup.py`), or `interpreted`."""
    found = find_spec("aigw.tokens")
    return "interpreted" if found is None or str(found.origin).endswith(".py") else "compiled"


def ignore_signals() -> None:
    """What a worker does first: leave every signal to the supervisor."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def prepare() -> None:
    """Makes this process fit to hold many sockets: the soft limit is raised, and none becomes descriptor 0, 1 or 2."""
    for descriptor in range(3):  # a socket that became descriptor 1 would be sent the access log
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def describe_exit(status: int) -> str:
    """`Popen.returncode` in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def log(text: str) -> None:
    """Writes one line to stderr: time, pid, text. Control bytes become `?`.

    Never blocks: where stderr is a pipe that nobody empties, the line is lost rather than the traffic.
    """
    clean = "".join(c if c.isprintable() else "?" for c in text)
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} aigw[{os.getpid()}] {clean}"
    data = line.encode("utf-8", "replace")[:LINE_BYTES] + b"\n"
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if not any(events & select.POLLOUT for _, events in poll.poll(0)):
        return
    with contextlib.suppress(OSError):  # there is no other place to say it
        os.write(2, data)


def describe_error(error: BaseException) -> str:
    """An exception in one line that is safe to log: its type and where it was raised, without its text.

    The text of an exception may quote what a client or the config sent, a credential among it. Only the system's own
    errors are quoted: `strerror` is a fixed sentence.
    """
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        name += f" ({error.strerror})"
    places = _places(error.__traceback__)
    return f"{name} at {' < '.join(places)}" if places else name


def _places(traceback: TracebackType | None, most: int = 4) -> list[str]:
    """The innermost `most` frames, innermost first, as `file:line function`."""
    places = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        file = "/".join(code.co_filename.split("/")[-3:])
        places.append(f"{file}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return places[: -most - 1 : -1]


class Faults:
    """The exception handler of an event loop: one line per unexpected exception, one a second from the same place.

    Install it with `loop.set_exception_handler(faults)`.
    """

    __slots__ = ("_clock", "_kept_back", "_last", "_log")

    MOST_PLACES = 100

    def __init__(self, log: Callable[[str], None] = log, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._last: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def __call__(self, loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # With an exception the loop's own message names a callback with its arguments: a client's bytes.
        what = str(context.get("message", "unknown"))[:200] if error is None else describe_error(error)
        now = self._clock()
        if now - self._last.get(what, -1.0) < 1.0:
            self._kept_back[what] = self._kept_back.get(what, 0) + 1
            return
        if len(self._last) >= self.MOST_PLACES:
            self._last.clear()
            self._kept_back.clear()
        self._last[what] = now
        more = self._kept_back.pop(what, 0)
        self._log(f"unexpected: {what}" + (f" ({more} more before it)" if more else ""))


def notify(*lines: str) -> None:
    """Tells systemd how the service fares (sd_notify(3)); nothing where it did not ask (Type=notify, notify-reload)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)


def say(lines: Sequence[str]) -> None:
    """Writes lines for the person who started the command to stderr, as they are."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]
