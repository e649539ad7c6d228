"""Writing the config file: all of it or nothing, and never over what somebody saved meanwhile.

A new file beside the old one, with its owner and mode, written out to the disk and renamed over it; before that the old
one becomes `NAME.bak`. Where a rename cannot do it (the file is a mount of its own, or its owner could not be kept), it
is written in place, after the space for it was set aside.

It blocks, so it runs on a thread. It knows nothing of what the content means.
"""

import contextlib
import errno
import os
import tempfile

from aigw import watch

_IN_PLACE = frozenset({errno.EBUSY, errno.EXDEV, errno.EPERM})


class SaveError(Exception):
    """The file was not written and is as it was; its text says why and what would help. `is_full`: for want of room."""

    def __init__(self, message: str, *, is_full: bool = False) -> None:
        super().__init__(message)
        self.is_full = is_full


class Changed(Exception):
    """It holds something else than was expected: somebody saved it meanwhile. It is as they left it."""


def save(path: str, content: bytes, expected: str) -> None:
    """Writes `content` to the file `path`, through symlinks, if what it holds has the digest `expected`.

    Raises: SaveError, Changed.
    """
    path = os.path.realpath(path)
    try:
        before = watch.read(path)
        status = os.stat(path)
    except FileNotFoundError:
        raise Changed from None
    except (OSError, ValueError) as error:
        raise _explained(path, error) from None
    if watch.digest(before) != expected:
        raise Changed
    try:
        try:
            new = _beside(path, content, status)
        except PermissionError as error:
            if error.errno != errno.EPERM:  # the folder may not be written, rather than the owner not be kept
                raise
            new = None
        _back_up(path, before, status)
        if new is None:
            _in_place(path, content, before)
        else:
            _replace(path, new, content, before, expected)
    except OSError as error:
        raise _explained(path, error) from None


def _beside(path: str, content: bytes, status: os.stat_result | None) -> str:
    """A new file in the same folder, with this owner and mode; None: ours, and for nobody else to read.

    Raises: OSError, and there is none; PermissionError with EPERM, where the owner cannot be kept.
    """
    folder, name = os.path.split(path)
    descriptor, new = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if status is not None:
                mine = os.fstat(descriptor)
                if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, status.st_mode & 0o7777)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        os.unlink(new)
        raise
    return new


def _back_up(path: str, before: bytes, status: os.stat_result) -> None:
    try:
        new = _beside(f"{path}.bak", before, status)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        new = _beside(f"{path}.bak", before, None)
    os.replace(new, f"{path}.bak")


def _replace(path: str, new: str, content: bytes, before: bytes, expected: str) -> None:
    try:
        if watch.digest_of(path) != expected:  # as late as possible
            raise Changed
        os.replace(new, path)
    except OSError as error:
        os.unlink(new)
        if error.errno not in _IN_PLACE:
            raise
        _in_place(path, content, before)
    except BaseException:
        os.unlink(new)
        raise
    else:
        with contextlib.suppress(OSError):  # the name, after a loss of power; some file systems do not know that
            folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _in_place(path: str, content: bytes, before: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        if file.read(len(before) + 1) != before:
            raise Changed
        try:
            _reserve(descriptor, len(content))
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.pwrite(descriptor, before, 0)
                os.ftruncate(descriptor, len(before))
            raise


def _reserve(descriptor: int, size: int) -> None:
    """Raises: OSError, where there is no room."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _explained(path: str, error: OSError | ValueError) -> SaveError:
    if not isinstance(error, OSError):
        return SaveError(f"{path} {error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SaveError(f"{path} was not written: there is no room on its disk; make some and try again", is_full=True)
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return SaveError(
            f"{path} was not written: this user may not write to its folder ({error.strerror}); permit it, or edit the "
            "file where it comes from"
        )
    return SaveError(f"{path} was not written: {error.strerror}")
