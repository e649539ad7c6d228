"""Paths that mean one thing to a rule and another one to an upstream (RFC 3986 sections 3.3, 5.2.4, 6.2; design 7).

Rules: `/s/*` and `/private/*` to different upstreams, `/get/*` for GET alone, `/strip/*` without its prefix, the rest
by model. The rule must decide on the form that is forwarded, and a path that a decoding, merging or resolving reader
would send elsewhere is refused.
"""

from __future__ import annotations

from smuggling.requests.case import EVIL, HOST, Case, End, answered, declined, http, refused, seen

KEPT = b"Host: kept"  # a gateway with few rules
DOTS = "a dot segment: who resolves it?"


def get(path: bytes) -> bytes:
    return http(b"GET " + path + b" HTTP/1.1", HOST)


CASES: list[Case] = [
    *(
        refused(f"path-{name}", section, get(path), why=why)
        for name, section, path, why in (
            ("dot-dot", "3986 5.2.4", b"/s/../private/a", DOTS),
            ("dot-dot-behind", "3986 5.2.4", b"/s/a/..", DOTS),
            ("dot-dot-above-root", "3986 5.2.4", b"/../../etc/passwd", DOTS),
            ("dot", "3986 5.2.4", b"/s/./a", DOTS),
            ("dot-behind", "3986 5.2.4", b"/s/.", DOTS),
            ("dot-first", "3986 5.2.4", b"/./private/a", DOTS),
            ("dots-stay-in-rule", "3986 5.2.4", b"/s/a/../b", DOTS),
            ("encoded-dots", "3986 6.2.2", b"/s/%2e%2e/private/a", "the same in other letters"),
            ("encoded-dots-upper-case", "3986 6.2.2", b"/s/%2E%2E/private/a", "the same in other letters"),
            ("half-encoded-dots", "3986 6.2.2", b"/s/.%2e/private/a", "the same in other letters"),
            ("half-encoded-dots-2", "3986 6.2.2", b"/s/%2e./private/a", "the same in other letters"),
            ("encoded-dot", "3986 6.2.2", b"/s/%2e/a", "the same in other letters"),
            ("encoded-slash-and-dots", "3986 6.2.2", b"/s/..%2fprivate/a", "decoded first, then resolved"),
            ("encoded-slashes-and-dots", "3986 6.2.2", b"/s/a%2f..%2f..%2fprivate/a", "decoded first, then resolved"),
            ("all-encoded", "3986 6.2.2", b"/s%2f%2e%2e%2fprivate%2fa", "decoded first, then resolved"),
            ("backslash-and-dots", "3986 3.3", b"/s\\..\\private\\a", "backslashes are slashes for some"),
            ("backslash-then-dots", "3986 3.3", b"/s/..\\private/a", "backslashes are slashes for some"),
            ("encoded-backslash-and-dots", "3986 3.3", b"/s/..%5cprivate/a", "backslashes are slashes for some"),
            ("dots-with-parameter", "3986 3.3", b"/s/..;/private/a", "Tomcat takes parameters off first"),
            ("dots-with-parameter-value", "3986 3.3", b"/s/..;x=y/private/a", "Tomcat takes parameters off first"),
            ("dots-with-encoded-parameter", "3986 3.3", b"/s/..%3bx/private/a", "likewise, decoded"),
            ("dot-with-parameter", "3986 3.3", b"/s/.;x/a", "likewise"),
            ("dots-behind-empty-segment", "3986 5.2.4", b"/s//../private/a", DOTS),
            ("nul", "3986 2.1", b"/s/a%00", "a reader in C sees another path"),
            ("nul-and-suffix", "3986 2.1", b"/private/a%00.txt", "a reader in C sees another path"),
            ("open-percent", "3986 2.1", b"/s/a%", "no percent-encoding"),
            ("half-percent", "3986 2.1", b"/s/a%2", "no percent-encoding"),
            ("bad-percent", "3986 2.1", b"/s/a%zz", "no percent-encoding"),
            ("percent-u", "3986 2.1", b"/s/%u002e%u002e/private/a", "IIS's own encoding"),
            ("percent-sign", "3986 2.1", b"/s/%+2e%+2e/private/a", "a sign for lenient readers of numbers"),
            ("absolute-dot-dot", "3986 5.2.4", b"http://gw/s/../private/a", DOTS),
        )
    ),
    *(
        declined(f"path-{name}", "design 7", get(path), 400, why=why)
        for name, path, why in (
            ("encoded-slash-to-rule", b"/private%2fa", "another rule's for who decodes"),
            ("encoded-slash-first", b"/%2fprivate/a", "another rule's for who decodes and merges"),
            ("encoded-letters", b"/%70rivate/a", "another rule's for who decodes"),
            ("all-letters-encoded", b"/%70%72%69%76%61%74%65/a", "another rule's for who decodes"),
            ("empty-segment-first", b"//private/a", "another rule's for who merges; a host for who resolves"),
            ("empty-segments-first", b"///private/a", "another rule's for who merges"),
            ("backslash-first", b"/\\private/a", "another rule's for who takes it for a slash"),
            ("backslash-to-rule", b"/private\\a", "another rule's for who takes it for a slash"),
            ("encoded-backslash-to-rule", b"/private%5ca", "likewise, decoded"),
            ("parameter", b"/private;x/a", "another rule's for who takes parameters off"),
            ("parameter-value", b"/private;x=y/a", "another rule's for who takes parameters off"),
            ("encoded-parameter", b"/private%3bx/a", "likewise, decoded"),
            ("parameter-first", b"/;x/private/a", "an empty segment for who takes parameters off"),
            ("get-encoded", b"/%67et/a", "a rule with methods of its own"),
            ("strip-encoded", b"/%73trip/a", "a rule that takes off a prefix it would not find"),
        )
    ),
    *(
        declined(
            f"path-model-{name}",
            "design 7",
            http(b"POST " + path + b" HTTP/1.1", HOST, b"Content-Length: 17", body=b'{"model": "dear"}'),
            400,
            why=why,
            end=End.EITHER,
        )
        for name, path, why in (
            ("encoded-letter", b"/v1/chat/complet%69ons", "the model would go unread"),
            ("encoded-slash", b"/v1/chat%2fcompletions", "the model would go unread"),
            ("empty-segment", b"/v1//chat/completions", "the model would go unread"),
            ("empty-segment-first", b"//v1/chat/completions", "the model would go unread"),
            ("parameter", b"/v1/chat;x/completions", "the model would go unread"),
            ("parameter-behind", b"/v1/chat/completions;x", "the model would go unread"),
            ("backslash", b"/v1\\chat\\completions", "the model would go unread"),
            ("encoded-version", b"/%76%31/messages", "the model would go unread"),
            ("encoded-colon", b"/v1beta/models/g-1%3AgenerateContent", "the model would go unread"),
        )
    ),
    declined("path-method", "9110 15.5.6", http(b"PUT /get/a HTTP/1.1", KEPT), 405, why="the rule takes GET and HEAD"),
    declined(
        "path-method-and-body",
        "9110 15.5.6",
        http(b"POST /get/a HTTP/1.1", KEPT, b"Content-Length: %d" % len(EVIL), body=EVIL),
        405,
        why="CL.0: an answer of our own, and the body is not the next request",
        end=End.EITHER,
    ),
    declined(
        "path-method-override", "design 5", http(b"PUT /get/a HTTP/1.1", KEPT, b"X-HTTP-Method-Override: GET"), 405,
        why="the rule looks at the method alone",
    ),
    *(
        answered(f"path-{name}", section, get(path), seen(b"GET " + path, by=by), why=why)
        for name, section, path, by, why in (
            ("rule", "design 7", b"/private/a", "private", "the plain form"),
            ("rule-itself", "design 7", b"/s", "plain", "the rule's prefix is its own"),
            ("rule-prefix", "design 7", b"/secret", "llm", "a prefix ends at a segment's border"),
            ("other-case", "3986 6.2.2", b"/PRIVATE/a", "llm", "paths have a case: another path, forwarded as such"),
            ("empty-segment-in-rule", "3986 3.3", b"/s//a", "plain", "merged or not, the same rule's"),
            ("slashes-behind", "3986 3.3", b"/s/a//", "plain", "merged or not, the same rule's"),
            ("encoded-slash-in-rule", "3986 2.2", b"/s/a%2Fb", "plain", "decoded or not, the same rule's"),
            ("encoded-letter-in-rule", "3986 6.2.2", b"/s/%61", "plain", "decoded or not, the same rule's"),
            ("parameter-in-rule", "3986 3.3", b"/s/a;b=c", "plain", "with it or not, the same rule's"),
            ("backslash-in-rule", "3986 3.3", b"/s/a\\b", "plain", "a slash or not, the same rule's"),
            ("encoded-twice", "3986 2.4", b"/s/%252e%252e/private/a", "plain", "nobody decodes twice"),
            ("other-rule-in-query", "3986 3.4", b"/s/a?/private/a", "plain", "a query is no path"),
            ("other-rule-within", "3986 3.3", b"/s/private/a", "plain", "a rule's path begins at the root"),
        )
    ),
    answered("path-strip", "design 7", get(b"/strip/a"), seen(b"GET /a"), why="the prefix is taken off"),
    answered("path-strip-itself", "design 7", get(b"/strip"), seen(b"GET /"), why="nothing is left but the root"),
    answered("path-strip-query", "design 7", get(b"/strip?a"), seen(b"GET /?a"), why="the query stays"),
    answered("path-strip-slashes", "3986 3.3", get(b"/strip//a"), seen(b"GET //a"), why="bytes behind the prefix stay"),
    *(
        declined(f"probe-{name}", "design 7", raw, status, why=why, end=end)
        for name, raw, status, why, end in (
            ("healthz", get(b"/healthz"), 200, "answered here", End.OPEN),
            ("ping", get(b"/__/ping"), 200, "answered here, whatever the rules", End.OPEN),
            (
                "with-body",
                http(b"GET /healthz HTTP/1.1", HOST, b"Content-Length: %d" % len(EVIL), body=EVIL),
                200,
                "an answer of our own, and the body is not the next request",
                End.EITHER,
            ),
            (
                "with-chunks",
                http(b"GET /healthz HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
                200,
                "chunks are not read to their end: the connection closes",
                End.CLOSES,
            ),
        )
    ),
    answered(
        "probe-encoded", "design 7", get(b"/%68ealthz"), seen(b"GET /%68ealthz", by="llm"), why="the probe's path alone"
    ),
]  # fmt: skip
