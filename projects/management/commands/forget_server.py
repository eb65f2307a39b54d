"""`manage.py forget_server PROJECT --confirm SLUG`: forget a project whose runtime will not come back."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from novastack.common.errors import Problem
from projects.models import Project
from projects.services import project_forget


class Command(BaseCommand):
    help = "Remove the rows of a project whose runtime is gone. Deletes no data: it lists what may still exist there"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("project", help="slug or id")
        parser.add_argument("--confirm", default="", metavar="SLUG", help="the project's slug, typed again")

    def handle(self, *args: Any, **options: Any) -> None:
        project = _find(options["project"])
        try:
            forgotten = project_forget(principal=None, project=project, confirm=options["confirm"])
        except Problem as problem:
            raise CommandError(problem.detail) from problem
        self.stdout.write(f"Forgotten: {project.name} ({project.slug}). No data was deleted.")
        for orphan in forgotten.orphans:
            self.stdout.write(f"  may still exist in {project.region.slug}: {orphan.kind} {orphan.name}")
        if not forgotten.orphans:
            self.stdout.write("  No server was ever begun for it: nothing can exist.")


def _find(ref: str) -> Project:
    rows = Project.objects.select_related("region")
    try:
        found = list(rows.filter(pk=UUID(ref)))
    except ValueError:
        found = list(rows.filter(slug=ref).order_by("pk"))
    if not found:
        raise CommandError(f"There is no project “{ref}”.")
    if len(found) > 1:  # a slug is unique within its organization
        raise CommandError("Several projects have this slug; give an id: " + ", ".join(str(p.pk) for p in found))
    return found[0]
