"""The package that people install: built, unpacked elsewhere, imported there, used."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from drf_spectacular.generators import SchemaGenerator

import novastack_client

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clients" / "python"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "dist"))
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")],
        cwd=source, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_the_wheel_has_what_it_needs_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode())
    assert "novastack_client/py.typed" in names
    modules = {path.name for path in (PACKAGE / "src" / "novastack_client").iterdir() if path.is_file()}
    assert {name.split("/")[1] for name in names if name.startswith("novastack_client/")} == modules
    assert metadata["Name"] == "novastack-client" and metadata["Version"] == novastack_client.__version__
    assert metadata.get_all("Requires-Dist") == ["httpx>=0.27"] and metadata["Requires-Python"] == ">=3.11"


def test_it_works_where_nothing_of_ours_is(wheel: Path, tmp_path: Path) -> None:
    """From the unpacked wheel, in a folder of its own, without the checkout in sight."""
    target = tmp_path / "target"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    program = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import novastack_client as n
assert n.__file__.startswith(sys.argv[1]), n.__file__
try:
    n.NovaStack("http://127.0.0.1:9", "nvs_x", retries=1, backoff_seconds=0.01).get_project("1")
except n.Unavailable as error:
    print(error.code)
async def main():
    async with n.AsyncNovaStack("http://127.0.0.1:9", "nvs_x", retries=0) as nova:
        try:
            await nova.allocate_database("1")
        except n.Unavailable as error:
            print(error.code)
asyncio.run(main())
assert not {"django", "projects", "novastack"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(target)], cwd=tmp_path, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["no_answer", "no_answer"]


def test_its_readme_names_every_call() -> None:
    text = (PACKAGE / "README.md").read_text()
    calls = {name for name in dir(novastack_client.client.Calls) if not name.startswith("_")}
    assert calls and {name for name in calls if f"`{name}`" not in text} == set()
    assert f"## {novastack_client.__version__}\n" in (PACKAGE / "CHANGELOG.md").read_text()
    for name in calls:
        assert getattr(novastack_client.NovaStack, name).__doc__, name


@pytest.mark.parametrize(
    ("model", "component"),
    [("Project", "CreatedProject"), ("Operation", "Operation"), ("ApiKey", "KeyCreated"), ("KeyCheck", "VerifyOutput"),
     ("Connection", "ConnectionOutput"), ("Service", "ServiceAccepted"), ("ProjectStatus", "StatusOutput"),
     ("PoolRoom", "PoolRoomOutput"), ("Pool", "PoolDetail"), ("PoolLimits", "PoolLimits"),
     ("PoolMember", "PoolMember"),
     ("MovePreview", "MovePreview"), ("Limits", "Limits"), ("Step", "Step"), ("WriteFence", "WriteFenceOutput")],
)  # fmt: skip
def test_its_models_know_what_the_schema_says(model: str, component: str) -> None:
    """A field that is new in the API is added to the client's model (with a default), too."""
    schema = SchemaGenerator().get_schema(request=None, public=True)["components"]["schemas"][component]
    known = {field.name for field in dataclasses.fields(getattr(novastack_client, model))}
    assert set(schema["properties"]) - known == set(), (
        f"add to {model} in clients/python/src/novastack_client/models.py"
    )
