"""The control channel: whole messages with their own descriptors, whatever the socket does to the bytes."""

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

from aigw.channel import Channel, encode


class End:
    """One end with what it received."""

    def __init__(self, sock: socket.socket) -> None:
        self.got: list[tuple[dict[str, Any], list[int]]] = []
        self.ended = 0
        self.news = asyncio.Event()
        self.close_after: int | None = None
        self.channel = Channel(asyncio.get_running_loop(), sock, self._message, self._end)

    def _message(self, message: dict[str, Any], fds: list[int]) -> None:
        self.got.append((message, fds))
        self.news.set()
        if len(self.got) == self.close_after:
            self.channel.close()

    def _end(self) -> None:
        self.ended += 1
        self.news.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.got) < count and not self.ended:
                self.news.clear()
                await self.news.wait()

    async def until_end(self) -> None:
        async with asyncio.timeout(10):
            while not self.ended:
                self.news.clear()
                await self.news.wait()


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)


async def test_messages_both_ways_and_the_end() -> None:
    near, far = socket.socketpair()
    one, other = End(near), End(far)
    one.channel.send({"n": 1})
    one.channel.send({"n": 2})
    other.channel.send({"ok": "é\n"})
    await other.until(2)
    await one.until(1)
    assert [message["n"] for message, _ in other.got] == [1, 2]
    assert one.got == [({"ok": "é\n"}, [])]
    other.channel.close()
    other.channel.close()
    await one.until_end()
    assert (one.ended, other.ended) == (1, 0)
    one.channel.send({"n": 3})  # to nobody: nothing happens
    one.channel.close()


async def test_a_message_larger_than_the_socket_takes_goes_out_in_pieces() -> None:
    near, far = socket.socketpair()
    one, other = End(near), End(far)
    big = "x" * 3_000_000
    one.channel.send({"big": big})
    one.channel.send({"after": 1})
    await other.until(2)
    assert [list(message) for message, _ in other.got] == [["big"], ["after"]]
    assert other.got[0][0]["big"] == big
    one.channel.close()
    await other.until_end()


async def test_each_message_brings_its_own_descriptors() -> None:
    near, far = socket.socketpair()
    files = [os.memfd_create(f"file {number}") for number in range(3)]
    one = End(near)
    one.channel.send({"n": 0})  # all in one read at the other end, which is not there yet
    one.channel.send({"n": 1}, files[:1])
    one.channel.send({"n": 2})
    one.channel.send({"n": 3}, files[1:])
    other = End(far)
    await other.until(4)
    assert [len(fds) for _, fds in other.got] == [0, 1, 0, 2]
    assert all("fds" not in message for message, _ in other.got)
    passed = [fd for _, fds in other.got for fd in fds]
    assert all(same_file(one, other) for one, other in zip(files, passed, strict=True))
    assert not any(os.get_inheritable(fd) for fd in passed)
    for fd in files + passed:
        os.close(fd)
    one.channel.close()
    await other.until_end()


async def test_descriptors_of_a_message_larger_than_the_socket_takes() -> None:
    near, far = socket.socketpair()
    file = os.memfd_create("file")
    one, other = End(near), End(far)
    one.channel.send({"big": "x" * 1_000_000}, [file])
    await other.until(1)
    (_, fds), *_ = other.got
    assert same_file(file, fds[0])
    os.close(file)
    os.close(fds[0])
    one.channel.close()
    other.channel.close()


async def test_descriptors_that_nobody_took_are_closed() -> None:
    near, far = socket.socketpair()
    read, write = os.pipe()
    one = End(near)
    one.channel.send({"n": 1})
    one.channel.send({"n": 2}, [write])  # never delivered: the other end closes at the first
    other = End(far)
    other.close_after = 1
    await other.until(1)
    os.close(write)
    os.set_blocking(read, True)
    assert os.read(read, 1) == b""  # no copy of the writing end is open
    os.close(read)
    assert len(other.got) == 1
    one.channel.close()


async def test_nothing_is_delivered_after_a_message_that_closes() -> None:
    near, far = socket.socketpair()
    near.sendall(b'{"n":1}\n{"n":2}\n')
    other = End(far)
    other.close_after = 1
    await other.until(1)
    assert other.got == [({"n": 1}, [])]
    near.close()


async def test_descriptors_of_an_unfinished_message_are_closed() -> None:
    near, far = socket.socketpair()
    read, write = os.pipe()
    socket.send_fds(near, [b'{"fds":1'], [write])
    os.close(write)
    other = End(far)
    near.close()
    await other.until_end()
    assert other.got == []
    assert os.read(read, 1) == b""
    os.close(read)


async def test_the_other_end_dying_while_we_send_is_an_end() -> None:
    near, far = socket.socketpair()
    one = End(near)
    one.channel.send({"big": "x" * 3_000_000})
    far.close()
    one.channel.send({"n": 1})
    await one.until_end()
    assert one.ended == 1


async def test_the_other_end_being_dead_is_found_by_reading() -> None:
    near, far = socket.socketpair()
    one = End(near)
    far.close()
    one.channel.send({"n": 1})
    assert one.ended == 0
    await one.until_end()
    assert one.ended == 1


async def test_more_descriptors_than_the_kernel_passes_are_refused() -> None:
    near, far = socket.socketpair()
    one = End(near)
    with pytest.raises(ValueError, match="254 descriptors in one message; the kernel passes at most 253"):
        one.channel.send({}, [0] * 254)
    one.channel.close()
    far.close()


async def test_encoded_lines_are_messages_like_any_other() -> None:
    near, far = socket.socketpair()
    one, other = End(near), End(far)
    lines = b"".join(encode({"n": number, "pad": "x" * 5000}) for number in range(200))  # more than the socket takes
    one.channel.send({"n": -1})
    one.channel.send_encoded(lines)
    one.channel.send({"n": 200})
    await other.until(202)
    assert [message["n"] for message, _ in other.got] == list(range(-1, 201))
    one.channel.close()
    one.channel.send_encoded(lines)  # to nobody
    await other.until_end()


async def test_what_the_system_is_short_of_for_a_moment_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair()
    one, other = End(near), End(far)
    send_fds = socket.send_fds
    refusals = [OSError(errno.ETOOMANYREFS, "Too many references"), OSError(errno.ENOBUFS, "No buffer space")]

    def short(*arguments: Any) -> int:
        if refusals:
            raise refusals.pop()
        return send_fds(*arguments)

    monkeypatch.setattr(socket, "send_fds", short)
    one.channel.send({"n": 1}, [far.fileno()])
    one.channel.send({"n": 2})
    await other.until(2)
    assert [message["n"] for message, _ in other.got] == [1, 2]
    os.close(other.got[0][1][0])
    one.channel.close()
    await other.until_end()
