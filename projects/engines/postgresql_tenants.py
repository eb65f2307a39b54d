"""How a tenant's place on a PostgreSQL server is made, and what of it is made ahead (rules 17, 18).

A tenant's database belongs to a platform role. The tenant's group role owns the schema `public` and has CONNECT,
CREATE and TEMP without grant option; logins are members and act as the group. So trusted extensions work, and whatever
only an owner may do (DROP DATABASE, IS_TEMPLATE, CONNECTION LIMIT, GRANT CONNECT TO PUBLIC) is refused.

Making it takes long, so on a pool most of it is done before anybody asks. New databases are copies of `TEMPLATE`: its views
are closed and it has the bootstrap tables. A blank with passwords has its roles too, none of which may log in: to give it
away is to rename it and them and to open it, in one transaction.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import hmac
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import sql

from projects.domain import Bootstrapped, Credentials, Endpoint, EngineError, TenantNames
from projects.engines import bootstrap, postgresql_bootstrap, postgresql_pools
from projects.engines.admin import BLANK_PREFIX
from projects.engines.postgresql_copy import PostgreSQLCopies
from projects.engines.postgresql_figures import TEMPLATE
from projects.engines.postgresql_session import BoundedConnection, connect, translated

CONTROL_CONNECTIONS = 5
TEMP_FILE_LIMIT = "1GB"
SPARE = "nvs_spare"  # a database that was made before anybody wanted one; no user can choose such a name
NOT_YET = 0  # the database's connection limit while it is being made: only superusers get in
INVALID = -2  # an interrupted DROP DATABASE leaves this
_WORKING = 0x6E6F7661  # advisory locks: whoever of us changes a tenant's roles or database
_ITERATIONS = 4096
_NEW_ROLE = "NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"


def _recipe() -> str:
    """Changes whenever what is made ahead does, so that nothing of an older version is given away."""
    text = f"1 {postgresql_pools.recipe()} {postgresql_bootstrap.VERSIONS!r}"
    return f"novastack ahead {hashlib.sha256(text.encode()).hexdigest()[:16]}"


RECIPE = _recipe()  # the comment of a finished template, or of a blank with the bootstrap tables
PLAIN = f"{RECIPE} plain"  # of a blank without them


@dataclass(frozen=True, slots=True)
class _Found:
    """What is there before a tenant's place is made. Limits: connection limits; None: no such database."""

    limit: int | None
    ahead: int | None
    recipe: str  # of what was made ahead
    template: bool  # the pool's template is whole, and of this version
    pool: bool
    roles: frozenset[str]
    verifiers: dict[str, str]


