"""Events by their bytes and their data: every line end, every cut, nothing lost and nothing beyond the bound held."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cpu import assert_linear
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import Recording, load

from aigw.wire.sse import BOUND, EVENT_END, Event, Splitter

STEADY = settings(derandomize=True, deadline=None)
STREAMS = [r for r in load() if r.response_header("content-type").startswith("text/event-stream")]


def split(*reads: bytes, bound: int = 65536) -> tuple[list[Event], bytes]:
    splitter = Splitter(bound)
    events = [event for read in reads for event in splitter.feed(read)]
    return events, splitter.rest()


def told(events: list[Event]) -> list[tuple[bytes, bytes]]:
    """What a reader would be told: name and data of the events it would dispatch."""
    return [(event.name, event.data) for event in events if event.data is not None]


@pytest.mark.parametrize(
    ("stream", "name", "data"),
    [
        (b"data: x\n\n", b"", b"x"),
        (b"data: x\r\n\r\n", b"", b"x"),
        (b"data: x\r\r", b"", b"x"),
        (b"data: x\r\n\n", b"", b"x"),
        (b"data: x\n\r\n", b"", b"x"),
        (b"data: x\n\r", b"", b"x"),
        (b"data:x\n\n", b"", b"x"),
        (b"data:  x\n\n", b"", b" x"),
        (b"data:\n\n", b"", b""),
        (b"data\n\n", b"", b""),
        (b"data\ndata\n\n", b"", b"\n"),
        (b"data: a\ndata: b\r\ndata:c\n\n", b"", b"a\nb\nc"),
        (b"event: done\ndata: x\n\n", b"done", b"x"),
        (b"data: x\nevent: a\nevent:b\nid: 1\nretry: 2\n\n", b"b", b"x"),
        (b": comment\ndata: x\n: data: y\n\n", b"", b"x"),
        (b"data: a: b\n\n", b"", b"a: b"),
        (b"Data: y\n data: y\ndatax: y\ndata: x\n\n", b"", b"x"),
        (b"\xef\xbb\xbfdata: x\n\n", b"", b"x"),
        (b"\ndata: x\n\n", b"", b"x"),
        (b"data: \xff\x00\n\n", b"", b"\xff\x00"),
    ],
)
def test_one_event(stream: bytes, name: bytes, data: bytes) -> None:
    assert split(stream) == ([Event(stream, data, name)], b"")


def test_what_readers_do_not_dispatch_has_no_data_but_keeps_its_bytes() -> None:
    events, rest = split(b": keep-alive\n\nevent: ping\n\n\n\ndata: x\n\n\xef\xbb\xbfdata: y\n\nid: 1\ndata: un")
    assert [event.raw for event in events] == [
        b": keep-alive\n\n",
        b"event: ping\n\n\n\n",
        b"data: x\n\n",
        b"\xef\xbb\xbfdata: y\n\n",  # a BOM is one at the beginning of the stream only
    ]
    assert [event.data for event in events] == [None, None, b"x", None]
    assert rest == b"id: 1\ndata: un"


def test_an_event_comes_with_its_last_byte() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: x\n") == []
    assert repr(splitter) == "<Splitter 8 bytes held>"
    assert splitter.feed(b"\ndata: y\r\n\r") == [Event(b"data: x\n\n", b"x", b""), Event(b"data: y\r\n\r", b"y", b"")]
    assert splitter.feed(b"\ndata: z\n\n") == [Event(b"\ndata: z\n\n", b"z", b"")]
    assert splitter.rest() == b""


def test_beyond_the_bound_an_event_goes_through_in_parts() -> None:
    splitter = Splitter(16)
    assert splitter.feed(b"data: 0123456789") == []
    [part] = splitter.feed(b"abc\n")
    assert part == Event(b"data: 0123456789a", None, b"")
    assert repr(splitter) == "<Splitter 3 bytes held, over the bound>"
    assert splitter.feed(b"\ndata: x\n\n") == [Event(b"bc\n\n", None, b""), Event(b"data: x\n\n", b"x", b"")]
    assert split(b"data: 0123456789abc\n\ndata: x\n\n", bound=16)[0] == [
        Event(b"data: 0123456789abc\n\n", None, b""),
        Event(b"data: x\n\n", b"x", b""),
    ]


def test_no_more_than_the_bound_is_held() -> None:
    splitter = Splitter(1000)
    passed = 0
    for read in [b"data: "] + [b"x" * 99] * 100:
        passed += sum(len(event.raw) for event in splitter.feed(read))
        assert len(splitter._buffer) <= 1000
    assert passed > 8000
    assert passed + len(splitter.rest()) == 9906


PIECES = st.sampled_from(
    [
        b"data",
        b":",
        b" ",
        b"x",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"event: e",
        b"id",
        b": c",
        b"\xef\xbb\xbf",
        b"data: y\n\n",
    ]
)


@STEADY
@given(st.lists(PIECES, max_size=40).map(b"".join), st.data())
def test_cuts_change_nothing(stream: bytes, data: st.DataObject) -> None:
    for bound in (12, 65536):
        whole, whole_rest = split(stream, bound=bound)
        assert b"".join(event.raw for event in whole) + whole_rest == stream
        places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        at_random = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
        for reads in (at_random, [stream[i : i + 1] for i in range(len(stream))]):
            events, rest = split(*reads, bound=bound)
            assert b"".join(event.raw for event in events) + rest == stream
            if bound == 65536:
                assert told(events) == told(whole)


def lines_by_the_book(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The algorithm of the standard, line by line, over a whole stream."""
    lines = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")[:-1]
    dispatched, name, data = [], b"", None
    for line in lines:
        if not line:
            if data is not None:
                dispatched.append((name, data))
            name, data = b"", None
            continue
        field, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if field == b"data":
            data = value if data is None else data + b"\n" + value
        elif field == b"event":
            name = value
    return dispatched


@STEADY
@given(st.lists(PIECES, max_size=40).map(b"".join))
def test_as_the_standard_says(stream: bytes) -> None:
    assert told(split(stream)[0]) == lines_by_the_book(stream)


@pytest.mark.parametrize("recording", STREAMS, ids=lambda recording: recording.name)
def test_recorded_streams(recording: Recording) -> None:
    body = recording.response_body
    events, rest = split(body)
    assert b"".join(event.raw for event in events) == body
    assert rest == b""
    assert told(events) == lines_by_the_book(body)
    assert len(events) == len(EVENT_END.findall(body)) > 0


@pytest.mark.parametrize(
    "text",
    [b"data:\n", b"\n", b"\r", b"data: x\n\n", b"x"],
    ids=["lines", "LF", "CR", "events", "one line"],
)
@pytest.mark.parametrize("size", [BOUND, 4 * BOUND])
def test_what_is_made_to_be_slow_costs_no_more_than_its_size(text: bytes, size: int) -> None:
    """0.01 s to 0.13 s of CPU. No more than the bound is held, so only up to there could it grow faster than linear."""

    def prepare(size: int) -> Callable[[], None]:
        stream = text * (size // len(text))

        def work() -> None:
            splitter = Splitter()
            for place in range(0, len(stream), 10):
                splitter.feed(stream[place : place + 10])
            split(stream)

        return work

    assert_linear(prepare, size)
