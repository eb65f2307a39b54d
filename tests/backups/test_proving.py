"""Proofs on the real parts: a real server, a real dump, a throw-away server, and real damage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction

from accounts.models import AuditEvent
from backups.models import Backup, Proof, StorageTarget
from backups.operations import proving, scratch, storages
from backups.operations.taking import BackupNotSupported
from novastack.common.errors import ActionNotAllowed, OperationInProgress
from projects.engines.ferretdb import FerretDB
from projects.models import DatabaseServer, DataTombstone, Operation, Project
from tests.backups import taken
from tests.faults.conftest import Site, _fresh, process_site  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


class Place:
    def __init__(self, site: Site, project: Project, storage: StorageTarget) -> None:
        self.site, self.project, self.storage = site, project, storage

    def backup(self, **fields: Any) -> Backup:
        return taken.take(self.project, self.storage, **fields)

    def verify(self, backup: Backup, kind: str = "manual") -> tuple[Backup, Proof, Operation]:
        with transaction.atomic():
            operation = proving.verify_begin(backup, kind=kind, created_by_label="test")
        operation = self.site.finish(operation, 120)
        backup.refresh_from_db()
        return backup, Proof.objects.get(operation_id=operation.pk), operation

    def damage(self, backup: Backup, at: int) -> None:
        data = bytearray(taken.read(self.storage, backup.object_key))
        data[at] ^= 1
        taken.put(self.storage, backup.object_key, bytes(data))

    def nothing_left(self) -> None:
        assert not DatabaseServer.objects.filter(kind="scratch").exists()
        assert not DataTombstone.objects.filter(deleted_at=None).exists()
        self.site.check_exactly(self.project)


@pytest.fixture
def place(process_site: Site, settings: Any, tmp_path: Path) -> Iterator[Place]:  # noqa: F811
    project = process_site.ready()
    yield Place(process_site, project, taken.target(settings, tmp_path))


def test_a_backup_is_verified_by_restoring_it(place: Place) -> None:
    backup, proof, operation = place.verify(place.backup())
    assert operation.state == "succeeded", operation.error
    assert (backup.status, backup.verify_error, backup.error) == ("verified", None, None)
    assert backup.verified_at and backup.reverify_at and backup.rto_seconds and backup.rto_seconds > 0.1
    assert (proof.state, proof.kind, proof.differences) == ("passed", "manual", [])
    assert proof.tables and proof.rows and proof.restore_seconds and proof.compare_seconds
    assert proof.notes == ["The throw-away server could reach the network: this region's runtime can't close it off."]
    place.nothing_left()

    again, _, _ = place.verify(backup)
    assert again.status == "verified"
    plain, proof, _ = place.verify(place.backup(encrypted=False))
    assert plain.status == "verified"
    place.nothing_left()


def test_damage_is_corrupt_with_its_code(place: Place) -> None:
    first, second = place.backup(), place.backup()
    whole = {
        b.pk: (taken.read(place.storage, b.object_key), taken.read(place.storage, b.manifest_key))
        for b in (first, second)
    }

    def restored(backup: Backup) -> None:
        data, manifest = whole[backup.pk]
        taken.put(place.storage, backup.object_key, data)
        taken.put(place.storage, backup.manifest_key, manifest)
        Backup.objects.filter(pk=backup.pk).update(status="stored", error=None)
        backup.refresh_from_db()

    def seen(backup: Backup) -> str:
        found, proof, operation = place.verify(backup)
        assert found.status == "corrupt" and proof.state == "failed", (found.status, operation.error)
        assert found.error["code"] == proof.error["code"] == operation.error["code"]
        assert found.verify_error is None
        place.nothing_left()
        restored(backup)
        return str(operation.error["code"])

    size = first.size_bytes or 0
    place.damage(first, size // 2)
    assert seen(first) in {"hash_mismatch", "bad_archive", "wrong_key"}
    place.damage(first, size - 1)
    assert seen(first) in {"hash_mismatch", "bad_archive", "truncated"}
    taken.put(place.storage, first.object_key, whole[first.pk][0][: size // 2])
    assert seen(first) == "truncated"
    # Another one's object, of this organization's own key: it opens, and is not this one.
    taken.put(place.storage, first.object_key, whole[second.pk][0])
    assert seen(first) in {"hash_mismatch", "truncated"}
    taken.put(place.storage, first.manifest_key, whole[second.pk][1])
    assert seen(first) == "manifest_mismatch"
    data = bytearray(whole[first.pk][1])
    data[-20] ^= 1
    taken.put(place.storage, first.manifest_key, bytes(data))
    assert seen(first) == "manifest_damaged"

    import pyrage

    from backups.models import BackupKey, SigningKey
    from novastack.common.secrets import Sealed

    kept = list(SigningKey.objects.all())
    SigningKey.objects.all().delete()
    assert seen(first) == "bad_signature"
    SigningKey.objects.bulk_create(kept)
    key = BackupKey.objects.get()
    mine = key.identity.open()
    key.identity = Sealed.of(str(pyrage.x25519.Identity.generate()))
    key.save()
    assert seen(first) == "wrong_key"
    key.identity = Sealed.of(mine)
    key.save()
    assert place.verify(first)[0].status == "verified"
    assert Backup.objects.get(pk=second.pk).status == "stored"


def test_content_that_is_not_what_was_dumped_is_corrupt(place: Place, settings: Any) -> None:
    """The manifest says more than the dump holds: as if rows had been lost on the way."""
    import dataclasses

    from backups import manifest as manifests
    from backups.operations import keys, restoring_data
    from projects.domain import Fingerprint, TableContent

    backup = place.backup()
    true = restoring_data.read_manifest(backup)
    tables = dict(true.contents.tables)
    name = next(iter(sorted(tables)))
    tables[name] = TableContent(tables[name].rows + 1, tables[name].digest)
    lie = dataclasses.replace(true, contents=Fingerprint(tables, true.contents.facts))
    recipients = keys.recipients_of(backup.organization_id)
    taken.put(place.storage, backup.manifest_key, manifests.seal(lie, recipients, keys.signing_key()))
    found, proof, _ = place.verify(backup)
    assert found.status == "corrupt" and found.error["code"] == "content_differs"
    assert len(proof.differences) == 1 and f"table {name} has" in proof.differences[0]
    place.nothing_left()


def test_a_definition_that_a_restore_changed_is_corrupt_and_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows and objects are there; one view, default or policy says something else."""
    import dataclasses

    from backups import manifest as manifests
    from backups.operations import keys, restoring_data
    from projects.domain import Fingerprint

    with place.site.login(place.project) as session:
        session.execute(
            "CREATE TABLE kept (id int DEFAULT 1, v varchar CHECK (v IN ('a', 'b')));"
            "ALTER TABLE kept ENABLE ROW LEVEL SECURITY;"
            "CREATE VIEW shown AS SELECT id FROM kept WHERE id > 1; CREATE POLICY some_rows ON kept USING (id > 1)"
        )
        session.commit()
    backup = place.backup()
    change, real = "", restoring_data.restore_into

    def restored(side: Any, *args: Any, **more: Any) -> Any:
        done = real(side, *args, **more)
        if change:
            from projects.engines.postgresql_copy import inside

            with inside(side.server.control_endpoint, done.tool) as session:
                session.execute(change)  # type: ignore[arg-type]
        return done

    monkeypatch.setattr(restoring_data, "restore_into", restored)
    found, proof, _ = place.verify(backup)
    assert found.status == "verified"
    assert "After a restore the server spells otherwise" in proof.notes[-1]
    assert "constraint public.kept.kept_v_check" in proof.notes[-1]
    for change, told in (  # noqa: B007 - `restored` reads it
        ("CREATE OR REPLACE VIEW public.shown AS SELECT id FROM public.kept WHERE id > 2", "text of view public.shown"),
        ("ALTER TABLE public.kept ALTER id SET DEFAULT 2", "text of default public.kept.id"),
        ("ALTER POLICY some_rows ON public.kept USING (true)", "text of policy public.kept.some_rows"),
    ):
        found, proof, _ = place.verify(backup)
        assert (found.status, found.error["code"]) == ("corrupt", "content_differs")
        assert proof.differences == [f"{told} differs"]
        assert told in found.error["detail"]
    # One that an older NovaStack took does not say how they were: the rest is compared, and that is told.
    change = ""
    new = restoring_data.read_manifest(backup)
    assert new.contents is not None
    facts = {key: v for key, v in new.contents.facts.items() if not key[0].startswith(("text", "version of"))}
    old = dataclasses.replace(new, contents=Fingerprint(new.contents.tables, facts))
    recipients = keys.recipients_of(backup.organization_id)
    taken.put(place.storage, backup.manifest_key, manifests.seal(old, recipients, keys.signing_key()))
    found, proof, operation = place.verify(backup)
    assert found.status == "verified", operation.error
    assert "Not compared, since another version of NovaStack took it: the text of" in proof.notes[-1]
    place.nothing_left()


