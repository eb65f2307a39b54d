"""The OpenAPI schema: made without a warning, complete, and true (schemathesis sends what it allows, and what not)."""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from django.core.cache import cache
from django.core.management import call_command
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS

from novastack.wsgi import application
from projects.api import waiting as waiting_api
from projects.models import Operation
from tests.factories import make_project, make_team, make_token

# The public contract: path → methods. Add to it; take nothing away.
CONTRACT = {
    "/auth/register/": {"post"},
    "/auth/login/": {"post"},
    "/auth/refresh/": {"post"},
    "/auth/profile/": {"get", "put", "patch"},
    "/auth/password/": {"post"},
    "/auth/logout/": {"post"},
    "/auth/tokens/": {"get", "post"},
    "/auth/tokens/{id}/": {"delete"},
    "/organizations/": {"get", "post"},
    "/organizations/{ref}/": {"get", "put", "patch", "delete"},
    "/organizations/{ref}/members/": {"get"},
    "/organizations/{ref}/invitations/": {"get", "post"},
    "/organizations/{ref}/usage/": {"get"},
    "/organizations/{ref}/audit-events/": {"get"},
    "/engines/": {"get"},
    "/regions/": {"get"},
    "/plans/": {"get"},
    "/projects/": {"get", "post"},
    "/projects/{id}/": {"get", "put", "patch", "delete"},
    "/projects/{id}/connection/": {"get"},
    "/projects/{id}/action/": {"post"},
    "/projects/{id}/status/": {"get"},
    "/projects/{id}/operations/": {"get"},
    "/projects/{id}/metrics/": {"get"},
    "/projects/{id}/logs/": {"get"},
    "/projects/{id}/activity/": {"get"},
    "/projects/stats/overview/": {"get"},
    "/storages/": {"get", "post"},
    "/storages/{id}/": {"get", "patch", "delete"},
    "/storages/{id}/test/": {"post"},
    "/operations/": {"get"},
    "/operations/{id}/": {"get"},
    "/operations/{id}/retry/": {"post"},
    "/operations/{id}/cancel/": {"post"},
    "/database/allocate/": {"post"},
    "/database/provision-dedicated/": {"post"},
    "/database/health/": {"get"},
    "/database/admin/pools/": {"get", "post"},
    "/database/admin/pools/{pool_id}/": {"get"},
    "/database/admin/pools/{pool_id}/health-check/": {"post"},
    "/database/admin/pools/{pool_id}/drain/": {"post"},
    "/database/admin/stats/": {"get"},
    "/projects/{id}/move/": {"post"},
    "/projects/{id}/api-keys/": {"get", "post"},
    "/projects/{id}/api-keys/{key_id}/": {"get", "delete"},
    "/projects/{id}/services/": {"get"},
    "/projects/{id}/services/{service}/": {"get", "post"},
    "/projects/{id}/resources/": {"get"},
    "/api-keys/verify/": {"post"},
    "/projects/{id}/backups/": {"get", "post"},
    "/backups/": {"get"},
    "/backups/{id}/": {"get", "delete"},
    "/backups/{id}/download/": {"get"},
    "/backups/{id}/verify/": {"post"},
    "/backups/{id}/pin/": {"post"},
    "/backups/{id}/unpin/": {"post"},
    "/backups/{id}/restore/": {"post"},
    "/restores/{id}/": {"get"},
    "/restores/{id}/undo/": {"post"},
    "/projects/{id}/schedules/": {"get", "post"},
    "/schedules/{id}/": {"get", "patch", "delete"},
    "/schedules/{id}/run/": {"post"},
    "/health/": {"get"},
}
# Component → fields that answers have, and input fields (?: not required). More may come, none goes.
FIELDS = {
    "Project": "id name slug description organization engine version region plan placement status desired_status"
    " status_detail limits labels exposure tls_required deletion_protection size_bytes operation created_by created_at"
    " updated_at recycle_until",
    "ProjectCreateRequest": "name engine? version? description? region? plan? organization? placement? database_name?"
    " username? limits? services? api_keys? bootstrap_schema?",
    "PatchedProjectChangeRequest": "name? description? labels? limits? deletion_protection?",
    "ConnectionOutput": "host port database username password tls uri jdbc_url env snippets",
    "StatusOutput": "status desired_status observed_at health detail operation server",
    "ServerOutput": "runtime name image started_at cpu_percent memory_bytes memory_limit_bytes connections"
    " connections_limit size_bytes",
    "OverviewOutput": "projects storage_bytes connections backups activity",
    "ProjectFigures": "total by_status by_engine by_region",
    "Operation": "id kind state project steps error attempt next_attempt_at created_by created_at started_at finished_at",
    "OperationBrief": "id kind state url",
    "Step": "name title state attempt started_at finished_at detail",
    "OperationError": "code detail retryable",
    "AllocationInputRequest": "instance_id plan? engine? version? region?",
    "AllocatedOutput": "status project connection",
    "AllocatingOutput": "status operation retry_after_seconds",
    "Pool": "id name engine version region placement databases max_databases health status endpoint limits size_bytes"
    " checked_at",
    "EngineOutput": "versions default_version runtimes available reason",
    "BackupInputRequest": "label? storage?",
    "Backup": "id project engine version trigger status size_bytes database_bytes sha256 encrypted storage storage_path"
    " pinned rows operation created_at finished_at verified_at error",
    "RestoreInputRequest": "target name? project? confirm? dry_run?",
    "Restore": "id backup target source_project project status operation preflight undo_until duration_seconds error",
    "ScheduleOutput": "cron time_zone enabled storage retention next_runs description",
    "RetentionOutput": "keep_last keep_days keep_daily keep_weekly keep_monthly max_bytes",
    "RegisterRequest": "email password full_name? organization_name?",
    "Registered": "user organization access refresh expires_in_seconds verification_required",
    "LoginRequest": "email password code?",
    "LoggedIn": "access refresh expires_in_seconds user",
    "Profile": "email full_name time_zone theme organizations",
    "PasswordRequest": "current_password new_password",
    "ApiTokenCreateRequest": "name scopes organization? expires_at?",
    "ApiTokenCreated": "token prefix",
    "Problem": "type title status detail code request_id errors",
}
WORDS = {
    "ProjectStatusEnum": "queued provisioning running stopping stopped starting unhealthy not_available failed restoring"
    " moving upgrading deleting recycled",
    "OperationStateEnum": "queued running succeeded failed cancelled",
    "ActionInputActionEnum": "start stop restart rotate_password undelete retry",
    "PlacementEnum": "dedicated pool external",
    "ServiceStatusEnum": "active disabled error",
    "BackupStatusEnum": "queued dumping stored verifying verified failed corrupt deleting",
    "TargetEnum": "new_project in_place project",
    "StorageKindEnum": "filesystem s3",
    "TokenScopeEnum": "read write connect admin",
    "InstallStatusEnum": "healthy degraded",
}
FILTERS = {
    "/projects/": "status engine region placement organization search ordering page page_size",
    "/projects/{id}/metrics/": "range",
    "/projects/{id}/logs/": "tail",
    "/operations/{id}/": "wait",
    "/backups/{id}/download/": "as compress tables",
}
METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return dict(SchemaGenerator().get_schema(public=True))  # type: ignore[no-untyped-call]


