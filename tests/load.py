"""Clients that ask all the time while something happens to the gateway, and notice everything that fails."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fakes import Answer, Client, connect, post, until

PAUSE = 0.05  # seconds of each client between two requests: all together ask for less than a core
PATH = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
REQUEST = post(PATH, json.dumps(ASK).encode())
LINES = (b"x-mock: tokens=1",)


class Load:
    """`failed` says what went wrong, `answered` counts what did not; `closes` are connections that were closed while
    they were idle, `announced` those whose last answer said so."""

    def __init__(self, port: int, trust: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.trust = trust  # it speaks TLS then
        self.answered = 0
        self.announced = 0
        self.failed: list[str] = []
        self.ended = 0
        self.body = json.dumps(ASK).encode()
        self._running = True

    async def ask(self, number: int) -> None:
        """One keep-alive client."""
        client: Client | None = None
        while self._running:
            try:
                client = client or await connect("127.0.0.1", self.port, trust=self.trust)
                answer = await client.ask(post(PATH, self.body, *LINES))
            except (OSError, EOFError, TimeoutError) as error:
                self.failed.append(f"client {number}: {error!r}")
                if client is not None:
                    await client.close()
                client = None
                await asyncio.sleep(PAUSE)
                continue
            self._judge(answer)
            if answer.headers.get("connection") == "close":
                self.announced += 1
                await client.close()
                client = None
            await asyncio.sleep(PAUSE)
        if client is not None:
            await client.close()

    def _judge(self, answer: Answer) -> None:
        if answer.status == 200:
            self.answered += 1
        else:
            self.failed.append(f"{answer.status} {answer.body!r}")

    async def stream(self, seconds: float) -> None:
        """One stream that takes so long, to its end."""
        client = await connect("127.0.0.1", self.port, trust=self.trust)
        words = b"x-mock: tokens=%d, rate=20" % (20 * seconds)
        await client.send(post(PATH, json.dumps(ASK | {"stream": True}).encode(), words))
        try:
            async with asyncio.timeout(60 + seconds):
                raw = await client.reader.readuntil(b"\r\n0\r\n\r\n")
        except (OSError, EOFError, TimeoutError) as error:
            self.failed.append(f"stream: {error!r}")
        else:
            if not raw.startswith(b"HTTP/1.1 200") or b"data: [DONE]\n\n" not in raw:
                self.failed.append(f"stream: {raw[:20]!r}...{raw[-80:]!r}")
            self.ended += 1
        await client.close()

    def stop(self) -> None:
        self._running = False


@asynccontextmanager
async def load(
    port: int, clients: int, streams: int = 0, seconds: float = 0.0, trust: ssl.SSLContext | None = None
) -> AsyncIterator[Load]:
    """That many clients at work, which have all been answered once; at the end all are let finish."""
    run = Load(port, trust)
    tasks = [asyncio.create_task(run.ask(number)) for number in range(clients)]
    flows = [asyncio.create_task(run.stream(seconds)) for _ in range(streams)]
    try:
        await until(lambda: run.answered >= clients or run.failed, "every client answered")
        yield run
        await asyncio.gather(*flows)
    finally:
        run.stop()
        await asyncio.gather(*tasks, *flows, return_exceptions=True)
