"""Every kind of operation on the memory runtime: what it leaves behind."""

from __future__ import annotations

import pytest

from projects import domain
from projects.models import (
    BlockedPort,
    DatabaseServer,
    DataTombstone,
    Endpoint,
    Operation,
)
from projects.operations import janitor, reconciler
from projects.services import (
    ProjectRequest,
    connection_reveal,
    key_verify,
    operation_cancel,
    project_action,
    project_create,
    project_delete,
    project_update,
)
from tests.factories import RegionFactory
from tests.operations.conftest import (
    Killed,
    begin,
    drive,
    let_lease_expire,
    once,
    operation_of,
    states,
)
from tests.operations.left_behind import clear_out, exactly_one, login_of, logs_in, nothing_left, purge, server_of
from tests.operations.paper import PaperAdmin


def test_provisioning_ends_with_a_login_that_works(ready, paper, runtime, alice):
    logs_in(paper, ready)
    exactly_one(runtime, ready, "running")
    assert ready.ready_at
    assert ready.status == "running"
    server = server_of(ready)
    first = runtime.world.servers[server.handle.name].spec.secret_files["bootstrap"].decode()
    assert server.admin_secret.open() != first, "the bootstrap password is one-time"
    assert paper.diary.count("create_tenant") == 1


def test_keys_asked_for_with_the_project_work_from_its_readiness_on(team, runtime, paper, alice):
    RegionFactory()
    made: list = []
    project = project_create(
        principal=alice,
        organization=team.organization,
        request=ProjectRequest(name="Keyed", api_keys=2),
        made_keys=made,
    )
    assert [key_verify(clear=clear).code for _, clear in made] == ["inactive", "inactive"]
    operation = drive(operation_of(project))
    assert operation.state == "succeeded"
    assert operation.steps.get(name="api_keys").detail == "2 keys"
    assert all(key_verify(clear=clear).valid for _, clear in made)


def late(runtime, monkeypatch, meanwhile):
    """The first worker sleeps just before it makes the server, through `meanwhile`, and then goes on."""
    real, calls = type(runtime).ensure, []

    def ensure(self, spec, *, data):
        calls.append(spec)
        if len(calls) == 1:
            meanwhile()
        return real(self, spec, data=data)

    monkeypatch.setattr(type(runtime), "ensure", ensure)


def test_a_worker_that_sleeps_through_a_purge_leaves_nothing_when_it_wakes_up(shop, runtime, alice, monkeypatch):
    operation = operation_of(shop)

    def meanwhile():
        let_lease_expire(operation)
        drive(operation)
        shop.refresh_from_db()
        clear_out(purge(shop, alice))

    late(runtime, monkeypatch, meanwhile)
    once(operation)
    assert operation.state == "succeeded"
    assert not runtime.world.servers, "it took its server away again"
    assert len(runtime.world.volumes) == 1
    DataTombstone.objects.update(due_at=operation.created_at)
    janitor.delete_due_data()
    nothing_left(runtime, operation.project_uuid)


def test_a_worker_that_sleeps_through_its_undo_leaves_the_next_incarnation_alone(
    shop, runtime, paper, alice, monkeypatch
):
    operation = operation_of(shop)

    def meanwhile():
        let_lease_expire(operation)
        operation_cancel(principal=alice, operation=operation)
        assert drive(operation).state == "cancelled"
        shop.refresh_from_db()
        drive(project_action(principal=alice, project=shop, action="retry"))

    late(runtime, monkeypatch, meanwhile)
    once(operation)
    shop.refresh_from_db()
    assert shop.status == "running"
    exactly_one(runtime, shop, "running")
    logs_in(paper, shop)


def test_a_worker_that_only_slept_leaves_its_successors_server_alone(shop, runtime, paper, monkeypatch):
    operation = operation_of(shop)

    def meanwhile():
        let_lease_expire(operation)
        drive(operation)

    late(runtime, monkeypatch, meanwhile)
    once(operation)
    exactly_one(runtime, shop, "running")
    logs_in(paper, shop)


