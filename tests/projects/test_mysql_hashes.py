"""Hashes made here are those that servers make; that servers take them is shown in `test_engine_mysql_family`."""

from __future__ import annotations

import pytest

from projects.engines import mysql_hashes


def test_native_password() -> None:
    """As `SELECT PASSWORD('one')` says on MariaDB."""
    assert mysql_hashes.native("one") == "*74445CD742AF268FD22866DA0D12758951D638F7"


def test_sha256_crypt() -> None:
    """As glibc's `crypt` makes of `$5$saltstring`; MySQL's only has a longer salt."""
    made = mysql_hashes._sha256_crypt(b"Hello world!", b"saltstring", 5000)
    assert made == "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"


def test_the_form_of_a_caching_sha2_hash() -> None:
    made = mysql_hashes.caching_sha2("secret", salt="s" * 20)
    assert made.startswith("$A$005$" + "s" * 20)
    assert len(made) == 70
    assert made == mysql_hashes.caching_sha2("secret", salt="s" * 20)
    assert made != mysql_hashes.caching_sha2("Secret", salt="s" * 20)
    assert mysql_hashes.caching_sha2("secret") != mysql_hashes.caching_sha2("secret")
    with pytest.raises(ValueError, match="20"):
        mysql_hashes.caching_sha2("secret", salt="short")
