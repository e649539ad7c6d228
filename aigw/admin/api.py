"""The admin API's routes: which path means what, under /api/v1 and beside it.

    /config  /config/check  /gateways/...  /upstreams/...     the config: read from `Looking`, changed by `Writer`
    /status  /explain  /exchanges  /usage  /reload  /schema   the running gateway: asked of `Control`, or a function
    /metrics                                                  the same, outside of /api/v1
    /healthz  /readyz                                         without a token

Bodies are the config's own fields plus `name`. Every answer of an error is `{"error": {"code", "message", "details"}}`.
"""

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from aigw.admin.guard import Guard
from aigw.admin.looking import Looking
from aigw.admin.messages import JSON_TYPES, YAML_TYPES, Answer, Refused, Request
from aigw.admin.recent import FILTERS, MOST, Recent
from aigw.admin.writer import Applier, Edit, Outcome, Writer
from aigw.config.problem import secretive
from aigw.process import log
from aigw.usage import PARAMETERS
from aigw.wire import reply

PREFIX = "/api/v1"
LIMIT = 100  # exchanges of an answer, where nothing is said
READING = ("GET", "HEAD")


class Control(Applier, Protocol):
    """What the admin API asks of the supervisor."""

    @property
    def is_ready(self) -> bool:
        """It serves, and is not about to end."""

    async def reload(self, why: str) -> list[str]:
        """Reads the config again. Answers what is wrong with it."""

    def status(self) -> dict[str, Any]: ...

    def changes(self, compiled: dict[str, Any]) -> list[dict[str, str]]:
        """What of the served config another one would change: path and what becomes of it."""


Explain = Callable[[dict[str, Any], dict[str, Any] | None], dict[str, Any]]
"""What would be done with a request: a sample of it, and the record of an exchange that it shall be like, if any.
Raises: ValueError, with a message for people."""

Metrics = Callable[[], tuple[bytes, bytes]]
"""Content type and text of the exposition."""

Usage = Callable[[Mapping[str, str]], Awaitable[dict[str, Any]]]
"""Who used what, for the parameters of a query. Raises: ValueError, with what would be right; Refused."""

Handler = Callable[["Api", Request, list[str]], Awaitable[Answer]]


