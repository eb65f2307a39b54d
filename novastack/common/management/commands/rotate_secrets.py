"""`manage.py rotate_secrets`: seal every secret again with the first of NOVASTACK_SECRET_KEYS."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import models, transaction

from novastack.common.secrets import EncryptedField, Sealed, SecretUnreadable, needs_resealing, resealers


class Command(BaseCommand):
    help = (
        "Seals every secret again with the first key of NOVASTACK_SECRET_KEYS. Put a new key in front, restart, run "
        "this; when it reports nothing left, drop the old key."
    )

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--check", action="store_true", help="Change nothing; fail if any row needs another key.")

    def handle(self, *args: Any, check: bool = False, **options: Any) -> None:
        changed = 0
        unreadable: list[str] = []
        for model in apps.get_models():
            fields = [f for f in model._meta.local_fields if isinstance(f, EncryptedField)]
            if fields:
                changed += self._model(model, fields, check, unreadable)
        if not check:
            changed += sum(reseal() for reseal in resealers)
        for line in unreadable:
            self.stderr.write(line)
        if unreadable:
            raise CommandError(f"{len(unreadable)} rows can't be read with the configured keys; keep the old keys.")
        if check and changed:
            raise CommandError(f"{changed} rows are sealed with another key than the first.")
        self.stdout.write("All secrets are sealed with the first key." if check else f"Sealed again: {changed} rows.")

    def _model(
        self, model: type[models.Model], fields: list[EncryptedField], check: bool, unreadable: list[str]
    ) -> int:
        changed = 0
        for pk in model._default_manager.values_list("pk", flat=True).order_by("pk").iterator():
            with transaction.atomic():
                row = model._default_manager.select_for_update(of=("self",)).filter(pk=pk).first()
                if row is None:
                    continue
                stale = [f for f in fields if (raw := row.__dict__.get(f.attname)) and needs_resealing(str(raw))]
                if not stale or check:
                    changed += bool(stale)
                    continue
                try:
                    for field in stale:
                        setattr(row, field.attname, Sealed.of(getattr(row, field.attname).open()))
                except SecretUnreadable as error:
                    unreadable.append(f"{model._meta.label} {pk}: {error}")
                    continue
                row.save(update_fields=[f.name for f in stale])
                changed += 1
        return changed
