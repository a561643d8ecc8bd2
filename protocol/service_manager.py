"""Tell the service manager (systemd) when a program is ready, and that it stops. Nothing where there is none."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Literal

import structlog

log = structlog.get_logger(__name__)


def tell_service_manager(state: Literal["READY=1", "STOPPING=1"], environ: Mapping[str, str] | None = None) -> None:
    """Send a state to `NOTIFY_SOCKET`, as sd_notify(3) does. Never waits; nobody listening is no error."""
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET")
    if address and sys.platform != "win32":
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
            sending.settimeout(0)
            try:
                sending.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
            except OSError as exc:
                log.warning("service_manager_not_told", state=state, error=str(exc))
