"""What a project shows over the API: connection, status, metrics, logs, activity; overview, usage, catalogue."""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import AuditEvent
from accounts.permissions import Principal
from novastack.common.clock import now
from projects import domain
from projects.models import DatabaseServer, MetricSample, Project, Region, TableSnapshot
from projects.operations import wiring
from projects.services import readings as readings_service
from tests.factories import (
    RegionFactory,
    Team,
    UserFactory,
    api_client,
    make_catalogue,
    make_project,
    make_token,
    set_observed,
)


@pytest.fixture
def project(team: Team) -> Project:
    return make_project(team.bob, team.organization)


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


def url(project: Project, rest: str = "") -> str:
    return f"/api/v1/projects/{project.pk}/{rest}"


class TestConnection:
    def test_it_shows_everything_once_ready_and_is_audited(self, bob: APIClient, project: Project) -> None:
        response = bob.get(url(project, "connection"))
        assert response.status_code == 200, response.content
        body = response.json()
        assert set(body) == {
            "host", "port", "database", "username", "password", "tls", "ca_url", "uri", "jdbc_url", "env", "snippets",
        }  # fmt: skip
        assert body["password"] in body["uri"] and body["port"] == project.endpoint.port
        assert response["Cache-Control"] == "no-store"
        event = AuditEvent.objects.get(action="credentials.revealed")
        assert event.project_id == project.pk and body["password"] not in str(event.data)
        project.refresh_from_db()
        assert project.credentials_shown_at is not None

    def test_not_before_it_is_ready(self, bob: APIClient, team: Team) -> None:
        waiting = make_project(team.bob, team.organization, "Waiting", running=False)
        response = bob.get(url(waiting, "connection"))
        assert (response.status_code, response.json()["code"]) == (409, "action_not_allowed")

    def test_it_needs_connect(self, team: Team, project: Project) -> None:
        assert api_client(team.vera).get(url(project, "connection")).status_code == 403
        assert api_client(team.bob, scopes=["read", "write"]).get(url(project, "connection")).status_code == 403
        assert api_client(team.bob, scopes=["connect"]).get(url(project, "connection")).status_code == 200
        assert api_client(team.charlie).get(url(project, "connection")).status_code == 404
        assert AuditEvent.objects.filter(action="credentials.revealed").count() == 1

    def test_a_connect_only_token_sees_nothing_else(self, team: Team, project: Project) -> None:
        client = api_client(team.bob, scopes=["connect"])
        for path in ("", "status", "metrics", "logs", "activity", "operations"):
            assert client.get(url(project, path)).status_code == 403, path
        for path in ("projects", "operations", "projects/stats/overview", "organizations/acme/usage"):
            assert client.get(f"/api/v1/{path}").status_code == 403, path


def test_status(bob: APIClient, project: Project) -> None:
    body = bob.get(url(project, "status")).json()
    assert body["status"] == body["desired_status"] == "running" and body["health"] == "healthy"
    assert body["observed_at"] and body["operation"] is None and body["detail"] == ""
    assert set(body["server"]) == {
        "runtime", "name", "image", "started_at", "cpu_percent", "memory_bytes", "memory_limit_bytes", "connections",
        "connections_limit", "size_bytes", "measured_at", "transactions_per_second", "queries_per_second",
        "cache_hit_percent", "version", "restart_pending", "tls", "tls_not_after", "tls_reason",
    }  # fmt: skip
    assert body["server"]["runtime"] == "memory" and body["server"]["memory_limit_bytes"] == project.memory_bytes


