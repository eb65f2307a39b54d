"""What a tenant's database on a shared PostgreSQL server does not tell about the others.

A catalog view can't be read without its functions, and those show every database. So in each tenant's database (their
privileges and views are its own) the functions are taken from PUBLIC, and the views read the same rows through a function
that runs as their owner and leaves the others out. Clients find the columns that they know.

The privileges count as those of the beginning (`pg_init_privs`): `pg_dump` writes neither them nor anything in
`pg_catalog`, so a tenant's dump is that of any database. `pg_upgrade` would not carry them over: `close_views` again.
"""

from __future__ import annotations

from psycopg import sql

from projects.engines.postgresql_session import BoundedConnection

# Server settings of a pool, by command line. What a session can change says docs/isolation.md.
SETTINGS = {
    "novastack.pool": "on",  # what `is_pool` reads
    # No session takes a second core: there are no workers to be had, whatever it sets.
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "max_parallel_workers_per_gather": "0",
    "max_parallel_maintenance_workers": "0",
    "max_logical_replication_workers": "0",
    "max_prepared_transactions": "0",  # they would outlive their sessions, and hold locks and old rows
    "max_locks_per_transaction": "128",  # the table of locks is everybody's
    "temp_file_limit": "1GB",
    # For mistakes: a session may choose others.
    "statement_timeout": "5min",
    "idle_in_transaction_session_timeout": "5min",
}
NOTIFY_PAGES = "65536"  # 17+: of 8 kB, for all databases together; 8 GB unless told

SESSION_BYTES = 256 << 20

_OWN_LOGINS = """(SELECT m.member FROM pg_database d, aclexplode(d.datacl) x, pg_auth_members m
    WHERE d.datname = current_database() AND x.privilege_type = 'CONNECT' AND m.roleid = x.grantee)"""
# Roles of the product, and those that have something to do with this database; `pg_roles` shows what they set as well.
_OWN_ROLES = """IN (SELECT a.oid FROM pg_authid a WHERE a.oid < 16384
    UNION SELECT d.datdba FROM pg_database d WHERE d.datname = current_database()
    UNION SELECT x.grantee FROM pg_database d, aclexplode(d.datacl) x WHERE d.datname = current_database()
    UNION SELECT m.member FROM pg_database d, aclexplode(d.datacl) x, pg_auth_members m
     WHERE d.datname = current_database() AND m.roleid = x.grantee)"""
_OWN_SESSIONS = f"""(SELECT s.pid FROM pg_stat_get_activity(NULL) s
    WHERE s.datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.usesysid IN {_OWN_LOGINS})"""  # noqa: S608 - our own words only
_OWN_DATABASE = "datname = current_database()"
# view → which of its rows are the tenant's
_VIEWS = {
    "pg_stat_activity": f"{_OWN_DATABASE} AND usesysid IN {_OWN_LOGINS}",
    "pg_stat_ssl": f"pid IN {_OWN_SESSIONS}",
    "pg_stat_gssapi": f"pid IN {_OWN_SESSIONS}",
    "pg_stat_database": _OWN_DATABASE,
    "pg_stat_database_conflicts": _OWN_DATABASE,
    "pg_locks": f"pid IN {_OWN_SESSIONS} OR database = (SELECT oid FROM pg_database WHERE {_OWN_DATABASE})",  # noqa: S608
    "pg_roles": f"oid {_OWN_ROLES}",
    "pg_user": f"usesysid {_OWN_ROLES}",
    "pg_group": f"grosysid {_OWN_ROLES}",
    "pg_prepared_xacts": "database = current_database()",
    "pg_stat_progress_analyze": _OWN_DATABASE,
    "pg_stat_progress_cluster": _OWN_DATABASE,
    "pg_stat_progress_copy": _OWN_DATABASE,
    "pg_stat_progress_create_index": _OWN_DATABASE,
    "pg_stat_progress_vacuum": _OWN_DATABASE,
}
_FUNCTIONS = (
    "^pg_(stat_get_(activity|progress_info|backend_.*|db_.*|wal_senders|wal_receiver|replication_slot|subscription)"
    "|lock_status|prepared_xact|get_replication_slots|tablespace_size)$"
)
# What logins set for themselves, how many things each role owns where, and the names of our own logins.
_TABLES = ("pg_db_role_setting", "pg_shdepend", "pg_parameter_acl")

