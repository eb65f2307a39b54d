"""Pools as operators have them: API, pages, admin, console. Others get nothing."""

from __future__ import annotations

from io import StringIO
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from accounts.models import AuditEvent
from novastack.common.clock import now
from projects import tasks
from projects.models import Database, DatabaseServer, Operation, Plan, Region
from projects.operations import pool_removal, pool_upkeep, pools
from tests.factories import UserFactory, api_client, make_token
from tests.operations.conftest import drive, paper, runtime, team  # noqa: F401 - fixtures
from tests.operations.pool_with_projects import settle, settle_in
from tests.operations.test_pools import begin, fail, held, make, work_of

URL = "/api/v1/database/admin/pools/"
KEYS = {
    "id", "name", "engine", "version", "region", "placement", "databases", "max_databases", "health", "status", "endpoint",
    "limits", "size_bytes", "checked_at",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fast(monkeypatch, settings):
    settings.NOVASTACK_DATA_GRACE_SECONDS = 0
    monkeypatch.setattr(pool_removal, "_movers", [])


@pytest.fixture
def root(runtime):  # noqa: F811
    return UserFactory(email="root@example.test", is_staff=True, is_superuser=True)


@pytest.fixture
def api(root):
    return api_client(root)


@pytest.fixture
def console(root):
    client = Client()
    client.force_login(root)
    return client


@pytest.fixture
def asked(monkeypatch):
    told = []
    monkeypatch.setattr(tasks.check_pool, "apply_async", lambda args, **_: told.append(args[0]))
    return told


# --- who ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("base", ["/api/v1/", "/api/"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("get", ""), ("post", ""), ("get", "{}/"), ("post", "{}/health-check/"), ("post", "{}/drain/"), ("delete", "{}/drain/"),
     ("get", "../stats/")],
)  # fmt: skip
def test_nobody_but_operators(runtime, team, base, method, path):  # noqa: F811
    pool = make()
    url = f"{base}database/admin/pools/{path.format(pool.pk)}".replace("pools/../", "")
    answer = getattr(api_client(team.alice), method)(url, {})
    assert answer.status_code == 403
    assert answer.json()["code"] == "permission_denied"
    assert pool.name not in answer.content.decode()
    assert getattr(api_client(None), method)(url, {}).status_code == 401


def test_a_token_needs_the_admin_scope_for_it(root, runtime):  # noqa: F811
    for scopes, status in ((["read", "write"], 403), (["admin"], 200)):
        _, clear = make_token(root, scopes=scopes)
        assert api_client(None).get(URL, HTTP_AUTHORIZATION=f"Bearer {clear}").status_code == status


