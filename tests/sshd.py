"""A real sshd of the tests' own, on an unprivileged port of 127.0.0.1, with keys of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


class Sshd:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.user = folder, port, getpass.getuser()
        self.process: subprocess.Popen[bytes] | None = None
        for name in ("host", "other", "client", "stranger"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
            subprocess.run(argv, check=True, capture_output=True)
        (folder / "authorized").write_bytes((folder / "client.pub").read_bytes())
        (folder / "config").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
            f"PidFile {folder}/pid\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nAllowAgentForwarding no\nLogLevel ERROR\n"
        )

    def text(self, name: str) -> str:
        """Of a key: `client` is private, `host.pub` public."""
        return (self.folder / name).read_text()

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        argv = [program, "-D", "-e", "-f", f"{self.folder}/config"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-1000:])
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """The listener and its connections, as when the machine goes away."""
        if self.process is not None:
            connections = self.connections()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            for child in connections:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self.process.wait(5)
            self.process = None

    def connections(self) -> list[int]:
        """Process ids of what serves connections: sshd makes each a session of its own."""
        assert self.process is not None
        argv = ["ps", "-eo", "pid=,ppid="]
        rows = [
            line.split()
            for line in subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        ]
        found, wanted = [], {self.process.pid}
        while wanted:
            wanted = {int(pid) for pid, parent in rows if int(parent) in wanted}
            found += wanted
        return found


@contextlib.contextmanager
def own_sshd() -> Iterator[Sshd]:
    """A running sshd, ended and removed at the end. Skips where there is none; in CI that is a failure."""
    if shutil.which("sshd") is None and not Path("/usr/sbin/sshd").exists():
        if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
            raise AssertionError("no sshd: apt-get install openssh-server")
        pytest.skip("no sshd here (openssh-server)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    sshd = Sshd(Path(tempfile.mkdtemp(prefix="nvssshd-", dir="/tmp")), port)
    try:
        sshd.start()
        yield sshd
    finally:
        sshd.stop()
        shutil.rmtree(sshd.folder, ignore_errors=True)
