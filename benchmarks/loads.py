"""What is asked of each proxy, and `wrk` asking it.

Heads that repeat are the normal case of a benchmark and a flattering one: whoever remembers whole heads wins. In
practice ids differ from request to request, so one load changes two of its eighteen header lines every time.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from proxies import KEY, MODEL

_QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
PLAIN = json.dumps(_QUESTION)
STREAM = json.dumps({**_QUESTION, "stream": True})
PACED = json.dumps({**_QUESTION, "stream": True, "metadata": {"pace": "2ms"}})

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


LOADS = (
    Load("short", "a head of four lines, the same every time", 50, SHORT_HEAD, PLAIN),
    Load("sdk", "an SDK's head of sixteen lines, the same every time", 50, SDK_HEAD, PLAIN),
    Load("unique", "the same head and two lines more, new in every request", 50, UNIQUE_HEAD, PLAIN, unique=True),
    Load("one", "an SDK's head, one connection", 1, SDK_HEAD, PLAIN),
    Load("stream", "50 events of 250 bytes, as fast as they come", 50, SDK_HEAD, STREAM, streamed=True),
    Load("paced", "50 events of 250 bytes, one every 2 ms", 50, SDK_HEAD, PACED, streamed=True),
)

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
    """What `wrk` saw. Latencies in microseconds; `failed` counts answers over 399 and broken connections."""

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


def drive(load: Load, port: int, core: int, seconds: int, folder: Path) -> Answered:
    """Runs `wrk` with one thread on `core`."""
    path = folder / f"{load.name}.lua"
    path.write_text(script(load, port))
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["taskset", "--cpu-list", str(core), "wrk", "--threads", "1", "--connections", str(load.connections)]
    command += ["--duration", f"{seconds}s", "--timeout", "10s", "--script", str(path), url]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    result = done.stdout.rpartition("\nRESULT ")[2]
    if done.returncode or not result.startswith("{"):
        raise RuntimeError(f"wrk failed on {load.name}: {done.stdout}{done.stderr}")
    return Answered(**json.loads(result))
