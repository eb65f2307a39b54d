"""What a restore would mean, and what is refused, by rows alone."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import Organization
from accounts.permissions import Principal
from backups.models import Backup, BackupStatus, Restore, RestoreStatus
from backups.operations import restore_steps
from backups.services.preflight import Preflight, Wanted, look, rows_of
from backups.services.restores import restore_create, restore_preflight, restore_undo
from novastack.common.clock import now
from novastack.common.errors import Problem
from projects import registry
from projects.engines.ferretdb import FerretDB
from projects.models import Database, DatabaseSlot, Operation, Project, Region, TableSnapshot
from tests.backups.rows import keep_before, make_backup, make_restore, make_storage
from tests.factories import Team, api_client, make_project, make_team

pytestmark = pytest.mark.django_db


@pytest.fixture
def team() -> Team:
    return make_team()


@pytest.fixture
def project(team: Team) -> Project:
    made = make_project(team.alice, team.organization, "Shop")
    Operation.objects.filter(project_uuid=made.pk).update(state="succeeded")
    Operation.objects.get(project_uuid=made.pk).locks.all().delete()
    Project.objects.filter(pk=made.pk).update(ready_at=now(), status="running")
    made.refresh_from_db()
    return made


@pytest.fixture
def backup(project: Project) -> Backup:
    return make_backup(project, make_storage(project.organization), database_bytes=1 << 20, size_bytes=1 << 19)


def refused(team: Team, backup: Backup, **asked: Any) -> str:
    with pytest.raises(Problem) as told:
        restore_create(Principal.of(team.alice), backup, **asked)
    assert Restore.objects.count() == 0
    assert Project.objects.count() == 1
    return told.value.code


def looked(team: Team, backup: Backup, project: Project) -> tuple[Preflight, list[str]]:
    seen, found = look(backup, Wanted(target="in_place", project=project), team.organization)
    return seen, [problem.code for problem in found]


def test_the_slug_is_typed(team: Team, backup: Backup) -> None:
    assert refused(team, backup, target="in_place") == "confirm_required"
    assert refused(team, backup, target="in_place", confirm="shop2") == "confirm_mismatch"
    made = restore_create(Principal.of(team.alice), backup, target="in_place", confirm="shop")
    assert (made.status, made.safety_backup is not None) == ("queued", True)
    operation = Operation.objects.get(pk=made.operation_id)
    held = set(operation.locks.values_list("subject", flat=True))
    assert {f"project:{backup.project_uuid}", f"backup:{backup.pk}"} <= held


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"status": BackupStatus.CORRUPT}, "backup_corrupt"),
        ({"status": BackupStatus.FAILED}, "backup_not_usable"),
        ({"status": BackupStatus.DUMPING}, "backup_not_usable"),
        ({"trusted": False}, "backup_not_usable"),
        ({"version": "99"}, "version_too_old"),
        ({"engine": "mariadb"}, "engine_differs"),
        ({"database_bytes": 1 << 60}, "plan_too_small"),
        ({"engine": "ferretdb"}, "backup_not_supported"),
    ],
)
def test_what_stands_in_the_way(
    team: Team, backup: Backup, change: dict[str, Any], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    Backup.objects.filter(pk=backup.pk).update(**change)
    backup.refresh_from_db()
    assert refused(team, backup, target="in_place", confirm="shop") == code


def test_no_room(team: Team, backup: Backup, project: Project) -> None:
    Region.objects.filter(pk=project.region_id).update(disk={"free_bytes": 1 << 19, "used_percent": 50.0})
    assert refused(team, backup, target="in_place", confirm="shop") == "capacity_exhausted"


def test_a_full_quota_of_backups_does_not_stand_in_the_way(team: Team, backup: Backup, project: Project) -> None:
    """The safety backup is outside quotas: who has many backups most wants to restore one."""
    Organization.objects.update(max_backups=1, max_backup_bytes=1)
    seen, found = looked(team, backup, project)
    assert (seen.safety_backup, found) == (True, [])
    made = restore_create(Principal.of(team.alice), backup, target="in_place", confirm="shop")
    assert made.safety_backup is not None


def test_only_one_that_runs(team: Team, backup: Backup, project: Project) -> None:
    Project.objects.filter(pk=project.pk).update(status="stopped", desired_status="stopped")
    assert refused(team, backup, target="in_place", confirm="shop") == "action_not_allowed"


def test_one_at_a_time(team: Team, backup: Backup, project: Project) -> None:
    restore_create(Principal.of(team.alice), backup, target="in_place", confirm="shop")
    with pytest.raises(Problem) as told:
        restore_create(Principal.of(team.alice), backup, target="in_place", confirm="shop")
    assert told.value.code == "operation_in_progress"
    assert Restore.objects.count() == 1


def test_a_name_that_is_taken(team: Team, backup: Backup) -> None:
    assert refused(team, backup, target="new_project", name="shop") == "name_taken"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"target": "elsewhere"}, "target"),
        ({"target": "new_project", "name": ""}, "name"),
        ({"target": "new_project", "name": "Copy", "region": "moon"}, "region"),
        ({"target": "new_project", "name": "Copy", "plan": "gold"}, "plan"),
        ({"target": "new_project", "name": "Copy", "placement": "cloud"}, "placement"),
        ({"target": "in_place", "confirm": "shop", "name": "Copy"}, "name"),
        ({"target": "project", "confirm": "shop"}, "project"),
    ],
)
def test_fields(team: Team, backup: Backup, asked: dict[str, Any], field: str) -> None:
    with pytest.raises(Problem) as told:
        restore_create(Principal.of(team.alice), backup, **asked)
    assert [problem.field for problem in told.value.errors] == [field]


def test_another_project_that_is_its_own_is_in_place(team: Team, backup: Backup, project: Project) -> None:
    """Nothing of it lives beside its source: as a copy its scheduled events would come disabled."""
    asked: dict[str, Any] = {"target": "project", "project": project}
    assert restore_preflight(Principal.of(team.alice), backup, **asked).target == "in_place"
    made = restore_create(Principal.of(team.alice), backup, **asked, confirm="shop")
    assert (made.target, made.project_uuid) == ("in_place", project.pk)


@pytest.mark.parametrize(
    ("target", "own", "rests"), [("project", False, True), ("project", True, False), ("in_place", True, False)]
)
def test_events_rest_only_beside_their_source(
    monkeypatch: pytest.MonkeyPatch, target: str, own: bool, rests: bool
) -> None:
    """Also of restores that began before `project` with the source became `in_place`."""
    source = uuid4()
    restore = SimpleNamespace(target=target, source_project_uuid=source)
    monkeypatch.setattr(restore_steps.sides, "restore_of", lambda _: restore)
    monkeypatch.setattr(restore_steps, "fence", lambda _: None)
    monkeypatch.setattr(restore_steps.sides, "rest", (rest := Mock()))
    ctx: Any = Mock(project=SimpleNamespace(pk=source if own else uuid4()))
    restore_steps.fence_copy(ctx)
    assert rest.called is rests


def test_others_projects_do_not_exist(team: Team, backup: Backup) -> None:
    client = api_client(team.alice)
    url = f"/api/v1/backups/{backup.pk}/restore/"
    answer = client.post(url, {"target": "project", "project": str(uuid4()), "confirm": "x"}, format="json")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (404, "project")
    assert api_client(team.charlie).post(url, {"target": "in_place"}, format="json").status_code == 404


def test_a_removed_project_is_restored_as_a_new_one(team: Team, backup: Backup, project: Project) -> None:
    Backup.objects.filter(pk=backup.pk).update(project_uuid=uuid4())
    backup.refresh_from_db()
    assert refused(team, backup, target="in_place", confirm="shop") == "not_found"
    made = restore_create(Principal.of(team.alice), backup, target="new_project", name="Again")
    assert Project.objects.get(pk=made.project_uuid).name == "Again"
    names = list(Operation.objects.get(pk=made.operation_id).steps.values_list("name", flat=True))
    assert {"restore_names", "restore_data", "prove_data"} <= set(names)
    assert "schema" not in names


def test_rows_that_would_be_lost(team: Team, backup: Backup, project: Project) -> None:
    tables = {"public.orders": [10, "x"], "public.same": [5, "x"], "odd.gone": [7, "x"]}
    Backup.objects.filter(pk=backup.pk).update(manifest={"contents": {"tables": tables, "facts": []}}, rows=22)
    backup.refresh_from_db()
    assert rows_of(backup) == {"orders": 10, "odd.gone": 7, "same": 5}
    TableSnapshot.objects.create(
        project=project, tried_at=now(), at=now(), total=3, tables=[["orders", 14, 1], ["same", 5, 1], ["new", 3, 1]]
    )
    seen, problems = looked(team, backup, project)
    assert problems == []
    changes = {row.name: (row.live_rows, row.backup_rows, row.change_rows) for row in seen.tables}
    assert changes == {
        "orders": (14, 10, -4), "same": (5, 5, 0), "new": (3, None, -3), "odd.gone": (None, 7, 7),
    }  # fmt: skip
    assert (seen.rows_live, seen.rows_in_backup, seen.rows_lost) == (22, 22, 7)
    assert seen.counted_at is not None
    assert seen.as_json()["estimates"] is True
    assert (seen.measured, seen.expected_seconds) == (True, 201.0)


def test_the_preflight_asks_the_storage(team: Team, backup: Backup) -> None:
    """The rows say that it is there; the folder is empty."""
    seen = restore_preflight(Principal.of(team.alice), backup, target="in_place")
    assert [check.passed for check in seen.checks] == [False]
    assert len(seen.problems) == 1
    assert Restore.objects.count() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"status": RestoreStatus.FAILED},
        {"status": RestoreStatus.UNDONE},
        {"undo_until": now() - timedelta(hours=1)},
        {"target": "new_project"},
        {"operation_id": None},
    ],
)
def test_what_can_not_be_undone(team: Team, backup: Backup, project: Project, change: dict[str, Any]) -> None:
    made = make_restore(backup, project)
    values = {
        "status": RestoreStatus.SUCCEEDED,
        "undo_until": now() + timedelta(days=1),
        "target": "in_place",
        **change,
    }
    Restore.objects.filter(pk=made.pk).update(**values)
    with pytest.raises(Problem) as told:
        restore_undo(Principal.of(team.alice), Restore.objects.get(pk=made.pk))
    assert told.value.code == "undo_not_possible"


def kept_copy(project: Project, days: int) -> Database:
    """The row of a database from before."""
    copy = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT)
    copy.pk, copy.name, copy.slot = uuid4(), f"before_{days}", DatabaseSlot.PREVIOUS
    copy.keep_until = now() + timedelta(days=days)
    copy._state.adding = True
    copy.save()
    return copy


def test_no_more_than_three_databases_from_before(team: Team, backup: Backup, project: Project) -> None:
    first = [kept_copy(project, days) for days in (3, 1, 2)][1]
    assert looked(team, backup, project)[1] == ["too_many_copies"]
    answer = api_client(team.alice).post(
        f"/api/v1/backups/{backup.pk}/restore/", {"target": "in_place", "confirm": "shop"}, format="json"
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_copies")
    assert f"{first.keep_until:%Y-%m-%d %H:%M}" in answer.json()["detail"]
    Database.objects.filter(pk=first.pk).update(drop_due_at=now())
    assert looked(team, backup, project)[1] == []


@pytest.mark.parametrize("before", [RestoreStatus.UNDOING, RestoreStatus.SUCCEEDED])
def test_a_failed_undo_is_told(team: Team, backup: Backup, project: Project, before: str) -> None:
    """`SUCCEEDED`: its undo has put the row back already."""
    operation = Operation.objects.get(project_uuid=project.pk)
    made = make_restore(backup, project, status=before, operation_id=uuid4(), undo_operation_id=operation.pk)
    keep_before(made, project)
    operation.params = {"restore": str(made.pk)}
    operation.error = {"code": "server_unreachable", "detail": "The old server did not start.", "retryable": True}
    restore_steps.not_undone(operation)
    client = api_client(team.alice)
    shown = client.get(f"/api/v1/restores/{made.pk}/").json()
    assert set(shown["undo_operation"]) == {"id", "kind", "state", "url"} and shown["operation"]["kind"] == "restore"
    assert (shown["status"], shown["error"]["code"]) == ("succeeded", "server_unreachable")
    page = Client()
    page.force_login(team.alice)
    text = page.get(f"/restores/{made.pk}/").content.decode()
    assert "It was not undone: The old server did not start." in text
    assert "is restored" in text and "Undo restore" in text


@pytest.mark.parametrize(
    ("engine", "asked", "field"),
    [("postgresql", {"version": "3"}, "version"), ("mariadb", {"placement": "pool", "version": None}, "placement")],
)
def test_a_dry_run_refuses_what_would_be_refused(
    team: Team, backup: Backup, engine: str, asked: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Backup.objects.filter(pk=backup.pk).update(engine=engine)
    backup.refresh_from_db()
    if field == "placement":
        monkeypatch.setattr(registry.engine(engine), "capabilities", frozenset())
    url = f"/api/v1/backups/{backup.pk}/restore/"
    body = {"target": "new_project", "name": "Copy", **{key: value for key, value in asked.items() if value}}
    for dry_run in (True, False):
        answer = api_client(team.alice).post(url, {**body, "dry_run": dry_run}, format="json")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (400, field)


def test_a_list_asks_for_all_operations_at_once(
    team: Team, backup: Backup, project: Project, django_assert_num_queries: Any
) -> None:
    operation = Operation.objects.get(project_uuid=project.pk)
    client, url = api_client(team.alice), "/api/v1/restores/"
    make_restore(backup, project, operation_id=operation.pk)
    client.get(url)
    with CaptureQueriesContext(connection) as one:
        client.get(url)
    for _ in range(4):
        make_restore(backup, project, operation_id=operation.pk)
    with django_assert_num_queries(len(one)):
        found = client.get(url).json()["results"]
    assert [row["operation"]["kind"] for row in found] == [operation.kind] * 5
