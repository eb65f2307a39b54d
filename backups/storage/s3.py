"""A bucket of any S3-compatible storage."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from botocore.exceptions import BotoCoreError, ClientError

from backups.storage.base import Check, Storage, StorageError, Stored, Writer
from backups.storage.checking import KEPT, checks_of
from backups.storage.names import parts_of
from backups.storage.s3_client import ATTEMPTS, READ_SECONDS, S3Settings, client_of, code_of, status_of, told
from backups.storage.s3_writer import UPLOAD_MARK, S3Writer

_RESUMES = 5  # how often a read that broke goes on without having got anything
_MOST_VERSIONS = 20


class S3Storage(Storage):
    """Keys lie below `settings.prefix`. Not connected until it is used; usable from several threads."""

    def __init__(
        self, settings: S3Settings, *, attempts: int = ATTEMPTS, read_seconds: float = READ_SECONDS
    ) -> None:  # fmt: skip
        self._bucket = settings.bucket
        self._prefix = f"{settings.prefix}/" if settings.prefix else ""
        self._client = client_of(settings, attempts=attempts, read_seconds=read_seconds)

    def writer(self, key: str, *, upload_begun: Callable[[str], None] = lambda _: None) -> Writer:
        return S3Writer(self._client, self._where(key), upload_begun)

    def open(self, key: str, *, offset: int = 0, length: int | None = None) -> IO[bytes]:
        where = self._where(key)
        reader = _Reader(self._client, where, offset, length)
        return io.BufferedReader(reader, 1 << 16)

    def head(self, key: str) -> Stored | None:
        found = self._head(self._where(key))
        return None if found is None else Stored(key, int(found["ContentLength"]), _utc(found["LastModified"]))

    def delete(self, key: str) -> None:
        """In a bucket with versions the version itself: else its bytes would stay, and be paid for."""
        where = self._where(key)
        for _ in range(_MOST_VERSIONS):
            found = self._head(where)
            if found is None:
                return
            version = found.get("VersionId")
            try:
                self._client.delete_object(**where, **({"VersionId": version} if version else {}))
            except (ClientError, BotoCoreError) as error:
                if (lock := self._locked(found)) is not None:
                    words, until = lock
                    raise StorageError("object_locked", f"The bucket keeps it{words}.", until=until) from None
                raise told(error) from None
            if not version:
                return
        raise StorageError("storage_failed", f"There are more than {_MOST_VERSIONS} versions of the object.")

    def objects(self, prefix: str) -> Iterator[Stored]:
        for page in self._pages("list_objects_v2", prefix):
            for found in page.get("Contents", ()):
                key = str(found["Key"])[len(self._prefix) :]
                if _is_key(key):
                    yield Stored(key, int(found["Size"]), _utc(found["LastModified"]))

    def abort_upload(self, key: str, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(**self._where(key), UploadId=upload_id)
        except (ClientError, BotoCoreError) as error:
            if not (isinstance(error, ClientError) and code_of(error) == "NoSuchUpload"):
                raise told(error) from None

    def sweep(self, prefix: str, *, before: datetime) -> int:
        swept = 0
        for page in self._pages("list_multipart_uploads", prefix):
            for found in page.get("Uploads", ()):
                key = str(found["Key"])[len(self._prefix) :]
                if _is_key(key) and _utc(found["Initiated"]) < before:
                    self.abort_upload(key, str(found["UploadId"]))
                    swept += 1
        return swept

    def check(self, *, known: bool = False, writing: bool = True) -> list[Check]:
        found = checks_of(self, self._reach, writing=writing)
        self.lock_unknown = False
        if writing and found[-1].passed and found[-1].name != "object_lock":
            try:
                if self.object_lock():
                    found.append(Check("object_lock", True, KEPT))
            except StorageError:
                self.lock_unknown = True  # it does not let this key ask, or not now
        return found

    def object_lock(self) -> bool:
        return self._lock_rule() is not None

    def _lock_rule(self) -> dict[str, Any] | None:
        """The bucket's own rule for new objects (empty: it has none); None where it has no object lock."""
        try:
            answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and status_of(error) in {400, 404, 405, 501}:
                return None
            raise told(error) from None
        found = answer.get("ObjectLockConfiguration", {})
        if found.get("ObjectLockEnabled") != "Enabled":
            return None
        return dict(found.get("Rule", {}).get("DefaultRetention", {}))

    def _locked(self, found: dict[str, Any]) -> tuple[str, datetime | None] | None:
        """In words until when, and when that is, of an object that may not be removed; None where it isn't the lock's
        doing."""
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return " (legal hold)", None
        until = found.get("ObjectLockRetainUntilDate")
        if until is None:  # not every storage tells it of the object where the bucket's own rule keeps it
            try:
                rule = self._lock_rule() if found.get("VersionId") else None
            except StorageError:
                return None
            if rule is None:
                return None
            days = int(rule.get("Days") or 0) + 365 * int(rule.get("Years") or 0)
            until = _utc(found["LastModified"]) + timedelta(days=days)
            if until <= datetime.now(UTC):
                return " (object lock)", None  # it was told when the object was made, and is another one's by now
        if _utc(until) <= datetime.now(UTC):
            return None
        return f" until {_utc(until):%Y-%m-%d %H:%M} UTC (object lock)", _utc(until)

    def _reach(self) -> str:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            raise self._bucket_told(error) from None
        return "the bucket answers"

    def _head(self, where: dict[str, str]) -> dict[str, Any] | None:
        try:
            return dict(self._client.head_object(**where))
        except (ClientError, BotoCoreError) as error:
            if not (isinstance(error, ClientError) and status_of(error) == 404):
                raise told(error) from None
        self._reach()  # a missing bucket answers with the same 404
        return None

    def _bucket_told(self, error: Exception) -> StorageError:
        if isinstance(error, ClientError) and status_of(error) == 404:
            return StorageError("storage_missing", "There is no such bucket.", retryable=False)
        return told(error)

    def _pages(self, name: str, prefix: str) -> Iterator[dict[str, Any]]:
        try:
            yield from self._client.get_paginator(name).paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        except (ClientError, BotoCoreError) as error:
            raise self._bucket_told(error) from None

    def _where(self, key: str) -> dict[str, str]:
        try:
            parts_of(key)
        except ValueError as error:
            raise StorageError("storage_failed", f"This is {error}.", retryable=False) from None
        return {"Bucket": self._bucket, "Key": self._prefix + key}


