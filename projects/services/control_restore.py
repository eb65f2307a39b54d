"""Bring a control backup back, into an empty database. The install is read-only afterwards: it touches no server and no
data until an operator says `read_only off` (rules 11 and 53)."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from accounts.models import RefreshFamily
from accounts.services import audit, revoke_after_restore
from novastack.common import vault
from novastack.common.clock import now
from novastack.common.models import Heartbeat, Install
from projects.models import (
    Database,
    DatabaseServer,
    DatabaseSlot,
    DataTombstone,
    DesiredStatus,
    Operation,
    OperationLock,
    OperationState,
    Project,
    ServerDesired,
    ServerKind,
)
from projects.operations.base import StepFailed
from projects.services import control_database as control
from projects.services.control_backup import DUMP, FORMAT, KEYS, MANIFEST, NAMES
from projects.services.control_database import ControlError
from projects.services.keys import keys_suspend_after_restore

# What was due for deletion may have been saved since the backup was made: people get this long to look.
DATA_GRACE = timedelta(days=1)
BIN_GRACE = timedelta(days=7)


@dataclass(slots=True)
class Restored:
    manifest: dict[str, Any]
    keys: dict[str, Any] = field(repr=False)
    keys_at: list[Path] = field(default_factory=list)
    keys_already_here: bool = False
    live_operations: int = 0
    migrated: bool = False
    tokens_revoked: int = 0
    invitations_revoked: int = 0
    keys_suspended: int = 0


def control_restore(
    *, source: Path, passphrase: str | None, keys_to: Path | None, keep_tokens: bool = False
) -> Restored:
    """Check the file, restore it into the empty control database, compare every table with the manifest, put the keys
    where `keys_to` says (None: nowhere, allowed only when the configured keys are the same), leave it read-only.

    What was revoked since the backup was made must not work again: nobody stays signed in, links to reset a password
    end, and so do API tokens and open invitations; projects' API keys are suspended, each until somebody confirms it.
    Unless `keep_tokens` says that none of these was revoked since.

    `ControlError`, or `VaultError` from the file. Until the file has been checked nothing is written.
    """
    with tempfile.TemporaryDirectory(prefix="novastack-") as scratch:
        folder = Path(scratch)
        hashes = vault.read_vault(source, folder, passphrase=passphrase, names=NAMES)
        manifest = json.loads((folder / MANIFEST).read_text())
        _check(manifest, hashes)
        restored = Restored(manifest, json.loads((folder / KEYS).read_text()))
        same = restored.keys["NOVASTACK_SECRET_KEYS"] == list(settings.NOVASTACK_SECRET_KEYS)
        restored.keys_already_here = same and restored.keys["SECRET_KEY"] == settings.SECRET_KEY
        if keys_to is None and not restored.keys_already_here:
            raise ControlError(
                "this backup has other keys than those configured here: say where to write them (--keys-to)"
            )
        _must_be_empty()
        _restore(folder / DUMP, manifest)
    restored.migrated = _migrate()
    _settle(restored, keep_tokens=keep_tokens)
    secrets = control.check_secrets(restored.keys["NOVASTACK_SECRET_KEYS"])
    if secrets["unreadable"] > manifest["secrets"]["unreadable"]:
        raise ControlError(
            f"{secrets['unreadable']} of {secrets['stored']} stored secrets do not open with the keys of the backup"
        )
    if not restored.keys_already_here and keys_to is not None:
        restored.keys_at = write_keys(keys_to, restored.keys, str(manifest["install_id"]))
    return restored


def write_keys(folder: Path, keys: dict[str, Any], install_id: str) -> list[Path]:
    """`secret-key`, `secret-keys` and `install-id` (0600). Others of that name are kept as `….before-restore`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    texts = {
        "secret-key": keys["SECRET_KEY"],
        "secret-keys": ",".join(keys["NOVASTACK_SECRET_KEYS"]),
        "install-id": install_id,
    }
    made = []
    for name, text in texts.items():
        path = folder / name
        if path.is_file() and path.read_text().strip() != text:
            path.replace(folder / f"{name}.before-restore")
        vault.write_private(path, text)
        made.append(path)
    return made


def _check(manifest: dict[str, Any], hashes: dict[str, str]) -> None:
    if manifest.get("format") != FORMAT:
        raise ControlError(f"this backup has format {manifest.get('format')}; this version knows {FORMAT}")
    for name, expected in manifest["files"].items():
        if hashes.get(name) != expected["sha256"]:
            raise ControlError(f"{name} is not what the manifest says: the backup is damaged")
    known = set(MigrationLoader(None).disk_migrations)
    if newer := sorted(tuple(pair) for pair in manifest["migrations"] if tuple(pair) not in known):
        raise ControlError(
            f"a newer NovaStack ({manifest['novastack']}) made this backup: it has {newer[0][0]}.{newer[0][1]},"
            f" unknown to {settings.VERSION}"
        )


def _must_be_empty() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN"
            " ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'"
        )
        if found := cursor.fetchone()[0]:
            raise ControlError(
                f"the database is not empty ({found} tables and sequences): restore into a new, empty one"
            )
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        if others := cursor.fetchone()[0]:
            raise ControlError(f"{others} other sessions use this database: stop web, workers and beat first")


