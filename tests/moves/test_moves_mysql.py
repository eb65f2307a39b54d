"""Moves of MariaDB and MySQL databases on real servers: what `test_moves_docker` and `test_moves_pools` try on PostgreSQL,
and what is these products' own (who made views and triggers, events, sequences)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from typing import Any

import pymysql
import pytest

from novastack.common import pki
from novastack.common.clock import now
from projects import registry
from projects.domain import Credentials
from projects.domain import Endpoint as DomainEndpoint
from projects.engines import framing
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    Endpoint,
    Placement,
    Project,
    ServerKind,
)
from projects.operations import wiring
from projects.runtimes.process_binaries import find
from tests.clients import Access
from tests.faults.clients import role_of
from tests.faults.conftest import Site, make_site, require_docker
from tests.moves.conftest import drained, kill_while_copying
from tests.moves.load import Load
from tests.moves.test_moves_docker import begin, done, failed, remove_old_copy
from tests.moves.test_moves_pools import all_done

pytestmark = pytest.mark.docker


@pytest.fixture(params=["mariadb", "mysql"])
def site(request: pytest.FixtureRequest, _fresh: None) -> Iterator[Site]:
    version = {"mariadb": "11.8", "mysql": "9.7"}[request.param]
    require_docker(request.param, version)
    yield from make_site("docker", request.param)


def run(site: Site, project: Project, *statements: str) -> tuple[Any, ...]:
    """As the owner, in one session; the rows of the last one."""
    with site.login(project) as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return tuple(cursor.fetchall())


class Writes(Load):
    thrown_out = (pymysql.MySQLError, OSError)

    def __init__(self, site: Site, project: Project) -> None:
        run(site, project, "CREATE TABLE told (id INT PRIMARY KEY)")
        super().__init__(site, project)

    def write(self, session: Any, number: int) -> None:
        with session.cursor() as cursor:
            cursor.execute("INSERT INTO told VALUES (%s)", [number])


OWN = (
    "CREATE TABLE things (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(50), f DOUBLE)",
    "CREATE TABLE seen (id INT, word VARCHAR(50))",
    "CREATE TRIGGER sees AFTER INSERT ON things FOR EACH ROW INSERT INTO seen VALUES (NEW.id, NEW.word)",
    "INSERT INTO things (word, f) VALUES ('naïve 🐬', 0.1), ('it''s', NULL)",
    "CREATE VIEW words AS SELECT word FROM things",
    "CREATE PROCEDURE count_them() SELECT COUNT(*) FROM words",
    "CREATE EVENT ticking ON SCHEDULE EVERY 1 SECOND DO INSERT INTO ticks VALUES (NOW(6))",
    "CREATE TABLE ticks (at DATETIME(6))",
)


def made(site: Site, project: Project) -> None:
    run(site, project, *OWN)
    if site.engine == "mariadb":
        run(
            site, project, "CREATE SEQUENCE numbers START WITH 7",
            "CREATE TABLE numbered (id BIGINT DEFAULT NEXTVAL(numbers), x INT)", "INSERT INTO numbered (x) VALUES (1)",
        )  # fmt: skip


def works(site: Site, project: Project) -> None:
    """All that `made` made does what it did."""
    before = run(site, project, "SELECT COUNT(*) FROM seen")[0][0]
    run(site, project, "INSERT INTO things (word) VALUES ('more')")
    assert run(site, project, "SELECT COUNT(*) FROM seen") == ((before + 1,),)
    assert run(site, project, "SELECT word FROM words ORDER BY word LIMIT 1") == (("it's",),)
    assert run(site, project, "CALL count_them()")[0][0] == before + 1
    makers = run(
        site, project,
        "SELECT definer FROM information_schema.triggers WHERE trigger_schema = DATABASE()"
        " UNION SELECT definer FROM information_schema.views WHERE table_schema = DATABASE()"
        " UNION SELECT definer FROM information_schema.events WHERE event_schema = DATABASE()"
        " UNION SELECT definer FROM information_schema.routines WHERE routine_schema = DATABASE()",
    )  # fmt: skip
    assert makers == ((f"{role_of(project).name}@%",),)
    if site.engine == "mariadb":
        run(site, project, "INSERT INTO numbered (x) VALUES (2)")
        assert run(site, project, "SELECT COUNT(*) FROM numbered WHERE id IS NULL") == ((0,),)


def test_to_another_server_under_load(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    project = site.ready()
    made(site, project)
    old = DatabaseServer.objects.get(project_uuid=project.pk)
    address = Endpoint.objects.values_list("host", "port").get(project=project)
    with Writes(site, project) as load:
        time.sleep(0.5)
        operation = done(site, begin(project))
        time.sleep(1)
    project.refresh_from_db()
    assert project.status == "running"
    assert Endpoint.objects.values_list("host", "port").get(project=project) == address
    assert {row[0] for row in run(site, project, "SELECT id FROM told")} >= set(load.acknowledged)
    assert len(load.acknowledged) > 20
    assert (operation.result["address_changed"], operation.result["names_changed"]) == (False, False)
    assert site.rows_of(project) == 1000
    works(site, project)
    ticks = run(site, project, "SELECT COUNT(*) FROM ticks")[0][0]
    time.sleep(2.5)
    assert run(site, project, "SELECT COUNT(*) FROM ticks")[0][0] > ticks  # events go on, only now
    with capsys.disabled():
        print(f"\n{site.engine}: downtime {operation.result['downtime_seconds']} s")
    assert DatabaseServer.objects.get(project_uuid=project.pk).pk != old.pk
    site.check_things(project)
    remove_old_copy(site, project)


def test_to_a_pool_and_back(site: Site) -> None:
    project = site.ready(username="shop_app", database_name="shop")
    made(site, project)
    run(site, project, "ALTER DATABASE CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "DROP EVENT ticking")
    operation = all_done(site, begin(project, placement=Placement.POOL))
    project.refresh_from_db()
    assert (project.status, project.placement) == ("running", "pool")
    current = Database.objects.select_related("server").get(project=project, slot=DatabaseSlot.CURRENT)
    assert current.server.kind == ServerKind.POOL
    assert current.name.startswith("tenant_")
    assert operation.result["names_changed"] is True
    works(site, project)
    with site.client.administrator(project) as session, session.cursor() as cursor:
        cursor.execute("SELECT User FROM mysql.user")
        users = {row[0] for row in cursor.fetchall()}
        assert not {user for user in users if user.startswith("shop") or user.endswith("_copy")}
        cursor.execute("SHOW GRANTS FOR %s@'%%'", [role_of(project).name])
        assert len(cursor.fetchall()) == 2
    run(site, project, "CREATE TABLE on_pool (id INT)", "INSERT INTO on_pool VALUES (7)")

    all_done(site, begin(project, placement=Placement.DEDICATED))
    project.refresh_from_db()
    assert (project.status, project.placement) == ("running", "dedicated")
    assert run(site, project, "SELECT id FROM on_pool") == ((7,),)
    assert run(site, project, "SELECT @@collation_database") == (("utf8mb4_bin",),)
    assert site.rows_of(project) == 1000
    works(site, project)
    assert DatabaseServer.objects.get(project_uuid=project.pk).kind == ServerKind.DEDICATED


def test_a_drained_pool_is_left_by_all(site: Site) -> None:
    project = site.create(placement="pool")
    all_done(site, Site.operation(project))
    project.refresh_from_db()
    site.client.fill(project)
    all_done(site, drained(site, project))
    project.refresh_from_db()
    assert project.status == "running"
    assert site.rows_of(project) == 1000


def test_what_can_not_be_copied_stays_where_it_is(site: Site) -> None:
    """Refused before clients notice, or with clients let in again; and a password of the tenant's own comes along."""
    project = site.ready(username="shop_app", database_name="shop")
    server, address = DatabaseServer.objects.get(project_uuid=project.pk), Endpoint.objects.get(project=project)
    run(site, project, "CREATE TABLE t (x INT)", "CREATE PROCEDURE says() SELECT x FROM shop.t")
    operation = failed(site, begin(project, placement=Placement.POOL))
    assert operation.error is not None
    assert operation.error["code"] == "not_movable"
    assert "procedure says" in operation.error["detail"]
    assert operation.steps.get(name="fence").state == "pending"
    run(site, project, "DROP PROCEDURE says", "CREATE VIEW broken AS SELECT x FROM t", "DROP TABLE t")
    operation = failed(site, begin(project))
    assert operation.error is not None
    assert operation.error["code"] == "dump_failed"
    assert "broken" in operation.error["detail"]
    project.refresh_from_db()
    assert project.status == "running"
    server.refresh_from_db()
    assert server.project_uuid == project.pk
    now_ = Endpoint.objects.get(project=project)
    assert (now_.host, now_.port) == (address.host, address.port)
    run(site, project, "DROP VIEW broken", "CREATE TABLE again (x INT)")
    site.check_things(project)
    word = "PASSWORD('of-my-own')" if site.engine == "mariadb" else "'of-my-own'"
    run(site, project, f"SET PASSWORD = {word}")
    done(site, begin(project))
    role, endpoint = role_of(project), Endpoint.objects.get(project=project)
    mine = Access(endpoint.host, endpoint.port, role.database.name, role.name, "of-my-own", unchecked=True)
    with site.client.session(mine) as session, session.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM orders")
        assert cursor.fetchall() == ((1000,),)


