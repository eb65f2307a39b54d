"""Celery's side of backups: shells around operations."""

from __future__ import annotations

from celery import shared_task

from backups.operations import deleting, dispatching, drills, importing, retaining, scratch, stalls, storages
from novastack.common.models import Install


@shared_task(name="backups.dispatch_due")
def dispatch_due() -> None:
    """Begin what schedules have made due. Two at once share it; each slot is begun once."""
    dispatching.dispatch_due()


@shared_task(name="backups.keep")
def keep() -> None:
    """Retention and expiry: once in 20 hours however often it is sent."""
    retaining.daily()


@shared_task(name="backups.clean_up")
def clean_up() -> None:
    """Uploads that nobody will finish, and deletions that nobody works on."""
    if not Install.load().read_only:
        deleting.go_on()
        importing.sweep()
        deleting.sweep_uploads()


@shared_task(name="backups.prove_due")
def prove_due() -> None:
    """Drills and re-verifications that are due, a few at a time; throw-away servers whose operation has ended go."""
    if not Install.load().read_only:
        scratch.sweep()
        drills.dispatch_due()
        stalls.look_at_waiting()
        drills.reverify_due()


@shared_task(name="backups.test_storages")
def test_storages() -> None:
    """What a page says of a storage is at most some minutes old."""
    if not Install.load().read_only:
        storages.test_due()
