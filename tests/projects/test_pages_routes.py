"""Made from the URLconf: no page of a project answers strangers, outsiders, or viewers who want to change something."""

from __future__ import annotations

import uuid

import pytest
from django.test import Client
from django.urls import URLPattern, reverse

from accounts import urls as account_urls
from accounts.models import AuditEvent
from projects import urls as project_urls
from projects.models import Operation, Project
from tests.factories import Team, make_project

pytestmark = pytest.mark.django_db
OPEN = {"accounts:invitation"}  # the link of an invitation: its holder may be a stranger


def _routes(module: object) -> list[tuple[str, dict[str, object]]]:
    found = []
    for pattern in module.urlpatterns:  # type: ignore[attr-defined]
        assert isinstance(pattern, URLPattern)
        kinds = {name: type(converter).__name__ for name, converter in pattern.pattern.converters.items()}
        found.append((f"{module.app_name}:{pattern.name}", kinds))  # type: ignore[attr-defined]
    return found


ROUTES = _routes(project_urls) + _routes(account_urls)
OF_A_PROJECT = [(name, kinds) for name, kinds in ROUTES if "project_id" in kinds]
SLUGS = {"projects:act": "stop", "projects:operation-act": "cancel"}


def path_of(name: str, kinds: dict[str, object], project: Project | None = None) -> str:
    values: dict[str, object] = {}
    for key, kind in kinds.items():
        if key == "project_id" and project:
            values[key] = project.pk
        elif key == "operation_id" and project:
            values[key] = Operation.objects.get(project_uuid=project.pk).pk
        else:
            values[key] = uuid.uuid4() if kind == "UUIDConverter" else SLUGS.get(name, "anything")
    return reverse(name, kwargs=values)


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(("name", "kinds"), ROUTES, ids=[name for name, _ in ROUTES])
def test_a_stranger_is_asked_to_sign_in(name: str, kinds: dict[str, object], method: str) -> None:
    response = getattr(Client(), method)(path_of(name, kinds))
    if name in OPEN:
        assert response.status_code == 404
    elif response.status_code != 405:
        assert response.status_code == 302
        assert response["Location"].startswith("/accounts/login/")


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize(("name", "kinds"), OF_A_PROJECT, ids=[name for name, _ in OF_A_PROJECT])
def test_an_outsider_finds_nothing(team: Team, name: str, kinds: dict[str, object], method: str) -> None:
    project = make_project(team.alice, team.organization)
    client = Client()
    client.force_login(team.charlie)
    before = (Operation.objects.count(), AuditEvent.objects.count())
    response = getattr(client, method)(path_of(name, kinds, project))
    assert response.status_code in {404, 405}
    assert project.name.encode() not in response.content
    assert (Operation.objects.count(), AuditEvent.objects.count()) == before


@pytest.mark.parametrize(("name", "kinds"), OF_A_PROJECT, ids=[name for name, _ in OF_A_PROJECT])
def test_a_viewer_changes_and_reveals_nothing(team: Team, name: str, kinds: dict[str, object]) -> None:
    project = make_project(team.alice, team.organization)
    client = Client()
    client.force_login(team.vera)
    before = (Operation.objects.count(), AuditEvent.objects.count())
    sent = {"confirm": project.slug, "form": "general", "name": "Mine now", "what": "password"}
    response = client.post(path_of(name, kinds, project), sent)
    assert response.status_code in {403, 405}
    assert (Operation.objects.count(), AuditEvent.objects.count()) == before
    project.refresh_from_db()
    assert project.name == "Shop"
