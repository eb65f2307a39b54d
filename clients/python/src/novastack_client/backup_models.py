"""What the API answers about backups; as in `models`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from novastack_client.models import Answered, OperationBrief, OperationError


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupStorage(Answered):
    """Where a backup lies."""

    id: str
    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup(Answered):
    """`status`: queued, dumping, stored, verifying, verified, failed, corrupt, deleting. Only `verified` was restored and
    compared. `error` of one that is stored: why its proof could not run."""

    id: str
    project: str
    engine: str
    version: str
    trigger: str
    status: str
    created_at: datetime
    organization: str = ""
    project_name: str = ""
    project_slug: str = ""
    server_version: str = ""
    label: str = ""
    progress_bytes: int | None = None
    size_bytes: int | None = None
    dump_bytes: int | None = None
    database_bytes: int | None = None
    sha256: str = ""
    encrypted: bool = False
    compressed: bool = False
    key_ids: tuple[str, ...] = ()
    storage: BackupStorage | None = None
    storage_path: str = ""
    pinned: bool = False
    pinned_reason: str = ""
    trusted: bool = True
    rows: int | None = None
    tables: int | None = None
    notes: tuple[str, ...] = ()
    schedule: str | None = None
    operation: OperationBrief | None = None
    created_by: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration_seconds: float | None = None
    verified_at: datetime | None = None
    rto_seconds: float | None = None
    keep_until: datetime | None = None
    error: OperationError | None = None
    url: str = ""

    @property
    def verified(self) -> bool:
        return self.status == "verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof(Answered):
    """A restore into a throw-away server, and what came of it. `state`: queued, running, passed, failed, error (it could not
    run: nothing is said about the backup), cancelled."""

    id: str
    backup: str
    kind: str
    state: str
    created_at: datetime
    drill: str | None = None
    operation: OperationBrief | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    restore_seconds: float | None = None
    compare_seconds: float | None = None
    tables: int | None = None
    rows: int | None = None
    differences: tuple[str, ...] = ()
    assertions: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    error: OperationError | None = None

    @property
    def passed(self) -> bool:
        return self.state == "passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreProblem(Answered):
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePreview(Answered):
    """What a restore would mean. Rows that live are estimates. `problems`: what stands in its way; `confirm`: what has to be
    given as such."""

    target: str
    engine: str = ""
    backup_version: str = ""
    target_version: str = ""
    database_bytes: int | None = None
    storage_limit_bytes: int | None = None
    disk_free_bytes: int | None = None
    checks: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[RestoreProblem, ...] = ()
    tables: tuple[Mapping[str, Any], ...] = ()
    tables_total: int = 0
    counted_at: datetime | None = None
    estimates: bool = True
    rows_live: int | None = None
    rows_in_backup: int | None = None
    rows_lost: int | None = None
    open_connections: int | None = None
    safety_backup: bool = False
    address_changes: bool = False
    confirm: str = ""
    expected_seconds: float | None = None
    measured: bool = False
    expected_downtime_seconds: float = 0
    kept_hours: float = 0
    checked_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Restore(Answered):
    """`status`: queued, running, succeeded, failed, cancelled, undoing, undone. `project`: where it went; `undo_until`: until
    then `undo_restore` brings the database from before back."""

    id: str
    backup: str
    target: str
    status: str
    created_at: datetime
    organization: str = ""
    source_project: str | None = None
    project: str | None = None
    project_name: str = ""
    operation: OperationBrief | None = None
    undo_operation: OperationBrief | None = None
    safety_backup: str | None = None
    preflight: Mapping[str, Any] = field(default_factory=dict, repr=False)
    selection: Mapping[str, Any] | None = None
    outcome: Mapping[str, Any] | None = None
    undo_until: datetime | None = None
    undone_at: datetime | None = None
    duration_seconds: float | None = None
    error: OperationError | None = None
    created_by: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(Answered):
    """When backups of a project are taken, and what is kept of them. `paused_reason`, `retention_paused_reason`: empty when
    it goes on."""

    id: str
    project: str
    cron: str
    time_zone: str
    enabled: bool
    created_at: datetime
    description: str = ""
    storage: str | None = None
    retention: Mapping[str, int | None] = field(default_factory=dict)
    next_runs: tuple[datetime, ...] = ()
    next_run_at: datetime | None = None
    last_run: Mapping[str, Any] | None = None
    paused_reason: str = ""
    retention_paused_reason: str = ""
    updated_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedBackup(Answered):
    """What running a schedule has begun; `operation` is an id for `wait_for_operation`."""

    id: str
    project: str
    engine: str
    version: str
    trigger: str
    status: str
    created_at: datetime
    storage: str | None = None
    operation: str | None = None
    error: OperationError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage(Answered):
    """Where backups can go. `organization` is None for the install's; there `config` is None except for operators."""

    id: str
    name: str
    kind: str
    organization: str | None = None
    config: Mapping[str, Any] | None = None
    has_secret: bool = False
    encrypt: bool = True
    is_default: bool = False
    capacity_bytes: int | None = None
    backups: int = 0
    used_bytes: int = 0
    object_lock: bool = False
    read_only_reason: str = ""
    tested_at: datetime | None = None
    test_ok: bool | None = None
    test_detail: str = ""
    test_ms: int | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
