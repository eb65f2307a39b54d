"""`manage.py control_restore FILE`: a control backup into an empty database; read-only afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from novastack.common.vault import VaultError, is_encrypted
from projects.management.commands._passphrase import passphrase
from projects.services.control_database import ControlError
from projects.services.control_restore import control_restore


class Command(BaseCommand):
    help = "Restore a control backup into an empty database. Servers and tenants' data are not touched"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file")
        parser.add_argument("--passphrase-file", help="holds what the backup was encrypted with")
        parser.add_argument(
            "--keys-to", help="folder for the keys of the backup (default in an embedded install: secrets/ in its home)"
        )

        parser.add_argument(
            "--keep-tokens", action="store_true",
            help="API tokens, open invitations and projects' API keys stay as they were in the backup: none of them was revoked"
            " since",
        )  # fmt: skip

    def handle(self, *args: Any, **options: Any) -> None:
        source = Path(options["file"]).expanduser()
        keys_to = Path(options["keys_to"]).expanduser() if options["keys_to"] else None
        if keys_to is None and settings.NOVASTACK_MODE == "embedded":
            keys_to = settings.NOVASTACK_HOME / "secrets"
        try:
            secret = passphrase(options["passphrase_file"], twice=False) if is_encrypted(source) else None
            restored = control_restore(
                source=source, passphrase=secret, keys_to=keys_to, keep_tokens=options["keep_tokens"]
            )
        except (ControlError, VaultError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{source}: {error.strerror or error}") from error
        tables = restored.manifest["tables"]
        self.stdout.write(
            f"Restored the install {restored.manifest['install_id']} as of {restored.manifest['made_at']}:"
            f" {tables.get('projects_project', 0)} projects, {tables.get('accounts_user', 0)} users;"
            " every table has the rows the manifest names."
        )
        if restored.migrated:
            self.stdout.write("The tables were brought to this version.")
        if restored.keys_at:
            self.stdout.write("Keys written: " + ", ".join(str(path) for path in restored.keys_at))
            if settings.NOVASTACK_MODE != "embedded":
                self.stdout.write(
                    "Start NovaStack with them: SECRET_KEY_FILE (secret-key), NOVASTACK_SECRET_KEYS_FILE (secret-keys)."
                )
        if restored.live_operations:
            self.stdout.write(f"{restored.live_operations} operations had not ended; they wait.")
        self.stdout.write(
            "API tokens, invitations and projects' API keys are those of the backup (--keep-tokens): revoke again what was"
            " revoked since."
            if options["keep_tokens"]
            else f"Revoked: {restored.tokens_revoked} API tokens and {restored.invitations_revoked} open invitations. Which of"
            " them had been revoked since the backup was made, it can't know; people make new ones.\n"
            f"Suspended: {restored.keys_suspended} API keys of projects. Each works again once a member confirms it, on the"
            " project's page or by the API."
        )
        self.stdout.write(
            "Passwords, second factors and roles are those of the backup: change again what was changed since because it was"
            " lost or leaked."
        )
        self.stdout.write(
            "NovaStack is READ-ONLY now: it looks at its servers and changes nothing. Make sure that the old copy of it is"
            " stopped, look at the dashboard, then: manage.py read_only off"
        )
