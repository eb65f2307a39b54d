"""Our PostgreSQL images honour the contract of the official one: what the engine relies on, tried from outside."""

from __future__ import annotations

import gzip
import lzma
import subprocess
from pathlib import Path

import pytest

from tests.images.conftest import docker, eventually, need_image

pytestmark = pytest.mark.docker
VERSIONS = ["15", "17", "18"]
HARDENED = [
    "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/run/postgresql", "--user", "postgres", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--network", "none",
]  # fmt: skip


def volume_path(version: str) -> str:
    return "/var/lib/postgresql" if int(version) >= 18 else "/var/lib/postgresql/data"


def ready(name: str) -> bool:
    # by TCP: the server of the first start listens on its socket only
    return eventually(lambda: docker("exec", name, "pg_isready", "-q", "-h", "127.0.0.1", check=False).returncode == 0)


def sql(name: str, text: str, *, user: str = "postgres", database: str = "postgres", password: str = "") -> str:
    found = docker("exec", "-e", f"PGPASSWORD={password}", name, "psql", "-w", "-U", user, "-d", database, "-Atc", text)
    return found.stdout.strip()


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    need_image(f"novastack-postgresql:{request.param}")
    return str(request.param)


def test_a_hardened_server_starts_keeps_its_data_and_asks_for_passwords(version: str, name: str) -> None:
    docker(
        "run", "--detach", "--name", name, *HARDENED, "-v", f"{name}:{volume_path(version)}",
        "-e", "POSTGRES_PASSWORD=one", "-e", "POSTGRES_USER=boss", "-e", "POSTGRES_DB=app",
        "-e", "POSTGRES_INITDB_ARGS=--data-checksums --auth-local=scram-sha-256 --auth-host=scram-sha-256",
        f"novastack-postgresql:{version}", "postgres", "-c", "max_connections=33",
    )  # fmt: skip
    assert ready(name), docker("logs", name).stderr

    def ask(text: str) -> str:
        return sql(name, text, user="boss", database="app", password="one")

    assert ask("show server_version_num").startswith(version)
    assert ask("show max_connections") == "33"
    assert ask("show data_checksums") == "on"
    ask("create extension pg_stat_statements; create table kept (i int); insert into kept values (7)")
    refused = docker("exec", name, "psql", "-w", "-U", "boss", "-d", "app", "-c", "select 1", check=False)
    assert "password" in refused.stderr, "the socket inside lets anybody in"
    for tool in ("pg_dump", "pg_restore", "zstd", "flock"):
        assert docker("exec", name, "sh", "-c", f"command -v {tool}").stdout
    owner = docker("exec", name, "stat", "-c", "%u:%g", volume_path(version)).stdout.strip()
    assert owner == "999:999"

    docker("stop", "--time", "30", name)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "0"
    docker("start", name)
    assert ready(name)
    assert ask("select i from kept") == "7"


def test_pid_1_is_postgres_and_not_root(version: str, name: str, shared_folder: Path) -> None:
    secret = shared_folder / f"password-{version}"
    secret.write_text("from-a-file\n")
    docker(
        "run", "--detach", "--name", name, "--network", "none", "-v", f"{secret}:/secret:ro",
        "-e", "POSTGRES_PASSWORD_FILE=/secret", f"novastack-postgresql:{version}",
    )  # fmt: skip
    assert ready(name), docker("logs", name).stderr
    assert docker("exec", name, "cat", "/proc/1/comm").stdout.strip() == "postgres"
    assert docker("exec", name, "stat", "-c", "%U", "/proc/1").stdout.strip() == "postgres"
    environment = docker("exec", "--user", "postgres", name, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout
    assert "from-a-file" not in environment, "the password stays in the server's environment"


def test_init_files_run_once_in_the_database(version: str, name: str, shared_folder: Path) -> None:
    folder = shared_folder / f"init-{version}"
    folder.mkdir()
    folder.joinpath("1.sql").write_text("create table plain ();")
    folder.joinpath("2.sql.gz").write_bytes(gzip.compress(b"create table gz ();"))
    folder.joinpath("3.sql.xz").write_bytes(lzma.compress(b"create table xz ();"))
    packed = subprocess.run(
        ["docker", "run", "--rm", "-i", "--network", "none", f"novastack-postgresql:{version}", "zstd"],
        check=True, input=b"create table zst ();", capture_output=True, timeout=60,
    )  # fmt: skip
    folder.joinpath("4.sql.zst").write_bytes(packed.stdout)
    folder.joinpath("5.sh").write_text('psql -U "$POSTGRES_USER" -d "$POSTGRES_DB" -c "create table script ()"\n')
    folder.joinpath("6.txt").write_text("create table never ();")
    docker(
        "run", "--detach", "--name", name, "--network", "none", "-v", f"{folder}:/docker-entrypoint-initdb.d:ro",
        "-e", "POSTGRES_PASSWORD=x", "-e", "POSTGRES_DB=app", f"novastack-postgresql:{version}",
    )  # fmt: skip
    assert ready(name), docker("logs", name).stderr
    found = sql(name, "select string_agg(relname, ' ' order by relname) from pg_class where relnamespace = "
                "'public'::regnamespace", database="app")  # fmt: skip
    assert found == "gz plain script xz zst"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ([], "no superuser password"),
        (["POSTGRES_PASSWORD=a", "POSTGRES_PASSWORD_FILE=/b"], "both POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE"),
    ],
)
def test_it_refuses_to_start_without_a_clear_password(
    version: str, name: str, environment: list[str], message: str
) -> None:
    given = [part for variable in environment for part in ("-e", variable)]
    found = docker("run", "--name", name, "--network", "none", *given, f"novastack-postgresql:{version}", check=False)
    assert found.returncode == 1
    assert message in found.stderr
