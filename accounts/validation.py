"""Checks on what people type, for services: the same for pages, API and commands."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import validate_email

from novastack.common.errors import Invalid


def clean_line(field: str, value: object, *, max_length: int, required: bool = True) -> str:
    """One line of text without control characters, stripped. `Invalid` naming the field."""
    if not isinstance(value, str):
        raise Invalid.field(field, "invalid", "Send text.")
    text = value.strip()
    if any((not c.isprintable()) or "\ud800" <= c <= "\udfff" for c in text):
        raise Invalid.field(field, "invalid", "Use one line of printable characters.")
    if len(text) > max_length:
        raise Invalid.field(field, "max_length", f"Use at most {max_length} characters.")
    if required and not text:
        raise Invalid.field(field, "blank", "This may not be empty.")
    return text


def clean_email(field: str, value: object) -> str:
    """A lower-case address of at most 254 characters."""
    text = clean_line(field, value, max_length=254).lower()
    try:
        validate_email(text)
    except ValidationError as error:
        raise Invalid.field(field, "invalid", "This is no email address.") from error
    return text
