"""Who is asking: the gateway's key, found in whatever header the client's SDK puts it in.

Only digests are compared, and they are looked up by their whole SHA-256 value, so that timing tells nothing about a
key. `x-aigw-key`, where present, is the key, and every other credential is the client's own business with the
provider. Else one key may come in `authorization: Bearer`, `x-api-key`, `api-key`, `x-goog-api-key` or `?key=`; two
different ones there are refused, since two readers could believe either.
"""

from __future__ import annotations

from aigw.config.snapshot import GatewaySpec, Key
from aigw.errors import AMBIGUOUS_KEY, DISABLED_KEY, EXPIRED_KEY, INVALID_KEY, MISSING_KEY, Failure
from aigw.wire.fields import X_AIGW_KEY
from aigw.wire.head import RequestHead

_HOW = "send it as `authorization: Bearer KEY`, `x-api-key`, `api-key`, `x-goog-api-key` or `x-aigw-key`"


def presented(head: RequestHead) -> bytes | Failure:
    """The digest of the one key that the request presents."""
    digest: bytes | None = None
    if any(field.kind == X_AIGW_KEY for field in head.credentials):
        return _its_own(head)
    for found in (*head.line.keys, *(field.digest for field in head.credentials)):
        if found is not None:
            if digest is not None and digest != found:
                return Failure(
                    AMBIGUOUS_KEY,
                    "the request carries two different keys; send one, or the gateway's as `x-aigw-key` and the "
                    "provider's beside it",
                )
            digest = found
    if digest is None:
        return Failure(MISSING_KEY, f"no API key in the request; {_HOW}")
    return digest


def admit(gateway: GatewaySpec, head: RequestHead, now: float) -> Key | Failure:
    """The key of a request to a gateway that asks for one. `now` is epoch seconds."""
    digest = presented(head)
    if isinstance(digest, Failure):
        return digest
    found = gateway.keys.get(digest)
    if found is None:
        return Failure(INVALID_KEY, f"this API key is not known to the gateway; check it, and {_HOW}")
    key, is_previous = found
    if key.disabled:
        return Failure(DISABLED_KEY, f"the API key {key.name!r} is disabled; ask the gateway's operator")
    if key.expires is not None and now >= key.expires:
        return Failure(EXPIRED_KEY, f"the API key {key.name!r} has expired; ask the gateway's operator for another")
    if is_previous and key.previous_until is not None and now >= key.previous_until:
        return Failure(EXPIRED_KEY, f"the API key {key.name!r} was rotated; use its new value")
    return key


def _its_own(head: RequestHead) -> bytes | Failure:
    digests = {field.digest for field in head.credentials if field.kind == X_AIGW_KEY}
    if len(digests) > 1:
        return Failure(AMBIGUOUS_KEY, "two different `x-aigw-key` headers; send one")
    digest = digests.pop()
    return (
        Failure(MISSING_KEY, "the `x-aigw-key` header is empty; put the gateway's key there")
        if digest is None
        else digest
    )
