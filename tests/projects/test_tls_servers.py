"""TLS on real PostgreSQL servers, through the whole control plane: as `psql` and other clients see it, through the
published address."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from accounts.permissions import Principal
from novastack.common import pki
from novastack.common.clock import now
from projects import domain, registry
from projects.models import DatabaseServer, DatabaseSlot, Operation, Project, Region
from projects.operations import reconciler, tls, wiring
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import bundled_places, find
from projects.services import ProjectRequest, project_action, project_create, project_update
from projects.services.connections import ca_certificates, render_connection
from tests.factories import PlanFactory, Team, api_client, make_team
from tests.operations.conftest import drive

psql_is_here = pytest.mark.skipif(shutil.which("psql") is None, reason="no psql here")


class Site:
    """A region of one runtime with real servers of one version."""

    def __init__(self, runtime: str, version: str, config: dict[str, Any], folder: Path) -> None:
        self.team: Team = make_team()
        PlanFactory()
        first = 31000 + secrets.randbelow(200) * 20
        self.region = Region.objects.create(
            slug="site", name="Site", runtime=runtime, config=config, port_start=first, port_end=first + 19
        )
        self.version, self.folder = version, folder
        self.alice = Principal.of(self.team.alice)

    @property
    def runtime(self) -> Any:
        return wiring.runtime_of(self.region)

    def create(self, name: str = "Shop", **request: Any) -> Project:
        project = project_create(
            principal=self.alice, organization=self.team.organization,
            request=ProjectRequest(name=name, version=self.version, region="site", **request),
        )  # fmt: skip
        operation = Operation.objects.get(project_uuid=project.pk)
        assert drive(operation).state == "succeeded", operation.error
        project.refresh_from_db()
        assert project.status == "running"
        return project

    def act(self, project: Project, action: str) -> None:
        operation = drive(project_action(principal=self.alice, project=project, action=action))
        assert operation.state == "succeeded", operation.error

    def require(self, project: Project, required: bool) -> None:
        _, operation = project_update(principal=self.alice, project=project, changes={"tls_required": required})
        assert operation is not None and drive(operation).state == "succeeded", operation.error

    def info(self, project: Project) -> domain.ConnectionInfo:
        project = Project.objects.select_related("endpoint").get(pk=project.pk)
        return wiring.connection_info(project, project.databases.get(slot=DatabaseSlot.CURRENT))

    def ca(self, text: str = "") -> Path:
        path = self.folder / f"{secrets.token_hex(4)}.pem"
        path.write_text(text or ca_certificates())
        return path

    def psql(self, project: Project, mode: str, ca: Path | None = None, host: str = "") -> tuple[int, str]:
        """(exit code, what it said) through the published address; of a session that came about: `tls` or `plain`."""
        info = self.info(project)
        parameters = f"host={host or info.host} port={info.port} dbname={info.database} user={info.username}"
        parameters += f" sslmode={mode}" + (f" sslrootcert={ca}" if ca else "")
        done = subprocess.run(
            ["psql", "-Xc", r"\conninfo", parameters],
            env={"PATH": os.environ["PATH"], "PGPASSWORD": info.password, "PGCONNECT_TIMEOUT": "5", "HOME": "/nonexistent"},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        if done.returncode == 0:
            return 0, "tls" if "TLSv1.3" in done.stdout else "plain"
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def _fresh(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})


@pytest.fixture(params=["15", "17", "18"])
def docker_site(request: pytest.FixtureRequest, _fresh: None, tmp_path: Path) -> Iterator[Site]:
    engine = registry.engine("postgresql")
    try:
        DockerRuntime("probe").resolve_image(engine.name, request.param, engine.official_image)
    except domain.NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with PostgreSQL {request.param}: {error}")
    site = Site("docker", request.param, {}, tmp_path)
    yield site
    site.runtime.remove_install()


@pytest.fixture
def process_folder() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="nvs-tls-", dir="/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def process_site(version: str, process_folder: Path, tmp_path: Path) -> Iterator[Site]:
    site = Site("process", version, {"root": str(process_folder / "state")}, tmp_path)
    yield site
    for handle in [*site.runtime.managed(), *site.runtime.managed_data()]:
        site.runtime.destroy(handle, delete_data=True)


def system_version() -> str:
    """A version whose system binary speaks TLS; empty if there is none."""
    for version in ("18", "17", "16", "15"):
        found = find("postgres", version)
        if found is not None and "pginstall" not in str(found.place.bin):
            return version
    return ""


@pytest.fixture
def system_site(_fresh: None, process_folder: Path, tmp_path: Path) -> Iterator[Site]:
    if not system_version():
        pytest.skip("no PostgreSQL of the system here")
    yield from process_site(system_version(), process_folder, tmp_path)


def tells_its_story(site: Site) -> None:
    """Create, verify, refuse, allow, renew under an open session, stop, start: as a client sees it."""
    project = site.create()
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    ca, stranger = site.ca(), site.ca(pki.make_authority("Stranger", at=now()).certificate)
    assert server.tls_enabled
    # The published address, by address and by name; nobody else's authority passes.
    for host in ("127.0.0.1", "localhost"):
        assert site.psql(project, "verify-full", ca, host) == (0, "tls")
    code, said = site.psql(project, "verify-full", stranger)
    assert code != 0 and "certificate verify failed" in said
    assert site.psql(project, "require") == (0, "tls")
    assert site.psql(project, "disable") == (0, "plain")
    # What the dialog and the API tell works as it stands.
    shown = render_connection(site.info(project))
    assert shown["tls"] is True and "sslmode=require" in shown["uri"]
    with psycopg.connect(shown["uri"]) as session:
        assert session.pgconn.ssl_in_use
    (site.folder / domain.CA_FILE).write_text(ca_certificates())
    done = subprocess.run(
        ["sh", "-c", shown["snippets"]["verified"] + " -XAtc 'SELECT 1'"], cwd=site.folder, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    # Required, while a session is open.
    with psycopg.connect(shown["uri"], autocommit=True) as session:
        site.require(project, True)
        code, said = site.psql(project, "disable")
        assert code != 0 and "no encryption" in said
        assert site.psql(project, "verify-full", ca)[0] == 0
        # Renewed: another certificate, the same session.
        DatabaseServer.objects.filter(pk=server.pk).update(tls_not_after=now() + timedelta(days=3))
        assert tls.renew_due() == tls.Renewals(1, 0)
        operation = Operation.objects.live().get(project_uuid=project.pk)
        assert drive(operation).state == "succeeded", operation.error
        renewed = DatabaseServer.objects.get(pk=server.pk)
        engine = registry.engine("postgresql")
        assert engine.peer_certificate(renewed.control_endpoint) == pki.der_of(renewed.tls_certificate)
        assert renewed.tls_certificate != server.tls_certificate and renewed.runtime_ref == server.runtime_ref
        assert session.execute("SELECT 1").fetchone() == (1,)
    assert site.psql(project, "verify-full", ca)[0] == 0
    site.act(project, "stop")
    site.act(project, "start")
    assert site.psql(project, "verify-full", ca)[0] == 0
    assert site.psql(project, "disable")[0] != 0
    site.require(project, False)
    assert site.psql(project, "disable") == (0, "plain")


@pytest.mark.docker
@psql_is_here
class TestDocker:
    def test_the_story(self, docker_site: Site) -> None:
        tells_its_story(docker_site)

    @pytest.mark.parametrize("docker_site", ["17"], indirect=True)  # once is enough
    def test_a_server_from_before_gets_it_by_a_restart(
        self, docker_site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as past:
            past.setattr(DockerRuntime, "tls_reason", lambda *_: "it was another time")
            project = docker_site.create()
        DatabaseServer.objects.update(tls_reason="")
        with psycopg.connect(
            host="127.0.0.1", port=project.endpoint.port, **self.login(docker_site, project)
        ) as session:
            session.execute("CREATE TABLE kept AS SELECT 1 AS n")
        assert docker_site.psql(project, "require")[0] != 0
        docker_site.act(project, "restart")
        assert docker_site.psql(project, "verify-full", docker_site.ca()) == (0, "tls")
        with psycopg.connect(
            host="127.0.0.1", port=project.endpoint.port, **self.login(docker_site, project)
        ) as session:
            assert session.execute("SELECT n FROM kept").fetchone() == (1,)

    @staticmethod
    def login(site: Site, project: Project) -> dict[str, Any]:
        info = site.info(project)
        return {"dbname": info.database, "user": info.username, "password": info.password}

    @pytest.mark.parametrize("docker_site", ["17"], indirect=True)  # once is enough
    def test_its_key_is_seen_nowhere(self, docker_site: Site) -> None:
        project = docker_site.create(tls_required=True)
        assert docker_site.psql(project, "disable")[0] != 0  # from the first moment on
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        container = docker_site.runtime._clients.get().inspect_container(server.handle.name)
        body = server.tls_key.open().splitlines()[1]
        log = b"\n".join(docker_site.runtime.logs(server.handle, tail=5000)).decode()
        assert body not in str(container) and body not in log and "PRIVATE" not in str(container)
        # Docker starts it again by itself, without the control plane: with TLS.
        docker_site.runtime._clients.get().kill(container["Id"])
        docker_site.runtime._clients.get().restart(container["Id"], timeout=1)
        for _ in range(100):
            if docker_site.psql(project, "verify-full", docker_site.ca())[0] == 0:
                break
        else:
            pytest.fail("it came up without TLS")
        docker_site.team.alice.refresh_from_db()
        answer = api_client(docker_site.team.alice).get(f"/api/v1/projects/{project.pk}/connection/").json()
        assert answer["tls"] is True and answer["ca_url"].endswith("/api/v1/ca/")
        assert api_client().get("/api/v1/ca/").content.decode() == ca_certificates()


@pytest.mark.process
@psql_is_here
class TestProcess:
    def test_the_story(self, system_site: Site) -> None:
        tells_its_story(system_site)

    def test_the_bundled_one_says_why_not(self, _fresh: None, process_folder: Path, tmp_path: Path) -> None:
        version = next((v for v in ("18", "16") if find("postgres", v, search=lambda _: bundled_places())), "")
        if not version:
            pytest.skip("no bundled PostgreSQL here")
        runtime = ProcessRuntime("test", process_folder / "other", search=lambda _: bundled_places())
        engine = registry.engine("postgresql")
        spec = engine.server_spec(
            domain.ServerRequest(
                handle=domain.Handle("0" * 8, 1), version=version, image="", publish=domain.Endpoint("127.0.0.1", 1),
                limits=domain.Limits(256 << 20, 1), max_connections=20, admin=domain.Credentials("novastack", "x"),
            )
        )  # fmt: skip
        assert f"postgres {version}" in runtime.tls_reason(spec) and "without TLS" in runtime.tls_reason(spec)
        if not system_version():
            return
        assert ProcessRuntime("test", process_folder / "other").tls_reason(
            engine.server_spec(
                domain.ServerRequest(
                    handle=domain.Handle("0" * 8, 1), version=system_version(), image="",
                    publish=domain.Endpoint("127.0.0.1", 1), limits=domain.Limits(256 << 20, 1), max_connections=20,
                    admin=domain.Credentials("novastack", "x"),
                )
            )
        ) == ""  # fmt: skip

    def test_a_project_on_the_bundled_one_works_without(
        self, _fresh: None, process_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if find("postgres", "18") is None or system_version() == "18":
            pytest.skip("the bundled PostgreSQL 18 is not what would run here")
        for site in process_site("18", process_folder, tmp_path):
            project = site.create()
            server = DatabaseServer.objects.get(project_uuid=project.pk)
            assert not server.tls_enabled and "without TLS" in server.tls_reason
            shown = render_connection(site.info(project))
            assert shown["tls"] is False and "sslmode=disable" in shown["uri"] and "verified" not in shown["snippets"]
            with psycopg.connect(shown["uri"]) as session:
                assert session.execute("SELECT 1").fetchone() == (1,)
