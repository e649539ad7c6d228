"""Addresses to listening sockets, and errors that say what to do."""

import os
import socket
from collections.abc import Iterator

import pytest

from aigw import listen


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("127.0.0.1:8081", ("127.0.0.1", 8081)),
        ("[::1]:0", ("::1", 0)),
        ("localhost:65535", ("localhost", 65535)),
    ],
)
def test_addresses(address: str, parsed: tuple[str, int]) -> None:
    assert listen.parse(address) == parsed


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("8081", "8081: not an address; write host:port, such as 127.0.0.1:8081, or [::1]:8081"),
        (":8081", ":8081: not an address; write host:port, such as 127.0.0.1:8081, or [::1]:8081"),
        ("localhost:", "localhost:: the port must be a number from 0 to 65535 (0: any free one)"),
        ("localhost:65536", "localhost:65536: the port must be a number from 0 to 65535 (0: any free one)"),
        ("localhost:²", "localhost:²: the port must be a number from 0 to 65535 (0: any free one)"),
        ("::1:80", "::1:80: an IPv6 address stands in brackets: [::1]:80"),
        ("unix:x", "unix:x: a unix socket is named by an absolute path: unix:/run/name.sock"),
    ],
)
def test_bad_addresses(address: str, message: str) -> None:
    with pytest.raises(listen.ListenError) as caught:
        listen.bind(address)
    assert str(caught.value) == message


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_any_free_port(host: str) -> None:
    sockets = listen.bind(f"{host}:0")
    try:
        (sock,) = sockets
        name = listen.name(sock)
        assert name.startswith(f"{host}:")
        assert not name.endswith(":0")
        with socket.create_connection(listen.parse(name), timeout=10):
            pass
        assert not sock.getblocking()
    finally:
        close(sockets)


def test_a_host_name_is_bound_at_all_its_addresses() -> None:
    sockets = listen.bind("localhost:0")
    try:
        hosts = {sock.getsockname()[0] for sock in sockets}
        assert hosts
        assert hosts <= {"127.0.0.1", "::1"}
    finally:
        close(sockets)


def test_a_port_in_use_is_an_error_even_if_it_may_be_shared() -> None:
    first = listen.bind("127.0.0.1:0")
    try:
        address = listen.name(first[0])
        port = address.rpartition(":")[2]
        with pytest.raises(listen.ListenError) as caught:
            listen.bind(address)
        assert str(caught.value) == (
            f"{address}: the port is in use by another process (ss -ltnp 'sport = :{port}' shows it); "
            "stop that one, or choose another address with --listen or listen:"
        )
        with pytest.raises(listen.ListenError, match="is in use"):
            listen.bind(f"localhost:{port}")
    finally:
        close(first)
    close(listen.bind(address))


def test_an_address_of_another_machine() -> None:
    with pytest.raises(listen.ListenError) as caught:
        listen.bind("192.0.2.1:0")  # RFC 5737: documentation
    assert str(caught.value) == (
        "192.0.2.1:0: no interface of this machine has that address; 127.0.0.1 is for this machine only, 0.0.0.0 is all"
    )


def test_a_name_without_address() -> None:
    with pytest.raises(listen.ListenError) as caught:
        listen.bind("nowhere.invalid:80")
    assert (
        str(caught.value)
        == "nowhere.invalid:80: the host name 'nowhere.invalid' has no address here; use an IP address"
    )


def test_errors_of_the_system_in_words() -> None:
    assert "CAP_NET_BIND_SERVICE" in listen._explain(PermissionError(13, "Permission denied"), 80)
    assert listen._explain(OSError(5, "Input/output error"), 80) == "Input/output error"


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:1", True),
        ("127.1.2.3:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("127.example.com:1", False),
    ],
)
def test_loopback(address: str, loopback: bool) -> None:
    assert listen.is_loopback(address) is loopback


# the sockets of all addresses


@pytest.fixture
def listeners() -> Iterator[listen.Listeners]:
    made = listen.Listeners()
    yield made
    made.close()


def test_each_worker_gets_a_socket_at_the_same_place(listeners: listen.Listeners) -> None:
    listeners.keep(listeners.bind(["127.0.0.1:0", "127.0.0.1:0"], 2))
    assert len(listeners.names) == 2
    assert sorted(entry.owner or 0 for entry in listeners.all) == [0, 0, 1, 1]
    before = listeners.all
    listeners.keep(listeners.bind(["127.0.0.1:0", "127.0.0.1:0"], 3))
    assert set(before) < set(listeners.all)  # those that were there stay
    assert len(listeners.all) == 6
    listeners.keep(listeners.bind(["127.0.0.1:0"], 1))
    assert len(listeners.all) == 3  # of fewer workers too: to close one would lose who waits there
    assert len(listeners.names) == 1
    assert [entry.socket.fileno() >= 0 for entry in before] == [True, True, False, False]


def test_what_cannot_be_bound_changes_nothing(listeners: listen.Listeners) -> None:
    listeners.keep(listeners.bind(["127.0.0.1:0"], 2))
    before = listeners.all
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(listen.ListenError, match="no interface of this machine has that address"):
        listeners.bind(["127.0.0.1:0", "localhost:0", "192.0.2.1:80"], 3)
    assert os.listdir("/proc/self/fd") == descriptors
    assert listeners.all == before


def test_another_address_of_a_port_that_is_ours(listeners: listen.Listeners) -> None:
    listeners.keep(listeners.bind(["127.0.0.1:0"], 1))
    port = listeners.names[0].rpartition(":")[2]
    listeners.keep(listeners.bind([f"0.0.0.0:{port}"], 1))
    assert listeners.names == [f"0.0.0.0:{port}"]


def test_a_socket_is_always_somebody_s(listeners: listen.Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    listeners.keep(listeners.bind(["127.0.0.1:0"], 4))
    everything = {entry.number for entry in listeners.all}
    for living in ([0, 1, 2, 3], [1, 2], [3], [5]):
        shares = listen.share(listeners.all, living)
        assert sorted(shares) == living
        given = [entry.number for entries in shares.values() for entry in entries]
        assert sorted(given) == sorted(everything)
        for worker in set(living) & {0, 1, 2, 3}:
            assert worker in {entry.owner for entry in shares[worker]}
    assert listen.share(listeners.all, []) == {}
    monkeypatch.setattr(listen, "BALANCED", False)
    listeners.keep(listeners.bind(["127.0.0.1:0", "[::1]:0"], 4))
    shared_by_all = [entry for entry in listeners.all if entry.owner is None]
    assert len(shared_by_all) == 1
    assert all(shared_by_all[0] in entries for entries in listen.share(listeners.all, [1, 2]).values())
