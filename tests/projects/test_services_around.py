"""Services around a database: a real HTTP service on 127.0.0.1 that can be good, slow, broken, or a liar."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client

from accounts.permissions import Principal
from novastack.common import outbound
from novastack.common.secrets import Sealed
from projects import connectors
from projects.models import (
    Operation,
    Orphan,
    Project,
    ProjectService,
    Region,
    ServiceConnector,
)
from projects.operations import registration
from projects.operations.base import LeaseLost
from projects.services import ProjectRequest, project_create, project_delete, project_purge
from projects.services.project_services import service_action, services_of
from tests.factories import RegionFactory, Team, UserFactory, api_client
from tests.operations.conftest import drive, let_lease_expire, let_time_pass, once, operation_of, paper, runtime  # noqa: F401

pytestmark = pytest.mark.django_db
TYPES = ("auth", "realtime", "storage")


class Service:
    """A service that keeps what it is told, by message id, and checks signatures as its own docs say."""

    def __init__(self) -> None:
        self.secret = connectors.new_secret()
        self.known: dict[str, str] = {}
        self.calls: list[tuple[str, str]] = []
        self.answer: Callable[[BaseHTTPRequestHandler, dict[str, Any]], bool] = lambda *_: False
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.check(self.headers, body)
                told = json.loads(body)
                service.calls.append((told["event"], self.headers["webhook-id"]))
                if not service.answer(self, told):
                    service.serve(self, told)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def check(self, headers: Any, body: bytes) -> None:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert hmac.compare_digest(wanted, headers["webhook-signature"])
        assert abs(time.time() - int(headers["webhook-timestamp"])) < 60

    def serve(self, handler: BaseHTTPRequestHandler, told: dict[str, Any]) -> None:
        if told["event"] == "project.register":
            name = f"{told['service']}-{told['project']['id'][-6:]}"
            self.known[f"{told['service']}:{told['project']['id']}"] = name
            say(handler, 201, {"service_id": name, "endpoint": "wss://rt.example/x", "config": {"key": "v"}})
        elif told["event"] == "project.deregister":
            gone = self.known.pop(f"{told['service']}:{told['project']['id']}", None)
            say(handler, 200 if gone else 404, {})
        else:
            say(handler, 200, {})


def say(handler: BaseHTTPRequestHandler, status: int, body: Any, raw: bytes | None = None) -> bool:
    data = json.dumps(body).encode() if raw is None else raw
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)
    return True


@pytest.fixture
def service(settings: Any) -> Iterator[Service]:
    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]
    found = Service()
    yield found
    found.server.shutdown()
    found.server.server_close()


def connect(
    service: Service, region: Region | None = None, types: tuple[str, ...] = TYPES, *, timeout_seconds: int = 10
) -> None:
    for name in types:
        ServiceConnector.objects.create(
            region=region or RegionFactory(), service_type=name, url=service.url, timeout_seconds=timeout_seconds,
            signing_secret=Sealed.of(service.secret),
        )  # fmt: skip


def create(team: Team, services: tuple[str, ...] = TYPES) -> Project:
    RegionFactory()
    return project_create(
        principal=Principal.of(team.alice), organization=team.organization,
        request=ProjectRequest(name="Shop", services=frozenset(services)),
    )  # fmt: skip


def statuses(project: Project) -> dict[str, str]:
    return {row.service_type: row.status for row in ProjectService.objects.filter(project=project)}


def act(team: Team, project: Project, service: str, action: str) -> Operation:
    made = service_action(principal=Principal.of(team.alice), project=project, service=service, action=action)
    return drive(made)


@pytest.fixture
def ready(team: Team, runtime: Any, paper: Any, service: Service) -> Project:  # noqa: F811
    connect(service)
    project = create(team)
    assert drive(operation_of(project)).state == "succeeded"
    project.refresh_from_db()
    return project


class TestProvisioning:
    def test_each_is_active_because_it_said_so(self, ready: Project, service: Service) -> None:
        assert statuses(ready) == dict.fromkeys(TYPES, "active")
        row = ProjectService.objects.get(project=ready, service_type="auth")
        assert row.service_id == service.known[f"auth:{ready.pk}"]
        assert row.endpoint == "wss://rt.example/x" and row.config == {"key": "v"}

    def test_none_is_active_without_an_endpoint(self, team: Team, runtime: Any, paper: Any) -> None:  # noqa: F811
        project = create(team, ("auth",))
        assert drive(operation_of(project)).state == "succeeded"
        row = ProjectService.objects.get()
        assert (row.status, row.reason) == ("disabled", registration.NOT_CONFIGURED)

    @pytest.mark.parametrize(
        ("answer", "code"),
        [
            (lambda h, t: say(h, 500, {}), "service_failed"),
            (lambda h, t: say(h, 200, {}), "service_answer_invalid"),
            (lambda h, t: say(h, 200, None, b"<html>"), "service_answer_invalid"),
            (lambda h, t: say(h, 200, {"service_id": "x" * 201}), "service_answer_invalid"),
            (lambda h, t: say(h, 200, {"service_id": "a", "endpoint": "javascript:x"}), "service_answer_invalid"),
            (lambda h, t: say(h, 200, {"service_id": "a", "config": {"k": "\0"}}), "service_answer_invalid"),
            (lambda h, t: say(h, 200, {"service_id": "a", "config": {"k": "x" * 70_000}}), "service_unreachable"),
            (lambda h, t: time.sleep(3) or True, "service_unreachable"),
        ],
        ids=["500", "says nothing", "no JSON", "id", "endpoint", "null byte", "too much", "hangs"],
    )
    def test_its_failure_is_retried_as_the_design_says(
        self, team: Team, runtime: Any, paper: Any, service: Service, answer: Any, code: str  # noqa: F811
    ) -> None:  # fmt: skip
        connect(service, types=("auth",), timeout_seconds=1 if code == "service_unreachable" else 10)
        project = create(team, ("auth",))
        operation = operation_of(project)
        service.answer = answer
        once(operation)
        step = operation.steps.get(name="services")
        assert (step.state, step.error_code) == ("retrying", code), step.detail
        assert operation.next_attempt_at and operation.live
        assert ProjectService.objects.get().status == "error"
        project.refresh_from_db()
        assert project.ready_at is None, "nothing is called done that was not"
        service.answer = lambda *_: False
        assert drive(operation).state == "succeeded"
        assert statuses(project) == {"auth": "active"}
        ids = {name for event, name in service.calls if event == "project.register"}
        assert len(ids) == 1, "every try of one registration carries the same id"

    def test_after_all_tries_it_is_undone_and_nobody_knows_the_project(
        self, team: Team, runtime: Any, paper: Any, service: Service  # noqa: F811
    ) -> None:  # fmt: skip
        connect(service)
        project = create(team)
        service.answer = lambda h, t: t["service"] == "storage" and say(h, 503, {})
        operation = drive(operation_of(project), turns=60)
        assert operation.state == "failed" and operation.error["code"] == "service_failed"
        assert operation.attempt == 3
        assert service.known == {}
        assert set(statuses(project).values()) <= {"disabled", "error"}
        assert not list(runtime.managed())
        assert Orphan.objects.get().kind == "service", "what it may still know is written down"

    def test_a_refusal_for_good_is_not_retried(self, team: Team, runtime: Any, paper: Any, service: Service) -> None:  # noqa: F811
        connect(service, types=("auth",))
        service.answer = lambda h, t: t["event"] == "project.register" and say(h, 422, {})
        operation = drive(operation_of(create(team, ("auth",))))
        assert operation.state == "failed" and operation.error["code"] == "service_refused" and operation.attempt == 1


class TestKilledWorkers:
    def test_one_that_died_after_the_service_was_told_leaves_nobody_behind(
        self, team: Team, runtime: Any, paper: Any, service: Service, monkeypatch: pytest.MonkeyPatch  # noqa: F811
    ) -> None:  # fmt: skip
        """The service knows the project, the row does not say so yet; then the project is purged."""
        connect(service, types=("auth",))
        project = create(team, ("auth",))
        operation = operation_of(project)
        with monkeypatch.context() as patched:
            patched.setattr(registration, "_write", lambda *_: (_ for _ in ()).throw(LeaseLost()))
            once(operation)
        assert service.known and statuses(project) == {"auth": "disabled"}
        alice = Principal.of(team.alice)
        purge = project_purge(principal=alice, project=project, confirm=project.slug)
        for _ in range(6):
            for each in (operation, purge):
                let_time_pass(each)
                let_lease_expire(each)
                once(each)
        assert service.known == {}


class TestActing:
    def test_disable_and_enable(self, team: Team, ready: Project, service: Service) -> None:
        assert act(team, ready, "auth", "disable").state == "succeeded"
        assert f"auth:{ready.pk}" not in service.known and statuses(ready)["auth"] == "disabled"
        assert statuses(ready)["storage"] == "active"
        assert act(team, ready, "auth", "enable").state == "succeeded"
        assert statuses(ready)["auth"] == "active"
        ids = [name for event, name in service.calls if event == "project.register" and ".auth." in name]
        assert len(set(ids)) == 2, "a new registration has an id of its own"

    def test_an_error_ends_soon_says_why_and_can_be_retried(self, team: Team, ready: Project, service: Service) -> None:
        act(team, ready, "auth", "disable")
        service.answer = lambda h, t: say(h, 502, {})
        operation = act(team, ready, "auth", "enable")
        assert operation.state == "failed" and operation.steps.get().attempt == 2
        shown = next(s for s in services_of(ready) if s.service_type == "auth")
        assert (shown.status, shown.reason, shown.actions) == (
            "error", "The auth service answered 502.", ("retry", "disable"),
        )  # fmt: skip
        ready.refresh_from_db()
        assert ready.status == "running", "the database is as well as before"
        service.answer = lambda *_: False
        assert act(team, ready, "auth", "retry").state == "succeeded"

    def test_a_purge_takes_leave(self, team: Team, ready: Project, service: Service) -> None:
        alice = Principal.of(team.alice)
        drive(project_delete(principal=alice, project=ready))
        purge = project_purge(principal=alice, project=ready, confirm=ready.slug)
        once(purge)
        assert service.known == {} and purge.steps.get(name="services").state == "succeeded"

    def test_a_service_that_is_gone_for_ever_does_not_hold_a_purge_up(
        self, team: Team, ready: Project, service: Service
    ) -> None:
        service.answer = lambda h, t: t["service"] == "auth" and say(h, 500, {})
        alice = Principal.of(team.alice)
        drive(project_delete(principal=alice, project=ready))
        purge = project_purge(principal=alice, project=ready, confirm=ready.slug)
        for _ in range(4):
            let_time_pass(purge)
            once(purge)
        assert purge.steps.get(name="services").state == "succeeded"
        orphan = Orphan.objects.get()
        assert orphan.kind == "service" and ready.slug in orphan.note


class TestApi:
    def url(self, project: Project, rest: str = "") -> str:
        return f"/api/v1/projects/{project.pk}/services/{rest}"

    def test_it_lists_all_three_and_acts(self, team: Team, ready: Project, service: Service) -> None:
        bob = api_client(team.bob)
        body = bob.get(self.url(ready)).json()
        assert [r["service"] for r in body["results"]] == list(TYPES)
        assert body["results"][0]["config"] == {"key": "v"} and body["results"][0]["available"]
        response = bob.post(self.url(ready, "auth/"), {"action": "disable"}, headers={"Idempotency-Key": "s"})
        assert response.status_code == 202 and response.json()["operation"]["kind"] == "deregister_services"
        again = bob.post(self.url(ready, "auth/"), {"action": "disable"}, headers={"Idempotency-Key": "s"})
        assert again.json()["operation"]["id"] == response.json()["operation"]["id"]
        drive(Operation.objects.get(pk=response.json()["operation"]["id"]))
        refused = bob.post(self.url(ready, "auth/"), {"action": "retry"})
        assert refused.status_code == 409 and refused.json()["code"] == "action_not_allowed"

    def test_bad_input(self, team: Team, ready: Project) -> None:
        bob = api_client(team.bob)
        assert bob.post(self.url(ready, "mail/"), {"action": "enable"}).status_code == 404
        assert bob.get(self.url(ready, "mail/")).status_code == 404
        assert bob.post(self.url(ready, "auth/"), {"action": "x"}).status_code == 400

    def test_viewers_read_no_configuration(self, team: Team, ready: Project) -> None:
        vera = api_client(team.vera)
        assert {r["config"] for r in vera.get(self.url(ready)).json()["results"]} == {None}
        assert vera.post(self.url(ready, "auth/"), {"action": "disable"}).status_code == 403

    def test_resources_are_what_exists(self, team: Team, ready: Project) -> None:
        bob = api_client(team.bob)
        bob.post(f"/api/v1/projects/{ready.pk}/api-keys/", {"name": "k"})
        rows = bob.get(f"/api/v1/projects/{ready.pk}/resources/").json()["results"]
        assert sorted(r["type"] for r in rows) == [
            "api_keys",
            "databases",
            "services",
            "services",
            "services",
            "storage",
        ]

    def test_a_plan_s_number(self, team: Team, ready: Project, db: Any) -> None:
        ready.plan.max_services = 1
        ready.plan.save()
        response = api_client(team.bob).post(
            "/api/v1/projects/", {"name": "Two", "services": {"auth": True, "storage": True}}
        )
        assert response.status_code == 400 and response.json()["errors"][0]["field"] == "services"


class TestPage:
    def test_it_shows_and_acts(self, team: Team, ready: Project) -> None:
        client = Client()
        client.force_login(team.bob)
        page = f"/projects/{ready.pk}/services/"
        assert "wss://rt.example/x" in client.get(page).content.decode()
        assert client.post(page, {"service": "auth", "action": "disable"}).status_code == 302
        assert operation_of(ready).kind == "deregister_services"


class TestOperators:
    def test_the_secret_is_made_and_shown_once(self, service: Service, client: Client) -> None:
        region = RegionFactory()
        client.force_login(UserFactory(is_staff=True, is_superuser=True))
        url = "/admin/projects/serviceconnector/add/"
        data = {
            "region": str(region.pk),
            "service_type": "auth",
            "url": service.url,
            "timeout_seconds": 5,
            "enabled": "on",
        }
        refused = client.post(url, {**data, "url": "ftp://x"})
        assert refused.status_code == 200 and not ServiceConnector.objects.exists()
        page = client.post(url, data, follow=True).content.decode()
        row = ServiceConnector.objects.get()
        assert row.signing_secret is not None and row.signing_secret.open() in page
        assert (
            row.signing_secret.open()
            not in client.get(f"/admin/projects/serviceconnector/{row.pk}/change/").content.decode()
        )

    def test_endpoints_are_looked_at(self, service: Service) -> None:
        connect(service, types=("auth", "storage"))
        service.answer = lambda h, t: t["service"] == "storage" and say(h, 500, {})
        assert registration.check_connectors() == 2
        rows = {r.service_type: (r.healthy, r.health_detail) for r in ServiceConnector.objects.all()}
        assert rows == {"auth": (True, ""), "storage": (False, "The storage service answered 500.")}


class TestOutbound:
    @pytest.mark.parametrize(
        "url",
        ["ftp://a.example/", "http://", "http://u:p@a.example/", "http://a.example/#x", "http://a b/", "x", "http://a:99999/"],
    )  # fmt: skip
    def test_bad_urls(self, url: str) -> None:
        with pytest.raises(outbound.OutboundError) as caught:
            outbound.check_url(url)
        assert caught.value.code == "bad_url"

    @pytest.mark.parametrize(
        "host",
        ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "0.0.0.0",  # noqa: S104
         "[fe80::1]", "localhost", "2130706433", "224.0.0.1", "100.64.0.1"],
    )  # fmt: skip
    def test_private_addresses_are_refused(self, settings: Any, host: str) -> None:
        settings.NOVASTACK_OUTBOUND_ALLOW = []
        with pytest.raises(outbound.OutboundError) as caught:
            outbound.post(f"http://{host}:9/", b"", headers={}, timeout_seconds=1)
        assert caught.value.code in {"address_refused", "unreachable"}
        if host not in {"[fe80::1]"}:
            assert caught.value.code == "address_refused", caught.value.detail

    def test_redirects_are_not_followed(self, service: Service) -> None:
        def redirect(handler: BaseHTTPRequestHandler, _: Any) -> bool:
            handler.send_response(307)
            handler.send_header("Location", "http://127.0.0.1:1/")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

        service.answer = redirect
        place = connectors.Place("auth", service.url, service.secret, 1)
        with pytest.raises(connectors.ServiceRefused) as caught:
            connectors.check(place)
        assert caught.value.code == "service_refused" and len(service.calls) == 1

    def test_a_byte_now_and_then_is_cut_off(self, service: Service) -> None:
        def drip(handler: BaseHTTPRequestHandler, _: Any) -> bool:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1200:
                try:
                    handler.wfile.write(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.1)
            return True

        service.answer = drip
        began = time.monotonic()
        with pytest.raises(connectors.ServiceRefused) as caught:
            connectors.check(connectors.Place("auth", service.url, service.secret, 1))
        assert caught.value.code == "service_unreachable" and "within 1 s" in caught.value.detail
        assert time.monotonic() - began < 30, "the whole of it would take two minutes"
