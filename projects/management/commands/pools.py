"""`manage.py pools [list|create|drain]`: servers that many projects share."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from novastack.common.errors import Problem
from novastack.common.sizes import parse_size
from projects.services.pools import PoolRequest, describe, pool_create, pool_drain, pool_rows


class Command(BaseCommand):
    help = "List, create or drain pools"

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action")
        actions.add_parser("list", help="each with its fill and state (the default)")
        new = actions.add_parser("create", help="one more; what is not given is as the settings say")
        new.add_argument("--engine", default="postgresql")
        new.add_argument("--release", dest="engine_version", help="of the engine; its default one if missing")
        new.add_argument("--region", help="its slug")
        new.add_argument("--plan", help="its slug; missing: projects of every plan")
        new.add_argument("--name", default="")
        new.add_argument("--max-databases", type=int)
        new.add_argument("--memory", help="such as 4G")
        new.add_argument("--cpus", type=float)
        gone = actions.add_parser("drain", help="move everybody out, then remove it")
        gone.add_argument("name")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            if options["action"] == "create":
                self._create(options)
            elif options["action"] == "drain":
                self._drain(options["name"])
            else:
                self._list()
        except Problem as problem:
            words = [f"{each.field}: {each.detail}" for each in problem.errors] or [problem.detail]
            raise CommandError("\n".join(words)) from None

    def _list(self) -> None:
        found = describe(list(pool_rows().order_by("name")))
        for pool in found:
            why = f": {pool.status_detail}" if pool.status_detail else ""
            self.stdout.write(
                f"{pool.server.name}: {pool.databases} of {pool.server.max_databases}, {pool.status}{why}"
            )
        if not found:
            self.stdout.write("There is no pool. See `manage.py pools create --help`.")

    def _create(self, options: dict[str, Any]) -> None:
        try:
            memory = parse_size(options["memory"]) if options["memory"] else None
        except ValueError as error:
            raise CommandError(f"--memory: {error}") from None
        server = pool_create(
            principal=None,
            request=PoolRequest(
                engine=options["engine"], version=options["engine_version"], region=options["region"],
                plan=options["plan"], name=options["name"], max_databases=options["max_databases"],
                memory_bytes=memory, cpus=options["cpus"],
            ),
        )  # fmt: skip
        self.stdout.write(f"{server.name} is being made; `manage.py pools` says how far it is.")

    def _drain(self, name: str) -> None:
        server = pool_rows().filter(name=name).first()
        if server is None:
            raise CommandError(f"There is no pool {name}.")
        pool_drain(principal=None, server=server)
        self.stdout.write(f"{name} takes no more projects; once everybody has moved, it is removed.")
