"""The suite's parts. A real control database: `DATABASE_URL` if given, else an embedded PostgreSQL that stays up between
runs (fsync off). Real Docker and real processes where a test asks for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Playwright's synchronous API keeps an event loop in the thread of the tests; Django's guard would then refuse the
# database to every later test of the same worker. Nothing here runs concurrently in that thread.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")

if not os.environ.get("DATABASE_URL"):
    from novastack.embedded.postgres import EmbeddedPostgres

    _home = Path(os.environ.get("NOVASTACK_TEST_HOME", Path(__file__).resolve().parent.parent / ".novastack-test"))
    _server = EmbeddedPostgres(_home, durable=False)
    _server.start()
    os.environ["DATABASE_URL"] = _server.url

_KEPT = {"django_content_type", "auth_permission"}  # as migrations leave them; Django would only make them again


@pytest.fixture(scope="session", autouse=True)
def _flush_by_delete() -> Iterator[None]:
    """Between tests with transactions of their own Django truncates all tables: new files for each of them and their
    indexes, half a second or more. They hold a few rows: deleting those takes a hundredth of that. As there, who is still
    writing is waited for, and the order of the tables does not count."""
    from django.db.backends.postgresql.operations import DatabaseOperations

    truncating = DatabaseOperations.sql_flush

    def sql_flush(
        self: DatabaseOperations, style: Any, tables: Sequence[str], *, reset_sequences: bool = False,
        allow_cascade: bool = False,
    ) -> list[str]:  # fmt: skip
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('is_superuser')")
            if reset_sequences or cursor.fetchone() != ("on",):
                return truncating(self, style, tables, reset_sequences=reset_sequences, allow_cascade=allow_cascade)
        names = [self.quote_name(table) for table in tables if table not in _KEPT]
        return [
            f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE",
            "SET LOCAL session_replication_role = replica",  # no foreign keys, no triggers
            *[f"DELETE FROM {name}" for name in names],
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "sql_flush", sql_flush)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadscope`, where all that a browser does on one install is one piece: it is started, and runs, once."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scopes(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/e2e" if nodeid.startswith("tests/e2e/") else super()._split_scope(nodeid)

    return Scopes(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a class that is marked `in_order` tell one story: after the shuffle they take their places in the
    file's order. (`--dist loadscope` keeps a class in one worker; pytest 9.2 ignores xdist 3.8's groups.)"""
    stories: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        if item.get_closest_marker("in_order"):
            stories.setdefault(item.parent, []).append(place)
    for places in stories.values():
        told = sorted((items[place] for place in places), key=lambda item: item.reportinfo()[1] or 0)
        for place, item in zip(places, told, strict=True):
            items[place] = item
