"""The `model` part of a multipart/form-data body, found while the body comes in (audio, image edits).

The form is collected by the caller only up to that part; what is kept here is less than one part's headers, however
large its files are. Source: RFC 7578, and RFC 2046 section 5.1.1 for the boundary lines. Forms are read by the letter:
where two readers could see different parts (a line that only begins like a boundary, a name with a backslash or in
RFC 5987 spelling, a coded value), the form is refused.

The first `model` part decides, but readers differ on which of two counts. So `feed` may, and where a key is not
allowed every model should, go on being called with the rest of the body while that is relayed: a second `model` part
is then refused before the upstream has got the whole form.

Theory: parts are separated by CRLF `--` boundary. The body is treated as if a CRLF stood before it, so that the first
boundary line is no special case. Each search goes on where the last one ended: linear over any number of feeds.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from aigw.errors import Refused
from aigw.wire.fields import split_line

MAX_HEADERS: Final = 16 * 1024  # of one part, as much as one header line of a head may have
MAX_VALUE: Final = 1024  # of the model part; names are some tens of bytes

# bchars of RFC 2046 section 5.1.1
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER: Final = re.compile(
    rb"""[ \t]*;[ \t]*(?P<name>TOKEN)=(?:(?P<token>TOKEN)|"(?P<quoted>(?:[^"\\]|\\.)*)")""".replace(
        b"TOKEN", rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
    )
)
_UNCODED: Final = (b"7bit", b"8bit", b"binary")


class BadForm(ValueError):
    """A body that is no multipart/form-data, or one that two readers could read differently."""


class _In(Enum):
    CONTENT = "content of a part that is not the model, or what stands before the first part"
    BOUNDARY = "behind a boundary"
    HEADERS = "headers of a part"
    VALUE = "content of the model part"
    END = "behind the last boundary"


