"""An object on its way into a bucket: small ones in one request, others in parts that grow with what was sent (rule 36)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from backups.storage.base import StorageError, Writer
from backups.storage.s3_client import status_of, told

MIB = 1 << 20
_NOT_YET = (0.5, 1.0, 2.0, 4.0)  # seconds between looks for what was just made
# (up to this part, bytes of each, how many are sent at a time): with the one that fills up never more than 48 MB.
PLAN = ((1000, 8 * MIB, 2), (4000, 15 * MIB, 2), (7000, 22 * MIB, 1), (10_000, 45 * MIB, 0))
MOST_BYTES = sum(
    (last - first) * size for (last, size, _), first in zip(PLAN, (0, *(p[0] for p in PLAN)), strict=False)
)
UPLOAD_MARK = "novastack-upload"  # metadata by which an object is known as what this writer sent


def part_of(number: int) -> tuple[int, int]:
    """(bytes, how many are sent at a time) of a part, numbered from 1. `StorageError` after the last."""
    for last, size, sent in PLAN:
        if number <= last:
            return size, sent
    raise StorageError(
        "storage_full", f"The backup is larger than {MOST_BYTES // (1 << 30)} GiB, the most that an object in S3 can be "
        "with bounded memory.", retryable=False,
    )  # fmt: skip


class S3Writer(Writer):
    def __init__(self, client: Any, where: dict[str, str], upload_begun: Callable[[str], None]) -> None:
        self._client, self._where, self._upload_begun = client, where, upload_begun
        self._mark = secrets.token_hex(16)
        self._buffer = bytearray()
        self._upload = ""
        self._number = 0
        self._sent = 0
        self._parts: list[dict[str, Any]] = []
        self._flying: deque[tuple[int, Future[str]]] = deque()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="s3-part")
        self._done = False

    def write(self, piece: bytes) -> int:
        rest = memoryview(piece)
        while rest:
            size, _ = part_of(self._number + 1)
            taken = rest[: size - len(self._buffer)]
            self._buffer += taken
            rest = rest[len(taken) :]
            if len(self._buffer) == size:
                self._send()
        return len(piece)

    def commit(self) -> None:
        if not self._upload:
            self._put()
        else:
            if self._buffer:
                self._send()
            while self._flying:
                self._land()
            self._complete()
        self._done = True
        self._pool.shutdown()
        self._believe(sure=True)

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        self._pool.shutdown(wait=True, cancel_futures=True)  # a part that arrives later would stay, and be paid for
        if self._upload:
            with contextlib.suppress(Exception):  # it is swept later
                self._client.abort_multipart_upload(**self._where, UploadId=self._upload)

    def _send(self) -> None:
        if not self._upload:
            self._begin()
        self._number += 1
        body, self._buffer = self._buffer, bytearray()
        self._sent += len(body)
        _, at_a_time = part_of(self._number)
        while self._flying and len(self._flying) >= max(1, at_a_time):
            self._land()
        self._flying.append((self._number, self._pool.submit(self._upload_part, self._number, body)))
        del body
        if at_a_time == 0:
            self._land()

    def _begin(self) -> None:
        try:
            answer = self._client.create_multipart_upload(
                **self._where, ContentType="application/octet-stream", Metadata={UPLOAD_MARK: self._mark}
            )
        except (ClientError, BotoCoreError, OSError) as error:
            raise told(error) from None
        self._upload = str(answer["UploadId"])
        self._upload_begun(self._upload)

    def _upload_part(self, number: int, body: bytearray) -> str:
        answer = self._client.upload_part(
            **self._where, UploadId=self._upload, PartNumber=number, Body=body, ContentMD5=_md5(body)
        )
        return str(answer["ETag"])

    def _land(self) -> None:
        number, future = self._flying.popleft()
        try:
            etag = future.result()
        except (ClientError, BotoCoreError, OSError) as error:
            raise told(error) from None
        self._parts.append({"PartNumber": number, "ETag": etag})

    def _put(self) -> None:
        self._sent = len(self._buffer)
        try:
            self._client.put_object(
                **self._where, Body=self._buffer, ContentMD5=_md5(self._buffer), Metadata={UPLOAD_MARK: self._mark},
                ContentType="application/octet-stream",
            )  # fmt: skip
        except (ClientError, BotoCoreError, OSError) as error:
            self._settle(error)

    def _complete(self) -> None:
        try:
            self._client.complete_multipart_upload(
                **self._where, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
            )
        except (ClientError, BotoCoreError, OSError) as error:
            self._settle(error)

    def _settle(self, error: Exception) -> None:
        """In doubt: an answer that got lost, or a repeated request that found its work done. The object itself knows."""
        if isinstance(error, ClientError) and status_of(error) in {401, 403}:
            raise told(error) from None
        try:
            believed = self._believe(sure=False)
        except StorageError:
            believed = False
        if not believed:
            raise told(error) from None

    def _believe(self, *, sure: bool) -> bool:
        """HEAD: the whole of what was sent is there, and it was sent by this writer. `sure`: it must be."""
        found = self._seen(_NOT_YET if sure else ())
        marks = {str(name).lower(): value for name, value in found.get("Metadata", {}).items()}
        size = int(found["ContentLength"])
        if size == self._sent and marks.get(UPLOAD_MARK) == self._mark:
            return True
        if sure:
            raise StorageError("storage_failed", f"{self._sent} bytes were sent, but the storage has something else.")
        return False

    def _seen(self, waits: Sequence[float]) -> dict[str, Any]:
        """HEAD. What was said to be done may not be seen everywhere yet: some storages tell of a new object a little later."""
        for wait in (*waits, None):
            try:
                return dict(self._client.head_object(**self._where))
            except (ClientError, BotoCoreError, OSError) as error:
                if wait is None or not (isinstance(error, ClientError) and status_of(error) == 404):
                    raise told(error) from None
            time.sleep(wait)
        raise AssertionError("unreachable")


def _md5(body: bytearray) -> str:
    """The storage compares it with what arrived."""
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
