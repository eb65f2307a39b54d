"""docs/recovery.md, word for word: NovaStack is gone; there are a storage, a recovery kit and ordinary tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from bson import json_util

from backups.models import Backup, StorageTarget
from backups.services.kits import kit_export
from novastack.embedded.postgres import EmbeddedPostgres
from projects import domain
from projects.models import Database, Endpoint
from projects.operations import wiring
from projects.runtimes.process_binaries import find
from tests.backups import s3_server, taken
from tests.faults import lanes
from tests.faults.clients import password_of, role_of, server_of
from tests.faults.conftest import VERSION, Site, _fresh, make_site, process_site  # noqa: F401
from tests.restores.taken import take
from tests.restores.test_ferretdb import with_tools

pytestmark = pytest.mark.django_db(transaction=True)
TEXT = (Path(__file__).resolve().parents[2] / "docs" / "recovery.md").read_text()
MISSING = [name for name in ("age", "zstd", "jq", "openssl", "curl") if shutil.which(name) is None]

CONTENT = """
CREATE TABLE "odd name" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, t text, b bytea);
INSERT INTO "odd name" (t, b) SELECT 'naïve ' || i, decode('00ff', 'hex') FROM generate_series(1, 300) i;
CREATE TABLE secret (id int); ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON secret TO CURRENT_USER USING (false) WITH CHECK (true); INSERT INTO secret VALUES (1), (2);
CREATE SEQUENCE called START 5; SELECT nextval('called');
SELECT lo_from_bytea(4711, decode(repeat('00ff', 70000), 'hex'));
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE INDEX twice_index ON "odd name" (public.twice(id)); CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM "odd name";
REVOKE DELETE ON "odd name" FROM CURRENT_USER; COMMENT ON TABLE secret IS 'it''s';
"""


def blocks(*kinds: str) -> list[str]:
    """The commands of the page, in their order: the ones for everybody, and those of these kinds."""
    found = re.findall(r"^```bash ?(\w*)\n(.*?)^```", TEXT, re.S | re.M)
    return [commands for kind, commands in found if kind in {"", *kinds}]


def follow(commands: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(commands)], cwd=folder, text=True, capture_output=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8", **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Somebody's own PostgreSQL, on a machine that never saw NovaStack."""
    server = EmbeddedPostgres(tmp_path / "elsewhere", durable=False, first_port=17400)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.state, ignore_errors=True)


@pytest.fixture
def stored(process_site: Site, settings: Any, tmp_path: Path) -> tuple[Backup, Path]:  # noqa: F811
    if MISSING:
        pytest.fail(f"needs {', '.join(MISSING)} (Debian packages of these names)")
    project = process_site.ready()
    with process_site.login(project) as session:
        session.execute(CONTENT)
        session.commit()
    root = tmp_path / "mnt"
    root.mkdir()
    backup = taken.take(project, taken.target(settings, root))
    return backup, root / "all"


def kit_of(backup: Backup, site: Site, folder: Path) -> Path:
    kit = folder / "recovery-kit.txt"
    kit.write_text(kit_export(principal=site.alice, organization=site.team.organization).text)
    return kit


