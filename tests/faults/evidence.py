"""What was done to a server, told by what others wrote down: the container engine's events, the server's own log, what
each login and database is told apart by. So "not done twice" is seen, not taken from NovaStack's own rows."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass

from projects import domain
from projects.models import DatabaseRole, DatabaseServer, Operation, Project, RoleKind
from projects.runtimes import docker_spec
from projects.runtimes.docker import DockerRuntime
from tests.faults.clients import Things, server_of
from tests.faults.conftest import Site

# kind → how often its server is started, ended and removed: whether somebody dies or not
DEEDS = {
    "provision": (1, 0, 0), "claim": (0, 0, 0), "stop": (0, 1, 0), "start": (1, 0, 0), "restart": (1, 1, 0),
    "rotate_password": (0, 0, 0), "resize": (0, 0, 0), "change_tls": (0, 0, 0), "renew_certificate": (0, 0, 0),
    "delete": (0, 1, 0), "purge": (0, 1, 1),
}  # fmt: skip
LEAVES_IT_RUNNING = {"provision", "claim", "start", "rotate_password", "resize", "change_tls", "renew_certificate"}


@dataclass
class Moment:
    """What was so when the worker died."""

    ref: str  # of the server that ran; empty if none did
    things: Things
    pending: str
    admin_pending: str
    system_identifier: str


class Witness:
    """Watches one project's server from before an operation on it."""

    def __init__(self, site: Site, project: Project) -> None:
        self.site, self.project = site, project
        server = server_of(project)
        self.planned = server.pk
        self.ref, self.system_identifier = server.runtime_ref, server.system_identifier
        self.operations = Operation.objects.filter(project_uuid=project.pk).count()
        self._listened = self._starts_in_log() if self.ref else 0
        self._events = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the witness
        self._watcher: subprocess.Popen[bytes] | None = None
        runtime = site.runtime
        if isinstance(runtime, DockerRuntime):
            argv = [
                "docker",
                "-H",
                runtime.base_url,
                "events",
                "--format",
                "{{.Action}}",
                "--since",
                f"{time.time():.3f}",
            ]
            for name, value in {docker_spec.KIND: "server", docker_spec.INSTALL: runtime._install_id}.items():
                argv += ["--filter", f"label={name}={value}"]
            self._watcher = subprocess.Popen([*argv, "--filter", "type=container"], stdout=self._events)

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.terminate()
            self._watcher.wait(10)
            self._watcher = None
        self._events.close()

    # --- when the worker died -----------------------------------------------------------------------------------------
    def moment(self, kind: str) -> Moment:
        if kind == "purge":  # it is all to go
            return Moment("", {}, "", "", "")
        server = server_of(self.project)
        handle = domain.Handle(str(server.pk), server.incarnation)
        seen = self.site.runtime.observe([handle])[handle]
        running = seen.state == domain.ServerState.RUNNING
        things: Things = {}
        if running and server.initialised_at is not None and kind in LEAVES_IT_RUNNING:
            with contextlib.suppress(Exception):  # it may be on its way up or down; then it can't be asked
                things = self.site.client.things(self.project, pending=True)
        login = DatabaseRole.objects.get(database__project=self.project, kind=RoleKind.LOGIN)
        return Moment(
            seen.ref if running else "", things,
            login.pending_secret.open() if login.pending_secret else "",
            server.admin_pending_secret.open() if server.admin_pending_secret else "",
            server.system_identifier,
        )  # fmt: skip

    # --- in the end ---------------------------------------------------------------------------------------------------
    def check_deeds(self, kind: str) -> None:
        """The server was started, ended and removed as often as once, by the engine's events or the server's log."""
        started, ended, removed = DEEDS[kind]
        if kind == "claim" and server_of(self.project).pk == self.planned:
            started = 1  # who died before it had claimed one made sure of a new one
        if self._watcher is not None:
            time.sleep(0.2)  # the last ones are on their way
            self._watcher.terminate()
            self._watcher.wait(10)
            self._watcher = None
            self._events.seek(0)
            lines = self._events.read().splitlines()
            seen = Counter(line.split()[0].rstrip(":") for line in lines)
            told = (seen["start"], seen["die"], seen["destroy"] - self._never_started(seen))
            assert told == (started, ended, removed), f"started, ended, removed: {lines}; {self._last_lines()}"
        elif kind != "purge" and self.site.client.listening:
            assert self._starts_in_log() - self._listened == (1 if kind == "claim" else started)

    def _last_lines(self) -> list[bytes]:
        server = DatabaseServer.objects.filter(project_uuid=self.project.pk).first()
        return list(self.site.runtime.logs(server.handle, tail=40)) if server else []

    def _never_started(self, seen: Counter[str]) -> int:
        """A container whose files were not all there when the worker died is made again before it ever ran."""
        return max(0, seen["create"] - 1)

    def _starts_in_log(self) -> int:
        server = server_of(self.project)
        lines = self.site.runtime.logs(domain.Handle(str(server.pk), server.incarnation), tail=5000)
        return sum(self.site.client.listening.encode() in line for line in lines)

    def check_once(self, kind: str, operation: Operation, then: Moment) -> None:
        """The rows and the server tell of one doing."""
        assert operation.attempt == 1, operation.error
        attempts = dict(operation.steps.exclude(state="skipped").values_list("name", "attempt"))
        assert set(attempts.values()) == {1}, f"dying is no attempt: {attempts}"
        if kind == "purge":
            return
        assert Operation.objects.filter(project_uuid=self.project.pk).count() == self.operations
        server = server_of(self.project)
        assert server.incarnation == 1
        for known in (self.system_identifier, then.system_identifier):
            assert known in ("", server.system_identifier), "the data is the same"
        if kind in LEAVES_IT_RUNNING and then.ref:
            assert server.runtime_ref == then.ref, "the server that ran when the worker died runs on"
        if then.admin_pending:
            assert server.admin_secret.open() == then.admin_pending, "one new password, however often it is applied"

    def check_things(self, kind: str, now: Things, then: Moment) -> None:
        """Logins and databases that were there are the same ones still, not others of that name."""
        if kind == "claim":  # a place that was made ahead gets its name
            assert set(then.things.values()) <= set(now.values())
        else:
            assert {key: now.get(key) for key in then.things} == then.things
        if kind == "rotate_password" and then.pending:
            login = DatabaseRole.objects.get(database__project=self.project, kind=RoleKind.LOGIN)
            assert login.secret is not None
            assert login.secret.open() == then.pending, "one new password, however often it is applied"
        assert DatabaseServer.objects.filter(project_uuid=self.project.pk).count() == 1
