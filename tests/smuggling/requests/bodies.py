"""Bodies that name one model to the gateway and another one to the upstream; keys likewise (RFC 8259, RFC 7578; design
5, 7 and 13)."""

from __future__ import annotations

from smuggling.requests.case import HOST, Case, End, answered, declined, http, seen

CHAT = b"/v1/chat/completions"
FORM = b"/v1/audio/transcriptions"
BY_MODEL = b"Host: bymodel"  # a gateway with no default for what names no model
KEY = b"Authorization: Bearer sk-aigw-corpus"  # of `player.py`; it may use the model `cheap`
OTHER_KEY = b"Authorization: Bearer sk-aigw-other"  # it may use `dear`


def post(path: bytes, body: bytes, *lines: bytes, host: bytes = BY_MODEL) -> bytes:
    return http(b"POST " + path + b" HTTP/1.1", host, *lines, b"Content-Length: %d" % len(body), body=body)


JSON: list[Case] = [
    declined(f"json-{name}", section, post(CHAT, body), status, why=why)
    for name, section, body, status, why in (
        ("two-models", "8259 4", b'{"model": "cheap", "model": "dear"}', 400, "the first or the last?"),
        ("two-models-same", "8259 4", b'{"model": "cheap", "model": "cheap"}', 400, "names should be unique"),
        ("escaped-model", "8259 7", b'{"model": "cheap", "\\u006dodel": "dear"}', 400, "the same name"),
        ("escaped-model-first", "8259 7", b'{"mode\\u006C": "dear", "model": "cheap"}', 400, "the same name"),
        ("both-escaped", "8259 7", b'{"\\u006dodel": "cheap", "m\\u006fdel": "dear"}', 400, "the same name"),
        ("behind-nested", "8259 4", b'{"model": "cheap", "a": {"model": 1}, "model": "dear"}', 400, "one is nested"),
        ("case-model", "8259 4", b'{"model": "cheap", "Model": "dear"}', 400, "Go's reader folds case"),
        ("case-model-alone", "8259 4", b'{"MODEL": "dear"}', 400, "Go's reader folds case"),
        ("case-model-escaped", "8259 7", b'{"model": "cheap", "\\u004dodel": "dear"}', 400, "and unescapes"),
        ("no-model", "design 5", b'{"messages": []}', 400, "nothing to route by"),
        ("nested-only", "8259 4", b'{"a": {"model": "cheap"}}', 400, "a member of a member"),
        ("in-text-only", "8259 7", b'{"a": "\\"model\\": \\"cheap\\""}', 400, "text that looks like a member"),
        ("padded-name", "8259 4", b'{" model": "cheap", "model ": "cheap"}', 400, "other names"),
        ("null", "design 5", b'{"model": null}', 400, "no text"),
        ("number", "design 5", b'{"model": 1}', 400, "no text"),
        ("list", "design 5", b'{"model": ["cheap"]}', 400, "no text"),
        ("object", "design 5", b'{"model": {"a": "cheap"}}', 400, "no text"),
        ("empty", "design 5", b'{"model": ""}', 400, "no name"),
        ("unknown", "design 14", b'{"model": "nobody"}', 404, "no such model"),
        ("unknown-by-case", "design 5", b'{"model": "CHEAP"}', 404, "names have a case"),
        ("unknown-blank", "design 5", b'{"model": "cheap "}', 404, "another name"),
        ("unknown-nul", "8259 7", b'{"model": "cheap\\u0000"}', 404, "another name, and not for a reader in C"),
        ("unknown-crlf", "8259 7", b'{"model": "cheap\\r\\nx: y"}', 404, "must not become a header"),
        ("too-long", "design 13", b'{"model": "' + b"m" * 1100 + b'"}', 400, "no name is that long"),
        ("not-an-object", "8259 2", b'["model", "cheap"]', 400, "a list has no members"),
        ("text", "8259 2", b'"model"', 400, "a text has no members"),
        ("no-body", "8259 2", b"", 400, "no JSON"),
        ("bom", "8259 8.1", b'\xef\xbb\xbf{"model": "cheap"}', 400, "must not be added, and read by some only"),
        ("utf-16", "8259 8.1", '{"model": "cheap"}'.encode("utf-16"), 400, "UTF-8 it must be"),
        ("utf-16-le", "8259 8.1", '{"model": "cheap"}'.encode("utf-16-le"), 400, "UTF-8 it must be"),
        ("utf-32", "8259 8.1", '{"model": "cheap"}'.encode("utf-32-be"), 400, "UTF-8 it must be"),
        ("latin-1", "8259 8.1", b'{"model": "cheap", "a": "\xe9"}', 400, "UTF-8 it must be"),
        ("overlong", "3629 3", b'{"model": "cheap", "\xc1\xadodel": "dear"}', 400, "an overlong m"),
        ("surrogate", "8259 8.2", b'{"model": "cheap", "a": "\\ud800"}', 400, "half a character"),
        ("surrogate-in-utf-8", "3629 3", b'{"model": "cheap", "a": "\xed\xa0\x80"}', 400, "half a character"),
        ("number-out-of-range", "8259 6", b'{"model": "cheap", "a": 1E400}', 400, "infinity for some"),
        ("comment", "8259 2", b'{/* "model": "dear", */ "model": "cheap"}', 400, "JSON has no comments"),
        ("line-comment", "8259 2", b'{"model": "cheap" // "\n, "model": "dear"\n}', 400, "JSON has no comments"),
        ("trailing-comma", "8259 4", b'{"model": "cheap",}', 400, "for lenient readers alone"),
        ("single-quotes", "8259 7", b"{'model': 'cheap'}", 400, "for lenient readers alone"),
        ("bare-name", "8259 4", b'{model: "cheap"}', 400, "for lenient readers alone"),
        ("nan", "8259 6", b'{"model": "cheap", "a": NaN}', 400, "no number"),
        ("two-documents", "8259 2", b'{"model": "cheap"}{"model": "dear"}', 400, "the first or the last?"),
        ("two-lines", "8259 2", b'{"model": "cheap"}\n{"model": "dear"}', 400, "the first or the last?"),
        ("nul-behind", "8259 2", b'{"model": "cheap"}\0', 400, "a reader in C does not see it"),
        ("cut", "8259 2", b'{"model": "cheap"', 400, "not whole"),
        ("raw-control", "8259 7", b'{"model": "cheap", "a": "\n"}', 400, "must be escaped"),
        ("bad-escape", "8259 7", b'{"model": "cheap", "a": "\\x"}', 400, "no such escape"),
        ("deep", "8259 9", b'{"model": "cheap", "a": ' + b"[" * 1100 + b"]" * 1100 + b"}", 400, "deeper than is read"),
        ("xssi-prefix", "8259 2", b')]}\',\n{"model": "cheap"}', 400, "no JSON"),
        ("form", "8259 2", b"model=cheap", 400, "no JSON"),
    )
]  # fmt: skip
JSON += [
    answered(f"json-{name}", section, post(CHAT, body), seen(b"POST " + CHAT, body=sent or body, by="llm"), why=why)
    for name, section, body, sent, why in (
        ("plain", "8259 4", b'{"model":"cheap"}', b"", "the smallest"),
        ("white-space", "8259 2", b' \t\r\n{ "model" \n:\t"cheap"\r\n} \n', b"", "stays as it came"),
        ("model-last", "8259 4", b'{"a": 1, "model": "cheap"}', b"", "anywhere"),
        ("escaped-name", "8259 7", b'{"\\u006dodel": "cheap"}', b"", "one member, in another spelling"),
        ("escaped-value", "8259 7", b'{"model": "ch\\u0065ap"}', b"", "one value, in another spelling"),
        ("nested-too", "8259 4", b'{"model": "cheap", "tools": [{"model": "dear"}]}', b"", "a member of a member"),
        ("in-text-too", "8259 7", b'{"model": "cheap", "a": "\\"model\\": \\"dear\\""}', b"", "text"),
        ("unknown-members", "design 5", b'{"model": "cheap", "x_new": [1, {}]}', b"", "not ours to drop"),
        ("other-doubles", "8259 4", b'{"model": "cheap", "a": 1, "a": 2}', b"", "not ours to judge"),
        ("numbers", "8259 6", b'{"model": "cheap", "b": -0, "c": 12345678901234567890123}', b"", "as written"),
        ("utf-8", "8259 8.1", '{"model": "cheap", "a": "\N{SNOWMAN}"}'.encode(), b"", "as it came"),
        ("similar-names", "8259 4", b'{"model": "cheap", "models": 1, "model_": 2}', b"", "other names"),
        ("renamed", "design 5", b'{ "model" : "alias" , "x": "alias"}', b'{ "model" : "real-name" , "x": "alias"}',
         "patched in place, and nothing else"),
        ("renamed-escaped", "design 5", b'{"\\u006dodel": "al\\u0069as"}', b'{"\\u006dodel": "real-name"}', "likewise"),
    )
]  # fmt: skip

