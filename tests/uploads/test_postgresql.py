"""Uploads of PostgreSQL dumps on real servers: what was taken elsewhere comes in whole, and what is hostile runs nowhere."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import zstandard

from backups.models import Backup, StorageTarget
from projects.engines import postgresql_foreign
from projects.engines.foreign import Left
from projects.models import DatabaseServer, Operation, OperationLock, ServerKind
from projects.operations.wiring import tenant_names
from tests.engines.test_copies_postgresql import HOSTILE
from tests.factories import api_client
from tests.faults.conftest import Site
from tests.restores.taken import take
from tests.uploads.sent import pg_dump, pg_dump_of_image, send, taken, told

pytestmark = pytest.mark.docker


def nothing_left(root: Path) -> None:
    """Of what was uploaded, neither a file nor a server nor a hold on anything."""
    assert not [path for path in root.rglob("*") if path.is_file() and "source" in path.name]
    assert not DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).exists()
    assert not OperationLock.objects.filter(operation__kind="import_upload").exists()


def script_in(archive: bytes) -> bytes:
    assert postgresql_foreign.recognise(archive[:4096], "18") == "custom"
    return b"".join(postgresql_foreign.script_of([archive], "custom", Left()))


def test_everything_goes_round_in_each_format(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
    site = docker_site
    source = site.ready()
    with site.login(source) as session:
        session.execute(HOSTILE)
    wanted = take(source).manifest["contents"]
    plain = pg_dump(source)
    files = {
        "custom": pg_dump(source, "--format=custom"),
        "custom with lz4": pg_dump_of_image(source, "--format=custom", "--compress=lz4"),
        "tar": pg_dump(source, "--format=tar"),
        "plain.zst": zstandard.compress(plain),
        "inserts.gz": gzip.compress(pg_dump(source, "--inserts", "--rows-per-insert=50")),
    }
    within_zstd = pg_dump_of_image(source, "--format=custom", "--compress=zstd")
    assert script_in(within_zstd) == script_in(files["custom"])
    for name, data in files.items():
        backup, operation = taken(site, source, data, filename=name)
        assert operation.state == "succeeded", (name, told(operation))
        assert (backup.status, backup.trigger, backup.trusted, backup.label) == ("stored", "upload", True, name)
        assert backup.notes[0] == f"Made of an uploaded file ({name})."
        found = backup.manifest["contents"]
        unequal = {table for table, told in wanted["tables"].items() if found["tables"].get(table) != told}
        # pg_dump itself writes -0 without quotes into INSERTs, where it becomes 0.
        assert unequal == ({table for table in unequal if "ta;ble" in table} if "inserts" in name else set()), name
        facts = {(kind, item): state for kind, item, state in found["facts"]}
        mine = {(kind, item): state for kind, item, state in wanted["facts"]}
        # Rights of others are left out, and said.
        assert {kind for kind, _ in mine.keys() ^ facts.keys()} <= {"default privileges"}, name
        assert any("rights of other roles" in note for note in backup.notes)
        nothing_left(backup_root)


GOOD = b"CREATE TABLE kept (a int);\nINSERT INTO kept SELECT generate_series(1, 500);\n"


def test_what_is_hostile_or_broken_runs_nowhere(
    process_site: Site, target: StorageTarget, backup_root: Path, tmp_path: Path
) -> None:
    site = process_site
    source = site.ready()
    before = site.rows_of(source)
    mark = tmp_path / "ran"
    tmp_path.chmod(0o777)
    touch = f"touch {mark}".encode()
    control = tenant_names(source.databases.get(slot="current")).control.encode()  # a definer's function could stay its
    whole = pg_dump(source, "--format=custom")
    lying = whole + b"\x01\x00\xff\xff\x00\x00 and more"
    cases: dict[str, tuple[bytes, str]] = {
        "shell": (GOOD + b"\\! %b\n" % touch, "upload_meta_command"),
        "program": (GOOD + b"COPY kept FROM PROGRAM '%b';\n" % touch, "upload_statement_failed"),
        "to program": (GOOD + b"COPY kept TO PROGRAM '%b';\n" % touch, "upload_statement_failed"),
        "superuser": (GOOD + b"DO $$ BEGIN EXECUTE 'ALTER ROLE CURRENT_USER SUPERUSER'; END $$;\n", "upload_statement_failed"),
        "control role": (GOOD + b"SELECT set_config('role', '%b', false);\n" % control, "upload_statement_failed"),
        "untrusted": (GOOD + b"CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'system';\n", "upload_statement_failed"),
        "lying archive": (lying, "upload_damaged"),
        "half an archive": (whole[: len(whole) // 2], "upload_truncated"),
    }  # fmt: skip
    for name, (data, code) in cases.items():
        backup, operation = taken(site, source, data)
        assert backup.error is not None, (name, told(operation))
        assert (operation.state, backup.status, backup.error["code"]) == ("failed", "failed", code), (
            name,
            backup.error,
        )
        nothing_left(backup_root)
        if code == "upload_statement_failed":
            assert backup.error["detail"].startswith("Line 3: "), backup.error
    assert not mark.exists()
    assert site.rows_of(source) == before
    site.check_exactly(source)


def test_it_is_restored_into_a_new_project_as_any_backup(process_site: Site, target: StorageTarget) -> None:
    site = process_site
    source = site.ready()
    backup, operation = taken(site, source, pg_dump(source, "--format=custom"), filename="shop.dump")
    assert operation.state == "succeeded", told(operation)
    assert (backup.status, backup.rows) == ("stored", take(source).rows)
    proof = Operation.objects.get(kind="verify", params__backup=str(backup.pk))
    assert site.finish(proof, 120).state == "succeeded", told(proof)
    backup.refresh_from_db()
    assert backup.status == "verified"
    answer = api_client(site.team.alice).post(
        f"/api/v1/backups/{backup.pk}/restore/", {"target": "new_project", "name": "Brought"}, format="json"
    )
    assert answer.status_code == 202, answer.content
    made = Operation.objects.get(pk=answer.json()["operation"]["id"])
    assert site.finish(made, 120).state == "succeeded", told(made)
    project = source._meta.model.objects.get(name="Brought")
    assert site.rows_of(project) == site.rows_of(source)


def test_cancelled_and_killed_in_the_middle_nothing_is_lost(
    process_site: Site, target: StorageTarget, backup_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(backup_root))  # the workers' as well
    site = process_site
    source = site.ready()
    slow = GOOD + b"SELECT pg_sleep(600);\n"
    answer = send(site, source, slow)
    operation = Operation.objects.get(pk=answer.json()["operation"]["id"])
    site.die_at("import_upload:load:later:1")
    site.expire_lease(operation)
    worker = site.worker()
    client = api_client(site.team.alice)
    assert client.post(f"/api/v1/operations/{operation.pk}/cancel/").status_code in {200, 202}
    assert site.wait_ended(operation, 120).state == "cancelled"
    worker.kill()
    backup = Backup.objects.get(pk=answer.json()["id"])
    assert backup.error is not None
    assert (backup.status, backup.error["code"], backup.size_bytes) == ("failed", "cancelled", None)
    nothing_left(backup_root)
    site.check_exactly(source)
