"""Backups and proofs against the same by hand: `pg_dump | zstd` driven by the Docker CLI, and a server started by hand into
which `age -d | zstd -d | pg_restore` restores.

Pairs are interleaved, on data that compress about 3 : 1, with the same image, zstd level and threads. To be kept: a backup
to STORED at 0.9 × the raw speed or better, less a fixed start of at most 1 s; likewise a proof; a worker that grows by
64 MB at most; and hashing that costs at most half of the dump. `BENCH_BYTES` (default 2 GiB), `BENCH_ROUNDS` (3).
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from django.conf import settings
from django.db import transaction

from accounts.permissions import Principal
from backups.models import Backup, BackupStatus, ProofKind, StorageTarget
from backups.operations import keys, storages
from backups.operations.proving import verify_begin
from backups.operations.taking import backup_begin
from bench.fixtures import person, plan
from novastack.common.secrets import random_password
from projects import domain, registry
from projects.models import Database, DatabaseServer, Endpoint, Operation, Project, Region, RoleKind
from projects.operations import runner, wiring
from projects.services import ProjectRequest, project_create

BYTES = int(os.environ.get("BENCH_BYTES", str(2 << 30)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
START_SECONDS = 1.0
ROW_BYTES = 204  # of the text that a dump has for it
BOUND = 0.9
LEVEL, THREADS = 3, 2  # as in `projects.engines.zipping`


class Growth(threading.Thread):
    """By how much this process grew while it ran (bytes of resident memory)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = self._now()
        self._ended = threading.Event()

    @staticmethod
    def _now() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def run(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, self._now())

    def end(self) -> int:
        self._ended.set()
        self.join()
        return self.most - self.first


def _done(operation_id: object, *, fine: tuple[str, ...] = ("succeeded",)) -> Operation:
    operation = Operation.objects.get(pk=operation_id)
    while operation.live:
        runner.run(operation.pk)
        Operation.objects.filter(pk=operation.pk).update(next_attempt_at=None)
        operation.refresh_from_db()
    if operation.state not in fine:
        raise SystemExit(f"{operation.kind}: {operation.error}")
    return operation


def _fill(project: Project, size: int) -> None:
    """About `size` bytes of rows, of which a third is noise."""
    database = Database.objects.get(project=project, slot="current")
    login, endpoint = database.roles.get(kind=RoleKind.LOGIN), Endpoint.objects.get(project=project)
    assert login.secret is not None
    with psycopg.connect(
        host=endpoint.host, port=endpoint.port, dbname=database.name, user=login.name, password=login.secret.open(),
        autocommit=True,
    ) as session:  # fmt: skip
        session.execute("SET synchronous_commit = off")
        each = size // ROW_BYTES // 8
        for part in range(8):
            session.execute(
                f"CREATE TABLE public.orders_{part} (id bigint, customer int, note text, token text, at timestamptz)"
            )
            session.execute(
                f"INSERT INTO public.orders_{part}"
                " SELECT i, i % 100000, 'order of the year 2026, paid and shipped, number ' || i,"
                " md5(random()::text) || md5((i % 5000)::text) || md5(random()::text), now() - i * interval '1 second'"
                f" FROM generate_series(1, {each}) i"
            )
            session.execute(f"ALTER TABLE public.orders_{part} ADD PRIMARY KEY (id)")
        session.execute("VACUUM ANALYZE")


@dataclass(frozen=True, slots=True)
class Tool:
    """A login for the raw tools, and where they run."""

    server: DatabaseServer
    names: domain.TenantNames
    password: str

    def run(self, script: str, **kwargs: object) -> float:
        """Seconds of one `docker run` of a shell line beside the server."""
        with tempfile.NamedTemporaryFile("w", suffix=".env") as env:
            env.write(
                f"PGPASSWORD={self.password}\nPGUSER={self.names.tool}\nPGDATABASE={self.names.database}\nPGHOST=127.0.0.1\n"
                "PGOPTIONS=-c default_transaction_read_only=off\n"
            )
            env.flush()
            argv = [
                "docker", "run", "--rm", "-i", "--network", f"container:{self.server.handle.name}", "--env-file", env.name,
                "--entrypoint", "bash", self.server.image_digest or self.server.image, "-o", "pipefail", "-c", script,
            ]  # fmt: skip
            began = time.monotonic()
            subprocess.run(argv, check=True, **kwargs)  # type: ignore[call-overload]
            return time.monotonic() - began


