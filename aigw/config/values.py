"""How one scalar of the config is read: text, names, numbers, durations, sizes, dates, rates.

Every reader takes what the loader hands over and returns the plain value, or raises `ValueError` with a message that
says what would be right. Readers never repeat a value that may hold a secret (URLs, credentials, digests).

A YAML scalar that stands there unquoted arrives as `Plain`: its source text, type still open. So the field decides: a
model named `3.5` stays text, and a number is a number only if it was not quoted. Interpolated text is open likewise.
JSON documents come with real numbers and booleans, which are taken where they fit.
"""

import re
from collections.abc import Callable
from typing import NoReturn

from aigw.config.problem import nearest, quote
from aigw.wire.fields import goes_on

__all__ = ["Interpolated", "Plain"]


class Plain(str):
    """The source text of an unquoted scalar."""

    __slots__ = ()


class Interpolated(Plain):
    """Text that came from the environment or a file: takes the type the field wants and is never repeated.

    `source` says where it came from, as written: `${NAME}`.
    """

    __slots__ = ("source",)

    def __new__(cls, value: str, source: str) -> "Interpolated":
        self = super().__new__(cls, value)
        self.source = source
        return self

    source: str


Reader = Callable[[object], object]

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TARGET_NAME = re.compile(r"[A-Za-z0-9._@:\[\]-]{1,64}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,12})(B|KiB|MiB|GiB)?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:[Tt ]\d\d:\d\d(?::\d\d)?(?:\.\d{1,6})?(?:[Zz]|[+-]\d\d:\d\d)?)?")


def is_null(value: object) -> bool:
    """True for an absent value: nothing behind the colon, `~` or `null`."""
    return value is None or (isinstance(value, Plain) and not isinstance(value, Interpolated) and value in _NULL)


def has_control(text: str) -> bool:
    """True if `text` holds control characters, line separators or lone surrogates."""
    return _CONTROL.search(text) is not None


def kind(value: object) -> str:
    """What `value` is, for messages: `it is a list`."""
    if is_null(value):
        return "it is empty"
    if isinstance(value, str):
        return "it is text"
    if isinstance(value, dict):
        return "it is a mapping"
    return "it is a list" if isinstance(value, list) else f"it is {value}"


def _scalar(value: object, wanted: str) -> str:
    """The text of an open scalar. Raises: a quoted text or another type stands where `wanted` should."""
    if isinstance(value, Plain) and not is_null(value):
        return value
    if type(value) in (int, float):
        return repr(value)
    if isinstance(value, str) and not isinstance(value, Plain):
        raise ValueError(f"must be {wanted}; it is quoted text, so leave out the quotes")
    raise ValueError(f"must be {wanted}; {kind(value)}")


def _misread(value: str, wanted: str) -> NoReturn:
    raise ValueError(f"must be {wanted}; it is {quote(value, 'something else')}")


# Text and words


def text(value: object) -> str:
    """Any text on one line; unquoted numbers and words are text here too."""
    if not isinstance(value, str):
        raise ValueError(f"must be text; {kind(value)}" + ("" if value is None else ", so put it in quotes"))
    if is_null(value) or not value:
        raise ValueError("is empty; write a value or leave the key out")
    if has_control(value):
        raise ValueError("must be text on one line, without control characters (a line break at its end?)")
    return str(value)


def secret(value: object) -> str:
    """A credential: visible ASCII, since it travels in a header."""
    if isinstance(value, str) and value and not is_null(value) and not (value.isascii() and value.isprintable()):
        raise ValueError("must be printable ASCII on one line, since it is sent in a header")
    found = text(value)
    if found != found.strip():
        raise ValueError("must not begin or end with a blank")
    return found


def choice(*words: str, sketch: str | None = None) -> Callable[[object], str]:
    """One of `words`, exactly as written there. `sketch` names, in messages only, what else the field takes."""
    shown = (*words, sketch) if sketch else words
    wanted = ", ".join(shown[:-1]) + f" or {shown[-1]}"

    def read(value: object) -> str:
        if not isinstance(value, str) or is_null(value):
            raise ValueError(f"must be {wanted}; {kind(value)}")
        if value not in words:
            raise ValueError(f"must be {wanted}; it is {quote(value, 'something else')}{nearest(value, words)}")
        return str(value)

    return read


