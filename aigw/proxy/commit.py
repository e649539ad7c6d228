"""The commit boundary of a stream: what came before its first content is held, so that it can still be taken back.

Providers open a stream with events that say nothing yet (`message_start`, a chunk with a role, `response.created`), and
only then find that they are overloaded. A client that was sent the 200 has no status left to be told; so where an
attempt may be followed by another, the beginning is held until the first event with content. Then it goes out exactly
as it came, and the rest as if nothing had been held. More than 64 KiB are never held.

What an event means, the dialect knows (`providers`); how its bytes travel on, the connection. No clock here.
"""

from __future__ import annotations

from typing import Final

import orjson

from aigw.errors import UPSTREAM_CUT, UPSTREAM_MALFORMED, Failure
from aigw.providers import Dialect, failure_of
from aigw.wire.sse import BOUND, Event, Splitter

# The end of every stream of OpenAI's, but for the Responses API's.
_DONE: Final = b"[DONE]"


class Held:
    """The beginning of one stream. `framing` is how the client will be told where it ends."""

    __slots__ = ("_dialect", "_pieces", "_size", "_splitter", "framing")

    def __init__(self, dialect: Dialect, framing: int) -> None:
        self._dialect = dialect
        self._splitter = Splitter()
        self._pieces: list[bytes] = []
        self._size = 0
        self.framing = framing

    def feed(self, data: bytes, payload: bytes, *, ended: bool) -> bool | Failure:
        """Hold `data`, the next bytes for the client, whose `payload` (without the framing of chunks) says what they
        are. True: it is not to be held any longer. A failure: the stream broke before it said anything.

        `ended`: the body is complete with it.
        """
        self._pieces.append(data)
        self._size += len(data)
        events = self._splitter.feed(payload)
        if ended:
            events += self._splitter.feed(b"\n\n")  # the last event may lack its empty line
        for event in events:
            verdict = self._judge(event)
            if verdict is not False:
                return verdict
        if ended:
            return Failure(UPSTREAM_CUT, "the upstream ended its stream before any content")
        return self._size > BOUND

    def taken(self) -> bytes:
        """All that was held, as it came."""
        return b"".join(self._pieces)

    def _judge(self, event: Event) -> bool | Failure:
        data = event.data
        if not data:
            return False  # a comment, or what no reader dispatches
        if data == _DONE:
            return True
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            return Failure(UPSTREAM_MALFORMED, "an event of the upstream's stream is no JSON")
        if type(document) is not dict:
            return True
        error = self._dialect.reported(document)
        return self._dialect.is_content(document) if error is None else failure_of(error)
