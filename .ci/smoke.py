"""Starts an installed `aigw` with no configuration at all and asks it for a chat completion, plain and streamed.

    python smoke.py PATH_OF_AIGW

It runs in an empty folder with no provider's key in the environment, as on a newcomer's machine.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

START_TIMEOUT = 15.0
STOP_TIMEOUT = 45.0


def ask(address: str, streamed: bool) -> str:
    question = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}], "stream": streamed}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        data=json.dumps(question).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def first_answer(address: str, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            return ask(address, streamed=False)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError) or server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def main() -> None:
    command = str(Path(sys.argv[1]).absolute())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        server = subprocess.Popen([command, "serve", "--listen", address], cwd=folder, env=environment)
        try:
            message = json.loads(first_answer(address, server))["choices"][0]["message"]["content"]
            print(f"first answer after {time.monotonic() - began:.2f} s: {message!r}", flush=True)
            stream = ask(address, streamed=True)
            assert stream.endswith("data: [DONE]\n\n"), stream
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                code = server.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        assert code == 0, f"exit code {code} after SIGTERM"


if __name__ == "__main__":
    main()
