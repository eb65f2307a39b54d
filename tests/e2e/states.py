"""Backups in every state that pages tell of, as rows: what operations would have written. For looking at the pages."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from backups.models import (
    Backup,
    BackupPolicy,
    Drill,
    OfflineKey,
    Proof,
    ProofKind,
    ProofState,
    Restore,
    RestoreStatus,
    RestoreTarget,
    StorageTarget,
)
from backups.operations import restoring
from novastack.common.clock import now
from projects.models import Operation, OperationStep, Project, TableSnapshot
from tests.backups.rows import MIB, keep_before, make_backup, make_proof, make_restore, make_schedule, make_storage
from tests.factories import Team, make_project, make_team

LONG = "orders-of-the-north-western-warehouses-and-all-their-branches"
TABLE = LONG.replace("-", "_")
NONE: dict[str, Any] = {"verified_at": None, "rto_seconds": None}
UNSTORED: dict[str, Any] = NONE | {"size_bytes": None, "sha256": "", "rows": None, "tables": None}


def told(code: str, detail: str) -> dict[str, Any]:
    return {"code": code, "detail": detail, "retryable": False}


MISSING = told("object_missing", "The storage has no such object.")
AWAY = told("storage_unreachable", "s3.eu-central.storage.example.com did not answer within 30 seconds.")
CORRUPT = told("content_differs", "public.order_items: 41 rows short, and 3 tables have another content.")
FULL = told("storage_full", "The storage is full: 12 MB of 2.1 GB were taken.")
TABLES = {
    "public.orders": [1_204_311, "d"], "public.order_items": [6_120_442, "d"], "public.payments": [1_190_207, "d"],
    "public.stock_movements_of_the_north_western_warehouses": [22_481_930, "d"], "public.coupons": [1_840, "d"],
}  # fmt: skip


class World:
    """One organization; `paths` has each page, or dialog, by what is on it: its path, and whether it is a dialog."""

    def __init__(self) -> None:
        self.team: Team = make_team()
        self.team.alice.is_staff = True
        self.team.alice.save()
        self.storage: StorageTarget = make_storage(self.team.organization, "s3-hetzner")
        self.shop: Project = make_project(self.team.alice, self.team.organization, "orders-production")
        self.long: Project = make_project(self.team.alice, self.team.organization, LONG)
        self.empty: Project = make_project(self.team.alice, self.team.organization, "nothing-yet")
        self.paths: dict[str, tuple[str, bool]] = {}
        self._backups()
        self._restores()
        self._promises()
        self._organization()

    def _path(self, name: str, path: str, *, dialog: bool = False) -> None:
        self.paths[name] = (path, dialog)

    def _one(self, name: str, *, hours: float, project: Project | None = None, **fields: Any) -> Backup:
        backup = make_backup(project or self.shop, self.storage, hours=hours, **fields)
        self._path(f"backup-{name}", f"/backups/{backup.pk}/", dialog=True)
        return backup

    # --- backups ------------------------------------------------------------------------------------------------------
    def _backups(self) -> None:
        manifest = {"contents": {"tables": TABLES}}
        dumping = self._one(
            "running", hours=0.01, status="dumping", trigger="manual", label="before-price-import", finished_at=None,
            progress_bytes=730 * MIB, **UNSTORED,
        )  # fmt: skip
        self._runs(dumping, "backup", [("Look for room", "succeeded"), ("Dump and store", "running")])
        self._one("queued", hours=0.005, status="queued", finished_at=None, started_at=None, **UNSTORED)
        verifying = self._one("verifying", hours=1, status="verifying", **NONE)
        make_proof(verifying, state=ProofState.RUNNING, finished_at=None, restore_seconds=None, compare_seconds=None)
        good = self._one("verified", hours=3, pinned=True, pinned_reason="Before the move", manifest=manifest)
        good.notes = ["Statistics are not in it: run ANALYZE.", "The role reporting_readonly is not in it."]
        good.save()
        make_proof(good)
        self.good = good
        corrupt = self._one("corrupt", hours=7, status="corrupt", error=CORRUPT, manifest=manifest, **NONE)
        make_proof(corrupt, state=ProofState.PASSED, kind=ProofKind.AFTER_BACKUP)
        make_proof(
            corrupt, state=ProofState.FAILED, kind=ProofKind.SCHEDULED, error=CORRUPT,
            differences=[f"public.{TABLE}_{n}: {n * 41} rows short" for n in range(1, 15)],
        )  # fmt: skip
        failed = self._one("failed", hours=11, status="failed", error=FULL, **UNSTORED)
        self._runs(failed, "backup", [("Look for room", "succeeded"), ("Dump and store", "failed")], FULL, "failed")
        missing = self._one("missing", hours=15, verify_error=MISSING)
        make_proof(missing, state=ProofState.ERROR, kind=ProofKind.SCHEDULED, error=MISSING, restore_seconds=None)
        away = self._one("unproven", hours=19, status="stored", verify_error=AWAY, encrypted=False, **NONE)
        make_proof(away, state=ProofState.ERROR, error=AWAY, restore_seconds=None, compare_seconds=None)
        self._one(
            "uploaded", hours=23, status="stored", trigger="upload", trusted=False, label="from-the-old-host", **NONE
        )
        self._one("long", hours=1, project=self.long, label="x" * 80, manifest=manifest)
        Backup.objects.filter(pk=good.pk).update(storage=self.storage)
        self._path("tab", f"/projects/{self.shop.pk}/backups/")
        self._path("tab-narrowed", f"/projects/{self.shop.pk}/backups/?status=deleting")
        self._path("tab-empty", f"/projects/{self.empty.pk}/backups/")
        self._path("tab-long", f"/projects/{self.long.pk}/backups/")
        self._path("list", "/backups/")
        for what in ("delete", "download", "restore", "restore/tables", "download/tables"):
            self._path(what.replace("/", "-"), f"/backups/{good.pk}/{what}/", dialog=what in {"delete", "download"})
        self._path("restore-in-place", f"/backups/{good.pk}/restore/?target=in_place")
        TableSnapshot.objects.create(
            project=self.shop, tried_at=now(), at=now(), total=len(TABLES) + 1,
            tables=[["orders", 1_206_884, 1], ["order_items", 6_134_009, 1], ["payments", 1_192_750, 1],
                    ["stock_movements_of_the_north_western_warehouses", 22_481_930, 1], ["coupons", 1_711, 1],
                    ["written_since", 12, 1]],
        )  # fmt: skip

    def _runs(
        self, row: Backup | Restore, kind: str, steps: list[tuple[str, str]], error: Any = None, state: str = "running"
    ) -> Operation:
        began = now() - timedelta(minutes=3)
        operation = Operation.objects.create(
            kind=kind, state=state, project_uuid=row.project_uuid, organization_id=row.organization_id, error=error,
            started_at=began, finished_at=None if state == "running" else now(), lease_until=now() + timedelta(hours=1),
        )  # fmt: skip
        for position, (title, reached) in enumerate(steps):
            OperationStep.objects.create(
                operation=operation, position=position, name=f"step-{position}", title=title, state=reached,
                started_at=None if reached == "pending" else began,
                finished_at=now() if reached in {"succeeded", "failed", "undone"} else None, attempt=1,
                detail=error["detail"] if error and reached == "failed" else "",
                error_code=error["code"] if error and reached == "failed" else "",
            )  # fmt: skip
        type(row).objects.filter(pk=row.pk).update(operation_id=operation.pk)
        return operation

    # --- restores -----------------------------------------------------------------------------------------------------
    def _restores(self) -> None:
        titles = [step.title for step in restoring.RESTORE_DEFINITION.steps]
        at = titles.index("Compare with the backup")
        undone = [(title, "undone" if n < at else "failed" if n == at else "pending") for n, title in enumerate(titles)]
        half = [
            (title, "succeeded" if n < at else "running" if n == at else "pending") for n, title in enumerate(titles)
        ]
        done = [(title, "succeeded") for title in titles]
        differs = told("content_differs", "public.order_items: 41 rows short, and 3 tables have another content.")
        plans: list[tuple[str, dict[str, Any], Any]] = [
            ("failed", {"status": RestoreStatus.FAILED, "error": differs, "undo_until": None}, (undone, differs, "failed")),
            ("running", {"status": RestoreStatus.RUNNING, "finished_at": None, "undo_until": None}, (half, None, "running")),
            ("cancelled", {"status": RestoreStatus.CANCELLED, "undo_until": None}, (undone[:at], None, "cancelled")),
            ("undone", {"status": RestoreStatus.UNDONE, "undone_at": now()}, (done, None, "succeeded")),
            ("undoing", {"status": RestoreStatus.UNDOING}, (half, None, "running")),
            ("not-undone", {"error": told("database_missing", "The database from before is not there any more.")},
             (done, None, "succeeded")),
            ("new-failed", {"status": RestoreStatus.FAILED, "target": RestoreTarget.NEW_PROJECT, "error": differs,
                            "undo_until": None}, (undone, differs, "failed")),
            ("tables", {"outcome": {"tables": {f"public.{TABLE}": f"restored_20261122.{TABLE}",
                                               "public.coupons": "restored_20261122.coupons"},
                                    "rows": 4_321, "notes": ["Foreign keys to tables that were not chosen are left out."]},
                        "selection": {"tables": ["public.coupons"]}, "undo_until": None}, (done, None, "succeeded")),
        ]  # fmt: skip
        for name, fields, (steps, error, state) in plans:
            restore = make_restore(self.good, self.empty, **fields)
            self._runs(restore, "restore", steps, error, state)
            self._path(f"restore-{name}", f"/restores/{restore.pk}/")
        Operation.objects.filter(project_uuid=self.empty.pk, state="running").update(project_uuid=None)
        kept = make_restore(self.good, self.shop)
        keep_before(kept, self.shop)
        self._path("restore-done", f"/restores/{kept.pk}/")
        self._path("undo", f"/restores/{kept.pk}/undo/", dialog=True)

    # --- what is promised ---------------------------------------------------------------------------------------------
    def _promises(self) -> None:
        schedule = make_schedule(
            self.shop, storage=self.storage,
            retention_paused_reason="The last backup has 61 % fewer rows than the one before: 16 300 000 of 41 803 552.",
        )  # fmt: skip
        self._path("retention", f"/projects/{self.shop.pk}/backups/schedules/{schedule.pk}/retention/", dialog=True)
        make_schedule(self.shop, storage=self.storage, cron="30 3 * * 1", enabled=False, next_run_at=None)
        Backup.objects.filter(project_uuid=self.shop.pk, trigger="schedule").update(schedule=schedule)
        for project in (self.shop, self.empty):
            BackupPolicy.objects.create(
                project=project, organization_id=project.organization_id, rpo_seconds=3600, rto_seconds=120,
                heartbeat_url="https://beats.example/x", heartbeat_error="beats.example answered 503 Service Unavailable.",
            )  # fmt: skip
        drill = Drill.objects.create(
            project=self.shop, organization_id=self.shop.organization_id, name="Orders are complete", cron="0 4 * * 1",
            assertions=[{"name": "Orders of yesterday", "sql": "select count(*) from orders", "expect": "> 0"}],
        )  # fmt: skip
        never = told("no_backup", "There is no backup that could be restored.")
        for hours, state, fields in (
            (1, ProofState.FAILED, {"assertions": [
                {"name": "Orders of yesterday", "passed": False, "detail": "got 0, expected > 0"},
                {"name": "Every order has a customer whose address is known to us", "passed": True, "detail": ""}]}),
            (30, ProofState.ERROR, {"error": never, "restore_seconds": None, "compare_seconds": None}),
            (60, ProofState.PASSED, {"assertions": [{"name": "Orders of yesterday", "passed": True, "detail": ""}]}),
        ):  # fmt: skip
            proof = make_proof(self.good, kind=ProofKind.DRILL, drill=drill, state=state, **fields)
            Proof.objects.filter(pk=proof.pk).update(created_at=now() - timedelta(hours=hours))
        self._path("drill", f"/projects/{self.shop.pk}/backups/drills/{drill.pk}/")
        for what in ("drills/new", "schedules/new", "policy", "new", "upload"):
            self._path(what.replace("/", "-"), f"/projects/{self.shop.pk}/backups/{what}/", dialog="/" not in what)
        self._path("overview", f"/projects/{self.shop.pk}/")
        self._path("project-delete", f"/projects/{self.shop.pk}/delete/", dialog=True)

    def _organization(self) -> None:
        organization = self.team.organization
        make_storage(
            organization, "nas-cellar", is_default=False, kind="s3", test_ok=False,
            config={"endpoint": "https://s3.eu-central.storage.example.com", "bucket": "the-bucket-of-the-cellar"},
            test_detail="s3.eu-central.storage.example.com did not answer within 30 seconds.",
        )  # fmt: skip
        stolen = make_storage(
            organization, "old-bucket", is_default=False, kind="s3",
            config={"endpoint": "https://s3.example.com", "bucket": "old"},
            read_only_reason="Another installation writes there since 20 November: its owner object has a newer epoch.",
        )  # fmt: skip
        OfflineKey.objects.create(
            organization=organization,
            recipient="age1" + "q" * 58,
            fingerprint="0000-1111",
            exported_by="alice@example.test",
        )
        self._path("storage-read-only", f"/backup-storages/{stolen.pk}/")
        self._path("storage-remove", f"/backup-storages/{self.storage.pk}/remove/", dialog=True)
        self._path("key-rotate", "/recovery-kit/keys/rotate/", dialog=True)
        self._path("storages", "/backup-storages/")
        self._path("install-storages", "/operator/storages/")
        self._path("kit", "/recovery-kit/")
        self._path("protection", "/backups/protection/")
