"""TLS of MariaDB and MySQL, through the whole control plane: as their clients see it, at the published address.
PostgreSQL's own story is in tests/projects/test_tls_servers.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pymysql
import pytest

from novastack.common import pki
from novastack.common.clock import now
from projects.models import DatabaseServer, Operation
from projects.operations import tls
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process_binaries import find
from tests.clients import Access, MySQLClient
from tests.engines.journey import Journey
from tests.engines.test_main_path import docker_site, process_site
from tests.faults.conftest import _fresh  # noqa: F401 - a fixture

FAMILY = [("mariadb", "11.8"), ("mysql", "9.7")]
PLAIN_REFUSED = "insecure transport are prohibited|Access denied"


def client_of(journey: Journey) -> MySQLClient:
    assert isinstance(journey.client, MySQLClient)
    return journey.client


def plain(access: Access) -> Access:
    return replace(access, ca="")


def refused_without(journey: Journey, access: Access) -> None:
    with pytest.raises(pymysql.OperationalError, match=PLAIN_REFUSED):
        journey.client.words(plain(access))


def shown(journey: Journey) -> bytes:
    return journey.engine.peer_certificate(journey.server.control_endpoint)


@contextlib.contextmanager
def as_root(journey: Journey) -> Iterator[Any]:
    server = journey.server
    access = Access("127.0.0.1", server.port or 0, "", server.admin_username, server.admin_secret.open())
    with client_of(journey).session(replace(access, database="mysql", ca=journey.access().ca)) as cursor:
        yield cursor


def one(cursor: Any, query: str) -> Any:
    cursor.execute(query)
    return cursor.fetchone()[0]


def require(journey: Journey, required: bool) -> None:
    answer = journey.ask("patch", journey.url, {"tls_required": required})
    assert answer["operation"]["kind"] == "change_tls"
    journey.done(answer)


def tells_its_story(journey: Journey) -> None:
    """Create, verify, refuse, renew under an open session, stop, start, allow."""
    client = client_of(journey)
    journey.create()
    access = journey.connect(tls=True)
    client.make(access)
    client.add(access, "kept")
    assert client.encrypted(replace(access, host="localhost"))
    server = journey.server
    assert shown(journey) == pki.der_of(server.tls_certificate)
    assert client.words(plain(access)) == ["kept"]
    with client.session(access) as open_one:
        require(journey, True)
        refused_without(journey, access)
        assert client.words(access) == ["kept"]
        with pytest.raises(pymysql.OperationalError, match=r"denied|privilege"):
            open_one.execute("SET GLOBAL require_secure_transport = OFF")
        DatabaseServer.objects.update(tls_not_after=now() + timedelta(days=3))
        assert tls.renew_due() == tls.Renewals(1, 0)
        operation = journey.place.finish(Operation.objects.live().get(project_uuid=journey.project.pk))
        assert operation.state == "succeeded", operation.error
        renewed = journey.server
        assert shown(journey) == pki.der_of(renewed.tls_certificate) != pki.der_of(server.tls_certificate)
        assert renewed.runtime_ref == server.runtime_ref
        assert one(open_one, "SELECT word FROM orders") == "kept"
    assert client.words(access) == ["kept"]
    with as_root(journey) as root:
        assert one(root, "SELECT COUNT(*) FROM mysql.user WHERE User = 'novastack_trial'") == 0
    journey.act("stop")
    journey.act("start")
    assert client.words(access) == ["kept"]
    refused_without(journey, access)
    require(journey, False)
    assert client.words(plain(access)) == ["kept"]


@pytest.mark.docker
@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(("engine", "version"), FAMILY)
class TestInContainers:
    def test_the_story(self, engine: str, version: str, tmp_path: Path) -> None:
        with docker_site(engine, version) as site:
            tells_its_story(Journey(site, engine, version, tmp_path))

    def test_from_the_first_moment_and_after_restarts_by_docker(
        self, engine: str, version: str, tmp_path: Path
    ) -> None:
        """`tls_required` when it is made; no key is seen; no certificate but ours; Docker starts it again by itself."""
        with docker_site(engine, version) as site:
            journey = Journey(site, engine, version, tmp_path)
            journey.create(tls_required=True)
            access = journey.connect(tls=True)
            refused_without(journey, access)
            journey.client.make(access)
            runtime, server = site.runtime, journey.server
            assert isinstance(runtime, DockerRuntime)
            docker = runtime._clients.get()
            container = docker.inspect_container(server.handle.name)
            assert server.tls_key is not None
            body = server.tls_key.open().splitlines()[1]
            log = b"\n".join(runtime.logs(server.handle, tail=5000)).decode()
            assert body not in str(container) and body not in log and "PRIVATE" not in str(container)
            with as_root(journey) as root:
                root.execute("SHOW VARIABLES LIKE 'ssl%'")
                settings = dict(root.fetchall())
            assert {settings[name].rpartition("/")[2] for name in ("ssl_cert", "ssl_key", "ssl_ca")} == {"server.pem"}
            docker.restart(container["Id"], timeout=10)
            for _ in range(100):
                with contextlib.suppress(pymysql.OperationalError):
                    if journey.client.words(access) == []:
                        break
                time.sleep(0.2)
            else:
                pytest.fail("it came up without TLS")
            refused_without(journey, access)
            assert shown(journey) == pki.der_of(server.tls_certificate)

    def test_a_server_from_before_gets_it_by_a_restart(
        self, engine: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with docker_site(engine, version) as site:
            journey = Journey(site, engine, version, tmp_path)
            with monkeypatch.context() as past:
                past.setattr(DockerRuntime, "tls_reason", lambda *_: "it was another time")
                journey.create()
            DatabaseServer.objects.update(tls_reason="")
            access = journey.connect(tls=False)
            journey.client.make(access)
            journey.client.add(access, "kept")
            refused = journey.ask("patch", journey.url, {"tls_required": True}, status=400)
            assert "Restart the project first" in str(refused)
            journey.act("restart")
            assert journey.client.words(journey.connect(tls=True)) == ["kept"]


@pytest.mark.process
@pytest.mark.usefixtures("_fresh")
def test_the_story_as_a_process(tmp_path: Path) -> None:
    if find("mariadbd", "10.11") is None:
        pytest.skip("no mariadbd 10.11 on this machine: apt-get install mariadb-server-core")
    with process_site() as site:
        tells_its_story(Journey(site, "mariadb", "10.11", tmp_path))
