"""NovaStack: a self-hosted Database-as-a-Service control plane."""

from novastack.celery import app as celery_app

__all__ = ["celery_app"]
