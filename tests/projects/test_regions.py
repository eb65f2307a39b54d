"""Regions as operators set them up: what is refused and why, where the key is, what a worker finds."""

from __future__ import annotations

import json
import threading
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse

from accounts.models import AuditEvent
from novastack.common import pki
from novastack.common.clock import now
from novastack.common.secrets import new_key
from projects import domain, registry
from projects.models import Region
from projects.operations import fanout, reconciler, region_check, status, wiring
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.memory import MemoryRuntime
from tests.contracts.runtime_contract import spec_maker
from tests.factories import Team, UserFactory, make_catalogue, make_project

CA = pki.make_authority("Engines", at=now())
CLIENT = pki.make_client_certificate(CA, "novastack", at=now())
URL = "tcp://10.20.30.40:2376"
FIELDS = {
    "name": "Frankfurt", "slug": "fra", "runtime": "docker", "endpoint_url": URL, "endpoint_ca": CA.certificate,
    "endpoint_certificate": CLIENT.certificate, "private_key": CLIENT.key, "bind_address": "10.20.30.40",
    "client_host": "db.example.org", "control_host": "10.20.30.40", "port_start": 20000, "port_end": 20999,
    "config": "{}", "enabled": "on", "reconcile": "on",
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any) -> list[str]:
    """Whom workers were told to look at; nobody looks."""
    from projects import tasks

    told: list[str] = []
    monkeypatch.setattr(tasks.check_region, "apply_async", lambda args, **_: told.append(args[0]))
    return told


@pytest.fixture
def console(db: None, asked: list[str]) -> Client:
    client = Client()
    client.force_login(UserFactory(email="root@example.test", is_staff=True, is_superuser=True))
    return client


def add(console: Client, **changes: Any) -> Any:
    return console.post(reverse("projects:region-new"), {**FIELDS, **changes})


