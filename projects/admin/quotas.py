"""What an organization uses of its quotas, in the admin: `accounts` knows no projects, so its page is completed here."""

from __future__ import annotations

from django.contrib import admin
from django.template.defaultfilters import filesizeformat
from django.utils.html import format_html_join

from accounts.admin import OrganizationAdmin as Plain
from accounts.models import Organization
from projects.services.quotas import QUOTAS, usage_of

admin.site.unregister(Organization)


@admin.register(Organization)
class OrganizationAdmin(Plain):
    readonly_fields = [*Plain.readonly_fields, "usage"]

    @admin.display(description="used, and what counts")
    def usage(self, organization: Organization) -> str:
        def said(name: str, number: int) -> str:
            return filesizeformat(number) if name.endswith("_bytes") else str(number)

        rows = usage_of(organization).items()
        return format_html_join(
            "", "<div>{}: {} of {}</div>",
            ((QUOTAS[name][1].capitalize(), said(name, q["used"]), said(name, q["limit"])) for name, q in rows),
        )  # fmt: skip
