"""Backups and proofs of FerretDB against the same by hand: `mongodump | zstd` driven by the Docker CLI, and a server started by
hand into which `age -d | zstd -d | mongorestore` restores and which is then dumped into a sum (it has no `dbHash`).

No bound: the figures are recorded. Ours reads the archive's documents as they stream, and dumps the copy again to compare; its
image has no zstd, so that the machine's own compresses by hand, and the worker with us. `BENCH_BYTES` (default 16 MiB: what a
server of half a core gives in half a minute), `BENCH_ROUNDS` (1), `BENCH_VERSION` (1.24).
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.backups import LEVEL, THREADS
from bench.streamed import Product, admitted, tenant
from projects.engines.mongodb_archive import ArchiveReader
from projects.engines.mongodb_session import connect
from projects.models import DatabaseServer, Project

BYTES = int(os.environ.get("BENCH_BYTES", str(16 << 20)))
ROUNDS = int(os.environ.get("BENCH_ROUNDS", "1"))
VERSION = os.environ.get("BENCH_VERSION", "1.24")
DOCUMENT_BYTES = 650
COLLECTIONS = 4
_BATCH = 1000


class FerretDB(Product):
    title, engine, version = "FerretDB", "ferretdb", VERSION

    def fill(self, project: Project, size: int) -> None:
        login, server = tenant(project), DatabaseServer.objects.get(project_uuid=project.pk)
        each = size // DOCUMENT_BYTES // COLLECTIONS
        chance = random.Random(6)
        with connect(server.control_endpoint, login, timeout_seconds=10, statement_seconds=600) as session:
            for part in range(COLLECTIONS):
                for first in range(0, each, _BATCH):
                    documents = [_document(number, chance) for number in range(first, min(first + _BATCH, each))]
                    session.run(login.database, {"insert": f"orders_{part}", "documents": documents, "ordered": True})

    def dump(self, project: Project, target: Path, *, compress: bool) -> float:
        server, login = admitted(project)
        with target.open("wb") as out, tempfile.TemporaryDirectory() as folder:
            options, script = Path(folder) / "tool.yml", f"mongodump {_TO} --username={login.username}"
            options.write_text(f"password: {login.password}\n")
            script += f" --authenticationDatabase={login.database} --db={login.database} --archive --quiet"
            if server.control_endpoint.ca_pem:
                script += " --ssl --tlsInsecure"
            if str(target) == os.devnull:
                script += f" >{os.devnull}"
            line = (
                f"docker run --rm -i --network container:{server.handle.name} -v {options}:/tool.yml:ro --entrypoint sh"
                f" {server.image_digest or server.image} -c '{script}'"
            )
            if compress:
                line += f" | zstd -q -{LEVEL} -T{THREADS}"
            began = time.monotonic()
            subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, stdout=out)
            if compress:
                os.fsync(out.fileno())
            return time.monotonic() - began

    def prove(self, project: Project, stored: Path, identity: Path) -> float:
        server = DatabaseServer.objects.get(project_uuid=project.pk)
        image, name = server.image_digest or server.image, f"bench-proof-{secrets.token_hex(4)}"
        login = "--host=127.0.0.1 --username=root --password=bench --authenticationDatabase=admin --quiet"
        login += " --authenticationMechanism=SCRAM-SHA-256"
        began = time.monotonic()
        try:
            subprocess.run(
                ["docker", "run", "-d", "--name", name, "-e", "FERRETDB_SETUP_USERNAME=root", "-e",
                 "FERRETDB_SETUP_PASSWORD=bench", "-e", "FERRETDB_SETUP_DATABASE=admin", image],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            knock = ["docker", "exec", name, "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/27017"]
            while subprocess.run(knock, check=False, capture_output=True).returncode:
                time.sleep(0.1)
            restore = (
                f"age -d -i {identity} {stored} | zstd -q -d | docker exec -i {name} mongorestore {login} --archive"
                " --noIndexRestore"
            )
            subprocess.run(["bash", "-o", "pipefail", "-c", restore], check=True)
            database = tenant(project).database
            check = f"docker exec {name} mongodump {login} --db={database} --archive | sha256sum"
            subprocess.run(["bash", "-o", "pipefail", "-c", check], check=True, stdout=subprocess.DEVNULL)
            return time.monotonic() - began
        finally:
            subprocess.run(["docker", "rm", "-fv", name], check=False, stdout=subprocess.DEVNULL)

    def reader(self) -> Callable[[bytes], object]:
        return ArchiveReader().feed


_TO = "--config=/tool.yml --host=127.0.0.1 --port=27017 --authenticationMechanism=SCRAM-SHA-256"


def _document(number: int, chance: random.Random) -> dict[str, Any]:
    return {
        "_id": number, "customer": number % 100_000, "paid": number % 3 == 0,
        "note": f"order of the year 2026, paid and shipped, number {number}",
        "token": chance.randbytes(180),
        "items": [
            {"article": article, "pieces": number % 7, "price": 12.5, "name": f"article {article} of the catalogue"}
            for article in range(4)
        ],
    }  # fmt: skip


def run() -> Iterator[str]:
    yield from FerretDB().figures(BYTES, ROUNDS)
