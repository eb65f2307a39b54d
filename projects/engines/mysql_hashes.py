"""Password hashes as MariaDB and MySQL store them, made here: a server that logs the statement logs no password (rule 20)."""

from __future__ import annotations

import hashlib
import secrets
import string

SALT_LENGTH = 20
THOUSANDS = 5  # of rounds: MySQL's own default up to 9.6; the number stands in the hash, so any server reads it
_SALT = string.ascii_letters + string.digits
_BASE64 = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Which bytes of the digest stand together, and in what order: https://www.akkadia.org/drepper/SHA-crypt.txt, step 22.
_GROUPS = (
    (0, 10, 20), (21, 1, 11), (12, 22, 2), (3, 13, 23), (24, 4, 14),
    (15, 25, 5), (6, 16, 26), (27, 7, 17), (18, 28, 8), (9, 19, 29),
)  # fmt: skip


def native(password: str) -> str:
    """`mysql_native_password`: `*` and SHA1(SHA1(password)) in hexadecimal digits. Unsalted: for long random passwords."""
    return "*" + hashlib.sha1(hashlib.sha1(password.encode()).digest()).hexdigest().upper()  # noqa: S324 - the format


def caching_sha2(password: str, *, salt: str = "", thousands: int = THOUSANDS) -> str:
    """`caching_sha2_password`: `$A$<thousands of rounds, 3 hexadecimal digits>$<20 characters of salt><43 of digest>`."""
    salt = salt or "".join(secrets.choice(_SALT) for _ in range(SALT_LENGTH))
    if len(salt) != SALT_LENGTH:
        raise ValueError(f"the salt has {SALT_LENGTH} characters")
    return f"$A${thousands:03X}${salt}{_sha256_crypt(password.encode(), salt.encode(), thousands * 1000)}"


def _sha256_crypt(key: bytes, salt: bytes, rounds: int) -> str:
    """The digest part of SHA-256 crypt; Python's own `crypt` cuts salts off at 16 bytes (and is gone since 3.13)."""
    other = hashlib.sha256(key + salt + key).digest()
    first = hashlib.sha256(key + salt + _stretched(other, len(key)))
    length = len(key)
    while length:
        first.update(other if length & 1 else key)
        length >>= 1
    digest = first.digest()
    keys = _stretched(hashlib.sha256(key * len(key)).digest(), len(key))
    salts = _stretched(hashlib.sha256(salt * (16 + digest[0])).digest(), len(salt))
    for number in range(rounds):
        digest = hashlib.sha256(
            (keys if number & 1 else digest)
            + (salts if number % 3 else b"")
            + (keys if number % 7 else b"")
            + (digest if number & 1 else keys)
        ).digest()
    text = "".join(_encoded(digest[a] << 16 | digest[b] << 8 | digest[c], 4) for a, b, c in _GROUPS)
    return text + _encoded(digest[31] << 8 | digest[30], 3)


def _stretched(digest: bytes, length: int) -> bytes:
    return (digest * (length // len(digest) + 1))[:length]


def _encoded(number: int, digits: int) -> str:
    text = ""
    for _ in range(digits):
        text += _BASE64[number & 63]
        number >>= 6
    return text
