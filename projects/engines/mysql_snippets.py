"""How to connect to a MariaDB or MySQL database. Pure text; every value is quoted for the place where it stands.

With TLS, what works at once (URI, command line, .env) encrypts and believes whoever answers; the programs check the
server, by the file of the install's CA beside them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from projects.domain import CA_FILE, ConnectionInfo
from projects.engines.snippet_words import CA_FROM, compose, env_lines, host, literal, percent, prisma


@dataclass(frozen=True, slots=True)
class Dialect:
    """Where the two products' clients differ."""

    cli: str
    cli_options: tuple[str, ...]  # without TLS
    cli_tls_options: tuple[str, ...]
    cli_verified_options: tuple[str, ...]
    jdbc_scheme: str
    jdbc_library: str
    jdbc_options: tuple[tuple[str, str], ...]  # without TLS
    jdbc_tls_options: tuple[tuple[str, str], ...]
    jdbc_verified_options: tuple[tuple[str, str], ...]
    jdbc_note: str  # what has to be done for these before
    pymysql: str  # what pip installs without TLS
    node: str
    node_tls: str
    adapter_option: str = ""  # without TLS


MARIADB = Dialect(
    cli="mariadb",
    # From 11.4 on this client wants a server with a certificate, unless told otherwise.
    cli_options=("--skip-ssl-verify-server-cert",),
    cli_tls_options=("--ssl", "--skip-ssl-verify-server-cert"),
    cli_verified_options=(f"--ssl-ca={CA_FILE}", "--ssl-verify-server-cert"),
    jdbc_scheme="mariadb",
    jdbc_library="org.mariadb.jdbc:mariadb-java-client",
    jdbc_options=(("sslMode", "disable"),),
    jdbc_tls_options=(("sslMode", "trust"),),
    jdbc_verified_options=(("sslMode", "verify-full"), ("serverSslCert", CA_FILE)),
    jdbc_note="",
    pymysql="pymysql",
    node_tls='{ ca: readFileSync("novastack-ca.pem", "utf8") }',
    node="""// npm install mariadb
{reads}import mariadb from "mariadb";

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
    cli_verified_options=(f"--ssl-ca={CA_FILE}", "--ssl-mode=VERIFY_IDENTITY"),
    jdbc_scheme="mysql",
    jdbc_library="com.mysql:mysql-connector-j",
    jdbc_options=(("sslMode", "PREFERRED"), ("allowPublicKeyRetrieval", "true")),
    jdbc_tls_options=(("sslMode", "REQUIRED"),),
    # The driver reads no PEM.
    jdbc_verified_options=(
        ("sslMode", "VERIFY_IDENTITY"),
        ("trustCertificateKeyStoreUrl", "file:novastack-ca.p12"),
        ("trustCertificateKeyStoreType", "PKCS12"),
        ("trustCertificateKeyStorePassword", "novastack"),
    ),
    jdbc_note=f"""// Once: keytool -importcert -noprompt -alias novastack -file {CA_FILE} \\
//         -keystore novastack-ca.p12 -storetype PKCS12 -storepass novastack
""",
    pymysql='"pymysql[rsa]"',  # its way to log in encrypts the password itself where there is no TLS
    node_tls='{ ca: readFileSync("novastack-ca.pem", "utf8"), verifyIdentity: true }',
    adapter_option="allowPublicKeyRetrieval: true",
    node="""// npm install mysql2
{reads}import mysql from "mysql2/promise";

const connection = await mysql.createConnection({{
  host: {host}, port: {port}, user: {user}, password: {password}, database: {database},{tls}
}});
console.log((await connection.query("select version() as version"))[0][0]);
await connection.end();""",
)


def _uri(info: ConnectionInfo, scheme: str = "mysql") -> str:
    login = f"{percent(info.username)}:{percent(info.password)}"
    return f"{scheme}://{login}@{host(info)}:{info.port}/{percent(info.database)}"


def _jdbc(dialect: Dialect, info: ConnectionInfo, options: tuple[tuple[str, str], ...]) -> str:
    query = urlencode({"user": info.username, "password": info.password, **dict(options)}, quote_via=quote, safe="")
    return f"jdbc:{dialect.jdbc_scheme}://{host(info)}:{info.port}/{percent(info.database)}?{query}"


def urls(dialect: Dialect, info: ConnectionInfo) -> Mapping[str, str]:
    options = dialect.jdbc_tls_options if info.tls else dialect.jdbc_options
    return {"uri": _uri(info), "jdbc_url": _jdbc(dialect, info, options)}


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


def _client(dialect: Dialect, info: ConnectionInfo, options: tuple[str, ...]) -> str:
    words = [
        dialect.cli, *options, f"--host={info.host}", f"--port={info.port}", "--protocol=tcp", f"--user={info.username}",
        info.database,
    ]  # fmt: skip
    return f"MYSQL_PWD={shlex.quote(info.password)} {shlex.join(words)}"


def _adapter_options(dialect: Dialect, info: ConnectionInfo) -> str:
    """Of Prisma's adapter, which is made of MariaDB's driver, for MySQL too."""
    last = f'ssl: {{ ca: readFileSync("{CA_FILE}", "utf8") }}' if info.tls else dialect.adapter_option
    return f"""{{
  host: {literal(info.host)}, port: {info.port}, user: {literal(info.username)}, password: {literal(info.password)},
  database: {literal(info.database)},{" " if last else ""}{last}
}}"""


def _go(info: ConnectionInfo) -> str:
    """The driver knows the CA by a name that it was given before."""
    imports = ['"database/sql"', '"fmt"']
    trust = ""
    if info.tls:
        imports = ['"crypto/tls"', '"crypto/x509"', *imports, '"os"']
        trust = f"""
	ca, err := os.ReadFile("{CA_FILE}")
	if err != nil {{
		panic(err)
	}}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	if err := mysql.RegisterTLSConfig("novastack", &tls.Config{{RootCAs: roots}}); err != nil {{
		panic(err)
	}}"""
    lines = "\n\t".join(imports)
    note = f"// {CA_FROM}\n" if info.tls else ""
    return f"""// go get github.com/go-sql-driver/mysql
{note}package main

import (
	{lines}

	"github.com/go-sql-driver/mysql"
)

func main() {{{trust}
	config := mysql.NewConfig()
	config.Net, config.Addr = "tcp", {literal(f"{host(info)}:{info.port}")}
	config.User, config.Passwd = {literal(info.username)}, {literal(info.password)}
	config.DBName, config.TLSConfig = {literal(info.database)}, "{"novastack" if info.tls else "preferred"}"
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
}}"""


def snippets(dialect: Dialect, info: ConnectionInfo) -> Mapping[str, str]:
    note = f"# {CA_FROM}\n" if info.tls else ""
    ssl_mode = f', "ssl_mode": "VERIFY_IDENTITY", "ssl": {{"ca": "{CA_FILE}"}}' if info.tls else ""
    connect = f', "ssl_ca": "{CA_FILE}", "ssl_verify_cert": True, "ssl_verify_identity": True' if info.tls else ""
    reads = f'// {CA_FROM}\nimport {{ readFileSync }} from "node:fs";\n' if info.tls else ""
    jdbc_note = f"// {CA_FROM}\n{dialect.jdbc_note}" if info.tls else ""
    jdbc = _jdbc(dialect, info, dialect.jdbc_verified_options if info.tls else dialect.jdbc_options)
    verified = f"# {CA_FROM}\n{_client(dialect, info, dialect.cli_verified_options)}"
    return ({"verified": verified} if info.tls else {}) | {
        "cli": _client(dialect, info, dialect.cli_tls_options if info.tls else dialect.cli_options),
        "env": env_lines(env(dialect, info)),
        "django": f"""# settings.py, with mysqlclient installed: pip install mysqlclient
{note}DATABASES = {{
    "default": {{
        "ENGINE": "django.db.backends.mysql",
        "HOST": {literal(info.host)},
        "PORT": {info.port},
        "NAME": {literal(info.database)},
        "USER": {literal(info.username)},
        "PASSWORD": {literal(info.password)},
        "OPTIONS": {{"charset": "utf8mb4"{ssl_mode}}},
    }}
}}""",
        "sqlalchemy": f"""# pip install sqlalchemy {"pymysql" if info.tls else dialect.pymysql}
{note}from sqlalchemy import create_engine, text

engine = create_engine(
    {literal(_uri(info, "mysql+pymysql") + "?charset=utf8mb4")},
    connect_args={{"connect_timeout": 10{connect}}},
)
with engine.connect() as connection:
    print(connection.execute(text("select version()")).scalar())""",
        "node": dialect.node.format(
            host=literal(info.host), port=info.port, user=literal(info.username), password=literal(info.password),
            database=literal(info.database), reads=reads, tls=f"\n  ssl: {dialect.node_tls}," if info.tls else "",
        ),
        "prisma": prisma(
            info, provider="mysql", url=_uri(info), adapter="@prisma/adapter-mariadb", name="PrismaMariaDb",
            options=_adapter_options(dialect, info),
        ),
        "go": _go(info),
        "jdbc": f"""// {dialect.jdbc_library}
{jdbc_note}var connection = java.sql.DriverManager.getConnection({literal(jdbc)});""",
        "compose": compose(info, {"DATABASE_URL": _uri(info)} | ({"MYSQL_SSL_CA": "{ca}"} if info.tls else {})),
    }  # fmt: skip
