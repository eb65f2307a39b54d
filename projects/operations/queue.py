"""Making operations, and hinting workers at them. A hint carries the id only and is sent when the rows are committed;
a lost one is sent again by the reconciler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import UUID

import structlog
from celery import current_app
from django.db import transaction
from django.db.models import F

from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, OperationInProgress
from novastack.common.logs import current_request_id
from projects.models import DatabaseServer, LockMode, Operation, OperationLock, OperationStep, Placement, Project
from projects.operations import base, locks, status

log = structlog.get_logger(__name__)
RUN_TASK = "projects.run_operation"
HEALTH_TASK = "projects.check_health"
# Done to a whole server: on a pool these would be done to everybody there.
ON_SERVERS = frozenset({"restart", "resize", "change_tls", "reconfigure", "renew_certificate"})


def send_hint(operation_id: UUID, kind: str | None = None) -> None:
    """Tell a worker of the kind's queue (looked up when not given). Never raises: without a broker the reconciler's own
    worker finds the row."""
    try:
        if kind is None:
            kind = Operation.objects.filter(pk=operation_id).values_list("kind", flat=True).first()
        current_app.send_task(RUN_TASK, args=[str(operation_id)], queue=base.queue_of(kind or ""), retry=False)
    except Exception as error:
        log.warning(
            "hint not sent; the reconciler will send it", operation=str(operation_id), error=type(error).__name__
        )


def hint_health() -> None:
    """Have logins tried now rather than at the next tick. Never raises; the tick comes anyhow."""
    try:
        current_app.send_task(HEALTH_TASK, retry=False, expires=15)
    except Exception as error:
        log.warning("health check not hinted", error=type(error).__name__)


def make_steps(operation: Operation, definition: base.Definition, optional: Collection[str] = ()) -> None:
    OperationStep.objects.bulk_create(
        OperationStep(operation=operation, position=number, name=step.name, title=step.title)
        for number, step in enumerate(definition.steps)
        if not step.optional or step.name in optional
    )


def server_operation_create(
    *, server: DatabaseServer, kind: str, params: dict[str, Any] | None = None, created_by_label: str
) -> Operation | None:
    """Record an operation on a server that is no project's, with its lock, and hint a worker on commit. None when another
    one holds the server. Call inside a transaction."""
    definition = base.latest_definition(kind)
    subject = locks.subject_of("server", server.pk)
    locks.lock_subject(subject)
    if locks.conflicting(subject, LockMode.EXCLUSIVE) or locks.queued(subject):
        return None
    operation = Operation.objects.create(
        kind=kind, definition_version=definition.version, on_give_up=definition.on_give_up, server_uuid=server.pk,
        params=params or {}, created_by_label=created_by_label, request_id=current_request_id(),
    )  # fmt: skip
    make_steps(operation, definition)
    OperationLock.objects.create(operation=operation, subject=subject, mode=LockMode.EXCLUSIVE, granted=True)
    hint_on_commit(operation.pk, kind)
    return operation


def subject_operation_create(
    *,
    subject: str,
    kind: str,
    mode: str,
    organization_id: UUID | None,
    project_uuid: UUID | None = None,
    project_name: str = "",
    queue_behind: bool = False,
    params: dict[str, Any] | None = None,
    server_uuid: UUID | None = None,
    created_by: Any = None,
    created_by_label: str = "",
) -> Operation:
    """Record an operation about something that is neither a project nor a server, which need not exist any more: it holds
    that subject only. In a transaction. Raises `OperationInProgress` unless `queue_behind`: then who runs is asked to
    cancel, and this one waits."""
    definition = base.latest_definition(kind)
    locks.lock_subject(subject)
    blocker = locks.conflicting(subject, mode) or locks.queued(subject)
    if blocker is not None:
        if not queue_behind:
            title = base.titles().get(blocker.operation.kind, blocker.operation.kind)
            raise OperationInProgress(f"“{title}” is running; wait for it or cancel it.")
        _ask_to_yield(subject)
    operation = Operation.objects.create(
        kind=kind, definition_version=definition.version, on_give_up=definition.on_give_up,
        organization_id=organization_id, project_uuid=project_uuid, project_name=project_name, server_uuid=server_uuid,
        params=params or {}, created_by=created_by, created_by_label=created_by_label, request_id=current_request_id(),
    )  # fmt: skip
    make_steps(operation, definition)
    OperationLock.objects.create(operation=operation, subject=subject, mode=mode, granted=blocker is None)
    if blocker is None:
        hint_on_commit(operation.pk, kind)
    return operation


def also_hold(operation: Operation, subject: str, mode: str) -> None:
    """Let a new operation hold another subject as well, in the transaction that made it. Subjects are taken in the order
    project → backup, as everywhere. Raises `OperationInProgress` when somebody stands in the way."""
    locks.lock_subject(subject)
    blocker = locks.conflicting(subject, mode, besides=operation) or locks.queued(subject)
    if blocker is not None:
        title = base.titles().get(blocker.operation.kind, blocker.operation.kind)
        raise OperationInProgress(f"“{title}” is running; wait for it or cancel it.")
    OperationLock.objects.create(operation=operation, subject=subject, mode=mode, granted=True)


def hint_on_commit(operation_id: UUID, kind: str | None = None) -> None:
    transaction.on_commit(lambda: send_hint(operation_id, kind), robust=True)


def _ask_to_yield(subject: str) -> None:
    """Ask all who hold the subject to make way; those that can't be cut short go on to their end."""
    holders = list(OperationLock.objects.filter(subject=subject, granted=True).values_list("operation_id", flat=True))
    Operation.objects.filter(pk__in=holders, cancel_requested_at=None).update(
        cancel_requested_at=now(), next_attempt_at=None
    )
    for holder in holders:
        hint_on_commit(holder)


