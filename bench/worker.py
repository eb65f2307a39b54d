"""The Celery app of the hint benchmark: NovaStack's own, with one more kind of operation that does nothing."""

from __future__ import annotations

import django

from novastack.celery import app

django.setup()

from projects.models import OnGiveUp  # noqa: E402 - models need django.setup()
from projects.operations.base import Definition, Step, register  # noqa: E402 - models need django.setup()
from projects.operations.context import Context  # noqa: E402 - models need django.setup()

__all__ = ["NOTHING", "app"]


def _nothing(_ctx: Context) -> None:
    return None


NOTHING = Definition(
    kind="bench_nothing",
    title="Nothing",
    on_give_up=OnGiveUp.ROLL_FORWARD,
    while_running=None,
    steps=(Step("nothing", "Do nothing", _nothing),),
)
register(NOTHING)
