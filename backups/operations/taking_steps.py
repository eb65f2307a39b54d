"""The steps of taking a backup. Each may be run again at any point: an attempt that was cut short is thrown away whole."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from typing import Any

import structlog
from django.conf import settings
from django.db.models import QuerySet

from accounts.models import Organization
from backups import manifest as manifests
from backups.manifest import Manifest
from backups.models import USABLE, Backup, BackupStatus, BackupTrigger
from backups.operations import keys, large_rows, limits, storages, streaming
from backups.operations.restoring_data import BackupCorrupt, read_manifest, storage_errors
from backups.storage.base import Storage, StorageError, Writer
from novastack.common.clock import now
from projects import domain
from projects.operations import copying, steps, wiring
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context
from projects.operations.move_sides import admitted, ensure_up, side_of

log = structlog.get_logger(__name__)
GUARD_SECONDS = 2.0
MIB = 1 << 20
BEGUN_AGAIN = 5
_EARLY_SECONDS = 10.0
_READ_BYTES = 1 << 20
_DOUBTED_BYTES = 8 << 30  # at 10 MB/s a quarter of an hour, of the half that the step may take


class Taking:
    """Of the backup whose id is the operation's `params[param]`."""

    def __init__(self, param: str) -> None:
        self._param = param

    def _backup(self, ctx: Context) -> Backup | None:
        """None: this operation takes none, or it is stored already."""
        wanted = ctx.operation.params.get(self._param)
        backup = Backup.objects.select_related("storage").filter(pk=wanted).first() if wanted else None
        if backup is None:
            ctx.explain("None is taken")
            return None
        if backup.status in USABLE:
            ctx.explain("It is stored")
            return None
        return backup

    def _ensure_up(self, ctx: Context) -> None:
        ensure_up(ctx)

    # --- forward --------------------------------------------------------------------------------------------------------
    def prepare(self, ctx: Context) -> None:
        """The server answers, the storage may be written to, and what can't be in the backup is put down."""
        backup = self._backup(ctx)
        if backup is None:
            return
        steps.writes_allowed(ctx)
        if domain.Capability.COPY not in ctx.engine.capabilities:
            raise StepFailed("backup_not_supported", f"{ctx.engine.title} can't be backed up yet.", retryable=False)
        self._ensure_up(ctx)
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            stats = admin.stats(ctx.names.database)
            obstacles = admin.obstacles(ctx.names)
            renaming = admin.renaming_obstacles(ctx.names)
        storage = writable(backup)
        _check_room(backup, storage)
        _save(
            ctx, backup, status=BackupStatus.DUMPING, started_at=backup.started_at or now(), error=None,
            operation_id=ctx.operation.pk, database_bytes=stats.size_bytes, server_version=stats.version[:64],
            notes=[
                *(f"Not in the backup: {obstacle}." for obstacle in obstacles),
                *(f"Restored into another project it may fail: {obstacle}."[:300] for obstacle in renaming),
            ],
        )  # fmt: skip
        ctx.explain(f"{stats.size_bytes / MIB:.0f} MiB to {backup.storage.name}")
        log.info("backup begins", **told_as(backup), storage=backup.storage.name, database_bytes=stats.size_bytes)

    def dump(self, ctx: Context) -> None:
        """A dump that met a change of tables as it began is begun again at once, some times: nothing was copied yet, and a
        database in which tables come and go all the time would never be quiet for it."""
        backup = self._backup(ctx)
        if backup is None:
            return
        self._ensure_up(ctx)
        for left in reversed(range(BEGUN_AGAIN + 1)):
            lasted: list[float] = []
            try:
                self._attempt(ctx, backup, lasted)
                break
            except (domain.SourceChanged, StepFailed) as problem:
                early = all(seconds < _EARLY_SECONDS for seconds in lasted)
                if problem.code != domain.SourceChanged.code or not left or not early:
                    raise
                log.info("the source changed as its dump began; it begins again", backup=str(backup.pk))

    def _attempt(self, ctx: Context, backup: Backup, lasted: list[float]) -> None:
        """Under a key of its own. What was left of the one before is removed first. When it fails, `lasted` gets the seconds
        since its moment, if it came to one: what comes before and after says nothing about the database."""
        ctx.guard()
        ctx.runtime.remove_tool(_tool(backup))
        storage = writable(backup)
        backup.notes = [*backup.notes, *throw_away(backup, storage)]
        key = f"{wiring.install_id()}/{backup.organization_id}/{backup.pk}/{backup.attempt + 1}"
        _save(
            ctx, backup, attempt=backup.attempt + 1, object_key=key, upload_id="", progress_bytes=0, notes=backup.notes
        )
        recipients = keys.recipients_of(backup.organization_id) if backup.storage.encrypt else None
        login = admitted(ctx, ctx.names)
        side = side_of(ctx, login)
        rate = settings.NOVASTACK_BACKUP_RATE_BYTES
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            around = admin.around(ctx.names)
        with storage_errors(), contextlib.ExitStack() as held:
            writer = storage.writer(key, upload_begun=lambda upload: _save(ctx, backup, upload_id=upload))
            began = None
            try:
                # With a rate limit it is the dump's own bytes that are counted, since they are what the source has to do.
                moment = held.enter_context(
                    ctx.engine.moment(ctx.server.control_endpoint, side.place, login, compress=not rate)
                )
                began = time.monotonic()
                ctx.guard()
                taken = streaming.take(
                    side, moment, writer, recipients, name=_tool(backup), pulse=_watched(ctx, backup),
                    limits=streaming.Limits(rate, settings.NOVASTACK_BACKUP_NICE, _most_bytes(backup)),
                )  # fmt: skip
                held.close()  # nothing is held of the database while the storage makes its answer
                ctx.guard()
                _commit(storage, writer, key, taken.sealed.size_bytes, taken.sealed.sha256, ctx.pulse)
            except BaseException:
                if began is not None:
                    lasted.append(time.monotonic() - began)
                # Nor while it throws away what was sent. What comes of that can't hide what happened.
                with contextlib.suppress(Exception):
                    held.close()
                writer.abort()
                raise
        notes = [*backup.notes, *(note for note in (*moment.notes, *taken.warnings) if note not in backup.notes)]
        if large := large_rows.note(ctx.engine, taken.row_bytes, ctx.server.memory_bytes):
            notes.append(large)
        backup.notes = notes
        manifest = _manifest(ctx, backup, taken, side, recipients, around, (taken.at.isoformat(), moment.tool))
        _save(
            ctx, backup, upload_id="", progress_bytes=max(backup.progress_bytes, taken.sealed.dump_bytes),
            size_bytes=taken.sealed.size_bytes, dump_bytes=taken.dump_bytes, sha256=taken.sealed.sha256,
            compressed=taken.sealed.compressed, encrypted=taken.sealed.encrypted, key_ids=recipients or [],
            rows=taken.contents.rows, tables=len(taken.contents.tables), manifest=manifest.to_json(), notes=notes,
        )  # fmt: skip
        ctx.record(seconds=round(taken.seconds, 3), waited_seconds=round(taken.waited_seconds, 3))
        self._dismiss(ctx)
        raw = f"{taken.dump_bytes / MIB:.1f} MiB, " if taken.dump_bytes is not None else ""
        ctx.explain(f"{raw}{taken.sealed.size_bytes / MIB:.1f} MiB stored in {taken.seconds:.1f} s")

    def store(self, ctx: Context) -> None:
        """The manifest comes last and is the commit; found there already, it is taken for what it is."""
        backup = self._backup(ctx)
        if backup is None:
            return
        storage = writable(backup)
        with storage_errors():
            stored = storage.head(backup.object_key)
        if stored is None or stored.size_bytes != backup.size_bytes:
            raise StepFailed("object_missing", "What was stored is not there any more.", retryable=False)
        if _is_committed(backup, storage):
            _check_again(ctx, backup, storage)
        else:
            manifest = Manifest.from_json({**backup.manifest, "finished_at": now().isoformat()})
            recipients = list(backup.key_ids) if backup.encrypted else None
            data = manifests.seal(manifest, recipients, keys.signing_key())
            ctx.guard()
            with storage_errors():
                writer = storage.writer(backup.manifest_key)
                try:
                    for first in range(0, len(data), _READ_BYTES):
                        writer.write(data[first : first + _READ_BYTES])
                    _commit(
                        storage, writer, backup.manifest_key, len(data), hashlib.sha256(data).hexdigest(), ctx.pulse
                    )
                except BaseException:
                    writer.abort()
                    raise
        _save(ctx, backup, status=BackupStatus.STORED, finished_at=now(), error=None)
        ctx.explain(f"Signed; {backup.rows or 0} rows of {backup.tables or 0} tables")
        ctx.say(f"The backup is stored at {backup.storage.name}.")
        log.info(
            "backup stored", **told_as(backup), storage=backup.storage.name, size_bytes=backup.size_bytes,
            rows=backup.rows,
        )  # fmt: skip

    # --- back -------------------------------------------------------------------------------------------------------------
    def undo(self, ctx: Context) -> None:
        """It failed: the row says so at once; then what was left is removed, as far as the storage can be reached, and the
        dump tool's login: that is tried again, and named to operators when it fails for good."""
        backup = self._settled(ctx)
        if backup is None or not backup.attempt:  # it never came to a login
            return
        if ctx.server.desired_state == domain.ServerState.RUNNING:
            try:
                ensure_up(ctx)  # it may be what failed: nobody else starts it meanwhile
            except Wait as problem:  # a pool has others who do; the next backup takes the login away
                ctx.say(f"The dump tool's login could not be removed now: {problem}"[:300], level="warning")
                return
        self._dismiss(ctx)

    def give_up(self, ctx: Context) -> None:
        """As `undo`, once: what can't be removed now is said."""
        if self._settled(ctx) is not None:
            try:
                self._dismiss(ctx)
            except (domain.EngineError, StepFailed) as problem:
                ctx.say(f"The dump tool's login could not be removed now: {problem}"[:300], level="warning")

    def _settled(self, ctx: Context) -> Backup | None:
        """Failed, without its tool and what it stored. None: there is none, or it is of use."""
        wanted = ctx.operation.params.get(self._param)
        backup = Backup.objects.select_related("storage").filter(pk=wanted).first() if wanted else None
        if backup is None or backup.status in USABLE:
            return None
        error = ctx.operation.error or {"code": "cancelled", "detail": "Cancelled.", "retryable": False}
        with ctx.fenced():
            mark_failed(backup, error)
        ctx.runtime.remove_tool(_tool(backup))
        try:
            kept = throw_away(backup, storages.storage_of(backup.storage))
        except (StorageError, StepFailed) as problem:
            ctx.say(f"What was stored of it could not be removed now: {problem}"[:300], level="warning")
        else:
            new = [note for note in kept if note not in backup.notes]
            for note in new:
                ctx.say(note, level="warning")
            _save(ctx, backup, upload_id="", size_bytes=None, notes=[*backup.notes, *new])
        return backup

    def _dismiss(self, ctx: Context) -> None:
        ctx.guard()
        with wiring.admin_session(ctx.engine, ctx.server) as admin:
            admin.dismiss_tool(ctx.names, ctx.names.tool)


