"""A project whose runtime is given up: its operations end, its rows go, and what may still exist there is written down.

Nothing here touches a runtime, and nothing says that data was deleted: nobody has seen that.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db.models import F

from novastack.common.clock import now
from projects.models import (
    Database,
    DatabaseServer,
    DataTombstone,
    Operation,
    OperationLock,
    OperationState,
    OperationStep,
    Orphan,
    Project,
    ServerKind,
    StepState,
)
from projects.operations import locks, removal
from projects.operations.queue import hint_on_commit
from projects.querysets import OperationQuerySet

CODE = "runtime_given_up"
DETAIL = (
    "An operator has given the runtime up. The server and its data were not seen removed; they may still exist there."
)
UNENDED = [StepState.PENDING, StepState.RUNNING, StepState.RETRYING, StepState.WAITING, StepState.UNDOING]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """`orphans`: what may still exist in the runtime; `operations`: which were ended."""

    orphans: list[Orphan]
    operations: list[Operation]


def forget_without_runtime(project: Project) -> Forgotten:
    """Call in a transaction that holds the project's row. Workers still at it lose their lease by the fence."""
    live = Operation.objects.live().holding().filter(project_uuid=project.pk)
    operations = _end_operations(live, locks.subject_of("project", project.pk))
    orphans = _write_down(project)
    removal.remove_rows(project.pk)
    return Forgotten(orphans, operations)


def end_operations(server: DatabaseServer) -> list[Operation]:
    """Those on a server that is no project's. In a transaction."""
    live = Operation.objects.live().filter(server_uuid=server.pk, project_uuid=None)
    return _end_operations(live, locks.subject_of("server", server.pk))


def _end_operations(live: OperationQuerySet, own: str) -> list[Operation]:
    """Project, then subjects, then operations: the order of everybody. Steps that were not seen through say so."""
    held = OperationLock.objects.filter(operation__in=live).values_list("subject", flat=True)
    subjects = sorted({own, *held})
    for subject in subjects:
        locks.lock_subject(subject)
    ended = list(live.select_for_update(no_key=True).order_by("pk"))
    ids = [operation.pk for operation in ended]
    moment = now()
    steps = OperationStep.objects.filter(operation__in=ids, state__in=UNENDED)
    steps.exclude(state=StepState.PENDING).update(
        state=StepState.FAILED, error_code=CODE, detail=DETAIL, finished_at=moment, updated_at=moment
    )
    steps.update(state=StepState.SKIPPED, updated_at=moment)
    Operation.objects.filter(pk__in=ids).update(
        state=OperationState.FAILED, error={"code": CODE, "detail": DETAIL, "retryable": False}, finished_at=moment,
        fence=F("fence") + 1, lease_owner="", lease_until=None, next_attempt_at=None, updated_at=moment,
    )  # fmt: skip
    OperationLock.objects.filter(operation__in=ids).delete()
    for waiting in set(
        OperationLock.objects.filter(subject__in=subjects, granted=False).values_list("operation_id", flat=True)
    ):
        hint_on_commit(waiting)
    return ended


def _write_down(project: Project) -> list[Orphan]:
    """What may exist: each server that was ever begun, with its data, and data that waited for its deletion."""
    moment = now()
    names: set[tuple[str, str]] = set()
    for server in DatabaseServer.objects.filter(project_uuid=project.pk):
        if not removal.never_begun(server):
            names |= {("server", server.handle.name), ("data", server.handle.name)}
    on_pools = Database.objects.filter(project=project, server__kind=ServerKind.POOL).select_related("server")
    for database in on_pools:  # its pool may come back with it
        if database.server.initialised_at is not None:
            names.add(("database", f"{database.server.handle.name}/{database.name}"))
    tombs = DataTombstone.objects.select_for_update().filter(
        project_uuid=project.pk, deleted_at=None, forgotten_at=None
    )  # fmt: skip
    for tomb in tombs:
        names.add(("data", tomb.handle.name))
    tombs.update(forgotten_at=moment, last_error=DETAIL, updated_at=moment)
    gone = set(
        DataTombstone.objects.filter(project_uuid=project.pk, deleted_at__isnull=False).values_list(
            "server_uuid", "incarnation"
        )
    )
    names = {(kind, name) for kind, name in names if not _seen_deleted(name, gone)}
    note = (
        f"May still exist: project “{project.name}” ({project.slug}, {project.pk}) was forgotten without its runtime at "
        f"{moment:%Y-%m-%d %H:%M} UTC."
    )
    return [
        Orphan.objects.update_or_create(
            region_id=project.region_id, kind=kind, name=name,
            defaults={"resolved_at": None, "forgotten_at": moment, "note": note[:500]},
        )[0]
        for kind, name in sorted(names)
    ]  # fmt: skip


def _seen_deleted(name: str, gone: set[tuple[UUID, int]]) -> bool:
    """Whether the janitor has seen this incarnation's data gone, and with it its server."""
    return name in {f"nvs-{server}-{incarnation}" for server, incarnation in gone}
