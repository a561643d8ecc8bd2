"""Compiling constraints beside the event loop: in threads of their own, with a deadline, and tokenizers kept.

No answer is begun before its constraint is compiled, so what is wrong with one is said before anything is sampled.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from protocol.errors import OverloadedError, StaleEpochError
from protocol.messages import SamplingParams
from worker.grammar import Grammar, TokenizerSource, Vocabulary
from worker.grammar_trial import GrammarTrial

COMPILE_S = 20.0
"""Compiling takes a second at most (`worker.grammar`), the first of a model one more; others may be before it."""
N_THREADS = 2
MAX_VOCABULARIES = 2
"""Tokenizers kept in memory."""
MAX_WAITING = 32
MAX_GRAMMARS = 64
"""Sessions at once that are held to a constraint: each may take 20 MB if it is made for that."""


class Grammars:
    """Grammars for sessions. One for a worker."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(N_THREADS, thread_name_prefix="grammar")
        self._trial = GrammarTrial()
        self._vocabularies: OrderedDict[TokenizerSource, Vocabulary] = OrderedDict()
        self._reading = threading.Lock()
        self._n_waiting = 0
        self._alive: weakref.WeakSet[Grammar] = weakref.WeakSet()

    async def of(
        self, sampling: SamplingParams, prompt: Sequence[int], tokenizer: TokenizerSource | None
    ) -> Grammar | None:
        """The grammar of a session's constraint, as far on as its answer is; None if it has no constraint.

        Raises:
            InvalidRequestError: the constraint can't be used, with this model or at all.
            OverloadedError: too many are being compiled or used.
            ModelUnavailableError: this worker can't compile any.
        """
        constraint = sampling.constraint
        if constraint is None:
            return None
        if tokenizer is None:
            raise StaleEpochError("the model is being dropped here: ask for another route")
        if self._n_waiting >= MAX_WAITING or len(self._alive) >= MAX_GRAMMARS:
            raise OverloadedError(
                f"{self._n_waiting} constraints are being compiled here and {len(self._alive)} are used; at most "
                f"{MAX_WAITING} and {MAX_GRAMMARS}: try again later"
            )
        answer = prompt[len(prompt) - sampling.n_answered :]
        compiled: list[Grammar] = []  # not what the future gives: that lives until the garbage collector comes

        def compile_it() -> None:
            vocabulary = self._vocabulary(tokenizer)
            self._trial.check(tokenizer, constraint)
            compiled.append(Grammar(vocabulary, constraint, sampling.stop_token_ids, answer, self._threads))

        self._n_waiting += 1
        try:
            async with asyncio.timeout(COMPILE_S):
                await asyncio.get_running_loop().run_in_executor(self._threads, compile_it)
        except TimeoutError as exc:
            raise OverloadedError(
                f"the {constraint.kind} wasn't compiled within {COMPILE_S:g} s: simplify it, or try again later"
            ) from exc
        finally:
            self._n_waiting -= 1
        grammar = compiled.pop()
        self._alive.add(grammar)
        return grammar

    def _vocabulary(self, source: TokenizerSource) -> Vocabulary:
        with self._reading:  # two sessions that come at once read it once
            if source not in self._vocabularies:
                self._vocabularies[source] = Vocabulary(source)
                while len(self._vocabularies) > MAX_VOCABULARIES:
                    self._vocabularies.popitem(last=False)
            self._vocabularies.move_to_end(source)
            return self._vocabularies[source]
