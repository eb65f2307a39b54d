"""A lane: one engine on one runtime, with servers that many kill points have in turn, so that each costs its operation
and not a new server. What a point leaves behind in a state that is not right is thrown away with all the lane has."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import transaction

from novastack.common.clock import now
from projects import domain, registry
from projects.models import DatabaseServer, Endpoint, Operation, Plan, Project, ServerKind, StandbyTarget
from projects.operations import removal, standbys
from projects.operations.queue import operation_create
from projects.runtimes.process_binaries import find
from projects.services import project_action, project_delete, project_purge, project_update
from tests.faults.clients import CLIENTS, server_of
from tests.faults.conftest import Site, make_site, require_docker

FERRETDB = Path(__file__).resolve().parents[2] / "images/ferretdb/binary"
SERVICES = frozenset({"auth"})  # asked for, though no endpoint takes it: the steps are there
KEYS = 2  # of the API, which a new project is given
KEPT = 2  # projects that a lane keeps for the next point
LANES = (
    ("postgresql", "process"), ("postgresql", "docker"), ("mariadb", "process"), ("mariadb", "docker"),
    ("ferretdb", "process"), ("ferretdb", "docker"), ("mysql", "docker"),
)  # fmt: skip


def require(engine: str, runtime: str, patch: pytest.MonkeyPatch) -> None:
    """Skip unless this machine can run it."""
    version = CLIENTS[engine].versions[runtime]
    if runtime == "docker":
        require_docker(engine, version)
        return
    if engine == "ferretdb":
        built = subprocess.run([FERRETDB], capture_output=True, text=True, timeout=500, check=False)
        if built.returncode:
            pytest.skip(built.stderr.strip()[-300:])
        patch.setenv("PATH", f"{Path(built.stdout.strip()).parent}:{os.environ['PATH']}")
    program = registry.engine(engine).server_program
    if find(program, version) is None:
        pytest.skip(f"{program} {version} is neither installed nor bundled here")


@dataclass
class Lane:
    engine: str
    runtime: str
    projects: list[Project] = field(default_factory=list)
    made: int = 0
    _site: contextlib.AbstractContextManager[Site] | None = None
    _entered: Site | None = None

    @property
    def site(self) -> Site:
        if self._entered is None:
            self._site = contextlib.contextmanager(make_site)(self.runtime, self.engine)
            self._entered = self._site.__enter__()
        return self._entered

    def close(self) -> None:
        """Throw all away; the next point begins with nothing."""
        if self._site is not None:
            self._site.__exit__(None, None, None)
        self._site = self._entered = None
        self.projects.clear()
        registry._built.clear()
        call_command("flush", verbosity=0, interactive=False)

    def name(self) -> str:
        self.made += 1
        return f"Shop {self.made}"

    def project(self) -> Project:
        """One that runs, with rows in it."""
        if not self.projects:
            self.projects.append(self.site.ready(self.name(), services=SERVICES))
        self.projects[-1].refresh_from_db()
        return self.projects[-1]

    def keep(self, project: Project) -> None:
        self.projects.append(project)
        while len(self.projects) > KEPT:
            self._drop(self.projects.pop(0))

    def prepare_standby(self) -> None:
        plan = Plan.objects.get()
        target = StandbyTarget.objects.create(
            region=self.site.region, engine=self.engine, version=self.site.version, plan=plan
        )
        with transaction.atomic():
            operation = standbys.prepare_begin(target)
        assert operation is not None
        assert self.site.finish(operation).state == "succeeded", operation.error
        # Who claims it is what is looked at here: the upkeep makes no other one meanwhile.
        StandbyTarget.objects.update(retry_after=now() + timedelta(hours=1))

    def drop_standbys(self) -> None:
        """Those that nobody claimed."""
        for server in DatabaseServer.objects.filter(kind=ServerKind.STANDBY):
            self._destroy(server)
            server.delete()
        StandbyTarget.objects.all().delete()

    def _destroy(self, server: DatabaseServer) -> None:
        self.site.runtime.destroy(domain.Handle(str(server.pk), server.incarnation), delete_data=True)

    def _drop(self, project: Project) -> None:
        self._destroy(server_of(project))
        with transaction.atomic():
            removal.remove_rows(project.pk)
        Endpoint.objects.filter(project=None).delete()


class Lanes:
    """One lane at a time: the control database is emptied in between."""

    def __init__(self) -> None:
        self._lane: Lane | None = None
        self._patch = pytest.MonkeyPatch()

    def enter(self, engine: str, runtime: str) -> Lane:
        if self._lane is None or (self._lane.engine, self._lane.runtime) != (engine, runtime):
            self.close()
            require(engine, runtime, self._patch)
            self._lane = Lane(engine, runtime)
        return self._lane

    def close(self) -> None:
        if self._lane is not None:
            self._lane.close()
            self._lane = None
        self._patch.undo()


def _act(action: str) -> Callable[[Lane], tuple[Project, Operation]]:
    def begin(lane: Lane) -> tuple[Project, Operation]:
        project = lane.project()
        return project, project_action(principal=lane.site.alice, project=project, action=action)

    return begin


def _provision(lane: Lane) -> tuple[Project, Operation]:
    project = lane.site.create(lane.name(), api_keys=KEYS, services=SERVICES)
    return project, lane.site.operation(project)


def _claim(lane: Lane) -> tuple[Project, Operation]:
    lane.prepare_standby()
    return _provision(lane)


def _start(lane: Lane) -> tuple[Project, Operation]:
    project = lane.project()
    lane.site.finish(project_action(principal=lane.site.alice, project=project, action="stop"))
    return project, project_action(principal=lane.site.alice, project=project, action="start")


def _delete(lane: Lane) -> tuple[Project, Operation]:
    project = lane.project()
    return project, project_delete(principal=lane.site.alice, project=project)


def _purge(lane: Lane) -> tuple[Project, Operation]:
    project = lane.project()
    lane.projects.remove(project)
    return project, project_purge(principal=lane.site.alice, project=project, confirm=project.slug)


def _update(lane: Lane, **changes: object) -> tuple[Project, Operation]:
    project, operation = project_update(principal=lane.site.alice, project=lane.project(), changes=changes)
    assert operation is not None
    return project, operation


def _resize(lane: Lane) -> tuple[Project, Operation]:
    project = lane.project()
    most = project.plan.memory_bytes
    other = most - (64 << 20) if project.memory_bytes == most else most
    return _update(lane, limits={"memory_bytes": other})


def _change_tls(lane: Lane) -> tuple[Project, Operation]:
    return _update(lane, tls_required=not lane.project().tls_required)


def _renew(lane: Lane) -> tuple[Project, Operation]:
    project = lane.project()
    DatabaseServer.objects.filter(project_uuid=project.pk).update(tls_not_after=now() + timedelta(days=3))
    with transaction.atomic():
        return project, operation_create(project=project, kind="renew_certificate", created_by_label="certificates")


KIND_OF = {"claim": "provision"}  # a provisioning that finds a standby
BEGIN: dict[str, Callable[[Lane], tuple[Project, Operation]]] = {
    "provision": _provision, "purge": _purge, "stop": _act("stop"), "start": _start, "restart": _act("restart"),
    "rotate_password": _act("rotate_password"), "delete": _delete, "resize": _resize, "change_tls": _change_tls,
    "renew_certificate": _renew, "claim": _claim,
}  # fmt: skip


def kinds_of(engine: str, runtime: str) -> Iterator[str]:
    """Certificates only where a server speaks TLS on every machine that runs the tests."""
    tls = runtime == "docker" and domain.Capability.TLS_RELOAD in registry.engine(engine).capabilities
    for kind in BEGIN:
        if tls or kind not in {"change_tls", "renew_certificate"}:
            yield kind
