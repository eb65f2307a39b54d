"""Links to reset a password. allauth imports this by its setting; import it from nowhere else (the two need each other)."""

from __future__ import annotations

from typing import Any

from allauth.account.forms import EmailAwarePasswordResetTokenGenerator

from novastack.common.models import Install


class ResetTokenGenerator(EmailAwarePasswordResetTokenGenerator):  # type: ignore[misc]
    """A restore of the install ends the links that were made before it.

    A used link is told by the password that it changed; a restore brings the old one back, and the link with it.
    """

    def _make_hash_value(self, user: Any, timestamp: int) -> str:
        restored_at = Install.load().notes.get("restored_at", "")
        return f"{super()._make_hash_value(user, timestamp)}{restored_at}"
