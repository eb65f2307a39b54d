"""The steps of a proof: a throw-away server, the restore, the comparison, the verdict (`proving` says what they are for)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings

from backups.models import MISSING, Backup, BackupPolicy, BackupStatus, BackupTrigger, Proof, ProofKind, ProofState
from backups.operations import asking, comparing, heartbeats, restoring_data, retaining, scratch, stalls, storages
from backups.operations.large_rows import end_of, row_bytes_of, seen_before
from backups.operations.restoring_data import BackupCorrupt
from backups.operations.scratch import Scratch
from backups.operations.stalls import LIVE
from backups.operations.taking_steps import told_as
from novastack.common.clock import now
from projects import domain
from projects.models import DatabaseServer, Operation, OperationStep, Project, Region, ServerKind
from projects.operations import locks
from projects.operations.base import StepFailed, Wait
from projects.operations.context import Context

log = structlog.get_logger(__name__)
VERIFY, DRILL = "verify", "drill"
KINDS = (VERIFY, DRILL)
PROVABLE = (BackupStatus.STORED, BackupStatus.VERIFIED, BackupStatus.CORRUPT)
DIFFERENCES_KEPT = 20
GUARD_SECONDS = 2.0
SIZE_EVERY_SECONDS = 10.0
SIZE_EVERY_BYTES = 256 << 20  # of the dump
SILENT_MOST = 30  # looks at its size that a busy server leaves unanswered
TURN_SECONDS = 10.0
MANUAL_PATIENCE_SECONDS = 60.0
REVERIFY_DAYS = 30  # where no policy says anything
_SERVER_GONE = {"target_lost", "server_not_ready"}


def _backup(ctx: Context) -> Backup:
    return Backup.objects.select_related("storage").get(pk=ctx.operation.params["backup"])


def _proof(operation: Operation) -> Proof:
    return Proof.objects.select_related("drill").get(pk=operation.params["proof"])


def _seconds(ctx: Context) -> float:
    """What the steps took so far that a restore would take as well: server, restore, comparison."""
    rows = OperationStep.objects.filter(operation=ctx.operation, name__in=[scratch.STEP, "restore", "compare"])
    return sum(float(row.data.get("seconds", 0)) for row in rows)


def claim(ctx: Context) -> None:
    """Backups of the region go first, for so long; then proofs have their turns. From here on it says “verifying”."""
    backup = _backup(ctx)
    if ctx.operation.server_uuid is None:
        region = scratch.region_for(backup)
        _let_backups_go_first(ctx, region)
        take_turn(ctx, backup, region)
    with ctx.fenced():
        Proof.objects.filter(pk=ctx.operation.params["proof"]).update(
            state=ProofState.RUNNING, started_at=now(), updated_at=now()
        )
        # A corrupt one stays so until it is seen to be whole: nobody restores it, or counts on it, meanwhile.
        whole = Backup.objects.filter(pk=backup.pk, status__in=[BackupStatus.STORED, BackupStatus.VERIFIED])
        whole.update(status=BackupStatus.VERIFYING, updated_at=now())


def _let_backups_go_first(ctx: Context, region: Region) -> None:
    by_hand = ctx.operation.params.get("proof_kind") == ProofKind.MANUAL
    patience = min(MANUAL_PATIENCE_SECONDS, settings.NOVASTACK_VERIFY_PATIENCE_SECONDS) if by_hand else (
        settings.NOVASTACK_VERIFY_PATIENCE_SECONDS
    )  # fmt: skip
    if (now() - ctx.operation.created_at).total_seconds() > patience:
        return
    busy = Backup.objects.filter(
        status__in=[BackupStatus.QUEUED, BackupStatus.DUMPING],
        project_uuid__in=Project.objects.filter(region=region).values("pk"),
    ).exclude(trigger=BackupTrigger.UPLOAD)  # they burden nobody's database, and come as slowly as they come
    if busy.exists():
        raise Wait(f"Backups in {region.name} go first.", seconds=TURN_SECONDS)


def take_turn(ctx: Context, backup: Backup, region: Region) -> None:
    """A place among the proofs that run in the region at a time, taken with the rows of its server."""
    with ctx.fenced():
        locks.lock_subject(locks.subject_of("proofs", region.pk))
        mine = DatabaseServer.objects.filter(kind=ServerKind.SCRATCH, region=region).values("pk")
        at_work = Operation.objects.live().filter(kind__in=KINDS, server_uuid__in=mine).exclude(pk=ctx.operation.pk)
        if at_work.count() < max(1, settings.NOVASTACK_VERIFY_PARALLEL):
            scratch.plan(
                ctx, region=region, engine=backup.engine, version=backup.version, row_bytes=row_bytes_of(backup)
            )
            return
    raise Wait(f"Another backup is being verified in {region.name}.", seconds=TURN_SECONDS)


def judged(run: Callable[[Context], None]) -> Callable[[Context], None]:
    """What is corrupt is so at once, whatever becomes of the clean-up."""

    def step(ctx: Context) -> None:
        try:
            run(ctx)
        except BackupCorrupt as verdict:
            told = {"code": verdict.code, "detail": verdict.detail[:500], "retryable": False}
            with ctx.fenced():
                proof = Proof.objects.filter(pk=ctx.operation.params["proof"], state__in=LIVE)
                proof.update(state=ProofState.FAILED, error=told, finished_at=now(), updated_at=now())
                put_corrupt(ctx.operation, told)
                stalls.clear(_proof(ctx.operation).drill_id)
            log.error("backup corrupt", **told_as(_backup(ctx)), code=verdict.code)
            raise

    return step


def put_corrupt(operation: Operation, told: dict[str, Any]) -> None:
    """In the transaction of who may say so."""
    mine = Backup.objects.filter(pk=operation.params["backup"], status__in=[BackupStatus.VERIFYING, *PROVABLE])
    mine.update(status=BackupStatus.CORRUPT, error=told, verify_error=None, reverify_at=None, updated_at=now())


@judged
def fetch(ctx: Context) -> None:
    """The signed manifest, and whether the object is as long as it should be: before anything is made for it."""
    backup = _backup(ctx)
    with restoring_data.storage_errors():
        storage = storages.storage_of(backup.storage)
    manifest = restoring_data.read_manifest(backup, storage)
    if manifest.contents is None:
        raise StepFailed("nothing_to_compare", "Its manifest does not say what the dump held.", retryable=False)
    restoring_data.check_size(backup, manifest, storage)
    if backup.missing:  # it is there again, however this ends
        with ctx.fenced():
            Backup.objects.filter(MISSING, pk=backup.pk).update(verify_error=None, updated_at=now())
    size = int(manifest.database.get("bytes") or backup.database_bytes or 0)
    side = ctx.seen_as(Scratch)
    scratch.room_for(side.region, size)
    scratch.describe(ctx, names={**manifest.names, "database": manifest.database["name"]}, image=manifest.image)
    ctx.record(database_bytes=size)
    ctx.explain(f"{len(manifest.contents.tables)} tables, {manifest.contents.rows} rows")


def server(ctx: Context) -> None:
    side = ctx.seen_as(Scratch)
    began = time.monotonic()
    scratch.start(side)
    ctx.record(seconds=round(time.monotonic() - began, 3))
    notes = []
    if not scratch.same_image(side):
        notes.append(f"Verified on {side.server.image}: the image that it was taken from is not there any more.")
    if domain.RuntimeFeature.ISOLATED not in side.runtime.features:
        notes.append("The throw-away server could reach the network: this region's runtime can't close it off.")
    with ctx.fenced():
        Proof.objects.filter(pk=ctx.operation.params["proof"]).update(notes=notes)
    ctx.explain(f"{side.server.image or side.engine.title} in {side.region.name}")


@judged
def restore(ctx: Context) -> None:
    """Done again, it begins with an empty database."""
    backup, side = _backup(ctx), ctx.seen_as(Scratch)
    size = int(OperationStep.objects.get(operation=ctx.operation, name="fetch").data["database_bytes"])
    began = time.monotonic()
    with server_lost(side):
        scratch.make_database(side)
        done = restoring_data.restore_into(
            side, side.names, backup, stem=str(ctx.operation.pk), pulse=watched(side, size)
        )
    seconds = time.monotonic() - began
    ctx.record(seconds=round(seconds, 3), bytes=done.dump_bytes)
    with ctx.fenced():
        Proof.objects.filter(pk=ctx.operation.params["proof"]).update(restore_seconds=round(seconds, 3))
    ctx.explain(f"{done.dump_bytes / (1 << 20):.1f} MiB in {seconds:.1f} s")


class server_lost:
    """The scratch server went away under a step: then another one is made, by going back to where it is started."""

    def __init__(self, side: Scratch) -> None:
        self._side = side

    def __enter__(self) -> None:
        self._before = seen_before(self._side)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        code = error.code if isinstance(error, StepFailed) else ""
        gone = isinstance(error, domain.ServerNotReady | domain.StaleHandle) or code in _SERVER_GONE
        if not gone and code not in {"tool_killed", "restore_failed"}:
            return
        seen = end_of(self._side, lost=gone, before=self._before)
        if seen.oom_killed:
            raise StepFailed(
                "capacity_exhausted",
                f"The throw-away server ran out of memory, of which it has {self._side.server.memory_bytes >> 20} MiB"
                " (NOVASTACK_SCRATCH_MEMORY_BYTES).",
                retryable=False,
            ) from error
        if gone or seen.state != domain.ServerState.RUNNING:
            raise StepFailed("server_not_ready", f"The throw-away server went away: {error}"[:400]) from error


def watched(side: Scratch, database_bytes: int, *, follow: bool = False) -> Callable[[int], None]:
    """What long work calls: promises are looked at often, the copy's size now and then, and whenever so much more went into
    it. So a copy is ended at the latest so many bytes of its dump, or seconds of its own work, beyond what it may have.
    `follow`: nobody knows how large it gets; what went into it counts as far as that is more."""
    asked = sized = time.monotonic()
    seen = silent = 0

    def pulse(moved: int = 0) -> None:
        nonlocal asked, sized, seen, silent
        side.pulse()
        if time.monotonic() - asked > GUARD_SECONDS:
            asked = time.monotonic()
            side.guard()
            side.record(moved=moved)
        if time.monotonic() - sized > SIZE_EVERY_SECONDS or moved - seen >= SIZE_EVERY_BYTES:
            seen = moved
            silent = 0 if scratch.check_growth(side, max(database_bytes, moved if follow else 0)) else silent + 1
            sized = time.monotonic()
            if silent >= SILENT_MOST:
                raise StepFailed("server_not_ready", f"The throw-away server did not say its size {silent} times.")

    return pulse


@judged
def compare(ctx: Context) -> None:
    """All of the copy against all that the signed manifest says; and the verdict."""
    backup, side = _backup(ctx), ctx.seen_as(Scratch)
    manifest = restoring_data.read_manifest(backup)
    size = int(OperationStep.objects.get(operation=ctx.operation, name="fetch").data["database_bytes"])
    began = time.monotonic()
    with server_lost(side):
        found, remarks = comparing.compared(side, manifest, stem=str(ctx.operation.pk), pulse=watched(side, size))
    seconds = time.monotonic() - began
    ctx.record(seconds=round(seconds, 3))
    assert manifest.contents is not None  # noqa: S101 - `fetch` has looked
    told: dict[str, Any] = {
        "compare_seconds": round(seconds, 3), "tables": len(manifest.contents.tables), "rows": manifest.contents.rows,
        "differences": [line[:300] for line in found[:DIFFERENCES_KEPT]],
    }  # fmt: skip
    if remarks:
        lines = [line[:300] for line in remarks[:DIFFERENCES_KEPT]]
        if len(remarks) > DIFFERENCES_KEPT:
            lines.append(f"And {len(remarks) - DIFFERENCES_KEPT} more remarks of these kinds.")
        told["notes"] = list(dict.fromkeys([*_proof(ctx.operation).notes, *lines]))  # once, also when done again
    if found:
        with ctx.fenced():
            Proof.objects.filter(pk=ctx.operation.params["proof"]).update(**told)
        for line in found[:DIFFERENCES_KEPT]:
            ctx.say(line, level="error")
        shown = "; ".join(found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise BackupCorrupt("content_differs", f"What it restores is not what was dumped: {shown}{more}.")
    _put_verified(ctx, backup, told)
    log.info("backup verified", **told_as(backup), rows=told["rows"])
    ctx.explain(f"{told['rows']} rows of {told['tables']} tables and {len(manifest.contents.facts)} facts are equal")


def _put_verified(ctx: Context, backup: Backup, told: dict[str, Any]) -> None:
    moment, rto = now(), round(_seconds(ctx), 3)
    drill = ctx.operation.kind == DRILL
    with ctx.fenced():
        proof = Proof.objects.filter(pk=ctx.operation.params["proof"])
        if drill:  # its own word comes with the assertions
            proof.update(**told)
        else:
            proof.update(state=ProofState.PASSED, finished_at=moment, updated_at=moment, **told)
        Backup.objects.filter(pk=backup.pk, status__in=[BackupStatus.VERIFYING, BackupStatus.CORRUPT]).update(
            status=BackupStatus.VERIFIED, verified_at=moment, verify_error=None, error=None, rto_seconds=rto,
            reverify_at=reverify_at(backup.project_uuid), updated_at=moment,
        )  # fmt: skip
        if not drill:
            ctx.commit(rto=rto)


def reverify_at(project_uuid: UUID) -> Any:
    """When a backup that was proven now is to be proven again; None: never by itself."""
    days = BackupPolicy.objects.filter(project_id=project_uuid).values_list("reverify_days", flat=True).first()
    days = REVERIFY_DAYS if days is None else days
    return now() + timedelta(days=days) if days else None


def ask(ctx: Context) -> None:
    """A drill's own questions, as the tenant; and its verdict."""
    side, proof = ctx.seen_as(Scratch), _proof(ctx.operation)
    questions = proof.drill.assertions if proof.drill is not None else []
    with server_lost(side):
        answers = asking.ask(side, questions)
    passed = all(answer["passed"] for answer in answers)
    wrong = [answer["name"] for answer in answers if not answer["passed"]]
    error = None
    if wrong:
        error = {
            "code": "assertion_failed", "detail": f"Not as expected: {', '.join(wrong)}."[:500], "retryable": False,
        }  # fmt: skip
    with ctx.fenced():
        Proof.objects.filter(pk=proof.pk).update(
            state=ProofState.PASSED if passed else ProofState.FAILED, finished_at=now(), updated_at=now(),
            assertions=answers, error=error,
        )  # fmt: skip
        stalls.clear(proof.drill_id)
        ctx.commit()
    ctx.explain(f"{len(answers) - len(wrong)} of {len(answers)} as expected")


def tell(ctx: Context) -> None:
    """Whoever has to know: when half of it is gone (rule 33); who waits for the sign of life of the project's backups."""
    if _backup(ctx).trigger == BackupTrigger.UPLOAD:
        ctx.explain("It says nothing about the project's own data")
        return
    if found := retaining.verified(_backup(ctx)):
        ctx.say(found, level="warning")
    ctx.explain(heartbeats.send(_backup(ctx), ctx.operation.params["proof"]))
