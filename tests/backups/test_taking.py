"""Backups of real PostgreSQL servers: what is stored is what was there, and whatever happens, the row says what is true."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from backups.archive import Opener
from backups.models import Backup, BackupStatus, BackupTrigger, StorageTarget
from backups.operations import keys, storages, taking, taking_steps
from backups.operations.restoring_data import read_manifest
from projects import domain, registry
from projects.engines import framing
from projects.models import Database, Operation, OperationLock, Project
from projects.operations import wiring
from projects.operations.stages import Stage
from tests.engines.copies import docker_copy_server
from tests.engines.test_copies_postgresql import HOSTILE
from tests.faults.conftest import VERSION, Site, _fresh, docker_site  # noqa: F401

pytestmark = pytest.mark.docker


def begin(project: Project, **more: Any) -> tuple[Backup, Operation]:
    with transaction.atomic():
        backup = taking.backup_begin(
            project, **{"trigger": BackupTrigger.MANUAL, "created_by_label": "test", "verify": False, **more}
        )
    return backup, Operation.objects.get(pk=backup.operation_id)


def ended(site: Site, backup: Backup, operation: Operation, seconds: float = 120) -> Backup:
    site.finish(operation, seconds)
    backup.refresh_from_db()
    return backup


def stored(site: Site, project: Project, **more: Any) -> Backup:
    backup, operation = begin(project, **more)
    ended(site, backup, operation)
    told = [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert operation.state == "succeeded", (operation.error, told)
    assert backup.status == BackupStatus.STORED
    return backup


def objects(target: StorageTarget) -> list[str]:
    return [o.key for o in storages.storage_of(target).objects("") if not o.key.startswith("novastack-owner")]


def nothing_left(site: Site, project: Project, root: Path) -> None:
    """No tool, no login of a tool, no lock, no unfinished object."""
    found = subprocess.run(
        ["docker", "ps", "-a", "--format", "{{.Names}}", "--filter", "name=nvs-tool-"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    names = {f"nvs-tool-{o.pk}-dump" for o in Operation.objects.filter(kind="backup")}
    assert not names & set(found)
    assert not OperationLock.objects.exists()
    assert list(root.rglob("*.tmp")) == []
    with site.client.administrator(project) as session:
        assert session.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE '%copy'").fetchall() == []


def archive_of(backup: Backup) -> bytes:
    storage = storages.storage_of(backup.storage)
    with contextlib.closing(
        Opener(
            storage.open(backup.object_key), keys.identities_of(backup.organization_id), compressed=backup.compressed,
            sha256=backup.sha256,
        )
    ) as opener:  # fmt: skip
        return b"".join(opener)


def restored_elsewhere(archive: bytes, names: domain.TenantNames) -> domain.Fingerprint:
    """Into another server by hand: no code of backups takes part."""
    engine = registry.engine("postgresql")
    with docker_copy_server(engine, VERSION) as server:
        server.make(names, "t" + "x" * 20)
        tool = domain.Credentials(names.tool, "some-password", names.database)
        with engine.admin(server.endpoint, server.admin) as admin:
            admin.admit_tool(names, tool.username, tool.password)
        side = server.side(tool)
        stage = Stage("restore", server.runtime.run_tool(
            "nvs-tool-by-hand", side.image, engine.restore(side.place, tool), beside=side.handle
        ))  # fmt: skip
        stage.listen()
        with contextlib.closing(server.runtime.stdin_of(stage.tool)) as sink:
            for first in range(0, len(archive), framing.PIECE_BYTES):
                sink.write(framing.frame(archive[first : first + framing.PIECE_BYTES]))
            sink.write(framing.END)
            sink.flush()
        end = stage.tool.wait(60)
        assert end.exit_code == 0, stage.words()
        stage.end()
        engine.finish_copy(server.endpoint, tool, names)
        return engine.fingerprint(server.endpoint, tool)


def fill(site: Site, project: Project, rows: int) -> None:
    """About 0.5 KB a row, that zstd can't do much about."""
    with site.login(project) as session:
        session.execute(
            "CREATE TABLE big AS SELECT i, (SELECT string_agg(md5(random()::text || i || j), '') FROM generate_series(1, 15) j)"
            f" AS t FROM generate_series(1, {rows}) i"
        )


@contextlib.contextmanager
def beside(act: Callable[[], None]) -> Iterator[None]:
    """`act` in a thread with a database connection of its own."""

    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)


def when_under_way(backup: Backup, act: Callable[[], None]) -> Callable[[], None]:
    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if Backup.objects.filter(pk=backup.pk, progress_bytes__gt=0).exists():
                act()
                return
            time.sleep(0.05)

    return wait


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taking_steps, "GUARD_SECONDS", 0.2)


def test_what_is_stored_is_what_was_there(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:  # noqa: F811
    site = docker_site
    project = site.ready(username="shop_app", database_name="shop")
    with site.login(project) as session:
        session.execute(HOSTILE)
    with site.client.administrator(project) as superuser:
        superuser.execute("ALTER DATABASE shop SET app.x = 'it''s'; COMMENT ON DATABASE shop IS 'ours'")
    backup = stored(site, project, label="first")
    assert backup.object_key == f"{wiring.install_id()}/{project.organization_id}/{backup.pk}/1"
    assert objects(target) == [backup.object_key, backup.manifest_key]
    manifest = read_manifest(backup)
    assert (manifest.engine, manifest.version, manifest.backup) == ("postgresql", project.version, str(backup.pk))
    assert manifest.tool.startswith(f"pg_dump {project.version}")
    assert manifest.around["comment"] == "ours"
    assert ["", True, "app.x", "it's"] in [list(s) for s in manifest.around["settings"]]
    names = wiring.tenant_names(Database.objects.get(project=project))
    assert (manifest.names["login"], manifest.names["group"]) == (names.login, names.group)
    assert manifest.contents is not None
    archive = archive_of(backup)
    assert archive.startswith(b"PGDMP")
    assert manifest.contents.differences(restored_elsewhere(archive, names)) == []
    assert (backup.rows, backup.tables) == (manifest.contents.rows, len(manifest.contents.tables))
    assert backup.rows > 1500
    assert backup.dump_bytes == manifest.dump["bytes"] == len(archive)
    assert 0 < backup.size_bytes < backup.dump_bytes
    assert backup.encrypted and backup.compressed and backup.key_ids == keys.recipients_of(project.organization_id)
    assert backup.database_bytes > 1 << 20 and backup.server_version.startswith(project.version)
    assert backup.started_at and backup.finished_at and backup.progress_bytes > 0
    assert any("materialized" in note for note in backup.notes), backup.notes
    assert site.rows_of(project) == 1000
    nothing_left(site, project, backup_root)
    assert not (backup_root / "here" / backup.object_key).read_bytes().count(b"PGDMP")
