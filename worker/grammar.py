"""What tokens a constraint lets an answer go on with: llguidance's matchers, one for each session. Blocks.

A model's tokenizer is read once and shared by all matchers (`Vocabulary`). llguidance's own limits see to it that a
mask takes milliseconds at most, and a matcher megabytes; compiling they don't bound (`worker.grammar_trial`).
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidRequestError, ModelUnavailableError
from protocol.messages import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher

LIBRARY = "llguidance"
INITIAL_LEXER_FUEL = 1_000_000
"""For compiling: some 20 ms."""
STEP_LEXER_FUEL = 100_000
"""For one mask: some 7 ms."""
MAX_ITEMS_IN_ROW = 500
"""How ambiguous a grammar may be at one place; masks of ambiguous ones take the square of it. A JSON object takes
some 4 for each property that may be left out."""
STEP_MAX_ITEMS = 25_000
"""Likewise: 1 to 2 ms."""
MAX_LEXER_STATES = 10_000
"""Each takes 1 to 2 kB."""
MAX_MULTIPLE = 10_000
"""Least common multiple of all `multipleOf`, for which the library has no limit: it makes as many states."""
MAX_GRAMMAR_SIZE = 100_000
"""Symbols: the largest schemas that are published have twice as many."""
_SEPARATORS = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""Of JSON: one blank at most where it's usual. With any number of them small models never come to an end."""
MASK_S = 2.0
"""Far more than the limits above allow: it is for machines that stand still."""
_LONGEST_REASON = 500
_MAX_DIGITS = 12
"""Of a number, before its point and behind it."""
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSource:
    """Where a model's tokenizer is, and how many tokens its head tells apart, which may be more or fewer."""

    folder: Path
    vocab_size: int


def why_unconstrained() -> str:
    """Why this worker can't hold any answer to a constraint; empty if it can."""
    if importlib.util.find_spec(LIBRARY) is not None:
        return ""
    return "llguidance isn't installed there (pip install '.[worker]' in Brigade's folder)"