def test_what_could_not_run_says_nothing_about_the_backup(place: Place) -> None:
    backup = place.backup()
    object_path = taken.read(place.storage, backup.object_key)
    storages.storage_of(place.storage).delete(backup.object_key)
    found, proof, operation = place.verify(backup)
    assert (found.status, proof.state) == ("stored", "error")
    assert found.verify_error["code"] == "object_missing" == operation.error["code"]
    assert found.error is None and found.reverify_at is not None
    taken.put(place.storage, backup.object_key, object_path)
    # No room.
    Region = type(place.site.region)
    Region.objects.update(disk={"free_bytes": 1 << 20, "total_bytes": 1 << 40, "used_percent": 10})
    found, proof, _ = place.verify(backup)
    assert (found.status, found.verify_error["code"]) == ("stored", "capacity_exhausted")
    Region.objects.update(disk={})
    found, _, _ = place.verify(backup)
    assert (found.status, found.verify_error) == ("verified", None)
    # One that was proven before stays so.
    storages.storage_of(place.storage).delete(backup.object_key)
    found, _, _ = place.verify(backup)
    assert found.status == "verified" and found.verify_error["code"] == "object_missing"
    place.nothing_left()


def test_begin_refuses_what_makes_no_sense(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FerretDB, "capabilities", frozenset())
    backup = place.backup()
    with transaction.atomic():
        proving.verify_begin(backup, kind="manual", created_by_label="test")
    with pytest.raises(OperationInProgress), transaction.atomic():
        proving.verify_begin(backup, kind="manual", created_by_label="test")
    for status in ("queued", "dumping", "failed", "deleting"):
        with pytest.raises(ActionNotAllowed), transaction.atomic():
            proving.check(Backup(status=status, engine="postgresql"))
    with pytest.raises(BackupNotSupported):
        proving.check(Backup(status="stored", engine="ferretdb"))
    with pytest.raises(BackupNotSupported):
        proving.check(Backup(status="stored", engine="postgresql", trusted=False))
    assert scratch.sweep() == 0


