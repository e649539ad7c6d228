"""A sample of a request: what someone asks about, from few words to the bytes that a client would send.

What is not said is made as the path wants it: a body that names the model, the headers of a dialect. Pure; what becomes
of it is the business of `explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import orjson

from aigw.config.snapshot import GatewaySpec, Snapshot
from aigw.providers.endpoints import classify
from aigw.wire.fields import X_AIGW_KEY, Field
from aigw.wire.head import RequestHead

HOST: Final = "localhost"  # of a sample that names none
_DIALECT_LINES: Final = {
    "openai": [],
    "anthropic": ["anthropic-version: 2023-06-01"],
    "gemini": ["x-goog-api-client: aigw"],
}
_OWN_LINES: Final = frozenset({"host", "content-length", "transfer-encoding", "expect"})
_BOUNDARY: Final = "aigw-sample"
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})


class SampleError(ValueError):
    """Why a sample is none: `name` is its member at fault."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass(frozen=True, slots=True, repr=False)
class Sample:
    """A request to explain. `body` None: one is made that names `model` as the path wants it."""

    path: str
    method: str = "POST"
    host: str = HOST
    headers: tuple[tuple[str, str], ...] = ()
    model: str | None = None
    key: str | None = None
    key_name: str | None = None
    body: bytes | None = None
    dialect: str | None = None

    def __repr__(self) -> str:
        return f"<Sample {self.method}>"  # anything else may hold a key

    @classmethod
    def of(cls, members: Mapping[str, Any]) -> Sample:
        """From plain data: `body` is a text, or JSON; `headers` an object of texts.

        Raises: SampleError, which says what is wrong and what would be right.
        """
        unknown = members.keys() - set(cls.__slots__)
        if unknown:
            raise SampleError(min(unknown), f"there is no such member; there are {', '.join(cls.__slots__)}")
        given: dict[str, Any] = {name: value for name, value in members.items() if value is not None}
        if "path" not in given:
            raise SampleError("path", "missing; give the request's path, such as /v1/chat/completions")
        headers = given.pop("headers", {})
        if not isinstance(headers, dict):
            raise SampleError("headers", 'must be an object of texts, such as {"user-agent": "curl"}')
        for name, value in [*headers.items(), *((name, value) for name, value in given.items() if name != "body")]:
            if not isinstance(value, str):
                raise SampleError(f"headers.{name}" if name in headers else name, "must be a text")
        given["headers"] = tuple(headers.items())
        if "body" in given:
            given["body"] = _bytes(given["body"])
        if given.get("dialect", "openai") not in _DIALECT_LINES:
            raise SampleError("dialect", f"must be one of {', '.join(_DIALECT_LINES)}")
        return cls(**given)

    @classmethod
    def of_record(cls, snapshot: Snapshot, record: Mapping[str, Any]) -> Sample:
        """From the access log's record of an exchange, as far as that knows it: neither headers nor body.

        Raises: SampleError, where it was no request, or its gateway is gone.
        """
        if "method" not in record:
            raise SampleError("request_id", "what was refused was no request; its record says why")
        gateway = snapshot.gateways.get(record.get("gateway", ""))
        if gateway is None and "gateway" in record:
            raise SampleError("request_id", f"its gateway {record['gateway']!r} is not in the config any more")
        return cls(
            path=record["path"],
            method=record["method"],
            host=HOST if gateway is None else _host_of(snapshot, gateway),
            model=record.get("model"),
            key_name=record.get("key"),
        )


def sample_of(snapshot: Snapshot, members: Mapping[str, Any], record: Mapping[str, Any] | None) -> Sample:
    """The sample that plain data describe: whole, or what shall differ from an exchange's record.

    Raises: SampleError.
    """
    if record is None:
        return Sample.of(members)
    like = Sample.of_record(snapshot, record)
    stated = {name: value for name, value in members.items() if value is not None}
    if "key" in stated or "key_name" in stated:
        like = replace(like, key_name=None)
    given = Sample.of({"path": like.path, **members})
    return replace(like, **{name: getattr(given, name) for name in stated})


