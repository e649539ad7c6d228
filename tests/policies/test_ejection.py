"""When a target rests, by the clock of the test."""

from __future__ import annotations

from aigw.policies.ejection import LONGEST, Ejection


def fails(ejection: Ejection, now: float) -> float | None:
    """Fails once; for how long it rests then."""
    return ejection.rest(now) if ejection.failed(now) else None


def test_it_rests_after_so_many_failures_in_a_row() -> None:
    ejection = Ejection(3, 30.0)
    assert [fails(ejection, 1.0), fails(ejection, 2.0)] == [None, None]
    ejection.succeeded()
    assert [fails(ejection, now) for now in (3.0, 4.0, 5.0)] == [None, None, 30.0]
    assert ejection.until == 35.0
    assert repr(ejection) == "<Ejection 2 of 3 in a row, until 35>"


def test_what_fails_while_it_rests_says_nothing_new() -> None:
    ejection = Ejection(1, 30.0)
    assert fails(ejection, 0.0) == 30.0
    assert [fails(ejection, now) for now in (0.0, 10.0, 29.9)] == [None] * 3
    assert ejection.until == 30.0


def test_each_failure_soon_after_it_was_back_doubles_the_rest_up_to_the_bound() -> None:
    ejection = Ejection(5, 30.0)
    for _ in range(4):
        assert fails(ejection, 0.0) is None
    # one failure is enough once it is back
    rests = [fails(ejection, ejection.until + (1.0 if ejection.until else 0.0)) for _ in range(7)]
    assert rests == [30.0, 60.0, 120.0, 240.0, 300.0, 300.0, 300.0]
    assert 30.0 * LONGEST == 300.0


def test_a_success_after_the_rest_asks_for_a_whole_row_again() -> None:
    ejection = Ejection(2, 10.0)
    fails(ejection, 0.0)
    assert fails(ejection, 0.0) == 10.0
    ejection.succeeded()
    assert fails(ejection, 11.0) is None
    assert fails(ejection, 12.0) == 20.0  # though not for the first rest: it was back for less than its last one


def test_who_was_well_for_as_long_as_the_last_rest_begins_anew() -> None:
    ejection = Ejection(1, 10.0)
    assert fails(ejection, 0.0) == 10.0
    assert fails(ejection, 19.9) == 20.0
    assert ejection.until == 39.9
    assert fails(ejection, 59.9) == 10.0


def test_what_a_target_asks_for_is_bounded_too() -> None:
    ejection = Ejection(5, 30.0)
    assert [ejection.bounded(seconds) for seconds in (0.2, 20.0, 86400.0)] == [0.2, 20.0, 300.0]


def test_other_numbers_hold_from_the_next_failure_on() -> None:
    ejection = Ejection(5, 30.0)
    fails(ejection, 0.0)
    ejection.change(2, 1.0)
    assert fails(ejection, 0.0) == 1.0
