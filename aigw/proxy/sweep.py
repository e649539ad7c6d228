"""Deadlines: one periodic pass over what is open, instead of a timer per request.

A pass over 10,000 connections that have nothing to do is two comparisons each. A deadline fires at most one period
late.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from aigw.gateway import Gateway

PERIOD: Final = 0.1
# Idle upstream connections are looked at once a second: they are counted in tens of seconds.
POOLS_EVERY: Final = 10


class Sweep:
    __slots__ = ("_gateway", "_handle", "_passes")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._passes = 0
        self._handle = gateway.loop.call_later(PERIOD, self._run)

    def stop(self) -> None:
        self._handle.cancel()

    def _run(self) -> None:
        gateway = self._gateway
        self._handle = gateway.loop.call_later(PERIOD, self._run)
        now = monotonic()
        for slow in list(gateway.slow):
            slow.look(now)
        expired = [client for client in gateway.clients if now >= client.deadline or now >= client.total]
        for client in expired:
            try:
                client.expired(now)
            except Exception as error:  # one client's trouble is not the others'
                gateway.report(error, client)
                client.reset()
        gateway.give_up_greeting(now)
        for pool in gateway.tallied:
            pool.look()
        gateway.health.refresh(now)
        self._passes += 1
        if self._passes % POOLS_EVERY == 0:
            for pool in list(gateway.pools.values()):
                pool.close_idle(now)
            gateway.tick()