def told_as(backup: Backup) -> dict[str, str]:
    """What every line of a log says of it."""
    return {"backup": str(backup.pk), "engine": backup.engine, "project": str(backup.project_uuid)}


def mark_failed(backup: Backup, error: dict[str, Any]) -> None:
    """In a transaction of who may say so."""
    backup.status, backup.error, backup.finished_at = BackupStatus.FAILED, error, now()
    backup.save(update_fields=["status", "error", "finished_at", "updated_at"])
    log.warning("backup failed", **told_as(backup), code=error.get("code"))


def _row(backup: Backup) -> QuerySet[Backup]:
    return Backup.objects.filter(pk=backup.pk)


def _save(ctx: Context, backup: Backup, **values: Any) -> None:
    with ctx.fenced():
        _row(backup).update(**values, updated_at=now())
    for name, value in values.items():
        setattr(backup, name, value)


def _tool(backup: Backup) -> str:
    return copying.tool_names(str(backup.operation_id or backup.pk))[0]


def writable(backup: Backup) -> Storage:
    """To be written to now, or it is said why not."""
    with storage_errors():
        storage = storages.storage_of(backup.storage)
        if not storages.write_allowed(backup.storage, storage):
            raise StepFailed(
                "storage_read_only", f"Nothing is written there: {backup.storage.read_only_reason}", retryable=False
            )
    return storage


