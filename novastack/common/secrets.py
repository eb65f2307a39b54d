"""Secrets at rest: AES-256-GCM with the row as associated data, and a list of keys for rotation (rule 53).

`NOVASTACK_SECRET_KEYS` is a list of base64url 32-byte keys: the first seals, all open. Rotation: put a new key in
front, run `manage.py rotate_secrets`, then drop the old one. Format: `v1.<key id>.<base64url(nonce + ciphertext)>`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import string
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from django.conf import settings
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import models

_ALPHABET = string.ascii_letters + string.digits


class SecretUnreadable(Exception):
    """No configured key opens this value: the key is missing, or the value belongs to another row."""


def random_password(length: int = 32) -> str:
    """A password of letters and digits only (about 190 bits): safe in every URI, shell and `.env` file."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_key() -> str:
    """A fresh key for `NOVASTACK_SECRET_KEYS`."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


def _keys() -> list[tuple[str, AESGCM]]:
    found = []
    for text in settings.NOVASTACK_SECRET_KEYS:
        raw = base64.urlsafe_b64decode(text)
        if len(raw) != 32:
            raise ImproperlyConfigured("NOVASTACK_SECRET_KEYS: each key is 32 bytes in base64url")
        found.append((hashlib.sha256(raw).hexdigest()[:8], AESGCM(raw)))
    if not found:
        raise ImproperlyConfigured("NOVASTACK_SECRET_KEYS is empty: set at least one key")
    return found


def seal(plain: str, context: str) -> str:
    """Encrypt for one context (`<label>.<model>.<field>:<pk>`)."""
    key_id, cipher = _keys()[0]
    nonce = os.urandom(12)
    body = nonce + cipher.encrypt(nonce, plain.encode(), context.encode())
    return f"v1.{key_id}.{base64.urlsafe_b64encode(body).decode()}"


def unseal(token: str, context: str) -> str:
    """Decrypt what `seal` made for the same context. `SecretUnreadable` if no key fits."""
    try:
        version, key_id, body_text = token.split(".")
        body = base64.urlsafe_b64decode(body_text)
    except ValueError as error:
        raise SecretUnreadable("not a sealed value") from error
    for candidate_id, cipher in _keys():
        if version == "v1" and candidate_id == key_id:
            try:
                return cipher.decrypt(body[:12], body[12:], context.encode()).decode()
            except InvalidTag as error:
                raise SecretUnreadable("sealed for another row, or damaged") from error
    raise SecretUnreadable(f"no configured key has the id {key_id}")


def needs_resealing(token: str) -> bool:
    """Whether it is a sealed value that another than the first key made."""
    return token.startswith("v1.") and token.split(".")[1] != _keys()[0][0]


# Sealed values outside of `EncryptedField`s: each seals its own again, returns how many. Filled in `AppConfig.ready()`.
resealers: list[Callable[[], int]] = []


class Sealed:
    """A secret in a model field. Made from clear text with `Sealed.of(text)`; opened only on purpose with `.open()`."""

    __slots__ = ("_context", "_plain", "_token")

    def __init__(self, *, token: str | None = None, context: str = "", plain: str | None = None) -> None:
        self._token, self._context, self._plain = token, context, plain

    @classmethod
    def of(cls, plain: str) -> Sealed:
        return cls(plain=plain)

    def open(self) -> str:
        """The clear text."""
        if self._plain is not None:
            return self._plain
        return unseal(self._token or "", self._context)

    def token_for(self, context: str) -> str:
        """What is stored: sealed for this row (again, if it came from another one)."""
        if self._token is not None and self._context == context:
            return self._token
        return seal(self.open(), context)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return "<Sealed>"

    __str__ = __repr__


class EncryptedField(models.TextField):  # type: ignore[type-arg]  # not subscriptable at run time
    """A nullable text column that holds a `Sealed`. Bound to (label.model.field, primary key); `.update()` is refused.

    The primary key must be set before saving, which UUIDv7 keys are.
    """

    _pyi_private_set_type: Sealed | None  # type: ignore[assignment]
    _pyi_private_get_type: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.update(null=True, blank=True, editable=False, default=None)
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        for key in ("null", "blank", "editable", "default"):
            kwargs.pop(key, None)
        return name, path, args, kwargs

    def context_of(self, instance: models.Model) -> str:
        return f"{self.model._meta.label_lower}.{self.name}:{instance.pk}"

    def contribute_to_class(self, cls: type[models.Model], name: str, private_only: bool = False) -> None:
        super().contribute_to_class(cls, name, private_only)
        setattr(cls, self.attname, _SealedAttribute(self))

    def pre_save(self, model_instance: models.Model, add: bool) -> _Stored | None:
        value = getattr(model_instance, self.attname)
        if value is None:
            return None
        stored = _Stored(value.token_for(self.context_of(model_instance)))
        setattr(model_instance, self.attname, Sealed(token=stored, context=self.context_of(model_instance)))
        return stored

    def get_prep_value(self, value: Any) -> Any:
        if value is None or isinstance(value, _Stored):
            return value
        raise FieldError(
            f"{self.name} is encrypted for its row: set it on the instance and save(); no update(), no filter"
        )


class _Stored(str):
    """A sealed token on its way to the database."""

    __slots__ = ()


class _SealedAttribute:
    """Turns what the database holds into `Sealed` at access; accepts `Sealed` or None only."""

    def __init__(self, field: EncryptedField) -> None:
        self.field = field

    def __get__(self, instance: models.Model | None, owner: type) -> Any:
        if instance is None:
            return self
        if self.field.attname not in instance.__dict__:
            instance.refresh_from_db(fields=[self.field.attname])
        value = instance.__dict__.get(self.field.attname)
        if isinstance(value, str):
            value = Sealed(token=value, context=self.field.context_of(instance))
        return value

    def __set__(self, instance: models.Model, value: Any) -> None:
        if value is not None and not isinstance(value, Sealed | str):
            raise TypeError(f"{self.field.name} takes Sealed.of(text) or None")
        if isinstance(value, str) and instance.pk is not None and not value.startswith("v1."):
            raise TypeError(f"{self.field.name} takes Sealed.of(text), never clear text")
        instance.__dict__[self.field.attname] = value