class TestFigures:
    """CPU, memory and connections are those of now, or null; when they were last read stays."""

    def read(self, project: Project, *, seconds_ago: float = 5) -> datetime:
        moment = now() - timedelta(seconds=seconds_ago)
        DatabaseServer.objects.filter(project_uuid=project.pk).update(
            cpu_percent=12.5, memory_used_bytes=1000, usage_at=moment
        )
        Project.objects.filter(pk=project.pk).update(
            connections=7, connections_limit=20, size_bytes=4711, stats_at=moment
        )
        return moment

    def figures(self, client: APIClient, project: Project) -> tuple[Any, ...]:
        server = client.get(url(project, "status")).json()["server"]
        assert server["size_bytes"] == 4711 and server["connections_limit"] == 20
        return server["cpu_percent"], server["memory_bytes"], server["connections"], server["measured_at"] is not None

    def test_fresh(self, bob: APIClient, project: Project) -> None:
        self.read(project)
        assert self.figures(bob, project) == (12.5, 1000, 7, True)

    def test_older_than_two_periods(self, bob: APIClient, project: Project) -> None:
        moment = self.read(project, seconds_ago=61)
        assert self.figures(bob, project) == (None, None, None, True)
        kept = bob.get(url(project, "status")).json()["server"]["measured_at"]
        assert datetime.fromisoformat(kept) == moment

    @pytest.mark.parametrize("observed", ["stopped", "absent", "unreachable", "starting"])
    def test_not_running(self, bob: APIClient, project: Project, observed: str) -> None:
        self.read(project)
        set_observed(project, observed)
        assert self.figures(bob, project) == (None, None, None, True)

    def test_its_region_is_away(self, bob: APIClient, project: Project) -> None:
        self.read(project)
        Region.objects.update(reachable=False)
        assert self.figures(bob, project) == (None, None, None, True)

    def test_the_page_shows_dashes(self, team: Team, project: Project) -> None:
        self.read(project)
        browser = Client()
        browser.force_login(team.bob)
        live = f"/projects/{project.pk}/live/"
        fresh = browser.get(live).content.decode()
        assert "<dd>7</dd>" in fresh and "13 %" in fresh
        self.read(project, seconds_ago=600)
        old = browser.get(live).content.decode()
        assert "<dd>7</dd>" not in old and "13 %" not in old and "1,000 bytes" not in old


class TestMetrics:
    def test_samples_are_averaged_per_bucket_oldest_first(self, bob: APIClient, project: Project) -> None:
        start = now().replace(second=0, microsecond=0) - timedelta(minutes=10)
        for seconds, cpu in ((0, 10.0), (5, 20.0), (60, 40.0)):
            MetricSample.objects.create(
                project=project, at=start + timedelta(seconds=seconds), cpu_percent=cpu, memory_bytes=100, connections=3
            )
        body = bob.get(url(project, "metrics")).json()
        assert body["range"] == "1h" and body["bucket_seconds"] == 30 and body["next"] is None
        assert [row["cpu_percent"] for row in body["results"]] == [15.0, 40.0]
        assert body["results"][0]["size_bytes"] is None and body["results"][0]["connections"] == 3

    @pytest.mark.parametrize("range_", ["1h", "24h", "7d", "30d", "90d"])
    def test_every_range_is_bounded(self, bob: APIClient, project: Project, range_: str) -> None:
        length, width = readings_service.RANGES[range_]
        assert length / width <= 400
        assert bob.get(url(project, f"metrics/?range={range_}")).json()["results"] == []

    @pytest.mark.parametrize("range_", ["2h", "", "%00", "1h;drop"])
    def test_another_range_is_a_400(self, bob: APIClient, project: Project, range_: str) -> None:
        assert bob.get(url(project, f"metrics/?range={range_}")).status_code == 400


class TestTables:
    @pytest.fixture
    def snapshot(self, project: Project) -> TableSnapshot:
        rows = [[f"table_{n}", n, 9000 - n] for n in range(60)] + [["<b>odd</b>\n", None, None]]
        return TableSnapshot.objects.create(project=project, tried_at=now(), at=now(), total=300, tables=rows)

    def test_paged_and_said_to_be_estimates(self, bob: APIClient, project: Project, snapshot: TableSnapshot) -> None:
        body = bob.get(url(project, "tables")).json()
        assert (body["count"], body["total"], body["estimated"]) == (61, 300, True)
        assert datetime.fromisoformat(body["measured_at"]) == snapshot.at
        assert len(body["results"]) == 25
        assert body["results"][1] == {"name": "table_1", "rows": 1, "size_bytes": 8999}
        last = bob.get(url(project, "tables/?page=3")).json()
        assert last["next"] is None and last["results"][-1] == {
            "name": "<b>odd</b>\n",
            "rows": None,
            "size_bytes": None,
        }

    def test_before_the_first_look(self, bob: APIClient, project: Project) -> None:
        body = bob.get(url(project, "tables")).json()
        assert (body["count"], body["total"], body["measured_at"], body["results"]) == (0, 0, None, [])
        TableSnapshot.objects.create(project=project, tried_at=now())
        assert bob.get(url(project, "tables")).json()["measured_at"] is None

    def test_not_for_outsiders(self, team: Team, project: Project, snapshot: TableSnapshot) -> None:
        assert api_client(team.charlie).get(url(project, "tables")).status_code == 404
        assert api_client(team.vera).get(url(project, "tables")).status_code == 200

    def test_the_pages(self, team: Team, project: Project, snapshot: TableSnapshot) -> None:
        browser = Client()
        browser.force_login(team.bob)
        page = browser.get(f"/projects/{project.pk}/tables/?page=3").content.decode()
        assert "300 tables" in page and "The 61 largest are listed." in page
        assert "&lt;b&gt;odd" in page and "<b>odd" not in page
        overview = browser.get(f"/projects/{project.pk}/").content.decode()
        assert "table_4" in overview and "table_5<" not in overview
        snapshot.delete()
        assert "Not read yet" in browser.get(f"/projects/{project.pk}/tables/").content.decode()


