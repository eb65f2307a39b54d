"""A backup becomes a new project: all that was in it, under the project's own names, and nobody is let in before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backups.manifest import contents_from_json
from backups.models import Backup, Restore, StorageTarget
from backups.operations import restore_new, restoring_data
from projects.models import Database, DatabaseRole, DatabaseServer, Operation, OperationLock, Project
from projects.operations import steps
from projects.operations.base import StepFailed
from projects.services import ProjectRequest, operation_cancel, project_action, project_create
from tests.engines.test_copies_postgresql import HOSTILE
from tests.factories import api_client
from tests.faults.conftest import Site
from tests.moves.test_moves_pools import all_done
from tests.restores.taken import change_manifest, damage, stored_file, take

pytestmark = pytest.mark.docker


def fill(site: Site, project: Project) -> None:
    with site.login(project) as session:
        session.execute(HOSTILE)


def restore(site: Site, backup: Backup, **body: Any) -> Restore:
    answer = api_client(site.team.alice).post(f"/api/v1/backups/{backup.pk}/restore/", body, format="json")
    assert answer.status_code == 202, answer.content
    return Restore.objects.get(pk=answer.json()["id"])


def run(site: Site, made: Restore, seconds: float = 120) -> Operation:
    operation = site.finish(Operation.objects.get(pk=made.operation_id), seconds)
    made.refresh_from_db()
    return operation


def told(operation: Operation) -> Any:
    return operation.error, [(s.name, s.state, s.detail) for s in operation.steps.all()]


def test_all_that_was_in_it_goes_round(docker_site: Site, target: StorageTarget) -> None:
    site = docker_site
    source = site.ready()
    fill(site, source)
    backup = take(source)
    made = restore(site, backup, target="new_project", name="Shop, Monday")
    operation = run(site, made)
    assert operation.state == "succeeded", told(operation)
    assert made.status == "succeeded"
    assert made.duration_seconds is not None
    (said,) = operation.events.filter(message__startswith="After a restore the server spells otherwise")
    assert said.level == "warning" and "constraint public.spelled.spelled_v_check" in said.message
    project = Project.objects.get(pk=made.project_uuid)
    assert (project.name, project.status) == ("Shop, Monday", "running")
    assert site.rows_of(project) == 1000
    assert not OperationLock.objects.exists()
    # Its own names, and nothing of the source's: neither in the rows nor in the server.
    theirs = set(DatabaseRole.objects.filter(database__project=source).values_list("name", flat=True))
    mine = set(DatabaseRole.objects.filter(database__project=project).values_list("name", flat=True))
    assert not theirs & mine
    site.check_things(project)
    with site.client.administrator(project) as session:
        left = session.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", [sorted(theirs)]).fetchall()
        assert left == []
    # And what is in it is what the source has, read again.
    again = take(project)
    assert same_but_names(backup, source, again, project)
    site.check_exactly(source, project)


def same_but_names(one: Backup, source: Project, other: Backup, project: Project) -> bool:
    """Contents name roles in rights: those of the one read as those of the other."""
    text = json.dumps(other.manifest["contents"], sort_keys=True)
    mine = {r.kind: r.name for r in DatabaseRole.objects.filter(database__project=source)}
    for role in DatabaseRole.objects.filter(database__project=project):
        text = text.replace(role.name, mine[role.kind])
    text = text.replace(
        Database.objects.get(project=project).name + '"', Database.objects.get(project=source).name + '"'
    )
    wanted, found = contents_from_json(one.manifest["contents"]), contents_from_json(json.loads(text))
    assert wanted.differences(found) == []
    return True


def test_on_a_pool_where_the_source_lives_it_gets_another_one(docker_site: Site, target: StorageTarget) -> None:
    """Roles of one server have one name each: the copy's have the source's until it is proven."""
    site = docker_site
    source = site.create(placement="pool")
    all_done(site, Site.operation(source))
    source.refresh_from_db()
    site.client.fill(source)
    fill(site, source)
    backup = take(source)
    before = Database.objects.get(project=source)
    made = restore(site, backup, target="new_project", name="Copy", placement="pool")
    operation = all_done(site, Operation.objects.get(pk=made.operation_id))
    project = Project.objects.get(pk=made.project_uuid)
    assert (operation.state, project.status, project.placement) == ("succeeded", "running", "pool")
    after = Database.objects.get(project=project)
    assert after.server_id != before.server_id
    assert site.rows_of(project) == 1000
    assert same_but_names(backup, source, take(project), project)
    theirs = set(before.roles.values_list("name", flat=True))
    with site.client.administrator(project) as session:
        assert session.execute("SELECT 1 FROM pg_roles WHERE rolname = ANY(%s)", [sorted(theirs)]).fetchall() == []
    # The source is as it was.
    assert set(Database.objects.get(project=source).roles.values_list("name", flat=True)) == theirs
    assert site.rows_of(source) == 1000


def test_what_is_damaged_becomes_nothing(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
    site = docker_site
    source = site.ready()
    backup = take(source)
    damage(backup_root, backup)
    made = restore(site, backup, target="new_project", name="Copy")
    operation = run(site, made)
    assert operation.state == "failed", told(operation)
    assert operation.error is not None
    assert operation.error["code"] in restoring_data.CORRUPT
    assert (made.status, made.error) == ("failed", operation.error)
    project = Project.objects.get(pk=made.project_uuid)
    assert (project.status, project.ready_at) == ("failed", None)
    assert not OperationLock.objects.exists()
    running = {handle.server_id for handle in site.runtime.managed()}
    assert running == {str(DatabaseServer.objects.get(project_uuid=source.pk).pk)}
    assert site.rows_of(source) == 1000


def test_a_failed_one_is_restored_when_it_is_retried(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retry makes the database anew, with what is in the backup, and not an empty one."""
    site = docker_site
    source = site.ready()
    backup = take(source)

    def broken(*_: object, **__: object) -> None:
        raise StepFailed("restore_failed", "It broke.", retryable=False)

    with monkeypatch.context() as patched:
        patched.setattr(restoring_data, "restore_into", broken)
        made = restore(site, backup, target="new_project", name="Copy")
        assert run(site, made).state == "failed"
    names = set(DatabaseRole.objects.filter(database__project_id=made.project_uuid).values_list("name", flat=True))
    project = Project.objects.get(pk=made.project_uuid)
    again = project_action(principal=site.alice, project=project, action="retry")
    site.finish(again, 120)
    assert again.state == "succeeded", told(again)
    made.refresh_from_db()
    project.refresh_from_db()
    assert (made.status, made.error, project.status) == ("succeeded", None, "running")
    assert site.rows_of(project) == 1000
    assert set(DatabaseRole.objects.filter(database__project=project).values_list("name", flat=True)) == names
    assert not OperationLock.objects.exists()