# --- list, detail, stats ----------------------------------------------------------------------------------------------------
def test_a_pool_is_shown_as_the_contract_says(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    pool_upkeep.check_pools()
    body = api.get(URL).json()
    assert body["count"] == 1
    shown = body["results"][0]
    assert set(shown) >= KEYS
    assert (shown["id"], shown["name"], shown["placement"]) == (str(pool.pk), pool.name, "pool")
    assert (shown["databases"], shown["max_databases"], shown["health"], shown["status"]) == (1, 5, "healthy", "ready")
    assert shown["endpoint"] == {"host": "127.0.0.1", "port": pool.port}
    assert shown["limits"] == {
        "memory_bytes": 4 << 30, "cpus": 2.0, "max_connections": 120, "connections_per_database": 20,
    }  # fmt: skip
    assert shown["size_bytes"] == 8 << 20
    assert shown["operation"] is None
    assert api.get("/api/database/admin/pools/").json() == body, "the same below /api/"


def test_the_detail_names_who_lives_there_by_opaque_names(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=5)
    shop = settle_in(pool, team, "Shop", paper)
    body = api.get(f"{URL}{pool.pk}/").json()
    member = body["members"][0]
    assert member["database"] == f"tenant_{str(shop.pk).replace('-', '_')}"
    assert (member["project"], member["project_slug"], member["organization"]) == (str(shop.pk), "shop", "acme")
    assert "secret" not in str(body).lower()
    assert "password" not in str(body).lower()
    assert api.get(f"{URL}{uuid4()}/").status_code == 404


def test_filters_search_order_and_pages(api, runtime):  # noqa: F811
    first, second = make(name="b-first"), make(plan=Plan.objects.get(slug="small"), name="a-second")
    assert [p["name"] for p in api.get(URL, {"ordering": "name"}).json()["results"]] == ["a-second", "b-first"]
    for query, names in (
        ({"plan": "small"}, ["a-second"]), ({"engine": "mysql"}, []), ({"region": "local"}, ["a-second", "b-first"]),
        ({"search": "first"}, ["b-first"]), ({"health": "unhealthy"}, []), ({"draining": "true"}, []),
        ({"version": "18", "page_size": 1}, ["a-second"]),
    ):  # fmt: skip
        found = api.get(URL, query | {"ordering": "name"}).json()
        assert [p["name"] for p in found["results"]] == names, query
    DatabaseServer.objects.filter(pk=first.pk).update(draining_at=now())
    assert [p["name"] for p in api.get(URL, {"draining": "true"}).json()["results"]] == ["b-first"]
    refused = api.get(URL, {"region": "moon"})
    assert refused.status_code == 400
    assert refused.json()["errors"][0]["field"] == "region"
    assert api.get(URL, {"health": "so-so"}).status_code == 400
    assert second.plan


def test_a_list_costs_the_same_for_many(api, runtime, django_assert_max_num_queries):  # noqa: F811
    make()
    for number in range(6):
        DatabaseServer.objects.create(
            kind="pool", region=Region.objects.get(slug="local"), engine="postgresql", version="17", name=f"x-{number}",
            memory_bytes=1 << 30, cpus=1, admin_username="novastack", max_databases=9, pool_ready_at=now(),
        )  # fmt: skip
    api.get(URL)
    with django_assert_max_num_queries(12):
        assert api.get(URL).json()["count"] == 7


def test_stats(api, runtime, team, paper):  # noqa: F811
    assert api.get("/api/v1/database/admin/stats/").json()["fill_percent"] is None
    pool = make(max_databases=4)
    settle_in(pool, team, "Shop", paper)
    make(plan=Plan.objects.get(slug="small"), max_databases=6)
    body = api.get("/api/v1/database/admin/stats/").json()
    assert body["pools"]["total"] == 2
    assert body["pools"]["by_status"] == {"ready": 2}
    assert body["pools"]["by_region"] == {"local": 2}
    assert (body["databases"], body["max_databases"], body["free"], body["fill_percent"]) == (1, 10, 9, 10.0)
    assert body["dedicated_servers"]["total"] == 0


# --- by hand ----------------------------------------------------------------------------------------------------------------
def test_made_by_hand_watched_checked_drained_and_gone(api, runtime, asked):  # noqa: F811
    answer = api.post(URL, {"engine": "postgresql", "version": "18", "region": "local", "max_databases": 3})
    assert answer.status_code == 202, answer.json()
    body = answer.json()
    assert answer["Location"].endswith(f"{URL}{body['id']}/")
    assert (body["status"], body["operation"]["kind"], body["operation"]["state"]) == (
        "preparing",
        "prepare_pool",
        "queued",
    )
    assert body["operation"]["url"] == answer["Location"]
    drive(Operation.objects.get())
    assert api.get(f"{URL}{body['id']}/").json()["status"] == "ready"
    assert api.post(f"{URL}{body['id']}/health-check/", {}).status_code == 202
    assert asked == [body["id"]]
    answer = api.post(f"{URL}{body['id']}/drain/", {})
    assert answer.status_code == 202
    assert answer.json()["pool"]["status"] == "draining"
    assert answer.json()["operation"]["kind"] == "drain_pool"
    assert api.post(f"{URL}{body['id']}/drain/", {}).json()["operation"]["id"] == answer.json()["operation"]["id"]
    settle()
    assert api.get(f"{URL}{body['id']}/").status_code == 404
    assert held(runtime) == (set(), set())
    actions = list(AuditEvent.objects.order_by("id").values_list("action", flat=True))
    assert [a for a in actions if a.startswith("pool.")] == ["pool.created", "pool.checked", "pool.draining"]


def test_the_same_key_makes_one(api, runtime):  # noqa: F811
    headers = {"HTTP_IDEMPOTENCY_KEY": "one"}
    first = api.post(URL, {"max_databases": 3}, **headers)
    again = api.post(URL, {"max_databases": 3}, **headers)
    assert first.status_code == again.status_code == 202
    assert again["Idempotency-Replayed"] == "true"
    assert first.json()["id"] == again.json()["id"]
    assert api.post(URL, {"max_databases": 4}, **headers).status_code == 422


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        ({"max_databases": 0}, 409, "pool_settings_invalid", "not 0"),
        ({"memory_bytes": 64 << 20}, 409, "pool_too_small", "needs at least 128 MiB"),
        ({"memory_bytes": 300 << 20}, 409, "pool_too_small", "too little for 50 databases"),
        ({"cpus": 0}, 409, "pool_settings_invalid", "cores"),
        ({"engine": "ferretdb"}, 409, "engine_not_pooled", "can't be shared"),
        ({"engine": "oracle"}, 400, "invalid", "engine"),
        ({"version": "4"}, 400, "invalid", "version"),
        ({"region": "moon"}, 400, "invalid", "region"),
        ({"plan": "huge"}, 400, "invalid", "plan"),
        ({"name": "Not A Name"}, 400, "invalid", "name"),
        ({"max_databases": "many"}, 400, "invalid", "max_databases"),
        ({"size": 3}, 400, "invalid", "size"),
    ],
)
def test_what_cannot_work_is_told_and_nothing_is_made(api, runtime, body, status, code, words):  # noqa: F811
    answer = api.post(URL, body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.json()
    assert words in answer.content.decode()
    assert not DatabaseServer.objects.exists()


def test_one_at_a_time(api, runtime):  # noqa: F811
    api.post(URL, {})
    answer = api.post(URL, {})
    assert (answer.status_code, answer.json()["code"]) == (409, "operation_in_progress")


def test_a_name_is_given_once(api, runtime):  # noqa: F811
    make(name="mine")
    assert api.post(URL, {"name": "mine", "plan": "small"}).json()["errors"][0]["code"] == "taken"


def test_one_that_failed_says_why_and_is_taken_up_again_by_hand(api, runtime):  # noqa: F811
    server = begin()
    Region.objects.update(disk={"used_percent": 93.0, "level": "closed"})
    fail(server)
    shown = api.get(f"{URL}{server.pk}/").json()
    assert (shown["status"], shown["health"]) == ("failed", "unhealthy")
    assert "93 % full" in shown["status_detail"]
    refused = api.post(f"{URL}{server.pk}/health-check/", {})
    assert (refused.status_code, refused.json()["code"]) == (409, "action_not_allowed")
    Region.objects.update(disk={})
    assert api.post(URL, {"version": "18"}).json()["id"] == str(server.pk)


def test_no_worker_can_be_asked(api, runtime, monkeypatch):  # noqa: F811
    pool = make()

    def away(*_, **__):
        raise OSError("no broker")

    monkeypatch.setattr(tasks.check_pool, "apply_async", away)
    answer = api.post(f"{URL}{pool.pk}/health-check/", {})
    assert (answer.status_code, answer.json()["code"]) == (409, "action_not_allowed")


# --- draining the last one ----------------------------------------------------------------------------------------------------
def test_draining_the_last_pool_prepares_another_one_first(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    assert api.post(f"{URL}{pool.pk}/drain/", {}).status_code == 202
    assert DatabaseServer.objects.filter(kind="pool").exclude(pk=pool.pk).get().name == "pg-18-local-2"
    assert Operation.objects.filter(kind="prepare_pool", state="queued").count() == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"disk": {"used_percent": 95.0, "level": "closed"}}, "None can be made in"),
        ({"reachable": False}, "None can be made in"),
        ({"lacks": {"postgresql": {"18": "no image"}}}, "no image"),
        ({"port_end": 20000, "port_start": 20000}, "ports"),
    ],
)
def test_draining_the_last_pool_without_room_elsewhere_is_refused(api, runtime, team, paper, changes, words):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    DatabaseServer.objects.update(port=20000)
    Region.objects.update(**changes)
    answer = api.post(f"{URL}{pool.pk}/drain/", {})
    assert (answer.status_code, answer.json()["code"]) == (409, "no_room_elsewhere"), answer.json()
    assert "1 databases have to move, and other pools have room for 0" in answer.json()["detail"]
    assert words in answer.json()["detail"]
    pool.refresh_from_db()
    assert pool.draining_at is None
    assert Database.objects.get().server_id == pool.pk


