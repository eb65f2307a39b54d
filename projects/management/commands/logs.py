"""`manage.py logs`: a project's server log at the console, from where runtimes are seen."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError

from projects import domain
from projects.models import Project
from projects.operations import wiring
from projects.operations.logs import text_of
from projects.services.readings import server_of

MOST_BYTES = 1 << 40


class Command(BaseCommand):
    help = "Prints the last lines of a project's server log; with --follow also what comes. Run it where workers run."

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("project", help="Slug or id.")
        parser.add_argument("--tail", type=int, default=100, help="Lines, at most 5000.")
        parser.add_argument("--follow", action="store_true", help="Go on until Ctrl-C.")
        parser.add_argument("--seconds", type=float, default=3600, help="End the follow after so long (3600).")

    def handle(
        self, *args: Any, project: str, tail: int = 100, follow: bool = False, seconds: float = 3600, **options: Any
    ) -> None:
        server = server_of(_project(project))
        if server is None or server.initialised_at is None:
            raise CommandError("The server has not been made yet; there is no log.")
        runtime = wiring.runtime_of(server.region)
        try:
            parts = runtime.follow_log(server.handle, tail=tail, seconds=seconds if follow else 0, max_bytes=MOST_BYTES)
            for number, part in enumerate(parts):
                if part.gap and number:
                    self.stderr.write("… some lines are left out here")
                for line in part.lines:
                    self.stdout.write(text_of(line))
        except domain.NovaStackRuntimeError as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            self.stderr.write("")


def _project(name: str) -> Project:
    try:
        found = Project.objects.filter(pk=UUID(name))
    except ValueError:
        found = Project.objects.filter(slug=name)
    rows = list(found.select_related("region")[:2])
    if len(rows) != 1:
        raise CommandError("There is no such project." if not rows else "Several projects have that name: give the id.")
    return rows[0]
