from projects.models.catalogue import Plan, Region
from projects.models.choices import (
    DatabaseSlot,
    DesiredStatus,
    Exposure,
    Health,
    LockMode,
    ObservedState,
    OnGiveUp,
    OperationState,
    Placement,
    ProjectStatus,
    RoleKind,
    StepState,
)
from projects.models.metrics import MetricSample
from projects.models.operations import Operation, OperationEvent, OperationLock, OperationStep
from projects.models.projects import BlockedPort, Endpoint, Project
from projects.models.servers import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Orphan,
    ServerDesired,
    ServerKind,
)

__all__ = [
    "BlockedPort",
    "DataTombstone",
    "Database",
    "DatabaseRole",
    "DatabaseServer",
    "DatabaseSlot",
    "DesiredStatus",
    "Endpoint",
    "Exposure",
    "Health",
    "LockMode",
    "MetricSample",
    "ObservedState",
    "OnGiveUp",
    "Operation",
    "OperationEvent",
    "OperationLock",
    "OperationState",
    "OperationStep",
    "Orphan",
    "Placement",
    "Plan",
    "Project",
    "ProjectStatus",
    "Region",
    "RoleKind",
    "ServerDesired",
    "ServerKind",
    "StepState",
]
