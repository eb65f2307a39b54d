"""Backups over the API: asked for, listed, pinned and downloaded; by whom they may."""

from __future__ import annotations

import gc
import os
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings as django_settings

from accounts.models import AuditEvent
from backups.archive import Sealer
from backups.models import Backup, StorageTarget
from backups.operations import keys, storages
from backups.services import downloads
from novastack.common.clock import now
from projects.engines.ferretdb import FerretDB
from projects.models import Operation, OperationLock, Project, Region
from tests.factories import Team, api_client, make_project

pytestmark = pytest.mark.django_db
DUMP = b"PGDMP" + os.urandom(3_000_000)


@pytest.fixture
def project(team: Team, target: StorageTarget) -> Project:
    return make_project(team.alice, team.organization)


def make(project: Project, target: StorageTarget, content: bytes = DUMP, **more: Any) -> Backup:
    """A stored one, sealed for real."""
    backup = Backup.objects.create(
        organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine="postgresql", version="18", storage=target, status="stored",
        **more,
    )  # fmt: skip
    backup.object_key = f"install/{project.organization_id}/{backup.pk}/1"
    writer = storages.storage_of(target).writer(backup.object_key)
    sealer = Sealer(writer, keys.recipients_of(project.organization_id))
    sealer.feed(content)
    sealed = sealer.finish()
    writer.commit()
    backup.size_bytes, backup.sha256, backup.dump_bytes = sealed.size_bytes, sealed.sha256, sealed.dump_bytes
    backup.save()
    return backup


def body_of(response: Any) -> bytes:
    return b"".join(response.streaming_content)


def test_asked_for_it_is_a_row_and_an_operation(team: Team, project: Project, target: StorageTarget) -> None:
    client = api_client(team.bob)
    url = f"/api/v1/projects/{project.pk}/backups/"
    response = client.post(url, {"label": "before 2.0"}, format="json", HTTP_IDEMPOTENCY_KEY="once")
    assert response.status_code == 202, response.json()
    told = response.json()
    assert told["status"] == "queued" and told["label"] == "before 2.0" and told["trigger"] == "manual"
    assert told["storage"]["name"] == "this-machine" and told["project"] == str(project.pk)
    assert response["Location"].endswith(f"/api/v1/backups/{told['id']}/")
    again = client.post(url, {"label": "before 2.0"}, format="json", HTTP_IDEMPOTENCY_KEY="once")
    assert again.json()["id"] == told["id"] and again["Idempotency-Replayed"] == "true"
    operation = Operation.objects.get(pk=told["operation"]["id"])
    assert (operation.kind, operation.params["backup"]) == ("backup", told["id"])
    held = set(OperationLock.objects.filter(operation=operation).values_list("subject", "mode"))
    assert held == {
        (f"project:{project.pk}", "shared"), (f"dump:{project.pk}", "exclusive"), (f"backup:{told['id']}", "shared"),
    }  # fmt: skip
    assert client.get(f"/api/v1/backups/{told['id']}/").json()["id"] == told["id"]
    second = client.post(url, {}, format="json")
    assert (second.status_code, second.json()["code"]) == (409, "operation_in_progress")
    assert AuditEvent.objects.filter(action="backup.started", project_id=project.pk).count() == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"label": "x" * 81}, 400, "invalid"), ({"label": 3}, 400, "invalid"), ({"labl": "x"}, 400, "invalid"),
        ({"label": "a\u0007b"}, 400, "invalid"), ({"storage": "nowhere"}, 404, "not_found"), ([], 400, "invalid"),
    ],
)  # fmt: skip
def test_a_bad_body_makes_nothing(team: Team, project: Project, body: Any, status: int, code: str) -> None:
    response = api_client(team.bob).post(f"/api/v1/projects/{project.pk}/backups/", body, format="json")
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert not Backup.objects.exists()


