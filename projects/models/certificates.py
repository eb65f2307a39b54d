"""The install's own certification authority: what clients trust when they check a database's certificate."""

from __future__ import annotations

from uuid import UUID

from django.db import models
from django.db.models import Q

from novastack.common import pki
from novastack.common.models import BaseModel
from novastack.common.secrets import EncryptedField

_certificates: dict[UUID, str] = {}  # id → PEM; rows are never changed, and never removed


class CertificateAuthority(BaseModel):
    """One is active and signs; others are kept for the servers that still show a certificate of theirs."""

    certificate = models.TextField(help_text="PEM; public.")
    key = EncryptedField()
    not_after = models.DateTimeField()
    active = models.BooleanField(default=True)

    class Meta:
        ordering = ["-created_at"]
        verbose_name_plural = "certificate authorities"
        constraints = [
            models.UniqueConstraint(fields=["active"], condition=Q(active=True), name="authority_one_active")
        ]

    def __str__(self) -> str:
        return f"CA until {self.not_after:%Y-%m-%d}"

    @property
    def fingerprint(self) -> str:
        """SHA-256, for people to compare."""
        return pki.fingerprint(self.certificate)

    @classmethod
    def one(cls, pk: UUID) -> str:
        """The certificate of this CA."""
        if pk not in _certificates:
            _certificates.update(cls.objects.values_list("pk", "certificate"))
        return _certificates[pk]

    @classmethod
    def bundle(cls, pk: UUID) -> str:
        """The certificates of all CAs, `pk`'s among them: while a new CA takes over, servers show either's. Asks the
        database when it meets a CA for the first time in this process."""
        cls.one(pk)
        return "".join(text for _, text in sorted(_certificates.items(), reverse=True))
