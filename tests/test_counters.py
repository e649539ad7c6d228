"""What a worker counts of an exchange: under which labels, in which bucket, and never under a client's text."""

from __future__ import annotations

import gc

import pytest
from counted import Turn, compile, counters, ended, fill, made, pool

from aigw import shared
from aigw.counters import (
    COST,
    DURATIONS,
    EXCHANGES,
    OVERHEAD,
    OVERHEADS,
    REFUSED,
    SUM,
    TARGETS,
    TOKENS,
    UNPRICED,
    USAGE,
    WAITED,
    Account,
    Labels,
    TargetStates,
    account_of,
    labels_of,
)
from aigw.errors import (
    BAD_REQUEST,
    INVALID_KEY,
    NO_TARGET,
    QUEUE_TIMEOUT,
    UPSTREAM_CREDENTIAL_REFUSED,
    UPSTREAM_CUT,
    Failure,
)
from aigw.shared import Cells
from aigw.tokens import Tokens

__all__ = ["made"]


def counted(made: Cells) -> dict[tuple[str, ...], int]:
    """How many exchanges by their labels."""
    found = made.totals(EXCHANGES).items()
    return {tuple(labels_of(text)): sum(values[:SUM]) for text, values in found if any(values)}


def values(made: Cells, family: bytes = EXCHANGES) -> list[int]:
    """Of the only entry that has counted anything."""
    (found,) = [values for values in made.totals(family).values() if any(values)]
    return found


def test_labels_are_names_of_the_config(made: Cells) -> None:
    compiled = compile()
    count = counters(made).count
    for _ in range(3):
        count(ended(compiled), "ok", None, 1000.5, None)
    count(ended(compiled, "claude-secret-project"), "ok", None, 1000.5, None)
    count(ended(compiled, path="/fixed", asked=None), "ok", None, 1000.5, None)
    count(ended(compiled, status=499), "client_gone", None, 1000.5, None)
    count(ended(compiled), "cut", Failure(UPSTREAM_CUT, ""), 1000.5, None)
    count(ended(compiled, "nobody-has-it", status=404), "refused", Failure(BAD_REQUEST, ""), 1000.0, None)
    count(ended(compiled, "idle", status=503), "failed", Failure(NO_TARGET, ""), 1000.0, None)
    count(ended(compiled, credential="sk-x", status=401), "refused", Failure(INVALID_KEY, ""), 1000.0, None)
    counters(made, 1).refused(BAD_REQUEST)
    assert counted(made) == {
        ("main", "api", "gpt-4o", "up", "200", "ok", "none"): 3,
        ("main", "api", "claude-*", "up", "200", "ok", "none"): 1,
        ("main", "fixed", "-", "up", "200", "ok", "none"): 1,
        ("main", "api", "gpt-4o", "up", "499", "client_gone", "client"): 1,
        ("main", "api", "gpt-4o", "up", "200", "cut", "upstream"): 1,
        ("main", "api", "-", "-", "404", "refused", "client"): 1,
        ("main", "api", "idle", "none", "503", "failed", "upstream"): 1,
        ("main", "api", "-", "-", "401", "refused", "client"): 1,
        ("-", "-", "-", "-", "400", "refused", "client"): 1,
    }


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (DURATIONS[0], 0), (0.0051, 1), (1.0, 7), (600.0, 15), (600.1, 16), (90000.0, 16)],
)
def test_a_bound_belongs_to_its_bucket_and_sums_are_microseconds(made: Cells, seconds: float, bucket: int) -> None:
    exchange = ended(compile())
    exchange.started, exchange.acquiring_at = 0.0, OVERHEADS[1]
    counters(made).count(exchange, "ok", None, seconds, None)
    assert values(made)[bucket] == 1
    assert sum(values(made)[:SUM]) == 1
    assert values(made)[SUM] == round(seconds * 1e6)
    assert values(made, OVERHEAD) == [0, 1] + [0] * 11 + [25]


def test_who_never_reached_an_upstream_has_no_overhead(made: Cells) -> None:
    compiled = compile()
    counters(made).count(ended(compiled, "idle"), "failed", Failure(NO_TARGET, ""), 1000.0, None)
    assert not any(any(values) for values in made.totals(OVERHEAD).values())


def test_tokens_are_added_by_class_and_the_unknown_is_nothing(made: Cells) -> None:
    compiled = compile()
    count = counters(made).count
    count(ended(compiled), "ok", None, 1000.0, Tokens(10, 20, audio=3), 7)
    count(ended(compiled), "ok", None, 1000.0, Tokens(0, 1, 5, 6, 2**40, None), 2**50)
    count(ended(compiled), "ok", None, 1000.0, Tokens(100))
    count(ended(compiled), "ok", None, 1000.0, None, None)
    assert values(made, USAGE)[UNPRICED:] == [1, 110, 21, 5, 6, 2**40, 3, 2**50 + 7]


