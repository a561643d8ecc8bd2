"""Peers of other protocol versions at the doors of a real coordinator and a real worker."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
import torch

from coordinator.app import utc_now_s
from protocol.compatibility import VERSION_HEADER
from protocol.control_messages import Assign
from protocol.ids import ModelName
from protocol.messages import PROTOCOL_VERSION, SessionEnded
from protocol.rest import ErrorAnswer, Hello, RouteGrant, RouteRequest
from protocol.tickets import Ticket, verified_claims
from protocol.tls import COORDINATOR_NAME
from protocol.worker_rest import ChallengeRequest
from tests.protocol.recorded import bodies_1_0
from tests.support.changed_weights import change_weights_of
from tests.support.coordinators import bearer, http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.scripted_worker import connected_worker
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.engine_core import EngineCore

SPOKEN = ["1.0", "1.1", PROTOCOL_VERSION, "1.3"]
REFUSED = ["2.0", "0.9", "1", "one"]
Checkpoints = Callable[[str], TinyCheckpoint]


@pytest.mark.parametrize("version", SPOKEN)
async def test_a_coordinator_takes_every_minor(tmp_path: Path, version: str) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        async with http_session(coordinator, grant.session_token) as http:
            said = {VERSION_HEADER: version}
            assert (await http.ask("GET", "/v1/hello", headers=said)).read(
                Hello
            ).protocol_version == PROTOCOL_VERSION
            request = ChallengeRequest(protocol_version=version, worker_id=key.worker_id, client_nonce="ab" * 32)
            assert (await http.ask("POST", "/v1/join/challenge", request, headers=said)).status == 200
            url = f"{http.url}/v1/worker/control"
            async with http.session.ws_connect(url, server_hostname=COORDINATOR_NAME, headers=said) as socket:
                assert not socket.closed


@pytest.mark.parametrize("version", REFUSED)
async def test_a_coordinator_refuses_other_majors_at_every_door(tmp_path: Path, version: str) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        said = {VERSION_HEADER: version}
        async with http_session(coordinator, grant.session_token) as http:
            request = ChallengeRequest(protocol_version=version, worker_id=key.worker_id, client_nonce="ab" * 32)
            answers = [
                await http.ask("POST", "/v1/join/challenge", request),
                await http.ask("GET", "/v1/hello", headers=said),
                await http.ask("GET", "/v1/models", headers=said | bearer(key_of(coordinator, "client"))),
            ]
            for answer in answers:
                error = answer.read(ErrorAnswer).error
                assert (answer.status, error.code) == (426, "protocol_version")
                assert version in error.message
                assert PROTOCOL_VERSION in error.message
            url = f"{http.url}/v1/worker/control"
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await http.session.ws_connect(url, server_hostname=COORDINATOR_NAME, headers=said)
            assert refused.value.status == 426


@pytest.mark.parametrize("version", SPOKEN)
async def test_a_worker_takes_every_minor(checkpoint: Checkpoints, tmp_path: Path, version: str) -> None:
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        wire = await ring.connect(ring.workers[0], **{VERSION_HEADER: version})
        assert await generated(ring, [5, 9, 30], head_wire=wire) == await generated(ring, [5, 9, 30])


@pytest.mark.parametrize("version", REFUSED)
async def test_a_worker_refuses_other_majors(checkpoint: Checkpoints, tmp_path: Path, version: str) -> None:
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ring.connect(ring.workers[0], **{VERSION_HEADER: version})
        assert refused.value.status == 426


@pytest.mark.parametrize(("version", "is_continued"), [("1.0", False), (PROTOCOL_VERSION, True)])
async def test_a_worker_gets_tickets_in_its_own_version(tmp_path: Path, version: str, is_continued: bool) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        async with (
            connected_worker(coordinator, key, grant, version=version) as worker,
            http_session(coordinator, key_of(coordinator, "client")) as http,
        ):
            while not (assign := await worker.receive(Assign)).spans:
                pass
            await worker.hold(assign)
            wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=4, wait_s=5.0)
            first = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
            again = msgspec.structs.replace(wanted, continues=first.session_id)
            second = (await http.ask("POST", "/v1/routes", again)).read(RouteGrant)
            ticket_key = bytes.fromhex(grant.ticket_key)
            ticket = verified_claims(second.hops[0].ticket, Ticket, [ticket_key], utc_now_s())
            assert ticket.continues == (first.session_id if is_continued else None)


@pytest.mark.parametrize(("version", "code"), [("1.0", "model_unavailable"), (PROTOCOL_VERSION, "model_loading")])
async def test_a_client_gets_errors_that_its_version_has(tmp_path: Path, version: str, code: str) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        async with (
            connected_worker(coordinator, key, grant) as worker,
            http_session(coordinator, key_of(coordinator, "client")) as http,
        ):
            while not (await worker.receive(Assign)).spans:
                pass
            wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=4)
            answer = await http.ask("POST", "/v1/routes", wanted, headers={VERSION_HEADER: version})
            assert answer.status == 503
            assert json.loads(answer.body)["error"]["code"] == code


@pytest.mark.parametrize(
    ("version", "code"),
    [("1.0", "model_unavailable"), ("1.1", "model_unavailable"), (PROTOCOL_VERSION, "model_fault")],
)
@pytest.mark.parametrize("damaged", [0, -1], ids=["head", "tail"])
async def test_a_client_hears_of_damaged_weights_in_its_version(
    checkpoint: Checkpoints, tmp_path: Path, version: str, code: str, damaged: int
) -> None:
    """`internal`, which an older one takes an unknown code for, would cost the worker its trust."""
    async with running_ring(checkpoint("llama"), tmp_path) as ring:

        def spoil(core: EngineCore) -> None:
            for stage, _ in core.spans.values():
                change_weights_of(stage._model, lambda weight: torch.full_like(weight, math.nan))

        await ring.workers[damaged].engine._link.post(spoil)
        wires = [await ring.connect(ring.workers[i], **{VERSION_HEADER: version}) for i in (0, -1)]
        generation = await Generation.prepared(ring, [5, 9, 30], head_wire=wires[0], tail_wire=wires[1])
        await generation.begin()
        for wire in wires:
            ended = await wire.receive(SessionEnded)
            assert (ended.error.code, ended.worker_id) == (code, ring.workers[damaged].worker_id)
            assert "the model's weights are damaged" in ended.error.message


async def test_a_client_of_1_0_gets_answers_that_it_can_read(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            for path, kind in (
                ("/v1/models", bodies_1_0.ModelList),
                ("/admin/v1/status", bodies_1_0.ClusterStatus),
            ):
                now = json.loads((await http.ask("GET", path)).body)
                answer = await http.ask("GET", path, headers={VERSION_HEADER: "1.0"})
                assert msgspec.json.decode(answer.body, type=kind).models[0].name == "tiny"  # type: ignore[attr-defined]
                assert now["models"][0].keys() > json.loads(answer.body)["models"][0].keys()


async def test_a_worker_of_1_1_is_no_tail_for_what_it_would_pass_over(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        async with (
            connected_worker(coordinator, key, grant, version="1.1") as worker,
            http_session(coordinator, key_of(coordinator, "client")) as http,
        ):
            while not (assign := await worker.receive(Assign)).spans:
                pass
            await worker.hold(assign)
            wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=4, wait_s=5.0)
            assert (await http.ask("POST", "/v1/routes", wanted)).status == 200
            newest = msgspec.structs.replace(wanted, newest_sampling=True, wait_s=0.0)
            refused = await http.ask("POST", "/v1/routes", newest)
            assert refused.status == 503
            message = refused.read(ErrorAnswer).error.message
            assert "1 workers are left out as their version has no constraints" in message
