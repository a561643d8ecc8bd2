"""A worker whose steps fail: clients say so, it is quarantined, others get its blocks, and the generations go on.

Then operators decide about it by `coord trust`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from client.api import Client
from client.config import ClientConfig
from coordinator.cli import main
from coordinator.policy.state import ClusterState
from protocol.api_key import api_key_from_text
from protocol.errors import InternalError
from protocol.key_rest import CreatedKey, CreateKeyRequest
from tests.support.coordinators import http_session, key_of
from tests.support.waiting import eventually, eventually_answered
from tests.support.whole_cluster import Member, WholeCluster, greedy_ids, packed_tiny, whole_cluster
from worker.engine_core import EngineCore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PROMPT = [5, 9, 30, 4, 77, 12]
N_TOKENS = 8
N_CLIENTS = 4


async def break_steps(member: Member) -> None:
    """Have every step of the worker fail from now on, whatever it holds."""

    def fail(*_: Any) -> None:
        raise InternalError("broken on purpose")

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            stage._model.model.layers[0].register_forward_pre_hook(fail)

    await member.worker.engine._link.post(prepare)


async def generated(cluster: WholeCluster, folder: Path) -> list[int]:
    """A generation by a client with a key of its own."""
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
        answer = await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="one more"))
    key = api_key_from_text(answer.read(CreatedKey).key)
    async with Client(config=ClientConfig(url=cluster.coordinator.url, api_key=key, cache=folder)) as client:
        found = await client.generate("tiny", PROMPT, max_tokens=N_TOKENS, temperature=0.0)
    return list(found.token_ids)


async def test_a_worker_whose_steps_fail_is_quarantined_and_its_blocks_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    packed, whole = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.5, placement="spread") as cluster:

        async def coord(*arguments: str) -> str:
            return await asyncio.to_thread(said, capsys, *arguments, "--state", str(tmp_path / "state"))

        good, bad = await cluster.join("good"), await cluster.join("bad")
        await cluster.add_model("tiny", packed)
        await cluster.until_ready()
        bad_id, good_id = bad.worker.worker_id, good.worker.worker_id
        await break_steps(bad)
        async with asyncio.timeout(120.0):
            found = await asyncio.gather(*(generated(cluster, tmp_path / f"c{i}") for i in range(N_CLIENTS)))
        assert found == [greedy_ids(whole, PROMPT, N_TOKENS)] * N_CLIENTS

        def state() -> ClusterState:
            return cluster.coordinator.cluster.state

        assert state().workers[bad_id].trust.level == "quarantined"
        await eventually(lambda: state().workers[bad_id].assignment.spans == ())
        assert [str(span.blocks) for span in state().workers[good_id].ready] == ["0:4"]
        assert "quarantined" in await coord("status")
        assert "the score fell below" in await coord("trust", "show", bad_id)
        opinions = state().trust[bad_id].opinions
        assert len({opinion.reporter for opinion in opinions}) == N_CLIENTS

        async def is_pardoned() -> bool:
            # what others report of its last steps may come a moment after a pardon, and counts
            await coord("trust", "pardon", bad_id, "--reason", "the hook was the test's")
            return state().workers[bad_id].trust.level == "probation"

        await eventually_answered(is_pardoned)
        await coord("trust", "ban", bad_id, "--reason", "enough")
        await bad.ended()
        assert bad.refusal is not None
        assert "enough" in bad.refusal.message
        assert "banned: enough" in await coord("trust", "list")
        assert await generated(cluster, tmp_path / "last") == found[0]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command of the operator prints."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 0, err
    return out