TYPES = [
    *(
        declined(
            f"type-{name}",
            "design 5",
            post(CHAT, b'{"model": "cheap"}', *lines),
            status,
            why=why,
            end=End.EITHER,
        )
        for name, lines, status, why in (
            ("gzip", (b"Content-Encoding: gzip",), 415, "the model could not be read"),
            ("unknown-encoding", (b"Content-Encoding: x",), 415, "the model could not be read"),
            ("identity-and-gzip", (b"Content-Encoding: identity", b"Content-Encoding: gzip"), 415, "two lines, a list"),
            ("gzip-and-identity", (b"Content-Encoding: gzip", b"Content-Encoding: identity"), 415, "two lines, a list"),
            ("encoding-list", (b"Content-Encoding: identity, identity",), 415, "not exactly identity"),
            ("charset-utf-16", (b"Content-Type: application/json; charset=utf-16",), 415, "read otherwise by some"),
            ("charset-utf-7", (b"Content-Type: application/json; charset=UTF-7",), 415, "+AG0- is an m there"),
            (
                "charset-ebcdic",
                (b"Content-Type: application/json;charset=cp037",),
                415,
                "nothing is what it seems there",
            ),
            ("charset-quoted", (b'Content-Type: application/json; charset="utf-7"',), 415, "quoted, the same"),
        )
    ),
    *(
        answered(
            f"type-{name}",
            "design 5",
            post(CHAT, b'{"model": "cheap"}', *lines),
            seen(b"POST " + CHAT, *lines, body=b'{"model": "cheap"}', by="llm"),
            why=why,
        )
        for name, lines, why in (
            ("json", (b"Content-Type: application/json",), "as it should be"),
            ("charset-utf-8", (b"Content-Type: application/json; charset=utf-8",), "what it is anyway"),
            ("charset-utf-8-quoted", (b'Content-Type: application/json; Charset="UTF-8"',), "what it is anyway"),
            ("charset-ascii", (b"Content-Type: application/json; charset=us-ascii",), "a part of UTF-8"),
            ("charset-latin-1", (b"Content-Type: application/json; charset=ISO-8859-1",), "ASCII means the same there"),
            ("curl", (b"Content-Type: application/x-www-form-urlencoded",), "what curl -d says without being told"),
            ("empty-encoding", (b"Content-Encoding:",), "none"),
            ("identity", (b"Content-Encoding: identity",), "none"),
        )
    ),
    Case(
        "types-two",
        "9110 8.3",
        post(CHAT, b'{"model": "cheap"}', b"Content-Type: application/json", b"Content-Type: text/plain"),
        "two readers could read two bodies",
        (400,),
        (),
        End.CLOSES,
    ),
]