def test_a_backup_is_restored_by_hand(
    stored: tuple[Backup, Path], process_site: Site, new_server: EmbeddedPostgres, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    backup, storage = stored
    kit = kit_of(backup, process_site, tmp_path)
    database = Database.objects.select_related("server__region").get(project_id=backup.project_uuid, slot="current")
    names = wiring.tenant_names(database)
    programs = find("postgres", VERSION)
    assert programs is not None
    work = tmp_path / "work"
    work.mkdir()
    said = follow(
        blocks("postgresql"), work,
        {
            "kit": str(kit), "storage": str(storage), "object": backup.object_key, "PGHOST": "127.0.0.1",
            "PGPORT": str(new_server.port), "PGUSER": "novastack", "PGPASSWORD": new_server.password,
            "PGDATABASE": "novastack", "PATH": f"{programs.place.bin}:{os.environ['PATH']}",
        },
    )  # fmt: skip
    assert backup.object_key in said
    assert "Signature Verified Successfully" in said
    assert f"{backup.object_key}: OK" in said
    assert "300\tpublic." in said

    from projects import registry

    place = domain.Endpoint("127.0.0.1", new_server.port, "", "")
    copy = registry.engine("postgresql").fingerprint(
        place, domain.Credentials("novastack", new_server.password, "restored")
    )
    held = taken_contents(backup)
    assert held.differences(copy) == []
    assert copy.tables['public."odd name"'].rows == 300 if 'public."odd name"' in copy.tables else copy.rows >= 300
    with psycopg.connect(
        host="127.0.0.1", port=new_server.port, dbname="restored", user=names.login, password="choose-another-one"
    ) as session:
        session.execute(psycopg.sql.SQL("SET ROLE {}").format(psycopg.sql.Identifier(names.group)))
        assert session.execute('SELECT count(*) FROM "odd name"').fetchone() == (300,)


def taken_contents(backup: Backup) -> domain.Fingerprint:
    from backups.operations import storages
    from backups.operations.restoring_data import read_manifest

    found = read_manifest(backup, storages.storage_of(backup.storage)).contents
    assert found is not None
    return found


def test_damage_stops_the_page_where_it_says(
    stored: tuple[Backup, Path], process_site: Site, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    backup, storage = stored
    kit = kit_of(backup, process_site, tmp_path)
    file = storage / backup.object_key
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(AssertionError, match="did NOT match"):
        follow(blocks(), tmp_path, {"kit": str(kit), "storage": str(storage), "object": backup.object_key})
    kit.write_text(kit.read_text().replace("# Identities", "# identities"))
    with pytest.raises(AssertionError):
        follow(blocks()[:1], tmp_path, {"kit": str(kit)})


def test_a_bucket_is_read_with_curl(
    stored: tuple[Backup, Path], process_site: Site, tmp_path: Path, settings: Any  # noqa: F811
) -> None:  # fmt: skip
    from backups.storage.s3 import S3Settings, S3Storage
    from backups.storage.s3_client import client_of

    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]
    backup, storage = stored
    kit = kit_of(backup, process_site, tmp_path)
    (tmp_path / "s3").mkdir()
    with s3_server.versitygw(tmp_path / "s3") as port:
        where = S3Settings(
            endpoint=f"http://127.0.0.1:{port}", bucket="offsite", prefix="nova", access_key=s3_server.ACCESS,
            secret_key=s3_server.SECRET,
        )  # fmt: skip
        client_of(where).create_bucket(Bucket="offsite")
        bucket = S3Storage(where)
        for key in (backup.object_key, backup.manifest_key):
            writer = bucket.writer(key)
            writer.write((storage / key).read_bytes())
            writer.commit()
        fetched = tmp_path / "fetched"
        fetched.mkdir()
        said = follow(
            blocks("s3"), tmp_path,
            {
                "kit": str(kit), "storage": str(fetched), "object": backup.object_key, "endpoint": where.endpoint,
                "bucket": "offsite", "prefix": "nova", "region": where.region, "access_key": where.access_key,
                "secret_key": where.secret_key,
            },
        )  # fmt: skip
    assert f"{backup.object_key}: OK" in said
    assert (tmp_path / "dump").read_bytes()[:5] == b"PGDMP"


@pytest.fixture
def ferretdb(_fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:  # noqa: F811
    lanes.require("ferretdb", "process", monkeypatch)
    with_tools(monkeypatch)
    yield from make_site("process", "ferretdb")


def test_a_backup_of_ferretdb_is_restored_by_hand(
    ferretdb: Site, target: StorageTarget, backup_root: Path, tmp_path: Path
) -> None:
    """Into another database of a server, the indexes as the page writes them down."""
    if MISSING:
        pytest.fail(f"needs {', '.join(MISSING)} (Debian packages of these names)")
    project = ferretdb.ready()
    with ferretdb.login(project) as database:
        database["odd name"].insert_many([{"_id": n, "b": bytes(n), "u": n} for n in range(300)])
        database["odd name"].create_index([("u", 1), ("b", -1)], name="two of them", unique=True)
        database.create_collection("capped", capped=True, size=1 << 20)
    backup = take(project)
    role, endpoint = role_of(project), Endpoint.objects.get(project=project)
    (tmp_path / "ca.pem").write_text(server_of(project).control_endpoint.ca_pem)
    uri = (
        f"mongodb://{role.name}:{quote(password_of(role), safe='')}@127.0.0.1:{endpoint.port}/?authSource={role.database.name}"
        f"&tls=true&tlsCAFile={tmp_path / 'ca.pem'}"
    )
    said = follow(
        blocks("mongodb"), tmp_path,
        {"kit": str(kit_of(backup, ferretdb, tmp_path)), "storage": str(backup_root / "here"),
         "object": backup.object_key, "uri": uri},
    )  # fmt: skip
    assert "300\todd name" in said
    with ferretdb.login(project) as database:
        restored = database.client["restored"]
        for line in (tmp_path / "indexes.js").read_text().splitlines():
            restored.command(json_util.loads(line.removeprefix("db.runCommand(EJSON.deserialize(").removesuffix("))")))
        assert database.client["restored"]["odd name"].count_documents({}) == 300
        assert list(database.client["restored"]["odd name"].find()) == list(database["odd name"].find())
        for name in ("odd name", "capped"):
            assert database.client["restored"][name].index_information() == database[name].index_information()
            assert database.client["restored"][name].options() == database[name].options()


def test_the_page_names_what_it_uses() -> None:
    """Every variable of the commands is told, or is the tools' own."""
    used = set(re.findall(r"\$\{?([a-z_]+)", "\n".join(blocks("s3", "postgresql", "mariadb", "mysql"))))
    assert used == {
        "kit", "storage", "object", "manifest", "name", "role", "public", "signature", "region", "access_key",
        "secret_key", "endpoint", "bucket", "prefix", "nothing", "login",
    }  # fmt: skip
