"""`manage.py backups_adopt`: a fresh install learns the backups of one that is gone, from its storage and the recovery kit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from accounts.models import Organization
from backups import kit as kits
from backups.services.adopting import backups_adopt, target_from_kit
from backups.storage.base import StorageError
from novastack.common.errors import Problem


class Command(BaseCommand):
    help = "Record the backups that are in a storage; the installation that wrote there before becomes read-only there"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--kit", required=True, type=Path, help="the recovery kit, as it was downloaded")
        parser.add_argument(
            "--organization", default="", help="slug of the one here that gets them; may be left out if there is one"
        )
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument("--storage", default="", help="name of the kit's storage, with its keys from the kit")
        where.add_argument("--path", default="", help="folder below NOVASTACK_BACKUP_ROOT")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            text = options["kit"].read_text()
            kit = kits.read(text)
            target = target_from_kit(kit, storage=options["storage"], path=options["path"])
            found = backups_adopt(kit=kit, organization=self._organization(options["organization"]), target=target)
        except (OSError, UnicodeDecodeError, kits.KitError, StorageError) as error:
            raise CommandError(str(error)) from None
        except Problem as problem:
            raise CommandError(problem.detail) from None
        self.stdout.write(f"{found.adopted} adopted, {found.known} known already, {found.untrusted} untrusted")
        for key, why in sorted(found.left_out.items()):
            self.stdout.write(f"left out: {key}: {why}")

    @staticmethod
    def _organization(slug: str) -> Organization:
        rows = Organization.objects.filter(slug=slug) if slug else Organization.objects.order_by("created_at")
        found = list(rows[:2])
        if len(found) != 1:
            raise CommandError("Name the organization that gets them: --organization SLUG")
        return found[0]
