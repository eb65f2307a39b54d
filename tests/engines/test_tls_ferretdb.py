"""TLS of FerretDB, which speaks it or plain and never both, through the whole control plane."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pymongo.errors import PyMongoError

from novastack.common import pki
from novastack.common.clock import now
from projects import domain
from projects.models import DatabaseServer, Operation, Project
from projects.operations import tls, wiring
from projects.runtimes.docker import DockerRuntime
from tests.engines.journey import Journey
from tests.engines.test_main_path import docker_site
from tests.faults.conftest import _fresh  # noqa: F401 - a fixture

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("_fresh")]


@pytest.fixture
def journey(_fresh: None, tmp_path: Path) -> Iterator[Journey]:  # noqa: F811
    with docker_site("ferretdb", "1.24") as site:
        yield Journey(site, "ferretdb", "1.24", tmp_path)


def accepts_plain(journey: Journey) -> bool:
    credentials = wiring.admin_credentials(journey.engine, journey.server)
    return journey.engine.accepts_plain(journey.server.control_endpoint, credentials)


def test_a_new_one_speaks_nothing_else(journey: Journey) -> None:
    journey.create()
    access = journey.connect(tls=True)
    journey.client.make(access)
    journey.client.add(access, "kept")
    assert journey.client.words(replace(access, host="localhost")) == ["kept"]
    assert not accepts_plain(journey)
    with pytest.raises(PyMongoError):
        journey.client.words(replace(access, ca=""))
    assert journey.ask("get", journey.url)["tls_required"] is True
    refused = journey.ask("patch", journey.url, {"tls_required": False}, status=400)
    assert refused["errors"][0]["code"] == "not_available" and "never both" in refused["detail"]
    assert journey.project.tls_required

    # Somebody else's server of this install, at its address: its name is another one.
    stranger = replace(journey.server.control_endpoint, tls_name="another.server.novastack.internal")
    with pytest.raises(domain.TlsNotTrusted):
        journey.engine.probe(stranger, wiring.admin_credentials(journey.engine, journey.server))

    # A new certificate comes with a start: seven days before the end it is restarted for it.
    before = journey.server
    DatabaseServer.objects.update(tls_not_after=now() + timedelta(days=8))
    assert tls.renew_due() == tls.Renewals(0, 0)
    DatabaseServer.objects.update(tls_not_after=now() + timedelta(days=6))
    assert tls.renew_due() == tls.Renewals(0, 1)
    operation = Operation.objects.live().get(project_uuid=journey.project.pk)
    assert operation.kind == "restart"
    assert journey.place.finish(operation).state == "succeeded", operation.error
    shown = journey.engine.peer_certificate(journey.server.control_endpoint)
    assert shown == pki.der_of(journey.server.tls_certificate) != pki.der_of(before.tls_certificate)
    assert journey.client.words(access) == ["kept"]


def test_one_from_before_goes_on_as_it_was_until_it_is_told(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr(type(journey.engine), "capabilities", frozenset())
        journey.create()
    assert not Project.objects.get().tls_required
    access = journey.connect(tls=False)
    journey.client.make(access)
    journey.client.add(access, "kept")
    journey.act("restart")
    assert journey.client.words(journey.connect(tls=False)) == ["kept"]
    assert accepts_plain(journey)
    assert "from before" in journey.server.tls_reason

    answer = journey.ask("patch", journey.url, {"tls_required": True})
    assert answer["operation"]["kind"] == "restart"
    journey.done(answer)
    assert journey.client.words(journey.connect(tls=True)) == ["kept"]
    assert not accepts_plain(journey)


def test_while_it_is_stopped_the_next_start_has_it(journey: Journey, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as past:
        past.setattr(type(journey.engine), "capabilities", frozenset())
        journey.create()
    journey.act("stop")
    answer = journey.ask("patch", journey.url, {"tls_required": True})
    assert answer["operation"]["kind"] == "change_tls"
    journey.done(answer)
    journey.act("start")
    journey.connect(tls=True)
    assert isinstance(journey.place.runtime, DockerRuntime)
