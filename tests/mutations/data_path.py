"""Classes 14 to 19: frames, tensors, code in data, sessions of others, tickets."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_LENGTHS, _TENSORS, _CODE = "test_14_lengths.py", "test_15_tensors.py", "test_16_code_in_data.py"
_ANOTHERS, _PREFIXES, _TICKETS = (
    "test_17_anothers_session.py", "test_18_shared_prefixes.py", "test_19_workers_without_tickets.py",
)  # fmt: skip

DATA_PATH = (
    Mutation(
        attack=14,
        what="the largest message of the data plane",
        file="worker/server.py",
        before="            max_msg_size=MAX_FRAME_BYTES if peer is not None else MAX_CLIENT_FRAME_BYTES,\n",
        after="            max_msg_size=0,\n",
        tests=(f"{_LENGTHS}::test_a_data_message_over_the_cap_is_refused_by_its_length",),
    ),
    Mutation(
        attack=14,
        what="the largest message of the control socket",
        file="coordinator/worker_api.py",
        before="max_msg_size=MAX_CONTROL_BYTES",
        after="max_msg_size=0",
        tests=(f"{_LENGTHS}::test_a_control_message_over_the_cap_is_refused_by_its_length",),
    ),
    Mutation(
        attack=14,
        what="a frame has the length that it says",
        file="protocol/frames.py",
        before="    if len(view) != end:\n",
        after="    if len(view) < header_end:\n",
        tests=(f"{_LENGTHS}::test_frames_that_lie_about_their_lengths_end_their_connection_only",),
    ),
    Mutation(
        attack=15,
        what="hidden states are finite",
        file="protocol/tensors.py",
        before="    if are_states and tensor.is_floating_point():\n",
        after="    if are_states and tensor.is_floating_point() and not tensor.numel():\n",
        tests=(f"{_TENSORS}::test_hidden_states_that_disagree_with_their_header_end_that_session_only",),
    ),
    Mutation(
        attack=15,
        what="token ids are in the vocabulary",
        file="worker/batch_run.py",
        before="    if stage.is_first and not 0 <= int(payload.min()) <= int(payload.max()) < stage.vocab_size:\n",
        after="    if stage.is_first and payload.numel() < 0:\n",
        tests=(f"{_TENSORS}::test_token_ids_outside_the_vocabulary_end_the_session",),
    ),
    Mutation(
        attack=15,
        what="a step's numbers can be",
        file="protocol/messages.py",
        before="        if not 0 <= self.position < 2**31 or not 1 <= self.n_tokens < 2**31:\n",
        after="        if self.position > 2**31:\n",
        tests=(f"{_TENSORS}::test_numbers_that_cannot_be_end_the_connection",),
    ),
    Mutation(
        attack=16,
        what="no code that comes with a model",
        file="coordinator/packing/tokenizer_files.py",
        before="location, trust_remote_code=False, local_files_only=True",
        after="location, trust_remote_code=True, local_files_only=True",
        tests=(f"{_CODE}::test_nothing_of_the_sort_is_in_the_tree",),
    ),
    Mutation(
        attack=16,
        what="keys that name code are not passed on",
        file="coordinator/packing/tokenizer_files.py",
        before='    "auto_map",\n',
        after="",
        tests=(f"{_CODE}::test_code_that_comes_with_a_model_is_neither_run_nor_passed_on",),
    ),
    Mutation(
        attack=17,
        what="who opened a session feeds it",
        file="worker/sessions.py",
        before="                if session is None or session.opener is not connection:\n",
        after="                if session is None:\n",
        tests=(f"{_ANOTHERS}::test_nobody_else_feeds_steps_cancels_or_reads_a_session",),
    ),
    Mutation(
        attack=17,
        what="a step is where the session is",
        file="worker/flow.py",
        before="        if not self.next_position - self.n_drafts <= position <= self.next_position:\n",
        after="        if position < 0:\n",
        tests=(f"{_ANOTHERS}::test_steps_that_are_repeated_early_or_late_end_the_session",),
    ),
    Mutation(
        attack=17,
        what="a session is its key's",
        file="coordinator/earlier_sessions.py",
        before="        if found is None or found.key_id != key_id or ",
        after="        if found is None or ",
        tests=(
            f"{_ANOTHERS}::test_another_keys_session_is_as_one_that_isnt_there",
            f"{_PREFIXES}::test_another_keys_text_is_found_by_nobody_and_moves_no_route",
        ),
    ),
    Mutation(
        attack=18,
        what="a text is found by who is told of its session",
        file="worker/parking.py",
        before="        return next((found[session_id] for session_id in earlier if session_id in found), None)\n",
        after="        return next(reversed(self.parked), None)\n",
        tests=(f"{_PREFIXES}::test_the_same_text_is_run_again_for_whoever_isnt_told_of_it",),
    ),
    Mutation(
        attack=19,
        what="a ticket is for one worker and one session",
        file="worker/opening.py",
        before="if ticket.worker_id != self.worker_id or ticket.session_id != session_id:",
        after="if ticket.worker_id != self.worker_id and ticket.session_id != session_id:",
        tests=(f"{_TICKETS}::test_with_its_own_ticket_of_another_session",),
    ),
    Mutation(
        attack=19,
        what="a ticket ends",
        file="worker/opening.py",
        before="        if self.now_s >= ticket.expires_at_s:\n",
        after="        if self.now_s >= ticket.expires_at_s + 1e12:\n",
        tests=(f"{_TICKETS}::test_with_an_expired_ticket",),
    ),
    Mutation(
        attack=19,
        what="a ticket's signature is verified",
        file="protocol/tickets.py",
        before="        payload = signer.unsign(token)\n",
        after='        payload = token.rpartition(".")[0].encode()\n        signer.get_signature(payload)\n',
        tests=(f"{_TICKETS}::test_with_a_ticket_that_it_widened_itself",),
    ),
    Mutation(
        attack=19,
        what="tokens come from the route's tail",
        file="worker/opening.py",
        before="    return peer is not None and peer == ticket.tail and ",
        after="    return peer is not None and ",
        tests=(f"{_TICKETS}::test_a_worker_cannot_feed_anothers_session",),
    ),
    Mutation(
        attack=19,
        what="the caller that a ticket is for",
        file="worker/opening.py",
        before="if ticket.previous != peer:",
        after="if ticket.previous != peer and False:",
        tests=(f"{_TICKETS}::test_with_anothers_ticket",),
    ),
)
