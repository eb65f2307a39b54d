"""Services around a database (seed 001: auth, realtime, storage): where they answer, and which projects they know."""

from __future__ import annotations

from django.db import models

from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField
from projects.models.catalogue import Region
from projects.models.projects import Project


class ServiceType(models.TextChoices):
    AUTH = "auth", "Auth"
    REALTIME = "realtime", "Realtime"
    STORAGE = "storage", "Storage"


class ServiceStatus(models.TextChoices):
    ACTIVE = "active", "Active"
    DISABLED = "disabled", "Disabled"
    ERROR = "error", "Error"


class ServiceConnector(BaseModel):
    """Where a region's service of one type takes registrations: an HTTP endpoint that an operator configures."""

    region = models.ForeignKey(Region, on_delete=models.CASCADE, related_name="connectors")
    service_type = models.CharField(max_length=16, choices=ServiceType)
    url = models.CharField(max_length=500, help_text="Takes signed JSON by POST; see docs/services.md.")
    signing_secret = EncryptedField()
    timeout_seconds = models.PositiveSmallIntegerField(default=5, help_text="1 to 15, for one call.")
    enabled = models.BooleanField(default=True)
    healthy = models.BooleanField(null=True, editable=False)
    health_detail = models.CharField(max_length=300, blank=True, editable=False)
    checked_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        ordering = ["region", "service_type"]
        constraints = [
            models.UniqueConstraint(fields=["region", "service_type"], name="service_connector_once"),
            models.CheckConstraint(
                condition=models.Q(timeout_seconds__gte=1, timeout_seconds__lte=15), name="service_connector_timeout"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_service_type_display()} in {self.region.name}"


class ProjectService(BaseModel):
    """What one service knows of one project. `active` only after the service itself has said so."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="project_services")
    service_type = models.CharField(max_length=16, choices=ServiceType)
    status = models.CharField(max_length=16, choices=ServiceStatus, default=ServiceStatus.DISABLED)
    reason = models.CharField(max_length=300, blank=True, help_text="Why it is not active, for people.")
    service_id = models.CharField(max_length=200, blank=True, help_text="The service's own name of the registration.")
    endpoint = models.CharField(max_length=500, blank=True)
    config = models.JSONField(default=dict, blank=True)
    generation = models.PositiveIntegerField(default=0, help_text="Grows with each new registration: names its calls.")
    may_be_known = models.BooleanField(
        default=False, help_text="Written before the service is told, and taken back when it has confirmed to forget."
    )
    registered_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["service_type"]
        constraints = [models.UniqueConstraint(fields=["project", "service_type"], name="project_service_once")]

    def __str__(self) -> str:
        return f"{self.service_type}: {self.status}"
