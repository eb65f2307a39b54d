"""Warm standbys are claimed by one project each."""

from __future__ import annotations

import pytest

from projects import domain
from projects.models import (
    Database,
    DatabaseRole,
    DatabaseServer,
    DataTombstone,
    Project,
    StandbyTarget,
)
from projects.operations import claiming, runner, standby_upkeep, standbys
from tests.operations.conftest import create, drive, killed_at, operation_of
from tests.operations.standby_targets import _looks_again, _standby, _target, held, server_of, settle, spare  # noqa: F401 - fixtures


# --- claiming -----------------------------------------------------------------------------------------------------------
def test_a_project_takes_the_standby(standby, team, runtime, paper):
    project = create(team, "Shop")
    planned = server_of(project)
    paper.diary.clear()
    operation = drive(operation_of(project))
    assert operation.state == "succeeded"
    server = server_of(project)
    assert server.pk == standby.pk != planned.pk
    assert (server.kind, server.standby_of, server.standby_ready_at) == ("dedicated", None, None)
    assert not DatabaseServer.objects.filter(pk=planned.pk).exists()
    project.refresh_from_db()
    assert project.status == "running"
    assert project.endpoint.port == project.endpoint.control_port == standby.port
    assert Database.objects.get(project=project).server == server
    assert set(DatabaseRole.objects.values_list("server_id", flat=True)) == {server.pk}
    assert paper.diary == ["contents", "create_tenant", "bootstrap", "verify_tenant"], "nothing is made or closed again"
    assert held(runtime)[0] == {str(standby.pk)}


def test_less_cpu_than_the_plan_is_applied_to_the_running_server(standby, team, runtime):
    from accounts.permissions import Principal
    from projects.services import ProjectRequest, project_create

    project = project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Shop", limits={"cpus": 0.25}),
    )  # fmt: skip
    drive(operation_of(project))
    server = server_of(project)
    assert server.pk == standby.pk
    assert float(server.cpus) == 0.25
    assert runtime.describe([server.handle])[server.handle].cpus == 0.25


@pytest.mark.parametrize("what", ["memory", "version", "image", "certificate", "aside", "unfinished", "leaving"])
def test_what_does_not_fit_is_not_taken(standby, team, what):
    rows = DatabaseServer.objects.filter(pk=standby.pk)
    changes = {
        "memory": {"memory_bytes": 1 << 30}, "version": {"version": "17"}, "image": {"image_digest": "sha256:old"},
        "certificate": {"tls_names": ["elsewhere.example"]}, "aside": {"reconcile": False},
        "unfinished": {"standby_ready_at": None}, "leaving": {"desired_state": "absent"},
    }  # fmt: skip
    rows.update(**changes[what])
    project = create(team, "Shop")
    assert drive(operation_of(project)).state == "succeeded"
    assert server_of(project).pk != standby.pk
    assert rows.get().kind == "standby"


def test_tls_that_is_required_is_required_of_the_standby_too(standby, team, paper):
    from accounts.permissions import Principal
    from projects.services import ProjectRequest, project_create

    request = ProjectRequest(name="Shop", tls_required=True)
    project = project_create(principal=Principal.of(team.alice), organization=team.organization, request=request)
    assert drive(operation_of(project)).state == "succeeded"
    server = server_of(project)
    assert server.pk == standby.pk
    assert paper.accepts_plain(server.control_endpoint) is False


def test_two_projects_and_one_standby(standby, team, monkeypatch):
    """The second claims between the first one's look and its claim."""
    first, second = create(team, "First"), create(team, "Second")
    claim = claiming._claim

    def slower(ctx, row):
        monkeypatch.setattr(claiming, "_claim", claim)
        assert drive(operation_of(second)).state == "succeeded"
        return claim(ctx, row)

    monkeypatch.setattr(claiming, "_claim", slower)
    assert drive(operation_of(first)).state == "succeeded"
    assert server_of(second).pk == standby.pk
    assert server_of(first).pk != standby.pk
    assert len({p.endpoint.port for p in Project.objects.all()}) == 2