@pytest.mark.parametrize("whom", ["source", "target"])
def test_a_server_that_dies_in_the_middle(site: Site, monkeypatch: pytest.MonkeyPatch, whom: str) -> None:
    """Killed while the copy is made: tried once more, or undone; never half of it, and the login is the tenant's again."""
    project = site.ready()
    made(site, project)
    run(
        site, project, "CREATE TABLE big (id INT AUTO_INCREMENT PRIMARY KEY, t TEXT)",
        "INSERT INTO big (t) VALUES (REPEAT('x', 2000))", *["INSERT INTO big (t) SELECT t FROM big"] * 14,
    )  # fmt: skip
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    killed = kill_while_copying(monkeypatch, whom)
    operation = begin(project)
    site.finish(operation, 240)
    assert killed
    project.refresh_from_db()
    assert project.status == "running", (operation.error, project.status_detail)
    if operation.state != "succeeded":
        assert operation.error is not None
        assert operation.error["code"] in {
            f"{whom}_lost",
            "dump_failed",
            "restore_failed",
            "copy_interrupted",
            "tool_killed",
        }
        server.refresh_from_db()
        assert server.project_uuid == project.pk
    assert run(site, project, "SELECT COUNT(*) FROM big") == ((1 << 14,),)
    assert site.rows_of(project) == 1000
    works(site, project)
    site.check_things(project)