def test_with_settings_that_cannot_work_nothing_is_drained(api, runtime, team, paper, settings):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    settings.NOVASTACK_POOL_MAX_DATABASES = 0
    answer = api.post(f"{URL}{pool.pk}/drain/", {})
    assert answer.json()["code"] == "no_room_elsewhere"
    assert "not 0" in answer.json()["detail"]


def test_one_with_room_elsewhere_needs_no_other(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    make(max_databases=5)
    assert api.post(f"{URL}{pool.pk}/drain/", {}).status_code == 202
    assert Operation.objects.filter(kind="prepare_pool").count() == 2


def test_draining_ends_when_asked(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=5)
    settle_in(pool, team, "Shop", paper)
    assert api.delete(f"{URL}{pool.pk}/drain/").json()["code"] == "action_not_allowed"
    api.post(f"{URL}{pool.pk}/drain/", {})
    assert api.delete(f"{URL}{pool.pk}/drain/").status_code == 202
    drive(Operation.objects.get(kind="drain_pool"))
    assert api.get(f"{URL}{pool.pk}/").json()["draining_at"] is None


def test_one_that_is_being_made_is_not_drained(api, runtime):  # noqa: F811
    answer = api.post(f"{URL}{begin().pk}/drain/", {})
    assert (answer.status_code, answer.json()["code"]) == (409, "operation_in_progress")


# --- states ---
def test_states_are_what_is_so(api, runtime, team, paper):  # noqa: F811
    pool = make(max_databases=2)
    url = f"{URL}{pool.pk}/"
    settle_in(pool, team, "A", paper), settle_in(pool, team, "B", paper)
    assert api.get(url).json()["status"] == "full"
    DatabaseServer.objects.update(observed_state="stopped", observed_detail="Killed: out of memory.")
    shown = api.get(url).json()
    assert (shown["status"], shown["health"], shown["status_detail"]) == (
        "unhealthy", "unhealthy", "Killed: out of memory.",
    )  # fmt: skip
    Region.objects.update(reachable=False, reason="no route")
    shown = api.get(url).json()
    assert (shown["status"], shown["health"], shown["status_detail"]) == ("not_available", "unknown", "no route")


# --- pages, admin, console ---
def test_pages(console, runtime, team, paper, asked):  # noqa: F811
    page = console.get(reverse("projects:pools"))
    assert "No pool yet" in page.content.decode()
    assert reverse("projects:pools") in console.get(reverse("projects:operator")).content.decode()
    made = console.post(reverse("projects:pool-new"), {"engine": "postgresql", "region": "local", "max_databases": "4"})
    pool = DatabaseServer.objects.get()
    assert made["Location"] == reverse("projects:pool", args=[pool.pk])
    assert "See that it is wanted" in console.get(made["Location"]).content.decode()
    drive(work_of(pool))
    settle_in(pool, team, "Shop <b>", paper)
    text = console.get(reverse("projects:pools")).content.decode()
    assert pool.name in text
    assert "1 of 4 places taken" in text
    text = console.get(reverse("projects:pool", args=[pool.pk])).content.decode()
    assert "Shop &lt;b&gt;" in text
    assert "20 for each database, guaranteed" in text
    part = console.get(reverse("projects:pool", args=[pool.pk]), HTTP_HX_REQUEST="true").content.decode()
    assert "<html" not in part
    assert 'data-poll="10"' in part
    console.post(reverse("projects:pool-act", args=[pool.pk, "check"]))
    assert asked == [str(pool.pk)]
    shown = console.post(reverse("projects:pool-act", args=[pool.pk, "drain"]), follow=True).content.decode()
    assert "Stop draining" in shown
    assert console.post(reverse("projects:pool-act", args=[pool.pk, "burn"])).status_code == 404


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_databases": "0"}, "A pool has room for 1 to 1000 databases, not 0."),
        ({"memory_mib": "64"}, "needs at least 128 MiB"),
        ({"version": "4"}, "Use one of:"),
    ],
)
def test_the_form_says_what_is_wrong(console, runtime, fields, words):  # noqa: F811
    answer = console.post(reverse("projects:pool-new"), {"engine": "postgresql", "region": "local", **fields})
    assert answer.status_code == 200
    assert words in answer.content.decode()
    assert not DatabaseServer.objects.exists()


