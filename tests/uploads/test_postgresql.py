"""Uploads of PostgreSQL dumps on real servers: what was taken elsewhere comes in whole, and what is hostile runs nowhere."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zstandard

from backups.models import Backup, StorageTarget
from projects.engines import postgresql_foreign
from projects.engines.foreign import Left
from projects.models import DatabaseServer, Operation, OperationLock, Project, ServerKind
from projects.operations.wiring import tenant_names
from tests.engines.test_copies_postgresql import HOSTILE
from tests.factories import api_client
from tests.faults.clients import ROWS
from tests.faults.conftest import Site
from tests.restores.taken import take
from tests.uploads.conftest import bucket_of
from tests.uploads.sent import pg_dump, pg_dump_of_image, send, sql_of, taken, told

pytestmark = pytest.mark.docker


def nothing_left(root: Path) -> None:
    """Of what was uploaded, neither a file nor a server nor a hold on anything."""
    assert not [path for path in root.rglob("*") if path.is_file() and "source" in path.name]
    assert not DatabaseServer.objects.filter(kind=ServerKind.SCRATCH).exists()
    assert not OperationLock.objects.filter(operation__kind="import_upload").exists()


def script_in(archive: bytes) -> bytes:
    assert postgresql_foreign.recognise(archive[:4096], "18") == "custom"
    return b"".join(postgresql_foreign.script_of([archive], "custom", Left()))


_CONTENT = "SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"
SHOP = """CREATE SCHEMA shop; CREATE TABLE shop.people (id int PRIMARY KEY); INSERT INTO shop.people VALUES (1);
CREATE TABLE shop.sales (id serial, day date, person int REFERENCES shop.people, total numeric, PRIMARY KEY (id, day))
 PARTITION BY RANGE (day);
