"""A reader of HTTP/1.1 requests that is as strict as RFC 9112 allows, written for the tests alone.

It shares no code and no method with `aigw.wire`: no regular expression, no httptools, one byte range after the other.
What the gateway forwards must be a request here; what the gateway accepts must mean the same here.
"""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = b"0123456789"
HEX = DIGITS + b"abcdefABCDEF"
LETTERS = bytes(range(ord("a"), ord("z") + 1)) + bytes(range(ord("A"), ord("Z") + 1))
TOKEN = DIGITS + LETTERS + b"!#$%&'*+-.^_`|~"
VISIBLE = bytes(range(0x21, 0x7F))
TEXT = b"\t " + VISIBLE + bytes(range(0x80, 0x100))
REGISTERED_NAME = DIGITS + LETTERS + b"-._~!$&'()*+,;="


class Unclean(ValueError):
    """Bytes that are no request by the letter."""


@dataclass(frozen=True, slots=True)
class Request:
    """`lines` are the field lines as they came, `size` is how many bytes the request took, `length` None if chunked."""

    method: bytes
    target: bytes
    version: bytes
    lines: tuple[bytes, ...]
    length: int | None
    body: bytes = b""
    trailers: tuple[bytes, ...] = ()
    size: int = 0

    @property
    def line(self) -> bytes:
        return b" ".join((self.method, self.target, self.version))

    def values(self, name: bytes) -> list[bytes]:
        return [value for field, value in map(split_field, self.lines) if field == name]


