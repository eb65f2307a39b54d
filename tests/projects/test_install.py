"""What a new install begins with, and what never comes back."""

from __future__ import annotations

import pytest
from django.test import Client
from rest_framework.test import APIClient

from accounts.permissions import OperatorPrincipal
from novastack.common.models import Install
from projects.models import Plan, Region
from projects.services import region_remove
from projects.services.install import EXAMPLE_REGIONS, catalogue_prepare
from tests.factories import Team, UserFactory, api_client

EXAMPLES = {"us-east-1", "us-west-2", "eu-west-1", "ap-southeast-1"}

pytestmark = pytest.mark.django_db


@pytest.fixture
def bob(team: Team) -> APIClient:
    return api_client(team.bob)


def operator() -> OperatorPrincipal:
    user = UserFactory(is_staff=True, is_superuser=True)
    return OperatorPrincipal.of(user)


def test_the_examples_of_a_new_install_can_not_be_chosen(bob: APIClient) -> None:
    catalogue_prepare()
    assert {slug for slug, _ in EXAMPLE_REGIONS} == EXAMPLES
    rows = {row["slug"]: row for row in bob.get("/api/v1/regions/").json()["results"]}
    assert set(rows) == EXAMPLES | {"local"}
    for slug in EXAMPLES:
        assert rows[slug]["available"] is False and rows[slug]["reason"] == "No runtime is set up here yet."
    refused = bob.post("/api/v1/projects/", {"name": "Shop", "region": "us-east-1"})
    assert refused.status_code == 400 and refused.json()["errors"][0]["field"] == "region"


def test_one_that_gets_a_runtime_can_be_chosen(bob: APIClient) -> None:
    catalogue_prepare()
    Region.objects.filter(slug="eu-west-1").update(runtime="memory", port_start=31000, port_end=31100)
    catalogue_prepare()
    body = bob.post("/api/v1/projects/", {"name": "Shop", "region": "eu-west-1"}).json()
    assert body["region"] == "eu-west-1"


def test_what_was_deleted_stays_deleted() -> None:
    catalogue_prepare()
    region_remove(principal=operator(), region=Region.objects.get(slug="us-west-2"))
    Plan.objects.filter(slug="large").delete()
    catalogue_prepare()
    assert not Region.objects.filter(slug="us-west-2").exists()
    assert not Plan.objects.filter(slug="large").exists()
    Region.objects.exclude(slug="local").delete()
    Plan.objects.all().delete()
    catalogue_prepare()
    assert set(Region.objects.values_list("slug", flat=True)) == {"local"} and not Plan.objects.exists()


def test_an_install_from_before_gets_none_back() -> None:
    """Nobody had written down then that they were made."""
    catalogue_prepare()
    Install.objects.update(notes={"runtime": "process"})
    Region.objects.filter(slug__in=EXAMPLES).delete()
    catalogue_prepare()
    assert not Region.objects.filter(slug__in=EXAMPLES).exists()
    assert Install.load().notes["catalogue_made"] is True and Install.load().notes["runtime"] == "process"


def test_lists_begin_with_what_can_be_used(team: Team) -> None:
    region = catalogue_prepare()
    Region.objects.filter(pk=region.pk).update(runtime="memory", name="Zurich")
    browser = Client()
    browser.force_login(UserFactory(is_staff=True, is_superuser=True, default_organization=team.organization))
    page = browser.get("/operator/").content.decode()
    assert page.index("Zurich") < page.index("Asia Pacific") and "No runtime" in page
    browser.force_login(team.bob)
    page = browser.get("/projects/new/").content.decode()
    assert page.index("Zurich") < page.index("Asia Pacific"), "named after those that can be chosen"
    assert 'value="ap-southeast-1"' not in page
    assert "Asia Pacific" not in browser.get("/projects/").content.decode(), "nothing can be there to filter by"
