"""docs/errors.md holds every stable code that the source raises, with what `retryable` really is."""

from __future__ import annotations

import re
from pathlib import Path

from projects.operations.taxonomy import CODES, document
from tests.docs.codes import operation_codes, refusal_codes

TEXT = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()


def test_every_code_of_an_operation_is_listed() -> None:
    found = {code: said for code, said in operation_codes().items() if re.fullmatch(r"[a-z][a-z_]*", code)}
    assert set(found) == set(CODES), "add it to projects/operations/taxonomy.py, or take it out"
    for code, said in found.items():
        known = CODES[code].retryable
        assert known is None or said - {None} <= {known}, f"{code}: listed as {known}, raised as {said}"


def test_the_document_is_of_the_table() -> None:
    assert document() in TEXT, "put the output of taxonomy.document() into docs/errors.md"


def test_every_error_of_the_seed_has_a_code() -> None:
    seed = (
        "ProjectNotFound", "DatabaseCreation", "SchemaCreation", "ServiceRegistration", "ApiKeyGeneration",
        "QuotaExceeded", "RegionUnavailable", "ProvisioningNetwork", "ProvisioningTimeout",
    )  # fmt: skip
    for name in seed:
        assert f"{name}Error |" in TEXT


def test_every_refusal_is_listed_with_its_status() -> None:
    listed = {}
    for codes, status in re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \| (\d{3}) \|", TEXT, re.M):
        listed |= dict.fromkeys(re.findall(r"`([a-z_]+)`", codes), int(status))
    found = refusal_codes()
    assert set(found) == set(listed)
    for code, status in found.items():
        assert status in {0, listed[code]}, code
