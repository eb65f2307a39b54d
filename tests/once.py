"""Rows that all tests of a module share, since none of them leaves a change behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.core.management import call_command
from django.db import transaction

T = TypeVar("T")


def made_once(make: Callable[[], T], blocker: Any) -> Iterator[T]:
    """For a fixture of a module whose tests use `db`: what `make` makes is committed, so that each test's own transaction
    takes back only what the test did. The module's end empties the database, as after a test with transactions of its own.
    Who changes what was made in memory takes a copy. `blocker`: the fixture `django_db_blocker`."""
    with blocker.unblock():
        try:
            with transaction.atomic():
                made = make()
            with blocker.block():
                yield made
        finally:
            call_command("flush", verbosity=0, interactive=False)
