"""One call of the admin API as values: the request, the answer, and what is refused.

It knows HTTP's words and JSON, no socket, no route and no config.
"""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from aigw.wire import reply
from aigw.wire.head import RequestHead

JSON_TYPES = ("application/json", "application/merge-patch+json")
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")
MAX_DEPTH = 64  # of a body; twice what a config may have


class Refused(Exception):
    """A call that is not done. `message` says what would be right; `details` are findings with a path."""

    def __init__(
        self, status: int, code: str, message: str, details: list[dict[str, Any]] | None = None, *, lines: Any = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details or []
        self.lines: tuple[bytes, ...] = tuple(lines)  # of the answer's head


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is JSON-able, or bytes of `content_type`; None: there is none."""

    status: int
    body: Any = None
    etag: str | None = None
    location: str | None = None
    content_type: bytes = reply.JSON
    lines: tuple[bytes, ...] = ()

    def encode(self, *, now: float, close: bool, head_only: bool) -> bytes:
        body = self.body
        if not isinstance(body, bytes):
            body = b"" if body is None else orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
        lines = [b"cache-control: no-store", b"x-content-type-options: nosniff", *self.lines]
        if self.etag is not None:
            lines.append(b'etag: "%b"' % self.etag.encode())
        if self.location is not None:
            lines.append(b"location: " + self.location.encode())
        if self.status == 204:  # which says nothing about a body (RFC 9110 sections 8.6 and 15.3.5)
            head = [b"HTTP/1.1 204 No Content", *lines, *([b"connection: close"] if close else [])]
            return b"\r\n".join([*head, b"\r\n"])
        return reply.answer(
            self.status, body, now=now, content_type=self.content_type, lines=lines, close=close, head_only=head_only
        )


def refusal(error: Refused) -> Answer:
    body: dict[str, Any] = {"code": error.code, "message": error.message, "details": error.details}
    return Answer(error.status, {"error": body}, lines=error.lines)


@dataclass(slots=True)
class Request:
    """One request. `steps` is its path, split first and decoded then; `query` its parameters, each once."""

    method: str
    path: str  # as it came, for logs
    steps: list[str]
    query: dict[str, str]
    headers: dict[str, list[str]]
    body: bytes = b""
    client: str = ""  # address, or unix
    # for the audit
    notes: list[str] = field(default_factory=list)
    generation: int | None = None  # that a change has led to

    def header(self, name: str) -> str:
        """Its value, those of several lines joined; "" where there is none."""
        return ", ".join(self.headers.get(name, ()))

    def tags(self, name: str) -> list[str] | None:
        """The entity tags of If-Match or If-None-Match, without quotes; None where there is none. Raises: Refused."""
        if name not in self.headers:
            return None
        found = [tag.strip() for tag in self.header(name).split(",")]
        if found == ["*"]:
            return found
        if not all(len(tag) >= 2 and tag[0] == tag[-1] == '"' and '"' not in tag[1:-1] for tag in found):
            raise Refused(
                400, "bad_header", f'{name} takes entity tags as ETag brings them: {name}: "0123abcd", or *; no W/'
            )
        return [tag[1:-1] for tag in found]

    def content_type(self) -> str:
        return self.header("content-type").partition(";")[0].strip().lower()

    def json(self, types: tuple[str, ...] = JSON_TYPES) -> Any:
        """What the body says. Raises: Refused."""
        if self.content_type() not in types:
            raise Refused(415, "unsupported_type", f"the body must be JSON: send content-type: {types[0]}")
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise Refused(400, "invalid_json", f"the body is not valid JSON: {error}") from None
        try:
            json.loads(self.body, object_pairs_hook=_once)
        except RecursionError:
            value = None
        if value is None or _depth(value) > MAX_DEPTH:
            if self.body.strip() == b"null":
                return None
            raise Refused(400, "invalid_json", f"the body is nested more than {MAX_DEPTH} deep")
        return value

    def object(self, types: tuple[str, ...] = JSON_TYPES) -> dict[str, Any]:
        """The members of the body. Raises: Refused."""
        value = self.json(types)
        if not isinstance(value, dict):
            raise Refused(422, "invalid", 'the body must be a JSON object: {"member": value, ...}')
        return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        shown = json.dumps(twice[:80])
        raise Refused(400, "invalid_json", f"the member {shown} stands twice in one object; send it once")
    return found


def _depth(value: Any) -> int:
    """Levels of nesting; without recursion, since the body may be nested as deep as orjson takes."""
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def request_of(head: RequestHead, client: str) -> Request:
    """The request of a head, without its body. Raises: Refused."""
    line = head.line
    try:
        steps = [_text(step) for step in line.path.split(b"/")[1:]]
        query: dict[str, str] = {}
        for part in (line.query or b"").split(b"&"):
            if not part:
                continue
            name, _, value = part.replace(b"+", b" ").partition(b"=")
            if _text(name) in query:
                raise Refused(400, "bad_query", "a parameter of the query stands twice; send it once")
            query[_text(name)] = _text(value)
    except UnicodeDecodeError:
        raise Refused(400, "bad_request", "the path or query is not UTF-8 once percent-decoded") from None
    headers: dict[str, list[str]] = {"host": [head.host]}
    for text in head.kept:
        name, _, value = text.partition(b":")
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.strip(b" \t").decode("latin-1"))
    return Request(line.method, line.path.decode("latin-1"), steps, query, headers, client=client)


def _text(part: bytes) -> str:
    return unquote_to_bytes(part).decode()
