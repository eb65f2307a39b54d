"""The main job of the product, told once for every engine and every runtime: through the HTTP API, by a person's API
token, against real servers, with the engine's own driver at the published address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from accounts.permissions import Principal
from projects import domain, registry
from projects.models import DatabaseServer, Operation, Project
from projects.operations import janitor
from projects.runtimes.base import Runtime
from tests.clients import CLIENTS, Access
from tests.factories import Team, api_client

MIB = 1024**2
FIRST, LATER = ["kept 🐬", "too"], "later"


class Place(Protocol):
    """One install with a region `site`. `tests.faults.conftest.Site` is one."""

    team: Team
    alice: Principal

    @property
    def runtime(self) -> Runtime: ...

    def finish(self, operation: Operation, seconds: float = 60) -> Operation:
        """Work on it until it has ended, or for so long."""

    def check_exactly(self, *projects: Project) -> None:
        """Those servers and their data are there, and nothing else."""


class Journey:
    """One project of one engine. Each method is one thing that a user does, and what must be so afterwards."""

    def __init__(self, place: Place, engine: str, version: str, folder: Path) -> None:
        self.place, self.engine, self.version, self.folder = place, registry.engine(engine), version, folder
        self.client = CLIENTS[engine]
        self.api = api_client(place.team.alice, scopes=["read", "write", "connect", "admin"])
        self.url = ""
        self.secrets: set[str] = set()

    # --- the API ------------------------------------------------------------------------------------------------------
    def ask(self, method: str, url: str, body: dict[str, Any] | None = None, *, status: int = 200) -> dict[str, Any]:
        answer = getattr(self.api, method)(url, body, format="json") if body else getattr(self.api, method)(url)
        assert answer.status_code == status, (method, url, answer.status_code, answer.content)
        return dict(answer.json())

    def done(self, answer: dict[str, Any]) -> None:
        """The operation of an answer, worked on to its end, as the API then tells it."""
        url = f"/api/v1/operations/{answer['operation']['id']}/"
        operation = Operation.objects.get(pk=answer["operation"]["id"])
        for _ in range(60):
            self.place.finish(operation, 2)
            janitor.delete_due_data()  # what a purge waits for
            if not operation.live:
                break
        told = self.ask("get", url)
        assert told["state"] == "succeeded", (told["kind"], told["error"], told["steps"])

    def act(self, action: str, **options: Any) -> None:
        self.done(self.ask("post", f"{self.url}action/", {"action": action, **options}, status=202))

    def status(self) -> str:
        return str(self.ask("get", self.url)["status"])

    def access(self) -> Access:
        answer = self.ask("get", f"{self.url}connection/")
        assert answer["tls"] is bool(answer["ca_url"])
        self.secrets.add(answer["password"])
        ca = self.folder / domain.CA_FILE
        if answer["tls"]:
            ca.write_bytes(api_client().get(answer["ca_url"]).content)
        return Access.told(answer, str(ca))

    # --- rows, for what the API does not tell -------------------------------------------------------------------------
    @property
    def project(self) -> Project:
        return Project.objects.get(pk=self.url.rstrip("/").rpartition("/")[2])

    @property
    def server(self) -> DatabaseServer:
        return DatabaseServer.objects.get(project_uuid=self.project.pk)

    # --- the chapters -------------------------------------------------------------------------------------------------
    def create(self, **body: Any) -> None:
        wanted = {"name": "Shop", "engine": self.engine.name, "version": self.version, "region": "site", **body}
        answer = self.ask("post", "/api/v1/projects/", wanted, status=201)
        self.url = f"/api/v1/projects/{answer['id']}/"
        self.done(answer)
        told = self.ask("get", self.url)
        assert (told["status"], told["engine"], told["version"]) == ("running", self.engine.name, self.version)
        assert self.server.system_identifier

    def connect(self, *, tls: bool) -> Access:
        """A first session; with TLS it is checked, and a client that trusts somebody else gets nowhere."""
        access = self.access()
        assert bool(access.ca) is tls
        assert self.client.encrypted(access) is tls
        if tls:
            self.refuses_strangers(access)
        return access

    def refuses_strangers(self, access: Access) -> None:
        from dataclasses import replace

        from novastack.common import pki
        from novastack.common.clock import now

        stranger = self.folder / "stranger.pem"
        stranger.write_text(pki.make_authority("Stranger", at=now()).certificate)
        with pytest.raises(self.client.gone, match=r"(?i)certificate verify failed"):
            self.client.encrypted(replace(access, ca=str(stranger)))

    def rotate(self, **options: Any) -> None:
        old = self.access()
        self.act("rotate_password", **options)
        assert self.access().password != old.password
        error, words = self.client.refused
        with pytest.raises(error, match=words):
            self.client.words(old)

    def resize(self) -> None:
        memory = self.server.memory_bytes - 64 * MIB
        if memory < self.engine.minimum_memory_bytes:
            memory = self.engine.minimum_memory_bytes
        answer = self.ask("patch", self.url, {"limits": {"memory_bytes": memory, "cpus": 0.4}})
        assert answer["operation"]["kind"] == "resize"
        self.done(answer)
        found = self.place.runtime.describe([self.server.handle])[self.server.handle]
        assert found.memory_bytes in {memory, None}, "None: this runtime limits nothing"
        assert self.ask("get", self.url)["limits"]["memory_bytes"] == memory

    def is_shut(self, access: Access) -> None:
        with pytest.raises(self.client.gone):
            self.client.words(access)

    def remove(self) -> None:
        access = self.access()
        self.done(self.ask("delete", self.url, status=202))
        assert self.status() == "recycled"
        self.is_shut(access)

    def logs_hold_no_secret(self) -> None:
        log = b"\n".join(self.place.runtime.logs(self.server.handle, tail=5000)).decode()
        for secret in self.secrets:
            assert secret not in log

    def purge(self) -> None:
        project = self.project
        self.done(self.ask("delete", f"{self.url}?purge=true&confirm={project.slug}", status=202))
        assert self.api.get(self.url).status_code == 404
        assert list(self.place.runtime.managed()) == [] and list(self.place.runtime.managed_data()) == []

    def go(self, *, tls: bool, extras: Callable[[Journey], None] = lambda _: None) -> None:
        """The whole way. `extras`: what only one engine has to show, while the database runs."""
        client = self.client
        self.create()
        access = self.connect(tls=tls)
        client.make(access)
        client.add(access, *FIRST)
        self.act("restart")
        assert client.words(self.connect(tls=tls)) == FIRST
        self.rotate(end_sessions=domain.Capability.END_SESSIONS in self.engine.capabilities)
        client.add(self.access(), LATER)
        self.resize()
        assert client.words(self.access()) == [*FIRST, LATER]
        extras(self)
        self.act("stop")
        self.is_shut(self.access())
        self.act("start")
        self.place.check_exactly(self.project)
        self.remove()
        self.act("undelete")
        assert client.words(self.connect(tls=tls)) == [*FIRST, LATER]
        self.logs_hold_no_secret()
        self.remove()
        self.purge()
