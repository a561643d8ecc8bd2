"""Clocks that are hours apart: said to whoever asks, and no worker loses trust by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.app import utc_now_s
from coordinator.policy.trust import TrustRecord
from protocol.audit_rest import AuditInfo
from protocol.errors import ClockSkewError
from tests.support.whole_cluster import packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
HOURS_S = 2 * 3600.0


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