def _bytes(body: Any) -> bytes:
    """Raises: SampleError."""
    try:
        return body.encode() if isinstance(body, str) else orjson.dumps(body)
    except (TypeError, UnicodeEncodeError):  # orjson's is a TypeError
        raise SampleError("body", "cannot be written as JSON again; give it as a text") from None


def _host_of(snapshot: Snapshot, gateway: GatewaySpec) -> str:
    """A host that the gateway answers for, as far as others leave it one."""
    hosts = [HOST, *(host.replace("*", "any" if host != "*" else "any.invalid", 1) for host in gateway.hosts)]
    return next((host for host in hosts if snapshot.find_gateway(host) is gateway), hosts[-1])


def message(sample: Sample) -> tuple[bytes, bytes]:
    """The head's bytes, without the blank line, and the body's.

    Raises: SampleError.
    """
    given = {name.lower() for name, _ in sample.headers}
    for name in given & _OWN_LINES:
        instead = "`host`" if name == "host" else "`body`, whose framing is made from it"
        raise SampleError(f"headers.{name}", f"give it as {instead}")
    texts = {"method": sample.method, "path": sample.path, "host": sample.host, "key": sample.key or ""}
    texts |= {f"headers.{name}": f"{name}: {value}" for name, value in sample.headers}
    for where, text in [*texts.items(), ("model", sample.model or "")]:
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise SampleError(where, "must be a text of whole characters, without half of a surrogate pair")
    for where, text in texts.items():
        if any(character in text for character in "\r\n\0"):
            raise SampleError(where, "must be one line")
    for where in ("method", "path"):
        if not texts[where] or " " in texts[where]:
            raise SampleError(where, "must be a text that is not empty and has no blank")
    body, content_type = _body(sample, given)
    lines = [f"{sample.method} {sample.path} HTTP/1.1", f"host: {sample.host}"]
    lines += [f"{name}: {value}" for name, value in sample.headers]
    lines += [line for line in _DIALECT_LINES[sample.dialect or "openai"] if line.partition(":")[0] not in given]
    if content_type and "content-type" not in given:
        lines.append(f"content-type: {content_type}")
    if sample.key is not None:
        lines.append(f"x-aigw-key: {sample.key}" if "authorization" in given else f"authorization: Bearer {sample.key}")
    if body or sample.method in _WITH_BODY:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode(), body


def _body(sample: Sample, given: set[str]) -> tuple[bytes, str]:
    """A body, and the content type it would have."""
    if sample.body is not None:
        return sample.body, "application/json"
    endpoint = classify(sample.method, sample.path.partition("?")[0].encode())
    if sample.method not in _WITH_BODY or "content-type" in given:
        source = "none" if sample.model is None else "body"
    else:
        source = endpoint.source
    named = {} if sample.model is None else {"model": sample.model}
    if source == "form":
        parts = "".join(
            f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in named.items()
        )
        return f"{parts}--{_BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={_BOUNDARY}"
    if source == "body" or (named and source != "path"):
        return orjson.dumps(named), "application/json"
    return b"", ""


def add_key(snapshot: Snapshot, head: RequestHead, name: str) -> None:
    """The key of that name, as if its client had sent it: only its digest is known.

    Raises: SampleError, where the gateway has none.
    """
    gateway = snapshot.find_gateway(head.host)
    if gateway is None or not gateway.auth:
        return
    known = {key.name: digest for digest, (key, is_previous) in gateway.keys.items() if not is_previous}
    if name not in known:
        there = ", ".join(list(known)[:8]) + (", ..." if len(known) > 8 else "") if known else "none"
        raise SampleError("key_name", f"the gateway {gateway.name!r} has no key {name!r}; there are: {there}")
    line = Field(X_AIGW_KEY, b"x-aigw-key: ***", b"***")
    line.digest = known[name]
    head.credentials.append(line)
