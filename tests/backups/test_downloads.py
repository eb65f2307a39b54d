"""What becomes of a download that is cut: what is stored goes on where it was, what is decrypted never ends well by half."""

from __future__ import annotations

import os
from typing import Any

import pytest

from accounts.models import AuditEvent
from backups.models import Backup, StorageTarget
from backups.services import downloads
from backups.storage.base import StorageError
from projects.models import Project
from tests.backups.test_api_backups import DUMP, body_of, make, project  # noqa: F401
from tests.factories import Team, api_client

pytestmark = pytest.mark.django_db


@pytest.fixture
def backup(project: Project, target: StorageTarget) -> Backup:  # noqa: F811
    return make(project, target)


def test_what_was_cut_goes_on(team: Team, backup: Backup) -> None:
    client, url = api_client(team.bob), f"/api/v1/backups/{backup.pk}/download/?as=stored"
    whole = client.get(url)
    tag, first = whole["ETag"], next(iter(whole.streaming_content))
    for close in whole._resource_closers:
        close()
    assert downloads.slots._value == downloads.slots._initial_value  # type: ignore[attr-defined]
    rest = client.get(url, HTTP_RANGE=f"bytes={len(first)}-", HTTP_IF_RANGE=tag)
    assert rest.status_code == 206
    found = first + body_of(rest)
    assert len(found) == backup.size_bytes and found == body_of(client.get(url))
    decrypted = client.get(url.replace("stored", "decrypted"), HTTP_RANGE="bytes=5-")
    assert decrypted.status_code == 200 and "Content-Range" not in decrypted
    assert body_of(decrypted) == DUMP  # from its beginning: a client must not take it for the rest


@pytest.mark.parametrize("form", ["stored", "decrypted"])
def test_a_storage_that_stops_in_the_middle_is_no_end(
    team: Team, backup: Backup, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup = make(Project.objects.get(pk=backup.project_uuid), backup.storage, os.urandom(16 << 20))
    real = downloads.storages.storage_of

    def stopping(target: StorageTarget) -> Any:
        storage = real(target)
        opened = storage.open

        def open_(key: str, **more: Any) -> Any:
            source = opened(key, **more)
            left, read = [10 << 20], source.read

            def some(size: int = -1) -> bytes:
                data = bytes(read(size))
                left[0] -= len(data)
                if left[0] < 0:
                    raise StorageError("storage_unreachable", "It went away.", retryable=True)
                return data

            return type("Cut", (), {"read": staticmethod(some), "close": staticmethod(source.close)})()

        monkeypatch.setattr(storage, "open", open_)
        return storage

    monkeypatch.setattr(downloads.storages, "storage_of", stopping)
    response = api_client(team.bob).get(f"/api/v1/backups/{backup.pk}/download/?as={form}")
    if form == "decrypted" and response.status_code == 503:  # it was read ahead: then that is the answer
        assert response.json()["code"] == "storage_unavailable"
        return
    assert response.status_code == 200
    promised, got = int(response["Content-Length"]), 0
    with pytest.raises(StorageError):
        for piece in response.streaming_content:
            got += len(piece)
    assert 0 < got < promised
    assert downloads.slots._value == downloads.slots._initial_value  # type: ignore[attr-defined]


def test_asking_for_its_size_is_no_download(team: Team, backup: Backup) -> None:
    url = f"/api/v1/backups/{backup.pk}/download/"
    answer = api_client(team.bob).head(f"{url}?as=stored")
    assert answer.status_code == 200 and answer["ETag"] == f'"{backup.sha256}"' and answer["Accept-Ranges"] == "bytes"
    assert answer["Content-Length"] == str(backup.size_bytes)
    assert api_client(team.bob).head(url)["Content-Length"] == str(len(DUMP))
    assert api_client(team.vera).head(url).status_code == 403
    assert api_client(team.charlie).head(url).status_code == 404
    Backup.objects.filter(pk=backup.pk).update(status="failed")
    assert api_client(team.bob).head(url).status_code == 409
    assert not AuditEvent.objects.filter(action="backup.downloaded").exists()
    assert downloads.slots._value == downloads.slots._initial_value  # type: ignore[attr-defined]
