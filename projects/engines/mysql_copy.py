"""Copies of a MariaDB or MySQL database: the tools' commands, and as whom they act.

The dump is SQL of the product's own dump program, with one change: it names neither its database nor who made what in
it, so that it can become a database of another name and another login's. Objects belong to who restores them, so that is
the tenant's own login, lent to the tool for a while: whatever is in a dump does no more than the tenant could do itself
(rule 18), and no right to make things in another's name is needed. Who dumps only reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from projects.domain import Command, Credentials, Endpoint, EngineError, TenantNames
from projects.engines import framing, mysql_floats, mysql_prepared
from projects.engines.admin import EngineAdmin
from projects.engines.mysql_session import ANYWHERE, Session, name, pattern

TOOL_CONNECTIONS = 8
PACKET = "--max-allowed-packet=1G"  # the clients' own limit; what counts is the server's
PACKET_BYTES = 64 << 20  # the server's: of a statement, and so of a row as a dump has it, which is twice a BLOB's size
_MOST_PACKET_BYTES = 1 << 30  # that any server takes
_ID = '(`([^`]|``)*`|"([^"]|"")*")'  # as the server spells names in the definer's own sql_mode
_WHO = f"DEFINER={_ID}(@{_ID})? ?"
_SCAN_SECONDS = 8.0

# What dumps begin with, so that routines and tables without a charset of their own get the one that they had.
_DATABASE = (
    "SELECT CONCAT('ALTER DATABASE CHARACTER SET ', default_character_set_name, ' COLLATE ', default_collation_name{more},"
    " ';') FROM information_schema.schemata WHERE schema_name = DATABASE()"
)
# `sh -c DUMP sh <edits for sed> <client> <dump program> <first statement> argument …`: what is said of the database, then
# three runs: routines (views use them), tables with rows and views, what acts by itself; what puts FLOAT values right stands
# before the last. The first failure ends it and is its exit code. By the environment come: the option file, options of TLS,
# the database, and what the client's sessions begin with.
_DUMP = f"""set -u
edits=$1 client=$2 program=$3 first=$4 floats=$5
shift 5
rm -f failed queries
run() {{
  tool=$1
  shift
  [ -e failed ] || "$tool" "--defaults-file=$OPTIONS" $TLS "$@" "$DATABASE" || echo $? >failed
}}
ask() {{
  run "$client" --batch --raw --skip-column-names --default-character-set=utf8mb4 "--init-command=$BEGIN" "$@"
}}
{{
  ask --execute="$first"
  run "$program" "$@" --no-data --no-create-info --skip-triggers --routines --skip-events
  run "$program" "$@" --skip-triggers --skip-routines --skip-events
  ask --execute="$floats" >queries
  if [ -s queries ]; then
    echo "{mysql_floats.BEFORE}"
    ask --binary-mode <queries
    echo "{mysql_floats.AFTER}"
  fi
  run "$program" "$@" --no-data --no-create-info --triggers --skip-routines --events
}} | LC_ALL=C sed -E "$edits" || echo $? >>failed
[ ! -e failed ] || exit "$(head -n 1 failed)"
"""
# MariaDB's client shows the whole statement that failed, with the rows in it: only what the server said of it goes on.
_RESTORE = """set -u
client=$1
shift
rm -f code
{ "$client" "--defaults-file=$OPTIONS" $TLS "--init-command=$BEGIN" "$@" "$DATABASE" 2>&1 >/dev/null; echo $? >code; } |
  LC_ALL=C grep -a -E '^(ERROR |mysql: |mariadb: )' >&2
