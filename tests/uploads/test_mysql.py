"""Uploads of MariaDB's and MySQL's dumps on real servers."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backups.models import StorageTarget
from projects.models import Database, DatabaseServer, Project
from tests.faults.clients import CLIENTS
from tests.faults.conftest import Site, make_site, require_docker
from tests.restores.taken import take
from tests.restores.test_in_place import begin, unproven
from tests.uploads.sent import sql_of, taken, told
from tests.uploads.test_postgresql import nothing_left

pytestmark = pytest.mark.docker


@pytest.fixture
def site(_fresh: None) -> Iterator[Site]:
    if shutil.which("mariadbd") is None and not Path("/usr/sbin/mariadbd").exists():
        pytest.skip("MariaDB is not installed here")
    yield from make_site("process", "mariadb")


def dump(project: Project, *arguments: str) -> bytes:
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    place = server.control_endpoint
    assert server.admin_secret is not None
    name = Database.objects.get(project=project, slot="current").name
    done = subprocess.run(
        [
            "mariadb-dump", "--no-defaults", "--protocol=TCP", f"--host={place.host}", f"--port={place.port}",
            f"--user={server.admin_username}", "--ssl", "--single-transaction", "--routines", "--events", "--triggers",
            *arguments, name,
        ],
        env={"MYSQL_PWD": server.admin_secret.open(), "PATH": "/usr/bin:/bin"}, capture_output=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def mysql(_fresh: None) -> Iterator[Site]:
    require_docker("mysql", CLIENTS["mysql"].versions["docker"])
    yield from make_site("docker", "mysql")


def mysqldump(project: Project, *arguments: str) -> bytes:
    """By the image's own, as its administrator."""
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    place = server.control_endpoint
    assert server.admin_secret is not None
    name = Database.objects.get(project=project, slot="current").name
    done = subprocess.run(
        [
            "docker", "run", "--rm", "--network=host", "--env=MYSQL_PWD", "--entrypoint=mysqldump", server.image,
            "--no-defaults", "--protocol=TCP", f"--host={place.host}", f"--port={place.port}",
            f"--user={server.admin_username}", "--ssl-mode=REQUIRED", "--single-transaction", "--routines", "--events",
            "--triggers", *arguments, name,
        ],
        env={**os.environ, "MYSQL_PWD": server.admin_secret.open()}, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_mysql_a_dump_comes_in_and_one_table_comes_out(mysql: Site, target: StorageTarget, backup_root: Path) -> None:
    site = mysql
    project = site.ready()
    unproven(project)
    with site.login(project) as session, session.cursor() as cursor:
        for statement in (
            "CREATE TABLE people (id int PRIMARY KEY, name text)",
            "CREATE TABLE `line items` (id int AUTO_INCREMENT PRIMARY KEY, person int, f float, b blob, t text,"
            " grows int AS (person + 1) STORED, CONSTRAINT whose FOREIGN KEY (person) REFERENCES people (id))",
            "INSERT INTO people VALUES (1, 'Ada'), (2, 'Bob')",
            "INSERT INTO `line items` (person, f, b, t) VALUES (1, 8388609, x'00FF27', 'naïve; 🐬'), "
            "(2, 0.1, NULL, '\\\\! \n-- x')",
            "CREATE TRIGGER told BEFORE INSERT ON `line items` FOR EACH ROW BEGIN SET NEW.t = upper(NEW.t); END",
            "CREATE PROCEDURE noop() BEGIN SELECT 1; SELECT ';'; END",
            "CREATE VIEW seen AS SELECT id FROM `line items`",
        ):
            cursor.execute(statement)
        session.commit()
    wanted = take(project).manifest["contents"]
    backup, operation = taken(site, project, gzip.compress(mysqldump(project)), filename="shop.sql.gz")
    assert operation.state == "succeeded", told(operation)
    assert (backup.status, backup.trusted) == ("stored", True)
    found = backup.manifest["contents"]
    assert found["tables"] == wanted["tables"]
    assert sorted(map(tuple, found["facts"])) == sorted(map(tuple, wanted["facts"]))
    assert any("definer" in note for note in backup.notes)
    nothing_left(backup_root)

    # Out of what came in: beside what lives, with its rows, and a key that stays behind.
    made, operation = begin(site, backup, target="in_place", tables=["line items"])
    operation = site.finish(operation, 180)
    assert operation.state == "succeeded", told(operation)
    made.refresh_from_db()
    (place,) = made.outcome["places"]
    assert place.startswith("line items__restored_")
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute(f"SELECT id, person, b, t, grows FROM `{place}` ORDER BY id")
        assert list(cursor.fetchall()) == [(1, 1, b"\x00\xff'", "naïve; 🐬", 2), (2, 2, None, "\\! \n-- x", 3)]
        cursor.execute("SELECT count(*) FROM `line items`")
        assert cursor.fetchone() == (2,)
    notes = " ".join(made.outcome["notes"])
    assert "foreign key whose" in notes and "trigger told" in notes, notes
    script = sql_of(site, backup, "line items")
    assert b"TRIGGER `told`" in script and b"INSERT INTO `line items`" in script and b"TABLE `people`" not in script

    assert site.rows_of(project) == 1000
    site.check_exactly(project)


def test_it_goes_round_and_what_is_hostile_runs_nowhere(
    site: Site, target: StorageTarget, backup_root: Path, tmp_path: Path
) -> None:
    project = site.ready()
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("CREATE TABLE more (id int PRIMARY KEY, t text)")
        cursor.execute("INSERT INTO more VALUES (1, 'naïve; 🐬'), (2, NULL), (3, '\\\\! \\n-- x')")
        cursor.execute("CREATE VIEW seen AS SELECT id FROM more")
        cursor.execute("CREATE TRIGGER told BEFORE INSERT ON more FOR EACH ROW BEGIN SET NEW.t = upper(NEW.t); END")
        cursor.execute("CREATE PROCEDURE noop() BEGIN SELECT 1; SELECT ';'; END")
        session.commit()
    wanted = take(project).manifest["contents"]
    backup, operation = taken(site, project, gzip.compress(dump(project, "--databases")), filename="shop.sql.gz")
    assert operation.state == "succeeded", told(operation)
    assert (backup.status, backup.trusted) == ("stored", True)
    assert backup.manifest["contents"]["tables"] == wanted["tables"]
    assert sorted(map(tuple, backup.manifest["contents"]["facts"])) == sorted(map(tuple, wanted["facts"]))
    assert any("definer" in note for note in backup.notes)

    # Two of its tables as SQL, into a database of their own.
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("CREATE SEQUENCE numbers START WITH 5")
        cursor.execute("CREATE TABLE `num``bered` (id int PRIMARY KEY, n bigint DEFAULT nextval(numbers), f float)")
        cursor.execute("INSERT INTO `num``bered` (id, f) VALUES (1, 8388609), (2, 0.1)")
        session.commit()
    script = sql_of(site, take(project), "more", "num`bered")
    assert b"`orders`" not in script and b"noop" not in script and b"DROP " not in script
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    place, secret = server.control_endpoint, server.admin_secret
    assert secret is not None
    client = ["mariadb", "--no-defaults", "--protocol=TCP", f"--host={place.host}", f"--port={place.port}",
              f"--user={server.admin_username}", "--ssl", "--batch", "--binary-mode"]  # fmt: skip
    for arguments, given in ((["-e", "CREATE DATABASE other"], b""), (["other"], script)):
        done = subprocess.run(
            [*client, *arguments], input=given, env={"MYSQL_PWD": secret.open(), "PATH": "/usr/bin:/bin"},
            capture_output=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    with site.client.administrator(project) as session, session.cursor() as cursor:
        cursor.execute("SHOW TABLES FROM other")
        assert {row[0] for row in cursor.fetchall()} == {"more", "num`bered", "numbers"}
        cursor.execute("SELECT id, t FROM other.more ORDER BY id")
        assert list(cursor.fetchall()) == [(1, "naïve; 🐬"), (2, None), (3, "\\! \n-- x")]
        cursor.execute("SELECT n, f = 8388609 FROM other.`num``bered` ORDER BY id")
        assert list(cursor.fetchall()) == [(5, 1), (6, 0)]
        cursor.execute("INSERT INTO other.more VALUES (4, 'x')")  # its trigger came
        cursor.execute("SELECT t FROM other.more WHERE id = 4")
        assert cursor.fetchone() == ("X",)
        cursor.execute("DROP DATABASE other")
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("DROP TABLE `num``bered`")
        cursor.execute("DROP SEQUENCE numbers")

    mark = tmp_path / "ran"
    tmp_path.chmod(0o777)
    good = b"CREATE TABLE kept (a int);\nINSERT INTO kept VALUES (1);\n"
    for name, (data, code) in {
        "system": (good + b"system touch %b\n" % str(mark).encode(), "upload_meta_command"),
        "behind": (good + b"SELECT 1 \\! touch %b\n;\n" % str(mark).encode(), "upload_statement_failed"),
        "outfile": (good + b"SELECT 1 INTO OUTFILE '%b';\n" % str(mark).encode(), "upload_statement_failed"),
        "infile": (good + b"LOAD DATA LOCAL INFILE '/etc/passwd' INTO TABLE kept;\n", "upload_statement_failed"),
        "elsewhere": (good + b"CREATE TABLE mysql.x (a int);\n", "upload_statement_failed"),
    }.items():
        backup, operation = taken(site, project, data)
        assert backup.error is not None, (name, told(operation))
        assert (backup.status, backup.error["code"]) == ("failed", code), (name, backup.error)
        nothing_left(backup_root)
    assert not mark.exists() and site.rows_of(project) == 1000
    site.check_exactly(project)