_CLOSE = """
DO $do$
DECLARE
    view text; mine text; changed regprocedure;
BEGIN
    FOR view, mine IN SELECT * FROM unnest({views}::text[], {filters}::text[]) LOOP
        EXECUTE format('CREATE FUNCTION pg_catalog.%1$I() RETURNS SETOF pg_catalog.%2$I LANGUAGE sql STABLE'
                       ' SECURITY DEFINER PARALLEL RESTRICTED SET search_path = pg_catalog'
                       ' AS $f$ SELECT * FROM (%3$s) seen WHERE %4$s $f$',
                       'nvs_own_' || view, view, rtrim(pg_get_viewdef(('pg_catalog.' || quote_ident(view))::regclass), ';'),
                       mine);
        EXECUTE format('CREATE OR REPLACE VIEW pg_catalog.%I AS SELECT * FROM pg_catalog.%I()', view, 'nvs_own_' || view);
    END LOOP;
    FOR changed IN SELECT oid FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ {functions} LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', changed);
    END LOOP;
    FOR view IN SELECT unnest({tables}::text[]) LOOP
        EXECUTE format('REVOKE ALL ON pg_catalog.%I FROM PUBLIC', view);
    END LOOP;
    DELETE FROM pg_init_privs i USING pg_proc p WHERE i.classoid = 'pg_proc'::regclass AND i.objoid = p.oid
       AND p.pronamespace = 'pg_catalog'::regnamespace AND p.proname ~ {functions};
    INSERT INTO pg_init_privs (objoid, classoid, objsubid, privtype, initprivs)
        SELECT oid, 'pg_proc'::regclass, 0, 'i', proacl FROM pg_proc
         WHERE pronamespace = 'pg_catalog'::regnamespace AND proname ~ {functions};
END
$do$
"""
_REMEMBER = """
UPDATE pg_init_privs i SET initprivs = c.relacl FROM pg_class c
 WHERE i.classoid = 'pg_class'::regclass AND i.objoid = c.oid AND i.objsubid = 0
   AND c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY({tables})
"""


def session_bytes(memory_bytes: int) -> int:
    """Memory of its own that a session may have, shared buffers not counted."""
    return max(SESSION_BYTES, memory_bytes // 8)


def is_pool(connection: BoundedConnection) -> bool:
    row = connection.execute("SELECT current_setting('novastack.pool', true) = 'on'").fetchone()
    return bool(row and row[0])


def close_views(connection: BoundedConnection) -> None:
    """In the database of this session, a superuser's, into which no tenant ever got; in a transaction. Again is nothing."""
    row = connection.execute("SELECT to_regprocedure('pg_catalog.nvs_own_pg_stat_activity()') IS NOT NULL").fetchone()
    if row and row[0]:
        return
    connection.execute("SET LOCAL allow_system_table_mods = on")
    connection.execute(
        sql.SQL(_CLOSE).format(
            views=sql.Literal(list(_VIEWS)), filters=sql.Literal(list(_VIEWS.values())), functions=sql.Literal(_FUNCTIONS),
            tables=sql.Literal(list(_TABLES)),
        )
    )  # fmt: skip
    connection.execute(sql.SQL(_REMEMBER).format(tables=sql.Literal(list(_TABLES))))


def letting_control_see(control: str) -> list[sql.Composed]:
    """Statements: the control role reads whether writers are fenced. In one transaction."""
    return [
        sql.SQL("GRANT SELECT ON pg_catalog.pg_db_role_setting TO {}").format(sql.Identifier(control)),
        sql.SQL(_REMEMBER).format(tables=sql.Literal(list(_TABLES))),
    ]


def recipe() -> str:
    """All that `close_views` depends on."""
    return f"{_VIEWS} {_FUNCTIONS} {_TABLES} {_CLOSE} {_REMEMBER}"
