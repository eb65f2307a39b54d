from backups.models.backups import ADOPTED, MISSED, MISSING, THERE, USABLE, Backup, Proof, Restore
from backups.models.choices import (
    BackupStatus,
    BackupTrigger,
    ProofKind,
    ProofState,
    RestoreStatus,
    RestoreTarget,
    RunOutcome,
    StorageKind,
)
from backups.models.schedules import BackupPolicy, Drill, Schedule, ScheduleRun
from backups.models.storages import BackupKey, OfflineKey, SigningKey, StorageTarget

__all__ = [
    "ADOPTED",
    "MISSED",
    "MISSING",
    "THERE",
    "USABLE",
    "Backup",
    "BackupKey",
    "BackupPolicy",
    "BackupStatus",
    "BackupTrigger",
    "Drill",
    "OfflineKey",
    "Proof",
    "ProofKind",
    "ProofState",
    "Restore",
    "RestoreStatus",
    "RestoreTarget",
    "RunOutcome",
    "Schedule",
    "ScheduleRun",
    "SigningKey",
    "StorageKind",
    "StorageTarget",
]
