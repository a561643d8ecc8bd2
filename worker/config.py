"""What a worker is told when it starts; the only file of the worker that reads the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import platformdirs

from protocol.author_keys import AuthorKey
from protocol.errors import ConfigError
from protocol.ids import BlockRange, ModelName
from protocol.invites import Invite
from protocol.metrics_address import MetricsAddress
from worker.admission import read_again, settled_admission

if TYPE_CHECKING:  # `worker --help` needs no torch
    from worker.device import DeviceChoice, KvPrecisionChoice, PrecisionChoice
    from worker.wire import WireChoice

MAX_CHUNK_TOKENS = 8192
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker. None means: found out by the worker itself."""

    coordinator_urls: tuple[str, ...]
    """Tried in order; all of one coordinator. None: the local network is searched for it."""
    secret: str | Invite = field(repr=False)
    """The join secret, or an invite in its place."""
    secret_file: Path | None = None
    """Where `secret` was read from, and is read again at each joining: it may have been rotated meanwhile."""
    state: Path
    listen_host: str | None = None
    listen_port: int = 0
    """0: any free port."""
    advertise_url: str | None = None
    device: DeviceChoice = "auto"
    precision: PrecisionChoice = "auto"
    n_threads: int | None = None
    memory_bytes: int | None = None
    """Most bytes for weights and key-value caches together."""
    kv_memory_bytes: int | None = None
    kv_precision: KvPrecisionChoice = "auto"
    """What keys and values are kept in; auto: what is computed in."""
    cache_bytes: int | None = None
    """Most bytes of model files on disk; None: what the disk has, least recently used files going first."""
    pinned_model: ModelName | None = None
    pinned_blocks: BlockRange | None = None
    chunk_tokens: int | None = None
    """Most tokens of a prompt that are run at a time; None: by what they were measured to take."""
    wire: WireChoice = "auto"
    """How hidden states go to the next worker."""
    draft_model: Path | None = None
    """A small model, as a folder or a GGUF file, that guesses what the served ones will say."""
    compiles: bool = False
    """Whether steps of one token run by compiled code, where that can be."""
    trusted_authors: tuple[AuthorKey, ...] = ()
    """Only models that one of them signed are loaded; none: all that the coordinator assigns."""
    metrics_listen: MetricsAddress | None = None
    """Where Prometheus reads metrics; None: nowhere."""
    drain_s: float = 30.0
    handover_s: float = 10.0
    """A worker that is stopped takes new sessions for so long at most, until others have its blocks."""
    join_timeout_s: float | None = None
    """How long a coordinator may be away when the worker starts; None: as long as it takes."""

    def __post_init__(self) -> None:
        """Check what can be checked without touching anything.

        Raises:
            ConfigError: a value can't be used; the message names the option.
        """
        for url in self.coordinator_urls:
            checked_url(url, "the coordinator's address")
        if self.advertise_url is not None:
            checked_url(self.advertise_url, "--advertise")
        if not 0 <= self.listen_port <= 65_535:
            raise ConfigError(f"--listen: {self.listen_port} is no port; 0 to 65535")
        if self.n_threads is not None and self.n_threads < 1:
            raise ConfigError(f"--threads {self.n_threads}: at least 1")
        if self.chunk_tokens is not None and not 1 <= self.chunk_tokens <= MAX_CHUNK_TOKENS:
            raise ConfigError(f"--chunk-tokens {self.chunk_tokens}: 1 to {MAX_CHUNK_TOKENS}")

    @classmethod
    def from_env(
        cls,
        *,
        secret: str | None = None,
        secret_file: Path | None = None,
        invite: str | None = None,
        invite_file: Path | None = None,
        state: Path | None = None,
        environment: Mapping[str, str] | None = None,
        coordinator_urls: tuple[str, ...] = (),
        **options: Any,
    ) -> WorkerConfig:
        """Complete the command line's options from the environment: the secret and the state folder.

        `BRIGADE_SECRET` and `BRIGADE_INVITE` count only if neither a secret nor an invite is given. Addresses that
        are given go before an invite's.

        Raises:
            ConfigError: there is no secret, it is too weak, or another value can't be used.
        """
        env = os.environ if environment is None else environment
        given = settled_admission(
            secret=secret, secret_file=secret_file, invite=invite, invite_file=invite_file, environment=env
        )
        return cls(
            coordinator_urls=coordinator_urls or (given.secret.urls if isinstance(given.secret, Invite) else ()),
            secret=given.secret,
            secret_file=given.file,
            state=state or default_state(env),
            **options,
        )

    def join_secret(self) -> str | Invite:
        """The join secret, or the invite, as it is now; a pipe gave it once. Blocks: it may be in a file.

        Raises:
            ConfigError: the file can't be read any more, or holds no secret.
        """
        if self.secret_file is None or self.secret_file.is_fifo():
            return self.secret
        return read_again(self.secret_file, is_invite=isinstance(self.secret, Invite))


