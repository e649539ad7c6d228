"""The first content of a stream, looked for as its events pass: until it came, a client has waited for its first token.

What opens a stream (a role, `message_start`, pings), what closes it (a reason to finish, the usage) and what breaks it
says nothing that was asked for; the dialects know which is which. No clock here: `feed` says that it came, in the call
that brought it.
"""

from __future__ import annotations

import orjson

from aigw.providers import Dialect
from aigw.wire.sse import Splitter


class FirstContent:
    """One stream, not coded. Events of more than 64 KiB are passed over, since none of them is held."""

    __slots__ = ("_dialect", "_splitter")

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._splitter: Splitter | None = None  # once an event did not come in a read of its own

    def __repr__(self) -> str:
        return f"<FirstContent {self._splitter!r}>"

    def feed(self, payload: bytes) -> bool | None:
        """Whether it came with `payload`; None where none will: the stream ended, or broke, or cannot be read."""
        splitter = self._splitter
        if splitter is None:
            if not payload:
                return False
            # Most reads are one event of one line.
            if payload[:6] == b"data: " and payload[-2:] == b"\n\n" and payload.find(b"\n") == len(payload) - 2:
                return self._judge(payload[6:])
            splitter = self._splitter = Splitter()
        beginnings = self._dialect.BEGINNINGS
        for event in splitter.feed(payload):
            # By its name, where it has one: it may repeat all of a large request, which takes long to read.
            if event.data and event.name not in beginnings:
                found = self._judge(event.data)
                if found is not False:
                    return found
        return False

    def _judge(self, data: bytes) -> bool | None:
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:  # OpenAI's `[DONE]`, or nothing that is known
            return None
        dialect = self._dialect
        if type(document) is not dict or dialect.reported(document) is not None:
            return None
        return dialect.says(document)
