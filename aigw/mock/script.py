"""An answer as it goes over the wire: what to write, when to wait, how to end. Pure; the server performs it.

A step is bytes to write, seconds to wait, or a way to end the connection. A script that runs out of steps has sent a
complete answer, after which the connection may serve the next request.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TypeAlias

from aigw.mock.settings import Settings
from aigw.mock.values import Answer, Plain, Stream


class End(Enum):
    CLOSE = "flush, then FIN"
    RESET = "RST"
    HANG = "nothing more, and no close"


Step: TypeAlias = bytes | float | End

_PAUSE = 0.02
"""Seconds between the last bytes and a reset, so that the client has read them: a reset overtakes what is buffered."""

_LAST_CHUNK = b"0\r\n\r\n"
_BAD_CHUNK = b"zz\r\nno size\r\n"
_GARBAGE = b"\x00\x01\x02 this is not HTTP \xff\r\n\r\n"

_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Wire:
    """What the request decides about the form. lines: `date`, and `connection` where it must be said."""

    lines: bytes = b""
    chunked: bool = True
    """False for HTTP/1.0, where the close ends what has no length."""
    bodiless: bool = False
    """HEAD: the head of the answer to GET, and nothing else."""


def head(answer: Answer, wire: Wire, *, chunk_plain: bool = False) -> bytes:
    """The answer's head to its blank line. chunk_plain: a plain answer goes out in chunks too."""
    if isinstance(answer, Plain):
        status, media = answer.status, answer.media
        framing = b"transfer-encoding: chunked\r\n" if chunk_plain else b"content-length: %d\r\n" % len(answer.body)
    else:
        status, media = 200, answer.media
        framing = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
        if wire.chunked:
            framing += b"transfer-encoding: chunked\r\n"
    return b"HTTP/1.1 %d %b\r\n%bcontent-type: %b\r\n%b%b\r\n" % (
        status,
        _REASONS.get(status, b""),
        wire.lines,
        media,
        framing,
        answer.lines,
    )


def script(answer: Answer, settings: Settings, wire: Wire) -> Iterator[Step]:
    failure = settings.failure
    if failure == "refuse":
        yield End.CLOSE
    elif failure == "malformed" and isinstance(answer, Plain):
        yield settings.latency
        yield _GARBAGE
        yield End.CLOSE
    elif wire.bodiless or (isinstance(answer, Plain) and answer.status == HTTPStatus.NOT_MODIFIED):
        yield settings.latency
        yield head(answer, wire)
    elif isinstance(answer, Plain):
        yield from _plain(answer, settings, wire)
    else:
        yield from _stream(answer, settings, wire)


def _plain(answer: Plain, settings: Settings, wire: Wire) -> Iterator[Step]:
    failure = settings.failure
    chunk_plain = failure == "bad-chunk" and wire.chunked
    opening = head(answer, wire, chunk_plain=chunk_plain)
    wait = settings.latency + (answer.tokens / settings.rate if settings.rate else 0.0)
    if settings.slow_first_token:
        yield opening
        yield wait
    else:
        yield wait
        yield opening
    body, half = answer.body, len(answer.body) // 2
    match failure:
        case None | "error-event":  # of the latter, the body is the error
            yield body
        case "early-close":
            yield End.CLOSE
        case "bad-chunk" if chunk_plain:
            yield _chunk(body[:half]) + _BAD_CHUNK
            yield End.CLOSE
        case _:
            yield body[:half]
            yield from _break(failure)


def _break(failure: str) -> Iterator[Step]:
    if failure == "stall":
        yield End.HANG
    elif failure == "reset":
        yield _PAUSE
        yield End.RESET
    else:
        yield End.CLOSE


def _stream(answer: Stream, settings: Settings, wire: Wire) -> Iterator[Step]:
    failure = settings.failure
    if not settings.slow_first_token:
        yield settings.latency
    yield head(answer, wire)
    if failure == "early-close":
        yield End.CLOSE
        return
    frame = _chunk if wire.chunked else _as_it_is
    for event in answer.first:
        yield frame(event)
    if settings.slow_first_token:
        yield settings.latency
    pause = 1 / settings.rate if settings.rate else 0.0
    half = answer.count if failure is None else answer.count // 2
    yield from _content(answer, range(half), pause, wire)
    if failure is not None:
        yield from _stream_failure(answer, failure, half, wire)
        if failure != "malformed":
            return
        yield from _content(answer, range(half, answer.count), pause, wire)
    for event in answer.last:
        yield frame(event)
    if wire.chunked:
        yield _LAST_CHUNK


def _content(answer: Stream, indexes: range, pause: float, wire: Wire) -> Iterator[Step]:
    frame = _chunk if wire.chunked else _as_it_is
    for index in indexes:
        if pause and index:
            yield pause
        yield frame(answer.delta(index))


def _stream_failure(answer: Stream, failure: str, half: int, wire: Wire) -> Iterator[Step]:
    frame = _chunk if wire.chunked else _as_it_is
    event = answer.delta(half) if half < answer.count else answer.last[0]
    match failure:
        case "error-event":
            for part in answer.error:
                yield frame(part)
            if wire.chunked:
                yield _LAST_CHUNK
            return
        case "malformed":
            yield frame(answer.malformed)
            return
        case "cut-event":
            yield frame(event[: len(event) // 2])
        case "cut-body":
            framed = frame(event)
            yield framed[: len(framed) // 2]
        case "bad-chunk":
            yield _BAD_CHUNK
    yield from _break(failure)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _as_it_is(data: bytes) -> bytes:
    return data
