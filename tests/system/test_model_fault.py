"""A model whose weights are broken: the answer is an error that says so, and no worker loses trust by it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from coordinator.keys import ROUTE_DESK, TRUST_REPORTS
from protocol.errors import ModelFaultError
from tests.support.whole_cluster import Member, packed_tiny, whole_cluster
from worker.engine_core import EngineCore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def damage(member: Member) -> None:
    """Have what a block computes be no numbers, as it is with a damaged file."""

    def broken(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return torch.full_like(output, math.nan)

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            stage._model.model.layers[0].mlp.register_forward_hook(broken)

    await member.worker.engine._link.post(prepare)


@pytest.mark.parametrize("damaged", ["head", "middle", "tail"])
async def test_the_error_says_so_and_nobody_loses_trust_by_it(tmp_path: Path, damaged: str) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name, blocks in (("head", "0:2"), ("middle", "2:3"), ("tail", "3:4")):
            await cluster.join(name, blocks, files=packed)
        await cluster.until_ready()
        application, workers = cluster.coordinator.application, cluster.coordinator.cluster.state.workers
        scores = {worker_id: worker.trust.score for worker_id, worker in workers.items()}
        await damage(cluster.members[damaged])
        for _ in range(3):
            with pytest.raises(ModelFaultError, match="damaged"):
                await cluster.ids("tiny", [5, 9, 30, 4], max_tokens=4)
        await application[TRUST_REPORTS].hand_in()
        after = cluster.coordinator.cluster.state.workers
        assert {worker_id: worker.trust.score for worker_id, worker in after.items()} == scores
        member = cluster.members[damaged].worker.worker_id
        noted = [worker_id for worker_id in after if application[ROUTE_DESK].note(worker_id)]
        assert noted == [member], "others would be tried first"
