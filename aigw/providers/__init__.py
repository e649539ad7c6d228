"""Dialects of upstream APIs: which paths they have, where a request names its model, how credentials are carried, and
what an error looks like.

The contract is `Dialect`; `openai.py`, `anthropic.py` and `gemini.py` each hold one. What a path means is decided here
for all of them, since clients of every dialect come to one address. Nothing here knows a socket, a loop or a config.
"""

from __future__ import annotations

import zlib
from typing import Final, Protocol

from aigw.errors import Failure
from aigw.providers import anthropic, gemini, openai
from aigw.wire.head import RequestHead


class Dialect(Protocol):
    """What a module of this package offers."""

    NAME: str

    def error_body(self, failure: Failure, request_id: str) -> bytes:
        """The JSON body of an error that the gateway makes."""
        ...

    def error_event(self, failure: Failure, request_id: str, path: bytes) -> bytes:
        """The same as an event of the stream that `path` is answered with."""
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
    if coding in (b"gzip", b"x-gzip"):
        try:
            decoder = zlib.decompressobj(31)
            body = decoder.decompress(body, _MOST_DECODED)
        except zlib.error:
            return True
        if not decoder.eof:
            return True
    elif coding not in (b"", b"identity"):
        return True
    folded = body.lower()
    return any(words in folded for words in _ABOUT_CREDENTIALS)


def dialect_of(path_dialect: str, head: RequestHead) -> str:
    """The dialect the client speaks: by path; on a shared path by its headers (anthropic-version, x-goog-*)."""
    if path_dialect:
        return path_dialect
    if head.has_anthropic:
        return anthropic.NAME
    if head.has_gemini or any(field.line[:14].lower() == b"x-goog-api-key" for field in head.credentials):
        return gemini.NAME
    return openai.NAME
