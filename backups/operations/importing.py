"""A dump that somebody uploaded becomes a backup of ours (kind `import_upload`).

It is read here, statement by statement, and run in a throw-away server without a way out, by a login that owns nothing
else. What came about there is dumped as any database is: an archive of our own with a signed manifest, of which nothing is
left that was not seen to work. What was uploaded is thrown away then. So neither a live server nor a restore ever meets it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models import QuerySet

from backups.archive import Opener
from backups.models import USABLE, Backup, BackupStatus, BackupTrigger
from backups.operations import keys, proving, proving_steps, restoring_data, scratch, storages, taking, taking_steps
from backups.operations.queueing import backup_operation_create
from backups.operations.restoring_data import storage_errors
from backups.operations.scratch import Scratch
from backups.storage.base import StorageError
from novastack.common.clock import now
from projects.engines import foreign, framing
from projects.engines.base import Engine
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    LockMode,
    OnGiveUp,
    Operation,
    Project,
    ServerKind,
)
from projects.operations import copying, locks, wiring
from projects.operations.base import (
    DATABASE_RETRY,
    SERVER_RETRY,
    Definition,
    RetryPolicy,
    Step,
    StepFailed,
    Wait,
    register,
)
from projects.operations.context import Context
from projects.operations.move_sides import admitted_to_restore, given_back, side_of

log = structlog.get_logger(__name__)
KIND = "import_upload"
SECONDS = 6 * 3600.0
AT_ONCE = 2  # in a region, and one of an organization: a file may have its server at work for as long as it likes
CUSTOM_GROWS = 5  # a guess: of an archive that is compressed within nobody knows before how much is in it
STALE = timedelta(minutes=10)  # without a byte that somebody noted


def import_begin(
    backup: Backup, project: Project, *, verify: bool, created_by: Any = None, created_by_label: str
) -> Operation:
    """Record the operation that makes a backup of what was uploaded for it, with the project's own names. In a
    transaction."""
    database = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    names = wiring.tenant_names(database)
    operation = backup_operation_create(
        backup=backup, kind=KIND, mode=LockMode.SHARED, created_by=created_by, created_by_label=created_by_label,
        params={
            "verify": verify, "image": database.server.image_digest or database.server.image,
            "names": {
                "database": names.database, "owner": names.owner, "group": names.group, "login": names.login,
                "control": names.control,
            },
        },
    )  # fmt: skip
    backup.operation_id = operation.pk
    backup.save(update_fields=["operation_id", "updated_at"])
    return operation


class _Script:
    """What a stored upload is as a script, in pieces that fit into a frame."""

    def __init__(self, engine: Engine, opener: Opener, kind: str, first: bytes, left: foreign.Left) -> None:
        self._engine, self._opener, self._kind, self._first, self._left = engine, opener, kind, first, left

    def __iter__(self) -> Iterator[bytes]:
        if self._first:
            yield self._first
        try:
            yield from self._read()
        except ValueError as error:  # a storage's are `StorageError`
            log.error("reading an upload broke", kind=self._kind, exc_info=error)
            raise foreign.ForeignRefused("upload_damaged", "The file is damaged: it can't be read.") from error

    def _read(self) -> Iterator[bytes]:
        script, count = self._engine.script_of(self._opener, self._kind, self._left), 0
        for piece in foreign.split(script, framing.PIECE_BYTES):
            count += len(piece)
            if count > settings.NOVASTACK_UPLOAD_UNPACKED_BYTES:  # an archive may be packed within
                raise foreign.ForeignRefused(
                    "upload_too_large",
                    f"Unpacked it has more than {settings.NOVASTACK_UPLOAD_UNPACKED_BYTES / (1 << 30):g} GiB.",
                )
            yield piece

    def close(self) -> None:
        self._opener.close()


class _Importing(taking_steps.Taking):
    """Taking a backup of the throw-away server."""

    def _ensure_up(self, ctx: Context) -> None:
        """It was started by the step before; if it is gone, it is made again, and filled."""


_taking = _Importing("backup")


def _backup(ctx: Context) -> Backup:
    return Backup.objects.select_related("storage").get(pk=ctx.operation.params["backup"])


def _row(ctx: Context) -> QuerySet[Backup]:
    return Backup.objects.filter(pk=ctx.operation.params["backup"]).exclude(status__in=USABLE)


def _bytes(backup: Backup) -> int:
    """What its content may take as a database, as far as a file tells: indexes come to it."""
    return int(backup.upload.get("unpacked_bytes") or 0)


def _guessed_bytes(backup: Backup) -> int:
    grows = CUSTOM_GROWS if backup.upload.get("format") == "custom" else 1
    return min(_bytes(backup) * grows, settings.NOVASTACK_UPLOAD_UNPACKED_BYTES)


def _take_turn(ctx: Context, backup: Backup) -> None:
    """A place for its throw-away server. Proofs have places of their own: nobody's file keeps backups from being verified."""
    region = scratch.region_for(backup)
    with ctx.fenced():
        locks.lock_subject(locks.subject_of("imports", "all"))
        at_work = Operation.objects.live().filter(kind=KIND).exclude(pk=ctx.operation.pk)
        placed = at_work.filter(server_uuid__in=DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).values("pk"))
        here = placed.filter(server_uuid__in=DatabaseServer.objects.filter(region=region).values("pk"))
        if placed.filter(organization_id=backup.organization_id).exists():
            reason = "Another file of the organization is being imported."
        elif here.count() >= AT_ONCE:
            reason = f"Other files are being imported in {region.name}."
        else:
            scratch.plan(ctx, region=region, engine=backup.engine, version=backup.version)
            return
    raise Wait(reason, seconds=proving_steps.TURN_SECONDS)