class Api:
    """`answer` is called for what `admit` has let through. /explain, /metrics and /usage are there if their functions
    are."""

    def __init__(
        self,
        control: Control,
        guard: Guard,
        recent: Recent,
        explain: Explain | None = None,
        metrics: Metrics | None = None,
        usage: Usage | None = None,
    ) -> None:
        self._control = control
        self._explain = explain
        self._metrics = metrics
        self._usage = usage
        self._guard = guard
        self._recent = recent
        self._looking = Looking(control)
        self._writer = Writer(control)

    async def close(self) -> None:
        """Nothing is changed any more; looking goes on."""
        await self._writer.close()

    async def admit(self, request: Request, authorization: str, host: str) -> None:
        if request.path not in ("/healthz", "/readyz"):
            await self._guard.admit(request, authorization, host)

    async def answer(self, request: Request) -> Answer:
        handler, at, is_change = self._route(request)
        if not is_change:
            return await handler(self, request, at)
        try:
            answer = await handler(self, request, at)
        except Refused as error:
            self._audit(request, f"{error.status} {error.code}")
            raise
        self._audit(request, str(answer.status))
        return answer

    def _audit(self, request: Request, result: str) -> None:
        who = f"{request.client} ({'with the token' if self._guard.has_token else 'no token asked'})"
        path = "/".join("***" if secretive(step) else quote(step, safe="@:*") for step in ["", *request.steps])
        notes = f" ({', '.join('***' if secretive(note) else note for note in request.notes)})" if request.notes else ""
        generation = self._control.generation if request.generation is None else request.generation
        log(f"audit: {who}: {request.method} {path}{notes}: {result}, generation {generation}")

    def _route(self, request: Request) -> tuple[Handler, list[str], bool]:
        """What does it, with the path behind /api/v1, and whether it changes something. Raises: Refused."""
        steps = request.steps
        for pattern, methods in ROUTES:
            if len(pattern) != len(steps) or any(
                want != step if want != "*" else not step for want, step in zip(pattern, steps, strict=True)
            ):
                continue
            handler = methods.get("GET" if request.method == "HEAD" else request.method)
            if handler is None:
                allowed = ", ".join([*(("HEAD",) if "GET" in methods else ()), *methods])
                message = f"{request.method} is not possible here; there are {allowed}"
                raise Refused(405, "method_not_allowed", message, lines=(b"allow: " + allowed.encode(),))
            _check_query(request, QUERIES.get(pattern, ()))
            if request.body and (request.method in (*READING, "DELETE")):
                raise Refused(400, "bad_request", f"{request.method} takes no body here; send none")
            return handler, steps[2:], request.method not in READING and pattern not in ONLY_LOOKED_AT
        raise _nothing_there(request)

    # --- health

    async def healthy(self, request: Request, at: list[str]) -> Answer:
        return Answer(200, b"ok\n", content_type=reply.TEXT)

    async def ready(self, request: Request, at: list[str]) -> Answer:
        if self._control.is_ready:
            return Answer(200, b"ok\n", content_type=reply.TEXT)
        return Answer(503, b"not ready\n", content_type=reply.TEXT)

    # --- the whole config

    async def get_config(self, request: Request, at: list[str]) -> Answer:
        shown = await self._looking.config()
        accept = request.header("accept").lower()
        yaml = min((accept.find(kind) for kind in YAML_TYPES if kind in accept), default=-1)
        json = accept.find(JSON_TYPES[0])
        if yaml >= 0 and not 0 <= json < yaml:
            return Answer(200, shown["text"].encode(), etag=shown["tag"], content_type=YAML_TYPES[0].encode())
        return Answer(200, shown["document"], etag=shown["etags"][""])

    async def put_config(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("put", [], request)
        _take_document(edit, request)
        outcome = await self._writer.submit(edit)
        return _written(request, outcome, None)

    async def check_config(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("check", [], request)
        if request.body:
            _take_document(edit, request)
        result = await self._looking.check(edit)
        compiled = result["compiled"]
        changes = self._control.changes(compiled)
        return Answer(200, {"warnings": compiled["warnings"], "changes": changes})

    # --- resources

    async def list_items(self, request: Request, at: list[str]) -> Answer:
        return Answer(200, {"items": await self._looking.items(at)})

    async def get_item(self, request: Request, at: list[str]) -> Answer:
        item, etag = await self._looking.item(at)
        return Answer(200, item, etag=etag)

    async def create_item(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("create", at, request)
        edit["value"] = value = request.object()
        key = None
        if at[-1] == "keys" and "sha256" not in value:
            key, value["sha256"] = new_key()
        outcome = await self._writer.submit(edit)
        request.notes.append(str(outcome.result["name"]))
        return _written(request, outcome, at, key)

    async def put_item(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("put", at, request)
        edit["value"] = request.object()
        return _written(request, await self._writer.submit(edit), at[:-1])

    async def patch_item(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("patch", at, request)
        edit["value"] = request.object()
        return _written(request, await self._writer.submit(edit), at[:-1])

    async def delete_item(self, request: Request, at: list[str]) -> Answer:
        return _written(request, await self._writer.submit(_edit("delete", at, request)), at[:-1])

    async def rotate_key(self, request: Request, at: list[str]) -> Answer:
        edit = _edit("rotate", at[:-1], request)
        sent = request.object() if request.body else {}
        unknown = sent.keys() - {"grace"}
        if unknown:
            message = 'the body has one member at most: {"grace": "24h"}, how long the key before is still taken'
            raise Refused(422, "invalid", message, [{"path": min(unknown), "message": message}])
        key, digest = new_key()
        edit["value"] = {"sha256": digest}
        edit["grace"] = sent.get("grace", "0s")
        return _written(request, await self._writer.submit(edit), at[:-2], key)

    # --- the running gateway

    async def status(self, request: Request, at: list[str]) -> Answer:
        return Answer(200, self._control.status())

    async def metrics(self, request: Request, at: list[str]) -> Answer:
        if self._metrics is None:
            raise _nothing_there(request)
        content_type, text = self._metrics()
        return Answer(200, text, content_type=content_type)

    async def explain(self, request: Request, at: list[str]) -> Answer:
        if self._explain is None:
            raise _nothing_there(request)
        sample = request.object()
        record = None
        if "request_id" in sample:
            request_id = sample.pop("request_id")
            record = self._recent.find(request_id) if isinstance(request_id, str) else None
            if record is None:
                raise Refused(404, "not_found", f"no exchange with this request_id is among the last {MOST}")
        try:
            return Answer(200, self._explain(sample, record))
        except ValueError as error:
            raise Refused(422, "invalid", str(error)) from None

    async def exchanges(self, request: Request, at: list[str]) -> Answer:
        wanted = dict(request.query)
        limit = wanted.pop("limit", str(LIMIT))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:6]) <= MOST and len(limit) < 6):
            raise Refused(400, "bad_query", f"limit must be a number from 1 to {MOST}")
        return Answer(200, {"items": self._recent.select(wanted, int(limit))})

    async def exchange(self, request: Request, at: list[str]) -> Answer:
        record = self._recent.find(at[1])
        if record is None:
            raise Refused(404, "not_found", f"no exchange with this request id is among the last {MOST}")
        return Answer(200, record)

    async def usage(self, request: Request, at: list[str]) -> Answer:
        if self._usage is None:
            raise _nothing_there(request)
        try:
            return Answer(200, await self._usage(request.query))
        except ValueError as error:
            raise Refused(400, "bad_query", str(error)) from None

    async def reload(self, request: Request, at: list[str]) -> Answer:
        if request.body and request.object():
            raise Refused(422, "invalid", "reload takes no members; send no body")
        errors = await self._control.reload("POST /reload")
        if errors:
            details = [{"path": "", "message": error} for error in errors]
            raise Refused(422, "config_invalid", f"the config is not obeyed: {errors[0]}", details)
        return Answer(200, {"generation": self._control.generation})

    async def schema(self, request: Request, at: list[str]) -> Answer:
        return Answer(200, await self._looking.schema())


def _nothing_there(request: Request) -> Refused:
    steps = request.steps
    slash = ", and no path ends in /" if len(steps) > 1 and not steps[-1] else ""
    return Refused(404, "not_found", f"there is nothing at this path; the API is under {PREFIX}{slash}")


def new_key() -> tuple[str, str]:
    """A key of the gateway, and the digest that the config keeps."""
    key = f"sk-aigw-{secrets.token_urlsafe(32)}"
    return key, hashlib.sha256(key.encode()).hexdigest()


def _edit(op: str, at: list[str], request: Request) -> Edit:
    absent = request.tags("if-none-match")
    if absent not in (None, ["*"]):
        raise Refused(400, "bad_header", "if-none-match takes * only here: it must not exist yet")
    return {
        "op": op,
        "at": at,
        "value": None,
        "text": None,
        "match": request.tags("if-match"),
        "absent": absent is not None,
        "grace": "0s",
    }


def _take_document(edit: Edit, request: Request) -> None:
    kind = request.content_type()
    if kind in YAML_TYPES:
        try:
            edit["text"] = request.body.decode()
        except UnicodeDecodeError as error:
            message = f"the body is not UTF-8 from byte {error.start} on; send it as UTF-8"
            raise Refused(400, "bad_request", message) from None
    elif kind == JSON_TYPES[0]:
        edit["value"] = request.object(JSON_TYPES[:1])
    else:
        message = f"the config is sent as content-type: {YAML_TYPES[0]}, or as {JSON_TYPES[0]}"
        raise Refused(415, "unsupported_type", message)


def _written(request: Request, outcome: Outcome, above: list[str] | None, key: str | None = None) -> Answer:
    """The answer to a change; `above` is the collection of what was changed."""
    result = outcome.result
    request.generation = outcome.generation
    lines = (b"x-aigw-generation: %d" % outcome.generation,)
    body: Any = result.get("item")
    if key is not None:
        body = {"name": body["name"], "key": key} | body
    status = int(result["status"])
    location = None
    if above is not None and status == 201:
        location = "/".join([PREFIX, *(quote(step, safe="") for step in (*above, str(result["name"])))])
    if outcome.pending:
        status, body = 202, {**(body or {}), "pending": outcome.pending, "generation": outcome.generation}
    return Answer(status, body, etag=result.get("etag"), location=location, lines=lines)


def _check_query(request: Request, known: tuple[str, ...]) -> None:
    for name in request.query:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise Refused(400, "bad_query", f"unknown parameter {quote(name[:40])!r} of the query; {takes}")


def _routes() -> list[tuple[tuple[str, ...], dict[str, Handler]]]:
    many: dict[str, Handler] = {"GET": Api.list_items, "POST": Api.create_item}
    one: dict[str, Handler] = {
        "GET": Api.get_item,
        "PUT": Api.put_item,
        "PATCH": Api.patch_item,
        "DELETE": Api.delete_item,
    }
    collections = ("gateways", "upstreams", "gateways/*/keys", "gateways/*/models", "gateways/*/rules")
    table: dict[str, Mapping[str, Handler]] = {
        "config": {"GET": Api.get_config, "PUT": Api.put_config},
        "config/check": {"POST": Api.check_config},
        **dict.fromkeys((*collections, "upstreams/*/targets"), many),
        **{f"{path}/*": one for path in (*collections, "upstreams/*/targets")},
        "gateways/*/keys/*/rotate": {"POST": Api.rotate_key},
        "status": {"GET": Api.status},
        "explain": {"POST": Api.explain},
        "exchanges": {"GET": Api.exchanges},
        "exchanges/*": {"GET": Api.exchange},
        "usage": {"GET": Api.usage},
        "reload": {"POST": Api.reload},
        "schema": {"GET": Api.schema},
    }
    outside: dict[str, Mapping[str, Handler]] = {
        "healthz": {"GET": Api.healthy},
        "readyz": {"GET": Api.ready},
        "metrics": {"GET": Api.metrics},
    }
    found = [(("api", "v1", *path.split("/")), dict(methods)) for path, methods in table.items()]
    return found + [((path,), dict(methods)) for path, methods in outside.items()]


ROUTES = _routes()
QUERIES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("api", "v1", "exchanges"): (*FILTERS, "limit"),
    ("api", "v1", "usage"): PARAMETERS,
}
ONLY_LOOKED_AT = {("api", "v1", "config", "check"), ("api", "v1", "explain")}
