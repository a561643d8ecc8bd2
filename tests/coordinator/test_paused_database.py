"""A database server that takes connections and answers nothing: what operators see of it, and how soon."""

from __future__ import annotations

import time
from pathlib import Path

from coordinator.app import utc_now_s
from coordinator.credentials import KEY_CACHE_S
from protocol.cluster_rest import ClusterStatus
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.postgres import PostgresServer


async def test_the_status_says_within_seconds_that_the_database_does_not_answer(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    shift_s = 0.0
    async with (
        running_coordinator(
            tmp_path, clock=lambda: utc_now_s() + shift_s, database_url=postgres_server.new_database()
        ) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
    ):
        assert (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus).database_problem == ""
        with postgres_server.paused():
            shift_s = 2 * KEY_CACHE_S  # the operator's key has to be looked up again
            began_s = time.monotonic()
            status = (await http.ask("GET", "/admin/v1/status")).read(ClusterStatus)
            took_s = time.monotonic() - began_s
        assert "doesn't answer in time; check --database-url, and that the server runs" in status.database_problem
        assert took_s < 10.0, "with a deadline for each question that a status can do without"
        assert (await http.ask("GET", "/admin/v1/status")).status == 200