def test_a_region_behind_tls_is_added_and_its_key_is_nowhere_in_the_clear(
    console, asked, caplog, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        assert add(console).status_code == 302
    region = Region.objects.get(slug="fra")
    assert asked == [str(region.pk)]
    assert region.check_wanted_at
    assert region.endpoint_of().key.strip() == CLIENT.key.strip()
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(r)::text FROM projects_region r WHERE slug = 'fra'")
        stored = cursor.fetchone()[0]
    pages = console.get(reverse("projects:region", args=["fra"])).content.decode()
    pages += console.get(reverse("admin:projects_region_change", args=[region.pk])).content.decode()
    told = json.dumps(list(AuditEvent.objects.values_list("data", flat=True)))
    middle = CLIENT.key.splitlines()[1]
    for where in (stored, pages, told, caplog.text, repr(region.__dict__), repr(region.endpoint_of())):
        assert "PRIVATE KEY" not in where.replace("A private key is stored", "")
        assert middle not in where
    assert "A private key is stored" in pages
    event = AuditEvent.objects.get(action="region.created")
    assert event.target == "fra"
    assert isinstance(wiring.runtime_of(region), DockerRuntime)


def test_the_key_is_kept_when_nothing_is_pasted_and_goes_with_its_way(console, asked):
    add(console)
    page = reverse("projects:region", args=["fra"])
    console.post(page, {**FIELDS, "private_key": "", "name": "Frankfurt 2"})
    region = Region.objects.get(slug="fra")
    assert region.name == "Frankfurt 2"
    assert region.endpoint_of().key.strip() == CLIENT.key.strip()
    assert AuditEvent.objects.get(action="region.changed").data == {"fields": ["name"]}
    console.post(page, {**FIELDS, "endpoint_url": "", "private_key": "", "bind_address": "127.0.0.1"})
    region = Region.objects.get(slug="fra")
    assert (region.endpoint_key, region.endpoint_ca) == (None, "")


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        ({"endpoint_ca": "", "endpoint_certificate": "", "private_key": ""}, "endpoint_ca", "Without TLS"),
        ({"private_key": pki.make_client_certificate(CA, "other", at=now()).key}, "private_key", "does not belong"),
        ({"endpoint_ca": "nonsense"}, "endpoint_ca", "no certificate"),
        ({"endpoint_url": "http://10.20.30.40"}, "endpoint_url", "Use unix:///"),
        ({"endpoint_url": "ssh://root@10.20.30.40"}, "endpoint_host_keys", "host's key"),
        ({"endpoint_url": "ssh://root@10.20.30.40", "private_key": "x"}, "private_key", "no private key"),
        ({"endpoint_url": "ssh://root@10.20.30.40", "private_key": ""}, "private_key", "needs a private key"),
        ({"control_host": "127.0.0.1"}, "control_host", "own machine"),
        ({"bind_address": "127.0.0.1"}, "bind_address", "nobody on another machine"),
        ({"port_end": 19000}, "port_end", "ends before"),
        ({"runtime": "process"}, "endpoint_url", "reached from afar"),
        ({"runtime": "kubernetes"}, "runtime", "valid choice"),
        ({"config": '{"key": "-----BEGIN PRIVATE KEY-----"}'}, "config", "field of their own"),
        ({"config": "[1]"}, "config", "object"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_at_its_field(console, changes, field, why):
    answer = add(console, **changes)
    assert answer.status_code == 200
    errors = answer.context["form"].errors
    assert why in str(errors[field][0]), errors
    assert CLIENT.key.splitlines()[1] not in answer.content.decode(), "not even shown again"
    assert not Region.objects.filter(slug="fra").exists()


def test_one_machine_gives_out_a_port_once(console):
    add(console)
    again = {"slug": "fra2", "name": "Again"}
    assert "Frankfurt gives out 20000–20999" in str(add(console, **again).context["form"].errors["port_start"])
    assert add(console, **again, port_start=21000, port_end=21999).status_code == 302
    other = {"slug": "ber", "name": "Berlin", "endpoint_url": "tcp://10.20.30.41"}
    assert add(console, **other).status_code == 302, "another machine has ports of its own"


def test_where_servers_live_the_driver_stays_and_the_region_too(console, team):
    project = make_project(team.alice, team.organization)
    region = project.region
    page = reverse("projects:region", args=[region.slug])
    answer = console.post(page, {**FIELDS, "endpoint_url": "", "runtime": "docker", "slug": "other", "config": '{"a": 1}',
                                 "name": "Renamed", "bind_address": "127.0.0.1", "control_host": "127.0.0.1"})  # fmt: skip
    assert answer.status_code == 302, answer.context["form"].errors
    region.refresh_from_db()
    assert (region.name, region.runtime, region.slug, region.config) == ("Renamed", "memory", "local", {})
    removed = console.post(reverse("projects:region-act", args=["local", "remove"]), follow=True).content.decode()
    assert "still has 1 server, 1 project" in removed
    console.post(reverse("projects:region-act", args=["local", "disable"]))
    region.refresh_from_db()
    assert not region.available
    assert AuditEvent.objects.filter(action="region.disabled", target="local").exists()
    console.post(reverse("projects:region-act", args=["local", "enable"]))
    assert Region.objects.get(slug="local").available


def test_an_empty_region_is_removed(console):
    add(console)
    console.post(reverse("projects:region-act", args=["fra", "remove"]))
    assert not Region.objects.filter(slug="fra").exists()
    assert AuditEvent.objects.filter(action="region.removed", target="fra").exists()
    assert console.post(reverse("projects:region-act", args=["local", "nonsense"])).status_code == 404


def test_only_operators(client, team):
    make_catalogue()
    client.force_login(team.alice)
    for url in (reverse("projects:region-new"), reverse("projects:region", args=["local"])):
        assert client.get(url).status_code == 403
    assert client.post(reverse("projects:region-act", args=["local", "disable"])).status_code == 403
    assert Region.objects.get(slug="local").enabled


def test_the_admin_saves_by_the_same_service(console, asked, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        answer = console.post(reverse("admin:projects_region_add"), FIELDS)
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    region = Region.objects.get(slug="fra")
    assert region.endpoint_of().key.strip() == CLIENT.key.strip()
    assert asked == [str(region.pk)]
    assert AuditEvent.objects.filter(action="region.created").exists()


def test_keys_are_sealed_anew_with_the_others(console, settings):
    add(console)
    before = Region.objects.get(slug="fra").__dict__["endpoint_key"]
    settings.NOVASTACK_SECRET_KEYS = [new_key(), *settings.NOVASTACK_SECRET_KEYS]
    call_command("rotate_secrets", stdout=StringIO())
    region = Region.objects.get(slug="fra")
    assert region.__dict__["endpoint_key"] != before
    assert region.endpoint_of().key.strip() == CLIENT.key.strip()


class TestCheck:
    @pytest.fixture
    def region(self, team: Team, monkeypatch: pytest.MonkeyPatch) -> Region:
        monkeypatch.setattr(registry, "_built", {})
        return make_catalogue()[0]

    def look(self, region: Region) -> dict[str, Any]:
        region_check.check(region.pk)
        region.refresh_from_db()
        assert region.check_wanted_at is None
        return dict(region.checked)

    def test_what_works(self, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
        runtime = wiring.runtime_of(region)
        monkeypatch.setattr(runtime, "facts", lambda: domain.RuntimeFacts("20.10", "engine-1", ("no label role=x",)))
        region_check.want(region)
        found = self.look(region)
        assert (found["ok"], found["version"], found["problems"]) == (True, "20.10", ["no label role=x"])
        assert region.engine_identity == "engine-1"

    def test_who_does_not_answer_is_told_with_its_reason(self, region: Region) -> None:
        runtime = wiring.runtime_of(region)
        assert isinstance(runtime, MemoryRuntime)
        runtime.unreachable = True
        found = self.look(region)
        assert not found["ok"]
        assert "told not to answer" in found["reason"]
        assert not region.reachable
        runtime.unreachable = False
        assert self.look(region)["ok"]
        assert region.reachable

    def test_another_engine_at_the_old_address(self, region: Region, team: Team, monkeypatch) -> None:
        make_project(team.alice, team.organization)
        region.engine_identity = "engine-1"
        region.save()
        monkeypatch.setattr(wiring.runtime_of(region), "facts", lambda: domain.RuntimeFacts("20.10", "engine-2"))
        monkeypatch.setattr(wiring.runtime_of(region), "lacks", lambda *_: "not even asked")
        status.set_reachable(region, False, "The reconciler's reason")
        found = self.look(region)
        assert (found["ok"], found["reason"]) == (False, region_check.OTHER_ENGINE)
        assert region.engine_identity == "engine-1"
        assert (region.reachable, region.reason, region.lacks) == (False, "The reconciler's reason", {})

    def test_two_ways_to_one_engine(self, region: Region, monkeypatch: pytest.MonkeyPatch) -> None:
        Region.objects.filter(pk=region.pk).update(
            runtime="docker", engine_identity="same", port_start=20000, port_end=20100
        )
        other = Region.objects.create(
            slug="two",
            name="Two",
            runtime="docker",
            endpoint_url="tcp://10.0.0.1:2375",
            port_start=20100,
            port_end=20200,
        )
        monkeypatch.setattr(DockerRuntime, "facts", lambda self: domain.RuntimeFacts("1", "same"))
        monkeypatch.setattr(DockerRuntime, "lacks", lambda self, *_: "")
        assert any("on the same machine" in text for text in self.look(other)["problems"])

    def test_no_runtime_and_no_such_name(self, region: Region) -> None:
        Region.objects.filter(pk=region.pk).update(runtime="")
        assert self.look(region)["reason"] == region_check.NO_RUNTIME
        Region.objects.filter(pk=region.pk).update(runtime="memory", control_host="no.such.host.invalid")
        assert any("do not know the name" in text for text in self.look(region)["problems"])


class Hanging(MemoryRuntime):
    def __init__(self) -> None:
        super().__init__("hanging")
        self.release, self.pings = threading.Event(), 0

    def ping(self) -> None:
        self.pings += 1
        self.release.wait(250)


def test_a_region_that_hangs_costs_the_others_nothing(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})
    monkeypatch.setattr(fanout, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(fanout, "AWAY_PATIENCE_SECONDS", 0.1)
    hanging = Hanging()
    monkeypatch.setitem(registry.RUNTIMES, "hanging", lambda *_: hanging)
    make_project(team.alice, team.organization)
    well = Region.objects.get(slug="local")
    Region.objects.create(slug="far", name="Far", runtime="hanging", port_start=30000, port_end=30100)
    try:
        began = now()
        report = reconciler.reconcile()
        assert report.unreachable == ["far"]
        assert report.observed == 1
        for _ in range(3):
            assert reconciler.reconcile().observed == 1
        assert (now() - began).total_seconds() < 60
        assert hanging.pings == 1, "nobody asks again who still owes an answer"
        assert "has not answered for" in Region.objects.get(slug="far").reason
        well.refresh_from_db()
        assert well.reachable
    finally:
        hanging.release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("ping-"):
            thread.join(60)
    assert reconciler.reconcile().unreachable == []
    assert Region.objects.get(slug="far").reachable


def test_another_engine_at_the_address_is_left_alone(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all of its servers would be taken for lost, and the strange engine for ours."""
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})
    project = make_project(team.alice, team.organization)
    region = project.region
    old = wiring.runtime_of(region)
    reconciler.reconcile()
    assert old.read_epoch()
    Region.objects.update(endpoint_url="unix:///other.sock")
    region.refresh_from_db()
    monkeypatch.setattr(reconciler, "_looked", {})
    other = wiring.runtime_of(region)
    assert other is not old
    for _ in range(2):
        reconciler.claim_epochs()
        assert reconciler.reconcile().unreachable == ["local"]
    assert other.read_epoch() == ""
    region.refresh_from_db()
    assert "another engine" in region.reason
    project.refresh_from_db()
    assert project.status == "not_available"
    assert "another engine" not in project.status_detail
    Region.objects.update(endpoint_url="")
    region.refresh_from_db()
    monkeypatch.setitem(registry.RUNTIMES, "memory", lambda *_: old)
    report = reconciler.reconcile()
    assert (report.unreachable, report.started) == ([], 0)


def test_a_log_at_the_console(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built", {})
    project = make_project(team.alice, team.organization, "Shop")
    runtime = wiring.runtime_of(project.region)
    assert isinstance(runtime, MemoryRuntime)
    handle = project.databases.get().server.handle
    runtime.ensure(spec_maker("17", domain.ImageRef("postgres:17"), "secret")(handle), data=domain.DataPolicy.CREATE)
    said = StringIO()
    timer = threading.Timer(0.7, runtime.write_log, [handle, b"while it \x1b[31mfollows"])
    timer.start()
    call_command("logs", "shop", tail=5, follow=True, seconds=2, stdout=said)
    assert said.getvalue().splitlines()[-1] == "while it �[31mfollows"
    alone = StringIO()
    call_command("logs", str(project.pk), tail=1, stdout=alone)
    assert alone.getvalue().splitlines() == ["while it �[31mfollows"]
    with pytest.raises(CommandError, match="no such project"):
        call_command("logs", "nosuch")
