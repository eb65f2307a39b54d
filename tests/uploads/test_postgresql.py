"""Uploads of PostgreSQL dumps on real servers: what was taken elsewhere comes in whole, and what is hostile runs nowhere."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import zstandard

from backups.models import Backup, StorageTarget
from projects.models import DatabaseServer, Operation, OperationLock, ServerKind
from tests.engines.test_copies_postgresql import HOSTILE
from tests.factories import api_client
from tests.faults.conftest import Site
from tests.restores.taken import take
from tests.uploads.sent import pg_dump, send, taken, told

pytestmark = pytest.mark.docker


def nothing_left(root: Path) -> None:
    """Of what was uploaded, neither a file nor a server nor a hold on anything."""
    assert not [path for path in root.rglob("*") if path.is_file() and "source" in path.name]
    assert not DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).exists()
    assert not OperationLock.objects.exists()


def test_everything_goes_round_in_each_format(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
    site = docker_site
    source = site.ready()
    with site.login(source) as session:
        session.execute(HOSTILE)
    wanted = take(source).manifest["contents"]
    plain = pg_dump(source)
    files = {
        "custom": pg_dump(source, "--format=custom"),
        "plain.zst": zstandard.compress(plain),
        "inserts.gz": gzip.compress(pg_dump(source, "--inserts", "--rows-per-insert=50")),
    }
    for name, data in files.items():
        backup, operation = taken(site, source, data, filename=name)
        assert operation.state == "succeeded", (name, told(operation))
        assert (backup.status, backup.trigger, backup.trusted, backup.label) == ("stored", "upload", True, name)
        assert backup.notes[0] == f"Made of an uploaded file ({name})."
        found = backup.manifest["contents"]
        assert found["tables"] == wanted["tables"], name
        facts = {(kind, item): state for kind, item, state in found["facts"]}
        mine = {(kind, item): state for kind, item, state in wanted["facts"]}
        assert {key for key in mine.keys() | facts.keys() if mine.get(key) != facts.get(key)} == set(), name
        nothing_left(backup_root)
