"""What operators do with workers: show them, and forget those that are gone."""

from __future__ import annotations

from pathlib import Path

from coordinator.app import RunningCoordinator
from protocol.cluster_rest import WorkerInfo
from protocol.control_messages import Assign, Drain, Leaving
from protocol.rest import ErrorAnswer
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker
from tests.support.waiting import eventually_answered


async def gone(http: Http, path: str) -> bool:
    return (await http.ask("GET", path)).read(WorkerInfo).state == "gone"


async def test_a_worker_is_forgotten_once_it_is_gone_and_stays_so(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        path = await removed(coordinator)
    async with running_coordinator(tmp_path) as again, http_session(again, key_of(again, "admin")) as http:
        assert (await http.ask("GET", path)).status == 404
        assert (await again.repository.load_state()).workers == ()


async def removed(coordinator: RunningCoordinator) -> str:
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        async with joined_worker(coordinator) as worker:
            await worker.receive(Assign)
            path = f"/admin/v1/workers/{worker.worker_id}"
            refused = await http.ask("DELETE", path)
            assert (refused.status, "drain it first" in refused.read(ErrorAnswer).error.message) == (409, True)
            assert "Retry-After" not in refused.headers
            forced = await http.ask("DELETE", f"{path}?force=true")
            assert forced.status == 409
            assert int(forced.headers["Retry-After"]) >= 1
            assert (await worker.receive(Drain)).reason
            assert (await http.ask("GET", path)).read(WorkerInfo).state == "draining"
            await worker.send(Leaving(reason="told to"))
        await eventually_answered(lambda: gone(http, path))
        late = (await http.ask("POST", f"{path}/undrain")).read(ErrorAnswer).error.message
        assert ("is gone (" in late, "on its way out" in late) == (True, False)
        assert (await http.ask("DELETE", path)).status == 200
        assert (await http.ask("DELETE", path)).status == 404
        return path
