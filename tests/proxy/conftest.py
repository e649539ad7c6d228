"""Every move of every client connection in these tests is checked against the table of moves, by the sources."""

from __future__ import annotations

import pytest

import aigw.gateway
from aigw.process import build
from aigw.proxy.client import ClientConnection
from aigw.proxy.states import MOVES, State

WALKED: set[tuple[State, State]] = set()


def checked() -> type[ClientConnection]:
    """A client connection that refuses a move which is not in the table."""
    slot = ClientConnection.__dict__["state"]

    class CheckedClient(ClientConnection):
        __slots__ = ()

        @property
        def state(self) -> State:  # type: ignore[override]
            return slot.__get__(self)  # type: ignore[no-any-return]

        @state.setter
        def state(self, new: State) -> None:
            try:
                old = slot.__get__(self)
            except AttributeError:
                old = new
            if new is not old:
                assert new in MOVES[old] or new is State.CLOSED, f"{old} -> {new} is no move"
                WALKED.add((old, new))
            slot.__set__(self, new)

    return CheckedClient


CHECKED = checked() if build() == "interpreted" else None  # a compiled class cannot be derived from


@pytest.fixture(autouse=True)
def checked_moves(monkeypatch: pytest.MonkeyPatch) -> set[tuple[State, State]]:
    if CHECKED is not None:
        monkeypatch.setattr(aigw.gateway, "ClientConnection", CHECKED)
    return WALKED
