"""One gateway for all tests with the official SDKs, in front of a mock provider that keeps what it received.

The SDKs are used as they come: only the base URL and the key are set, and what a test is about.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator

import pytest
from fakes import Seen, ok
from processes import Serve, Upstream, clean_environment

KEY = "sk-aigw-for-the-sdks"
NARROW_KEY = "sk-aigw-for-one-model-only"

CONFIG = """\
upstreams:
  openai: {{provider: openai, api_key: openai-credential, targets: [{{url: "{mock}/v1"}}]}}
  azure: {{provider: azure, api_key: azure-credential, targets: [{{url: "{mock}"}}]}}
  anthropic: {{provider: anthropic, api_key: anthropic-credential, targets: [{{url: "{mock}"}}]}}
  gemini: {{provider: gemini, api_key: gemini-credential, targets: [{{url: "{mock}"}}]}}
  busy: {{provider: openai, dialects: [openai, anthropic], targets: [{{url: "{busy}"}}]}}
gateways:
  default:
    keys:
      sdk: {{sha256: "{key}"}}
      narrow: {{sha256: "{narrow}", models: [gpt-4o, claude-haiku-4-5]}}
    models:
      gpt-4o: openai
      fast: {{upstream: openai, model: gpt-4o-mini}}
      text-embedding-3-small: openai
      whisper: {{upstream: openai, model: whisper-1}}
      on-azure: {{upstream: azure, model: my-deployment}}
      "claude-*": {{upstream: anthropic, list: [claude-haiku-4-5, claude-opus-4-5]}}
      "gemini-*": {{upstream: gemini, list: [gemini-2.5-flash]}}
      busy: {{upstream: busy, hidden: true}}
"""
LISTED = [
    "gpt-4o",
    "fast",
    "text-embedding-3-small",
    "whisper",
    "on-azure",
    "claude-haiku-4-5",
    "claude-opus-4-5",
    "gemini-2.5-flash",
]

_CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "busy",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "At last."}, "finish_reason": "stop"}],
}
_MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "busy",
    "content": [{"type": "text", "text": "At last."}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with clean_environment():
        yield


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The mock provider, as every dialect's upstream."""
    with Upstream() as mock:
        yield mock


@pytest.fixture(scope="session")
def busy() -> Iterator[Upstream]:
    """An upstream that has time for a request only when it comes again a second later."""
    known: set[str] = set()

    def answer(seen: Seen) -> bytes:
        request_id = seen.headers["x-request-id"]
        if request_id in known:
            return ok(json.dumps(_MESSAGE if b"/messages" in seen.line else _CHAT).encode())
        known.add(request_id)
        return ok(b'{"error": {"message": "later"}}', b"retry-after: 1", status=b"429 Too Many Requests")

    with Upstream(answer) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream, busy: Upstream) -> Iterator[Serve]:
    config = CONFIG.format(mock=upstream.url, busy=busy.url, key=_digest(KEY), narrow=_digest(NARROW_KEY))
    with Serve(tmp_path_factory.mktemp("gateway"), config) as serve:
        yield serve
        assert serve.stop() == 0
    told = serve.err.data.decode()
    assert "unexpected" not in told, told


@pytest.fixture(scope="session")
def key() -> str:
    return KEY


@pytest.fixture(scope="session")
def narrow_key() -> str:
    """For one model of each SDK's."""
    return NARROW_KEY


@pytest.fixture(scope="session")
def listed() -> list[str]:
    """The models that the config shows, in its order."""
    return LISTED


_numbers = itertools.count(1)


@pytest.fixture
def request_id() -> str:
    """To find a request again, at the upstream and in the log, where its answer never came."""
    return f"test-{next(_numbers)}"