def test_refusals_say_what_to_do(
    team: Team, project: Project, target: StorageTarget, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, url = api_client(team.bob), f"/api/v1/projects/{project.pk}/backups/"

    def refused() -> tuple[str, str]:
        response = client.post(url, {}, format="json")
        assert response.status_code == 409, response.json()
        return response.json()["code"], response.json()["detail"]

    Project.objects.filter(pk=project.pk).update(desired_status="stopped")
    assert refused() == ("action_not_allowed", "The database is stopped: start it first.")
    Project.objects.filter(pk=project.pk).update(desired_status="recycled")
    assert refused()[0] == "action_not_allowed"
    Project.objects.filter(pk=project.pk).update(desired_status="running", ready_at=None)
    assert refused()[0] == "action_not_allowed"
    Project.objects.filter(pk=project.pk).update(ready_at=project.ready_at)
    team.organization.max_backups = 1
    team.organization.save()
    kept = make(project, target)
    assert refused() == ("quota_exceeded", "The organization's quota for backups is 1, 1 are used.")
    Backup.objects.filter(pk=kept.pk).update(status="failed", size_bytes=10)
    team.organization.max_backups, team.organization.max_backup_bytes = 5, 10
    team.organization.save()
    assert refused()[0] == "quota_exceeded"
    team.organization.max_backup_bytes = None
    team.organization.save()
    target.read_only_reason = "Another install took it over."
    target.save()
    assert refused()[0] == "storage_read_only"
    kept.delete()
    StorageTarget.objects.update(is_default=False)
    assert refused()[0] == "no_backup_storage"
    Project.objects.filter(pk=project.pk).update(engine="ferretdb")
    with monkeypatch.context() as patched:
        patched.setattr(FerretDB, "capabilities", frozenset())
        assert refused()[0] == "backup_not_supported"
    Region.objects.update(lacks={"ferretdb": {"tools": "this machine has no mongodump"}})
    assert refused() == (
        "backup_not_supported", f"FerretDB can't be backed up in {project.region.name}: this machine has no mongodump.",
    )  # fmt: skip
    assert not Operation.objects.filter(kind="backup").exists()


def test_lists_and_their_filters(
    team: Team, project: Project, target: StorageTarget, django_assert_max_num_queries: Any
) -> None:
    rows = [
        make(project, target, b"PGDMP", label=f"n{n}", pinned=n == 0, trigger="schedule" if n else "manual")
        for n in range(4)
    ]
    Backup.objects.filter(pk=rows[3].pk).update(
        status="failed", error={"code": "dump_failed", "detail": "x", "retryable": False}
    )
    foreign = Backup.objects.create(
        organization_id=team.elsewhere.pk, project_uuid=uuid4(), project_name="F", project_slug="f", engine="postgresql",
        version="18", storage=target,
    )  # fmt: skip
    client = api_client(team.vera)

    def ids(query: str) -> list[str]:
        response = client.get(f"/api/v1/backups/{query}")
        assert response.status_code == 200, response.json()
        return [row["label"] for row in response.json()["results"]]

    assert ids("") == ["n3", "n2", "n1", "n0"]
    assert ids("?pinned=true") == ["n0"]
    assert ids("?status=failed") == ["n3"]
    assert ids("?status=failed&status=stored") == ["n3", "n2", "n1", "n0"]
    assert ids("?trigger=manual") == ["n0"]
    assert ids(f"?project={project.pk}&engine=postgresql&storage={target.pk}") == ["n3", "n2", "n1", "n0"]
    assert ids(f"?project={uuid4()}") == []
    assert ids("?search=n2") == ["n2"]
    assert ids("?ordering=created_at")[0] == "n0"
    assert client.get("/api/v1/backups/?status=nope").status_code == 400
    assert client.get("/api/v1/backups/?ordering=sha256").status_code == 400
    assert client.get(f"/api/v1/backups/?organization={team.elsewhere.slug}").status_code == 404
    assert client.get(f"/api/v1/backups/{foreign.pk}/").status_code == 404
    assert len(client.get(f"/api/v1/projects/{project.pk}/backups/").json()["results"]) == 4
    with django_assert_max_num_queries(10):
        client.get("/api/v1/backups/")
    told = client.get(f"/api/v1/backups/{rows[3].pk}/").json()
    assert told["error"]["code"] == "dump_failed"
    assert {
        "id", "project", "engine", "version", "trigger", "status", "size_bytes", "database_bytes", "sha256", "encrypted",
        "storage", "storage_path", "pinned", "rows", "operation", "created_at", "finished_at", "verified_at", "error",
    } <= set(told)  # fmt: skip


def test_the_overview_counts_them(team: Team, project: Project, target: StorageTarget) -> None:
    client, url = api_client(team.vera), "/api/v1/projects/stats/overview/"
    assert client.get(url).json()["backups"] == {
        "available": True, "total": 0, "by_status": {}, "size_bytes": 0, "last_verified_at": None,
    }  # fmt: skip
    rows = [make(project, target, b"PGDMP") for _ in range(3)]
    moment = now()
    Backup.objects.filter(pk=rows[1].pk).update(status="verified", verified_at=moment, size_bytes=100)
    Backup.objects.filter(pk=rows[2].pk).update(status="failed", size_bytes=7)
    Backup.objects.create(
        organization_id=team.elsewhere.pk, project_uuid=uuid4(), project_name="F", project_slug="f", engine="postgresql",
        version="18", storage=target,
    )  # fmt: skip
    told = client.get(url).json()["backups"]
    assert (told["total"], told["by_status"]) == (2, {"stored": 1, "verified": 1, "failed": 1})
    assert told["size_bytes"] == 100 + (rows[0].size_bytes or 0)
    assert datetime.fromisoformat(told["last_verified_at"]) == moment
    assert client.get(f"{url}?organization=elsewhere").status_code == 404
    assert api_client(team.charlie).get(url).json()["backups"]["total"] == 1


def test_pinned_and_not(team: Team, project: Project, target: StorageTarget) -> None:
    backup = make(project, target, b"PGDMP")
    client = api_client(team.bob)
    told = client.post(f"/api/v1/backups/{backup.pk}/pin/", {"reason": "audit"}, format="json").json()
    assert (told["pinned"], told["pinned_reason"]) == (True, "audit")
    once = {"HTTP_IDEMPOTENCY_KEY": "once"}
    assert client.post(f"/api/v1/backups/{backup.pk}/unpin/", **once).json()["pinned"] is False
    assert client.post(f"/api/v1/backups/{backup.pk}/unpin/", **once)["Idempotency-Replayed"] == "true"
    assert client.post(f"/api/v1/backups/{backup.pk}/pin/", {"reason": "a"}, format="json", **once).status_code == 200
    assert client.post(f"/api/v1/backups/{backup.pk}/pin/", {"reason": "b"}, format="json", **once).status_code == 422
    assert api_client(team.vera).post(f"/api/v1/backups/{backup.pk}/pin/").status_code == 403
    assert api_client(team.charlie).post(f"/api/v1/backups/{backup.pk}/pin/").status_code == 404
    Backup.objects.filter(pk=backup.pk).update(status="deleting")
    assert client.post(f"/api/v1/backups/{backup.pk}/pin/").json()["code"] == "action_not_allowed"
    assert AuditEvent.objects.filter(action="backup.pinned").count() == 2


def test_a_download_is_the_archive_or_what_is_stored(team: Team, project: Project, target: StorageTarget) -> None:
    backup = make(project, target)
    client, url = api_client(team.bob), f"/api/v1/backups/{backup.pk}/download/"
    response = client.get(url)
    assert response.status_code == 200
    assert response["Content-Length"] == str(len(DUMP)) and "Accept-Ranges" not in response
    assert (
        f'filename="{project.slug}-' in response["Content-Disposition"] and ".dump" in response["Content-Disposition"]
    )
    assert response["Cache-Control"] == "no-store"
    assert body_of(response) == DUMP
    whole = client.get(f"{url}?as=stored")
    stored = body_of(whole)
    assert stored.startswith(b"age-encryption.org/") and len(stored) == backup.size_bytes == int(
        whole["Content-Length"]
    )
    assert whole["Accept-Ranges"] == "bytes" and backup.sha256 in whole["ETag"]

    def ranged(header: str, **more: str) -> Any:
        return client.get(f"{url}?as=stored", HTTP_RANGE=header, **more)

    size = len(stored)
    for header, first, last in (
        ("bytes=0-99", 0, 99), ("bytes=100-", 100, size - 1), ("bytes=-7", size - 7, size - 1), ("bytes=5-5", 5, 5),
        (f"bytes=10-{size + 100}", 10, size - 1), (f"bytes=-{size * 2}", 0, size - 1),
    ):  # fmt: skip
        part = ranged(header)
        assert part.status_code == 206, header
        assert part["Content-Range"] == f"bytes {first}-{last}/{size}"
        assert body_of(part) == stored[first : last + 1]
        assert int(part["Content-Length"]) == last - first + 1
    for header in (f"bytes={size}-", "bytes=-0"):
        refused = ranged(header)
        assert (refused.status_code, refused.json()["code"]) == (416, "range_not_satisfiable")
    for header in ("bytes=0-1,5-6", "lines=1-2", "bytes=9-3", "bytes=-"):
        assert body_of(ranged(header)) == stored
    assert ranged("bytes=0-1", HTTP_IF_RANGE='"other"').status_code == 200
    assert ranged("bytes=0-1", HTTP_IF_RANGE=f'"{backup.sha256}"').status_code == 206
    assert client.get(f"{url}?as=zip").status_code == 400
    assert AuditEvent.objects.filter(action="backup.downloaded").count() > 3


def test_who_may_download(team: Team, project: Project, target: StorageTarget) -> None:
    """It holds every row: whoever may not connect may not have it."""
    backup = make(project, target, b"PGDMP")
    url = f"/api/v1/backups/{backup.pk}/download/"
    assert api_client().get(url).status_code == 401
    assert api_client(team.charlie).get(url).status_code == 404
    assert api_client(team.vera).get(url).status_code == 403
    assert api_client(team.bob, scopes=["read", "write"]).get(url).status_code == 403
    assert api_client(team.bob, scopes=["connect"]).get(url).status_code == 200
    for status in ("queued", "dumping", "failed", "deleting", "corrupt"):
        Backup.objects.filter(pk=backup.pk).update(status=status)
        assert api_client(team.bob).get(url).json()["code"] == "action_not_allowed"
    assert api_client(team.bob).get(f"{url}?as=stored").status_code == 200  # corrupt: for those who look into it
    assert AuditEvent.objects.filter(action="backup.downloaded").count() == 2


def change(backup: Backup, target: StorageTarget, at: int) -> None:
    path = django_settings.NOVASTACK_BACKUP_ROOT + "/" + target.config["path"] + "/" + backup.object_key
    with open(path, "r+b") as file:  # noqa: PTH123
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("where", [-1, -200, -1_500_000])
def test_what_is_not_what_was_stored_never_ends_well(
    team: Team, project: Project, target: StorageTarget, where: int
) -> None:
    backup = make(project, target)
    change(backup, target, backup.size_bytes + where)
    response = api_client(team.bob).get(f"/api/v1/backups/{backup.pk}/download/")
    got = b""
    if response.status_code == 409:
        assert response.json()["code"] == "backup_corrupt"
    else:
        with pytest.raises(Exception, match=r"SHA-256|decrypt"):
            for piece in response.streaming_content:
                got += piece
        assert len(got) < len(DUMP)  # less than was promised: no client takes it for whole
    assert downloads.slots._value == downloads.slots._initial_value  # type: ignore[attr-defined]


def test_damage_at_the_beginning_is_an_answer(team: Team, project: Project, target: StorageTarget) -> None:
    backup = make(project, target)
    change(backup, target, 40)
    response = api_client(team.bob).get(f"/api/v1/backups/{backup.pk}/download/")
    assert (response.status_code, response.json()["code"]) == (409, "backup_corrupt")
    storages.storage_of(target).delete(backup.object_key)
    for query in ("", "?as=stored"):
        response = api_client(team.bob).get(f"/api/v1/backups/{backup.pk}/download/{query}")
        assert (response.status_code, response.json()["code"]) == (409, "object_missing")
    assert downloads.slots._value == downloads.slots._initial_value  # type: ignore[attr-defined]


def test_a_reader_that_goes_away_gives_its_place_back(team: Team, project: Project, target: StorageTarget) -> None:
    backup, client = make(project, target), api_client(team.bob)
    url = f"/api/v1/backups/{backup.pk}/download/"
    most = downloads.slots._initial_value  # type: ignore[attr-defined]
    gc.collect()  # answers of other tests that nobody closed
    held = [client.get(url) for _ in range(most)]
    assert [r.status_code for r in held] == [200] * most
    refused = client.get(url)
    assert (refused.status_code, refused.json()["code"], refused["Retry-After"]) == (429, "throttled", "60")
    for response in held:
        next(iter(response.streaming_content))
        for close in response._resource_closers:  # as a server does; `close` would end the test's connection as well
            close()
    assert client.get(url).status_code == 200


def test_compressible_is_not_held_in_memory(team: Team, project: Project, target: StorageTarget) -> None:
    """64 MB out of some KB: pieces, never the whole."""
    backup = make(project, target, b"\0" * (64 << 20))
    response = api_client(team.bob).get(f"/api/v1/backups/{backup.pk}/download/", HTTP_ACCEPT_ENCODING="gzip")
    assert "Content-Encoding" not in response
    sizes = [len(piece) for piece in response.streaming_content]
    assert sum(sizes) == 64 << 20 and max(sizes) <= 4 << 20


def test_deleted_by_hand(team: Team, project: Project, target: StorageTarget) -> None:
    backup = make(project, target)
    assert api_client(team.charlie).delete(f"/api/v1/backups/{backup.pk}/").status_code == 404
    assert api_client(team.vera).delete(f"/api/v1/backups/{backup.pk}/").status_code == 403
    client = api_client(team.bob)
    client.post(f"/api/v1/backups/{backup.pk}/pin/", {"reason": "kept"})
    refused = client.delete(f"/api/v1/backups/{backup.pk}/")
    assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")
    client.post(f"/api/v1/backups/{backup.pk}/unpin/")
    answer = client.delete(f"/api/v1/backups/{backup.pk}/")
    assert answer.status_code == 202 and answer.json()["status"] == "deleting"
    operation = Operation.objects.get(pk=answer.json()["operation"]["id"])
    assert operation.kind == "delete_backup" and operation.created_by == team.bob
    again = client.delete(f"/api/v1/backups/{backup.pk}/")
    assert again.json()["operation"]["id"] == str(operation.pk), "one is enough"
