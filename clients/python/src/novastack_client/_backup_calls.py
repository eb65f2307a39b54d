"""Calls about backups: taking, proving, fetching and restoring them, and when they are taken by themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any, BinaryIO, TypeVar

from novastack_client._core import (
    Core,
    Deadline,
    File,
    Flow,
    Request,
    delete,
    get,
    parsed,
    part,
    patch,
    post,
    post_file,
)
from novastack_client._endpoints import Endpoint, listing
from novastack_client._whole import Watched
from novastack_client.backup_models import (
    Backup,
    Proof,
    Restore,
    RestorePreview,
    Schedule,
    StartedBackup,
    Storage,
)
from novastack_client.errors import Conflict, NotFound, OperationFailed
from novastack_client.models import Operation, OperationBrief

_TRIES = 3
M = TypeVar("M", Backup, Restore)
DEADLINE_SECONDS = 3600.0  # dumping and restoring take as long as the data is large


def done(core: Core, operation_id: str, deadline: Deadline | None) -> Flow[Operation]:
    """The operation once it has succeeded. Raises `OperationFailed`, `DeadlineExceeded`."""
    operation = yield from core.operation_end(operation_id, deadline)
    if not operation.succeeded:
        raise OperationFailed.of(operation)
    return operation


def _ended(core: Core, brief: OperationBrief | None, wait: bool, deadline: Deadline | None) -> Flow[bool]:
    """Whether there was something to wait for, and it is done."""
    if not wait or brief is None:
        return False
    yield from done(core, brief.id, deadline)
    return True


def _proof(
    core: Core, backup_id: str, deadline: Deadline | None, *, pk: str = "", states: Collection[str] = ()
) -> Flow[Proof | None]:
    """Of a backup's newest proofs the one with that id, or the first in one of these states."""
    answer = yield from core.exchange(get(f"backups/{part(backup_id)}/proofs/"), deadline)
    body = answer.json()
    rows = body.get("results") if isinstance(body, dict) else None
    for row in rows if isinstance(rows, list) else ():
        proof = parsed(Proof, answer, row)
        if proof.id == pk or proof.state in states:
            return proof
    return None


def _made(core: Core, kind: type[M], request: Request, listed: str, wait: bool, deadline: Deadline | None) -> Flow[M]:
    """What the request began; with `wait` as it stands in that list once its operation is done."""
    made = yield from core.one(kind, request, deadline)
    if (yield from _ended(core, made.operation, wait, deadline)):
        made = yield from core.one(kind, get(f"{listed}/{part(made.id)}/"), deadline)
    return made


def _restore_body(
    target: str, name: str | None, project_id: str | None, version: str | None, region: str | None, plan: str | None,
    placement: str | None, tables: Sequence[str], schemas: Sequence[str], **more: Any,
) -> dict[str, Any]:  # fmt: skip
    only = {kind: list(chosen) for kind, chosen in (("tables", tables), ("schemas", schemas)) if chosen}
    return {
        "target": target, "name": name, "project": project_id, "version": version, "region": region, "plan": plan,
        "placement": placement, **only, **more,
    }  # fmt: skip


def _schedule_body(retention: Mapping[str, int | None] | None, **more: Any) -> dict[str, Any]:
    return {**more, "retention": dict(retention) if retention is not None else None}