def test_tools_trust_our_authority_only(site: Site) -> None:
    """Dump and restore, where every connection has TLS: with the certificate of another authority none begins."""
    project = site.ready()
    database = Database.objects.select_related("server", "server__region").get(project=project)
    server, engine, names = database.server, registry.engine(site.engine), wiring.tenant_names(database)
    assert server.control_endpoint.ca_pem
    with wiring.admin_session(engine, server) as admin:
        admin.reload_tls(required=True)
        admin.admit_tool(names, names.tool, "of-a-moment")
    login = Credentials(names.tool, "of-a-moment", names.database)
    place = site.runtime.place_of(engine.server_spec(wiring.server_request(server)))
    other = pki.make_authority("Another", at=now()).certificate
    for ca, well in ((server.control_endpoint.ca_pem, True), (other, False)):
        for what in (engine.dump, engine.restore):
            command = what(DomainEndpoint(*place, server.control_endpoint.tls_name, ca), login)
            tool = site.runtime.run_tool(
                "nvs-tool-tls", server.image_digest or server.image, command, beside=server.handle
            )
            try:
                sink = tool.stdin
                sink.write(framing.frame(b"SELECT 1;\n") + framing.END)
                sink.flush()
                assert tool.stdout is not None
                tool.stdout.read()
                assert (tool.wait(120).exit_code == 0) is well, (what, ca)
            finally:
                tool.kill()


@pytest.fixture
def process_site(_fresh: None) -> Iterator[Site]:
    if find("mariadbd", "10.11") is None or shutil.which("mariadb-dump") is None:
        pytest.skip("MariaDB 10.11 and its client programs are not installed here")
    yield from make_site("process", "mariadb")


def test_as_processes(process_site: Site) -> None:
    site = process_site
    project = site.ready()
    made(site, project)
    operation = done(site, begin(project))
    assert operation.result["address_changed"] is False
    assert site.rows_of(project) == 1000
    works(site, project)
    site.check_things(project)
