"""The installation is gone, its storage and its recovery kit are there: what it backed up lives again."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command

from accounts.models import Membership
from accounts.permissions import Principal
from backups.models import Backup, BackupKey, OfflineKey, Proof, SigningKey, StorageTarget
from backups.services.kits import kit_export
from backups.services.proofs import backup_verify
from projects.models import Project
from tests.factories import OrganizationFactory
from tests.faults.conftest import Site
from tests.restores.taken import take
from tests.restores.test_new_projects import fill, restore, run, told

pytestmark = pytest.mark.docker


def test_what_a_gone_installation_backed_up_is_proven_and_restored(
    docker_site: Site, target: StorageTarget, tmp_path: Path
) -> None:
    site, alice = docker_site, docker_site.team.alice
    source = site.ready()
    fill(site, source)
    taken = take(source)
    kit = tmp_path / "kit"
    kit.write_text(kit_export(principal=Principal.of(alice), organization=site.team.organization).text)
    for model in (Backup, StorageTarget, BackupKey, OfflineKey, SigningKey):
        model.objects.all().delete()

    other = OrganizationFactory(slug="other")
    Membership.objects.create(user=alice, organization=other, role="owner")
    out = StringIO()
    call_command("backups_adopt", kit=kit, path="here", organization="other", stdout=out)
    assert out.getvalue() == "1 adopted, 0 known already, 0 untrusted\n"
    backup = Backup.objects.get()
    assert (backup.pk, backup.organization_id, backup.trusted) == (taken.pk, other.pk, True)
    assert (backup.status, backup.verified_at) == ("stored", None), "it is proven here before it is called so"

    operation = site.finish(backup_verify(principal=Principal.of(alice), backup=backup), 120)
    backup.refresh_from_db()
    assert (operation.state, backup.status) == ("succeeded", "verified"), told(operation)
    assert Proof.objects.get().differences == []

    made = restore(site, backup, target="new_project", name="Lives again")
    operation = run(site, made)
    assert operation.state == "succeeded", told(operation)
    project = Project.objects.get(pk=made.project_uuid)
    assert (project.organization_id, project.status, site.rows_of(project)) == (other.pk, "running", 1000)