def test_no_secret_is_in_steps_events_or_operations(ready, paper, alice):
    drive(project_action(principal=alice, project=ready, action="rotate_password"))
    secrets = [login_of(ready).secret.open(), server_of(ready).admin_secret.open()]
    told = "".join(
        str(v) for op in Operation.objects.all() for v in [
            op.params, op.error, *op.steps.values_list("detail", "data"), *op.events.values_list("message"),
        ]
    )  # fmt: skip
    assert not [s for s in secrets if s in told]


def test_a_port_of_somebody_else_is_marked_and_the_next_one_taken(shop, runtime, paper):
    runtime.world.foreign_ports |= {20000, 20001}
    drive(operation_of(shop))
    shop.refresh_from_db()
    assert shop.status == "running"
    assert Endpoint.objects.get(project=shop).port == server_of(shop).port == 20002
    assert set(BlockedPort.objects.values_list("port", flat=True)) == {20000, 20001}


def test_a_failed_provision_is_undone_and_can_be_retried(shop, runtime, paper, alice):
    runtime.fail("update", domain.DataExists("no"), times=1)
    operation = drive(operation_of(shop))
    shop.refresh_from_db()
    assert (operation.state, shop.status) == ("failed", "failed")
    exactly_one(runtime, shop, None)
    tomb = DataTombstone.objects.get()
    assert tomb.incarnation == 1, "its data is given up, not deleted by the operation"
    assert len(runtime.world.volumes) == 1
    drive(project_action(principal=alice, project=shop, action="retry"))
    shop.refresh_from_db()
    assert shop.status == "running"
    assert server_of(shop).incarnation == 2, "a name is used once"
    logs_in(paper, shop)


def test_a_server_lost_while_provisioning_is_started_again_at_once(shop, runtime, paper):
    """dockerd was restarted: the container is there, stopped, and nobody but the operation starts it."""
    original = paper.verify_tenant
    lost = []

    def loses_once(*args):
        if not lost:
            lost.append(1)
            runtime.crash(server_of(shop).handle)
            raise domain.ServerNotReady("connection refused")
        return original(*args)

    paper.verify_tenant = loses_once
    operation = operation_of(shop)
    once(operation)
    assert states(operation)["server"] == "pending", "it goes back to the step that starts the server"
    assert operation.attempt == 1
    assert drive(operation).state == "succeeded"
    logs_in(paper, shop)
    exactly_one(runtime, shop, "running")


def test_data_lost_while_provisioning_is_never_made_anew_under_the_same_name(shop, runtime, paper):
    operation = operation_of(shop)
    original = paper.verify_tenant

    def loses(*args):
        handle = server_of(shop).handle
        runtime.lose_server(handle)
        runtime.lose_data(handle)
        paper.verify_tenant = original
        raise domain.ServerNotReady("connection refused")

    paper.verify_tenant = loses
    drive(operation)
    assert (operation.state, operation.error["code"]) == ("failed", "data_missing")


def test_rotation_refuses_the_old_password_and_the_new_one_works(ready, paper, alice):
    old = login_of(ready).secret.open()
    drive(project_action(principal=alice, project=ready, action="rotate_password"))
    logs_in(paper, ready)
    with pytest.raises(domain.LoginRefused):
        paper.probe(domain.Endpoint("", ready.endpoint.port), domain.Credentials(login_of(ready).name, old))


def test_a_rotation_killed_after_its_promotion_still_ends_the_sessions(ready, paper, alice, monkeypatch):
    ended = []
    operation = project_action(principal=alice, project=ready, action="rotate_password", end_sessions=True)

    def dies_once(self, username):
        ended.append(username)
        if len(ended) == 1:
            raise Killed
        return 3

    monkeypatch.setattr(PaperAdmin, "end_sessions", dies_once)
    with pytest.raises(Killed):
        once(operation)
    assert login_of(ready).pending_secret is None
    drive(operation)
    assert len(ended) == 2
    assert operation.steps.get(name="prove").detail == "3 old sessions ended"
    logs_in(paper, ready)


