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
from backups.storage.base import StorageError
from backups.storage.filesystem import _FileWriter
from novastack.common.clock import now
from novastack.common.errors import OperationInProgress, QuotaExceeded
from projects import domain, registry
from projects.engines import framing
from projects.engines.postgresql_moment import PostgreSQLMoment
from projects.models import Database, DatabaseServer, Operation, OperationLock, Project
from projects.operations import wiring
from projects.operations.base import LeaseLost
from projects.operations.stages import Stage
from projects.services import project_delete
from tests.engines.copies import docker_copy_server
from tests.engines.test_copies_postgresql import HOSTILE
from tests.faults.conftest import VERSION, Site
from tests.moves.test_moves_pools import all_done

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
        with contextlib.closing(stage.tool.stdin) as sink:
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


def test_what_is_stored_is_what_was_there(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
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


def test_cancelled_in_the_middle(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
    settings: Any,
) -> None:
    site = docker_site
    project = site.ready()
    fill(site, project, 8000)
    settings.NOVASTACK_BACKUP_RATE_BYTES = 400_000
    backup, operation = begin(project)
    with pytest.raises(OperationInProgress):
        begin(project)

    def cancel() -> None:
        Operation.objects.filter(pk=operation.pk).update(cancel_requested_at=now())

    with beside(when_under_way(backup, cancel)):
        ended(site, backup, operation)
    assert operation.state == "cancelled"
    assert (backup.status, backup.error["code"]) == ("failed", "cancelled")
    assert 0 < backup.progress_bytes < 4_000_000
    assert backup.finished_at and not backup.sha256
    assert objects(target) == []
    nothing_left(site, project, backup_root)
    settings.NOVASTACK_BACKUP_RATE_BYTES = 0
    assert stored(site, project).rows > 9000  # and the next one is none the worse


def test_a_rate_is_kept(docker_site: Site, target: StorageTarget, settings: Any) -> None:
    site = docker_site
    project = site.ready()
    fill(site, project, 8000)
    settings.NOVASTACK_BACKUP_RATE_BYTES = 1 << 20
    began = time.monotonic()
    backup = stored(site, project)
    assert backup.dump_bytes > 3_500_000
    assert time.monotonic() - began > backup.dump_bytes / (1 << 20) - 1
    assert archive_of(backup).startswith(b"PGDMP")


@pytest.mark.parametrize("whom", ["tool", "client", "server"])
def test_killed_in_the_middle_it_is_made_again(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
    settings: Any,
    whom: str,
) -> None:
    """The tool's container, pg_dump in it, or the server: another attempt, and of the first nothing is left."""
    site = docker_site
    project = site.ready()
    fill(site, project, 32_000)  # more than is read ahead of the rate
    settings.NOVASTACK_BACKUP_RATE_BYTES = 2_000_000
    backup, operation = begin(project)
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    tool = f"nvs-tool-{operation.pk}-dump"

    def kill() -> None:
        if whom == "client":
            pids = subprocess.run(
                ["docker", "top", tool, "-eo", "pid,comm"], capture_output=True, text=True, check=True
            ).stdout
            pid = next(line.split()[0] for line in pids.splitlines() if "pg_dump" in line)
            subprocess.run(["kill", "-9", pid], check=True)
        else:
            subprocess.run(
                ["docker", "kill", tool if whom == "tool" else server.handle.name], check=True, capture_output=True
            )
        settings.NOVASTACK_BACKUP_RATE_BYTES = 0

    with beside(when_under_way(backup, kill)):
        ended(site, backup, operation, 180)
    told = [(s.name, s.state, s.detail) for s in operation.steps.all()]
    assert operation.state == "succeeded", (operation.error, told)
    said = list(operation.events.values_list("message", flat=True))
    assert any("went away" in text or "killed" in text for text in said), said
    assert backup.attempt == 2
    assert objects(target) == [backup.object_key, backup.manifest_key]
    manifest = read_manifest(backup)
    assert manifest.contents is not None and manifest.contents.tables["public.big"].rows == 32_000
    assert len(archive_of(backup)) == backup.dump_bytes
    nothing_left(site, project, backup_root)


@pytest.fixture
def small_disk(backup_root: Path, target: StorageTarget) -> Iterator[Path]:
    """The target's folder on a disk of 3 MiB."""
    where = backup_root / "here"
    kept = (where / "novastack-owner").read_bytes()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)], check=True)
    (where / "novastack-owner").write_bytes(kept)
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_storage_says_so_and_keeps_nothing(docker_site: Site, small_disk: Path) -> None:
    site = docker_site
    project = site.ready()
    first = stored(site, project)
    fill(site, project, 20000)
    backup, operation = begin(project)
    ended(site, backup, operation, 200)
    assert operation.state == "failed"
    assert (backup.status, backup.error["code"]) == ("failed", "storage_full"), backup.error
    assert objects(backup.storage) == [first.object_key, first.manifest_key]
    nothing_left(site, project, small_disk)
    assert archive_of(first).startswith(b"PGDMP")
    with site.login(project) as session:
        session.execute("DROP TABLE big")
    stored(site, project)