def test_it_is_made_without_a_warning_and_is_valid() -> None:
    said = io.StringIO()
    with redirect_stderr(said):
        call_command("spectacular", "--validate", "--fail-on-warn", stdout=io.StringIO())
    assert "Warning" not in said.getvalue() and "Error" not in said.getvalue()


def test_it_has_every_path_of_the_contract(document: dict[str, Any]) -> None:
    found = {path.removeprefix("/api/v1"): METHODS & set(operations) for path, operations in document["paths"].items()}
    missing = {path: methods - found.get(path, set()) for path, methods in CONTRACT.items()}
    assert not {path: methods for path, methods in missing.items() if methods}


@pytest.mark.parametrize("component", FIELDS)
def test_it_has_every_field_of_the_contract(document: dict[str, Any], component: str) -> None:
    known = document["components"]["schemas"][component]
    wanted = FIELDS[component].split()
    assert {name.removesuffix("?") for name in wanted} - set(known["properties"]) == set()
    optional = {name[:-1] for name in wanted if name.endswith("?")}
    assert not optional & set(known.get("required", [])), "what could be left out is not asked for one day"
    if component.endswith("Request"):
        assert set(known.get("required", [])) <= set(wanted)


@pytest.mark.parametrize("component", WORDS)
def test_it_has_every_word_of_the_contract(document: dict[str, Any], component: str) -> None:
    assert set(WORDS[component].split()) <= set(document["components"]["schemas"][component]["enum"])