def part(headers: bytes, value: bytes) -> bytes:
    return b"--b\r\n" + headers + b"\r\n\r\n" + value + b"\r\n"


DISPOSITION = b'Content-Disposition: form-data; name="model"'
CHEAP = part(DISPOSITION, b"cheap")
FILE = part(b'Content-Disposition: form-data; name="file"; filename="a.wav"', b"\0\xff--b")
TYPE = b"Content-Type: multipart/form-data; boundary=b"

FORMS = [
    # where the first part is a good model, the form is on its way upstream before the bad part comes
    declined(
        f"form-{name}",
        section,
        post(FORM, body + b"--b--\r\n", type_),
        404 if name == "model-empty" else 400,
        why=why,
        end=End.EITHER,
        begun=body.startswith(CHEAP),
    )
    for name, section, type_, body, why in (
        ("two-models", "7578 4.3", TYPE, CHEAP + part(DISPOSITION, b"dear"), "the first or the last?"),
        ("no-model", "design 5", TYPE, FILE, "nothing to route by"),
        ("model-by-case", "7578 4.2", TYPE,
         CHEAP + part(DISPOSITION.replace(b"model", b"Model"), b"dear"), "folds for some"),
        ("model-is-a-file", "7578 4.2", TYPE, part(DISPOSITION + b'; filename="x"', b"cheap"), "a file is no name"),
        ("name-with-backslash", "7578 4.2", TYPE,
         part(DISPOSITION.replace(b"mod", b"\\mod"), b"cheap"), "escaped or not?"),
        ("name-extended", "7578 4.2", TYPE,
         CHEAP + part(b"Content-Disposition: form-data; name*=UTF-8''model", b"dear"), "must not be used, but is read"),
        ("name-twice", "7578 4.2", TYPE, part(DISPOSITION + b"; name=x", b"cheap"), "the first or the last?"),
        ("disposition-twice", "7578 4.2", TYPE,
         part(DISPOSITION + b"\r\nContent-Disposition: form-data; name=x", b"cheap"), "the first or the last?"),
        ("no-disposition", "7578 4.2", TYPE, part(b"X: y", b"cheap"), "a part needs one"),
        ("attachment", "7578 4.2", TYPE,
         part(DISPOSITION.replace(b"form-data", b"attachment"), b"cheap"), "no form's part"),
        ("folded", "9112 5.2", TYPE, part(DISPOSITION.replace(b"; ", b";\r\n "), b"cheap"), "folding is obsolete"),
        ("lf", "2046 5.1.1", TYPE, CHEAP.replace(b"\r\n", b"\n"), "lines of a form end in CRLF"),
        ("coded", "7578 4.7", TYPE,
         part(DISPOSITION + b"\r\nContent-Transfer-Encoding: base64", b"Y2hlYXA="), "decoded by some only"),
        ("no-boundary", "2046 5.1.1", b"Content-Type: multipart/form-data", CHEAP, "where do parts end?"),
        ("two-boundaries", "2046 5.1.1", TYPE + b"; boundary=c", CHEAP, "the first or the last?"),
        ("empty-boundary", "2046 5.1.1", b'Content-Type: multipart/form-data; boundary=""', CHEAP, "everything is one"),
        ("boundary-with-blank-behind", "2046 5.1.1",
         b'Content-Type: multipart/form-data; boundary="b "', CHEAP, "trimmed?"),
        ("boundary-and-text", "2046 5.1.1", TYPE, CHEAP.replace(b"--b\r\n", b"--bx\r\n"), "only begins like one"),
        ("boundary-and-blank", "2046 5.1.1", TYPE, CHEAP.replace(b"--b\r\n", b"--b \r\n"), "padding, read by some"),
        ("model-not-utf-8", "7578 5.1", TYPE, part(DISPOSITION, b"\xff"), "no text"),
        ("model-too-long", "design 13", TYPE, part(DISPOSITION, b"m" * 1100), "no name is that long"),
        ("model-empty", "design 5", TYPE, part(DISPOSITION, b""), "no name"),
    )
]  # fmt: skip
FORMS += [
    answered(
        f"form-{name}",
        section,
        post(FORM, body, type_),
        seen(b"POST " + FORM, type_, body=sent or body, by="llm"),
        why=why,
    )
    for name, section, type_, body, sent, why in (
        ("plain", "7578 4", TYPE, CHEAP + FILE + b"--b--\r\n", b"", "as it came"),
        ("model-last", "7578 4", TYPE, FILE + CHEAP + b"--b--", b"", "as OpenAI's SDK sends it"),
        ("preamble", "2046 5.1.1", TYPE, b"hello\r\n" + CHEAP + b"--b--\r\nbye", b"", "and an epilogue: to be ignored"),
        ("token-name", "7578 4.2", TYPE,
         part(DISPOSITION.replace(b'"', b""), b"cheap") + b"--b--\r\n", b"", "no quotes"),
        ("case", "2045 5.1", TYPE,
         part(DISPOSITION.upper().replace(b"MODEL", b"model"), b"cheap") + b"--b--", b"", "no case"),
        ("quoted-boundary", "2046 5.1.1",
         b'Content-Type: multipart/form-data; boundary="b"', CHEAP + b"--b--", b"", "quoted"),
        ("renamed", "design 5", TYPE, FILE + part(DISPOSITION, b"alias") + FILE + b"--b--\r\n",
         FILE + part(DISPOSITION, b"real-name") + FILE + b"--b--\r\n", "patched in place, and nothing else"),
    )
]  # fmt: skip