CREATE TABLE shop.sales_1 PARTITION OF shop.sales FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE shop.sales_2 PARTITION OF shop.sales FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
CREATE INDEX sales_total ON shop.sales (total);
CREATE FUNCTION shop.twice() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.total = NEW.total * 2; RETURN NEW; END $$;
CREATE TRIGGER doubles BEFORE INSERT ON shop.sales FOR EACH ROW EXECUTE FUNCTION shop.twice();
ALTER TABLE shop.sales ENABLE ROW LEVEL SECURITY; CREATE POLICY cheap ON shop.sales USING (total < 100);
INSERT INTO shop.sales (day, person, total) SELECT '2026-01-20'::date + i, 1, i FROM generate_series(1, 30) i;
COMMENT ON INDEX shop.sales_total IS 'of an index'; COMMENT ON TRIGGER doubles ON shop.sales IS 'of a trigger';"""
# Besides tables: what a schema holds, and what needs another schema's.
MALL = """CREATE SCHEMA "The Mall"; COMMENT ON SCHEMA "The Mall" IS 'all of it'; CREATE TYPE "The Mall".mood AS ENUM ('a', 'b');
CREATE TABLE "The Mall".shops (id int PRIMARY KEY, mood "The Mall".mood, part int REFERENCES shop.people);
INSERT INTO "The Mall".shops SELECT i, 'b', 1 FROM generate_series(1, 9) i; CREATE SEQUENCE "The Mall".loose;
SELECT nextval('"The Mall".loose') FROM generate_series(1, 5); CREATE TABLE "The Mall"."empty" ();
CREATE VIEW "The Mall".base AS SELECT id, mood FROM "The Mall".shops;
CREATE VIEW "The Mall".atop AS SELECT * FROM "The Mall".base;
CREATE MATERIALIZED VIEW "The Mall".counted AS SELECT mood, count(*) AS n FROM "The Mall".atop GROUP BY mood;
CREATE UNIQUE INDEX counted_mood ON "The Mall".counted (mood); COMMENT ON INDEX "The Mall".counted_mood IS 'of a view';
CREATE FUNCTION "The Mall".sum(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 + $2';
CREATE AGGREGATE "The Mall".total(int) (SFUNC = "The Mall".sum, STYPE = int, INITCOND = '0');
CREATE VIEW "The Mall".outside AS SELECT * FROM shop.people;"""
_MALL = """SELECT relname, relkind::text FROM pg_class WHERE relnamespace = '"The Mall"'::regnamespace AND relname <> 'outside'
 UNION ALL SELECT proname, prokind::text FROM pg_proc WHERE pronamespace = '"The Mall"'::regnamespace
 UNION ALL SELECT description, '' FROM pg_description d WHERE d.description IN ('all of it', 'of a view') ORDER BY 1"""
_FACTS = """SELECT indexdef FROM pg_indexes WHERE tablename LIKE 'sales%' UNION ALL SELECT pg_get_triggerdef(oid) FROM
 pg_trigger WHERE tgname = 'doubles' UNION ALL SELECT p::text FROM pg_policies p WHERE schemaname = 'shop' UNION ALL
 SELECT relname::text || relrowsecurity || coalesce(pg_get_expr(relpartbound, oid), '') FROM pg_class
 WHERE relname LIKE 'sales%' UNION ALL SELECT conrelid::regclass || pg_get_constraintdef(oid) FROM pg_constraint
 WHERE contype <> 'f' AND conrelid::regclass::text LIKE 'shop.sales%'
 UNION ALL SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef
 WHERE adrelid::regclass::text LIKE 'shop.sales%' UNION ALL SELECT last_value::text FROM shop.sales_id_seq ORDER BY 1"""


def comes_out_as_sql(site: Site, source: Project, backup: Backup) -> None:
    """Tables by themselves, into other databases of the same server; psql stops at the first error."""
    tables = [
        name for name in backup.manifest["contents"]["tables"]
        if any(word in name for word in ("ta;ble", "child", "collated", "fk_b", "gen", "spelled", "typed", "secret"))
    ]  # fmt: skip
    assert len(tables) >= 8
    script = sql_of(site, backup, *tables, "parted")
    assert b"Left out, as it needs what was not chosen: FK CONSTRAINT public.fk_b" in script
    assert b"Without rows, as others need it: TABLE public.parent" in script
    login = loaded(source, "other", script)
    shop = sql_of(site, backup, "shop.sales")
    assert (
        b"Left out, as it needs what was not chosen: FK CONSTRAINT shop.sales " in shop and b"shop.people" not in shop
    )
    loaded(source, "sold", shop)
    part = sql_of(site, backup, "shop.sales_2")
    assert b"-- Without rows, as others need it: TABLE shop.sales\n" in part and b"sales_1" not in part
    loaded(source, "part", part)
    mall = sql_of(site, backup, schemas=('"The Mall"',))
    assert b"Left out, as it needs what was not chosen: VIEW The Mall.outside" in mall
    assert b"FK CONSTRAINT The Mall.shops shops_part_fkey" in mall and b"shop.people (" not in mall
    loaded(source, "mall", mall)
    name = source.databases.get(slot="current").name
    with psycopg.connect(dbname="other", **login) as other, psycopg.connect(dbname=name, **login) as mine:
        for table in (*tables, "public.parted"):
            assert (
                other.execute(_CONTENT.format(table)).fetchone() == mine.execute(_CONTENT.format(table)).fetchone()
            ), table
        there = other.execute("SELECT count(*) FROM pg_class WHERE relname IN ('big', 'light', 'orders')").fetchone()
        assert there == (0,)
        asked = "SELECT conname FROM pg_constraint WHERE conrelid = 'fk_b'::regclass AND contype = 'p'"
        assert len(other.execute(asked).fetchall()) == 1
        with psycopg.connect(dbname="mall", **login) as there:
            for question in (
                'SELECT * FROM "The Mall".counted', 'SELECT count(*) FROM "The Mall".atop', _MALL,
                'SELECT "The Mall".total(id) FROM "The Mall".shops', 'SELECT last_value FROM "The Mall".loose',
            ):  # fmt: skip
                found = there.execute(question).fetchall()
                assert found and found == mine.execute(question).fetchall(), question
        with psycopg.connect(dbname="sold", **login) as sold:
            for question in (_CONTENT.format("shop.sales"), _FACTS):
                assert sold.execute(question).fetchall() == mine.execute(question).fetchall()
            assert len(sold.execute(_FACTS).fetchall()) >= 18
            added = "INSERT INTO shop.sales (day, total) VALUES ('2026-02-03', 4) RETURNING id, total"
            assert sold.execute(added).fetchone() == (31, 8)
    with psycopg.connect(dbname="postgres", autocommit=True, **login) as link:
        link.execute("DROP DATABASE other")
        link.execute("DROP DATABASE sold")
        link.execute("DROP DATABASE mall")
        link.execute("DROP DATABASE part")


def loaded(source: Project, name: str, script: bytes) -> dict[str, Any]:
    """Into a new database of the source's server; how to log in there."""
    server = DatabaseServer.objects.get(project_uuid=source.pk)
    place, secret = server.control_endpoint, server.admin_secret
    assert secret is not None
    login = {"host": place.host, "port": place.port, "user": server.admin_username, "password": secret.open()}
    with psycopg.connect(dbname="postgres", autocommit=True, **login) as link:
        link.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    done = subprocess.run(
        [
            "docker", "run", "--rm", "-i", "--network=host", "--env=PGPASSWORD", "--entrypoint=psql", server.image,
            f"--host={place.host}", f"--port={place.port}", f"--username={server.admin_username}", f"--dbname={name}",
            "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null",
        ],
        input=script, env={**os.environ, "PGPASSWORD": secret.open()}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return login


def test_everything_goes_round_in_each_format(docker_site: Site, target: StorageTarget, backup_root: Path) -> None:
    site = docker_site
    source = site.ready()
    with site.login(source) as session:
        session.execute(HOSTILE)
        session.execute(SHOP)
        session.execute(MALL)
    first = take(source)
    wanted = first.manifest["contents"]
    comes_out_as_sql(site, source, first)
    plain = pg_dump(source)
    files = {
        "custom": pg_dump(source, "--format=custom"),
        "custom with lz4": pg_dump_of_image(source, "--format=custom", "--compress=lz4"),
        "tar": pg_dump(source, "--format=tar"),
        "plain.zst": zstandard.compress(plain),
        "inserts.gz": gzip.compress(pg_dump(source, "--inserts", "--rows-per-insert=50")),
    }
    within_zstd = pg_dump_of_image(source, "--format=custom", "--compress=zstd")
    assert script_in(within_zstd) == script_in(files["custom"])
    for name, data in files.items():
        backup, operation = taken(site, source, data, filename=name)
        assert operation.state == "succeeded", (name, told(operation))
        assert (backup.status, backup.trigger, backup.trusted, backup.label) == ("stored", "upload", True, name)
        assert backup.notes[0] == f"Made of an uploaded file ({name})."
        found = backup.manifest["contents"]
        unequal = {table for table, told in wanted["tables"].items() if found["tables"].get(table) != told}
        # pg_dump itself writes -0 without quotes into INSERTs, where it becomes 0.
        assert unequal == ({table for table in unequal if "ta;ble" in table} if "inserts" in name else set()), name
        facts = {(kind, item): state for kind, item, state in found["facts"]}
        mine = {(kind, item): state for kind, item, state in wanted["facts"]}
        # Rights of others are left out, and said.
        assert {kind for kind, _ in mine.keys() ^ facts.keys()} <= {"default privileges"}, name
        assert any("rights of other roles" in note for note in backup.notes)
        nothing_left(backup_root)


GOOD = b"CREATE TABLE kept (a int);\nINSERT INTO kept SELECT generate_series(1, 500);\n"


def test_what_is_hostile_or_broken_runs_nowhere(
    process_site: Site, target: StorageTarget, backup_root: Path, tmp_path: Path
) -> None:
    site = process_site
    source = site.ready()
    before = site.rows_of(source)
    mark = tmp_path / "ran"
    tmp_path.chmod(0o777)
    touch = f"touch {mark}".encode()
    control = tenant_names(source.databases.get(slot="current")).control.encode()  # a definer's function could stay its
    whole = pg_dump(source, "--format=custom")
    lying = whole + b"\x01\x00\xff\xff\x00\x00 and more"
    cases: dict[str, tuple[bytes, str]] = {
        "shell": (GOOD + b"\\! %b\n" % touch, "upload_meta_command"),
        "program": (GOOD + b"COPY kept FROM PROGRAM '%b';\n" % touch, "upload_statement_failed"),
        "to program": (GOOD + b"COPY kept TO PROGRAM '%b';\n" % touch, "upload_statement_failed"),
        "superuser": (GOOD + b"DO $$ BEGIN EXECUTE 'ALTER ROLE CURRENT_USER SUPERUSER'; END $$;\n", "upload_statement_failed"),
        "control role": (GOOD + b"SELECT set_config('role', '%b', false);\n" % control, "upload_statement_failed"),
        "untrusted": (GOOD + b"CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'system';\n", "upload_statement_failed"),
        "lying archive": (lying, "upload_damaged"),
        "half an archive": (whole[: len(whole) // 2], "upload_truncated"),
    }  # fmt: skip
    for name, (data, code) in cases.items():
        backup, operation = taken(site, source, data)
        assert backup.error is not None, (name, told(operation))
        assert (operation.state, backup.status, backup.error["code"]) == ("failed", "failed", code), (
            name,
            backup.error,
        )
        nothing_left(backup_root)
        if code == "upload_statement_failed":
            assert backup.error["detail"].startswith("Line 3: "), backup.error
    assert not mark.exists()
    assert site.rows_of(source) == before
    site.check_exactly(source)


def test_it_is_restored_into_a_new_project_as_any_backup(process_site: Site, s3: Path) -> None:
    """From a bucket, where it came in several parts."""
    site = process_site
    bucket_of(site.team, s3)
    source = site.ready()
    noise = (b"INSERT INTO public.noise VALUES ('%b');\n" % os.urandom(50_000).hex().encode() for _ in range(220))
    script = pg_dump(source) + b"CREATE TABLE public.noise (t text);\n" + b"".join(noise)
    backup, operation = taken(site, source, script, filename="shop.sql")
    assert operation.state == "succeeded", told(operation)
    assert (backup.status, backup.storage.name) == ("stored", "bucket")
    tables = backup.manifest["contents"]["tables"]
    assert (tables["public.noise"][0], tables["public.orders"][0]) == (220, ROWS)
    assert int(backup.upload["bytes"]) > 20 << 20
    lying = [path.name for path in s3.rglob("*") if path.is_file() and ".sgwtmp" not in path.parts]
    assert "source" not in lying and not [path for path in s3.glob(".sgwtmp/**/*") if path.is_file()]
    proof = Operation.objects.get(kind="verify", params__backup=str(backup.pk))
    assert site.finish(proof, 120).state == "succeeded", told(proof)
    backup.refresh_from_db()
    assert backup.status == "verified"
    answer = api_client(site.team.alice).post(
        f"/api/v1/backups/{backup.pk}/restore/", {"target": "new_project", "name": "Brought"}, format="json"
    )
    assert answer.status_code == 202, answer.content
    made = Operation.objects.get(pk=answer.json()["operation"]["id"])
    assert site.finish(made, 120).state == "succeeded", told(made)
    project = source._meta.model.objects.get(name="Brought")
    assert site.rows_of(project) == site.rows_of(source)


def test_cancelled_and_killed_in_the_middle_nothing_is_lost(
    process_site: Site, target: StorageTarget, backup_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOVASTACK_BACKUP_ROOT", str(backup_root))  # the workers' as well
    site = process_site
    source = site.ready()
    slow = GOOD + b"SELECT pg_sleep(600);\n"
    answer = send(site, source, slow)
    operation = Operation.objects.get(pk=answer.json()["operation"]["id"])
    site.die_at("import_upload:load:later:1")
    site.expire_lease(operation)
    worker = site.worker()
    client = api_client(site.team.alice)
    assert client.post(f"/api/v1/operations/{operation.pk}/cancel/").status_code in {200, 202}
    assert site.wait_ended(operation, 120).state == "cancelled"
    worker.kill()
    backup = Backup.objects.get(pk=answer.json()["id"])
    assert backup.error is not None
    assert (backup.status, backup.error["code"], backup.size_bytes) == ("failed", "cancelled", None)
    nothing_left(backup_root)
    site.check_exactly(source)
