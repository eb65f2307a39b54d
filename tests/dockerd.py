"""A Docker daemon of the tests' own: one that can be stopped, killed, made a Swarm or put behind TLS, while nobody else's
containers suffer. Several can run side by side: each has its folder, its bridge and its namespaces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

SIOCBRADDBR, SIOCBRDELBR, SIOCSIFFLAGS = 0x89A0, 0x89A1, 0x8914  # linux/sockios.h


def bridge_ioctl(request: int, bridge: str) -> None:
    """Make or remove the bridge; done already is success."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as control, contextlib.suppress(OSError):
        if request == SIOCBRDELBR:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", bridge.encode(), 0))
        fcntl.ioctl(control, request, bridge.encode() + b"\0")


class Daemon:
    def __init__(self, folder: Path, bridge: str = "nvstest0", argv: Sequence[str] = ()) -> None:
        """`folder`: short (a socket's path has at most 107 characters). `bridge`: at most 15 characters, not in use by
        another daemon. `argv`: more arguments for dockerd, such as `-H tcp://127.0.0.1:2376 --tlsverify …`."""
        self.folder, self.bridge, self.argv = folder, bridge, tuple(argv)
        self.url = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # Without iptables: the rules are the host's, and another daemon's. Published ports on loopback need none.
        # Its own bridge, and no address pools: with `--bridge=none`, or with pools at its second start, a daemon
        # removes docker0, which belongs to the machine's own (moby 20.10, daemon_unix.go: removeDefaultBridgeInterface).
        bridge_ioctl(SIOCBRADDBR, self.bridge)
        argv = [
            "dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec", "-H", self.url,
            "-p", f"{self.folder}/pid", "--bridge", self.bridge, "--iptables=false", "--ip-masq=false",
            "--shutdown-timeout", "10",
            "--containerd-namespace", self.bridge, "--containerd-plugins-namespace", f"{self.bridge}plugins",
            *self.argv,
        ]  # fmt: skip
        (self.folder / "pid").unlink(missing_ok=True)
        self._end_containerd()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 40
        while self.cli("version", check=False).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            try:
                self.process.wait(25)
            except subprocess.TimeoutExpired:  # the daemon itself can hang over a container that is just being started
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def cli(self, *argv: str, check: bool = True, **options: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["docker", "-H", self.url, *argv], check=check, capture_output=True, **options)  # type: ignore[call-overload,no-any-return]

    def load(self, image: str) -> None:
        """Copy an image of the machine's own daemon."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            self.cli("load", stdin=saved.stdout)

    def remove(self) -> None:
        """Stop it, and leave nothing of it on the machine."""
        self.stop()
        self._end_containerd()
        folder = self.folder
        bridges = self._bridges()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if f" {folder}/" in line]
        subprocess.run(["umount", "-l", *reversed(mounts)], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
        for bridge in (self.bridge, *bridges):
            bridge_ioctl(SIOCBRDELBR, bridge)

    def _bridges(self) -> set[str]:
        """Of its networks, as its own store names them: a daemon that ends leaves them in the host's namespace, where they
        take the address ranges of other daemons."""
        with contextlib.suppress(OSError):
            store = (self.folder / "data/network/files/local-kv.db").read_bytes()
            return {name.decode() for name in re.findall(rb'"BridgeName":"(br-[0-9a-z]{12})"', store)}
        return set()

    def _end_containerd(self) -> None:
        """What a daemon that was killed leaves: found by its own pid file, nobody else's."""
        with contextlib.suppress(OSError, ValueError):
            file = self.folder / "exec/containerd/containerd.pid"
            os.kill(int(file.read_text()), signal.SIGKILL)
            file.unlink()
            time.sleep(0.5)


@contextlib.contextmanager
def own_daemon(*images: str, bridge: str = "nvstest0", argv: Sequence[str] = ()) -> Iterator[Daemon]:
    """A running daemon with these images, removed at the end. Skips where none can be started, or an image is missing;
    a missing image is a failure with NOVASTACK_REQUIRE_DOCKER=1."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and dockerd, to start a daemon of its own")
    for image in images:
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode:
            if os.environ.get("NOVASTACK_REQUIRE_DOCKER") == "1":
                raise AssertionError(f"no {image}: run `make images`")
            pytest.skip(f"no {image} here: run `make images`")
    daemon = Daemon(Path(tempfile.mkdtemp(prefix="nvsd-", dir="/tmp")), bridge, argv)
    try:
        daemon.start()
    except RuntimeError as error:
        daemon.remove()
        pytest.skip(f"a second Docker daemon does not start here: {error}"[:300])
    try:
        for image in images:
            daemon.load(image)
        yield daemon
    finally:
        daemon.remove()


@contextlib.contextmanager
def own_swarm(*images: str, bridge: str = "nvsswarm0") -> Iterator[Daemon]:
    """A daemon that is a Swarm of one node, which carries the label `role=database`."""
    with own_daemon(*images, bridge=bridge) as daemon, gateway_bridge(daemon):
        address = own_loopback()
        listen = f"{address}:{free_tcp_port()}"
        daemon.cli("swarm", "init", "--advertise-addr", address, "--listen-addr", listen, "--data-path-port", "24789")
        node = daemon.cli("node", "ls", "-q").stdout.decode().strip()
        daemon.cli("node", "update", "--label-add", "role=database", node)
        yield daemon


def own_loopback() -> str:
    """An address of nobody else's: nodes of a Swarm talk to each other on a port that can't be chosen (7946)."""
    return f"127.7.{1 + secrets.randbelow(250)}.{1 + secrets.randbelow(250)}"


@contextlib.contextmanager
def gateway_bridge(daemon: Daemon) -> Iterator[None]:
    """A Swarm's daemon makes `docker_gwbridge` in the host's namespace, and leaves it: the last one takes it away, if the
    machine had none before the first."""
    folder = Path(tempfile.gettempdir())
    made = folder / "novastack-tests-gwbridge"
    with (folder / "novastack-tests-swarm.lock").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        if not bridge_exists("docker_gwbridge"):
            made.touch()
        try:
            yield
        finally:
            daemon.cli("swarm", "leave", "--force", check=False)
            daemon.stop()
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if made.exists():
                    bridge_ioctl(SIOCBRDELBR, "docker_gwbridge")
                    made.unlink()


def bridge_exists(name: str) -> bool:
    return Path("/sys/class/net", name).exists()


def free_tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
