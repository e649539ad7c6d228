"""Asks the child that knows YAML and the schema: see `aigw.config.edits`, which is what runs there."""

import asyncio
import contextlib
import os
import subprocess
import tempfile
from typing import IO, Any

import orjson

from aigw import process

PATIENCE = 120.0  # seconds; 10,000 keys take four, on an idle machine


class ChildFailed(Exception):
    """It gave no answer; why."""


async def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Its answer. Raises: ChildFailed."""
    with _file(orjson.dumps(request)) as file:
        try:
            child = process.start_edits(file.fileno())
        except OSError as error:
            raise ChildFailed(f"it cannot be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(PATIENCE):
            output = await _output(child)
    except TimeoutError:
        raise ChildFailed(f"it did not answer within {PATIENCE:.0f} s") from None
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
    try:
        return dict(orjson.loads(output))
    except orjson.JSONDecodeError:  # it was killed, or said on stderr what is the matter
        raise ChildFailed(f"it {process.describe_exit(child.returncode)}") from None


def _file(content: bytes) -> IO[bytes]:
    """A file without a name that holds `content`, to be read from its start."""
    in_memory = hasattr(os, "memfd_create")
    file = os.fdopen(os.memfd_create("aigw-edits"), "w+b") if in_memory else tempfile.TemporaryFile()  # noqa: SIM115
    file.write(content)
    file.seek(0)
    return file


async def _output(child: subprocess.Popen[bytes]) -> bytes:
    """All that it writes to its stdout, until it closes that, which is when it has answered."""
    assert child.stdout is not None
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), child.stdout)
    try:
        return await reader.read()
    finally:
        transport.close()
        with contextlib.suppress(OSError):
            child.stdout.close()
