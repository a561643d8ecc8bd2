"""Class 24: what a worker says of its machine and of its blocks, and workers that give zeros or take their time."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_MACHINES = "test_24_lies_about_machines.py"

MACHINES = (
    Mutation(
        attack=24,
        what="numbers that no device has",
        file="coordinator/control_socket.py",
        before="        _check_device(message.device)\n",
        after="",
        tests=(f"{_MACHINES}::test_what_no_device_has_is_not_believed",),
    ),
    Mutation(
        attack=24,
        what="measured times replace announced ones",
        file="coordinator/policy/sizing.py",
        before="    block_s = block_s or _estimated",
        after="    block_s = _estimated",
        tests=(f"{_MACHINES}::test_measured_times_replace_what_was_announced",),
    ),
    Mutation(
        attack=24,
        what="blocks that a worker was given, not those that it names",
        file="coordinator/policy/transition.py",
        before="for span, status in latest.items() if span in worker.assignment.spans)",
        after="for span, status in latest.items())",
        tests=(f"{_MACHINES}::test_blocks_that_nobody_gave_it_are_not_a_workers_to_serve",),
    ),
    Mutation(
        attack=24,
        what="of who can't be dialled clients tell too",
        file="client/failover.py",
        before="continues = session_id if has_been_heard or not before.has_been_heard else before.continues",
        after="continues = session_id if has_been_heard else before.continues",
        tests=(f"{_MACHINES}::test_who_says_ready_and_is_not_costs_no_client_an_answer_and_loses_its_routes",),
    ),
    Mutation(
        attack=24,
        what="each is held to the precision that it says",
        file="coordinator/policy/audit_rules.py",
        before='    "float32": Tolerance(middle=0.001, stray=0.01),\n',
        after='    "float32": Tolerance(middle=0.05, stray=0.4),\n',
        tests=(f"{_MACHINES}::test_a_worker_of_less_precision_than_it_says_is_found",),
    ),
    Mutation(
        attack=24,
        what="numbers that are none are found over the wire",
        file="coordinator/policy/audit_rules.py",
        before="        return 2.0\n",
        after="        return 0.0\n",
        tests=(f"{_MACHINES}::test_zeros_and_numbers_that_are_none_are_found",),
    ),
    Mutation(
        attack=24,
        what="a route that stands still is left",
        file="client/pace.py",
        before="    return min(LONGEST_STALL_S, max(SHORTEST_STALL_S, STALL_FACTOR * p99_s))\n",
        after="    return 10 * LONGEST_STALL_S + p99_s\n",
        tests=(f"{_MACHINES}::test_who_is_slow_on_purpose_loses_the_session_and_is_told_of",),
    ),
)