class ModelPart:
    """Looks for the part named `model` that is no file.

    `model` is its text and `span` the start and end of it in everything that was fed; both None until found.

    Raises:
        BadForm: `content_type`, the value of the header, is not multipart/form-data with one proper boundary.
    """

    __slots__ = ("_base", "_buffer", "_content", "_delimiter", "_searched", "_state", "model", "span")

    def __init__(self, content_type: bytes) -> None:
        # what the caller reads
        self.model: str | None = None
        self.span: tuple[int, int] | None = None
        # wiring
        self._delimiter = b"\r\n--" + _boundary(content_type)
        # where in the form we are
        self._state = _In.CONTENT
        self._buffer = bytearray(b"\r\n")  # what is not yet understood
        self._base = -2  # offset of the buffer in the body
        self._searched = 0  # no delimiter or end of headers begins before this index of the buffer
        self._content = -2  # offset of the content of the current part

    def __repr__(self) -> str:
        return f"<ModelPart {self._state.name.lower()}, {'found' if self.span else 'not found'}>"

    def feed(self, data: bytes) -> bool:
        """True once it is decided: the part was found, or the form ended without one. Raises `BadForm`.

        To be called with every byte of the body in order, at least until True. Where the body ends before that, the
        form is cut, and has no model.
        """
        if self._state is not _In.END:
            self._buffer += data
            while self._step():
                pass
        return self.span is not None or self._state is _In.END

    def _step(self) -> bool:
        """Understand one more thing of the buffer; False where that takes more bytes."""
        state = self._state
        if state is _In.BOUNDARY:
            return self._boundary_line()
        if state is _In.HEADERS:
            return self._headers()
        if state is _In.END:
            self._drop(len(self._buffer))  # an epilogue is ignored (RFC 2046 section 5.1.1)
            return False
        return self._find_delimiter(state)

    def _find_delimiter(self, state: _In) -> bool:
        buffer, delimiter = self._buffer, self._delimiter
        found = buffer.find(delimiter, self._searched)
        tail = max(0, len(buffer) - len(delimiter) + 1)  # a delimiter may have begun in what is left
        length = self._base + (tail if found < 0 else found) - self._content
        if state is _In.VALUE and length > MAX_VALUE:
            raise self._bad(f"the model is longer than {MAX_VALUE} bytes")
        if found < 0:
            if state is _In.VALUE:
                self._searched = tail
            else:
                self._drop(tail)
            return False
        if length < 0:
            raise self._bad("a boundary where the content of a part should begin; an empty part needs one CRLF more")
        if state is _In.VALUE:
            self._take(bytes(buffer[found - length : found]))
        self._drop(found + len(delimiter))
        self._state = _In.BOUNDARY
        return True

    def _boundary_line(self) -> bool:
        behind = bytes(self._buffer[:2])
        if behind == b"\r\n":
            self._state = _In.HEADERS
            return True
        if behind == b"--":
            self._state = _In.END
            return True
        if len(behind) < 2 and behind in (b"", b"\r", b"-"):
            return False
        raise self._bad("a boundary followed by neither CRLF nor `--` (RFC 2046 section 5.1.1)")

    def _headers(self) -> bool:
        """The buffer begins with the CRLF of the boundary line; the last CRLF stays, for a delimiter needs one."""
        end = self._buffer.find(b"\r\n\r\n", self._searched)
        if (len(self._buffer) if end < 0 else end) > MAX_HEADERS:
            raise self._bad(f"headers of a part longer than {MAX_HEADERS} bytes")
        if end < 0:
            self._searched = max(0, len(self._buffer) - 3)
            return False
        block = bytes(self._buffer[:end])
        if self._delimiter in block:
            raise self._bad("a boundary within the headers of a part; a blank line ends them")
        is_model = self._is_model(block.split(b"\r\n")[1:])
        if is_model and self.span is not None:
            raise self._bad("a second `model` part; readers disagree on which counts: send one")
        self._drop(end + 2)
        self._content = self._base + 2
        self._state = _In.VALUE if is_model else _In.CONTENT
        return True

    def _is_model(self, lines: list[bytes]) -> bool:
        """What the headers of a part say (RFC 7578 section 4.2)."""
        disposition = coding = None
        for line in lines:
            try:
                name, value = split_line(line, "header line of a part")
            except Refused as refused:
                raise self._bad(refused.failure.message) from None
            if name == b"content-disposition":
                if disposition is not None:
                    raise self._bad("two content-disposition headers in a part")
                disposition = value
            elif name == b"content-transfer-encoding":
                coding = value.lower()
        kind, parameters = _parse(disposition or b"")
        if kind != b"form-data" or parameters is None or b"name" not in parameters:
            raise self._bad(
                'a part needs one header `content-disposition: form-data; name="..."` (RFC 7578 section 4.2)'
            )
        if b"name*" in parameters or b"\\" in parameters[b"name"]:
            raise self._bad("a part's name with a backslash or as `name*`; readers disagree on what it means")
        if parameters[b"name"].lower() != b"model" or not parameters.keys().isdisjoint((b"filename", b"filename*")):
            return False
        if parameters[b"name"] != b"model":
            raise self._bad("a part named like the model but for case; readers disagree on it: write `model`")
        if coding is not None and coding not in _UNCODED:
            raise self._bad(
                "the model part has a content-transfer-encoding; send it as plain text (RFC 7578 section 4.7)"
            )
        return True

    def _take(self, value: bytes) -> None:
        try:
            self.model = value.decode()
        except UnicodeDecodeError:
            raise self._bad("the model is not UTF-8") from None
        self.span = (self._content, self._content + len(value))

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._base += count
        self._searched = 0

    def _bad(self, what: str) -> BadForm:
        return BadForm(f"bad form, in the part or boundary at byte {max(0, self._base)}: {what}")


def _boundary(content_type: bytes) -> bytes:
    kind, parameters = _parse(content_type)
    if kind != b"multipart/form-data":
        raise BadForm("content-type is not multipart/form-data")
    boundary = (parameters or {}).get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise BadForm(
            "content-type without a proper boundary; write `multipart/form-data; boundary=TEXT` with 1 to 70 letters, "
            "digits or '()+_,-./:=? (RFC 2046 section 5.1.1), in double quotes if need be"
        )
    return boundary


def _parse(value: bytes) -> tuple[bytes, dict[bytes, bytes] | None]:
    """`form-data; name="a"` -> what stands before the first `;`, and the parameters; None if they are no parameters.

    Also None where one stands twice. Names are in lower case, values without their quotes, escapes left in.
    """
    kind = value.partition(b";")[0]
    parameters: dict[bytes, bytes] = {}
    position = len(kind)
    while position < len(value):
        match = _PARAMETER.match(value, position)
        if match is None or match["name"].lower() in parameters:
            return kind.strip(b" \t").lower(), None
        parameters[match["name"].lower()] = match["quoted"] if match["token"] is None else match["token"]
        position = match.end()
    return kind.strip(b" \t").lower(), parameters
