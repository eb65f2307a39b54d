"""`manage.py read_only [status|on|off]`: whether NovaStack may change anything in runtimes and databases."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from projects.services import read_only


class Command(BaseCommand):
    help = "Show, set or lift read-only: no server, volume or tenant's database is changed while it is on"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("action", nargs="?", choices=["status", "on", "off"], default="status")
        parser.add_argument("--reason", default="Set by an operator.", help="shown with everything that waits (on)")
        parser.add_argument(
            "--without", action="append", default=[], metavar="REGION",
            help="lift it although this region can't be reached (off)",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        if options["action"] == "on":
            read_only.read_only_on(reason=options["reason"])
            self.stdout.write("Read-only: operations wait, nothing is changed.")
            return
        if options["action"] == "status":
            self._show(read_only.state())
            return
        try:
            epoch = read_only.read_only_off(without=frozenset(options["without"]))
        except read_only.RuntimesAway as error:
            raise CommandError(
                f"Still read-only. {error}. Bring it back, or leave it out with --without REGION."
            ) from error
        self.stdout.write(
            f"Writes are allowed. Epoch {epoch[:8]}: another copy of this install becomes read-only by itself within a minute."
        )

    def _show(self, found: read_only.State) -> None:
        self.stdout.write(f"Read-only: {found.reason}" if found.read_only else "Not read-only.")
        self.stdout.write(f"Our epoch: {found.epoch}")
        for slug, epoch in found.epochs.items():
            agrees = "" if epoch == found.epoch else "   <- not ours" if not epoch.startswith("(") else ""
            self.stdout.write(f"  runtime of {slug}: {epoch}{agrees}")
        for what, count in found.waiting.items():
            self.stdout.write(f"  {what}: {count}")
