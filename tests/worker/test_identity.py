from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from protocol.errors import ConfigError, StorageError
from protocol.tls import is_worker_id, worker_id_of_key, worker_name
from worker.identity import load_identity, opened_state


def test_the_identity_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first, second = load_identity(tmp_path), load_identity(tmp_path)
    assert first.worker_id == second.worker_id
    assert is_worker_id(first.worker_id)
    assert first.key_path.stat().st_mode & 0o777 == 0o600


def test_folders_have_identities_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert load_identity(tmp_path / "a").worker_id != load_identity(tmp_path / "b").worker_id


def test_the_request_is_for_the_key_that_the_id_is_the_hash_of(tmp_path: Path) -> None:
    identity = load_identity(tmp_path)
    request = x509.load_pem_x509_csr(identity.certificate_request_pem("for this").encode())
    spki = request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert request.is_signature_valid
    assert worker_id_of_key(spki) == identity.worker_id
    assert names.get_values_for_type(x509.DNSName) == [worker_name(identity.worker_id)]


def test_the_key_is_in_no_repr(tmp_path: Path) -> None:
    assert " _key=" not in repr(load_identity(tmp_path))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    load_identity(tmp_path).key_path.chmod(0o644)
    with pytest.raises(ConfigError, match="644"):
        load_identity(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a key",
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_a_file_without_our_kind_of_key_is_refused(tmp_path: Path, data: bytes) -> None:
    load_identity(tmp_path).key_path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"identity\.key"):
        load_identity(tmp_path)


def test_a_folder_is_for_one_worker_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    with opened_state(folder), pytest.raises(ConfigError, match="--state"), opened_state(folder):
        pass
    with opened_state(folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="--state"), opened_state(tmp_path / "file" / "state"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="--state"), opened_state(tmp_path / "state"):
        pass
