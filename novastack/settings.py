"""One settings file, read from the environment (`.env`, `NAME`, `NAME_FILE`). Three modes:

`embedded`    what `make run` starts: everything under NOVASTACK_HOME
`production`  `docker compose up`; refuses to start with defaults (novastack/common/checks.py)
`test`        the test suite
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import environ
from csp.constants import NONCE, NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from novastack import timetable
from novastack.common import logs
from novastack.common.sizes import parse_size

BASE_DIR = Path(__file__).resolve().parent.parent
VERSION = "0.1.0"

# `.env` in the checkout, or the file that NOVASTACK_ENV_FILE names; what is in the environment wins.
environ.Env.read_env(os.environ.get("NOVASTACK_ENV_FILE", BASE_DIR / ".env"))
for _name in [n for n in os.environ if n.endswith("_FILE") and n != "NOVASTACK_ENV_FILE"]:
    _target = _name.removesuffix("_FILE")
    if _target in {
        "SECRET_KEY", "NOVASTACK_SECRET_KEYS", "DATABASE_URL", "BROKER_URL", "CACHE_URL", "EMAIL_URL",
        "NOVASTACK_ADMIN_PASSWORD", "NOVASTACK_METRICS_TOKEN", "NOVASTACK_IMAGES", "ALLOWED_HOSTS",
    } and not os.environ.get(_target):  # fmt: skip
        os.environ[_target] = Path(os.environ[_name]).read_text().strip()

env = environ.Env()

NOVASTACK_MODE: str = env("NOVASTACK_MODE", default="test" if "pytest" in sys.modules else "embedded")
if NOVASTACK_MODE not in {"embedded", "production", "test"}:
    raise ImproperlyConfigured(f"NOVASTACK_MODE is {NOVASTACK_MODE!r}: use embedded, production or test")
PRODUCTION = NOVASTACK_MODE == "production"
TESTING = NOVASTACK_MODE == "test"

DEBUG: bool = env.bool("DEBUG", default=False)
INSECURE_SECRET_KEYS = ["aW5zZWN1cmUtaW5zZWN1cmUtaW5zZWN1cmUtaW5zZWM="]  # for tests and bare manage.py calls only
SECRET_KEY: str = env("SECRET_KEY", default="insecure-only-for-tests-and-bare-manage-py-calls")
NOVASTACK_SECRET_KEYS: list[str] = env.list("NOVASTACK_SECRET_KEYS", default=INSECURE_SECRET_KEYS)

# --- NovaStack's own settings: design.md, "Running it" ------------------------------------------------------------
NOVASTACK_HOME = Path(env("NOVASTACK_HOME", default=str(BASE_DIR / ".novastack"))).resolve()
# Where the process runtime keeps its servers: a folder that unprivileged accounts can pass through.
NOVASTACK_SERVERS_ROOT = Path(env("NOVASTACK_SERVERS_ROOT", default=str(NOVASTACK_HOME / "state" / "servers")))
# Below it are all filesystem targets of backups. Not made by itself in production: a disk that isn't mounted is missing.
NOVASTACK_BACKUP_ROOT: str = env("NOVASTACK_BACKUP_ROOT", default="" if PRODUCTION else str(NOVASTACK_HOME / "backups"))
# How much of a dump is read in a second at most (bytes, 0: as fast as it comes), and how far its tool steps back for
# others on its machine (`nice`, 0 to 19).
NOVASTACK_BACKUP_RATE_BYTES: int = max(0, env.int("NOVASTACK_BACKUP_RATE_BYTES", default=0))
NOVASTACK_BACKUP_NICE: int = min(19, max(0, env.int("NOVASTACK_BACKUP_NICE", default=10)))
# The largest file that may be uploaded as a dump, and the most that it may be unpacked (bytes).
NOVASTACK_UPLOAD_BYTES: int = max(1, env.int("NOVASTACK_UPLOAD_BYTES", default=20 * 2**30))
NOVASTACK_UPLOAD_UNPACKED_BYTES: int = max(1, env.int("NOVASTACK_UPLOAD_UNPACKED_BYTES", default=100 * 2**30))
NOVASTACK_BIND: str = env("NOVASTACK_BIND", default="127.0.0.1")
NOVASTACK_PORT: int = env.int("NOVASTACK_PORT", default=8000)
_loopback = NOVASTACK_BIND in {"127.0.0.1", "::1", "localhost"}
NOVASTACK_RUNTIME: str = env("NOVASTACK_RUNTIME", default="docker" if PRODUCTION else "auto")
NOVASTACK_REGISTRATION: str = env(
    "NOVASTACK_REGISTRATION", default="open" if _loopback and not PRODUCTION else "invite"
)
NOVASTACK_FIRST_PROJECT: bool = env.bool("NOVASTACK_FIRST_PROJECT", default=not PRODUCTION)
NOVASTACK_ADMIN_EMAIL: str = env("NOVASTACK_ADMIN_EMAIL", default="")
NOVASTACK_ADMIN_PASSWORD: str = env("NOVASTACK_ADMIN_PASSWORD", default="")
NOVASTACK_PORT_RANGE: str = env("NOVASTACK_PORT_RANGE", default="20000-29999")
NOVASTACK_PUBLIC_HOST: str = env("NOVASTACK_PUBLIC_HOST", default="")  # what clients connect to when it isn't loopback
NOVASTACK_OUTBOUND_ALLOW: list[str] = env.list("NOVASTACK_OUTBOUND_ALLOW", default=[])
# Folders with server programs for the process runtime, looked through before the system's own.
NOVASTACK_PROGRAM_FOLDERS: list[Path] = [Path(p) for p in env("NOVASTACK_PROGRAM_FOLDERS", default="").split(":") if p]
_images = env("NOVASTACK_IMAGES", default="")
NOVASTACK_IMAGES: dict[str, str] = json.loads(
    Path(_images).read_text() if _images and not _images.lstrip().startswith("{") else _images or "{}"
)
NOVASTACK_DOCKER_URL: str = env("NOVASTACK_DOCKER_URL", default=env("DOCKER_HOST", default=""))
NOVASTACK_METRICS_TOKEN: str = env("NOVASTACK_METRICS_TOKEN", default="")
# Data is deleted by the janitor, never by an operation, and not sooner than this after it was given up (rule 3).
NOVASTACK_MOVE_KEEP_HOURS: float = env.float("NOVASTACK_MOVE_KEEP_HOURS", default=24.0)
# The database from before a restore in place is kept for so long; until then it can be undone.
NOVASTACK_RESTORE_KEEP_HOURS: float = env.float("NOVASTACK_RESTORE_KEEP_HOURS", default=168.0)
NOVASTACK_DATA_GRACE_SECONDS: int = env.int("NOVASTACK_DATA_GRACE_SECONDS", default=900)
# A file that is given up when its disk is 95 % full; `make run` keeps it beside the control database. No folder: none.
# Throw-away servers, into which backups are restored to prove them (rule 26): memory and CPU of each, how many at a time
# in a region, and for how long they let backups of the region go first.
NOVASTACK_SCRATCH_MEMORY_BYTES: int = env.int("NOVASTACK_SCRATCH_MEMORY_BYTES", default=512 * 2**20)
NOVASTACK_SCRATCH_CPUS: float = env.float("NOVASTACK_SCRATCH_CPUS", default=1.0)
NOVASTACK_VERIFY_PARALLEL: int = env.int("NOVASTACK_VERIFY_PARALLEL", default=1)
NOVASTACK_VERIFY_PATIENCE_SECONDS: float = env.float("NOVASTACK_VERIFY_PATIENCE_SECONDS", default=1800.0)
NOVASTACK_BALLAST_FOLDER: str = env("NOVASTACK_BALLAST_FOLDER", default="")
NOVASTACK_BALLAST_BYTES: int = env.int("NOVASTACK_BALLAST_BYTES", default=256 * 2**20)
# A folder on the disk of Docker's volumes, for a worker that doesn't see Docker's own folder.
NOVASTACK_DOCKER_DISK: str = env("NOVASTACK_DOCKER_DISK", default="")
# How long readings are kept raw, as 5-minute and as hourly figures; each at least as long as the finer one.
NOVASTACK_METRICS_RAW_HOURS: int = max(1, env.int("NOVASTACK_METRICS_RAW_HOURS", default=24))
NOVASTACK_METRICS_5MIN_DAYS: int = env.int("NOVASTACK_METRICS_5MIN_DAYS", default=14)
NOVASTACK_METRICS_HOURLY_DAYS: int = env.int("NOVASTACK_METRICS_HOURLY_DAYS", default=90)
NOVASTACK_RECYCLE_DAYS: int = env.int("NOVASTACK_RECYCLE_DAYS", default=7)
# What a new pool is (ADR 0021); whether an engine can do with it is asked when one is made.
NOVASTACK_POOL_MAX_DATABASES: int = env.int("NOVASTACK_POOL_MAX_DATABASES", default=50)
NOVASTACK_POOL_CPUS: float = env.float("NOVASTACK_POOL_CPUS", default=2.0)
NOVASTACK_POOL_FILL_PERCENT: int = env.int("NOVASTACK_POOL_FILL_PERCENT", default=80)
NOVASTACK_POOL_BLANKS: int = env.int("NOVASTACK_POOL_BLANKS", default=0)
try:
    NOVASTACK_POOL_MEMORY: int = parse_size(env("NOVASTACK_POOL_MEMORY", default="4G"))
except ValueError as _error:
    raise ImproperlyConfigured(f"NOVASTACK_POOL_MEMORY: {_error}") from None
# Only workers reach runtimes in production (rule 23): the web asks them for live logs.
NOVASTACK_WEB_SEES_RUNTIMES: bool = env.bool("NOVASTACK_WEB_SEES_RUNTIMES", default=not PRODUCTION)
NOVASTACK_WEB_THREADS: int = env.int("NOVASTACK_WEB_THREADS", default=8)  # of the web server: `?wait=` may hold half
NOVASTACK_TRUSTED_PROXIES: int = env.int("NOVASTACK_TRUSTED_PROXIES", default=0)

# --- Django --------------------------------------------------------------------------------------------------------
# On loopback only its own names: a foreign page whose name is made to point here (DNS rebinding) gets nothing.
_hosts = ["localhost", ".localhost", "127.0.0.1", "[::1]"] if _loopback and not TESTING else ["*"]
ALLOWED_HOSTS: list[str] = env.list("ALLOWED_HOSTS", default=[] if PRODUCTION else _hosts)
CSRF_TRUSTED_ORIGINS: list[str] = env.list("CSRF_TRUSTED_ORIGINS", default=[])
INSTALLED_APPS = [
    "novastack.common",
    "accounts",
    "projects",
    "backups",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "django.contrib.postgres",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.usersessions",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_htmx",
    "django_structlog",
    "csp",
]
MIDDLEWARE = [
    "novastack.common.middleware.RequestIdMiddleware",
    "novastack.common.middleware.ProbeMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "novastack.common.middleware.ApiSlashMiddleware",
    "csp.middleware.CSPMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.middleware.TimeZoneMiddleware",
    "accounts.middleware.NoStoreMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "allauth.usersessions.middleware.UserSessionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "novastack.common.middleware.ProblemMiddleware",
]
ROOT_URLCONF = "novastack.urls"
WSGI_APPLICATION = "novastack.wsgi.application"
APPEND_SLASH = True
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "accounts.context.shell",
                "projects.context.shell",
            ],
        },
    }
]
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "static"]
# Where they are collected; tests take them from where they are, and have no such folder.
STATIC_ROOT: Path | None = None if TESTING else Path(env("STATIC_ROOT", default=str(BASE_DIR / "staticfiles")))
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "whitenoise.storage.CompressedManifestStaticFilesStorage"
        if PRODUCTION
        else "django.contrib.staticfiles.storage.StaticFilesStorage"
    },
}
WHITENOISE_USE_FINDERS = not PRODUCTION
WHITENOISE_AUTOREFRESH = TESTING  # else it reads all files at its start, and every client of a test is one

# Each thread keeps its connection; a broken one is found by a check before its next use.
_database: dict[str, Any] = dict(env.db_url("DATABASE_URL", default="postgresql://novastack@127.0.0.1:5432/novastack"))
_database.setdefault("OPTIONS", {})
_database["OPTIONS"].setdefault("application_name", os.environ.get("NOVASTACK_PROCESS", "novastack"))
_database["OPTIONS"].setdefault("connect_timeout", 5)
_database["CONN_MAX_AGE"] = 600
_database["CONN_HEALTH_CHECKS"] = True
_database["TEST"] = {"NAME": env("NOVASTACK_TEST_DATABASE", default="test_novastack")}
DATABASES = {"default": _database}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

_cache_url = env("CACHE_URL", default="")
CACHES: dict[str, Any] = {
    "default": (
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": _cache_url}
        if _cache_url
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
        if TESTING
        else {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "novastack_cache"}
    ),
    # Counting requests must not cost a database transaction each: one embedded web process counts in its memory.
    "throttle": (
        {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": _cache_url}
        if _cache_url
        else {"BACKEND": "django.core.cache.backends.locmem.LocMemCache", "OPTIONS": {"MAX_ENTRIES": 10_000}}
    ),
}
SESSION_ENGINE = "django.contrib.sessions.backends.db"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = (
    False  # htmx reads the token from the page, forms carry it; the cookie stays readable for clients
)
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
if PRODUCTION:
    _https = env.bool("NOVASTACK_HTTPS", default=True)  # off only behind a private network: the deploy check says so
    SECURE_SSL_REDIRECT = _https and env.bool("SECURE_SSL_REDIRECT", default=True)
    SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]
    SECURE_HSTS_SECONDS = env.int("SECURE_HSTS_SECONDS", default=31_536_000 if _https else 0)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if NOVASTACK_TRUSTED_PROXIES else None
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https

CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [SELF],
        "script-src": [SELF, NONCE],
        "style-src": [SELF, NONCE],
        "img-src": [SELF, "data:"],
        "connect-src": [SELF],
        "font-src": [SELF],
        "object-src": [NONE],
        "base-uri": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
    }
}

EMAIL_CONFIG: dict[str, Any] = dict(env.email_url("EMAIL_URL", default="consolemail://"))
EMAIL_BACKEND = EMAIL_CONFIG.get("EMAIL_BACKEND", "django.core.mail.backends.console.EmailBackend")
EMAIL_HOST = EMAIL_CONFIG.get("EMAIL_HOST", "")
EMAIL_PORT = EMAIL_CONFIG.get("EMAIL_PORT") or 25
EMAIL_HOST_USER = EMAIL_CONFIG.get("EMAIL_HOST_USER", "")
EMAIL_HOST_PASSWORD = EMAIL_CONFIG.get("EMAIL_HOST_PASSWORD", "")
EMAIL_USE_TLS = EMAIL_CONFIG.get("EMAIL_USE_TLS", False)
DEFAULT_FROM_EMAIL = env("DEFAULT_FROM_EMAIL", default="NovaStack <novastack@localhost>")
NOVASTACK_HAS_SMTP = "console" not in EMAIL_BACKEND  # without it nobody can confirm an address by mail

# --- accounts ------------------------------------------------------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
AUTHENTICATION_BACKENDS = ["allauth.account.auth_backends.AuthenticationBackend"]
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.Argon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
if TESTING:
    PASSWORD_HASHERS.insert(0, "django.contrib.auth.hashers.MD5PasswordHasher")
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 10}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "account_login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "account_login"
ACCOUNT_ADAPTER = "accounts.adapter.AccountAdapter"
ACCOUNT_USER_MODEL_USERNAME_FIELD = None
ACCOUNT_LOGIN_METHODS = {"email"}
ACCOUNT_SIGNUP_FIELDS = ["email*", "password1*"]
ACCOUNT_FORMS = {"signup": "accounts.forms.SignupForm"}
ACCOUNT_EMAIL_VERIFICATION: str = env(
    "ACCOUNT_EMAIL_VERIFICATION", default="mandatory" if NOVASTACK_HAS_SMTP else "none"
)
ACCOUNT_PASSWORD_RESET_TOKEN_GENERATOR = "accounts.reset_tokens.ResetTokenGenerator"  # noqa: S105 - a path
ACCOUNT_EMAIL_SUBJECT_PREFIX = "NovaStack: "
ACCOUNT_SESSION_REMEMBER = None
ACCOUNT_REAUTHENTICATION_REQUIRED = True
ACCOUNT_PREVENT_ENUMERATION = True
ACCOUNT_LOGOUT_ON_PASSWORD_CHANGE = False
ALLAUTH_TRUSTED_PROXY_COUNT = NOVASTACK_TRUSTED_PROXIES
if TESTING:
    ACCOUNT_RATE_LIMITS: Any = False
MFA_ADAPTER = "accounts.mfa.MFAAdapter"
MFA_SUPPORTED_TYPES = ["totp", "webauthn", "recovery_codes"]
MFA_PASSKEY_LOGIN_ENABLED = True
# Where nobody can confirm an address, an unconfirmed one must not keep people from a second factor.
MFA_ALLOW_UNVERIFIED_EMAIL = ACCOUNT_EMAIL_VERIFICATION == "none"
MFA_TOTP_ISSUER = "NovaStack"
MFA_WEBAUTHN_ALLOW_INSECURE_ORIGIN = not PRODUCTION  # passkeys on http://localhost
USERSESSIONS_TRACK_ACTIVITY = False

# --- API -----------------------------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "accounts.authentication.ApiTokenAuthentication",
        "accounts.authentication.JWTAuthentication",
        "accounts.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["novastack.common.api.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "novastack.common.api.PageNumberPagination",
    "DEFAULT_FILTER_BACKENDS": [
        "django_filters.rest_framework.DjangoFilterBackend",
        "novastack.common.filters.Search",
        "novastack.common.filters.Ordering",
    ],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_THROTTLE_CLASSES": [
        "novastack.common.api.AnonThrottle",
        "novastack.common.api.PrincipalThrottle",
    ],
    "DEFAULT_THROTTLE_RATES": {
        "anon": env("NOVASTACK_THROTTLE_ANON", default="60/min"),
        "principal": env("NOVASTACK_THROTTLE_PRINCIPAL", default="1200/min"),
        "auth": env("NOVASTACK_THROTTLE_AUTH", default="20/min"),
    },
    "NUM_PROXIES": NOVASTACK_TRUSTED_PROXIES,
    "EXCEPTION_HANDLER": "novastack.common.api.problem_handler",
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
    "DATETIME_FORMAT": "iso-8601",
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "NovaStack API",
    "DESCRIPTION": "Self-hosted databases: create, watch, connect, stop, start, rotate, delete.",
    "VERSION": "1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "ENUM_NAME_OVERRIDES": {
        "ProjectStatusEnum": "projects.models.ProjectStatus",
        "OperationStateEnum": "projects.models.OperationState",
        "StepStateEnum": "projects.models.StepState",
        "KeyScopeEnum": "projects.models.KeyScope",
        "ServiceStatusEnum": "projects.models.ServiceStatus",
        "KeyStateEnum": "projects.api.keys.STATES",
        "BackupStatusEnum": "backups.models.BackupStatus",
        "ProofKindEnum": "backups.models.ProofKind",
        "ProofStateEnum": "backups.models.ProofState",
        "PoolStatusEnum": "projects.services.pools.PoolStatus",
        "TokenScopeEnum": "accounts.models.Scope",
        "PlacementEnum": "projects.models.Placement",
        "StorageKindEnum": "backups.models.StorageKind",
        "PlanPlacementEnum": [("dedicated", "Dedicated"), ("pool", "Pool")],
        "InstallStatusEnum": [("healthy", "healthy"), ("degraded", "degraded")],
    },
    "PREPROCESSING_HOOKS": ["novastack.common.schema.only_v1"],
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "novastack.common.schema.add_problems",
    ],
}
# Rotation, reuse and revocation are the family row's (accounts/services/sessions.py): it is the blacklist.
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(minutes=15),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=14),
}

# --- Celery: the row is the truth, a message is a hint ------------------------------------------------------------
CELERY_BROKER_URL: str = env("BROKER_URL", default="memory://" if TESTING else "filesystem://")
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 10.0
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_DEFAULT_QUEUE = "provisioning"
CELERY_TASK_CREATE_MISSING_QUEUES = True
CELERY_TIMEZONE = "UTC"
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = {}
REDIS_BROKER_OPTIONS: dict[str, Any] = {
    # A lost worker's message comes back after this; the reconciler is faster, so it only has to exceed the longest slice.
    "visibility_timeout": 3600,
    # Who sends a hint does not wait for a broker that hangs or is away (6 s, or for ever): the row is the truth. Workers
    # and beat come back by Celery's own patience.
    "socket_timeout": 3, "socket_connect_timeout": 2, "socket_keepalive": True, "max_retries": 0,
}  # fmt: skip
if CELERY_BROKER_URL.startswith("redis"):
    CELERY_BROKER_TRANSPORT_OPTIONS = REDIS_BROKER_OPTIONS
elif CELERY_BROKER_URL.startswith("filesystem"):
    from novastack.embedded.broker import transport_options

    CELERY_BROKER_TRANSPORT_OPTIONS = transport_options(NOVASTACK_HOME)
CELERY_TASK_ROUTES = timetable.ROUTES
CELERY_BEAT_SCHEDULE = timetable.beat(NOVASTACK_DATA_GRACE_SECONDS)

LOGGING_CONFIG = "logging.config.dictConfig"
LOGGING = logs.build(
    json=PRODUCTION or env.bool("NOVASTACK_LOG_JSON", default=False),
    level=env("NOVASTACK_LOG_LEVEL", default="WARNING" if TESTING else "INFO"),
)
DJANGO_STRUCTLOG_CELERY_ENABLED = False
