"""Every test runs on the loop that the gateway runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def plain_loop() -> None:
    """Takes the loop's debug mode away, which is most of the time of a thousand exchanges."""
    asyncio.get_running_loop().set_debug(False)
