"""Which dialect a request is in, and its answer: method, target, body and settings in, an answer out.

Pure: the same request gets the same answer, so the server may remember it.
"""

import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import unquote

import orjson

from aigw.mock import anthropic, gemini, openai
from aigw.mock.responses import responses
from aigw.mock.settings import Settings
from aigw.mock.values import Answer, Call, Plain, Refused


class Dialect(Protocol):
    """What each dialect's module has besides its calls."""

    ERROR_STATUS: int

    def error(self, status: int, message: str, mark: str) -> bytes: ...

    def lines(self, mark: str) -> bytes: ...

    def models(self) -> Plain: ...

    def model(self, name: str) -> dict[str, Any]: ...


_DIALECTS: dict[str, Dialect] = {"openai": openai, "anthropic": anthropic, "gemini": gemini}

_JSON: dict[str, Callable[[Call], Answer]] = {
    "/v1/chat/completions": openai.chat,
    "/v1/completions": openai.completions,
    "/v1/responses": responses,
    "/v1/embeddings": openai.embeddings,
    "/v1/messages": anthropic.messages,
    "/v1/messages/count_tokens": anthropic.count_tokens,
}
_FORMS: dict[str, Callable[[], Plain]] = {
    "/v1/audio/transcriptions": openai.transcription,
    "/v1/audio/translations": openai.transcription,
    "/v1/images/generations": openai.image,
    "/v1/images/edits": openai.image,
}
_VERBS: dict[str, Callable[[Call], Answer]] = {
    "generateContent": gemini.generate,
    "streamGenerateContent": gemini.stream_array,
    "embedContent": gemini.embed,
    "batchEmbedContents": gemini.batch_embed,
    "countTokens": gemini.count_tokens,
}
_PINGS = frozenset({"/", "/ping", "/health", "/healthz"})

_AZURE = "/openai/deployments/"
_MODELS = ("/v1/models/", "/v1beta/models/")


class Request:
    """A request as `answer` wants it. hint: the dialect its headers speak of, else empty; words: its `x-mock`."""

    __slots__ = ("body", "hint", "method", "path", "query", "words")

    def __init__(self, method: bytes, target: bytes, hint: str, words: bytes, body: bytes) -> None:
        self.method = method.decode()
        self.path, self.query = split(target)
        self.hint = hint
        self.words = words.decode("latin-1")
        self.body = body


@lru_cache(maxsize=256)
def split(target: bytes) -> tuple[str, str]:
    """Path and query of a request target in origin or absolute form (RFC 9112 section 3.2)."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        _, _, rest = text.partition("://")
        text = "/" + rest.partition("/")[2]
    path, _, query = text.partition("?")
    return path, query


def reads_body(target: bytes) -> bool:
    """Whether the answer to a POST depends on its body; else a long one need not be kept."""
    path, _ = split(target)
    return path in _JSON or path.startswith(_AZURE) or _verb(path) is not None


def answer(request: Request, settings: Settings) -> tuple[Answer, Settings, bytes]:
    """The answer, the settings to send it with (the server's under the request's words), the dialect's header lines."""
    mark = f"{zlib.crc32(request.body, zlib.crc32(request.path.encode('utf-8', 'surrogateescape'))):08x}"
    dialect = _DIALECTS[_dialect(request)]
    try:
        try:
            settings = settings.over(request.words)
        except ValueError as bad:
            raise Refused(400, f"x-mock: {bad}") from None
        _fail_as_asked(settings)
        made = _answer(request, dialect, settings, mark)
        if isinstance(made, Plain) and settings.failure == "error-event":
            raise Refused(dialect.ERROR_STATUS, "the mock was asked to fail: error-event")
    except Refused as no:
        made = Plain(dialect.error(no.status, no.message, mark), no.status, lines=no.lines)
    return made, settings, dialect.lines(mark)


def refusal(status: int, message: str, hint: str) -> Plain:
    """An error for a request that could not be read to its end."""
    dialect = _DIALECTS[hint or "openai"]
    return Plain(dialect.error(status, message, "unread"), status, lines=dialect.lines("unread"))


def _fail_as_asked(settings: Settings) -> None:
    if settings.status is not None:
        lines = b"" if settings.retry_after is None else b"retry-after: %b\r\n" % settings.retry_after.encode()
        raise Refused(settings.status, f"the mock was asked to fail: status={settings.status}", lines=lines)


def _dialect(request: Request) -> str:
    """By path; where OpenAI's and another's are the same, by the headers."""
    path = request.path
    if path.startswith("/v1/messages"):
        return "anthropic"
    if path in _JSON or path in _FORMS:
        return "openai"
    if path.startswith("/v1beta/") or _verb(path) is not None:
        return "gemini"
    return request.hint or "openai"


def _verb(path: str) -> str | None:
    """`generateContent` out of `/v1beta/models/NAME:generateContent`."""
    verb = path.rpartition(":")[2]
    return verb if verb in _VERBS and path.startswith(_MODELS) else None


def _answer(request: Request, dialect: Dialect, settings: Settings, mark: str) -> Answer:
    path, name = request.path, None
    if path.startswith(_AZURE):
        deployment, _, rest = path[len(_AZURE) :].partition("/")
        path, name = "/v1/" + rest, unquote(deployment)
    handler = _JSON.get(path)
    if handler is not None:
        _allow(request, "POST")
        document = _object(request.body)
        name = document.get("model", name)
        if not isinstance(name, str) or not name:
            raise Refused(400, "model: expected a model's name; the mock takes any")
        return handler(Call(name, document, settings, mark))
    if path in _FORMS:
        _allow(request, "POST")
        return _FORMS[path]()
    verb = _verb(path)
    if verb is not None:
        _allow(request, "POST")
        name = unquote(path.rpartition(":")[0].partition("/models/")[2])
        call = Call(name, _object(request.body), settings, mark)
        if verb == "streamGenerateContent" and "alt=sse" in request.query.split("&"):
            return gemini.stream_events(call)
        return _VERBS[verb](call)
    return _fixed(request, dialect)


def _fixed(request: Request, dialect: Dialect) -> Plain:
    """What is asked for with GET, or 404."""
    path = request.path
    ping = path in _PINGS
    _, model, name = path.partition("/models/") if path.startswith(_MODELS) else ("", "", "")
    if not ping and not model and path not in ("/v1/models", "/v1beta/models"):
        raise Refused(404, f"no such path: {request.method} {path[:200]}; the mock has {', '.join(_JSON)}, ...")
    _allow(request, "GET", "HEAD")
    if ping:
        return Plain(b'{"status":"ok"}')
    return Plain(orjson.dumps(dialect.model(unquote(name)))) if model else dialect.models()


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as bad:
        raise Refused(400, f"the body is no JSON: {bad}") from None
    if not isinstance(document, dict):
        raise Refused(400, "the body is JSON, but no object")
    return document


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        names = ", ".join(methods)
        raise Refused(
            405,
            f"{request.path[:200]}: {request.method} is not allowed, {names} is",
            lines=f"allow: {names}\r\n".encode(),
        )