exit "$(cat code)"
"""


def dump(
    place: Endpoint, credentials: Credentials, *, mariadb: bool, programs: tuple[str, str], arguments: Sequence[str]
) -> Command:
    """`programs`: the client and the dump program. The database's name goes by the environment."""
    if not re.fullmatch(r"\w+", credentials.database):
        raise ValueError("not a name of a database that was made here")
    own = f"`{credentials.database}`"
    edits = (
        "/^[(]/b",  # rows, which are most of it
        "/^INSERT /b",
        f"/^DELIMITER ;;$/{{\nn\ns/^(CREATE (OR REPLACE )?){_WHO}/\\1/\n}}",
        f"s/^(\\/\\*!50003 CREATE\\*\\/) \\/\\*!50017 {_WHO}\\*\\//\\1/",
        f"s/^(\\/\\*!50106 CREATE\\*\\/) \\/\\*!50117 {_WHO}\\*\\//\\1/",
        f"s/^\\/\\*!50013 {_WHO}/\\/*!50013 /",
        f"s/^ALTER DATABASE {own} CHARACTER SET/ALTER DATABASE CHARACTER SET/",
        # MariaDB spells the sequence of a default with its database.
        f"/^  `/s/nextval\\({own}\\./nextval(/g",
    )
    first = _DATABASE.replace("{more}", ", ' COMMENT ', QUOTE(schema_comment)" if mariadb else "")
    argv = (
        "sh", "-c", _DUMP, "novastack-dump", "\n".join(edits), *programs, first, mysql_floats.LIST,
        "--single-transaction", "--quick", "--skip-add-locks", "--default-character-set=utf8mb4", "--hex-blob",
        "--tz-utc", "--comments", "--skip-dump-date", PACKET, *arguments,
    )  # fmt: skip
    return command(place, credentials, argv, mariadb=mariadb)


def restore(
    place: Endpoint, credentials: Credentials, *, mariadb: bool, program: str, arguments: Sequence[str] = ()
) -> Command:
    argv = framing.unframed(
        "sh", "-c", _RESTORE, "novastack-client", program, "--batch", "--binary-mode", "--comments", "--local-infile=0",
        "--skip-reconnect", "--default-character-set=utf8mb4", PACKET, *arguments,
    )  # fmt: skip
    return command(place, credentials, argv, mariadb=mariadb)


def command(place: Endpoint, credentials: Credentials, argv: tuple[str, ...], *, mariadb: bool) -> Command:
    lines = {
        "host": place.host, "port": str(place.port), "protocol": "TCP", "user": credentials.username,
        "password": credentials.password,
    }  # fmt: skip
    options = "".join(f'{key}="{_escaped(value)}"\n' for key, value in lines.items())
    secrets = {"client.cnf": f"[client]\n{options}".encode()}
    # Every certificate of this install is for the server's own machine as well. MariaDB's clients look at the authority only
    # together with the name.
    if mariadb:
        tls = "--ssl --ssl-verify-server-cert --ssl-ca={secret:ca}"
        tls = tls if place.ca_pem else "--loose-disable-ssl-verify-server-cert"
    else:
        tls = "--ssl-mode=VERIFY_CA --ssl-ca={secret:ca}" if place.ca_pem else "--ssl-mode=PREFERRED"
    if place.ca_pem:
        secrets["ca"] = place.ca_pem.encode()
    limit = "max_statement_time" if mariadb else "max_execution_time"  # pools have one
    env = {
        "OPTIONS": "{secret:client.cnf}", "TLS": tls, "DATABASE": credentials.database,
        "BEGIN": f"SET SESSION {limit} = 0, lock_wait_timeout = 60, time_zone = '+00:00'",
    }  # fmt: skip
    return Command(argv, env, secrets)


def _escaped(value: str) -> str:
    """A value between double quotes in an option file: only the backslash means something there."""
    if "\n" in value or '"' in value:
        raise ValueError("a value can't be written into an option file")
    return value.replace("\\", "\\\\")