def name(value: object) -> str:
    """The name of a gateway, rule, upstream, key or group."""
    found = text(value)
    if not _NAME.fullmatch(found):
        raise ValueError("a name is 1 to 64 of the characters A-Z a-z 0-9 . _ @ -")
    return found


def target_name(value: object) -> str:
    found = text(value)
    if not _TARGET_NAME.fullmatch(found):
        raise ValueError("a target's name is 1 to 64 of the characters A-Z a-z 0-9 . _ @ - : [ ]")
    return found


def pattern(value: object) -> str:
    """The name of a model as clients ask for it: any text, with at most one `*`."""
    found = text(value)
    if found.count("*") > 1:
        raise ValueError("may hold one * at most")
    if len(found) > 256 or found != found.strip():
        raise ValueError("a model's name has at most 256 characters and no blank at either end")
    return found


# Numbers


def boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, Plain) and value in ("true", "false"):
        return value == "true"
    found = _scalar(value, "true or false")
    return _misread(found, "true or false")


def integer(low: int, high: int) -> Callable[[object], int]:
    """A plain decimal from `low` to `high`."""
    wanted = f"a whole number from {low} to {high}"

    def read(value: object) -> int:
        found = _scalar(value, wanted)
        if not re.fullmatch(r"-?(?:0|[1-9][0-9]{0,17})", found):
            hint = " (no leading zero, no _, no exponent)" if re.fullmatch(r"[0-9_.eE+-]+", found) else ""
            _misread(found, wanted + hint)
        if not low <= int(found) <= high:
            _misread(found, wanted)
        return int(found)

    return read


def count_or_auto(value: object) -> int | str:
    """The number of workers."""
    if value == "auto":
        return "auto"
    try:
        return integer(1, 1024)(value)
    except ValueError as error:
        raise ValueError(f"{error}; auto is one per core") from None


def decimal(value: object) -> float:
    """A plain decimal of at least 0: an amount of dollars."""
    found = _scalar(value, "a number such as 0.15")
    if not re.fullmatch(r"(?:0|[1-9][0-9]{0,11})(?:\.[0-9]{1,12})?", found):
        _misread(found, "a plain number of at least 0, such as 0.15")
    return float(found)


def percent(value: object) -> float:
    """`20%` as 0.2."""
    if not isinstance(value, str) or not (match := re.fullmatch(r"([0-9]{1,3})%", value)) or int(match[1]) > 100:
        raise ValueError("must be a share from 0% to 100%, such as 20%")
    return int(match[1]) / 100


def duration(*, off: bool = False, zero: bool = False) -> Callable[[object], float | None]:
    """Seconds; `off`, where allowed, is None."""
    wanted = "a duration such as 250ms, 30s, 5m, 1h or 90d" + (", or off" if off else "")

    def read(value: object) -> float | None:
        if not isinstance(value, str) or is_null(value):
            hint = ', with a unit: "30s"' if type(value) in (int, float) else f"; {kind(value)}"
            raise ValueError(f"must be {wanted}{hint}")
        if value == "off" and off:
            return None
        match = _DURATION.fullmatch(value)
        if match is None:
            if re.fullmatch(r"[0-9]{1,9}", value):
                raise ValueError(f"must be {wanted}: the unit is missing")
            _misread(value, wanted)
        seconds = float(match[1]) * _UNITS[match[2]]
        if not seconds and not zero:
            raise ValueError("must be longer than 0" + ('; "off" means no deadline' if off else ""))
        if seconds > 3650 * 86400:
            raise ValueError("must be at most 3650d")
        return seconds

    return read


