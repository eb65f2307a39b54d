"""The process runtime: real servers as processes of this machine, for where there is no container engine.

As root every server has an account of its own, and so is a trust domain; otherwise everything runs as the current user
and servers are only as separate as their passwords. Servers are sessions of their own: they outlive whoever started
them and are known by (pid, start time, boot). Linux only (/proc).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from projects.domain import (
    Command,
    DataMissing,
    DataPolicy,
    Handle,
    ImageMissing,
    Limits,
    LimitTooSmall,
    ServerSpec,
    StaleHandle,
    ToolHandle,
)
from projects.runtimes import process_start
from projects.runtimes.process_accounts import Account, ensure_account, remove_account
from projects.runtimes.process_asking import SYSTEM, ProcessAsking, honest
from projects.runtimes.process_binaries import Found, prints, reachable
from projects.runtimes.process_tools import ToolPlace, remove_tool, start_tool
from projects.runtimes.process_volume import Volume, handle_of

TOOL_ACCOUNT = "novastack-tool"


class ProcessRuntime(ProcessAsking):
    """`root` must be a folder that unprivileged accounts can pass through (as root; see `novastack.embedded.paths`).

    `programs` names the program to look for per engine, where it differs from the official image's name.
    """

    @honest
    def ensure(self, spec: ServerSpec, *, data: DataPolicy) -> Handle:
        volume = Volume(self.root, spec.handle)
        if spec.process is None:
            raise ImageMissing(f"{spec.engine} can't run as a plain process: it needs Docker")
        found = self._find(spec.process.binary, spec.version, spec.process.version_argv)
        self._make_root()
        with volume.held():
            folder = volume.path / spec.data_subdir
            if data is DataPolicy.CREATE:
                if not volume.exists():
                    process_start.check_port(spec.publish.host, spec.publish.port)
                volume.create(self.install_id, self._account_for(spec.handle))
            else:
                volume.check(self.install_id, folder / spec.initialised_file)
            account = volume.account()
            found = reachable(found, account)
            plan = process_start.plan_of(spec, found, folder, volume.files)
            last = volume.last_ref()
            if last and last.alive():
                if volume.read("run.json").get("spec_hash") == plan["spec_hash"]:
                    volume.write("spec.json", plan)
                    self._groups.set(volume.name, spec.limits)
                    return process_start.with_ref(spec.handle, last)
                process_start.end(volume, last, grace_seconds=10)
            process_start.check_port(spec.publish.host, spec.publish.port)
            volume.put_files(spec.files, account)
            if not volume.initialised():
                process_start.initialise(volume, spec, found, folder, account)
            volume.write("spec.json", plan)
            return process_start.run(volume, account, self._groups)

    @honest
    def start(self, handle: Handle) -> Handle:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            last = volume.last_ref()
            if last and last.alive():
                return process_start.with_ref(handle, last)
            volume.check(self.install_id, Path(plan["initialised"]))
            process_start.check_port(plan["host"], plan["port"])
            return process_start.run(volume, volume.account(), self._groups)

    @honest
    def stop(self, handle: Handle, *, grace_seconds: float = 15) -> None:
        volume = Volume(self.root, handle)
        if not volume.record.is_file():
            return
        with volume.held():
            self._must_match(volume, handle)
            if last := volume.last_ref():
                process_start.end(volume, last, grace_seconds=grace_seconds)

    @honest
    def update(self, handle: Handle, limits: Limits) -> None:
        volume = Volume(self.root, handle)
        with volume.held():
            plan = self._must_match(volume, handle)
            before = volume.limits()
            self._groups.set(volume.name, limits)
            holds = self._groups.memory_limit(volume.name)
            last = volume.last_ref()
            if last and last.alive():
                if holds is not None and holds > limits.memory_bytes:
                    self._groups.set(volume.name, before)
                    raise LimitTooSmall("the server uses more memory than that")
                process_start.allow(last, process_start.data_bytes(plan, limits))
            volume.write("spec.json", plan | {"limits": asdict(limits)})

    @honest
    def put_files(self, handle: Handle, files: Mapping[str, bytes]) -> None:
        volume = Volume(self.root, handle)
        with volume.held():
            self._must_match(volume, handle)
            volume.put_files(files, volume.account())

    @honest
    def tls_reason(self, spec: ServerSpec) -> str:
        if spec.process is None or not spec.process.tls_argv:
            return ""
        found = self._find(spec.process.binary, spec.version, spec.process.version_argv)
        if prints(found.program(spec.process.binary), spec.process.tls_argv):
            return ""
        return f"the {spec.process.binary} {found.version} of this machine was built without TLS"

    @honest
    def destroy(self, handle: Handle, *, delete_data: bool) -> None:
        volume = Volume(self.root, handle)
        if not volume.path.is_dir():
            return
        with volume.held():
            if volume.exists() and not volume.marked_for(self.install_id):
                raise StaleHandle("the data in this place belongs to another install")
            if last := volume.last_ref():
                if handle.ref and handle.ref != str(last):
                    raise StaleHandle("the server under this name is not the one that was recorded")
                process_start.end(volume, last, grace_seconds=5)
                volume.record.unlink(missing_ok=True)
            self._groups.remove(volume.name)
            if delete_data:
                marker = volume.read("marker.json")
                # The marker goes last: what is half deleted is still ours, and deleted again.
                for path in volume.path.iterdir():
                    if path != volume.own:
                        shutil.rmtree(path)
                shutil.rmtree(volume.path)
                if marker.get("own_account"):
                    remove_account(str(marker.get("account", "")))
                (self.root / "locks" / volume.name).unlink(missing_ok=True)

    @honest
    def run_tool(
        self,
        name: str,
        image: str,
        command: Command,
        *,
        beside: Handle | None = None,
        memory_bytes: int = 256 << 20,
    ) -> ToolHandle:
        folder, program = self._tool_program(image, command.argv[0], beside)
        folder = ":".join([folder or str(program.parent), *self._more_programs(command, folder)])
        place = self._tool_place()
        self._make_root()
        place.root.mkdir(exist_ok=True)
        place.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
        return start_tool(place, name, program, command, memory_bytes=memory_bytes, folder=folder)

    @honest
    def remove_tool(self, name: str) -> None:
        remove_tool(self._tool_place(), name)

    def place_of(self, spec: ServerSpec) -> tuple[str, int]:
        """There is one network: that of this machine."""
        return ("127.0.0.1" if spec.publish.host in {"0.0.0.0", "::", ""} else spec.publish.host), spec.publish.port  # noqa: S104 - a comparison

    def _tool_place(self) -> ToolPlace:
        return ToolPlace(self.root / "tools", self._groups, self._tool_account)

    @staticmethod
    def _account_for(handle: Handle) -> Account:
        """One account per server; its name carries the random end of the id."""
        digest = hashlib.sha256(handle.name.encode()).hexdigest()[:12]
        return ensure_account(f"nvs{digest}")

    @staticmethod
    def _tool_account() -> Account:
        return ensure_account(TOOL_ACCOUNT)

    def _tool_program(self, image: str, name: str, beside: Handle | None) -> tuple[str, Path]:
        """Folder of the server's own programs, and the tool from there, so that versions agree."""
        folder = ""
        if beside is not None:
            folder = str(Volume(self.root, beside).read("spec.json").get("bin", ""))
        match = re.fullmatch(r"(?P<program>.+)-(?P<version>\d+(\.\d+)*)", image)
        if not folder and match:
            found = self._find(match["program"], match["version"])
            folder = str(reachable(found, self._tool_account()).place.bin)
        path = shutil.which(Path(name).name, path=folder or None) or shutil.which(Path(name).name)
        if path is None:
            raise ImageMissing(f"this machine has no {Path(name).name}")
        return folder, Path(path)

    def _more_programs(self, command: Command, folder: str) -> list[str]:
        """Folders of what the tool runs besides, where that is neither with the server nor a program of the system. What is
        nowhere is left out: the tool says so."""
        found = []
        for name in command.programs:
            if shutil.which(name, path=f"{folder}:{SYSTEM}" if folder else SYSTEM):
                continue
            if (place := self._place_of(name)) is not None:
                # Copied where others can't reach it, and again when what is in it changed.
                more = Found(place, f"tools-{place.bin.stat().st_mtime_ns}")
                found.append(str(reachable(more, self._tool_account()).place.bin))
        return list(dict.fromkeys(found))

    def _must_match(self, volume: Volume, handle: Handle) -> dict[str, Any]:
        """The server's plan. `StaleHandle` if nothing, or another process than the recorded one, is behind the name."""
        last = volume.last_ref()
        if last is None:
            raise (
                StaleHandle("this server is not here any more")
                if volume.exists()
                else DataMissing("the data of this server is not here")
            )
        if handle.ref and handle.ref != str(last):
            raise StaleHandle("the server under this name is not the one that was recorded")
        return volume.read("spec.json")


def end_all_servers(root: Path, *, grace_seconds: float) -> int:
    """Stop every server below `root`, all at once, as wanted stops; returns how many ran. For whoever owns the machine's
    life: data stays, and the reconciler starts them again when the control plane is back."""
    running = []
    folder = root / "servers"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        handle = handle_of(path.name)
        last = Volume(root, handle).last_ref() if handle else None
        if handle and last and last.alive():
            running.append((Volume(root, handle), last))
    threads = [
        threading.Thread(target=process_start.end, args=(volume, ref), kwargs={"grace_seconds": grace_seconds})
        for volume, ref in running
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(running)


def remove_all_servers(root: Path) -> None:
    """Remove every server below `root` with its data and account: for throw-away installs."""
    folder = root / "servers"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if handle := handle_of(path.name):
            install = str(Volume(root, handle).read("marker.json").get("install", ""))
            runtime = ProcessRuntime(install, root)
            runtime.destroy(handle, delete_data=True)
            runtime._groups.remove("")
