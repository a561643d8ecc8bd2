"""Classes 23 to 28: ghosts, lies, trust games, addresses, two coordinators, builds."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_CLONES, _LIES, _TRUST = "test_23_clones.py", "test_24_lies_about_work.py", "test_25_trust_games.py"
_ADVERTISED, _YESTERDAY = "test_26_advertised_addresses.py", "test_27_yesterdays_cluster.py"
_INSTALLED = "test_28_what_is_run_and_installed.py"

CLUSTER = (
    Mutation(
        attack=24,
        what="what workers make of the same probe is compared",
        file="coordinator/policy/audit_rules.py",
        before="        return self.difference <= self.allowed\n",
        after="        return True\n",
        tests=(f"{_LIES}::test_of_two_that_differ_the_kept_answer_says_who_is_wrong",),
    ),
    Mutation(
        attack=25,
        what="what one reporter's evidence weighs at most",
        file="coordinator/policy/trust.py",
        before='    return WORKER_CAP if kind_of(reporter) == "worker" else KEY_CAP\n',
        after="    return 1000.0\n",
        tests=(f"{_TRUST}::test_one_slanderer_quarantines_nobody",),
    ),
    Mutation(
        attack=23,
        what="an id is the hash of a key",
        file="coordinator/authority.py",
        before="        if worker_id_of_key(public_key_der(public_key)) != worker_id:\n",
        after="        if not worker_id:\n",
        tests=(f"{_CLONES}::test_an_id_without_its_key_is_let_in_by_nobody",),
    ),
    Mutation(
        attack=23,
        what="who is banned stays out",
        file="coordinator/joining.py",
        before="        self._check_worker(request.worker_id)\n",
        after="",
        tests=(f"{_CLONES}::test_a_worker_that_was_banned_stays_out_with_a_copy_of_its_folder",),
    ),
    Mutation(
        attack=23,
        what="the older of two is dismissed",
        file="coordinator/cluster.py",
        before='            self._dismiss(worker_id, ConflictError("the same worker connected again',
        after='            str((worker_id, "the same worker connected again',
        tests=(f"{_CLONES}::test_of_two_with_one_key_the_newer_serves_and_the_older_is_told",),
    ),
    Mutation(
        attack=26,
        what="no link-local addresses",
        file="coordinator/addresses.py",
        before="    if address.is_link_local:\n",
        after="    if address.is_link_local and is_caller_local is None:\n",
        tests=(f"{_ADVERTISED}::test_no_worker_sends_others_where_no_worker_is",),
    ),
    Mutation(
        attack=26,
        what="loopback of the same machine only",
        file="coordinator/addresses.py",
        before="    if address.is_loopback and not is_caller_local:\n",
        after="    if address.is_loopback and is_caller_local is None:\n",
        tests=(f"{_ADVERTISED}::test_no_worker_sends_others_to_what_listens_on_their_own_machines",),
    ),
    Mutation(
        attack=26,
        what="addresses are checked before they are told",
        file="coordinator/control_socket.py",
        before="        await check_advertised_url(message.url, self._connects_from)\n",
        after="",
        tests=(f"{_ADVERTISED}::test_a_worker_that_announces_one_is_dismissed_and_told_to_nobody",),
    ),
    Mutation(
        attack=27,
        what="the lease's epoch fences writes",
        file="coordinator/fence.py",
        before="connection.scalar(_EPOCH) != self.epoch:\n",
        after="connection.scalar(_EPOCH) is None:\n",
        tests=(f"{_YESTERDAY}::test_a_second_coordinator_doesnt_start_and_an_old_one_writes_nothing",),
    ),
    Mutation(
        attack=27,
        what="orders have an epoch",
        file="worker/holdings.py",
        before="        if assignment.epoch <= self.epoch:\n",
        after="        if assignment.epoch < -1:\n",
        tests=(f"{_YESTERDAY}::test_a_worker_takes_no_order_that_is_older_than_its_last",),
    ),
    Mutation(
        attack=27,
        what="reports have an epoch",
        file="coordinator/policy/transition.py",
        before="    if report.epoch != worker.assignment.epoch:\n",
        after="    if report.epoch < 0:\n",
        tests=(f"{_YESTERDAY}::test_reports_of_another_epoch_say_nothing_of_this_one",),
    ),
    Mutation(
        attack=27,
        what="epochs have a bound",
        file="coordinator/policy/arrival.py",
        before="    if not old.assignment.epoch < announce.epoch <= _LARGEST_EPOCH:\n",
        after="    if not old.assignment.epoch < announce.epoch:\n",
        tests=(f"{_YESTERDAY}::test_no_worker_can_use_up_the_epochs",),
    ),
    Mutation(
        attack=28,
        what="no shell",
        file="client/chat_template.py",
        before="        stderr=subprocess.DEVNULL,\n",
        after="        stderr=subprocess.DEVNULL,\n        shell=True,\n",
        tests=(f"{_INSTALLED}::test_nothing_is_started_by_a_shell_and_few_start_anything",),
    ),
    Mutation(
        attack=28,
        what="one index of packages",
        file="Makefile",
        before="--disable-pip-version-check -c constraints.txt",
        after="--disable-pip-version-check --extra-index-url https://packages.example -c constraints.txt",
        tests=(f"{_INSTALLED}::test_no_build_step_runs_what_it_downloads_or_trusts_anybody",),
    ),
)