# --- steps --------------------------------------------------------------------------------------------------------------
def claim(ctx: Context) -> None:
    backup = _backup(ctx)
    if ctx.operation.server_uuid is None:
        _take_turn(ctx, backup)
    scratch.room_for(ctx.seen_as(Scratch).region, _guessed_bytes(backup))
    with ctx.fenced():
        _row(ctx).update(
            status=BackupStatus.DUMPING, started_at=backup.started_at or now(), error=None, updated_at=now()
        )


def server(ctx: Context) -> None:
    side = ctx.seen_as(Scratch)
    scratch.start(side)
    ctx.explain(f"{side.server.image or side.engine.title} in {side.region.name}")


def load(ctx: Context) -> None:
    """Done again, it begins with an empty database."""
    backup, side = _backup(ctx), ctx.seen_as(Scratch)
    began, left = time.monotonic(), foreign.Left()
    kind = str(backup.upload["format"])
    with proving_steps.server_lost(side):
        scratch.make_database(side)
        copying.remove_tools(None, side.runtime, str(ctx.operation.pk))
        taker = admitted_to_restore(side, side.names)
        target = side_of(side, taker)
        command, first = side.engine.run_script(target.place, taker)
        script = _Script(side.engine, _opened(backup), kind, first, left)
        try:
            restoring_data.feed(
                side, target, script, name=copying.tool_names(str(ctx.operation.pk))[1],
                pulse=proving_steps.watched(side, _bytes(backup), follow=True), command=command, read_on=False,
            )  # fmt: skip
        except StepFailed as failure:
            raise _told(failure, side.engine, kind, first) from failure
        side.engine.finish_copy(side.server.control_endpoint, taker, side.names)
        given_back(side, side.names)
    notes = [f"Made of an uploaded file{_called(backup)}.", *left.notes()]
    ctx.record(notes=notes, seconds=round(time.monotonic() - began, 3))
    with ctx.fenced():
        _row(ctx).update(size_bytes=None)  # of what was uploaded, which goes: it must not count twice
    ctx.explain(f"{_bytes(backup) / (1 << 20):.1f} MiB of SQL and data")


def _called(backup: Backup) -> str:
    name = str(backup.upload.get("filename") or "")
    return f" ({name})" if name else ""


def _opened(backup: Backup) -> Opener:
    with storage_errors():
        source = storages.storage_of(backup.storage).open(str(backup.upload["key"]))
    identities = keys.identities_of(backup.organization_id) if backup.encrypted else None
    return Opener(source, identities, compressed=True, sha256=str(backup.upload["stored_sha256"]))


def _told(failure: StepFailed, engine: Engine, kind: str, first: bytes) -> StepFailed:
    """What the server said, at the line of the file that it was about. What takes too long would do so again."""
    if failure.code == "deadline_exceeded":
        return StepFailed(failure.code, failure.detail, retryable=False)
    if failure.code != "restore_failed":
        return failure
    detail = engine.place_in_script(str(failure.detail), kind, first.count(b"\n"))
    return StepFailed("upload_statement_failed", detail[:500], retryable=False)


def _seen(run: Callable[[Context], None]) -> Callable[[Context], None]:
    """A step of taking a backup, at the throw-away server."""

    def step(ctx: Context) -> None:
        side = ctx.seen_as(Scratch)
        with proving_steps.server_lost(side):
            run(side)

    return step


def prepare(ctx: Context) -> None:
    _taking.prepare(ctx)
    told = ctx.operation.steps.get(name="load").data.get("notes", [])
    with ctx.fenced():
        backup = _backup(ctx)
        if backup.status not in USABLE:
            _row(ctx).update(notes=[*told, *(note for note in backup.notes if note not in told)], trusted=True)


def store(ctx: Context) -> None:
    """From here on there is a backup, whatever becomes of the rest."""
    _taking.store(ctx)
    ctx.commit()


