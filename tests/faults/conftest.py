"""Real workers, real servers, a real control database: and a SIGKILL for each in turn."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.core.cache import cache
from django.db import connection

from accounts.permissions import Principal
from novastack.common.clock import DatabaseNow, now
from projects import domain, registry
from projects.models import DatabaseServer, Operation, Orphan, Project, Region, ServerKind
from projects.operations import orphans, reconciler, runner, wiring
from projects.runtimes.base import Runtime
from projects.runtimes.process_binaries import find
from projects.services import ProjectRequest, project_create
from tests.factories import PlanFactory, Team, make_team
from tests.faults import ledger as faults_ledger
from tests.faults import table
from tests.faults.clients import CLIENTS, Things
from tests.faults.workers import Nursery, Worker

ROOT = Path(__file__).resolve().parent.parent.parent
VERSION = os.environ.get("NOVASTACK_FAULTS_VERSION", "18")
ALL = os.environ.get("NOVASTACK_FAULTS") == "all"


def everything(test: Any) -> Any:
    """A test of `make faults` alone: else it is not even collected, since CI skips nothing."""
    return test if ALL else None


class Site:
    """One install with one region of one runtime, its people, and workers that can be killed."""

    def __init__(self, runtime_name: str, root: Path, engine: str = "postgresql") -> None:
        self.engine = engine
        self.client = CLIENTS[engine]
        self.team: Team = make_team()
        PlanFactory()
        first = 10000 + secrets.randbelow(110) * 200  # below those that the kernel gives to clients
        config = {"root": str(root)} if runtime_name == "process" else {}
        self.region = Region.objects.create(
            slug="site", name="Site", runtime=runtime_name, config=config, port_start=first, port_end=first + 199
        )
        self.alice = Principal.of(self.team.alice)
        self.workers: list[Worker] = []
        self._run: faults_ledger.Run | None = None

    @contextlib.contextmanager
    def fault(self, name: str, *, point: str = "") -> Iterator[faults_ledger.Run]:
        """Record one run of a fault (`ledger.py`). Within it, `check_exactly` puts down the orphans that it finds."""
        with faults_ledger.fault(name, engine=self.engine, runtime=self.region.runtime, point=point) as run:
            self._run = run
            try:
                yield run
            finally:
                self._run = None

    @property
    def runtime(self) -> Runtime:
        return wiring.runtime_of(self.region)

    # --- workers ------------------------------------------------------------------------------------------------------
    def worker(self, fault: str = "", *, reconciles: bool = True) -> Worker:
        """A worker at work; with a fault, it dies there."""
        database = connection.settings_dict
        password = quote(str(database["PASSWORD"]), safe="")
        url = (
            f"postgresql://{database['USER']}:{password}@{database['HOST']}:{database['PORT']}/"
            f"{connection.connection.info.dbname if connection.connection else database['NAME']}"
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        env = {
            **inherited, "DATABASE_URL": url, "NOVASTACK_MODE": "test", "NOVASTACK_LOG_LEVEL": "WARNING",
            "NOVASTACK_DATA_GRACE_SECONDS": "0", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        worker = Worker(Nursery.of(env), fault=fault, reconciles=reconciles)
        self.workers.append(worker)
        return worker

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait(60)
        self.workers.clear()

    def die_at(self, fault: str) -> None:
        """A worker that dies there. Nothing was cleaned up; its lease still lives."""
        worker = self.worker(fault)
        assert worker.wait(90) == -signal.SIGKILL, f"it never came to {fault}"
        self.stop_workers()

    # --- rows ---------------------------------------------------------------------------------------------------------
    def create(self, name: str = "Shop", **request: Any) -> Project:
        return project_create(
            principal=self.alice, organization=self.team.organization,
            request=ProjectRequest(name=name, engine=self.engine, version=self.version, region="site", **request),
        )  # fmt: skip

    def ready(self, name: str = "Shop", **request: Any) -> Project:
        """A project with `clients.ROWS` rows of its owner's in it."""
        project = self.create(name, **request)
        self.finish(self.operation(project))
        project.refresh_from_db()
        assert project.status == "running", (project.status, project.status_detail)
        self.client.fill(project)
        return project

    @property
    def version(self) -> str:
        if self.engine == "postgresql":
            return VERSION
        return self.client.versions[self.region.runtime]

    @staticmethod
    def operation(project: Project) -> Operation:
        return Operation.objects.filter(project_uuid=project.pk).order_by("-created_at")[0]

    @staticmethod
    def finish(operation: Operation, seconds: float = 60) -> Operation:
        """Run it here, without a worker."""
        deadline = time.monotonic() + seconds
        while operation.live and time.monotonic() < deadline:
            runner.run(operation.pk)
            Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
            operation.refresh_from_db()
        return operation

    @staticmethod
    def expire_lease(operation: Operation) -> float:
        """Its holder is known to be dead: spare the 20 s, and the few for which a hint counts as under way. Returns how
        many there were."""
        past, row = DatabaseNow() - timedelta(seconds=1), Operation.objects.filter(pk=operation.pk)
        lease, hinted, created = row.values_list("lease_until", "hinted_at", "created_at")[0]
        row.filter(lease_until__isnull=False).update(lease_until=past)
        row.update(hinted_at=None, created_at=created - timedelta(seconds=reconciler.HINT_AGE_SECONDS))
        ends = [lease or created, (hinted or created) + timedelta(seconds=reconciler.HINT_EVERY_SECONDS)]
        return max(0.0, (max(ends) - now()).total_seconds())

    @staticmethod
    def wait_ended(operation: Operation, seconds: float = 60) -> Operation:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            operation.refresh_from_db()
            if not operation.live:
                return operation
            time.sleep(0.1)
        told = list(operation.steps.values_list("name", "state", "detail"))
        raise AssertionError(f"{operation.kind} has not ended after {seconds} s: {told}, {operation.next_attempt_at}")

    @staticmethod
    def wait_status(project: Project, wanted: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            project.refresh_from_db()
            if project.status == wanted:
                return
            time.sleep(0.1)
        raise AssertionError(f"{project.status} ({project.status_detail}), not {wanted}, after {seconds} s")

    # --- what must be so ----------------------------------------------------------------------------------------------
    def login(self, project: Project) -> contextlib.AbstractContextManager[Any]:
        """As the owner, with the password that is stored and shown: the engine's own driver's session."""
        return self.client.login(project)

    def rows_of(self, project: Project) -> int:
        return self.client.rows(project)

    def check_exactly(self, *projects: Project) -> None:
        """One server and one volume per project, and standby, and nothing else; the refs are the rows'; each in the state
        wanted."""
        servers = {DatabaseServer.objects.get(project_uuid=p.pk).handle for p in projects}
        servers |= {server.handle for server in DatabaseServer.objects.filter(kind=ServerKind.STANDBY)}
        names = {h.name for h in servers}
        orphans.find(self.region, self.runtime, reconciler.Install.load())
        running, kept = list(self.runtime.managed()), list(self.runtime.managed_data())
        nobodys = [h.name for h in (*running, *kept) if h.name not in names]
        nobodys += Orphan.objects.filter(resolved_at=None).values_list("name", flat=True)
        if self._run is not None:
            self._run.orphans = len(set(nobodys))
        assert not nobodys
        assert sorted(h.name for h in running) == sorted(names)
        assert sorted(h.name for h in kept) == sorted(names)
        for handle, seen in self.runtime.observe(list(servers)).items():
            row = DatabaseServer.objects.get(pk=handle.server_id)
            assert seen.ref == row.runtime_ref
            assert seen.state.value == row.desired_state

    def check_things(self, project: Project) -> Things:
        """Exactly the project's logins and databases are in its server, besides those that each server has."""
        things = self.client.things(project)
        assert set(things) == self.client.own(project) | self.client.platform
        return things

    def clean_up(self) -> None:
        self.stop_workers()
        runtime = self.runtime
        for handle in {*runtime.managed(), *runtime.managed_data()}:
            with contextlib.suppress(domain.NovaStackRuntimeError):
                runtime.destroy(domain.Handle(handle.server_id, handle.incarnation), delete_data=True)
        if self.region.runtime == "docker":
            with contextlib.suppress(domain.NovaStackRuntimeError):
                runtime.remove_install()  # type: ignore[attr-defined] # its network and what keeps its epoch


@pytest.fixture
def ledger() -> faults_ledger.Ledger:
    """For tests without a site: `with ledger.fault("beats, two of them", engine=…, runtime=…) as run:`"""
    return faults_ledger.Ledger()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make faults RESUME=1`: not again what the ledger says was kept."""
    file = faults_ledger.ledger_file()
    if os.environ.get("NOVASTACK_FAULTS_RESUME") != "1" or not file.exists():
        return
    lines = table.read([file])
    done = {line["test"] for line in lines} - {line["test"] for line in lines if table.bad(line)}
    dropped = [item for item in items if item.nodeid in done]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item.nodeid not in done]


_began = time.monotonic()


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """`NOVASTACK_FAULTS_SECONDS`: end in time, in order; RESUME=1 goes on from there."""
    if time.monotonic() - _began > float(os.environ.get("NOVASTACK_FAULTS_SECONDS") or "inf"):
        item.session.shouldstop = "the seconds that it was given are over"


@pytest.fixture
def _fresh(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built", {})
    monkeypatch.setattr(reconciler, "_looked", {})
    monkeypatch.setattr(settings, "NOVASTACK_DATA_GRACE_SECONDS", 0)
    cache.clear()


def make_site(runtime_name: str, engine: str = "postgresql") -> Iterator[Site]:
    root = Path(tempfile.mkdtemp(prefix="nvs-faults-", dir="/tmp"))
    root.chmod(0o711)
    site = Site(runtime_name, root / "state", engine)
    try:
        yield site
    finally:
        site.clean_up()
        shutil.rmtree(root, ignore_errors=True)


def require_docker(engine: str, version: str) -> None:
    """Skip, or fail where Docker is required, when there is no engine with that image."""
    from projects.runtimes.docker import DockerRuntime

    try:
        DockerRuntime("probe").resolve_image(engine, version, registry.engine(engine).official_image)
    except domain.NovaStackRuntimeError as error:
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise
        pytest.skip(f"no Docker engine with {engine} {version}: {error}")


@pytest.fixture
def process_site(_fresh: None) -> Iterator[Site]:
    if find("postgres", VERSION) is None:
        pytest.skip(f"PostgreSQL {VERSION} is neither installed nor bundled here")
    yield from make_site("process")


@pytest.fixture
def docker_site(_fresh: None) -> Iterator[Site]:
    require_docker("postgresql", VERSION)
    yield from make_site("docker")
