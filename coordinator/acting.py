"""Who is acting: known at the door of a request, written into the audit log far behind it.

A context variable, since what lies between (policy, transactions) has nothing to do with who asked.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

COORDINATOR: Final = "coordinator"
"""Nobody asked: time passed, or something was noticed."""

acting: ContextVar[str] = ContextVar("acting", default=COORDINATOR)
"""`key:ID`, `worker:ID` or `COORDINATOR`; set for every request that shows a credential."""
