"""What the benches of backups share whose contents are told from the dump's own stream: pairs of ours and by hand, what
hashing costs by itself, and by how much the worker grew. No bound: the figures are recorded.
"""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from backups.models import Backup
from backups.operations import keys, storages
from bench.backups import _our_backup, _our_proof, backed_up
from novastack.common.secrets import random_password
from projects import domain, registry
from projects.models import Database, DatabaseServer, Project, RoleKind
from projects.operations import wiring

_READ_BYTES = 1 << 20


class Product(ABC):
    title: str
    engine: str
    version: str

    @abstractmethod
    def fill(self, project: Project, size: int) -> None:
        """About `size` bytes of rows, of which a third is noise."""

    @abstractmethod
    def dump(self, project: Project, target: Path, *, compress: bool) -> float:
        """Seconds of a dump by hand, by the Docker CLI, into that file (`/dev/null`: it stays beside the server)."""

    @abstractmethod
    def prove(self, project: Project, stored: Path, identity: Path) -> float:
        """Seconds of a server started by hand, into which `age -d | zstd -d` restores, and a sum over all that is in it."""

    @abstractmethod
    def reader(self) -> Callable[[bytes], object]:
        """What hears a dump."""

    def figures(self, size: int, rounds: int) -> Iterator[str]:
        with backed_up(engine=self.engine, version=self.version) as (project, folder):
            self.fill(project, size)
            yield from self._measured(project, folder, rounds)

    def _measured(self, project: Project, folder: Path, rounds: int) -> Iterator[str]:
        raw, ours, raw_proofs, proofs, grown = [], [], [], [], 0
        target, packed = folder / "raw", 1
        for number in range(rounds):
            for raw_first in (number % 2 == 0, number % 2 == 1):
                if raw_first:
                    raw.append(self.dump(project, target, compress=True))
                    packed = target.stat().st_size
                    target.unlink()
                else:
                    seconds, backup, more = _our_backup(project)
                    ours.append(seconds)
                    grown = max(grown, more)
            seconds, more = _our_proof(backup)
            proofs.append(seconds)
            grown = max(grown, more)
            raw_proofs.append(self._prove(project, backup, folder))
        told = backup.dump_bytes or 0
        yield (
            f"{self.title} {self.version}: backup to stored, {told / 2**20:.0f} MiB of dump, {packed / 2**20:.0f} MiB"
            f" compressed by hand ({told / packed:.1f} : 1), {backup.rows} rows, {rounds} pairs: {_ratio(ours, raw)}"
        )
        yield f"proof by restoring, {rounds} pairs: {_ratio(proofs, raw_proofs)}"
        hashed, dumped = self._hash_cost(project, target)
        yield (
            f"reading and hashing the dump by itself: {hashed:.1f} s ({told / 2**20 / hashed:.0f} MiB/s), the dump by itself"
            f" {dumped:.1f} s: {hashed / dumped:.2f} x"
        )
        yield f"growth of the worker: {grown / 2**20:.0f} MiB"

    def _prove(self, project: Project, backup: Backup, folder: Path) -> float:
        whole, identity = folder / "stored.age", folder / "identity.txt"
        with storages.storage_of(backup.storage).open(backup.object_key) as source, whole.open("wb") as out:
            while piece := source.read(_READ_BYTES):
                out.write(piece)
        identity.write_text(keys.identities_of(backup.organization_id)[0])
        try:
            return self.prove(project, whole, identity)
        finally:
            whole.unlink(missing_ok=True)

    def _hash_cost(self, project: Project, target: Path) -> tuple[float, float]:
        """Seconds of this process for all of the dump's text, and of a dump to nowhere."""
        dumped = self.dump(project, Path("/dev/null"), compress=False)
        self.dump(project, target, compress=False)
        hear, began = self.reader(), time.process_time()
        with target.open("rb") as source:
            while piece := source.read(_READ_BYTES):
                hear(piece)
        hashed = time.process_time() - began
        target.unlink()
        return hashed, dumped


def _ratio(ours: list[float], raw: list[float]) -> str:
    mine, theirs = statistics.median(ours), statistics.median(raw)
    return f"{mine:.1f} s against {theirs:.1f} s: {theirs / mine:.2f} x the raw speed"


def admitted(project: Project) -> tuple[DatabaseServer, domain.Credentials]:
    """A tool's login of its own."""
    database = Database.objects.select_related("server").get(project=project, slot="current")
    names, password = wiring.tenant_names(database), random_password()
    with wiring.admin_session(registry.engine(project.engine), database.server) as admin:
        admin.admit_tool(names, names.tool, password)
    return database.server, domain.Credentials(names.tool, password, names.database)


def tenant(project: Project) -> domain.Credentials:
    database = Database.objects.get(project=project, slot="current")
    login = database.roles.get(kind=RoleKind.LOGIN)
    assert login.secret is not None
    return domain.Credentials(login.name, login.secret.open(), database.name)
