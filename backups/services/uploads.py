"""A file that somebody took elsewhere comes in: streamed, unpacked on the way, sealed as every backup is, and nothing of it
stays that did not come whole. What becomes of it then is `operations.importing`."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from typing import Any, cast

import structlog
from django.conf import settings
from django.db import transaction

from accounts.models import Organization
from accounts.permissions import Capability, Principal, require
from backups.archive import Sealer
from backups.models import Backup, BackupStatus, BackupTrigger, StorageTarget
from backups.operations import importing, keys, limits, storages, taking
from backups.services.backups import LABEL_MAX, _audit, _clean, storage_named, why_not_now
from backups.services.downloads import StorageUnavailable
from backups.storage.base import Storage, StorageError, Writer
from backups.unpacking import Unpacker
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Conflict, NotFound, Problem
from projects import registry
from projects.engines.foreign import HEAD_BYTES, ForeignRefused
from projects.models import Project
from projects.operations import wiring

log = structlog.get_logger(__name__)
PIECE_BYTES = 1 << 20
NOTE_SECONDS = 20.0
DRAIN_BYTES = 64 << 20
GIB = 1 << 30
# Each holds a thread of the web server for as long as its sender takes.
slots = threading.BoundedSemaphore(max(1, settings.NOVASTACK_WEB_THREADS // 4))


class UploadTooLarge(Problem):
    status, code, title = 413, "upload_too_large", "The file is too large"


class UploadOverQuota(Problem):
    status, code, title = 413, "upload_over_quota", "The organization's quota does not hold the file"


class UploadInterrupted(Problem):
    status, code, title = 400, "upload_interrupted", "The file did not come whole"


class UploadNotSupported(Conflict):
    code, title = "upload_not_supported", "This database takes no uploads"


class LengthRequired(Problem):
    status, code, title = 411, "length_required", "Say how long the file is"


class TooManyUploads(Problem):
    status, code, title = 429, "throttled", "Too many uploads at a time"


class UploadRefused(Problem):
    """Not a dump that can be taken; `code` says why (`projects.engines.foreign.ForeignRefused`)."""

    status, code, title = 400, "upload_not_recognised", "This file can't be taken"

    def __init__(self, refused: ForeignRefused) -> None:
        super().__init__(refused.detail, code=refused.code)


class Intake:
    """One file on its way. `feed` what comes, then `finish` or `discard`; what raises has discarded it. Used by one thread.

    Begins with the rights and quotas looked at, and a row that names the object before anything is sent (rule 29). Raises
    `PermissionDenied`, `ActionNotAllowed`, `UploadNotSupported`, `QuotaExceeded`, `UploadTooLarge`, `UploadOverQuota`,
    `TooManyUploads`, `StorageUnavailable`, and what `taking.backup_row` raises.
    """

    def __init__(
        self, principal: Principal, project: Project, *, filename: str = "", label: str = "", size_bytes: int | None = None,
        storage: StorageTarget | str | None = None,
    ) -> None:  # fmt: skip
        """`size_bytes`: as announced; None: it is seen as it comes."""
        require(principal, project.organization_id, Capability.PROJECT_ACT)
        self._principal, self._project, self._announced = principal, project, size_bytes
        self._engine = registry.engine(project.engine)
        if not self._engine.upload_formats:
            raise UploadNotSupported(f"Dumps of {self._engine.title} can't be uploaded yet.")
        filename = _name(filename)
        label = _clean(label, "label", LABEL_MAX) or filename[:LABEL_MAX]
        target = storage_named(project, storage) if isinstance(storage, str) else storage
        if target is not None and target.organization_id not in {None, project.organization_id}:
            raise NotFound.field("storage", "There is no such storage here.")
        self._fits(size_bytes or 0)
        if not slots.acquire(blocking=False):
            raise TooManyUploads("Other files are being uploaded; try again in a minute.", retry_after_seconds=60)
        self._open = True
        self._row: Backup | None = None
        self._sealer: Sealer | None = None
        self._writer: Writer | None = None
        try:
            self._begin(filename, label, target)
        except BaseException as error:
            self.discard()
            if (told := _told(error)) is not error:
                raise told from error
            raise

    def _begin(self, filename: str, label: str, target: StorageTarget | None) -> None:
        with transaction.atomic():
            project = Project.objects.get(pk=self._project.pk)
            if reason := _why_not(project):
                raise ActionNotAllowed(reason)
            row = taking.backup_row(
                project, trigger=BackupTrigger.UPLOAD, label=label, storage=target,
                created_by_label=self._principal.label,
            )  # fmt: skip
            self._room = limits.room_bytes(Organization.objects.get(pk=project.organization_id))
            key = f"{wiring.install_id()}/{row.organization_id}/{row.pk}/source"
            row.trusted, row.upload = False, {"filename": filename, "key": key}
            row.save(update_fields=["trusted", "upload", "updated_at"])
        self._row = row
        self._fits(self._announced or 0)
        self._storage: Storage = storages.storage_of(row.storage)
        if not storages.write_allowed(row.storage, self._storage):
            raise taking.BackupStorageReadOnly(f"“{row.storage.name}” is read-only: {row.storage.read_only_reason}")
        free = self._storage.free_bytes()
        if free is not None and free < (self._announced or 0):
            raise StorageError("storage_full", f"The storage has {free / GIB:.2f} GiB left.")
        self._writer = self._storage.writer(key, upload_begun=self._begun)
        recipients = keys.recipients_of(row.organization_id) if row.encrypted else None
        self._sealer = Sealer(_Bounded(self._writer, self._room), recipients, threads=1)
        self._unpacker, self._digest = Unpacker(), hashlib.sha256()
        self._head, self._format = b"", ""
        self._came = self._unpacked = 0
        self._noted = time.monotonic()

    def _begun(self, upload_id: str) -> None:
        assert self._row is not None  # noqa: S101 - made before
        self._row.upload = {**self._row.upload, "upload_id": upload_id}
        Backup.objects.filter(pk=self._row.pk).update(upload=self._row.upload, updated_at=now())

    def _fits(self, size_bytes: int) -> None:
        most = settings.NOVASTACK_UPLOAD_BYTES
        if size_bytes > most:
            raise UploadTooLarge(f"A file may have {most / GIB:g} GiB, this one has {size_bytes / GIB:.2f} GiB.")

    # --- pieces -----------------------------------------------------------------------------------------------------------
    def feed(self, piece: bytes) -> None:
        try:
            self._came += len(piece)
            self._fits(self._came)
            self._digest.update(piece)
            for part in self._unpacker.feed(piece):
                self._take(part)
            self._note()
        except BaseException as error:
            self.discard()
            if (told := _told(error)) is not error:
                raise told from error
            raise

    def _take(self, part: bytes) -> None:
        self._unpacked += len(part)
        most = settings.NOVASTACK_UPLOAD_UNPACKED_BYTES
        if self._unpacked > most:
            raise UploadTooLarge(f"Unpacked it may have {most / GIB:g} GiB, and it has more.")
        if not self._format:
            self._head += part
            if len(self._head) < HEAD_BYTES:
                return
            part = self._recognised()
        cast("Sealer", self._sealer).feed(part)

    def _recognised(self) -> bytes:
        self._format = self._engine.recognise(self._head[:HEAD_BYTES], self._project.version)
        head, self._head = self._head, b""
        return head

    def _note(self) -> None:
        """The row says that it is still coming; when somebody removed it, it ends."""
        if time.monotonic() - self._noted < NOTE_SECONDS:
            return
        self._noted = time.monotonic()
        found = Backup.objects.filter(pk=cast("Backup", self._row).pk, status=BackupStatus.QUEUED)
        if not found.update(progress_bytes=self._came, updated_at=now()):
            raise UploadInterrupted("Somebody removed it meanwhile.")

    # --- ends -------------------------------------------------------------------------------------------------------------
    def receive(self) -> str:
        """All came: it is whole and stored. Returns its SHA-256 as it was sent. Raises as `feed` does."""
        try:
            if self._announced is not None and self._came != self._announced:
                raise UploadInterrupted(f"{self._came} of {self._announced} bytes came. Nothing of it was kept.")
            self._noted = 0.0
            self._note()
            for part in self._unpacker.finish():
                self._take(part)
            if not self._format:
                cast("Sealer", self._sealer).feed(self._recognised())
            sealed = cast("Sealer", self._sealer).finish()
            cast("Writer", self._writer).commit()
            self._writer = None
            row = cast("Backup", self._row)
            row.upload = {
                **row.upload, "format": self._format, "packing": self._unpacker.packing, "bytes": self._came,
                "unpacked_bytes": self._unpacked, "sha256": self._digest.hexdigest(), "stored_sha256": sealed.sha256,
            }  # fmt: skip
            row.size_bytes, row.progress_bytes = sealed.size_bytes, self._came
            alive = Backup.objects.filter(pk=row.pk, status=BackupStatus.QUEUED, operation_id=None)
            if not alive.update(
                upload=row.upload, size_bytes=row.size_bytes, progress_bytes=self._came, updated_at=now()
            ):
                raise UploadInterrupted("Somebody removed it meanwhile.")
            return self._digest.hexdigest()
        except BaseException as error:
            self.discard()
            if (told := _told(error)) is not error:
                raise told from error
            raise

    def begin(self, *, label: str = "") -> Backup:
        """Have it imported, under another label if there is one. In a transaction, after `receive`; when that one fails,
        `discard`."""
        row = Backup.objects.select_for_update(of=("self",), no_key=True).get(pk=cast("Backup", self._row).pk)
        project = Project.objects.get(pk=self._project.pk)
        if reason := _why_not(project):
            raise ActionNotAllowed(reason)
        if label:
            row.label = _clean(label, "label", LABEL_MAX)
            row.save(update_fields=["label", "updated_at"])
        importing.import_begin(
            row, project, verify=taking.verifies(row), created_by=self._principal.user,
            created_by_label=self._principal.label,
        )  # fmt: skip
        _audit(
            self._principal, "backup.uploaded", row, filename=row.upload["filename"], sha256=row.upload["sha256"],
            bytes=row.upload["bytes"],
        )  # fmt: skip
        return row

    def close(self) -> None:
        """It is the importing operation's now."""
        if self._open:
            self._open = False
            slots.release()

    def discard(self) -> None:
        """Nothing of it stays, as far as the storage can be reached; the rest is swept. Never raises."""
        if not self._open:
            return
        try:
            if self._sealer is not None:
                self._sealer.abort()
            if self._writer is not None:
                self._writer.abort()
            if self._row is not None:
                importing.forget(self._row)
        except Exception as error:
            log.warning("what came of an upload could not be removed", error=type(error).__name__)
        finally:
            self.close()


