"""Every test runs on the loop that the gateway runs on, and coverage measures where it is worth half of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest
import uvloop
from cpu import untraced

from aigw.process import build

# Coverage costs each process 0.2 s of CPU, and there are 600. In these files the processes themselves are tested; in
# all others they carry tests of what other tests run in their own process, where it is measured.
PROCESSES = {"test_api.py", "test_cli.py", "test_end_to_end.py", "test_supervisor.py", "test_workers.py"}

DATA_PATH = {"policies", "providers", "proxy", "wire"}

LONGEST = ("test_reload.py", "test_reload_keys.py", "test_api.py", "test_supervisor.py", "test_writers.py")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def followed(request: pytest.FixtureRequest) -> Iterator[None]:
    """What coverage hands on to the processes that this module starts: itself, or nothing."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name not in PROCESSES:
            for name in ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
                patch.delenv(name, raising=False)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that of several pytests side by side none is alone with one of them at the end."""
    for item in items:
        if item.path.parent.name in DATA_PATH:
            item.add_marker("data_path")
    if build() == "compiled":
        skip = pytest.mark.skip("the data path is compiled")
        for item in items:
            if item.get_closest_marker("interpreted") is not None:
                item.add_marker(skip)
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if item.get_closest_marker("unmeasured") is None:
        return (yield)
    with untraced():
        return (yield)


@pytest.fixture
async def plain_loop() -> None:
    """Takes the loop's debug mode away, which is most of the time of a thousand exchanges."""
    asyncio.get_running_loop().set_debug(False)


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tmp_path`, but so short that the gateway's folder of sockets is made in there, for a test to look at."""
    return tmp_path_factory.mktemp("t")
