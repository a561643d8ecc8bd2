from __future__ import annotations

from pathlib import Path

from protocol.admin_rest import AuditPage
from protocol.control_messages import Assign, EndSessions, GenerationReport
from protocol.generation_rest import GenerationInfo, GenerationPage
from protocol.ids import ModelName
from protocol.rest import RouteGrant, RouteRequest
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually_answered


async def test_generations_are_listed_shown_and_cancelled(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, joined_worker(coordinator) as worker:
        await add_model(coordinator)
        while not (assign := await worker.receive(Assign)).spans:
            pass
        await worker.hold(assign)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as client,
            http_session(coordinator, key_of(coordinator, "admin")) as admin,
        ):

            async def granted() -> RouteGrant:
                wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=5, max_tokens=7, wait_s=10.0)
                return (await client.ask("POST", "/v1/routes", wanted)).read(RouteGrant)

            async def listed(query: str) -> GenerationPage:
                return (await admin.ask("GET", f"/admin/v1/generations?{query}")).read(GenerationPage)

            first, second, third = [await granted() for _ in range(3)]
            await worker.send(
                GenerationReport(
                    session_id=first.session_id, n_prompt_tokens=5, n_completion_tokens=6, outcome="stop"
                )
            )

            async def is_over() -> bool:
                return bool((await listed("state=finished")).generations)

            await eventually_answered(is_over)
            (over,) = (await listed("state=finished")).generations
            assert (over.session_id, over.outcome, over.n_completion_tokens) == (first.session_id, "stop", 6)
            page = await listed("limit=1&state=running")
            assert [info.session_id for info in page.generations] == [third.session_id]
            rest = await listed(f"limit=1&state=running&cursor={page.next_cursor}")
            assert [info.session_id for info in rest.generations] == [second.session_id]
            assert rest.next_cursor is None
            assert (await listed("model=other")).generations == ()

            path = f"/admin/v1/generations/{second.session_id}"
            shown = (await admin.ask("GET", path)).read(GenerationInfo)
            assert (shown.state, shown.key_name) == ("running", "first client key")
            assert [hop.hostname for hop in shown.hops] == ["scripted"]
            assert (await client.ask("DELETE", path)).status == 403
            assert (await admin.ask("DELETE", path)).status == 200
            order = await worker.receive(EndSessions)
            assert (order.session_ids, order.error.code) == ((second.session_id,), "cancelled_by_operator")
            assert (await admin.ask("DELETE", f"/admin/v1/generations/{first.session_id}")).status == 409
            assert (await admin.ask("DELETE", "/admin/v1/generations/nosuch")).status == 404
            lines = (await admin.ask("GET", "/admin/v1/audit?action=generation_cancelled")).read(AuditPage)
            assert [line.subject for line in lines.entries] == [second.session_id]
