"""What a path asks for, in every dialect."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aigw.providers.endpoints import UNKNOWN, Endpoint, base_url_hint, classify, replace_model, without_version

BODY = Endpoint("openai", "inference", "body", replay=True)
COMPLETIONS = Endpoint("openai", "inference", "body", replay=True, streams_usage=True)
ONCE = Endpoint("openai", "inference", "body")
FORM = Endpoint("openai", "inference", "form")
MESSAGES = Endpoint("anthropic", "inference", "body", replay=True)
RESOURCE = Endpoint("", "resource", "none")
OPENAI = Endpoint("openai", "resource", "none")
ANTHROPIC = Endpoint("anthropic", "resource", "none")
GEMINI = Endpoint("gemini", "resource", "none")
MODELS = Endpoint("", "models", "none")
UNKNOWN_POST = Endpoint("", "unknown", "body")


@pytest.mark.parametrize(
    ("method", "path", "endpoint"),
    [
        # inference: what SDKs of all providers post
        ("POST", b"/v1/chat/completions", COMPLETIONS),
        ("POST", b"/openai/v1/chat/completions", COMPLETIONS),
        ("POST", b"/v1/completions", COMPLETIONS),
        ("POST", b"/v1/embeddings", BODY),
        ("POST", b"/v1/moderations", BODY),
        ("POST", b"/v1/rerank", BODY),
        ("POST", b"/v2/rerank", BODY),
        ("POST", b"/v1/fim/completions", BODY),
        ("POST", b"/v1/responses/input_tokens", BODY),
        ("POST", b"/v1/responses", Endpoint("openai", "inference", "body", replay=True, stateless=True)),
        ("POST", b"/v1/ocr", ONCE),
        ("POST", b"/v1/images/generations", ONCE),
        ("POST", b"/v1/audio/speech", ONCE),
        ("POST", b"/v1/audio/transcriptions", FORM),
        ("POST", b"/v1/audio/translations", FORM),
        ("POST", b"/v1/images/edits", FORM),
        ("POST", b"/v1/images/variations", FORM),
        ("POST", b"/v1/messages", MESSAGES),
        ("POST", b"/v1/messages/count_tokens", MESSAGES),
        ("POST", b"/v1/complete", MESSAGES),
        # what carries no model
        ("GET", b"/v1/chat/completions/chatcmpl-1", OPENAI),
        ("GET", b"/v1/responses/resp_1", OPENAI),
        ("POST", b"/v1/responses/resp_1/cancel", OPENAI),
        ("DELETE", b"/v1/responses/resp_1", OPENAI),
        ("POST", b"/v1/batches", OPENAI),
        ("POST", b"/v1/uploads/up_1/parts", OPENAI),
        ("GET", b"/v1/vector_stores", OPENAI),
        ("POST", b"/v1/fine_tuning/jobs", OPENAI),
        ("POST", b"/v1/messages/batches", ANTHROPIC),
        ("GET", b"/v1/messages/batches/b_1", ANTHROPIC),
        ("POST", b"/v1/files", RESOURCE),
        ("GET", b"/v1/files/f_1/content", RESOURCE),
        ("DELETE", b"/v1/models/ft-1", RESOURCE),
        ("GET", b"/v1/newest", RESOURCE),
        ("GET", b"/v1beta/cachedContents", GEMINI),
        ("POST", b"/v1beta/files", GEMINI),
        ("GET", b"/v1alpha/tunedModels/x", GEMINI),
        # models
        ("GET", b"/v1/models", MODELS),
        ("HEAD", b"/v1/models", MODELS),
        ("GET", b"/openai/v1/models", MODELS),
        ("GET", b"/v1/models/openai/gpt-4o", MODELS),
        ("GET", b"/v1beta/models", Endpoint("gemini", "models", "none")),
        ("GET", b"/v1beta/models/x", Endpoint("gemini", "models", "none")),
        # what nobody told us of
        ("POST", b"/v1/newest", UNKNOWN_POST),
        ("POST", b"/v1/chat/completions/", OPENAI),
        ("POST", b"/v1", UNKNOWN_POST),
        ("GET", b"/v1", RESOURCE),
        ("POST", b"/v1x/chat/completions", UNKNOWN),
        ("POST", b"/chat/completions", UNKNOWN),
        ("POST", b"/v1/v1/chat/completions", UNKNOWN),
        ("GET", b"/", UNKNOWN),
        ("OPTIONS", b"*", UNKNOWN),
    ],
)
def test_paths(method: str, path: bytes, endpoint: Endpoint) -> None:
    assert classify(method, path) == endpoint


@pytest.mark.parametrize(
    ("path", "dialect", "model", "replay"),
    [
        (b"/v1beta/models/gemini-2.5-pro:generateContent", "gemini", "gemini-2.5-pro", True),
        (b"/v1/models/gemini-2.5-pro:streamGenerateContent", "gemini", "gemini-2.5-pro", True),
        (b"/v1beta/models/text:embedContent", "gemini", "text", True),
        (b"/v1beta/models/text:batchEmbedContents", "gemini", "text", True),
        (b"/v1beta/models/x:countTokens", "gemini", "x", True),
        (b"/v1beta/models/veo:predictLongRunning", "gemini", "veo", False),
        (b"/v1beta/tunedModels/mine:generateContent", "gemini", "mine", True),
        (b"/v1beta/models/a:b:generateContent", "gemini", "a:b", True),
        (b"/v1beta/models/openai%2Fgpt-4o:generateContent", "gemini", "openai/gpt-4o", True),
        (b"/v1beta/models/%C3%A9%FF:generateContent", "gemini", "é\ufffd", True),
        (b"/openai/deployments/my-gpt/chat/completions", "openai", "my-gpt", True),
        (b"/openai/deployments/my%20gpt/embeddings", "openai", "my gpt", True),
        (b"/openai/deployments/dalle/images/generations", "openai", "dalle", False),
        (b"/openai/deployments/whisper/audio/transcriptions", "openai", "whisper", False),
        (b"/openai/deployments/x/newest", "openai", "x", False),
    ],
)
def test_a_model_in_the_path(path: bytes, dialect: str, model: str, replay: bool) -> None:
    endpoint = classify("POST", path)
    assert (endpoint.dialect, endpoint.kind, endpoint.source) == (dialect, "inference", "path")
    assert (endpoint.model, endpoint.replay) == (model, replay)
    assert replace_model(path, endpoint.span, "other") == path.replace(path[slice(*endpoint.span)], b"other", 1)


def test_only_a_post_is_replayed_as_inference() -> None:
    assert not classify("GET", b"/openai/deployments/x/chat/completions").replay


@pytest.mark.parametrize(
    ("path", "rest"),
    [
        (b"/v1/chat/completions", b"/chat/completions"),
        (b"/v1beta/models/x:y", b"/models/x:y"),
        (b"/openai/v1/responses", b"/responses"),
        (b"/v1", b""),
        (b"/v1/v1/x", b"/v1/x"),
        (b"/v2/rerank", b"/v2/rerank"),
        (b"/v1alpha/x", b"/v1alpha/x"),
        (b"/v1x/y", b"/v1x/y"),
        (b"/a/v1/b", b"/a/v1/b"),
        (b"/openai/deployments/x/y", b"/openai/deployments/x/y"),
        (b"/", b"/"),
    ],
)
def test_the_version_is_dropped(path: bytes, rest: bytes) -> None:
    assert without_version(path) == rest


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (b"/chat/completions", "lacks its version prefix"),
        (b"/messages", "lacks its version prefix"),
        (b"/models/x:generateContent", "lacks its version prefix"),
        (b"/models", "lacks its version prefix"),
        (b"/models/gpt-4o", "lacks its version prefix"),
        (b"/v1/v1/chat/completions", "one version prefix too many"),
        (b"/v1/v1beta/models/x:generateContent", "one version prefix too many"),
        (b"/v1/chat/completions", ""),
        (b"/files", ""),
        (b"/hello", ""),
        (b"/", ""),
    ],
)
def test_a_wrong_base_url_is_explained(path: bytes, words: str) -> None:
    hint = base_url_hint(path)
    assert (words in hint, bool(hint)) == (True, bool(words))


SETTINGS = settings(derandomize=True, deadline=None)


@SETTINGS
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_a_name_survives_the_path(name: str) -> None:
    """Any name is put into a segment so that it is read back the same, and stays within its segment."""
    path = b"/v1beta/models/x:generateContent"
    span = classify("POST", path).span
    renamed = replace_model(path, span, name)
    assert renamed.isascii()
    assert not set(renamed) & set(b' ?#\\"<>\r\n\t\0')
    assert renamed.count(b"/") == path.count(b"/")
    found = classify("POST", renamed)
    assert (found.source, found.model) == ("path", name)