def size(low: int, high: int) -> Callable[[object], int]:
    """Bytes, from `low` to `high`."""
    wanted = "a size such as 512KiB, 32MiB or 1GiB"

    def read(value: object) -> int:
        found = repr(value) if type(value) is int else value
        if not isinstance(found, str) or is_null(found):
            raise ValueError(f"must be {wanted}; {kind(value)}")
        match = _SIZE.fullmatch(found)
        if match is None:
            _misread(found, wanted + " (units: B, KiB, MiB, GiB)")
        count = int(match[1]) * _BYTES[match[2]]
        if not low <= count <= high:
            raise ValueError(f"must be from {_bytes(low)} to {_bytes(high)}")
        return count

    return read


def _bytes(count: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if count % _BYTES[unit] == 0:
            return f"{count // _BYTES[unit]}{unit}"
    return f"{count}B"


def date(value: object) -> float:
    """Seconds since 1970. A bare date is 00:00; without an offset the time is UTC."""
    from datetime import UTC, datetime  # few configs have dates

    found = text(value)
    wanted = "a date such as 2027-01-31 or 2027-01-31T18:00:00Z"
    if not _DATE.fullmatch(found):
        _misread(value if isinstance(value, str) else found, wanted)
    try:
        moment = datetime.fromisoformat(found.upper())
    except ValueError:
        raise ValueError(f"must be {wanted}; there is no such day or time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def rate(read_amount: Reader) -> Callable[[object], tuple[object, object]]:
    """`100/1m` as (amount, window): seconds up to an hour, or `day` or `month`."""
    wanted = "an amount per window, such as 100/1m, 5000/1h, 1000/day or 20000/month"
    read_window = duration()

    def read(value: object) -> tuple[object, object]:
        if not isinstance(value, str) or value.count("/") != 1:
            raise ValueError(f"must be {wanted}")
        amount, window = value.split("/")
        try:
            count = read_amount(Plain(amount))
            span = window if window in ("day", "month") else read_window(window)
        except ValueError:
            raise ValueError(f"must be {wanted}; it is {quote(value, 'something else')}") from None
        if isinstance(span, float) and span > 3600:
            raise ValueError("a window is at most 1h long; longer ones are day and month")
        return count, span

    return read


# Words of the config's own


def digest(value: object) -> str:
    """The SHA-256 of a key, as 64 hex digits."""
    found = text(value).lower()
    if re.fullmatch(r"[0-9a-f]{64}", found):
        return found
    remedy = "`aigw key NAME` makes a key and prints the line to paste"
    if len(found) == 64 or re.fullmatch(r"[0-9a-f]+", found):
        raise ValueError(f"must be a SHA-256 digest of exactly 64 hex digits; {remedy}")
    raise ValueError(f"must be the key's SHA-256 digest (64 hex digits), never the key itself; {remedy}")


def per(value: object) -> str:
    """Whose allowance a limit is: a word or `header:NAME`."""
    return _word_or_header(value, ("key", "group", "gateway", "rule", "model", "ip"))


def hash_source(value: object) -> str:
    return _word_or_header(value, ("key", "ip"))


def _word_or_header(value: object, words: tuple[str, ...]) -> str:
    if not isinstance(value, str) or not value.startswith("header:"):
        return choice(*words, sketch="header:NAME")(value)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value[7:]):
        raise ValueError("must name a header behind the colon: header:x-session-id")
    if not goes_on(value[7:].lower().encode()):
        raise ValueError(
            "names a header that does not pass through as it came (a credential, a cookie, one of the connection), so "
            "that nothing would be found; name another one, such as header:x-session-id"
        )
    return value.lower()


_CAUSES = ("connect", "reset", "first_byte", "first_token", "upstream_credential_refused", "context_length_exceeded")


def outcome(value: object) -> str:
    """What a retry answers to: a cause, a status, or a class of statuses."""
    found = repr(value) if type(value) is int else value
    if isinstance(found, str) and re.fullmatch(r"[45](?:[0-9]{2}|xx)", found):
        return str(found)
    return choice(*_CAUSES, sketch="a status such as 429 or 5xx")(found)
