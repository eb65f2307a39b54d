"""/metrics about operations: counts by end, durations by step, retries, failures by code; whatever there are, few queries."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from novastack.common.clock import now
from projects.models import Operation, OperationStep
from projects.services.operation_figures import KEY, Figures, operation_figures

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_summed_up() -> None:
    cache.delete(KEY)


def made(kind: str, state: str, seconds: float, *steps: tuple[str, str, float, int], code: str = "") -> Operation:
    """One that took so long; steps as name, state, seconds, retries."""
    began = now() - timedelta(seconds=1000)
    operation = Operation.objects.create(
        kind=kind, on_give_up="undo", state=state, created_at=began, started_at=began,
        finished_at=began + timedelta(seconds=seconds) if state != "running" else None,
        error={"code": code, "detail": "", "retryable": True} if code else None,
    )  # fmt: skip
    for position, (name, step_state, took, retries) in enumerate(steps):
        OperationStep.objects.create(
            operation=operation, position=position, name=name, title=name, state=step_state, retries=retries,
            started_at=began, finished_at=began + timedelta(seconds=took) if step_state != "running" else None,
        )  # fmt: skip
    return operation


def scraped() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = Client().get("/metrics").content.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_told() -> None:
    made("provision", "succeeded", 4, ("server", "succeeded", 0.2, 0), ("database", "succeeded", 3, 2))
    made("provision", "succeeded", 8, ("server", "succeeded", 0.4, 1), ("database", "succeeded", 70, 0))
    made(
        "provision",
        "failed",
        9,
        ("server", "undone", 1, 0),
        ("database", "failed", 5, 4),
        code="database_creation_failed",
    )
    made("provision", "failed", 9, code="image_missing")
    made("provision", "running", 0, ("server", "running", 0, 3))
    made("stop", "cancelled", 1, code="cancelled")
    found = scraped()

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("novastack_operations_ended_total", kind="provision", state="succeeded") == 2
    assert value("novastack_operations_ended_total", kind="provision", state="failed") == 2
    assert value("novastack_operations_ended_total", kind="stop", state="cancelled") == 1
    assert value("novastack_operation_failures_total", kind="provision", code="database_creation_failed") == 1
    assert value("novastack_operation_failures_total", kind="provision", code="image_missing") == 1
    assert value("novastack_step_retries_total", kind="provision", step="database") == 6
    assert value("novastack_step_retries_total", kind="provision", step="server") == 4
    name = "novastack_operation_duration_seconds"
    assert (value(f"{name}_count", kind="provision"), value(f"{name}_sum", kind="provision")) == (2, 12)
    name = "novastack_step_duration_seconds"
    assert value(f"{name}_count", kind="provision", step="database") == 2, "those that succeeded"
    assert value(f"{name}_sum", kind="provision", step="database") == pytest.approx(73)
    for le, number in (("0.25", 0), ("2.5", 0), ("5.0", 1), ("60.0", 1), ("300.0", 2), ("+Inf", 2)):
        assert value(f"{name}_bucket", kind="provision", step="database", le=le) == number
    assert value(f"{name}_bucket", kind="provision", step="server", le="0.25") == 1


def test_nothing_yet() -> None:
    assert not [name for name, _ in scraped() if re.match("novastack_(operation_|step_|operations_ended)", name)]


def test_three_queries_whatever_there_is(django_assert_num_queries) -> None:  # type: ignore[no-untyped-def]
    for number in range(30):
        made(f"kind{number % 7}", "succeeded", 1, *[(f"step{n}", "succeeded", 1.0, n) for n in range(6)])
    operation_figures()
    with django_assert_num_queries(3):
        operation_figures()


def test_what_ended_long_ago_is_read_once(django_assert_num_queries) -> None:  # type: ignore[no-untyped-def]
    """What is told is the same as if all were read each time, whatever was summed up before and when."""
    old = [made("provision", "succeeded", 3, ("server", "succeeded", 1.0, n), code="") for n in range(3)]
    old += [made("provision", "failed", 3, ("server", "failed", 1.0, 1), code="no_answer")]
    for hours, operation in enumerate(old, start=2):
        moved = timedelta(hours=hours)
        for rows in (Operation.objects.filter(pk=operation.pk), operation.steps.all()):
            rows.update(created_at=F("created_at") - moved, started_at=F("started_at") - moved,
                        finished_at=F("finished_at") - moved)  # fmt: skip
    made("provision", "succeeded", 2, ("server", "succeeded", 0.2, 5))
    whole = operation_figures()
    assert whole.ended == {("provision", "succeeded"): 4, ("provision", "failed"): 1}
    assert whole.retries == {("provision", "server"): 9}
    assert whole.failures == {("provision", "no_answer"): 1}
    assert whole.operations["provision",].seconds == 11
    with CaptureQueriesContext(connection) as seen:
        assert operation_figures() == whole
    assert all("finished_at" in query["sql"] for query in seen.captured_queries)
    settled, until = cache.get(KEY)
    assert sum(settled.ended.values()) == 4, "the one of a moment ago may still change"
    cache.set(KEY, (Figures({}, {}, {}, {}, {}), until - timedelta(days=1)), None)  # summed up when there was nothing
    assert operation_figures() == whole
    assert cache.get(KEY)[1] > until
    Operation.objects.filter(pk__in=[o.pk for o in old]).delete()
    assert operation_figures() == whole, "counters never go back"


def test_without_a_cache_the_same_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made("stop", "succeeded", 1)

    def away(*_: object, **__: object) -> None:
        raise ConnectionError

    monkeypatch.setattr(cache, "get", away)
    monkeypatch.setattr(cache, "set", away)
    assert operation_figures().ended == {("stop", "succeeded"): 1}


def test_they_only_grow() -> None:
    """A step that is tried again later, or undone, takes back no retry."""
    operation = made("provision", "running", 0, ("database", "retrying", 1, 2))
    before = operation_figures().retries
    operation.steps.update(state="undone", attempt=0)
    Operation.objects.update(state="failed", error={"code": "x", "detail": "", "retryable": True})
    assert operation_figures().retries == before == {("provision", "database"): 2}
