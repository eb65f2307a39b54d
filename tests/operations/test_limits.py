"""Limits of a running server: within bounds, applied while it runs, refused when it would not survive them."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from accounts.models import AuditEvent, User
from accounts.permissions import Principal
from novastack.common.errors import Invalid
from projects import domain
from projects.models import DatabaseServer, Operation, Project
from projects.runtimes.memory import MemoryRuntime
from projects.services import project_update
from tests.factories import Team, UserFactory, api_client, set_observed
from tests.operations.conftest import drive
from tests.operations.paper import PaperAdmin, PaperPostgreSQL

MIB = 1 << 20


def change(project: Project, principal: Principal, mib: int) -> Operation:
    operation = project_update(principal=principal, project=project, changes={"limits": {"memory_bytes": mib * MIB}})[1]
    assert operation is not None
    return drive(operation)


def server_of(project: Project) -> DatabaseServer:
    return DatabaseServer.objects.get(project_uuid=project.pk)


def in_runtime(project: Project, runtime: MemoryRuntime) -> int:
    (found,) = runtime.describe([server_of(project).handle]).values()
    assert found is not None and found.memory_bytes is not None
    return found.memory_bytes // MIB


def uses(runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch, mib: int) -> None:
    real = runtime.usage
    monkeypatch.setattr(
        runtime, "usage",
        lambda handles: {h: domain.Usage(1.0, mib * MIB, u.memory_limit_bytes) for h, u in real(handles).items()},
    )  # fmt: skip


# --- bounds -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("mib", "bound"), [(127, "128 MiB (134217728 bytes), which PostgreSQL needs"),
                                            (513, "512 MiB (536870912 bytes) of the plan Small")])  # fmt: skip
def test_the_bound_is_named_by_api_page_and_admin(ready: Project, team: Team, mib: int, bound: str) -> None:
    Project.objects.filter(pk=ready.pk).update(memory_bytes=256 * MIB)
    plan = ready.plan
    plan.name, plan.memory_bytes = "Small", 512 * MIB
    plan.save()
    answer = api_client(team.alice).patch(f"/api/v1/projects/{ready.pk}/", {"limits": {"memory_bytes": mib * MIB}})
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == ("limits.memory_bytes", "out_of_range")
    assert bound in error["detail"]
    browser = Client()
    browser.force_login(team.alice)
    sent = {"form": "limits", "memory_mb": str(mib), "cpus": "0.25"}
    page = browser.post(f"/projects/{ready.pk}/settings/", sent)
    assert page.status_code == 400
    assert bound in page.context["limits"].errors["memory_mb"][0]
    operator = UserFactory(email="root@example.test", is_staff=True, is_superuser=True)
    browser.force_login(operator)
    sent = {"action": "change_limits", "_selected_action": str(ready.pk)}
    asked = browser.post("/admin/projects/project/", sent).content.decode()
    assert "256" in asked and "Shared buffers" in asked
    refused = browser.post(
        "/admin/projects/project/", sent | {"confirmed": "yes", "memory_mb": str(mib), "cpus": "0.25"}, follow=True
    )
    assert "which PostgreSQL needs" in refused.content.decode()
    assert not Operation.objects.filter(kind="resize").exists()
    done = browser.post(
        "/admin/projects/project/", sent | {"confirmed": "yes", "memory_mb": "300", "cpus": "0.25"}, follow=True
    )
    assert "Limits changed: 1." in done.content.decode()
    assert drive(Operation.objects.get(kind="resize")).state == "succeeded"
    assert AuditEvent.objects.filter(action="operator.acted", actor=operator).exists()


@pytest.mark.parametrize("cpus", ["0.05", "64"])
def test_the_same_for_cpu(ready: Project, alice: Principal, cpus: str) -> None:
    with pytest.raises(Invalid) as error:
        project_update(principal=alice, project=ready, changes={"limits": {"cpus": cpus}})
    assert error.value.errors[0].field == "limits.cpus"
    assert "Between 0.1 and" in error.value.errors[0].detail


# --- while it runs ------------------------------------------------------------------------------------------------------
def test_what_waits_for_a_restart_is_said_before_and_after(
    ready: Project, alice: Principal, team: Team, runtime: MemoryRuntime
) -> None:
    browser = Client()
    browser.force_login(team.alice)
    words = "Shared buffers and the other sizes that follow from memory change at the next restart."
    page = browser.get(f"/projects/{ready.pk}/settings/").content.decode()
    assert words in page and "A restart is due" not in page
    engines = {row["name"]: row for row in api_client(team.alice).get("/api/v1/engines/").json()["results"]}
    assert engines["postgresql"]["resize"] == words
    assert "buffer pool follows while it runs" in engines["mysql"]["resize"]
    operation = change(ready, alice, 400)
    assert operation.state == "succeeded"
    assert words in operation.steps.get().detail
    assert in_runtime(ready, runtime) == 400
    assert server_of(ready).restart_pending
    assert "A restart is due" in browser.get(f"/projects/{ready.pk}/settings/").content.decode()
    status = api_client(team.alice).get(f"/api/v1/projects/{ready.pk}/status/").json()
    assert status["server"]["restart_pending"] is True
    assert change(ready, alice, 512).state == "succeeded"
    assert not server_of(ready).restart_pending, "back to what it was started for"
    change(ready, alice, 400)
    from projects.services import project_action

    drive(project_action(principal=alice, project=ready, action="restart"))
    assert not server_of(ready).restart_pending
    assert server_of(ready).sized_for_bytes == 400 * MIB


def test_a_server_that_fits_itself_waits_for_nothing(
    ready: Project, alice: Principal, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = runtime.update

    def resize(self: PaperAdmin, limits: domain.Limits) -> bool:
        order.append(f"server {limits.memory_bytes // MIB}")
        return True

    def update(handle: domain.Handle, limits: domain.Limits) -> None:
        order.append(f"limit {limits.memory_bytes // MIB}")
        real(handle, limits)

    monkeypatch.setattr(PaperAdmin, "resize", resize)
    monkeypatch.setattr(runtime, "update", update)
    change(ready, alice, 300)
    change(ready, alice, 450)
    assert order == ["server 300", "limit 300", "limit 450", "server 450"], "never more inside than outside"
    assert not server_of(ready).restart_pending


def test_a_server_that_does_not_answer_gets_its_limit_all_the_same(
    ready: Project, alice: Principal, runtime: MemoryRuntime, paper: PaperPostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(self: PaperAdmin, limits: domain.Limits) -> bool:
        raise domain.ServerNotReady("frozen")

    change(ready, alice, 300)
    monkeypatch.setattr(PaperAdmin, "resize", silent)
    assert change(ready, alice, 400).state == "succeeded"
    assert in_runtime(ready, runtime) == 400
    assert server_of(ready).restart_pending


# --- less than it uses --------------------------------------------------------------------------------------------------
def test_what_it_set_aside_at_its_start_is_not_taken_from_it(ready: Project, alice: Principal) -> None:
    with pytest.raises(Invalid) as error:
        change(ready, alice, 170)
    (found,) = error.value.errors
    assert (found.field, found.code) == ("limits.memory_bytes", "too_small_while_running")
    assert "keeps 128 MiB" in found.detail and "at least 176 MiB" in found.detail and "Stop the project" in found.detail
    ready.refresh_from_db()
    assert ready.memory_bytes == 512 * MIB
    set_observed(ready, "stopped", desired="stopped")
    assert change(ready, alice, 170).state == "succeeded", "from its next start on it sets aside less"


def test_what_is_known_to_be_used_is_a_400(ready: Project, alice: Principal) -> None:
    DatabaseServer.objects.update(memory_used_bytes=300 * MIB, usage_at=timezone.now())
    with pytest.raises(Invalid) as error:
        change(ready, alice, 256)
    assert "uses 301 MiB now" in error.value.errors[0].detail


def test_what_is_seen_by_the_operation_ends_it_and_the_rows_say_what_holds(
    ready: Project, alice: Principal, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(runtime, monkeypatch, 250)
    operation = change(ready, alice, 256)
    assert (operation.state, operation.error["code"]) == ("failed", "limit_too_small")
    assert "uses 251 MiB now: 256 MiB would end it" in operation.error["detail"]
    assert in_runtime(ready, runtime) == 512
    ready.refresh_from_db()
    assert (ready.memory_bytes, ready.status) == (512 * MIB, "running")
    assert change(ready, alice, 300).state == "succeeded"


def test_what_only_the_runtime_knows(
    ready: Project, alice: Principal, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def resize(self: Any, limits: domain.Limits) -> bool:
        fitted.append(limits.memory_bytes // MIB)
        return True

    def refuse(handle: domain.Handle, limits: domain.Limits) -> None:
        raise domain.LimitTooSmall("the server uses more memory than that")

    monkeypatch.setattr(PaperAdmin, "resize", resize)
    monkeypatch.setattr(runtime, "update", refuse)
    operation = change(ready, alice, 256)
    assert (operation.state, operation.error["code"]) == ("failed", "limit_too_small")
    assert fitted == [256, 512], "what the server was told is taken back"
    ready.refresh_from_db()
    assert ready.memory_bytes == 512 * MIB


def test_cpu_alone_is_never_refused_for_memory(
    ready: Project, alice: Principal, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    uses(runtime, monkeypatch, 505)
    operation = project_update(principal=alice, project=ready, changes={"limits": {"cpus": "0.25"}})[1]
    assert operation is not None and drive(operation).state == "succeeded"


def test_who_wants_it_without_the_right(ready: Project, team: Team, operator: User) -> None:
    answer = api_client(team.vera).patch(f"/api/v1/projects/{ready.pk}/", {"limits": {"memory_bytes": 300 * MIB}})
    assert answer.status_code == 403


@pytest.fixture
def operator(db: None) -> User:
    return UserFactory(email="op@example.test", is_staff=True)


# --- what the runtime says ----------------------------------------------------------------------------------------------
def test_tenants_read_no_path_of_the_host_operators_do(
    ready: Project, alice: Principal, team: Team, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = "OCI runtime update failed: open /sys/fs/cgroup/memory/docker/ab12/x: dial unix:///run/secret.sock 10.1.2.3:2375"

    def refuse(handle: domain.Handle, limits: domain.Limits) -> None:
        error = domain.NovaStackRuntimeError(raw)
        error.retryable = False
        raise error

    monkeypatch.setattr(runtime, "update", refuse)
    operation = change(ready, alice, 400)
    assert operation.state == "failed"
    seen = api_client(team.alice).get(f"/api/v1/operations/{operation.pk}/").content.decode()
    for text in (seen, str(operation.error), operation.steps.get().detail):
        assert "OCI runtime update failed" in text
        assert "/sys/fs" not in text and "secret.sock" not in text and "10.1.2.3" not in text
    assert operation.steps.get().data["raw"] == raw
