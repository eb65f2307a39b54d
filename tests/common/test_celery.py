"""Workers keep their database connections between tasks, and lose the broken ones."""

from __future__ import annotations

import psycopg
import pytest
from celery.fixups.django import DjangoWorkerFixup
from celery.signals import task_postrun, task_prerun
from django.conf import settings
from django.db import connection

from novastack.celery import app


def backend() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return int(cursor.fetchone()[0])


def between_tasks() -> None:
    fixup = DjangoWorkerFixup(app)
    for signal in (task_postrun, task_prerun):
        fixup.close_database()  # what Celery does around every task
        signal.send(sender=None, task_id="", task=None)


@pytest.mark.django_db(transaction=True)
def test_the_next_task_has_the_same_connection() -> None:
    before = backend()
    between_tasks()
    assert backend() == before


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_broke_meanwhile_is_replaced_before_it_is_used() -> None:
    before = backend()
    known = settings.DATABASES["default"]
    with psycopg.connect(
        host=known["HOST"], port=known["PORT"], user=known["USER"], password=known["PASSWORD"],
        dbname=connection.settings_dict["NAME"], autocommit=True,
    ) as other:  # fmt: skip
        other.execute("SELECT pg_terminate_backend(%s)", [before])
    between_tasks()
    assert backend() != before
