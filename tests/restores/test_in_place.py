"""Over a database that lives: the backup's content, at the same address, with the one from before kept; and the way back."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import transaction

from backups.manifest import contents_from_json
from backups.models import Backup, BackupPolicy, Restore, StorageTarget
from backups.operations import restore_steps, restoring_data, storages
from backups.services import readings
from backups.storage.base import StorageError
from novastack.common.clock import now
from projects.engines.postgresql_admin import RESERVED_CONNECTIONS, SUPERUSER_CONNECTIONS
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Operation,
    OperationLock,
    Project,
    ServerKind,
)
from projects.operations import runner
from projects.operations.base import PLATFORM_CONNECTIONS, StepFailed
from projects.operations.moving import move_begin
from projects.services import project_action
from tests.factories import api_client
from tests.faults.clients import password_of, role_of
from tests.faults.conftest import Site
from tests.restores.taken import damage, take
from tests.restores.test_new_projects import fill, told

pytestmark = pytest.mark.docker
OURS = SUPERUSER_CONNECTIONS + RESERVED_CONNECTIONS


def unproven(project: Project) -> None:
    """Proofs have tests of their own, and take their time."""
    BackupPolicy.objects.update_or_create(
        project=project, defaults={"organization_id": project.organization_id, "verify_after_backup": False}
    )


def ask(site: Site, backup: Backup, **body: Any) -> Any:
    return api_client(site.team.alice).post(f"/api/v1/backups/{backup.pk}/restore/", body, format="json")


def begin(site: Site, backup: Backup, **body: Any) -> tuple[Restore, Operation]:
    answer = ask(site, backup, **body)
    assert answer.status_code == 202, answer.content
    made = Restore.objects.get(pk=answer.json()["id"])
    return made, Operation.objects.get(pk=made.operation_id)


def undo(site: Site, made: Restore) -> Operation:
    answer = api_client(site.team.alice).post(f"/api/v1/restores/{made.pk}/undo/", {}, format="json")
    assert answer.status_code == 202, answer.content
    assert answer.json()["status"] == "undoing"
    return Operation.objects.get(pk=answer.json()["undo_operation"]["id"])


def all_run(site: Site, operation: Operation, seconds: float = 200) -> Operation:
    """Also what it waits for."""
    deadline = time.monotonic() + seconds
    while operation.live and time.monotonic() < deadline:
        for pk in Operation.objects.live().order_by("created_at").values_list("pk", flat=True):
            Operation.objects.filter(pk=pk).update(next_attempt_at=None)
            runner.run(pk)
        operation.refresh_from_db()
    return operation


def ids(site: Site, project: Project) -> list[int]:
    with site.login(project) as session:
        return [row[0] for row in session.execute("SELECT id FROM public.told ORDER BY id").fetchall()]


def write(site: Site, project: Project, *values: int) -> None:
    with site.login(project) as session:
        session.execute("CREATE TABLE IF NOT EXISTS public.told (id int PRIMARY KEY)")
        for value in values:
            session.execute("INSERT INTO public.told VALUES (%s)", [value])


def as_it_was(site: Site, project: Project, server: DatabaseServer) -> None:
    """Nothing that lives was touched, and nothing is left over."""
    project.refresh_from_db()
    assert project.status == "running", (project.status, project.status_detail)
    assert Database.objects.get(project=project).server_id == server.pk
    assert not OperationLock.objects.exists()
    assert {handle.server_id for handle in site.runtime.managed()} == {str(server.pk)}
    with site.client.administrator(project) as session:
        left = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'nvs%%copy'").fetchone()
        assert left == (0,)


def test_in_place_and_back(docker_site: Site, target: StorageTarget) -> None:
    """Undo brings back what was written after the backup; what was restored, and written since, is kept as well."""
    site = docker_site
    project = site.ready()
    unproven(project)
    fill(site, project)
    write(site, project, 1, 2)
    backup = take(project)
    write(site, project, 3)
    address = Endpoint.objects.values_list("host", "port").get(project=project)
    login = (role_of(project).name, password_of(role_of(project)), Database.objects.get(project=project).name)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    project.refresh_from_db()
    assert project.status == "restoring"
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    made.refresh_from_db()
    project.refresh_from_db()
    assert (made.status, project.status) == ("succeeded", "running")
    assert ids(site, project) == [1, 2]
    assert site.rows_of(project) == 1000
    # The connection string is what it was.
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    current = Database.objects.get(project=project, slot=DatabaseSlot.CURRENT)
    assert (role_of(project).name, password_of(role_of(project)), current.name) == login
    assert operation.result["address_changed"] is False
    assert operation.result["names_changed"] is False
    assert current.server_id != old.pk
    # It is what the backup is, read again; the safety backup holds what was there.
    again, wanted = (contents_from_json(b.manifest["contents"]) for b in (take(project), backup))
    assert again.differences(wanted) == []
    safety = made.safety_backup
    assert safety is not None
    assert (safety.trigger, safety.status, safety.pinned) == ("safety", "stored", True)
    assert (safety.rows or 0) - (backup.rows or 0) == 1
    # The one from before: stopped, for seven days.
    kept = Database.objects.get(project=project, slot=DatabaseSlot.PREVIOUS)
    assert kept.server_id == old.pk
    assert kept.keep_until is not None
    assert timedelta(days=6, hours=23) < kept.keep_until - now() < timedelta(days=7)
    assert made.undo_until == kept.keep_until
    assert not OperationLock.objects.exists()
    write(site, project, 4)
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    made.refresh_from_db()
    project.refresh_from_db()
    assert (made.status, project.status) == ("undone", "running")
    assert ids(site, project) == [1, 2, 3]
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    assert DatabaseServer.objects.get(project_uuid=project.pk).pk == old.pk
    undone = Database.objects.get(project=project, slot=DatabaseSlot.PREVIOUS)
    assert undone.pk == current.pk
    assert undone.keep_until is not None
    assert site.runtime.data_exists(undone.server.handle)
    answer = api_client(site.team.alice).post(f"/api/v1/restores/{made.pk}/undo/", {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "undo_not_possible")


def test_undo_has_the_password_of_today(docker_site: Site, target: StorageTarget) -> None:
    site = docker_site
    project = site.ready()
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    old = password_of(role_of(project))
    rotation = project_action(principal=site.alice, project=project, action="rotate_password")
    assert site.finish(rotation).state == "succeeded"
    assert password_of(role_of(project)) != old
    role = role_of(project)
    role.connection_limit += 9  # as a change of plan does
    role.save()
    made.refresh_from_db()
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert password_of(role_of(project)) != old
    assert ids(site, project) == [1]  # logged in with it
    most = role.connection_limit + PLATFORM_CONNECTIONS
    assert DatabaseServer.objects.get(project_uuid=project.pk).max_connections == most
    with site.client.administrator(project) as session:
        assert int(session.execute("SHOW max_connections").fetchone()[0]) == most + OURS


def test_a_password_that_was_set_meanwhile_stays(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tenant sets its own while the copy is filled, hours after the stored one was tried."""
    site = docker_site
    project = site.ready()
    unproven(project)
    backup = take(project)
    where = Endpoint.objects.get(project=project)
    login = {"host": where.host, "port": where.port, "user": role_of(project).name}
    login["dbname"] = Database.objects.get(project=project).name
    real = restore_steps.sides.fill

    def fill_slowly(*args: Any) -> None:
        with site.login(project) as session:
            session.execute("SET ROLE NONE")
            session.execute("ALTER ROLE CURRENT_USER PASSWORD 'of-my-own-choice-42'")
        real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(restore_steps.sides, "fill", fill_slowly)
        _, operation = begin(site, backup, target="in_place", confirm=project.slug)
        all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert operation.steps.get(name="fence").data["password_known"] is False
    with psycopg.connect(**login, password="of-my-own-choice-42", connect_timeout=5) as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_undo_is_refused_after_another_database_took_its_place(docker_site: Site, target: StorageTarget) -> None:
    site = docker_site
    project = site.ready()
    unproven(project)
    backup = take(project)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    with transaction.atomic():
        move = move_begin(project, created_by_label="test")
    assert readings.undoable(project) == Restore.objects.get(pk=made.pk)
    assert site.finish(move, 120).state == "succeeded"
    assert readings.undoable(project) is None
    answer = api_client(site.team.alice).post(f"/api/v1/restores/{made.pk}/undo/", {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "undo_not_possible")


def test_into_another_project(docker_site: Site, target: StorageTarget) -> None:
    """Its names and password stay; the source's appear nowhere."""
    site = docker_site
    source, other = site.ready("Shop"), site.ready("Lab")
    unproven(other)
    fill(site, source)
    write(site, source, 1, 2)
    write(site, other, 7)
    backup = take(source)
    answer = ask(site, backup, target="project", project=str(other.pk), confirm=source.slug)
    assert (answer.status_code, answer.json()["code"]) == (409, "confirm_mismatch")
    answer = ask(site, backup, target="project", project=str(other.pk))
    assert (answer.status_code, answer.json()["code"]) == (409, "confirm_required")
    name = role_of(other).name
    made, operation = begin(site, backup, target="project", project=str(other.pk), confirm=other.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert ids(site, other) == [1, 2]
    assert role_of(other).name == name
    with site.client.administrator(other) as session:
        found = session.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role_of(source).name]).fetchall()
        assert found == []
    made.refresh_from_db()
    assert all_run(site, undo(site, made)).state == "succeeded"
    assert ids(site, other) == [7]


