"""The interface of a storage: objects by key, written once, in a stream of constant memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO


class StorageError(Exception):
    """`code`: `storage_unreachable`, `storage_refused` (credentials, rights), `storage_full`, `storage_missing` (bucket or
    folder), `object_missing`, `object_locked` (may not be removed), `storage_failed`. The text is for people, without
    secrets. `until` (UTC): of a locked object when that ends, where the storage tells."""

    def __init__(self, code: str, detail: str, *, retryable: bool = True, until: datetime | None = None) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retryable, self.until = code, detail, retryable, until


@dataclass(frozen=True, slots=True)
class Stored:
    """An object as the storage tells it. `modified_at` UTC."""

    key: str
    size_bytes: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried when a storage was tested, in the order in which they were tried."""

    name: str  # reach, list, write, read, delete …
    passed: bool
    detail: str


class Writer(ABC):
    """An object on its way. Until `commit` nobody sees it under its name. Not thread-safe."""

    @abstractmethod
    def write(self, piece: bytes) -> int:
        """Takes all of it, or raises `StorageError`. At most 48 MB are held at a time (rule 36)."""

    @abstractmethod
    def commit(self) -> None:
        """All came: give it its name; durable when this returns (fsync of file and folder; the multipart completed and
        its size asked for by HEAD). Raises `StorageError`, also in doubt."""

    @abstractmethod
    def abort(self) -> None:
        """Throw away what was sent. Never raises; what it can't reach is swept later."""


class Storage(ABC):
    """Keys are relative to the target's root or prefix: `a/b/c`, of [A-Za-z0-9._-]. Raises `StorageError` only.
    `lock_unknown`: at the last check it would not say whether it keeps objects from being removed."""

    lock_unknown = False

    @abstractmethod
    def writer(self, key: str, *, upload_begun: Callable[[str], None] = lambda _: None) -> Writer:
        """Begin an object. `upload_begun(id)` is called before anything is sent where the storage keeps unfinished
        uploads, so that a crash leaves a row that knows it. An object of that name is replaced by `commit`."""

    @abstractmethod
    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> IO[bytes]:
        """A readable stream of (a part of) the object, to be closed."""

    @abstractmethod
    def head(self, key: str) -> Stored | None:
        """None only when the storage says for certain that there is no such object."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove it; absent is success. `object_locked` when the storage keeps it."""

    @abstractmethod
    def objects(self, prefix: str) -> Iterator[Stored]:
        """Finished objects below a prefix, in the order of their keys."""

    @abstractmethod
    def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw away an unfinished object that a crash left; absent is success."""

    @abstractmethod
    def sweep(self, prefix: str, *, before: datetime) -> int:
        """Throw away unfinished objects below the prefix that were begun before; returns how many (rule 29)."""

    @abstractmethod
    def check(self, *, known: bool = False, writing: bool = True) -> list[Check]:
        """Try it: reach, list, write, read back and compare, range, delete. Does not raise; the first that fails ends it.
        `known`: it was there before, so that nothing is made that is missing now. Without `writing` only reach and list."""

    def object_lock(self) -> bool:
        """Whether it keeps objects from being removed for a while."""
        return False

    def free_bytes(self) -> int | None:
        """Room that is left, where the storage can tell."""
        return None