def test_a_drill_asks_the_user_s_own_questions(place: Place) -> None:
    from backups.models import Drill

    with place.site.login(place.project) as session:
        session.execute("CREATE SCHEMA app; CREATE TABLE app.orders (id int, note text)")
        session.execute("INSERT INTO app.orders VALUES (1, 'a;b'), (2, NULL)")
    backup = place.backup()
    questions = [
        ("rows", "SELECT count(*) FROM app.orders;", "2"),
        ("text", "SELECT note FROM app.orders ORDER BY id -- the first\n", "a;b"),
        ("null", "SELECT note FROM app.orders WHERE id = 2", None),
        ("nothing", "SELECT 1 WHERE false", None),
        ("truth", "SELECT true", "true"),
        ("who", "SELECT current_setting('is_superuser')", "off"),
        ("wrong", "SELECT 41 + 1", "43"),
        ("write", "INSERT INTO app.orders VALUES (3) RETURNING 1", "1"),
        ("write within", "WITH x AS (DELETE FROM app.orders RETURNING 1) SELECT count(*) FROM x", "2"),
        ("write by function", "SELECT lo_create(0)", "1"),
        ("two", "SELECT 1; DROP TABLE app.orders", "1"),
        ("brackets", "SELECT 1) q (c), (SELECT 2", "1"),
        ("large", "SELECT repeat('x', 100000000)", "x"),
        ("broken", "SELEC 1", "1"),
        ("division", "SELECT 1 / 0", "1"),
    ]
    drill = Drill.objects.create(
        project=place.project,
        organization_id=place.project.organization_id,
        name="d",
        assertions=[{"name": name, "sql": sql, "expect": expect} for name, sql, expect in questions],
    )
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="drill", drill=drill, created_by_label="test")
    operation = place.site.finish(operation, 120)
    assert operation.state == "succeeded", operation.error
    proof = Proof.objects.get(operation_id=operation.pk)
    told = {answer["name"]: answer for answer in proof.assertions}
    good = {name for name, answer in told.items() if answer["passed"]}
    assert good == {"rows", "text", "null", "nothing", "truth", "who"}, told
    assert told["wrong"]["detail"] == "42 instead of 43"
    assert all(
        told[name]["detail"].startswith("It was refused: ") for name in ("write", "write within", "two", "brackets")
    )
    assert "read-only" in told["write by function"]["detail"]
    assert all(len(answer["detail"]) < 500 for answer in proof.assertions)
    assert (proof.state, proof.error["code"]) == ("failed", "assertion_failed")
    backup.refresh_from_db()
    assert backup.status == "verified"  # it restores; that it holds something else than hoped is the drill's word
    place.nothing_left()
    drill.assertions = drill.assertions[:6]
    drill.save()
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="drill", drill=drill, created_by_label="test")
    place.site.finish(operation, 120)
    assert Proof.objects.get(operation_id=operation.pk).state == "passed"
    place.nothing_left()


