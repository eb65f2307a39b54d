"""`manage.py setup_install`: what a start needs besides migrations. Idempotent; prints one line of JSON with `--json`."""

from __future__ import annotations

import json
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from projects.models import Project
from projects.services import install


class Command(BaseCommand):
    help = "Plans, regions, runtime; on the first start the first admin and the first project"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one line of JSON, with the one-time password")

    def handle(self, *args: Any, **options: Any) -> None:
        answer = prepare()
        if options["json"]:
            self.stdout.write(json.dumps(answer))
            return
        self.stdout.write(f"Runtime: {answer['runtime']} ({answer['runtime_reason']})")
        if answer["admin_email"]:
            self.stdout.write(f"First admin: {answer['admin_email']}")
        if answer["admin_password"]:
            self.stdout.write(f"One-time password: {answer['admin_password']}")


def prepare() -> dict[str, Any]:
    """Do it; the answer holds the one-time password once, right after it was made."""
    region = install.catalogue_prepare()
    choice = install.runtime_settle(region)
    for prepare_more in install.also_prepare:
        prepare_more()
    user, password = install.first_admin()
    project: Project | None = None
    if user is not None and settings.NOVASTACK_FIRST_PROJECT:
        project = install.first_project(user)
    return {
        "runtime": choice.runtime,
        "runtime_reason": choice.reason,
        "admin_email": user.email if user else None,
        "admin_password": password,
        "project_id": str(project.pk) if project else None,
    }
