"""What comes of asking workers the same probe twice, by what they answer each time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from coordinator.audit_asking import Answer
from coordinator.audit_comparing import CONFIRMING_S, Comparer
from coordinator.audit_found import Found
from coordinator.audit_kept import KeptAnswers
from coordinator.audit_session import Failure, NoAnswerError
from coordinator.audit_store import AuditStore
from coordinator.database import opened
from coordinator.policy.audit_probe import N_POSITIONS, N_SUMS, Projection
from coordinator.policy.audit_repeats import OWN_REPEAT
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN
from coordinator.policy.audit_schedule import AuditPlan, Candidate
from coordinator.policy.state import ClusterState
from coordinator.repository import Repository
from protocol.ids import WorkerId
from tests.coordinator.test_audit_comparing import PARTNER, TARGET, THIRD, keep, plan, right, wrong

ALWAYS = range(1000)


@dataclass
class Workers:
    """Workers that answer right, but for those of the times that they are asked, counted from 0."""

    garbage_at: Mapping[WorkerId, Sequence[int]] = field(default_factory=dict)
    """When one answers what it never answers again."""
    alike_at: Mapping[WorkerId, Sequence[int]] = field(default_factory=dict)
    """When one is wrong in the way that it always is."""
    none_at: Mapping[WorkerId, Sequence[int]] = field(default_factory=dict)
    failure: Failure = "silent"
    probe_s: float = 0.0
    now_s: float = 1000.0
    asked: dict[WorkerId, list[str]] = field(default_factory=dict)
    """The seeds that each was asked."""

    async def answers(
        self, _plan: AuditPlan, seed: str, candidates: Sequence[Candidate]
    ) -> Mapping[WorkerId, Answer]:
        self.now_s += self.probe_s
        return {one.worker_id: self._answer(one.worker_id, seed) for one in candidates}

    def _answer(self, worker_id: WorkerId, seed: str) -> Answer:
        times = self.asked.setdefault(worker_id, [])
        number = len(times)
        times.append(seed)
        if number in self.none_at.get(worker_id, ()):
            return NoAnswerError(self.failure, "nothing came")
        if number in self.garbage_at.get(worker_id, ()):
            return garbage(f"{worker_id} {number}")
        return (wrong if number in self.alike_at.get(worker_id, ()) else right)(seed)


def garbage(name: str) -> Projection:
    rng = random.Random(name)
    return tuple(tuple(rng.gauss(0.0, 1.0) for _ in range(N_SUMS)) for _ in range(N_POSITIONS))


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[AuditStore]:
    async with opened(database_url) as engine:
        yield AuditStore(Repository(engine).transactions)


async def found(workers: Workers, store: AuditStore, *others: WorkerId) -> Found:
    kept = KeptAnswers(workers, store, ClusterState, lambda: 0.0, random.Random(1))
    return await Comparer(workers, kept, lambda: workers.now_s).found(plan(*others, ranks={}))


def outcomes(audit: Found) -> dict[WorkerId, str]:
    return {TARGET: audit.outcome, PARTNER: audit.partner_outcome}


both_ways = pytest.mark.parametrize(("bad", "good"), [(TARGET, PARTNER), (PARTNER, TARGET)])


@both_ways
@pytest.mark.parametrize("at", [(0, 2, 4), (1, 3, 5), (0, 2, 1 + 2 * MAX_CONFIRMATIONS)])
async def test_of_two_alone_who_contradicts_itself_at_three_probes_fails(
    store: AuditStore, bad: WorkerId, good: WorkerId, at: tuple[int, int, int]
) -> None:
    first = {} if at[0] == 0 else {bad: [0]}  # wrong as it would be again, and then it isn't
    audit = await found(Workers({bad: at}, first), store, PARTNER)
    assert outcomes(audit) == {bad: "failed", good: "undecided"}
    assert (audit.referee, audit.accused) == (OWN_REPEAT, None)
    assert audit.n_asked == {bad: 2 * (1 + at[-1] // 2), good: 2}
    assert f"the projections of {bad} and {OWN_REPEAT} differ" in audit.info(0.0).reason


@both_ways
@pytest.mark.parametrize("more", [(), (2,), (1 + 2 * MAX_CONFIRMATIONS,)])
async def test_who_contradicts_itself_as_often_as_rounding_may_is_suspected_and_accused(
    store: AuditStore, bad: WorkerId, good: WorkerId, more: tuple[int, ...]
) -> None:
    assert len(more) < N_AGAIN
    workers = Workers({bad: (0, *more)})
    audit = await found(workers, store, PARTNER)
    assert outcomes(audit) == {bad: "suspected", good: "undecided"}
    assert (audit.referee, audit.accused) == ("", bad)
    assert audit.n_asked == {bad: 2 * (1 + MAX_CONFIRMATIONS), good: 2}
    assert f"{MAX_CONFIRMATIONS} fresh probes, each asked twice, didn't show as often again" in audit.words
    assert len(set(workers.asked[bad])) == 1 + MAX_CONFIRMATIONS


@both_ways
async def test_who_is_wrong_in_the_same_way_twice_is_not_found_so_and_frames_nobody(
    store: AuditStore, bad: WorkerId, good: WorkerId
) -> None:
    audit = await found(Workers(alike_at={bad: ALWAYS}), store, PARTNER)
    assert outcomes(audit) == {bad: "suspected", good: "suspected"}
    assert audit.accused is None
    await keep(store, 3, THIRD)  # then what is kept decides, as ever
    audit = await found(Workers(alike_at={bad: ALWAYS}), store, PARTNER)
    assert (outcomes(audit), audit.referee) == ({bad: "failed", good: "passed"}, "recorded")


@both_ways
@pytest.mark.parametrize(
    ("failure", "left"), [("silent", "unanswered"), ("refused", "unanswered"), ("busy", "suspected")]
)
async def test_who_gives_no_second_answer_is_not_accused_by_that_and_kept_answers_decide(
    store: AuditStore, bad: WorkerId, good: WorkerId, failure: Failure, left: str
) -> None:
    """Its partner could flood it just then."""
    workers = Workers({bad: ALWAYS}, none_at={bad: [1]}, failure=failure)
    audit = await found(workers, store, PARTNER)
    assert (outcomes(audit), audit.accused) == ({bad: left, good: "suspected"}, None)
    assert f"asked the same again, {bad} gave no answer: nothing came" in audit.words
    await keep(store, 3, THIRD)
    workers = Workers({bad: ALWAYS}, none_at={bad: [1]}, failure=failure)
    assert outcomes(await found(workers, store, PARTNER)) == {bad: "failed", good: "passed"}


@both_ways
@pytest.mark.parametrize(("failure", "left"), [("silent", "unanswered"), ("busy", "suspected")])
async def test_who_refuses_fresh_probes_after_it_contradicted_itself_is_accused(
    store: AuditStore, bad: WorkerId, good: WorkerId, failure: Failure, left: str
) -> None:
    for at in (2, 3):
        workers = Workers({bad: ALWAYS}, none_at={bad: [at]}, failure=failure)
        audit = await found(workers, store, PARTNER)
        assert outcomes(audit) == {bad: left, good: "undecided"}
        assert (audit.accused, audit.words) == (bad, f"asked again, {bad} gave no answer: nothing came")


async def test_two_that_both_contradict_themselves_do_not_shield_one_another(store: AuditStore) -> None:
    audit = await found(Workers({TARGET: ALWAYS, PARTNER: ALWAYS}), store, PARTNER)
    assert outcomes(audit) == {TARGET: "failed", PARTNER: "suspected"}  # its turn comes


@both_ways
async def test_a_partner_without_a_second_answer_shields_nobody(
    store: AuditStore, bad: WorkerId, good: WorkerId
) -> None:
    audit = await found(Workers({bad: ALWAYS}, none_at={good: [1]}, failure="busy"), store, PARTNER)
    assert outcomes(audit) == {bad: "failed", good: "undecided"}


@both_ways
async def test_contradicting_oneself_once_is_no_way_out_of_kept_answers(
    store: AuditStore, bad: WorkerId, good: WorkerId
) -> None:
    """Nor is an accomplice that does so beside one that is always wrong."""
    await keep(store, 3, THIRD)
    audit = await found(Workers({bad: [1]}, {bad: ALWAYS}), store, PARTNER)
    assert (outcomes(audit), audit.referee, audit.accused) == ({bad: "failed", good: "passed"}, "recorded", None)
    audit = await found(Workers({good: [1]}, {bad: ALWAYS}), store, PARTNER)
    assert (outcomes(audit), audit.accused) == ({bad: "failed", good: "suspected"}, good)


@both_ways
async def test_too_few_kept_answers_leave_what_a_contradiction_said(
    store: AuditStore, bad: WorkerId, good: WorkerId
) -> None:
    await keep(store, N_AGAIN, THIRD)
    audit = await found(Workers({bad: [1]}, {bad: ALWAYS}), store, PARTNER)
    assert (outcomes(audit), audit.accused) == ({bad: "suspected", good: "undecided"}, bad)
    assert f"that {bad} contradicts itself" in audit.words


async def test_two_that_agree_are_not_asked_again(store: AuditStore) -> None:
    audit = await found(Workers(), store, PARTNER)
    assert (outcomes(audit), set(audit.n_asked.values())) == ({TARGET: "passed", PARTNER: "passed"}, {1})


async def test_who_takes_long_over_fresh_probes_is_accused_and_the_audit_ends(store: AuditStore) -> None:
    workers = Workers({TARGET: [0]}, probe_s=59.0)
    audit = await found(workers, store, PARTNER)
    assert (audit.outcome, audit.accused) == ("suspected", TARGET)
    assert workers.now_s - 1000.0 - 59.0 < CONFIRMING_S + 2 * 60.0


async def test_no_second_answer_is_kept_for_others_to_be_compared_with(store: AuditStore) -> None:
    trusted = plan(PARTNER, ranks={PARTNER: 2})
    workers = Workers({PARTNER: [1]}, alike_at={TARGET: [0]})
    kept = KeptAnswers(workers, store, ClusterState, lambda: 0.0, random.Random(1))
    await Comparer(workers, kept, lambda: workers.now_s).found(trusted)
    assert await store.recorded(trusted.model.revision, trusted.blocks) == ()


@pytest.mark.parametrize(
    ("at", "outcome", "accused"),
    [((0, 2, 4), "failed", None), ((1, 3), "suspected", TARGET), ((), "undecided", None)],
)
async def test_alone_with_its_blocks_who_contradicts_itself_at_three_probes_fails(
    store: AuditStore, at: tuple[int, ...], outcome: str, accused: WorkerId | None
) -> None:
    audit = await found(Workers({TARGET: at}), store)
    assert (audit.outcome, audit.accused, audit.partner) == (outcome, accused, OWN_REPEAT)
    assert ("a second worker that holds them" in audit.words) == (at == ())


@pytest.mark.parametrize("at", [0, 1])
async def test_alone_who_gives_no_answer_is_not_asked_on(store: AuditStore, at: int) -> None:
    audit = await found(Workers({TARGET: ALWAYS}, none_at={TARGET: [at]}), store)
    assert (audit.outcome, audit.accused, audit.n_asked[TARGET]) == ("unanswered", None, at + 1)
    assert audit.words == f"{TARGET} gave no answer: nothing came"


async def test_alone_kept_answers_go_before(store: AuditStore) -> None:
    await keep(store, 1)
    audit = await found(Workers(), store)
    assert (audit.outcome, audit.partner, audit.n_asked[TARGET]) == ("passed", "recorded", 1)
