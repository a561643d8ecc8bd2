from __future__ import annotations

from tests.system.conftest import checkpoint, one_quiet_thread

__all__ = ["checkpoint", "one_quiet_thread"]