def given_secret(secret_file: Path | None, invite_file: Path | None) -> str | Invite:
    """What the files hold, else the environment. ConfigError as `WorkerConfig.from_env`."""
    return settled_admission(secret_file=secret_file, invite_file=invite_file, environment=os.environ).secret


def checked_url(url: str, what: str) -> str:
    """The address as it was given, if it is https://HOST[:PORT] and no more.

    Raises:
        ConfigError: another scheme, a path, or credentials in it.
    """
    try:
        parts = urlsplit(url)
        is_usable = parts.hostname is not None and parts.port != 0
    except ValueError as exc:
        raise ConfigError(f"{what} {url!r} is no address: {exc}; write https://HOST:PORT") from exc
    if parts.scheme == "http":
        raise ConfigError(f"{what} {url!r} would go unencrypted: Brigade speaks TLS only, write https://")
    if parts.scheme != "https" or not is_usable:
        raise ConfigError(f"{what} {url!r} is no address: write https://HOST:PORT")
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigError(f"{what} {url!r} has more than a host and a port: write https://HOST:PORT")
    return url


def listed_urls(texts: Sequence[str]) -> tuple[str, ...]:
    """The addresses that an operator lists, as arguments or with commas in between; each once, in their order.

    Raises:
        ConfigError: something is listed, and no address in it.
    """
    urls = tuple(dict.fromkeys(url for text in texts for part in text.split(",") if (url := part.strip())))
    if texts and not urls:
        raise ConfigError("no coordinator's address is in what is given for it: worker join https://HOST:7400")
    return urls


def size_from_text(text: str, option: str) -> int:
    """Bytes that an operator wrote as `8GiB`, `500MB` or a number; `KB` and `KiB` differ as they should.

    Raises:
        ConfigError: not a size, or 0.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option} {text!r} is no size; write a number of bytes, or such as 500MB or 8GiB")
    base = 1024 if match[3] else 1000
    n_bytes = int(float(match[1]) * base ** _POWERS[match[2].upper()])
    if n_bytes < 1:
        raise ConfigError(f"{option} {text!r} is no size: at least 1 byte")
    return n_bytes


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT` or `[IPV6]:PORT`; port 0 if none is given.

    Raises:
        ConfigError: not such an address.
    """
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or 0
    except ValueError as exc:
        raise ConfigError(f"--listen {text!r} is no address: {exc}; write HOST:PORT") from exc
    if host is None or parts.netloc != text or "@" in text:
        raise ConfigError(f"--listen {text!r} is no address: write HOST:PORT")
    return host, port


def default_state(environment: Mapping[str, str] | None = None) -> Path:
    """The state folder where none is named: `BRIGADE_WORKER_STATE`, else the user's own place for state."""
    env = os.environ if environment is None else environment
    if env.get("BRIGADE_WORKER_STATE"):
        return Path(env["BRIGADE_WORKER_STATE"])
    return Path(platformdirs.user_state_dir("brigade")) / "worker"
