"""Problem documents, schema, docs, error pages."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from celery.signals import beat_init, celeryd_init
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from tests.factories import UserFactory, api_client, make_team

pytestmark = pytest.mark.django_db
KEYS = {"type", "title", "status", "detail", "code", "request_id", "errors"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("get", "/api/v1/no-such/", 404), ("get", "/api/nothing", 404), ("get", "/api/v1/auth/login/", 405),
     ("delete", "/api/v1/organizations/", 405), ("get", "/api/v1/organizations/", 401)],
)  # fmt: skip
def test_every_error_is_a_problem_with_the_request_id(method: str, path: str, status: int) -> None:
    client = api_client(UserFactory()) if status != 401 else api_client()
    response = getattr(client, method)(path, headers={"X-Request-ID": "my-id-1"})
    assert response.status_code == status
    assert response["Content-Type"] == "application/problem+json"
    body = response.json()
    assert body.keys() == KEYS
    assert (body["status"], body["request_id"], response["X-Request-ID"]) == (status, "my-id-1", "my-id-1")


def test_other_formats_are_refused() -> None:
    client = api_client(UserFactory())
    assert client.post("/api/v1/organizations/", "<a/>", content_type="application/xml").status_code == 415
    assert client.get("/api/v1/organizations/", headers={"Accept": "text/csv"}).status_code in {200, 406}


def test_the_schema_is_complete_and_quiet(capsys: Any) -> None:
    schema = SchemaGenerator().get_schema(request=None, public=True)
    assert "unable to" not in capsys.readouterr().err
    assert {"apiToken", "apiKey", "jwt", "session"} <= schema["components"]["securitySchemes"].keys()
    assert "Problem" in schema["components"]["schemas"]
    for path in ("auth/register/", "auth/login/", "auth/tokens/", "organizations/{ref}/members/", "health/"):
        assert f"/api/v1/{path}" in schema["paths"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            assert "4XX" in operation["responses"]


def test_schema_and_docs_are_served_without_a_cdn(client: Client) -> None:
    assert client.get("/api/v1/schema/").status_code == 200
    page = client.get("/api/docs/")
    text = page.content.decode()
    assert page.status_code == 200
    assert "http://" not in text
    assert "https://" not in text
    assert "<script>" not in text
    assert "<style>" not in text
    script = client.get("/api/docs/?script=")
    assert (script.status_code, script["Content-Type"].split(";")[0]) == (200, "application/javascript")
    assert "script-src 'self'" in page["Content-Security-Policy"]


def test_an_unknown_page_is_a_page(client: Client) -> None:
    response = client.get("/no-such-page/")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


def test_the_admin_asks_allauth_for_sign_in(client: Client) -> None:
    response = client.get("/admin/login/?next=/admin/")
    assert response.status_code == 302
    assert response["Location"].startswith("/accounts/login/")
    client.force_login(UserFactory())
    assert client.get("/admin/").status_code in {302, 403}


def test_every_admin_page_opens(client: Client) -> None:
    from django.contrib import admin

    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    for model, model_admin in admin.site._registry.items():
        path = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"
        assert client.get(path).status_code == 200, path
        assert client.get(f"{path}?q=x").status_code == 200, path
        if model._meta.app_label in {"accounts", "common", "projects"}:
            assert model_admin.search_fields or not model_admin.get_list_filter(None), path


@pytest.mark.parametrize("position", ["abc", "1.5", "9" * 30, "-1", "%00"])
def test_a_cursor_that_nobody_was_given_is_a_404(position: str) -> None:
    team = make_team()
    cursor = base64.b64encode(f"p={position}".encode()).decode()
    path = f"/api/v1/organizations/{team.organization.slug}/audit-events/"
    response = api_client(team.alice).get(path, {"cursor": cursor})
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("signal", [celeryd_init, beat_init])
def test_workers_refuse_what_the_web_refuses(signal: Any, settings: Any) -> None:
    signal.send(sender="test")  # in every other mode they start
    settings.NOVASTACK_MODE = "production"
    settings.NOVASTACK_SECRET_KEYS = ["a" * 43 + "=", *settings.INSECURE_SECRET_KEYS]
    with pytest.raises(SystemExit, match="NOVASTACK_SECRET_KEYS"):
        signal.send(sender="test")
