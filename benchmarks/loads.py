"""What is asked of each proxy, and `wrk` or `hey` asking it.

Heads that repeat are the normal case of a benchmark and a flattering one: whoever remembers whole heads wins. In
practice ids differ from request to request, so one load changes two of its eighteen header lines every time.
"""

import json
import math
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from proxies import KEY, MODEL

_QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PLAIN = json.dumps(_QUESTION)
STREAM = json.dumps({**_QUESTION, "stream": True})
# `user` is what every gateway passes on, even one that writes the body anew.
PACED = json.dumps({**_QUESTION, "stream": True, "user": "pace"})
HELD = json.dumps({**_QUESTION, "stream": True, "user": "hold"})

SHORT_HEAD = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
SDK_HEAD = {
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "User-Agent": "OpenAI/Python 2.8.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.8.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.2",
    "X-Stainless-Async": "async:asyncio",
    "X-Stainless-Retry-Count": "0",
    **SHORT_HEAD,
}
UNIQUE_HEAD = {
    **SDK_HEAD,
    "Traceparent": "00-4bf92f3577b34da6%016x-%016x-01",
    "X-Request-Id": "01932c5e-7000-4000-8000-%012x",
}


@dataclass(frozen=True, slots=True)
class Load:
    name: str
    about: str
    connections: int
    headers: dict[str, str]
    body: str
    streamed: bool = False
    unique: bool = False  # the %x of the headers take a number that never comes twice
    two: bool = False  # also with two workers
    tool: str = "wrk"


LOADS = (
    Load("short", "a head of four lines, the same every time", 50, SHORT_HEAD, PLAIN),
    Load("hey", "the same, asked by hey", 50, SHORT_HEAD, PLAIN, tool="hey"),
    Load("sdk", "an SDK's head of sixteen lines, the same every time", 50, SDK_HEAD, PLAIN, two=True),
    Load("unique", "the same head and two lines more, new in every request", 50, UNIQUE_HEAD, PLAIN, unique=True),
    Load("one", "an SDK's head, one connection", 1, SDK_HEAD, PLAIN),
    Load("stream", "50 events of 250 bytes, as fast as they come", 50, SDK_HEAD, STREAM, streamed=True, two=True),
    Load("paced", "50 events of 250 bytes, one every 2 ms", 50, SDK_HEAD, PACED, streamed=True),
)

# Asked by hand, and kept open after its first event.
HOLD = Load("hold", "one event of 250 bytes, and then nothing", 1, SDK_HEAD, HELD, streamed=True)

_TOTAL = re.compile(r"Total:\s+([\d.]+) secs")
_PERCENTILE = re.compile(r"(\d+)%+ in ([\d.]+) secs")
_STATUS = re.compile(r"\[(\d{3})\]\s+(\d+) responses")
_ERROR = re.compile(r"\[(\d+)\]")

_DONE = """
done = function(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format('\\nRESULT {"seconds": %f, "requests": %d, "failed": %d, "p50": %f, "p99": %f}\\n',
        summary.duration / 1e6, summary.requests,
        errors.connect + errors.read + errors.write + errors.timeout + errors.status,
        latency:percentile(50), latency:percentile(99)))
end
"""

_SAME = """
wrk.method = "POST"
wrk.body = [==[{body}]==]
{headers}
"""

_UNIQUE = """
local template = "{head}" .. [==[{body}]==]
local number = math.floor(os.time() % 1000000) * 100000000
request = function()
    number = number + 1
    return string.format(template, {numbers})
end
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the load generator saw. Latencies in microseconds; `failed` counts answers that are none of 2xx (of `wrk`:
    over 399) and broken connections."""

    seconds: float
    requests: int
    failed: int
    p50: float
    p99: float


def script(load: Load, port: int) -> str:
    """The load as a Lua script for `wrk`."""
    if not load.unique:
        headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in load.headers.items())
        return _SAME.format(body=load.body, headers=headers) + _DONE
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        f"Content-Length: {len(load.body)}",
        *(f"{name}: {value}" for name, value in load.headers.items()),
    ]
    head = "".join(line + r"\r\n" for line in [*lines, ""])
    numbers = ", ".join(["number"] * head.count("%0"))
    return _UNIQUE.format(head=head, body=load.body, numbers=numbers) + _DONE


def request(load: Load, port: int) -> bytes:
    """One request of the load, as `wrk` would send it."""
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        *(f"{name}: {value}" for name, value in load.headers.items()),
        f"Content-Length: {len(load.body)}",
    ]
    head = "\r\n".join(lines)
    if load.unique:
        head %= (0,) * head.count("%0")
    return f"{head}\r\n\r\n{load.body}".encode()


def drive(load: Load, port: int, core: int, seconds: int, connections: int, folder: Path) -> Answered:
    """Asks for so many seconds on so many connections, on one thread, on `core`.

    Raises RuntimeError with what the load generator said, where that is no result.
    """
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    if load.tool == "hey":
        headers = [word for name, value in load.headers.items() for word in ("-H", f"{name}: {value}")]
        command = ["hey", "-z", f"{seconds}s", "-c", str(connections), "-t", "60", "-m", "POST", *headers]
        return _hey(_run([*command, "-T", load.headers["Content-Type"], "-d", load.body, url], core))
    path = folder / f"{load.name}.lua"
    path.write_text(script(load, port))
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    said = _run([*command, "--timeout", "60s", "--script", str(path), url], core)
    result = said.rpartition("\nRESULT ")[2]
    if not result.startswith("{"):
        raise RuntimeError(f"wrk gave no result on {load.name}: {said}")
    return Answered(**json.loads(result))


def _run(command: list[str], core: int) -> str:
    pinned = ["taskset", "--cpu-list", str(core), *command]
    done = subprocess.run(pinned, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def _hey(said: str) -> Answered:
    """hey's summary; it gives latencies in tenths of a millisecond."""
    answers, _, errors = said.partition("\nError distribution:")
    statuses = [(int(code), int(count)) for code, count in _STATUS.findall(answers)]
    requests = sum(count for _, count in statuses)
    failed = sum(count for code, count in statuses if code // 100 != 2) + sum(map(int, _ERROR.findall(errors)))
    total, percentiles = _TOTAL.search(said), {int(part): float(at) * 1e6 for part, at in _PERCENTILE.findall(said)}
    if total is None or not requests:
        raise RuntimeError(f"hey gave no result: {said}")
    return Answered(float(total[1]), requests, failed, percentiles.get(50, math.nan), percentiles.get(99, math.nan))
