"""The main job for every engine on every runtime that this machine has: `tests/engines/journey.py` tells it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from novastack.common.secrets import Sealed
from projects import domain, registry
from projects.models import DatabaseRole, Project, RoleKind, WriteFence
from projects.operations import abilities, fences, rotate, watch
from projects.runtimes.docker import DockerRuntime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_binaries import bundled_places, find
from tests.engines.journey import Journey
from tests.engines.snippet_runs import try_snippets
from tests.faults.conftest import Site, _fresh, make_site  # noqa: F401 - a fixture

FERRETDB = Path(__file__).parents[2] / "images/ferretdb/binary"


# --- what only one engine has to show ---------------------------------------------------------------------------------
def applied_twice(journey: Journey) -> None:
    """A worker that died right after the new password was applied: its successor's doing it again takes nothing away."""
    role = DatabaseRole.objects.get(database__project=journey.project, kind=RoleKind.LOGIN)
    role.pending_secret = Sealed.of("new-and-not-yet-proven-1")
    context: Any = SimpleNamespace(
        role=lambda kind: role, engine=journey.engine, server=journey.server, database=role.database, guard=lambda: None
    )
    for _ in range(2):
        rotate.apply(context)
    access = journey.access()
    assert journey.client.words(replace(access, password="new-and-not-yet-proven-1"))
    assert journey.client.words(access), "the stored password logs in until the new one is promoted"


def promises_nothing_it_can_not_keep(journey: Journey) -> None:
    """FerretDB: no sessions are ended, no connections counted, no storage limit enforced; and it is healthy."""
    refused = journey.ask(
        "post", f"{journey.url}action/", {"action": "rotate_password", "end_sessions": True}, status=400
    )
    assert "end sessions" in str(refused)
    Project.objects.update(health_checked_at=None)
    watch.check_health()
    project = journey.project
    assert (project.health, project.connections, project.connections_limit) == ("healthy", None, None)
    assert project.size_bytes
    Project.objects.update(storage_bytes=1)
    assert fences.decide() == 0
    assert journey.project.write_fence == "" != WriteFence.STORAGE


def in_a_container(journey: Journey) -> None:
    try_snippets(journey, "kept")
    EXTRAS.get(journey.engine.name, lambda _: None)(journey)


EXTRAS: Mapping[str, Callable[[Journey], None]] = {
    "mysql": applied_twice, "ferretdb": promises_nothing_it_can_not_keep,
}  # fmt: skip


# --- in containers ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def docker_site(engine: str, version: str) -> Iterator[Site]:
    try:
        DockerRuntime("probe").resolve_image(engine, version, registry.engine(engine).official_image)
    except domain.NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with {engine} {version}: {error}")
    with contextlib.contextmanager(make_site)("docker") as site:
        yield site
        runtime = site.runtime
        site.clean_up()
        assert isinstance(runtime, DockerRuntime)
        runtime.remove_network()
        for volume in runtime._volumes("epoch"):
            runtime._clients.get().remove_volume(volume["Name"])


@pytest.mark.docker
@pytest.mark.parametrize(
    ("engine", "version"),
    [("postgresql", "18"), ("mariadb", "11.8"), ("mariadb", "10.11"), ("mysql", "9.7"), ("ferretdb", "1.24")],
)
@pytest.mark.usefixtures("_fresh")
def test_in_a_container(engine: str, version: str, tmp_path: Path) -> None:
    with docker_site(engine, version) as site:
        Journey(site, engine, version, tmp_path).go(tls=True, extras=in_a_container)


# --- as plain processes -----------------------------------------------------------------------------------------------
@contextlib.contextmanager
def process_site() -> Iterator[Site]:
    with contextlib.contextmanager(make_site)("process") as site:
        abilities.look(site.region, site.runtime)
        yield site


@pytest.mark.process
@pytest.mark.usefixtures("_fresh")
class TestAsProcesses:
    def test_mariadb(self, tmp_path: Path) -> None:
        if find("mariadbd", "10.11") is None:
            pytest.skip("no mariadbd 10.11 on this machine: apt-get install mariadb-server-core")
        with process_site() as site:
            assert site.region.reason_against("mariadb", "10.11") == ""
            assert "this machine has no mysqld 9.7" in site.region.reason_against("mysql", "9.7")
            Journey(site, "mariadb", "10.11", tmp_path).go(tls=True)

    def test_postgresql_as_it_comes_bundled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which was built without TLS: all the rest is the same."""
        version = next((v for v in ("18", "16") if find("postgres", v, search=lambda _: bundled_places())), "")
        if not version:
            pytest.skip("no bundled PostgreSQL here")
        with process_site() as site:
            assert isinstance(site.runtime, ProcessRuntime)
            monkeypatch.setattr(site.runtime, "_search", lambda _: bundled_places())
            Journey(site, "postgresql", version, tmp_path).go(tls=False)

    def test_ferretdb(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        built = subprocess.run([FERRETDB], capture_output=True, text=True, timeout=500, check=False)
        if built.returncode:
            pytest.skip(built.stderr.strip()[-300:])
        with contextlib.contextmanager(make_site)("process") as site:
            monkeypatch.setenv("PATH", "/usr/bin:/bin")
            abilities.look(site.region, site.runtime)
            assert "this machine has no ferretdb 1.24" in site.region.reason_against("ferretdb", "1.24")
            assert "this machine has no mongod 8" in site.region.reason_against("mongodb", "8")
            monkeypatch.setenv("PATH", f"{Path(built.stdout.strip()).parent}:{os.environ['PATH']}")
            abilities.look(site.region, site.runtime)
            assert site.region.reason_against("ferretdb", "1.24") == ""
            Journey(site, "ferretdb", "1.24", tmp_path).go(tls=True, extras=EXTRAS["ferretdb"])