def _tool(project: Project) -> Tool:
    database = Database.objects.select_related("server").get(project=project, slot="current")
    names, password = wiring.tenant_names(database), random_password()
    with wiring.admin_session(registry.engine(project.engine), database.server) as admin:
        admin.admit_tool(names, names.tool, password)
    return Tool(database.server, names, password)


def _raw_backup(project: Project, folder: Path) -> tuple[float, Path]:
    tool, target = _tool(project), folder / "raw.zst"
    with target.open("wb") as out:
        seconds = tool.run(f"pg_dump -Fc -Z0 | zstd -q -{LEVEL} -T{THREADS}", stdout=out)
        began = time.monotonic()
        os.fsync(out.fileno())
    return seconds + time.monotonic() - began, target


def _our_backup(project: Project) -> tuple[float, Backup, int]:
    growth = Growth()
    growth.start()
    began = time.monotonic()
    with transaction.atomic():
        backup = backup_begin(project, trigger="manual", created_by_label="bench", verify=False)
    _done(backup.operation_id)
    seconds = time.monotonic() - began
    backup.refresh_from_db()
    if backup.status != BackupStatus.STORED:
        raise SystemExit(f"backup: {backup.status} {backup.error}")
    return seconds, backup, growth.end()


def _our_proof(backup: Backup) -> tuple[float, int]:
    growth = Growth()
    growth.start()
    began = time.monotonic()
    with transaction.atomic():
        operation = verify_begin(backup, kind=ProofKind.MANUAL, created_by_label="bench")
    _done(operation.pk)
    seconds = time.monotonic() - began
    backup.refresh_from_db()
    if backup.status != BackupStatus.VERIFIED:
        raise SystemExit(f"proof: {backup.status} {backup.verify_error}")
    return seconds, growth.end()


