"""Host and the target's own authority (RFC 9112 sections 3.2 and 3.3, RFC 9110 section 7.2, RFC 3986 section 3.2)."""

from __future__ import annotations

from smuggling.requests.case import HOST, Case, End, answered, declined, http, refused, seen

GET = b"GET /s/a HTTP/1.1"
A = seen(b"GET /s/a")

HOSTS: list[Case] = [
    refused("host-missing", "9112 3.2", http(GET), why="an HTTP/1.1 request has one"),
    refused("host-twice", "9112 3.2", http(GET, HOST, b"Host: other"), why="which one routes?"),
    refused("host-twice-the-same", "9112 3.2", http(GET, HOST, HOST), why="exactly one"),
    refused("host-twice-by-case", "9112 3.2", http(GET, HOST, b"hOST: other"), why="names have no case"),
    refused("host-twice-in-1.0", "9112 3.2", http(b"GET /s/a HTTP/1.0", HOST, b"Host: other"), why="at most one"),
    refused("host-twice-one-empty", "9112 3.2", http(GET, HOST, b"Host:"), why="an empty one counts"),
    *(
        refused(f"host-{name}", section, http(GET, b"Host: " + value), why=why)
        for name, section, value, why in (
            ("empty", "9110 7.2", b"", "only where the target has no authority, and ours has one"),
            ("list", "9110 7.2", b"gw, other", "no list"),
            ("two-words", "9110 7.2", b"gw other", "a blank is in no host"),
            ("user", "9110 4.2.4", b"user@gw", "user info: which part is the host?"),
            ("user-and-password", "9110 4.2.4", b"gw:80@other", "likewise"),
            ("scheme", "9110 7.2", b"http://gw", "a URL is no host"),
            ("path", "9110 7.2", b"gw/s/evil", "a path is no part of it"),
            ("path-only", "9110 7.2", b"/", "no host"),
            ("query", "9110 7.2", b"gw?x", "a query is no part of it"),
            ("fragment", "9110 7.2", b"gw#x", "a fragment is no part of it"),
            ("backslash", "9110 7.2", b"gw\\other", "a slash for some"),
            ("port-letters", "3986 3.2.3", b"gw:http", "a port is digits"),
            ("port-sign", "3986 3.2.3", b"gw:-1", "a port is digits"),
            ("port-too-large", "3986 3.2.3", b"gw:65536", "no such port"),
            ("port-long", "3986 3.2.3", b"gw:000000080", "no port has so many digits"),
            ("port-twice", "3986 3.2.3", b"gw:80:81", "one port"),
            ("port-only", "9110 7.2", b":80", "no host"),
            ("ipv6-open", "3986 3.2.2", b"[::1", "the bracket is not closed"),
            ("ipv6-empty", "3986 3.2.2", b"[]", "nothing in the brackets"),
            ("ipv6-behind", "3986 3.2.2", b"[::1]gw", "something behind the bracket"),
            ("ipv6-zone", "3986 3.2.2", b"[fe80::1%25eth0]", "a zone has no meaning on the wire"),
            ("ipv6-bare", "3986 3.2.2", b"::1", "an address of colons needs brackets"),
            ("ipv6-letters", "3986 3.2.2", b"[gw]", "no address"),
            ("bad-percent", "3986 2.1", b"gw%zz", "no percent-encoding"),
            ("open-percent", "3986 2.1", b"gw%", "no percent-encoding"),
            ("utf-8", "3986 3.2.2", b"g\xc3\xbc", "hosts are ASCII"),
            ("quotes", "3986 3.2.2", b'"gw"', "quotes are in no host"),
            ("angle-brackets", "3986 3.2.2", b"<gw>", "nor are these"),
            ("nul", "9110 5.5", b"gw\0.other", "a reader in C sees another host"),
            ("tab", "9110 7.2", b"gw\tother", "a tab is in no host"),
            ("bare-cr", "9112 2.2", b"gw\rother", "a line end for some"),
        )
    ),
    *(
        answered(f"host-{name}", section, http(GET, b"Host: " + value), A, why=why)
        for name, section, value, why in (
            ("upper-case", "3986 3.2.2", b"GW", "hosts have no case"),
            ("port", "9110 7.2", b"gw:8081", "our own"),
            ("port-any", "9110 7.2", b"gw:1", "a mapped one"),
            ("port-empty", "3986 3.2.3", b"gw:", "a port may be empty"),
            ("port-leading-zero", "3986 3.2.3", b"gw:0080", "digits"),
            ("ipv4", "3986 3.2.2", b"127.0.0.1:8081", "an address"),
            ("ipv6", "3986 3.2.2", b"[::1]:8081", "an address in brackets"),
            ("dot-behind", "3986 3.2.2", b"gw.example.", "a rooted name"),
            ("underscore", "3986 3.2.2", b"my_service", "unreserved, and usual in container networks"),
            ("sub-delims", "3986 3.2.2", b"a!$&'()*+,;=b", "a registered name may hold these"),
            ("percent", "3986 3.2.2", b"%67w", "and percent-encoded bytes"),
            ("long", "3986 3.2.2", b"a" * 255, "as long as a name of DNS can be"),
        )
    ),
    answered("host-no-blank", "9112 5", http(GET, b"Host:gw"), A, why="the blank is optional"),
    answered("host-blanks", "9112 5", http(GET, b"Host: \t gw \t"), A, why="blanks around it are none of it"),
    answered("host-last", "9110 5.3", http(GET, b"X: y", HOST), seen(b"GET /s/a", b"X: y"), why="it should be first"),
    answered(
        "host-passed-on",
        "design 7",
        http(GET, b"Host: Kept:99"),
        seen(b"GET /s/a", host=b"Kept:99"),
        why="preserve_host: the client's own spelling",
    ),
    declined("host-of-no-rule", "design 7", http(b"GET /x HTTP/1.1", b"Host: kept"), 404, why="it has one rule"),
]

