"""`--metrics-listen`: where a program lets Prometheus read its metrics, and what people are told of it."""

from __future__ import annotations

from protocol.listening import is_loopback, listen_address_from_text

OPTION = "--metrics-listen"
METRICS_PORT = 9464
"""That of OpenTelemetry's own exporters."""

MetricsAddress = tuple[str, int]
"""Host and port. Port 0: any free one."""


def metrics_address(text: str | None) -> MetricsAddress | None:
    """What the option says; None: nothing is listened on. ConfigError: no such address."""
    return None if text is None else listen_address_from_text(text, default_port=METRICS_PORT, option=OPTION)


def metrics_notice(url: str | None, address: MetricsAddress | None) -> str | None:
    """What an operator is told of metrics that are read at `url`; None if they are read nowhere."""
    if url is None or address is None:
        return None
    told = f"Metrics for Prometheus at {url}"
    if is_loopback(address[0]):
        return told
    return f"{told}; warning: whoever reaches that reads how much is used, without a key and unencrypted"