def _raw_proof(project: Project, backup: Backup, folder: Path) -> float:
    """A server started by hand, filled by the command line, and its rows counted and hashed as a person would."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    image, name = server.image_digest or server.image, f"bench-proof-{secrets.token_hex(4)}"
    stored = storages.storage_of(backup.storage)
    whole = folder / "stored.age"
    with stored.open(backup.object_key) as source, whole.open("wb") as out:
        while piece := source.read(1 << 20):
            out.write(piece)
    identity = folder / "identity.txt"
    identity.write_text(keys.identities_of(backup.organization_id)[0])
    check = (
        "for t in $(psql -U postgres -Atc \"SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
        " WHERE schemaname NOT IN ('pg_catalog', 'information_schema')\"); do psql -U postgres -Atc"
        ' "SELECT count(*), sum(hashtextextended(x::text, 0)) FROM $t x" || exit 1; done'
    )
    began = time.monotonic()
    try:
        subprocess.run(
            ["docker", "run", "-d", "--name", name, "-e", "POSTGRES_PASSWORD=bench", image],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        while subprocess.run(
            ["docker", "exec", name, "pg_isready", "-q", "-h", "127.0.0.1", "-U", "postgres"], check=False
        ).returncode:
            time.sleep(0.1)
        pipeline = (
            f"set -o pipefail; age -d -i {identity} {whole} | zstd -q -d |"
            f" docker exec -i -e PGPASSWORD=bench {name} pg_restore -U postgres -h 127.0.0.1 -d postgres --no-owner --no-acl"
            " --exit-on-error"
        )
        subprocess.run(["bash", "-c", pipeline], check=True)
        subprocess.run(
            ["docker", "exec", "-e", "PGPASSWORD=bench", "-e", "PGHOST=127.0.0.1", name, "bash", "-c", check],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return time.monotonic() - began
    finally:
        subprocess.run(["docker", "rm", "-fv", name], check=False, stdout=subprocess.DEVNULL)
        whole.unlink(missing_ok=True)


def _hash_cost(project: Project) -> tuple[float, float]:
    """Seconds of reading and hashing everything, and of a dump to nowhere."""
    tool = _tool(project)
    engine = registry.engine(project.engine)
    began = time.monotonic()
    engine.fingerprint(
        tool.server.control_endpoint, domain.Credentials(tool.names.tool, tool.password, tool.names.database)
    )
    hashed = time.monotonic() - began
    return hashed, tool.run("pg_dump -Fc -Z0 > /dev/null")


def _verdict(ours: list[float], raw: list[float]) -> str:
    mine, theirs = statistics.median(ours), statistics.median(raw)
    ratio = theirs / max(0.001, mine - START_SECONDS)
    return (
        f"{mine:.1f} s against {theirs:.1f} s: {ratio:.2f} x the raw speed, less {START_SECONDS:g} s"
        f" (bound {BOUND}, {'kept' if ratio >= BOUND else 'MISSED'})"
    )


def run() -> Iterator[str]:
    with backed_up() as (project, folder):
        _fill(project, BYTES)
        yield from _measure(project, folder)


@contextmanager
def backed_up(engine: str = "postgresql", version: str | None = None) -> Iterator[tuple[Project, Path]]:
    """A project on Docker that is backed up into a folder of its own; both are gone at the end."""
    user, organization = person()
    plan()
    first = 13000 + secrets.randbelow(200) * 10
    region = Region.objects.create(
        slug=f"backups-{first}", name="Backups", runtime="docker", port_start=first, port_end=first + 9
    )
    with tempfile.TemporaryDirectory(prefix="bench-", dir=os.environ.get("BENCH_FOLDER") or None) as name:
        folder = Path(name)
        try:
            settings.NOVASTACK_BACKUP_ROOT = str(folder)
            target = StorageTarget.objects.create(
                organization=organization, name="bench", kind="filesystem", config={"path": "stored"}, is_default=True
            )
            (folder / "stored").mkdir()
            storages.claim(target)
            target.save()
            project = project_create(
                principal=Principal.of(user), organization=organization,
                request=ProjectRequest(
                    name="backed up", engine=engine, version=version, region=region.slug, bootstrap_schema=False
                ),
            )  # fmt: skip
            _done(Operation.objects.get(project_uuid=project.pk).pk)
            yield project, folder
        finally:
            runtime = wiring.runtime_of(region)
            mine = {str(pk) for pk in region.servers.values_list("pk", flat=True)}
            for handle in {*runtime.managed(), *runtime.managed_data()}:
                if handle.server_id in mine:
                    runtime.destroy(handle, delete_data=True)


def _measure(project: Project, folder: Path) -> Iterator[str]:
    raw, ours, raw_proofs, proofs, grown = [], [], [], [], 0
    for number in range(ROUNDS):
        for raw_first in (number % 2 == 0, number % 2 == 1):
            if raw_first:
                seconds, file = _raw_backup(project, folder)
                raw.append(seconds)
                size = file.stat().st_size
                file.unlink()
            else:
                seconds, backup, more = _our_backup(project)
                ours.append(seconds)
                grown = max(grown, more)
        proof, more = _our_proof(backup)
        proofs.append(proof)
        grown = max(grown, more)
        raw_proofs.append(_raw_proof(project, backup, folder))
    target = StorageTarget.objects.get(pk=backup.storage_id)
    yield (
        f"backup to stored ({target.kind}), {(backup.dump_bytes or 0) / 2**30:.2f} GiB of dump,"
        f" {size / 2**20:.0f} MiB compressed"
        f" ({(backup.dump_bytes or 0) / size:.1f} : 1), {ROUNDS} pairs: {_verdict(ours, raw)}"
    )
    yield f"proof by restoring, {ROUNDS} pairs: {_verdict(proofs, raw_proofs)}"
    hashed, dumped = _hash_cost(project)
    yield (
        f"hashing by itself: {hashed:.1f} s, the dump by itself {dumped:.1f} s: {hashed / dumped:.2f} x"
        f" (bound 0.5, {'kept' if hashed / dumped <= 0.5 else 'MISSED'})"
    )
    yield f"growth of the worker: {grown / 2**20:.0f} MiB (bound 64, {'kept' if grown <= 64 << 20 else 'MISSED'})"
