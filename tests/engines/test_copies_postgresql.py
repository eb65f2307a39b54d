"""Copies of PostgreSQL databases between real servers: nothing is lost, and what can't be copied is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from projects.domain import TEXTS, Command, Credentials, Endpoint, EngineError, Fingerprint, LoginRefused
from projects.engines.postgresql import PostgreSQL
from projects.engines.postgresql_copy import _words
from projects.engines.postgresql_texts import loose
from projects.operations import copying
from projects.operations.base import StepFailed
from tests.contracts.engine_contract import new_names
from tests.engines.copies import Copier, CopyServer, docker_copy_server
from tests.faults.chaos.content import POSTGRESQL

pytestmark = pytest.mark.docker
ENGINE = PostgreSQL()

# What is not in it: extensions, ICU, what a crash empties, and all that is respelled.
HOSTILE = (
    POSTGRESQL
    + r"""
CREATE EXTENSION pgcrypto; CREATE EXTENSION citext SCHEMA "sch'e""ma
two";
CREATE UNLOGGED TABLE light (x int); INSERT INTO light VALUES (1);
CREATE TABLE spelled (v varchar(9) DEFAULT 'a' CHECK (v IN ('a', 'b')), n int CHECK (n BETWEEN 1 AND 2 AND n <> 7),
 at timestamptz DEFAULT '2020-02-02 02:02:02+02', i interval DEFAULT '1 day 2 hours',
 f float8 DEFAULT 0.1, b bytea DEFAULT '\x00');
CREATE INDEX spelled_some ON spelled (lower(v), (n + 1) DESC) INCLUDE (b) WHERE v IN ('a', 'b') AND n IS NOT NULL;
CREATE VIEW spelling AS SELECT s.*, CASE WHEN v IN ('x', 'y') AND (n > 1 AND n < 5 OR f > 2) THEN 'p' ELSE 'q' END AS c,
 extract(year FROM at AT TIME ZONE 'UTC') AS y, E'back\\slash' AS z FROM spelled s
 WHERE NOT EXISTS (SELECT FROM fk_a x JOIN fk_b USING (id) WHERE x.b = n);
ALTER VIEW spelling ALTER COLUMN c SET DEFAULT 'd';
CREATE TRIGGER bits BEFORE UPDATE OF v, n ON spelled FOR EACH ROW WHEN (old.v IN ('a', 'b')) EXECUTE FUNCTION tell('x');
CREATE POLICY bits ON spelled FOR UPDATE USING (v IN ('a', 'b')) WITH CHECK (n > 1 AND n < 9);
CREATE RULE bits AS ON INSERT TO spelled WHERE new.v IN ('z') DO ALSO UPDATE spelled SET n = 1 WHERE v = new.v;
CREATE FUNCTION body(a varchar DEFAULT 'x', b int DEFAULT 1 + 1) RETURNS bool LANGUAGE sql
 BEGIN ATOMIC SELECT a IN ('a', 'b') AND (b BETWEEN 1 AND 2 AND b <> 5); END;
CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int, initcond = '0');
CREATE OPERATOR === (leftarg = int, rightarg = int, function = int4eq, commutator = ===);
CREATE TYPE spans AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE COLLATION loud (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE TABLE collated (t text COLLATE loud, u text COLLATE "C"); ALTER TABLE collated ALTER u SET STATISTICS 500;
ALTER TABLE collated SET (toast.autovacuum_enabled = off, fillfactor = 70);
CREATE TEXT SEARCH DICTIONARY short (template = simple, stopwords = english);
CREATE TEXT SEARCH CONFIGURATION own (copy = simple); ALTER TEXT SEARCH CONFIGURATION own ALTER MAPPING FOR word WITH short;
CREATE SEQUENCE owned OWNED BY spelled.n; CREATE PUBLICATION part FOR TABLE spelled (n, v) WHERE (n > 3);
"""
)


@pytest.fixture(scope="module", params=["18", "15"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[CopyServer, CopyServer]]:
    with docker_copy_server(ENGINE, request.param) as source, docker_copy_server(ENGINE, request.param) as target:
        yield source, target


@pytest.fixture
def copier(servers: tuple[CopyServer, CopyServer]) -> Iterator[Copier]:
    with Copier.between(*servers, new_names()) as copier:
        yield copier


def connect(server: CopyServer, login: Credentials, options: str = "") -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=server.endpoint.host, port=server.endpoint.port, dbname=login.database or "postgres", user=login.username,
        password=login.password, autocommit=True, options=options,
    )  # fmt: skip


def test_a_hostile_database_arrives_whole(copier: Copier) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(HOSTILE)
        tenant.execute("SET ROLE NONE; CREATE SCHEMA AUTHORIZATION CURRENT_USER;"
                       "CREATE TABLE by_login (x int); GRANT SELECT ON by_login TO PUBLIC")  # fmt: skip
        login = psycopg.sql.Identifier(copier.names.login)
        tenant.execute(psycopg.sql.SQL("ALTER ROLE {} SET search_path = \"$user\", public, 'a b'").format(login))
        tenant.execute(psycopg.sql.SQL("ALTER ROLE {} SET statement_timeout = '1ms'").format(login))
    with connect(copier.source, copier.source.admin) as admin:
        database = psycopg.sql.Identifier(copier.names.database)
        admin.execute(psycopg.sql.SQL("ALTER DATABASE {} SET app.x = 'it''s, \"so\"'").format(database))
        admin.execute(psycopg.sql.SQL('ALTER DATABASE {} SET search_path = public, "Odd, name"').format(database))
        admin.execute(psycopg.sql.SQL("COMMENT ON DATABASE {} IS 'it''s ours'").format(database))
    moved = copier.run()
    source, copy = copier.fingerprints()
    assert source.differences(copy) == []
    assert moved > 1_400_000
    assert source.tables["public.secret"].rows == 7  # policies hide none
    assert source.rows == sum(t.rows for t in copy.tables.values()) > 500
    assert source.facts["value of sequence", "public.called"] == "(8, True)"
    assert {k for k, _ in source.facts} >= {
        "policy", "trigger", "routine", "extension", "publication", "content of large object", "comment", "type",
        "default privileges", "rewrite", "statistic ext", "constraint", "index", "materialized view",
        "version of extension", *("text of " + kind for kind in source.facts[TEXTS].split(",")
                                  if kind not in {"cast", "conversion", "event trigger", "foreign server"}),
    }  # fmt: skip
    # What the server spells otherwise after a restore is told, and no more than that.
    (respelled,) = source.remarks(copy)
    assert "constraint public.spelled.spelled_v_check" in respelled and " and 2 more" in respelled
    with connect(copier.target, copier.login, options="-c statement_timeout=0") as tenant:
        tenant.execute(
            "ALTER TABLE public.spelled DROP CONSTRAINT spelled_v_check,"
            " ADD CONSTRAINT spelled_v_check CHECK (v IN ('a', 'c'))"
        )
    assert source.differences(copier.fingerprints()[1]) == ["text of constraint public.spelled.spelled_v_check differs"]
    copier.dismiss()
    with connect(copier.target, copier.target.admin) as admin:
        left = admin.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", (copier.names.tool,)).fetchone()
        assert left == (0,)
    with connect(copier.target, copier.login) as tenant:  # the tenant finds what it had, and its rights
        tenant.execute("SET statement_timeout = 0")
        assert tenant.execute("SELECT current_user::text").fetchone() == (copier.names.group,)
        tenant.execute("DROP EXTENSION pgcrypto; ALTER TABLE public.typed ADD COLUMN more int")
        assert tenant.execute("SELECT nextval('public.uncalled')").fetchone() == (77,)


def test_what_a_dump_leaves_out_or_puts_in_another_order_is_no_difference(copier: Copier) -> None:
    group, login = (psycopg.sql.Identifier(name) for name in (copier.names.group, copier.names.login))
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE b (x int); CREATE TABLE a (x int); CREATE SCHEMA other; CREATE TABLE other.a (x int);"
            "CREATE PUBLICATION odd FOR TABLE b, other.a, a;"
            "CREATE TABLE twice (x int); INSERT INTO twice VALUES (1), (1);"
            "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p_rest PARTITION OF p DEFAULT;"
            "CREATE TABLE p_z (id int PRIMARY KEY); CREATE TABLE p_0 (id int PRIMARY KEY);"
            "ALTER TABLE p ATTACH PARTITION p_z FOR VALUES FROM (100) TO (200);"
            "CREATE TABLE f (id int REFERENCES p, other int REFERENCES p) PARTITION BY RANGE (id);"
            "CREATE TABLE f_rest PARTITION OF f DEFAULT; CREATE TABLE f_9 PARTITION OF f FOR VALUES FROM (9) TO (10);"
            "CREATE TABLE f_1 PARTITION OF f FOR VALUES FROM (1) TO (2);"
            "ALTER TABLE p ATTACH PARTITION p_0 FOR VALUES FROM (0) TO (50);"
            "CREATE TABLE g (id int REFERENCES p); ALTER TABLE g ADD FOREIGN KEY (id) REFERENCES p_z;"
            "CREATE INDEX lone ON ONLY f (id); CREATE INDEX f_9_other ON f_9 (id);"
            "CREATE DOMAIN named AS int CONSTRAINT must NOT NULL CHECK (VALUE > 0); CREATE DOMAIN early AS int NOT NULL;"
            'ALTER DOMAIN early RENAME TO "Late one";'
            f"CREATE DOMAIN {'é' * 28} AS int NOT NULL; COMMENT ON CONSTRAINT named_check ON DOMAIN named IS 'kept';"
            # An operator's shell, which stays when that operator goes.
            "CREATE OPERATOR <<<< (leftarg = int, rightarg = int, function = int4lt, commutator = >>>>);"
            "DROP OPERATOR <<<< (int, int);"
        )
        for first, second in ((group, login), (login, group)):
            policy = psycopg.sql.SQL("CREATE POLICY {} ON a TO {}, {}").format(first, first, second)
            tenant.execute(policy)
        with pytest.raises(psycopg.errors.UniqueViolation):
            tenant.execute("CREATE UNIQUE INDEX CONCURRENTLY failed ON twice (x)")
        tenant.execute("COMMENT ON INDEX failed IS 'not valid'; CREATE INDEX good ON twice (x, (x + 1))")
    copier.run()
    source, copy = copier.fingerprints()
    assert source.differences(copy) == []
    assert ("index", "public.good") in source.facts
    assert "x,()" in source.facts["index", "public.good"]
    assert ("index", "public.lone") in source.facts
    assert ("index", "public.failed") not in source.facts
    assert ("constraint", "public.g.g_id_fkey") in source.facts
    assert not [name for kind, name in source.facts if "operator" in kind]
    assert ("constraint", "public.named.must") not in source.facts  # pg_dump of 17 named none at first
    side = copier.source.side(copier.tool)
    with ENGINE.moment(copier.source.endpoint, side.place, copier.tool) as moment:
        moment.begin()
        moment.heard_all()
        with pytest.raises(EngineError):  # no dump was heard
            moment.contents(lambda: None)
        assert [note for note in moment.notes if note.startswith("1 invalid indexes ")]
    with connect(copier.target, copier.login) as tenant:  # the same name on another column is told
        tenant.execute("ALTER TABLE twice ADD y int; DROP INDEX good; CREATE INDEX good ON twice (y, (x + 1))")
    source, copy = copier.fingerprints()
    assert "index public.good differs" in source.differences(copy)


def test_no_number_of_an_object_is_told(copier: Copier) -> None:
    """They are others in each copy: made again, all is equal."""
    copier.run()
    found = []
    for _ in range(2):
        with connect(copier.source, replace(copier.source.admin, database=copier.names.database)) as admin:
            admin.execute(
                "DROP TYPE IF EXISTS public.pair CASCADE; CREATE TYPE public.pair AS (a int);"
                "CREATE TRANSFORM FOR public.pair LANGUAGE sql (FROM SQL WITH FUNCTION prsd_lextype(internal));"
                "CREATE FUNCTION public.f(int, public.pair) RETURNS int LANGUAGE sql TRANSFORM FOR TYPE public.pair"
                " AS 'SELECT 1'"
            )
        found.append(copier.fingerprints()[0])
    assert ("text of routine", "public.f(integer, public.pair)") in found[0].facts
    assert found[0].differences(found[1]) == found[0].remarks(found[1]) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE public.typed SET p = 4", "table public.typed has other values"),
        ("DELETE FROM public.typed", "table public.typed has 0 rows instead of 1"),
        ("SELECT setval('public.s', 9)", "value of sequence public.s differs"),
        ("DROP INDEX public.typed_p", "index public.typed_p is missing"),
        ("ALTER TABLE public.typed DISABLE TRIGGER t", "trigger public.typed.t differs"),
        ("CREATE TABLE public.more ()", "table public.more is there only in the copy"),
        ("CREATE OR REPLACE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
         "routine public.f() differs"),
        ("SELECT lo_put(99, 0, 'y')", "content of large object 99 differs"),
        ("GRANT UPDATE ON public.typed TO PUBLIC", "table public.typed differs"),
        ("CREATE OR REPLACE VIEW public.v AS SELECT p FROM public.typed WHERE p > 2", "text of view public.v differs"),
        ("ALTER TABLE public.typed ALTER p SET DEFAULT 2", "text of default public.typed.p differs"),
        ("ALTER TABLE public.typed DROP CONSTRAINT c, ADD CONSTRAINT c CHECK (p > -1)",
         "text of constraint public.typed.c differs"),
        ("ALTER POLICY y ON public.typed USING (p > 1)", "text of policy public.typed.y differs"),
        ("DROP INDEX public.bits; CREATE INDEX bits ON public.typed ((p + 2)) WHERE p > 0",
         "text of index public.bits differs"),
        ("DROP INDEX public.bits; CREATE INDEX bits ON public.typed ((p + 1)) WHERE p > 1",
         "text of index public.bits differs"),
        ("CREATE OR REPLACE TRIGGER t BEFORE INSERT ON public.typed FOR EACH ROW WHEN (new.p > 1) EXECUTE FUNCTION public.f()",
         "text of trigger public.typed.t differs"),
        ("CREATE OR REPLACE RULE r AS ON DELETE TO public.typed WHERE old.p > 2 DO INSTEAD NOTHING",
         "text of rule public.typed.r differs"),
        ("CREATE OR REPLACE FUNCTION public.g(a int DEFAULT 2) RETURNS int LANGUAGE sql AS 'SELECT 1'",
         "text of routine public.g(a integer) differs"),
        ("ALTER DOMAIN public.d SET DEFAULT 2", "text of type public.d differs"),
        ("ALTER SEQUENCE public.s OWNED BY public.typed.p", "text of sequence public.s is there only in the copy"),
        ("ALTER TABLE public.typed ALTER p SET STATISTICS 9", "text of column public.typed.p is there only in the copy"),
        ("ALTER PUBLICATION b SET TABLE public.typed WHERE (p > 2)", "text of publication b differs"),
    ],
)  # fmt: skip
def test_every_difference_is_told(copier: Copier, change: str, told: str) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE typed (p numeric); INSERT INTO typed VALUES (1.0); CREATE INDEX typed_p ON typed (p);"
            "CREATE SEQUENCE s; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
            "CREATE TRIGGER t BEFORE INSERT ON typed FOR EACH ROW EXECUTE FUNCTION f(); SELECT lo_from_bytea(99, 'x');"
            "ALTER TABLE typed ALTER p SET DEFAULT 1, ADD CONSTRAINT c CHECK (p > 0); CREATE VIEW v AS SELECT p FROM typed"
            " WHERE p > 1; CREATE POLICY y ON typed USING (p > 0); CREATE INDEX bits ON typed ((p + 1)) WHERE p > 0;"
            "CREATE RULE r AS ON DELETE TO typed WHERE old.p > 1 DO INSTEAD NOTHING; CREATE DOMAIN d AS int DEFAULT 1;"
            "CREATE FUNCTION g(a int DEFAULT 1) RETURNS int LANGUAGE sql AS 'SELECT 1';"
            "CREATE PUBLICATION b FOR TABLE typed WHERE (p > 1) WITH (publish = 'insert')"
        )
    copier.run()
    with connect(copier.target, copier.login) as tenant:
        tenant.execute(change)
    source, copy = copier.fingerprints()
    assert told in source.differences(copy)


def test_no_code_of_the_tenant_runs_while_its_rows_are_read(copier: Copier) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE trap (x int); INSERT INTO trap VALUES (1);"
            "CREATE FUNCTION spring(trap) RETURNS text LANGUAGE plpgsql AS"
            " $$BEGIN RAISE EXCEPTION 'sprung by %', current_user; END$$;"
            "CREATE CAST (trap AS text) WITH FUNCTION spring(trap) AS IMPLICIT;"
        )
        with pytest.raises(psycopg.errors.RaiseException):
            tenant.execute("SELECT trap::text FROM trap")
    copier.run()
    source, copy = copier.fingerprints()
    assert source.differences(copy) == []


def test_a_function_that_needs_its_search_path_fails_loudly(copier: Copier) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE lookup (k int, v int); INSERT INTO lookup VALUES (1, 2);"
            "CREATE FUNCTION look(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT v FROM lookup WHERE k = $1';"
            "CREATE TABLE used (k int); INSERT INTO used VALUES (1); SET check_function_bodies = off"
        )
        try:
            tenant.execute("CREATE INDEX by_look ON used (look(k))")
        except psycopg.Error:  # from 17 on the source refuses it itself
            tenant.execute("ALTER TABLE used ADD CHECK (look(k) > 0)")
    with pytest.raises(StepFailed) as told:
        copier.run()
    assert told.value.code == "restore_failed"
    assert "lookup" in told.value.detail
    assert not told.value.retryable


def test_a_check_that_reads_another_table_is_a_loud_failure(copier: Copier) -> None:
    """Its rows come first, and what it reads is not there yet: they must not be left out without a word."""
    with connect(copier.source, copier.login) as tenant:
        tenant.execute(
            "CREATE TABLE public.z_known (k int); INSERT INTO z_known VALUES (1);"
            "CREATE FUNCTION known(int) RETURNS bool LANGUAGE sql"
            " AS 'SELECT EXISTS (SELECT FROM public.z_known z WHERE z.k = $1)';"
            "CREATE TABLE a_checked (k int CHECK (public.known(k))); INSERT INTO a_checked VALUES (1)"
        )
    with pytest.raises(StepFailed) as told:
        copier.run()
    assert (told.value.code, told.value.retryable) == ("restore_failed", False)
    assert "a_checked" in told.value.detail


def test_obstacles_are_told_before(copier: Copier) -> None:
    with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
        assert admin.obstacles(copier.names) == []
    with connect(copier.source, copier.source.admin) as superuser:
        superuser.execute("SELECT 1")
    with psycopg.connect(
        host=copier.source.endpoint.host, port=copier.source.endpoint.port, user=copier.source.admin.username,
        password=copier.source.admin.password, dbname=copier.names.database, autocommit=True,
    ) as inside:  # fmt: skip
        inside.execute("SELECT pg_create_logical_replication_slot('left_behind', 'pgoutput')")
    with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
        assert admin.obstacles(copier.names) == ["1 replication slots: drop them, and make them again on the copy"]


def test_the_tools_login_has_no_rights_elsewhere(servers: tuple[CopyServer, CopyServer], copier: Copier) -> None:
    with Copier.between(*servers, new_names()) as neighbour:
        with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
            admin.admit_tool(copier.names, copier.tool.username, copier.tool.password)
        for database in (neighbour.names.database, "postgres", "template1"):
            elsewhere = Credentials(copier.tool.username, copier.tool.password, database)
            with pytest.raises(LoginRefused):
                ENGINE.probe(copier.source.endpoint, elsewhere)
        with connect(copier.source, copier.tool) as tool:
            for refused in ("COPY (SELECT 1) TO PROGRAM 'true'", "CREATE ROLE x", "ALTER SYSTEM SET fsync = off"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    tool.execute(refused)
        # The tenant is shut out by its own lock; the tool is not.
        with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
            admin.lock_tenant(copier.names, locked=True)
        with pytest.raises(LoginRefused):
            ENGINE.probe(copier.source.endpoint, copier.login)
        ENGINE.probe(copier.source.endpoint, copier.tool)


def test_where_the_tenants_code_runs_no_login_of_ours_can_become_the_control_role(copier: Copier) -> None:
    """CHECKs and functions of indexes run in the sessions of what restores: SET ROLE is theirs."""
    names = copier.names
    part = Credentials(names.part, "of-a-moment", names.database)

    def may(login: Credentials, role: str) -> bool:
        with connect(copier.source, login) as session:
            try:
                session.execute("SELECT set_config('role', %s, false)", [role])
            except psycopg.errors.InsufficientPrivilege:
                return False
        return True

    with ENGINE.admin(copier.source.endpoint, copier.source.admin) as admin:
        admin.admit_tool(names, names.tool, copier.tool.password)  # pg_dump's reads what only that role may read
        admin.admit_tool(names, names.part, part.password)  # as an older version left it
        assert may(copier.tool, names.control)
        admin.admit_restorer(names, names.tool, copier.tool.password)
        admin.admit_part(names, names.part, part.password, ())
        assert not may(copier.tool, names.control) and not may(part, names.control)
        assert may(copier.tool, names.group) and may(copier.tool, names.login) and may(part, names.group)
        assert not may(part, names.login)
        admin.dismiss_tool(names, names.part)


def test_who_pulses_ends_it(copier: Copier) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute("CREATE TABLE big AS SELECT i, repeat('x', 200) AS t FROM generate_series(1, 100000) i")

    class Enough(Exception):
        pass

    def pulse(_: int = 0) -> None:
        raise Enough

    with pytest.raises(Enough):
        copier.run(pulse=pulse)
    with pytest.raises(Enough):
        ENGINE.fingerprint(copier.source.endpoint, copier.tool, pulse=pulse)
    assert copier.run() > 20_000_000  # and no tool was left in the way


def test_broken_tools_are_told(copier: Copier, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(copier.source, copier.login) as tenant:
        tenant.execute("CREATE TABLE several AS SELECT i FROM generate_series(1, 100000) i")

    def cut(_: Endpoint, credentials: Credentials) -> Command:
        whole = PostgreSQL().dump(copier.source.side(credentials).place, credentials)
        return Command(("sh", "-c", f"{' '.join(whole.argv)} | head -c 200000"), whole.env, whole.secret_files)

    monkeypatch.setattr(ENGINE, "dump", cut)  # it ends well, and yet it is not whole
    with pytest.raises(StepFailed) as told:
        copier.run()
    assert told.value.code == "restore_failed"
    killed = lambda *_: Command(("sh", "-c", "head -c 100000 /dev/zero; kill -9 $$"))  # noqa: E731
    monkeypatch.setattr(ENGINE, "dump", killed)
    with pytest.raises(StepFailed) as told:
        copier.run()
    assert told.value.code in {"tool_killed", "restore_failed"}
    greedy = lambda *_: Command(("dd", "if=/dev/zero", "bs=1G", "count=1"))  # noqa: E731
    monkeypatch.setattr(ENGINE, "dump", greedy)
    with pytest.raises(StepFailed) as told:
        copier.run()
    assert told.value.code == "tool_out_of_memory"
    monkeypatch.undo()
    wrong = replace(copier)
    monkeypatch.setattr(copying, "TOOL_MEMORY_BYTES", 64 << 20)
    assert wrong.run() > 0


def test_words_of_a_list() -> None:
    assert _words('"$user", public') == ["$user", "public"]
    assert _words('"a, ""b""",c') == ['a, "b"', "c"]
    assert _words("") == [""]
    assert _words('""') == [""]
    with pytest.raises(EngineError):
        _words('"open')


def test_what_a_restore_may_spell_otherwise() -> None:
    once = "(((x)::text = ANY ((ARRAY['a'::character varying, 'b(::int'::character varying(9)])::text[])) AND (n > 1))"
    twice = (
        "((x)::text = ANY (ARRAY[('a'::character varying)::text, ('b(::int'::character varying(9))::text])) AND (n > 1)"
    )
    assert loose(once) == loose(twice) == "x = ANY ARRAY [ 'a' , 'b(::int' ] AND n > 1"
    assert loose("SELECT 'PUBLIC'::name") == loose("SELECT 'PUBLIC'::name AS name")
    assert loose("FROM w.f(1) WITH ORDINALITY g(a, ordinality)") == loose('FROM w.f(1) WITH ORDINALITY g(a, o, "O 1")')
    assert loose("a::timestamp(3) without time zone + b::interval day to second(3)") == "a + b"
    assert loose('x::public."odd ""t"[][] AND y::numeric(10,2)') == "x AND y"
    for one, other in (("lower(a)", "lower(b)"), ("a AND b", "a OR b"), ("'a'", "'b'"), ("f(1)", "f(2)"), ("a.b", "a.c"),
                       ("SELECT lower(v) FROM t", "SELECT lower(w) FROM t")):  # fmt: skip
        assert loose(one) != loose(other)


def test_a_fingerprint_from_before_texts_were_told_is_still_compared() -> None:
    """Manifests that lie in storages; and both ways, those of a later version."""
    new = Fingerprint({}, {TEXTS: "default,view", ("text of view", "v"): "1 2", ("text of default", "d"): "3 4",
                           ("version of extension", "e"): "1", ("view", "v"): "s"})  # fmt: skip
    old = Fingerprint({}, {("view", "v"): "s"})
    later = Fingerprint({}, {**new.facts, TEXTS: "default,view,zebra", ("text of zebra", "z"): "1 1",
                             ("text of view", "v"): "5 2", ("version of extension", "e"): "2"})  # fmt: skip
    assert old.differences(new) == new.differences(old) == new.differences(later) == later.differences(new) == []
    assert old.remarks(new) == ["Not compared, since another version of NovaStack took it: the text of default, view."]
    assert old.remarks(old) == new.remarks(new) == []
    assert [line.split(":")[0] for line in new.remarks(later)] == [
        "Not compared, since another version of NovaStack took it", "Extension e is 2 in the copy, and was 1",
        "After a restore the server spells otherwise, with all the same words but for casts, parentheses and aliases",
    ]  # fmt: skip
    for changed in ({("text of view", "v"): "1 9"}, {("text of view", "w"): "1 2"}, {("view", "v"): "t"}):
        assert len(new.differences(Fingerprint({}, {**new.facts, **changed}))) == 1
        assert len(later.differences(Fingerprint({}, {**new.facts, **changed}))) == 1
