"""A folder below the operator's root. Every step of a path is opened without following links, so that nobody who can
write into the folder leads us out of it (rule 34). Whole or not at all: a temporary file, fsync, rename, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from backups.storage.base import Check, Storage, StorageError, Stored, Writer
from backups.storage.checking import checks_of
from backups.storage.names import parts_of

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFINISHED = re.compile(r"\.[A-Za-z0-9._-]+\.[0-9a-f]{16}\.tmp", re.ASCII)
_CODES = {
    errno.ENOSPC: ("storage_full", "The disk is full"),
    errno.EDQUOT: ("storage_full", "The disk quota is used up"),
    errno.EFBIG: ("storage_full", "The file would be too large for this file system"),
    errno.EACCES: ("storage_refused", "NovaStack may not do this in that folder"),
    errno.EPERM: ("storage_refused", "NovaStack may not do this in that folder"),
    errno.EROFS: ("storage_refused", "The file system is read-only"),
    errno.ELOOP: ("storage_refused", "There is a symbolic link where a folder or file must be"),
    errno.ENOTDIR: ("storage_refused", "There is something else where a folder must be"),
    errno.EISDIR: ("storage_refused", "There is a folder where a file must be"),
    errno.ENOENT: ("storage_missing", "The folder is not there"),
    errno.ESTALE: ("storage_unreachable", "The file server no longer knows the folder"),
    errno.ETIMEDOUT: ("storage_unreachable", "The file server does not answer"),
    errno.EHOSTDOWN: ("storage_unreachable", "The file server does not answer"),
    errno.EIO: ("storage_failed", "The disk can't be read or written (I/O error)"),
}


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the system refuses, in our words; paths stay out of them."""
    try:
        yield
    except OSError as error:
        code, words = _CODES.get(error.errno or 0, ("storage_failed", os.strerror(error.errno or errno.EIO)))
        raise StorageError(code, f"{words}.", retryable=code not in {"storage_refused"}) from None


class FilesystemStorage(Storage):
    """`root` is the operator's and must be there; `path` lies below it, is made by the first `check`, and by nothing else: a
    NAS that is not mounted is missing, not empty."""

    def __init__(self, root: Path, path: str) -> None:
        self._root, self._path = root, parts_of(path)

    def writer(self, key: str, *, upload_begun: Callable[[str], None] = lambda _: None) -> Writer:
        *folders, name = _parts(key)
        unfinished = f".{name}.{secrets.token_hex(8)}.tmp"
        upload_begun(unfinished)
        with _told():
            folder = self._open(folders, make=True)
            try:
                file = os.open(
                    unfinished,
                    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                    0o600,
                    dir_fd=folder,
                )
            except BaseException:
                os.close(folder)
                raise
        return _FileWriter(folder, file, unfinished, name)

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> IO[bytes]:
        *folders, name = _parts(key)
        try:
            with _told(), self._folder(folders) as folder:
                # Not to wait for whoever writes into a pipe that somebody put there.
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
        except StorageError as error:
            if error.code == "storage_missing" and self._is_there():
                raise StorageError("object_missing", "The object is not there.", retryable=False) from None
            raise
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise StorageError("object_missing", "It is no file.", retryable=False)
        return io.BufferedReader(_Part(file, offset, length), 1 << 16)

    def head(self, key: str) -> Stored | None:
        *folders, name = _parts(key)
        try:
            with _told(), self._folder(folders) as folder:
                found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except StorageError as error:
            if error.code == "storage_missing" and self._is_there():
                return None
            raise
        return _stored(key, found) if stat.S_ISREG(found.st_mode) else None

    def delete(self, key: str) -> None:
        *folders, name = _parts(key)
        try:
            with _told(), self._folder(folders) as folder:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
        except StorageError as error:
            if error.code != "storage_missing" or not self._is_there():
                raise
            return
        if folders:
            # Of a backup that has gone nothing is left; what still holds something stays.
            with contextlib.suppress(OSError), self._folder(folders[:-1]) as folder:
                os.rmdir(folders[-1], dir_fd=folder)

    def objects(self, prefix: str) -> Iterator[Stored]:
        for key, _, found in self._files(prefix):
            if not _is_unfinished(key):
                yield _stored(key, found)

    def abort_upload(self, key: str, upload_id: str) -> None:
        *folders, _ = _parts(key)
        if not _UNFINISHED.fullmatch(upload_id):
            raise StorageError("storage_failed", "This is no unfinished object.", retryable=False)
        try:
            with _told(), self._folder(folders) as folder:
                os.unlink(upload_id, dir_fd=folder)
        except StorageError as error:
            if error.code != "storage_missing" or not self._is_there():
                raise

    def sweep(self, prefix: str, *, before: datetime) -> int:
        swept = 0
        for key, folders, found in self._files(prefix):
            if _is_unfinished(key) and found.st_mtime < before.timestamp():
                with _told(), self._folder(folders) as folder, contextlib.suppress(FileNotFoundError):
                    os.unlink(key.rpartition("/")[2], dir_fd=folder)
                    swept += 1
        return swept

    def check(self, *, known: bool = False, writing: bool = True) -> list[Check]:
        return checks_of(self, lambda: self._reach(make=not known), writing=writing)

    def free_bytes(self) -> int | None:
        with _told(), self._folder([]) as folder:
            room = os.fstatvfs(folder)
        return room.f_bavail * room.f_frsize

    def _reach(self, *, make: bool) -> str:
        with _told():
            folder = self._open([], make=make, whole=True)
        os.close(folder)
        return "the folder is there"

    def _is_there(self) -> bool:
        """The target's own folder; raises what keeps us from it."""
        with _told(), self._folder([]):
            return True

    def _open(self, folders: list[str], *, make: bool = False, whole: bool = False) -> int:
        """A descriptor of a folder of this target, step by step. `make`: what lacks below the target's own folder, with
        `whole` that one as well."""
        current = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the operator's: may be a link
        try:
            for depth, part in enumerate((*self._path, *folders)):
                following = self._step(current, part, make=make and (whole or depth >= len(self._path)))
                os.close(current)
                current = following
        except BaseException:
            os.close(current)
            raise
        return current

    @staticmethod
    def _step(current: int, part: str, *, make: bool) -> int:
        try:
            return os.open(part, _FOLDER, dir_fd=current)
        except FileNotFoundError:
            if not make:
                raise
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o700, dir_fd=current)
            os.fsync(current)
        return os.open(part, _FOLDER, dir_fd=current)

    @contextlib.contextmanager
    def _folder(self, folders: list[str]) -> Iterator[int]:
        descriptor = self._open(folders)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _files(self, prefix: str) -> Iterator[tuple[str, list[str], os.stat_result]]:
        """(key, folders, what stat says) of every file, unfinished ones too, in the order of keys."""
        above, _, _ = prefix.rpartition("/")
        folders = list(_parts(above)) if above else []
        try:
            with _told(), self._folder(folders):
                pass
        except StorageError as error:
            if error.code == "storage_missing" and self._is_there():
                return
            raise
        yield from self._walk(folders, prefix)

    def _walk(self, folders: list[str], prefix: str) -> Iterator[tuple[str, list[str], os.stat_result]]:
        found: list[tuple[str, bool, os.stat_result]] = []
        with _told():
            try:
                with self._folder(folders) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            about = entry.stat(follow_symlinks=False)
                            if stat.S_ISDIR(about.st_mode):
                                found.append((f"{entry.name}/", True, about))
                            elif stat.S_ISREG(about.st_mode):
                                found.append((entry.name, False, about))
            except FileNotFoundError:  # removed meanwhile
                return
        for name, is_folder, about in sorted(found, key=lambda item: item[0]):
            key = "/".join([*folders, name])
            if is_folder:
                inside = key.startswith(prefix) or prefix.startswith(key)
                if inside and _is_key(name[:-1]):
                    yield from self._walk([*folders, name[:-1]], prefix)
            elif key.startswith(prefix) and (_is_key(name) or _is_unfinished(name)):
                yield key, folders, about


