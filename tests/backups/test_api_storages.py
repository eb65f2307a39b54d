"""`storages/`: who may, what is tried, what is never shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts.models import AuditEvent, Organization
from backups.models import Backup, BackupStatus, StorageKind, StorageTarget
from backups.operations import storages
from backups.storage.s3_client import client_of
from novastack.common.clock import now
from tests.backups import s3_server
from tests.backups.test_storage_s3 import settings_of
from tests.factories import Team, UserFactory, api_client

pytestmark = pytest.mark.django_db


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server.versitygw(tmp_path_factory.mktemp("s3")) as port:
        for name in ("one", "two"):
            from django.test import override_settings

            with override_settings(NOVASTACK_OUTBOUND_ALLOW=["127.0.0.0/8"]):
                client_of(settings_of(port)).create_bucket(Bucket=f"bucket-{name}")
        yield port


@pytest.fixture(autouse=True)
def _loopback(settings: Any) -> None:
    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return f"t{abs(hash(request.node.name)) % 10**9}"


@pytest.fixture
def body(server: int, prefix: str) -> dict[str, Any]:
    return {
        "name": "offsite", "kind": "s3",
        "config": {"endpoint": f"http://127.0.0.1:{server}", "bucket": "bucket-one", "prefix": prefix},
        "secret": {"access_key": s3_server.ACCESS, "secret_key": s3_server.SECRET},
    }  # fmt: skip


@pytest.fixture
def operator() -> Any:
    return api_client(UserFactory(is_staff=True))


def stored(target: StorageTarget, organization: Organization, **fields: Any) -> Backup:
    return Backup.objects.create(
        organization_id=organization.pk, project_uuid=organization.pk, project_name="Shop", project_slug="shop",
        engine="postgresql", version="17", storage=target, status=BackupStatus.STORED, object_key="a", size_bytes=100,
        **fields,
    )  # fmt: skip


URL = "/api/v1/storages/"


def test_a_token_that_only_connects_sees_no_storages(team: Team, target: StorageTarget) -> None:
    client = api_client(team.alice, scopes=["connect"])
    assert client.get(URL).status_code == client.get(f"{URL}{target.pk}/").status_code == 403
    assert api_client(team.alice, scopes=["read"]).get(f"{URL}{target.pk}/").status_code == 200


def test_an_admin_adds_a_bucket_that_was_tried_and_its_secret_is_never_seen_again(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    response = client.post(URL, body)
    assert response.status_code == 201, response.json()
    made = response.json()
    assert response["Location"].endswith(f"/api/v1/storages/{made['id']}/")
    assert (made["organization"], made["kind"], made["test_ok"], made["has_secret"]) == ("acme", "s3", True, True)
    assert made["config"]["bucket"] == "bucket-one"
    for answer in (response, client.get(URL), client.get(f"{URL}{made['id']}/")):
        assert s3_server.SECRET not in answer.content.decode()
        assert s3_server.ACCESS not in answer.content.decode()
    event = AuditEvent.objects.get(action="storage.created")
    assert s3_server.SECRET not in str(event.data)
    assert storages.write_allowed(StorageTarget.objects.get())


def test_the_same_call_again_makes_nothing_new(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    first = client.post(URL, body, headers={"Idempotency-Key": "k"})
    again = client.post(URL, body, headers={"Idempotency-Key": "k"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again["Idempotency-Replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    assert StorageTarget.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "code", "field", "check"),
    [
        ({"secret": {"access_key": "X", "secret_key": "Y"}}, "storage_test_failed", "config.endpoint", "reach"),
        ({"config": {"bucket": "none-such"}}, "storage_test_failed", "config.endpoint", "reach"),
        ({"config": {"endpoint": "http://127.0.0.1:9"}}, "storage_test_failed", "config.endpoint", "reach"),
        ({"config": {"endpoint": "http://169.254.169.254"}}, "storage_test_failed", "config.endpoint", "reach"),
        ({"config": {"endpoint": "gopher://x"}}, "invalid", "config.endpoint", None),
        ({"config": {"bucket": "arn:aws:s3:x"}}, "invalid", "config.bucket", None),
        ({"config": {"prefix": "../other"}}, "invalid", "config.prefix", None),
        ({"config": {"path": "x"}}, "invalid", "config.path", None),
        ({"secret": None}, "invalid", "secret", None),
        ({"name": " "}, "invalid", "name", None),
        ({"kind": "ftp"}, "invalid", "kind", None),
        ({"kind": "filesystem", "config": {"path": "x"}, "secret": None}, "invalid", "kind", None),
        ({"capacity_bytes": 0}, "invalid", "capacity_bytes", None),
        ({"surprise": 1}, "invalid", "surprise", None),
    ],
)  # fmt: skip
def test_what_does_not_work_is_refused_with_the_reason(
    team: Team, body: Any, change: dict[str, Any], code: str, field: str, check: str | None
) -> None:
    given = body | change
    if body["kind"] == given["kind"] and "config" in change:
        given["config"] = body["config"] | change["config"]
    response = api_client(team.adam).post(URL, given)
    assert response.status_code == 400, response.json()
    problem = response.json()
    assert problem["code"] == code
    assert problem["errors"][0]["field"] == field
    if check:
        assert problem["errors"][0]["code"] == check
    assert s3_server.SECRET not in response.content.decode()
    assert not StorageTarget.objects.exists()


def test_a_place_belongs_to_one_target(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    first = client.post(URL, body).json()
    response = client.post(URL, body | {"name": "again"})
    assert (response.status_code, response.json()["code"]) == (409, "storage_owned")
    assert client.post(URL, body | {"name": "Offsite"}).json()["code"] == "name_taken"
    assert client.delete(f"{URL}{first['id']}/").status_code == 204
    assert client.post(URL, body | {"name": "again"}).status_code == 201


def test_one_that_another_install_holds_can_be_taken_over_knowingly(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    made = client.post(URL, body).json()
    target = StorageTarget.objects.get(pk=made["id"])
    storage = storages.storage_of(target)
    writer = storage.writer(storages.OWNER_KEY)
    writer.write(b'{"install": "another", "target": "x", "epoch": "y"}')
    writer.commit()
    result = client.post(f"{URL}{made['id']}/test/").json()
    assert not result["ok"]
    assert result["checks"][-1]["name"] == "owner"
    assert "took it over" in result["storage"]["read_only_reason"]
    response = client.post(URL, body | {"name": "mine"})
    assert (response.status_code, response.json()["code"]) == (409, "storage_owned")
    assert client.post(URL, body | {"name": "mine", "take_over": True}).status_code == 201


def test_a_changed_secret_is_tried_before_it_is_kept(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    made = client.post(URL, body).json()
    url = f"{URL}{made['id']}/"
    wrong = client.patch(url, {"secret": {"access_key": s3_server.ACCESS, "secret_key": "wrong"}})
    assert wrong.json()["code"] == "storage_test_failed"
    assert client.post(f"{url}test/").json()["ok"]
    assert client.patch(url, {"secret": body["secret"], "name": "renamed"}).json()["name"] == "renamed"


def test_what_holds_backups_stays_where_it_is(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    made = client.post(URL, body).json()
    url, target = f"{URL}{made['id']}/", StorageTarget.objects.get()
    stored(target, team.organization)
    shown = client.get(url).json()
    assert (shown["backups"], shown["used_bytes"]) == (1, 100)
    elsewhere = body["config"] | {"prefix": body["config"]["prefix"] + "-other"}
    for response in (client.delete(url), client.patch(url, {"config": elsewhere})):
        assert (response.status_code, response.json()["code"]) == (409, "storage_in_use")
    same = body["config"] | {"endpoint": body["config"]["endpoint"].replace("127.0.0.1", "localhost")}
    assert client.patch(url, {"config": same}).status_code == 200
    Backup.objects.all().delete()
    assert client.patch(url, {"config": elsewhere}).status_code == 200
    target.refresh_from_db()
    assert storages.write_allowed(target)


def test_one_is_the_default(team: Team, body: Any) -> None:
    client = api_client(team.adam)
    first = client.post(URL, body | {"is_default": True}).json()
    second = body | {"name": "second", "config": body["config"] | {"bucket": "bucket-two"}, "is_default": True}
    made = client.post(URL, second).json()
    assert made["is_default"]
    assert not client.get(f"{URL}{first['id']}/").json()["is_default"]
    assert client.patch(f"{URL}{first['id']}/", {"is_default": True}).json()["is_default"]
    default = storages.default_target(team.organization.pk)
    assert default is not None
    assert str(default.pk) == first["id"]


class TestWhoMay:
    def test_members_see_and_do_not_touch(self, team: Team, body: Any) -> None:
        made = api_client(team.adam).post(URL, body).json()
        for person in (team.bob, team.vera):
            client = api_client(person)
            assert client.get(f"{URL}{made['id']}/").status_code == 200
            for response in (
                client.post(URL, body), client.patch(f"{URL}{made['id']}/", {"name": "x"}),
                client.delete(f"{URL}{made['id']}/"), client.post(f"{URL}{made['id']}/test/"),
            ):  # fmt: skip
                assert response.status_code == 403

    def test_outsiders_find_nothing(self, team: Team, body: Any) -> None:
        made = api_client(team.adam).post(URL, body).json()
        client = api_client(team.charlie)
        assert client.get(URL).json()["count"] == 0
        for response in (
            client.get(f"{URL}{made['id']}/"), client.patch(f"{URL}{made['id']}/", {"name": "x"}),
            client.delete(f"{URL}{made['id']}/"), client.post(f"{URL}{made['id']}/test/"),
            client.post(URL, body | {"organization": "acme"}),
        ):  # fmt: skip
            assert response.status_code == 404

    def test_a_token_needs_the_scope(self, team: Team, body: Any) -> None:
        assert api_client(team.alice, scopes=["read", "write"]).post(URL, body).status_code == 403
        assert api_client(team.alice, scopes=["admin"]).post(URL, body).status_code == 201

    def test_folders_and_what_is_for_everybody_are_the_operators(
        self, team: Team, operator: Any, backup_root: Path
    ) -> None:
        wanted = {"name": "nas", "kind": "filesystem", "install_wide": True, "config": {"path": "nas/backups"}}
        assert api_client(team.alice).post(URL, wanted).status_code == 403
        made = operator.post(URL, wanted)
        assert made.status_code == 201, made.json()
        assert made.json()["is_default"]
        assert (backup_root / "nas/backups" / storages.OWNER_KEY).is_file()
        seen = api_client(team.vera).get(f"{URL}{made.json()['id']}/").json()
        assert seen["config"] is None
        assert api_client(team.alice).delete(f"{URL}{made.json()['id']}/").status_code == 403
        for path in ("nas", "nas/backups/inside", "nas/backups"):
            response = operator.post(URL, wanted | {"name": "other", "config": {"path": path}})
            assert response.json()["errors"][0]["code"] == "taken", path
        for path in ("../etc", "/etc", "a//b", ".hidden", ""):
            response = operator.post(URL, wanted | {"name": "other", "config": {"path": path}})
            assert response.json()["errors"][0]["field"] == "config.path", path

    def test_others_backups_are_not_counted_for_a_tenant(
        self, team: Team, operator: Any, target: StorageTarget
    ) -> None:
        stored(target, team.organization)
        stored(target, team.elsewhere)
        stored(target, team.elsewhere, finished_at=now())
        url = f"{URL}{target.pk}/"
        assert api_client(team.vera).get(url).json()["backups"] == 1
        assert api_client(team.charlie).get(url).json()["used_bytes"] == 200
        assert operator.get(url).json()["backups"] == 3


def test_a_list_costs_the_same_however_long_it_is(team: Team, django_assert_max_num_queries: Any) -> None:
    for n in range(6):
        StorageTarget.objects.create(
            organization=team.organization, name=f"s{n}", kind=StorageKind.FILESYSTEM, config={"path": f"s{n}"}
        )
    client = api_client(team.vera)
    client.get(URL)
    with django_assert_max_num_queries(6):
        assert client.get(URL).json()["count"] == 6


def test_a_test_is_made_once_per_key(team: Team, operator: Any, target: StorageTarget, backup_root: Path) -> None:
    url, key = f"{URL}{target.pk}/test/", {"HTTP_IDEMPOTENCY_KEY": "once"}
    first = operator.post(url, **key)
    assert (first.status_code, first.json()["ok"]) == (200, True)
    (backup_root / "here").rename(backup_root / "gone")
    again = operator.post(url, **key)
    assert (again.json()["ok"], again["Idempotency-Replayed"]) == (True, "true")
    assert again.json()["checks"] == first.json()["checks"]
