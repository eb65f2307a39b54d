"""One `ssh` per process and engine: a local socket that leads to the engine's socket on another machine.

The system's client, not a library: its checks of host keys are the ones that are known. It reads no configuration, no
agent and no known hosts but ours. It ends with us, whatever ends us; its key file exists only while it logs in.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from projects.domain import RuntimeEndpoint, RuntimeUnreachable
from projects.runtimes.endpoints import Address, host_keys

CONNECT_SECONDS = 8
WAIT_SECONDS = 11.0  # below the time limit of a call
RETRY_SECONDS = 2.0
_ALIAS = "novastack-engine"
_OPTIONS = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes", "HostKeyAlias": _ALIAS, "GlobalKnownHostsFile": "/dev/null",
    "UpdateHostKeys": "no", "CheckHostIP": "no", "VerifyHostKeyDNS": "no",
    "IdentitiesOnly": "yes", "IdentityAgent": "none", "PreferredAuthentications": "publickey",
    "ForwardAgent": "no", "ForwardX11": "no", "PermitLocalCommand": "no", "ControlMaster": "no", "ControlPath": "none",
    "ExitOnForwardFailure": "yes", "StreamLocalBindMask": "0177", "StreamLocalBindUnlink": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS), "ServerAliveInterval": "5", "ServerAliveCountMax": "2", "LogLevel": "INFO",
}  # fmt: skip
_REASONS = (
    (r"host key is known|HOST IDENTIFICATION HAS CHANGED|Host key verification failed|no matching host key",
     "it shows another host key than the one given"),
    (r"Permission denied", "it refuses the user or the private key"),
    (r"Could not resolve|Name or service not known|Temporary failure in name", "the name is not known"),
    (r"Connection refused", "nothing listens there"),
    (r"timed out|Timeout", "no answer in time"),
    (r"No route to host|unreachable", "there is no way to that address"),
    (r"administratively prohibited", "it does not allow to forward to a socket (AllowStreamLocalForwarding)"),
    (r"open failed|connect failed", "no engine listens at the socket there, or its user may not use it"),
)  # fmt: skip


class Tunnel:
    """Thread-safe. Nothing is started before `ensure`."""

    def __init__(self, address: Address, endpoint: RuntimeEndpoint) -> None:
        self._address, self._endpoint = address, endpoint
        self._lock = threading.Lock()
        self._pid = 0
        self._folder = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        self._failed: tuple[float, str] = (0.0, "")

    @property
    def url(self) -> str:
        """Where the engine answers here; stays the same while this process lives."""
        return f"unix://{self._folder}/engine.sock"

    def ensure(self) -> str:
        """The URL, with the tunnel standing. `RuntimeUnreachable` says why it does not."""
        if self._pid == os.getpid() and self._process is not None and self._process.poll() is None:
            return self.url
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise RuntimeUnreachable(f"no SSH connection to {self._address.netloc} yet")
        try:
            if self._pid != os.getpid():  # after a fork: the parent's is the parent's
                self._pid, self._process, self._failed = os.getpid(), None, (0.0, "")
                self._folder = _private_folder()
            if self._process is None or self._process.poll() is not None:
                at, reason = self._failed
                if time.monotonic() - at < RETRY_SECONDS:
                    raise RuntimeUnreachable(reason)
                try:
                    self._connect()
                except RuntimeUnreachable as error:
                    self._failed = (time.monotonic(), str(error))
                    raise
            return self.url
        finally:
            self._lock.release()

    def why(self) -> str:
        """What SSH said last, for people; empty if nothing that is understood."""
        time.sleep(0.1)  # it speaks a moment after it acts
        text = "\n".join(self._said)
        return next((words for pattern, words in _REASONS if re.search(pattern, text)), "")

    def close(self) -> None:
        """End it. The next `ensure` begins anew."""
        process = self._process
        if process is not None and self._pid == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait(5)

    # --- parts --------------------------------------------------------------------------------------------------------
    def _connect(self) -> None:
        key, known = self._folder / "key", self._folder / "known_hosts"
        _write(key, self._endpoint.key.strip() + "\n")
        _write(known, "".join(f"{_ALIAS} {line}\n" for line in host_keys(self._endpoint.host_keys)))
        self._said.clear()
        started = threading.Event()
        thread = threading.Thread(target=self._run, args=(key, known, started), name="ssh-tunnel", daemon=True)
        thread.start()
        try:
            started.wait(2)
            self._await(time.monotonic() + WAIT_SECONDS)
        except RuntimeUnreachable:
            self.close()
            raise
        finally:
            key.unlink(missing_ok=True)

    def _run(self, key: Path, known: Path, started: threading.Event) -> None:
        """A thread for all of ssh's life: it gets a signal when the thread that started it ends, and so when we do."""
        options = _OPTIONS | {"UserKnownHostsFile": str(known), "IdentityFile": str(key)}
        address = self._address
        argv = [
            "setpriv", "--pdeathsig", "KILL", "ssh", "-F", "none", "-N", "-T",
            *(word for name, value in options.items() for word in ("-o", f"{name}={value}")),
            "-L", f"{self._folder}/engine.sock:{address.path}", "-p", str(address.port), "-l", address.user,
            "--", address.host,
        ]  # fmt: skip
        try:
            (self._folder / "engine.sock").unlink(missing_ok=True)
            self._process = process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"},
            )  # fmt: skip
        except OSError as error:
            self._said.append(f"no ssh client here: {error.strerror}")
            self._process = None
            started.set()
            return
        started.set()
        assert process.stderr is not None  # noqa: S101 - a pipe
        with process.stderr:
            for line in iter(lambda: process.stderr.readline(1000), b""):  # type: ignore[union-attr]
                self._said.append(line.decode("utf-8", "replace").strip())
        process.wait()

    def _await(self, deadline: float) -> None:
        where = f"no SSH connection to {self._address.netloc}"
        while True:
            process = self._process
            if process is None or process.poll() is not None:
                time.sleep(0.05)  # its last words
                raise RuntimeUnreachable(
                    f"{where}: {self.why() or (self._said[-1][:200] if self._said else 'it ended')}"
                )
            if _answers(self._folder / "engine.sock"):
                return
            if time.monotonic() > deadline:
                raise RuntimeUnreachable(f"{where}: no answer in time")
            time.sleep(0.03)


def _answers(path: Path) -> bool:
    """ssh binds the socket once it is logged in."""
    if not path.exists():
        return False
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.settimeout(1)
        probe.connect(str(path))
        return True
    return False


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _private_folder() -> Path:
    """0700, of this process; removed at its end, or by the next one when it was killed."""
    base = Path(tempfile.gettempdir())
    for left in base.glob("nvs-ssh-*"):
        pid = left.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and left.owner() == Path("/proc/self").owner():
            shutil.rmtree(left, ignore_errors=True)
    mine = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"nvs-ssh-{mine}-", dir=base))

    def remove() -> None:
        if os.getpid() == mine:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
