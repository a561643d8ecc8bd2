"""Hidden states as int8 between two workers, where the operator asks for it; and what is told of links and hops."""

from __future__ import annotations

from pathlib import Path

from coordinator.policy.views import worker_info
from protocol.ids import WorkerId
from protocol.rest import WorkerInfo
from tests.support.coordinators import eventually
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
