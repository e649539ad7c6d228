"""The corpus of hostile and odd requests, through the real gateway: whole, byte by byte, and cut at random."""

from __future__ import annotations

import asyncio
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator
from importlib import import_module

import pytest
import pytest_asyncio
import smuggling.requests
from fakes import Running, running
from smuggling.player import Outcome, document, play, ways
from smuggling.recorder import Recorder, recording
from smuggling.requests.case import Case

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.unmeasured]

MODULES = [name for _, name, _ in pkgutil.iter_modules(smuggling.requests.__path__) if name != "case"]
CASES: list[Case] = [case for name in MODULES for case in import_module(f"smuggling.requests.{name}").CASES]
OUTCOMES: dict[str, dict[str, Outcome | str]] = {}
HANGS = "hangs"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sides() -> AsyncIterator[tuple[Running, Recorder]]:
    """One gateway for all cases: what one leaves behind in it must not change the next."""
    asyncio.get_running_loop().set_debug(False)  # it is most of the time of three thousand connections
    async with recording() as recorder, running(document(recorder.url)) as run:
        yield run, recorder


async def outcomes(case: Case, sides: tuple[Running, Recorder]) -> dict[str, Outcome | str]:
    """By the way the bytes were sent; played once."""
    if case.name not in OUTCOMES:
        found: dict[str, Outcome | str] = {}
        for way, pieces in ways(case).items():
            try:
                found[way] = await play(*sides, case, pieces)
            except TimeoutError:
                found[way] = HANGS
        OUTCOMES[case.name] = found
    return OUTCOMES[case.name]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_case(case: Case, sides: tuple[Running, Recorder]) -> None:
    for way, outcome in (await outcomes(case, sides)).items():
        assert outcome != HANGS, f"{way}: hangs"
        assert isinstance(outcome, Outcome)
        assert outcome.fits(case), f"{way}: {outcome}\nexpected: {case}"


async def test_marks(sides: tuple[Running, Recorder]) -> None:
    """The marks of `reliability`: how many there are, nothing unsafe, nothing that hangs, nothing valid refused."""
    played = [(case, outcome) for case in CASES for outcome in (await outcomes(case, sides)).values()]
    ended = [(case, outcome) for case, outcome in played if isinstance(outcome, Outcome)]
    assert len(ended) == len(played), "hangs"
    assert not [case.name for case, outcome in ended if outcome.is_unsafe(case)]
    assert not [case.name for case, outcome in ended if case.is_valid and not outcome.fits(case)]
    failed = {case.name for case, outcome in ended if not outcome.fits(case)}
    strict = [case for case in CASES if not case.otherwise and case.name not in failed]
    hostile = [case for case in CASES if not case.is_valid]
    assert len(hostile) >= 300
    assert len(CASES) - len(hostile) >= 80
    assert len(strict) >= 0.95 * len(CASES)


async def test_names_and_bytes_are_distinct() -> None:
    for what in ("name", "raw"):
        counts = Counter(getattr(case, what) for case in CASES)
        assert not [value for value, count in counts.items() if count > 1]
