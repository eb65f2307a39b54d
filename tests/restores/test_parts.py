"""Tables and schemas out of a backup, beside what lives: what comes, what is left out, and that nothing live is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction

from backups.models import Backup, Drill, Proof, Restore, StorageTarget
from backups.operations import proving
from projects import registry
from projects.domain import Credentials, EngineError
from projects.engines.postgresql import PostgreSQL
from projects.models import DatabaseServer, DataTombstone, Operation, OperationLock, Project
from projects.operations.base import StepFailed
from projects.operations.context import Context
from projects.operations.wiring import admin_session, tenant_names
from tests.factories import api_client
from tests.faults.conftest import Site, make_site
from tests.restores.taken import take
from tests.restores.test_in_place import all_run, ask, begin, ids, undo, unproven, write
from tests.restores.test_new_projects import told

POSTGRESQL = """
CREATE TYPE mood AS ENUM ('happy', 'sad');
CREATE SEQUENCE numbers;
CREATE FUNCTION touched() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE FUNCTION me() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
CREATE TABLE people (id int PRIMARY KEY, name text);
CREATE TABLE "Od""d.ly %s" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, feeling mood, person int REFERENCES people,
  number int DEFAULT nextval('numbers'), CONSTRAINT small CHECK (id < 1000));
CREATE TABLE lines (id serial PRIMARY KEY, odd int REFERENCES "Od""d.ly %s", words text);
CREATE INDEX by_words ON lines (lower(words));
CREATE TRIGGER touch BEFORE UPDATE ON lines FOR EACH ROW EXECUTE FUNCTION touched();
ALTER TABLE lines ENABLE ROW LEVEL SECURITY;
ALTER TABLE lines FORCE ROW LEVEL SECURITY;
CREATE POLICY all_of_it ON lines USING (id > 0);
CREATE POLICY mine ON lines USING (id = me());
CREATE VIEW seen AS SELECT words FROM lines;
CREATE TABLE parted (id int, at int) PARTITION BY RANGE (at);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (10);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (10) TO (20);
CREATE SCHEMA app;
CREATE TYPE app.kind AS ENUM ('a', 'b');
CREATE FUNCTION app.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE TABLE app.things (id int PRIMARY KEY, kind app.kind, person int REFERENCES people,
  double int GENERATED ALWAYS AS (app.twice(id)) STORED);
CREATE VIEW app.kinds AS SELECT kind FROM app.things;
CREATE VIEW app.outside AS SELECT name FROM people;
INSERT INTO people VALUES (1, 'Ada'), (2, 'Bob');
INSERT INTO "Od""d.ly %s" (feeling, person) VALUES ('happy', 1), ('sad', 2), (NULL, NULL);
INSERT INTO lines (odd, words) VALUES (1, 'naïve 🐬'), (2, NULL);
INSERT INTO parted VALUES (1, 1), (2, 2), (3, 11);
INSERT INTO app.things VALUES (1, 'a', 1), (2, 'b', 2);
"""


@pytest.fixture(params=["postgresql"])
def site(request: pytest.FixtureRequest, _fresh: None) -> Iterator[Site]:
    yield from make_site("process", request.param)


def finished(made: Restore, site: Site, operation: Operation) -> Restore:
    operation = site.finish(operation, 180)
    assert operation.state == "succeeded", (operation.error, told(operation))
    made.refresh_from_db()
    assert made.status == "succeeded" and made.error is None
    nothing_left()
    return made


def nothing_left() -> None:
    assert not DatabaseServer.objects.filter(kind="scratch").exists()
    assert not DataTombstone.objects.filter(deleted_at=None).exists()
    assert not OperationLock.objects.exists()


def logins(site: Site, project: Project) -> list[str]:
    """Ours that are there only meanwhile."""
    with site.client.administrator(project) as session, session.cursor() as cursor:
        if site.engine == "postgresql":
            cursor.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'nvs%part'")
        else:
            cursor.execute("SELECT User FROM mysql.user WHERE User LIKE 'nvs%part'")
        return [str(row[0]) for row in cursor.fetchall()]


def of_user(site: Site, project: Project, statement: str, like: str = "") -> None:
    """`{}` is the newest table that was restored of `like`, in MariaDB and MySQL."""
    with site.login(project) as session, session.cursor() as cursor:
        if like:
            cursor.execute(f"SHOW TABLES LIKE '{like}__restored%'")
            statement = statement.format(max(str(row[0]) for row in cursor.fetchall()))
        cursor.execute(statement)
        session.commit()


def at_first(
    monkeypatch: pytest.MonkeyPatch, step: str, do: Callable[[], object], *, code: str = "runtime_unreachable"
) -> list[str]:
    """The first time that this step of a restore has done all its work its worker fails, and `do` has happened meanwhile."""
    happened: list[str] = []
    explain = Context.explain

    def once(ctx: Context, detail: str) -> None:
        explain(ctx, detail)
        if ctx.row.name == step and ctx.operation.kind == "extract" and not happened:
            happened.append(detail)
            do()
            raise StepFailed(code, "It is a test.")

    monkeypatch.setattr(Context, "explain", once)
    return happened


def rows(site: Site, project: Project, query: str) -> list[tuple[Any, ...]]:
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute(query)
        return [tuple(row) for row in cursor.fetchall()]


def refusing(place: str) -> Callable[..., Any]:
    """The live database's server does not tell what is in this schema, today."""
    whole = PostgreSQL.contents_of

    def contents_of(self: PostgreSQL, endpoint: Any, login: Credentials, tables: Any, **more: Any) -> Any:
        if login.username.endswith("_part") and any(place in table for table in tables):
            raise EngineError("It does not tell.")
        return whole(self, endpoint, login, tables, **more)

    return contents_of


