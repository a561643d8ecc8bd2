"""Hidden states as int8 between two workers, where the operator asks for it; and what is told of links and hops."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.policy.views import worker_info
from protocol.cluster_rest import WorkerInfo
from protocol.ids import WorkerId
from tests.support.waiting import eventually
from tests.support.whole_cluster import packed_tiny, whole_cluster

N_PROMPT = 400


async def test_activations_travel_as_int8_where_the_operator_says_so(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama", max_position_embeddings=512, eos_token_id=None)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        head = await cluster.join("head", "0:2", files=packed, wire="int8")
        tail = await cluster.join("tail", "2:4", files=packed)
        await cluster.until_ready()
        ids = await cluster.ids("tiny", [3 + i % 90 for i in range(N_PROMPT)], max_tokens=4)
        assert len(ids) == 4
        data_plane = head.worker.data_plane
        hub = cluster.coordinator.cluster
        for one, other in ((head, tail), (tail, head)):
            own, peer = one.worker.worker_id, other.worker.worker_id

            def told_of(own: WorkerId = own, peer: WorkerId = peer) -> WorkerInfo | None:
                info = worker_info(hub.state, own, 0.0)
                return info if peer in info.links and info.hop_p50_s else None

            told = await eventually(told_of)
            assert told.hop_p50_s <= told.hop_p99_s
            assert told.links[peer].n_bytes_sent > 0
        n_bytes = data_plane.links[tail.worker.worker_id].n_bytes_sent
    n_exact = N_PROMPT * whole.config.hidden_size * 4
    assert 0.25 * n_exact < n_bytes < 0.6 * n_exact, "codes are a quarter, scales and headers come on top"


async def test_int8_that_the_next_worker_is_too_old_for_is_said_by_the_worker_and_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    monkeypatch.setattr("worker.server.PROTOCOL_VERSION", "1.1")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        head = await cluster.join("head", "0:2", files=packed, wire="int8")
        tail = await cluster.join("tail", "2:4", files=packed)
        await cluster.until_ready()
        assert len(await cluster.ids("tiny", [5, 9, 30], max_tokens=4)) == 4
        said = f"worker {tail.worker.worker_id} speaks protocol 1.1, which has no int8: upgrade it"
        hub = cluster.coordinator.cluster

        def is_noted() -> bool:
            return any(said in span.note for span in worker_info(hub.state, head.worker.worker_id, 0.0).spans)

        await eventually(is_noted)
    assert capsys.readouterr().out.count(f"WARNING: --wire int8 does nothing towards a neighbour: {said}") == 1
