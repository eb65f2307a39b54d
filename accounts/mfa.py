"""Second factors: their secrets are sealed like every other secret."""

from __future__ import annotations

from allauth.mfa.adapter import DefaultMFAAdapter

from novastack.common.secrets import needs_resealing, seal, unseal

CONTEXT = "mfa.authenticator"  # allauth encrypts before it knows the row


class MFAAdapter(DefaultMFAAdapter):
    def encrypt(self, text: str) -> str:
        return seal(text, CONTEXT)

    def decrypt(self, encrypted_text: str) -> str:
        return unseal(encrypted_text, CONTEXT)


def reseal_authenticators() -> int:
    """For `manage.py rotate_secrets`: seal TOTP secrets and recovery seeds with the newest key. Returns rows changed."""
    from allauth.mfa.models import Authenticator
    from django.db import transaction

    changed = 0
    for pk in Authenticator.objects.values_list("pk", flat=True):
        with transaction.atomic():
            row = Authenticator.objects.select_for_update().get(pk=pk)
            stale = {
                key: seal(unseal(value, CONTEXT), CONTEXT)
                for key, value in row.data.items()
                if isinstance(value, str) and needs_resealing(value)
            }
            if stale:
                row.data = {**row.data, **stale}
                row.save(update_fields=["data"])
                changed += 1
    return changed
