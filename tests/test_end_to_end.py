"""The whole of it, as somebody uses it who has just installed it: commands, `curl`, signals and the access log."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fakes import Seen, ok
from processes import PATIENCE, Command, Serve, Upstream, environment

CHAT = "/v1/chat/completions"
ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
SAID = "The mock provider answers with the same text every time, so tests may rely on it."

# What a record of the access log may hold; what is unknown is absent.
FIELDS = {
    *("time", "request_id", "client", "gateway", "rule", "method", "path", "key", "model", "model_used", "upstream"),
    *("target", "status", "end", "fault", "error", "limit", "attempts", "bytes_in", "bytes_out", "tokens", "cost"),
    *("first_token_ms", "duration_ms", "overhead_ms", "generation", "upstream_request_id"),
}


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """`aigw serve` where there is no config, and nothing in the environment."""
    with Serve(tmp_path_factory.mktemp("serve")) as serve:
        yield serve
        assert serve.stop() == 0


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Serve]:
    """The same, for tests that end it."""
    with Serve(tmp_path) as serve:
        yield serve


def curl(url: str, *headers: str, body: Any = None) -> tuple[int, str]:
    """Status and body, as the command of that name gets them; without it, as another client does."""
    text = None if body is None else json.dumps(body)
    if shutil.which("curl"):
        words = ["curl", "-sN", "-w", "\n%{http_code}", url]
        for header in headers:
            words += ["-H", header]
        words += [] if text is None else ["-d", text]
        done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=True)
        answer, _, status = done.stdout.rpartition("\n")
        return int(status), answer
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    connection.request("GET" if text is None else "POST", f"/{path}", text, dict(h.split(": ") for h in headers))
    with connection.getresponse() as response:
        answer = response.read().decode()
    connection.close()
    return response.status, answer


class Streaming:
    """A raw client with a streamed chat under way."""

    def __init__(self, serve: Serve, mock: str, request_id: str) -> None:
        body = json.dumps(ASK | {"stream": True})
        self.raw = b""
        self.socket = socket.create_connection(("127.0.0.1", serve.port), timeout=PATIENCE)
        self.socket.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: gw\r\ncontent-type: application/json\r\nx-mock: {mock}\r\n"
            f"x-request-id: {request_id}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()
        )

    def read(self, mark: bytes) -> None:
        """Until `mark` came."""
        while mark not in self.raw:
            data = self.socket.recv(65536)
            assert data, f"it ended before {mark!r} came: {self.raw!r}"
            self.raw += data

    def end(self) -> bytes:
        """All that came until the connection ended, by FIN or by RST."""
        try:
            while data := self.socket.recv(65536):
                self.raw += data
        except ConnectionResetError:
            pass
        return self.raw

    def __enter__(self) -> Streaming:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def wait_until_refused(port: int) -> None:
    """Until the listener is closed: the gateway drains."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it was closed just then
    raise AssertionError("it still listens")


# the first minute -----------------------------------------------------------------------------------------------------


def test_the_first_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    since = time.monotonic()
    with Serve(tmp_path) as serve:
        connection = http.client.HTTPConnection("127.0.0.1", serve.port, timeout=PATIENCE)
        connection.request("POST", CHAT, json.dumps(ASK), {"content-type": "application/json"})
        with connection.getresponse() as response:
            answer = json.load(response)
        seconds = time.monotonic() - since
        connection.close()
    assert answer["choices"][0]["message"]["content"] == SAID
    with capsys.disabled():
        print(f"\nthe first answer came {seconds:.2f} s after the command (target: 0.60 s)")


def test_a_chat(serve: Serve) -> None:
    status, text = curl(serve.url + CHAT, "content-type: application/json", body=ASK)
    answer = json.loads(text)
    assert status == 200
    assert answer["choices"][0]["message"] | {"content": SAID} == answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens"] == 16


def test_a_streamed_chat(serve: Serve) -> None:
    headers = ("content-type: application/json", "x-request-id: streamed")
    status, text = curl(serve.url + CHAT, *headers, body=ASK | {"stream": True})
    *events, last, nothing = text.split("\n\n")
    assert (status, last, nothing) == (200, "data: [DONE]", "")
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == SAID
    record = serve.record("streamed")
    assert 0 < record["overhead_ms"] < record["first_token_ms"] <= record["duration_ms"]


