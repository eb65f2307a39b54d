"""A client of S3 that reaches only what may be reached: each new connection goes to an address that was checked just then.

Nothing is read from the machine's own settings (`~/.aws`, instance metadata, proxies): the target's row says it all.
"""

from __future__ import annotations

import functools
import os
import re
import socket
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.awsrequest import (
    AWSHTTPConnection,
    AWSHTTPConnectionPool,
    AWSHTTPSConnection,
    AWSHTTPSConnectionPool,
)
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    HTTPClientError,
    ReadTimeoutError,
    SSLError,
)

from backups.storage.base import StorageError
from backups.storage.names import parts_of
from novastack.common import outbound

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]", re.ASCII)  # never an ARN, which names another host
_REGION = re.compile(r"[a-z0-9-]{1,40}", re.ASCII)
CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 5, 30, 4

_REFUSED = frozenset(
    {
        "AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken",
        "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "MethodNotAllowed", "NotSignedUp",
        "RequestTimeTooSkewed", "SignatureDoesNotMatch", "UnauthorizedAccess", "XAdminUserNotFound",
    }
)  # fmt: skip
_FULL = frozenset(
    {"EntityTooLarge", "InsufficientCapacity", "InsufficientStorage", "QuotaExceeded", "TooManyParts",
     "XMinioAdminBucketQuotaExceeded", "XMinioStorageFull", "StorageFull"}
)  # fmt: skip
_WORDS = {
    "RequestTimeTooSkewed": "this machine's clock differs too much from the storage's",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "XAdminUserNotFound": "it does not know the access key",
    "InvalidAccessKeyId": "it does not know the access key",
}


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is and who we are there. `ValueError` names what can't be used."""

    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    endpoint: str = ""  # empty: Amazon's of the region
    region: str = "us-east-1"
    prefix: str = ""
    path_style: bool = True

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket) or ".." in self.bucket:
            raise ValueError("bucket")
        if not _REGION.fullmatch(self.region):
            raise ValueError("region")
        if self.prefix:
            parts_of(self.prefix)
        for key in (self.access_key, self.secret_key):
            if not (key.isascii() and key.isprintable() and 0 < len(key) <= 256) or " " in key:
                raise ValueError("access key")
        try:
            parts = urlsplit(outbound.check_url(self.url))
        except outbound.OutboundError:
            raise ValueError("endpoint") from None
        if parts.path.strip("/") or parts.query:
            raise ValueError("endpoint")

    @property
    def url(self) -> str:
        return self.endpoint or f"https://s3.{self.region}.amazonaws.com"


class _Checked:
    """Connects to the address that was checked, never to what the name means a moment later."""

    def _new_conn(self: Any) -> socket.socket:
        where = outbound.resolve(self._dns_host, self.port)
        made = socket.create_connection(where, self.timeout)
        for option in self.socket_options or ():
            made.setsockopt(*option)
        return made


class _HTTPConnection(_Checked, AWSHTTPConnection):  # type: ignore[misc]
    pass


class _HTTPSConnection(_Checked, AWSHTTPSConnection):  # type: ignore[misc]
    pass


class _HTTPPool(AWSHTTPConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HTTPConnection


class _HTTPSPool(AWSHTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _HTTPSConnection


@functools.cache
def _session() -> botocore.session.Session:
    """Its models take 20 MB and a tenth of a second: read once."""
    session = botocore.session.Session()
    for name in ("config_file", "credentials_file"):
        session.set_config_variable(name, os.devnull)
    session.set_config_variable("profile", None)
    return session


def client_of(settings: S3Settings, *, attempts: int = ATTEMPTS, read_seconds: float = READ_SECONDS) -> Any:
    """A client of botocore's. It is not connected yet."""
    made = _session().create_client(
        "s3", region_name=settings.region, endpoint_url=settings.url,
        aws_access_key_id=settings.access_key, aws_secret_access_key=settings.secret_key,
        config=Config(
            signature_version="s3v4", proxies={}, connect_timeout=CONNECT_SECONDS, read_timeout=read_seconds,
            retries={"mode": "standard", "total_max_attempts": attempts}, max_pool_connections=4,
            request_checksum_calculation="when_required", response_checksum_validation="when_required",
            s3={"addressing_style": "path" if settings.path_style else "virtual"}, user_agent="NovaStack",
        ),
    )  # fmt: skip
    manager = made._endpoint.http_session._manager
    manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
    return made


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def told(error: Exception) -> StorageError:
    """What went wrong, in our words, without keys or signatures."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, ClientError):
        return _answered(error)
    inner = getattr(error, "kwargs", {}).get("error") if isinstance(error, HTTPClientError) else error
    if isinstance(inner, outbound.OutboundError):
        return StorageError(
            "storage_refused" if inner.code == "address_refused" else "storage_unreachable", inner.detail,
            retryable=inner.code != "address_refused",
        )  # fmt: skip
    if isinstance(error, SSLError):
        return StorageError("storage_unreachable", "The storage's certificate is not trusted, or TLS failed.")
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | TimeoutError):
        return StorageError("storage_unreachable", "The storage has not answered in time.")
    if isinstance(error, HTTPClientError | OSError):
        return StorageError("storage_unreachable", "The storage can't be reached, or broke the connection.")
    if isinstance(error, BotoCoreError):
        return StorageError("storage_failed", f"The storage's answer can't be used ({type(error).__name__}).")
    raise error


def _answered(error: ClientError) -> StorageError:
    code, status = code_of(error), status_of(error)
    plain = code if re.fullmatch(r"[A-Za-z0-9.]{1,60}", code) else ""
    words = f"The storage answered {status or ''} {plain} to {error.operation_name}".replace("  ", " ").strip()
    if plain in _WORDS:
        words += f": {_WORDS[plain]}"
    if code == "NoSuchBucket":
        return StorageError("storage_missing", "There is no such bucket.", retryable=False)
    if code in _FULL or status == 507:
        return StorageError("storage_full", f"{words}.")
    if code in _REFUSED or status in {401, 403}:
        return StorageError("storage_refused", f"{words}.", retryable=False)
    if code in {"NoSuchKey", "NoSuchVersion"}:
        return StorageError("object_missing", "The object is not there.", retryable=False)
    if code in {"SlowDown", "ServiceUnavailable", "RequestTimeout", "ThrottlingException"} or status in {429, 503}:
        return StorageError("storage_unreachable", f"{words}.")
    if status in {301, 307, 308} or code == "PermanentRedirect":
        return StorageError("storage_refused", f"{words}: the bucket is in another region.", retryable=False)
    return StorageError("storage_failed", f"{words}.", retryable=status >= 500 or status == 0)
