"""Every test runs on the loop that the gateway runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def plain_loop() -> None:
    """Takes the loop's debug mode away, which is most of the time of a thousand exchanges."""
    asyncio.get_running_loop().set_debug(False)


@pytest.fixture
def short_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tmp_path`, but so short that the gateway's folder of sockets is made in there, for a test to look at."""
    return tmp_path_factory.mktemp("t")
