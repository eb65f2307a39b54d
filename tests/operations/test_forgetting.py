"""A runtime that is gone for good: what can be forgotten, what is written down, and what stays untouched when it is back."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import transaction

from accounts.models import AuditEvent
from accounts.permissions import OperatorPrincipal, Principal
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, ConfirmMismatch, ConfirmRequired, PermissionDenied
from novastack.common.models import Heartbeat, Install
from projects.models import (
    Database,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
    OperationLock,
    Orphan,
    Project,
    Region,
)
from projects.operations import forgetting, janitor, leases, reconciler, runner
from projects.operations.base import LeaseLost
from projects.services import project_action, project_delete, project_forget, project_purge, region_declare_gone
from tests.factories import UserFactory
from tests.operations.conftest import begin, drive, let_time_pass, once, operation_of, states


@pytest.fixture
def operator(db: None) -> OperatorPrincipal:
    return OperatorPrincipal(user=UserFactory(email="root@example.test", is_staff=True))


def away(runtime, *, minutes=20):
    """The runtime does not answer, and has not for so long."""
    runtime.unreachable = True
    reconciler.reconcile()
    region = Region.objects.get(slug="local")
    assert not region.reachable and region.unreachable_since is not None
    Region.objects.update(unreachable_since=now() - timedelta(minutes=minutes))
    Heartbeat.touch("beat")  # as the tick does
    return region


def purging(project, alice, runtime):
    """A purge that waits for a runtime that is away."""
    away(runtime)
    operation = project_purge(principal=alice, project=project, confirm=project.slug)
    once(operation)
    assert operation.live and "waiting" in states(operation).values()
    return operation


def test_a_purge_without_its_runtime_ends_when_an_operator_says_so(ready, runtime, alice, operator):
    name, port = DatabaseServer.objects.get(project_uuid=ready.pk).handle.name, ready.endpoint.port
    operation = purging(ready, alice, runtime)
    forgotten = project_forget(principal=operator, project=ready, confirm=ready.slug)

    for model in (Project, DatabaseServer, Database, OperationLock):
        assert not model.objects.exists(), model
    assert Endpoint.objects.get(port=port).reserved_until is not None
    operation.refresh_from_db()
    assert (operation.state, operation.error["code"]) == ("failed", "runtime_given_up")
    assert "may still exist" in operation.error["detail"] and operation.finished_at is not None
    assert set(states(operation).values()) <= {"succeeded", "failed", "skipped"}
    assert {(o.kind, o.name) for o in forgotten.orphans} == {("server", name), ("data", name)}
    assert all(ready.slug in o.note and o.resolved_at is None for o in Orphan.objects.all())
    event = AuditEvent.objects.get(action="project.forgotten")
    assert event.actor == operator.user and event.data["data_deleted"] is False
    assert event.data["may_still_exist"] == [f"data {name}", f"server {name}"]
    assert not AuditEvent.objects.filter(action="data.deleted").exists()


def test_nothing_is_forgotten_on_an_old_word_that_its_runtime_is_away(ready, runtime, alice, operator):
    """The runtime is back and its server runs, but no worker has looked since."""
    purging(ready, alice, runtime)
    runtime.unreachable = False
    Heartbeat.objects.update(at=now() - timedelta(minutes=5))
    with pytest.raises(ActionNotAllowed, match="Nobody has looked"):
        project_forget(principal=operator, project=ready, confirm=ready.slug)
    assert Project.objects.exists()
    Region.objects.update(gone_at=now())  # an operator's own word counts
    project_forget(principal=operator, project=ready, confirm=ready.slug)


def test_what_was_forgotten_is_reported_and_never_touched_when_the_region_is_back(ready, runtime, alice, operator):
    name = DatabaseServer.objects.get(project_uuid=ready.pk).handle.name
    purging(ready, alice, runtime)
    project_forget(principal=operator, project=ready, confirm=ready.slug)
    runtime.unreachable = False
    for _ in range(3):
        reconciler._looked.clear()
        reconciler.reconcile()
        janitor.delete_due_data()
    assert {(o.kind, o.name) for o in Orphan.objects.filter(resolved_at=None)} == {("server", name), ("data", name)}
    assert name in runtime.world.servers and name in runtime.world.volumes
    assert not Install.load().read_only
    # An operator clears it away by hand: only then is it settled.
    runtime.world.servers.pop(name), runtime.world.volumes.pop(name)
    reconciler._looked.clear()
    reconciler.reconcile()
    assert not Orphan.objects.filter(resolved_at=None).exists()


def test_data_that_waited_for_its_deletion_is_left_alone_too(ready, runtime, alice, operator):
    operation = project_purge(principal=alice, project=ready, confirm=ready.slug)
    once(operation)
    tomb = DataTombstone.objects.get()
    away(runtime)
    project_forget(principal=operator, project=ready, confirm=ready.slug)
    runtime.unreachable = False
    DataTombstone.objects.update(due_at=now() - timedelta(hours=1))
    assert janitor.delete_due_data() == 0
    reconciler._looked.clear()
    reconciler.reconcile()
    tomb.refresh_from_db()
    assert tomb.deleted_at is None and tomb.forgotten_at is not None
    assert tomb.handle.name in runtime.world.volumes
    assert Orphan.objects.filter(kind="data", name=tomb.handle.name, resolved_at=None).exists()


def test_a_worker_that_is_still_at_it_loses_its_lease(ready, runtime, alice, operator):
    operation = purging(ready, alice, runtime)
    let_time_pass(operation)
    lease = leases.claim(operation.pk, "late")
    assert lease is not None and leases.holds(lease)
    project_forget(principal=operator, project=ready, confirm=ready.slug)
    assert not leases.holds(lease)
    with transaction.atomic(), pytest.raises(LeaseLost):
        leases.fenced(lease)
    assert not runner.run(operation.pk)


def test_a_worker_that_wakes_up_late_leaves_forgotten_data_alone(ready, runtime, alice, operator, monkeypatch):
    """It was within `ensure` when the project was forgotten: its taking back would give the data to the janitor."""
    drive(project_action(principal=alice, project=ready, action="stop"))
    operation = project_action(principal=alice, project=ready, action="start")
    name = DatabaseServer.objects.get(project_uuid=ready.pk).handle.name
    real = type(runtime).ensure

    def ensure(self, spec, *, data):
        handle = real(self, spec, data=data)
        Region.objects.update(enabled=False, gone_at=now())
        project_forget(principal=operator, project=ready, confirm=ready.slug)
        return handle

    monkeypatch.setattr(type(runtime), "ensure", ensure)
    runner.run(operation.pk)
    assert not Project.objects.exists()
    assert not DataTombstone.objects.exists()
    assert name in runtime.world.volumes and name in runtime.world.servers


def test_what_was_never_begun_can_not_exist(shop, runtime, alice, operator):
    away(runtime)
    project_purge(principal=alice, project=shop, confirm=shop.slug)
    assert project_forget(principal=operator, project=shop, confirm=shop.slug).orphans == []
    assert not Orphan.objects.exists()


@pytest.mark.parametrize(("minutes", "enabled", "accepted"), [(14, True, False), (16, True, True), (0, False, True)])
def test_away_for_long_or_disabled(ready, runtime, alice, operator, minutes, enabled, accepted):
    project_delete(principal=alice, project=ready)
    away(runtime, minutes=minutes)
    Region.objects.update(enabled=enabled)
    if accepted:
        project_forget(principal=operator, project=ready, confirm=ready.slug)
    else:
        with pytest.raises(ActionNotAllowed, match="15 minutes"):
            project_forget(principal=operator, project=ready, confirm=ready.slug)
    assert Project.objects.exists() is not accepted


def test_the_time_away_is_not_begun_anew_by_another_reason(ready, runtime):
    region = away(runtime)
    since = Region.objects.get().unreachable_since
    reconciler.status.set_reachable(region, False, "another reason")
    region.refresh_from_db()
    assert region.unreachable_since is not None and abs((region.unreachable_since - since).total_seconds()) < 1300
    runtime.unreachable = False
    reconciler.reconcile()
    assert Region.objects.get().unreachable_since is None


def test_nothing_that_lives_is_forgotten(ready, runtime, alice, operator):
    def refused(text: str) -> None:
        with pytest.raises(ActionNotAllowed, match=text):
            project_forget(principal=operator, project=ready, confirm=ready.slug)
        assert Project.objects.filter(pk=ready.pk).exists()

    refused("answers")
    away(runtime)
    refused("not being deleted")
    drive_away = begin(ready, "delete", queue_behind=True)
    Operation.objects.filter(pk=drive_away.pk).update(state="succeeded")
    Project.objects.filter(pk=ready.pk).update(desired_status="recycled", recycled_at=now(), recycle_until=now())
    refused("recycle bin")
    Install.load()
    Install.objects.update(read_only=True)
    refused("read-only")


def test_only_operators_and_only_with_the_slug(ready, runtime, alice, operator):
    purging(ready, alice, runtime)
    with pytest.raises(PermissionDenied):
        project_forget(principal=alice, project=ready, confirm=ready.slug)
    with pytest.raises(ConfirmRequired):
        project_forget(principal=operator, project=ready, confirm="")
    with pytest.raises(ConfirmMismatch):
        project_forget(principal=operator, project=ready, confirm="other")
    assert Project.objects.filter(pk=ready.pk).exists()


def test_a_region_declared_gone(ready, runtime, team, operator):
    region = Region.objects.get()
    with pytest.raises(ActionNotAllowed, match="answers"):
        region_declare_gone(principal=operator, region=region, gone=True)
    away(runtime, minutes=1)
    with pytest.raises(PermissionDenied):
        region_declare_gone(principal=Principal.of(team.alice), region=region, gone=True)
    region_declare_gone(principal=operator, region=region, gone=True)
    region.refresh_from_db()
    assert region.gone_at is not None and not region.available
    assert AuditEvent.objects.get(action="region.declared_gone").actor == operator.user
    project_forget(principal=operator, project=ready, confirm=ready.slug)  # nobody has asked for its deletion
    assert not Project.objects.exists()
    region_declare_gone(principal=operator, region=region, gone=False)
    assert AuditEvent.objects.filter(action="region.not_gone").exists()


def test_the_command(ready, runtime, alice):
    purging(ready, alice, runtime)
    with pytest.raises(CommandError, match="confirm"):
        call_command("forget_server", ready.slug)
    with pytest.raises(CommandError, match="no project"):
        call_command("forget_server", "nothing")
    out = StringIO()
    call_command("forget_server", str(ready.pk), confirm=ready.slug, stdout=out)
    name = Orphan.objects.filter(kind="data").get().name
    assert "No data was deleted" in out.getvalue() and f"data {name}" in out.getvalue()
    assert AuditEvent.objects.get(action="project.forgotten").actor_label == "system"


def test_all_or_nothing(ready, runtime, alice, operator, monkeypatch):
    operation = purging(ready, alice, runtime)

    def breaks(_project_id):
        raise RuntimeError

    monkeypatch.setattr(forgetting.removal, "remove_rows", breaks)
    with pytest.raises(RuntimeError):
        project_forget(principal=operator, project=ready, confirm=ready.slug)
    operation.refresh_from_db()
    assert operation.live and not Orphan.objects.exists() and operation_of(ready) == operation
