"""A model that does not fit: held in fewer bits by workers whose precision is open, refused by the others."""

from __future__ import annotations

from pathlib import Path

from coordinator.policy.sizing import KV_TARGETS, span_bytes
from coordinator.policy.views import model_info, worker_info
from protocol.ids import BlockRange, ModelName
from protocol.messages import WeightFormat
from tests.support.waiting import eventually
from tests.support.whole_cluster import Packed, packed_tiny, whole_cluster

TINY = ModelName("tiny")
N_BLOCKS = 4
PROMPT = [5, 9, 30, 7]
LARGE = {"hidden_size": 64, "intermediate_size": 1024, "max_position_embeddings": 64, "eos_token_id": None}
"""Weights that are much more than caches."""


def memory_for(packed: Packed, held_as: WeightFormat, n_blocks: int) -> int:
    """What a worker needs to hold so many blocks, with an end of the model."""
    n_bytes = span_bytes(packed.model.manifest, BlockRange(0, n_blocks), held_as, KV_TARGETS[-1])
    return int(n_bytes / 0.9) + 1000


async def test_workers_too_small_for_a_model_serve_it_in_4_bits_and_say_so(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", **LARGE)
    memory = memory_for(packed, "int4", 2)
    assert memory < memory_for(packed, "bfloat16", 1)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        members = [
            await cluster.join(name, files=packed, precision="auto", memory_bytes=memory) for name in ("a", "b")
        ]
        await cluster.until_ready()

        generation = await cluster.generate("tiny", PROMPT, max_tokens=6)
        assert len(generation.token_ids) == 6
        assert {(hop.precision, hop.quantization) for hop in generation.route} == {("bfloat16", "int4")}
        state = cluster.coordinator.cluster.state
        for member in members:
            info = worker_info(state, member.worker.worker_id, 0.0)
            assert "in int4, since tiny takes" in info.spans[0].note
            assert any("in int4 on cpu" in line for line in member.lines)
            assert any("in int4, since tiny takes" in line for line in member.lines), "the log says why"

        # a coordinator that is started again knows what was held in what
        await cluster.stop_coordinator()
        await cluster.start_coordinator()
        await cluster.until_ready()
        assert await cluster.ids("tiny", PROMPT, max_tokens=6) == list(generation.token_ids)
        assert not any("dropped" in line for member in members for line in member.lines), "nothing was loaded anew"


async def test_workers_with_a_precision_of_their_own_refuse_and_are_named(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama", **LARGE)
    memory = memory_for(packed, "int4", 2)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        for name in ("a", "b"):
            await cluster.join(name, files=packed, precision="bfloat16", memory_bytes=memory)

        def told() -> str | None:
            reason = model_info(cluster.coordinator.cluster.state, TINY, 0.0).reason
            return reason if "(now bfloat16)" in reason else None

        reason = await eventually(told)
        assert "GB of memory more are needed" in reason
        assert "--precision int4 on " in reason
        assert f"and {N_BLOCKS} are wanted" in reason