class TestRates:
    def test_in_status_metrics_and_prometheus(self, bob: APIClient, project: Project) -> None:
        rates = {"transactions_per_second": 12.345, "queries_per_second": None, "cache_hit_percent": 99.0}
        Project.objects.filter(pk=project.pk).update(stats_at=now(), server_version="18.1", **rates)
        MetricSample.objects.create(project=project, at=now(), **rates)
        server = bob.get(url(project, "status")).json()["server"]
        assert (server["transactions_per_second"], server["queries_per_second"]) == (12.35, None)
        assert (server["cache_hit_percent"], server["version"]) == (99.0, "18.1")
        (point,) = bob.get(url(project, "metrics")).json()["results"]
        assert (point["transactions_per_second"], point["transactions_per_second_max"]) == (12.35, 12.35)
        assert (point["queries_per_second"], point["cache_hit_percent"]) == (None, 99.0)
        text = Client().get("/metrics").content.decode()
        assert 'novastack_transactions_per_second{engine="postgresql"} 12.345' in text
        assert 'novastack_cache_hit_ratio{engine="postgresql"} 0.99' in text
        Project.objects.filter(pk=project.pk).update(stats_at=now() - timedelta(minutes=3))
        assert bob.get(url(project, "status")).json()["server"]["transactions_per_second"] is None
        assert "novastack_transactions_per_second{" not in Client().get("/metrics").content.decode()


