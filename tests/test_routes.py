"""Every route × role, generated from the URLconf. A new route is held to the strict rule until a table here says why not:

strangers get 401 (API) or are sent to sign in (pages); outsiders get 404 for what is somebody else's and see nothing of it
elsewhere; viewers get 403 for everything that changes something or shows a password.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from django.conf import settings
from django.core.cache import cache
from django.db import transaction
from django.http import HttpResponse
from django.test import Client

from accounts.models import Invitation, User
from accounts.permissions import Principal
from accounts.services import member_invite
from backups.models import Drill, OfflineKey
from projects.models import Operation
from projects.services import key_create
from tests.backups.rows import make_backup, make_restore, make_schedule, make_storage
from tests.factories import Team, api_client, make_project, make_team, make_token
from tests.once import made_once
from tests.routes import Route, walk

METHODS = ("get", "post", "put", "patch", "delete")
# Of others: allauth, Django's admin and drf-spectacular test their own; ours in front of them have tests elsewhere.
FOREIGN = re.compile(r"^(accounts/|admin/|api/v1/schema/|api/docs/)")
ROUTES = [route for route in walk() if not FOREIGN.match(route.path)]

# Anybody may ask these; what they answer is tested where they live.
PUBLIC = {
    "healthz", "readyz", "metrics", "api-health", "ca", "api-key-verify", "auth-register", "auth-login", "auth-refresh",
    "auth-logout", "accounts:invitation", "database-health",
}  # fmt: skip
# Everybody's own things: a viewer may, and an outsider has some as well.
PERSONAL = {
    "auth-profile", "auth-password", "token-list", "token-detail", "organization-list",
    "invitation-accept", "accounts:organization-new", "accounts:organization-select", "accounts:tokens",
    "accounts:token-revoke", "accounts:profile", "accounts:theme",
}  # fmt: skip
# Posts that only compute something to look at.
HARMLESS = {"projects:new-preview"}
# A viewer may not read these: passwords, the audit log, who was invited.
NOT_FOR_VIEWERS = {
    "project-connection", "project-activity", "organization-audit-events", "organization-invitations",
    "backup-download", "projects:connect-password", "projects:connect-secret", "accounts:activity",
}  # fmt: skip
# Pages that send one back to a list with a sentence instead of a 404.
POLITE = {"accounts:member-role"}
# Parameters that name something of an organization or a person.
OWNED = {"pk", "ref", "slug", "project_id", "operation_id", "user_id", "invitation_id", "token_id", "key_id",
         "schedule_id", "drill_id", "backup_id", "restore_id", "storage_id",
         "recipient_id"}  # fmt: skip
ACTIONS = {"operations": "cancel", "schedules": "pause", "drills": "run", "storages": "default", "backups": "pin"}
SECRET_NAME, SECRET_HOUSE = "Zebra Ledger", "Quokka Works"


@dataclass
class World:
    team: Team
    invitation: Invitation
    clear_invitation: str
    values: dict[str, str]
    operation: str
    token: str

    def url(self, route: Route) -> str:
        """The route's address in Acme, of things that exist there."""

        def value(match: re.Match[str]) -> str:
            name = match.group(1)
            if name == "pk":
                return self._pk(route.path)
            if name == "action":
                return next((act for part, act in ACTIONS.items() if part in route.path), "stop")
            return self.values[name]

        return "/" + re.sub(r"<\w+:(\w+)>", value, route.path)

    def _pk(self, path: str) -> str:
        if "tokens/" in path:
            return self.token
        if path.startswith("api/v1/storages/"):
            return self.values["storage_id"]
        if "invitations/" in path:
            return str(self.invitation.pk)
        if path.startswith("api/v1/backups/"):
            return self.values["backup_id"]
        if path.startswith("api/v1/schedules/"):
            return self.values["schedule_id"]
        if path.startswith("api/v1/drills/"):
            return self.values["drill_id"]
        if path.startswith("api/v1/restores/"):
            return self.values["restore_id"]
        return self.operation if path.startswith("api/v1/operations/") else self.values["project_id"]


@pytest.fixture(scope="module")
def once(django_db_setup: None, django_db_blocker: Any) -> Iterator[World]:
    """It is as much work as a dozen calls, and every call is taken back: all tests share it."""
    yield from made_once(make_world, django_db_blocker)


@pytest.fixture
def world(once: World, db: None) -> World:
    cache.clear()
    return copy.deepcopy(once)


def make_world() -> World:
    team = make_team()
    team.organization.name = SECRET_HOUSE
    team.organization.save()
    project = make_project(team.alice, team.organization, SECRET_NAME)
    invitation, clear = member_invite(
        principal=Principal.of(team.alice), organization=team.organization, email="new@example.test", role="member",
        base_url="http://testserver",
    )  # fmt: skip
    operation = str(Operation.objects.get(project_uuid=project.pk).pk)
    token, _ = make_token(team.alice, name=SECRET_NAME)
    key, _ = key_create(principal=Principal.of(team.alice), project=project, name=SECRET_NAME)
    storage = make_storage(team.organization)
    backup = make_backup(project, storage)
    recipient = OfflineKey.objects.create(organization=team.organization, recipient="age1q")
    values = {
        "recipient_id": str(recipient.pk),
        "storage_id": str(storage.pk), "backup_id": str(backup.pk), "restore_id": str(make_restore(backup, project).pk),
        "schedule_id": str(make_schedule(project).pk),
        "drill_id": str(Drill.objects.create(project=project, organization_id=team.organization.pk, name="x").pk),
        "ref": "acme", "slug": "acme", "project_id": str(project.pk), "operation_id": operation,
        "user_id": str(team.bob.pk), "invitation_id": str(invitation.pk), "token": clear, "token_id": str(token.pk),
        "key_id": str(key.pk), "region": "local", "service": "auth", "pool_id": str(uuid4()),
    }  # fmt: skip
    return World(team, invitation, clear, values, operation, str(token.pk))