class MySQLFamilyCopies(EngineAdmin):
    """Part of `MySQLFamilyAdmin`."""

    _session: Session
    identified: Callable[[str], str]

    def _logins(self, names: TenantNames) -> list[str]:
        raise NotImplementedError

    def _end_all(self, username: str, seconds: float = 5) -> None:
        raise NotImplementedError

    # What lets a login see the text of routines that are not its own.
    routine_right: ClassVar[str]

    def obstacles(self, names: TenantNames, *, renamed: bool = False) -> list[str]:
        self._session.bound(_SCAN_SECONDS + 2)
        found = []
        if pending := mysql_prepared.count(self._session, names.database):
            found.append(f"{pending} prepared transactions: commit them or roll them back")
        owner = f"{names.login}@{ANYWHERE}"
        things = self._things(names.database)
        foreign = sorted({f"{kind} {thing} ({definer})" for kind, thing, definer, _ in things if definer != owner})
        if foreign:
            found.append(f"what another login made, here {_some(foreign)}: let {names.login} make it again")
        if renamed:
            found += self._named_inside(names.database, things)
        if unequal := mysql_floats.beyond_help(self._session, names.database):
            found.append(
                f"digits of FLOAT values, of which dumps tell six, in {_some(unequal)}: make the columns DOUBLE, or give the"
                " table a primary key (and no history)"
            )
        return found

    def renaming_obstacles(self, names: TenantNames) -> list[str]:
        self._session.bound(_SCAN_SECONDS + 2)
        return self._named_inside(names.database, self._things(names.database))

    def _named_inside(self, database: str, things: Sequence[tuple[str, str, str, str]]) -> list[str]:
        own = re.compile(rf"(?<![\w$`])(?:`{database}`|{database})\s*\.")
        # The server itself spells a view's tables with their database; a function only where that was written.
        called = re.compile(rf"`{database}`\.`(?:[^`]|``)*`\(")
        saying = sorted(
            {f"{kind} {thing}" for kind, thing, _, text in things if (called if kind == "view" else own).search(text)}
        )
        if not saying:
            return []
        return [f"the database's name, which becomes another one, in the text of {_some(saying)}: leave it out there"]

    def _things(self, database: str) -> list[tuple[str, str, str, str]]:
        """(kind, name, definer, text) of all that acts in somebody's name."""
        rows = self._session.rows(
            "SELECT 'view', table_name, definer, view_definition FROM information_schema.views WHERE table_schema = %s"
            " UNION ALL SELECT LOWER(routine_type), routine_name, definer, routine_definition"
            " FROM information_schema.routines WHERE routine_schema = %s"
            " UNION ALL SELECT 'trigger', trigger_name, definer, action_statement FROM information_schema.triggers"
            " WHERE trigger_schema = %s"
            " UNION ALL SELECT 'event', event_name, definer, event_definition FROM information_schema.events"
            " WHERE event_schema = %s",
            database, database, database, database,
        )  # fmt: skip
        return [(str(kind), str(thing), str(definer), str(text or "")) for kind, thing, definer, text in rows]

    def quiet(self, names: TenantNames, *, quiet: bool) -> None:
        """The event scheduler is the server's; on a pool it never runs, so nobody asks there."""
        # Until the next start, which allows it again.
        self._session.do(f"SET GLOBAL event_scheduler = {'OFF' if quiet else 'ON'}")

    def take_large(self, *, large: bool) -> None:
        self._session.do(f"SET GLOBAL max_allowed_packet = {_MOST_PACKET_BYTES if large else PACKET_BYTES}")

    def events_of(self, names: TenantNames) -> list[str]:
        return [event for event, _ in self._awake(names)]

    def rest_events(self, names: TenantNames, events: Sequence[str]) -> None:
        """Each stays its definer's: who alters one without a word about that becomes it."""
        wanted = set(events)
        for event, definer in self._awake(names):
            if event in wanted:
                login, _, host = definer.rpartition("@")
                thing = f"{name(names.database)}.{name(event)}"
                self._session.do(f"ALTER DEFINER = %s@%s EVENT {thing} DISABLE", login, host)

    def _awake(self, names: TenantNames) -> list[tuple[str, str]]:
        """(event, definer) of all that are enabled."""
        rows = self._session.rows(
            "SELECT event_name, definer FROM information_schema.events WHERE event_schema = %s AND status = 'ENABLED'"
            " ORDER BY 1",
            names.database,
        )  # fmt: skip
        return [(str(event), str(definer)) for event, definer in rows]

    def admit_tool(self, names: TenantNames, username: str, password: str) -> None:
        clause = f"{self.identified(password)} WITH MAX_USER_CONNECTIONS {TOOL_CONNECTIONS}"
        self._session.do(f"CREATE USER IF NOT EXISTS %s@%s {clause}", username, ANYWHERE)
        self._session.do(f"ALTER USER %s@%s {clause} ACCOUNT UNLOCK", username, ANYWHERE)
        # To read, and to be told what there is. EXECUTE: columns of views that call functions.
        self._session.do(
            f"GRANT SELECT, SHOW VIEW, TRIGGER, EVENT, EXECUTE ON {name(pattern(names.database))}.* TO %s@%s",
            username, ANYWHERE,
        )  # fmt: skip
        self._session.do(f"GRANT {self.routine_right} TO %s@%s", username, ANYWHERE)

    def admit_part(self, names: TenantNames, username: str, password: str, places: Sequence[str]) -> None:
        """It reads everything, and writes nowhere but in these tables: there are rights to a table before it is there."""
        self.admit_tool(names, username, password)
        for table in places:
            rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, REFERENCES"
            self._session.do(f"GRANT {rights} ON {name(names.database)}.{name(table)} TO %s@%s", username, ANYWHERE)

    def dismiss_tool(self, names: TenantNames, username: str) -> None:
        if self._session.rows("SELECT 1 FROM mysql.user WHERE User = %s AND Host = %s", username, ANYWHERE):
            self._session.do("ALTER USER %s@%s ACCOUNT LOCK", username, ANYWHERE)
            self._end_all(username)
            self._session.do("DROP USER IF EXISTS %s@%s", username, ANYWHERE)

    def admit_restorer(self, names: TenantNames, username: str, password: str) -> str:
        """The tenant's own login, with that password for now."""
        self._session.do(f"ALTER USER %s@%s {self.identified(password)} ACCOUNT UNLOCK", names.login, ANYWHERE)
        return names.login

    def dismiss_restorer(self, names: TenantNames, username: str) -> None:
        self.lock_tenant(names, locked=True)

    def around(self, names: TenantNames) -> dict[str, Any]:
        """Rights that an operator gave besides those that every tenant has."""
        grants = [str(row[0]) for row in self._session.rows("SHOW GRANTS FOR %s@%s", names.login, ANYWHERE)]
        usual = f" ON `{pattern(names.database)}`.* TO "
        # The first line says that there is a login, with what is kept of its password.
        more = (grant for grant in grants if usual not in grant and not grant.startswith("GRANT USAGE ON *.* TO "))
        return {"grants": sorted(more)}

    def put_around(self, names: TenantNames, around: dict[str, Any]) -> None:
        if around["grants"]:
            raise EngineError("the login has rights outside of its database: an operator has to take them back first")

    def password_hashes(self, names: TenantNames) -> dict[str, str]:
        rows = self._session.rows(
            "SELECT User, plugin, HEX(authentication_string) FROM mysql.user WHERE Host = %s AND User IN %s",
            ANYWHERE, self._logins(names),
        )  # fmt: skip
        return {str(user): f"{plugin}:{verifier}" for user, plugin, verifier in rows if verifier}

    def put_password_hashes(self, names: TenantNames, hashes: Mapping[str, str]) -> None:
        for user, kept in hashes.items():
            plugin, _, verifier = kept.partition(":")
            if not re.fullmatch(r"\w+", plugin) or not re.fullmatch(r"[0-9A-F]+", verifier):
                raise EngineError("what was kept of a password is damaged")
            self._session.do(f"ALTER USER %s@%s {self._by_hash(plugin, verifier)}", user, ANYWHERE)

    def _by_hash(self, plugin: str, verifier: str) -> str:
        """The clause that sets a password by what `password_hashes` says (hex)."""
        raise NotImplementedError


def _some(things: Sequence[str]) -> str:
    shown = ", ".join(things[:3])
    return shown if len(things) <= 3 else f"{shown} and {len(things) - 3} more"