class Counted:
    """How often a backup was filled in and compared; the first logins after that fail, as a server's that went away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, times: int = 1) -> None:
        self.filled = self.compared = self.refused = 0
        fill_in, prove, login = restore_new.sides.fill, restore_new.sides.prove, steps.prove_tenant

        def filled(*args: Any) -> None:
            self.filled += 1
            fill_in(*args)

        def compared(*args: Any) -> None:
            self.compared += 1
            prove(*args)

        def refused(ctx: Any) -> None:
            if self.compared and self.refused < times:
                self.refused += 1
                raise StepFailed("server_not_ready", "It does not answer.")
            login(ctx)

        monkeypatch.setattr(restore_new.sides, "fill", filled)
        monkeypatch.setattr(restore_new.sides, "prove", compared)
        monkeypatch.setattr(steps, "prove_tenant", refused)


@pytest.mark.parametrize("placement", ["dedicated", "pool"])
def test_what_is_proven_is_not_restored_again(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch, placement: str
) -> None:
    """The last step fails: earlier ones are run again, from the server's or from the first one."""
    site = docker_site
    source = site.ready()
    fill(site, source)
    backup = take(source)
    times = 1 if placement == "dedicated" else 3  # on a pool all is run again, after the third
    counted = Counted(monkeypatch, times=times)
    made = restore(site, backup, target="new_project", name="Copy", placement=placement)
    operation = all_done(site, Operation.objects.get(pk=made.operation_id))
    assert operation.state == "succeeded", told(operation)
    assert (counted.refused, counted.filled, counted.compared) == (times, 1, 1)
    project = Project.objects.get(pk=made.project_uuid)
    assert (project.status, site.rows_of(project)) == ("running", 1000)
    theirs = set(DatabaseRole.objects.filter(database__project=source).values_list("name", flat=True))
    with site.client.administrator(project) as session:
        assert session.execute("SELECT 1 FROM pg_roles WHERE rolname = ANY(%s)", [sorted(theirs)]).fetchall() == []


