"""Words of the accounts. What a role or a scope allows stands in `accounts.permissions` and nowhere else."""

from django.db import models


class Role(models.TextChoices):
    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    MEMBER = "member", "Member"
    VIEWER = "viewer", "Viewer"


class Scope(models.TextChoices):
    READ = "read", "Read"
    WRITE = "write", "Write"
    CONNECT = "connect", "Connect (see passwords)"
    ADMIN = "admin", "Administer the organization"


class Theme(models.TextChoices):
    LIGHT = "light", "Light"
    DARK = "dark", "Dark"
    SYSTEM = "system", "As the system"