class _Bounded:
    """A writer that takes no more than the organization may store."""

    def __init__(self, writer: Writer, room: int) -> None:
        self._writer, self._room, self._taken = writer, room, 0

    def write(self, piece: bytes) -> int:
        self._taken += len(piece)
        if self._taken > self._room:
            raise UploadOverQuota(
                f"The organization's quota for the storage of backups has {self._room / GIB:.2f} GiB left."
            )
        return self._writer.write(piece)


def _why_not(project: Project) -> str:
    """A stopped database is no obstacle: it is not touched."""
    reason = why_not_now(project)
    return "" if reason.startswith("The database is stopped") else reason


def _name(filename: str) -> str:
    """Of a file as a client told it: its last part, for people only."""
    last = filename.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:200]


def _told(error: BaseException) -> BaseException:
    if isinstance(error, ForeignRefused):
        return UploadRefused(error)
    if isinstance(error, StorageError):
        return StorageUnavailable(error.detail)
    return error


def upload_receive(intake: Intake, source: Any) -> str:
    """Take all of a readable stream. Returns its SHA-256. Raises as `Intake` does, and `UploadInterrupted`."""
    while True:
        try:
            piece = source.read(PIECE_BYTES)
        except Exception as error:  # the sender has gone, in whatever way its server tells
            intake.discard()
            raise UploadInterrupted("The file did not come whole. Nothing of it was kept.") from error
        if not piece:
            return intake.receive()
        intake.feed(piece)


def drain(source: Any) -> None:
    """Read what a refused sender still sends, some of it: who is cut off in the middle does not see the answer."""
    left = DRAIN_BYTES
    with contextlib.suppress(Exception):
        while left > 0 and (piece := source.read(PIECE_BYTES)):
            left -= len(piece)