def test_cancelled_in_the_middle_nothing_is_left(
    docker_site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = docker_site
    source = site.ready()
    backup = take(source)
    made = restore(site, backup, target="new_project", name="Copy")
    operation = Operation.objects.get(pk=made.operation_id)
    real = restoring_data.restore_into

    def cancelled(*args: Any, **kwargs: Any) -> Any:
        operation_cancel(principal=site.alice, operation=operation)
        return real(*args, **kwargs)

    monkeypatch.setattr(restoring_data, "restore_into", cancelled)
    run(site, made)
    operation.refresh_from_db()
    assert (operation.state, made.status) == ("cancelled", "cancelled"), told(operation)
    running = {handle.server_id for handle in site.runtime.managed()}
    assert running == {str(DatabaseServer.objects.get(project_uuid=source.pk).pk)}
    assert not OperationLock.objects.exists()


def test_an_older_server_is_refused_before_anything_is_made(docker_site: Site, target: StorageTarget) -> None:
    site = docker_site
    source = site.ready()
    backup = take(source)
    Backup.objects.filter(pk=backup.pk).update(version="99")
    client = api_client(site.team.alice)
    url = f"/api/v1/backups/{backup.pk}/restore/"
    body = {"target": "new_project", "name": "Copy", "version": site.version}
    answer = client.post(url, body, format="json")
    assert (answer.status_code, answer.json()["code"]) == (409, "version_too_old")
    Backup.objects.filter(pk=backup.pk).update(version=site.version)
    answer = client.post(url, {**body, "version": "15"}, format="json")  # as it is
    assert (answer.status_code, answer.json()["code"]) == (409, "version_too_old")
    assert Project.objects.count() == 1
    # The row may say what it wants: the signed manifest decides.
    Backup.objects.filter(pk=backup.pk).update(version=site.version)
    change_manifest(backup, version="99")
    made = restore(site, backup, **body)
    operation = run(site, made)
    assert operation.error is not None
    assert operation.error["code"] == "version_too_old"
    assert DatabaseServer.objects.filter(initialised_at__isnull=False).count() == 1


def test_the_preflight_says_what_is_wrong_with_the_object(
    docker_site: Site, target: StorageTarget, backup_root: Path
) -> None:
    site = docker_site
    source = site.ready()
    backup = take(source)
    client = api_client(site.team.alice)
    url, body = f"/api/v1/backups/{backup.pk}/restore/", {"target": "new_project", "name": "Copy", "dry_run": True}
    answer = client.post(url, body, format="json")
    assert (answer.status_code, answer.json()["problems"]) == (200, [])
    assert [check["passed"] for check in answer.json()["checks"]] == [True, True]
    stored = stored_file(backup_root, backup)
    whole = stored.read_bytes()
    stored.write_bytes(whole[:-1])
    assert [p["code"] for p in client.post(url, body, format="json").json()["problems"]] == ["backup_corrupt"]
    stored.unlink()
    assert [p["code"] for p in client.post(url, body, format="json").json()["problems"]] == ["object_missing"]
    assert Restore.objects.count() == 0
    assert Project.objects.count() == 1


@pytest.mark.parametrize("newer", ["17", "18"])
def test_into_a_newer_postgresql(docker_site: Site, target: StorageTarget, newer: str) -> None:
    """All rows, whatever the newer server spells otherwise; that is said, and the operation shows it."""
    site = docker_site
    source = project_create(
        principal=site.alice, organization=site.team.organization,
        request=ProjectRequest(name="Old", engine="postgresql", version="15", region="site"),
    )  # fmt: skip
    site.finish(Site.operation(source))
    source.refresh_from_db()
    assert source.status == "running", source.status_detail
    site.client.fill(source)
    fill(site, source)
    backup = take(source)
    assert backup.manifest["version"] == "15"
    made = restore(site, backup, target="new_project", name="New", version=newer)
    operation = run(site, made)
    assert operation.state == "succeeded", told(operation)
    project = Project.objects.get(pk=made.project_uuid)
    assert (project.version, project.status) == (newer, "running")
    assert site.rows_of(project) == 1000
    tables, again = backup.manifest["contents"]["tables"], take(project).manifest["contents"]["tables"]
    assert tables == again, "every row has the same hash on the newer server"
    with site.login(project) as session:
        shown = session.execute("SHOW server_version").fetchone()[0]
        assert shown.startswith(newer)
        assert session.execute("SELECT count(*) FROM spelling").fetchone() == (0,)
    site.check_things(project)