def _check_room(backup: Backup, storage: Storage) -> None:
    """Where the storage can tell: room for one as large as the last one of the project's own data, or as what was uploaded."""
    if backup.trigger == BackupTrigger.UPLOAD:
        wanted, what = int(backup.upload.get("bytes") or 0), "what was uploaded"
    else:
        rows = Backup.objects.filter(project_uuid=backup.project_uuid, status__in=USABLE)
        before = rows.exclude(trigger=BackupTrigger.UPLOAD).order_by("-created_at").first()
        wanted, what = (before.size_bytes or 0) if before else 0, "the last backup"
    with storage_errors():
        free = storage.free_bytes()
    if free is not None and free < wanted:
        raise StepFailed("storage_full", f"{free / MIB:.0f} MiB are free, {what} has {wanted / MIB:.0f} MiB.")


def _most_bytes(backup: Backup) -> int | None:
    if backup.trigger not in limits.COUNTED:
        return None
    return limits.room_bytes(Organization.objects.get(pk=backup.organization_id))


def _watched(ctx: Context, backup: Backup) -> Callable[[int], None]:
    """Promises are looked at often, the rows every few seconds."""
    asked = [time.monotonic()]

    def pulse(moved: int) -> None:
        ctx.pulse()
        if time.monotonic() - asked[0] > GUARD_SECONDS:
            ctx.guard()
            _save(ctx, backup, progress_bytes=moved)
            asked[0] = time.monotonic()

    return pulse


