"""The config file on the disk: all of the new text or all of the old one, whatever the disk does."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aigw import watch
from aigw.admin.file import Changed, SaveError, save

OLD = b"gateways: {}  # old\n"
NEW = b"gateways: {}  # new, and longer than what was there before\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "config.yaml"
    found.write_bytes(OLD)
    found.chmod(0o640)
    return found


def write(path: Path, content: bytes = NEW, expected: bytes = OLD) -> None:
    save(str(path), content, watch.digest(expected))


def left(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.parent.iterdir() if entry.is_file()}


def test_it_is_replaced_as_a_whole_and_the_one_before_is_kept(path: Path) -> None:
    inode = path.stat().st_ino
    write(path)
    assert left(path) == {"config.yaml": NEW, "config.yaml.bak": OLD}
    assert path.stat().st_ino != inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE((path.parent / "config.yaml.bak").stat().st_mode) == 0o640
    write(path, OLD, NEW)
    assert left(path) == {"config.yaml": OLD, "config.yaml.bak": NEW}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_its_owner_is_kept(path: Path) -> None:
    os.chown(path, 12345, 54321)
    write(path)
    for name in ("config.yaml", "config.yaml.bak"):
        found = (path.parent / name).stat()
        assert (found.st_uid, found.st_gid) == (12345, 54321)


def test_through_symlinks(path: Path) -> None:
    folder = path.parent / "linked"
    folder.mkdir()
    link = folder / "config.yaml"
    link.symlink_to(path)
    write(link)
    assert link.is_symlink()
    assert left(path) == {"config.yaml": NEW, "config.yaml.bak": OLD}
    assert left(link) == {"config.yaml": NEW}


def test_what_somebody_saved_meanwhile_stays(path: Path) -> None:
    path.write_bytes(b"theirs")
    with pytest.raises(Changed):
        write(path)
    assert left(path) == {"config.yaml": b"theirs"}
    path.unlink()
    with pytest.raises(Changed):
        write(path)
    assert left(path) == {}


def test_what_is_saved_between_the_look_and_the_rename_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def save_theirs(descriptor: int) -> None:
        path.write_bytes(b"theirs")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", save_theirs)
    with pytest.raises(Changed):
        write(path)
    assert left(path)["config.yaml"] == b"theirs"
    assert left(path).keys() == {"config.yaml", "config.yaml.bak"}


def failing(number: int, only: Callable[..., bool] = lambda *arguments: True) -> Callable[..., Any]:
    """A system call that fails with this number where `only` says so."""

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if only(*arguments):
                raise OSError(number, os.strerror(number))
            return real(*arguments, **more)

        return call

    return wrap


def to_config(_: Any, target: Any, *more: Any) -> bool:
    return str(target).endswith("config.yaml")


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_mount_of_its_own_is_written_in_place(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "replace", failing(number, to_config)(os.replace))
    write(path)
    assert left(path) == {"config.yaml": NEW, "config.yaml.bak": OLD}
    assert path.stat().st_ino == inode
    write(path, b"short\n", NEW)
    assert left(path) == {"config.yaml": b"short\n", "config.yaml.bak": NEW}


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts for itself")
def test_a_real_bind_mount(tmp_path: Path) -> None:
    """In a mount namespace of its own, which ends with the process."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import sys
            from aigw import watch
            from aigw.admin.file import save
            save(sys.argv[1], b"new content\\n", watch.digest(b"old\\n"))
        """)
    )
    source, target = tmp_path / "source", tmp_path / "config.yaml"
    source.write_bytes(b"old\n")
    target.write_bytes(b"covered")
    command = f"mount --bind {source} {target} && exec {sys.executable} {script} {target}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, check=False)
    if "ermitted" in done.stderr or "ermission" in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert (done.returncode, done.stderr) == (0, "")
    assert source.read_bytes() == b"new content\n"
    assert target.read_bytes() == b"covered"
    assert (tmp_path / "config.yaml.bak").read_bytes() == b"old\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_where_the_owner_could_not_be_kept_it_is_written_in_place(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(path, 12345, 54321)
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "fchown", failing(errno.EPERM)(os.fchown))
    write(path)
    assert left(path) == {"config.yaml": NEW, "config.yaml.bak": OLD}
    assert (path.stat().st_ino, path.stat().st_uid) == (inode, 12345)
    copy = (path.parent / "config.yaml.bak").stat()
    assert (copy.st_uid, stat.S_IMODE(copy.st_mode)) == (0, 0o600)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk_leaves_all_as_it_was(
    path: Path, number: int, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_place:
        monkeypatch.setattr(os, "replace", failing(errno.EBUSY, to_config)(os.replace))
        monkeypatch.setattr(os, "posix_fallocate", failing(number)(os.posix_fallocate))
    else:
        monkeypatch.setattr(os, "fsync", failing(number)(os.fsync))
    with pytest.raises(SaveError, match="there is no room on its disk; make some and try again") as caught:
        write(path)
    assert caught.value.is_full
    assert left(path)["config.yaml"] == OLD
    assert not [name for name in left(path) if name.startswith(".")]


def test_a_disk_that_fills_in_the_middle_of_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def cut(descriptor: int, data: bytes, at: int) -> int:
        if data == NEW:
            real(descriptor, data[:10], at)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, at)

    monkeypatch.setattr(os, "replace", failing(errno.EBUSY, to_config)(os.replace))
    monkeypatch.setattr(os, "pwrite", cut)
    with pytest.raises(SaveError, match="Input/output error"):
        write(path)
    assert left(path) == {"config.yaml": OLD, "config.yaml.bak": OLD}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile._os.open", failing(number, lambda name, *_: "/.config" in str(name))(os.open))
    with pytest.raises(SaveError, match="this user may not write to its folder"):
        write(path)
    assert left(path) == {"config.yaml": OLD}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="Is a directory"):
        save(str(tmp_path), NEW, watch.digest(OLD))
