"""The one function that says how a project is (rule 42)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects.models import DatabaseServer, DesiredStatus, Health, ObservedState, Project, ProjectStatus, Region
from projects.models.catalogue import UNREACHABLE
from projects.operations import status
from projects.operations.status import Facts, derive

WELL = Facts(
    desired="running", recycled=False, region_reachable=True, operation_kind=None,
    operation_while=None,
    operation_detail="", failure=None, ready=True, observed="running", observed_detail="", health="healthy",
    health_detail="",
)  # fmt: skip
AT_WORK = {"operation_kind": "start", "operation_while": "starting"}
FAILURE = {"code": "x", "detail": "It broke."}


@pytest.mark.parametrize(
    ("changes", "expected", "detail"),
    [
        ({}, "running", ""),
        ({"observed_detail": "One of its processes was killed."}, "running", "One of its processes was killed."),
        (AT_WORK | {"operation_detail": "Start: its port is taken"}, "starting", "Start: its port is taken"),
        ({"health": "unhealthy", "health_detail": "No login."}, "unhealthy", "No login."),
        ({"health": "unknown"}, "starting", "The server runs; waiting for a login."),
        ({"observed": "stopped", "observed_detail": "Killed: out of memory."}, "unhealthy", "Killed: out of memory."),
        ({"observed": "absent"}, "unhealthy", "The server was seen stopped; it is started again."),
        ({"observed": "starting"}, "starting", ""),
        ({"observed": "unreachable", "observed_detail": "Gone."}, "not_available", UNREACHABLE),
        ({"observed": "stopped", "desired": "stopped"}, "stopped", ""),
        ({"observed": "absent", "desired": "stopped"}, "stopped", ""),
        ({"observed": "running", "desired": "stopped"}, "stopping", "The server still runs."),
        ({"failure": FAILURE}, "failed", "It broke."),
        ({"failure": FAILURE, **AT_WORK}, "starting", ""),
        ({"ready": False}, "queued", ""),
        ({"ready": False, "operation_kind": "provision", "operation_while": "provisioning"}, "provisioning", ""),
        ({"operation_kind": "rotate_password", "operation_while": None}, "running", ""),
        ({"region_reachable": False, **AT_WORK}, "not_available", UNREACHABLE),
        ({"region_reachable": False, "failure": FAILURE}, "not_available", UNREACHABLE),
        ({"desired": "recycled", "operation_kind": "delete"}, "deleting", ""),
        ({"desired": "recycled", "region_reachable": False}, "deleting", UNREACHABLE),
        ({"desired": "recycled", "failure": FAILURE}, "deleting", "It broke."),
        ({"desired": "recycled", "recycled": True}, "recycled", ""),
        ({"desired": "recycled", "recycled": True, "region_reachable": False}, "recycled", ""),
        ({"desired": "absent", "recycled": True}, "deleting", ""),
        ({"desired": "absent", "operation_kind": "purge"}, "deleting", ""),
    ],
)  # fmt: skip
def test_the_table(changes, expected, detail):
    assert derive(replace(WELL, **changes)) == (expected, detail)


facts = st.builds(
    Facts,
    desired=st.sampled_from(DesiredStatus.values), recycled=st.booleans(), region_reachable=st.booleans(),
    operation_kind=st.sampled_from([None, "start", "restore"]),
    operation_while=st.sampled_from([None, "starting", "restoring", "moving", "upgrading"]),
    failure=st.sampled_from([None, FAILURE]), ready=st.booleans(), observed=st.sampled_from(ObservedState.values),
    observed_detail=st.text(max_size=5), health=st.sampled_from(Health.values), health_detail=st.text(max_size=5),
)  # fmt: skip


@given(facts)
def test_precedence_holds_for_all_facts(f):
    """recycled, deleting, not_available, the running operation, failed, observed."""
    found, _ = derive(f)
    assert found in ProjectStatus.values
    if f.desired in {"recycled", "absent"}:
        assert found in {"recycled", "deleting"}
    elif not f.region_reachable:
        assert found == "not_available"
    elif f.operation_kind and f.operation_while:
        assert found == f.operation_while
    elif f.failure:
        assert found == "failed"
    else:
        assert found not in {"failed", "recycled", "deleting"}
    if found == "running":
        assert f.observed == "running", "running is observed, never assumed"
        assert f.health == "healthy", "and logged in to"


def test_refresh_writes_only_what_changed(idle, django_assert_num_queries):
    assert status.refresh([idle.pk]) == 0
    stamp = Project.objects.get(pk=idle.pk).updated_at
    DatabaseServer.objects.filter(project_uuid=idle.pk).update(observed_state="stopped")
    assert status.refresh([idle.pk]) == 1
    idle.refresh_from_db()
    assert idle.status == "unhealthy"
    assert stamp is not None


def test_refresh_is_a_constant_number_of_queries(team, idle, django_assert_max_num_queries):
    from tests.factories import make_project

    more = [make_project(team.alice, team.organization, name=f"P{n}") for n in range(5)]
    with django_assert_max_num_queries(6):
        status.refresh([p.pk for p in more])
    with django_assert_max_num_queries(1):
        status.refresh([])


def test_a_region_that_comes_and_goes_takes_its_projects_along(idle):
    region = Region.objects.get(pk=idle.region_id)
    status.set_reachable(region, False, UNREACHABLE)
    idle.refresh_from_db()
    assert (idle.status, idle.status_detail) == ("not_available", UNREACHABLE)
    status.set_reachable(region, True, "")
    idle.refresh_from_db()
    assert idle.status == "not_available", "what was seen before the outage says nothing: it must be seen again"


def test_a_region_takes_many_projects_along_in_few_statements(team, idle, django_assert_max_num_queries):
    from tests.factories import make_project

    projects = [make_project(team.alice, team.organization, name=f"P{n}") for n in range(12)]
    region = Region.objects.get(pk=idle.region_id)
    with django_assert_max_num_queries(12):
        status.set_reachable(region, False, UNREACHABLE)
    assert Project.objects.filter(status="not_available").count() == len(projects) + 1


def test_many_different_reasons_are_stored_too(team, idle):
    from tests.factories import make_project

    projects = [make_project(team.alice, team.organization, name=f"P{n}") for n in range(10)]
    for number, project in enumerate(projects):
        DatabaseServer.objects.filter(project_uuid=project.pk).update(
            observed_state="stopped", observed_detail=f"reason {number}"
        )
    assert status.refresh([p.pk for p in projects]) == 10
    assert set(Project.objects.exclude(pk=idle.pk).values_list("status_detail", flat=True)) == {
        f"reason {n}" for n in range(10)
    }
