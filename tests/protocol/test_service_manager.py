from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from protocol.service_manager import tell_service_manager


@pytest.mark.parametrize("is_abstract", [False, True])
def test_a_manager_that_listens_is_told(tmp_path: Path, *, is_abstract: bool) -> None:
    name = f"brigade-{secrets.token_hex(8)}" if is_abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if is_abstract else name)
        manager.setblocking(False)
        tell_service_manager("READY=1", {"NOTIFY_SOCKET": "@" + name if is_abstract else name})
        assert manager.recv(100) == b"READY=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    tell_service_manager("READY=1", {})
    tell_service_manager("STOPPING=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})