def test_it_has_every_filter_of_the_contract(document: dict[str, Any]) -> None:
    for path, wanted in FILTERS.items():
        found = {p["name"] for p in document["paths"][f"/api/v1{path}"]["get"]["parameters"] if p["in"] == "query"}
        assert set(wanted.split()) <= found, path


def test_the_allocation_service_is_below_both_prefixes() -> None:
    from django.urls import resolve

    for path in (p for p in CONTRACT if p.startswith("/database/")):
        path = path.replace("{pool_id}", "0198c0de-0000-7000-8000-000000000000")
        assert resolve(f"/api{path}").func.view_class is resolve(f"/api/v1{path}").func.view_class


def test_every_operation_says_what_it_does_and_how_it_refuses(document: dict[str, Any]) -> None:
    names = set()
    for path, operations in document["paths"].items():
        for method in METHODS & set(operations):
            operation = operations[method]
            assert operation.get("tags"), (method, path)
            assert operation["operationId"] not in names
            names.add(operation["operationId"])
            assert any(
                "application/problem+json" in answer.get("content", {}) for answer in operation["responses"].values()
            ), (method, path)
            if path.startswith(("/api/v1/projects", "/api/v1/operations", "/api/v1/database")):
                assert operation.get("description"), (method, path)


def test_what_makes_or_acts_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        if "post" in operations and re.match(r"/api/v1/(projects|operations|database)/(?!admin)", path):
            headers = {p["name"] for p in operations["post"].get("parameters", []) if p["in"] == "header"}
            assert "Idempotency-Key" in headers, path


CHOSEN = [
    check
    for check in CHECKS.get_all()
    if check.__name__
    in {
        "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
        "response_headers_conformance",
    }
]  # fmt: skip


schema = schemathesis.openapi.from_dict(
    dict(SchemaGenerator().get_schema(public=True))  # type: ignore[no-untyped-call]
).exclude(path_regex=r"/api/v1/auth/(register|login|refresh|logout|password)/")
schema.app = application


@dataclass(frozen=True)
class World:
    token: str
    ids: dict[str, str]  # of what exists, by the path's first word


@pytest.fixture
def world(db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(waiting_api, "waiters", full)  # `?wait=30` answers at once
    team = make_team()
    project = make_project(team.alice, team.organization)
    waiting = make_project(team.alice, team.organization, "Waiting", running=False)
    operation = Operation.objects.get(project_uuid=waiting.pk)
    _, clear = make_token(team.alice)
    # As Django's own test client does: the end of a request must not close the test's transaction.
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    yield World(clear, {"projects": str(project.pk), "operations": str(operation.pk), "organizations": "acme"})
    for signal in (request_started, request_finished):
        signal.connect(close_old_connections)


existing = itertools.cycle((True, True, False))  # ids that exist, mostly; else what schemathesis made up


@schema.parametrize()
@settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much,
                           HealthCheck.data_too_large],
)  # fmt: skip
def test_it_is_true(case: Any, world: World) -> None:
    cache.clear()  # the throttle is not what is tried here
    case.headers["Authorization"] = f"Bearer {world.token}"
    subject = case.path.removeprefix("/api/v1/").split("/")[0]
    for name in ("id", "ref"):
        if name in case.path_parameters and subject in world.ids and next(existing):
            case.path_parameters[name] = world.ids[subject]
    case.call_and_validate(checks=CHOSEN)
