"""A file comes in: what is taken, what is refused with which word, and that nothing of a refused one stays."""

from __future__ import annotations

import gzip
import hashlib
import io
import time
import zlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
import zstandard
from django.db import transaction
from django.test import Client
from django.test.client import encode_multipart

from accounts.models import AuditEvent
from backups.archive import Opener
from backups.models import Backup, StorageTarget
from backups.operations import (
    deleting,
    drills,
    importing,
    keys,
    objectives,
    proving,
    proving_steps,
    restoring_data,
    retaining,
    storages,
    taking_steps,
)
from backups.services import figures, readings, uploads
from backups.unpacking import Unpacker
from novastack.common.clock import now
from projects import domain
from projects.engines.foreign import ForeignRefused, Left
from projects.models import DatabaseServer, Operation, Project
from projects.operations.base import StepFailed, Wait
from tests.backups.rows import make_backup
from tests.factories import Team, api_client, make_project
from tests.operations.conftest import ready, runtime, shop  # noqa: F401

pytestmark = pytest.mark.django_db
SQL = b"CREATE TABLE t (a int);\n" + b"INSERT INTO t VALUES (1);\n" * 50_000
HEAD = b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version %b\n"


@pytest.fixture
def project(ready: Project, target: StorageTarget) -> Project:  # noqa: F811
    return ready


def send(team: Team, project: Project, data: bytes, query: str = "", **headers: str) -> Any:
    return api_client(team.bob).post(
        f"/api/v1/projects/{project.pk}/uploads/{query}", data, content_type="application/octet-stream", headers=headers
    )


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "novastack-owner" not in path.name]


def stored(backup: Backup) -> bytes:
    source = storages.storage_of(backup.storage).open(backup.upload["key"])
    with Opener(
        source, keys.identities_of(backup.organization_id), compressed=True, sha256=backup.upload["stored_sha256"]
    ) as opener:
        return b"".join(opener)


def test_room_is_asked_for_the_projects_own_data(project: Project) -> None:
    """The size of what somebody uploaded says nothing about the next backup, and the last backup nothing about an upload."""
    storage = StorageTarget.objects.get()
    make_backup(project, storage, size_bytes=10)
    upload = make_backup(project, storage, hours=1, trigger="upload", size_bytes=5000, upload={"bytes": 2000})
    place = Mock(free_bytes=lambda: 1000)
    taking_steps._check_room(make_backup(project, storage, hours=0, status="dumping"), place)
    with pytest.raises(StepFailed, match="what was uploaded") as refused:
        taking_steps._check_room(upload, place)
    assert refused.value.code == "storage_full"


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress, zstandard.compress], ids=["as_is", "gzip", "zstd"])
def test_it_is_unpacked_sealed_and_an_operation_waits(team: Team, project: Project, pack: Any) -> None:
    data = pack(SQL)
    answer = send(team, project, data, "?filename=..%2Fshop.sql")
    assert answer.status_code == 202, answer.content
    told = answer.json()
    assert (told["status"], told["trigger"], told["trusted"], told["label"]) == ("queued", "upload", False, "shop.sql")
    assert answer["Location"].endswith(f"/api/v1/backups/{told['id']}/")
    backup = Backup.objects.get(pk=told["id"])
    assert stored(backup) == SQL
    seen = backup.upload
    assert (seen["format"], seen["bytes"], seen["unpacked_bytes"]) == ("plain", len(data), len(SQL))
    assert seen["sha256"] == hashlib.sha256(data).hexdigest()
    operation = Operation.objects.get(pk=backup.operation_id)
    assert (operation.kind, operation.params["names"]["database"]) == (
        "import_upload", project.databases.get(slot="current").name,
    )  # fmt: skip
    event = AuditEvent.objects.get(action="backup.uploaded")
    assert event.data["filename"] == "shop.sql" and event.data["sha256"] == seen["sha256"]


