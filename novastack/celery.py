"""Celery: carries hints (an operation's id), never truth, never a secret."""

import os
import sys
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, bootsteps
from celery.signals import beat_init, celeryd_init, task_postrun, task_prerun
from django.db import close_old_connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "novastack.settings")

app = Celery("novastack")
app.config_from_object("django.conf:settings", namespace="CELERY")
# Celery closes the database's connections around every task; a new one costs more than most tasks. `_recycle` below does
# what Django does between requests instead.
app.conf.CELERY_DB_REUSE_MAX = sys.maxsize
app.autodiscover_tasks()


class Heartbeat(bootsteps.StartStopStep):
    """Touches the file that NOVASTACK_HEARTBEAT_FILE names every 10 s from the worker's event loop.

    A container's health check reads its age: a worker that hangs, or that waits for its broker, stops touching it.
    """

    requires = {"celery.worker.components:Timer"}

    def start(self, parent: Any) -> None:
        file = os.environ.get("NOVASTACK_HEARTBEAT_FILE", "")
        if file:
            parent.timer.call_repeatedly(10.0, Path(file).touch)


app.steps["worker"].add(Heartbeat)


@celeryd_init.connect
@beat_init.connect
def _refuse(**_: Any) -> None:
    """As the web application does: production starts with nothing that the deploy checks call an error. `SystemExit`,
    because Celery only logs what else a receiver raises."""
    from django.conf import settings

    from novastack.common.checks import production_problems

    if settings.NOVASTACK_MODE == "production" and (problems := production_problems()):
        raise SystemExit("NovaStack refuses to start: " + "; ".join(f"{p.msg} ({p.hint})" for p in problems))


@task_prerun.connect
@task_postrun.connect
def _recycle(**_: Any) -> None:
    """Close connections that broke or are older than CONN_MAX_AGE; those that stay are checked at their next use."""
    close_old_connections()


@task_prerun.connect
def _bind(task_id: str = "", task: Any = None, **_: Any) -> None:
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(task=getattr(task, "name", ""), task_id=task_id)


@task_postrun.connect
def _unbind(**_: Any) -> None:
    structlog.contextvars.clear_contextvars()
