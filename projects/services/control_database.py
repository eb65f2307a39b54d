"""The control database as a whole: PostgreSQL's own tools for it, counting its rows, and whether the keys open its
secrets."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from django.apps import apps
from django.conf import settings
from django.db import connection

from novastack.common.secrets import EncryptedField, SecretUnreadable, unseal
from projects.runtimes.process_binaries import find

# Their rows are not part of a backup: caches, and browser sessions (people sign in again after a restore).
WITHOUT_ROWS = ("novastack_cache", "django_session", "usersessions_usersession")
TOOL_SECONDS = 3600


class ControlError(Exception):
    """It can't be done; the text says why and what to do."""


def server_major() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        return int(cursor.fetchone()[0]) // 10000


def tool(name: str, *, at_least: int) -> tuple[Path, str]:
    """`pg_dump` or `pg_restore` of that major version or the nearest newer one, and its version."""
    for major in range(at_least, at_least + 6):
        if found := find(name, str(major)):
            return found.program(name), found.version
    raise ControlError(f"no {name} {at_least} or newer here: install the PostgreSQL client programs of that version")


def tool_environment() -> dict[str, str]:
    """Where the control database is, for PostgreSQL's programs: never in argv, nothing else of ours with it."""
    given = connection.settings_dict
    options: Mapping[str, Any] = given.get("OPTIONS", {})
    env = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", "TZ": "UTC", "PGCONNECT_TIMEOUT": "10",
        "PGAPPNAME": "novastack control backup", "PGDATABASE": str(given["NAME"]), "PGHOST": str(given["HOST"] or ""),
        "PGPORT": str(given["PORT"] or ""), "PGUSER": str(given["USER"] or ""),
        "PGPASSWORD": str(given["PASSWORD"] or ""),
    }  # fmt: skip
    for option in ("sslmode", "sslrootcert", "sslcert", "sslkey"):
        if option in options:
            env[f"PG{option.upper()}"] = str(options[option])
    return {name: value for name, value in env.items() if value}


def run_tool(argv: list[str]) -> None:
    """Run to the end; `ControlError` with its own words when it fails."""
    try:
        done = subprocess.run(
            argv, env=tool_environment(), capture_output=True, text=True, errors="replace", check=False,
            stdin=subprocess.DEVNULL, timeout=TOOL_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ControlError(f"{Path(argv[0]).name} took longer than {TOOL_SECONDS} s") from error
    if done.returncode:
        raise ControlError(f"{Path(argv[0]).name} failed ({done.returncode}): {done.stderr.strip()[-1500:]}")


def tables() -> list[str]:
    """All tables of the control database that a backup holds rows of."""
    with connection.cursor() as cursor:
        found = [info.name for info in connection.introspection.get_table_list(cursor) if info.type in {"t", "p"}]
    return sorted(set(found) - set(WITHOUT_ROWS))


def count_rows(names: list[str]) -> dict[str, int]:
    counts = {}
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute(f"SELECT count(*) FROM {connection.ops.quote_name(name)}")  # noqa: S608 - quoted
            counts[name] = int(cursor.fetchone()[0])
    return counts


def rows_in_archive(pg_restore: Path, archive: Path) -> dict[str, int]:
    """Rows per table as the archive really holds them: it is read to its end and its COPY blocks are counted.

    Header and listing of an archive may be fine while the rest is not, so neither proves anything.
    """
    process = subprocess.Popen(
        [str(pg_restore), "--file=-", str(archive)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None  # noqa: S101 - for the type checker
    counts = _count_copied(process.stdout)
    failure = process.stderr.read().decode(errors="replace")
    if process.wait(timeout=60):
        raise ControlError(f"the archive can't be read back: {failure.strip()[-1500:]}")
    return dict(counts)


_COPY = re.compile(rb'COPY public\.("?)([^" ]+)\1 \(.*\) FROM stdin;\n')


def _count_copied(stream: IO[bytes]) -> Counter[str]:
    counts: Counter[str] = Counter()
    table = ""
    for line in stream:
        if not table:
            if match := _COPY.fullmatch(line):
                table = match[2].decode()
                counts[table] += 0
        elif line == b"\\.\n":
            table = ""
        else:
            counts[table] += 1
    if table:
        raise ControlError(f"the archive ends in the middle of {table}")
    return counts


def check_secrets(keys: list[str]) -> dict[str, int]:
    """How many stored secrets there are, and how many of them these keys do not open."""
    stored = unreadable = 0
    with _keys(keys):
        for model in apps.get_models():
            for field in model._meta.concrete_fields:
                if not isinstance(field, EncryptedField):
                    continue
                rows = model._default_manager.exclude(**{f"{field.attname}__isnull": True})
                for pk, token in rows.values_list("pk", field.attname).iterator(chunk_size=1000):
                    stored += 1
                    try:
                        unseal(str(token), f"{model._meta.label_lower}.{field.name}:{pk}")
                    except SecretUnreadable:
                        unreadable += 1
    return {"stored": stored, "unreadable": unreadable}


@contextlib.contextmanager
def _keys(keys: list[str]) -> Iterator[None]:
    before = settings.NOVASTACK_SECRET_KEYS
    settings.NOVASTACK_SECRET_KEYS = keys
    try:
        yield
    finally:
        settings.NOVASTACK_SECRET_KEYS = before
