"""THREATS.md 24: workers that are honest while they are looked at, or blame the model for giving no answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coordinator.policy.audit_probe import STEPS
from protocol.errors import ModelFaultError
from protocol.trust_rest import TrustRequest
from tests.attacks.test_24_lies_about_work import auditing, level
from tests.support.cheating import cheat
from tests.support.coordinators import http_session, key_of
from tests.support.whole_cluster import Member, WholeCluster, packed_tiny, whole_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


async def test_who_is_honest_for_minutes_after_each_wrong_answer_is_found_all_the_same(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        audit, bad, n_wrong = auditing(cluster), members[2], 0

        def lying_low(states: torch.Tensor) -> torch.Tensor:
            nonlocal n_wrong
            n_wrong -= 1
            return states * 1.5 if n_wrong >= 0 else states

        await cheat(bad, 1, lying_low)
        for outcome in ("suspected", "suspected", "failed"):
            n_wrong = len(STEPS)
            assert (await audit(bad)).outcome == outcome
        assert level(cluster, bad) == "quarantined"
        assert "quarantined" not in [level(cluster, member) for member in members[:2]]


async def test_a_pardon_clears_a_worker_of_what_it_was_accused_of(tmp_path: Path) -> None:
    packed, _ = packed_tiny(tmp_path, "llama")
    async with whole_cluster(tmp_path, settle_s=0.3) as cluster:
        await cluster.add_model("tiny", packed)
        members = [await cluster.join(name, "0:4") for name in "abc"]
        await cluster.until_ready()
        audit, bad, n_wrong = auditing(cluster), members[2], 0

        def wrong_once(states: torch.Tensor) -> torch.Tensor:
            nonlocal n_wrong
            n_wrong -= 1
            return states * 1.5 if n_wrong >= 0 else states

        await cheat(bad, 1, wrong_once)
        for is_pardoned in (False, False, True):
            if is_pardoned:
                await pardon(cluster, bad)
            n_wrong = len(STEPS)
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
