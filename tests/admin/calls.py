"""What the tests of the admin API share: a running gateway with its admin API, and calls of that, byte by byte."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import PATIENCE, Serve

JSON = "application/json"
YAML = "application/yaml"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])

    @property
    def etag(self) -> str:
        return self.headers["etag"]


class Caller:
    """Calls of one admin API. `body` is JSON-able, or text or bytes as they are; then `kind` is their type."""

    def __init__(self, port: int, token: str | None = None, trust: ssl.SSLContext | None = None) -> None:
        self.port = port
        self.trust = trust  # it speaks TLS then
        self.token = token
        self.seen = b""  # all that was ever answered

    def __call__(self, method: str, path: str, body: Any = None, kind: str | None = JSON, **headers: str) -> Answer:
        """`headers` with _ for -. Paths begin behind /api/v1, or with // outside of it."""
        data = body if isinstance(body, str | bytes) or body is None else json.dumps(body)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None and kind is not None:
            sent["content-type"] = kind
        if self.token is not None:
            sent.setdefault("authorization", f"Bearer {self.token}")
        connection = self._connection()
        try:
            target = path[1:] if path.startswith("//") else f"/api/v1{path}"
            connection.request(method, target, data.encode() if isinstance(data, str) else data, sent)
            with connection.getresponse() as response:
                answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()
        self.seen += b"\n".join([*(f"{k}: {v}".encode() for k, v in answer.headers.items()), answer.body])
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if self.trust is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE, context=self.trust)

    def raw(self, data: bytes) -> bytes:
        """What comes for these bytes, until the admin API closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE) as sock:
            sock.sendall(data)
            found = b""
            while piece := sock.recv(65536):
                found += piece
        return found


class AdminServe(Serve):
    """`aigw serve` with its admin API at a port of its own; `call` calls it. Where coverage follows, it is only to the
    supervisor, which has the API: each change starts a child, and the children are tested in tests/config."""

    program = (
        "-c",
        "import os, sys; os.environ.pop('COVERAGE_PROCESS_START', 0); os.environ.pop('COVERAGE_PROCESS_CONFIG', 0);"
        "from aigw import cli; sys.exit(cli.main())",
    )

    def __init__(
        self,
        folder: Path,
        config: str | None,
        *,
        token: str | None = None,
        environ: dict[str, str] | None = None,
        trust: ssl.SSLContext | None = None,
        arguments: Sequence[str] = ("--listen", "127.0.0.1:0"),
    ) -> None:
        super().__init__(folder, config, environ, arguments)
        try:
            self.call = Caller(int(self.err.find(r"admin API +https?://127\.0\.0\.1:(\d+)/api/v1")[1]), token, trust)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> AdminServe:
        return self

    @property
    def file(self) -> Path:
        return self.folder / "config.yaml"

    def ask(self, model: str = "gpt-4o", key: str | None = None, path: str = "/v1/chat/completions") -> int:
        """The status of a chat completion through the proxy, on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        headers = {"content-type": JSON} | ({} if key is None else {"authorization": f"Bearer {key}"})
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
        try:
            connection.request("POST", path, body, headers)
            with connection.getresponse() as response:
                response.read()
                return response.status
        finally:
            connection.close()