def test_the_other_dialects(serve: Serve) -> None:
    status, text = curl(
        serve.url + "/v1/messages",
        "content-type: application/json",
        "anthropic-version: 2023-06-01",
        body=ASK | {"max_tokens": 100},
    )
    assert (status, json.loads(text)["content"][0]["text"]) == (200, SAID)
    status, text = curl(
        serve.url + "/v1beta/models/gemini-2.5-flash:generateContent",
        "content-type: application/json",
        body={"contents": [{"parts": [{"text": "Hi"}]}]},
    )
    assert (status, json.loads(text)["candidates"][0]["content"]["parts"][0]["text"]) == (200, SAID)


def test_probes(serve: Serve) -> None:
    for path in ("/__/ping", "/healthz", "/readyz"):
        assert curl(serve.url + path)[0] == 200


def test_a_body_in_a_form_s_clothes(serve: Serve) -> None:
    """`curl -d` without a content-type says that it sends a form."""
    assert curl(serve.url + CHAT, body=ASK)[0] == 200


def test_a_mistake_is_explained(serve: Serve) -> None:
    status, text = curl(serve.url + "/chat/completions", "content-type: application/json", body=ASK)
    assert status == 404
    assert "base_url that ends in /v1" in json.loads(text)["error"]["message"]
    status, text = curl(serve.url + CHAT, "content-type: application/json", body={"messages": []})
    assert status == 400
    assert "add `model`" in json.loads(text)["error"]["message"]


def test_from_a_new_key_to_another_process(tmp_path: Path) -> None:
    """`aigw key`, its line pasted into a config, `aigw check`, and `aigw mock` as the provider."""
    (tmp_path / "key").mkdir()
    with Command("key", "demo", folder=tmp_path / "key") as made:
        assert made.end() == 0
    key, line = made.out.lines
    with Command("mock", "--listen", "127.0.0.1:0", "--tokens", "3", folder=tmp_path) as mock:
        address = mock.err.find(r"listens on (\S+)")[1]
        config = (
            f'upstreams: {{local: {{provider: openai, targets: [{{url: "http://{address}/v1"}}]}}}}\n'
            f"gateways:\n  default:\n    models: {{gpt-4o: local}}\n    keys:\n      {line}\n"
        )
        with Serve(tmp_path, config) as serve:
            with Command("check", "config.yaml", folder=tmp_path) as check:
                assert check.end() == 0
            asked = (serve.url + CHAT, "content-type: application/json")
            assert curl(*asked, body=ASK)[0] == 401
            assert curl(*asked, f"authorization: Bearer {key[:-1]}", body=ASK)[0] == 401
            status, text = curl(*asked, f"authorization: Bearer {key}", body=ASK)
            assert (status, json.loads(text)["choices"][0]["message"]["content"]) == (200, "The mock provider")
            assert serve.stop() == 0
        assert [(record["status"], record.get("key")) for record in serve.records] == [
            (401, None),
            (401, None),
            (200, "demo"),
        ]
        assert mock.stop() == 0


# the access log -------------------------------------------------------------------------------------------------------


def test_a_record_has_its_fields(serve: Serve) -> None:
    request_id = "log-good"
    before = datetime.now(UTC) - timedelta(seconds=1)
    headers = ("content-type: application/json", f"x-request-id: {request_id}")
    _, text = curl(serve.url + CHAT + "?secret=in-the-query", *headers, body=ASK)
    record = serve.record(request_id)
    assert set(record) <= FIELDS
    assert before <= datetime.fromisoformat(record["time"]) <= datetime.now(UTC)
    exactly = {
        "client": "127.0.0.1",
        "gateway": "default",
        "rule": "api",
        "method": "POST",
        "path": CHAT,
        "model": "gpt-4o",
        "model_used": "gpt-4o",
        "upstream": "mock",
        "target": "mock",
        "status": 200,
        "end": "ok",
        "fault": "none",
        "bytes_in": len(json.dumps(ASK)),
        "bytes_out": len(text),
        "generation": 1,
    }
    assert record | exactly == record
    assert 0 <= record["overhead_ms"] <= record["duration_ms"]
    assert record["upstream_request_id"].startswith("req_mock_")