def test_a_safety_backup_that_fails_ends_it(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = docker_site
    project = site.ready()
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    real = storages.storage_of

    def full(where: StorageTarget) -> Any:
        storage = real(where)

        def refuse(*_: object, **__: object) -> Any:
            raise StorageError("storage_full", "There is no room.", retryable=False)

        storage.writer = refuse  # type: ignore[method-assign]
        return storage

    monkeypatch.setattr(storages, "storage_of", full)
    write(site, project, 2)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "failed"
    assert operation.error is not None
    assert operation.error["code"] == "storage_full"
    made.refresh_from_db()
    assert made.status == "failed"
    assert made.safety_backup is not None
    assert made.safety_backup.status == "failed"
    as_it_was(site, project, server)
    assert ids(site, project) == [1, 2]


def test_what_is_damaged_is_refused_before_the_live_one_is_touched(
    docker_site: Site, target: StorageTarget, backup_root: Path
) -> None:
    site = docker_site
    project = site.ready()
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    damage(backup_root, backup)
    write(site, project, 2)
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    with site.login(project) as session:  # who is connected stays so
        all_run(site, operation)
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert operation.error is not None
    assert operation.error["code"] in restoring_data.CORRUPT, told(operation)
    made.refresh_from_db()
    assert made.status == "failed"
    as_it_was(site, project, server)
    assert ids(site, project) == [1, 2]


@pytest.mark.parametrize("step", ["prove", "carry_password"])
def test_a_failure_anywhere_leaves_the_live_one(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    site = docker_site
    project = site.ready()
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    write(site, project, 2)
    server = DatabaseServer.objects.get(project_uuid=project.pk)

    def broken(*_: object, **__: object) -> None:
        raise StepFailed("target_full", "No room.", retryable=False)

    monkeypatch.setattr(restore_steps.sides if step == "prove" else restore_steps, step, broken)
    _, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "failed"
    as_it_was(site, project, server)
    assert ids(site, project) == [1, 2]


def test_on_a_pool_it_goes_to_another_pool(docker_site: Site, target: StorageTarget) -> None:
    from tests.moves.test_moves_pools import all_done

    site = docker_site
    project = site.create(placement="pool")
    all_done(site, Site.operation(project))
    project.refresh_from_db()
    site.client.fill(project)
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    write(site, project, 2)
    seen = ask(site, backup, target="in_place", dry_run=True).json()
    assert seen["address_changes"] is True
    before = Database.objects.get(project=project)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_done(site, operation)
    project.refresh_from_db()
    assert (project.status, project.placement) == ("running", "pool")
    after = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    assert (after.server.kind, after.server_id != before.server_id) == (ServerKind.POOL, True)
    assert ids(site, project) == [1]
    assert site.rows_of(project) == 1000
    made.refresh_from_db()
    all_done(site, undo(site, made))
    project.refresh_from_db()
    assert Database.objects.get(project=project, slot=DatabaseSlot.CURRENT).pk == before.pk
    assert ids(site, project) == [1, 2]


def test_the_safety_backup_is_proven_first(docker_site: Site, target: StorageTarget) -> None:
    """As the policy has it, by default: nothing is made before a throw-away server has proven it."""
    site = docker_site
    project = site.ready()
    write(site, project, 1)
    backup = take(project)
    write(site, project, 2)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    made.refresh_from_db()
    assert made.safety_backup is not None
    assert made.safety_backup.status == "verified"
    proof = made.safety_backup.proofs.get()
    assert proof.finished_at is not None
    assert proof.finished_at < operation.steps.get(name="server").started_at
    assert ids(site, project) == [1]