REFUSED = {
    "gzip of nothing": (gzip.compress(b""), "upload_empty"),
    "cut gzip": (gzip.compress(SQL)[:-9], "upload_truncated"),
    "cut zstd": (zstandard.compress(SQL)[:-9], "upload_truncated"),
    "damaged gzip": (gzip.compress(SQL)[:-8] + bytes(8), "upload_damaged"),
    "behind gzip": (gzip.compress(SQL) + b"more", "upload_damaged"),
    "zip": (b"PK\x03\x04" + bytes(100), "upload_compression"),
    "bzip2": (b"BZh91AY" + bytes(100), "upload_compression"),
    "twice packed": (gzip.compress(gzip.compress(SQL)), "upload_compression"),
    "binary": (b"\x7fELF" + bytes(5000), "upload_not_recognised"),
    "utf-16": ("CREATE TABLE t (a int);".encode("utf-16"), "upload_encoding"),
    "tar": (bytes(257) + b"ustar" + bytes(5000), "upload_tar_format"),
    "directory": (b"PGDMP\x01\x0f\x00\x04\x08\x05" + bytes(5000), "upload_directory_format"),
    "no archive": (b"PGDMP\x01\x0f\x00\x04\x08\x07" + bytes(5000), "upload_damaged"),
    "archive of a later pg_dump": (b"PGDMP\x01\x63\x00\x04\x08\x01" + bytes(5000), "upload_newer_version"),
    "mysql": (b"-- MySQL dump 10.13  Distrib 8.0.36\n--\n", "upload_wrong_engine"),
    "mariadb": (b"/*M!999999\\- enable the sandbox mode */ \n-- MariaDB dump\n", "upload_wrong_engine"),
    "whole server": (b"--\n-- PostgreSQL database cluster dump\n--\n", "upload_cluster_dump"),
    "newer": (HEAD % b"99.1", "upload_newer_version"),
    "newer archive": (
        b"PGDMP\x01\x0f\x00\x04\x08\x01\x01" + b"\0\0\0\0\0" * 7 + b"\0\x01\0\0\0a" + b"\0\x04\0\0\0" + b"99.1"
        + b"\0\x04\0\0\0" + b"99.1" + bytes(100), "upload_newer_version",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_dump_is_named_and_gone(team: Team, project: Project, backup_root: Path, case: str) -> None:
    data, code = REFUSED[case]
    answer = send(team, project, data)
    assert (answer.status_code, answer.json()["code"]) == (400, code), answer.content
    assert len(answer.json()["detail"]) > 20
    assert not Backup.objects.exists() and not files(backup_root)
    assert not Operation.objects.filter(kind=importing.KIND).exists()
    assert uploads.slots.acquire(blocking=False)  # its place is free again
    uploads.slots.release()


def test_one_that_is_too_large_is_413_before_and_while_it_comes(
    team: Team, project: Project, backup_root: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.NOVASTACK_UPLOAD_BYTES = 1000
    answer = send(team, project, SQL)
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    settings.NOVASTACK_UPLOAD_BYTES = 1 << 30
    for bomb in (
        gzip.compress(bytes(64 << 20)),
        zstandard.compress(b"\n" * (64 << 20)),
        gzip.compress(b" " * (64 << 20)),
    ):
        settings.NOVASTACK_UPLOAD_UNPACKED_BYTES = 8 << 20
        answer = send(team, project, bomb)
        assert (answer.status_code, answer.json()["code"]) in {
            (413, "upload_too_large"),
            (400, "upload_not_recognised"),
        }
    settings.NOVASTACK_UPLOAD_UNPACKED_BYTES = 1 << 30
    monkeypatch.setattr("backups.operations.limits.room_bytes", lambda _: 20_000)
    answer = send(
        team,
        project,
        HEAD % b"15.1" + b"-- %b\n" % uuid4().hex.encode() * 10_000 + hashlib.shake_256().digest(90_000).hex().encode(),
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "upload_over_quota")
    assert not Backup.objects.exists() and not files(backup_root)


def test_one_that_breaks_off_leaves_nothing(team: Team, project: Project, backup_root: Path) -> None:
    from accounts.permissions import Principal

    class Gone(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if found := super().read(100_000):
                return found
            raise OSError("connection reset")

    for source in (Gone(SQL), io.BytesIO(SQL[:-1])):
        intake = uploads.Intake(Principal.of(team.bob), project, size_bytes=len(SQL))
        assert Backup.objects.count() == 1  # it is seen while it comes
        with pytest.raises(uploads.UploadInterrupted):
            uploads.upload_receive(intake, source)
        assert not Backup.objects.exists() and not files(backup_root)


def test_what_nobody_sends_any_more_is_swept(team: Team, project: Project, backup_root: Path) -> None:
    from accounts.permissions import Principal

    intake = uploads.Intake(Principal.of(team.bob), project, size_bytes=len(SQL))
    intake.feed(SQL)
    assert importing.sweep() == 0
    Backup.objects.update(updated_at=now() - timedelta(hours=1))
    assert importing.sweep() == 1
    assert not Backup.objects.exists()
    with pytest.raises(uploads.UploadInterrupted):
        intake.receive()  # its process was not dead after all
    assert not files(backup_root) and not Operation.objects.filter(kind=importing.KIND).exists()


def test_removed_before_it_was_imported_all_of_it_goes(team: Team, project: Project, backup_root: Path) -> None:
    answer = send(team, project, SQL)
    backup = Backup.objects.get(pk=answer.json()["id"])
    assert len(files(backup_root)) == 1
    assert deleting.keys_of(backup) == {backup.upload["key"]} and deleting.folder_of(backup).endswith(f"/{backup.pk}/")
    assert api_client(team.alice).delete(f"/api/v1/backups/{backup.pk}/").status_code == 202
    assert Operation.objects.get(pk=backup.operation_id).cancel_requested_at is not None


def test_the_same_key_makes_one_backup(team: Team, project: Project, backup_root: Path) -> None:
    first = send(team, project, SQL, **{"Idempotency-Key": "k"})
    again = send(team, project, SQL, **{"Idempotency-Key": "k"})
    assert again.status_code == 202 and again["Idempotency-Replayed"] == "true"
    assert again.json()["id"] == first.json()["id"] and Backup.objects.count() == 1 and len(files(backup_root)) == 1
    other = send(team, project, SQL + b"\n", **{"Idempotency-Key": "k"})
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert Backup.objects.count() == 1 and len(files(backup_root)) == 1


def test_who_may_and_what_must_be_said(team: Team, project: Project, settings: Any) -> None:
    url = f"/api/v1/projects/{project.pk}/uploads/"
    octets = {"data": SQL, "content_type": "application/octet-stream"}
    assert api_client(team.charlie).post(url, **octets).status_code == 404
    assert api_client(team.vera).post(url, **octets).status_code == 403
    assert api_client(team.bob, scopes=["read"]).post(url, **octets).status_code == 403
    answer = api_client(team.bob).post(url, {"file": io.BytesIO(SQL)}, format="multipart")
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    answer = api_client(team.bob).generic("POST", url, b"", content_type="application/octet-stream", CONTENT_LENGTH="")
    assert (answer.status_code, answer.json()["code"]) == (411, "length_required")
    taken = [uploads.slots.acquire(blocking=False) for _ in range(99)].count(True)
    try:
        answer = api_client(team.bob).post(url, **octets)
        assert (answer.status_code, answer.json()["code"]) == (429, "throttled") and answer["Retry-After"]
    finally:
        for _ in range(taken):
            uploads.slots.release()
    assert not Backup.objects.exists()


def test_an_engine_without_uploads_says_so(team: Team, target: StorageTarget) -> None:
    project = make_project(team.alice, team.organization, engine="ferretdb", version="1.24")
    answer = send(team, project, SQL)
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_not_supported")


class TestThePage:
    """The same through a browser's form: with the file going straight to the storage."""

    def browser(self, team: Team, **options: Any) -> Client:
        client = Client(**options)
        client.force_login(team.bob)
        return client

    def url(self, project: Project) -> str:
        return f"/projects/{project.pk}/backups/upload/"

    def test_it_says_what_is_taken(self, team: Team, project: Project) -> None:
        client = self.browser(team)
        page = client.get(self.url(project)).content.decode()
        assert "a file of pg_dump" in page and 'type="file"' in page and "20" in page
        assert self.url(project) in client.get(f"/projects/{project.pk}/backups/").content.decode()

    def test_a_file_becomes_a_backup(self, team: Team, project: Project) -> None:
        client = self.browser(team)
        answer = client.post(self.url(project), {"label": "old host", "file": io.BytesIO(gzip.compress(SQL))})
        assert answer.status_code == 302, answer.content
        backup = Backup.objects.get()
        assert (backup.label, backup.trigger, stored(backup)) == ("old host", "upload", SQL)
        assert Operation.objects.get(pk=backup.operation_id).kind == importing.KIND
        answer = client.post(self.url(project), {"file": io.BytesIO(SQL)}, HTTP_X_REQUESTED_WITH="fetch")
        assert (answer.status_code, answer.json()["url"]) == (202, f"/projects/{project.pk}/backups/")

    def test_what_is_refused_is_said_and_gone(self, team: Team, project: Project, backup_root: Path) -> None:
        client = self.browser(team)
        for data, words in (
            ({}, "Choose a file"),
            ({"file": io.BytesIO(b"PK\x03\x04" + bytes(99))}, "a zip file"),
            ({"file": io.BytesIO(gzip.compress(SQL)[:-9])}, "cut off"),
            ({"file": io.BytesIO(SQL), "label": "x" * 200}, "80"),
        ):
            answer = client.post(self.url(project), data)
            assert answer.status_code == 400 and words in answer.content.decode(), words
        answer = client.post(self.url(project), {"file": io.BytesIO(b"BZh9")}, HTTP_X_REQUESTED_WITH="fetch")
        assert answer.status_code == 400 and "bzip2" in answer.json()["detail"]
        assert not Backup.objects.exists() and not files(backup_root)

    def test_a_foreign_page_leaves_nothing(self, team: Team, project: Project, backup_root: Path) -> None:
        client = self.browser(team, enforce_csrf_checks=True)
        answer = client.post(self.url(project), {"file": io.BytesIO(SQL)})
        assert answer.status_code == 403
        assert not Backup.objects.exists() and not files(backup_root)

    def test_a_form_that_breaks_off_leaves_nothing(self, team: Team, project: Project, backup_root: Path) -> None:
        body = encode_multipart("b", {"label": "x", "file": io.BytesIO(SQL)})
        cut = {"wsgi.input": io.BytesIO(body[:-1000]), "CONTENT_LENGTH": len(body)}
        answer = self.browser(team).generic(
            "POST", self.url(project), body, content_type="multipart/form-data; boundary=b", **cut
        )  # fmt: skip
        assert answer.status_code == 400 and "did not come whole" in answer.content.decode()
        assert not Backup.objects.exists() and not files(backup_root)


def test_what_was_uploaded_is_no_backup_of_the_project_s_own_data(
    team: Team, project: Project, target: StorageTarget
) -> None:
    """Proven or not: objectives, drills and the last good one look past it."""
    moment = now()
    Backup.objects.create(
        organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine="postgresql", version="18", storage=target, trigger="upload", status="verified",
        started_at=moment, finished_at=moment, verified_at=moment, rows=5, dump_bytes=5,
    )  # fmt: skip
    assert readings.last_good(project) is None and readings.figures_of(project)["verified"] == 0
    assert readings.last_good_of([project])[project.pk]["at"] is None
    assert objectives.objective_of(project).last_verified is None
    assert drills.newest(project.pk) is None and retaining.compare(project) == ""
    assert figures.figures().projects_verified == 0


def test_a_gzip_of_many_members_is_not_copied_for_each_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a member is handed back as a copy, so it must not be much."""
    longest, real = 0, zlib.decompressobj

    class Counted:
        def __init__(self, bits: int) -> None:
            self._real = real(bits)

        def decompress(self, piece: bytes, most: int) -> bytes:
            nonlocal longest
            longest = max(longest, len(piece))
            return self._real.decompress(piece, most)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    monkeypatch.setattr("backups.unpacking.zlib.decompressobj", Counted)
    unpacker = Unpacker()
    data = gzip.compress(b"a") * 20_000
    assert b"".join([*unpacker.feed(data), *unpacker.finish()]) == b"a" * 20_000
    assert longest <= 16 << 10


def test_what_is_being_imported_is_not_thrown_away(team: Team, project: Project, backup_root: Path) -> None:
    """The answer may have failed after all was begun: who sends it does not know, and takes its file back."""
    from accounts.permissions import Principal

    intake = uploads.Intake(Principal.of(team.bob), project, size_bytes=len(SQL))
    uploads.upload_receive(intake, io.BytesIO(SQL))
    with transaction.atomic():
        backup = intake.begin()
    intake.discard()
    backup.refresh_from_db()
    assert stored(backup) == SQL and backup.status == "queued"


def placed(backup: Backup, operation_id: Any, proof: bool = False) -> None:
    operation = Operation.objects.get(pk=operation_id)
    ctx: Any = SimpleNamespace(operation=operation, fenced=transaction.atomic)
    if proof:
        proving_steps.take_turn(ctx, backup, importing.scratch.region_for(backup))
    else:
        importing._take_turn(ctx, backup)
    assert DatabaseServer.objects.filter(pk=operation.server_uuid).exists()


def test_imports_have_turns_and_keep_no_proof_from_its_own(team: Team, project: Project) -> None:
    files = [Backup.objects.get(pk=send(team, project, SQL).json()["id"]) for _ in range(3)]
    placed(files[0], files[0].operation_id)
    with pytest.raises(Wait, match="of the organization"):
        placed(files[1], files[1].operation_id)
    other = uuid4()
    Operation.objects.filter(pk=files[0].operation_id).update(organization_id=other)
    placed(files[1], files[1].operation_id)
    Operation.objects.filter(pk=files[1].operation_id).update(organization_id=other)
    with pytest.raises(Wait, match="Other files"):
        placed(files[2], files[2].operation_id)
    proven = Backup.objects.get(pk=files[2].pk)
    Backup.objects.filter(pk=proven.pk).update(status="stored", trusted=True)
    proven.refresh_from_db()
    with transaction.atomic():
        proof = proving.verify_begin(proven, kind="manual")
    placed(proven, proof.pk, proof=True)


def test_what_takes_too_long_is_not_tried_again(project: Project) -> None:
    told = importing._told(StepFailed("deadline_exceeded", "Too long."), importing.wiring, "plain", b"")  # type: ignore[arg-type]
    assert (told.code, told.retryable) == ("deadline_exceeded", False)


def test_room_is_guessed_for_what_is_compressed_within(settings: Any) -> None:
    settings.NOVASTACK_UPLOAD_UNPACKED_BYTES = 4000
    for kind, size, wanted in (("plain", 100, 100), ("custom", 100, 500), ("custom", 3000, 4000)):
        assert importing._guessed_bytes(Backup(upload={"format": kind, "unpacked_bytes": size})) == wanted


def test_a_reader_that_stumbles_is_no_fault_of_the_storage() -> None:
    def script_of(*_: Any) -> Iterator[bytes]:
        yield b"SELECT 1;\n"
        int("x")

    engine: Any = SimpleNamespace(script_of=script_of)
    opener: Any = io.BytesIO()
    archive = importing._Script(engine, opener, "custom", b"", Left())
    feeder = restoring_data._Feeder(archive, io.BytesIO(), "test", lambda _: None)
    feeder.run()
    assert feeder.error is not None and (feeder.error.code, feeder.error.retryable) == ("upload_damaged", False)


def test_after_the_server_refused_a_file_nothing_more_is_read() -> None:
    read: list[int] = []

    class Opener:
        def __iter__(self) -> Iterator[bytes]:
            for at in range(1000):
                read.append(at)
                time.sleep(0.01)
                yield b"SELECT 1;\n"
            raise ForeignRefused("upload_truncated", "It ends in the middle.")

        def close(self) -> None: ...

    class Gone(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise BrokenPipeError

    ended = domain.ExitResult(3)
    stage: Any = SimpleNamespace(
        poll=lambda: ended, failure=lambda _: StepFailed("restore_failed", "Line 1: no"), awaited=lambda *_, **__: ended
    )
    for sink in (Gone(), io.BytesIO()):
        read.clear()
        feeder = restoring_data._Feeder(Opener(), sink, "test", lambda _: None)
        feeder.start()
        with pytest.raises(StepFailed) as told:
            restoring_data._watch(stage, feeder, lambda _: None, False)
        assert told.value.code == "restore_failed" and len(read) < 1000
