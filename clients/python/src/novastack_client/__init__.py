"""Client of NovaStack: databases for your instances.

    from novastack_client import NovaStack

    with NovaStack("https://databases.example.com", token) as nova:
        database = nova.allocate_database("shop-4711")
        print(database.connection.uri)

`NovaStack` blocks, `AsyncNovaStack` is awaited; both can do the same. Errors are in `novastack_client.errors`, what comes
back is in `novastack_client.models` and `novastack_client.backup_models`.
"""

from novastack_client._version import __version__
from novastack_client.backup_models import (
    Backup,
    BackupStorage,
    Proof,
    Restore,
    RestorePreview,
    RestoreProblem,
    Schedule,
    StartedBackup,
    Storage,
)
from novastack_client.client import AsyncNovaStack, NovaStack
from novastack_client.errors import (
    Conflict,
    DeadlineExceeded,
    FieldError,
    Invalid,
    NotAuthenticated,
    NotFound,
    NovaStackError,
    OperationFailed,
    PermissionDenied,
    QuotaExceeded,
    Throttled,
    Unavailable,
)
from novastack_client.models import (
    Allocation,
    ApiKey,
    Connection,
    KeyCheck,
    Limits,
    MovePreview,
    MoveProblem,
    Operation,
    OperationBrief,
    OperationError,
    Pool,
    PoolEndpoint,
    PoolLimits,
    PoolMember,
    PoolOperation,
    PoolRoom,
    PoolStatus,
    PoolUsage,
    Project,
    ProjectStatus,
    Server,
    Service,
    Step,
    WriteFence,
)

__all__ = [
    "Allocation",
    "ApiKey",
    "AsyncNovaStack",
    "Backup",
    "BackupStorage",
    "Conflict",
    "Connection",
    "DeadlineExceeded",
    "FieldError",
    "Invalid",
    "KeyCheck",
    "Limits",
    "MovePreview",
    "MoveProblem",
    "NotAuthenticated",
    "NotFound",
    "NovaStack",
    "NovaStackError",
    "Operation",
    "OperationBrief",
    "OperationError",
    "OperationFailed",
    "PermissionDenied",
    "Pool",
    "PoolEndpoint",
    "PoolLimits",
    "PoolMember",
    "PoolOperation",
    "PoolRoom",
    "PoolStatus",
    "PoolUsage",
    "Project",
    "ProjectStatus",
    "Proof",
    "QuotaExceeded",
    "Restore",
    "RestorePreview",
    "RestoreProblem",
    "Schedule",
    "Server",
    "Service",
    "StartedBackup",
    "Step",
    "Storage",
    "Throttled",
    "Unavailable",
    "WriteFence",
    "__version__",
]
