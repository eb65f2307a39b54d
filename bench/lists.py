"""The list of 10,000 projects through the API, in-process: p95 ≤ 40 ms and at most 8 queries, also with a search."""

from __future__ import annotations

from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from rest_framework.test import APIClient

from bench import stats
from bench.fixtures import many_projects, person

COUNT = 10_000


class _Rollback(Exception):
    pass


def run() -> list[str]:
    """Lines for the report. Everything is made and rolled back in one transaction."""
    lines: list[str] = []
    try:
        with transaction.atomic():
            user, organization = person()
            many_projects(organization, COUNT)
            with connection.cursor() as cursor:
                cursor.execute("ANALYZE")
            client = APIClient(SERVER_NAME="localhost")
            client.force_authenticate(user)
            for title, query in (
                ("first page", ""),
                ("page 200", "?page=200"),
                ("search", "?search=orders-77"),
                ("search without a hit", "?search=zzzz"),
                ("filter and order", "?status=running&ordering=name"),
            ):
                lines.append(_measure(client, title, f"/api/v1/projects/{query}"))
            raise _Rollback
    except _Rollback:
        pass
    return lines


def _measure(client: APIClient, title: str, path: str) -> str:
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(path)
        queries = len(captured)  # now: the next request empties the log
    assert answer.status_code == 200, answer.content
    durations = stats.timed(lambda: client.get(path), 60)
    p95 = stats.percentile(durations, 0.95) * 1000
    return (
        f"list of {COUNT:,} projects, {title}: {stats.summary(durations)}, {queries} queries"
        f" (bounds: 40 ms {stats.verdict(p95, 40)}, 8 queries {stats.verdict(queries, 8)})"
    )
