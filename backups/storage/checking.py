"""A storage is tried before it is believed: what a backup, its retention and a restore will need."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice

from backups.storage.base import Check, Storage, StorageError

_SIZE = 100_000
_FOLDER = "novastack-test"
_MOST_LEFT = 20  # in one go
KEPT = "the bucket keeps objects from being removed"


def checks_of(storage: Storage, reach: Callable[[], str], *, writing: bool = True) -> list[Check]:
    """Each thing in its order; the first that fails ends it. `reach` says in words what answered."""
    found: list[Check] = []
    key = f"{_FOLDER}/{secrets.token_hex(8)}"
    for name, act in _acts(storage, reach, key) if writing else _looks(storage, reach):
        try:
            found.append(Check(name, True, act()))
        except StorageError as error:
            found.append(Check(name, False, error.detail))
            break
    if not found[-1].passed and any(check.name == "write" for check in found):
        _remove(storage, key)
    return found


def left_removed(storage: Storage, *, before: datetime) -> int:
    """What earlier checks wrote before then and could not remove, as a bucket with object lock has it, as far as it may go
    now; some at a time. Returns how many went. `StorageError` when the storage can't be listed."""
    removed = 0
    for stored in islice(storage.objects(f"{_FOLDER}/"), _MOST_LEFT):
        if stored.modified_at < before:
            with contextlib.suppress(StorageError):
                storage.delete(stored.key)
                removed += 1
    return removed


def _looks(storage: Storage, reach: Callable[[], str]) -> Iterator[tuple[str, Callable[[], str]]]:
    """What leaves nothing behind."""

    def listed() -> str:
        next(iter(storage.objects(f"{_FOLDER}/")), None)
        return "its list can be read"

    yield "reach", reach
    yield "list", listed


def _acts(storage: Storage, reach: Callable[[], str], key: str) -> Iterator[tuple[str, Callable[[], str]]]:
    content, kept = secrets.token_bytes(_SIZE), list[str]()

    def write() -> str:
        _put(storage, key, content)
        return f"{_SIZE} bytes written"

    def listed() -> str:
        if not any(stored.key == key for stored in storage.objects(key)):
            raise StorageError("storage_failed", "What was written is not in the list.")
        return "found in the list"

    def read() -> str:
        if _get(storage, key) != content:
            raise StorageError("storage_failed", "Something else was read than was written.")
        return "read back and compared"

    def part() -> str:
        if _get(storage, key, offset=1000, length=500) != content[1000:1500]:
            raise StorageError("storage_failed", "Another part was read than was asked for.")
        return "a part read"

    def give_up() -> str:
        writer = storage.writer(f"{key}-2")
        writer.write(content)
        writer.abort()
        if storage.head(f"{key}-2") is not None:
            raise StorageError("storage_failed", "An unfinished object has its name.")
        return "an unfinished object thrown away"

    def delete() -> str:
        try:
            storage.delete(key)
        except StorageError as error:
            if error.code == "object_locked":
                kept.append(key)
                return error.detail
            raise
        if storage.head(key) is not None:
            raise StorageError("storage_refused", "What was deleted is still there.")
        return "deleted"

    yield "reach", reach
    yield "write", write
    yield "list", listed
    yield "read", read
    yield "range", part
    yield "abort", give_up
    yield "delete", delete
    if kept:
        yield "object_lock", lambda: KEPT


def _put(storage: Storage, key: str, content: bytes) -> None:
    writer = storage.writer(key)
    try:
        writer.write(content)
        writer.commit()
    except StorageError:
        writer.abort()
        raise


def _get(storage: Storage, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
    with storage.open(key, offset=offset, length=length) as source:
        found = b""
        while len(found) <= _SIZE and (piece := source.read(_SIZE)):
            found += piece
        return found


def _remove(storage: Storage, key: str) -> None:
    try:
        storage.delete(key)
    except StorageError:
        return  # it was said already what does not work
