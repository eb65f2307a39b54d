"""What people ask for: who may, what makes sense now, and what is recorded. Nothing here touches a runtime."""

from __future__ import annotations

import pytest

from accounts.models import AuditEvent
from accounts.permissions import Principal
from novastack.common.errors import (
    ActionNotAllowed,
    ConfirmMismatch,
    ConfirmRequired,
    NameTaken,
    NotFound,
    OperationInProgress,
    PermissionDenied,
    QuotaExceeded,
)
from projects.models import Operation, Project
from projects.operations import status
from projects.services import (
    connection_reveal,
    operation_cancel,
    operation_retry,
    project_action,
    project_delete,
    project_purge,
    project_update,
)
from projects.services.actions import ALLOWED, DeletionProtected, allowed_actions
from tests.operations.conftest import create, drive, once, operation_of, seconds_until_next

SERVICES = {
    "act": lambda who, p: project_action(principal=who, project=p, action="stop"),
    "change": lambda who, p: project_update(principal=who, project=p, changes={"description": "x"}),
    "delete": lambda who, p: project_delete(principal=who, project=p),
    "purge": lambda who, p: project_purge(principal=who, project=p, confirm=p.slug),
    "connect": lambda who, p: connection_reveal(principal=who, project=p),
    "cancel": lambda who, p: operation_cancel(principal=who, operation=operation_of(p)),
    "retry": lambda who, p: operation_retry(principal=who, operation=operation_of(p)),
}


@pytest.mark.parametrize("service", SERVICES)
def test_outsiders_find_nothing_and_viewers_may_nothing(idle, team, service):
    before = AuditEvent.objects.count(), Operation.objects.count()
    with pytest.raises(NotFound):
        SERVICES[service](Principal.of(team.charlie), idle)
    with pytest.raises(PermissionDenied):
        SERVICES[service](Principal.of(team.vera), idle)
    assert (AuditEvent.objects.count(), Operation.objects.count()) == before, "nothing made"


def test_a_member_may_delete_and_not_purge(idle, team):
    bob = Principal.of(team.bob)
    with pytest.raises(PermissionDenied):
        project_purge(principal=bob, project=idle, confirm=idle.slug)
    assert project_delete(principal=bob, project=idle)


@pytest.mark.parametrize("action", sorted(set(ALLOWED) - {"stop", "restart", "rotate_password"}))
def test_what_makes_no_sense_now_is_refused(idle, alice, action):
    before = Operation.objects.count()
    with pytest.raises(ActionNotAllowed, match="It is running now"):
        project_action(principal=alice, project=idle, action=action)
    assert Operation.objects.count() == before


def test_an_unknown_action_names_the_known_ones(idle, alice):
    with pytest.raises(ActionNotAllowed, match="restart"):
        project_action(principal=alice, project=idle, action="explode")


def test_one_at_a_time(idle, alice):
    project_action(principal=alice, project=idle, action="rotate_password")
    with pytest.raises(OperationInProgress):
        project_action(principal=alice, project=idle, action="stop")
    idle.refresh_from_db()
    assert idle.desired_status == "running", "what was refused changed nothing"


def test_protection_keeps_from_delete_and_purge(idle, alice):
    project_update(principal=alice, project=idle, changes={"deletion_protection": True})
    with pytest.raises(DeletionProtected):
        project_delete(principal=alice, project=idle)
    with pytest.raises(DeletionProtected):
        project_purge(principal=alice, project=idle, confirm=idle.slug)


def test_purge_wants_the_slug(idle, alice):
    for confirm in (None, ""):
        with pytest.raises(ConfirmRequired):
            project_purge(principal=alice, project=idle, confirm=confirm)
    with pytest.raises(ConfirmMismatch):
        project_purge(principal=alice, project=idle, confirm=idle.name)


def test_a_cancelled_provision_is_undone_and_can_be_tried_again(shop, alice, runtime):
    operation = operation_of(shop)
    operation_cancel(principal=alice, operation=operation)
    assert once(operation).state == "cancelled"
    shop.refresh_from_db()
    assert shop.status == "failed"
    assert not runtime.world.servers
    assert drive(operation_retry(principal=alice, operation=operation)).state == "succeeded"


