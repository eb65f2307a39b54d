"""The step that makes the first tables: asked for or not, said what came of it, and asked for again by a retry."""

from __future__ import annotations

import pytest

from accounts.permissions import Principal
from projects import domain
from projects.models import ApiKey, OperationEvent, ProjectService
from projects.operations import base, pool_blanks
from projects.services import ProjectRequest, project_action, project_create
from tests.factories import RegionFactory, make_project
from tests.operations.conftest import drive, let_time_pass, once, operation_of, seconds_until_next, states
from tests.operations.test_pools import make as make_pool


def test_it_is_there_unless_one_opts_out(team, runtime, paper):
    project = make_project(team.alice, team.organization, running=False)
    operation = drive(operation_of(project))
    assert states(operation)["schema"] == "succeeded"
    step = operation.steps.get(name="schema")
    assert "schema_migrations, settings, audit_logs made (novastack-0001)" in step.detail
    assert list(states(operation)).index("schema") == list(states(operation)).index("database") + 1
    plain = make_project(team.alice, team.organization, name="Plain", running=False, bootstrap_schema=False)
    operation = drive(operation_of(plain))
    assert operation.state == "succeeded" and "schema" not in states(operation)
    assert (project.bootstrap_schema, plain.bootstrap_schema) == (True, False)
    assert paper.diary.count("bootstrap") == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_what_a_blank_brought_is_not_made_again(team, runtime, paper, settings, wanted):
    """Nor does anybody log in for it; whoever claims the blank has the passwords that it was made with."""
    settings.NOVASTACK_POOL_BLANKS = 1
    pool = make_pool(max_databases=5, memory_bytes=1 << 30)
    pool_blanks.keep()
    held = paper.of(pool.control_endpoint)
    (blank,) = held.blanks
    project = project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Shop", placement="pool", bootstrap_schema=wanted),
    )  # fmt: skip
    operation = drive(operation_of(project))
    assert operation.state == "succeeded"
    assert "bootstrap" not in paper.diary
    database = project.databases.get()
    secrets = {role.kind: role.secret.open() for role in database.roles.exclude(secret=None)}
    assert (secrets["login"], secrets["control"]) == held.blank_passwords[blank]
    assert secrets["login"] != secrets["control"] and len(secrets["login"]) == 32
    if not wanted:
        assert "schema" not in states(operation)
        return
    step = operation.steps.get(name="schema")
    assert (step.state, step.detail) == ("skipped", "settings made with the database (novastack-0001)")
    assert step.data == {"version": "novastack-0001", "created": ["settings"], "kept": []}


def test_what_was_kept_is_said(shop, paper, monkeypatch):
    monkeypatch.setattr(
        paper, "bootstrap", lambda *_: domain.Bootstrapped("novastack-0001", ("settings",), ("audit_logs",))
    )
    operation = drive(operation_of(shop))
    assert operation.steps.get(name="schema").data == {
        "version": "novastack-0001", "created": ["settings"], "kept": ["audit_logs"],
    }  # fmt: skip
    assert "audit_logs left alone" in operation.steps.get(name="schema").detail
    assert OperationEvent.objects.filter(operation=operation, level="warning", message__contains="audit_logs").exists()


def test_a_refusal_is_tried_again_by_its_own_policy(shop, paper):
    """3 × 5 s, then all of it after five minutes, at most three times, then undone."""
    paper.fails["bootstrap"] = [domain.EngineError("permission denied (42501)") for _ in range(9)]
    operation = operation_of(shop)
    waits = []
    for _ in range(9):
        let_time_pass(operation)
        operation = once(operation)
        if operation.live:
            waits.append(round(seconds_until_next(operation)))
    assert waits == [5, 10, 300, 5, 10, 300, 5, 10]
    assert operation.state == "failed"
    assert operation.error == {
        "code": "schema_creation_failed", "detail": "permission denied (42501)", "retryable": True,
    }  # fmt: skip
    assert states(operation)["schema"] == "failed" and states(operation)["server"] == "undone"


@pytest.mark.parametrize("error", [domain.ServerNotReady("away"), domain.ServerBusy("full")])
def test_what_says_more_keeps_its_code(shop, paper, error):
    paper.fails["bootstrap"] = [error]
    operation = once(operation_of(shop))
    assert operation.steps.get(name="schema").error_code == error.code
    assert drive(operation).state == "succeeded"


def test_a_retried_provisioning_does_all_that_was_asked_for(team, alice, runtime, paper):
    """Also what is optional: a key that was shown must come to work."""
    RegionFactory()
    project = project_create(
        principal=alice, organization=team.organization,
        request=ProjectRequest(name="Shop", services=frozenset({"auth"}), api_keys=1),
    )  # fmt: skip
    paper.fails["create_tenant"] = [domain.DataExists("no")]
    first = drive(operation_of(project))
    assert first.state == "failed"
    project.refresh_from_db()
    again = drive(project_action(principal=alice, project=project, action="retry"))
    assert again.state == "succeeded"
    assert {"schema", "services", "api_keys"} <= set(states(again)) and set(states(again)) == set(states(first))
    assert ApiKey.objects.get(project=project).state == "active"
    assert ProjectService.objects.get(project=project).generation == 2
    assert base.SCHEMA_RETRY.attempts == 3
