"""A Docker daemon of the test's own, that it may stop: own data, socket and bridge; no iptables."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

IMAGE = "novastack-postgresql:18"
BRIDGE = "nvstest0"
SIOCBRADDBR, SIOCBRDELBR, SIOCSIFFLAGS = 0x89A0, 0x89A1, 0x8914  # linux/sockios.h


def _bridge_ioctl(request: int) -> None:
    """Make or remove the bridge; done already is success."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as control, contextlib.suppress(OSError):
        if request == SIOCBRDELBR:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", BRIDGE.encode(), 0))
        fcntl.ioctl(control, request, BRIDGE.encode() + b"\0")


class SecondDocker:
    """`start`, `stop` (politely or by SIGKILL) and `close` a dockerd below `root`. Root only."""

    def __init__(self, root: Path) -> None:
        self.root, self.socket = root, root / "sock"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Returns when the daemon answers."""
        # Its own bridge, and no address pools: with `--bridge=none`, or with pools at its second start, a daemon
        # removes docker0, which belongs to the machine's own (moby 20.10, daemon_unix.go: removeDefaultBridgeInterface).
        _bridge_ioctl(SIOCBRADDBR)
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec"),
                 "--pidfile", str(self.root / "pid"), "-H", self.url, "--bridge", BRIDGE, "--iptables=false",
                 "--ip-masq=false"],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if self._docker("version").returncode == 0:
                return
            time.sleep(0.2)
        raise RuntimeError("the second dockerd did not start:\n" + (self.root / "log").read_text()[-2000:])

    def load(self, image: str) -> None:
        """Copy an image from the machine's own daemon."""
        saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
        subprocess.run(["docker", "-H", self.url, "load"], stdin=saved.stdout, check=True, capture_output=True)
        assert saved.wait(timeout=60) == 0

    def stop(self, *, kill: bool = False) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        self._process.wait(timeout=150)
        self._process = None
        pidfile = self.root / "exec" / "containerd" / "containerd.pid"
        if kill and pidfile.exists():  # the machine died, not just one of its processes
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pidfile.read_text()), signal.SIGKILL)
            pidfile.unlink()

    def containers(self, *arguments: str) -> list[str]:
        """Names of all containers there are."""
        found = self._docker("ps", "-a", "--format", "{{.Names}}", *arguments)
        return found.stdout.decode().split()

    def close(self) -> None:
        """Remove everything: containers, daemon, files."""
        if self._process is not None:
            names = self.containers()
            if names:
                self._docker("rm", "-f", "-v", *names)
        self.stop()
        for mount in reversed([line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]):
            if mount.startswith(f"{self.root}/"):
                subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(self.root, ignore_errors=True)
        _bridge_ioctl(SIOCBRDELBR)

    def _docker(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        env = {key: value for key, value in os.environ.items() if key != "DOCKER_HOST"}
        return subprocess.run(["docker", "-H", self.url, *arguments], capture_output=True, env=env, timeout=30)
