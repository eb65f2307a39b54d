"""The process runtime on real PostgreSQL servers: the contract, and what is its own."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from projects.domain import Command, DataInUse, DataPolicy, Handle, Limits, RuntimeFeature, ServerState
from projects.runtimes import process_volume
from projects.runtimes.base import Runtime
from projects.runtimes.process import ProcessRuntime
from projects.runtimes.process_accounts import ensure_account, remove_account
from projects.runtimes.process_binaries import find
from projects.runtimes.process_logs import cut_log, read_part
from projects.runtimes.process_table import ProcessRef, family, listens
from projects.runtimes.process_volume import LOG_LIMIT_BYTES, Volume
from tests.contracts.runtime_contract import ENGINE, MIB, MakeSpec, RuntimeContract, Server, new_handle

pytestmark = pytest.mark.process


@pytest.mark.skipif(find("postgres", "18") is None, reason="PostgreSQL 18 is neither installed nor bundled here")
class TestProcessRuntime(RuntimeContract):
    version = "18"

    # There is nobody between us and the processes who could be unreachable (pytest collects no None).
    test_nobody_answers = None

    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Iterator[Runtime]:
        root = Path(tempfile.mkdtemp(prefix="nvs-test-", dir="/tmp"))
        root.chmod(0o711)
        runtime = ProcessRuntime(f"test-{secrets.token_hex(4)}", root / "state")
        yield runtime
        for handle in [*runtime.managed(), *runtime.managed_data()]:
            runtime.destroy(handle, delete_data=True)
        shutil.rmtree(root)

    def other_install(self, runtime: Runtime) -> Runtime:
        assert isinstance(runtime, ProcessRuntime)
        return ProcessRuntime("another-install", runtime.root)

    def foreign_data(self, runtime: Runtime, handle: Handle) -> bool:
        folder = self.volume(runtime, handle).path
        folder.mkdir(parents=True)
        (folder / "precious").write_text("rows")
        return True

    def lose_data(self, runtime: Runtime, handle: Handle) -> bool:
        volume = self.volume(runtime, handle)
        for path in volume.path.iterdir():
            if path != volume.own:
                shutil.rmtree(path)
        return True

    def change_marker(self, runtime: Runtime, handle: Handle) -> bool:
        volume = self.volume(runtime, handle)
        volume.write("marker.json", volume.read("marker.json") | {"server": "another"})
        return True

    def own_file(self, runtime: Runtime, handle: Handle, name: str) -> tuple[bytes, bool]:
        volume = self.volume(runtime, handle)
        path, account = volume.files / name, volume.account()
        info, folder = path.stat(), path.parent.stat()
        strict = info.st_mode & 0o037 == 0 and folder.st_mode & 0o027 == 0
        whose = (info.st_uid, info.st_gid) == (0, account.gid) if os.geteuid() == 0 else info.st_uid == account.uid
        return path.read_bytes(), strict and whose

    @contextlib.contextmanager
    def hold_lock(self, runtime: Runtime, handle: Handle) -> Iterator[None]:
        with self.volume(runtime, handle).lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @staticmethod
    def volume(runtime: Runtime, handle: Handle) -> Volume:
        assert isinstance(runtime, ProcessRuntime)
        return Volume(runtime.root, handle)

    def clean(self, runtime: Runtime, kept: set[str] | frozenset[str] = frozenset()) -> None:
        """Also what a test made to look foreign."""
        super().clean(runtime, kept)
        assert isinstance(runtime, ProcessRuntime)
        folder = runtime.root / "servers"
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in kept:
                with contextlib.suppress(OSError, KeyError):
                    remove_account(json.loads((path / ".novastack" / "marker.json").read_text())["account"])
                shutil.rmtree(path)

    # --- its own --------------------------------------------------------------------------------------------------

    def test_a_killed_server_is_seen_and_started_again(
        self, runtime: Runtime, make_spec: MakeSpec, password: str
    ) -> None:
        server = self.create(runtime, make_spec(), password)
        ref = ProcessRef.parse(server.handle.ref)
        assert ref is not None
        os.kill(ref.pid, signal.SIGKILL)
        assert ref.wait_gone(5)
        seen = runtime.observe([server.handle])[server.handle]
        assert seen.state == ServerState.STOPPED
        assert "ended by itself" in seen.detail
        deadline = time.monotonic() + 90
        while True:  # its backends hold the data's lock until they notice
            try:
                handle = runtime.start(server.handle)
                break
            except DataInUse:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert handle.ref != server.handle.ref
        self.wait_ready(runtime, Server(server.spec, handle, server.credentials))

    def test_it_never_becomes_our_zombie(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        runtime.stop(server.handle)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children]
        assert "Z" not in states

    def test_another_process_adopts_running_servers(self, runtime: Runtime, server: Server) -> None:
        assert isinstance(runtime, ProcessRuntime)
        again = ProcessRuntime(runtime.install_id, runtime.root)
        assert again.observe([server.handle])[server.handle].state == ServerState.RUNNING
        assert again.ensure(server.spec, data=DataPolicy.MUST_EXIST) == server.handle

    def test_no_secret_is_left_behind(self, runtime: Runtime, server: Server, password: str) -> None:
        ref = ProcessRef.parse(server.handle.ref)
        assert ref is not None
        for member in family([ref.pid])[ref.pid]:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    assert password.encode() not in Path(f"/proc/{member.pid}/{name}").read_bytes()
        own = self.volume(runtime, server.handle).own
        assert not (own / "secrets").exists()
        for path in own.rglob("*"):
            assert password.encode() not in path.read_bytes()

    def test_files_are_closed_to_others(self, runtime: Runtime, server: Server) -> None:
        volume = self.volume(runtime, server.handle)
        for path in (volume.path, volume.own, volume.path / server.spec.data_subdir):
            assert stat.S_IMODE(path.stat().st_mode) & 0o067 == 0, path

    def test_there_is_no_socket_and_no_trust(self, runtime: Runtime, server: Server) -> None:
        with server.connect() as connection:
            assert connection.execute("SHOW unix_socket_directories").fetchone() == ("",)
            rules = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
            assert rules == [("scram-sha-256",)]

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
    def test_every_server_has_an_account_of_its_own(
        self, runtime: Runtime, server: Server, make_spec: MakeSpec, password: str
    ) -> None:
        if RuntimeFeature.TRUST_DOMAINS not in runtime.features:
            pytest.skip("this machine can't make accounts")
        second = self.create(runtime, make_spec(), password)
        owners = set()
        for each in (server, second):
            ref = ProcessRef.parse(each.handle.ref)
            assert ref is not None
            owners.add(Path(f"/proc/{ref.pid}").stat().st_uid)
        assert len(owners) == 2
        assert 0 not in owners
        # Neither can read the other's data, nor our own files.
        for path in (
            self.volume(runtime, second.handle).path / second.spec.data_subdir / "PG_VERSION",
            self.volume(runtime, server.handle).own / "spec.json",
        ):
            uid = Path(f"/proc/{ProcessRef.parse(server.handle.ref).pid}").stat().st_uid  # type: ignore[union-attr]
            done = subprocess.run(["cat", str(path)], user=uid, group=uid, extra_groups=[], check=False,
                                  capture_output=True)  # fmt: skip
            assert done.returncode != 0
            assert b"Permission denied" in done.stderr

    def test_memory_is_limited_and_the_reason_told(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        if RuntimeFeature.MEMORY_LIMIT not in runtime.features:
            pytest.skip("control groups can't be written here")
        server = self.create(runtime, make_spec(limits=Limits(160 * MIB, 1.0)), password)
        assert runtime.usage([server.handle])[server.handle].memory_limit_bytes == 160 * MIB
        runtime.update(server.handle, Limits(200 * MIB, 0.5))
        assert runtime.usage([server.handle])[server.handle].memory_limit_bytes == 200 * MIB

    def test_a_big_log_is_cut(self, runtime: Runtime, server: Server) -> None:
        log = self.volume(runtime, server.handle).log
        with log.open("ab") as file:
            file.write((b"x" * 99 + b"\n") * (LOG_LIMIT_BYTES // 100 + 1))
        runtime.observe([server.handle])
        assert log.stat().st_size < MIB
        assert len(list(runtime.logs(server.handle, tail=5000))) == 5000

    def test_a_half_made_server_is_begun_again(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        """The worker died while initialising: the same handle goes on, nothing half-made is used."""
        server = self.create(runtime, make_spec(), password)
        volume = self.volume(runtime, server.handle)
        runtime.destroy(server.handle, delete_data=False)
        (volume.own / "initialised").unlink()
        (volume.path / server.spec.data_subdir / "PG_VERSION").unlink()
        again = Server(server.spec, runtime.ensure(server.spec, data=DataPolicy.CREATE), server.credentials)
        self.wait_ready(runtime, again)

    def test_a_second_initialisation_waits_for_the_first(
        self, runtime: Runtime, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its starter was killed, it goes on: nobody may begin again in the same folder, and that is no failure."""
        assert isinstance(runtime, ProcessRuntime)
        spec = make_spec()
        volume = self.volume(runtime, spec.handle)
        volume.create(runtime.install_id, ensure_account("novastack"))
        folder = volume.path / spec.data_subdir / "PG_VERSION"
        with volume.locked():
            monkeypatch.setattr(process_volume, "HELD_SECONDS", 0.5)
            with pytest.raises(DataInUse):
                runtime.ensure(spec, data=DataPolicy.CREATE)
            assert not folder.exists()
            monkeypatch.undo()
            second = threading.Thread(target=runtime.ensure, args=(spec,), kwargs={"data": DataPolicy.CREATE})
            second.start()
            time.sleep(0.5)
            assert second.is_alive()
            assert not folder.exists()
        second.join(30)
        assert folder.exists()

    def test_a_strict_umask_is_no_obstacle(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        before = os.umask(0o077)
        try:
            self.create(runtime, make_spec(), password)
        finally:
            os.umask(before)

    def test_real_tools(self, runtime: Runtime, server: Server) -> None:
        tool = runtime.run_tool("nvs-tool-version", server.spec.image, Command(("pg_dump", "--version")))
        assert tool.stdout is not None
        assert b"(PostgreSQL) 18" in tool.stdout.read()
        assert tool.wait(120).exit_code == 0
        assert isinstance(runtime, ProcessRuntime)
        assert not [path for path in (runtime.root / "tools").iterdir() if path.is_dir()]

    def test_destroy_removes_every_trace(self, runtime: Runtime, make_spec: MakeSpec, password: str) -> None:
        server = self.create(runtime, make_spec(), password)
        volume = self.volume(runtime, server.handle)
        account = volume.account()
        runtime.destroy(server.handle, delete_data=True)
        assert not volume.path.exists()
        ref = ProcessRef.parse(server.handle.ref)
        assert ref is not None
        assert not ref.alive()
        if account.own and os.geteuid() == 0:
            assert account.name not in Path("/etc/passwd").read_text()
        assert json.dumps(server.handle.name) not in json.dumps([h.name for h in runtime.managed_data()])

    def test_hostile_names_reach_no_file(self, runtime: Runtime) -> None:
        for bad in ("../../etc", "a/b", "", ".", "a\0b", "x" * 200):
            handle = Handle(bad, 1)
            assert runtime.observe([handle])[handle].state == ServerState.ABSENT
            with pytest.raises(ValueError, match="not a server's name"):
                runtime.destroy(handle, delete_data=True)


def test_a_thousand_servers_are_observed_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of small files each; nothing is started."""
    runtime = ProcessRuntime("many", tmp_path)
    handles = [new_handle() for _ in range(1000)]
    for handle in handles:
        own = Volume(tmp_path, handle).own
        own.mkdir(parents=True)
        (own / "run.json").write_text(json.dumps({"ref": "999999:1:00000000", "at": 1, "stopped": True}))
    read, real = [], Volume.read
    monkeypatch.setattr(Volume, "read", lambda self, name: read.append(name) or real(self, name))
    monkeypatch.setattr(subprocess, "Popen", None)
    seen = runtime.observe(handles)
    assert read == ["run.json"] * 1000
    assert {observation.state for observation in seen.values()} == {ServerState.STOPPED}


def test_only_the_listener_itself_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert listens(os.getpid(), port)
        child = subprocess.Popen(["sleep", "30"])
        try:
            assert not listens(child.pid, port)
        finally:
            child.kill()
            child.wait()
    assert not listens(os.getpid(), port)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    from projects.domain import ImageMissing

    with pytest.raises(ImageMissing, match=r"no postgres 99 \(found: "):
        ProcessRuntime("x", tmp_path).resolve_image(ENGINE.name, "99", "postgres")


def test_log_lines_name_no_folder_of_the_host(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    volume = Volume(link, Handle("01a1fe2d-b8fb-7ac8-849e-9ecbaba95fff", 1))
    volume.own.mkdir(parents=True)
    volume.log.write_bytes(
        f'FATAL: data directory "{volume.path}/data" is wrong\n'
        f'LOG: see "{volume.path.resolve()}/data/x" and {link}/locks\n'.encode()
    )
    assert volume.last_line() == 'LOG: see "<data>/data/x" and <data>/locks'
    runtime = ProcessRuntime.__new__(ProcessRuntime)
    runtime.root = link
    lines = list(runtime.logs(volume.handle))
    assert lines == [b'FATAL: data directory "<data>/data" is wrong', b'LOG: see "<data>/data/x" and <data>/locks']


def log_of_lines(tmp_path: Path, count: int) -> Volume:
    volume = Volume(tmp_path, Handle("01a1fe2d-b8fb-7ac8-849e-9ecbaba95fff", 1))
    volume.own.mkdir(parents=True)
    volume.log.write_bytes(b"".join(b"%09d %s\n" % (i, b"x" * 1000) for i in range(count)))
    return volume


@pytest.mark.parametrize("killed_at", ["never", "before it was cut", "after it was cut"])
def test_a_cut_that_was_killed_neither_loses_nor_doubles_lines(tmp_path, monkeypatch, killed_at):
    volume = log_of_lines(tmp_path, LOG_LIMIT_BYTES // 1000)
    cursor = read_part(volume, cursor="", tail=1).cursor
    real = os.truncate

    def truncate(path: Path, size: int) -> None:
        if killed_at == "after it was cut":
            real(path, size)
        raise KeyboardInterrupt

    if killed_at != "never":
        monkeypatch.setattr(os, "truncate", truncate)
        with pytest.raises(KeyboardInterrupt):
            cut_log(volume)
        monkeypatch.undo()
    else:
        cut_log(volume)
        assert volume.log.stat().st_size == 0
    with volume.log.open("ab") as file:
        file.write(b"next\nhalf a li")
    part = read_part(volume, cursor=cursor, tail=5000)
    assert (part.lines, part.gap) == ((b"next",), False)
    with volume.log.open("ab") as file:
        file.write(b"ne\n")
    assert read_part(volume, cursor=part.cursor, tail=5000).lines == (b"half a line",)


def test_who_reads_too_slowly_is_told(tmp_path):
    volume = log_of_lines(tmp_path, 10)
    cursor = read_part(volume, cursor="", tail=1).cursor
    for _ in range(2):
        with volume.log.open("ab") as file:
            file.write(b"".join(b"%09d %s\n" % (i, b"y" * 1000) for i in range(LOG_LIMIT_BYTES // 1000)))
        cut_log(volume)
    part = read_part(volume, cursor=cursor, tail=5000)
    assert part.gap
    assert all(len(line) == 1010 for line in part.lines)
    assert 900 < len(part.lines) < 1100
