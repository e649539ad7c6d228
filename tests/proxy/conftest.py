"""Every move of every client connection in these tests is checked against the table of moves."""

from __future__ import annotations

import pytest

import aigw.gateway
from aigw.proxy.client import ClientConnection
from aigw.proxy.states import MOVES, State

_slot = ClientConnection.__dict__["state"]
WALKED: set[tuple[State, State]] = set()


class CheckedClient(ClientConnection):
    """A client connection that refuses a move which is not in the table."""

    __slots__ = ()

    @property
    def state(self) -> State:  # type: ignore[override]
        return _slot.__get__(self)  # type: ignore[no-any-return]

    @state.setter
    def state(self, new: State) -> None:
        try:
            old = _slot.__get__(self)
        except AttributeError:
            old = new
        if new is not old:
            assert new in MOVES[old] or new is State.CLOSED, f"{old} -> {new} is no move"
            WALKED.add((old, new))
        _slot.__set__(self, new)


@pytest.fixture(autouse=True)
def checked_moves(monkeypatch: pytest.MonkeyPatch) -> set[tuple[State, State]]:
    monkeypatch.setattr(aigw.gateway, "ClientConnection", CheckedClient)
    return WALKED