def test_what_rolls_forward_can_not_be_cancelled_and_what_ended_neither(ready, alice):
    deletion = project_delete(principal=alice, project=ready)
    with pytest.raises(ActionNotAllowed):
        operation_cancel(principal=alice, operation=deletion)
    with pytest.raises(ActionNotAllowed):
        operation_cancel(principal=alice, operation=drive(deletion))


def test_retry_sends_a_waiting_one_on_its_way(shop, alice, runtime):
    runtime.unreachable = True
    operation = once(operation_of(shop))
    assert seconds_until_next(operation) > 0
    runtime.unreachable = False
    operation_retry(principal=alice, operation=operation)
    assert once(operation).state == "succeeded"
    with pytest.raises(ActionNotAllowed):
        operation_retry(principal=alice, operation=operation)


def test_an_old_failure_does_not_come_back_on_a_deleted_project(ready, alice):
    """A rotation on a stopped server would wait for ever, and keep the project from its undeletion."""
    rotation = project_action(principal=alice, project=ready, action="rotate_password")
    Operation.objects.filter(pk=rotation.pk).update(state="failed")
    rotation.locks.all().delete()
    drive(project_delete(principal=alice, project=ready))
    with pytest.raises(ActionNotAllowed):
        operation_retry(principal=alice, operation=rotation)
    with pytest.raises(ActionNotAllowed):
        project_update(principal=alice, project=ready, changes={"limits": {"memory_bytes": 200 * 2**20}})
    assert not Operation.objects.live().exists()


def test_undelete_wants_a_free_name_and_quota(ready, team, alice):
    drive(project_delete(principal=alice, project=ready))
    drive(operation_of(create(team, "SHOP")))
    with pytest.raises(NameTaken):
        project_action(principal=alice, project=ready, action="undelete")
    team.organization.max_projects = 1
    team.organization.save()
    with pytest.raises(QuotaExceeded):
        project_action(principal=alice, project=ready, action="undelete", new_name="Shop 2")
    ready.refresh_from_db()
    assert (ready.status, ready.name) == ("recycled", "Shop"), "what was refused changed nothing"
    team.organization.max_projects = 2
    team.organization.save()
    drive(project_action(principal=alice, project=ready, action="undelete", new_name="Shop 2"))
    ready.refresh_from_db()
    assert (ready.status, ready.name, ready.slug) == ("running", "Shop 2", "shop")


def test_a_name_is_free_as_soon_as_it_is_in_the_bin(ready, team, alice):
    drive(project_delete(principal=alice, project=ready))
    assert create(team, "Shop").slug == "shop-2"


def test_credentials_are_shown_only_when_ready_and_never_from_the_bin(shop, alice):
    with pytest.raises(ActionNotAllowed):
        connection_reveal(principal=alice, project=shop)
    drive(operation_of(shop))
    shop.refresh_from_db()
    assert connection_reveal(principal=alice, project=shop).password
    shop.refresh_from_db()
    assert shop.credentials_shown_at
    event = AuditEvent.objects.get(action="credentials.revealed")
    assert connection_reveal(principal=alice, project=shop).password not in str(event.data) + event.target
    project_delete(principal=alice, project=shop)
    shop.refresh_from_db()
    with pytest.raises(ActionNotAllowed):
        connection_reveal(principal=alice, project=shop)


@pytest.mark.parametrize("action", ["stop", "restart"])
def test_without_a_monitoring_worker_a_server_that_starts_can_be_stopped(ready, alice, action):
    """Nobody has logged in to it since it was seen running: the status stays “starting”, and that is no operation's."""
    Project.objects.filter(pk=ready.pk).update(health="unknown", health_checked_at=None)
    status.refresh([ready.pk])
    ready.refresh_from_db()
    assert ready.status == "starting" and action in allowed_actions(ready)
    operation = drive(project_action(principal=alice, project=ready, action=action))
    assert operation.state == "succeeded"


def test_what_an_operation_starts_is_not_stopped_meanwhile(ready, alice):
    drive(project_action(principal=alice, project=ready, action="stop"))
    project_action(principal=alice, project=ready, action="start")
    ready.refresh_from_db()
    assert ready.status == "starting" and not allowed_actions(ready) & {"stop", "restart"}
    with pytest.raises(ActionNotAllowed):
        project_action(principal=alice, project=ready, action="stop")
