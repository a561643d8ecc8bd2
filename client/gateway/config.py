"""What the gateway is told at its start: where it listens, whom it lets in, and which cluster is behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from client.config import ClientConfig
from protocol.api_key import ApiKey
from protocol.errors import ConfigError
from protocol.listening import is_loopback, listen_address_from_text
from protocol.metrics_address import MetricsAddress

DEFAULT_PORT = 8000
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_STOP_S = 30.0
DEFAULT_MAX_CONNECTIONS = 1024
"""Of one address: browsers and SDKs open one for each request under way, and a proxy brings everybody's."""
STALLED_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Its own key is in `cluster`; its repr doesn't show the secret."""

    cluster: ClientConfig
    """Which coordinator, and where tokenizer files are kept."""
    listen_host: str = "127.0.0.1"
    listen_port: int = DEFAULT_PORT
    """0: any free port."""
    tls_cert: Path | None = None
    """With `tls_key`: PEM files. None: plain HTTP."""
    tls_key: Path | None = None
    allow_origins: tuple[str, ...] = ()
    """Origins whose pages may read answers (CORS); `*` is any."""
    names: tuple[str, ...] = ()
    """Host names by which others reach the gateway, beside this machine's own."""
    share_key: bool = False
    """Whether who brings no key of the cluster uses the gateway's own, wherever it comes from."""
    timeout_s: float = DEFAULT_TIMEOUT_S
    """For a whole answer."""
    stop_s: float = DEFAULT_STOP_S
    """How long answers under way may take once the gateway is told to stop."""
    stalled_s: float = STALLED_S
    """For a client to read what was sent; after that its answer is given up."""
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    metrics_listen: MetricsAddress | None = None
    """Where Prometheus reads metrics without a key; None: nowhere."""

    @property
    def own_key_for_none(self) -> ApiKey | None:
        """The key of requests that bring none; None: they are refused."""
        return self.cluster.api_key if self.share_key or is_loopback(self.listen_host) else None

    @property
    def own_key_for_strange(self) -> ApiKey | None:
        """The key of requests whose own is no key of a cluster (`sk-...`, `ollama`); None: they are refused."""
        return self.cluster.api_key if self.share_key else None

    def check(self) -> None:
        """Refuse what can't be meant.

        Raises:
            ConfigError: the message names the option.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key go together: give both files, or neither for plain HTTP")
        for name, value in (("--timeout", self.timeout_s), ("--stop-within", self.stop_s)):
            if not value > 0:
                raise ConfigError(f"{name} is {value:g} s; it must be above 0")
        for origin in self.allow_origins:
            _check_origin(origin)


def gateway_address(text: str | None) -> tuple[str, int]:
    """Host and port of `--listen`; without it, loopback and 8000. ConfigError: not such an address."""
    return listen_address_from_text(text or "127.0.0.1", default_port=DEFAULT_PORT)


def _check_origin(origin: str) -> None:
    if origin == "*":
        return
    try:
        url = URL(origin)
        is_origin = url.scheme in ("http", "https") and str(url.origin()) == origin
    except ValueError:
        is_origin = False
    if not is_origin:
        raise ConfigError(
            f"--allow-origin {origin[:200]!r} is not an origin, such as https://chat.example.com or "
            "http://localhost:3000 (no path, no slash at the end), or *"
        )
