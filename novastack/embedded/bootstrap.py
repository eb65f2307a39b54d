"""A virtualenv with what a requirements file pins: `python3 novastack/embedded/bootstrap.py VENV REQUIREMENTS`.

Run by the Makefile with the system's Python, so it uses the standard library only and says clearly what lacks. It does
nothing when the virtualenv was made from the same files by the same Python. Two at once wait for each other.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO, NoReturn

OLDEST = (3, 11)


def main() -> None:
    if sys.version_info < OLDEST:
        use_a_newer_python()
    venv, requirements = Path(sys.argv[1]), Path(sys.argv[2])
    # requirements-dev.txt holds all of requirements.txt: a virtualenv for development serves `make run` too.
    candidates = [requirements, requirements.with_name("requirements-dev.txt")]
    if any((venv / stamp(path)).is_file() for path in candidates if path.is_file()):
        return
    lock = open_lock(venv)
    try:
        if not (venv / stamp(requirements)).is_file():
            install(venv, requirements)
    finally:
        lock.close()


def use_a_newer_python() -> None:
    """Go on with a newer Python if this machine has one; otherwise say what to install."""
    for minor in range(20, OLDEST[1] - 1, -1):
        other = shutil.which(f"python3.{minor}")
        if other:
            os.execv(other, [other, *sys.argv])  # noqa: S606
    fail(
        f"NovaStack needs Python 3.11 or newer; this is {sys.version.split()[0]}.",
        "Install a newer one, or name it: make PYTHON=/path/to/python3.12 run",
    )


def stamp(requirements: Path) -> str:
    """The name of the file that says: this Python installed exactly these versions here."""
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:16]
    return f".novastack-{requirements.stem}-{digest}"


def open_lock(venv: Path) -> IO[str]:
    import fcntl

    venv.parent.mkdir(parents=True, exist_ok=True)
    lock = venv.with_name(venv.name + ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def install(venv: Path, requirements: Path) -> None:
    python = venv / "bin" / "python"
    if not works(python):
        make(venv)
    print(f"Installing {requirements} into {venv} (once; about a minute) ...", flush=True)
    pip = [str(python), "-m", "pip"]
    if not works(python, "-m", "pip", "--version"):
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", str(requirements)],
        check=False,
    )
    if done.returncode:
        fail(f"pip could not install {requirements}; its own words are above.")
    for old in venv.glob(f".novastack-{requirements.stem}-*"):
        old.unlink()
    (venv / stamp(requirements)).touch()


def works(python: Path, *arguments: str) -> bool:
    """Whether this interpreter runs and is of our own version (a system upgrade leaves broken ones behind)."""
    arguments = arguments or ("-c", f"import sys; raise SystemExit(sys.version_info[:2] != {sys.version_info[:2]!r})")
    try:
        return subprocess.run([str(python), *arguments], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


def make(venv: Path) -> None:
    options = ["--clear"]
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("pip") is None:
            fail(
                "This Python has no venv.",
                "Debian, Ubuntu:  apt install python3-venv",
                "Fedora, others:  install the package with Python's venv and ensurepip modules",
            )
        options.append("--without-pip")  # Debian's python3 with python3-pip, but without python3-venv
    done = subprocess.run([sys.executable, "-m", "venv", *options, str(venv)], check=False)
    if done.returncode:
        fail(
            f"Could not make a virtualenv in {venv}.",
            "On Debian and Ubuntu it needs: apt install python3-venv",
        )


def fail(*lines: str) -> NoReturn:
    sys.stderr.write("\n".join(lines) + "\n")
    raise SystemExit(1)


if __name__ == "__main__":
    main()
