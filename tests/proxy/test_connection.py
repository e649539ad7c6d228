"""Writes that are gathered for the end of a turn of the loop: what goes out together, and that nothing is lost."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from fakes import Connection, Seen, get, ok, post, running, serving, splicing, stub

from aigw.proxy import connection
from aigw.proxy.connection import APART, MOST_GATHERED, MOST_TOGETHER, Outbox

SOON = APART / 2


class Wire:
    """A transport that keeps what was written, write by write."""

    def __init__(self, broken: bool = False, closing: bool = False) -> None:
        self.writes: list[bytes] = []
        self.broken = broken
        self.closing = closing

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        if self.broken:
            raise RuntimeError("a broken transport")
        self.writes.append(data)


class Ends:
    """Connections of one outbox, on wires."""

    def __init__(self, count: int = 1) -> None:
        self.reports: list[tuple[Exception, object]] = []
        self.outbox = Outbox(asyncio.get_running_loop(), lambda error, where: self.reports.append((error, where)))
        self.all = [connection.Connection(self.outbox) for _ in range(count)]
        for end in self.all:
            end.transport = cast(asyncio.Transport, Wire())

    def writes(self, number: int = 0) -> list[bytes]:
        return cast(Wire, self.all[number].transport).writes


async def test_a_write_after_a_pause_goes_out_at_once() -> None:
    ends = Ends()
    (end,) = ends.all
    for index in range(3):
        end.write(b"%d" % index, 1.0 + index * APART * 2)
    assert ends.writes() == [b"0", b"1", b"2"]


async def test_those_right_behind_it_go_out_when_the_turn_ends_in_order() -> None:
    ends = Ends(3)
    one, two, three = ends.all
    one.write(b"first", 1.0)
    for index, end in enumerate([two, three, two, one, two]):
        end.write(b"%d" % index, 1.0 + index * SOON)
    assert [ends.writes(number) for number in range(3)] == [[b"first"], [], []]
    await asyncio.sleep(0)
    assert [ends.writes(number) for number in range(3)] == [[b"first", b"3"], [b"0", b"2", b"4"], [b"1"]]
    await asyncio.sleep(0)
    one.write(b"more", 1.0 + 5 * SOON)
    assert ends.writes() == [b"first", b"3"]
    one.write(b"and more", 2.0)  # behind what waits, however late it is
    await asyncio.sleep(0)
    assert ends.writes() == [b"first", b"3", b"more", b"and more"]


async def test_many_do_not_wait_for_the_end_of_a_long_turn() -> None:
    ends = Ends(MOST_TOGETHER + 2)
    for index, end in enumerate(ends.all):
        end.write(b"x", 1.0 + index * SOON)
    assert [len(ends.writes(number)) for number in range(MOST_TOGETHER + 2)] == [1] * (MOST_TOGETHER + 1) + [0]
    await asyncio.sleep(0)
    assert ends.writes(MOST_TOGETHER + 1) == [b"x"]


async def test_much_is_written_at_once_behind_what_waits() -> None:
    ends = Ends(2)
    one, two = ends.all
    one.write(b"a", 1.0)
    one.write(b"b", 1.0 + SOON)
    one.write(b"c" * (MOST_GATHERED + 1), 1.0 + SOON)
    assert ends.writes(0) == [b"a", b"b", b"c" * (MOST_GATHERED + 1)]
    two.write(b"d" * (MOST_GATHERED + 1), 1.0 + SOON)
    assert ends.writes(1) == [b"d" * (MOST_GATHERED + 1)]


async def test_nothing_is_gathered_for_a_socket_that_does_not_take_it() -> None:
    ends = Ends()
    (end,) = ends.all
    end.write(b"a", 1.0)
    end.write(b"b", 1.0 + SOON)
    end.write_paused = True
    end.write(b"c", 1.0 + SOON)
    assert ends.writes() == [b"a", b"b", b"c"]


@pytest.mark.parametrize("closing", [False, True])
async def test_one_that_is_broken_is_told_of_and_holds_up_nobody(closing: bool) -> None:
    ends = Ends(3)
    one, two, three = ends.all
    two.transport = broken = cast(asyncio.Transport, Wire(broken=True, closing=closing))
    for end in (one, two, three):
        end.write(b"x", 1.0)
    await asyncio.sleep(0)
    assert ends.writes(2) == [b"x"]
    assert [(str(error), where) for error, where in ends.reports] == [("a broken transport", broken)][closing:]


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write is ever far enough from the one before it."""
    monkeypatch.setattr(connection, "APART", float("inf"))


async def test_requests_pipelined_and_side_by_side(gathering: None) -> None:
    async def echo(up: Connection, seen: Seen) -> None:
        await up.send(ok(seen.body or seen.line))

    async with stub(echo) as up, running(serving(up.url)) as gw:
        bodies = [b'{"model": "m%d"}' % index for index in range(12)]

        async def one(number: int) -> None:
            client = await gw.connect()
            await client.send(b"".join(post("/v1/chat/completions", body + b" " * number) for body in bodies))
            assert [(await client.answer()).body for _ in bodies] == [body + b" " * number for body in bodies]

        await asyncio.gather(*[one(number) for number in range(20)])


async def test_what_waits_goes_out_before_the_connection_closes(gathering: None) -> None:
    async with stub(ok(b"x" * 5000)) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x", b"connection: close"))
        assert (await client.answer()).body == b"x" * 5000
        assert await client.rest() == b""


async def test_a_refusal_behind_an_answer(gathering: None) -> None:
    async with stub() as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/__/ping") + get("/__/ping") + b"NONSENSE\r\n\r\n")
        for _ in range(2):
            assert (await client.answer()).status == 200
        assert (await client.answer()).status == 400
        assert await client.rest() == b""


async def test_a_stream_that_is_cut_shows_all_that_came(gathering: None) -> None:
    said = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

    async def handler(up: Connection, seen: Seen) -> None:
        await up.send(said, b"3\r\none\r\n", b"3\r\ntwo\r\n")
        up.close()

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        assert (await client.rest()).endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n")


async def test_a_close_delimited_answer_that_breaks_is_reset_behind_what_came(gathering: None) -> None:
    async def handler(up: Connection, seen: Seen) -> None:
        await up.send(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await asyncio.sleep(0)
        up.reset()

    async with stub(handler) as up, running(splicing(up.url)) as gw:
        client = await gw.connect()
        await client.send(get("/x"))
        with pytest.raises(ConnectionResetError):
            await client.rest()
        assert (await gw.record())["end"] == "cut"