OTHER_HOST = "the target names another host than Host: one of them routes here, the other one upstream"
TARGETS = [
    *(
        refused(f"target-{name}", section, http(b"GET " + target + b" HTTP/1.1", HOST), why=why)
        for name, section, target, why in (
            ("other-host", "9112 3.2.2", b"http://other/s/a", OTHER_HOST),
            ("other-host-by-prefix", "9112 3.2.2", b"http://gw.evil.example/s/a", OTHER_HOST),
            ("user", "9110 4.2.4", b"http://gw@other/s/a", "user info in the target"),
            ("host-as-user", "9110 4.2.4", b"http://other@gw/s/a", "user info in the target"),
            ("no-host", "9110 4.2.1", b"http:///s/a", "an http URL has a host"),
            ("port-only", "9110 4.2.1", b"http://:80/s/a", "an http URL has a host"),
            ("bad-port", "3986 3.2.3", b"http://gw:99999/s/a", "no such port"),
            ("backslash", "3986 3.2", b"http://gw\\@other/s/a", "a slash for some"),
            ("one-slash", "9112 3.2.2", b"http:/gw/s/a", "neither absolute nor a path"),
            ("no-slashes", "9112 3.2.2", b"http:gw", "neither absolute nor a path"),
            ("scheme-ftp", "9112 3.2.2", b"ftp://gw/s/a", "a scheme that is not ours"),
            ("scheme-file", "9112 3.2.2", b"file:///etc/passwd", "a scheme that is not ours"),
            ("scheme-gopher", "9112 3.2.2", b"gopher://gw/s/a", "a scheme that is not ours"),
            ("scheme-ws", "9112 3.2.2", b"ws://gw/s/a", "a scheme that is not ours"),
            ("scheme-unix", "9112 3.2.2", b"unix:/run/x.sock:/s/a", "the config's form of a url, not a client's"),
            ("scheme-relative", "9112 3.2.1", b"gw/s/a", "a path begins with a slash"),
            ("authority", "9112 3.2.3", b"gw:80", "authority-form is for CONNECT"),
            ("dots", "9112 3.2.1", b"../s/a", "a path begins with a slash"),
            ("query-only", "9112 3.2.1", b"?q", "a path begins with a slash"),
            ("asterisk", "9112 3.2.4", b"*", "for OPTIONS alone"),
            ("asterisk-and-path", "9112 3.2.4", b"*/s/a", "no form of a target"),
            ("fragment", "9112 3.2", b"/s/a#f", "fragments stay with the client"),
            ("fragment-only", "9112 3.2", b"#f", "fragments stay with the client"),
            ("fragment-absolute", "9112 3.2", b"http://gw/s/a#f", "fragments stay with the client"),
            ("high-byte", "3986 2", b"/s/\xe9", "targets are ASCII"),
            ("utf-8", "3986 2", b"/s/\xc3\xa9", "targets are ASCII"),
            ("overlong-slash", "3986 2", b"/s\xc0\xafa", "an overlong slash in UTF-8"),
            ("control", "3986 2", b"/s/\x01", "control bytes are in no target"),
            ("nul", "3986 2", b"/s/a\0.txt", "a reader in C sees another path"),
            ("delete", "3986 2", b"/s/\x7f", "nor is DEL"),
            ("bare-lf", "9112 2.2", b"/s/a\nX:", "a line end for some"),
        )
    ),
    refused(
        "target-options-asterisk-path", "9112 3.2.4", http(b"OPTIONS */s/a HTTP/1.1", HOST), why="no form of a target"
    ),
    refused(
        "target-absolute-without-host",
        "9112 3.2.2",
        http(b"GET http://gw/s/a HTTP/1.1"),
        why="Host is needed all the same",
    ),
    refused(
        "target-absolute-empty-host",
        "9112 3.2.2",
        http(b"GET http://gw/s/a HTTP/1.1", b"Host:"),
        why="and not an empty one",
    ),
    *(
        answered(f"target-{name}", section, http(b"GET " + target + b" HTTP/1.1", HOST), A, why=why)
        for name, section, target, why in (
            ("absolute", "9112 3.2.2", b"http://gw/s/a", "a server must accept it"),
            ("absolute-port", "9112 3.2.2", b"http://gw:8081/s/a", "with a port"),
            ("absolute-upper-case", "3986 3.1", b"HTTP://GW/s/a", "scheme and host have no case"),
            ("absolute-https", "9112 3.2.2", b"https://gw/s/a", "as seen from before a TLS terminator"),
        )
    ),
    answered(
        "target-absolute-no-path",
        "9112 3.2.2",
        http(b"GET http://gw HTTP/1.1", HOST),
        seen(b"GET /", by="llm"),
        why="an empty path is `/`",
    ),
    *(
        answered(
            f"target-{name}", section, http(b"GET " + target + b" HTTP/1.1", HOST), seen(b"GET " + target), why=why
        )
        for name, section, target, why in (
            ("query", "3986 3.4", b"/s/a?b=c&d", "as it came"),
            ("query-empty", "3986 3.4", b"/s/a?", "an empty query is not no query"),
            ("query-question-marks", "3986 3.4", b"/s/a??b?", "only the first one begins it"),
            ("query-slashes", "3986 3.4", b"/s/a?/../x//y", "a query has no segments"),
            ("query-odd-percent", "3986 3.4", b"/s/a?100%", "bad by the letter, harmless, and the upstream's to judge"),
            ("query-braces", "3986 3.4", b'/s/a?q={"a":[1]}', "likewise"),
            ("query-url", "3986 3.4", b"/s/a?u=http://other/", "a URL in a query is text"),
            ("sub-delims", "3986 3.3", b"/s/!$&'()*+,=:@", "all may stand in a segment"),
            ("unreserved", "3986 2.3", b"/s/AZaz09-._~", "these too"),
            ("trailing-slash", "3986 3.3", b"/s/a/", "another path than without"),
            ("three-dots", "3986 3.3", b"/s/...", "no dot segment"),
            ("dots-in-name", "3986 3.3", b"/s/a..b/.c", "no dot segment"),
            ("percent-utf-8", "3986 2.1", b"/s/%C3%A9", "stays encoded, in its spelling"),
            ("percent-lower-case", "3986 2.1", b"/s/%c3%a9", "stays encoded, in its spelling"),
            ("percent-blank", "3986 2.1", b"/s/a%20b", "stays encoded"),
            ("percent-percent", "3986 2.1", b"/s/100%25", "is not decoded twice"),
            ("percent-question-mark", "3986 2.1", b"/s/a%3Fb", "begins no query"),
            ("percent-hash", "3986 2.1", b"/s/a%23b", "begins no fragment"),
            ("colon", "3986 3.3", b"/s/a:b", "as Gemini's methods have it"),
            ("pipe-and-caret", "3986 2", b"/s/a|b^c", "bad by the letter, harmless, and the upstream's to judge"),
        )
    ),
    answered(
        "target-absolute-query",
        "9112 3.2.2",
        http(b"GET http://gw/s/a?b=/c HTTP/1.1", HOST),
        seen(b"GET /s/a?b=/c"),
        why="the rest of the URL is the target",
    ),
    answered(
        "target-absolute-other-port",
        "9112 3.2.2",
        http(b"GET http://gw:1/s/a HTTP/1.1", b"Host: gw:2"),
        A,
        why="only hosts choose a gateway, so that ports that differ can confuse nobody",
    ),
    answered(
        "target-absolute-1.0",
        "9112 3.2.2",
        http(b"GET http://gw/s/a HTTP/1.0", HOST),
        A,
        why="HTTP/1.0 has the form too",
        end=End.CLOSES,
    ),
]

CASES = [*HOSTS, *TARGETS]