def test_what_the_quota_does_not_hold_is_cut_off(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
) -> None:
    site = docker_site
    project = site.ready()
    fill(site, project, 8000)
    organization = site.team.organization
    organization.max_backup_bytes = 1_000_000
    organization.save()
    backup, operation = begin(project)
    ended(site, backup, operation)
    assert (operation.state, backup.status, backup.error["code"]) == ("failed", "failed", "backup_too_large")
    assert not backup.error["retryable"]
    assert objects(target) == []
    safety = stored(site, project, trigger=BackupTrigger.SAFETY)  # what protects is taken all the same
    assert safety.size_bytes > 1_000_000
    with pytest.raises(QuotaExceeded):
        begin(project)
    nothing_left(site, project, backup_root)


def test_a_manifest_that_was_written_is_the_commit(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker dies after it wrote the manifest and before it could say so; the next one sees that it is done."""
    site = docker_site
    project = site.ready()
    backup, operation = begin(project)
    save, died = taking_steps._save, []

    def dying(ctx: Any, row: Backup, **values: Any) -> None:
        if values.get("status") == "stored" and not died:
            died.append(True)
            raise LeaseLost
        save(ctx, row, **values)

    monkeypatch.setattr(taking_steps, "_save", dying)
    site.finish(operation, 2)
    backup.refresh_from_db()
    assert died and backup.status == "dumping"
    written = (backup_root / "here" / backup.manifest_key).stat()
    site.expire_lease(operation)
    ended(site, backup, operation)
    assert (operation.state, backup.status, backup.attempt) == ("succeeded", "stored", 1)
    again = (backup_root / "here" / backup.manifest_key).stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    read_manifest(backup)


def test_a_manifest_that_was_written_is_not_enough(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker dies after it wrote the manifest, and the dump is another one by then, of the same size."""
    site = docker_site
    project = site.ready()
    backup, operation = begin(project)
    save, died = taking_steps._save, []

    def dying(ctx: Any, row: Backup, **values: Any) -> None:
        if values.get("status") == "stored" and not died:
            died.append(True)
            path = backup_root / "here" / row.object_key
            path.chmod(0o600)
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            raise LeaseLost
        save(ctx, row, **values)

    monkeypatch.setattr(taking_steps, "_save", dying)
    site.finish(operation, 2)
    site.expire_lease(operation)
    ended(site, backup, operation)
    assert died
    assert (operation.state, backup.status, backup.error["code"]) == ("failed", "failed", "object_missing")
    nothing_left(site, project, backup_root)


def test_an_object_that_is_gone_before_the_manifest_fails_it(
    docker_site: Site,
    target: StorageTarget,
    backup_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = docker_site
    project = site.ready()
    backup, operation = begin(project)
    commit = taking_steps._commit

    def vanishing(storage: Any, writer: Any, key: str, *more: Any) -> None:
        commit(storage, writer, key, *more)
        storage.delete(key)

    monkeypatch.setattr(taking_steps, "_commit", vanishing)
    ended(site, backup, operation)
    assert (operation.state, backup.status, backup.error["code"]) == ("failed", "failed", "object_missing")
    nothing_left(site, project, backup_root)


def test_a_doubtful_commit_is_settled_by_what_is_there(
    docker_site: Site,
    target: StorageTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer got lost, the object did not. The database's snapshot is over by then, however long it takes."""
    site = docker_site
    project = site.ready()
    commit, lost = _FileWriter.commit, []

    def unanswered(writer: _FileWriter) -> None:
        commit(writer)
        lost.append(1)
        deadline = time.monotonic() + 60
        with site.client.administrator(project) as session:
            while session.execute("SELECT FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'").fetchone():
                assert time.monotonic() < deadline, "the snapshot is still held"
                time.sleep(0.05)
        raise StorageError("storage_unreachable", "The storage did not answer.")

    with monkeypatch.context() as patched:
        patched.setattr(_FileWriter, "commit", unanswered)
        backup = stored(site, project)
    assert backup.attempt == 1 and len(lost) == 2
    read_manifest(backup)
    assert archive_of(backup).startswith(b"PGDMP")


def test_what_takes_too_long_to_read_again_is_taken_anew(
    docker_site: Site,
    target: StorageTarget,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = docker_site
    project = site.ready()
    commit, lost = _FileWriter.commit, []

    def unanswered(writer: _FileWriter) -> None:
        commit(writer)
        if not lost:
            lost.append(1)
            raise StorageError("storage_unreachable", "The storage did not answer.", retryable=True)

    monkeypatch.setattr(_FileWriter, "commit", unanswered)
    monkeypatch.setattr(taking_steps, "_DOUBTED_BYTES", 0)
    backup = stored(site, project)
    assert backup.attempt == 2
    read_manifest(backup)


def test_tables_that_come_and_go_do_not_use_its_attempts_up(
    docker_site: Site, target: StorageTarget, backup_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a table that the snapshot shows is gone before the tool has locked it."""
    site = docker_site
    project = site.ready()
    whole, going = PostgreSQLMoment.begin, [1, 2, 3, 4, 5]
    with site.login(project) as session:
        for number in going:
            session.execute(f"CREATE TABLE going_{number} (id int)")

    def gone(moment: PostgreSQLMoment) -> bytes:
        said = whole(moment)
        if going:
            with site.login(project) as session:
                session.execute(f"DROP TABLE going_{going.pop()}")
        return said

    monkeypatch.setattr(PostgreSQLMoment, "begin", gone)
    monkeypatch.setattr(taking_steps, "_EARLY_SECONDS", 600.0)  # the machine may be busy
    backup, operation = begin(project)
    ended(site, backup, operation)
    assert (backup.status, backup.attempt, going) == ("stored", 6, []), backup.error
    assert operation.steps.get(name="dump").retries == 0
    assert sorted(objects(target)) == sorted([backup.object_key, backup.manifest_key])
    nothing_left(site, project, backup_root)


def test_deletion_of_the_project_cuts_it_short(
    docker_site: Site,
    target: StorageTarget,
    settings: Any,
) -> None:
    site = docker_site
    project = site.ready()
    fill(site, project, 8000)
    settings.NOVASTACK_BACKUP_RATE_BYTES = 400_000
    backup, operation = begin(project)

    def delete() -> None:
        project_delete(principal=site.alice, project=project, final_backup=False)

    with beside(when_under_way(backup, delete)):
        ended(site, backup, operation)
    assert (operation.state, backup.status, backup.error["code"]) == ("cancelled", "failed", "cancelled")
    site.finish(Operation.objects.get(kind="delete"))
    project.refresh_from_db()
    assert project.status == "recycled"
    assert objects(target) == []


def test_one_on_a_pool(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
    site = docker_site
    project = site.create(placement="pool")
    all_done(site, Site.operation(project))
    project.refresh_from_db()
    site.client.fill(project)
    backup = stored(site, project)
    manifest = read_manifest(backup)
    names = wiring.tenant_names(Database.objects.get(project=project))
    assert manifest.names["database"] == names.database
    assert manifest.contents is not None
    assert manifest.contents.differences(restored_elsewhere(archive_of(backup), names)) == []
    assert backup.rows == manifest.contents.rows >= 1000
    nothing_left(site, project, backup_root)


def test_prepared_transactions_are_noted(docker_site: Site, target: StorageTarget) -> None:
    site = docker_site
    project = site.ready()
    with site.client.administrator(project) as superuser:
        superuser.execute("SELECT pg_create_logical_replication_slot('mine', 'pgoutput')")
    with site.login(project) as session:
        session.execute(
            "CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a)"
        )
        session.execute("ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b")
    backup = stored(site, project)
    assert any("Not compared" in note for note in backup.notes), backup.notes
