"""What pools need besides servers: databases made ahead, and who asked for which."""

from __future__ import annotations

from django.db import models

from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField
from projects.models.projects import Project
from projects.models.servers import DatabaseServer


class BlankDatabase(BaseModel):
    """A database on a pool that is nobody's yet: made ahead, empty, closed to everybody. A claim renames it and deletes
    this row in one transaction with the database's row."""

    server = models.ForeignKey(DatabaseServer, on_delete=models.CASCADE, related_name="blanks")
    name = models.CharField(max_length=63)
    ready_at = models.DateTimeField(null=True, help_text="From then on it may be claimed.")
    tables = models.BooleanField(default=True, help_text="It has the bootstrap tables.")
    # Of the roles that were made with it: whoever claims it gets them.
    login_secret = EncryptedField()
    control_secret = EncryptedField()

    class Meta:
        ordering = ["created_at", "id"]
        constraints = [models.UniqueConstraint(fields=["server", "name"], name="blank_name_on_server")]

    def __str__(self) -> str:
        return self.name


class Allocation(BaseModel):
    """Somebody else's instance and the project that it was given: the same `instance_id` always gets the same one."""

    organization = models.ForeignKey("accounts.Organization", on_delete=models.CASCADE, related_name="allocations")
    instance_id = models.CharField(max_length=128)
    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="allocation")
    dedicated = models.BooleanField(default=False, help_text="A server of its own was asked for.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["organization", "instance_id"], name="allocation_once")]

    def __str__(self) -> str:
        return self.instance_id