def test_fewer_wanted_while_it_is_being_claimed(standby, team, monkeypatch):
    """The removal comes between look and claim: the project gets another server, and the standby goes."""
    project = create(team, "Shop")
    claim = claiming._claim

    def slower(ctx, row):
        StandbyTarget.objects.update(count=0)
        assert standby_upkeep.keep().removing == 1
        return claim(ctx, row)

    monkeypatch.setattr(claiming, "_claim", slower)
    assert drive(operation_of(project)).state == "succeeded"
    assert server_of(project).pk != standby.pk
    settle()
    assert not DatabaseServer.objects.filter(pk=standby.pk).exists()


def test_fewer_wanted_after_it_was_claimed_removes_nothing(standby, team, runtime):
    project = create(team, "Shop")
    drive(operation_of(project))
    StandbyTarget.objects.update(count=0)
    assert standbys.remove_begin(standby, "fewer are wanted") is None
    settle()
    assert server_of(project).pk == standby.pk
    assert held(runtime)[0] == {str(standby.pk)}


def test_a_container_that_was_removed_by_hand_fails_nobody(standby, team, runtime):
    del runtime.world.servers[standby.handle.name]
    project = create(team, "Shop")
    assert drive(operation_of(project)).state == "succeeded"
    assert server_of(project).pk != standby.pk
    settle()
    assert spare().pk != standby.pk, "it was replaced"
    assert held(runtime) == ({str(spare().pk), str(server_of(project).pk)},) * 2


def test_one_that_holds_somebodys_data_is_neither_claimed_nor_removed(standby, team, runtime, paper):
    """Rows that were restored from a backup say less than is true."""
    paper.of(standby.control_endpoint).databases.add("shop")
    project = create(team, "Shop")
    assert drive(operation_of(project)).state == "succeeded"
    assert server_of(project).pk != standby.pk
    standby.refresh_from_db()
    assert not standby.reconcile
    assert "shop" in standby.observed_detail
    StandbyTarget.objects.update(count=0)
    settle()
    assert DatabaseServer.objects.filter(pk=standby.pk).exists()
    assert str(standby.pk) in held(runtime)[1]


def test_killed_at_every_statement_of_the_claim(standby, team, runtime, paper):
    """The claim stands or the standby stays free; never both, never neither."""
    taken_at, free_at, number = [], [], 0
    while True:
        number += 1
        settle()
        free = spare()
        project = create(team, f"Shop {number}")
        operation = operation_of(project)
        with killed_at(number) as seen:
            runner.run(operation.pk)
        if not seen.statement:
            break
        taken = server_of(project).pk == free.pk
        (taken_at if taken else free_at).append(number)
        assert DatabaseServer.objects.filter(pk=free.pk, kind="standby").exists() is not taken
        assert drive(operation).state == "succeeded", operation.error
        project.refresh_from_db()
        assert project.status == "running"
        assert project.endpoint.port == server_of(project).port
        assert len(held(runtime)[0]) == DatabaseServer.objects.exclude(runtime_ref="").count()
        Project.objects.filter(pk=project.pk).update(organization=team.elsewhere, name=f"Done {number}")
    assert len(taken_at) > 10
    assert len(free_at) > 10
    assert max(free_at) < min(taken_at)
    assert server_of(project).pk == free.pk


def test_undone_it_is_removed_like_any_other_and_never_given_back(standby, team, runtime, paper):
    broken = domain.EngineError("no")
    broken.retryable = False
    paper.fails["create_tenant"] = [broken]
    project = create(team, "Shop")
    assert drive(operation_of(project)).state == "failed"
    server = server_of(project)
    assert (server.pk, server.kind, server.incarnation, server.initialised_at) == (standby.pk, "dedicated", 2, None)
    tomb = DataTombstone.objects.get(server_uuid=standby.pk)
    assert tomb.project_uuid == project.pk
    assert held(runtime)[0] == set()
    settle()
    assert spare().pk != standby.pk


def test_claimed_then_stopped_before_the_database_was_made(standby, team, runtime):
    """The server goes away under a later step: it is started on its own data, not made anew."""
    project = create(team, "Shop")
    operation = operation_of(project)
    original = runtime.observe

    with pytest.MonkeyPatch.context() as patch:

        def gone(ctx, row):
            found = real(ctx, row)
            runtime.stop(row.handle, grace_seconds=0)
            return found

        real = claiming._claim
        patch.setattr(claiming, "_claim", gone)
        drive(operation)
    assert original is not None
    assert operation.state == "succeeded"
    assert server_of(project).pk == standby.pk
