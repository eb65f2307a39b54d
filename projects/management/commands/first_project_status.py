"""`manage.py first_project_status <id>`: how the first project stands, for the supervisor's screen (one line of JSON)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from accounts.permissions import Principal
from novastack.common.errors import Problem
from projects import registry
from projects.models import Project
from projects.services import connection_reveal


class Command(BaseCommand):
    help = "Status of the first project and, once it is ready, its connection string"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project_id")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.select_related("endpoint", "organization", "created_by").get(pk=options["project_id"])
        answer = {"status": project.status, "detail": project.status_detail, "uri": None}
        if project.ready_at is not None and project.created_by is not None:
            with contextlib.suppress(Problem):  # deleted meanwhile: nothing to show
                acting = Principal.of(project.created_by)
                info = connection_reveal(principal=acting, project=project, purpose="first start")
                answer["uri"] = registry.engine(project.engine).urls(info)["uri"]
        self.stdout.write(json.dumps(answer))
