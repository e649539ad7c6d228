"""What a path asks for: which dialect's API it belongs to, where the model is named, and may it be sent twice.

One table for all dialects, read once per path (callers remember the answer). A path that is in no table still has an
answer: providers add endpoints faster than gateways learn of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import quote_from_bytes, unquote_to_bytes

Source = Literal["body", "path", "form", "none"]
EndpointKind = Literal["inference", "resource", "models", "unknown"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path, understood.

    `dialect` is "" where several dialects share the path. `source` says where the model is named; for "path", `model`
    is its decoded name and path[span[0]:span[1]] its bytes. `replay`: an inference POST that may be sent once more if
    a reused connection died before a single response byte (`stateless`: only if the body asks for no stored state).
    `streams_usage`: its streams report the usage only where `stream_options` ask for it.
    """

    dialect: str
    kind: EndpointKind
    source: Source
    replay: bool = False
    stateless: bool = False
    streams_usage: bool = False
    model: str | None = None
    span: tuple[int, int] = (0, 0)


_BODY = Endpoint("openai", "inference", "body", replay=True)
_COMPLETIONS = Endpoint("openai", "inference", "body", replay=True, streams_usage=True)
_BODY_ONCE = Endpoint("openai", "inference", "body")
_FORM = Endpoint("openai", "inference", "form")
_MESSAGES = Endpoint("anthropic", "inference", "body", replay=True)
_MODELS = Endpoint("", "models", "none")
_GEMINI_MODELS = Endpoint("gemini", "models", "none")
_RESOURCE = Endpoint("", "resource", "none")
_OPENAI_RESOURCE = Endpoint("openai", "resource", "none")
_ANTHROPIC_RESOURCE = Endpoint("anthropic", "resource", "none")
_GEMINI_RESOURCE = Endpoint("gemini", "resource", "none")
# A POST to a path nobody told us of: its body may name a model, and if so it is routed by it.
_UNKNOWN_POST = Endpoint("", "unknown", "body")
UNKNOWN: Final = Endpoint("", "unknown", "none")

# POST, behind /v1. OpenAI API reference; rerank as Jina, Cohere and vLLM have it; fim and ocr are Mistral's.
_POST: Final[dict[bytes, Endpoint]] = {
    b"chat/completions": _COMPLETIONS,
    b"completions": _COMPLETIONS,
    b"embeddings": _BODY,
    b"moderations": _BODY,
    b"rerank": _BODY,
    b"fim/completions": _BODY,
    b"ocr": _BODY_ONCE,
    b"responses": Endpoint("openai", "inference", "body", replay=True, stateless=True),
    b"responses/input_tokens": _BODY,
    b"images/generations": _BODY_ONCE,
    b"audio/speech": _BODY_ONCE,
    b"audio/transcriptions": _FORM,
    b"audio/translations": _FORM,
    b"images/edits": _FORM,
    b"images/variations": _FORM,
    b"messages": _MESSAGES,
    b"messages/count_tokens": _MESSAGES,
    b"complete": _MESSAGES,
}
# First segments, behind /v1, that never carry a model; "" where OpenAI's and Anthropic's APIs share the name.
_RESOURCES: Final[dict[bytes, Endpoint]] = {
    **dict.fromkeys(
        (
            b"uploads",
            b"batches",
            b"vector_stores",
            b"fine_tuning",
            b"assistants",
            b"threads",
            b"responses",
            b"conversations",
            b"containers",
            b"evals",
            b"chat",
            b"organization",
        ),
        _OPENAI_RESOURCE,
    ),
    b"messages": _ANTHROPIC_RESOURCE,
    b"files": _RESOURCE,
    b"models": _RESOURCE,
}
_VERSION = re.compile(rb"/(v1|v1beta|v1alpha|v1beta1|v2)(?=/|$)")
_GEMINI = re.compile(rb"(?:tuned)?[mM]odels/([^/]+):([A-Za-z]+)")
_DEPLOYMENT = re.compile(rb"/openai/deployments/([^/]+)/(.+)")
_GEMINI_REPLAY: Final = frozenset({b"generateContent", b"streamGenerateContent", b"embedContent", b"countTokens"})


def classify(method: str, path: bytes) -> Endpoint:
    """The endpoint of a path as an SDK sends it (a rule's prefix stripped already)."""
    found = _DEPLOYMENT.fullmatch(path)
    if found:
        inner = _POST.get(found[2])
        replay = inner is not None and inner.replay
        return _in_path("openai", path, found.span(1), replay=replay and method == "POST")
    start = 7 if path.startswith(b"/openai/v1/") else 0
    version = _VERSION.match(path, start)
    if version is None:
        return UNKNOWN
    rest = path[version.end() + 1 :]
    if method == "POST":
        endpoint = _POST.get(rest)
        if endpoint is not None:
            return endpoint
        action = _GEMINI.fullmatch(rest)
        if action:
            offset = version.end() + 1
            replay = action[2] in _GEMINI_REPLAY or action[2] == b"batchEmbedContents"
            return _in_path("gemini", path, (action.start(1) + offset, action.end(1) + offset), replay=replay)
    elif method in ("GET", "HEAD") and (rest == b"models" or rest.startswith(b"models/")):
        return _MODELS if version[1] == b"v1" else _GEMINI_MODELS
    if version[1] not in (b"v1", b"v2"):
        return _GEMINI_RESOURCE
    resource = _RESOURCES.get(rest.partition(b"/")[0])
    if resource is not None:
        return resource
    if version[1] == b"v1" and _VERSION.match(b"/" + rest):
        return UNKNOWN  # /v1/v1/...: a base URL with one /v1 too many
    return _UNKNOWN_POST if method == "POST" else _RESOURCE


def base_url_hint(path: bytes) -> str:
    """What to tell a client whose path looks like an SDK's with a wrong base URL; "" where it does not."""
    version = _VERSION.match(path)
    if version is None:
        behind = b"/v1" + path
        if classify("POST", behind).kind != "inference" and classify("GET", behind).kind != "models":
            return ""
        return (
            "the path lacks its version prefix: OpenAI's SDKs take a base_url that ends in /v1 (http://HOST:PORT/v1), "
            "Anthropic's and Google's add it themselves (http://HOST:PORT)"
        )
    if _VERSION.match(path, version.end()):
        return (
            "the path has one version prefix too many: OpenAI's SDKs take a base_url that ends in one /v1 "
            "(http://HOST:PORT/v1), Anthropic's and Google's one without (http://HOST:PORT)"
        )
    return ""


def without_version(path: bytes) -> bytes:
    """The path without a leading /v1 or /v1beta (or Azure's /openai/v1), as it is appended to a url that has a path."""
    if path.startswith(b"/openai/v1/"):
        path = path[7:]
    version = _VERSION.match(path)
    return path[version.end() :] if version and version[1] in (b"v1", b"v1beta") else path


def replace_model(path: bytes, span: tuple[int, int], model: str) -> bytes:
    """The path with another model in its segment; the name is percent-encoded where a path segment needs it."""
    return path[: span[0]] + quote_from_bytes(model.encode(), safe="!$&'()*+,;=:@-._~").encode() + path[span[1] :]


def _in_path(dialect: str, path: bytes, span: tuple[int, int], *, replay: bool) -> Endpoint:
    name = unquote_to_bytes(path[span[0] : span[1]]).decode("utf-8", "replace")
    return Endpoint(dialect, "inference", "path", replay=replay, model=name, span=span)
