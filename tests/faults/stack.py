"""The control plane's own processes, as they run in production: Celery workers and beat, and a broker of the test's own
that can be emptied, stopped, or made to hang."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from celery import Celery
from django.conf import settings
from django.db import connection

from novastack.embedded import broker as file_broker
from projects.operations import queue, reconciler

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis:
    """A real Redis without persistence: what it forgets, it forgets."""

    name = "Redis"

    def __init__(self) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server here")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([*argv, "--dir", "/tmp"], stdout=subprocess.DEVNULL)
        wait_for(lambda: self._ask("PING") == "PONG", 10, "Redis")

    def _ask(self, *words: str) -> str:
        argv = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout.strip()

    def empty(self) -> None:
        assert self._ask("FLUSHALL") == "OK"

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process = None

    def options(self) -> dict[str, object]:
        return dict(settings.REDIS_BROKER_OPTIONS)

    remove = stop


class FileBroker:
    """The folders of an embedded install."""

    name = "file broker"
    url = "filesystem://"

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="nvs-broker-", dir="/tmp"))

    def start(self) -> None:
        file_broker.prepare(self.home)

    def empty(self) -> None:
        file_broker.drop_messages(self.home, older_than_seconds=0)

    def stop(self) -> None:
        """There is nothing to stop: its folders go away."""
        shutil.rmtree(self.home / "broker", ignore_errors=True)

    def options(self) -> dict[str, object]:
        return file_broker.transport_options(self.home)

    def remove(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)


Broker = Redis | FileBroker


def database_url() -> str:
    """Of the database that this process works on."""
    known = connection.settings_dict
    password = quote(str(known["PASSWORD"]), safe="")
    return f"postgresql://{known['USER']}:{password}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


def wait_for(wanted: Callable[[], object], seconds: float, what: str) -> float:
    """Seconds until `wanted` was true."""
    began = time.monotonic()
    while not wanted():
        assert time.monotonic() - began < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - began


class Stack:
    """Celery processes on one broker and one control database. Hints of this process go to that broker as well."""

    def __init__(self, broker: Broker, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker, self.database_url = broker, database_url
        self.folder = Path(tempfile.mkdtemp(prefix="nvs-stack-", dir="/tmp"))
        self.processes: list[subprocess.Popen[bytes]] = []
        app = Celery("stack", broker=broker.url, set_as_current=False)
        app.config_from_object("django.conf:settings", namespace="CELERY")
        app.conf.update(broker_url=broker.url, broker_transport_options=broker.options())
        monkeypatch.setattr(queue, "current_app", app)
        self.app = app

    def _start(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        home = getattr(self.broker, "home", self.folder)
        env = {
            **os.environ, "DATABASE_URL": self.database_url, "BROKER_URL": self.broker.url, "NOVASTACK_MODE": "test",
            "NOVASTACK_HOME": str(home), "NOVASTACK_DATA_GRACE_SECONDS": "0", "NOVASTACK_LOG_LEVEL": "INFO",
            "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "novastack.settings",
        }  # fmt: skip
        log = (self.folder / f"{name}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "novastack.celery:app", *argv],
            env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        self.processes.append(process)
        return process

    def worker(self, queues: str = "provisioning,monitoring,maintenance,backups") -> subprocess.Popen[bytes]:
        number = len(self.processes)
        process = self._start(
            f"worker{number}", "worker", "-Q", queues, "-n", f"w{number}@%h", "-P", "threads", "-c", "4",
            "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO",
        )  # fmt: skip
        log = self.folder / f"worker{number}.log"
        wait_for(lambda: "[tasks]" in log.read_text(), 40, "a worker")
        return process

    def beat(self) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        schedule = str(self.folder / f"beat{number}.schedule")
        return self._start(f"beat{number}", "beat", "-s", schedule, "--pidfile=", "-l", "INFO")

    def logs(self) -> str:
        return "\n".join(f"== {file.name}\n{file.read_text()[-3000:]}" for file in sorted(self.folder.glob("*.log")))

    def all_alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(60)
        self.processes.clear()

    def remove(self) -> None:
        self.kill()
        self.app.close()
        self.broker.remove()
        shutil.rmtree(self.folder, ignore_errors=True)


def hints_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hint that this process sends is lost on its way."""
    monkeypatch.setattr(queue, "send_hint", lambda *_: None)
    monkeypatch.setattr(reconciler, "send_hint", lambda *_: None)
    assert settings.TESTING
