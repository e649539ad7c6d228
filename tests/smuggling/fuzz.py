"""Fuzzing the request side against readers that share no code with it. Run by hand, never by pytest:

    pip install atheris
    PYTHONPATH=tests nice -n 19 python -m smuggling.fuzz -max_total_time=900 FOLDER_FOR_THE_CORPUS

The first byte of an input chooses what is fuzzed. Each check holds: what the gateway accepts, the strict reader accepts
and understands alike; a refusal is one of the declared ones; how the bytes are cut makes no difference. What it finds
becomes a case in `requests/` or a test in `tests/wire`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["aigw", "smuggling"]):
    from smuggling.player import document
    from smuggling.strict import Unclean, read_chunks, read_head
    from smuggling.strict_bodies import form_models, json_models

    from aigw.admit import model_of_json, with_model
    from aigw.config.snapshot import compile as compiled
    from aigw.errors import Failure, Refused
    from aigw.proxy.admission import Admissions, Memory
    from aigw.wire.chunked import BadChunk, ChunkDecoder
    from aigw.wire.head import HeadBounds, RequestParser
    from aigw.wire.multipart import BadForm, ModelPart

BOUNDS = HeadBounds()
SNAPSHOT = compiled(document("http://127.0.0.1:1"), 1)
# A head that repeats, with a hole of each kind: what was learned of it is what `repeats` attacks.
ALIKE = b"POST /s/a HTTP/1.1\r\nhost: gw\r\nx-a: %d\r\nx-request-id: %d\r\ncontent-length: %d\r\nx-b:%d"
WARM = RequestParser()


def heads(data: bytes) -> None:
    block = data.partition(b"\r\n\r\n")[0]
    try:
        head = RequestParser().parse(block, BOUNDS)
    except Refused as refused:
        if refused.failure.kind.status not in (400, 405, 414, 417, 431, 505):
            raise
        head = None
    try:
        again = WARM.parse(block, BOUNDS)
    except Refused:
        again = None
    assert (head is None) == (again is None), "what is remembered makes a difference"
    if head is None:
        return
    strict = read_head(block)
    assert head.line.verb == strict.method
    assert head.length == strict.length
    target = head.line.path if head.line.query is None else head.line.path + b"?" + head.line.query
    assert strict.target.endswith(target) or (target[:1] == b"/" and strict.target[:1] not in (b"/", b"*"))
    assert set(head.kept) <= set(strict.lines)
    assert (head.host_line or None) in (*strict.lines, None)


def repeats(data: bytes) -> None:
    """A head recognised by a pattern is decided as one that is parsed."""
    block = data.partition(b"\r\n\r\n")[0]
    admissions, memory = Admissions(SNAPSHOT, RequestParser()), Memory()
    for number in range(3):
        admissions.of(ALIKE % ((number,) * 4), 0.0, memory)
    try:
        head = RequestParser().parse(block, SNAPSHOT.head_bounds)
    except Refused:
        head = None
    try:
        admission, length, more, request_id = admissions.of(block, 0.0, memory)
    except Refused:
        assert head is None
        return
    assert head is not None, "a pattern takes what the parser refuses"
    found = admission.head
    assert (found.line.verb, found.line.path, found.host) == (head.line.verb, head.line.path, head.host)
    assert (length, request_id or found.request_id) == (head.length, head.request_id)
    assert sorted([*found.kept, *more.split(b"\r\n")[:-1]]) == sorted(head.kept)


def chunks(data: bytes) -> None:
    cut, body = data[:1], data[1:]
    try:
        strict = read_chunks(body)
    except Unclean:
        strict = None
    whole = decoded(body)
    step = max(cut[0] if cut else 1, 1)
    assert decoded(*[body[i : i + step] for i in range(0, len(body), step)]) == whole, "cuts make a difference"
    if whole is not None and whole[1]:
        assert strict == (whole[0], tuple(whole[3]), len(body) - len(whole[2]))


def decoded(*reads: bytes) -> tuple[bytes, bool, bytes, list[bytes]] | None:
    decoder = ChunkDecoder()
    payload = rest = b""
    try:
        for read in reads:
            if decoder.done:
                rest += read
            else:
                payload += b"".join(decoder.feed(read))
    except BadChunk:
        return None
    return payload, decoder.done, decoder.rest + rest, decoder.trailers


def bodies(data: bytes) -> None:
    found = model_of_json(data)
    if isinstance(found, Failure):
        return
    model, members = found
    assert json_models(data) == ([] if "model" not in members else [model])
    if model is not None:
        changed = with_model(data, members, "other")
        assert json.loads(changed) == json.loads(data) | {"model": "other"}


def forms(data: bytes) -> None:
    content_type = b"multipart/form-data; boundary=b"
    cut, body = data[:1], data[1:]
    step = max(cut[0] if cut else 1, 1)
    model = form_model(content_type, body)
    assert form_model(content_type, *[body[i : i + step] for i in range(0, len(body), step)]) == model
    if model is not None:
        assert form_models(b"b", body) == [model.encode()]


def form_model(content_type: bytes, *reads: bytes) -> str | None:
    form = ModelPart(content_type)
    try:
        for read in reads:
            form.feed(read)
    except BadForm:
        return None
    return form.model


PARTS: list[Callable[[bytes], None]] = [heads, chunks, bodies, forms, repeats]


def one_input(data: bytes) -> None:
    if data:
        PARTS[data[0] % len(PARTS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
