"""Classes 11 and 12, of constraints: what a client has an answer held to, and what that may cost others."""

from __future__ import annotations

from tests.mutations.mutation import Mutation

_GRAMMAR, _GRAMMARS = "tests/worker/test_grammar.py", "tests/worker/test_grammars.py"

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
)
