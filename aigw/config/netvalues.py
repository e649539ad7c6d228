"""How the config's scalars that name places are read: addresses, hosts, URLs, networks, headers, methods, paths.

Readers as in `values`: the plain value in normal form, or `ValueError` with what would be right. What is accepted here
is what the wire layer and the router take literally, so nothing ambiguous passes: no dot segments, no user info, no
legacy forms of IPv4 addresses.
"""

import re

from aigw.config.values import has_control, is_null, kind, text

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
_URL = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[^/:\[\]]+)(?::([0-9]{1,5}))?(/.*)?", re.IGNORECASE | re.DOTALL)
_URL_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")

# Headers that frame a message or belong to one connection; Host, which `preserve_host` decides; and the id, which is
# each request's own.
_FIXED_HEADERS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    }
)


# Places on a network


def _check_host(host: str) -> None:
    """Raises: `host` is neither a host name nor an IP address (an IPv6 address in brackets)."""
    if host.startswith("["):
        from ipaddress import IPv6Address

        try:
            IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("holds no valid IPv6 address between its brackets") from None
    elif re.fullmatch(r"[0-9.]+", host):
        if not _IPV4.fullmatch(host):
            raise ValueError("holds no valid IPv4 address: four numbers from 0 to 255")
    elif len(host) > 253 or not _HOST_NAME.fullmatch(host):
        raise ValueError("holds no valid host name (letters, digits, - and dots; other alphabets as punycode)")


def socket_path(path: str) -> str:
    """The path of a unix socket, absolute and short enough for `sun_path`."""
    if not path.startswith("/") or path.endswith("/") or has_control(path):
        raise ValueError("must name the unix socket by an absolute path: unix:/run/name.sock")
    if len(path.encode()) > 107:
        raise ValueError("names a unix socket by more than 107 bytes, which the system cannot bind or reach")
    return path


def address(value: object) -> str:
    """Where to listen: `host:port`, `[v6]:port` or `unix:/path`."""
    wanted = 'an address such as 127.0.0.1:8081, "[::1]:8081" or unix:/run/aigw.sock'
    if not isinstance(value, str) or is_null(value):
        raise ValueError(f"must be {wanted}; {kind(value)}")
    if value.startswith("unix:"):
        return f"unix:{socket_path(value[5:])}"
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"must be {wanted}: a host, a colon and a port from 0 to 65535 (0: any free one)")
    if not host or host == "*":
        raise ValueError("must name the address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for everyone")
    _check_host(host)
    return f"{host.lower()}:{int(port)}"


def is_local(address: str) -> bool:
    """True if only this machine can connect to a listener's address."""
    host = address.rpartition(":")[0]
    return address.startswith("unix:") or host in ("localhost", "[::1]") or host.startswith("127.")


def url(value: object) -> str:
    """A target: `http(s)://host[:port][/base]` or `unix:/run/x.sock[:/base]`; in normal form, no slash at its end.

    The URL itself is never repeated, since people write credentials into URLs.
    """
    wanted = "must be http://host[:port][/base], https://... or unix:/run/name.sock[:/base]"
    found = text(value)
    if found.startswith("unix:"):
        path, _, base = found[5:].partition(":")
        return f"unix:{socket_path(path)}" + (f":{base}" if (base := _base(base)) else "")
    if "@" in found.split("//", 1)[-1].split("/", 1)[0]:
        raise ValueError("must not hold a user name or password; a credential goes into api_key or headers")
    if "?" in found or "#" in found:
        raise ValueError("must not hold a query (?) or fragment (#)")
    match = _URL.fullmatch(found)
    if match is None:
        raise ValueError(wanted)
    scheme, host, port, base = match.groups()
    _check_host(host)
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError("the URL's port must be from 1 to 65535")
    return f"{scheme.lower()}://{host.lower()}" + (f":{int(port)}" if port else "") + _base(base or "")


def _base(base: str) -> str:
    base = base.rstrip("/")
    if not _URL_PATH.fullmatch(base) or "//" in base or _dotted(base):
        raise ValueError("the URL's path must be plain: no empty, . or .. segments, blanks percent-encoded")
    return base


def _dotted(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


def host_pattern(value: object) -> str:
    """What a gateway answers for: `*`, a host name or `*.suffix`; lower case, no port."""
    found = text(value).lower()
    if found == "*":
        return found
    if re.search(r":[0-9]+$", found) and not found.endswith("]") and found.count(":") == 1:
        raise ValueError("must not hold a port; the port is ignored when a host is matched")
    plain = found.removesuffix(".").removeprefix("*.")
    if "*" in plain or "/" in plain:
        raise ValueError('must be a host name such as api.example.com, "*.example.com" or "*"')
    _check_host(plain)
    return found.removesuffix(".")


def host_name(value: object) -> str:
    found = text(value).lower()
    _check_host(found)
    return found


def network(value: object) -> str:
    """A CIDR block, in normal form."""
    from ipaddress import ip_network  # few configs trust proxies

    found = text(value)
    try:
        return str(ip_network(found))
    except ValueError:
        pass
    try:
        hint = f"; the block around it is {ip_network(found, strict=False)}"
    except ValueError:
        hint = ""
    raise ValueError(f"must be a network such as 10.0.0.0/8 or 2001:db8::/32{hint}")


# HTTP


def header_name(value: object) -> str:
    found = text(value).lower()
    if not _TOKEN.fullmatch(found):
        raise ValueError("is no valid header name: letters, digits and - only")
    if found in _FIXED_HEADERS or found.startswith("proxy-"):
        hint = "; see preserve_host on rules" if found == "host" else ": it belongs to the connection, not the request"
        raise ValueError(f"cannot be set or removed{hint}")
    return found


def header_value(value: object) -> str | None:
    """The value to set, or None to remove the header."""
    if is_null(value):
        return None
    if not isinstance(value, str):
        raise ValueError(f"must be text, or null to remove the header; {kind(value)}")
    if not (value.isascii() and (value.isprintable() or not value)) or value != value.strip():
        raise ValueError("must be printable ASCII on one line, without blanks at either end")
    return str(value)


def method(value: object) -> str:
    found = text(value)
    if found == "CONNECT" or not re.fullmatch(r"[A-Z][A-Z-]{0,31}", found):
        raise ValueError("must be a method in upper case, such as GET or POST (CONNECT is never served)")
    return found


def rule_path(value: object) -> str:
    """An exact path, or a prefix ending in `/*`."""
    found = text(value)
    if not found.startswith("/"):
        raise ValueError('must begin with a slash: "/v1/*" for all beneath, "/ping" for one path')
    stem = found.removesuffix("/*")
    if "*" in stem:
        raise ValueError('may hold a * only as the last segment: "/files/*"')
    if not _URL_PATH.fullmatch(stem) or "%" in stem or "//" in stem or _dotted(stem):
        raise ValueError("must be plain: no %, ?, #, blanks, no empty, . or .. segments")
    return found


def client_path(value: object) -> str:
    """The path of a request the gateway makes itself, percent-encoded where needed."""
    found = text(value)
    if not found.startswith("/") or not _URL_PATH.fullmatch(found.split("?", 1)[0]) or "#" in found or " " in found:
        raise ValueError('must be a path such as "/health"')
    return found
