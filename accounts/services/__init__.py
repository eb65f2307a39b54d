"""What can be done to accounts. Pages, API, admin and commands all call these; each is atomic and audited."""

from accounts.services.audit import record
from accounts.services.invitations import (
    invitation_accept,
    invitation_by_token,
    invitation_remember,
    invitation_remembered,
    invitation_revoke,
    member_invite,
)
from accounts.services.organizations import (
    member_change_role,
    member_remove,
    organization_create,
    organization_delete,
    organization_delete_guards,
    organization_for,
    organization_select,
    organization_update,
)
from accounts.services.sessions import TokenPair, session_end, session_refresh, session_start
from accounts.services.tokens import revoke_after_restore, token_create, token_revoke, tokens_for_list
from accounts.services.users import (
    clean_up,
    membership_ensure,
    password_change,
    personal_organization_ensure,
    profile_update,
    registration_open,
    user_create,
    user_register,
    user_sign_out_everywhere,
)

__all__ = [
    "TokenPair",
    "clean_up",
    "invitation_accept",
    "invitation_by_token",
    "invitation_remember",
    "invitation_remembered",
    "invitation_revoke",
    "member_change_role",
    "member_invite",
    "member_remove",
    "membership_ensure",
    "organization_create",
    "organization_delete",
    "organization_delete_guards",
    "organization_for",
    "organization_select",
    "organization_update",
    "password_change",
    "personal_organization_ensure",
    "profile_update",
    "record",
    "registration_open",
    "revoke_after_restore",
    "session_end",
    "session_refresh",
    "session_start",
    "token_create",
    "token_revoke",
    "tokens_for_list",
    "user_create",
    "user_register",
    "user_sign_out_everywhere",
]
