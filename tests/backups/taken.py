"""Backups of real projects, stored for real: dump tool, zstd, age, signed manifest, a filesystem target."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from backups import manifest as manifests
from backups.archive import Sealer
from backups.models import Backup, StorageTarget
from backups.operations import keys, storages
from novastack.common.clock import now
from novastack.common.models import Install
from novastack.common.secrets import random_password
from projects import domain
from projects.models import Database, Project
from projects.operations import stages, wiring


def target(settings: Any, root: Path, **fields: Any) -> StorageTarget:
    settings.NOVASTACK_BACKUP_ROOT = str(root)
    (root / "all").mkdir(exist_ok=True)
    made, _ = StorageTarget.objects.get_or_create(
        name="here", defaults={"kind": "filesystem", "config": {"path": "all"}, **fields}
    )
    return made


def take(project: Project, storage: StorageTarget, *, encrypted: bool = True, image: str = "", **fields: Any) -> Backup:
    """What a backup's own operation does, in short; `stored` afterwards. `image`: which one the manifest names."""
    database = Database.objects.select_related("server__region").get(project=project, slot="current")
    server, names = database.server, wiring.tenant_names(database)
    from projects import registry

    engine, runtime = registry.engine(server.engine), wiring.runtime_of(server.region)
    pk = uuid4()
    key = f"{Install.load().install_id}/{project.organization_id}/{pk}/1"
    tool = domain.Credentials(names.tool, random_password(), names.database)
    with wiring.admin_session(engine, server) as admin:
        admin.admit_tool(names, names.tool, tool.password)
        around, size = admin.around(names), admin.stats(names.database).size_bytes
    host, port = runtime.place_of(engine.server_spec(wiring.server_request(server)))
    place = domain.Endpoint(host, port, server.control_endpoint.tls_name, server.control_endpoint.ca_pem)
    contents = engine.fingerprint(server.control_endpoint, tool)
    runs_on = server.image_digest or server.image
    recipients = keys.recipients_of(project.organization_id) if encrypted else None
    writer = storages.storage_of(storage).writer(key)
    sealer = Sealer(writer, recipients)
    dump = runtime.run_tool(
        f"nvs-tool-{pk}-dump", runs_on, engine.dump(place, tool), beside=server.handle,
        memory_bytes=stages.TOOL_MEMORY_BYTES,
    )  # fmt: skip
    try:
        assert dump.stdout is not None
        while piece := dump.stdout.read(1 << 20):
            sealer.feed(piece)
        assert dump.wait(120).exit_code == 0
    finally:
        dump.kill()
    sealed = sealer.finish()
    writer.commit()
    with wiring.admin_session(engine, server) as admin:
        admin.dismiss_tool(names, names.tool)
    moment = now()
    manifest = manifests.Manifest(
        install=str(Install.load().install_id), organization=str(project.organization_id),
        project={"id": str(project.pk), "name": project.name, "slug": project.slug}, backup=str(pk), key=key,
        engine=project.engine, version=project.version, server_version="", image=image or runs_on, tool="",
        taken_at=str(moment), finished_at=str(moment), dump={"format": "custom", "bytes": sealed.dump_bytes},
        stored={
            "bytes": sealed.size_bytes, "sha256": sealed.sha256, "compressed": sealed.compressed,
            "encrypted": encrypted, "recipients": recipients or [],
        },
        database={"name": names.database, "bytes": size},
        names={"owner": names.owner, "group": names.group, "login": names.login, "control": names.control},
        contents=contents, around=around,
    )  # fmt: skip
    put(storage, f"{key}.manifest", manifests.seal(manifest, recipients, keys.signing_key()))
    return Backup.objects.create(
        pk=pk, organization_id=project.organization_id, project_uuid=project.pk, project_name=project.name,
        project_slug=project.slug, engine=project.engine, version=project.version, storage=storage, object_key=key,
        status="stored", encrypted=encrypted, compressed=sealed.compressed, size_bytes=sealed.size_bytes,
        sha256=sealed.sha256, database_bytes=size, rows=contents.rows, tables=len(contents.tables), finished_at=moment,
        **fields,
    )  # fmt: skip


def put(storage: StorageTarget, key: str, data: bytes) -> None:
    writer = storages.storage_of(storage).writer(key)
    writer.write(data)
    writer.commit()


def read(storage: StorageTarget, key: str) -> bytes:
    with storages.storage_of(storage).open(key) as stream:
        return stream.read()
