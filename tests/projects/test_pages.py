"""Every page, for every role: what it shows, what it refuses. Outsiders get 404, members without the right 403."""

from __future__ import annotations

import pytest
from django.test import Client

from accounts.models import AuditEvent, User
from novastack.common.errors import RuntimeNotAvailable
from projects.models import MetricSample, Operation, OperationEvent, Project
from projects.operations.logs import LogText
from tests.factories import Team, finish_provisioning, make_catalogue, make_project, set_observed

pytestmark = pytest.mark.django_db
HTMX = {"headers": {"HX-Request": "true"}}


def browser(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def shop(team: Team) -> Project:
    return make_project(team.alice, team.organization)


PROJECT_PAGES = ["", "live/", "logs/", "activity/", "settings/"]
EVERYBODY, MEMBERS, ADMINS = {"alice", "adam", "bob", "vera"}, {"alice", "adam", "bob"}, {"alice", "adam"}
GETS = [(page, EVERYBODY) for page in PROJECT_PAGES if page != "logs/"] + [
    ("logs/", MEMBERS),
    ("connect/", MEMBERS), ("connect/password/", MEMBERS), ("rotate/", MEMBERS), ("delete/", MEMBERS),
    ("undelete/", MEMBERS), ("purge/", ADMINS),
]  # fmt: skip
POSTS = [
    ("settings/", MEMBERS), ("connect/password/", MEMBERS), ("connect/secret/", MEMBERS), ("rotate/", MEMBERS),
    ("actions/stop/", MEMBERS), ("actions/start/", MEMBERS), ("delete/", MEMBERS), ("purge/", ADMINS),
    ("undelete/", MEMBERS),
]  # fmt: skip


@pytest.mark.parametrize("person", ["alice", "adam", "bob", "vera", "charlie", None])
@pytest.mark.parametrize(("part", "may"), GETS)
def test_reading_a_page_needs_its_right(
    team: Team, shop: Project, part: str, may: set[str], person: str | None
) -> None:
    client = browser(getattr(team, person)) if person else Client()
    response = client.get(f"/projects/{shop.pk}/{part}")
    if person is None:
        assert response.status_code == 302
        assert response.url.startswith("/accounts/login/")
    elif person == "charlie":
        assert response.status_code == 404
        assert shop.name not in response.content.decode()
    else:
        assert response.status_code == (200 if person in may else 403)


@pytest.mark.parametrize("person", ["bob", "vera", "charlie", None])
@pytest.mark.parametrize(("part", "may"), POSTS)
def test_acting_needs_its_right(team: Team, shop: Project, part: str, may: set[str], person: str | None) -> None:
    client = browser(getattr(team, person)) if person else Client()
    before = Operation.objects.count()
    response = client.post(f"/projects/{shop.pk}/{part}", {"what": "password", "form": "general", "name": "Other"})
    if person is None:
        assert response.status_code == 302
        assert response.url.startswith("/accounts/login/")
    elif person == "charlie":
        assert response.status_code == 404
    elif person not in may:
        assert response.status_code == 403
    else:
        assert response.status_code in {200, 302, 400}
        return
    assert Operation.objects.count() == before
    assert Project.objects.get().name == shop.name


def test_an_unsafe_form_needs_its_token(team: Team, shop: Project) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(team.alice)
    assert client.post(f"/projects/{shop.pk}/actions/stop/").status_code == 403


class TestList:
    def test_it_offers_the_first_project_with_a_curl(self, team: Team) -> None:
        page = browser(team.alice).get("/projects/").content.decode()
        assert "Create your first database" in page
        assert "curl -X POST" in page

    def test_a_viewer_is_offered_nothing_to_create(self, team: Team) -> None:
        page = browser(team.vera).get("/projects/").content.decode()
        assert "/projects/new/" not in page
        assert browser(team.vera).get("/projects/new/").status_code == 403

    def test_it_shows_only_what_is_the_organizations(self, team: Team, shop: Project) -> None:
        foreign = make_project(team.charlie, team.elsewhere, "Foreign")
        page = browser(team.alice).get("/projects/").content.decode()
        assert shop.name in page
        assert foreign.name not in page
        assert f"{shop.endpoint.host}:{shop.endpoint.port}" in page

    def test_it_filters(self, team: Team, shop: Project) -> None:
        make_project(team.alice, team.organization, "Ledger", running=False)
        client = browser(team.alice)
        assert "Ledger" not in client.get("/projects/?search=sho", **HTMX).content.decode()
        assert "Shop" not in client.get("/projects/?status=queued", **HTMX).content.decode()
        assert "No project matches" in client.get("/projects/?search=%00zzz", **HTMX).content.decode()

    def test_it_polls_only_while_something_moves(self, team: Team, shop: Project) -> None:
        client = browser(team.alice)
        assert "data-poll" not in client.get("/projects/", **HTMX).content.decode()
        make_project(team.alice, team.organization, "Ledger", running=False)
        assert "data-poll" in client.get("/projects/", **HTMX).content.decode()

    def test_queries_do_not_grow_with_the_list(self, team: Team, django_assert_max_num_queries) -> None:  # type: ignore[no-untyped-def]
        client = browser(team.alice)
        for n in range(3):
            make_project(team.alice, team.organization, f"Shop {n}")
        with django_assert_max_num_queries(12) as few:
            client.get("/projects/")
        for n in range(12):
            make_project(team.alice, team.organization, f"Store {n}")
        with django_assert_max_num_queries(12) as many:
            client.get("/projects/")
        assert len(many) == len(few)


class TestNew:
    def test_it_creates_and_goes_straight_to_the_project(self, team: Team) -> None:
        make_catalogue()
        client = browser(team.bob)
        response = client.post("/projects/new/", {"name": "Orders <b>", "engine": "postgresql", "version": "17"})
        project = Project.objects.get()
        assert response.status_code == 302
        assert response.url == f"/projects/{project.pk}/"
        assert (project.name, project.version, project.organization) == ("Orders <b>", "17", team.organization)
        page = client.get(response.url).content.decode()
        assert "Orders &lt;b&gt;" in page
        assert "<b>" not in page.split("<h1>")[1].split("</h1>")[0]
        assert "Verify by a real login" in page
        assert "data-poll" in page

    @pytest.mark.parametrize(
        ("sent", "field"),
        [
            ({"name": ""}, "name"),
            ({"name": "x" * 100}, "name"),
            ({"name": "a\x00b"}, "name"),
            ({"engine": "oracle"}, "engine"),
            ({"version": "9"}, "version"),
            ({"region": "mars"}, "region"),
            ({"plan": "galactic"}, "plan"),
            ({"database_name": "x; drop"}, "database_name"),
            ({"username": "postgres"}, "username"),
        ],
    )
    def test_a_refusal_stands_at_its_field(self, team: Team, sent: dict[str, str], field: str) -> None:
        make_catalogue()
        response = browser(team.bob).post("/projects/new/", {"name": "Orders", "engine": "postgresql", **sent})
        assert response.status_code == 400
        assert field in response.context["form"].errors
        assert not Project.objects.exists()

    def test_a_taken_name_stands_at_the_name(self, team: Team, shop: Project) -> None:
        response = browser(team.bob).post("/projects/new/", {"name": shop.name, "engine": "postgresql"})
        assert "name" in response.context["form"].errors

    def test_the_preview_says_whether_the_name_is_free(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        assert "free" in client.get("/projects/new/preview/?name=Inventory service", **HTMX).content.decode()
        page = client.get(f"/projects/new/preview/?name={shop.name}", **HTMX).content.decode()
        assert "this name is taken" in page

    def test_without_a_region_it_says_so(self, team: Team) -> None:
        assert "No region is available" in browser(team.bob).get("/projects/new/").content.decode()


class TestProvisioning:
    def test_the_live_part_asks_for_the_overview_once_it_runs(self, team: Team) -> None:
        project = make_project(team.alice, team.organization, running=False)
        client = browser(team.alice)
        part = client.get(f"/projects/{project.pk}/live/?layout=provisioning&state=queued", **HTMX)
        assert "Cancel" in part.content.decode()
        finish_provisioning(project)
        assert client.get(f"/projects/{project.pk}/live/?layout=provisioning", **HTMX)["HX-Refresh"] == "true"

    def test_a_failure_shows_reason_retry_and_delete(self, team: Team) -> None:
        project = make_project(team.alice, team.organization, running=False)
        error = {"code": "image_missing", "detail": "There is no image <here>.", "retryable": True}
        operation = Operation.objects.get()
        Operation.objects.update(state="failed", error=error)
        Project.objects.update(status="failed", failure=error, status_detail=error["detail"])
        OperationEvent.objects.create(operation=operation, at=operation.created_at, level="error", message="No <image>")
        page = browser(team.alice).get(f"/projects/{project.pk}/").content.decode()
        assert "There is no image &lt;here&gt;." in page
        assert "No &lt;image&gt;" in page
        assert f"/projects/{project.pk}/actions/retry/" in page
        assert f"/projects/{project.pk}/delete/" in page
        assert 'data-poll="2"' not in page

    def test_the_log_goes_on_after_its_cursor(self, team: Team) -> None:
        project = make_project(team.alice, team.organization, running=False)
        operation = Operation.objects.get()
        events = [OperationEvent.objects.create(operation=operation, at=operation.created_at, message=m) for m in "abc"]
        url = f"/projects/{project.pk}/operations/{operation.pk}/log/"
        part = browser(team.alice).get(f"{url}?after={events[1].pk}", **HTMX).content.decode()
        assert part.count("<li") == 2  # one line and the next cursor
        assert f"after={events[2].pk}" in part
        assert browser(team.charlie).get(url).status_code == 404
        text = browser(team.alice).get(f"{url}?download")
        assert text["Content-Type"].startswith("text/plain")


class TestOverview:
    def test_it_shows_figures_charts_and_the_masked_connection(self, team: Team, shop: Project) -> None:
        from datetime import timedelta

        from novastack.common.clock import now

        for minutes in range(0, 60, 6):
            MetricSample.objects.create(
                project=shop, at=now() - timedelta(minutes=minutes), cpu_percent=10, connections=3
            )
        page = browser(team.bob).get(f"/projects/{shop.pk}/").content.decode()
        assert 'class="line"' in page
        assert str(shop.endpoint.port) in page
        secret = shop.databases.get().roles.get(kind="login").secret.open()
        assert secret not in page

    def test_a_viewer_sees_no_credentials(self, team: Team, shop: Project) -> None:
        page = browser(team.vera).get(f"/projects/{shop.pk}/").content.decode()
        assert "connect/secret" not in page
        assert "Rotate" not in page

    @pytest.mark.parametrize("observed", ["unreachable", "stopped", "starting"])
    def test_every_state_has_a_page(self, team: Team, shop: Project, observed: str) -> None:
        set_observed(shop, observed)
        for page in PROJECT_PAGES:
            assert browser(team.bob).get(f"/projects/{shop.pk}/{page}").status_code == 200


class TestConnect:
    def secret(self, project: Project) -> str:
        return str(project.databases.get().roles.get(kind="login").secret.open())

    def test_the_dialog_is_masked_and_writes_no_event(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        for extra in ({}, HTMX):
            page = client.get(f"/projects/{shop.pk}/connect/", **extra).content.decode()
            assert self.secret(shop) not in page
            assert "NVSPASSWORD" not in page
            assert page.count('role="tab"') == 11
        assert not AuditEvent.objects.filter(action="credentials.revealed").exists()

    def test_revealing_is_audited_stored_nowhere_and_masked_again(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        url = f"/projects/{shop.pk}/connect/password/"
        shown = client.post(url, **HTMX)
        assert self.secret(shop) in shown.content.decode()
        assert 'data-remask="30"' in shown.content.decode()
        assert "no-store" in shown["Cache-Control"]
        assert AuditEvent.objects.get(action="credentials.revealed").actor == team.bob
        assert self.secret(shop) not in client.get(url, **HTMX).content.decode()

    @pytest.mark.parametrize("what", ["password", "uri", "cli", "env", "jdbc", "parameters"])
    def test_copying_fetches_the_secret_and_is_audited(self, team: Team, shop: Project, what: str) -> None:
        answer = browser(team.bob).post(f"/projects/{shop.pk}/connect/secret/", {"what": what})
        assert self.secret(shop) in answer.json()["text"]
        assert "no-store" in answer["Cache-Control"]
        assert AuditEvent.objects.get(action="credentials.revealed").data["purpose"] == f"copied {what}"

    def test_an_unknown_snippet_reveals_nothing(self, team: Team, shop: Project) -> None:
        answer = browser(team.bob).post(f"/projects/{shop.pk}/connect/secret/", {"what": "all"})
        assert answer.status_code == 400
        assert not AuditEvent.objects.filter(action="credentials.revealed").exists()

    def test_before_it_is_ready_there_is_nothing_to_connect_to(self, team: Team) -> None:
        project = make_project(team.bob, team.organization, running=False)
        assert browser(team.bob).get(f"/projects/{project.pk}/connect/").status_code == 409


class TestActions:
    def test_stop_records_an_operation_and_says_so(self, team: Team, shop: Project) -> None:
        response = browser(team.bob).post(f"/projects/{shop.pk}/actions/stop/", follow=True)
        assert Operation.objects.filter(kind="stop").exists()
        assert "Shop is stopping" in response.content.decode()

    def test_what_makes_no_sense_now_is_a_note(self, team: Team, shop: Project) -> None:
        response = browser(team.bob).post(f"/projects/{shop.pk}/actions/start/", follow=True)
        assert response.status_code == 200
        assert "Only a stopped project can be started" in response.content.decode()

    def test_it_never_leads_to_another_host(self, team: Team, shop: Project) -> None:
        response = browser(team.bob).post(f"/projects/{shop.pk}/actions/stop/", {"next": "https://evil.example/"})
        assert response.url == f"/projects/{shop.pk}/"

    def test_deleting_needs_the_typed_slug(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        assert client.post(f"/projects/{shop.pk}/delete/", {"confirm": "wrong"}).status_code == 400
        assert not Operation.objects.filter(kind="delete").exists()
        assert client.post(f"/projects/{shop.pk}/delete/", {"confirm": shop.slug}).status_code == 302
        assert Operation.objects.filter(kind="delete").exists()

    def test_protection_refuses_deletion(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        sent = {"form": "protection", "deletion_protection": "on"}
        assert client.post(f"/projects/{shop.pk}/settings/", sent).status_code == 302
        response = client.post(f"/projects/{shop.pk}/delete/", {"confirm": shop.slug})
        assert response.status_code == 400
        assert "deletion protection" in response.content.decode().lower()

    def test_cancel_asks_the_operation_to_stop(self, team: Team) -> None:
        project = make_project(team.bob, team.organization, running=False)
        operation = Operation.objects.get()
        browser(team.bob).post(f"/projects/{project.pk}/operations/{operation.pk}/cancel/")
        operation.refresh_from_db()
        assert operation.cancel_requested_at is not None


class TestSettings:
    def test_it_changes_name_description_and_labels(self, team: Team, shop: Project) -> None:
        sent = {"form": "general", "name": "Store", "description": "For <us>", "labels": "team=payments\n\nenv = prod"}
        assert browser(team.bob).post(f"/projects/{shop.pk}/settings/", sent).status_code == 302
        shop.refresh_from_db()
        assert (shop.name, shop.labels) == ("Store", {"team": "payments", "env": "prod"})

    def test_a_bad_label_stands_at_the_labels(self, team: Team, shop: Project) -> None:
        sent = {"form": "general", "name": "Store", "labels": "no equals sign"}
        response = browser(team.bob).post(f"/projects/{shop.pk}/settings/", sent)
        assert response.status_code == 400
        assert "key=value" in response.content.decode()

    def test_limits_start_a_resize_within_the_plan(self, team: Team, shop: Project) -> None:
        client = browser(team.bob)
        sent = {"form": "limits", "memory_mb": "999999", "cpus": "0.5"}
        response = client.post(f"/projects/{shop.pk}/settings/", sent)
        assert "memory_mb" in response.context["limits"].errors
        sent["memory_mb"] = "256"
        assert client.post(f"/projects/{shop.pk}/settings/", sent).status_code == 302
        assert Operation.objects.filter(kind="resize").exists()


class TestBin:
    @pytest.fixture
    def binned(self, shop: Project) -> Project:
        from datetime import timedelta

        from novastack.common.clock import now

        Project.objects.filter(pk=shop.pk).update(
            desired_status="recycled", status="recycled", recycled_at=now(), recycle_until=now() + timedelta(days=7)
        )
        shop.refresh_from_db()
        return shop

    def test_it_offers_restore_and_purge_by_right(self, team: Team, binned: Project) -> None:
        for person, restore, purge in (("alice", 1, 1), ("bob", 1, 0), ("vera", 0, 0)):
            page = browser(getattr(team, person)).get("/recycle-bin/").content.decode()
            assert binned.name in page
            assert (f"{binned.pk}/actions/undelete/" in page) == bool(restore)
            assert (f"{binned.pk}/purge/" in page) == bool(purge)
        assert binned.name not in browser(team.charlie).get("/recycle-bin/").content.decode()

    def test_restore_brings_it_back(self, team: Team, binned: Project) -> None:
        browser(team.bob).post(f"/projects/{binned.pk}/actions/undelete/")
        assert Operation.objects.filter(kind="undelete").exists()

    def test_a_name_given_away_is_asked_for(self, team: Team, binned: Project) -> None:
        make_project(team.alice, team.organization, binned.name)
        client = browser(team.bob)
        assert client.post(f"/projects/{binned.pk}/actions/undelete/").url == f"/projects/{binned.pk}/undelete/"
        assert client.post(f"/projects/{binned.pk}/undelete/", {"name": binned.name}).status_code == 400
        assert client.post(f"/projects/{binned.pk}/undelete/", {"name": "Shop again"}).status_code == 302

    def test_purging_needs_the_typed_slug(self, team: Team, binned: Project) -> None:
        client = browser(team.adam)
        assert client.post(f"/projects/{binned.pk}/purge/", {"confirm": "x"}).status_code == 400
        assert client.post(f"/projects/{binned.pk}/purge/", {"confirm": binned.slug}).status_code == 302
        assert Operation.objects.filter(kind="purge").exists()


def test_search_finds_projects_and_pages_of_ones_own(team: Team, shop: Project) -> None:
    make_project(team.charlie, team.elsewhere, "Shopping")
    part = browser(team.bob).get("/search/?q=sho", **HTMX).content.decode()
    assert f"/projects/{shop.pk}/" in part
    assert "Shopping" not in part
    assert "Recycle bin" in browser(team.bob).get("/search/?q=bin").content.decode()
    assert browser(team.bob).get(f"/search/?q={shop.endpoint.port}", **HTMX).content.decode().count("Shop") == 1


def test_only_operators_see_the_infrastructure(team: Team, shop: Project) -> None:
    assert browser(team.alice).get("/operator/").status_code == 403
    team.adam.is_staff = True
    team.adam.save()
    page = browser(team.adam).get("/operator/").content.decode()
    assert shop.databases.get().server.handle.name in page
    assert shop.name not in page.split("<main")[1]


def test_a_missing_worker_is_said_only_when_an_operation_was_left_alone(team: Team) -> None:
    from datetime import timedelta

    from novastack.common.clock import now
    from novastack.common.models import Heartbeat

    project = make_project(team.alice, team.organization, running=False)
    client, url = browser(team.alice), f"/projects/{project.pk}/"
    assert "No worker" not in client.get(url).content.decode()  # it has only just been asked for
    Operation.objects.update(created_at=now() - timedelta(minutes=2))
    assert "No worker" in client.get(url).content.decode()
    Operation.objects.update(lease_until=now() + timedelta(seconds=20))
    assert "No worker" not in client.get(url).content.decode()
    Operation.objects.update(lease_until=None)
    Heartbeat.touch("worker:provisioning")
    assert "No worker" not in client.get(url).content.decode()


def test_the_log_is_filtered_marked_and_only_new_lines_are_sent(
    team: Team, shop: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "2026-11-20 12:00:00.123 UTC [77] LOG:  checkpoint <starting>",
        '2026-11-20 12:00:01.000 UTC [77] ERROR:  no table "payments"',
    ]
    away: list[bool] = []

    def read(*, cursor: str = "", tail: int, **_: object) -> LogText:
        if away:
            raise RuntimeNotAvailable("away")
        new = lines[int(cursor or 0) :]
        return LogText(new[-tail:], str(len(lines)), len(new) > tail)

    monkeypatch.setattr("projects.views.logs.logs_read", read)
    client, url = browser(team.bob), f"/projects/{shop.pk}/logs/"
    page = client.get(url).content.decode()
    assert "checkpoint &lt;starting&gt;" in page
    assert 'data-poll="0.8"' in page
    part = client.get(f"{url}?search=PAY&level=error", **HTMX)
    assert "<mark>pay</mark>ments" in part.content.decode()
    assert "checkpoint" not in part.content.decode()
    again = f"{url}?{part.context['again']}"
    assert client.get(again, **HTMX).status_code == 204
    lines.extend(
        ["2026-11-20 12:00:02.000 UTC [77] ERROR:  pay again", "2026-11-20 12:00:02.000 UTC [77] LOG:  pay less"]
    )
    more = client.get(again, **HTMX)
    said = more.content.decode()
    assert said.count("<li") == 1, "the new one that matches, and no other"
    assert 'hx-swap-oob="beforeend"' in said
    assert more.context["cursor"] == "4"
    assert client.get(f"{url}?{more.context['again']}", **HTMX).status_code == 204
    away.append(True)
    gone = client.get(f"{url}?{more.context['again']}", **HTMX)
    assert "No log now: away" in gone.content.decode()
    away.clear()
    back = client.get(f"{url}?{gone.context['again']}", **HTMX)
    assert back.status_code == 200, "so that the words go away"
    assert "No log now" not in back.content.decode()
    lines.extend(f"line {i}" for i in range(600))
    late = client.get(
        f"{url}?{back.context['again'].replace('PAY', '').replace('error', 'all')}", **HTMX
    ).content.decode()
    assert late.count("<li") == 501
    assert "left out here" in late
    assert client.get(f"{url}?download").content.decode().splitlines() == lines


def test_without_a_log_the_page_says_why(team: Team) -> None:
    project = make_project(team.alice, team.organization, running=False)
    page = browser(team.alice).get(f"/projects/{project.pk}/logs/")
    assert page.status_code == 200
    assert "has not been made yet" in page.content.decode()
