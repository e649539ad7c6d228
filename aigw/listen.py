"""Listening sockets: an address as people write it becomes bound sockets, or an error that says what to do.

The supervisor binds them once and keeps them, so that a worker that is replaced finds the same accept queue. They
carry SO_REUSEPORT, one per worker, each with its share of the clients; since that option lets a second gateway bind the
same port in silence, and take half of the clients, the port is first tried without it. A socket whose worker is gone is
never closed, which would reset who waits there: it is handed to another one. Where the kernel does not balance
SO_REUSEPORT, and for a unix socket, there is one for all.
"""

import contextlib
import errno
import itertools
import os
import socket
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

BACKLOG = 4096  # connections that wait while a worker is replaced; the kernel cuts it to net.core.somaxconn


MAX_PATH = 107 if sys.platform == "linux" else 103  # bytes of a unix socket's path: `sun_path` in unix(7)

# Linux spreads connections over all sockets of a port; others (macOS) give all of them to the last one.
BALANCED = sys.platform == "linux"


class ListenError(Exception):
    """An address that cannot be listened on; its text names the address, the reason and the remedy."""


def parse(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` -> host without brackets, port (0: any free one); `unix:/path` -> `/path` and 0.

    Raises: ListenError.
    """
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        path = address[5:]
        if not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise ListenError(f"{address}: a unix socket is named by an absolute path: unix:/run/name.sock")
        if len(os.fsencode(path)) > MAX_PATH:
            raise ListenError(f"{address}: the path has more than {MAX_PATH} bytes; choose a shorter one")
        return path, 0
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
    if address.startswith("unix:"):
        return [bind_unix(host)]
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


def bind_unix(path: str, mode: int = 0o666) -> socket.socket:
    """A socket at this absolute path, in place of one that a dead process has left.

    As on 127.0.0.1, every user of this machine may connect, unless `mode`, or that of the folder, says otherwise.

    Raises: ListenError.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        _remove_stale(path)
        before = os.umask(0o777 & ~mode)  # from the first moment on, which a chmod would come too late for
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(f"unix:{path}: {error.strerror}; its folder must be there, and writable") from None
    except ListenError:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ListenError(f"unix:{path}: there is a file that is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) != errno.ECONNREFUSED:  # else nobody listens
            raise ListenError(f"unix:{path}: another process listens there; stop it, or choose another path")
    os.unlink(path)


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
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Only this machine can reach the address. Raises: ListenError."""
    host, _ = parse(address)
    if address.startswith("unix:") or host in ("localhost", "::1"):
        return True
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        return False


# the sockets of all addresses


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket with a number of its own; `owner` is the worker whose it is, None: all workers accept on it. `key` says
    which of the config's addresses it is for, see `keys`."""

    number: int
    socket: socket.socket
    owner: int | None
    key: str = ""
    file: tuple[int, int] | None = None  # of a unix socket that must go with it: device and inode


# an address's key -> its sockets
Bound = dict[str, list[Listening]]


def keys(addresses: Iterable[str]) -> list[str]:
    """A name for each address: itself, and which one it is where there are several, as there may be of port 0."""
    seen: dict[str, int] = {}
    found = []
    for address in addresses:
        count = seen[address] = seen.get(address, 0) + 1
        found.append(address if count == 1 else f"{address} {count}")
    return found


class Listeners:
    """The sockets of all addresses and workers. They change in two steps: `bind` what is wanted, which may fail and
    then has changed nothing; then `keep` it, or `release` it."""

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

    def urls(self, secure: Collection[str]) -> list[str]:
        """The same as URLs, or `unix:/path`; `secure` are the keys of those with TLS."""
        return list(dict.fromkeys(_url(entry, secure) for entry in self.all))

    def bind(self, addresses: Iterable[str], workers: int) -> Bound:
        """Sockets for these addresses and so many workers: those that are there, and new ones.

        Raises: ListenError.
        """
        wanted: Bound = {}
        made: list[Listening] = []
        ours = {entry.socket.getsockname()[1] for entry in self.all if entry.file is None}
        addresses = list(addresses)
        try:
            for address, key in zip(addresses, keys(addresses), strict=True):
                wanted[key] = entries = list(self._bound.get(key, ()))
                if not entries:
                    entries += (self._listening(sock, key) for sock in bind(address, ours))
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

    def _listening(self, sock: socket.socket, key: str) -> Listening:
        """A place's first one."""
        if sock.family == socket.AF_UNIX:
            found = os.stat(sock.getsockname())
            return Listening(next(self._numbers), sock, None, key, (found.st_dev, found.st_ino))
        return Listening(next(self._numbers), sock, 0 if BALANCED else None, key)

    def _missing(self, entries: list[Listening], workers: int) -> Iterator[Listening]:
        """One more socket of each place for each worker that has none."""
        for first in [entry for entry in entries if entry.owner == 0]:
            place = first.socket.getsockname()
            owners = {entry.owner for entry in entries if entry.socket.getsockname() == place}
            for worker in range(workers):
                if worker not in owners:
                    sock = _bind(first.socket.family, place, probed=True)
                    yield Listening(next(self._numbers), sock, worker, first.key)

    def keep(self, wanted: Bound) -> None:
        """Closes our copies of all others: the workers' are the last then, and accept who waits before they close."""
        numbers = {entry.number for entries in wanted.values() for entry in entries}
        _close(entry for entry in self.all if entry.number not in numbers)
        self._bound = wanted

    def release(self, wanted: Bound) -> None:
        """Closes what was made for it: it shall not be kept after all."""
        numbers = {entry.number for entry in self.all}
        _close(entry for entries in wanted.values() for entry in entries if entry.number not in numbers)

    def close(self) -> None:
        _close(self.all)
        self._bound = {}


def _url(entry: Listening, secure: Collection[str]) -> str:
    shown = name(entry.socket)
    return shown if entry.file is not None else f"{'https' if entry.key in secure else 'http'}://{shown}"


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
        if entry.file is not None and entry.socket.fileno() >= 0:
            path = entry.socket.getsockname()
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == entry.file:  # not another's, who took the place
                    os.unlink(path)
        entry.socket.close()