def throw_away(backup: Backup, storage: Storage) -> list[str]:
    """All that an attempt before this one left. What a bucket with object lock keeps of it is no backup to us, and goes
    with the backup's row: returned are notes on it."""
    if not backup.object_key:
        return []
    kept = []
    with storage_errors():
        if backup.upload_id:
            storage.abort_upload(backup.object_key, backup.upload_id)
        for key in (backup.manifest_key, backup.object_key):
            try:
                storage.delete(key)
            except StorageError as error:
                if error.code != "object_locked":
                    raise
                log.warning("a part of a backup that failed is locked in its storage", key=key)
                kept.append(f"Attempt {backup.attempt} failed, and what it left can't be removed yet. {error.detail}")
    return list(dict.fromkeys(kept))


def _commit(
    storage: Storage, writer: Writer, key: str, size_bytes: int, sha256: str, pulse: Callable[[], None]
) -> None:
    """Have the object under its name. An answer that leaves it open is settled by looking (rule 29); what is larger than
    can be read here in time is taken anew."""
    try:
        writer.commit()
    except StorageError:
        if size_bytes > _DOUBTED_BYTES or not _is_there(storage, key, size_bytes, sha256, pulse):
            raise
        log.warning("a doubtful commit was settled by reading the object", key=key)


def _check_again(ctx: Context, backup: Backup, storage: Storage) -> None:
    """A worker before this one did not come to say that it was done: the dump is not believed by its size alone. What is
    larger than can be read here in time is read by its proof."""
    if (backup.size_bytes or 0) > _DOUBTED_BYTES:
        return
    if not _is_there(storage, backup.object_key, backup.size_bytes or 0, backup.sha256, ctx.pulse):
        raise StepFailed("object_missing", "What is stored is not what was written.", retryable=False)


def _is_there(storage: Storage, key: str, size_bytes: int, sha256: str, pulse: Callable[[], None]) -> bool:
    try:
        stored = storage.head(key)
        if stored is None or stored.size_bytes != size_bytes:
            return False
        digest = hashlib.sha256()
        with contextlib.closing(storage.open(key)) as source:
            while piece := source.read(_READ_BYTES):
                digest.update(piece)
                pulse()
    except StorageError:
        return False
    return digest.hexdigest() == sha256


def _is_committed(backup: Backup, storage: Storage) -> bool:
    """A worker before this one wrote the manifest, and did not come to say so."""
    with storage_errors():
        if storage.head(backup.manifest_key) is None:
            return False
    try:
        read_manifest(backup, storage)
    except BackupCorrupt:
        return False  # of this very attempt, and not readable: it is written again
    return True


def _manifest(
    ctx: Context, backup: Backup, taken: streaming.Taken, side: copying.Side, recipients: list[str] | None,
    around: dict[str, Any], told: tuple[str, str],
) -> Manifest:  # fmt: skip
    names, sealed = ctx.names, taken.sealed
    return Manifest(
        install=wiring.install_id(), organization=str(backup.organization_id),
        project={"id": str(backup.project_uuid), "name": backup.project_name, "slug": backup.project_slug},
        backup=str(backup.pk), key=backup.object_key, engine=backup.engine, version=backup.version,
        server_version=backup.server_version, image=side.image, tool=told[1], taken_at=told[0],
        finished_at=now().isoformat(),
        dump={
            "format": ctx.engine.dump_format, "bytes": taken.dump_bytes,
            **({"row_bytes": taken.row_bytes} if taken.row_bytes else {}),
        },
        stored={
            "bytes": sealed.size_bytes, "sha256": sealed.sha256, "compressed": sealed.compressed,
            "encrypted": sealed.encrypted, "recipients": recipients or [],
        },
        database={"name": names.database, "bytes": backup.database_bytes},
        names={
            "database": names.database, "owner": names.owner, "group": names.group, "login": names.login,
            "control": names.control, "connection_limit": str(names.connection_limit),
        },
        contents=taken.contents, around=around, notes=tuple(backup.notes), trigger=str(backup.trigger),
    )  # fmt: skip
