"""Certificates, judged by OpenSSL's own command and by Python's TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from novastack.common import pki

NOW = datetime.now(UTC).replace(microsecond=0)
NAMES = ["a1.server.novastack.internal", "db.example.org", "localhost", "127.0.0.1", "::1"]


@pytest.fixture(scope="module")
def authority() -> pki.Issued:
    return pki.make_authority("NovaStack CA test", at=NOW)


def openssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)


def test_openssl_verifies_name_address_and_purpose(authority: pki.Issued, tmp_path: Path) -> None:
    made = pki.make_server_certificate(authority, NAMES, at=NOW)
    (tmp_path / "ca.pem").write_text(authority.certificate)
    (tmp_path / "server.pem").write_text(made.certificate + made.key)
    verify = ["verify", "-x509_strict", "-CAfile", str(tmp_path / "ca.pem"), "-purpose", "sslserver"]
    for check in (["-verify_hostname", "db.example.org"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]):
        done = openssl(*verify, *check, str(tmp_path / "server.pem"))
        assert done.returncode == 0, done.stderr
    for check in (["-verify_hostname", "other.example.org"], ["-verify_ip", "127.0.0.2"]):
        assert openssl(*verify, *check, str(tmp_path / "server.pem")).returncode != 0
    (tmp_path / "other.pem").write_text(pki.make_authority("Another", at=NOW).certificate)
    assert openssl("verify", "-CAfile", str(tmp_path / "other.pem"), str(tmp_path / "server.pem")).returncode != 0


def test_a_server_can_not_sign(authority: pki.Issued, tmp_path: Path) -> None:
    middle = pki.make_server_certificate(authority, ["middle"], at=NOW)
    forged = pki.make_server_certificate(middle, ["db.example.org"], at=NOW)
    for name, text in (("ca", authority.certificate), ("middle", middle.certificate), ("forged", forged.certificate)):
        (tmp_path / name).write_text(text)
    done = openssl("verify", "-CAfile", str(tmp_path / "ca"), "-untrusted", str(tmp_path / "middle"),
                   str(tmp_path / "forged"))  # fmt: skip
    assert done.returncode != 0


def test_a_real_handshake_with_one_file_for_both(authority: pki.Issued, tmp_path: Path) -> None:
    made = pki.make_server_certificate(authority, NAMES, at=NOW)
    pair = tmp_path / "server.pem"
    pair.write_text(made.certificate + made.key)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(pair)  # raises when key and certificate do not belong together
    theirs = ssl.create_default_context(cadata=authority.certificate)
    left, right = socket.socketpair()
    server = threading.Thread(target=lambda: ours.wrap_socket(left, server_side=True).close())
    server.start()
    with theirs.wrap_socket(right, server_hostname=NAMES[0]) as client:
        assert client.getpeercert(binary_form=True) == pki.der_of(made.certificate)
    server.join()


def test_how_long_they_last(authority: pki.Issued) -> None:
    made = pki.make_server_certificate(authority, NAMES, at=NOW)
    assert pki.not_after(made.certificate) == made.not_after == NOW + timedelta(days=pki.SERVER_DAYS)
    certificate = x509.load_pem_x509_certificate(made.certificate.encode())
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=397)
    assert certificate.not_valid_before_utc < NOW  # a client's clock may be behind
    late = authority.not_after - timedelta(days=10)
    assert pki.make_server_certificate(authority, NAMES, at=late).not_after == authority.not_after
    again = pki.make_server_certificate(authority, NAMES, at=NOW)
    assert again.key != made.key and again.certificate != made.certificate


def test_keys_stay_out_of_repr(authority: pki.Issued) -> None:
    assert "PRIVATE" not in repr(authority)


@pytest.mark.parametrize("name", ["", "two words", "x" * 70 + "é" * 70 + ".org"])
def test_what_is_no_name_is_refused(authority: pki.Issued, name: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        pki.make_server_certificate(authority, ["localhost", name], at=NOW)


def test_names_of_other_scripts(authority: pki.Issued) -> None:
    made = pki.make_server_certificate(authority, ["bücher.example"], at=NOW)
    names = x509.load_pem_x509_certificate(made.certificate.encode()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["xn--bcher-kva.example"]
