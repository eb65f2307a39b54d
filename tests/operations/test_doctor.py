"""The doctor finds what is wrong, says nothing of what is well, and never takes what it can't see for gone."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from accounts.models import AuditEvent
from novastack.common.clock import now
from novastack.common.models import Heartbeat, Install
from novastack.common.secrets import Sealed
from projects import domain, tasks
from projects.models import BlockedPort, DatabaseRole, DatabaseServer, DataTombstone, Operation, Orphan, Project, Region
from projects.operations import doctor, fanout
from projects.operations.doctor_findings import Finding
from projects.runtimes.memory import MemoryRuntime
from projects.services import doctoring
from tests.factories import Team, UserFactory, make_project
from tests.operations.conftest import begin, drive, operation_of
from tests.operations.paper import PaperPostgreSQL

STRANGER = domain.Handle("00000000-0000-7000-8000-000000000001", 1)


@pytest.fixture(autouse=True)
def alive(db: None) -> None:
    for name in ("beat", "worker:provisioning", "worker:monitoring", "worker:maintenance", "worker:backups"):
        Heartbeat.touch(name)


@pytest.fixture
def server(ready: Project, runtime: MemoryRuntime) -> DatabaseServer:
    runtime.write_epoch(str(Install.load().epoch))
    return DatabaseServer.objects.get(project_uuid=ready.pk)


def codes() -> list[str]:
    return sorted(finding.code for finding in doctor.examine().findings)


def only() -> Finding:
    (finding,) = doctor.examine().findings
    return finding


def plant(
    runtime: MemoryRuntime, server: DatabaseServer, handle: domain.Handle = STRANGER, *, data_only: bool = False
) -> None:
    """Something of our install's that no row knows."""
    spec = replace(
        runtime.world.servers[server.handle.name].spec, handle=handle, publish=domain.Endpoint("127.0.0.1", 1999)
    )
    made = runtime.ensure(spec, data=domain.DataPolicy.CREATE)
    if data_only:
        runtime.destroy(made, delete_data=False)


