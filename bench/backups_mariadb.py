"""Backups and proofs of MariaDB against the same by hand: `mariadb-dump | zstd` driven by the Docker CLI, and a server
started by hand into which `age -d | zstd -d | mariadb` restores and whose tables are then summed (CHECKSUM TABLE).

No bound: the figures are recorded. Ours reads the dump's text as it streams, and dumps the copy again to compare. `BENCH_BYTES`
(default 512 MiB), `BENCH_ROUNDS` (1), `BENCH_VERSION` (11.8).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pymysql

from bench.backups import LEVEL, THREADS
from bench.streamed import Product, admitted, tenant
from projects.engines.mysql_moment import DumpReader
from projects.models import DatabaseServer, Endpoint, Project

BYTES = int(os.environ.get("BENCH_BYTES", str(512 << 20)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
VERSION = os.environ.get("BENCH_VERSION", "11.8")
ROW_BYTES = 196  # of the text that a dump has for it
TABLES = 4


class MariaDB(Product):
    title, engine, version = "MariaDB", "mariadb", VERSION

    def fill(self, project: Project, size: int) -> None:
        login, endpoint = tenant(project), Endpoint.objects.get(project=project)
        with (
            pymysql.connect(
                host=endpoint.host, port=endpoint.port, database=login.database, user=login.username,
                password=login.password, autocommit=True, read_timeout=600,
            ) as session,
            session.cursor() as cursor,
        ):  # fmt: skip
            each = size // ROW_BYTES // TABLES
            for part in range(TABLES):
                cursor.execute(
                    f"CREATE TABLE orders_{part} (id BIGINT PRIMARY KEY, customer INT, note VARCHAR(200), token"
                    " VARCHAR(100), at DATETIME)"
                )
                cursor.execute(
                    f"INSERT INTO orders_{part} SELECT seq, seq % 100000,"
                    " CONCAT('order of the year 2026, paid and shipped, number ', seq),"
                    " CONCAT(MD5(RAND()), MD5(seq % 5000), MD5(RAND())), NOW() - INTERVAL seq SECOND"
                    f" FROM seq_1_to_{each}"
                )

    def dump(self, project: Project, target: Path, *, compress: bool) -> float:
        server, login = admitted(project)
        script = (
            "mariadb-dump --host=127.0.0.1 --loose-disable-ssl-verify-server-cert --user=$MUSER --single-transaction --quick"
            " --routines --triggers --events --hex-blob $MDATABASE"
        )
        if compress:
            script += f" | zstd -q -{LEVEL} -T{THREADS}"
        if str(target) == os.devnull:
            script += f" >{os.devnull}"
        with target.open("wb") as out, tempfile.NamedTemporaryFile("w", suffix=".env") as env:
            env.write(f"MYSQL_PWD={login.password}\nMUSER={login.username}\nMDATABASE={login.database}\n")
            env.flush()
            began = time.monotonic()
            subprocess.run(
                ["docker", "run", "--rm", "-i", "--network", f"container:{server.handle.name}", "--env-file", env.name,
                 "--entrypoint", "bash", server.image_digest or server.image, "-o", "pipefail", "-c", script],
                check=True, stdout=out,
            )  # fmt: skip
            if compress:
                os.fsync(out.fileno())
            return time.monotonic() - began

    def prove(self, project: Project, stored: Path, identity: Path) -> float:
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        image, name = server.image_digest or server.image, f"bench-proof-{secrets.token_hex(4)}"
        client = ["docker", "exec", "-i", "-e", "MYSQL_PWD=bench", name, "mariadb", "-uroot", "-h127.0.0.1"]
        began = time.monotonic()
        try:
            subprocess.run(
                ["docker", "run", "-d", "--name", name, "-e", "MARIADB_ROOT_PASSWORD=bench", "-e",
                 "MARIADB_DATABASE=restored", image],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            while subprocess.run(
                [*client, "-e", "SELECT 1", "restored"], check=False, capture_output=True
            ).returncode:  # fmt: skip
                time.sleep(0.1)
            restore = f"age -d -i {identity} {stored} | zstd -q -d | {' '.join(client)} --binary-mode restored"
            subprocess.run(["bash", "-o", "pipefail", "-c", restore], check=True)
            tables = ", ".join(f"orders_{part}" for part in range(TABLES))
            subprocess.run(
                [*client, "-e", f"CHECKSUM TABLE {tables} EXTENDED", "restored"], check=True, stdout=subprocess.DEVNULL
            )
            return time.monotonic() - began
        finally:
            subprocess.run(["docker", "rm", "-fv", name], check=False, stdout=subprocess.DEVNULL)

    def reader(self) -> Callable[[bytes], object]:
        return DumpReader().feed


def run() -> Iterator[str]:
    yield from MariaDB().figures(BYTES, ROUNDS)
