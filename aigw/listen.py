"""Listening sockets: an address as people write it becomes bound sockets, or an error that says what to do.

The supervisor binds them once and keeps them, so that a worker that is replaced finds the same accept queue. They
carry SO_REUSEPORT, one per worker, each with its share of the clients; since that option lets a second gateway bind the
same port in silence, and take half of the clients, the port is first tried without it. A socket whose worker is gone is
never closed, which would reset who waits there: it is handed to another one. Where the kernel does not balance
SO_REUSEPORT, there is one socket for all.
"""

import errno
import itertools
import socket
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

BACKLOG = 4096  # connections that wait while a worker is replaced; the kernel cuts it to net.core.somaxconn


# Linux spreads connections over all sockets of a port; others (macOS) give all of them to the last one.
BALANCED = sys.platform == "linux"


class ListenError(Exception):
    """An address that cannot be listened on; its text names the address, the reason and the remedy."""


def parse(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` -> host without brackets, port (0: any free one).

    Raises: ListenError.
    """
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        raise ListenError(f"{address}: listening on a unix socket is not available yet; use host:port")
    if not colon or not host:
        raise ListenError(f"{address}: not an address; write host:port, such as 127.0.0.1:8081, or [::1]:8081")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ListenError(f"{address}: the port must be a number from 0 to 65535 (0: any free one)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ListenError(f"{address}: an IPv6 address stands in brackets: [{host}]:{port}")
    return host, int(port)


def bind(address: str, ours: Collection[int] = ()) -> list[socket.socket]:
    """Bound, listening, non-blocking sockets: one, or one for each address of a host name.

    `ours` are ports that this process has sockets at: another address of the same port is not in use by others.

    Raises: ListenError.
    """
    host, port = parse(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ListenError(f"{address}: the host name {host!r} has no address here; use an IP address") from None
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, place in dict.fromkeys(found):
        try:
            sockets.append(_bind(family, (str(place[0]), port, *place[2:]), probed=port in ours))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # a name's ::1 on a machine without IPv6
                missing = error
                continue
            for sock in sockets:
                sock.close()
            raise ListenError(f"{address}: {_explain(error, port)}") from None
    if missing is not None and not sockets:
        raise ListenError(f"{address}: {_explain(missing, port)}")
    return sockets


def _bind(family: int, place: tuple[str | int, ...], *, probed: bool = False) -> socket.socket:
    if place[1] and not probed:
        with _socket(family) as probe:
            probe.bind(place)
    sock = _socket(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(place)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _socket(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not kept out by connections that linger in TIME_WAIT
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # [::]:p and 0.0.0.0:p are two addresses
    return sock


def _explain(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"the port is in use by another process (ss -ltnp 'sport = :{port}' shows it); "
            "stop that one, or choose another address with --listen or listen:"
        )
    if error.errno == errno.EACCES:
        return "not permitted; ports below 1024 need the capability CAP_NET_BIND_SERVICE, or choose a higher one"
    if error.errno == errno.EADDRNOTAVAIL:
        return "no interface of this machine has that address; 127.0.0.1 is for this machine only, 0.0.0.0 is all"
    return str(error.strerror)


def name(sock: socket.socket) -> str:
    """The address that a socket is bound to, as people write it."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Only this machine can reach the address. Raises: ListenError."""
    host, _ = parse(address)
    if host in ("localhost", "::1"):
        return True
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        return False


# the sockets of all addresses


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket with a number of its own; `owner` is the worker whose it is, None: all workers accept on it."""

    number: int
    socket: socket.socket
    owner: int | None


# (address, which of several equal ones, as in two times port 0) -> its sockets
Bound = dict[tuple[str, int], list[Listening]]


class Listeners:
    """The sockets of all addresses and workers. They change in two steps: `bind` what is wanted, which may fail and
    then has changed nothing; then `keep` it."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._bound: Bound = {}

    @property
    def all(self) -> list[Listening]:
        return [entry for entries in self._bound.values() for entry in entries]

    @property
    def names(self) -> list[str]:
        """Where clients connect, as people write it."""
        return list(dict.fromkeys(name(entry.socket) for entry in self.all))

    def bind(self, addresses: Iterable[str], workers: int) -> Bound:
        """Sockets for these addresses and so many workers: those that are there, and new ones.

        Raises: ListenError.
        """
        wanted: Bound = {}
        made: list[Listening] = []
        ours = {entry.socket.getsockname()[1] for entry in self.all}
        seen: dict[str, int] = {}
        try:
            for address in addresses:
                key = (address, seen.setdefault(address, 0))
                seen[address] += 1
                wanted[key] = entries = list(self._bound.get(key, ()))
                if not entries:
                    owner = 0 if BALANCED else None
                    entries += (Listening(next(self._numbers), sock, owner) for sock in bind(address, ours))
                    made += entries
                for entry in self._missing(entries, workers):
                    entries.append(entry)
                    made.append(entry)
        except (ListenError, OSError) as error:
            _close(made)
            if isinstance(error, ListenError):
                raise
            raise ListenError(f"{address}: {error.strerror}") from None
        return wanted

    def _missing(self, entries: list[Listening], workers: int) -> Iterator[Listening]:
        """One more socket of each place for each worker that has none."""
        for first in [entry for entry in entries if entry.owner == 0]:
            place = first.socket.getsockname()
            owners = {entry.owner for entry in entries if entry.socket.getsockname() == place}
            for worker in range(workers):
                if worker not in owners:
                    sock = _bind(first.socket.family, place, probed=True)
                    yield Listening(next(self._numbers), sock, worker)

    def keep(self, wanted: Bound) -> None:
        """Closes our copies of all others: the workers' are the last then, and accept who waits before they close."""
        numbers = {entry.number for entries in wanted.values() for entry in entries}
        _close(entry for entry in self.all if entry.number not in numbers)
        self._bound = wanted

    def close(self) -> None:
        _close(self.all)
        self._bound = {}


def share(sockets: Iterable[Listening], living: Collection[int]) -> dict[int, list[Listening]]:
    """Who of the living workers accepts on which sockets: each on its own, and on those of one that is not there."""
    order = sorted(living)
    shares: dict[int, list[Listening]] = {worker: [] for worker in order}
    for entry in sockets if order else ():
        if entry.owner is None:
            for share in shares.values():
                share.append(entry)
        else:
            heir = entry.owner if entry.owner in shares else order[entry.owner % len(order)]
            shares[heir].append(entry)
    return shares


def _close(entries: Iterable[Listening]) -> None:
    for entry in entries:
        entry.socket.close()
