"""`manage.py standbys [show|set]`: servers that are initialised ahead, so that a new database is there at once."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from novastack.common.errors import Problem
from projects.models import MAX_STANDBYS
from projects.services import fleet
from projects.services.standbys import standbys_set


class Command(BaseCommand):
    help = "Show or set how many warm standbys are kept"

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action")
        actions.add_parser("show", help="how many are wanted, how many are ready, and why not (the default)")
        one = actions.add_parser("set", help="how many of one kind are kept from now on; 0: none")
        one.add_argument("region", help="its slug")
        one.add_argument("engine")
        one.add_argument("version")
        one.add_argument("plan", help="its slug: the size that they have")
        one.add_argument("count", type=int, help=f"0 to {MAX_STANDBYS}")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "set":
            try:
                standbys_set(
                    principal=None, region=options["region"], engine=options["engine"], version=options["version"],
                    plan=options["plan"], count=options["count"],
                )  # fmt: skip
            except Problem as problem:
                words = [f"{each.field}: {each.detail}" for each in problem.errors] or [problem.detail]
                raise CommandError("\n".join(words)) from None
        kept = fleet.standbys()
        for standing in kept:
            why = f": {standing.target.problem}" if standing.target.problem else ""
            self.stdout.write(f"{standing.target}: {standing.ready} of {standing.target.count} ready{why}")
        if not kept:
            self.stdout.write("None are kept. See `manage.py standbys set --help`.")