class PostgreSQLTenants(PostgreSQLCopies):
    def __init__(self, connection: BoundedConnection, endpoint: Endpoint, credentials: Credentials) -> None:
        super().__init__(connection, endpoint, credentials)
        self._held: set[int] = set()

    # --- a tenant's place ---------------------------------------------------------------------------------------------
    def create_tenant(self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "") -> None:
        self.place_tenant(names, login_password=login_password, control_password=control_password, blank=blank)

    def place_tenant(
        self, names: TenantNames, *, login_password: str, control_password: str, blank: str = "", tables: bool = False
    ) -> Bootstrapped | None:
        self._alone(names.owner, names.login, names.control, blank)
        found = self._found(names, blank)
        passwords = {names.login: login_password, names.control: control_password}
        if self._fits(found, names, blank):
            unwanted = found.recipe == RECIPE and not tables
            self._give(found, names, blank, passwords, whole=not unwanted)
            if unwanted:
                return self._open(names, pool=found.pool, tables=False)
            return _made() if found.recipe == RECIPE else None
        batch = self._roles(names, passwords, found.roles)
        limit = found.limit
        if limit is None and found.ahead == NOT_YET and not found.roles & _roles_of(blank):
            batch += [_say("ALTER DATABASE {} RENAME TO {}", blank or SPARE, names.database), *_close(names)]
            limit = NOT_YET
        elif limit not in {None, INVALID}:
            batch += _close(names)
        self._run(batch)  # each commit waits for the disk: one instead of twenty
        if limit is None or limit == INVALID:
            self._make_database(names.database, found)
            return self._open(names, pool=found.pool, tables=tables, before=_close(names))
        # Nobody but us has been inside: this is the only time that a superuser's session enters it.
        return self._open(names, pool=found.pool, tables=tables) if limit == NOT_YET else None

    def _found(self, names: TenantNames, blank: str) -> _Found:
        ahead, roles = blank or SPARE, [names.owner, names.group, names.login, names.control, *sorted(_roles_of(blank))]
        row = self._rows(
            """
            SELECT (SELECT datconnlimit FROM pg_database WHERE datname = %(database)s),
                   (SELECT datconnlimit FROM pg_database WHERE datname = %(ahead)s),
                   (SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %(ahead)s),
                   EXISTS (SELECT FROM pg_database WHERE datname = %(template)s
                              AND shobj_description(oid, 'pg_database') = %(recipe)s),
                   coalesce(current_setting('novastack.pool', true) = 'on', false),
                   (SELECT jsonb_object_agg(rolname, rolpassword) FROM pg_authid WHERE rolname = ANY(%(roles)s))
            """,
            database=names.database, ahead=ahead, roles=roles, template=TEMPLATE, recipe=RECIPE,
        )[0]  # fmt: skip
        verifiers = {str(name): str(password or "") for name, password in (row[5] or {}).items()}
        return _Found(row[0], row[1], row[2] or "", row[3], row[4], frozenset(verifiers), verifiers)

    def _fits(self, found: _Found, names: TenantNames, blank: str) -> bool:
        """All of it was made ahead, as this version does it, and nothing of the tenant is there."""
        ready = bool(blank) and found.limit is None and found.ahead == NOT_YET and found.recipe in {RECIPE, PLAIN}
        return ready and found.roles == _roles_of(blank)

    def _give(self, found: _Found, names: TenantNames, blank: str, passwords: dict[str, str], *, whole: bool) -> None:
        """The blank is the tenant's from here on. `whole`: as it is; else it stays closed."""
        made = blank_names(blank)
        pairs = [(getattr(made, kind), getattr(names, kind)) for kind in ("owner", "group", "login", "control")]
        batch = [_say("ALTER ROLE {} RENAME TO {}", old, new) for old, new in pairs]
        for old, new in pairs[2:]:
            limit = names.connection_limit if new == names.login else CONTROL_CONNECTIONS
            batch.append(_say(f"ALTER ROLE {{}} LOGIN CONNECTION LIMIT {int(limit)}", new))
            if not _is_of(found.verifiers[old], passwords[new]):
                batch.append(self._password(new, passwords[new]))
        batch += [
            _say("ALTER DATABASE {} RENAME TO {}", blank, names.database),
            _say("ALTER ROLE {} IN DATABASE {} SET role = {}", names.login, names.database, sql.Literal(names.group)),
            _say("COMMENT ON DATABASE {} IS NULL", names.database),
        ]
        if whole:
            batch.append(_say("ALTER DATABASE {} CONNECTION LIMIT -1", names.database))
        self._run(batch)

    def _open(
        self, names: TenantNames, *, pool: bool, tables: bool, before: list[sql.Composed] | None = None
    ) -> Bootstrapped | None:
        """Let the tenant in. Of the tables that came from the template those that are wanted become the tenant's, and
        else they go. None: somebody has still to see to them."""
        with self._inside(names.database) as connection:
            closed, ours = _inside_of(connection)
            if pool and not closed:
                postgresql_pools.close_views(connection)
            batch = [*(before or []), _say("ALTER SCHEMA public OWNER TO {}", names.group)]
            if pool:
                batch += postgresql_pools.letting_control_see(names.control)
            if ours:
                batch += _tables_to(names.group) if tables else [_without_tables()]
            batch.append(_say("ALTER DATABASE {} CONNECTION LIMIT -1", names.database))
            connection.execute(sql.SQL("; ").join(batch))
        return _made() if ours and tables else None

    # --- made ahead ---------------------------------------------------------------------------------------------------
    def make_blank(
        self, name: str, *, login_password: str = "", control_password: str = "", tables: bool = True
    ) -> None:
        _check_blank(name)
        self._alone(name)
        names = blank_names(name)
        found = self._found(names, name)
        if found.recipe in {RECIPE, PLAIN}:
            return
        if found.limit in {None, INVALID}:
            self._make_database(name, found)
        elif found.limit != NOT_YET:
            raise EngineError("a database of that name is in use")
        self._run([_say("REVOKE ALL ON DATABASE {} FROM PUBLIC", name)])
        if not (login_password and control_password and found.pool):
            if found.pool:
                with self._inside(name) as connection:
                    postgresql_pools.close_views(connection)
            return
        passwords = {names.login: login_password, names.control: control_password}
        closing = [_say("ALTER ROLE {} NOLOGIN", role) for role in passwords]
        self._run([*self._roles(names, passwords, found.roles), *closing, *_close(names, acting=False)])
        with self._inside(name) as connection:
            closed, ours = _inside_of(connection)
            if not (closed and ours):  # of an older template: it is given away as any other
                postgresql_pools.close_views(connection)
                return
            batch = [_say("ALTER SCHEMA public OWNER TO {}", names.group)]
            batch += _tables_to(names.group) if tables else [_without_tables()]
            batch += [*postgresql_pools.letting_control_see(names.control), _comment(name, RECIPE if tables else PLAIN)]
            connection.execute(sql.SQL("; ").join(batch))

    def drop_blank(self, name: str) -> None:
        _check_blank(name)
        self._alone(name)
        limit = self._limit_of(name)
        if limit not in {None, NOT_YET, INVALID}:
            raise EngineError("a database of that name is in use")
        self._do("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        for (role,) in self._rows("SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)", sorted(_roles_of(name))):
            self._run([_say("DROP OWNED BY {}", role), _say("DROP ROLE {}", role)])

    def blanks(self) -> list[str]:
        rows = self._rows(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %(prefix)s) AND datconnlimit IN (0, -2)"
            " UNION SELECT regexp_replace(rolname, '_(owner|group|login|control)$', '') FROM pg_roles"
            "  WHERE starts_with(rolname, %(prefix)s) AND NOT rolcanlogin",
            prefix=BLANK_PREFIX,
        )
        return sorted(str(row[0]) for row in rows if row[0] != TEMPLATE)

    def make_place(self) -> None:
        if self._is_pool:
            self._ready_template()
            return
        self._alone(SPARE)
        limit = self._limit_of(SPARE)
        if limit != NOT_YET:
            self._copy("template0", SPARE, invalid=limit == INVALID)
        self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", SPARE)

    def _ready_template(self) -> None:
        """The pool's template, as this version makes it. Only who must make it waits for others who do."""
        if self._recipe_of(TEMPLATE) == RECIPE:
            return
        self._alone(TEMPLATE)
        if self._recipe_of(TEMPLATE) == RECIPE:
            return
        if self._limit_of(TEMPLATE) not in {None, INVALID}:  # half-made, or an older version's
            self._do("ALTER DATABASE {} IS_TEMPLATE false", TEMPLATE)
        self._do("DROP DATABASE IF EXISTS {} WITH (FORCE)", TEMPLATE)
        self._copy("template0", TEMPLATE)
        self._do("REVOKE ALL ON DATABASE {} FROM PUBLIC", TEMPLATE)
        with self._inside(TEMPLATE) as connection:
            postgresql_pools.close_views(connection)
            postgresql_bootstrap.fill(connection)
            connection.execute(_comment(TEMPLATE))
            connection.execute(_say("ALTER DATABASE {} IS_TEMPLATE true", TEMPLATE))

    def _recipe_of(self, database: str) -> str:
        """What its comment says, once it is whole."""
        query = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s"
        return str(self._value(query, database) or "")

    # --- parts --------------------------------------------------------------------------------------------------------
    def _make_database(self, database: str, found: _Found) -> None:
        if found.pool and not found.template:
            self._ready_template()
        self._copy(TEMPLATE if found.pool else "template0", database, invalid=found.limit == INVALID)

    def _copy(self, template: str, database: str, *, invalid: bool = False) -> None:
        if invalid:
            self._do("DROP DATABASE {}", database)
        self._do("CREATE DATABASE {} TEMPLATE {} ENCODING 'UTF8' CONNECTION LIMIT 0", database, template)

    def _limit_of(self, database: str) -> int | None:
        """Its connection limit: `NOT_YET`, `INVALID`, or that it was opened; None: there is no such database."""
        found = self._value("SELECT datconnlimit FROM pg_database WHERE datname = %s", database)
        return None if found is None else int(str(found))

    def _alone(self, *subjects: str) -> None:
        """Wait until no other session of ours changes any of these, until this session ends. The server goes on with the
        last statement of a worker that was killed (CREATE DATABASE takes its time) and only then sees that nobody is there:
        what is not yet there for us would be there a moment later. Other tenants of the server don't wait."""
        keys = {zlib.crc32(subject.encode()) - (1 << 31) for subject in subjects if subject} - self._held
        if keys:
            self._rows(f"SELECT {', '.join(f'pg_advisory_lock({_WORKING}, {key})' for key in sorted(keys))}")
            self._held |= keys

    @functools.cached_property
    def _is_pool(self) -> bool:
        with translated():
            return postgresql_pools.is_pool(self._connection)

    @contextlib.contextmanager
    def _inside(self, database: str) -> Iterator[BoundedConnection]:
        """A superuser's transaction in a database into which nobody ever got but us."""
        inside = Credentials(self._credentials.username, self._credentials.password, database)
        settings = {"event_triggers": "off"} if self._connection.info.server_version >= 170000 else None
        with (
            connect(self._endpoint, inside, timeout_seconds=10, settings=settings) as connection,
            translated(),
            connection.transaction(),
        ):
            yield connection

    def _run(self, batch: list[sql.Composed]) -> None:
        """In one round trip, and as one transaction."""
        with translated():
            self._connection.execute(sql.SQL("; ").join(batch))

    def _roles(self, names: TenantNames, passwords: dict[str, str], there: frozenset[str]) -> list[sql.Composed]:
        """Statements for the tenant's roles; those that are `there` are brought to what they should be."""
        version = self._connection.info.server_version
        roles = (names.owner, names.group, names.login, names.control)
        batch = [_say(f"CREATE ROLE {{}} {_NEW_ROLE}", role) for role in roles if role not in there]
        grant = "GRANT {} TO {} WITH ADMIN FALSE, INHERIT TRUE, SET TRUE" if version >= 160000 else "GRANT {} TO {}"
        batch.append(_say(grant, names.group, names.login))
        for role, limit in ((names.login, names.connection_limit), (names.control, CONTROL_CONNECTIONS)):
            batch.append(_say(f"ALTER ROLE {{}} INHERIT LOGIN CONNECTION LIMIT {int(limit)}", role))
            batch.append(self._password(role, passwords[role]))
        batch.append(_say(f"ALTER ROLE {{}} SET temp_file_limit = '{TEMP_FILE_LIMIT}'", names.login))
        for setting, value in (
            ("search_path", "pg_catalog"), ("statement_timeout", "15s"), ("lock_timeout", "5s"),
            ("default_transaction_read_only", "on"),
        ):  # fmt: skip
            batch.append(_say(f"ALTER ROLE {{}} SET {setting} = '{value}'", names.control))
        if version >= 160000:
            batch.append(_say("GRANT pg_use_reserved_connections TO {}", names.control))
        if version >= 170000:
            batch.append(_say("GRANT SET ON PARAMETER event_triggers TO {}", names.control))
            batch.append(_say("ALTER ROLE {} SET event_triggers = off", names.control))
        return batch

    def _password(self, username: str, password: str) -> sql.Composed:
        return _say("ALTER ROLE {} PASSWORD {}", username, self._verifier(username, password))

    def _verifier(self, username: str, password: str) -> sql.Literal:
        """SCRAM-SHA-256 made here: a server that logs the statement logs no password (rule 20)."""
        if password.isascii() and password.isprintable():
            salt = os.urandom(16)
            return sql.Literal(_scram(password, salt))
        with translated():  # libpq knows how such are written
            made = self._connection.pgconn.encrypt_password(password.encode(), username.encode(), b"scram-sha-256")
        return sql.Literal(made.decode())


