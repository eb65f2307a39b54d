"""What people see: the answers of the API and the pages, as the owner gets them."""

from __future__ import annotations

import time
from typing import Any

from django.test import Client

from projects.models import Operation, Project
from tests.factories import api_client
from tests.faults.conftest import Site

ANSWERS_WITHIN_SECONDS = 10.0  # a call to a runtime that hangs takes 12 s; the machine is busy with everything else


def project_answer(site: Site, project: Project) -> dict[str, Any]:
    return _get(site, f"/api/v1/projects/{project.pk}/")


def operation_answer(site: Site, operation: Operation) -> dict[str, Any]:
    return _get(site, f"/api/v1/operations/{operation.pk}/")


def _get(site: Site, path: str) -> dict[str, Any]:
    began = time.monotonic()
    answer = api_client(site.team.alice).get(path)
    assert time.monotonic() - began < ANSWERS_WITHIN_SECONDS, f"{path} took {time.monotonic() - began:.1f} s"
    assert answer.status_code == 200, answer.content
    found: dict[str, Any] = answer.json()
    return found


def page(site: Site, project: Project) -> str:
    """The project's page as the owner's browser gets it."""
    browser = Client()
    browser.force_login(site.team.alice)
    began = time.monotonic()
    answer = browser.get(f"/projects/{project.pk}/")
    assert time.monotonic() - began < ANSWERS_WITHIN_SECONDS, f"the page took {time.monotonic() - began:.1f} s"
    assert answer.status_code == 200
    return answer.content.decode()


def failure(site: Site, project: Project) -> dict[str, Any]:
    """The failed project's error, the same wherever one looks; its text is fit for people."""
    project.refresh_from_db()
    operation = site.operation(project)
    told, error = project_answer(site, project), operation_answer(site, operation)["error"]
    assert told["status"] == "failed", told
    assert error is not None
    assert told["status_detail"] == error["detail"]
    assert error["code"]
    assert error["detail"][:60].replace("'", "&#x27;").split("“")[0].split('"')[0] in page(site, project)
    for secret in ("/var/lib/docker", str(site.region.config.get("root", "/var/lib/docker"))):
        assert secret not in error["detail"]
    return {"code": error["code"], "detail": error["detail"], "retryable": error["retryable"]}