class Undone(Exception):
    """Takes back what a call did."""


def call(route: Route, url: str, method: str, user: User | None) -> HttpResponse:
    """One call as this person; what it changed is taken back."""
    client: Any
    if route.is_api:
        client = api_client(user)
    else:
        client = Client(raise_request_exception=False)
        if user is not None:
            client.force_login(user)
    response = HttpResponse(status=599)
    try:
        with transaction.atomic():
            body = {} if route.is_api and method != "get" else None
            response = getattr(client, method)(url, body) if body is not None else getattr(client, method)(url)
            raise Undone
    except Undone:
        pass
    return response


def methods_of(route: Route) -> tuple[str, ...]:
    return METHODS if route.is_api else ("get", "post")


def ids(route: Route) -> str:
    return str(route)


def not_leaking(response: HttpResponse) -> bool:
    return not any(name.encode() in response.content for name in (SECRET_NAME, SECRET_HOUSE))


def owned(route: Route) -> bool:
    return bool(route.parameters & OWNED)


def test_the_tables_name_only_routes_that_exist() -> None:
    names = {route.name for route in ROUTES}
    assert not (PUBLIC | PERSONAL | HARMLESS | NOT_FOR_VIEWERS) - names


@pytest.mark.parametrize("route", [r for r in ROUTES if r.name not in PUBLIC], ids=ids)
def test_strangers_are_asked_to_sign_in(route: Route, world: World) -> None:
    for method in methods_of(route):
        response = call(route, world.url(route), method, None)
        if route.is_api:
            assert response.status_code == 401, (method, response.status_code)
            assert response["WWW-Authenticate"] and response["Content-Type"] == "application/problem+json"
        elif response.status_code != 405:
            assert response.status_code == 302, (method, response.status_code)
            assert response["Location"].startswith(f"/{settings.LOGIN_URL.replace('account_', 'accounts/')}"), method


@pytest.mark.parametrize("route", [r for r in ROUTES if owned(r)], ids=ids)
def test_its_owner_finds_it_so_that_a_404_means_something(route: Route, world: World) -> None:
    answers = {method: call(route, world.url(route), method, world.team.alice).status_code
               for method in methods_of(route)}  # fmt: skip
    assert 404 not in answers.values(), answers
    assert not any(status >= 500 and status != 503 for status in answers.values()), answers
    assert any(status != 405 for status in answers.values()), answers


@pytest.mark.parametrize("route", [r for r in ROUTES if owned(r)], ids=ids)
def test_outsiders_get_404_for_what_is_somebody_elses(route: Route, world: World) -> None:
    for method in methods_of(route):
        response = call(route, world.url(route), method, world.team.charlie)
        assert response.status_code in {404, 405, *({302} if route.name in POLITE else set())}, (
            method, response.status_code,
        )  # fmt: skip
        assert not_leaking(response)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.is_api and owned(r)], ids=ids)
def test_what_does_not_exist_answers_the_same(route: Route, world: World) -> None:
    """Nobody learns from an answer whether something of somebody else exists."""
    foreign = {m: call(route, world.url(route), m, world.team.charlie) for m in methods_of(route)}
    world.values |= {name: str(uuid4()) for name in world.values}
    world.values |= {"ref": "nobody", "slug": "nobody"}
    world.operation = world.token = world.values["project_id"]
    world.invitation.pk = uuid4()
    for method, answer in foreign.items():
        missing = call(route, world.url(route), method, world.team.charlie)
        assert missing.status_code == answer.status_code, method
        assert {**missing.json(), "request_id": ""} == {**answer.json(), "request_id": ""}


@pytest.mark.parametrize("route", [r for r in ROUTES if not owned(r) and r.name not in PUBLIC], ids=ids)
def test_elsewhere_outsiders_see_nothing_of_it(route: Route, world: World) -> None:
    for method in methods_of(route):
        response = call(route, world.url(route), method, world.team.charlie)
        assert response.status_code < 500, (method, response.status_code)
        assert not_leaking(response), method
    for query in (f"?search={SECRET_NAME}", "?organization=acme", f"?q={SECRET_NAME.split()[0]}"):
        response = call(route, world.url(route) + query, "get", world.team.charlie)
        assert response.status_code < 500
        assert SECRET_HOUSE.encode() not in response.content and b"zebra-ledger" not in response.content, query


@pytest.mark.parametrize("route", [r for r in ROUTES if r.name not in PUBLIC | PERSONAL], ids=ids)
def test_viewers_change_nothing_and_see_no_password(route: Route, world: World) -> None:
    for method in methods_of(route):
        response = call(route, world.url(route), method, world.team.vera)
        if response.status_code == 405:
            continue
        if method == "get" and route.name not in NOT_FOR_VIEWERS:
            assert response.status_code in {200, 302, 403, 409, 503}, (method, response.status_code)
        elif route.name in HARMLESS:
            assert response.status_code < 500
        else:
            assert response.status_code == 403, (method, response.status_code)


@pytest.mark.parametrize("route", [r for r in ROUTES if r.is_api and r.name not in PUBLIC], ids=ids)
def test_a_read_only_token_changes_nothing(route: Route, world: World) -> None:
    """Role ∩ scopes: also in the hands of the owner."""
    client = api_client(world.team.alice, scopes=["read"])
    for method in ("post", "put", "patch", "delete"):
        with transaction.atomic():
            response = getattr(client, method)(world.url(route), {})
        assert response.status_code in {403, 405, *({400} if route.name in PERSONAL else set())}, (
            method, response.status_code,
        )  # fmt: skip
