"""The two heads the gateway writes for others: a request's on its way to a target, a response's on its way back.

Pure functions of the head that came, the decision that was made and the config; explaining shows the same bytes as
serving sends. What is not ours to change is joined as the bytes that came (RFC 9110 section 7.6.1 for what is not
forwarded; which credentials pass, below).
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from aigw.config.snapshot import Candidate, Match, Snapshot
from aigw.providers.endpoints import replace_model, without_version
from aigw.wire.fields import X_AIGW_KEY, digest, line_name
from aigw.wire.head import RequestHead, ResponseHead

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def request_head(
    snapshot: Snapshot, match: Match, candidate: Candidate, head: RequestHead, request_id: bytes, length: int | None
) -> bytes:
    """The head that asks a candidate's target, with its blank line. `length` is None for a chunked body.

    No credential leaves that is a key of this gateway, in whatever header it came; and none of the client's at all
    where the target has one of its own, or `api_key: client` aside. Cookies stay with HTTP upstreams.
    """
    target = candidate.target
    line = head.line
    path, versionless = match.path, match.versionless
    if candidate.renamed and match.endpoint.source == "path" and candidate.sent is not None:
        path = replace_model(path, match.endpoint.span, candidate.sent)
        versionless = without_version(path)
    path = target.path(path, versionless)
    if line.query is not None:
        query = line.query
        if line.key is not None and (target.has_credential or line.key in snapshot.digests):
            query = without_keys(query, None if target.has_credential else snapshot.digests)
        if query or line.key is None:
            path += b"?" + query
    kept = head.kept
    if target.removed:
        kept = [text for text in kept if line_name(text) not in target.removed]
    extra = b"x-request-id: " + request_id
    if head.accept_encoding is not None:
        extra += b"\r\n" + head.accept_encoding
    if head.credentials and not target.has_credential:
        for field in head.credentials:
            if field.kind != X_AIGW_KEY and field.digest not in snapshot.digests:
                extra += b"\r\n" + field.line
    if head.cookies and not target.upstream.private:
        extra += b"\r\n" + b"\r\n".join(head.cookies)
    if length is None:
        extra += b"\r\ntransfer-encoding: chunked"
    elif length or line.method in _WITH_BODY:
        extra += b"\r\ncontent-length: %d" % length
    return b"%b %b HTTP/1.1\r\n%b\r\n%b%b%b\r\n\r\n" % (
        line.verb,
        path,
        head.host_line if match.rule.preserve_host and head.host_line else target.host_line,
        target.fixed,
        b"\r\n".join(kept) + b"\r\n" if kept else b"",
        extra,
    )


def response_head(
    snapshot: Snapshot,
    candidate: Candidate,
    head: ResponseHead,
    request_id: bytes,
    attempts: int,
    timing: bytes,
    *,
    chunked: bool,
    close: bool,
) -> bytes:
    """The head of a relayed response, with its blank line. `timing` is a Server-Timing line with CRLF, or empty."""
    kept = head.kept
    extra = b"x-request-id: " + request_id
    if head.request_id is not None:
        extra += b"\r\nx-aigw-upstream-request-id: " + head.request_id
    if head.cookies and not candidate.target.upstream.private:
        extra += b"\r\n" + b"\r\n".join(head.cookies)
    if chunked:
        extra += b"\r\ntransfer-encoding: chunked"
    if close:
        extra += b"\r\nconnection: close"
    return b"HTTP/1.1 %d %b\r\n%b%b%b%b\r\n\r\n" % (
        head.status,
        head.reason,
        b"\r\n".join(kept) + b"\r\n" if kept else b"",
        b"%bx-aigw-attempts: %d\r\n" % (candidate.answer, attempts) if snapshot.says_aigw else b"",
        timing,
        extra,
    )


def without_keys(query: bytes, digests: frozenset[bytes] | None) -> bytes:
    """The query without its `key=` members, or only without those whose digest is in `digests`."""
    return b"&".join(
        part
        for part in query.split(b"&")
        if not part.startswith(b"key=") or (digests is not None and digest(unquote_to_bytes(part[4:])) not in digests)
    )
