"""When a change of files counts: once they rest, and hold something else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aigw import watch
from aigw.watch import Watch, digest_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("one")
    return path


def watching(*paths: Path) -> Watch:
    """Files that were read just now, and looked at twice since."""
    watch = Watch()
    watch.set({str(path): digest_of(str(path)) for path in paths})
    assert [watch.look(), watch.look()] == [False, False]
    return watch


def test_a_change_counts_at_the_second_look_and_until_it_is_read(file: Path) -> None:
    watch = watching(file)
    file.write_text("two two")
    assert [watch.look(), watch.look(), watch.look()] == [False, True, True]
    watch.set({str(file): digest_of(str(file))})
    assert [watch.look(), watch.look()] == [False, False]


def test_a_file_that_is_still_written_is_waited_for(file: Path) -> None:
    watch = watching(file)
    for text in ("a", "ab", "abc"):
        file.write_text(text)
        assert not watch.look()
    assert watch.look()


def test_the_content_decides(file: Path) -> None:
    watch = watching(file)
    os.utime(file, (1, 1))
    assert [watch.look(), watch.look()] == [False, False]
    file.with_suffix(".new").write_text("one")
    file.with_suffix(".new").replace(file)
    assert [watch.look(), watch.look()] == [False, False]
    os.utime(file, (2, 2))
    file.write_text("two")
    assert [watch.look(), watch.look()] == [False, True]


def test_what_changed_between_reading_and_the_first_look_is_seen(file: Path) -> None:
    watch = Watch()
    watch.set({str(file): digest_of(str(file))})
    file.write_text("two")
    assert [watch.look(), watch.look()] == [False, True]


def test_a_file_that_goes_and_one_that_comes(file: Path) -> None:
    other = file.with_name("secret")
    watch = watching(file, other)
    other.write_text("s")
    assert [watch.look(), watch.look()] == [False, True]
    watch.set({str(path): digest_of(str(path)) for path in (file, other)})
    file.unlink()
    assert [watch.look(), watch.look()] == [False, True]


def test_through_symlinks(file: Path) -> None:
    other = file.with_name("other.yaml")
    other.write_text("two")
    link = file.with_name("link.yaml")
    link.symlink_to(file.name)
    watch = watching(link)
    link.with_suffix(".new").symlink_to(other.name)
    link.with_suffix(".new").replace(link)
    assert [watch.look(), watch.look()] == [False, True]


def test_what_is_no_regular_file_has_no_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert digest_of(str(tmp_path / "pipe")) is None
    assert digest_of(str(tmp_path)) is None
    assert digest_of("\0") is None
    (tmp_path / "large").write_bytes(b"x" * 100)
    monkeypatch.setattr(watch, "MAX_BYTES", 10)
    assert len(watch.read(str(tmp_path / "large"))) == 11
