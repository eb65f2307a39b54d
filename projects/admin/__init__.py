"""Projects in the Django admin: to look at, and to act through the same services as everybody (audited).

State is read-only, secrets are never shown, and nothing is deleted here: that is deprovisioning's.
"""

from projects.admin import catalogue, operations, projects, quotas, servers

__all__ = ["catalogue", "operations", "projects", "quotas", "servers"]