def test_who_used_what_is_counted_with_the_key(made: Cells) -> None:
    compiled = compile()
    count = counters(made).count
    for _ in range(2):  # remembered or not
        count(ended(compiled), "ok", None, 1000.5, Tokens(1), 5)
        count(ended(compiled, credential="sk-team"), "ok", None, 1000.5, Tokens(2), 6)
        count(ended(compiled, status=404), "ok", None, 1000.5, None)
        count(ended(compiled, status=499), "client_gone", None, 1000.5, None)
        count(ended(compiled), "cut", Failure(UPSTREAM_CUT, ""), 1000.5, Tokens(3), 7)
        count(ended(compiled, path="/fixed", asked=None, status=502), "failed", Failure(UPSTREAM_CUT, ""), 1000.5, None)
        count(ended(compiled, credential="sk-x", status=401), "refused", Failure(INVALID_KEY, ""), 1000.0, None)
    found = {account_of(text): used for text, used in made.totals(USAGE).items() if any(used)}
    assert {account: [*used[: TOKENS + 1], used[COST]] for account, used in found.items()} == {
        Account("main", "api", "demo", "-", "gpt-4o", "up"): [4, 4, 0, 8, 24],
        Account("main", "api", "team", "search", "gpt-4o", "up"): [2, 0, 0, 4, 12],
        Account("main", "fixed", "demo", "-", "-", "up"): [0, 2, 0, 0, 0],
        Account("main", "api", "-", "-", "-", "-"): [0, 2, 0, 0, 0],
    }


def test_a_key_without_room_counts_as_other_of_its_gateway_and_model(made: Cells) -> None:
    compiled = compile()
    counting = counters(made)
    counting.count(ended(compiled), "ok", None, 1000.5, Tokens(1), 5)
    fill(made, 0)
    for _ in range(2):
        counting.count(ended(compiled, credential="sk-team"), "ok", None, 1000.5, Tokens(2), 6)
        counting.count(ended(compiled, "claude-x", credential="sk-team"), "ok", None, 1000.5, Tokens(3), 7)
    found = {account_of(text): used[TOKENS] for text, used in made.totals(USAGE).items() if any(used)}
    assert found == {
        Account("main", "api", "demo", "-", "gpt-4o", "up"): 1,
        Account("main", "api", "other", "other", "gpt-4o", "up"): 4,
        Account(*["other"] * 6): 6,
    }


def test_who_waited_for_a_connection_is_counted_by_upstream(made: Cells) -> None:
    compiled = compile()
    count = counters(made).count
    count(ended(compiled), "ok", None, 1000.5, None)
    for waited in (0.004, 2.0):
        exchange = ended(compiled)
        exchange.sent_at = exchange.acquiring_at + waited
        count(exchange, "ok", None, 1010.0, None)
    unsent = ended(compiled, status=503)
    unsent.acquiring_at, unsent.sent_at = 1000.0, 0.0
    count(unsent, "failed", Failure(QUEUE_TIMEOUT, ""), 1005.0, None)
    found = made.totals(WAITED)[b"up"]
    assert {index: n for index, n in enumerate(found[:SUM]) if n} == {0: 1, 8: 1, 9: 1}
    assert found[SUM] == pytest.approx(7_004_000, abs=3)


def test_a_refused_credential_has_a_count_of_its_own(made: Cells) -> None:
    compiled = compile()
    for _ in range(2):
        failure = Failure(UPSTREAM_CREDENTIAL_REFUSED, "")
        counters(made).count(ended(compiled, status=502), "failed", failure, 1000.0, None)
    assert made.totals(REFUSED)[b"up"] == [2]


def test_targets_of_one_upstream_count_together_and_reloads_go_on(made: Cells) -> None:
    turn = Turn()
    counting = counters(made)
    old = compile(1)
    for generation in (1, 2, 3):
        compiled = compile(generation)
        for _ in range(4):  # both targets, remembered or not
            counting.count(ended(compiled, turn=turn), "ok", None, 1000.0, None)
        counting.count(ended(old), "ok", None, 1000.0, None)
    assert counted(made) == {("main", "api", "gpt-4o", "up", "200", "ok", "none"): 15}


def test_nothing_of_a_snapshot_is_kept_once_another_serves(made: Cells) -> None:
    counting = counters(made)
    exchange = ended(compile(1))
    counting.count(exchange, "ok", None, 1000.0, None)
    late = ended(exchange.snapshot, "claude-x")
    counting.count(ended(compile(2)), "ok", None, 1000.0, None)
    counting.count(late, "ok", None, 1000.0, None)
    held = [kept for kept in gc.get_referrers(exchange.candidate, late.candidate) if type(kept) is tuple]
    assert not [kept for kept in held if kept[-1] == "ok"]


def test_what_finds_no_room_counts_as_other(made: Cells) -> None:
    compiled = compile()
    counting = counters(made)
    fill(made, 10)
    for status in range(100, 120):
        counting.count(ended(compiled, status=status), "ok", None, 1000.0, None)
    found = counted(made)
    assert sum(found.values()) == 20
    assert found["other", "other", "other", "other", "other", "other", "other"] == 12  # two were for the account
    assert labels_of(shared.OTHER) == Labels(*["other"] * 7)


def test_states_of_targets_are_those_of_the_last_stamp(made: Cells) -> None:
    states = TargetStates(made.row(0), made.series(0))
    states.stamp([pool("a", 1, 2, 3), pool("b", 0, 0, 0), pool("a", 0, 1, 0)])
    assert made.totals(TARGETS) == {b"other": [0, 0, 0], b"up/a": [1, 3, 3]}
    states.stamp([pool("b", 4, 0, 0)])
    assert made.totals(TARGETS) == {b"other": [0, 0, 0], b"up/a": [0, 0, 0], b"up/b": [4, 0, 0]}
    TargetStates(made.row(0), made.series(0))  # the next writer of the row
    assert made.totals(TARGETS)[b"up/b"] == [0, 0, 0]
