"""The passphrase of a key that models are signed with: out of a file, or asked for on the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.cli_output import notes
from coordinator.signing_files import opened_key
from protocol.author_keys import readers_beside_owner
from protocol.errors import ConfigError

PassphraseFileOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File with the key's passphrase. Else it is asked for on the terminal."),
]
MAX_PASSPHRASE_BYTES = 1023
"""OpenSSL takes no longer ones."""


def opened_with_passphrase(key: Path, passphrase_file: Path | None) -> Ed25519PrivateKey:
    """A private key out of its file; a warning says so if others on this machine can read that.

    Raises:
        ConfigError: it can't be read, or not with this passphrase.
    """
    path = key.expanduser()
    opened = opened_key(path, lambda: given_passphrase(passphrase_file, is_new=False))
    if warning := readers_beside_owner(path):
        notes().print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    return opened


def given_passphrase(file: Path | None, *, is_new: bool) -> str | None:
    """What the file says, or whoever sits at the terminal; None if there is neither, and no new key is made.

    Raises:
        ConfigError: the file can't be read or is empty, what it says is too long, or a new key gets none.
    """
    if file is not None:
        return _passphrase_in(file)
    if sys.stdin.isatty():
        asked = typer.prompt("passphrase of the key", hide_input=True, confirmation_prompt=is_new, err=True)
        return _checked_passphrase(str(asked))
    if is_new:
        raise ConfigError(
            "--encrypt asks for a passphrase on the terminal, and there is none: name a file with it "
            "(--passphrase-file)"
        )
    return None


def _passphrase_in(file: Path) -> str:
    try:
        with file.expanduser().open("rb") as opened:
            text = opened.read(2 * MAX_PASSPHRASE_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"--passphrase-file {file} can't be read: {exc}") from exc
    if not text:
        raise ConfigError(f"--passphrase-file {file} is empty: a key without a passphrase needs no such file")
    return _checked_passphrase(text)


def _checked_passphrase(text: str) -> str:
    if len(text.encode()) > MAX_PASSPHRASE_BYTES:
        raise ConfigError(f"the passphrase has over {MAX_PASSPHRASE_BYTES} bytes: take a shorter one")
    return text