def clean_up(ctx: Context) -> None:
    scratch.remove(ctx)
    _drop_source(ctx, _backup(ctx))


def _drop_source(ctx: Context, backup: Backup) -> None:
    """What was uploaded: it is not needed any more."""
    key = str(backup.upload.get("key") or "")
    if not key:
        return
    ctx.guard()
    with storage_errors():
        storages.storage_of(backup.storage).delete(key)
    with ctx.fenced():
        Backup.objects.filter(pk=backup.pk).update(upload={**backup.upload, "key": ""}, updated_at=now())


def undo(ctx: Context) -> None:
    """It failed: the row says why at once; then server and what was stored go."""
    backup = Backup.objects.select_related("storage").filter(pk=ctx.operation.params["backup"]).first()
    if backup is not None and backup.status not in USABLE:
        error = ctx.operation.error or {"code": "cancelled", "detail": "Cancelled.", "retryable": False}
        with ctx.fenced():
            taking_steps.mark_failed(backup, error)
    scratch.remove(ctx)
    if backup is None or backup.status in USABLE:
        return
    try:
        taking_steps.throw_away(backup, storages.storage_of(backup.storage))
        _drop_source(ctx, backup)
    except (StorageError, StepFailed) as problem:
        ctx.say(f"What was stored of it could not be removed now: {problem}"[:300], level="warning")
        return
    with ctx.fenced():
        Backup.objects.filter(pk=backup.pk).update(size_bytes=None, upload_id="", updated_at=now())


def sweep() -> int:
    """Uploads that stopped coming: their web process is gone. Returns how many. The file never got a name; what an S3 storage
    keeps of it is aborted here, or swept with the others after a day."""
    late = now() - STALE
    rows = Backup.objects.filter(
        trigger=BackupTrigger.UPLOAD, status=BackupStatus.QUEUED, operation_id=None, updated_at__lt=late
    ).select_related("storage")
    swept = 0
    for backup in rows[:100]:
        try:
            forget(backup)
        except StorageError as error:
            log.warning("what is left of an upload could not be removed", backup=str(backup.pk), code=error.code)
            continue
        swept += 1
    return swept + _sweep_sources()


def _sweep_sources() -> int:
    """Files that an import has done with, and could not remove when it ended."""
    ended = Backup.objects.filter(trigger=BackupTrigger.UPLOAD, status__in=[BackupStatus.FAILED, *USABLE])
    live = Operation.objects.live().filter(kind=KIND).values_list("pk", flat=True)
    rows = ended.filter(upload__has_key="key").exclude(upload__key="").exclude(operation_id__in=list(live))
    swept = 0
    for backup in rows.select_related("storage")[:100]:
        try:
            storages.storage_of(backup.storage).delete(str(backup.upload["key"]))
        except StorageError as error:
            log.warning("an uploaded file could not be removed", backup=str(backup.pk), code=error.code)
            continue
        Backup.objects.filter(pk=backup.pk).update(upload={**backup.upload, "key": ""})
        swept += 1
    return swept


def forget(backup: Backup) -> None:
    """Of an upload that did not come whole nothing stays. Raises `StorageError`; then the row stays for `sweep`. One that is
    being imported is not touched: whoever asks may not know that it was begun after all."""
    if Backup.objects.filter(pk=backup.pk, operation_id__isnull=False).exists():
        return
    storage, key = storages.storage_of(backup.storage), str(backup.upload.get("key") or "")
    if key:
        if backup.upload.get("upload_id"):
            storage.abort_upload(key, str(backup.upload["upload_id"]))
        storage.delete(key)
        folder = key.rpartition("/")[0] + "/"
        storage.sweep(folder, before=now())
    Backup.objects.filter(pk=backup.pk, operation_id=None, status=BackupStatus.QUEUED).delete()


register(
    Definition(
        kind=KIND, title="Import an upload", on_give_up=OnGiveUp.UNDO, while_running=None, cancellable=True, once=True,
        queue="backups", region=proving.region_of, on_success=taking.stored, on_failure=taking.failed,
        steps=(
            Step("claim", "Wait for its turn", claim, undo, RetryPolicy(attempts=3, delay_seconds=30), 120),
            Step(scratch.STEP, "Start a throw-away server", server, None, SERVER_RETRY, 900),
            Step("load", "Run the file in it", load, None, SERVER_RETRY, SECONDS, scratch.STEP),
            Step("prepare", "Prepare the backup", _seen(prepare), None, DATABASE_RETRY, 360, scratch.STEP),
            Step("dump", "Dump", _seen(_taking.dump), None, DATABASE_RETRY, SECONDS, scratch.STEP),
            Step("store", "Sign and store", store, None, RetryPolicy(5, 5), 1800),
            Step("clean_up", "Remove the throw-away server", clean_up, retry=SERVER_RETRY),
        ),
    )
)  # fmt: skip
