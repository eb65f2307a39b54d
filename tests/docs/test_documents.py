"""What the documents say is so: every call of the API is in the user manual, every variable in .env.example, no dead link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from drf_spectacular.generators import SchemaGenerator

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def calls_in_manual() -> set[tuple[str, str]]:
    text = (ROOT / "docs" / "user-manual.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    found = set()
    for block in blocks:
        for call in block.split("curl ")[1:]:
            path = re.search(r'"\$api(/[^"?]*)', call)
            if path is None:
                continue
            given = re.search(r"-X (\w+)", call)
            method = given[1] if given else "POST" if " -d " in call else "GET"
            found.add((method, re.sub(r"\$\w+", "{}", path[1])))
    return found


def test_the_manual_shows_every_call() -> None:
    paths = SchemaGenerator().get_schema(request=None, public=True)["paths"]
    wanted = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path.removeprefix("/api/v1")))
        for path, methods in paths.items()
        for method in methods
        if path.startswith("/api/v1/") and "schema" not in path
    }
    assert wanted - calls_in_manual() == set()
    assert calls_in_manual() - wanted == set()


def test_env_example_names_every_variable() -> None:
    settings = (ROOT / "novastack" / "settings.py").read_text()
    read = set(re.findall(r'env(?:\.\w+)?\(\s*"([A-Z][A-Z_]+)"', settings))
    compose = set(re.findall(r"\$\{([A-Z][A-Z_]+)[:}]", (ROOT / "docker-compose.yml").read_text()))
    example = set(re.findall(r"^#? ?([A-Z][A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
    assert (read | compose) - example == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document if not path else (document.parent / path)
        assert file.exists(), f"{document.name} links to {target}"
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{document.name} links to {target}"


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for document in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)", document.read_text()))
        named |= set(re.findall(r"^\$ make ([a-z-]+)", document.read_text(), re.M))
        assert named <= targets, (document.name, named - targets)


def test_decisions_are_numbered_once_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    files = sorted(path.name for path in folder.glob("[0-9]*.md"))
    numbers = [name[:4] for name in files]
    assert len(set(numbers)) == len(numbers), (
        "two have one number"
    )  # one may be missing: it is reserved, or was dropped
    index = (folder / "README.md").read_text()
    assert [name for name in files if f"({name})" not in index] == []
