"""Our MariaDB and MySQL images honour the contracts of the official ones: what the engines rely on, tried from outside."""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.images.conftest import docker, eventually, need_image

pytestmark = pytest.mark.docker
HARDENED = [
    "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/run/mysqld:mode=3777", "--user", "mysql", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--network", "none", "--memory", "768m",
]  # fmt: skip


@dataclass(frozen=True)
class Image:
    name: str
    server: str
    client: str
    prefix: str

    @property
    def options(self) -> list[str]:
        """MySQL's own defaults are for machines with more memory."""
        return ["--performance-schema=OFF", "--temptable-max-ram=16M"] if self.server == "mysqld" else []


IMAGES = {
    "mariadb:10.11": Image("novastack-mariadb:10.11", "mariadbd", "mariadb", "MARIADB"),
    "mariadb:11.8": Image("novastack-mariadb:11.8", "mariadbd", "mariadb", "MARIADB"),
    "mysql:9.7": Image("novastack-mysql:9.7", "mysqld", "mysql", "MYSQL"),
}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Image:
    found = IMAGES[request.param]
    need_image(found.name)
    return found


def sql(image: Image, name: str, text: str, *, user: str = "root", password: str = "", check: bool = True) -> str:
    # by TCP: the server of the first start has no network
    done = docker(
        "exec", "-e", f"MYSQL_PWD={password}", name, image.client, "-h127.0.0.1", "-P3306", f"-u{user}", "-N", "-B",
        *(["--skip-ssl"] if image.client == "mariadb" else []), "-e", text, check=check,
    )  # fmt: skip
    return done.stdout.strip() if check else done.stdout.strip() + done.stderr.strip()


def ready(image: Image, name: str, *, user: str = "root", password: str = "") -> bool:
    return eventually(lambda: sql(image, name, "SELECT 41 + 1", user=user, password=password, check=False) == "42")


def test_a_hardened_server_starts_in_a_subfolder_keeps_its_data_and_asks_for_passwords(image: Image, name: str) -> None:
    docker(
        "run", "--detach", "--name", name, *HARDENED, "-v", f"{name}:/var/lib/mysql",
        "-e", f"{image.prefix}_ROOT_PASSWORD=one'\\two", "-e", f"{image.prefix}_DATABASE=app_x",
        "-e", f"{image.prefix}_USER=boss", "-e", f"{image.prefix}_PASSWORD=three",
        image.name, image.server, "--datadir=/var/lib/mysql/data", "--max-connections=33", *image.options,
    )  # fmt: skip
    assert ready(image, name, password="one'\\two"), docker("logs", name).stderr

    def ask(text: str) -> str:
        return sql(image, name, text, password="one'\\two")

    assert image.name.partition(":")[2] in ask("SELECT VERSION()")
    assert ask("SELECT @@max_connections") == "33"
    assert ask("SELECT @@datadir") == "/var/lib/mysql/data/"
    assert ask("SELECT CONVERT_TZ('2026-07-01 12:00:00', 'UTC', 'Europe/Berlin')") == "2026-07-01 14:00:00"
    sql(
        image, name, "CREATE TABLE app_x.kept (i INT); INSERT INTO app_x.kept VALUES (7)", user="boss", password="three"
    )
    assert "denied" in sql(image, name, "CREATE DATABASE appyx", user="boss", password="three", check=False)
    for entry in (["--protocol=socket"], ["--protocol=tcp", "-h127.0.0.1"], ["--protocol=tcp", "-hlocalhost"]):
        inside = docker("exec", name, image.client, *entry, "-uroot", "-e", "SELECT 1", check=False)
        assert "Access denied" in inside.stderr or "ERROR" in inside.stderr, "root is let in without a password"
        nobody = docker("exec", name, image.client, *entry, "-unobody", "-e", "SELECT 1", check=False)
        assert nobody.returncode != 0, "somebody without a name is let in"
    for tool in (f"{image.client}-dump" if image.client == "mariadb" else "mysqldump", "zstd", "flock"):
        assert docker("exec", name, "sh", "-c", f"command -v {tool}").stdout
    assert docker("exec", name, "stat", "-c", "%u:%g", "/var/lib/mysql").stdout.strip() == "999:999"

    docker("stop", "--time", "30", name)
    assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "0"
    docker("start", name)
    assert ready(image, name, password="one'\\two")
    assert ask("SELECT i FROM app_x.kept") == "7"


def test_pid_1_is_the_server_and_not_root(image: Image, name: str, shared_folder: Path) -> None:
    secret = shared_folder / "password"
    secret.write_text("from-a-file\n")
    docker(
        "run", "--detach", "--name", name, "--network", "none", "-v", f"{secret}:/secret:ro",
        "-e", f"{image.prefix}_ROOT_PASSWORD_FILE=/secret", "-e", f"{image.prefix}_INITDB_SKIP_TZINFO=1",
        image.name, *image.options,
    )  # fmt: skip
    assert ready(image, name, password="from-a-file"), docker("logs", name).stderr
    assert docker("exec", name, "cat", "/proc/1/comm").stdout.strip() == image.server
    assert docker("exec", name, "stat", "-c", "%U", "/proc/1").stdout.strip() == "mysql"
    environment = docker("exec", "--user", "mysql", name, "sh", "-c", "tr '\\0' '\\n' </proc/1/environ").stdout
    assert "from-a-file" not in environment
    assert "from-a-file" not in docker("logs", name).stderr + docker("logs", name).stdout


def test_init_files_run_once_in_the_database(image: Image, name: str, shared_folder: Path) -> None:
    folder = shared_folder / f"init-{image.name.replace(':', '-')}"
    folder.mkdir()
    folder.joinpath("1.sql").write_text("CREATE TABLE plain (i INT);")
    folder.joinpath("2.sql.gz").write_bytes(gzip.compress(b"CREATE TABLE gz (i INT);"))
    folder.joinpath("3.sql.xz").write_bytes(lzma.compress(b"CREATE TABLE xz (i INT);"))
    folder.joinpath("4.sh").write_text('echo "CREATE TABLE script (i INT);" | run_sql --database=app\n')
    folder.joinpath("5.txt").write_text("CREATE TABLE never (i INT);")
    docker(
        "run", "--detach", "--name", name, "--network", "none", "-v", f"{folder}:/docker-entrypoint-initdb.d:ro",
        "-e", "MYSQL_ROOT_PASSWORD=x", "-e", "MYSQL_DATABASE=app", "-e", "MYSQL_INITDB_SKIP_TZINFO=1",
        image.name, *image.options,
    )  # fmt: skip
    assert ready(image, name, password="x"), docker("logs", name).stderr
    assert sql(image, name, "SHOW TABLES FROM app", password="x").split() == ["gz", "plain", "script", "xz"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ([], "no password for root"),
        (
            ["MYSQL_ROOT_PASSWORD=a", "MYSQL_ROOT_PASSWORD_FILE=/b"],
            "both MYSQL_ROOT_PASSWORD and MYSQL_ROOT_PASSWORD_FILE",
        ),
    ],
)
def test_it_refuses_to_start_without_a_clear_password(
    image: Image, name: str, environment: list[str], message: str
) -> None:
    given = [part for variable in environment for part in ("-e", variable)]
    found = docker("run", "--name", name, "--network", "none", *given, image.name, check=False)
    assert found.returncode == 1
    assert message in found.stderr
