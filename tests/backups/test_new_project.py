"""“Daily backups” on the page of a new project: on where it can be, and told where it can't."""

from __future__ import annotations

import pytest
from django.test import Client
from django.urls import reverse

from backups.models import Schedule, StorageTarget
from projects.engines.ferretdb import FerretDB
from projects.models import Project
from tests.factories import PlanFactory, RegionFactory, Team

pytestmark = pytest.mark.django_db
HTMX = {"headers": {"HX-Request": "true"}}
ON, OFF = 'name="backups" checked', 'name="backups" disabled'


@pytest.fixture
def browser(team: Team) -> Client:
    PlanFactory()
    RegionFactory()
    client = Client()
    client.force_login(team.alice)
    return client


def preview(browser: Client, query: str) -> str:
    return browser.get(f"{reverse('projects:new-preview')}?name=Shop&{query}", **HTMX).content.decode()


def test_on_unless_it_is_switched_off(browser: Client, target: StorageTarget) -> None:
    assert ON in browser.get(reverse("projects:new")).content.decode()
    assert ON in preview(browser, "engine=postgresql&backups=on")
    assert ON not in preview(browser, "engine=postgresql")
    made = browser.post(reverse("projects:new"), {"name": "Kept", "engine": "postgresql", "backups": "on"})
    assert made.status_code == 302, made.content.decode()
    assert Schedule.objects.get(project=Project.objects.get(name="Kept")).cron == "0 2 * * *"
    assert browser.post(reverse("projects:new"), {"name": "Bare", "engine": "postgresql"}).status_code == 302
    assert not Schedule.objects.filter(project__name="Bare").exists()


def test_an_engine_that_has_none(browser: Client, target: StorageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    part = preview(browser, "engine=ferretdb&backups=on")
    assert OFF in part
    assert "Backups of FerretDB are not supported." in part
    assert ON in preview(browser, "engine=postgresql&no_backups_here=1")  # back again: as it was
    refused = browser.post(reverse("projects:new"), {"name": "Docs", "engine": "ferretdb", "backups": "on"})
    assert refused.status_code == 400
    assert "Backups of FerretDB are not supported." in refused.content.decode()
    assert not Project.objects.exists()


def test_without_a_storage(browser: Client) -> None:
    page = browser.get(reverse("projects:new")).content.decode()
    assert OFF in page
    assert "There is no storage for backups yet" in page
    assert browser.post(reverse("projects:new"), {"name": "Shop", "engine": "postgresql"}).status_code == 302
