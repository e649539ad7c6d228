"""What the gateway answers by itself: probes, the list of models, and its errors in the client's dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from aigw.admit import is_probe, listed, unlisted
from aigw.errors import Failure
from aigw.providers import DIALECTS, openai

if TYPE_CHECKING:
    from aigw.admit import Admission
    from aigw.config.snapshot import GatewaySpec, Key
    from aigw.proxy.exchange import Exchange

_READY: Final = frozenset({b"/__/readyz", b"/readyz"})
_OK: Final = b'{"status":"ok"}'
_DRAINING: Final = b'{"status":"draining"}'


def probe(exchange: Exchange) -> bool:
    """Answer a probe; False where the path is a rule's business. Probes are not logged."""
    head = exchange.admission.head
    if not is_probe(exchange.snapshot, head):
        return False
    ready = not (exchange.gateway.draining and head.line.path in _READY)
    exchange.answer(200 if ready else 503, _OK if ready else _DRAINING, [], end="")
    return True


def models(exchange: Exchange) -> Failure | None:
    """Answer GET /v1/models and /v1/models/ID for what the key may use; what is not there is a failure.

    One object that OpenAI's, Anthropic's and Gemini's SDKs all read: each finds its own members.
    """
    found = exchange.admission.found
    key = exchange.admission.key
    name = listed(found)
    if name:
        failure = unlisted(found, key)
        if failure is None:
            exchange.answer(200, orjson.dumps(_described(name)), [])
        return failure
    names = usable(found.gateway, key)
    data = [_described(name) for name in names]
    body = {
        "object": "list",
        "data": data,
        "has_more": False,
        "first_id": names[0] if names else None,
        "last_id": names[-1] if names else None,
        "models": [{"name": model["name"], "displayName": model["id"]} for model in data],
    }
    exchange.answer(200, orjson.dumps(body), [])
    return None


def usable(gateway: GatewaySpec, key: Key | None) -> list[str]:
    """Names to show: exact models and what globs list, in the order of the config, where the key allows them."""
    names = [name for model in gateway.models if not model.hidden for name in model.listed]
    return [name for name in dict.fromkeys(names) if key is None or key.allows(name)]


def _described(name: str) -> dict[str, object]:
    # When a provider made a model is not known here; a time is needed all the same, since SDKs parse it.
    return {
        "id": name,
        "object": "model",
        "type": "model",
        "display_name": name,
        "created": 0,
        "created_at": "1970-01-01T00:00:00Z",
        "owned_by": "aigw",
        "name": f"models/{name}",
    }


def error(failure: Failure, dialect: str, request_id: bytes) -> tuple[bytes, list[bytes]]:
    """Body and header lines of an error, in the client's dialect; `""` where nothing of it is known yet."""
    body = DIALECTS[dialect or openai.NAME].error_body(failure, request_id.decode())
    lines = [b"x-aigw-error: " + failure.kind.code.encode(), *failure.lines]
    if dialect == "anthropic":
        lines.append(b"request-id: " + request_id)  # where Anthropic's SDK looks for it
    if failure.kind.status == 503 and not failure.lines:
        lines.append(b"retry-after: 1")  # what is full or going down is so for moments
    if failure.allow is not None:
        lines.append(b"allow: " + failure.allow.encode())
    return body, lines


def error_event(failure: Failure, admission: Admission, request_id: bytes) -> bytes:
    """The event that ends a stream which is cut, in the client's dialect."""
    dialect = DIALECTS[admission.dialect or openai.NAME]
    return dialect.error_event(failure, request_id.decode(), admission.found.path)