class _Reader(io.RawIOBase):
    """An object as it comes. A connection that breaks is made again where it broke, of the same object only."""

    def __init__(self, client: Any, where: dict[str, str], offset: int, length: int | None) -> None:
        self._client, self._where = client, where
        self._at, self._left = offset, length
        self._etag = ""
        self._body: Any = None
        self._idle = 0
        if length != 0:
            self._ask()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while self._left is None or self._left > 0:
            wanted = len(target) if self._left is None else min(len(target), self._left)
            try:
                if self._body is None:
                    self._ask()
                piece = self._body.read(wanted) if self._body is not None else b""
            except Exception as error:
                self._broke(error)
                continue
            target[: len(piece)] = piece
            self._at += len(piece)
            self._idle = 0
            if self._left is not None:
                self._left -= len(piece)
            return len(piece)
        return 0

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
        super().close()

    def _ask(self) -> None:
        last = "" if self._left is None else str(self._at + self._left - 1)
        ranged = {"Range": f"bytes={self._at}-{last}"} if self._at or last else {}
        try:
            answer = self._client.get_object(**self._where, **ranged, **({"IfMatch": self._etag} if self._etag else {}))
        except ClientError as error:
            if status_of(error) == 416:
                self._left = 0
                return
            if status_of(error) == 412:
                raise StorageError("storage_failed", "The object was replaced while it was read.") from None
            raise told(error) from None
        except (BotoCoreError, OSError) as error:
            raise told(error) from None
        if ranged and answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
            raise StorageError("storage_failed", "The storage does not give parts of objects.", retryable=False)
        self._etag = str(answer.get("ETag", ""))
        self._body = answer["Body"]

    def _broke(self, error: Exception) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None
        self._idle += 1
        failure = error if isinstance(error, StorageError) else StorageError(
            "storage_unreachable", "The storage broke the connection while it was read."
        )  # fmt: skip
        if self._idle > _RESUMES or not failure.retryable or failure.code == "object_missing":
            raise failure from None


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def _is_key(key: str) -> bool:
    try:
        return bool(parts_of(key))
    except ValueError:
        return False


__all__ = ["UPLOAD_MARK", "S3Settings", "S3Storage"]