def operation_create(
    *,
    project: Project,
    kind: str,
    mode: str = LockMode.EXCLUSIVE,
    queue_behind: bool = False,
    params: dict[str, Any] | None = None,
    server_uuid: UUID | None = None,
    optional_steps: Collection[str] = (),
    created_by: Any = None,
    created_by_label: str = "",
    new: bool = False,
) -> Operation:
    """Record an operation with its steps (of the optional ones those named) and its lock, and hint a worker on commit.
    Call inside a transaction. `new`: this transaction has made the project, so that nobody else knows of it yet.

    Raises `ActionNotAllowed` for what would be done to a whole pool, and `OperationInProgress` when another one holds the
    project, unless `queue_behind`: then the running one is
    asked to cancel and this one waits for it (deletion is always accepted, rule 5). Nobody passes one that waits.
    """
    if kind in ON_SERVERS and project.placement == Placement.POOL:  # an old operation that is asked for again, say
        raise ActionNotAllowed("The project shares its server with others: this can't be done to it.")
    definition = base.latest_definition(kind, "pool" if project.placement == Placement.POOL else "")
    subject = locks.subject_of("project", project.pk)
    blocker = None
    if not new:
        # Project before subject, as in the runner: two orders would deadlock.
        list(Project.objects.select_for_update(of=("self",), no_key=True).filter(pk=project.pk).values_list("pk"))
        locks.lock_subject(subject)
        blocker = locks.conflicting(subject, mode) or locks.queued(subject)
    if blocker is not None:
        if not queue_behind:
            title = base.titles().get(blocker.operation.kind, blocker.operation.kind)
            raise OperationInProgress(f"“{title}” is running; wait for it or cancel it.")
        _ask_to_yield(subject)
    operation = Operation.objects.create(
        kind=kind,
        definition_version=definition.version,
        variant=definition.variant,
        on_give_up=definition.on_give_up,
        organization_id=project.organization_id,
        project_uuid=project.pk,
        project_name=project.name,
        server_uuid=server_uuid,
        params=params or {},
        created_by=created_by,
        created_by_label=created_by_label,
        request_id=current_request_id(),
    )
    make_steps(operation, definition, optional_steps)
    OperationLock.objects.create(operation=operation, subject=subject, mode=mode, granted=blocker is None)
    if not new:  # which is queued, as it was made
        Project.objects.filter(pk=project.pk).update(generation=F("generation") + 1)
        status.refresh([project.pk])
    if blocker is None:
        hint_on_commit(operation.pk, kind)
    return operation
