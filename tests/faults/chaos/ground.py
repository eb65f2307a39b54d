"""Where it is played: one project with its content on one engine and runtime, storages that can be made to fail, and workers
that are replaced when they die, as systemd and Compose do."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import transaction

from backups.models import BackupPolicy, OfflineKey, StorageTarget
from backups.operations import storages
from backups.services.storages import storage_create
from novastack.common.clock import DatabaseNow, now
from projects import registry
from projects.models import Operation, Project
from projects.operations import reconciler
from tests.backups import s3_server
from tests.faults.chaos.oracle import Facts, Oracle
from tests.faults.chaos.source import Source
from tests.faults.clients import server_of
from tests.faults.conftest import Site, make_site
from tests.faults.workers import Worker

SMALL_MIB = 48
BUCKET = "backups"


class Crew:
    """Workers of a site. Whoever dies is replaced; the lease of the dead is not waited for."""

    def __init__(self, site: Site, count: int, faults: tuple[str, ...]) -> None:
        self._site, self.replaced = site, 0
        self._faults = list(faults)
        self.workers: list[Worker] = []
        self.paused: list[tuple[Worker, float]] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self.workers.append(self._site.worker(self._faults.pop(0) if self._faults else ""))

    def tend(self) -> None:
        for worker in list(self.workers):
            if worker.poll() is not None:
                self.workers.remove(worker)
                self.replaced += 1
                expire_leases_of(worker.pid)
                self.add()
        for worker, until in list(self.paused):
            if time.monotonic() > until:
                worker.send_signal(signal.SIGCONT)
                self.paused.remove((worker, until))

    def kill(self, which: int) -> None:
        self.workers[which % len(self.workers)].kill()

    def pause(self, which: int, seconds: float) -> None:
        """It stands still, loses its lease, and another one goes on: then it wakes up and goes on as well."""
        worker = self.workers[which % len(self.workers)]
        worker.send_signal(signal.SIGSTOP)
        self.paused.append((worker, time.monotonic() + seconds))
        expire_leases_of(worker.pid)
        self.add()

    def end(self) -> int:
        """How many had died by then."""
        for worker, _ in self.paused:
            worker.send_signal(signal.SIGCONT)
        self._site.stop_workers()
        for worker in self.workers:
            expire_leases_of(worker.pid)
        self.workers.clear()
        self.paused.clear()
        return self.replaced


def expire_leases_of(pid: int) -> None:
    past = DatabaseNow() - timedelta(seconds=1)
    rows = Operation.objects.live().filter(lease_owner__contains=f":{pid}:")
    with transaction.atomic():  # a worker that stands still may hold the row: who waited for it would never wake it up
        free = list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))
        Operation.objects.filter(pk__in=free).update(lease_until=past, hinted_at=None)
    # One whose hint nobody may have heard is looked for after some seconds; here at once.
    old = now() - timedelta(seconds=reconciler.HINT_AGE_SECONDS)
    with transaction.atomic():
        free = list(Operation.objects.live().select_for_update(skip_locked=True).values_list("pk", flat=True))
        Operation.objects.filter(pk__in=free, lease_until=None, hinted_at__isnull=False).update(hinted_at=None)
        Operation.objects.filter(pk__in=free, created_at__gt=old).update(created_at=old)


class Ground:
    def __init__(self, engine: str, runtime: str, oracle: Oracle, seed: str, patch: pytest.MonkeyPatch) -> None:
        self.engine, self.runtime_name, self.oracle = engine, runtime, oracle
        self._stack = contextlib.ExitStack()
        try:
            self._make(seed, patch)
        except BaseException:
            self.close()
            raise

    def _make(self, seed: str, patch: pytest.MonkeyPatch) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nvs-chaos-", dir="/tmp"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._stack.callback(_flush)
        self.root = self.folder / "root"
        (self.root / "small").mkdir(parents=True)
        for name, value in {
            "NOVASTACK_BACKUP_ROOT": str(self.root), "NOVASTACK_OUTBOUND_ALLOW": "127.0.0.0/8",
            "NOVASTACK_BACKUP_RATE_BYTES": "9000000",  # it takes a moment, so that something can happen meanwhile
        }.items():  # fmt: skip
            patch.setenv(name, value)
        patch.setattr(settings, "NOVASTACK_BACKUP_ROOT", str(self.root))
        patch.setattr(settings, "NOVASTACK_OUTBOUND_ALLOW", ["127.0.0.0/8"])
        patch.setattr(settings, "NOVASTACK_BACKUP_RATE_BYTES", 9_000_000)
        self.site = self._stack.enter_context(
            contextlib.contextmanager(make_site)(self.runtime_name, self.engine)
        )  # fmt: skip
        self.proxy: s3_server.Proxy | None = None
        self._targets: dict[str, StorageTarget] = {}
        OfflineKey.objects.create(
            organization=self.site.team.organization, recipient=self.oracle.recipient, fingerprint="0" * 20,
            confirmed_at=now(),
        )  # fmt: skip
        self.project: Project = self.site.ready("Shop")
        BackupPolicy.objects.update_or_create(
            project=self.project, defaults={"organization_id": self.project.organization_id}
        )
        self.source = Source(self.site, self.project, seed=seed)
        self.source.fill()
        self.wanted: list[Facts] = []
        self.read_source()

    def close(self) -> None:
        self._stack.close()

    # --- what is there --------------------------------------------------------------------------------------------------
    def read_source(self) -> None:
        """What stays in the source, read anew: a crash of its server may have made sequences jump, before a restore in
        place as well, whose safety backup then holds what is only in the database that was put aside."""
        server = server_of(self.project)
        assert server.admin_secret is not None
        for database in self.project.databases.exclude(slot="incoming"):
            facts = self.oracle.hand(self.engine).read_source(
                "127.0.0.1", server.port or 0, server.admin_username, server.admin_secret.open(), database.name,
                tls=server.tls_enabled, inside=server.runtime_ref if self.runtime_name == "docker" else "",
            )  # fmt: skip
            if facts not in self.wanted:
                self.wanted.append(facts)

    # --- storages -------------------------------------------------------------------------------------------------------
    def target(self, kind: str) -> StorageTarget:
        if kind not in self._targets:
            self._targets[kind] = getattr(self, f"_{kind}")()
        return self._targets[kind]

    def _folder_target(self, name: str) -> StorageTarget:
        made = StorageTarget(name=name, kind="filesystem", config={"path": name})
        storages.claim(made)
        made.save()
        return made

    def _plain(self) -> StorageTarget:
        (self.root / "plain").mkdir()
        return self._folder_target("plain")

    def _small(self) -> StorageTarget:
        if os.geteuid() == 0:
            self._mount("-t", "tmpfs", "-o", f"size={SMALL_MIB}m,mode=0755", "novastack-test")
            self._stack.callback(subprocess.run, ["umount", "-l", str(self.root / "small")], check=False)
        return self._folder_target("small")

    def _mount(self, *argv: str) -> None:
        subprocess.run(["mount", *argv, str(self.root / "small")], check=True, capture_output=True)

    def _s3(self) -> StorageTarget:
        folder = self.folder / "s3"
        folder.mkdir()
        port = self._stack.enter_context(s3_server.versitygw(folder))
        (folder / "buckets" / BUCKET).mkdir()
        self.proxy = s3_server.Proxy(port)
        self._stack.callback(self.proxy.stop)
        return storage_create(
            principal=self.site.alice, organization=self.site.team.organization, name="bucket", kind="s3",
            config={
                "endpoint": f"http://127.0.0.1:{self.proxy.start()}", "bucket": BUCKET, "region": "us-east-1", "prefix": "nova",
            },
            secret={"access_key": s3_server.ACCESS, "secret_key": s3_server.SECRET},
        )  # fmt: skip

    def place(self, kind: str) -> Path:
        """Where a storage's objects lie on its own disk, by their keys."""
        return self.folder / "s3" / "buckets" / BUCKET / "nova" if kind == "s3" else self.root / kind

    def lying_there(self, kind: str) -> list[str]:
        """All files of a storage but its owner object; also what uploads have begun."""
        base = self.place(kind)
        files = [str(file.relative_to(base)) for file in base.rglob("*") if file.is_file()]
        if kind == "s3":
            begun = (self.folder / "s3" / "buckets" / BUCKET).glob(".sgwtmp/**/*")
            files += [str(file) for file in begun if file.is_file()]
        return sorted(name for name in files if not name.startswith((storages.OWNER_KEY, "filler")))

    def break_disk(self, how: str) -> None:
        if os.geteuid() != 0:  # it has no disk of its own: what can be refused there is refused by its rights
            self.place("small").chmod(0o555)
            return
        if how == "disk_read_only":
            self._mount("-o", "remount,ro")
            return
        with contextlib.suppress(OSError), (self.place("small") / "filler").open("ab") as file:
            while True:
                file.write(b"\0" * (1 << 20))
                file.flush()

    def break_bucket(self, how: str, times: int) -> None:
        assert self.proxy is not None
        fail, error = self.proxy.fail, s3_server.error
        {
            "500": lambda: fail("PUT", "", error(500, "InternalError"), times=times),
            "reset": lambda: fail("PUT", "", s3_server.reset, times=times),
            "lost_answer": lambda: (
                fail("POST", "", s3_server.lost_answer, times=times), fail("PUT", "", s3_server.lost_answer, times=times)
            ),
            "half_answer": lambda: fail("GET", "", s3_server.half_answer, times=times),
            "flipped": lambda: fail("PUT", "", s3_server.flipped, times=times),
            "slow": lambda: fail("*", "", s3_server.slow(1.0), times=times * 3),
            "403_delete": lambda: fail("DELETE", "", error(403, "AccessDenied"), times=times * 3),
            "409_delete": lambda: fail("DELETE", "", error(409, "OperationAborted"), times=times * 3),
            "503_all": lambda: fail("*", "", error(503, "SlowDown"), times=times * 4),
        }[how]()  # fmt: skip

    def heal(self) -> None:
        if self.proxy is not None:
            self.proxy.rules.clear()
        if "small" in self._targets:
            if os.geteuid() == 0:
                self._mount("-o", "remount,rw")
            self.place("small").chmod(0o755)
            (self.place("small") / "filler").unlink(missing_ok=True)

    # --- processes ------------------------------------------------------------------------------------------------------
    def kill_server(self) -> bool:
        """The database's server, as memory pressure does it."""
        server = server_of(self.project)
        if self.runtime_name == "docker":
            argv = ["docker", "kill", server.runtime_ref]
            return subprocess.run(argv, capture_output=True, check=False).returncode == 0
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(int(server.runtime_ref.split(":")[0]), signal.SIGKILL)
            return True
        return False

    def tools(self) -> list[str]:
        """The dump and restore tools that run: process or container ids."""
        if self.runtime_name == "docker":
            argv = ["docker", "ps", "--all", "--format", "{{.Names}}", "--filter", "name=nvs-tool-"]
            names = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
            mine = {str(pk) for pk in Operation.objects.values_list("pk", flat=True)}
            return [name for name in names if any(pk in name for pk in mine)]
        found, tools = [], f"{self.site.region.config['root']}/tools/"
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str((folder / "cwd").readlink()).startswith(tools):
                    found.append(folder.name)
        return found

    def kill_tool(self) -> bool:
        found = self.tools()
        for tool in found:
            if self.runtime_name == "docker":
                subprocess.run(["docker", "kill", tool], capture_output=True, check=False)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(tool), signal.SIGKILL)
        return bool(found)


def _flush() -> None:
    registry._built.clear()
    call_command("flush", verbosity=0, interactive=False)


def drop_connections() -> None:
    """Of everybody but this process to the control database."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
