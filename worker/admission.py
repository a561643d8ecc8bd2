"""What a worker proves itself with, the join secret or an invite: by option, in a file, or in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from protocol.errors import ConfigError
from protocol.handshake import checked_secret
from protocol.invites import Invite, invite_from_text

MAX_SECRET_FILE_BYTES = 65_536
_VARIABLES = ("BRIGADE_SECRET", "BRIGADE_INVITE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What was given."""

    secret: str | Invite = field(repr=False)
    file: Path | None = None
    """Where it was read from."""


def settled_admission(
    *,
    secret: str | None = None,
    secret_file: Path | None = None,
    invite: str | None = None,
    invite_file: Path | None = None,
    environment: Mapping[str, str],
) -> Admission:
    """What the options give, else `BRIGADE_SECRET` or `BRIGADE_INVITE`.

    Raises:
        ConfigError: there is nothing or too much of it, it can't be read, is too weak, or is no invite.
    """
    options = {"--secret": secret, "--secret-file": secret_file, "--invite": invite, "--invite-file": invite_file}
    given = [name for name, value in options.items() if value is not None]
    if not given:
        given = [name for name in _VARIABLES if name in environment]
    if len(given) > 1:
        raise ConfigError(f"{given[0]} and {given[1]} are both given: use one")
    if secret_file is not None:
        return Admission(secret=read_again(secret_file, is_invite=False), file=secret_file)
    if invite_file is not None:
        return Admission(secret=read_again(invite_file, is_invite=True), file=invite_file)
    if secret is not None or given == ["BRIGADE_SECRET"]:
        return Admission(secret=checked_secret(secret if secret is not None else environment["BRIGADE_SECRET"]))
    if invite is not None or given == ["BRIGADE_INVITE"]:
        return Admission(secret=invite_from_text(invite if invite is not None else environment["BRIGADE_INVITE"]))
    raise ConfigError(
        "no join secret: set BRIGADE_SECRET, or say --secret-file FILE; `coord serve` says where it keeps it. Or "
        "an invite, as `coord invite` prints it: BRIGADE_INVITE, or --invite-file FILE"
    )


def read_again(path: Path, *, is_invite: bool) -> str | Invite:
    """What the file holds now. Blocks.

    Raises:
        ConfigError: it can't be read, or holds neither a secret that is strong enough nor an invite.
    """
    option = "--invite-file" if is_invite else "--secret-file"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_FILE_BYTES).decode()
    except OSError as exc:
        raise ConfigError(f"{option} {path} can't be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{option} {path} is no text") from exc
    return invite_from_text(text) if is_invite else checked_secret(text)