def test_a_record_of_an_error(serve: Serve) -> None:
    request_id = "log-bad"
    curl(serve.url + "/nothing", f"x-request-id: {request_id}")
    record = serve.record(request_id)
    assert set(record) <= FIELDS
    assert (record["status"], record["end"], record["fault"], record["error"]) == (404, "refused", "client", "no_rule")
    assert not {"model", "upstream", "target"} & set(record)


def test_every_line_is_json_whatever_clients_send(serve: Serve) -> None:
    model = 'a"b\\\n\x1b[31m\x7f\u009b\u2028\u202e" ,"end":"ok'
    curl(serve.url + CHAT, "content-type: application/json", "x-request-id: log-odd", body=ASK | {"model": model})
    assert serve.record("log-odd")["model"] == model
    curl(serve.url + '/%0a"%1b\\x', "x-request-id: log-path")
    assert serve.record("log-path")["path"] == '/%0a"%1b\\x'
    raw = serve.out.data
    assert all(isinstance(json.loads(line), dict) for line in raw.splitlines())
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]|\xc2[\x80-\x9f]", raw)


def test_no_prompt_is_in_the_log(serve: Serve) -> None:
    asked = {"model": "gpt-4o", "messages": [{"role": "user", "content": "the-prompt-itself"}]}
    curl(serve.url + CHAT, "content-type: application/json", "x-request-id: log-prompt", body=asked)
    assert serve.record("log-prompt")["status"] == 200
    assert b"the-prompt-itself" not in serve.out.data + serve.err.data
    assert SAID.encode() not in serve.out.data + serve.err.data


# the end --------------------------------------------------------------------------------------------------------------


def test_a_signal_lets_a_stream_finish(own: Serve) -> None:
    with Streaming(own, "tokens=8, rate=20", "drained") as stream:
        stream.read(b'"The"')
        own.signal(signal.SIGTERM)
        own.err.find("SIGTERM: finishing what runs")
        assert b"[DONE]" not in stream.raw
        assert stream.end().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert own.end() == 0
    assert own.record("drained")["end"] == "ok"


def test_an_answer_that_begins_after_the_signal_says_that_it_is_the_last(tmp_path: Path) -> None:
    release = threading.Event()

    def answer(seen: Seen) -> bytes:
        assert release.wait(PATIENCE)
        return ok()

    with Upstream(answer) as upstream:
        config = (
            f'upstreams: {{slow: {{provider: openai, targets: [{{url: "{upstream.url}"}}]}}}}\n'
            "gateways: {default: {auth: none, models: {gpt-4o: slow}}}\n"
        )
        with Serve(tmp_path, config) as serve, Streaming(serve, "", "late") as client:
            upstream.wire("late")
            serve.signal(signal.SIGTERM)
            wait_until_refused(serve.port)
            release.set()
            head, _, body = client.end().partition(b"\r\n\r\n")
            assert b"\r\nconnection: close" in head
            assert body == b'{"ok": true}'
            assert serve.end() == 0


def cut(serve: Serve, number: signal.Signals) -> dict[str, Any]:
    """The record of a stream that was under way when the same signal came twice."""
    with Streaming(serve, "stall", "cut") as stream:
        stream.read(b'"The"')
        serve.signal(number)
        serve.err.find(f"{number.name}: finishing what runs")
        serve.signal(number)
        raw = stream.end()
    assert b"[DONE]" not in raw
    assert not raw.endswith(b"0\r\n\r\n")
    assert serve.end() == 1  # something was cut
    return serve.record("cut")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_cuts_it_visibly(own: Serve, number: signal.Signals) -> None:
    record = cut(own, number)
    assert (record["status"], record["fault"]) == (200, "gateway")


def test_a_cut_stream_is_not_recorded_as_refused(own: Serve) -> None:
    """Half of it was delivered: that is something else than a request that was turned away."""
    assert cut(own, signal.SIGTERM)["end"] == "cut"


def test_nothing_is_left_behind(own: Serve) -> None:
    assert curl(own.url + CHAT, "content-type: application/json", body=ASK)[0] == 200
    pids = own.processes()
    assert len(pids) == 2
    assert own.stop() == 0
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert list(own.folder.iterdir()) == []
