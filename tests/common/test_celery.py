"""Workers keep their database connections between tasks, and lose the broken ones."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from celery.fixups.django import DjangoWorkerFixup
from celery.signals import task_postrun, task_prerun
from django.conf import settings
from django.db import connection

from novastack.celery import app
from novastack.embedded import child
from projects.operations import base


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


QUEUES = {"provisioning", "monitoring", "maintenance", "backups"}


def test_every_task_of_ours_has_a_queue_that_somebody_takes() -> None:
    app.loader.import_default_modules()
    ours = {name for name in app.tasks if name.startswith(("projects.", "backups."))}
    routes = settings.CELERY_TASK_ROUTES
    assert ours - set(routes) == {"projects.pulse"}, "that one is sent to each queue by beat"
    assert set(routes) <= ours, "a route of a task that is none"
    kinds = {base.queue_of(kind) for kind in base.titles()}
    assert {route["queue"] for route in routes.values()} | kinds == QUEUES
    compose = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    assert set(re.findall(r'"worker", "-Q", "([a-z]+)"', compose)) == QUEUES
    assert {queue for queues, *_ in child.WORKERS.values() for queue in queues.split(",")} == QUEUES


def test_beat_sends_only_what_is_there_and_nothing_that_outlives_its_turn() -> None:
    app.loader.import_default_modules()
    for name, entry in settings.CELERY_BEAT_SCHEDULE.items():
        assert entry["task"] in app.tasks, name
        assert 0 < entry["options"]["expires"] <= max(entry["schedule"], 60), name
    sent = {entry["task"] for entry in settings.CELERY_BEAT_SCHEDULE.values()}
    asked_for = {"run_operation", "read_logs", "examine", "check_region", "check_pool"}
    assert set(settings.CELERY_TASK_ROUTES) - sent == {f"projects.{name}" for name in asked_for}
