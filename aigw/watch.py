"""Whether files have changed, and whether whoever changes them has finished. It reads files; it starts nothing.

A file is saved in many ways: written in place, in pieces; renamed over the old one; by a symlink that is swapped (as
Kubernetes does with a ConfigMap); bind-mounted. What they have in common is that `stat`, through all symlinks, answers
something else afterwards, and then stays as it is. So a change counts once two looks in a row saw the same; and the
content decides whether it was one, since a file may be touched, or saved unchanged.
"""

import hashlib
import os
import stat
from collections.abc import Mapping

INTERVAL = 0.5  # seconds between two looks
MAX_BYTES = 16 << 20  # of a file that is read at all: a config of 100,000 keys, a minute of parsing

Signature = tuple[int, int, int, int] | None  # device, inode, size, mtime in ns; None: nothing there


def signature(path: str) -> Signature:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def read(path: str) -> bytes:
    """A regular file's content, cut one byte beyond `MAX_BYTES`.

    Raises: OSError, ValueError; the latter with a message for people.
    """
    # a pipe or a device could block for ever, or never end
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no regular file; name a file")
        return file.read(MAX_BYTES + 1)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def digest_of(path: str) -> str | None:
    """Of what stands in a file; None for one that cannot be read."""
    try:
        return digest(read(path))
    except (OSError, ValueError):
        return None


class Watch:
    """Some files, as they were when they were read."""

    __slots__ = ("_last", "_settled", "files")

    def __init__(self) -> None:
        self.files: Mapping[str, str | None] = {}  # path -> `digest_of` what was read
        self._settled: list[Signature] = []  # what they look like while their content is that
        self._last: list[Signature] = []

    def set(self, files: Mapping[str, str | None]) -> None:
        """They were read, and this was in them."""
        self.files = files
        self._settled = []

    @property
    def is_as_read(self) -> bool:
        return all(digest_of(path) == known for path, known in self.files.items())

    def look(self) -> bool:
        """Whether they have changed since they were read, and not since the last look."""
        now = [signature(path) for path in self.files]
        at_rest = now == self._last
        self._last = now
        if not at_rest or now == self._settled:
            return False
        if self.is_as_read:
            self._settled = now
            return False
        return True
