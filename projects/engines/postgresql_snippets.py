"""How to connect to a PostgreSQL database. Pure text; every value is quoted for the place where it stands.

With TLS, what works at once (URI, command line, .env) encrypts and believes whoever answers; the programs check the
server, by the file of the install's CA beside them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from projects.domain import CA_FILE, ConnectionInfo
from projects.engines.snippet_words import CA_FROM, compose, env_lines, host, literal, percent, prisma


def _sslmode(info: ConnectionInfo) -> str:
    # Said explicitly: Go's drivers ask for TLS unless told otherwise, libpq falls back silently.
    return "require" if info.tls else "disable"


def _options(info: ConnectionInfo, ca: str = "") -> str:
    return f"sslmode=verify-full&sslrootcert={ca}" if info.tls and ca else f"sslmode={_sslmode(info)}"


def _uri(info: ConnectionInfo, scheme: str = "postgresql", *, with_password: bool = True, ca: str = "") -> str:
    """`ca`: with TLS the server is checked, by that file."""
    login = percent(info.username) + (f":{percent(info.password)}" if with_password else "")
    return f"{scheme}://{login}@{host(info)}:{info.port}/{percent(info.database)}?{_options(info, ca)}"


def _verified(info: ConnectionInfo) -> str:
    """The strictest way: nobody in between, nobody else's server."""
    return f"""# {CA_FROM}
PGPASSWORD={shlex.quote(info.password)} psql {shlex.quote(_uri(info, with_password=False, ca=CA_FILE))}"""


def _jdbc(info: ConnectionInfo, *, ca: str = "") -> str:
    login = urlencode({"user": info.username, "password": info.password}, quote_via=quote, safe="")
    return f"jdbc:postgresql://{host(info)}:{info.port}/{percent(info.database)}?{login}&{_options(info, ca)}"


def urls(info: ConnectionInfo) -> Mapping[str, str]:
    return {"uri": _uri(info), "jdbc_url": _jdbc(info)}


def env(info: ConnectionInfo) -> Mapping[str, str]:
    return {
        "DATABASE_URL": _uri(info),
        "PGHOST": info.host,
        "PGPORT": str(info.port),
        "PGDATABASE": info.database,
        "PGUSER": info.username,
        "PGPASSWORD": info.password,
        "PGSSLMODE": _sslmode(info),
    }


def _node_options(info: ConnectionInfo) -> str:
    """`pg` always checks the certificate, whatever `sslmode` says: it needs the CA, and no `sslmode` beside it."""
    if not info.tls:
        return f"{{ connectionString: {literal(_uri(info))} }}"
    bare = _uri(info).partition("?")[0]
    return f"""{{
  connectionString: {literal(bare)},
  ssl: {{ ca: readFileSync("{CA_FILE}", "utf8") }},
}}"""


def _node_client(info: ConnectionInfo) -> str:
    reads = f'// {CA_FROM}\nimport {{ readFileSync }} from "node:fs";\n' if info.tls else ""
    return f"""{reads}import pg from "pg";

const client = new pg.Client({_node_options(info)});"""


def snippets(info: ConnectionInfo) -> Mapping[str, str]:
    checked = _uri(info, ca=CA_FILE)
    note = f"{CA_FROM}\n" if info.tls else ""
    trust = f', "sslrootcert": "{CA_FILE}"' if info.tls else ""
    verified = {"verified": _verified(info)} if info.tls else {}
    return verified | {
        "cli": f"PGPASSWORD={shlex.quote(info.password)} psql {shlex.quote(_uri(info, with_password=False))}",
        "env": env_lines(env(info)),
        "django": f"""# settings.py, with psycopg installed: pip install "psycopg[binary]"
{note and "# " + note}DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.postgresql",
        "HOST": {literal(info.host)},
        "PORT": {info.port},
        "NAME": {literal(info.database)},
        "USER": {literal(info.username)},
        "PASSWORD": {literal(info.password)},
        "OPTIONS": {{"sslmode": "{"verify-full" if info.tls else "disable"}"{trust}}},
    }}
}}""",
        "sqlalchemy": f"""# pip install sqlalchemy "psycopg[binary]"
{note and "# " + note}from sqlalchemy import create_engine, text

engine = create_engine({literal(_uri(info, "postgresql+psycopg", ca=CA_FILE))})
with engine.connect() as connection:
    print(connection.execute(text("select version()")).scalar())""",
        "node": f"""// npm install pg
{_node_client(info)}
await client.connect();
console.log((await client.query("select version()")).rows[0]);
await client.end();""",
        "prisma": prisma(
            info,
            provider="postgresql",
            url=_uri(info),
            adapter="@prisma/adapter-pg",
            name="PrismaPg",
            options=_node_options(info),
        ),
        "go": f"""// go get github.com/jackc/pgx/v5
{note and "// " + note}package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

func main() {{
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, {literal(checked)})
	if err != nil {{
		panic(err)
	}}
	defer conn.Close(ctx)
	var version string
	if err := conn.QueryRow(ctx, "select version()").Scan(&version); err != nil {{
		panic(err)
	}}
	fmt.Println(version)
}}""",
        "jdbc": f"""// org.postgresql:postgresql
{note and "// " + note}var connection = java.sql.DriverManager.getConnection({literal(_jdbc(info, ca=CA_FILE))});""",
        "compose": compose(info, {"DATABASE_URL": _uri(info, ca="{ca}")}),
    }