PATHS = [
    declined("path-names-no-model", "design 5", post(b"/v1beta/models/nobody:generateContent", b"{}"), 404,
             why="the path names it", end=End.EITHER),
    declined("path-names-cut-model", "3986 2.1", post(b"/v1beta/models/g%2:generateContent", b"{}"), 400,
             why="no percent-encoding", end=End.CLOSES),
    answered("path-names-model", "design 5", post(b"/v1beta/models/g-1:generateContent", b'{"model": "dear"}'),
             seen(b"POST /v1beta/models/g-1:generateContent", body=b'{"model": "dear"}', by="gemini"),
             why="the path decides; what the body says is not looked at"),
    answered("path-names-encoded-model", "3986 2.1", post(b"/v1beta/models/g-%31:generateContent", b"{}"),
             seen(b"POST /v1beta/models/g-%31:generateContent", body=b"{}", by="gemini"),
             why="decoded to decide, sent as it came"),
]  # fmt: skip


def keyed(*lines: bytes, path: bytes = b"/s/a") -> bytes:
    return http(b"GET " + path + b" HTTP/1.1", b"Host: keyed", *lines)


KEYS = [
    *(
        declined(f"key-{name}", "design 7", keyed(*lines, path=path), 401, why=why)
        for name, path, lines, why in (
            ("none", b"/s/a", (), "no key"),
            ("unknown", b"/s/a", (b"Authorization: Bearer sk-x",), "nobody's"),
            ("empty", b"/s/a", (b"Authorization: Bearer ",), "an empty key never is one"),
            ("empty-x", b"/s/a", (b"X-Api-Key:",), "an empty key never is one"),
            ("basic", b"/s/a", (b"Authorization: Basic sk-aigw-corpus",), "another scheme"),
            ("two", b"/s/a", (KEY, OTHER_KEY), "who pays?"),
            ("two-places", b"/s/a", (KEY, b"X-Api-Key: sk-aigw-other"), "who pays?"),
            ("good-and-unknown", b"/s/a", (KEY, b"X-Api-Key: sk-x"), "two different ones"),
            ("good-and-unknown-query", b"/s/a?key=sk-x", (KEY,), "two different ones"),
            ("query-twice", b"/s/a?key=sk-aigw-corpus&key=sk-aigw-other", (), "who pays?"),
            ("prefix", b"/s/a", (b"X-Api-Key: sk-aigw-corpu",), "all of it, or none"),
            ("case", b"/s/a", (b"X-Api-Key: SK-AIGW-CORPUS",), "keys have a case"),
            ("nbsp", b"/s/a", (b"X-Api-Key: sk-aigw-corpus\xa0",), "not trimmed"),
            ("list", b"/s/a", (b"X-Api-Key: sk-aigw-corpus, sk-x",), "no list"),
            ("own-empty", b"/s/a", (b"X-Aigw-Key:", KEY), "where it stands it is the key"),
            ("own-wrong", b"/s/a", (b"X-Aigw-Key: sk-x", KEY), "where it stands it is the key"),
            ("other-rule-by-path", b"/s/public/a", (), "not the public rule"),
        )
    ),
    declined("key-public-by-encoding", "design 7", keyed(path=b"/%70ublic/a"), 400, why="another rule for who decodes"),
    declined("key-model-not-allowed", "design 14", post(CHAT, b'{"model": "dear"}', KEY, host=b"Host: keyed"), 403,
             why="the key may use `cheap` alone", end=End.EITHER),
    declined("key-and-no-body", "design 14", post(CHAT, b'{"model": "cheap"}', host=b"Host: keyed"), 401,
             why="answered by its head: the body is not the next request", end=End.EITHER),
    *(
        answered(f"key-{name}", "design 7", keyed(*lines, path=path), seen(b"GET " + sent, *kept), why=why)
        for name, path, sent, lines, kept, why in (
            ("bearer", b"/s/a", b"/s/a", (KEY,), (), "as OpenAI's SDK sends it; it ends here"),
            ("bearer-by-case", b"/s/a", b"/s/a", (KEY.replace(b"Bearer", b"bEARER"),), (), "schemes have no case"),
            ("bare", b"/s/a", b"/s/a", (KEY.replace(b"Bearer ", b""),), (), "no scheme: a key is meant"),
            ("x-api-key", b"/s/a", b"/s/a", (b"x-api-key: sk-aigw-corpus",), (), "as Anthropic's SDK sends it"),
            ("same-twice", b"/s/a", b"/s/a", (KEY, b"X-Api-Key: sk-aigw-corpus"), (), "one key in two places"),
            ("query", b"/s/a?key=sk-aigw-corpus&a=b", b"/s/a?a=b", (), (), "as Google's SDK sends it"),
            ("query-encoded", b"/s/a?k%65y=sk%2Daigw-corpus", b"/s/a", (), (), "in whatever spelling"),
            ("own", b"/s/a", b"/s/a", (b"X-Aigw-Key: sk-aigw-corpus", b"Authorization: Bearer mine"),
             (b"Authorization: Bearer mine",), "the rest is the client's own"),
            ("public", b"/public/a", b"/public/a", (), (), "a rule that asks for none"),
        )
    ),
    answered("key-and-model", "design 14", post(CHAT, b'{"model": "cheap"}', KEY, host=b"Host: keyed"),
             seen(b"POST " + CHAT, body=b'{"model": "cheap"}', by="llm"),
             why="the key ends here, the upstream's goes on"),
    answered("cookie-by-model", "design 7", post(CHAT, b'{"model": "cheap"}', b"Cookie: a=b"),
             seen(b"POST " + CHAT, body=b'{"model": "cheap"}', by="llm"), why="cookies do not go to providers"),
    answered("cookie-spliced", "design 7", http(b"GET /s/a HTTP/1.1", HOST, b"Cookie: a=b"),
             seen(b"GET /s/a", b"Cookie: a=b"), why="an HTTP upstream gets them"),
    answered("credentials-by-model", "design 7",
             post(CHAT, b'{"model": "cheap"}', b"Authorization: Bearer x", b"X-Api-Key: y", b"Api-Key: z"),
             seen(b"POST " + CHAT, body=b'{"model": "cheap"}', by="llm"), why="the upstream has one of its own"),
]  # fmt: skip

CASES = [*JSON, *TYPES, *FORMS, *PATHS, *KEYS]
