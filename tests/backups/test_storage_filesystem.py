"""Folders below the operator's root."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.storage.base import Storage, StorageError
from backups.storage.filesystem import FilesystemStorage
from tests.backups.storage_contract import StorageContract, get, put


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = FilesystemStorage(tmp_path, "nas/backups")
    assert made.check()[0].passed
    return made


class TestFilesystem(StorageContract):
    pass


def test_a_folder_that_is_not_there_is_missing_and_is_never_made_by_a_backup(tmp_path: Path) -> None:
    """A NAS that isn't mounted: nothing may go to the disk below, and nothing counts as gone."""
    root = tmp_path / "root"
    root.mkdir()
    storage = FilesystemStorage(root, "nas")
    for act in (
        lambda: storage.writer("a"), lambda: storage.head("a"), lambda: storage.delete("a"), lambda: get(storage, "a"),
        lambda: list(storage.objects("a/")), lambda: storage.abort_upload("a", f".a.{'0' * 16}.tmp"), storage.free_bytes,
    ):  # fmt: skip
        with pytest.raises(StorageError) as failed:
            act()
        assert failed.value.code == "storage_missing"
    assert not list(root.iterdir())
    checks = FilesystemStorage(tmp_path / "none", "nas").check()
    assert [(check.name, check.passed) for check in checks] == [("reach", False)]


def test_links_lead_nowhere(storage: Storage, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    inside = tmp_path / "nas" / "backups"
    (inside / "link").symlink_to(outside)
    (inside / "file").symlink_to(outside / "secret")
    os.mkfifo(inside / "pipe")
    for act in (
        lambda: put(storage, "link/planted", b"x"), lambda: get(storage, "link/secret"), lambda: get(storage, "file"),
        lambda: storage.delete("link/secret"), lambda: storage.head("link/secret"), lambda: get(storage, "pipe"),
    ):  # fmt: skip
        with pytest.raises(StorageError):
            act()
    assert storage.head("file") is None
    assert not list(storage.objects(""))
    put(storage, "file", b"replaces the link")
    assert (outside / "secret").read_text() == "secret"
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    (tmp_path / "other").symlink_to(outside)
    assert not FilesystemStorage(tmp_path, "other").check()[0].passed


def test_only_we_may_read_what_is_stored(storage: Storage, tmp_path: Path) -> None:
    put(storage, "a/b", b"x")
    assert (tmp_path / "nas/backups/a/b").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "nas/backups/a").stat().st_mode & 0o777 == 0o700


def test_what_may_not_outlast_a_crash_is_not_there(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's fsync fails after the rename: whoever looks later must not take the page cache for the disk."""
    writer, fsync = storage.writer("a/b"), os.fsync
    writer.write(b"x")

    def failing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError):
        writer.commit()
    writer.abort()
    monkeypatch.undo()
    assert storage.head("a/b") is None
    assert not list((tmp_path / "nas/backups/a").iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_given_up_cleanly(small_disk: Path) -> None:
    storage = FilesystemStorage(small_disk, "b")
    assert all(check.passed for check in storage.check())
    room = storage.free_bytes()
    assert room is not None
    assert room <= 2 << 20
    writer = storage.writer("x/y")
    with pytest.raises(StorageError) as failed:
        for _ in range(40):
            writer.write(b"x" * 100_000)
    assert failed.value.code == "storage_full"
    assert str(small_disk) not in failed.value.detail
    writer.abort()
    assert storage.head("x/y") is None
    put(storage, "x/y", b"there is room again" * 1000)
    checks = storage.check()
    assert checks[-1].passed
    full = storage.writer("z")
    with pytest.raises(StorageError):
        full.write(b"x" * (4 << 20))
    refused = storage.check()
    assert (refused[-1].name, refused[-1].passed) == ("write", False)
    assert "full" in refused[-1].detail
    full.abort()
