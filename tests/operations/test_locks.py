"""Locks: exclusive, shared, queued behind, first come first served."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from novastack.common.errors import OperationInProgress
from projects.models import LockMode, OperationLock
from projects.operations import locks, runner
from projects.operations.base import Step, Wait
from tests.operations.conftest import begin, drive, once


@pytest.fixture
def kinds(kind):
    def waits(ctx):
        if not ctx.operation.params.get("go"):
            raise Wait("not yet")

    for name in ("first", "second", "third"):
        kind(name, Step("one", "One", waits))


def finish(operation):
    operation.params = {"go": True}
    operation.save(update_fields=["params"])
    return drive(operation)


def test_an_exclusive_lock_keeps_everybody_out(idle, kinds):
    begin(idle, "first")
    for mode in LockMode.values:
        with pytest.raises(OperationInProgress, match="First"):
            begin(idle, "second", mode=mode)


def test_shared_ones_go_together_and_keep_exclusive_ones_out(idle, kinds):
    one, two = begin(idle, "first", mode="shared"), begin(idle, "second", mode="shared")
    with pytest.raises(OperationInProgress):
        begin(idle, "third")
    finish(one)
    with pytest.raises(OperationInProgress):
        begin(idle, "third")
    finish(two)
    begin(idle, "third")


def test_the_database_itself_refuses_two_exclusive_holders(idle, kinds):
    one = begin(idle, "first")
    subject = one.locks.get().subject
    other = begin(idle, "second", queue_behind=True)
    with pytest.raises(IntegrityError), transaction.atomic():
        OperationLock.objects.filter(operation=other, subject=subject).update(granted=True)


def test_who_queues_waits_for_all_and_in_order(idle, kinds):
    one, two = begin(idle, "first", mode="shared"), begin(idle, "second", mode="shared")
    queue = [begin(idle, "third", queue_behind=True), begin(idle, "third", queue_behind=True)]
    one.refresh_from_db()
    two.refresh_from_db()
    assert one.cancel_requested_at, "everybody in the way is asked to make way"
    assert two.cancel_requested_at
    finish(one)
    assert not runner.run(queue[0].pk), "the second holder is still there"
    finish(two)
    assert not runner.run(queue[1].pk), "first come, first served"
    assert runner.run(queue[0].pk)
    assert not runner.run(queue[1].pk)
    finish(queue[0])
    assert runner.run(queue[1].pk)


def test_nobody_passes_one_that_waits(idle, kinds):
    one = begin(idle, "first")
    begin(idle, "second", queue_behind=True)
    finish(one)
    with pytest.raises(OperationInProgress, match="Second"):
        begin(idle, "third")
    with pytest.raises(OperationInProgress):
        begin(idle, "third", mode="shared")


def test_an_ending_hints_at_who_waits(idle, kinds, django_capture_on_commit_callbacks, monkeypatch):
    sent = []
    monkeypatch.setattr("projects.operations.queue.send_hint", lambda pk, *_: sent.append(pk))
    one = begin(idle, "first")
    other = begin(idle, "second", queue_behind=True)
    one.params = {"go": True}
    one.save(update_fields=["params"])
    with django_capture_on_commit_callbacks(execute=True):
        once(one)
    assert sent == [other.pk]


def test_different_subjects_do_not_meet(idle, kinds):
    begin(idle, "first")
    assert locks.conflicting("project:other", LockMode.EXCLUSIVE) is None
