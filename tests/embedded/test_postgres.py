"""The embedded PostgreSQL: made, shared, adopted, and honest when it can't run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from novastack.embedded.paths import make_home, remove_state, state_folder, write_private
from novastack.embedded.postgres import EmbeddedPostgres, EmbeddedPostgresError
from projects.runtimes import process_accounts
from projects.runtimes.process_accounts import Account, can_reach, current_account
from projects.runtimes.process_binaries import Place, find, reachable

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(find("postgres", "18") is None, reason="PostgreSQL 18 is neither installed nor bundled here"),
]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="nvs-pg-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder / "home"
    EmbeddedPostgres(folder / "home").stop()
    remove_state(folder / "home")
    shutil.rmtree(folder)


def test_parallel_callers_share_one_server(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from novastack.embedded.postgres import EmbeddedPostgres;"
        "print(EmbeddedPostgres(Path(sys.argv[1]), durable=False).start())"
    )
    callers = [
        subprocess.Popen([sys.executable, "-c", code, str(home)], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    urls = {caller.communicate(timeout=60)[0].strip() for caller in callers}
    assert len(urls) == 1
    with psycopg.connect(urls.pop(), autocommit=True) as connection:
        assert connection.execute("SHOW data_checksums").fetchone() == ("on",)
        assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)
        assert connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall() == [
            ("scram-sha-256",)
        ]


def test_it_is_adopted_and_heals(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False)
    url = server.start()
    ref = server.ref()
    assert ref is not None
    again = EmbeddedPostgres(home, durable=False)
    assert (again.start(), again.ref()) == (url, ref)
    os.kill(ref.pid, signal.SIGKILL)
    ref.wait_gone(5)
    assert again.ref() is None
    again.start()
    with psycopg.connect(again.url):
        pass
    again.stop()
    again.stop()
    assert again.ref() is None


def test_a_taken_port_is_left_to_its_owner(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False)
    server.start()
    server.stop()
    with socket.create_server(("127.0.0.1", server.port)) as taken:
        url = server.start()
        assert server.port != taken.getsockname()[1]
        with psycopg.connect(url):
            pass


def test_foreign_data_is_not_touched(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False)
    server.data.mkdir(parents=True)
    (server.data / "precious").write_text("rows")
    with pytest.raises(EmbeddedPostgresError, match="not a PostgreSQL data folder"):
        server.start()
    assert (server.data / "precious").read_text() == "rows"


def test_its_password_is_in_no_argument(home: Path) -> None:
    server = EmbeddedPostgres(home, durable=False)
    server.start()
    ref = server.ref()
    assert ref is not None
    for name in ("cmdline", "environ"):
        assert server.password.encode() not in Path(f"/proc/{ref.pid}/{name}").read_bytes()
    assert server.password not in server.log.read_text()


def test_data_goes_where_the_account_can_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = Account("somebody", 65533, 65533, own=True)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr("novastack.embedded.paths.SYSTEM_STATE", tmp_path / "var")
    home = make_home(closed / "home")
    state = state_folder(home, stranger)
    assert state.parent == tmp_path / "var"
    assert state_folder(home, stranger) == state  # remembered
    assert state_folder(make_home(tmp_path / "mine"), current_account()) == tmp_path / "mine" / "state"


def test_programs_are_copied_once_when_the_account_cannot_reach_them(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root runs servers as somebody else")
    folder = Path(tempfile.mkdtemp(prefix="nvs-bin-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        base = folder / "closed"
        (base / "install" / "bin").mkdir(parents=True)
        program = base / "install" / "bin" / "postgres"
        program.write_text("#!/bin/sh\necho 'postgres (Something) 18.4'\n")
        program.chmod(0o700)
        base.chmod(0o700)
        place = Place(base / "install" / "bin", base, ("install",))
        found = find("postgres", "18", search=lambda _: iter([place]))
        assert found is not None
        account = Account("nobody", 65534, 65534, own=False)
        assert not can_reach(found.place.bin, account)
        copy = reachable(found, account, folder / "copies")
        assert can_reach(copy.place.bin, account)
        done = subprocess.run(
            [copy.program("postgres"), "--version"], user=65534, group=65534, extra_groups=[], check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        assert "18.4" in done.stdout
        changed = copy.program("postgres").stat().st_mtime_ns
        assert reachable(found, account, folder / "copies").program("postgres").stat().st_mtime_ns == changed
    finally:
        shutil.rmtree(folder)


def test_a_private_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["root; rm", "-x", "", "A", "a" * 40, "a\nb"])
def test_account_names_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match="not an account name"):
        process_accounts.ensure_account(name)
