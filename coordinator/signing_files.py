"""Signing keys and signatures as files, and whether the files of a model are the ones that its manifest names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.file_store import FileStore
from protocol.author_keys import (
    AuthorKey,
    author_key_of,
    is_encrypted,
    private_key_from_pem,
    private_key_pem,
    read_private_key_file,
)
from protocol.disk import storage_error, write_atomically
from protocol.errors import ConfigError, ConflictError, NotFoundError, StorageError, UntrustedFileError
from protocol.ids import Revision
from protocol.manifest import Manifest
from protocol.model_signature import MAX_SIGNATURE_BYTES, sign

FOLDER_SIGNATURE = "brigade-signature.json"
"""In the folder of the model."""
FILE_SIGNATURE = ".signature.json"
"""After the name of a GGUF file."""
_CHUNK_BYTES = 2**20


def new_key_pair(path: Path, passphrase: str | None) -> AuthorKey:
    """Make a private key at `path`, for its owner alone, and its public half at `path`.pub.

    Raises:
        ConflictError: there is a file already.
        StorageError: they can't be written.
    """
    public_path = path.with_name(path.name + ".pub")
    for taken in (path, public_path):
        if taken.exists():
            raise ConflictError(f"there is a file {taken} already: choose another name, so that no key is lost")
    key = Ed25519PrivateKey.generate()
    pem, public = private_key_pem(key, passphrase), author_key_of(key)
    try:
        _write_new(path, pem)
        public_path.write_text(f"{public}\n", encoding="ascii")
    except OSError as exc:
        raise storage_error(path, exc, instead="name another file") from exc
    return public


def opened_key(path: Path, ask_passphrase: Callable[[], str | None]) -> Ed25519PrivateKey:
    """The private key in a file; `ask_passphrase` is asked if it is encrypted.

    Raises:
        ConfigError: it can't be read, is none, or the passphrase is wrong or missing.
    """
    pem = read_private_key_file(path)
    return private_key_from_pem(pem, ask_passphrase() if is_encrypted(pem) else None, path)


def signed(
    revision: Revision, key: Ed25519PrivateKey, *, model: str, version: str, signer: str, at: datetime
) -> bytes:
    """The signature of a revision; ConfigError names the option that can't be used."""
    try:
        return sign(revision, key, model=model, version=version, signer=signer, at=at)
    except ValueError as exc:
        raise ConfigError(f"this can't be signed: {exc} (--name, --version, --signer)") from exc


def signature_path(source: Path) -> Path:
    """Where the signature of a folder or GGUF file lies, if it has one."""
    return source / FOLDER_SIGNATURE if source.is_dir() else source.with_name(source.name + FILE_SIGNATURE)


def signature_beside(source: str) -> bytes | None:
    """The signature in a model's folder, or beside its GGUF file; None if there is none."""
    path = Path(source).expanduser()
    found = signature_path(path)
    return read_signature(found) if path.exists() and found.is_file() else None


def read_signature(path: Path) -> bytes:
    """The bytes of a signature file, unchecked.

    Raises:
        ConfigError: it can't be read.
        UntrustedFileError: it is too long for one.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIGNATURE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"the signature {path} can't be read: {exc.strerror or exc}") from exc
    if len(data) > MAX_SIGNATURE_BYTES:
        raise UntrustedFileError(f"{path} has over {MAX_SIGNATURE_BYTES} bytes: it is no model's signature")
    return data


def write_signature(path: Path, signature: bytes) -> None:
    """Keep a signature; an earlier one is replaced.

    Raises:
        StorageError: it can't be written.
    """
    try:
        write_atomically(path, signature)
        path.chmod(0o644)  # for whoever is to check it
    except OSError as exc:
        raise storage_error(path, exc, instead="name another file with --out") from exc


def check_files(store: FileStore, manifest: Manifest, progress: Callable[[str, int, int], None]) -> int:
    """Hash every file of a model in the store; how many there are.

    Raises:
        StorageError: one is missing or can't be read.
        UntrustedFileError: one has other bytes than its name says.
    """
    files, n_total, n_done = manifest.all_files(), manifest.size_bytes(), 0
    for wanted in files:
        digest = hashlib.sha256()
        try:
            with store.open(wanted.sha256) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    n_done += len(chunk)
                    progress("checking", n_done, n_total)
        except (NotFoundError, OSError) as exc:
            raise StorageError(
                f"{wanted.name} ({wanted.sha256[:12]}) can't be read in {store.root}: {exc}"
            ) from exc
        if digest.hexdigest() != wanted.sha256:
            raise UntrustedFileError(
                f"{wanted.name} in {store.root} hashes to {digest.hexdigest()[:12]}, and the manifest names "
                f"{wanted.sha256[:12]}: it was altered on this disk; remove the model and add it again"
            )
    return len(files)


def _write_new(path: Path, data: bytes) -> None:
    """A private file that nobody else could read for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
