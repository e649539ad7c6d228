"""Status lines and field lines that are none: whatever an upstream says in them is not passed on."""

from __future__ import annotations

from .case import CHUNKED, CLOSE, EARLY, FIVE, GET, HEAD, HELLO, LAST_CHUNK, OK, OLD, POST, Case, End, refused

_REST = b"content-length: 5\r\n\r\nhello"


def _status(name: str, line: bytes, rfc: str = "9112 4") -> Case:
    return refused(name, rfc, line + b"\r\n" + _REST)


def _field(name: str, line: bytes, rfc: str = "9112 5", request: bytes = GET) -> Case:
    return refused(name, rfc, OK + line + b"\r\n" + _REST, request=request)


STATUS_LINES = [
    _status("status of two digits", b"HTTP/1.1 20 OK"),
    _status("status of four digits", b"HTTP/1.1 2000 OK"),
    _status("status in letters", b"HTTP/1.1 abc OK"),
    _status("status 000", b"HTTP/1.1 000 None"),
    _status("status 099", b"HTTP/1.1 099 Low"),
    _status("status 600", b"HTTP/1.1 600 High", "9110 15"),
    _status("status with a sign", b"HTTP/1.1 +20 OK"),
    _status("status with a fraction", b"HTTP/1.1 200.1 OK"),
    _status("status in Arabic digits", "HTTP/1.1 ٢٠٠ OK".encode()),
    _status("no status", b"HTTP/1.1 OK"),
    _status("nothing but a version", b"HTTP/1.1"),
    _status("no blank between status and reason", b"HTTP/1.1 200OK"),
    _status("two blanks before the status", b"HTTP/1.1  200 OK"),
    _status("a tab before the status", b"HTTP/1.1\t200 OK"),
    _status("a tab behind the status", b"HTTP/1.1 200\tOK"),
    _status("a blank before the version", b" HTTP/1.1 200 OK"),
    _status("version in lower case", b"http/1.1 200 OK", "9112 2.3"),
    _status("version 0.9", b"HTTP/0.9 200 OK", "9112 2.3"),
    _status("version 1.2", b"HTTP/1.2 200 OK", "9112 2.3"),
    _status("version 1.10", b"HTTP/1.10 200 OK", "9112 2.3"),
    _status("version 01.1", b"HTTP/01.1 200 OK", "9112 2.3"),
    _status("version 2.0", b"HTTP/2.0 200 OK", "9112 2.3"),
    _status("version 2", b"HTTP/2 200 OK", "9112 2.3"),
    _status("version with a comma", b"HTTP/1,1 200 OK", "9112 2.3"),
    _status("ICY", b"ICY 200 OK", "9112 2.3"),
    _status("RTSP", b"RTSP/1.0 200 OK", "9112 2.3"),
    _status("a request instead of an answer", b"GET / HTTP/1.1"),
    _status("an empty line before it", b"\r\nHTTP/1.1 200 OK", "9112 2.2"),
    _status("two empty lines before it", b"\r\n\r\nHTTP/1.1 200 OK", "9112 2.2"),
    _status("a byte order mark before it", b"\xef\xbb\xbfHTTP/1.1 200 OK"),
    _status("NUL in the reason", b"HTTP/1.1 200 O\0K"),
    _status("bare CR in the reason", b"HTTP/1.1 200 O\rK", "9112 2.2"),
    _status("bare LF behind the reason", b"HTTP/1.1 200 OK\nx: y", "9112 2.2"),
    _status("DEL in the reason", b"HTTP/1.1 200 O\x7fK"),
    _status("a reason of 20 KiB", b"HTTP/1.1 200 " + b"r" * 20480, "design 7"),
    _status("two status lines", b"HTTP/1.1 200 OK\r\nHTTP/1.1 200 OK"),
    refused("a body without a head (HTTP/0.9)", "9112 2.3", b"<html>hello</html>\r\n\r\n", end=End.FIN),
    refused("a greeting of another protocol", "9112 4", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    refused("a frame of HTTP/2", "9113 3.4", b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x80\r\n\r\n"),
    refused("a TLS alert", "9112 4", b"\x15\x03\x03\0\x02\x02\x46\r\n\r\n"),
]

FIELDS = [
    _field("a blank before the colon", b"x : y", "9112 5.1"),
    _field("a blank before the colon of the length", b"content-length : 5", "9112 5.1"),
    _field("a tab before the colon of the coding", b"transfer-encoding\t: chunked", "9112 5.1"),
    _field("a folded line", b"x: y\r\n z", "9112 5.2"),
    _field("a line folded with a tab", b"x: y\r\n\tz", "9112 5.2"),
    _field("a folded coding", b"transfer-encoding:\r\n chunked", "9112 5.2"),
    refused("the first line begins with a blank", "9112 5.2", OK + b" x: y\r\n" + _REST),
    _field("a line without a colon", b"nonsense"),
    _field("a line that is a colon", b":"),
    _field("a name that is empty", b": y"),
    _field("a name with a blank in it", b"x y: z", "9110 5.1"),
    _field("a name in parentheses", b"(x): y", "9110 5.1"),
    _field("a name with a quote", b'"x": y', "9110 5.1"),
    _field("a name with a slash", b"a/b: y", "9110 5.1"),
    _field("a name with a high byte", b"x\xe9: y", "9110 5.1"),
    _field("a name with NUL", b"x\0: y", "9110 5.1"),
    _field("a name with CR", b"x\r: y", "9112 2.2"),
    _field("NUL in a value", b"x: a\0b", "9110 5.5"),
    _field("bare CR in a value", b"x: a\rb", "9112 2.2"),
    _field("bare CR before another field", b"x: a\rcontent-length: 0", "9112 2.2"),
    _field("bare LF before another field", b"x: a\ncontent-length: 0", "9112 2.2"),
    _field("bare LF and a whole answer in a value", b"x: a\n\nHTTP/1.1 200 OK", "9112 11.1"),
    _field("CR CR LF", b"x: a\r", "9112 2.2"),
    _field("ESC in a value", b"x: \x1b[2J", "9110 5.5"),
    _field("DEL in a value", b"x: a\x7f", "9110 5.5"),
    _field("vertical tab in a value", b"x: a\x0bb", "9110 5.5"),
    _field("a connection option that is no name", b"connection: a b", "9110 7.6.1"),
    _field("a bad line in the answer to HEAD", b"x : y", "9112 5.1", HEAD),
    _field("a bad line in the answer to POST", b"x : y", "9112 5.1", POST),
    _field("a bad line in the answer to HTTP/1.0", b"x : y", "9112 5.1", OLD),
    refused("lines end in LF", "9112 2.2", FIVE.replace(b"\r\n", b"\n"), end=End.FIN),
    refused("lines end in CR", "9112 2.2", FIVE.replace(b"\r\n", b"\r"), end=End.FIN),
    refused("the head ends in LF LF", "9112 2.2", OK + b"content-length: 5\n\nhello", end=End.FIN),
    refused("the head ends in CRLF LF", "9112 2.2", OK + b"content-length: 5\r\n\nhello", end=End.FIN),
    refused("a bad line with a body that ends with the connection", "9112 5", CLOSE[:-2] + b"x\r\n\r\nhi", end=End.FIN),
    refused("a bad line with chunks", "9112 5", CHUNKED[:-2] + b"x\r\n\r\n" + HELLO + LAST_CHUNK),
    refused("a bad line in an informational answer", "9112 5", EARLY[:-2] + b"x : y\r\n\r\n" + FIVE),
    refused("LF in an informational answer", "9112 2.2", EARLY.replace(b"\r\nlink", b"\nlink") + FIVE),
]

SIZES = [
    refused("101 fields", "design 7", OK + b"x: y\r\n" * 100 + _REST),
    refused("300 fields", "design 7", OK + b"x: y\r\n" * 300 + _REST),
    refused("a line of more than 16 KiB", "design 7", OK + b"x: " + b"y" * 16384 + b"\r\n" + _REST),
    refused("a name of more than 16 KiB", "design 7", OK + b"x" * 16384 + b": y\r\n" + _REST),
    refused("a head of more than 32 KiB", "design 7", OK + (b"x: " + b"y" * 4000 + b"\r\n") * 9 + _REST),
    refused("a head that does not end", "design 7", OK + (b"x: " + b"y" * 4000 + b"\r\n") * 9),
    refused("a line that does not end", "design 7", OK + b"x: " + b"y" * 34000),
    refused("a status line that does not end", "design 7", b"HTTP/1.1 200 " + b"y" * 34000),
    refused("an informational head that does not end", "design 7", b"HTTP/1.1 103 Hints\r\nx: " + b"y" * 34000),
    refused(
        "fields without end behind an informational answer", "design 7", EARLY + OK + b"x: y\r\n" * 6000, seen=EARLY
    ),
]

CASES = STATUS_LINES + FIELDS + SIZES
