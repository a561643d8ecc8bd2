"""THREATS.md 24: workers that are honest while they are looked at, or blame the model for giving no answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordinator.keys import AUDITOR
from coordinator.policy.audit_evasion import IN_A_ROW, SERVED
from coordinator.policy.audit_probe import STEPS
from protocol.cluster_rest import ClusterStatus
from protocol.errors import ModelFaultError
from protocol.trust_rest import TrustRequest
from tests.attacks.test_24_lies_about_work import PROMPT, auditing, level, record
from tests.support.cheating import cheat
from tests.support.coordinators import http_session, key_of
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, WholeCluster, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


class WrongOnce:
    """Lies for as many steps as are left, so for one probe, and is honest from then on."""

    def __init__(self) -> None:
        self.n_left = 0

    def states(self, states: torch.Tensor) -> torch.Tensor:
        self.n_left -= 1
        return states * 1.5 if self.n_left >= 0 else states


async def test_who_is_honest_for_minutes_after_each_wrong_answer_is_found_all_the_same(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        audit, bad, wrong = auditing(cluster), members[2], WrongOnce()
        await cheat(bad, 1, wrong.states)
        for outcome in ("suspected", "suspected", "failed"):
            wrong.n_left = len(STEPS)
            assert (await audit(bad)).outcome == outcome
        assert level(cluster, bad) == "quarantined"
        assert "quarantined" not in [level(cluster, member) for member in members[:2]]


async def test_a_restart_of_the_coordinator_forgets_no_accusation(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        bad, wrong = members[2], WrongOnce()
        await cheat(bad, 1, wrong.states)
        for outcome in ("suspected", "suspected", "failed"):
            if outcome == "failed":
                await cluster.stop_coordinator()
                await cluster.start_coordinator()
                await cluster.until_ready()
                await eventually(lambda: all(is_back(cluster, member) for member in members))
            wrong.n_left = len(STEPS)
            assert (await auditing(cluster)(bad)).outcome == outcome
        assert level(cluster, bad) == "quarantined"


def is_back(cluster: WholeCluster, member: Member) -> bool:
    worker = cluster.coordinator.cluster.state.workers[member.worker.worker_id]
    return worker.is_connected and bool(worker.served) and worker.device is not None


async def test_a_pardon_clears_a_worker_of_what_it_was_accused_of(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        audit, bad, wrong = auditing(cluster), members[2], WrongOnce()
        await cheat(bad, 1, wrong.states)
        for is_pardoned in (False, False, True):
            if is_pardoned:
                await pardon(cluster, bad)
            wrong.n_left = len(STEPS)
            assert (await audit(bad)).outcome == "suspected"


async def pardon(cluster: WholeCluster, member: Member) -> None:
    async with http_session(cluster.coordinator, key_of(cluster.coordinator, "admin")) as http:
        path = f"/admin/v1/workers/{member.worker.worker_id}/trust"
        answer = await http.ask("POST", path, TrustRequest(action="pardon", reason="repaired"))
        assert answer.status == 200, answer.body


async def test_who_says_that_the_model_is_damaged_while_another_one_computes_it_well_gave_no_answer(
    tmp_path: Path,
) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        good, bad = await cluster.join("a", "0:4"), await cluster.join("b", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)

        def blame_the_model(_states: torch.Tensor) -> torch.Tensor:
            raise ModelFaultError("the weights are damaged")

        await cheat(bad, 0, blame_the_model)
        found = await audit(good)
        assert (found.outcome, found.partner_outcome) == ("undecided", "unanswered")
        await cheat(good, 0, blame_the_model)
        found = await audit(good)  # where both say so, it may be
        assert (found.outcome, found.partner_outcome) == ("undecided", "undecided")


async def test_who_is_never_free_for_audits_but_for_clients_is_told_of(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        good, bad = await cluster.join("a", "0:2"), await cluster.join("b", "0:4")
        await cluster.until_ready()
        audit = auditing(cluster)
        for _ in range(IN_A_ROW):
            bad.worker.data_plane._sessions.is_draining = True  # type: ignore[union-attr]
            found = await audit(good)
            assert (found.outcome, found.partner_outcome) == ("undecided", "undecided")
            bad.worker.data_plane._sessions.is_draining = False  # type: ignore[union-attr]
            await cluster.generate("tiny", PROMPT, max_tokens=2)
        auditor = cluster.coordinator.application[AUDITOR]
        await eventually(lambda: auditor._rows[bad.worker.worker_id].n_served >= SERVED)
        bad.worker.data_plane._sessions.is_draining = True  # type: ignore[union-attr]
        await audit(good)
        assert [(o.kind, o.reporter) for o in record(cluster, bad).opinions if o.reporter == "coordinator"] == [
            ("overloaded", "coordinator")
        ]
        assert "coordinator" not in {opinion.reporter for opinion in record(cluster, good).opinions}
        status = (await cluster.admin("GET", "/admin/v1/status")).read(ClusterStatus)
        assert f"{bad.worker.worker_id} ({IN_A_ROW + 1} in a row)" in status.audits
        pardon = TrustRequest(action="pardon", reason="its network was mended")
        await cluster.admin("POST", f"/admin/v1/workers/{bad.worker.worker_id}/trust", pardon)
        status = (await cluster.admin("GET", "/admin/v1/status")).read(ClusterStatus)
        assert "in a row" not in status.audits
