"""What views, API, admin and commands all call. Keyword-only, atomic, validated first, audited; they return models."""

from projects.services.actions import (
    operation_cancel,
    operation_retry,
    project_action,
    project_delete,
    project_purge,
)
from projects.services.changes import project_update
from projects.services.connections import connection_reveal
from projects.services.creation import ProjectRequest, project_create, slug_preview
from projects.services.forgetting import project_forget, region_declare_gone
from projects.services.keys import key_confirm, key_create, key_revoke, key_verify
from projects.services.moving import plan_change, project_move
from projects.services.quotas import usage_of
from projects.services.regions import region_check, region_enable, region_remove, region_save

__all__ = [
    "ProjectRequest",
    "connection_reveal",
    "key_confirm",
    "key_create",
    "key_revoke",
    "key_verify",
    "operation_cancel",
    "operation_retry",
    "plan_change",
    "project_action",
    "project_create",
    "project_delete",
    "project_forget",
    "project_move",
    "project_purge",
    "project_update",
    "region_check",
    "region_declare_gone",
    "region_enable",
    "region_remove",
    "region_save",
    "slug_preview",
    "usage_of",
]