def test_a_drill_that_can_not_run_says_so_until_it_has_run(place: Place) -> None:
    """Begun by the clock while its storage is away; then nobody brings it back but a run with a verdict."""
    from datetime import timedelta

    from backups.models import Drill
    from backups.operations import drills, objectives
    from novastack.common.clock import now

    backup, _, _ = place.verify(place.backup())
    kept = taken.read(place.storage, backup.manifest_key)
    storages.storage_of(place.storage).delete(backup.manifest_key)
    question = {"name": "some", "sql": "SELECT 1", "expect": "2"}
    drill = Drill.objects.create(
        project=place.project, organization_id=place.project.organization_id, name="d", cron="0 4 * * *",
        assertions=[question], next_run_at=now(),
    )  # fmt: skip

    def run() -> Proof:
        Drill.objects.update(next_run_at=now() - timedelta(minutes=1))
        assert drills.dispatch_due() == 1
        operation = place.site.finish(Operation.objects.live().get(kind="drill"), 120)
        drill.refresh_from_db()
        return Proof.objects.get(operation_id=operation.pk)

    first = run()
    assert first.state == "error" and drill.stalled_since == first.created_at
    assert drill.stalled_error["code"] == first.error["code"] == "object_missing"
    assert "could not run since" in objectives.objective_of(place.project).reasons[-1]
    since = drill.stalled_since
    assert run().state == "error" and drill.stalled_since == since
    assert AuditEvent.objects.filter(action="drill.not_run").count() == 1
    taken.put(place.storage, backup.manifest_key, kept)
    assert run().state == "failed" and drill.stalled_since is None and drill.stalled_error is None
    assert objectives.objective_of(place.project).reasons == ("The last drill failed: d.",)
    drill.assertions = [question | {"expect": "1"}]
    drill.save()
    assert run().state == "passed" and objectives.objective_of(place.project).reasons == ()
    place.nothing_left()


def test_every_backup_is_proven_and_somebody_is_told(place: Place, settings: Any) -> None:
    """The whole way: taken by its own operation, verified after it, the heartbeat called; a policy may say no."""
    import http.server
    import json
    import threading

    from backups.models import BackupPolicy
    from backups.operations import taking

    storages.claim(place.storage)
    place.storage.save()
    heard: list[dict[str, Any]] = []

    class Watchdog(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200 if len(heard) == 1 else 503)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = http.server.HTTPServer(("127.0.0.1", 0), Watchdog)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    policy = BackupPolicy.objects.create(
        project=place.project, organization_id=place.project.organization_id, reverify_days=0,
        heartbeat_url=f"http://127.0.0.1:{server.server_port}/beat",
    )  # fmt: skip

    def take() -> Backup:
        with transaction.atomic():
            backup = taking.backup_begin(
                place.project, trigger="manual", storage=place.storage, created_by_label="test"
            )
        operation = place.site.finish(Operation.objects.get(pk=backup.operation_id), 120)
        assert operation.state == "succeeded", operation.error
        for proof in Proof.objects.filter(backup=backup, kind="after_backup"):
            done = place.site.finish(Operation.objects.get(pk=proof.operation_id), 120)
            assert done.state == "succeeded", done.error
        backup.refresh_from_db()
        policy.refresh_from_db()
        return backup

    try:
        backup = take()
        assert (backup.status, backup.reverify_at) == ("verified", None)
        assert policy.heartbeat_error
        assert policy.heartbeat_at is None and heard == []  # a private address: the operator has not named it
        settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]
        backup = take()
        assert backup.status == "verified" and [beat["backup"] for beat in heard] == [str(backup.pk)]
        assert policy.heartbeat_at is not None and policy.heartbeat_error == ""
        assert take().status == "verified"
        assert policy.heartbeat_error == "It answered 503."
        BackupPolicy.objects.update(verify_after_backup=False)
        assert take().status == "stored"
        assert len(heard) == 2
    finally:
        server.shutdown()
        server.server_close()
    place.nothing_left()
