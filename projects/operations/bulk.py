"""Operations of one kind on many projects at once, with a few statements for all: what a schedule makes due at midnight."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog
from celery import current_app
from django.db import connection, transaction
from django.db.models import F

from novastack.common.clock import now
from novastack.common.logs import current_request_id
from projects.models import LockMode, Operation, OperationLock, OperationStep, Placement, Project
from projects.operations import base, locks, status
from projects.operations.queue import RUN_TASK

log = structlog.get_logger(__name__)


def free_projects(projects: Sequence[Project], *, alone: str) -> set[UUID]:
    """Those on which a shared operation may begin now that also wants `<alone>:<id>` for itself: nobody holds the project
    alone, nobody waits for it, nobody has the other one, and nobody decides about them at this moment. The subjects stay
    locked. In a transaction that holds the projects' rows; waits for nobody."""
    subjects = {locks.subject_of(kind, project.pk): project.pk for project in projects for kind in ("project", alone)}
    numbers = {locks.number_of(subject): subject for subject in subjects}
    with connection.cursor() as cursor:
        cursor.execute("SELECT n, pg_try_advisory_xact_lock(n) FROM unnest(%s::bigint[]) n", [sorted(numbers)])
        barred = {numbers[number] for number, locked in cursor.fetchall() if not locked}
    held = OperationLock.objects.filter(subject__in=subjects)
    for subject, mode, granted in held.values_list("subject", "mode", "granted"):
        if not granted or mode == LockMode.EXCLUSIVE or subject.startswith(f"{alone}:"):
            barred.add(subject)
    return set(subjects.values()) - {subjects[subject] for subject in barred}


def shared_operations_create(
    kind: str, wanted: Sequence[tuple[Operation, Project]], also: Sequence[OperationLock], *, created_by_label: str
) -> None:
    """Record these operations (made with their ids and params, nothing else) on projects that `free_projects` named, in
    the same transaction, with their steps, their locks on the projects and those others; workers are hinted when it is
    committed."""
    moment, request_id = now(), current_request_id()
    steps: list[OperationStep] = []
    for operation, project in wanted:
        definition = base.latest_definition(kind, "pool" if project.placement == Placement.POOL else "")
        operation.kind, operation.variant = kind, definition.variant
        operation.definition_version, operation.on_give_up = definition.version, definition.on_give_up
        operation.organization_id = project.organization_id
        operation.project_uuid, operation.project_name = project.pk, project.name
        operation.created_by_label, operation.request_id, operation.hinted_at = created_by_label, request_id, moment
        steps += [
            OperationStep(operation=operation, position=number, name=step.name, title=step.title)
            for number, step in enumerate(definition.steps)
            if not step.optional
        ]
    operations = [operation for operation, _ in wanted]
    Operation.objects.bulk_create(operations)
    OperationStep.objects.bulk_create(steps)
    mine = [
        OperationLock(
            operation=operation, subject=locks.subject_of("project", project.pk), mode=LockMode.SHARED, granted=True
        )
        for operation, project in wanted
    ]
    OperationLock.objects.bulk_create([*mine, *also])
    keys = {project.pk for _, project in wanted}
    Project.objects.filter(pk__in=keys).update(generation=F("generation") + 1)
    status.refresh(keys)
    ids = [operation.pk for operation in operations]
    transaction.on_commit(lambda: send_hints(kind, ids), robust=True)


def send_hints(kind: str, ids: Sequence[UUID]) -> int:
    """Tell the kind's workers; returns how many were told. Without a broker the first one fails, and the reconciler tells
    of all of them later."""
    queue = base.queue_of(kind)
    for number, operation_id in enumerate(ids):
        try:
            current_app.send_task(RUN_TASK, args=[str(operation_id)], queue=queue, retry=False)
        except Exception as error:
            log.warning(
                "hints not sent; the reconciler will send them", error=type(error).__name__, left=len(ids) - number
            )
            return number
    return len(ids)