def test_a_rotation_cut_short_by_a_deletion_leaves_a_password_that_works_after_undelete(ready, paper, alice):
    """It was applied and not yet proven: the server knows the new one, the row shows the old one."""
    rotation = project_action(principal=alice, project=ready, action="rotate_password")
    real = paper.probe
    deletion = []

    def probe(endpoint, credentials, **options):
        if credentials.username == login_of(ready).name and not deletion:
            deletion.append(project_delete(principal=alice, project=ready))
            raise domain.ServerNotReady("busy")
        return real(endpoint, credentials, **options)

    paper.probe = probe
    assert drive(rotation).state == "cancelled"
    paper.probe = real
    drive(deletion[0])
    ready.refresh_from_db()
    assert ready.status == "recycled"
    drive(project_action(principal=alice, project=ready, action="undelete"))
    ready.refresh_from_db()
    assert ready.status == "running"
    logs_in(paper, ready)


def test_a_password_changed_by_the_tenant_is_said_and_is_no_failure(ready, paper, alice):
    held = paper.of(domain.Endpoint("", ready.endpoint.port))
    held.passwords[login_of(ready).name] = "the tenant's own"
    operation = drive(project_action(principal=alice, project=ready, action="restart"))
    assert operation.state == "succeeded"
    assert "outside" in operation.steps.get(name="login").detail


def test_a_full_server_is_up(ready, paper, alice):
    real = paper.probe

    def probe(endpoint, credentials, **options):
        if credentials.username == login_of(ready).name:
            raise domain.ServerBusy("all connections of the server are in use")
        return real(endpoint, credentials, **options)

    paper.probe = probe
    assert drive(project_action(principal=alice, project=ready, action="restart")).state == "succeeded"


def test_stop_and_start_keep_the_data(ready, paper, runtime, alice):
    paper.of(domain.Endpoint("", ready.endpoint.port)).rows["a"] = "1"
    drive(project_action(principal=alice, project=ready, action="stop"))
    ready.refresh_from_db()
    assert ready.status == "stopped"
    exactly_one(runtime, ready, "stopped")
    drive(project_action(principal=alice, project=ready, action="start"))
    assert paper.of(domain.Endpoint("", ready.endpoint.port)).rows == {"a": "1"}
    exactly_one(runtime, ready, "running")


def test_a_stop_that_did_not_stop_is_not_reported_as_one(ready, runtime, alice, monkeypatch):
    monkeypatch.setattr(type(runtime), "stop", lambda *a, **k: None)
    operation = drive(project_action(principal=alice, project=ready, action="stop"))
    assert (operation.state, operation.error["code"]) == ("failed", "not_stopped")


def test_foreign_data_behind_the_name_is_data_missing(ready, paper, alice):
    drive(project_action(principal=alice, project=ready, action="stop"))
    paper.data[server_of(ready).handle.name].system_identifier = "another"
    operation = drive(project_action(principal=alice, project=ready, action="start"))
    assert (operation.state, operation.error["code"]) == ("failed", "data_missing")


def test_data_that_is_gone_is_said_and_never_made_anew(ready, runtime, alice):
    handle = server_of(ready).handle
    runtime.lose_server(handle)
    runtime.lose_data(handle)
    reconciler.reconcile()
    recovery = operation_of(ready)
    assert recovery.kind == "recover"
    drive(recovery)
    ready.refresh_from_db()
    assert (ready.status, ready.failure["code"]) == ("failed", "data_missing")
    assert not runtime.world.volumes
    before = Operation.objects.count()
    reconciler.reconcile()
    assert Operation.objects.count() == before, "it is final: an operator decides"


def test_a_stale_ref_does_not_block_stop_or_delete(ready, runtime, alice):
    """A worker was killed between starting the server anew and writing down which process it is."""
    runtime.replace_server(server_of(ready).handle)
    assert drive(project_action(principal=alice, project=ready, action="stop")).state == "succeeded"
    exactly_one(runtime, ready, "stopped")
    runtime.replace_server(server_of(ready).handle)
    assert drive(project_delete(principal=alice, project=ready)).state == "succeeded"


def test_limits_hold_on_the_running_server_and_from_the_next_start_on_a_stopped_one(ready, runtime, alice):
    small, smaller = 300 * 2**20, 200 * 2**20
    drive(project_update(principal=alice, project=ready, changes={"limits": {"memory_bytes": small}})[1])
    name = server_of(ready).handle.name
    assert runtime.world.servers[name].limits.memory_bytes == small
    drive(project_action(principal=alice, project=ready, action="stop"))
    drive(project_update(principal=alice, project=ready, changes={"limits": {"memory_bytes": smaller}})[1])
    drive(project_action(principal=alice, project=ready, action="start"))
    assert runtime.world.servers[name].limits.memory_bytes == smaller


