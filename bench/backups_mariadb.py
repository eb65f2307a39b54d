"""Backups and proofs of MariaDB against the same by hand: `mariadb-dump | zstd` driven by the Docker CLI, and a server
started by hand into which `age -d | zstd -d | mariadb` restores and whose tables are then summed (CHECKSUM TABLE).

No bound: the figures are recorded. Ours reads the dump's text as it streams, and dumps the copy again to compare. `BENCH_BYTES`
(default 512 MiB), `BENCH_ROUNDS` (1), `BENCH_VERSION` (11.8).
"""

from __future__ import annotations

import os
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pymysql

from backups.models import Backup
from backups.operations import keys, storages
from bench.backups import LEVEL, THREADS, _our_backup, _our_proof, backed_up
from novastack.common.secrets import random_password
from projects import registry
from projects.models import Database, DatabaseServer, Endpoint, Project, RoleKind
from projects.operations import wiring

BYTES = int(os.environ.get("BENCH_BYTES", str(512 << 20)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
VERSION = os.environ.get("BENCH_VERSION", "11.8")
ROW_BYTES = 196  # of the text that a dump has for it
TABLES = 4


def _fill(project: Project, size: int) -> None:
    """About `size` bytes of rows, of which a third is noise."""
    database = Database.objects.get(project=project, slot="current")
    login, endpoint = database.roles.get(kind=RoleKind.LOGIN), Endpoint.objects.get(project=project)
    assert login.secret is not None
    with (
        pymysql.connect(
            host=endpoint.host, port=endpoint.port, database=database.name, user=login.name,
            password=login.secret.open(), autocommit=True, read_timeout=600,
        ) as session,
        session.cursor() as cursor,
    ):  # fmt: skip
        each = size // ROW_BYTES // TABLES
        for part in range(TABLES):
            cursor.execute(
                f"CREATE TABLE orders_{part} (id BIGINT PRIMARY KEY, customer INT, note VARCHAR(200), token VARCHAR(100),"
                " at DATETIME)"
            )
            cursor.execute(
                f"INSERT INTO orders_{part} SELECT seq, seq % 100000,"
                " CONCAT('order of the year 2026, paid and shipped, number ', seq),"
                " CONCAT(MD5(RAND()), MD5(seq % 5000), MD5(RAND())), NOW() - INTERVAL seq SECOND"
                f" FROM seq_1_to_{each}"
            )


def _raw_backup(project: Project, folder: Path) -> tuple[float, int]:
    """(seconds, bytes) of a dump by hand, with its own login."""
    database = Database.objects.select_related("server").get(project=project, slot="current")
    server, names, password = database.server, wiring.tenant_names(database), random_password()
    with wiring.admin_session(registry.engine(project.engine), server) as admin:
        admin.admit_tool(names, names.tool, password)
    target = folder / "raw.zst"
    script = (
        "mariadb-dump --host=127.0.0.1 --loose-disable-ssl-verify-server-cert --user=$MUSER --single-transaction --quick"
        f" --routines --triggers --events --hex-blob $MDATABASE | zstd -q -{LEVEL} -T{THREADS}"
    )
    with target.open("wb") as out, tempfile.NamedTemporaryFile("w", suffix=".env") as env:
        env.write(f"MYSQL_PWD={password}\nMUSER={names.tool}\nMDATABASE={names.database}\n")
        env.flush()
        began = time.monotonic()
        subprocess.run(
            ["docker", "run", "--rm", "-i", "--network", f"container:{server.handle.name}", "--env-file", env.name,
             "--entrypoint", "bash", server.image_digest or server.image, "-o", "pipefail", "-c", script],
            check=True, stdout=out,
        )  # fmt: skip
        os.fsync(out.fileno())
        seconds = time.monotonic() - began
    size = target.stat().st_size
    target.unlink()
    return seconds, size


def _raw_proof(project: Project, backup: Backup, folder: Path) -> float:
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    image, name = server.image_digest or server.image, f"bench-proof-{secrets.token_hex(4)}"
    whole, identity = folder / "stored.age", folder / "identity.txt"
    with storages.storage_of(backup.storage).open(backup.object_key) as source, whole.open("wb") as out:
        while piece := source.read(1 << 20):
            out.write(piece)
    identity.write_text(keys.identities_of(backup.organization_id)[0])
    client = ["docker", "exec", "-i", "-e", "MYSQL_PWD=bench", name, "mariadb", "-uroot", "-h127.0.0.1"]
    began = time.monotonic()
    try:
        subprocess.run(
            ["docker", "run", "-d", "--name", name, "-e", "MARIADB_ROOT_PASSWORD=bench", "-e", "MARIADB_DATABASE=restored",
             image],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        while subprocess.run(
            [*client, "-e", "SELECT 1", "restored"], check=False, capture_output=True
        ).returncode:  # fmt: skip
            time.sleep(0.1)
        pipeline = (
            f"set -o pipefail; age -d -i {identity} {whole} | zstd -q -d | {' '.join(client)} --binary-mode restored"
        )
        subprocess.run(["bash", "-c", pipeline], check=True)
        tables = ", ".join(f"orders_{part}" for part in range(TABLES))
        subprocess.run(
            [*client, "-e", f"CHECKSUM TABLE {tables} EXTENDED", "restored"], check=True, stdout=subprocess.DEVNULL
        )
        return time.monotonic() - began
    finally:
        subprocess.run(["docker", "rm", "-fv", name], check=False, stdout=subprocess.DEVNULL)
        whole.unlink(missing_ok=True)


def run() -> Iterator[str]:
    with backed_up(engine="mariadb", version=VERSION) as (project, folder):
        _fill(project, BYTES)
        yield from _measure(project, folder)


def _measure(project: Project, folder: Path) -> Iterator[str]:
    raw, ours, raw_proofs, proofs, grown, size = [], [], [], [], 0, 1
    for _ in range(ROUNDS):
        seconds, size = _raw_backup(project, folder)
        raw.append(seconds)
        seconds, backup, more = _our_backup(project)
        ours.append(seconds)
        proof, again = _our_proof(backup)
        proofs.append(proof)
        grown = max(grown, more, again)
        raw_proofs.append(_raw_proof(project, backup, folder))
    told = (backup.dump_bytes or 0) / 2**30
    yield (
        f"MariaDB {VERSION}: backup to stored, {told:.2f} GiB of dump, {size / 2**20:.0f} MiB compressed by hand,"
        f" {ROUNDS} pairs: {statistics.median(ours):.1f} s against {statistics.median(raw):.1f} s"
    )
    yield f"proof by restoring: {statistics.median(proofs):.1f} s against {statistics.median(raw_proofs):.1f} s"
    yield f"growth of the worker: {grown / 2**20:.0f} MiB"