def test_pages_are_operators_alone(runtime, team):  # noqa: F811
    pool = make()
    client = Client()
    client.force_login(team.alice)
    for name, args in (("pools", []), ("pool-new", []), ("pool", [pool.pk])):
        assert client.get(reverse(f"projects:{name}", args=args)).status_code == 403
    assert client.post(reverse("projects:pool-act", args=[pool.pk, "drain"])).status_code == 403
    assert not Operation.objects.filter(kind="drain_pool").exists()


def test_admin_checks_and_drains(console, runtime, asked, team):  # noqa: F811
    pool = make()
    url = reverse("admin:projects_databaseserver_changelist")
    text = console.post(
        url, {"action": "check_pools", "_selected_action": [str(pool.pk)]}, follow=True
    ).content.decode()
    assert "Asked for: 1." in text
    assert asked == [str(pool.pk)]
    console.post(url, {"action": "drain_pools", "_selected_action": [str(pool.pk)]}, follow=True)
    pool.refresh_from_db()
    assert pool.draining_at
    dedicated = DatabaseServer.objects.create(
        region=pool.region, engine="postgresql", version="18", memory_bytes=1 << 30, cpus=1, admin_username="novastack",
        project_uuid=uuid4(),
    )  # fmt: skip
    text = console.post(url, {"action": "drain_pools", "_selected_action": [str(dedicated.pk)]}, follow=True)
    assert "This is no pool." in text.content.decode()
    assert console.get(reverse("admin:projects_databaseserver_change", args=[pool.pk])).status_code == 200


def told(*args):
    out = StringIO()
    call_command("pools", *args, stdout=out)
    return out.getvalue()


def test_the_console_makes_lists_and_drains(runtime):  # noqa: F811
    assert "There is no pool" in told()
    assert "pg-18-local-1 is being made" in told("create", "--release", "18", "--memory", "1G", "--max-databases", "4")
    pool = DatabaseServer.objects.get()
    assert pool.memory_bytes == 1 << 30
    drive(work_of(pool))
    assert told("list") == "pg-18-local-1: 0 of 4, ready\n"
    assert "takes no more projects" in told("drain", pool.name)
    settle()
    assert not pools.pools().exists()
    for args, words in (
        (("drain", "nobody"), "There is no pool nobody"), (("create", "--memory", "lots"), "such as 4G"),
        (("create", "--max-databases", "0"), "not 0"), (("create", "--region", "moon"), "region: There is no such region"),
    ):  # fmt: skip
        with pytest.raises(CommandError, match=words):
            call_command("pools", *args)
