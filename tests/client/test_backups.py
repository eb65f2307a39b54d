"""Backups by the client, both kinds, against the real server; the objects are sealed for real. Whole journeys on real
databases are in test_real_databases."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from drf_spectacular.generators import SchemaGenerator

import novastack_client
from backups.models import Backup, Restore, StorageKind, StorageTarget
from backups.operations import storages
from novastack_client import Conflict, DeadlineExceeded, Invalid, NotFound, NovaStackError, Unavailable
from projects.models import Project
from tests.backups.rows import make_backup, make_proof, make_restore
from tests.backups.test_api_backups import make
from tests.client.proxy import LOST_ANSWER, LOST_REQUEST, Fault, Proxy
from tests.factories import Team, make_project
from tests.uploads.test_archives import ROWS, custom

DUMP = b"PGDMP" + os.urandom(300_000)


@pytest.fixture
def target(team: Team, settings: Any, tmp_path: Path) -> StorageTarget:
    settings.NOVASTACK_BACKUP_ROOT = str(tmp_path)
    made = StorageTarget(name="this-machine", kind=StorageKind.FILESYSTEM, config={"path": "here"}, is_default=True)
    storage = storages.storage_of(made)
    assert all(check.passed for check in storage.check())
    storages.claim(made, storage)
    made.save()
    return made


@pytest.fixture
def project(team: Team, target: StorageTarget) -> Project:
    return make_project(team.alice, team.organization)


def test_taken_listed_kept_and_removed(nova: Any, proxy: Proxy, project: Project, target: StorageTarget) -> None:
    proxy.faults.append(LOST_ANSWER)
    made = nova.create_backup(str(project.pk), label="before 2.0", storage="this-machine")
    assert (made.status, made.label, made.trigger, made.verified) == ("queued", "before 2.0", "manual", False)
    assert made.storage.name == "this-machine" and made.operation.kind == "backup"
    assert Backup.objects.count() == 1, "a lost answer takes no second one"
    with pytest.raises(Conflict) as second:
        nova.create_backup(str(project.pk))
    assert second.value.code == "operation_in_progress"
    kept = make(project, target, DUMP)
    assert [b.id for b in nova.list_backups(project_id=str(project.pk))] == [made.id, str(kept.pk)]
    assert [b.id for b in nova.list_backups(status="stored", trigger="manual")] == [str(kept.pk)]
    pinned = nova.pin_backup(str(kept.pk), reason="audit")
    assert (pinned.pinned, pinned.pinned_reason, pinned.sha256) == (True, "audit", kept.sha256)
    assert [b.id for b in nova.list_backups(pinned=True)] == [str(kept.pk)]
    with pytest.raises(Conflict) as refused:
        nova.delete_backup(str(kept.pk))
    assert refused.value.code == "action_not_allowed"
    assert nova.unpin_backup(str(kept.pk)).pinned is False
    assert nova.delete_backup(str(kept.pk)) is None
    assert nova.get_backup(str(kept.pk)).status == "deleting"
    Backup.objects.filter(pk=kept.pk).delete()
    with pytest.raises(NotFound):
        nova.delete_backup(str(kept.pk))
    assert [s.name for s in nova.list_storages()] == ["this-machine"]


def test_fetched_whole_or_not_at_all(nova: Any, proxy: Proxy, project: Project, target: StorageTarget) -> None:
    backup = make(project, target, DUMP)
    file = io.BytesIO(b"head, and what an attempt before left behind")
    file.seek(4)
    proxy.faults.append(LOST_ANSWER)
    assert nova.download_backup(str(backup.pk), file) == len(DUMP)
    assert file.getvalue() == b"head" + DUMP
    stored = io.BytesIO()
    assert nova.download_backup(str(backup.pk), stored, as_stored=True) == backup.size_bytes
    assert hashlib.sha256(stored.getvalue()).hexdigest() == backup.sha256
    untouched = io.BytesIO(b"mine")
    with pytest.raises(NotFound):
        nova.download_backup(str(project.pk), untouched)
    assert untouched.getvalue() == b"mine", "an error is no content"


def test_some_tables_are_fetched_as_sql(nova: Any, proxy: Proxy, project: Project, target: StorageTarget) -> None:
    tables = {"contents": {"tables": {"public.t": [2, "x"], "public.u": [0, "x"]}, "facts": []}}
    backup = make(project, target, custom(0, ROWS), manifest=tables)
    file = io.BytesIO()
    proxy.faults.append(LOST_ANSWER)
    assert nova.download_tables(str(backup.pk), ["t"], file) == len(file.getvalue())
    assert b"CREATE TABLE public.t" in file.getvalue()
    assert file.getvalue().endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    schema = io.BytesIO()
    nova.download_tables(str(backup.pk), [], schema, schemas=["public"])
    assert b"CREATE TABLE public.t" in schema.getvalue()
    assert schema.getvalue().endswith(f"\n-- End of {backup.sha256[:16]}.\n".encode())
    packed = io.BytesIO()
    nova.download_tables(str(backup.pk), ["public.t"], packed, compressed=True)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed.getvalue()) == file.getvalue()
    # Cut off, and closed as if it was whole: begun anew, and an error in the end.
    for compressed, whole in ((False, file.getvalue()), (True, packed.getvalue())):
        again = io.BytesIO()
        cuts = (b"", whole[:-1], whole + b"x", whole[:300] + b"\n-- End.\n")
        proxy.faults += [Fault(True, 200, body=cut) for cut in cuts]
        assert nova.download_tables(str(backup.pk), ["t"], again, compressed=compressed) == len(again.getvalue())
        assert len(again.getvalue()) == len(whole) and not proxy.faults
        proxy.faults += [Fault(True, 200, body=whole[:-1])] * 5
        with pytest.raises(Unavailable) as short:
            nova.download_tables(str(backup.pk), ["t"], again, compressed=compressed)
        assert (short.value.code, short.value.retryable, len(proxy.faults)) == ("download_truncated", True, 0)
    for wrong, code in ((["t", "nowhere"], "unknown"), ([], "required")):
        with pytest.raises(Invalid) as refused:
            nova.download_tables(str(backup.pk), wrong, packed)
        assert (refused.value.errors[0].field, refused.value.errors[0].code) == ("tables", code)


def test_what_was_changed_is_not_fetched(
    connect: Any, proxy: Proxy, token: str, project: Project, target: StorageTarget, tmp_path: Path
) -> None:
    backup = make(project, target, DUMP)
    (lying,) = (p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size == backup.size_bytes)
    lying.chmod(0o600)
    content = bytearray(lying.read_bytes())
    content[-20] ^= 1
    lying.write_bytes(content)
    nova = connect(proxy.url, token, retries=1)
    with pytest.raises((Unavailable, Conflict)):
        nova.download_backup(str(backup.pk), io.BytesIO())


SQL = b"CREATE TABLE t (a int);\n" + b"INSERT INTO t VALUES (1);\n" * 150_000


class Counted(io.BytesIO):
    """A file that remembers how much of it was asked for at once."""

    most = 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self.most = max(self.most, len(found))
        return found


def test_a_dump_from_elsewhere_is_sent_in_pieces_and_kept_once(
    nova: Any, proxy: Proxy, ready: Project, target: StorageTarget, tmp_path: Path
) -> None:
    path = tmp_path / "from-elsewhere.sql"
    path.write_bytes(b"read already" + SQL)
    proxy.faults += [LOST_REQUEST, LOST_ANSWER]
    with path.open("rb") as file:
        file.seek(12)
        made = nova.upload_backup(str(ready.pk), file, label="from the old host", storage="this-machine")
    assert (made.trigger, made.label, made.status, made.trusted) == ("upload", "from the old host", "queued", False)
    assert made.operation.kind == "import_upload"
    kept = Backup.objects.get()
    assert kept.upload["filename"] == "from-elsewhere.sql" and kept.upload["bytes"] == len(SQL)
    assert kept.upload["sha256"] == hashlib.sha256(SQL).hexdigest()
    assert len([s for s in proxy.seen if s.method == "POST"]) == 3
    source = Counted(SQL)
    assert nova.upload_backup(str(ready.pk), source, filename="é #1.sql").label == "é #1.sql"
    assert 0 < source.most < len(SQL) / 3


def test_a_file_that_is_not_taken_says_why(nova: Any, proxy: Proxy, ready: Project, target: StorageTarget) -> None:
    cases = {
        "upload_empty": b"", "upload_truncated": gzip.compress(SQL)[:-9], "upload_compression": b"BZh91AY" + bytes(100),
        "upload_wrong_engine": b"-- MySQL dump 10.13  Distrib 8.0.36\n--\n",
    }  # fmt: skip
    for code, data in cases.items():
        with pytest.raises(Invalid) as refused:
            nova.upload_backup(str(ready.pk), io.BytesIO(data))
        assert refused.value.code == code and refused.value.detail
    assert len(proxy.seen) == len(cases), "none of them is tried again"
    with pytest.raises(DeadlineExceeded):
        nova.upload_backup(str(ready.pk), io.BytesIO(SQL), wait=True, deadline_seconds=0)

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            self.truncate(len(SQL) // 2)
            return super().read(size)

    with pytest.raises(NovaStackError) as changed:
        nova.upload_backup(str(ready.pk), Shrinking(SQL))
    assert changed.value.code == "file_changed" and not Backup.objects.exists()


def test_proofs(nova: Any, project: Project, target: StorageTarget) -> None:
    stored = make(project, target, DUMP, manifest={"entries": []})
    earlier = make_proof(stored, state="failed", differences=["public.orders: 3 rows, 4 in the backup"])
    asked = nova.verify_backup(str(stored.pk))
    assert (asked.backup, asked.state, asked.kind, asked.passed) == (str(stored.pk), "queued", "manual", False)
    assert asked.operation.kind == "verify"
    told = list(nova.list_proofs(str(stored.pk)))
    assert [p.id for p in told] == [asked.id, str(earlier.pk)]
    assert told[1].differences == ("public.orders: 3 rows, 4 in the backup",)


def test_a_proof_that_is_under_way_is_waited_for(nova: Any, project: Project, target: StorageTarget) -> None:
    stored = make(project, target, DUMP, manifest={"entries": []})
    asked = nova.verify_backup(str(stored.pk))
    with pytest.raises(Conflict):
        nova.verify_backup(str(stored.pk))
    with pytest.raises(DeadlineExceeded) as late:
        nova.verify_backup(str(stored.pk), wait=True, deadline_seconds=4)
    assert late.value.operation.id == asked.operation.id and stored.proofs.count() == 1


def test_restores_and_their_undo(nova: Any, project: Project, target: StorageTarget) -> None:
    backup = make_backup(project, target)
    seen = nova.preview_restore(str(backup.pk), target="in_place")
    assert (seen.target, seen.confirm, seen.safety_backup) == ("in_place", project.slug, True)
    assert not Restore.objects.exists()
    with pytest.raises(Conflict) as untyped:
        nova.restore_backup(str(backup.pk), target="in_place")
    assert untyped.value.code == "confirm_required"
    with pytest.raises(Invalid) as unknown:
        nova.preview_restore(str(backup.pk), target="moon")
    assert unknown.value.errors[0].field == "target"
    made = nova.restore_backup(str(backup.pk), name="Shop, Monday")
    assert (made.target, made.status, made.project_name) == ("new_project", "queued", "Shop, Monday")
    assert made.operation is not None and made.project != str(project.pk)
    before = make_restore(backup, project)
    assert [r.id for r in nova.list_restores(backup_id=str(backup.pk))] == [made.id, str(before.pk)]
    assert [r.id for r in nova.list_restores(project_id=str(project.pk), status="succeeded")] == [str(before.pk)]
    assert nova.get_restore(str(before.pk)).undo_until == before.undo_until
    with pytest.raises(Conflict) as gone:
        nova.undo_restore(str(before.pk), confirm=project.slug)
    assert gone.value.code == "undo_not_possible"


def test_some_tables_of_a_backup(nova: Any, project: Project, target: StorageTarget) -> None:
    backup = make_backup(project, target)
    backup.manifest = {"contents": {"tables": {"public.orders": [3, "x"], "public.lines": [9, "x"]}, "facts": []}}
    backup.save()
    seen = nova.preview_restore(str(backup.pk), target="in_place", tables=["orders"])
    assert (seen.rows_in_backup, seen.confirm, seen.safety_backup) == (3, "", False)
    made = nova.restore_backup(str(backup.pk), target="in_place", tables=["orders"])
    assert made.selection == {"tables": ["public.orders"], "schemas": []} and made.outcome is None
    with pytest.raises(Invalid) as waived:
        nova.restore_backup(str(backup.pk), name="New", safety_backup=False)
    assert waived.value.errors[0].field == "safety_backup"


def test_schedules(nova: Any, project: Project, target: StorageTarget) -> None:
    made = nova.create_schedule(
        str(project.pk), cron="30 2 * * *", time_zone="Europe/Berlin", retention={"keep_last": 3, "keep_daily": 7}
    )
    assert (made.cron, made.time_zone, made.retention["keep_daily"], len(made.next_runs)) == (
        "30 2 * * *", "Europe/Berlin", 7, 5,
    )  # fmt: skip
    assert made.next_runs[0].tzinfo is not None
    changed = nova.update_schedule(made.id, enabled=False, retention={"keep_daily": None})
    assert (changed.enabled, changed.retention["keep_daily"], changed.retention["keep_last"]) == (False, None, 3)
    assert [s.id for s in nova.list_schedules(str(project.pk))] == [made.id] == [nova.get_schedule(made.id).id]
    with pytest.raises(Invalid):
        nova.create_schedule(str(project.pk), cron="every day")
    began = nova.run_schedule(made.id)
    assert began.status == "queued" and began.operation == str(Backup.objects.get().operation_id)
    assert nova.delete_schedule(made.id) is None
    assert list(nova.list_schedules(str(project.pk))) == []


@pytest.mark.parametrize(
    ("model", "component"),
    [("Backup", "Backup"), ("BackupStorage", "BackupStorageBrief"), ("Proof", "ProofOutput"), ("Restore", "Restore"),
     ("RestorePreview", "Preflight"), ("RestoreProblem", "PreflightProblem"), ("Schedule", "ScheduleOutput"),
     ("StartedBackup", "ScheduleBackup"), ("Storage", "StorageOutput")],
)  # fmt: skip
def test_its_models_know_what_the_schema_says(model: str, component: str) -> None:
    schema = SchemaGenerator().get_schema(request=None, public=True)["components"]["schemas"][component]
    known = {field.name for field in dataclasses.fields(getattr(novastack_client, model))}
    assert set(schema["properties"]) - known == set(), f"add to {model} in backup_models.py of the client"
