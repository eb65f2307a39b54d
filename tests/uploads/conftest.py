"""The same sites and storages as backups have; and a bucket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from accounts.permissions import Principal
from backups.models import StorageTarget
from backups.services.storages import storage_create, storage_make_default
from tests.backups import s3_server
from tests.backups.conftest import _empty_cache, backup_root, target, team  # noqa: F401
from tests.factories import Team
from tests.faults.conftest import _fresh, docker_site, process_site  # noqa: F401


@pytest.fixture
def s3(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """A real S3 server; where its one bucket's files lie. `bucket_of` makes it an organization's default."""
    settings.NOVASTACK_OUTBOUND_ALLOW = ["127.0.0.0/8"]
    folder = tmp_path / "s3"
    folder.mkdir()
    with s3_server.versitygw(folder) as port:
        (folder / "buckets" / "offsite").mkdir()
        (folder / "port").write_text(str(port))
        yield folder / "buckets" / "offsite"


def bucket_of(owners: Team, bucket: Path) -> StorageTarget:
    made = storage_create(
        principal=Principal.of(owners.alice), organization=owners.organization, name="bucket", kind="s3",
        config={
            "endpoint": f"http://127.0.0.1:{(bucket.parents[1] / 'port').read_text()}", "bucket": bucket.name,
            "region": "us-east-1", "prefix": "nova",
        },
        secret={"access_key": s3_server.ACCESS, "secret_key": s3_server.SECRET},
    )  # fmt: skip
    return storage_make_default(principal=Principal.of(owners.alice), storage=made)