class TestFindings:
    def test_all_is_well(self, server: DatabaseServer) -> None:
        report = doctor.examine()
        assert report.findings == []
        assert report.looked == {"regions": 1, "servers": 1, "logins": 3}

    def test_limits(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.update(server.handle, domain.Limits(1 << 30, 2.5))
        found = only()
        assert (found.code, found.thing, found.fix) == ("limits.differ", server.handle.name, "limits")
        assert "1024 MiB instead of 512" in found.what and "2.5 instead of 0.5" in found.what
        runtime.update(server.handle, domain.Limits(server.memory_bytes, 0))  # left in burst
        assert "without limit" in only().what

    def test_limits_that_never_reached_the_server(self, server: DatabaseServer) -> None:
        Project.objects.update(memory_bytes=1 << 30)
        assert "the project has 1024 MiB" in only().what

    def test_a_published_port_that_is_not_the_recorded_one(
        self, server: DatabaseServer, runtime: MemoryRuntime
    ) -> None:
        there = runtime.world.servers[server.handle.name]
        there.spec = replace(there.spec, publish=replace(there.spec.publish, port=25999))
        found = {f.code: f for f in doctor.examine().findings}
        assert "25999" in found["port.differs"].what and str(server.port) in found["port.differs"].what
        assert set(found) == {"port.differs", "server.silent"}  # nobody answers where logins go

    def test_clients_are_told_another_port(self, server: DatabaseServer, ready: Project) -> None:
        ready.endpoint.port = ready.endpoint.control_port = 20777
        ready.endpoint.save()
        assert codes() == ["endpoint.differs"]

    def test_two_rows_on_one_port(self, server: DatabaseServer, team: Team, runtime: MemoryRuntime) -> None:
        other = make_project(team.alice, team.organization, "Second", running=False)
        drive(operation_of(other))
        runtime.stop(DatabaseServer.objects.get(project_uuid=other.pk).handle)
        DatabaseServer.objects.filter(project_uuid=other.pk).update(port=server.port)
        shared = [f for f in doctor.examine().findings if f.code == "port.shared"]
        assert {f.fix for f in shared} == {"", "quarantine"} and len(shared) == 2

    def test_a_port_that_somebody_else_holds(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.stop(server.handle)
        with socket.socket() as strange:
            strange.bind(("127.0.0.1", 0))
            strange.listen()
            port = strange.getsockname()[1]
            DatabaseServer.objects.update(port=port)
            there = runtime.world.servers[server.handle.name]
            there.spec = replace(there.spec, publish=replace(there.spec.publish, port=port))
            server.databases.get().project.endpoint.__class__.objects.update(port=port, control_port=port)
            assert codes() == ["port.taken"]
        assert codes() == []
        BlockedPort.objects.create(region=server.region, port=port, until=now() + timedelta(hours=1))
        assert codes() == ["port.taken"]

    def test_a_container_that_is_gone(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.lose_server(server.handle)
        assert codes() == ["missing.server"]

    def test_data_that_is_gone(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.stop(server.handle)
        runtime.lose_data(server.handle)
        assert codes() == ["missing.data"]

    def test_what_nobody_knows(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        plant(runtime, server)
        found = {f.code: f for f in doctor.examine().findings}
        assert {f.thing for f in found.values()} == {STRANGER.name}
        assert set(found) == {"unknown.server", "unknown.data"}
        assert STRANGER.name in found["unknown.data"].advice

    def test_data_that_waits_for_its_deletion_is_known(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        plant(runtime, server, data_only=True)
        DataTombstone.objects.create(
            server_uuid=STRANGER.server_id, incarnation=1, region=server.region, reason="test", due_at=now()
        )
        assert codes() == []

    @pytest.mark.parametrize("whose", ["admin", "control", "login"])
    def test_a_stored_password_that_does_not_log_in(
        self, server: DatabaseServer, paper: PaperPostgreSQL, whose: str
    ) -> None:
        held = paper.data[server.handle.name]
        name = server.admin_username if whose == "admin" else DatabaseRole.objects.get(kind=whose).name
        held.passwords[name] = "changed behind our back"
        found = only()
        assert found.code == "login.refused" and f"of {name} ({whose})" in found.what
        assert "changed behind" not in json.dumps(doctor.examine().as_json())

    def test_a_pending_password_that_works_is_no_finding(self, server: DatabaseServer, paper: PaperPostgreSQL) -> None:
        role = DatabaseRole.objects.get(kind="login")
        role.pending_secret = Sealed.of("new")
        role.save()
        assert codes() == []
        paper.data[server.handle.name].passwords[role.name] = "new"
        assert codes() == []

    def test_a_password_that_no_key_opens(self, server: DatabaseServer) -> None:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE projects_databaserole SET secret = 'v1.none.AAAA' WHERE kind = 'control'")
        assert codes() == ["login.unreadable"]

    def test_a_server_that_does_not_answer(self, server: DatabaseServer, paper: PaperPostgreSQL) -> None:
        paper.refuses_to_answer = True
        assert codes() == ["server.silent"]

    def test_a_disk_that_is_short_of_room(self, server: DatabaseServer) -> None:
        Region.objects.update(disk={"used_percent": 91.0, "level": "closed"})
        assert codes() == ["disk.closed"]
        Region.objects.update(disk={"used_percent": 91.0, "level": "fenced"})
        assert codes() == ["disk.fenced"]
        Region.objects.update(disk={"used_percent": 79.0, "level": "warn"})
        assert codes() == []
        Region.objects.update(disk={"used_percent": 85.0, "level": "warn"})
        assert codes() == ["disk.warn"]

    def test_processes_that_are_not_heard_of(self, server: DatabaseServer) -> None:
        Heartbeat.objects.update(at=now() - timedelta(minutes=5))
        assert codes() == ["beat.silent"] + 4 * ["worker.silent"]

    def test_an_operation_that_nobody_takes(self, server: DatabaseServer, ready: Project) -> None:
        operation = begin(ready, "restart")
        assert codes() == []
        old = now() - timedelta(minutes=5)
        Operation.objects.filter(pk=operation.pk).update(created_at=old, updated_at=old)
        assert codes() == ["operation.stuck"]
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=now() + timedelta(minutes=1))
        assert codes() == []
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=old, lease_until=now() + timedelta(seconds=9))
        assert codes() == []

    def test_what_an_operation_works_on_is_left_alone(
        self, server: DatabaseServer, ready: Project, runtime: MemoryRuntime
    ) -> None:
        runtime.update(server.handle, domain.Limits(1 << 30, 0))
        runtime.stop(server.handle)
        runtime.lose_data(server.handle)
        begin(ready, "resize")
        assert codes() == []

    def test_what_changes_while_it_looks_is_left_alone(
        self, server: DatabaseServer, runtime: MemoryRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        really = runtime.describe

        def moved(handles: Any) -> Any:
            DatabaseServer.objects.update(incarnation=2)
            return really(handles)

        monkeypatch.setattr(runtime, "describe", moved)
        # In this thread, so that the test's transaction is the look's too.
        monkeypatch.setattr(fanout, "ask", lambda what, asked, _: ((pk, question()) for pk, question in asked.items()))
        runtime.lose_server(server.handle)
        assert "missing.server" not in codes()

    @pytest.mark.parametrize("call", ["ping", "describe", "managed", "managed_data", "read_epoch"])
    def test_a_region_that_does_not_answer_is_one_finding(
        self, server: DatabaseServer, runtime: MemoryRuntime, call: str
    ) -> None:
        Orphan.objects.create(region=server.region, kind="data", name="nvs-seen-before")
        runtime.lose_server(server.handle)
        runtime.fail(call, domain.RuntimeUnreachable("nobody is there"))
        found = doctor.examine().findings
        assert sorted(f.code for f in found) == ["region.unreachable", "unknown.data"]
        assert {f.thing for f in found} == {"local", "nvs-seen-before"}

    def test_another_region_is_looked_at_all_the_same(self, server: DatabaseServer) -> None:
        Region.objects.create(slug="a", name="A", runtime="process", config={"root": "/dev/null/x"})
        assert codes() == ["region.unreachable"]
        assert doctor.examine().looked["servers"] == 1

    def test_the_number_of_queries_does_not_grow(
        self, server: DatabaseServer, team: Team, runtime: MemoryRuntime
    ) -> None:
        with CaptureQueriesContext(connection) as one:
            doctor.examine()
        for number in range(5):
            drive(operation_of(make_project(team.alice, team.organization, f"More {number}", running=False)))
        with CaptureQueriesContext(connection) as many:
            assert doctor.examine().looked["logins"] == 18
        assert len(many) == len(one), [q["sql"][:120] for q in many.captured_queries]
        assert runtime.calls["describe"] == 2


class TestFix:
    def test_limits_are_applied_by_an_operation(
        self, server: DatabaseServer, ready: Project, runtime: MemoryRuntime
    ) -> None:
        runtime.update(server.handle, domain.Limits(1 << 30, 0))
        ((_, text),) = doctoring.fix(doctor.examine())
        operation = operation_of(ready)
        assert operation.kind == "resize" and str(operation.pk) in text
        assert drive(operation).state == "succeeded"
        assert codes() == []

    def test_a_server_under_its_name_is_adopted(
        self, server: DatabaseServer, ready: Project, runtime: MemoryRuntime
    ) -> None:
        new = runtime.replace_server(server.handle)
        assert codes() == ["server.ref"]
        doctoring.fix(doctor.examine())
        server.refresh_from_db()
        assert server.runtime_ref == new.ref
        event = AuditEvent.objects.get(action="server.adopted")
        assert event.project_id == ready.pk and event.data["ref"] == new.ref
        assert codes() == []

    def test_nothing_is_adopted_under_an_operation(
        self, server: DatabaseServer, ready: Project, runtime: MemoryRuntime
    ) -> None:
        runtime.replace_server(server.handle)
        report = doctor.examine()
        begin(ready, "resize")
        ((_, text),) = doctoring.fix(report)
        assert text.startswith("not done")
        before = server.runtime_ref
        server.refresh_from_db()
        assert server.runtime_ref == before

    def test_lost_data_sets_the_server_aside(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.stop(server.handle)
        runtime.lose_data(server.handle)
        doctoring.fix(doctor.examine())
        server.refresh_from_db()
        assert not server.reconcile
        assert AuditEvent.objects.filter(action="server.quarantined").count() == 1
        assert codes() == ["missing.data", "server.quarantined"]
        assert doctoring.fix(doctor.examine()) == []

    def test_workers_are_told_again(
        self, ready: Project, server: DatabaseServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[Any] = []
        monkeypatch.setattr(doctoring, "send_hint", told.append)
        operation = begin(ready, "restart")
        old = now() - timedelta(minutes=5)
        Operation.objects.filter(pk=operation.pk).update(created_at=old, updated_at=old, hinted_at=old)
        doctoring.fix(doctor.examine())
        assert told == [operation.pk]

    def test_read_only_fixes_nothing(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.replace_server(server.handle)
        Install.objects.update(read_only=True, read_only_reason="restored")
        report = doctor.examine()
        assert sorted(f.code for f in report.findings) == ["install.read_only", "server.ref"]
        assert [text.split(":")[0] for _, text in doctoring.fix(report)] == ["not done"]

    def test_nothing_unknown_is_touched(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        plant(runtime, server)
        before = (set(runtime.world.servers), set(runtime.world.volumes))
        assert doctoring.fix(doctor.examine()) == []
        assert (set(runtime.world.servers), set(runtime.world.volumes)) == before


def doctor_command(*arguments: str) -> tuple[int, str]:
    out = StringIO()
    try:
        call_command("doctor", *arguments, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


class TestCommand:
    def test_all_is_well(self, server: DatabaseServer) -> None:
        code, text = doctor_command()
        assert (code, "No findings" in text) == (0, True)

    def test_findings_as_table_and_json(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        plant(runtime, server, data_only=True)
        code, text = doctor_command()
        assert code == 1 and f"unknown.data  {STRANGER.name} (local)" in text and "→" in text
        code, text = doctor_command("--json")
        body = json.loads(text)
        assert code == 1 and body["ok"] is False and body["fixed"] == []
        assert body["findings"][0].keys() >= {"code", "thing", "what", "advice", "region", "fix"}

    def test_fix_says_what_it_did(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        runtime.replace_server(server.handle)
        code, text = doctor_command("--fix")
        assert code == 1 and "fix: recorded memory-" in text
        assert doctor_command()[0] == 0

    def test_without_a_control_database(self, server: DatabaseServer, monkeypatch: pytest.MonkeyPatch) -> None:
        from django.db import OperationalError

        def gone() -> None:
            raise OperationalError("connection refused")

        monkeypatch.setattr(doctor, "examine", gone)
        code, text = doctor_command()
        assert (code, "Could not look" in text) == (2, True)


class TestRemoveData:
    def test_only_by_its_name_typed_twice(self, server: DatabaseServer, runtime: MemoryRuntime) -> None:
        plant(runtime, server, data_only=True)
        doctor.examine()
        name = STRANGER.name
        assert doctor_command("--remove-data", name)[0] == 1
        assert doctor_command("--remove-data", name, "--confirm", "nvs-other")[0] == 1
        assert name in runtime.world.volumes
        code, text = doctor_command("--remove-data", name, "--confirm", name)
        assert (code, "Deleted" in text) == (0, True), text
        assert set(runtime.world.volumes) == {server.handle.name}
        assert AuditEvent.objects.get(action="data.deleted").target == name

    def test_refused_for_what_is_known_runs_or_is_not_ours(
        self, server: DatabaseServer, ready: Project, runtime: MemoryRuntime
    ) -> None:
        def refused(name: str) -> bool:
            return doctor_command("--remove-data", name, "--confirm", name)[0] == 1

        assert refused(server.handle.name)
        DatabaseServer.objects.update(incarnation=2)
        assert refused(server.handle.name)  # an older incarnation of a server that lives
        DatabaseServer.objects.update(incarnation=1)
        plant(runtime, server)
        assert refused(STRANGER.name)  # a server of that name is there
        runtime.lose_server(STRANGER)
        DataTombstone.objects.create(
            server_uuid=STRANGER.server_id, incarnation=1, region=server.region, reason="test", due_at=now()
        )
        assert refused(STRANGER.name)  # the janitor's
        DataTombstone.objects.all().delete()
        runtime.world.volumes[STRANGER.name].install = "another"
        assert refused(STRANGER.name)
        runtime.world.volumes[STRANGER.name].install = runtime.install_id
        Install.objects.update(read_only=True)
        assert refused(STRANGER.name)
        Install.objects.update(read_only=False)
        runtime.write_epoch("another")
        assert refused(STRANGER.name)
        assert set(runtime.world.volumes) == {server.handle.name, STRANGER.name}


class TestPage:
    def test_the_last_look_and_a_new_one(
        self, server: DatabaseServer, runtime: MemoryRuntime, team: Team, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = UserFactory(is_staff=True)
        browser = Client()
        browser.force_login(operator)
        page = "/operator/doctor/"
        plant(runtime, server)
        sent: list[Any] = []
        monkeypatch.setattr(doctoring.tasks.examine, "apply_async", lambda **options: sent.append(tasks.examine()))
        assert browser.post(page).status_code == 302 and sent
        shown = browser.get(page).content.decode()
        assert STRANGER.name in shown and "unknown.data" in shown and "2 findings" in shown
        assert "/operator/doctor/" in browser.get("/operator/").content.decode()
        for other in (team.bob, team.alice):
            stranger = Client()
            stranger.force_login(other)
            assert stranger.get(page).status_code == 403
            assert stranger.post(page).status_code == 403
