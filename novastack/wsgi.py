"""The web application. In production it refuses to start with what the deploy checks call an error."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "novastack.settings")

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

from novastack.common.checks import production_problems

application = get_wsgi_application()
if settings.NOVASTACK_MODE == "production" and (problems := production_problems()):
    raise ImproperlyConfigured("NovaStack refuses to start: " + "; ".join(f"{p.msg} ({p.hint})" for p in problems))