def blank_names(blank: str) -> TenantNames:
    """The roles of a blank. None may log in."""
    return TenantNames(
        database=blank,
        owner=f"{blank}_owner",
        group=f"{blank}_group",
        login=f"{blank}_login",
        control=f"{blank}_control",
    )


def _roles_of(blank: str) -> frozenset[str]:
    names = blank_names(blank)
    return frozenset({names.owner, names.group, names.login, names.control}) if blank else frozenset()


def _scram(password: str, salt: bytes, iterations: int = _ITERATIONS) -> str:
    """What the server keeps (RFC 5803) of a password of ASCII."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    first, second, third = (base64.b64encode(part).decode() for part in (salt, stored, server))
    return f"SCRAM-SHA-256${iterations}:{first}${second}:{third}"


def _is_of(verifier: str, password: str) -> bool:
    """Whether the server keeps this of that password."""
    try:
        _, way, _ = verifier.split("$")
        iterations, salt = way.split(":")
        return hmac.compare_digest(_scram(password, base64.b64decode(salt), int(iterations)), verifier)
    except ValueError:
        return False


_TABLES = tuple(f"public.{name}" for name in bootstrap.TABLES)


def _made() -> Bootstrapped:
    return Bootstrapped(version=postgresql_bootstrap.VERSIONS[-1].name, created=bootstrap.TABLES, kept=())


def _say(statement: str, *parts: str | sql.Literal) -> sql.Composed:
    """Strings become identifiers."""
    filled = [part if isinstance(part, sql.Literal) else sql.Identifier(part) for part in parts]
    return sql.SQL(statement).format(*filled)  # type: ignore[arg-type]


def _comment(database: str, text: str = RECIPE) -> sql.Composed:
    return _say("COMMENT ON DATABASE {} IS {}", database, sql.Literal(text))


def _close(names: TenantNames, *, acting: bool = True) -> list[sql.Composed]:
    batch = [
        _say("ALTER DATABASE {} OWNER TO {}", names.database, names.owner),
        _say("REVOKE ALL ON DATABASE {} FROM PUBLIC", names.database),
        _say("GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {} TO {}", names.database, names.group),
        _say("GRANT CONNECT ON DATABASE {} TO {}", names.database, names.control),
    ]
    if acting:  # objects belong to the group whoever of its logins made them: a second login can replace the first
        group = sql.Literal(names.group)
        batch.append(_say("ALTER ROLE {} IN DATABASE {} SET role = {}", names.login, names.database, group))
    return batch


def _tables_to(group: str) -> list[sql.Composed]:
    return [_say(f"ALTER TABLE {table} OWNER TO {{}}", group) for table in _TABLES]


def _without_tables() -> sql.Composed:
    return _say(f"DROP TABLE {', '.join(_TABLES)}")


def _inside_of(connection: BoundedConnection) -> tuple[bool, bool]:
    """Whether the views are closed, and whether our tables are there: where nobody was but us they can only be ours."""
    row = connection.execute(
        "SELECT to_regprocedure('pg_catalog.nvs_own_pg_stat_activity()') IS NOT NULL,"
        " to_regclass('public.schema_migrations') IS NOT NULL"
    ).fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    return bool(row[0]), bool(row[1])


def _check_blank(name: str) -> None:
    longest = max(len(role.encode()) for role in _roles_of(name))
    if not name.startswith(BLANK_PREFIX) or longest > 63 or name == TEMPLATE:
        raise EngineError(f"a blank's name begins with {BLANK_PREFIX}")
