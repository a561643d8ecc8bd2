"""What the dashboard has to know at its start: its files, who signed out before, which generations run."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from aiohttp import web

from coordinator.dashboard_files import dashboard_files
from coordinator.generation_book import GenerationFilter
from coordinator.keys import (
    CLOCK,
    DASHBOARD_FILES,
    DASHBOARD_SESSIONS,
    DASHBOARD_STORE,
    GENERATIONS,
    RUNNING,
)
from coordinator.running_generations import MAX_RUNNING
from coordinator.ticket_desk import TICKET_LIFE_S


async def take_up_dashboard(app: web.Application) -> None:
    """Read all of it, once, before the application answers.

    Raises:
        StorageError: the database can't be used.
    """
    now = datetime.fromtimestamp(app[CLOCK](), UTC)
    app[DASHBOARD_FILES] = await asyncio.to_thread(dashboard_files)
    app[DASHBOARD_SESSIONS].remember(await app[DASHBOARD_STORE].signed_out(now))
    running = await app[GENERATIONS].generations(
        GenerationFilter(state="running"), now - timedelta(seconds=TICKET_LIFE_S), n_generations=MAX_RUNNING
    )
    app[RUNNING].remember((info, datetime.fromisoformat(info.started_at).timestamp()) for info in running)