class TestLogs:
    @pytest.fixture
    def lines(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        written = [b"one", b"two \xff\x1b[31m", b"three"]
        asked: list[int] = []

        class Runtime:
            def read_log(self, handle: domain.Handle, *, cursor: str, tail: int) -> domain.LogPart:
                asked.append(tail)
                new = written[int(cursor or 0) :]
                return domain.LogPart(tuple(new[-tail:]), str(len(written)), bool(cursor) and len(new) > tail, True)

        monkeypatch.setattr(wiring, "runtime_of", lambda region: Runtime())
        return written

    def test_the_last_lines_oldest_first(self, bob: APIClient, project: Project, lines: list[bytes]) -> None:
        response = bob.get(url(project, "logs/?tail=2"))
        assert response.status_code == 200, response.content
        assert [line["message"] for line in response.json()["results"]] == ["two ��[31m", "three"]
        assert response["Cache-Control"] == "no-store"

    def test_not_for_viewers_and_not_without_read(self, team: Team, project: Project, lines: list[bytes]) -> None:
        """A failed statement stands in it, with the tenant's data."""
        assert api_client(team.vera).get(url(project, "logs")).status_code == 403
        assert api_client(team.bob, scopes=["connect"]).get(url(project, "logs")).status_code == 403
        assert api_client(team.bob, scopes=["read"]).get(url(project, "logs")).status_code == 200
        assert api_client(team.charlie).get(url(project, "logs")).status_code == 404
        browser = Client()
        browser.force_login(team.vera)
        assert browser.get(f"/projects/{project.pk}/logs/").status_code == 403
        assert f"/projects/{project.pk}/logs/" not in browser.get(f"/projects/{project.pk}/").content.decode()
        assert f"/projects/{project.pk}/logs/" not in browser.get("/projects/").content.decode()

    def test_unreachable_is_a_503(self, bob: APIClient, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        class Away:
            def read_log(self, *_: Any, **__: Any) -> Any:
                raise domain.RuntimeUnreachable("no SSH connection to 10.1.2.3:22")

        monkeypatch.setattr(wiring, "runtime_of", lambda region: Away())
        response = bob.get(url(project, "logs"))
        assert (response.status_code, response.json()["code"]) == (503, "runtime_unavailable")
        assert "10.1.2.3" not in response.content.decode(), "hosts are the operators'"
        assert bob.get(url(project)).status_code == 200  # everything else does not mind

    @pytest.mark.parametrize("tail", ["0", "-1", "x", "5001", "1e3", "", "%00", "٣"])
    def test_other_tails_are_400(self, bob: APIClient, project: Project, tail: str) -> None:
        assert bob.get(url(project, f"logs/?tail={tail}")).status_code == 400

    def test_a_region_that_is_away_is_not_asked(self, bob: APIClient, project: Project, lines: list[bytes]) -> None:
        Region.objects.update(reachable=False)
        assert bob.get(url(project, "logs")).status_code == 503

    def test_followed_by_cursor_each_line_comes_once(
        self, bob: APIClient, project: Project, lines: list[bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(readings_service, "FOLLOW_EVERY_SECONDS", 0.05)
        first = bob.get(url(project, "logs/?tail=1&follow=true&wait=30")).json()
        assert [line["message"] for line in first["results"]] == ["three"]
        assert first["running"] is True
        timer = threading.Timer(0.3, lines.extend, [[b"four", b"five"]])
        timer.start()
        began = time.monotonic()
        second = bob.get(first["next"]).json()
        assert time.monotonic() - began < 20, "at once when there is a line, not when the time is over"
        assert [line["message"] for line in second["results"]] == ["five"]
        assert second["gap"] is True, "more than tail"
        began = time.monotonic()
        third = bob.get(url(project, f"logs/?follow=1&wait=1&cursor={second['cursor']}")).json()
        assert 0.5 < time.monotonic() - began < 20
        assert third["results"] == []
        assert third["cursor"] == second["cursor"]
        assert bob.get(url(project, "logs")).json()["next"] is None, "who goes through pages comes to an end"

    def test_three_follow_at_a_time(self, bob: APIClient, project: Project, lines: list[bytes], team: Team) -> None:
        taken = [readings_service._follower(Principal.of(team.bob), 1) for _ in range(3)]
        refused = bob.get(url(project, "logs/?follow=true"))
        assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
        assert refused["Retry-After"]
        assert bob.get(url(project, "logs")).status_code == 200
        cache.delete(taken[0])
        for _ in range(2):
            assert bob.get(url(project, "logs/?follow=true")).status_code == 200, "each gives its place back"

    @pytest.mark.parametrize("query", ["follow=x", "wait=0", "wait=31", "cursor=%00", "cursor=" + "x" * 201])
    def test_other_questions_are_400(self, bob: APIClient, project: Project, query: str) -> None:
        assert bob.get(url(project, f"logs/?{query}")).status_code == 400

    def test_where_the_web_sees_no_runtime_a_worker_reads(
        self, bob: APIClient, project: Project, lines: list[bytes], settings: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from projects import tasks

        settings.NOVASTACK_WEB_SEES_RUNTIMES = False
        monkeypatch.setattr(readings_service, "RELAY_SECONDS", 0.2)
        monkeypatch.setattr(tasks.read_logs, "apply_async", lambda args, **_: tasks.read_logs(*args))
        first = bob.get(url(project, "logs")).json()
        assert len(first["results"]) == 3
        lines.append(b"four")
        more = bob.get(url(project, f"logs/?follow=true&cursor={first['cursor']}")).json()
        assert [line["message"] for line in more["results"]] == ["four"]
        monkeypatch.setattr(tasks.read_logs, "apply_async", lambda args, **_: None)
        assert bob.get(url(project, "logs")).status_code == 503


class TestActivity:
    def test_events_of_this_project_by_cursor(self, bob: APIClient, team: Team, project: Project) -> None:
        make_project(team.bob, team.organization, "Other")
        bob.patch(url(project), {"name": "New"})
        body = bob.get(url(project, "activity/?page_size=1")).json()
        assert "count" not in body and body["next"]
        assert [event["action"] for event in body["results"]] == ["project.changed"]
        older = bob.get(body["next"]).json()
        assert [event["action"] for event in older["results"]] == ["project.created"] and older["next"] is None

    def test_a_viewer_may_not(self, team: Team, project: Project) -> None:
        assert api_client(team.vera).get(url(project, "activity")).status_code == 403


class TestOverview:
    @pytest.mark.parametrize("size", [1, 30])
    def test_counts_at_a_constant_number_of_queries(
        self, team: Team, size: int, django_assert_max_num_queries: Any
    ) -> None:
        team.organization.max_memory_bytes = team.organization.max_storage_bytes = 2**50
        team.organization.save()
        for number in range(size):
            make_project(team.bob, team.organization, f"P{number}")
        Project.objects.update(size_bytes=10, connections=2)
        make_project(team.charlie, team.elsewhere, "Theirs")
        _, clear = make_token(team.bob)
        client = APIClient(headers={"Authorization": f"Bearer {clear}"})
        with django_assert_max_num_queries(7):
            body = client.get("/api/v1/projects/stats/overview").json()
        assert body["projects"] == {
            "total": size, "by_status": {"running": size}, "by_engine": {"postgresql": size},
            "by_region": {"local": size},
        }  # fmt: skip
        assert body["storage_bytes"] == 10 * size and body["connections"] == 2 * size
        assert len(body["activity"]) == 14 and body["activity"][-1]["count"] >= size

    def test_of_one_organization(self, bob: APIClient, project: Project) -> None:
        assert bob.get("/api/v1/projects/stats/overview?organization=acme").json()["projects"]["total"] == 1
        assert bob.get("/api/v1/projects/stats/overview?organization=elsewhere").status_code == 404


def test_usage(bob: APIClient, team: Team, project: Project) -> None:
    body = bob.get("/api/v1/organizations/acme/usage").json()
    assert body["projects"] == {"limit": 40, "used": 1}
    assert body["memory_bytes"]["used"] == project.memory_bytes
    assert body["storage_bytes"]["used"] == project.storage_bytes
    assert bob.get(f"/api/v1/organizations/{team.organization.pk}/usage/").status_code == 200
    assert bob.get("/api/v1/organizations/elsewhere/usage").status_code == 404


class TestCatalogue:
    def test_engines(self, bob: APIClient) -> None:
        make_catalogue()
        RegionFactory(slug="later", name="Later", runtime="")
        body = bob.get("/api/v1/engines").json()
        engine = next(row for row in body["results"] if row["name"] == "postgresql")
        assert body["count"] == len(body["results"]) and engine["available"] is True and engine["reason"] == ""
        assert engine["runtimes"] == ["memory"]
        assert engine["default_version"] in {version["version"] for version in engine["versions"]}

    def test_an_unreachable_region_says_so(self, bob: APIClient) -> None:
        make_catalogue()
        Region.objects.update(reachable=False, reason="/run/docker.sock: refused")
        engine = bob.get("/api/v1/engines/").json()["results"][0]
        assert engine["available"] is False
        assert engine["reason"] == "The region's runtime can't be reached. Projects wait for it."
        region = bob.get("/api/v1/regions/").json()["results"][0]
        assert (region["available"], region["reachable"]) == (True, False)
        assert region["reason"] == "The region's runtime can't be reached."

    @pytest.mark.django_db
    def test_operators_read_why(self) -> None:
        make_catalogue()
        Region.objects.update(reachable=False, reason="/run/docker.sock: refused")
        operator = api_client(UserFactory(is_staff=True))
        assert "docker.sock" in operator.get("/api/v1/engines/").json()["results"][0]["reason"]
        assert "docker.sock" in operator.get("/api/v1/regions/").json()["results"][0]["reason"]

    def test_regions_and_plans(self, bob: APIClient) -> None:
        make_catalogue()
        RegionFactory(slug="off", name="Off", enabled=False)
        assert [row["slug"] for row in bob.get("/api/v1/regions/").json()["results"]] == ["local"]
        plan = bob.get("/api/v1/plans/").json()["results"][0]
        assert plan["slug"] == "small" and plan["is_default"] is True and plan["cpus"] == 0.5
