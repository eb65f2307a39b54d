"""/healthz, /readyz, /metrics and the health of the API."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError
from django.test import Client

from novastack.common import health
from novastack.common.clock import now
from novastack.common.models import Heartbeat
from projects.models import Project, Region
from projects.services import fleet
from tests.factories import PlanFactory, UserFactory, api_client, make_team

pytestmark = pytest.mark.django_db
NAMES = {"api", "database", "broker", "worker", "beat", "runtime", "storage",
         "postgresql", "mysql", "mariadb", "mongodb", "ferretdb"}  # fmt: skip


@pytest.fixture
def well(monkeypatch: Any) -> None:
    Region.objects.update(enabled=False)
    Region.objects.create(slug="here", name="Here", runtime="memory")
    Heartbeat.touch("beat")
    for queue in fleet.QUEUES:
        Heartbeat.touch(f"worker:{queue}")
    monkeypatch.setattr(fleet, "_broker", fleet._BrokerState())


def operator_client() -> Any:
    return api_client(UserFactory(is_staff=True))


def test_healthz_asks_nobody(client: Client, django_assert_num_queries: Any) -> None:
    with django_assert_num_queries(0):
        assert client.get("/healthz").status_code == 200
    assert client.post("/healthz").status_code == 405


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_answer_whatever_the_host(client: Client, settings: Any, path: str) -> None:
    """Load balancers and container checks ask by address; everything else keeps to ALLOWED_HOSTS."""
    settings.ALLOWED_HOSTS = ["dbs.example.test"]
    assert client.get(path, headers={"Host": "10.1.2.3:8000"}).status_code == 200
    assert client.head(path, headers={"Host": "not a host"}).status_code == 200
    assert client.post(path, headers={"Host": "10.1.2.3:8000"}).status_code == 405
    for other in ("/", f"{path}/", "/metrics", "/api/v1/health/"):
        assert client.get(other, headers={"Host": "10.1.2.3:8000"}).status_code == 400, other


def test_readyz_names_what_is_missing(client: Client, monkeypatch: Any) -> None:
    assert client.get("/readyz").json() == {"status": "ready", "failing": []}
    monkeypatch.setattr(health, "cache_ok", lambda: False)
    response = client.get("/readyz")
    assert (response.status_code, response.json()["failing"]) == (503, ["cache"])
    monkeypatch.setattr(health, "database_ok", lambda: False)
    assert client.get("/readyz").json()["failing"] == ["database"]


def test_a_database_that_is_away_is_said_not_raised(monkeypatch: Any) -> None:
    def away() -> None:
        raise DatabaseError

    monkeypatch.setattr(health.connection, "cursor", away)
    assert health.database_ok() is False


@pytest.mark.usefixtures("well")
class TestApi:
    def test_strangers_see_one_word(self) -> None:
        for path in ("/api/v1/health", "/api/v1/health/"):
            response = api_client().get(path)
            assert (response.status_code, response.json()) == (200, {"status": "healthy"})

    def test_people_see_the_parts_and_operators_the_reasons(self) -> None:
        Heartbeat.objects.filter(name="worker:backups").update(at=now() - timedelta(minutes=2))
        body = api_client(UserFactory()).get("/api/v1/health/").json()
        assert body.keys() == {"status", "timestamp", "version", "uptime", "checks"}
        assert body["checks"].keys() == NAMES
        assert body["checks"]["worker"] == {"status": "degraded"}
        assert "backups" in operator_client().get("/api/v1/health/").json()["checks"]["worker"]["detail"]

    @pytest.mark.parametrize(
        ("part", "change"),
        [
            ("beat", lambda: Heartbeat.objects.filter(name="beat").delete()),
            ("runtime", lambda: Region.objects.update(reachable=False, reason="Docker is away")),
            ("storage", lambda: Region.objects.update(disk={"used_percent": 93.0})),
        ],
    )
    def test_one_part_degrades_the_whole(self, part: str, change: Any) -> None:
        change()
        body = operator_client().get("/api/v1/health/").json()
        assert body["status"] == body["checks"][part]["status"] == "degraded"
        assert body["checks"][part]["detail"]

    @pytest.mark.parametrize(
        ("running", "others", "away", "expected"),
        [
            (0, {"failed": 3}, False, "healthy"),
            (5, {"unhealthy": 1, "failed": 5}, False, "healthy"),
            (5, {"unhealthy": 2}, False, "degraded"),
            (28, {"unhealthy": 3}, False, "healthy"),
            (27, {"unhealthy": 2, "not_available": 2}, False, "degraded"),
            (1, {"recycled": 1}, False, "healthy"),
            (1, {}, True, "degraded"),
            (0, {"recycled": 1}, True, "healthy"),
            (5, {"broken": 2}, False, "degraded"),
            (0, {"broken": 3}, False, "degraded"),
            (5, {"broken": 1}, False, "healthy"),
        ],
    )
    def test_an_engine_is_judged_by_its_fleet(
        self, running: int, others: dict[str, int], away: bool, expected: str
    ) -> None:
        region = Region.objects.get(slug="here")
        common = {"organization": make_team().organization, "region": region, "plan": PlanFactory(), "engine": "postgresql",
                  "version": "17", "memory_bytes": 1, "cpus": 1, "storage_bytes": 1}  # fmt: skip
        for status, count in {"running": running, **others}.items():
            for number in range(count):
                name = f"{status}-{number}".replace("_", "-")
                # Its data is missing, say: it was ready once, so that nobody hears of it by asking for it.
                shown = {"status": "failed", "ready_at": now()} if status == "broken" else {"status": status}
                Project.objects.create(name=name, slug=name, **shown, **common)
        Region.objects.filter(slug="here").update(reachable=not away)
        assert operator_client().get("/api/v1/health/").json()["checks"]["postgresql"]["status"] == expected

    def test_a_broker_that_is_away(self, monkeypatch: Any) -> None:
        def refuse() -> None:
            raise OSError

        monkeypatch.setattr(fleet.current_app, "connection_for_write", refuse)
        body = operator_client().get("/api/v1/health/").json()
        assert body["checks"]["broker"]["status"] == "degraded"


class TestMetrics:
    def test_loopback_without_a_proxy_or_the_token(self, client: Client, settings: Any) -> None:
        response = client.get("/metrics")
        assert response.status_code == 200
        assert "novastack_info" in response.content.decode()
        assert client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 401
        assert client.get("/metrics", REMOTE_ADDR="203.0.113.1").status_code == 401
        settings.NOVASTACK_METRICS_TOKEN = "t0ken"
        outside = {"REMOTE_ADDR": "203.0.113.1"}
        assert client.get("/metrics", headers={"Authorization": "Bearer t0ken"}, **outside).status_code == 200
        refused = client.get("/metrics", headers={"Authorization": "Bearer é"}, **outside)
        assert (refused.status_code, refused["Content-Type"]) == (401, "application/problem+json")

    def test_an_empty_token_opens_nothing(self, client: Client, settings: Any) -> None:
        settings.NOVASTACK_METRICS_TOKEN = ""
        response = client.get("/metrics", headers={"Authorization": "Bearer "}, REMOTE_ADDR="203.0.113.1")
        assert response.status_code == 401

    def test_it_counts_without_naming_tenants(self, client: Client) -> None:
        Heartbeat.touch("beat")
        text = client.get("/metrics").content.decode()
        assert 'novastack_heartbeat_timestamp_seconds{process="beat"}' in text
        assert "novastack_database_size_bytes 0.0" in text
