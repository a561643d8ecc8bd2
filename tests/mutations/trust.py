"""Classes 24 and 25: what audits compare, whom they believe, and what evidence does to a worker."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_LIES, _GAMES = "test_24_lies_about_work.py", "test_25_trust_games.py"
_LOW = "test_24_lying_low.py"
_RULES = "tests/coordinator/policy/test_audit_rules.py"
_COMPARING = "tests/coordinator/test_audit_comparing.py"
_REPEATING = "tests/coordinator/test_audit_repeating.py"
_ALONE = "test_24_two_alone.py"

TRUST = (
    Mutation(
        attack=24,
        what="numbers that are none differ from any",
        file="coordinator/policy/audit_rules.py",
        before="        return 2.0\n",
        after="        return 0.0\n",
        tests=(f"{_RULES}::test_a_wrong_step_is_found_if_it_has_more_positions_than_may_stray",),
    ),
    Mutation(
        attack=24,
        what="a single wrong step counts",
        file="coordinator/policy/audit_rules.py",
        before="    return apart[len(apart) // 2], apart[n_stray]\n",
        after="    return apart[len(apart) // 2], apart[len(apart) // 2]\n",
        tests=(f"{_RULES}::test_a_wrong_step_is_found_if_it_has_more_positions_than_may_stray",),
    ),
    Mutation(
        attack=24,
        what="what is a little wrong everywhere counts",
        file="coordinator/policy/audit_rules.py",
        before="    return apart[len(apart) // 2], apart[n_stray]\n",
        after="    return 0.0, apart[n_stray]\n",
        tests=(f"{_RULES}::test_small_differences_everywhere_count_where_a_single_one_would_not",),
    ),
    Mutation(
        attack=24,
        what="one accomplice among the referees frames nobody",
        file="coordinator/policy/audit_rules.py",
        before="    if len(set(votes.values())) != 1:\n",
        after="    if not votes:\n",
        tests=(f"{_RULES}::test_referees_that_are_of_two_minds_have_nobody_fail",),
    ),
    Mutation(
        attack=24,
        what="nobody fails by a single probe, which rounding may explain",
        file="coordinator/audit_comparing.py",
        before="            ruling = await self._confirmed(found, ruling)\n",
        after="            await self._confirmed(found, ruling)\n",
        tests=(f"{_COMPARING}::test_who_differs_as_often_as_rounding_may_is_suspected_and_does_not_fail",),
    ),
    Mutation(
        attack=24,
        what="nor by two kept probes",
        file="coordinator/audit_comparing.py",
        before="not await self._kept.show_again(found, plan.target, records, n_compared, is_late):\n",
        after="not n_compared:\n",
        tests=(f"{_COMPARING}::test_alone_one_fails_by_three_kept_probes_not_by_two",),
    ),
    Mutation(
        attack=24,
        what="nor by one kept probe, beside one that lies to all others",
        file="coordinator/audit_comparing.py",
        before="        if await self._kept.show_again(found, both[at], records[at], n_compared, is_late):\n",
        after="        if found.comparisons:\n",
        tests=(f"{_COMPARING}::test_one_that_lies_to_all_but_kept_probes_frames_nobody_by_a_rounding",),
    ),
    Mutation(
        attack=24,
        what="what fresh probes show again is a failure",
        file="coordinator/audit_comparing.py",
        before="                n_again += 1\n",
        after="",
        tests=(f"{_COMPARING}::test_who_is_wrong_thrice_fails",),
    ),
    Mutation(
        attack=24,
        what="others stand in for a partner whose silence would keep an accomplice from failing",
        file="coordinator/audit_comparing.py",
        before="                others = [others[-1], *others[1:-1]] if len(others) > 2 else others\n",
        after="",
        tests=(f"{_COMPARING}::test_others_stand_in_for_a_partner_that_stays_silent",),
    ),
    Mutation(
        attack=24,
        what="of two alone, who contradicts itself is found",
        file="coordinator/audit_comparing.py",
        before="            if not await self._repeats.settles(found, seed, answers, is_late) and not is_late():\n",
        after="            if found.comparisons:\n",
        tests=(f"{_ALONE}::test_of_two_alone_garbage_on_a_tenth_of_the_steps_is_found_and_nobody_else_is_blamed",),
    ),
    Mutation(
        attack=24,
        what="nobody fails by contradicting itself once, which rounding may explain",
        file="coordinator/policy/audit_repeats.py",
        before="        return self.n_shown >= N_AGAIN\n",
        after="        return self.n_fresh >= 0\n",
        tests=(f"{_REPEATING}::test_who_contradicts_itself_as_often_as_rounding_may_is_suspected_and_accused",),
    ),
    Mutation(
        attack=24,
        what="a partner that contradicts itself, too, shields nobody",
        file="coordinator/policy/audit_repeats.py",
        before="    return next((at for at",
        after="    if sum(one is not None and not one.agrees for one in repeats) > 1:\n        return None\n"
        "    return next((at for at",
        tests=(f"{_REPEATING}::test_two_that_both_contradict_themselves_do_not_shield_one_another",),
    ),
    Mutation(
        attack=24,
        what="contradicting oneself once is no way out of kept answers",
        file="coordinator/audit_repeating.py",
        before='        return "failed" in verdicts\n',
        after="        return at is not None\n",
        tests=(f"{_REPEATING}::test_contradicting_oneself_once_is_no_way_out_of_kept_answers",),
    ),
    Mutation(
        attack=24,
        what="who lies low after contradicting itself is accused",
        file="coordinator/audit_repeating.py",
        before="        found.accused = failed.worker_id\n",
        after="",
        tests=(f"{_ALONE}::test_who_is_honest_after_each_wrong_answer_contradicts_itself_by_that",),
    ),
    Mutation(
        attack=24,
        what="an answer in another precision than planned is compared with nothing",
        file="coordinator/audit_asking.py",
        before="        if not is_as_planned(self._cluster.state, plan, candidate):\n",
        after="        if plan is None:\n",
        tests=(f"{_ALONE}::test_an_answer_after_a_start_in_another_precision_is_compared_with_nothing",),
    ),
    Mutation(
        attack=24,
        what="kept answers of several, not of the one who poisoned them",
        file="coordinator/audit_kept.py",
        before="    if n_differ == len(compared_with):\n",
        after="    if n_differ:\n",
        tests=(f"{_LIES}::test_two_that_poison_kept_answers_frame_nobody",),
    ),
    Mutation(
        attack=24,
        what="what is kept of who is banned is believed no longer",
        file="coordinator/audit_kept.py",
        before="        return not record.is_quarantined and record.banned_reason is None\n",
        after="        return record is not None\n",
        tests=(f"{_LIES}::test_two_that_poison_kept_answers_frame_nobody",),
    ),
    Mutation(
        attack=24,
        what="where audited workers hand on to, only the audited one gets in",
        file="coordinator/audit_neighbours.py",
        before="        if not is_his or neighbour.arrived.done():\n",
        after="        if neighbour.arrived.done():\n",
        tests=(f"{_LIES}::test_nobody_gets_in_where_audited_workers_hand_on_to",),
    ),
    Mutation(
        attack=24,
        what="who is never free for audits is told of",
        file="coordinator/policy/audit_evasion.py",
        before="    if not row.is_telling:\n",
        after="    if row.n_audits >= 0:\n",
        tests=(f"{_LOW}::test_who_is_never_free_for_audits_but_for_clients_is_told_of",),
    ),
    Mutation(
        attack=24,
        what="who lies low after each wrong answer is accused often enough all the same",
        file="coordinator/policy/audit_accusations.py",
        before="    return len(accusations) > N_AGAIN\n",
        after="    return len(accusations) > 3 * N_AGAIN\n",
        tests=(f"{_LOW}::test_who_is_honest_for_minutes_after_each_wrong_answer_is_found_all_the_same",),
    ),
    Mutation(
        attack=24,
        what="a restart of the coordinator forgets no accusation",
        file="coordinator/trust_store.py",
        before="        accused_ago=accused_ago,\n",
        after="        accused_ago=(),\n",
        tests=(f"{_LOW}::test_a_restart_of_the_coordinator_forgets_no_accusation",),
    ),
    Mutation(
        attack=24,
        what="who takes long over each answer doesn't hold an audit for long",
        file="coordinator/audit_comparing.py",
        before="        return lambda: self._clock() >= until_s\n",
        after="        return lambda: until_s < 0.0\n",
        tests=(
            f"{_COMPARING}::test_who_takes_long_over_right_answers_after_a_wrong_one_is_accused_and_the_audit_ends",
        ),
    ),
    Mutation(
        attack=24,
        what="the model isn't to blame where another worker computes it well",
        file="coordinator/audit_found.py",
        before='    if given.failure == "faulty" and',
        after='    if given.failure == "" and',
        tests=(
            f"{_LOW}::test_who_says_that_the_model_is_damaged_while_another_one_computes_it_well_gave_no_answer",
        ),
    ),
    Mutation(
        attack=25,
        what="a good record weighs so much at most",
        file="coordinator/policy/trust.py",
        before="    keeps = 1.0 - weight / cap\n",
        after="    keeps = 1.0\n",
        tests=(
            f"{_GAMES}::test_one_slanderer_quarantines_nobody",
            f"{_GAMES}::test_a_long_good_record_does_not_outweigh_what_all_see_now",
        ),
    ),
    Mutation(
        attack=25,
        what="all workers together weigh as much as one key",
        file="coordinator/policy/trust.py",
        before="    return good + min(good_of_workers, KEY_CAP), bad + min(bad_of_workers, KEY_CAP)\n",
        after="    return good + good_of_workers, bad + bad_of_workers\n",
        tests=("tests/coordinator/policy/test_trust.py::test_any_number_of_workers_together_do_what_one_key_does",),
    ),
)
