"""TLS of servers, on paper: which certificate a server has, when it gets another one, who may come in without TLS."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509

from accounts.models import AuditEvent
from accounts.permissions import Principal
from novastack.common import pki
from novastack.common.clock import now
from novastack.common.errors import ActionNotAllowed, Invalid
from novastack.common.models import Install
from novastack.common.secrets import Sealed
from projects import domain
from projects.models import CertificateAuthority, DatabaseServer, Operation, Project
from projects.operations import certificates, tls, watch
from projects.runtimes.memory import MemoryRuntime
from projects.services import project_action, project_update
from tests.factories import Team, make_project
from tests.operations.conftest import begin, drive, operation_of, states
from tests.operations.paper import PaperPostgreSQL


def server_of(project: Project) -> DatabaseServer:
    return DatabaseServer.objects.get(project_uuid=project.pk)


def change(server: DatabaseServer, **fields: Any) -> None:
    DatabaseServer.objects.filter(pk=server.pk).update(**fields)


def shown(paper: PaperPostgreSQL, server: DatabaseServer) -> bytes:
    return paper.peer_certificate(server.control_endpoint)


def before_tls(paper: PaperPostgreSQL, runtime: MemoryRuntime, project: Project) -> DatabaseServer:
    """As if it had been provisioned by a release that knew no TLS: it runs without, its row says nothing."""
    from projects.operations import wiring

    server = server_of(project)
    runtime.stop(server.handle)
    handle = runtime.ensure(
        paper.server_spec(wiring.server_request(server, tls=False)), data=domain.DataPolicy.MUST_EXIST
    )
    change(server, tls_certificate="", tls_not_after=None, tls_names=[], tls_authority=None, tls_enabled=False,
           runtime_ref=handle.ref)  # fmt: skip
    CertificateAuthority.objects.all().delete()
    return server_of(project)


class TestFirstCertificate:
    def test_provisioning_ends_with_a_server_that_proves_itself(self, ready: Project, paper: PaperPostgreSQL) -> None:
        server = server_of(ready)
        assert server.tls_enabled and server.tls_reason == ""
        assert shown(paper, server) == pki.der_of(server.tls_certificate)
        names = x509.load_pem_x509_certificate(server.tls_certificate.encode()).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        assert names.value.get_values_for_type(x509.DNSName) == [server.tls_name, "localhost"]
        assert [str(address) for address in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
        assert server.control_endpoint.ca_pem and server.control_endpoint.tls_name == server.tls_name

    def test_one_authority_for_all(self, ready: Project, team: Team) -> None:
        other = make_project(team.alice, team.organization, "Other", running=False)
        drive(operation_of(other))
        assert CertificateAuthority.objects.count() == 1
        assert server_of(ready).tls_certificate != server_of(other).tls_certificate
        assert server_of(ready).tls_key.open() != server_of(other).tls_key.open()
        assert certificates.trusted() == CertificateAuthority.objects.get().certificate

    def test_keys_are_sealed(self, ready: Project) -> None:
        raw = DatabaseServer.objects.filter(project_uuid=ready.pk).values_list("tls_key", flat=True)[0]
        assert str(raw).startswith("v1.") or isinstance(raw, Sealed)
        assert "PRIVATE" not in str(raw)
        assert "PRIVATE" not in server_of(ready).tls_certificate

    def test_every_name_that_clients_use(self, shop: Project) -> None:
        endpoint = shop.endpoint
        endpoint.host, endpoint.tls_name, endpoint.control_host = "db.example.org", "shop.example.org", "host.internal"
        server = server_of(shop)
        server.bind_address = "0.0.0.0"  # noqa: S104 - all addresses: no name of any
        assert certificates.names_of(server, endpoint) == [
            server.tls_name, "db.example.org", "shop.example.org", "host.internal", "127.0.0.1", "localhost", "::1",
        ]  # fmt: skip

    def test_another_server_at_the_same_address_is_not_trusted(self, ready: Project, paper: PaperPostgreSQL) -> None:
        server = server_of(ready)
        stranger = domain.Endpoint("127.0.0.1", server.port or 0, "another.server", server.control_endpoint.ca_pem)
        with pytest.raises(domain.TlsNotTrusted):
            paper.probe(stranger, domain.Credentials(server.admin_username, server.admin_secret.open()))


class TestWithoutTls:
    REASON = "the postgres 18 of this machine was built without TLS"

    def test_the_reason_is_kept_and_the_server_works(self, shop: Project, runtime: MemoryRuntime) -> None:
        runtime.no_tls = self.REASON
        assert drive(operation_of(shop)).state == "succeeded"
        server = server_of(shop)
        assert (server.tls_enabled, server.tls_certificate, server.tls_reason) == (False, "", self.REASON)
        assert server.control_endpoint.ca_pem == ""

    def test_what_must_have_it_fails(self, team: Team, runtime: MemoryRuntime) -> None:
        runtime.no_tls = self.REASON
        project = make_project(team.alice, team.organization, running=False, tls_required=True)
        operation = drive(operation_of(project))
        assert operation.state == "failed" and operation.error is not None
        assert operation.error["code"] == "tls_not_available" and self.REASON in operation.error["detail"]

    def test_it_comes_with_a_start_once_it_can(self, shop: Project, runtime: MemoryRuntime, alice: Principal) -> None:
        runtime.no_tls = self.REASON
        drive(operation_of(shop))
        runtime.no_tls = ""
        drive(project_action(principal=alice, project=shop, action="restart"))
        server = server_of(shop)
        assert server.tls_enabled and server.tls_reason == "" and server.tls_certificate

    def test_it_goes_with_a_start_once_it_can_not(
        self, ready: Project, runtime: MemoryRuntime, alice: Principal
    ) -> None:
        runtime.no_tls = self.REASON
        assert drive(project_action(principal=alice, project=ready, action="restart")).state == "succeeded"
        assert not server_of(ready).tls_enabled

    def test_refusing_plain_connections_is_refused(
        self, shop: Project, runtime: MemoryRuntime, alice: Principal
    ) -> None:
        runtime.no_tls = self.REASON
        drive(operation_of(shop))
        with pytest.raises(Invalid, match="without TLS"):
            project_update(principal=alice, project=shop, changes={"tls_required": True})


class TestOlderServers:
    def test_they_get_it_with_their_next_restart(
        self, ready: Project, paper: PaperPostgreSQL, runtime: MemoryRuntime, alice: Principal
    ) -> None:
        server = before_tls(paper, runtime, ready)
        with pytest.raises(domain.TlsNotTrusted):
            shown(paper, server)
        with pytest.raises(Invalid, match="Restart the project first"):
            project_update(principal=alice, project=ready, changes={"tls_required": True})
        assert drive(project_action(principal=alice, project=ready, action="restart")).state == "succeeded"
        server = server_of(ready)
        assert shown(paper, server) == pki.der_of(server.tls_certificate)

    def test_a_renewal_leaves_them_alone(self, ready: Project, paper: PaperPostgreSQL, runtime: MemoryRuntime) -> None:
        before_tls(paper, runtime, ready)
        assert tls.renew_due() == tls.Renewals(0, 0)


class TestRequired:
    def test_on_and_off_while_it_runs(self, ready: Project, paper: PaperPostgreSQL, alice: Principal) -> None:
        server = server_of(ready)
        certificate = server.tls_certificate
        started = server.started_at
        for required in (True, False):
            _, operation = project_update(principal=alice, project=ready, changes={"tls_required": required})
            assert operation is not None and operation.kind == "change_tls"
            assert drive(operation).state == "succeeded", operation.error
            assert paper.accepts_plain(server.control_endpoint) is not required
            ready.refresh_from_db()
            assert ready.tls_required is required
        assert server_of(ready).tls_certificate == certificate and server_of(ready).started_at == started
        event = AuditEvent.objects.filter(action="project.changed").latest("id")
        assert event.data["fields"] == ["tls_required"]

    def test_the_same_again_is_nothing(self, ready: Project, alice: Principal) -> None:
        assert project_update(principal=alice, project=ready, changes={"tls_required": False})[1] is None

    def test_with_new_limits(
        self, ready: Project, paper: PaperPostgreSQL, runtime: MemoryRuntime, alice: Principal
    ) -> None:
        changes = {"tls_required": True, "limits": {"memory_bytes": 256 << 20}}
        _, operation = project_update(principal=alice, project=ready, changes=changes)
        assert operation is not None and operation.kind == "reconfigure"
        assert drive(operation).state == "succeeded"
        assert set(states(operation)) == {"limits", "certificate", "files", "prove"}
        server = server_of(ready)
        assert not paper.accepts_plain(server.control_endpoint)
        assert runtime.world.servers[server.handle.name].limits.memory_bytes == 256 << 20

    def test_from_the_start(self, team: Team, paper: PaperPostgreSQL) -> None:
        project = make_project(team.alice, team.organization, running=False, tls_required=True)
        assert drive(operation_of(project)).state == "succeeded"
        assert not paper.accepts_plain(server_of(project).control_endpoint)

    def test_a_stopped_one_takes_it_when_it_starts(
        self, ready: Project, paper: PaperPostgreSQL, alice: Principal
    ) -> None:
        drive(project_action(principal=alice, project=ready, action="stop"))
        _, operation = project_update(principal=alice, project=ready, changes={"tls_required": True})
        assert operation is not None and drive(operation).state == "succeeded"
        ready.refresh_from_db()
        assert ready.status == "stopped"
        drive(project_action(principal=alice, project=ready, action="start"))
        assert not paper.accepts_plain(server_of(ready).control_endpoint)

    def test_one_that_runs_already_takes_it_when_told_to_start(self, ready: Project, paper: PaperPostgreSQL) -> None:
        """`start` on a server that somebody else has started leaves it running, and must not forget its files."""
        Project.objects.filter(pk=ready.pk).update(tls_required=True)
        assert drive(begin(ready, "recover")).state == "succeeded"
        assert not paper.accepts_plain(server_of(ready).control_endpoint)

    def test_nothing_is_said_to_be_done_that_is_not(
        self, ready: Project, paper: PaperPostgreSQL, alice: Principal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tls, "PROVE_SECONDS", 0.2)
        monkeypatch.setattr(paper, "accepts_plain", lambda *_, **__: True)
        _, operation = project_update(principal=alice, project=ready, changes={"tls_required": True})
        assert operation is not None
        for _ in range(3):
            Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
            tls_runner(operation)
        assert operation.state != "succeeded"
        assert operation.steps.get(name="prove").state not in {"succeeded", "skipped"}
        assert "has not taken" in str(operation.error) + operation.steps.get(name="prove").detail

    def test_a_deleted_one_is_left_alone(self, ready: Project, alice: Principal) -> None:
        Project.objects.filter(pk=ready.pk).update(desired_status="recycled", recycled_at=now())
        with pytest.raises(ActionNotAllowed):
            project_update(principal=alice, project=ready, changes={"tls_required": True})

    @pytest.mark.parametrize("value", ["yes", 1, None])
    def test_only_true_or_false(self, ready: Project, alice: Principal, value: object) -> None:
        with pytest.raises(Invalid):
            project_update(principal=alice, project=ready, changes={"tls_required": value})


def tls_runner(operation: Operation) -> None:
    from projects.operations import runner

    runner.run(operation.pk)
    operation.refresh_from_db()


class TestRenewal:
    def test_thirty_days_before_the_end(self, ready: Project, paper: PaperPostgreSQL) -> None:
        server = server_of(ready)
        change(server, tls_not_after=now() + timedelta(days=31))
        assert tls.renew_due() == tls.Renewals(0, 0)
        change(server, tls_not_after=now() + timedelta(days=29))
        assert tls.renew_due() == tls.Renewals(1, 0)
        assert tls.renew_due() == tls.Renewals(0, 0)  # it is being done
        operation = operation_of(ready)
        assert operation.kind == "renew_certificate" and drive(operation).state == "succeeded", operation.error
        renewed = server_of(ready)
        assert renewed.tls_certificate != server.tls_certificate
        assert renewed.tls_not_after is not None and renewed.tls_not_after > now() + timedelta(days=390)
        assert shown(paper, renewed) == pki.der_of(renewed.tls_certificate)
        assert renewed.runtime_ref == server.runtime_ref
        assert tls.renew_due() == tls.Renewals(0, 0)
        assert AuditEvent.objects.filter(action="project.renew_certificate", project_id=ready.pk).count() == 1

    def test_new_names_bring_a_new_certificate(self, ready: Project, paper: PaperPostgreSQL) -> None:
        server, endpoint = server_of(ready), ready.endpoint
        endpoint.host = "db.example.org"
        endpoint.save()
        assert drive(begin(ready, "renew_certificate")).state == "succeeded"
        assert "db.example.org" in server_of(ready).tls_names
        assert shown(paper, server) == pki.der_of(server_of(ready).tls_certificate)

    def test_one_that_has_ended_is_restarted(self, ready: Project, paper: PaperPostgreSQL) -> None:
        server = server_of(ready)
        change(server, tls_not_after=now() - timedelta(hours=1))
        assert tls.renew_due() == tls.Renewals(0, 1)
        operation = operation_of(ready)
        assert operation.kind == "restart" and drive(operation).state == "succeeded"
        assert (
            shown(paper, server) == pki.der_of(server_of(ready).tls_certificate) != pki.der_of(server.tls_certificate)
        )

    @pytest.mark.parametrize(
        "fields", [{"observed_state": "stopped"}, {"desired_state": "stopped"}, {"reconcile": False}], ids=str
    )
    def test_who_is_left_alone(self, ready: Project, fields: dict[str, Any]) -> None:
        change(server_of(ready), tls_not_after=now() + timedelta(days=1), **fields)
        assert tls.renew_due() == tls.Renewals(0, 0)

    def test_a_read_only_install_renews_nothing(self, ready: Project) -> None:
        change(server_of(ready), tls_not_after=now() + timedelta(days=1))
        Install.load()
        Install.objects.update(read_only=True)
        assert tls.renew_due() == tls.Renewals(0, 0)

    def test_one_that_is_down_gets_it_when_it_starts(
        self, ready: Project, paper: PaperPostgreSQL, alice: Principal
    ) -> None:
        drive(project_action(principal=alice, project=ready, action="stop"))
        server = server_of(ready)
        change(server, tls_not_after=now() + timedelta(days=1))
        assert tls.renew_due() == tls.Renewals(0, 0)
        drive(project_action(principal=alice, project=ready, action="start"))
        assert (
            shown(paper, server) == pki.der_of(server_of(ready).tls_certificate) != pki.der_of(server.tls_certificate)
        )

    @pytest.mark.parametrize("step", ["certificate", "files", "prove"])
    def test_a_worker_killed_in_a_step_loses_nothing(
        self, ready: Project, paper: PaperPostgreSQL, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        change(server_of(ready), tls_not_after=now() + timedelta(days=1))
        tls.renew_due()
        operation = operation_of(ready)
        from projects.operations import base
        from tests.operations.conftest import Killed

        definition = base.definition_of(operation.kind, operation.definition_version)
        assert definition is not None
        found = next(each for each in definition.steps if each.name == step)
        original, deaths = found.run, []

        def dies_once(ctx: Any) -> None:
            original(ctx)
            if not deaths:
                deaths.append(step)
                raise Killed

        monkeypatch.setattr(base, "_definitions", dict(base._definitions))
        steps = tuple(base.replace(each, run=dies_once) if each.name == step else each for each in definition.steps)
        base._definitions[operation.kind, operation.definition_version] = base.replace(definition, steps=steps)
        with pytest.raises(Killed):
            tls_runner(operation)
        server = server_of(ready)
        paper.probe(server.control_endpoint, domain.Credentials(server.admin_username, server.admin_secret.open()))
        assert drive(operation).state == "succeeded"
        assert shown(paper, server) == pki.der_of(server_of(ready).tls_certificate)

    def test_a_new_authority_takes_over_while_servers_show_the_old_one(
        self, ready: Project, paper: PaperPostgreSQL, team: Team
    ) -> None:
        old = CertificateAuthority.objects.get()
        CertificateAuthority.objects.update(not_after=now() + timedelta(days=300))
        other = make_project(team.alice, team.organization, "Other", running=False)
        assert drive(operation_of(other)).state == "succeeded"
        new = CertificateAuthority.objects.get(active=True)
        assert new.pk != old.pk and certificates.trusted() == new.certificate + old.certificate
        assert server_of(other).tls_authority == new
        change(server_of(ready), tls_not_after=now() + timedelta(days=1))
        tls.renew_due()
        assert drive(operation_of(ready)).state == "succeeded"
        assert server_of(ready).tls_authority == new


class TestHealth:
    def test_what_is_not_trusted_is_not_healthy(self, ready: Project, paper: PaperPostgreSQL) -> None:
        impostor = pki.make_authority("Impostor", at=now())
        held = paper.of(domain.Endpoint("127.0.0.1", server_of(ready).port or 0))
        held.shown = pki.der_of(
            pki.make_server_certificate(impostor, [server_of(ready).tls_name], at=now()).certificate
        )
        target = watch._targets([ready.pk])[ready.pk]
        result = watch._look(target)
        assert not result.healthy and "Not trusted" in result.detail
