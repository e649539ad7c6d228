"""How each balance spreads requests: simulations with a seeded chance, and the bounds that each one promises."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection
from itertools import pairwise
from math import ceil, inf
from typing import Any

import pytest
from fakes import document, gateway, key, limit, model, rule, target, upstream

from aigw import errors, route
from aigw.admit import Admission, admit, affinity, touches_state
from aigw.config import snapshot
from aigw.config.snapshot import Resolved, Snapshot
from aigw.config.upstreams import Candidate, Target, Upstream
from aigw.policies import balance
from aigw.policies.attempts import Full
from aigw.wire.head import RequestParser

URL = "http://127.0.0.1:1"


class World:
    """Targets with what is in flight at them, some of them out; it is the view and, with `text`, who asks."""

    def __init__(self, kind: str, weights: dict[str, int], **fields: Any) -> None:
        targets = [target(URL, name, weight=weight) for name, weight in weights.items()]
        config = snapshot.compile(document({"up": upstream(*targets, balance=kind, **fields)}), 1)
        found = config.gateways["default"].find_model("m")
        assert found is not None
        self.found: Resolved = found
        self.load: Counter[str] = Counter()
        self.out: dict[str, float] = {}
        self.no_room: dict[str, float] = {}  # for how many seconds
        self.turn = 0
        self.chance = random.Random(20)
        self.text = b""

    def in_flight(self, target: Target) -> int:
        return self.load[target.name]

    def cursor(self, upstream: Upstream) -> int:
        return self.turn

    def draw(self) -> float:
        return self.chance.random()

    def out_until(self, target: Target) -> float:
        return self.out.get(target.name, 0.0)

    def full(self, candidate: Candidate, asker: route.Asker | None) -> Full | None:
        seconds = self.no_room.get(candidate.target.name)
        return None if seconds is None else Full(candidate.target.limits[0], seconds)

    def affinity(self, on: str) -> bytes:
        return self.text

    def is_bound(self) -> bool:
        return False

    def choose(self, tried: Collection[Candidate] | None = None) -> str:
        candidate = route.choose(self.found, self, tried or (), self)
        assert isinstance(candidate, Candidate), candidate
        self.turn += 1
        return candidate.target.name

    def many(self, count: int, hold: int = 0) -> Counter[str]:
        """How many of `count` requests went where, while the last `hold` of them are in flight."""
        names: list[str] = []
        for index in range(count):
            self.text = b"%d" % index
            names.append(self.choose())
            self.load[names[-1]] += 1
            if len(names) > hold:
                self.load[names[-1 - hold]] -= 1
        return Counter(names)


def chi_square(counts: Counter[str], weights: dict[str, int]) -> float:
    total = sum(counts.values()) / sum(weights.values())
    return sum((counts[name] - total * weight) ** 2 / (total * weight) for name, weight in weights.items() if weight)


WEIGHTS = {"a": 5, "b": 3, "c": 2, "drained": 0}
# Of a chi-square with two degrees of freedom, what one of a thousand exceeds; the chance is seeded, so it holds or not.
LIKELY = 13.8


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
@pytest.mark.parametrize("hold", [0, 40])
def test_requests_are_spread_by_weight_and_drained_targets_get_none(kind: str, hold: int) -> None:
    world = World(kind, WEIGHTS)
    counts = world.many(4000, hold)
    assert counts["drained"] == 0
    if kind == "round_robin":
        assert counts == {"a": 2000, "b": 1200, "c": 800}
    elif kind == "least_connections" and not hold:
        # nothing is in flight: the heaviest has the least for its weight
        assert counts == {"a": 4000}
    else:
        assert chi_square(counts, WEIGHTS) < LIKELY, counts


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
def test_the_share_of_those_that_are_out_goes_to_the_others_by_weight(kind: str) -> None:
    world = World(kind, {"a": 4, "b": 4, "c": 2, "d": 2, "drained": 0})
    world.out = {"a": 50.0, "drained": 0.0}
    counts = world.many(4000, 48)
    assert counts["a"] == counts["drained"] == 0
    assert chi_square(counts, {"b": 4, "c": 2, "d": 2}) < LIKELY, counts


@pytest.mark.parametrize("out", ["a", "b", "c"])
def test_the_neighbour_of_a_target_that_is_out_gets_no_double_share(out: str) -> None:
    world = World("round_robin", {"a": 1, "b": 1, "c": 1})
    world.out = {out: 9.0}
    counts = world.many(300)
    assert max(counts.values()) - min(counts[name] for name in "abc" if name != out) <= 4


def test_least_connections_keeps_loads_within_one_of_their_shares() -> None:
    world = World("least_connections", WEIGHTS)
    for count in range(1, 200):
        world.load[world.choose()] += 1
        for name, weight in WEIGHTS.items():
            assert abs(world.load[name] - count * weight / 10) <= 1


def test_of_two_that_are_drawn_the_less_busy_one_is_asked() -> None:
    world = World("random", dict.fromkeys("abcdefgh", 1))
    for _ in range(800):
        world.load[world.choose()] += 1
    drawn_once = Counter(random.Random(20).choice("abcdefgh") for _ in range(800))
    assert max(world.load.values()) - 100 <= 3  # and one draw, for comparison
    assert max(drawn_once.values()) - 100 > 9


def test_two_draws_are_two_targets() -> None:
    chance = random.Random(3)
    for _ in range(500):
        weights = [chance.randrange(1, 9) for _ in range(chance.randrange(2, 6))]
        one, other = balance.two(weights, chance.random(), chance.random())
        assert one != other
        assert {one, other} <= set(range(len(weights)))
    assert balance.two([1, 1], 0.9999999999999999, 0.9999999999999999) == (1, 0)


# hash -----------------------------------------------------------------------------------------------------------------


def homes(world: World, count: int = 2000) -> list[str]:
    names = []
    for index in range(count):
        world.text = b"session-%d" % index
        names.append(world.choose())
    return names


def test_the_same_text_goes_the_same_way_in_every_process() -> None:
    world = World("hash", {"a": 1, "b": 1, "c": 2})
    world.text = b"main/demo"
    assert {world.choose() for _ in range(50)} == {"c"}
    world.text = b"main/four"
    assert {world.choose() for _ in range(50)} == {"a"}


def test_a_target_that_goes_moves_only_what_was_at_home_there() -> None:
    weights = {"a": 2, "b": 1, "c": 1}
    before = homes(World("hash", weights))
    world = World("hash", weights)
    world.out = {"b": 1.0}
    after = homes(world)
    moved = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert {one for one, _ in moved} == {"b"}
    assert len(moved) == before.count("b")
    assert chi_square(Counter(other for _, other in moved), {"a": 2, "c": 1}) < LIKELY
    more = homes(World("hash", weights | {"d": 4}))
    assert {other for one, other in zip(before, more, strict=True) if one != other} == {"d"}
    assert chi_square(Counter(more), weights | {"d": 4}) < LIKELY


def test_none_has_more_than_its_bound_however_uneven_the_texts_are() -> None:
    weights = {"a": 1, "b": 2, "c": 1, "d": 4}
    world = World("hash", weights)
    world.text = b"everyone's session"
    for count in range(400):
        chosen = world.choose()
        world.load[chosen] += 1
        assert world.load[chosen] <= ceil(balance.SLACK * (count + 1) * weights[chosen] / 8)
    assert len(+world.load) >= 3
    world.load.clear()
    home = world.choose()
    world.load[home] = 10
    second = world.choose()
    world.load.clear()
    world.out = {home: 5.0}
    assert world.choose() == second  # the overflow of a home goes where it would go without it


# who is left ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
def test_who_was_tried_is_asked_again_only_if_nobody_else_is_in_service(kind: str) -> None:
    world = World(kind, {"a": 1, "b": 1, "c": 1, "drained": 0})
    targets = {candidate.target.name: candidate for candidate in world.found.candidates}
    assert {world.choose([targets["a"], targets["b"]]) for _ in range(20)} == {"c"}
    world.out = {"c": 10.0}
    assert {world.choose([targets["a"], targets["b"]]) for _ in range(40)} <= {"a", "b"}
    assert {world.choose(list(targets.values())) for _ in range(40)} <= {"a", "b"}


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
def test_where_all_rest_the_one_that_is_back_first_is_asked_and_none_that_is_down(kind: str) -> None:
    world = World(kind, {"a": 1, "b": 1, "c": 1})
    targets = {candidate.target.name: candidate for candidate in world.found.candidates}
    world.out = {"a": 30.0, "b": 20.0, "c": float("inf")}
    assert {world.choose() for _ in range(5)} == {"b"}
    assert world.choose([targets["b"]]) == "a"
    world.out = dict.fromkeys("abc", float("inf"))
    failure = route.choose(world.found, world, (), world)
    assert isinstance(failure, errors.Failure)
    assert (failure.kind, failure.message) == (
        errors.NO_TARGET,
        "every target of the upstream 'up' is down; try again later",
    )


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
def test_who_is_full_is_asked_by_nobody_and_not_even_as_the_last_one(kind: str) -> None:
    world = World(kind, {"a": 1, "b": 1, "c": 1}, limits=[limit("requests", 5, 60.0, "upstream")])
    targets = {candidate.target.name: candidate for candidate in world.found.candidates}
    world.no_room = {"a": 5.0}
    assert set(world.many(40)) == {"b", "c"}
    assert world.choose([targets["b"]]) == "c"
    assert world.choose(list(targets.values())) in ("b", "c")
    world.no_room = {"a": 5.0, "b": 7.0}
    world.out = {"c": 30.0}  # who rests has room
    assert world.choose() == "c"
    world.out = {"c": inf}
    failure = route.choose(world.found, world, (), world)
    assert isinstance(failure, errors.Failure)
    assert (failure.kind, failure.lines[0]) == (errors.NO_CAPACITY, b"retry-after: 5")
    world.out = {"a": inf, "b": 30.0}
    world.no_room = {"a": 5.0, "b": 7.0, "c": inf}
    failure = route.choose(world.found, world, (), world)
    assert isinstance(failure, errors.Failure)
    assert (failure.kind, failure.lines[0]) == (errors.NO_CAPACITY, b"retry-after: 7")  # when b has room
    world.out = dict.fromkeys("abc", inf)
    failure = route.choose(world.found, world, (), world)
    assert isinstance(failure, errors.Failure)
    assert failure.kind is errors.NO_TARGET


# splits ---------------------------------------------------------------------------------------------------------------

UPSTREAMS = {
    "one": upstream(target(URL)),
    "two": upstream(target(URL), dialects=["openai", "anthropic"]),
}


def split(**weights: int) -> Snapshot:
    models = {
        "gpt-4o": model("one"),
        "fast-*": model("two", "real-*"),
        "canary": model("", split={name.replace("_", "-"): weight for name, weight in weights.items()}),
    }
    return snapshot.compile(document(UPSTREAMS, gateways={"default": gateway(models=models)}), 1)


def test_a_split_goes_by_weight_and_an_id_goes_the_same_way_each_time() -> None:
    found = split(gpt_4o=95, fast_x=5).gateways["default"].find_model("canary")
    assert found is not None
    assert found.only is None
    went = Counter(route.part(found, b"0123456789abcdef%08x" % index).upstream.name for index in range(20000))
    assert chi_square(went, {"one": 95, "two": 5}) < 10.8  # one degree of freedom
    again = split(gpt_4o=95, fast_x=5).gateways["default"].find_model("canary")
    assert again is not None
    for index in range(200):
        assert route.part(found, b"%d" % index).upstream.name == route.part(again, b"%d" % index).upstream.name


def test_the_parts_of_a_split_are_asked_for_by_their_own_names_and_count_as_the_split() -> None:
    found = split(gpt_4o=1, fast_x=1).gateways["default"].find_model("canary")
    assert found is not None
    parts = [part for _, part in found.parts]
    sent = [(part.candidates[0].sent, part.candidates[0].renamed, part.entry) for part in parts]
    assert sent == [("gpt-4o", True, "canary"), ("real-x", True, "canary")]
    assert found.dialects == {"openai"}
    other = split(gpt_4o=0, fast_x=3).gateways["default"].find_model("canary")
    assert other is not None
    assert [(upto, part.upstream.name) for upto, part in other.parts] == [(3, "two")]
    assert other.dialects == {"openai", "anthropic"}


# who asks -------------------------------------------------------------------------------------------------------------


def admitted(*lines: bytes, path: str = "/v1/chat/completions", method: str = "POST") -> Admission:
    config = snapshot.compile(
        document({"up": upstream(target(URL))}, gateways={"main": gateway(auth="keys", keys={"demo": key("sk")})}), 1
    )
    head = b"\r\n".join([f"{method} {path} HTTP/1.1".encode(), b"host: gw", *lines])
    return admit(config, RequestParser().parse(head, config.head_bounds), 0.0)


@pytest.mark.parametrize(
    ("on", "lines", "more", "text"),
    [
        ("key", (), b"", b"main/demo"),
        ("ip", (), b"", b"10.0.0.1"),
        ("header:x-session-id", (b"X-Session-Id:  abc\t",), b"", b"abc"),
        ("header:x-session-id", (), b"x-other: 1\r\nX-SESSION-ID: in a hole\r\n", b"in a hole"),
        ("header:x-session-id", (), b"x-other: 1\r\n", b"main/demo"),
        ("header:x-session-id", (b"x-session-id:",), b"", b"main/demo"),
    ],
)
def test_what_is_hashed(on: str, lines: tuple[bytes, ...], more: bytes, text: bytes) -> None:
    assert affinity(admitted(b"x-aigw-key: sk", *lines), more, b"10.0.0.1", on) == text


def test_who_has_no_key_goes_by_address() -> None:
    config = snapshot.compile(document({"up": upstream(target(URL))}), 1)
    head = RequestParser().parse(b"GET /v1/files HTTP/1.1\r\nhost: gw", config.head_bounds)
    assert affinity(admit(config, head, 0.0), b"", b"10.0.0.1", "key") == b"10.0.0.1"


@pytest.mark.parametrize(
    ("method", "path", "body", "bound"),
    [
        ("POST", "/v1/chat/completions", b'{"model": "m", "messages": []}', False),
        ("POST", "/v1/chat/completions", b'{"model": "m", "messages": [{"file": {"file_id": "f"}}]}', True),
        ("POST", "/v1/responses", b'{"model": "m", "input": "x"}', True),
        ("POST", "/v1/responses", b'{"model": "m", "store": true}', True),
        ("POST", "/v1/responses", b'{"model": "m", "store" :\n false}', False),
        ("POST", "/v1/responses", b'{"model": "m", "store": false, "previous_response_id": "r"}', True),
        ("POST", "/v1/responses", b'{"model": "m", "store": false, "conversation": "c"}', True),
        ("GET", "/v1/responses/resp_1", b"", True),
        ("DELETE", "/v1/responses/resp_1", b"", True),
        ("POST", "/v1/files", b"", True),
        ("POST", "/v1/messages", b'{"model": "m", "container": "c"}', True),
        ("POST", "/v1beta/models/m:generateContent", b'{"cachedContent": "c"}', True),
        ("POST", "/v1beta/models/m:generateContent", b"{}", False),
    ],
)
def test_what_is_about_something_that_the_provider_keeps(method: str, path: str, body: bytes, bound: bool) -> None:
    assert touches_state(admitted(b"x-aigw-key: sk", path=path, method=method), body) is bound


@pytest.mark.parametrize("kind", ["round_robin", "least_connections", "random", "hash"])
def test_bound_requests_go_by_key_where_credentials_differ(kind: str) -> None:
    class Bound(World):
        def is_bound(self) -> bool:
            return True

        def affinity(self, on: str) -> bytes:
            assert on == "key"
            return b"main/demo"

    world = Bound(kind, {"a": 1, "b": 1, "c": 1})
    assert not world.found.upstream.binds
    own = [target(URL, name, api_key=f"sk-{name}") for name in "abc"]
    config = snapshot.compile(document({"up": upstream(*own, balance=kind, hash_on="ip")}), 1)
    found = config.gateways["default"].find_model("m")
    assert found is not None
    assert found.upstream.binds
    world.found = found
    world.load.update({"a": 9, "b": 9, "c": 9})
    first = world.choose()
    world.load[first] += 100  # it is there or nowhere
    assert {world.choose() for _ in range(20)} == {first}
    world.out = {first: 5.0}
    assert world.choose() != first


@pytest.mark.parametrize(
    ("fields", "binds"),
    [
        ([{}, {}], False),
        ([{"api_key": "sk-1"}, {"api_key": "sk-1"}], False),
        ([{"api_key": "sk-1"}, {}], True),
        ([{"headers": {"X-Api-Key": "1"}}, {"headers": {"x-api-key": "2"}}], True),
        ([{"headers": {"x-team": "1"}}, {"headers": {"x-team": "2"}}], False),
        ([{"api_key": "sk-1"}, {"api_key": "sk-2", "weight": 0}], False),
    ],
)
def test_whose_credentials_differ(fields: list[dict[str, Any]], binds: bool) -> None:
    targets = [target(URL, f"t{index}", **given) for index, given in enumerate(fields)]
    config = snapshot.compile(document({"up": upstream(*targets, api_key="sk-shared")}), 1)
    assert config.upstreams["up"].binds is binds


# the arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pick",
    [
        lambda weights, index: balance.turn(weights, index),
        lambda weights, index: balance.by_weight(weights, (index + 0.5) / 1000),
    ],
    ids=["turn", "by_weight"],
)
def test_a_thousand_turns_are_by_weight(pick: Callable[[list[int], int], int]) -> None:
    for weights in ([1], [1, 1, 1], [7, 2, 1], [1000, 1]):
        counts = Counter(pick(weights, index) for index in range(1000))
        for index, weight in enumerate(weights):
            assert abs(counts[index] - 1000 * weight / sum(weights)) <= 3


def test_turns_are_spread() -> None:
    turns = [balance.turn([1, 1], cursor) for cursor in range(100)]
    assert sum(one == other for one, other in pairwise(turns)) < 30


def test_rules_named_by_a_rule_have_no_asker_of_their_own() -> None:
    """`choose` without one never hashes, so that what explains without a client answers too."""
    found = snapshot.compile(
        document(
            {"up": upstream(target(URL, "a"), target(URL, "b"), balance="hash")},
            gateways={"default": gateway(rule(upstream="up"))},
        ),
        1,
    )
    world = World("hash", {"a": 1, "b": 1})
    resolved = found.gateways["default"].rules[0].resolved
    assert resolved is not None
    assert isinstance(route.choose(resolved, world), Candidate)
