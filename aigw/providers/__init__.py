"""Dialects of upstream APIs: which paths they have, where a request names its model, how credentials are carried, and
what an error looks like.

The contract is `Dialect`; `openai.py`, `anthropic.py` and `gemini.py` each hold one. What a path means is decided here
for all of them, since clients of every dialect come to one address. Nothing here knows a socket, a loop or a config.
"""

from __future__ import annotations

import zlib
from typing import Any, Final, Protocol

import orjson

from aigw.errors import UPSTREAM_ERROR, UPSTREAM_OVERLOADED, UPSTREAM_RATE_LIMITED, Failure, Kind
from aigw.providers import anthropic, gemini, openai
from aigw.wire.head import RequestHead


class Dialect(Protocol):
    """What a module of this package offers."""

    NAME: str
    BEGINNINGS: frozenset[bytes]  # names of events that are never content

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        """The JSON body of an error that the gateway makes."""
        ...

    def error_event(self, failure: Failure, request_id: str, path: bytes) -> bytes:
        """The same as an event of the stream that `path` is answered with."""
        ...

    def reported(self, document: dict[str, Any]) -> dict[str, Any] | None:
        """The error that an event of a stream reports, with its `message`, `type`, `code` or `status`; None: none."""
        ...

    def is_content(self, document: dict[str, Any]) -> bool:
        """Whether an event that reports no error is, or comes behind, what was asked for; what is not known is."""
        ...

    def says(self, document: dict[str, Any]) -> bool:
        """Whether an event that reports no error is itself some of what was asked for; what is not known is."""
        ...

    def is_too_long(self, error: dict[str, Any]) -> bool:
        """Whether an error is that of a request with more tokens than the model takes."""
        ...


DIALECTS: Final[dict[str, Dialect]] = {
    openai.NAME: openai,
    anthropic.NAME: anthropic,
    gemini.NAME: gemini,
}

# How each provider takes its credential: the header name and what stands before the key.
_CREDENTIAL: Final = {
    "openai": b"authorization: Bearer ",
    "azure": b"api-key: ",
    "anthropic": b"x-api-key: ",
    "gemini": b"x-goog-api-key: ",
    "http": b"authorization: Bearer ",
    "mock": b"authorization: Bearer ",
}


# Headers that carry a credential, whoever sets them.
CREDENTIAL_HEADERS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


def credential_line(provider: str, api_key: str) -> bytes:
    """The header line that carries `api_key` to a provider."""
    return _CREDENTIAL[provider] + api_key.encode("latin-1")


# What providers say, in a 403, of a credential they do not like; a refusal of the request itself says none of it.
_ABOUT_CREDENTIALS: Final = (b"api key", b"api_key", b"apikey", b"api-key", b"credential", b"access token")
# Decoded bytes of an error that are looked at.
_MOST_DECODED: Final = 256 * 1024


def refuses_credential(body: bytes, coding: bytes) -> bool:
    """Whether the body of a 403 is about the credential. `coding` is its content-encoding, in lower case; what cannot
    be read counts as if it were, since it may quote the credential."""
    text = _decoded(body, coding)
    return text is None or _is_about_credentials(text)


def is_too_long(body: bytes, coding: bytes, dialect: Dialect) -> bool:
    """Whether the body of a 400 says that the request has more tokens than the model takes."""
    try:
        document = orjson.loads(_decoded(body, coding) or b"")
    except orjson.JSONDecodeError:
        return False
    error = document.get("error") if type(document) is dict else None
    return type(error) is dict and dialect.is_too_long(error)


def _decoded(body: bytes, coding: bytes) -> bytes | None:
    """None where it cannot be read."""
    if coding in (b"gzip", b"x-gzip"):
        try:
            decoder = zlib.decompressobj(31)
            body = decoder.decompress(body, _MOST_DECODED)
        except zlib.error:
            return None
        return body if decoder.eof else None
    return body if coding in (b"", b"identity") else None


def _is_about_credentials(text: bytes) -> bool:
    folded = text.lower()
    return any(words in folded for words in _ABOUT_CREDENTIALS)


# Words and numbers of an error's `type`, `code` or `status`, and the answer it should have been; all others are a 500.
# OpenAI, Anthropic, Gemini (google.rpc.Code), and servers that put the status itself there.
_KINDS: Final[dict[object, Kind]] = {
    **dict.fromkeys(("rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED", 429), UPSTREAM_RATE_LIMITED),
    **dict.fromkeys(("overloaded_error", "overloaded", "UNAVAILABLE", 503, 529), UPSTREAM_OVERLOADED),
}
# Characters of a provider's message that are passed on within ours.
_LONGEST_MESSAGE: Final = 500


def failure_of(error: dict[str, Any]) -> Failure:
    """What `reported` found, as the answer in place of the stream. What it says of a credential stays here."""
    said = [error.get(name) for name in ("type", "code", "status")]
    known = [_KINDS[one] for one in said if type(one) in (str, int) and one in _KINDS]
    text = str(error.get("message") or next((one for one in said if one), "no reason"))[:_LONGEST_MESSAGE]
    if _is_about_credentials(text.encode("utf-8", "replace")):
        text = "something about a credential, which is kept here"
    return Failure(known[0] if known else UPSTREAM_ERROR, f"the upstream reported an error in place of content: {text}")


def dialect_of(path_dialect: str, head: RequestHead) -> str:
    """The dialect the client speaks: by path; on a shared path by its headers (anthropic-version, x-goog-*)."""
    if path_dialect:
        return path_dialect
    if head.has_anthropic:
        return anthropic.NAME
    if head.has_gemini or any(field.line[:14].lower() == b"x-goog-api-key" for field in head.credentials):
        return gemini.NAME
    return openai.NAME
