"""How to connect to a PostgreSQL database. Pure text; every value is quoted for the place where it stands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from urllib.parse import quote, urlencode

from projects.domain import CA_FILE, ConnectionInfo


def _percent(value: str) -> str:
    return quote(value, safe="")


def _host(info: ConnectionInfo) -> str:
    return f"[{info.host}]" if ":" in info.host else info.host


def _sslmode(info: ConnectionInfo) -> str:
    # Said explicitly: Go's drivers ask for TLS unless told otherwise, libpq falls back silently.
    return "require" if info.tls else "disable"


def _uri(info: ConnectionInfo, scheme: str = "postgresql", *, with_password: bool = True) -> str:
    login = _percent(info.username) + (f":{_percent(info.password)}" if with_password else "")
    return f"{scheme}://{login}@{_host(info)}:{info.port}/{_percent(info.database)}?sslmode={_sslmode(info)}"


def _verified(info: ConnectionInfo) -> str:
    """The strictest way: nobody in between, nobody else's server."""
    uri = _uri(info, with_password=False).replace("sslmode=require", f"sslmode=verify-full&sslrootcert={CA_FILE}")
    return f"""# {CA_FILE} is this install's certification authority: download it here, or by GET /api/v1/ca/
PGPASSWORD={shlex.quote(info.password)} psql {shlex.quote(uri)}"""


def urls(info: ConnectionInfo) -> Mapping[str, str]:
    jdbc = f"jdbc:postgresql://{_host(info)}:{info.port}/{_percent(info.database)}?" + urlencode(
        {"user": info.username, "password": info.password, "sslmode": _sslmode(info)}, quote_via=quote, safe=""
    )
    return {"uri": _uri(info), "jdbc_url": jdbc}


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


def _literal(value: str) -> str:
    """A double-quoted literal that JavaScript, Go, Java, Python and YAML read alike."""
    return json.dumps(value)


def _compose(value: str) -> str:
    return _literal(value).replace("$", "$$")


def _node_client(info: ConnectionInfo) -> str:
    """`pg` always checks the certificate, whatever `sslmode` says: it needs the CA, and no `sslmode` beside it."""
    if not info.tls:
        return f"""import pg from "pg";

const client = new pg.Client({{ connectionString: {_literal(_uri(info))} }});"""
    bare = _uri(info).partition("?")[0]
    return f"""// {CA_FILE}: download it in the Connect dialog, or by GET /api/v1/ca/
import {{ readFileSync }} from "node:fs";
import pg from "pg";

const client = new pg.Client({{
  connectionString: {_literal(bare)},
  ssl: {{ ca: readFileSync("{CA_FILE}", "utf8") }},
}});"""


def snippets(info: ConnectionInfo) -> Mapping[str, str]:
    uri, jdbc = _uri(info), urls(info)["jdbc_url"]
    verified = {"verified": _verified(info)} if info.tls else {}
    return verified | {
        "cli": f"PGPASSWORD={shlex.quote(info.password)} psql {shlex.quote(_uri(info, with_password=False))}",
        "env": "\n".join(f"{name}={shlex.quote(value)}" for name, value in env(info).items()),
        "django": f"""# settings.py, with psycopg installed: pip install "psycopg[binary]"
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.postgresql",
        "HOST": {_literal(info.host)},
        "PORT": {info.port},
        "NAME": {_literal(info.database)},
        "USER": {_literal(info.username)},
        "PASSWORD": {_literal(info.password)},
        "OPTIONS": {{"sslmode": "{_sslmode(info)}"}},
    }}
}}""",
        "sqlalchemy": f"""# pip install sqlalchemy "psycopg[binary]"
from sqlalchemy import create_engine, text

engine = create_engine({_literal(_uri(info, "postgresql+psycopg"))})
with engine.connect() as connection:
    print(connection.execute(text("select version()")).scalar())""",
        "node": f"""// npm install pg
{_node_client(info)}
await client.connect();
console.log((await client.query("select version()")).rows[0]);
await client.end();""",
        "prisma": f"""# .env
DATABASE_URL={_literal(uri)}

// schema.prisma
datasource db {{
  provider = "postgresql"
  url      = env("DATABASE_URL")
}}""",
        "go": f"""// go get github.com/jackc/pgx/v5
package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

func main() {{
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, {_literal(uri)})
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
var connection = java.sql.DriverManager.getConnection({_literal(jdbc)});""",
        "compose": f"""services:
  app:
    image: your-app
    environment:
      DATABASE_URL: {_compose(uri)}""",
    }
