"""The join secret as a coordinator is given it at its start: by option, file or variable. And files of secrets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from protocol.errors import ConfigError
from protocol.handshake import checked_secret

MAX_SECRET_FILE_BYTES = 64 * 2**10


def settled_secret(environ: Mapping[str, str], secret: str | None, secret_file: Path | None) -> str | None:
    """The join secret that was given, found strong enough; None: none was.

    An empty secret is a mistake, not "none given": a set but empty variable must not open the door.

    Raises:
        ConfigError: it is too weak, can't be read, or was given twice.
    """
    if secret is not None and secret_file is not None:
        raise ConfigError("both --secret and --secret-file were given; give one")
    if secret is not None:
        return checked_secret(secret)
    if secret_file is not None:
        return checked_secret(secret_from_file(secret_file))
    if "BRIGADE_SECRET" in environ:
        return checked_secret(environ["BRIGADE_SECRET"])
    return None


def secret_source(
    environ: Mapping[str, str], secret: str | None, secret_file: Path | None, where: Mapping[str, str]
) -> str:
    """What gave the join secret, for people; empty: nothing did. `where`: of arguments that no option gave."""
    if secret is not None:
        return where.get("secret", "--secret")
    if secret_file is not None:
        return where.get("secret_file", "--secret-file")
    return "BRIGADE_SECRET" if "BRIGADE_SECRET" in environ else ""


def secret_from_file(path: Path) -> str:
    """The text of a secret file; ConfigError if it can't be read. The strength isn't checked here."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_FILE_BYTES + 1)
        if len(data) > MAX_SECRET_FILE_BYTES:
            raise ConfigError(f"the secret file {path} is over {MAX_SECRET_FILE_BYTES} bytes: not a secret")
        return data.decode("utf-8").strip()
    except OSError as exc:
        raise ConfigError(f"the secret file {path} can't be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the secret file {path} isn't text") from exc
