"""A backup of the control plane: its database and its keys in one encrypted file (rule 53). No data of tenants."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from accounts.services import audit
from novastack.common import vault
from novastack.common.clock import now
from novastack.common.models import Install
from projects.services import control_database as control
from projects.services.control_database import ControlError

DUMP, KEYS, MANIFEST = "database.dump", "keys.json", "manifest.json"
NAMES = frozenset({DUMP, KEYS, MANIFEST})
FORMAT = 1
MIN_PASSPHRASE = 12
SUFFIX = ".novastack"


@dataclass(frozen=True, slots=True)
class Made:
    path: Path
    size_bytes: int
    manifest: dict[str, Any]


def target_file(output: Path) -> Path:
    """`output` itself, or a name with id and time in it when `output` is a folder."""
    if not output.is_dir():
        return output
    install = str(Install.load().install_id)[:8]
    return output / f"novastack-control-{install}-{now():%Y%m%dT%H%M%SZ}{SUFFIX}"


def control_backup(*, output: Path, passphrase: str | None) -> Made:
    """Write the backup and prove that it can be read: `output` (a new file, or a folder) is whole and checked, or it is
    not there. `passphrase=None` writes the keys in the clear. `ControlError`, or `VaultError` from the file itself.

    The dump and the row counts come from one snapshot, so they agree while the install works on.
    """
    if passphrase is not None and len(passphrase) < MIN_PASSPHRASE:
        raise ControlError(f"the passphrase is too short: at least {MIN_PASSPHRASE} characters")
    path = target_file(output)
    if path.exists():
        raise ControlError(f"{path} exists; name another file")
    if not path.parent.is_dir():
        raise ControlError(f"{path.parent} is not a folder")
    with tempfile.TemporaryDirectory(prefix=".novastack-", dir=path.parent) as scratch:
        dump = Path(scratch) / DUMP
        manifest = _dump(dump)
        keys = json.dumps({
            "SECRET_KEY": settings.SECRET_KEY, "NOVASTACK_SECRET_KEYS": list(settings.NOVASTACK_SECRET_KEYS)
        }).encode()  # fmt: skip
        manifest["files"] = {
            DUMP: {"sha256": vault.sha256_of(dump), "size_bytes": dump.stat().st_size},
            KEYS: {"sha256": hashlib.sha256(keys).hexdigest(), "size_bytes": len(keys)},
        }
        vault.write_vault(
            path,
            {MANIFEST: json.dumps(manifest, indent=1).encode(), KEYS: keys, DUMP: dump},
            passphrase=passphrase,
        )
        try:
            _prove(path, Path(scratch), manifest, passphrase)
        except Exception:
            path.unlink(missing_ok=True)
            raise
    size = path.stat().st_size
    audit.record(None, "install.control_backup", data={"size_bytes": size, "encrypted": passphrase is not None})
    return Made(path, size, manifest)


def _dump(dump: Path) -> dict[str, Any]:
    major = control.server_major()
    pg_dump, version = control.tool("pg_dump", at_least=major)
    pg_restore, _ = control.tool("pg_restore", at_least=int(version.split(".")[0]))
    install = Install.load()
    names = control.tables()
    # A session of its own holds the snapshot: that of Django may be in somebody's transaction.
    with psycopg.connect(**_connection_parameters()) as holder:
        holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        holder.read_only = True
        row = holder.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None  # noqa: S101 - it answers one row
        control.run_tool([
            str(pg_dump), "--format=custom", "--no-owner", "--no-privileges", "--no-password", f"--snapshot={row[0]}",
            "--lock-wait-timeout=30s", *(f"--exclude-table-data=public.{name}" for name in control.WITHOUT_ROWS),
            f"--file={dump}",
        ])  # fmt: skip
        counts = {
            name: int(holder.execute(f"SELECT count(*) FROM {connection.ops.quote_name(name)}").fetchone()[0])  # type: ignore[index, arg-type]  # noqa: S608 - quoted
            for name in names
        }
    held = control.rows_in_archive(pg_restore, dump)
    if held != counts:
        apart = sorted(name for name in set(held) | set(counts) if held.get(name) != counts.get(name))
        raise ControlError(f"the dump does not hold what the database does: {', '.join(apart[:10])}")
    secrets = control.check_secrets(list(settings.NOVASTACK_SECRET_KEYS))
    if secrets["stored"] and secrets["unreadable"] == secrets["stored"]:
        raise ControlError("the configured NOVASTACK_SECRET_KEYS open none of the stored secrets: not the right keys")
    return {
        "format": FORMAT, "made_at": now().isoformat(), "novastack": settings.VERSION,
        "install_id": str(install.install_id), "epoch": str(install.epoch), "server_major": major, "pg_dump": version,
        "migrations": sorted([app, name] for app, name in MigrationRecorder(connection).applied_migrations()),
        "tables": counts, "secrets": secrets,
    }  # fmt: skip


def _connection_parameters() -> dict[str, Any]:
    """The control database's own, without what only Django's connections understand."""
    found = dict(connection.get_connection_params())
    for name in ("pool", "context", "cursor_factory", "prepare_threshold", "isolation_level"):
        found.pop(name, None)
    return found


def _prove(path: Path, scratch: Path, manifest: dict[str, Any], passphrase: str | None) -> None:
    """Read the finished file again, to its end."""
    again = scratch / "again"
    again.mkdir(mode=0o700)
    found = vault.read_vault(path, again, passphrase=passphrase, names=NAMES)
    for name, expected in manifest["files"].items():
        if found[name] != expected["sha256"]:
            raise ControlError(f"the file that was written does not hold the {name} that was made")
