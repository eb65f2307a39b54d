"""How to connect to a MariaDB or MySQL database. Pure text; every value is quoted for the place where it stands."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from projects.domain import ConnectionInfo


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the two products' clients differ."""

    cli: str
    cli_options: tuple[str, ...]  # without TLS
    cli_tls_options: tuple[str, ...]
    jdbc_scheme: str
    jdbc_library: str
    jdbc_options: tuple[tuple[str, str], ...]  # without TLS
    jdbc_tls_options: tuple[tuple[str, str], ...]
    pymysql: str  # what pip installs
    node: str


MARIADB = Dialect(
    cli="mariadb",
    # From 11.4 on this client wants a server with a certificate, unless told otherwise.
    cli_options=("--skip-ssl-verify-server-cert",),
    cli_tls_options=("--ssl", "--skip-ssl-verify-server-cert"),
    jdbc_scheme="mariadb",
    jdbc_library="org.mariadb.jdbc:mariadb-java-client",
    jdbc_options=(("sslMode", "disable"),),
    jdbc_tls_options=(("sslMode", "trust"),),
    pymysql="pymysql",
    node="""// npm install mariadb
import mariadb from "mariadb";

const connection = await mariadb.createConnection({{
  host: {host}, port: {port}, user: {user}, password: {password}, database: {database},{tls}
}});
console.log((await connection.query("select version() as version"))[0]);
await connection.end();""",
)
MYSQL = Dialect(
    cli="mysql",
    cli_options=("--ssl-mode=PREFERRED", "--get-server-public-key"),
    cli_tls_options=("--ssl-mode=REQUIRED",),
    jdbc_scheme="mysql",
    jdbc_library="com.mysql:mysql-connector-j",
    jdbc_options=(("sslMode", "PREFERRED"), ("allowPublicKeyRetrieval", "true")),
    jdbc_tls_options=(("sslMode", "REQUIRED"),),
    pymysql='"pymysql[rsa]"',  # its way to log in encrypts the password itself where there is no TLS
    node="""// npm install mysql2
import mysql from "mysql2/promise";

const connection = await mysql.createConnection({{
  host: {host}, port: {port}, user: {user}, password: {password}, database: {database},{tls}
}});
console.log((await connection.query("select version() as version"))[0][0]);
await connection.end();""",
)


def _percent(value: str) -> str:
    return quote(value, safe="")


def _host(info: ConnectionInfo) -> str:
    return f"[{info.host}]" if ":" in info.host else info.host


def _uri(info: ConnectionInfo, scheme: str = "mysql") -> str:
    login = f"{_percent(info.username)}:{_percent(info.password)}"
    return f"{scheme}://{login}@{_host(info)}:{info.port}/{_percent(info.database)}"


def urls(dialect: Dialect, info: ConnectionInfo) -> Mapping[str, str]:
    options = dialect.jdbc_tls_options if info.tls else dialect.jdbc_options
    query = urlencode({"user": info.username, "password": info.password, **dict(options)}, quote_via=quote, safe="")
    place = f"{_host(info)}:{info.port}/{_percent(info.database)}"
    return {"uri": _uri(info), "jdbc_url": f"jdbc:{dialect.jdbc_scheme}://{place}?{query}"}


def env(dialect: Dialect, info: ConnectionInfo) -> Mapping[str, str]:
    """MYSQL_HOST, MYSQL_TCP_PORT and MYSQL_PWD are read by the clients themselves."""
    return {
        "DATABASE_URL": _uri(info),
        "MYSQL_HOST": info.host,
        "MYSQL_TCP_PORT": str(info.port),
        "MYSQL_DATABASE": info.database,
        "MYSQL_USER": info.username,
        "MYSQL_PWD": info.password,
    }


def _literal(value: str) -> str:
    """A double-quoted literal that JavaScript, Go, Java, Python and YAML read alike."""
    return json.dumps(value)


def _compose(value: str) -> str:
    return _literal(value).replace("$", "$$")


def snippets(dialect: Dialect, info: ConnectionInfo) -> Mapping[str, str]:
    uri, jdbc = _uri(info), urls(dialect, info)["jdbc_url"]
    words = [
        dialect.cli, *(dialect.cli_tls_options if info.tls else dialect.cli_options), f"--host={info.host}",
        f"--port={info.port}", "--protocol=tcp", f"--user={info.username}", info.database,
    ]  # fmt: skip
    tls_option = ', "ssl": {"check_hostname": False}' if info.tls else ""
    return {
        "cli": f"MYSQL_PWD={shlex.quote(info.password)} {shlex.join(words)}",
        "env": "\n".join(f"{name}={shlex.quote(value)}" for name, value in env(dialect, info).items()),
        "django": f"""# settings.py, with mysqlclient installed: pip install mysqlclient
DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.mysql",
        "HOST": {_literal(info.host)},
        "PORT": {info.port},
        "NAME": {_literal(info.database)},
        "USER": {_literal(info.username)},
        "PASSWORD": {_literal(info.password)},
        "OPTIONS": {{"charset": "utf8mb4"{', "ssl_mode": "REQUIRED"' if info.tls else ""}}},
    }}
}}""",
        "sqlalchemy": f"""# pip install sqlalchemy {dialect.pymysql}
from sqlalchemy import create_engine, text

engine = create_engine(
    {_literal(_uri(info, "mysql+pymysql") + "?charset=utf8mb4")},
    connect_args={{"connect_timeout": 10{tls_option}}},
)
with engine.connect() as connection:
    print(connection.execute(text("select version()")).scalar())""",
        "node": dialect.node.format(
            host=_literal(info.host), port=info.port, user=_literal(info.username), password=_literal(info.password),
            database=_literal(info.database), tls="\n  ssl: { rejectUnauthorized: false }," if info.tls else "",
        ),
        "prisma": f"""# .env
DATABASE_URL={_literal(uri)}

// schema.prisma
datasource db {{
  provider = "mysql"
  url      = env("DATABASE_URL")
}}""",
        "go": f"""// go get github.com/go-sql-driver/mysql
package main

import (
	"database/sql"
	"fmt"

	"github.com/go-sql-driver/mysql"
)

func main() {{
	config := mysql.NewConfig()
	config.Net, config.Addr = "tcp", {_literal(f"{_host(info)}:{info.port}")}
	config.User, config.Passwd = {_literal(info.username)}, {_literal(info.password)}
	config.DBName, config.TLSConfig = {_literal(info.database)}, "{"skip-verify" if info.tls else "preferred"}"
	db, err := sql.Open("mysql", config.FormatDSN())
	if err != nil {{
		panic(err)
	}}
	defer db.Close()
	var version string
	if err := db.QueryRow("select version()").Scan(&version); err != nil {{
		panic(err)
	}}
	fmt.Println(version)
}}""",
        "jdbc": f"""// {dialect.jdbc_library}
var connection = java.sql.DriverManager.getConnection({_literal(jdbc)});""",
        "compose": f"""services:
  app:
    image: your-app
    environment:
      DATABASE_URL: {_compose(uri)}""",
    }  # fmt: skip
