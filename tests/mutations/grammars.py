"""Classes 11 and 12, of constraints: what a client has an answer held to, and what that may cost others."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_GRAMMAR, _GRAMMARS = "tests/worker/test_grammar.py", "tests/worker/test_grammars.py"
_TRIAL = "tests/worker/test_grammar_trial.py"

GRAMMARS = (
    Mutation(
        attack=11,
        what="an answer ends only where its constraint lets it",
        file="worker/grammar.py",
        before="        allowed[self._stop_token_ids] = known[self._end]\n",
        after="        allowed[self._stop_token_ids] = True\n",
        tests=(f"{_GRAMMAR}::test_a_position_that_is_taken_again_allows_the_same",),
    ),
    Mutation(
        attack=12,
        what="a matcher that broke at a limit ends the answer as an error",
        file="worker/grammar.py",
        before="dtype=np.uint8)\n        self._check()\n",
        after="dtype=np.uint8)\n",
        tests=(f"{_GRAMMAR}::test_a_mask_that_takes_too_much_is_an_error_and_not_an_end",),
    ),
    Mutation(
        attack=12,
        what="no constraint is compiled in the worker before it was in another process",
        file="worker/grammars.py",
        before="            self._trial.check(tokenizer, constraint)\n",
        after="",
        tests=(f"{_GRAMMARS}::test_nothing_is_compiled_here_that_was_not_tried_before",),
    ),
    Mutation(
        attack=12,
        what="how many constraints are in use at once",
        file="worker/grammars.py",
        before=" or len(self._alive) >= MAX_GRAMMARS:\n",
        after=":\n",
        tests=(f"{_GRAMMARS}::test_no_more_are_used_than_memory_is_meant_for",),
    ),
    Mutation(
        attack=12,
        what="how long and with how much memory a constraint is tried",
        file="worker/grammar_trial.py",
        before="    timer = threading.Timer(within_s, process.kill)\n",
        after="    timer = threading.Timer(10**6, process.kill)\n",
        tests=(f"{_TRIAL}::test_what_would_end_the_process_or_never_end_is_refused_and_others_go_on",),
    ),
    Mutation(
        attack=12,
        what="the process that tries constraints ends with its worker",
        file="worker/grammar_trial.py",
        before="            self._end_process = weakref.finalize(self, _end, self._process)\n",
        after="            self._end_process = _nothing\n",
        tests=(f"{_TRIAL}::test_the_process_ends_with_whoever_asks_it",),
    ),
)
