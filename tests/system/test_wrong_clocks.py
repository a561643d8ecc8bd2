"""Clocks that are hours apart: said to whoever asks, and no worker loses trust by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from coordinator.policy.trust import TrustRecord
from protocol.audit_rest import AuditInfo
from protocol.cluster_rest import ClusterStatus
from protocol.errors import ClockSkewError
from tests.support.waiting import eventually
from tests.support.whole_cluster import greedy_ids, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
HOURS_S = 2 * 3600.0


async def test_a_worker_whose_clock_goes_wrong_later_is_named_and_gone_round(tmp_path: Path) -> None:
    packed, whole = packed_tiny(tmp_path, "llama")
    prompt = [5, 9, 30]
    expected = greedy_ids(whole, prompt, 4)
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        wrong, right = [await cluster.join(name, "0:4", files=packed) for name in "ab"]
        await cluster.until_ready()
        records = cluster.coordinator.cluster
        wrong_id = wrong.worker.worker_id
        for ahead_s, words in (
            (-HOURS_S, "7,200 s behind the coordinator's: tickets are good there for so much longer"),
            (HOURS_S, "7,200 s ahead of the coordinator's: tickets, which live 3,600 s, have expired there"),
        ):
            wrong.clock_ahead_s = ahead_s
            await eventually(lambda: records.state.workers[wrong_id].clock_offset_s == wrong.clock_ahead_s)
            status = (await cluster.admin("GET", "/admin/v1/status")).read(ClusterStatus)
            (info,) = [info for info in status.workers if info.worker_id == wrong_id]
            assert words in info.reason
            assert (info.state, info.clock_offset_s) == ("ready", ahead_s)
        for _ in range(3):
            generation = await cluster.generate("tiny", prompt, max_tokens=4)
            assert list(generation.token_ids) == expected
            assert [stage.worker_id for stage in generation.route] == [right.worker.worker_id]
            assert generation.failovers == 0
        wrong.clock_ahead_s = 0.0
        await eventually(lambda: not records.state.workers[wrong_id].takes_no_tickets)


async def test_a_coordinator_whose_clock_is_hours_behind_is_said_and_costs_no_worker_trust(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4", files=packed) for name in "ab"]
        await cluster.until_ready()
        for member in members:
            member.worker.data_plane._sessions._clock = lambda: utc_now_s() + HOURS_S  # type: ignore[union-attr]
        with pytest.raises(ClockSkewError, match=r"expired 3[56]\d\d s ago by the clock of worker w-.*NTP"):
            await cluster.generate("tiny", [5, 9, 30], max_tokens=4)
        path = f"/admin/v1/workers/{members[0].worker.worker_id}/audits"
        found = (await cluster.admin("POST", path)).read(AuditInfo)
        assert (found.outcome, found.partner_outcome) == ("undecided", "undecided")
        assert "(NTP)" in found.reason
        trust = cluster.coordinator.cluster.state.trust
        assert [trust.get(member.worker.worker_id, TrustRecord()).opinions for member in members] == [(), ()]