def _restore(dump: Path, manifest: dict[str, Any]) -> None:
    made_with = int(str(manifest["pg_dump"]).split(".")[0])
    pg_restore, _ = control.tool("pg_restore", at_least=made_with)
    control.run_tool([
        str(pg_restore), "--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--no-password",
        f"--dbname={connection.settings_dict['NAME']}", str(dump),
    ])  # fmt: skip
    with connection.cursor() as cursor:  # before anything else, whatever the version of the tables
        cursor.execute(
            f"UPDATE {connection.ops.quote_name(Install._meta.db_table)}"  # noqa: S608 - our own table
            " SET read_only = true, read_only_reason = 'Being restored from a control backup.'"
        )
    counts = control.count_rows(sorted(manifest["tables"]))
    apart = [name for name, rows in manifest["tables"].items() if counts[name] != rows]
    if apart or set(control.tables()) != set(manifest["tables"]):
        raise ControlError(
            f"the restored database differs from the manifest ({', '.join(apart[:5]) or 'other tables'}): do not use it"
        )


def _migrate() -> bool:
    """An older backup is brought to this version's tables."""
    loader = MigrationLoader(connection)
    behind = set(loader.disk_migrations) - set(loader.applied_migrations)
    if behind:
        call_command("migrate", interactive=False, verbosity=0)
    call_command("createcachetable", verbosity=0)
    return bool(behind)


@transaction.atomic
def _settle(restored: Restored, *, keep_tokens: bool) -> None:
    """Nobody is signed in, nothing is due yet, nobody works; read-only with a reason. Counts what it ended."""
    moment, manifest = now(), restored.manifest
    install = Install.load()
    install.read_only = True
    install.read_only_reason = (
        f"Restored from the control backup of {manifest['made_at'][:16]}Z. Look at it, then: manage.py read_only off"
    )
    install.save(update_fields=["read_only", "read_only_reason"])
    Install.merge_notes(
        restored_at=moment.isoformat(), restored_from=manifest["made_at"]
    )  # ends links to reset a password
    RefreshFamily.objects.filter(revoked_at=None).update(revoked_at=moment, revoked_reason="control_restore")
    if not keep_tokens:
        restored.tokens_revoked, restored.invitations_revoked = revoke_after_restore()
        restored.keys_suspended = keys_suspend_after_restore()
    Heartbeat.objects.all().delete()
    live = Operation.objects.live()
    live.update(lease_until=None, lease_owner="", hinted_at=None)
    DataTombstone.objects.filter(deleted_at=None, due_at__lt=moment + DATA_GRACE).update(due_at=moment + DATA_GRACE)
    Database.objects.filter(drop_due_at__lt=moment + DATA_GRACE).update(drop_due_at=moment + DATA_GRACE)
    Project.objects.filter(recycle_until__lt=moment + BIN_GRACE).update(recycle_until=moment + BIN_GRACE)
    # What was being made then may have been finished and filled since: no undo may destroy it (rule 7).
    Project.objects.filter(credentials_shown_at=None).update(credentials_shown_at=moment)
    _let_go_of_unready_servers()
    _end_what_may_have_ended(moment)
    # Who was to be shut out of a pool then, and was let in since, is shut out again: nobody looks at logins on pools.
    shut = [DesiredStatus.STOPPED, DesiredStatus.RECYCLED]
    Database.objects.filter(server__kind=ServerKind.POOL, project__desired_status__in=shut).update(locked_at=None)
    ended = {
        "tokens_revoked": restored.tokens_revoked, "invitations_revoked": restored.invitations_revoked,
        "keys_suspended": restored.keys_suspended,
    }  # fmt: skip
    audit.record(
        None, "install.control_restore", data={"made_at": manifest["made_at"], "keep_tokens": keep_tokens, **ended}
    )
    restored.live_operations = live.count()


def _let_go_of_unready_servers() -> None:
    """Pools and standbys that were being made, or had failed, when the backup was made may be full of projects since, of which
    no row knows. Their rows get another name, so that no undo, clean-up or next try touches what is there under the old
    one: that is reported as an orphan."""
    unready = Q(initialised_at=None) | (
        Q(pool_ready_at=None, standby_ready_at=None) & ~Q(desired_state=ServerDesired.ABSENT)
    )
    # Not its secrets: the keys that open them may not be in place yet.
    DatabaseServer.objects.filter(unready, kind__in=[ServerKind.POOL, ServerKind.STANDBY], databases=None).update(
        incarnation=F("incarnation") + 1, runtime_ref="", initialised_at=None, system_identifier="", tls_enabled=False
    )


def _end_what_may_have_ended(moment: datetime) -> None:
    """A move that was under way may have ended since: then its “copy” is the database, and to go on, or to undo, would drop
    it. A project that waited for a place on a pool may have got one since, and would be given another, empty one. All stays
    as it is; people decide."""
    live = Operation.objects.live()
    moves = live.filter(kind__in=["move", "discard_copy"])
    _end(moves, "Look which of its databases is the newer one.", moment)
    placed = Database.objects.filter(project_id=OuterRef("project_uuid"), slot=DatabaseSlot.CURRENT)
    unplaced = live.filter(~Exists(placed), kind="provision", variant="pool")
    _end(unplaced, "If it got its database since, the doctor names that as unknown; a retry makes a new one.", moment)


def _end(operations: QuerySet[Any], advice: str, moment: datetime) -> None:
    found = dict(operations.values_list("pk", "project_uuid"))
    detail = f"It was under way when the control backup was made. {advice}"
    failure = StepFailed("control_restored", detail, retryable=False)
    error = {"code": failure.code, "detail": failure.detail, "retryable": failure.retryable}
    OperationLock.objects.filter(operation__in=found).delete()
    Operation.objects.filter(pk__in=found).update(
        state=OperationState.FAILED, error=error, finished_at=moment, fence=F("fence") + 1, next_attempt_at=None
    )
    Project.objects.filter(pk__in=found.values()).update(failure=error)