class BackupCalls:
    """Part of what both clients can do."""

    # ── backups ──

    @listing(Backup)
    def list_backups(
        core: Core,
        *,
        project_id: str | None = None,
        status: str | None = None,
        trigger: str | None = None,
        pinned: bool | None = None,
        search: str | None = None,
        ordering: str = "created_at",
    ) -> Flow[None]:
        """Backups of the token's organizations, or of one project (also of one that is gone); oldest first."""
        params = {
            "project": project_id, "status": status, "trigger": trigger, "pinned": pinned, "search": search,
            "ordering": ordering,
        }  # fmt: skip
        return (yield from core.pages(Backup, "backups/", params))

    @Endpoint
    def create_backup(
        core: Core,
        project_id: str,
        *,
        label: str | None = None,
        storage: str | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Backup]:
        """Take a backup now. With `wait` it is stored when this returns; it is `verified` only after a proof (`verify_backup`,
        or by itself, as the project's policy says)."""
        request = post(f"projects/{part(project_id)}/backups/", {"label": label, "storage": storage})
        deadline = core.deadline(deadline_seconds if wait else None)
        return (yield from _made(core, Backup, request, "backups", wait, deadline))

    @Endpoint
    def upload_backup(
        core: Core,
        project_id: str,
        source: BinaryIO,
        *,
        filename: str | None = None,
        label: str | None = None,
        storage: str | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Backup]:
        """Send a dump that was taken elsewhere: what a binary file that can be rewound holds, from where it stands on. It
        becomes a backup with the trigger `upload`, to be restored as any other; with `wait` it is stored when this returns. A
        file that is not taken is an `Invalid` whose `code` says why (`upload_truncated`, `upload_too_large` …), one whose
        statements fail an `OperationFailed` (`upload_statement_failed`). What breaks off is sent anew, and kept once.
        `filename`: the file's own name if it has one."""
        deadline = core.deadline(deadline_seconds if wait else None)
        if filename is None:
            named = getattr(source, "name", None)
            filename = PurePath(named).name if isinstance(named, str) else None
        request = post_file(
            f"projects/{part(project_id)}/uploads/", File.rest_of(source, deadline), filename=filename, label=label,
            storage=storage,
        )  # fmt: skip
        return (yield from _made(core, Backup, request, "backups", wait, deadline))

    @Endpoint
    def get_backup(core: Core, backup_id: str) -> Flow[Backup]:
        """One backup."""
        return (yield from core.one(Backup, get(f"backups/{part(backup_id)}/")))

    @Endpoint
    def verify_backup(
        core: Core,
        backup_id: str,
        *,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Proof]:
        """Restore it into a throw-away server and compare it with its manifest. With `wait` the proof has passed when this
        returns (one that is under way already is waited for); `OperationFailed` says what else became of it
        (`content_differs`, `hash_mismatch` …)."""
        deadline = core.deadline(deadline_seconds if wait else None)
        proof: Proof | None = None
        for left in reversed(range(_TRIES)):  # one that ends between the two questions is neither refused nor found
            try:
                proof = yield from core.one(Proof, post(f"backups/{part(backup_id)}/verify/"), deadline)
            except Conflict as error:
                if not wait or error.code not in {"operation_in_progress", "action_not_allowed"}:
                    raise
                proof = yield from _proof(core, backup_id, deadline, states={"queued", "running"})
                if proof is None and not left:
                    raise
            if proof is not None:
                break
        assert proof is not None  # noqa: S101 - the last try returns or raises
        if (yield from _ended(core, proof.operation, wait, deadline)):
            proof = (yield from _proof(core, backup_id, deadline, pk=proof.id)) or proof
        return proof

    @listing(Proof)
    def list_proofs(core: Core, backup_id: str) -> Flow[None]:
        """The proofs of a backup, newest first."""
        return (yield from core.pages(Proof, f"backups/{part(backup_id)}/proofs/", {}))

    @Endpoint
    def pin_backup(core: Core, backup_id: str, *, reason: str | None = None) -> Flow[Backup]:
        """No retention removes it."""
        return (yield from core.one(Backup, post(f"backups/{part(backup_id)}/pin/", {"reason": reason})))

    @Endpoint
    def unpin_backup(core: Core, backup_id: str) -> Flow[Backup]:
        """Retention may remove it when its time has come."""
        return (yield from core.one(Backup, post(f"backups/{part(backup_id)}/unpin/")))

    @Endpoint
    def delete_backup(
        core: Core,
        backup_id: str,
        *,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[None]:
        """Remove it from its storage, and then itself. One that is gone already is no error."""
        deadline = core.deadline(deadline_seconds if wait else None)
        try:
            going = yield from core.one(Backup, delete(f"backups/{part(backup_id)}/"), deadline)
        except NotFound as error:
            if not error.after_lost_answer:
                raise
            return
        yield from _ended(core, going.operation, wait, deadline)

    @Endpoint
    def download_backup(core: Core, backup_id: str, into: BinaryIO, *, as_stored: bool = False) -> Flow[int]:
        """Write the backup into a binary file that can be rewound, and return how many bytes it has: the engine's own archive,
        or with `as_stored` what lies in the storage (zstd in age). What breaks off is begun anew; what returns is whole. Needs
        the scope `connect`; is in the activity."""
        params = {"as": "stored" if as_stored else "decrypted"}
        request = Request("GET", f"backups/{part(backup_id)}/download/", params)
        return (yield from core.fetch(request, into))

    @Endpoint
    def download_tables(
        core: Core,
        backup_id: str,
        tables: Sequence[str],
        into: BinaryIO,
        *,
        schemas: Sequence[str] = (),
        compressed: bool = False,
    ) -> Flow[int]:
        """As `download_backup`, but some tables (`orders`, or `schema.orders`) with their rows and what belongs to them, as SQL
        for psql, mysql or mariadb; or, of PostgreSQL, whole `schemas` and no tables. `compressed`: with zstd. Its length is not
        known before: one without its last line is begun anew, and `Unavailable` (`download_truncated`) in the end; then the
        file is not to be loaded."""
        body = {"tables": list(tables), "schemas": list(schemas), "compress": "zstd" if compressed else "none"}
        request = Request("POST", f"backups/{part(backup_id)}/download/", body=body)  # an address holds few names
        return (yield from core.fetch_watched(request, Watched(into, compressed=compressed)))

    # ── restores ──

    @Endpoint
    def preview_restore(
        core: Core,
        backup_id: str,
        *,
        target: str = "new_project",
        name: str | None = None,
        project_id: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        placement: str | None = None,
        version: str | None = None,
        tables: Sequence[str] = (),
        schemas: Sequence[str] = (),
    ) -> Flow[RestorePreview]:
        """What `restore_backup` would do, and what stands in its way."""
        body = _restore_body(target, name, project_id, version, region, plan, placement, tables, schemas, dry_run=True)
        return (yield from core.one(RestorePreview, post(f"backups/{part(backup_id)}/restore/", body)))

    @Endpoint
    def restore_backup(
        core: Core,
        backup_id: str,
        *,
        target: str = "new_project",
        name: str | None = None,
        project_id: str | None = None,
        confirm: str | None = None,
        region: str | None = None,
        plan: str | None = None,
        placement: str | None = None,
        version: str | None = None,
        tables: Sequence[str] = (),
        schemas: Sequence[str] = (),
        safety_backup: bool = True,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Restore]:
        """Restore it. `target`: `new_project` (with `name`), `in_place`, or `project` (with `project_id`); the last two want
        the slug of what is restored over as `confirm`. What was restored is compared with the backup before anybody sees
        it. `tables` or `schemas`: only these; in a project that lives they come beside what it holds (`outcome` says
        where), and nothing needs to be confirmed. `safety_backup=False`: for a database that can't be dumped any more."""
        body = _restore_body(
            target, name, project_id, version, region, plan, placement, tables, schemas, confirm=confirm
        )
        if not safety_backup:
            body["safety_backup"] = False
        request = post(f"backups/{part(backup_id)}/restore/", body)
        deadline = core.deadline(deadline_seconds if wait else None)
        return (yield from _made(core, Restore, request, "restores", wait, deadline))

    @listing(Restore)
    def list_restores(
        core: Core,
        *,
        project_id: str | None = None,
        backup_id: str | None = None,
        status: str | None = None,
        ordering: str = "created_at",
    ) -> Flow[None]:
        """Restores of the token's organizations; `project_id`: where they went. Oldest first."""
        params = {"project": project_id, "backup": backup_id, "status": status, "ordering": ordering}
        return (yield from core.pages(Restore, "restores/", params))

    @Endpoint
    def get_restore(core: Core, restore_id: str) -> Flow[Restore]:
        """One restore."""
        return (yield from core.one(Restore, get(f"restores/{part(restore_id)}/")))

    @Endpoint
    def undo_restore(
        core: Core,
        restore_id: str,
        *,
        confirm: str | None = None,
        wait: bool = False,
        deadline_seconds: float | None = DEADLINE_SECONDS,
    ) -> Flow[Restore]:
        """Bring the database from before a restore back; what was restored is kept aside as long."""
        deadline = core.deadline(deadline_seconds if wait else None)
        undone = yield from core.one(
            Restore, post(f"restores/{part(restore_id)}/undo/", {"confirm": confirm}), deadline
        )
        if (yield from _ended(core, undone.undo_operation, wait, deadline)):
            undone = yield from core.one(Restore, get(f"restores/{part(restore_id)}/"), deadline)
        return undone

    # ── schedules and storages ──

    @listing(Schedule)
    def list_schedules(core: Core, project_id: str) -> Flow[None]:
        """When the project's backups are taken."""
        return (yield from core.pages(Schedule, f"projects/{part(project_id)}/schedules/", {}))

    @Endpoint
    def create_schedule(
        core: Core,
        project_id: str,
        *,
        cron: str | None = None,
        preset: str | None = None,
        time_zone: str | None = None,
        enabled: bool = True,
        storage: str | None = None,
        retention: Mapping[str, int | None] | None = None,
    ) -> Flow[Schedule]:
        """Either `cron` (five fields, in `time_zone`) or a `preset` such as `daily`. `retention`: `keep_last`, `keep_days`,
        `keep_daily`, `keep_weekly`, `keep_monthly`, `max_bytes`; none of them: nothing goes by itself."""
        body = _schedule_body(
            retention, cron=cron, preset=preset, time_zone=time_zone, enabled=enabled, storage=storage
        )
        return (yield from core.one(Schedule, post(f"projects/{part(project_id)}/schedules/", body)))

    @Endpoint
    def get_schedule(core: Core, schedule_id: str) -> Flow[Schedule]:
        """One schedule."""
        return (yield from core.one(Schedule, get(f"schedules/{part(schedule_id)}/")))

    @Endpoint
    def update_schedule(
        core: Core,
        schedule_id: str,
        *,
        cron: str | None = None,
        preset: str | None = None,
        time_zone: str | None = None,
        enabled: bool | None = None,
        storage: str | None = None,
        retention: Mapping[str, int | None] | None = None,
    ) -> Flow[Schedule]:
        """What is not given stays as it is; in `retention` None takes a rule away."""
        body = _schedule_body(
            retention, cron=cron, preset=preset, time_zone=time_zone, enabled=enabled, storage=storage
        )
        return (yield from core.one(Schedule, patch(f"schedules/{part(schedule_id)}/", body)))

    @Endpoint
    def delete_schedule(core: Core, schedule_id: str) -> Flow[None]:
        """No more backups by it; those that were taken stay."""
        try:
            yield from core.exchange(delete(f"schedules/{part(schedule_id)}/"))
        except NotFound as error:
            if not error.after_lost_answer:
                raise

    @Endpoint
    def run_schedule(core: Core, schedule_id: str) -> Flow[StartedBackup]:
        """Take a backup now, as this schedule does."""
        return (yield from core.one(StartedBackup, post(f"schedules/{part(schedule_id)}/run/")))

    @listing(Storage)
    def list_storages(core: Core) -> Flow[None]:
        """Where backups can go: the organizations' own storages, and the install's."""
        return (yield from core.pages(Storage, "storages/", {}))