def read_request(data: bytes) -> Request | None:
    """The request at the start of `data`; None while it is incomplete. Raises `Unclean`."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    request = read_head(data[:end])
    start = end + 4
    if request.length is None:
        body = read_chunks(data[start:])
        if body is None:
            return None
        payload, trailers, size = body
    else:
        payload, trailers, size = data[start : start + request.length], (), request.length
        if len(payload) < size:
            return None
    return Request(
        request.method,
        request.target,
        request.version,
        request.lines,
        request.length,
        payload,
        trailers,
        start + size,
    )


def read_requests(data: bytes) -> tuple[list[Request], bytes]:
    """All complete ones, and what is left."""
    requests = []
    while data and (request := read_request(data)) is not None:
        requests.append(request)
        data = data[request.size :]
    return requests, data


# heads ----------------------------------------------------------------------------------------------------------------


def read_head(block: bytes) -> Request:
    """`block` is without its blank line. The body is not there yet, `size` is 0."""
    first, *lines = split_lines(block)
    words = first.split(b" ")
    if len(words) != 3:
        raise Unclean(f"request line of {len(words)} words")
    method, target, version = words
    if not method or not only(method, TOKEN):
        raise Unclean("method is no token")
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise Unclean("version")
    authority = check_target(method, target)
    hosts, lengths, codings = [], [], []
    for name, value in map(split_field, lines):
        if name == b"host":
            hosts.append(value)
        elif name == b"content-length":
            lengths.append(value)
        elif name == b"transfer-encoding":
            codings.append(value)
    check_hosts(hosts, authority, version)
    return Request(method, target, version, tuple(lines), body_length(lengths, codings, version))


def split_lines(block: bytes) -> list[bytes]:
    lines = block.split(b"\r\n")
    for line in lines:
        if b"\r" in line or b"\n" in line:
            raise Unclean("CR or LF that is no line end")
    return lines


def split_field(line: bytes) -> tuple[bytes, bytes]:
    colon = line.find(b":")
    if colon <= 0 or not only(line[:colon], TOKEN):
        raise Unclean("field name")
    if not only(line[colon + 1 :], TEXT):
        raise Unclean("field value")
    return line[:colon].lower(), line[colon + 1 :].strip(b" \t")


def check_target(method: bytes, target: bytes) -> bytes | None:
    """The authority in it, if there is one (RFC 9112 section 3.2)."""
    if not target or not only(target, VISIBLE) or b"#" in target:
        raise Unclean("target with bytes that no target has")
    if method == b"CONNECT":
        raise Unclean("CONNECT")
    if target[:1] == b"/" or (target == b"*" and method == b"OPTIONS"):
        return None
    scheme, mark, rest = target.partition(b"://")
    if not mark or scheme.lower() not in (b"http", b"https"):
        raise Unclean("target of no form")
    for stop in (b"?", b"/"):
        rest = rest.partition(stop)[0]
    return rest


def check_hosts(hosts: list[bytes], authority: bytes | None, version: bytes) -> None:
    if len(hosts) > 1 or (not hosts and version == b"HTTP/1.1"):
        raise Unclean(f"{len(hosts)} hosts")
    names = [host_name(text) for text in ([authority] if authority is not None else []) + hosts]
    if authority is not None and names[0] != names[-1]:
        raise Unclean("target and Host differ")


def host_name(authority: bytes) -> bytes:
    """The host of `host[:port]` in lower case (RFC 3986 section 3.2)."""
    name, port = authority, b""
    if authority[:1] == b"[":
        name, mark, behind = authority.partition(b"]")
        name += mark
        inner = name[1:-1]
        if not mark or not inner or not only(inner, HEX + b":.") or (behind and behind[:1] != b":"):
            raise Unclean("IPv6 host")
        port = behind[1:]
    else:
        name, _, port = authority.partition(b":")
        rest = name
        while b"%" in rest:
            before, _, rest = rest.partition(b"%")
            if not only(before, REGISTERED_NAME) or len(rest) < 2 or not only(rest[:2], HEX):
                raise Unclean("host with a bad percent")
            rest = rest[2:]
        if not name or not only(rest, REGISTERED_NAME):
            raise Unclean("host")
    if not only(port, DIGITS) or len(port) > 5 or int(port or b"0") > 65535:
        raise Unclean("port")
    return name.lower()


def body_length(lengths: list[bytes], codings: list[bytes], version: bytes) -> int | None:
    if len(lengths) + len(codings) > 1:
        raise Unclean("two framings")
    if codings:
        if codings[0].lower() != b"chunked" or version == b"HTTP/1.0":
            raise Unclean("transfer coding")
        return None
    if not lengths:
        return 0
    if not lengths[0] or not only(lengths[0], DIGITS) or int(lengths[0]) >= 2**63:
        raise Unclean("content-length")
    return int(lengths[0])


# chunks ---------------------------------------------------------------------------------------------------------------


def read_chunks(data: bytes) -> tuple[bytes, tuple[bytes, ...], int] | None:
    """Payload, trailers and size of the chunked body at the start of `data`; None while it is incomplete."""
    payload = []
    at = 0
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        size = chunk_size(data[at:end])
        at = end + 2
        if not size:
            break
        if len(data) < at + size + 2:
            return None
        if data[at + size : at + size + 2] != b"\r\n":
            raise Unclean("chunk without its CRLF")
        payload.append(data[at : at + size])
        at += size + 2
    trailers = []
    while True:
        end = data.find(b"\r\n", at)
        if end < 0:
            return None
        line = data[at:end]
        at = end + 2
        if not line:
            return b"".join(payload), tuple(trailers), at
        if b"\r" in line or b"\n" in line:
            raise Unclean("CR or LF in a trailer")
        split_field(line)
        trailers.append(line)


def chunk_size(line: bytes) -> int:
    digits, mark, extensions = line.partition(b";")
    if not digits or not only(digits, HEX) or len(digits) > 16 or int(digits, 16) >= 2**63:
        raise Unclean("chunk size")
    if mark:
        check_extensions(extensions)
    return int(digits, 16)


def check_extensions(text: bytes) -> None:
    """`name`, `name=token` or `name="text"`, more of them behind `;` (RFC 9112 section 7.1.1)."""
    if not only(text, TEXT):
        raise Unclean("control byte in an extension")
    at = 0
    while True:
        at = skip(text, at, b" \t")
        end = skip(text, at, TOKEN)
        if end == at:
            raise Unclean("extension without a name")
        at = skip(text, end, b" \t")
        if text[at : at + 1] == b"=":
            at = skip(text, at + 1, b" \t")
            end = quoted(text, at) if text[at : at + 1] == b'"' else skip(text, at, TOKEN)
            if end == at:
                raise Unclean("extension without a value")
            at = skip(text, end, b" \t")
        elif at != end and at == len(text):
            raise Unclean("blank behind an extension")
        if at == len(text):
            if text[-1:] in (b" ", b"\t"):
                raise Unclean("blank behind an extension")
            return
        if text[at : at + 1] != b";":
            raise Unclean("extension")
        at += 1


def quoted(text: bytes, at: int) -> int:
    """Where the quoted string that begins at `at` ends (RFC 9110 section 5.6.4)."""
    at += 1
    while at < len(text):
        if text[at : at + 1] == b'"':
            return at + 1
        at += 2 if text[at : at + 1] == b"\\" else 1
    raise Unclean("open quote")


def skip(text: bytes, at: int, allowed: bytes) -> int:
    while at < len(text) and text[at] in allowed:
        at += 1
    return at


def only(text: bytes, allowed: bytes) -> bool:
    return not text.translate(None, allowed)
