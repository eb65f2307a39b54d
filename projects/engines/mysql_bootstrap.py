"""The bootstrap tables in the words of MariaDB and MySQL, made by the tenant's own login. There is no transaction around
a CREATE TABLE here: each makes its indexes and its mark with it, so that what was cut short is finished by the next run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from projects.domain import Bootstrapped, Credentials, Endpoint, TenantNames
from projects.engines import bootstrap
from projects.engines.bootstrap import AUDIT_LOGS, COMMENTS, MARK, MIGRATIONS, SETTINGS, TABLES, Change, Version
from projects.engines.mysql_session import Session, connect


def _options(table: str) -> str:
    return f"ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COMMENT='{COMMENTS[table]}'"


_MOMENT = "DATETIME(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)"  # the server's clock is UTC; TIMESTAMP ends in 2038
VERSIONS: tuple[Version[str], ...] = (
    Version(
        bootstrap.FIRST,
        bootstrap.DESCRIPTION,
        (
            Change(
                MIGRATIONS,
                (
                    "CREATE TABLE schema_migrations (version VARCHAR(255) NOT NULL PRIMARY KEY,"
                    f" description VARCHAR(500) NOT NULL DEFAULT '', applied_at {_MOMENT},"
                    f" KEY schema_migrations_applied_at (applied_at)) {_options(MIGRATIONS)}",
                ),
                creates=True,
            ),
            Change(
                SETTINGS,
                (
                    "CREATE TABLE settings (name VARCHAR(255) NOT NULL PRIMARY KEY, value JSON NOT NULL,"
                    f" description VARCHAR(500) NOT NULL DEFAULT '', created_at {_MOMENT}, updated_at {_MOMENT},"
                    f" KEY settings_updated_at (updated_at)) {_options(SETTINGS)}",
                ),
                creates=True,
            ),
            Change(
                AUDIT_LOGS,
                (
                    "CREATE TABLE audit_logs (id BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,"
                    f" created_at {_MOMENT}, actor VARCHAR(255), action VARCHAR(120) NOT NULL,"
                    " resource_type VARCHAR(120), resource_id VARCHAR(255), details JSON, ip_address VARCHAR(45),"
                    " KEY audit_logs_created_at (created_at, id), KEY audit_logs_actor (actor, created_at),"
                    " KEY audit_logs_action (action, created_at),"
                    f" KEY audit_logs_resource (resource_type, resource_id, created_at)) {_options(AUDIT_LOGS)}",
                ),
                creates=True,
            ),
        ),
    ),
)


class _Target:
    def __init__(self, session: Session) -> None:
        self._session = session

    def present(self) -> Mapping[str, bool]:
        rows = self._session.rows(
            "SELECT table_name, table_type = 'BASE TABLE' AND table_comment LIKE %s FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name IN %s",
            f"{MARK}%", TABLES,
        )  # fmt: skip
        return {str(name): bool(ours) for name, ours in rows}

    def recorded(self) -> set[str]:
        return {str(row[0]) for row in self._session.rows("SELECT version FROM schema_migrations")}

    def run(self, statement: str) -> None:
        self._session.do(statement)

    def record(self, version: str, description: str) -> None:
        self._session.do(
            "INSERT IGNORE INTO schema_migrations (version, description) VALUES (%s, %s)", version, description
        )


def run(
    endpoint: Endpoint, names: TenantNames, password: str, versions: Sequence[Version[str]] = VERSIONS
) -> Bootstrapped:
    """As the tenant."""
    with connect(endpoint, Credentials(names.login, password, names.database), timeout_seconds=10) as session:
        return bootstrap.apply(_Target(session), versions)
