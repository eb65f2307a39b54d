from accounts.models.audit import AuditEvent
from accounts.models.choices import Role, Scope, Theme
from accounts.models.organizations import Invitation, Membership, Organization
from accounts.models.quotas import QuotaDefaults
from accounts.models.tokens import ApiToken, RefreshFamily
from accounts.models.users import User

__all__ = [
    "ApiToken",
    "AuditEvent",
    "Invitation",
    "Membership",
    "Organization",
    "QuotaDefaults",
    "RefreshFamily",
    "Role",
    "Scope",
    "Theme",
    "User",
]
