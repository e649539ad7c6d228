"""The two heads the gateway writes for others: a request's on its way to a target, a response's on its way back.

Pure functions of the head that came, the decision that was made and the config; explaining shows the same bytes as
serving sends. What is not ours to change is joined as the bytes that came (RFC 9110 section 7.6.1 for what is not
forwarded; which credentials pass, below).
"""

from __future__ import annotations

from aigw.config.snapshot import Match, Snapshot
from aigw.config.upstreams import Candidate, Target
from aigw.providers.endpoints import replace_model, without_version
from aigw.wire.fields import X_AIGW_KEY, digest, line_name
from aigw.wire.head import RequestHead, ResponseHead, key_of

_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


def request_prefix(
    snapshot: Snapshot, match: Match, candidate: Candidate, head: RequestHead, *, patched: bool = False
) -> bytes:
    """The head that asks a candidate's target, up to the value of its last common line, the request id.

    It is the same for every request with this head; `request_message` ends it. No credential leaves that is a key of
    this gateway, in whatever header it came; and none of the client's at all where the target has one of its own.
    Cookies stay with HTTP upstreams. `patched`: the answer will be patched, so it must not be compressed.
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
        if line.keys and (target.has_credential or not snapshot.digests.isdisjoint(line.keys)):
            query = without_keys(query, None if target.has_credential else snapshot.digests)
        if query or not line.keys:
            path += b"?" + query
    lines = head.kept
    if patched:
        lines = [*lines, b"accept-encoding: identity"]
    elif head.accept_encoding is not None:
        lines = [*lines, head.accept_encoding]
    if head.credentials and not target.has_credential:
        digests = snapshot.digests
        lines = lines + [f.line for f in head.credentials if f.kind != X_AIGW_KEY and f.digest not in digests]
    if head.cookies and not target.upstream.private:
        lines = lines + head.cookies
    if target.removed:
        lines = [text for text in lines if line_name(text) not in target.removed]
    return b"%b %b HTTP/1.1\r\n%b\r\n%b%bx-request-id: " % (
        line.verb,
        path,
        head.host_line if match.rule.preserve_host and head.host_line else target.host_line,
        target.fixed,
        b"\r\n".join(lines) + b"\r\n" if lines else b"",
    )


def request_message(
    prefix: bytes, request_id: bytes, more: bytes, method: str, length: int | None, body: bytes
) -> bytes:
    """The whole request, or what there is of it: `prefix` as above, the id, `more` lines each with CRLF, how the body
    is framed (`length` None: in chunks), and the body."""
    if length:
        return b"".join((prefix, request_id, b"\r\n", more, b"content-length: %d\r\n\r\n" % length, body))
    if length is None:
        return b"".join((prefix, request_id, b"\r\n", more, b"transfer-encoding: chunked\r\n\r\n", body))
    framing = b"content-length: 0\r\n" if method in _WITH_BODY else b""
    return b"".join((prefix, request_id, b"\r\n", more, framing, b"\r\n"))


def forwarded(lines: bytes, target: Target) -> bytes:
    """Lines that were set aside from a head, each with CRLF, as they go to a target: without those it sets itself."""
    removed = target.removed
    if not removed or not lines:
        return lines
    return b"".join([line + b"\r\n" for line in lines.split(b"\r\n")[:-1] if line_name(line) not in removed])


def response_prefix(head: ResponseHead, candidate: Candidate, *, says_aigw: bool, attempts: int = 1) -> bytes:
    """The head of a relayed response, up to what differs from one exchange to the next."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason), *head.kept]
    if not candidate.target.upstream.private:
        lines += head.cookies
    if says_aigw:
        if head.request_id is not None:
            lines.append(b"x-aigw-upstream-request-id: " + head.request_id)
        lines.append(candidate.answer if attempts == 1 else candidate.answer[:-1] + b"%d" % attempts)
    return b"\r\n".join(lines) + b"\r\n"


def without_length(prefix: bytes) -> bytes:
    """The head of a response without its content-length."""
    lines = prefix.split(b"\r\n")
    return b"\r\n".join([line for line in lines if line[:15].lower() != b"content-length:"])


def without_keys(query: bytes, digests: frozenset[bytes] | None) -> bytes:
    """The query without its `key=` members, or only without those whose digest is in `digests`."""
    return b"&".join(
        part
        for part in query.split(b"&")
        if (value := key_of(part)) is None or (digests is not None and digest(value) not in digests)
    )