def test_limits_of_a_server_whose_container_is_gone_hold_from_its_next_start(ready, runtime, alice):
    runtime.lose_server(server_of(ready).handle)
    operation = project_update(principal=alice, project=ready, changes={"limits": {"memory_bytes": 200 * 2**20}})[1]
    assert drive(operation).state == "succeeded"


def test_delete_shuts_and_stops_and_undelete_brings_everything_back(ready, paper, runtime, alice):
    address = ready.endpoint.port
    held = paper.of(domain.Endpoint("", address))
    drive(project_delete(principal=alice, project=ready))
    ready.refresh_from_db()
    assert ready.status == "recycled"
    assert ready.recycle_until
    assert held.shut == {login_of(ready).name}
    exactly_one(runtime, ready, "stopped")
    drive(project_action(principal=alice, project=ready, action="undelete"))
    ready.refresh_from_db()
    assert (ready.status, Endpoint.objects.get(project=ready).port) == ("running", address)
    assert not held.shut
    logs_in(paper, ready)


def test_delete_goes_on_when_the_server_refuses_even_us(ready, paper, alice):
    paper.of(domain.Endpoint("", ready.endpoint.port)).passwords["novastack"] = "changed behind our back"
    assert drive(project_delete(principal=alice, project=ready)).state == "succeeded"


def test_purge_waits_for_the_janitor_and_leaves_nothing(ready, runtime, alice):
    key = ready.pk
    operation = purge(ready, alice)
    ready.refresh_from_db()
    assert ready.purging_at
    assert not runtime.world.servers
    assert len(runtime.world.volumes) == 1, "data is deleted by the janitor, after a grace"
    assert states(operation)["data"] == "waiting"
    assert janitor.delete_due_data() == 0, "not before its time"
    assert clear_out(operation).state == "succeeded"
    nothing_left(runtime, key)
    assert Operation.objects.filter(project_uuid=key).count() == 2, "operations outlive the project"


def test_a_deletion_that_broke_for_good_says_so_and_can_be_asked_for_again(ready, alice):
    operation = project_delete(principal=alice, project=ready)
    operation.steps.filter(name="stop").update(state="running", crashes=4)
    Operation.objects.filter(pk=operation.pk).update(state="running", lease_until=operation.created_at)
    assert once(operation).error["code"] == "poison"
    ready.refresh_from_db()
    assert ready.status == "deleting"
    assert "ended its worker" in ready.status_detail
    again = project_delete(principal=alice, project=ready)
    assert drive(again).state == "succeeded"
    ready.refresh_from_db()
    assert ready.status == "recycled"


def test_credentials_that_were_shown_keep_the_data_from_any_undo(ready, runtime, paper, alice):
    connection_reveal(principal=alice, project=ready)
    Operation.objects.filter(project_uuid=ready.pk).delete()
    operation = begin(ready, "provision")
    paper.fails["create_tenant"] = [domain.DataExists("no")]
    assert drive(operation).state == "failed"
    exactly_one(runtime, ready, "running")
    assert not DataTombstone.objects.exists()


def test_a_read_only_install_writes_nothing_to_runtimes(shop, ready_install, runtime):
    ready_install.read_only, ready_install.read_only_reason = True, "restored"
    ready_install.save()
    operation = once(operation_of(shop))
    assert states(operation)["image"] == "waiting" or states(operation)["verify"] == "waiting"
    assert runtime.calls["ensure"] == 0
    ready_install.read_only = False
    ready_install.save()
    assert drive(operation).state == "succeeded"


@pytest.fixture
def ready_install(db):
    return reconciler.Install.load()


def test_a_server_that_an_operator_set_aside_is_not_touched(ready, runtime, alice):
    DatabaseServer.objects.filter(project_uuid=ready.pk).update(reconcile=False)
    before = dict(runtime.calls)
    operation = once(project_action(principal=alice, project=ready, action="stop"))
    assert states(operation)["stop"] == "waiting"
    assert runtime.calls["stop"] == before.get("stop", 0)
