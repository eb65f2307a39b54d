"""Locks on projects and servers (rule 5). All decisions about one subject are taken under its advisory lock."""

from __future__ import annotations

import hashlib
from uuid import UUID

from django.db import connection

from projects.models import LockMode, Operation, OperationLock


def subject_of(kind: str, key: UUID | str) -> str:
    return f"{kind}:{key}"


def number_of(subject: str) -> int:
    """The number that PostgreSQL locks in its place."""
    return int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big", signed=True)


def lock_subject(subject: str) -> None:
    """Serialise deciders about this subject until the end of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [number_of(subject)])


def conflicting(subject: str, mode: str, *, besides: Operation | None = None) -> OperationLock | None:
    """The granted lock that stands in the way, if any. Call with the subject locked."""
    held = OperationLock.objects.filter(subject=subject, granted=True).select_related("operation")
    if besides is not None:
        held = held.exclude(operation=besides)
    if mode == LockMode.SHARED:
        held = held.filter(mode=LockMode.EXCLUSIVE)
    return held.first()


def queued(subject: str) -> OperationLock | None:
    """The first that waits for this subject: newcomers don't pass it. Call with the subject locked."""
    return (
        OperationLock.objects.filter(subject=subject, granted=False).select_related("operation").order_by("pk").first()
    )


def grant_waiting(operation: Operation) -> bool:
    """Grant what this operation queued for, oldest first. True when it holds all its locks. In a transaction."""
    waiting = list(operation.locks.filter(granted=False).order_by("subject"))
    for lock in waiting:
        lock_subject(lock.subject)
        if conflicting(lock.subject, lock.mode, besides=operation):
            return False
        older = OperationLock.objects.filter(subject=lock.subject, granted=False, pk__lt=lock.pk)
        if older.exclude(operation=operation).exists():
            return False
        lock.granted = True
        lock.save(update_fields=["granted"])
    return True


def lock_subjects_of(operation: Operation) -> list[str]:
    """Lock the subjects of the operation's locks, in one order. Before its row is locked: whoever makes an operation
    takes the subject first and may then want the row of the one in its way."""
    subjects = sorted(operation.locks.values_list("subject", flat=True))
    for subject in subjects:
        lock_subject(subject)
    return subjects


def release(operation: Operation, subjects: list[str]) -> list[UUID]:
    """Give all locks back. `subjects` are locked. Returns the operations that waited for one of them, to be hinted after
    the commit."""
    operation.locks.all().delete()
    return list(
        OperationLock.objects.filter(subject__in=subjects, granted=False)
        .order_by("pk")
        .values_list("operation_id", flat=True)
        .distinct()
    )
