"""`python -m bench [part …]`, parts as in `PARTS`: prints figures, and whether bounds are kept."""

from __future__ import annotations

import importlib
import os
import sys

PARTS = (
    "lists", "observing", "hints", "provisioning", "pools", "neighbours", "moves", "backups", "backups_mariadb",
    "backups_ferretdb", "schedules",
)  # fmt: skip


def main(names: list[str]) -> None:
    unknown = set(names) - set(PARTS)
    if unknown:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; parts are {', '.join(PARTS)}")
    _setup()
    from bench import stats

    print(stats.machine())
    for name in names or PARTS:
        for line in importlib.import_module(f"bench.{name}").run():
            print(line, flush=True)


def _setup() -> None:
    """A control database for the in-process parts, thrown away with the next run's migrations in place."""
    from pathlib import Path

    from novastack.embedded.postgres import EmbeddedPostgres

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "novastack.settings")
    os.environ.setdefault("NOVASTACK_LOG_LEVEL", "ERROR")
    if not os.environ.get("DATABASE_URL"):
        home = Path(__file__).resolve().parent.parent / ".novastack-bench"
        server = EmbeddedPostgres(home)
        server.start()
        os.environ["DATABASE_URL"] = server.url
        os.environ["NOVASTACK_HOME"] = str(home)
    import django

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    call_command("createcachetable")


if __name__ == "__main__":
    main(sys.argv[1:])