class Vocabulary:
    """A model's tokens as llguidance knows them. Takes a second and up to 100 MB for a large vocabulary."""

    def __init__(self, source: TokenizerSource) -> None:
        """Read the tokenizer.

        Raises:
            ModelUnavailableError: llguidance isn't installed here.
            InvalidRequestError: the model has no tokenizer that llguidance can read.
        """
        if why := why_unconstrained():
            raise ModelUnavailableError(
                f"this worker holds no answer to a constraint: {why}; ask for another route"
            )
        import llguidance  # noqa: PLC0415 - a worker without it runs everything else

        self._library: Any = llguidance
        self.n_tokens = source.vocab_size
        try:
            text = (source.folder / _TOKENIZER_FILE).read_text(encoding="utf-8")
        except OSError as exc:
            raise InvalidRequestError(
                "this model has no tokenizer, so its answers can't be held to a constraint"
            ) from exc
        try:
            self._tokenizer = self._library.LLTokenizer(text)
        except BaseException as exc:  # the library's own, whatever the file makes it raise
            if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
                raise
            raise _unreadable(str(exc)) from exc
        self.n_known = self._tokenizer.vocab_size
        """Tokens of the tokenizer."""
        self.end = self._tokenizer.eos_token
        """Stands for the end of an answer in masks; which tokens really end one is each request's to say."""
        if not self._tokenizer.is_special_token(self.end):
            raise _unreadable("it has no special token")

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A matcher at the beginning of an answer.

        Raises:
            InvalidRequestError: the constraint is malformed, not supported, or too complex; the message says what.
        """
        limits = self._library.LLParserLimits(
            initial_lexer_fuel=INITIAL_LEXER_FUEL,
            step_lexer_fuel=STEP_LEXER_FUEL,
            max_items_in_row=MAX_ITEMS_IN_ROW,
            step_max_items=STEP_MAX_ITEMS,
            max_lexer_states=MAX_LEXER_STATES,
            max_grammar_size=MAX_GRAMMAR_SIZE,
            verbose_errors=False,
        )
        _check_multiples(constraint)
        try:
            grammar = self._grammar(constraint)
        except ValueError as exc:
            raise unusable(constraint, str(exc)) from exc
        matcher: LLMatcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)
        if matcher.is_error():
            raise unusable(constraint, matcher.get_error())
        return matcher

    def _grammar(self, constraint: Constraint) -> Any:
        library = self._library.LLMatcher
        match constraint.kind:
            case "json_schema":
                return library.grammar_from_json_schema(constraint.text, defaults=_SEPARATORS)
            case "regex":
                return library.grammar_from_regex(constraint.text)
            case "lark":
                return library.grammar_from_lark(constraint.text)


class Grammar:
    """One session's constraint: what its answer may go on with. Positions may be taken again."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        constraint: Constraint,
        stop_token_ids: Sequence[int],
        answer: Sequence[int],
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        """Compile it, and go as far as the answer has come; `threads` look ahead if there are any.

        Raises:
            InvalidRequestError: the constraint can't be used, or the answer so far doesn't fit it.
        """
        self._constraint = constraint
        self._n_tokens, self._n_known, self._end = vocabulary.n_tokens, vocabulary.n_known, vocabulary.end
        self._stop_token_ids = [token_id for token_id in stop_token_ids if 0 <= token_id < self._n_tokens]
        self._matcher = vocabulary.matcher(constraint)
        self._taken: list[int] = []
        self._allowed: npt.NDArray[np.bool_] | None = None
        """For what comes after what was taken."""
        self._threads = threads
        self._coming: Future[npt.NDArray[np.bool_]] | None = None
        self._found(answer)

    def allowed(self, answer: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which tokens, (vocab_size,), an answer that begins so may go on with; a stop token if it may end here.

        Raises:
            InvalidRequestError: the answer doesn't fit the constraint, or finding out takes too much.
        """
        coming, self._coming = self._coming, None
        if coming is not None and not coming.cancel():  # one that hasn't begun waits behind others' compiling
            try:
                coming.result(MASK_S)
            except TimeoutError as exc:
                raise unusable(self._constraint, f"a token took longer than {MASK_S:g} s: simplify it") from exc
        return self._found(answer)

    def look_ahead(self, answer: Sequence[int]) -> None:
        """Find out what may follow an answer that begins so while the model is run for it."""
        if self._threads is not None:
            self._coming = self._threads.submit(self._found, answer)

    def _found(self, answer: Sequence[int]) -> npt.NDArray[np.bool_]:
        if list(answer) != self._taken:
            self._go_to(list(answer))
            self._allowed = None
        if self._allowed is None:
            self._allowed = self._mask()
        return self._allowed

    def _go_to(self, answer: list[int]) -> None:
        n_same = len(self._taken)
        if answer[:n_same] != self._taken:
            pairs = enumerate(zip(self._taken, answer, strict=False))
            n_same = next((i for i, (old, new) in pairs if old != new), min(len(answer), n_same))
            self._matcher.rollback(len(self._taken) - n_same)
        if not self._matcher.consume_tokens(answer[n_same:]):
            why = self._matcher.get_error()
            raise unusable(self._constraint, f"the {len(answer)} tokens of the answer so far don't fit it: {why}")
        self._taken = answer

    def _mask(self) -> npt.NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        known = np.unpackbits(bits, count=self._n_known, bitorder="little").view(np.bool_)
        allowed = np.zeros(self._n_tokens, dtype=np.bool_)
        allowed[: self._n_known] = known[: self._n_tokens]
        allowed[self._end : self._end + 1] = False
        allowed[self._stop_token_ids] = known[self._end]
        if not allowed.any():
            raise unusable(self._constraint, "the model has no token that the answer could go on with")
        return allowed

    def _check(self) -> None:
        """Refuse to go on with a matcher that broke: it would let every answer end."""
        if self._matcher.is_error():
            raise unusable(self._constraint, self._matcher.get_error())


def _check_multiples(constraint: Constraint) -> None:
    """Refuse what the library would compile for minutes, into gigabytes, whatever its limits."""
    if constraint.kind == "lark":
        # it takes grammars written as JSON too, and schemas within grammars, where a name may be written in escapes
        if constraint.text.lstrip().startswith("{"):
            raise unusable(constraint, "it is JSON; a grammar begins with a rule, such as `start: ...`")
        if "multipleOf" in constraint.text or ("%json" in constraint.text and "\\u" in constraint.text):
            raise unusable(constraint, "multipleOf and \\u escapes are taken in a json_schema alone, not in %json")
    if constraint.kind == "json_schema":
        try:
            multiples = set(_multiples(json.loads(constraint.text, parse_float=Decimal, parse_int=Decimal)))
        except (ValueError, ArithmeticError, RecursionError) as exc:
            raise unusable(constraint, f"not JSON that can be read: {exc}") from exc
        if _n_states(multiples) > MAX_MULTIPLE:
            raise unusable(constraint, f"the least common multiple of all multipleOf is over {MAX_MULTIPLE}")


def _n_states(multiples: Collection[Decimal]) -> int:
    """The least common multiple, counted in the last digit that any of them has."""
    if any(not -_MAX_DIGITS < multiple.adjusted() < _MAX_DIGITS for multiple in multiples):
        return MAX_MULTIPLE + 1
    fractions = [Fraction(abs(multiple)) for multiple in multiples if multiple]
    unit = math.lcm(*(fraction.denominator for fraction in fractions))
    return math.lcm(*(int(fraction * unit) for fraction in fractions))


def _multiples(schema: Any) -> Iterator[Decimal]:
    if isinstance(schema, dict):
        found = schema.get("multipleOf")
        if isinstance(found, Decimal):
            yield found
    if isinstance(schema, dict | list):
        for value in schema.values() if isinstance(schema, dict) else schema:
            yield from _multiples(value)


def _unreadable(why: str) -> InvalidRequestError:
    return InvalidRequestError(
        "this model's tokenizer is of a kind that llguidance can't use, so its answers can't be held to a "
        f"constraint: {why[:_LONGEST_REASON]}"
    )


def unusable(constraint: Constraint, why: str) -> InvalidRequestError:
    """What a client is told whose constraint can't be used."""
    reason = " ".join(why.split())[:_LONGEST_REASON]
    return InvalidRequestError(f"the answer can't be held to this {constraint.kind}: {reason}")
