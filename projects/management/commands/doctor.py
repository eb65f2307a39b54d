"""`manage.py doctor`: what rows say against what is really there. Exit code 0: all well, 1: findings, 2: could not look."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from novastack.common.errors import Problem
from projects.domain import NovaStackRuntimeError
from projects.services import doctoring


class Command(BaseCommand):
    help = "Compare rows with servers, volumes, ports, limits and logins. Changes nothing without --fix"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
        parser.add_argument(
            "--fix", action="store_true",
            help="adopt what is ours, apply limits, hint at operations, set aside what must not be touched; never data",
        )  # fmt: skip
        parser.add_argument("--remove-data", metavar="NAME", help="delete this one volume that no row knows, for good")
        parser.add_argument("--confirm", default="", metavar="NAME", help="its name again; asked for at a terminal")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["remove_data"]:
                self._remove(options["remove_data"], options["confirm"])
                return
            report = doctoring.examine()
            done = doctoring.fix(report) if options["fix"] else []
        except DatabaseError as error:
            raise CommandError(f"Could not look: {' '.join(str(error).split())[:300]}", returncode=2) from error
        if options["json"]:
            fixed = [{"code": f.code, "thing": f.thing, "done": text} for f, text in done]
            self.stdout.write(json.dumps(report.as_json() | {"fixed": fixed}))
        else:
            self._print(report, done)
        if report.findings:
            sys.exit(1)

    def _print(self, report: doctoring.Report, done: list[tuple[doctoring.Finding, str]]) -> None:
        looked = ", ".join(f"{count} {what}" for what, count in report.looked.items())
        width = max((len(f.code) for f in report.findings), default=0)
        told = dict(done)
        for f in sorted(report.findings, key=lambda f: (f.region, f.code, f.thing)):
            where = f" ({f.region})" if f.region and f.region != f.thing else ""
            self.stdout.write(f"{f.code:<{width}}  {f.thing}{where}")
            self.stdout.write(f"{'':<{width}}  {f.what}")
            self.stdout.write(f"{'':<{width}}  → {f.advice}")
            if f in told:
                self.stdout.write(f"{'':<{width}}  fix: {told[f]}")
        self.stdout.write(f"{len(report.findings) or 'No'} findings. Looked at: {looked}.")

    def _remove(self, name: str, confirm: str) -> None:
        try:
            region, _ = doctoring.orphan_data_find(name)
            if not confirm and sys.stdin.isatty():
                self.stdout.write(f"Data {name} in {region.slug} will be deleted. There is no way back.")
                confirm = input("Type its name to delete it: ").strip()
            doctoring.orphan_data_remove(name=name, confirm=confirm)
        except (Problem, NovaStackRuntimeError) as error:
            raise CommandError(getattr(error, "detail", "") or str(error)) from error
        self.stdout.write(f"Deleted: {name} in {region.slug}.")
