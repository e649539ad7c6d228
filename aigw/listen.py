"""Listening sockets: an address as people write it becomes bound sockets, or an error that says what to do.

The supervisor binds them once and keeps them, so that a worker that is replaced finds the same accept queue. They
carry SO_REUSEPORT, one per worker; since that option lets a second gateway bind the same port in silence, and take
half of the clients, the port is first tried without it.
"""

import errno
import socket

BACKLOG = 4096  # connections that wait while a worker is replaced; the kernel cuts it to net.core.somaxconn


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


def bind(address: str) -> list[socket.socket]:
    """Bound, listening, non-blocking sockets: one, or one for each address of a host name.

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
            sockets.append(_bind(family, (str(place[0]), port, *place[2:])))
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


def _bind(family: int, place: tuple[str | int, ...]) -> socket.socket:
    if place[1]:
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
