"""`manage.py first_project_status <id>`: how the first project stands, for the supervisor's screen (one line of JSON)."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from projects import registry
from projects.models import Database, Project
from projects.operations import wiring


class Command(BaseCommand):
    help = "Status of the first project and, once it is ready, its connection string"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project_id")

    def handle(self, *args: Any, **options: Any) -> None:
        project = Project.objects.select_related("endpoint").get(pk=options["project_id"])
        answer = {"status": project.status, "detail": project.status_detail, "uri": None}
        if project.ready_at is not None:
            info = wiring.connection_info(project, Database.objects.get(project=project, slot="current"))
            answer["uri"] = registry.engine(project.engine).urls(info)["uri"]
        self.stdout.write(json.dumps(answer))