def test_tables_come_beside_what_lives(site: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    unproven(project)
    write(site, project, 1, 2)
    with site.login(project) as session:
        session.execute(POSTGRESQL)
    backup = take(project)
    with site.login(project) as session:
        session.execute('UPDATE lines SET words = \'live\'; DELETE FROM "Od""d.ly %s" WHERE id = 3; DROP VIEW seen')
    before = rows(site, project, "SELECT id, words FROM lines ORDER BY id")

    tables = ['public."Od""d.ly %s"', "lines", "parted", "public.parted_2"]
    dry = ask(site, backup, target="in_place", tables=tables, dry_run=True).json()
    assert dry["problems"] == [] and dry["confirm"] == "" and not dry["safety_backup"]
    made, operation = begin(site, backup, target="in_place", tables=tables)
    project.refresh_from_db()
    assert project.status == "running"
    made = finished(made, site, operation)
    (place,) = made.outcome["places"]
    assert place.startswith("restored_") and place.endswith("_1")
    assert logins(site, project) == []
    assert rows(site, project, "SELECT id, words FROM lines ORDER BY id") == before

    assert rows(site, project, f"SELECT id, odd, words FROM {place}.lines ORDER BY id") == [
        (1, 1, "naïve 🐬"), (2, 2, None),
    ]  # fmt: skip
    odd = f'{place}."Od""d.ly %s"'
    assert rows(site, project, f"SELECT count(*), max(number) FROM {odd}") == [(3, 3)]
    assert rows(site, project, f"SELECT id FROM {place}.parted ORDER BY 1") == [(1,), (2,), (3,)]
    notes = " ".join(made.outcome["notes"])
    for word in ("people", "trigger touch", "policy mine", "numbers", "views on it, here public.seen"):
        assert word in notes, notes
    assert made.outcome["rows"] == 8
    with site.login(project) as session:
        # As the tenant's own, with sequences where they stood, keys among themselves, and row security on.
        session.execute(f"INSERT INTO {place}.lines (odd, words) VALUES (3, 'more') RETURNING id")
        told_ = session.execute(
            "SELECT (SELECT array_agg(polname::text) FROM pg_policy WHERE polrelid = c.oid), c.relrowsecurity,"
            " pg_get_userbyid(c.relowner) = (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'lines'::regclass),"
            " (SELECT count(*) FROM pg_index WHERE indrelid = c.oid)"
            f" FROM pg_class c WHERE c.oid = '{place}.lines'::regclass"
        ).fetchone()
        assert told_ == (["all_of_it"], True, True, 2)
        references = session.execute(
            f"SELECT confrelid = '{odd}'::regclass FROM pg_constraint"
            f" WHERE conrelid = '{place}.lines'::regclass AND contype = 'f'"
        ).fetchall()
        assert references == [(True,)]
        assert session.execute(f"SELECT max(id) FROM {place}.lines").fetchone() == (3,)

    # Again, a schema this time: beside the first one.
    made, operation = begin(site, backup, target="in_place", schemas=["app"])
    made = finished(made, site, operation)
    (second,) = made.outcome["places"]
    assert second.endswith("_2")
    assert rows(site, project, f'SELECT id, kind::text, "double" FROM {second}.things ORDER BY id') == [
        (1, "a", 2), (2, "b", 4),
    ]  # fmt: skip
    assert rows(site, project, f"SELECT kind::text FROM {second}.kinds ORDER BY 1") == [("a",), ("b",)]
    assert rows(site, project, f"SELECT to_regclass('{second}.outside') IS NULL, {second}.twice(4)") == [(True, 8)]
    assert "app.outside" in " ".join(made.outcome["notes"])

    # Somebody goes to work on it before it is compared, and then it can't be: nothing of theirs goes with it.
    def build() -> None:
        of_user(site, project, f"CREATE VIEW built AS SELECT id FROM {third}.told")

    with monkeypatch.context() as patch:
        third = second[:-1] + "3"
        assert at_first(patch, "put", build) == []
        patch.setattr(PostgreSQL, "contents_of", refusing(third))
        made, operation = begin(site, backup, target="in_place", tables=["told"])
        operation = site.finish(operation, 180)
    assert operation.state == "failed" and operation.error["code"] == "engine_error", told(operation)
    assert operation.events.filter(message__contains="view public.built uses it").exists()
    assert rows(site, project, "SELECT id FROM built ORDER BY 1") == [(1,), (2,)]
    assert logins(site, project) == []

    # They change what came: it is theirs now, though it was never proven.
    with monkeypatch.context() as patch:
        fourth = second[:-1] + "4"
        at_first(patch, "put", lambda: of_user(site, project, f"DELETE FROM {fourth}.told WHERE id = 1"))
        made, operation = begin(site, backup, target="in_place", tables=["told"])
        operation = site.finish(operation, 180)
    assert operation.state == "failed" and operation.error["code"] == "restore_unproven", told(operation)
    assert rows(site, project, f"SELECT id FROM {fourth}.told") == [(2,)]
    assert logins(site, project) == []
    of_user(site, project, f"DROP SCHEMA {third} CASCADE")
    of_user(site, project, f"DROP SCHEMA {fourth} CASCADE")
    nothing_left()

    # What it uses is not there any more: said, and nothing came.
    with site.login(project) as session:
        session.execute('ALTER TABLE "Od""d.ly %s" DROP COLUMN feeling')
        session.execute(f"DROP SCHEMA {place} CASCADE; DROP TYPE mood")
    made, operation = begin(site, backup, target="in_place", tables=['public."Od""d.ly %s"'])
    operation = site.finish(operation, 180)
    assert operation.state == "failed" and operation.error["code"] == "dependencies_missing"
    assert "public.mood" in operation.error["detail"]
    made.refresh_from_db()
    assert made.status == "failed" and not made.outcome
    assert rows(site, project, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'restored%'") == [(second,)]
    assert logins(site, project) == []
    nothing_left()


def test_a_new_project_with_these_tables_only(site: Site, target: StorageTarget) -> None:
    project = site.ready()
    unproven(project)
    with site.login(project) as session:
        session.execute(POSTGRESQL)
        # What uses what is not chosen: a sequence that another table's column owns, functions of its row type, the type itself.
        session.execute("""
            CREATE TABLE drawn (id serial PRIMARY KEY);
            ALTER TABLE lines ADD COLUMN drawn int DEFAULT nextval('drawn_id_seq');
            CREATE FUNCTION of_people(people) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 5';
            ALTER TABLE lines ADD CONSTRAINT of_nobody CHECK (of_people(NULL) = 5);
            CREATE TABLE typed (id int, who people);
            INSERT INTO typed VALUES (1, ROW(1, 'Ada'))""")
    backup = take(project)
    made, operation = begin(
        site, backup, target="new_project", name="Only", tables=["lines", 'public."Od""d.ly %s"', "parted_1"]
    )
    operation = site.finish(operation, 180)
    assert operation.state == "succeeded", (operation.error, told(operation))
    made.refresh_from_db()
    assert made.outcome["rows"] == 7 and made.outcome["places"] == []
    copy = Project.objects.get(pk=made.project_uuid)
    found = rows(
        site, copy,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE c.relkind IN ('r', 'p', 'v', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ORDER BY 1",
    )  # fmt: skip
    assert sorted(name for (name,) in found) == ['"Od""d.ly %s"', "lines", "parted_1"]
    assert rows(site, copy, "SELECT id, words FROM lines ORDER BY id") == [(1, "naïve 🐬"), (2, None)]
    with site.login(copy) as session:  # sequences, triggers, functions and policies work
        assert session.execute("INSERT INTO lines (odd, words) VALUES (3, 'x') RETURNING id").fetchone() == (3,)
        session.execute("UPDATE lines SET words = 'y' WHERE id = 3")
        assert session.execute("SELECT drawn FROM lines ORDER BY id").fetchall() == [(1,), (2,), (3,)]
        assert session.execute('INSERT INTO "Od""d.ly %s" DEFAULT VALUES RETURNING number').fetchone() == (4,)
    notes = " ".join(made.outcome["notes"])
    for word in ("people", "parted_1 was a part of", "Functions, types", "constraint of_nobody of public.lines"):
        assert word in notes, notes
    nothing_left()

    made, operation = begin(site, backup, target="new_project", name="Typed", tables=["typed"])
    operation = site.finish(operation, 180)
    assert operation.state == "failed" and operation.error["code"] == "dependencies_missing", told(operation)
    assert "column who of public.typed" in operation.error["detail"]


def refused(site: Site, backup: Backup, field: str, **body: Any) -> str:
    answer = ask(site, backup, **body)
    assert answer.status_code == 400, answer.content
    (error,) = answer.json()["errors"]
    assert error["field"].split(".")[0] == field, answer.json()
    return str(error["code"])


def test_bad_choices_are_told(site: Site, target: StorageTarget) -> None:
    """Stable codes at the field, and nothing is begun."""
    project = site.ready()
    unproven(project)
    backup = take(project)
    assert refused(site, backup, "tables", target="in_place", tables=["nowhere"]) == "unknown"
    assert refused(site, backup, "schemas", target="in_place", schemas=["nowhere"]) == "unknown"
    (name, *_rest) = [table["name"] for table in tables_of(site, backup)]
    assert refused(site, backup, "schemas", target="in_place", tables=[name], schemas=["public"]) == "invalid"
    assert refused(site, backup, "tables", target="new_project", name="New", tables=["nowhere"]) == "unknown"
    assert not Restore.objects.exists() and not Operation.objects.live().exists()


def tables_of(site: Site, backup: Backup, **query: str) -> list[dict[str, Any]]:
    answer = api_client(site.team.alice).get(f"/api/v1/backups/{backup.pk}/tables/", query)
    assert answer.status_code == 200, answer.content
    return list(answer.json()["results"])


# --- MariaDB and MySQL ----------------------------------------------------------------------------------------------------
MYSQL = (
    "CREATE TABLE people (id int PRIMARY KEY, name text)",
    "CREATE TABLE `od``d.ly %s` (id int AUTO_INCREMENT PRIMARY KEY, person int, f float, grows int AS (person + 1) STORED,"
    " word varchar(20) DEFAULT 'x', CONSTRAINT person FOREIGN KEY (person) REFERENCES people (id),"
    " CONSTRAINT small CHECK (word <> 'a, CHECK (b)' and person < 1000))",
    "CREATE TABLE `line items` (id int AUTO_INCREMENT PRIMARY KEY, odd int, words text,"
    " CONSTRAINT odd FOREIGN KEY (odd) REFERENCES `od``d.ly %s` (id) ON DELETE SET NULL,"
    " FOREIGN KEY (odd) REFERENCES `od``d.ly %s` (id), FULLTEXT KEY by_words (words))",
    "CREATE TRIGGER touch BEFORE INSERT ON `line items` FOR EACH ROW SET NEW.words = upper(NEW.words)",
    "CREATE VIEW seen AS SELECT words FROM `line items`",
    "INSERT INTO people VALUES (1, 'Ada'), (2, 'Bob')",
    "INSERT INTO `od``d.ly %s` (person, f) VALUES (1, 8388609), (2, 0.1), (NULL, NULL)",
    "INSERT INTO `line items` (odd, words) VALUES (1, 'naïve 🐬'), (2, NULL)",
)


@pytest.fixture
def mariadb(_fresh: None) -> Iterator[Site]:
    yield from make_site("process", "mariadb")


def test_tables_of_mariadb_come_under_other_names(
    mariadb: Site, target: StorageTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_family(mariadb, monkeypatch)


def of_the_family(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = site.ready()
    unproven(project)
    with site.login(project) as session, session.cursor() as cursor:
        for statement in MYSQL:
            cursor.execute(statement)
        if site.engine == "mariadb":
            cursor.execute("CREATE SEQUENCE numbers")
            cursor.execute("CREATE TABLE numbered (id int PRIMARY KEY, n bigint DEFAULT nextval(numbers))")
            cursor.execute("INSERT INTO numbered (id) VALUES (1), (2)")
        else:
            cursor.execute("CREATE TABLE numbered (id int PRIMARY KEY, n bigint)")
            cursor.execute("INSERT INTO numbered VALUES (1, 1), (2, 2)")
        session.commit()
    backup = take(project)
    assert refused(site, backup, "schemas", target="in_place", schemas=["public"]) == "not_available"
    assert [table["name"] for table in tables_of(site, backup, search="LINE")] == ["line items"]
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("DELETE FROM `line items` WHERE id = 1")
        session.commit()
    made, operation = begin(site, backup, target="in_place", tables=["line items", "od`d.ly %s", "numbered"])
    made = finished(made, site, operation)
    assert logins(site, project) == []
    now = {table["name"]: table["now"] for table in shown(site, made)["outcome"]["tables"]}
    lines, odd, numbered = (now[name].replace("`", "``") for name in ("line items", "od`d.ly %s", "numbered"))
    assert lines.startswith("line items__restored_") and lines.endswith("_1")
    assert rows(site, project, "SELECT id FROM `line items`") == [(2,)]
    assert rows(site, project, f"SELECT id, odd, words FROM `{lines}` ORDER BY id") == [
        (1, 1, "NAÏVE 🐬"),
        (2, 2, None),
    ]
    assert rows(site, project, f"SELECT id, person, f = 8388609, grows FROM `{odd}` ORDER BY id") == [
        (1, 1, 1, 2), (2, 2, 0, 3), (3, None, None, None),
    ]  # fmt: skip
    assert rows(site, project, f"SELECT n FROM `{numbered}` ORDER BY id") == [(1,), (2,)]
    keys = rows(
        site, project,
        "SELECT DISTINCT referenced_table_name FROM information_schema.key_column_usage WHERE table_schema = DATABASE()"
        " AND referenced_table_name IS NOT NULL AND table_name LIKE '%restored%'",
    )  # fmt: skip
    assert keys == [(odd.replace("``", "`"),)]
    notes = " ".join(made.outcome["notes"])
    for word in ("foreign key person", "to people", "trigger touch", "views on it, here seen"):
        assert word in notes, notes
    assert ("nextval" in notes) is (site.engine == "mariadb")
    asks(site, project, backup)
    # Once more, when the first ones have the live ones' names: keys and checks have kept theirs, which nothing else may have.
    with site.login(project) as session, session.cursor() as cursor:
        cursor.execute("DROP TABLE `line items`")
        cursor.execute("DROP TABLE `od``d.ly %s`")
        cursor.execute(f"RENAME TABLE `{lines}` TO `line items`, `{odd}` TO `od``d.ly %s`, `{now['numbered']}` TO mine")
        session.commit()
    # A worker dies after it was said to be restored, and somebody goes to work at once: there is nothing to compare any more.
    after = at_first(monkeypatch, "prove", lambda: of_user(site, project, "DELETE FROM `{}`", "numbered"))
    made, operation = begin(site, backup, target="in_place", tables=["line items", "od`d.ly %s", "numbered"])
    made = finished(made, site, operation)
    assert after and all(place.endswith("_2") for place in made.outcome["places"])

    # What others use is not dropped.
    names, places = tenant_names(project.databases.get(slot="current")), made.outcome["places"]
    server = DatabaseServer.objects.get(project_uuid=project.pk)
    part = Credentials(names.part, "of-a-moment", names.database)
    engine = registry.engine(site.engine)

    def dropped() -> list[str]:
        return engine.drop_part(server.control_endpoint, part, places, "")

    with admin_session(engine, server) as admin:
        admin.admit_part(names, names.part, part.password, places)
    odd = next(place for place in places if place.startswith("od")).replace("`", "``")
    of_user(site, project, f"CREATE VIEW built AS SELECT id FROM `{odd}`")
    of_user(site, project, f"CREATE TABLE keyed (odd int, CONSTRAINT to_odd FOREIGN KEY (odd) REFERENCES `{odd}` (id))")
    assert dropped() == ["foreign key to_odd of keyed", "view built"]
    assert rows(site, project, f"SELECT count(*) FROM `{odd}`") == [(3,)]
    of_user(site, project, "DROP VIEW built")
    of_user(site, project, "DROP TABLE keyed")
    assert dropped() == [] and dropped() == []
    assert rows(site, project, "SHOW TABLES LIKE '%restored%'") == []
    with admin_session(engine, server) as admin:
        admin.dismiss_tool(names, names.part)


def shown(site: Site, made: Restore) -> dict[str, Any]:
    answer = api_client(site.team.alice).get(f"/api/v1/restores/{made.pk}/")
    assert answer.status_code == 200
    return dict(answer.json())


def asks(site: Site, project: Project, backup: Backup) -> None:
    """A drill's questions, of the copy, as the tenant: the server's own spelling, one query, nothing is written."""
    drill = Drill.objects.create(
        project=project, organization_id=project.organization_id, name="asks", assertions=[
            {"name": "first", "sql": "SELECT id FROM people UNION SELECT 9 ORDER BY 1 DESC;", "expect": "9"},
            {"name": "null", "sql": "SELECT name FROM people WHERE id = 7", "expect": None},
            {"name": "text", "sql": "SELECT words, id FROM `line items` ORDER BY id -- so", "expect": "NAÏVE 🐬"},
            {"name": "spelled", "sql": "SELECT CAST(1.50 AS DECIMAL(5,2))", "expect": "1.50"},
            {"name": "other", "sql": "SELECT count(*) FROM people", "expect": "3"},
            {"name": "two", "sql": "SELECT 1; SELECT 2", "expect": "1"},
            {"name": "writes", "sql": "DELETE FROM people", "expect": None},
            {"name": "drops", "sql": "DROP TABLE people", "expect": None},
            {"name": "long", "sql": "SELECT REPEAT('x', 5000)", "expect": "x" * 1000},
            {"name": "still", "sql": "SELECT count(*) FROM people", "expect": "2"},
        ],
    )  # fmt: skip
    with transaction.atomic():
        operation = proving.verify_begin(backup, kind="drill", drill=drill, created_by_label="test")
    operation = site.finish(operation, 180)
    assert operation.state == "succeeded", operation.error
    answers = {answer["name"]: answer for answer in Proof.objects.get(operation_id=operation.pk).assertions}
    passed = [name for name, answer in answers.items() if answer["passed"]]
    assert passed == ["first", "null", "text", "spelled", "long", "still"], answers
    assert answers["other"]["detail"] == "2 instead of 3"
    for name in ("two", "writes", "drops"):
        assert answers[name]["detail"].startswith("It was refused"), answers[name]
    backup.refresh_from_db()
    assert backup.status == "verified"


def test_over_what_lives_without_a_safety_backup(site: Site, target: StorageTarget) -> None:
    """The database from before is kept, and can be swapped back, all the same."""
    project = site.ready()
    unproven(project)
    write(site, project, 1)
    backup = take(project)
    write(site, project, 2)
    made, operation = begin(site, backup, target="in_place", confirm=project.slug, safety_backup=False)
    all_run(site, operation)
    assert operation.state == "succeeded", told(operation)
    assert ids(site, project) == [1] and Backup.objects.count() == 1
    assert operation.events.filter(message__contains="waived").exists()
    back = all_run(site, undo(site, made))
    assert back.state == "succeeded", told(back)
    assert ids(site, project) == [1, 2]
