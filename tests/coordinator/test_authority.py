from __future__ import annotations

import secrets
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordinator.authority import Authority
from coordinator.secret_files import GRACE
from coordinator.state_folder import StateFolder
from protocol.errors import ConfigError, StorageError, WrongSecretError
from protocol.handshake import join_key
from protocol.ids import WorkerId
from protocol.tls import COORDINATOR_NAME, fingerprint, worker_id_of_key, worker_name

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def opened(folder: StateFolder, now: datetime = NOW, **options: object) -> Authority:
    return Authority(folder, now=now, **options)  # type: ignore[arg-type]


def worker_id(key: Key) -> WorkerId:
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return worker_id_of_key(spki)


def request_pem(key: Key | rsa.RSAPrivateKey) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "I say I am the coordinator")])
    san = x509.SubjectAlternativeName([x509.DNSName(COORDINATOR_NAME)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(san, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def alternative_names(certificate: x509.Certificate) -> list[object]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in extension.value]


def test_everything_is_made_once_and_kept(folder: StateFolder) -> None:
    first = opened(folder)
    again = opened(folder, NOW + timedelta(days=1))
    assert first.secrets.has_new_secret
    assert not again.secrets.has_new_secret
    for what in ("coordinator_id", "ca_pem", "ca_fingerprint", "server_fingerprint", "signing_keys", "join_keys"):
        assert getattr(first, what) == getattr(again, what), what
    assert len(first.signing_keys) == 1
    assert len(first.signing_keys[0]) == 32
    for path in folder.root.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_ca_is_what_keys_pin(folder: StateFolder) -> None:
    authority = opened(folder)
    ca = x509.load_pem_x509_certificate(authority.ca_pem.encode())
    assert authority.ca_fingerprint == fingerprint(ca.public_bytes(serialization.Encoding.DER)).hex()
    assert ca.not_valid_before_utc == NOW - timedelta(hours=1)
    assert ca.not_valid_after_utc > NOW + timedelta(days=3650)
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    ca.verify_directly_issued_by(ca)


def test_the_servers_certificate(folder: StateFolder) -> None:
    authority = opened(folder, hosts=("0.0.0.0", "box.example", "192.0.2.7", "127.0.0.1"))
    pem = authority.server_certificate.read_text()
    certificate = x509.load_pem_x509_certificate(pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem.encode()))
    names = [str(name) for name in alternative_names(certificate)]
    assert names == [COORDINATOR_NAME, "localhost", "127.0.0.1", "box.example", "192.0.2.7"]
    assert authority.server_fingerprint == fingerprint(ssl.PEM_cert_to_DER_cert(pem))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_the_servers_certificate_is_renewed_in_time_and_only_then(folder: StateFolder) -> None:
    first = opened(folder).server_fingerprint
    assert opened(folder, NOW + timedelta(days=304)).server_fingerprint == first
    renewed = opened(folder, NOW + timedelta(days=306)).server_fingerprint
    assert renewed != first
    assert opened(folder, NOW + timedelta(days=306)).server_fingerprint == renewed


def test_another_name_or_a_damaged_certificate_makes_a_new_one(folder: StateFolder) -> None:
    first = opened(folder).server_fingerprint
    second = opened(folder, hosts=("box.example",)).server_fingerprint
    assert second != first
    folder.write("server.key", "nonsense")
    assert opened(folder).server_fingerprint not in (first, second)


def test_a_workers_certificate_says_its_id_and_nothing_that_it_asked_for(folder: StateFolder) -> None:
    authority = opened(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.issue_worker_certificate(request_pem(key), worker_id(key), NOW)
    certificate = x509.load_pem_x509_certificate(pem.encode())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.ca_pem.encode()))
    assert certificate.public_key() == key.public_key()
    assert alternative_names(certificate) == [worker_name(worker_id(key))]
    assert certificate.not_valid_before_utc == NOW - timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=90)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_bad_certificate_requests_get_one_and_the_same_answer(folder: StateFolder) -> None:
    authority = opened(folder)
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    good = x509.load_pem_x509_csr(request_pem(key).encode()).public_bytes(serialization.Encoding.DER)
    altered = good[:-1] + bytes([good[-1] ^ 1])
    forged = ssl.DER_cert_to_PEM_cert(altered).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    rsa_request = request_pem(rsa.generate_private_key(65537, 2048))
    messages = set()
    for pem in (
        request_pem(other),
        forged,
        rsa_request,
        "",
        "nonsense",
        "\x00",
        "-----BEGIN CERTIFICATE REQUEST-----",
    ):
        with pytest.raises(WrongSecretError) as caught:
            authority.issue_worker_certificate(pem, worker_id(key), NOW)
        messages.add(str(caught.value))
    assert len(messages) == 1


def test_signing_keys_rotate_and_retire(folder: StateFolder) -> None:
    authority = opened(folder)
    (old,) = authority.signing_keys
    authority.secrets.rotate_signing_key(NOW)
    assert authority.signing_keys[0] == old
    assert len(set(authority.signing_keys)) == 2
    assert opened(folder, NOW + GRACE - timedelta(seconds=1)).signing_keys == authority.signing_keys
    assert opened(folder, NOW + GRACE).signing_keys == authority.signing_keys[1:]


def test_the_join_secret_rotates(folder: StateFolder) -> None:
    authority = opened(folder)
    old_secret = folder.read("join-secret") or ""
    assert authority.join_keys == (join_key(old_secret),)
    authority.secrets.rotate_join_secret(NOW)
    new_secret = folder.read("join-secret") or ""
    assert authority.join_keys == (join_key(new_secret), join_key(old_secret))
    assert opened(folder, NOW).join_keys == authority.join_keys
    assert opened(folder, NOW + GRACE).join_keys == (join_key(new_secret),)


def test_a_given_secret_is_not_written_down(folder: StateFolder) -> None:
    secret = secrets.token_urlsafe(32)
    authority = opened(folder, secret=secret)
    assert authority.join_keys == (join_key(secret),)
    assert not authority.secrets.has_new_secret
    assert folder.read("join-secret") is None
    assert all(secret not in path.read_text() for path in folder.root.iterdir())
    assert secret not in repr(vars(authority.secrets))


@pytest.mark.parametrize("text", ["", "short", "a" * 100])
def test_a_weak_secret_in_the_folder_stops_the_program(folder: StateFolder, text: str) -> None:
    folder.write("join-secret", text)
    with pytest.raises(ConfigError, match="join secret"):
        opened(folder)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key", "signing-keys.json"])
def test_damaged_files_are_said_so_and_never_replaced(folder: StateFolder, name: str) -> None:
    opened(folder)
    for damage in ("nonsense", '[{"value": "abc", "created_at": "2026-01-01T00:00:00Z"}]'):
        folder.write(name, damage)
        with pytest.raises(StorageError, match="is damaged or missing"):
            opened(folder)
        assert folder.read(name) == damage


def test_a_ca_key_of_another_cluster_is_refused(folder: StateFolder, tmp_path: Path) -> None:
    opened(folder)
    other = StateFolder(tmp_path / "other")
    opened(other)
    folder.write("ca.key", other.read("ca.key") or "")
    with pytest.raises(StorageError, match=r"ca\.key"):
        opened(folder)