class _FileWriter(Writer):
    def __init__(self, folder: int, file: int, unfinished: str, name: str) -> None:
        self._folder, self._file, self._unfinished, self._name = folder, file, unfinished, name
        self._done = False

    def write(self, piece: bytes) -> int:
        rest = memoryview(piece)
        with _told():
            while rest:
                rest = rest[os.write(self._file, rest) :]
        return len(piece)

    def commit(self) -> None:
        with _told():
            os.fsync(self._file)
            os.rename(self._unfinished, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            try:
                os.fsync(self._folder)
            except OSError:
                # The name may not outlast a crash, but whoever looks would see it: nothing is there unless it stays.
                with contextlib.suppress(OSError):
                    os.unlink(self._name, dir_fd=self._folder)
                raise
        self._close()

    def abort(self) -> None:
        if not self._done:
            with contextlib.suppress(OSError):
                os.unlink(self._unfinished, dir_fd=self._folder)
            self._close()

    def _close(self) -> None:
        self._done = True
        for descriptor in (self._file, self._folder):
            with contextlib.suppress(OSError):
                os.close(descriptor)


class _Part(io.RawIOBase):
    """A part of an open file."""

    def __init__(self, file: int, offset: int, length: int | None) -> None:
        self._file, self._at, self._left = file, offset, length

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        wanted = len(target) if self._left is None else min(len(target), self._left)
        with _told():
            got = os.preadv(self._file, [memoryview(target)[:wanted]], self._at)
        self._at += got
        if self._left is not None:
            self._left -= got
        return got

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()


def _parts(key: str) -> tuple[str, ...]:
    try:
        return parts_of(key)
    except ValueError as error:
        raise StorageError("storage_failed", f"This is {error}.", retryable=False) from None


def _is_key(name: str) -> bool:
    try:
        return bool(parts_of(name))
    except ValueError:
        return False


def _is_unfinished(key: str) -> bool:
    return bool(_UNFINISHED.fullmatch(key.rpartition("/")[2]))


def _stored(key: str, found: os.stat_result) -> Stored:
    return Stored(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
