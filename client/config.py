"""Which coordinator, with which key, and where files are kept. The client's only reader of the environment.

On the coordinator's own machine nothing has to be said: its state folder holds its address and a client's key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from protocol.api_key import ApiKey, api_key_from_text
from protocol.coordinator_urls import checked_coordinator_urls
from protocol.errors import ConfigError

URL_VARIABLE = "BRIGADE_URL"
KEY_VARIABLE = "BRIGADE_API_KEY"
STATE_VARIABLE = "BRIGADE_STATE"
CACHE_VARIABLE = "BRIGADE_CACHE"
HISTORY_VARIABLE = "BRIGADE_CHAT_HISTORY"

CONNECT_TIMEOUT_S = 15.0
"""As long as a restart may take."""
MAX_CACHE_BYTES = 2**30
"""Tokenizer files are 2 to 40 MB a model: room for dozens of models."""
_MAX_KEY_FILE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What a `Client` needs to know before it begins."""

    url: str
    """The coordinator, `https://host:port`; several are separated by commas and tried in their order."""
    api_key: ApiKey
    cache: Path
    """Folder for config and tokenizer files; made when needed."""
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    """How long the coordinator may be away when the client is opened."""
    max_cache_bytes: int = MAX_CACHE_BYTES
    chat_history: Path | None = None
    """File for what is typed in chats, for the arrow keys of later ones; None: it isn't kept."""

    @classmethod
    def from_env(
        cls,
        *,
        url: str | None = None,
        api_key: str | None = None,
        api_key_file: Path | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        environ: Mapping[str, str] | None = None,
    ) -> ClientConfig:
        """What was given, else the environment, else the coordinator's state folder on this machine.

        Raises:
            ConfigError: there is no address or key anywhere, or a file can't be read; says how to get one.
            UnauthenticatedError: the key doesn't have the form of one.
        """
        environ = os.environ if environ is None else environ
        state = _state_folder(environ)
        given_url = url or environ.get(URL_VARIABLE) or _text_of(state / "url", is_needed=False)
        if not given_url:
            raise ConfigError(
                f"no coordinator is named, and none keeps its state in {state}: give --url https://host:7400 or "
                f"set {URL_VARIABLE}"
            )
        return cls(
            url=",".join(checked_coordinator_urls(given_url)),
            api_key=api_key_from_text(_key_text(api_key, api_key_file, environ, state)),
            cache=Path(environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("brigade")) / "client",
            connect_timeout_s=connect_timeout_s,
            chat_history=_history_file(environ),
        )


def _key_text(given: str | None, file: Path | None, environ: Mapping[str, str], state: Path) -> str:
    if given:
        return given
    if file is not None:
        return _text_of(file, is_needed=True)
    text = environ.get(KEY_VARIABLE) or _text_of(state / "client.key", is_needed=False)
    if not text:
        raise ConfigError(
            "no API key: run `coord key create NAME` on the coordinator's machine, then set "
            f"{KEY_VARIABLE} or give --api-key-file"
        )
    return text


def _state_folder(environ: Mapping[str, str]) -> Path:
    if environ.get(STATE_VARIABLE):
        return Path(environ[STATE_VARIABLE])
    return Path(platformdirs.user_state_dir("brigade")) / "coordinator"


def _history_file(environ: Mapping[str, str]) -> Path:
    if environ.get(HISTORY_VARIABLE):
        return Path(environ[HISTORY_VARIABLE])
    return Path(platformdirs.user_state_dir("brigade")) / "client" / "chat-history"


def _text_of(path: Path, *, is_needed: bool) -> str:
    """The file's text, stripped; empty if it isn't there or (another user's) can't be read, unless it's needed."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_FILE_BYTES).decode("utf-8", errors="replace").strip()
    except OSError as exc:
        if is_needed:
            raise ConfigError(f"the key file {path} can't be read: {exc.strerror or exc}") from exc
        return ""
