"""A document cut and joined again is the same, and no piece of it is big."""

from __future__ import annotations

import json

from fakes import document, gateway, key, model, rule, target, upstream

from aigw.config import lines


def joined(pieces: list[lines.Document]) -> lines.Document:
    first, *rest = json.loads(json.dumps(pieces))
    whole: lines.Document = first["document"]
    for piece in rest:
        lines.join(whole, piece)
    return whole


def test_it_is_the_same_and_in_the_same_order() -> None:
    count = 3 * lines.CHUNK + 1
    gateways = {
        f"g{n}": gateway(
            *(rule(f"r{m}", f"/r{m}/*") for m in range(count)),
            keys={f"k{m}": key(f"sk-{m}") for m in range(count)},
            models={f"m{m}": model("up0") for m in range(count)},
        )
        for n in range(2)
    } | {"empty": gateway(keys={}, models={}, rules=[])}
    whole = document({f"up{n}": upstream(target("http://x")) for n in range(count)}, gateways=gateways)
    before = json.dumps(whole)
    pieces = list(lines.cut(whole))
    assert json.dumps(joined(pieces)) == before == json.dumps(whole)
    assert max(len(json.dumps(piece)) for piece in pieces) < 64 * 1024
    assert max(len(piece["items"]) for piece in pieces[1:]) == lines.CHUNK


def test_an_empty_one() -> None:
    whole = document({}, gateways={"default": gateway()}) | {"gateways": {}}
    assert joined(list(lines.cut(whole))) == whole
