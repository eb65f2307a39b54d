"""`manage.py catalogue [show|check|import|export|reset]`: the versions of engines that projects can have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from projects.domain import EngineVersion
from projects.operations.catalogue import everything
from projects.services import catalogue

MOST_BYTES = 1 << 20


class Command(BaseCommand):
    help = "Show, import, export or reset the catalogue of engine versions"

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action")
        actions.add_parser("show", help="what holds now (the default)")
        for name, text in (("import", "take a TOML or JSON file"), ("check", "say what an import would do")):
            one = actions.add_parser(name, help=text)
            one.add_argument("file", help="a file, or - for standard input")
            one.add_argument(
                "--replace", action="store_true", help="what it does not name falls back to what is shipped"
            )
        export = actions.add_parser("export", help="print it in the form that `import` reads")
        export.add_argument(
            "--own", action="store_true", help="only what differs from what is shipped by an operator's word"
        )
        reset = actions.add_parser("reset", help="back to what is shipped about one version")
        reset.add_argument("engine")
        reset.add_argument("version")

    def handle(self, *args: Any, **options: Any) -> None:
        match options["action"]:
            case "import" | "check":
                self._import(options["file"], replace=options["replace"], dry_run=options["action"] == "check")
            case "export":
                self.stdout.write(catalogue.catalogue_export(own_only=options["own"]), ending="")
            case "reset":
                if not catalogue.catalogue_reset(engine=options["engine"], version=options["version"]):
                    raise CommandError("Nothing was said about that version; see `catalogue export --own`.")
                self.stdout.write("As shipped again.")
            case _:
                self._show()

    def _import(self, file: str, *, replace: bool, dry_run: bool) -> None:
        try:
            found = catalogue.catalogue_import(text=_read(file), replace=replace, dry_run=dry_run)
        except catalogue.CatalogueInvalid as error:
            raise CommandError("\n".join(["Nothing was imported.", *(f"  {p}" for p in error.problems)])) from None
        for what, names in (("new", found.added), ("changed", found.changed), ("as shipped again", found.removed)):
            for name in names:
                self.stdout.write(f"{name}: {what}")
        if found.nothing:
            self.stdout.write("Nothing to change.")
        elif dry_run:
            self.stdout.write("Not done: this was only a check.")

    def _show(self) -> None:
        for name, versions in everything().items():
            self.stdout.write(name)
            for entry in versions.entries:
                self.stdout.write(f"  {entry.version:<8} {', '.join(_words(entry)) or 'offered'}")


def _words(entry: EngineVersion) -> list[str]:
    today = timezone.now().date()
    words = ["default"] if entry.default else []
    words += ["deprecated"] if entry.deprecated else []
    words += [] if entry.offered(today) else ["not offered to new projects"]
    if entry.end_of_life:
        words.append(f"{'ended' if entry.ended(today) else 'ends'} {entry.end_of_life}")
    return words + [word for word in (entry.image, entry.digest[:19]) if word]


def _read(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.read(MOST_BYTES)
        with Path(file).open(encoding="utf-8") as source:
            return source.read(MOST_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file} can't be read: {getattr(error, 'strerror', '') or 'it is not UTF-8'}.") from None
