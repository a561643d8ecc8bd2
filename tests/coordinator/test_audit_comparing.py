"""What audits come to, by what workers answer. How they are asked is tried in `tests/attacks`."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from coordinator.audit_asking import Answer
from coordinator.audit_comparing import CONFIRMING_S, MAX_SILENCES, Comparer
from coordinator.audit_found import Found
from coordinator.audit_kept import KeptAnswers
from coordinator.audit_session import NoAnswerError
from coordinator.audit_store import AuditStore, RecordedAnswer
from coordinator.database import opened
from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS, Projection
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN, Held
from coordinator.policy.audit_schedule import AuditPlan, Candidate
from coordinator.policy.state import ClusterState, ModelRecord
from coordinator.repository import Repository
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from tests.support.scripted_cluster import scripted_manifest

BLOCKS, REVISION, HELD = BlockRange(0, 4), Revision("r" * 64), Held(weights="float32")
TARGET, PARTNER, THIRD, FOURTH = map(WorkerId, ("target", "partner", "third", "fourth"))
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def right(seed: str) -> Projection:
    rng = random.Random(seed)
    return tuple(tuple(rng.gauss(0.0, 1.0) for _ in range(N_SUMS)) for _ in range(N_POSITIONS))


def wrong(seed: str) -> Projection:
    return ((1.0,) * N_SUMS, *right(seed)[1:])


@dataclass
class Workers:
    """Workers that answer right, but for those probes, counted from 0, at which one is wrong or silent."""

    wrong_at: Mapping[WorkerId, set[int]]
    silent_at: Mapping[WorkerId, set[int]] = field(default_factory=dict)
    seeds: list[str] = field(default_factory=list)
    probe_s: float = 0.0
    """What each probe takes."""
    now_s: float = 1000.0
    honest_at: Mapping[WorkerId, set[str]] = field(default_factory=dict)
    """Seeds at which one is right all the same."""

    async def answers(
        self, plan: AuditPlan, seed: str, candidates: Sequence[Candidate]
    ) -> Mapping[WorkerId, Answer]:
        if seed not in self.seeds:
            self.seeds.append(seed)
        self.now_s += self.probe_s
        return {one.worker_id: self._answer(one.worker_id, seed) for one in candidates}

    def _answer(self, worker_id: WorkerId, seed: str) -> Answer:
        number = self.seeds.index(seed)
        if number in self.silent_at.get(worker_id, set()):
            return NoAnswerError("silent", "nothing came")
        is_wrong = number in self.wrong_at.get(worker_id, set()) and seed not in self.honest_at.get(worker_id, ())
        return (wrong if is_wrong else right)(seed)


def candidate(worker_id: WorkerId, rank: int = 1) -> Candidate:
    return Candidate(worker_id=worker_id, url="", epoch=0, held=HELD, rank=rank)


def plan(*others: WorkerId, ranks: Mapping[WorkerId, int]) -> AuditPlan:
    model = ModelRecord(name=ModelName("m"), revision=REVISION, manifest=scripted_manifest({}, 64))
    candidates = tuple(candidate(other, ranks.get(other, 1)) for other in others)
    return AuditPlan(model=model, blocks=BLOCKS, target=candidate(TARGET), others=candidates)


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AuditStore]:
    async with opened(database_url) as engine:
        yield AuditStore(Repository(engine).transactions)


async def found(
    workers: Workers, store: AuditStore, *others: WorkerId, ranks: Mapping[WorkerId, int] | None = None
) -> Found:
    kept = KeptAnswers(workers, store, ClusterState, lambda: 0.0, random.Random(1))
    return await Comparer(workers, kept, lambda: workers.now_s).found(plan(*others, ranks=ranks or {}))


async def keep(store: AuditStore, n_kept: int, worker_id: WorkerId = PARTNER, *, first: int = 0) -> None:
    for number in range(first, first + n_kept):
        seed = f"kept {number}"
        answer = RecordedAnswer(held=HELD, seed=seed, worker_id=worker_id, projection=right(seed))
        await store.record(REVISION, BLOCKS, answer, NOW)


@pytest.mark.parametrize("again", [(1, 2), (1, MAX_CONFIRMATIONS), (MAX_CONFIRMATIONS - 1, MAX_CONFIRMATIONS)])
async def test_who_is_wrong_thrice_fails(store: AuditStore, again: tuple[int, int]) -> None:
    workers = Workers({TARGET: {0, *again}})
    audit = await found(workers, store, PARTNER, THIRD)
    assert (audit.outcome, audit.partner_outcome, audit.referee) == ("failed", "passed", THIRD)
    assert len(workers.seeds) == 1 + again[-1]
    assert audit.n_asked == {TARGET: 1 + again[-1], PARTNER: 1 + again[-1], THIRD: 3}
    assert audit.accused is None
    assert len(audit.comparisons) == 9  # of each time: the two, and either with the third


@pytest.mark.parametrize("again", [set(), {5}, {MAX_CONFIRMATIONS}])
@pytest.mark.parametrize("is_target", [True, False])
async def test_who_differs_as_often_as_rounding_may_is_suspected_and_does_not_fail(
    store: AuditStore, is_target: bool, again: set[int]
) -> None:
    one, other = (TARGET, PARTNER) if is_target else (PARTNER, TARGET)
    assert len(again) < N_AGAIN
    workers = Workers({one: {0, *again}, other: {3}})
    audit = await found(workers, store, PARTNER, THIRD)
    outcomes = {TARGET: audit.outcome, PARTNER: audit.partner_outcome}
    assert (outcomes[one], outcomes[other], audit.accused) == ("suspected", "passed", one)
    assert len(workers.seeds) == 1 + MAX_CONFIRMATIONS
    assert f"{MAX_CONFIRMATIONS} fresh probes didn't show it of {one} as often again" in audit.words


async def test_who_takes_long_over_right_answers_after_a_wrong_one_is_accused_and_the_audit_ends(
    store: AuditStore,
) -> None:
    workers = Workers({TARGET: {0}}, probe_s=59.0)
    audit = await found(workers, store, PARTNER, THIRD)
    assert (audit.outcome, audit.partner_outcome, audit.accused) == ("suspected", "passed", TARGET)
    n_fresh = len(workers.seeds) - 1
    assert n_fresh == 4  # the fourth began before the end
    assert n_fresh * 59.0 < CONFIRMING_S + 60.0
    assert f"{n_fresh} fresh probes didn't show it of {TARGET} as often again" in audit.words


async def test_who_falls_silent_when_asked_again_has_given_no_answer(store: AuditStore) -> None:
    workers = Workers({TARGET: {0, 1, 2}}, {TARGET: {1}})
    audit = await found(workers, store, PARTNER, THIRD)
    # suspicion counts once, however often: who is silent after each wrong answer would lose nothing more
    assert (audit.outcome, audit.partner_outcome, audit.accused) == ("unanswered", "passed", TARGET)
    assert audit.words == f"asked again, {TARGET} gave no answer: nothing came"
    assert len(workers.seeds) == 2
    workers = Workers({TARGET: {0, 1, 2, 3}}, {PARTNER: {1}})  # a partner that falls silent clears nobody
    assert (await found(workers, store, PARTNER, THIRD)).outcome == "failed"


async def test_who_stands_in_is_not_the_one_who_has_to_be_trusted_most(store: AuditStore) -> None:
    workers = Workers({TARGET: set(range(100))}, {PARTNER: set(range(1, 100))})
    audit = await found(workers, store, PARTNER, THIRD, FOURTH, ranks={PARTNER: 0, THIRD: 2})
    assert (audit.outcome, audit.partner_outcome, audit.referee) == ("failed", "passed", THIRD)


async def test_others_stand_in_for_a_partner_that_stays_silent(store: AuditStore) -> None:
    """It would be waited for once a probe, and could keep its accomplice from failing."""
    silent = {PARTNER: set(range(1, 100))}
    audit = await found(Workers({TARGET: {0, 2, 4}}, silent), store, PARTNER, THIRD, FOURTH)
    assert (audit.outcome, audit.partner_outcome) == ("failed", "passed")
    assert audit.n_asked[PARTNER] == 2
    assert FOURTH in {each.other for each in audit.comparisons}


@pytest.mark.parametrize("is_target", [True, False])
async def test_an_audit_gives_up_where_nobody_is_left_to_confirm_it(store: AuditStore, is_target: bool) -> None:
    one, other = (TARGET, PARTNER) if is_target else (PARTNER, TARGET)
    workers = Workers({one: set(range(100))}, {other: set(range(1, 100)), THIRD: set(range(1, 100))})
    audit = await found(workers, store, PARTNER, THIRD)
    outcomes = {TARGET: audit.outcome, PARTNER: audit.partner_outcome}
    assert (outcomes[one], outcomes[other]) == ("suspected", "passed")
    assert audit.n_asked[other] == 1 + MAX_SILENCES
    assert audit.words == (
        f"asked again, {other} gave no answer: nothing came; so nobody could show it of {one} again"
    )


@pytest.mark.parametrize("n_silent", [1, MAX_SILENCES])
async def test_an_audit_waits_as_seldom_for_who_is_to_decide(store: AuditStore, n_silent: int) -> None:
    workers = Workers({TARGET: set(range(100))}, {THIRD: set(range(1, 1 + n_silent))})
    audit = await found(workers, store, PARTNER, THIRD)
    is_shown = n_silent < MAX_SILENCES
    assert (audit.outcome, audit.partner_outcome) == ("failed" if is_shown else "suspected", "passed")
    assert audit.n_asked[THIRD] == 1 + n_silent + is_shown * N_AGAIN
    words = f"asked again, {THIRD} gave no answer: nothing came; so nobody could show it of {TARGET} again"
    assert audit.words == ("" if is_shown else words)


@pytest.mark.parametrize("is_target", [True, False])
@pytest.mark.parametrize(("n_kept", "outcome"), [(4, "failed"), (3, "failed"), (2, "suspected")])
async def test_of_two_one_fails_by_three_kept_probes_not_by_two(
    store: AuditStore, n_kept: int, outcome: str, is_target: bool
) -> None:
    one, other = (TARGET, PARTNER) if is_target else (PARTNER, TARGET)
    await keep(store, n_kept, THIRD)
    audit = await found(Workers({one: set(range(100))}), store, PARTNER)
    outcomes = {TARGET: audit.outcome, PARTNER: audit.partner_outcome}
    is_shown = outcome == "failed"
    assert (outcomes[one], outcomes[other]) == (outcome, "passed" if is_shown else "suspected")
    assert audit.referee == ("recorded" if is_shown else "")
    assert audit.n_asked == {one: 2 + min(n_kept, 1 + N_AGAIN), other: 3}  # both the same twice, to begin with
    assert audit.accused is None  # the same kept answer would say it of the same rounding time and again
    assert ("nobody could say which of the two is wrong: fewer than 3 kept" in audit.words) == (not is_shown)


@pytest.mark.parametrize("at", [{1}, {1, 3}])
async def test_one_that_lies_to_all_but_kept_probes_frames_nobody_by_a_rounding(
    store: AuditStore, at: set[int]
) -> None:
    await keep(store, 8, THIRD)
    seeds = await kept_seeds(store)
    liar = Workers({TARGET: at, PARTNER: set(range(100))}, honest_at={PARTNER: seeds})
    audit = await found(liar, store, PARTNER)
    assert (audit.outcome, audit.partner_outcome, audit.accused) == ("suspected", "suspected", None)


async def kept_seeds(store: AuditStore) -> set[str]:
    return {one.seed for one in await store.recorded(REVISION, BLOCKS)}


async def test_of_two_who_falls_silent_when_kept_probes_are_asked_again_has_given_no_answer(
    store: AuditStore,
) -> None:
    await keep(store, 4, THIRD)
    workers = Workers({TARGET: set(range(100))}, {TARGET: {2, 3, 4, 5}})
    audit = await found(workers, store, PARTNER)
    assert (audit.outcome, audit.partner_outcome) == ("unanswered", "suspected")
    assert f"asked again, {TARGET} gave no answer" in audit.words


@pytest.mark.parametrize(
    ("n_kept", "wrong_at", "outcome"),
    [(4, {0, 2, 3}, "failed"), (4, {0, 3}, "suspected"), (2, {0, 1}, "suspected"), (4, set(), "passed")],
)
async def test_alone_one_fails_by_three_kept_probes_not_by_two(
    store: AuditStore, n_kept: int, wrong_at: set[int], outcome: str
) -> None:
    await keep(store, n_kept)
    audit = await found(Workers({TARGET: wrong_at}), store)
    assert audit.outcome == outcome
    assert ("fewer than 3 kept probes showed it" in audit.words) == (outcome == "suspected")


async def test_alone_who_takes_long_is_asked_no_longer_than_others(store: AuditStore) -> None:
    await keep(store, 4)
    await keep(store, 4, THIRD, first=4)
    audit = await found(Workers({TARGET: {0, 1}}, probe_s=59.0), store)
    assert (audit.outcome, audit.n_asked[TARGET]) == ("suspected", 2 + 4)


async def test_alone_who_falls_silent_after_a_wrong_answer_is_not_waited_for_again(store: AuditStore) -> None:
    await keep(store, 4)
    audit = await found(Workers({TARGET: {0, 1, 2, 3}}, {TARGET: {1}}), store)
    assert (audit.outcome, audit.n_asked[TARGET]) == ("unanswered", 2)
    assert audit.words == f"asked again, {TARGET} gave no answer: nothing came"


async def test_alone_one_fails_by_kept_answers_of_several_workers_only_if_their_probes_were_three(
    store: AuditStore,
) -> None:
    for worker_id in (PARTNER, THIRD):  # of the same two audits
        await keep(store, 2, worker_id)
    assert (await found(Workers({TARGET: {0, 1}}), store)).outcome == "suspected"
    await keep(store, 1, FOURTH, first=2)
    assert (await found(Workers({TARGET: {0, 1, 2}}), store)).outcome == "failed"
